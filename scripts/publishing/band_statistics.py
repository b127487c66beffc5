"""Statistics of a config's bands: counts, moments, extremes and percentiles in one pass, mergeable over shards.

Counts, minimum, maximum, mean and standard deviation are over every pixel; minimum, maximum and counts are exact. Mean
and M2 (the sum of squared deviations) are accumulated in float64, block by block, each block's sums around a value
near its own mean; blocks and shards are merged as Chan et al. 1983 do, so that neither a large offset nor heavy tails
cost more than the last digits. The order of additions is fixed and no BLAS is involved: the results depend on the rows,
their division into blocks and the order of merging, not on threads.

Percentiles come from histograms of integers, whose merging is exact in any order. A float32's bin is the upper half of
its bits (sign, exponent and 7 bits of the mantissa) and stands for its middle, which is at most 2**-8 = 0.39 % away
from any value in it (below 2**-126 in magnitude: at most 2**-133, absolute). To be fast the histograms of float32 bands
count one pixel in four, those in even lines and columns of a patch; neighbours are much alike, so these tell nearly as
much. A percentile p is the nearest rank: the smallest value that at least p % of the counted values don't exceed. For
uint8 every pixel is counted and there is a bin per value, so the percentiles are exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import so2sat

# What is shipped with the statistics.
METHOD = (
    "Of finite values. count, min and max: exact, over all pixels. mean and std (population): over all pixels, in"
    " float64. percentiles: nearest rank; of 8-bit images exact, over all pixels; of float32 bands over the pixels in"
    " even lines and columns of every patch (one in four), from a histogram with a relative error of at most 0.39 %"
    " besides that of sampling, within [min, max]."
)

# The bands of the arrays, by the kind of a config.
BANDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "rgb": {"image": ("red", "green", "blue")},
    "all": {
        "sentinel1": tuple(band.name for band in so2sat.SENTINEL1_BANDS),
        "sentinel2": tuple(band.name for band in so2sat.SENTINEL2_BANDS),
    },
    "geo": {},
}
DTYPES: Mapping[str, str] = {"rgb": "uint8", "all": "float32"}

# In thousandths, so that ranks are computed with integers.
PERCENTILES: Mapping[str, int] = {"0.1": 1, "1": 10, "50": 500, "99": 990, "99.9": 999}

HISTOGRAM_BINS = {"float32": 1 << 16, "uint8": 1 << 8}
PIXEL_STEP = 2  # from one line or column of float32 that goes into the histogram to the next

Block = npt.NDArray[np.float32 | np.uint8]


class BandStatistics:
    """Statistics of the bands of one array.

    Attributes:
        dtype: "float32" or "uint8".
        nonfinite: Values that are NaN or infinite and count for nothing else, shape (bands,), int64.
        moments: Count, mean, M2, minimum and maximum of the others.
        histogram: How many of them fall into which bin, shape (bands, HISTOGRAM_BINS[dtype]), int64.
    """

    def __init__(self, bands: int, dtype: str = "float32") -> None:
        """Makes the statistics of no rows."""
        self.dtype = dtype
        self.nonfinite = np.zeros(bands, np.int64)
        self.moments = _Moments.of_nothing(bands)
        self.histogram = np.zeros((bands, HISTOGRAM_BINS[dtype]), np.int64)

    def add(self, block: Block) -> None:
        """Adds rows.

        Args:
            block: Shape (rows, height, width, bands), of this object's dtype.

        Raises:
            ValueError: It is something else.
        """
        bands = len(self.histogram)
        if block.ndim != 4 or block.shape[-1] != bands or block.dtype != self.dtype:
            raise ValueError(
                f"block is {block.dtype} {block.shape}, expected {self.dtype} (rows, height, width, {bands})"
            )
        if block.size == 0:
            return
        block = np.ascontiguousarray(block)
        if block.dtype == np.uint8:  # its histogram tells everything
            counts = np.stack([np.bincount(pixels, minlength=256) for pixels in block.reshape(-1, bands).T])
            moments = _Moments.of_counts(counts)
            self.histogram += counts
        else:
            moments = _Moments.of(block)
            sample = block[:, ::PIXEL_STEP, ::PIXEL_STEP].astype("<f4", copy=False)
            bins = sample.view("<u2")[..., 1::2].reshape(-1, bands)
            for band, histogram in enumerate(self.histogram):
                found = np.bincount(bins[:, band])  # only as long as its highest bin needs, which is fast
                histogram[: len(found)] += found
        self.nonfinite = self.nonfinite + (block.size // bands - moments.count)
        self.moments = self.moments.merged(moments)

    def merge(self, other: BandStatistics) -> None:
        """Adds the rows of another; always in the same order, or the last digits of mean and std may differ.

        Raises:
            ValueError: It is of other bands.
        """
        if (self.dtype, self.histogram.shape) != (other.dtype, other.histogram.shape):
            raise ValueError(
                f"{len(other.histogram)} bands of {other.dtype}, expected {len(self.histogram)} of {self.dtype}"
            )
        self.nonfinite = self.nonfinite + other.nonfinite
        self.moments = self.moments.merged(other.moments)
        self.histogram += other.histogram

    def summary(self) -> list[dict[str, Any]]:
        """Makes a JSON object per band.

        Returns:
            `count`, `nonfinite`, `mean`, `std`, `min`, `max` and `percentiles`, by the names in PERCENTILES, of each
            band. All but the counts are None where there are no finite values.
        """
        return [self._summary(band) for band in range(len(self.histogram))]

    def _summary(self, band: int) -> dict[str, Any]:
        count = int(self.moments.count[band])
        low, high = float(self.moments.min[band]), float(self.moments.max[band])
        result: dict[str, Any] = {"count": count, "nonfinite": int(self.nonfinite[band])}
        if count == 0:
            return {**result, **dict.fromkeys(("mean", "std", "min", "max", "percentiles"))}
        values = _bin_values(self.dtype)
        order = np.argsort(values, kind="stable")
        order = order[np.isfinite(values[order])]
        cumulative = self.histogram[band, order].cumsum()
        counted = int(cumulative[-1])
        percentiles = None
        if counted:  # else all finite values are among the pixels left out
            ranks = [-(-counted * thousandths // 1000) for thousandths in PERCENTILES.values()]
            found = values[order[np.searchsorted(cumulative, ranks)]].clip(low, high)
            percentiles = dict(zip(PERCENTILES, found.tolist()))
        return {
            **result,
            "mean": float(self.moments.mean[band]),
            "std": float(np.sqrt(self.moments.m2[band] / count)),
            "min": low,
            "max": high,
            "percentiles": percentiles,
        }

    def to_arrays(self) -> dict[str, Any]:
        """Makes a dict of arrays for np.savez, from which from_arrays makes the same again, to the bit."""
        filled = np.flatnonzero(self.histogram)
        return {
            "dtype": np.array(self.dtype),
            "nonfinite": self.nonfinite,
            **vars(self.moments),
            "histogram_bins": filled.astype(np.uint32),
            "histogram_counts": self.histogram.reshape(-1)[filled],
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> BandStatistics:
        """Makes what to_arrays was called on.

        Raises:
            KeyError: An array is missing.
        """
        result = cls(len(arrays["count"]), str(arrays["dtype"]))
        result.nonfinite = arrays["nonfinite"]
        result.moments = _Moments(**{field.name: arrays[field.name] for field in dataclasses.fields(_Moments)})
        result.histogram.reshape(-1)[arrays["histogram_bins"]] = arrays["histogram_counts"]
        return result


class ConfigStatistics:
    """Statistics of rows of a config: of a shard, of a split.

    Attributes:
        kind: The config's kind, "rgb", "all" or "geo".
        patches_per_class: Shape (17,), int64.
        bands: The statistics of every array by its column.
    """

    def __init__(self, kind: str) -> None:
        """Makes the statistics of no rows of a config of this kind."""
        self.kind = kind
        self.patches_per_class = np.zeros(len(so2sat.LABELS), np.int64)
        self.bands = {name: BandStatistics(len(bands), DTYPES[kind]) for name, bands in BANDS[kind].items()}

    def add(self, labels: npt.NDArray[np.int64], blocks: Mapping[str, Block]) -> None:
        """Adds rows.

        Args:
            labels: Class indices, shape (rows,), int64.
            blocks: `image` (rows, 32, 32, 3), uint8, or `sentinel1` (rows, 32, 32, 8) and `sentinel2`
                (rows, 32, 32, 10), float32. Other entries are ignored.
        """
        self.patches_per_class = self.patches_per_class + np.bincount(labels, minlength=len(so2sat.LABELS))
        for name, statistics in self.bands.items():
            statistics.add(blocks[name])

    def merge(self, other: ConfigStatistics) -> None:
        """Adds the rows of another; always in the same order, see BandStatistics.merge."""
        self.patches_per_class = self.patches_per_class + other.patches_per_class
        for name, statistics in self.bands.items():
            statistics.merge(other.bands[name])

    def summary(self) -> dict[str, Any]:
        """Makes a JSON object: patches per class by name, and by column a list of bands with names."""
        columns = {
            column: [{"name": name, **band} for name, band in zip(BANDS[self.kind][column], statistics.summary())]
            for column, statistics in self.bands.items()
        }
        patches = dict(zip(so2sat.LABELS, self.patches_per_class.tolist()))
        return {"patches_per_class": patches, "bands": columns}

    def to_arrays(self) -> dict[str, Any]:
        """Makes a dict of arrays for np.savez, from which from_arrays makes the same again, to the bit."""
        arrays = {
            f"{column}.{name}": array
            for column, statistics in self.bands.items()
            for name, array in statistics.to_arrays().items()
        }
        return {"kind": np.array(self.kind), "patches_per_class": self.patches_per_class, **arrays}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> ConfigStatistics:
        """Makes what to_arrays was called on; an open .npz file will do.

        Raises:
            KeyError: An array is missing.
        """
        result = cls(str(arrays["kind"]))
        result.patches_per_class = arrays["patches_per_class"]
        for column in result.bands:
            prefix = f"{column}."
            members = {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
            result.bands[column] = BandStatistics.from_arrays(members)
        return result


@dataclasses.dataclass(frozen=True)
class _Moments:
    """Count (int64), mean, M2, minimum and maximum (float64) of the finite values of bands, shape (bands,) each."""

    count: npt.NDArray[np.int64]
    mean: npt.NDArray[np.float64]
    m2: npt.NDArray[np.float64]
    min: npt.NDArray[np.float64]
    max: npt.NDArray[np.float64]

    @classmethod
    def of_nothing(cls, bands: int) -> _Moments:
        zeros = np.zeros(bands)
        return cls(np.zeros(bands, np.int64), zeros, zeros, np.full(bands, np.inf), np.full(bands, -np.inf))

    @classmethod
    def of_counts(cls, counts: npt.NDArray[np.int64]) -> _Moments:
        """Those of uint8 pixels, at least one a band, of which `counts` (bands, 256) have each value."""
        values = np.arange(256)
        count = counts.sum(axis=1)
        mean = (counts * values).sum(axis=1) / count
        m2 = (counts * (values - mean[:, None]) ** 2).sum(axis=1)
        low, high = (counts > 0).argmax(axis=1), 255 - (counts[:, ::-1] > 0).argmax(axis=1)
        return cls(count, mean, m2, low.astype(np.float64), high.astype(np.float64))

    @classmethod
    def of(cls, block: Block) -> _Moments:
        """Those of a block of float32, contiguous, at least one row, the last axis being the bands."""
        bands = block.shape[-1]
        with np.errstate(invalid="ignore"):
            moments = cls._of_finite(block.reshape(len(block), -1), bands)
        # A sum of float32 values can't overflow float64: it is finite if and only if all of them are.
        for band in np.flatnonzero(~np.isfinite(moments.mean)):
            values = block[..., band]
            values = values[np.isfinite(values)]
            found = cls._of_finite(values.reshape(1, -1), 1) if values.size else cls.of_nothing(1)
            for mine, its in zip(vars(moments).values(), vars(found).values()):
                mine[band] = its[0]
        return moments

    @classmethod
    def _of_finite(cls, rows: Block, bands: int) -> _Moments:
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
            deviation[:] = row
            deviation -= shifts
            total += deviation
            deviation *= deviation
            squares += deviation
        count = len(rows) * pixels
        offset = total.reshape(pixels, bands).sum(axis=0) / count
        m2 = squares.reshape(pixels, bands).sum(axis=0) - offset * offset * count
        low = rows.min(axis=0).reshape(pixels, bands).min(axis=0)
        high = rows.max(axis=0).reshape(pixels, bands).max(axis=0)
        return cls(
            np.full(bands, count),
            shift + offset,
            m2.clip(0.0),  # rounding may leave less than nothing
            low + np.zeros(bands),  # in float64, and -0.0 becomes 0.0: which zero is found first is arbitrary
            high + np.zeros(bands),
        )

    def merged(self, other: _Moments) -> _Moments:
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        difference = other.mean - self.mean
        return _Moments(
            count,
            self.mean + difference * share,
            self.m2 + other.m2 + difference * difference * self.count * share,
            np.minimum(self.min, other.min),
            np.maximum(self.max, other.max),
        )


def _bin_values(dtype: str) -> npt.NDArray[np.float64]:
    """The value each bin stands for: its middle, zero for the two bins of zeros, not finite for those of no number."""
    bins = np.arange(HISTOGRAM_BINS[dtype], dtype=np.uint32)
    if dtype == "uint8":
        return bins.astype(np.float64)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        values = (bins << 16 | 1 << 15).view(np.float32).astype(np.float64)
    values[[0, 1 << 15]] = 0.0
    return values
