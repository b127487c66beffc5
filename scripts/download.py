"""Fetches the official So2Sat files, over bad lines too, and verifies every byte."""

from __future__ import annotations

import contextlib
import dataclasses
import ftplib
import hashlib
import io
import itertools
import json
import os
import posixpath
import re
import shutil
import socket
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import httpx2
import huggingface_hub.constants
import tqdm

import so2sat
from publishing import command, facts, files
from publishing.command import CommandError

# The editions that a server has; the Hub has the files of editions 1 and 2 as part of edition 4.
SOURCES: Mapping[str, tuple[int, ...]] = {"tum": (1, 2, 3), "hub": (1, 2, 4)}

STATE_FOLDER, STATE_NAME = ".download", "state.json"
PART, GZ_PART, UNPACKED_PART = ".part", ".gz.part", ".unpacked.part"

TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 12  # failures in a row, without a new byte between them, before we give up: seven minutes or more
LONGEST_PAUSE = 600.0  # seconds that we wait if a server asks for it
CHUNK = 1 << 18
ANSWER_BYTES, ANSWER_LINES, REDIRECTS = 1 << 20, 200, 10  # more than that is no answer to our questions
UNPACKED_FACTOR = 100  # by which a file whose size is not published may grow when it is unpacked
SHA256 = re.compile("[0-9a-f]{64}")
LOG_SECONDS = 30.0  # between two lines of progress where there is no terminal

ELSEWHERE = "try the other --source, or look at the edition's page"
HINTS: Mapping[int, str] = {
    401: "log in with 'hf auth login', or set HF_TOKEN to a token that is valid",
    402: "the Hub wants to be paid for this; try --source tum",
    403: "the token of 'hf auth login' or HF_TOKEN may not read this; use another one, or none",
    404: f"unset HF_ENDPOINT if it is set, {ELSEWHERE}",
}

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
    return command.run(lambda given: download(given.folder, given.edition, given.split, given.source), parser, argv)


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
    selected, folder = _select(edition, splits, source), Path(os.path.expanduser(folder))
    folder.mkdir(parents=True, exist_ok=True)
    _say(f"So2Sat LCZ42, edition {edition} ({facts.EDITIONS[edition].homepage}) → {folder}")
    if edition == 3 and (not splits or "train" in splits):
        _say("culture_10/training.h5 is edition 2's training.h5; to fetch that: --edition 2 --split train")
    with files.locked(folder, STATE_FOLDER):
        missing = {name: file for name, file in selected.items() if not _is_there(folder, name, file)}
        remotes = {name: _describe(name, file) for name, file in missing.items()}
        _check_space(folder, remotes)
        for name, remote in remotes.items():
            _fetch(folder, name, selected[name], remote)
    size = sum((folder / name).stat().st_size for name in selected)
    _say(f"{folder}: edition {edition}, {len(selected)} files, {size:,} bytes, all verified")


def _select(edition: int, splits: Sequence[str] | None, source: str | None) -> dict[str, facts.SourceFile]:
    """The files that are asked for by their path in the folder, those of a split together."""
    source = source or next(name for name, editions in SOURCES.items() if edition in editions)
    if edition not in SOURCES[source]:
        raise CommandError(f"edition {edition} is not to be had from {source}; leave out --source {source}")
    available = facts.EDITIONS[4 if source == "hub" else edition].files
    names: list[str] = []
    for split in splits or so2sat.SOURCE_FILES:
        stem = so2sat.SOURCE_FILES[split].removesuffix(".h5")  # of training.h5, training_geo.h5, random/training.h5 …
        found = [name for name in facts.EDITIONS[edition].files if posixpath.basename(name).startswith(stem)]
        if splits and not found:
            raise CommandError(f"edition {edition} has no {split} split; leave out --split {split}")
        names += found
    return {name: available[name] for name in names}


class Damaged(Exception):
    """A file is not what it must be. The message goes on after the file's name."""


@dataclasses.dataclass(eq=False)
class Interruption(Exception):
    """A failure that may pass; `pause` is how many seconds the server asks to wait."""

    message: str
    pause: float = 0


class Remote(NamedTuple):
    """A file as its server describes it: bytes that it sends, bytes that they make at most, and the file's SHA-256."""

    url: str
    size: int
    limit: int
    sha256: str | None
    is_gzipped: bool


