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
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

import download
import hub
import so2sat
from conftest import hearing
from publishing import facts, files
from publishing.facts import Edition, SourceFile
from servers import Line, ftp_server, serving

REPOSITORY = "zhu-xlab/So2Sat-LCZ42"
NAME = "training.h5"
OFFICIAL = facts.EDITIONS
TRAINING = random.Random(0).randbytes(300_000) + bytes(300_000)  # a file that gzip makes smaller
PACKED = gzip.compress(TRAINING, mtime=0)
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

    @property
    def size(self) -> int:
        """Bytes that it sends for training.h5."""
        return len(self.pack(NAME, TRAINING))

    def put(self, name: str, content: bytes) -> None:
        self.send(name, self.pack(name, content))

    def publish(self, contents: Mapping[str, bytes]) -> Site:
        """Puts files there and says so in the table, with the sums that are published."""
        entries = {}
        for name, content in contents.items():
            self.put(name, content)
            sums = (hashlib.md5(content).hexdigest(), len(content), hub.sha256(content))
            entries[name] = SourceFile(f"{self.url}/{name}", *(() if "random" in name or "geo" in name else sums))
        list_files(self.edition, entries)
        return self


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
def running_hub(tmp_path: Path, monkeypatch: Any) -> Iterator[hub.Hub]:
    """A Hub with the repository of edition 4, and a token for it."""
    huggingface_hub.close_session()  # it keeps the proxies
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub.serving(tmp_path / "hub") as server:
        server.create(REPOSITORY)
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def gzipped(running_hub: hub.Hub, tmp_path: Path) -> Iterator[Site]:
    """A Hub with edition 4, gzipped but for the places of the patches."""
    line, stored = Line(), tmp_path / "storage" / REPOSITORY
    stored.mkdir(parents=True)

    def send(name: str, content: bytes) -> None:
        running_hub.commit(REPOSITORY, {f"v4/{name}" if "geo" in name else f"v4/{name}.gz": content})
        (stored / hub.sha256(content)).write_bytes(content)

    with serving(tmp_path, line) as storage:
        running_hub.storage = storage.url
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


def run(site: Site, folder: Path) -> int:
    """Runs the command line for a site's edition."""
    return download.main([str(folder), "--edition", str(site.edition)])


def visible(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by path, without those of the script."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and download.STATE_FOLDER not in path.parts
    }


def arrives(site: Site, folder: Path) -> bool:
    """Whether training.h5, and nothing else, is there after a run."""
    return run(site, folder) == 0 and visible(folder) == {NAME: TRAINING}


def error_of(capsys: Any) -> str:
    """The error that was printed, which is one line."""
    error = str(capsys.readouterr().err)
    assert re.fullmatch(r"error: .+\n", error)
    return error


# ── What is fetched ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("2", {*FILES}),
        ("2 --split test --split validation", {"testing.h5", "validation.h5"}),
        ("2 --server hub", {*FILES}),
        ("1 --server hub", {"training.h5", "validation.h5"}),
        ("3", {*OFFICIAL[3].files}),
        ("3 --split test", {"random/testing.h5", "block/testing.h5", "culture_10/testing.h5"}),
        ("4", {*OFFICIAL[4].files}),
        ("4 --split test", {"testing.h5", "testing_geo.h5"}),
    ],
)
def test_the_files_that_are_asked_for_arrive_as_published(
    ftp: Site, gzipped: Site, data: Path, arguments: str, names: set[str]
) -> None:
    contents = {name: FILES.get(Path(name).name, b"places") for number in (3, 4) for name in OFFICIAL[number].files}
    for number, edition in OFFICIAL.items():
        site = dataclasses.replace(gzipped if number == 4 else ftp, edition=number)
        site.publish({name: contents[name] for name in edition.files})
    assert download.main([str(data / "new" / "folder"), "--edition", *arguments.split()]) == 0
    assert visible(data / "new" / "folder") == {name: contents[name] for name in names}


