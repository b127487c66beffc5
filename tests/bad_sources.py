"""Source files that must be refused: how each is written, and what the error says of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from conftest import random_arrays, write_source


def replaced(name: str, array: Any) -> Callable[[Path], None]:
    """Writes a source file with one dataset replaced, or left out if `array` is None."""

    def write(path: Path) -> None:
        arrays = random_arrays(4)
        del arrays[name]
        write_source(path, arrays if array is None else {**arrays, name: array})

    return write


def label_row(row: int, values: Sequence[float]) -> Callable[[Path], None]:
    """Writes a source file with one row of `label` replaced."""
    label = random_arrays(4)["label"]
    label[row] = values
    return replaced("label", label)


def with_h5(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    """Writes a source file and changes it."""

    def write(path: Path) -> None:
        write_source(path, random_arrays(4))
        with h5py.File(path, "r+") as h5:
            del h5["sen2"]
            change(h5)

    return write


def truncated(path: Path) -> None:
    """Writes a source file without its last 1,000 bytes."""
    write_source(path, random_arrays(4))
    path.write_bytes(path.read_bytes()[:-1000])


def external_storage(h5: h5py.File) -> None:
    """Adds `sen2` with its values in another file."""
    h5.create_dataset("sen2", (4, 32, 32, 10), "<f8", external=[("/etc/passwd", 0, 4 * 32 * 32 * 10 * 8)])


def virtual(h5: h5py.File) -> None:
    """Adds a virtual `sen2`."""
    layout = h5py.VirtualLayout((4, 32, 32, 10), "<f8")
    layout[:] = h5py.VirtualSource("other.h5", "sen2", (4, 32, 32, 10))
    h5.create_virtual_dataset("sen2", layout)


def missing_filter(h5: h5py.File) -> None:
    """Adds `sen2` as one writes it with a plugin that is not installed here."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((1, 32, 32, 10))
    properties.set_filter(32001, h5py.h5z.FLAG_OPTIONAL)
    h5py.h5d.create(h5.id, b"sen2", h5py.h5t.IEEE_F64LE, h5py.h5s.create_simple((4, 32, 32, 10)), properties)


ONE_HOT = "expected one-hot: a single 1 among 17 values, the others 0"

# How to write a bad training.h5, and what the error must say beside the file's name: dataset, found, expected.
BAD_SOURCES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "folder": (lambda path: path.mkdir(), ["not a file", "expected an HDF5 file"]),
    "pipe": (os.mkfifo, ["not a file", "expected an HDF5 file"]),
    "empty file": (lambda path: path.touch(), ["HDF5", "signature not found"]),
    "not HDF5": (lambda path: path.write_bytes(b"PK" * 5000), ["HDF5", "signature not found"]),
    "truncated file": (truncated, ["truncated", "fetch it again"]),
    "no datasets": (lambda path: write_source(path, {}), ["'sen1'", "found: nothing", "(N, 32, 32, 8)"]),
    "missing dataset": (replaced("sen2", None), ["'sen2'", "found: label, sen1", "(N, 32, 32, 10)"]),
    "group for a dataset": (with_h5(lambda h5: h5.create_group("sen2")), ["'sen2'", "group", "(N, 32, 32, 10)"]),
    "control characters": (with_h5(lambda h5: h5.create_group("a\x1b[31m\nb")), ["no dataset 'sen2'", "a�[31m b"]),
    "wrong shape": (replaced("sen1", np.zeros((4, 32, 32, 10))), ["'sen1'", "(4, 32, 32, 10)", "(N, 32, 32, 8)"]),
    "no shape": (replaced("label", h5py.Empty("f8")), ["'label'", "shape None", "(N, 17)"]),
    "text dtype": (replaced("label", np.full((4, 17), b"1")), ["'label'", "|S1", "expected a real"]),
    "lengths that differ": (replaced("label", np.eye(17)[:3]), ["'sen1' has 4", "'label' has 3", "same number"]),
    "zero rows": (lambda path: write_source(path, random_arrays(0)), ["'label'", "0 rows", "expected at least 1"]),
    "two ones": (label_row(2, [1, 1] + [0] * 15), ["'label'", "row 2", "[1 1 0", ONE_HOT]),
    "no one": (label_row(3, [0] * 17), ["'label'", "row 3", ONE_HOT]),
    "probabilities": (label_row(1, [0.6, 0.4] + [0] * 15), ["'label'", "row 1", "[0.6 0.4 0", ONE_HOT]),
    "one and NaN": (label_row(0, [1, np.nan] + [0] * 15), ["'label'", "row 0", "nan", ONE_HOT]),
    "external link": (
        with_h5(lambda h5: h5.__setitem__("sen2", h5py.ExternalLink("/data/other.h5", "sen2"))),
        ["'sen2'", "link to '/data/other.h5:sen2'", "in the file itself"],
    ),
    "soft link": (with_h5(lambda h5: h5.__setitem__("sen2", h5py.SoftLink("/sen1"))), ["'sen2'", "link to"]),
    "external storage": (with_h5(external_storage), ["'sen2'", "'/etc/passwd'", "(N, 32, 32, 10)"]),
    "virtual dataset": (with_h5(virtual), ["'sen2'", "virtual", "(N, 32, 32, 10)"]),
    "missing filter": (with_h5(missing_filter), ["'sen2'", "filter 32001", "hdf5plugin"]),
}
