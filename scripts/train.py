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
import huggingface_hub
import numpy as np
import numpy.typing as npt
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
Facts = Mapping[str, Any]  # what a model was made from
Predict = Callable[["Split"], Array]  # gives class indices of the rows of a split


class TrainingError(Exception):
    """Something the user can put right. The message is one line that says what is wrong and what to do."""


# ┌───────────┐
# │  Patches  │
# └───────────┘


class Patches:
    """Batches of patches by their indices, as NumPy arrays, from views of memory-mapped Arrow.

    Indices are those of NumPy in one dimension: an integer gives a patch; a slice, a list, an array of integers or a
    mask gives a batch: a dict of arrays by column, their shape (rows, …). Images are decoded once, to uint8.

        train = Patches(load_dataset("so2sat", "all", split="train"), ["sentinel2", "label"])
        batch = train[[3, 1, 2]]
        DataLoader(train, batch_size=64, shuffle=True, collate_fn=train.collate)  # slower without collate_fn
    """

    def __init__(self, dataset: datasets.Dataset, columns: Sequence[str]) -> None:
        """Maps columns of a dataset."""
        self._rows = np.arange(len(dataset))
        tables = dataset.with_format("arrow", columns=list(columns)).iter(1024)
        blocks = [block for table in tables for block in table.to_batches()]
        self._stops = np.cumsum([len(block) for block in blocks])
        self._starts = self._stops - [len(block) for block in blocks]
        self._columns = columns
        self._whole: dict[str, Array] = {}  # columns that are small, or decoded
        self._views: dict[str, list[Array]] = {}  # the blocks of the others, shape (rows, values)
        self._shapes: dict[str, tuple[int, ...]] = {}  # of their rows
        for name in columns:
            if isinstance(dataset.features[name], datasets.Image):
                self._whole[name] = _decoded((block[name] for block in blocks), len(dataset))
                continue
            views = [block[name].to_numpy(zero_copy_only=False) for block in blocks]
            if views[0].ndim == 1:
                self._whole[name] = np.concatenate(views)
            else:
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
        blocks = np.searchsorted(self._stops, rows, side="right")
        places = [*zip(blocks.tolist(), (rows - self._starts[blocks]).tolist())]

        def gathered(name: str) -> Array:
            views = self._views[name]
            values = [views[block][row] for block, row in places] or [views[0][:0]]
            return np.concatenate(values, axis=None).reshape(len(rows), *self._shapes[name])

        return {name: self._whole[name][rows] if name in self._whole else gathered(name) for name in self._columns}

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """Gives what PyTorch's DataLoader asks for: the rows of a batch, as tensors."""
        import torch

        return Rows({name: torch.from_numpy(values) for name, values in self[indices].items()})

    @staticmethod
    def collate(rows: Rows) -> Batch:
        """Gives a DataLoader the batch that its rows are views of, without another copy."""
        return rows.batch


class Rows(Sequence[Batch]):
    """A batch of tensors as a sequence of rows, which are made only if somebody looks at them."""

    def __init__(self, batch: Batch) -> None:
        """Takes a batch."""
        self.batch = batch

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
    """Decodes a column of images to one array, shape (rows, lines, columns, 3), uint8."""
    import PIL.Image

    encoded = (image["bytes"] for block in blocks for image in block.to_pylist())
    pixels = (np.asarray(PIL.Image.open(io.BytesIO(image))) for image in encoded)
    first = next(pixels)
    result = np.empty((rows, *first.shape), np.uint8)
    result[0] = first
    for row, image in enumerate(tqdm(pixels, "decoding images", rows, initial=1, disable=None, leave=False), 1):
        result[row] = image
    return result


# ┌──────────────────┐
# │  The repository  │
# └──────────────────┘


@dataclass
class Repository:
    """A repository, and the part of it to train on.

    Attributes:
        name: Absolute path of a folder, or ORG/NAME.
        revision: The commit on the Hub; None of a folder.
        manifest_sha256: SHA-256 of manifest.json, which has that of every file.
        synthetic: What the sources say of themselves if they were generated, else empty.
        config: Name of the config.
        columns: Names of the columns that hold patches.
        statistics: What statistics.json has of the config, by split.
    """

    name: str
    revision: str | None
    manifest_sha256: str
    synthetic: str
    config: str
    columns: tuple[str, ...]
    statistics: Mapping[str, Any]

    @property
    def bands(self) -> dict[str, Any]:
        """Statistics of every band of the training split, by column."""
        return {column: self.statistics["train"]["bands"][column] for column in self.columns}


