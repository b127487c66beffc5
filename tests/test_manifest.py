"""The manifest: what it tells, and that it names nothing but what its plan makes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import contents, edit_json, random_arrays, write_source
from publishing import manifest
from publishing.command import CommandError
from publishing.manifest import Manifest

RGB_TEST = "rgb/test-00000-of-00001.parquet"


@pytest.fixture
def folder(repository: Path, tmp_path: Path) -> Path:
    """A folder with the manifest of `repository` alone."""
    shutil.copy(repository / manifest.NAME, tmp_path)
    return tmp_path


# ── What it tells ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_tells_rows_bytes_and_checksums_of_every_shard(repository: Path) -> None:
    built = manifest.load_built(repository)
    assert {*built.shards} == {name for name in contents(repository) if name.endswith(".parquet")}
    for name, record in built.shards.items():
        assert record.bytes == (repository / name).stat().st_size
        assert record.rows == pq.read_metadata(repository / name).num_rows
        assert len(record.sha256) == 64


def test_it_tells_sources_and_what_decides_the_bytes(repository: Path, source_folder: Path) -> None:
    built = manifest.load_built(repository)
    rows = {name: record.rows for name, record in built.sources.items()}
    assert rows == {"training.h5": 300, "validation.h5": 70, "testing.h5": 33}
    assert built.sources["training.h5"].bytes == (source_folder / "training.h5").stat().st_size
    assert {recipe["pyarrow"] for recipe in built.configs.values()} == {pa.__version__}
    assert built.patches == 403


def test_it_lists_every_other_file(repository: Path) -> None:
    others = {name for name in contents(repository) if not name.endswith((".parquet", ".md"))} - {manifest.NAME}
    assert {*manifest.load_built(repository).files} == others


def test_it_comes_back_as_it_was_saved(repository: Path, tmp_path: Path) -> None:
    built = manifest.load_built(repository)
    built.save(tmp_path)
    assert Manifest.load(tmp_path) == built
    assert (tmp_path / manifest.NAME).read_bytes() == (repository / manifest.NAME).read_bytes()


@pytest.mark.parametrize(
    ("change", "is_seen"),
    [
        (lambda arrays: arrays["sen2"].__imul__(0.5), True),
        (lambda arrays: arrays["label"].__setitem__(101, np.roll(arrays["label"][101], 1)), True),
        (lambda arrays: arrays["sen1"].__setitem__((0, 3, 3, 2), 0.5), True),
        (lambda arrays: arrays["sen1"].__setitem__((1000, 3, 3, 2), 0.5), False),  # --help says so
    ],
    ids=["pixels halved", "a label", "a pixel of the first row", "a pixel of one row of many"],
)
def test_a_fingerprint_sees_labels_and_changes_throughout(
    change: Callable[[Any], Any], is_seen: bool, tmp_path: Path
) -> None:
    def fingerprint() -> str:
        write_source(tmp_path / "training.h5", arrays)
        return manifest.describe(str(tmp_path), ["training.h5"])["training.h5"].fingerprint

    arrays = {name: array.astype("f4") for name, array in random_arrays(1100).items()}
    before = fingerprint()
    change(arrays)
    assert (fingerprint() != before) == is_seen


def test_only_files_that_are_there_are_described(source_folder: Path) -> None:
    assert [*manifest.describe(str(source_folder), ["random/training.h5", "testing.h5"])] == ["testing.h5"]


def test_a_folder_without_a_manifest_is_no_repository(tmp_path: Path) -> None:
    assert Manifest.load(tmp_path) is None
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CommandError, match=str(folder)):
            manifest.load_built(folder)


# ── What it may not be ───────────────────────────────────────────────────────────────────────────────────────────────

SHARD = {"rows": 33, "bytes": 1, "arrow_bytes": 1, "sha256": "0" * 64}
EDITS: dict[str, Callable[[Any], Any]] = {
    "no shards": lambda content: content.pop("shards"),
    "another field": lambda content: content.update(more=1),
    "a shard without rows": lambda content: content["shards"][RGB_TEST].pop("rows"),
    "a shard outside": lambda content: content["shards"].update({"../rgb/test-00000-of-00001.parquet": SHARD}),
    "an absolute shard": lambda content: content["shards"].update({"/etc/passwd": SHARD}),
    "a shard of another plan": lambda content: content["shards"].update({"rgb/test-00000-of-00002.parquet": SHARD}),
    "a config of another version": lambda content: content["configs"].update(more={}),
    "no sources": lambda content: content.update(sources=[]),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_names_other_shards_than_its_plan_is_no_manifest(folder: Path, name: str) -> None:
    edit_json(folder / manifest.NAME, EDITS[name])
    with pytest.raises(CommandError, match=r"manifest\.json: not a manifest"):
        manifest.load_built(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"versions": 3}'])
def test_what_is_no_json_of_a_manifest_is_told(folder: Path, text: str) -> None:
    (folder / manifest.NAME).write_bytes(text.encode())
    with pytest.raises(CommandError, match="not a manifest"):
        manifest.load_built(folder)


def test_files_that_another_version_lists_are_known(folder: Path) -> None:
    edit_json(folder / manifest.NAME, lambda content: content["files"].update({"assets/map.png": "0" * 64}))
    assert "assets/map.png" in manifest.load_built(folder).files
