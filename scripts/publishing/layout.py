"""Layout of the Parquet repository: which rows go into which shard, and how a shard is written."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import zipfile
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

# The configs of the repository: the builder's and `geo`, which is made here alone.
_GEO = so2sat.Config("geo", "City and position of every patch (edition 4)", so2sat.SOURCE_FILES)
_RGB, _ALL, *_OTHERS = so2sat.CONFIGS
CONFIGS: Mapping[str, so2sat.Config] = {
    **{name: so2sat.CONFIGS[name] for name in (_RGB, _ALL)},
    "geo": _GEO,
    **{name: so2sat.CONFIGS[name] for name in _OTHERS},
}

LAYOUT_VERSION = 2  # raise it when the same input gives other bytes

# By the kind of a config: rows of a row group, what a reader fetches at the least: 9 MB of arrays, about 1.5 MB of
# images, or 1 MB of places.
ROW_GROUP_ROWS = {"rgb": 1024, "all": 128, "geo": 16_384}

# A shard is at most this large in memory, the size `datasets` aims at (datasets.config.MAX_SHARD_SIZE) …
MAX_SHARD_BYTES = 500_000_000
# … and at most this long, so that images too come in enough shards for parallel readers.
MAX_SHARD_ROWS = {"rgb": 32_768, "all": 32_768, "geo": 1 << 20}
# Bytes a row takes in memory: values and list offsets, or a 32×32 image that did not compress.
ROW_BYTES = {"rgb": 3_400, "all": 82_300, "geo": 80}

# datasets.config.DEFAULT_CDC_OPTIONS of datasets 5.2: an edited file keeps most of its pages, so of its upload.
CONTENT_DEFINED_CHUNKING = {"min_chunk_size": 256 * 1024, "max_chunk_size": 1024 * 1024, "norm_level": 0}

# A dictionary of at most this many values makes indices of half a float32 or less.
MAX_DICTIONARY_VALUES = 1 << 16

# Private to the build: its lock, the state of the sources, and the statistics of finished shards.
STATE_FOLDER = ".build"


# ┌───────────┐
# │  Configs  │
# └───────────┘


def features(config: str) -> datasets.Features:
    """Features of a config of the repository, in the order of its columns."""
    return places.features() if CONFIGS[config].kind == "geo" else so2sat.features(config)


def source_files(config: str, split: str) -> tuple[str, ...]:
    """All files that a split is made from: its patches, and for `geo` their places."""
    name = CONFIGS[config].files[split]
    return (name, places.geo_file(name)) if CONFIGS[config].kind == "geo" else (name,)


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
        with contextlib.suppress(so2sat.MissingSourceError), places.open_both(path):
            sources[split] = path
    if not sources:
        names = " or ".join(map(places.geo_file, CONFIGS[config].files.values()))
        raise so2sat.MissingSourceError(f"{folder}: no {names}, which config '{config}' needs; edition 4 has them")
    return sources


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
        index: Its number among the split's shards, from 0.
        count: How many shards the split has, a power of two.
        start: First row.
        stop: Row after the last.
        source: Path or URL of the source file.
        image_format: How images are encoded, one of so2sat.IMAGE_FORMATS.
    """

    config: str
    split: str
    index: int
    count: int
    start: int
    stop: int
    source: str
    image_format: str

    @property
    def kind(self) -> str:
        """Kind of its config."""
        return CONFIGS[self.config].kind

    @property
    def name(self) -> str:
        """Path inside the repository."""
        return f"{self.config}/{self.split}-{self.index:05d}-of-{self.count:05d}.parquet"

    def open(self) -> contextlib.AbstractContextManager[Reader]:
        """Opens what it is made from."""
        return open_reader(self.config, self.source)


@dataclasses.dataclass(frozen=True)
class ShardRecord:
    """What is known of a finished shard: rows, bytes of the file, bytes in memory as Arrow, and checksum."""

    rows: int
    bytes: int
    arrow_bytes: int
    sha256: str


