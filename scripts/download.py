"""Fetches the official So2Sat files, over bad lines too, and verifies every byte."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import ftplib
import functools
import hashlib
import json
import os
import posixpath
import shutil
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import h5py
import httpx2
import huggingface_hub.constants
import tqdm

import so2sat
from publishing import command, facts, files
from publishing.command import CommandError

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
    parser.add_argument("--edition", type=int, choices=facts.EDITIONS, default=2, help="default: %(default)s")
    parser.add_argument("--split", action="append", choices=so2sat.SOURCE_FILES, help="may be repeated (default: all)")
    parser.add_argument("--source", choices=SOURCES, help="server (default: tum, for edition 4 hub)")
    return command.run(_run, parser, argv)


def _run(options: argparse.Namespace) -> None:
    download(options.folder, options.edition, options.split, options.source)


def download(folder: Path, edition: int = 2, splits: Sequence[str] | None = None, source: str | None = None) -> None:
    """Fetches those files of an edition that the folder lacks, and verifies all.

    Args:
        folder: Where the files go, under their official names.
        edition: One of facts.EDITIONS.
        splits: Splits to fetch, all if None.
        source: One of SOURCES, the edition's own if None.

    Raises:
        CommandError: A file can't be had or is not what it must be; the message says what to do.
    """
    folder = folder.expanduser()
    parts = [Part(folder, name, file) for name, file in _select(edition, splits, source).items()]
    folder.mkdir(parents=True, exist_ok=True)
    _say(f"So2Sat LCZ42, edition {edition} ({facts.EDITIONS[edition].homepage}) → {folder}")
    if edition == 3 and (not splits or "train" in splits):
        _say("culture_10/training.h5 is edition 2's training.h5; to fetch that: --edition 2 --split train")
    with files.locked(folder, STATE_FOLDER):
        missing = [part for part in parts if not _is_there(part)]
        for part in missing:
            part.remote = _persist(part, functools.partial(_describe, part.file))
        _check_space(folder, missing)
        for part in missing:
            _fetch(part)
    size = sum(part.target.stat().st_size for part in parts)
    _say(f"{folder}: edition {edition}, {len(parts)} files, {size:,} bytes, all verified")


def _select(edition: int, splits: Sequence[str] | None, source: str | None) -> dict[str, facts.SourceFile]:
    """The files that are asked for, by their path in the folder."""
    source = source or next(name for name, editions in SOURCES.items() if edition in editions)
    if edition not in SOURCES[source]:
        raise CommandError(f"edition {edition} is not to be had from {source}; leave out --source {source}")
    names = [*facts.EDITIONS[edition].files]
    if splits:
        # `training` stands for training.h5, training_geo.h5, random/training.h5 …
        stems = {split: so2sat.SOURCE_FILES[split].removesuffix(".h5") for split in splits}
        names = [name for name in names if posixpath.basename(name).startswith((*stems.values(),))]
        for split, stem in stems.items():
            if not any(stem in name for name in names):
                raise CommandError(f"edition {edition} has no {split} split; leave out --split {split}")
    return {name: facts.EDITIONS[4 if source == "hub" else edition].files[name] for name in names}


class Damaged(Exception):
    """A file is not what it must be. The message goes on after the file's name."""


