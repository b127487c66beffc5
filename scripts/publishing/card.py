"""The dataset card of a repository: card.md.jinja, filled with what the repository holds."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shlex
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
from publishing import facts, places
from publishing.band_statistics import to_numpy
from publishing.configs import CONFIGS
from publishing.manifest import Manifest

NAME = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.jinja")
PICTURES = tuple(f"assets/{name}.png" for name in ("bands", "classes", "histogram", "map"))

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
# Percentiles in the table of bands.
_SHOWN = {"0.1": "percentile 0.1", "50": "median", "99.9": "percentile 99.9"}
# Size categories of the Hub: lower bound and name.
_SIZE_CATEGORIES = ((100_000, "100K<n<1M"), (10_000, "10K<n<100K"), (1_000, "1K<n<10K"), (0, "n<1K"))

# Statistics of a repository: what stands in statistics.json under `configs`.
Statistics = Mapping[str, Mapping[str, Mapping[str, Any]]]
# By column: the statistics of its bands.
Bands = dict[str, Sequence[Mapping[str, Any]]]


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
    parts, (origin, bands) = _parts(manifest), _bands(manifest, statistics)
    splits = {key: {*manifest.splits(part.config)} for key, part in parts.items()}
    is_full, ten_cities = "images" in parts or "arrays" in parts, {"validation", "test"}
    geo = statistics[parts["geo"].config] if "geo" in parts else {}
    return {
        "so2sat": so2sat,
        "facts": facts,
        "is_on_hub": "/" in name,
        "is_synthetic": bool(manifest.synthetic),
        "is_full": is_full,
        "has_images": "images" in parts,
        "has_arrays": "arrays" in parts,
        "has_geo": is_full and "geo" in parts,
        "has_training": {"train", "test"} <= splits["trained"],
        "has_validation": "validation" in splits["trained"],
        "has_ten_cities": ten_cities <= splits["main"],
        "has_overlap": ten_cities <= splits.get("geo", set()),
        "has_edition_3": len(_official(manifest)) < len(manifest.configs),
        **{key: parts.get(key) for key in ("main", "arrays", "geo", "trained")},
        "name": json.dumps(name, ensure_ascii=False),
        "plain_name": name,
        "shell_name": shlex.quote(f"./{name}" if name.startswith("-") else name),
        "synthetic": _escaped(manifest.synthetic),
        "patches": _patches(manifest),
        "train_cities": ", ".join(city.name for key, city in facts.CITIES.items() if key not in facts.TEST_CITIES),
        "test_cities": ", ".join(facts.CITIES[key].name for key in facts.TEST_CITIES),
        "image_format": so2sat.IMAGE_FORMATS[manifest.image_format],
        "channels": sum(map(len, CONFIGS[parts["trained"].config].bands.values())),
        "config_table": _config_table(manifest),
        "class_table": _class_table(manifest, statistics),
        "bands_over": origin,
        "band_table": _band_table(bands),
        "pair_table": _pair_table(geo),
        "overlapping": _near(geo, "validation", "test") if ten_cities <= geo.keys() else "",
        "editions": _editions(manifest),
    }


class _Part(NamedTuple):
    """A config as the card's code names it: with its first split, and with the one to try things on."""

    config: str
    first: str
    small: str


def _part(manifest: Manifest, config: str) -> _Part:
    splits = [*manifest.splits(config)]
    return _Part(config, splits[0], "validation" if "validation" in splits else splits[-1])


def _parts(manifest: Manifest) -> dict[str, _Part]:
    """The configs that the card's code names, by what their columns hold; of those with the official splits.

    `main` is shown first and `trained` is for training. Without official patches these are any, and the card is short.
    """
    found = {}
    for key, columns in (("images", ["image"]), ("arrays", ["sentinel1", "sentinel2"]), ("geo", places.PLACE)):
        having = [config for config in _official(manifest) if {*columns} <= {*CONFIGS[config].features}]
        if having:
            found[key] = _part(manifest, having[0])
    main = found.get("images") or found.get("arrays") or _part(manifest, next(iter(manifest.configs)))
    return {**found, "main": main, "trained": found.get("arrays") or main}