def open_repository(name: str, revision: str | None, config: str | None, sensors: str | None) -> Repository:
    """Finds out what a repository holds, before anything large is downloaded.

    Raises:
        TrainingError: It is not there, lacks what is asked for, or its values have other units than expected.
    """
    is_folder = Path(name).is_dir()
    if not is_folder and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise TrainingError(f"{name}: no such folder; give one that build.py made, or ORG/NAME on the Hub")
    if is_folder and revision:
        raise TrainingError(f"{name} is a folder; --revision is for repositories on the Hub")
    manifest = _fetch(name, "manifest.json", revision)
    commit = None if is_folder else manifest.parent.name  # the Hub's cache has a folder for every commit
    statistics = json.loads(_fetch(name, "statistics.json", commit).read_bytes())["configs"]
    sources = json.loads(manifest.read_bytes())["sources"].values()

    config = config or ("rgb" if sensors == "rgb" or "all" not in statistics else "all")
    if config not in statistics:
        raise TrainingError(f"{name}: no config '{config}'; there are {', '.join(statistics)}")
    if missing := [split for split in ("train", "test") if split not in statistics[config]]:
        raise TrainingError(f"{name}: config '{config}' has no split '{missing[0]}'; training needs train and test")
    bands = statistics[config]["train"]["bands"]
    columns = SENSORS[sensors or ("rgb" if "image" in bands else "both")]
    if missing := [column for column in columns if column not in bands]:
        raise TrainingError(f"{name}: config '{config}' has no column '{missing[0]}'; choose another --config")
    repository = Repository(
        name=str(Path(name).resolve()) if is_folder else name,
        revision=commit,
        manifest_sha256=hashlib.sha256(manifest.read_bytes()).hexdigest(),
        synthetic=" ".join(sorted({source["synthetic"] for source in sources} - {""})),
        config=config,
        columns=columns,
        statistics=statistics[config],
    )
    _check_units(repository)
    return repository


def _fetch(name: str, file: str, revision: str | None) -> Path:
    """A file of the repository, downloaded if it is on the Hub."""
    if not Path(name).is_dir():
        return Path(huggingface_hub.hf_hub_download(name, file, repo_type="dataset", revision=revision))
    if not Path(name, file).exists():
        raise TrainingError(f"{name}: no {file}; give a folder that build.py made")
    return Path(name, file)


def _check_units(repository: Repository) -> None:
    medians = {
        column: np.array([band["percentiles"]["50"] for band in bands]) for column, bands in repository.bands.items()
    }
    if "sentinel2" in medians and medians["sentinel2"].max() > 2:  # the greatest of all official values is 2.8
        raise TrainingError(
            f"{repository.name}: sentinel2 has medians up to {medians['sentinel2'].max():g}: digital numbers, where "
            "reflectance is expected, about 0 to 1; divide the source by 10,000 and build the repository anew"
        )
    if "sentinel1" in medians and medians["sentinel1"][INTENSITIES].min() < 0:
        raise TrainingError(
            f"{repository.name}: sentinel1 has negative intensities: decibels, where linear ones are expected; "
            "build the repository from the official files"
        )


class Split:
    """Some rows of `Patches`, in batches. Counts the rows given and the seconds that it took to get them."""

    def __init__(self, patches: Patches, labels: Array, rows: Array) -> None:
        """Takes these rows of patches; `labels` are those of all patches."""
        self.patches, self.rows, self.labels = patches, rows, labels[rows]
        self.given, self.waited = 0, 0.0

    def batches(self, size: int, title: str, order: Array | None = None) -> Iterator[Batch]:
        """Gives batches in order, or in the `order` of these positions, behind a progress bar."""
        rows = self.rows if order is None else self.rows[order]
        for start in tqdm(range(0, len(rows), size), title, disable=None, leave=False):
            began = time.perf_counter()
            batch = self.patches[rows[start : start + size]]
            self.waited += time.perf_counter() - began
            self.given += len(batch["label"])
            yield batch


