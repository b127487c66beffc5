"""Training with PyTorch: batches of a DataLoader, models, the command, and code of the card. `make train` runs it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, RandomSampler, Subset

import build
import hub
import sample
import so2sat
import train
from conftest import contents, hearing


def importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError):  # RuntimeError: of a torchvision for another PyTorch
        return False
    return True


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the sample's classes, large enough to learn them."""
    folder = tmp_path_factory.mktemp("sampled")
    sample.write_sample(folder / "data", {"train": 512, "validation": 128, "test": 128})
    build.build(str(folder / "data"), folder / "so2sat")
    return folder / "so2sat"


@pytest.fixture(scope="module")
def patches(sampled: Path) -> train.Patches:
    dataset = datasets.load_dataset(str(sampled), "all", split="validation")
    return train.Patches(dataset, ["sentinel1", "sentinel2", "label"])


# ── DataLoader ───────────────────────────────────────────────────────────────────────────────────────────────────────


def loader(patches: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(patches, batch_size=50, shuffle=True, **options)


def workers(method: str) -> dict[str, Any]:
    return {"num_workers": 2, "multiprocessing_context": method}


WAYS: dict[str, Callable[[train.Patches], DataLoader[Any]]] = {
    "without collate": lambda patches: loader(patches),
    "with collate": lambda patches: loader(patches, collate_fn=patches.collate),
    "of two datasets": lambda patches: loader(
        ConcatDataset([Subset(patches, range(64)), Subset(patches, range(64, 128))]), collate_fn=patches.collate
    ),
    "with a batch sampler": lambda patches: DataLoader(
        patches,
        sampler=BatchSampler(RandomSampler(patches), 50, drop_last=False),
        batch_size=None,
        collate_fn=patches.collate,
    ),
    "in processes that fork": lambda patches: loader(patches, collate_fn=patches.collate, **workers("fork")),
    "in processes that spawn": lambda patches: loader(patches, collate_fn=patches.collate, **workers("spawn")),
    "in processes of a server": lambda patches: loader(patches, collate_fn=patches.collate, **workers("forkserver")),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=[*WAYS])
def test_a_dataloader_gives_every_patch_once_as_tensors(way: Any, patches: train.Patches) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch's of arrays that can't be written to
        batches = [*way(patches)]
    assert [len(batch["label"]) for batch in batches] == [50, 50, 28]
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    assert joined["label"].dtype == torch.int64
    assert joined["sentinel2"].dtype == torch.float32

    def ordered(batch: train.Batch) -> Any:
        keys = np.asarray(batch["sentinel1"]).reshape(128, -1).sum(1, dtype="f8")
        order = np.argsort(keys)
        return {name: np.asarray(values)[order] for name, values in batch.items()}

    for name, values in ordered(patches[:]).items():
        np.testing.assert_array_equal(ordered(joined)[name], values)


def test_a_dataloader_gives_single_patches(patches: train.Patches) -> None:
    first = next(iter(DataLoader(patches, batch_size=None, collate_fn=patches.collate)))
    for name, values in patches[0].items():
        np.testing.assert_array_equal(first[name], values)


# ── Model ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("config", ["all", "rgb"])
def test_inputs_are_the_same_in_pytorch_and_numpy(config: str, sampled: Path) -> None:
    repository = train.open_repository(str(sampled), None, config, None)
    batch, constants = train.load_splits(repository, None, 0)["test"].patches[:20], repository[1]
    found = train.normalise(train.Patches.collate(batch), constants)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), train.normalise(batch, constants), rtol=1e-4, atol=1e-5)


def test_patches_are_turned_each_in_one_of_eight_ways() -> None:
    patch = torch.arange(2.0 * 32 * 32).reshape(2, 32, 32)
    turned = train.turned(patch.expand(400, 2, 32, 32), np.random.default_rng(0))
    turns = [torch.rot90(view, times, (1, 2)) for view in (patch, patch.flip(2)) for times in range(4)]
    found = [sum(torch.equal(one, turn) for one in turned) for turn in turns]
    assert sum(found) == 400
    assert min(found) > 20


def run(*arguments: object) -> int:
    return train.main([*map(str, arguments), "--device", "cpu"])


def metrics(folder: Path) -> dict[str, Any]:
    result = json.loads((folder / "metrics.json").read_bytes(), parse_constant=pytest.fail)
    assert isinstance(result, dict)
    return result


