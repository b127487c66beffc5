"""A build on a Dask cluster is a build."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import build
import so2sat
from conftest import SMALL, contents
from publishing import executors, shards
from publishing.command import CommandError

PROJECT = Path(so2sat.__file__).parent

pytestmark = pytest.mark.timeout(120)


def test_the_shards_of_a_lost_dask_worker_are_made_by_others(
    large_source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "so2sat"
    killed = []

    def kill() -> None:
        while not list(output.glob("*/*.parquet")):
            time.sleep(0.001)
        workers = multiprocessing.active_children()
        workers[0].kill()
        killed.append(len(workers))

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    build.build(str(large_source), output, workers=2, dask="local", limits=SMALL)
    thread.join()
    assert killed == [2]
    assert contents(output) == undisturbed


@contextlib.contextmanager
def cluster(folder: Path, python_path: str) -> Iterator[str]:
    """A Dask cluster of one worker whose Python looks for modules there too; gives its address."""
    dask, address = Path(sys.executable).with_name("dask"), folder / "scheduler.json"
    start = [[dask, "scheduler", "--port", "0", "--dashboard-address", ":0", "--host", "127.0.0.1"], [dask, "worker"]]
    processes = [
        subprocess.Popen(
            [*map(str, command), "--scheduler-file", str(address)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": python_path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for command in start
    ]
    try:
        while not address.exists() or not address.read_text(encoding="utf-8").strip():
            time.sleep(0.05)
        yield json.loads(address.read_bytes())["address"]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_cluster_with_the_project_makes_the_same_repository(
    large_source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    with cluster(tmp_path, str(PROJECT / "scripts")) as address:
        build.build(str(large_source), tmp_path / "so2sat", dask=address, limits=SMALL)
    assert contents(tmp_path / "so2sat") == undisturbed


@pytest.mark.parametrize("version", ["missing", "another"])
def test_a_cluster_without_this_version_of_the_project_is_refused_before_work_starts(
    version: str, small_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if version == "another":
        shutil.copytree(PROJECT / "scripts" / "publishing", tmp_path / "elsewhere" / "publishing")
        module = tmp_path / "elsewhere" / "publishing" / "shards.py"
        text = module.read_text(encoding="utf-8")
        module.write_text(text.replace("LAYOUT_VERSION = ", "LAYOUT_VERSION = 1000 + "), encoding="utf-8")
    with cluster(tmp_path, str(tmp_path / "elsewhere")) as address:
        assert build.main([str(small_folder), str(tmp_path / "so2sat"), "--dask", address]) == 1
    error = capsys.readouterr().err
    assert "has not this version of the project" in error
    assert error.count("\n") == 1
    assert contents(tmp_path / "so2sat") == {}


def test_no_more_cores_are_used_than_this_process_may() -> None:
    code = "from publishing import executors; print(executors.cores())"
    run = ["taskset", "-c", "0", sys.executable, "-c", code]
    told = subprocess.run(run, cwd=PROJECT / "scripts", check=True, capture_output=True, text=True).stdout
    assert told == "1\n"


def test_a_cluster_that_does_not_see_a_source_is_refused_before_work_starts(tmp_path: Path) -> None:
    with (
        pytest.raises(CommandError, match=r"worker tcp://.* doesn't see /nowhere/training.h5"),
        executors.dask_cluster("local", 1, tmp_path, ["/nowhere/training.h5"], shards.version),
    ):
        pass
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_a_scheduler_that_does_not_answer_is_named_and_nothing_is_written(
    source_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(executors, "CONNECT_SECONDS", 1)
    command = [str(source_folder), str(tmp_path / "so2sat"), "--dask", "tcp://127.0.0.1:1"]
    assert build.main(command) == 1
    assert "tcp://127.0.0.1:1" in capsys.readouterr().err
    assert contents(tmp_path / "so2sat") == {}


def test_without_dask_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(CommandError, match=r"pip install 'so2sat\[dask\]'"),
        executors.dask_cluster("local", 1, tmp_path, [], shards.version),
    ):
        pass
