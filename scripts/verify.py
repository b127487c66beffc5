"""Checks a Parquet repository that build.py made: against its manifest, and value by value against its sources."""

from __future__ import annotations

import publishing

if __name__ == "__main__":
    publishing.end_on_ctrl_c()

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tqdm
from datasets.utils.file_utils import is_remote_url

import so2sat
from publishing import card, checks, command, executors, layout, manifest
from publishing.band_statistics import ConfigStatistics
from publishing.checks import Finding, Result, Task
from publishing.command import CommandError
from publishing.layout import Shard
from publishing.manifest import Manifest

EXAMPLES = """\
  python scripts/verify.py build/so2sat                               files, card, labels
  python scripts/verify.py build/so2sat --source data                 every value too, against the HDF5 files
  python scripts/verify.py build/so2sat --source data --sample 1000   1,000 random rows of every split
  python scripts/verify.py build/so2sat --json                        for machines
"""


@dataclasses.dataclass
class Report:
    """What a verification looked at and found.

    Attributes:
        repository: Path of the repository.
        shards: Number of shards that were checked.
        rows: Rows in them.
        compared_rows: Rows whose values were compared with the source.
        findings: What is wrong, empty for a sound repository.
        warnings: What is odd, but may be right.
    """

    repository: str
    shards: int = 0
    rows: int = 0
    compared_rows: int = 0
    findings: list[Finding] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = command.parser(
        "Checks a Parquet repository that build.py made: every shard's bytes, layout, labels and ids, the card's"
        " metadata, the statistics and the manifest; with --source, every value. Prints a line for each finding. Exit"
        " status: 0 if there is none, else 1. Rows are numbered as in the source file, which is what sample_id says.",
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
        "--seed", type=command.number(0), default=0, metavar="S", help="of the sample (default: %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=command.number(1, 1024),
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes (default: one per core)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return command.run(_run, parser, argv)


def _run(options: argparse.Namespace) -> int:
    if options.sample is not None and not options.source:
        raise CommandError("--sample says how many rows to compare with the source; give --source too")
    announce = None if options.json else lambda finding: tqdm.tqdm.write(str(finding))
    report = verify(options.repository, options.source, options.sample, options.seed, options.workers, announce)
    if options.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        for warning in report.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        findings = f"{len(report.findings)} finding{'' if len(report.findings) == 1 else 's'}"
        compared = f", {report.compared_rows:,} compared with {options.source}" if options.source else ""
        print(f"{findings} in {report.shards} shards, {report.rows:,} rows{compared}")
    return 1 if report.findings else 0


def verify(
    repository: Path,
    source: str | None = None,
    sample: int | None = None,
    seed: int = 0,
    workers: int = 1,
    announce: Callable[[Finding], None] | None = None,
) -> Report:
    """Checks a repository.

    Args:
        repository: Its folder.
        source: Folder or fsspec URL with the source files, to compare values with.
        sample: Number of random rows of every split to compare, all if None.
        seed: Of the sample.
        workers: Number of processes; 1 works in this one.
        announce: Called with every finding as soon as it is there. They come in an order that repeats.

    Returns:
        What was checked and found.

    Raises:
        CommandError: There is no repository, or no manifest that could be read.
        so2sat.SourceError: The source files can't be read.
    """
    folder = Path(os.path.expanduser(repository)).resolve()
    if source and not is_remote_url(source):
        source = os.path.abspath(os.path.expanduser(source))
    built = manifest.load_built(folder)
    report = Report(str(folder))
    for finding in _findings(folder, built, report, source, sample, seed, workers):
        report.findings.append(finding)
        if announce:
            announce(finding)
    return report


def _findings(
    folder: Path, built: Manifest, report: Report, source: str | None, sample: int | None, seed: int, workers: int
) -> Iterator[Finding]:
    """Checks a repository step by step; counts and warnings go into the report."""
    found = [*checks.file_findings(folder, built)]
    yield from found
    unsound = {finding.file for finding in found}
    sources = {config: layout.find_sources(source, config) for config in built.configs} if source else {}
    if sources:
        yield from _source_findings(built, sources)
    shards = [shard for shard in built.plan(sources) if shard.name in built.shards and shard.name not in unsound]
    tasks = [_task(folder, built, shard, sample, seed) for shard in shards if (folder / shard.name).is_file()]
    results: dict[str, Result] = {}
    for task, result in _results(tasks, workers):
        yield from result.findings
        results[task.shard.name] = result
        report.shards += 1
        report.rows += task.shard.rows
        report.compared_rows += result.compared_rows
    if layout.STATISTICS_NAME in built.files.keys() - unsound and not checks.is_incomplete(folder):
        statistics = checks.read_statistics(folder, built)
        yield from _summary_findings(folder, built, statistics, results)
        report.warnings += checks.warnings(statistics)
    report.warnings += checks.name_warnings(folder)


def _source_findings(built: Manifest, sources: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """Whether the files to compare with are those that the repository was made from."""
    paths = layout.source_paths(sources)
    for name in sorted({*paths} - {*built.sources}):
        yield Finding(paths[name], "not in the repository, expected its rows as a split")
    for name in sorted({*built.sources} - {*paths}):
        yield Finding(name, "not in the source, expected it: the repository was made from it")
    for name, found in manifest.describe({name: paths[name] for name in paths if name in built.sources}).items():
        expected = built.sources[name]
        if found.synthetic != expected.synthetic:
            texts = [
                manifest.shown(text) if text else "measured data" for text in (expected.synthetic, found.synthetic)
            ]
            yield Finding(manifest.NAME, f"{name} is {texts[0]}, expected {texts[1]} as it says itself")
        if (found.rows, found.fingerprint) != (expected.rows, expected.fingerprint):
            what = f"{found.rows:,} rows" if found.rows != expected.rows else "other labels or places"
            yield Finding(paths[name], f"{what}, expected the file with {expected.rows:,} rows that was built from")


def _task(folder: Path, built: Manifest, shard: Shard, sample: int | None, seed: int) -> Task:
    """What to check of a shard; sampled rows are the same in every config that is made of the same file."""
    drawn = None
    if sample is not None:
        rows, name = built.splits(shard.config)[shard.split], layout.CONFIGS[shard.config].files[shard.split]
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        of_split = random.choice(rows, min(sample, rows), replace=False).tolist()
        drawn = sorted(row for row in of_split if shard.start <= row < shard.stop)
    same_pillow = built.versions["pillow"] == manifest.current_versions()["pillow"]
    return Task(folder, shard, built.shards[shard.name], drawn, same_pillow)


def _results(tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Result]]:
    """Checks shards, in this process or in several; results come in the order of the tasks."""
    workers = min(workers, len(tasks))
    total, done, due = sum(task.shard.rows for task in tasks), dict[str, Result](), [*tasks]
    bar = tqdm.tqdm(total=total, unit=" rows", disable=None, dynamic_ncols=True)
    with bar, executors.processes(workers) if workers > 1 else contextlib.nullcontext(executors.here) as run:
        for task, result in run(checks.check_shard, tasks):
            done[task.shard.name] = result
            bar.update(task.shard.rows)
            while due and due[0].shard.name in done:
                first = due.pop(0)
                yield first, done.pop(first.shard.name)


def _summary_findings(
    folder: Path, built: Manifest, statistics: card.Statistics, results: Mapping[str, Result]
) -> Iterator[Finding]:
    """Whether the shards of every split agree with the statistics, and with other configs of the same patches."""
    known: dict[str, tuple[str, npt.NDArray[np.int8]]] = {}  # by source file: a config and its labels
    of_geo = [results.get(name) for name in built.shards if name.startswith("geo/")]
    are_sound = all(result and not result.findings for result in of_geo)
    shared = checks.shared_places(folder, built) if of_geo and are_sound else {}
    for config in built.configs:
        for split, rows in built.splits(config).items():
            parts = [results.get(name, Result()) for name in built.shard_names(config, split)]
            of_parts = [part.labels for part in parts if part.labels is not None]
            if sum(map(len, of_parts)) != rows:
                continue
            labels = np.concatenate(of_parts)
            other, theirs = known.setdefault(layout.CONFIGS[config].files[split], (config, labels))
            if (wrong := np.flatnonzero(labels != theirs)).size:
                row = wrong[0]
                what = f"row {row} of {split} has label {labels[row]}, expected {theirs[row]} as in {other}"
                yield Finding(config, f"{what} ({wrong.size:,} such rows)")
            expected = _summary(config, labels, [part.statistics for part in parts])
            if config == "geo" and shared:
                expected["shared"] = shared[split]
            found = {key: statistics[config][split][key] for key in expected}
            if text := checks.difference(found, expected, f"{config}, {split}:", checks.is_close):
                yield Finding(layout.STATISTICS_NAME, text)


def _summary(config: str, labels: npt.NDArray[np.int8], of_parts: Sequence[ConfigStatistics | None]) -> dict[str, Any]:
    """The statistics of a split: those of its labels, and where all rows were compared those of its bands."""
    merged = ConfigStatistics(layout.kind_of(config).bands)
    for statistics in filter(None, of_parts):
        merged.merge(statistics)
    merged.patches_per_class = np.bincount(labels, minlength=len(so2sat.LABELS))
    summary = merged.summary()
    return summary if all(of_parts) else {"patches_per_class": summary["patches_per_class"]}


if __name__ == "__main__":
    sys.exit(main())
