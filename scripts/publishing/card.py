"""The dataset card of a repository: card.md.jinja, filled with what the repository holds."""

from __future__ import annotations

import html
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import jinja2
import pyarrow.parquet as pq
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

import so2sat
from publishing import facts, layout
from publishing.manifest import Manifest

NAME = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
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

# `geospatial` is what the Hub lists geographic datasets by.
_TAGS = ("geospatial", "remote-sensing", "earth-observation", "satellite", "sentinel-1", "sentinel-2", "sar")
_MORE_TAGS = ("multispectral", "local-climate-zones", "urban")
# Size categories of the Hub: lower bound and name.
_SIZE_CATEGORIES = ((100_000, "100K<n<1M"), (10_000, "10K<n<100K"), (1_000, "1K<n<10K"), (0, "n<1K"))

# Statistics of a repository: what stands in statistics.json under `configs`.
Statistics = Mapping[str, Mapping[str, Mapping[str, Any]]]


def render(manifest: Manifest, statistics: Statistics, name: str) -> str:
    """Makes the card of a complete repository.

    Args:
        manifest: What the repository holds.
        statistics: The statistics of every config and split.
        name: What readers pass to load_dataset: ORG/NAME on the Hub, or the name of a local folder.

    Returns:
        Markdown with a YAML header.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    text = environment.from_string(TEMPLATE.read_text()).render(words(manifest, statistics, name))
    return f"---\n{_card_data(manifest).to_yaml()}\n---\n{text}"


def metadata(manifest: Manifest) -> dict[str, Any]:
    """The YAML header of the card, as a dict."""
    return dict(_card_data(manifest).to_dict())  # type: ignore[no-untyped-call]


def words(manifest: Manifest, statistics: Statistics, name: str) -> dict[str, Any]:
    """What the template is filled with; the arguments are those of `render`."""
    names = _names(manifest, name)
    return {**names, **_conditions(manifest, statistics, names), **_contents(manifest, statistics, names)}


def _names(manifest: Manifest, name: str) -> dict[str, str]:
    """The names that the card's code uses: of the repository, of configs and of splits; empty for what is not there."""
    of_kind = {layout.CONFIGS[config].kind: config for config in reversed(manifest.configs)}
    images, arrays, geo = (of_kind.get(kind, "") for kind in ("rgb", "all", "geo"))
    main = images or arrays or geo
    splits = [*manifest.splits(main)]
    placed = [*manifest.splits(geo)] if geo else []
    with_places = [config for config in _official(manifest) if placed and config != geo]
    return {
        "name": json.dumps(name, ensure_ascii=False),
        "plain_name": name,
        "images": images,
        "arrays": arrays,
        "main": main,
        "first": splits[0],
        "small": "validation" if "validation" in splits else splits[-1],
        "placed": "validation" if "validation" in placed else "".join(placed[-1:]),
        "placed_config": "".join(with_places[:1]),
        "snapshot": _snapshot(name, f"{main}/*"),
        "snapshot_arrays": _snapshot(name, f"{arrays}/*"),
        "snapshot_geo": _snapshot(name, f"{geo}/*"),
        "snapshot_train": _snapshot(name, "train.py"),
    }


def _conditions(manifest: Manifest, statistics: Statistics, names: Mapping[str, str]) -> dict[str, bool]:
    """What the repository has, by the names of the template's conditions."""
    official, main = _official(manifest), names["main"]
    has_geo, ten_cities = "geo" in manifest.configs, {"validation", "test"}
    return {
        "is_on_hub": "/" in names["plain_name"],
        "is_synthetic": bool(manifest.synthetic),
        "has_images": bool(names["images"]),
        "has_arrays": bool(names["arrays"]),
        "has_patches": bool(names["images"] or names["arrays"]),
        "has_geo": has_geo,
        "has_places": bool(names["placed_config"]),
        "has_several": len(manifest.configs) > 1,
        "has_jpeg": manifest.image_format == "jpeg",
        "has_training": bool(names["images"] or names["arrays"]) and {"train", "test"} <= {*manifest.splits(main)},
        "has_official_splits": bool(official),
        "has_edition_3": len(official) < len(manifest.configs),
        "has_pairs": has_geo and len(statistics["geo"]) > 1,
        "has_leakage": has_geo and ten_cities <= {*statistics["geo"]},
        "has_culture_10": main in official and main != "geo" and ten_cities <= {*manifest.splits(main)},
    }