def load_splits(repository: Repository, limit: int | None = None, seed: int = 0) -> dict[str, Split]:
    """Loads train, validation and test.

    Args:
        repository: What to load.
        limit: At most so many rows of each split, drawn at random; None for all.
        seed: Of the draw. Where there is no validation split, a tenth of train is drawn too and takes its place.

    Raises:
        TrainingError: `datasets` can't load it, or there is too little of it.
    """
    try:
        loaded = datasets.load_dataset(repository.name, repository.config, revision=repository.revision)
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
        raise TrainingError(f"{repository.name}: datasets can't load config '{repository.config}': {error}") from error
    random = np.random.default_rng(seed)
    splits = {}
    for name in ("test", "validation", "train"):
        if name not in loaded:
            continue
        dataset, rows = loaded[name], np.arange(len(loaded[name]))
        if limit and limit < len(rows):
            rows = np.sort(random.choice(rows, limit, replace=False))
            if "image" in repository.columns:  # no others need decoding
                dataset, rows = dataset.select(rows), np.arange(limit)
        patches, labels = Patches(dataset, [*repository.columns, "label"]), Patches(dataset, ["label"])[:]["label"]
        if name == "train" and "validation" not in loaded:
            drawn = random.permutation(len(rows)) < len(rows) / 10
            splits["validation"], rows = Split(patches, labels, rows[drawn]), rows[~drawn]
        splits[name] = Split(patches, labels, rows)
    if len(np.unique(splits["train"].labels)) < 2:
        raise TrainingError(f"{repository.name}: too few patches to train on, all of one class; raise --limit")
    return splits


# ┌──────────┐
# │  Inputs  │
# └──────────┘


class Inputs:
    """Turns a batch into what a model takes: all bands, Sentinel-1 first, as numbers around 0. No-data becomes 0.

    Sentinel-2 and images are standardised as nearly all work does, with mean and deviation of the training split.
    Sentinel-1 is clipped, since a few reflectors are a thousand times the median and would rule mean and deviation; its
    intensities are in decibels, since speckle multiplies: in decibels it is as strong in dark places as in bright ones.
    """

    def __init__(self, bands: Mapping[str, Any], library: Any = np, place: Callable[[Array], Any] = np.asarray) -> None:
        """Makes the constants.

        Args:
            bands: Statistics of the bands by column, as statistics.json has them.
            library: numpy or torch: what batches are made of.
            place: Makes an array or tensor of an array, where the batches are.
        """
        self.bands = sum(map(len, bands.values()))
        self._library, self._constants = library, {}
        for column, of_column in bands.items():
            constants = _sentinel1(of_column) if column == "sentinel1" else _standard(of_column)
            self._constants[column] = [place(each.astype(np.float32)) for each in constants]

    def __call__(self, batch: Batch) -> Any:
        """Gives an array or tensor of float32, shape (rows, lines, columns, bands)."""
        parts = []
        for column, (low, high, centre, scale) in self._constants.items():
            values = batch[column]
            if column == "sentinel1":
                values = self._library.clip(values, low, high)
                values[..., INTENSITIES] = 10 * self._library.log10(values[..., INTENSITIES])
            parts.append((values - centre) / scale)
        values = self._library.concatenate(parts, -1)
        return self._library.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _standard(bands: Sequence[Any]) -> tuple[Array, Array, Array, Array]:
    mean, std, low, high = (np.array([band[key] for band in bands]) for key in ("mean", "std", "min", "max"))
    return low, high, mean, np.where(std > 0, std, 1)


def _sentinel1(bands: Sequence[Any]) -> tuple[Array, Array, Array, Array]:
    """Limits in the source's units; centre and scale, in dB for intensities, such that values lie between -2 and 2."""
    limits = np.array([[band["percentiles"][key] for band in bands] for key in ("0.1", "99.9")])
    limits[:, INTENSITIES] = limits[:, INTENSITIES].clip(1e-6)  # -60 dB, far below the noise of the sensor
    (low, high), scaled = limits, limits.copy()
    scaled[:, INTENSITIES] = 10 * np.log10(scaled[:, INTENSITIES])
    scale = (scaled[1] - scaled[0]) / 4
    return low, high, scaled.mean(0), np.where(scale > 0, scale, 1)


# ┌──────────┐
# │  Models  │
# └──────────┘
# Each is fitted to train; what there is to choose is chosen on validation. It is written to the folder `output`, and
# its predictions are returned with what was chosen.


