"""Statistics of what readers get of a config's rows: counts, moments, extremes and percentiles, in one pass.

METHOD says what the figures are. Mean and M2, the sum of squared deviations, are accumulated in float64 by batches,
each batch's sums around a value near its own mean; batches and shards are merged as Chan et al. 1983 do, so that
neither a large offset nor heavy tails cost more than the last digits. The order of additions is fixed and no BLAS is
involved: results depend on the rows and their division into shards and batches, not on threads or the order of merging.

Histograms are of integers, whose merging is exact in any order. A float32's bin is the upper half of its bits (sign,
exponent and 7 bits of the mantissa) and stands for its middle, at most 2**-8 = 0.39 % away from any value in it (below
2**-126 in magnitude: at most 2**-133, absolute). Neighbours are much alike, so that one pixel in four tells nearly as
much as all. A uint8 has a bin per value, so everything about it is exact and comes from the histogram.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc

import so2sat

# What is shipped with the statistics.
METHOD = (
    "Of finite values. count, min and max: exact, over all pixels. mean and std (population): over all pixels, in"
    " float64. percentiles: nearest rank; of images, which are decoded, exact, over all pixels; of float32 bands over"
    " the pixels in even lines and columns of every patch (one in four), from a histogram with a relative error of at"
    " most 0.39 % besides that of sampling, within [min, max]."
)

# In thousandths, so that ranks are computed with integers.
PERCENTILES: Mapping[str, int] = {"0.1": 1, "1": 10, "50": 500, "99": 990, "99.9": 999}

BINS = {"float32": 1 << 16, "uint8": 1 << 8}
PIXEL_STEP = 2  # from one line or column of float32 that goes into the histogram to the next

Block = npt.NDArray[np.float32 | np.uint8]
Moments = npt.NDArray[np.float64]  # shape (5, bands): count, mean, M2, minimum and maximum of the finite values


class Statistics:
    """Statistics of rows of a config: of a shard, of a split.

    Attributes:
        first_row: The first row of the shard, by which the order of merging is fixed.
        patches_per_class: Shape (17,), int64.
        bands: The statistics of every column with pixels, by column.
    """

    def __init__(self, bands: Mapping[str, Sequence[str]], first_row: int = 0) -> None:
        """Makes the statistics of no rows, given the names of the bands of every column with pixels."""
        self.first_row = first_row
        self.patches_per_class: npt.NDArray[np.int64] = np.zeros(len(so2sat.LABELS), np.int64)
        self.bands = {
            column: BandStatistics(names, "uint8" if column == "image" else "float32")
            for column, names in bands.items()
        }

    def add(self, batch: pa.RecordBatch) -> None:
        """Adds a batch of the shard's rows, as it is in the shard.

        Raises:
            ValueError: It has a label that is none, or a column of another shape or dtype.
        """
        self.patches_per_class += np.bincount(batch["label"].to_numpy(), minlength=len(so2sat.LABELS))
        for column, statistics in self.bands.items():
            statistics.add(to_numpy(batch[column]), self.first_row)

    def merge(self, other: Statistics) -> None:
        """Adds the rows of another shard, or of several. The order of merging makes no difference."""
        self.patches_per_class += other.patches_per_class
        for column, statistics in self.bands.items():
            statistics.merge(other.bands[column])

    def summary(self) -> dict[str, Any]:
        """Makes a JSON object: patches per class by name, and by column a list of bands."""
        patches = dict(zip(so2sat.LABELS, self.patches_per_class.tolist()))
        columns = {column: statistics.summary() for column, statistics in self.bands.items()}
        return {"patches_per_class": patches, "bands": columns}


def to_numpy(column: pa.Array) -> npt.NDArray[Any]:
    """What readers get of a column.

    Returns:
        Of arrays a view of shape (rows, height, width, bands), float32; of images their pixels, shape (rows, height,
        width, 3), uint8; of other values shape (rows,).

    Raises:
        ValueError: Arrays or images of one column differ in shape, or there are nulls among them.
        OSError: An image can't be decoded.
    """
    if isinstance(column, pa.ExtensionArray):
        values = column.storage
        for _ in column.type.shape:
            values = values.flatten()
        array: npt.NDArray[Any] = values.to_numpy().reshape(len(column), *column.type.shape)
        return array
    if pa.types.is_struct(column.type):  # an image
        images = pc.struct_field(column, "bytes").to_pylist()
        formats = [options["format"] for options in so2sat.IMAGE_FORMATS.values()]  # to look for others takes time
        return np.stack([np.asarray(PIL.Image.open(io.BytesIO(image), formats=formats)) for image in images])
    return np.asarray(column.to_numpy(zero_copy_only=False))


class BandStatistics:
    """Statistics of the bands of one column.

    Attributes:
        names: Names of the bands.
        dtype: "float32" or "uint8".
        size: Values added per band.
        moments: Those of float32 bands, see Moments, of every shard by its first row.
        histogram: How many finite values fall into which bin, shape (bands, BINS[dtype]), int64.
    """

    def __init__(self, names: Sequence[str], dtype: str = "float32") -> None:
        """Makes the statistics of no rows."""
        self.names, self.dtype, self.size = names, dtype, 0
        self.moments: dict[int, Moments] = {}
        self.histogram = np.zeros((len(names), BINS[dtype]), np.int64)

    def add(self, block: Block, first_row: int) -> None:
        """Adds rows of the shard that begins with `first_row`.

        Args:
            block: Shape (rows, height, width, bands), of this object's dtype, at least one row.
            first_row: First row of the shard.

        Raises:
            ValueError: It is something else.
        """
        bands = len(self.names)
        if block.ndim != 4 or block.shape[-1] != bands or block.dtype != self.dtype:
            raise ValueError(
                f"block is {block.dtype} {block.shape}, expected {self.dtype} (rows, height, width, {bands})"
            )
        self.size += block.size // bands
        if self.dtype == "uint8":
            bins = block.reshape(-1, bands)
        else:
            block = np.ascontiguousarray(block)
            moments = _of_block(block)
            self.moments[first_row] = _merged(self.moments.get(first_row, _of_nothing(bands)), moments)
            sample = block[:, ::PIXEL_STEP, ::PIXEL_STEP].astype("<f4", copy=False)
            bins = sample.view("<u2")[..., 1::2].reshape(-1, bands)
        for band, histogram in enumerate(self.histogram):
            found = np.bincount(bins[:, band])  # only as long as its highest bin needs, which is fast
            histogram[: len(found)] += found

    def merge(self, other: BandStatistics) -> None:
        """Adds the rows of other shards.

        Raises:
            ValueError: One begins with the same row as one that was added.
        """
        if twice := self.moments.keys() & other.moments.keys():
            raise ValueError(f"the shard from row {min(twice)} was added already")
        self.size += other.size
        self.moments |= other.moments
        self.histogram += other.histogram

    def summary(self) -> list[dict[str, Any]]:
        """Makes a JSON object per band.

        Returns:
            `name`, `count`, `nonfinite`, `mean`, `std`, `min`, `max` and `percentiles`, by the names in PERCENTILES, of
            each band. All but name and counts are None where there are no finite values.
        """
        of_shards = [moments for _, moments in sorted(self.moments.items())]
        moments = functools.reduce(_merged, of_shards, _of_nothing(len(self.names)))
        if self.dtype == "uint8" and self.size:
            moments = _of_counts(self.histogram)
        bands = []
        for name, histogram, (count, mean, m2, low, high) in zip(self.names, self.histogram, moments.T.tolist()):
            figures: dict[str, Any] = dict.fromkeys(("mean", "std", "min", "max", "percentiles"))
            if count:
                percentiles = _percentiles(histogram, self.dtype, low, high)
                std = float(np.sqrt(m2 / count))
                figures = {"mean": mean, "std": std, "min": low, "max": high, "percentiles": percentiles}
            bands.append({"name": name, "count": int(count), "nonfinite": self.size - int(count), **figures})
        return bands


# ┌───────────┐
# │  Moments  │
# └───────────┘


def _of_nothing(bands: int) -> Moments:
    moments = np.zeros((5, bands))
    moments[3:] = [[np.inf], [-np.inf]]
    return moments


def _of_counts(counts: npt.NDArray[np.int64]) -> Moments:
    """Those of uint8 pixels, at least one a band, of which `counts` (bands, 256) have each value."""
    values = np.arange(256)
    count = counts.sum(axis=1)
    mean = (counts * values).sum(axis=1) / count
    m2 = (counts * (values - mean[:, None]) ** 2).sum(axis=1)
    return np.stack([count, mean, m2, (counts > 0).argmax(axis=1), 255 - (counts[:, ::-1] > 0).argmax(axis=1)])


def _of_block(block: Block) -> Moments:
    """Those of a block of float32, contiguous, at least one row, the last axis being the bands."""
    bands = block.shape[-1]
    with np.errstate(invalid="ignore"):
        moments = _of_finite(block.reshape(len(block), -1), bands)
    # A sum of float32 values can't overflow float64: it is finite if and only if all of them are.
    for band in np.flatnonzero(~np.isfinite(moments[1])):
        values = block[..., band]
        values = values[np.isfinite(values)]
        moments[:, [band]] = _of_finite(values.reshape(1, -1), 1) if values.size else _of_nothing(1)
    return moments


def _of_finite(rows: Block, bands: int) -> Moments:
    """Those of rows of shape (rows, pixels × bands), without copying them or moving bands apart.

    Sums are around the mean of the first row. That may be outliers alone, but then M2 is large too: of R rows, one
    alone makes it at least (its mean - the mean)² × pixels, so this costs a factor of R + 1 in precision at most.
    """
    width = rows.shape[1]
    pixels = width // bands
    shift = rows[0].astype(np.float64).reshape(pixels, bands).sum(axis=0) / pixels
    shifts = np.tile(shift, pixels)
    deviation, total, squares = np.empty(width), np.zeros(width), np.zeros(width)
    for row in rows:  # one at a time, they stay in the processor's cache
        np.subtract(row, shifts, out=deviation)
        total += deviation
        deviation *= deviation
        squares += deviation
    count = len(rows) * pixels
    offset = total.reshape(pixels, bands).sum(axis=0) / count
    m2 = squares.reshape(pixels, bands).sum(axis=0) - offset * offset * count
    low = rows.min(axis=0).reshape(pixels, bands).min(axis=0)
    high = rows.max(axis=0).reshape(pixels, bands).max(axis=0)
    # Rounding may leave M2 below 0; and -0.0 becomes 0.0, because which zero is found first is arbitrary.
    return np.stack([np.full(bands, float(count)), shift + offset, m2.clip(0.0), low + 0.0, high + 0.0])


def _merged(first: Moments, second: Moments) -> Moments:
    count = first[0] + second[0]
    share = second[0] / np.maximum(count, 1)
    difference = second[1] - first[1]
    mean = first[1] + difference * share
    m2 = first[2] + second[2] + difference * difference * first[0] * share
    return np.stack([count, mean, m2, np.minimum(first[3], second[3]), np.maximum(first[4], second[4])])


def _percentiles(histogram: npt.NDArray[np.int64], dtype: str, low: float, high: float) -> dict[str, float] | None:
    """Those of a band from its histogram and extremes; None if all finite values are among the pixels left out."""
    values = _bin_values(dtype)
    order = np.argsort(values, kind="stable")
    order = order[np.isfinite(values[order])]
    cumulative = histogram[order].cumsum()
    counted = int(cumulative[-1])
    if not counted:
        return None
    ranks = [-(-counted * thousandths // 1000) for thousandths in PERCENTILES.values()]
    found = values[order[np.searchsorted(cumulative, ranks)]].clip(low, high)
    return dict(zip(PERCENTILES, found.tolist()))


def _bin_values(dtype: str) -> npt.NDArray[np.float64]:
    """The value each bin stands for: its middle, zero for the two bins of zeros, not finite for those of no number."""
    bins = np.arange(BINS[dtype], dtype=np.uint32)
    if dtype == "uint8":
        return bins.astype(np.float64)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        values = (bins << 16 | 1 << 15).view(np.float32).astype(np.float64)
    values[[0, 1 << 15]] = 0.0
    return values