class Part:
    """What has come of a file: on the disk, in the checksums and, if it comes gzipped, unpacked beside it.

    Attributes:
        name: Its path in the folder.
        published: The strongest checksum that is published: kind and value.
        remote: The file on the server.
        generation: How many different files the server has had; 0 as long as nothing is open.
        received: Bytes that have come, as the server sends them.
        size: Bytes of the file that they make.
    """

    def __init__(self, folder: Path, name: str, file: facts.SourceFile) -> None:
        """Opens nothing, `follow` does."""
        self.folder, self.name, self.file, self.target = folder, name, file, folder / name
        self.published = f"sha256 {file.sha256}" if file.sha256 else f"md5 {file.md5}" if file.md5 else ""
        self.remote, self.generation, self.received, self.size = Remote("", 0), 0, 0, 0
        self.files = contextlib.ExitStack()

    def beside(self, suffix: str) -> Path:
        """Path of a file beside the target."""
        return self.target.with_name(self.target.name + suffix)

    @property
    def path(self) -> Path:
        """Path of what has come, as it came."""
        return self.beside(GZ_PART if self.remote.gzipped else PART)

    def follow(self, remote: Remote) -> None:
        """Goes on with what has come, or starts anew if that is of another file than the server has now."""
        if self.generation and remote == self.remote:
            return
        self.remote, self.generation = remote, self.generation + 1
        self.path.parent.mkdir(exist_ok=True)
        there, version = _bytes_in(self.path), f"{remote.size} {remote.sha256 or self.published}"
        key = str(self.path.relative_to(self.folder))
        keep = there <= remote.size and _recall(self.folder).get(key, version) == version
        if there and not keep:
            _say(f"{self.name}: the server has another file than before, starting anew")
        _remember(self.folder, key, version)
        self.restart(keep)

    def restart(self, keep: bool = False) -> None:
        """Starts with what is on the disk, or with nothing."""
        self.files.close()
        self.received = self.size = 0
        self.sent_hash = hashlib.sha256()  # of the bytes as they come
        self.hash = hashlib.new(self.published.partition(" ")[0] or "sha256")  # of the file
        self.gunzip = zlib.decompressobj(31)
        self.input = self.output = self.files.enter_context(self.path.open("a+b" if keep else "w+b", buffering=0))
        if self.remote.gzipped:
            self.output = self.files.enter_context(self.beside(UNPACKED_PART).open("wb", buffering=0))
        self.input.seek(0)
        if there := _bytes_in(self.path):
            with _progress(f"{self.name}: reading what is there", there) as show:
                while chunk := self.input.read(CHUNK):
                    self.take(chunk)
                    show(self.received)

    def take(self, chunk: bytes, is_new: bool = False) -> None:
        """Takes the next bytes, from the server if they are new, else from the disk."""
        if is_new:
            _write(self.input, chunk)
        self.received += len(chunk)
        if self.remote.sha256:
            self.sent_hash.update(chunk)
        while chunk:
            data, chunk = self._unpack(chunk) if self.remote.gzipped else (chunk, b"")
            self.hash.update(data)
            self.size += len(data)

    def _unpack(self, chunk: bytes) -> tuple[bytes, bytes]:
        """Unpacks bytes; returns what they make, and what belongs to another gzip file that is joined to this one."""
        if self.gunzip.eof:
            self.gunzip = zlib.decompressobj(31)
        try:
            data = self.gunzip.decompress(chunk)
        except zlib.error as error:
            raise Damaged(f"is no intact gzip near byte {self.received:,} ({error})") from error
        _write(self.output, data)
        return data, self.gunzip.unused_data

    def finish(self) -> str:
        """Verifies all, gives the file its name and returns what it was compared with.

        Raises:
            Damaged: Something differs.
        """
        if self.remote.sha256:
            _compare(f"sha256 {self.sent_hash.hexdigest()}", f"sha256 {self.remote.sha256}")
        if self.remote.gzipped and not self.gunzip.eof:
            raise Damaged("is gzip that ends too early")
        if self.file.bytes not in (None, self.size):
            raise Damaged(f"has {self.size:,} bytes when unpacked, expected {self.file.bytes:,}")
        if self.published:
            _compare(f"{self.hash.name} {self.hash.hexdigest()}", self.published)
        path = Path(self.output.name)
        _check_hdf5(path)
        os.fsync(self.output.fileno())
        path.replace(self.target)
        files.sync_folder(self.target.parent)
        _remember(self.folder, self.name, self.mark())
        self.remove_rest()
        if self.published:
            return f"{self.hash.name} as published"
        return f"no checksum published{', sha256 as the server says' * bool(self.remote.sha256)}"

    def mark(self) -> str:
        """What stays as it is as long as the file need not be verified again."""
        state = self.target.stat()
        return f"{state.st_size} {state.st_mtime_ns} {self.published}"

    def remove_rest(self) -> None:
        """Removes what is of no use beside the finished file."""
        for suffix in (PART, GZ_PART, UNPACKED_PART):
            self.beside(suffix).unlink(missing_ok=True)


