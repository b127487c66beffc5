"""Measures this project against other ways to do the same, side by side, and prints the ratios beside the goals."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import http.server
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import h5py
import numpy as np
import psutil
import tqdm

import sample
import so2sat
from publishing import command
from publishing.command import CommandError

CONTENDERS = Path(__file__).with_name("contenders.py")
FOLDER = Path(__file__).parents[1] / "build" / "benchmark"  # temporary files, and the environment of TFDS
TFDS_PACKAGES = ("tensorflow-cpu", "tensorflow-datasets==4.9.10", "importlib_resources", "h5py")
DELAY = 0.05  # seconds that the server waits before it answers
SEND_BUFFER = 1 << 16  # bytes that the server sends ahead of what the client has taken
SHARES = (1, 2, 4, 8)  # of eighths of the training split, to see whether time grows with rows

PEERS: Mapping[str, str] = {
    "loop": "a builder that reads HDF5 row by row, as loading scripts do; also with arrays found by name but once",
    "hdf5": 'load_dataset("hdf5")',
    "parquet": "Parquet with the settings that `datasets` chooses",
    "random": "random access to HDF5 by row",
    "floor": "each step alone, with all it needs in memory",
    "torch": "PyTorch DataLoader, where torch is installed",
    "tfds": "TensorFlow Datasets' so2sat 2.1.0; makes an environment of 2 GB in build/benchmark",
}
TASKS: Mapping[str, str] = {
    "convert": "HDF5 → on-disk form: rows/s, memory, bytes",
    "stream": "an epoch in file order, batches of 128 arrays",
    "shuffle": "a shuffled epoch, batches of 64",
    "http": f"first example from a server that answers after {DELAY * 1000:.0f} ms",
    "growth": "convert, with an eighth, a quarter, half and all of the rows",
}

EXAMPLES = """\
  python scripts/benchmark.py                                   everything but TFDS, 8,192 synthetic rows
  python scripts/benchmark.py --peers all --rows 32768          TFDS too, and more rows
  python scripts/benchmark.py --tasks stream shuffle --json build/benchmark.json
  python scripts/benchmark.py --input data --tasks convert      with files of your own: the official ones take days
"""

# ┌─────────┐
# │  Cases  │
# └─────────┘


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to measure: a contender at a task.

    Attributes:
        task: One of TASKS.
        config: What it is done with, a config or some columns of one.
        name: The contender.
        function: What contenders.py runs.
        peer: One of PEERS, empty for this project.
        arguments: Of the function, besides paths.
        reads: Name of the case of task convert whose output it reads; the HDF5 files if empty.
    """

    task: str
    config: str
    name: str
    function: str
    peer: str = ""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    reads: str = ""


# Names of what others read or are compared with.
PARQUET, ARROW, DEFAULT, TFDS = "Parquet, 1 worker", "builder → Arrow", "Arrow → default Parquet", "TFDS → TFRecord"
LOOP, LOOP_ONCE = "row by row → Arrow", "row by row, arrays found once → Arrow"
ENCODE, JPEG = "floor: encode", "floor: JPEG"
FIRST_LOOK = "Parquet, first look"

# How the output of a case is read: one of contenders.FORMS.
FORMS: Mapping[str, str] = {
    PARQUET: "repository",
    "Parquet, 2 workers": "repository",
    ARROW: "arrow",
    "builder → Arrow, 2 processes": "arrow",
    LOOP: "arrow",
    LOOP_ONCE: "arrow",
    "load_dataset('hdf5') → Arrow": "arrow",
    DEFAULT: "default parquet",
    TFDS: "records",
}


