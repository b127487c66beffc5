from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import PIL.Image
import pyarrow as pa
import pytest
from matplotlib.text import Text

import so2sat
from publishing import facts, figures, shards
from publishing.band_statistics import Statistics
from publishing.configs import CONFIGS
from publishing.figures import Patch

NOTE = r"synthetic sample, not measured data: $\frac$ is no formula " * 8


def random_patches(rows: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (rows, 32, 32, 3), np.uint8)


def measured_bands() -> Any:
    """What statistics.json holds of a split, with heavy tails and a band without finite values in either column."""
    rng = np.random.default_rng(0)
    sentinel1 = rng.standard_t(1.1, (20, 32, 32, 8)).astype(np.float32)
    sentinel2 = rng.uniform(0, 0.4, (20, 32, 32, 10)).astype(np.float32)
    sentinel1[0, 0, 0, 1:3] = -5007, 12702
    sentinel1[..., 3] = np.nan
    sentinel2[..., 4] = np.nan
    statistics, zeros = Statistics(CONFIGS["all"].bands), np.zeros(20, np.int64)
    columns: dict[str, Any] = {"label": zeros, "sample_id": zeros, "sentinel1": sentinel1, "sentinel2": sentinel2}
    statistics.add(shards.to_batch(columns, CONFIGS["all"].features.arrow_schema, "jpeg"))
    return json.loads(json.dumps(statistics.summary()["bands"], allow_nan=False))


def bands_of(**figures: Any) -> Any:
    """Bands with the same figures each."""
    counts = {"sentinel1": len(so2sat.SENTINEL1_BANDS), "sentinel2": len(so2sat.SENTINEL2_BANDS)}
    return {column: [dict(figures) for _ in range(count)] for column, count in counts.items()}


def odd_bands() -> Any:
    """Every way in which a value may be missing, and values out of the ordinary."""
    bands = bands_of(mean=0.1, std=0.05, min=0.0, max=0.4, percentiles={"0.1": 0.0, "1": 0.0, "50": 0.1, "99": 0.3})
    bands["sentinel1"][0].update(mean=None, min=None, max=None, percentiles=None)
    bands["sentinel1"][1].update(min=float("-inf"), max=1e30, percentiles=None)
    bands["sentinel2"][0].update(mean=float("nan"), percentiles={})
    return bands


def solid(red: int, green: int, blue: int) -> Patch:
    return np.full((32, 32, 3), (red, green, blue), np.uint8)


CENTRES = {
    "train": {city.name: (city.longitude, city.latitude) for key, city in facts.CITIES.items()},
    "test": {
        facts.CITIES[key].name: (facts.CITIES[key].longitude, facts.CITIES[key].latitude) for key in facts.TEST_CITIES
    },
}
CENTRES["train"] = {name: place for name, place in CENTRES["train"].items() if name not in CENTRES["test"]}
PATCHES = {index: [*random_patches(4, seed=index)] for index in range(17)}
VV = {index: np.full((32, 32), 0.1, np.float32) for index in range(17)}

PICTURES: dict[str, tuple[Any, ...]] = {
    "patches": (figures.class_grid, PATCHES),
    "patches of two classes": (figures.class_grid, {3: random_patches(9), 5: [], 16: random_patches(1)}),
    "no patches": (figures.class_grid, {}),
    "pairs": (figures.class_pairs, {index: patches[0] for index, patches in PATCHES.items()}, VV),
    "pairs of some": (figures.class_pairs, {2: PATCHES[2][0], 3: PATCHES[3][0]}, {3: VV[3], 4: VV[4]}),
    "three splits": (figures.class_histogram, facts.PATCHES_PER_CLASS),
    "two splits": (figures.class_histogram, {"train": (17_000_000, *[0] * 16), "validation": [0] * 17}),
    "one split": (figures.class_histogram, {"train": (3, 0, 1, *[0] * 13, 2)}),
    "measured bands": (figures.band_statistics, measured_bands()),
    "odd bands": (figures.band_statistics, odd_bands()),
    "no bands": (figures.band_statistics, bands_of(mean=None, std=None, min=None, max=None, percentiles=None)),
    "cities": (figures.city_map, CENTRES),
    "cities of a split": (figures.city_map, {"test": CENTRES["test"]}),
}
ONE_OF_EACH = ["patches", "pairs", "three splits", "measured bands", "cities"]


