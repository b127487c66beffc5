"""Files that appear whole and on the disk, and folders that one process at a time works in."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import filelock

from publishing.command import CommandError

INCOMPLETE_SUFFIX = ".incomplete"

# What a file system without locks says: NFS without its lock service, some FUSE and network disks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def replacing(path: Path, unfinished: Path | None = None) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path`, whole and on the disk, when the block ends without an exception.

    Args:
        path: What to write.
        unfinished: Folder for the unfinished file, on the same file system; that of `path` if None.
    """
    folder = unfinished or path.parent
    temporary = folder / f".{path.name}.{uuid.uuid4().hex}{INCOMPLETE_SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.filename is None:  # such as a file that has become too large
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Puts a folder's entries on the disk, so that a rename outlives a power cut, where the file system can do so."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of SMB and other network disks, which do without
            error.filename = str(folder)
            raise
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
    soft_lock = lock.with_name("lock.soft")
    with contextlib.ExitStack() as stack:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(filelock.FileLock(lock, timeout=0))
        except filelock.Timeout as error:
            raise CommandError(f"{folder}: another run of this command is at work there; wait for it to end") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise CommandError(f"{folder}: can't be written ({error.strerror}); choose another folder") from error
            stack.enter_context(_soft_lock(soft_lock))
        yield


@contextlib.contextmanager
def _soft_lock(path: Path) -> Iterator[None]:
    """A lock that is a file, which a process that is killed leaves behind."""
    try:
        with filelock.SoftFileLock(path, timeout=0):
            yield
    except filelock.Timeout as error:
        what = "another run of this command is at work there, or was killed"
        raise CommandError(f"{path.parent.parent}: {what}; if none is, delete {path}") from error
