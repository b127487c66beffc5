"""What every script does alike on the command line."""

from __future__ import annotations

import importlib
import io
import os
import platform
import sys
from pathlib import Path

import pytest

from publishing import command

COMMANDS = ["benchmark", "build", "dataset_infos", "demo", "download", "sample", "upload", "verify"]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("arguments", [["--help"], ["data"], []])
def test_on_another_system_every_script_ends_with_a_message_before_it_does_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, arguments: list[str]
) -> None:
    main = importlib.import_module(name).main
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert "Linux or macOS" in output.err
    assert "Windows" in output.err
    assert output.out == ""
    assert not list(tmp_path.iterdir())


def test_every_script_that_is_a_command_is_among_them() -> None:
    scripts = Path(command.__file__).parent.parent.glob("*.py")
    assert sorted(path.stem for path in scripts if "command.run(" in path.read_text()) == COMMANDS


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
