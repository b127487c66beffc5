"""A build on a Dask cluster is a build."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import build
import so2sat
from conftest import contents, wait_for_a_shard
from publishing import executors
from publishing.command import CommandError

PROJECT = Path(so2sat.__file__).parent

pytestmark = pytest.mark.timeout(120)


def test_a_local_dask_cluster_makes_the_same_bytes(
    driver: list[str],
    large_source: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
) -> None:
    output = tmp_path / "so2sat"
    subprocess.run([*driver, str(large_source), str(output), "--workers", "2", "--dask", "local"], check=True)
    assert contents(output) == undisturbed


def test_the_shards_of_a_killed_dask_worker_are_made_by_others(
    driver: list[str],
    large_source: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
) -> None:
    output = tmp_path / "so2sat"
    command = [*driver, str(large_source), str(output), "--workers", "2", "--dask", "local"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        wait_for_a_shard(process, output)
        listing = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, check=True)
        workers = listing.stdout.split()
        assert len(workers) == 2
        os.kill(int(workers[0]), 9)
        error = process.communicate()[1].decode()
    assert process.returncode == 0, error
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


def test_a_running_cluster_is_given_what_it_needs(
    scheduler: str, source_folder: Path, repository: Path, tmp_path: Path
) -> None:
    build.build(str(source_folder), tmp_path / "so2sat", dask=scheduler)
    assert contents(tmp_path / "so2sat") == contents(repository)


def test_a_cluster_that_ran_an_earlier_version_runs_the_new_one(
    scheduler: str, source_folder: Path, tmp_path: Path
) -> None:
    found: list[str] = []
    for compression in ("ZSTD", "GZIP", "ZSTD"):
        project = tmp_path / "project"
        shutil.copytree(PROJECT / "scripts", project / "scripts", dirs_exist_ok=True)
        for name in ("so2sat.py", "README.md"):
            shutil.copy(PROJECT / name, project)
        layout = project / "scripts" / "publishing" / "layout.py"
        layout.write_text(layout.read_text().replace('"ZSTD"', f'"{compression}"'))
        output = tmp_path / f"so2sat-{len(found)}"
        command = [
            sys.executable,
            "scripts/build.py",
            str(source_folder),
            str(output),
            "--config",
            "all",
            "--dask",
            scheduler,
        ]
        subprocess.run(command, cwd=project, env={**os.environ, "PYTHONPATH": str(project)}, check=True)
        shard = pq.ParquetFile(next(output.glob("all/test-*.parquet")))
        found.append(shard.metadata.row_group(0).column(0).compression)
    assert found == ["ZSTD", "GZIP", "ZSTD"]


def test_a_cluster_that_does_not_see_a_source_is_refused_before_work_starts(tmp_path: Path) -> None:
    with (
        pytest.raises(CommandError, match=r"worker tcp://.* doesn't see /nowhere/training.h5"),
        executors.dask_cluster("local", 1, tmp_path, ["/nowhere/training.h5"]),
    ):
        pass
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_a_scheduler_that_does_not_answer_is_named(
    source_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(executors, "CONNECT_SECONDS", 1)
    command = [str(source_folder), str(tmp_path / "so2sat"), "--dask", "tcp://127.0.0.1:1"]
    assert build.main(command) == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in capsys.readouterr().err


def test_without_dask_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(CommandError, match=r"pip install 'so2sat\[dask\]'"),
        executors.dask_cluster("local", 1, tmp_path, []),
    ):
        pass
