"""Writes small synthetic stand-ins for the official files, in their exact layout, to try everything without 59 GB.

No value in them was measured. Every class has spectra, backscatter and a texture of its own, so that a preview shows 17
kinds of place and a model can learn them; how they look and how often they occur is near the real data.

A patch comes about in four steps: the recipe of its class paints layers of materials over each other, which gives the
share of every material in every pixel; the materials' spectra and backscatter, varied by city and by patch, turn shares
into a scene; part of some scenes gives way to a neighbouring place; the two sensors look at the scene.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import math
import os
import shutil
import signal
import statistics
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyproj
import tqdm

import so2sat
from publishing import command, facts, places

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.uint32]

DEFAULT_ROWS: Mapping[str, int] = {"train": 2048, "validation": 256, "test": 256}
ROWS_PER_BLOCK = 64  # what is generated and held in memory at a time: 9 MB of float64
OPTIONAL_SPLIT = "test"  # edition 1 has none
CITY_SPREAD = 8_000  # m, standard deviation of the distance from a city's centre in either direction
GRID = 100  # m, between neighbouring patches of the real data
HEADER_BYTES = 1 << 14  # more than an HDF5 header and the attribute take

# ┌─────────────┐
# │  Materials  │
# └─────────────┘
#
# Surface reflectance in the order of SENTINEL2_BANDS, then VH and VV backscatter in dB. A material is a range between
# two extremes (summer and winter, clear and turbid, old and new); every patch has its place in that range.

_EXTREMES: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "water": (
        (0.020, 0.018, 0.008, 0.006, 0.005, 0.005, 0.004, 0.004, 0.002, 0.001, -29, -22),
        (0.042, 0.060, 0.046, 0.042, 0.028, 0.026, 0.020, 0.018, 0.005, 0.003, -26, -18),
    ),
    "trees": (
        (0.017, 0.038, 0.018, 0.060, 0.200, 0.250, 0.260, 0.280, 0.125, 0.052, -13, -8),
        (0.028, 0.042, 0.042, 0.065, 0.125, 0.150, 0.155, 0.175, 0.140, 0.078, -15, -9),
    ),
    "grass": (
        (0.030, 0.068, 0.040, 0.100, 0.240, 0.300, 0.310, 0.330, 0.190, 0.100, -18, -12),
        (0.048, 0.078, 0.085, 0.120, 0.165, 0.185, 0.195, 0.218, 0.232, 0.150, -20, -13),
    ),
    "crop": (
        (0.022, 0.062, 0.028, 0.092, 0.290, 0.370, 0.380, 0.400, 0.165, 0.075, -17, -11),
        (0.032, 0.072, 0.048, 0.105, 0.230, 0.290, 0.300, 0.320, 0.200, 0.110, -18, -11),
    ),
    "fallow": (
        (0.055, 0.080, 0.100, 0.120, 0.140, 0.155, 0.163, 0.182, 0.220, 0.160, -21, -13),
        (0.080, 0.115, 0.150, 0.175, 0.200, 0.220, 0.230, 0.255, 0.310, 0.230, -22, -14),
    ),
    "scrub": (
        (0.028, 0.050, 0.040, 0.078, 0.150, 0.180, 0.188, 0.208, 0.170, 0.100, -17, -11),
        (0.042, 0.062, 0.072, 0.098, 0.130, 0.148, 0.155, 0.175, 0.210, 0.145, -18, -12),
    ),
    "soil": (
        (0.060, 0.085, 0.120, 0.140, 0.155, 0.170, 0.180, 0.200, 0.270, 0.220, -22, -14),
        (0.085, 0.138, 0.218, 0.245, 0.265, 0.283, 0.295, 0.315, 0.400, 0.345, -24, -15),
    ),
    "sand": (
        (0.085, 0.135, 0.190, 0.215, 0.230, 0.245, 0.255, 0.275, 0.360, 0.310, -26, -17),
        (0.125, 0.190, 0.260, 0.285, 0.300, 0.315, 0.325, 0.345, 0.440, 0.390, -28, -19),
    ),
    "rock": (
        (0.085, 0.098, 0.108, 0.115, 0.120, 0.125, 0.128, 0.138, 0.160, 0.140, -20, -12),
        (0.140, 0.158, 0.172, 0.180, 0.185, 0.190, 0.195, 0.205, 0.235, 0.210, -19, -10),
    ),
    "asphalt": (
        (0.048, 0.054, 0.058, 0.064, 0.070, 0.076, 0.078, 0.086, 0.095, 0.088, -22, -13),
        (0.080, 0.090, 0.098, 0.105, 0.112, 0.118, 0.122, 0.132, 0.150, 0.138, -20, -12),
    ),
    "concrete": (
        (0.100, 0.112, 0.122, 0.130, 0.138, 0.146, 0.150, 0.160, 0.180, 0.165, -7, 2),
        (0.150, 0.166, 0.178, 0.186, 0.194, 0.202, 0.206, 0.216, 0.236, 0.218, -6, 3),
    ),
    "tile": (
        (0.055, 0.075, 0.130, 0.155, 0.175, 0.190, 0.198, 0.215, 0.260, 0.235, -9, -1),
        (0.078, 0.092, 0.105, 0.115, 0.125, 0.135, 0.138, 0.150, 0.170, 0.155, -9, -1),
    ),
    "metal": (
        (0.130, 0.143, 0.154, 0.160, 0.166, 0.174, 0.178, 0.188, 0.215, 0.195, -8, 2),
        (0.220, 0.238, 0.250, 0.257, 0.262, 0.267, 0.270, 0.277, 0.285, 0.252, -7, 3),
    ),
    "rust": (
        (0.060, 0.075, 0.108, 0.128, 0.142, 0.155, 0.160, 0.175, 0.230, 0.205, -11, -3),
        (0.105, 0.120, 0.140, 0.152, 0.162, 0.172, 0.176, 0.190, 0.230, 0.205, -10, -3),
    ),
    "slag": (
        (0.028, 0.030, 0.033, 0.036, 0.040, 0.044, 0.045, 0.050, 0.065, 0.060, -19, -11),
        (0.050, 0.055, 0.062, 0.068, 0.074, 0.080, 0.082, 0.090, 0.110, 0.100, -17, -10),
    ),
    "shadow": (
        (0.012, 0.014, 0.012, 0.016, 0.026, 0.030, 0.030, 0.034, 0.028, 0.020, -24, -16),
        (0.022, 0.026, 0.026, 0.032, 0.048, 0.055, 0.056, 0.062, 0.060, 0.048, -22, -15),
    ),
}
MATERIALS = tuple(_EXTREMES)
BANDS = len(so2sat.SENTINEL2_BANDS)


def _linear(extreme: tuple[float, ...]) -> tuple[float, ...]:
    return *extreme[:BANDS], *(10 ** (decibel / 10) for decibel in extreme[BANDS:])


# Shape (materials, 2 extremes, 10 bands + VH + VV).
SPECTRA: Floats = np.array([[_linear(end) for end in ends] for ends in _EXTREMES.values()], np.float32)

# Reflectance that the atmosphere adds: the blue of the published means, which are of top-of-atmosphere reflectance.
HAZE: Floats = np.array([0.076, 0.043, 0.027, 0.021, 0.018, 0.016, 0.014, 0.012, 0.003, 0.001], np.float32)

# ┌────────────┐
# │  Patterns  │
# └────────────┘
#
# A pattern says where the material of a layer lies (cover, 0 to 1) and how bright it is there (tone, about 1).
# Distances are in pixels of 10 m.


@dataclasses.dataclass(frozen=True)
class Frame:
    """Coordinates of a group of patches, rotated, shifted and zoomed by chance, one way for all layers of a patch.

    Attributes:
        u: Position along one direction of the streets, shape (rows, 32, 32), in pixels.
        v: Position along the other, shape (rows, 32, 32), in pixels.
        away: The direction of shadows as (u, v), each of shape (rows, 1, 1).
        salt: What makes the cells of one patch unlike another's, shape (rows, 1, 1), uint32.
        rng: Source of further chance.
    """

    u: Floats
    v: Floats
    away: tuple[Floats, Floats]
    salt: Integers
    rng: np.random.Generator

    @classmethod
    def draw(cls, rng: np.random.Generator, rows: int) -> Frame:
        """Draws the frames of `rows` patches."""
        angle = rng.uniform(0, 2 * np.pi, (rows, 1, 1)).astype(np.float32)
        zoom = rng.uniform(0.85, 1.2, (rows, 1, 1)).astype(np.float32)
        shift = rng.uniform(0, 1000, (2, rows, 1, 1)).astype(np.float32)
        y, x = np.mgrid[: so2sat.PATCH_SIZE, : so2sat.PATCH_SIZE].astype(np.float32)
        cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
        away = (
            -0.5 * cos - 0.87 * sin,
            0.5 * sin - 0.87 * cos,
        )  # north-north-west: the satellite passes in the morning
        salt = rng.integers(0, 1 << 32, (rows, 1, 1), np.uint32)
        return cls(x * cos + y * sin + shift[0], y * cos - x * sin + shift[1], away, salt, rng)


Pattern = Callable[[Frame], tuple[Floats, Floats]]


def everywhere() -> Pattern:
    """The ground below all other layers."""
    return lambda frame: (np.ones_like(frame.u), np.ones_like(frame.u))


def blobs(size: float, share: float, edge: float = 0.5) -> Pattern:
    """Irregular patches of about `size` pixels that take a share of the area, with edges from sharp to soft."""
    threshold = statistics.NormalDist().inv_cdf(1 - share)

    def draw(frame: Frame) -> tuple[Floats, Floats]:
        noise = _smooth_noise(frame.rng, len(frame.u), size)
        cover: Floats = np.clip((noise - threshold) / edge + 0.5, 0, 1)
        return cover, 1 + 0.08 * noise

    return draw


def buildings(
    spacing: tuple[float, float],
    size: tuple[float, float],
    present: float = 1.0,
    contrast: float = 0.5,
    vary: float = 0.3,
    jitter: float = 0.0,
    shadow: float = 0.0,
) -> Pattern:
    """Boxes on a grid.

    Args:
        spacing: Of the grid.
        size: Of the largest box.
        present: Share of the grid's cells that have a box.
        contrast: Spread of the boxes' brightness.
        vary: By which share boxes may be smaller.
        jitter: By how much boxes leave the middle of their cell.
        shadow: Length of the shadow; if not 0 this is where the shadows of the boxes lie, not the boxes.
    """

    def draw(frame: Frame) -> tuple[Floats, Floats]:
        u, v = (axis - shadow * away for axis, away in zip((frame.u, frame.v), frame.away))
        (column, along), (row, across) = _cells(u, spacing[0]), _cells(v, spacing[1])
        chance = _chance(column, row, frame.salt)
        smaller = 1 - vary * _fraction(chance, 0)
        along += jitter * (_fraction(chance, 1) - 0.5)
        across += jitter * (_fraction(chance, 2) - 0.5)
        cover = _within(along, size[0] * smaller) * _within(across, size[1] * smaller)
        cover *= _fraction(chance, 3) < present
        return cover, 1 + contrast * (_fraction(chance, 2) - 0.5)

    return draw


def streets(spacing: tuple[float, float], width: float) -> Pattern:
    """What lies between the cells of a grid."""
    blocks = buildings(spacing, (spacing[0] - width, spacing[1] - width), contrast=0, vary=0)

    def draw(frame: Frame) -> tuple[Floats, Floats]:
        cover, tone = blocks(frame)
        return 1 - cover, tone

    return draw


def tanks(spacing: float, diameter: float, present: float) -> Pattern:
    """Round tanks in rows."""

    def draw(frame: Frame) -> tuple[Floats, Floats]:
        (column, along), (row, across) = _cells(frame.u, spacing), _cells(frame.v, spacing)
        yard = _chance(column // 4, row // 3, frame.salt)  # tanks come in groups
        cover: Floats = np.clip((diameter + 1) / 2 - np.hypot(along, across), 0, 1)
        cover *= _fraction(yard, 3) < present
        return cover, np.ones_like(cover)

    return draw


def parcels(spacing: tuple[float, float], share: float, contrast: float = 0.25) -> Pattern:
    """Fields side by side; a share of them has the material, with different vigour."""

    def draw(frame: Frame) -> tuple[Floats, Floats]:
        row, _ = _cells(frame.v, spacing[1])
        offset = spacing[0] * _fraction(_chance(row, row, frame.salt), 0)
        column, _ = _cells(frame.u + offset, spacing[0])
        chance = _chance(column, row, frame.salt)
        has = (_fraction(chance, 0) < share).astype(np.float32)
        return has * (0.45 + 0.55 * _fraction(chance, 1)), 1 + contrast * (_fraction(chance, 2) - 0.5)

    return draw


def dunes(spacing: float, bend: float, share: float) -> Pattern:
    """Soft stripes that wind; on their crests a share of the ground has the material."""

    def draw(frame: Frame) -> tuple[Floats, Floats]:
        wave: Floats = np.sin((frame.u + bend * _smooth_noise(frame.rng, len(frame.u), 8)) * (2 * np.pi / spacing))
        return share * (0.5 + 0.5 * wave), np.ones_like(wave)

    return draw


def strip(width: float, spacing: float = 40.0, present: float = 1.0) -> Pattern:
    """A straight road, runway or canal; `spacing` is that of further ones beside it."""

    def draw(frame: Frame) -> tuple[Floats, Floats]:
        number, along = _cells(frame.u, spacing)
        chance = _chance(number, np.zeros_like(number), frame.salt)
        return _within(along, np.float32(width)) * (_fraction(chance, 0) < present), np.ones_like(along)

    return draw


def _cells(position: Floats, spacing: float) -> tuple[Integers, Floats]:
    """Number of the cell and the distance from its middle."""
    number = np.floor(position / spacing)
    return number.astype(np.int32).view(np.uint32), position - (number + 0.5) * spacing


def _chance(column: Integers, row: Integers, salt: Integers) -> Integers:
    """Chance of a cell, the same in all layers of a patch: four bytes for `_fraction`."""
    mixed: Integers = (column * np.uint32(0x9E3779B1)) ^ (row * np.uint32(0x85EBCA77)) ^ salt
    mixed ^= mixed >> 15
    mixed *= np.uint32(0x2C1B3C6D)
    mixed ^= mixed >> 13
    mixed *= np.uint32(0x297A2D39)
    mixed ^= mixed >> 16
    return mixed


def _fraction(chance: Integers, byte: int) -> Floats:
    """One of four independent values from 0 to 1."""
    value: Floats = (chance >> (8 * byte)).astype(np.uint8) * np.float32(1 / 255)
    return value


def _within(distance: Floats, size: Floats | np.float32) -> Floats:
    """How much of a pixel at this distance from the middle of something is covered by it."""
    return np.clip((size + 1) / 2 - np.abs(distance), 0, np.minimum(size, 1))


def _smooth_noise(rng: np.random.Generator, rows: int, size: float) -> Floats:
    """Gaussian noise of mean 0 and deviation 1, shape (rows, 32, 32), with bumps of about `size` pixels."""
    weights = _bumps(size)
    knots = weights.shape[1]
    return _separable(rng.standard_normal((rows, knots, knots), dtype=np.float32), weights)


@functools.cache
def _bumps(size: float) -> Floats:
    spacing = size / 2
    knots = (np.arange(math.ceil(so2sat.PATCH_SIZE / spacing) + 6) - 3) * spacing
    distance = (np.arange(so2sat.PATCH_SIZE)[:, None] - knots) / spacing
    weights = np.exp(-0.5 * distance**2)
    normed: Floats = (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)
    return normed


def _separable(planes: Floats, weights: Floats) -> Floats:
    """Applies `weights`, shape (out, in), along both of the last axes: shape (..., in, in) to (..., out, out)."""
    # One product a plane: BLAS would divide a large one among threads, and the bytes would depend on their number.
    result: Floats = weights @ planes @ weights.T
    return result


# ┌───────────┐
# │  Recipes  │
# └───────────┘


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a class looks.

    Attributes:
        layers: Material and pattern, from the ground up.
        relief: Spread of slow changes in brightness, relative.
        relief_size: Their size in pixels.
        grain: Spread of the brightness from pixel to pixel, relative.
        scatterers: Mean number of strong radar scatterers in a patch.
    """

    layers: tuple[tuple[str, Pattern], ...]
    relief: float
    relief_size: float
    grain: float
    scatterers: float


