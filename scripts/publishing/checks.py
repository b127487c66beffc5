"""What is wrong with a repository: its files, card, manifest and statistics, and what is in its shards."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import math
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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

PLACE = ("city", "epsg", "x", "y")  # columns of `geo` that say where a patch is

MAX_STRAYS = 3  # that are named one by one
MAX_DEGREES = 1e-9  # 0.1 mm, between a longitude or latitude and what is computed here
MIN_PSNR = 40.0  # dB between an image and what another version of Pillow makes of the same pixels
# Column, percentile and the most that it is in every band of reflectance, whose median is near 0.12.
NOT_REFLECTANCE = (("sentinel2", "50", 1.0), ("image", "1", 254.0))


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is not as it must be: the file, and in words what was found and what was expected."""

    file: str
    problem: str

    def __str__(self) -> str:
        """The line that is printed, whatever files are called."""
        return "".join(letter if letter.isprintable() else "?" for letter in f"{self.file}: {self.problem}")


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
    if not is_incomplete(folder):
        unsound = {finding.file for finding in found}
        for shard in built.plan():
            if shard.name in built.shards and shard.name not in unsound:
                yield from shard_findings(folder, shard, footer_problems)


def file_findings(folder: Path, built: Manifest) -> Iterator[Finding]:
    """Checks what repository_findings does, but opens no shard."""
    if built.versions["layout"] != str(layout.LAYOUT_VERSION):
        yield Finding(manifest.NAME, f"layout {built.versions['layout']}, expected {layout.LAYOUT_VERSION}")
        return
    planned = [shard.name for shard in built.plan()]
    names = _files(folder)
    if is_incomplete(folder):
        done = len(built.shards.keys() & {*names})
        yield Finding(card.NAME, f"the build is incomplete, {done} of {len(planned)} shards are there, expected all")
        return
    if absent := [name for name in (*planned, layout.STATISTICS_NAME) if name not in {*built.shards, *built.files}]:
        yield Finding(manifest.NAME, f"does not list {absent[0]}{_more(len(absent), 'files')}, expected all files")
    records: dict[str, ShardRecord | str] = {**built.shards, **built.files, card.NAME: ""}
    problems = {name: _file_problem(folder, name, record) for name, record in records.items()}
    yield from (Finding(name, problem) for name, problem in problems.items() if problem)
    sound = [name for name, problem in problems.items() if not problem]
    if layout.STATISTICS_NAME in sound:
        yield from (Finding(layout.STATISTICS_NAME, problem) for problem in _statistics_problems(folder, built))
    if card.NAME in sound:
        yield from (Finding(card.NAME, problem) for problem in _card_problems(folder, built))
    yield from _stray_findings(folder, names, KNOWN_FILES.union(planned, built.shards, built.files))


def is_incomplete(folder: Path) -> bool:
    """Whether build.py has not finished a repository."""
    try:
        return manifest.read_small(folder / card.NAME) == card.INCOMPLETE.encode()
    except ValueError:
        return False


def warnings(statistics: card.Statistics) -> Iterator[str]:
    """Says which splits hold bands without a number, or values that can't be reflectance, such as digital numbers."""
    for config, splits in statistics.items():
        for split, summary in splits.items():
            for column, bands in summary["bands"].items():
                if empty := [band["name"] for band in bands if band["mean"] is None]:
                    yield f"{config}, {split}: no finite value in {', '.join(empty)} of {column}"
            for column, percentile, most in NOT_REFLECTANCE:
                found = [band["percentiles"] for band in summary["bands"].get(column, ()) if band["percentiles"]]
                if found and (least := min(percentiles[percentile] for percentiles in found)) > most:
                    what = f"percentile {percentile} of every band of {column} is {least:,.4g} or more"
                    yield f"{config}, {split}: {what}, expected at most {most:g}, as of reflectance near 0.1"


