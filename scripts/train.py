"""Trains a classifier of So2Sat LCZ42 patches, measures it once on the test split and draws its confusion matrix.

One file that needs nothing but the packages below. It reads a repository that the project's build.py made: a folder, or
one on the Hugging Face Hub. For a loop of your own import `Patches`, `normalise`, `as_evaluated` and `load`.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "datasets>=3.6",
#     "huggingface_hub",
#     "matplotlib",
#     "numpy",
#     "pillow",
#     "safetensors",
#     "scikit-learn",
#     "timm",
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
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import numpy.typing as npt
from huggingface_hub import snapshot_download
from tqdm import tqdm

EXAMPLES = """\
examples:
  uv run train.py ORG/so2sat    # brings the packages that it needs
  python train.py ORG/so2sat --limit 5000
  python train.py ORG/so2sat --sensors rgb --model resnet18 --epochs 30 --device cuda
  python train.py build/so2sat --config all_random --sensors sentinel2 --balanced
"""

BOTH = ("sentinel1", "sentinel2")
SENSORS = {"rgb": ("image",), "sentinel1": BOTH[:1], "sentinel2": BOTH[1:], "both": BOTH}
COLUMNS = ("image", *BOTH)  # in the order of a model's bands
INTENSITIES = slice(4, 6)  # VH and VV intensity among the bands of Sentinel-1
LCZ_CODES = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "A", "B", "C", "D", "E", "F", "G")
MODEL, METRICS, PICTURE = "model.safetensors", "metrics.json", "confusion.png"
INCOMPLETE = ".incomplete"  # ends the name of the best model so far
WRITER = "train.py of So2Sat LCZ42"
# What reading raises where something else was written than build.py or this file write.
FOREIGN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

Array = npt.NDArray[Any]
Batch = Mapping[str, Any]  # arrays or tensors by column
Constants = Mapping[str, Array]  # what `scaling` gives
Facts = dict[str, Any]  # as metrics.json and the model's file have them
Repository = tuple[Facts, dict[str, Array], dict[str, dict[str, int]]]  # the latter: rows of every file, by split
Splits = dict[str, "Split"]  # train, validation and test
Predict = Callable[[Batch], Array]  # gives probabilities, shape (rows, 17)


class TrainingError(Exception):
    """Something the user can put right. The message is one line that says what is wrong and what to do."""


# ── Patches ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Patches:
    """Batches of patches by their indices, as NumPy arrays, from views of memory-mapped Arrow.

    Indices are those of NumPy in one dimension: an integer gives a patch; a slice, a list, an array of integers or a
    mask gives a batch: a dict of arrays by column. They have the shapes (rows, 32, 32, bands), float32, for a sensor,
    (rows, 32, 32, 3), uint8, for images and (rows,), int64, for labels. A patch lacks the first axis.

        train = Patches(load_dataset("so2sat", "all", split="train"), ["sentinel2", "label"])
        batch = train[[3, 1, 2]]
        DataLoader(train, batch_size=64, shuffle=True, collate_fn=train.collate)  # slower without collate_fn

    What another process gets is the dataset and the columns: it maps the same files, and decodes images again.
    """

    def __init__(self, dataset: datasets.Dataset, columns: Sequence[str]) -> None:
        """Maps columns of a dataset: images, sensors and labels. Images are decoded, here and only once."""
        self._source = (dataset, tuple(columns))
        self._rows = np.arange(len(dataset))
        tables = dataset.with_format("arrow", columns=list(columns)).iter(1024)
        blocks = [block for table in tables for block in table.to_batches()]
        self._stops = np.cumsum([len(block) for block in blocks])
        self._starts = self._stops - [len(block) for block in blocks]
        self._views: dict[str, list[Array]] = {}  # of every block, or one of the whole column; shape (rows, values)
        self._shapes: dict[str, tuple[int, ...]] = {}  # of their rows
        for name in columns:
            feature = dataset.features[name]
            if isinstance(feature, datasets.Image):
                views = [_decoded((block[name] for block in blocks), len(dataset))]
            else:
                none = np.empty((0, *getattr(feature, "shape", ())), feature.dtype)
                views = [block[name].to_numpy(zero_copy_only=False) for block in blocks] or [none]
            if views[0].ndim == 1:
                views = [np.concatenate(views)]
            shape = self._shapes[name] = views[0].shape[1:]
            self._views[name] = [view.reshape(len(view), math.prod(shape)) for view in views]

    def __reduce__(self) -> tuple[Any, ...]:
        """Gives pickle what the patches are made of."""
        return type(self), self._source

    def __len__(self) -> int:
        """Number of patches."""
        return len(self._rows)

    def __getitem__(self, indices: Any) -> dict[str, Any]:
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
        places = [*zip(blocks.tolist(), (rows - self._starts[blocks]).tolist())] if len(rows) else []
        batch = {}
        for name, views in self._views.items():
            if len(views) == 1 or not places:
                values = views[0][rows]
            else:
                values = np.concatenate([views[block][row] for block, row in places])
            batch[name] = values.reshape(len(rows), *self._shapes[name])
        return batch

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """Gives what PyTorch's DataLoader asks for: a list of patches."""
        batch = self[indices]
        rows = Rows(dict(zip(batch, row)) for row in zip(*batch.values()))
        rows.batch = batch
        return rows

    @staticmethod
    def collate(rows: Any) -> dict[str, Any]:
        """Makes tensors of what a DataLoader collects: a batch, a patch or a list of patches."""
        import torch

        if isinstance(rows, Rows):
            rows = rows.batch
        elif not isinstance(rows, dict):
            rows = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return {name: torch.as_tensor(values) for name, values in rows.items()}


