from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.extra.numpy
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st

import so2sat
from publishing import band_statistics
from publishing.band_statistics import BandStatistics, ConfigStatistics

Floats = npt.NDArray[np.float32]
Make = Callable[[np.random.Generator, tuple[int, ...]], npt.NDArray[Any]]

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


def accumulated(values: npt.NDArray[Any], edges: tuple[int, ...] = ()) -> BandStatistics:
    """Statistics of rows that are added in blocks ending at `edges`."""
    result = BandStatistics(values.shape[-1], str(values.dtype))
    for start, stop in zip((0, *edges), (*edges, len(values))):
        result.add(values[start:stop])
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


# ┌──────────┐
# │  Values  │
# └──────────┘


@pytest.mark.parametrize("make", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS.keys())
@pytest.mark.parametrize("edges", [(), (1,), (16, 32, 48, 64)], ids=["whole", "a row first", "blocks"])
def test_equals_numpy_in_float64(make: Make, edges: tuple[int, ...]) -> None:
    values = blocks_of(make)
    for band, found in enumerate(accumulated(values, edges).summary()):
        assert_like_numpy(found, values[..., band])


def test_float32_sums_would_not_do() -> None:
    values = blocks_of(DISTRIBUTIONS["offset, little noise"], bands=1)
    exact = values.astype(np.float64).std()
    squares = np.square(values, dtype=np.float64).mean() - values.astype(np.float64).mean() ** 2
    assert abs(np.sqrt(max(squares, 0.0)) / exact - 1) > 1e-6  # nor sums of squares in float64
    assert accumulated(values).summary()[0]["std"] == pytest.approx(exact, rel=1e-12)


def test_percentiles_are_nearest_ranks_as_numpys() -> None:
    values = blocks_of(DISTRIBUTIONS["heavy tails"], rows=33)
    for band, found in enumerate(accumulated(values).summary()):
        expected = np.percentile(
            values[:, ::2, ::2, band], [0.1, 1.0, 50.0, 99.0, 99.9], method="inverted_cdf"
        )  # of the pixels that are counted
        np.testing.assert_allclose(list(found["percentiles"].values()), expected, rtol=RELATIVE_BOUND)


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


def test_one_value() -> None:
    found = accumulated(np.full((1, 1, 1, 1), -2.5, np.float32)).summary()
    percentiles = dict.fromkeys(band_statistics.PERCENTILES, -2.5)
    assert found == [
        {"count": 1, "nonfinite": 0, "mean": -2.5, "std": 0.0, "min": -2.5, "max": -2.5, "percentiles": percentiles}
    ]


def test_subnormal() -> None:
    values = (np.random.default_rng(0).integers(-(2**23), 2**23, (40, 32, 32, 1)) * 2.0**-149).astype(np.float32)
    found = accumulated(values).summary()[0]
    finite = values.astype(np.float64)
    assert (found["min"], found["max"]) == (finite.min(), finite.max())
    assert_close_moments(found, finite.mean(), finite.std(), np.abs(finite).max())
    for name, thousandths in band_statistics.PERCENTILES.items():
        expected = nearest_rank(finite[:, ::2, ::2], thousandths)
        assert abs(found["percentiles"][name] - expected) <= ABSOLUTE_BOUND


@pytest.mark.parametrize("step", [1, 2], ids=["alone", "among zeros"])
def test_negative_zero_is_zero(step: int) -> None:
    values = np.zeros((2, 32, 32, 1), np.float32)
    values[::step] = -0.0
    found = accumulated(values).summary()[0]
    numbers = [found["mean"], found["std"], found["min"], found["max"], *found["percentiles"].values()]
    assert [math.copysign(1.0, number) for number in numbers] == [1.0] * len(numbers)
    assert set(numbers) == {0.0}


def test_median_of_mostly_zeros_is_zero() -> None:
    found = accumulated(blocks_of(DISTRIBUTIONS["zeros, many"])).summary()
    assert [band["percentiles"]["50"] for band in found] == [0.0] * 3


# ┌──────────────┐
# │  Not finite  │
# └──────────────┘


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


def test_every_kind_of_value_at_once() -> None:
    rng = np.random.default_rng(0)
    values = blocks_of(DISTRIBUTIONS["heavy tails"])
    values[rng.random(values.shape) < 0.3] = -0.0
    for bad in (np.nan, np.inf, -np.inf):
        values[rng.random(values.shape) < 0.1] = bad
    for band, found in enumerate(accumulated(values, (7, 8, 50)).summary()):
        assert_like_numpy(found, values[..., band])


