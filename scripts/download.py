"""Fetches the official So2Sat files, over bad lines too, and verifies every byte."""

from __future__ import annotations

import contextlib
import ftplib
import functools
import gzip
import hashlib
import os
import posixpath
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import httpx2
import tqdm
from huggingface_hub import constants, get_hf_file_metadata, get_session
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers

import so2sat
from publishing import command, facts, files, hub
from publishing.command import CommandError

SERVERS: Mapping[str, str] = {"ftp": "tum", "hf": "hub"}  # by the scheme of the URLs in facts
STATE_FOLDER = ".download"
PART, GZ_PART, UNPACKED_PART = ".part", ".gz.part", ".unpacked.part"

PAUSES = (2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60)  # seconds between attempts that bring nothing; then we give up
FTP_TIMEOUT = 30.0  # seconds without a byte; huggingface_hub has its own
LOG_SECONDS = 30.0  # between two lines of progress where there is no terminal
CHUNK = 1 << 18

SETTINGS = "HF_ENDPOINT must be unset or like https://huggingface.co, HF_TOKEN unset or a token that may read this"

EXAMPLES = """\
  python scripts/download.py data                             edition 2 from its publisher (TUM), 59 GB
  python scripts/download.py data --server hub                the same files, gzipped, from the Hugging Face Hub
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
    parser.add_argument("--server", choices=[*SERVERS.values()], help="default: where the edition was published")
    return command.run(lambda given: download(given.folder, given.edition, given.split, given.server), parser, argv)


def download(folder: Path, edition: int = 2, splits: Sequence[str] | None = None, server: str | None = None) -> None:
    """Fetches those files of an edition that the folder lacks, and verifies all.

    Args:
        folder: Where the files go, under their official names.
        edition: One of facts.EDITIONS.
        splits: Splits to fetch, all if None.
        server: One of those that have the edition, the edition's own if None.

    Raises:
        CommandError: A file can't be had or is not what it must be; the message says what to do.
    """
    selected, others = _select(edition, splits, server)
    folder = folder.expanduser()
    _say(f"So2Sat LCZ42, edition {edition} ({facts.EDITIONS[edition].homepage}) → {folder}")
    if edition == 3 and (not splits or "train" in splits):
        _say("culture_10/training.h5 is edition 2's training.h5; to fetch that: --edition 2 --split train")
    name, again = "", "what has come is kept: run the same command again"
    with files.locked(folder, STATE_FOLDER):
        try:
            remotes: dict[str, Remote] = {}
            for name, file in selected.items():
                if not _is_there(folder, name, file):
                    remotes[name] = _persistently(name, functools.partial(_describe, file))
            _check_space(folder, selected, remotes)
            for name, remote in remotes.items():
                _fetch(folder, name, selected[name], remote)
        except ServerError as error:
            advice = [] if isinstance(error, LastingError) else [f"{again} later"]
            advice += [f"--server {other} has the same files" for other in others]
            raise CommandError("; ".join([f"{name}: {error}", *advice])) from None
        except OSError as error:
            raise CommandError(f"{error.filename or folder / name}: {error.strerror or error}; {again}") from error
    size = sum((folder / name).stat().st_size for name in selected)
    _say(f"{folder}: edition {edition}, {len(selected)} files, {size:,} bytes, all verified")


# ┌───────────────┐
# │  Which files  │
# └───────────────┘


def _select(
    edition: int, splits: Sequence[str] | None, server: str | None
) -> tuple[dict[str, facts.SourceFile], list[str]]:
    """The files that are asked for by their path in the folder, those of a split together, and other servers."""
    servers = _servers(edition)
    server = server or next(iter(servers))
    if server not in servers:
        raise CommandError(f"edition {edition} is not on the server {server!r}; it is on: {', '.join(servers)}")
    selected: dict[str, facts.SourceFile] = {}
    for split in splits or so2sat.SOURCE_FILES:
        stem = so2sat.SOURCE_FILES[split].removesuffix(".h5")  # of training.h5, training_geo.h5, random/training.h5 …
        found = {name: file for name, file in servers[server].items() if posixpath.basename(name).startswith(stem)}
        if splits and not found:
            raise CommandError(f"edition {edition} has no {split} split; leave out --split {split}")
        selected |= found
    return selected, [other for other in servers if other != server]


def _servers(edition: int) -> dict[str, dict[str, facts.SourceFile]]:
    """An edition's files by server, its own server first; another one has them if an edition there has the same."""
    own, found = facts.EDITIONS[edition].files, dict[str, dict[str, facts.SourceFile]]()
    for number in sorted(facts.EDITIONS, key=lambda number: number != edition):
        there = facts.EDITIONS[number].files
        same = {
            name: there[name]
            for name, file in own.items()
            if there is own or (file.md5 and name in there and there[name].md5 == file.md5)
        }
        if len(same) == len(own):
            found.setdefault(SERVERS[urlsplit(next(iter(there.values())).url).scheme], same)
    return found


