"""Builds the Parquet repository from a folder of So2Sat HDF5 files."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import tqdm
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

import so2sat
from publishing import card, command, contents, executors, files, manifest, shards
from publishing.command import CommandError
from publishing.configs import CONFIGS, Config, Limits
from publishing.manifest import Manifest
from publishing.shards import Shard, ShardRecord

EXAMPLES = """\
  python scripts/build.py data build/so2sat                  all configs, one worker process per core
  python scripts/build.py data build/so2sat --config all     one config, and those that are there already
  python scripts/build.py https://host/data build/so2sat     from a server, read by ranges
  python scripts/build.py /lab/data /lab/so2sat --dask tcp://host:8786
                                                             on a Dask cluster that shares /lab
"""

LITTLE_WORK = 100_000_000  # bytes of rows in memory; for less, starting a process takes longer than the work

_RENAME = "choose another name"


def main(argv: Sequence[str] | None = None, limits: Mapping[str, Limits] | None = None) -> int:
    """Runs the command line."""
    parser = command.parser(
        "Builds a Parquet repository, ready for load_dataset() and for the Hub, from So2Sat HDF5 files. A build that"
        " was interrupted goes on where it stopped when it is run again. A shard is kept if nothing that decides its"
        " bytes has changed. Of a source file, its size, all labels or positions, and 256 evenly spaced rows of each"
        " array are compared; a change of other rows alone is seen by verify.py --source.",
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
        "--config",
        action="append",
        dest="configs",
        metavar="CONFIG",
        choices=CONFIGS,
        help=f"one of {', '.join(CONFIGS)}; may be repeated (default: all whose files are there); others that OUTPUT"
        " holds stay, unless --drop is given",
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
        help="processes (default: one per core that this process may use, or only this one for little work)",
    )
    parser.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="run the work on the Dask cluster of this scheduler. Its workers must see SOURCE and OUTPUT under the same"
        " path, have this project installed (pip install -e '.[scripts,dask]') and its folder scripts in PYTHONPATH;"
        " 'local' starts a cluster of --workers processes",
    )
    parser.add_argument(
        "--rewrite",
        action="store_true",
        help="write every shard anew; needed to take in synthetic data, or a source with other rows",
    )
    parser.add_argument(
        "--drop",
        action="store_true",
        help="remove splits whose files SOURCE lacks, and with --config the configs that are not named",
    )
    return command.run(functools.partial(_run, limits), parser, argv)


def _folder(text: str) -> Path:
    if "://" in command.named(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a local folder")
    if not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} has characters that can't be printed, expected another name")
    return Path(text)


def _run(limits: Mapping[str, Limits] | None, options: argparse.Namespace) -> None:
    arguments = {name: value for name, value in vars(options).items() if name != "debug"}
    build(**arguments, limits=limits)


def build(
    source: str,
    output: Path,
    configs: Sequence[str] | None = None,
    image_format: str | None = None,
    workers: int | None = None,
    rewrite: bool = False,
    drop: bool = False,
    dask: str | None = None,
    limits: Mapping[str, Limits] | None = None,
) -> Manifest:
    """Builds a repository, or completes or updates one.

    Args:
        source: Folder or fsspec URL with the source files.
        output: Folder of the repository.
        configs: Configs to build; if None, all whose files are there. Others that the repository holds stay in it.
        image_format: One of so2sat.IMAGE_FORMATS; if None, the repository's own, or "jpeg".
        workers: Number of worker processes; 1 works in this process. If None, as many as pay.
        rewrite: Whether to write shards anew that are there already, even synthetic ones over measured ones.
        drop: Whether to remove splits whose source files are gone, and configs that are not among `configs`.
        dask: Address of a Dask scheduler to run the work, or "local" for a Dask cluster on this machine.
        limits: How large shards and row groups get, by config, where not as the config says.

    Returns:
        What the repository holds now.

    Raises:
        so2sat.SourceError: A source file is not as expected.
        CommandError: The repository can't be written as things are.
    """
    output = Path(os.path.expanduser(output)).resolve()
    folder = source if so2sat.is_url(source) else os.path.abspath(os.path.expanduser(source))
    _check_output(output)
    old = Manifest.load(output)
    kept = [] if drop or not old else [*old.configs]
    states = _states(folder)
    print(f"{so2sat.printable(source)}: checking all labels and places")
    new = _describe(folder, configs, kept, image_format or (old.image_format if old else "jpeg"), limits or {})
    if output.name == contents.TRAIN.stem and contents.has_patches(new):
        what = f"a folder of this name can't be loaded with {contents.TRAIN.name} in it"
        raise CommandError(f"{output}: {what}; {_RENAME}")
    with files.locked(output, shards.STATE_FOLDER), _cleaned(output):
        if old != Manifest.load(output):
            raise CommandError(f"{output}: another build has changed it meanwhile; run the same command again")
        if old:
            _check_slips(output, old, new, rewrite, drop)
            new.files = old.files
            if not rewrite:
                new.shards = _unchanged(old, new)
        # Before the first shard, so that no conversion of hours ends in an error of the card's template.
        blank = dataclasses.replace(new, shards={})
        card.render(blank, contents.summaries(output, blank, contents.blank(blank)), output.name)
        with _runner(dask, workers, output, folder, new) as run:
            statistics = _make(run, output, folder, new, [*old.configs] if old else [])
        _forget_changed(output, folder, new, states)
        _finish(output, new, statistics)
    return new


# ┌────────┐
# │  Plan  │
# └────────┘


def _check_output(output: Path) -> None:
    """Makes sure that nothing of others is overwritten.

    Raises:
        CommandError: The folder holds something else, or load_dataset() would not find it.
    """
    if pattern := re.search(r"[*?\[]|::|/~", str(output)):
        raise CommandError(f"{output}: load_dataset() takes a path with {pattern[0]!r} for a pattern; {_RENAME}")
    if output.suffix == ".py" or output.name in _PACKAGED_DATASETS_MODULES:
        raise CommandError(f"{output}: load_dataset() takes this name for something else; {_RENAME}")
    if links := [name for name in ("assets", *CONFIGS) if (output / name).is_symlink()]:
        raise CommandError(f"{output / links[0]}: a link, expected a folder; put the folder itself in its place")
    if output.exists() and not output.is_dir():
        raise CommandError(f"{output}: not a folder")
    others = {path.name for path in output.iterdir()} - {shards.STATE_FOLDER} if output.is_dir() else None
    if others and manifest.NAME not in others:
        what = f"holds {min(others)} but no {manifest.NAME} of an earlier build"
        raise CommandError(f"{output}: {what}; give a new or empty folder")


def _describe(
    folder: str, asked: Sequence[str] | None, kept: Sequence[str], image_format: str, limits: Mapping[str, Limits]
) -> Manifest:
    """Finds and checks the source files, and says what can be made of them.

    Args:
        folder: Folder or fsspec URL.
        asked: Configs that must be made; if None, all whose files are there.
        kept: Configs that the repository holds, and keeps if their files are there.
        image_format: One of so2sat.IMAGE_FORMATS.
        limits: See `build`.

    Raises:
        so2sat.SourceError: A file is missing or not as expected.
        CommandError: A file is there under two names.
    """
    wanted = [config for name, config in CONFIGS.items() if not asked or name in asked or name in kept]
    names = dict.fromkeys(name for config in wanted for of_split in config.files.values() for name in of_split)
    sources = manifest.describe(folder, names)
    new = Manifest(so2sat.VERSION, image_format, sources, {})
    new.configs = {
        config.name: shards.recipe(config, image_format, limits.get(config.name, config.limits))
        for config in wanted
        if new.splits(config.name)
    }
    for config in [*(asked or []), *([] if new.configs else [so2sat.DEFAULT_CONFIG])]:
        if config not in new.configs:
            _tell_missing(folder, CONFIGS[config])
    used = {name for config in new.configs for split in new.splits(config) for name in CONFIGS[config].files[split]}
    new.sources = {name: record for name, record in sources.items() if name in used}
    for config in new.configs:
        if CONFIGS[config].is_official:
            so2sat.check_folder(folder, config)
        _check_together(folder, new, CONFIGS[config])
    for name, record in new.sources.items():
        print(f"  {name}: {record.rows:,} rows{', SYNTHETIC' if record.synthetic else ''}")
    for config in new.configs:
        splits = {split: " and ".join(names) for split, names in CONFIGS[config].files.items()}
        if absent := so2sat.absent_splits(config, splits, new.splits(config)):
            print(f"  {absent}")
    return new


def _tell_missing(folder: str, config: Config) -> None:
    """Raises a MissingSourceError about a config that can't be made, and says where so2sat can what lies there."""
    if config.name in so2sat.CONFIGS:
        so2sat.find_sources(folder, config.name)
    names = " or ".join(" with ".join(names) for names in config.files.values())
    raise so2sat.MissingSourceError(f"{folder}: no {names}, which config '{config.name}' needs")


