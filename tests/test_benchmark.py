"""The benchmark: it compares like with like, counts right, and says what it could not measure."""

from __future__ import annotations

import contextlib
import inspect
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

import benchmark
import contenders
import sample
import so2sat
from benchmark import CASES, GOALS, Bench, Case, Goal, Results
from publishing.command import CommandError

# ── What is measured ─────────────────────────────────────────────────────────────────────────────────────────────────


def _case_of(goal: Goal) -> tuple[str, str, str]:
    return goal.task, goal.config, goal.ours


def test_every_goal_is_about_cases_that_are_measured() -> None:
    for goal in GOALS:
        ours = benchmark.find(*_case_of(goal))
        assert not goal.peer or benchmark.find(ours.task, ours.config, goal.peer) != ours


def test_every_highlight_is_about_cases_that_are_measured() -> None:
    for _, case, others in benchmark.HIGHLIGHTS:
        assert all(benchmark.find(*case[:2], name) for name in (case[2], *others.values()))


def test_cases_are_told_apart_by_task_config_and_name() -> None:
    assert len({(case.task, case.config, case.name) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.task} {case.config} {case.name}")
def test_a_case_is_one_that_the_contenders_understand(case: Case) -> None:
    function: Callable[..., Any] = getattr(contenders, case.function)
    arguments = {name: value for name, value in case.arguments.items() if name != "share"}
    paths = {"output": ""} if case.task in ("convert", "growth") else {}
    places: dict[str, Any] = {"path": "", "config": "", **paths}
    if case.function == "first_example":
        places = {"urls": []}
    inspect.signature(function).bind(None, **places, **arguments)
    if case.function == "epoch":
        options = {name: value for name, value in arguments.items() if name != "form"}
        inspect.signature(contenders.FORMS[case.arguments["form"]]).bind("", "", **options)
    if case.reads:
        assert benchmark.find("convert", "rgb" if case.config == "rgb" else "all", case.reads)
    assert case.peer in ("", *benchmark.PEERS)


# ── Figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────

RATES = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=9)


def rounds(rates: list[float]) -> benchmark.Rounds:
    return [{"rate": rate} for rate in rates]


@given(RATES, st.floats(0.01, 100))
def test_a_contender_that_is_always_k_times_as_fast_has_ratio_k(rates: list[float], factor: float) -> None:
    found = benchmark.ratio(rounds([factor * rate for rate in rates]), rounds(rates), "rate")
    assert found == pytest.approx(factor)


def test_a_disturbance_of_a_whole_round_does_not_change_the_ratio() -> None:
    assert benchmark.ratio(rounds([300, 30, 330]), rounds([100, 10, 110]), "rate") == 3


def test_there_is_no_ratio_to_what_was_not_measured() -> None:
    assert benchmark.ratio(rounds([1.0]), [], "rate") is None


@pytest.mark.parametrize(
    ("value", "at_most", "expected"),
    [
        (2.0, False, "met"),
        (1.99, False, "MISSED"),
        (2.0, True, "met"),
        (2.01, True, "MISSED"),
        (None, True, "not measured"),
    ],
)
def test_a_goal_is_met_missed_or_not_measured(value: float | None, at_most: bool, expected: str) -> None:
    goal = Goal("", 2, "convert", "all", benchmark.PARQUET, at_most=at_most)
    assert benchmark.verdict(goal, value) == expected


def test_a_goal_is_the_ratio_of_two_cases_or_the_median_of_one() -> None:
    results = Results(
        {
            benchmark.find("convert", "all", benchmark.PARQUET): [{"rate": 6, "share_of_source": 0.3}] * 3,
            benchmark.find("convert", "all", benchmark.TFDS): rounds([2, 3, 1]),
        }
    )
    values = {goal.text: benchmark.measured(goal, results) for goal in GOALS}
    assert values["all → Parquet, 1 worker: × TFDS"] == 3
    assert values["bytes of all as Parquet: share of the HDF5"] == 0.3
    assert values["all → Parquet, 1 worker: × row by row"] is None
    lines = benchmark.report_goals(results, ["convert"]).splitlines()
    assert lines[1].split()[-3:] == ["12", "3.00", "MISSED"]
    assert lines[2].endswith("not measured")


