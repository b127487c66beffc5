"""What is checked of a repository without its sources and without reading rows."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import Arrays, edit_json, sign, write_shard
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


def test_a_picture_that_is_none_is_found_though_its_checksum_is_right(damaged: Path) -> None:
    (damaged / "assets/bands.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    forge(damaged, "assets/bands.png")
    assert files(damaged) == ["assets/bands.png"]


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


FORGERIES: dict[str, Callable[[Any], Any]] = {
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


@pytest.mark.parametrize("name", FORGERIES)
def test_statistics_of_something_else_are_found_though_their_checksum_is_right(damaged: Path, name: str) -> None:
    edit_json(damaged / layout.STATISTICS_NAME, FORGERIES[name])
    forge(damaged, layout.STATISTICS_NAME)
    assert files(damaged) == [layout.STATISTICS_NAME]


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"method": 1, "configs": {}}'])
def test_statistics_of_no_shape_are_found(damaged: Path, text: str) -> None:
    (damaged / layout.STATISTICS_NAME).write_text(text)
    forge(damaged, layout.STATISTICS_NAME)
    assert files(damaged) == [layout.STATISTICS_NAME]


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


# ── Footers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _replaced(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name).with_type(column.type), column)


def _with_features(table: pa.Table, features: bytes) -> pa.Table:
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


LAYOUTS: dict[str, tuple[str, Callable[[pa.Table], pa.Table], dict[str, Any]]] = {
    "another type": (RGB_TEST, lambda table: _replaced(table, "label", table["label"].cast(pa.int32())), {}),
    "a column that must not be null": (RGB_TEST, _required, {}),
    "a column less": (ALL_TEST, lambda table: table.drop_columns(["label"]), {}),
    "columns in another order": (ALL_TEST, lambda table: table.select(table.column_names[::-1]), {}),
    "no features": (ALL_TEST, lambda table: table.replace_schema_metadata(None), {}),
    "other features": (
        RGB_TEST,
        lambda table: _with_features(table, table.schema.metadata[b"huggingface"].replace(b"Water", b"Sea")),
        {},
    ),
    "features that are no JSON": (RGB_TEST, lambda table: _with_features(table, b"{"), {}),
    "rows less": (RGB_TEST, lambda table: table.slice(0, 10), {}),
    "other row groups": (RGB_TEST, lambda table: table, {"row_group_size": 10}),
    "no page index": (RGB_TEST, lambda table: table, {"write_page_index": False}),
    "longer arrays": (ALL_TEST, _longer_arrays, {}),
    "images that unpack to much": (RGB_TEST, _large_images, {}),
}


@pytest.mark.parametrize("change", LAYOUTS)
def test_another_layout_or_schema_is_found(damaged: Path, change: str) -> None:
    name, make, options = LAYOUTS[change]
    write_shard(damaged, name, make(pq.read_table(damaged / name)), **options)
    assert {*files(damaged)} == {name}


# The label's entry in the schema of a footer, in Thrift's compact form: its repetition, then the length of its name.
OPTIONAL_LABEL = b"\x25\x02\x18\x05label"


@pytest.mark.parametrize("repetition", [b"\x25\x00", b"\x25\x04", b"\x25\x06"], ids=["required", "repeated", "unknown"])
def test_a_forged_repetition_is_found_before_arrow_ends_the_process(damaged: Path, repetition: bytes) -> None:
    content = (damaged / RGB_TEST).read_bytes()
    assert content.count(OPTIONAL_LABEL) == 1
    (damaged / RGB_TEST).write_bytes(content.replace(OPTIONAL_LABEL, repetition + OPTIONAL_LABEL[2:]))
    sign(damaged, RGB_TEST)
    assert files(damaged) == [RGB_TEST]


def test_no_damaged_footer_ends_the_process(sound: Path, tmp_path: Path) -> None:
    (shard,) = [shard for shard in manifest.load_built(sound).plan() if shard.name == RGB_TEST]
    content = (sound / RGB_TEST).read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    (tmp_path / "rgb").mkdir()
    for position in (*range(footer, footer + 300), *range(footer + 300, len(content), 7)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        (tmp_path / RGB_TEST).write_bytes(damaged)
        found = checks.shard_findings(tmp_path, shard, checks.footer_problems)
        assert {finding.file for finding in found} <= {RGB_TEST}
