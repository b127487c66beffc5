"""Training as far as it needs no PyTorch: patches by index, inputs, the repository, measurements, refusals."""

from __future__ import annotations

import ast
import importlib.util
import io
import itertools
import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest

import build
import hub
import so2sat
import train
from conftest import Arrays, contents

CODE = Path(train.__file__).read_text(encoding="utf-8")
ROWS = 300  # of the training split of `repository`


# ── Patches ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def dataset(repository: Path) -> datasets.Dataset:
    return datasets.load_dataset(str(repository), "all", split="train")


@pytest.fixture(scope="module")
def patches(dataset: datasets.Dataset) -> train.Patches:
    return train.Patches(dataset, ["sentinel1", "sentinel2", "label"])


@pytest.fixture(scope="module")
def expected(source_arrays: dict[str, Arrays]) -> Arrays:
    """What `patches` are made of."""
    source = source_arrays["train"]
    return {
        "sentinel1": source["sen1"].astype("f4"),
        "sentinel2": source["sen2"].astype("f4"),
        "label": source["label"].argmax(1),
    }


MASKS = [np.arange(ROWS) % 3 == 0, (np.arange(ROWS) == 7).tolist(), np.zeros(ROWS, bool)]
OTHERS = [-1, np.int64(7), ..., slice(250, 10, -7), [299, 0, 128, 0], [-1, -300], [], np.array([200, 3], np.uint16)]


@pytest.mark.parametrize("indices", [*MASKS, *OTHERS], ids=lambda indices: str(indices)[:20])
def test_indices_mean_what_they_mean_to_numpy(indices: Any, patches: train.Patches, expected: Arrays) -> None:
    found = patches[indices]
    assert [*found] == [*expected]
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values[indices], strict=True)


OUT_OF_RANGE = [ROWS, -ROWS - 1, [0, ROWS], [True, False], np.ones(ROWS + 1, bool)]
OF_ANOTHER_KIND = [1.5, np.array([0.0, 1.0]), "label", None, True, np.arange(4).reshape(2, 2), (1, 2)]


@pytest.mark.parametrize("indices", [*OUT_OF_RANGE, *OF_ANOTHER_KIND], ids=lambda indices: str(indices)[:20])
def test_other_indices_are_errors(indices: Any, patches: train.Patches) -> None:
    with pytest.raises(IndexError):
        patches[indices]


def test_a_batch_belongs_to_its_taker(patches: train.Patches, expected: Arrays) -> None:
    for indices in (3, [3, 4], slice(3, 5)):
        for name in ("sentinel1", "sentinel2"):
            patches[indices][name][...] = 0
    np.testing.assert_array_equal(patches[3]["sentinel1"], expected["sentinel1"][3])


def test_selected_and_shuffled_datasets_keep_their_order(dataset: datasets.Dataset, expected: Arrays) -> None:
    order = np.random.default_rng(0).permutation(ROWS)[:200]
    selected = train.Patches(dataset.select(order), ["label", "sentinel2"])
    assert len(selected) == 200
    np.testing.assert_array_equal(selected[:]["sentinel2"], expected["sentinel2"][order])


def test_images_are_decoded_as_pillow_decodes_them(repository: Path) -> None:
    rgb = datasets.load_dataset(str(repository), "rgb", split="validation")
    images = train.Patches(rgb, ["image", "label"])[::-1]["image"]
    assert images.dtype == np.uint8
    rows = rgb.cast_column("image", datasets.Image(decode=False)).select(range(70)[::-1])
    for found, row in zip(images, rows, strict=True):
        np.testing.assert_array_equal(found, np.asarray(PIL.Image.open(io.BytesIO(row["image"]["bytes"]))))


@pytest.mark.parametrize("columns", [["sentinel1", "label"], ["label"], ["image", "label"]])
def test_an_empty_selection_gives_empty_batches(columns: list[str], repository: Path) -> None:
    config = "rgb" if "image" in columns else "all"
    rows = datasets.load_dataset(str(repository), config, split="test").select([])
    none, some = (
        train.Patches(rows, columns),
        train.Patches(datasets.load_dataset(str(repository), config)["test"], columns),
    )
    assert len(none) == 0
    nothing: list[Any] = [[], slice(None), np.zeros(0, bool)]
    for indices in nothing:
        for name, values in none[indices].items():
            np.testing.assert_array_equal(values, some[:0][name], strict=True)