def _contents(manifest: Manifest, statistics: Statistics, names: Mapping[str, str]) -> dict[str, str]:
    """Texts and tables about what the repository has."""
    bands = _bands(statistics)
    return {
        "version": so2sat.VERSION,
        "citation": so2sat.CITATION,
        "synthetic": _escaped(manifest.synthetic),
        "patches": _patches(manifest),
        "bands": "8 of Sentinel-1, 10 of Sentinel-2" if names["arrays"] else "red, green, blue (B4, B3, B2)",
        "cities": _cities({split for config in _official(manifest) for split in manifest.splits(config)}),
        "sizes": ", ".join(f"`{config}` {_size(_bytes(manifest, config))}" for config in manifest.configs),
        "config_table": _config_table(manifest),
        "class_tables": _class_tables(manifest, statistics),
        "band_table": _band_table(bands),
        "constants": _constants(bands),
        "pair_table": _pair_table(statistics["geo"]) if "geo" in manifest.configs else "",
    }


def _card_data(manifest: Manifest) -> DatasetCardData:
    rows = max(sum(manifest.splits(config).values()) for config in manifest.configs)
    data = DatasetCardData(
        license=so2sat.LICENSE,
        pretty_name="So2Sat LCZ42",
        task_categories=["image-classification"],
        annotations_creators=["expert-generated"],
        source_datasets=["original"],
        size_categories=[next(name for least, name in _SIZE_CATEGORIES if rows >= least)],
        tags=[*_TAGS, *_MORE_TAGS],
    )
    configs = MetadataConfigs()
    for config in manifest.configs:
        splits = manifest.splits(config)
        data_files = [{"split": split, "path": _glob(manifest, config, split)} for split in splits]
        configs[config] = {"data_files": data_files}
    configs[manifest.configs[0]]["default"] = True  # `rgb` where it is there
    configs.to_dataset_card_data(data)
    dataset_infos(manifest).to_dataset_card_data(data)
    return data


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


# ┌────────┐
# │  Text  │
# └────────┘


def _escaped(text: str) -> str:
    """Text from a file as plain text of Markdown: no HTML, no markup, no full stop at the end."""
    line = html.escape(" ".join(text.split()), quote=False).rstrip(".")
    return re.sub(r"([\\`*_\[\]{}#|!~])", r"\\\1", line)


def _snapshot(name: str, pattern: str) -> str:
    """Code that sets `folder` to a folder with the repository's files of this pattern."""
    literal = json.dumps(name, ensure_ascii=False)
    if "/" not in name:
        return f"\nfolder = {literal}"
    call = f'snapshot_download({literal}, repo_type="dataset", allow_patterns="{pattern}")'
    return f"from huggingface_hub import snapshot_download\n\nfolder = {call}"


