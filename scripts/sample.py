"""Writes small synthetic stand-ins for the official files, in their exact layout, to try everything without 59 GB.

No value in them was measured. Every class has spectra, backscatter and a texture of its own, so that a preview shows 17
kinds of place and a model can learn them; how they look and how often they occur is near the real data.

A patch comes about in four steps: the layers of its class, painted over each other, give the share of every material in
every pixel; the materials' spectra and backscatter, varied by patch, turn shares into a scene; part of some scenes
gives way to a neighbouring place; the two sensors look at the scene.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
import pyproj
import tqdm

import so2sat
from publishing import command, facts, places

Floats = npt.NDArray[np.float32]

DEFAULT_ROWS: Mapping[str, int] = {"train": 2048, "validation": 256, "test": 256}
GENERATED_ROWS = 64  # what is generated and held in memory at a time: 9 MB of float64
CITY_SPREAD = 2_100  # m, standard deviation of the distance from the middle of a split's part of a city
CITY_SIDE = 1_800  # m, from a city's centre to the middle of validation in the west and of test in the east
GRID = 100  # m, between neighbouring patches of the real data
HEADER_BYTES = 1 << 14  # more than an HDF5 header and the attribute take
SIZE = so2sat.PATCH_SIZE

# ┌─────────────┐
# │  Materials  │
# └─────────────┘
#
# A material is a range between two extremes (summer and winter, clear and turbid, old and new). In every patch it has
# a place in that range. An extreme is surface reflectance in the order of SENTINEL2_BANDS, then VH and VV in dB.

# fmt: off
_EXTREMES: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    #              B2     B3     B4     B5     B6     B7     B8     B8A    B11    B12    VH   VV
    "water":    ((0.020, 0.018, 0.008, 0.006, 0.005, 0.005, 0.004, 0.004, 0.002, 0.001, -29, -22),
                 (0.042, 0.060, 0.046, 0.042, 0.028, 0.026, 0.020, 0.018, 0.005, 0.003, -26, -18)),
    "trees":    ((0.017, 0.038, 0.018, 0.060, 0.200, 0.250, 0.260, 0.280, 0.125, 0.052, -13,  -8),
                 (0.028, 0.042, 0.042, 0.065, 0.125, 0.150, 0.155, 0.175, 0.140, 0.078, -15,  -9)),
    "grass":    ((0.030, 0.068, 0.040, 0.100, 0.240, 0.300, 0.310, 0.330, 0.190, 0.100, -18, -12),
                 (0.048, 0.078, 0.085, 0.120, 0.165, 0.185, 0.195, 0.218, 0.232, 0.150, -20, -13)),
    "crop":     ((0.022, 0.062, 0.028, 0.092, 0.290, 0.370, 0.380, 0.400, 0.165, 0.075, -17, -11),
                 (0.032, 0.072, 0.048, 0.105, 0.230, 0.290, 0.300, 0.320, 0.200, 0.110, -18, -11)),
    "fallow":   ((0.055, 0.080, 0.100, 0.120, 0.140, 0.155, 0.163, 0.182, 0.220, 0.160, -21, -13),
                 (0.080, 0.115, 0.150, 0.175, 0.200, 0.220, 0.230, 0.255, 0.310, 0.230, -22, -14)),
    "scrub":    ((0.028, 0.050, 0.040, 0.078, 0.150, 0.180, 0.188, 0.208, 0.170, 0.100, -17, -11),
                 (0.042, 0.062, 0.072, 0.098, 0.130, 0.148, 0.155, 0.175, 0.210, 0.145, -18, -12)),
    "soil":     ((0.060, 0.085, 0.120, 0.140, 0.155, 0.170, 0.180, 0.200, 0.270, 0.220, -22, -14),
                 (0.085, 0.138, 0.218, 0.245, 0.265, 0.283, 0.295, 0.315, 0.400, 0.345, -24, -15)),
    "sand":     ((0.085, 0.135, 0.190, 0.215, 0.230, 0.245, 0.255, 0.275, 0.360, 0.310, -26, -17),
                 (0.125, 0.190, 0.260, 0.285, 0.300, 0.315, 0.325, 0.345, 0.440, 0.390, -28, -19)),
    "rock":     ((0.085, 0.098, 0.108, 0.115, 0.120, 0.125, 0.128, 0.138, 0.160, 0.140, -20, -12),
                 (0.140, 0.158, 0.172, 0.180, 0.185, 0.190, 0.195, 0.205, 0.235, 0.210, -19, -10)),
    "asphalt":  ((0.048, 0.054, 0.058, 0.064, 0.070, 0.076, 0.078, 0.086, 0.095, 0.088, -22, -13),
                 (0.080, 0.090, 0.098, 0.105, 0.112, 0.118, 0.122, 0.132, 0.150, 0.138, -20, -12)),
    "concrete": ((0.100, 0.112, 0.122, 0.130, 0.138, 0.146, 0.150, 0.160, 0.180, 0.165,  -7,   2),
                 (0.150, 0.166, 0.178, 0.186, 0.194, 0.202, 0.206, 0.216, 0.236, 0.218,  -6,   3)),
    "tile":     ((0.055, 0.075, 0.130, 0.155, 0.175, 0.190, 0.198, 0.215, 0.260, 0.235,  -9,  -1),
                 (0.078, 0.092, 0.105, 0.115, 0.125, 0.135, 0.138, 0.150, 0.170, 0.155,  -9,  -1)),
    "metal":    ((0.130, 0.143, 0.154, 0.160, 0.166, 0.174, 0.178, 0.188, 0.215, 0.195,  -8,   2),
                 (0.220, 0.238, 0.250, 0.257, 0.262, 0.267, 0.270, 0.277, 0.285, 0.252,  -7,   3)),
    "rust":     ((0.060, 0.075, 0.108, 0.128, 0.142, 0.155, 0.160, 0.175, 0.230, 0.205, -11,  -3),
                 (0.105, 0.120, 0.140, 0.152, 0.162, 0.172, 0.176, 0.190, 0.230, 0.205, -10,  -3)),
    "slag":     ((0.028, 0.030, 0.033, 0.036, 0.040, 0.044, 0.045, 0.050, 0.065, 0.060, -19, -11),
                 (0.050, 0.055, 0.062, 0.068, 0.074, 0.080, 0.082, 0.090, 0.110, 0.100, -17, -10)),
    "shadow":   ((0.012, 0.014, 0.012, 0.016, 0.026, 0.030, 0.030, 0.034, 0.028, 0.020, -24, -16),
                 (0.022, 0.026, 0.026, 0.032, 0.048, 0.055, 0.056, 0.062, 0.060, 0.048, -22, -15)),
}
# fmt: on
MATERIALS = tuple(_EXTREMES)
BANDS = len(so2sat.SENTINEL2_BANDS)

# Shape (materials, 2 extremes, 10 bands + VH + VV), backscatter in linear units.
SPECTRA: Floats = np.array([*_EXTREMES.values()], np.float32)
SPECTRA[..., BANDS:] = 10 ** (SPECTRA[..., BANDS:] / 10)

# Reflectance that the atmosphere adds: the blue of the published means, which are of top-of-atmosphere reflectance.
HAZE: Floats = np.array([0.076, 0.043, 0.027, 0.021, 0.018, 0.016, 0.014, 0.012, 0.003, 0.001], np.float32)

# ┌────────────┐
# │  Patterns  │
# └────────────┘
#
# A pattern says where the material of a layer lies (cover, 0 to 1) and how bright it is there (tone, about 1), both of
# shape (rows, 32, 32). Distances are in pixels of 10 m.

Pattern = Callable[..., tuple[Floats, Floats]]

NORTH_NORTH_WEST = np.complex64(-0.5 - 0.87j)  # where shadows point: the satellite passes in the morning


@dataclasses.dataclass(frozen=True)
class Frame:
    """Coordinates of a group of patches, rotated, zoomed and shifted by chance, one way for all layers of a patch.

    Attributes:
        position: Of every pixel along the streets (real) and across (imaginary), shape (rows, 32, 32), complex64.
        turn: Rotation and zoom of every patch as a complex factor, shape (rows, 1, 1).
        dice: Four values from 0 to 1 for every cell of a grid of 32 × 32, which repeats: shape (4, rows × 1024).
        rng: Source of further chance.
    """

    position: npt.NDArray[np.complex64]
    turn: npt.NDArray[np.complex64]
    dice: Floats
    rng: np.random.Generator

    @classmethod
    def draw(cls, rng: np.random.Generator, rows: int) -> Frame:
        """Draws the frames of `rows` patches."""
        angle, zoom = rng.uniform(0, 2 * np.pi, (rows, 1, 1)), rng.uniform(0.85, 1.2, (rows, 1, 1))
        turn = (zoom * np.exp(1j * angle)).astype(np.complex64)
        shift = rng.uniform(0, 100, (2, rows, 1, 1)).astype(np.float32)
        y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
        position = (x + 1j * y) * turn + shift[0] + 1j * shift[1]
        return cls(position, turn, rng.random((4, rows * 32 * 32), np.float32), rng)

    def chance(self, column: npt.NDArray[np.int32], row: npt.NDArray[np.int32]) -> Floats:
        """Four values of the cell that every pixel is in, the same in all layers: shape (4, rows, 32, 32)."""
        patch = np.arange(len(self.position))[:, None, None]
        return self.dice.take((patch * 32 + column % 32) * 32 + row % 32, axis=1)


def everywhere(frame: Frame) -> tuple[Floats, Floats]:
    """The ground below all other layers."""
    ones = np.ones(frame.position.shape, np.float32)
    return ones, ones


def blobs(frame: Frame, size: float, share: float, edge: float = 0.5) -> tuple[Floats, Floats]:
    """Irregular patches of about `size` pixels that take a share of the area, with edges from sharp to soft."""
    noise = _smooth_noise(frame.rng, len(frame.position), size)
    threshold = statistics.NormalDist().inv_cdf(1 - share)
    return np.clip((noise - threshold) / edge + 0.5, 0, 1), 1 + 0.08 * noise


def buildings(
    frame: Frame,
    spacing: tuple[float, float],
    size: tuple[float, float],
    present: float = 1.0,
    contrast: float = 0.5,
    vary: float = 0.3,
    jitter: float = 0.0,
    shadow: float = 0.0,
) -> tuple[Floats, Floats]:
    """Boxes on a grid.

    Args:
        frame: Where the pixels are.
        spacing: Of the grid.
        size: Of the largest box.
        present: Share of the grid's cells that have a box.
        contrast: Spread of the boxes' brightness.
        vary: By which share boxes may be smaller.
        jitter: By how much boxes leave the middle of their cell.
        shadow: Length of the shadow; if not 0 this is where the shadows of the boxes lie, not the boxes.
    """
    position = frame.position - shadow * NORTH_NORTH_WEST * frame.turn
    (column, along), (row, across) = _cells(position.real, spacing[0]), _cells(position.imag, spacing[1])
    smaller, aside, bright, is_present = frame.chance(column, row)
    along += jitter * (aside - 0.5)
    across += jitter * (bright - 0.5)
    smaller = 1 - vary * smaller
    cover = _within(along, size[0] * smaller) * _within(across, size[1] * smaller)
    return cover * (is_present < present), 1 + contrast * (bright - 0.5)


def streets(frame: Frame, spacing: tuple[float, float], width: float) -> tuple[Floats, Floats]:
    """What lies between the cells of a grid."""
    blocks, tone = buildings(frame, spacing, (spacing[0] - width, spacing[1] - width), contrast=0, vary=0)
    return 1 - blocks, tone


def tanks(frame: Frame, spacing: float, diameter: float, present: float) -> tuple[Floats, Floats]:
    """Round tanks in groups of 4 × 3."""
    (column, along), (row, across) = _cells(frame.position.real, spacing), _cells(frame.position.imag, spacing)
    cover: Floats = np.clip((diameter + 1) / 2 - np.hypot(along, across), 0, 1)
    return cover * (frame.chance(column // 4, row // 3)[3] < present), np.ones_like(cover)


def parcels(frame: Frame, spacing: tuple[float, float], share: float) -> tuple[Floats, Floats]:
    """Fields side by side; a share of them has the material, with different vigour."""
    row, _ = _cells(frame.position.imag, spacing[1])
    column, _ = _cells(frame.position.real + spacing[0] * frame.chance(row, row)[0], spacing[0])
    chance = frame.chance(column, row)
    return (chance[0] < share) * (0.45 + 0.55 * chance[1]), 1 + 0.25 * (chance[2] - 0.5)


def dunes(frame: Frame, spacing: float, bend: float, share: float) -> tuple[Floats, Floats]:
    """Soft stripes that wind; on their crests a share of the ground has the material."""
    bent = frame.position.real + bend * _smooth_noise(frame.rng, len(frame.position), 8)
    wave: Floats = np.sin(bent * (2 * np.pi / spacing))
    return share * (0.5 + 0.5 * wave), np.ones_like(wave)


def strip(frame: Frame, width: float, spacing: float, present: float = 1.0) -> tuple[Floats, Floats]:
    """Straight roads, runways or canals side by side."""
    number, along = _cells(frame.position.real, spacing)
    return _within(along, np.float32(width)) * (frame.chance(number, number)[0] < present), np.ones_like(along)


def _cells(position: Floats, spacing: float) -> tuple[npt.NDArray[np.int32], Floats]:
    """Number of the cell and the distance from its middle."""
    number = np.floor(position / spacing)
    return number.astype(np.int32), position - (number + 0.5) * spacing


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
    knots = (np.arange(math.ceil(SIZE / spacing) + 6) - 3) * spacing
    weights = np.exp(-0.5 * ((np.arange(SIZE)[:, None] - knots) / spacing) ** 2)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return weights.astype(np.float32)


def _separable(planes: Floats, weights: Floats) -> Floats:
    """Applies `weights`, shape (out, in), along both of the last axes: shape (..., in, in) to (..., out, out)."""
    # One product a plane: BLAS would divide a large one among threads, and the bytes would depend on their number.
    result: Floats = weights @ planes @ weights.T
    return result


# ┌───────────┐
# │  Classes  │
# └───────────┘

Layer = tuple[str, Pattern]


def layer(material: str, pattern: Pattern = everywhere, **options: Any) -> Layer:
    """A material and where it lies."""
    return material, functools.partial(pattern, **options)


def raised(material: str, shadow: float, **options: Any) -> tuple[Layer, Layer]:
    """Buildings above their shadows."""
    return layer("shadow", buildings, shadow=shadow, **options), layer(material, buildings, **options)


# By LCZ code, from the ground up.
LAYERS: Mapping[str, tuple[Layer, ...]] = {
    "1": (  # Compact high-rise
        layer("asphalt"),
        *raised("concrete", shadow=2.2, spacing=(6.5, 5.5), size=(5.0, 4.2), present=0.92, contrast=0.9),
    ),
    "2": (  # Compact mid-rise: perimeter blocks with courtyards
        layer("asphalt"),
        *raised("tile", shadow=0.9, spacing=(9.5, 8.5), size=(8, 7), present=0.97, contrast=0.35, vary=0.1),
        layer("concrete", buildings, spacing=(4.75, 4.25), size=(3.6, 3.2), present=0.35, contrast=0.5),
        layer("grass", buildings, spacing=(9.5, 8.5), size=(2.6, 2.2), present=0.6, vary=0.4),
    ),
    "3": (  # Compact low-rise
        layer("asphalt"),
        layer("trees", blobs, size=3, share=0.12),
        layer("tile", buildings, spacing=(3.2, 2.6), size=(2.6, 2.0), contrast=0.8),
        layer("asphalt", streets, spacing=(12.8, 26), width=1.2),
    ),
    "4": (  # Open high-rise
        layer("grass"),
        layer("trees", blobs, size=4, share=0.35),
        layer("asphalt", streets, spacing=(24, 18), width=1.4),
        *raised("concrete", shadow=2.6, spacing=(8, 9), size=(3.4, 2.4), present=0.8, jitter=2.0),
    ),
    "5": (  # Open mid-rise: slabs
        layer("grass"),
        layer("trees", blobs, size=4, share=0.35),
        layer("asphalt", streets, spacing=(21, 16.5), width=1.3),
        *raised("concrete", shadow=1.0, spacing=(10.5, 5.5), size=(8.0, 1.9), present=0.85, contrast=0.4),
    ),
    "6": (  # Open low-rise
        layer("grass"),
        layer("trees", blobs, size=3, share=0.42),
        layer("asphalt", streets, spacing=(50, 9), width=1.0),
        layer("tile", buildings, spacing=(4.2, 4.5), size=(1.9, 1.6), present=0.85, contrast=0.7, jitter=0.8),
    ),
    "7": (  # Lightweight low-rise
        layer("soil"),
        layer("rust", buildings, spacing=(1.9, 1.7), size=(1.7, 1.5), present=0.85, contrast=1.1),
        layer("soil", strip, width=1.2, spacing=15),
    ),
    "8": (  # Large low-rise
        layer("asphalt"),
        layer("grass", blobs, size=5, share=0.10, edge=0.2),
        layer("metal", buildings, spacing=(14, 11), size=(11.5, 8), present=0.88, contrast=0.9, jitter=1.5),
        layer("asphalt", strip, width=1.6, spacing=42),
    ),
    "9": (  # Sparsely built
        layer("grass"),
        layer("trees", blobs, size=6, share=0.38),
        layer("fallow", blobs, size=9, share=0.12, edge=0.2),
        layer("concrete", buildings, spacing=(6.5, 6), size=(1.9, 1.7), present=0.22, contrast=0.8, jitter=3.5),
        layer("asphalt", strip, width=0.8, spacing=44),
    ),
    "10": (  # Heavy industry
        layer("asphalt"),
        layer("slag", blobs, size=8, share=0.40, edge=0.3),
        layer("soil", blobs, size=6, share=0.08, edge=0.6),
        *raised("rust", shadow=1.6, spacing=(13, 8), size=(11, 4.5), present=0.5, contrast=0.9, jitter=2.0),
        layer("metal", tanks, spacing=4.6, diameter=3.2, present=0.22),
    ),
    "A": (layer("trees"), layer("shadow", blobs, size=2.2, share=0.22, edge=1.2)),  # Dense trees
    "B": (  # Scattered trees
        layer("grass"),
        layer("fallow", blobs, size=10, share=0.18, edge=0.8),
        layer("trees", blobs, size=3.2, share=0.33, edge=0.3),
    ),
    "C": (  # Bush or scrub
        layer("soil"),
        layer("scrub", blobs, size=2, share=0.72, edge=1.6),
        layer("scrub", blobs, size=9, share=0.35, edge=1.0),
    ),
    "D": (  # Low plants
        layer("fallow"),
        layer("grass", parcels, spacing=(30, 17), share=0.5),
        layer("crop", parcels, spacing=(22, 12), share=0.62),
    ),
    "E": (  # Bare rock or paved
        layer("rock"),
        layer("asphalt", strip, width=5, spacing=28, present=0.5),
        layer("scrub", blobs, size=7, share=0.06, edge=0.8),
    ),
    "F": (  # Bare soil or sand
        layer("soil"),
        layer("sand", blobs, size=13, share=0.45, edge=1.2),
        layer("sand", dunes, spacing=8, bend=3, share=0.55),
    ),
    "G": (layer("water"),),  # Water
}


class Texture(NamedTuple):
    """How uneven a class is."""

    relief: float  # spread of slow changes in brightness, relative
    relief_size: float  # in pixels
    grain: float  # spread of the brightness from pixel to pixel, relative
    scatterers: float  # mean number of strong radar scatterers in a patch


# fmt: off
TEXTURES: Mapping[str, Texture] = {
    #           relief, relief_size, grain, scatterers
    "1":  Texture(0.06, 12, 0.100, 12.00),  # Compact high-rise
    "2":  Texture(0.06, 12, 0.100,  7.00),  # Compact mid-rise
    "3":  Texture(0.08, 10, 0.100,  3.00),  # Compact low-rise
    "4":  Texture(0.08, 12, 0.080,  7.00),  # Open high-rise
    "5":  Texture(0.08, 12, 0.080,  4.00),  # Open mid-rise
    "6":  Texture(0.08, 10, 0.080,  1.50),  # Open low-rise
    "7":  Texture(0.10,  7, 0.140,  2.00),  # Lightweight low-rise
    "8":  Texture(0.05, 14, 0.040,  9.00),  # Large low-rise
    "9":  Texture(0.10, 10, 0.080,  0.80),  # Sparsely built
    "10": Texture(0.10,  9, 0.100, 14.00),  # Heavy industry
    "A":  Texture(0.10,  6, 0.070,  0.05),  # Dense trees
    "B":  Texture(0.08, 10, 0.060,  0.10),  # Scattered trees
    "C":  Texture(0.10,  8, 0.070,  0.10),  # Bush or scrub
    "D":  Texture(0.05,  9, 0.025,  0.10),  # Low plants
    "E":  Texture(0.14,  5, 0.050,  0.80),  # Bare rock or paved
    "F":  Texture(0.05,  9, 0.020,  0.10),  # Bare soil or sand
    "G":  Texture(0.10, 14, 0.020,  0.15),  # Water
}
# fmt: on

# ┌───────────┐
# │  Patches  │
# └───────────┘


def generate_block(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> dict[str, npt.NDArray[np.float64]]:
    """Generates patches.

    Args:
        labels: Class indices, shape (rows,).
        rng: Source of chance.

    Returns:
        The arrays of a source file, all float64: `sen1` (rows, 32, 32, 8) in linear units, `sen2` (rows, 32, 32, 10) in
        reflectance, a multiple of 1/10000, and `label` (rows, 17), one-hot.
    """
    scenes = np.empty((len(labels), BANDS + 2, SIZE, SIZE), np.float32)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        scenes[rows] = _paint(facts.LCZ_CODES[label], len(rows), rng)
    _add_neighbours(scenes, rng)
    scatterers = np.array([TEXTURES[code].scatterers for code in facts.LCZ_CODES])[labels]
    return {
        "sen1": _sentinel1(scenes[:, BANDS:], scatterers, rng),
        "sen2": _sentinel2(scenes[:, :BANDS], rng),
        "label": np.eye(len(so2sat.LABELS))[labels],
    }


def _paint(code: str, rows: int, rng: np.random.Generator) -> Floats:
    """Surface reflectance of 10 bands, VH and VV backscatter: shape (rows, 12, 32, 32)."""
    layers, texture, frame = LAYERS[code], TEXTURES[code], Frame.draw(rng, rows)
    light = 1 + texture.relief * _smooth_noise(rng, rows, texture.relief_size)
    light += texture.grain * math.sqrt(12) * (rng.random(light.shape, np.float32) - 0.5)
    np.maximum(light, 0.2, out=light)
    shares = np.empty((rows, len(layers), SIZE, SIZE), np.float32)
    for number, (_, pattern) in enumerate(layers):
        cover, tone = pattern(frame)
        shares[:, :number] *= (1 - cover)[:, None]
        shares[:, number] = cover * tone * light
    materials = [MATERIALS.index(material) for material, _ in layers]
    place = rng.random((rows, len(MATERIALS), 1), np.float32)[:, materials]
    spectra = SPECTRA[materials, 0] * (1 - place) + SPECTRA[materials, 1] * place
    mixed: Floats = spectra.swapaxes(1, 2) @ shares.reshape(rows, len(layers), -1)
    return mixed.reshape(rows, -1, SIZE, SIZE)


def _add_neighbours(scenes: Floats, rng: np.random.Generator) -> None:
    """Lets every third scene end in another one, but never in its middle: a label is that of most of the patch."""
    rows = np.flatnonzero(rng.random(len(scenes)) < 1 / 3)
    angle, distance = rng.uniform(0, 2 * np.pi, (len(rows), 1, 1)), rng.uniform(5, 16, (len(rows), 1, 1))
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    share = np.clip(x * np.cos(angle) + y * np.sin(angle) - distance + 0.5, 0, 1).astype(np.float32)[:, None]
    scenes[rows] += share * (scenes[rng.integers(0, len(scenes), len(rows))] - scenes[rows])


def _sentinel2(surface: Floats, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Quantised reflectance, shape (rows, 32, 32, 10), of surface reflectance, shape (rows, 10, 32, 32)."""
    # Sun, season and calibration: brightness as a whole, and blue against infrared.
    whole, slope = rng.standard_normal((2, len(surface), 1), dtype=np.float32)
    light = np.exp(0.18 * whole + 0.06 * slope * np.linspace(-1, 1, BANDS, dtype=np.float32))
    numbers = surface * (10_000 * light[:, :, None, None])
    numbers += 10_000 * HAZE[:, None, None]
    numbers += np.float32(0.1) * rng.integers(-128, 128, numbers.shape, np.int8)  # sensor noise
    np.rint(numbers, out=numbers)
    np.clip(numbers, 1, 28_000, out=numbers)
    reflectance: npt.NDArray[np.float64] = np.divide(numbers.transpose(0, 2, 3, 1), 10_000, dtype=np.float64, order="C")
    return reflectance


