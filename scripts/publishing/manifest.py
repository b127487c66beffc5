"""The manifest: what a repository holds and what it was made from."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import re
import reprlib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import so2sat
from publishing import files, layout, places
from publishing.command import CommandError

NAME = "manifest.json"

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 120
shown = _repr.repr  # of what a file holds, which may be endless

MAX_BYTES = 16 << 20  # of a file that is read whole; a full repository's manifest has 50 kB
MAX_ROWS = 10_000_000  # of a source; the largest has 352,366
MAX_SHARDS = 99_999  # of a split, by the digits of their names


@dataclasses.dataclass(frozen=True)
class SourceRecord:
    """A source file: rows, size in bytes, SHA-256 of all labels or places, and what it says of itself if synthetic."""

    rows: int
    bytes: int
    fingerprint: str
    synthetic: str


@dataclasses.dataclass
class Manifest:
    """What a repository holds.

    Attributes:
        versions: Versions of the dataset, and of what decides the bytes of a shard.
        image_format: Format of the images, one of so2sat.IMAGE_FORMATS.
        limits: How large shards and row groups are, by the kind of a config.
        sources: The source files by their path in the data folder.
        configs: The configs, in the order of layout.CONFIGS.
        shards: The finished shards by path.
        files: SHA-256 of every file of a complete repository besides shards, manifest and card, by path.
    """

    versions: dict[str, str]
    image_format: str
    limits: dict[str, layout.Limits]
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

    def plan(self, sources: Mapping[str, Mapping[str, str]] | None = None) -> list[layout.Shard]:
        """All shards that the repository has when it is complete, with the paths of their sources if given."""
        paths = sources or {}
        return [
            shard
            for config in self.configs
            for split, rows in self.splits(config).items()
            for shard in layout.plan_shards(
                config, split, rows, paths.get(config, {}).get(split, ""), self.image_format, self.limits
            )
        ]

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
        """Reads a repository's manifest; None if there is none. Of another layout's shards it knows none.

        Raises:
            CommandError: It is not a manifest, or one that build.py would not write.
        """
        path = folder / NAME
        if not path.exists() and not path.is_symlink():
            return None
        try:
            found: Manifest = parse(cls, read_json(path))
            if found.versions.get("layout") != str(layout.LAYOUT_VERSION):
                found.shards, found.files = {}, {}
            for problem in _problems(found):
                raise ValueError(problem)
        except (ValueError, RecursionError) as error:
            raise CommandError(
                f"{path}: not a manifest of a So2Sat repository ({error}); restore it, or delete {folder} and build"
                " anew"
            ) from error
        return found


def load_built(folder: Path) -> Manifest:
    """Reads the manifest of a folder that must be a repository.

    Raises:
        CommandError: It is none.
    """
    if not folder.is_dir():
        raise CommandError(f"{folder}: no such folder, expected a repository that build.py made")
    built = Manifest.load(folder)
    if built is None:
        raise CommandError(f"{folder}: no {NAME}, expected a repository that build.py made")
    return built


def current_versions() -> dict[str, str]:
    """Versions of the dataset, and of what decides the bytes of a shard: the layout, pyarrow, for images Pillow."""
    libraries = {name: importlib.metadata.version(name) for name in ("pillow", "pyarrow")}
    return {"so2sat": so2sat.VERSION, "layout": str(layout.LAYOUT_VERSION), **libraries}


def describe(paths: Mapping[str, str]) -> dict[str, SourceRecord]:
    """Describes source files, and checks every label and place on the way.

    Args:
        paths: Path or URL by file name.

    Returns:
        Their records by file name.

    Raises:
        so2sat.SourceError: One can't be read, a label is not one-hot, or a place can't be right.
    """
    records = {}
    for name, path in paths.items():
        is_geo, digest = places.is_geo(name), hashlib.sha256()
        with places.open_geo(path) if is_geo else so2sat.open_source(path) as source:
            for start, stop in so2sat.blocks(0, source.rows, 1 << 16):
                if is_geo:
                    rows = [values.tolist() for values in places.read_places(source, start, stop).values()]
                    digest.update(repr(rows).encode())
                else:
                    digest.update(source.read_labels(start, stop).tobytes())
            records[name] = SourceRecord(source.rows, source.bytes, digest.hexdigest(), source.synthetic)
    return records


# ┌───────────┐
# │  Reading  │
# └───────────┘


def read_small(path: Path) -> bytes:
    """Reads a file of a repository that must be a small, regular one.

    Raises:
        ValueError: It is something else, such as a pipe, a link or too large.
        OSError: It can't be read.
    """
    if path.is_symlink() or not path.is_file():
        raise ValueError("missing, or a link, pipe or device, expected a regular file")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes, expected fewer")
    return content


def read_json(path: Path) -> Any:
    """Reads a small JSON file of a repository.

    Raises:
        ValueError: It is no such file.
        OSError: It can't be read.
    """
    try:
        return json.loads(read_small(path))
    except RecursionError as error:
        raise ValueError("nested too deeply, expected JSON of build.py") from error


def parse(type_: Any, value: Any, where: str = "") -> Any:
    """Makes a value of a type from JSON: a dataclass, dict, list, str, int or Any, and nothing that only resembles it.

    Raises:
        ValueError: The JSON is of another type.
    """
    origin, arguments = typing.get_origin(type_) or type_, typing.get_args(type_)
    if type_ is Any:
        return value
    if isinstance(type_, type) and dataclasses.is_dataclass(type_):
        fields = typing.get_type_hints(type_)
        if not isinstance(value, dict) or {*value} != {*fields}:
            raise ValueError(f"{where or 'it'} is {shown(value)}, expected the fields {', '.join(fields)}")
        return type_(**{name: parse(field, value[name], f"{where} {name}".strip()) for name, field in fields.items()})
    if type(value) is not origin:
        raise ValueError(f"{where} is {shown(value)}, expected {origin.__name__}")
    if origin is dict:
        return {key: parse(arguments[1], member, f"{where} {shown(key)}") for key, member in value.items()}
    if origin is list:
        return [parse(arguments[0], member, where) for member in value]
    return value


def _problems(found: Manifest) -> Iterator[str]:
    """What a manifest says that build.py would not write; what it names is a file of the plan, inside the folder."""
    configs = [config for config in layout.CONFIGS if config in found.configs]
    if not configs or configs != found.configs:
        yield f"configs are {shown(found.configs)}, expected some of {', '.join(layout.CONFIGS)}"
        return
    if {*found.versions} != {*current_versions()}:
        yield f"versions are of {shown([*found.versions])}, expected of {', '.join(current_versions())}"
    if found.image_format not in so2sat.IMAGE_FORMATS:
        yield f"image_format is {found.image_format!r}, expected one of {', '.join(so2sat.IMAGE_FORMATS)}"
    if {*found.limits} != {*layout.LIMITS}:
        yield f"limits are of {shown([*found.limits])}, expected of {', '.join(layout.LIMITS)}"
        return
    for kind, limit in found.limits.items():
        most = layout.LIMITS[kind]
        if not (1 <= limit.group_rows <= most.group_rows and limit.group_rows <= limit.shard_rows <= most.shard_rows):
            yield f"limits of {kind} are {limit}, expected at most {most}"
            return
    yield from _source_problems(found)
    planned = {shard.name: shard for shard in found.plan()}
    for name, record in found.shards.items():
        if name not in planned or record.rows != planned[name].rows:
            yield f"shard {shown(name)} has {record.rows:,} rows, expected only what its sources make"
        if record.bytes < 1 or record.arrow_bytes < 1 or not _is_sha256(record.sha256):
            yield f"shard {name} has {record}, expected sizes above 0 and a SHA-256"
    for name, sha256 in found.files.items():
        if name not in layout.OTHER_FILES or not _is_sha256(sha256):
            yield f"file {shown(name)} is listed, expected only {', '.join(layout.OTHER_FILES)} with SHA-256"


def _source_problems(found: Manifest) -> Iterator[str]:
    splits = [(config, split) for config in found.configs for split in layout.CONFIGS[config].files]
    known = {name for config, split in splits for name in layout.source_files(config, split)}
    least = min(limit.group_rows for limit in found.limits.values())
    for name, record in found.sources.items():
        if name not in known or not 1 <= record.rows <= min(MAX_ROWS, MAX_SHARDS * least) or record.bytes < 1:
            yield f"source {shown(name)} has {record.rows:,} rows, expected a file of its configs"
        if not _is_sha256(record.fingerprint) or not record.synthetic.isprintable():
            yield f"source {name} has {shown(record)}, expected a SHA-256 and one line of text"
    for config in found.configs:
        if not found.splits(config):
            yield f"config '{config}' has no source, expected at least one split"


def _is_sha256(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None