def png_of(name: str, note: str = NOTE) -> bytes:
    draw, *arguments = PICTURES[name]
    png: bytes = draw(*arguments, note)
    return png


def pixels_of(png: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(PIL.Image.open(io.BytesIO(png)))


def area(colour: tuple[int, ...], png: bytes) -> int:
    """How many pixels have a colour."""
    return int((pixels_of(png) == colour).all(axis=-1).sum())


@dataclasses.dataclass
class Drawn:
    """A picture, and the texts in it with the boxes around them."""

    png: bytes
    texts: list[str]
    boxes: list[Any]


@functools.cache
def drawn(name: str) -> Drawn:
    texts: list[tuple[str, Any]] = []
    draw = Text.draw

    def draw_and_note(self: Text, renderer: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            texts.append((self.get_text().strip(), self.get_window_extent(renderer)))
        draw(self, renderer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", draw_and_note)
        return Drawn(png_of(name), [text for text, _ in texts], [box for _, box in texts])


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_png_without_metadata(name: str) -> None:
    with PIL.Image.open(io.BytesIO(drawn(name).png)) as image:
        assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})
        assert image.width == 200 * figures.WIDTH
        assert 600 < image.height < 1800


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_texts_are_within_the_picture_and_apart(name: str) -> None:
    picture = drawn(name)
    height, width, _ = pixels_of(picture.png).shape
    for text, box in zip(picture.texts, picture.boxes):
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0, text
    boxes = zip(picture.texts, picture.boxes)
    assert not [(a, b) for (a, box), (b, other) in itertools.combinations(boxes, 2) if box.overlaps(other)]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_note_is_written_as_it_is(name: str) -> None:
    assert " ".join(NOTE.split()) in " ".join(" ".join(drawn(name).texts).split())


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_same_input_gives_the_same_bytes_whatever_the_settings(name: str) -> None:
    settings = {"font.size": 20, "figure.facecolor": "black", "lines.linewidth": 9, "text.parse_math": True}
    with matplotlib.rc_context(settings):
        assert png_of(name) == drawn(name).png
        assert matplotlib.rcParams["font.size"] == 20


@pytest.mark.parametrize("name", ["patches", "patches of two classes", "no patches", "pairs of some", "one split"])
def test_every_class_is_named_with_its_code_and_has_its_colour(name: str) -> None:
    words = " ".join(drawn(name).texts)
    for label, code, colour in zip(so2sat.LABELS, facts.LCZ_CODES, facts.LCZ_COLOURS):
        assert words.count(label) == 1
        assert re.search(rf"{code} {label}|{label} +{code}", words)
        counts = PICTURES[name][1].get("train", ())
        is_drawn = not counts or counts[so2sat.LABELS.index(label)]
        assert not is_drawn or area(tuple(bytes.fromhex(colour[1:])), drawn(name).png) > 100


def test_colours_are_those_of_17_classes() -> None:
    colours = [tuple(bytes.fromhex(colour[1:])) for colour in facts.LCZ_COLOURS]
    assert len(colours) == len(set(colours)) == len(so2sat.LABELS)
    assert min(np.abs(np.subtract(a, b)).sum() for a, b in itertools.combinations(colours, 2)) > 40


def test_patches_are_enlarged_in_their_own_colours_and_no_more_than_fit() -> None:
    colours = [(9 * number, 200, 7) for number in range(6)]
    png = figures.class_grid({5: [solid(*colour) for colour in colours]}, "")
    areas = [area(colour, png) for colour in colours]
    assert areas[4:] == [0, 0]
    assert min(areas[:4]) > 100**2
    assert max(areas) < 1.1 * min(areas[:4])


@pytest.mark.parametrize(("decibels", "grey"), [(-25, 0), (5, 255), (40, 255), (-10, 127), (-60, 0), (np.nan, 0)])
def test_sentinel_1_is_drawn_in_decibels(decibels: float, grey: int) -> None:
    natural = solid(10, 200, 30)
    intensity = np.full((32, 32), 10 ** (decibels / 10), np.float32)
    with_radar = figures.class_pairs({3: natural}, {3: intensity}, "")
    without = figures.class_pairs({3: natural}, {}, "")
    assert area((grey,) * 3, with_radar) - area((grey,) * 3, without) > (-1 if grey == 255 else 50**2)
    assert area((10, 200, 30), with_radar) > 50**2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("patches", 0), ("patches of two classes", 15), ("no patches", 17), ("pairs", 0), ("pairs of some", 14)),
        *(("measured bands", 2), ("odd bands", 1), ("no bands", 18)),
    ],
)
def test_what_is_not_there_is_marked(name: str, expected: int) -> None:
    assert drawn(name).texts.count("none") == expected


