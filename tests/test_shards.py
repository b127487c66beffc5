"""Shards: which rows go into which, and how one is written."""

from __future__ import annotations

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
from publishing import shards
from publishing.configs import CONFIGS, Config, Limits
from publishing.shards import Shard, ShardRecord

LEAF = ".list.element.list.element.list.element"


# ── Shards ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def limits() -> st.SearchStrategy[Limits]:
    """Any limits, the usual ones among them."""
    some = st.builds(lambda group, groups: Limits(group, group * groups), st.integers(64, 2048), st.integers(1, 100))
    return some | st.sampled_from([config.limits for config in CONFIGS.values()])


@settings(deadline=None)
@given(st.integers(1, 400_000), limits())
def test_shards_divide_a_split_at_row_groups_into_a_power_of_two(rows: int, limit: Limits) -> None:
    plan = shards.plan_shards("all", "train", rows, limit)
    groups = [-(-shard.rows // limit.group_rows) for shard in plan]
    assert [shard.start for shard in plan] == [0, *(shard.stop for shard in plan[:-1])]
    assert plan[-1].stop == rows
    assert all(shard.rows > 0 and shard.start % limit.group_rows == 0 for shard in plan)
    assert len(plan).bit_count() == 1
    assert max(groups) - min(groups) <= 1
    assert max(shard.rows for shard in plan) <= limit.shard_rows or 2 * len(plan) > sum(groups)


@pytest.mark.parametrize(("config", "count"), [("rgb", 16), ("all", 64), ("geo", 1)])
def test_the_full_training_split_has_the_designed_number_of_shards(config: str, count: int) -> None:
    plan = shards.plan_shards(config, "train", 352_366, CONFIGS[config].limits)
    assert [shard.name for shard in plan] == [f"{config}/train-{i:05d}-of-{count:05d}.parquet" for i in range(count)]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_shard_takes_at_most_500_mb_in_memory(config: Config) -> None:
    assert config.row_bytes * config.limits.shard_rows <= 500_000_000
    assert config.limits.shard_rows % config.limits.group_rows == 0


@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_the_memory_of_an_image_is_not_underestimated(image_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 32, 32, 3), dtype=np.uint8)  # does not compress
    numbers = {"label": np.zeros(128, np.int64), "sample_id": np.zeros(128, np.int64)}
    batch = shards.to_batch({"image": noise, **numbers}, so2sat.features("rgb").arrow_schema, image_format)
    assert batch.nbytes / 128 <= CONFIGS["rgb"].row_bytes


def test_the_memory_of_arrays_is_not_underestimated() -> None:
    arrays = {f"sentinel{n}": np.zeros((128, 32, 32, 6 + 2 * n), np.float32) for n in (1, 2)}
    numbers = {"label": np.zeros(128, np.int64), "sample_id": np.zeros(128, np.int64)}
    batch = shards.to_batch({**numbers, **arrays}, so2sat.features("all").arrow_schema, "jpeg")
    assert batch.nbytes / 128 <= CONFIGS["all"].row_bytes


def test_only_files_named_as_shards_are_shards(tmp_path: Path) -> None:
    for name in ("rgb/train-00001-of-00002.parquet", "rgb/my-notes-of-mine.parquet", "rgb/train-1-of-2.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "rgb/test-00000-of-00001.parquet").mkdir()
    assert shards.find_shards(tmp_path, ["rgb"]) == ["rgb/train-00001-of-00002.parquet"]


# ── Files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def column_chunks(path: Path) -> dict[str, Any]:
    """The first row group's column chunks by leaf path."""
    group = pq.read_metadata(path).row_group(0)
    return {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}


def written(tmp_path: Path, config: str, arrays: dict[str, Any], limit: Limits | None = None) -> Path:
    """A shard of these source arrays."""
    write_source(tmp_path / "training.h5", arrays)
    limits = limit or CONFIGS[config].limits
    (shard,) = shards.plan_shards(config, "train", len(arrays["label"]), limits, str(tmp_path))
    record, _ = shards.write_shard(shard, tmp_path)
    assert shards.has_sum(tmp_path / shard.name, record)
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
    assert shards.CONTENT_DEFINED_CHUNKING == datasets.config.DEFAULT_CDC_OPTIONS


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
    nested = shards.nested_list(array)
    assert nested.to_pylist() == array.tolist()
    assert nested.flatten().flatten().buffers()[1].address == array.ctypes.data


# ── Finished shards ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def shard(tmp_path: Path) -> tuple[Shard, ShardRecord]:
    """A written shard and its record."""
    write_source(tmp_path / "training.h5", random_arrays(70))
    (planned,) = shards.plan_shards("all", "train", 70, CONFIGS["all"].limits, str(tmp_path))
    return planned, shards.write_shard(planned, tmp_path)[0]


def test_a_shard_that_is_kept_has_the_statistics_of_one_that_is_written(
    shard: tuple[Shard, ShardRecord], tmp_path: Path
) -> None:
    planned, record = shard
    kept, of_kept, kept_is_new = shards.make_shard(planned, tmp_path, {planned.name: record})
    written, of_written, written_is_new = shards.make_shard(planned, tmp_path, {})
    assert (kept_is_new, written_is_new) == (False, True)
    assert kept == written == record
    assert of_kept.summary() == of_written.summary()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a byte changed": lambda path: path.write_bytes(path.read_bytes()[:500] + b"x" + path.read_bytes()[501:]),
    "removed": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_is_kept_only_with_all_its_bytes(damage: str, shard: tuple[Shard, ShardRecord], tmp_path: Path) -> None:
    planned, record = shard
    DAMAGES[damage](tmp_path / planned.name)
    made, _, is_new = shards.make_shard(planned, tmp_path, {planned.name: record})
    assert (made, is_new) == (record, True)


def test_what_decides_the_bytes_of_a_shard_is_in_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def recipes() -> list[dict[str, Any]]:
        return [shards.recipe(CONFIGS[name], "jpeg", CONFIGS[name].limits) for name in ("rgb", "all")]

    rgb, everything = recipes()
    monkeypatch.setitem(so2sat.IMAGE_FORMATS, "jpeg", {**so2sat.IMAGE_FORMATS["jpeg"], "quality": 90})
    assert recipes()[0] != rgb
    assert recipes()[1] == everything
    assert "pillow" in rgb
    assert "pillow" not in everything
