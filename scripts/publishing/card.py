"""The dataset card of a repository: card.md.jinja, filled with what the repository holds."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import jinja2
import pyarrow.parquet as pq
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

import so2sat
from publishing import facts
from publishing.band_statistics import to_numpy
from publishing.configs import CONFIGS
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
_TAGS = (
    *("geospatial", "remote-sensing", "earth-observation", "satellite", "sentinel-1", "sentinel-2", "sar"),
    *("multispectral", "local-climate-zones", "urban"),
)
# Size categories of the Hub: lower bound and name.
_SIZE_CATEGORIES = ((100_000, "100K<n<1M"), (10_000, "10K<n<100K"), (1_000, "1K<n<10K"), (0, "n<1K"))

# Statistics of a repository: what stands in statistics.json under `configs`.
Statistics = Mapping[str, Mapping[str, Mapping[str, Any]]]
# By array: which split of which config, in words, and the statistics of its bands.
Bands = dict[str, tuple[str, Sequence[Mapping[str, Any]]]]


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
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(words(manifest, statistics, name))
    return f"---\n{_card_data(manifest).to_yaml()}\n---\n{text}"


def metadata(manifest: Manifest) -> dict[str, Any]:
    """The YAML header of the card, as a dict."""
    return dict(_card_data(manifest).to_dict())  # type: ignore[no-untyped-call]


def words(manifest: Manifest, statistics: Statistics, name: str) -> dict[str, Any]:
    """What the template is filled with; the arguments are those of `render`."""
    return {**_conditions(manifest, statistics, name), **_contents(manifest, statistics, name)}


class _Part(NamedTuple):
    """A config as the card's code names it: with its first split, and with the one to try things on."""

    config: str
    first: str
    small: str


def _part(manifest: Manifest, configs: Sequence[str]) -> _Part | None:
    """The first of some configs; None without any."""
    if not configs:
        return None
    splits = [*manifest.splits(configs[0])]
    return _Part(configs[0], splits[0], "validation" if "validation" in splits else splits[-1])


def _parts(manifest: Manifest) -> dict[str, _Part | None]:
    """The configs that the card's code names: by their columns, shown first, to train on, with the official splits."""

    def having(*columns: str) -> list[str]:
        return [config for config in manifest.configs if {*columns} <= {*CONFIGS[config].features}]

    images, arrays, geo = (
        _part(manifest, having(*columns)) for columns in (("image",), ("sentinel1", "sentinel2"), ("x", "y"))
    )
    patches = having("sentinel1", "sentinel2") + having("image")
    trained = [config for config in patches if {"train", "test"} <= {*manifest.splits(config)}]
    official = [config for config in _official(manifest) if config in patches]
    return {
        "images": images,
        "arrays": arrays,
        "geo": geo,
        "main": images or arrays or geo or _part(manifest, [*manifest.configs]),
        "trained": _part(manifest, trained),
        "official": _part(manifest, official),
    }


def _conditions(manifest: Manifest, statistics: Statistics, name: str) -> dict[str, bool]:
    """What the repository has, by the names of the template's conditions."""
    splits = {key: {*manifest.splits(part.config)} if part else set() for key, part in _parts(manifest).items()}
    ten_cities = {"validation", "test"}
    return {
        "is_on_hub": "/" in name,
        "is_synthetic": bool(manifest.synthetic),
        "is_short": not (splits["images"] or splits["arrays"] or splits["geo"]),
        "has_images": bool(splits["images"]),
        "has_arrays": bool(splits["arrays"]),
        "has_patches": bool(splits["images"] or splits["arrays"]),
        "has_geo": bool(splits["geo"]),
        "has_places": bool(splits["geo"] and splits["official"]),
        "has_common": bool(_common_classes(manifest, statistics)),
        "has_several": len(manifest.configs) > 1,
        "has_jpeg": manifest.image_format == "jpeg",
        "has_training": bool(splits["trained"]),
        "has_validation": "validation" in splits["trained"],
        "has_official_splits": bool(_official(manifest)),
        "has_cities": len(_official(manifest)) == len(manifest.configs),
        "has_edition_3": len(_official(manifest)) < len(manifest.configs),
        "has_random": any(config.endswith("_random") for config in manifest.configs),
        "has_block": any(config.endswith("_block") for config in manifest.configs),
        "has_pairs": len(splits["geo"]) > 1,
        "has_leakage": ten_cities <= splits["geo"],
        "has_culture_10": ten_cities <= splits["official"],
        "has_ten_cities": ten_cities <= splits["official"] | splits["geo"],
    }