def _raised(
    material: str, shadow: float, spacing: tuple[float, float], size: tuple[float, float], **options: float
) -> tuple[tuple[str, Pattern], ...]:
    """Buildings above their shadows."""
    return (
        ("shadow", buildings(spacing, size, **options, shadow=shadow)),
        (material, buildings(spacing, size, **options)),
    )


# In the order of LABELS.
RECIPES = (
    Recipe(  # Compact high-rise
        (
            ("asphalt", everywhere()),
            *_raised("concrete", 2.2, (6.5, 5.5), (5.0, 4.2), present=0.92, contrast=0.9),
        ),
        *(0.06, 12, 0.10, 12),
    ),
    Recipe(  # Compact mid-rise: perimeter blocks with courtyards
        (
            ("asphalt", everywhere()),
            *_raised("tile", 0.9, (9.5, 8.5), (8.0, 7.0), present=0.97, contrast=0.35, vary=0.1),
            ("concrete", buildings((4.75, 4.25), (3.6, 3.2), present=0.35, contrast=0.5)),
            ("grass", buildings((9.5, 8.5), (2.6, 2.2), present=0.6, vary=0.4)),
        ),
        *(0.06, 12, 0.10, 7),
    ),
    Recipe(  # Compact low-rise
        (
            ("asphalt", everywhere()),
            ("trees", blobs(3, 0.12)),
            ("tile", buildings((3.2, 2.6), (2.6, 2.0), contrast=0.8)),
            ("asphalt", streets((12.8, 26), 1.2)),
        ),
        *(0.08, 10, 0.10, 3),
    ),
    Recipe(  # Open high-rise
        (
            ("grass", everywhere()),
            ("trees", blobs(4, 0.35)),
            ("asphalt", streets((24, 18), 1.4)),
            *_raised("concrete", 2.6, (8, 9), (3.4, 2.4), present=0.8, jitter=2.0),
        ),
        *(0.08, 12, 0.08, 7),
    ),
    Recipe(  # Open mid-rise: slabs
        (
            ("grass", everywhere()),
            ("trees", blobs(4, 0.35)),
            ("asphalt", streets((21, 16.5), 1.3)),
            *_raised("concrete", 1.0, (10.5, 5.5), (8.0, 1.9), present=0.85, contrast=0.4),
        ),
        *(0.08, 12, 0.08, 4),
    ),
    Recipe(  # Open low-rise
        (
            ("grass", everywhere()),
            ("trees", blobs(3, 0.42)),
            ("asphalt", streets((50, 9), 1.0)),
            ("tile", buildings((4.2, 4.5), (1.9, 1.6), present=0.85, contrast=0.7, jitter=0.8)),
        ),
        *(0.08, 10, 0.08, 1.5),
    ),
    Recipe(  # Lightweight low-rise
        (
            ("soil", everywhere()),
            ("rust", buildings((1.9, 1.7), (1.7, 1.5), present=0.85, contrast=1.1)),
            ("soil", strip(1.2, 15)),
        ),
        *(0.10, 7, 0.14, 2),
    ),
    Recipe(  # Large low-rise
        (
            ("asphalt", everywhere()),
            ("grass", blobs(5, 0.10, 0.2)),
            ("metal", buildings((14, 11), (11.5, 8), present=0.88, contrast=0.9, jitter=1.5)),
            ("asphalt", strip(1.6, 42)),
        ),
        *(0.05, 14, 0.04, 9),
    ),
    Recipe(  # Sparsely built
        (
            ("grass", everywhere()),
            ("trees", blobs(6, 0.38)),
            ("fallow", blobs(9, 0.12, 0.2)),
            ("concrete", buildings((6.5, 6), (1.9, 1.7), present=0.22, contrast=0.8, jitter=3.5)),
            ("asphalt", strip(0.8, 44)),
        ),
        *(0.10, 10, 0.08, 0.8),
    ),
    Recipe(  # Heavy industry
        (
            ("asphalt", everywhere()),
            ("slag", blobs(8, 0.40, 0.3)),
            ("soil", blobs(6, 0.08, 0.6)),
            *_raised("rust", 1.6, (13, 8), (11, 4.5), present=0.5, contrast=0.9, jitter=2.0),
            ("metal", tanks(4.6, 3.2, 0.22)),
        ),
        *(0.10, 9, 0.10, 14),
    ),
    Recipe(  # Dense trees
        (
            ("trees", everywhere()),
            ("shadow", blobs(2.2, 0.22, 1.2)),
        ),
        *(0.10, 6, 0.07, 0.05),
    ),
    Recipe(  # Scattered trees
        (
            ("grass", everywhere()),
            ("fallow", blobs(10, 0.18, 0.8)),
            ("trees", blobs(3.2, 0.33, 0.3)),
        ),
        *(0.08, 10, 0.06, 0.1),
    ),
    Recipe(  # Bush or scrub
        (
            ("soil", everywhere()),
            ("scrub", blobs(2, 0.72, 1.6)),
            ("scrub", blobs(9, 0.35, 1.0)),
        ),
        *(0.10, 8, 0.07, 0.1),
    ),
    Recipe(  # Low plants
        (
            ("fallow", everywhere()),
            ("grass", parcels((30, 17), 0.5)),
            ("crop", parcels((22, 12), 0.62)),
        ),
        *(0.05, 9, 0.025, 0.1),
    ),
    Recipe(  # Bare rock or paved
        (
            ("rock", everywhere()),
            ("asphalt", strip(5, 28, 0.5)),
            ("scrub", blobs(7, 0.06, 0.8)),
        ),
        *(0.14, 5, 0.05, 0.8),
    ),
    Recipe(  # Bare soil or sand
        (
            ("soil", everywhere()),
            ("sand", blobs(13, 0.45, 1.2)),
            ("sand", dunes(8, 3, 0.55)),
        ),
        *(0.05, 9, 0.02, 0.1),
    ),
    Recipe(  # Water
        (("water", everywhere()),),
        *(0.10, 14, 0.02, 0.15),
    ),
)

