"""Builds the Parquet repository from a folder of So2Sat HDF5 files."""

from __future__ import annotations

import publishing

if __name__ == "__main__":
    publishing.end_on_ctrl_c()

import argparse
import collections
import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tqdm
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from datasets.utils.file_utils import is_remote_url

import so2sat
from publishing import card, checks, command, executors, files, layout, manifest, places
from publishing.band_statistics import METHOD, ConfigStatistics
from publishing.command import CommandError
from publishing.layout import Limits, Shard
from publishing.manifest import Manifest, SourceRecord

EXAMPLES = """\
  python scripts/build.py data build/so2sat                  all configs, one worker process per core
  python scripts/build.py data build/so2sat --config all     one config
  python scripts/build.py https://host/data build/so2sat     from a server, read by ranges
  python scripts/build.py /lab/data /lab/so2sat --dask tcp://host:8786
                                                             on a Dask cluster that shares /lab
"""

TRAIN = Path(__file__).with_name("train.py")  # goes with the patches

_RENAME = "choose another name"

LITTLE_WORK = 100_000_000  # bytes of rows in memory; for less, starting a process takes longer than the work


def main(argv: Sequence[str] | None = None, limits: Mapping[str, Limits] = layout.LIMITS) -> int:
    """Runs the command line."""
    parser = command.parser(
        "Builds a Parquet repository, ready for load_dataset() and for the Hub, from So2Sat HDF5 files. A build that"
        " was interrupted goes on where it stopped when it is run again. A shard is kept if its source has the same"
        " size, rows and labels as before; other changes of a source are found by verify.py --source.",
        EXAMPLES,
    )
    names = ", ".join(so2sat.SOURCE_FILES.values())
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=command.named,
        help=f"folder or fsspec URL with {names}, or some of them; …_geo.h5 beside them for geo; the folders random and"
        " block of edition 3 for the configs of these names",
    )
    parser.add_argument(
        "output", metavar="OUTPUT", type=_folder, help="folder: new, empty or a repository built earlier"
    )
    parser.add_argument(
        "--config", action="append", choices=layout.CONFIGS, help="may be repeated (default: all whose files are there)"
    )
    parser.add_argument(
        "--image-format",
        choices=so2sat.IMAGE_FORMATS,
        help="of images (default: the repository's own, jpeg for a new one; png is lossless)",
    )
    parser.add_argument(
        "--workers",
        type=command.number(1, 1024),
        metavar="N",
        help="processes (default: one per core, or only this one for little work)",
    )
    parser.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="run the work on the Dask cluster of this scheduler, whose workers must all see SOURCE and OUTPUT under"
        " the same path; 'local' starts a cluster of --workers processes",
    )
    parser.add_argument(
        "--rewrite", action="store_true", help="write every shard anew; needed to replace measured data by synthetic"
    )
    parser.add_argument("--drop", action="store_true", help="remove splits whose files SOURCE lacks")
    return command.run(functools.partial(_run, limits), parser, argv)


def _folder(text: str) -> Path:
    if "://" in command.named(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a local folder")
    if not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} has characters that can't be printed, expected another name")
    return Path(text)


def _run(limits: Mapping[str, Limits], options: argparse.Namespace) -> None:
    build(
        options.source,
        options.output,
        configs=options.config,
        image_format=options.image_format,
        workers=options.workers,
        rewrite=options.rewrite,
        drop=options.drop,
        dask=options.dask,
        limits=limits,
    )


