"""So2Sat LCZ42: co-registered Sentinel-1 and Sentinel-2 patches with local climate zone labels.

One file that holds the facts of the dataset, the reading of the official HDF5 files, every transform, the features and
the builder. It works as a module (``So2Sat(config_name="rgb", data_dir=DIR)``) and, with ``datasets`` < 4, as a loading
script (``load_dataset("so2sat.py", "rgb", data_dir=DIR, trust_remote_code=True)``).

The semantics are those of TensorFlow Datasets' ``so2sat`` 2.1.0: same configs, labels, sample ids and pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import datasets
import fsspec
import h5py
import numpy as np
import numpy.typing as npt
import PIL.Image
import tenacity
from datasets.utils.file_utils import is_remote_url
from fsspec.core import url_to_fs

logger = datasets.utils.logging.get_logger(__name__)

# ┌─────────┐
# │  Facts  │
# └─────────┘
#
# Sources: the publishers' pages (mediatum.ub.tum.de/1454690 and /1483140), Zhu et al. 2020
# (doi 10.1109/MGRS.2020.2964708), TensorFlow Datasets 4.9.10 and TorchGeo 0.8.1.

VERSION = "2.1.0"
HOMEPAGE = "https://doi.org/10.14459/2018mp1483140"
LICENSE = "cc-by-4.0"
DESCRIPTION = (
    "So2Sat LCZ42: 400,673 co-registered Sentinel-1 and Sentinel-2 patches of 32×32 pixels (10 m each) from 42 cities"
    " on six continents, each with one of 17 local climate zone (LCZ) labels given by experts."
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

# Local climate zones in index order, spelled as in TensorFlow Datasets; LCZ_CODES are Stewart & Oke's (2012).
LABELS = (
    "Compact high-rise",
    "Compact mid-rise",
    "Compact low-rise",
    "Open high-rise",
    "Open mid-rise",
    "Open low-rise",
    "Lightweight low-rise",
    "Large low-rise",
    "Sparsely built",
    "Heavy industry",
    "Dense trees",
    "Scattered trees",
    "Bush or scrub",
    "Low plants",
    "Bare rock or paved",
    "Bare soil or sand",
    "Water",
)
LCZ_CODES = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "A", "B", "C", "D", "E", "F", "G")

PATCH_SIZE = 32  # pixels a side
PIXEL_SIZE = 10  # metres a side


@dataclasses.dataclass(frozen=True)
class Band:
    """One channel of a patch.

    Attributes:
        name: The band's usual name.
        meaning: What it measures.
        unit: Unit of its values.
        mean: Mean over edition 2's training split (TorchGeo 0.8.1), in `unit`.
        std: Standard deviation over edition 2's training split (TorchGeo 0.8.1), in `unit`.
        wavelength: Centre wavelength in nm (Sentinel-2A), None for radar.
    """

    name: str
    meaning: str
    unit: str
    mean: float
    std: float
    wavelength: float | None = None


# Dataset `sen1`: Sentinel-1, linear units (not dB), VH before VV.
SENTINEL1_BANDS = (
    Band("VH real", "real part of the unfiltered VH signal", "linear amplitude", -3.59122426e-05, 0.17555201),
    Band("VH imaginary", "imaginary part of the unfiltered VH signal", "linear amplitude", -7.65856128e-06, 0.17556463),
    Band("VV real", "real part of the unfiltered VV signal", "linear amplitude", 5.93738575e-05, 0.45998793),
    Band("VV imaginary", "imaginary part of the unfiltered VV signal", "linear amplitude", 2.51662315e-05, 0.45598876),
    Band("VH intensity", "VH intensity, refined Lee filter", "linear power", 0.0442011066, 2.85599092),
    Band("VV intensity", "VV intensity, refined Lee filter", "linear power", 0.257610271, 8.32480061),
    Band(
        "covariance real", "real part of the VH-VV covariance, Lee filter", "linear power", 0.000755674337, 2.44987574
    ),
    Band(
        "covariance imaginary",
        "imaginary part of the VH-VV covariance, Lee filter",
        "linear power",
        0.00135034668,
        1.46473530,
    ),
)

# Dataset `sen2`: Sentinel-2, reflectance = digital number / 10000, every band resampled to 10 m.
SENTINEL2_BANDS = (
    Band("B2", "blue", "reflectance", 0.12375696, 0.03958795, 492.4),
    Band("B3", "green", "reflectance", 0.10927746, 0.04777826, 559.8),
    Band("B4", "red", "reflectance", 0.10108552, 0.06636616, 664.6),
    Band("B5", "vegetation red edge", "reflectance", 0.11423986, 0.06358874, 704.1),
    Band("B6", "vegetation red edge", "reflectance", 0.15926567, 0.07744387, 740.5),
    Band("B7", "vegetation red edge", "reflectance", 0.18147236, 0.09101635, 782.8),
    Band("B8", "near infrared", "reflectance", 0.17457403, 0.09218466, 832.8),
    Band("B8A", "narrow near infrared", "reflectance", 0.19501607, 0.10164581, 864.7),
    Band("B11", "short-wave infrared", "reflectance", 0.15428469, 0.09991773, 1613.7),
    Band("B12", "short-wave infrared", "reflectance", 0.10905051, 0.08780632, 2202.4),
)
RGB_BANDS = (2, 1, 0)  # B4, B3, B2: positions in SENTINEL2_BANDS

# Reflectance × this = pixel value of the `rgb` config. TensorFlow Datasets 2.1.0 brightens by 3.5, an exact product.
CALIBRATION_FACTOR = 3.5 * 255.0

JPEG_QUALITY = 95

# Shape of one row of every dataset in the source files.
SOURCE_SHAPES: Mapping[str, tuple[int, ...]] = {
    "sen1": (PATCH_SIZE, PATCH_SIZE, len(SENTINEL1_BANDS)),
    "sen2": (PATCH_SIZE, PATCH_SIZE, len(SENTINEL2_BANDS)),
    "label": (len(LABELS),),
}

SOURCE_FILES: Mapping[str, str] = {"train": "training.h5", "validation": "validation.h5", "test": "testing.h5"}
OPTIONAL_SPLITS = ("test",)  # edition 1 has none

# Patches per split and class in edition 2; edition 1 has the first two splits.
PATCHES_PER_CLASS: Mapping[str, tuple[int, ...]] = {
    "train": (
        *(5068, 24431, 31693, 8651, 16493, 35290, 3269, 39326, 13584),
        *(11954, 42902, 9514, 9165, 41377, 2392, 7898, 49359),
    ),
    "validation": (
        *(256, 1254, 2353, 849, 757, 1906, 474, 3395, 1914),
        *(860, 2287, 382, 1202, 2747, 202, 672, 2609),
    ),
    "test": (
        *(266, 1262, 2465, 857, 763, 1936, 503, 3496, 2013),
        *(908, 2368, 433, 1166, 2435, 205, 572, 2540),
    ),
}


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """An official file: where it is, its size in bytes and its checksums (None where the publishers give none)."""

    url: str
    md5: str | None = None
    bytes: int | None = None
    sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class Edition:
    """An edition of the dataset: where it is described, and its files by their path in a data folder."""

    homepage: str
    files: Mapping[str, SourceFile]


def _edition2(root: str, suffix: str = "") -> dict[str, SourceFile]:
    """The three files of edition 2, which editions 1 and 4 publish too."""
    return {
        "training.h5": SourceFile(
            f"{root}/training.h5{suffix}",
            "702bc6a9368ebff4542d791e53469244",
            52_006_404_720,
            "06df6c9b8875e37f172ba548f466640293d77ad3be335c2d5dfcba3d35942daf",
        ),
        "validation.h5": SourceFile(
            f"{root}/validation.h5{suffix}",
            "71cfa6795de3e22207229d06d6f8775d",
            3_559_773_496,
            "cab820b5176a6b5fb35ab423f434e40b073265a7b6317d9f6895a9fa7c0bb285",
        ),
        # The size follows from the layout: a header of 2,048 bytes and 24,188 rows of 147,592.
        "testing.h5": SourceFile(f"{root}/testing.h5{suffix}", "e81426102b488623a723beab52b31a8a", 3_569_957_344),
    }


# The FTP accounts are public and read-only: name and password are the number of the edition.
_TUM = "ftp://{0}:{0}@dataserv.ub.tum.de"
_TUM3 = _TUM.format("m1613658")
_HUB4 = "hf://datasets/zhu-xlab/So2Sat-LCZ42/v4"

EDITIONS: Mapping[int, Edition] = {
    1: Edition(
        homepage="https://doi.org/10.14459/2018mp1454690",
        files={name: file for name, file in _edition2(_TUM.format("m1454690")).items() if name != "testing.h5"},
    ),
    2: Edition(homepage="https://doi.org/10.14459/2018mp1483140", files=_edition2(_TUM.format("m1483140"))),
    3: Edition(
        homepage="https://mediatum.ub.tum.de/1613658",
        files={
            "random/training.h5": SourceFile(f"{_TUM3}/random/training.h5", "94e2e2e667b406c2adf61e113b42204e"),
            "random/testing.h5": SourceFile(f"{_TUM3}/random/testing.h5", "1e15c425585ce816342d1cd779d453d8"),
            "block/training.h5": SourceFile(f"{_TUM3}/block/training.h5", "a91d6150e8b059dac86105853f377a11"),
            "block/testing.h5": SourceFile(f"{_TUM3}/block/testing.h5", "6414af1ec33ace417e879f9c88066d47"),
            # The training file of this split is edition 2's.
            "culture_10/testing.h5": SourceFile(f"{_TUM3}/culture_10/testing.h5", "58335ce34ca3a18424e19da84f2832fc"),
        },
    ),
    # Published on the Hub alone: edition 2's files, gzipped, and the patches' places.
    4: Edition(
        homepage="https://mediatum.ub.tum.de/1836598",
        files={
            **_edition2(_HUB4, ".gz"),
            **{
                f"{split}_geo.h5": SourceFile(f"{_HUB4}/{split}_geo.h5")
                for split in ("training", "validation", "testing")
            },
        },
    ),
}

# ┌───────────┐
# │  Reading  │
# └───────────┘

ROWS_PER_BLOCK = 128  # what is held in memory at a time: 19 MB of float64
ROWS_PER_RANGE = 256  # what parallel readers of one file divide among themselves


class SourceError(ValueError):
    """A source file is not what it must be. The message is one line: file, dataset, what was found and expected."""


class MissingSourceError(SourceError):
    """A source file is not there."""


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
        try:
            rows: npt.NDArray[Any] = self.arrays[name][start:stop]
        except (OSError, RuntimeError) as error:
            raise SourceError(
                f"{self.path}: dataset '{name}', rows {start} to {stop - 1} can't be read ({_one_line(error)});"
                " the file is damaged, fetch it again"
            ) from error
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
        step = 1 << 16
        for start in range(0, self.rows, step):
            self.read_labels(start, min(start + step, self.rows))


@contextlib.contextmanager
def open_source(path: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[Source]:
    """Opens a source file and checks its layout, but reads no rows.

    Args:
        path: A local path or an fsspec URL, which is read by ranges and never downloaded whole.
        storage_options: Options of the URL's file system.

    Raises:
        MissingSourceError: There is no such file.
        SourceError: It is not an HDF5 file in the layout of So2Sat, or it points at data in other files.
    """
    with contextlib.ExitStack() as stack:
        try:
            if is_remote_url(path):
                file = stack.enter_context(contextlib.closing(_RemoteFile(path, storage_options or {})))
                h5 = stack.enter_context(h5py.File(file, "r"))
            else:
                # Nobody writes these files, and a lock fails on some network file systems.
                h5 = stack.enter_context(h5py.File(os.path.expanduser(path), "r", locking=False))
        except FileNotFoundError as error:
            raise MissingSourceError(f"{path}: no such file, expected an HDF5 file of So2Sat") from error
        except (IsADirectoryError, PermissionError) as error:
            why = os.strerror(error.errno or 0).lower()  # the error's own text tells all that HDF5 knows
            raise SourceError(f"{path}: {why}, expected an HDF5 file of So2Sat") from error
        except OSError as error:
            raise SourceError(f"{path}: {_why_not_hdf5(error)}") from error
        arrays = {name: _checked_array(h5, name, path) for name in SOURCE_SHAPES}
        rows = {name: len(array) for name, array in arrays.items()}
        if len(set(rows.values())) > 1:
            found = ", ".join(f"'{name}' has {count}" for name, count in rows.items())
            raise SourceError(f"{path}: datasets differ in length ({found} rows), expected the same number of rows")
        if rows["label"] == 0:
            raise SourceError(f"{path}: datasets {', '.join(map(repr, rows))} have 0 rows, expected at least 1")
        yield Source(path, arrays, rows["label"], h5.id.get_filesize(), str(h5.attrs.get("synthetic", "")))


def find_sources(folder: str, storage_options: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Finds the source files of a folder and checks each one's layout.

    Args:
        folder: A local folder or an fsspec URL that holds the files under their official names.
        storage_options: Options of the URL's file system.

    Returns:
        The file's path by split, in the order train, validation, test; without `test` where there is no `testing.h5`.

    Raises:
        SourceError: A file is missing or not as expected.
    """
    if not is_remote_url(folder) and not os.path.isdir(os.path.expanduser(folder)):
        raise MissingSourceError(f"{folder}: no such folder, expected one with {' and '.join(SOURCE_FILES.values())}")
    sources = {}
    for split, name in SOURCE_FILES.items():
        path = f"{folder.rstrip('/')}/{name}"
        try:
            with open_source(path, storage_options):
                sources[split] = path
        except MissingSourceError:
            if split not in OPTIONAL_SPLITS:
                raise
    return sources


