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
from publishing import command, facts, figures, manifest
from publishing.configs import CONFIGS

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
    if not picture.parent.is_dir():
        raise command.CommandError(f"{picture}: there is no folder {picture.parent}; make it first")
    os.chdir(repository.parent)  # so that the calls below read as in the documentation
    datasets.disable_progress_bars()

    loaded = {config: datasets.load_dataset(repository.name, config) for config in built.configs}
    config, *others = loaded
    split, rows = next(iter(loaded[config].items()))
    print(f'>>> load_dataset("{repository.name}", "{config}")')
    print(loaded[config])
    for name, feature in rows.features.items():
        print(f"    {name}: {_short(feature)}")
    print(f"first row of {split}: {_describe(rows[0])}")
    for other in others:
        lengths = ", ".join(f"{name} {len(part):,}" for name, part in loaded[other].items())
        columns = ", ".join(next(iter(loaded[other].values())).column_names)
        print(f'\n>>> load_dataset("{repository.name}", "{other}")\n{lengths}; {columns}')

    print(f"\npatches per class of {config}\n{_histogram(loaded[config])}")

    print(f'\n>>> load_dataset("{repository.name}", "{config}", split="{split}", streaming=True)')
    # To the end: Python can hang at exit after a stream that was left before.
    count = sum(1 for _ in datasets.load_dataset(repository.name, config, split=split, streaming=True))
    print(f"{count:,} rows")

    patches = _first_of_every_class(loaded, split)
    if patches["natural"] or patches["vv"]:
        origin = "Synthetic data, not measured" if built.synthetic else f"Split {split} of {repository.name}"
        picture.write_bytes(figures.class_pairs(**patches, note=origin))
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


def _first_of_every_class(loaded: dict[str, datasets.DatasetDict], split: str) -> dict[str, dict[int, Any]]:
    """The first patch of every class in natural colours and in VV intensity, from configs of the same rows."""
    files = CONFIGS[next(iter(loaded))].files
    natural, vv = {}, {}
    for config, splits in loaded.items():
        if CONFIGS[config].files != files or split not in splits or not CONFIGS[config].bands:
            continue
        rows = splits[split].with_format("numpy")
        labels, first = np.unique(rows["label"][:], return_index=True)
        for label, row in zip(labels.tolist(), first.tolist()):
            patch = rows[row]
            if "image" in patch:
                natural[label] = patch["image"]
            if "sentinel2" in patch:
                natural.setdefault(label, so2sat.to_rgb(patch["sentinel2"]))
            if "sentinel1" in patch:
                vv[label] = patch["sentinel1"][..., VV_INTENSITY]
    return {"natural": natural, "vv": vv}


if __name__ == "__main__":
    sys.exit(main())