def plan_shards(config: str, split: str, rows: int, source: str, image_format: str) -> list[Shard]:
    """Divides a split into shards.

    Their number is the smallest power of two that keeps each within MAX_SHARD_BYTES and MAX_SHARD_ROWS, but never so
    large that one would be empty. Shards end at row group boundaries and differ by at most one row group.
    """
    kind = CONFIGS[config].kind
    group = ROW_GROUP_ROWS[kind]
    groups = -(-rows // group)
    largest = min(MAX_SHARD_ROWS[kind], MAX_SHARD_BYTES // ROW_BYTES[kind]) // group
    count = 1
    while -(-groups // count) > largest and 2 * count <= groups:
        count *= 2
    edges = [min(index * groups // count * group, rows) for index in range(count + 1)]
    return [
        Shard(config, split, index, count, edges[index], edges[index + 1], source, image_format)
        for index in range(count)
    ]


def to_table(columns: dict[str, npt.NDArray[Any]], schema: pa.Schema, image_format: str) -> pa.Table:
    """Makes an Arrow table of the columns that so2sat.read_columns gives, without a Python object per value."""
    arrays = []
    for field in schema:
        values = columns[field.name]
        if isinstance(field.type, pa.ExtensionType):
            arrays.append(pa.ExtensionArray.from_storage(field.type, _nested_list(values)))
        elif pa.types.is_struct(field.type):  # an image: its file's bytes, and no path
            images = so2sat.encode_images(values, image_format)
            members = [pa.array(images, pa.binary()), pa.nulls(len(images), pa.string())]
            arrays.append(pa.StructArray.from_arrays(members, fields=list(field.type)))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _nested_list(values: npt.NDArray[Any]) -> pa.ListArray:
    """Lists of lists over the array's own memory; the function of `datasets` for this copies it twice."""
    nested = pa.array(values.reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        length = values.shape[axis]
        offsets = pa.array(np.arange(0, len(nested) + 1, length, dtype=np.int32))
        nested = pa.ListArray.from_arrays(offsets, nested)
    return nested


def leaf_paths(field: pa.Field) -> list[str]:
    """Parquet paths of a column's leaves, by which Parquet's column options go."""

    def leaves(path: str, type_: pa.DataType) -> list[str]:
        if isinstance(type_, pa.ExtensionType):
            return leaves(path, type_.storage_type)
        if pa.types.is_list(type_):
            return leaves(f"{path}.list.element", type_.value_type)
        if pa.types.is_struct(type_):
            return [leaf for member in type_ for leaf in leaves(f"{path}.{member.name}", member.type)]
        return [path]

    return leaves(field.name, field.type)


def writer_options(schema: pa.Schema, columns: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Options of pyarrow.parquet.ParquetWriter for a shard.

    Args:
        schema: Arrow schema of the config.
        columns: The shard's first block, which decides whether `sentinel2` gets a dictionary.
    """
    compression, dictionary, encoding, statistics = {}, [], {}, []
    for field in schema:
        for leaf in leaf_paths(field):
            is_image, is_array = pa.types.is_struct(field.type), isinstance(field.type, pa.ExtensionType)
            compression[leaf] = "NONE" if is_image else "ZSTD"  # JPEG and PNG are compressed already
            if not is_image and not is_array:  # no reader can filter by the least and greatest image or pixel
                statistics.append(leaf)
            if not is_array:
                encoding[leaf] = "PLAIN"
            elif field.name == "sentinel2" and len(np.unique(columns[field.name])) <= MAX_DICTIONARY_VALUES:
                dictionary.append(leaf)
            else:
                encoding[leaf] = "BYTE_STREAM_SPLIT"
    return {
        "compression": compression,
        "use_dictionary": dictionary,
        "column_encoding": encoding,
        "write_statistics": statistics,
        "write_page_index": True,
        "write_page_checksum": True,
        "use_content_defined_chunking": CONTENT_DEFINED_CHUNKING,
    }


def write_rows(
    file: BinaryIO, reader: Reader, config: str, start: int, stop: int, image_format: str
) -> tuple[int, ConfigStatistics]:
    """Writes rows of a split as a Parquet file, one block in memory at a time.

    Returns:
        Bytes the rows take in memory as Arrow, as `datasets` counts them, and the statistics of the rows.
    """
    schema, kind = features(config).arrow_schema, CONFIGS[config].kind
    group_rows, arrow_bytes, statistics = ROW_GROUP_ROWS[kind], 0, ConfigStatistics(kind)
    with contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for group in so2sat.blocks(start, stop, group_rows):
            tables = []
            for block in so2sat.blocks(*group):
                columns = reader.read(*block)
                statistics.add(columns["label"], columns)
                if writer is None:
                    writer = stack.enter_context(pq.ParquetWriter(file, schema, **writer_options(schema, columns)))
                    writer.add_key_value_metadata({"content_defined_chunking": json.dumps(CONTENT_DEFINED_CHUNKING)})
                tables.append(to_table(columns, schema, image_format))
            table = pa.concat_tables(tables).combine_chunks() if len(tables) > 1 else tables[0]
            arrow_bytes += table.nbytes
            assert writer is not None
            writer.write_table(table, row_group_size=group_rows)
    return arrow_bytes, statistics


def is_intact(shard: Shard, folder: Path, record: ShardRecord) -> bool:
    """Whether the shard's file is there with the bytes that the record tells of, and its statistics too."""
    path = folder / shard.name
    if record.rows != shard.stop - shard.start or not path.is_file() or path.stat().st_size != record.bytes:
        return False
    with path.open("rb") as file:
        if sha_fileobj(file).hex() != record.sha256:
            return False
    try:
        load_statistics(folder, record)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False
    return True


def load_statistics(folder: Path, record: ShardRecord) -> ConfigStatistics:
    """Loads the statistics that write_shard left of a shard."""
    with np.load(_statistics_path(folder, record.sha256)) as arrays:
        return ConfigStatistics.from_arrays(arrays)


def remove_statistics_of_others(folder: Path, records: Collection[ShardRecord]) -> None:
    """Removes the statistics of shards that are no more."""
    kept = {_statistics_path(folder, record.sha256) for record in records}
    for path in _statistics_path(folder, "").parent.iterdir():
        if path not in kept:
            path.unlink()


def _statistics_path(folder: Path, sha256: str) -> Path:
    return folder / STATE_FOLDER / "statistics" / f"{sha256}.npz"


def bytes_per_row(shard: Shard) -> float:
    """Bytes that a row takes in the shard's file, measured on its first row group."""
    rows = min(ROW_GROUP_ROWS[shard.kind], shard.stop - shard.start)
    file = io.BytesIO()
    with shard.open() as reader:
        write_rows(file, reader, shard.config, shard.start, shard.start + rows, shard.image_format)
    return len(file.getvalue()) / rows


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
        with shard.open() as reader:
            arrow_bytes, statistics = write_rows(
                file, reader, shard.config, shard.start, shard.stop, shard.image_format
            )
        file.seek(0)
        sha256 = sha_fileobj(file).hex()
        size = file.tell()
        path_of_statistics = _statistics_path(folder, sha256)
        path_of_statistics.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path_of_statistics) as statistics_file:
            np.savez_compressed(statistics_file, **statistics.to_arrays())
    return ShardRecord(rows=shard.stop - shard.start, bytes=size, arrow_bytes=arrow_bytes, sha256=sha256)