def fit_statistics(
    options: argparse.Namespace, bands: Facts, splits: Mapping[str, Split], facts: Facts
) -> tuple[Predict, Facts]:
    """Fits the baseline: a linear classifier on every band's mean, standard deviation, least and greatest value."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    inputs = Inputs(bands)

    def features(split: Split) -> Array:
        rows = []
        for batch in split.batches(options.batch_size, "statistics of patches"):
            values = inputs(batch)
            rows.append(np.concatenate([getattr(values, name)((1, 2)) for name in ("mean", "std", "min", "max")], 1))
        return np.concatenate(rows)

    train, validation = features(splits["train"]), features(splits["validation"])
    best: Any = None
    chosen: dict[str, float] = {"validation_accuracy": -1}
    for strength in (0.01, 0.1, 1.0):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        model.fit(train, splits["train"].labels)
        accuracy = float((model.predict(validation) == splits["validation"].labels).mean())
        print(f"C {strength:>4g}: validation accuracy {accuracy:.1%}")
        if accuracy > chosen["validation_accuracy"]:
            best, chosen = model, {"C": strength, "validation_accuracy": accuracy}
    scaler, linear = best[0], best[1]
    weights = {"mean": scaler.mean_, "scale": scaler.scale_, "coefficients": linear.coef_, "offsets": linear.intercept_}
    kept = json.dumps({"bands": bands, "facts": facts, "chosen": chosen})
    np.savez(options.output / "model.npz", classes=linear.classes_, about=np.array(kept), **weights)
    return (lambda split: np.asarray(best.predict(features(split)))), chosen


def network(bands: int, classes: int) -> Any:
    """A small convolutional network in PyTorch: patches of shape (rows, bands, 32, 32) to logits (rows, classes)."""
    from torch import nn

    layers: list[Any] = []
    for width in (32, 64, 128, 256):
        layers += [nn.Conv2d(bands, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        bands = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(bands, classes))


def fit_cnn(
    options: argparse.Namespace, bands: Facts, splits: Mapping[str, Split], facts: Facts
) -> tuple[Predict, Facts]:
    """Trains the network; the one after the best epoch so far on validation is always on the disk."""
    import torch

    torch.manual_seed(options.seed)
    random = np.random.default_rng(options.seed)
    device = _device(options.device)
    inputs = Inputs(bands, torch, lambda array: torch.from_numpy(array).to(device))
    model = network(inputs.bands, len(LCZ_CODES)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = options.epochs * math.ceil(len(splits["train"].rows) / options.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)

    def batches(split: Split, title: str, order: Array | None = None) -> Iterator[tuple[Any, Any]]:
        for batch in split.batches(options.batch_size, title, order):
            tensors = {name: torch.from_numpy(values).to(device) for name, values in batch.items()}
            yield inputs(tensors).permute(0, 3, 1, 2), tensors["label"]

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

    path, chosen = options.output / "model.pt", {"validation_accuracy": -1.0}
    for epoch in range(1, options.epochs + 1):
        loss = train_once(f"epoch {epoch}")
        accuracy = float((predict(splits["validation"]) == splits["validation"].labels).mean())
        best = accuracy > chosen["validation_accuracy"]
        print(f"epoch {epoch:>3}: loss {loss:.3f}, validation accuracy {accuracy:.1%}{', best so far' * best}")
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
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # PyTorch's, of a device that it doesn't know or have
        raise TrainingError(f"--device {name}: PyTorch has no such device here; try --device auto") from error


MODELS = {"cnn": fit_cnn, "statistics": fit_statistics}


# ┌────────────────┐
# │  Measurements  │
# └────────────────┘


def measure(labels: Array, predicted: Array, names: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Measures predictions.

    Args:
        labels: True class indices, shape (rows,).
        predicted: Predicted class indices, shape (rows,).
        names: Names of the classes.
        seed: Of the bootstrap.

    Returns:
        `overall_accuracy` with its 95 % `interval` by a bootstrap over patches; `average_accuracy` over the classes
        that occur; Cohen's `kappa`, and `f1` by class, None where they are not defined; `confusion`, patches by true
        class (lines) and predicted class.
    """
    from sklearn.metrics import cohen_kappa_score, confusion_matrix, f1_score

    classes = np.arange(len(names))
    confusion = confusion_matrix(labels, predicted, labels=classes)
    f1 = f1_score(labels, predicted, labels=classes, average=None, zero_division=np.nan)
    occurring = confusion.sum(1) > 0
    hits = labels == predicted
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
        mistaken = f"{names[other]} ({wrong:,})" if wrong else "no other"
        lines.append(f"{LCZ_CODES[index]:>3}  {name:<22}{sum(row):>7,}{f1:>7}  {mistaken if sum(row) else '-'}")
    return "\n".join(lines)


