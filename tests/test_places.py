"""Config geo: where the patches are, from files of every generation.

tests/data/positions.csv has every 200th position of edition 4's validation and test split, by Zhu et al., CC BY 4.0
(github.com/zhu-xlab/So2Sat-LCZ42).
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest

import build
import so2sat
import verify
from conftest import serving, write_shard, write_source
from publishing import facts, layout, places
from publishing.command import CommandError

with Path(__file__).with_name("data").joinpath("positions.csv").open() as lines:
    POSITIONS = list(csv.DictReader(lines))
NAMES = [row["city"] for row in POSITIONS]
EPSG = np.array([int(row["epsg"]) for row in POSITIONS], np.int32)
X, Y = (np.array([float(row[name]) for row in POSITIONS]) for name in "xy")
ROWS = len(POSITIONS)


def march_2026(sign: int = -1) -> npt.NDArray[np.float64]:
    tfw = np.tile([10.0, 0, 0, sign * 10.0, 0, 0], (ROWS, 1))
    tfw[:, 4], tfw[:, 5] = X, Y
    return tfw


def november_2025() -> npt.NDArray[np.float64]:
    tfw = np.tile([0, 10.0, 0, 0, 0, 10.0], (ROWS, 1))
    tfw[:, 0], tfw[:, 3] = X, Y
    return tfw


def arrays(**changes: Any) -> dict[str, Any]:
    """Content of a file of March 2026; None leaves an array out."""
    found = {"epsg": EPSG[:, None], "tfw": march_2026(), "city": np.array(NAMES, "S16")[:, None], **changes}
    return {name: values for name, values in found.items() if values is not None}


def read_rows(tmp_path: Path, **changes: Any) -> dict[str, npt.NDArray[Any]]:
    path = write_source(tmp_path / "validation_geo.h5", arrays(**changes))
    with places.open_geo(str(path)) as geo:
        return places.read_places(geo, 0, ROWS)


def inverse_mercator(epsg: int, x: float, y: float) -> tuple[float, float]:
    """Longitude and latitude by the series of Krüger to the third order, good to a millimetre within a zone."""
    flattening = 1 / 298.257223563
    n = flattening / (2 - flattening)
    radius = 0.9996 * 6378137.0 / (1 + n) * (1 + n**2 / 4 + n**4 / 64)
    zone, is_south = epsg % 100, epsg // 100 == 327
    xi, eta = (y - 1e7 * is_south) / radius, (x - 500_000) / radius
    beta = (n / 2 - 2 * n**2 / 3 + 37 * n**3 / 96, n**2 / 48 + n**3 / 15, 17 * n**3 / 480)
    delta = (2 * n - 2 * n**2 / 3 - 2 * n**3, 7 * n**2 / 3 - 8 * n**3 / 5, 56 * n**3 / 15)
    xi1 = xi - sum(b * math.sin(2 * j * xi) * math.cosh(2 * j * eta) for j, b in enumerate(beta, 1))
    eta1 = eta - sum(b * math.cos(2 * j * xi) * math.sinh(2 * j * eta) for j, b in enumerate(beta, 1))
    chi = math.asin(math.sin(xi1) / math.cosh(eta1))
    latitude = chi + sum(d * math.sin(2 * j * chi) for j, d in enumerate(delta, 1))
    longitude = 6 * zone - 183 + math.degrees(math.atan2(math.sinh(eta1), math.cos(xi1)))
    return longitude, math.degrees(latitude)


def test_positions_are_right_to_a_metre(tmp_path: Path) -> None:
    found = read_rows(tmp_path)
    for row in range(ROWS):
        longitude, latitude = inverse_mercator(int(EPSG[row]), X[row] + 160, Y[row] - 160)
        east = (found["longitude"][row] - longitude) * 111_320 * math.cos(math.radians(latitude))
        north = (found["latitude"][row] - latitude) * 110_574
        assert math.hypot(east, north) < 1
    assert {code // 100 for code in EPSG.tolist()} == {326, 327}  # both hemispheres are among them


def test_the_computation_of_this_test_agrees_with_published_coordinates() -> None:
    # The middle meridian of a zone on the equator: exact by definition.
    assert inverse_mercator(32632, 500_000, 0) == pytest.approx((9, 0), abs=1e-9)
    # CN Tower, Toronto: 17N 630084 m E, 4833438 m N is 43°38′33.24″ N, 79°23′13.7″ W (Wikipedia, UTM).
    longitude, latitude = inverse_mercator(32617, 630_084, 4_833_438)
    assert longitude == pytest.approx(-(79 + 23 / 60 + 13.7 / 3600), abs=2e-5)
    assert latitude == pytest.approx(43 + 38 / 60 + 33.24 / 3600, abs=2e-5)


FORMS: dict[str, dict[str, Any]] = {
    "north up": {},
    "pixel height not negated": {"tfw": march_2026(+1)},
    "one-dimensional": {"epsg": EPSG, "city": np.array(NAMES, "S16")},
    "text of any length": {"city": np.array(NAMES, object)},
    "capitals and blanks": {"city": np.array([f" {name.title()} " for name in NAMES], object)},
    "float codes": {"epsg": EPSG.astype("f8")},
    "November 2025": {"tfw": november_2025(), "city": None},
    "November 2025 with cities": {"tfw": november_2025()},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_files_gives_the_same_places(form: str, tmp_path: Path) -> None:
    expected, found = read_rows(tmp_path / "a"), read_rows(tmp_path / "b", **FORMS[form])
    assert expected["city"].tolist() == NAMES
    np.testing.assert_array_equal(expected["x"], X)
    np.testing.assert_array_equal(expected["y"], Y)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert found[name].tolist() == values.tolist()


def write_places(path: Path, city: str | None, *rows: tuple[int, float, float]) -> Path:
    """Writes places of one city, given as EPSG code, x and y; without its name if that is None."""
    epsg, x, y = (np.array(column) for column in zip(*rows))
    tfw = np.tile([10.0, 0, 0, -10, 0, 0], (len(rows), 1))
    tfw[:, 4], tfw[:, 5] = x, y
    named = {} if city is None else {"city": np.full((len(rows), 1), city.encode())}
    return write_source(path, {"epsg": epsg[:, None], "tfw": tfw, **named})


def read_all(path: Path) -> dict[str, npt.NDArray[Any]]:
    with places.open_geo(str(path)) as geo:
        return places.read_places(geo, 0, geo.rows)


def kilometres(name: str, longitude: float, latitude: float) -> float:
    """From a city's centre along a great circle of a sphere: right to half a percent."""
    centre = math.radians(facts.CITIES[name].latitude), math.radians(facts.CITIES[name].longitude)
    there = math.radians(latitude), math.radians(longitude)
    half = math.sin((there[0] - centre[0]) / 2) ** 2
    half += math.cos(there[0]) * math.cos(centre[0]) * math.sin((there[1] - centre[1]) / 2) ** 2
    return 2 * 6371 * math.asin(math.sqrt(half))


