"""Trains a classifier of So2Sat LCZ42 patches, measures it once on the test split and draws its confusion matrix.

One file that needs nothing but the packages below. It reads a repository that the project's build.py made: a folder, or
one on the Hugging Face Hub. `Patches` serves those who write their own loop.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "datasets>=3.6",
#     "huggingface_hub",
#     "matplotlib",
#     "numpy",
#     "pillow",
#     "scikit-learn",
#     "torch",
#     "tqdm",
# ]
# ///

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import io
import json
import math
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from huggingface_hub import snapshot_download
from tqdm import tqdm

EXAMPLES = """\
examples:
  python train.py ORG/so2sat
  python train.py ORG/so2sat --sensors rgb --epochs 30 --device cuda
  python train.py build/so2sat --model statistics
  python train.py ORG/so2sat --config all_random --sensors sentinel2 --limit 10000
  uv run train.py ORG/so2sat    # brings the packages that it needs
"""

SENSORS = {
    "rgb": ("image",),
    "sentinel1": ("sentinel1",),
    "sentinel2": ("sentinel2",),
    "both": ("sentinel1", "sentinel2"),
}
LCZ_CODES = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "A", "B", "C", "D", "E", "F", "G")
INTENSITIES = slice(4, 6)  # VH and VV intensity among the bands of Sentinel-1

Array = npt.NDArray[Any]
Batch = dict[str, Any]  # arrays or tensors by column
Bands = dict[str, list[dict[str, Any]]]  # what statistics.json has of every band of the training split, by column
Facts = dict[str, Any]  # as metrics.json and the model's file have them
Splits = dict[str, "Split"]  # train, validation and test
Predict = Callable[["Split"], Array]  # gives class indices, shape (rows,)


class TrainingError(Exception):
    """Something the user can put right. The message is one line that says what is wrong and what to do."""


# ┌───────────┐
# │  Patches  │
# └───────────┘


class Patches:
    """Batches of patches by their indices, as NumPy arrays, from views of memory-mapped Arrow.

    Indices are those of NumPy in one dimension: an integer gives a patch; a slice, a list, an array of integers or a
    mask gives a batch: a dict of arrays by column. They have the shapes (rows, 32, 32, bands), float32, for a sensor,
    (rows, 32, 32, 3), uint8, for images and (rows,), int64, for labels. A patch lacks the first axis.

        train = Patches(load_dataset("so2sat", "all", split="train"), ["sentinel2", "label"])
        batch = train[[3, 1, 2]]
        DataLoader(train, batch_size=64, shuffle=True, collate_fn=train.collate)  # slower without collate_fn
    """

    def __init__(self, dataset: datasets.Dataset, columns: Sequence[str]) -> None:
        """Maps columns of a dataset: images, sensors and labels. Images are decoded, here and only once."""
        self._rows = np.arange(len(dataset))
        tables = dataset.with_format("arrow", columns=list(columns)).iter(1024)
        blocks = [block for table in tables for block in table.to_batches()]
        self._stops = np.cumsum([len(block) for block in blocks])
        self._starts = self._stops - [len(block) for block in blocks]
        self._views: dict[str, list[Array]] = {}  # of every block, or one of the whole column; shape (rows, values)
        self._shapes: dict[str, tuple[int, ...]] = {}  # of their rows
        for name in columns:
            if isinstance(dataset.features[name], datasets.Image):
                views = [_decoded((block[name] for block in blocks), len(dataset))]
            else:
                views = [block[name].to_numpy(zero_copy_only=False) for block in blocks]
            if views[0].ndim == 1:
                views = [np.concatenate(views)]
            self._views[name] = [view.reshape(len(view), -1) for view in views]
            self._shapes[name] = views[0].shape[1:]

    def __len__(self) -> int:
        """Number of patches."""
        return len(self._rows)

    def __getitem__(self, indices: Any) -> Batch:
        """Gives a patch or a batch.

        Raises:
            IndexError: The indices are of another kind or out of range, or a mask has another length.
        """
        rows = self._rows[indices]
        if rows.ndim > 1:
            raise IndexError("patches take one index: an integer, a slice, a list, an array of integers or a mask")
        if rows.ndim == 0:
            return {name: values[0] for name, values in self[rows[None]].items()}
        return {name: self._gathered(name, rows) for name in self._views}

    def _gathered(self, name: str, rows: Array) -> Array:
        views = self._views[name]
        if len(views) == 1 or not len(rows):
            values = views[0][rows]
        else:
            blocks = np.searchsorted(self._stops, rows, side="right")
            places = zip(blocks.tolist(), (rows - self._starts[blocks]).tolist())
            values = np.concatenate([views[block][row] for block, row in places])
        return values.reshape(len(rows), *self._shapes[name])

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """Gives what PyTorch's DataLoader asks for: the rows of a batch, as tensors."""
        import torch

        return Rows({name: torch.from_numpy(values) for name, values in self[indices].items()})

    @staticmethod
    def collate(rows: Rows) -> Batch:
        """Gives a DataLoader the batch that its rows are views of, without another copy."""
        return rows.batch


