"""Measures this project against other ways to do the same, side by side, and prints the README's table.

A contender is a function of this file. It gets ready, which is not timed, and returns what is: work to do, or batches
to go through. It runs in a process of its own, in a temporary folder that holds

    source/, small/       synthetic HDF5 files, in `small` an eighth of the rows
    so2sat/               the Parquet repository of this project
    tfds-all/, tfds-rgb/  what TensorFlow Datasets makes of the HDF5 files
    arrays/               a NumPy file for every column
    output/               what a contender writes

The head of this file imports only what the environment of TensorFlow Datasets has too.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import functools
import importlib
import importlib.util
import io
import json
import math
import os
import platform
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

FOLDER = Path(__file__).parents[1] / "build" / "benchmark"  # temporary files
BATCH = 64  # rows
BLOCK = 4096  # rows of a stream that are shuffled at a time, as the card shows
EIGHTH = 8  # `small` has so many times fewer rows
VALIDATION = 17  # rows, one of each class
DELAY = 0.05  # s that the server waits before it answers
FILES = {"train": "training.h5", "validation": "validation.h5"}
ARRAYS = {"sen1": (32, 32, 8), "sen2": (32, 32, 10), "label": (17,)}  # of a row of the files, float64
PACKAGES = ("datasets", "pyarrow", "numpy", "h5py", "pillow", "torch", "tensorflow_cpu", "tensorflow-datasets")
COLUMNS = {"all": ["sentinel1", "sentinel2", "label", "sample_id"], "rgb": ["image", "label", "sample_id"]}

Batch = dict[str, Any]  # arrays or tensors by column
Batches = Callable[[int], Iterator[Batch]]  # the batches of an epoch, given its number
Work = Callable[[], object]
Figures = dict[str, Any]
Measured = Mapping[str, Mapping[str, Sequence[float]]]  # median, least and most, by contender and figure

# ┌──────────────┐
# │  Contenders  │
# └──────────────┘


def make_inputs(rows: int) -> Work:
    """Makes what contenders read: source, small, so2sat and arrays."""
    import build
    import sample

    def work() -> None:
        for folder, count in (("source", rows), ("small", rows // EIGHTH)):
            sample.write_sample(Path(folder), {"train": count, "validation": VALIDATION})
        build.build("source", Path("so2sat"), configs=[*COLUMNS])
        batches = [*reference("source", "all")(0)]
        Path("arrays").mkdir()
        for name in batches[0]:
            np.save(f"arrays/{name}.npy", np.concatenate([batch[name] for batch in batches]))

    return work


def build_repository(source: str, output: str, config: str, workers: int) -> Work:
    """This project: a Parquet repository with all that belongs to it."""
    import build
    from publishing import figures  # noqa: F401

    return lambda: build.build(source, Path(output), configs=[config], workers=workers)


def build_row_by_row(source: str, output: str, config: str, careful: bool = False) -> Work:
    """What a loading script usually is. It finds an array by its name for every row; a careful one does so once."""
    import datasets
    import h5py
    import PIL.Image

    import so2sat

    class RowByRow(datasets.GeneratorBasedBuilder):  # type: ignore[misc]
        def _info(self) -> Any:
            return datasets.DatasetInfo(features=so2sat.features(config))

        def _split_generators(self, dl_manager: Any) -> list[Any]:
            paths = {split: f"{source}/{name}" for split, name in FILES.items()}
            return [datasets.SplitGenerator(name=split, gen_kwargs={"path": path}) for split, path in paths.items()]

        def _generate_examples(self, path: str) -> Iterator[tuple[int, Batch]]:
            with h5py.File(path) as file:
                arrays = {name: file[name] for name in ARRAYS} if careful else file
                for row in range(len(file["label"])):
                    example = converted(config, arrays, row)
                    if config == "rgb":
                        buffer = io.BytesIO()
                        PIL.Image.fromarray(example["image"]).save(buffer, **so2sat.IMAGE_FORMATS["jpeg"])
                        example["image"] = {"bytes": buffer.getvalue(), "path": None}
                    yield row, {**example, "sample_id": row}

    builder = RowByRow(cache_dir=output)
    return lambda: builder.download_and_prepare(output, file_format="parquet")


def build_tfds(source: str, output: str, config: str) -> Work:
    """TensorFlow Datasets' so2sat, which gets the files in place of a download."""
    tfds = _tensorflow_datasets()
    module: Any = importlib.import_module("tensorflow_datasets.datasets.so2sat.so2sat_dataset_builder")
    given = types.SimpleNamespace(download=lambda urls: {key: f"{source}/{Path(urls[key]).name}" for key in urls})

    class LocalSo2sat(module.Builder):  # type: ignore[misc]
        pkg_dir_path = Path(module.__file__).parent

        def _split_generators(self, dl_manager: Any) -> Any:
            return super()._split_generators(given)

    builder = LocalSo2sat(config=config, data_dir=output)
    return lambda: builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


