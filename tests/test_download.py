"""What scripts/download.py fetches, over good lines and bad ones, from servers on 127.0.0.1."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import ftplib
import gzip
import hashlib
import http.server
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import h5py
import huggingface_hub.constants
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import DTPHandler, FTPHandler
from pyftpdlib.ioloop import IOLoop
from pyftpdlib.servers import FTPServer

import download
import hub
import so2sat
from conftest import hearing, random_arrays, write_source
from publishing import facts
from publishing.facts import Edition, SourceFile

REPOSITORY = "zhu-xlab/So2Sat-LCZ42"
NAME = "training.h5"


# Servers


@dataclasses.dataclass
class Line:
    """What happens to the transfers of files, and what has happened."""

    cuts: list[int] = dataclasses.field(default_factory=list)  # bytes after which the next transfers break off
    ending: str = "close"  # how: "close" the connection, "stall", or "vanish": FTP's control connection closes too
    ranges: str = "yes"  # whether a transfer can start in the middle: "yes", "no", or "ignored"
    replies: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # instead of obeying an FTP command
    sent: int = 0  # bytes of files
    transfers: int = 0
    commands: list[str] = dataclasses.field(default_factory=list)  # of FTP
    over: threading.Event = dataclasses.field(default_factory=threading.Event)

    def begin(self) -> float:
        """Bytes that a new transfer may send."""
        self.transfers += 1
        return self.cuts.pop(0) if self.cuts else float("inf")


@contextlib.contextmanager
def ftp_server(folder: Path, line: Line) -> Iterator[str]:
    """Serves a folder over FTP and yields its URL, with an account."""

    class Data(DTPHandler):  # type: ignore[misc]
        left: float | None = None

        def send(self, data: bytes) -> int:
            if self.left is None:
                self.left = line.begin()
            sent = int(super().send(data[: int(min(self.left, len(data)))]))
            self.left -= sent
            line.sent += sent
            if self.left == 0 and line.ending == "close":
                self.handle_close()
            if self.left == 0 and line.ending == "vanish":
                self.close()
                self.cmd_channel.close()
            return sent

    class Control(FTPHandler):  # type: ignore[misc]
        banner = "Universitätsbibliothek"
        encoding = "latin-1"
        use_sendfile = False
        dtp_handler = Data

        def process_command(self, cmd: str, *args: Any, **options: Any) -> None:
            line.commands.append(cmd)
            if replies := line.replies.get(cmd):
                self.respond(replies.pop(0))
            elif not (cmd == "REST" and line.ranges == "ignored" and self.respond("350 Of course.") is None):
                super().process_command(cmd, *args, **options)

    Control.authorizer = DummyAuthorizer()
    Control.authorizer.add_user("m0", "public-secret", str(folder))
    server = FTPServer(("127.0.0.1", 0), Control, ioloop=IOLoop())

    def serve() -> None:
        while not line.over.is_set():
            server.ioloop.loop(0.01, False)
        server.close_all()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"ftp://m0:public-secret@127.0.0.1:{server.address[1]}"
    line.over.set()
    thread.join()


@contextlib.contextmanager
def storage_server(running: hub.Hub, line: Line) -> Iterator[str]:
    """Serves what the Hub has in its large file storage, in its place."""

    class Storage(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert "Authorization" not in self.headers, "the token is for the Hub alone"
            content = running.repository(REPOSITORY).contents[self.path.rpartition("/")[2]]
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            first = int(wanted[1]) if wanted and line.ranges == "yes" else 0
            self.send_response(206 if first else 200)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            body = content[first:][: int(min(line.begin(), len(content)))]
            line.sent += len(body)
            with contextlib.suppress(OSError):
                self.wfile.write(body)
            if first + len(body) < len(content) and line.ending == "stall":
                line.over.wait()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Storage) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        line.over.set()
        server.shutdown()
        thread.join()


@dataclasses.dataclass
class Site:
    """A server with files of an edition."""

    edition: int
    line: Line
    put: Callable[[str, bytes], int]  # puts a file there; returns how many bytes the server sends for it
    url: Callable[[str], str]

    def publish(self, *unpublished: str, **files: bytes) -> None:
        """Puts files there and says so in the table: `training` for training.h5. Some come without checksum."""
        entries = dict(facts.EDITIONS[self.edition].files)
        for stem, content in files.items():
            name = f"{stem}.h5"
            self.put(name, content)
            entry = SourceFile(self.url(name))
            if stem not in unpublished:
                sha256 = hashlib.sha256(content).hexdigest()
                entry = SourceFile(self.url(name), hashlib.md5(content).hexdigest(), len(content), sha256)
            entries[name] = entry
        set_table({**facts.EDITIONS, self.edition: Edition("https://doi.org/none", entries)})


def set_table(editions: Mapping[int, Edition]) -> None:
    facts.EDITIONS = editions


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited between attempts; without waiting. And an empty table."""
    result: list[float] = []
    monkeypatch.setattr(time, "sleep", result.append)
    monkeypatch.setattr(facts, "EDITIONS", {number: Edition("https://doi.org/none", {}) for number in (1, 2, 3, 4)})
    return result


