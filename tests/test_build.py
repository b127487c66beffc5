"""The Parquet repository: layout, contents, card, and a build that survives what happens to builds."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.distributed import split_dataset_by_node
from hypothesis import given
from hypothesis import strategies as st

import build
import so2sat
import verify
from conftest import Arrays, RangeServer, contents, hearing, random_arrays, wait_for_a_shard, write_source
from publishing import card, files, layout

# ── Any part ──────────────────────────────────────────────────────────────────────────────────────────────────────────

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
    assert built.configs == [name for name, config in so2sat.CONFIGS.items() if config.files == files]
    told = [line for line in capsys.readouterr().out.splitlines() if "has no split" in line]
    assert len(told) == (2 if len(splits) < len(files) else 0)
    assert verify.verify(tmp_path / "so2sat", str(tmp_path / "data")).findings == []
    for config in built.configs:
        loaded = datasets.load_dataset(str(tmp_path / "so2sat"), config, cache_dir=str(tmp_path / "cache"))
        assert {split: len(rows) for split, rows in loaded.items()} == {
            split: 5 + number for number, split in enumerate(splits)
        }


# ── Layout ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(1, 400_000), st.sampled_from(sorted(layout.CONFIGS)))
def test_shards_divide_a_split_at_row_groups_into_a_power_of_two(rows: int, config: str) -> None:
    shards = layout.plan_shards(config, "train", rows, "training.h5", "jpeg")
    kind = layout.CONFIGS[config].kind
    group = layout.ROW_GROUP_ROWS[kind]
    assert [shard.start for shard in shards] == [0, *(shard.stop for shard in shards[:-1])]
    assert shards[-1].stop == rows
    assert all(shard.start < shard.stop and shard.start % group == 0 for shard in shards)
    assert len(shards).bit_count() == 1
    assert all(layout.ROW_BYTES[kind] * (shard.stop - shard.start) <= 500_000_000 for shard in shards)
    sizes = [-(-(shard.stop - shard.start) // group) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("config", "count"), [("rgb", 16), ("all", 64), ("geo", 1)])
def test_the_full_training_split_has_the_designed_number_of_shards(config: str, count: int) -> None:
    shards = layout.plan_shards(config, "train", 352_366, "training.h5", "jpeg")
    assert len(shards) == count
    assert shards[-1].name == f"{config}/train-{count - 1:05d}-of-{count:05d}.parquet"


def test_the_memory_of_a_row_is_not_underestimated() -> None:
    images = np.random.default_rng(0).integers(0, 256, (128, 32, 32, 3), dtype=np.uint8)  # do not compress
    numbers = {"label": np.zeros(128, np.int64), "sample_id": np.zeros(128, np.int64)}
    blank = {"sentinel1": np.zeros((128, 32, 32, 8), np.float32), "sentinel2": np.zeros((128, 32, 32, 10), np.float32)}
    cases: list[tuple[str, dict[str, Any], str]]
    cases = [("rgb", {"image": images, **numbers}, "jpeg"), ("rgb", {"image": images, **numbers}, "png")]
    for config, columns, image_format in [*cases, ("all", {**numbers, **blank}, "jpeg")]:
        table = layout.to_table(columns, so2sat.features(config).arrow_schema, image_format)
        assert table.nbytes / 128 <= layout.ROW_BYTES[config]


def test_content_defined_chunking_is_that_of_datasets() -> None:
    assert layout.CONTENT_DEFINED_CHUNKING == datasets.config.DEFAULT_CDC_OPTIONS


def column_chunks(path: Path) -> dict[str, Any]:
    """The first row group's column chunks by leaf path."""
    group = pq.read_metadata(path).row_group(0)
    return {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}


LEAF = ".list.element.list.element.list.element"


def test_files_are_laid_out_for_streaming_and_the_viewer(repository: Path) -> None:
    for config in ("rgb", "all"):
        group = layout.ROW_GROUP_ROWS[config]
        file = pq.ParquetFile(repository / config / "train-00000-of-00001.parquet")
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        assert [g.num_rows for g in groups] == [min(group, 300 - start) for start in range(0, 300, group)]
        for g in groups:
            assert all(g.column(i).has_offset_index for i in range(g.num_columns))
    arrays = column_chunks(repository / "all" / "train-00000-of-00001.parquet")
    assert {chunk.compression for chunk in arrays.values()} == {"ZSTD"}
    assert "BYTE_STREAM_SPLIT" in arrays[f"sentinel1{LEAF}"].encodings
    assert "RLE_DICTIONARY" in arrays[f"sentinel2{LEAF}"].encodings  # quantised reflectance
    # No reader can filter by the least and greatest value of an array, and to find them takes time.
    assert {name for name, chunk in arrays.items() if chunk.statistics} == {"label", "sample_id"}
    images = column_chunks(repository / "rgb" / "train-00000-of-00001.parquet")
    assert images["image.bytes"].compression == "UNCOMPRESSED"
    assert images["image.bytes"].statistics is None
    assert images["label"].compression == "ZSTD"


