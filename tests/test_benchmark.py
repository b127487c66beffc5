"""The benchmark: all contenders give what the source has; one that doesn't ends the run before anything is timed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import benchmark
import sample
from benchmark import CASES, Batch, Batches, Case, Contender, Figures
from conftest import hearing
from publishing.command import CommandError

ROWS = 300


def in_this_process(contender: Contender[Any], measure: str, folder: Path, python: str) -> Figures:
    """Runs a contender as `in_own_process` does, without the seconds that a process takes to import."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        return dict(benchmark.MEASURES[measure](contender.func(**contender.keywords)))
    finally:
        os.chdir(before)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lets contenders run in this process, through one epoch; the folder for temporary files."""
    monkeypatch.setattr(benchmark, "FOLDER", tmp_path / "benchmark")
    monkeypatch.setattr(benchmark, "in_own_process", in_this_process)
    monkeypatch.setitem(benchmark.MEASURES, "epochs", benchmark.timed_once)
    return tmp_path / "benchmark"


def test_all_contenders_but_tfds_give_the_rows_of_the_source(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [case for case in CASES if case != "convert-all"]  # convert-rgb has the same contenders
    left_out = {"TFDS", *([] if importlib.util.find_spec("torch") else ['a DataLoader of `with_format("torch")`'])}
    path = tmp_path / "figures.json"
    assert benchmark.main(["--rows", str(ROWS), "--rounds", "1", "--json", str(path), "--only", *asked]) == 0
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert {case: {*names} for case, names in cases.items()} == {
        case: {*CASES[case].contenders} - left_out for case in asked
    }
    for contenders in cases.values():
        for figures in contenders.values():
            median, least, most = figures["rate"]
            assert 0 < least <= median <= most
    assert all(figures["rate"][0] < ROWS / benchmark.DELAY for figures in cases["keys"].values())
    assert benchmark.readme_table(cases) in capsys.readouterr().out
    assert not [*quick.iterdir()]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with source files in `source`. Read only."""
    folder = tmp_path_factory.mktemp("inputs")
    sample.write_sample(folder / "source", {"train": ROWS})
    return folder


def changed(config: str, change: Callable[[Batch], Batch]) -> Batches:
    """Gives rows of the source, in an order of its own and with columns changed."""
    rows = np.arange(ROWS)[::-7]
    with h5py.File("source/training.h5") as file:
        arrays = {name: file[name][:][rows] for name in benchmark.ARRAYS}
    batch = {**benchmark.converted(config, arrays), "sample_id": rows}
    return lambda number: iter([{**batch, **change(batch)}])


@pytest.mark.parametrize(
    ("config", "change", "wrong"),
    [
        ("all", lambda batch: {}, ""),
        ("all", lambda batch: {"sentinel2": np.nextafter(batch["sentinel2"], np.float32(9))}, "sentinel2"),
        ("all", lambda batch: {"sentinel2": batch["sentinel2"].astype("f8")}, "sentinel2"),
        ("all", lambda batch: {"sentinel1": batch["sentinel1"][..., ::-1]}, "sentinel1"),
        ("all", lambda batch: {"label": batch["label"][::-1]}, "label"),
        ("all", lambda batch: {"sample_id": batch["sample_id"][::-1]}, "sentinel1"),
        ("rgb", lambda batch: {"image": np.minimum(batch["image"], 254) + 1}, ""),  # as JPEG may
        ("rgb", lambda batch: {"image": batch["image"][..., ::-1]}, "image"),
        ("rgb", lambda batch: {"image": batch["image"][::-1]}, "image"),
    ],
)
def test_a_wrong_value_is_found(
    source: Path, monkeypatch: pytest.MonkeyPatch, config: str, change: Callable[[Batch], Batch], wrong: str
) -> None:
    monkeypatch.chdir(source)
    with pytest.raises(ValueError, match=f"^{wrong} of the first batch") if wrong else contextlib.nullcontext():
        benchmark.compared(changed(config, change))


def test_a_wrong_contender_ends_the_run_before_anything_is_timed(
    quick: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contenders = {
        "right": Contender(changed, config="all", change=lambda batch: {}),
        "wrong": Contender(changed, config="all", change=lambda batch: {"label": 16 - batch["label"]}),
    }
    monkeypatch.setattr(benchmark, "CASES", {"case": Case("what is done", "once", contenders)})
    with pytest.raises(ValueError, match="label"):  # of another process it would be a CommandError
        benchmark.main(["--rows", str(ROWS), "--only", "case"])
    assert "what is done" not in capsys.readouterr().out
    assert not [*quick.iterdir()]


def test_a_contender_has_a_process_of_its_own_whose_failure_is_named(tmp_path: Path) -> None:
    inputs = Contender(benchmark.make_inputs, rows=17)
    assert benchmark.in_own_process(inputs, "work", tmp_path, sys.executable)["seconds"] > 0
    assert (tmp_path / "so2sat" / "README.md").is_file()
    with pytest.raises(CommandError, match=r"hdf5_dataset.*FileNotFoundError"):
        benchmark.in_own_process(Contender(benchmark.hdf5_dataset), "once", tmp_path / "so2sat", sys.executable)


def test_a_row_of_the_table_says_how_many_times_as_fast_the_first_contender_is() -> None:
    measured = {"a stream": {"rate": [20.0, 10.0, 30.0]}, "TFDS": {"rate": [50.0, 40.0, 60.0]}}
    rows = benchmark.readme_table({"epoch-all": measured}).splitlines()[2:]
    assert rows == [f"| {CASES['epoch-all'].text} | 20 | 0.40 × TFDS |"]


def test_the_server_gives_ranges_and_takes_its_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)))
    request = urllib.request.Request(f"{benchmark.serve(tmp_path)}file", headers={"Range": "bytes=10-19"})
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