@pytest.mark.parametrize("arguments", ["4 --server tum", "3 --server hub", "3 --split validation", "1 --split test"])
def test_what_does_not_exist_is_an_error_at_once(tmp_path: Path, capsys: Any, arguments: str) -> None:
    assert download.main([str(tmp_path / "data"), "--edition", *arguments.split()]) == 1
    edition, _, value = arguments.split()
    assert f"edition {edition} " in (error := error_of(capsys))
    assert value in error
    assert not (tmp_path / "data").exists()


# ── Bad lines ─────────────────────────────────────────────────────────────────────────────────────────────────────────

LINES: dict[str, Callable[[int], tuple[list[int], str]]] = {  # of a size: where it breaks, and how
    "cut 30 times": lambda size: ([random.Random(0).randrange(size // 35) for _ in range(30)], "close"),
    "silent": lambda size: ([size // 2], "stall"),
    "control connection dead at the end": lambda size: ([size], "vanish"),
}


@pytest.mark.parametrize("line", LINES)
def test_over_a_bad_line_every_byte_comes_once(site: Site, data: Path, monkeypatch: Any, line: str) -> None:
    monkeypatch.setattr(download, "FTP_TIMEOUT", 0.3)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    site.line.cuts, site.line.ending = LINES[line](site.size)
    assert arrives(site, data)
    assert site.line.cuts == []
    assert site.line.sent == site.size


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
def test_a_login_page_never_becomes_nor_replaces_a_part(gzipped: Site, data: Path, head: str) -> None:
    (data / f"{NAME}.gz.part").write_bytes(PACKED[:100_000])
    page = f"HTTP/1.1 {head}\r\nContent-Type: text/html\r\n\r\n<html>Grüße...</html>"
    gzipped.line.pages = [page.encode("latin-1")] * 3
    assert arrives(gzipped, data)
    assert gzipped.line.sent == gzipped.size - 100_000


def test_a_file_that_changes_in_the_middle_arrives_with_the_next_run(site: Site, data: Path) -> None:
    site.put(NAME, random.Random(1).randbytes(300_000) + bytes(300_000))
    site.line.cuts = [150_000, *[0] * ATTEMPTS]
    assert run(site, data) == 1
    site.put(NAME, TRAINING)
    site.line.cuts = []
    assert any(run(site, data) == 0 for _ in range(2))
    assert visible(data)[NAME] == TRAINING


# ── What servers answer ───────────────────────────────────────────────────────────────────────────────────────────────


def test_requests_to_the_hub_are_huggingface_hubs_and_have_the_token(
    gzipped: Site, running_hub: hub.Hub, data: Path
) -> None:
    assert arrives(gzipped, data)
    for request in running_hub.asked("resolve"):
        assert "hf_hub/" in request.headers["User-Agent"]
        assert request.headers["Authorization"] == "Bearer hf_read"  # which the storage must not get


@pytest.mark.parametrize("header", ["Retry-After: 1", 'RateLimit: "resolvers";r=0;t=1'])
def test_a_hub_that_is_busy_is_asked_again_when_it_says(gzipped: Site, data: Path, header: str) -> None:
    gzipped.line.pages = [f"HTTP/1.1 429 Too Many Requests\r\n{header}\r\nContent-Length: 0\r\n\r\n".encode()]
    before = time.monotonic()
    assert arrives(gzipped, data)
    assert time.monotonic() > before + 1


@pytest.mark.parametrize("fault", ["429", "500", "cut", "lost", "<html>Please log in</html>"])
def test_a_hub_that_fails_is_asked_again(gzipped: Site, running_hub: hub.Hub, data: Path, fault: str) -> None:
    running_hub.fail("resolve", fault, times=2)
    running_hub.fail("resolve", fault, times=2, after=1)
    assert arrives(gzipped, data)


@pytest.mark.parametrize("reply", ["421 Too many connections.", "530 Sorry, the maximum number of clients is there."])
def test_an_ftp_server_that_is_busy_is_asked_again(ftp: Site, data: Path, reply: str) -> None:
    ftp.line.replies = {"PASS": [reply] * 3}
    assert arrives(ftp, data)


def test_a_server_that_can_not_be_reached_is_told_with_the_other_server(gzipped: Site, data: Path, capsys: Any) -> None:
    list_files(2, {NAME: dataclasses.replace(facts.EDITIONS[4].files[NAME], url="ftp://127.0.0.1:9/training.h5")})
    assert download.main([str(data)]) == 1
    assert re.search(rf"{NAME}: 127\.0\.0\.1: .*--server hub", error_of(capsys))


@pytest.mark.parametrize(("status", "after"), [(401, 0), (404, 0), (403, 1)])
def test_what_repetition_can_not_mend_is_an_error_at_once(
    gzipped: Site, running_hub: hub.Hub, data: Path, capsys: Any, status: int, after: int
) -> None:
    running_hub.fail("resolve", str(status), after=after)
    assert run(gzipped, data) == 1
    assert re.search(rf"{NAME}: .* {status} ", error_of(capsys))
    assert gzipped.line.transfers == 0


@pytest.mark.parametrize("reply", ["213 5", "550 No such file."])
def test_a_file_without_the_published_size_is_not_fetched(ftp: Site, data: Path, capsys: Any, reply: str) -> None:
    ftp.line.replies = {"SIZE": [reply]}
    assert run(ftp, data) == 1
    assert NAME in error_of(capsys)
    assert ftp.line.transfers == 0


@pytest.fixture
def told(data: Path, running_hub: hub.Hub, monkeypatch: Any, capsys: Any) -> Callable[[str], str]:
    """Asks a Hub at an address for a file, where a second attempt would take longer than a test may; the output."""

    def ask(endpoint: str) -> str:
        monkeypatch.setattr(download, "PAUSES", (999,))
        monkeypatch.setattr(constants, "ENDPOINT", endpoint.format(port=running_hub.server_port))
        assert download.main([str(data), "--server", "hub", "--split", "train", "--debug"]) == 1
        return "".join(capsys.readouterr())

    return ask


SETTINGS = [
    ("hub.example", {}, "HF_ENDPOINT"),
    ("file:///etc", {}, "HF_ENDPOINT"),
    ("http://", {}, "HF_ENDPOINT"),
    ("http://127.0.0.1:9", {"ALL_PROXY": "socks5://127.0.0.1:9"}, "httpx2[socks]"),
    ("http://me:secret@127.0.0.1:{port}", {"HF_TOKEN": "hf_secret"}, "HF_TOKEN"),
    ("http://me:secret@127.0.0.1:{port}", {"HF_TOKEN": "hf_ä_secret"}, "HF_TOKEN"),
    ("http://me:secret@127.0.0.1:{port}", {"HF_TOKEN": "hf_\x0b_secret"}, "HF_TOKEN"),
]


@pytest.mark.parametrize(("endpoint", "setting", "named"), SETTINGS)
def test_a_setting_that_can_not_work_is_an_error_at_once_that_names_it_and_shows_no_secret(
    told: Any, monkeypatch: Any, endpoint: str, setting: dict[str, str], named: str
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)  # as if it were not installed
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    output = told(endpoint)
    assert named in output
    assert "secret" not in output


def test_a_bad_certificate_is_an_error_at_once_that_says_where_to_look(told: Any, tmp_path: Path) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    command = ["openssl", "req", "-x509", *kind, "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert "SSL_CERT_FILE" in told(f"https://localhost:{server.server_port}")


# ── Wrong bytes ───────────────────────────────────────────────────────────────────────────────────────────────────────


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


SPOILT = {
    "cut": PACKED[:-100],
    "altered": altered(PACKED, 50_000),
    "other content": gzip.compress(altered(TRAINING, 9)),
    "too short": gzip.compress(TRAINING[:-1]),
    "not gzipped": TRAINING,
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_gzip_file_must_be_whole_and_hold_what_is_published(
    gzipped: Site, data: Path, capsys: Any, spoilt: str
) -> None:
    gzipped.send(NAME, SPOILT[spoilt])
    assert run(gzipped, data) == 1
    assert str(data / NAME) in error_of(capsys)
    assert visible(data) == {f"{NAME}.gz.damaged": SPOILT[spoilt]}


@pytest.mark.parametrize("tail", [bytes(9999), gzip.compress(b"another file")], ids=["zeros", "another file"])
def test_what_is_behind_the_published_size_of_a_gzip_file_is_no_damage(gzipped: Site, data: Path, tail: bytes) -> None:
    gzipped.send(NAME, PACKED + tail)
    assert arrives(gzipped, data)


def test_a_file_without_published_sums_must_have_the_sum_that_the_hub_tells(gzipped: Site, data: Path) -> None:
    gzipped.publish({"training_geo.h5": b"places"})
    gzipped.line.pages = [b"HTTP/1.1 206 Partial Content\r\nContent-Length: 6\r\n\r\nplaceS"]
    assert run(gzipped, data) == 1
    assert visible(data) == {"training_geo.h5.damaged": b"placeS"}
    assert run(gzipped, data) == 0


# ── The folder ────────────────────────────────────────────────────────────────────────────────────────────────────────


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


@pytest.mark.parametrize(
    "make",
    [
        Path.touch,
        Path.mkdir,
        lambda path: path.write_bytes(altered(TRAINING, 9)),
        lambda path: path.symlink_to("not_mounted.h5"),
    ],
    ids=["empty", "folder", "altered", "link to nothing"],
)
def test_something_else_of_that_name_is_left_as_it_is(ftp: Site, data: Path, capsys: Any, make: Any) -> None:
    make(data / NAME)
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
    with files.locked(data, download.STATE_FOLDER):
        assert run(ftp, data) == 1
    assert str(data) in error_of(capsys)
    assert ftp.line.transfers == 0


# ── Runs that end early ───────────────────────────────────────────────────────────────────────────────────────────────

DRIVER = """
from publishing import facts
from publishing.facts import Edition, SourceFile
facts.EDITIONS = {table!r}
import download
raise SystemExit(download.main())
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)], ids=["kill", "ctrl-c"])
def test_a_run_that_was_ended_is_gone_on_with(site: Site, data: Path, number: signal.Signals, status: int) -> None:
    site.line.cuts, site.line.ending = [site.size // 2], "stall"
    paths = os.pathsep.join(map(str, (Path(download.__file__).parent, Path(so2sat.__file__).parent)))
    environment = {**os.environ, "HF_ENDPOINT": constants.ENDPOINT, "HF_HUB_OFFLINE": "", "PYTHONPATH": paths}
    code = DRIVER.format(table=facts.EDITIONS)
    command = [sys.executable, "-c", code, str(data), "--edition", str(site.edition)]
    process = hearing(command, env=environment, stderr=subprocess.PIPE)
    while sum(part.stat().st_size for part in data.glob("*.part")) < site.size // 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    error = process.communicate(timeout=20)[1]
    assert (process.returncode, error) == (status, b"interrupted\n" if status > 0 else b"")
    (kept,) = map(len, visible(data).values())
    site.line.sent = 0
    assert arrives(site, data)
    assert site.line.sent == site.size - kept


def test_without_a_terminal_progress_is_told_in_lines(site: Site, data: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(download, "LOG_SECONDS", 0.0)
    assert run(site, data) == 0
    output = capsys.readouterr()
    assert output.err == ""
    for step in ["", ": verifying", *([": unpacking"] if site.is_gzipped else [])]:
        assert re.search(rf"^training\.h5{step}: [1-9]\d* % of \d+k, ", output.out, re.MULTILINE)