# ┌──────────┐
# │  Scenes  │
# └──────────┘

# Cities of edition 2: 42 are in the training split, 10 others are shared by the validation and the test split.
CITIES: Mapping[str, range] = {"train": range(42), "validation": range(42, 52), "test": range(42, 52)}


@dataclasses.dataclass(frozen=True)
class Cities:
    """What the patches of a city have in common.

    Attributes:
        light: Factor of every band (sun, season, calibration), shape (cities, 10).
        haze: Factor of HAZE, shape (cities, 1).
        place: Where each material lies between its extremes, shape (cities, materials).
    """

    light: Floats
    haze: Floats
    place: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Cities:
        """Draws all cities."""
        count = 1 + max(max(cities) for cities in CITIES.values())
        return cls(
            _light(rng, count, 0.12, 0.05),
            np.exp(0.10 * rng.standard_normal((count, 1), dtype=np.float32)),
            rng.uniform(0, 1, (count, len(MATERIALS))).astype(np.float32),
        )


def generate_block(
    labels: npt.NDArray[np.integer[Any]], split: str, cities: Cities, rng: np.random.Generator
) -> dict[str, npt.NDArray[np.float64]]:
    """Generates patches.

    Args:
        labels: Class indices, shape (rows,).
        split: Split that the patches are of, which decides on the cities.
        cities: All cities.
        rng: Source of chance.

    Returns:
        The arrays of a source file, all float64: `sen1` (rows, 32, 32, 8) in linear units, `sen2` (rows, 32, 32, 10) in
        reflectance, a multiple of 1/10000, and `label` (rows, 17), one-hot; besides, `city` (rows,), int64.
    """
    city = rng.choice(CITIES[split], len(labels))
    scenes = np.empty((len(labels), BANDS + 2, so2sat.PATCH_SIZE, so2sat.PATCH_SIZE), np.float32)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        scenes[rows] = _paint(RECIPES[label], cities.place[city[rows]], rng)
    _add_neighbours(scenes, rng)
    light = cities.light[city] * _light(rng, len(labels), 0.14, 0.04)
    scatterers = np.array([recipe.scatterers for recipe in RECIPES])[labels]
    return {
        "sen1": _sentinel1(scenes[:, BANDS:], scatterers, rng),
        "sen2": _sentinel2(scenes[:, :BANDS] * light[:, :, None, None], cities.haze[city] * HAZE, rng),
        "label": np.eye(len(so2sat.LABELS))[labels],
        "city": city,
    }


