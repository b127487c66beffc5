"""Measures this project against other ways to do the same, side by side, and prints the ratios beside the goals."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import http.server
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py

import command
import sample
import so2sat
from command import CommandError

CONTENDERS = Path(__file__).with_name("contenders.py")
FOLDER = Path(__file__).parents[1] / "build" / "benchmark"  # temporary files, and the environment of TFDS
TFDS_PACKAGES = ("tensorflow-cpu", "tensorflow-datasets==4.9.10", "importlib_resources", "h5py")
DELAY = 0.05  # seconds that the server waits before it answers
SHARES = (1, 2, 4, 8)  # of eighths of the training split, to see whether time grows with rows

PEERS: Mapping[str, str] = {
    "loop": "a builder that reads HDF5 row by row, as loading scripts do",
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
  python scripts/benchmark.py --peers tfds loop floor --rounds 5
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
        needs: Form that it reads, of FORMS; the source files if empty.
        makes: Form that its output is, of contenders.FORMS, if there is one to compare.
    """

    task: str
    config: str
    name: str
    function: str
    peer: str = ""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    needs: str = ""
    makes: str = ""


def _cases() -> Iterator[Case]:
    for config in ("all", "rgb"):
        yield Case("convert", config, "Parquet, 1 worker", "build", arguments={"workers": 1}, makes="repository")
        yield Case("convert", config, "Parquet, 2 workers", "build", arguments={"workers": 2}, makes="repository")
        yield Case("convert", config, "builder → Arrow", "builder", makes="arrow")
        yield Case("convert", config, "builder → Arrow, 2 proc.", "builder", arguments={"workers": 2}, makes="arrow")
        yield Case("convert", config, "row by row → Arrow", "loop", "loop", makes="arrow")
        if config == "all":
            yield Case("convert", config, "load_dataset('hdf5')", "hdf5", "hdf5", makes="arrow")
        yield Case(
            *("convert", config, "Arrow → default Parquet", "default_parquet", "parquet"),
            needs="arrow",
            makes="default parquet",
        )
        yield Case("convert", config, "TFDS → TFRecord", "tfds_build", "tfds", makes="records")
        yield Case("convert", config, "floor: read HDF5", "read_floor", "floor")
        encoder = ("encode", "encode_floor") if config == "all" else ("JPEG", "jpeg_floor")
        yield Case("convert", config, f"floor: {encoder[0]}", encoder[1], "floor")
    for config, columns in (("all", None), ("rgb", None), ("sentinel2", ["sentinel2", "label"])):
        arguments = {"size": 128, "columns": columns}
        yield Case("stream", config, "Parquet", "epoch", arguments=arguments, needs="repository")
        yield Case("stream", config, "builder, from HDF5", "epoch", arguments=arguments, needs="source")
        yield Case("stream", config, "default Parquet", "epoch", "parquet", arguments, "default parquet")
        if config != "rgb":
            yield Case("stream", config, "load_dataset('hdf5')", "epoch", "hdf5", arguments, "hdf5 stream")
        yield Case("stream", config, "TFDS", "epoch", "tfds", arguments, "records")
    for config in ("all", "rgb"):
        arguments = {"size": 64, "shuffle": True}
        yield Case("shuffle", config, "Arrow, map style", "epoch", arguments=arguments, needs="arrow")
        yield Case("shuffle", config, "Parquet, shuffled stream", "epoch", arguments=arguments, needs="repository")
        if config == "all":
            yield Case("shuffle", config, "HDF5 by row", "epoch", "random", {"size": 64}, "hdf5 rows")
        yield Case("shuffle", config, "TFDS, file order", "epoch", "tfds", {"size": 64}, "records")
        yield Case("shuffle", config, "TFDS, shuffled", "epoch", "tfds", arguments, "records")
        for workers in (0, 2) if config == "all" else ():
            loader = {"size": 64, "loader_workers": workers}
            end = f", DataLoader {workers}"
            shuffled = {**loader, "shuffle": True}
            yield Case("shuffle", config, f"Arrow{end}", "epoch", "torch", shuffled, "arrow")
            yield Case(
                "shuffle", config, f"Arrow by batch{end}", "epoch", "torch", {**shuffled, "whole": True}, "arrow"
            )
            yield Case("shuffle", config, f"Parquet stream{end}", "epoch", "torch", shuffled, "repository")
            yield Case("shuffle", config, f"HDF5 by row{end}", "epoch", "torch", loader, "hdf5 rows")
    for config in ("all", "rgb"):
        yield Case("http", config, "Parquet", "first_example", needs="repository")
        yield Case("http", config, "default Parquet", "first_example", "parquet", needs="default parquet")
    for share in SHARES:
        yield Case("growth", "all", f"Parquet, {share}/8 of rows", "build", arguments={"workers": 1, "share": share})
    for share in SHARES:
        yield Case("growth", "all", f"builder → Arrow, {share}/8", "builder", arguments={"share": share})