def _contents(manifest: Manifest, statistics: Statistics, name: str) -> dict[str, Any]:
    """Names, texts and tables about what the repository has."""
    parts, bands = _parts(manifest), _bands(statistics)
    return {
        **parts,
        "name": json.dumps(name, ensure_ascii=False),
        "plain_name": name,
        "shell_name": shlex.quote(f"./{name}" if name.startswith("-") else name),
        "quality": so2sat.IMAGE_FORMATS["jpeg"]["quality"],
        "classes": len(so2sat.LABELS),
        "citation": so2sat.CITATION,
        "common": next(iter(_common_classes(manifest, statistics)), 0),
        "synthetic": _escaped(manifest.synthetic),
        "patches": _patches(manifest),
        "bands": "8 of Sentinel-1, 10 of Sentinel-2" if parts["arrays"] else "red, green, blue (B4, B3, B2)",
        "cities": _cities(manifest),
        "sizes": ", ".join(f"`{config}` {_size(_bytes(manifest, config))}" for config in manifest.configs),
        "config_table": _config_table(manifest),
        "class_tables": _class_tables(manifest, statistics),
        "bands_over": " and ".join(dict.fromkeys(origin for origin, _ in bands.values())),
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
        tags=[*_TAGS],
    )
    configs = MetadataConfigs()
    for config in manifest.configs:
        splits = manifest.splits(config)
        data_files = [{"split": split, "path": glob(manifest, config, split)} for split in splits]
        configs[config] = {"description": _digest(manifest, config), "data_files": data_files}
    main = _parts(manifest)["main"]
    assert main
    configs[main.config]["default"] = True  # `rgb` where it is there
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
            features=CONFIGS[config].features,
            splits=splits,
            download_size=_bytes(manifest, config),
            dataset_size=sum(split.num_bytes for split in splits.values()),
        )
    return infos


def _bytes(manifest: Manifest, config: str) -> int:
    return sum(record.bytes for name, record in manifest.shards.items() if name.startswith(f"{config}/"))


def glob(manifest: Manifest, config: str, split: str) -> str:
    """The pattern of a split's files, which those of an earlier build with other shards don't match."""
    return f"{config}/{split}-*-of-{len(manifest.shard_names(config, split)):05d}.parquet"


def _digest(manifest: Manifest, config: str) -> str:
    """Tells a rebuild from what was there before: `datasets` knows what it has prepared by the card's metadata."""
    sums = [record.sha256 for name, record in sorted(manifest.shards.items()) if name.startswith(f"{config}/")]
    return f"shards {hashlib.sha256(' '.join(sums).encode()).hexdigest()[:16]}"


# ┌────────┐
# │  Text  │
# └────────┘


def _escaped(text: str) -> str:
    """Text from a file as plain text of Markdown: no HTML, no markup, no full stop at the end."""
    line = html.escape(" ".join(text.split()), quote=False).rstrip(".")
    return re.sub(r"([\\`*_\[\]{}#|!~])", r"\\\1", line)


