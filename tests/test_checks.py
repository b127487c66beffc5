"""What is checked of a repository without its sources and without reading rows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import build
from conftest import Arrays, write_shard
from publishing import card, checks, facts, layout, manifest
from publishing.layout import Limits

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


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, source_folder: Path) -> Path:
    """A repository made of `source_folder`, whose `all` has two shards of train. Read only."""
    folder = tmp_path_factory.mktemp("sound") / "so2sat"
    build.build(str(source_folder), folder, limits={**layout.LIMITS, "all": Limits(128, 256)})
    return folder


@pytest.fixture
def repository(sound: Path, tmp_path: Path) -> Path:
    """A copy of `sound` to damage."""
    return Path(shutil.copytree(sound, tmp_path / "so2sat"))


def findings(repository: Path) -> list[checks.Finding]:
    return [*checks.repository_findings(repository, manifest.load_built(repository))]


def files(repository: Path) -> list[str]:
    """The files of the findings."""
    return [finding.file for finding in findings(repository)]


def edit_json(path: Path, edit: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


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


def test_what_git_and_the_hub_keep_in_a_repository_is_no_stray(repository: Path) -> None:
    for name in (".gitattributes", ".git/HEAD", ".cache/huggingface/x"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("{}")
    assert findings(repository) == []


def test_another_sentence_in_the_card_is_no_finding(repository: Path) -> None:
    edit_text(repository / card.NAME, "\n---\n", "\n---\nA sentence of ours.\n\n")
    edit_text(repository / card.NAME, "license: cc-by-4.0", "license: cc-by-4.0\nviewer: true")
    assert findings(repository) == []


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
    "a note": ("notes.txt", Path.touch),
    "a hidden file": (".env", Path.touch),
    "a shard of another plan": ("rgb/dev-00000-of-00001.parquet", Path.touch),
    "a folder that is a link": ("photos", lambda path: path.symlink_to("/")),
    "a loading script": ("so2sat.py", Path.touch),
    "legacy metadata": ("dataset_infos.json", Path.touch),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_as_built_is_named(repository: Path, damage: str) -> None:
    name, change = DAMAGES[damage]
    change(repository / name)
    assert {*files(repository)} == {name}


def test_a_shard_that_a_glob_of_the_card_would_load_is_named_twice(repository: Path) -> None:
    shutil.copy(repository / RGB_TRAIN, repository / "rgb/train-00007-of-00001.parquet")
    assert files(repository) == ["README.md", "rgb/train-00007-of-00001.parquet"]


def test_many_stray_files_are_few_findings(repository: Path) -> None:
    for number in range(50):
        (repository / f"rgb/{number:02d}.jpeg").touch()
    assert len(findings(repository)) == 4
    assert "47 more" in str(findings(repository)[-1])


def test_a_picture_that_is_none_is_found_though_its_checksum_is_right(repository: Path) -> None:
    (repository / "assets/bands.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    forge(repository, "assets/bands.png")
    assert files(repository) == ["assets/bands.png"]


def test_an_incomplete_build_is_one_finding(repository: Path) -> None:
    (repository / card.NAME).write_text(card.INCOMPLETE)
    edit_json(repository / manifest.NAME, lambda content: content["shards"].pop(ALL_TEST))
    (repository / ALL_TEST).unlink()
    (finding,) = findings(repository)
    assert finding.file == card.NAME
    assert "6 of 7" in finding.problem


def test_a_shard_that_the_manifest_lacks_is_a_finding(repository: Path) -> None:
    edit_json(repository / manifest.NAME, lambda content: content["shards"].pop(ALL_TRAIN_1))
    assert manifest.NAME in files(repository)
    assert any(ALL_TRAIN_1 in finding.problem for finding in findings(repository))


def test_another_layout_is_one_finding(repository: Path) -> None:
    edit_json(repository / manifest.NAME, lambda content: content["versions"].update(layout="1"))
    assert files(repository) == [manifest.NAME]


# ── The card ─────────────────────────────────────────────────────────────────────────────────────────────────────────

GLOB = "path: rgb/test-*-of-00001.parquet"
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
EDITS = {
    "another number of rows": ("num_examples: 300", "num_examples: 301"),
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
def test_other_metadata_of_the_card_are_found(repository: Path, edit: str) -> None:
    edit_text(repository / card.NAME, *EDITS[edit])
    found = findings(repository)
    assert {finding.file for finding in found} == {card.NAME}
    assert all(len(str(finding)) < 1000 for finding in found)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"---\n- a list\n---\n", b"# Text", b"x" * (17 << 20)])
def test_no_card_is_too_odd_to_be_reported(repository: Path, content: bytes) -> None:
    (repository / card.NAME).write_bytes(content)
    assert files(repository) == [card.NAME]


# ── Statistics ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _in(config: str, split: str, *keys: Any) -> Callable[[Any], None]:
    *path, last, value = keys

    def change(content: Any) -> None:
        inner = content["configs"][config][split]
        for key in path:
            inner = inner[key]
        inner[last] = value

    return change


FORGERIES: dict[str, Callable[[Any], Any]] = {
    "more water": _in("rgb", "test", "patches_per_class", "Water", 100_005),
    "a class as text": _in("rgb", "test", "patches_per_class", "Water", "5"),
    "another class": _in("rgb", "test", "patches_per_class", "Sea", 0),
    "a band without a mean": lambda content: content["configs"]["all"]["test"]["bands"]["sentinel1"][0].pop("mean"),
    "a mean as text": lambda content: content["configs"]["all"]["test"]["bands"]["sentinel1"][0].update(mean="<b>"),
    "percentiles as a list": _in("rgb", "test", "bands", "image", 0, "percentiles", [1]),
    "other percentiles": _in("rgb", "test", "bands", "image", 0, "percentiles", {"50": 1.0}),
    "no bands": _in("all", "test", "bands", {}),
    "a split less": lambda content: content["configs"]["all"].pop("test"),
    "another config": lambda content: content["configs"].update(more={}),
    "an unknown split": lambda content: content["configs"]["all"].update(dev=content["configs"]["all"]["test"]),
    "configs as a list": lambda content: content.update(configs=[]),
    "another field": lambda content: content.update(more=1),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_statistics_of_something_else_are_found_though_their_checksum_is_right(repository: Path, name: str) -> None:
    edit_json(repository / layout.STATISTICS_NAME, FORGERIES[name])
    forge(repository, layout.STATISTICS_NAME)
    assert files(repository) == [layout.STATISTICS_NAME]


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"method": 1, "configs": {}}'])
def test_statistics_of_no_shape_are_found(repository: Path, text: str) -> None:
    (repository / layout.STATISTICS_NAME).write_text(text)
    forge(repository, layout.STATISTICS_NAME)
    assert files(repository) == [layout.STATISTICS_NAME]


def _as_full_split(monkeypatch: pytest.MonkeyPatch, split: str, arrays: Arrays) -> list[int]:
    """Lets a fixture's split play the full one."""
    counts = arrays["label"].sum(axis=0).astype(int).tolist()
    monkeypatch.setattr(facts, "PATCHES_PER_CLASS", {**facts.PATCHES_PER_CLASS, split: tuple(counts)})
    return list(counts)