def _check_together(folder: str, new: Manifest, config: Config) -> None:
    """Makes sure that the files of a split have the same rows, and that no file is there as two splits.

    Raises:
        so2sat.SourceError: Files of one split differ in length.
        CommandError: Two splits would hold the same patches.
    """
    splits = [config.files[split] for split in new.splits(config.name)]
    for first, *others in splits:
        for other in others:
            rows, expected = new.sources[other].rows, new.sources[first].rows
            if rows != expected:
                what = f"{rows:,} rows, expected {expected:,}, one for every patch of {first}"
                raise so2sat.SourceError(f"{so2sat.join(folder, other)}: {what}")
    for (first, *_), (second, *_) in itertools.combinations(splits, 2):
        if new.sources[first].fingerprint == new.sources[second].fingerprint:
            raise CommandError(
                f"{so2sat.join(folder, first)}: the same file as {second}, expected different patches in every split"
            )


def _states(folder: str) -> dict[str, tuple[int, int]]:
    """What tells that a local source file was changed without reading it: size and time."""
    names = {name for config in CONFIGS.values() for of_split in config.files.values() for name in of_split}
    paths = {name: Path(so2sat.join(folder, name)) for name in names if not so2sat.is_url(folder)}
    stats = {name: path.stat() for name, path in paths.items() if path.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _forget_changed(output: Path, folder: str, new: Manifest, states: Mapping[str, tuple[int, int]]) -> None:
    """Makes sure that no source was changed while it was read.

    Raises:
        CommandError: One was; the manifest no longer knows the shards that are made of it.
    """
    now = _states(folder)
    changed = [name for name in new.sources if now.get(name) != states.get(name)]
    if changed:
        made = [shard.name for shard in new.plan() if {*CONFIGS[shard.config].files[shard.split]} & {*changed}]
        new.shards = {name: record for name, record in new.shards.items() if name not in made}
        _mark_incomplete(output, new, [])
        raise CommandError(f"{folder}: {changed[0]} was changed while it was read; run the same command again")


def _check_slips(output: Path, old: Manifest, new: Manifest, rewrite: bool, drop: bool) -> None:
    """Makes sure that hours of work are not replaced by a slip of the hand.

    Raises:
        CommandError: A source is gone or has other rows than before, or synthetic data would replace measured data.
    """
    gone = [name for name in old.sources if name not in new.sources]
    if gone and not drop:
        raise CommandError(f"{output}: was made from {gone[0]} too, which SOURCE lacks; --drop removes its split")
    for name in () if rewrite else old.sources.keys() & new.sources.keys():
        if (before := old.sources[name].rows) != (now := new.sources[name].rows):
            what = f"was made from {name} with {before:,} rows, SOURCE's has {now:,}"
            raise CommandError(f"{output}: {what}; --rewrite takes it in")
    invented = {name for name, record in new.sources.items() if record.synthetic}
    known = {name for name, record in old.sources.items() if record.synthetic}
    if invented - known and old.sources.keys() - known and not rewrite:
        name = min(invented - known)
        raise CommandError(f"{output}: holds measured data and SOURCE's {name} is synthetic; --rewrite takes it in")


def _unchanged(old: Manifest, new: Manifest) -> dict[str, ShardRecord]:
    """Finds the shards of an earlier build that are still right if their bytes are; says why the others are not."""
    plan = new.plan()
    reasons = {shard.name: _change(shard, old, new) for shard in plan if shard.name in old.shards}
    for reason, count in collections.Counter(filter(None, reasons.values())).items():
        print(f"rewriting {count} of {len(plan)} shards: {reason}")
    return {name: old.shards[name] for name, reason in reasons.items() if not reason}


def _change(shard: Shard, old: Manifest, new: Manifest) -> str:
    """What of all that decides a shard's bytes has changed, an empty string if nothing."""
    for name in CONFIGS[shard.config].files[shard.split]:
        if old.sources.get(name) != new.sources[name]:
            return f"{name} has changed"
    before, now = old.configs[shard.config], new.configs[shard.config]
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return f"{keys[0]} was {before.get(keys[0])}, now {now.get(keys[0])}" if keys else ""


# ┌────────┐
# │  Work  │
# └────────┘


def _runner(
    dask: str | None, workers: int | None, output: Path, folder: str, new: Manifest
) -> contextlib.AbstractContextManager[executors.Run]:
    """Where shards are made."""
    if dask:
        paths = [] if so2sat.is_url(folder) else [so2sat.join(folder, name) for name in new.sources]
        return executors.dask_cluster(dask, workers or executors.cores(), output, paths, shards.version)
    plan = new.plan()
    return executors.processes(min(workers or (executors.cores() if _bytes(plan) > LITTLE_WORK else 1), len(plan)))


def _bytes(plan: Sequence[Shard]) -> int:
    """What the rows of shards take in memory, which is more than their files take."""
    return sum(shard.rows * CONFIGS[shard.config].row_bytes for shard in plan)


def _make(run: executors.Run, output: Path, folder: str, new: Manifest, old_configs: Sequence[str]) -> card.Statistics:
    """Writes the shards that are not there, or not intact, and gives the statistics of all.

    A shard that was lost is written as it was. Others make the folder incomplete first; after each the manifest knows
    of it, so that another run goes on from there.
    """
    plan, totals = new.plan(folder), contents.blank(new)
    missing = [shard for shard in plan if shard.name not in new.shards]
    there = shards.find_shards(output, {*old_configs, *new.configs})
    stale = [name for name in there if name not in {shard.name for shard in plan}]
    if missing or stale:
        _warn_of_space(output, missing)
        _mark_incomplete(output, new, stale)
    known, started, written = {**new.shards}, time.monotonic(), 0
    work = functools.partial(shards.make_shard, folder=output, known=known)
    try:
        with tqdm.tqdm(total=sum(shard.rows for shard in plan), unit=" rows", disable=None, dynamic_ncols=True) as bar:
            for shard, (record, statistics, is_new) in run(work, plan):
                totals[shard.config, shard.split].merge(statistics)
                if is_new:
                    new.shards[shard.name] = record
                    new.save(output)
                    written += shard.rows
                    if shard.name in known:
                        tqdm.tqdm.write(f"{shard.name} was lost or damaged, and is written again")
                    elif bar.disable:
                        tqdm.tqdm.write(f"[{len(new.shards)}/{len(plan)}] {shard.name}")
                bar.update(shard.rows)
    except CommandError as error:
        finished = f"{len(new.shards)} of {len(plan)} shards are finished and kept"
        raise CommandError(f"{output}: {error} ({finished})") from error
    if written:
        seconds = time.monotonic() - started
        print(f"wrote {written:,} rows in {seconds:.1f} s ({written / seconds:,.0f} rows/s)")
    return contents.summaries(output, new, totals)


def _warn_of_space(output: Path, missing: Sequence[Shard]) -> None:
    needed, free = _bytes(missing), shutil.disk_usage(output).free
    if needed > free:
        sizes = f"up to {needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
        print(f"warning: {output}: {sizes}; if the disk gets full, finished shards are kept", file=sys.stderr)


def _mark_incomplete(output: Path, new: Manifest, stale: Sequence[str]) -> None:
    """Makes the folder one that is ours and doesn't load, and takes away what belongs to no split."""
    new.save(output)
    _replace(output, card.NAME, card.INCOMPLETE.encode())
    for name in stale:
        print(f"{name} is removed: it is none of the shards that the sources make")
        (output / name).unlink()
        with contextlib.suppress(OSError):  # not empty
            (output / name).parent.rmdir()


def _replace(output: Path, name: str, content: bytes) -> None:
    path = output / name
    path.parent.mkdir(exist_ok=True)
    with files.replacing(path, output / shards.UNFINISHED_FOLDER) as file:
        file.write(content)


@contextlib.contextmanager
def _cleaned(output: Path) -> Iterator[None]:
    """Removes unfinished files, of this build and of an earlier one that was killed."""
    unfinished = output / shards.UNFINISHED_FOLDER
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


# ┌──────────┐
# │  Finish  │
# └──────────┘


def _finish(output: Path, new: Manifest, statistics: card.Statistics) -> None:
    """Writes what follows from the shards where it differs, the card last, and reports."""
    made = contents.contents(output, new, statistics, output.name)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in made.items() if name != card.NAME}
    stale = [name for name in contents.OTHER_FILES if name in new.files and name not in made]
    foreign = {name: sha256 for name, sha256 in new.files.items() if name not in contents.OTHER_FILES}
    new.files = dict(sorted({**foreign, **sums}.items()))
    made = {**made, manifest.NAME: new.to_json(), card.NAME: made[card.NAME]}
    changed = [name for name, content in made.items() if not _holds(output / name, content)]
    for name in changed:
        _replace(output, name, made[name])
    for name in stale:  # pictures of what is no more
        (output / name).unlink(missing_ok=True)
    for warning in contents.warnings(statistics):
        print(f"warning: {warning}", file=sys.stderr)
    if others := contents.strays(output, new):
        print(f"{output}: {others}")
    size = sum(record.bytes for record in new.shards.values())
    print(
        f"{output} is {'complete' if changed else 'up to date'}: {new.patches:,} patches in {_configs(new)},"
        f" {len(new.shards)} shards, {size:,} bytes{'; SYNTHETIC' if new.synthetic else ''}"
    )


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _configs(new: Manifest) -> str:
    names = ", ".join(new.configs)
    return f"config {names}" if len(new.configs) == 1 else f"{len(new.configs)} configs ({names})"


if __name__ == "__main__":
    sys.exit(main())
