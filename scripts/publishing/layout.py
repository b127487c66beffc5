"""Layout of the Parquet repository: its configs, which rows go into which shard, and how a shard is written."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.utils.sha import sha_fileobj

import so2sat
from publishing import files, places
from publishing.band_statistics import ConfigStatistics

LAYOUT_VERSION = 2  # raise it when the same input gives other bytes

# Private to the build: its lock, and the statistics of finished shards.
STATE_FOLDER = ".build"

STATISTICS_NAME = "statistics.json"

# What may be in a repository besides shards, card and manifest.
PICTURES = ("assets/bands.png", "assets/classes.png", "assets/histogram.png")
OTHER_FILES = (STATISTICS_NAME, "train.py", *PICTURES)

# datasets.config.DEFAULT_CDC_OPTIONS of datasets 5.2: an edited file keeps most of its pages, so of its upload.
CONTENT_DEFINED_CHUNKING = {"min_chunk_size": 256 * 1024, "max_chunk_size": 1024 * 1024, "norm_level": 0}

# A dictionary of at most this many values makes indices of half a float32 or less.
MAX_DICTIONARY_VALUES = 1 << 16


# ┌───────────┐
# │  Configs  │
# └───────────┘


@dataclasses.dataclass(frozen=True)
class Reader:
    """What a split is read from.

    Attributes:
        path: Path or URL of the file with the patches.
        rows: Rows of the split.
        read: Reads a block, given its first row and the row after its last: the columns of the config.
    """

    path: str
    rows: int
    read: Callable[[int, int], dict[str, npt.NDArray[Any]]]


@dataclasses.dataclass(frozen=True)
class Limits:
    """How large the parts of a split get.

    Attributes:
        group_rows: Rows of a row group, which is what a reader fetches at the least.
        shard_rows: Rows of a shard, at most.
    """

    group_rows: int
    shard_rows: int


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the configs of a kind have in common.

    Attributes:
        features: The features, in the order of the columns.
        bands: Names of the bands of every array, by its column.
        row_bytes: What a row takes in memory at most: values and list offsets, or an image that did not compress.
        limits: How large a shard and its row groups get.
    """

    features: datasets.Features
    bands: Mapping[str, tuple[str, ...]]
    row_bytes: int
    limits: Limits


# Row groups have about 1.5 MB of images, 9 MB of arrays or 1 MB of places. A shard has at most 500 MB in memory, the
# size `datasets` aims at (datasets.config.MAX_SHARD_SIZE), and images come in enough shards for parallel readers.
KINDS: Mapping[str, Kind] = {
    "rgb": Kind(
        features=so2sat.features("rgb"),
        bands={"image": ("red", "green", "blue")},
        row_bytes=3_400,
        limits=Limits(group_rows=1024, shard_rows=32_768),
    ),
    "all": Kind(
        features=so2sat.features("all"),
        bands={
            "sentinel1": tuple(band.name for band in so2sat.SENTINEL1_BANDS),
            "sentinel2": tuple(band.name for band in so2sat.SENTINEL2_BANDS),
        },
        row_bytes=82_300,
        limits=Limits(group_rows=128, shard_rows=47 * 128),
    ),
    "geo": Kind(
        features=places.features(),
        bands={},
        row_bytes=80,
        limits=Limits(group_rows=16_384, shard_rows=1 << 20),
    ),
}
LIMITS: Mapping[str, Limits] = {name: kind.limits for name, kind in KINDS.items()}

# The builder's configs, and after the first two `geo`, which is in repositories alone.
_GEO = so2sat.Config("geo", "City and position of every patch (edition 4)", so2sat.SOURCE_FILES)
_OTHERS = [*so2sat.CONFIGS.items()]
CONFIGS: Mapping[str, so2sat.Config] = dict([*_OTHERS[:2], ("geo", _GEO), *_OTHERS[2:]])


def kind_of(config: str) -> Kind:
    """The kind of a config."""
    return KINDS[CONFIGS[config].kind]


def features(config: str) -> datasets.Features:
    """Features of a config of the repository, in the order of its columns."""
    return kind_of(config).features


def source_files(config: str, split: str) -> tuple[str, ...]:
    """All files that a split is made from: its patches, and for `geo` their places."""
    name = CONFIGS[config].files[split]
    return (name, places.geo_file(name)) if CONFIGS[config].kind == "geo" else (name,)