def generate_places(
    cities: npt.NDArray[np.int64], split: str, rng: np.random.Generator
) -> dict[str, npt.NDArray[np.generic]]:
    """Invents where patches are: around the centre of their city, in validation in its west, in test in its east.

    Args:
        cities: Index of every patch's city, shape (rows,).
        split: Split that the patches are of.
        rng: Source of chance.

    Returns:
        The arrays of a file with places: `epsg` (rows, 1), int32, `tfw` (rows, 6), float64, and `city` (rows, 1), text.
    """
    steps = np.rint(rng.normal(0, CITY_SPREAD / GRID, (len(cities), 2)))
    if split != "train":
        steps[:, 0] = np.abs(steps[:, 0]) * (-1 if split == "validation" else 1)
    names = np.array([*facts.CITIES], "S16")
    codes = np.array([city.epsg for city in facts.CITIES.values()], np.int32)
    centres = np.array(
        [
            pyproj.Transformer.from_crs(4326, city.epsg, always_xy=True).transform(city.longitude, city.latitude)
            for city in facts.CITIES.values()
        ]
    )
    tfw = np.tile([so2sat.PIXEL_SIZE, 0.0, 0.0, -so2sat.PIXEL_SIZE, 0.0, 0.0], (len(cities), 1))
    tfw[:, 4:] = np.rint(centres[cities] / GRID) * GRID + steps * GRID
    return {"epsg": codes[cities, None], "tfw": tfw, "city": names[cities, None]}


