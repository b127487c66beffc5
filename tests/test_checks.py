"""What is checked of a repository, file by file, and of a shard, value by value."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import os
import shutil
from collections.abc import Callable
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
from conftest import Arrays, Edit, edit_json, edited, set_value, write_table
from publishing import card, checks, facts, layout, manifest

RGB_TRAIN, RGB_TEST = "rgb/train-00000-of-00001.parquet", "rgb/test-00000-of-00001.parquet"
ALL_TRAIN_1, ALL_TEST = "all/train-00001-of-00002.parquet", "all/test-00000-of-00001.parquet"


def findings(repository: Path) -> list[checks.Finding]:
    found = [*checks.repository_findings(repository, manifest.load_built(repository))]
    assert all(len(str(finding)) < 1000 and str(finding).isprintable() for finding in found)
    return found


def files(repository: Path) -> list[str]:
    """The files of the findings."""
    return [finding.file for finding in findings(repository)]


def edit_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def forge(repository: Path, name: str) -> None:
    """Makes the manifest tell of a file as it is now."""
    sha256 = hashlib.sha256((repository / name).read_bytes()).hexdigest()
    edit_json(repository / manifest.NAME, lambda content: content["files"].update({name: sha256}))


# ── Sound repositories ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sound_repository_has_no_findings(sound: Path, full_repository: Path) -> None:
    assert findings(sound) == findings(full_repository) == []


@pytest.mark.parametrize("name", ["a [b] c?", "x::y", "out:1", "https:"])
def test_an_odd_path_is_no_finding(sound: Path, tmp_path: Path, name: str) -> None:
    assert findings(Path(shutil.copytree(sound, tmp_path / name / "so2sat"))) == []


def test_what_git_and_the_hub_keep_in_a_repository_is_no_stray(damaged: Path) -> None:
    for name in (".gitattributes", ".git/HEAD", ".cache/huggingface/x"):
        (damaged / name).parent.mkdir(parents=True, exist_ok=True)
        (damaged / name).write_text("{}")
    assert findings(damaged) == []


def test_another_sentence_in_the_card_is_no_finding(damaged: Path) -> None:
    edit_text(damaged / card.NAME, "\n---\n", "\n---\nA sentence of ours.\n\n")
    edit_text(damaged / card.NAME, "license: cc-by-4.0", "license: cc-by-4.0\nviewer: true")
    assert findings(damaged) == []


# ── Files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _as_link(path: Path) -> None:
    path.symlink_to(path.rename(path.parents[2] / path.name))


def _as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a shard removed": (RGB_TEST, Path.unlink),
    "a shard cut": (ALL_TEST, lambda path: path.write_bytes(path.read_bytes()[:-1])),
    "a shard emptied": (ALL_TEST, lambda path: path.write_bytes(b"")),
    "a shard behind a link": (RGB_TEST, _as_link),
    "a shard as a pipe": (RGB_TEST, _as_pipe),
    "statistics removed": ("statistics.json", Path.unlink),
    "statistics edited": ("statistics.json", lambda path: edit_text(path, '"method": "', '"method": "By eye. ')),
    "a picture removed": ("assets/bands.png", Path.unlink),
    "a picture edited": ("assets/bands.png", lambda path: path.write_bytes(path.read_bytes() + b"x")),
    "a picture behind a link": ("assets/classes.png", _as_link),
    "the card removed": ("README.md", Path.unlink),
    "the card as a pipe": ("README.md", _as_pipe),
    "a card of other bytes": ("README.md", lambda path: path.write_bytes(b"\xff\xfe")),
    "an empty card": ("README.md", lambda path: path.write_bytes(b"")),
    "a card with a list": ("README.md", lambda path: path.write_bytes(b"---\n- a list\n---\n")),
    "a card without YAML": ("README.md", lambda path: path.write_bytes(b"# Text")),
    "an endless card": ("README.md", lambda path: path.write_bytes(b"x" * (17 << 20))),
    "a note": ("notes.txt", Path.touch),
    "a hidden file": (".env", Path.touch),
    "a shard of another plan": ("rgb/dev-00000-of-00001.parquet", Path.touch),
    "a shard that a glob loads": ("rgb/train-00007-of-00001.parquet", Path.touch),
    "a folder that is a link": ("photos", lambda path: path.symlink_to("/")),
    "a loading script": ("so2sat.py", Path.touch),
    "legacy metadata": ("dataset_infos.json", Path.touch),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_as_built_is_one_finding(damaged: Path, damage: str) -> None:
    name, change = DAMAGES[damage]
    change(damaged / name)
    assert files(damaged) == [name]


def test_many_stray_files_are_few_findings(damaged: Path) -> None:
    for number in range(50):
        (damaged / f"rgb/{number:02d}.jpeg").touch()
    assert len(findings(damaged)) == 4
    assert "47" in findings(damaged)[-1].problem


def test_an_incomplete_build_is_one_finding(damaged: Path) -> None:
    (damaged / card.NAME).write_text(card.INCOMPLETE)
    edit_json(damaged / manifest.NAME, lambda content: content["shards"].pop(ALL_TEST))
    (damaged / ALL_TEST).unlink()
    (finding,) = findings(damaged)
    assert finding.file == card.NAME
    assert "6 of 7" in finding.problem


def test_a_shard_that_the_manifest_lacks_is_a_finding(damaged: Path) -> None:
    edit_json(damaged / manifest.NAME, lambda content: content["shards"].pop(ALL_TRAIN_1))
    assert any(finding.file == manifest.NAME and ALL_TRAIN_1 in finding.problem for finding in findings(damaged))


def test_another_layout_is_one_finding(damaged: Path) -> None:
    edit_json(damaged / manifest.NAME, lambda content: content["versions"].update(layout="1"))
    assert files(damaged) == [manifest.NAME]


# ── The card ─────────────────────────────────────────────────────────────────────────────────────────────────────────

GLOB = "path: rgb/test-*-of-00001.parquet"
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
EDITS = {
    "another number of rows": ("num_examples: 90", "num_examples: 91"),
    "another name of a class": ("'16': Water", "'16': Sea"),
    "no default": ("  default: true\n", ""),
    "a wider glob": (GLOB, "path: rgb/t*.parquet"),
    "a glob that matches nothing": (GLOB, "path: rgb/test-*-of-00002.parquet"),
    "a glob of the whole disk": (GLOB, "path: /**"),
    "a glob that leaves the folder": (GLOB, "path: ../so2sat/rgb/test-*-of-00001.parquet"),
    "a glob of a server": (GLOB, "path: https://127.0.0.1:9/test.parquet"),
    "a glob as a list": (GLOB, "path: [rgb/test-*-of-00001.parquet]"),
    "a split that is none": (GLOB, f"{GLOB}\n  - split: dev\n    path: rgb/test-*-of-00001.parquet"),
    "no YAML": ("configs:\n", "configs: [\n"),
    "aliases without end": ("configs:\n", f"{BOMB}configs: *a29\nrest:\n"),
    "configs as a number": ("configs:\n", "configs: 3\nrest:\n"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("edit", EDITS)
def test_other_metadata_of_the_card_are_one_finding(damaged: Path, edit: str) -> None:
    edit_text(damaged / card.NAME, *EDITS[edit])
    assert files(damaged) == [card.NAME]


# ── Statistics ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _in(config: str, *keys: Any) -> Callable[[Any], None]:
    """Sets what is at a path of keys in the test split, the last argument being the value."""
    *path, last, value = keys

    def change(content: Any) -> None:
        inner = content["configs"][config]["test"]
        for key in path:
            inner = inner[key]
        inner[last] = value

    return change


def _reordered(content: Any) -> None:
    summary = content["configs"]["all"]["test"]
    summary["patches_per_class"] = dict(reversed(summary["patches_per_class"].items()))


STATISTICS: dict[str, Callable[[Any], Any]] = {
    "more water": _in("rgb", "patches_per_class", "Water", 100_005),
    "a class as text": _in("rgb", "patches_per_class", "Water", "5"),
    "another class": _in("rgb", "patches_per_class", "Sea", 0),
    "classes in another order": _reordered,
    "a band without a mean": lambda content: content["configs"]["all"]["test"]["bands"]["sentinel1"][0].pop("mean"),
    "a mean as text": _in("all", "bands", "sentinel1", 0, "mean", "<b>"),
    "another name of a band": _in("all", "bands", "sentinel1", 0, "name", "<b>"),
    "percentiles as a list": _in("rgb", "bands", "image", 0, "percentiles", [1]),
    "other percentiles": _in("rgb", "bands", "image", 0, "percentiles", {"50": 1.0}),
    "no bands": _in("all", "bands", {}),
    "bands of nothing": _in("all", "bands", None),
    "a split less": lambda content: content["configs"]["all"].pop("test"),
    "another config": lambda content: content["configs"].update(more={}),
    "an unknown split": lambda content: content["configs"]["all"].update(dev=content["configs"]["all"]["test"]),
    "configs as a list": lambda content: content.update(configs=[]),
    "another field": lambda content: content.update(more=1),
}
FORGERIES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a picture of PostScript": ("assets/bands.png", lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")),
    "empty": ("statistics.json", lambda path: path.write_text("")),
    "half an object": ("statistics.json", lambda path: path.write_text("{")),
    "nested deeply": ("statistics.json", lambda path: path.write_text("[" * 100_000)),
    "an array": ("statistics.json", lambda path: path.write_text("[]")),
    **{name: ("statistics.json", functools.partial(edit_json, edit=edit)) for name, edit in STATISTICS.items()},
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_file_of_another_content_is_found_though_its_checksum_is_right(damaged: Path, name: str) -> None:
    file, change = FORGERIES[name]
    change(damaged / file)
    forge(damaged, file)
    assert files(damaged) == [file]


def test_bands_without_finite_values_and_another_method_are_sound(damaged: Path) -> None:
    for key in ("mean", "std", "min", "max", "percentiles"):
        edit_json(damaged / layout.STATISTICS_NAME, _in("all", "bands", "sentinel1", 0, key, None))
    edit_json(damaged / layout.STATISTICS_NAME, lambda content: content.update(method="As another version says it."))
    forge(damaged, layout.STATISTICS_NAME)
    assert findings(damaged) == []


def _publish(monkeypatch: pytest.MonkeyPatch, split: str, counts: list[int]) -> None:
    """Lets a fixture's split play the full one."""
    monkeypatch.setattr(facts, "PATCHES_PER_CLASS", {**facts.PATCHES_PER_CLASS, split: tuple(counts)})