def _official(manifest: Manifest) -> list[str]:
    """The configs with the splits of editions 1, 2 and 4."""
    return [config for config in manifest.configs if CONFIGS[config].is_official]


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
    configs[_parts(manifest)["main"].config]["default"] = True  # `rgb` where it is there
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


def _divisions(manifest: Manifest) -> dict[str, str]:
    """A config for each way in which the patches are split, by the folder of its sources, the official one first."""
    found: dict[str, str] = {}
    for config in sorted(manifest.configs, key=lambda config: not CONFIGS[config].bands):  # `geo` may lack a split
        (source, *_), *_ = CONFIGS[config].files.values()
        found.setdefault(source.rpartition("/")[0], config)
    return dict(sorted(found.items()))


def _patches(manifest: Manifest) -> str:
    splits = manifest.splits(next(iter(_divisions(manifest).values())))
    return f"{sum(splits.values()):,}: " + ", ".join(f"{split} {rows:,}" for split, rows in splits.items())


def _editions(manifest: Manifest) -> dict[int, str]:
    """The homepages of the editions that the sources are of: of those with the same files the first."""
    covered = {number: manifest.sources.keys() & edition.files.keys() for number, edition in facts.EDITIONS.items()}
    found: dict[int, Any] = {}
    for number, names in sorted(covered.items(), key=lambda item: -len(item[1])):
        if not any(names <= others for others in found.values()):
            found[number] = names
    return {number: facts.EDITIONS[number].homepage for number in sorted(found)}


# ┌──────────┐
# │  Tables  │
# └──────────┘


def _table(alignment: Sequence[str], *rows: Sequence[str]) -> str:
    """A table of Markdown: rows, the first of which is the header, and `---`, `---:` or `:---:` for every column."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (rows[0], alignment, *rows[1:]))


def _config_table(manifest: Manifest) -> str:
    rows = []
    for config, info in dataset_infos(manifest).items():
        columns = ", ".join(f"`{name}`" for name in CONFIGS[config].features)
        count = sum(manifest.splits(config).values())
        sizes = [f"{size / 1e9:,.2f} GB" for size in (info.download_size, info.dataset_size)]
        rate = f"{count / max(info.dataset_size, 1) * 1e9:,.0f}"
        rows.append((f"`{config}`", CONFIGS[config].description, columns, f"{count:,}", *sizes, rate))
    header = ("config", "content", "columns", "rows", "download", "on disk (Arrow)", "rows per GB of Arrow")
    return _table(["---"] * 3 + ["---:"] * 4, header, *rows)


def _class_table(manifest: Manifest, statistics: Statistics) -> str:
    """Patches per class and split, with the splits of edition 3 beside the official ones."""
    counts: dict[str, Sequence[int]] = {}
    for division, config in _divisions(manifest).items():
        counts |= {
            f"{division} {split}".strip(): of_split for split, of_split in patches_per_class(statistics[config]).items()
        }
    rows = [
        (str(index), code, name, *(f"{of_split[index]:,}" for of_split in counts.values()))
        for index, (code, name) in enumerate(zip(facts.LCZ_CODES, so2sat.LABELS))
    ]
    total = ("", "", "**all**", *(f"**{sum(of_split):,}**" for of_split in counts.values()))
    return _table(
        ["---:", ":---:", "---", *("---:" for _ in counts)], ("`label`", "LCZ", "class", *counts), *rows, total
    )


def patches_per_class(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, list[int]]:
    """Counts in the order of the classes, by split, of a config's statistics."""
    return {split: [*summary["patches_per_class"].values()] for split, summary in splits.items()}


def _near(geo: Mapping[str, Mapping[str, Any]], split: str, other: str) -> str:
    """How many patches of a split overlap one of another split."""
    return f"{geo[split]['shared'][other]['near']:,} of {sum(geo[split]['patches_per_class'].values()):,}"


def _pair_table(geo: Mapping[str, Mapping[str, Any]]) -> str:
    """What every pair of splits of `geo` shares; empty without pairs."""
    rows = []
    for split, summary in geo.items():
        for other, shared in summary["shared"].items():
            counts = (geo[name]["patches_per_class"].values() for name in (split, other))
            classes = sum(bool(ours and theirs) for ours, theirs in zip(*counts))
            near = f"{_near(geo, split, other)} in {split}"
            rows.append((f"{split} and {other}", f"{shared['cities']}", f"{classes}", near))
    header = ("splits", "shared cities", "shared classes", "overlapping patches")
    return _table(["---", "---:", "---:", "---"], header, *rows) if rows else ""