def _light(rng: np.random.Generator, rows: int, spread: float, tilt: float) -> Floats:
    """Factors near 1 of every band, shape (rows, 10): brightness as a whole, and blue against infrared."""
    whole, slope = rng.standard_normal((2, rows, 1), dtype=np.float32)
    factors: Floats = np.exp(spread * whole + tilt * slope * np.linspace(-1, 1, BANDS, dtype=np.float32))
    return factors


def _paint(recipe: Recipe, place: Floats, rng: np.random.Generator) -> Floats:
    """Surface reflectance of 10 bands, VH and VV backscatter: shape (rows, 12, 32, 32)."""
    rows = len(place)
    frame = Frame.draw(rng, rows)
    noise = rng.random(frame.u.shape, dtype=np.float32) - np.float32(0.5)
    light = 1 + np.float32(recipe.grain * math.sqrt(12)) * noise
    light += recipe.relief * _smooth_noise(rng, rows, recipe.relief_size)
    np.maximum(light, 0.2, out=light)
    shares = np.empty((rows, len(recipe.layers), *frame.u.shape[1:]), np.float32)
    for number, (_, pattern) in enumerate(recipe.layers):
        cover, tone = pattern(frame)
        shares[:, :number] *= (1 - cover)[:, None]
        shares[:, number] = cover * tone * light
    materials = [MATERIALS.index(material) for material, _ in recipe.layers]
    place = place[:, materials] + 0.2 * rng.standard_normal((rows, len(materials)), dtype=np.float32)
    place = np.clip(place, 0, 1)[:, :, None]
    spectra = SPECTRA[materials, 0] * (1 - place) + SPECTRA[materials, 1] * place
    mixed: Floats = spectra.swapaxes(1, 2) @ shares.reshape(*shares.shape[:2], -1)
    return mixed.reshape(rows, -1, *frame.u.shape[1:])


