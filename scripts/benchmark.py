"""Measures this project against other ways to do the same, side by side, and prints the README's table.

A contender is a function of this file. It gets ready, which is not timed, and returns what is: work to do, or batches
to go through. It runs in a process of its own, in a temporary folder that holds

    source/    synthetic HDF5 files
    so2sat/    the Parquet repository of this project
    tfds/      what TensorFlow Datasets makes of the HDF5 files
    output/    what a contender writes

The head of this file imports only what the environment of TensorFlow Datasets has too.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib
import importlib.util
import json
import math
import os
import platform
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
from typing import Any, NamedTuple

import numpy as np
import tqdm

FOLDER = Path(__file__).parents[1] / "build" / "benchmark"  # temporary files
BATCH = 64  # rows
KEYS = 1000  # rows to ask for at random
VALIDATION = 17  # rows, one of each class
DELAY = 0.05  # s that the server waits before it answers
FILES = {"train": "training.h5", "validation": "validation.h5"}
ARRAYS = {"sen1": (32, 32, 8), "sen2": (32, 32, 10), "label": (17,)}  # of a row of the files, float64
COLUMNS = ["sentinel1", "sentinel2", "label", "sample_id"]
PACKAGES = ("datasets", "pyarrow", "numpy", "h5py", "pillow", "torch", "tensorflow_cpu", "tensorflow-datasets")

Batch = dict[str, Any]  # arrays or tensors by column
Batches = Callable[[int], Iterator[Batch]]  # the batches of an epoch, given its number
Work = Callable[[], object]
Figures = dict[str, float]
Measured = dict[str, dict[str, list[float]]]  # "rate" of every contender: median, least and most

# ┌──────────────────┐
# │  HDF5 → Parquet  │
# └──────────────────┘


def make_inputs(rows: int) -> Work:
    """Makes what contenders read: source and so2sat."""
    import build
    import sample

    def work() -> None:
        sample.write_sample(Path("source"), {"train": rows, "validation": VALIDATION})
        build.build("source", Path("so2sat"), configs=["rgb", "all"])

    return work


def build_repository(config: str, workers: int) -> Work:
    """This project: a Parquet repository with all that belongs to it."""
    import build
    from publishing import figures  # noqa: F401

    return lambda: build.build("source", Path("output"), configs=[config], workers=workers)


def build_row_by_row(config: str) -> Work:
    """What a loading script usually is; `datasets` encodes its images as PNG."""
    import datasets
    import h5py

    import so2sat

    class RowByRow(datasets.GeneratorBasedBuilder):  # type: ignore[misc]
        def _info(self) -> Any:
            return datasets.DatasetInfo(features=so2sat.features(config))

        def _split_generators(self, dl_manager: Any) -> list[Any]:
            paths = {split: f"source/{name}" for split, name in FILES.items()}
            return [datasets.SplitGenerator(name=split, gen_kwargs={"path": path}) for split, path in paths.items()]

        def _generate_examples(self, path: str) -> Iterator[tuple[int, Batch]]:
            with h5py.File(path) as file:
                for row in range(len(file["label"])):
                    yield row, {**converted(config, file, row), "sample_id": row}

    builder = RowByRow(cache_dir="output")
    return lambda: builder.download_and_prepare("output", file_format="parquet")


def build_tfds(config: str, output: str = "output") -> Work:
    """TensorFlow Datasets' so2sat, which gets the files in place of a download."""
    tfds = _tensorflow_datasets()
    module: Any = importlib.import_module("tensorflow_datasets.datasets.so2sat.so2sat_dataset_builder")
    given = types.SimpleNamespace(download=lambda urls: {key: f"source/{Path(urls[key]).name}" for key in urls})

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


def encode_alone(config: str) -> Work:
    """Only Pillow and pyarrow with this project's options: rows that are ready in memory are encoded and written."""
    import pyarrow.parquet as pq

    import so2sat
    from publishing import shards

    schema, ready = so2sat.features(config).arrow_schema, {}
    for split, name in FILES.items():
        with so2sat.open_source(f"source/{name}") as file:
            ready[split] = [so2sat.read_columns(file, config, *block) for block in so2sat.blocks(0, file.rows)]

    def work() -> None:
        for split, blocks in ready.items():
            options = shards.writer_options(schema, blocks[0])
            with pq.ParquetWriter(f"output/{split}.parquet", schema, **options) as writer:
                for columns in blocks:
                    writer.write_batch(shards.to_batch(columns, schema, "jpeg"))

    return work


