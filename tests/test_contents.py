"""What follows from the shards, and what is found of it in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import build
import verify
from conftest import Arrays, edit_json
from publishing import card, contents, facts, manifest

RGB_TEST, ALL_TEST = "rgb/test-00000-of-00001.parquet", "all/test-00000-of-00001.parquet"


def files(repository: Path) -> list[str]:
    """The files of the findings."""
    found = [*verify.verify(repository)]
    assert all(str(finding).isprintable() and len(str(finding)) < 1000 for finding in found)
    return [finding.file for finding in found]


def edit_text(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


# ── Files ────────────────────────────────────────────────────────────────────────────────────────────────────────────

DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a shard removed": (RGB_TEST, Path.unlink),
    "a shard cut": (ALL_TEST, lambda path: path.write_bytes(path.read_bytes()[:-1])),
    "a shard changed": (ALL_TEST, lambda path: path.write_bytes(b"x" + path.read_bytes()[1:])),
    "statistics removed": ("statistics.json", Path.unlink),
    "statistics edited": ("statistics.json", lambda path: edit_text(path, '"method": "', '"method": "By eye. ')),
    "a picture removed": ("assets/bands.png", Path.unlink),
    "a picture edited": ("assets/bands.png", lambda path: path.write_bytes(path.read_bytes() + b"x")),
    "the card removed": ("README.md", Path.unlink),
    "a file that a glob takes for data": ("rgb/train-00007-of-00001.parquet", Path.touch),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_as_built_is_one_finding(damaged: Path, damage: str) -> None:
    name, change = DAMAGES[damage]
    change(damaged / name)
    assert files(damaged) == [name]


def test_an_incomplete_build_is_one_finding(damaged: Path) -> None:
    (damaged / card.NAME).write_text(card.INCOMPLETE, encoding="utf-8")
    edit_json(damaged / manifest.NAME, lambda content: content["shards"].pop(ALL_TEST))
    (damaged / ALL_TEST).unlink()
    (finding,) = verify.verify(damaged)
    assert finding.file == card.NAME
    assert "6 of 7" in finding.problem


def test_a_file_that_another_version_lists_is_no_finding(damaged: Path) -> None:
    edit_json(damaged / manifest.NAME, lambda content: content["files"].update({"assets/seasons.png": "0" * 64}))
    assert files(damaged) == []
    assert "assets/seasons.png" in contents.strays(damaged, manifest.load_built(damaged))


# ── Strays ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_else_lies_in_the_folder_is_left_alone_and_named_once(
    damaged: Path, small_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("__pycache__/train.pyc", ".DS_Store", "NOTES.md", "rgb/mine.txt", "a/b/c"):
        (damaged / name).parent.mkdir(parents=True, exist_ok=True)
        (damaged / name).write_text("mine", encoding="utf-8")
    assert verify.main([str(damaged), "--workers", "1"]) == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert all(name in warning for name in (".DS_Store", "NOTES.md", "__pycache__/", "a/", "rgb/mine.txt"))
    build.main([str(small_folder), str(damaged)])
    assert (damaged / "NOTES.md").read_text(encoding="utf-8") == "mine"
    assert sum("NOTES.md" in line for line in capsys.readouterr().out.splitlines()) == 1


def test_many_strays_are_one_line(damaged: Path) -> None:
    for number in range(50):
        (damaged / f"rgb/{number:02d}.jpeg").touch()
    assert "45 more" in contents.strays(damaged, manifest.load_built(damaged))


def test_what_git_and_the_hub_keep_in_a_repository_is_not_named(damaged: Path) -> None:
    for name in (".gitattributes", ".git/HEAD", ".cache/huggingface/x"):
        (damaged / name).parent.mkdir(parents=True, exist_ok=True)
        (damaged / name).touch()
    assert contents.strays(damaged, manifest.load_built(damaged)) == ""


# ── The card ─────────────────────────────────────────────────────────────────────────────────────────────────────────

GLOB = "path: rgb/test-*-of-00001.parquet"
EDITS = {
    "another number of rows": ("num_examples: 90", "num_examples: 91"),
    "another name of a class": ("'16': Water", "'16': Sea"),
    "no default": ("  default: true\n", ""),
    "a wider glob": (GLOB, "path: rgb/t*.parquet"),
    "another digest of the shards": ("description: shards ", "description: shards x"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_other_metadata_of_the_card_are_one_finding(damaged: Path, edit: str) -> None:
    edit_text(damaged / card.NAME, *EDITS[edit])
    assert files(damaged) == [card.NAME]


def test_another_sentence_in_the_card_is_no_finding(damaged: Path) -> None:
    edit_text(damaged / card.NAME, "\n---\n", "\n---\nA sentence of ours.\n\n")
    edit_text(damaged / card.NAME, "license: cc-by-4.0", "license: cc-by-4.0\nviewer: true")
    assert files(damaged) == []


# ── Published figures ────────────────────────────────────────────────────────────────────────────────────────────────


def _publish(monkeypatch: pytest.MonkeyPatch, split: str, counts: list[int]) -> None:
    """Lets a fixture's split play the full one."""
    monkeypatch.setattr(facts, "PATCHES_PER_CLASS", {**facts.PATCHES_PER_CLASS, split: tuple(counts)})


def test_patches_per_class_of_a_full_split_are_the_published_ones(
    sound: Path, small_arrays: dict[str, Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = small_arrays["validation"]["label"].sum(axis=0).astype(int).tolist()
    _publish(monkeypatch, "validation", counts)
    assert files(sound) == []
    _publish(monkeypatch, "validation", [counts[0] + 1, *counts[1:-1], counts[-1] - 1])
    assert files(sound) == ["statistics.json"] * 2  # of rgb and all


def test_bands_of_the_full_training_split_are_the_published_ones(
    sound: Path, small_arrays: dict[str, Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(monkeypatch, "train", small_arrays["train"]["label"].sum(axis=0).astype(int).tolist())
    assert {*files(sound)} == {"statistics.json"}
    arrays = {f"sentinel{n}": small_arrays["train"][f"sen{n}"].astype(np.float32).astype(float) for n in (1, 2)}
    stds = {name: values.std(axis=(0, 1, 2)) for name, values in arrays.items()}
    monkeypatch.setattr(facts, "TRAIN_MEAN", {name: values.mean(axis=(0, 1, 2)) for name, values in arrays.items()})
    monkeypatch.setattr(facts, "TRAIN_STD", stds)
    assert files(sound) == []
    stds["sentinel1"][5] *= 1.01
    (finding,) = verify.verify(sound)
    assert "std of sentinel1 VV intensity" in finding.problem