def test_signalling_nan_is_no_value() -> None:
    values = np.array([0x7F800001, 0xFF800001, 0x3F800000, 0x3F800000], np.uint32).view(np.float32).reshape(1, 2, 2, 1)
    found = accumulated(values).summary()[0]
    assert (found["count"], found["nonfinite"], found["mean"], found["min"], found["max"]) == (2, 2, 1.0, 1.0, 1.0)


def test_band_without_finite_values() -> None:
    values = blocks_of(DISTRIBUTIONS["normal"])
    values[..., 1] = np.nan
    found = accumulated(values, (30,)).summary()
    nothing = dict.fromkeys(("mean", "std", "min", "max", "percentiles"))
    assert found[1] == {"count": 0, "nonfinite": values[..., 1].size, **nothing}
    assert_like_numpy(found[0], values[..., 0])


def test_finite_values_only_where_pixels_are_not_counted_have_no_percentiles() -> None:
    values = np.full((1, 32, 32, 1), np.nan, np.float32)
    values[0, 1, 1, 0] = 3.0
    found = accumulated(values).summary()[0]
    assert (found["count"], found["mean"], found["percentiles"]) == (1, 3.0, None)


def test_band_that_begins_after_blocks_without_values() -> None:
    values = blocks_of(DISTRIBUTIONS["offset, noise"])
    values[:40] = np.nan
    for band, found in enumerate(accumulated(values, (20, 45)).summary()):
        assert_like_numpy(found, values[..., band])


@pytest.mark.parametrize("edges", [(), (0,)])
def test_no_rows(edges: tuple[int, ...]) -> None:
    found = accumulated(np.empty((0, 32, 32, 2), np.float32), edges).summary()
    assert [(band["count"], band["nonfinite"], band["mean"]) for band in found] == [(0, 0, None)] * 2


# ┌─────────┐
# │  uint8  │
# └─────────┘


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


@pytest.mark.parametrize("value", [0, 1, 255])
def test_constant_pixels(value: int) -> None:
    for found in accumulated(np.full((3, 5, 7, 2), value, np.uint8), (1,)).summary():
        assert (found["count"], found["mean"], found["std"], found["min"], found["max"]) == (
            105,
            value,
            0,
            value,
            value,
        )
        assert set(found["percentiles"].values()) == {value}


# ┌───────────┐
# │  Merging  │
# └───────────┘


def assert_same(found: BandStatistics, expected: BandStatistics) -> None:
    """Compares to the bit."""
    ours, theirs = found.to_arrays(), expected.to_arrays()
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype, name
        assert array.tobytes() == theirs[name].tobytes(), name


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
def test_any_division_into_blocks_and_shards_gives_the_same(values: Floats, data: st.DataObject) -> None:
    cuts = st.lists(st.integers(0, len(values)), max_size=5).map(sorted)
    shards = data.draw(cuts, "shards")
    merged = BandStatistics(2)
    for start, stop in zip((0, *shards), (*shards, len(values))):
        shard = values[start:stop]
        edges = data.draw(st.lists(st.integers(0, len(shard)), max_size=3).map(sorted), "blocks")
        merged.merge(accumulated(shard, tuple(edges)))
    assert_same_but_for_rounding(merged, accumulated(values))


def test_same_blocks_in_the_same_order_give_the_same_bits() -> None:
    values = blocks_of(DISTRIBUTIONS["heavy tails"])

    def merged() -> BandStatistics:
        result = accumulated(values[:30], (16,))
        result.merge(accumulated(values[30:], (20,)))
        return result

    assert_same(merged(), merged())


def test_memory_layout_makes_no_difference() -> None:
    values = blocks_of(DISTRIBUTIONS["heavy tails"])
    assert_same(accumulated(np.asfortranarray(values)), accumulated(values))


def test_merging_nothing_changes_nothing() -> None:
    values = blocks_of(DISTRIBUTIONS["heavy tails"])
    left, right = accumulated(values), BandStatistics(3)
    left.merge(BandStatistics(3))
    right.merge(accumulated(values))
    assert_same(left, accumulated(values))
    assert_same(right, accumulated(values))


def test_merging_leaves_the_other_alone() -> None:
    values = blocks_of(DISTRIBUTIONS["normal"])
    other, total = accumulated(values), BandStatistics(3)
    total.merge(other)
    total.add(values)
    assert_same(other, accumulated(values))


