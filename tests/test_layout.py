"""Layout: which rows go into which shard, and how a shard is written."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import so2sat
from conftest import random_arrays, write_source
from publishing import layout
from publishing.layout import Limits

LEAF = ".list.element.list.element.list.element"


# ── Shards ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def limits() -> st.SearchStrategy[Limits]:
    """Any limits, the usual ones among them."""
    some = st.builds(lambda group, groups: Limits(group, group * groups), st.integers(64, 2048), st.integers(1, 100))
    return some | st.sampled_from([*layout.LIMITS.values()])


@settings(deadline=None)
@given(st.integers(1, 400_000), limits())
def test_shards_divide_a_split_at_row_groups_into_a_power_of_two(rows: int, limit: Limits) -> None:
    shards = layout.plan_shards("all", "train", rows, limits={"all": limit})
    groups = [-(-shard.rows // limit.group_rows) for shard in shards]
    assert [shard.start for shard in shards] == [0, *(shard.stop for shard in shards[:-1])]
    assert shards[-1].stop == rows
    assert all(shard.rows > 0 and shard.start % limit.group_rows == 0 for shard in shards)
    assert len(shards).bit_count() == 1
    assert max(groups) - min(groups) <= 1
    assert max(shard.rows for shard in shards) <= limit.shard_rows or 2 * len(shards) > sum(groups)


@pytest.mark.parametrize(("config", "count"), [("rgb", 16), ("all", 64), ("geo", 1)])
def test_the_full_training_split_has_the_designed_number_of_shards(config: str, count: int) -> None:
    shards = layout.plan_shards(config, "train", 352_366)
    assert [shard.name for shard in shards] == [f"{config}/train-{i:05d}-of-{count:05d}.parquet" for i in range(count)]


@pytest.mark.parametrize("kind", layout.KINDS.values(), ids=layout.KINDS.keys())
def test_a_shard_takes_at_most_500_mb_in_memory(kind: layout.Kind) -> None:
    assert kind.row_bytes * kind.limits.shard_rows <= 500_000_000
    assert kind.limits.shard_rows % kind.limits.group_rows == 0


@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_the_memory_of_an_image_is_not_underestimated(image_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 32, 32, 3), dtype=np.uint8)  # does not compress
    numbers = {"label": np.zeros(128, np.int64), "sample_id": np.zeros(128, np.int64)}
    table = layout.to_table({"image": noise, **numbers}, so2sat.features("rgb").arrow_schema, image_format)
    assert table.nbytes / 128 <= layout.KINDS["rgb"].row_bytes


def test_the_memory_of_arrays_is_not_underestimated() -> None:
    arrays = {f"sentinel{n}": np.zeros((128, 32, 32, 6 + 2 * n), np.float32) for n in (1, 2)}
    numbers = {"label": np.zeros(128, np.int64), "sample_id": np.zeros(128, np.int64)}
    table = layout.to_table({**numbers, **arrays}, so2sat.features("all").arrow_schema, "jpeg")
    assert table.nbytes / 128 <= layout.KINDS["all"].row_bytes


def test_only_files_named_as_shards_are_shards(tmp_path: Path) -> None:
    for name in ("rgb/train-00001-of-00002.parquet", "rgb/my-notes-of-mine.parquet", "rgb/train-1-of-2.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "rgb/test-00000-of-00001.parquet").mkdir()
    assert layout.find_shards(tmp_path) == ["rgb/train-00001-of-00002.parquet"]


def test_every_picture_of_the_card_is_a_known_file() -> None:
    assert {layout.STATISTICS_NAME, *layout.PICTURES} <= {*layout.OTHER_FILES}


# ── Files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def column_chunks(path: Path) -> dict[str, Any]:
    """The first row group's column chunks by leaf path."""
    group = pq.read_metadata(path).row_group(0)
    return {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}


def written(tmp_path: Path, config: str, arrays: dict[str, Any], limit: Limits | None = None) -> Path:
    """A shard of these source arrays."""
    source = str(write_source(tmp_path / "training.h5", arrays))
    kinds = {**layout.LIMITS, **({layout.CONFIGS[config].kind: limit} if limit else {})}
    (shard,) = layout.plan_shards(config, "train", len(arrays["label"]), source, limits=kinds)
    record = layout.write_shard(shard, tmp_path)
    assert layout.is_intact(tmp_path, shard, record)
    return tmp_path / shard.name


@pytest.mark.parametrize("config", ["rgb", "all"])
def test_row_groups_have_the_rows_of_the_limits_and_pages_are_indexed(config: str, tmp_path: Path) -> None:
    metadata = pq.read_metadata(written(tmp_path, config, random_arrays(70), Limits(32, 96)))
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [32, 32, 6]
    assert all(group.column(i).has_offset_index for group in groups for i in range(group.num_columns))


def test_arrays_are_split_by_bytes_and_quantised_ones_have_a_dictionary(tmp_path: Path) -> None:
    arrays = column_chunks(written(tmp_path, "all", random_arrays(70)))
    assert {chunk.compression for chunk in arrays.values()} == {"ZSTD"}
    assert "BYTE_STREAM_SPLIT" in arrays[f"sentinel1{LEAF}"].encodings
    assert "RLE_DICTIONARY" in arrays[f"sentinel2{LEAF}"].encodings
    # No reader can filter by the least and greatest value of an array, and to find them takes time.
    assert {name for name, chunk in arrays.items() if chunk.statistics} == {"label", "sample_id"}


