"""Where work runs: here, in processes of this machine or on a Dask cluster."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from datasets.utils.file_utils import is_remote_url

import so2sat
from publishing.command import CommandError

CONNECT_SECONDS = 30

PACKAGE = Path(__file__).parent

# Calls a function with every item, and gives each item with its result as soon as it is there.
Run = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[tuple[Any, Any]]]


def here(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Runs work in this process, in order."""
    for item in items:
        yield item, function(item)


def _run_in(pool: concurrent.futures.Executor, lost: type[Exception]) -> Run:
    """Runs work in a pool, whose exception `lost` says that it lost a worker."""

    def run(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        try:
            futures = {pool.submit(function, item): item for item in items}
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except lost as error:
            raise CommandError(
                "a worker process was killed, perhaps for want of memory; try again, with fewer workers"
            ) from error

    return run


@contextlib.contextmanager
def processes(workers: int) -> Iterator[Run]:
    """Worker processes that end with this process, however it ends."""
    before = {*multiprocessing.active_children()}
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    ) as pool:
        try:
            # Ctrl-C is for this process, which ends its workers; they inherit the mask, and so must start here.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            for _ in range(workers):
                pool.submit(int)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            yield _run_in(pool, BrokenProcessPool)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in {*multiprocessing.active_children()} - before:
                child.terminate()
                child.join()
            raise


def _start_worker() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextlib.contextmanager
def dask_cluster(address: str, workers: int, output: Path, sources: Sequence[str]) -> Iterator[Run]:
    """The workers of a Dask cluster. Dask gives the work of a lost worker to another.

    Args:
        address: Of the scheduler, or "local" for a cluster of `workers` processes on this machine.
        workers: Only for "local".
        output: Folder that every worker must see.
        sources: Paths that every worker must see, or URLs.

    Raises:
        CommandError: Dask is not installed, the scheduler can't be reached, there are no workers, or a worker doesn't
            see a file.
    """
    try:
        import distributed
    except ImportError as error:
        raise CommandError("--dask needs the package distributed: pip install 'so2sat[dask]'") from error
    with contextlib.ExitStack() as stack:
        is_local = address == "local"
        if is_local:
            options = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": logging.CRITICAL}
            address = stack.enter_context(distributed.LocalCluster(n_workers=workers, **options)).scheduler_address
        try:
            client = stack.enter_context(distributed.Client(address, timeout=CONNECT_SECONDS))
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except (OSError, ValueError, distributed.TimeoutError) as error:
            raise CommandError(f"no Dask scheduler with workers answers at {address} ({error})") from error
        if not is_local:
            _send_package(client)
        _check_view(client, output, [path for path in sources if not is_remote_url(path)])
        yield _run_in(client.get_executor(pure=False), distributed.KilledWorker)


def _send_package(client: Any) -> None:
    """Gives a cluster, and the workers that join it later, this package and so2sat.py."""
    from distributed.diagnostics.plugin import SchedulerUploadFile, UploadFile

    def forget() -> None:
        """Removes the modules of an earlier version, which Dask would not reload below the package's top level."""
        for name in [*sys.modules]:
            if name.partition(".")[0] in (PACKAGE.name, so2sat.__name__):
                del sys.modules[name]

    with tempfile.TemporaryDirectory() as folder:
        # A new name for every version: Python keeps the table of contents of a zip file that it has imported from.
        archive = Path(folder, f"so2sat-{uuid.uuid4().hex}.zip")
        with zipfile.ZipFile(archive, "w") as file:
            file.write(so2sat.__file__, Path(so2sat.__file__).name)
            for path in sorted(PACKAGE.glob("*.py")):
                file.write(path, f"{PACKAGE.name}/{path.name}")
        client.run(forget)
        client.run_on_scheduler(forget)
        for plugin in (SchedulerUploadFile(str(archive)), UploadFile(str(archive))):
            client.register_plugin(plugin, name=so2sat.__name__)  # in place of an earlier version's


def _check_view(client: Any, output: Path, sources: Sequence[str]) -> None:
    """Makes sure that every worker sees the output folder and the source files."""
    token = output / f".{uuid.uuid4().hex}"
    token.touch()
    try:
        for path in (str(token), *sources):
            blind = [worker for worker, sees in client.run(os.path.exists, path).items() if not sees]
            if blind:
                raise CommandError(
                    f"Dask worker {blind[0]} doesn't see {output if path == str(token) else path}; SOURCE and OUTPUT"
                    " must be on a file system that all workers share, under the same path"
                )
    finally:
        token.unlink()
