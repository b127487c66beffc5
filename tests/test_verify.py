"""Verification: a sound repository has no findings, and whatever is wrong with one is found and named."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import build
import so2sat
import verify
from conftest import Arrays, RangeServer, random_arrays, sign, write_shard, write_source
from publishing import card, facts, layout, manifest

SHARDS = (
    "rgb/train-00000-of-00001.parquet",
    "rgb/validation-00000-of-00001.parquet",
    "rgb/test-00000-of-00001.parquet",
    "all/train-00000-of-00002.parquet",
    "all/train-00001-of-00002.parquet",
    "all/validation-00000-of-00001.parquet",
    "all/test-00000-of-00001.parquet",
)
RGB_TRAIN, RGB_VALIDATION, RGB_TEST, ALL_TRAIN_0, ALL_TRAIN_1, ALL_VALIDATION, ALL_TEST = SHARDS
ROWS = 300 + 70 + 33


@pytest.fixture(scope="module", autouse=True)
def _small_shards() -> Iterator[None]:
    """Lets a shard of `all` have two row groups, so that train has two shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "MAX_SHARD_BYTES", 22_000_000)
        yield


@pytest.fixture(scope="module")
def sound(_small_shards: None, tmp_path_factory: pytest.TempPathFactory, source_folder: Path) -> Path:
    """A repository made of `source_folder`. Read only."""
    folder = tmp_path_factory.mktemp("sound") / "so2sat"
    build.build(str(source_folder), folder)
    return folder


@pytest.fixture
def repository(sound: Path, tmp_path: Path) -> Path:
    """A copy of `sound` to damage."""
    return Path(shutil.copytree(sound, tmp_path / "so2sat"))


def findings(repository: Path, source: Path | None = None) -> list[str]:
    """What a verification prints."""
    return [str(finding) for finding in verify.verify(repository, str(source) if source else None).findings]


def only(lines: list[str]) -> str:
    assert len(lines) == 1, lines
    return lines[0]


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def rewrite(repository: Path, name: str, edit: Callable[[dict[str, Any]], None], **options: Any) -> None:
    """Writes a shard anew with edited columns, and signs it."""
    config = name.split("/")[0]
    columns: dict[str, Any] = {}
    for field in so2sat.features(config).arrow_schema:
        array = pq.read_table(repository / name)[field.name].combine_chunks()
        if field.name == "image":
            columns[field.name] = array.field("bytes").to_pylist()
        elif isinstance(field.type, pa.ExtensionType):
            values = array.storage.flatten().flatten().flatten().to_numpy()
            columns[field.name] = values.reshape(len(array), *field.type.shape).copy()
        else:
            columns[field.name] = array.to_numpy().copy()
    edit(columns)
    schema = so2sat.features(config).arrow_schema
    arrays = [_array(field.type, columns[field.name]) for field in schema]
    write_shard(repository, name, pa.Table.from_arrays(arrays, schema=schema), **options)


def _array(type_: pa.DataType, values: Any) -> pa.Array:
    if isinstance(type_, pa.ExtensionType):
        return pa.ExtensionArray.from_storage(type_, layout._nested_list(values))
    if pa.types.is_struct(type_):
        return pa.array([{"bytes": file, "path": None} for file in values], type_)
    return pa.array(values, type_)


