from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import PIL.Image
import pyarrow as pa
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

import so2sat
from publishing import facts, figures, layout
from publishing.band_statistics import ConfigStatistics
from publishing.figures import Patch

LONG_NOTE = "synthetic sample, not measured data: cost $1 or $2 " * 8


def random_patches(rows: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (rows, 32, 32, 3), np.uint8)


def patches_of_all(count: int) -> dict[int, list[Patch]]:
    return {index: [*random_patches(count, seed=index)] for index in range(17)}


def measured_bands() -> Any:
    """What statistics.json holds of a split, with heavy tails and a band without finite values in either column."""
    rng = np.random.default_rng(0)
    sentinel1 = rng.standard_t(1.1, (20, 32, 32, 8)).astype(np.float32)
    sentinel2 = rng.uniform(0, 0.4, (20, 32, 32, 10)).astype(np.float32)
    sentinel1[0, 0, 0, 1:3] = -5007, 12702
    sentinel1[..., 3] = np.nan
    sentinel2[..., 4] = np.nan
    statistics = ConfigStatistics(layout.KINDS["all"].bands)
    statistics.add({"label": np.zeros(20, np.int64), "sentinel1": sentinel1, "sentinel2": sentinel2})
    return json.loads(json.dumps(statistics.summary()["bands"], allow_nan=False))


def odd_bands() -> Any:
    """Every way in which a value may be missing, and values out of the ordinary."""
    bands: Any = figures.published_bands()
    bands["sentinel1"][0].update(mean=None, std=None)
    bands["sentinel1"][1].update(std=float("nan"), min=float("-inf"), max=1e30, percentiles=None)
    bands["sentinel1"][2].update(percentiles={"50": 0.1, "99": None})
    bands["sentinel2"][0].update(mean=float("nan"), std=0.1, percentiles={})
    bands["sentinel2"][1].update(std=None)
    bands["sentinel2"][9].update(mean=0.05, std=0.2)
    return bands


def no_bands() -> Any:
    return {column: [{"mean": None, "std": None}] * len(bands) for column, bands in figures.published_bands().items()}


CLASSES, HISTOGRAM, BANDS = range(3)
DRAW_PNG = (figures.class_grid, figures.class_histogram, figures.band_statistics)
DRAW_FIGURE = (figures.class_grid_figure, figures.class_histogram_figure, figures.band_statistics_figure)

PICTURES: dict[str, tuple[int, Any]] = {
    "classes": (CLASSES, patches_of_all(4)),
    "some classes": (CLASSES, {3: random_patches(9), 5: [], 16: random_patches(1)}),
    "no classes": (CLASSES, {}),
    "three splits": (HISTOGRAM, facts.PATCHES_PER_CLASS),
    "two splits": (HISTOGRAM, {"train": (17_000_000, *[0] * 16), "validation": [0] * 17}),
    "one split": (HISTOGRAM, {"train": (3, 0, 1, *[0] * 13, 2)}),
    "published bands": (BANDS, figures.published_bands()),
    "measured bands": (BANDS, measured_bands()),
    "odd bands": (BANDS, odd_bands()),
    "no bands": (BANDS, no_bands()),
}


def png_of(name: str, note: str) -> bytes:
    kind, argument = PICTURES[name]
    draw: Callable[[Any, str], bytes] = DRAW_PNG[kind]
    return draw(argument, note)


def figure_of(name: str, note: str = "") -> Figure:
    kind, argument = PICTURES[name]
    draw: Callable[[Any, str], Figure] = DRAW_FIGURE[kind]
    return draw(argument, note)


@pytest.fixture
def drawn_texts(monkeypatch: pytest.MonkeyPatch) -> Callable[[Figure], list[Text]]:
    """A function that draws a figure and returns the texts that are in the picture."""
    texts: list[Text] = []
    draw = Text.draw

    def draw_and_note(self: Text, *args: Any, **options: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            texts.append(self)
        draw(self, *args, **options)

    monkeypatch.setattr(Text, "draw", draw_and_note)

    def drawn(figure: Figure) -> list[Text]:
        texts.clear()
        figure.canvas.draw()
        return [*texts]

    return drawn


def decoded(png: bytes) -> npt.NDArray[np.uint8]:
    with PIL.Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})  # no metadata
        image.load()
        return np.asarray(image)


def labels_of(texts: list[Text]) -> list[str]:
    return [text.get_text() for text in texts]


@pytest.mark.parametrize("name", PICTURES)
def test_texts_are_within_the_picture_and_apart(name: str, drawn_texts: Callable[[Figure], list[Text]]) -> None:
    figure = figure_of(name, LONG_NOTE)
    texts = drawn_texts(figure)
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    for text, box in boxes:
        assert box.x0 >= 8, text
        assert box.y0 >= 8, text
        assert box.x1 <= figure.bbox.width - 8, text
        assert box.y1 <= figure.bbox.height - 8, text
    overlapping = [(a, b) for (a, box), (b, other) in itertools.combinations(boxes, 2) if box.overlaps(other)]
    assert not overlapping
    assert " ".join(LONG_NOTE.split()) in " ".join(" ".join(labels_of(texts)).split())


@pytest.mark.parametrize(
    "name", ["classes", "some classes", "three splits", "one split", "measured bands", "odd bands"]
)
def test_pictures_are_png_of_the_same_bytes(name: str) -> None:
    png = png_of(name, "A note")
    pixels = decoded(png)
    assert pixels.shape[1] == figures.WIDTH
    assert 600 < pixels.shape[0] < 1500
    assert (pixels[[0, -1]] == 255).all()
    assert (pixels[:, [0, -1]] == 255).all()
    with matplotlib.rc_context({"font.size": 20, "figure.facecolor": "black", "lines.linewidth": 9}):
        assert png_of(name, "A note") == png


