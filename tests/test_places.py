"""Config geo: where the patches are.

tests/data/positions.csv has every 200th position of edition 4's validation and test split, by Zhu et al., CC BY 4.0
(github.com/zhu-xlab/So2Sat-LCZ42).
"""

from __future__ import annotations

import csv
import json
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
import pytest

import build
import so2sat
import verify
from conftest import write_shard, write_source
from publishing import facts, places
from publishing.command import CommandError
from publishing.configs import CONFIGS
from servers import serving

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


def test_positions_are_where_their_cities_are(tmp_path: Path) -> None:
    found = read_rows(tmp_path)
    for row, name in enumerate(NAMES):
        city = facts.CITIES[name]
        assert abs(found["latitude"][row] - city.latitude) < 1
        assert abs(found["longitude"][row] - city.longitude) < 1
    assert {code // 100 for code in EPSG.tolist()} == {326, 327}  # both hemispheres are among them


def test_longitude_and_latitude_are_of_the_centre_of_the_patch(tmp_path: Path) -> None:
    # CN Tower, Toronto: 17N 630084 m E, 4833438 m N is 43°38′33.24″ N, 79°23′13.7″ W (Wikipedia, UTM).
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(facts.CITIES, "toronto", facts.City("Toronto", 32617, -79.4, 43.7))
        tower = write_places(tmp_path / "x_geo.h5", "toronto", (32617, 630_084 - 160, 4_833_438 + 160))
        found = read_all(tower)
    assert found["longitude"][0] == pytest.approx(-(79 + 23 / 60 + 13.7 / 3600), abs=2e-5)
    assert found["latitude"][0] == pytest.approx(43 + 38 / 60 + 33.24 / 3600, abs=2e-5)


FORMS: dict[str, dict[str, Any]] = {
    "north up": {},
    "pixel height not negated": {"tfw": march_2026(+1)},
    "one-dimensional": {"epsg": EPSG, "city": np.array(NAMES, "S16")},
    "text of any length": {"city": np.array(NAMES, object)},
    "capitals and blanks": {"city": np.array([f" {name.title()} " for name in NAMES], object)},
    "float codes": {"epsg": EPSG.astype("f8")},
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


def write_places(path: Path, city: str, *rows: tuple[int, float, float]) -> Path:
    """Writes places of one city, given as EPSG code, x and y."""
    epsg, x, y = (np.array(column) for column in zip(*rows))
    tfw = np.tile([10.0, 0, 0, -10, 0, 0], (len(rows), 1))
    tfw[:, 4], tfw[:, 5] = x, y
    return write_source(path, {"epsg": epsg[:, None], "tfw": tfw, "city": np.full((len(rows), 1), city.encode())})


def read_all(path: Path) -> dict[str, npt.NDArray[Any]]:
    with places.open_geo(str(path)) as geo:
        return places.read_places(geo, 0, geo.rows)


@pytest.mark.parametrize("code", [32618, 32642])
def test_orangi_town_is_in_karachi_whatever_the_list_says(code: int, tmp_path: Path) -> None:
    found = read_all(write_places(tmp_path / "training_geo.h5", "orangitown", (code, 297_000, 2_760_000)))
    assert found["city"].tolist() == ["orangitown"]
    assert found["epsg"].tolist() == [32642]
    assert found["longitude"][0] == pytest.approx(66.99, abs=0.1)
    assert found["latitude"][0] == pytest.approx(24.95, abs=0.1)


def test_orangi_town_is_not_in_new_york(tmp_path: Path) -> None:
    new_york = (32618, 583_900.0, 4_507_300.0)
    assert read_all(write_places(tmp_path / "a_geo.h5", "newyork", new_york))["epsg"].tolist() == [32618]
    with pytest.raises(so2sat.SourceError, match=r"row 0 has .* as centre, expected a place within 150 km"):
        read_all(write_places(tmp_path / "b_geo.h5", "orangitown", new_york))


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
    ({"tfw": november_2025()}, r"row 0, 1, 2, 3, 4 and \d+ more has .* as tfw, expected .* fetch the present file"),
    ({"city": None}, r"no dataset 'city', as before March 2026; fetch the present file from https://"),
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
    assert [*verify.verify(full_repository, str(full_folder))] == []
    assert {path.name for path in full_repository.iterdir() if path.is_dir()} == {*CONFIGS, "assets", ".build"}


@pytest.mark.parametrize("config", so2sat.CONFIGS)
def test_every_config_of_the_builder_loads_as_the_builder_makes_it(
    config: str, full_folder: Path, full_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(full_repository.parent)
    loaded = datasets.load_dataset("so2sat", config)
    builder = so2sat.So2Sat(config_name=config, data_dir=str(full_folder), cache_dir=str(tmp_path))
    builder.download_and_prepare()
    built = builder.as_dataset()
    assert list(loaded) == list(built) == list(CONFIGS[config].files)
    for split in built:
        assert loaded[split].features == built[split].features == CONFIGS[config].features
        ours, theirs = (rows[split].data.table.combine_chunks() for rows in (loaded, built))
        assert ours.replace_schema_metadata() == theirs.replace_schema_metadata()
    told = datasets.load_dataset_builder("so2sat", config, cache_dir=str(tmp_path / "card")).info
    assert told.features == CONFIGS[config].features
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
    told = json.loads((full_repository / "statistics.json").read_bytes())["configs"]
    assert list(told) == list(CONFIGS)
    for name, config in CONFIGS.items():
        assert list(told[name]) == list(config.files)
        for split, files in config.files.items():
            with h5py.File(full_folder / files[0], "r") as h5:
                counts = h5["label"][:].sum(axis=0).astype(int).tolist()
            assert told[name][split]["patches_per_class"] == dict(zip(so2sat.LABELS, counts))
            assert list(told[name][split]["bands"]) == list(config.bands)


def test_geo_has_the_designed_columns() -> None:
    kinds = {name: getattr(feature, "dtype", "") for name, feature in places.features().items()}
    assert kinds == {
        **{"label": "int64", "sample_id": "int64", "city": "string", "epsg": "int32"},
        **dict.fromkeys(("x", "y", "longitude", "latitude"), "float64"),
    }


def test_places_are_read_over_http_and_secrets_of_the_url_are_not_printed(
    full_folder: Path, full_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(full_folder) as server:
        url = f"{server.url.replace('://', '://me:hidden@')}/?signature=hidden"
        assert build.main([url, str(tmp_path / "so2sat"), "--config", "geo"]) == 0
        assert verify.main([str(tmp_path / "so2sat"), "--source", url]) == 0
    assert "hidden" not in "".join(capsys.readouterr())
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
    assert [*verify.verify(tmp_path / "so2sat", str(full_folder))] == []


GEO_TEST = "geo/test-00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("city", "berlin", "row 3 has city berlin, expected "),
        ("city", None, "row 3 has city None, expected "),
        ("epsg", 32633, "row 3 has epsg 32633, expected "),
        ("x", 1.0, "row 3 has x 1.0, expected "),
        ("longitude", 1e-6, "row 3 has longitude "),
        ("latitude", None, "row 3 has latitude nan, expected "),
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
    findings = [*verify.verify(repository, str(full_folder))]
    assert [finding.problem[: len(problem)] for finding in findings] == ([problem] if problem else [])
    assert {finding.file for finding in findings} <= {GEO_TEST}


def test_a_folder_with_other_splits_alone_makes_their_configs(full_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(full_folder / "random", tmp_path / "data" / "random")
    assert [*build.build(str(tmp_path / "data"), tmp_path / "so2sat").configs] == ["rgb_random", "all_random"]
    assert [*verify.verify(tmp_path / "so2sat", str(tmp_path / "data"))] == []


def test_config_geo_holds_the_places_of_every_split(
    full_folder: Path, full_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(full_repository.parent)
    loaded = datasets.load_dataset("so2sat", "geo")
    streams = datasets.load_dataset("so2sat", "geo", streaming=True)
    assert list(loaded) == list(streams) == list(so2sat.SOURCE_FILES)
    for split in so2sat.SOURCE_FILES:
        with CONFIGS["geo"].open(str(full_folder), split) as reader:
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
    assert "config 'geo' has no split train, test: no training.h5 and training_geo.h5" in capsys.readouterr().out


def test_a_rebuild_without_other_splits_asks_before_they_go(full_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(full_folder / "random", tmp_path / "data" / "random")
    shutil.copytree(full_folder / "block", tmp_path / "data" / "block")
    build.build(str(tmp_path / "data"), tmp_path / "so2sat", ["rgb_random", "rgb_block"])
    shutil.rmtree(tmp_path / "data" / "random")
    with pytest.raises(CommandError, match=r"was made from random/\w+\.h5 too, which SOURCE lacks; --drop"):
        build.build(str(tmp_path / "data"), tmp_path / "so2sat")
    assert list((tmp_path / "so2sat" / "rgb_random").glob("*.parquet"))
    built = build.build(str(tmp_path / "data"), tmp_path / "so2sat", drop=True)
    assert [*built.configs] == ["rgb_block", "all_block"]
    assert not list((tmp_path / "so2sat" / "rgb_random").glob("*.parquet"))
    assert [*verify.verify(tmp_path / "so2sat", str(tmp_path / "data"))] == []