def _cases() -> Iterator[Case]:
    for config in ("all", "rgb"):
        yield Case("convert", config, PARQUET, "build", arguments={"workers": 1})
        yield Case("convert", config, "Parquet, 2 workers", "build", arguments={"workers": 2})
        yield Case("convert", config, ARROW, "builder")
        yield Case("convert", config, "builder → Arrow, 2 processes", "builder", arguments={"workers": 2})
        yield Case("convert", config, LOOP, "loop", "loop")
        yield Case("convert", config, LOOP_ONCE, "loop", "loop", {"once": True})
        if config == "all":
            yield Case("convert", config, "load_dataset('hdf5') → Arrow", "hdf5", "hdf5")
        yield Case("convert", config, DEFAULT, "default_parquet", "parquet", reads=ARROW)
        yield Case("convert", config, TFDS, "tfds_build", "tfds")
        yield Case("convert", config, "floor: read HDF5", "read_floor", "floor")
        name, function = (ENCODE, "encode_floor") if config == "all" else (JPEG, "jpeg_floor")
        yield Case("convert", config, name, function, "floor")
    for config, columns in (("all", None), ("rgb", None), ("sentinel2", ["sentinel2", "label"])):
        arguments = {"size": 128, "columns": columns}
        yield _epoch("stream", config, "Parquet", PARQUET, arguments)
        yield _epoch("stream", config, "prepared Arrow", ARROW, arguments)
        yield _epoch("stream", config, "builder, from HDF5", "", {**arguments, "form": "source"})
        yield _epoch("stream", config, "default Parquet", DEFAULT, arguments, "parquet")
        if config != "rgb":
            yield _epoch("stream", config, "load_dataset('hdf5')", "", {**arguments, "form": "hdf5 stream"}, "hdf5")
        yield _epoch("stream", config, "TFDS", TFDS, arguments, "tfds")
    shuffled = {"size": 64, "shuffle": True}
    for config in ("all", "rgb"):
        if config == "all":
            yield _epoch("shuffle", config, "Arrow, views", ARROW, {"size": 64, "form": "views"})
        yield _epoch("shuffle", config, "Arrow, map style", ARROW, shuffled)
        if config == "all":
            yield _epoch("shuffle", config, "Parquet, in blocks of 4,096", PARQUET, {"size": 64, "block": 4096})
        yield _epoch("shuffle", config, "Parquet, stream.shuffle", PARQUET, shuffled)
        if config == "all":
            yield _epoch("shuffle", config, "HDF5 by row", "", {"size": 64, "form": "hdf5 rows"}, "random")
        yield _epoch("shuffle", config, "TFDS, file order", TFDS, {"size": 64}, "tfds")
        yield _epoch("shuffle", config, "TFDS, shuffled", TFDS, shuffled, "tfds")
    for workers in (0, 2):
        loader, end = {"size": 64, "loader_workers": workers}, f", DataLoader {workers}"
        yield _epoch("shuffle", "all", f"Arrow, views{end}", ARROW, {**loader, "form": "views"}, "torch")
        yield _epoch("shuffle", "all", f"Arrow by batch{end}", ARROW, {**loader, "shuffle": True}, "torch")
        yield _epoch("shuffle", "all", f"Parquet, in blocks{end}", PARQUET, {**loader, "block": 4096}, "torch")
        yield _epoch("shuffle", "all", f"Parquet, stream.shuffle{end}", PARQUET, {**loader, "shuffle": True}, "torch")
        yield _epoch("shuffle", "all", f"HDF5 by row{end}", "", {**loader, "form": "hdf5 rows"}, "torch")
    for config in ("all", "rgb"):
        for name, reads, peer in (("Parquet", PARQUET, ""), ("default Parquet", DEFAULT, "parquet")):
            yield Case("http", config, f"{name}, first look", "first_example", peer, {"first_look": True}, reads)
            yield Case("http", config, name, "first_example", peer, {}, reads)
    for share in SHARES:
        yield Case("growth", "all", f"Parquet, {share}/8 of rows", "build", "", {"workers": 1, "share": share})
    for share in SHARES:
        yield Case("growth", "all", f"{ARROW}, {share}/8", "builder", "", {"share": share})


def _epoch(task: str, config: str, name: str, reads: str, arguments: Mapping[str, Any], peer: str = "") -> Case:
    return Case(task, config, name, "epoch", peer, {"form": FORMS.get(reads, ""), **arguments}, reads)


CASES = tuple(_cases())


@dataclasses.dataclass(frozen=True)
class Goal:
    """A bound of a figure of one case, or of its ratio to that of another case of the same task and config."""

    text: str
    bound: float
    task: str
    config: str
    ours: str
    peer: str = ""
    figure: str = "rate"
    at_most: bool = False


