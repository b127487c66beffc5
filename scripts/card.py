"""The dataset card of a repository: the project's README with measured facts in its YAML header."""

from __future__ import annotations

from pathlib import Path

import datasets
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard

import so2sat
from manifest import Manifest

NAME = "README.md"
PROJECT_README = Path(__file__).resolve().parent.parent / "README.md"

# Stands in for the card while a repository is being built. It names a file that is never there, because without any
# card `load_dataset` would guess splits from what files there are and load half a dataset as if it were whole.
INCOMPLETE = """\
---
configs:
- config_name: incomplete
  data_files: this-repository-is-incomplete
---
This repository is incomplete: `build.py` is writing it, or was interrupted. Run it again with the same arguments.
"""

# Size categories of the Hub: lower bound and name.
_SIZE_CATEGORIES = ((100_000, "100K<n<1M"), (10_000, "10K<n<100K"), (1_000, "1K<n<10K"), (0, "n<1K"))


def dataset_infos(manifest: Manifest) -> DatasetInfosDict:
    """Features and measured sizes of every config of a complete repository."""
    infos = DatasetInfosDict()
    for config in manifest.configs:
        splits = datasets.SplitDict()
        for split in manifest.splits(config):
            shards = manifest.shard_names(config, split)
            splits.add(
                datasets.SplitInfo(
                    name=split,
                    num_bytes=sum(manifest.shards[name].arrow_bytes for name in shards),
                    num_examples=sum(manifest.shards[name].rows for name in shards),
                )
            )
        infos[config] = datasets.DatasetInfo(
            features=so2sat.features(config),
            splits=splits,
            download_size=sum(
                record.bytes for name, record in manifest.shards.items() if name.startswith(f"{config}/")
            ),
            dataset_size=sum(split.num_bytes for split in splits.values()),
        )
    return infos


def render(manifest: Manifest) -> str:
    """Makes the card of a complete repository.

    Args:
        manifest: What the repository holds.

    Returns:
        Markdown with a YAML header: the project's README and its metadata, with `configs`, `dataset_info` and
        `size_categories` as measured, and a first line that says so if the data are synthetic.
    """
    card = DatasetCard.load(PROJECT_README)
    configs = MetadataConfigs()
    for config in manifest.configs:
        configs[config] = {
            "data_files": [
                {"split": split, "path": _glob(manifest, config, split)} for split in manifest.splits(config)
            ]
        }
        if config == so2sat.DEFAULT_CONFIG:
            configs[config]["default"] = True
    configs.to_dataset_card_data(card.data)
    dataset_infos(manifest).to_dataset_card_data(card.data)
    rows = max(sum(manifest.splits(config).values()) for config in manifest.configs)
    card.data.size_categories = [next(name for least, name in _SIZE_CATEGORIES if rows >= least)]
    notices = []
    if manifest.synthetic:
        notices.append(f"> **These data are synthetic:** {manifest.synthetic}\n\n")
    if "rgb" in manifest.configs and manifest.image_format != "jpeg":
        notices.append(f"> Images are {manifest.image_format.upper()} here, without loss, whatever is said below.\n\n")
    return f"---\n{card.data.to_yaml()}\n---\n{''.join(notices)}{card.text.lstrip()}"


def _glob(manifest: Manifest, config: str, split: str) -> str:
    return f"{config}/{split}-*-of-{len(manifest.shard_names(config, split)):05d}.parquet"
