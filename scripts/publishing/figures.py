"""Draws the pictures of the dataset card: patches of every class, patches per class, statistics of the bands.

Each picture is a function that returns the bytes of a PNG, the same bytes for the same input and version of matplotlib,
whatever the user's matplotlib is set to. Next to it is a function of the same name and `_figure` that returns the
figure, to look at what is in it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib.style
import numpy as np
import numpy.typing as npt
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

import so2sat
from publishing import facts

Patch = npt.NDArray[np.uint8]

PATCHES_PER_CLASS = 4  # as many as fit side by side

# Lengths are in pixels, font sizes in points of 1/72 inch.
WIDTH = 1680
DPI = 200
MARGIN = 24
_INK, _QUIET, _RULE = "#1f2328", "#59636e", "#d1d9e0"
_BLUE, _RED = "#1f5a99", "#d1440c"
_TEXT, _TITLE = 8, 11
_LINE = 34  # from one line of text to the next
_CHIP = (46, 32)  # width and height of the coloured label of a class
_AFTER_CHIP = 14
_NO_GRID: Mapping[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # behind a text in a chart

# ┌────────────┐
# │  Pictures  │
# └────────────┘


def class_grid(patches: Mapping[int, Sequence[Patch]], note: str) -> bytes:
    """Draws patches of every class.

    Args:
        patches: 32×32×3 pixels by class index. The first PATCHES_PER_CLASS of a class are drawn, fewer if there are
            fewer, and "none" where there is none.
        note: A line for the picture, such as where the patches are from; may be empty.

    Returns:
        A PNG file, WIDTH pixels wide.
    """
    return _png(class_grid_figure(patches, note))


def class_histogram(counts: Mapping[str, Sequence[int]], note: str) -> bytes:
    """Draws how many patches of every class there are.

    Args:
        counts: 17 counts by split.
        note: A line for the picture, may be empty.

    Returns:
        A PNG file, WIDTH pixels wide.
    """
    return _png(class_histogram_figure(counts, note))


def band_statistics(bands: Mapping[str, Sequence[Mapping[str, Any]]], note: str) -> bytes:
    """Draws mean, standard deviation and, where given, percentiles and extremes of every band.

    Args:
        bands: `bands` of a split of config `all` in statistics.json, or what `published_bands` returns: for `sentinel1`
            and `sentinel2` a mapping per band with `mean` and `std`, and perhaps `percentiles`, `min` and `max`. What
            is None or not finite is left out.
        note: A line for the picture, may be empty.

    Returns:
        A PNG file, WIDTH pixels wide.
    """
    return _png(band_statistics_figure(bands, note))


# ┌─────────────┐
# │  Their data │
# └─────────────┘


def pick_patches(
    batches: Iterable[tuple[Any, Any]], patches_per_class: int = PATCHES_PER_CLASS
) -> dict[int, list[Patch]]:
    """Picks the first patches of every class.

    Args:
        batches: Pairs of a column of class indices and one of images, in the order of the split: lists, NumPy arrays
            or columns of pyarrow tables. An image is pixels of shape (32, 32, 3), uint8 (`so2sat.to_rgb` of Sentinel-2
            reflectance), the bytes of an image file, or a mapping with them under `bytes`, as in config `rgb`. Images
            that aren't picked aren't decoded, and no more batches are taken than needed.
        patches_per_class: How many.

    Returns:
        At most that many patches by class index; every class is there.
    """
    picked: dict[int, list[Patch]] = {index: [] for index in range(len(so2sat.LABELS))}
    for labels, images in batches:
        for row, label in enumerate(np.asarray(labels).tolist()):
            if len(picked[label]) < patches_per_class:
                picked[label].append(_pixels(images[row]))
        if all(len(patches) >= patches_per_class for patches in picked.values()):
            break
    return picked


def published_bands() -> dict[str, list[dict[str, Any]]]:
    """Mean and standard deviation over edition 2's training split, for `band_statistics`."""
    names = {"sentinel1": so2sat.SENTINEL1_BANDS, "sentinel2": so2sat.SENTINEL2_BANDS}
    return {
        column: [
            {"name": band.name, "mean": mean, "std": std}
            for band, mean, std in zip(bands, facts.TRAIN_MEAN[column], facts.TRAIN_STD[column])
        ]
        for column, bands in names.items()
    }