GOALS = (
    Goal("all → Parquet, 1 worker: × TFDS", 12, "convert", "all", PARQUET, TFDS),
    Goal("all → Parquet, 1 worker: × row by row", 1.6, "convert", "all", PARQUET, LOOP),
    Goal("all → Parquet, 1 worker: × row by row, arrays found once", 1.6, "convert", "all", PARQUET, LOOP_ONCE),
    Goal("all → Parquet, 1 worker: share of the encoding floor", 0.75, "convert", "all", PARQUET, ENCODE),
    Goal("all → Parquet, 2 workers: × 1 worker", 1.8, "convert", "all", "Parquet, 2 workers", PARQUET),
    Goal("rgb → Parquet, 1 worker: × TFDS", 5, "convert", "rgb", PARQUET, TFDS),
    Goal("rgb → Parquet, 1 worker: × row by row", 2.5, "convert", "rgb", PARQUET, LOOP),
    Goal("rgb → Parquet, 1 worker: × row by row, arrays found once", 2.5, "convert", "rgb", PARQUET, LOOP_ONCE),
    Goal("rgb → Parquet, 1 worker: share of the JPEG floor", 0.6, "convert", "rgb", PARQUET, JPEG),
    Goal("all → Arrow, 1 process: × TFDS", 10, "convert", "all", ARROW, TFDS),
    Goal("all → Arrow, 1 process: × row by row", 1.3, "convert", "all", ARROW, LOOP),
    Goal("all → Arrow, 1 process: × row by row, arrays found once", 1.3, "convert", "all", ARROW, LOOP_ONCE),
    Goal("bytes of all as Parquet: share of the HDF5", 0.31, "convert", "all", PARQUET, "", "share_of_source", True),
    Goal("stream all from Parquet: × TFDS", 1.8, "stream", "all", "Parquet", "TFDS"),
    Goal("stream all from prepared Arrow: × TFDS", 1.8, "stream", "all", "prepared Arrow", "TFDS"),
    Goal("shuffled epoch from Arrow: × TFDS in file order", 1.2, "shuffle", "all", "Arrow, views", "TFDS, file order"),
    Goal("shuffled epoch from Arrow: × HDF5 by row", 3, "shuffle", "all", "Arrow, views", "HDF5 by row"),
    Goal("first example over HTTP: MB", 8, "http", "all", FIRST_LOOK, "", "megabytes", True),
    Goal(
        *("first example over HTTP: share of default Parquet's bytes", 0.25, "http", "all"),
        *(FIRST_LOOK, "default Parquet, first look", "megabytes", True),
    ),
    Goal(
        *("time per row: all rows against an eighth", 1.1, "growth", "all"),
        *("Parquet, 8/8 of rows", "Parquet, 1/8 of rows", "seconds_per_row", True),
    ),
)

# The README's table: a task in words, the case, and what it is compared with.
_BUILDERS = {"TFDS": TFDS, "row by row": LOOP, "same, arrays found once": LOOP_ONCE}
HIGHLIGHTS: Sequence[tuple[str, tuple[str, str, str], Mapping[str, str]]] = (
    ("HDF5 → Parquet, 1 worker", ("convert", "all", PARQUET), {**_BUILDERS, "encoding alone": ENCODE}),
    ("HDF5 → Parquet, 2 workers", ("convert", "all", "Parquet, 2 workers"), {"1 worker": PARQUET, "TFDS": TFDS}),
    ("HDF5 → Arrow (builder)", ("convert", "all", ARROW), _BUILDERS),
    ("HDF5 → Parquet, 1 worker", ("convert", "rgb", PARQUET), {**_BUILDERS, "JPEG alone": JPEG}),
    ("HDF5 → Arrow (builder)", ("convert", "rgb", ARROW), _BUILDERS),
    ("epoch from prepared Arrow", ("stream", "all", "prepared Arrow"), {"TFDS": "TFDS"}),
    (
        "epoch of a Parquet stream",
        ("stream", "all", "Parquet"),
        {"TFDS": "TFDS", "load_dataset('hdf5')": "load_dataset('hdf5')", "default Parquet": "default Parquet"},
    ),
    ("epoch of a Parquet stream", ("stream", "sentinel2", "Parquet"), {"TFDS": "TFDS"}),
    ("epoch of a Parquet stream", ("stream", "rgb", "Parquet"), {"TFDS": "TFDS"}),
    (
        "shuffled epoch, `Patches`",
        ("shuffle", "all", "Arrow, views"),
        {"TFDS in file order": "TFDS, file order", "HDF5 by row": "HDF5 by row", "train.shuffle()": "Arrow, map style"},
    ),
    (
        "shuffled epoch, blocks of a stream",
        ("shuffle", "all", "Parquet, in blocks of 4,096"),
        {"TFDS shuffled": "TFDS, shuffled", "stream.shuffle()": "Parquet, stream.shuffle"},
    ),
)

