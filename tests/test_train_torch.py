"""Training with PyTorch: the network, batches through a DataLoader, and the command. `make train` runs it."""

from __future__ import annotations

import importlib.metadata
import json
import os
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
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import build
import hub
import sample
import train
from conftest import contents, hearing

TORCH = importlib.metadata.version("torch")  # as an index has it; torch.__version__ may say more


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


# ┌──────────────┐
# │  DataLoader  │
# └──────────────┘


WAYS: dict[str, Callable[[train.Patches], DataLoader[Any]]] = {
    "as people write it": lambda patches: DataLoader(patches, batch_size=50, shuffle=True),
    "with collate": lambda patches: DataLoader(patches, batch_size=50, shuffle=True, collate_fn=patches.collate),
    "with a batch sampler": lambda patches: DataLoader(
        patches, sampler=BatchSampler(RandomSampler(patches), 50, drop_last=False), batch_size=None
    ),
    "in two processes": lambda patches: DataLoader(
        patches, batch_size=50, num_workers=2, multiprocessing_context="fork", collate_fn=patches.collate
    ),
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


def test_rows_for_a_dataloader_are_those_of_the_batch(patches: train.Patches) -> None:
    batch, rows = patches[[7, 3]], patches.__getitems__([7, 3])
    assert len(rows) == len([*rows]) == 2
    for index, row in enumerate(rows):
        assert [*row] == [*batch]
        for name, values in row.items():
            np.testing.assert_array_equal(values.numpy(), batch[name][index])


# ┌─────────┐
# │  Model  │
# └─────────┘


def tensors(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


@pytest.mark.parametrize("config", ["all", "rgb"])
def test_inputs_are_the_same_in_pytorch_and_numpy(config: str, sampled: Path) -> None:
    facts, bands = train.open_repository(str(sampled), None, config, None)
    batch, constants = train.load_splits(facts, None, 0)["test"].patches[:20], train.scaling(bands)
    found = train.inputs(tensors(batch), tensors(constants), torch)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), train.inputs(batch, constants), rtol=1e-4, atol=1e-5)


def run(*arguments: object) -> int:
    return train.main([*map(str, arguments)])


def metrics(folder: Path) -> dict[str, Any]:
    result = json.loads((folder / "metrics.json").read_text())
    assert isinstance(result, dict)
    return result


@pytest.fixture(scope="module")
def trained(sampled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training on all bands leaves."""
    folder = tmp_path_factory.mktemp("trained")
    assert run(sampled, "--epochs", 8, "--batch-size", 32, "--device", "cpu", "--output", folder) == 0
    return folder


def test_the_network_learns_the_classes(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {"metrics.json", "confusion.png", "model.pt"}
    found = metrics(trained)
    assert found["test"]["overall_accuracy"] > 0.7  # the most frequent class has 0.14
    assert found["versions"]["torch"] == TORCH
    assert 0 < found["timing"]["waiting_for_data"] <= 0.1


def test_what_is_kept_is_the_best_epoch_and_predicts_again_what_was_measured(trained: Path, sampled: Path) -> None:
    kept, found = torch.load(trained / "model.pt", weights_only=True), metrics(trained)
    assert kept["chosen"] == found["chosen"]
    assert "not measured" in kept["facts"]["synthetic"]
    constants = tensors(train.scaling(kept["bands"]))
    model = train.network(18, 17).eval()
    model.load_state_dict(kept["weights"])
    splits = train.load_splits(kept["facts"], None, 0)
    for name, accuracy in (
        ("validation", found["chosen"]["validation_accuracy"]),
        ("test", found["test"]["overall_accuracy"]),
    ):
        batch = tensors(splits[name].patches[:])
        with torch.inference_mode():
            predicted = model(train.inputs(batch, constants, torch).permute(0, 3, 1, 2)).argmax(1)
        assert float((predicted == batch["label"]).double().mean()) == pytest.approx(accuracy, abs=1e-9)


@pytest.mark.parametrize("sensors", ["rgb", "sentinel1"])
def test_the_same_seed_gives_the_same_figures(sensors: str, sampled: Path, tmp_path: Path) -> None:
    for name, seed in (("first", 5), ("second", 5), ("other", 6)):
        arguments = ("--sensors", sensors, "--epochs", 2, "--limit", 100, "--seed", seed, "--device", "cpu")
        assert run(sampled, *arguments, "--output", tmp_path / name) == 0
    first, second, other = (metrics(tmp_path / name) for name in ("first", "second", "other"))
    for found in (first, second, other):
        found.pop("timing")
    assert first == second
    assert first["test"]["confusion"] != other["test"]["confusion"]


def test_a_device_that_is_not_there_is_an_error(sampled: Path, tmp_path: Path, capsys: Any) -> None:
    for device in ("meteor", "cuda:99"):
        assert run(sampled, "--device", device, "--output", tmp_path) == 1
        assert device in capsys.readouterr().err.splitlines()[-1]


def test_after_ctrl_c_the_best_model_so_far_is_there(sampled: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-u", train.__file__, str(sampled), "--epochs", "500", "--output", str(tmp_path)]
    process = hearing(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    for line in process.stdout:
        if line.startswith(b"epoch   2"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.decode().splitlines()[-1].startswith("interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert torch.load(tmp_path / "model.pt", weights_only=True)["chosen"]["epoch"] in (1, 2, 3)


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