def _size(count: int) -> str:
    unit, size = next(
        (unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if count >= size or size == 1e3
    )
    return f"{count / size:,.1f} {unit}"


def _official(manifest: Manifest) -> list[str]:
    """The configs with the splits of editions 1, 2 and 4."""
    return [config for config in manifest.configs if layout.CONFIGS[config].files == so2sat.SOURCE_FILES]


def _divisions(manifest: Manifest) -> list[list[str]]:
    """The configs by the ways in which the patches are split, `geo` last: it may lack a split."""
    found: dict[tuple[str, ...], list[str]] = {}
    for config in sorted(manifest.configs, key=lambda config: layout.CONFIGS[config].kind == "geo"):
        found.setdefault(tuple(layout.CONFIGS[config].files.values()), []).append(config)
    return [*found.values()]


def _patches(manifest: Manifest) -> str:
    texts = []
    for configs in _divisions(manifest):
        splits = manifest.splits(configs[0])
        parts = ", ".join(f"{split} {rows:,}" for split, rows in splits.items())
        texts.append(f"{sum(splits.values()):,} ({parts})")
    return "; ".join(dict.fromkeys(texts))


def _cities(splits: set[str]) -> str:
    """How many cities the official splits have (Zhu et al. 2020)."""
    if "train" not in splits:
        return "10"
    return "42" if splits == {"train"} else "52: 42 of train, 10 of the other splits"


# ┌──────────┐
# │  Tables  │
# └──────────┘


def _table(alignment: Sequence[str], *rows: Sequence[str]) -> str:
    """A table of Markdown: rows, the first of which is the header, and `---`, `---:` or `:---:` for every column."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (rows[0], alignment, *rows[1:]))


def _config_table(manifest: Manifest) -> str:
    rows = []
    for config in manifest.configs:
        columns = ", ".join(f"`{name}`" for name in layout.features(config))
        counts = ", ".join(f"{split} {count:,}" for split, count in manifest.splits(config).items())
        rows.append((f"`{config}`", columns, layout.CONFIGS[config].description, counts))
    return _table(["---"] * 4, ("config", "columns", "what", "rows"), *rows)


def _class_tables(manifest: Manifest, statistics: Statistics) -> str:
    """A table of patches per class for each way in which patches are split."""
    tables = []
    for configs in _divisions(manifest):
        counts = patches_per_class(statistics[configs[0]])
        rows = [
            (str(index), code, name, *(f"{split[index]:,}" for split in counts.values()))
            for index, (code, name) in enumerate(zip(facts.LCZ_CODES, so2sat.LABELS))
        ]
        total = ("", "", "**all**", *(f"**{sum(split):,}**" for split in counts.values()))
        alignment = ["---:", ":---:", "---", *("---:" for _ in counts)]
        table = _table(alignment, ("index", "LCZ", "class", *counts), *rows, total)
        named = [config for config in configs if layout.CONFIGS[config].kind != "geo"] or configs
        tables.append(f"{', '.join(f'`{config}`' for config in named)}:\n\n{table}")
    return "\n".join(tables)


def patches_per_class(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, list[int]]:
    """Counts in the order of the classes, by split, of a config's statistics."""
    return {split: [*summary["patches_per_class"].values()] for split, summary in splits.items()}


def _pair_table(splits: Mapping[str, Mapping[str, Any]]) -> str:
    """What every pair of splits of `geo` shares."""
    rows = []
    for split, summary in splits.items():
        for other, shared in summary["shared"].items():
            counts = (splits[name]["patches_per_class"].values() for name in (split, other))
            classes = sum(bool(ours and theirs) for ours, theirs in zip(*counts))
            near = f"{shared['near']:,} of {sum(summary['patches_per_class'].values()):,} in {split}"
            rows.append((f"{split} and {other}", f"{shared['cities']:,}", f"{classes}", near))
    header = ("splits", "cities in both", "classes in both", "patches near one of the other split")
    return _table(["---", "---:", "---:", "---"], header, *rows)


def _bands(statistics: Statistics) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Statistics of the bands of every array: those of the first config and split that have them."""
    bands: dict[str, Sequence[Mapping[str, Any]]] = {}
    for splits in statistics.values():
        for column, summaries in next(iter(splits.values()))["bands"].items():
            bands.setdefault(column, summaries)
    return dict(sorted(bands.items(), key=lambda item: item[0] == "image"))


def _band_table(bands: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The bands with mean and standard deviation, by array."""
    known = {"sentinel1": so2sat.SENTINEL1_BANDS, "sentinel2": so2sat.SENTINEL2_BANDS}
    rows = []
    for column, summaries in bands.items():
        for index, summary in enumerate(summaries):
            cells = (f"{summary['name']}", "8-bit pixel", "0 to 255", "")
            if column in known:
                band = known[column][index]
                cells = (band.name, band.meaning, band.unit, f"{band.wavelength or ''}")
            rows.append((f"`{column}`", str(index), *cells, _number(summary["mean"]), _number(summary["std"])))
    header = ("column", "index", "band", "meaning", "unit", "nm", "mean", "std")
    return _table(["---", "---:", "---", "---", "---", "---:", "---:", "---:"], header, *rows)


def _constants(bands: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Python code with mean and standard deviation of every band, by array."""
    lines = []
    for column, summaries in bands.items():
        for name in ("mean", "std"):
            numbers = textwrap.fill(", ".join(_number(summary[name]) for summary in summaries), 88)
            lines += [f"{column.upper()}_{name.upper()} = [", textwrap.indent(numbers + ",", "    "), "]"]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "None" if value is None else f"{value:.6g}"


# ┌────────────┐
# │  Pictures  │
# └────────────┘


def pictures(folder: Path, manifest: Manifest, statistics: Statistics) -> dict[str, bytes]:
    """Draws the pictures of the card from a repository's shards and statistics: PNG files by name."""
    from publishing import figures  # not above: worker processes import this file too, and have no use for matplotlib

    note = "Synthetic data, not measured" if manifest.synthetic else ""
    names = _names(manifest, "")
    config, bands = names["main"], _bands(statistics)
    drawn = {"assets/histogram.png": figures.class_histogram(patches_per_class(statistics[config]), note)}
    if names["images"] or names["arrays"]:
        patches = figures.pick_patches(_batches(folder, manifest, config, names["first"]))
        drawn["assets/classes.png"] = figures.class_grid(patches, note)
    if names["arrays"]:
        drawn["assets/bands.png"] = figures.band_statistics(bands, note)
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
