"""What scripts/download.py fetches, over good lines and bad ones, from servers on 127.0.0.1."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import os
import random
import re
import resource
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import huggingface_hub
import huggingface_hub.constants
import pytest

import download
import hub
import so2sat
from conftest import hearing
from publishing import facts
from publishing.command import CommandError
from publishing.facts import Edition, SourceFile
from servers import Line, ftp_server, running, storage_server

REPOSITORY = "zhu-xlab/So2Sat-LCZ42"
NAME = "training.h5"
OFFICIAL = facts.EDITIONS
TRAINING = random.Random(0).randbytes(300_000) + bytes(300_000)  # a file that gzip makes smaller
FILES = {NAME: TRAINING, "validation.h5": TRAINING[:200_000], "testing.h5": TRAINING[:100_000]}
ATTEMPTS = len(download.PAUSES) + 1


@dataclasses.dataclass
class Site:
    """A server with files of an edition."""

    edition: int
    line: Line
    url: str  # of its folder
    send: Callable[[str, bytes], object]  # lets it send bytes for a file
    is_gzipped: bool = False

    def pack(self, name: str, content: bytes) -> bytes:
        """What it sends for a content."""
        return gzip.compress(content, mtime=0) if self.is_gzipped and "geo" not in name else content

    def put(self, name: str, content: bytes) -> None:
        """Puts a file there."""
        self.send(name, self.pack(name, content))

    @property
    def size(self) -> int:
        """Bytes that it sends for training.h5."""
        return len(self.pack(NAME, TRAINING))

    def publish(self, contents: Mapping[str, bytes], unpublished: str = "nothing") -> Site:
        """Puts files there and says so in the table, for some without sums."""
        entries = {}
        for name, content in contents.items():
            self.put(name, content)
            sums = (hashlib.md5(content).hexdigest(), len(content), sha256(content)) if unpublished not in name else ()
            entries[name] = SourceFile(f"{self.url}/{name}", *sums)
        list_files(self.edition, entries)
        return self


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def list_files(edition: int, entries: Mapping[str, SourceFile]) -> None:
    """Lets the table of editions say where an edition's files are."""
    facts.EDITIONS = {**facts.EDITIONS, edition: Edition("https://doi.org/none", entries)}


def altered(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: Any) -> None:
    """Attempts follow each other without a pause. And the table is as it was afterwards."""
    monkeypatch.setattr(download, "PAUSES", (0,) * (ATTEMPTS - 1))
    monkeypatch.setattr(facts, "EDITIONS", OFFICIAL)


@pytest.fixture
def ftp(tmp_path: Path) -> Iterator[Site]:
    """An FTP server with edition 2."""
    folder, line = tmp_path / "served", Line()

    def send(name: str, content: bytes) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    folder.mkdir()
    with ftp_server(folder, line) as url:
        yield Site(2, line, url, send).publish({NAME: TRAINING})


@pytest.fixture
def online(monkeypatch: Any) -> Iterator[Callable[[str], None]]:
    """Sets the Hub's address."""
    huggingface_hub.close_session()  # it keeps the proxies
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    yield lambda endpoint: monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    huggingface_hub.close_session()


@pytest.fixture
def running_hub(tmp_path: Path, online: Callable[[str], None]) -> Iterator[hub.Hub]:
    """A Hub with the repository of edition 4, and a token for it."""
    with hub.serving(tmp_path / "hub") as server:
        server.create(REPOSITORY)
        online(server.endpoint)
        yield server


@pytest.fixture
def gzipped(running_hub: Any) -> Iterator[Site]:
    """A Hub with edition 4, gzipped but for the places of the patches."""
    line, stored = Line(), dict[str, bytes]()

    def send(name: str, content: bytes) -> None:
        running_hub.commit(REPOSITORY, {f"v4/{name}" if "geo" in name else f"v4/{name}.gz": content})
        stored[sha256(content)] = content

    with storage_server(stored, line) as running_hub.storage:
        yield Site(4, line, f"hf://datasets/{REPOSITORY}/v4", send, is_gzipped=True).publish({NAME: TRAINING})


@pytest.fixture(params=["ftp", "gzipped"])
def site(request: pytest.FixtureRequest) -> Site:
    """Both kinds of server."""
    result: Site = request.getfixturevalue(request.param)
    return result


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder to download into; empty."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def run(site: Site, folder: Path, *arguments: str) -> int:
    """Runs the command line for a site's edition."""
    return download.main([str(folder), "--edition", str(site.edition), *arguments])


