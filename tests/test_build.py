"""Building the Parquet repository: what it holds, and that a build survives what happens to builds."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import pytest
from datasets.distributed import split_dataset_by_node

import build
import so2sat
import verify
from conftest import (
    SMALL,
    Arrays,
    contents,
    edit_json,
    hearing,
    random_arrays,
    wait_for_a_shard,
    write_source,
)
from publishing import card, files, manifest, shards
from publishing.command import CommandError
from publishing.configs import Limits
from publishing.shards import Shard
from servers import RangeServer

# ── Any part ─────────────────────────────────────────────────────────────────────────────────────────────────────────

PARTS = {
    "edition 2": so2sat.SOURCE_FILES,
    "random": so2sat.RANDOM_FILES,
}
SOME = [
    pytest.param(files, some, id=f"{part}: {', '.join(some)}")
    for part, files in PARTS.items()
    for count in range(1, len(files) + 1)
    for some in itertools.combinations(files, count)
]


@pytest.mark.parametrize(("files", "splits"), SOME)
def test_any_part_of_the_files_is_built_verified_and_loaded(
    files: dict[str, str], splits: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, split in enumerate(splits):
        write_source(tmp_path / "data" / files[split], random_arrays(5 + number))
    built = build.build(str(tmp_path / "data"), tmp_path / "so2sat")
    assert [*built.configs] == [name for name, config in so2sat.CONFIGS.items() if config.files == files]
    told = [line for line in capsys.readouterr().out.splitlines() if "has no split" in line]
    assert len(told) == (2 if len(splits) < len(files) else 0)
    assert [*verify.verify(tmp_path / "so2sat", str(tmp_path / "data"))] == []
    for config in built.configs:
        loaded = datasets.load_dataset(str(tmp_path / "so2sat"), config, cache_dir=str(tmp_path / "cache"))
        assert {split: len(rows) for split, rows in loaded.items()} == {
            split: 5 + number for number, split in enumerate(splits)
        }


# ── Contents ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_default_config_is_rgb(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository.parent)
    assert datasets.load_dataset("so2sat", split="test").column_names == ["image", "label", "sample_id"]


def test_streaming_columns_filters_and_nodes_work(
    repository: Path, source_arrays: dict[str, Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository.parent)
    stream = datasets.load_dataset("so2sat", "all", split="train", streaming=True).with_format("numpy")
    batches = list(stream.iter(128))
    np.testing.assert_array_equal(
        np.concatenate([batch["sentinel1"] for batch in batches]), source_arrays["train"]["sen1"].astype(np.float32)
    )
    one_sensor = datasets.load_dataset("so2sat", "all", split="train", streaming=True, columns=["sentinel2", "label"])
    assert set(next(iter(one_sensor))) == {"sentinel2", "label"}
    only = [("label", "==", 3)]
    filtered = datasets.load_dataset("so2sat", "all", split="train", streaming=True, filters=only)
    assert {example["label"] for example in filtered} == {3}
    # In map mode `datasets` compares what a filter leaves with the sizes in the card, unless it is told not to.
    filtered = datasets.load_dataset("so2sat", "all", split="train", filters=only, verification_mode="no_checks")
    assert set(filtered["label"]) == {3}
    halves = [len(list(split_dataset_by_node(stream, rank, 2))) for rank in (0, 1)]
    assert sum(halves) == 300


def test_values_that_are_not_finite_come_through(tmp_path: Path) -> None:
    arrays = random_arrays(3)
    arrays["sen1"][0, 0, 0, :4] = [np.nan, np.inf, -np.inf, 1e300]
    write_source(tmp_path / "data" / "training.h5", arrays)
    build.build(str(tmp_path / "data"), tmp_path / "so2sat")
    loaded = datasets.load_dataset(str(tmp_path / "so2sat"), "all", split="train").with_format("numpy")
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(loaded[:]["sentinel1"], arrays["sen1"].astype(np.float32))


def test_png_repository_holds_the_exact_pixels(
    source_folder: Path, source_arrays: dict[str, Arrays], tmp_path: Path
) -> None:
    output = tmp_path / "so2sat"
    assert build.main([str(source_folder), str(output), "--config", "rgb", "--image-format", "png"]) == 0
    loaded = datasets.load_dataset(str(output), split="test")
    pixels = np.stack([np.asarray(image) for image in loaded["image"]])
    np.testing.assert_array_equal(pixels, so2sat.to_rgb(source_arrays["test"]["sen2"]))


# ── Card and statistics ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_repository_holds_what_it_should_and_nothing_else(repository: Path) -> None:
    files = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    planned = {f"{config}/{split}-00000-of-00001.parquet" for config in ("rgb", "all") for split in so2sat.SOURCE_FILES}
    visible = {name for name in files if not name.startswith(".")}
    assert visible == {"README.md", "manifest.json", "statistics.json", "train.py", *card.PICTURES, *planned} - {
        "assets/map.png"
    }


def test_statistics_are_those_of_numpy_over_what_readers_get(repository: Path) -> None:
    told = json.loads((repository / "statistics.json").read_bytes())["configs"]
    for config, columns in (("rgb", ["image"]), ("all", ["sentinel1", "sentinel2"])):
        for split, rows in datasets.load_dataset(str(repository), config).with_format("numpy").items():
            counts = np.bincount(rows[:]["label"], minlength=17)
            assert told[config][split]["patches_per_class"] == dict(zip(so2sat.LABELS, counts.tolist()))
            for column in columns:
                pixels = np.moveaxis(np.stack(rows[:][column]).astype(np.float64), -1, 0)
                for band, values in zip(told[config][split]["bands"][column], pixels, strict=True):
                    assert (band["count"], band["nonfinite"]) == (values.size, 0)
                    assert (band["min"], band["max"]) == (values.min(), values.max())
                    assert band["mean"] == pytest.approx(values.mean(), rel=1e-9, abs=1e-9 * values.std())
                    assert band["std"] == pytest.approx(values.std(), rel=1e-9)


def test_the_card_of_synthetic_data_says_so_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(write_source(tmp_path / "data" / "training.h5", random_arrays(3)), "r+") as h5:
        h5.attrs["synthetic"] = "made up for a test."
    build.build(str(tmp_path / "data"), tmp_path / "so2sat")
    text = (tmp_path / "so2sat" / "README.md").read_text().split("\n---\n", 1)[1]
    assert text.startswith("> **These data are synthetic:** made up for a test.")
    assert "SYNTHETIC" in capsys.readouterr().out


# ── Determinism and restart ──────────────────────────────────────────────────────────────────────────────────────────


UNFINISHED = f"{shards.UNFINISHED_FOLDER}/.*.parquet.*{files.INCOMPLETE_SUFFIX}"


def interrupted(process: subprocess.Popen[bytes], output: Path, moment: float, how: signal.Signals) -> bool:
    """Ends a build after `moment` shards and a bit, in the middle of one; says whether it was still at work."""
    whole, part = divmod(moment, 1)
    while process.poll() is None:
        finished = len(list(output.glob("*/*.parquet")))
        if finished >= whole and list(output.glob(UNFINISHED)):
            time.sleep(part * 0.02)
            process.send_signal(how)
            process.wait()
            return True
        time.sleep(0.001)
    return False


def test_a_build_killed_again_and_again_ends_as_if_undisturbed(
    driver: list[str], large_source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "so2sat"
    chance = random.Random(0)
    kills, in_mid_shard = 0, 0
    while kills < 12:
        command = [*driver, str(large_source), str(output), "--workers", "12"[kills % 2]]
        moment = len(list(output.glob("*/*.parquet"))) + chance.uniform(0, 3)
        with hearing(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            how = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
            if not interrupted(process, output, moment, how):
                break
        kills += 1
        in_mid_shard += bool(list(output.glob(UNFINISHED)))
        with pytest.raises(FileNotFoundError, match="incomplete"):
            datasets.load_dataset(str(output), "rgb")
    assert kills >= 10
    assert in_mid_shard >= 5  # an incomplete shard was left behind, so it was being written
    build.build(str(large_source), output, workers=1, limits=SMALL)
    assert contents(output) == undisturbed


def test_the_number_of_workers_does_not_show(large_source: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    build.build(str(large_source), tmp_path / "so2sat", workers=2, limits=SMALL)
    assert contents(tmp_path / "so2sat") == undisturbed


def test_the_locale_does_not_show(source_folder: Path, repository: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, build.__file__, str(source_folder), str(tmp_path / "so2sat")]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path / "so2sat") == contents(repository)


def test_ctrl_c_ends_with_status_130_and_one_word(driver: list[str], large_source: Path, tmp_path: Path) -> None:
    output = tmp_path / "so2sat"
    command = [*driver, str(large_source), str(output), "--workers", "2"]
    with hearing(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True) as process:
        wait_for_a_shard(process, output)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
        error = process.communicate()[1].decode()
    assert (process.returncode, error) == (130, "interrupted\n")
    assert not list(output.glob(UNFINISHED))


def test_a_killed_worker_is_reported_and_loses_nothing(
    large_source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "so2sat"

    def kill() -> None:
        while not list(output.glob("*/*.parquet")):
            time.sleep(0.001)
        for child in multiprocessing.active_children():
            child.kill()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with pytest.raises(CommandError, match=r"a worker process was killed.* \(\d+ of 42 shards are finished and kept\)"):
        build.build(str(large_source), output, workers=2, limits=SMALL)
    thread.join()
    assert not list(output.glob(UNFINISHED))
    build.build(str(large_source), output, workers=1, limits=SMALL)
    assert contents(output) == undisturbed


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.8, 1.0])
def test_a_full_disk_is_named_and_the_next_run_completes(
    share: float,
    source_folder: Path,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "so2sat"
    puts = len(contents(repository)) + 6 + 1  # of files on the disk: manifests too, before the last
    done = itertools.count()
    replacing = files.replacing

    def full(path: Path, unfinished: Path) -> Any:
        if next(done) >= share * (puts - 1):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return replacing(path, unfinished)

    monkeypatch.setattr(files, "replacing", full)
    assert build.main([str(source_folder), str(output)]) == 1
    error = capsys.readouterr().err
    assert str(output) in error
    assert "No space left" in error
    assert error.count("\n") == 1
    monkeypatch.undo()
    finished = {name for name in contents(output) if name.endswith(".parquet")}
    before = {name: (output / name).stat().st_mtime_ns for name in finished}
    build.build(str(source_folder), output)
    assert contents(output) == contents(repository)
    told = sum((output / name).stat().st_mtime_ns != at for name, at in before.items())
    assert told <= 1  # the shard that the manifest had no room to tell of


@pytest.fixture
def small_copy(repository: Path, source_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A source folder of a test's own and a finished repository of it."""
    source = shutil.copytree(source_folder, tmp_path / "source")
    return Path(source), Path(shutil.copytree(repository, tmp_path / "so2sat"))


