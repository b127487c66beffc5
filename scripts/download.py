"""Fetches the official So2Sat files, over bad lines too, and verifies every byte."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import ftplib
import hashlib
import http.client
import json
import os
import posixpath
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

import filelock
import h5py
import huggingface_hub.constants
import tqdm

import command
import layout
import so2sat
from command import CommandError

# The editions that a server has; the Hub has the files of editions 1 and 2 as part of edition 4.
SOURCES: Mapping[str, tuple[int, ...]] = {"tum": (1, 2, 3), "hub": (1, 2, 4)}

STATE_FOLDER = ".download"
PART, GZ_PART, UNPACKED_PART = ".part", ".gz.part", ".unpacked.part"

TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 12  # failures in a row, without a new byte between them, before we give up: seven minutes or more
CHUNK = 1 << 18
LOG_SECONDS = 30.0  # between two lines of progress where there is no terminal

EXAMPLES = """\
  python scripts/download.py data                             edition 2 from its publisher (TUM), 59 GB
  python scripts/download.py data --source hub                the same files, gzipped, from the Hugging Face Hub
  python scripts/download.py data --split validation          one split, 3.6 GB
  python scripts/download.py data3 --edition 3 --split test   in the folders random, block and culture_10
  python scripts/download.py data4 --edition 4                edition 2's files and the places of the patches
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = command.parser(
        "Fetches the official files of So2Sat LCZ42 and verifies them. A download that was interrupted goes on where it"
        " stopped when the same command is run again; what is there already is verified once and not fetched again.",
        EXAMPLES,
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder for the files")
    parser.add_argument("--edition", type=int, choices=so2sat.EDITIONS, default=2, help="default: %(default)s")
    parser.add_argument("--split", action="append", choices=so2sat.SOURCE_FILES, help="may be repeated (default: all)")
    parser.add_argument("--source", choices=SOURCES, help="server (default: tum, for edition 4 hub)")
    return command.run(_run, parser, argv)


def _run(options: argparse.Namespace) -> None:
    download(options.folder, options.edition, options.split, options.source)


def download(folder: Path, edition: int = 2, splits: Sequence[str] | None = None, source: str | None = None) -> None:
    """Fetches those files of an edition that the folder lacks, and verifies all.

    Args:
        folder: Where the files go, under their official names.
        edition: One of so2sat.EDITIONS.
        splits: Splits to fetch, all if None.
        source: One of SOURCES, the edition's own if None.

    Raises:
        CommandError: A file can't be had or is not what it must be; the message says what to do.
    """
    files = _select(edition, splits, source)
    folder = folder.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    _say(f"So2Sat LCZ42, edition {edition} ({so2sat.EDITIONS[edition].homepage}) → {folder}")
    if edition == 3 and (not splits or "train" in splits):
        _say("culture_10/training.h5 is edition 2's training.h5; to fetch that: --edition 2 --split train")
    with _locked(folder):
        remotes = {}
        for name, file in files.items():
            if not _is_there(folder, name, file):
                remotes[name] = _persist(name, lambda file=file: _describe(file))
        _check_space(folder, files, remotes)
        for name, remote in remotes.items():
            _say(f"{name}: {_size(remote.size)}{', gzipped,' * remote.gzipped} from {_shown(remote.url)}")
            _fetch(folder, name, files[name])
    size = sum((folder / name).stat().st_size for name in files)
    _say(f"{folder}: edition {edition}, {len(files)} files, {size:,} bytes, all verified")


def _select(edition: int, splits: Sequence[str] | None, source: str | None) -> dict[str, so2sat.SourceFile]:
    """The files that are asked for, by their path in the folder."""
    source = source or next(name for name, editions in SOURCES.items() if edition in editions)
    if edition not in SOURCES[source]:
        raise CommandError(f"edition {edition} is not to be had from {source}; leave out --source {source}")
    names = [*so2sat.EDITIONS[edition].files]
    if splits:
        # `training` stands for training.h5, training_geo.h5, random/training.h5 …
        stems = {split: so2sat.SOURCE_FILES[split].removesuffix(".h5") for split in splits}
        names = [name for name in names if posixpath.basename(name).startswith((*stems.values(),))]
        for split, stem in stems.items():
            if not any(stem in name for name in names):
                raise CommandError(f"edition {edition} has no {split} split; leave out --split {split}")
    return {name: so2sat.EDITIONS[4 if source == "hub" else edition].files[name] for name in names}


# ┌─────────┐
# │  Files  │
# └─────────┘


class Damaged(Exception):
    """A file is not what it must be. The message goes on after the file's name."""


class Part:
    """What has come of a file: on the disk, in the checksums and, if it comes gzipped, unpacked beside it.

    Attributes:
        remote: The file on the server.
        generation: How many different files the server has had.
        received: Bytes that have come, as the server sends them.
        size: Bytes of the file that they make.
    """

    def __init__(self, folder: Path, name: str, file: so2sat.SourceFile) -> None:
        """Opens nothing, `follow` does."""
        self.folder, self.name, self.file, self.target = folder, name, file, folder / name
        self.remote, self.generation, self.received, self.size = Remote("", 0), 0, 0, 0
        self._files = contextlib.ExitStack()

    def follow(self, remote: Remote) -> None:
        """Goes on with what has come, or starts anew if that is of another file than the server has now."""
        if remote == self.remote:
            return
        self.remote, self.generation = remote, self.generation + 1
        self.path = _beside(self.target, GZ_PART if remote.gzipped else PART)
        self.path.parent.mkdir(exist_ok=True)
        key, version = (
            str(self.path.relative_to(self.folder)),
            f"{remote.size} {remote.sha256 or _published(self.file)}",
        )
        there = _bytes_there(self.path)
        keep = there <= remote.size and _recall(self.folder).get(key, version) == version
        if there and not keep:
            _say(f"{self.name}: the server has another file than before, starting anew")
        _remember(self.folder, key, version)
        self.restart(keep)

    def restart(self, keep: bool = False) -> None:
        """Starts with what is on the disk, or with nothing."""
        self.close()
        self.received = self.size = 0
        self._sent_hash = hashlib.sha256()  # of the bytes as they come
        self._hash = hashlib.new((_published(self.file) or "sha256 ").split()[0])  # of the file
        self._gunzip = zlib.decompressobj(31)
        self._file = self._output = self._files.enter_context(self.path.open("a+b" if keep else "w+b", buffering=0))
        if self.remote.gzipped:
            self._output = self._files.enter_context(_beside(self.target, UNPACKED_PART).open("w+b", buffering=0))
        self._file.seek(0)
        with _progress(f"{self.name}: reading what is there", _bytes_there(self.path)) as show:
            while chunk := self._file.read(CHUNK):
                self._take(chunk)
                show(self.received)

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes from the server."""
        _write(self._file, chunk)
        self._take(chunk)

    def _take(self, chunk: bytes) -> None:
        self.received += len(chunk)
        if self.remote.sha256:
            self._sent_hash.update(chunk)
        while chunk:
            data, rest = chunk, b""
            if self.remote.gzipped:
                if self._gunzip.eof:  # gzip files may be joined
                    self._gunzip = zlib.decompressobj(31)
                try:
                    data, rest = self._gunzip.decompress(chunk), self._gunzip.unused_data
                except zlib.error as error:
                    raise Damaged(f"is no intact gzip near byte {self.received:,} ({error})") from error
                _write(self._output, data)
            self._hash.update(data)
            self.size += len(data)
            chunk = rest

    def verify(self) -> str:
        """Compares what came with all that is known of the file; returns what that was.

        Raises:
            Damaged: Something differs.
        """
        if self.remote.sha256:
            _compare(f"sha256 {self._sent_hash.hexdigest()}", f"sha256 {self.remote.sha256}")
        if self.remote.gzipped and not self._gunzip.eof:
            raise Damaged("is gzip that ends too early")
        if self.file.bytes not in (None, self.size):
            raise Damaged(f"has {self.size:,} bytes when unpacked, expected {self.file.bytes:,}")
        _check_hdf5(Path(self._output.name))
        published = _published(self.file)
        if not published:
            return f"no checksum published{', sha256 as the server says' * bool(self.remote.sha256)}"
        _compare(f"{self._hash.name} {self._hash.hexdigest()}", published)
        return f"{self._hash.name} as published"

    def finish(self) -> None:
        """Puts the file on the disk, under its name."""
        os.fsync(self._output.fileno())
        Path(self._output.name).replace(self.target)
        layout.sync_folder(self.target.parent)
        _remember(self.folder, self.name, _mark(self.target, self.file))
        _remove_parts(self.target)

    def put_aside(self) -> Path:
        """Puts the bytes where nobody goes on with them, and returns where that is."""
        aside = self.path.with_name(f"{self.path.name.removesuffix(PART)}.damaged")
        self.path.replace(aside)
        _remove_parts(self.target)
        return aside

    def close(self) -> None:
        """Closes the files."""
        self._files.close()


def _fetch(folder: Path, name: str, file: so2sat.SourceFile) -> None:
    part, started = Part(folder, name, file), time.monotonic()

    def attempt() -> None:
        part.follow(_describe(file))
        try:
            _receive(part)
        except RangeRefused:
            _say(f"{name}: the server can't go on in the middle of a file, starting anew")
            part.restart()
            _receive(part)

    with contextlib.closing(part):
        try:
            _persist(name, attempt, lambda: (part.generation, part.received))
            how = part.verify()
            part.finish()
        except Damaged as error:
            raise CommandError(
                f"{part.target}: what came {error}; it is kept as {part.put_aside().name}, delete that if it is of no"
                " use to you. Run the same command again to fetch the file anew"
            ) from error
        except OSError as error:  # of the disk; those of the network are Interruptions
            raise CommandError(
                f"{part.target}: {error.strerror or error}; what has come is kept, run the same command again to go on"
            ) from error
        except KeyboardInterrupt:
            _say(f"{name}: {part.received:,} bytes are kept, run the same command again to go on")
            raise
    duration = datetime.timedelta(seconds=round(time.monotonic() - started))
    _say(f"{name}: {part.size:,} bytes in {duration}, {how}")


def _receive(part: Part) -> None:
    """Receives what is missing.

    Raises:
        Interruption: Not all came.
        RangeRefused: The server sends whole files only.
    """
    size = part.remote.size
    with _progress(part.name, size, part.received) as show:
        for chunk in _read(part.remote, part.received) if part.received < size else ():
            if part.received + len(chunk) > size:  # it ignores from where on to send
                part.restart()
                raise Interruption(f"more than {size:,} bytes came, starting anew")
            part.feed(chunk)
            show(part.received)
    if part.received < size:
        share = 100 * part.received / size
        raise Interruption(f"connection closed at {_size(part.received)} of {_size(size)} ({share:.0f} %)")


def _is_there(folder: Path, name: str, file: so2sat.SourceFile) -> bool:
    """Whether the folder has a file, verified.

    Raises:
        CommandError: It has another file of that name.
    """
    target, published = folder / name, _published(file)
    if not os.path.lexists(target):
        return False
    mark, size = _mark(target, file), target.stat().st_size
    if _recall(folder).get(name) == mark:
        how = "verified before"
    else:
        try:
            if file.bytes not in (None, size):
                raise Damaged(f"has {size:,} bytes, expected {file.bytes:,}")
            if published:
                _compare(_checksum(name, target, published.split()[0]), published)
            _check_hdf5(target)
        except Damaged as error:
            is_beginning = file.url.startswith("ftp:") and size < (file.bytes or 0)
            rename = f"rename it to {target.name}{PART} if it is the beginning of a download, else "
            raise CommandError(
                f"{target}: {error}. It is left as it is: {rename * is_beginning}move it away or delete it, and run the"
                " same command again"
            ) from error
        _remember(folder, name, mark)
        how = f"{published.split()[0]} as published" if published else "no checksum published"
    _say(f"{name}: is there, {size:,} bytes, {how}")
    _remove_parts(target)  # a run may have been killed just before it did
    return True


def _checksum(name: str, path: Path, kind: str) -> str:
    digest, done = hashlib.new(kind), 0
    with _progress(f"{name}: verifying", _bytes_there(path)) as show, path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            show(done)
    return f"{kind} {digest.hexdigest()}"


def _published(file: so2sat.SourceFile) -> str | None:
    """The strongest checksum that is published: its kind and its value."""
    return f"sha256 {file.sha256}" if file.sha256 else f"md5 {file.md5}" if file.md5 else None


def _compare(found: str, expected: str) -> None:
    if found != expected:
        raise Damaged(f"has {found}, expected {expected}")


def _check_hdf5(path: Path) -> None:
    try:
        h5py.File(path, "r", locking=False).close()
    except OSError as error:
        raise Damaged(f"can't be opened as HDF5 ({error})") from error


def _write(file: Any, data: bytes) -> None:
    while data:  # a file without a buffer may take less at a time
        data = data[file.write(data) :]


# ┌──────────────┐
# │  The folder  │
# └──────────────┘


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)


def _bytes_there(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _remove_parts(target: Path) -> None:
    for suffix in (PART, GZ_PART, UNPACKED_PART):
        _beside(target, suffix).unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other downloads out of a folder."""
    (folder / STATE_FOLDER).mkdir(exist_ok=True)
    try:
        with filelock.FileLock(folder / STATE_FOLDER / "lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise CommandError(f"{folder}: another download into this folder is at work; wait for it to end") from error


def _mark(path: Path, file: so2sat.SourceFile) -> str:
    """What stays as it is as long as a file need not be verified again."""
    state = path.stat()
    return f"{state.st_size} {state.st_mtime_ns} {_published(file)}"


def _recall(folder: Path) -> dict[str, str]:
    """What is remembered: the marks of verified files, and of which file on the server a part is."""
    try:
        notes: dict[str, str] = json.loads((folder / STATE_FOLDER / "state.json").read_bytes())
    except (OSError, ValueError):  # there is nothing yet, or somebody wrote into it
        return {}
    return notes


def _remember(folder: Path, key: str, note: str) -> None:
    with layout.replacing(folder / STATE_FOLDER / "state.json") as file:
        file.write(json.dumps({**_recall(folder), key: note}, indent=1).encode())


def _check_space(folder: Path, files: Mapping[str, so2sat.SourceFile], remotes: Mapping[str, Remote]) -> None:
    """Makes sure that the disk has room for all files, and for one more compressed file at a time."""
    kept = needed = 0
    for name, remote in remotes.items():
        size = files[name].bytes or (4 * remote.size if remote.gzipped else remote.size)  # four is a guess
        suffixes = (GZ_PART, UNPACKED_PART) if remote.gzipped else (PART,)
        there = sum(_bytes_there(_beside(folder / name, suffix)) for suffix in suffixes)
        needed = max(needed, kept + size + remote.size * remote.gzipped - there)
        kept += size - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CommandError(
            f"{folder}: {_size(needed)} are needed and {_size(free)} are free; free some space or choose another folder"
        )


# ┌───────────┐
# │  Servers  │
# └───────────┘


class Interruption(Exception):
    """A failure that may pass; `pause` is how many seconds the server asks to wait."""

    def __init__(self, message: str, pause: float = 0) -> None:
        """Makes one of a message that goes on after a file's name."""
        super().__init__(message)
        self.pause = pause


class RangeRefused(Exception):
    """The server can't send the rest of a file alone."""


@dataclasses.dataclass(frozen=True)
class Remote:
    """A file as its server describes it; size and SHA-256 are those of the bytes that it sends."""

    url: str
    size: int
    sha256: str | None = None
    gzipped: bool = False


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(60.0, 2.0**failures)


def _persist(name: str, attempt: Callable[[], Any], progress: Callable[[], tuple[int, int]] = lambda: (0, 0)) -> Any:
    """Tries until it succeeds or fails ATTEMPTS times in a row without progress."""
    best, failures = progress(), 0
    while True:
        try:
            return attempt()
        except Interruption as error:
            failures = 1 if progress() > best else failures + 1
            best = max(best, progress())
            if failures >= ATTEMPTS:
                raise CommandError(
                    f"{name}: {error}; given up after {failures} attempts without progress. What has come is kept, run"
                    " the same command again later"
                ) from error
            pause = max(backoff(failures), error.pause)
            _say(f"{name}: {error}; trying again in {pause:.0f} s")
            time.sleep(pause)


@contextlib.contextmanager
def _failures(url: str) -> Iterator[None]:
    """Makes failures of the network Interruptions if they may pass, else CommandErrors."""
    try:
        yield
    except urllib.error.HTTPError as error:
        message, wait = f"the server answers {error.code} {error.reason}", error.headers.get("Retry-After", "")
        error.close()
        if error.code in (408, 425, 429) or error.code >= 500:
            raise Interruption(message, float(wait) if wait.isdecimal() else 0) from error
        raise CommandError(f"{_shown(url)}: {message}") from error
    except ftplib.error_perm as error:
        if str(error).startswith("530"):  # no login: often for want of a free place
            raise Interruption(f"the server answers {error}") from error
        raise CommandError(f"{_shown(url)}: the server answers {error}") from error
    except (OSError, EOFError, http.client.HTTPException, ftplib.Error, ValueError) as error:
        raise Interruption(f"{error}" if str(error) else type(error).__name__) from error


def _describe(file: so2sat.SourceFile) -> Remote:
    """Asks the server about a file."""
    with _failures(file.url):
        remote = _ask_ftp(file.url) if file.url.startswith("ftp:") else _ask_hub(file.url)
    if not remote.gzipped and file.bytes not in (None, remote.size):
        raise CommandError(
            f"{_shown(remote.url)}: has {remote.size:,} bytes, the published file {file.bytes:,}; nothing was fetched"
        )
    return remote


def _read(remote: Remote, offset: int) -> Iterator[bytes]:
    """Reads a file from an offset on; what comes may end too early."""
    with _failures(remote.url):
        yield from (_read_ftp if remote.url.startswith("ftp:") else _read_http)(remote, offset)


@contextlib.contextmanager
def _login(url: str) -> Iterator[tuple[ftplib.FTP, str]]:
    """Yields a connection to an FTP server, and the file's path there."""
    parts = urlsplit(url)
    with contextlib.closing(ftplib.FTP(timeout=TIMEOUT, encoding="latin-1")) as ftp:  # whatever the greeting is in
        ftp.connect(parts.hostname or "", parts.port or 0)
        # A router may forget this connection while the data come over another for hours.
        for level, option, value in (("SOL_SOCKET", "SO_KEEPALIVE", 1), ("IPPROTO_TCP", "TCP_KEEPIDLE", 60)):
            if ftp.sock and hasattr(socket, option):
                ftp.sock.setsockopt(getattr(socket, level), getattr(socket, option), value)
        ftp.login(unquote(parts.username or ""), unquote(parts.password or ""))
        ftp.voidcmd("TYPE I")
        yield ftp, unquote(parts.path).lstrip("/")


def _ask_ftp(url: str) -> Remote:
    with _login(url) as (ftp, path):
        size = ftp.size(path)
    if size is None:
        raise CommandError(f"{_shown(url)}: the server does not say its size")
    return Remote(url, size)


def _read_ftp(remote: Remote, offset: int) -> Iterator[bytes]:
    with _login(remote.url) as (ftp, path):
        try:
            connection = ftp.transfercmd(f"RETR {path}", offset or None)
        except ftplib.error_perm as error:
            if offset and str(error).startswith(("500", "501", "502", "504", "554")):
                raise RangeRefused from error
            raise
        # The reply at the end is not waited for: size and checksum tell more, and it may be lost after hours of silence.
        with connection:
            while chunk := connection.recv(CHUNK):
                yield chunk


def _open_http(url: str, data: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:
    request = urllib.request.Request(url, data, {"User-Agent": f"so2sat/{so2sat.VERSION}", **(headers or {})})
    if token := huggingface_hub.get_token():
        request.add_unredirected_header(
            "Authorization", f"Bearer {token}"
        )  # the storage behind the Hub must not get it
    return urllib.request.urlopen(request, timeout=TIMEOUT)


def _ask_hub(url: str) -> Remote:
    """Asks the Hub about a file that may be there gzipped or not. HfApi's requests would have no time limit."""
    owner, name, path = url.removeprefix("hf://datasets/").split("/", 2)
    plain, endpoint = path.removesuffix(".gz"), huggingface_hub.constants.ENDPOINT
    question = urlencode({"paths": [f"{plain}.gz", plain]}, doseq=True).encode()
    with _open_http(f"{endpoint}/api/datasets/{owner}/{name}/paths-info/main", question) as response:
        found = {entry["path"]: entry for entry in json.load(response)}
    for path in (f"{plain}.gz", plain):
        if entry := found.get(path):
            address = f"{endpoint}/datasets/{owner}/{name}/resolve/main/{quote(path)}"
            return Remote(address, entry["size"], (entry.get("lfs") or {}).get("oid"), gzipped=path != plain)
    raise CommandError(f"{_shown(url)}: no such file on {endpoint}")


def _read_http(remote: Remote, offset: int) -> Iterator[bytes]:
    # Without If-Range: the storage behind the Hub gives no lasting ETag; `follow` compares the Hub's SHA-256 instead.
    try:
        response = _open_http(remote.url, headers={"Range": f"bytes={offset}-"} if offset else None)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            raise RangeRefused from error
        raise
    with response:
        if offset and response.status != 206:
            raise RangeRefused
        extent = response.headers.get("Content-Range")
        if offset and extent != f"bytes {offset}-{remote.size - 1}/{remote.size}":
            raise Interruption(f"bytes {offset}- were asked for, {extent} came")
        while chunk := response.read1(CHUNK):  # read() would lose what came just before the connection failed
            yield chunk


# ┌───────────────────┐
# │  What users read  │
# └───────────────────┘


def _say(text: str) -> None:
    tqdm.tqdm.write(text)  # above the bar, if there is one
    sys.stdout.flush()


def _size(count: float) -> str:
    return f"{tqdm.tqdm.format_sizeof(count, divisor=1000)}B"


def _shown(url: str) -> str:
    """A URL without the account."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@contextlib.contextmanager
def _progress(label: str, total: int, start: int = 0) -> Iterator[Callable[[int], None]]:
    """Yields a function that shows how many bytes are done: in a bar, or without a terminal in a line now and then."""
    began = said = time.monotonic()
    options: dict[str, Any] = {"unit": "B", "unit_scale": True, "dynamic_ncols": True, "leave": False, "disable": None}
    with tqdm.tqdm(desc=label, total=total, initial=start, **options) as bar:

        def show(done: int) -> None:
            nonlocal said
            if not bar.disable:
                bar.update(done - bar.n)
            elif (now := time.monotonic()) - said >= LOG_SECONDS:
                said, rate = now, max(1.0, (done - start) / (now - began))
                left = datetime.timedelta(seconds=round((total - done) / rate))
                _say(f"{label}: {100 * done / total:.0f} % of {_size(total)}, {_size(rate)}/s, {left} left")

        yield show


if __name__ == "__main__":
    sys.exit(main())