class Rows(list[dict[str, Any]]):
    """Patches that are views of a batch, and the batch, which spares `collate` another copy."""

    batch: dict[str, Array]


def _decoded(blocks: Iterator[Any], rows: int) -> Array:
    """Decodes a column of images to one array, shape (rows, 32, 32, 3), uint8."""
    import PIL.Image

    images = (image["bytes"] for block in blocks for image in block.to_pylist())
    result = np.empty((rows, 32, 32, 3), np.uint8)
    for row, image in enumerate(tqdm(images, "decoding images", rows, disable=None, leave=False)):
        result[row] = np.asarray(PIL.Image.open(io.BytesIO(image)))
    return result


# ── Inputs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def scaling(bands: Mapping[str, Any]) -> dict[str, Array]:
    """Makes the constants of `normalise`.

    Sentinel-2 and images get mean and standard deviation, as nearly all work does. Sentinel-1 is clipped at
    percentiles, since a few reflectors are a thousand times the median and would rule mean and deviation. Its
    intensities are taken in dB, since speckle multiplies: in dB it is as strong in dark places as in bright ones.

    Args:
        bands: What statistics.json has of every band of the training split, by column.

    Returns:
        By column float32 of shape (2, bands), centre and scale, or (4, bands), with the lower and upper limit before.
    """
    constants = {}
    for column in bands:
        rows = [np.array([band[key] for band in bands[column]], float) for key in ("mean", "std")]
        if column == "sentinel1":
            limits = np.array([[band["percentiles"][key] for band in bands[column]] for key in ("0.1", "99.9")], float)
            limits[:, INTENSITIES] = limits[:, INTENSITIES].clip(1e-6)  # -60 dB, far below the noise of the sensor
            low, high = decibels = limits.copy()
            decibels[:, INTENSITIES] = 10 * np.log10(limits[:, INTENSITIES])
            rows = [*limits, (low + high) / 2, (high - low) / 4]  # limits become -2 and 2
        rows[-1] = np.where(rows[-1] > 0, rows[-1], 1)
        constants[column] = np.stack(rows).astype(np.float32)
    return constants


@functools.cache
def _constants_beside() -> dict[str, Array]:
    """Constants from the statistics.json of the repository that this file lies in."""
    configs = json.loads(Path(__file__).with_name("statistics.json").read_bytes())["configs"]
    bands: dict[str, Any] = {}
    for splits in configs.values():  # the first config that has a column, and its first split, which is train
        bands = {**next(iter(splits.values()))["bands"], **bands}
    return scaling(bands)