@pytest.mark.parametrize("columns", [["sentinel1", "sentinel2", "label"], ["image", "label"]])
def test_another_process_gets_no_values_but_maps_or_decodes_them_anew(columns: list[str], repository: Path) -> None:
    config = "rgb" if "image" in columns else "all"
    patches = train.Patches(datasets.load_dataset(str(repository), config, split="train"), columns)
    pickled = pickle.dumps(patches)
    assert len(pickled) < 100_000
    for name, values in pickle.loads(pickled)[[3, 1, 299]].items():
        np.testing.assert_array_equal(values, patches[[3, 1, 299]][name], strict=True)


# ── The repository, its splits ───────────────────────────────────────────────────────────────────────────────────────


def opened(repository: Path, config: str | None = None, sensors: str | None = None) -> train.Repository:
    return train.open_repository(str(repository), None, config, sensors)


def loaded(
    repository: Path, config: str | None = None, sensors: str | None = None, limit: int | None = None, seed: int = 0
) -> train.Splits:
    return train.load_splits(opened(repository, config, sensors), limit, seed)


@pytest.mark.parametrize(
    ("config", "sensors", "found"),
    [
        (None, None, ("all", ["sentinel1", "sentinel2"])),
        (None, "sentinel1", ("all", ["sentinel1"])),
        (None, "rgb", ("rgb", ["image"])),
        ("rgb_block", None, ("rgb_block", ["image"])),
        ("rgb_random", "rgb", ("rgb_random", ["image"])),
    ],
)
def test_config_and_sensors_follow_from_each_other(
    config: str | None, sensors: str | None, found: tuple[str, list[str]], full_repository: Path
) -> None:
    facts, constants, _ = opened(full_repository, config, sensors)
    assert (facts["config"], [*facts["bands"]]) == found
    assert [*constants] == found[1]