def source_paths(sources: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The path of every source file by its name, those with the places last, of what find_sources gives by config."""
    paths = {
        name: places.geo_file(path) if places.is_geo(name) else path
        for config, splits in sources.items()
        for split, path in splits.items()
        for name in source_files(config, split)
    }
    return dict(sorted(paths.items(), key=lambda item: places.is_geo(item[0])))


def find_sources(folder: str, config: str) -> dict[str, str]:
    """Finds the source files of a config as so2sat.find_sources does; `geo` has the splits whose places are there too.

    Returns:
        The path of every split's file of patches, by split.

    Raises:
        so2sat.MissingSourceError: None of the config's files is there.
        so2sat.SourceError: One can't be read or is not as expected.
    """
    if CONFIGS[config].kind != "geo":
        return so2sat.find_sources(folder, config)
    sources = {}
    for split, path in so2sat.find_sources(folder, so2sat.DEFAULT_CONFIG).items():
        with contextlib.suppress(so2sat.MissingSourceError), open_reader(config, path):
            sources[split] = path
    if not sources:
        names = " or ".join(map(places.geo_file, CONFIGS[config].files.values()))
        raise so2sat.MissingSourceError(f"{folder}: no {names}, which config '{config}' needs; edition 4 has them")
    return sources


@contextlib.contextmanager
def open_reader(config: str, path: str) -> Iterator[Reader]:
    """Opens what a split of a config is read from, given the file with the patches.

    Raises:
        so2sat.SourceError: A file is missing or not as expected.
    """
    if CONFIGS[config].kind == "geo":
        with places.open_both(path) as (patches, geo):
            yield Reader(path, patches.rows, functools.partial(places.read_columns, patches, geo))
    else:
        with so2sat.open_source(path) as source:
            yield Reader(path, source.rows, functools.partial(so2sat.read_columns, source, config))


# ┌──────────┐
# │  Shards  │
# └──────────┘


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of the repository and the source rows it holds.

    Attributes:
        config: Name of the config.
        split: Name of the split.
        name: Path inside the repository.
        start: First row.
        stop: Row after the last.
        group_rows: Rows of a row group.
        source: Path or URL of the file with the patches.
        image_format: How images are encoded, one of so2sat.IMAGE_FORMATS.
    """

    config: str
    split: str
    name: str
    start: int
    stop: int
    group_rows: int
    source: str
    image_format: str

    @property
    def rows(self) -> int:
        """Number of its rows."""
        return self.stop - self.start


@contextlib.contextmanager
def open_shard(shard: Shard) -> Iterator[Reader]:
    """Opens what a shard is made from.

    Raises:
        so2sat.SourceError: A file is missing, not as expected, or shorter than it was.
    """
    with open_reader(shard.config, shard.source) as reader:
        if reader.rows < shard.stop:
            raise so2sat.SourceError(f"{reader.path}: {reader.rows:,} rows, expected at least {shard.stop:,}")
        yield reader


@dataclasses.dataclass(frozen=True)
class ShardRecord:
    """What is known of a finished shard: rows, bytes of the file, bytes in memory as Arrow, and checksum."""

    rows: int
    bytes: int
    arrow_bytes: int
    sha256: str


def plan_shards(
    config: str,
    split: str,
    rows: int,
    source: str = "",
    image_format: str = "jpeg",
    limits: Mapping[str, Limits] = LIMITS,
) -> list[Shard]:
    """Divides a split into shards.

    Their number is the smallest power of two that keeps each within its kind's limit, but never so large that one would
    be empty. Shards end at row group boundaries and differ by at most one row group.
    """
    limit = limits[CONFIGS[config].kind]
    groups = -(-rows // limit.group_rows)
    largest = limit.shard_rows // limit.group_rows
    count = 1
    while -(-groups // count) > largest and 2 * count <= groups:
        count *= 2
    edges = [min(index * groups // count * limit.group_rows, rows) for index in range(count + 1)]
    return [
        Shard(
            config=config,
            split=split,
            name=f"{config}/{split}-{index:05d}-of-{count:05d}.parquet",
            start=edges[index],
            stop=edges[index + 1],
            group_rows=limit.group_rows,
            source=source,
            image_format=image_format,
        )
        for index in range(count)
    ]


def find_shards(folder: Path) -> list[str]:
    """The files of a repository that are named as shards, by path inside it, whatever they hold."""
    name = re.compile(r"(train|validation|test)-\d{5}-of-\d{5}\.parquet")
    paths = (path for config in CONFIGS for path in sorted(folder.glob(f"{config}/*")))
    return [f"{path.parent.name}/{path.name}" for path in paths if name.fullmatch(path.name) and not path.is_dir()]


def write_shard(shard: Shard, folder: Path) -> ShardRecord:
    """Writes a shard; it appears under its name only when it is complete and on the disk.

    Args:
        shard: What to write.
        folder: Root of the repository.

    Raises:
        so2sat.SourceError: The source can't be read, or is not as expected.
        OSError: The shard can't be written.
    """
    path = folder / shard.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        arrow_bytes, statistics = _write_rows(file, shard)
        file.seek(0)
        sha256 = sha_fileobj(file).hex()
        record = ShardRecord(rows=shard.rows, sha256=sha256, bytes=file.tell(), arrow_bytes=arrow_bytes)
        _save_statistics(folder, record, statistics)
    return record


def _write_rows(file: BinaryIO, shard: Shard) -> tuple[int, ConfigStatistics]:
    """Writes the rows of a shard as a Parquet file, one row group in memory at a time.

    Returns:
        Bytes the rows take in memory as Arrow, as `datasets` counts them, and the statistics of the rows.
    """
    kind = kind_of(shard.config)
    schema, statistics = kind.features.arrow_schema, ConfigStatistics(kind.bands)
    arrow_bytes, writer = 0, None
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(open_shard(shard))
        for group in so2sat.blocks(shard.start, shard.stop, shard.group_rows):
            tables = []
            for block in so2sat.blocks(*group):
                columns = reader.read(*block)
                statistics.add(columns)
                if writer is None:
                    writer = stack.enter_context(pq.ParquetWriter(file, schema, **writer_options(schema, columns)))
                    writer.add_key_value_metadata({"content_defined_chunking": json.dumps(CONTENT_DEFINED_CHUNKING)})
                tables.append(to_table(columns, schema, shard.image_format))
            table = pa.concat_tables(tables).combine_chunks()
            arrow_bytes += table.nbytes
            assert writer is not None
            writer.write_table(table, row_group_size=shard.group_rows)
    return arrow_bytes, statistics


def to_table(columns: dict[str, npt.NDArray[Any]], schema: pa.Schema, image_format: str) -> pa.Table:
    """Makes an Arrow table of the columns that so2sat.read_columns gives, without a Python object per value."""
    arrays = []
    for field in schema:
        values = columns[field.name]
        if isinstance(field.type, pa.ExtensionType):
            arrays.append(pa.ExtensionArray.from_storage(field.type, nested_list(values)))
        elif pa.types.is_struct(field.type):  # an image: its file's bytes, and no path
            images = so2sat.encode_images(values, image_format)
            members = [pa.array(images, pa.binary()), pa.nulls(len(images), pa.string())]
            arrays.append(pa.StructArray.from_arrays(members, fields=list(field.type)))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def nested_list(values: npt.NDArray[Any]) -> pa.ListArray:
    """Lists of lists over the array's own memory; the function of `datasets` for this copies it twice."""
    nested = pa.array(values.reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        length = values.shape[axis]
        offsets = pa.array(np.arange(0, len(nested) + 1, length, dtype=np.int32))
        nested = pa.ListArray.from_arrays(offsets, nested)
    return nested


def writer_options(schema: pa.Schema, columns: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Options of pyarrow.parquet.ParquetWriter for a shard; those of columns go by the Parquet paths of their leaves.

    Args:
        schema: Arrow schema of the config.
        columns: The shard's first block, which decides whether `sentinel2` gets a dictionary.
    """
    compression, dictionary, encoding, statistics = {}, [], {}, []
    for field in schema:
        if isinstance(field.type, pa.ExtensionType):
            leaf = f"{field.name}{'.list.element' * len(field.type.shape)}"
            compression[leaf] = "ZSTD"
            if field.name == "sentinel2" and len(np.unique(columns[field.name])) <= MAX_DICTIONARY_VALUES:
                dictionary.append(leaf)
            else:
                encoding[leaf] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_struct(field.type):  # an image
            for member in field.type:
                leaf = f"{field.name}.{member.name}"
                compression[leaf], encoding[leaf] = "NONE", "PLAIN"  # JPEG and PNG are compressed already
        else:
            compression[field.name], encoding[field.name] = "ZSTD", "PLAIN"
            statistics.append(field.name)  # no reader can filter by the least and greatest image or pixel
    return {
        "compression": compression,
        "use_dictionary": dictionary,
        "column_encoding": encoding,
        "write_statistics": statistics,
        "write_page_index": True,
        "write_page_checksum": True,
        "use_content_defined_chunking": CONTENT_DEFINED_CHUNKING,
    }


# ┌──────────────────────┐
# │  State of the build  │
# └──────────────────────┘


def is_intact(folder: Path, shard: Shard, record: ShardRecord) -> bool:
    """Whether the shard's file is there with the bytes that the record tells of, and its statistics too."""
    path = folder / shard.name
    if not path.is_file() or path.stat().st_size != record.bytes:
        return False
    with path.open("rb") as file:
        has_sum = sha_fileobj(file).hex() == record.sha256
    return has_sum and load_statistics(folder, shard.config, record) is not None


def load_statistics(folder: Path, config: str, record: ShardRecord) -> ConfigStatistics | None:
    """Loads the statistics that write_shard left of a shard; None if they are lost or damaged."""
    path, statistics = _statistics_path(folder, record), ConfigStatistics(kind_of(config).bands)
    if not path.is_file():
        return None
    try:
        with np.load(path) as arrays:
            statistics.load(arrays)
    except Exception:  # damaged bytes lead NumPy to errors of any type; whatever it was, the shard is made anew
        return None
    return statistics


def _save_statistics(folder: Path, record: ShardRecord, statistics: ConfigStatistics) -> None:
    path = _statistics_path(folder, record)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        np.savez_compressed(file, **dict[str, Any](statistics.to_arrays()))


def keep_statistics(folder: Path, records: Collection[ShardRecord]) -> None:
    """Removes from the build's state whatever is not the statistics of these shards."""
    kept = {_statistics_path(folder, record) for record in records}
    parent = folder / STATE_FOLDER / "statistics"
    is_folder = parent.is_dir() and not parent.is_symlink()
    for path in [*parent.iterdir()] if is_folder else [parent]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path not in kept:
            path.unlink(missing_ok=True)


def _statistics_path(folder: Path, record: ShardRecord) -> Path:
    return folder / STATE_FOLDER / "statistics" / f"{record.sha256}.npz"
