"""Where work runs: here, in processes of this machine or on a Dask cluster, all as concurrent.futures has it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from publishing.command import CommandError

CONNECT_SECONDS = 30

# Calls a function with every item, and gives each item with its result as soon as it is there.
Run = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[tuple[Any, Any]]]


def cores() -> int:
    """How many processors this process may use, which on a shared machine are fewer than it has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
                yield futures.pop(future), future.result()  # no longer kept: results may be large
        except lost as error:
            raise CommandError(
                "a worker process was killed, perhaps for want of memory; try again, with fewer workers"
            ) from error

    return run


@contextlib.contextmanager
def processes(workers: int) -> Iterator[Run]:
    """Worker processes that end with this process, however it ends. One worker is this process."""
    if workers <= 1:
        yield here
        return
    before = {*multiprocessing.active_children()}
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    ) as pool:
        try:
            with _deaf_to_ctrl_c():
                for _ in range(workers):
                    pool.submit(int)
            yield _run_in(pool, BrokenProcessPool)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in {*multiprocessing.active_children()} - before:
                child.terminate()
                child.join()
            raise


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Lets processes start that don't hear Ctrl-C: it is for this process, which ends them. They inherit the mask."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _start_worker() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextlib.contextmanager
def dask_cluster(
    address: str, workers: int, output: Path, sources: Sequence[str], probe: Callable[[], Any]
) -> Iterator[Run]:
    """The workers of a Dask cluster. Dask gives the work of a lost worker to another.

    Args:
        address: Of the scheduler, or "local" for a cluster of `workers` processes on this machine.
        workers: Only for "local".
        output: Folder that every worker must see.
        sources: Local paths that every worker must see.
        probe: A function of this project that must give on every worker what it gives here.

    Raises:
        CommandError: Dask is not installed, the scheduler can't be reached, there are no workers, or a worker has not
            this version of the project or doesn't see a file.
    """
    try:
        import distributed
    except ImportError as error:
        raise CommandError("--dask needs the package distributed: pip install 'so2sat[dask]'") from error
    with contextlib.ExitStack() as stack:
        if address == "local":
            options = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": logging.CRITICAL}
            with _deaf_to_ctrl_c():
                address = stack.enter_context(distributed.LocalCluster(n_workers=workers, **options)).scheduler_address
        try:
            client = stack.enter_context(distributed.Client(address, timeout=CONNECT_SECONDS))
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except (OSError, ValueError, distributed.TimeoutError) as error:
            raise CommandError(f"no Dask scheduler with workers answers at {address} ({error})") from error
        _check_workers(client, probe, output, sources)
        yield _run_in(client.get_executor(pure=False), distributed.KilledWorker)


def _check_workers(client: Any, probe: Callable[[], Any], output: Path, sources: Sequence[str]) -> None:
    """Makes sure that every worker has this version of the project, and sees the output folder and the sources."""
    module, name, expected = probe.__module__, probe.__name__, probe()
    token = output / f".{uuid.uuid4().hex}"
    paths = [str(token), *sources]

    def ask() -> tuple[Any, list[str]]:  # sent by value: a worker may lack this project
        import importlib
        import os

        unseen = [path for path in paths if not os.path.exists(path)]
        try:
            return getattr(importlib.import_module(module), name)(), unseen
        except (ImportError, AttributeError) as error:
            return str(error), unseen

    token.touch()
    try:
        answers = client.run(ask)
    finally:
        token.unlink()
    for worker, (found, unseen) in answers.items():
        if found != expected:
            raise CommandError(
                f"Dask worker {worker} has not this version of the project (found {found}, expected {expected});"
                " install it there and add its folder scripts to PYTHONPATH"
            )
        if unseen:
            path = output if unseen[0] == str(token) else unseen[0]
            raise CommandError(
                f"Dask worker {worker} doesn't see {path}; SOURCE and OUTPUT must be on a file system that all workers"
                " share, under the same path"
            )