@pytest.fixture
def ftp(tmp_path: Path) -> Iterator[Site]:
    """An FTP server with edition 2."""
    folder, line = tmp_path / "served", Line()
    folder.mkdir()
    with ftp_server(folder, line) as url:

        def put(name: str, content: bytes) -> int:
            (folder / name).parent.mkdir(exist_ok=True)
            return (folder / name).write_bytes(content)

        yield Site(2, line, put, lambda name: f"{url}/{name}")


@pytest.fixture
def running_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub.Hub]:
    """A Hub with the repository of edition 4, and a token for it."""
    with hub.serving(tmp_path / "hub") as running:
        running.create(REPOSITORY)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_read")
        yield running


@pytest.fixture
def gzipped(running_hub: hub.Hub) -> Iterator[Site]:
    """A Hub with edition 4, gzipped."""
    yield from hub_site(running_hub, ".gz", lambda content: gzip.compress(content, mtime=0))


@pytest.fixture
def plain(running_hub: hub.Hub) -> Iterator[Site]:
    """A Hub with edition 4, not gzipped although the table says so."""
    yield from hub_site(running_hub, "", bytes)


def hub_site(running: hub.Hub, suffix: str, pack: Callable[[bytes], bytes]) -> Iterator[Site]:
    line = Line()
    with storage_server(running, line) as running.storage:

        def put(name: str, content: bytes) -> int:
            running.commit(REPOSITORY, {f"v4/{name}{suffix}": pack(content)})
            return len(pack(content))

        yield Site(4, line, put, lambda name: f"hf://datasets/{REPOSITORY}/v4/{name}.gz")


