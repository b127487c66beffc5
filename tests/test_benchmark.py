"""The benchmark: all contenders give what the source has; one that doesn't ends the run before anything is timed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmark
from benchmark import CASES, Batch, Batches, Bench, Case, Contender, Figures
from conftest import hearing
from publishing.command import CommandError

ROWS = 300
# Cases that have every contender, in both configs.
MOST = ("convert-all", "process-rgb", "epoch-all", "shuffled-rgb", "keys", "first")


def in_this_process(contender: Contender[Any], measure: str, folder: Path, python: str) -> Figures:
    """Runs a contender as `in_own_process` does, without the second that a process takes to import."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        figures = benchmark.MEASURES[measure](contender.func(**contender.keywords))
    finally:
        os.chdir(before)
    return {**figures, "memory": 1.0, "process": 1.0}


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lets contenders run in this process, through one epoch; the folder for temporary files."""
    monkeypatch.setattr(benchmark, "FOLDER", tmp_path / "benchmark")
    monkeypatch.setattr(benchmark, "in_own_process", in_this_process)
    monkeypatch.setitem(benchmark.MEASURES, "epochs", benchmark.timed_once)
    return tmp_path / "benchmark"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What contenders read, but for TensorFlow Datasets'. Read only."""
    folder = tmp_path_factory.mktemp("inputs")
    in_this_process(Contender(benchmark.make_inputs, rows=ROWS), "work", folder, "")
    return folder


@pytest.mark.timeout(600)  # it runs all of them
def test_all_contenders_but_tfds_give_the_rows_of_the_source(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contenders_of_all = {one.func for case in CASES.values() for one in case.contenders.values()}
    assert contenders_of_all == {one.func for name in MOST for one in CASES[name].contenders.values()}
    left_out = [benchmark.TFDS, *([] if importlib.util.find_spec("torch") else [benchmark.LOADER])]
    path = tmp_path / "figures.json"
    assert benchmark.main(["--rows", str(ROWS), "--rounds", "1", "--json", str(path), "--only", *MOST]) == 0
    cases = json.loads(path.read_text())["cases"]
    assert {case: [*names] for case, names in cases.items()} == {
        name: [contender for contender in CASES[name].contenders if contender not in left_out] for name in MOST
    }
    for name, contenders in cases.items():
        for figures in contenders.values():
            assert all(0 < least <= median <= most for median, least, most in figures.values())
            assert ("bytes" in figures) == (CASES[name].measure in ("work", "process"))
    assert all(
        figures["seconds"][0] > benchmark.DELAY for name in ("keys", "first") for figures in cases[name].values()
    )
    assert len(path.read_text().splitlines()) < 200
    assert benchmark.readme_table(cases) in capsys.readouterr().out
    assert not [*quick.iterdir()]


def contender(change: str, config: str = "all") -> Batches:
    """Gives what the source has, with something changed in the first batch."""

    def batches(number: int) -> Iterator[Batch]:
        for start, batch in enumerate(benchmark.reference("source", config)(number)):
            if start == 0 and change:
                exec(change, {"np": np}, {**batch, "batch": batch})
            yield batch

    return batches


@pytest.mark.parametrize(
    ("config", "change", "wrong"),
    [
        ("all", "", ""),
        ("all", "sentinel2[3, 4, 5, 6] = np.nextafter(sentinel2[3, 4, 5, 6], np.float32(9))", "sentinel2"),
        ("all", "sentinel1[3, [4, 5]] = sentinel1[3, [5, 4]]", "sentinel1"),
        ("all", "two = np.unique(label, return_index=True)[1][:2]; label[two] = label[two[::-1]]", "label × id"),
        ("all", "label[0] = (label[0] + 1) % 17", "label"),
        ("all", "sample_id[:] += 1", "id"),
        ("all", "batch.update({name: values[1:] for name, values in batch.items()})", "rows"),
        ("rgb", "image[:, 0] = np.minimum(image[:, 0], 254) + 1", ""),  # as JPEG may
        ("rgb", "image[:] = image[..., ::-1]", "image"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_found(
    quick: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch, config: str, change: str, wrong: str
) -> None:
    one = Contender(contender, change=change, config=config)
    monkeypatch.setattr(benchmark, "CASES", {"case": Case("", "epochs", {"contender": one})})
    bench = Bench(inputs, "", {}, None)
    if not wrong:
        bench.compare("case")
        return
    with pytest.raises(CommandError, match=f"case, contender: sum of {wrong} is"):
        bench.compare("case")


def test_a_wrong_value_ends_the_run_before_anything_is_timed(
    quick: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right, wrong = Contender(contender, change=""), Contender(contender, change="label[0] = 16 - label[0]")
    cases = {"one": Case("", "epochs", {"right": right}), "two": Case("", "epochs", {"wrong": wrong})}
    monkeypatch.setattr(benchmark, "CASES", cases)
    assert benchmark.main(["--rows", str(ROWS), "--only", "one", "two"]) == 1
    output = capsys.readouterr()
    assert "two, wrong: " in output.err
    assert "first ÷ it" not in output.out
    assert not [*quick.iterdir()]


def test_a_contender_has_a_process_of_its_own_whose_failure_is_named(inputs: Path) -> None:
    right = Contender(benchmark.reference, source="source", config="rgb")
    found = benchmark.in_own_process(right, "sums", inputs, sys.executable)
    assert found["sums"] == in_this_process(right, "sums", inputs, "")["sums"]
    assert found["memory"] > 10
    with pytest.raises(CommandError, match=r"reference.*nowhere.*FileNotFoundError"):
        benchmark.in_own_process(Contender(right.func, source="nowhere", config="all"), "sums", inputs, sys.executable)


def test_the_table_has_eight_rows_that_say_how_many_times_as_fast(capsys: pytest.CaptureFixture[str]) -> None:
    rates = {name: {other: {"rate": [50.0, 40.0, 60.0]} for other in case.contenders} for name, case in CASES.items()}
    rates["keys"][benchmark.STREAM]["rate"] = [20.0, 10.0, 30.0]
    rows = benchmark.readme_table(rates).splitlines()[2:]
    assert len(rows) == 8
    assert all("1.00 × " in row for row in rows[:-1])
    assert rows[-1].endswith(f"| 20 | 0.40 × {benchmark.RANGES} |")


def test_the_server_gives_ranges_and_takes_its_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)))
    request = urllib.request.Request(f"{benchmark.serve(tmp_path)}/file", headers={"Range": "bytes=10-19"})
    before = time.perf_counter()
    with urllib.request.urlopen(request) as answer:
        assert answer.read() == bytes(range(10, 20))
    assert time.perf_counter() - before > benchmark.DELAY


def test_ctrl_c_ends_what_was_started_and_leaves_nothing(tmp_path: Path) -> None:
    code = "import pathlib, sys, benchmark; benchmark.FOLDER = pathlib.Path(sys.argv[1]); sys.exit(benchmark.main([]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with hearing([sys.executable, "-c", code, str(tmp_path)], env=environment, stderr=subprocess.PIPE) as process:
        while not [*tmp_path.glob("*/source/*")]:
            assert process.poll() is None
            time.sleep(0.05)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, check=True).stdout.split()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.split() == [b"interrupted"]
    assert not [*tmp_path.iterdir()]
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(int(child), 0)
