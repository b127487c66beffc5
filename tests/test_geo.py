"""Config geo: where the patches are, from files of every generation.

tests/data/positions.csv has every 200th position of edition 4's validation and test split, by Zhu et al., CC BY 4.0
(github.com/zhu-xlab/So2Sat-LCZ42).
"""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import numpy.typing as npt
import pytest

import build
import sample
import so2sat
import verify
from conftest import random_arrays, write_source

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


def places(tmp_path: Path, **changes: Any) -> dict[str, npt.NDArray[Any]]:
    path = write_source(tmp_path / "validation_geo.h5", arrays(**changes))
    with so2sat.open_geo(str(path)) as geo:
        return so2sat.read_places(geo, 0, ROWS)


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
    found = places(tmp_path)
    for row in range(ROWS):
        longitude, latitude = inverse_mercator(int(EPSG[row]), X[row] + 160, Y[row] - 160)
        east = (found["longitude"][row] - longitude) * 111_320 * math.cos(math.radians(latitude))
        north = (found["latitude"][row] - latitude) * 110_574
        assert math.hypot(east, north) < 1
    assert {code // 100 for code in EPSG.tolist()} == {326, 327}  # both hemispheres are among them


def test_the_computation_of_this_test_agrees_with_published_coordinates() -> None:
    # Marienplatz-like round figures are of no use; the origin of a zone and the equator are exact by definition.
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
    expected, found = places(tmp_path / "a"), places(tmp_path / "b", **FORMS[form])
    assert expected["city"].tolist() == NAMES
    np.testing.assert_array_equal(expected["x"], X)
    np.testing.assert_array_equal(expected["y"], Y)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert found[name].tolist() == values.tolist()


def test_without_names_a_place_near_two_cities_of_a_zone_has_none(tmp_path: Path) -> None:
    shenzhen = {"x": 196_000.0, "y": 2_496_000.0}  # and Hong Kong, both in 32650
    tfw = november_2025()[:1]
    tfw[0, 0], tfw[0, 3] = shenzhen.values()
    path = write_source(tmp_path / "training_geo.h5", {"epsg": np.array([32650]), "tfw": tfw})
    with so2sat.open_geo(str(path)) as geo:
        assert so2sat.read_places(geo, 0, 1)["city"].tolist() == [None]


def test_orangi_town_is_in_karachi_whatever_the_list_says(tmp_path: Path) -> None:
    tfw = march_2026()[:1]
    tfw[0, 4:] = 297_000, 2_760_000
    for code in (32618, 32642):
        values = {"epsg": np.array([code]), "tfw": tfw, "city": np.array([b"orangitown"])}
        path = write_source(tmp_path / f"{code}" / "training_geo.h5", values)
        with so2sat.open_geo(str(path)) as geo:
            found = so2sat.read_places(geo, 0, 1)
        assert found["epsg"].tolist() == [32642]
        assert found["longitude"][0] == pytest.approx(66.99, abs=0.1)
        assert found["latitude"][0] == pytest.approx(24.95, abs=0.1)


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
        places(tmp_path, **changes)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/validation_geo.h5: ")


def external(h5: h5py.File) -> None:
    h5["tfw"] = h5py.ExternalLink("other.h5", "/tfw")


def soft(h5: h5py.File) -> None:
    h5["tfw"] = h5py.SoftLink("/elsewhere")


@pytest.mark.parametrize("link", [external, soft])
def test_links_are_refused(link: Callable[[h5py.File], None], tmp_path: Path) -> None:
    path = write_source(tmp_path / "validation_geo.h5", arrays(tfw=None))
    with h5py.File(path, "r+") as h5:
        link(h5)
    with pytest.raises(so2sat.SourceError, match="'tfw' is a link"), so2sat.open_geo(str(path)):
        pass


# ── From the files to load_dataset ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def full_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of editions 3 and 4, all splits small."""
    folder = tmp_path_factory.mktemp("full")
    sample.write_sample(folder, {"train": 40, "validation": 20, "test": 17})
    for name, seed in (("random/training.h5", 1), ("random/testing.h5", 2), ("block/training.h5", 3)):
        write_source(folder / name, random_arrays(20 + seed, seed))
    write_source(folder / "block" / "testing.h5", random_arrays(24, 4))
    return folder


@pytest.fixture(scope="module")
def full_repository(full_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("full") / "so2sat"
    build.build(str(full_folder), output, workers=2)
    return output


def test_every_config_whose_files_are_there_is_built_and_verified(full_folder: Path, full_repository: Path) -> None:
    report = verify.verify(full_repository, str(full_folder))
    assert report.findings == []
    assert report.compared_rows == report.rows == 3 * 77 + 2 * (21 + 22 + 23 + 24)
    assert {path.name for path in full_repository.iterdir() if path.is_dir()} == {*so2sat.CONFIGS, "assets", ".build"}


@pytest.mark.parametrize("config", so2sat.CONFIGS)
def test_every_config_loads_as_the_builder_makes_it(
    config: str, full_folder: Path, full_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(full_repository.parent)
    loaded = datasets.load_dataset("so2sat", config)
    builder = so2sat.So2Sat(config_name=config, data_dir=str(full_folder), cache_dir=str(tmp_path))
    builder.download_and_prepare()
    built = builder.as_dataset()
    assert list(loaded) == list(built) == list(so2sat.CONFIGS[config].files)
    for split in built:
        assert loaded[split].features == built[split].features == so2sat.features(config)
        ours, theirs = (rows[split].data.table.combine_chunks() for rows in (loaded, built))
        assert ours.replace_schema_metadata() == theirs.replace_schema_metadata()
    stream = datasets.load_dataset("so2sat", config, split="test", streaming=True)
    assert [row["sample_id"] for row in stream] == built["test"]["sample_id"][:]


def test_geo_has_the_designed_columns() -> None:
    kinds = {name: getattr(feature, "dtype", "") for name, feature in so2sat.features("geo").items()}
    assert kinds == {
        **{"label": "int64", "sample_id": "int64", "city": "string", "epsg": "int32"},
        **dict.fromkeys(("x", "y", "longitude", "latitude"), "float64"),
    }


def test_geo_joins_the_images_row_by_row(full_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(full_repository.parent)
    rgb, geo = (datasets.load_dataset("so2sat", config, split="train") for config in ("rgb", "geo"))
    assert rgb["sample_id"][:] == geo["sample_id"][:]
    assert rgb["label"][:] == geo["label"][:]


def test_a_folder_with_other_splits_alone_makes_their_configs(full_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(full_folder / "random", tmp_path / "data" / "random")
    assert build.build(str(tmp_path / "data"), tmp_path / "so2sat").configs == ["rgb_random", "all_random"]
    assert verify.verify(tmp_path / "so2sat", str(tmp_path / "data")).findings == []


def test_files_that_are_partly_missing_are_no_reason_to_leave_a_config_out(full_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(full_folder, tmp_path / "data")
    (tmp_path / "data" / "random" / "testing.h5").unlink()
    with pytest.raises(so2sat.MissingSourceError, match=r"random/testing\.h5: no such file"):
        build.build(str(tmp_path / "data"), tmp_path / "so2sat")


@pytest.mark.parametrize(
    ("config", "names"), [("all_block", "block/training.h5, block/testing.h5"), ("geo", "training_geo.h5")]
)
def test_a_config_that_is_asked_for_and_absent_names_its_files(
    config: str, names: str, source_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main([str(source_folder), str(tmp_path / "so2sat"), "--config", config]) == 1
    error = capsys.readouterr().err
    assert f"lacks {names}" in error
    assert f"config '{config}'" in error


def test_splits_whose_places_are_unknown_are_left_out_and_told(
    full_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("training.h5", "validation.h5", "validation_geo.h5"):
        (tmp_path / "data").mkdir(exist_ok=True)
        shutil.copy(full_folder / name, tmp_path / "data")
    built = build.build(str(tmp_path / "data"), tmp_path / "so2sat", ["geo"])
    assert list(built.splits("geo")) == ["validation"]
    assert "geo has no split train, test" in capsys.readouterr().out


def test_places_of_another_number_of_patches_are_refused(full_folder: Path, tmp_path: Path) -> None:
    for name in ("training.h5", "validation.h5", "validation_geo.h5"):
        shutil.copy(full_folder / name, tmp_path)
    shutil.copy(full_folder / "training_geo.h5", tmp_path / "validation_geo.h5")
    with pytest.raises(so2sat.SourceError, match=r"validation_geo\.h5: 40 rows, expected 20, one for every patch"):
        so2sat.find_sources(str(tmp_path), "geo")


def test_a_rebuild_without_other_splits_asks_before_they_go(full_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(full_folder / "random", tmp_path / "data" / "random")
    shutil.copytree(full_folder / "block", tmp_path / "data" / "block")
    build.build(str(tmp_path / "data"), tmp_path / "so2sat", ["rgb_random", "rgb_block"])
    shutil.rmtree(tmp_path / "data" / "random")
    with pytest.raises(Exception, match=r"was made from random/\w+\.h5 too, which SOURCE lacks; --force"):
        build.build(str(tmp_path / "data"), tmp_path / "so2sat")
    assert list((tmp_path / "so2sat" / "rgb_random").glob("*.parquet"))