def test_reflectance_that_is_not_quantised_is_byte_stream_split(tmp_path: Path) -> None:
    arrays = {**random_arrays(70), "sen2": np.random.default_rng(0).random((70, 32, 32, 10))}
    source = str(write_source(tmp_path / "training.h5", arrays))
    shard = layout.plan_shards("all", "train", 70, source, "jpeg")[0]
    layout.write_shard(shard, tmp_path)
    assert "BYTE_STREAM_SPLIT" in column_chunks(tmp_path / shard.name)[f"sentinel2{LEAF}"].encodings


def test_a_flipped_byte_in_an_array_column_fails_its_page_checksum(repository: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(repository / "all" / "train-00000-of-00001.parquet", tmp_path))
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


def test_the_schema_carries_the_hugging_face_features(repository: Path) -> None:
    for config in ("rgb", "all"):
        schema = pq.read_schema(repository / config / "test-00000-of-00001.parquet")
        assert datasets.Features.from_arrow_schema(schema) == so2sat.features(config)


# ── Contents ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_load_dataset_gives_what_the_builder_gives(
    repository: Path, source_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository.parent)
    for config in ("rgb", "all"):
        loaded = datasets.load_dataset("so2sat", config)
        builder = so2sat.So2Sat(config_name=config, data_dir=str(source_folder), cache_dir=str(tmp_path))
        builder.download_and_prepare()
        built = builder.as_dataset()
        assert list(loaded) == list(built) == ["train", "validation", "test"]
        for split in loaded:
            assert loaded[split].features == built[split].features
            # Arrow tables, so image bytes and every bit of every float.
            ours, theirs = loaded[split].data.table.combine_chunks(), built[split].data.table.combine_chunks()
            assert ours.replace_schema_metadata() == theirs.replace_schema_metadata()


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
    for name in ("training.h5", "validation.h5"):
        write_source(tmp_path / "data" / name, arrays)
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


def test_edition_1_gives_two_splits(source_folder: Path, tmp_path: Path) -> None:
    for name in ("training.h5", "validation.h5"):
        shutil.copy(source_folder / name, tmp_path)
    build.build(str(tmp_path), tmp_path / "so2sat")
    assert list(datasets.load_dataset(str(tmp_path / "so2sat"), "all")) == ["train", "validation"]


# ── Card and manifest ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_card_tells_the_sizes_that_the_builder_measures(
    repository: Path, source_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository.parent)
    for config in ("rgb", "all"):
        told = datasets.load_dataset_builder("so2sat", config, cache_dir=str(tmp_path / "card")).info
        builder = so2sat.So2Sat(config_name=config, data_dir=str(source_folder), cache_dir=str(tmp_path))
        builder.download_and_prepare()
        for split, measured in builder.info.splits.items():
            assert told.splits[split].num_examples == measured.num_examples
            assert told.splits[split].num_bytes == measured.num_bytes
        assert told.dataset_size == builder.info.dataset_size
        assert told.download_size == sum(path.stat().st_size for path in repository.glob(f"{config}/*.parquet"))
        assert told.features == so2sat.features(config)


def test_the_repository_holds_what_it_should_and_nothing_else(repository: Path) -> None:
    files = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    shards = {f"{config}/{split}-00000-of-00001.parquet" for config in ("rgb", "all") for split in so2sat.SOURCE_FILES}
    visible = {name for name in files if not name.startswith(".")}
    assert visible == {"README.md", "manifest.json", "statistics.json", *card.PICTURES, *shards}


