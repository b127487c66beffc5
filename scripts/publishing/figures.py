"""Draws pictures of the dataset: patches of every class, patches per class, statistics of the bands.

Each picture is a function that returns the bytes of a PNG, the same bytes for the same input and version of matplotlib,
whatever the user's matplotlib is set to.
"""

from __future__ import annotations

import contextlib
import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib.style
import numpy as np
import numpy.typing as npt
import PIL.Image
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

import so2sat
from publishing import facts

Patch = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]

PATCHES_SHOWN = 4  # as many as fit side by side

# Lengths are in pixels; matplotlib's sizes of text and widths of lines are in points of 1/72 inch.
WIDTH = 1680
_DPI = 200
_MARGIN = 24
_LINE = 34  # from one line of text to the next
_INK, _QUIET, _RULE, _EDGE = "#1f2328", "#59636e", "#d1d9e0", "#999999"
_BLUE, _RED = "#1f5a99", "#d1440c"
_CLASSES = range(len(so2sat.LABELS))
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": _INK,
    "text.hinting": "none",  # takes half the time
    "text.parse_math": False,  # "$" is a dollar
    "axes.edgecolor": _QUIET,
    "axes.labelcolor": _QUIET,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": _RULE,
    "grid.linewidth": 0.5,
    "legend.borderaxespad": 0,
    "legend.borderpad": 0,
    "legend.frameon": False,
    "xtick.labelcolor": _QUIET,
    "xtick.major.size": 0,
    "ytick.labelcolor": _QUIET,
    "ytick.major.size": 0,
}

