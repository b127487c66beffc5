"""So2Sat LCZ42: pairs of Sentinel-1 and Sentinel-2 patches, each with one of 17 local climate zones (LCZ).

A patch has 32×32 pixels of 10 m. Experts labelled the patches of 52 cities; Zhu et al. 2020 describe how
(doi 10.1109/MGRS.2020.2964708). The data are under CC BY 4.0.

Splits
    train       352,366 patches of 42 cities
    validation   24,119 patches of 10 other cities
    test         24,188 patches of the same 10 cities (not in edition 1)
    Edition 3 divides the patches of all cities anew, into train and test: at random, or by blocks.

Configs and columns
    rgb (default), rgb_random, rgb_block
        image       Image, 32×32 pixels: Sentinel-2 bands B4, B3, B2 × 3.5 × 255, cut to 8 bits, as JPEG
        label       ClassLabel, 0 to 16: LCZ 1 to 10, then A to G; LABELS has the names
        sample_id   int64, the row in the split's HDF5 file
    all, all_random, all_block
        label, sample_id
        sentinel1   float32 (32, 32, 8): linear units, not dB; VH before VV; SENTINEL1_BANDS
        sentinel2   float32 (32, 32, 10): reflectance, digital number / 10000; SENTINEL2_BANDS

Labels, ids and values are those of TensorFlow Datasets' so2sat 2.1.0. The RGB pixels equal its pixels; JPEG encoding
then changes them slightly, `image_format="png"` keeps them.

The data are official HDF5 files, 59 GB in all. A config has the splits whose files are there, so some of them will do.

    wget -c ftp://m1483140:m1483140@dataserv.ub.tum.de/validation.h5      # 3.6 GB; training.h5, testing.h5 beside it

Use this file as a module, or with `datasets` < 4 as a loading script.

    from so2sat import So2Sat

    if __name__ == "__main__":  # on macOS and Windows, the processes of num_proc import this script
        builder = So2Sat(config_name="rgb", data_dir="FOLDER")
        builder.download_and_prepare(num_proc=2)
        validation = builder.as_dataset(split="validation")

    load_dataset("so2sat.py", "rgb", data_dir="FOLDER", trust_remote_code=True)

`data_dir` may be a URL: https, ftp, s3 and what else fsspec knows. Files are then read by ranges, so a look at some
patches needs no file of your own. FTP was tried against servers of ours, not against the publisher's.

    from so2sat import So2Sat

    look = So2Sat(config_name="rgb", data_dir="ftp://m1483140:m1483140@dataserv.ub.tum.de")
    print(next(iter(look.as_streaming_dataset(split="validation"))))
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ftplib
import gc
import io
import os
import posixpath
import re
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, ClassVar

import datasets
import fsspec
import h5py
import numpy as np
import numpy.typing as npt
import PIL.Image
from datasets.fingerprint import Hasher
from fsspec.core import url_to_fs
from fsspec.implementations.ftp import FTPFile, FTPFileSystem

logger = datasets.utils.logging.get_logger(__name__)

VERSION = "2.1.0"
HOMEPAGE = "https://doi.org/10.14459/2018mp1483140"
LICENSE = "cc-by-4.0"
DESCRIPTION = (
    "So2Sat LCZ42: 400,673 co-registered Sentinel-1 and Sentinel-2 patches of 32×32 pixels (10 m each) from 52 cities"
    " on six continents, 42 of them in the training split, each patch with one of 17 local climate zone (LCZ) labels"
    " given by experts."
)
CITATION = """\
@article{zhu2020so2sat,
  title   = {{So2Sat LCZ42}: A Benchmark Data Set for the Classification of Global Local Climate Zones},
  author  = {Zhu, Xiao Xiang and Hu, Jingliang and Qiu, Chunping and Shi, Yilei and Kang, Jian and Mou, Lichao and
             Bagheri, Hossein and H{\\"a}berle, Matthias and Hua, Yuansheng and Huang, Rong and Hughes, Lloyd and
             Li, Hao and Sun, Yao and Zhang, Guichen and Han, Shiyao and Schmitt, Michael and Wang, Yuanyuan},
  journal = {IEEE Geoscience and Remote Sensing Magazine},
  volume  = {8},
  number  = {3},
  pages   = {76--89},
  year    = {2020},
  doi     = {10.1109/MGRS.2020.2964708}
}
@misc{so2sat2018,
  title     = {{So2Sat LCZ42}, second edition},
  author    = {Zhu, Xiao Xiang and others},
  publisher = {Technical University of Munich},
  doi       = {10.14459/2018mp1483140}
}"""


# ┌──────────┐
# │  Schema  │
# └──────────┘

# Local climate zones in index order, spelled as in TensorFlow Datasets: LCZ 1 to 10, built, and A to G, land cover.
# fmt: off
LABELS = (
    "Compact high-rise", "Compact mid-rise", "Compact low-rise", "Open high-rise", "Open mid-rise", "Open low-rise",
    "Lightweight low-rise", "Large low-rise", "Sparsely built", "Heavy industry",
    "Dense trees", "Scattered trees", "Bush or scrub", "Low plants", "Bare rock or paved", "Bare soil or sand", "Water",
)
# fmt: on

PATCH_SIZE = 32  # pixels a side
PIXEL_SIZE = 10  # metres a side


@dataclasses.dataclass(frozen=True)
class Band:
    """One channel of a patch.

    Attributes:
        name: The band's usual name.
        meaning: What it measures.
        unit: Unit of its values.
        wavelength: Centre wavelength in nm (Sentinel-2A), None for radar.
    """

    name: str
    meaning: str
    unit: str
    wavelength: float | None = None


# Dataset `sen1`: Sentinel-1, linear units (not dB), VH before VV.
SENTINEL1_BANDS = (
    Band("VH real", "real part of the unfiltered VH signal", "linear amplitude"),
    Band("VH imaginary", "imaginary part of the unfiltered VH signal", "linear amplitude"),
    Band("VV real", "real part of the unfiltered VV signal", "linear amplitude"),
    Band("VV imaginary", "imaginary part of the unfiltered VV signal", "linear amplitude"),
    Band("VH intensity", "VH intensity, refined Lee filter", "linear power"),
    Band("VV intensity", "VV intensity, refined Lee filter", "linear power"),
    Band("covariance real", "real part of the VH-VV covariance, Lee filter", "linear power"),
    Band("covariance imaginary", "imaginary part of the VH-VV covariance, Lee filter", "linear power"),
)

# Dataset `sen2`: Sentinel-2, reflectance = digital number / 10000, every band resampled to 10 m.
SENTINEL2_BANDS = (
    Band("B2", "blue", "reflectance", 492.4),
    Band("B3", "green", "reflectance", 559.8),
    Band("B4", "red", "reflectance", 664.6),
    Band("B5", "vegetation red edge", "reflectance", 704.1),
    Band("B6", "vegetation red edge", "reflectance", 740.5),
    Band("B7", "vegetation red edge", "reflectance", 782.8),
    Band("B8", "near infrared", "reflectance", 832.8),
    Band("B8A", "narrow near infrared", "reflectance", 864.7),
    Band("B11", "short-wave infrared", "reflectance", 1613.7),
    Band("B12", "short-wave infrared", "reflectance", 2202.4),
)
RGB_BANDS = (2, 1, 0)  # B4, B3, B2: positions in SENTINEL2_BANDS

# Shape of one row of every dataset in the source files.
SOURCE_SHAPES: Mapping[str, tuple[int, ...]] = {
    "sen1": (PATCH_SIZE, PATCH_SIZE, len(SENTINEL1_BANDS)),
    "sen2": (PATCH_SIZE, PATCH_SIZE, len(SENTINEL2_BANDS)),
    "label": (len(LABELS),),
}

# The source file of every split: of editions 1, 2 and 4, and of edition 3's two divisions, in folders of their own.
SOURCE_FILES: Mapping[str, str] = {"train": "training.h5", "validation": "validation.h5", "test": "testing.h5"}
RANDOM_FILES: Mapping[str, str] = {"train": "random/training.h5", "test": "random/testing.h5"}
BLOCK_FILES: Mapping[str, str] = {"train": "block/training.h5", "test": "block/testing.h5"}
EDITION_3_FOLDERS = ("random", "block", "culture_10")


@dataclasses.dataclass(frozen=True)
class Config:
    """A config: what its rows hold and what they are made from.

    Attributes:
        columns: Its columns, names of FEATURES, in their order.
        description: In one line.
        files: The source file of every split, by its path in the data folder.
    """

    columns: tuple[str, ...]
    description: str
    files: Mapping[str, str]


# What a column holds. A config may have any of them; read_columns makes them.
FEATURES: Mapping[str, Any] = {
    "image": datasets.Image(),
    "label": datasets.ClassLabel(names=list(LABELS)),
    "sample_id": datasets.Value("int64"),
    "sentinel1": datasets.Array3D(SOURCE_SHAPES["sen1"], "float32"),
    "sentinel2": datasets.Array3D(SOURCE_SHAPES["sen2"], "float32"),
}

_RGB = ("image", "label", "sample_id")
_RGB_TEXT = "Sentinel-2 in natural colours as 8-bit images (red, green, blue = B4, B3, B2)"
_ALL = ("label", "sample_id", "sentinel1", "sentinel2")
_ALL_TEXT = "8 Sentinel-1 and 10 Sentinel-2 channels as float32"
CONFIGS: Mapping[str, Config] = {
    "rgb": Config(_RGB, _RGB_TEXT, SOURCE_FILES),
    "all": Config(_ALL, _ALL_TEXT, SOURCE_FILES),
    "rgb_random": Config(_RGB, f"{_RGB_TEXT}, split at random (edition 3)", RANDOM_FILES),
    "all_random": Config(_ALL, f"{_ALL_TEXT}, split at random (edition 3)", RANDOM_FILES),
    "rgb_block": Config(_RGB, f"{_RGB_TEXT}, split by blocks within every city (edition 3)", BLOCK_FILES),
    "all_block": Config(_ALL, f"{_ALL_TEXT}, split by blocks within every city (edition 3)", BLOCK_FILES),
}
DEFAULT_CONFIG = "rgb"

# Parameters of PIL.Image.Image.save. Optimised Huffman tables change no pixel and save a fifth of the bytes.
IMAGE_FORMATS: Mapping[str, Mapping[str, Any]] = {
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0, "optimize": True},
    "png": {"format": "PNG"},
}


def features(config: str) -> datasets.Features:
    """Features of a config, in the order of its columns."""
    return datasets.Features({name: FEATURES[name] for name in CONFIGS[config].columns})


# ┌───────────┐
# │  Builder  │
# └───────────┘

ROWS_PER_BLOCK = 128  # what is held in memory at a time: 19 MB of float64
ROWS_PER_RANGE = 256  # what parallel readers of one file divide among themselves


@dataclasses.dataclass
class So2SatConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """Config of So2Sat.

    Attributes:
        data_dir: Folder or fsspec URL of the source files.
        image_format: How `rgb` encodes its images: "jpeg" (quality 95, no chroma subsampling) or "png" (lossless).
    """

    data_dir: str | None = None
    image_format: str = "jpeg"

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: datasets.Features | None = None) -> str:
        """Makes the cache tell apart folders of the same relative name, and a folder before and after a change."""
        if not isinstance(self.data_dir, (str, os.PathLike, type(None))):
            raise ValueError(f"data_dir {self.data_dir!r} is not a path or a URL")
        if self.data_dir:
            self.data_dir = os.fspath(self.data_dir)
        if self.data_dir and is_url(self.data_dir):
            # It becomes the name of a folder, which must not show a password.
            config_kwargs = {**config_kwargs, "data_dir": Hasher.hash(self.data_dir)}
        elif self.data_dir:
            # Resolved now: the working folder may be another when the files are read.
            self.data_dir = folder = os.path.abspath(os.path.expanduser(self.data_dir))
            paths = [os.path.join(folder, name) for name in CONFIGS[self.name].files.values()]
            found = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths if os.path.isfile(path)]
            config_kwargs = {**config_kwargs, "data_dir": folder, "source_files": str(found)}
        config_id: str = super().create_config_id(config_kwargs, custom_features)
        return config_id


class So2Sat(datasets.GeneratorBasedBuilder):  # type: ignore[misc]
    """So2Sat LCZ42 from its official HDF5 files; this module's docstring describes the dataset.

    Args:
        config_name: One of CONFIGS.
        data_dir: Local folder or fsspec URL with the files under their official names, edition 3's in the folders
            `random` and `block`. A URL is read by ranges, and printed without user, password and query.
        image_format: "jpeg" or "png", for the configs with images.
    """

    VERSION = datasets.Version(VERSION)
    BUILDER_CONFIG_CLASS = So2SatConfig
    BUILDER_CONFIGS: ClassVar[list[So2SatConfig]] = [
        So2SatConfig(name=name, version=datasets.Version(VERSION), description=config.description)
        for name, config in CONFIGS.items()
    ]
    DEFAULT_CONFIG_NAME = DEFAULT_CONFIG
    DEFAULT_WRITER_BATCH_SIZE = ROWS_PER_BLOCK  # the default of 1,000 would hold 74 MB of arrays

    def _info(self) -> datasets.DatasetInfo:
        if self.config.image_format not in IMAGE_FORMATS:
            raise ValueError(f"image_format {self.config.image_format!r} is not one of {', '.join(IMAGE_FORMATS)}")
        return datasets.DatasetInfo(
            description=DESCRIPTION,
            citation=CITATION,
            homepage=HOMEPAGE,
            license=LICENSE,
            features=features(self.config.name),
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        if self.config.data_files or not self.config.data_dir:
            raise ValueError(_NO_DATA_DIR)
        sources = find_sources(self.config.data_dir, self.config.name, self.storage_options)
        if absent := absent_splits(self.config.name, CONFIGS[self.config.name].files, sources):
            logger.warning(printable(f"{self.config.data_dir}: {absent}"))
        # What the files hold, not what dataset_infos.json expects of the full dataset, is what must come out.
        self.info.splits = datasets.SplitDict()
        generators = []
        for split, path in sources.items():
            with open_source(path, self.storage_options) as source:
                if not dl_manager.is_streaming:
                    source.check_labels()
                if source.synthetic:
                    logger.warning(printable(f"{path} is synthetic: {source.synthetic}"))
                    self.info.description = f"SYNTHETIC: {source.synthetic} {DESCRIPTION}"
                ranges = [*blocks(0, source.rows, ROWS_PER_RANGE)]
                self.info.splits.add(datasets.SplitInfo(name=split, num_examples=source.rows))
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs={"path": path, "row_ranges": ranges}))
        return generators

    def _generate_examples(self, path: str, row_ranges: list[tuple[int, int]]) -> Iterator[tuple[int, dict[str, Any]]]:
        with open_source(path, self.storage_options) as source:
            for first, last in row_ranges:
                for start, stop in blocks(first, last):
                    columns: dict[str, Any] = {**read_columns(source, self.config.name, start, stop)}
                    for name in ("label", "sample_id"):
                        columns[name] = columns[name].tolist()
                    if "image" in columns:
                        files = encode_images(columns["image"], self.config.image_format)
                        columns["image"] = [{"bytes": file, "path": None} for file in files]
                    for row in zip(*columns.values()):
                        example = dict(zip(columns, row))
                        yield example["sample_id"], example


_NO_DATA_DIR = f"""\
So2Sat is built from the official HDF5 files (59 GB), which you get first: {HOMEPAGE}
The smallest, validation.h5 (3.6 GB), is enough to begin with; training.h5 and testing.h5 lie beside it:
    wget -c --directory-prefix=DIR ftp://m1483140:m1483140@dataserv.ub.tum.de/validation.h5
Then pass their folder (or an fsspec URL), not data_files: So2Sat(config_name="rgb", data_dir="DIR")"""


def blocks(start: int, stop: int, rows: int = ROWS_PER_BLOCK) -> Iterator[tuple[int, int]]:
    """Divides a range of rows into blocks of at most `rows`: the first row of each, and the row after its last."""
    for first in range(start, stop, rows):
        yield first, min(first + rows, stop)


# ┌────────────────┐
# │  Source files  │
# └────────────────┘


class SourceError(ValueError):
    """A source file is not what it must be. The message is one line: file, dataset, what was found and expected."""

    def __init__(self, message: str) -> None:
        """Makes the error; secrets of URLs, and what a damaged file may bring into the message, are not printed."""
        super().__init__(printable(message))


class MissingSourceError(SourceError):
    """A source file is not there."""


def printable(text: object) -> str:
    """A text that is safe to print: one line, no control characters, URLs without user, password and query."""
    line = " ".join(str(text).split())
    line = re.sub(r"(?<=://)[^/\s]*@", "", line)
    line = re.sub(r"(://[^\s?]*)\?\S*?(?=[:;,.)'\"]*(?:\s|$))", r"\1", line)
    return "".join(letter if letter.isprintable() else "�" for letter in line)


def is_url(path: str) -> bool:
    """Whether a path is an fsspec URL, not a local one; a colon alone may be in a name, and is in those of Windows."""
    return "://" in path


def split_query(path: str) -> tuple[str, str]:
    """Divides a URL before its query; other paths have none."""
    path, mark, query = path.partition("?") if is_url(path) else (path, "", "")
    return path, mark + query


def join(folder: str, name: str) -> str:
    """The path of a file in a folder. In a URL it goes before the query."""
    root, query = split_query(folder)
    return f"{root.rstrip('/')}/{name}{query}"


def find_sources(folder: str, config: str, storage_options: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Finds the source files of a config in a folder and checks each one's layout.

    Args:
        folder: A local folder or an fsspec URL that holds the files under their official names, edition 3's in the
            folders `random` and `block`.
        config: Name of the config.
        storage_options: Options of the URL's file system.

    Returns:
        The path of every split's file, in the order train, validation, test. A split whose file is absent has none.

    Raises:
        MissingSourceError: None of the config's files is there.
        SourceError: One can't be read, is not as expected, or the folder is one of edition 3's.
    """
    files = CONFIGS[config].files
    if files == SOURCE_FILES:
        check_folder(folder, config)
    if not is_url(folder) and not os.path.isdir(os.path.expanduser(folder)):
        raise MissingSourceError(f"{folder}: no such folder, expected one with {' or '.join(files.values())}")
    sources = {}
    for split, name in files.items():
        path = join(folder, name)
        with contextlib.suppress(MissingSourceError), open_source(path, storage_options):
            sources[split] = path
    if not sources:
        others = _what_is_there(folder, storage_options or {})
        raise MissingSourceError(f"{folder}: no {' or '.join(files.values())}, which config '{config}' needs{others}")
    return sources


def check_folder(folder: str, config: str) -> None:
    """Makes sure that a config with the splits of editions 1, 2 and 4 is not made of a folder of edition 3's files.

    Raises:
        SourceError: The folder is called as one.
    """
    if posixpath.basename(split_query(folder)[0].rstrip("/")) in EDITION_3_FOLDERS:
        raise SourceError(
            f"{folder}: a folder of this name holds one of edition 3's splits, which config '{config}' is not made of;"
            " give its parent for edition 3's configs, or rename it"
        )


def absent_splits(config: str, files: Mapping[str, str], sources: Collection[str]) -> str:
    """Says in words which splits of a config are left out, if any are."""
    absent = {split: name for split, name in files.items() if split not in sources}
    if not absent:
        return ""
    return f"config '{config}' has no split {', '.join(absent)}: no {', '.join(absent.values())}"


def _what_is_there(folder: str, storage_options: Mapping[str, Any], limit: int = 10) -> str:
    """Names the folders and HDF5 files in a folder, if its file system can list it. HTTP can't, but by guesses."""
    if folder.startswith(HTTP):
        return ""
    try:
        with _filesystem(folder, storage_options) as (filesystem, path):
            entries = filesystem.ls(path, detail=True)
    except Exception:  # what matters is said without it
        return ""
    names = [posixpath.basename(entry["name"].rstrip("/")) + "/" * (entry["type"] == "directory") for entry in entries]
    names = sorted(name for name in names if name.endswith(("/", ".h5", ".h5.gz")))
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"; it holds {', '.join(names[:limit])}{more}" if names else ""


@contextlib.contextmanager
def open_source(
    path: str,
    storage_options: Mapping[str, Any] | None = None,
    shapes: Mapping[str, tuple[int, ...]] = SOURCE_SHAPES,
    optional_text: Mapping[str, tuple[int, ...]] | None = None,
) -> Iterator[Source]:
    """Opens a source file and checks its layout, but reads no rows.

    Args:
        path: A local path or an fsspec URL, which is read by ranges and never downloaded whole.
        storage_options: Options of the URL's file system.
        shapes: Shape of one row of every dataset of numbers that it must hold.
        optional_text: Shape of one row of every dataset of text that it may hold.

    Raises:
        MissingSourceError: There is no such file.
        SourceError: It is not an HDF5 file of this layout, or it points at data in other files.
    """
    with contextlib.ExitStack() as stack:
        with _damage_as_source_error(f"{path}: can't be read as an HDF5 file of So2Sat"):
            h5 = _open_h5(stack, path, storage_options or {})
            arrays = {name: _checked_array(h5, path, name, shape, "fiu") for name, shape in shapes.items()}
            for name, shape in (optional_text or {}).items():
                if h5.get(name, getlink=True) is not None:
                    arrays[name] = _checked_array(h5, path, name, shape, "text")
            rows = {name: len(array) for name, array in arrays.items()}
            size, synthetic = h5.id.get_filesize(), printable(h5.attrs.get("synthetic", ""))
        if len({*rows.values()}) > 1:
            found = ", ".join(f"'{name}' has {count}" for name, count in rows.items())
            raise SourceError(f"{path}: datasets differ in length ({found} rows), expected the same number of rows")
        count = next(iter(rows.values()))
        if count == 0:
            raise SourceError(f"{path}: datasets {', '.join(map(repr, rows))} have 0 rows, expected at least 1")
        yield Source(path, arrays, count, size, synthetic)


@dataclasses.dataclass(frozen=True)
class Source:
    """An open source file whose layout has been checked.

    Attributes:
        path: Path or URL it was opened from.
        arrays: Its datasets: `sen1` (N, 32, 32, 8), `sen2` (N, 32, 32, 10) and `label` (N, 17), any real dtype.
        rows: N, at least 1.
        bytes: Size of the file.
        synthetic: What a stand-in file says of itself; empty for measured data.
    """

    path: str
    arrays: Mapping[str, h5py.Dataset]
    rows: int
    bytes: int
    synthetic: str

    def read(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Reads rows `start` to `stop` of dataset `name`, in the dtype of the file.

        Raises:
            SourceError: They can't be read, for example because a compressed chunk is damaged.
        """
        what = f"{self.path}: dataset '{name}', rows {start} to {stop - 1} can't be read"
        with _damage_as_source_error(what):
            rows: npt.NDArray[Any] = self.arrays[name][start:stop]
        return rows

    def read_labels(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Reads the labels of rows `start` to `stop` as class indices, shape (stop - start,), int64.

        Raises:
            SourceError: A row is not one-hot. The index is the position of the one, never an argmax.
        """
        one_hot = self.read("label", start, stop)
        is_one = one_hot == 1
        wrong = (is_one.sum(axis=1) != 1) | ((one_hot != 0) & ~is_one).any(axis=1)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            found = " ".join(f"{value:g}" for value in one_hot[row].astype(np.float64))
            raise SourceError(
                f"{self.path}: dataset 'label', row {start + row} is [{found}],"
                f" expected one-hot: a single 1 among {len(LABELS)} values, the others 0"
            )
        labels: npt.NDArray[np.int64] = is_one.argmax(axis=1).astype(np.int64)
        return labels

    def check_labels(self) -> None:
        """Reads every label, so that a bad one is found before anything is written.

        Raises:
            SourceError: A row is not one-hot.
        """
        for start, stop in blocks(0, self.rows, 1 << 16):
            self.read_labels(start, stop)


def _open_h5(stack: contextlib.ExitStack, path: str, storage_options: Mapping[str, Any]) -> h5py.File:
    expected = "expected an HDF5 file of So2Sat"
    try:
        if is_url(path):
            file = stack.enter_context(contextlib.closing(_RemoteFile(path, storage_options)))
            return stack.enter_context(h5py.File(file, "r"))
        path = os.path.expanduser(path)
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise SourceError(f"{path}: not a file, {expected}")
        # Nobody writes these files, and a lock fails on some network file systems.
        return stack.enter_context(h5py.File(path, "r", locking=False))
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise SourceError(f"{path}: a link to {os.readlink(path)}, which is not there, {expected}") from error
        raise MissingSourceError(f"{path}: no such file, {expected}") from error


@contextlib.contextmanager
def _damage_as_source_error(what: str) -> Iterator[None]:
    """Makes a SourceError of whatever h5py raises: damaged bytes lead it to errors of any type."""
    try:
        yield
    except (SourceError, MemoryError):
        raise
    except Exception as error:
        raise SourceError(f"{what} ({str(error) or type(error).__name__}); if it is damaged, fetch it again") from error


def _checked_array(h5: h5py.File, path: str, name: str, shape: tuple[int, ...], kinds: str) -> h5py.Dataset:
    link = h5.get(name, getlink=True)
    expected = f"expected a dataset of shape (N, {', '.join(map(str, shape))})"
    if link is None:
        raise SourceError(f"{path}: no dataset '{name}' (found: {', '.join(map(str, h5)) or 'nothing'}), {expected}")
    if not isinstance(link, h5py.HardLink):
        raise SourceError(
            f"{path}: '{name}' is a link to '{getattr(link, 'filename', path)}:{link.path}' (links are refused,"
            f" they can lead to other files), {expected} in the file itself"
        )
    array = h5[name]
    if not isinstance(array, h5py.Dataset):
        raise SourceError(f"{path}: '{name}' is a {type(array).__name__.lower()}, {expected}")
    if array.external:
        raise SourceError(f"{path}: dataset '{name}' has external storage in {array.external[0][0]!r}, {expected}")
    if array.is_virtual:
        raise SourceError(f"{path}: dataset '{name}' is virtual, its data are in other files, {expected}")
    if not array.shape or (array.shape[1:] != shape and (*array.shape[1:], 1) != shape):
        raise SourceError(f"{path}: dataset '{name}' has shape {array.shape}, {expected}")
    kind = "text" if h5py.check_string_dtype(array.dtype) else array.dtype.kind
    if kind not in kinds:
        wanted = "text" if kinds == "text" else "a real or an integer one"
        raise SourceError(f"{path}: dataset '{name}' has dtype {array.dtype}, expected {wanted}")
    properties = array.id.get_create_plist()
    for code, _, _, title in map(properties.get_filter, range(properties.get_nfilters())):
        if not h5py.h5z.filter_avail(code):
            raise SourceError(
                f"{path}: dataset '{name}' needs the HDF5 filter {code} ({title.decode(errors='replace')}), not"
                " installed; pip install hdf5plugin, and set HDF5_PLUGIN_PATH to hdf5plugin.PLUGIN_PATH"
            )
    return array


# ┌────────────────┐
# │  Remote files  │
# └────────────────┘

HTTP = ("http://", "https://")
RETRY_WAITS = (0.5, 1, 2, 4, 8, 16)  # seconds before every new attempt
RETRY_SECONDS = 60  # no new attempt begins later than this after the first
TIMEOUT = 30  # seconds without a byte from a server


def retry(attempt: Callable[..., Any], *args: Any) -> Any:
    """Calls a function, again where its failure is transient, and returns what it returns.

    Raises:
        Exception: What the last call raised. KeyboardInterrupt and SystemExit pass at once.
    """
    deadline = time.monotonic() + RETRY_SECONDS
    for wait in RETRY_WAITS:
        try:
            return attempt(*args)
        except Exception as error:
            if not is_transient(error) or time.monotonic() + wait > deadline:
                raise
            logger.warning(printable(f"{type(error).__name__}: {error}; trying again in {wait} s"))
        time.sleep(wait)
    return attempt(*args)


def is_transient(error: BaseException) -> bool:
    """Whether a failure of a server, or on the way to it, may pass by itself."""
    # Of aiohttp, else of huggingface_hub.
    status = getattr(error, "status", getattr(getattr(error, "response", None), "status_code", None))
    if isinstance(status, int):
        return status == 429 or status >= 500
    # A bad URL and a bad certificate are ValueErrors.
    if isinstance(error, (FileNotFoundError, PermissionError, ValueError)):
        return False
    failures = (OSError, EOFError, asyncio.TimeoutError, ftplib.error_temp)
    return isinstance(error, failures) or type(error).__module__.startswith("aiohttp.")  # which may not be installed


class _RemoteFile:
    """A remote file for h5py, read by ranges; transient failures are retried, then raised as SourceError.

    It has no ``readinto`` on purpose: h5py would prefer it, and takes a short answer to it for a whole one.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        self._url, self._options = url, storage_options
        self._connection = contextlib.ExitStack()
        self._file: Any = None
        self._size = self._position = 0
        self.read(0)

    def read(self, size: int) -> bytes:
        # h5py calls this under its global lock. If garbage were collected in fsspec's I/O thread meanwhile, and an h5py
        # object were among it, that thread would wait for the lock and this one for the thread.
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            data: bytes = retry(self._read, size)
        except (SourceError, MemoryError):
            raise
        except FileNotFoundError:
            raise FileNotFoundError(printable(f"{self._url} is not there")) from None
        except Exception as error:  # every file system has its own; not shown as a cause, it may tell the URL's secrets
            raise SourceError(f"{self._url}: can't be read ({type(error).__name__}: {error})") from None
        finally:
            if was_enabled:
                gc.enable()
        self._position += size
        return data

    def _read(self, size: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._connection.enter_context(_remote_file(self._url, self._options))
                self._size = self._file.seek(0, os.SEEK_END)
            self._file.seek(self._position)
            data: bytes = self._file.read(size)
            if len(data) != size:
                raise ConnectionError(f"{len(data)} bytes came instead of {size}")
        except BaseException:  # after a failure, nothing is known about the connection
            self.close()
            raise
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> None:
        self._position = offset + (self._size if whence == os.SEEK_END else 0)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Does nothing: h5py flushes what it closes."""

    def close(self) -> None:
        self._file = None
        self._connection.close()


@contextlib.contextmanager
def _filesystem(url: str, storage_options: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """Connects with the file system of a URL and yields it with the path there."""
    # `datasets` adds options for the Hub's file system, which another would not understand.
    options = {name: value for name, value in storage_options.items() if name != "hf" or url.startswith("hf://")}
    if url.startswith(HTTP) and "client_kwargs" not in options:
        import aiohttp  # what fsspec reads HTTP with, and `datasets` alone doesn't bring

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
        options["client_kwargs"] = {"timeout": timeout}
    elif url.startswith("ftp://"):
        # In a dict of their own, as fsspec keeps an option called "encoding"; some servers greet in latin-1.
        options.setdefault("ftp", {"timeout": TIMEOUT, "encoding": "latin-1"})
    # A fork has no thread of fsspec, which its version of 2025.3 (`datasets` 3.6 and 4.0) would wait for.
    if (thread := fsspec.asyn.iothread[0]) and not thread.is_alive():
        fsspec.asyn.reset_lock()
    # An instance of its own: one that others share would keep its connections open, and a connection that is open in a
    # process that forks can hang in parent and child.
    filesystem, path = url_to_fs(os.path.expanduser(url), skip_instance_cache=True, **options)
    try:
        yield filesystem, path
    finally:
        if isinstance(filesystem, FTPFileSystem):
            filesystem.ftp.close()
        elif session := getattr(filesystem, "_session", None):  # of aiohttp, where the file system has one
            fsspec.asyn.sync(filesystem.loop, session.close)


@contextlib.contextmanager
def _remote_file(url: str, storage_options: Mapping[str, Any]) -> Iterator[Any]:
    """Opens a remote file, whose size it asks for: fsspec asks HTTP twice, and takes a failing FTP for an empty one."""
    # The header is read in many small pieces, the rest in large ones that no cache would serve.
    options: dict[str, Any] = {"cache_type": "first", "block_size": 1 << 16}
    with _filesystem(url, storage_options) as (filesystem, path):
        if url.startswith(HTTP):
            options["size"] = fsspec.asyn.sync(filesystem.loop, _http_size, filesystem, path)
        if isinstance(filesystem, FTPFileSystem):
            path = path.lstrip("/")  # paths begin in the folder of the account
            file = FTPFile(filesystem, path, size=_ftp_size(filesystem.ftp, path), **options)
        else:
            file = filesystem.open(path, "rb", **options)
        with file:
            yield file


async def _http_size(filesystem: Any, url: str) -> int:
    session = await filesystem.set_session()
    headers = {**filesystem.kwargs.get("headers", {}), "Range": "bytes=0-0", "Accept-Encoding": "identity"}
    async with session.get(filesystem.encode_url(url), **{**filesystem.kwargs, "headers": headers}) as answer:
        if answer.status == 404:
            raise FileNotFoundError(url)
        answer.raise_for_status()
        size = re.fullmatch(r"bytes 0-0/(\d+)", answer.headers.get("Content-Range", ""))
    if not size:
        raise SourceError(f"{url}: the server must send ranges, else fetch the file first")
    return int(size[1])


def _ftp_size(ftp: ftplib.FTP, path: str) -> int | None:
    ftp.voidcmd("TYPE I")
    try:
        return ftp.size(path)
    except ftplib.error_perm as error:
        if str(error).startswith("550"):
            raise FileNotFoundError(path) from error
        raise


# ┌──────────────┐
# │  Transforms  │
# └──────────────┘

# Reflectance × this = pixel value of the `rgb` config. TensorFlow Datasets 2.1.0 brightens by 3.5, an exact product.
CALIBRATION_FACTOR = 3.5 * 255.0


def read_columns(source: Source, config: str, start: int, stop: int) -> dict[str, npt.NDArray[Any]]:
    """Reads a block of rows as the columns of a config: the one definition of what every config holds.

    Args:
        source: Where to read.
        config: Name of the config.
        start: First row.
        stop: Row after the last, at most ROWS_PER_BLOCK later if memory is to stay small.

    Returns:
        The config's columns in their order: `label` and `sample_id`, int64, of shape (rows,), `sentinel1` and
        `sentinel2`, float32, of shape (rows, 32, 32, bands), `image`, uint8, of shape (rows, 32, 32, 3).

    Raises:
        SourceError: The rows can't be read, or a label is not one-hot.
    """
    readers: Mapping[str, Callable[[], npt.NDArray[Any]]] = {
        "image": lambda: to_rgb(source.read("sen2", start, stop)),
        "label": lambda: source.read_labels(start, stop),
        "sample_id": lambda: np.arange(start, stop, dtype=np.int64),
        "sentinel1": lambda: to_float32(source.read("sen1", start, stop)),
        "sentinel2": lambda: to_float32(source.read("sen2", start, stop)),
    }
    return {name: readers[name]() for name in CONFIGS[config].columns}


def to_rgb(sen2: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Converts reflectance to the pixels of the `rgb` config.

    Bands B4, B3, B2 × 892.5, clipped to [0, 255] and truncated, in float64: bit for bit what TensorFlow Datasets'
    so2sat 2.1.0 computes. NaN becomes 0.

    Args:
        sen2: Reflectance, shape (..., 10), any real dtype.

    Returns:
        Pixels in the order red, green, blue, shape (..., 3), uint8.
    """
    # Unlike sen2[..., RGB_BANDS], take keeps the channels of a pixel side by side, as image encoders want them.
    pixels = np.take(sen2, RGB_BANDS, axis=-1).astype(np.float64, copy=False)
    with np.errstate(over="ignore"):
        pixels *= CALIBRATION_FACTOR
    # fmax and fmin, unlike clip, drop NaN, whose conversion to an integer is undefined.
    np.fmin(np.fmax(pixels, 0.0, out=pixels), 255.0, out=pixels)
    return pixels.astype(np.uint8)


def to_float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Casts to native float32, rounding to nearest; NaN and infinity pass through, overflow becomes infinity."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def encode_images(pixels: npt.NDArray[np.uint8], image_format: str) -> list[bytes]:
    """Encodes patches of shape (rows, 32, 32, 3), uint8, as image files in one of IMAGE_FORMATS."""
    files = []
    for patch in pixels:
        buffer = io.BytesIO()
        image = PIL.Image.frombytes("RGB", (PATCH_SIZE, PATCH_SIZE), patch.tobytes())
        image.save(buffer, **IMAGE_FORMATS[image_format])
        files.append(buffer.getvalue())
    return files
