"""Where the patches are: the config `geo`, from the files of places that edition 4 adds to those of the patches."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyproj

import so2sat
from publishing import facts

# Shape of one row of every dataset in these files.
GEO_SHAPES: Mapping[str, tuple[int, ...]] = {"epsg": (1,), "tfw": (6,)}
GEO_TEXT: Mapping[str, tuple[int, ...]] = {"city": (1,)}

PLACE = ("city", "epsg", "x", "y")  # columns that say where a patch is

# Farther than this from its city's centre no patch can be: the publishers' areas reach 130 km (Istanbul's corners), and
# the wrong UTM zone moves a place by 370 km (Moscow) at the least.
CITY_RADIUS = 150_000  # m
TFW_TOLERANCE = 1e-3  # m
PATCH_METRES = so2sat.PATCH_SIZE * so2sat.PIXEL_SIZE  # a side of a patch


def features() -> datasets.Features:
    """Features of config `geo`, in the order of its columns."""
    dtypes = {"city": "string", "epsg": "int32", **dict.fromkeys(("x", "y", "longitude", "latitude"), "float64")}
    label = datasets.ClassLabel(names=list(so2sat.LABELS))
    columns = {name: datasets.Value(dtype) for name, dtype in {"sample_id": "int64", **dtypes}.items()}
    return datasets.Features({"label": label, **columns})


def geo_file(name: str) -> str:
    """Path of the file with the places of another file's patches."""
    return f"{name.removesuffix('.h5')}_geo.h5"


def is_geo(name: str) -> bool:
    """Whether a source file is one with the places of another's patches."""
    return name.endswith("_geo.h5")


@contextlib.contextmanager
def open_geo(path: str) -> Iterator[so2sat.Source]:
    """Opens a file with the places of patches and checks its layout, as so2sat.open_source does.

    Raises:
        so2sat.SourceError: It is not as expected, or it has the form of November 2025, without cities.
    """
    with so2sat.open_source(path, shapes=GEO_SHAPES, optional_text=GEO_TEXT) as geo:
        if "city" not in geo.arrays:
            raise so2sat.SourceError(
                f"{path}: no dataset 'city', as before March 2026; fetch the present file from"
                " https://huggingface.co/datasets/zhu-xlab/So2Sat-LCZ42"
            )
        yield geo


def check(geo: so2sat.Source) -> None:
    """Reads every place, so that a bad one is found before anything is written.

    Raises:
        SourceError: A place can't be right; see read_places.
    """
    for start, stop in so2sat.blocks(0, geo.rows, 1 << 16):
        read_places(geo, start, stop)


def read_columns(patches: so2sat.Source, geo: so2sat.Source, start: int, stop: int) -> dict[str, npt.NDArray[Any]]:
    """Reads a block of rows as the columns of config `geo`.

    Args:
        patches: Where the labels are.
        geo: Where the places are.
        start: First row.
        stop: Row after the last.

    Returns:
        `label` and `sample_id`, int64, and what read_places gives, of shape (rows,) each.

    Raises:
        so2sat.SourceError: The files differ in length, the rows can't be read, a label is not one-hot, or a place can't
            be right.
    """
    if geo.rows != patches.rows:
        raise so2sat.SourceError(
            f"{geo.path}: {geo.rows} rows, expected {patches.rows}, one for every patch of {patches.path}"
        )
    sample_id = np.arange(start, stop, dtype=np.int64)
    return {"label": patches.read_labels(start, stop), "sample_id": sample_id, **read_places(geo, start, stop)}


def read_places(geo: so2sat.Source, start: int, stop: int) -> dict[str, npt.NDArray[Any]]:
    """Reads where the patches of rows `start` to `stop` are.

    Args:
        geo: What open_geo gives.
        start: First row.
        stop: Row after the last.

    Returns:
        `city`, str; `epsg`, int32; `x` and `y` of the patch's top-left corner in that CRS, m, and `longitude`
        and `latitude` of its centre, degrees in WGS 84, float64. Shape (rows,) each.

    Raises:
        SourceError: A row is not a world file of 10 m pixels, its city is unknown or has another EPSG code, or it is
            far from its city. The message names the first such rows.
    """
    x, y = _corners(geo, start, stop)
    city, epsg = _cities(geo, start, stop)
    longitude, latitude, is_near = np.empty(len(x)), np.empty(len(x)), np.empty(len(x), bool)
    for name in {*city}:
        rows = np.flatnonzero(city == name)
        longitude[rows], latitude[rows] = _centres(facts.CITIES[name].epsg, x[rows], y[rows])
        is_near[rows] = _is_near(name, longitude[rows], latitude[rows])
    _require(
        is_near,
        geo,
        start,
        lambda row: f"{longitude[row]:.2f}° east, {latitude[row]:.2f}° north",
        "as centre",
        f"a place within {CITY_RADIUS // 1000} km of its city's",
    )
    numbers = {"x": x, "y": y, "longitude": longitude, "latitude": latitude}
    return {"city": city, "epsg": epsg.astype(np.int32), **numbers}