# ┌─────────────────┐
# │  What is there  │
# └─────────────────┘


class Damaged(Exception):
    """A file is not what it must be. The message goes on after the file's name."""


def _is_there(folder: Path, name: str, file: facts.SourceFile) -> bool:
    """Whether the folder has a file, verified; something else of its name is an error."""
    path = folder / name
    if not os.path.lexists(path):
        return False
    if not path.is_file():
        raise CommandError(f"{path}: is no regular file, nor a link to one; move it away")
    noted, note = _note(folder, name, file)
    if noted.exists() and noted.read_text(encoding="utf-8") == note:
        _say(f"{name}: is there, verified before")
        return True
    try:
        _verify(name, path, file.bytes, *_checksum(file))
    except Damaged as error:
        raise CommandError(
            f"{path}: {error}. It is left as it is: move it away or delete it, or rename it to {path.name}{PART} if"
            " it is the beginning of a download; then run the same command again"
        ) from error
    _finish(folder, name, file, "is there")
    return True


def _verify(name: str, path: Path, size: int | None, kind: str, checksum: str | None) -> None:
    """Compares a file with its size and checksum where they are known."""
    found = path.stat().st_size
    if size not in (None, found):
        raise Damaged(f"has {found:,} bytes, expected {size:,}")
    if checksum:
        digest = hashlib.new(kind, usedforsecurity=False)
        with path.open("rb") as opened:
            for piece in _shown(f"{name}: verifying", iter(lambda: opened.read(CHUNK), b""), found):
                digest.update(piece)
        if digest.hexdigest() != checksum:
            raise Damaged(f"has {kind} {digest.hexdigest()}, expected {checksum}")


def _checksum(file: facts.SourceFile) -> tuple[str, str | None]:
    """Kind and value of the strongest checksum that is published."""
    return ("md5", file.md5) if file.md5 and not file.sha256 else ("sha256", file.sha256)


def _note(folder: Path, name: str, file: facts.SourceFile) -> tuple[Path, str]:
    """Where it is noted that a file was verified, and the note, which holds as long as the file is not changed."""
    state = (folder / name).stat()
    note = f"{state.st_size} {state.st_mtime_ns} {_checksum(file)}"
    return folder / STATE_FOLDER / f"{name.replace('/', '_')}.verified", note


def _finish(folder: Path, name: str, file: facts.SourceFile, how: str) -> None:
    """Notes and says that a file is verified, and removes the parts that are left of it."""
    noted, note = _note(folder, name, file)
    noted.write_text(note, encoding="utf-8")
    for part in _parts(folder, name):
        part.unlink(missing_ok=True)
    kind, checksum = _checksum(file)
    sums = f"{kind} as published" if checksum else "no checksum published"
    _say(f"{name}: {how}, {(folder / name).stat().st_size:,} bytes, {sums}")


# ┌─────────────────────────┐
# │  How a file is fetched  │
# └─────────────────────────┘


class Remote(NamedTuple):
    """A file as its server describes it: the bytes that it sends, and their SHA-256 if it says so."""

    url: str
    size: int
    sha256: str | None = None


def _parts(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}{suffix}" for suffix in (PART, GZ_PART, UNPACKED_PART)]


def _check_space(folder: Path, selected: Mapping[str, facts.SourceFile], remotes: Mapping[str, Remote]) -> None:
    """Makes sure that the disk has room for all files, and for the packed bytes of the largest."""
    needed = max((remote.size for remote in remotes.values() if remote.url.endswith(".gz")), default=0)
    for name, remote in remotes.items():
        needed += selected[name].bytes or remote.size
        needed -= sum(part.stat().st_size for part in _parts(folder, name) if part.exists())
    if needed > (free := shutil.disk_usage(folder).free):
        raise CommandError(
            f"{folder}: {_size(needed)} are needed and {_size(free)} are free; free some space or choose another folder"
        )