def _sentinel1(power: Floats, scatterers: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """VH and VV with speckle, and local means of their powers and product: shape (rows, 32, 32, 8).

    `power` is backscatter in linear units, shape (rows, 2, 32, 32), and `scatterers` how many strong ones to expect.
    """
    row = np.repeat(np.arange(len(power)), rng.poisson(scatterers))
    y, x = rng.integers(0, SIZE, (2, len(row)))
    # Pareto: most corners and metal roofs are a few times as bright as what is around them, very few 10,000 times.
    strength = np.minimum(3 * (1 + rng.pareto(1.2, len(row))), 30_000)
    power[row, :, y, x] *= strength[:, None].astype(np.float32)

    signal = rng.standard_normal((4, len(power), SIZE, SIZE), dtype=np.float32)
    signal *= np.sqrt(power / 2).swapaxes(0, 1).repeat(2, axis=0)
    vh_real, vh_imag, vv_real, vv_imag = signal
    products = [
        vh_real**2 + vh_imag**2,
        vv_real**2 + vv_imag**2,
        vh_real * vv_real + vh_imag * vv_imag,  # real part of VH × conj(VV)
        vh_imag * vv_real - vh_real * vv_imag,
    ]
    bands: Floats = np.concatenate([signal, _separable(np.stack(products), _window())])
    return np.ascontiguousarray(bands.transpose(1, 2, 3, 0), np.float64)


@functools.cache
def _window() -> Floats:
    """Weights of the local means: 5 pixels along a line, the middle ones more, fewer pixels at the ends."""
    pixels = np.arange(SIZE)
    weights: Floats = np.clip(3 - np.abs(pixels[:, None] - pixels), 0, 3).astype(np.float32)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


# ┌─────────┐
# │  Files  │
# └─────────┘


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


def generate_places(split: str, rows: int, rng: np.random.Generator) -> dict[str, npt.NDArray[np.generic]]:
    """Invents where patches are: around the centre of a city of their split, in validation more to the west.

    As in the real data validation and test are not apart: about four patches in five are on their side of the middle,
    and with the default rows about one in ten overlaps a patch of the other split.

    Args:
        split: Split that the patches are of.
        rows: How many patches.
        rng: Source of chance.

    Returns:
        The arrays of a file with places: `epsg` (rows, 1), int32, `tfw` (rows, 6), float64, and `city` (rows, 1), text.
    """
    is_train = split == "train"
    cities = {name: city for name, city in facts.CITIES.items() if (name not in facts.TEST_CITIES) == is_train}
    centres = np.array([pyproj.Proj(city.epsg)(city.longitude, city.latitude) for city in cities.values()])
    city = rng.integers(0, len(cities), rows)
    steps = np.rint(rng.normal(0, CITY_SPREAD / GRID, (rows, 2)))
    steps[:, 0] += {"train": 0, "validation": -1, "test": 1}[split] * round(CITY_SIDE / GRID)
    tfw = np.tile([so2sat.PIXEL_SIZE, 0.0, 0.0, -so2sat.PIXEL_SIZE, 0.0, 0.0], (rows, 1))
    tfw[:, 4:] = np.rint(centres[city] / GRID) * GRID + steps * GRID
    codes = np.array([city.epsg for city in cities.values()], np.int32)
    return {"epsg": codes[city, None], "tfw": tfw, "city": np.array([*cities], "S16")[city, None]}


def write_sample(folder: Path, rows: Mapping[str, int], seed: int = 0) -> list[Path]:
    """Writes synthetic source files and their places in the layout of the official ones, all of them or none.

    Every file says in its root attribute `synthetic` what it is.

    Args:
        folder: Where to; made if it isn't there. Synthetic files in it are replaced; those of splits that are left out
            are deleted, for they would not fit the others.
        rows: Rows by split, at least 17 each; 0 or no entry leaves the split out.
        seed: The same seed and rows give the same bytes, with the same versions of NumPy and HDF5 on a like processor.

    Returns:
        The files, in the order train, validation, test, each before the one with its places.

    Raises:
        command.CommandError: Too few rows, too little space, or one of the files is there already and not synthetic.
        OSError: The folder can't be written to.
    """
    rows = {split: rows.get(split, 0) for split in so2sat.SOURCE_FILES}
    _check_request(rows, seed)
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for patches in so2sat.SOURCE_FILES.values() for name in (patches, places.geo_file(patches))]
    for name in names:
        _check_replaceable(folder / name)
    _check_space(folder, sum(size_in_bytes(count) for count in rows.values() if count))

    with (
        tempfile.TemporaryDirectory(prefix=".incomplete-", dir=folder) as incomplete,
        tqdm.tqdm(total=sum(rows.values()), unit="rows", disable=None) as progress,
    ):
        for split, count in rows.items():
            if count:
                _write_split(Path(incomplete), split, count, seed, progress)
        written = [folder / name for name in names if Path(incomplete, name).exists()]
        for path in written:
            Path(incomplete, path.name).replace(path)
    for name in names:
        if folder / name not in written:
            (folder / name).unlink(missing_ok=True)
    return written