def fingerprint(**changes: Any) -> dict[str, Any]:
    return {"rows": 2, "labels": 5, "by_id": 3, "means": [[0.5, 1.0], [0.25, 2.0]], **changes}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"means": [[0.5, 1.00001], [0.25, 2.0]]}, []),
        ({"rows": 3}, ["rows"]),
        ({"labels": 6, "by_id": 4}, ["labels", "by_id"]),
        ({"means": [[0.5, 1.1], [0.25, 2.0]]}, ["values"]),
        ({"means": [[0.5, float("nan")], [0.25, 2.0]]}, ["values"]),
        ({"means": [[0.5, 1.0]]}, ["values"]),
        ({"means": []}, ["values"]),
    ],
)
def test_forms_with_other_rows_labels_or_values_are_told_apart(changes: dict[str, Any], expected: list[str]) -> None:
    assert benchmark.differences(fingerprint(), fingerprint(**changes), 1e-4) == expected


def test_values_that_are_no_numbers_are_alike() -> None:
    same = fingerprint(means=[[float("nan"), float("inf")]])
    assert benchmark.differences(same, dict(same), 1e-4) == []


def test_the_clock_leaves_out_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 10.0, 13.0, 20.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    clock = contenders.Clock(started=0)
    with clock.work(), clock.pause():
        pass
    assert clock.seconds == 20 - 3


# ── Readers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 300 and 17 synthetic rows."""
    folder = tmp_path_factory.mktemp("source")
    sample.write_sample(folder, {"train": 300, "validation": 17})
    return folder