# ┌────────────┐
# │  Pictures  │
# └────────────┘


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """Sets matplotlib's own defaults and `_STYLE`, so that the user's settings change nothing."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


@_style()
def class_grid(patches: Mapping[int, Sequence[Patch]], note: str) -> bytes:
    """Draws patches of every class.

    Args:
        patches: 32×32×3 pixels by class index. The first PATCHES_SHOWN of a class are drawn, fewer if there are
            fewer, and "none" where there is none.
        note: A line for the picture, such as where the patches are from; may be empty.

    Returns:
        A PNG file, WIDTH pixels wide.
    """
    lines = ["Sentinel-2 in natural colours (B4, B3, B2), 32×32 pixels of 10 m: 320 m a side", note]
    drawn = [patches.get(index, ())[:PATCHES_SHOWN] for index in _CLASSES]
    # In three columns the compact and the open types have a line each, high to low.
    return _patch_table("So2Sat LCZ42: the 17 local climate zones", lines, drawn, 3, PATCHES_SHOWN, scale=4)


@_style()
def class_pairs(natural: Mapping[int, Patch], vv: Mapping[int, npt.NDArray[np.floating]], note: str) -> bytes:
    """Draws one patch of every class, natural colours beside Sentinel-1.

    Args:
        natural: 32×32×3 pixels by class index.
        vv: 32×32 values of the band VV intensity, linear units, by class index. Classes may be absent in both.
        note: A line for the picture, may be empty.

    Returns:
        A PNG file, WIDTH pixels wide.
    """
    lowest, highest = -25, 5
    greys = {}
    for index, intensity in vv.items():
        decibels = 10 * np.log10(np.fmax(intensity, 1e-6))  # NaN is black
        grey = 255 * np.clip((decibels - lowest) / (highest - lowest), 0, 1)
        greys[index] = np.repeat(grey[..., np.newaxis], 3, axis=-1).astype(np.uint8)
    lines = [
        f"Sentinel-2 in natural colours. Sentinel-1: VV intensity from −{-lowest} dB (black) to {highest} dB (white)",
        note,
    ]
    drawn = [[pictures[index] for pictures in (natural, greys) if index in pictures] for index in _CLASSES]
    return _patch_table("So2Sat LCZ42: one patch of every class", lines, drawn, 4, 2, scale=6)


@_style()
def class_histogram(counts: Mapping[str, Sequence[int]], note: str) -> bytes:
    """Draws how many patches of every class there are.

    Args:
        counts: 17 counts by split.
        note: A line for the picture, may be empty.

    Returns:
        A PNG file, WIDTH pixels wide.
    """
    lines = ["Bars: share of the split. Numbers: patches.", note]
    figure, page, top = _page("So2Sat LCZ42: patches per class", lines, 830)
    # Built types and land cover are set apart by half a row.
    rows = top + 104 + np.array([40 * index + (20 if index >= facts.BUILT_TYPES else 0) for index in _CLASSES])
    _name_classes(page, np.full(len(rows), _MARGIN), rows)
    shares = {split: 100 * np.array(of_split) / max(sum(of_split), 1) for split, of_split in counts.items()}
    most = max((share.max() for share in shares.values()), default=0) or 1
    ticks = np.array(MaxNLocator(4 if len(counts) > 1 else 8, steps=[1, 2, 5, 10]).tick_values(0, most))
    ticks = ticks[ticks <= most]
    longest = max((len(f"{max(of_split):,}") for of_split in counts.values()), default=0)
    step = (WIDTH - 330 - _MARGIN) / max(len(counts), 1)  # from split to split
    percent = (step - 60 - 16 * longest) / most
    above, below = rows[0] - 20, rows[-1] + 20
    for left, (split, of_split) in zip(_MARGIN + 330 + step * np.arange(len(counts)), counts.items()):
        _write(page, left, top + 20, split, weight="bold")
        _write(page, left, top + 20 + _LINE, f"{sum(of_split):,} patches", color=_QUIET)
        page.vlines(left + percent * ticks, above, below, color=_RULE, linewidth=0.5)
        for tick in ticks:
            _write(page, left + percent * tick, below + 24, f"{tick:g} %", ha="center", color=_QUIET)
        numbers = [f"{count:,}" for count in of_split]
        right = left + percent * shares[split]
        # The lines end before the numbers.
        page.hlines(rows, right, right + 10 + 14 * np.char.str_len(numbers), color="white", linewidth=9)
        _draw_bars(page, rows, left, right, 27)
        page.vlines(left, above, below, color=_QUIET, linewidth=1)
        for x, y, number in zip(right, rows, numbers):
            _write(page, x + 12, y, number)
    return _png(_draw(figure))


@_style()
def band_statistics(bands: Mapping[str, Sequence[Mapping[str, Any]]], note: str) -> bytes:
    """Draws mean, standard deviation and, where given, percentiles and extremes of every band.

    Args:
        bands: `bands` of a split of config `all` in statistics.json: for `sentinel1` and `sentinel2` a mapping per
            band with `mean` and `std`, and perhaps `percentiles`, `min` and `max`. What is None or not finite is left
            out.
        note: A line for the picture, may be empty.

    Returns:
        A PNG file, WIDTH pixels wide.
    """
    optical, radar = (_values(bands[column]) for column in ("sentinel2", "sentinel1"))
    figure, page, top = _page("So2Sat LCZ42: values of the bands", [note], 1090)
    known = [name for name in _MARKS if np.isfinite([*optical[name].flat, *radar[name].flat]).any()]
    handles = [Line2D([], [], label=name, **_MARKS[name]) for name in known]
    corner = {"bbox_to_anchor": (_MARGIN, top), "bbox_transform": page.transData}
    page.legend(handles=handles, loc="upper left", ncols=len(_MARKS), **corner)
    _write(page, _MARGIN, top + 68, "Sentinel-2: reflectance over wavelength", weight="bold")
    _draw_spectrum(_chart(figure, 110, top + 104, 400), optical)
    _write(page, _MARGIN, top + 626, "Sentinel-1: linear units, not dB", weight="bold")
    _draw_channels(_chart(figure, 330, top + 662, 352), radar)
    return _png(_draw(figure))


# ┌──────────────┐
# │  Their data  │
# └──────────────┘


def pick_patches(batches: Iterable[tuple[pa.Array, Any]]) -> dict[int, list[Patch]]:
    """Picks the first PATCHES_SHOWN patches of every class.

    Args:
        batches: Class indices and images of the same rows, in the order of the split. Images are a column of structs
            with the bytes of files, as in config `rgb`, or pixels of shape (rows, 32, 32, 3), uint8. Those that aren't
            picked aren't decoded, and no more batches are taken than needed.

    Returns:
        At most that many patches by class index; every class is there.
    """
    picked: dict[int, list[Patch]] = {index: [] for index in _CLASSES}
    for labels, images in batches:
        for row, label in enumerate(labels.to_pylist()):
            if len(picked[label]) < PATCHES_SHOWN:
                picked[label].append(_decode(images[row]))
        if all(len(patches) == PATCHES_SHOWN for patches in picked.values()):
            break
    return picked


def _decode(image: Any) -> Patch:
    if isinstance(image, pa.StructScalar):
        with PIL.Image.open(io.BytesIO(image["bytes"].as_py())) as file:
            image = file.convert("RGB")
    return np.asarray(image, np.uint8)


# ┌─────────┐
# │  Pages  │
# └─────────┘


def _page(title: str, lines: Sequence[str], height: int) -> tuple[Figure, Axes, int]:
    """Makes a figure with a header and `height` pixels below it.

    Returns:
        The figure; axes that cover it, whose unit is the pixel, from the upper left corner; where the header ends.
    """
    wrapped = [part for line in lines for part in textwrap.wrap(line, 100)]
    top = _MARGIN + 70 + _LINE * len(wrapped)
    total = top + height + _MARGIN
    figure = Figure(figsize=(WIDTH / _DPI, total / _DPI), dpi=_DPI)
    page = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(total, 0))
    page.set_axis_off()
    _write(page, _MARGIN, _MARGIN + 16, title, fontsize=11, weight="bold")
    for number, line in enumerate(wrapped):
        _write(page, _MARGIN, _MARGIN + 64 + number * _LINE, line, color=_QUIET)
    return figure, page, top


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Writes text around the line `y`."""
    axes.text(x, y, text, **{"va": "center_baseline", **style})


