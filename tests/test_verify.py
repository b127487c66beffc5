"""Verification of shards: against manifest and statistics, and value by value against the sources."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.EpsImagePlugin
import PIL.Image
import PIL.JpegImagePlugin
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import build
import so2sat
import verify
from conftest import Arrays, RangeServer, edit_json, random_arrays, serving, sign, write_shard, write_source
from publishing import card, layout, manifest

RGB_TRAIN, RGB_TEST = "rgb/train-00000-of-00001.parquet", "rgb/test-00000-of-00001.parquet"
ALL_TRAIN_0, ALL_TRAIN_1 = "all/train-00000-of-00002.parquet", "all/train-00001-of-00002.parquet"
ALL_VALIDATION, ALL_TEST = "all/validation-00000-of-00001.parquet", "all/test-00000-of-00001.parquet"
ROWS = 90 + 20 + 12


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory, small_folder: Path) -> Path:
    """A repository of lossless images. Read only."""
    folder = tmp_path_factory.mktemp("png") / "so2sat"
    build.build(str(small_folder), folder, ["rgb"], image_format="png")
    return folder


@pytest.fixture
def server(small_folder: Path) -> Iterator[RangeServer]:
    """`small_folder` over HTTP."""
    with serving(small_folder) as running:
        yield running


def findings(repository: Path, source: Path | None = None) -> list[str]:
    """What a verification prints."""
    return [str(finding) for finding in verify.verify(repository, str(source) if source else None).findings]


def only(lines: list[str]) -> str:
    assert len(lines) == 1, lines
    return lines[0]


def files(lines: list[str]) -> list[str]:
    """The files that lines of findings name."""
    return [line.split(": ")[0] for line in lines]


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def rewrite(repository: Path, name: str, edit: Callable[[dict[str, Any]], None]) -> None:
    """Writes a shard anew with edited columns, and makes manifest and card tell of it."""
    schema = layout.features(name.split("/")[0]).arrow_schema
    table = pq.read_table(repository / name)
    columns: dict[str, Any] = {}
    for field in schema:
        array = table[field.name].combine_chunks()
        if isinstance(field.type, pa.ExtensionType):
            values = array.storage.flatten().flatten().flatten().to_numpy()
            columns[field.name] = values.reshape(len(array), *field.type.shape).copy()
        else:
            columns[field.name] = array.to_pylist()
    edit(columns)
    arrays = [
        pa.ExtensionArray.from_storage(field.type, layout.nested_list(columns[field.name]))
        if isinstance(field.type, pa.ExtensionType)
        else pa.array(columns[field.name], field.type)
        for field in schema
    ]
    write_shard(repository, name, pa.Table.from_arrays(arrays, schema=schema))


def _set(column: str, index: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda columns: columns[column].__setitem__(index, value)


def _set_image(row: int, file: bytes | None, path: str | None = None) -> Callable[[dict[str, Any]], None]:
    return _set("image", row, {"bytes": file, "path": path})


def image_file(size: tuple[int, int] = (32, 32), mode: str = "RGB", image_format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new(mode, size).save(buffer, image_format)
    return buffer.getvalue()


# ── Sound repositories ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sound_repository_has_no_findings(sound: Path) -> None:
    assert verify.verify(sound) == verify.Report(str(sound), shards=7, rows=2 * ROWS)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sound_repository_equals_its_source(sound: Path, small_folder: Path, workers: int) -> None:
    report = verify.verify(sound, str(small_folder), workers=workers)
    assert report == verify.Report(str(sound), shards=7, rows=2 * ROWS, compared_rows=2 * ROWS)


def test_a_sound_repository_equals_its_source_over_http(sound: Path, server: RangeServer) -> None:
    report = verify.verify(sound, server.url)
    assert (report.findings, report.compared_rows) == ([], 2 * ROWS)


def test_lossless_images_equal_their_source(png: Path, small_folder: Path) -> None:
    assert findings(png, small_folder) == []


def test_nan_and_infinity_equal_themselves(tmp_path: Path) -> None:
    arrays = random_arrays(20)
    arrays["sen1"][3, 0, 0, :4] = np.nan, np.inf, -np.inf, -0.0
    write_source(tmp_path / "data" / "training.h5", arrays)
    build.build(str(tmp_path / "data"), tmp_path / "so2sat", ["all"])
    assert findings(tmp_path / "so2sat", tmp_path / "data") == []


# ── A sample ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sample_takes_less_from_the_source(sound: Path, server: RangeServer) -> None:
    report = verify.verify(sound, server.url, sample=2)
    assert (report.findings, report.compared_rows) == ([], 2 * 3 * 2)
    of_sample = server.bytes_sent
    verify.verify(sound, server.url)
    assert of_sample < (server.bytes_sent - of_sample) / 2


def test_a_sample_larger_than_the_repository_is_the_repository(sound: Path, small_folder: Path) -> None:
    assert verify.verify(sound, str(small_folder), sample=10**6).compared_rows == 2 * ROWS


def drawn(built: manifest.Manifest, sample: int, seed: int) -> dict[tuple[str, str], list[int]]:
    """The sampled rows of every config and split."""
    rows: dict[tuple[str, str], list[int]] = {}
    for shard in built.plan():
        of_shard = verify._task(Path(), built, shard, sample, seed).rows or []
        assert all(shard.start <= row < shard.stop for row in of_shard)
        rows.setdefault((shard.config, shard.split), []).extend(of_shard)
    return rows


def test_a_sample_is_the_same_rows_of_every_config_though_one_lacks_a_split(full_repository: Path) -> None:
    built = manifest.load_built(full_repository)
    del built.sources["training_geo.h5"]
    rows = drawn(built, 10, seed=3)
    assert ("geo", "train") not in rows
    assert all(len({*of_split}) == 10 for of_split in rows.values())
    for split in ("validation", "test"):
        assert rows["rgb", split] == rows["all", split] == rows["geo", split]
    assert rows["rgb", "train"] == rows["all", "train"]


def test_a_sample_repeats_with_its_seed(sound: Path) -> None:
    built = manifest.load_built(sound)
    assert drawn(built, 5, seed=1) == drawn(built, 5, seed=1) != drawn(built, 5, seed=2)


# ── Without the source ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("part", ["header", "pages", "footer", "end"])
def test_a_flipped_bit_is_one_finding_wherever_it_is(damaged: Path, part: str) -> None:
    path = damaged / ALL_TRAIN_1
    size = path.stat().st_size
    footer = int.from_bytes(path.read_bytes()[-8:-4], "little")
    flip(path, {"header": 2, "pages": size // 2, "footer": size - 8 - footer // 2, "end": size - 2}[part])
    assert only(findings(damaged)).startswith(f"{ALL_TRAIN_1}: sha256 ")


def test_exchanged_shards_are_two_findings(damaged: Path) -> None:
    content = (damaged / ALL_TRAIN_0).read_bytes()
    (damaged / ALL_TRAIN_1).rename(damaged / ALL_TRAIN_0)
    (damaged / ALL_TRAIN_1).write_bytes(content)
    assert files(findings(damaged)) == [ALL_TRAIN_0, ALL_TRAIN_1]


def test_a_damaged_page_is_found_though_its_checksum_is_forged(damaged: Path, small_folder: Path) -> None:
    chunk = pq.read_metadata(damaged / ALL_TEST).row_group(0).column(3)
    flip(damaged / ALL_TEST, chunk.data_page_offset + chunk.total_compressed_size // 2)
    sign(damaged, ALL_TEST)
    assert only(findings(damaged, small_folder)).startswith(f"{ALL_TEST}: can't be read (")


@pytest.mark.parametrize(
    ("name", "edit", "row"),
    [
        (RGB_TEST, _set("label", 7, 17), "row 7 has label 17, "),
        (RGB_TEST, _set("label", slice(7, 10), [-1, -1, -1]), "row 7 has label -1 (and 2 more rows), "),
        (RGB_TEST, _set("label", 0, None), "row 0 has label None, "),
        (ALL_TRAIN_1, _set("sample_id", 9, 9), "row 89 has sample_id 9, "),
        (ALL_TRAIN_1, _set("sample_id", 9, None), "row 89 has sample_id None, "),
    ],
)
def test_a_label_or_id_that_can_not_be_is_one_finding(
    damaged: Path, small_folder: Path, name: str, edit: Callable[[dict[str, Any]], None], row: str
) -> None:
    rewrite(damaged, name, edit)
    for source in (None, small_folder):
        assert only(findings(damaged, source)).startswith(f"{name}: {row}")


def test_labels_that_contradict_statistics_and_other_configs_are_found(damaged: Path) -> None:
    rewrite(damaged, ALL_TEST, lambda columns: columns.update(label=columns["label"][::-1]))
    line = only(findings(damaged))  # the counts are the same
    assert line.startswith("all: row ")
    assert "as in rgb" in line
    rewrite(damaged, ALL_TEST, _set("label", slice(0, 33), [3] * 12))
    assert files(findings(damaged)) == ["all", "statistics.json"]


def test_everything_wrong_is_found_at_once(damaged: Path, small_folder: Path) -> None:
    def edit(columns: dict[str, Any]) -> None:
        columns["sentinel2"][5, 1, 2, 3] += 1

    rewrite(damaged, ALL_VALIDATION, edit)
    (damaged / RGB_TRAIN).unlink()
    (damaged / "notes.txt").touch()
    flip(damaged / ALL_TRAIN_0, 2)
    assert files(findings(damaged, small_folder)) == [RGB_TRAIN, "notes.txt", ALL_TRAIN_0, ALL_VALIDATION]


def test_damage_in_an_incomplete_build_is_found(damaged: Path) -> None:
    (damaged / card.NAME).write_text(card.INCOMPLETE)
    flip(damaged / RGB_TEST, 0)
    assert files(findings(damaged)) == ["README.md", RGB_TEST]


# ── Against the source ───────────────────────────────────────────────────────────────────────────────────────────────


def _reencode(columns: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    PIL.Image.open(io.BytesIO(columns["image"][5]["bytes"])).save(buffer, "JPEG", quality=50)
    columns["image"][5]["bytes"] = buffer.getvalue()


def _another_lossless_pixel(columns: dict[str, Any]) -> None:
    pixels = np.array(PIL.Image.open(io.BytesIO(columns["image"][5]["bytes"])))
    pixels[4, 5, 0] ^= 1
    columns["image"][5]["bytes"] = so2sat.encode_images(pixels[np.newaxis], "jpeg")[0]


def _with_path(columns: dict[str, Any]) -> None:
    columns["image"][5]["path"] = "/etc/passwd"


VALUES = {
    "radar": (ALL_TRAIN_1, _set("sentinel1", (3, 30, 20, 7), 0.5), "row 83 has sentinel1[30, 20, 7] = 0.5, expected "),
    "reflectance": (ALL_TEST, _set("sentinel2", (3, 0, 1, 2), np.nan), "row 3 has sentinel2[0, 1, 2] = nan, expected "),
    "several rows": (ALL_TEST, _set("sentinel2", (slice(3, 6), 0), 0), "row 3 has sentinel2[0, 0, 0] = 0.0, expected "),
    "a worse image": (RGB_TEST, _reencode, "row 5 has image "),
    "an almost equal image": (RGB_TEST, _another_lossless_pixel, "row 5 has image "),
    "another image": (RGB_TEST, _set_image(5, image_file()), "row 5 has image "),
    "a path": (RGB_TEST, _with_path, "row 5 has image "),
    "an image of another size": (RGB_TEST, _set_image(5, image_file((16, 32))), "row 5 has image "),
    "a grey image": (RGB_TEST, _set_image(5, image_file(mode="L")), "row 5 has image "),
    "another format": (RGB_TEST, _set_image(5, image_file(image_format="PNG")), "row 5 has image "),
    "a page of PostScript": (RGB_TEST, _set_image(5, image_file(image_format="EPS")), "row 5 has image "),
    "half an image": (RGB_TEST, _set_image(5, image_file()[:300]), "row 5 has image "),
    "no bytes": (RGB_TEST, _set_image(5, b""), "row 5 has image "),
    "no image": (RGB_TEST, _set_image(5, None), "row 5 has image "),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_wrong_value_is_found_with_the_source(damaged: Path, small_folder: Path, name: str) -> None:
    shard, edit, text = VALUES[name]
    rewrite(damaged, shard, edit)
    assert findings(damaged) == []
    line = only(findings(damaged, small_folder))
    assert line.startswith(f"{shard}: {text}")
    assert len(line) < 1000


def test_only_images_of_the_right_format_and_size_are_decoded(
    damaged: Path, small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[tuple[str | None, tuple[int, int]]] = []
    load = PIL.Image.Image.load

    def noted(image: PIL.Image.Image) -> Any:
        decoded.append((image.format, image.size))
        return load(image)

    bomb = io.BytesIO()
    PIL.Image.new("RGB", (4000, 4000)).save(bomb, "JPEG")
    for row, file in enumerate((image_file(image_format="EPS"), image_file(image_format="TIFF"), bomb.getvalue())):
        rewrite(damaged, RGB_TEST, _set_image(row, file))
    for plugin in (PIL.Image.Image, PIL.JpegImagePlugin.JpegImageFile, PIL.EpsImagePlugin.EpsImageFile):
        monkeypatch.setattr(plugin, "load", noted)
    assert only(findings(damaged, small_folder)).endswith("(and 2 more rows)")
    assert {*decoded} <= {("JPEG", (32, 32)), (None, (32, 32))}  # None: what is encoded here


def test_arrays_with_nulls_are_found(damaged: Path, small_folder: Path) -> None:
    table = pq.read_table(damaged / ALL_TEST)
    column = table["sentinel2"].combine_chunks()
    storage = pa.concat_arrays([column.storage[:-2], pa.nulls(2, column.storage.type)])
    index = table.schema.get_field_index("sentinel2")
    changed = pa.ExtensionArray.from_storage(column.type, storage)
    write_shard(damaged, ALL_TEST, table.set_column(index, table.schema.field(index), changed))
    assert {*files(findings(damaged, small_folder))} == {ALL_TEST}


def test_other_bytes_of_a_lossless_image_are_the_same_image(png: Path, small_folder: Path, tmp_path: Path) -> None:
    def compress_anew(columns: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        PIL.Image.open(io.BytesIO(columns["image"][3]["bytes"])).save(buffer, "PNG", compress_level=1)
        assert buffer.getvalue() != columns["image"][3]["bytes"]
        columns["image"][3]["bytes"] = buffer.getvalue()

    repository = Path(shutil.copytree(png, tmp_path / "so2sat"))
    rewrite(repository, RGB_TEST, compress_anew)
    assert findings(repository, small_folder) == []


def test_another_lossless_image_is_found_however_near_it_is(png: Path, small_folder: Path, tmp_path: Path) -> None:
    def change_a_pixel(columns: dict[str, Any]) -> None:
        pixels = np.array(PIL.Image.open(io.BytesIO(columns["image"][3]["bytes"])))
        pixels[4, 5, 0] ^= 1
        columns["image"][3]["bytes"] = so2sat.encode_images(pixels[np.newaxis], "png")[0]

    repository = Path(shutil.copytree(png, tmp_path / "so2sat"))
    rewrite(repository, RGB_TEST, change_a_pixel)
    assert only(findings(repository, small_folder)).startswith(f"{RGB_TEST}: row 3 has image ")


@pytest.mark.parametrize(("pillow", "edit", "count"), [("1.0", None, 0), (None, None, 1), ("1.0", _reencode, 1)])
def test_other_bytes_of_a_jpeg_may_only_come_from_another_pillow(
    damaged: Path,
    small_folder: Path,
    small_arrays: dict[str, Arrays],
    pillow: str | None,
    edit: Callable[[dict[str, Any]], None] | None,
    count: int,
) -> None:
    buffer = io.BytesIO()
    options = {**so2sat.IMAGE_FORMATS["jpeg"], "optimize": False}
    PIL.Image.fromarray(so2sat.to_rgb(small_arrays["test"]["sen2"][5])).save(buffer, **options)
    rewrite(damaged, RGB_TEST, edit or _set_image(5, buffer.getvalue()))
    if pillow:
        edit_json(damaged / manifest.NAME, lambda content: content["versions"].update(pillow=pillow))
    assert len(findings(damaged, small_folder)) == count


def _forged_statistics(repository: Path, config: str, edit: Callable[[Any], Any]) -> None:
    path = repository / layout.STATISTICS_NAME
    edit_json(path, lambda content: edit(content["configs"][config]["test"]))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_json(repository / manifest.NAME, lambda content: content["files"].update({path.name: sha256}))


def _swap(summary: Any) -> None:
    counts = summary["patches_per_class"]
    counts["Water"], counts["Compact high-rise"] = counts["Water"] + 1, counts["Compact high-rise"] - 1


STATISTICS: dict[str, tuple[str, bool, Callable[[Any], Any]]] = {
    "patches": ("rgb", False, _swap),
    "a mean": ("all", True, lambda summary: summary["bands"]["sentinel1"][3].update(mean=42.0)),
    "a least value": ("all", True, lambda summary: summary["bands"]["sentinel2"][0].update(min=-1.0)),
    "a median": ("rgb", True, lambda summary: summary["bands"]["image"][0]["percentiles"].update({"50": 3.0})),
    "a count": ("rgb", True, lambda summary: summary["bands"]["image"][2].update(nonfinite=1)),
    "neighbours": ("geo", False, lambda summary: summary["shared"]["train"].update(near=10_000)),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_that_are_not_of_the_data_are_found(
    full_repository: Path, full_folder: Path, tmp_path: Path, name: str
) -> None:
    config, needs_source, edit = STATISTICS[name]
    repository = Path(shutil.copytree(full_repository, tmp_path / "so2sat"))
    _forged_statistics(repository, config, edit)
    if needs_source:
        assert findings(repository) == []
    line = only(findings(repository, full_folder if needs_source else None))
    assert line.startswith(f"statistics.json: {config}, test: ")


def test_another_source_is_recognised(sound: Path, small_arrays: dict[str, Arrays], tmp_path: Path) -> None:
    write_source(tmp_path / "training.h5", small_arrays["train"])
    write_source(tmp_path / "validation.h5", random_arrays(20, seed=9))
    write_source(tmp_path / "testing.h5", {name: array[:11] for name, array in small_arrays["test"].items()})
    lines = findings(sound, tmp_path)
    assert lines[0].startswith(f"{tmp_path}/validation.h5: other labels")
    assert lines[1].startswith(f"{tmp_path}/testing.h5: 11 rows")
    assert any(line.startswith(f"{ALL_VALIDATION}: row 0 has sentinel1[0, 0, 0] = ") for line in lines)
    assert any(line.startswith(f"{ALL_TEST}: can't be compared") for line in lines)
    assert not any("/train-" in line for line in lines)


def test_a_source_without_a_split_of_the_repository_is_a_finding(
    sound: Path, small_folder: Path, tmp_path: Path
) -> None:
    for name in ("training.h5", "validation.h5"):
        shutil.copy(small_folder / name, tmp_path)
    report = verify.verify(sound, str(tmp_path))
    assert [finding.file for finding in report.findings] == ["testing.h5"]
    assert report.compared_rows == 2 * (ROWS - 12)


def test_a_source_with_a_split_more_than_the_repository_is_a_finding(
    sound: Path, small_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(small_folder / "testing.h5", tmp_path)
    build.build(str(tmp_path), tmp_path / "so2sat", ["rgb"])
    assert files(findings(tmp_path / "so2sat", small_folder)) == [
        f"{small_folder}/training.h5",
        f"{small_folder}/validation.h5",
    ]


# ── A folder of another name ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_card_of_a_renamed_folder_is_warned_of_and_build_writes_it_anew(
    damaged: Path, small_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = damaged.rename(damaged.with_name('lcz "42"'))
    command = [str(renamed), "--workers", "1"]
    assert verify.main(command) == 0
    warning = capsys.readouterr().err
    assert "README.md" in warning
    assert "'so2sat'" in warning
    assert warning.count("\n") == 1
    build.main([str(small_folder), *command], limits={**layout.LIMITS, "all": layout.Limits(80, 80)})
    capsys.readouterr()
    assert verify.main(command) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["org/so2sat", None], ids=["of the Hub", "no code"])
def test_a_card_that_loads_no_other_folder_is_not_warned_of(damaged: Path, name: str | None) -> None:
    text = (damaged / card.NAME).read_text().replace('"so2sat"', json.dumps(name))
    (damaged / card.NAME).write_text(text)
    assert verify.verify(damaged).warnings == []


# ── The command line ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_prints_findings_and_a_summary(
    damaged: Path, small_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(damaged), "--source", str(small_folder), "--sample", "10", "--seed", "3", "--workers", "1"]
    assert verify.main(arguments) == 0
    assert capsys.readouterr() == (f"0 findings in 7 shards, 244 rows, 60 compared with {small_folder}\n", "")
    (damaged / "notes.txt").touch()
    assert verify.main([str(damaged), "--workers", "1"]) == 1
    finding, summary = capsys.readouterr().out.splitlines()
    assert finding.startswith("notes.txt: ")
    assert summary == "1 finding in 7 shards, 244 rows"


def test_json_is_all_that_is_printed(damaged: Path, small_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (damaged / RGB_TEST).unlink()
    assert verify.main([str(damaged), "--source", str(small_folder), "--json", "--workers", "1"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [finding["file"] for finding in report.pop("findings")] == [RGB_TEST]
    counts = {"shards": 6, "rows": 244 - 12, "compared_rows": 244 - 12}
    assert report == {"repository": str(damaged), **counts, "warnings": []}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["~nosuchuser/x"], "x: no such folder"),
        (["."], "no manifest.json"),
        ([".", "--sample", "3"], "--source"),
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
    assert problem in output.err
    assert output.err.count("\n") == 1


def test_a_source_folder_without_files_is_an_error(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([str(sound), "--source", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no training.h5")


def test_a_terminal_without_letters_gets_findings_and_help(sound: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(sound, tmp_path / "so2sat")
    (repository / "größe.txt").touch()
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(so2sat.__file__).parent)}
    command = [sys.executable, verify.__file__, str(repository), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.stdout.startswith(b"gr\\xf6\\xdfe.txt: ")
    assert (done.returncode, done.stderr) == (1, b"")