def _fetch(folder: Path, name: str, file: facts.SourceFile, remote: Remote) -> None:
    """Fetches a file, unpacks and verifies it, and gives it its name."""
    target, is_gzipped = folder / name, remote.url.endswith(".gz")
    part, gz_part, unpacked = _parts(folder, name)
    part, whole = (gz_part, unpacked) if is_gzipped else (part, part)
    _say(f"{name}: {_size(remote.size)}{' gzipped' if is_gzipped else ''} from {_host(remote.url)}")
    target.parent.mkdir(exist_ok=True)
    part.touch()
    _persistently(name, lambda: _receive(name, remote, part), lambda: part.stat().st_size)
    try:
        kind, checksum = _checksum(file)
        _verify(name, part, remote.size, "sha256", None if checksum else remote.sha256)
        if is_gzipped:
            _unpack(name, part, whole, file.bytes)
        _verify(name, whole, file.bytes, kind, checksum)
    except Damaged as error:
        aside = part.with_suffix(".damaged")
        part.replace(aside)
        whole.unlink(missing_ok=True)
        raise CommandError(
            f"{target}: what came {error}; it is kept as {aside.name}, delete that if it is of no use to you. Run the"
            " same command again to fetch the file anew"
        ) from error
    with whole.open("rb+") as opened:
        os.fsync(opened.fileno())
    whole.replace(target)
    _finish(folder, name, file, "fetched")


def _receive(name: str, remote: Remote, part: Path) -> None:
    """Appends to a part what it lacks, as far as that comes."""
    with part.open("ab") as file:
        start = file.tell()
        for piece in _shown(name, _read(remote, start) if start < remote.size else (), remote.size, start):
            file.write(piece)
        if file.tell() < remote.size:
            raise ServerError(f"{_host(remote.url)}: connection closed")


def _unpack(name: str, packed: Path, unpacked: Path, size: int | None) -> None:
    """Unpacks a gzip file as far as the published size; what is behind that is no damage."""
    left = size or sys.maxsize
    with gzip.open(packed) as source, unpacked.open("wb") as target:
        pieces = iter(lambda: source.read(min(CHUNK, left)), b"")
        try:
            for piece in _shown(f"{name}: unpacking", pieces, size):
                left -= target.write(piece)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise Damaged(f"is no intact gzip ({error})") from error


# ┌───────────────────┐
# │  What servers do  │
# └───────────────────┘


class ServerError(Exception):
    """A server fails, or the way to it. `pause` is how many seconds it asks to wait."""

    pause = 0


class LastingError(ServerError):
    """One that another attempt would not mend."""


Result = TypeVar("Result")


def _persistently(name: str, attempt: Callable[[], Result], received: Callable[[], int] = lambda: 0) -> Result:
    """Tries until it works, with growing pauses. When new bytes have come, attempts and pauses begin anew."""
    failures, before = 0, received()
    while True:
        try:
            return attempt()
        except ServerError as error:
            if (now := received()) > before:
                failures, before = 0, now
            if isinstance(error, LastingError) or failures == len(PAUSES):
                raise
            pause = max(PAUSES[failures], error.pause)
            _say(f"{name}: {error}; {f'{_size(now)} have come, ' if now else ''}trying again in {pause} s")
        time.sleep(pause)
        failures += 1


@contextlib.contextmanager
def _server_errors(host: str) -> Iterator[None]:
    """Makes every failure a ServerError; what it comes from is not shown, as that may hold a token or a signature."""
    try:
        yield
    except HfHubHTTPError as error:
        raise _refusal(error.response) from None
    except ftplib.error_perm as error:  # 530 is often the want of a free place
        kind = ServerError if str(error).startswith("530") else LastingError
        raise kind(f"{host} answers {error}") from None
    except ImportError:
        raise LastingError(hub.NO_SOCKS) from None
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, UnicodeEncodeError):
        raise LastingError(f"{host} can't be asked; {SETTINGS}") from None
    except OfflineModeIsEnabled:
        raise LastingError("HF_HUB_OFFLINE forbids to ask the Hub; unset it") from None
    except (OSError, EOFError, httpx2.HTTPError, ftplib.Error) as error:
        reason = f"{host}: {str(error) or type(error).__name__}"
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            hint = "look at this machine's clock, at proxies that replace certificates, and at SSL_CERT_FILE"
            raise LastingError(f"{reason}; {hint}") from None
        raise ServerError(reason) from None


def _refusal(response: httpx2.Response) -> ServerError:
    """What an error status means."""
    message = f"{response.url.host} answers {response.status_code} {response.reason_phrase}"
    if not hub.is_transient(response):
        return LastingError(f"{message}; {SETTINGS}")
    error = ServerError(message)
    error.pause = hub.asked_pause(response)
    return error