def _fetch(part: Part) -> None:
    """Fetches a file, however often that is interrupted."""
    started = time.monotonic()

    def attempt() -> None:
        part.follow(_describe(part.file))
        try:
            _receive(part)
        except RangeRefused:
            _say(f"{part.name}: the server can't go on in the middle of a file, starting anew")
            part.restart()
            _receive(part)

    _say(f"{part.name}: {_size(part.remote.size)}{' gzipped' * part.remote.gzipped} from {_shown(part.remote.url)}")
    with part.files:
        try:
            _persist(part, attempt)
            how = part.finish()
        except Damaged as error:
            aside = part.path.with_name(f"{part.path.name.removesuffix(PART)}.damaged")
            part.path.replace(aside)
            part.beside(UNPACKED_PART).unlink(missing_ok=True)
            raise CommandError(
                f"{part.target}: what came {error}; it is kept as {aside.name}, delete that if it is of no use to you."
                " Run the same command again to fetch the file anew"
            ) from error
        except OSError as error:  # of the disk; those of the network are Interruptions
            raise CommandError(
                f"{part.target}: {error.strerror or error}; what has come is kept, run the same command again to go on"
            ) from error
        except KeyboardInterrupt:
            _say(f"{part.name}: {part.received:,} bytes are kept, run the same command again to go on")
            raise
    duration = datetime.timedelta(seconds=round(time.monotonic() - started))
    _say(f"{part.name}: {part.size:,} bytes in {duration}, {how}")


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
            part.take(chunk, is_new=True)
            show(part.received)
    if part.received < size:
        raise Interruption("connection closed")


def _is_there(part: Part) -> bool:
    """Whether the folder has a file, verified.

    Raises:
        CommandError: It has another file of that name.
    """
    target, expected = part.target, part.file.bytes
    if not os.path.lexists(target):
        return False
    mark, size, how = part.mark(), _bytes_in(target), "verified before"
    if _recall(part.folder).get(part.name) != mark:
        kind = part.published.partition(" ")[0]
        try:
            if expected not in (None, size):
                raise Damaged(f"has {size:,} bytes, expected {expected:,}")
            if kind:
                _compare(f"{kind} {_checksum(part, kind)}", part.published)
            _check_hdf5(target)
        except Damaged as error:
            is_beginning = part.file.url.startswith("ftp:") and size < (expected or 0)
            rename = f"rename it to {target.name}{PART} if it is the beginning of a download, else "
            raise CommandError(
                f"{target}: {error}. It is left as it is: {rename * is_beginning}move it away or delete it, and run the"
                " same command again"
            ) from error
        _remember(part.folder, part.name, mark)
        how = f"{kind} as published" if kind else "no checksum published"
    _say(f"{part.name}: is there, {size:,} bytes, {how}")
    part.remove_rest()  # a run may have been killed just before it did
    return True


def _checksum(part: Part, kind: str) -> str:
    digest, done = hashlib.new(kind), 0
    with (
        _progress(f"{part.name}: verifying", _bytes_in(part.target)) as show,
        part.target.open("rb", buffering=0) as file,
    ):
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            show(done)
    return digest.hexdigest()


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