# ┌───────────┐
# │  Figures  │
# └───────────┘

Rounds = list[dict[str, float]]  # the figures of a case by round


@dataclasses.dataclass
class Results:
    """Figures by case, and why a case has none."""

    rounds: dict[Case, Rounds] = dataclasses.field(default_factory=dict)
    failures: dict[Case, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Reads what `--json` wrote."""
        cases = json.loads(path.read_bytes())["cases"]
        return cls({find(case["task"], case["config"], case["name"]): case["rounds"] for case in cases})

    def of(self, task: str, config: str, name: str) -> Rounds:
        """The figures of a case, none if it was not measured."""
        return self.rounds.get(find(task, config, name), [])


def find(task: str, config: str, name: str) -> Case:
    """Finds a case by what identifies it."""
    return next(case for case in CASES if (case.task, case.config, case.name) == (task, config, name))


def ratio(ours: Rounds, other: Rounds, figure: str) -> float | None:
    """Median of the ratios of a figure, round by round, as what disturbs a round disturbs both; None without rounds."""
    pairs = [(one[figure], two[figure]) for one, two in zip(ours, other)]
    return statistics.median(one / two for one, two in pairs) if pairs else None


def measured(goal: Goal, results: Results) -> float | None:
    """What a goal is about, None if it was not measured."""
    ours = results.of(goal.task, goal.config, goal.ours)
    if goal.peer:
        return ratio(ours, results.of(goal.task, goal.config, goal.peer), goal.figure)
    return statistics.median(figures[goal.figure] for figures in ours) if ours else None


def verdict(goal: Goal, value: float | None) -> str:
    """Whether a goal was met."""
    if value is None:
        return "not measured"
    return "met" if (value <= goal.bound if goal.at_most else value >= goal.bound) else "MISSED"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligns columns; the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in rows
    )


# What a report shows after the speed: heading, figure and format.
COLUMNS = (("imports s", "imports", ".1f"), ("peak MB", "peak_megabytes", ",.0f"))
SIZE = ("bytes/row", "bytes_per_row", ",.0f")
TRAFFIC = (("requests", "requests", ".0f"), ("MB", "megabytes", ".1f"))


def report(results: Results, task: str, config: str) -> str:
    """Table of the contenders at a task."""
    speed, digits = ("seconds", ".2f") if task == "http" else ("rate", ",.0f")
    columns = (*COLUMNS, *(TRAFFIC if task == "http" else (SIZE,) if task in ("convert", "growth") else ()))
    cases = [case for case in CASES if (case.task, case.config) == (task, config)]
    rows = [
        ["", "seconds" if task == "http" else "rows/s", "least", "most", "first / it", *(name for name, *_ in columns)]
    ]
    first, notes = results.rounds.get(cases[0], []), []
    for case in cases:
        if case in results.failures:
            notes.append(f"  {case.name}: {results.failures[case]}")
        elif rounds := results.rounds.get(case):
            speeds = [figures[speed] for figures in rounds]
            relative = ratio(first, rounds, speed)
            row = [case.name, *(f"{value:{digits}}" for value in (statistics.median(speeds), min(speeds), max(speeds)))]
            row.append("" if relative is None else f"{relative:.2f}")
            for _, figure, format_ in columns:
                values = [figures[figure] for figures in rounds if figure in figures]
                row.append(f"{statistics.median(values):{format_}}" if values else "")
            rows.append(row)
    return "\n".join([f"{task} {config}: {TASKS[task]}", table(rows), *notes, ""])


def report_goals(results: Results, tasks: Sequence[str]) -> str:
    """Table of the goals beside what was measured."""
    rows = [["goal", "bound", "measured", ""]]
    for goal in GOALS:
        if goal.task in tasks:
            value = measured(goal, results)
            found = "" if value is None else f"{value:.2f}"
            rows.append([goal.text, f"{'≤' if goal.at_most else '≥'} {goal.bound:g}", found, verdict(goal, value)])
    return table(rows)


def performance(results: Results) -> str:
    """The README's table, in Markdown, of what was measured."""
    lines = ["| task | config | rows/s | bytes/row | as a multiple of |", "|---|---|---:|---:|---|"]
    for task, case, others in HIGHLIGHTS:
        if rounds := results.of(*case):
            ratios = {other: ratio(rounds, results.of(*case[:2], name), "rate") for other, name in others.items()}
            compared = ", ".join(
                f"{value:.{2 if value < 10 else 0}f} × {other}" for other, value in ratios.items() if value is not None
            )
            rate = statistics.median(figures["rate"] for figures in rounds)
            sizes = [figures["bytes_per_row"] for figures in rounds if "bytes_per_row" in figures]
            size = f"{statistics.median(sizes):,.0f}" if sizes else ""
            lines.append(f"| {task} | `{case[1]}` | {rate:,.0f} | {size} | {compared} |")
    return "\n".join(lines) + "\n"


def differences(one: Mapping[str, Any], other: Mapping[str, Any], tolerance: float) -> list[str]:
    """Names of what differs between two fingerprints.

    Args:
        one: What contenders.fingerprint gave.
        other: The same of another contender.
        tolerance: By how much the means of a patch may differ.
    """
    names = [name for name in ("rows", "labels", "by_id") if one[name] != other[name]]
    means, others = np.ravel(one["means"]), np.ravel(other["means"])
    if len(means) != len(others) or not np.allclose(means, others, rtol=0, atol=tolerance, equal_nan=True):
        names.append("values")
    return names


# ┌─────────────┐
# │  Measuring  │
# └─────────────┘


class Failure(Exception):
    """A contender can't run; the message says why."""


class Server(http.server.ThreadingHTTPServer):
    """Serves files with byte ranges on loopback after a delay, and counts."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        """Starts to serve a folder."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.requests, self.bytes = folder, 0, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def get_request(self) -> tuple[Any, Any]:
        """Takes a connection, on which little is sent that the client never reads."""
        connection, address = super().get_request()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stays quiet about clients that hang up."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests += 1
        time.sleep(DELAY)
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        low, _, high = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        first, last = int(low), min(int(high or size - 1), size - 1)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if self.command == "GET":
            with path.open("rb") as file:
                file.seek(first)
                while first <= last:
                    block = file.read(min(SEND_BUFFER, last - first + 1))
                    self.wfile.write(block)
                    first += len(block)
                    self.server.bytes += len(block)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Bench:
    """Runs cases. All that is written goes to a temporary folder, where what other cases read is kept."""

    def __init__(self, folder: Path, source: Path, peers: Sequence[str]) -> None:
        """Takes the temporary folder, the folder of the source files and the peers to measure."""
        self.folder, self.source, self.peers = folder, source, peers
        self.results = Results()
        self.fingerprints: dict[str, Any] = {}  # of the source files, by config
        self.verified: set[Case] = set()
        self.rows: dict[str, int] = {}
        self.source_bytes = 0
        for split, name in so2sat.SOURCE_FILES.items():
            if split != "test" or (source / name).exists():
                with so2sat.open_source(str(source / name)) as file:
                    self.rows[split] = file.rows
                    self.source_bytes += file.bytes
        self.tfds_python = make_tfds_environment() if "tfds" in peers else "TFDS was not asked for"

    def measure(self, task: str, config: str, rounds: int) -> None:
        """Runs the contenders of a task in turn, again and again."""
        cases = [case for case in CASES if (case.task, case.config) == (task, config)]
        for case in cases:
            if case.peer and case.peer not in self.peers:
                self.results.failures[case] = f"not asked for (--peers {case.peer})"
            elif case.peer == "torch" and not importlib.util.find_spec("torch"):
                self.results.failures[case] = "can't run: torch is not installed"
        turns = [case for _ in range(rounds) for case in cases if case not in self.results.failures]
        for path in self.source.glob("*.h5"):
            with path.open("rb") as file:  # into the page cache
                while file.read(1 << 24):
                    pass
        with tqdm.tqdm(turns, desc=f"{task} {config}", disable=None, leave=False, dynamic_ncols=True) as bar:
            for case in bar:
                bar.set_postfix_str(case.name)
                if case not in self.results.failures:
                    try:
                        self.results.rounds.setdefault(case, []).append(self._run(case))
                    except Failure as error:
                        self.results.failures[case] = f"can't run: {error}"
                        self.results.rounds.pop(case, None)

    def _run(self, case: Case) -> dict[str, float]:
        if case.function == "first_example":
            return self._first_example(case)
        arguments, source, rows = dict(case.arguments), self.source, sum(self.rows.values())
        if case.peer:  # none of them makes a test split
            rows -= self.rows.get("test", 0)
        if "share" in arguments:
            source, rows = self._part(arguments.pop("share"))
        arguments["path"] = str(self._output(case) if case.reads else source)
        arguments["config"] = case.config if case.config in so2sat.CONFIGS else "all"
        output = None
        if case.task in ("convert", "growth"):
            output = self._folder(case)
            shutil.rmtree(output, ignore_errors=True)
            output.mkdir(parents=True)
            arguments["output"] = str(output)
            os.sync()  # what others have written is on the disk
        try:
            figures = self.child(case.function, arguments, tfds=case.peer == "tfds")
        except Failure:
            if output:
                shutil.rmtree(output)  # half of what others would read
            raise
        labels = figures.pop("labels", None)
        if labels is not None and (figures["rows"], labels) != (self.rows["train"], self._reference("all")["labels"]):
            raise CommandError(f"{case.task} {case.name}: gave other rows or labels than the source has")
        rows = int(figures.setdefault("rows", rows))
        figures["rate"], figures["seconds_per_row"] = rows / figures["seconds"], figures["seconds"] / rows
        if output:
            size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
            if size:
                figures["bytes_per_row"] = size / rows
                figures["share_of_source"] = size / rows / (self.source_bytes / sum(self.rows.values()))
            if case.task == "convert" and case.name in FORMS:
                self._verify(case)
            if not any((case.name, case.config) == (other.reads, other.config) for other in CASES):
                shutil.rmtree(output)
        return figures

    def _folder(self, case: Case) -> Path:
        return self.folder / re.sub(r"\W+", "-", f"{case.task} {case.config} {case.name}").strip("-")

    def _output(self, case: Case) -> Path:
        """Folder with what a case reads, made now if it was not before."""
        maker = find("convert", case.config if case.config in so2sat.CONFIGS else "all", case.reads)
        if maker in self.results.failures:
            raise Failure(f"nothing to read, {maker.name}: {self.results.failures[maker]}")
        if not self._folder(maker).exists():
            try:
                self._run(maker)
            except Failure as error:
                self.results.failures[maker] = f"can't run: {error}"
                raise
        return self._folder(maker)

    def _part(self, share: int) -> tuple[Path, int]:
        """Folder with so many eighths of the training split, and its rows in all."""
        folder, train = self.folder / f"part {share}", self.rows["train"] * share // max(SHARES)
        few = min(self.rows["validation"], len(so2sat.LABELS))
        if not folder.exists():
            folder.mkdir()
            for split, rows in (("train", train), ("validation", few)):
                name = so2sat.SOURCE_FILES[split]
                with h5py.File(self.source / name) as old, h5py.File(folder / name, "w") as new:
                    for key, shape in so2sat.SOURCE_SHAPES.items():
                        array = new.create_dataset(key, (rows, *shape), old[key].dtype)
                        for start in range(0, rows, so2sat.ROWS_PER_BLOCK):
                            stop = min(start + so2sat.ROWS_PER_BLOCK, rows)
                            array[start:stop] = old[key][start:stop]
                    new.attrs.update(old.attrs)
        return folder, train + few

    def _first_example(self, case: Case) -> dict[str, float]:
        folder = self._output(case)
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("train*.parquet"))
        with Server(folder) as server:
            urls = [f"http://127.0.0.1:{server.server_port}/{file}" for file in files]
            figures = self.child("first_example", {"urls": urls, **case.arguments})
            server.shutdown()
        return {**figures, "requests": server.requests, "megabytes": server.bytes / 1e6}

    def _reference(self, config: str) -> Any:
        if config not in self.fingerprints:
            arguments = {"form": "source", "path": str(self.source), "config": config}
            self.fingerprints[config] = self.child("fingerprint", arguments)
        return self.fingerprints[config]

    def _verify(self, case: Case) -> None:
        """Makes sure, once, that a contender wrote the rows of the source."""
        if case not in self.verified:
            arguments = {"form": FORMS[case.name], "path": str(self._folder(case)), "config": case.config}
            found = self.child("fingerprint", arguments, tfds=case.peer == "tfds")
            # JPEG encoders differ; a patch's mean does not by a grey level.
            wrong = differences(self._reference(case.config), found, 1 if case.config == "rgb" else 1e-4)
            if wrong:
                raise CommandError(f"{case.task} {case.config}, {case.name}: {', '.join(wrong)} differ from the source")
            self.verified.add(case)

    def child(self, function: str, arguments: Mapping[str, Any], tfds: bool = False) -> dict[str, Any]:
        """Runs a function of contenders.py in a process of its own.

        Raises:
            Failure: It ended with an error.
        """
        python = self.tfds_python if tfds else sys.executable
        if tfds and not isinstance(python, Path):
            raise Failure(str(python))
        call = {"function": function, "arguments": arguments, "started": time.time()}
        environment = {
            **os.environ,
            "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "TMPDIR": str(self.folder),
        }
        with subprocess.Popen(
            [str(python), str(CONTENDERS), json.dumps(call)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        ) as process:
            peak = Peak(process.pid)
            try:
                out, err = process.communicate()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            finally:
                peak.stop()
        if process.returncode:
            lines = [line.strip() for line in err.splitlines() if line.strip()] or [f"ended with {process.returncode}"]
            causes = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
            raise Failure(" ← ".join(dict.fromkeys([lines[-1][:300], *(cause[:300] for cause in causes[:1])])))
        figures: dict[str, Any] = json.loads(out.splitlines()[-1])
        return {**figures, "peak_megabytes": peak.bytes / 1e6}


class Peak(threading.Thread):
    """Watches how much memory a process and its children hold together, what they share counted for each."""

    def __init__(self, pid: int) -> None:
        """Starts to watch."""
        super().__init__(daemon=True)
        self.bytes, self._process, self._stopped = 0, psutil.Process(pid), threading.Event()
        self.start()

    def run(self) -> None:
        """Looks ten times a second."""
        while not self._stopped.wait(0.1):
            total = 0
            try:
                for process in [self._process, *self._process.children(recursive=True)]:
                    total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            self.bytes = max(self.bytes, total)

    def stop(self) -> None:
        """Ends the watch."""
        self._stopped.set()
        self.join()


def make_tfds_environment() -> Path | str:
    """Makes an environment with TFDS, unless it is there; returns its Python, or why there is none."""
    folder: Path = FOLDER / "tfds"
    python, stamp = folder / "bin" / "python", folder / "ready"
    if not stamp.exists():
        print(f"{folder}: installing {' '.join(TFDS_PACKAGES)}", flush=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True, text=True)
            install = [str(python), "-m", "pip", "install", "--quiet", *TFDS_PACKAGES]
            subprocess.run(install, check=True, capture_output=True, text=True)
            stamp.touch()
        except subprocess.CalledProcessError as error:
            lines: list[str] = error.stderr.strip().splitlines() or [str(error)]
            return next((line for line in lines if line.startswith("ERROR")), lines[-1])
        finally:
            if not stamp.exists():
                shutil.rmtree(folder, ignore_errors=True)
    return Path(python)


# ┌────────────────┐
# │  Command line  │
# └────────────────┘


def about(bench: Bench) -> dict[str, Any]:
    """Machine, versions, date and input."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), processor)
    names = ["datasets", "pyarrow", "numpy", "h5py", "pillow"]
    if importlib.util.find_spec("torch"):
        names.append("torch")
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
    if isinstance(bench.tfds_python, Path):
        code = "import importlib.metadata as m; print(m.version('tensorflow-cpu'), m.version('tensorflow-datasets'))"
        found = subprocess.run([bench.tfds_python, "-c", code], check=True, capture_output=True, text=True).stdout
        versions |= dict(zip(("tensorflow-cpu", "tensorflow-datasets"), found.split()))
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} × {processor}, {platform.system()} {platform.machine()}",
        "versions": versions,
        "input": {"rows": bench.rows, "bytes": bench.source_bytes},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    listed = [f"  {name:8} {text}" for name, text in [("tasks:", ""), *TASKS.items(), ("peers:", ""), *PEERS.items()]]
    parser = command.parser(
        "Measures this project against other ways to do the same. Contenders take turns, each in a process of its own;"
        " ratios are medians over the rounds. What is the same for any number of rows is not in the rates: interpreter"
        " start and imports, the start of build.py's workers and the card's pictures. Sources and forms are in the page"
        " cache; what was written is on the disk before the next contender starts. Of epochs the second is timed."
        " Memory is what all processes of a contender hold at most, mapped files included.",
        EXAMPLES + "\n" + "\n".join(listed),
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=8192,
        help="of the synthetic training split (default: %(default)s; below it 2 workers have nothing to share)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help="see below")
    peers = [peer for peer in PEERS if peer != "tfds"]
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=[*PEERS, "all"],
        default=peers,
        metavar="PEER",
        help="see below (default: all but tfds)",
    )
    parser.add_argument("--input", type=Path, metavar="FOLDER", help="with source files, instead of synthetic ones")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the figures of every round")
    return command.run(_run, parser, argv)


def _run(options: argparse.Namespace) -> None:
    for name, value, least in (("--rows", options.rows, len(so2sat.LABELS)), ("--rounds", options.rounds, 1)):
        if value < least:
            raise CommandError(f"{name} is {value}, expected {least} or more")
    if options.json:
        options.json.open("a").close()  # an error now, not after an hour
    with _ended_by_signals(), _folder() as folder:
        if options.input:
            source = options.input.expanduser().resolve()
        else:
            source = folder / "source"
            sample.write_sample(source, {"train": options.rows, "validation": len(so2sat.LABELS)})
        bench = Bench(folder, source, list(PEERS) if "all" in options.peers else options.peers)
        facts = about(bench)
        print(f"{facts['date']}, {facts['machine']}")
        print(", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
        print(f"input: {bench.rows} rows, {bench.source_bytes:,} bytes; {options.rounds} rounds\n", flush=True)
        for task, config in dict.fromkeys((case.task, case.config) for case in CASES if case.task in options.tasks):
            bench.measure(task, config, options.rounds)
            print(report(bench.results, task, config), flush=True)
            if options.json:
                everything = {**facts, **summary(bench.results)}
                options.json.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n")
    if {case[0] for _, case, _ in HIGHLIGHTS} & {*options.tasks}:
        print(performance(bench.results))
    print(report_goals(bench.results, options.tasks))


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Lets processes and temporary files go after SIGTERM and SIGHUP too, as after Ctrl-C."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder for the only run on this machine; those that killed runs left are removed.

    Raises:
        CommandError: Another run is at work.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(FOLDER / "lock", timeout=0):
            for left in FOLDER.glob("run-*"):
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=FOLDER, prefix="run-", ignore_cleanup_errors=True) as name:
                yield Path(name)
    except filelock.Timeout as error:
        raise CommandError(f"{FOLDER}: another benchmark is running; wait for it to end") from error


def summary(results: Results) -> dict[str, Any]:
    """The figures of every round, what failed and why, and the goals, for JSON."""
    cases = [{**dataclasses.asdict(case), "rounds": rounds} for case, rounds in results.rounds.items()]
    failures = [{**dataclasses.asdict(case), "failure": why} for case, why in results.failures.items()]
    values = [(goal, measured(goal, results)) for goal in GOALS]
    goals = [{**dataclasses.asdict(goal), "measured": value, "verdict": verdict(goal, value)} for goal, value in values]
    return {"cases": cases, "failures": failures, "goals": goals}


if __name__ == "__main__":
    sys.exit(main())