def _size(count: int) -> str:
    unit, size = next(
        (unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if count >= size or size == 1e3
    )
    return f"{count / size:,.1f} {unit}"


def _official(manifest: Manifest) -> list[str]:
    """The configs with the splits of editions 1, 2 and 4."""
    return [config for config in manifest.configs if CONFIGS[config].is_official]


def _divisions(manifest: Manifest) -> list[list[str]]:
    """The configs by the ways in which the patches are split, `geo` last: it may lack a split."""
    found: dict[tuple[str, ...], list[str]] = {}
    for config in sorted(manifest.configs, key=lambda config: not CONFIGS[config].bands):
        found.setdefault(tuple(names[0] for names in CONFIGS[config].files.values()), []).append(config)
    return [*found.values()]


def _patches(manifest: Manifest) -> str:
    texts: dict[str, list[str]] = {}
    for configs in _divisions(manifest):
        splits = manifest.splits(configs[0])
        parts = ", ".join(f"{split} {rows:,}" for split, rows in splits.items())
        texts.setdefault(f"{sum(splits.values()):,} ({parts})", configs)
    return "; ".join(f"{text} in `{configs[0]}`" if len(texts) > 1 else text for text, configs in texts.items())


def _cities(manifest: Manifest) -> str:
    """How many cities the official splits have (Zhu et al. 2020)."""
    splits = {split for config in _official(manifest) for split in manifest.splits(config)}
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
        columns = ", ".join(f"`{name}`" for name in CONFIGS[config].features)
        counts = ", ".join(f"{split} {count:,}" for split, count in manifest.splits(config).items())
        rows.append((f"`{config}`", columns, CONFIGS[config].description, counts))
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
        named = [config for config in configs if CONFIGS[config].bands] or configs
        tables.append(f"{', '.join(f'`{config}`' for config in named)}:\n\n{table}")
    return "\n".join(tables)


def patches_per_class(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, list[int]]:
    """Counts in the order of the classes, by split, of a config's statistics."""
    return {split: [*summary["patches_per_class"].values()] for split, summary in splits.items()}


def _common_classes(manifest: Manifest, statistics: Statistics) -> list[int]:
    """Classes that every split of the config shown first has, the last one first."""
    main = _parts(manifest)["main"]
    counts = patches_per_class(statistics[main.config]).values() if main else ()
    return [index for index in reversed(range(len(so2sat.LABELS))) if all(split[index] for split in counts)]


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


def _bands(statistics: Statistics) -> Bands:
    """Of every array the statistics of its bands over train, or else over the first split that there is."""
    found: Bands = {}
    splits = [(config, split) for config, splits in statistics.items() for split in splits]
    for config, split in sorted(splits, key=lambda pair: pair[1] != "train"):
        for column, summaries in statistics[config][split]["bands"].items():
            found.setdefault(column, (f"{split} of `{config}`", summaries))
    return dict(sorted(found.items(), key=lambda item: item[0] == "image"))


def _band_table(bands: Bands) -> str:
    """The bands with mean and standard deviation, by array."""
    known = {"sentinel1": so2sat.SENTINEL1_BANDS, "sentinel2": so2sat.SENTINEL2_BANDS}
    rows = []
    for column, (_, summaries) in bands.items():
        for index, summary in enumerate(summaries):
            cells = (f"{summary['name']}", "8-bit pixel", "0 to 255", "")
            if column in known:
                band = known[column][index]
                cells = (band.name, band.meaning, band.unit, f"{band.wavelength or ''}")
            rows.append((f"`{column}`", str(index), *cells, _number(summary["mean"]), _number(summary["std"])))
    header = ("column", "index", "band", "meaning", "unit", "nm", "mean", "std")
    return _table(["---", "---:", "---", "---", "---", "---:", "---:", "---:"], header, *rows)


def _constants(bands: Bands) -> str:
    """Python code with mean and standard deviation of every band, by array."""
    lines = []
    for column, (_, summaries) in bands.items():
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
    parts = _parts(manifest)
    main, bands = parts["main"], {column: summaries for column, (_, summaries) in _bands(statistics).items()}
    assert main
    drawn = {"assets/histogram.png": figures.class_histogram(patches_per_class(statistics[main.config]), note)}
    if pixels := parts["images"] or parts["arrays"]:
        patches = figures.pick_patches(_batches(folder, manifest, pixels.config, pixels.first))
        drawn["assets/classes.png"] = figures.class_grid(patches, note)
    if parts["arrays"]:
        drawn["assets/bands.png"] = figures.band_statistics(bands, note)
    return drawn


def _batches(folder: Path, manifest: Manifest, config: str, split: str) -> Iterator[tuple[Any, Any]]:
    """Labels and images or pixels of a split, block by block."""
    column = "image" if "image" in CONFIGS[config].features else "sentinel2"
    for name in manifest.shard_names(config, split):
        with pq.ParquetFile(folder / name) as file:
            for batch in file.iter_batches(so2sat.ROWS_PER_BLOCK, columns=["label", column]):
                values = batch.column(column)
                yield batch.column("label"), values if column == "image" else so2sat.to_rgb(to_numpy(values))
