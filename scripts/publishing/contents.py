"""All that follows from the shards of a repository, and how it differs from what lies in the folder."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard

import so2sat
from publishing import card, facts, manifest, places, shards
from publishing.band_statistics import METHOD, Statistics
from publishing.compare import one_line
from publishing.configs import CONFIGS
from publishing.manifest import Manifest

STATISTICS_NAME = "statistics.json"
TRAIN = Path(__file__).parent.with_name("train.py")  # goes with the patches

# What may be in a repository besides shards, card and manifest.
OTHER_FILES = (STATISTICS_NAME, TRAIN.name, *card.PICTURES)

# What lies beside it without being of it: the build's state, and what Git and huggingface_hub keep.
_NEIGHBOURS = {shards.STATE_FOLDER, ".git", ".cache", ".gitattributes"}

PIXEL_TOLERANCE = 2.0  # of 255, between figures of images as two versions of Pillow decode them

# Column, percentile and the most that it is in every band of reflectance, whose median is near 0.12.
_NOT_REFLECTANCE = (("sentinel2", "50", 1.0), ("image", "1", 254.0))


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is not as it must be: the file, and in words what was found and what was expected."""

    file: str
    problem: str

    def __str__(self) -> str:
        """The line that is printed, whatever files are called."""
        return so2sat.printable(f"{self.file}: {self.problem}")


# ┌─────────────────────────┐
# │  What the shards make   │
# └─────────────────────────┘


def contents(folder: Path, built: Manifest, statistics: card.Statistics, name: str) -> dict[str, bytes]:
    """Makes everything beside the shards and the manifest.

    Args:
        folder: The repository, whose shards are there.
        built: Its manifest.
        statistics: What `summaries` gives.
        name: What readers pass to load_dataset: ORG/NAME on the Hub, or the name of a local folder.

    Returns:
        The content of every file by its path, the card last.
    """
    text = json.dumps({"method": METHOD, "configs": statistics}, indent=1, allow_nan=False) + "\n"
    made = {STATISTICS_NAME: text.encode(), **card.pictures(folder, built, statistics)}
    if has_patches(built):
        made[TRAIN.name] = TRAIN.read_bytes()
    return {**made, card.NAME: card.render(built, statistics, name).encode()}


def has_patches(built: Manifest) -> bool:
    """Whether any config has pixels."""
    return any(CONFIGS[config].bands for config in built.configs)


def blank(built: Manifest) -> dict[tuple[str, str], Statistics]:
    """The statistics of no rows, by config and split."""
    return {
        (config, split): Statistics(CONFIGS[config].bands) for config in built.configs for split in built.splits(config)
    }


def summaries(folder: Path, built: Manifest, statistics: Mapping[tuple[str, str], Statistics]) -> card.Statistics:
    """Makes what statistics.json holds of the statistics by config and split, and of places what splits share."""
    found: dict[str, dict[str, Any]] = {config: {} for config in built.configs}
    for (config, split), of_split in statistics.items():
        found[config][split] = of_split.summary()
    for config in built.configs:
        if {*places.PLACE} <= {*CONFIGS[config].features}:
            for split, shared in places.shared(_places(folder, built, config)).items():
                found[config][split]["shared"] = shared
    return found


def _places(folder: Path, built: Manifest, config: str) -> dict[str, dict[str, Any]]:
    """The columns of every split that say where patches are."""
    found = {}
    for split in built.splits(config):
        found[split] = dict.fromkeys(places.PLACE, np.zeros(0))
        tables = [pq.read_table(folder / name, columns=[*places.PLACE]) for name in built.shard_names(config, split)]
        if tables:
            columns = pa.concat_tables(tables).columns
            found[split] = {name: column.to_numpy() for name, column in zip(places.PLACE, columns)}
    return found


# ┌──────────────────────────┐
# │  What is in the folder   │
# └──────────────────────────┘


def is_incomplete(folder: Path) -> bool:
    """Whether build.py has not finished a repository."""
    path = folder / card.NAME
    return path.is_file() and path.read_bytes() == card.INCOMPLETE.encode()


def file_findings(folder: Path, built: Manifest) -> Iterator[Finding]:
    """Checks that every file is there with its size, and the small ones with their checksums; reads no shard."""
    planned = [shard.name for shard in built.plan()]
    if is_incomplete(folder):
        done = sum(folder.joinpath(name).is_file() for name in built.shards)
        yield Finding(card.NAME, f"the build is incomplete, {done} of {len(planned)} shards are there, expected all")
        return
    if absent := [name for name in planned if name not in built.shards]:
        yield Finding(manifest.NAME, f"lists no {absent[0]}, expected all {len(planned)} shards")
    for name, record in built.shards.items():
        path = folder / name
        if not path.is_file():
            yield Finding(name, f"missing, expected it as {manifest.NAME} lists it")
        elif path.stat().st_size != record.bytes:
            yield Finding(name, f"{path.stat().st_size:,} bytes, expected {record.bytes:,}")
    for name in OTHER_FILES:
        if name in built.files:
            yield from _sum_findings(folder, name, built.files[name])
    if not folder.joinpath(card.NAME).is_file():
        yield Finding(card.NAME, "missing, expected the card")
    for name in misplaced(folder, built):
        yield Finding(name, "load_dataset() takes it for data, and it is not of the repository; move it away")


def _sum_findings(folder: Path, name: str, sha256: str) -> Iterator[Finding]:
    path = folder / name
    if not path.is_file():
        yield Finding(name, f"missing, expected it as {manifest.NAME} lists it")
    elif (found := hashlib.sha256(path.read_bytes()).hexdigest()) != sha256:
        yield Finding(name, f"sha256 {found[:16]}…, expected {sha256[:16]}…")