def name_warnings(folder: Path) -> Iterator[str]:
    """Says that the card's code loads another folder, as it does when a folder was renamed; ORG/NAME is the Hub's."""
    with contextlib.suppress(ValueError):  # no card, or somebody's own code
        text = manifest.read_small(folder / card.NAME).decode()
        code = re.search(r'load_dataset\(\s*("(?:[^"\\]|\\.)*")', text)
        name = json.loads(code[1]) if code else folder.name
        if name != folder.name and "/" not in name:
            what = f"its code loads {manifest.shown(name)}, but the folder is {manifest.shown(folder.name)}"
            yield f"{card.NAME}: {what}; build.py with this folder and the same arguments writes it anew"


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


def _file_problem(folder: Path, name: str, record: ShardRecord | str) -> str:
    """What is wrong with a file, given its record if it is a shard, else its SHA-256, empty if any will do."""
    path = folder / name
    if not os.path.lexists(path):
        return (
            "missing, expected the card" if name == card.NAME else f"missing, expected it as {manifest.NAME} lists it"
        )
    if not path.is_file() or path.resolve() != folder.resolve() / name:
        return "a link, folder or device, expected a regular file inside the repository"
    if isinstance(record, ShardRecord):
        size = path.stat().st_size
        return f"{size:,} bytes, expected {record.bytes:,}" if size != record.bytes else ""
    try:
        content = manifest.read_small(path)
    except ValueError as error:
        return str(error)
    sha256 = hashlib.sha256(content).hexdigest()
    if record not in ("", sha256):
        return _sum_problem(sha256, record)
    if name.endswith(".png") and not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return f"begins with {content[:8]!r}, expected a PNG picture"
    return ""


def _sum_problem(found: str, expected: str) -> str:
    return f"sha256 {found[:16]}…, expected {expected[:16]}…"


def _stray_findings(folder: Path, names: Sequence[str], expected: set[str]) -> Iterator[Finding]:
    """Files that must not be there; those that keep `datasets` from loading the others come with the reason."""
    script = "a loading script, expected none: datasets 4 and later refuse a repository with it"
    legacy = "legacy metadata, expected none: its configs break when it is out of date"
    harmful = {"so2sat.py": script, f"{folder.resolve().name}.py": script, "dataset_infos.json": legacy}
    yield from (Finding(name, harmful[name]) for name in names if name in harmful)
    strays = [name for name in names if name not in expected and name not in harmful]
    for name in strays[:MAX_STRAYS]:
        yield Finding(name, f"a stray file, expected only what {manifest.NAME} lists")
    if len(strays) > MAX_STRAYS:
        yield Finding(".", f"{len(strays) - MAX_STRAYS} more stray files, expected only what {manifest.NAME} lists")


def _card_problems(folder: Path, built: Manifest) -> Iterator[str]:
    """Whether the card's metadata are those that the shards make. Globs are only compared: nobody walks a disk."""
    try:
        found = _header((folder / card.NAME).read_bytes().decode())
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        yield f"can't be read as a dataset card ({_one_line(error)}), expected Markdown with YAML"
        return
    expected = card.metadata(built)
    for key in ("configs", "dataset_info"):
        if text := difference(found.get(key), expected.get(key), key):
            yield text


def _header(text: str) -> dict[str, Any]:
    parts = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    header = parts[1] if parts else ""
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(header, yaml.SafeLoader)):
        raise ValueError("its YAML has aliases, which may unpack to any size")
    found = yaml.safe_load(header)
    if not isinstance(found, dict):
        raise ValueError("no YAML header")
    return found


# ┌──────────────┐
# │  Statistics  │
# └──────────────┘