@pytest.mark.parametrize("name", ["three splits", "two splits", "one split"])
def test_histogram_writes_all_counts(name: str) -> None:
    for split, counts in PICTURES[name][1].items():
        assert {f"{split}: {sum(counts):,} patches", *(f"{count:,}" for count in counts)} <= {*drawn(name).texts}


def test_bars_are_as_long_as_the_share_of_a_class() -> None:
    counts = facts.PATCHES_PER_CLASS["train"]
    pixels = pixels_of(figures.class_histogram({"train": counts}, ""))
    colours = [tuple(bytes.fromhex(colour[1:])) for colour in facts.LCZ_COLOURS]
    lengths = np.array([(pixels == colour).all(axis=-1).sum(axis=1).max() for colour in colours])
    assert np.ptp(lengths - np.array(counts) * max(lengths) / max(counts)) < 12


@pytest.mark.parametrize("name", ["measured bands", "odd bands", "no bands"])
def test_bands_are_named_and_what_is_drawn_is_explained(name: str) -> None:
    words = " ".join(drawn(name).texts)
    assert all(band.name in words for band in (*so2sat.SENTINEL1_BANDS, *so2sat.SENTINEL2_BANDS))
    assert all(f"{band.wavelength:.0f} nm" in words for band in so2sat.SENTINEL2_BANDS if band.wavelength)
    assert {"percentiles 0.1 to 99.9", "percentiles 1 to 99", "median", "mean", "extremes"} <= {*drawn(name).texts}


def test_every_city_is_named_once_and_splits_are_told_apart() -> None:
    assert all(drawn("cities").texts.count(city.name) == 1 for city in facts.CITIES.values())
    assert {"train", "validation and test"} <= {*drawn("cities").texts}
    assert {*CENTRES["test"]} <= {*drawn("cities of a split").texts}
    red = (0xD1, 0x44, 0x0C)  # what the legend has of it is the same in both
    assert area(red, figures.city_map({"train": CENTRES["train"]}, "")) < area(red, figures.city_map(CENTRES, ""))


@pytest.mark.parametrize("image_format", [*so2sat.IMAGE_FORMATS, "pixels"])
def test_the_first_patches_of_every_class_are_picked(image_format: str) -> None:
    labels = np.array([*range(17), 5, *range(16, -1, -1)] * 3)
    pixels: Any = random_patches(len(labels))
    images = pixels
    if image_format != "pixels":
        files = so2sat.encode_images(pixels, image_format)
        images = pa.array([{"bytes": file, "path": None} for file in files])
        pixels = np.stack([np.asarray(PIL.Image.open(io.BytesIO(file))) for file in files])
    column = pa.array(labels)
    picked = figures.pick_patches([(column[:10], images[:10]), (column[10:], images[10:])])
    for index in range(17):
        expected = pixels[np.flatnonzero(labels == index)[: figures.PATCHES_SHOWN]]
        np.testing.assert_array_equal(picked[index], expected)


def test_no_more_is_read_than_is_shown_and_rare_classes_have_fewer() -> None:
    def batches() -> Iterator[tuple[pa.Array, Any]]:
        yield (
            pa.array([3] * 6),
            pa.array([{"bytes": so2sat.encode_images(random_patches(1), "png")[0]}] * 4 + [None] * 2),
        )
        yield pa.array([*range(17)] * figures.PATCHES_SHOWN), random_patches(17 * figures.PATCHES_SHOWN)
        raise AssertionError("has enough")

    assert {len(patches) for patches in figures.pick_patches(batches()).values()} == {figures.PATCHES_SHOWN}
    picked = figures.pick_patches([(pa.array([0, 0, 1]), random_patches(3))])
    assert [len(picked[index]) for index in range(17)] == [2, 1, *[0] * 15]
