"""What is wrong with a repository: its files, card, manifest and statistics, and what is in its shards."""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import hashlib
import io
import itertools
import json
import math
import os
import re
import statistics as numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from huggingface_hub.utils.sha import sha_fileobj

import so2sat
from publishing import card, facts, layout, manifest, places
from publishing.band_statistics import PERCENTILES, ConfigStatistics
from publishing.layout import Shard, ShardRecord
from publishing.manifest import Manifest

# What may be in a repository besides what its manifest lists. Folders: of the build, of Git, of huggingface_hub.
KNOWN_FILES = {card.NAME, manifest.NAME, ".gitattributes"}
KNOWN_FOLDERS = {layout.STATE_FOLDER, ".git", ".cache"}

MAX_DEGREES = 1e-9  # 0.1 mm, between a longitude or latitude and what is computed here
MIN_PSNR = 40.0  # dB between an image and what another version of Pillow makes of the same pixels
MAX_REFLECTANCE = 1.0  # that the median of real data, near 0.12, stays far below


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is not as it must be: the file, and in words what was found and what was expected."""

    file: str
    problem: str

    def __str__(self) -> str:
        """The line that is printed."""
        return f"{self.file}: {self.problem}"


def repository_findings(folder: Path, built: Manifest) -> Iterator[Finding]:
    """Checks all of a repository but the rows of its shards and their checksums.

    Args:
        folder: Its folder.
        built: Its manifest.

    Yields:
        What is wrong.
    """
    found = [*file_findings(folder, built)]
    yield from found
    unsound = {finding.file for finding in found}
    if {card.NAME, manifest.NAME} <= unsound or is_incomplete(folder):
        return
    for shard in built.plan():
        if shard.name in built.shards and shard.name not in unsound:
            yield from footer_findings(folder, shard)


def file_findings(folder: Path, built: Manifest) -> Iterator[Finding]:
    """Checks what repository_findings does, but opens no shard."""
    if built.versions["layout"] != str(layout.LAYOUT_VERSION):
        yield Finding(manifest.NAME, f"layout {built.versions['layout']}, expected {layout.LAYOUT_VERSION}")
        return
    plan = [shard.name for shard in built.plan()]
    names = _files(folder)
    if is_incomplete(folder):
        done = len(built.shards.keys() & {*names})
        yield Finding(card.NAME, f"the build is incomplete, {done} of {len(plan)} shards are there, expected all")
        return
    if absent := [name for name in plan if name not in built.shards]:
        yield Finding(manifest.NAME, f"does not list {_few(absent)}, expected every shard of its configs and sources")
    for name, record in built.shards.items():
        yield from _shard_file_findings(folder, name, record)
    for name, sha256 in built.files.items():
        yield from _other_file_findings(folder, name, sha256)
    yield from _statistics_findings(folder, built)
    yield from _card_findings(folder, built, names)
    yield from _stray_findings(folder, names, {*plan, *built.shards, *built.files})


def is_incomplete(folder: Path) -> bool:
    """Whether build.py has not finished a repository."""
    try:
        return manifest.read_small(folder / card.NAME) == card.INCOMPLETE.encode()
    except ValueError:
        return False


def warnings(statistics: card.Statistics) -> Iterator[str]:
    """Says which splits hold values that can't be reflectance, such as digital numbers."""
    for config, splits in statistics.items():
        for split, summary in splits.items():
            bands = [band["percentiles"] or {} for band in summary["bands"].get("sentinel2", ())]
            median = numbers.median([ranks.get("50") or 0.0 for ranks in bands] or [0.0])
            if median > MAX_REFLECTANCE:
                yield f"{config}, {split}: the median of sentinel2 is {median:,.4g}, expected reflectance near 0.1"
            bands = [band["percentiles"] or {} for band in summary["bands"].get("image", ())]
            if bands and all(ranks.get("1") == 255 for ranks in bands):
                yield f"{config}, {split}: 99 % of the pixels are white, expected images of reflectance near 0.1"


# ┌─────────┐
# │  Files  │
# └─────────┘


def _files(folder: Path) -> list[str]:
    """Files of the repository, and links, that could be its content, sorted."""
    found = []
    for root, folders, names in os.walk(folder):
        inside = Path(root).relative_to(folder)
        if inside == Path():
            folders[:] = [name for name in folders if name not in KNOWN_FOLDERS]
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        found += [(inside / name).as_posix() for name in (*names, *links)]
    return sorted(found)