def converted(config: str, arrays: Any, rows: Any = slice(None)) -> Batch:
    """One or more rows as this project has them, of the arrays of an HDF5 file by name."""
    label = arrays["label"][rows].argmax(axis=-1)
    if config == "rgb":
        pixels = arrays["sen2"][rows][..., [2, 1, 0]] * (3.5 * 255)
        return {"image": np.clip(pixels, 0, 255).astype(np.uint8), "label": label}
    sentinel1, sentinel2 = (arrays[name][rows].astype(np.float32) for name in ("sen1", "sen2"))
    return {"sentinel1": sentinel1, "sentinel2": sentinel2, "label": label}


# ┌────────────────────┐
# │  Rows to train on  │
# └────────────────────┘


def patches() -> Batches:
    """This project: batches by index, shuffled, from mapped Arrow, which `datasets` makes of the Parquet once."""
    import datasets

    from train import Patches

    dataset = Patches(datasets.load_dataset("so2sat", "all", split="train"), COLUMNS)

    def batches(number: int) -> Iterator[Batch]:
        order = np.random.default_rng(number).permutation(len(dataset))
        return (dataset[order[start : start + BATCH]] for start in range(0, len(order), BATCH))

    return batches


def data_loader() -> Batches:
    """What users of PyTorch write first."""
    import datasets
    from torch.utils.data import DataLoader

    dataset = datasets.load_dataset("so2sat", "all", split="train").with_format("torch")
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True)
    return lambda number: iter(loader)


def stream(folder: str, url: str = "", keyed: bool = False) -> Batches:
    """This project: Parquet in its order, from disk or server, or its rows of `keys`, loaded anew for every epoch."""
    import datasets
    import fsspec.implementations.http  # noqa: F401

    paths = {"train": [f"{url}{path}" for path in sorted(map(str, Path(folder).rglob("*train*.parquet")))]}
    filters = [("sample_id", "in", keys().tolist())] if keyed else None

    def batches(number: int) -> Iterator[Batch]:
        found = datasets.load_dataset("parquet", data_files=paths, split="train", streaming=True, filters=filters)
        return iter(found.with_format("numpy").iter(BATCH))

    return batches


def hdf5_dataset() -> Batches:
    """What load_dataset("hdf5") makes of the file: mapped Arrow of float64."""
    import datasets

    files = {"train": "source/training.h5"}
    dataset = datasets.load_dataset("hdf5", data_files=files, split="train").with_format("numpy")

    def batches(number: int) -> Iterator[Batch]:
        for start in range(0, len(dataset), BATCH):
            batch = converted("all", dataset[start : start + BATCH])
            yield {**batch, "sample_id": start + np.arange(len(batch["label"]))}

    return batches


def tfds_records(folder: str, shuffled: bool = False) -> Batches:
    """TFRecords as TensorFlow Datasets reads them, but never kept in memory: the real data would not fit."""
    tfds = _tensorflow_datasets()
    (info,) = Path(folder).rglob("dataset_info.json")
    reading = tfds.ReadConfig(try_autocache=False)
    dataset = tfds.builder_from_directory(info.parent).as_dataset("train", shuffle_files=shuffled, read_config=reading)
    dataset = (dataset.shuffle(1024) if shuffled else dataset).batch(BATCH).prefetch(-1)  # tf.data.AUTOTUNE
    return lambda number: iter(tfds.as_numpy(dataset))


def keys() -> Any:
    """Training rows to ask for, at random and in their order."""
    import h5py

    with h5py.File("source/training.h5") as file:
        return np.sort(np.random.default_rng(0).permutation(len(file["label"]))[:KEYS])


def ranges(url: str) -> Batches:
    """What contiguous arrays of HDF5 allow: a row is a range of bytes, and many are fetched at once."""
    import fsspec.implementations.http
    import h5py

    rows = keys()

    def batches(number: int) -> Iterator[Batch]:
        server, path, arrays = fsspec.filesystem("http"), f"{url}source/training.h5", {}
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


class Case(NamedTuple):
    """What contenders, this project's first, are compared at by one of MEASURES: a row of the README's table."""

    text: str
    measure: str
    contenders: Mapping[str, Contender[Any]]


def _conversion(config: str) -> Case:
    contenders: dict[str, Contender[Any]] = {
        "`build.py`, 1 worker": Contender(build_repository, config=config, workers=1),
        "`build.py`, 2 workers": Contender(build_repository, config=config, workers=2),
        "a builder row by row": Contender(build_row_by_row, config=config),
        "TFDS": Contender(build_tfds, config=config),
        "encoding alone": Contender(encode_alone, config=config),
    }
    return Case(f"HDF5 to Parquet by `build.py`, 1 worker, `{config}`", "work", contenders)