def _bytes_in(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _recall(folder: Path) -> dict[str, str]:
    """What is remembered: the marks of verified files, and of which file on the server a part is."""
    try:
        notes: dict[str, str] = json.loads((folder / STATE_FOLDER / "state.json").read_bytes())
    except (OSError, ValueError):  # there is nothing yet, or somebody wrote into it
        return {}
    return notes


def _remember(folder: Path, key: str, note: str) -> None:
    with files.replacing(folder / STATE_FOLDER / "state.json") as file:
        file.write(json.dumps({**_recall(folder), key: note}, indent=1).encode())


def _check_space(folder: Path, missing: Sequence[Part]) -> None:
    """Makes sure that the disk has room for all files, and for the compressed bytes of one at a time."""
    kept = needed = 0
    for part in missing:
        sent, is_gzipped = part.remote.size, part.remote.gzipped
        size = part.file.bytes or (4 * sent if is_gzipped else sent)  # four is a guess
        there = _bytes_in(part.path) + is_gzipped * _bytes_in(part.beside(UNPACKED_PART))
        needed = max(needed, kept + size + is_gzipped * sent - there)
        kept += size - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CommandError(
            f"{folder}: {_size(needed)} are needed and {_size(free)} are free; free some space or choose another folder"
        )


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


def _persist(part: Part, attempt: Callable[[], Any]) -> Any:
    """Tries until it succeeds or fails ATTEMPTS times in a row without a new byte of the part."""
    best, failures = (0, 0), 0
    while True:
        try:
            return attempt()
        except Interruption as error:
            progress = part.generation, part.received
            best, failures = max(best, progress), 1 if progress > best else failures + 1
            message = f"{part.name}: {error}"
            if part.received:
                message += f" at {_size(part.received)} of {_size(part.remote.size)}"
            if failures >= ATTEMPTS:
                raise CommandError(
                    f"{message}; given up after {failures} attempts without progress. What has come is kept, run the"
                    " same command again later"
                ) from error
            pause = max(backoff(failures), error.pause)
            _say(f"{message}; trying again in {pause:.0f} s")
            time.sleep(pause)


@contextlib.contextmanager
def _failures(url: str) -> Iterator[None]:
    """Makes failures of the network Interruptions if they may pass, else CommandErrors."""
    try:
        yield
    except httpx2.HTTPStatusError as error:
        status, wait = error.response.status_code, error.response.headers.get("Retry-After", "")
        message = f"the server answers {status} {error.response.reason_phrase}"
        if status in (408, 425, 429) or status >= 500:
            raise Interruption(message, float(wait) if wait.isdecimal() else 0) from error
        raise CommandError(f"{_shown(url)}: {message}") from error
    except ftplib.error_perm as error:
        if str(error).startswith("530"):  # no login: often for want of a free place
            raise Interruption(f"the server answers {error}") from error
        raise CommandError(f"{_shown(url)}: the server answers {error}") from error
    except (OSError, EOFError, httpx2.HTTPError, ftplib.Error, ValueError) as error:
        raise Interruption(f"{error}" if str(error) else type(error).__name__) from error


def _describe(file: facts.SourceFile) -> Remote:
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
        with contextlib.suppress(*ftplib.all_errors):
            ftp.quit()  # servers count connections, and the next one follows
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
        # The reply at the end is not waited for: it may be lost after hours of silence, and the checksum tells more.
        with connection:
            while chunk := connection.recv(CHUNK):
                yield chunk


def _ask_hub(url: str) -> Remote:
    """Asks the Hub about a file that may be there gzipped or not. HfApi's requests would have no time limit."""
    owner, name, path = url.removeprefix("hf://datasets/").split("/", 2)
    plain, endpoint = path.removesuffix(".gz"), huggingface_hub.constants.ENDPOINT
    question = {"paths": [f"{plain}.gz", plain]}
    answer = _client().post(f"{endpoint}/api/datasets/{owner}/{name}/paths-info/main", data=question, **_options())
    found = {entry["path"]: entry for entry in answer.raise_for_status().json()}
    for path in question["paths"]:
        if entry := found.get(path):
            address = f"{endpoint}/datasets/{owner}/{name}/resolve/main/{quote(path)}"
            return Remote(address, entry["size"], (entry.get("lfs") or {}).get("oid"), gzipped=path != plain)
    raise CommandError(f"{_shown(url)}: no such file on {endpoint}")


def _read_http(remote: Remote, offset: int) -> Iterator[bytes]:
    # Without If-Range: the storage behind the Hub gives no lasting ETag; `follow` compares the Hub's SHA-256 instead.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    with _client().stream("GET", remote.url, **_options(**headers)) as response:
        if offset and response.status_code in (200, 416):
            raise RangeRefused
        extent = response.raise_for_status().headers.get("Content-Range")
        if offset and extent != f"bytes {offset}-{remote.size - 1}/{remote.size}":
            raise Interruption(f"bytes from {offset} on were asked for, {extent} came")
        with contextlib.suppress(httpx2.RemoteProtocolError):  # that it ended early, `_receive` sees
            yield from response.iter_raw()


@functools.cache
def _client() -> httpx2.Client:
    return httpx2.Client(follow_redirects=True)  # it leaves the token behind when it is sent to another host


def _options(**headers: str) -> dict[str, Any]:
    token = huggingface_hub.get_token()
    return {"headers": headers | ({"Authorization": f"Bearer {token}"} if token else {}), "timeout": TIMEOUT}


def _say(text: str) -> None:
    tqdm.tqdm.write(text)  # above the bar, if there is one
    sys.stdout.flush()


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


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
