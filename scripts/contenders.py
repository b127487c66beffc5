"""What benchmark.py measures: one function for each contender, run in a process of its own.

`python contenders.py JSON` runs one of them and prints its figures as the last line. Beyond the standard library every
function imports what it needs itself: the environment of TensorFlow Datasets has nothing of this project.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BLOCK = 128  # rows read at a time where a contender does not choose itself
SPLITS = {"training": "train", "validation": "validation"}
Batches = Callable[[int], Iterator[dict[str, Any]]]  # the batches of an epoch, given its number
Figures = dict[str, Any]


class Clock:
    """Times the work of a contender, and apart from it what comes before: interpreter start and imports."""

    def __init__(self, started: float) -> None:
        """Takes the time at which the process was started."""
        self._started = started
        self.imports = self.seconds = 0.0

    def imported(self) -> None:
        """Is told when all imports are done."""
        self.imports = time.time() - self._started

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Adds the time that the block takes."""
        before = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - before

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves out the time that the block takes, inside one of `work`."""
        before = time.perf_counter()
        yield
        self.seconds -= time.perf_counter() - before


# ┌──────────────────────────┐
# │  HDF5 → an on-disk form  │
# └──────────────────────────┘


def build(clock: Clock, path: str, output: str, config: str, workers: int) -> Figures:
    """Builds a Parquet repository with all that `build.build` does; the card's pictures are not in the time."""
    import build
    from publishing import (
        card,
        executors,
        figures,  # noqa: F401
    )

    clock.imported()
    draw = card.pictures

    def pictures(*arguments: Any) -> dict[str, bytes]:
        with clock.pause():
            return draw(*arguments)

    card.pictures = pictures  # type: ignore[assignment]
    with executors.processes(workers) as run:
        ready: set[int] = set()
        while len(ready) < workers:
            ready |= {process for _, process in run(_start, [0.2] * workers)}
        executors.processes = lambda workers: contextlib.nullcontext(run)  # type: ignore[assignment,return-value]
        with clock.work():
            build.build(path, Path(output), configs=[config], workers=workers)
    return {}


def _start(seconds: float) -> int:
    """Does in a worker what is done once: imports, and what they put off."""
    import so2sat
    from publishing import layout  # noqa: F401

    so2sat.features("all").arrow_schema  # noqa: B018
    time.sleep(seconds)  # so that the next call goes to another worker
    return os.getpid()


def builder(clock: Clock, path: str, output: str, config: str, workers: int | None = None) -> Figures:
    """Prepares Arrow with this project's builder."""
    import so2sat

    clock.imported()
    with clock.work():
        so2sat.So2Sat(config_name=config, data_dir=path, cache_dir=output).download_and_prepare(num_proc=workers)
    return {}


