"""What is found in a shard: its bytes, its schema, its rows by themselves and against the source."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import build
import so2sat
from conftest import Edit, edited, set_value, write_table
from publishing import compare, manifest

RGB_TEST = "rgb/test-00000-of-00001.parquet"
ALL_TRAIN_1, ALL_TEST = "all/train-00001-of-00002.parquet", "all/test-00000-of-00001.parquet"

Change = Callable[[pa.Table], pa.Table]
ShardOf = Callable[..., list[str]]


@pytest.fixture
def shard(sound: Path, small_folder: Path, tmp_path: Path) -> ShardOf:
    """Changes a shard, alone in a folder, and gives what is found in it. The default compares it with its source."""

    def check(
        name: str,
        change: Change | None = None,
        damage: Callable[[bytes], bytes] | None = None,
        repository: Path = sound,
        has_source: bool = True,
        same_pillow: bool = True,
        sign: bool = True,
        **options: Any,
    ) -> list[str]:
        built = manifest.load_built(repository)
        plan = built.plan(str(small_folder) if has_source else "")
        (planned,) = [shard for shard in plan if shard.name == name]
        path, record = tmp_path / name, built.shards[name]
        if change:
            write_table(path, change(pq.read_table(repository / name)), planned.group_rows, **options)
        if damage:
            path.parent.mkdir()
            path.write_bytes(damage((repository / name).read_bytes()))
        if sign:
            content = path.read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            record = dataclasses.replace(record, bytes=len(content), sha256=sha256)
        found = compare.check_shard(compare.Task(tmp_path, planned, record, same_pillow=same_pillow)).problems
        assert all(len(problem) < 1000 for problem in found)
        return found

    return check


def _flipped(content: bytes, position: int) -> bytes:
    """The content with a bit turned over."""
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def _replaced(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name).with_type(column.type), column)


def _with_another_class(table: pa.Table) -> pa.Table:
    features = table.schema.metadata[b"huggingface"].replace(b"Water", b"Sea")
    return table.replace_schema_metadata({"huggingface": features})


SCHEMAS: dict[str, tuple[str, Change, dict[str, Any]]] = {
    "another type": (RGB_TEST, lambda table: _replaced(table, "label", table["label"].cast(pa.int32())), {}),
    "a column less": (ALL_TEST, lambda table: table.drop_columns(["label"]), {}),
    "columns in another order": (ALL_TEST, lambda table: table.select(table.column_names[::-1]), {}),
    "no features": (RGB_TEST, lambda table: table.replace_schema_metadata(None), {}),
    "other features": (RGB_TEST, _with_another_class, {}),
    "rows less": (RGB_TEST, lambda table: table.slice(0, 10), {}),
    "other row groups": (RGB_TEST, lambda table: table, {"row_group_size": 10}),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_another_schema_or_other_rows_are_one_finding(shard: ShardOf, name: str) -> None:
    of, change, options = SCHEMAS[name]
    assert len(shard(of, change, **options)) == 1


# ── Rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("part", ["header", "pages", "footer", "end"])
def test_a_flipped_bit_is_one_finding_wherever_it_is(shard: ShardOf, sound: Path, part: str) -> None:
    content = (sound / ALL_TEST).read_bytes()
    size, footer = len(content), int.from_bytes(content[-8:-4], "little")
    position = {"header": 2, "pages": size // 2, "footer": size - 8 - footer // 2, "end": size - 2}[part]
    (problem,) = shard(ALL_TEST, damage=lambda content: _flipped(content, position), sign=False)
    assert "SHA-256" in problem


def test_a_damaged_page_is_found_though_its_checksum_is_forged(shard: ShardOf) -> None:
    (problem,) = shard(ALL_TEST, damage=lambda content: _flipped(content, len(content) // 2))
    assert "can't be read" in problem


@pytest.mark.parametrize(
    ("name", "edit", "text"),
    [
        (RGB_TEST, set_value("label", 7, 17), "can't be read"),
        (RGB_TEST, set_value("label", 0, None), "can't be read"),
        (ALL_TRAIN_1, set_value("sample_id", 9, 9), "row 89 has sample_id 9, "),
    ],
)
def test_a_label_or_id_that_can_not_be_is_one_finding(shard: ShardOf, name: str, edit: Edit, text: str) -> None:
    for has_source in (True, False):
        (problem,) = shard(name, lambda table: edited(table, edit), has_source=has_source)
        assert problem.startswith(text)


def _image(mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new(mode, (32, 32)).save(buffer, "JPEG")
    return buffer.getvalue()


def _set_image(row: int, file: bytes | None) -> Edit:
    return set_value("image", row, {"bytes": file, "path": None})


def _pixels(columns: dict[str, Any]) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(columns["image"][5]["bytes"]))


def _reencoded(image_format: str, **options: Any) -> Edit:
    """Row 5 as another file of the same pixels, or nearly the same."""

    def edit(columns: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        _pixels(columns).save(buffer, image_format, **options)
        assert buffer.getvalue() != columns["image"][5]["bytes"]
        columns["image"][5]["bytes"] = buffer.getvalue()

    return edit


def _with_another_pixel(image_format: str) -> Edit:
    """Row 5 with the least change of one pixel."""

    def edit(columns: dict[str, Any]) -> None:
        pixels = np.array(_pixels(columns))
        pixels[4, 5, 0] ^= 1
        columns["image"][5]["bytes"] = so2sat.encode_images(pixels[np.newaxis], image_format)[0]

    return edit


IMAGE = "row 5 has image "
VALUES = {
    "radar": (ALL_TRAIN_1, set_value("sentinel1", (3, 30, 20, 7), 0.5), "row 83 has sentinel1[30, 20, 7] = 0.5, "),
    "no number": (ALL_TEST, set_value("sentinel2", (3, 0, 1, 2), np.nan), "row 3 has sentinel2[0, 1, 2] = nan, "),
    "several rows": (ALL_TEST, set_value("sentinel2", (slice(3, 6), 0), 0), "row 3 has sentinel2[0, 0, 0] = 0.0, "),
    "another label": (RGB_TEST, lambda columns: columns.update(label=[3, 4] * 6), "row 0 has label 3, "),
    "a worse image": (RGB_TEST, _reencoded("JPEG", quality=50), IMAGE),
    "an almost equal image": (RGB_TEST, _with_another_pixel("jpeg"), IMAGE),
    "another image": (RGB_TEST, _set_image(5, _image()), IMAGE),
    "a grey image": (RGB_TEST, _set_image(5, _image(mode="L")), "can't be read"),
    "half an image": (RGB_TEST, _set_image(5, _image()[:300]), "can't be read"),
    "no image": (RGB_TEST, _set_image(5, None), "can't be read"),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_wrong_value_is_found_with_the_source(shard: ShardOf, name: str) -> None:
    of, edit, text = VALUES[name]
    (problem,) = shard(of, lambda table: edited(table, edit))
    assert problem.startswith(text)


def _with_nulls(table: pa.Table) -> pa.Table:
    column = table["sentinel2"].combine_chunks()
    storage = pa.concat_arrays([column.storage[:-2], pa.nulls(2, column.storage.type)])
    return _replaced(table, "sentinel2", pa.ExtensionArray.from_storage(column.type, storage))


def test_arrays_with_nulls_are_found(shard: ShardOf) -> None:
    assert shard(ALL_TEST, _with_nulls)


@pytest.mark.parametrize(
    ("edit", "count"),
    [(_reencoded("PNG", compress_level=1), 0), (_with_another_pixel("png"), 1)],
    ids=["same", "other"],
)
def test_a_lossless_image_is_its_pixels(
    small_folder: Path, tmp_path: Path, shard: ShardOf, edit: Edit, count: int
) -> None:
    build.build(str(small_folder), tmp_path / "png" / "so2sat", ["rgb"], image_format="png")
    change = functools.partial(edited, edit=edit)
    assert len(shard(RGB_TEST, change, repository=tmp_path / "png" / "so2sat")) == count


@pytest.mark.parametrize(("same_pillow", "count"), [(True, 1), (False, 0)])
def test_a_little_other_pixels_may_only_come_from_another_pillow(shard: ShardOf, same_pillow: bool, count: int) -> None:
    change = functools.partial(edited, edit=_with_another_pixel("jpeg"))
    assert len(shard(RGB_TEST, change, same_pillow=same_pillow)) == count