def _checked_array(h5: h5py.File, name: str, path: str) -> h5py.Dataset:
    link = h5.get(name, getlink=True)
    expected = f"expected a dataset of shape (N, {', '.join(map(str, SOURCE_SHAPES[name]))})"
    if link is None:
        raise SourceError(f"{path}: no dataset '{name}' (found: {', '.join(h5) or 'nothing'}), {expected}")
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
    if array.shape is None or not array.shape or array.shape[1:] != SOURCE_SHAPES[name]:
        raise SourceError(f"{path}: dataset '{name}' has shape {array.shape}, {expected}")
    if array.dtype.kind not in "fiu":
        raise SourceError(f"{path}: dataset '{name}' has dtype {array.dtype}, expected a real or an integer one")
    return array


def _why_not_hdf5(error: OSError) -> str:
    """What an error of the HDF5 library means to the owner of the file."""
    text = _one_line(error)
    if "truncated file" in text:
        return f"truncated ({text}), expected a complete HDF5 file; fetch it again"
    if "file signature not found" in text:
        return "not an HDF5 file (no HDF5 signature, or empty), expected an HDF5 file of So2Sat"
    return f"can't be opened ({text}), expected an HDF5 file of So2Sat"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _reason(error: BaseException) -> BaseException:
    """What is behind an error: fsspec's HTTP file system calls every failure to open a file FileNotFoundError."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error


def _is_transient(error: BaseException) -> bool:
    reason = _reason(error)
    status = getattr(reason, "status", None)
    if isinstance(status, int):
        return status == 429 or status >= 500
    return not isinstance(reason, (FileNotFoundError, PermissionError, ValueError, TypeError, ImportError))


class _RemoteFile:
    """A remote file for h5py, read by ranges; failures of the network are retried, then raised as SourceError.

    It has no ``readinto`` on purpose: h5py would prefer it, and takes a short answer to it for a whole one.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        self._url = url
        # `datasets` keeps the options of several protocols in one dict; those of others are not for this file system.
        foreign = {*fsspec.available_protocols()} - {url.split("://")[0]}
        self._options = {name: value for name, value in storage_options.items() if name not in foreign}
        self._file = self._try(self._open)

    def _open(self) -> Any:
        filesystem, path = url_to_fs(self._url, **self._options)
        # The header is read in many small pieces, the rest in large ones that no cache would serve.
        return filesystem.open(path, "rb", cache_type="first", block_size=1 << 16)

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        data: bytes = self._file.read(size)
        if len(data) != size:
            raise ConnectionError(f"{len(data)} bytes came instead of {size}")
        return data

    def _try(self, attempt: Callable[..., Any], *args: Any) -> Any:
        try:
            return retry(attempt, *args)
        except Exception as error:  # every file system of fsspec has exceptions of its own
            reason = _reason(error)
            if isinstance(reason, FileNotFoundError) or getattr(reason, "status", None) in (404, 410):
                raise FileNotFoundError(self._url) from error
            raise SourceError(f"{self._url}: can't be read ({_one_line(reason)})") from error

    def read(self, size: int) -> Any:
        # h5py calls this under its global lock. If garbage were collected in fsspec's I/O thread meanwhile, and an h5py
        # object were among it, that thread would wait for the lock and this one for the thread.
        with _garbage_collection_off():
            return self._try(self._read, self._file.tell(), size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def flush(self) -> None:
        """Does nothing: h5py flushes what it closes."""

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def _garbage_collection_off() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


retry = tenacity.Retrying(
    retry=tenacity.retry_if_exception(_is_transient),
    wait=tenacity.wait_exponential(multiplier=0.5, max=16),  # seconds
    stop=tenacity.stop_after_attempt(7),
    before_sleep=tenacity.before_sleep_log(logger, logging.WARNING),
    reraise=True,
)


# ┌──────────────┐
# │  Transforms  │
# └──────────────┘


def to_rgb(sen2: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Converts reflectance to the pixels of the `rgb` config.

    Bands B4, B3, B2 × 892.5, clipped to [0, 255] and truncated, in float64: bit for bit what TensorFlow Datasets'
    so2sat 2.1.0 computes. NaN becomes 0.

    Args:
        sen2: Reflectance, shape (..., 10), any real dtype.

    Returns:
        Pixels in the order red, green, blue, shape (..., 3), uint8.
    """
    scaled = sen2[..., RGB_BANDS].astype(np.float64) * CALIBRATION_FACTOR
    # fmax and fmin, unlike clip, drop NaN, whose conversion to an integer is undefined.
    return np.fmin(np.fmax(scaled, 0.0), 255.0).astype(np.uint8)


def to_float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Casts to native float32, rounding to nearest; NaN and infinity pass through, overflow becomes infinity."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


# Parameters of PIL.Image.Image.save. Optimised Huffman tables change no pixel and save a fifth of the bytes.
IMAGE_FORMATS: Mapping[str, Mapping[str, Any]] = {
    "jpeg": {"format": "JPEG", "quality": JPEG_QUALITY, "subsampling": 0, "optimize": True},
    "png": {"format": "PNG"},
}


def encode_images(pixels: npt.NDArray[np.uint8], image_format: str) -> list[bytes]:
    """Encodes patches of shape (rows, 32, 32, 3), uint8, as image files in one of IMAGE_FORMATS."""
    files = []
    for patch in pixels:
        buffer = io.BytesIO()
        PIL.Image.fromarray(patch).save(buffer, **IMAGE_FORMATS[image_format])
        files.append(buffer.getvalue())
    return files


def read_columns(source: Source, config: str, start: int, stop: int) -> dict[str, npt.NDArray[Any]]:
    """Reads a block of rows as the columns of a config: the one definition of what every config holds.

    Args:
        source: Where to read.
        config: Name of the config.
        start: First row.
        stop: Row after the last, at most ROWS_PER_BLOCK later if memory is to stay small.

    Returns:
        The columns in the order of `features(config)`: `label` and `sample_id`, int64, of shape (rows,), `sentinel1`
        and `sentinel2`, float32, of shape (rows, 32, 32, bands), `image`, uint8, of shape (rows, 32, 32, 3).

    Raises:
        SourceError: The rows can't be read, or a label is not one-hot.
    """
    label, sample_id = source.read_labels(start, stop), np.arange(start, stop, dtype=np.int64)
    if config == "rgb":
        return {"image": to_rgb(source.read("sen2", start, stop)), "label": label, "sample_id": sample_id}
    return {
        "label": label,
        "sample_id": sample_id,
        "sentinel1": to_float32(source.read("sen1", start, stop)),
        "sentinel2": to_float32(source.read("sen2", start, stop)),
    }


# ┌────────────┐
# │  Features  │
# └────────────┘

CONFIGS: Mapping[str, str] = {
    "rgb": "Sentinel-2 in natural colours as 8-bit images (red, green, blue = B4, B3, B2)",
    "all": "8 Sentinel-1 and 10 Sentinel-2 channels as float32",
}
DEFAULT_CONFIG = "rgb"


def features(config: str) -> datasets.Features:
    """Features of a config, in the order of its columns."""
    label = {"label": datasets.ClassLabel(names=list(LABELS)), "sample_id": datasets.Value("int64")}
    if config == "rgb":
        return datasets.Features({"image": datasets.Image(), **label})
    return datasets.Features(
        {
            **label,
            "sentinel1": datasets.Array3D(SOURCE_SHAPES["sen1"], "float32"),
            "sentinel2": datasets.Array3D(SOURCE_SHAPES["sen2"], "float32"),
        }
    )


# ┌───────────┐
# │  Builder  │
# └───────────┘


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
        if self.data_dir:
            self.data_dir = os.fspath(self.data_dir)
        if self.data_dir and not is_remote_url(self.data_dir):
            # Resolved now: the working folder may be another when the files are read.
            self.data_dir = folder = os.path.abspath(os.path.expanduser(self.data_dir))
            paths = [os.path.join(folder, name) for name in SOURCE_FILES.values()]
            state = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths if os.path.isfile(path)]
            config_kwargs = {**config_kwargs, "data_dir": folder, "source_files": str(state)}
        config_id: str = super().create_config_id(config_kwargs, custom_features)
        return config_id


class So2Sat(datasets.GeneratorBasedBuilder):  # type: ignore[misc]
    """So2Sat LCZ42 from its official HDF5 files.

    400,673 patches of 32×32 pixels, 10 m each, from 42 cities, each with one of 17 local climate zone labels.

    Configs:
        rgb (default): `image`, `label`, `sample_id`.
        all: `label`, `sample_id`, `sentinel1` (32, 32, 8) float32, `sentinel2` (32, 32, 10) float32.

    Splits: train (352,366 patches), validation (24,119), test (24,188; not in edition 1). `sample_id` is the row in the
    split's file, so that (split, sample_id) joins the configs.

    Sentinel-1 is in linear units (not dB), VH before VV, with heavy tails; Sentinel-2 is reflectance. SENTINEL1_BANDS
    and SENTINEL2_BANDS describe every channel.

    `data_dir` is the local folder or fsspec URL with the files under their official names. A URL is read by ranges.

    Example:
    ```py
    >>> builder = So2Sat(config_name="rgb", data_dir="data")
    >>> builder.download_and_prepare(num_proc=2)
    >>> train = builder.as_dataset(split="train")
    ```
    """

    VERSION = datasets.Version(VERSION)
    BUILDER_CONFIG_CLASS = So2SatConfig
    BUILDER_CONFIGS: ClassVar[list[So2SatConfig]] = [
        So2SatConfig(name=name, version=datasets.Version(VERSION), description=description)
        for name, description in CONFIGS.items()
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
        if not self.config.data_dir:
            raise ValueError(_NO_DATA_DIR)
        sources = find_sources(self.config.data_dir, self.storage_options)
        # What the files hold, not what dataset_infos.json expects of the full dataset, is what must come out.
        self.info.splits = datasets.SplitDict()
        generators = []
        for split, path in sources.items():
            with open_source(path, self.storage_options) as source:
                if not dl_manager.is_streaming:
                    source.check_labels()
                if source.synthetic:
                    logger.warning(f"{path} is synthetic: {source.synthetic}")
                    self.info.description = f"SYNTHETIC: {source.synthetic} {DESCRIPTION}"
                ranges = [
                    (start, min(start + ROWS_PER_RANGE, source.rows)) for start in range(0, source.rows, ROWS_PER_RANGE)
                ]
                self.info.splits.add(datasets.SplitInfo(name=split, num_examples=source.rows))
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs={"path": path, "row_ranges": ranges}))
        return generators

    def _generate_examples(self, path: str, row_ranges: list[tuple[int, int]]) -> Iterator[tuple[int, dict[str, Any]]]:
        with open_source(path, self.storage_options) as source:
            for first, last in row_ranges:
                for start in range(first, last, ROWS_PER_BLOCK):
                    stop = min(start + ROWS_PER_BLOCK, last)
                    columns: dict[str, Any] = {**read_columns(source, self.config.name, start, stop)}
                    if "image" in columns:
                        files = encode_images(columns["image"], self.config.image_format)
                        columns["image"] = [{"bytes": file, "path": None} for file in files]
                    columns["label"] = columns["label"].tolist()
                    columns["sample_id"] = columns["sample_id"].tolist()
                    for row in zip(*columns.values()):
                        example = dict(zip(columns, row))
                        yield example["sample_id"], example


_NO_DATA_DIR = (
    "So2Sat is built from the official HDF5 files (59 GB), which you fetch first:\n"
    f"    wget --continue --directory-prefix=DIR {' '.join(file.url for file in EDITIONS[2].files.values())}\n"
    'Then pass their folder (or an fsspec URL): So2Sat(config_name="rgb", data_dir="DIR")'
)