def _add_neighbours(scenes: Floats, rng: np.random.Generator) -> None:
    """Lets every third scene end in another one, but never in its middle: a label is that of most of the patch."""
    rows = np.flatnonzero(rng.random(len(scenes)) < 1 / 3)
    angle, distance = rng.uniform(0, 2 * np.pi, len(rows)), rng.uniform(5, 16, len(rows))
    y, x = np.mgrid[: so2sat.PATCH_SIZE, : so2sat.PATCH_SIZE] - (so2sat.PATCH_SIZE - 1) / 2
    beyond = x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None] - distance[:, None, None]
    share = np.clip(beyond + 0.5, 0, 1).astype(np.float32)[:, None]
    other = rng.integers(0, len(scenes), len(rows))
    scenes[rows] += share * (scenes[other] - scenes[rows])


# ┌───────────┐
# │  Sensors  │
# └───────────┘

# Bands of 20 m (B5, B6, B7, B8A, B11, B12) are bilinearly resampled to 10 m.
BANDS_20M = (3, 4, 5, 7, 8, 9)


def _sentinel2(surface: Floats, haze: Floats, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Quantised reflectance, shape (rows, 32, 32, 10), of surface reflectance, shape (rows, 10, 32, 32)."""
    surface[:, BANDS_20M] = _separable(surface[:, BANDS_20M], _resampling())
    surface += haze[:, :, None, None]
    surface *= 10_000
    surface += np.float32(0.1) * rng.integers(-128, 128, surface.shape, np.int8)  # sensor noise
    np.rint(surface, out=surface)
    np.clip(surface, 1, 28_000, out=surface)
    reflectance: npt.NDArray[np.float64] = np.divide(surface.transpose(0, 2, 3, 1), 10_000, dtype=np.float64, order="C")
    return reflectance


@functools.cache
def _resampling() -> Floats:
    """Weights of 32 pixels of 10 m after the means of pairs, interpolated linearly."""
    middle = np.arange(so2sat.PATCH_SIZE // 2) * 2 + 0.5
    distance = np.abs(np.clip(np.arange(so2sat.PATCH_SIZE), middle[0], middle[-1])[:, None] - middle)
    weights: Floats = np.repeat(np.clip(1 - distance / 2, 0, 1) / 2, 2, axis=1).astype(np.float32)
    return weights


@functools.cache
def _window() -> Floats:
    """Weights of the local means: 5 pixels along a line, the middle ones more, fewer pixels at the ends."""
    pixels = np.arange(so2sat.PATCH_SIZE)
    near = np.clip(3 - np.abs(pixels[:, None] - pixels), 0, 3)
    weights: Floats = (near / near.sum(axis=1, keepdims=True)).astype(np.float32)
    return weights


def _sentinel1(
    backscatter: Floats, scatterers: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Both polarisations with speckle and their local means, shape (rows, 32, 32, 8).

    Args:
        backscatter: VH and VV in linear power, shape (rows, 2, 32, 32).
        scatterers: Mean number of strong scatterers, shape (rows,).
        rng: Source of chance.
    """
    row = np.repeat(np.arange(len(backscatter)), rng.poisson(scatterers))
    y, x = rng.integers(0, so2sat.PATCH_SIZE, (2, len(row)))
    # Pareto: most corners and metal roofs are a few times as bright as what is around them, very few 10,000 times.
    strength = np.minimum(3 * (1 + rng.pareto(1.2, len(row))), 30_000)
    backscatter[row, :, y, x] *= strength[:, None].astype(np.float32)

    signal = rng.standard_normal((len(backscatter), 4, *backscatter.shape[2:]), dtype=np.float32)
    vh, vv = signal[:, :2], signal[:, 2:]
    # A little of VV's speckle is in VH too, turned by an angle of the patch: their covariance is small but not 0.
    angle = rng.uniform(0, 2 * np.pi, (len(backscatter), 1, 1)).astype(np.float32)
    cos, sin = np.float32(0.2) * np.cos(angle), np.float32(0.2) * np.sin(angle)
    vh *= np.float32(math.sqrt(1 - 0.2**2))
    vh[:, 0] += cos * vv[:, 0] - sin * vv[:, 1]
    vh[:, 1] += sin * vv[:, 0] + cos * vv[:, 1]
    amplitude = np.sqrt(backscatter * np.float32(0.5))
    vh *= amplitude[:, :1]
    vv *= amplitude[:, 1:]

    products = np.empty_like(signal)
    products[:, 0] = vh[:, 0] ** 2 + vh[:, 1] ** 2
    products[:, 1] = vv[:, 0] ** 2 + vv[:, 1] ** 2
    # VH × conj(VV). A hair less, or rounding takes it above what the intensities allow where one scatterer rules.
    products[:, 2] = (vh[:, 0] * vv[:, 0] + vh[:, 1] * vv[:, 1]) * np.float32(0.9999)
    products[:, 3] = (vh[:, 1] * vv[:, 0] - vh[:, 0] * vv[:, 1]) * np.float32(0.9999)
    means = _separable(products, _window())
    sen1 = np.empty((len(signal), *so2sat.SOURCE_SHAPES["sen1"]))
    sen1[..., :4] = signal.transpose(0, 2, 3, 1)
    sen1[..., 4:] = means.transpose(0, 2, 3, 1)
    return sen1


# ┌───────────┐
# │  Writing  │
# └───────────┘


def apportion(rows: int, weights: tuple[int, ...]) -> list[int]:
    """Divides rows among classes by largest remainder, at least one each.

    Args:
        rows: How many, at least as many as there are classes.
        weights: What the shares are to be proportional to.

    Returns:
        Rows per class, which sum to `rows`.
    """
    total = sum(weights)
    counts = [rows * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda index: -(rows * weights[index] % total))
    for index in by_remainder[: rows - sum(counts)]:
        counts[index] += 1
    while 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] = 1
    return counts