def _pixels(image: Any) -> Patch:
    if hasattr(image, "as_py"):  # a scalar of pyarrow
        image = image.as_py()
    if isinstance(image, Mapping):
        image = image["bytes"]
    if isinstance(image, bytes):
        with PIL.Image.open(io.BytesIO(image)) as file:
            image = file.convert("RGB")
    return np.asarray(image, np.uint8)


# ┌───────────┐
# │  Drawing  │
# └───────────┘


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """Sets matplotlib's own defaults, so that those of the user change nothing."""
    with matplotlib.style.context(["default", {"font.family": "DejaVu Sans", "font.size": _TEXT}]):
        yield


@_style()
def class_grid_figure(patches: Mapping[int, Sequence[Patch]], note: str) -> Figure:
    """Draws what `class_grid` returns."""
    columns, scale, gap = 3, 4, 4
    side = scale * so2sat.PATCH_SIZE
    cell_width = PATCHES_PER_CLASS * (side + gap) - gap
    column_step = (WIDTH - 2 * MARGIN - cell_width) // (columns - 1)
    strip_top, cell_height = _CHIP[1] + 10, _CHIP[1] + 10 + side + 26
    figure, page, top = _page(
        "So2Sat LCZ42: the 17 local climate zones",
        ["Sentinel-2 in natural colours (B4, B3, B2), 32×32 pixels of 10 m: 320 m a side", note],
        cell_height * -(-len(so2sat.LABELS) // columns),
    )
    # In one image that is as large as the picture nothing is resampled.
    image = np.full((round(figure.bbox.height), WIDTH, 3), 255, np.uint8)
    for index in range(len(so2sat.LABELS)):
        row, column = divmod(index, columns)  # compact and open types have a line each, high to low
        x, y = MARGIN + column * column_step, top + row * cell_height
        _label_class(page, index, x, y + _CHIP[1] / 2)
        given = patches.get(index, ())[:PATCHES_PER_CLASS]
        for place, patch in enumerate(given):
            left, above = x + place * (side + gap), y + strip_top
            image[above - 1 : above + side + 1, left - 1 : left + side + 1] = 209  # a frame, as patches may be white
            image[above : above + side, left : left + side] = patch.repeat(scale, axis=0).repeat(scale, axis=1)
        if len(given) == 0:
            _text(page, x + _CHIP[0] + _AFTER_CHIP, y + strip_top + _LINE / 2, "none", color=_QUIET)
    figure.figimage(image, zorder=-1)  # behind the text
    return figure


@_style()
def class_histogram_figure(counts: Mapping[str, Sequence[int]], note: str) -> Figure:
    """Draws what `class_histogram` returns."""
    row, gap, titles, labels, axis = 40, 44, 84, 330, 46
    rows = len(so2sat.LABELS)
    # Built types and land cover are set apart by half a row.
    places = [index + (0.5 if index >= facts.BUILT_TYPES else 0) for index in range(rows)]
    height = round((places[-1] + 1) * row)
    figure, page, top = _page(
        "So2Sat LCZ42: patches per class",
        ["Bars: share of the split. Numbers: patches.", note],
        titles + height + axis,
    )
    top += titles
    for index, place in enumerate(places):
        _label_class(page, index, MARGIN, top + (place + 0.5) * row)
    width = (WIDTH - MARGIN - labels - MARGIN - (len(counts) - 1) * gap) / max(len(counts), 1)
    shares = {split: [100 * count / max(sum(of_split), 1) for count in of_split] for split, of_split in counts.items()}
    most = max((share for of_split in shares.values() for share in of_split), default=0) or 1
    longest = max((len(f"{count:,}") for of_split in counts.values() for count in of_split), default=0)
    for number, (split, of_split) in enumerate(counts.items()):
        left = MARGIN + labels + number * (width + gap)
        _text(page, left, top - titles + 20, split, weight="bold")
        _text(page, left, top - titles + 20 + _LINE, f"{sum(of_split):,} patches", color=_QUIET)
        chart = _chart(figure, left, top, width, height)
        # All with the same scale, and room for the numbers.
        chart.set_xlim(0, most * width / (width - 12 - 16 * longest))
        chart.set_ylim(places[-1] + 0.5, -0.5)
        chart.barh(places, shares[split], 0.68, color=facts.LCZ_COLOURS, edgecolor="#00000055", linewidth=0.4, zorder=2)
        for place, share, count in zip(places, shares[split], of_split):
            chart.annotate(
                f"{count:,}",
                (share, place),
                (4, 0),
                textcoords="offset points",
                va="center_baseline",
                color=_INK,
                bbox=_NO_GRID,
            )
        chart.set_yticks([])
        ticks = MaxNLocator(4 if len(counts) > 1 else 8, steps=[1, 2, 5, 10]).tick_values(0, most)
        chart.set_xticks([tick for tick in ticks if 0 <= tick <= most])
        chart.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g} %"))
        chart.grid(axis="x", color=_RULE, linewidth=0.5)
        chart.spines[["bottom"]].set_visible(False)
        chart.spines["left"].set_visible(True)
    return figure


