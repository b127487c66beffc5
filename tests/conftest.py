"""Fixtures: tiny source files of every shape, and repositories made of them."""

from __future__ import annotations

import atexit
import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Before `datasets` is imported: its cache goes to a folder of this run, and nothing asks the Hub.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="so2sat-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

import h5py  # noqa: E402
import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import pytest  # noqa: E402

import build  # noqa: E402
import sample  # noqa: E402
import so2sat  # noqa: E402
from publishing import card, manifest, shards  # noqa: E402
from publishing.configs import Limits  # noqa: E402
from servers import RangeServer, serving  # noqa: E402

Arrays = dict[str, npt.NDArray[Any]]

# PyTorch takes several GB: `make train` has it and runs these, `make test` does without.
collect_ignore = [] if importlib.util.find_spec("torch") else ["test_train_torch.py"]


def random_arrays(rows: int, seed: int = 0) -> Arrays:
    """Content of a source file: heavy-tailed `sen1`, quantised `sen2`, one-hot `label`, all float64."""
    rng = np.random.default_rng(seed)
    return {
        "sen1": rng.standard_t(2, (rows, 32, 32, 8)),
        "sen2": rng.integers(1, 4000, (rows, 32, 32, 10)) / 10_000,
        "label": np.eye(17)[rng.integers(0, 17, rows)],
    }


def write_source(path: Path, arrays: Mapping[str, npt.NDArray[Any]], **options: Any) -> Path:
    """Writes a source file; `options` go to h5py's create_dataset."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as h5:
        for name, array in arrays.items():
            h5.create_dataset(name, data=array, **options)
    return path


def write_sources(folder: Path, arrays: Mapping[str, Arrays]) -> Path:
    """Writes the source file of every split into a folder."""
    for split, content in arrays.items():
        write_source(folder / so2sat.SOURCE_FILES[split], content)
    return folder


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """What handles Ctrl-C outlives no test."""
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) == before


@pytest.fixture(scope="session")
def source_arrays() -> dict[str, Arrays]:
    """What the files of `source_folder` hold, by split; no split is a multiple of a block or a range."""
    return {
        "train": random_arrays(300, seed=1),
        "validation": random_arrays(70, seed=2),
        "test": random_arrays(33, seed=3),
    }


@pytest.fixture(scope="session")
def source_folder(tmp_path_factory: pytest.TempPathFactory, source_arrays: dict[str, Arrays]) -> Path:
    """A folder with the three source files in the official layout. Read only."""
    return write_sources(tmp_path_factory.mktemp("source"), source_arrays)


@pytest.fixture(scope="session")
def repository(source_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository called so2sat with both configs, built from `source_folder`. Read only."""
    folder = tmp_path_factory.mktemp("built") / "so2sat"
    build.build(str(source_folder), folder)
    return folder


@pytest.fixture(scope="session")
def small_arrays() -> dict[str, Arrays]:
    """What the files of `small_folder` hold, by split."""
    return {split: random_arrays(rows, seed=rows) for split, rows in (("train", 90), ("validation", 20), ("test", 12))}


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory, small_arrays: dict[str, Arrays]) -> Path:
    """A folder with three small source files. Read only."""
    return write_sources(tmp_path_factory.mktemp("small"), small_arrays)


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory, small_folder: Path) -> Path:
    """A repository made of `small_folder`, whose `all` has two shards of train: rows 0 to 79, 80 to 89. Read only."""
    folder = tmp_path_factory.mktemp("sound") / "so2sat"
    build.build(str(small_folder), folder, limits={"all": Limits(80, 80)})
    return folder


@pytest.fixture
def damaged(sound: Path, tmp_path: Path) -> Path:
    """A copy of `sound` to damage."""
    return Path(shutil.copytree(sound, tmp_path / "so2sat"))


@pytest.fixture(scope="session")
def full_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of editions 3 and 4, all splits small. Read only."""
    folder = tmp_path_factory.mktemp("full")
    sample.write_sample(folder, {"train": 40, "validation": 20, "test": 17})
    for name, rows in (("random/training", 21), ("random/testing", 22), ("block/training", 23), ("block/testing", 24)):
        write_source(folder / f"{name}.h5", random_arrays(rows, seed=rows))
    return folder


@pytest.fixture(scope="session")
def full_repository(full_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository called so2sat with all configs, built from `full_folder`. Read only."""
    folder = tmp_path_factory.mktemp("full") / "so2sat"
    build.build(str(full_folder), folder)
    return folder


