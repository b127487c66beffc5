"""Draws pictures of the dataset: patches of every class, patches per class, values of the bands, cities.

Each picture is a function that returns the bytes of a PNG, the same bytes for the same input and version of matplotlib,
whatever the user's matplotlib is set to.
"""

from __future__ import annotations

import contextlib
import io
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

import so2sat
from publishing import facts

Patch = npt.NDArray[np.uint8]

PATCHES_SHOWN = 4  # as many as fit side by side
WIDTH = 8.4  # inches, at 200 pixels each

_INK, _QUIET, _RULE = "#1f2328", "#59636e", "#d1d9e0"
_BLUE, _RED = "#1f5a99", "#d1440c"
_CLASSES = range(len(so2sat.LABELS))
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": _INK,
    "text.hinting": "none",  # takes half the time
    "text.parse_math": False,  # "$" is a dollar
    "axes.axisbelow": True,
    "axes.edgecolor": _QUIET,
    "axes.labelcolor": _QUIET,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "figure.dpi": 200,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "grid.color": _RULE,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "xtick.labelcolor": _QUIET,
    "ytick.labelcolor": _QUIET,
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
        A PNG file.
    """
    about = "Sentinel-2 in natural colours (B4, B3, B2), 32×32 pixels of 10 m: 320 m a side"
    drawn = [patches.get(index, ())[:PATCHES_SHOWN] for index in _CLASSES]
    # In three columns the compact and the open types have a line each, high to low.
    return _patch_table("So2Sat LCZ42: the 17 local climate zones", [about, note], drawn, 3, PATCHES_SHOWN)


@_style()
def class_pairs(natural: Mapping[int, Patch], vv: Mapping[int, npt.NDArray[np.floating]], note: str) -> bytes:
    """Draws one patch of every class, natural colours beside Sentinel-1.

    Args:
        natural: 32×32×3 pixels by class index.
        vv: 32×32 values of the band VV intensity, linear units, by class index. Classes may be absent in both.
        note: A line for the picture, may be empty.

    Returns:
        A PNG file.
    """
    lowest, highest = -25, 5
    greys = {}
    for index, intensity in vv.items():
        decibels = 10 * np.log10(np.fmax(intensity, 1e-6))  # NaN is black
        grey = 255 * np.clip((decibels - lowest) / (highest - lowest), 0, 1)
        greys[index] = np.repeat(grey[..., np.newaxis], 3, axis=-1).astype(np.uint8)
    about = f"Sentinel-2 in natural colours. Sentinel-1: VV intensity from {lowest} dB (black) to {highest} dB (white)"
    drawn = [[pictures[index] for pictures in (natural, greys) if index in pictures] for index in _CLASSES]
    return _patch_table("So2Sat LCZ42: one patch of every class", [about, note], drawn, 4, 2)


@_style()
def class_histogram(counts: Mapping[str, Sequence[int]], note: str) -> bytes:
    """Draws how many patches of every class there are.

    Args:
        counts: 17 counts by split.
        note: A line for the picture, may be empty.

    Returns:
        A PNG file.
    """
    lines = ["Bars: share of the split. Numbers: patches.", note]
    figure = _page("So2Sat LCZ42: patches per class", lines, 4.8)
    names = [f"{name}  {code:>2}" for name, code in zip(so2sat.LABELS, facts.LCZ_CODES)]
    rows = [index + 0.5 * (index >= facts.BUILT_TYPES) for index in _CLASSES]  # sets built types and land cover apart
    charts = figure.subplots(1, max(len(counts), 1), sharex=True, sharey=True, squeeze=False)[0]
    for chart, (split, of_split) in zip(charts, counts.items()):
        share = 100 * np.array(of_split) / max(sum(of_split), 1)
        bars = chart.barh(rows, share, color=facts.LCZ_COLOURS, edgecolor="#999999", linewidth=0.5)
        chart.bar_label(bars, [f"{count:,}" for count in of_split], padding=2)
        chart.set_title(f"{split}: {sum(of_split):,} patches")
        chart.grid(axis="x")
        chart.xaxis.set_major_formatter("{x:g} %")
    charts[0].set_yticks(rows, names, color=_INK)
    charts[0].invert_yaxis()
    charts[0].margins(x=0.3, y=0.02)
    for chart in charts:
        chart.tick_params(length=0)
    return _png(_draw(figure))


@_style()
def band_statistics(bands: Mapping[str, Sequence[Mapping[str, Any]]], note: str) -> bytes:
    """Draws percentiles and mean of every band, and the extremes of Sentinel-1.

    Args:
        bands: `bands` of a split of config `all` in statistics.json: for `sentinel1` and `sentinel2` a mapping per
            band with `mean`, `percentiles`, `min` and `max`. What is None or not finite is left out.
        note: A line for the picture, may be empty.

    Returns:
        A PNG file.
    """
    figure = _page("So2Sat LCZ42: values of the bands", [note], 6)
    optical, radar = figure.subplots(2, 1)
    # Extremes of reflectance are left out: they would leave little of the axis to the rest.
    _draw_bands(optical, [{**band, "min": None, "max": None} for band in bands["sentinel2"]], upright=True)
    optical.set(title="Sentinel-2: reflectance", ylabel="reflectance")
    names = [f"{band.name}\n{band.wavelength:.0f} nm" for band in so2sat.SENTINEL2_BANDS]
    optical.set_xticks(range(len(names)), names)
    optical.grid(axis="y")
    _draw_bands(radar, bands["sentinel1"], upright=False)
    radar.set_title("Sentinel-1: linear units, not dB (logarithmic beyond ±0.1)")
    radar.set_xscale("symlog", linthresh=0.1)
    radar.set_yticks(range(len(so2sat.SENTINEL1_BANDS)), [band.name for band in so2sat.SENTINEL1_BANDS])
    radar.invert_yaxis()
    radar.xaxis.set_major_formatter("{x:g}")
    radar.grid(axis="x")
    radar.legend(loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=len(_MARKS))
    return _png(_draw(figure))


@_style()
def city_map(cities: Mapping[str, Mapping[str, tuple[float, float]]], note: str) -> bytes:
    """Draws where the cities are: those of the training split, and those of the others.

    Args:
        cities: Longitude and latitude in degrees, by split and name.
        note: A line for the picture, may be empty.

    Returns:
        A PNG file.
    """
    figure = _page("So2Sat LCZ42: cities by split", [note], 6.4)
    charts: dict[str, Axes] = figure.subplot_mosaic(
        [["world", "world"], ["Europe", "East Asia"]], height_ratios=[1.3, 1]
    )
    others = {name: place for split in cities.keys() - {"train"} for name, place in cities[split].items()}
    for group, members, colour in (("train", cities.get("train", {}), _BLUE), ("validation and test", others, _RED)):
        east, north = np.array([*members.values()]).reshape(-1, 2).T
        for chart in charts.values():
            chart.scatter(east, north, s=14, color=colour, label=group)
        for name, place in members.items():
            chart = charts[next(title for title, window in _WINDOWS.items() if _is_within(place, window))]
            offset = _OFFSETS.get(name, (3, 2))
            side = "left" if offset[0] > 0 else "right"
            chart.annotate(name, place, offset, textcoords="offset points", ha=side, fontsize=6.5, color=colour)
    for title, chart in charts.items():
        xlim, ylim = _WINDOWS[title]
        chart.set(xlim=xlim, ylim=ylim, title=title.replace("world", ""))
        chart.xaxis.set_major_formatter("{x:g}°")
        chart.yaxis.set_major_formatter("{x:g}°")
        chart.grid()
    charts["world"].legend(loc="lower left")
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
# │  Parts  │
# └─────────┘


def _page(title: str, lines: Sequence[str], height: float) -> Figure:
    """Makes a figure with a title above and lines below, which leaves matplotlib the layout between them."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left")
    wrapped = [part for line in lines for part in textwrap.wrap(line, 110)]
    figure.supxlabel("\n".join(wrapped), x=0.01, ha="left", fontsize=8, color=_QUIET)
    return figure


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