@_style()
def band_statistics_figure(bands: Mapping[str, Sequence[Mapping[str, Any]]], note: str) -> Figure:
    """Draws what `band_statistics` returns."""
    optical = [_Summary(band) for band in bands["sentinel2"]]
    radar = [_Summary(band) for band in bands["sentinel1"]]
    title, legend, spectrum, axis, row = 48, 56, 400, 110, 44
    figure, page, top = _page(
        "So2Sat LCZ42: values of the bands", [note], legend + title + spectrum + axis + title + row * len(radar) + 96
    )
    _draw_legend(page, top, [*optical, *radar])
    top += legend
    _text(page, MARGIN, top + 12, "Sentinel-2: reflectance over wavelength", weight="bold")
    _draw_spectrum(_chart(figure, 110, top + title, WIDTH - 110 - MARGIN, spectrum), optical)
    top += title + spectrum + axis
    _text(page, MARGIN, top + 12, "Sentinel-1: linear units, not dB", weight="bold")
    _draw_radar(_chart(figure, 330, top + title, WIDTH - 330 - 2 * MARGIN, row * len(radar)), radar)
    return figure


class _Summary:
    """Statistics of a band; NaN is what isn't known."""

    def __init__(self, band: Mapping[str, Any]) -> None:
        percentiles = band.get("percentiles") or {}
        self.mean, self.std = _number(band.get("mean")), _number(band.get("std"))
        self.min, self.max = _number(band.get("min")), _number(band.get("max"))
        self.outer = _number(percentiles.get("0.1")), _number(percentiles.get("99.9"))
        self.inner = _number(percentiles.get("1")), _number(percentiles.get("99"))
        self.median = _number(percentiles.get("50"))


# What is drawn of a band, from back to front: style of a line from low to high or of a marker.
_MARKS: Mapping[str, Mapping[str, Any]] = {
    "mean ± standard deviation": {"color": "#bcd4ee", "linewidth": 9, "solid_capstyle": "butt"},
    "percentiles 0.1 to 99.9": {"color": _BLUE, "linewidth": 0.9, "solid_capstyle": "butt"},
    "1 to 99": {"color": _BLUE, "linewidth": 2.6, "solid_capstyle": "butt"},
    "median": {"color": _BLUE, "marker": "|", "markersize": 9, "markeredgewidth": 1.5, "linestyle": ""},
    "mean": {"color": _RED, "marker": "o", "markersize": 4.5, "markeredgecolor": "white", "linestyle": ""},
    "extremes": {"color": _BLUE, "marker": "x", "markersize": 4, "markeredgewidth": 0.9, "linestyle": ""},
}