def loop(clock: Clock, path: str, output: str, config: str, once: bool = False) -> Figures:
    """Prepares Arrow with what a loading script usually is: a builder that reads row by row.

    It finds an array by its name for every row or, with `once`, for all rows, which spares it half of its time.
    """
    import datasets
    import h5py
    import numpy as np
    import PIL.Image

    import so2sat

    arrays = {f"sentinel{n}": datasets.Array3D(so2sat.SOURCE_SHAPES[f"sen{n}"], "float32") for n in (1, 2)}
    label = {"label": datasets.ClassLabel(names=list(so2sat.LABELS)), "sample_id": datasets.Value("int64")}

    class RowByRow(datasets.GeneratorBasedBuilder):  # type: ignore[misc]
        def _info(self) -> Any:
            columns = {"image": datasets.Image()} if config == "rgb" else arrays
            return datasets.DatasetInfo(features=datasets.Features({**columns, **label}))

        def _split_generators(self, dl_manager: Any) -> list[Any]:
            files = {split: Path(path, f"{name}.h5") for name, split in SPLITS.items()}
            return [datasets.SplitGenerator(name=split, gen_kwargs={"file": file}) for split, file in files.items()]

        def _generate_examples(self, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
            with h5py.File(file, "r") as opened:
                h5 = {name: opened[name] for name in opened} if once else opened
                for i in range(len(h5["label"])):
                    row: dict[str, Any] = {"label": int(np.argmax(h5["label"][i])), "sample_id": i}
                    if config == "rgb":
                        rgb = np.clip(h5["sen2"][i][..., [2, 1, 0]] * (3.5 * 255), 0, 255).astype(np.uint8)
                        buffer = io.BytesIO()
                        PIL.Image.fromarray(rgb).save(buffer, **so2sat.IMAGE_FORMATS["jpeg"])
                        row["image"] = {"bytes": buffer.getvalue(), "path": None}
                    else:
                        row["sentinel1"] = h5["sen1"][i].astype(np.float32)
                        row["sentinel2"] = h5["sen2"][i].astype(np.float32)
                    yield i, row

    clock.imported()
    with clock.work():
        RowByRow(cache_dir=output).download_and_prepare()
    return {}


def hdf5(clock: Clock, path: str, output: str, config: str) -> Figures:
    """Prepares Arrow with load_dataset("hdf5"), which keeps columns and types of the file."""
    import datasets
    import h5py  # noqa: F401

    clock.imported()
    files = {split: str(Path(path, f"{name}.h5")) for name, split in SPLITS.items()}
    with clock.work():
        datasets.load_dataset("hdf5", data_files=files, cache_dir=output)
    return {}


def default_parquet(clock: Clock, path: str, output: str, config: str) -> Figures:
    """Writes prepared Arrow as Parquet with the settings that `datasets` chooses."""
    import datasets  # noqa: F401

    clock.imported()
    splits = {split: _arrow(path, split) for split in SPLITS.values()}
    with clock.work():
        for split, dataset in splits.items():
            dataset.to_parquet(str(Path(output, f"{split}.parquet")))
    return {}


def tfds_build(clock: Clock, path: str, output: str, config: str) -> Figures:
    """Prepares TFRecords with TensorFlow Datasets; only its download is replaced, by the local files."""
    tfds = _tfds()
    clock.imported()
    tfds.download.DownloadManager.download = lambda self, urls: {
        key: str(Path(path, Path(url).name)) for key, url in urls.items()
    }
    with clock.work():
        tfds.builder("so2sat", config=config, data_dir=output, try_gcs=False).download_and_prepare()
    return {}


def _tfds() -> Any:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    tfds: Any = importlib.import_module("tensorflow_datasets")
    # It puts these off, and TensorFlow puts off more to its first operation.
    importlib.import_module("h5py")
    tensorflow: Any = importlib.import_module("tensorflow")
    tensorflow.io.encode_png(tensorflow.zeros((32, 32, 3), tensorflow.uint8)).numpy()
    importlib.import_module("tensorflow_datasets.datasets.so2sat.so2sat_dataset_builder")
    # It would look there for prepared data first.
    importlib.import_module("tensorflow_datasets.core.utils.gcs_utils")._is_gcs_disabled = True  # type: ignore[attr-defined]
    return tfds


def read_floor(clock: Clock, path: str, output: str, config: str) -> Figures:
    """Reads the arrays that a config needs and does nothing with them."""
    import h5py

    clock.imported()
    names = ("sen2", "label") if config == "rgb" else ("sen1", "sen2", "label")
    rows = 0
    for split in SPLITS:
        with h5py.File(Path(path, f"{split}.h5"), "r") as file, clock.work():
            for start in range(0, len(file["label"]), BLOCK):
                for name in names:
                    file[name][start : start + BLOCK]
            rows += len(file["label"])
    return {"rows": rows}


def encode_floor(clock: Clock, path: str, output: str, config: str) -> Figures:
    """Writes tables that lie in memory, at most 8,192 rows, as Parquet with this project's options."""
    import pyarrow.parquet as pq

    import so2sat
    from publishing import layout

    clock.imported()
    schema = so2sat.features(config).arrow_schema
    options: dict[str, Any] = {}
    tables = []
    with so2sat.open_source(str(Path(path, "training.h5"))) as file:
        for start in range(0, min(file.rows, 8192), BLOCK):
            columns = so2sat.read_columns(file, config, start, min(start + BLOCK, file.rows))
            options = options or layout.writer_options(schema, columns)
            tables.append(layout.to_table(columns, schema, "jpeg"))
    with clock.work(), pq.ParquetWriter(str(Path(output, "floor.parquet")), schema, **options) as writer:
        for table in tables:
            writer.write_table(table)
    return {"rows": sum(table.num_rows for table in tables)}


def jpeg_floor(clock: Clock, path: str, output: str, config: str) -> Figures:
    """Encodes pixels that lie in memory, at most 8,192 patches, as JPEG with this project's options."""
    import so2sat

    clock.imported()
    with so2sat.open_source(str(Path(path, "training.h5"))) as file:
        rows = min(file.rows, 8192)
        starts = range(0, rows, BLOCK)
        blocks = [so2sat.read_columns(file, "rgb", start, min(start + BLOCK, rows))["image"] for start in starts]
    with clock.work():
        for block in blocks:
            so2sat.encode_images(block, "jpeg")
    return {"rows": rows}


# ┌───────────┐
# │  Reading  │
# └───────────┘


def epoch(clock: Clock, form: str, path: str, config: str, **options: Any) -> Figures:
    """Goes through the training split twice in batches of arrays and times the second epoch; every value is read."""
    batches = FORMS[form](path, config, **options)
    clock.imported()
    for _ in batches(0):
        pass
    rows = labels = 0
    with clock.work():
        for batch in batches(1):
            rows += len(batch["label"])
            labels += int(batch["label"].sum())
            for values in batch.values():
                values.max()  # arrays over a mapped file are read only now
    return {"rows": rows, "labels": labels}


def fingerprint(clock: Clock, form: str, path: str, config: str) -> Figures:
    """What tells whether two forms hold the same training rows: sums of labels, and means of some patches."""
    import numpy as np

    rows = labels = by_id = 0
    means: dict[int, list[float]] = {}
    for batch in FORMS[form](path, config, size=BLOCK)(0):
        label, ids = np.asarray(batch["label"]), np.asarray(batch.get("sample_id", np.arange(rows, rows + BLOCK)))
        ids = ids[: len(label)]
        rows += len(label)
        labels += int(label.sum())
        by_id += int((label * ids).sum())
        for position in np.flatnonzero(ids % 97 == 0):
            names = ("image",) if config == "rgb" else ("sentinel1", "sentinel2")
            means[int(ids[position])] = [float(np.mean(batch[name][position], dtype=np.float64)) for name in names]
    return {"rows": rows, "labels": labels, "by_id": by_id, "means": [means[key] for key in sorted(means)]}


def _columns(config: str, columns: list[str] | None) -> list[str]:
    return columns or (["image", "label"] if config == "rgb" else ["sentinel1", "sentinel2", "label"])


def _repository(path: str, config: str, columns: list[str] | None = None, **options: Any) -> Batches:
    import datasets

    stream = datasets.load_dataset(path, config, split="train", streaming=True, columns=columns)
    return _epochs(stream, **options)


def _default_parquet(path: str, config: str, columns: list[str] | None = None, **options: Any) -> Batches:
    import datasets

    files = {"train": str(Path(path, "train.parquet"))}
    stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True, columns=columns)
    return _epochs(stream, **options)


