"""Files that appear whole, on the file systems that users have."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from publishing import files
from publishing.command import CommandError


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path, unfinished = tmp_path / "file", tmp_path / "unfinished"
    path.write_bytes(b"before")
    with pytest.raises(ZeroDivisionError), files.replacing(path, unfinished) as file:
        file.write(bytes(1 // len(path.read_bytes()[6:])))
    assert path.read_bytes() == b"before"
    with files.replacing(path, unfinished) as file:
        file.write(b"after")
    assert path.read_bytes() == b"after"
    assert [*unfinished.iterdir()] == []


def refusing_folders(code: int) -> Any:
    """An fsync of a file system that can't sync folders."""
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    return refuse


def test_a_file_system_that_can_not_sync_folders_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", refusing_folders(errno.EINVAL))
    with files.replacing(tmp_path / "file") as file:
        file.write(b"x")
    assert (tmp_path / "file").read_bytes() == b"x"


def test_an_error_of_the_system_names_the_file_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=str(tmp_path / "file")), files.replacing(tmp_path / "file"):
        raise OSError(errno.EFBIG, "File too large")
    monkeypatch.setattr(os, "fsync", refusing_folders(errno.EIO))
    with pytest.raises(OSError, match=str(tmp_path)), files.replacing(tmp_path / "file"):
        pass


def test_one_run_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    with files.locked(tmp_path, ".state"), pytest.raises(CommandError, match="at work there"):  # noqa: SIM117
        with files.locked(tmp_path, ".state"):
            pass
    with files.locked(tmp_path, ".state"):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gets_a_file_as_a_lock(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    with files.locked(tmp_path, ".state"), pytest.raises(CommandError, match=r"delete .*lock\.soft"):  # noqa: SIM117
        with files.locked(tmp_path, ".state"):
            pass
    with files.locked(tmp_path, ".state"):
        pass