SHUFFLED: Mapping[str, Contender[Any]] = {
    "`Patches`": Contender(patches),
    'a DataLoader of `with_format("torch")`': Contender(data_loader),
    "TFDS": Contender(tfds_records, folder="tfds", shuffled=True),
}
IN_ORDER: Mapping[str, Contender[Any]] = {
    "a stream": Contender(stream, folder="so2sat/all"),
    '`load_dataset("hdf5")`': Contender(hdf5_dataset),
    "TFDS": Contender(tfds_records, folder="tfds"),
}
KEYED: Mapping[str, Contender[Any]] = {  # Bench knows the URL
    "a stream": Contender(stream, folder="so2sat/all", url="", keyed=True),
    "HDF5 by ranges, many at once": Contender(ranges, url=""),
}
CASES: Mapping[str, Case] = {
    "convert-all": _conversion("all"),
    "convert-rgb": _conversion("rgb"),
    "shuffled-all": Case("A shuffled epoch of `Patches`, `all`", "epochs", SHUFFLED),
    "epoch-all": Case("An epoch of a stream from disk, `all`", "epochs", IN_ORDER),
    "keys": Case(f"{KEYS:,} patches by random keys, from a server that answers in 50 ms", "once", KEYED),
}


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


def compared(batches: Batches) -> Figures:
    """Compares the first batch with the rows of its ids in the HDF5 file; JPEG may change pixels a little.

    Raises:
        ValueError: They differ.
    """
    import h5py

    batch = {name: np.asarray(values) for name, values in next(batches(0)).items()}
    ids = batch.pop("sample_id")
    with h5py.File("source/training.h5") as file:
        rows = {name: np.stack([file[name][row] for row in ids]) for name in ARRAYS}
    for name, right in converted("rgb" if "image" in batch else "all", rows).items():
        found = batch[name]
        if name == "image":
            same = np.abs(found.astype(int) - right).mean() < 3  # of 255
        else:
            same = found.dtype == right.dtype and found.tobytes() == right.tobytes()
        if not same:
            raise ValueError(f"{name} of the first batch is not that of its rows in the source")
    return {}


MEASURES: Any = {"work": timed_work, "once": timed_once, "epochs": timed_epochs, "compared": compared}


def contend(call: str) -> None:
    """Runs a contender in this process and prints its figures as the last line: what `in_own_process` asks for."""
    function, arguments, measure = json.loads(call)
    figures = MEASURES[measure](globals()[function](**arguments))
    print(f"\n{json.dumps(figures)}", flush=True)
    if measure == "compared":
        os._exit(0)  # Python can hang at its end after a stream that was left (apache/arrow#45214)


def in_own_process(contender: Contender[Any], measure: str, folder: Path, python: str) -> Figures:
    """Runs a contender in a process of its own.

    Raises:
        CommandError: It ended with an error.
    """
    from publishing.command import CommandError

    call = contender.func.__name__, contender.keywords, measure
    command = [python, "-c", "import sys, benchmark; benchmark.contend(sys.argv[1])", json.dumps(call)]
    scripts, home = Path(__file__).parent, {"HF_HOME": f"{folder / 'cache'}", "TMPDIR": f"{folder}"}
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    environment = {**os.environ, **home, **quiet, "PYTHONPATH": f"{scripts}{os.pathsep}{scripts.parent}"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes) as process:
        try:
            out, err = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # workers too
            process.wait()
            raise
    if process.returncode:
        reason = (err.strip().splitlines() or [f"ended with {process.returncode}"])[-1][:500]
        raise CommandError(f"{contender.func.__name__} {contender.keywords}: {reason}")
    figures: Figures = json.loads(out.splitlines()[-1])
    return figures


def serve(folder: Path) -> str:
    """Serves a folder by ranges until this process ends, each answer after DELAY, and returns its address."""
    from aiohttp import web

    app = web.Application()
    app.on_response_prepare.append(lambda request, response: asyncio.sleep(DELAY))
    app.router.add_static("/", folder)
    sock = socket.create_server(("127.0.0.1", 0), backlog=256)
    options = {"sock": sock, "loop": asyncio.new_event_loop(), "handle_signals": False, "print": None}
    threading.Thread(target=web.run_app, args=[app], kwargs=options, daemon=True).start()
    return f"http://127.0.0.1:{sock.getsockname()[1]}/"


class Bench(NamedTuple):
    """Runs contenders in a folder."""

    folder: Path
    url: str  # of the folder
    tfds: str | None  # interpreter for TensorFlow Datasets

    def contenders(self, case: str) -> dict[str, Contender[Any]]:
        """The contenders at a case that can run here."""
        absent: list[Any] = [] if self.tfds else [build_tfds, tfds_records]
        absent += [] if importlib.util.find_spec("torch") else [data_loader]
        return {name: one for name, one in CASES[case].contenders.items() if one.func not in absent}

    def run(self, contender: Contender[Any], measure: str) -> Figures:
        """Runs a contender."""
        python = self.tfds if self.tfds and contender.func in (build_tfds, tfds_records) else sys.executable
        if "url" in contender.keywords:
            contender = Contender(contender, url=self.url)
        if measure == "work":
            shutil.rmtree(self.folder / "output", ignore_errors=True)
            (self.folder / "output").mkdir()
            os.sync()  # what others wrote is on the disk
        return in_own_process(contender, measure, self.folder, python)

    def compare(self, contender: Contender[Any], measure: str) -> None:
        """Compares the first rows that a contender gives, or writes, with those of the source.

        Raises:
            CommandError: They differ.
        """
        if measure == "work":
            self.run(contender, measure)
            contender = Contender(tfds_records if contender.func is build_tfds else stream, folder="output")
        self.run(contender, "compared")