def _tensorflow_datasets() -> Any:
    """TensorFlow Datasets, with all that it puts off until its first row."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    importlib.import_module("h5py")
    tensorflow: Any = importlib.import_module("tensorflow")
    tensorflow.io.encode_png(tensorflow.zeros((32, 32, 3), tensorflow.uint8)).numpy()
    return importlib.import_module("tensorflow_datasets")


def encode_alone(source: str, output: str, config: str) -> Work:
    """Only Pillow and pyarrow with this project's options: rows that are ready in memory are encoded and written."""
    import pyarrow.parquet as pq

    import so2sat
    from publishing import shards

    schema, ready = so2sat.features(config).arrow_schema, {}
    for split, name in FILES.items():
        with so2sat.open_source(f"{source}/{name}") as file:
            ready[split] = [so2sat.read_columns(file, config, *block) for block in so2sat.blocks(0, file.rows)]

    def work() -> None:
        for split, blocks in ready.items():
            options = shards.writer_options(schema, blocks[0])
            with pq.ParquetWriter(f"{output}/{split}.parquet", schema, **options) as writer:
                for columns in blocks:
                    writer.write_batch(shards.to_batch(columns, schema, "jpeg"))

    return work


def patches(config: str, shuffled: bool) -> Batches:
    """This project: batches by index from mapped Arrow, which `datasets` makes of the Parquet once."""
    import datasets

    from train import Patches

    dataset = Patches(datasets.load_dataset("so2sat", config, split="train"), COLUMNS[config])
    return _by_index(dataset.__getitem__, len(dataset), shuffled)


def data_loader(shuffled: bool) -> Batches:
    """What users of PyTorch write first."""
    import datasets
    from torch.utils.data import DataLoader

    dataset = datasets.load_dataset("so2sat", "all", split="train").with_format("torch")
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=shuffled)
    return lambda number: iter(loader)


def stream(config: str, shuffled: bool) -> Batches:
    """This project: the repository's Parquet as it lies on the disk, shuffled in blocks."""
    import datasets

    dataset = datasets.load_dataset("so2sat", config, split="train", streaming=True).with_format("numpy")

    def batches(number: int) -> Iterator[Batch]:
        rng = np.random.default_rng(number)
        for block in dataset.iter(BLOCK):
            order = rng.permutation(len(block["label"]))
            for start in range(0, len(order), BATCH):
                yield {name: values[order[start : start + BATCH]] for name, values in block.items()}

    return batches if shuffled else lambda number: dataset.iter(BATCH)


def tfds_records(folder: str, config: str, shuffled: bool = False) -> Batches:
    """TFRecords as TensorFlow Datasets reads them, but never kept in memory: the real data would not fit."""
    tfds = _tensorflow_datasets()
    (path,) = Path(folder).glob(f"*/{config}/*/")
    reading = tfds.ReadConfig(try_autocache=False)
    dataset = tfds.builder_from_directory(path).as_dataset("train", shuffle_files=shuffled, read_config=reading)
    dataset = (dataset.shuffle(1024) if shuffled else dataset).batch(BATCH).prefetch(-1)  # tf.data.AUTOTUNE
    return lambda number: iter(tfds.as_numpy(dataset))


def hdf5_rows(shuffled: bool) -> Batches:
    """Row by row from a file that is opened for each, as TorchGeo's So2Sat does."""
    import h5py

    rows = keys(None)

    def read(index: Any) -> Batch:
        examples = []
        for row in rows[index]:
            with h5py.File("source/training.h5") as file:
                examples.append(converted("all", file, row))
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}

    return _by_index(read, len(rows), shuffled)


def hdf5_dataset(shuffled: bool) -> Batches:
    """What load_dataset("hdf5") makes of the file: mapped Arrow of float64."""
    import datasets

    files = {"train": "source/training.h5"}
    dataset = datasets.load_dataset("hdf5", data_files=files, split="train").with_format("numpy")
    return _by_index(lambda index: converted("all", dataset[index]), len(dataset), shuffled)