def _is_there(folder: Path, name: str, file: facts.SourceFile) -> bool:
    """Whether the folder has a file, verified; something else of its name is an error."""
    path = folder / name
    if not os.path.lexists(path):
        return False
    if not path.is_file():
        raise CommandError(f"{path}: is no regular file, nor a link to one; move it away")
    size, how = path.stat().st_size, "is there, verified before"
    if _marks(folder).get(name) != _mark(path, file):
        try:
            if file.bytes not in (None, size):
                raise Damaged(f"has {size:,} bytes, expected {file.bytes:,}")
            with _naming(path), path.open("rb") as opened, _bar(name, size) as bar:
                for piece in _verified(_rest(opened), file, size):
                    bar.update(len(piece))
            how = "is there"
        except Damaged as error:
            raise CommandError(
                f"{path}: {error}. It is left as it is: move it away or delete it, or rename it to {path.name}{PART} if"
                " it is the beginning of a download; then run the same command again"
            ) from error
    _keep(folder, name, file, how)
    return True


def _verified(
    pieces: Iterable[bytes], file: facts.SourceFile, limit: int, sha256: str | None = None
) -> Iterator[bytes]:
    """Passes a file's bytes on, stops when they are more than they may be, and compares them with what is published."""
    kind, expected = _checksum(file)
    digest, size = hashlib.new(kind), 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise Damaged(f"has more than {limit:,} bytes, expected no more")
        digest.update(piece)
        yield piece
    if file.bytes not in (None, size):
        raise Damaged(f"has {size:,} bytes, expected {file.bytes:,}")
    found, expected = digest.hexdigest(), expected or sha256 or digest.hexdigest()
    if found != expected:
        raise Damaged(f"has {kind} {found}, expected {expected}")


def _checksum(file: facts.SourceFile) -> tuple[str, str]:
    """Kind and value of the strongest checksum that is published; the value is empty if there is none."""
    return ("md5", file.md5) if file.md5 and not file.sha256 else ("sha256", file.sha256 or "")


def _mark(path: Path, file: facts.SourceFile) -> str:
    """What stays as it is as long as a file need not be verified again."""
    state = path.stat()
    return " ".join([str(state.st_size), str(state.st_mtime_ns), *_checksum(file)])