def test_patches_per_class_of_a_full_split_are_the_published_ones(
    repository: Path, source_arrays: dict[str, Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = _as_full_split(monkeypatch, "validation", source_arrays["validation"])
    assert findings(repository) == []
    counts[0], counts[16] = counts[0] + 1, counts[16] - 1
    monkeypatch.setattr(facts, "PATCHES_PER_CLASS", {**facts.PATCHES_PER_CLASS, "validation": tuple(counts)})
    assert files(repository) == [layout.STATISTICS_NAME] * 2  # of rgb and all
    edit_json(
        repository / manifest.NAME, lambda content: content["sources"]["validation.h5"].update(synthetic="A stand-in.")
    )
    assert findings(repository) == []


def test_bands_of_the_full_training_split_are_the_published_ones(
    repository: Path, source_arrays: dict[str, Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    _as_full_split(monkeypatch, "train", source_arrays["train"])
    assert files(repository) == [layout.STATISTICS_NAME] * len(findings(repository)) != []
    arrays = {f"sentinel{n}": source_arrays["train"][f"sen{n}"].astype(np.float32).astype(np.float64) for n in (1, 2)}
    monkeypatch.setattr(facts, "TRAIN_MEAN", {name: values.mean(axis=(0, 1, 2)) for name, values in arrays.items()})
    stds = {name: values.std(axis=(0, 1, 2)) for name, values in arrays.items()}
    monkeypatch.setattr(facts, "TRAIN_STD", stds)
    assert findings(repository) == []
    stds["sentinel1"][5] *= 1.01
    (finding,) = findings(repository)
    assert "std of sentinel1 VV intensity" in finding.problem


# ── Footers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _replaced(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name).with_type(column.type), column)


def _features_edited(table: pa.Table) -> pa.Table:
    features = table.schema.metadata[b"huggingface"].replace(b"Water", b"Sea")
    return table.replace_schema_metadata({"huggingface": features})


def _much_longer(table: pa.Table) -> pa.Table:
    """Arrays of zeros that compress to little and unpack to much."""
    column = table["sentinel1"].combine_chunks()
    storage = column.storage
    lists = pa.array(np.arange(0, 33 * 3200 + 1, 3200, dtype=np.int32))
    pixels = pa.array(np.arange(0, 33 * 3200 * 320 + 1, 320, dtype=np.int32))
    values = pa.ListArray.from_arrays(pixels, pa.array(np.zeros(33 * 3200 * 320, np.float32)))
    storage = pa.ListArray.from_arrays(pa.array(np.arange(34, dtype=np.int32)), pa.ListArray.from_arrays(lists, values))
    return _replaced(table, "sentinel1", pa.ExtensionArray.from_storage(column.type, storage))


LAYOUTS: dict[str, tuple[Callable[[pa.Table], pa.Table], dict[str, Any]]] = {
    "another type": (lambda table: _replaced(table, "label", table["label"].combine_chunks().cast(pa.int32())), {}),
    "a column less": (lambda table: table.drop_columns(["label"]), {}),
    "columns in another order": (lambda table: table.select(table.column_names[::-1]), {}),
    "no features": (lambda table: table.replace_schema_metadata(None), {}),
    "other features": (_features_edited, {}),
    "features that are no JSON": (lambda table: table.replace_schema_metadata({"huggingface": "{"}), {}),
    "rows less": (lambda table: table.slice(0, 30), {}),
    "other row groups": (lambda table: table, {"row_group_size": 10}),
    "longer arrays": (_much_longer, {}),
}


@pytest.mark.parametrize("change", LAYOUTS)
def test_another_layout_or_schema_is_found(repository: Path, change: str) -> None:
    make, options = LAYOUTS[change]
    write_shard(repository, ALL_TEST, make(pq.read_table(repository / ALL_TEST)), **options)
    found = findings(repository)
    assert {finding.file for finding in found} == {ALL_TEST}
    assert all(len(str(finding)) < 1000 for finding in found)


def test_no_damaged_footer_ends_the_process(sound: Path, tmp_path: Path) -> None:
    (shard,) = [shard for shard in manifest.load_built(sound).plan() if shard.name == RGB_TEST]
    content = (sound / RGB_TEST).read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    (tmp_path / "rgb").mkdir()
    for position in (*range(footer, footer + 300), *range(footer + 300, len(content), 7)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        (tmp_path / RGB_TEST).write_bytes(damaged)
        assert {finding.file for finding in checks.footer_findings(tmp_path, shard)} <= {RGB_TEST}