def _marks(band: _Summary) -> dict[str, tuple[float, ...]]:
    """Values of each of _MARKS that is known."""
    values = {
        "mean ± standard deviation": (band.mean - band.std, band.mean + band.std),
        "percentiles 0.1 to 99.9": band.outer,
        "1 to 99": band.inner,
        "median": (band.median,),
        "mean": (band.mean,),
        "extremes": (band.min, band.max),
    }
    return {name: value for name, value in values.items() if all(map(math.isfinite, value))}


def _draw_legend(page: Axes, top: float, bands: Sequence[_Summary]) -> None:
    used = {name for band in bands for name in _marks(band)}
    handles = [Line2D([], [], label=name, **style) for name, style in _MARKS.items() if name in used]
    if handles:
        page.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(MARGIN, top),
            bbox_transform=page.transData,
            ncols=len(handles),
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            handlelength=1.8,
            columnspacing=1.8,
            labelcolor=_INK,
        )


def _draw_spectrum(chart: Axes, bands: Sequence[_Summary]) -> None:
    """Draws Sentinel-2 over wavelength. Extremes are left out: they would leave little of the axis to the rest."""
    wavelengths = [band.wavelength or 0 for band in so2sat.SENTINEL2_BANDS]
    widest = 120  # nm; wider gaps are cut to it, or the bands up to 865 nm would be on top of each other
    places = [0.0]
    for before, wavelength in itertools.pairwise(wavelengths):
        places.append(places[-1] + min(wavelength - before, widest))
    at_bottom = chart.get_xaxis_transform()
    chart.set_xlim(-45, places[-1] + 45)
    chart.set_xticks(places, [f"{b.name}\n{b.wavelength:.0f}" for b in so2sat.SENTINEL2_BANDS], linespacing=1.4)
    chart.annotate(
        "nm",
        (1, 0),
        (0, -60),
        "axes fraction",
        textcoords="offset pixels",
        ha="right",
        va="center_baseline",
        color=_QUIET,
    )
    lowest, highest = 0.0, 0.0
    for place, band in zip(places, bands):
        marks = _marks(band)
        marks.pop("extremes", None)
        for name, values in marks.items():
            style = dict(_MARKS[name])
            if name == "median":
                style["marker"] = "_"  # across the lines, which are upright here
            chart.plot([place] * len(values), values, **style)
            lowest, highest = min(lowest, *values), max(highest, *values)
        if not marks:
            chart.text(place, 0.03, "none", ha="center", color=_QUIET, transform=at_bottom, bbox=_NO_GRID)
    for index, (start, stop) in enumerate(itertools.pairwise(places)):
        cut = wavelengths[index + 1] - wavelengths[index] > widest
        chart.plot(
            [start, stop],
            [bands[index].mean, bands[index + 1].mean],
            color=_RED,
            linewidth=0.8,
            linestyle=(0, (1, 3)) if cut else "-",
            zorder=1.9,
        )
        if cut:
            chart.text((start + stop) / 2, 0, "//", ha="center", va="center", color=_QUIET, transform=at_bottom)
    chart.set_ylim(1.05 * lowest, 1.05 * highest or 1)
    chart.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    chart.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    chart.grid(axis="y", color=_RULE, linewidth=0.5)