@pytest.mark.parametrize("name", facts.CITIES)
def test_a_city_that_is_not_named_is_the_right_one_or_none(name: str, tmp_path: Path) -> None:
    city = facts.CITIES[name]
    x, y = pyproj.Transformer.from_crs(4326, city.epsg, always_xy=True).transform(city.longitude, city.latitude)
    offsets = np.random.default_rng(0).uniform(-70_000, 70_000, (100, 2))  # so at most 100 km away
    rows = [(city.epsg, x + east, y + north) for east, north in offsets]
    found = read_all(write_places(tmp_path / "training_geo.h5", None, *rows))
    others = [other for other in facts.CITIES if facts.CITIES[other].epsg == city.epsg and other != name]
    for row, deduced in enumerate(found["city"]):
        distances = [kilometres(other, found["longitude"][row], found["latitude"][row]) for other in others]
        assert deduced in (name, None)
        if all(distance > 152 for distance in distances):
            assert deduced == name
        if any(distance < 148 for distance in distances):
            assert deduced is None


def test_shenzhen_and_hong_kong_can_not_be_told_apart_without_names(tmp_path: Path) -> None:
    place = (32650, 196_000.0, 2_496_000.0)
    for name in ("shenzhen", "hongkong", None):
        assert read_all(write_places(tmp_path / f"{name}" / "x_geo.h5", name, place))["city"].tolist() == [name]


@pytest.mark.parametrize("name", ["orangitown", None])
@pytest.mark.parametrize("code", [32618, 32642])
def test_orangi_town_is_in_karachi_whatever_the_list_says(code: int, name: str | None, tmp_path: Path) -> None:
    found = read_all(write_places(tmp_path / "training_geo.h5", name, (code, 297_000, 2_760_000)))
    assert found["city"].tolist() == ["orangitown"]
    assert found["epsg"].tolist() == [32642]
    assert found["longitude"][0] == pytest.approx(66.99, abs=0.1)
    assert found["latitude"][0] == pytest.approx(24.95, abs=0.1)