def generate(split: str, rows: int, seed: int) -> Iterator[dict[str, npt.NDArray[np.float64]]]:
    """Generates a split in blocks of at most ROWS_PER_BLOCK rows, as `generate_block` returns them."""
    cities = Cities.draw(_generator(seed, 0))
    number = 1 + list(so2sat.SOURCE_FILES).index(split)
    counts = apportion(rows, facts.PATCHES_PER_CLASS[split])
    labels = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    _generator(seed, number).shuffle(labels)
    for block, start in enumerate(range(0, rows, ROWS_PER_BLOCK)):
        yield generate_block(labels[start : start + ROWS_PER_BLOCK], split, cities, _generator(seed, number, block))


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def write_sample(folder: Path, rows: Mapping[str, int], seed: int = 0) -> list[Path]:
    """Writes synthetic source files and their places in the layout of the official ones, all of them or none.

    Every file says in its root attribute `synthetic` what it is.

    Args:
        folder: Where to; made if it isn't there. Synthetic files in it are replaced.
        rows: Rows by split, at least 17 each; 0 or no entry leaves out an optional split.
        seed: The same seed and rows give the same bytes, with the same versions of NumPy and HDF5 on a like processor.

    Returns:
        The files, in the order train, validation, test, each before the one with its places.

    Raises:
        command.CommandError: Too few rows, too little space, or one of the files is there already and not synthetic.
        OSError: The folder can't be written to.
    """
    rows = {split: rows.get(split, 0) for split in so2sat.SOURCE_FILES}
    _check_rows(rows)
    if seed < 0:
        raise command.CommandError(f"seed is {seed}, expected 0 or more")
    folder.mkdir(parents=True, exist_ok=True)
    paths = {split: folder / name for split, name in so2sat.SOURCE_FILES.items()}
    for path in paths.values():
        _check_replaceable(path)
        _check_replaceable(path.with_name(places.geo_file(path.name)))
    _check_space(folder, sum(size_in_bytes(count) for count in rows.values() if count))

    # One name for all runs, so that the next one replaces what a killed one left.
    names = [name for split, path in paths.items() if rows[split] for name in (path.name, places.geo_file(path.name))]
    written = {folder / name: folder / f".{name}.incomplete" for name in names}
    try:
        with (
            _interrupts_held_back() as check_interrupt,
            tqdm.tqdm(total=sum(rows.values()), unit="rows", disable=None) as progress,
        ):
            for split, path in paths.items():
                if path in written:
                    geo = written[path.with_name(places.geo_file(path.name))]
                    for count in _write_files(written[path], geo, split, rows[split], seed):
                        progress.update(count)
                        check_interrupt()
            for path, temporary in written.items():
                temporary.replace(path)
            for path in paths.values():
                if path not in written:  # of an earlier sample with this split: it would not fit the others
                    path.unlink(missing_ok=True)
                    path.with_name(places.geo_file(path.name)).unlink(missing_ok=True)
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)
    return list(written)