def build(
    source: str,
    output: Path,
    configs: Sequence[str] | None = None,
    image_format: str | None = None,
    workers: int | None = None,
    rewrite: bool = False,
    drop: bool = False,
    dask: str | None = None,
    limits: Mapping[str, Limits] = layout.LIMITS,
) -> Manifest:
    """Builds a repository, or completes or updates one.

    Args:
        source: Folder or fsspec URL with the source files.
        output: Folder of the repository. Configs it already holds stay part of it.
        configs: Configs to build; if None, all whose files are there.
        image_format: One of so2sat.IMAGE_FORMATS; if None, the repository's own, or "jpeg".
        workers: Number of worker processes; 1 works in this process. If None, as many as pay.
        rewrite: Whether to write shards anew that are there already, even synthetic ones over measured ones.
        drop: Whether to remove splits whose source files are gone.
        dask: Address of a Dask scheduler to run the work, or "local" for a Dask cluster on this machine.
        limits: How large shards and row groups get, by the kind of a config.

    Returns:
        What the repository holds now.

    Raises:
        so2sat.SourceError: A source file is not as expected.
        CommandError: The repository can't be written as things are.
    """
    output = Path(os.path.expanduser(output)).resolve()
    folder = source if is_remote_url(source) else os.path.abspath(os.path.expanduser(source))
    _check_output(output)
    old = Manifest.load(output)
    sources = _find_sources(folder, configs, old.configs if old else [])
    if output.name == TRAIN.stem and _has_patches(sources):
        raise CommandError(f"{output}: a folder of this name can't be loaded if {TRAIN.name} is in it; {_RENAME}")
    paths = layout.source_paths(sources)
    states = _states(paths)
    print(f"{source}: checking all labels and places")
    new = Manifest(
        versions=manifest.current_versions(),
        image_format=image_format or (old.image_format if old else "jpeg"),
        limits=dict(limits),
        sources=manifest.describe(paths),
        configs=list(sources),
        files=old.files if old else {},
    )
    _tell_sources(sources, new)
    _refuse_twins(paths, new.sources)
    with _full_disk_told(output), files.locked(output, layout.STATE_FOLDER), _cleaned(output):
        if old != Manifest.load(output):
            raise CommandError(f"{output}: another build has changed it meanwhile; run the same command again")
        if old:
            _check_slips(output, old, new, rewrite, drop)
        plan = new.plan(sources)
        if old and not rewrite:
            new.shards = _kept_shards(output, old, new, plan)
        missing = [shard for shard in plan if shard.name not in new.shards]
        stale = {*layout.find_shards(output)} - {shard.name for shard in plan}
        if missing or stale:
            with _runner(dask, workers, output, [*paths.values()], missing) as run:
                _mark_incomplete(output, new, stale)
                _write(run, output, new, missing)
        if changed := [name for name, state in _states(paths).items() if state != states[name]]:
            new.shards = {}
            new.save(output)
            raise CommandError(f"{source}: {changed[0]} was changed while it was read; run the same command again")
        _finish(output, new)
    return new


# ┌────────┐
# │  Plan  │
# └────────┘


def _has_patches(configs: Iterable[str]) -> bool:
    return any(layout.CONFIGS[config].kind != "geo" for config in configs)


def _check_output(output: Path) -> None:
    """Makes sure that nothing of others is overwritten.

    Raises:
        CommandError: The folder holds something else, or load_dataset() would not find it.
    """
    if pattern := re.search(r"[*?\[]|::|/~", str(output)):
        raise CommandError(f"{output}: load_dataset() takes a path with {pattern[0]!r} for a pattern; {_RENAME}")
    if output.suffix == ".py" or output.name in _PACKAGED_DATASETS_MODULES:
        raise CommandError(f"{output}: load_dataset() takes this name for something else; {_RENAME}")
    if links := [name for name in ("assets", *layout.CONFIGS) if (output / name).is_symlink()]:
        raise CommandError(f"{output / links[0]}: a link, expected a folder; put the folder itself in its place")
    if output.exists() and not output.is_dir():
        raise CommandError(f"{output}: not a folder")
    if output.is_dir() and not (output / manifest.NAME).exists():
        names = sorted(path.name for path in output.iterdir())
        others = [name for name in names if name != layout.STATE_FOLDER and not name.endswith(files.INCOMPLETE_SUFFIX)]
        if others:
            raise CommandError(
                f"{output}: holds {others[0]} but no {manifest.NAME} of an earlier build; give a new or empty folder"
            )


def _find_sources(folder: str, asked: Sequence[str] | None, built: Sequence[str]) -> dict[str, dict[str, str]]:
    """Finds the source files of the configs to build: by config and split, in the order of layout.CONFIGS.

    Args:
        folder: Folder or fsspec URL.
        asked: Configs that must be there; if None, all whose files are there.
        built: Configs that the repository holds, and keeps if their files are there.

    Raises:
        so2sat.SourceError: A file is missing or not as expected.
    """
    sources, missing = {}, []
    for config in layout.CONFIGS:
        if not asked or config in asked or config in built:
            try:
                sources[config] = layout.find_sources(folder, config)
            except so2sat.MissingSourceError as error:
                if asked and config in asked:
                    raise
                missing.append(error)
    if not sources:
        raise missing[0]
    return sources


def _tell_sources(sources: Mapping[str, Mapping[str, str]], new: Manifest) -> None:
    for name, record in new.sources.items():
        print(f"  {name}: {record.rows:,} rows{', SYNTHETIC' if record.synthetic else ''}")
    for config, splits in sources.items():
        names = {split: layout.source_files(config, split)[-1] for split in layout.CONFIGS[config].files}
        if absent := so2sat.absent_splits(config, names, splits):
            print(f"  {absent}")