def _file_problem(folder: Path, name: str) -> str:
    path = folder / name
    if not os.path.lexists(path):
        return f"missing, expected it as {manifest.NAME} lists it"
    if not path.is_file() or path.resolve() != folder.resolve() / name:
        return "a link, folder or device, expected a regular file inside the repository"
    return ""


def _shard_file_findings(folder: Path, name: str, record: ShardRecord) -> Iterator[Finding]:
    if problem := _file_problem(folder, name):
        yield Finding(name, problem)
    elif (size := (folder / name).stat().st_size) != record.bytes:
        yield Finding(name, f"{size:,} bytes, expected {record.bytes:,}")


def _other_file_findings(folder: Path, name: str, sha256: str) -> Iterator[Finding]:
    if problem := _file_problem(folder, name):
        yield Finding(name, problem)
        return
    try:
        content = manifest.read_small(folder / name)
    except ValueError as error:
        yield Finding(name, str(error))
        return
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        yield Finding(name, f"sha256 {found[:16]}…, expected {sha256[:16]}…")
    elif name.endswith(".png") and not content.startswith(b"\x89PNG\r\n\x1a\n"):
        yield Finding(name, f"begins with {content[:8]!r}, expected a PNG picture")


def _stray_findings(folder: Path, names: Sequence[str], expected: set[str]) -> Iterator[Finding]:
    strays = []
    for name in names:
        if name in {"so2sat.py", f"{folder.resolve().name}.py"}:
            yield Finding(name, "a loading script, expected none: datasets 4 and later refuse a repository with it")
        elif name == "dataset_infos.json":
            yield Finding(name, "legacy metadata, expected none: its configs break when it is out of date")
        elif name not in expected | KNOWN_FILES:
            strays.append(name)
    for name in strays[:3]:
        yield Finding(name, f"a stray file, expected only what {manifest.NAME} lists")
    if len(strays) > 3:
        yield Finding(".", f"{len(strays) - 3} more stray files, expected only what {manifest.NAME} lists")


# ┌────────┐
# │  Card  │
# └────────┘


def _card_findings(folder: Path, built: Manifest, names: Sequence[str]) -> Iterator[Finding]:
    """Whether the card's metadata are those that the shards make, and its globs match what they must."""
    if problem := _file_problem(folder, card.NAME):
        yield Finding(card.NAME, problem)
        return
    try:
        found = _header(manifest.read_small(folder / card.NAME).decode())
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        yield Finding(card.NAME, f"can't be read as a dataset card ({_one_line(error)}), expected Markdown with YAML")
        return
    expected = card.metadata(built)
    for key in ("configs", "dataset_info"):
        ours, theirs = _by_config(expected.get(key)), _by_config(found.get(key))
        if wrong := [config for config in {**ours, **theirs} if ours.get(config) != theirs.get(config)]:
            yield Finding(card.NAME, f"{key} of {_few(wrong)} is not what the shards make, expected build.py's")
    for config, splits in _by_config(found.get("configs")).items():
        yield from _glob_findings(built, names, config, splits.get("data_files"))


def _header(text: str) -> dict[str, Any]:
    parts = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    header = parts[1] if parts else ""
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(header, yaml.SafeLoader)):
        raise ValueError("its YAML has aliases, which may unpack to any size")
    found = yaml.safe_load(header)
    if not isinstance(found, dict):
        raise ValueError("no YAML header")
    return found


def _by_config(members: Any) -> dict[str, dict[str, Any]]:
    listed = members if isinstance(members, list) else [members]
    return {str(member.get("config_name")): member for member in listed if isinstance(member, dict)}


def _glob_findings(built: Manifest, names: Sequence[str], config: str, data_files: Any) -> Iterator[Finding]:
    """Whether every split's pattern matches the split's shards and nothing else."""
    for member in data_files if isinstance(data_files, list) else [data_files]:
        pattern, split = (str(member.get(key)) if isinstance(member, dict) else "" for key in ("path", "split"))
        expected = {shard.name for shard in built.plan() if (shard.config, shard.split) == (config, split)}
        # Matched against names: no disk is walked, and what leads elsewhere matches none.
        matched = {*fnmatch.filter({*names, *expected}, pattern)}
        if not matched or matched != expected:
            yield Finding(
                card.NAME,
                f"config {manifest.shown(config)}, split {manifest.shown(split)}: {manifest.shown(pattern)} matches"
                f" {_few(sorted(matched)) or 'no file'}, expected {_few(sorted(expected)) or 'no such split'}",
            )