def test_other_bands_are_refused() -> None:
    statistics = BandStatistics(3)
    with pytest.raises(ValueError, match="2 bands of float32, expected 3 of float32"):
        statistics.merge(BandStatistics(2))
    with pytest.raises(ValueError, match="3 bands of uint8, expected 3 of float32"):
        statistics.merge(BandStatistics(3, "uint8"))


@pytest.mark.parametrize(
    "block",
    [np.zeros((1, 32, 32, 3)), np.zeros((1, 32, 32, 2), np.float32), np.zeros((32, 32, 3), np.float32)],
    ids=["float64", "2 bands", "3 axes"],
)
def test_other_blocks_are_refused(block: npt.NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"expected float32 \(rows, height, width, 3\)"):
        BandStatistics(3).add(block)


# ┌─────────────────┐
# │  Serialisation  │
# └─────────────────┘


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_arrays_bring_back_the_same(dtype: str) -> None:
    values = blocks_of(lambda rng, shape: rng.lognormal(0, 1, shape)).astype(dtype)
    statistics = accumulated(values, (20,))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **statistics.to_arrays())
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as arrays:
        restored = BandStatistics.from_arrays(arrays)
    assert_same(restored, statistics)
    restored.add(values)
    statistics.add(values)
    assert_same(restored, statistics)


def test_arrays_of_no_rows_bring_back_the_same() -> None:
    assert_same(BandStatistics.from_arrays(BandStatistics(3).to_arrays()), BandStatistics(3))


def test_arrays_do_not_change_with_what_is_added_later() -> None:
    values = blocks_of(DISTRIBUTIONS["normal"])
    values[0] = np.nan
    statistics = accumulated(values)
    arrays = statistics.to_arrays()
    restored = BandStatistics.from_arrays(arrays)
    statistics.add(values)
    restored.add(values)
    BandStatistics.from_arrays(arrays).merge(statistics)
    assert_same(BandStatistics.from_arrays(arrays), accumulated(values))


def test_a_missing_array_is_an_error() -> None:
    arrays = BandStatistics(3).to_arrays()
    del arrays["m2"]
    with pytest.raises(KeyError, match="m2"):
        BandStatistics.from_arrays(arrays)


# ┌───────────┐
# │  Configs  │
# └───────────┘


def columns_of(config: str, source_folder: Path, start: int, stop: int) -> tuple[npt.NDArray[np.int64], dict[str, Any]]:
    with so2sat.open_source(f"{source_folder}/training.h5") as source:
        columns = so2sat.read_columns(source, config, start, stop)
    return columns["label"], columns


def config_statistics(config: str, source_folder: Path, *edges: int) -> ConfigStatistics:
    statistics = ConfigStatistics(config)
    for start, stop in itertools.pairwise(edges):
        statistics.add(*columns_of(config, source_folder, start, stop))
    return statistics


@pytest.mark.parametrize("config", ["rgb", "all"])
def test_config(config: str, source_folder: Path) -> None:
    summary = config_statistics(config, source_folder, 0, 128, 256, 300).summary()
    labels, columns = columns_of(config, source_folder, 0, 300)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert list(summary["patches_per_class"]) == list(so2sat.LABELS)
    assert list(summary["patches_per_class"].values()) == [int((labels == index).sum()) for index in range(17)]
    for column, bands in summary["bands"].items():
        assert [band["name"] for band in bands] == list(band_statistics.BANDS[config][column])
        for band, found in enumerate(bands):
            assert_like_numpy(found, columns[column][..., band], step=1 if config == "rgb" else 2)


@pytest.mark.parametrize("config", ["rgb", "all"])
def test_shards_of_a_config_that_were_kept_merge_to_the_whole(config: str, source_folder: Path, tmp_path: Path) -> None:
    shards = [config_statistics(config, source_folder, 0, 128, 200), config_statistics(config, source_folder, 200, 300)]
    merged = ConfigStatistics(config)
    for number, shard in enumerate(shards):
        np.savez(tmp_path / f"{number}.npz", **shard.to_arrays())
        with np.load(tmp_path / f"{number}.npz", allow_pickle=False) as arrays:
            merged.merge(ConfigStatistics.from_arrays(arrays))
    whole = config_statistics(config, source_folder, 0, 300)
    np.testing.assert_array_equal(merged.patches_per_class, whole.patches_per_class)
    for column, bands in merged.bands.items():
        assert_same_but_for_rounding(bands, whole.bands[column])


def test_a_label_out_of_range_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"17|broadcast"):
        ConfigStatistics("rgb").add(np.array([17]), {"image": np.zeros((1, 32, 32, 3), np.uint8)})