@dataclass
class Rows(Sequence[Batch]):
    """A batch of tensors as a sequence of rows, which are made only if somebody looks at them."""

    batch: Batch

    @functools.cached_property
    def _rows(self) -> list[Batch]:
        return [dict(zip(self.batch, row)) for row in zip(*(values.unbind() for values in self.batch.values()))]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """Gives a row."""
        return self._rows[index]


def _decoded(blocks: Iterator[Any], rows: int) -> Array:
    """Decodes a column of images to one array, shape (rows, 32, 32, 3), uint8."""
    import PIL.Image

    images = (image["bytes"] for block in blocks for image in block.to_pylist())
    result = np.empty((rows, 32, 32, 3), np.uint8)
    for row, image in enumerate(tqdm(images, "decoding images", rows, disable=None, leave=False)):
        result[row] = np.asarray(PIL.Image.open(io.BytesIO(image)))
    return result


# ┌────────────┐
# │  The data  │
# └────────────┘


def open_repository(name: str, revision: str | None, config: str | None, sensors: str | None) -> tuple[Facts, Bands]:
    """Finds out what a repository holds, before anything large is downloaded.

    Returns:
        What metrics.json says about it, and the statistics of the bands to train on.

    Raises:
        OSError: It is not there, or not one that build.py made.
        TrainingError: It lacks what is asked for, or its values have other units than expected.
    """
    folder, is_local = Path(name), Path(name, "manifest.json").exists()
    if not is_local and (folder.exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)):
        raise TrainingError(f"{name}: give a folder that build.py made, with a manifest.json, or ORG/NAME on the Hub")
    if is_local and revision:
        raise TrainingError(f"{name} is a folder; --revision is for repositories on the Hub")
    if not is_local:
        files = ["manifest.json", "statistics.json"]
        folder = Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=files))
    if not folder.joinpath("manifest.json").exists():
        raise TrainingError(f"{name}: no manifest.json; give a repository that build.py made")
    manifest = folder.joinpath("manifest.json").read_bytes()
    sources = json.loads(manifest)["sources"].values()
    configs = json.loads(folder.joinpath("statistics.json").read_bytes())["configs"]

    config = config or ("rgb" if sensors == "rgb" or "all" not in configs else "all")
    _require([config], configs, f"{name} has no config")
    _require(["train", "test"], configs[config], f"{name}: config '{config}' has no split")
    train = configs[config]["train"]
    columns = SENSORS[sensors or ("rgb" if "image" in train["bands"] else "both")]
    _require(columns, train["bands"], f"{name}: config '{config}' has no column")
    bands = {column: train["bands"][column] for column in columns}
    _check_units(name, bands)
    facts = {
        "name": str(folder.resolve()) if is_local else name,
        "revision": None if is_local else folder.name,  # the commit: the Hub's cache has a folder for each
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),  # manifest.json has that of every file
        "synthetic": " ".join(sorted({source["synthetic"] for source in sources} - {""})),
        "config": config,
        "columns": columns,
        "classes": [*train["patches_per_class"]],
    }
    return facts, bands


def _require(wanted: Sequence[str], present: Sequence[str], complaint: str) -> None:
    for name in wanted:
        if name not in present:
            raise TrainingError(f"{complaint} '{name}', only {', '.join(present) or 'none'}; choose another --config")


def _check_units(name: str, bands: Bands) -> None:
    for column in bands:
        if empty := [band["name"] for band in bands[column] if band["percentiles"] is None]:
            raise TrainingError(f"{name}: too few numbers in {', '.join(empty)} of {column}; choose other --sensors")
    medians = {column: [band["percentiles"]["50"] for band in bands[column]] for column in bands}
    if max(medians.get("sentinel2", [0])) > 1:  # reflectance; the official medians are near 0.12
        wrong = "sentinel2 holds digital numbers, where reflectance is expected, a ten-thousandth of them"
    elif min(medians.get("sentinel1", [0] * 8)[INTENSITIES]) < 0:
        wrong = "sentinel1 holds decibels, where linear intensities are expected"
    else:
        return
    raise TrainingError(f"{name}: {wrong}; build the repository anew from the official files")