def _source(path: str, config: str, size: int, columns: list[str] | None = None) -> Batches:
    """This project's builder, streaming from HDF5."""
    import so2sat

    dataset = so2sat.So2Sat(config_name=config, data_dir=path).as_streaming_dataset(split="train")
    return _epochs(dataset.select_columns(columns) if columns else dataset, size)


def _hdf5_stream(path: str, config: str, size: int, columns: list[str] | None = None) -> Batches:
    import datasets
    import h5py  # noqa: F401

    files = {"train": str(Path(path, "training.h5"))}
    dataset = datasets.load_dataset("hdf5", data_files=files, split="train", streaming=True).with_format("numpy")
    names = [f"sen{name[-1]}" if name != "label" else name for name in _columns(config, columns)]
    return lambda number: map(_renamed, dataset.select_columns(names).iter(batch_size=size))


def _renamed(batch: dict[str, Any]) -> dict[str, Any]:
    """Names and types of this project for those of the files."""
    names = {"sen1": "sentinel1", "sen2": "sentinel2"}
    arrays = {names[name]: values.astype("f4") for name, values in batch.items() if name in names}
    return {"label": batch["label"].argmax(axis=-1), **arrays}


def _arrow(path: str, split: str) -> Any:
    import datasets

    files = sorted(map(str, Path(path).rglob(f"*-{split}*.arrow")))
    return datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])


