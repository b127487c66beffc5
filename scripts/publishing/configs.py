"""What a config of the repository is: its columns and source files, how its rows are read, how large its shards get."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import datasets
import numpy.typing as npt

import so2sat
from publishing import places

# Names of the bands of every column that has any.
BANDS: Mapping[str, tuple[str, ...]] = {
    "image": ("red", "green", "blue"),
    "sentinel1": tuple(band.name for band in so2sat.SENTINEL1_BANDS),
    "sentinel2": tuple(band.name for band in so2sat.SENTINEL2_BANDS),
}

MAX_IMAGE_BYTES = 3_400  # of a PNG that did not compress
MAX_TEXT_BYTES = 32
MAX_SHARD_BYTES = 500_000_000  # in memory: what `datasets` aims at (datasets.config.MAX_SHARD_SIZE)


@dataclasses.dataclass(frozen=True)
class Reader:
    """What a split is read from.

    Attributes:
        path: Path or URL of the file with the patches.
        rows: Rows of the split.
        read: Reads a block, given its first row and the row after its last: the columns of the config.
    """

    path: str
    rows: int
    read: Callable[[int, int], dict[str, npt.NDArray[Any]]]


@dataclasses.dataclass(frozen=True)
class Limits:
    """How large the shards of a split get.

    Attributes:
        group_rows: Rows of a row group, which is what a reader fetches at the least.
        shard_rows: Rows of a shard, at most.
    """

    group_rows: int
    shard_rows: int


@dataclasses.dataclass(frozen=True)
class Config:
    """A config of the repository.

    Attributes:
        name: Its name.
        description: In one line.
        features: Its features, in the order of its columns.
        files: Names of the source files of every split, that with the patches first.
        opener: Opens what a split is read from, given the paths of its source files.
    """

    name: str
    description: str
    features: datasets.Features
    files: Mapping[str, tuple[str, ...]]
    opener: Callable[..., contextlib.AbstractContextManager[Reader]]

    def open(self, folder: str, split: str) -> contextlib.AbstractContextManager[Reader]:
        """Opens what a split is read from.

        Args:
            folder: Folder or fsspec URL with the source files.
            split: Name of the split.

        Raises:
            so2sat.SourceError: A file is missing or not as expected.
        """
        return self.opener(*(so2sat.join(folder, name) for name in self.files[split]))

    @property
    def is_official(self) -> bool:
        """Whether its splits are those of editions 1, 2 and 4."""
        return {split: names[0] for split, names in self.files.items()} == so2sat.SOURCE_FILES

    @property
    def bands(self) -> dict[str, tuple[str, ...]]:
        """Names of the bands of its columns with pixels, by column."""
        return {name: BANDS[name] for name in self.features if name in BANDS}

    @property
    def row_bytes(self) -> int:
        """What a row takes in memory at most: values and the offsets of lists, or an image that did not compress."""
        return sum(map(_bytes, self.features.values()))

    @property
    def limits(self) -> Limits:
        """How large its shards get: row groups have about 10 MB of arrays, 3 MB of images or 1 MB of other values."""
        kinds = {type(feature) for feature in self.features.values()}
        if datasets.Array3D in kinds:
            return Limits(128, MAX_SHARD_BYTES // (128 * self.row_bytes) * 128)
        if datasets.Image in kinds:
            return Limits(1024, 32_768)  # shards enough for parallel readers
        return Limits(16_384, 1 << 20)


def _bytes(feature: Any) -> int:
    if isinstance(feature, datasets.Image):
        return MAX_IMAGE_BYTES
    if isinstance(feature, datasets.Array3D):
        offsets = 1 + feature.shape[0] + feature.shape[0] * feature.shape[1]
        return int(4 * (math.prod(feature.shape) + offsets))
    return MAX_TEXT_BYTES if feature.dtype == "string" else 8


@contextlib.contextmanager
def _open_patches(config: str, file: str) -> Iterator[Reader]:
    with so2sat.open_source(file) as source:
        yield Reader(file, source.rows, functools.partial(so2sat.read_columns, source, config))


@contextlib.contextmanager
def _open_places(file: str, geo_file: str) -> Iterator[Reader]:
    with so2sat.open_source(file) as patches, places.open_geo(geo_file) as geo:
        yield Reader(file, patches.rows, functools.partial(places.read_columns, patches, geo))


def of_builder(name: str) -> Config:
    """A config of the builder."""
    config = so2sat.CONFIGS[name]
    files = {split: (file,) for split, file in config.files.items()}
    return Config(name, config.description, so2sat.features(name), files, functools.partial(_open_patches, name))


_GEO = Config(
    "geo",
    "City and position of every patch (edition 4)",
    places.features(),
    {split: (name, places.geo_file(name)) for split, name in so2sat.SOURCE_FILES.items()},
    _open_places,
)

# Those of edition 2, with `geo` beside them, and then those of edition 3.
CONFIGS: Mapping[str, Config] = {
    config.name: config
    for config in sorted(
        [*map(of_builder, so2sat.CONFIGS), _GEO],
        key=lambda config: [*config.files] != [*so2sat.SOURCE_FILES],
    )
}