def test_orangi_town_is_not_in_new_york(tmp_path: Path) -> None:
    new_york = (32618, 583_900.0, 4_507_300.0)
    assert read_all(write_places(tmp_path / "a_geo.h5", "newyork", new_york))["epsg"].tolist() == [32618]
    with pytest.raises(so2sat.SourceError, match=r"row 0 has .* as centre, expected a place within 150 km"):
        read_all(write_places(tmp_path / "b_geo.h5", "orangitown", new_york))
    # Without a name New York's own code stands.
    assert read_all(write_places(tmp_path / "c_geo.h5", None, new_york))["epsg"].tolist() == [32618]


def changed(values: npt.NDArray[Any], rows: list[int], new: Any, column: int | None = None) -> npt.NDArray[Any]:
    values = values.copy()
    values[rows if column is None else (rows, column)] = new
    return values


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"tfw": changed(march_2026(), [3, 5], 30.0, 0)}, r"row 3, 5 has 30 0 0 -10 .* as tfw, expected 10 0 0 ±10 x y"),
    ({"tfw": changed(march_2026(), [4], np.nan, 4)}, r"row 4 has nan° east, nan° north|row 4 has inf"),
    ({"city": changed(np.array(NAMES, "S16"), [7], b"atlantis")}, r"row 7 has atlantis as city, expected one of amst"),
    (
        {"epsg": changed(EPSG, [1, 2, 9], 32601)},
        r"row 1, 2, 9 has 32601 for \w+ as EPSG code, expected the publishers'",
    ),
    ({"epsg": changed(EPSG, [0], 4326), "city": None}, r"row 0 has 4326 as EPSG code, expected the code of a city's"),
    (
        {"tfw": changed(march_2026(), [6], 900_000, 4)},
        r"row 6 has .*° east.* as centre, expected a place within 150 km",
    ),
    ({"epsg": None}, r"no dataset 'epsg'"),
    ({"tfw": None}, r"no dataset 'tfw'"),
    ({"tfw": march_2026()[:, :5]}, r"dataset 'tfw' has shape \(\d+, 5\), expected"),
    ({"tfw": march_2026()[:5]}, r"datasets differ in length"),
    ({"city": np.arange(ROWS)}, r"dataset 'city' has dtype int64, expected text"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_can_not_be_right_is_refused_with_the_rows(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(so2sat.SourceError, match=message) as caught:
        read_rows(tmp_path, **changes)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/validation_geo.h5: ")


def virtual(h5: h5py.File) -> None:
    layout = h5py.VirtualLayout((ROWS, 6), "<f8")
    layout[:] = h5py.VirtualSource("other.h5", "tfw", (ROWS, 6))
    h5.create_virtual_dataset("tfw", layout)


POINTERS: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "external link": (lambda h5: h5.__setitem__("tfw", h5py.ExternalLink("other.h5", "/tfw")), "is a link to"),
    "soft link": (lambda h5: h5.__setitem__("tfw", h5py.SoftLink("/elsewhere")), "is a link to"),
    "soft link for the city": (lambda h5: h5.__setitem__("city", h5py.SoftLink("/elsewhere")), "is a link to"),
    "external storage": (
        lambda h5: h5.create_dataset("tfw", (ROWS, 6), "<f8", external=[("/etc/passwd", 0, ROWS * 48)]),
        "has external storage in",
    ),
    "virtual dataset": (virtual, "is virtual"),
}


@pytest.mark.parametrize("pointer", POINTERS)
def test_data_in_other_files_are_refused(pointer: str, tmp_path: Path) -> None:
    add, problem = POINTERS[pointer]
    name = "city" if "city" in pointer else "tfw"
    path = write_source(tmp_path / "validation_geo.h5", arrays(**{name: None}))
    with h5py.File(path, "r+") as h5:
        add(h5)
    with pytest.raises(so2sat.SourceError, match=f"'{name}' {problem}"), places.open_geo(str(path)):
        pass


# ── From the files to load_dataset ───────────────────────────────────────────────────────────────────────────────────


def test_every_config_whose_files_are_there_is_built_and_verified(full_folder: Path, full_repository: Path) -> None:
    report = verify.verify(full_repository, str(full_folder))
    assert report.findings == []
    assert report.compared_rows == report.rows == 3 * 77 + 2 * (21 + 22 + 23 + 24)
    assert {path.name for path in full_repository.iterdir() if path.is_dir()} == {*layout.CONFIGS, "assets", ".build"}


@pytest.mark.parametrize("config", so2sat.CONFIGS)
def test_every_config_of_the_builder_loads_as_the_builder_makes_it(
    config: str, full_folder: Path, full_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(full_repository.parent)
    loaded = datasets.load_dataset("so2sat", config)
    builder = so2sat.So2Sat(config_name=config, data_dir=str(full_folder), cache_dir=str(tmp_path))
    builder.download_and_prepare()
    built = builder.as_dataset()
    assert list(loaded) == list(built) == list(layout.CONFIGS[config].files)
    for split in built:
        assert loaded[split].features == built[split].features == layout.features(config)
        ours, theirs = (rows[split].data.table.combine_chunks() for rows in (loaded, built))
        assert ours.replace_schema_metadata() == theirs.replace_schema_metadata()
    told = datasets.load_dataset_builder("so2sat", config, cache_dir=str(tmp_path / "card")).info
    assert told.features == layout.features(config)
    for split, measured in builder.info.splits.items():
        assert (told.splits[split].num_examples, told.splits[split].num_bytes) == (
            measured.num_examples,
            measured.num_bytes,
        )
    for streams in (datasets.load_dataset("so2sat", config, streaming=True), builder.as_streaming_dataset()):
        assert list(streams) == list(built)
        for split in built:
            for row, expected in zip(streams[split], built[split], strict=True):
                assert row.keys() == expected.keys()
                assert all(np.array_equal(row[name], expected[name]) for name in row)


def test_statistics_count_the_patches_of_every_config(full_folder: Path, full_repository: Path) -> None:
    told = json.loads((full_repository / layout.STATISTICS_NAME).read_text())["configs"]
    assert list(told) == list(layout.CONFIGS)
    for name, config in layout.CONFIGS.items():
        assert list(told[name]) == list(config.files)
        for split, file in config.files.items():
            with h5py.File(full_folder / file, "r") as h5:
                counts = h5["label"][:].sum(axis=0).astype(int).tolist()
            assert told[name][split]["patches_per_class"] == dict(zip(so2sat.LABELS, counts))
            columns = {"rgb": ["image"], "all": ["sentinel1", "sentinel2"], "geo": []}[config.kind]
            assert list(told[name][split]["bands"]) == columns


def test_geo_has_the_designed_columns() -> None:
    kinds = {name: getattr(feature, "dtype", "") for name, feature in places.features().items()}
    assert kinds == {
        **{"label": "int64", "sample_id": "int64", "city": "string", "epsg": "int32"},
        **dict.fromkeys(("x", "y", "longitude", "latitude"), "float64"),
    }


def test_places_are_read_over_http(full_folder: Path, full_repository: Path, tmp_path: Path) -> None:
    with serving(full_folder) as server:
        build.build(server.url, tmp_path / "so2sat", ["geo"])
        assert server.bytes_sent < sum(path.stat().st_size for path in full_folder.glob("*.h5"))  # no patches
    shards = [path.relative_to(full_repository) for path in full_repository.glob("geo/*.parquet")]
    assert len(shards) == 3
    for shard in shards:
        assert (tmp_path / "so2sat" / shard).read_bytes() == (full_repository / shard).read_bytes()


def test_other_splits_can_be_lossless(full_folder: Path, tmp_path: Path) -> None:
    build.build(str(full_folder), tmp_path / "so2sat", ["rgb_random"], image_format="png")
    loaded = datasets.load_dataset(str(tmp_path / "so2sat"), "rgb_random", split="test")
    with so2sat.open_source(str(full_folder / "random" / "testing.h5")) as source:
        pixels = so2sat.read_columns(source, "rgb_random", 0, source.rows)["image"]
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in loaded["image"]]), pixels)
    assert verify.verify(tmp_path / "so2sat", str(full_folder)).findings == []


