"""Files that appear whole and on the disk, and folders that one process at a time works in."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import filelock

from publishing.command import CommandError

INCOMPLETE_SUFFIX = ".incomplete"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path`, whole and on the disk, when the block ends without an exception."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{INCOMPLETE_SUFFIX}")
    try:
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Puts a folder's entries on the disk, so that a rename outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path, state_folder: str) -> Iterator[None]:
    """Keeps other runs of a command out of a folder, which is made if it is not there.

    Args:
        folder: What to lock.
        state_folder: Name of the folder in it that holds the lock.

    Raises:
        CommandError: Another run is at work there, or the folder can't be made.
    """
    lock = folder / state_folder / "lock"
    with contextlib.ExitStack() as stack:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(filelock.FileLock(lock, timeout=0))
        except filelock.Timeout as error:
            raise CommandError(f"{folder}: another run of this command is at work there; wait for it to end") from error
        except OSError as error:
            raise CommandError(f"{folder}: can't be written ({error.strerror}); choose another folder") from error
        yield
