"""Checks a Parquet repository that build.py made: against its manifest, and value by value against its sources."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tqdm
from datasets.data_files import resolve_pattern
from huggingface_hub import DatasetCard
from huggingface_hub.utils.sha import sha_fileobj

import build
import so2sat
from publishing import card, command, executors, facts, layout, manifest
from publishing.command import CommandError

EXAMPLES = """\
  python scripts/verify.py build/so2sat                               files, formats, card
  python scripts/verify.py build/so2sat --source data                 every value too, against the HDF5 files
  python scripts/verify.py build/so2sat --source data --sample 1000   1,000 random rows of every config
  python scripts/verify.py build/so2sat --json                        for machines
"""

# What may be in a repository besides what its manifest lists. Folders: of the build, of Git, of huggingface_hub.
OTHER_FILES = {card.NAME, manifest.NAME, ".gitattributes"}
OTHER_FOLDERS = {layout.STATE_FOLDER, ".git", ".cache"}

MAX_SOURCE_ROWS = 10_000_000  # more is a slip of the pen, and would make a plan of very many shards
MAX_DEGREES = 1e-9  # 0.1 mm, between a longitude or latitude and what is computed here
MIN_PSNR = 40.0  # dB between an image and what another version of Pillow makes of the same pixels
MAX_DIFFERENCES = 5  # of the card, that are told one by one


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is not as it must be: the file, and in words what was found and what was expected."""

    file: str
    problem: str

    def __str__(self) -> str:
        """The line that is printed."""
        return f"{self.file}: {self.problem}"


@dataclasses.dataclass
class Report:
    """What a verification looked at and found.

    Attributes:
        repository: Path of the repository.
        shards: Number of shards that were checked.
        rows: Rows in them.
        compared_rows: Rows whose values were compared with the source.
        findings: What is wrong, empty for a sound repository.
    """

    repository: str
    shards: int = 0
    rows: int = 0
    compared_rows: int = 0
    findings: list[Finding] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Task:
    """A shard to check.

    Attributes:
        shard: What it must hold; its source is empty when there is nothing to compare with.
        folder: Root of the repository.
        record: What the manifest says of the file, None if nothing.
        owner: Name of the shard by the checksum that the manifest has of it.
        rows: Rows of the split to compare with the source, all of the shard's if None.
        same_pillow: Whether images were encoded by the Pillow of this process.
    """

    shard: layout.Shard
    folder: Path
    record: layout.ShardRecord | None
    owner: Mapping[str, str]
    rows: Sequence[int] | None
    same_pillow: bool


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a task: the file's rows, rows compared, patches per class (None if not all are known), findings."""

    rows: int
    compared_rows: int
    class_counts: npt.NDArray[np.int64] | None
    findings: list[Finding]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = command.parser(
        "Checks a Parquet repository that build.py made: every shard's bytes, layout, schema and rows, the card and the"
        " manifest; with --source, every value. Prints a line for each finding. Exit status: 0 if there is none, else"
        " 1. Rows are numbered as in the source file, which is what sample_id says.",
        EXAMPLES,
    )
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="folder of the repository")
    parser.add_argument("--source", help="folder or fsspec URL with the HDF5 files that it was made from")
    parser.add_argument("--sample", type=_number(1), metavar="N", help="compare N random rows of every config, not all")
    parser.add_argument("--seed", type=_number(0), default=0, metavar="S", help="of the sample (default: %(default)s)")
    parser.add_argument(
        "--workers",
        type=_number(1),
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes (default: one per core)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return command.run(_run, parser, argv)


def _number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} on")
        return int(text)

    return parse


