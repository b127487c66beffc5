"""What scripts/download.py fetches, over good lines and bad ones, from servers on 127.0.0.1."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import huggingface_hub.constants
import pytest

import download
import hub
import so2sat
from conftest import hearing
from publishing import facts
from publishing.facts import Edition, SourceFile
from servers import Line, answering, ftp_server, storage_server

REPOSITORY = "zhu-xlab/So2Sat-LCZ42"
NAME = "training.h5"
OFFICIAL = facts.EDITIONS
TRAINING = random.Random(0).randbytes(300_000) + bytes(300_000)  # a file that gzip makes smaller
FILES = {NAME: TRAINING, "validation.h5": TRAINING[:200_000], "testing.h5": TRAINING[:100_000]}


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
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited between attempts, without waiting. And the table is as it was afterwards."""
    result: list[float] = []
    monkeypatch.setattr(time, "sleep", result.append)
    monkeypatch.setattr(facts, "EDITIONS", OFFICIAL)
    return result


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
def running_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub.Hub]:
    """A Hub with the repository of edition 4, and a token for it."""
    with hub.serving(tmp_path / "hub") as running:
        running.create(REPOSITORY)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_read")
        yield running


@pytest.fixture
def gzipped(running_hub: hub.Hub) -> Iterator[Site]:
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


# What is fetched


def test_all_files_of_an_edition_arrive_as_published(site: Site, data: Path, capsys: Any) -> None:
    site.publish(FILES)
    assert run(site, data / "new" / "folder") == 0
    assert visible(data / "new" / "folder") == FILES
    assert site.line.transfers == 3
    assert "public-secret" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("splits", ["train", "test validation", "test test"])
def test_only_the_splits_asked_for_are_fetched(ftp: Site, data: Path, splits: str) -> None:
    ftp.publish(FILES)
    assert run(ftp, data, *(word for split in splits.split() for word in ("--split", split))) == 0
    names = {so2sat.SOURCE_FILES[split] for split in splits.split()}
    assert visible(data) == {name: FILES[name] for name in names}
    assert ftp.line.transfers == len(names)