# ┌──────────────┐
# │  Statistics  │
# └──────────────┘


@dataclasses.dataclass(frozen=True)
class _Band:
    name: str
    count: int
    nonfinite: int
    mean: Any
    std: Any
    min: Any
    max: Any
    percentiles: Any


@dataclasses.dataclass(frozen=True)
class _Summary:
    patches_per_class: dict[str, int]
    bands: dict[str, list[_Band]]


@dataclasses.dataclass(frozen=True)
class _GeoSummary(_Summary):
    shared: dict[str, dict[str, int]]


@dataclasses.dataclass(frozen=True)
class _Statistics:
    method: str
    configs: dict[str, dict[str, Any]]


def read_statistics(folder: Path) -> card.Statistics:
    """Reads the statistics of a repository.

    Raises:
        ValueError: They are not what build.py writes.
        OSError: They can't be read.
    """
    configs: card.Statistics = manifest.parse(_Statistics, manifest.read_json(folder / layout.STATISTICS_NAME)).configs
    for config, splits in configs.items():
        for split, summary in splits.items():
            manifest.parse(_GeoSummary if config == "geo" else _Summary, summary, f"{config} {split}")
            bands = {column: (*(band["name"] for band in found),) for column, found in summary["bands"].items()}
            if [*summary["patches_per_class"]] != [*so2sat.LABELS] or bands != layout.kind_of(config).bands:
                raise ValueError(f"other classes or bands in {config}, expected the config's")
            for band in itertools.chain(*summary["bands"].values()):
                if not _is_band(band):
                    raise ValueError(f"{manifest.shown(band)} in {config}, expected numbers")
    return configs


def _is_band(band: Mapping[str, Any]) -> bool:
    """Whether the figures of a band are numbers, or None where it has no finite values."""
    ranks = band["percentiles"]
    figures = [band[name] for name in ("mean", "std", "min", "max")]
    has_ranks = ranks is None or {*ranks} == {*PERCENTILES}
    return has_ranks and all(
        figure is None or isinstance(figure, (int, float)) for figure in (*figures, *(ranks or {}).values())
    )


def _statistics_findings(folder: Path, built: Manifest) -> Iterator[Finding]:
    """Whether the statistics are of the splits, and at full size those that were published."""
    if layout.STATISTICS_NAME not in built.files:
        yield Finding(manifest.NAME, f"does not list {layout.STATISTICS_NAME}, expected the statistics of the shards")
        return
    try:
        found = read_statistics(folder)
        splits = {config: [*of_splits] for config, of_splits in found.items()}
        if splits != {config: [*built.splits(config)] for config in built.configs}:
            raise ValueError(f"statistics of {manifest.shown(splits)}, expected of the repository's splits")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        yield Finding(layout.STATISTICS_NAME, f"can't be read ({_one_line(error)}), expected what build.py writes")
        return
    for config in built.configs:
        for split, rows in built.splits(config).items():
            summary = found[config][split]
            counts = (*summary["patches_per_class"].values(),)
            published = facts.PATCHES_PER_CLASS[split]
            is_full = rows == sum(published) and layout.CONFIGS[config].files == so2sat.SOURCE_FILES
            if sum(counts) != rows:
                yield Finding(
                    layout.STATISTICS_NAME, f"{sum(counts):,} patches of {config}, {split}, expected {rows:,}"
                )
            elif is_full and not built.synthetic and counts != published:
                yield Finding(layout.STATISTICS_NAME, f"patches per class of {config}, {split}, expected {published}")
            elif is_full and not built.synthetic and split == "train":
                yield from _published_findings(summary["bands"])