def _states(paths: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """What tells that a local file was changed without reading it: size and time."""
    stats = {name: os.stat(path) for name, path in paths.items() if not is_remote_url(path)}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _refuse_twins(paths: Mapping[str, str], records: Mapping[str, SourceRecord]) -> None:
    """Makes sure that no file is there under two names, or two splits would hold the same patches.

    Raises:
        CommandError: Two files have the same labels and the same first patch.
    """
    for (name, record), (other, its) in itertools.combinations(records.items(), 2):
        if (record.rows, record.fingerprint) == (its.rows, its.fingerprint) and not places.is_geo(name):
            with so2sat.open_source(paths[name]) as mine, so2sat.open_source(paths[other]) as theirs:
                first, second = (source.read("sen2", 0, 1).tobytes() for source in (mine, theirs))
            if first == second:
                raise CommandError(f"{paths[name]}: the same file as {paths[other]}, expected different patches")


def _check_slips(output: Path, old: Manifest, new: Manifest, rewrite: bool, drop: bool) -> None:
    """Makes sure that hours of work are not replaced by a slip of the hand.

    Raises:
        CommandError: A source of the repository is gone, or synthetic data would replace measured data.
    """
    gone = [name for name in old.sources if name not in new.sources]
    if gone and not drop:
        raise CommandError(f"{output}: was made from {gone[0]} too, which SOURCE lacks; --drop removes its split")
    invented = {name for name, record in new.sources.items() if record.synthetic}
    known = {name for name, record in old.sources.items() if record.synthetic}
    if invented - known and old.sources.keys() - known and not rewrite:
        name = min(invented - known)
        raise CommandError(f"{output}: holds measured data and SOURCE's {name} is synthetic; --rewrite takes it in")


def _kept_shards(output: Path, old: Manifest, new: Manifest, plan: Sequence[Shard]) -> dict[str, layout.ShardRecord]:
    """Finds the shards of an earlier build that are still right, and says in a sentence why the others are not."""
    if old.versions["layout"] != new.versions["layout"]:  # then the manifest that was read has no shards
        print(f"all shards are written anew: layout was {old.versions['layout']}, now {new.versions['layout']}")
        return {}
    known = [shard for shard in plan if shard.name in old.shards]
    reasons = {shard.name: _change(shard, old, new) for shard in known}
    candidates = [shard for shard in known if not reasons[shard.name]]
    with concurrent.futures.ThreadPoolExecutor() as pool:  # checksums don't need Python's lock
        are_intact = pool.map(lambda shard: layout.is_intact(output, shard, old.shards[shard.name]), candidates)
        with _bar(candidates, "checking") as bar:
            for shard, intact in zip(candidates, are_intact):
                reasons[shard.name] = "" if intact else "lost or damaged"
                bar.update(shard.rows)
    counts = collections.Counter(filter(None, reasons.values()))
    if counts:
        told = "; ".join(f"{count} {reason}" for reason, count in counts.items())
        print(f"{counts.total()} of {len(plan)} shards are written anew: {told}")
    return {name: old.shards[name] for name, reason in reasons.items() if not reason}


def _change(shard: Shard, old: Manifest, new: Manifest) -> str:
    """What of all that decides a shard's bytes has changed, an empty string if nothing."""
    kind = layout.CONFIGS[shard.config].kind
    for name in layout.source_files(shard.config, shard.split):
        if old.sources.get(name) != new.sources[name]:
            return f"because {name} has changed"
    for name in ("pyarrow", *(["pillow"] if kind == "rgb" else [])):
        if old.versions[name] != new.versions[name]:
            return f"because {name} was {old.versions[name]}, now {new.versions[name]}"
    if kind == "rgb" and old.image_format != new.image_format:
        return f"because the image format was {old.image_format}, now {new.image_format}"
    if old.limits[kind] != new.limits[kind]:
        return "because shards had other limits"
    return ""


# ┌────────┐
# │  Work  │
# └────────┘


def _runner(
    dask: str | None, workers: int | None, output: Path, paths: Sequence[str], missing: Sequence[Shard]
) -> contextlib.AbstractContextManager[executors.Run]:
    """Where shards are written. Space is checked first."""
    needed = sum(shard.rows * layout.kind_of(shard.config).row_bytes for shard in missing)
    free = shutil.disk_usage(output).free
    if needed > free:
        sizes = f"up to {needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
        print(f"warning: {output}: {sizes}; if the disk gets full, finished shards are kept", file=sys.stderr)
    cores = os.cpu_count() or 1
    if dask:
        return executors.dask_cluster(dask, workers or cores, output, paths)
    workers = min(workers or (cores if needed > LITTLE_WORK else 1), len(missing))
    return executors.processes(workers) if workers > 1 else contextlib.nullcontext(executors.here)


def _mark_incomplete(output: Path, new: Manifest, stale: set[str]) -> None:
    """Makes the folder one that is ours and doesn't load, and takes away what belongs to no split."""
    new.save(output)
    with files.replacing(output / card.NAME) as file:
        file.write(card.INCOMPLETE.encode())
    for name in sorted(stale):
        print(f"{name} is removed: it is none of the shards that the sources make")
        (output / name).unlink()
    layout.keep_statistics(output, new.shards.values())


def _write(run: executors.Run, output: Path, new: Manifest, missing: Sequence[Shard]) -> None:
    """Writes the missing shards; after each the manifest knows of it."""
    started, total = time.monotonic(), len(new.shards) + len(missing)
    try:
        with _bar(missing, "writing") as bar:
            for shard, record in run(functools.partial(layout.write_shard, folder=output), missing):
                new.shards[shard.name] = record
                new.save(output)
                bar.update(shard.rows)
                if bar.disable:
                    print(f"{len(new.shards)} of {total} shards are written: {shard.name}", flush=True)
    except CommandError as error:
        raise CommandError(f"{output}: {error} ({len(new.shards)} of {total} shards are finished and kept)") from error
    if missing:
        rows, seconds = sum(shard.rows for shard in missing), time.monotonic() - started
        print(f"wrote {len(missing)} shards, {rows:,} rows in {seconds:.1f} s ({rows / seconds:,.0f} rows/s)")


def _bar(shards: Sequence[Shard], label: str) -> Any:
    total = sum(shard.rows for shard in shards)
    return tqdm.tqdm(total=total, desc=label, unit=" rows", disable=None, dynamic_ncols=True)


@contextlib.contextmanager
def _cleaned(output: Path) -> Iterator[None]:
    """Removes unfinished files of this build, and of an earlier one that was killed, where builds write any."""

    def clean() -> None:
        name = re.compile(rf"\..+\.[0-9a-f]{{32}}{files.INCOMPLETE_SUFFIX}")
        for folder in ("", layout.STATE_FOLDER, f"{layout.STATE_FOLDER}/statistics", "assets", *layout.CONFIGS):
            for path in output.joinpath(folder).glob(f".*{files.INCOMPLETE_SUFFIX}"):
                if name.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    clean()
    try:
        yield
    finally:
        clean()


@contextlib.contextmanager
def _full_disk_told(output: Path) -> Iterator[None]:
    """Names the folder when the disk is full: the system's own error may name no path."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CommandError(
            f"{output}: the disk is full; free some space and run the same command again, finished shards are kept"
        ) from error


# ┌──────────┐
# │  Finish  │
# └──────────┘


def _finish(output: Path, new: Manifest) -> None:
    """Writes what comes of all shards together, the card last, and reports."""
    statistics = _statistics(output, new)
    text = json.dumps({"method": METHOD, "configs": statistics}, indent=1, allow_nan=False) + "\n"
    others = {**card.pictures(output, new, statistics), layout.STATISTICS_NAME: text.encode()}
    if _has_patches(new.configs):
        others[TRAIN.name] = TRAIN.read_bytes()
    stale = {*new.files} - {*others}  # pictures of what is no more
    new.files = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(others.items())}
    last = {manifest.NAME: new.to_json(), card.NAME: card.render(new, statistics, output.name).encode()}
    is_new = False
    for name, content in {**others, **last}.items():
        path = output / name
        if not path.is_file() or path.read_bytes() != content:
            is_new = True
            path.parent.mkdir(exist_ok=True)
            with files.replacing(path) as file:
                file.write(content)
    for name in stale:
        (output / name).unlink(missing_ok=True)
    layout.keep_statistics(output, new.shards.values())
    for warning in checks.warnings(statistics):
        print(f"warning: {warning}", file=sys.stderr)
    rows = sum(record.rows for record in new.shards.values())
    size = sum(record.bytes for record in new.shards.values())
    print(
        f"{output} is {'complete' if is_new else 'up to date'}: {', '.join(new.configs)}; {len(new.shards)} shards,"
        f" {rows:,} rows, {size:,} bytes{'; SYNTHETIC' if new.synthetic else ''}"
    )


def _statistics(output: Path, new: Manifest) -> dict[str, dict[str, Any]]:
    """Statistics of every config and split, merged in the order of the shards."""
    result: dict[str, dict[str, Any]] = {}
    for config in new.configs:
        result[config] = {}
        for split in new.splits(config):
            merged = ConfigStatistics(layout.kind_of(config).bands)
            for name in new.shard_names(config, split):
                found = layout.load_statistics(output, config, new.shards[name])
                assert found  # kept shards were checked for it, others were written just now
                merged.merge(found)
            result[config][split] = merged.summary()
    if "geo" in result:
        for split, shared in checks.shared_places(output, new).items():
            result["geo"][split]["shared"] = shared
    return result


if __name__ == "__main__":
    sys.exit(main())
