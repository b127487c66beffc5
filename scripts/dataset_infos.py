"""Writes dataset_infos.json: what every config of the full dataset is expected to hold."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.utils.py_utils import asdict

import so2sat
from publishing import command, facts

EXAMPLES = """\
  python scripts/dataset_infos.py dataset_infos.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = command.parser(
        "Writes the features and split sizes that every config of the full dataset is expected to have, in the form"
        " that datasets < 4 reads beside a loading script.",
        EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="where to write")
    return command.run(_run, parser, argv)


def _run(options: argparse.Namespace) -> None:
    options.file.write_text(json.dumps(expected_infos(), indent=2) + "\n")


def expected_infos() -> dict[str, Any]:
    """The expected contents by config. Sizes in bytes are 0: nobody has measured them."""
    infos = {}
    for config in so2sat.CONFIGS:
        splits = None  # the publishers tell no sizes of edition 3's
        if so2sat.CONFIGS[config].files == so2sat.SOURCE_FILES:
            splits = datasets.SplitDict()
            for split, patches in facts.PATCHES_PER_CLASS.items():
                splits.add(datasets.SplitInfo(name=split, num_examples=sum(patches)))
        info = datasets.DatasetInfo(
            description=so2sat.DESCRIPTION,
            citation=so2sat.CITATION,
            homepage=so2sat.HOMEPAGE,
            license=so2sat.LICENSE,
            features=so2sat.features(config),
            config_name=config,
            version=so2sat.VERSION,
            splits=splits,
        )
        infos[config] = asdict(info)
    return infos


if __name__ == "__main__":
    sys.exit(main())