def size_in_bytes(rows: int) -> int:
    """Size of a file with so many rows, and of that with their places, at most."""
    geo = 4 + 6 * 8 + 16
    return 2 * HEADER_BYTES + rows * (geo + 8 * sum(math.prod(shape) for shape in so2sat.SOURCE_SHAPES.values()))


def _check_request(rows: Mapping[str, int], seed: int) -> None:
    for split, count in rows.items():
        if count and count < len(so2sat.LABELS):
            raise command.CommandError(
                f"{count} rows for {split}, expected at least {len(so2sat.LABELS)}, one of each class, or 0 for no file"
            )
    if not any(rows.values()):
        raise command.CommandError(f"0 rows for every split, expected rows for at least one of {', '.join(rows)}")
    if seed < 0:
        raise command.CommandError(f"seed is {seed}, expected 0 or more")


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


def _write_split(folder: Path, split: str, rows: int, seed: int, progress: tqdm.tqdm) -> None:
    """Writes the patches of a split and their places, and counts the rows as they come."""
    rng = np.random.default_rng([seed, *split.encode()])
    path = folder / so2sat.SOURCE_FILES[split]
    synthetic = f"generated by scripts/sample.py (seed {seed}); not measured data"
    counts = apportion(rows, facts.PATCHES_PER_CLASS[split])
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    with h5py.File(path, "w") as h5:
        for name, shape in so2sat.SOURCE_SHAPES.items():
            h5.create_dataset(name, (rows, *shape), "<f8")[0, 0] = 0  # HDF5 takes the space for all values
        h5.attrs["synthetic"] = synthetic  # last, so that the data begin at the same byte as in the official files
        ends = {name: h5[name].id.get_offset() for name in so2sat.SOURCE_SHAPES}
    # Values not by h5py: it drops every fourth Ctrl-C, and where the disk is full it can end Python.
    with path.open("r+b") as file:
        for start, stop in so2sat.blocks(0, rows, GENERATED_ROWS):
            for name, values in generate_block(labels[start:stop], rng).items():
                file.seek(ends[name])
                ends[name] += file.write(values.data)
            progress.update(stop - start)
    with h5py.File(folder / places.geo_file(path.name), "w") as h5:
        h5.update(generate_places(split, rows, rng))
        h5.attrs["synthetic"] = synthetic


