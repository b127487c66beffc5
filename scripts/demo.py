"""Looks at a built repository through `load_dataset`, as a newcomer would, and draws one patch a class."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import matplotlib
import numpy as np

import so2sat
from publishing import command, manifest

EXAMPLES = """\
  python scripts/demo.py build/demo/so2sat build/demo/preview.png
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = command.parser(
        "Prints what load_dataset() and a stream give of a built repository and draws one patch a class.", EXAMPLES
    )
    parser.add_argument("repository", metavar="REPOSITORY", type=Path, help="folder that build.py made")
    parser.add_argument("picture", metavar="PICTURE", type=Path, help="PNG file to draw")
    return command.run(_run, parser, argv)


def _run(options: argparse.Namespace) -> None:
    contents = manifest.load_built(options.repository)
    picture = options.picture.resolve()
    repository = options.repository.resolve()
    os.chdir(repository.parent)  # so that the call below reads as in the documentation
    datasets.disable_progress_bars()

    loaded = {}
    for config in contents.configs:
        print(f'\n>>> load_dataset("{repository.name}", "{config}")')
        loaded[config] = datasets.load_dataset(repository.name, config)
        print(loaded[config])
        for name, feature in loaded[config]["train"].features.items():
            print(f"    {name}: {_short(feature)}")
        print(f"first example: {_describe(loaded[config]['train'][0])}")

    print("\npatches per class")
    print(_histogram(loaded[contents.configs[0]]))

    config = contents.configs[0]
    print(f'\n>>> load_dataset("{repository.name}", "{config}", split="validation", streaming=True)')
    # To the end: Python can hang at exit after a stream that was left before.
    first, *others = datasets.load_dataset(repository.name, config, split="validation", streaming=True)
    print(f"first of {1 + len(others)} examples: {_describe(first)}")

    if {"rgb", "all"} <= {*contents.configs}:
        _draw(loaded["rgb"]["train"], loaded["all"]["train"], contents.synthetic, picture)
        print(f"\n{picture}: one patch a class, natural colours beside Sentinel-1 VV intensity")
    if contents.synthetic:
        print(f"\nSYNTHETIC: {contents.synthetic}")


def _short(feature: Any) -> str:
    if isinstance(feature, datasets.ClassLabel):
        return f"ClassLabel of {feature.num_classes} names: {', '.join(feature.names[:3])}, …"
    return str(feature)


def _describe(example: dict[str, Any]) -> str:
    """One line: numbers as they are, pictures and arrays by kind and size."""
    parts = []
    for name, value in example.items():
        if name == "label":
            parts.append(f"label={value} (LCZ {so2sat.LCZ_CODES[value]}, {so2sat.LABELS[value]})")
        elif isinstance(value, (int, float, str)):
            parts.append(f"{name}={value}")
        elif hasattr(value, "size") and hasattr(value, "mode"):
            parts.append(f"{name}={value.mode} image of {value.size[0]}×{value.size[1]} pixels")
        else:
            parts.append(f"{name}={len(value)}×{len(value[0])}×{len(value[0][0])} values")
    return ", ".join(parts)


def _histogram(splits: datasets.DatasetDict) -> str:
    """A table: a line a class, a column a split, and a bar for the share of the training split."""
    counts = {split: [0] * len(so2sat.LABELS) for split in splits}
    for split, rows in splits.items():
        for label in rows["label"]:
            counts[split][label] += 1
    most = max(counts["train"])
    lines = [f"{'LCZ':>4} {'class':<21}" + "".join(f"{split:>12}" for split in counts)]
    for index, (code, name) in enumerate(zip(so2sat.LCZ_CODES, so2sat.LABELS)):
        numbers = "".join(f"{counts[split][index]:>12,}" for split in counts)
        lines.append(f"{code:>4} {name:<21}{numbers}  {'█' * round(24 * counts['train'][index] / most)}")
    return "\n".join(lines)


def _draw(rgb: datasets.Dataset, radar: datasets.Dataset, synthetic: str, picture: Path) -> None:
    """Draws one labelled patch a class, natural colours beside VV intensity in decibels."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = rgb["label"]
    intensity = radar.with_format("numpy", columns=["sentinel1"])
    columns, rows = 3, -(-len(so2sat.LABELS) // 3)
    figure, axes = pyplot.subplots(rows, 2 * columns, figsize=(10, 1.85 * rows + 0.3), dpi=110, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for index, (code, name) in enumerate(zip(so2sat.LCZ_CODES, so2sat.LABELS)):
        if index not in labels:
            continue
        row, column = divmod(index, columns)
        left, right = axes[row, 2 * column], axes[row, 2 * column + 1]
        patch = labels.index(index)
        left.imshow(rgb[patch]["image"], interpolation="nearest")
        vv = intensity[patch]["sentinel1"][..., 5]
        shown = right.imshow(_decibels(vv), cmap="gray", vmin=-25, vmax=5, interpolation="nearest")
        left.set_title(f"{code}  {name}", fontsize=10, loc="left")
    bar = axes[-1, -1].inset_axes((0.0, 0.05, 0.12, 0.9))  # takes no width from the column, as an axis's own bar would
    figure.colorbar(shown, cax=bar, label="VV intensity, dB")
    origin = "SYNTHETIC stand-in, not measured data" if synthetic else "training split"
    figure.suptitle(f"So2Sat LCZ42, one patch a class: natural colours | Sentinel-1 VV ({origin})", fontsize=12)
    figure.savefig(picture)
    pyplot.close(figure)


def _decibels(power: Any) -> Any:
    return 10 * np.log10(np.maximum(power, 1e-6))


if __name__ == "__main__":
    sys.exit(main())