def visible(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by path, without those of the script."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and download.STATE_FOLDER not in path.parts
    }


def arrives(site: Site, folder: Path, *arguments: str) -> bool:
    """Whether training.h5, and nothing else, is there after a run."""
    return run(site, folder, *arguments) == 0 and visible(folder) == {NAME: TRAINING}


def error_of(capsys: Any) -> str:
    """The error that was printed, which is one line."""
    error = str(capsys.readouterr().err)
    assert re.fullmatch(r"error: .+\n", error)
    return error


# ── What is fetched ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_files_of_an_edition_arrive_as_published(site: Site, data: Path) -> None:
    site.publish(FILES)
    assert run(site, data / "new" / "folder") == 0
    assert visible(data / "new" / "folder") == FILES
    assert site.line.transfers == 3


@pytest.mark.parametrize("splits", ["train", "test validation", "test test"])
def test_only_the_splits_asked_for_are_fetched(ftp: Site, data: Path, splits: str) -> None:
    ftp.publish(FILES)
    assert run(ftp, data, *(word for split in splits.split() for word in ("--split", split))) == 0
    names = {so2sat.SOURCE_FILES[split] for split in splits.split()}
    assert visible(data) == {name: FILES[name] for name in names}
    assert ftp.line.transfers == len(names)


def test_edition_3_goes_into_folders(ftp: Site, data: Path, capsys: Any) -> None:
    site = dataclasses.replace(ftp, edition=3)
    contents = {name: FILES[name.partition("/")[2]] for name in OFFICIAL[3].files}
    site.publish(contents, unpublished="random")
    assert run(site, data, "--split", "test") == 0
    assert sorted(visible(data)) == ["block/testing.h5", "culture_10/testing.h5", "random/testing.h5"]
    assert "culture_10/training.h5" not in capsys.readouterr().out
    assert run(site, data) == 0
    assert visible(data) == contents
    assert "culture_10/training.h5" in capsys.readouterr().out


@pytest.mark.parametrize("edition", [1, 2])
def test_the_hub_has_the_files_of_other_editions_too(gzipped: Site, data: Path, edition: int) -> None:
    gzipped.publish({**FILES, "training_geo.h5": b"places"})
    names = list(FILES)[: edition + 1]
    hub_files = facts.EDITIONS[4].files
    list_files(edition, {name: dataclasses.replace(hub_files[name], url="ftp://127.0.0.1:9/") for name in names})
    assert download.main([str(data), "--edition", str(edition), "--server", "hub"]) == 0
    assert visible(data) == {name: FILES[name] for name in names}


def test_a_split_of_edition_4_brings_the_places_of_its_patches(gzipped: Site, data: Path) -> None:
    places = {"testing_geo.h5": b"places" * 9999, "training_geo.h5": b"others"}
    gzipped.publish({**FILES, **places}, unpublished="geo")
    gzipped.line.cuts = [0, 5000, 50, 10_000]  # the places are not gzipped
    assert run(gzipped, data, "--split", "test") == 0
    assert visible(data) == {"testing.h5": FILES["testing.h5"], "testing_geo.h5": b"places" * 9999}


@pytest.mark.parametrize("arguments", ["4 --server tum", "3 --server hub", "3 --split validation", "1 --split test"])
def test_what_does_not_exist_is_an_error_at_once(tmp_path: Path, capsys: Any, arguments: str) -> None:
    assert download.main([str(tmp_path / "data"), "--edition", *arguments.split()]) == 1
    edition, _, value = arguments.split()
    assert f"edition {edition} " in (error := error_of(capsys))
    assert value in error
    assert not (tmp_path / "data").exists()


def test_an_edition_that_is_unknown_or_on_an_unknown_server_is_an_error_in_one_line(data: Path) -> None:
    list_files(8, {NAME: SourceFile("gopher://127.0.0.1/training.h5")})
    for edition in (8, 9):
        with pytest.raises(CommandError, match=f"edition {edition}"):
            download.download(data, edition)