def test_patches_per_class_of_a_full_split_are_the_published_ones(
    damaged: Path, small_arrays: dict[str, Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = small_arrays["validation"]["label"].sum(axis=0).astype(int).tolist()
    _publish(monkeypatch, "validation", counts)
    assert findings(damaged) == []
    _publish(monkeypatch, "validation", [counts[0] + 1, *counts[1:-1], counts[-1] - 1])
    assert files(damaged) == [layout.STATISTICS_NAME] * 2  # of rgb and all
    edit_json(damaged / manifest.NAME, lambda content: content["sources"]["validation.h5"].update(synthetic="Made."))
    assert findings(damaged) == []


def test_bands_of_the_full_training_split_are_the_published_ones(
    sound: Path, small_arrays: dict[str, Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(monkeypatch, "train", small_arrays["train"]["label"].sum(axis=0).astype(int).tolist())
    assert {*files(sound)} == {layout.STATISTICS_NAME}
    arrays = {f"sentinel{n}": small_arrays["train"][f"sen{n}"].astype(np.float32).astype(float) for n in (1, 2)}
    stds = {name: values.std(axis=(0, 1, 2)) for name, values in arrays.items()}
    monkeypatch.setattr(facts, "TRAIN_MEAN", {name: values.mean(axis=(0, 1, 2)) for name, values in arrays.items()})
    monkeypatch.setattr(facts, "TRAIN_STD", stds)
    assert findings(sound) == []
    stds["sentinel1"][5] *= 1.01
    (finding,) = findings(sound)
    assert "std of sentinel1 VV intensity" in finding.problem


# ── Shards ───────────────────────────────────────────────────────────────────────────────────────────────────────────


Change = Callable[[pa.Table], pa.Table]
ShardOf = Callable[..., list[checks.Finding]]


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
    ) -> list[checks.Finding]:
        built = manifest.load_built(repository)
        sources = {config: layout.find_sources(str(small_folder), config) for config in built.configs}
        (planned,) = [shard for shard in built.plan(sources if has_source else {}) if shard.name == name]
        path, record = tmp_path / name, built.shards[name]
        if change:
            write_table(path, change(pq.read_table(repository / name)), planned.group_rows, **options)
        if damage:
            path.parent.mkdir()
            path.write_bytes(damage((repository / name).read_bytes()))
        if sign:
            record = dataclasses.replace(record, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        found = checks.check_shard(checks.Task(tmp_path, planned, record, None, same_pillow)).findings
        assert all(finding.file == name and len(str(finding)) < 1000 for finding in found)
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


def _longer_arrays(table: pa.Table) -> pa.Table:
    """Arrays of zeros, which compress to little and unpack to twice as much as they must."""
    storage = layout.nested_list(np.zeros((len(table), 32, 32, 16), np.float32))
    return _replaced(table, "sentinel1", pa.ExtensionArray.from_storage(table["sentinel1"].type, storage))


def _large_images(table: pa.Table) -> pa.Table:
    images = pa.array([{"bytes": bytes(1 << 18), "path": None}] * len(table), table["image"].type)
    return _replaced(table, "image", images)


def _required(table: pa.Table) -> pa.Table:
    return table.cast(
        pa.schema([field.with_nullable(False) if field.name == "label" else field for field in table.schema])
    )


LAYOUTS: dict[str, tuple[str, Change, dict[str, Any]]] = {
    "another type": (RGB_TEST, lambda table: _replaced(table, "label", table["label"].cast(pa.int32())), {}),
    "a column that must not be null": (RGB_TEST, _required, {}),
    "a column less": (ALL_TEST, lambda table: table.drop_columns(["label"]), {}),
    "columns in another order": (ALL_TEST, lambda table: table.select(table.column_names[::-1]), {}),
    "no features": (RGB_TEST, lambda table: table.replace_schema_metadata(None), {}),
    "other features": (RGB_TEST, _with_another_class, {}),
    "features that are no JSON": (RGB_TEST, lambda table: table.replace_schema_metadata({"huggingface": "{"}), {}),
    "rows less": (RGB_TEST, lambda table: table.slice(0, 10), {}),
    "other row groups": (RGB_TEST, lambda table: table, {"row_group_size": 10}),
    "no page index": (RGB_TEST, lambda table: table, {"write_page_index": False}),
    "longer arrays": (ALL_TEST, _longer_arrays, {}),
    "images that unpack to much": (RGB_TEST, _large_images, {}),
}


@pytest.mark.parametrize("change", LAYOUTS)
def test_another_layout_or_schema_is_found_before_anything_is_unpacked(
    shard: ShardOf, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(pq.ParquetFile, "read", None)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    name, make, options = LAYOUTS[change]
    found = shard(name, make, **options)
    assert found
    assert not any("NoneType" in finding.problem for finding in found)


# The label's entry in the schema of a footer, in Thrift's compact form: its repetition, then the length of its name.
OPTIONAL_LABEL = b"\x25\x02\x18\x05label"


@pytest.mark.parametrize("repetition", [b"\x25\x00", b"\x25\x04", b"\x25\x06"], ids=["required", "repeated", "unknown"])
def test_a_forged_repetition_is_found_before_arrow_ends_the_process(shard: ShardOf, repetition: bytes) -> None:
    def forge_footer(content: bytes) -> bytes:
        assert content.count(OPTIONAL_LABEL) == 1
        return content.replace(OPTIONAL_LABEL, repetition + OPTIONAL_LABEL[2:])

    assert len(shard(RGB_TEST, damage=forge_footer)) == 1


def test_no_damaged_footer_ends_the_process(sound: Path, tmp_path: Path) -> None:
    (planned,) = [shard for shard in manifest.load_built(sound).plan() if shard.name == RGB_TEST]
    content = (sound / RGB_TEST).read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    (tmp_path / "rgb").mkdir()
    for position in (*range(footer, footer + 300), *range(footer + 300, len(content), 7)):
        (tmp_path / RGB_TEST).write_bytes(_flipped(content, position))
        found = checks.shard_findings(tmp_path, planned, checks.footer_problems)
        assert {finding.file for finding in found} <= {RGB_TEST}


# ── Rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("part", ["header", "pages", "footer", "end"])
def test_a_flipped_bit_is_one_finding_wherever_it_is(shard: ShardOf, sound: Path, part: str) -> None:
    content = (sound / ALL_TEST).read_bytes()
    size, footer = len(content), int.from_bytes(content[-8:-4], "little")
    position = {"header": 2, "pages": size // 2, "footer": size - 8 - footer // 2, "end": size - 2}[part]
    (finding,) = shard(ALL_TEST, damage=lambda content: _flipped(content, position), sign=False)
    assert "sha256" in finding.problem


def test_a_damaged_page_is_found_though_its_checksum_is_forged(shard: ShardOf) -> None:
    (finding,) = shard(ALL_TEST, damage=lambda content: _flipped(content, len(content) // 2))
    assert "can't be read" in finding.problem


@pytest.mark.parametrize(
    ("name", "edit", "text"),
    [
        (RGB_TEST, set_value("label", 7, 17), "row 7 has label 17, "),
        (RGB_TEST, set_value("label", slice(7, 10), [-1, -1, -1]), "row 7 has label -1 (and 2 more rows), "),
        (RGB_TEST, set_value("label", 0, None), "row 0 has label None, "),
        (ALL_TRAIN_1, set_value("sample_id", 9, 9), "row 89 has sample_id 9, "),
        (ALL_TRAIN_1, set_value("sample_id", 9, None), "row 89 has sample_id None, "),
    ],
)
def test_a_label_or_id_that_can_not_be_is_one_finding(shard: ShardOf, name: str, edit: Edit, text: str) -> None:
    for has_source in (True, False):
        (finding,) = shard(name, lambda table: edited(table, edit), has_source=has_source)
        assert finding.problem.startswith(text)


def _image(size: tuple[int, int] = (32, 32), mode: str = "RGB", image_format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new(mode, size).save(buffer, image_format)
    return buffer.getvalue()


def _set_image(row: int, file: bytes | None, path: str | None = None) -> Edit:
    return set_value("image", row, {"bytes": file, "path": path})


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
    "a path": (RGB_TEST, lambda columns: columns["image"][5].update(path="/etc/passwd"), IMAGE),
    "an image of another size": (RGB_TEST, _set_image(5, _image((16, 32))), IMAGE),
    "a grey image": (RGB_TEST, _set_image(5, _image(mode="L")), IMAGE),
    "another format": (RGB_TEST, _set_image(5, _image(image_format="PNG")), IMAGE),
    "a page of PostScript": (RGB_TEST, _set_image(5, _image(image_format="EPS")), IMAGE),
    "half an image": (RGB_TEST, _set_image(5, _image()[:300]), IMAGE),
    "no bytes": (RGB_TEST, _set_image(5, b""), IMAGE),
    "no image": (RGB_TEST, _set_image(5, None), IMAGE),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_wrong_value_is_found_with_the_source(shard: ShardOf, name: str) -> None:
    of, edit, text = VALUES[name]
    assert shard(of, lambda table: edited(table, edit), has_source=False) == []
    (finding,) = shard(of, lambda table: edited(table, edit))
    assert finding.problem.startswith(text)


def test_only_images_of_the_right_format_and_size_are_decoded(shard: ShardOf, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[str | None, tuple[int, int]]] = []
    load = PIL.Image.Image.load

    def noted(image: PIL.Image.Image) -> Any:
        decoded.append((image.format, image.size))
        return load(image)

    def edit(columns: dict[str, Any]) -> None:
        odd = (_image(image_format="EPS"), _image(image_format="TIFF"), _image((4000, 4000)))
        columns["image"][:3] = [{"bytes": file, "path": None} for file in odd]
        for plugin in (PIL.Image.Image, PIL.JpegImagePlugin.JpegImageFile, PIL.EpsImagePlugin.EpsImageFile):
            monkeypatch.setattr(plugin, "load", noted)

    (finding,) = shard(RGB_TEST, lambda table: edited(table, edit))
    assert finding.problem.endswith("(and 2 more rows)")
    assert {*decoded} <= {("JPEG", (32, 32)), (None, (32, 32))}  # None: what is encoded here


def _with_nulls(table: pa.Table) -> pa.Table:
    column = table["sentinel2"].combine_chunks()
    storage = pa.concat_arrays([column.storage[:-2], pa.nulls(2, column.storage.type)])
    return _replaced(table, "sentinel2", pa.ExtensionArray.from_storage(column.type, storage))


def _with_uneven_lists(table: pa.Table) -> pa.Table:
    """As many numbers as there must be, but one line of a patch has a pixel more and the next one less."""
    column = table["sentinel2"].combine_chunks()
    lines = column.storage.flatten()
    edges = lines.offsets.to_numpy().copy()
    edges[1] += 1
    uneven = pa.ListArray.from_arrays(pa.array(edges), lines.values)
    storage = pa.ListArray.from_arrays(column.storage.offsets, uneven)
    return _replaced(table, "sentinel2", pa.ExtensionArray.from_storage(column.type, storage))


@pytest.mark.parametrize("change", [_with_nulls, _with_uneven_lists])
def test_arrays_of_another_shape_are_found(shard: ShardOf, change: Change) -> None:
    assert shard(ALL_TEST, change)


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


@pytest.mark.parametrize(("same_pillow", "quality", "count"), [(False, 95, 0), (True, 95, 1), (False, 50, 1)])
def test_other_bytes_of_a_jpeg_may_only_come_from_another_pillow(
    shard: ShardOf, small_arrays: dict[str, Arrays], same_pillow: bool, quality: int, count: int
) -> None:
    buffer = io.BytesIO()
    options = {**so2sat.IMAGE_FORMATS["jpeg"], "optimize": False, "quality": quality}
    PIL.Image.fromarray(so2sat.to_rgb(small_arrays["test"]["sen2"][5])).save(buffer, **options)
    change = functools.partial(edited, edit=_set_image(5, buffer.getvalue()))
    assert len(shard(RGB_TEST, change, same_pillow=same_pillow)) == count