@pytest.fixture(params=["ftp", "plain", "gzipped"])
def site(request: pytest.FixtureRequest) -> Site:
    """Every kind of server."""
    result: Site = request.getfixturevalue(request.param)
    return result


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Three small files in the official layout, by the stem of their names."""
    folder = tmp_path_factory.mktemp("official")
    return {
        stem: write_source(folder / f"{stem}.h5", random_arrays(rows, seed=rows)).read_bytes()
        for stem, rows in (("training", 4), ("validation", 2), ("testing", 1))
    }


@pytest.fixture(scope="session")
def training(files: dict[str, bytes]) -> bytes:
    """A file of 600 kB."""
    return files["training"]


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


def hdf5(size: int = 0) -> bytes:
    """A tiny HDF5 file."""
    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        h5.attrs["numbers"] = list(range(size // 8))
    return file.getvalue()


# What is fetched


def test_all_files_of_an_edition_arrive_as_published(
    site: Site, files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.publish(**files)
    assert run(site, tmp_path / "data") == 0
    assert visible(tmp_path / "data") == {f"{stem}.h5": content for stem, content in files.items()}
    output = capsys.readouterr()
    assert output.err == ""
    assert "public-secret" not in output.out
    assert f"training.h5: {len(files['training']):,} bytes in 0:00:00, sha256 as published\n" in output.out
    total = sum(map(len, files.values()))
    assert output.out.endswith(f"data: edition {site.edition}, 3 files, {total:,} bytes, all verified\n")


@pytest.mark.parametrize(
    ("splits", "stems"),
    [(["train"], ["training"]), (["test", "validation"], ["validation", "testing"]), (["test", "test"], ["testing"])],
)
def test_only_the_splits_asked_for_are_fetched(
    ftp: Site, files: dict[str, bytes], tmp_path: Path, splits: list[str], stems: list[str]
) -> None:
    ftp.publish(**files)
    assert run(ftp, tmp_path / "data", *(word for split in splits for word in ("--split", split))) == 0
    assert visible(tmp_path / "data") == {f"{stem}.h5": files[stem] for stem in stems}
    assert ftp.line.transfers == len(stems)


def test_edition_3_goes_into_folders_and_its_other_training_file_is_told_of(
    ftp: Site, files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {
        f"{folder}/{stem}": files[stem]
        for folder in ("random", "block", "culture_10")
        for stem in (["testing"] if folder == "culture_10" else ["training", "testing"])
    }
    site = dataclasses.replace(ftp, edition=3)
    site.publish(**contents)
    assert run(site, tmp_path / "test", "--split", "test") == 0
    assert sorted(visible(tmp_path / "test")) == ["block/testing.h5", "culture_10/testing.h5", "random/testing.h5"]
    assert "culture_10/training.h5" not in capsys.readouterr().out
    assert run(site, tmp_path / "data") == 0
    assert visible(tmp_path / "data") == {f"{stem}.h5": content for stem, content in contents.items()}
    assert "culture_10/training.h5 is edition 2's training.h5" in capsys.readouterr().out


def test_the_hub_has_the_files_of_edition_2_too(gzipped: Site, files: dict[str, bytes], tmp_path: Path) -> None:
    gzipped.publish("training_geo", **files, training_geo=hdf5())
    names = {f"{stem}.h5": SourceFile("ftp://127.0.0.1:9/") for stem in files}
    set_table({**facts.EDITIONS, 2: Edition("https://doi.org/none", names)})
    assert download.main([str(tmp_path / "data"), "--source", "hub"]) == 0
    assert visible(tmp_path / "data") == {f"{stem}.h5": content for stem, content in files.items()}


@pytest.mark.parametrize("kind", ["plain", "gzipped"])
def test_a_split_of_edition_4_brings_the_places_of_its_patches(
    request: pytest.FixtureRequest,
    files: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    site, geo = request.getfixturevalue(kind), hdf5(8000)
    site.publish("testing_geo", "training_geo", **files, testing_geo=geo, training_geo=geo)
    assert run(site, tmp_path / "data", "--split", "test") == 0
    assert visible(tmp_path / "data") == {"testing.h5": files["testing"], "testing_geo.h5": geo}
    assert "testing_geo.h5: " in (text := capsys.readouterr().out)
    assert "no checksum published, sha256 as the server says" in text


def test_a_file_without_checksum_must_open_as_hdf5(
    plain: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain.publish("training_geo", training_geo=hdf5(8000)[:5000])
    assert run(plain, tmp_path / "data") == 1
    assert "training_geo.h5: what came can't be opened as HDF5 (" in capsys.readouterr().err
    assert list(visible(tmp_path / "data")) == ["training_geo.h5.damaged"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--edition", "4", "--source", "tum"], "edition 4 is not to be had from tum; leave out --source tum"),
        (["--edition", "3", "--source", "hub"], "edition 3 is not to be had from hub; leave out --source hub"),
        (
            ["--edition", "3", "--split", "validation"],
            "edition 3 has no validation split; leave out --split validation",
        ),
        (["--edition", "1", "--split", "test"], "edition 1 has no test split; leave out --split test"),
    ],
)
def test_what_does_not_exist_is_an_error_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    set_table(OFFICIAL)
    assert download.main([str(tmp_path / "data"), *arguments]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "data").exists()


OFFICIAL = facts.EDITIONS


def test_the_account_and_the_path_of_official_addresses_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Recorder:
        sock = None

        def __init__(self, **options: Any) -> None:
            asked.append(options)

        def __getattr__(self, name: str) -> Callable[..., int]:
            return lambda *arguments: asked.append((name, *arguments)) or 1  # type: ignore[func-returns-value]

    monkeypatch.setattr(ftplib, "FTP", Recorder)
    download._ask_ftp(OFFICIAL[3].files["random/training.h5"].url)
    assert asked == [
        {"timeout": 60.0, "encoding": "latin-1"},
        ("connect", "dataserv.ub.tum.de", 0),
        ("login", "m1613658", "m1613658"),
        ("voidcmd", "TYPE I"),
        ("size", "random/training.h5"),
        ("quit",),
        ("close",),
    ]


# Bad lines


def test_a_line_cut_20_times_fetches_every_byte_about_once(site: Site, training: bytes, tmp_path: Path) -> None:
    site.publish(training=training)
    size = site.put(NAME, training)
    chance = random.Random(1)
    site.line.cuts = [chance.randrange(size // 25) for _ in range(20)]
    assert run(site, tmp_path / "data") == 0
    assert visible(tmp_path / "data") == {NAME: training}
    assert site.line.transfers == 21
    assert site.line.sent <= 1.05 * size


@given(
    cuts=st.lists(st.integers(0, 12_000), max_size=8),
    new_runs=st.booleans(),
    kind=st.sampled_from(["ftp", "plain", "gzipped"]),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wherever_it_is_cut_the_bytes_are_the_same_and_none_comes_twice(
    ftp: Site,
    running_hub: hub.Hub,
    tmp_path_factory: pytest.TempPathFactory,
    cuts: list[int],
    new_runs: bool,
    kind: str,
) -> None:
    content, folder = hdf5(60_000), tmp_path_factory.mktemp("data")
    hub_sites = {"plain": plain, "gzipped": gzipped}
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        site = ftp
        if kind in hub_sites:
            running_hub.create(REPOSITORY)
            suffix, pack = (".gz", gzip.compress) if kind == "gzipped" else ("", bytes)
            site = stack.enter_context(contextlib.contextmanager(hub_site)(running_hub, suffix, pack))
        patch.setattr(download, "ATTEMPTS", 1 if new_runs else 12)
        site.publish(training=content)
        size = site.put(NAME, content)
        site.line.cuts, site.line.sent = list(cuts), 0
        # A cut that comes before the first new byte, or a run that may fail once only: the command is run again.
        runs = sum(run(site, folder) for _ in range(len(cuts) + 1)) if new_runs else run(site, folder)
        assert new_runs or runs == 0
        assert visible(folder) == {NAME: content}
        assert site.line.sent == size


def test_a_line_that_goes_silent_is_given_up_and_opened_anew(
    site: Site, training: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 1.0)
    site.publish(training=training)
    size = site.put(NAME, training)
    site.line.cuts, site.line.ending = [size // 2], "stall"
    assert run(site, tmp_path / "data") == 0
    assert visible(tmp_path / "data") == {NAME: training}
    assert site.line.sent == size
    assert re.search(r"timed out at 0\.\d MB of 0\.\d MB; trying again in 2 s", capsys.readouterr().out)


def test_a_control_connection_that_is_dead_at_the_end_does_no_harm(ftp: Site, training: bytes, tmp_path: Path) -> None:
    ftp.publish(training=training)
    ftp.line.cuts, ftp.line.ending = [len(training)], "vanish"
    assert run(ftp, tmp_path / "data") == 0
    assert visible(tmp_path / "data") == {NAME: training}
    assert ftp.line.transfers == 1


def test_it_gives_up_after_some_attempts_without_progress_and_progress_counts_anew(
    site: Site, training: bytes, tmp_path: Path, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    site.publish(training=training)
    standstill = [0] * (download.ATTEMPTS - 1)
    site.line.cuts = [100_000, *standstill[1:], 1, *standstill[1:], 1, *standstill]
    assert run(site, tmp_path / "data") == 1
    error = capsys.readouterr().err
    assert "training.h5: connection closed at 0.1 MB of 0." in error
    assert "; given up after 12 attempts without progress. What has come is kept, run the same command" in error
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0, 60.0, 60.0] * 3
    assert run(site, tmp_path / "data") == 0
    assert visible(tmp_path / "data") == {NAME: training}
    assert site.line.sent == site.put(NAME, training)


@pytest.mark.parametrize("ranges", ["no", "ignored"])
def test_a_server_that_sends_whole_files_only_is_bidden_to_and_that_is_said(
    site: Site, training: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], ranges: str
) -> None:
    site.publish(training=training)
    site.line.ranges = ranges
    if site.edition == 2 and ranges == "no":
        site.line.replies = {"REST": ["502 Command not implemented."] * 2}
    site.line.cuts = [300_000, *([50_000] if ranges == "no" else [])]
    assert run(site, tmp_path / "data") == 0
    assert visible(tmp_path / "data") == {NAME: training}
    assert "starting anew" in capsys.readouterr().out


def test_a_server_that_has_no_such_range_is_asked_for_the_whole(
    plain: Site, running_hub: hub.Hub, training: bytes, tmp_path: Path
) -> None:
    plain.publish(training=training)
    plain.line.cuts = [300_000]
    running_hub.fail("resolve", "416", after=1)
    assert run(plain, tmp_path / "data") == 0
    assert visible(tmp_path / "data") == {NAME: training}


# What servers answer


@pytest.mark.parametrize("stage", ["paths", "resolve"])
@pytest.mark.parametrize("status", ["429", "500", "503"])
def test_a_hub_that_is_busy_is_asked_again_when_it_says(
    gzipped: Site,
    running_hub: hub.Hub,
    training: bytes,
    tmp_path: Path,
    pauses: list[float],
    stage: str,
    status: str,
) -> None:
    gzipped.publish(training=training)
    running_hub.fail(stage, status, times=2, wait=77)
    assert run(gzipped, tmp_path / "data") == 0
    assert visible(tmp_path / "data") == {NAME: training}
    assert pauses == ([77, 77] if status == "429" else [2, 4])


@pytest.mark.parametrize("reply", ["421 Too many connections.", "530 Sorry, the maximum number of clients is there."])
def test_an_ftp_server_that_is_busy_is_asked_again(
    ftp: Site, training: bytes, tmp_path: Path, pauses: list[float], reply: str
) -> None:
    ftp.publish(training=training)
    ftp.line.replies = {"PASS": [reply] * 3}
    assert run(ftp, tmp_path / "data") == 0
    assert visible(tmp_path / "data") == {NAME: training}
    assert pauses == [2, 4, 8]


def test_a_server_that_can_not_be_reached_is_tried_again_and_then_reported(
    tmp_path: Path, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    set_table({2: Edition("https://doi.org/none", {NAME: SourceFile("ftp://m0:m0@127.0.0.1:9/training.h5")})})
    assert download.main([str(tmp_path / "data")]) == 1
    assert len(pauses) == download.ATTEMPTS - 1
    assert "training.h5: [Errno 111] Connection refused; given up after 12 attempts" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_an_error_at_once(
    ftp: Site, gzipped: Site, running_hub: hub.Hub, tmp_path: Path, pauses: list[float], capsys: Any
) -> None:
    for site in (ftp, gzipped):
        site.publish(training=b"")
    (tmp_path / "served" / NAME).unlink()
    running_hub.commit(REPOSITORY, {"v4/training.h5.gz": None})
    assert run(ftp, tmp_path / "data") == 1
    port = re.search(r":(\d+)/", ftp.url(""))
    assert port
    assert capsys.readouterr().err == (
        f"error: ftp://127.0.0.1:{port[1]}/training.h5: the server answers 550 /training.h5 is not retrievable.\n"
    )
    assert run(gzipped, tmp_path / "data") == 1
    assert capsys.readouterr().err == (
        f"error: hf://datasets/{REPOSITORY}/v4/training.h5.gz: no such file on {running_hub.endpoint}\n"
    )
    del running_hub.repositories[REPOSITORY]
    assert run(gzipped, tmp_path / "data") == 1
    assert "the server answers 404 Not Found" in capsys.readouterr().err
    assert pauses == []


def test_a_file_that_vanishes_before_it_is_sent_is_an_error_at_once(
    ftp: Site, gzipped: Site, running_hub: hub.Hub, training: bytes, tmp_path: Path, pauses: list[float], capsys: Any
) -> None:
    ftp.publish(training=training)
    gzipped.publish(training=training)
    ftp.line.replies = {"RETR": ["550 Permission denied."]}
    running_hub.fail("resolve", "404")
    for site, answer in ((ftp, "550 Permission denied."), (gzipped, "404 Not Found")):
        assert run(site, tmp_path / "data") == 1
        assert f"the server answers {answer}\n" in capsys.readouterr().err
    assert pauses == []


def test_a_file_of_another_size_than_published_is_not_fetched(
    ftp: Site, training: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ftp.publish(training=training)
    ftp.put(NAME, training[:-1])
    assert run(ftp, tmp_path / "data") == 1
    size = len(training)
    assert f"has {size - 1:,} bytes, the published file {size:,}; nothing was fetched" in capsys.readouterr().err
    assert ftp.line.transfers == 0


def test_a_file_that_changes_on_the_server_meanwhile_is_fetched_anew(
    site: Site, training: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = training, training[:-1000] + bytes(1000 if site.edition == 4 else 2000)
    site.publish("training", training=before)
    # Progress with the new file counts, although more of the old one had come.
    site.line.cuts = [200_000, *[1000] * (download.ATTEMPTS + 1)]
    receive = download._receive

    def receive_and_change(part: download.Part) -> None:
        try:
            receive(part)
        finally:
            site.put(NAME, after)

    monkeypatch.setattr(download, "_receive", receive_and_change)
    assert run(site, tmp_path / "data") == 0
    assert visible(tmp_path / "data") == {NAME: after}
    assert "training.h5: the server has another file than before, starting anew" in capsys.readouterr().out


def test_a_file_that_changes_on_the_server_between_two_runs_is_fetched_anew(
    site: Site, training: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = training, training[:-1000] + bytes(1000 if site.edition == 4 else 2000)
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    site.publish("training", training=before)
    site.line.cuts = [200_000]
    assert run(site, tmp_path / "data") == 1
    site.put(NAME, after)
    assert run(site, tmp_path / "data") == 0
    assert visible(tmp_path / "data") == {NAME: after}


# Wrong bytes


def altered(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def test_altered_bytes_are_put_aside_and_the_next_run_starts_anew(
    ftp: Site, training: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ftp.publish(training=training)
    wrong = altered(training, 123_456)
    ftp.put(NAME, wrong)
    assert run(ftp, tmp_path / "data") == 1
    found, expected = (hashlib.sha256(content).hexdigest() for content in (wrong, training))
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/data/training.h5: what came has sha256 {found}, expected sha256 {expected}; it is kept as"
        " training.h5.damaged, delete that if it is of no use to you. Run the same command again to fetch the file"
        " anew\n"
    )
    assert visible(tmp_path / "data") == {f"{NAME}.damaged": wrong}
    ftp.put(NAME, training)
    assert run(ftp, tmp_path / "data") == 0
    assert visible(tmp_path / "data") == {NAME: training, f"{NAME}.damaged": wrong}
    assert ftp.line.sent == 2 * len(training)


def test_the_checksum_is_md5_where_no_other_is_published(
    ftp: Site, training: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    md5 = hashlib.md5(training).hexdigest()
    set_table({2: Edition("https://doi.org/none", {NAME: SourceFile(ftp.url(NAME), md5)})})
    ftp.put(NAME, altered(training, 9))
    assert run(ftp, tmp_path / "data") == 1
    assert f", expected md5 {md5}; it is kept as" in capsys.readouterr().err
    ftp.put(NAME, training)
    assert run(ftp, tmp_path / "data") == 0
    assert "0:00:00, md5 as published" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda packed: packed[:-100], "is gzip that ends too early"),
        (lambda packed: packed[:-3], "is gzip that ends too early"),
        (lambda packed: packed + b"garbage", "is no intact gzip near byte "),
        (lambda packed: altered(packed, 50_000), "is no intact gzip near byte "),
        (lambda packed: altered(packed, len(packed) - 6), "incorrect data check"),
        (lambda packed: altered(packed, len(packed) - 2), "incorrect length check"),
        (lambda packed: gzip.compress(gzip.decompress(packed) + b"x"), "bytes when unpacked, expected "),
        (lambda packed: gzip.compress(altered(gzip.decompress(packed), 9)), ", expected sha256 "),
        (lambda packed: gzip.compress(altered(gzip.decompress(packed), 99_999)), ", expected sha256 "),
    ],
)
def test_a_gzip_file_must_be_whole_and_hold_what_is_published(
    gzipped: Site,
    running_hub: hub.Hub,
    training: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[bytes], bytes],
    message: str,
) -> None:
    gzipped.publish(training=training)
    wrong = spoil(gzip.compress(training, mtime=0))
    running_hub.commit(REPOSITORY, {"v4/training.h5.gz": wrong})
    assert run(gzipped, tmp_path / "data") == 1
    assert message in (error := capsys.readouterr().err)
    assert "it is kept as training.h5.gz.damaged, delete that" in error
    kept = visible(tmp_path / "data")
    assert list(kept) == ["training.h5.gz.damaged"]
    assert wrong.startswith(kept["training.h5.gz.damaged"])
    gzipped.put(NAME, training)
    assert run(gzipped, tmp_path / "data") == 0
    assert (tmp_path / "data" / NAME).read_bytes() == training


def test_bytes_altered_on_the_way_from_the_hub_are_found(
    plain: Site, running_hub: hub.Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = hdf5(8000)
    plain.publish("training_geo", training_geo=content)
    sha256 = hashlib.sha256(content).hexdigest()
    running_hub.repository(REPOSITORY).contents[sha256] = altered(content, 5000)
    assert run(plain, tmp_path / "data") == 1
    assert f", expected sha256 {sha256}; it is kept as training_geo.h5.damaged" in capsys.readouterr().err


def test_joined_gzip_files_are_one(gzipped: Site, running_hub: hub.Hub, training: bytes, tmp_path: Path) -> None:
    gzipped.publish(training=training)
    joined = gzip.compress(training[:70_000]) + gzip.compress(b"") + gzip.compress(training[70_000:])
    running_hub.commit(REPOSITORY, {"v4/training.h5.gz": joined})
    assert run(gzipped, tmp_path / "data") == 0
    assert visible(tmp_path / "data") == {NAME: training}


# The folder


def test_what_is_there_and_verified_is_not_fetched_nor_asked_for_nor_read_again(
    site: Site, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    site.publish(**files)
    assert run(site, tmp_path / "data") == 0
    set_table(
        {
            site.edition: Edition(
                "https://doi.org/none",
                {
                    name: dataclasses.replace(file, url="ftp://nowhere.invalid/")
                    for name, file in facts.EDITIONS[site.edition].files.items()
                },
            )
        }
    )
    monkeypatch.setattr(download, "SOURCES", {"tum": (site.edition,), "hub": ()})
    monkeypatch.setattr(download, "_checksum", None)
    capsys.readouterr()
    assert run(site, tmp_path / "data") == 0
    text = capsys.readouterr().out
    assert text.count(" bytes, verified before\n") == 3
    assert text.endswith(" bytes, all verified\n")


def test_what_came_in_another_way_is_verified_once(
    site: Site, training: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.publish(training=training)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / NAME).write_bytes(training)
    for how in ("sha256 as published", "verified before"):
        assert run(site, folder) == 0
        assert f"training.h5: is there, {len(training):,} bytes, {how}\n" in capsys.readouterr().out
    (folder / NAME).write_bytes(altered(training, 77_777))  # a new time of modification
    assert run(site, folder) == 1
    assert "training.h5: has sha256 " in capsys.readouterr().err
    assert site.line.transfers == 0


@pytest.mark.parametrize("content", [b"", b"something else", "short", "altered"])
def test_another_file_of_that_name_is_left_as_it_is(
    site: Site, training: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | str
) -> None:
    site.publish(training=training)
    folder = tmp_path / "data"
    folder.mkdir()
    there = {"short": training[:-1], "altered": altered(training, 9)}.get(str(content)) or bytes(str(content), "ascii")
    (folder / NAME).write_bytes(there)
    assert run(site, folder) == 1
    error = capsys.readouterr().err
    assert f"error: {folder}/training.h5: has " in error
    assert "It is left as it is: " in error
    assert "move it away or delete it, and run the same command again\n" in error
    is_a_beginning_perhaps = site.edition == 2 and len(there) < len(training)
    assert ("rename it to training.h5.part if it is the beginning of a download" in error) == is_a_beginning_perhaps
    assert visible(folder) == {NAME: there}
    assert site.line.transfers == 0


def test_a_beginning_that_another_program_fetched_is_gone_on_with(ftp: Site, training: bytes, tmp_path: Path) -> None:
    ftp.publish(training=training)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / f"{NAME}.part").write_bytes(training[:400_000])
    assert run(ftp, folder) == 0
    assert visible(folder) == {NAME: training}
    assert ftp.line.sent == len(training) - 400_000


def test_a_whole_part_is_not_fetched_again(site: Site, training: bytes, tmp_path: Path) -> None:
    site.publish(training=training)
    folder, packed = tmp_path / "data", {"training.h5.part": training}
    if site.put(NAME, training) != len(training):
        packed = {"training.h5.gz.part": gzip.compress(training, mtime=0), "training.h5.unpacked.part": b"old"}
    folder.mkdir()
    for name, content in packed.items():
        (folder / name).write_bytes(content)
    assert run(site, folder) == 0
    assert visible(folder) == {NAME: training}
    assert site.line.transfers == 0


def test_a_part_that_is_too_long_is_no_part(ftp: Site, training: bytes, tmp_path: Path) -> None:
    ftp.publish(training=training)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / f"{NAME}.part").write_bytes(training + b"x")
    assert run(ftp, folder) == 0
    assert visible(folder) == {NAME: training}


def test_what_came_from_one_server_is_not_lost_when_another_is_chosen(
    ftp: Site, gzipped: Site, training: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    ftp.publish(training=training)
    gzipped.publish(training=training)
    size = gzipped.put(NAME, training)
    ftp.line.cuts, gzipped.line.cuts = [300_000], [200_000]
    folder = tmp_path / "data"
    assert download.main([str(folder)]) == 1
    assert download.main([str(folder), "--source", "hub"]) == 1
    assert download.main([str(folder)]) == 0
    assert visible(folder) == {NAME: training}
    assert (ftp.line.sent, gzipped.line.sent) == (len(training), 200_000)
    assert size > 200_000


def test_what_came_from_one_server_is_not_lost_when_that_from_another_is_damaged(
    ftp: Site, gzipped: Site, training: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    ftp.publish(training=training)
    gzipped.publish(training=training)
    gzipped.put(NAME, altered(training, 9))
    ftp.line.cuts = [300_000]
    folder = tmp_path / "data"
    assert download.main([str(folder)]) == 1
    assert download.main([str(folder), "--source", "hub"]) == 1
    assert set(visible(folder)) == {"training.h5.part", "training.h5.gz.damaged"}
    assert download.main([str(folder)]) == 0
    assert ftp.line.sent == len(training)


def test_a_full_disk_is_noticed_before_anything_is_fetched(
    site: Site, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    usage = namedtuple("usage", "total used free")
    site.publish(**files)
    needed = sum(map(len, files.values()))
    packed = site.put(NAME, files["training"])
    if packed != len(files["training"]):  # all unpacked files, or the first beside its compressed bytes
        last = site.put("testing.h5", files["testing"])
        needed = max(len(files["training"]) + packed, needed + last)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, needed - 1))
    assert run(site, tmp_path / "data") == 1
    assert " are needed and " in (error := capsys.readouterr().err)
    assert "free some space or choose another folder" in error
    assert site.line.transfers == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, needed))
    assert run(site, tmp_path / "data") == 0


def test_what_has_come_counts_as_room(
    site: Site, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    site.publish(validation=files["validation"], training=files["training"])
    first, last = (len(files[stem]) for stem in ("validation", "training"))
    packed = site.put(NAME, files["training"])
    site.line.cuts = [100_000]
    assert run(site, tmp_path / "data") == 1
    there = sum(map(len, visible(tmp_path / "data").values()))
    needed = first - there + last + packed * (packed != last)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, needed - 1))
    assert run(site, tmp_path / "data") == 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, needed))
    assert run(site, tmp_path / "data") == 0


def test_a_write_that_takes_less_is_gone_on_with() -> None:
    class Reluctant(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(data[:3])

    file = Reluctant()
    download._write(file, b"0123456789")
    assert file.getvalue() == b"0123456789"


def test_a_disk_that_gets_full_is_said_and_costs_no_bytes(
    site: Site, training: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site.publish(training=training)
    size = site.put(NAME, training)
    left = 200_000

    def write_what_fits(file: Any, data: bytes) -> None:
        nonlocal left
        if ".unpacked" not in file.name:
            file.write(data[:left])
            left -= len(data)
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if ".unpacked" in file.name:
            file.write(data)

    with monkeypatch.context() as patch:
        patch.setattr(download, "_write", write_what_fits)
        assert run(site, tmp_path / "data") == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/data/training.h5: No space left on device; what has come is kept, run the same command"
        " again to go on\n"
    )
    site.line.sent = 0
    assert run(site, tmp_path / "data") == 0
    assert visible(tmp_path / "data") == {NAME: training}
    assert site.line.sent == size - 200_000


def test_two_downloads_into_one_folder_don_t_mix(
    ftp: Site, training: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ftp.publish(training=training)
    state = tmp_path / "data" / download.STATE_FOLDER
    state.mkdir(parents=True)
    with filelock.FileLock(state / "lock"):
        assert run(ftp, tmp_path / "data") == 1
    assert "another run of this command is at work there" in capsys.readouterr().err
    assert ftp.line.commands == []


def test_a_damaged_state_is_as_good_as_none(ftp: Site, training: bytes, tmp_path: Path) -> None:
    ftp.publish(training=training)
    assert run(ftp, tmp_path / "data") == 0
    for text in ("", "{", "\xff"):
        (tmp_path / "data" / download.STATE_FOLDER / "state.json").write_text(text, encoding="latin-1")
        assert run(ftp, tmp_path / "data") == 0
    assert ftp.line.transfers == 1


def test_a_link_to_a_disk_that_is_not_mounted_is_not_replaced(
    ftp: Site, training: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ftp.publish(training=training)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / NAME).symlink_to(tmp_path / "not_mounted.h5")
    assert run(ftp, folder) == 1
    assert f"No such file or directory: '{folder}/training.h5'" in capsys.readouterr().err
    assert (folder / NAME).is_symlink()


# Runs that end early

DRIVER = """
import sys
sys.path[:0] = [{scripts!r}, {root!r}]
from publishing import facts
from publishing import facts
from publishing.facts import Edition, SourceFile
facts.EDITIONS = {table!r}
import download
sys.exit(download.main())
"""


def started(site: Site, tmp_path: Path) -> subprocess.Popen[bytes]:
    """Starts the script in a process of its own and waits until half of a file has come."""
    script, half = tmp_path / "driver.py", site.put(NAME, (tmp_path / "published").read_bytes()) // 2
    folders = {"scripts": str(Path(download.__file__).parent), "root": str(Path(so2sat.__file__).parent)}
    script.write_text(DRIVER.format(table=facts.EDITIONS, **folders))
    site.line.cuts, site.line.ending = [half], "stall"
    command = [sys.executable, str(script), str(tmp_path / "data"), "--edition", str(site.edition)]
    environment = {**os.environ, "HF_ENDPOINT": huggingface_hub.constants.ENDPOINT}
    process = hearing(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    parts = [tmp_path / "data" / f"{NAME}{suffix}" for suffix in (download.PART, download.GZ_PART)]
    while sum(part.stat().st_size for part in parts if part.exists()) < half:
        assert process.poll() is None, process.communicate()
        threading.Event().wait(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_run_that_was_ended_is_gone_on_with(
    site: Site, training: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    (tmp_path / "published").write_bytes(training)
    site.publish(training=training)
    process = started(site, tmp_path)
    process.send_signal(number)
    output, error = process.communicate(timeout=20)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert error == b"interrupted\n"
        kept = f"training.h5: {site.line.sent:,} bytes are kept, run the same command again to go on\n"
        assert output.decode().endswith(kept)
    assert run(site, tmp_path / "data") == 0
    assert visible(tmp_path / "data") == {NAME: training}
    assert site.line.sent == site.put(NAME, training)


def test_a_run_that_was_killed_after_its_last_step_but_one_leaves_nothing_behind(
    gzipped: Site, training: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gzipped.publish(training=training)
    with monkeypatch.context() as patch:
        patch.setattr(download.Part, "remove_rest", lambda part: None)
        assert run(gzipped, tmp_path / "data") == 0
    assert set(visible(tmp_path / "data")) == {"training.h5", "training.h5.gz.part"}
    assert run(gzipped, tmp_path / "data") == 0
    assert visible(tmp_path / "data") == {NAME: training}


# What users see


def test_without_a_terminal_progress_is_told_in_lines(
    site: Site, training: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "LOG_SECONDS", 0.0)
    site.publish(training=training)
    assert run(site, tmp_path / "data") == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert re.search(r"^training\.h5: 100 % of 0\.\d MB, [\d.]+ [MG]B/s, 0:00:00 left$", output.out, re.MULTILINE)


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        download.main(["--help"])
    assert "examples:\n  python scripts/download.py data " in capsys.readouterr().out


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert download.main([str(tmp_path), "--edition", "4", "--source", "tum", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