def _run(options: argparse.Namespace) -> int:
    if options.sample is not None and not options.source:
        raise CommandError("--sample says how many rows to compare with the source; give --source too")
    announce = None if options.json else lambda finding: tqdm.tqdm.write(str(finding))
    report = verify(options.output, options.source, options.sample, options.seed, options.workers, announce)
    if options.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    else:
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
        sample: Number of random rows of every config to compare, all if None.
        seed: Of the sample.
        workers: Number of processes; 1 works in this one.
        announce: Called with every finding as soon as it is there. They come in an order that repeats.

    Returns:
        What was checked and found.

    Raises:
        CommandError: There is no repository, or no manifest that could be read.
        so2sat.SourceError: The source files can't be read.
    """
    repository = repository.expanduser().resolve()
    built = manifest.load_built(repository)
    report = Report(str(repository))

    def note(findings: Iterable[Finding]) -> None:
        for finding in findings:
            report.findings.append(finding)
            if announce:
                announce(finding)

    files = _files(repository)
    sources = _find_sources(source, built) if source else {}
    plan = _plan(built, sources)
    note(repository_findings(repository, built))
    if _is_incomplete(repository):
        plan = [shard for shard in plan if shard.name in built.shards and shard.name in files]
    if sources:
        note(_source_findings(built, sources))
    tasks = _tasks(repository, built, plan, sample, seed)
    counts: dict[tuple[str, str], list[npt.NDArray[np.int64] | None]] = collections.defaultdict(list)
    for result, shard in zip(_results(tasks, workers), plan):
        note(result.findings)
        report.shards += 1
        report.rows += result.rows
        report.compared_rows += result.compared_rows
        counts[shard.config, shard.split].append(result.class_counts)
    for (config, split), of_shards in counts.items():
        known = [count for count in of_shards if count is not None]
        if len(known) == len(of_shards) and not built.synthetic:
            note(_class_findings(config, split, np.sum(known, axis=0)))
    return report


def repository_findings(repository: Path, built: manifest.Manifest) -> Iterator[Finding]:
    """Checks all of a repository but what is in its shards: manifest, card, other files, names.

    Args:
        repository: Its folder.
        built: Its manifest.

    Yields:
        What is wrong.
    """
    files, plan = _files(repository), _plan(built, {})
    yield from _manifest_findings(built)
    if not built.configs or {*built.configs} - {*layout.CONFIGS}:
        return  # what else it must hold is not known
    if _is_incomplete(repository):
        done = sum(shard.name in built.shards and shard.name in files for shard in plan)
        yield Finding(card.NAME, f"the build is incomplete, {done} of {len(plan)} shards are there, expected all")
        return
    yield from _shard_list_findings(built, plan)
    yield from _file_findings(repository, built)
    statistics = _statistics(repository, built)
    yield from _card_findings(repository, built, statistics, plan, files)
    yield from _published_findings(built, statistics)
    yield from _stray_findings(repository, files, {*built.files, *built.shards, *(shard.name for shard in plan)})


def _is_incomplete(repository: Path) -> bool:
    path = repository / card.NAME
    return path.is_file() and path.read_bytes() == card.INCOMPLETE.encode()


def _results(tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """Checks shards, in this process or in several; results come in the order of the tasks."""
    with contextlib.ExitStack() as stack:
        run: Callable[..., Iterator[Result]] = map
        if workers > 1:
            run = stack.enter_context(executors.processes(workers)).map
        total = sum(task.shard.stop - task.shard.start for task in tasks)
        bar = stack.enter_context(tqdm.tqdm(total=total, unit=" rows", disable=None, dynamic_ncols=True))
        for task, result in zip(tasks, run(check_shard, tasks)):
            yield result
            bar.update(task.shard.stop - task.shard.start)


# ┌────────────┐
# │  Manifest  │
# └────────────┘


def _find_sources(folder: str, built: manifest.Manifest) -> dict[str, dict[str, str]]:
    """The source files of the repository's configs, by config and split."""
    return {config: layout.find_sources(folder, config) for config in layout.CONFIGS if config in built.configs}


def _plan(built: manifest.Manifest, sources: Mapping[str, Mapping[str, str]]) -> list[layout.Shard]:
    """The shards that a repository with this manifest must have."""
    image_format = built.image_format if built.image_format in so2sat.IMAGE_FORMATS else "jpeg"
    return [
        shard
        for config in layout.CONFIGS
        if config in built.configs
        for split, rows in built.splits(config).items()
        if 1 <= rows <= MAX_SOURCE_ROWS
        for shard in layout.plan_shards(config, split, rows, sources.get(config, {}).get(split, ""), image_format)
    ]


def _manifest_findings(built: manifest.Manifest) -> Iterator[Finding]:
    current = manifest.current_versions()
    for name in ("so2sat", "layout"):
        if built.versions.get(name) != current[name]:
            yield Finding(
                manifest.NAME, f"made with version {built.versions.get(name)} of {name}, expected {current[name]}"
            )
    wrong = [config for config in built.configs if config not in layout.CONFIGS]
    if wrong or not built.configs:
        yield Finding(
            manifest.NAME, f"configs {_few(wrong) if wrong else '(none)'}, expected some of {_few(layout.CONFIGS)}"
        )
    if built.image_format not in so2sat.IMAGE_FORMATS:
        yield Finding(
            manifest.NAME, f"image_format {built.image_format!r}, expected one of {_few(so2sat.IMAGE_FORMATS)}"
        )
    splits = {
        (config, split): layout.source_files(config, split)
        for config in layout.CONFIGS
        if config in built.configs
        for split in layout.CONFIGS[config].files
    }
    known = {name for names in splits.values() for name in names}
    for name, record in built.sources.items():
        if name not in known or not 1 <= record.rows <= MAX_SOURCE_ROWS:
            yield Finding(manifest.NAME, f"source {name} with {record.rows:,} rows, expected a file of its configs")
    for config in built.configs:
        if config in layout.CONFIGS and not built.splits(config):
            yield Finding(manifest.NAME, f"no sources of config '{config}', expected at least one split")