@dataclass
class Split:
    """Some rows of patches, in batches."""

    patches: Patches
    rows: Array  # indices of patches
    labels: Array  # of these rows
    given: int = 0  # rows so far
    waited: float = 0.0  # seconds that it took to get them

    def batches(self, size: int, title: str, order: Array | None = None) -> Iterator[Batch]:
        """Gives batches in order, or in the `order` of these positions, behind a progress bar."""
        rows = self.rows if order is None else self.rows[order]
        for start in tqdm(range(0, len(rows), size), title, disable=None, leave=False):
            began = time.perf_counter()
            batch = self.patches[rows[start : start + size]]
            self.waited += time.perf_counter() - began
            self.given += len(batch["label"])
            yield batch


def load_splits(facts: Facts, limit: int | None, seed: int) -> Splits:
    """Loads train, validation and test.

    Args:
        facts: What to load, from `open_repository`.
        limit: At most so many rows of each split, drawn at random; None for all.
        seed: Of the draw. Where there is no validation split, a tenth of train is drawn too and takes its place.

    Raises:
        TrainingError: `datasets` can't load it, or there is too little of it.
    """
    name, config, columns = facts["name"], facts["config"], facts["columns"]
    try:
        loaded = datasets.load_dataset(name, config, revision=facts["revision"])
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        advice = "run build.py again, then verify.py, if it is your own"
        raise TrainingError(f"{name}: datasets can't load config '{config}' ({reason}); {advice}") from error
    random = np.random.default_rng(seed)
    splits = {}
    for split, dataset in loaded.items():
        rows = np.arange(len(dataset))
        if limit and limit < len(rows):
            rows = np.sort(random.choice(rows, limit, replace=False))
            if "image" in columns:  # decode no others
                dataset, rows = dataset.select(rows), np.arange(limit)
        patches, labels = Patches(dataset, [*columns, "label"]), Patches(dataset, ["label"])[:]["label"]
        if split == "train" and "validation" not in loaded:
            drawn = random.permutation(len(rows)) < len(rows) / 10
            splits["validation"], rows = Split(patches, rows[drawn], labels[rows[drawn]]), rows[~drawn]
        splits[split] = Split(patches, rows, labels[rows])
    if len(np.unique(splits["train"].labels)) < 2:
        advice = "raise --limit" if limit else "take other data"
        raise TrainingError(f"{name}: all {len(splits['train'].rows):,} patches to train on are of one class; {advice}")
    return splits


# ┌───────────────────────────┐
# │  Models and measurements  │
# └───────────────────────────┘


def scaling(bands: Bands) -> dict[str, Array]:
    """Makes the constants of `inputs`, shape (4, bands), float32, by column: low, high, centre and scale.

    Sentinel-2 and images get mean and standard deviation of the training split, as nearly all work does. Sentinel-1 is
    clipped at percentiles, since a few reflectors are a thousand times the median and would rule mean and deviation.
    Its intensities are taken in dB, since speckle multiplies: in dB it is as strong in dark places as in bright ones.
    """
    constants = {}
    for column in bands:
        mean, std = (np.array([band[key] for band in bands[column]]) for key in ("mean", "std"))
        limits = np.full((2, len(mean)), np.nan)  # nothing else is clipped
        if column == "sentinel1":
            limits = np.array([[band["percentiles"][key] for band in bands[column]] for key in ("0.1", "99.9")])
            limits[:, INTENSITIES] = limits[:, INTENSITIES].clip(1e-6)  # -60 dB, far below the noise of the sensor
            low, high = _in_decibels(limits.copy(), np)
            mean, std = (low + high) / 2, (high - low) / 4  # limits become -2 and 2
        constants[column] = np.stack([*limits, mean, np.where(std > 0, std, 1)]).astype(np.float32)
    return constants