def _marks(folder: Path) -> dict[str, Any]:
    """Marks of verified files by name; what somebody else wrote there is as good as nothing."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        marks = json.loads((folder / STATE_FOLDER / STATE_NAME).read_bytes())
        return marks if isinstance(marks, dict) else {}
    return {}


def _keep(folder: Path, name: str, file: facts.SourceFile, how: str) -> None:
    """Notes and says that a file is verified, and removes what is of no use beside it."""
    marks = {**_marks(folder), name: _mark(folder / name, file)}
    path = folder / STATE_FOLDER / STATE_NAME
    with _naming(path), files.replacing(path) as state:
        state.write(json.dumps(marks, indent=1).encode())
    for suffix in (PART, GZ_PART, UNPACKED_PART):
        (folder / f"{name}{suffix}").unlink(missing_ok=True)
    kind, expected = _checksum(file)
    sums = f"{kind} as published" if expected else "no checksum published"
    _say(f"{name}: {how}, {(folder / name).stat().st_size:,} bytes, {sums}")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Makes an error of the disk one that names a file; errors of the network are Interruptions."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename or path}: {error.strerror or error}"
        raise CommandError(f"{reason}; what has come is kept, run the same command again to go on") from error


def _check_space(folder: Path, remotes: Mapping[str, Remote]) -> None:
    """Makes sure that the disk has room for all files, and for the packed bytes of the largest."""
    needed = max((remote.size for remote in remotes.values() if remote.is_gzipped), default=0)
    for name, remote in remotes.items():
        there = [folder / f"{name}{suffix}" for suffix in (PART, GZ_PART, UNPACKED_PART)]
        needed += remote.limit - sum(path.stat().st_size for path in there if path.exists())
    if needed > (free := shutil.disk_usage(folder).free):
        raise CommandError(
            f"{folder}: {_size(needed)} are needed and {_size(free)} are free; free some space or choose another folder"
        )


def _fetch(folder: Path, name: str, file: facts.SourceFile, remote: Remote) -> None:
    """Fetches a file and verifies it."""
    target = folder / name
    part = folder / f"{name}{GZ_PART if remote.is_gzipped else PART}"
    whole = folder / f"{name}{UNPACKED_PART}" if remote.is_gzipped else part
    _say(f"{name}: {_size(remote.size)}{' gzipped' if remote.is_gzipped else ''} from {_public(remote.url)}")
    try:
        with _naming(target):
            target.parent.mkdir(exist_ok=True)
            _receive(name, file, remote, part, whole)
            whole.replace(target)
            files.sync_folder(target.parent)
            _keep(folder, name, file, "fetched")
    except Damaged as error:
        aside = part.with_suffix(".damaged")
        part.replace(aside)
        whole.unlink(missing_ok=True)
        raise CommandError(
            f"{target}: what came {error}; it is kept as {aside.name}, delete that if it is of no use to you. Run the"
            " same command again to fetch the file anew"
        ) from error


def _receive(name: str, file: facts.SourceFile, remote: Remote, part: Path, whole: Path) -> None:
    """Receives a file into `part`, and unpacks it into `whole` while it comes if it is packed."""
    with contextlib.ExitStack() as stack:
        received = unpacked = stack.enter_context(part.open("a+b"))
        pieces = _arriving(name, remote, received, stack.enter_context(_bar(name, remote.size)))
        if remote.is_gzipped:
            pieces, unpacked = _gunzip(pieces), stack.enter_context(whole.open("w+b"))
        for piece in _verified(pieces, file, remote.limit, remote.sha256):
            if remote.is_gzipped:
                unpacked.write(piece)
        unpacked.flush()
        os.fsync(unpacked.fileno())


def _arriving(name: str, remote: Remote, part: BinaryIO, bar: Any) -> Iterator[bytes]:
    """Yields a file as its server sends it, however often that is interrupted: what `part` has, then what is new."""
    if part.seek(0, os.SEEK_END) > remote.size:
        part.truncate(0)  # it is no part of this file
    part.seek(0)
    for piece in _rest(part):
        bar.update(len(piece))
        yield piece
    received, failures = part.tell(), 0
    while received < remote.size:
        before = received
        try:
            for piece in _read(remote, received):
                if received + len(piece) > remote.size:
                    raise Damaged(f"has more than the {remote.size:,} bytes that the server announced")
                part.write(piece)
                received += len(piece)
                bar.update(len(piece))
                yield piece
            if received < remote.size:
                raise Interruption("connection closed")
        except Interruption as error:
            failures = 1 if received > before else failures + 1
            _wait(name, error, failures, received)


def _rest(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.read(CHUNK), b"")


def _gunzip(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Unpacks a gzip file, or several that are joined, a little at a time."""
    gunzip = zlib.decompressobj(zlib.MAX_WBITS + 16)
    for piece in pieces:
        while piece:
            if gunzip.eof:
                gunzip = zlib.decompressobj(zlib.MAX_WBITS + 16)
            try:
                yield gunzip.decompress(piece, CHUNK)
            except zlib.error as error:
                raise Damaged(f"is no intact gzip ({error})") from error
            piece = gunzip.unconsumed_tail or gunzip.unused_data
    if not gunzip.eof:
        raise Damaged("is gzip that ends too early")


def _wait(name: str, error: Interruption, failures: int, received: int = 0) -> None:
    """Waits after so many failures in a row without a new byte, or gives up."""
    message = f"{name}: {error.message}, {_size(received)} have come"
    # That there is no such host is how a line fails, too; before anything came it is the address that is wrong.
    if failures >= ATTEMPTS or (not received and f"[Errno {socket.EAI_NONAME}]" in message):
        raise CommandError(
            f"{message}; given up after {failures} attempts in a row that brought nothing. What has come is kept, run"
            " the same command again later, or with another --source or HF_ENDPOINT"
        ) from error
    pause = max(min(60.0, 2.0**failures), error.pause)
    _say(f"{message}; trying again in {pause:.0f} s")
    time.sleep(pause)