def test_the_manifest_tells_rows_bytes_checksums_and_sources(repository: Path, source_folder: Path) -> None:
    contents = json.loads((repository / "manifest.json").read_text())
    for name, record in contents["shards"].items():
        assert record["bytes"] == (repository / name).stat().st_size
        checksum = subprocess.run(["sha256sum", repository / name], capture_output=True, text=True, check=True).stdout
        assert record["sha256"] == checksum.split()[0]
        assert record["rows"] == pq.read_metadata(repository / name).num_rows
    assert {name: record["rows"] for name, record in contents["sources"].items()} == {
        "training.h5": 300,
        "validation.h5": 70,
        "testing.h5": 33,
    }
    assert contents["sources"]["training.h5"]["bytes"] == (source_folder / "training.h5").stat().st_size
    assert contents["versions"]["pyarrow"] == pa.__version__


def test_statistics_are_those_of_numpy_over_the_sources(repository: Path, source_arrays: dict[str, Arrays]) -> None:
    told = json.loads((repository / "statistics.json").read_text())["configs"]
    for split, arrays in source_arrays.items():
        sources: dict[str, Any] = {
            "sentinel1": arrays["sen1"].astype(np.float32),
            "sentinel2": arrays["sen2"].astype(np.float32),
            "image": so2sat.to_rgb(arrays["sen2"]),
        }
        for config in ("rgb", "all"):
            counts = np.bincount(arrays["label"].argmax(axis=1), minlength=17)
            assert told[config][split]["patches_per_class"] == dict(zip(so2sat.LABELS, counts.tolist()))
            for column, bands in told[config][split]["bands"].items():
                for band, values in zip(bands, np.moveaxis(sources[column].astype(np.float64), -1, 0)):
                    assert band["count"] == values.size
                    assert band["nonfinite"] == 0
                    assert (band["min"], band["max"]) == (values.min(), values.max())
                    assert band["mean"] == pytest.approx(values.mean(), rel=1e-9, abs=1e-9 * values.std())
                    assert band["std"] == pytest.approx(values.std(), rel=1e-9)
                    # Of one pixel in four, here without any likeness between neighbours.
                    assert band["percentiles"]["50"] == pytest.approx(np.median(values), rel=0.02, abs=0.1)


def test_lost_statistics_are_computed_again(small_copy: tuple[Path, Path], repository: Path) -> None:
    source, output = small_copy
    shutil.rmtree(output / layout.STATE_FOLDER)
    build.build(str(source), output)
    assert contents(output) == contents(repository)


def test_the_card_of_synthetic_data_says_so_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("training.h5", "validation.h5"):
        with h5py.File(write_source(tmp_path / "data" / name, random_arrays(3)), "r+") as h5:
            h5.attrs["synthetic"] = "made up for a test."
    build.build(str(tmp_path / "data"), tmp_path / "so2sat")
    text = (tmp_path / "so2sat" / "README.md").read_text().split("\n---\n", 1)[1]
    assert text.startswith("> **These data are synthetic:** made up for a test. What is said below ")
    assert "SYNTHETIC" in capsys.readouterr().out


# ── Determinism and restart ──────────────────────────────────────────────────────────────────────────────────────────