def difference(found: Any, expected: Any, where: str, is_same: Callable[[Any, Any], bool] = operator.eq) -> str:
    """The first place where two trees of JSON differ, an empty string if none; `is_same` compares leaves."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping) and [*found] == [*expected]:
        members = [(key, found[key], expected[key]) for key in expected]
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        members = [(_name(other, at), value, other) for at, (value, other) in enumerate(zip(found, expected))]
    elif is_same(found, expected):
        return ""
    else:
        return f"{where} is {manifest.shown(found)}, expected {manifest.shown(expected)}"
    texts = (difference(value, other, f"{where} {name}", is_same) for name, value, other in members)
    return next(filter(None, texts), "")


def _name(member: Any, index: int) -> Any:
    """What a member of an array is called: bands, features, splits and configs have names."""
    return (isinstance(member, Mapping) and (member.get("name") or member.get("config_name"))) or index


def is_close(found: Any, expected: Any) -> bool:
    """Whether two figures are the same but for rounding."""
    if isinstance(found, (int, float)) and isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-12)
    return bool(found == expected)


def _is_like(found: Any, blank: Any) -> bool:
    """Whether a member of the statistics is of the kind of another; a band without finite values lacks figures."""
    if found is None:
        return isinstance(blank, float) or (isinstance(blank, dict) and [*blank] == [*PERCENTILES])
    if isinstance(blank, str):
        return isinstance(found, str) and blank in ("", found)
    return type(found) is type(blank) and isinstance(blank, (int, float))


def read_statistics(folder: Path, built: Manifest) -> card.Statistics:
    """Reads the statistics of a repository.

    Raises:
        ValueError: They are not what build.py writes.
        OSError: They can't be read.
    """
    found = manifest.read_json(folder / layout.STATISTICS_NAME)
    if text := difference(found, {"method": "", "configs": _blank_statistics(built)}, "it", _is_like):
        raise ValueError(text)
    configs: card.Statistics = found["configs"]
    return configs


def _blank_statistics(built: Manifest) -> dict[str, dict[str, Any]]:
    """The statistics of a repository with these splits, of one row of zeros each."""
    blank: dict[str, dict[str, Any]] = {}
    for config in built.configs:
        statistics, splits = ConfigStatistics(layout.kind_of(config).bands), built.splits(config)
        arrays = {name: np.zeros((1, 1, 1, len(bands.names)), bands.dtype) for name, bands in statistics.bands.items()}
        statistics.add({"label": np.zeros(1, int), **arrays})
        blank[config] = {split: statistics.summary() for split in splits}
        if config == "geo":
            for split, shared in places.shared({split: dict.fromkeys(PLACE, np.zeros(1)) for split in splits}).items():
                blank[config][split]["shared"] = shared
    return blank


def _statistics_problems(folder: Path, built: Manifest) -> Iterator[str]:
    """Whether the statistics are of the splits, and at full size those that were published."""
    try:
        found = read_statistics(folder, built)
    except (ValueError, OSError) as error:
        yield f"can't be read ({_one_line(error)}), expected what build.py writes"
        return
    for config in built.configs:
        is_official = layout.CONFIGS[config].files == so2sat.SOURCE_FILES and not built.synthetic
        for split, rows in built.splits(config).items():
            summary, published = found[config][split], facts.PATCHES_PER_CLASS[split]
            counts = (*summary["patches_per_class"].values(),)
            is_full = is_official and rows == sum(published)
            if sum(counts) != rows:
                yield f"{sum(counts):,} patches of {config}, {split}, expected {rows:,}"
            elif is_full and counts != published:
                yield f"patches per class of {config}, {split}, are {counts}, expected {published} as published"
            elif is_full and split == "train":
                yield from _band_problems(summary["bands"])


def _band_problems(columns: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Whether the bands of the full training split have the mean and standard deviation that were published."""
    for column in columns.keys() & facts.TRAIN_MEAN.keys():
        for band, mean, std in zip(columns[column], facts.TRAIN_MEAN[column], facts.TRAIN_STD[column]):
            for name, expected in (("mean", mean), ("std", std)):
                # A mean near 0 is known no better than its band's spread allows.
                if not math.isclose(band[name] or 0.0, expected, rel_tol=1e-3, abs_tol=1e-3 * std):
                    yield f"{name} of {column} {band['name']} is {band[name]}, expected {expected:.6g} as published"