@contextlib.contextmanager
def _failures(url: str) -> Iterator[None]:
    """Makes failures of the network Interruptions if they may pass, else CommandErrors.

    What they come from is not shown with them: it may hold a password or an address that is signed.
    """
    try:
        yield
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, UnicodeEncodeError):
        raise CommandError(
            f"{_public(url)}: can't be asked for; HF_ENDPOINT must be unset or like https://huggingface.co, and"
            " HF_TOKEN unset or a token"
        ) from None
    except ftplib.error_perm as error:
        answer = f"the server answers {_public(error, url)}"
        if answer.startswith("the server answers 530"):  # no login: often for want of a free place
            raise Interruption(answer) from None
        raise CommandError(f"{_public(url)}: {answer}; {ELSEWHERE}") from None
    except (OSError, EOFError, httpx2.HTTPError, ftplib.Error) as error:
        raise Interruption(_public(error, url)) from None


def _describe(name: str, file: facts.SourceFile) -> Remote:
    """Asks the server about a file, until it answers."""
    ask = _ask_ftp if file.url.startswith("ftp:") else _ask_hub
    for failures in itertools.count(1):
        try:
            with _failures(file.url):
                url, size, sha256 = ask(file.url)
            break
        except Interruption as error:
            _wait(name, error, failures)
    if url.endswith(".gz"):  # the Hub's sum is that of the packed file
        return Remote(url, size, file.bytes or size * UNPACKED_FACTOR, None, True)
    if file.bytes not in (None, size):
        raise CommandError(f"{_public(url)}: has {size:,} bytes, the published file {file.bytes:,}; {ELSEWHERE}")
    return Remote(url, size, size, sha256, False)


def _read(remote: Remote, offset: int) -> Iterator[bytes]:
    """Reads a file from an offset on; what comes may end too early or never."""
    open_at = _open_ftp if remote.url.startswith("ftp:") else _open_http
    with _failures(remote.url), open_at(remote, offset) as (position, pieces):
        for piece in pieces:
            yield piece[max(0, offset - position) :]  # a server that can't begin at the offset begins at the start
            position += len(piece)


class _FTP(ftplib.FTP):
    """A client that stops to listen after many lines: an answer may have no end."""

    lines = 0

    def getline(self) -> str:
        self.lines += 1
        if self.lines > ANSWER_LINES:
            raise ftplib.error_perm(f"more than {ANSWER_LINES} lines")
        return super().getline()


@contextlib.contextmanager
def _login(url: str) -> Iterator[tuple[ftplib.FTP, str]]:
    """Yields a connection to an FTP server, and the file's path there."""
    parts = urlsplit(url)
    with contextlib.closing(_FTP(timeout=TIMEOUT, encoding="latin-1")) as ftp:  # whatever the greeting is in
        ftp.connect(parts.hostname or "", parts.port or 0)
        ftp.login(unquote(parts.username or ""), unquote(parts.password or ""))
        ftp.voidcmd("TYPE I")
        yield ftp, unquote(parts.path).lstrip("/")


def _ask_ftp(url: str) -> tuple[str, int, None]:
    with _login(url) as (ftp, path):
        answer = re.fullmatch(r"213 +([0-9]{1,18})\s*", ftp.sendcmd(f"SIZE {path}"))
    if not answer:
        raise CommandError(f"{_public(url)}: the server does not say its size; {ELSEWHERE}")
    return url, int(answer[1]), None


@contextlib.contextmanager
def _open_ftp(remote: Remote, offset: int) -> Iterator[tuple[int, Iterable[bytes]]]:
    """Yields where the server begins, and what it sends."""
    with _login(remote.url) as (ftp, path):
        try:
            connection = ftp.transfercmd(f"RETR {path}", offset or None)
        except ftplib.error_perm as error:
            if not offset or not str(error).startswith(("500", "501", "502", "504", "554")):
                raise
            offset, connection = 0, ftp.transfercmd(f"RETR {path}")
        # The reply at the end is not waited for: it may be lost after hours of silence, and the checksum tells more.
        with connection:
            yield offset, iter(lambda: connection.recv(CHUNK), b"")


