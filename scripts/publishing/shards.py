"""Shards of the Parquet repository: which rows go into which, and how one is written and read back."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.utils.sha import sha_fileobj

import so2sat
from publishing import files
from publishing.band_statistics import Statistics
from publishing.configs import CONFIGS, Config, Limits, Reader

LAYOUT_VERSION = 2  # raise it when the same input gives other bytes and `recipe` can't see why

STATE_FOLDER = ".build"  # private to the build: its lock and its unfinished files
UNFINISHED_FOLDER = f"{STATE_FOLDER}/unfinished"

# datasets.config.DEFAULT_CDC_OPTIONS of datasets 5.2: an edited file keeps most of its pages, so of its upload.
CONTENT_DEFINED_CHUNKING = {"min_chunk_size": 256 * 1024, "max_chunk_size": 1024 * 1024, "norm_level": 0}

# A dictionary of at most this many values makes indices of half a float32 or less.
MAX_DICTIONARY_VALUES = 1 << 16


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
        source: Folder or URL with the source files; empty if there is none to read.
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


@dataclasses.dataclass(frozen=True)
class ShardRecord:
    """What is known of a finished shard: rows, bytes of the file, bytes in memory as Arrow, and checksum."""

    rows: int
    bytes: int
    arrow_bytes: int
    sha256: str


# ┌────────┐
# │  Plan  │
# └────────┘


def plan_shards(
    config: str, split: str, rows: int, limits: Limits, source: str = "", image_format: str = "jpeg"
) -> list[Shard]:
    """Divides a split into shards.

    Their number is the smallest power of two that keeps each within the limits, but never so large that one would be
    empty. Shards end at row group boundaries and differ by at most one row group.
    """
    groups = -(-rows // limits.group_rows)
    largest = limits.shard_rows // limits.group_rows
    count = 1
    while -(-groups // count) > largest and 2 * count <= groups:
        count *= 2
    edges = [min(index * groups // count * limits.group_rows, rows) for index in range(count + 1)]
    return [
        Shard(
            config=config,
            split=split,
            name=f"{config}/{split}-{index:05d}-of-{count:05d}.parquet",
            start=edges[index],
            stop=edges[index + 1],
            group_rows=limits.group_rows,
            source=source,
            image_format=image_format,
        )
        for index in range(count)
    ]


def recipe(config: Config, image_format: str, limits: Limits) -> dict[str, Any]:
    """All that decides the bytes of a config's shards besides the rows of its sources; a change of it rewrites them."""
    features = json.dumps(config.features.to_dict()).encode()
    decides = {
        "layout": LAYOUT_VERSION,
        **dataclasses.asdict(limits),
        "features": hashlib.sha256(features).hexdigest()[:16],
        "pyarrow": importlib.metadata.version("pyarrow"),
    }
    if "image" not in config.features:
        return decides
    pixels = {"bands": [*so2sat.RGB_BANDS], "factor": so2sat.CALIBRATION_FACTOR}
    image = json.dumps({**so2sat.IMAGE_FORMATS[image_format], **pixels})
    return {**decides, "image": image, "pillow": importlib.metadata.version("pillow")}


def version() -> str:
    """Names this version of the project, and of all that decides the bytes of its shards."""
    formats = so2sat.IMAGE_FORMATS
    recipes = [recipe(config, name, config.limits) for config in CONFIGS.values() for name in formats]
    return f"{so2sat.VERSION}-{hashlib.sha256(json.dumps(recipes).encode()).hexdigest()[:16]}"


def find_shards(folder: Path, configs: Collection[str]) -> list[str]:
    """The files of a repository that are named as shards of these configs, by path inside it, whatever they hold."""
    name = re.compile(r"(train|validation|test)-\d{5}-of-\d{5}\.parquet")
    paths = (path for config in sorted(configs) for path in sorted(folder.glob(f"{config}/*")))
    return [f"{path.parent.name}/{path.name}" for path in paths if name.fullmatch(path.name) and not path.is_dir()]


# ┌────────┐
# │  Read  │
# └────────┘


