"""The manifest: what a repository holds and what it was made from."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

import so2sat
from publishing import files, layout, places
from publishing.command import CommandError

NAME = "manifest.json"

# Rows of every array that go into a source's fingerprint, evenly spread and with the first and the last.
FINGERPRINT_ROWS = 32


@dataclasses.dataclass(frozen=True)
class SourceRecord:
    """A source file: rows, size in bytes, fingerprint, and what it says of itself if synthetic."""

    rows: int
    bytes: int
    fingerprint: str
    synthetic: str


@dataclasses.dataclass
class Manifest:
    """What a repository holds.

    Attributes:
        versions: Versions of what decides the bytes of a shard.
        image_format: Format of the images of `rgb`, one of so2sat.IMAGE_FORMATS.
        sources: The source files by their path in the data folder.
        configs: The configs, in the order of layout.CONFIGS.
        shards: The finished shards by path.
        files: SHA-256 of every file of a complete repository besides shards, manifest and card, by path.
    """

    versions: dict[str, str]
    image_format: str
    sources: dict[str, SourceRecord]
    configs: list[str]
    shards: dict[str, layout.ShardRecord] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def synthetic(self) -> str:
        """What the sources say of themselves if they are synthetic, else an empty string."""
        return " ".join(sorted({source.synthetic for source in self.sources.values()} - {""}))

    def splits(self, config: str) -> dict[str, int]:
        """The splits of a config whose source files are all there, with their rows."""
        return {
            split: self.sources[name].rows
            for split, name in layout.CONFIGS[config].files.items()
            if all(file in self.sources for file in layout.source_files(config, split))
        }

    def shard_names(self, config: str, split: str) -> list[str]:
        """The finished shards of a split, in order."""
        return sorted(name for name in self.shards if name.startswith(f"{config}/{split}-"))

    def to_json(self) -> bytes:
        """The manifest as the content of its file."""
        fields = {
            **dataclasses.asdict(self),
            "shards": {name: dataclasses.asdict(self.shards[name]) for name in sorted(self.shards)},
        }
        return (json.dumps(fields, indent=2) + "\n").encode()

    def save(self, folder: Path) -> None:
        """Writes the manifest into a repository, in place of the one there."""
        with files.replacing(folder / NAME) as file:
            file.write(self.to_json())

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """Reads a repository's manifest; None if there is none.

        Raises:
            CommandError: It is not a manifest.
        """
        path = folder / NAME
        if not path.exists():
            return None
        try:
            fields = json.loads(path.read_bytes())
            found = cls(
                versions=dict(fields["versions"]),
                image_format=str(fields["image_format"]),
                sources={name: SourceRecord(**record) for name, record in fields["sources"].items()},
                configs=list(fields["configs"]),
                shards={name: layout.ShardRecord(**record) for name, record in fields["shards"].items()},
                files={name: str(sha256) for name, sha256 in fields["files"].items()},
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CommandError(
                f"{path}: not a manifest of a So2Sat repository ({error!r});"
                f" restore it, or delete {folder} and build anew"
            ) from error
        records: dict[str, SourceRecord | layout.ShardRecord] = {**found.sources, **found.shards}
        for name, record in records.items():
            for field in dataclasses.fields(record):
                value = getattr(record, field.name)
                if type(value).__name__ != field.type:
                    raise CommandError(f"{path}: {field.name} of {name} is {value!r}, expected {field.type}")
        return found


def load_built(repository: Path) -> Manifest:
    """Reads the manifest of a folder that must be a repository.

    Raises:
        CommandError: It is none.
    """
    if not repository.is_dir():
        raise CommandError(f"{repository}: no such folder, expected a repository that build.py made")
    built = Manifest.load(repository)
    if built is None:
        raise CommandError(f"{repository}: no {NAME}, expected a repository that build.py made")
    return built


def current_versions() -> dict[str, str]:
    """Versions of what decides the bytes of a shard."""
    libraries = {name: importlib.metadata.version(name) for name in ("datasets", "pillow", "pyarrow")}
    return {"so2sat": so2sat.VERSION, "layout": str(layout.LAYOUT_VERSION), **libraries}


def describe(sources: Mapping[str, str]) -> dict[str, SourceRecord]:
    """Describes source files, and checks every label and place on the way.

    Args:
        sources: Path or URL by file name.

    Returns:
        Their records by file name.

    Raises:
        so2sat.SourceError: One can't be read, a label is not one-hot, or a place can't be right.
    """
    records = {}
    for name, path in sources.items():
        is_geo = places.is_geo(name)
        with places.open_geo(path) if is_geo else so2sat.open_source(path) as source:
            content = _all_places(source) if is_geo else _labels_and_some_rows(source)
            records[name] = SourceRecord(source.rows, source.bytes, _fingerprint(source, content), source.synthetic)
    return records


def _fingerprint(source: so2sat.Source, content: Iterable[bytes]) -> str:
    """Tells a source file from another by its layout and some or all of its content."""
    digest = hashlib.sha256()
    for name, array in source.arrays.items():
        digest.update(f"{name} {array.shape} {array.dtype.str}\n".encode())
    for part in content:
        digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def _labels_and_some_rows(source: so2sat.Source) -> Iterator[bytes]:
    """All labels, and rows of the arrays, which are too large to be read twice."""
    for start, stop in so2sat.blocks(0, source.rows, 1 << 16):
        yield source.read_labels(start, stop).tobytes()
    for row in np.unique(np.linspace(0, source.rows - 1, FINGERPRINT_ROWS).astype(int)):
        for name in ("sen1", "sen2"):
            yield source.read(name, row, row + 1).tobytes()


def _all_places(source: so2sat.Source) -> Iterator[bytes]:
    for start, stop in so2sat.blocks(0, source.rows, 1 << 16):
        yield repr([values.tolist() for values in places.read_places(source, start, stop).values()]).encode()