def test_edition_3_goes_into_folders_and_its_other_training_file_is_told_of(
    ftp: Site, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = dataclasses.replace(ftp, edition=3)
    contents = {name: FILES[name.partition("/")[2]] for name in OFFICIAL[3].files}
    site.publish(contents)
    assert run(site, data, "--split", "test") == 0
    assert sorted(visible(data)) == ["block/testing.h5", "culture_10/testing.h5", "random/testing.h5"]
    assert "culture_10/training.h5" not in capsys.readouterr().out
    assert run(site, data) == 0
    assert visible(data) == contents
    assert "culture_10/training.h5" in capsys.readouterr().out


def test_the_hub_has_the_files_of_edition_2_too(gzipped: Site, data: Path) -> None:
    gzipped.publish({**FILES, "training_geo.h5": b"places"})
    list_files(2, {name: SourceFile("ftp://127.0.0.1:9/") for name in FILES})
    assert download.main([str(data), "--source", "hub"]) == 0
    assert visible(data) == FILES


def test_a_split_of_edition_4_brings_the_places_of_its_patches(gzipped: Site, data: Path) -> None:
    places = {"testing_geo.h5": b"places" * 9999, "training_geo.h5": b"others"}
    gzipped.publish({**FILES, **places}, unpublished="geo")
    gzipped.line.cuts = [0, 5000, 50, 10_000]  # the places are not gzipped
    assert run(gzipped, data, "--split", "test") == 0
    assert visible(data) == {"testing.h5": FILES["testing.h5"], "testing_geo.h5": b"places" * 9999}


@pytest.mark.parametrize("arguments", ["4 --source tum", "3 --source hub", "3 --split validation", "1 --split test"])
def test_what_does_not_exist_is_an_error_at_once(tmp_path: Path, capsys: Any, arguments: str) -> None:
    assert download.main([str(tmp_path / "data"), "--edition", *arguments.split()]) == 1
    edition, option = arguments.split(maxsplit=1)
    assert f"edition {edition} " in (error := capsys.readouterr().err)
    assert option in error
    assert not (tmp_path / "data").exists()


# Bad lines


@pytest.mark.parametrize("attempts", [12, 1], ids=["one run", "as many runs"])
def test_a_line_cut_20_times_fetches_every_byte_once(site: Site, data: Path, monkeypatch: Any, attempts: int) -> None:
    monkeypatch.setattr(download, "ATTEMPTS", attempts)
    chance = random.Random(attempts)
    site.line.cuts = [chance.randrange(site.size // 25) for _ in range(20)]
    assert any(run(site, data) == 0 for _ in range(1 if attempts > 1 else 21))
    assert visible(data) == {NAME: TRAINING}
    assert site.line.transfers == 21
    assert site.line.sent == site.size


def test_a_line_that_goes_silent_is_given_up_and_opened_anew(site: Site, data: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    site.line.cuts, site.line.ending = [site.size // 2], "stall"
    assert arrives(site, data)
    assert site.line.sent == site.size


def test_a_control_connection_that_is_dead_at_the_end_does_no_harm(ftp: Site, data: Path) -> None:
    ftp.line.cuts, ftp.line.ending = [len(TRAINING)], "vanish"
    assert arrives(ftp, data)
    assert ftp.line.transfers == 1


def test_it_gives_up_after_some_attempts_without_progress_and_progress_counts_anew(
    site: Site, data: Path, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    standstill = [0] * (download.ATTEMPTS - 1)
    site.line.cuts = [100_000, *standstill[1:], 1, *standstill[1:], 1, *standstill]
    assert run(site, data) == 1
    assert NAME in capsys.readouterr().err
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0, 60.0, 60.0] * 3
    assert arrives(site, data)
    assert site.line.sent == site.size


def test_a_server_that_sends_whole_files_only_is_good_enough(site: Site, data: Path) -> None:
    site.line.ranges, site.line.cuts = False, [200_000, 50_000]
    assert arrives(site, data)
    assert site.line.transfers == 3


def test_the_page_of_a_hotel_is_not_taken_for_the_file(gzipped: Site, data: Path) -> None:
    gzipped.line.pages = [b"<html>Welcome"]
    assert arrives(gzipped, data)


def test_a_server_that_begins_elsewhere_than_it_says_is_noticed(ftp: Site, data: Path) -> None:
    ftp.line.replies, ftp.line.cuts = {"REST": ["350 Of course."]}, [200_000]
    assert run(ftp, data) == 1
    assert NAME not in visible(data)
    assert run(ftp, data) == 0


# What servers answer


@pytest.mark.parametrize("stage", ["paths", "resolve"])
@pytest.mark.parametrize(
    ("status", "wait", "expected"),
    [("429", 77, [77, 77]), ("429", 10**20, [600, 600]), ("500", 0, [2, 4]), ("503", 0, [2, 4])],
)
def test_a_hub_that_is_busy_is_asked_again_when_it_says_but_not_after_days(
    gzipped: Site, running_hub: hub.Hub, data: Path, pauses: Any, stage: str, status: str, wait: int, expected: Any
) -> None:
    running_hub.fail(stage, status, times=2, wait=wait)
    assert arrives(gzipped, data)
    assert pauses == expected


@pytest.mark.parametrize("reply", ["421 Too many connections.", "530 Sorry, the maximum number of clients is there."])
def test_an_ftp_server_that_is_busy_is_asked_again(ftp: Site, data: Path, pauses: list[float], reply: str) -> None:
    ftp.line.replies = {"PASS": [reply] * 3}
    assert arrives(ftp, data)
    assert pauses == [2, 4, 8]


def test_a_server_that_can_not_be_reached_is_tried_again_and_then_told(data: Path, pauses: Any, capsys: Any) -> None:
    list_files(2, {NAME: SourceFile("ftp://127.0.0.1:9/training.h5")})
    assert download.main([str(data)]) == 1
    assert len(pauses) == download.ATTEMPTS - 1
    assert NAME in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["paths", "resolve"])
@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_what_repetition_can_not_mend_is_an_error_at_once_that_says_what_can(
    gzipped: Site, running_hub: hub.Hub, data: Path, pauses: list[float], capsys: Any, stage: str, status: int
) -> None:
    running_hub.fail(stage, str(status))
    assert run(gzipped, data) == 1
    assert str(status) in (error := capsys.readouterr().err)
    assert download.HINTS[status] in error
    assert pauses == []


@pytest.fixture
def ask(data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Asks a Hub at an address for an official file, and returns the exit status."""

    def ask_at(endpoint: str) -> int:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        return download.main([str(data), "--source", "hub", "--split", "train", "--debug"])

    return ask_at


BAD_ADDRESSES = ["hub.example", "/", "file:///etc", "http://", "http://hub.invalid", "https://hub.invalid:99999"]


@pytest.mark.parametrize("endpoint", BAD_ADDRESSES)
def test_a_bad_address_of_the_hub_is_an_error_at_once_that_names_what_to_set(
    ask: Any, pauses: list[float], capsys: pytest.CaptureFixture[str], endpoint: str
) -> None:
    assert ask(endpoint) == 1
    assert "HF_ENDPOINT" in capsys.readouterr().err
    assert pauses == []


# JSON that does not tell of the file; "P" stands for its path
SHAPES = """[] null 5 "P" {} {"error":"P"} [null] [5] ["P"] [[]] [{}] [{"path":"P"}] [{"size":5}] [{"path":[],"size":5}]
    [{"path":"P","size":null}] [{"path":"P","size":"5"}] [{"path":"P","size":-5}] [{"path":"P","size":1.5}]
    [{"path":"P","size":true}] [{"path":"P","size":5,"lfs":5}] [{"path":"P","size":5,"lfs":{"oid":5}}] <html>"""


@pytest.mark.parametrize("answer", [*SHAPES.split(), "", "[" * 100_000, '[{"path":"P","size":' + "9" * 5000 + "}]"])
def test_an_answer_of_another_shape_is_an_error_at_once(ask: Any, pauses: Any, capsys: Any, answer: str) -> None:
    body = answer.replace("P", "v4/training.h5.gz").encode()
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body) as server:
        assert ask(f"http://{server.host}") == 1
    assert f"error: http://{server.host}: " in capsys.readouterr().err
    assert pauses == []


HEADS = ["200 OK", "302 Found\r\nLocation: /", "404 Not Found", "200 OK\r\nContent-Encoding: gzip"]


@pytest.mark.parametrize("head", HEADS)
def test_an_answer_of_the_hub_without_an_end_is_not_read_to_it(ask: Any, head: str) -> None:
    with answering(f"HTTP/1.1 {head}\r\n\r\n".encode(), b" " * 2**16, times=10_000) as server:
        assert ask(f"http://{server.host}") == 1
    assert server.connections <= 12
    assert server.sent < 10_000_000 * server.connections  # what the buffers of sockets hold


def test_a_greeting_without_an_end_is_not_read_to_it(data: Path, pauses: list[float]) -> None:
    with answering(b"220-Welcome" + b"!" * 5000 + b"\r\n", times=10_000) as server:
        list_files(2, {NAME: SourceFile(f"ftp://{server.host}/{NAME}")})
        assert download.main([str(data)]) == 1
    assert server.sent < 10_000_000
    assert pauses == []


SIZES = ["213 many", "213 -5", "213", "200 5", "213 " + "9" * 5000, f"213 {len(TRAINING) - 1}", "550 No such file."]


@pytest.mark.parametrize("reply", SIZES)
def test_a_file_without_the_published_size_is_not_fetched(ftp: Site, data: Path, pauses: Any, reply: str) -> None:
    ftp.line.replies = {"SIZE": [reply]}
    assert run(ftp, data) == 1
    assert ftp.line.transfers == 0
    assert pauses == []


def test_passwords_signatures_and_control_characters_of_ftp_are_not_shown(ftp: Site, data: Path, capsys: Any) -> None:
    for command, code in (("PASS", 530), ("PASS", 430), ("SIZE", 550), ("RETR", 550)):
        reply = f"{code} m0:public-secret \x1b[2J ftp://me:other-secret@host/x?key=signature"
        ftp.line.replies = {command: [reply] * download.ATTEMPTS}
        assert run(ftp, data, "--debug") == 1
        output = "".join(capsys.readouterr())
        assert str(code) in output
        assert not re.search(r"secret|=signature|\x1b", output)


@pytest.mark.parametrize("host", ["127.0.0.1:9", "127.0.0.1:x", "[::", "storage.invalid"])
def test_tokens_and_the_signature_of_an_address_are_not_shown(
    ask: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    for account, token in (("me:secret@", "hf_secret"), ("", "hf_ä_secret"), ("", "hf_\x0b_secret")):
        monkeypatch.setenv("HF_TOKEN", token)
        head = f"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://user:secret@{host}/x?Signature=s1gned"
        with answering(f"{head}\r\n\r\n".encode()) as server:
            assert ask(f"http://{account}{server.host}") == 1
    assert not re.search("secret|s1gned", "".join(capsys.readouterr()))


@pytest.mark.parametrize("stage", ["ask", "open"])
def test_a_mistake_of_our_own_is_not_taken_for_a_bad_line(
    site: Site, data: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float], stage: str
) -> None:
    for protocol in ("ftp", "hub" if stage == "ask" else "http"):
        monkeypatch.setattr(download, f"_{stage}_{protocol}", lambda *_: int("mistake"))
    with pytest.raises(ValueError, match="mistake"):
        run(site, data)
    assert pauses == []


# Wrong bytes


@pytest.mark.parametrize("sums", [{}, {"sha256": None}, {"sha256": None, "bytes": None}])
def test_altered_bytes_are_put_aside_and_the_next_run_starts_anew(ftp: Site, data: Path, sums: dict[str, Any]) -> None:
    wrong = altered(TRAINING, 123_456)
    file = dataclasses.replace(facts.EDITIONS[2].files[NAME], **sums)
    list_files(2, {NAME: file})
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
        lambda packed: packed + b"garbage",
        lambda packed: altered(packed, 50_000),
        lambda packed: altered(packed, len(packed) - 2),
        lambda packed: gzip.compress(TRAINING + b"x"),
        lambda packed: gzip.compress(altered(TRAINING, 9)),
        lambda packed: packed + packed,
        lambda packed: TRAINING,
    ],
)
def test_a_gzip_file_must_be_whole_and_hold_what_is_published(
    gzipped: Site, data: Path, spoil: Callable[[bytes], bytes]
) -> None:
    gzipped.send(NAME, spoil(gzip.compress(TRAINING, mtime=0)))
    assert run(gzipped, data) == 1
    assert list(visible(data)) == ["training.h5.gz.damaged"]
    gzipped.put(NAME, TRAINING)
    assert run(gzipped, data) == 0
    assert visible(data)[NAME] == TRAINING


def test_joined_gzip_files_are_one(gzipped: Site, data: Path) -> None:
    gzipped.send(NAME, b"".join(map(gzip.compress, (TRAINING[:70_000], b"", TRAINING[70_000:]))))
    assert arrives(gzipped, data)


@pytest.mark.parametrize("unpublished", ["nothing", NAME])
def test_a_file_that_unpacks_to_more_than_it_may_is_stopped_and_not_kept(
    gzipped: Site, data: Path, monkeypatch: pytest.MonkeyPatch, unpublished: str
) -> None:
    gzipped.publish({NAME: bytes(500_000)}, unpublished)
    gzipped.send(NAME, gzip.compress(bytes(20_000_000)))  # 20 kB
    monkeypatch.setattr(download, "UNPACKED_FACTOR", 20)
    with full_at(500_000):  # or it would be an error of the disk
        assert run(gzipped, data) == 1
    assert list(visible(data)) == ["training.h5.gz.damaged"]


def test_a_server_that_sends_more_than_it_announced_is_stopped(ftp: Site, data: Path) -> None:
    ftp.publish({NAME: TRAINING * 50}, NAME)
    ftp.line.replies = {"SIZE": [f"213 {len(TRAINING)}"]}
    assert run(ftp, data) == 1
    assert ftp.line.sent < 20 * len(TRAINING)
    assert [len(content) <= len(TRAINING) for content in visible(data).values()] == [True]


def test_bytes_that_are_not_those_the_hub_lists_are_found(gzipped: Site, data: Path, monkeypatch: Any) -> None:
    gzipped.publish({"training_geo.h5": b"places"}, "geo")
    ask = download._ask_hub
    monkeypatch.setattr(download, "_ask_hub", lambda url: (*ask(url)[:2], "0" * 64))
    assert run(gzipped, data) == 1
    assert list(visible(data)) == ["training_geo.h5.damaged"]


# The folder


def test_what_is_there_and_verified_is_not_fetched_nor_asked_for_nor_read_again(
    site: Site, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.publish(FILES)
    assert run(site, data) == 0
    (data / f"{NAME}.gz.part").write_bytes(b"left by a run that was killed just before it removed it")
    monkeypatch.setattr(download, "_describe", None)
    monkeypatch.setattr(download, "_verified", None)
    assert run(site, data) == 0
    assert visible(data) == FILES


def test_what_came_in_another_way_is_verified_once(site: Site, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / NAME).write_bytes(TRAINING)
    assert run(site, data) == 0
    with monkeypatch.context() as patch:
        patch.setattr(download, "_verified", None)
        assert run(site, data) == 0
    (data / NAME).write_bytes(altered(TRAINING, 77_777))  # a new time of modification
    assert run(site, data) == 1
    assert site.line.transfers == 0


OTHERS = [b"", b"something else", TRAINING[:-1], TRAINING + b"x", altered(TRAINING, 9)]


@pytest.mark.parametrize("make", [*OTHERS, os.mkfifo, os.mkdir, lambda path: path.symlink_to("not_mounted.h5")])
def test_something_else_of_that_name_is_left_as_it_is(ftp: Site, data: Path, capsys: Any, make: Any) -> None:
    (data / NAME).write_bytes(make) if isinstance(make, bytes) else make(data / NAME)

    def state() -> tuple[int, ...]:
        found = os.lstat(data / NAME)  # to be read is no change
        return found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns

    before = state()
    for unpublished in ("nothing", "nothing" if isinstance(make, bytes) else NAME):
        assert run(ftp.publish({NAME: TRAINING}, unpublished), data) == 1
        assert str(data / NAME) in capsys.readouterr().err
    assert state() == before
    assert ftp.line.transfers == 0


@pytest.mark.parametrize(
    ("there", "sent"),
    [(TRAINING[:400_000], 200_000), (TRAINING, 0), (TRAINING + b"x", 600_000)],
    ids=["beginning", "whole", "too long to be a part"],
)
def test_a_part_that_another_program_fetched_is_gone_on_with(ftp: Site, data: Path, there: bytes, sent: int) -> None:
    (data / f"{NAME}.part").write_bytes(there)
    assert arrives(ftp, data)
    assert ftp.line.sent == sent


def test_too_little_room_is_noticed_before_anything_is_fetched_and_what_has_come_counts(
    site: Site, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    site.publish(FILES)
    (data / f"{NAME}.part").write_bytes(TRAINING[:1000])
    needed = sum(map(len, FILES.values())) - 1000 + (site.size if site.is_gzipped else 0)
    for free, status in ((needed - 1, 1), (needed, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(10**9, 10**9, free))
        assert run(site, data) == status
        assert site.line.transfers == (0 if status else 3)
    assert str(data) in capsys.readouterr().err


@contextlib.contextmanager
def full_at(size: int) -> Iterator[None]:
    """Lets no file become larger, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_gets_full_is_told_with_the_file_and_costs_no_bytes(site: Site, data: Path, capsys: Any) -> None:
    with full_at(200_000):
        assert run(site, data) == 1
    assert f"error: {data / NAME}: " in capsys.readouterr().err
    kept, site.line.sent = sum(len(part) for name, part in visible(data).items() if "unpacked" not in name), 0
    assert kept > 100_000
    assert arrives(site, data)
    assert site.line.sent == site.size - kept


def test_two_downloads_into_one_folder_don_t_mix(ftp: Site, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / download.STATE_FOLDER).mkdir()
    with filelock.FileLock(data / download.STATE_FOLDER / "lock"):
        assert run(ftp, data) == 1
    assert str(data) in capsys.readouterr().err
    assert ftp.line.transfers == 0


STATES = ["", "{", "\xff", "null", "5", "[]", '["training.h5"]', '{"training.h5": 5}', "[" * 100_000]


@pytest.mark.parametrize("state", STATES)
def test_a_state_of_another_shape_is_as_good_as_none(ftp: Site, data: Path, state: str) -> None:
    (data / NAME).write_bytes(TRAINING)
    (data / download.STATE_FOLDER).mkdir()
    path = data / download.STATE_FOLDER / download.STATE_NAME
    path.write_text(state, encoding="latin-1")
    assert run(ftp, data) == 0
    assert list(json.loads(path.read_bytes())) == [NAME]
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
    script.write_text(DRIVER.format(table=facts.EDITIONS, **folders))
    site.line.cuts, site.line.ending = [size // 2], "stall"
    environment = {**os.environ, "HF_ENDPOINT": huggingface_hub.constants.ENDPOINT}
    command = [sys.executable, str(script), str(data), "--edition", str(site.edition)]
    with (tmp_path / "output").open("w+b") as output:
        process = hearing(command, env=environment, stdout=output, stderr=output)
        while sum(part.stat().st_size for part in data.glob("*.part")) < size // 3:
            assert process.poll() is None, (tmp_path / "output").read_text()
            threading.Event().wait(0.01)
        process.send_signal(number)
        assert process.wait(20) == status
    kept = sum(part.stat().st_size for part in data.glob(f"*{'.gz' if kind == 'gzipped' else ''}.part"))
    if number == signal.SIGINT:
        assert kept == size // 2
        assert (tmp_path / "output").read_text().endswith("\ninterrupted\n")
    site.line.sent = 0
    assert arrives(site, data)
    assert site.line.sent == size - kept


# What users see


def test_without_a_terminal_progress_is_told_in_lines(site: Site, data: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(download, "LOG_SECONDS", 0.0)
    assert run(site, data) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert re.search(r"^training\.h5: +[1-9]\d*%.*/\d+k ", output.out, re.MULTILINE)


def test_any_stream_will_do(ftp: Site, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    ascii_only = io.TextIOWrapper(io.BytesIO(), "ascii")
    for name, stream in (("ä", ascii_only), ("closed", None), ("pipe", os.fdopen(write, "w"))):
        monkeypatch.setattr(sys, "stdout", stream)
        assert run(ftp, data / name) == 0
        assert visible(data / name) == {NAME: TRAINING}
    assert b"training.h5" in ascii_only.buffer.getvalue()


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        download.main(["--help"])
    assert "python scripts/download.py data " in capsys.readouterr().out