@pytest.fixture(scope="module")
def arrow(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the builder prepares of `source`."""
    folder = tmp_path_factory.mktemp("arrow")
    so2sat.So2Sat(config_name="all", data_dir=str(source), cache_dir=str(folder)).download_and_prepare()
    return folder


def test_an_epoch_of_views_is_every_row_once_in_another_order(arrow: Path, source: Path) -> None:
    batches = [*contenders.FORMS["views"](str(arrow), "all", size=64)(0)]
    assert [len(batch["label"]) for batch in batches] == [64, 64, 64, 64, 44]
    found = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    with so2sat.open_source(str(source / "training.h5")) as file:
        expected = so2sat.read_columns(file, "all", 0, 300)
    order = found["sentinel1"][:, 0, 0, 0].argsort()
    for name, values in found.items():
        assert values.dtype == expected[name].dtype
        assert np.array_equal(values[order], expected[name][expected["sentinel1"][:, 0, 0, 0].argsort()])
    assert not np.array_equal(found["sentinel1"], expected["sentinel1"])


def test_views_are_the_rows_of_any_dataset_and_copy_nothing_but_the_batch(arrow: Path) -> None:
    make = contenders._Views
    train = contenders._arrow(str(arrow), "train")
    columns = ["sentinel2", "label"]
    for dataset in (
        train,
        train.select(range(130, 299)),
        train.select([7, 3, 200]),
        train.filter(lambda label: label > 8, input_columns="label"),
        datasets.concatenate_datasets([contenders._arrow(str(arrow), "validation"), train]),
    ):
        before = pyarrow.total_allocated_bytes()
        patches = make(dataset, columns)
        assert pyarrow.total_allocated_bytes() - before < 1e6  # of up to 26 MB
        order = np.random.default_rng(0).permutation(len(patches))
        assert len(patches) == len(dataset)
        batch, expected = patches[order], dataset.with_format("numpy")[order]
        for name in columns:
            assert batch[name].dtype == expected[name].dtype
            assert np.array_equal(batch[name], expected[name])
    for index in (-1, -300, 300, 10_000):
        with pytest.raises(IndexError):
            make(train, columns)[[0, index]]


@given(st.integers(1, 300), st.integers(1, 100), st.integers(0, 9))
def test_an_epoch_in_blocks_is_every_row_once(block: int, size: int, seed: int) -> None:
    class Stream:
        def iter(self, rows: int) -> Iterator[dict[str, Any]]:
            return ({"label": np.arange(300)[start : start + rows]} for start in range(0, 300, rows))

    found = [batch["label"] for batch in contenders._in_blocks(Stream(), size, block, seed)]
    assert sorted(np.concatenate(found)) == [*range(300)]
    assert max(map(len, found)) <= size


# ── The run ──────────────────────────────────────────────────────────────────────────────────────────────────────────

# Cases of every function and form that needs neither torch nor TFDS.
FEW = [
    case
    for case in CASES
    if case.peer not in ("torch", "tfds")
    and (case.config == "all" or case.function == "jpeg_floor" or (case.config, case.name) == ("sentinel2", "Parquet"))
    and (case.task != "growth" or case.arguments["share"] in (1, 8))
]
NAMES = {(case.task, case.config, case.name) for case in FEW}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where benchmark.py keeps temporary files."""
    monkeypatch.setattr(benchmark, "FOLDER", tmp_path / "benchmark")
    return tmp_path / "benchmark"


def test_every_contender_runs_and_gives_the_rows_of_the_source(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "CASES", FEW)
    monkeypatch.setattr(
        benchmark, "HIGHLIGHTS", [("", case, {}) for _, case, _ in benchmark.HIGHLIGHTS if case in NAMES]
    )
    goals = [goal for goal in GOALS if {_case_of(goal), (*_case_of(goal)[:2], goal.peer or goal.ours)} <= NAMES]
    monkeypatch.setattr(benchmark, "GOALS", goals)
    path = tmp_path / "figures.json"
    peers = [peer for peer in benchmark.PEERS if peer not in ("torch", "tfds")]
    assert benchmark.main(["--rows", "256", "--rounds", "1", "--json", str(path), "--peers", *peers]) == 0
    found = json.loads(path.read_bytes())
    assert [case["name"] for case in found["cases"]] == [case.name for case in FEW]
    assert found["failures"] == []
    assert all(len(case["rounds"]) == 1 for case in found["cases"])
    for case in found["cases"]:
        (figures,) = case["rounds"]
        assert figures["seconds"] > 0
        assert figures["imports"] > 0
        if case["task"] in ("stream", "shuffle"):
            assert figures["rows"] == 256
        if case["task"] == "http":
            assert figures["seconds"] > benchmark.DELAY * 2
            assert figures["megabytes"] > 0
        if case["task"] == "convert" and "floor: read" not in case["name"] and case["name"] != benchmark.JPEG:
            assert figures["bytes_per_row"] > 0
    assert {goal["verdict"] for goal in found["goals"]} <= {"met", "MISSED"}
    printed = capsys.readouterr().out
    assert all(f"\n{case.name} " in printed for case in FEW)
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_what_is_not_asked_for_is_said(source: Path, tmp_path: Path) -> None:
    bench = Bench(tmp_path, source, ["floor"])
    bench.measure("convert", "all", rounds=0)
    text = benchmark.report(bench.results, "convert", "all")
    assert f"{benchmark.LOOP}: not asked for (--peers loop)" in text
    assert "--peers floor" not in text


def answering(monkeypatch: pytest.MonkeyPatch, path: Path, code: str) -> None:
    """Lets a script stand in for contenders.py; `call` is what it was asked for."""
    path.write_text(f"import json, sys\ncall = json.loads(sys.argv[1])\n{code}\n")
    monkeypatch.setattr(benchmark, "CONTENDERS", path)


def test_a_contender_that_fails_is_named_with_its_reason_and_the_others_go_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
if call["arguments"]["form"] == "hdf5 rows":
    sys.exit("Traceback\\n  of many lines\\nOSError: no such drive")
print(json.dumps({"seconds": 2, "imports": 1, "rows": 300, "labels": LABELS}))
"""
    bench = Bench(tmp_path, source, ["random"])
    labels = bench._reference("all")["labels"]
    answering(monkeypatch, tmp_path / "answers.py", code.replace("LABELS", str(labels)))
    cases = [case for case in CASES if case.function == "epoch" and not case.reads and case.peer in ("", "random")]
    monkeypatch.setattr(benchmark, "CASES", cases)
    for task, config in dict.fromkeys((case.task, case.config) for case in cases):
        bench.measure(task, config, 2)
    (failed,) = bench.results.failures
    assert failed.arguments["form"] == "hdf5 rows"
    assert bench.results.failures[failed] == "can't run: OSError: no such drive"
    assert all(len(of_case) == 2 for of_case in bench.results.rounds.values())
    assert bench.results.rounds[cases[0]][0]["rate"] == 150
    assert "can't run: OSError: no such drive" in benchmark.report(bench.results, failed.task, failed.config)


def test_half_of_what_others_would_read_is_removed_and_its_reason_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
open(call["arguments"]["output"] + "/so2sat-train.arrow", "w").write("half")
sys.exit("OSError: no space left\\nDatasetGenerationError: can't go on")
"""
    bench = Bench(tmp_path, source, [])
    answering(monkeypatch, tmp_path / "answers.py", code)
    reasons = []
    for name in ("Arrow, map style", "Arrow, views"):
        with pytest.raises(benchmark.Failure) as failure:
            bench._run(benchmark.find("shuffle", "all", name))
        reasons.append(str(failure.value))
    assert reasons[0] == "DatasetGenerationError: can't go on ← OSError: no space left"
    assert reasons[1] == f"nothing to read, {benchmark.ARROW}: can't run: {reasons[0]}"
    assert not [*tmp_path.rglob("*.arrow")]


def test_a_contender_that_reads_other_rows_ends_the_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, source, [])
    bench._reference("all")
    answering(monkeypatch, tmp_path / "answers.py", 'print(json.dumps({"seconds": 2, "rows": 299, "labels": 1}))')
    with pytest.raises(CommandError, match="builder, from HDF5: gave other rows or labels than the source has"):
        bench._run(benchmark.find("stream", "all", "builder, from HDF5"))