def _published_findings(columns: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[Finding]:
    """Whether the bands of the full training split have the mean and standard deviation that were published."""
    for column in columns.keys() & facts.TRAIN_MEAN.keys():
        for band, mean, std in zip(columns[column], facts.TRAIN_MEAN[column], facts.TRAIN_STD[column]):
            for name, expected in (("mean", mean), ("std", std)):
                # A mean near 0 is known no better than its band's spread allows.
                if not math.isclose(band[name] or 0.0, expected, rel_tol=1e-3, abs_tol=1e-3 * std):
                    what = f"{name} of {column} {band['name']} is {band[name]}, expected {expected:.6g} as published"
                    yield Finding(layout.STATISTICS_NAME, what)


def shared_places(folder: Path, built: Manifest) -> dict[str, dict[str, dict[str, int]]]:
    """What every pair of splits of `geo` shares, of a repository whose shards are there; see places.shared."""
    columns = ["city", "epsg", "x", "y"]
    found = {}
    for split in built.splits("geo"):
        names = built.shard_names("geo", split)
        table = pa.concat_tables(pq.read_table(folder / name, columns=columns) for name in names)
        found[split] = {name: table[name].to_numpy() for name in columns}
    return places.shared(found)


def difference(found: Any, expected: Any, where: str = "") -> str:
    """The first place where two trees of statistics differ by more than rounding, an empty string if none."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping) and found.keys() == expected.keys():
        parts: Iterable[Any] = ((f"{where} {key}", found[key], expected[key]) for key in expected)
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        parts = ((f"{where} {other['name']}", value, other) for value, other in zip(found, expected))
    elif isinstance(found, (int, float)) and isinstance(expected, float):
        same = math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-12)
        return "" if same else f"{where.strip()} is {found}, expected {expected}"
    else:
        return "" if found == expected else f"{where.strip()} is {manifest.shown(found)}, expected {expected}"
    return next((text for name, value, other in parts if (text := difference(value, other, name))), "")


# ┌──────────┐
# │  Shards  │
# └──────────┘


@dataclasses.dataclass(frozen=True)
class Task:
    """A shard to check.

    Attributes:
        folder: Root of the repository.
        shard: What it must hold; its source is empty when there is nothing to compare with.
        record: What the manifest says of the file.
        rows: Rows of the split to compare with the source, all of the shard's if None.
        same_pillow: Whether images were encoded by the Pillow of this process.
    """

    folder: Path
    shard: Shard
    record: ShardRecord
    rows: Sequence[int] | None
    same_pillow: bool


@dataclasses.dataclass
class Result:
    """What came of a task.

    Attributes:
        findings: What is wrong.
        compared_rows: Rows that were compared with the source.
        labels: Class indices of all rows, int8; None if they could not be read.
        statistics: Of the source's rows, if all were compared.
    """

    findings: list[Finding] = dataclasses.field(default_factory=list)
    compared_rows: int = 0
    labels: npt.NDArray[np.int8] | None = None
    statistics: ConfigStatistics | None = None


def check_shard(task: Task) -> Result:
    """Checks a shard: its checksum, then its footer, then labels and ids of all rows, and rows against the source."""
    shard, path, result = task.shard, task.folder / task.shard.name, Result()
    with path.open("rb") as raw:
        sha256 = sha_fileobj(raw).hex()
    if sha256 != task.record.sha256:
        result.findings = [Finding(shard.name, f"sha256 {sha256[:16]}…, expected {task.record.sha256[:16]}…")]
        return result
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            problems = [*_footer_problems(shard, file)] or [*_column_problems(shard, file)]
            if not problems:
                problems = [*_row_problems(shard, file, result)]
                if shard.source and task.rows != []:
                    problems += _source_problems(task, file, result)
    except Exception as error:  # damaged bytes lead anywhere: Arrow's errors, bad UTF-8, lack of memory
        problems = [f"can't be read ({_one_line(error)}), expected a Parquet file"]
    result.findings = [Finding(shard.name, problem) for problem in problems]
    return result


def footer_findings(folder: Path, shard: Shard) -> Iterator[Finding]:
    """Checks the footer of a shard's file."""
    try:
        with pq.ParquetFile(folder / shard.name) as file:
            yield from (Finding(shard.name, problem) for problem in _footer_problems(shard, file))
    except Exception as error:  # damaged bytes lead Arrow to errors of any type
        yield Finding(shard.name, f"can't be read ({_one_line(error)}), expected a Parquet file")


def _footer_problems(shard: Shard, file: pq.ParquetFile) -> Iterator[str]:
    """What is wrong with a shard's schema, features and row groups, without unpacking anything."""
    kind = layout.kind_of(shard.config)
    found, expected = file.schema_arrow, kind.features.arrow_schema
    if [(field.name, field.type) for field in found] != [(field.name, field.type) for field in expected]:
        names = [name for name in expected.names if name in found.names and found.field(name) != expected.field(name)]
        what = f"another type of {names[0]}" if names else f"columns {manifest.shown(found.names)}"
        yield f"{what}, expected {', '.join(f'{field.name} {field.type}' for field in expected)}"
        return
    try:
        features = datasets.Features.from_dict(json.loads(found.metadata[b"huggingface"])["info"]["features"])
    except Exception as error:  # whatever somebody wrote there
        yield f"no features for `datasets` in its schema ({_one_line(error)}), expected those of the config"
    else:
        if features != kind.features:
            yield "other features for `datasets` in its schema, expected those of the config"
    groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    sizes = [stop - start for start, stop in so2sat.blocks(shard.start, shard.stop, shard.group_rows)]
    if [group.num_rows for group in groups] != sizes:
        rows = manifest.shown([group.num_rows for group in groups])
        yield f"row groups of {rows} rows, expected {manifest.shown(sizes)}"
        return
    for index, group in enumerate(groups):
        if group.total_byte_size > 2 * kind.row_bytes * group.num_rows + (1 << 20):
            yield f"row group {index} unpacks to {group.total_byte_size:,} bytes, expected {kind.row_bytes:,} a row"


def _column_problems(shard: Shard, file: pq.ParquetFile) -> Iterator[str]:
    """What is wrong with the columns of row groups. Arrow ends the process where a damaged footer describes them."""
    lengths = {field.name: math.prod(getattr(field.type, "shape", ())) for field in file.schema_arrow}
    for index in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(index)
        for column in map(group.column, range(group.num_columns)):
            name, values = column.path_in_schema, group.num_rows * lengths[column.path_in_schema.partition(".")[0]]
            if column.num_values != values:
                yield f"row group {index} has {column.num_values:,} values of {name}, expected {values:,}"
            if not column.has_offset_index:
                yield f"no page index for {name} of row group {index}, expected one for every column"


def _row_problems(shard: Shard, file: pq.ParquetFile, result: Result) -> Iterator[str]:
    """What is wrong with the labels and ids of a shard by themselves."""
    table = file.read(["label", "sample_id"], use_threads=False)
    labels, ids = (table[name].fill_null(-1).to_numpy() for name in ("label", "sample_id"))
    if (wrong := np.flatnonzero((labels < 0) | (labels >= len(so2sat.LABELS)))).size:
        what = f"row {shard.start + wrong[0]} has label {table['label'][wrong[0]]}"
        yield f"{what}{_more(wrong.size)}, expected 0 to {len(so2sat.LABELS) - 1}"
    else:
        result.labels = labels.astype(np.int8)
    if (wrong := np.flatnonzero(ids != np.arange(shard.start, shard.stop))).size:
        what = f"row {shard.start + wrong[0]} has sample_id {table['sample_id'][wrong[0]]}"
        yield f"{what}{_more(wrong.size)}, expected {shard.start + wrong[0]}"


def _source_problems(task: Task, file: pq.ParquetFile, result: Result) -> list[str]:
    """How rows differ from the source: for every column the first row, and how many more there are."""
    statistics = ConfigStatistics(layout.kind_of(task.shard.config).bands)
    first, count = dict[str, str](), collections.Counter[str]()
    try:
        with layout.open_shard(task.shard) as reader:
            for start, found, expected in _pieces(task, file, reader):
                statistics.add(expected)
                for row, column, text in _differences(task, found, expected):
                    first.setdefault(column, f"row {start + row} has {text} as in {reader.path}")
                    count[column] += 1
                result.compared_rows += found.num_rows
    except so2sat.SourceError as error:
        return [*first.values(), f"can't be compared ({error}), expected a sound source"]
    result.statistics = statistics if task.rows is None else None
    return [f"{text}{_more(count[column])}" for column, text in first.items()]


def _pieces(
    task: Task, file: pq.ParquetFile, reader: layout.Reader
) -> Iterator[tuple[int, pa.RecordBatch, dict[str, npt.NDArray[Any]]]]:
    """What a shard and its source hold, by blocks or by the rows to compare: the first row of each, and both."""
    groups = so2sat.blocks(task.shard.start, task.shard.stop, task.shard.group_rows)
    for group, (group_start, group_stop) in enumerate(groups):
        batches = file.iter_batches(so2sat.ROWS_PER_BLOCK, [group], use_threads=False)
        for (start, stop), batch in zip(so2sat.blocks(group_start, group_stop), batches, strict=True):
            rows = [(start, stop)]
            if task.rows is not None:
                rows = [(row, row + 1) for row in task.rows if start <= row < stop]
            for low, high in rows:
                yield low, batch.slice(low - start, high - low), reader.read(low, high)


# ┌────────┐
# │  Rows  │
# └────────┘


def _differences(
    task: Task, found: pa.RecordBatch, expected: Mapping[str, npt.NDArray[Any]]
) -> Iterator[tuple[int, str, str]]:
    """Rows that differ from the source: the row, its column, and what was found and expected."""
    for name, column in zip(found.schema.names, found.columns):
        if name == "image":
            differences = _different_images(task, column, expected[name])
        elif isinstance(column, pa.ExtensionArray):
            differences = _different_arrays(column, expected[name])
        elif name != "sample_id":  # which every row was checked for
            differences = _different_values(name, column, expected[name])
        else:
            continue
        yield from ((row, name, f"{name}{text}") for row, text in differences)


def _different_values(name: str, found: pa.Array, expected: npt.NDArray[Any]) -> Iterator[tuple[int, str]]:
    for row, (value, other) in enumerate(zip(found.to_pylist(), expected.tolist(), strict=True)):
        # Another version of PROJ may compute the last digits of a longitude otherwise.
        is_degree = name in ("longitude", "latitude") and value is not None
        if not (math.isclose(value, other, rel_tol=0, abs_tol=MAX_DEGREES) if is_degree else value == other):
            yield row, f" {manifest.shown(value)}, expected {other}"


def _different_arrays(found: pa.ExtensionArray, expected: npt.NDArray[np.float32]) -> Iterator[tuple[int, str]]:
    values = found.storage
    for length in found.type.shape:
        if values.null_count or (values.value_lengths().to_numpy() != length).any():
            yield 0, f" with nulls or lists of another length, expected {'×'.join(map(str, found.type.shape))} numbers"
            return
        values = values.flatten()
    if values.null_count:
        yield 0, " with nulls, expected numbers"
        return
    array = values.to_numpy().reshape(expected.shape)
    # Bits, so that NaN equals NaN and -0 is not 0.
    differs = array.view(np.uint32) != np.ascontiguousarray(expected).view(np.uint32)
    for row in np.flatnonzero(differs.any(axis=(1, 2, 3))):
        at = (row, *np.argwhere(differs[row])[0])
        yield int(row), f"[{', '.join(map(str, at[1:]))}] = {array[at]!s}, expected {expected[at]!s}"


def _different_images(task: Task, found: pa.Array, expected: npt.NDArray[np.uint8]) -> Iterator[tuple[int, str]]:
    image_format = task.shard.image_format
    images, paths = (pc.struct_field(found, name).to_pylist() for name in ("bytes", "path"))
    for row, (image, other) in enumerate(zip(images, so2sat.encode_images(expected, image_format), strict=True)):
        if paths[row] is not None:
            yield row, f" with a path, {manifest.shown(paths[row])}, expected none"
        elif image != other and (problem := _image_problem(image, other, image_format, task.same_pillow)):
            yield row, f" {problem}, expected that"


def _image_problem(image: bytes | None, other: bytes, image_format: str, same_pillow: bool) -> str:
    """How an image differs from another in other bytes, an empty string if not in a way that matters.

    Compressed losslessly, the same pixels may come as other bytes; JPEG may only from another Pillow.
    """
    try:
        pixels, others = _pixels(image or b"", image_format), _pixels(other, image_format)
    except Exception as error:  # Pillow's formats have exceptions of their own
        return f"that is no {image_format} of {so2sat.PATCH_SIZE}×{so2sat.PATCH_SIZE} pixels ({_one_line(error)})"
    noise = float(np.mean((pixels - others) ** 2))
    psnr = 10 * math.log10(255**2 / noise) if noise else math.inf
    is_same = psnr == math.inf if image_format == "png" else psnr >= MIN_PSNR and not same_pillow
    return "" if is_same else f"with other pixels or bytes (PSNR {psnr:.1f} dB)"


def _pixels(image: bytes, image_format: str) -> npt.NDArray[np.float64]:
    """Decodes an image that must have this format and size; nothing else is ever decoded."""
    pillow_format = so2sat.IMAGE_FORMATS[image_format]["format"]
    with PIL.Image.open(io.BytesIO(image), formats=[pillow_format]) as opened:
        if opened.size != (so2sat.PATCH_SIZE, so2sat.PATCH_SIZE) or opened.mode != "RGB":
            raise ValueError(f"{opened.mode}, {opened.width}×{opened.height}")
        return np.asarray(opened, np.float64)


# ┌────────┐
# │  Text  │
# └────────┘


def _few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(name if name.isprintable() and len(name) < 200 else manifest.shown(name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _more(count: int) -> str:
    return f" (and {count - 1:,} more rows)" if count > 1 else ""


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"
