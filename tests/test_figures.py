from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
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


def plain_bands(mean: float | None = 0.1, std: float | None = 0.05) -> Any:
    """Bands with nothing but a mean and a standard deviation."""
    counts = {"sentinel1": len(so2sat.SENTINEL1_BANDS), "sentinel2": len(so2sat.SENTINEL2_BANDS)}
    return {column: [{"mean": mean, "std": std} for _ in range(count)] for column, count in counts.items()}


def bands_up_to(extreme: float) -> Any:
    """Every way in which a value may be missing, and values out of the ordinary."""
    bands = plain_bands()
    bands["sentinel1"][0].update(mean=None, std=None)
    bands["sentinel1"][1].update(std=float("nan"), min=float("-inf"), max=extreme, percentiles=None)
    bands["sentinel1"][2].update(percentiles={"50": 0.1, "99": None})
    bands["sentinel2"][0].update(mean=float("nan"), std=0.1, percentiles={})
    bands["sentinel2"][1].update(std=None)
    bands["sentinel2"][9].update(mean=0.05, std=0.2)
    return bands


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
    "no split": (figures.class_histogram, {}),
    "plain bands": (figures.band_statistics, plain_bands()),
    "measured bands": (figures.band_statistics, measured_bands()),
    "wide bands": (figures.band_statistics, bands_up_to(9e5)),
    "widest bands": (figures.band_statistics, bands_up_to(1e30)),
    "no bands": (figures.band_statistics, plain_bands(None, None)),
}
ONE_OF_EACH = ["patches", "pairs", "three splits", "measured bands"]
OF_CLASSES = [name for name in PICTURES if "band" not in name]


def png_of(name: str, note: str = NOTE) -> bytes:
    draw, *arguments = PICTURES[name]
    png: bytes = draw(*arguments, note)
    return png


@dataclasses.dataclass
class Drawn:
    """A picture, and the texts in it with the boxes around them."""

    png: bytes
    texts: list[str]
    boxes: list[Any]

    @functools.cached_property
    def pixels(self) -> npt.NDArray[np.uint8]:
        return np.asarray(PIL.Image.open(io.BytesIO(self.png)))


@functools.cache
def drawn(name: str) -> Drawn:
    texts: list[tuple[str, Any]] = []
    draw = Text.draw

    def draw_and_note(self: Text, renderer: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            texts.append((self.get_text(), self.get_window_extent(renderer)))
        draw(self, renderer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", draw_and_note)
        return Drawn(png_of(name), [text for text, _ in texts], [box for _, box in texts])


def enlarged(patch: Patch, scale: int) -> Patch:
    return patch.repeat(scale, axis=0).repeat(scale, axis=1)


def places_of(block: Patch, picture: Patch) -> list[tuple[int, int]]:
    """Rows and columns where a block of pixels is in a picture."""
    height, width, _ = block.shape
    corners = np.argwhere((picture == block[0, 0]).all(axis=-1)).tolist()
    return [(y, x) for y, x in corners if np.array_equal(picture[y : y + height, x : x + width], block)]


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_png_without_metadata(name: str) -> None:
    with PIL.Image.open(io.BytesIO(drawn(name).png)) as image:
        assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})
        assert image.width == figures.WIDTH
        assert 600 < image.height < 1800


@pytest.mark.parametrize("name", PICTURES)
def test_texts_are_within_the_picture_and_apart(name: str) -> None:
    picture = drawn(name)
    height, width, _ = picture.pixels.shape
    for text, box in zip(picture.texts, picture.boxes):
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 8, text
    boxes = zip(picture.texts, picture.boxes)
    assert not [(a, b) for (a, box), (b, other) in itertools.combinations(boxes, 2) if box.overlaps(other)]


@pytest.mark.parametrize("name", PICTURES)
def test_the_note_is_written_as_it_is(name: str) -> None:
    assert " ".join(NOTE.split()) in " ".join(drawn(name).texts)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_same_input_gives_the_same_bytes_whatever_the_settings(name: str) -> None:
    settings = {"font.size": 20, "figure.facecolor": "black", "lines.linewidth": 9, "text.parse_math": True}
    with matplotlib.rc_context(settings):
        assert png_of(name) == drawn(name).png
        assert matplotlib.rcParams["font.size"] == 20