def normalise(batch: Batch, constants: Constants | None = None) -> Any:
    """Turns what a batch has of images and sensors into numbers around 0: what a model takes. No-data becomes 0.

    Args:
        batch: Arrays or tensors by column, shape (rows, 32, 32, bands), or (32, 32, bands) for one patch.
        constants: What `scaling` gives (default: for the statistics.json beside this file).

    Returns:
        A float32 array or tensor of all bands, Sentinel-1 first, shape (rows, bands, 32, 32), or (bands, 32, 32).
    """
    constants = constants or _constants_beside()
    parts, library = [], np
    for column in (column for column in COLUMNS if column in batch):
        values, numbers = batch[column], constants[column]
        if not isinstance(values, np.ndarray):
            import torch

            library, numbers = torch, torch.as_tensor(numbers, device=values.device)
        *limits, centre, scale = numbers
        if limits:
            values = library.clip(values, *limits)
            values[..., INTENSITIES] = 10 * library.log10(values[..., INTENSITIES])
        parts.append((values - centre) / scale)
    numbers = library.nan_to_num(library.concatenate(parts, -1), nan=0.0, posinf=0.0, neginf=0.0)
    return library.moveaxis(numbers, -1, -3)


# What others expect: columns, bands and a factor. Read in the code of TorchGeo 0.8.1 (2025), and in 2026 of the package
# geobench, whose converter writes Sentinel-1 first, of TerraTorch and torchgeo-bench, and of OlmoEarth and Galileo.
FORMS: dict[str, tuple[tuple[str, ...], list[int], int]] = {
    "torchgeo": (BOTH, [*range(18)], 1),
    "geobench": (BOTH, [*range(18)], 1),
    "terratorch": (BOTH, [0, 8, 1, 9, 2, 10, 3, 4, 11, 5, 12, 6, 13, 14, 7, 15, 16, 17], 1),
    # B2 stands for B1, B8A for B9 and B11 for B10; in digital numbers
    "sentinel2-13": (("sentinel2",), [0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 8, 9], 10_000),
}


def as_evaluated(batch: Batch, form: str) -> Array:
    """Gives patches in a form that other code expects.

    Args:
        batch: Arrays by column, shape (rows, 32, 32, bands), or (32, 32, bands) for one patch.
        form: "torchgeo" and "geobench" (18 bands, Sentinel-1 first), "terratorch" (18 bands, interleaved by name, as
            torchgeo-bench has them) or "sentinel2-13" (OlmoEarth and Galileo: `sentinel2` alone, as digital numbers;
            13 bands, of which B1, B9 and B10 are copies of B2, B8A and B11).

    Returns:
        A float32 array of shape (rows, bands, 32, 32), or (bands, 32, 32).

    Raises:
        ValueError: There is no such form.
    """
    if form not in FORMS:
        raise ValueError(f"no form {form!r}; there are {', '.join(FORMS)}")
    columns, order, factor = FORMS[form]
    bands = factor * np.concatenate([batch[column] for column in columns], axis=-1)[..., order]
    return np.ascontiguousarray(np.moveaxis(bands, -1, -3), np.float32)


# ── The data ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def open_repository(name: str, revision: str | None, config: str | None, sensors: str | None) -> Repository:
    """Finds out what a repository holds, before anything large is downloaded.

    Returns:
        What metrics.json says about it, the constants of `normalise`, and the rows of every file, by split.

    Raises:
        OSError: It is not there.
        TrainingError: It is not one that build.py made, or lacks what is asked for.
    """
    folder, is_local = Path(name), Path(name, "manifest.json").exists()
    if not is_local and (folder.exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)):
        raise TrainingError(f"{name}: give a folder that build.py made, with a manifest.json, or ORG/NAME on the Hub")
    if is_local and revision:
        raise TrainingError(f"{name} is a folder; --revision is for repositories on the Hub")
    if not is_local:
        files = ["manifest.json", "statistics.json"]
        folder = Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=files))
    try:
        manifest, statistics = (folder.joinpath(f"{file}.json").read_bytes() for file in ("manifest", "statistics"))
        facts = {
            "name": str(folder.resolve()) if is_local else name,
            "revision": None if is_local else folder.name,  # the commit: the Hub's cache has a folder for each
            "manifest_sha256": hashlib.sha256(manifest).hexdigest(),  # manifest.json has that of every file
        }
        return _described(facts, json.loads(manifest), json.loads(statistics)["configs"], config, sensors)
    except (FileNotFoundError, *FOREIGN) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise TrainingError(f"{name}: manifest.json and statistics.json are not build.py's ({reason})") from error