def _describe(file: facts.SourceFile) -> Remote:
    """Asks the server about a file."""
    with _server_errors(_host(file.url)):
        remote = (_ask_ftp if file.url.startswith("ftp:") else _ask_hub)(file.url)
    if not remote.url.endswith(".gz") and file.bytes not in (None, remote.size):
        raise LastingError(f"{_host(remote.url)} has {remote.size:,} bytes of it, expected {file.bytes:,}")
    return remote


def _read(remote: Remote, offset: int) -> Iterator[bytes]:
    """Reads a file from an offset on; what comes may end too early."""
    with _server_errors(_host(remote.url)):
        yield from (_read_ftp if remote.url.startswith("ftp:") else _read_hub)(remote, offset)


@contextlib.contextmanager
def _login(url: str) -> Iterator[tuple[ftplib.FTP, str]]:
    """Yields a connection to an FTP server, and the file's path there."""
    parts = urlsplit(url)
    with contextlib.closing(ftplib.FTP(timeout=FTP_TIMEOUT, encoding="latin-1")) as ftp:  # whatever the greeting is in
        ftp.connect(parts.hostname or "", parts.port or 0)
        ftp.login(unquote(parts.username or ""), unquote(parts.password or ""))
        ftp.voidcmd("TYPE I")
        yield ftp, unquote(parts.path).lstrip("/")


def _ask_ftp(url: str) -> Remote:
    with _login(url) as (ftp, path):
        return Remote(url, ftp.size(path) or 0)


def _read_ftp(remote: Remote, offset: int) -> Iterator[bytes]:
    with _login(remote.url) as (ftp, path), ftp.transfercmd(f"RETR {path}", offset or None) as connection:
        # The reply at the end is not waited for: it may be lost after hours of silence, and the checksum tells more.
        yield from iter(lambda: connection.recv(CHUNK), b"")


def _ask_hub(url: str) -> Remote:
    """Asks the Hub about a file, which may be there gzipped or not."""
    owner, name, path = url.removeprefix("hf://datasets/").removesuffix(".gz").split("/", 2)
    for end in (".gz", ""):
        address = f"{constants.ENDPOINT}/datasets/{owner}/{name}/resolve/main/{path}{end}"
        with contextlib.suppress(EntryNotFoundError):
            found = get_hf_file_metadata(address)
            if found.size is None or found.commit_hash is None:
                raise _strange(address)
            return Remote(address, found.size, found.etag if found.etag and len(found.etag) == 64 else None)
    raise LastingError(f"{_host(url)} has no {path}; {SETTINGS}")


def _read_hub(remote: Remote, offset: int) -> Iterator[bytes]:
    """Reads a file of the Hub. The http_get of huggingface_hub would write the page of a proxy over what has come."""
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={offset}-"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", remote.url, headers=headers, timeout=timeout) as response:
        if response.is_error:
            raise _refusal(response)
        again = 0 if response.status_code == 206 else offset  # bytes that come although they were not asked for
        extent, length = response.headers.get("Content-Range"), response.headers.get("Content-Length")
        if extent != f"bytes {offset}-{remote.size - 1}/{remote.size}" and length != str(remote.size):
            raise _strange(remote.url)
        for piece in response.iter_raw():
            yield piece[again:]
            again = max(0, again - len(piece))


def _strange(url: str) -> ServerError:
    return ServerError(f"{_host(url)}: something else came than the file, perhaps the login page of a network")


def _host(url: str) -> str:
    """What is printed of a URL; the rest may hold a password."""
    return urlsplit(constants.ENDPOINT if url.startswith("hf:") else url).hostname or "the Hub"


# ┌─────────────────┐
# │  What is shown  │
# └─────────────────┘


def _say(text: str) -> None:
    print(text, flush=True)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _shown(label: str, pieces: Iterable[bytes], total: int | None, start: int = 0) -> Iterator[bytes]:
    """Passes bytes on and shows how far they are: by a bar, or by a line now and then where there is no terminal."""
    done, began = start, time.monotonic()
    said, look = began, "{desc}: {percentage:.0f} % of {total_fmt}, {rate_fmt}, {remaining} left"
    how = {"total": total, "initial": start, "unit": "B", "unit_scale": True}
    with tqdm.tqdm(desc=label, leave=False, disable=None, dynamic_ncols=True, **how) as bar:
        for piece in pieces:
            yield piece
            bar.update(len(piece))
            done, now = done + len(piece), time.monotonic()
            if bar.disable and now > said + LOG_SECONDS:
                _say(tqdm.tqdm.format_meter(done, elapsed=now - began, prefix=label, bar_format=look, **how))
                said = now


if __name__ == "__main__":
    sys.exit(main())