# ┌────────────────┐
# │  Command line  │
# └────────────────┘

_DESCRIPTION = """\
Writes synthetic stand-ins for the official So2Sat LCZ42 files, in their exact layout. No value in them was measured;
each file says so in its root attribute `synthetic`. Files that don't are never overwritten."""

_EXAMPLES = """\
  python scripts/sample.py data/sample
      2,048 + 256 + 256 rows (378 MB), enough for a first model
  python scripts/sample.py data/tiny --train 40 --validation 17 --test 17
      11 MB, in a moment
  python scripts/sample.py data/edition1 --test 0
      without testing.h5, as in edition 1"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = command.parser(_DESCRIPTION, _EXAMPLES)
    parser.add_argument(
        "folder", metavar="DIR", type=command.named, help="for training.h5, validation.h5, testing.h5, …_geo.h5"
    )
    for split, rows in DEFAULT_ROWS.items():
        text = f"rows of the {split} split, at least {len(so2sat.LABELS)}, or 0 for no file (default: %(default)s)"
        parser.add_argument(f"--{split}", metavar="ROWS", type=int, default=rows, help=text)
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    return command.run(_run, parser, argv)


def _run(options: argparse.Namespace) -> None:
    rows = {split: getattr(options, split) for split in so2sat.SOURCE_FILES}
    paths = write_sample(Path(options.folder), rows, options.seed)
    size = sum(path.stat().st_size for path in paths)
    names = ", ".join(path.name for path in paths)
    print(f"{options.folder}: {names}: {sum(rows.values()):,} rows, {size:,} bytes, synthetic (not measured data)")


if __name__ == "__main__":
    sys.exit(main())
