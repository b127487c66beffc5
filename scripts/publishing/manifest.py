"""The manifest: what a repository holds and what it was made from."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import re
import reprlib
import typing
from collections.abc import Mapping
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
MAX_SHARDS = 99_999  # of a split, by the digits of their names
MAX_ROWS = 1 << 24  # of a shard


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
            _check(found)
        except ValueError as error:
            what = f"not a manifest of a So2Sat repository ({error})"
            raise CommandError(f"{path}: {what}; restore it, or delete {folder} and build anew") from error
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
    """Reads a small JSON file of a repository; the errors are those of read_small."""
    try:
        return json.loads(read_small(path))
    except RecursionError as error:
        raise ValueError("nested too deeply, expected JSON of build.py") from error


def parse(type_: Any, value: Any, where: str = "it") -> Any:
    """Makes a value of a type from JSON: a dataclass, dict, list, str or int, and nothing that only resembles it.

    Raises:
        ValueError: The JSON is of another type.
    """
    if isinstance(type_, type) and dataclasses.is_dataclass(type_):
        fields = typing.get_type_hints(type_)
        _require(isinstance(value, dict) and {*value} == {*fields}, where, value, f"the fields {', '.join(fields)}")
        return type_(**{name: parse(field, value[name], f"{where}, {name}") for name, field in fields.items()})
    origin, arguments = typing.get_origin(type_) or type_, typing.get_args(type_)
    _require(type(value) is origin, where, value, origin.__name__)
    if origin is dict:
        return {key: parse(arguments[1], member, f"{where}, {shown(key)}") for key, member in value.items()}
    return [parse(arguments[0], member, where) for member in value] if origin is list else value


def _check(found: Manifest) -> None:
    """Makes sure that a manifest is one that build.py would write: what it names is of the plan, inside the folder."""
    configs = [config for config in layout.CONFIGS if config in found.configs]
    _require(configs == found.configs != [], "configs", found.configs, f"some of {', '.join(layout.CONFIGS)}")
    _require({*found.versions} == {*current_versions()}, "versions", found.versions, ", ".join(current_versions()))
    _require(found.image_format in so2sat.IMAGE_FORMATS, "image_format", found.image_format, "jpeg or png")
    _require({*found.limits} == {*layout.LIMITS}, "limits", found.limits, f"those of {', '.join(layout.LIMITS)}")
    for kind, limit in found.limits.items():
        is_right = 1 <= limit.group_rows <= limit.shard_rows <= MAX_ROWS
        _require(is_right, f"limits of {kind}", limit, f"1 to {MAX_ROWS:,} rows, no more in a group than in a shard")
    splits = [(config, split) for config in configs for split in layout.CONFIGS[config].files]
    known = {name for config, split in splits for name in layout.source_files(config, split)}
    most_rows = MAX_SHARDS * min(limit.group_rows for limit in found.limits.values())
    for name, source in found.sources.items():
        is_right = (
            name in known and 1 <= source.rows <= most_rows and source.bytes > 0 and source.synthetic.isprintable()
        )
        expected = "a file of its configs: rows, bytes, a SHA-256 and a line of text"
        _require(is_right and _is_sha256(source.fingerprint), f"source {shown(name)}", source, expected)
    for config in configs:
        _require(bool(found.splits(config)), f"sources of {config}", [*found.sources], "those of a split")
    planned = {shard.name: shard.rows for shard in found.plan()}
    for name, record in found.shards.items():
        is_right = record.rows == planned.get(name) and min(record.bytes, record.arrow_bytes) > 0
        expected = "what the sources make: its rows, bytes and a SHA-256"
        _require(is_right and _is_sha256(record.sha256), f"shard {shown(name)}", record, expected)
    for name, sha256 in found.files.items():
        is_right = name in layout.OTHER_FILES and _is_sha256(sha256)
        _require(is_right, f"file {shown(name)}", sha256, f"a SHA-256 of {', '.join(layout.OTHER_FILES)}")


def _is_sha256(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def _require(is_right: bool, what: str, found: object, expected: str) -> None:
    if not is_right:
        raise ValueError(f"{what}: {shown(found)}, expected {expected}")