CASES = tuple(_cases())

# What makes the forms that other tasks read, where it was not measured: the first case with that output.
FORM_MAKERS = {(case.makes, case.config): case for case in reversed(CASES) if case.makes and case.peer != "hdf5"}


@dataclasses.dataclass(frozen=True)
class Goal:
    """A bound of a ratio: that of a contender to another of the same task and config, or of a figure alone."""

    text: str
    bound: float
    task: str
    config: str
    ours: str
    peer: str = ""
    figure: str = "rate"
    at_most: bool = False


_BUILD, _ARROW = "Parquet, 1 worker", "builder → Arrow"
GOALS = (
    Goal("all → Parquet, 1 worker: × TFDS", 12, "convert", "all", _BUILD, "TFDS → TFRecord"),
    Goal("all → Parquet, 1 worker: × row by row", 1.6, "convert", "all", _BUILD, "row by row → Arrow"),
    Goal("all → Parquet, 1 worker: share of the encoding floor", 0.75, "convert", "all", _BUILD, "floor: encode"),
    Goal("all → Parquet, 2 workers: × 1 worker", 1.8, "convert", "all", "Parquet, 2 workers", _BUILD),
    Goal("rgb → Parquet, 1 worker: × TFDS", 5, "convert", "rgb", _BUILD, "TFDS → TFRecord"),
    Goal("rgb → Parquet, 1 worker: × row by row", 2.5, "convert", "rgb", _BUILD, "row by row → Arrow"),
    Goal("rgb → Parquet, 1 worker: share of the JPEG floor", 0.6, "convert", "rgb", _BUILD, "floor: JPEG"),
    Goal("builder → Arrow, all: × TFDS", 10, "convert", "all", _ARROW, "TFDS → TFRecord"),
    Goal("builder → Arrow, all: × row by row", 1.3, "convert", "all", _ARROW, "row by row → Arrow"),
    Goal("bytes of all: share of the HDF5", 0.31, "convert", "all", _BUILD, "", "share_of_source", at_most=True),
    Goal("stream all, batches of 128: × TFDS", 1.8, "stream", "all", "Parquet", "TFDS"),
    Goal(
        "shuffled epoch from Arrow: × TFDS in file order", 1.2, "shuffle", "all", "Arrow, map style", "TFDS, file order"
    ),
    Goal("shuffled epoch from Arrow: × HDF5 by row", 3, "shuffle", "all", "Arrow, map style", "HDF5 by row"),
    Goal("first example over HTTP: MB", 8, "http", "all", "Parquet", "", "megabytes", at_most=True),
    Goal(
        *("first example over HTTP: share of default Parquet's bytes", 0.25, "http", "all", "Parquet"),
        *("default Parquet", "megabytes", True),
    ),
    Goal(
        *("time per row: all rows against an eighth", 1.1, "growth", "all", "Parquet, 8/8 of rows"),
        *("Parquet, 1/8 of rows", "seconds_per_row", True),
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

    def find(self, task: str, config: str, name: str) -> Case:
        """Finds a case by what identifies it."""
        return next(case for case in CASES if (case.task, case.config, case.name) == (task, config, name))


def ratio(ours: Rounds, other: Rounds, figure: str) -> float | None:
    """Median of the ratios of a figure, round by round, as what disturbs a round disturbs both; None without rounds."""
    pairs = [(one[figure], two[figure]) for one, two in zip(ours, other) if figure in one and figure in two]
    return statistics.median(one / two for one, two in pairs) if pairs else None


def measured(goal: Goal, results: Results) -> float | None:
    """What a goal is about, None if it was not measured."""
    ours = results.rounds.get(results.find(goal.task, goal.config, goal.ours), [])
    if goal.peer:
        return ratio(ours, results.rounds.get(results.find(goal.task, goal.config, goal.peer), []), goal.figure)
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


def report(results: Results, task: str, config: str) -> str:
    """Table of the contenders at a task."""
    cases = [case for case in CASES if (case.task, case.config) == (task, config)]
    rows = [["", "rows/s", "least", "most", "first / it", "start s", "peak MB", "bytes/row"]]
    if task == "http":
        rows = [["", "seconds", "least", "most", "first / it", "start s", "requests", "MB"]]
    first = results.rounds.get(cases[0], [])
    notes = []
    for case in cases:
        if case in results.failures:
            notes.append(f"  {case.name}: {results.failures[case]}")
        elif rounds := results.rounds.get(case):
            middle = {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}
            speeds = [figures["seconds" if task == "http" else "rate"] for figures in rounds]
            digits = ".2f" if task == "http" else ",.0f"
            relative = ratio(first, rounds, "seconds" if task == "http" else "rate")
            last = ("requests", "megabytes") if task == "http" else ("peak_megabytes", "bytes_per_row")
            rows.append(
                [case.name]
                + [f"{speed:{digits}}" for speed in (statistics.median(speeds), min(speeds), max(speeds))]
                + [f"{relative:.2f}" if relative else "", f"{middle['imports']:.1f}"]
                + [f"{middle[name]:,.{1 if name == 'megabytes' else 0}f}" if name in middle else "" for name in last]
            )
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


def differences(one: Mapping[str, Any], other: Mapping[str, Any], tolerance: float) -> list[str]:
    """Names of what differs between two fingerprints.

    Args:
        one: What contenders.fingerprint gave.
        other: The same of another contender.
        tolerance: By how much the means of a patch may differ.
    """
    names = [name for name in ("rows", "labels", "by_id") if one[name] != other[name]]
    flat = [[value for patch in each["means"] for value in patch] for each in (one, other)]
    if len(flat[0]) != len(flat[1]) or any(not abs(a - b) <= tolerance for a, b in zip(*flat)):
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
                    block = file.read(min(1 << 16, last - first + 1))
                    self.wfile.write(block)
                    first += len(block)
                    self.server.bytes += len(block)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Bench:
    """Runs cases; all that is written goes to a temporary folder."""

    def __init__(self, folder: Path, source: Path, peers: Sequence[str]) -> None:
        """Takes the temporary folder, the folder of the source files and the peers to measure."""
        self.folder, self.source, self.peers = folder, source, peers
        self.results = Results()
        self.forms: dict[tuple[str, str], Path] = {}
        self.fingerprints: dict[str, Any] = {}
        self.verified: set[Case] = set()
        self.rows: dict[str, int] = {}
        self.source_bytes = 0
        for split, name in so2sat.SOURCE_FILES.items():
            if split != "test" or (source / name).exists():
                with so2sat.open_source(str(source / name)) as file:
                    self.rows[split] = file.rows
                    self.source_bytes += file.bytes
        self.tfds_python: Path | str = "TFDS was not asked for"

    def measure(self, task: str, config: str, rounds: int) -> None:
        """Runs the contenders of a task in turn, again and again."""
        cases = [case for case in CASES if (case.task, case.config) == (task, config)]
        for case in cases:
            if case.peer and case.peer not in self.peers:
                self.results.failures[case] = f"not asked for (--peers {case.peer})"
            elif case.peer == "torch" and not importlib.util.find_spec("torch"):
                self.results.failures[case] = "can't run: torch is not installed"
        for number in range(rounds):
            for case in cases:
                if case not in self.results.failures:
                    print(f"\r\033[K{task} {config}, round {number + 1}/{rounds}: {case.name}", end="", file=sys.stderr)
                    try:
                        self.results.rounds.setdefault(case, []).append(self._run(case))
                    except Failure as error:
                        self.results.failures[case] = f"can't run: {error}"
                        self.results.rounds.pop(case, None)
        print("\r\033[K", end="", file=sys.stderr)

    def _run(self, case: Case) -> dict[str, float]:
        arguments, source, rows = dict(case.arguments), self.source, sum(self.rows.values())
        if case.peer:
            rows -= self.rows.get("test", 0)
        if "share" in arguments:
            source, rows = self._part(arguments.pop("share"))
        output = self.folder / "output"
        shutil.rmtree(output, ignore_errors=True)
        os.sync()  # what others have written is on the disk
        output.mkdir()
        target = output / "so2sat" if case.function == "build" else output
        if case.function == "first_example":
            return self._first_example(self.form(case.needs, case.config))
        if case.needs:
            arguments.update({"path": str(self.form(case.needs, case.config))})
        else:
            arguments["source"] = str(source)
        arguments["config"] = case.config if case.config in so2sat.CONFIGS else "all"
        if case.function == "epoch":
            arguments["form"] = case.needs
        elif not case.function.endswith("read_floor") and case.function != "jpeg_floor":
            arguments["output"] = str(target)
        figures = self.child(case.function, arguments, tfds=case.peer == "tfds")
        labels = figures.pop("labels", None)
        rows = int(figures.setdefault("rows", rows))
        figures["rate"], figures["seconds_per_row"] = rows / figures["seconds"], figures["seconds"] / rows
        if case.task in ("convert", "growth"):
            size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
            if size:
                figures["bytes_per_row"] = size / rows
                figures["share_of_source"] = size / rows / (self.source_bytes / sum(self.rows.values()))
        if case.makes:
            self._verify(case, target)
            if FORM_MAKERS[case.makes, case.config].peer == case.peer and (case.makes, case.config) not in self.forms:
                self.forms[case.makes, case.config] = self._keep(case.makes, case.config, target)
        elif labels is not None and (figures["rows"], labels) != (self.rows["train"], self._reference("all")["labels"]):
            raise CommandError(f"{case.task} {case.name}: gave other rows or labels than the source has")
        shutil.rmtree(output)
        return figures

    def form(self, name: str, config: str) -> Path:
        """Path of a form of the data, made now if it was not before."""
        if name in ("source", "hdf5 stream", "hdf5 rows"):
            return self.source
        config = config if config in so2sat.CONFIGS else "all"
        if (name, config) not in self.forms:
            case = FORM_MAKERS[name, config]
            if case in self.results.failures:
                raise Failure(f"no {name} to read: {self.results.failures[case]}")
            target = self.folder / "making" / "so2sat"
            target.parent.mkdir()
            path = {"path": str(self.form(case.needs, config))} if case.needs else {"source": str(self.source)}
            if case.function != "build":
                target.mkdir()
            arguments = {**case.arguments, **path, "output": str(target), "config": config}
            self.child(case.function, arguments, tfds=case.peer == "tfds")
            self._verify(case, target)
            self.forms[name, config] = self._keep(name, config, target)
            shutil.rmtree(self.folder / "making")
        return self.forms[name, config]

    def _keep(self, name: str, config: str, path: Path) -> Path:
        kept = self.folder / "forms" / f"{name} {config}".replace(" ", "-") / "so2sat"
        kept.parent.mkdir(parents=True)
        return path.rename(kept)

    def _part(self, share: int) -> tuple[Path, int]:
        """Folder with so many eighths of the training split, and its rows in all."""
        folder, train = self.folder / f"part-{share}", self.rows["train"] * share // max(SHARES)
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

    def _first_example(self, path: Path) -> dict[str, float]:
        files = sorted(path.rglob("train*.parquet"))
        with Server(path) as server:
            base = f"http://127.0.0.1:{server.server_port}"
            urls = [f"{base}/{file.relative_to(path).as_posix()}" for file in files]
            figures = self.child("first_example", {"urls": urls})
            server.shutdown()
        return {**figures, "requests": server.requests, "megabytes": server.bytes / 1e6}

    def _reference(self, config: str) -> Any:
        if config not in self.fingerprints:
            arguments = {"form": "source", "path": str(self.source), "config": config}
            self.fingerprints[config] = self.child("fingerprint", arguments)
        return self.fingerprints[config]

    def _verify(self, case: Case, path: Path) -> None:
        """Makes sure, once, that a contender wrote the rows of the source."""
        if case not in self.verified:
            arguments = {"form": case.makes, "path": str(path), "config": case.config}
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
            lines = [line.strip() for line in err.splitlines() if line.strip()]
            raise Failure(lines[-1][:300] if lines else f"ended with {process.returncode}")
        figures: dict[str, Any] = json.loads(out.splitlines()[-1])
        return {**figures, "peak_megabytes": peak.bytes / 1e6} if peak.bytes else figures


class Peak(threading.Thread):
    """Watches how much memory the processes of a session hold together; 0 bytes where there is no /proc."""

    def __init__(self, session: int) -> None:
        """Starts to watch."""
        super().__init__(daemon=True)
        self.bytes, self._session, self._stopped = 0, session, threading.Event()
        self.start()

    def run(self) -> None:
        """Looks ten times a second."""
        while not self._stopped.wait(0.1):
            total = 0
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                except OSError:  # it has ended
                    continue
                if int(fields[3]) == self._session:
                    total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
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
    names = ("datasets", "pyarrow", "numpy", "h5py", "pillow", "huggingface_hub")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} × {processor}, {platform.platform()}",
        "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}},
        "input": {"rows": bench.rows, "bytes": bench.source_bytes, "folder": str(bench.source)},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    listed = [f"  {name:8} {text}" for name, text in [("tasks:", ""), *TASKS.items(), ("peers:", ""), *PEERS.items()]]
    parser = command.parser(
        "Measures this project against other ways to do the same. Contenders take turns, each in a process of its own;"
        " ratios are medians over the rounds. Interpreter start and imports are not in the rates, and neither is the"
        " start of build.py's workers. Sources and forms are in the page cache; what was written is on the disk before"
        " the next contender starts. A second epoch is timed, not the first.",
        EXAMPLES + "\n" + "\n".join(listed),
    )
    parser.add_argument("--rows", type=int, default=8192, help="of the synthetic training split (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help="see below")
    peers = [peer for peer in PEERS if peer != "tfds"]
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=peers, metavar="PEER", help="default: all but tfds"
    )
    parser.add_argument("--input", type=Path, metavar="FOLDER", help="with source files, instead of synthetic ones")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the figures of every round")
    return command.run(_run, parser, argv)


def _run(options: argparse.Namespace) -> None:
    if options.rounds < 1:
        raise CommandError(f"--rounds is {options.rounds}, expected 1 or more")
    if options.json:
        options.json.touch()  # an error now, not after an hour
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary files go then too
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix="run-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if options.input:
            source = options.input.expanduser().resolve()
        else:
            source = folder / "source"
            sample.write_sample(source, {"train": options.rows, "validation": len(so2sat.LABELS)})
        bench = Bench(folder, source, options.peers)
        if "tfds" in options.peers:
            bench.tfds_python = make_tfds_environment()
        facts = about(bench)
        print(f"{facts['date']}, {facts['machine']}")
        print(", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
        print(f"input: {bench.rows} rows, {bench.source_bytes:,} bytes; {options.rounds} rounds\n", flush=True)
        for task, config in dict.fromkeys((case.task, case.config) for case in CASES if case.task in options.tasks):
            for path in source.iterdir():
                with path.open("rb") as file:  # into the page cache
                    while file.read(1 << 24):
                        pass
            bench.measure(task, config, options.rounds)
            print(report(bench.results, task, config), flush=True)
    print(report_goals(bench.results, options.tasks))
    if options.json:
        rounds = [
            {**dataclasses.asdict(case), "rounds": figures, "failure": bench.results.failures.get(case)}
            for case, figures in bench.results.rounds.items()
        ]
        failures = [{**dataclasses.asdict(case), "failure": why} for case, why in bench.results.failures.items()]
        goals = [
            {**dataclasses.asdict(goal), "measured": value, "verdict": verdict(goal, value)}
            for goal in GOALS
            for value in [measured(goal, bench.results)]
        ]
        everything = {**facts, "cases": rounds, "failures": failures, "goals": goals}
        options.json.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
