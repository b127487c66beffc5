"""Configs of the repository: one that is defined is built, verified, loaded and shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest

import build
import demo
import so2sat
import verify
from conftest import Arrays, write_source
from publishing import configs
from publishing.configs import CONFIGS


@pytest.fixture
def only_sentinel2(monkeypatch: pytest.MonkeyPatch) -> str:
    """A config of other columns than any has, made as the first of configs.py are."""
    name = "sentinel2_only"
    columns = ("label", "sample_id", "sentinel2")
    monkeypatch.setitem(so2sat.CONFIGS, name, so2sat.Config(columns, "Sentinel-2 alone", so2sat.SOURCE_FILES))
    monkeypatch.setitem(CONFIGS, name, configs.of_builder(name))
    return name


def test_a_config_of_other_columns_is_built_verified_and_loaded_on_its_own(
    only_sentinel2: str,
    small_folder: Path,
    small_arrays: dict[str, Arrays],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    repository = tmp_path / "so2sat"
    build.build(str(small_folder), repository, [only_sentinel2], workers=1)
    assert [*verify.verify(repository, str(small_folder))] == []
    loaded = datasets.load_dataset(str(repository), split="test")  # it is the default
    assert loaded.column_names == ["label", "sample_id", "sentinel2"]
    expected = small_arrays["test"]["sen2"].astype(np.float32)
    np.testing.assert_array_equal(loaded.with_format("numpy")[:]["sentinel2"], expected)
    statistics = json.loads((repository / "statistics.json").read_bytes())["configs"][only_sentinel2]
    assert [band["name"] for band in statistics["test"]["bands"]["sentinel2"]] == [
        b.name for b in so2sat.SENTINEL2_BANDS
    ]
    card = (repository / "README.md").read_text(encoding="utf-8")
    assert "`sentinel2`" in card
    assert "sentinel1" not in card
    assert demo.main([str(repository), str(tmp_path / "preview.png")]) == 0
    assert "one patch a class" in capsys.readouterr().out


def test_a_config_of_other_columns_joins_a_repository(only_sentinel2: str, small_folder: Path, tmp_path: Path) -> None:
    build.build(str(small_folder), tmp_path / "so2sat", ["rgb"], workers=1)
    built = build.build(str(small_folder), tmp_path / "so2sat", [only_sentinel2], workers=1)
    assert [*built.configs] == ["rgb", only_sentinel2]
    assert [*verify.verify(tmp_path / "so2sat", str(small_folder))] == []


def test_places_have_the_splits_whose_files_are_there(full_folder: Path, tmp_path: Path) -> None:
    for name in (*full_folder.glob("training*.h5"), full_folder / "validation.h5"):
        shutil.copy(name, tmp_path)
    assert [*build.build(str(tmp_path), tmp_path / "out" / "so2sat", ["geo"]).splits("geo")] == ["train"]


def test_the_files_of_a_split_have_the_same_rows(
    full_folder: Path, small_arrays: dict[str, Arrays], tmp_path: Path
) -> None:
    shutil.copy(full_folder / "testing_geo.h5", tmp_path)
    write_source(tmp_path / "testing.h5", small_arrays["test"])
    with pytest.raises(so2sat.SourceError, match=r"testing_geo\.h5: 17 rows, expected 12"):
        build.build(str(tmp_path), tmp_path / "so2sat")