def interrupted(process: subprocess.Popen[bytes], output: Path, moment: float, how: signal.Signals) -> bool:
    """Ends a build after `moment` shards and a bit, in the middle of one; says whether it was still at work."""
    whole, part = divmod(moment, 1)
    while process.poll() is None:
        finished = len(list(output.glob("*/*.parquet")))
        if finished >= whole and list(output.glob(f"*/.*{files.INCOMPLETE_SUFFIX}")):
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
        command = [*driver, str(large_source), str(output), "--workers", "2"]
        moment = len(list(output.glob("*/*.parquet"))) + chance.uniform(0, 3)
        with hearing(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            how = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
            if not interrupted(process, output, moment, how):
                break
        kills += 1
        in_mid_shard += bool(list(output.glob(f"*/.*{files.INCOMPLETE_SUFFIX}")))
        with pytest.raises(FileNotFoundError, match="incomplete"):
            datasets.load_dataset(str(output), "rgb")
    assert kills >= 10
    assert in_mid_shard >= 5  # an incomplete shard was left behind, so it was being written
    subprocess.run([*driver, str(large_source), str(output), "--workers", "2"], check=True)
    assert contents(output) == undisturbed


@pytest.mark.parametrize("workers", ["2", "3"])
def test_the_number_of_workers_does_not_show(
    driver: list[str], large_source: Path, undisturbed: dict[str, bytes], tmp_path: Path, workers: str
) -> None:
    output = tmp_path / "so2sat"
    subprocess.run([*driver, str(large_source), str(output), "--workers", workers], check=True)
    assert contents(output) == undisturbed


def test_ctrl_c_ends_with_status_130_and_no_traceback(driver: list[str], large_source: Path, tmp_path: Path) -> None:
    output = tmp_path / "so2sat"
    command = [*driver, str(large_source), str(output), "--workers", "2"]
    with hearing(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        wait_for_a_shard(process, output)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
        error = process.communicate()[1].decode()
    assert process.returncode == 130
    assert error.strip() == "interrupted"
    assert not list(output.glob(f"*/.*{files.INCOMPLETE_SUFFIX}"))


def test_a_killed_worker_is_reported_and_loses_nothing(
    driver: list[str], large_source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "so2sat"
    command = [*driver, str(large_source), str(output), "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        wait_for_a_shard(process, output)
        subprocess.run(["pkill", "-KILL", "-P", str(process.pid), "-f", "spawn_main"], check=True)
        error = process.communicate()[1].decode()
    assert process.returncode == 1
    assert re.search(r"error: .*a worker process was killed.* \(\d+ of 42 shards are finished and kept\)", error)
    subprocess.run(command, check=True)
    assert contents(output) == undisturbed


@pytest.fixture
def small_copy(repository: Path, source_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A source folder of a test's own and a finished repository of it."""
    source = tmp_path / "source"
    shutil.copytree(source_folder, source)
    output = tmp_path / "so2sat"
    build.build(str(source), output)
    assert contents(output) == contents(repository)
    return source, output


def modification_times(folder: Path) -> dict[str, int]:
    """When each published file was written."""
    return {name: (folder / name).stat().st_mtime_ns for name in contents(folder)}


def test_a_finished_build_is_left_alone(small_copy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source, output = small_copy
    before = modification_times(output)
    build.build(str(source), output)
    assert modification_times(output) == before
    assert "up to date" in capsys.readouterr().out


def loaded_anew(output: Path, split: str) -> datasets.Dataset:
    """Config `all`, not from the cache, where `datasets` keeps repositories by their cards and so mixes up ours."""
    return datasets.load_dataset(str(output), "all", split=split, download_mode="force_redownload")


def rewritten(output: Path, before: dict[str, int]) -> set[str]:
    """Shards written since."""
    return {name for name, at in modification_times(output).items() if name.endswith("parquet") and at != before[name]}


def test_a_changed_source_rewrites_its_split_and_says_why(
    small_copy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = small_copy
    before = modification_times(output)
    with h5py.File(source / "validation.h5", "r+") as h5:
        h5["sen2"][41, 3, 3, 2] = 0.5
    build.build(str(source), output)
    assert rewritten(output, before) == {f"{config}/validation-00000-of-00001.parquet" for config in ("rgb", "all")}
    assert "validation.h5 has changed" in capsys.readouterr().out
    loaded = loaded_anew(output, "validation").with_format("numpy")
    assert loaded[41]["sentinel2"][3, 3, 2] == np.float32(0.5)


def test_a_source_that_changes_during_the_build_is_an_error_and_is_read_again(
    small_copy: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = small_copy
    write = build._write

    def write_and_change(*arguments: Any) -> None:
        write(*arguments)
        with h5py.File(source / "testing.h5", "r+") as h5:
            h5["sen2"][7, 3, 3, 2] = 0.5

    monkeypatch.setattr(build, "_write", write_and_change)
    assert build.main([str(source), str(output), "--force"]) == 1
    assert "testing.h5 was changed while it was read" in capsys.readouterr().err
    monkeypatch.undo()
    assert build.main([str(source), str(output)]) == 0
    loaded = loaded_anew(output, "test").with_format("numpy")
    assert loaded[7]["sentinel2"][3, 3, 2] == np.float32(0.5)


def test_a_split_whose_source_is_gone_is_removed_by_force_only(
    small_copy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = small_copy
    (source / "testing.h5").unlink()
    assert build.main([str(source), str(output)]) == 1
    assert "was made from testing.h5 too, which SOURCE lacks; --force" in capsys.readouterr().err
    assert len(list(output.glob("*/test-*.parquet"))) == 2
    build.build(str(source), output, force=True)
    assert "all/test-00000-of-00001.parquet is removed" in capsys.readouterr().out
    assert list(datasets.load_dataset(str(output), "rgb")) == ["train", "validation"]
    assert len(list((output / layout.STATE_FOLDER / "statistics").iterdir())) == 4


def test_synthetic_data_replace_measured_data_by_force_only(
    small_copy: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, output = small_copy
    before = contents(output)
    for name in so2sat.SOURCE_FILES.values():
        with h5py.File(write_source(tmp_path / "made-up" / name, random_arrays(20)), "r+") as h5:
            h5.attrs["synthetic"] = "made up for a test."
    command = [str(tmp_path / "made-up"), str(output)]
    assert build.main(command) == 1
    assert "holds measured data and SOURCE is synthetic; --force" in capsys.readouterr().err
    assert contents(output) == before
    assert build.main([*command, "--force"]) == 0


@pytest.mark.parametrize("lost", ["removed", "emptied"])
def test_a_change_is_noticed_though_the_record_of_the_sources_is_lost(small_copy: tuple[Path, Path], lost: str) -> None:
    source, output = small_copy
    record = output / layout.STATE_FOLDER / "sources.json"
    record.unlink() if lost == "removed" else record.write_text("")
    with h5py.File(source / "training.h5", "r+") as h5:
        h5["sen1"][101, 3, 3, 2] = 0.5  # a row that is not in the fingerprint
    build.build(str(source), output)
    loaded = loaded_anew(output, "train").with_format("numpy")
    assert loaded[101]["sentinel1"][3, 3, 2] == np.float32(0.5)


def test_a_build_killed_after_a_change_still_notices_it(
    small_copy: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = small_copy
    with h5py.File(source / "training.h5", "r+") as h5:
        h5["sen1"][101, 3, 3, 2] = 0.5
    replacing = files.replacing

    calls: list[Path] = []

    def dies(path: Path) -> Any:
        calls.append(path)
        if len(calls) > 2:  # after the manifest and the card, before the record of the sources
            raise KeyboardInterrupt
        return replacing(path)

    monkeypatch.setattr(files, "replacing", dies)
    assert build.main([str(source), str(output)]) == 130
    monkeypatch.undo()
    assert [path.name for path in calls] == ["manifest.json", "README.md", "sources.json"]
    build.build(str(source), output)
    loaded = loaded_anew(output, "train").with_format("numpy")
    assert loaded[101]["sentinel1"][3, 3, 2] == np.float32(0.5)


def test_a_manifest_with_wrong_rows_is_not_trusted(small_copy: tuple[Path, Path], repository: Path) -> None:
    source, output = small_copy
    text = (output / "manifest.json").read_text()
    (output / "manifest.json").write_text(text.replace('"rows": 33', '"rows": 7000', 1))
    build.build(str(source), output)
    assert contents(output) == contents(repository)


def test_output_must_be_a_local_folder(source_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build.main([str(source_folder), "hf://datasets/me/so2sat"])
    assert "is not a local folder" in capsys.readouterr().err


def test_the_card_of_png_images_says_so(source_folder: Path, tmp_path: Path) -> None:
    build.build(str(source_folder), tmp_path / "so2sat", configs=["rgb"], image_format="png")
    assert "the images are PNG, without loss" in (tmp_path / "so2sat" / "README.md").read_text()


def test_another_image_format_rewrites_rgb_only(
    small_copy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = small_copy
    before = modification_times(output)
    build.build(str(source), output, image_format="png")
    assert {name.split("/")[0] for name in rewritten(output, before)} == {"rgb"}
    assert "image format was jpeg, now png" in capsys.readouterr().out


def test_another_version_rewrites_everything_and_says_which(
    small_copy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = small_copy
    before = modification_times(output)
    text = (output / "manifest.json").read_text()
    (output / "manifest.json").write_text(text.replace(f'"pyarrow": "{pa.__version__}"', '"pyarrow": "1.2.3"'))
    build.build(str(source), output)
    assert len(rewritten(output, before)) == 6
    assert "pyarrow 1.2.3" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_shard_is_written_anew(
    small_copy: tuple[Path, Path], repository: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = small_copy
    path = output / "all" / "test-00000-of-00001.parquet"
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    else:
        content[1000] ^= 1
        path.write_bytes(content)
    build.build(str(source), output)
    assert contents(output) == contents(repository)
    assert "all/test-00000-of-00001.parquet is written anew" in capsys.readouterr().out


def test_force_writes_every_shard_anew(small_copy: tuple[Path, Path], repository: Path) -> None:
    source, output = small_copy
    before = modification_times(output)
    assert build.main([str(source), str(output), "--force"]) == 0
    assert len(rewritten(output, before)) == 6
    assert contents(output) == contents(repository)


def test_shards_of_another_plan_are_removed(small_copy: tuple[Path, Path]) -> None:
    source, output = small_copy
    stray = output / "rgb" / "train-00001-of-00002.parquet"
    shutil.copy(output / "rgb" / "train-00000-of-00001.parquet", stray)
    (output / "rgb" / f".x{files.INCOMPLETE_SUFFIX}").touch()
    build.build(str(source), output)
    assert sorted(path.name for path in (output / "rgb").iterdir()) == [
        f"{split}-00000-of-00001.parquet" for split in ("test", "train", "validation")
    ]


def test_configs_are_added_to_a_repository_one_by_one(source_folder: Path, repository: Path, tmp_path: Path) -> None:
    for config in ("all", "rgb"):
        build.build(str(source_folder), tmp_path / "so2sat", configs=[config])
    assert contents(tmp_path / "so2sat") == contents(repository)


def test_a_second_build_into_the_same_folder_refuses(
    source_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with build._locked(tmp_path / "so2sat"):
        assert build.main([str(source_folder), str(tmp_path / "so2sat")]) == 1
    assert "another run of this command is at work there" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", '{"versions": 3}'])
def test_a_damaged_manifest_is_named_with_what_to_do(
    small_copy: tuple[Path, Path], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = small_copy
    (output / "manifest.json").write_text(text)
    assert build.main([str(source), str(output)]) == 1
    assert re.search(r"error: .*manifest.json: not a manifest.*delete .* and build anew", capsys.readouterr().err)


@pytest.mark.parametrize("content", ["README.md", "so2sat.py", "photos"])
def test_a_folder_with_something_else_in_it_is_not_touched(
    source_folder: Path, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / content).write_text("mine")
    assert build.main([str(source_folder), str(tmp_path)]) == 1
    assert content in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [content]
    assert (tmp_path / content).read_text() == "mine"


def test_too_little_space_is_named_before_anything_is_written(
    source_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    assert build.main([str(source_folder), str(tmp_path / "so2sat")]) == 1
    message = capsys.readouterr().err
    needed = re.search(r"about (\S+) GB are needed and 0.0 GB are free", message)
    assert needed
    assert not list((tmp_path / "so2sat").glob("*/*.parquet"))


def test_a_disk_that_fills_up_keeps_the_finished_shards(
    driver: list[str], large_source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "so2sat"
    command = [*driver, str(large_source), str(output), "--workers", "2"]
    full = tmp_path / "full"
    with subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "DISK_IS_FULL": str(full)}) as process:
        wait_for_a_shard(process, output)
        full.touch()
        error = process.communicate()[1].decode()
    assert process.returncode == 1
    assert re.search(r"error: .*the disk is full.*\((\d+) of 42 shards are finished and kept\)", error)
    assert not list(output.glob(f"*/.*{files.INCOMPLETE_SUFFIX}"))
    kept = {name: at for name, at in modification_times(output).items() if name in json_shards(output)}
    subprocess.run(command, check=True)
    assert contents(output) == undisturbed
    assert kept.items() <= modification_times(output).items()


def json_shards(output: Path) -> set[str]:
    """Shards that the manifest tells of."""
    return set(json.loads((output / "manifest.json").read_text())["shards"])


# ── Sources by URL ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_build_from_a_url_is_the_same_and_reads_each_byte_about_once(
    http_source: RangeServer, source_folder: Path, repository: Path, tmp_path: Path
) -> None:
    build.build(http_source.url, tmp_path / "so2sat")
    assert contents(tmp_path / "so2sat") == contents(repository)
    sen1 = 8 * 32 * 32 * 8 * 403
    sen2 = 8 * 32 * 32 * 10 * 403
    # rgb reads sen2, all reads both; 32 rows of every file for the fingerprint, and headers.
    fingerprints = 3 * 32 * 8 * 32 * 32 * 18
    assert http_source.bytes_sent < 1.05 * (sen1 + 2 * sen2 + fingerprints)


def test_a_build_survives_a_server_that_cuts_and_refuses(
    http_source: RangeServer, repository: Path, tmp_path: Path
) -> None:
    faults: dict[int, int | str] = {3: 503, 5: "cut", 8: 429, 11: 500, 17: "cut", 40: 503, 100: "cut"}
    http_source.fault = lambda number: faults.get(number % 128)
    build.build(http_source.url, tmp_path / "so2sat", workers=2)
    assert contents(tmp_path / "so2sat") == contents(repository)