def misplaced(folder: Path, built: Manifest) -> list[str]:
    """Files that are none of the repository's, but that the glob of a split takes for its data."""
    globs = [card.glob(built, config, split) for config in built.configs for split in built.splits(config)]
    planned = {shard.name for shard in built.plan()}
    others = [name for name in _files(folder, built) if name not in planned]
    return [name for name in others if any(fnmatch.fnmatch(name, glob) for glob in globs)]


def strays(folder: Path, built: Manifest) -> str:
    """Names what else lies in the folder, in one line; empty if there is nothing."""
    ours = {card.NAME, manifest.NAME, *OTHER_FILES, *(shard.name for shard in built.plan()), *misplaced(folder, built)}
    names = [name for name in _files(folder, built) if name not in ours]
    names += [f"{name}, listed by another version of the project" for name in built.files if name not in OTHER_FILES]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    listed = so2sat.printable(", ".join(names[:5]))
    return f"not of the repository, neither published nor deleted: {listed}{more}" if names else ""


def _files(folder: Path, built: Manifest) -> list[str]:
    """Files and folders of the folder, by path in it; only the repository's own folders are looked into."""
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and entry.name in {"assets", *built.configs}:
            found += [f"{entry.name}/{name}" for name in sorted(os.listdir(entry))]
        elif entry.name not in _NEIGHBOURS:
            found.append(f"{entry.name}/" if entry.is_dir() else entry.name)
    return found


def differences(folder: Path, built: Manifest, statistics: card.Statistics, same_pillow: bool) -> Iterator[Finding]:
    """How statistics.json and the card's metadata differ from what the shards make: the first place in each."""
    try:
        found = json.loads((folder / STATISTICS_NAME).read_bytes())["configs"]
        data = DatasetCard.load(folder / card.NAME).data.to_dict()
    except Exception as error:  # of JSON, of YAML, of the Hub's library
        yield Finding(
            STATISTICS_NAME, f"it or the card can't be read ({one_line(error)}), expected what build.py writes"
        )
        return
    expected = {key: card.metadata(built)[key] for key in ("configs", "dataset_info")}
    for name, pair in (
        (STATISTICS_NAME, (found, statistics)),
        (card.NAME, ({key: data.get(key) for key in expected}, expected)),
    ):
        theirs, ours = (dict(_leaves(tree)) for tree in pair)
        for place in {**ours, **theirs}:
            tolerance = PIXEL_TOLERANCE if " image " in place and not same_pillow else 1e-12
            if not _is_close(theirs.get(place), ours.get(place), tolerance):
                values = f"{one_line(repr(theirs.get(place)))}, expected {one_line(repr(ours.get(place)))}"
                yield Finding(name, f"{place} is {values}")
                break


def _leaves(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a tree of JSON, each with where it stands; members of arrays go by their name if they have one."""
    if isinstance(tree, Mapping):
        members = [*tree.items()]
    elif isinstance(tree, list):
        members = [(_name(member) or index, member) for index, member in enumerate(tree)]
    else:
        yield place, tree
        return
    for key, member in members:
        yield from _leaves(member, f"{place} {key}".strip())


def _name(member: Any) -> Any:
    return isinstance(member, Mapping) and (member.get("name") or member.get("config_name"))


def _is_close(found: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(found, float) and isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=1e-9, abs_tol=tolerance)
    return bool(found == expected)


# ┌───────────────────────────┐
# │  What values can't be     │
# └───────────────────────────┘


def warnings(statistics: card.Statistics) -> Iterator[str]:
    """Says which splits hold bands without a number, or values that can't be reflectance, such as digital numbers."""
    for config, splits in statistics.items():
        for split, summary in splits.items():
            for column, bands in summary["bands"].items():
                if empty := [band["name"] for band in bands if band["mean"] is None]:
                    yield f"{config}, {split}: no finite value in {', '.join(empty)} of {column}"
            for column, percentile, most in _NOT_REFLECTANCE:
                found = [band["percentiles"] for band in summary["bands"].get(column, ()) if band["percentiles"]]
                if found and (least := min(percentiles[percentile] for percentiles in found)) > most:
                    what = f"percentile {percentile} of every band of {column} is {least:,.4g} or more"
                    yield f"{config}, {split}: {what}, expected at most {most:g}, as of reflectance near 0.1"


def unpublished(built: Manifest, statistics: card.Statistics) -> Iterator[Finding]:
    """How splits of the full size differ from what was published of them."""
    for config in built.configs:
        if built.synthetic or not CONFIGS[config].is_official:
            continue
        for split, rows in built.splits(config).items():
            summary, published = statistics[config][split], facts.PATCHES_PER_CLASS[split]
            if rows != sum(published):
                continue
            if (counts := (*summary["patches_per_class"].values(),)) != published:
                what = f"patches per class of {config}, {split}, are {counts}, expected {published} as published"
                yield Finding(STATISTICS_NAME, what)
            elif split == "train":
                yield from (Finding(STATISTICS_NAME, text) for text in _band_problems(summary["bands"]))


def _band_problems(columns: Mapping[str, Any]) -> Iterator[str]:
    """Whether the bands of the full training split have the mean and standard deviation that were published."""
    for column in columns.keys() & facts.TRAIN_MEAN.keys():
        for band, mean, std in zip(columns[column], facts.TRAIN_MEAN[column], facts.TRAIN_STD[column]):
            for name, expected in (("mean", mean), ("std", std)):
                # A mean near 0 is known no better than its band's spread allows.
                if not math.isclose(band[name] or 0.0, expected, rel_tol=1e-3, abs_tol=1e-3 * std):
                    yield f"{name} of {column} {band['name']} is {band[name]}, expected {expected:.6g} as published"