def memory_map(shuffled: bool) -> Batches:
    """What NumPy's own indexing gives of mapped files."""
    arrays = {name: np.lib.format.open_memmap(f"arrays/{name}.npy", mode="r") for name in COLUMNS["all"]}
    rows = len(arrays["label"])
    return _by_index(lambda index: {name: array[index] for name, array in arrays.items()}, rows, shuffled)


def parquet_files(folder: str, config: str) -> Batches:
    """The training rows of anybody's Parquet files, to compare them."""
    import datasets

    files = {"train": sorted(map(str, Path(folder).rglob("*train*.parquet")))}
    dataset = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True).with_format("numpy")
    return lambda number: dataset.iter(BATCH)


def reference(source: str, config: str, count: int | None = None) -> Batches:
    """What every contender must give: the training rows of `keys`, straight from HDF5."""
    import h5py

    ids = keys(count, source)

    def batches(number: int) -> Iterator[Batch]:
        with h5py.File(f"{source}/training.h5") as file:
            for start in range(0, len(ids), BATCH):
                rows = ids[start : start + BATCH]
                yield {**converted(config, file, rows), "sample_id": rows}

    return batches


def converted(config: str, arrays: Any, rows: Any = slice(None)) -> Batch:
    """One or more rows as this project has them, of the arrays of an HDF5 file by name."""
    label = arrays["label"][rows].argmax(axis=-1)
    if config == "rgb":
        pixels = arrays["sen2"][rows][..., [2, 1, 0]] * (3.5 * 255)
        return {"image": np.clip(pixels, 0, 255).astype(np.uint8), "label": label}
    sentinel1, sentinel2 = (arrays[name][rows].astype(np.float32) for name in ("sen1", "sen2"))
    return {"sentinel1": sentinel1, "sentinel2": sentinel2, "label": label}


def _by_index(read: Callable[[Any], Batch], rows: int, shuffled: bool) -> Batches:
    """Batches of what reads rows by a slice, or by an array of indices."""

    def batches(number: int) -> Iterator[Batch]:
        order = np.random.default_rng(number).permutation(rows) if shuffled else np.arange(rows)
        for start in range(0, rows, BATCH):
            part = slice(start, start + BATCH)
            yield {"sample_id": order[part], **read(order[part] if shuffled else part)}

    return batches


def keys(count: int | None, source: str = "source") -> Any:
    """Training rows to ask for: the first one, so many at random, or all."""
    import h5py

    with h5py.File(f"{source}/training.h5") as file:
        rows = np.arange(len(file["label"]))
    return rows[:1] if count == 1 else np.sort(np.random.default_rng(0).permutation(rows)[:count])


def remote_stream(url: str, count: int) -> Batches:
    """This project: the repository's Parquet through a filter, or its first example, as the card shows."""
    import datasets
    import fsspec.implementations.http  # noqa: F401

    files = {"train": [f"{url}/{path}" for path in sorted(map(str, Path("so2sat/all").glob("train-*")))]}
    filters = [("sample_id", "in", keys(count).tolist())] if count > 1 else None

    def batches(number: int) -> Iterator[Batch]:
        found = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True, filters=filters)
        if count > 1:
            yield from found.with_format("numpy").iter(BATCH)
        else:
            yield next(found.reshard().with_format("numpy").iter(1))

    return batches


def remote_ranges(url: str, count: int) -> Batches:
    """What contiguous arrays of HDF5 allow: a row is a range of bytes, and many are fetched at once."""
    import fsspec.implementations.http
    import h5py

    rows = keys(count)

    def batches(number: int) -> Iterator[Batch]:
        server, path, arrays = fsspec.filesystem("http"), f"{url}/source/training.h5", {}
        with server.open(path, block_size=1 << 16) as remote, h5py.File(remote) as file:
            offsets = {name: file[name].id.get_offset() for name in ARRAYS}
        for name, shape in ARRAYS.items():
            size = 8 * math.prod(shape)
            starts = offsets[name] + rows * size
            ranges = server.cat_ranges([path] * len(rows), starts.tolist(), (starts + size).tolist())
            arrays[name] = np.frombuffer(b"".join(ranges), "<f8").reshape(-1, *shape)
        yield {**converted("all", arrays), "sample_id": rows}

    return batches


