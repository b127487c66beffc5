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

# Shape of one row of every dataset in these files; `city` may be absent.
GEO_SHAPES: Mapping[str, tuple[int, ...]] = {"epsg": (1,), "tfw": (6,)}
GEO_TEXT: Mapping[str, tuple[int, ...]] = {"city": (1,)}

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
    path, query = so2sat.split_query(name)
    return f"{path.removesuffix('.h5')}_geo.h5{query}"


def is_geo(name: str) -> bool:
    """Whether a source file is one with the places of another's patches."""
    return name.endswith("_geo.h5")


def open_geo(path: str) -> contextlib.AbstractContextManager[so2sat.Source]:
    """Opens a file with the places of patches and checks its layout, as so2sat.open_source does."""
    return so2sat.open_source(path, shapes=GEO_SHAPES, optional_text=GEO_TEXT)


@contextlib.contextmanager
def open_both(path: str) -> Iterator[tuple[so2sat.Source, so2sat.Source]]:
    """Opens a file with patches and the one with their places beside it.

    Raises:
        so2sat.MissingSourceError: One of them is not there.
        so2sat.SourceError: One is not as expected, or they differ in length.
    """
    with so2sat.open_source(path) as patches, open_geo(geo_file(path)) as geo:
        if geo.rows != patches.rows:
            raise so2sat.SourceError(
                f"{geo.path}: {geo.rows} rows, expected {patches.rows}, one for every patch of {path}"
            )
        yield patches, geo


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
        so2sat.SourceError: The rows can't be read, a label is not one-hot, or a place can't be right.
    """
    sample_id = np.arange(start, stop, dtype=np.int64)
    return {"label": patches.read_labels(start, stop), "sample_id": sample_id, **read_places(geo, start, stop)}


def read_places(geo: so2sat.Source, start: int, stop: int) -> dict[str, npt.NDArray[Any]]:
    """Reads where the patches of rows `start` to `stop` are.

    Args:
        geo: What open_geo gives.
        start: First row.
        stop: Row after the last.

    Returns:
        `city`, str or None; `epsg`, int32; `x` and `y` of the patch's top-left corner in that CRS, m, and `longitude`
        and `latitude` of its centre, degrees in WGS 84, float64. Shape (rows,) each. A file without `city` names none:
        then a patch is of the one city of its EPSG code within CITY_RADIUS, of None if there are two.

    Raises:
        SourceError: A row is in no known order, its city is unknown or has another EPSG code, or it is far from its
            city. The message names the first such rows.
    """
    x, y = _corners(geo, start, stop)
    epsg = geo.read("epsg", start, stop).reshape(-1)
    if "city" in geo.arrays:
        city, epsg = _named_cities(geo, start, stop, epsg)
    else:
        city, epsg = np.full(len(x), None), _without_published_errors(epsg, x, y)
    is_zone = np.isin(epsg, [place.epsg for place in facts.CITIES.values()])
    _require(is_zone, geo, start, lambda row: epsg[row], "as EPSG code", "the code of a city's UTM zone")
    longitude, latitude = np.empty(len(x)), np.empty(len(x))
    for code in np.unique(epsg):
        rows = np.flatnonzero(epsg == code)
        longitude[rows], latitude[rows] = _centres(int(code), x[rows], y[rows])
    near = _near_cities(epsg, longitude, latitude)
    if "city" in geo.arrays:
        is_near = np.any([those & (city == name) for name, those in near.items()], axis=0)
    else:
        count = np.sum([*near.values()], axis=0)
        is_near = count > 0
        for name, those in near.items():
            city[those & (count == 1)] = name
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
        cities = {*ours["city"]} & {*theirs["city"]} - {None}
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


def _named_cities(
    geo: so2sat.Source, start: int, stop: int, epsg: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The cities by name, and their EPSG codes, which the file must agree with."""
    city = np.empty(stop - start, object)
    city[:] = [_text(name) for name in geo.read("city", start, stop).reshape(-1)]
    known = np.array([name in facts.CITIES for name in city])
    _require(known, geo, start, lambda row: city[row], "as city", f"one of {', '.join(facts.CITIES)}")
    right = np.array([facts.CITIES[name].epsg for name in city])
    published = np.array([facts.CITIES[name].published_epsg or facts.CITIES[name].epsg for name in city])
    agrees, expected = (epsg == right) | (epsg == published), "the publishers' code of that city (publishing/facts.py)"
    _require(agrees, geo, start, lambda row: f"{epsg[row]} for {city[row]}", "as EPSG code", expected)
    return city, right


def _without_published_errors(
    epsg: npt.NDArray[Any], x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> npt.NDArray[Any]:
    """The EPSG codes with the right one for places that lie in a city whose published code is wrong."""
    epsg = epsg.copy()
    for name, city in facts.CITIES.items():
        if city.published_epsg:
            rows = np.flatnonzero(epsg == city.published_epsg)
            epsg[rows[_is_near(name, *_centres(city.epsg, x[rows], y[rows]))]] = city.epsg
    return epsg


def _corners(geo: so2sat.Source, start: int, stop: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The top-left corners. The pixel size of 10 m tells the order of `tfw`, for every row without a doubt."""
    tfw = geo.read("tfw", start, stop).astype(np.float64)

    def have_sizes_in(columns: list[int]) -> Any:
        expected = [so2sat.PIXEL_SIZE, 0, 0, so2sat.PIXEL_SIZE]
        with np.errstate(invalid="ignore"):
            return (np.abs(np.abs(tfw[:, columns]) - expected) < TFW_TOLERANCE).all(axis=1)

    is_world_file, is_transform = have_sizes_in([0, 1, 2, 3]), have_sizes_in([1, 2, 4, 5])
    orders = "10 0 0 ±10 x y (March 2026) or x 10 0 y 0 ±10 (November 2025)"
    known = is_world_file | is_transform
    _require(known, geo, start, lambda row: " ".join(f"{value:g}" for value in tfw[row]), "as tfw", orders)
    return np.where(is_world_file, tfw[:, 4], tfw[:, 0]), np.where(is_world_file, tfw[:, 5], tfw[:, 3])


def _centres(epsg: int, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[Any, Any]:
    """Longitude and latitude of the centres of patches with these top-left corners."""
    half = PATCH_METRES / 2
    return _to_wgs84(epsg).transform(x + half, y - half)  # type: ignore[no-any-return]


@functools.lru_cache
def _to_wgs84(epsg: int) -> Any:
    return pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)


def _near_cities(
    epsg: npt.NDArray[Any], longitude: npt.NDArray[np.float64], latitude: npt.NDArray[np.float64]
) -> dict[str, npt.NDArray[np.bool_]]:
    """By city, which places are in its zone and within CITY_RADIUS of its centre."""
    near = {}
    for name, city in facts.CITIES.items():
        near[name] = epsg == city.epsg
        near[name][near[name]] = _is_near(name, longitude[near[name]], latitude[near[name]])
    return near


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