def shared_places(folder: Path, built: Manifest) -> dict[str, dict[str, dict[str, int]]]:
    """What every pair of splits of `geo` shares, of a repository whose shards are there; see places.shared."""
    found = {}
    for split in built.splits("geo"):
        tables = [pq.read_table(folder / name, columns=[*PLACE]) for name in built.shard_names("geo", split)]
        found[split] = {name: column.to_numpy() for name, column in zip(PLACE, pa.concat_tables(tables).columns)}
    return places.shared(found)


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
    shard, result = task.shard, Result()

    def problems(shard: Shard, file: pq.ParquetFile) -> Iterator[str]:
        wrong = [*footer_problems(shard, file)] or [*_row_problems(shard, file, result)]
        yield from wrong
        if not wrong and shard.source and task.rows != []:
            yield from _source_problems(task, file, result)

    with (task.folder / shard.name).open("rb") as raw:
        sha256 = sha_fileobj(raw).hex()
    if sha256 != task.record.sha256:
        result.findings = [Finding(shard.name, _sum_problem(sha256, task.record.sha256))]
    else:
        result.findings = [*shard_findings(task.folder, shard, problems)]
    return result


def shard_findings(
    folder: Path, shard: Shard, problems: Callable[[Shard, pq.ParquetFile], Iterator[str]]
) -> Iterator[Finding]:
    """What a check finds in a shard's file, or that the file can't be read."""
    try:
        with pq.ParquetFile(folder / shard.name, page_checksum_verification=True) as file:
            yield from [Finding(shard.name, problem) for problem in problems(shard, file)]
    except Exception as error:  # damaged bytes lead anywhere: Arrow's errors, bad UTF-8, lack of memory
        yield Finding(shard.name, f"can't be read ({_one_line(error)}), expected a Parquet file")


def footer_problems(shard: Shard, file: pq.ParquetFile) -> Iterator[str]:
    """What is wrong with a shard's schema, features and row groups, before anything is unpacked.

    Arrow ends the process where columns are not what the schema and the rows say, so nothing is read then.
    """
    kind = layout.kind_of(shard.config)
    found, expected = file.schema_arrow, kind.features.arrow_schema
    if not found.equals(expected):
        yield f"columns are {manifest.shown([*map(str, found)])}, expected {manifest.shown([*map(str, expected)])}"
        return
    try:
        features = datasets.Features.from_dict(json.loads(found.metadata[b"huggingface"])["info"]["features"])
    except Exception:  # whatever somebody wrote there
        features = None
    if features != kind.features:
        yield "other features for `datasets` in its schema, expected those of the config"
    groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    sizes = [stop - start for start, stop in so2sat.blocks(shard.start, shard.stop, shard.group_rows)]
    if rows != sizes or file.metadata.num_rows != shard.rows:
        yield f"row groups of {manifest.shown(rows)} rows, expected {manifest.shown(sizes)}"
        return
    lengths = {field.name: math.prod(getattr(field.type, "shape", ())) for field in expected}
    for index, group in enumerate(groups):
        if group.total_byte_size > 2 * kind.row_bytes * group.num_rows + (1 << 20):
            yield f"row group {index} unpacks to {group.total_byte_size:,} bytes, expected {kind.row_bytes:,} a row"
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
    numbers, last = np.arange(shard.start, shard.stop), len(so2sat.LABELS) - 1
    if not (is_odd := (labels < 0) | (labels > last)).any():
        result.labels = labels.astype(np.int8)
    for name, wrong, expected in (
        ("label", is_odd, [f"0 to {last}"] * len(ids)),
        ("sample_id", ids != numbers, numbers),
    ):
        if (rows := np.flatnonzero(wrong)).size:
            what = f"row {numbers[rows[0]]} has {name} {table[name][rows[0]]}"
            yield f"{what}{_more(rows.size)}, expected {expected[rows[0]]}"


def _source_problems(task: Task, file: pq.ParquetFile, result: Result) -> Iterator[str]:
    """How rows differ from the source: for every column the first row, and how many more there are."""
    statistics = ConfigStatistics(layout.kind_of(task.shard.config).bands)
    first, count = dict[str, str](), collections.Counter[str]()
    try:
        for name, text in _different_rows(task, file, result, statistics):
            first.setdefault(name, text)
            count[name] += 1
    except so2sat.SourceError as error:
        yield f"can't be compared ({error}), expected a sound source"
    else:
        result.statistics = statistics if task.rows is None else None
    yield from (f"{text}{_more(count[name])}" for name, text in first.items())