GEO_TEST = "geo/test-00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("city", "berlin", "row 3 has city 'berlin', expected "),
        ("city", None, "row 3 has city None, expected "),
        ("epsg", 32633, "row 3 has epsg 32633, expected "),
        ("x", 1.0, "row 3 has x 1.0, expected "),
        ("longitude", 1e-6, "row 3 has longitude "),
        ("latitude", None, "row 3 has latitude None, expected "),
        ("latitude", float("nan"), "row 3 has latitude nan, expected "),
        ("sample_id", 4, "row 3 has sample_id 4, expected 3"),
        ("longitude", 1e-13, ""),  # as another version of PROJ might compute it
    ],
)
def test_a_wrong_place_is_found(
    column: str, value: Any, problem: str, full_folder: Path, full_repository: Path, tmp_path: Path
) -> None:
    repository = Path(shutil.copytree(full_repository, tmp_path / "so2sat"))
    table = pq.read_table(repository / GEO_TEST)
    values = table[column].to_pylist()
    values[3] = values[3] + value if column == "longitude" else value
    index = table.schema.get_field_index(column)
    changed = table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))
    write_shard(repository, GEO_TEST, changed)
    findings = verify.verify(repository, str(full_folder)).findings
    assert [finding.problem[: len(problem)] for finding in findings] == ([problem] if problem else [])
    assert {finding.file for finding in findings} <= {GEO_TEST}


