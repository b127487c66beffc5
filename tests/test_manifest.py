"""The manifest: what it tells, and that nothing is believed that build.py would not write."""

from __future__ import annotations

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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import contents, edit_json, random_arrays, write_source
from publishing import layout, manifest
from publishing.command import CommandError
from publishing.manifest import Manifest

RGB_TEST = "rgb/test-00000-of-00001.parquet"


@pytest.fixture
def folder(repository: Path, tmp_path: Path) -> Path:
    """A folder with the manifest of `repository` alone."""
    shutil.copy(repository / manifest.NAME, tmp_path)
    return tmp_path


def edit(folder: Path, change: Callable[[Any], Any]) -> None:
    edit_json(folder / manifest.NAME, change)


# ── What it tells ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_tells_rows_bytes_and_checksums_of_every_shard(repository: Path) -> None:
    built = manifest.load_built(repository)
    assert {*built.shards} == {name for name in contents(repository) if name.endswith(".parquet")}
    for name, record in built.shards.items():
        assert record.bytes == (repository / name).stat().st_size
        assert record.rows == pq.read_metadata(repository / name).num_rows
        assert len(record.sha256) == 64


def test_it_tells_sources_and_versions(repository: Path, source_folder: Path) -> None:
    built = manifest.load_built(repository)
    rows = {name: record.rows for name, record in built.sources.items()}
    assert rows == {"training.h5": 300, "validation.h5": 70, "testing.h5": 33}
    assert built.sources["training.h5"].bytes == (source_folder / "training.h5").stat().st_size
    assert built.versions["pyarrow"] == pa.__version__
    assert "datasets" not in built.versions  # which decides no byte of a shard


def test_it_lists_every_other_file(repository: Path) -> None:
    others = {name for name in contents(repository) if not name.endswith((".parquet", ".md"))} - {manifest.NAME}
    assert {*manifest.load_built(repository).files} == others


def test_it_comes_back_as_it_was_saved(repository: Path, tmp_path: Path) -> None:
    built = manifest.load_built(repository)
    built.save(tmp_path)
    assert Manifest.load(tmp_path) == built
    assert (tmp_path / manifest.NAME).read_bytes() == (repository / manifest.NAME).read_bytes()


def test_a_fingerprint_is_of_all_labels(tmp_path: Path) -> None:
    def fingerprint() -> str:
        path = write_source(tmp_path / "training.h5", arrays)
        return manifest.describe({"training.h5": str(path)})["training.h5"].fingerprint

    arrays = random_arrays(300)
    before = fingerprint()
    arrays["sen1"][101, 3, 3, 2] = 0.5
    assert fingerprint() == before  # which --help says, and verify.py --source finds
    arrays["label"][101] = np.roll(arrays["label"][101], 1)
    assert fingerprint() != before


def test_a_folder_without_a_manifest_is_no_repository(tmp_path: Path) -> None:
    assert Manifest.load(tmp_path) is None
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CommandError, match=str(folder)):
            manifest.load_built(folder)


def test_shards_of_another_layout_are_unknown(folder: Path) -> None:
    edit(folder, lambda content: content["versions"].update(layout="1"))
    built = manifest.load_built(folder)
    assert (built.versions["layout"], built.shards, built.files) == ("1", {}, {})


# ── What it may not be ───────────────────────────────────────────────────────────────────────────────────────────────


def _set(*path: Any) -> Callable[[Any], None]:
    """Sets what is at a path of keys, the last argument being the value."""
    *keys, last, value = path

    def change(content: Any) -> None:
        for key in keys:
            content = content[key]
        content[last] = value

    return change