def _bands(manifest: Manifest, statistics: Statistics) -> tuple[str, Bands]:
    """The split that is shown, train or else the first that there is, and the statistics of its bands, images last."""
    split = _parts(manifest)["trained"].first
    found: Bands = {}
    for splits in statistics.values():
        for column, summaries in splits[split]["bands"].items() if split in splits else ():
            found.setdefault(column, summaries)
    return split, dict(sorted(found.items(), key=lambda item: item[0] == "image"))


def _band_table(bands: Bands) -> str:
    """The bands with some percentiles, mean and standard deviation, by column; empty without bands."""
    known = {"sentinel1": so2sat.SENTINEL1_BANDS, "sentinel2": so2sat.SENTINEL2_BANDS}
    rows = []
    for column, summaries in bands.items():
        for index, summary in enumerate(summaries):
            band = known[column][index] if column in known else so2sat.Band(summary["name"], "0 to 255", "")
            cells = (f"`{column}` {index}", band.name, band.meaning, f"{band.wavelength or ''}")
            percentiles = summary["percentiles"] or {}
            numbers = [*(percentiles.get(key) for key in _SHOWN), summary["mean"], summary["std"]]
            rows.append((*cells, *map(_number, numbers)))
    header = ("column, index", "band", "meaning", "nm", *_SHOWN.values(), "mean", "std")
    return _table(["---", "---", "---", *["---:"] * 6], header, *rows) if rows else ""


def _number(value: float | None) -> str:
    return "None" if value is None else f"{value:.4g}"


# ┌────────────┐
# │  Pictures  │
# └────────────┘


def pictures(folder: Path, manifest: Manifest, statistics: Statistics) -> dict[str, bytes]:
    """Draws the pictures of the card from a repository's shards and statistics: PNG files by name."""
    from publishing import figures  # not above: worker processes import this file too, and have no use for matplotlib

    note = "Synthetic data, not measured" if manifest.synthetic else ""
    parts = _parts(manifest)
    if not {"images", "arrays"} & parts.keys():
        return {}  # the short card has none
    counts, (_, bands) = patches_per_class(statistics[parts["main"].config]), _bands(manifest, statistics)
    patches = figures.pick_patches(_batches(folder, manifest, parts["main"]))
    drawn = {"histogram": figures.class_histogram(counts, note), "classes": figures.class_grid(patches, note)}
    if "arrays" in parts:
        drawn["bands"] = figures.band_statistics(bands, note)
    if "geo" in parts:
        drawn["map"] = figures.city_map(_centres(folder, manifest, parts["geo"].config), note)
    return {f"assets/{name}.png": drawn[name] for name in sorted(drawn)}


def _batches(folder: Path, manifest: Manifest, part: _Part) -> Iterator[tuple[Any, Any]]:
    """Labels and images or pixels of a config's first split, block by block."""
    column = "image" if "image" in CONFIGS[part.config].features else "sentinel2"
    for name in manifest.shard_names(part.config, part.first):
        with pq.ParquetFile(folder / name) as file:
            for batch in file.iter_batches(so2sat.ROWS_PER_BLOCK, columns=["label", column]):
                values = batch.column(column)
                yield batch.column("label"), values if column == "image" else so2sat.to_rgb(to_numpy(values))


def _centres(folder: Path, manifest: Manifest, config: str) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean longitude and latitude of the patches of every city, by split and the city's name."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for split in manifest.splits(config):
        columns = ["city", "longitude", "latitude"]
        table = pq.read_table([folder / name for name in manifest.shard_names(config, split)], columns=columns)
        means = table.group_by("city").aggregate([("longitude", "mean"), ("latitude", "mean")]).sort_by("city")
        found[split] = {
            facts.CITIES[row["city"]].name: (row["longitude_mean"], row["latitude_mean"]) for row in means.to_pylist()
        }
    return found