def edit_json(path: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def edit_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def image_file(size: tuple[int, int] = (32, 32), mode: str = "RGB", image_format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new(mode, size).save(buffer, image_format)
    return buffer.getvalue()


# ── A sound repository ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sound_repository_has_no_findings(sound: Path) -> None:
    report = verify.verify(sound)
    assert report == verify.Report(str(sound), shards=7, rows=2 * ROWS, compared_rows=0, findings=[])


def test_a_sound_repository_equals_its_source(sound: Path, source_folder: Path) -> None:
    report = verify.verify(sound, str(source_folder))
    assert (report.findings, report.compared_rows) == ([], 2 * ROWS)


def test_a_sound_repository_equals_its_source_over_http(sound: Path, http_source: RangeServer) -> None:
    report = verify.verify(sound, http_source.url)
    assert (report.findings, report.compared_rows) == ([], 2 * ROWS)


def test_several_processes_report_the_same(sound: Path, repository: Path, source_folder: Path) -> None:
    flip(repository / ALL_TEST, 1000)
    alone, together = (verify.verify(repository, str(source_folder), workers=workers) for workers in (1, 2))
    assert alone == together
    assert len(alone.findings) > 1


def test_a_sample_takes_less_from_the_source(sound: Path, http_source: RangeServer) -> None:
    assert verify.verify(sound, http_source.url, sample=10).compared_rows == 20
    of_sample = http_source.bytes_sent
    verify.verify(sound, http_source.url)
    assert of_sample < (http_source.bytes_sent - of_sample) / 3


def test_a_sample_larger_than_the_repository_is_the_repository(sound: Path, source_folder: Path) -> None:
    assert verify.verify(sound, str(source_folder), sample=10**6).compared_rows == 2 * ROWS


@given(st.integers(1, 60_000), st.integers(1, 5_000), st.integers(1, 3_000), st.integers(0, 2**32))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_a_sample_is_random_rows_of_every_config_and_repeats(
    train: int, validation: int, sample: int, seed: int
) -> None:
    plan = [
        shard
        for config in so2sat.CONFIGS
        for split, rows in (("train", train), ("validation", validation))
        for shard in layout.plan_shards(config, split, rows, "", "jpeg")
    ]
    drawn = verify._sampled_rows(plan, sample, seed)
    assert drawn == verify._sampled_rows(plan, sample, seed)
    assert {*drawn} == {shard.name for shard in plan}
    for config in so2sat.CONFIGS:
        rows = {(shard.split, row) for shard in plan if shard.config == config for row in drawn[shard.name]}
        assert len(rows) == min(sample, train + validation)
    for shard in plan:
        assert all(shard.start <= row < shard.stop for row in drawn[shard.name])


def test_lossless_images_equal_their_source(tmp_path: Path, source_folder: Path) -> None:
    build.build(str(source_folder), tmp_path / "png", ["rgb"], image_format="png")
    assert findings(tmp_path / "png", source_folder) == []


def test_other_bytes_of_a_lossless_image_are_the_same_image(tmp_path: Path, source_folder: Path) -> None:
    build.build(str(source_folder), tmp_path / "png", ["rgb"], image_format="png")

    def compress_anew(columns: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        PIL.Image.open(io.BytesIO(columns["image"][3])).save(buffer, "PNG", compress_level=1)
        assert buffer.getvalue() != columns["image"][3]
        columns["image"][3] = buffer.getvalue()

    rewrite(tmp_path / "png", RGB_TEST, compress_anew)
    assert findings(tmp_path / "png", source_folder) == []


def test_another_lossless_image_is_found_however_near_it_is(tmp_path: Path, source_folder: Path) -> None:
    build.build(str(source_folder), tmp_path / "png", ["rgb"], image_format="png")

    def change_a_pixel(columns: dict[str, Any]) -> None:
        pixels = np.array(PIL.Image.open(io.BytesIO(columns["image"][3])))
        pixels[4, 5, 0] ^= 1
        columns["image"][3] = so2sat.encode_images(pixels[np.newaxis], "png")[0]

    rewrite(tmp_path / "png", RGB_TEST, change_a_pixel)
    assert f"{RGB_TEST}: row 3 has another image (PSNR " in only(findings(tmp_path / "png", source_folder))


def test_nan_and_infinity_equal_themselves(tmp_path: Path, source_arrays: dict[str, Arrays]) -> None:
    arrays = {name: array[:20].copy() for name, array in source_arrays["train"].items()}
    arrays["sen1"][3, 0, 0, :4] = np.nan, np.inf, -np.inf, -0.0
    path = write_source(tmp_path / "training.h5", arrays)
    shard = layout.plan_shards("all", "train", 20, str(path), "jpeg")[0]
    record = layout.write_shard(shard, tmp_path)
    result = verify.check_shard(verify.Task(shard, tmp_path, record, {}, None, same_pillow=True))
    assert (result.findings, result.compared_rows) == ([], 20)


def test_what_belongs_to_a_repository_is_no_stray(repository: Path) -> None:
    for name in (".gitattributes", ".git/HEAD", ".cache/huggingface/x"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("{}")
    assert findings(repository) == []


# ── Damaged files ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [RGB_TRAIN, ALL_TRAIN_1, ALL_TEST])
@pytest.mark.parametrize("where", ["header", "pages", "footer", "length of the footer", "end"])
def test_a_flipped_bit_is_found_wherever_it_is(repository: Path, name: str, where: str) -> None:
    path, rng = repository / name, random.Random(f"{name} {where}")
    size = path.stat().st_size
    footer = int.from_bytes(path.read_bytes()[-8:-4], "little")
    first, last = {
        "header": (0, 4),
        "pages": (4, size - 8 - footer),
        "footer": (size - 8 - footer, size - 8),
        "length of the footer": (size - 8, size - 4),
        "end": (size - 4, size),
    }[where]
    flip(path, rng.randrange(first, last), rng.randrange(8))
    lines = findings(repository)
    assert lines[0].startswith(f"{name}: sha256 ")
    assert all(line.startswith(f"{name}: ") for line in lines)
    assert len(lines) <= 4


def test_no_flipped_bit_of_a_footer_ends_the_process(sound: Path, tmp_path: Path) -> None:
    """Arrow aborts when it is asked for the metadata of a column that a damaged footer describes."""
    built = manifest.load_built(sound)
    shard = next(shard for shard in verify._plan(built, {}) if shard.name == RGB_TEST)
    task = verify.Task(shard, tmp_path, built.shards[RGB_TEST], {}, None, same_pillow=True)
    content = (sound / RGB_TEST).read_bytes()
    (tmp_path / RGB_TEST).parent.mkdir()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    columns = range(footer, footer + 300)  # where the footer begins, column by column
    for position in (*columns, *range(columns.stop, len(content), 7)):
        (tmp_path / RGB_TEST).write_bytes(content)
        flip(tmp_path / RGB_TEST, position)
        assert 1 <= len(verify.check_shard(task).findings) <= 4, position


def test_a_damaged_page_is_named_and_hides_nothing_else(repository: Path) -> None:
    def edit(columns: dict[str, Any]) -> None:
        columns["label"][130] = 17

    rewrite(repository, ALL_TRAIN_1, edit)
    chunk = pq.read_metadata(repository / ALL_TRAIN_1).row_group(1).column(2)
    assert chunk.path_in_schema.startswith("sentinel1")
    flip(repository / ALL_TRAIN_1, chunk.data_page_offset + chunk.total_compressed_size // 2)
    checksum, page, label = findings(repository)
    assert checksum.startswith(f"{ALL_TRAIN_1}: sha256 ")
    assert page.startswith(f"{ALL_TRAIN_1}: column 'sentinel1' of row group 1 can't be read (")
    assert "CRC checksum" in page
    assert label == f"{ALL_TRAIN_1}: row 258 has label 17, expected 0 to 16"


def test_a_damaged_page_is_found_though_the_manifest_has_its_checksum(repository: Path) -> None:
    chunk = pq.read_metadata(repository / ALL_TEST).row_group(0).column(3)
    flip(repository / ALL_TEST, chunk.data_page_offset + chunk.total_compressed_size // 2)
    sign(repository, ALL_TEST)
    assert "column 'sentinel2' of row group 0 can't be read" in only(findings(repository))


def test_rows_with_a_damaged_column_do_not_count_as_compared(repository: Path, source_folder: Path) -> None:
    chunk = pq.read_metadata(repository / ALL_TRAIN_1).row_group(1).column(3)
    flip(repository / ALL_TRAIN_1, chunk.data_page_offset + chunk.total_compressed_size // 2)
    assert verify.verify(repository, str(source_folder)).compared_rows == 2 * ROWS - 44


def test_exchanged_shards_are_recognised(repository: Path) -> None:
    first, second = repository / ALL_TRAIN_0, repository / ALL_TRAIN_1
    first.rename(repository / "x")
    second.rename(first)
    (repository / "x").rename(second)
    lines = findings(repository)
    assert f"{ALL_TRAIN_0}: has the content of {ALL_TRAIN_1}, expected its own" in lines
    assert f"{ALL_TRAIN_1}: has the content of {ALL_TRAIN_0}, expected its own" in lines
    assert f"{ALL_TRAIN_0}: row 0 has sample_id 128, expected 0 (and 171 more rows)" in lines


def test_a_missing_shard_is_named(repository: Path) -> None:
    (repository / ALL_TRAIN_0).unlink()
    assert only(findings(repository)) == f"{ALL_TRAIN_0}: missing, expected it as part of its split"


def test_an_extra_shard_is_named_and_so_is_the_split_that_would_load_it(repository: Path) -> None:
    extra = "rgb/train-00007-of-00001.parquet"
    shutil.copy(repository / RGB_TRAIN, repository / extra)
    glob, stray = findings(repository)
    assert glob == (
        "README.md: config 'rgb', split 'train': 'rgb/train-*-of-00001.parquet' matches"
        f" {RGB_TRAIN}, {extra}, expected {RGB_TRAIN}"
    )
    assert stray == f"{extra}: a stray file, expected only what manifest.json lists"


@pytest.mark.parametrize("size", [0, 3, 8, 1000, -1])
def test_a_truncated_shard_is_named_and_the_rest_goes_on(repository: Path, size: int) -> None:
    flip(repository / RGB_VALIDATION, 100)
    data = (repository / ALL_TEST).read_bytes()
    (repository / ALL_TEST).write_bytes(data[:size])
    lines = findings(repository)
    assert f"{ALL_TEST}: {len(data[:size]):,} bytes, expected {len(data):,}" in lines
    assert any(line.startswith(f"{ALL_TEST}: can't be read (") for line in lines)
    assert any(line.startswith(f"{RGB_VALIDATION}: sha256 ") for line in lines)


@pytest.mark.parametrize("name", ["so2sat.py", "dataset_infos.json"])
def test_files_that_break_loading_are_named(repository: Path, name: str) -> None:
    (repository / name).write_text("")
    line = only(findings(repository))
    assert line.startswith(f"{name}: ")
    assert "expected none" in line


def test_statistics_are_those_that_the_manifest_knows(repository: Path) -> None:
    edit_json(repository / build.STATISTICS_NAME, lambda content: content.update(method="by eye"))
    assert only(findings(repository)).startswith("statistics.json: sha256 ")
    (repository / build.STATISTICS_NAME).unlink()
    assert only(findings(repository)) == "statistics.json: missing, expected it as manifest.json lists it"


def test_many_stray_files_are_one_finding(repository: Path) -> None:
    for number in range(12):
        (repository / f"rgb/{number:02d}.jpeg").touch()
    line = only(findings(repository))
    assert (
        line == "rgb/: 12 stray files (rgb/00.jpeg, rgb/01.jpeg, rgb/02.jpeg and 9 more), expected only what is listed"
    )


def test_everything_wrong_is_found_at_once(repository: Path, source_folder: Path) -> None:
    def edit(columns: dict[str, Any]) -> None:
        columns["sentinel2"][5, 1, 2, 3] += 1

    rewrite(repository, ALL_VALIDATION, edit)
    (repository / RGB_TRAIN).unlink()
    (repository / "notes.txt").touch()
    flip(repository / ALL_TRAIN_0, 2)
    edit_text(repository / card.NAME, "num_examples: 70", "num_examples: 71")
    files = [line.split(": ")[0] for line in findings(repository, source_folder)]
    assert files == ["README.md", "notes.txt", RGB_TRAIN, ALL_TRAIN_0, ALL_VALIDATION]


# ── Incomplete builds ────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_incomplete_build_is_one_finding(repository: Path) -> None:
    (repository / card.NAME).write_text(card.INCOMPLETE)
    edit_json(repository / manifest.NAME, lambda content: content["shards"].pop(ALL_TEST))
    (repository / ALL_TEST).rename(repository / "all/.test.incomplete")
    assert only(findings(repository)) == "README.md: the build is incomplete, 6 of 7 shards are there, expected all"


def test_damage_in_an_incomplete_build_is_found(repository: Path) -> None:
    (repository / card.NAME).write_text(card.INCOMPLETE)
    flip(repository / RGB_TEST, 0)
    assert [line.split(": ")[0] for line in findings(repository)] == ["README.md", RGB_TEST]


# ── The card ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "num_examples: 300",
            "num_examples: 301",
            ["README.md: dataset_info[all].splits[train].num_examples is 301, expected 300"],
        ),
        (
            "path: rgb/test-*-of-00001.parquet",
            "path: rgb/t*.parquet",
            [
                "README.md: configs[rgb].data_files[test].path is 'rgb/t*.parquet',"
                " expected 'rgb/test-*-of-00001.parquet'",
                f"README.md: config 'rgb', split 'test': 'rgb/t*.parquet' matches {RGB_TEST}, {RGB_TRAIN},"
                f" expected {RGB_TEST}",
            ],
        ),
        (
            "path: rgb/test-*-of-00001.parquet",
            "path: rgb/test-*-of-00002.parquet",
            [
                "README.md: configs[rgb].data_files[test].path is 'rgb/test-*-of-00002.parquet',"
                " expected 'rgb/test-*-of-00001.parquet'",
                "README.md: config 'rgb', split 'test': 'rgb/test-*-of-00002.parquet' matches no file,"
                f" expected {RGB_TEST}",
            ],
        ),
        (
            "path: rgb/test-*-of-00001.parquet",
            "path: https://127.0.0.1:9/test.parquet",
            [
                "README.md: configs[rgb].data_files[test].path is 'https://127.0.0.1:9/test.parquet',"
                " expected 'rgb/test-*-of-00001.parquet'",
                "README.md: config 'rgb', split 'test': 'https://127.0.0.1:9/test.parquet' matches"
                f" https://127.0.0.1:9/test.parquet, expected {RGB_TEST}",
            ],
        ),
        ("  default: true\n", "", ["README.md: configs[rgb].default is missing, expected True"]),
        (
            "'16': Water",
            "'16': Sea",
            ["README.md: dataset_info[all].features[label].dtype.class_label.names.16 is 'Sea', expected 'Water'"],
        ),
        ("configs:\n", "viewer: false\nconfigs:\n", ["README.md: viewer is False, expected nothing"]),
        (
            "\n---\n",
            "\n---\nAn afternote. ",
            ["README.md: text differs from line 1 on:"],
        ),
        ("configs:\n", "# by hand\nconfigs:\n", ["README.md: spelling differs from line "]),
        ("configs:\n", "configs: [\n", ["README.md: can't be read as a dataset card ("]),
    ],
)
def test_an_edit_of_the_card_is_told(repository: Path, old: str, new: str, expected: list[str]) -> None:
    edit_text(repository / card.NAME, old, new)
    lines = findings(repository)
    assert len(lines) == len(expected), lines
    assert all(line.startswith(start) for line, start in zip(lines, expected)), lines


def test_a_missing_card_is_a_finding(repository: Path) -> None:
    (repository / card.NAME).unlink()
    assert only(findings(repository)) == "README.md: missing, expected the dataset card"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"---\n- a list\n---\n", b"---\nconfigs: 3\n---\n", b"# Text"])
def test_no_card_is_too_odd_to_be_reported(repository: Path, content: bytes) -> None:
    (repository / card.NAME).write_bytes(content)
    lines = findings(repository)
    assert 1 <= len(lines) <= verify.MAX_DIFFERENCES + 1
    assert all(line.startswith("README.md: ") for line in lines)


# ── The manifest ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _edits() -> list[Any]:
    def shard(name: str, **fields: Any) -> Callable[[Any], None]:
        return lambda content: content["shards"][name].update(fields)

    other = {"rows": 1, "bytes": 1, "arrow_bytes": 1, "sha256": "0"}
    edits = (
        (shard(RGB_TEST, rows=34), "manifest.json", f"{RGB_TEST} has 34 rows, expected 33"),
        (shard(RGB_TEST, sha256="0" * 64), RGB_TEST, "expected 000000000000000…"),
        (
            lambda content: content["configs"].append("geo!"),
            "manifest.json",
            "configs geo!, expected some of rgb, all, geo",
        ),
        (
            lambda content: content.update(configs=[]),
            "manifest.json",
            "configs (none), expected some of rgb, all, geo",
        ),
        (lambda content: content.update(image_format="gif"), "manifest.json", "image_format 'gif', expected one of"),
        (lambda content: content["shards"].pop(ALL_TRAIN_1), "manifest.json", f"does not list {ALL_TRAIN_1}, expected"),
        (lambda content: content["shards"].update({"../x": other}), "manifest.json", "lists ../x, expected only"),
        (lambda content: content["versions"].update(layout="0"), "manifest.json", "made with version 0 of layout"),
        (
            lambda content: content["sources"]["training.h5"].update(rows=10**15),
            "manifest.json",
            "source training.h5 with 1,000,000,000,000,000 rows, expected",
        ),
        (lambda content: content["sources"]["testing.h5"].update(rows=34), RGB_TEST, "33 rows, expected 34"),
    )
    return [pytest.param(*edit, id=edit[2]) for edit in edits]


@pytest.mark.parametrize(("edit", "file", "problem"), _edits())
def test_an_edit_of_the_manifest_is_told(
    repository: Path, edit: Callable[[Any], None], file: str, problem: str
) -> None:
    edit_json(repository / manifest.NAME, edit)
    lines = [line for line in findings(repository) if line.startswith(f"{file}: ") and problem in line]
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda content: content.pop("shards"), "not a manifest"),
        (lambda content: content["shards"][RGB_TEST].pop("rows"), "not a manifest"),
        (lambda content: content["shards"][RGB_TEST].update(rows="33"), f"rows of {RGB_TEST} is '33', expected int"),
        (
            lambda content: content["sources"]["testing.h5"].update(rows=None),
            "rows of testing.h5 is None, expected int",
        ),
    ],
)
def test_a_manifest_that_is_none_is_an_error(
    repository: Path, edit: Callable[[Any], None], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(repository / manifest.NAME, edit)
    assert verify.main([str(repository)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert problem in output.err


# ── What is in a shard ───────────────────────────────────────────────────────────────────────────────────────────────


def _set(column: str, index: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda columns: columns[column].__setitem__(index, value)


@pytest.mark.parametrize(
    ("name", "edit", "expected"),
    [
        (RGB_TEST, _set("label", 7, 17), "row 7 has label 17, expected 0 to 16"),
        (RGB_TEST, _set("label", slice(7, 10), -1), "row 7 has label -1, expected 0 to 16 (and 2 more rows)"),
        (ALL_TRAIN_1, _set("sample_id", 9, 9), "row 137 has sample_id 9, expected 137"),
        (RGB_TEST, _set("image", 4, image_file((16, 32))), "row 4 has an image that has 16×32 pixels, expected jpeg"),
        (RGB_TEST, _set("image", 4, image_file(mode="L")), "row 4 has an image that is JPEG, L, expected jpeg"),
        (
            RGB_TEST,
            _set("image", 4, image_file(image_format="PNG")),
            "row 4 has an image that is PNG, RGB, expected jpeg",
        ),
        (RGB_TEST, _set("image", 4, image_file()[:300]), "row 4 has an image that can't be decoded ("),
        (RGB_TEST, _set("image", 4, b""), "row 4 has an image that can't be decoded ("),
        (RGB_TEST, _set("image", 4, None), "row 4 has an image that is null, expected jpeg"),
    ],
)
def test_a_wrong_value_is_found_without_the_source(
    repository: Path, name: str, edit: Callable[[dict[str, Any]], None], expected: str
) -> None:
    rewrite(repository, name, edit)
    assert only(findings(repository)).startswith(f"{name}: {expected}")


def _replaced(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name).with_type(column.type), column)


def _without_values(table: pa.Table, rows: int) -> pa.Table:
    type_ = table.schema.field("sentinel2").type
    storage = table["sentinel2"].combine_chunks().storage
    nulls = pa.concat_arrays([storage[:-rows], pa.nulls(rows, storage.type)])
    return _replaced(table, "sentinel2", pa.ExtensionArray.from_storage(type_, nulls))


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        (
            lambda table: _replaced(table, "label", pa.array([None, *table["label"].to_pylist()[1:]], pa.int64())),
            {},
            ["row 0 has label None, expected 0 to 16"],
        ),
        (
            lambda table: _without_values(table, 2),
            {},
            ["sentinel2 has nulls or lists of another length in rows 0 to 32, expected 32×32×10 numbers each"],
        ),
        (
            lambda table: _replaced(table, "label", table["label"].combine_chunks().cast(pa.int32())),
            {},
            ["column 'label' is int32, expected int64"],
        ),
        (
            lambda table: table.drop_columns(["label"]),
            {},
            ["columns sample_id, sentinel1, sentinel2, expected label, sample_id, sentinel1, sentinel2"],
        ),
        (
            lambda table: table.replace_schema_metadata(None),
            {},
            ["no features for `datasets` in its schema ("],
        ),
        (
            lambda table: table.replace_schema_metadata(
                {"huggingface": table.schema.metadata[b"huggingface"].replace(b"Water", b"Sea")}
            ),
            {},
            ["in the schema for `datasets`, features.label.names[16] is 'Sea', expected 'Water'"],
        ),
        (lambda table: table.slice(0, 30), {}, ["30 rows, expected 33"]),
        (
            lambda table: table,
            {"row_group_size": 10},
            ["row group 0 has 10 rows, expected 33 (and 3 more row groups)"],
        ),
        (
            lambda table: table,
            {"write_page_index": False},
            ["no page index for label of row group 0, expected one for every column (and 3 more column chunks)"],
        ),
    ],
)
def test_another_layout_or_schema_is_found(
    repository: Path, change: Callable[[pa.Table], pa.Table], options: dict[str, Any], expected: list[str]
) -> None:
    write_shard(repository, ALL_TEST, change(pq.read_table(repository / ALL_TEST)), **options)
    lines = findings(repository)
    assert len(lines) == len(expected), lines
    assert all(line.startswith(f"{ALL_TEST}: {start}") for line, start in zip(lines, expected)), lines


@pytest.mark.parametrize("known", [0, 1])
def test_patches_per_class_are_those_of_the_publishers(
    repository: Path, source_arrays: dict[str, Arrays], monkeypatch: pytest.MonkeyPatch, known: int
) -> None:
    counts = {split: arrays["label"].sum(axis=0).astype(int) for split, arrays in source_arrays.items()}
    counts["validation"][0] += known  # a full split has as many patches as the publishers say
    counts["validation"][16] -= known
    counts["train"][0] += 1  # not full, or its statistics would have to be the published ones too
    monkeypatch.setattr(facts, "PATCHES_PER_CLASS", {split: (*map(int, row),) for split, row in counts.items()})
    lines = findings(repository)
    assert len(lines) == 2 * known
    assert all("patches per class: " in line and "Compact high-rise (expected " in line for line in lines)
    edit_json(
        repository / manifest.NAME, lambda content: content["sources"]["validation.h5"].update(synthetic="A stand-in.")
    )
    assert not any("patches per class" in line for line in findings(repository))


def test_statistics_of_the_full_training_split_are_the_published_ones(
    repository: Path, source_arrays: dict[str, Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {f"sentinel{n}": source_arrays["train"][f"sen{n}"].astype(np.float32).astype(np.float64) for n in (1, 2)}
    means = {name: values.mean(axis=(0, 1, 2)) for name, values in arrays.items()}
    stds = {name: values.std(axis=(0, 1, 2)) for name, values in arrays.items()}
    rows = len(source_arrays["train"]["label"])
    counts = source_arrays["train"]["label"].sum(axis=0).astype(int)
    assert counts.sum() == rows  # the fixture plays the full split
    monkeypatch.setattr(facts, "PATCHES_PER_CLASS", {**facts.PATCHES_PER_CLASS, "train": (*map(int, counts),)})
    assert any("mean of sentinel1 VH real" in line for line in findings(repository))
    monkeypatch.setattr(facts, "TRAIN_MEAN", means)
    monkeypatch.setattr(facts, "TRAIN_STD", stds)
    assert findings(repository) == []
    stds["sentinel1"][5] *= 1.01
    assert any("std of sentinel1 VV intensity" in line for line in findings(repository))


# ── Against the source ───────────────────────────────────────────────────────────────────────────────────────────────


def _reencode(columns: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    PIL.Image.open(io.BytesIO(columns["image"][5])).save(buffer, "JPEG", quality=50)
    columns["image"][5] = buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "edit", "expected"),
    [
        (ALL_TRAIN_1, _set("sentinel1", (3, 30, 20, 7), 0.5), "row 131 has sentinel1[30, 20, 7] = 0.5, expected "),
        (ALL_TEST, _set("sentinel2", (3, 0, 1, 2), np.nan), "row 3 has sentinel2[0, 1, 2] = nan, expected "),
        (RGB_TEST, _reencode, "row 5 has another image (PSNR "),
        (RGB_TEST, _set("image", 5, image_file()), "row 5 has another image (PSNR "),
    ],
)
def test_a_wrong_value_is_found_with_the_source_alone(
    repository: Path, source_folder: Path, name: str, edit: Callable[[dict[str, Any]], None], expected: str
) -> None:
    rewrite(repository, name, edit)
    assert findings(repository) == []
    assert only(findings(repository, source_folder)).startswith(f"{name}: {expected}")


def test_a_wrong_label_is_found_with_the_source(
    repository: Path, source_folder: Path, source_arrays: dict[str, Arrays]
) -> None:
    right = int(source_arrays["test"]["label"][8].argmax())
    rewrite(repository, ALL_TEST, _set("label", 8, (right + 1) % 17))
    assert only(findings(repository, source_folder)) == (
        f"{ALL_TEST}: row 8 has label {(right + 1) % 17}, expected {right} as in {source_folder}/testing.h5"
    )


@pytest.mark.parametrize("same_pillow", [True, False])
def test_other_bytes_of_a_jpeg_may_only_come_from_another_pillow(
    repository: Path, source_folder: Path, source_arrays: dict[str, Arrays], same_pillow: bool
) -> None:
    buffer = io.BytesIO()
    options = {**so2sat.IMAGE_FORMATS["jpeg"], "optimize": False}
    PIL.Image.fromarray(so2sat.to_rgb(source_arrays["test"]["sen2"][5])).save(buffer, **options)
    rewrite(repository, RGB_TEST, _set("image", 5, buffer.getvalue()))
    if not same_pillow:
        edit_json(repository / manifest.NAME, lambda content: content["versions"].update(pillow="1.0"))
    lines = findings(repository, source_folder)
    assert len(lines) == same_pillow
    assert all("row 5 has another image (the same pixels in other bytes)" in line for line in lines)


def test_another_image_is_found_whatever_the_pillow(repository: Path, source_folder: Path) -> None:
    rewrite(repository, RGB_TEST, _reencode)
    edit_json(repository / manifest.NAME, lambda content: content["versions"].update(pillow="1.0"))
    assert "row 5 has another image (PSNR " in only(findings(repository, source_folder))


def test_the_wrong_source_is_recognised(sound: Path, source_arrays: dict[str, Arrays], tmp_path: Path) -> None:
    write_source(tmp_path / "training.h5", source_arrays["train"])
    write_source(tmp_path / "validation.h5", random_arrays(70, seed=9))
    write_source(tmp_path / "testing.h5", {name: array[:32] for name, array in source_arrays["test"].items()})
    lines = findings(sound, tmp_path)
    assert lines[0].startswith(f"{tmp_path}/validation.h5: fingerprint sha256:")
    assert lines[1].startswith(f"{tmp_path}/testing.h5: 32 rows, expected the file with 33 that the repository")
    assert {line.split(": ")[0] for line in lines[2:]} == {RGB_VALIDATION, ALL_VALIDATION}
    assert f"{ALL_VALIDATION}: row 0 has sentinel1[0, 0, 0] = " in lines[-2]
    assert lines[-2].endswith("(and 69 more rows)")
    assert len(lines) == 7


def test_a_source_without_a_split_of_the_repository_is_a_finding(
    sound: Path, source_folder: Path, tmp_path: Path
) -> None:
    for name in ("training.h5", "validation.h5"):
        shutil.copy(source_folder / name, tmp_path)
    report = verify.verify(sound, str(tmp_path))
    assert [str(finding) for finding in report.findings] == [
        "testing.h5: not in the source, expected it: the repository was made from it"
    ]
    assert report.compared_rows == 2 * (ROWS - 33)


def test_a_source_with_a_split_more_than_the_repository_is_a_finding(
    sound: Path, source_folder: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(source_folder, tmp_path / "edition1")
    (source / "testing.h5").unlink()
    build.build(str(source), tmp_path / "repository", ["rgb"])
    assert only(findings(tmp_path / "repository", source_folder)) == (
        f"{source_folder}/testing.h5: not in the repository, expected its rows as a split of rgb"
    )


def test_a_source_that_fails_half_way_is_a_finding(sound: Path, tmp_path: Path) -> None:
    built = manifest.load_built(sound)
    plan = verify._plan(built, {"all": {"test": str(tmp_path / "gone.h5")}})
    shard = next(shard for shard in plan if shard.name == ALL_TEST)
    result = verify.check_shard(verify.Task(shard, sound, built.shards[ALL_TEST], {}, None, same_pillow=True))
    assert str(only([str(finding) for finding in result.findings])).startswith(f"{ALL_TEST}: can't be compared (")


# ── The command line ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_prints_a_summary(sound: Path, source_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main([str(sound), "--workers", "1"]) == 0
    assert capsys.readouterr().out == "0 findings in 7 shards, 806 rows\n"
    arguments = [str(sound), "--source", str(source_folder), "--sample", "10", "--seed", "3", "--workers", "1"]
    assert verify.main(arguments) == 0
    assert capsys.readouterr() == (f"0 findings in 7 shards, 806 rows, 20 compared with {source_folder}\n", "")


def test_the_command_prints_a_line_for_each_finding(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "notes.txt").touch()
    assert verify.main([str(repository), "--workers", "1"]) == 1
    assert capsys.readouterr().out == (
        "notes.txt: a stray file, expected only what manifest.json lists\n1 finding in 7 shards, 806 rows\n"
    )


def test_json_is_all_that_is_printed(repository: Path, source_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(repository), "--source", str(source_folder), "--json", "--workers", "1"]
    assert verify.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
    (repository / RGB_TEST).unlink()
    assert verify.main(arguments) == 1
    assert json.loads(capsys.readouterr().out) == {
        "repository": str(repository),
        "shards": 7,
        "rows": 806 - 33,
        "compared_rows": 806 - 33,
        "findings": [{"file": RGB_TEST, "problem": "missing, expected it as part of its split"}],
    }


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere"], "nowhere: no such folder, expected a repository that build.py made"),
        (["."], "no manifest.json, expected a repository that build.py made"),
        ([".", "--sample", "3"], "--sample says how many rows to compare with the source; give --source too"),
    ],
)
def test_an_error_is_one_line(
    arguments: list[str],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert verify.main(arguments) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.endswith(f"{problem}\n")


def test_a_source_folder_without_files_is_an_error(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(sound), "--source", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no training.h5 or validation.h5 or testing.h5")


def test_help_has_examples() -> None:
    process = subprocess.run([sys.executable, verify.__file__, "--help"], capture_output=True, text=True, check=True)
    assert "python scripts/verify.py build/so2sat --source data" in process.stdout