# ── Bad lines ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("attempts", [ATTEMPTS, 1], ids=["one run", "as many runs"])
def test_a_line_cut_30_times_fetches_every_byte_once(site: Site, data: Path, monkeypatch: Any, attempts: int) -> None:
    monkeypatch.setattr(download, "PAUSES", (0,) * (attempts - 1))
    chance = random.Random(attempts)
    site.line.cuts = [chance.randrange(site.size // 35) for _ in range(30)]
    assert any(run(site, data) == 0 for _ in range(1 if attempts > 1 else 31))
    assert visible(data) == {NAME: TRAINING}
    assert site.line.transfers == 31
    assert site.line.sent == site.size


def test_a_line_that_goes_silent_is_given_up_and_opened_anew(site: Site, data: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(download, "FTP_TIMEOUT", 0.3)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    site.line.cuts, site.line.ending = [site.size // 2], "stall"
    assert arrives(site, data)
    assert site.line.sent == site.size


def test_a_control_connection_that_is_dead_at_the_end_does_no_harm(ftp: Site, data: Path) -> None:
    ftp.line.cuts, ftp.line.ending = [len(TRAINING)], "vanish"
    assert arrives(ftp, data)
    assert ftp.line.transfers == 1


def test_attempts_without_a_new_byte_end_the_run_and_others_do_not(site: Site, data: Path, capsys: Any) -> None:
    standstill = [0] * (ATTEMPTS - 2)
    site.line.cuts = [100_000, *standstill, 1, *standstill, 1, *standstill, 0]
    assert run(site, data) == 1
    assert NAME in error_of(capsys)
    assert site.line.cuts == []
    assert arrives(site, data)
    assert site.line.sent == site.size


def test_a_hub_that_sends_whole_files_only_is_good_enough(gzipped: Site, data: Path) -> None:
    gzipped.line.ranges, gzipped.line.cuts = False, [200_000, 50_000]
    assert arrives(gzipped, data)
    assert gzipped.line.transfers == 3


# The last one is what the storage behind the Hub says of an address that is too old.
PAGES = ["200 OK", "200 OK\r\nContent-Length: 21", "511 Log in\r\nContent-Length: 21", "403 Forbidden"]


@pytest.mark.parametrize("head", PAGES)
@pytest.mark.parametrize("come", [0, 100_000])
def test_a_login_page_never_becomes_nor_replaces_a_part(gzipped: Site, data: Path, head: str, come: int) -> None:
    (data / f"{NAME}.gz.part").write_bytes(gzipped.pack(NAME, TRAINING)[:come])
    page = f"HTTP/1.1 {head}\r\nContent-Type: text/html\r\n\r\n<html>Grüße...</html>"
    gzipped.line.pages = [page.encode("latin-1")] * 3
    assert arrives(gzipped, data)
    assert gzipped.line.sent == gzipped.size - come


def test_a_login_page_is_no_answer_of_the_hub(gzipped: Site, running_hub: Any, data: Path) -> None:
    running_hub.fail("resolve", "<html>Welcome!</html>", times=3)
    assert arrives(gzipped, data)


def test_a_file_that_changes_in_the_middle_arrives_with_the_next_run(site: Site, data: Path) -> None:
    before = random.Random(1).randbytes(300_000) + bytes(300_000)
    site.put(NAME, before)
    site.line.cuts = [150_000, *[0] * ATTEMPTS]
    assert run(site, data) == 1
    site.put(NAME, TRAINING)
    site.line.cuts = []
    assert any(run(site, data) == 0 for _ in range(2))
    assert visible(data)[NAME] == TRAINING


# ── What servers answer ──────────────────────────────────────────────────────────────────────────────────────────────


def test_requests_to_the_hub_are_huggingface_hubs_and_have_the_token(
    gzipped: Site, running_hub: Any, data: Path
) -> None:
    assert arrives(gzipped, data)
    for request in running_hub.asked("resolve"):
        assert "hf_hub/" in request.headers["User-Agent"]
        assert request.headers["Authorization"] == "Bearer hf_read"  # which the storage must not get


def test_what_we_need_of_huggingface_hub_is_there(gzipped: Site, running_hub: Any) -> None:
    """It tells a file's size and SHA-256 without fetching it; in a session, a rest that is asked for comes as it is."""
    url = f"{running_hub.endpoint}/datasets/{REPOSITORY}/resolve/main/v4/{NAME}.gz"
    packed = gzipped.pack(NAME, TRAINING)
    found = huggingface_hub.get_hf_file_metadata(url)
    assert (found.size, found.etag) == (len(packed), sha256(packed))
    assert found.commit_hash == running_hub.repository(REPOSITORY).at("main").sha
    with huggingface_hub.get_session().stream("GET", url, headers={"Range": "bytes=7-"}, timeout=9) as response:
        assert (response.status_code, response.headers["Content-Length"]) == (206, str(len(packed) - 7))
        assert b"".join(response.iter_raw()) == packed[7:]
    with pytest.raises(huggingface_hub.errors.EntryNotFoundError):
        huggingface_hub.get_hf_file_metadata(f"{url}.gz")


@pytest.mark.parametrize("header", ["Retry-After: 1", 'RateLimit: "resolvers";r=0;t=1'])
def test_a_hub_that_is_busy_is_asked_again_when_it_says(gzipped: Site, data: Path, header: str) -> None:
    gzipped.line.pages = [f"HTTP/1.1 429 Too Many Requests\r\n{header}\r\nContent-Length: 0\r\n\r\n".encode()]
    before = time.monotonic()
    assert arrives(gzipped, data)
    assert time.monotonic() > before + 1


@pytest.mark.parametrize("status", ["408", "429", "500", "503", "cut", "lost"])
def test_a_hub_that_fails_is_asked_again(gzipped: Site, running_hub: Any, data: Path, status: str) -> None:
    running_hub.fail("resolve", status, times=2)
    running_hub.fail("resolve", status, times=2, after=1)
    assert arrives(gzipped, data)


@pytest.mark.parametrize("reply", ["421 Too many connections.", "530 Sorry, the maximum number of clients is there."])
def test_an_ftp_server_that_is_busy_is_asked_again(ftp: Site, data: Path, reply: str) -> None:
    ftp.line.replies = {"PASS": [reply] * 3}
    assert arrives(ftp, data)


def test_a_server_that_can_not_be_reached_is_told_with_the_other_server(gzipped: Site, data: Path, capsys: Any) -> None:
    list_files(2, {NAME: dataclasses.replace(facts.EDITIONS[4].files[NAME], url="ftp://127.0.0.1:9/training.h5")})
    assert download.main([str(data)]) == 1
    assert NAME in (error := error_of(capsys))
    assert "127.0.0.1" in error
    assert "--server hub" in error


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_repetition_can_not_mend_is_an_error_at_once(
    gzipped: Site, running_hub: Any, data: Path, capsys: Any, status: int, after: int
) -> None:
    running_hub.fail("resolve", str(status), after=after)
    assert run(gzipped, data) == 1
    assert f" {status} " in (error := error_of(capsys))
    assert NAME in error
    assert gzipped.line.transfers == 0


@pytest.fixture
def ask(data: Path, online: Callable[[str], None]) -> Callable[[str], int]:
    """Asks a Hub at an address for an official file, and returns the exit status."""

    def ask_at(endpoint: str) -> int:
        online(endpoint)
        return download.main([str(data), "--server", "hub", "--split", "train", "--debug"])

    return ask_at


@pytest.fixture
def long_pauses(monkeypatch: Any) -> None:
    """Whoever makes a second attempt waits for it longer than a test may take."""
    monkeypatch.setattr(download, "PAUSES", (999,))


@pytest.mark.usefixtures("long_pauses")
@pytest.mark.parametrize(
    ("endpoint", "proxy", "named"),
    [
        ("hub.example", "", "HF_ENDPOINT"),
        ("file:///etc", "", "HF_ENDPOINT"),
        ("http://", "", "HF_ENDPOINT"),
        ("http://127.0.0.1:9", "socks5://127.0.0.1:9", "pip install 'httpx2[socks]'"),
    ],
)
def test_a_setting_that_can_not_work_is_an_error_at_once_that_names_it(
    ask: Any, monkeypatch: Any, capsys: Any, endpoint: str, proxy: str, named: str
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)  # as if it were not installed
    monkeypatch.setenv("ALL_PROXY", proxy)
    assert ask(endpoint) == 1
    assert named in capsys.readouterr().err


@pytest.mark.usefixtures("long_pauses")
@pytest.mark.parametrize("token", ["hf_secret", "hf_ä_secret", "hf_\x0b_secret"])
def test_a_bad_token_is_an_error_at_once_and_not_shown(
    ask: Any, running_hub: Any, monkeypatch: Any, capsys: Any, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    assert ask(running_hub.endpoint.replace("//", "//me:secret@")) == 1
    output = capsys.readouterr()
    assert "HF_TOKEN" in output.err
    assert "secret" not in output.out + output.err


@pytest.mark.usefixtures("long_pauses")
def test_a_bad_certificate_is_an_error_at_once_that_says_where_to_look(ask: Any, tmp_path: Path, capsys: Any) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    command = ["openssl", "req", "-x509", *kind, "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with running(server):
        assert ask(f"https://localhost:{server.server_port}") == 1
    error = capsys.readouterr().err
    assert [word for word in ("clock", "prox", "SSL_CERT_FILE") if word not in error] == []


@pytest.mark.parametrize("reply", ["213 5", f"213 {len(TRAINING) - 1}", "200 What?", "550 No such file."])
def test_a_file_without_the_published_size_is_not_fetched(ftp: Site, data: Path, capsys: Any, reply: str) -> None:
    ftp.line.replies = {"SIZE": [reply]}
    assert run(ftp, data) == 1
    assert NAME in error_of(capsys)
    assert ftp.line.transfers == 0


# ── Wrong bytes ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sums", [{}, {"sha256": None}, {"sha256": None, "bytes": None}])
def test_altered_bytes_are_put_aside_and_the_next_run_starts_anew(ftp: Site, data: Path, sums: dict[str, Any]) -> None:
    wrong = altered(TRAINING, 123_456)
    list_files(2, {NAME: dataclasses.replace(facts.EDITIONS[2].files[NAME], **sums)})
    ftp.put(NAME, wrong)
    assert run(ftp, data) == 1
    assert visible(data) == {f"{NAME}.damaged": wrong}
    ftp.put(NAME, TRAINING)
    assert run(ftp, data) == 0
    assert visible(data) == {NAME: TRAINING, f"{NAME}.damaged": wrong}
    assert ftp.line.sent == 2 * len(TRAINING)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda packed: packed[:-100],
        lambda packed: altered(packed, 50_000),
        lambda packed: gzip.compress(altered(TRAINING, 9)),
        lambda packed: gzip.compress(TRAINING[:-1]),
        lambda packed: TRAINING,
    ],
    ids=["cut", "altered", "other content", "too short", "not gzipped"],
)
def test_a_gzip_file_must_be_whole_and_hold_what_is_published(
    gzipped: Site, data: Path, capsys: Any, spoil: Callable[[bytes], bytes]
) -> None:
    gzipped.send(NAME, spoil(gzip.compress(TRAINING, mtime=0)))
    assert run(gzipped, data) == 1
    assert str(data / NAME) in error_of(capsys)
    assert list(visible(data)) == [f"{NAME}.gz.damaged"]
    gzipped.put(NAME, TRAINING)
    assert run(gzipped, data) == 0
    assert visible(data)[NAME] == TRAINING


@pytest.mark.parametrize("tail", [bytes(9999), b"garbage", gzip.compress(b"another file")])
def test_what_is_behind_the_published_size_of_a_gzip_file_is_no_damage(gzipped: Site, data: Path, tail: bytes) -> None:
    gzipped.send(NAME, gzip.compress(TRAINING, mtime=0) + tail)
    assert arrives(gzipped, data)


def test_a_file_without_published_sums_must_have_the_sum_that_the_hub_tells(gzipped: Site, data: Path) -> None:
    gzipped.publish({"training_geo.h5": b"places"}, "geo")
    gzipped.line.pages = [b"HTTP/1.1 206 Partial Content\r\nContent-Length: 6\r\n\r\nplaceS"]
    assert run(gzipped, data) == 1
    assert visible(data) == {"training_geo.h5.damaged": b"placeS"}
    assert run(gzipped, data) == 0


# ── The folder ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_verified_is_not_fetched_nor_asked_for_nor_read_again(site: Site, data: Path) -> None:
    (data / f"{NAME}.gz.part").write_bytes(b"left by a run that was killed just before it removed it")
    (data / NAME).write_bytes(TRAINING)  # it may have come in another way
    assert arrives(site, data)
    state = (data / NAME).stat()
    (data / NAME).write_bytes(altered(TRAINING, 77_777))
    os.utime(data / NAME, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert run(site, data) == 0  # as nobody looked
    os.utime(data / NAME)
    assert run(site, data) == 1
    assert site.line.transfers == 0


OTHERS = [b"", b"something else", TRAINING[:-1], TRAINING + b"x", altered(TRAINING, 9)]


@pytest.mark.parametrize("make", [*OTHERS, os.mkdir, lambda path: path.symlink_to("not_mounted.h5")])
def test_something_else_of_that_name_is_left_as_it_is(ftp: Site, data: Path, capsys: Any, make: Any) -> None:
    (data / NAME).write_bytes(make) if isinstance(make, bytes) else make(data / NAME)
    before = os.lstat(data / NAME)
    assert run(ftp, data) == 1
    assert str(data / NAME) in error_of(capsys)
    after = os.lstat(data / NAME)
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert ftp.line.transfers == 0


@pytest.mark.parametrize(("come", "sent"), [(400_000, 200_000), (600_000, 0)])
def test_a_part_that_another_program_fetched_is_gone_on_with(ftp: Site, data: Path, come: int, sent: int) -> None:
    (data / f"{NAME}.part").write_bytes(TRAINING[:come])
    assert arrives(ftp, data)
    assert ftp.line.sent == sent


def test_a_part_that_is_too_long_is_put_aside(ftp: Site, data: Path) -> None:
    (data / f"{NAME}.part").write_bytes(TRAINING + b"x")
    assert run(ftp, data) == 1
    assert visible(data) == {f"{NAME}.damaged": TRAINING + b"x"}
    assert run(ftp, data) == 0


def test_too_little_room_is_noticed_before_anything_is_fetched(
    site: Site, data: Path, monkeypatch: Any, capsys: Any
) -> None:
    usage = namedtuple("usage", "total used free")
    site.publish(FILES)
    (data / f"{NAME}.part").write_bytes(TRAINING[:1000])
    needed = sum(map(len, FILES.values())) - 1000 + (site.size if site.is_gzipped else 0)
    for free, status in ((needed - 1, 1), (needed, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(10**9, 10**9, free))
        assert run(site, data) == status
        assert site.line.transfers == (0 if status else 3)
    assert str(data) in error_of(capsys)


def test_a_disk_that_gets_full_is_told_with_the_file_and_what_has_come_is_kept(
    site: Site, data: Path, capsys: Any
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        assert run(site, data) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"error: {data / NAME}: " in error_of(capsys)
    (part, *_) = visible(data).values()
    assert len(part) > 100_000
    assert site.pack(NAME, TRAINING).startswith(part)
    assert arrives(site, data)


def test_two_downloads_into_one_folder_don_t_mix(ftp: Site, data: Path, capsys: Any) -> None:
    (data / download.STATE_FOLDER).mkdir()
    with filelock.FileLock(data / download.STATE_FOLDER / "lock"):
        assert run(ftp, data) == 1
    assert str(data) in error_of(capsys)
    assert ftp.line.transfers == 0


# Runs that end early

DRIVER = """
import sys
sys.path[:0] = [{scripts!r}, {root!r}]
from publishing import facts
from publishing.facts import Edition, SourceFile
facts.EDITIONS = {table!r}
import download
sys.exit(download.main())
"""


@pytest.mark.parametrize(
    ("kind", "number", "status"), [("gzipped", signal.SIGKILL, -9), ("ftp", signal.SIGINT, 130)], ids=["kill", "ctrl-c"]
)
def test_a_run_that_was_ended_is_gone_on_with(
    request: pytest.FixtureRequest, tmp_path: Path, data: Path, kind: str, number: signal.Signals, status: int
) -> None:
    site: Site = request.getfixturevalue(kind)
    size, script = site.size, tmp_path / "driver.py"
    folders = {"scripts": str(Path(download.__file__).parent), "root": str(Path(so2sat.__file__).parent)}
    script.write_text(DRIVER.format(table=facts.EDITIONS, **folders), encoding="utf-8")
    site.line.cuts, site.line.ending = [size // 2], "stall"
    environment = {**os.environ, "HF_ENDPOINT": huggingface_hub.constants.ENDPOINT, "HF_HUB_OFFLINE": ""}
    command = [sys.executable, str(script), str(data), "--edition", str(site.edition)]
    with (tmp_path / "output").open("w+b") as output:
        process = hearing(command, env=environment, stdout=output, stderr=output)
        while sum(part.stat().st_size for part in data.glob("*.part")) < size // 3:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(20) == status
    (kept,) = map(len, visible(data).values())
    if number == signal.SIGINT:
        assert (tmp_path / "output").read_text(encoding="utf-8").endswith("\ninterrupted\n")
    site.line.sent = 0
    assert arrives(site, data)
    assert site.line.sent == size - kept


# ── What users see ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_terminal_progress_is_told_in_lines(site: Site, data: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(download, "LOG_SECONDS", 0.0)
    assert run(site, data) == 0
    output = capsys.readouterr()
    assert output.err == ""
    steps = ["", ": unpacking", ": verifying"] if site.is_gzipped else ["", ": verifying"]
    for step in steps:
        assert re.search(rf"^training\.h5{step}: [1-9]\d* % of \d+k, ", output.out, re.MULTILINE)


def test_help_has_examples(capsys: Any) -> None:
    with pytest.raises(SystemExit, match="0"):
        download.main(["--help"])
    assert "python scripts/download.py data " in capsys.readouterr().out