def test_reflectance_that_is_not_quantised_is_split_by_bytes(tmp_path: Path) -> None:
    arrays = {**random_arrays(70), "sen2": np.random.default_rng(0).random((70, 32, 32, 10))}
    assert "BYTE_STREAM_SPLIT" in column_chunks(written(tmp_path, "all", arrays))[f"sentinel2{LEAF}"].encodings


def test_images_are_not_compressed_again(tmp_path: Path) -> None:
    images = column_chunks(written(tmp_path, "rgb", random_arrays(5)))
    assert images["image.bytes"].compression == "UNCOMPRESSED"
    assert images["image.bytes"].statistics is None
    assert images["label"].compression == "ZSTD"


def test_content_defined_chunking_is_that_of_datasets() -> None:
    assert layout.CONTENT_DEFINED_CHUNKING == datasets.config.DEFAULT_CDC_OPTIONS


def test_a_flipped_byte_in_an_array_column_fails_its_page_checksum(tmp_path: Path) -> None:
    path = written(tmp_path, "all", random_arrays(70))
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


def test_the_schema_carries_the_hugging_face_features(tmp_path: Path) -> None:
    for config in ("rgb", "all"):
        schema = pq.read_schema(written(tmp_path, config, random_arrays(3)))
        assert datasets.Features.from_arrow_schema(schema) == so2sat.features(config)
    assert isinstance(schema.field("sentinel1").type, pa.ExtensionType)


def test_nested_lists_hold_the_array_and_copy_none_of_it() -> None:
    array = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    nested = layout.nested_list(array)
    assert nested.to_pylist() == array.tolist()
    assert nested.flatten().flatten().buffers()[1].address == array.ctypes.data


# ── Statistics of finished shards ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def shard(tmp_path: Path) -> tuple[layout.Shard, layout.ShardRecord, Path]:
    """A written shard, its record and the file with its statistics."""
    source = str(write_source(tmp_path / "training.h5", random_arrays(5)))
    (shard,) = layout.plan_shards("rgb", "train", 5, source)
    record = layout.write_shard(shard, tmp_path)
    (path,) = (tmp_path / layout.STATE_FOLDER / "statistics").iterdir()
    return shard, record, path


def _as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _with(name: str, value: Any) -> Callable[[Path], None]:
    """Puts another array among those of a file."""

    def change(path: Path) -> None:
        with np.load(path) as arrays:
            changed = {**arrays, name: np.array(value)}
        np.savez(path, **dict[str, Any](changed))

    return change


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "removed": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "not a zip": lambda path: path.write_bytes(b"x" * 1000),
    "zeros inside": lambda path: path.write_bytes(path.read_bytes()[:60] + bytes(60) + path.read_bytes()[120:]),
    "without members": lambda path: np.savez(path, nothing=np.zeros(1)),
    "of other bands": _with("image.moments", np.zeros((5, 2))),
    "of bins that are not there": _with("image.bins", [3 << 16]),
    "of fewer counts": _with("image.counts", [1, 2]),
    "of text": _with("image.size", "many"),
    "a folder": _as_folder,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_wrong_with_statistics_they_are_lost_and_made_anew(
    damage: str, shard: tuple[layout.Shard, layout.ShardRecord, Path], tmp_path: Path
) -> None:
    planned, record, path = shard
    DAMAGES[damage](path)
    assert layout.load_statistics(tmp_path, "rgb", record) is None
    assert not layout.is_intact(tmp_path, planned, record)
    layout.keep_statistics(tmp_path, [])
    assert layout.write_shard(planned, tmp_path) == record
    assert layout.is_intact(tmp_path, planned, record)


@pytest.mark.parametrize("stray", ["file", "folder", "pipe"])
def test_what_is_not_the_statistics_of_a_shard_is_removed(
    stray: str, shard: tuple[layout.Shard, layout.ShardRecord, Path], tmp_path: Path
) -> None:
    _, record, path = shard
    other = path.with_name("other.npz")
    makers: dict[str, Callable[[Path], Any]] = {"file": Path.touch, "folder": Path.mkdir, "pipe": os.mkfifo}
    makers[stray](other)
    layout.keep_statistics(tmp_path, [record])
    assert [*path.parent.iterdir()] == [path]


def test_statistics_that_are_a_file_give_way_to_their_folder(tmp_path: Path) -> None:
    (tmp_path / layout.STATE_FOLDER).mkdir()
    (tmp_path / layout.STATE_FOLDER / "statistics").touch()
    layout.keep_statistics(tmp_path, [])
    written(tmp_path, "rgb", random_arrays(2))


def test_a_shard_is_intact_only_with_all_its_bytes(
    shard: tuple[layout.Shard, layout.ShardRecord, Path], tmp_path: Path
) -> None:
    planned, record, _ = shard
    path = tmp_path / planned.name
    content = path.read_bytes()
    for wrong in (content[:-1], content[:500] + b"x" + content[501:]):
        path.write_bytes(wrong)
        assert not layout.is_intact(tmp_path, planned, record)
    path.unlink()
    assert not layout.is_intact(tmp_path, planned, record)


# ── Sources ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_paths_of_places_come_last(full_folder: Path) -> None:
    sources = {config: layout.find_sources(str(full_folder), config) for config in layout.CONFIGS}
    names = [*layout.source_paths(sources)]
    assert len(names) == len({*names}) == 3 + 4 + 3
    assert all(name.endswith("_geo.h5") for name in names[-3:])


def test_geo_has_the_splits_whose_places_are_there(full_folder: Path, tmp_path: Path) -> None:
    for name in itertools.chain(full_folder.glob("training*.h5"), full_folder.glob("validation.h5")):
        shutil.copy(name, tmp_path)
    assert [*layout.find_sources(str(tmp_path), "geo")] == ["train"]