def _described(facts: Facts, manifest: Any, configs: Any, config: str | None, sensors: str | None) -> Repository:
    name, wanted = facts["name"], SENSORS[sensors] if sensors else ()
    trainable = {key: splits["train"] for key, splits in configs.items() if {"train", "test"} <= {*splits}}
    suitable = [key for key, train in trainable.items() if train["bands"] and {*wanted} <= {*train["bands"]}]
    config = config or next((key for key in ("all", "rgb", *suitable) if key in suitable), None)
    if config not in suitable:
        lacking = f"train and test with {' and '.join(wanted) or 'patches'}"
        found = f"configs with both: {', '.join(suitable) or 'none'}"
        raise TrainingError(f"{name}: {config or 'it'} lacks {lacking}; {found}")
    train = trainable[config]
    bands = {column: train["bands"][column] for column in wanted or COLUMNS if column in train["bands"]}
    if len(train["patches_per_class"]) != len(LCZ_CODES):
        raise ValueError("other classes")
    shards: dict[str, dict[str, int]] = {split: {} for split in configs[config]}
    for path, shard in sorted(manifest["shards"].items()):
        if path.startswith(f"{config}/"):
            shards[path.removeprefix(f"{config}/").split("-")[0]][path] = int(shard["rows"])
    facts |= {
        "synthetic": " ".join(sorted({str(source["synthetic"]) for source in manifest["sources"].values()} - {""})),
        "config": config,
        "bands": {column: [str(band["name"]) for band in bands[column]] for column in bands},
        "classes": [*map(str, train["patches_per_class"])],
    }
    return facts, scaling(bands), shards


class Split(NamedTuple):
    """Some rows of patches."""

    patches: Patches
    rows: Array  # indices of patches
    labels: Array  # of these rows

    def batches(self, size: int, title: str, order: Array | None = None) -> Iterator[dict[str, Any]]:
        """Gives batches in order, or in the `order` of these positions, behind a progress bar."""
        rows = self.rows if order is None else self.rows[order]
        for start in tqdm(range(0, len(rows), size), title, disable=None, leave=False):
            yield self.patches[rows[start : start + size]]


def load_splits(repository: Repository, limit: int | None, seed: int) -> Splits:
    """Loads train, validation and test.

    Args:
        repository: What to load.
        limit: At most so many rows of each split, drawn at random from the first files that hold so many; None for all.
        seed: Of the draw. Where there is no validation split, a tenth of train is drawn too and takes its place.

    Raises:
        TrainingError: `datasets` can't load it, it holds something else than expected, or there is too little of it.
    """
    facts, constants, shards = repository
    name, random, splits = facts["name"], np.random.default_rng(seed), {}
    expected = (1, sum(map(len, facts["bands"].values())), 32, 32)
    files = {"data_files": _first_files(shards, limit), "verification_mode": "no_checks"} if limit else {}
    try:
        loaded = datasets.load_dataset(name, facts["config"], revision=facts["revision"], **files)
        for split, dataset in loaded.items():
            rows = np.sort(random.permutation(len(dataset))[:limit])
            patches, labels = Patches(dataset, [*constants, "label"]), Patches(dataset, ["label"])[rows]["label"]
            shape = normalise(patches[:1], constants).shape
            if shape != expected or len(np.bincount(labels, minlength=len(LCZ_CODES))) > len(LCZ_CODES):
                raise ValueError(f"{split} has patches of shape {shape}, expected {expected}, or other classes")
            splits[split] = Split(patches, rows, labels)
    except (datasets.exceptions.DatasetsError, FileNotFoundError, *FOREIGN) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        advice = "run build.py again, then verify.py, if it is your own"
        raise TrainingError(f"{name}: config {facts['config']!r} can't be loaded ({reason}); {advice}") from error
    if "validation" not in splits:
        patches, rows, labels = splits["train"]
        drawn = random.permutation(len(rows)) < len(rows) / 10
        splits["validation"] = Split(patches, rows[drawn], labels[drawn])
        splits["train"] = Split(patches, rows[~drawn], labels[~drawn])
    if len(np.unique(splits["train"].labels)) < 2:
        advice = "raise --limit" if limit else "take other data"
        raise TrainingError(f"{name}: all {len(splits['train'].rows):,} patches to train on are of one class; {advice}")
    return splits


