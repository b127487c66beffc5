"""The manifest: what a repository holds and what it was made from."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import so2sat
from publishing import files, places, shards
from publishing.command import CommandError
from publishing.configs import CONFIGS, Limits
from publishing.shards import Shard, ShardRecord

NAME = "manifest.json"

FINGERPRINT_ROWS = 256  # of every array that go into a source's fingerprint
MAX_REFLECTANCE = 1  # that a median can be; real ones are near 0.12


@dataclasses.dataclass(frozen=True)
class SourceRecord:
    """A source file: rows, size in bytes, fingerprint, and what it says of itself if it is synthetic."""

    rows: int
    bytes: int
    fingerprint: str
    synthetic: str


@dataclasses.dataclass
class Manifest:
    """What a repository holds.

    Attributes:
        version: Version of the dataset.
        image_format: Format of the images, one of so2sat.IMAGE_FORMATS.
        sources: The source files by their path in the data folder.
        configs: What decides the bytes of every config's shards, as shards.recipe says, in the order of CONFIGS.
        shards: The finished shards by path.
        files: SHA-256 of every file of a complete repository besides shards, manifest and card, by path.
    """

    version: str
    image_format: str
    sources: dict[str, SourceRecord]
    configs: dict[str, dict[str, Any]]
    shards: dict[str, ShardRecord] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def synthetic(self) -> str:
        """What the sources say of themselves if they are synthetic, else an empty string."""
        return " ".join(sorted({source.synthetic for source in self.sources.values()} - {""}))

    @property
    def patches(self) -> int:
        """How many patches the config with most of them has."""
        return max(sum(self.splits(config).values()) for config in self.configs)

    def splits(self, config: str) -> dict[str, int]:
        """The splits of a config whose source files are all there, with their rows."""
        return {
            split: self.sources[names[0]].rows
            for split, names in CONFIGS[config].files.items()
            if all(name in self.sources for name in names)
        }

    def shard_names(self, config: str, split: str) -> list[str]:
        """The finished shards of a split, in order."""
        return sorted(name for name in self.shards if name.startswith(f"{config}/{split}-"))

    def plan(self, source: str = "") -> list[Shard]:
        """All shards that the repository has when it is complete, to be read from this folder or URL."""
        return [
            shard
            for config, recipe in self.configs.items()
            for split, rows in self.splits(config).items()
            for shard in shards.plan_shards(
                config, split, rows, Limits(recipe["group_rows"], recipe["shard_rows"]), source, self.image_format
            )
        ]

    def to_json(self) -> bytes:
        """The manifest as the content of its file."""
        fields = {**dataclasses.asdict(self), "shards": dict(sorted(dataclasses.asdict(self)["shards"].items()))}
        return (json.dumps(fields, indent=2) + "\n").encode()

    def save(self, folder: Path) -> None:
        """Writes the manifest into a repository, in place of the one there."""
        with files.replacing(folder / NAME, folder / shards.UNFINISHED_FOLDER) as file:
            file.write(self.to_json())

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """Reads a repository's manifest; None if there is none.

        Raises:
            CommandError: It is not a manifest, or names shards that are not of its plan.
        """
        path = folder / NAME
        if not path.exists():
            return None
        try:
            fields = json.loads(path.read_bytes())
            fields["sources"] = {name: SourceRecord(**record) for name, record in fields["sources"].items()}
            fields["shards"] = {name: ShardRecord(**record) for name, record in fields["shards"].items()}
            found = cls(**fields)
            if unplanned := found.shards.keys() - {shard.name for shard in found.plan()}:
                raise ValueError(f"{min(unplanned)!r} is no shard of its sources")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            what = f"not a manifest of this version of the project ({type(error).__name__}: {error})"
            raise CommandError(f"{path}: {what}; restore it, or give another folder") from error
        return found


def load_built(folder: Path) -> Manifest:
    """Reads the manifest of a folder that must be a repository.

    Raises:
        CommandError: It is none.
    """
    built = Manifest.load(folder)
    if built is None:
        what = f"no {NAME}" if folder.is_dir() else "no such folder"
        raise CommandError(f"{folder}: {what}, expected a repository that build.py made")
    return built


def describe(folder: str, names: Iterable[str]) -> dict[str, SourceRecord]:
    """Describes those of some source files that are there, and checks every label and place on the way.

    Args:
        folder: Folder or URL with the files.
        names: Names of the files.

    Returns:
        Their records by name.

    Raises:
        so2sat.SourceError: One can't be read, a label is not one-hot, or a place can't be right.
    """
    records = {}
    for name in names:
        path, is_geo = so2sat.join(folder, name), places.is_geo(name)
        with (
            contextlib.suppress(so2sat.MissingSourceError),
            places.open_geo(path) if is_geo else so2sat.open_source(path) as source,
        ):
            if is_geo:
                places.check(source)
            else:
                source.check_labels()
            fingerprint, reflectance = _looked_at(source)
            records[name] = SourceRecord(source.rows, source.bytes, fingerprint, source.synthetic)
            if reflectance > MAX_REFLECTANCE:
                what = f"the median of 'sen2' is {reflectance:,.4g}, expected at most {MAX_REFLECTANCE} as reflectance"
                print(so2sat.printable(f"warning: {path}: {what}"), file=sys.stderr)
    return records


def _looked_at(source: so2sat.Source) -> tuple[str, float]:
    """SHA-256 of all labels or places and of 256 rows of every array of pixels, evenly spaced; the median of `sen2`."""
    digest, medians = hashlib.sha256(), list[float]()
    for name, array in sorted(source.arrays.items()):
        ranges = [*so2sat.blocks(0, source.rows, 1 << 16)]
        if array.ndim == 4 and source.rows > FINGERPRINT_ROWS:
            rows = [index * source.rows // FINGERPRINT_ROWS for index in range(FINGERPRINT_ROWS)]
            ranges = [(row, row + 1) for row in rows]
        for start, stop in ranges:
            values = source.read(name, start, stop)
            digest.update(repr(values.tolist()).encode() if values.dtype == object else values.tobytes())
            if name == "sen2":
                medians.append(float(np.median(values)))
    return digest.hexdigest(), float(np.median(medians)) if medians else 0.0