def _draw(figure: Figure) -> PIL.Image.Image:
    """Draws a figure, without pyplot and so without a display."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _png(image: PIL.Image.Image) -> bytes:
    """Encodes without any metadata, which would tell of time and versions."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


# ┌───────────┐
# │  Classes  │
# └───────────┘


def _draw_bars(page: Axes, rows: Numbers, left: Numbers | float, right: Numbers, height: float) -> None:
    """Draws a bar of every class in its colour, with an edge, as some colours are pale."""
    point = _DPI / 72
    page.hlines(rows, left - 1, right + 1, color=_EDGE, linewidth=(height + 2) / point)
    page.hlines(rows, left, right, color=facts.LCZ_COLOURS, linewidth=height / point)


def _name_classes(page: Axes, left: Numbers, rows: Numbers) -> None:
    """Writes code and name of every class, the code on the class's colour."""
    width = 46
    _draw_bars(page, rows, left, left + width, 32)
    for code, name, colour, x, y in zip(facts.LCZ_CODES, so2sat.LABELS, facts.LCZ_COLOURS, left, rows):
        red, green, blue = bytes.fromhex(colour[1:])
        ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 128 else _INK
        _write(page, x + width / 2, y, code, ha="center", weight="bold", color=ink)
        _write(page, x + width + 14, y, name)


