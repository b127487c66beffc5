"""What every command does alike, and which Python `make` takes."""

from __future__ import annotations

import importlib
import io
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from publishing import command

SCRIPTS = Path(command.__file__).parent.parent
COMMANDS = sorted(path.stem for path in SCRIPTS.glob("*.py") if path.stem != "train")  # which readers run


@pytest.mark.parametrize("name", COMMANDS)
def test_on_another_system_every_command_ends_with_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert importlib.import_module(name).main([]) == 1
    output = capsys.readouterr()
    assert "Linux or macOS" in output.err
    assert output.out == ""


def test_what_a_stream_can_not_show_it_shows_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    text = os.fsdecode(b"a \xff") + " → ä"
    assert command.run(lambda _: print(text), command.parser("", ""), []) == 0
    assert stream.buffer.getvalue() == b"a \\udcff \\u2192 \\xe4\n"


def test_a_working_folder_that_was_deleted_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert command.run(lambda _: 0, command.parser("", ""), []) == 1
    assert "was deleted" in capsys.readouterr().err


def test_make_refuses_another_python_than_that_of_the_environment(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(SCRIPTS.parent / name, tmp_path)
    for name, version in {"python": "3.10.1", ".venv/bin/python": "3.10.0"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!/bin/sh\necho Python {version}\n")
        (tmp_path / name).chmod(0o755)
    before = sorted(tmp_path.rglob("*"))
    run = subprocess.run(["make", "demo", "PYTHON=./python"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode
    assert "3.10.0" in run.stderr
    assert "make clean" in run.stderr
    assert sorted(tmp_path.rglob("*")) == before