def test_a_contender_that_writes_other_values_ends_the_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, source, [])
    reference = bench._reference("all")
    reference["means"][0][0] += 1
    with pytest.raises(CommandError, match=r"convert all, builder → Arrow: values differ from the source"):
        bench._run(benchmark.find("convert", "all", benchmark.ARROW))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--rows", "16"], "--rows is 16, expected 17 or more"),
        (["--rounds", "0"], "--rounds is 0, expected 1 or more"),
        (["--json", "/nowhere/figures.json"], "No such file or directory: '/nowhere/figures.json'"),
        (["--json", "/"], "Is a directory: '/'"),
    ],
)
def test_a_wrong_option_is_told_before_anything_runs(
    folder: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(arguments) == 1
    assert expected in capsys.readouterr().err
    assert not folder.exists()


def test_an_input_folder_without_source_files_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--input", str(tmp_path)]) == 1
    assert "training.h5: no such file" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_what_a_killed_run_left_goes_unless_it_is_at_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.joinpath("run-killed", "forms").mkdir(parents=True)
    with benchmark._folder() as mine:
        assert {path.name for path in folder.iterdir()} == {"lock", mine.name}
        assert benchmark.main([]) == 1
        assert mine.exists()
    assert "another benchmark is running; wait for it to end" in capsys.readouterr().err


def test_an_environment_of_tfds_that_can_not_be_made_is_no_error_of_the_others(
    folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    monkeypatch.setattr(benchmark, "TFDS_PACKAGES", ("./no-such-package",))
    bench = Bench(folder, source, ["tfds"])
    assert isinstance(bench.tfds_python, str)
    with pytest.raises(benchmark.Failure, match="no-such-package"):
        bench.child("tfds_build", {}, tfds=True)
    assert not (folder / "tfds").exists()


# ── Instruments ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_server_gives_ranges_counts_and_takes_its_time(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "file").write_bytes(content)
    with benchmark.Server(tmp_path) as server:
        url = f"http://127.0.0.1:{server.server_port}/file"
        before = time.perf_counter()
        for asked, expected in (("bytes=10-19", content[10:20]), ("bytes=255990-", content[255990:]), ("", content)):
            request = urllib.request.Request(url, headers={"Range": asked} if asked else {})
            with urllib.request.urlopen(request) as answer:
                assert answer.read() == expected
                assert answer.status == (206 if asked else 200)
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
            assert int(answer.headers["Content-Length"]) == len(content)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}s")
        assert time.perf_counter() - before >= 5 * benchmark.DELAY
        server.shutdown()
    assert (server.requests, server.bytes) == (5, 20 + len(content))


def test_memory_is_that_of_a_process_with_its_children() -> None:
    code = "import subprocess, sys, time; held = bytearray(b'x') * {}; {}; time.sleep(1)"
    child = code.format(60_000_000, "pass")
    parent = code.format(60_000_000, f"subprocess.run([sys.executable, '-c', {child!r}])")
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        peak = benchmark.Peak(process.pid)
        process.wait()
        peak.stop()
    assert 120e6 < peak.bytes < 250e6


def test_an_interrupt_ends_the_contender_too(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "alive"
    answering(monkeypatch, tmp_path / "answers.py", f"import time; time.sleep(3); open({str(marker)!r}, 'w')")

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    bench = Bench(tmp_path, source, [])
    monkeypatch.setattr(subprocess.Popen, "communicate", interrupt)
    with contextlib.suppress(KeyboardInterrupt):
        bench.child("epoch", {})
    time.sleep(3.5)
    assert not marker.exists()