def test_a_folder_with_other_splits_alone_makes_their_configs(full_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(full_folder / "random", tmp_path / "data" / "random")
    assert build.build(str(tmp_path / "data"), tmp_path / "so2sat").configs == ["rgb_random", "all_random"]
    assert verify.verify(tmp_path / "so2sat", str(tmp_path / "data")).findings == []


def test_config_geo_holds_the_places_of_every_split(
    full_folder: Path, full_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(full_repository.parent)
    loaded = datasets.load_dataset("so2sat", "geo")
    streams = datasets.load_dataset("so2sat", "geo", streaming=True)
    assert list(loaded) == list(streams) == list(so2sat.SOURCE_FILES)
    for split, name in so2sat.SOURCE_FILES.items():
        with layout.open_reader("geo", str(full_folder / name)) as reader:
            columns = reader.read(0, reader.rows)
        assert loaded[split].features == places.features()
        assert loaded[split].to_dict() == {name: values.tolist() for name, values in columns.items()}
        assert list(streams[split]) == loaded[split].to_list()


@pytest.mark.parametrize(
    ("config", "names"), [("all_block", ["block/training.h5", "block/testing.h5"]), ("geo", ["training_geo.h5"])]
)
def test_a_config_that_is_asked_for_and_absent_names_its_files(
    config: str, names: list[str], source_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main([str(source_folder), str(tmp_path / "so2sat"), "--config", config]) == 1
    error = capsys.readouterr().err
    assert all(name in error for name in names)
    assert f"config '{config}'" in error


def test_splits_whose_places_are_unknown_are_left_out_and_told(
    full_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("training.h5", "validation.h5", "validation_geo.h5"):
        (tmp_path / "data").mkdir(exist_ok=True)
        shutil.copy(full_folder / name, tmp_path / "data")
    built = build.build(str(tmp_path / "data"), tmp_path / "so2sat", ["geo"])
    assert list(built.splits("geo")) == ["validation"]
    assert "config 'geo' has no split train, test: no training_geo.h5, testing_geo.h5" in capsys.readouterr().out


def test_places_of_another_number_of_patches_are_refused(full_folder: Path, tmp_path: Path) -> None:
    for name in ("training.h5", "validation.h5", "validation_geo.h5"):
        shutil.copy(full_folder / name, tmp_path)
    shutil.copy(full_folder / "training_geo.h5", tmp_path / "validation_geo.h5")
    with pytest.raises(so2sat.SourceError, match=r"validation_geo\.h5: 40 rows, expected 20, one for every patch"):
        layout.find_sources(str(tmp_path), "geo")


def test_a_rebuild_without_other_splits_asks_before_they_go(full_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(full_folder / "random", tmp_path / "data" / "random")
    shutil.copytree(full_folder / "block", tmp_path / "data" / "block")
    build.build(str(tmp_path / "data"), tmp_path / "so2sat", ["rgb_random", "rgb_block"])
    shutil.rmtree(tmp_path / "data" / "random")
    with pytest.raises(CommandError, match=r"was made from random/\w+\.h5 too, which SOURCE lacks; --drop"):
        build.build(str(tmp_path / "data"), tmp_path / "so2sat")
    assert list((tmp_path / "so2sat" / "rgb_random").glob("*.parquet"))
    assert build.build(str(tmp_path / "data"), tmp_path / "so2sat", drop=True).configs == ["rgb_block", "all_block"]
    assert not list((tmp_path / "so2sat" / "rgb_random").glob("*.parquet"))
    assert verify.verify(tmp_path / "so2sat", str(tmp_path / "data")).findings == []