@pytest.mark.parametrize("name", OF_CLASSES)
def test_every_class_is_named_on_its_colour(name: str) -> None:
    picture = drawn(name)
    for label, code, colour in zip(so2sat.LABELS, facts.LCZ_CODES, facts.LCZ_COLOURS):
        assert picture.texts.count(label) == 1
        box = picture.boxes[picture.texts.index(code)]
        x, y = round(box.x0) - 3, len(picture.pixels) - round((box.y0 + box.y1) / 2)
        assert tuple(picture.pixels[y, x]) == tuple(bytes.fromhex(colour[1:]))


def test_colours_are_those_of_17_classes() -> None:
    colours = [tuple(bytes.fromhex(colour[1:])) for colour in facts.LCZ_COLOURS]
    assert len(colours) == len(set(colours)) == len(so2sat.LABELS)
    assert min(np.abs(np.subtract(a, b)).sum() for a, b in itertools.combinations(colours, 2)) > 40


def test_patches_are_enlarged_and_else_unchanged() -> None:
    for index in (0, 10, 16):
        places = [places_of(enlarged(patch, 4), drawn("patches").pixels) for patch in PATCHES[index]]
        ((y, x),) = places[0]
        assert places == [[(y, x + 132 * number)] for number in range(4)]


def test_no_more_patches_are_drawn_than_fit() -> None:
    picture = drawn("patches of two classes").pixels
    found = [len(places_of(enlarged(patch, 4), picture)) for patch in random_patches(9)]
    assert found == [2, 1, 1, 1, 0, 0, 0, 0, 0]  # the first is that of another class too


def test_pairs_are_natural_colours_and_decibels() -> None:
    decibels = np.full((32, 32), -25.0)
    decibels[0], decibels[1], decibels[2], decibels[3] = 5, 40, -10, -60
    intensity = (10 ** (decibels / 10)).astype(np.float32)
    intensity[4], intensity[5] = 0, np.nan
    png = figures.class_pairs({3: PATCHES[3][0]}, {3: intensity}, "")
    picture = np.asarray(PIL.Image.open(io.BytesIO(png)))
    ((y, x),) = places_of(enlarged(PATCHES[3][0], 6), picture)
    radar = picture[y : y + 6 * 32 : 6, x + 6 * 32 + 4 :][:, : 6 * 32 : 6].astype(int)
    expected = np.zeros((32, 1, 1))
    expected[:3, 0, 0] = 255, 255, 127
    assert np.abs(radar - expected).max() <= 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [("patches", 0), ("patches of two classes", 15), ("no patches", 17), ("pairs", 0), ("pairs of some", 14)],
)
def test_classes_without_patches_are_marked(name: str, expected: int) -> None:
    assert drawn(name).texts.count("none") == expected


@pytest.mark.parametrize("name", ["three splits", "two splits", "one split"])
def test_histogram_writes_all_counts(name: str) -> None:
    for split, counts in PICTURES[name][1].items():
        assert {split, f"{sum(counts):,} patches", *(f"{count:,}" for count in counts)} <= {*drawn(name).texts}


def test_bars_are_as_long_as_the_share_of_a_class() -> None:
    counts, lengths = [], []
    picture = drawn("three splits")
    for split, of_split in facts.PATCHES_PER_CLASS.items():
        left = round(picture.boxes[picture.texts.index(split)].x0)
        for count, colour in zip(of_split, facts.LCZ_COLOURS):
            of_class = (picture.pixels[:, left : left + 400] == tuple(bytes.fromhex(colour[1:]))).all(axis=-1)
            lengths.append(of_class.sum(axis=1).max())
            counts.append(count / sum(of_split))
    assert np.ptp(np.array(lengths) - np.array(counts) * max(lengths) / max(counts)) < 6


@pytest.mark.parametrize(
    ("name", "expected"), [("plain bands", 0), ("measured bands", 2), ("wide bands", 2), ("no bands", 18)]
)
def test_bands_without_values_are_marked(name: str, expected: int) -> None:
    texts = drawn(name).texts
    assert texts.count("none") == expected
    assert {band.name for band in (*so2sat.SENTINEL1_BANDS, *so2sat.SENTINEL2_BANDS)} <= {*texts}
    assert {f"{band.wavelength:.0f}" for band in so2sat.SENTINEL2_BANDS if band.wavelength} <= {*texts}


def test_bands_have_a_legend_of_what_is_drawn() -> None:
    measured = {"mean ± standard deviation", "percentiles 0.1 to 99.9", "1 to 99", "median", "mean", "extremes"}
    assert measured & {*drawn("plain bands").texts} == {"mean ± standard deviation", "mean"}
    assert measured <= {*drawn("measured bands").texts}
    assert not measured & {*drawn("no bands").texts}


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