def size_in_bytes(rows: int) -> int:
    """Size of a file with so many rows, and of that with their places, at most."""
    geo = 4 + 6 * 8 + 16
    return 2 * HEADER_BYTES + rows * (geo + 8 * sum(math.prod(shape) for shape in so2sat.SOURCE_SHAPES.values()))


def _check_rows(rows: Mapping[str, int]) -> None:
    for split, count in rows.items():
        if count < len(so2sat.LABELS) and not (count == 0 and split == OPTIONAL_SPLIT):
            leave_out = " (or 0 to leave it out)" if split == OPTIONAL_SPLIT else ""
            raise command.CommandError(
                f"{count} rows for {split}, expected at least {len(so2sat.LABELS)}{leave_out}: no class may be empty"
            )


def _check_replaceable(path: Path) -> None:
    if not os.path.lexists(path):
        return
    opened = places.open_geo if places.is_geo(path.name) else so2sat.open_source
    with contextlib.suppress(so2sat.SourceError), opened(str(path)) as source:
        if source.synthetic:
            return
    raise command.CommandError(f"{path} is there already and is not synthetic, left as it is; choose another folder")


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise command.CommandError(f"{folder}: {needed:,} bytes are needed and {free:,} are free; ask for fewer rows")


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[Callable[[], None]]:
    """Holds Ctrl-C back until the function it yields is called.

    While h5py writes, it mostly strikes in the callback of a weak reference, where Python drops exceptions.
    """
    interrupts: list[int] = []

    def check() -> None:
        if interrupts:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    holds = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if holds:
        signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        yield check
    finally:
        if holds:
            signal.signal(signal.SIGINT, before)


def _write_files(path: Path, geo: Path, split: str, rows: int, seed: int) -> Iterator[int]:
    """Writes a file block by block, yields the number of rows after each, and writes the file with the places."""
    synthetic = f"generated by scripts/sample.py (seed {seed}); not measured data"
    cities = []
    with h5py.File(path, "w") as h5:
        arrays = {name: h5.create_dataset(name, (rows, *shape), "<f8") for name, shape in so2sat.SOURCE_SHAPES.items()}
        start = 0
        for block in generate(split, rows, seed):
            stop = start + len(block["label"])
            for name, array in arrays.items():
                array[start:stop] = block[name]
            cities.append(block["city"])
            yield stop - start
            start = stop
        # Last, so that the data begin at the same byte as in the official files.
        h5.attrs["synthetic"] = synthetic
    number = 1 + list(so2sat.SOURCE_FILES).index(split)
    with h5py.File(geo, "w") as h5:
        for name, values in generate_places(np.concatenate(cities), split, _generator(seed, 10 + number)).items():
            h5[name] = values
        h5.attrs["synthetic"] = synthetic


# ┌────────────────┐
# │  Command line  │
# └────────────────┘

_DESCRIPTION = """\
Write synthetic stand-ins for the official So2Sat LCZ42 files, in their exact layout.

No value in them was measured; each file says so in its root attribute `synthetic`. Files that don't are never
overwritten."""

_EXAMPLES = """\
  python scripts/sample.py data/sample
      2,048 + 256 + 256 rows (378 MB), enough for a first model
  python scripts/sample.py data/tiny --train 40 --validation 17 --test 17
      11 MB, in a moment
  python scripts/sample.py data/edition1 --test 0
      without testing.h5, as in edition 1
  python scripts/sample.py data/other --seed 1
      other patches of other cities"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = command.parser(_DESCRIPTION, _EXAMPLES)
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="folder for training.h5, validation.h5, testing.h5, and …_geo.h5"
    )
    for split, rows in DEFAULT_ROWS.items():
        leave_out = ", or 0 for no file" if split == OPTIONAL_SPLIT else ""
        text = f"rows of the {split} split, at least {len(so2sat.LABELS)}{leave_out} (default: %(default)s)"
        parser.add_argument(f"--{split}", metavar="ROWS", type=int, default=rows, help=text)
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    return command.run(_run, parser, argv)


def _run(options: argparse.Namespace) -> None:
    rows = {split: getattr(options, split) for split in so2sat.SOURCE_FILES}
    paths = write_sample(options.folder, rows, options.seed)
    size = sum(path.stat().st_size for path in paths)
    names = ", ".join(path.name for path in paths)
    print(f"{options.folder}: {names}: {sum(rows.values()):,} rows, {size:,} bytes, synthetic (not measured data)")


if __name__ == "__main__":
    sys.exit(main())
