"""Statistics: equal to NumPy's, whatever the division into batches and shards and the order of merging."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import hypothesis
import hypothesis.extra.numpy
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import strategies as st

import so2sat
from publishing import band_statistics, shards
from publishing.band_statistics import BandStatistics, Statistics
from publishing.configs import CONFIGS

Floats = npt.NDArray[np.float32]
Make = Callable[[np.random.Generator, tuple[int, ...]], npt.NDArray[Any]]

NAMES = ("a", "b", "c")
RELATIVE_BOUND = 2**-8
ABSOLUTE_BOUND = 2**-133


def _outliers(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    values = rng.normal(0, 1e-3, shape)
    values[0, 0, :2] = [[-5007.0], [12702.0]]  # in the first row, around which sums are taken
    return values


DISTRIBUTIONS: dict[str, Make] = {
    "normal": lambda rng, shape: rng.normal(0.1, 0.05, shape),
    "heavy tails": lambda rng, shape: rng.standard_t(1.5, shape) * 0.2,
    "outliers": _outliers,
    "offset, little noise": lambda rng, shape: 1e6 + rng.normal(0, 1e-1, shape),
    "offset, noise": lambda rng, shape: 1e6 + rng.normal(0, 1, shape),
    "negative": lambda rng, shape: -rng.lognormal(0, 2, shape),
    "quantised": lambda rng, shape: rng.integers(1, 4000, shape) / 10_000,
    "huge": lambda rng, shape: rng.uniform(-3.4e38, 3.4e38, shape),
    "zeros, many": lambda rng, shape: rng.normal(0, 1, shape) * (rng.random(shape) < 0.1),
}


def blocks_of(make: Make, rows: int = 70, bands: int = 3, seed: int = 0) -> Floats:
    return make(np.random.default_rng(seed), (rows, 32, 32, bands)).astype(np.float32)


def accumulated(values: npt.NDArray[Any], edges: tuple[int, ...] = (), first_row: int = 0) -> BandStatistics:
    """Statistics of a shard from `first_row` on, whose rows are added in batches that end at `edges`."""
    result = BandStatistics(NAMES[: values.shape[-1]], str(values.dtype))
    for start, stop in zip((0, *edges), (*edges, len(values))):
        if start < stop:
            result.add(values[start:stop], first_row)
    return result


def nearest_rank(values: npt.NDArray[Any], thousandths: int) -> float:
    return float(np.sort(values, axis=None)[-(-values.size * thousandths // 1000) - 1])


def assert_close_moments(found: dict[str, Any], mean: float, std: float, largest: float) -> None:
    assert found["mean"] == pytest.approx(mean, rel=1e-12, abs=1e-12 * std)
    assert found["std"] == pytest.approx(std, rel=1e-12, abs=1e-15 * largest)


def assert_like_numpy(found: dict[str, Any], values: Floats, step: int = 2) -> None:
    """Compares a band's summary with NumPy's results for its `values`, shape (rows, height, width)."""
    finite = values[np.isfinite(values)].astype(np.float64)
    assert found["count"] == finite.size
    assert found["nonfinite"] == values.size - finite.size
    assert found["min"] == finite.min()
    assert found["max"] == finite.max()
    assert_close_moments(found, finite.mean(), finite.std(), np.abs(finite).max())
    counted = values[:, ::step, ::step]
    counted = counted[np.isfinite(counted)].astype(np.float64)
    for name, thousandths in band_statistics.PERCENTILES.items():
        expected = nearest_rank(counted, thousandths)
        assert math.isclose(found["percentiles"][name], expected, rel_tol=RELATIVE_BOUND, abs_tol=ABSOLUTE_BOUND), name
        assert finite.min() <= found["percentiles"][name] <= finite.max()


# ── Values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS.keys())
@pytest.mark.parametrize("edges", [(), (1,), (16, 32, 48, 64)], ids=["whole", "a row first", "blocks"])
def test_equals_numpy_in_float64(make: Make, edges: tuple[int, ...]) -> None:
    values = blocks_of(make)
    for band, found in enumerate(accumulated(values, edges).summary()):
        assert_like_numpy(found, values[..., band])


def test_a_pixel_in_four_tells_as_much_of_percentiles_as_all_where_neighbours_are_alike() -> None:
    coarse = np.random.default_rng(0).lognormal(size=(500, 8, 8, 1))
    values = coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.float32)
    found = accumulated(values).summary()[0]["percentiles"]
    expected = [nearest_rank(values.ravel(), thousandths) for thousandths in band_statistics.PERCENTILES.values()]
    np.testing.assert_allclose(list(found.values()), expected, rtol=RELATIVE_BOUND)


@pytest.mark.parametrize("value", [0.1, -7.3, 0.0, 1e6 + 0.5, 3.4e38, 1e-45])
def test_constant(value: float) -> None:
    constant = np.full((5, 32, 32, 2), value, np.float32)
    exact = float(np.float32(value))
    for found in accumulated(constant, (2,)).summary():
        assert (found["mean"], found["std"], found["min"], found["max"]) == (exact, 0.0, exact, exact)
        assert set(found["percentiles"].values()) == {exact}  # the bin's middle is clipped


@pytest.mark.parametrize("step", [1, 2], ids=["alone", "among zeros"])
def test_negative_zero_is_zero(step: int) -> None:
    values = np.zeros((2, 32, 32, 1), np.float32)
    values[::step] = -0.0
    found = accumulated(values).summary()[0]
    numbers = [found["mean"], found["std"], found["min"], found["max"], *found["percentiles"].values()]
    assert [math.copysign(1.0, number) for number in numbers] == [1.0] * len(numbers)
    assert set(numbers) == {0.0}


# ── Not finite ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 20], ids=["first row", "later row"])
def test_non_finite_values_are_counted_and_left_out(bad: float, row: int) -> None:
    values = blocks_of(DISTRIBUTIONS["heavy tails"])
    clean = accumulated(values).summary()
    values[row, 4:6, :, 1] = bad
    found = accumulated(values).summary()
    assert found[1]["nonfinite"] == 64
    assert_like_numpy(found[1], values[..., 1])
    assert (found[0], found[2]) == (clean[0], clean[2])


def test_band_without_finite_values() -> None:
    values = blocks_of(DISTRIBUTIONS["normal"])
    values[..., 1] = np.nan
    found = accumulated(values, (30,)).summary()
    nothing = dict.fromkeys(("mean", "std", "min", "max", "percentiles"))
    assert found[1] == {"name": "b", "count": 0, "nonfinite": values[..., 1].size, **nothing}
    assert_like_numpy(found[0], values[..., 0])


def test_finite_values_only_where_pixels_are_not_counted_have_no_percentiles() -> None:
    values = np.full((1, 32, 32, 1), np.nan, np.float32)
    values[0, 1, 1, 0] = 3.0
    found = accumulated(values).summary()[0]
    assert (found["count"], found["mean"], found["percentiles"]) == (1, 3.0, None)


def test_no_rows() -> None:
    found = accumulated(np.empty((0, 32, 32, 2), np.float32)).summary()
    assert [(band["count"], band["nonfinite"], band["mean"]) for band in found] == [(0, 0, None)] * 2


# ── uint8 ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pixels_have_exact_percentiles() -> None:
    values = np.random.default_rng(0).binomial(255, 0.3, (50, 32, 32, 3)).astype(np.uint8)
    for band, found in enumerate(accumulated(values, (17,)).summary()):
        pixels = values[..., band].astype(np.float64)
        assert (found["count"], found["nonfinite"]) == (pixels.size, 0)
        assert (found["min"], found["max"]) == (pixels.min(), pixels.max())
        assert_close_moments(found, pixels.mean(), pixels.std(), 255.0)
        assert list(found["percentiles"].values()) == [
            nearest_rank(pixels.ravel(), thousandths) for thousandths in band_statistics.PERCENTILES.values()
        ]


# ── Merging ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def assert_same_but_for_rounding(found: BandStatistics, expected: BandStatistics) -> None:
    """Compares counts, extremes and histograms to the bit, mean and std to 1e-12."""
    np.testing.assert_array_equal(found.histogram, expected.histogram)
    for ours, theirs in zip(found.summary(), expected.summary()):
        rounded = ("mean", "std")
        assert {k: v for k, v in ours.items() if k not in rounded} == {
            k: v for k, v in theirs.items() if k not in rounded
        }
        if theirs["count"]:
            largest = max(abs(theirs["min"]), abs(theirs["max"]))
            assert_close_moments(ours, theirs["mean"], theirs["std"], largest)


arbitrary_values = hypothesis.extra.numpy.arrays(
    np.float32, st.tuples(st.integers(1, 8), st.just(3), st.just(2), st.just(2)), elements=st.floats(width=32)
)
scaled_values = st.builds(
    lambda seed, rows, tail, scale, offset: (
        np.random.default_rng(seed).standard_t(tail, (rows, 8, 8, 2)) * scale + offset
    ).astype(np.float32),
    st.integers(0, 1 << 32),
    st.integers(1, 30),
    st.sampled_from([1.2, 2.0, 100.0]),
    st.sampled_from([1e-20, 1e-3, 1.0, 1e6]),
    st.sampled_from([0.0, 1e-5, -1.0, 1e6]),
)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(values=arbitrary_values | scaled_values, data=st.data())
def test_any_division_into_batches_and_shards_gives_the_same(values: Floats, data: st.DataObject) -> None:
    cuts = st.lists(st.integers(0, len(values)), max_size=5).map(sorted)
    starts = data.draw(cuts, "shards")
    merged = BandStatistics(("a", "b"))
    for start, stop in zip((0, *starts), (*starts, len(values))):
        shard = values[start:stop]
        edges = data.draw(st.lists(st.integers(0, len(shard)), max_size=3).map(sorted), "batches")
        merged.merge(accumulated(shard, tuple(edges), start))
    assert_same_but_for_rounding(merged, accumulated(values))


@hypothesis.given(st.permutations(range(5)))
def test_shards_merged_in_any_order_give_the_same_bits(order: list[int]) -> None:
    def merged(order: Iterable[int]) -> list[dict[str, Any]]:
        result = BandStatistics(NAMES)
        for number in order:
            result.merge(of_shards[number])
        return result.summary()

    values = blocks_of(DISTRIBUTIONS["heavy tails"], rows=20)
    of_shards = [accumulated(values[row : row + 4], (3,), row) for row in range(0, 20, 4)]
    assert merged(order) == merged(range(5))


def test_a_shard_is_not_merged_twice() -> None:
    values = blocks_of(DISTRIBUTIONS["normal"], rows=2)
    with pytest.raises(ValueError, match="row 7"):
        accumulated(values, first_row=7).merge(accumulated(values, first_row=7))


@pytest.mark.parametrize(
    "block",
    [np.zeros((1, 32, 32, 3)), np.zeros((1, 32, 32, 2), np.float32), np.zeros((32, 32, 3), np.float32)],
    ids=["float64", "2 bands", "3 axes"],
)
def test_other_blocks_are_refused(block: npt.NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"expected float32 \(rows, height, width, 3\)"):
        BandStatistics(NAMES).add(block, 0)


# ── Batches ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def batch_of(config: str, source_folder: Path, start: int, stop: int, image_format: str = "jpeg") -> pa.RecordBatch:
    """Rows of train as a shard holds them."""
    with so2sat.open_source(f"{source_folder}/training.h5") as source:
        columns = so2sat.read_columns(source, config, start, stop)
    return shards.to_batch(columns, so2sat.features(config).arrow_schema, image_format)


def values_of(batch: pa.RecordBatch, column: str) -> npt.NDArray[Any]:
    """What `datasets` gives of a column."""
    features = datasets.Features.from_arrow_schema(batch.schema)
    rows = datasets.Dataset(pa.Table.from_batches([batch]), info=datasets.DatasetInfo(features=features))
    return np.stack([np.asarray(value) for value in rows.with_format("numpy")[:][column]])


@pytest.mark.parametrize("config", ["rgb", "all"])
def test_statistics_are_of_what_readers_get(config: str, source_folder: Path) -> None:
    statistics = Statistics(CONFIGS[config].bands)
    for start, stop in ((0, 128), (128, 256), (256, 300)):
        statistics.add(batch_of(config, source_folder, start, stop))
    summary = statistics.summary()
    whole = batch_of(config, source_folder, 0, 300)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    counts = np.bincount(whole["label"].to_numpy(), minlength=17).tolist()
    assert summary["patches_per_class"] == dict(zip(so2sat.LABELS, counts))
    assert {*summary["bands"]} == {*whole.schema.names} - {"label", "sample_id"}
    for column, bands in summary["bands"].items():
        assert [band["name"] for band in bands] == list(CONFIGS[config].bands[column])
        for band, found in enumerate(bands):
            assert_like_numpy(found, values_of(whole, column)[..., band], step=1 if config == "rgb" else 2)


def test_statistics_of_images_are_of_decoded_pixels(source_folder: Path) -> None:
    lossy, lossless = Statistics(CONFIGS["rgb"].bands), Statistics(CONFIGS["rgb"].bands)
    lossy.add(batch_of("rgb", source_folder, 0, 20))
    lossless.add(batch_of("rgb", source_folder, 0, 20, "png"))
    assert lossy.summary()["bands"] != lossless.summary()["bands"]


def test_a_label_out_of_range_is_an_error(source_folder: Path) -> None:
    batch = batch_of("rgb", source_folder, 0, 1)
    with pytest.raises(ValueError, match=r"17|broadcast"):
        Statistics(CONFIGS["rgb"].bands).add(batch.set_column(1, batch.schema.field("label"), pa.array([17])))
