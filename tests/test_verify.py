"""Verification of a whole repository: with and without its sources, and the command."""

from __future__ import annotations

import hashlib
import json
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
    RangeServer,
    edit_json,
    edited,
    random_arrays,
    serving,
    set_value,
    write_shard,
    write_source,
)
from publishing import card, layout, manifest

RGB_TRAIN, RGB_TEST = "rgb/train-00000-of-00001.parquet", "rgb/test-00000-of-00001.parquet"
ALL_TRAIN_0, ALL_TRAIN_1 = "all/train-00000-of-00002.parquet", "all/train-00001-of-00002.parquet"
ALL_VALIDATION, ALL_TEST = "all/validation-00000-of-00001.parquet", "all/test-00000-of-00001.parquet"
ROWS = 90 + 20 + 12


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


def rewrite(repository: Path, name: str, edit: Edit) -> None:
    """Edits a shard, and makes manifest and card tell of it."""
    write_shard(repository, name, edited(pq.read_table(repository / name), edit))


# ── Sound repositories ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sound_repository_has_no_findings(sound: Path) -> None:
    assert verify.verify(sound) == verify.Report(str(sound), shards=7, rows=2 * ROWS)


def test_a_sound_repository_equals_its_source(sound: Path, small_folder: Path) -> None:
    report = verify.verify(sound, str(small_folder), workers=2)
    assert report == verify.Report(str(sound), shards=7, rows=2 * ROWS, compared_rows=2 * ROWS)


def test_a_sound_repository_equals_its_source_over_http(sound: Path, server: RangeServer) -> None:
    report = verify.verify(sound, server.url)
    assert (report.findings, report.compared_rows) == ([], 2 * ROWS)


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


def test_exchanged_shards_are_two_findings(damaged: Path) -> None:
    content = (damaged / ALL_TRAIN_0).read_bytes()
    (damaged / ALL_TRAIN_1).rename(damaged / ALL_TRAIN_0)
    (damaged / ALL_TRAIN_1).write_bytes(content)
    assert files(findings(damaged)) == [ALL_TRAIN_0, ALL_TRAIN_1]


def test_labels_that_contradict_statistics_and_other_configs_are_found(damaged: Path) -> None:
    rewrite(damaged, ALL_TEST, lambda columns: columns.update(label=columns["label"][::-1]))
    line = only(findings(damaged))  # the counts are the same
    assert line.startswith("all: row ")
    assert "as in rgb" in line
    rewrite(damaged, ALL_TEST, set_value("label", slice(0, 12), [3] * 12))
    assert files(findings(damaged)) == ["all", "statistics.json"]


def test_everything_wrong_is_found_at_once(damaged: Path, small_folder: Path) -> None:
    rewrite(damaged, ALL_VALIDATION, set_value("sentinel2", (5, 1, 2, 3), 2.0))
    (damaged / RGB_TRAIN).unlink()
    (damaged / "notes.txt").touch()
    flip(damaged / ALL_TRAIN_0, 2)
    assert files(findings(damaged, small_folder)) == [RGB_TRAIN, "notes.txt", ALL_TRAIN_0, ALL_VALIDATION]


@pytest.mark.parametrize("name", [ALL_TRAIN_1, ALL_TEST])
def test_a_split_that_the_manifest_lists_in_part_is_not_compared_with_others(damaged: Path, name: str) -> None:
    edit_json(damaged / manifest.NAME, lambda content: content["shards"].pop(name))
    assert {*files(findings(damaged))} == {manifest.NAME, card.NAME}


def test_damage_in_an_incomplete_build_is_found(damaged: Path) -> None:
    (damaged / card.NAME).write_text(card.INCOMPLETE)
    flip(damaged / RGB_TEST, 0)
    assert files(findings(damaged)) == ["README.md", RGB_TEST]


# ── Against the source ───────────────────────────────────────────────────────────────────────────────────────────────


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
