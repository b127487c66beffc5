"""Whether a shard is what the manifest and its sources say: checksum, schema, ids, and every value."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import so2sat
from publishing import shards
from publishing.band_statistics import Statistics, to_numpy
from publishing.configs import CONFIGS, Reader
from publishing.shards import Shard, ShardRecord

MAX_DEGREES = 1e-9  # 0.1 mm, between a longitude or latitude and what is computed here
MIN_PSNR = 40.0  # dB between an image and what another version of Pillow makes of the same pixels


@dataclasses.dataclass(frozen=True)
class Task:
    """A shard to check.

    Attributes:
        folder: Root of the repository.
        shard: What it must hold; its source is empty when there is nothing to compare with.
        record: What the manifest says of the file.
        rows: Rows of the split to compare with the source, all of the shard's if None.
        same_pillow: Whether images were encoded by the Pillow of this process.
    """

    folder: Path
    shard: Shard
    record: ShardRecord
    rows: Sequence[int] | None = None
    same_pillow: bool = True


@dataclasses.dataclass
class Result:
    """What came of a task.

    Attributes:
        problems: What is wrong, in words.
        statistics: Of the shard's rows, if all could be read.
    """

    problems: list[str] = dataclasses.field(default_factory=list)
    statistics: Statistics | None = None


def check_shard(task: Task) -> Result:
    """Checks a shard: its checksum, its schema, the ids of all rows, and rows against the source."""
    result, path = Result(), task.folder / task.shard.name
    if not shards.has_sum(path, task.record):
        result.problems = [f"other bytes than {task.record.sha256[:16]}…, the SHA-256 in the manifest"]
        return result
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            found, expected = (
                datasets.Features.from_arrow_schema(file.schema_arrow),
                CONFIGS[task.shard.config].features,
            )
            if found == expected and file.schema_arrow.equals(expected.arrow_schema):
                result.problems = [*_row_problems(task, file, result)]
            else:
                result.problems = [f"features are {one_line(found)}, expected {one_line(expected)}"]
    except so2sat.SourceError as error:
        result.problems = [f"can't be compared ({error}), expected a sound source"]
    except Exception as error:  # damaged bytes lead anywhere: Arrow's errors, bad UTF-8, lack of memory
        result.problems = [f"can't be read ({one_line(error)}), expected a Parquet file as planned"]
    return result


def _row_problems(task: Task, file: pq.ParquetFile, result: Result) -> Iterator[str]:
    """What is wrong with the rows: for every column the first row, and how many more there are."""
    first, count = dict[str, str](), collections.Counter[str]()
    statistics = Statistics(CONFIGS[task.shard.config].bands, task.shard.start)
    with contextlib.ExitStack() as stack:
        is_compared = task.shard.source and task.rows != []
        reader = stack.enter_context(shards.open_source(task.shard)) if is_compared else None
        for start, batch in shards.batches(file, task.shard):
            statistics.add(batch)
            for name, text in _batch_problems(task, start, batch, reader):
                first.setdefault(name, text)
                count[name] += 1
    result.statistics = statistics
    for name, text in first.items():
        yield f"{text} (and {count[name] - 1:,} more rows)" if count[name] > 1 else text


def _batch_problems(task: Task, start: int, batch: pa.RecordBatch, reader: Reader | None) -> Iterator[tuple[str, str]]:
    """What is wrong with the rows of a batch: the column and how."""
    stop = start + batch.num_rows
    ids = batch["sample_id"].to_numpy()
    for row in np.flatnonzero(ids != np.arange(start, stop)).tolist():
        yield "sample_id", f"row {start + row} has sample_id {ids[row]}, expected {start + row}"
    if reader is None:
        return
    ranges = [(start, stop)]
    if task.rows is not None:
        ranges = [(row, row + 1) for row in task.rows if start <= row < stop]
    for low, high in ranges:
        expected = reader.read(low, high)
        for name in [name for name in expected if name != "sample_id"]:
            column = batch[name].slice(low - start, high - low)
            for row, text in _differences(task, name, column, expected[name]):
                yield name, f"row {low + row} has {name}{text} as in {reader.path}"


def _differences(task: Task, name: str, found: pa.Array, expected: npt.NDArray[Any]) -> Iterator[tuple[int, str]]:
    """Rows of a column that differ from the source: the row, and what was found and expected."""
    if pa.types.is_struct(found.type):
        yield from _different_images(task, found, expected)
        return
    values = to_numpy(found)
    if isinstance(found, pa.ExtensionArray):
        # Bits, so that NaN equals NaN and -0 is not 0.
        differs = values.view(np.uint32) != np.ascontiguousarray(expected).view(np.uint32)
    else:
        # Another version of PROJ may compute the last digits of a longitude otherwise.
        is_degree = name in ("longitude", "latitude")
        differs = ~(np.abs(values - expected) <= MAX_DEGREES) if is_degree else values != expected
    for row in np.flatnonzero(differs.reshape(len(differs), -1).any(axis=1)):
        at = (row, *np.argwhere(differs[row])[0])
        place = f"[{', '.join(map(str, at[1:]))}] =" if len(at) > 1 else ""
        yield int(row), f"{place} {values[at]}, expected {expected[at]}"


def _different_images(task: Task, found: pa.Array, expected: npt.NDArray[np.uint8]) -> Iterator[tuple[int, str]]:
    """Rows whose image is not what the source makes: the same bytes, or from another Pillow nearly the same pixels."""
    files = pc.struct_field(found, "bytes").to_pylist()
    encoded = so2sat.encode_images(expected, task.shard.image_format)
    for row, (file, other) in enumerate(zip(files, encoded, strict=True)):
        if file != other:
            psnr = _psnr(file, other)
            if psnr < (math.inf if task.shard.image_format == "png" or task.same_pillow else MIN_PSNR):
                yield row, f" with other pixels (PSNR {psnr:.1f} dB), expected those"


def _psnr(file: bytes, other: bytes) -> float:
    """How near the pixels of two images are, in dB: infinity if they are the same."""
    pixels, others = (np.asarray(PIL.Image.open(io.BytesIO(image)), np.float64) for image in (file, other))
    noise = float(np.mean((pixels - others) ** 2))
    return 10 * math.log10(255**2 / noise) if noise else math.inf


def one_line(found: object) -> str:
    """An error or another thing as one line of at most 200 characters."""
    text = so2sat.printable(found) or type(found).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"
