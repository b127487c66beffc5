"""Builds the Parquet repository from a folder of So2Sat HDF5 files."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tqdm
from datasets.utils.file_utils import is_remote_url
from fsspec.core import url_to_fs

import so2sat
from publishing import card, command, executors, files, layout, manifest, places
from publishing.band_statistics import METHOD, ConfigStatistics
from publishing.command import CommandError

STATISTICS_NAME = "statistics.json"

EXAMPLES = """\
  python scripts/build.py data build/so2sat                  all configs, one worker process per core
  python scripts/build.py data build/so2sat --config all     one config
  python scripts/build.py https://host/data build/so2sat     from a server, read by ranges
  python scripts/build.py /lab/data /lab/so2sat --dask tcp://host:8786
                                                             on a Dask cluster that shares /lab
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = command.parser(
        "Builds a Parquet repository, ready for load_dataset() and for the Hub, from So2Sat HDF5 files. A build that"
        " was interrupted goes on where it stopped when it is run again.",
        EXAMPLES,
    )
    files = ", ".join(so2sat.SOURCE_FILES.values())
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help=f"folder or fsspec URL with {files}, or some of them; …_geo.h5 beside them for geo; the folders random and"
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
        default="jpeg",
        help="of images (default: jpeg; png is lossless)",
    )
    parser.add_argument(
        "--workers", type=_positive, default=os.cpu_count() or 1, metavar="N", help="processes (default: one per core)"
    )
    parser.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="run the work on the Dask cluster of this scheduler, whose workers must all see SOURCE and OUTPUT under"
        " the same path; 'local' starts a cluster of --workers processes",
    )
    parser.add_argument("--force", action="store_true", help="write every shard anew")
    return command.run(_run, parser, argv)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _folder(text: str) -> Path:
    if not text or is_remote_url(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a local folder")
    return Path(text)


def _run(options: argparse.Namespace) -> None:
    build(
        options.source,
        options.output,
        configs=options.config,
        image_format=options.image_format,
        workers=options.workers,
        force=options.force,
        dask=options.dask,
    )


def build(
    source: str,
    output: Path,
    configs: Sequence[str] | None = None,
    image_format: str = "jpeg",
    workers: int = 1,
    force: bool = False,
    dask: str | None = None,
) -> manifest.Manifest:
    """Builds a repository, or completes or updates one.

    Args:
        source: Folder or fsspec URL with the source files.
        output: Folder of the repository. Configs it already holds stay part of it.
        configs: Configs to build; if None, all whose files are there.
        image_format: One of so2sat.IMAGE_FORMATS.
        workers: Number of worker processes.
        force: Whether to write shards anew that are there already.
        dask: Address of a Dask scheduler to run the work, or "local" for a Dask cluster on this machine.

    Returns:
        What the repository holds now.

    Raises:
        so2sat.SourceError: A source file is not as expected.
        CommandError: The repository can't be written as things are.
    """
    output = output.expanduser().resolve()
    _check_output(output)
    folder = source if is_remote_url(source) else os.path.abspath(os.path.expanduser(source))
    old = manifest.Manifest.load(output)
    sources = _find_sources(folder, configs, old.configs if old else [])
    inputs = source_files(sources)
    print(f"{source}: checking all labels and places")
    states = {name: _state(path) for name, path in inputs.items()}
    records = manifest.describe(inputs)
    for name, record in records.items():
        print(f"  {name}: {record.rows:,} rows{', SYNTHETIC' if record.synthetic else ''}")
    for config, splits in sources.items():
        names = {split: layout.source_files(config, split)[-1] for split in layout.CONFIGS[config].files}
        if absent := so2sat.absent_splits(config, names, splits):
            print(f"  {absent}")
    with _locked(output), _executor(dask, workers, output, inputs) as pool:
        if old != manifest.Manifest.load(output):
            raise CommandError(f"{output}: another build has changed it meanwhile; run the same command again")
        if old and not force:
            _check_sources(output, old, records)
        has_images = any(layout.CONFIGS[config].kind == "rgb" for config in configs or sources)
        new = manifest.Manifest(
            versions=manifest.current_versions(),
            image_format=image_format if has_images or not old else old.image_format,
            sources=records,
            configs=list(sources),
        )
        plan = [
            shard
            for config, splits in sources.items()
            for split, rows in new.splits(config).items()
            for shard in layout.plan_shards(config, split, rows, splits[split], new.image_format)
        ]
        if old and not force:
            new.shards = _kept_shards(pool, output, old, new, plan, states)
        missing = [shard for shard in plan if shard.name not in new.shards]
        stale = _stale_files(output, plan)
        if missing or stale:
            _check_space(pool, output, missing)
            new.save(output)  # first of all: it marks the folder as one of ours
            for name, text in (
                (card.NAME, card.INCOMPLETE),
                (f"{layout.STATE_FOLDER}/sources.json", json.dumps(states)),
            ):
                with files.replacing(output / name) as file:
                    file.write(text.encode())
            for shard_file in stale:
                print(f"{shard_file.relative_to(output)} is removed: it is none of the shards that the sources make")
                shard_file.unlink()
            _write(pool, output, new, missing)
        for name, path in inputs.items():
            if _state(path) != states[name]:
                raise CommandError(f"{source}: {name} was changed while it was read; run the same command again")
        _finish(output, old, new)
    return new


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


def source_files(sources: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The path of every source file by its name, those with the places last."""
    inputs = {
        name: places.geo_file(path) if places.is_geo(name) else path
        for config, splits in sources.items()
        for split, path in splits.items()
        for name in layout.source_files(config, split)
    }
    return dict(sorted(inputs.items(), key=lambda item: places.is_geo(item[0])))


def _check_sources(output: Path, old: manifest.Manifest, records: Mapping[str, manifest.SourceRecord]) -> None:
    """Makes sure that hours of work are not replaced by a slip of the hand.

    Raises:
        CommandError: A source of the repository is gone, or synthetic data would replace measured data.
    """
    gone = [name for name in old.sources if name not in records]
    if gone:
        raise CommandError(
            f"{output}: was made from {gone[0]} too, which SOURCE lacks; --force builds without it, its split goes"
        )
    if not old.synthetic and any(record.synthetic for record in records.values()):
        raise CommandError(f"{output}: holds measured data and SOURCE is synthetic; --force replaces them")


def _kept_shards(
    pool: concurrent.futures.Executor,
    output: Path,
    old: manifest.Manifest,
    new: manifest.Manifest,
    plan: Sequence[layout.Shard],
    states: Mapping[str, str],
) -> dict[str, layout.ShardRecord]:
    """Finds the shards of an earlier build that are still right, and says why the others are not."""
    old_states = _load_states(output)
    reasons: dict[str, int] = {}
    candidates = []
    for shard in plan:
        if shard.name in old.shards:
            names = layout.source_files(shard.config, shard.split)
            changed = [name for name in names if old.sources.get(name) != new.sources[name]]
            changed += [name for name in names if old_states.get(name) != states[name]]
            if old.versions != new.versions:
                reason = f"made with {_versions(old.versions)}, now {_versions(new.versions)}"
            elif changed:
                reason = f"{changed[0]} has changed, or its time on the disk has"
            elif shard.kind == "rgb" and old.image_format != new.image_format:
                reason = f"image format was {old.image_format}, now {new.image_format}"
            else:
                candidates.append(shard)
                continue
            reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in reasons.items():
        print(f"{count} shards are written anew: {reason}")
    checks = {pool.submit(layout.is_intact, shard, output, old.shards[shard.name]): shard for shard in candidates}
    kept = {}
    for shard, intact in _as_completed(checks, "checking"):
        if intact:
            kept[shard.name] = old.shards[shard.name]
        else:
            print(f"{shard.name} is written anew: missing, or its bytes have changed, or its statistics are lost")
    return kept


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _write(
    pool: concurrent.futures.Executor, output: Path, new: manifest.Manifest, missing: Sequence[layout.Shard]
) -> None:
    """Writes the missing shards; after each the manifest knows of it."""
    started = time.monotonic()
    total = len(new.shards) + len(missing)
    futures = {pool.submit(layout.write_shard, shard, output): shard for shard in missing}
    try:
        for shard, record in _as_completed(futures, "writing"):
            new.shards[shard.name] = record
            new.save(output)
    except (OSError, BrokenProcessPool) as error:
        state = f"{len(new.shards)} of {total} shards are finished and kept"
        if isinstance(error, BrokenProcessPool):
            advice = "a worker process was killed, perhaps for want of memory; try again, with fewer --workers"
        elif error.errno == errno.ENOSPC:
            advice = "the disk is full; free some space and run the same command again"
        else:
            raise
        raise CommandError(f"{output}: {advice} ({state})") from error
    if missing:
        rows, seconds = sum(shard.stop - shard.start for shard in missing), time.monotonic() - started
        print(f"wrote {len(missing)} shards, {rows:,} rows in {seconds:.1f} s ({rows / seconds:,.0f} rows/s)")


def _finish(output: Path, old: manifest.Manifest | None, new: manifest.Manifest) -> None:
    """Writes what comes of all shards together, the card last, and reports."""
    statistics = _statistics(output, new)
    text = json.dumps({"method": METHOD, "configs": statistics}, indent=1, allow_nan=False) + "\n"
    written = _pictures(output, old, new) or card.pictures(output, new, statistics)
    written[STATISTICS_NAME] = text.encode()
    new.files = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(written.items())}
    written |= {manifest.NAME: new.to_json(), card.NAME: card.render(new, statistics, output.name).encode()}
    is_new = False
    for name, content in written.items():
        path = output / name
        if not path.is_file() or path.read_bytes() != content:
            is_new = True
            path.parent.mkdir(exist_ok=True)
            with files.replacing(path) as file:
                file.write(content)
    for name in {*card.PICTURES} - {*written}:
        (output / name).unlink(missing_ok=True)  # a picture of what is no more
    layout.remove_statistics_of_others(output, new.shards.values())
    rows = sum(record.rows for record in new.shards.values())
    size = sum(record.bytes for record in new.shards.values())
    print(
        f"{output} is {'complete' if is_new else 'up to date'}: {', '.join(new.configs)}; {len(new.shards)} shards,"
        f" {rows:,} rows, {size:,} bytes{'; SYNTHETIC' if new.synthetic else ''}"
    )


def _pictures(output: Path, old: manifest.Manifest | None, new: manifest.Manifest) -> dict[str, bytes]:
    """The pictures of an earlier build of the same shards, empty if there are none that are right."""
    if old is None or old.shards != new.shards or old.synthetic != new.synthetic:
        return {}
    found = {name: (output / name).read_bytes() for name in card.PICTURES if (output / name).is_file()}
    known = {name: sha256 for name, sha256 in old.files.items() if name in card.PICTURES}
    return found if known == {name: hashlib.sha256(content).hexdigest() for name, content in found.items()} else {}


def _statistics(output: Path, new: manifest.Manifest) -> dict[str, Any]:
    """Statistics of every config and split, merged in the order of the shards."""
    result: dict[str, Any] = {}
    for config in new.configs:
        result[config] = {}
        for split in new.splits(config):
            merged = ConfigStatistics(layout.CONFIGS[config].kind)
            for name in new.shard_names(config, split):
                merged.merge(layout.load_statistics(output, new.shards[name]))
            result[config][split] = merged.summary()
    if "geo" in result:
        for split, shared in places.shared(_places(output, new)).items():
            result["geo"][split]["shared"] = shared
    return result


def _places(output: Path, new: manifest.Manifest) -> dict[str, dict[str, Any]]:
    """City and position of every patch of config `geo`, by split and column."""
    columns = ["city", "epsg", "x", "y"]
    found = {}
    for split in new.splits("geo"):
        table = pa.concat_tables(
            pq.read_table(output / name, columns=columns) for name in new.shard_names("geo", split)
        )
        found[split] = {name: table[name].to_numpy() for name in columns}
    return found


def _as_completed(futures: Mapping[concurrent.futures.Future[Any], layout.Shard], label: str) -> Iterator[Any]:
    """Yields shards with their results as they come, under a progress bar, or with a line each in a log file."""
    with tqdm.tqdm(
        total=sum(shard.stop - shard.start for shard in futures.values()),
        desc=label,
        unit=" rows",
        disable=None,
        dynamic_ncols=True,
    ) as bar:
        for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
            shard = futures[future]
            yield shard, future.result()
            bar.update(shard.stop - shard.start)
            if bar.disable:
                print(f"{label} {number}/{len(futures)}: {shard.name}", flush=True)


def _check_output(output: Path) -> None:
    """Makes sure that nothing of others is overwritten.

    Raises:
        CommandError: The folder holds something else.
    """
    if output.exists() and not output.is_dir():
        raise CommandError(f"{output}: not a folder")
    if output.is_dir() and not (output / manifest.NAME).exists():
        names = sorted(path.name for path in output.iterdir())
        others = [name for name in names if name != layout.STATE_FOLDER and not name.endswith(files.INCOMPLETE_SUFFIX)]
        if others:
            raise CommandError(
                f"{output}: holds {others[0]} but no {manifest.NAME} of an earlier build; give a new or empty folder"
            )


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Creates the repository's folder and keeps other builds out of it.

    Raises:
        CommandError: Another build is at work.
    """
    with files.locked(output, layout.STATE_FOLDER):
        _remove_incomplete(output)  # an earlier build was killed
        try:
            yield
        finally:  # the workers have ended by now
            _remove_incomplete(output)


def _remove_incomplete(output: Path) -> None:
    for path in output.rglob(f".*{files.INCOMPLETE_SUFFIX}"):
        path.unlink(missing_ok=True)


def _executor(
    dask: str | None, workers: int, output: Path, inputs: Mapping[str, str]
) -> contextlib.AbstractContextManager[concurrent.futures.Executor]:
    if dask:
        return executors.dask_cluster(dask, workers, output, list(inputs.values()))
    return executors.processes(workers)


def _state(path: str) -> str:
    """What tells that a file was changed without reading it: size and time or tag, as far as its file system says."""
    filesystem, name = url_to_fs(path)
    info = so2sat.retry(filesystem.info, name)
    return str({key: info[key] for key in ("size", "mtime", "ETag", "Last-Modified", "LastModified") if key in info})


def _load_states(output: Path) -> dict[str, str]:
    try:
        states: dict[str, str] = json.loads(output.joinpath(layout.STATE_FOLDER, "sources.json").read_bytes())
    except (OSError, ValueError):  # the folder came from elsewhere, or the power went
        return {}
    return states


def _stale_files(output: Path, plan: Sequence[layout.Shard]) -> list[Path]:
    """Shards of another plan, which no longer belong."""
    names = {shard.name for shard in plan}
    return [
        path
        for config in layout.CONFIGS
        for path in sorted(output.glob(f"{config}/*-*-of-*.parquet"))
        if path.relative_to(output).as_posix() not in names
    ]


def _check_space(pool: concurrent.futures.Executor, output: Path, missing: Sequence[layout.Shard]) -> None:
    """Estimates what the missing shards take, unless they would fit uncompressed.

    Raises:
        CommandError: The disk has less.
    """
    replaced = sum(path.stat().st_size for shard in missing if (path := output / shard.name).is_file())
    free = shutil.disk_usage(output).free + replaced
    if sum((shard.stop - shard.start) * layout.ROW_BYTES[shard.kind] for shard in missing) < free:
        return
    first = {(shard.config, shard.split): shard for shard in reversed(missing)}
    per_row = dict(zip(first, pool.map(layout.bytes_per_row, first.values())))
    needed = sum((shard.stop - shard.start) * per_row[shard.config, shard.split] for shard in missing)
    if needed > free:
        raise CommandError(
            f"{output}: about {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free;"
            " free some space or choose another folder"
        )


if __name__ == "__main__":
    sys.exit(main())
