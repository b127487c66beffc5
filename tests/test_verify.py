"""Verification of a whole repository: with and without its sources, and the command."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import build
import verify
from conftest import (
    Arrays,
    Edit,
    contents,
    edit_json,
    edited,
    random_arrays,
    set_value,
    write_shard,
    write_source,
)
from publishing import card, manifest
from servers import RangeServer, serving

RGB_TRAIN, RGB_TEST = "rgb/train-00000-of-00001.parquet", "rgb/test-00000-of-00001.parquet"
ALL_TRAIN_0, ALL_TRAIN_1 = "all/train-00000-of-00002.parquet", "all/train-00001-of-00002.parquet"
ALL_VALIDATION, ALL_TEST = "all/validation-00000-of-00001.parquet", "all/test-00000-of-00001.parquet"


@pytest.fixture
def server(small_folder: Path) -> Iterator[RangeServer]:
    """`small_folder` over HTTP."""
    with serving(small_folder) as running:
        yield running


def findings(repository: Path, source: Path | None = None) -> list[str]:
    """What a verification prints."""
    return [str(finding) for finding in verify.verify(repository, str(source) if source else None)]


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


def rewrite(repository: Path, name: str, edit: Edit) -> None:
    """Edits a shard, and makes manifest and card tell of it."""
    write_shard(repository, name, edited(pq.read_table(repository / name), edit))


# ── Sound repositories ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sound_repository_has_no_findings(sound: Path, full_repository: Path, full_folder: Path) -> None:
    assert findings(sound) == findings(full_repository) == findings(full_repository, full_folder) == []


def test_a_sound_repository_equals_its_source_in_two_processes(sound: Path, small_folder: Path) -> None:
    assert [*verify.verify(sound, str(small_folder), workers=2)] == []


def test_a_sound_repository_equals_its_source_over_http(sound: Path, server: RangeServer) -> None:
    assert [*verify.verify(sound, server.url)] == []


@pytest.mark.parametrize("name", ["a [b] c?", "x::y", "out:1", "https:"])
def test_an_odd_path_is_no_finding(sound: Path, tmp_path: Path, name: str) -> None:
    assert findings(Path(shutil.copytree(sound, tmp_path / name / "so2sat"))) == []


def test_a_folder_of_links_as_in_the_cache_of_the_hub_is_read(sound: Path, small_folder: Path, tmp_path: Path) -> None:
    for name in contents(sound):
        link = tmp_path / "snapshot" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(sound / name)
    assert findings(tmp_path / "snapshot", small_folder) == []


def test_nan_and_infinity_equal_themselves(tmp_path: Path) -> None:
    arrays = random_arrays(20)
    arrays["sen1"][3, 0, 0, :4] = np.nan, np.inf, -np.inf, -0.0
    write_source(tmp_path / "data" / "training.h5", arrays)
    build.build(str(tmp_path / "data"), tmp_path / "so2sat", ["all"])
    assert findings(tmp_path / "so2sat", tmp_path / "data") == []


# ── A sample ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sample_takes_less_from_the_source(sound: Path, server: RangeServer) -> None:
    assert [*verify.verify(sound, server.url, sample=2)] == []
    of_sample = server.bytes_sent
    assert [*verify.verify(sound, server.url)] == []
    assert of_sample < (server.bytes_sent - of_sample) / 2


def test_a_sample_larger_than_the_repository_is_the_repository(damaged: Path, small_folder: Path) -> None:
    rewrite(damaged, ALL_VALIDATION, set_value("sentinel2", (5, 1, 2, 3), 2.0))
    assert files([str(found) for found in verify.verify(damaged, str(small_folder), sample=10**6)]) == [ALL_VALIDATION]


def test_a_sample_is_drawn_once_for_every_file_and_repeats(full_repository: Path) -> None:
    built = manifest.load_built(full_repository)
    drawn = verify.drawn_rows(built, 10)
    assert {*drawn} == {name for name in built.sources if not name.endswith("_geo.h5")}
    assert all(len({*rows}) == 10 and max(rows) < built.sources[name].rows for name, rows in drawn.items())
    assert verify.drawn_rows(built, 10) == drawn


# ── Without the source ───────────────────────────────────────────────────────────────────────────────────────────────


def test_exchanged_shards_are_two_findings(damaged: Path) -> None:
    content = (damaged / ALL_TRAIN_0).read_bytes()
    (damaged / ALL_TRAIN_1).rename(damaged / ALL_TRAIN_0)
    (damaged / ALL_TRAIN_1).write_bytes(content)
    assert files(findings(damaged)) == [ALL_TRAIN_0, ALL_TRAIN_1]


def test_everything_wrong_is_found_at_once(damaged: Path, small_folder: Path) -> None:
    rewrite(damaged, ALL_VALIDATION, set_value("sentinel2", (5, 1, 2, 3), 2.0))
    (damaged / RGB_TRAIN).unlink()
    flip(damaged / ALL_TRAIN_0, 2)
    assert files(findings(damaged, small_folder)) == [RGB_TRAIN, ALL_TRAIN_0, ALL_VALIDATION]


def test_two_exchanged_rows_are_found_with_the_source_alone(damaged: Path, small_folder: Path) -> None:
    def exchange(columns: dict[str, Any]) -> None:
        columns["sentinel2"][[3, 4]] = columns["sentinel2"][[4, 3]]

    rewrite(damaged, ALL_TEST, exchange)
    assert findings(damaged) == []
    assert only(findings(damaged, small_folder)).startswith(f"{ALL_TEST}: row 3 has sentinel2[")


@pytest.mark.parametrize("name", [ALL_TRAIN_1, ALL_TEST])
def test_a_shard_that_the_manifest_lacks_is_a_finding(damaged: Path, name: str) -> None:
    edit_json(damaged / manifest.NAME, lambda content: content["shards"].pop(name))
    assert files(findings(damaged)) == [manifest.NAME]


def test_damage_in_an_incomplete_build_is_found(damaged: Path) -> None:
    (damaged / card.NAME).write_text(card.INCOMPLETE)
    flip(damaged / RGB_TEST, 0)
    assert files(findings(damaged)) == ["README.md", RGB_TEST]


# ── Against the source ───────────────────────────────────────────────────────────────────────────────────────────────


def _forged_statistics(repository: Path, config: str, edit: Callable[[Any], Any]) -> None:
    path = repository / "statistics.json"
    edit_json(path, lambda content: edit(content["configs"][config]["test"]))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_json(repository / manifest.NAME, lambda content: content["files"].update({path.name: sha256}))


STATISTICS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "patches": ("rgb", lambda summary: summary["patches_per_class"].update(Water=1000)),
    "a mean": ("all", lambda summary: summary["bands"]["sentinel1"][3].update(mean=42.0)),
    "a least value": ("all", lambda summary: summary["bands"]["sentinel2"][0].update(min=-1.0)),
    "a median": ("rgb", lambda summary: summary["bands"]["image"][0]["percentiles"].update({"50": 3.0})),
    "a count": ("rgb", lambda summary: summary["bands"]["image"][2].update(nonfinite=1)),
    "neighbours": ("geo", lambda summary: summary["shared"]["train"].update(near=10_000)),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_that_are_not_of_the_shards_are_found(full_repository: Path, tmp_path: Path, name: str) -> None:
    config, edit = STATISTICS[name]
    repository = Path(shutil.copytree(full_repository, tmp_path / "so2sat"))
    _forged_statistics(repository, config, edit)
    assert only(findings(repository)).startswith(f"statistics.json: {config} test ")


def test_another_source_is_recognised(sound: Path, small_arrays: dict[str, Arrays], tmp_path: Path) -> None:
    write_source(tmp_path / "training.h5", small_arrays["train"])
    write_source(tmp_path / "validation.h5", random_arrays(20, seed=9))
    write_source(tmp_path / "testing.h5", {name: array[:11] for name, array in small_arrays["test"].items()})
    lines = findings(sound, tmp_path)
    assert lines[0].startswith(f"{tmp_path}/testing.h5: 11 rows")
    assert any(line.startswith(f"{ALL_VALIDATION}: row 0 has sentinel1[0, 0, 0] = ") for line in lines)
    assert any(line.startswith(f"{ALL_TEST}: can't be compared") for line in lines)
    assert not any("/train-" in line for line in lines)


def test_a_source_that_lacks_a_file_is_a_finding_and_the_rest_is_compared(
    damaged: Path, small_folder: Path, tmp_path: Path
) -> None:
    for name in ("training.h5", "validation.h5"):
        shutil.copy(small_folder / name, tmp_path)
    rewrite(damaged, ALL_VALIDATION, set_value("sentinel2", (5, 1, 2, 3), 2.0))
    assert files(findings(damaged, tmp_path)) == [f"{tmp_path}/testing.h5", ALL_VALIDATION]


def test_a_source_with_a_split_more_than_the_repository_is_a_finding(
    sound: Path, small_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(small_folder / "testing.h5", tmp_path)
    build.build(str(tmp_path), tmp_path / "so2sat", ["rgb"])
    assert files(findings(tmp_path / "so2sat", small_folder)) == [
        f"{small_folder}/training.h5",
        f"{small_folder}/validation.h5",
    ]


def test_places_without_their_patches_are_no_split_that_is_missing(full_folder: Path, tmp_path: Path) -> None:
    for name in ("validation.h5", "validation_geo.h5", "training_geo.h5"):
        (tmp_path / "data").mkdir(exist_ok=True)
        shutil.copy(full_folder / name, tmp_path / "data")
    build.build(str(tmp_path / "data"), tmp_path / "so2sat")
    assert findings(tmp_path / "so2sat", tmp_path / "data") == []


# ── The command line ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_says_what_it_proved_and_what_it_found(
    damaged: Path, small_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(damaged), "--workers", "1"]
    assert verify.main(arguments) == 0
    assert capsys.readouterr().out.startswith("OK: 7 shards, 122 patches, as build.py wrote them")
    assert verify.main([*arguments, "--source", str(small_folder)]) == 0
    assert capsys.readouterr() == (f"OK: 7 shards, 122 patches, every value equals {small_folder}\n", "")
    (damaged / RGB_TEST).unlink()
    assert verify.main(arguments) == 1
    finding, summary = capsys.readouterr().out.splitlines()
    assert finding.startswith(f"{RGB_TEST}: ")
    assert summary == "1 finding in 7 shards, 122 patches"


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
