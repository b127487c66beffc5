"""Checks a Parquet repository that build.py made: against its manifest, and value by value against its sources."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tqdm

import so2sat
from publishing import command, compare, contents, executors, manifest
from publishing.command import CommandError
from publishing.compare import Result, Task
from publishing.configs import CONFIGS
from publishing.contents import Finding
from publishing.manifest import Manifest, SourceRecord

EXAMPLES = """\
  python scripts/verify.py build/so2sat                               as build.py wrote it?
  python scripts/verify.py build/so2sat --source data                 every value too, against the HDF5 files
  python scripts/verify.py build/so2sat --source data --sample 1000   1,000 random rows of every split
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = command.parser(
        "Checks a Parquet repository that build.py made. Without --source it proves that the repository is as build.py"
        " wrote it: every file's checksum, every shard's schema and sample_id, the statistics and the card's metadata."
        " With --source it proves every value. Prints a line for each finding. Exit status: 0 if there is none, else 1."
        " Row numbers are sample_id.",
        EXAMPLES,
    )
    parser.add_argument("repository", metavar="REPOSITORY", type=Path, help="folder of the repository")
    parser.add_argument(
        "--source", type=command.named, help="folder or fsspec URL with the HDF5 files that it was made from"
    )
    parser.add_argument(
        "--sample", type=command.number(1), metavar="N", help="compare N random rows of every split, not all"
    )
    parser.add_argument(
        "--workers",
        type=command.number(1, 1024),
        default=executors.cores(),
        metavar="N",
        help="processes (default: one per core that this process may use)",
    )
    return command.run(_run, parser, argv)


def _run(options: argparse.Namespace) -> int:
    source, sample = options.source, options.sample
    if sample is not None and not source:
        raise CommandError("--sample says how many rows to compare with the source; give --source too")
    count = 0
    for finding in verify(options.repository, source, sample, options.workers):
        tqdm.tqdm.write(str(finding))
        count += 1
    built = manifest.load_built(options.repository.expanduser())
    checked = f"{len(built.shards)} shards, {built.patches:,} patches"
    if count:
        print(f"{count} finding{'' if count == 1 else 's'} in {checked}")
    elif not source:
        print(f"OK: {checked}, as build.py wrote them; --source compares the values too")
    else:
        values = "every value equals" if sample is None else f"{sample:,} random rows of every split equal"
        print(f"OK: {checked}, {values} {so2sat.printable(source)}")
    return 1 if count else 0


def verify(
    repository: Path, source: str | None = None, sample: int | None = None, workers: int = 1
) -> Iterator[Finding]:
    """Checks a repository step by step. What is odd, but may be right, is printed as a warning.

    Args:
        repository: Its folder.
        source: Folder or fsspec URL with the source files, to compare values with.
        sample: Number of random rows of every split to compare, always the same ones; all if None.
        workers: Number of processes; 1 works in this one.

    Yields:
        What is wrong, in an order that repeats.

    Raises:
        CommandError: There is no repository, no manifest that could be read, or none of the source files.
        so2sat.SourceError: The source files can't be read.
    """
    folder = Path(os.path.expanduser(repository)).resolve()
    if source and not so2sat.is_url(source):
        source = os.path.abspath(os.path.expanduser(source))
    built = manifest.load_built(folder)
    found = [*contents.file_findings(folder, built)]
    yield from found
    sources = _describe(built, source) if source else {}
    if source:
        yield from _source_findings(built, source, sources)
    same_pillow = all(_same_pillow(recipe) for recipe in built.configs.values())
    drawn, unsound, tasks = drawn_rows(built, sample), {finding.file for finding in found}, []
    for shard in built.plan():
        if shard.name in built.shards and shard.name not in unsound:
            names = CONFIGS[shard.config].files[shard.split]
            if source and {*names} <= {*sources}:
                shard = dataclasses.replace(shard, source=source)
            tasks.append(Task(folder, shard, built.shards[shard.name], drawn.get(names[0]), same_pillow))
    totals, is_whole = contents.blank(built), not found
    for task, result in _results(tasks, workers):
        yield from (Finding(task.shard.name, problem) for problem in result.problems)
        if result.statistics:
            totals[task.shard.config, task.shard.split].merge(result.statistics)
        is_whole &= not result.problems
    warnings = [contents.strays(folder, built)]
    if is_whole:
        statistics = contents.summaries(folder, built, totals)
        yield from contents.differences(folder, built, statistics, same_pillow)
        yield from contents.unpublished(built, statistics)
        warnings += contents.warnings(statistics)
    for warning in filter(None, warnings):
        print(f"warning: {warning}", file=sys.stderr)


def _same_pillow(recipe: Mapping[str, object]) -> bool:
    return recipe.get("pillow") in (None, importlib.metadata.version("pillow"))


def _describe(built: Manifest, source: str) -> dict[str, SourceRecord]:
    """The source files of the repository's configs that are there.

    Raises:
        CommandError: None is.
    """
    files = [names for config in built.configs for names in CONFIGS[config].files.values()]
    there = manifest.describe(source, dict.fromkeys(name for names in files for name in names))
    whole = {name for names in files if {*names} <= {*there} for name in names}
    found = {name: record for name, record in there.items() if name in whole}
    if not found:
        raise CommandError(f"{source}: no {' or '.join(built.sources)}, which the repository was made from")
    return found


def _source_findings(built: Manifest, source: str, found: Mapping[str, SourceRecord]) -> Iterator[Finding]:
    """Whether the files to compare with are those that the repository was made from."""
    for name in {**built.sources, **found}:
        path, expected = so2sat.join(source, name), built.sources.get(name)
        if not expected:
            yield Finding(path, "not in the repository, expected its rows as a split")
        elif name not in found:
            yield Finding(path, "missing, so its values are not compared: the repository was made from it")
        elif found[name].rows != expected.rows:
            yield Finding(path, f"{found[name].rows:,} rows, expected {expected.rows:,} as when it was built from")
        elif found[name].synthetic != expected.synthetic:
            kinds = ["synthetic" if record.synthetic else "measured" for record in (found[name], expected)]
            yield Finding(path, f"says that it is {kinds[0]}, expected {kinds[1]} as {manifest.NAME} says")


def drawn_rows(built: Manifest, sample: int | None) -> dict[str, Sequence[int]]:
    """The rows to compare of every file of patches, the same in every config; empty if all rows are."""
    drawn: dict[str, Sequence[int]] = {}
    for config in built.configs if sample is not None else ():
        for split, rows in built.splits(config).items():
            name = CONFIGS[config].files[split][0]
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            drawn[name] = sorted(rng.choice(rows, min(sample or 0, rows), replace=False).tolist())
    return drawn


def _results(tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Result]]:
    """Checks shards, in this process or in several; results come in the order of the tasks."""
    total, done, due = sum(task.shard.rows for task in tasks), dict[str, Result](), [*tasks]
    bar = tqdm.tqdm(total=total, unit=" rows", disable=None, dynamic_ncols=True)
    with bar, executors.processes(min(workers, len(tasks))) as run:
        for task, result in run(compare.check_shard, tasks):
            done[task.shard.name] = result
            bar.update(task.shard.rows)
            while due and due[0].shard.name in done:
                first = due.pop(0)
                yield first, done.pop(first.shard.name)


if __name__ == "__main__":
    sys.exit(main())