@pytest.fixture(scope="session")
def large_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough rows for several shards once the limits are lowered, in small compressed files."""
    folder = tmp_path_factory.mktemp("large")
    for name, rows, seed in (("training.h5", 1100, 1), ("validation.h5", 300, 2), ("testing.h5", 40, 3)):
        arrays = {key: array.astype("f4") for key, array in random_arrays(rows, seed).items()}
        write_source(folder / name, arrays)
    return folder


def edit_json(path: Path, edit: Callable[[Any], Any]) -> None:
    """Changes the content of a JSON file."""
    content = json.loads(path.read_bytes())
    edit(content)
    path.write_bytes(json.dumps(content).encode())


def sign(repository: Path, name: str) -> None:
    """Makes manifest and card tell of a shard as it is now, as if it had been built like that."""
    built = manifest.Manifest.load(repository)
    assert built is not None
    data = (repository / name).read_bytes()
    built.shards[name] = dataclasses.replace(
        built.shards[name], bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
    built.save(repository)
    statistics = json.loads((repository / "statistics.json").read_bytes())["configs"]
    (repository / card.NAME).write_text(card.render(built, statistics, repository.name), encoding="utf-8")


def write_table(path: Path, table: pa.Table, group_rows: int, **options: Any) -> None:
    """Writes a table as a shard, by default in the layout that is expected."""
    defaults = {"write_page_index": True, "write_page_checksum": True, "compression": "zstd", "use_dictionary": False}
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path, **{"row_group_size": group_rows, **defaults, **options})


def write_shard(repository: Path, name: str, table: pa.Table, **options: Any) -> None:
    """Writes a table in place of a shard and signs it."""
    (planned,) = [shard for shard in manifest.load_built(repository).plan() if shard.name == name]
    write_table(repository / name, table, planned.group_rows, **options)
    sign(repository, name)


Edit = Callable[[dict[str, Any]], Any]  # changes columns: arrays of NumPy, or lists of other values


def edited(table: pa.Table, edit: Edit) -> pa.Table:
    """A shard's table with edited columns."""
    columns: dict[str, Any] = {}
    for field in table.schema:
        array = table[field.name].combine_chunks()
        if isinstance(field.type, pa.ExtensionType):
            values = array.storage.flatten().flatten().flatten().to_numpy()
            columns[field.name] = values.reshape(len(array), *field.type.shape).copy()
        else:
            columns[field.name] = array.to_pylist()
    edit(columns)
    arrays = [
        pa.ExtensionArray.from_storage(field.type, shards.nested_list(columns[field.name]))
        if isinstance(field.type, pa.ExtensionType)
        else pa.array(columns[field.name], field.type)
        for field in table.schema
    ]
    return pa.Table.from_arrays(arrays, schema=table.schema)


def set_value(column: str, index: Any, value: Any) -> Edit:
    """An edit of one place of a column."""
    return lambda columns: columns[column].__setitem__(index, value)


def contents(folder: Path) -> dict[str, bytes]:
    """Every published file of a repository with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and shards.STATE_FOLDER not in path.parts
    }


# Limits with which small sources make many shards.
SMALL = dict.fromkeys(("rgb", "all"), Limits(group_rows=64, shard_rows=128))


@pytest.fixture(scope="session")
def driver() -> list[str]:
    """Command that takes build.py's arguments and makes 42 shards where build.py would make 6."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(build.__file__).parent)!r})
import build
from publishing.configs import Limits
sys.exit(build.main(limits=dict.fromkeys(("rgb", "all"), Limits(64, 128))))
"""
    return [sys.executable, "-c", code]


@pytest.fixture(scope="session")
def undisturbed(large_source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one worker makes of `large_source` when nothing happens."""
    output = tmp_path_factory.mktemp("undisturbed") / "so2sat"
    build.build(str(large_source), output, workers=1, limits=SMALL)
    result = contents(output)
    assert sum(name.endswith(".parquet") for name in result) == 2 * (16 + 4 + 1)
    return result


def hearing(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Starts a command that hears SIGINT, even if the tests themselves run in the background and don't."""
    return subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options)


def wait_for_a_shard(process: subprocess.Popen[bytes], output: Path) -> None:
    """Waits until the first shard is finished."""
    while not list(output.glob("*/*.parquet")):
        assert process.poll() is None
        time.sleep(0.001)


@pytest.fixture
def http_source(source_folder: Path) -> Iterator[RangeServer]:
    """`source_folder` over HTTP."""
    with serving(source_folder) as server:
        yield server


def legacy_python(version: str = "3.6.0") -> Path:
    """Python of an environment with this version of datasets, h5py and pillow, which `make test` makes."""
    python = Path(so2sat.__file__).parent / ".venv" / f"datasets-{version}" / "bin" / "python"
    assert python.exists(), f"make .venv/datasets-{version}/ready"
    return python
