"""The demo works on any repository that build.py makes."""

from __future__ import annotations

import shutil
from pathlib import Path

import PIL.Image
import pytest

import build
import demo
import so2sat
from conftest import random_arrays, write_source


@pytest.fixture(autouse=True)
def _keep_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the demo goes elsewhere


def test_every_config_is_shown(full_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([str(full_repository), str(tmp_path / "preview.png")]) == 0
    text = capsys.readouterr().out
    for config in ("rgb", "all", "geo", "rgb_random", "all_block"):
        assert f'load_dataset("so2sat", "{config}")' in text
    assert "SYNTHETIC" in text
    assert all(name in text for name in so2sat.LABELS)
    assert PIL.Image.open(tmp_path / "preview.png").format == "PNG"


@pytest.mark.parametrize(
    ("names", "config", "draws"),
    [
        (["block/testing.h5"], None, True),
        (["validation.h5"], "all", True),
        (["testing.h5", "testing_geo.h5"], "geo", False),
    ],
)
def test_a_part_is_shown(names: list[str], config: str | None, draws: bool, full_folder: Path, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(full_folder / name, tmp_path / "data" / name)
    build.build(str(tmp_path / "data"), tmp_path / "so2sat", [config] if config else None)
    assert demo.main([str(tmp_path / "so2sat"), str(tmp_path / "preview.png")]) == 0
    assert (tmp_path / "preview.png").exists() == draws


def test_a_folder_that_is_no_repository_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_source(tmp_path / "data" / "testing.h5", random_arrays(3))
    assert demo.main([str(tmp_path / "data"), str(tmp_path / "preview.png")]) == 1
    assert "manifest.json" in capsys.readouterr().err


def test_a_picture_without_a_folder_is_an_error_before_anything_is_loaded(
    full_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main([str(full_repository), str(tmp_path / "none" / "preview.png")]) == 1
    told = capsys.readouterr()
    assert str(tmp_path / "none") in told.err
    assert not told.out
