"""Looks at a built repository through `load_dataset`, as a newcomer would, and draws one patch a class."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

import so2sat
from publishing import command, facts, layout, manifest

EXAMPLES = """\
  python scripts/demo.py build/demo/so2sat build/demo/preview.png
"""

VV_INTENSITY = [band.name for band in so2sat.SENTINEL1_BANDS].index("VV intensity")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = command.parser(
        "Prints what load_dataset() and a stream give of a built repository and draws one patch a class.", EXAMPLES
    )
    parser.add_argument("repository", metavar="REPOSITORY", type=Path, help="folder that build.py made")
    parser.add_argument("picture", metavar="PICTURE", type=Path, help="PNG file to draw")
    return command.run(_run, parser, argv)


def _run(options: argparse.Namespace) -> None:
    built = manifest.load_built(options.repository)
    picture, repository = options.picture.resolve(), options.repository.resolve()
    os.chdir(repository.parent)  # so that the calls below read as in the documentation
    datasets.disable_progress_bars()

    loaded = {config: datasets.load_dataset(repository.name, config) for config in built.configs}
    config, *others = loaded
    split, rows = next(iter(loaded[config].items()))
    print(f'>>> load_dataset("{repository.name}", "{config}")')
    print(loaded[config])
    for name, feature in rows.features.items():
        print(f"    {name}: {_short(feature)}")
    print(f"first example of {split}: {_describe(rows[0])}")
    for other in others:
        lengths = ", ".join(f"{name} {len(part):,}" for name, part in loaded[other].items())
        columns = ", ".join(next(iter(loaded[other].values())).column_names)
        print(f'\n>>> load_dataset("{repository.name}", "{other}")\n{lengths}; {columns}')

    print(f"\npatches per class of {config}\n{_histogram(loaded[config])}")

    print(f'\n>>> load_dataset("{repository.name}", "{config}", split="{split}", streaming=True)')
    # To the end: Python can hang at exit after a stream that was left before.
    count = sum(1 for _ in datasets.load_dataset(repository.name, config, split=split, streaming=True))
    print(f"{count:,} examples")

    if _draw(loaded, split, built.synthetic, picture):
        print(f"\n{picture}: one patch a class")
    if built.synthetic:
        print(f"\nSYNTHETIC: {built.synthetic}")


def _short(feature: Any) -> str:
    if isinstance(feature, datasets.ClassLabel):
        return f"ClassLabel of {feature.num_classes} names: {', '.join(feature.names[:3])}, …"
    return str(feature)


def _describe(example: dict[str, Any]) -> str:
    """One line: numbers as they are, pictures and arrays by kind and size."""
    parts = []
    for name, value in example.items():
        if name == "label":
            parts.append(f"label={value} (LCZ {facts.LCZ_CODES[value]}, {so2sat.LABELS[value]})")
        elif hasattr(value, "size") and hasattr(value, "mode"):
            parts.append(f"{name}={value.mode} image of {value.size[0]}×{value.size[1]} pixels")
        elif isinstance(value, list):
            parts.append(f"{name}={'×'.join(map(str, np.shape(value)))} values")
        else:
            parts.append(f"{name}={value}")
    return ", ".join(parts)


def _histogram(splits: datasets.DatasetDict) -> str:
    """A table: a line a class, a column a split, and a bar for the share of the first split."""
    counts = {split: np.bincount(rows["label"][:], minlength=len(so2sat.LABELS)) for split, rows in splits.items()}
    shares = next(iter(counts.values()))
    lines = [f"{'LCZ':>4} {'class':<21}" + "".join(f"{split:>12}" for split in counts)]
    for index, (code, name) in enumerate(zip(facts.LCZ_CODES, so2sat.LABELS)):
        numbers = "".join(f"{of_split[index]:>12,}" for of_split in counts.values())
        lines.append(f"{code:>4} {name:<21}{numbers}  {'█' * round(24 * shares[index] / shares.max())}")
    return "\n".join(lines)


def _draw(loaded: dict[str, datasets.DatasetDict], split: str, synthetic: str, picture: Path) -> bool:
    """Draws one patch a class, natural colours and Sentinel-1 side by side, as far as the repository has them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    files = layout.CONFIGS[next(iter(loaded))].files  # of configs that hold the same patches
    same = [config for config, parts in loaded.items() if layout.CONFIGS[config].files == files and split in parts]
    kinds = {layout.CONFIGS[config].kind: loaded[config] for config in same}
    if not {"rgb", "all"} & {*kinds}:
        return False
    labels = next(iter(kinds.values()))[split]["label"][:]
    figure, axes = pyplot.subplots(6, 6, figsize=(10, 11.4), dpi=110, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for index, (code, name) in enumerate(zip(facts.LCZ_CODES, so2sat.LABELS)):
        if index not in labels:
            continue
        left, right = axes.reshape(18, 2)[index]
        left.set_title(f"{code}  {name}", fontsize=10, loc="left")
        row = labels.index(index)
        if "rgb" in kinds:
            left.imshow(kinds["rgb"][split][row]["image"], interpolation="nearest")
        if "all" in kinds:
            intensity = np.asarray(kinds["all"][split][row]["sentinel1"])[..., VV_INTENSITY]
            decibels = 10 * np.log10(np.maximum(intensity, 1e-6))
            right.imshow(decibels, cmap="gray", vmin=-25, vmax=5, interpolation="nearest")
    origin = "SYNTHETIC stand-in, not measured data" if synthetic else f"{split} split"
    figure.suptitle(f"So2Sat LCZ42, one patch a class: natural colours | Sentinel-1 VV, -25 to 5 dB ({origin})")
    figure.savefig(picture)
    pyplot.close(figure)
    return True


if __name__ == "__main__":
    sys.exit(main())
