"""Published facts: they agree with each other and with the schema."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import dataset_infos
import so2sat
from publishing import facts


def test_patches_per_class_add_up_to_the_published_split_sizes() -> None:
    assert {split: sum(patches) for split, patches in facts.PATCHES_PER_CLASS.items()} == {
        "train": 352_366,
        "validation": 24_119,
        "test": 24_188,
    }
    assert sum(sum(patches) for patches in facts.PATCHES_PER_CLASS.values()) == 400_673


@pytest.mark.parametrize("edition", [1, 2])
def test_official_file_sizes_follow_from_rows_and_layout(edition: int) -> None:
    row_bytes = 8 * sum(int(np.prod(shape)) for shape in so2sat.SOURCE_SHAPES.values())
    header = 2048  # what HDF5 puts before three contiguous datasets
    for name, file in facts.EDITIONS[edition].files.items():
        split = next(split for split, file_name in so2sat.SOURCE_FILES.items() if file_name == name)
        assert file.bytes == header + row_bytes * sum(facts.PATCHES_PER_CLASS[split])


def test_there_are_17_classes_with_codes_and_colours() -> None:
    assert len({*so2sat.LABELS}) == len({*facts.LCZ_CODES}) == len({*facts.LCZ_COLOURS}) == 17
    assert all(len(patches) == 17 for patches in facts.PATCHES_PER_CLASS.values())


def test_every_band_has_a_published_mean_and_deviation() -> None:
    bands = {"sentinel1": len(so2sat.SENTINEL1_BANDS), "sentinel2": len(so2sat.SENTINEL2_BANDS)}
    for published in (facts.TRAIN_MEAN, facts.TRAIN_STD):
        assert {column: len(values) for column, values in published.items()} == bands


def test_there_are_52_cities_of_which_ten_are_of_validation_and_test() -> None:
    assert len(facts.CITIES) == 52
    assert len({*facts.TEST_CITIES} & {*facts.CITIES}) == len(facts.TEST_CITIES) == 10


def test_dataset_infos_json_is_what_its_generator_writes() -> None:
    stored = json.loads(Path(so2sat.__file__).with_name("dataset_infos.json").read_text())
    assert stored == json.loads(json.dumps(dataset_infos.expected_infos()))