def shared(splits: Mapping[str, Mapping[str, npt.NDArray[Any]]]) -> dict[str, dict[str, dict[str, int]]]:
    """Counts what every pair of splits of `geo` shares.

    Args:
        splits: The columns `city`, `epsg`, `x` and `y` of every split.

    Returns:
        By split and other split: `cities`, how many are in both, and `near`, how many patches of the first are less
        than PATCH_METRES in x and in y from one of the other, in the same zone. A pair stands once, under validation
        before test before train.
    """
    ordered = sorted(splits, key=["validation", "test", "train"].index)
    result: dict[str, dict[str, dict[str, int]]] = {split: {} for split in splits}
    for split, other in itertools.combinations(ordered, 2):
        ours, theirs = splits[split], splits[other]
        cities = {*ours["city"]} & {*theirs["city"]}
        result[split][other] = {"cities": len(cities), "near": int(_near_another(ours, theirs).sum())}
    return result


def _near_another(
    ours: Mapping[str, npt.NDArray[Any]], theirs: Mapping[str, npt.NDArray[Any]]
) -> npt.NDArray[np.bool_]:
    near = np.zeros(len(ours["x"]), bool)
    for code in np.unique(ours["epsg"]):
        rows, others = np.flatnonzero(ours["epsg"] == code), np.flatnonzero(theirs["epsg"] == code)
        others = others[np.argsort(theirs["x"][others])]
        x, y = theirs["x"][others], theirs["y"][others]
        first = np.searchsorted(x, ours["x"][rows] - PATCH_METRES, side="right")
        last = np.searchsorted(x, ours["x"][rows] + PATCH_METRES, side="left")
        for row, start, stop in zip(rows, first, last):
            near[row] = (np.abs(y[start:stop] - ours["y"][row]) < PATCH_METRES).any()
    return near


def _cities(geo: so2sat.Source, start: int, stop: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The cities by name, and their EPSG codes, which the file must agree with."""
    city, epsg = np.empty(stop - start, object), geo.read("epsg", start, stop).reshape(-1)
    city[:] = [_text(name) for name in geo.read("city", start, stop).reshape(-1)]
    known = np.array([name in facts.CITIES for name in city])
    _require(known, geo, start, lambda row: city[row], "as city", f"one of {', '.join(facts.CITIES)}")
    right = np.array([facts.CITIES[name].epsg for name in city])
    published = np.array([facts.CITIES[name].published_epsg or facts.CITIES[name].epsg for name in city])
    agrees, expected = (epsg == right) | (epsg == published), "the publishers' code of that city (publishing/facts.py)"
    _require(agrees, geo, start, lambda row: f"{epsg[row]} for {city[row]}", "as EPSG code", expected)
    return city, right


def _corners(geo: so2sat.Source, start: int, stop: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The top-left corners."""
    tfw = geo.read("tfw", start, stop).astype(np.float64)
    expected = [so2sat.PIXEL_SIZE, 0, 0, so2sat.PIXEL_SIZE]
    with np.errstate(invalid="ignore"):
        is_right = np.asarray((np.abs(np.abs(tfw[:, :4]) - expected) < TFW_TOLERANCE).all(axis=1))
    form = "10 0 0 ±10 x y, as from March 2026 on; older files had another order: fetch the present file"
    _require(is_right, geo, start, lambda row: " ".join(f"{value:g}" for value in tfw[row]), "as tfw", form)
    return tfw[:, 4], tfw[:, 5]


def _centres(epsg: int, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[Any, Any]:
    """Longitude and latitude of the centres of patches with these top-left corners."""
    half = PATCH_METRES / 2
    return _to_wgs84(epsg).transform(x + half, y - half)  # type: ignore[no-any-return]


@functools.lru_cache
def _to_wgs84(epsg: int) -> Any:
    return pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)


def _is_near(name: str, longitude: npt.NDArray[np.float64], latitude: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    city = facts.CITIES[name]
    centre = np.full(len(longitude), city.longitude), np.full(len(longitude), city.latitude)
    *_, distance = pyproj.Geod(ellps="WGS84").inv(*centre, longitude, latitude)
    return np.asarray(distance) <= CITY_RADIUS


def _text(name: bytes | str) -> str:
    return (name.decode("utf-8", "replace") if isinstance(name, bytes) else name).strip().lower()


def _require(
    right: npt.NDArray[np.bool_],
    geo: so2sat.Source,
    start: int,
    found: Callable[[int], object],
    role: str,
    expected: str,
) -> None:
    """Raises a SourceError that names the first rows that are not right, if any, and what is `found` in one."""
    rows = np.flatnonzero(~right)
    if rows.size:
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        named = ", ".join(str(start + row) for row in rows[:5]) + more
        raise so2sat.SourceError(f"{geo.path}: row {named} has {found(int(rows[0]))} {role}, expected {expected}")
