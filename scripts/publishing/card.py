"""The dataset card of a repository: the project's README with measured metadata, tables and pictures."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard

import so2sat
from publishing import facts, layout
from publishing.manifest import Manifest

NAME = "README.md"
PROJECT_README = Path(__file__).resolve().parents[2] / "README.md"

PICTURES = ("assets/bands.png", "assets/classes.png", "assets/histogram.png")

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

# The README marks what is for some repositories only ("only: rgb": those with that config; "only: patches", "arrays",
# "jpeg" and "png": with such content; "only: project": none, it is for the front page), and what is replaced by a table
# of what was measured.
_MARKED = r"^<!-- {}: (\w+) -->\n(.*?)^<!-- /{} -->\n"

# Statistics of a repository: the content of statistics.json under `configs`.
Statistics = Mapping[str, Mapping[str, Mapping[str, Any]]]


def render(manifest: Manifest, statistics: Statistics) -> str:
    """Makes the card of a complete repository.

    Args:
        manifest: What the repository holds.
        statistics: The statistics of every config and split.

    Returns:
        Markdown with a YAML header: the project's README and its metadata, with `configs`, `dataset_info`,
        `size_categories` and tables as measured, without what is about something else, and with a first line that says
        so if the data are synthetic.
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
    kinds = {layout.CONFIGS[config].kind for config in manifest.configs}
    held = {
        *manifest.configs,
        *(["patches"] if kinds - {"geo"} else []),
        *(["arrays"] if "all" in kinds else []),
        *([manifest.image_format] if "rgb" in kinds else []),
    }
    tables: Mapping[str, Callable[[], str]] = {
        "configs": lambda: _config_table(manifest),
        "classes": lambda: _class_tables(statistics),
        "bands": lambda: band_table(_bands(statistics)),
        "constants": lambda: constants(_bands(statistics)),
    }

    text = _replace("only", lambda name, text: text if name in held else "", card.text.lstrip())
    text = _replace("measured", lambda name, text: tables[name](), text)
    if manifest.synthetic:
        what = manifest.synthetic.rstrip(".")
        text = f"> **These data are synthetic:** {what}. What is said below is of the real ones.\n\n{text}"
    return f"---\n{card.data.to_yaml()}\n---\n{text}"


def _replace(kind: str, replacement: Callable[[str, str], str], text: str) -> str:
    pattern = re.compile(_MARKED.format(kind, kind), re.MULTILINE | re.DOTALL)
    return pattern.sub(lambda part: replacement(part[1], part[2]), text)


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
            features=layout.features(config),
            splits=splits,
            download_size=_bytes(manifest, config),
            dataset_size=sum(split.num_bytes for split in splits.values()),
        )
    return infos


def _bytes(manifest: Manifest, config: str) -> int:
    return sum(record.bytes for name, record in manifest.shards.items() if name.startswith(f"{config}/"))


def _glob(manifest: Manifest, config: str, split: str) -> str:
    return f"{config}/{split}-*-of-{len(manifest.shard_names(config, split)):05d}.parquet"


# ┌──────────┐
# │  Tables  │
# └──────────┘


def _table(alignment: Sequence[str], *rows: Sequence[str]) -> str:
    """A table of Markdown: rows, the first of which is the header, and `---`, `---:` or `:---:` for every column."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (rows[0], alignment, *rows[1:]))


def _config_table(manifest: Manifest) -> str:
    rows = [
        (
            f"`{config}`",
            ", ".join(f"`{name}`" for name in layout.features(config)),
            layout.CONFIGS[config].description,
            ", ".join(f"{split} {count:,}" for split, count in manifest.splits(config).items()),
            f"{_bytes(manifest, config):,}",
        )
        for config in manifest.configs
    ]
    return _table(["---", "---", "---", "---", "---:"], ("config", "columns", "what", "rows", "bytes"), *rows)


def class_table(counts: Mapping[str, Sequence[int]]) -> str:
    """The table of patches per class: 17 counts by split."""
    rows = [
        (str(index), code, name, *(f"{split[index]:,}" for split in counts.values()))
        for index, (code, name) in enumerate(zip(facts.LCZ_CODES, so2sat.LABELS))
    ]
    total = ("", "", "**all**", *(f"**{sum(split):,}**" for split in counts.values()))
    alignment = ["---:", ":---:", "---", *("---:" for _ in counts)]
    return _table(alignment, ("index", "LCZ", "class", *counts), *rows, total)


def _class_tables(statistics: Statistics) -> str:
    """A table for each way in which patches are split."""
    ways: dict[tuple[str, ...], list[str]] = {}
    for config in statistics:
        ways.setdefault(tuple(layout.CONFIGS[config].files.values()), []).append(config)
    tables = []
    for configs in ways.values():
        # `geo` may lack a split that the others have.
        same = [config for config in configs if layout.CONFIGS[config].kind != "geo"] or configs
        names = ", ".join(f"`{config}`" for config in same)
        tables.append(f"{names}:\n\n{class_table(patches_per_class(statistics[same[0]]))}")
    return "\n".join(tables)


def patches_per_class(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, list[int]]:
    """Counts in the order of the classes, by split, of a config's statistics."""
    return {split: [*summary["patches_per_class"].values()] for split, summary in splits.items()}