def inputs(batch: Batch, constants: Mapping[str, Any], library: Any = np) -> Any:
    """Turns a batch into what a model takes: all bands, Sentinel-1 first, as numbers around 0. No-data becomes 0.

    Args:
        batch: Arrays or tensors by column, shape (rows, 32, 32, bands).
        constants: What `scaling` gives, as arrays or tensors.
        library: numpy or torch: what both are made of.

    Returns:
        An array or tensor of float32, shape (rows, 32, 32, bands of all columns).
    """
    parts = []
    for column, (low, high, centre, scale) in constants.items():
        values = batch[column]
        if column == "sentinel1":
            values = _in_decibels(library.clip(values, low, high), library)
        parts.append((values - centre) / scale)
    return library.nan_to_num(library.concatenate(parts, -1), nan=0.0, posinf=0.0, neginf=0.0)


def _in_decibels(sentinel1: Any, library: Any) -> Any:
    """Sentinel-1 with its intensities, linear before, in dB. Changes the array or tensor."""
    sentinel1[..., INTENSITIES] = 10 * library.log10(sentinel1[..., INTENSITIES])
    return sentinel1


def fit_statistics(options: argparse.Namespace, splits: Splits, bands: Bands, facts: Facts) -> tuple[Predict, Facts]:
    """Fits the baseline: a linear classifier on every band's mean, standard deviation, least and greatest value."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    constants = scaling(bands)

    def features(split: Split) -> Array:
        rows = []
        for batch in split.batches(options.batch_size, "statistics of patches"):
            values = inputs(batch, constants)
            rows.append(np.concatenate([getattr(values, name)((1, 2)) for name in ("mean", "std", "min", "max")], 1))
        return np.concatenate(rows)

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(features(splits["train"]), splits["train"].labels)
    accuracy = float(model.score(features(splits["validation"]), splits["validation"].labels))
    print(f"validation accuracy {accuracy:.1%}")
    scaler, linear = model
    weights = {"mean": scaler.mean_, "scale": scaler.scale_, "coefficients": linear.coef_, "offsets": linear.intercept_}
    about = json.dumps({"bands": bands, "facts": facts})
    np.savez(options.output / "model.npz", classes=linear.classes_, about=about, **weights)
    return (lambda split: np.asarray(model.predict(features(split)))), {"validation_accuracy": accuracy}


def network(bands: int, classes: int) -> Any:
    """A small convolutional network in PyTorch: patches of shape (rows, bands, 32, 32) to logits (rows, classes)."""
    from torch import nn

    layers: list[Any] = []
    for width in (32, 64, 128, 256):
        layers += [nn.Conv2d(bands, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        bands = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(bands, classes))


def fit_cnn(options: argparse.Namespace, splits: Splits, bands: Bands, facts: Facts) -> tuple[Predict, Facts]:
    """Trains the network; the one after the best epoch so far on validation is always on the disk."""
    import torch

    torch.manual_seed(options.seed)
    random = np.random.default_rng(options.seed)
    device = _device(options.device)
    constants = {name: torch.from_numpy(values).to(device) for name, values in scaling(bands).items()}
    model = network(sum(map(len, bands.values())), len(facts["classes"])).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = options.epochs * math.ceil(len(splits["train"].rows) / options.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)

    def batches(split: Split, title: str, order: Array | None = None) -> Iterator[tuple[Any, Any]]:
        for batch in split.batches(options.batch_size, title, order):
            tensors = {name: torch.from_numpy(values).to(device) for name, values in batch.items()}
            yield inputs(tensors, constants, torch).permute(0, 3, 1, 2), tensors["label"]

    def train_once(title: str) -> float:
        model.train()
        losses = []
        for x, y in batches(splits["train"], title, random.permutation(len(splits["train"].rows))):
            x = torch.rot90(x, int(random.integers(4)), (2, 3))  # seen from above, nothing stands upright
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    def predict(split: Split) -> Array:
        model.eval()
        with torch.inference_mode():
            return np.concatenate([model(x).argmax(1).cpu().numpy() for x, _ in batches(split, "measuring")])

    path, chosen = options.output / "model.pt", {"epoch": 0.0, "validation_accuracy": -1.0}
    for epoch in range(1, options.epochs + 1):
        loss = train_once(f"epoch {epoch}")
        accuracy = float((predict(splits["validation"]) == splits["validation"].labels).mean())
        best = accuracy > chosen["validation_accuracy"]
        print(f"epoch {epoch:>3}: loss {loss:.3f}, validation accuracy {accuracy:.1%}{', best so far' if best else ''}")
        if best:
            chosen = {"epoch": epoch, "validation_accuracy": accuracy}
            kept = {"weights": model.state_dict(), "bands": bands, "facts": facts, "chosen": chosen}
            torch.save(kept, path.with_suffix(".incomplete"))
            path.with_suffix(".incomplete").replace(path)
    model.load_state_dict(torch.load(path, map_location=device)["weights"])
    return predict, chosen


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        number = torch.zeros(1, device=name)
        number.cpu()  # "meta" has no values
        return number.device
    except (RuntimeError, AssertionError) as error:  # PyTorch's, of a device that it doesn't know or have
        raise TrainingError(f"--device {name}: PyTorch has no such device here; try --device auto") from error


MODELS = {"cnn": fit_cnn, "statistics": fit_statistics}


def measure(labels: Array, predicted: Array, names: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Measures predictions: true and predicted class indices, shape (rows,). The seed is of the bootstrap.

    Returns:
        `overall_accuracy` with its 95 % `interval` by a bootstrap over patches; `average_accuracy` over the classes
        that occur; Cohen's `kappa`, and `f1` by class, None where they are not defined; `confusion`, patches by true
        class (lines) and predicted class.
    """
    from sklearn.metrics import cohen_kappa_score, confusion_matrix, f1_score

    classes, hits = np.arange(len(names)), labels == predicted
    confusion = confusion_matrix(labels, predicted, labels=classes)
    occurring = confusion.sum(1) > 0
    f1 = f1_score(labels, predicted, labels=classes, average=None, zero_division=np.nan)
    random = np.random.default_rng(seed)
    accuracies = [random.choice(hits, len(hits)).mean() for _ in range(1000)]
    is_one_class = len(np.union1d(labels, predicted)) == 1
    return {
        "overall_accuracy": float(hits.mean()),
        "interval": np.percentile(accuracies, (2.5, 97.5)).tolist(),
        "average_accuracy": float((confusion.diagonal()[occurring] / confusion.sum(1)[occurring]).mean()),
        "kappa": None if is_one_class else float(cohen_kappa_score(labels, predicted)),
        "f1": {name: None if np.isnan(value) else float(value) for name, value in zip(names, f1)},
        "confusion": confusion.tolist(),
    }