def draw_confusion(measured: Facts, title: str, path: Path) -> None:
    """Draws the confusion matrix: of the test patches of each class, the share in percent taken for each class."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    patches = np.array(measured["confusion"])
    percent = 100 * patches / patches.sum(1, keepdims=True).clip(1)
    names = [f"{name} ({n:,})  {code}" for name, n, code in zip(measured["f1"], patches.sum(1), LCZ_CODES)]
    figure, axes = pyplot.subplots(figsize=(9, 8), dpi=120, layout="constrained")
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
    pyplot.close(figure)


# ┌───────────────┐
# │  The command  │
# └───────────────┘


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line: 0 for success, 1 after an error, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
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
        print("interrupted" + f"; {kept} is the best model so far" * kept.exists(), file=sys.stderr)
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
    add("--epochs", metavar="N", type=_positive, default=15, help="of cnn (default: 15)")
    add("--limit", metavar="ROWS", type=_positive, help="at most so many rows of each split, drawn at random")
    add("--batch-size", metavar="N", type=_positive, default=64, help="patches in a batch (default: 64)")
    add("--seed", metavar="S", type=int, default=0, help="of all that is drawn at random (default: 0)")
    add("--device", default="auto", help="of cnn: cpu, cuda, cuda:1, mps … (default: the fastest one here)")
    add("--output", metavar="DIR", type=Path, default=Path("trained"), help="folder to write to (default: trained)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer")
    return int(text)


def _run(options: argparse.Namespace) -> None:
    repository = open_repository(options.name, options.revision, options.config, options.sensors)
    options.output.mkdir(parents=True, exist_ok=True)
    splits = load_splits(repository, options.limit, options.seed)
    for name in ("model.pt", "model.npz", "metrics.json", "confusion.png"):
        options.output.joinpath(name).unlink(missing_ok=True)  # of another run
    validation = "its own split" if "validation" in repository.statistics else "a tenth of train, drawn by the seed"
    facts = {
        **{name: getattr(repository, name) for name in ("name", "revision", "manifest_sha256", "synthetic", "config")},
        **{name: getattr(options, name) for name in ("model", "seed", "limit", "batch_size")},
        "columns": list(repository.columns),
        "rows": {name: len(split.rows) for name, split in splits.items()},
        "validation": validation,
    }
    warning = "\nSYNTHETIC DATA: these figures say nothing about So2Sat" if repository.synthetic else ""
    print(f"{repository.name}, config {repository.config}: {', '.join(repository.columns)}")
    counts = ", ".join(f"{name} {len(splits[name].rows):,}" for name in ("train", "validation", "test"))
    print(f"patches: {counts}; validation is {validation}{warning}")

    began = time.perf_counter()
    predict, chosen = MODELS[options.model](options, repository.bands, splits, facts)
    seconds = time.perf_counter() - began
    timing = {
        "seconds": seconds,
        "rows_per_second": sum(split.given for split in splits.values()) / seconds,
        "waiting_for_data": sum(split.waited for split in splits.values()) / seconds,
    }
    test, names = splits["test"], [*repository.statistics["train"]["patches_per_class"]]
    measured = measure(test.labels, predict(test), names, options.seed)
    what = ", ".join(f"{name} {value}" for name, value in chosen.items() if name != "validation_accuracy")
    print(f"\nthe model that was best on validation ({what}), measured once, on test:\n\n{describe(measured)}\n")

    right = f"{measured['overall_accuracy']:.1%} of the test patches right"
    title = f"{options.model} on {', '.join(repository.columns)}: {right}"
    draw_confusion(measured, f"{title}{warning}", options.output / "confusion.png")
    packages = ["datasets", "numpy", "scikit-learn", *(["torch"] if options.model == "cnn" else [])]
    versions = {name: importlib.metadata.version(name) for name in packages}
    report = {**facts, "chosen": chosen, "test": measured, "timing": timing, "versions": versions}
    options.output.joinpath("metrics.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{timing['rows_per_second']:,.0f} patches/s, {timing['waiting_for_data']:.1%} of the time waiting for data")
    print(f"written to {options.output}: metrics.json, confusion.png and the model{warning}")


if __name__ == "__main__":
    sys.exit(main())