# ┌─────────┐
# │  Cases  │
# └─────────┘

Contender = functools.partial  # a function of this file with its arguments


@dataclasses.dataclass(frozen=True)
class Case:
    """What contenders, this project's first, are compared at by one of MEASURES: `process` is its start to its end."""

    text: str
    measure: str
    contenders: Mapping[str, Contender[Any]]


# Names of contenders as the README has them.
ONE, TWO, TFDS, STREAM = "`build.py`, 1 worker", "`build.py`, 2 workers", "TFDS", "a stream"
LOOP, CAREFUL, ALONE = "a builder row by row", "a careful builder row by row", "encoding alone"
PATCHES, LOADER, MAP = "`Patches`", 'a DataLoader of `with_format("torch")`', "a NumPy memory map"
HDF5, ROWS, RANGES = '`load_dataset("hdf5")`', "HDF5 row by row", "HDF5 by ranges, many at once"


def _conversion(config: str, source: str = "source") -> dict[str, Contender[Any]]:
    paths: dict[str, Any] = {"source": source, "output": "output", "config": config}
    contenders: dict[str, Contender[Any]] = {
        ONE: Contender(build_repository, **paths, workers=1),
        TWO: Contender(build_repository, **paths, workers=2),
        TFDS: Contender(build_tfds, **paths),
        LOOP: Contender(build_row_by_row, **paths),
        CAREFUL: Contender(build_row_by_row, **paths, careful=True),
        ALONE: Contender(encode_alone, **paths),
    }
    return {name: one for name, one in contenders.items() if source == "source" or name not in (TWO, ALONE)}


def _epoch(config: str, shuffled: bool) -> dict[str, Contender[Any]]:
    both = {
        PATCHES: Contender(patches, config=config, shuffled=shuffled),
        STREAM: Contender(stream, config=config, shuffled=shuffled),
        TFDS: Contender(tfds_records, folder=f"tfds-{config}", config=config, shuffled=shuffled),
    }
    arrays = {LOADER: data_loader, ROWS: hdf5_rows, HDF5: hdf5_dataset, MAP: memory_map} if config == "all" else {}
    return both | {name: Contender(function, shuffled=shuffled) for name, function in arrays.items()}


def _remote(count: int) -> dict[str, Contender[Any]]:
    return {STREAM: Contender(remote_stream, count=count), RANGES: Contender(remote_ranges, count=count)}


CASES: Mapping[str, Case] = {
    "convert-all": Case("HDF5 → Parquet, all, without imports", "work", _conversion("all")),
    "convert-rgb": Case("HDF5 → Parquet, rgb, without imports", "work", _conversion("rgb")),
    "process-all": Case("all, an eighth of the rows, from start to end", "process", _conversion("all", "small")),
    "process-rgb": Case("rgb, an eighth of the rows, from start to end", "process", _conversion("rgb", "small")),
    "growth": Case(
        "HDF5 → Parquet, 8 × the rows", "work", {part: _conversion("all", part)[ONE] for part in ("source", "small")}
    ),
    "epoch-all": Case("an epoch in order, all", "epochs", _epoch("all", shuffled=False)),
    "shuffled-all": Case("a shuffled epoch, all", "epochs", _epoch("all", shuffled=True)),
    "shuffled-rgb": Case("a shuffled epoch, rgb", "epochs", _epoch("rgb", shuffled=True)),
    "keys": Case("patches by random keys, from a server that answers in 50 ms", "once", _remote(1000)),
    "first": Case("the first example, from a server that answers in 50 ms", "once", _remote(1)),
}

# The README's table: a case, the contender that a row is about, what the row says of it, and those it is compared with.
README = (
    ("convert-all", ONE, "`build.py`, HDF5 to Parquet, 1 worker, `all`", (TFDS, LOOP, CAREFUL, ALONE)),
    ("convert-all", TWO, "`build.py`, HDF5 to Parquet, 2 workers, `all`", (ONE, TFDS, LOOP, CAREFUL)),
    ("convert-rgb", ONE, "`build.py`, HDF5 to Parquet, 1 worker, `rgb`", (TFDS, LOOP, CAREFUL, ALONE)),
    ("process-all", ONE, "`build.py` with its imports, an eighth of the rows, `all`", (TFDS, LOOP, CAREFUL)),
    ("shuffled-all", PATCHES, "A shuffled epoch of `Patches`, `all`", (TFDS, LOADER, ROWS, HDF5, MAP)),
    ("shuffled-rgb", PATCHES, "A shuffled epoch of `Patches`, `rgb`, decoded before", (TFDS, STREAM)),
    ("epoch-all", STREAM, "An epoch of a stream from disk, `all`", (TFDS, ROWS, HDF5)),
    ("keys", STREAM, "1,000 patches by random keys, from a server that answers in 50 ms", (RANGES,)),
)