def _draw_radar(chart: Axes, bands: Sequence[_Summary]) -> None:
    """Draws Sentinel-1, a line a channel."""
    linear = 0.1
    chart.set_xscale("symlog", linthresh=linear)
    reach = linear
    for place, band in enumerate(bands):
        marks = _marks(band)
        for name, values in marks.items():
            chart.plot(values, [place] * len(values), **_MARKS[name])
            reach = max(reach, *map(abs, values))
        if not marks:
            chart.text(0, place, "none", ha="center", va="center_baseline", color=_QUIET, bbox=_NO_GRID)
    chart.set_xlim(-reach * 1.5, reach * 1.5)
    chart.set_ylim(len(bands) - 0.5, -0.5)
    chart.set_yticks(range(len(bands)), [band.name for band in so2sat.SENTINEL1_BANDS])
    chart.tick_params(axis="y", labelcolor=_INK)
    chart.xaxis.set_major_formatter(FuncFormatter(_decade))
    chart.set_xlabel(
        f"amplitude (real, imaginary) or power (intensity, covariance); logarithmic beyond ±{linear:g}",
        color=_QUIET,
        fontsize=_TEXT,
    )
    chart.grid(axis="x", color=_RULE, linewidth=0.5)


def _decade(value: float, _: object = None) -> str:
    """Text of a power of ten."""
    if abs(value) < 10_000:
        return f"{value:,g}".replace("-", "−")
    exponent = str(round(math.log10(abs(value))))
    return f"{'−' if value < 0 else ''}10{exponent.translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _number(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan


def _page(title: str, lines: Sequence[str], height: int) -> tuple[Figure, Axes, int]:
    """Makes a figure with a header.

    Args:
        title: First line.
        lines: Lines below it, empty ones are left out.
        height: What is needed below the header.

    Returns:
        The figure; axes that cover it and show nothing, whose unit is the pixel, from the upper left corner; and the
        line where the header ends.
    """
    wrapped = [part for line in lines for part in textwrap.wrap(line, 100)]
    top = MARGIN + 48 + _LINE * len(wrapped) + 22
    total = top + height + MARGIN - 10
    figure = Figure(figsize=(WIDTH / DPI, total / DPI), dpi=DPI)
    FigureCanvasAgg(figure)  # becomes figure.canvas, so that nobody needs pyplot to draw it
    page = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(total, 0), xticks=[], yticks=[])
    page.axis("off")
    _text(page, MARGIN, MARGIN + 16, title, fontsize=_TITLE, weight="bold")
    for number, line in enumerate(wrapped):
        _text(page, MARGIN, MARGIN + 48 + 16 + number * _LINE, line, color=_QUIET)
    return figure, page, top


def _chart(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Adds axes at a place in pixels, with nothing but a line at the bottom."""
    total = figure.bbox.height
    chart = figure.add_axes((left / WIDTH, 1 - (top + height) / total, width / WIDTH, height / total))
    chart.spines[["left", "top", "right"]].set_visible(False)
    chart.spines[["left", "bottom"]].set_color(_QUIET)
    chart.tick_params(length=0, pad=5, labelcolor=_QUIET, labelsize=_TEXT)
    chart.set_axisbelow(True)
    chart.patch.set_visible(False)
    return chart


def _text(page: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Writes text as it is, around the line `y`."""
    page.text(x, y, text, **{"va": "center_baseline", "color": _INK, "parse_math": False, **style})


def _label_class(page: Axes, index: int, x: float, y: float) -> None:
    """Writes code and name of a class, the code on the class's colour, around the line `y`."""
    width, height = _CHIP
    colour = facts.LCZ_COLOURS[index]
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 128
    page.add_patch(
        Rectangle((x, y - height / 2), width, height, facecolor=colour, edgecolor="#00000055", linewidth=0.4)
    )
    _text(
        page,
        x + width / 2,
        y,
        facts.LCZ_CODES[index],
        ha="center",
        weight="bold",
        color="white" if is_dark else _INK,
    )
    _text(page, x + width + _AFTER_CHIP, y, so2sat.LABELS[index])


@_style()
def _png(figure: Figure) -> bytes:
    """Encodes a figure without any metadata, which would tell of time and versions."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(buffer, "PNG")
    return buffer.getvalue()