def _map_style(path: str, config: str, size: int, columns: list[str] | None = None, **options: Any) -> Batches:
    """Prepared Arrow; that of load_dataset("hdf5") has the columns of the files."""
    dataset = _arrow(path, "train")
    if "sen1" in dataset.column_names:
        dataset = dataset.with_format("numpy")
        return lambda number: map(_renamed, dataset.iter(batch_size=size))
    return _epochs(dataset.select_columns(columns) if columns else dataset, size, **options)


def _epochs(
    dataset: Any, size: int, shuffle: bool = False, block: int = 0, loader_workers: int | None = None
) -> Batches:
    """Batches of a dataset of `datasets`.

    Args:
        dataset: The dataset, a stream or map style.
        size: Rows of a batch.
        shuffle: Whether to shuffle as `datasets` or DataLoader do it.
        block: Instead, shuffle within so many rows of a stream at a time, as the README shows.
        loader_workers: Of a DataLoader that is to give the batches, if any.
    """
    is_stream = not hasattr(dataset, "__len__")
    if loader_workers is None:
        return functools.partial(_plain_epoch, dataset.with_format("numpy"), size, shuffle, block, is_stream)
    if block:
        return _loader(_torch_blocks(dataset.with_format("numpy"), size, block), loader_workers, batch_size=None)
    if is_stream:
        return _loader(_shuffled(dataset, 0).with_format("torch"), loader_workers, batch_size=size)
    return _loader_of_batches(dataset.with_format("torch"), size, loader_workers)


def _loader(dataset: Any, workers: int, **options: Any) -> Batches:
    """A DataLoader, which makes tensors of arrays."""
    data: Any = importlib.import_module("torch.utils.data")
    loader = data.DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0, **options)
    return lambda number: iter(loader)


def _loader_of_batches(dataset: Any, size: int, workers: int) -> Batches:
    """A shuffling DataLoader that asks a dataset for all rows of a batch at once."""
    data: Any = importlib.import_module("torch.utils.data")
    batches = data.BatchSampler(data.RandomSampler(dataset), size, drop_last=False)
    return _loader(dataset, workers, sampler=batches, batch_size=None)


def _torch_blocks(stream: Any, size: int, block: int) -> Any:
    """A dataset of PyTorch with the batches of `_in_blocks`, every worker with its share of the stream."""
    data: Any = importlib.import_module("torch.utils.data")
    from datasets.distributed import split_dataset_by_node

    class Blocks(data.IterableDataset):  # type: ignore[misc]
        def __iter__(self) -> Iterator[dict[str, Any]]:
            info = data.get_worker_info()
            mine = split_dataset_by_node(stream, info.id, info.num_workers) if info else stream
            return _in_blocks(mine, size, block, seed=0)

    return Blocks()


def _plain_epoch(
    dataset: Any, size: int, shuffle: bool, block: int, is_stream: bool, number: int
) -> Iterator[dict[str, Any]]:
    if block:
        return _in_blocks(dataset, size, block, seed=number)
    if shuffle:
        dataset = _shuffled(dataset, number) if is_stream else dataset.shuffle(seed=number)
    return iter(dataset.iter(batch_size=size))


def _shuffled(stream: Any, seed: int) -> Any:
    return stream.shuffle(seed=seed, buffer_size=1024)


def _in_blocks(stream: Any, size: int, block: int, seed: int) -> Iterator[dict[str, Any]]:
    import numpy as np

    random = np.random.default_rng(seed)
    for rows in stream.iter(block):
        order = random.permutation(len(rows["label"]))
        for start in range(0, len(order), size):
            yield {name: values[order[start : start + size]] for name, values in rows.items()}


class _Views:
    """The class Patches of the README: batches by their indices, from views of memory-mapped Arrow."""

    def __init__(self, dataset: Any, columns: list[str]) -> None:
        import numpy as np

        tables = dataset.with_format("arrow", columns=columns).iter(1024)
        blocks = [block for table in tables for block in table.to_batches()]
        self._views = [{name: block[name].to_numpy(zero_copy_only=False) for name in columns} for block in blocks]
        self._stops = np.cumsum([len(block) for block in blocks])

    def __len__(self) -> int:
        return int(self._stops[-1])

    def __getitem__(self, indices: Any) -> dict[str, Any]:
        import numpy as np

        blocks = np.searchsorted(self._stops, indices, side="right")
        places = [*zip(blocks, indices - self._stops[blocks])]
        return {name: np.stack([self._views[block][name][row] for block, row in places]) for name in self._views[0]}