# ┌─────────────┐
# │  Measuring  │
# └─────────────┘


def timed_work(work: Work) -> Figures:
    """Does the work."""
    started = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - started}


def timed_once(batches: Batches, least: float = 0) -> Figures:
    """Goes through all batches, again and again until so many seconds are over; every value is read."""
    rows = number = 0
    started = time.perf_counter()
    while not number or time.perf_counter() - started < least:
        number += 1
        for batch in batches(number):
            rows += len(batch["label"])
            for values in batch.values():
                values.max()  # what is mapped is read only now
    return {"seconds": time.perf_counter() - started, "rows": rows}


def timed_epochs(batches: Batches) -> Figures:
    """Goes through an epoch that is not timed, and then for a second or longer."""
    timed_once(batches)
    return timed_once(batches, least=1)


def sums(batches: Batches) -> Figures:
    """Sums over all rows, the same in any order: of labels, of ids, and of values by their place and their row's id."""
    result: Figures = {}
    for batch in batches(0):
        label, ids = (np.asarray(batch[name], np.int64) for name in ("label", "sample_id"))
        found: Figures = {"rows": [len(ids)], "label": [label.sum()], "id": [ids.sum()], "label × id": [label @ ids]}
        for name in batch.keys() - {"label", "sample_id"}:
            values = np.asarray(batch[name]).reshape(len(ids), -1)
            if name == "image":  # grey levels of each channel, which JPEG changes a little
                places = 1 + np.arange(32 * 32) / (32 * 32)
                found[name] = (ids + 1.0) @ np.einsum("npc,p->nc", values.reshape(-1, 32 * 32, 3), places)
            else:  # every bit of float32 counts, modulo 2 ** 64
                bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
                weights = 2 * np.arange(bits.shape[1], dtype=np.uint64) + 1
                found[name] = [bits @ weights @ (ids + 1).astype(np.uint64)]
        result = {name: np.add(result.get(name, 0), values) for name, values in found.items()}
    return {"sums": {name: values.tolist() for name, values in result.items()}}


MEASURES: Any = {"work": timed_work, "process": timed_work, "once": timed_once, "epochs": timed_epochs, "sums": sums}


def contend(call: str) -> None:
    """Runs a contender in this process and prints its figures as the last line: what `in_own_process` asks for."""
    function, arguments, measure = json.loads(call)
    figures = MEASURES[measure](globals()[function](**arguments))
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    figures["memory"] = max(peaks) * (1 if sys.platform == "darwin" else 1024) / 1e6
    print(f"\n{json.dumps(figures)}", flush=True)
    if measure in ("once", "sums"):
        os._exit(0)  # Python can hang at its end after a stream that was left (apache/arrow#45214)


def in_own_process(contender: Contender[Any], measure: str, folder: Path, python: str) -> Figures:
    """Runs a contender in a process of its own and adds its seconds to the figures.

    Raises:
        CommandError: It ended with an error.
    """
    from publishing.command import CommandError

    call = contender.func.__name__, contender.keywords, measure
    command = [python, "-c", "import sys, benchmark; benchmark.contend(sys.argv[1])", json.dumps(call)]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    scripts, home = Path(__file__).parent, {"HF_HOME": f"{folder / 'cache'}", "TMPDIR": f"{folder}"}
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    environment = {**os.environ, **home, **quiet, "PYTHONPATH": f"{scripts}{os.pathsep}{scripts.parent}"}
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes) as process:
        try:
            out, err = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if process.returncode:
        reason = (err.strip().splitlines() or [f"ended with {process.returncode}"])[-1][:500]
        raise CommandError(f"{contender.func.__name__} {contender.keywords}: {reason}")
    return {**json.loads(out.splitlines()[-1]), "process": time.perf_counter() - started}


