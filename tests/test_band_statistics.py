"""Statistics of bands: equal to NumPy's, whatever the division into blocks and shards."""

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
from publishing import band_statistics, layout
from publishing.band_statistics import BandStatistics, ConfigStatistics

Floats = npt.NDArray[np.float32]
Make = Callable[[np.random.Generator, tuple[int, ...]], npt.NDArray[Any]]

NAMES = ("a", "b", "c")
PIXELS = np.zeros((1, 32, 32, 3), np.uint8)

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
    result = BandStatistics(NAMES[: values.shape[-1]], str(values.dtype))
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


def test_signalling_nan_is_no_value() -> None:
    values = np.array([0x7F800001, 0xFF800001, 0x3F800000, 0x3F800000], np.uint32).view(np.float32).reshape(1, 2, 2, 1)
    found = accumulated(values).summary()[0]
    assert (found["count"], found["nonfinite"], found["mean"], found["min"], found["max"]) == (2, 2, 1.0, 1.0, 1.0)


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
    merged = BandStatistics(("a", "b"))
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


def test_merging_nothing_changes_nothing() -> None:
    values = blocks_of(DISTRIBUTIONS["heavy tails"])
    left, right = accumulated(values), BandStatistics(NAMES)
    left.merge(BandStatistics(NAMES))
    right.merge(accumulated(values))
    assert_same(left, accumulated(values))
    assert_same(right, accumulated(values))


def test_merging_leaves_the_other_alone() -> None:
    values = blocks_of(DISTRIBUTIONS["normal"])
    other, total = accumulated(values), BandStatistics(NAMES)
    total.merge(other)
    total.add(values)
    assert_same(other, accumulated(values))


@pytest.mark.parametrize(
    "block",
    [np.zeros((1, 32, 32, 3)), np.zeros((1, 32, 32, 2), np.float32), np.zeros((32, 32, 3), np.float32)],
    ids=["float64", "2 bands", "3 axes"],
)
def test_other_blocks_are_refused(block: npt.NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"expected float32 \(rows, height, width, 3\)"):
        BandStatistics(NAMES).add(block)


# ┌─────────────────┐
# │  Serialisation  │
# └─────────────────┘


def stored(statistics: BandStatistics | ConfigStatistics) -> dict[str, npt.NDArray[Any]]:
    """What an .npz file of these statistics holds."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict[str, Any](statistics.to_arrays()))
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("rows", [0, 30])
def test_arrays_bring_back_the_same(dtype: str, rows: int) -> None:
    values = blocks_of(lambda rng, shape: rng.lognormal(0, 1, shape)).astype(dtype)
    statistics = accumulated(values[:rows])
    restored = BandStatistics(NAMES, dtype)
    restored.load(stored(statistics))
    assert_same(restored, statistics)
    restored.add(values)
    statistics.add(values)
    assert_same(restored, statistics)


# ┌───────────┐
# │  Configs  │
# └───────────┘


def columns_of(config: str, source_folder: Path, start: int, stop: int) -> dict[str, npt.NDArray[Any]]:
    with so2sat.open_source(f"{source_folder}/training.h5") as source:
        return so2sat.read_columns(source, config, start, stop)


def config_statistics(config: str, source_folder: Path, *edges: int) -> ConfigStatistics:
    statistics = ConfigStatistics(layout.KINDS[config].bands)
    for start, stop in itertools.pairwise(edges):
        statistics.add(columns_of(config, source_folder, start, stop))
    return statistics


@pytest.mark.parametrize("config", ["rgb", "all"])
def test_config(config: str, source_folder: Path) -> None:
    summary = config_statistics(config, source_folder, 0, 128, 256, 300).summary()
    columns = columns_of(config, source_folder, 0, 300)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    counts = np.bincount(columns["label"], minlength=17).tolist()
    assert summary["patches_per_class"] == dict(zip(so2sat.LABELS, counts))
    for column, bands in summary["bands"].items():
        assert [band["name"] for band in bands] == list(layout.KINDS[config].bands[column])
        for band, found in enumerate(bands):
            assert_like_numpy(found, columns[column][..., band], step=1 if config == "rgb" else 2)


@pytest.mark.parametrize("config", ["rgb", "all"])
def test_shards_of_a_config_that_were_kept_merge_to_the_whole(config: str, source_folder: Path) -> None:
    shards = [config_statistics(config, source_folder, 0, 128, 200), config_statistics(config, source_folder, 200, 300)]
    merged = ConfigStatistics(layout.KINDS[config].bands)
    for shard in shards:
        restored = ConfigStatistics(layout.KINDS[config].bands)
        restored.load(stored(shard))
        merged.merge(restored)
    whole = config_statistics(config, source_folder, 0, 300)
    np.testing.assert_array_equal(merged.patches_per_class, whole.patches_per_class)
    for column, bands in merged.bands.items():
        assert_same_but_for_rounding(bands, whole.bands[column])


def test_a_label_out_of_range_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"17|broadcast"):
        ConfigStatistics(layout.KINDS["rgb"].bands).add({"label": np.array([17]), "image": PIXELS})