SHARD = {"rows": 33, "bytes": 1, "arrow_bytes": 1, "sha256": "0" * 64}
SOURCE = {"rows": 33, "bytes": 1, "fingerprint": "0" * 64, "synthetic": ""}
EDITS: dict[str, Callable[[Any], Any]] = {
    "no shards": lambda content: content.pop("shards"),
    "another field": _set("more", 1),
    "a shard without rows": lambda content: content["shards"][RGB_TEST].pop("rows"),
    "rows as text": _set("shards", RGB_TEST, "rows", "33"),
    "rows as a truth value": _set("shards", RGB_TEST, "rows", True),
    "rows as a fraction": _set("shards", RGB_TEST, "rows", 33.0),
    "other rows": _set("shards", RGB_TEST, "rows", 34),
    "no bytes": _set("shards", RGB_TEST, "bytes", 0),
    "no checksum": _set("shards", RGB_TEST, "sha256", "0"),
    "a shard outside": _set("shards", "../rgb/test-00000-of-00001.parquet", SHARD),
    "a shard of another plan": _set("shards", "rgb/test-00000-of-00002.parquet", SHARD),
    "an absolute shard": _set("shards", "/etc/passwd", SHARD),
    "a hidden file": _set("files", ".env", "0" * 64),
    "a .gitignore": _set("files", ".gitignore", "0" * 64),
    "a file outside": _set("files", "../notes.txt", "0" * 64),
    "an absolute file": _set("files", "/etc/passwd", "0" * 64),
    "the card as a file": _set("files", "README.md", "0" * 64),
    "a file without checksum": _set("files", layout.STATISTICS_NAME, "../x"),
    "no configs": _set("configs", []),
    "configs as an object": _set("configs", {}),
    "files as a list": _set("files", []),
    "a checksum that is none": _set("files", layout.STATISTICS_NAME, None),
    "an unknown config": _set("configs", ["rgb", "geo!"]),
    "a config as an object": _set("configs", [{}]),
    "a config twice": _set("configs", ["rgb", "rgb"]),
    "configs in another order": _set("configs", ["all", "rgb"]),
    "a config without sources": _set("configs", ["rgb", "all", "rgb_random"]),
    "another image format": _set("image_format", "eps"),
    "no version of Pillow": lambda content: content["versions"].pop("pillow"),
    "a version as a number": _set("versions", "layout", 2),
    "an unknown source": _set("sources", "../training.h5", SOURCE),
    "a source of another config": _set("sources", "random/training.h5", SOURCE),
    "no sources": _set("sources", {}),
    "a source without rows": _set("sources", "testing.h5", "rows", None),
    "a source with too many rows": _set("sources", "testing.h5", "rows", 10**15),
    "a synthetic text of two lines": _set("sources", "testing.h5", "synthetic", "made\nup"),
    "larger row groups": _set("limits", "rgb", "group_rows", 10**6),
    "row groups without rows": _set("limits", "rgb", "group_rows", 0),
    "larger shards": _set("limits", "all", "shard_rows", 10**9),
    "no limits of a kind": lambda content: content["limits"].pop("geo"),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_build_py_would_not_write_is_refused(folder: Path, name: str) -> None:
    edit(folder, EDITS[name])
    with pytest.raises(CommandError, match=r"manifest\.json: not a manifest") as error:
        manifest.load_built(folder)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "NaN", '{"versions": 3}', "[" * 100_000, "\ud800"])
def test_what_is_no_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / manifest.NAME).write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(CommandError, match="not a manifest"):
        manifest.load_built(folder)


def _as_link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def _as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


ODD: dict[str, Callable[[Path], Any]] = {
    "a pipe": _as_pipe,
    "a device": lambda path: _as_link(path, "/dev/zero"),
    "a link": lambda path: _as_link(path, str(shutil.copy(path, path.with_name("elsewhere")))),
    "a link to nothing": lambda path: _as_link(path, "nothing"),
    "a folder": _as_folder,
    "larger than any": lambda path: path.write_bytes(path.read_bytes() + b" " * manifest.MAX_BYTES),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ODD)
def test_a_manifest_is_a_small_regular_file(folder: Path, name: str) -> None:
    ODD[name](folder / manifest.NAME)
    with pytest.raises(CommandError, match="not a manifest"):
        manifest.load_built(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_other_value_anywhere_is_refused_or_harmless(folder: Path, repository: Path, data: st.DataObject) -> None:
    content = json.loads((repository / manifest.NAME).read_text())
    places = [
        (parent, key)
        for parent in (content, *(content[field] for field in ("versions", "sources", "shards", "limits", "files")))
        for key in parent
    ]
    parent, key = data.draw(st.sampled_from(places))
    parent[key] = data.draw(JSON)
    (folder / manifest.NAME).write_text(json.dumps(content))
    try:
        built = manifest.load_built(folder)
    except CommandError:
        return
    assert {*built.shards} <= {shard.name for shard in built.plan()}
    assert {*built.files} <= {*layout.OTHER_FILES}
    assert all(isinstance(value, str) for value in built.versions.values())