def modification_times(folder: Path) -> dict[str, int]:
    """When each published file was written."""
    return {name: (folder / name).stat().st_mtime_ns for name in contents(folder)}


def rewritten(output: Path, before: dict[str, int]) -> set[str]:
    """Shards written since."""
    return {name for name, at in modification_times(output).items() if name.endswith("parquet") and at != before[name]}


SHARDS = {f"{config}/{split}-00000-of-00001.parquet" for config in ("rgb", "all") for split in so2sat.SOURCE_FILES}
IMAGES = {name for name in SHARDS if name.startswith("rgb/")}
VALIDATION = {name for name in SHARDS if "validation" in name}


def test_a_finished_build_is_left_alone(small_copy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source, output = small_copy
    before = modification_times(output)
    build.build(str(source), output, workers=2)
    assert modification_times(output) == before
    assert "up to date" in capsys.readouterr().out


def test_another_label_rewrites_its_split_and_says_why(
    small_copy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = small_copy
    before = modification_times(output)
    with h5py.File(source / "validation.h5", "r+") as h5:
        h5["label"][41] = np.roll(h5["label"][41], 1)
        label = int(h5["label"][41].argmax())
    build.build(str(source), output)
    assert rewritten(output, before) == VALIDATION
    assert "rewriting 2 of 6 shards: validation.h5 has changed" in capsys.readouterr().out
    assert datasets.load_dataset(str(output), "all", split="validation")[41]["label"] == label


def test_other_pixels_rewrite_their_split_and_readers_get_them(small_copy: tuple[Path, Path]) -> None:
    source, output = small_copy
    old = datasets.load_dataset(str(output), "all", split="validation").with_format("numpy")[:]["sentinel2"]
    before = modification_times(output)
    with h5py.File(source / "validation.h5", "r+") as h5:
        h5["sen2"][...] = h5["sen2"][...] / 2
    build.build(str(source), output)
    assert rewritten(output, before) == VALIDATION
    new = datasets.load_dataset(str(output), "all", split="validation").with_format("numpy")[:]["sentinel2"]
    np.testing.assert_array_equal(new, (old.astype(np.float64) / 2).astype(np.float32))


def _another(key: str) -> Callable[[Any], Any]:
    """Another value of what decides the bytes, in every config that it decides."""

    def change(content: Any) -> None:
        for recipe in content["configs"].values():
            if key in recipe:
                recipe[key] = "another"

    return change


DECIDES: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
    "layout": (_another("layout"), SHARDS),
    "pyarrow": (_another("pyarrow"), SHARDS),
    "features": (_another("features"), SHARDS),
    "pillow": (_another("pillow"), IMAGES),
    "image": (_another("image"), IMAGES),
    "version": (lambda content: content.update(version="1.2.3"), set()),
}


@pytest.mark.parametrize("name", DECIDES)
def test_another_version_rewrites_what_it_decides_and_is_told(
    small_copy: tuple[Path, Path], repository: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = small_copy
    change, decided = DECIDES[name]
    before = modification_times(output)
    edit_json(output / manifest.NAME, change)
    build.build(str(source), output)
    assert rewritten(output, before) == decided
    assert contents(output) == contents(repository)
    assert (f"{name} was another" in capsys.readouterr().out) == bool(decided)


def test_another_quality_of_images_rewrites_them_by_itself(
    small_copy: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = small_copy
    before = modification_times(output)
    monkeypatch.setitem(so2sat.IMAGE_FORMATS, "jpeg", {**so2sat.IMAGE_FORMATS["jpeg"], "quality": 90})
    build.build(str(source), output, workers=1)
    assert rewritten(output, before) == IMAGES
    assert "JPEG of quality 90" in (output / card.NAME).read_text(encoding="utf-8")
    assert [*verify.verify(output, str(source))] == []


def test_a_repository_keeps_its_image_format_unless_another_is_asked_for(small_copy: tuple[Path, Path]) -> None:
    source, output = small_copy
    before = modification_times(output)
    build.build(str(source), output, image_format="png")
    assert rewritten(output, before) == IMAGES
    before = modification_times(output)
    assert build.build(str(source), output).image_format == "png"
    assert rewritten(output, before) == set()


@pytest.mark.parametrize("limits", [Limits(512, 32_768), Limits(2048, 65_536)])
def test_other_limits_are_sound_and_rewrite_what_they_decide(limits: Limits, small_copy: tuple[Path, Path]) -> None:
    source, output = small_copy
    for others in ({"rgb": limits}, {}):
        before = modification_times(output)
        build.build(str(source), output, limits=others)
        assert rewritten(output, before) == IMAGES
        assert [*verify.verify(output)] == []


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:1000] + b"?" + path.read_bytes()[1001:]),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "removed": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_written_anew(
    small_copy: tuple[Path, Path], repository: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = small_copy
    DAMAGES[damage](output / "all" / "test-00000-of-00001.parquet")
    build.build(str(source), output)
    assert contents(output) == contents(repository)
    assert "all/test-00000-of-00001.parquet was lost or damaged" in capsys.readouterr().out


def test_the_state_of_the_build_can_be_lost(small_copy: tuple[Path, Path], repository: Path) -> None:
    source, output = small_copy
    shutil.rmtree(output / shards.STATE_FOLDER)
    build.build(str(source), output)
    assert contents(output) == contents(repository)


def test_a_source_that_changes_during_the_build_is_an_error_and_is_read_again(
    small_copy: tuple[Path, Path], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = small_copy
    write_shard = shards.write_shard

    def write_and_touch(shard: Shard, folder: Path) -> Any:
        os.utime(source / "testing.h5")
        return write_shard(shard, folder)

    monkeypatch.setattr(shards, "write_shard", write_and_touch)
    with pytest.raises(CommandError, match=r"testing\.h5 was changed"):
        build.build(str(source), output, rewrite=True)
    with pytest.raises(FileNotFoundError, match="incomplete"):
        datasets.load_dataset(str(output), "rgb")
    monkeypatch.undo()
    before = modification_times(output)
    build.build(str(source), output)
    assert rewritten(output, before) == {name for name in SHARDS if "test" in name}
    assert contents(output) == contents(repository)


def test_a_source_of_other_configs_that_comes_during_the_build_changes_nothing(
    small_copy: tuple[Path, Path], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = small_copy
    write_shard = shards.write_shard

    def write_and_fetch(shard: Shard, folder: Path) -> Any:
        write_source(source / "block" / "testing.h5", random_arrays(3))
        return write_shard(shard, folder)

    monkeypatch.setattr(shards, "write_shard", write_and_fetch)
    build.build(str(source), output, ["rgb"], rewrite=True)
    assert contents(output) == contents(repository)


# ── Slips ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_split_whose_source_is_gone_goes_only_if_it_is_let_go(
    small_copy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = small_copy
    (source / "testing.h5").unlink()
    for options in ([], ["--rewrite"]):
        assert build.main([str(source), str(output), *options]) == 1
        error = capsys.readouterr().err
        assert "testing.h5" in error
        assert "--drop" in error
    before = modification_times(output)
    build.build(str(source), output, drop=True)
    assert rewritten(output, before) == set()
    assert list(datasets.load_dataset(str(output), "rgb")) == ["train", "validation"]
    assert len(list(output.glob("*/*.parquet"))) == 4


def test_a_source_with_other_rows_is_taken_in_only_if_all_is_rewritten(
    small_copy: tuple[Path, Path], source_arrays: dict[str, Arrays], capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = small_copy
    before = contents(output)
    write_source(source / "testing.h5", {name: rows[:17] for name, rows in source_arrays["test"].items()})
    assert build.main([str(source), str(output)]) == 1
    assert "testing.h5 with 33 rows, SOURCE's has 17" in capsys.readouterr().err
    assert contents(output) == before
    assert build.main([str(source), str(output), "--rewrite"]) == 0


def test_a_file_of_others_in_the_place_of_another_config_is_left_alone(
    small_copy: tuple[Path, Path], small_arrays: dict[str, Arrays]
) -> None:
    source, output = small_copy
    theirs = output / "rgb_random" / "train-00000-of-00001.parquet"
    theirs.parent.mkdir()
    theirs.touch()
    build.build(str(source), output, rewrite=True)
    assert theirs.exists()


def test_a_config_goes_only_if_it_is_let_go(small_copy: tuple[Path, Path]) -> None:
    source, output = small_copy
    assert [*build.build(str(source), output, ["rgb"]).configs] == ["rgb", "all"]
    assert build.main([str(source), str(output), "--config", "rgb", "--drop"]) == 0
    assert not (output / "all").exists()
    assert [*verify.verify(output, str(source))] == []


def test_synthetic_data_replace_measured_data_only_if_all_is_rewritten(
    small_copy: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, output = small_copy
    before = contents(output)
    for rows, name in enumerate(so2sat.SOURCE_FILES.values(), 20):
        with h5py.File(write_source(tmp_path / "made-up" / name, random_arrays(rows)), "r+") as h5:
            h5.attrs["synthetic"] = "made up for a test."
    for options in ([], ["--drop"]):
        assert build.main([str(tmp_path / "made-up"), str(output), *options]) == 1
        assert "--rewrite" in capsys.readouterr().err
        assert contents(output) == before
    assert build.main([str(tmp_path / "made-up"), str(output), "--rewrite"]) == 0


def test_rewrite_writes_every_shard_anew(small_copy: tuple[Path, Path], repository: Path) -> None:
    source, output = small_copy
    before = modification_times(output)
    assert build.main([str(source), str(output), "--rewrite"]) == 0
    assert rewritten(output, before) == SHARDS
    assert contents(output) == contents(repository)


@pytest.mark.parametrize("copy", [shutil.copy, os.link, os.symlink])
def test_the_same_file_under_two_names_is_refused(
    source_folder: Path, tmp_path: Path, copy: Callable[[Path, Path], Any]
) -> None:
    shutil.copy(source_folder / "testing.h5", tmp_path / "testing.h5")
    copy(tmp_path / "testing.h5", tmp_path / "validation.h5")
    with pytest.raises(CommandError, match=r"(validation|testing)\.h5: the same file as .*(validation|testing)\.h5"):
        build.build(str(tmp_path), tmp_path / "so2sat")
    assert not (tmp_path / "so2sat").exists()


def test_files_with_the_same_labels_are_not_the_same(tmp_path: Path) -> None:
    arrays = random_arrays(1)
    write_source(tmp_path / "validation.h5", arrays)
    write_source(tmp_path / "testing.h5", {**random_arrays(1, seed=1), "label": arrays["label"]})
    build.build(str(tmp_path), tmp_path / "so2sat")


def test_other_ways_to_split_hold_the_same_patches_by_nature(source_folder: Path, tmp_path: Path) -> None:
    for name in ("training.h5", "testing.h5"):
        for folder in (tmp_path, tmp_path / "random"):
            folder.mkdir(exist_ok=True)
            shutil.copy(source_folder / name, folder / name)
    built = build.build(str(tmp_path), tmp_path / "out" / "so2sat")
    assert [*built.configs] == ["rgb", "all", "rgb_random", "all_random"]


def empty_bands(arrays: Arrays) -> None:
    arrays["sen1"][..., 3] = np.nan


def digital_numbers(arrays: Arrays) -> None:
    arrays["sen2"] = arrays["sen2"] * 10_000 + 1


@pytest.mark.parametrize(
    ("config", "change", "told"),
    [
        ("rgb", digital_numbers, "reflectance"),
        ("all", digital_numbers, "reflectance"),
        ("all", empty_bands, "VV imaginary"),
    ],
)
def test_values_that_can_not_be_right_are_warned_of(
    config: str, change: Callable[[Arrays], None], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_source(tmp_path / "data" / "validation.h5", random_arrays(20))
    arrays = random_arrays(20, seed=1)
    change(arrays)
    write_source(tmp_path / "data" / "testing.h5", arrays)
    build.build(str(tmp_path / "data"), tmp_path / "so2sat", [config])
    *before, warning = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert [f"{tmp_path}/data/testing.h5" in line for line in before] == [True] * (told == "reflectance")
    assert warning.startswith(f"warning: {config}, test: ")
    assert told in warning
    assert [*verify.verify(tmp_path / "so2sat")] == []
    assert capsys.readouterr().err.splitlines() == [warning]


def test_only_what_is_named_as_a_shard_is_removed(small_copy: tuple[Path, Path]) -> None:
    source, output = small_copy
    for name in ("train-00001-of-00002.parquet", "my-notes-of-mine.parquet", ".mine.incomplete"):
        (output / "rgb" / name).touch()
    build.build(str(source), output)
    assert {path.name for path in (output / "rgb").iterdir()} == {
        *(name.removeprefix("rgb/") for name in IMAGES),
        "my-notes-of-mine.parquet",
        ".mine.incomplete",
    }


@pytest.mark.parametrize("content", ["README.md", "so2sat.py", "photos"])
def test_a_folder_with_something_else_in_it_is_not_touched(
    source_folder: Path, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / content).write_text("mine")
    assert build.main([str(source_folder), str(tmp_path)]) == 1
    assert content in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {content: "mine"}


def test_configs_are_added_to_a_repository_one_by_one(source_folder: Path, repository: Path, tmp_path: Path) -> None:
    for config in ("all", "rgb"):
        build.build(str(source_folder), tmp_path / "so2sat", configs=[config])
    assert contents(tmp_path / "so2sat") == contents(repository)


def test_a_second_build_into_the_same_folder_refuses(
    source_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with files.locked(tmp_path / "so2sat", shards.STATE_FOLDER):
        assert build.main([str(source_folder), str(tmp_path / "so2sat")]) == 1
    assert "at work there" in capsys.readouterr().err


def test_a_damaged_manifest_is_an_error(small_copy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source, output = small_copy
    (output / manifest.NAME).write_text("{")
    before = contents(output)
    assert build.main([str(source), str(output)]) == 1
    assert f"{output}/manifest.json: not a manifest" in capsys.readouterr().err
    assert contents(output) == before


def test_little_space_is_told_before_anything_is_written(
    source_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    monkeypatch.setattr(shards, "write_shard", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build.build(str(source_folder), tmp_path / "so2sat")
    assert f"warning: {tmp_path}/so2sat: up to 35 MB are needed, 1 MB are free" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["hf://datasets/me/so2sat"],
        [""],
        [b"so2sat-\xff".decode(errors="surrogateescape")],
        ["so2sat", "--workers", "0"],
        ["so2sat", "--workers", "99999999999999999999"],
        ["so2sat", "--image-format", "eps"],
    ],
)
def test_arguments_that_can_not_be_are_refused(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as error:
        build.main([str(tmp_path), *arguments])
    assert error.value.code == 2


@pytest.mark.parametrize("name", ["out:1", "a {b} c#%20", "a~b", "ä"])
def test_an_odd_name_of_the_folder_is_a_name(
    name: str, source_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(source_folder / "testing.h5", tmp_path)
    assert build.main([".", name, "--config", "rgb"]) == 0
    assert [*verify.verify(Path(name), ".")] == []
    assert datasets.load_dataset(name, "rgb", split="test").num_rows == 33


# ── Sources by URL ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_build_from_a_url_is_the_same_and_reads_each_byte_about_once(
    http_source: RangeServer, repository: Path, tmp_path: Path
) -> None:
    build.build(http_source.url, tmp_path / "so2sat")
    assert contents(tmp_path / "so2sat") == contents(repository)
    sen1, sen2 = 8 * 32 * 32 * 8, 8 * 32 * 32 * 10  # bytes a row
    fingerprints = sum(min(rows, 256) for rows in (300, 70, 33)) * (sen1 + sen2)
    assert http_source.bytes_sent < 1.05 * (403 * (sen1 + 2 * sen2) + fingerprints)  # rgb reads sen2, all reads both


def test_a_build_survives_a_server_that_cuts_and_refuses(
    http_source: RangeServer, repository: Path, tmp_path: Path
) -> None:
    faults: dict[int, int | str] = {3: 503, 5: "cut", 8: 429, 11: 500, 17: "cut", 40: 503, 100: "cut"}
    http_source.fault = lambda number: faults.get(number % 128)
    build.build(http_source.url, tmp_path / "so2sat", workers=2)
    assert contents(tmp_path / "so2sat") == contents(repository)


# ── train.py ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_repository_with_patches_has_train_py_byte_for_byte(full_repository: Path) -> None:
    content = (Path(build.__file__).with_name("train.py")).read_bytes()
    assert (full_repository / "train.py").read_bytes() == content
    built = manifest.Manifest.load(full_repository)
    assert built
    assert built.files["train.py"] == hashlib.sha256(content).hexdigest()


def test_places_alone_have_no_train_py_and_any_name(full_folder: Path, tmp_path: Path) -> None:
    build.build(str(full_folder), tmp_path / "train", ["geo"])
    assert not (tmp_path / "train" / "train.py").exists()


@pytest.mark.parametrize("name", ["train", "a[1]", "what?", "all*", "old::new", "~lcz", "a[1]/so2sat"])
def test_a_name_that_cannot_be_loaded_is_refused_before_it_is_made(
    name: str, full_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main([str(full_folder), str(tmp_path / name)]) == 1
    assert f"error: {tmp_path / name}: " in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("arguments", [["", "so2sat"], [".", ""]])
def test_an_empty_name_is_refused(
    arguments: list[str], source_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_source(tmp_path / "testing.h5", random_arrays(3))
    with pytest.raises(SystemExit, match="2"):
        build.main(arguments)
    assert not (tmp_path / "so2sat").exists()


def test_a_folder_that_cannot_be_made_is_named(
    full_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert build.main([str(full_folder), str(tmp_path / "file" / "so2sat")]) == 1
    assert f"error: {tmp_path / 'file' / 'so2sat'}: " in capsys.readouterr().err