def test_a_repository_of_edition_3_alone_needs_no_option(full_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(full_folder / "block", tmp_path / "data" / "block")
    build.build(str(tmp_path / "data"), tmp_path / "so2sat", ["rgb_block"])
    assert opened(tmp_path / "so2sat")[0]["config"] == "rgb_block"


@pytest.mark.parametrize("limit", [None, 15])
def test_without_a_validation_split_a_tenth_of_train_takes_its_place(limit: int | None, full_repository: Path) -> None:
    def drawn(seed: int) -> dict[str, list[int]]:
        splits = loaded(full_repository, "rgb_block", limit=limit, seed=seed)
        assert splits["train"].patches is splits["validation"].patches
        return {name: splits[name].rows.tolist() for name in ("train", "validation")}

    rows = limit or 23
    assert len(drawn(0)["validation"]) == np.ceil(rows / 10)
    both = drawn(0)["train"] + drawn(0)["validation"]
    assert len(both) == rows
    assert {*both} <= {*range(23)}
    assert len({*both}) == rows
    assert drawn(0) == drawn(0)
    assert len({str(drawn(seed)["validation"]) for seed in range(5)}) > 1


@pytest.mark.parametrize("sensors", ["sentinel2", "rgb"])
def test_a_limit_draws_rows_of_every_split(sensors: str, full_repository: Path) -> None:
    everything = loaded(full_repository, sensors=sensors)
    some, others = (loaded(full_repository, sensors=sensors, limit=18, seed=seed) for seed in (0, 1))
    for name, rows in (("train", 40), ("validation", 20), ("test", 17)):
        assert [len(everything[name].rows), len(some[name].rows)] == [rows, min(rows, 18)]
        counts = (np.bincount(split[name].labels, minlength=17) for split in (some, everything))
        assert (np.subtract(*counts) <= 0).all()
    first, second = (next(splits["train"].batches(64, "")) for splits in (some, others))
    assert first["label"].tolist() != second["label"].tolist()


def test_a_limit_reads_only_the_files_that_hold_so_many_rows(damaged: Path) -> None:
    damaged.joinpath("all/train-00001-of-00002.parquet").unlink()
    assert len(loaded(damaged, sensors="sentinel2", limit=80)["train"].rows) == 80
    for limit in (81, None):
        with pytest.raises(train.TrainingError):
            loaded(damaged, sensors="sentinel2", limit=limit)


@pytest.mark.parametrize(("config", "sensors"), [("all", "both"), ("all_random", "sentinel2"), ("rgb_random", "rgb")])
def test_a_split_gives_each_row_once_with_its_label(config: str, sensors: str, full_repository: Path) -> None:
    for split in loaded(full_repository, config, sensors, limit=15).values():
        order = np.random.default_rng(0).permutation(len(split.rows))
        labels = np.concatenate([batch["label"] for batch in split.batches(4, "", order)])
        np.testing.assert_array_equal(labels, split.labels[order])


TEXTS = ["", "{}", "[]", "{", "null", "7", "[" * 100_000, '{"configs": 3}', '{"configs": {"all": []}}', "\xff"]


@pytest.mark.parametrize(("name", "text"), [*itertools.product(["manifest.json", "statistics.json"], TEXTS)])
def test_other_files_of_these_names_are_refused(name: str, text: str, damaged: Path) -> None:
    opened(damaged, sensors="sentinel2")
    damaged.joinpath(name).write_text(text, encoding="latin-1")
    with pytest.raises(train.TrainingError, match=re.escape(str(damaged))):
        opened(damaged, sensors="sentinel2")


def replaced(value: Any) -> Iterator[Any]:
    """Copies of a value of JSON, each with a part of it replaced by something else or left out."""
    yield from [None, "x", 10**400]
    if isinstance(value, dict):
        for key, part in value.items():
            yield from ({**value, key: other} for other in replaced(part))
            yield {name: other for name, other in value.items() if name != key}
    elif isinstance(value, list):
        yield from ([other, *value[1:]] for other in replaced(value[0]))
        yield value[1:]


def test_statistics_with_any_part_replaced_are_refused_or_serve(damaged: Path) -> None:
    path, outcomes = damaged / "statistics.json", []
    content = json.loads(path.read_bytes())
    splits = content["configs"]["all"]
    splits["train"]["bands"].pop("sentinel1")
    for bands in replaced(splits["train"]["bands"]):
        splits["train"]["bands"] = bands
        path.write_text(json.dumps(content), encoding="utf-8")
        try:
            values = loaded(damaged, "all", limit=20)["train"].patches[:1]
            outcomes.append(train.normalise(values, opened(damaged, "all")[1]).shape == (1, 10, 32, 32))
        except train.TrainingError as error:
            outcomes.append(str(damaged) in str(error))
    assert all(outcomes)
    assert len(outcomes) > 40


# ── Inputs ───────────────────────────────────────────────────────────────────────────────────────────────────────────

Inputs = Callable[..., npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def batch(full_repository: Path) -> dict[str, Any]:
    """The whole of a training split."""
    return loaded(full_repository)["train"].patches[:]


@pytest.fixture(scope="module")
def inputs(full_repository: Path, batch: train.Batch) -> Inputs:
    """Makes inputs of the batch, or of one with other columns."""
    constants = opened(full_repository)[1]
    return lambda **changed: np.asarray(train.normalise({**batch, **changed}, constants))


def test_inputs_are_all_bands_with_sentinel1_first(batch: train.Batch, inputs: Inputs) -> None:
    values = inputs()
    assert values.shape == (40, 18, 32, 32)
    assert values.dtype == np.float32
    other = inputs(sentinel2=batch["sentinel2"][::-1])
    np.testing.assert_array_equal(other[:, :8], values[:, :8])
    np.testing.assert_array_equal(other[:, 8:], values[::-1, 8:])


def test_inputs_of_a_patch_and_of_one_sensor_are_those_of_the_batch(
    batch: train.Batch, inputs: Inputs, full_repository: Path
) -> None:
    patch, constants = {name: values[3] for name, values in batch.items()}, opened(full_repository)[1]
    np.testing.assert_array_equal(train.normalise(patch, constants), inputs()[3])
    np.testing.assert_array_equal(train.normalise({"sentinel2": patch["sentinel2"]}, constants), inputs()[3, 8:])


def test_the_copy_in_a_repository_takes_the_constants_from_there(
    full_repository: Path, batch: train.Batch, inputs: Inputs
) -> None:
    spec = importlib.util.spec_from_file_location("shipped", full_repository / "train.py")
    assert spec
    assert spec.loader
    shipped = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shipped)
    np.testing.assert_array_equal(shipped.normalise(batch), inputs())


@pytest.mark.parametrize(("sensors", "tolerance"), [("sentinel2", 1e-4), ("rgb", 0.02)])  # JPEG changes a little
def test_reflectance_and_images_have_mean_0_and_deviation_1_over_train(
    sensors: str, tolerance: float, full_repository: Path
) -> None:
    everything = loaded(full_repository, sensors=sensors)["train"].patches[:]
    values = train.normalise(everything, opened(full_repository, sensors=sensors)[1])
    assert values.dtype == np.float32
    np.testing.assert_allclose(values.mean((0, 2, 3), "f8"), 0, atol=tolerance)
    np.testing.assert_allclose(values.std((0, 2, 3), "f8"), 1, atol=tolerance)


def test_sentinel1_stays_within_2_whatever_it_holds(batch: train.Batch, inputs: Inputs) -> None:
    extreme = batch["sentinel1"].copy()
    extreme[0], extreme[1] = 1e30, -1e30
    assert np.abs(inputs(sentinel1=extreme)[:, :8]).max() <= 2.001


def test_intensities_are_in_decibels(batch: train.Batch, inputs: Inputs) -> None:
    median = np.median(batch["sentinel1"][..., 4:6])
    once, twice, four_times = (
        inputs(sentinel1=np.full_like(batch["sentinel1"], median * gain))[:, 4:6] for gain in (1, 2, 4)
    )
    assert (twice > once).all()
    np.testing.assert_allclose(four_times - twice, twice - once, rtol=1e-3)  # a factor is the same step everywhere


def test_what_is_no_number_becomes_0(batch: train.Batch, inputs: Inputs) -> None:
    broken = {name: batch[name].copy() for name in ("sentinel1", "sentinel2")}
    broken["sentinel1"][0], broken["sentinel2"][0], broken["sentinel2"][1] = np.nan, np.nan, np.inf
    values = inputs(**broken)
    assert (values[0] == 0).all()
    assert (values[1, 8:] == 0).all()
    assert np.isfinite(values).all()


def test_a_batch_stays_as_it_was(batch: train.Batch, inputs: Inputs) -> None:
    before = {name: values.copy() for name, values in batch.items()}
    inputs()
    for name, values in before.items():
        np.testing.assert_array_equal(batch[name], values)


INTERLEAVED = re.findall(
    r"s\d \d", "s1 0 s2 0 s1 1 s2 1 s1 2 s2 2 s1 3 s1 4 s2 3 s1 5 s2 4 s1 6 s2 5 s2 6 s1 7 s2 7 s2 8 s2 9"
)
SENTINEL1_FIRST = [*(f"s1 {i}" for i in range(8)), *(f"s2 {i}" for i in range(10))]
BANDS_13 = ["B2", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B8A", "B11", "B11", "B12"]  # for B1 to B12
SENTINEL2_13 = [f"s2 {[band.name for band in so2sat.SENTINEL2_BANDS].index(name)}" for name in BANDS_13]


@pytest.mark.parametrize(
    ("form", "order", "factor"),
    [
        ("torchgeo", SENTINEL1_FIRST, 1),
        ("geobench", SENTINEL1_FIRST, 1),
        ("terratorch", INTERLEAVED, 1),
        ("sentinel2-13", SENTINEL2_13, 10_000),
    ],
)
def test_patches_take_the_forms_that_others_expect(
    form: str, order: list[str], factor: int, batch: train.Batch
) -> None:
    bands = {f"s1 {i}": batch["sentinel1"][..., i] for i in range(8)}
    bands |= {f"s2 {i}": batch["sentinel2"][..., i] for i in range(10)}
    needed = {"s1": "sentinel1", "s2": "sentinel2"}
    given = {needed[name[:2]]: batch[needed[name[:2]]] for name in order}  # no others
    found = train.as_evaluated(given, form)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, np.stack([factor * bands[name] for name in order], axis=1), strict=True)
    patch = {name: values[3] for name, values in given.items()}
    np.testing.assert_array_equal(train.as_evaluated(patch, form), found[3], strict=True)


def test_a_form_that_nobody_expects_is_an_error() -> None:
    with pytest.raises(ValueError, match="terratorch"):
        train.as_evaluated({}, "tfds")


# ── Measurements ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_figures_are_those_computed_by_hand() -> None:
    true, predicted = np.array([0] * 6 + [1] * 3 + [2]), np.array([0, 0, 0, 0, 0, 1, 1, 1, 0, 2])
    measured = train.measure(true, predicted, ["a", "b", "c", "d"])
    assert measured["confusion"] == [[5, 1, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert measured["overall_accuracy"] == pytest.approx(8 / 10)
    assert measured["average_accuracy"] == pytest.approx((5 / 6 + 2 / 3 + 1) / 3)
    chance = (6 * 6 + 3 * 3 + 1 * 1) / 100
    assert measured["kappa"] == pytest.approx((0.8 - chance) / (1 - chance))
    f1 = {name: found["f1-score"] for name, found in measured["classes"].items()}
    assert f1 == {"a": pytest.approx(5 / 6), "b": pytest.approx(2 / 3), "c": 1, "d": None}
    assert [found["support"] for found in measured["classes"].values()] == [6, 3, 1, 0]
    json.dumps(measured, allow_nan=False)


def test_the_interval_is_about_two_standard_errors_to_both_sides() -> None:
    true = np.zeros(2500, int)
    predicted = (np.arange(2500) % 5 == 0).astype(int)  # 80 % right: standard error 0.8 %
    low, high = train.measure(true, predicted, ["a", "b"])["interval"]
    assert low == pytest.approx(0.8 - 1.96 * 0.008, abs=0.003)
    assert high == pytest.approx(0.8 + 1.96 * 0.008, abs=0.003)


def test_perfect_predictions_of_one_class_leave_kappa_undefined() -> None:
    measured = train.measure(np.array([1, 1]), np.array([1, 1]), ["a", "b"])
    assert (measured["overall_accuracy"], measured["average_accuracy"], measured["kappa"]) == (1, 1, None)
    assert "undefined" in train.describe(measured)


def test_a_class_that_is_predicted_but_does_not_occur_counts_against_the_others_alone() -> None:
    measured = train.measure(np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1]), ["a", "b", "c"])
    assert measured["average_accuracy"] == pytest.approx(0.75)
    assert measured["classes"]["c"]["f1-score"] == 0


def test_the_table_names_the_class_that_another_is_taken_for() -> None:
    measured = train.measure(np.array([0] * 5 + [1]), np.array([0, 1, 1, 2, 0, 1]), ["cat", "dog", "cow"])
    cat, dog, cow = train.describe(measured).splitlines()[-3:]
    assert cat.split() == ["1", "cat", "5", "0.57", "dog", "(2)"]
    assert dog.split()[:4] == ["2", "dog", "1", "0.50"]
    assert cow.split() == ["3", "cow", "0", "0.00", "-"]


# ── The command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def refused(*arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that is refused."""
    capsys.readouterr()
    assert train.main([*map(str, arguments)]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "it/s" not in line)
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere/at/all"], "nowhere/at/all"),
        (["{data}"], "manifest.json"),
        (["{repository}", "--config", "all_culture"], "rgb_random"),
        (["{repository}", "--config", "geo"], "geo"),
        (["{repository}", "--config", "rgb", "--sensors", "both"], "sentinel1"),
        (["{repository}", "--config", "all_random", "--sensors", "rgb"], "image"),
        (["{repository}", "--revision", "main"], "--revision"),
        (["{repository}", "--output", "{repository}"], "--output"),
        (["{repository}", "--output", "{repository}/README.md"], "README.md"),
    ],
)
def test_an_error_is_one_line_that_says_what_is_wrong(
    arguments: list[str], said: str, full_folder: Path, full_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {"data": full_folder, "repository": full_repository}
    assert said in refused(*(argument.format(**folders) for argument in arguments), capsys=capsys)


@pytest.mark.parametrize(
    "held",
    [
        {"model.pt": "mine"},
        {"model.safetensors": "mine"},
        {"metrics.json": "mine"},
        {"metrics.json": '{"accuracy": 1}', "model.safetensors": "mine"},
        {"metrics.json": "[]", "model.safetensors.incomplete": "mine"},
    ],
)
def test_a_folder_of_others_is_left_alone(
    held: dict[str, str], full_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    for name, text in held.items():
        tmp_path.joinpath(name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert min(held) in refused(full_repository, "--output", ".", capsys=capsys)
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == held


@pytest.mark.parametrize(
    ("present", "absent"),
    [(["training.h5", "validation.h5"], "test"), (["validation.h5", "testing.h5"], "train")],
)
def test_a_repository_without_train_or_test_is_refused(
    present: list[str], absent: str, source_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    for name in present:
        (tmp_path / "data" / name).symlink_to(source_folder / name)
    build.build(str(tmp_path / "data"), tmp_path / "so2sat", ["rgb"])
    with pytest.raises(train.TrainingError, match=absent):
        opened(tmp_path / "so2sat")


@pytest.mark.parametrize(
    "option",
    [
        ["--epochs", "0"],
        ["--limit", "-1"],
        ["--batch-size", "x"],
        ["--sensors", "lidar"],
        ["--lr", "nan"],
        ["--seed", "-1"],
    ],
)
def test_a_wrong_option_is_refused(option: list[str], full_repository: Path) -> None:
    with pytest.raises(SystemExit) as exit_:
        train.main([str(full_repository), *option])
    assert exit_.value.code == 2


def test_a_missing_package_is_named(full_repository: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch" in refused(full_repository, "--output", tmp_path / "new", capsys=capsys)


HUB_USER = """
import sys, train
repository = train.open_repository("org/so2sat", sys.argv[1], None, None)
train.load_splits(repository, 8, 0)
print(*{"torch", "sklearn", "matplotlib"} & {*sys.modules}, file=sys.stderr)
print(repository[0]["revision"])
train.main(["org/other"])
"""


def test_a_repository_on_the_hub_is_read_at_its_revision(full_repository: Path, tmp_path: Path) -> None:
    with hub.serving(tmp_path) as server:
        server.create("org/so2sat")
        commit = server.commit("org/so2sat", contents(full_repository))
        of_no_use = dict.fromkeys(("README.md", "statistics.json", "manifest.json"), b"{}")
        server.commit("org/so2sat", of_no_use)  # later
        environment = {**server.environment(), "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(Path(train.__file__).parent)}
        command = [sys.executable, "-c", HUB_USER, commit.sha]
        done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert done.stdout.split() == [commit.sha]
    packages, error = done.stderr.splitlines()[-2:]
    assert not packages, "Patches need no package for models"
    assert re.match("error: .*org/other", error)


def test_the_file_stands_alone() -> None:
    (head,) = re.findall(r"^# /// script\n(.*?)^# ///$", CODE, re.MULTILINE | re.DOTALL)
    names = [re.split(r"\W", name)[0] for name in re.findall(r'"(.+?)",', head)]
    installed = {"scikit": "sklearn", "pillow": "PIL"}
    allowed = {installed.get(name, name) for name in names} | {*sys.stdlib_module_names}
    imported = set()
    for node in ast.walk(ast.parse(CODE)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert imported <= allowed
    assert {"torch", "sklearn"} <= imported