def _different_rows(
    task: Task, file: pq.ParquetFile, result: Result, statistics: ConfigStatistics
) -> Iterator[tuple[str, str]]:
    """Rows that differ from the source: the column and how; adds what the source holds to the statistics."""
    with layout.open_shard(task.shard) as reader:
        for start, found, expected in _pieces(task, file, reader):
            statistics.add(expected)
            for name, column in zip(found.schema.names, found.columns):
                for row, text in _differences(task, name, column, expected[name]):
                    yield name, f"row {start + row} has {name}{text} as in {reader.path}"
            result.compared_rows += found.num_rows


def _pieces(
    task: Task, file: pq.ParquetFile, reader: layout.Reader
) -> Iterator[tuple[int, pa.RecordBatch, dict[str, npt.NDArray[Any]]]]:
    """What a shard and its source hold, by blocks or by the rows to compare: the first row of each, and both."""
    for group, edges in enumerate(so2sat.blocks(task.shard.start, task.shard.stop, task.shard.group_rows)):
        batches = file.iter_batches(so2sat.ROWS_PER_BLOCK, [group], use_threads=False)
        for (start, stop), batch in zip(so2sat.blocks(*edges), batches, strict=True):
            rows = [(start, stop)]
            if task.rows is not None:
                rows = [(row, row + 1) for row in task.rows if start <= row < stop]
            for low, high in rows:
                yield low, batch.slice(low - start, high - low), reader.read(low, high)


# ┌────────┐
# │  Rows  │
# └────────┘


def _differences(task: Task, name: str, found: pa.Array, expected: npt.NDArray[Any]) -> Iterator[tuple[int, str]]:
    """Rows of a column that differ from the source: the row, and what was found and expected."""
    if pa.types.is_struct(found.type):
        yield from _different_images(task, found, expected)
        return
    if isinstance(found, pa.ExtensionArray):
        flat, is_whole = found.storage, True
        for length in found.type.shape:
            is_whole &= not flat.null_count and pc.all(pc.equal(flat.value_lengths(), length)).as_py()
            flat = flat.flatten()
        if not is_whole or flat.null_count:
            yield 0, f" with nulls or lists of another length, expected {'×'.join(map(str, found.type.shape))} numbers"
            return
        values = flat.to_numpy().reshape(expected.shape)
        # Bits, so that NaN equals NaN and -0 is not 0.
        differs = values.view(np.uint32) != np.ascontiguousarray(expected).view(np.uint32)
    else:
        values = found.to_numpy(zero_copy_only=False)
        # Another version of PROJ may compute the last digits of a longitude otherwise.
        is_degree = name in ("longitude", "latitude")
        differs = ~(np.abs(values - expected) <= MAX_DEGREES) if is_degree else values != expected
    for row in np.flatnonzero(differs.reshape(len(differs), -1).any(axis=1)):
        at = (row, *np.argwhere(differs[row])[0])
        place = f"[{', '.join(map(str, at[1:]))}] =" if len(at) > 1 else ""
        value = str(values[at]) if len(at) > 1 else manifest.shown(found[int(row)].as_py())
        yield int(row), f"{place} {value}, expected {expected[at]!s}"


def _different_images(task: Task, found: pa.Array, expected: npt.NDArray[np.uint8]) -> Iterator[tuple[int, str]]:
    image_format = task.shard.image_format
    images, paths = (pc.struct_field(found, name).to_pylist() for name in ("bytes", "path"))
    for row, (image, other) in enumerate(zip(images, so2sat.encode_images(expected, image_format), strict=True)):
        if paths[row] is not None:
            yield row, f" with a path, {manifest.shown(paths[row])}, expected none"
        elif image != other and (problem := _image_problem(image, other, image_format, task.same_pillow)):
            yield row, f" {problem}, expected the same pixels"


def _image_problem(image: bytes | None, other: bytes, image_format: str, same_pillow: bool) -> str:
    """What is wrong with an image whose bytes are not the expected ones, an empty string if nothing that matters.

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


def _more(count: int, what: str = "rows") -> str:
    return f" (and {count - 1:,} more {what})" if count > 1 else ""


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"