def _patch_table(
    title: str, lines: Sequence[str], patches: Sequence[Sequence[Patch]], columns: int, across: int, scale: int
) -> bytes:
    """Draws every class and below it its patches, at most `across`, enlarged `scale` times."""
    gap, name_height, side = 4, 42, scale * so2sat.PATCH_SIZE
    row_height = name_height + side + 26
    row, column = np.divmod(_CLASSES, columns)
    figure, page, top = _page(title, lines, row_height * (row[-1] + 1) - 26)
    lefts = _MARGIN + column * ((WIDTH - 2 * _MARGIN - across * (side + gap) + gap) // (columns - 1))
    tops = top + row * row_height
    _name_classes(page, lefts, tops + 16)
    for index, of_class in enumerate(patches):
        if len(of_class) == 0:
            _write(page, lefts[index] + 60, tops[index] + name_height + 16, "none", color=_QUIET)
    # Patches are put into the finished picture, so that nothing is resampled.
    picture = np.array(_draw(figure))
    for left, above, of_class in zip(lefts, tops + name_height, patches):
        for x, patch in zip(range(left, WIDTH, side + gap), of_class):
            picture[above - 1 : above + side + 1, x - 1 : x + side + 1] = 209  # a frame, as patches may be white
            picture[above : above + side, x : x + side] = patch.repeat(scale, axis=0).repeat(scale, axis=1)
    return _png(PIL.Image.fromarray(picture))


# ┌─────────┐
# │  Bands  │
# └─────────┘

# What is drawn of a band, from back to front: style of a line from low to high or of a marker.
_MARKS: Mapping[str, Mapping[str, Any]] = {
    "mean ± standard deviation": {"color": "#bcd4ee", "linewidth": 9, "solid_capstyle": "butt"},
    "percentiles 0.1 to 99.9": {"color": _BLUE, "linewidth": 0.9, "solid_capstyle": "butt"},
    "1 to 99": {"color": _BLUE, "linewidth": 2.6, "solid_capstyle": "butt"},
    "median": {"color": _BLUE, "marker": "|", "markersize": 9, "markeredgewidth": 1.5, "linestyle": ""},
    "mean": {"color": _RED, "marker": "o", "markersize": 4.5, "markeredgecolor": "white", "linestyle": ""},
    "extremes": {"color": _BLUE, "marker": "x", "markersize": 4, "markeredgewidth": 0.9, "linestyle": ""},
}


def _values(bands: Sequence[Mapping[str, Any]]) -> dict[str, Numbers]:
    """Values of each of `_MARKS`, of shape (bands, 1 or 2); what isn't known is NaN."""
    percentiles = [band.get("percentiles") or {} for band in bands]

    def column(key: str, summaries: Sequence[Mapping[str, Any]] = bands) -> Numbers:
        numbers = np.array([summary.get(key) for summary in summaries], np.float64)  # None becomes NaN
        return np.where(np.isfinite(numbers), numbers, np.nan)

    values = {
        "mean ± standard deviation": [column("mean") - column("std"), column("mean") + column("std")],
        "percentiles 0.1 to 99.9": [column("0.1", percentiles), column("99.9", percentiles)],
        "1 to 99": [column("1", percentiles), column("99", percentiles)],
        "median": [column("50", percentiles)],
        "mean": [column("mean")],
        "extremes": [column("min"), column("max")],
    }
    return {name: np.stack(columns, axis=-1) for name, columns in values.items()}


def _chart(figure: Figure, left: int, top: int, height: int) -> Axes:
    """Adds axes up to the right margin, with room for half a number there."""
    width, total = WIDTH - left - 60, figure.bbox.height
    return figure.add_axes((left / WIDTH, 1 - (top + height) / total, width / WIDTH, height / total))


def _plot_marks(chart: Axes, places: Numbers, values: Mapping[str, Numbers], upright: bool) -> Numbers:
    """Draws what is known of the bands at `places`, "none" where that is nothing; returns all that was drawn."""
    drawn = []
    for name, of_mark in values.items():
        along = np.pad(of_mark, ((0, 0), (0, 1)), constant_values=np.nan)  # NaN ends the line of a band
        across = np.broadcast_to(places[:, np.newaxis], along.shape)
        style = dict(_MARKS[name])
        if upright and name == "median":
            style["marker"] = "_"  # across the line of the band
        chart.plot(*((across.flat, along.flat) if upright else (along.flat, across.flat)), **style)
        drawn.append(of_mark)
    everything = np.concatenate(drawn, axis=1)
    for place in places[np.isnan(everything).all(axis=1)]:
        x, y, transform = (place, 0.05, chart.get_xaxis_transform()) if upright else (0, place, chart.transData)
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        _write(chart, x, y, "none", ha="center", color=_QUIET, transform=transform, bbox=white)
    return everything


def _draw_spectrum(chart: Axes, values: Mapping[str, Numbers]) -> None:
    """Draws Sentinel-2 over wavelength. Extremes are left out: they would leave little of the axis to the rest."""
    wavelengths = np.array([band.wavelength or 0 for band in so2sat.SENTINEL2_BANDS])
    widest = 120  # nm; wider gaps are cut to it, or the bands up to 865 nm would be on top of each other
    gaps = np.diff(wavelengths)
    places = np.concatenate([[0], np.cumsum(np.minimum(gaps, widest))])
    drawn = _plot_marks(chart, places, {name: values[name] for name in values if name != "extremes"}, upright=True)
    mean, far = values["mean"][:, 0], int(np.argmax(gaps > widest))  # the last band before the cuts
    chart.plot(places[: far + 1], mean[: far + 1], color=_RED, linewidth=0.8, zorder=1.9)
    chart.plot(places[far:], mean[far:], color=_RED, linewidth=0.8, linestyle=":", zorder=1.9)
    on_axis: dict[str, Any] = {"ha": "center", "color": _QUIET, "transform": chart.get_xaxis_transform()}
    for place in (places[far:-1] + places[far + 1 :]) / 2:
        _write(chart, place, 0, "//", **on_axis)
    for place, band in zip(places, so2sat.SENTINEL2_BANDS):
        _write(chart, place, -0.08, band.name, **on_axis)
        _write(chart, place, -0.16, f"{band.wavelength:.0f}", **on_axis)
    _write(chart, places[-1] + 35, -0.16, "nm", **on_axis)
    chart.set_xlim(-45, places[-1] + 45)
    chart.set_ylim(1.05 * np.nanmin(drawn, initial=0), 1.05 * np.nanmax(drawn, initial=0) or 1)
    chart.set_xticks([])
    chart.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    chart.yaxis.set_major_formatter("{x:g}")
    chart.grid(axis="y")


def _draw_channels(chart: Axes, values: Mapping[str, Numbers]) -> None:
    """Draws Sentinel-1, a line a channel."""
    linear, rows = 0.1, len(so2sat.SENTINEL1_BANDS)
    chart.set_xscale("symlog", linthresh=linear)
    chart.minorticks_off()
    drawn = _plot_marks(chart, np.arange(rows, dtype=np.float64), values, upright=False)
    reach = 1.5 * np.nanmax(np.abs(drawn), initial=linear)
    chart.set(xlim=(-reach, reach), ylim=(rows - 0.5, -0.5))
    chart.set_xlabel(f"amplitude (real, imaginary) or power (intensity, covariance); logarithmic beyond ±{linear:g}")
    highest = math.floor(math.log10(reach))
    every = math.ceil((highest + 2) / 6)  # at most six powers of ten on either side
    powers = 10.0 ** np.arange(highest, every - 3, -every)
    chart.set_xticks([*-powers, 0, *powers])
    chart.xaxis.set_major_formatter("{x:,g}")
    for row, band in enumerate(so2sat.SENTINEL1_BANDS):
        _write(chart, -0.01, row, band.name, ha="right", transform=chart.get_yaxis_transform())
    chart.set_yticks([])
    chart.grid(axis="x")