def _bands(statistics: Statistics) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Statistics of the bands of every array: those of the first config and split that have them."""
    bands: dict[str, Sequence[Mapping[str, Any]]] = {}
    for splits in statistics.values():
        for column, summaries in next(iter(splits.values()))["bands"].items():
            bands.setdefault(column, summaries)
    return dict(sorted(bands.items(), key=lambda item: item[0] == "image"))


def band_table(bands: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The table of bands with `mean` and `std`, by array."""
    meanings = {"sentinel1": so2sat.SENTINEL1_BANDS, "sentinel2": so2sat.SENTINEL2_BANDS, "image": ()}
    rows = []
    for column, summaries in bands.items():
        for index, summary in enumerate(summaries):
            cells = (f"{summary['name']}", "8-bit pixel", "0 to 255", "")
            if meanings[column]:
                band = meanings[column][index]
                cells = (band.name, band.meaning, band.unit, f"{band.wavelength or ''}")
            rows.append((f"`{column}`", str(index), *cells, _number(summary["mean"]), _number(summary["std"])))
    header = ("array", "index", "band", "meaning", "unit", "nm", "mean", "std")
    return _table(["---", "---:", "---", "---", "---", "---:", "---:", "---:"], header, *rows)


def constants(bands: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Python code with mean and standard deviation of every band, by array."""
    lines = []
    for column, summaries in bands.items():
        for name in ("mean", "std"):
            numbers = textwrap.fill(", ".join(_number(summary[name]) for summary in summaries), 88)
            lines += [f"{column.upper()}_{name.upper()} = [", textwrap.indent(numbers + ",", "    "), "]"]
    return "\n".join(["```python", *lines, "```", ""])


def _number(value: float | None) -> str:
    return "None" if value is None else f"{value:.6g}"


# ┌────────────┐
# │  Pictures  │
# └────────────┘


def pictures(folder: Path, manifest: Manifest, statistics: Statistics) -> dict[str, bytes]:
    """Draws the pictures of the card from a repository's shards and statistics: PNG files by name."""
    from publishing import figures  # not above: worker processes import this file too, and have no use for matplotlib

    note = "Synthetic data, not measured" if manifest.synthetic else ""
    kinds = {layout.CONFIGS[config].kind: config for config in reversed(manifest.configs)}
    config = kinds.get("rgb") or kinds.get("all") or kinds["geo"]
    split = next(iter(statistics[config]))
    drawn = {"assets/histogram.png": figures.class_histogram(patches_per_class(statistics[config]), note)}
    if config != "geo":
        patches = figures.pick_patches(_batches(folder, manifest, config, split))
        drawn["assets/classes.png"] = figures.class_grid(patches, note)
    if "all" in kinds:
        drawn["assets/bands.png"] = figures.band_statistics(_bands(statistics), note)
    return drawn


def _batches(folder: Path, manifest: Manifest, config: str, split: str) -> Iterator[tuple[Any, Any]]:
    """Labels and images or pixels of a split, block by block."""
    is_rgb = layout.CONFIGS[config].kind == "rgb"
    column = "image" if is_rgb else "sentinel2"
    for name in manifest.shard_names(config, split):
        with pq.ParquetFile(folder / name) as file:
            for batch in file.iter_batches(so2sat.ROWS_PER_BLOCK, columns=["label", column]):
                values = batch.column(column)
                yield batch.column("label"), values if is_rgb else so2sat.to_rgb(values.to_numpy(zero_copy_only=False))
