"""A build on a Dask cluster is a build."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import build
import so2sat
from conftest import SMALL, contents
from publishing import executors
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


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """Address of a Dask cluster of one worker that knows nothing of this project's scripts."""
    dask = Path(sys.executable).with_name("dask")
    (tmp_path / "elsewhere").mkdir()
    address = tmp_path / "scheduler.json"
    start = [[dask, "scheduler", "--port", "0", "--dashboard-address", ":0", "--host", "127.0.0.1"], [dask, "worker"]]
    processes = [
        subprocess.Popen(
            [*map(str, command), "--scheduler-file", str(address)],
            cwd=tmp_path / "elsewhere",
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for command in start
    ]
    try:
        while not address.exists() or not address.read_text().strip():
            time.sleep(0.05)
        found = re.search(r'"address": "(tcp://127\.0\.0\.1:\d+)"', address.read_text())
        assert found
        yield found[1]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_cluster_that_ran_an_earlier_version_runs_the_new_one(
    scheduler: str, small_folder: Path, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    shutil.copytree(PROJECT / "scripts", project / "scripts")
    shutil.copy(PROJECT / "so2sat.py", project)
    layout = project / "scripts" / "publishing" / "layout.py"
    current = layout.read_text()
    for compression in ("GZIP", "ZSTD"):
        layout.write_text(current.replace('"ZSTD"', f'"{compression}"'))
        output = tmp_path / compression
        options = [str(small_folder), str(output), "--config", "all", "--dask", scheduler]
        run = [sys.executable, "scripts/build.py", *options]
        subprocess.run(run, cwd=project, env={**os.environ, "PYTHONPATH": str(project)}, check=True)
        shard = pq.ParquetFile(next(output.glob("all/test-*.parquet")))
        assert shard.metadata.row_group(0).column(0).compression == compression


def test_a_cluster_that_does_not_see_a_source_is_refused_before_work_starts(tmp_path: Path) -> None:
    with (
        pytest.raises(CommandError, match=r"worker tcp://.* doesn't see /nowhere/training.h5"),
        executors.dask_cluster("local", 1, tmp_path, ["/nowhere/training.h5"]),
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
        executors.dask_cluster("local", 1, tmp_path, []),
    ):
        pass