@pytest.mark.parametrize("name", ["classes", "some classes", "three splits", "two splits", "one split"])
def test_every_class_is_named(name: str, drawn_texts: Callable[[Figure], list[Text]]) -> None:
    written = labels_of(drawn_texts(figure_of(name)))
    for label in so2sat.LABELS:
        assert written.count(label) == 1
    assert [text for text in written if text in facts.LCZ_CODES][:17] == [*facts.LCZ_CODES]


def test_colours_are_those_of_17_classes() -> None:
    colours = [tuple(bytes.fromhex(colour[1:])) for colour in facts.LCZ_COLOURS]
    assert len(colours) == len(set(colours)) == len(so2sat.LABELS)
    assert min(np.abs(np.subtract(a, b)).sum() for a, b in itertools.combinations(colours, 2)) > 40
    pixels = decoded(png_of("three splits", "")).reshape(-1, 3)
    for colour in colours:
        assert (pixels == colour).all(axis=1).sum() > 1000


def test_class_grid_enlarges_pixels_and_changes_none() -> None:
    patches = {index: [*of_class] for index, of_class in patches_of_all(4).items()}
    patches[12][3][0, 0] = 1, 2, 3
    for patch in itertools.chain(*patches.values()):
        patch[..., 0] |= 4  # no other pixel is like that one
    patches[12][3][0, 0] = 1, 2, 3
    picture = decoded(figures.class_grid(patches, ""))
    found = np.argwhere((picture == (1, 2, 3)).all(axis=-1))
    (top, left), (bottom, right) = found.min(axis=0), found.max(axis=0)
    scale = bottom - top + 1
    assert scale == right - left + 1 == 4
    region = picture[top : top + 32 * scale, left : left + 32 * scale]
    assert (region == patches[12][3].repeat(scale, axis=0).repeat(scale, axis=1)).all()


def test_classes_without_patches_are_marked(drawn_texts: Callable[[Figure], list[Text]]) -> None:
    assert labels_of(drawn_texts(figure_of("classes"))).count("none") == 0
    assert labels_of(drawn_texts(figure_of("some classes"))).count("none") == 15


def test_histogram_writes_all_counts(drawn_texts: Callable[[Figure], list[Text]]) -> None:
    written = labels_of(drawn_texts(figure_of("three splits")))
    for split, counts in facts.PATCHES_PER_CLASS.items():
        assert {split, f"{sum(counts):,} patches", *(f"{count:,}" for count in counts)} <= {*written}


@pytest.mark.parametrize(("name", "expected"), [("published bands", 0), ("measured bands", 2), ("no bands", 18)])
def test_bands_without_values_are_marked(name: str, expected: int, drawn_texts: Callable[[Figure], list[Text]]) -> None:
    written = labels_of(drawn_texts(figure_of(name)))
    assert written.count("none") == expected
    assert {band.name for band in so2sat.SENTINEL1_BANDS} <= {*written}
    assert {f"{band.name}\n{band.wavelength:.0f}" for band in so2sat.SENTINEL2_BANDS} <= {*written}


def test_bands_have_a_legend_of_what_is_drawn(drawn_texts: Callable[[Figure], list[Text]]) -> None:
    published = labels_of(drawn_texts(figure_of("published bands")))
    assert "mean" in published
    assert not {"median", "1 to 99", "extremes"} & {*published}
    measured = labels_of(drawn_texts(figure_of("measured bands")))
    assert {"mean", "median", "1 to 99", "extremes"} <= {*measured}


@pytest.mark.parametrize("image_format", [*so2sat.IMAGE_FORMATS, "pixels"])
@pytest.mark.parametrize("container", ["lists", "pyarrow"])
def test_pick_patches_takes_the_first_of_every_class(image_format: str, container: str) -> None:
    labels = [*range(17), 5, *range(16, -1, -1)]
    pixels = random_patches(len(labels))
    images: Any = pixels
    if image_format != "pixels":
        files = so2sat.encode_images(pixels, image_format)
        images = [{"bytes": file, "path": None} for file in files]
        pixels = np.stack([np.asarray(PIL.Image.open(io.BytesIO(file))) for file in files])
    batches: Any = [(labels[:10], images[:10]), (labels[10:], images[10:])]
    if container == "pyarrow":
        columns = {"label": labels} | ({} if image_format == "pixels" else {"image": images})
        table = pa.table(columns)
        batches = [
            (table["label"][part], images[part] if image_format == "pixels" else table["image"][part])
            for part in (slice(0, 10), slice(10, None))
        ]

    picked = figures.pick_patches(batches, 2)
    assert [len(picked[index]) for index in range(17)] == [2] * 17
    for index in range(17):
        rows = [row for row, label in enumerate(labels) if label == index][:2]
        for patch, row in zip(picked[index], rows):
            assert patch.dtype == np.uint8
            assert np.array_equal(patch, pixels[row])


def test_pick_patches_takes_bytes_and_stops_when_it_has_enough() -> None:
    def batches() -> Iterator[tuple[Any, Any]]:
        yield [3, 3], [*so2sat.encode_images(random_patches(1), "png"), b"not an image, but not needed either"]
        yield np.arange(17), random_patches(17)
        raise AssertionError("has enough")

    picked = figures.pick_patches(batches(), 1)
    assert (picked[3][0] == random_patches(1)[0]).all()
    assert {len(patches) for patches in picked.values()} == {1}


def test_pick_patches_leaves_rare_classes_with_fewer() -> None:
    picked = figures.pick_patches([([0, 0, 1], random_patches(3))], 2)
    assert [len(picked[index]) for index in range(17)] == [2, 1, *[0] * 15]