# ┌─────────────┐
# │  Reporting  │
# └─────────────┘


def spread(rates: Sequence[float]) -> dict[str, list[float]]:
    """Median, least and most, with four digits."""
    return {"rate": [float(f"{value:.4g}") for value in (np.median(rates), min(rates), max(rates))]}


def readme_table(cases: Mapping[str, Measured]) -> str:
    """The README's table in Markdown, of what was measured: a case a row, about its first contender."""
    lines = ["| what | patches/s | in comparison |", "|---|---:|---|"]
    for name, case in CASES.items():
        if name not in cases:
            continue
        rates = {one: cases[name][one]["rate"][0] for one in case.contenders if one in cases[name]}
        first, *others = rates
        ratios = {other: rates[first] / rates[other] for other in others}
        told = ", ".join(f"{ratio:.{2 if ratio < 10 else 0}f} × {other}" for other, ratio in ratios.items())
        lines.append(f"| {case.text} | {rates[first]:,.0f} | {told} |")
    return "\n".join(lines) + "\n"


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Date, machine, versions and size of a run."""
    versions = {"python": platform.python_version()}
    code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    for python in filter(None, (options.tfds, sys.executable)):
        found = json.loads(subprocess.check_output([python, "-c", code]))
        versions |= {name: found[name] for name in PACKAGES if name in found}
    machine = f"{os.cpu_count()} × {platform.machine()}, {platform.system()}"
    facts = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "versions": versions}
    return {**facts, "rows": options.rows, "rounds": options.rounds, "rate": "median, least, most, in rows/s"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    from publishing import command

    parser = command.parser(
        "Measures this project against other ways to do the same, on synthetic data. First it compares the first rows"
        " that each gives with the source. Then they take turns, each in a process of its own. Figures are medians over"
        " the rounds. What is read lies in the page cache; what was written is on the disk before the next one starts.",
        "  python scripts/benchmark.py\n"
        "  python scripts/benchmark.py --only shuffled-all keys --rows 1024\n"
        "  python scripts/benchmark.py --tfds .venv/tfds/bin/python --json build/benchmark.json\n\ncases:\n"
        + "\n".join(f"  {name:12} {case.text}" for name, case in CASES.items()),
    )
    least = command.number(VALIDATION)
    parser.add_argument("--rows", type=least, default=8192, metavar="N", help="training rows (default: %(default)s)")
    parser.add_argument("--rounds", type=command.number(1), default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES], metavar="CASE", help="see below")
    parser.add_argument("--tfds", type=os.path.abspath, metavar="PYTHON", help="one with tensorflow-datasets 4.9.10")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for medians and spreads")
    return command.run(_run, parser, argv)


def _run(options: argparse.Namespace) -> None:
    facts = about(options)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if options.json:
        options.json.open("a").close()  # an error now, not after a quarter of an hour
    results: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory(dir=FOLDER, ignore_cleanup_errors=True) as name:
        bench = Bench(Path(name), serve(Path(name)), options.tfds)
        bench.run(Contender(make_inputs, rows=options.rows), "work")
        if options.tfds:
            bench.run(Contender(build_tfds, output="tfds", config="all"), "work")
        pairs = [(one, case) for case in options.only for one in bench.contenders(case).values()]
        for one, case in tqdm.tqdm(pairs, "comparing", disable=None, leave=False):
            bench.compare(one, CASES[case].measure)
        for case in options.only:
            rates: dict[str, list[float]] = {name: [] for name in bench.contenders(case)}
            turns = [*bench.contenders(case).items()] * options.rounds
            for contender, one in tqdm.tqdm(turns, case, disable=None, leave=False):
                figures = bench.run(one, CASES[case].measure)
                rates[contender].append(figures.get("rows", options.rows + VALIDATION) / figures["seconds"])
            results[case] = {contender: spread(values) for contender, values in rates.items()}
            if options.json:
                text = json.dumps({**facts, "cases": results}, indent=1, ensure_ascii=False)
                options.json.write_text(f"{text}\n", encoding="utf-8")
    print(readme_table(results))


if __name__ == "__main__":
    sys.exit(main())