def serve(folder: Path) -> str:
    """Serves a folder by ranges until this process ends, each answer after DELAY, and returns its address."""
    from aiohttp import web

    @web.middleware
    async def slowly(request: Any, handler: Any) -> Any:
        await asyncio.sleep(DELAY)
        return await handler(request)

    app = web.Application(middlewares=[slowly])
    app.router.add_static("/", folder)
    sock = socket.create_server(("127.0.0.1", 0), backlog=256)
    options = {"sock": sock, "loop": asyncio.new_event_loop(), "handle_signals": False, "print": None}
    threading.Thread(target=web.run_app, args=[app], kwargs=options, daemon=True).start()
    return f"http://127.0.0.1:{sock.getsockname()[1]}"


@dataclasses.dataclass
class Bench:
    """Runs contenders in a folder."""

    folder: Path
    url: str  # of the folder
    rows: Mapping[str, int]  # training rows of `source` and `small`
    tfds: str | None  # interpreter for TensorFlow Datasets
    expected: dict[str, Figures] = dataclasses.field(default_factory=dict)  # sums of what contenders must give

    def contenders(self, case: str) -> dict[str, Contender[Any]]:
        """The contenders at a case that can run here."""
        absent: list[Any] = [] if self.tfds else [build_tfds, tfds_records]
        absent += [] if importlib.util.find_spec("torch") else [data_loader]
        return {name: one for name, one in CASES[case].contenders.items() if one.func not in absent}

    def run(self, contender: Contender[Any], measure: str) -> Figures:
        """Runs a contender, and adds what is seen from outside."""
        function, arguments = contender.func, dict(contender.keywords)
        python = self.tfds if self.tfds and function in (build_tfds, tfds_records) else sys.executable
        if function in (remote_stream, remote_ranges):
            arguments["url"] = self.url
        output = self.folder / arguments.get("output", "")
        if "output" in arguments:
            shutil.rmtree(output, ignore_errors=True)
            output.mkdir()
            os.sync()  # what others wrote is on the disk
        figures = in_own_process(Contender(function, **arguments), measure, self.folder, python)
        if "output" in arguments:
            rows = self.rows[arguments["source"]]
            written = [*output.rglob("*train*.parquet"), *output.rglob("*train*.tfrecord*")]
            figures |= {"rows": rows + VALIDATION, "bytes": sum(path.stat().st_size for path in written) / rows}
        if "rows" in figures:
            figures["rate"] = figures.pop("rows") / figures["process" if measure == "process" else "seconds"]
        return figures

    def compare(self, case: str) -> None:
        """Compares the training rows that contenders give, or write, with those of the source.

        Raises:
            CommandError: They differ.
        """
        from publishing.command import CommandError

        for name, contender in self.contenders(case).items():
            asked: dict[str, Any] = {"source": "source", "config": "all", "count": None}
            asked |= {key: value for key, value in contender.keywords.items() if key in asked}
            key = json.dumps(asked)
            if key not in self.expected:
                self.expected[key] = self.run(Contender(reference, **asked), "sums")["sums"]
            if "output" in contender.keywords:
                self.run(contender, "work")
                reader = tfds_records if contender.func is build_tfds else parquet_files
                contender = Contender(reader, folder="output", config=asked["config"])
            found = self.run(contender, "sums")["sums"]
            for what, values in self.expected[key].items():
                if found[what] != values and not (what == "image" and np.allclose(found[what], values, rtol=5e-3)):
                    raise CommandError(f"{case}, {name}: sum of {what} is {found[what]}, in the source {values}")


# ┌─────────────┐
# │  Reporting  │
# └─────────────┘


def summary(rounds: Sequence[Figures]) -> dict[str, list[float]]:
    """Median, least and most of every figure, with four digits."""
    spreads = {name: [figures[name] for figures in rounds] for name in rounds[0]}
    medians = {name: (np.median(values), min(values), max(values)) for name, values in spreads.items()}
    return {name: [float(f"{value:.4g}") for value in values] for name, values in medians.items()}


def report(case: str, measured: Measured) -> str:
    """What was measured at a case, a contender a line."""
    lines, first = [f"{case}: {CASES[case].text}"], next(iter(measured.values()))["rate"][0]
    for name, figures in measured.items():
        rate, least, most = figures["rate"]
        others = [f"{figure} {values[0]:,.10g}" for figure, values in figures.items() if figure != "rate"]
        rates = f"{rate:9,.10g} rows/s ({least:,.10g} to {most:,.10g}), first ÷ it {first / rate:.2f}"
        lines.append(f"  {name:38} {rates}; {', '.join(others)}")
    return "\n".join([*lines, ""])