@contextlib.contextmanager
def open_source(shard: Shard) -> Iterator[Reader]:
    """Opens what a shard is made from.

    Raises:
        so2sat.SourceError: A file is missing, not as expected, or shorter than it was.
    """
    with CONFIGS[shard.config].open(shard.source, shard.split) as reader:
        if reader.rows < shard.stop:
            raise so2sat.SourceError(f"{reader.path}: {reader.rows:,} rows, expected at least {shard.stop:,}")
        yield reader


def has_sum(path: Path, record: ShardRecord) -> bool:
    """Whether a shard's file has the size and the checksum of its record."""
    if not path.is_file() or path.stat().st_size != record.bytes:
        return False
    with path.open("rb") as file:
        return sha_fileobj(file).hex() == record.sha256


def batches(file: pq.ParquetFile, shard: Shard) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Reads a shard in the batches that it was written in, each with its first row.

    Raises:
        ValueError: Its row groups have other rows than planned.
        pyarrow.ArrowException, OSError: It can't be read.
    """
    for group, edges in enumerate(so2sat.blocks(shard.start, shard.stop, shard.group_rows)):
        found = file.iter_batches(so2sat.ROWS_PER_BLOCK, [group], use_threads=False)
        for (start, stop), batch in zip(so2sat.blocks(*edges), found, strict=True):
            if batch.num_rows != stop - start:
                raise ValueError(f"{batch.num_rows} rows from row {start} on, expected {stop - start}")
            yield start, batch


# ┌─────────┐
# │  Write  │
# └─────────┘


def make_shard(shard: Shard, folder: Path, known: Mapping[str, ShardRecord]) -> tuple[ShardRecord, Statistics, bool]:
    """Writes a shard unless it is there with the bytes of a known record.

    Returns:
        Its record, the statistics of its rows, and whether it was written.

    Raises:
        The errors of write_shard.
    """
    record = known.get(shard.name)
    if not record or not has_sum(folder / shard.name, record):
        return *write_shard(shard, folder), True
    statistics = Statistics(CONFIGS[shard.config].bands, shard.start)
    with pq.ParquetFile(folder / shard.name) as file:
        for _, batch in batches(file, shard):
            statistics.add(batch)
    return record, statistics, False


def write_shard(shard: Shard, folder: Path) -> tuple[ShardRecord, Statistics]:
    """Writes a shard; it appears under its name only when it is complete and on the disk.

    Args:
        shard: What to write.
        folder: Root of the repository.

    Returns:
        Its record, and the statistics of its rows.

    Raises:
        so2sat.SourceError: The source can't be read, or is not as expected.
        OSError: The shard can't be written.
    """
    path = folder / shard.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path, folder / UNFINISHED_FOLDER) as file:
        arrow_bytes, statistics = _write_rows(file, shard)
        file.seek(0)
        sha256 = sha_fileobj(file).hex()
        record = ShardRecord(rows=shard.rows, sha256=sha256, bytes=file.tell(), arrow_bytes=arrow_bytes)
    return record, statistics


def _write_rows(file: BinaryIO, shard: Shard) -> tuple[int, Statistics]:
    """Writes the rows of a shard as a Parquet file, one row group in memory at a time.

    Returns:
        Bytes the rows take in memory as Arrow, as `datasets` counts them, and the statistics of the rows.
    """
    config = CONFIGS[shard.config]
    schema, statistics = config.features.arrow_schema, Statistics(config.bands, shard.start)
    arrow_bytes, writer = 0, None
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(open_source(shard))
        for group in so2sat.blocks(shard.start, shard.stop, shard.group_rows):
            written = []
            for block in so2sat.blocks(*group):
                columns = reader.read(*block)
                if writer is None:
                    writer = stack.enter_context(pq.ParquetWriter(file, schema, **writer_options(schema, columns)))
                    writer.add_key_value_metadata({"content_defined_chunking": json.dumps(CONTENT_DEFINED_CHUNKING)})
                written.append(to_batch(columns, schema, shard.image_format))
                statistics.add(written[-1])
            table = pa.Table.from_batches(written).combine_chunks()
            arrow_bytes += table.nbytes
            assert writer is not None
            writer.write_table(table, row_group_size=shard.group_rows)
    return arrow_bytes, statistics


def to_batch(columns: dict[str, npt.NDArray[Any]], schema: pa.Schema, image_format: str) -> pa.RecordBatch:
    """Makes an Arrow batch of the columns that so2sat.read_columns gives, without a Python object per value."""
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
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


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