def _first_files(shards: Mapping[str, Mapping[str, int]], limit: int) -> dict[str, list[str]]:
    """The first files of every split that hold enough rows."""
    stops = {split: np.cumsum([*shards[split].values()]) for split in shards}
    return {split: [*shards[split]][: int(np.searchsorted(stops[split], limit)) + 1] for split in shards}


# ── Model ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def network(bands: int, classes: int) -> Any:
    """A small convolutional network: tensors of patches, shape (rows, bands, 32, 32), to logits (rows, classes)."""
    from torch import nn

    layers: list[Any] = []
    for width in (32, 64, 128, 256):
        layers += [nn.Conv2d(bands, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        bands = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(bands, classes))


def create(name: str, bands: int, classes: int) -> Any:
    """Makes an untrained model: the small network ("cnn"), or one of timm by its name.

    Raises:
        TrainingError: There is no such model, or it takes no patches of 32 x 32 pixels.
    """
    import torch

    if name == "cnn":
        return network(bands, classes)
    try:
        import timm

        model = timm.create_model(name, in_chans=bands, num_classes=classes)
        with torch.inference_mode():
            model.eval()(torch.zeros(1, bands, 32, 32)).reshape(1, classes)
        return model
    except (AssertionError, ImportError, *FOREIGN) as error:  # RuntimeError: also of a torchvision for another torch
        names = "give cnn, or install timm and torchvision, and give one of timm.list_models() for 32 x 32 pixels"
        raise TrainingError(f"--model {name}: {error}; {names}") from error


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


def _predictor(model: Any, constants: Constants) -> Predict:
    import torch

    device = next(model.parameters()).device

    def predict(batch: Batch) -> Array:
        model.eval()
        rows, parts = len(batch[next(iter(constants))]), []
        with torch.inference_mode():
            for start in range(0, max(rows, 1), 256):
                part = {name: torch.as_tensor(batch[name][start : start + 256], device=device) for name in constants}
                parts.append(model(normalise(part, constants)).float().softmax(1).cpu().numpy())
        return np.concatenate(parts)

    return predict


def load(path: str | Path, device: str = "auto") -> Predict:
    """Loads a model that this file trained.

    Returns:
        A function from a batch of the columns that the model was trained on, shape (rows, 32, 32, bands), to the
        probabilities of the classes, float32, shape (rows, 17).

    Raises:
        OSError: The file is not there.
        TrainingError: It is no such model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = {key: json.loads(text) for key, text in file.metadata().items()}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        constants = {column: np.array(about["constants"][column], np.float32) for column in about["bands"]}
        model = create(about["model"], sum(map(len, about["bands"].values())), len(about["classes"]))
        model.load_state_dict(weights)
    except (SafetensorError, *FOREIGN) as error:
        raise TrainingError(f"{path}: not a model that train.py wrote ({error})") from error
    return _predictor(model.to(_device(device)), constants)


def save(path: Path, model: Any, about: Facts) -> None:
    """Writes a model's weights, with `about` in the file's metadata, as JSON by key; whole or not at all."""
    import safetensors.torch

    weights = {name: values.cpu().contiguous() for name, values in model.state_dict().items()}
    new = path.with_name("new" + INCOMPLETE)
    new.write_bytes(safetensors.torch.save(weights, {key: json.dumps(value) for key, value in about.items()}))
    new.replace(path)


def turned(x: Any, random: np.random.Generator) -> Any:
    """Every patch of a tensor (rows, bands, 32, 32) in one of the eight ways to see it from above, drawn for each."""
    import torch

    turns: list[Callable[[Any], Any]] = [lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.transpose(2, 3)]
    for turn in turns:
        drawn = torch.from_numpy(random.random((len(x), 1, 1, 1)) < 0.5).to(x.device)
        x = torch.where(drawn, turn(x), x)
    return x


def fit(model: Any, splits: Splits, facts: Facts, constants: Constants, options: Any) -> tuple[Predict, Facts]:
    """Trains a model; the one after the best epoch so far is always on the disk. Returns that, and which it is."""
    import torch

    split, random, weight = splits["train"], np.random.default_rng(options.seed), None
    device, predict = next(model.parameters()).device, _predictor(model, constants)
    if options.balanced:
        patches = np.bincount(split.labels, minlength=len(LCZ_CODES)).clip(1)
        weight = torch.tensor(len(split.labels) / len(LCZ_CODES) / patches, dtype=torch.float32, device=device)
    steps = max(1, len(split.rows) // options.batch_size)  # without the rest: every epoch leaves out others
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=options.lr, total_steps=options.epochs * steps)
    is_fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)  # earlier ones emulate it
    bfloat16 = torch.autocast("cuda", torch.bfloat16, enabled=is_fast)

    def train_once(title: str) -> float:
        model.train()
        losses = []
        order = random.permutation(len(split.rows))[: steps * options.batch_size]
        for batch in split.batches(options.batch_size, title, order):
            tensors = {name: torch.from_numpy(values).to(device) for name, values in batch.items()}
            with bfloat16:
                logits = model(turned(normalise(tensors, constants), random))
            loss = torch.nn.functional.cross_entropy(logits.float(), tensors["label"], weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    path, chosen = options.output / (MODEL + INCOMPLETE), {"epoch": 0.0, "validation_average_accuracy": -1.0}
    about = {**facts, "constants": {column: rows.tolist() for column, rows in constants.items()}}
    for epoch in range(1, options.epochs + 1):
        loss = train_once(f"epoch {epoch}")
        accuracy = average_accuracy(splits["validation"].labels, predicted(predict, splits["validation"]))
        best = accuracy > chosen["validation_average_accuracy"]
        said = f"loss {loss:.3f}, average accuracy on validation {accuracy:.1%}"
        print(f"epoch {epoch:>3}: {said}{', best so far' if best else ''}", flush=True)
        if best:
            chosen = {"epoch": epoch, "validation_average_accuracy": accuracy}
            save(path, model, {**about, "chosen": chosen})
            options.kept = path
    return load(path, str(device)), chosen


def predicted(predict: Predict, split: Split) -> Array:
    """Class indices that a model predicts for a split, shape (rows,)."""
    return np.concatenate([predict(batch).argmax(1) for batch in split.batches(256, "measuring")])


# ── The report ───────────────────────────────────────────────────────────────────────────────────────────────────────


def average_accuracy(labels: Array, predicted: Array) -> float:
    """The mean over the classes that occur of the share that is right; also called balanced accuracy."""
    from sklearn.metrics import recall_score

    # balanced_accuracy_score gives the same, and a warning where a class is predicted that does not occur
    return float(recall_score(labels, predicted, labels=np.unique(labels), average="macro"))


def measure(labels: Array, predicted: Array, names: Sequence[str], seed: int = 0) -> Facts:
    """Measures predictions: true and predicted class indices, shape (rows,). The seed is of the bootstrap.

    Returns:
        `overall_accuracy` with its 95 % `interval` by a bootstrap over patches; `average_accuracy` over the classes
        that occur; Cohen's `kappa`; by class `precision`, `recall`, `f1-score` and `support`, the patches; all None
        where they are not defined; `confusion`, patches by true class (lines) and predicted class.
    """
    from sklearn.metrics import classification_report, cohen_kappa_score, confusion_matrix

    classes, hits, random = np.arange(len(names)), labels == predicted, np.random.default_rng(seed)
    options = {"labels": classes, "target_names": names, "output_dict": True, "zero_division": np.nan}
    report = classification_report(labels, predicted, **options)
    by_class = {name: {key: None if np.isnan(x) else x for key, x in report[name].items()} for name in names}
    is_one_class = len(np.union1d(labels, predicted)) == 1
    return {
        "overall_accuracy": float(hits.mean()),
        "interval": np.percentile([random.choice(hits, len(hits)).mean() for _ in range(1000)], (2.5, 97.5)).tolist(),
        "average_accuracy": average_accuracy(labels, predicted),
        "kappa": None if is_one_class else float(cohen_kappa_score(labels, predicted)),
        "classes": by_class,
        "confusion": confusion_matrix(labels, predicted, labels=classes).tolist(),
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
    names = [*measured["classes"]]
    for index, (name, row) in enumerate(zip(names, measured["confusion"])):
        f1 = measured["classes"][name]["f1-score"]
        wrong, other = max((patches, other) for other, patches in enumerate(row) if other != index)
        mistaken = f"{names[other]} ({wrong:,})" if wrong else "no other" if sum(row) else "-"
        figure = "-" if f1 is None else f"{f1:.2f}"
        lines.append(f"{LCZ_CODES[index]:>3}  {name:<22}{sum(row):>7,}{figure:>7}  {mistaken}")
    return "\n".join(lines)


def draw_confusion(measured: Facts, title: str, path: Path) -> None:
    """Draws the confusion matrix: of the test patches of each class, the share in percent taken for each class."""
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    patches = np.array(measured["confusion"])
    percent = 100 * patches / patches.sum(1, keepdims=True).clip(1)
    names = [f"{name} ({n:,})  {code}" for name, n, code in zip(measured["classes"], patches.sum(1), LCZ_CODES)]
    figure = Figure(figsize=(9, 8), dpi=120, layout="constrained")
    axes = figure.subplots()
    display = ConfusionMatrixDisplay(percent, display_labels=LCZ_CODES)
    display.plot(ax=axes, cmap="Blues", values_format=".0f", colorbar=False, text_kw={"fontsize": 8})
    axes.set_yticks(range(len(names)), names)
    axes.set(title=title, ylabel="true class (its test patches) and LCZ")
    axes.set_xlabel("predicted LCZ, percent of the patches of a true class")
    for text in display.text_[patches == 0]:
        text.set_text("")
    figure.savefig(path, format="png", bbox_inches="tight")


# ── The command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line: 0 for success, 1 after an error, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may hold what the terminal can't show
    options = _parser().parse_args(argv)
    options.kept = None
    try:
        _run(options)
        return 0
    except (TrainingError, OSError, ImportError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        said = f"; {options.kept} is the best model so far" if options.kept else ""
        print(f"interrupted{said}", file=sys.stderr)
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Trains a classifier of So2Sat LCZ42 patches. It keeps the epoch with the best average accuracy\n"
        "over classes on validation, since classes are as unequal as 20 : 1, and measures that once, on test.\n"
        "Writes model.safetensors, metrics.json and confusion.png.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="a repository that build.py made: a folder, or ORG/NAME on the Hub")
    add("--config", help="config of the repository (default: all, or the first that has what is asked for)")
    add("--revision", help="branch, tag or commit on the Hub (default: main)")
    add("--sensors", choices=SENSORS, help="what the model sees (default: all that the config has)")
    add("--model", default="cnn", help="a model of timm, such as resnet18 (default: cnn, a small network)")
    add("--epochs", metavar="N", type=_number(int, 1), default=15, help="default: 15")
    add("--batch-size", metavar="N", type=_number(int, 1), default=64, help="patches in a batch (default: 64)")
    add("--lr", metavar="X", type=_number(float, 0), default=3e-3, help="highest learning rate (default: 0.003)")
    add("--weight-decay", metavar="X", type=_number(float, 0), default=0.05, help="default: 0.05")
    add("--balanced", action="store_true", help="weight the loss by inverse class frequency")
    limit = "at most this many patches of each split, drawn at random from its first files; only those are fetched"
    add("--limit", metavar="ROWS", type=_number(int, 1), help=limit)
    add("--seed", metavar="S", type=_number(int, 0), default=0, help="of all that is drawn (default: 0)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps and so on (default: the fastest one here)")
    output = "a new folder, or that of an earlier run, whose files it replaces at the end (default: trained)"
    add("--output", metavar="DIR", type=Path, default=Path("trained"), help=output)
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _number(kind: Callable[[str], float], least: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not least <= kind(text) < 1 << 32:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {least} to {(1 << 32) - 1}")
        return kind(text)

    return number


def _check_output(folder: Path) -> None:
    """Refuses a folder that holds anything but what an earlier run left."""
    names = [path.name for path in folder.iterdir() if path.suffix != INCOMPLETE] if folder.exists() else []
    try:
        is_ours = not names or json.loads(folder.joinpath(METRICS).read_bytes())["writer"] == WRITER
    except (FileNotFoundError, *FOREIGN):
        is_ours = False
    if not is_ours:
        raise TrainingError(f"--output {folder} holds what no earlier run wrote, as {min(names)}; give a new folder")


def _run(options: argparse.Namespace) -> None:
    repository = open_repository(options.name, options.revision, options.config, options.sensors)
    _check_output(options.output)
    import torch

    facts, constants, _ = repository
    torch.manual_seed(options.seed)
    model = create(options.model, sum(map(len, facts["bands"].values())), len(LCZ_CODES))
    model.to(_device(options.device), memory_format=torch.channels_last)
    options.output.mkdir(parents=True, exist_ok=True)
    splits = load_splits(repository, options.limit, options.seed)
    is_drawn = splits["validation"].patches is splits["train"].patches
    asked = ("model", "epochs", "batch_size", "lr", "weight_decay", "balanced", "limit", "seed")
    facts |= {
        **{name: getattr(options, name) for name in asked},
        "rows": {name: len(splits[name].rows) for name in ("train", "validation", "test")},
        "validation": "a tenth of train, drawn by the seed" if is_drawn else "its own split",
    }
    warning = "\nSYNTHETIC DATA: these figures say nothing about So2Sat" if facts["synthetic"] else ""
    columns = ", ".join(facts["bands"])
    print(f"{facts['name']}, config {facts['config']}: {columns}")
    counts = ", ".join(f"{name} {rows:,}" for name, rows in facts["rows"].items())
    print(f"patches: {counts}; validation is {facts['validation']}{warning}", flush=True)

    began = time.perf_counter()
    predict, chosen = fit(model, splits, facts, constants, options)
    seconds = time.perf_counter() - began
    measured = measure(splits["test"].labels, predicted(predict, splits["test"]), facts["classes"], options.seed)
    print(f"\nthe model of epoch {chosen['epoch']}, the best on validation, measured once, on test:\n")
    print(f"{describe(measured)}\n")
    title = f"{options.model} on {columns}: {measured['overall_accuracy']:.1%} of the test patches right{warning}"
    draw_confusion(measured, title, options.output / (PICTURE + INCOMPLETE))
    versions = {name: importlib.metadata.version(name) for name in ("datasets", "numpy", "scikit-learn", "torch")}
    report = {"writer": WRITER, **facts, "chosen": chosen, "test": measured, "seconds": seconds, "versions": versions}
    text = json.dumps(report, indent=1) + "\n"
    options.output.joinpath(METRICS + INCOMPLETE).write_text(text, encoding="utf-8")
    for name in (METRICS, PICTURE, MODEL):
        options.output.joinpath(name + INCOMPLETE).replace(options.output / name)
    print(f"trained in {seconds:,.0f} s; written to {options.output}: {METRICS}, {PICTURE} and {MODEL}{warning}")


if __name__ == "__main__":
    sys.exit(main())