def _shard_list_findings(built: manifest.Manifest, plan: Sequence[layout.Shard]) -> Iterator[Finding]:
    planned = {shard.name: shard for shard in plan}
    absent = [name for name in planned if name not in built.shards]
    foreign = [name for name in built.shards if name not in planned]
    if absent:
        yield Finding(manifest.NAME, f"does not list {_few(absent)}, expected every shard of its configs and sources")
    if foreign:
        yield Finding(manifest.NAME, f"lists {_few(foreign)}, expected only shards of its configs and sources")
    for name, shard in planned.items():
        rows = shard.stop - shard.start
        if name in built.shards and built.shards[name].rows != rows:
            yield Finding(manifest.NAME, f"{name} has {built.shards[name].rows:,} rows, expected {rows:,}")


def _source_findings(built: manifest.Manifest, sources: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """Whether the files to compare with are those that the repository was made from."""
    files = build.source_files(sources)
    for name in sorted({*files} - {*built.sources}):
        yield Finding(files[name], f"not in the repository, expected its rows as a split of {_few(sources)}")
    for name in sorted({*built.sources} - {*files}):
        yield Finding(name, "not in the source, expected it: the repository was made from it")
    common = {name: path for name, path in files.items() if name in built.sources}
    for name, found in manifest.describe(common).items():
        expected = built.sources[name]
        if found.rows != expected.rows:
            yield Finding(
                files[name],
                f"{found.rows:,} rows, expected the file with {expected.rows:,} that the repository was made from",
            )
        elif found.fingerprint != expected.fingerprint:
            yield Finding(
                files[name],
                f"fingerprint {_short(found.fingerprint, 24)}, expected {_short(expected.fingerprint, 24)}: not the"
                " file that the repository was made from",
            )


def _class_findings(config: str, split: str, found: npt.NDArray[np.int64]) -> Iterator[Finding]:
    expected = facts.PATCHES_PER_CLASS[split]
    # Nobody published the counts of a part of the data, or of edition 3's splits.
    if found.sum() != sum(expected) or layout.CONFIGS[config].files != so2sat.SOURCE_FILES:
        return
    wrong = [
        f"{found[index]:,} of {name} (expected {expected[index]:,})"
        for index, name in enumerate(so2sat.LABELS)
        if found[index] != expected[index]
    ]
    if wrong:
        yield Finding(f"{config}/{split}", f"patches per class: {_few(wrong)}")


# ┌─────────┐
# │  Files  │
# └─────────┘


def _files(repository: Path) -> list[str]:
    """Files of the repository that could be its content, sorted."""
    paths = (path.relative_to(repository) for path in repository.rglob("*") if not path.is_dir())
    return sorted(path.as_posix() for path in paths if path.parts[0] not in OTHER_FOLDERS)


def _file_findings(repository: Path, built: manifest.Manifest) -> Iterator[Finding]:
    """Whether the files besides shards, card and manifest are those that the manifest tells of."""
    if build.STATISTICS_NAME not in built.files:
        yield Finding(manifest.NAME, f"does not list {build.STATISTICS_NAME}, expected the statistics of the shards")
    for name, expected in built.files.items():
        path = repository / name
        if not path.is_file():
            yield Finding(name, f"missing, expected it as {manifest.NAME} lists it")
        elif (found := hashlib.sha256(path.read_bytes()).hexdigest()) != expected:
            yield Finding(name, f"sha256 {_short(found, 16)}, expected {_short(expected, 16)}")


def _statistics(repository: Path, built: manifest.Manifest) -> card.Statistics | None:
    """The statistics of every config and split, if they are those that the manifest tells of."""
    path = repository / build.STATISTICS_NAME
    if not path.is_file():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != built.files.get(path.name):
        return None
    configs: card.Statistics = json.loads(content)["configs"]
    return configs


def _published_findings(built: manifest.Manifest, statistics: card.Statistics | None) -> Iterator[Finding]:
    """Whether the statistics of the full training split are those that were published of it."""
    source = built.sources.get(so2sat.SOURCE_FILES["train"])
    full = sum(facts.PATCHES_PER_CLASS["train"])
    if source is None or source.rows != full or source.synthetic or not statistics or "all" not in statistics:
        return
    columns = statistics["all"]["train"]["bands"]
    for column, bands in (("sentinel1", so2sat.SENTINEL1_BANDS), ("sentinel2", so2sat.SENTINEL2_BANDS)):
        for band, found, mean, std in zip(bands, columns[column], facts.TRAIN_MEAN[column], facts.TRAIN_STD[column]):
            for name, expected in (("mean", mean), ("std", std)):
                # A mean near 0 is known no better than its band's spread allows.
                if not math.isclose(found[name], expected, rel_tol=1e-3, abs_tol=1e-3 * std):
                    yield Finding(
                        build.STATISTICS_NAME,
                        f"{name} of {column} {band.name} is {found[name]:.6g}, expected {expected:.6g} as published",
                    )


def _stray_findings(repository: Path, files: Sequence[str], shards: set[str]) -> Iterator[Finding]:
    strays: dict[str, list[str]] = collections.defaultdict(list)
    for name in files:
        if name in {"so2sat.py", f"{repository.name}.py"}:
            yield Finding(name, "a loading script, expected none: datasets 4 and later refuse a repository with it")
        elif name == "dataset_infos.json":
            yield Finding(name, "legacy metadata, expected none: its configs break when it is out of date")
        elif name not in shards and name not in OTHER_FILES:
            strays[name.rpartition("/")[0]].append(name)
    for folder, names in strays.items():
        if len(names) > 3:
            yield Finding(
                f"{folder or '.'}/", f"{len(names)} stray files ({_few(names)}), expected only what is listed"
            )
        else:
            yield from (Finding(name, f"a stray file, expected only what {manifest.NAME} lists") for name in names)


# ┌────────┐
# │  Card  │
# └────────┘


def _card_findings(
    repository: Path,
    built: manifest.Manifest,
    statistics: card.Statistics | None,
    plan: Sequence[layout.Shard],
    files: Sequence[str],
) -> Iterator[Finding]:
    """Whether the card is what build.py would write now, and whether its globs match what they must."""
    path = repository / card.NAME
    if not path.is_file():
        yield Finding(card.NAME, "missing, expected the dataset card")
        return
    try:
        text = path.read_bytes().decode()
        found = DatasetCard(text)
    except Exception as error:  # whatever somebody wrote there
        yield Finding(card.NAME, f"can't be read as a dataset card ({_one_line(error)}), expected Markdown with YAML")
        return
    if statistics is None:  # which is told
        return
    rendered = card.render(built, statistics, repository.name)
    expected = DatasetCard(rendered)
    differences = [*_differences(_metadata(found), _metadata(expected))]
    differences += _first_difference("text", found.text, expected.text)
    if not differences:
        differences += _first_difference("spelling", text, rendered)
    yield from (Finding(card.NAME, difference) for difference in differences[:MAX_DIFFERENCES])
    if len(differences) > MAX_DIFFERENCES:
        more = len(differences) - MAX_DIFFERENCES
        yield Finding(card.NAME, f"{more} more differences, expected the card that build.py writes")
    yield from _glob_findings(repository, _metadata(found), plan, files)


def _metadata(loaded: DatasetCard) -> dict[str, Any]:
    return dict(loaded.data.to_dict())  # type: ignore[no-untyped-call]


def _glob_findings(
    repository: Path, metadata: Mapping[str, Any], plan: Sequence[layout.Shard], files: Sequence[str]
) -> Iterator[Finding]:
    """Whether every split's pattern matches the split's shards and nothing else. Missing shards are told elsewhere."""
    for config, split, pattern in _patterns(metadata):
        expected = {shard.name for shard in plan if (shard.config, shard.split) == (config, split)}
        matched = _matches(repository, pattern)
        if matched != expected.intersection(files):
            yield Finding(
                card.NAME,
                f"config '{config}', split '{split}': '{pattern}' matches {_few(sorted(matched)) or 'no file'},"
                f" expected {_few(sorted(expected)) or 'no such split'}",
            )


def _patterns(metadata: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Config, split and pattern of the card's data files, as far as they are written in the way of build.py."""
    with contextlib.suppress(KeyError, TypeError):  # what is written otherwise is a difference
        for config in metadata["configs"]:
            for data_files in config["data_files"]:
                yield str(config["config_name"]), str(data_files["split"]), str(data_files["path"])


def _matches(repository: Path, pattern: str) -> set[str]:
    if ":" in pattern:  # it would go to another file system, or to the network
        return {pattern}
    try:
        return {
            Path(os.path.relpath(path, repository)).as_posix() for path in resolve_pattern(pattern, str(repository))
        }
    except (OSError, ValueError):  # FileNotFoundError is how it says that nothing matches
        return set()


class _Absent:
    def __repr__(self) -> str:
        return "missing"


_ABSENT = _Absent()


def _differences(found: Any, expected: Any, path: str = "") -> Iterator[str]:
    """Says where two trees of the card's metadata differ; members of lists are told apart by their names."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in {**expected, **found}:
            below = f"{path}.{key}" if path else str(key)
            yield from _differences(found.get(key, _ABSENT), expected.get(key, _ABSENT), below)
    elif isinstance(found, list) and isinstance(expected, list):
        found, expected = _by_name(found), _by_name(expected)
        for key in {**expected, **found}:
            yield from _differences(found.get(key, _ABSENT), expected.get(key, _ABSENT), f"{path}[{key}]")
    elif found != expected:
        wanted = "nothing" if expected is _ABSENT else _short(repr(expected))
        yield f"{path} is {_short(repr(found))}, expected {wanted}"


def _by_name(members: Sequence[Any]) -> dict[Any, Any]:
    named = {}
    for index, member in enumerate(members):
        names = [member[key] for key in ("config_name", "split", "name") if isinstance(member, dict) and key in member]
        named[str(names[0]) if names and str(names[0]) not in named else index] = member
    return named


def _first_difference(what: str, found: str, expected: str) -> Iterator[str]:
    for number, (line, other) in enumerate(itertools.zip_longest(found.split("\n"), expected.split("\n")), 1):
        if line != other:
            yield (
                f"{what} differs from line {number} on: {_short(repr(line)) if line is not None else 'its end'},"
                f" expected {_short(repr(other)) if other is not None else 'its end'} as build.py writes it"
            )
            return


# ┌──────────┐
# │  Shards  │
# └──────────┘


def _tasks(
    repository: Path, built: manifest.Manifest, plan: Sequence[layout.Shard], sample: int | None, seed: int
) -> list[Task]:
    rows: Mapping[str, Sequence[int]] = _sampled_rows(plan, sample, seed) if sample is not None else {}
    owner = {record.sha256: name for name, record in built.shards.items()}
    same_pillow = built.versions.get("pillow") == manifest.current_versions()["pillow"]
    return [
        Task(shard, repository, built.shards.get(shard.name), owner, rows.get(shard.name), same_pillow)
        for shard in plan
    ]


def _sampled_rows(plan: Sequence[layout.Shard], sample: int, seed: int) -> dict[str, list[int]]:
    """Draws rows for every shard, as many as asked for in a config, and the same rows in every config."""
    rows: dict[str, list[int]] = {shard.name: [] for shard in plan}
    for config in {shard.config: None for shard in plan}:
        shards = [shard for shard in plan if shard.config == config]
        ends = np.cumsum([shard.stop - shard.start for shard in shards])
        drawn = np.random.default_rng(seed).choice(ends[-1], min(sample, ends[-1]), replace=False)
        for position in np.sort(drawn):
            index = int(np.searchsorted(ends, position, side="right"))
            rows[shards[index].name].append(int(shards[index].stop - (ends[index] - position)))
    return rows


class _Problems:
    """Problems of a shard: one line for each kind, however many rows have it."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._more: collections.Counter[tuple[str, str]] = collections.Counter()

    def add(self, problem: str, kind: str = "", count: int = 1, unit: str = "rows") -> None:
        """Adds a problem. The first of a kind is told in words, the others as a number of `unit`."""
        kind = kind or problem
        self._more[kind, unit] += count - (kind not in self._first)
        self._first.setdefault(kind, problem)

    def findings(self, file: str) -> list[Finding]:
        """Makes the findings, in the order in which their kinds came up."""
        more = {kind: f" (and {count:,} more {unit})" for (kind, unit), count in self._more.items() if count}
        return [Finding(file, problem + more.get(kind, "")) for kind, problem in self._first.items()]


def check_shard(task: Task) -> Result:
    """Checks a shard: its file against the manifest, its layout and schema, every row, and rows against the source."""
    problems = _Problems()
    path = task.folder / task.shard.name
    result = Result(0, 0, None, [])
    if path.is_file():
        try:
            _check_bytes(task, path, problems)
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                _check_schema(task, file, problems)
                result = _check_content(task, file, problems)
        except Exception as error:  # damaged bytes lead anywhere: Arrow's errors, bad JSON, bad UTF-8, lack of memory
            problems.add(f"can't be read ({_one_line(error)}), expected a Parquet file")
    else:
        problems.add("missing, expected it as part of its split")
    return dataclasses.replace(result, findings=problems.findings(task.shard.name))


def _check_bytes(task: Task, path: Path, problems: _Problems) -> None:
    if task.record is None:
        return
    size = path.stat().st_size
    if size != task.record.bytes:
        problems.add(f"{size:,} bytes, expected {task.record.bytes:,}")
    with path.open("rb") as file:
        sha256 = sha_fileobj(file).hex()
    if sha256 in task.owner and sha256 != task.record.sha256:
        problems.add(f"has the content of {task.owner[sha256]}, expected its own")
    elif sha256 != task.record.sha256 and size == task.record.bytes:
        problems.add(f"sha256 {_short(sha256, 16)}, expected {_short(task.record.sha256, 16)}")


def _check_schema(task: Task, file: pq.ParquetFile, problems: _Problems) -> None:
    features = layout.features(task.shard.config)
    found, expected = file.schema_arrow, features.arrow_schema
    if found.names != expected.names:
        problems.add(f"columns {', '.join(found.names)}, expected {', '.join(expected.names)}")
    for name in expected.names:
        if name in found.names and found.field(name) != expected.field(name):
            problems.add(f"column '{name}' is {_field(found.field(name))}, expected {_field(expected.field(name))}")
    try:
        found_features = json.loads(found.metadata[b"huggingface"])["info"]["features"]
        same = datasets.Features.from_dict(found_features) == features
    except Exception as error:  # whatever somebody wrote there
        problems.add(f"no features for `datasets` in its schema ({_one_line(error)}), expected those of the config")
    else:
        if not same:
            known = json.loads(expected.metadata[b"huggingface"])["info"]["features"]
            difference = next(_differences(found_features, known, "features"), "features differ, expected the config's")
            problems.add(f"in the schema for `datasets`, {difference}")


def _field(field: pa.Field) -> str:
    type_ = field.type
    name = f"Array3D({type_.shape}, {type_.value_type})" if isinstance(type_, pa.ExtensionType) else str(type_)
    return name if field.nullable else f"{name} not null"


def _check_content(task: Task, file: pq.ParquetFile, problems: _Problems) -> Result:
    """Reads all pages of a shard, a block of rows at a time, and checks and compares what is in them."""
    total = file.metadata.num_rows
    if total != task.shard.stop - task.shard.start:
        problems.add(f"{total:,} rows, expected {task.shard.stop - task.shard.start:,}")
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    size = layout.ROW_GROUP_ROWS[task.shard.kind]
    for group, found in enumerate(sizes):
        expected = min(size, max(0, total - group * size))
        if found != expected:
            problems.add(f"row group {group} has {found:,} rows, expected {expected:,}", "row groups", 1, "row groups")
    counts = np.zeros(len(so2sat.LABELS), np.int64)
    compared = 0
    with contextlib.ExitStack() as stack:
        source = _open_source(task, stack, problems)
        row = task.shard.start
        for group, rows in enumerate(sizes):
            for first, block in _blocks(task, file, group, rows, problems):
                counts += _check_block(task, row + first, block, problems)
                if source:
                    try:
                        compared += _compare_block(task, source, row + first, block, problems)
                    except so2sat.SourceError as error:
                        problems.add(f"can't be compared from row {row + first} on ({error}), expected a sound source")
                        source = None
            row += rows
    return Result(total, compared, counts if counts.sum() == total else None, [])


def _open_source(task: Task, stack: contextlib.ExitStack, problems: _Problems) -> layout.Reader | None:
    if not task.shard.source or task.rows == []:
        return None
    try:
        return stack.enter_context(task.shard.open())
    except so2sat.SourceError as error:
        problems.add(f"can't be compared ({error}), expected a sound source")
        return None


def _blocks(
    task: Task, file: pq.ParquetFile, group: int, rows: int, problems: _Problems
) -> Iterator[tuple[int, dict[str, pa.Array]]]:
    """Reads a row group, every column for itself, so that one with a damaged page doesn't hide the others.

    Yields:
        The number of a block's first row in the group, and those of its columns that could be read and have the
        type they must have.
    """
    schema = layout.features(task.shard.config).arrow_schema
    readers = {
        name: file.iter_batches(so2sat.ROWS_PER_BLOCK, [group], columns=[name], use_threads=False)
        for name in schema.names
        if name in file.schema_arrow.names
    }
    unread = set(schema.names) - set(readers)
    for first in range(0, rows, so2sat.ROWS_PER_BLOCK):
        expected = min(so2sat.ROWS_PER_BLOCK, rows - first)
        block = {}
        for name in [*readers]:
            try:
                array = next(readers[name]).column(0)
                if len(array) != expected:
                    raise ValueError(f"{len(array)} rows came instead of {expected}")
            except Exception as error:  # as on opening
                problems.add(
                    f"column '{name}' of row group {group} can't be read ({_one_line(error)}), expected {rows:,} rows",
                    f"unreadable {name}",
                    unit="row groups",
                )
                del readers[name]
                unread.add(name)
            else:
                if array.type == schema.field(name).type:
                    block[name] = array
        if not readers:
            break
        yield first, block
    if not unread:
        _check_page_index(file, group, problems)


def _check_page_index(file: pq.ParquetFile, group: int, problems: _Problems) -> None:
    """Whether the pages of a row group can be fetched one by one.

    Only for row groups that could be read: of a damaged one, asking for a column's metadata ends the process.
    """
    for index in range(file.metadata.num_columns):
        chunk = file.metadata.row_group(group).column(index)
        if not chunk.has_offset_index:
            problems.add(
                f"no page index for {chunk.path_in_schema} of row group {group}, expected one for every column",
                "page index",
                unit="column chunks",
            )


# ┌────────┐
# │  Rows  │
# └────────┘


def _check_block(task: Task, row: int, block: Mapping[str, pa.Array], problems: _Problems) -> npt.NDArray[np.int64]:
    """Checks a block by itself, which starts at row `row` of the split, and counts its patches per class."""
    counts = np.zeros(len(so2sat.LABELS), np.int64)
    if "label" in block:
        labels = _integers(block["label"])
        in_range = (labels >= 0) & (labels < len(so2sat.LABELS))
        counts += np.bincount(labels[in_range], minlength=len(so2sat.LABELS))
        if (wrong := np.flatnonzero(~in_range)).size:
            found = f"row {row + wrong[0]} has label {block['label'][wrong[0]]}"
            problems.add(f"{found}, expected 0 to {len(so2sat.LABELS) - 1}", "label", wrong.size)
    if "sample_id" in block:
        expected = np.arange(row, row + len(block["sample_id"]))
        if (wrong := np.flatnonzero(_integers(block["sample_id"]) != expected)).size:
            found = f"row {row + wrong[0]} has sample_id {block['sample_id'][wrong[0]]}"
            problems.add(f"{found}, expected {row + wrong[0]}", "sample_id", wrong.size)
    if "image" in block:
        for at, image in enumerate(_images(block["image"])):
            if reason := _image_problem(image, task.shard.image_format):
                found = f"row {row + at} has an image that {reason}"
                problems.add(f"{found}, expected {task.shard.image_format} of 32×32 pixels, RGB", "image")
    for name in ("sentinel1", "sentinel2"):
        if name in block and _floats(block[name]) is None:
            found = f"{name} has nulls or lists of another length in rows {row} to {row + len(block[name]) - 1}"
            shape = "×".join(map(str, block[name].type.shape))
            problems.add(f"{found}, expected {shape} numbers each", f"shape of {name}", unit="blocks of rows")
    return counts


def _compare_block(
    task: Task, source: layout.Reader, row: int, block: Mapping[str, pa.Array], problems: _Problems
) -> int:
    """Compares rows of a block, which starts at row `row` of the split, with the source, and counts them."""
    stop = min(row + max(map(len, block.values()), default=0), source.rows)
    ranges = [(row, stop)] if task.rows is None else [(at, at + 1) for at in task.rows if row <= at < stop]
    compared = 0
    for first, last in ranges:
        if first < last:
            columns: dict[str, Any] = {**source.read(first, last)}
            if "image" in columns:
                columns["image"] = so2sat.encode_images(columns["image"], task.shard.image_format)
            for name, column in block.items():
                found = column.slice(first - row, last - first)
                if name == "label":
                    _compare_labels(found, columns[name], source.path, first, problems)
                elif name == "image":
                    _compare_images(task, found, columns[name], source.path, first, problems)
                elif isinstance(found, pa.ExtensionArray):
                    _compare_floats(name, found, columns[name], source.path, first, problems)
                elif name != "sample_id":  # which every row was checked for
                    _compare_values(name, found, columns[name], first, problems)
            if set(block) == set(columns):  # a row with a damaged column was not compared
                compared += last - first
    return compared


def _compare_labels(found: pa.Array, expected: npt.NDArray[np.int64], path: str, row: int, problems: _Problems) -> None:
    if (wrong := np.flatnonzero(_integers(found) != expected)).size:
        at = wrong[0]
        what = f"row {row + at} has label {found[at]}, expected {expected[at]} as in {path}"
        problems.add(what, "label against source", wrong.size)


def _compare_values(name: str, found: pa.Array, expected: npt.NDArray[Any], row: int, problems: _Problems) -> None:
    for at, (value, other) in enumerate(zip(found.to_pylist(), expected.tolist())):
        # Another version of PROJ may compute the last digits of a longitude otherwise.
        is_degree = name in ("longitude", "latitude") and value is not None
        if not (math.isclose(value, other, rel_tol=0, abs_tol=MAX_DEGREES) if is_degree else value == other):
            problems.add(
                f"row {row + at} has {name} {value}, expected {other} as in the source", f"{name} against source"
            )


def _compare_images(
    task: Task, found: pa.Array, expected: Sequence[bytes], path: str, row: int, problems: _Problems
) -> None:
    for at, (image, other) in enumerate(zip(_images(found), expected)):
        # Compressed losslessly, the same pixels may come as other bytes; JPEG may only from another Pillow.
        if image == other or _image_problem(image, task.shard.image_format):
            continue
        psnr = _psnr(image, other)
        least = np.inf if task.shard.image_format == "png" else MIN_PSNR
        if psnr < least or (task.same_pillow and task.shard.image_format != "png"):
            like = f"PSNR {psnr:.1f} dB" if np.isfinite(psnr) else "the same pixels in other bytes"
            problems.add(f"row {row + at} has another image ({like}), expected that of {path}", "image against source")


def _compare_floats(
    name: str, found: pa.Array, expected: npt.NDArray[np.float32], path: str, row: int, problems: _Problems
) -> None:
    values = _floats(found)
    if values is None:  # told already
        return
    differs = values.view(np.uint32) != expected.view(np.uint32)  # bits, so that NaN equals NaN and -0 is not 0
    wrong = np.flatnonzero(differs.any(axis=(1, 2, 3)))
    if wrong.size:
        at = wrong[0]
        y, x, band = np.argwhere(differs[at])[0]
        what = f"row {row + at} has {name}[{y}, {x}, {band}] = {values[at, y, x, band]!s}"
        what += f", expected {expected[at, y, x, band]!s} as in {path}"
        problems.add(what, f"{name} against source", wrong.size)


def _integers(array: pa.Array) -> npt.NDArray[np.int64]:
    """The numbers of a column; -1, which none of ours may be, for null."""
    values: npt.NDArray[np.int64] = array.fill_null(-1).to_numpy()
    return values


def _images(array: pa.Array) -> list[bytes | None]:
    images: list[bytes | None] = pc.struct_field(array, "bytes").to_pylist()
    return images


def _floats(array: pa.ExtensionArray) -> npt.NDArray[np.float32] | None:
    """The values of an Array3D column, shape (rows, 32, 32, bands), without a copy; None if they are not that many."""
    values = array.storage
    for length in array.type.shape:
        if values.null_count or (values.value_lengths().to_numpy() != length).any():
            return None
        values = values.flatten()
    if values.null_count:
        return None
    numbers: npt.NDArray[np.float32] = values.to_numpy().reshape(len(array), *array.type.shape)
    return numbers


def _image_problem(image: bytes | None, image_format: str) -> str:
    """What is wrong with an image file by itself, an empty string if nothing."""
    if image is None:
        return "is null"
    try:
        with PIL.Image.open(io.BytesIO(image)) as opened:
            opened.load()
    except Exception as error:  # Pillow's formats have exceptions of their own
        return f"can't be decoded ({_one_line(error)})"
    if opened.format != so2sat.IMAGE_FORMATS[image_format]["format"] or opened.mode != "RGB":
        return f"is {opened.format}, {opened.mode}"
    size = (so2sat.PATCH_SIZE, so2sat.PATCH_SIZE)
    return "" if opened.size == size else f"has {opened.width}×{opened.height} pixels"


def _psnr(image: bytes | None, other: bytes) -> float:
    """Peak signal-to-noise ratio between two images in dB, infinite for the same pixels."""
    pixels, others = (np.asarray(PIL.Image.open(io.BytesIO(file or b"")), np.float64) for file in (image, other))
    error = float(np.mean((pixels - others) ** 2))
    return 10 * float(np.log10(255**2 / error)) if error else np.inf


# ┌────────┐
# │  Text  │
# └────────┘


def _few(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    listed = [*names]
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _one_line(error: BaseException) -> str:
    return _short(" ".join(str(error).split()) or type(error).__name__, 200)


if __name__ == "__main__":
    sys.exit(main())