def _patch_table(
    title: str, lines: Sequence[str], patches: Sequence[Sequence[Patch]], columns: int, across: int
) -> bytes:
    """Draws every class and below it its patches, at most `across`."""
    rows = -(-len(_CLASSES) // columns)
    figure = _page(title, lines, 0.9 + rows * (WIDTH / columns / across + 0.3))
    charts = figure.subplots(rows, columns).flat
    for chart in charts:
        chart.set_axis_off()
    for index, (chart, of_class) in enumerate(zip(figure.axes, patches)):
        side = so2sat.PATCH_SIZE
        strip = np.full((side, across * (side + 1), 3), 255, np.uint8)
        for number, patch in enumerate(of_class):
            strip[:, number * (side + 1) :][:, :side] = patch
        chart.imshow(strip, interpolation="nearest")
        _name_class(chart, index)
        if len(of_class) == 0:
            chart.text(0, side / 2, "none", color=_QUIET)
    return _png(_draw(figure))


def _name_class(chart: Axes, index: int) -> None:
    """Writes code and name of a class above its patches, the code on the class's colour."""
    colour = facts.LCZ_COLOURS[index]
    red, green, blue = bytes.fromhex(colour[1:])
    ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 128 else _INK
    box = {"facecolor": colour, "edgecolor": "#999999", "linewidth": 0.5, "pad": 2}
    code, name = facts.LCZ_CODES[index], so2sat.LABELS[index]
    above: dict[str, Any] = {"xy": (0, 1), "xycoords": "axes fraction", "textcoords": "offset points"}
    chart.annotate(f"{code:^{5 - len(code)}}", xytext=(2, 5), bbox=box, color=ink, weight="bold", **above)
    chart.annotate(name, xytext=(24, 5), **above)


# What a map shows, degrees east and north, the parts first. Names stand in the first that has the city.
_WINDOWS = {
    "Europe": ((-14, 46), (35, 59)),
    "East Asia": ((102, 146), (12, 44)),
    "world": ((-140, 170), (-45, 65)),
}
# Where a name stands, in points from its city, for those that would cover another.
_OFFSETS = {
    **dict.fromkeys(("Chicago", "Kyoto", "London", "Melbourne", "Nanjing", "Santiago", "Wuhan", "Zürich"), (-4, 2)),
    **dict.fromkeys(("Dongying", "Guangzhou", "Orangi Town (Karachi)", "Paris"), (-4, 2)),
    "Amsterdam": (-4, 5),
    "Los Angeles": (4, -4),
    "Hong Kong": (4, -6),
    "Philadelphia": (4, -4),
    "São Paulo": (-4, -6),
    "Washington, D.C.": (4, -10),
}


def _is_within(place: tuple[float, float], window: tuple[tuple[float, float], ...]) -> bool:
    return all(low < at < high for at, (low, high) in zip(place, window))


_POINT = {"color": _BLUE, "linestyle": ""}
# What is drawn of a band: keys of a range or a point, and its style.
_MARKS: Mapping[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
    "percentiles 0.1 to 99.9": (("0.1", "99.9"), {"color": _BLUE, "linewidth": 0.9}),
    "percentiles 1 to 99": (("1", "99"), {"color": _BLUE, "linewidth": 3}),
    "median": (("50",), {**_POINT, "marker": "o", "markersize": 5.5, "markerfacecolor": "white"}),
    "mean": (("mean",), {**_POINT, "color": _RED, "marker": "D", "markersize": 2.5}),
    "extremes": (("min", "max"), {**_POINT, "marker": "x", "markersize": 4}),
}


def _draw_bands(chart: Axes, bands: Sequence[Mapping[str, Any]], upright: bool) -> None:
    """Draws what is known of every band, "none" where that is nothing."""
    for label, (keys, style) in _MARKS.items():
        for place, band in enumerate(bands):
            found = {**(band.get("percentiles") or {}), **band}
            values = [np.nan if found.get(key) is None else found[key] for key in keys]
            finite, at = [value if np.isfinite(value) else np.nan for value in values], [place] * len(keys)
            chart.plot(*((at, finite) if upright else (finite, at)), label=label if place == 0 else "", **style)
    for place, band in enumerate(bands):
        if band.get("mean") is None:
            x, y = (place, 0) if upright else (0, place)
            chart.text(x, y, "none", ha="center", va="center", color=_QUIET)