def accuracies(folder: Path, sampled: Path) -> list[float]:
    """What a saved model reaches: average accuracy on validation, overall accuracy on test."""
    found, predict = metrics(folder), train.load(folder / "model.safetensors", "cpu")
    result = []
    for split in ("validation", "test"):
        rows = datasets.load_dataset(str(sampled), found["config"], split=split)
        batch = train.Patches(rows, [*found["bands"], "label"])[:]
        probabilities = predict(batch)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
        measured = train.measure(batch["label"], probabilities.argmax(1), found["classes"])
        result.append(measured["average_accuracy" if split == "validation" else "overall_accuracy"])
    return result


FILES = {"metrics.json", "confusion.png", "model.safetensors"}


@pytest.fixture(scope="module")
def trained(sampled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What training on all bands leaves, and prints."""
    folder = tmp_path_factory.mktemp("trained") / "new" / "trained"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run(sampled, "--epochs", 8, "--batch-size", 32, "--output", folder) == 0
    return folder, printed.getvalue()


def test_the_network_learns_the_classes_and_is_measured_and_drawn(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    assert {path.name for path in folder.iterdir()} == FILES
    found = metrics(folder)
    assert found["test"]["overall_accuracy"] > 0.7  # the most frequent class has 0.14
    assert np.sum(found["test"]["confusion"]) == found["rows"]["test"] == 128
    assert [*found["test"]["classes"]] == found["classes"] == [*so2sat.LABELS]
    assert (found["seed"], found["config"], found["revision"]) == (0, "all", None)
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert found["seconds"] > 0
    assert f"{found['test']['overall_accuracy']:.1%}" in printed
    assert all(name in printed for name in so2sat.LABELS)
    assert PIL.Image.open(folder / "confusion.png").format == "PNG"


def test_the_model_that_is_kept_is_that_of_the_best_epoch(trained: tuple[Path, str], sampled: Path) -> None:
    found = metrics(trained[0])
    expected = [found["chosen"]["validation_average_accuracy"], found["test"]["overall_accuracy"]]
    assert accuracies(trained[0], sampled) == pytest.approx(expected, abs=1e-9)
    said = [float(figure) for figure in re.findall(r"validation (\S+)%", trained[1])]
    assert 100 * expected[0] == pytest.approx(max(said), abs=0.05)


def test_a_saved_model_says_what_it_is(trained: tuple[Path, str]) -> None:
    with safetensors.safe_open(trained[0] / "model.safetensors", "pt") as file:
        about = {key: json.loads(text) for key, text in file.metadata().items()}
    assert about["model"] == "cnn"
    assert about["bands"]["sentinel2"] == [band.name for band in so2sat.SENTINEL2_BANDS]
    assert {name: np.shape(rows) for name, rows in about["constants"].items()} == {
        "sentinel1": (4, 8),
        "sentinel2": (2, 10),
    }
    assert "not measured" in about["synthetic"]


def test_another_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    safetensors.torch.save_file({"weight": torch.zeros(3)}, tmp_path / "foreign")
    for name in ("other", "foreign"):
        with pytest.raises(train.TrainingError, match=name):
            train.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        train.load(tmp_path / "absent")


@pytest.mark.skipif(not importable("timm"), reason="needs timm, and the torchvision of this PyTorch")
def test_a_model_of_timm_trains_on_18_bands_and_is_loaded(sampled: Path, tmp_path: Path) -> None:
    for name in ("resnet10t", "resnet10t"):  # twice: what an earlier run wrote is replaced
        options = ("--model", name, "--epochs", 2, "--limit", 100, "--lr", 0.01, "--weight-decay", 0, "--balanced")
        assert run(sampled, *options, "--output", tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert metrics(tmp_path)["balanced"]
    assert len(accuracies(tmp_path, sampled)) == 2
    assert run(sampled, "--model", "no_such_model", "--output", tmp_path / "other") == 1


@pytest.mark.parametrize("options", [("--sensors", "rgb"), ("--sensors", "sentinel1", "--balanced")])
def test_the_same_seed_gives_the_same_figures(options: tuple[str, ...], sampled: Path, tmp_path: Path) -> None:
    for name, seed in (("first", 5), ("second", 5), ("other", 6)):
        arguments = (*options, "--epochs", 2, "--limit", 100, "--seed", seed)
        assert run(sampled, *arguments, "--output", tmp_path / name) == 0
    first, second, other = (metrics(tmp_path / name) for name in ("first", "second", "other"))
    for found in (first, second, other):
        found.pop("seconds")
    assert first == second
    assert first["test"]["confusion"] != other["test"]["confusion"]


def test_synthetic_data_and_a_validation_drawn_from_train_are_said_and_others_not(
    full_repository: Path, repository: Path, tmp_path: Path, capsys: Any
) -> None:
    for folder, config, expected in ((full_repository, "rgb_random", True), (repository, "rgb", False)):
        assert run(folder, "--config", config, "--epochs", 1, "--output", tmp_path / config) == 0
        said = capsys.readouterr().out
        assert ["SYNTHETIC" in said, "a tenth of train" in said] == [expected] * 2
        assert bool(metrics(tmp_path / config)["synthetic"]) == expected


def test_a_device_that_is_not_there_is_an_error(sampled: Path, tmp_path: Path, capsys: Any) -> None:
    for device in ("meteor", "cuda:99", "meta"):
        assert train.main([str(sampled), "--device", device, "--output", str(tmp_path)]) == 1
        assert device in capsys.readouterr().err.splitlines()[-1]


def test_after_ctrl_c_the_best_model_so_far_is_there_and_what_was_there_before(
    sampled: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in shutil.copytree(trained[0], tmp_path / "out").iterdir()}
    command = [sys.executable, "-u", train.__file__, str(sampled), "--epochs", "500", "--output", str(tmp_path / "out")]
    process = hearing(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    for line in process.stdout:
        if line.startswith(b"epoch   2"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "model.safetensors.incomplete" in errors.decode().splitlines()[-1]
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    train.load(tmp_path / "out" / "model.safetensors.incomplete")
    assert after.pop("model.safetensors.incomplete")
    assert after == before


def test_it_runs_on_an_ascii_terminal_from_a_folder_with_any_name_and_names_every_encoding(
    sampled: Path, tmp_path: Path
) -> None:
    (tmp_path / "Städte \N{SNOWMAN}").symlink_to(sampled)
    command = [sys.executable, "-X", "warn_default_encoding", train.__file__, "Städte \N{SNOWMAN}", "--limit", "64"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    options = ["--epochs", "1", "--output", "Ausgabe \N{SNOWMAN}"]
    done = subprocess.run([*command, *options], cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert b"train.py" not in done.stderr  # nor does it forget an encoding
    assert {path.name for path in (tmp_path / "Ausgabe \N{SNOWMAN}").iterdir()} == FILES


# ── The card and the Hub ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(not importable("lightning"), reason="needs lightning")
def test_code_of_the_card_that_needs_pytorch_runs(
    sampled: Path, trained: tuple[Path, str], tmp_path: Path, monkeypatch: Any
) -> None:
    shutil.copytree(trained[0], tmp_path / "trained")
    shutil.copytree(sampled, tmp_path / "so2sat")
    (tmp_path / "train.py").write_text("raise AssertionError('the user's own')", encoding="utf-8")
    text = (tmp_path / "so2sat" / "README.md").read_text(encoding="utf-8")
    blocks = [
        block for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if "from train import" in block
    ]
    assert len(blocks) == 2
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True)


@pytest.mark.skipif(not shutil.which("uv"), reason="needs uv")
@pytest.mark.timeout(1800)
def test_uv_runs_the_file_from_the_hub_in_an_empty_folder(sampled: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with hub.serving(tmp_path) as server:
        server.create("org/so2sat")
        commit = server.commit("org/so2sat", contents(sampled))
        url = f"{server.endpoint}/datasets/org/so2sat/resolve/main/train.py"
        command = ["uv", "run", "--python", sys.executable, url, "org/so2sat"]
        environment = {**server.environment(), "HF_HUB_OFFLINE": "0"}
        environment.pop("PYTHONPATH", None)
        subprocess.run([*command, "--epochs", "1"], cwd=tmp_path / "empty", env=environment, check=True)
    found = metrics(tmp_path / "empty" / "trained")
    assert found["revision"] == commit.sha
    assert os.listdir(tmp_path / "empty") == ["trained"]