def _ask_hub(url: str) -> tuple[str, int, str | None]:
    """Asks the Hub about a file that may be there gzipped or not. HfApi's requests have no limits of time and size."""
    owner, name, path = url.removeprefix("hf://datasets/").split("/", 2)
    endpoint, paths = huggingface_hub.constants.ENDPOINT, [f"{path.removesuffix('.gz')}{end}" for end in (".gz", "")]
    answer = b""
    with _request("POST", f"{endpoint}/api/datasets/{owner}/{name}/paths-info/main", data={"paths": paths}) as response:
        for piece in response.iter_raw():
            answer += piece
            if len(answer) > ANSWER_BYTES:
                break
    found = _sizes_and_sums(answer)
    if found is None:
        raise CommandError(f"{_public(endpoint)}: does not answer as the Hub does; unset HF_ENDPOINT if it is set")
    for path in filter(found.__contains__, paths):
        return f"{endpoint}/datasets/{owner}/{name}/resolve/main/{quote(path)}", *found[path]
    raise CommandError(f"{_public(endpoint)}: has no {url}; {HINTS[404]}")


def _sizes_and_sums(answer: bytes) -> dict[str, tuple[int, str | None]] | None:
    """Size and SHA-256 of files by path; None if the Hub's answer is of another shape."""
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError, AttributeError):
        entries = json.loads(answer)
        found = {entry["path"]: (entry["size"], (entry.get("lfs") or {}).get("oid")) for entry in entries}
        are_right = all(
            type(size) is int and size >= 0 and (oid is None or SHA256.fullmatch(oid)) for size, oid in found.values()
        )
        return found if isinstance(entries, list) and are_right else None
    return None


@contextlib.contextmanager
def _open_http(remote: Remote, offset: int) -> Iterator[tuple[int, Iterable[bytes]]]:
    """Yields where the server begins, and what it sends."""
    # Without If-Range: the storage behind the Hub gives no lasting ETag; the checksum is compared instead.
    with _request("GET", remote.url, {"Range": f"bytes={offset}-"} if offset else {}) as response:
        start, headers = offset if response.status_code == 206 else 0, response.headers
        extent, length = f"bytes {start}-{remote.size - 1}/{remote.size}", str(remote.size - start)
        if headers.get("Content-Length", length) != length or (start and headers.get("Content-Range") != extent):
            raise Interruption(f"{extent} were asked for, something else came")
        yield start, response.iter_raw()


@contextlib.contextmanager
def _request(method: str, url: str, headers: Mapping[str, str] = {}, **content: Any) -> Iterator[httpx2.Response]:
    """Sends a request and yields the answer. Its body is not read, nor are those of redirections, which may not end."""
    token = huggingface_hub.get_token()
    account = {"Authorization": f"Bearer {token}"} if token else {}  # left behind when another host is next
    with httpx2.Client(timeout=TIMEOUT) as client:
        headers = {"Accept-Encoding": "identity", **account, **headers}
        response = client.send(client.build_request(method, url, headers=headers, **content), stream=True)
        for _ in range(REDIRECTS):
            if response.next_request:
                response.close()
                response = client.send(response.next_request, stream=True)
        status, wait = response.status_code, response.headers.get("Retry-After", "")
        message = f"the server answers {status} {httpx2.codes.get_reason_phrase(status)}"
        if status in (408, 425, 429) or status >= 500:
            raise Interruption(message, min(float(wait), LONGEST_PAUSE) if wait.isdecimal() else 0)
        if not response.is_success:
            raise CommandError(f"{_public(url)}: {message}; {HINTS.get(status, ELSEWHERE)}")
        yield response


def _say(text: str) -> None:
    try:
        tqdm.tqdm.write(text)  # above the bar, if there is one
        sys.stdout.flush()
    except OSError:  # nobody reads it any more, or the disk of the log is full: no reason to stop
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _public(text: object, url: str = "") -> str:
    """A URL or what a server said, in one line, without passwords, signatures and control characters."""
    shown = str(text) or type(text).__name__
    if password := urlsplit(url).password:
        shown = shown.replace(password, "…")
    shown = re.sub(r"(?<=//)[^/\s]*@|\?\S*", "", shown)
    return "".join(character if character.isprintable() else " " for character in shown[:300])


class _Log(io.TextIOBase):
    """Where a progress bar goes that has no terminal: a line now and then."""

    def write(self, text: str) -> int:
        if text.strip():
            _say(text.strip())
        return len(text)


def _bar(label: str, total: int) -> Any:
    """A progress bar."""
    where = {} if sys.stderr.isatty() else {"file": _Log(), "mininterval": LOG_SECONDS, "ascii": True}
    return tqdm.tqdm(desc=label, total=total, unit="B", unit_scale=True, dynamic_ncols=True, leave=False, **where)


if __name__ == "__main__":
    sys.exit(main())