def readme_table(cases: Mapping[str, Measured]) -> str:
    """The README's table in Markdown, of what was measured."""
    lines = ["| what | patches/s | in comparison |", "|---|---:|---|"]
    for case, name, text, others in README:
        measured = cases.get(case, {})
        if name in measured:
            rate = measured[name]["rate"][0]
            ratios = {other: rate / measured[other]["rate"][0] for other in others if other in measured}
            told = ", ".join(f"{ratio:.{2 if ratio < 10 else 0}f} × {other}" for other, ratio in ratios.items())
            lines.append(f"| {text} | {rate:,.0f} | {told} |")
    return "\n".join(lines) + "\n"


def to_json(facts: Mapping[str, Any], cases: Mapping[str, Measured]) -> str:
    """JSON with the figures of a contender in a line."""
    text = json.dumps({**facts, "cases": cases}, indent=1, ensure_ascii=False)
    return re.sub(r"\n {4,}", " ", text) + "\n"


def about(rows: int, rounds: int, tfds: str | None) -> dict[str, Any]:
    """Date, machine, versions and size of a run."""
    versions = {"python": platform.python_version()}
    code = "import json, sys; from importlib.metadata import distributions as all; print(json.dumps("
    code += "{one.name: one.version for one in all() if one.name in sys.argv}))"
    for python in filter(None, (tfds, sys.executable)):
        versions |= json.loads(subprocess.check_output([python, "-c", code, *PACKAGES]))
    machine = f"{os.cpu_count()} × {platform.machine()}, {platform.system()}"
    facts = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "versions": versions}
    text = "median, least, most: rate in rows/s, seconds, memory in MB, bytes of a row"
    return {**facts, "rows": rows, "rounds": rounds, "figures": text}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    from publishing import command

    parser = command.parser(
        "Measures this project against other ways to do the same, on synthetic data. First it compares the labels, ids"
        " and values that they give. Then they take turns, each in a process of its own. Figures are medians over the"
        " rounds. What is read lies in the page cache; what was written is on the disk before the next one starts."
        " Memory is what the largest process holds at most, mapped files included, and never less than this script's.",
        "  python scripts/benchmark.py\n"
        "  python scripts/benchmark.py --only shuffled-all growth --rows 1024\n"
        "  python scripts/benchmark.py --tfds .venv/tfds/bin/python --json build/benchmark.json\n\ncases:\n"
        + "\n".join(f"  {name:12} {case.text}" for name, case in CASES.items()),
    )
    least = command.number(EIGHTH * VALIDATION)
    parser.add_argument("--rows", type=least, default=8192, metavar="N", help="training rows (default: %(default)s)")
    parser.add_argument("--rounds", type=command.number(1), default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES], metavar="CASE", help="see below")
    parser.add_argument("--tfds", metavar="PYTHON", help="interpreter with tensorflow-datasets 4.9.10, else without it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for medians and spreads")
    return command.run(_run, parser, argv)


def _run(options: argparse.Namespace) -> None:
    facts = about(options.rows, options.rounds, options.tfds)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if options.json:
        options.json.open("a").close()  # an error now, not after a quarter of an hour
    results: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory(dir=FOLDER, ignore_cleanup_errors=True) as name:
        rows = {"source": options.rows, "small": options.rows // EIGHTH}
        bench = Bench(Path(name), serve(Path(name)), rows, options.tfds)
        bench.run(Contender(make_inputs, rows=options.rows), "work")
        for config in COLUMNS if options.tfds else ():
            bench.run(Contender(build_tfds, source="source", output=f"tfds-{config}", config=config), "work")
        for case in tqdm.tqdm(options.only, "comparing", disable=None, leave=False):
            bench.compare(case)
        for case in options.only:
            turns = [*bench.contenders(case).items()] * options.rounds
            rounds: dict[str, list[Figures]] = {name: [] for name, _ in turns}
            for contender, one in tqdm.tqdm(turns, case, disable=None, leave=False):
                rounds[contender].append(bench.run(one, CASES[case].measure))
            results[case] = {contender: summary(figures) for contender, figures in rounds.items()}
            print(report(case, results[case]), flush=True)
            if options.json:
                options.json.write_text(to_json(facts, results))
    print(readme_table(results))


if __name__ == "__main__":
    sys.exit(main())