class _Rows:
    """Map-style access to HDF5 by row, as TorchGeo's So2Sat has it, but with the file open and its arrays at hand."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._length = len(self._arrays["label"])

    @functools.cached_property
    def _arrays(self) -> dict[str, Any]:
        import h5py

        file = h5py.File(Path(self._path, "training.h5"), "r")
        return {name: file[name] for name in file}

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_length": self._length}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        arrays = {f"sentinel{n}": self._arrays[f"sen{n}"][index].astype("f4") for n in (1, 2)}
        return {**arrays, "label": self._arrays["label"][index].argmax()}


def _views(path: str, config: str, size: int, loader_workers: int | None = None) -> Batches:
    import numpy as np

    patches = _Views(_arrow(path, "train"), ["sentinel1", "sentinel2", "label"])
    if loader_workers is not None:
        return _loader_of_batches(patches, size, loader_workers)

    def batches(number: int) -> Iterator[dict[str, Any]]:
        order = np.random.default_rng(number).permutation(len(patches))
        return (patches[order[start : start + size]] for start in range(0, len(order), size))

    return batches


def _random_access(path: str, config: str, size: int, loader_workers: int | None = None) -> Batches:
    import h5py  # noqa: F401
    import numpy as np

    rows = _Rows(path)
    if loader_workers is not None:
        context = "spawn" if loader_workers else None  # HDF5 does not stand a fork
        return _loader(rows, loader_workers, batch_size=size, shuffle=True, multiprocessing_context=context)

    def batches(number: int) -> Iterator[dict[str, Any]]:
        order = np.random.default_rng(number).permutation(len(rows))
        for start in range(0, len(order), size):
            samples = [rows[int(index)] for index in order[start : start + size]]
            yield {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}

    return batches


def _records(path: str, config: str, size: int, columns: list[str] | None = None, shuffle: bool = False) -> Batches:
    """TFRecords, read as TensorFlow Datasets does, but never kept in memory: of the real data only `rgb` would fit."""
    tfds = _tfds()
    builder = tfds.builder("so2sat", config=config, data_dir=path, try_gcs=False)
    decoders = tfds.decode.PartialDecoding(dict.fromkeys(columns, True)) if columns else None
    reading = tfds.ReadConfig(try_autocache=False)
    dataset = builder.as_dataset(split="train", decoders=decoders, shuffle_files=shuffle, read_config=reading)
    dataset = dataset.shuffle(1024).batch(size) if shuffle else dataset.batch(size)
    dataset = dataset.prefetch(-1)  # tf.data.AUTOTUNE
    return lambda number: iter(tfds.as_numpy(dataset))


FORMS: dict[str, Callable[..., Batches]] = {
    "repository": _repository,
    "default parquet": _default_parquet,
    "arrow": _map_style,
    "views": _views,
    "source": _source,
    "hdf5 stream": _hdf5_stream,
    "hdf5 rows": _random_access,
    "records": _records,
}


def first_example(clock: Clock, urls: list[str], first_look: bool = False) -> Figures:
    """Fetches the first example of Parquet files on a server, `first_look` in the way that the README gives."""
    import datasets
    import fsspec.implementations.http  # noqa: F401

    clock.imported()
    options = {"storage_options": {"http": {"block_size": 1 << 16}}} if first_look else {}
    with clock.work():
        stream = datasets.load_dataset("parquet", data_files={"train": urls}, split="train", streaming=True, **options)
        example = next(iter((stream.reshard() if first_look else stream).with_format("numpy")))
    return {"label": int(example["label"])}


def main() -> None:
    """Runs the function that the first argument names and prints what it gives as JSON."""
    call = json.loads(sys.argv[1])
    clock = Clock(call["started"])
    figures = globals()[call["function"]](clock, **call["arguments"])
    print(json.dumps({"seconds": clock.seconds, "imports": clock.imports, **figures}), flush=True)
    os._exit(0)  # Python can hang at exit after a stream that was left (apache/arrow#45214)


if __name__ == "__main__":
    main()