def describe(measured: Facts) -> str:
    """Says what was measured: a line a figure, then a line a class."""
    low, high = measured["interval"]
    kappa = "undefined" if measured["kappa"] is None else f"{measured['kappa']:.3f}"
    lines = [
        f"overall accuracy  {measured['overall_accuracy']:.1%}, 95 % interval {low:.1%} to {high:.1%}",
        f"average accuracy  {measured['average_accuracy']:.1%}, the mean over classes",
        f"Cohen's kappa     {kappa}",
        "",
        f"{'LCZ':>3}  {'class':<22}{'patches':>7}{'F1':>7}  most often taken for",
    ]
    names = [*measured["f1"]]
    for index, (name, row) in enumerate(zip(names, measured["confusion"])):
        f1 = "-" if measured["f1"][name] is None else f"{measured['f1'][name]:.2f}"
        wrong, other = max((patches, other) for other, patches in enumerate(row) if other != index)
        mistaken = f"{names[other]} ({wrong:,})" if wrong else "no other" if sum(row) else "-"
        lines.append(f"{LCZ_CODES[index]:>3}  {name:<22}{sum(row):>7,}{f1:>7}  {mistaken}")
    return "\n".join(lines)


def draw_confusion(measured: Facts, title: str, path: Path) -> None:
    """Draws the confusion matrix: of the test patches of each class, the share in percent taken for each class."""
    from matplotlib.figure import Figure

    patches = np.array(measured["confusion"])
    percent = 100 * patches / patches.sum(1, keepdims=True).clip(1)
    names = [f"{name} ({n:,})  {code}" for name, n, code in zip(measured["f1"], patches.sum(1), LCZ_CODES)]
    figure = Figure(figsize=(9, 8), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for line, column in np.argwhere(patches > 0):
        colour = "white" if percent[line, column] > 50 else "black"
        axes.text(column, line, f"{percent[line, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(names)), LCZ_CODES)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted LCZ, percent of the patches of a true class")
    axes.set_ylabel("true class (its test patches) and LCZ")
    axes.set_title(title, fontsize=11)
    figure.savefig(path, bbox_inches="tight")


# ┌───────────────┐
# │  The command  │
# └───────────────┘


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line: 0 for success, 1 after an error, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    options.is_training = False
    try:
        _run(options)
        return 0
    except (TrainingError, OSError, ImportError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = options.output / "model.pt"
        is_new = options.is_training and kept.exists()
        print(f"interrupted; {kept} is the best model so far" if is_new else "interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Trains a classifier of So2Sat LCZ42 patches. Validation decides which model is kept; that one is\n"
        "measured once, on test. Writes metrics.json, confusion.png and the model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="a repository that build.py made: a folder, or ORG/NAME on the Hub")
    add("--config", help="config of the repository (default: all, or rgb with --sensors rgb)")
    add("--revision", help="branch, tag or commit on the Hub (default: main)")
    add("--sensors", choices=SENSORS, help="what the model sees (default: both, or rgb in a config of images)")
    add("--model", choices=MODELS, default="cnn", help="a small network, or the baseline to beat (default: cnn)")
    add("--epochs", metavar="N", type=_positive, default=15, help="for --model cnn (default: 15)")
    add("--limit", metavar="ROWS", type=_positive, help="at most this many rows of each split, drawn at random")
    add("--batch-size", metavar="N", type=_positive, default=64, help="patches in a batch (default: 64)")
    add("--seed", metavar="S", type=_seed, default=0, help="of all that is drawn at random (default: 0)")
    add("--device", default="auto", help="for --model cnn: cpu, cuda, cuda:1, mps … (default: the fastest one here)")
    add("--output", metavar="DIR", type=Path, default=Path("trained"), help="folder to write to (default: trained)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {(1 << 32) - 1}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer")
    return int(text)


def _run(options: argparse.Namespace) -> None:
    facts, bands = open_repository(options.name, options.revision, options.config, options.sensors)
    if options.output.joinpath("manifest.json").exists():
        raise TrainingError(f"--output {options.output} is a repository; give another folder")
    if options.model == "cnn" and options.device != "auto":
        _device(options.device)  # an error now, not after an earlier run's results are gone
    options.output.mkdir(parents=True, exist_ok=True)
    splits = load_splits(facts, options.limit, options.seed)
    for name in ("model.pt", "model.npz", "metrics.json", "confusion.png"):
        options.output.joinpath(name).unlink(missing_ok=True)  # of another run
    options.is_training = True
    is_drawn = splits["validation"].patches is splits["train"].patches
    facts |= {
        **{name: getattr(options, name) for name in ("model", "seed", "limit", "batch_size")},
        "rows": {name: len(splits[name].rows) for name in ("train", "validation", "test")},
        "validation": "a tenth of train, drawn by the seed" if is_drawn else "its own split",
    }
    warning = "\nSYNTHETIC DATA: these figures say nothing about So2Sat" if facts["synthetic"] else ""
    columns = ", ".join(facts["columns"])
    print(f"{facts['name']}, config {facts['config']}: {columns}")
    counts = ", ".join(f"{name} {rows:,}" for name, rows in facts["rows"].items())
    print(f"patches: {counts}; validation is {facts['validation']}{warning}")

    began = time.perf_counter()
    predict, chosen = MODELS[options.model](options, splits, bands, facts)
    seconds = time.perf_counter() - began
    timing = {
        "seconds": seconds,
        "rows_per_second": sum(split.given for split in splits.values()) / seconds,
        "waiting_for_data": sum(split.waited for split in splits.values()) / seconds,
    }
    measured = measure(splits["test"].labels, predict(splits["test"]), facts["classes"], options.seed)
    which = f"the model of epoch {chosen['epoch']}, the best on validation" if "epoch" in chosen else "the model"
    print(f"\n{which}, measured once, on test:\n\n{describe(measured)}\n")

    title = f"{options.model} on {columns}: {measured['overall_accuracy']:.1%} of the test patches right{warning}"
    draw_confusion(measured, title, options.output / "confusion.png")
    packages = ["datasets", "numpy", "scikit-learn", *(["torch"] if options.model == "cnn" else [])]
    versions = {name: importlib.metadata.version(name) for name in packages}
    report = {**facts, "chosen": chosen, "test": measured, "timing": timing, "versions": versions}
    options.output.joinpath("metrics.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{timing['rows_per_second']:,.0f} patches/s, {timing['waiting_for_data']:.1%} of the time waiting for data")
    print(f"written to {options.output}: metrics.json, confusion.png and the model{warning}")


if __name__ == "__main__":
    sys.exit(main())
