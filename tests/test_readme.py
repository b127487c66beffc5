"""The README: its code runs, its tables are the facts, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard

import card
import so2sat

README = card.PROJECT_README.read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="session")
def newcomers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README presumes: the project, a folder `data` with source files and a repository `so2sat`."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name in ("scripts", "README.md"):
        (folder / name).symlink_to(card.PROJECT_README.parent / name)
    run = [sys.executable, "scripts/sample.py", "data", "--train", "600", "--validation", "50", "--test", "50"]
    subprocess.run(run, cwd=folder, check=True)
    subprocess.run([sys.executable, "scripts/build.py", "data", "so2sat"], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_a_python_block_runs_and_ends(code: str, newcomers_folder: Path) -> None:
    subprocess.run([sys.executable, "-c", code], cwd=newcomers_folder, check=True, timeout=60)


SCRIPT_LINES = re.findall(r"^python (scripts/.*)$", README, re.MULTILINE)


@pytest.mark.parametrize("line", SCRIPT_LINES)
def test_a_script_line_runs(line: str, newcomers_folder: Path) -> None:
    subprocess.run([sys.executable, *line.split()], cwd=newcomers_folder, check=True)


def test_there_are_blocks_to_run() -> None:
    assert sum(language == "python" for language, _ in BLOCKS) >= 4
    assert len(SCRIPT_LINES) >= 2


def test_the_batches_have_the_shapes_that_the_readme_tells(
    newcomers_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(newcomers_folder)
    (code,) = (code for language, code in BLOCKS if language == "python" and "iter(batch_size=128" in code)
    names: dict[str, Any] = {}
    exec(code, names)
    shapes = re.search(r"# (\(.*?\)) (\w+), (\(.*?\)) (\w+)", code)
    assert shapes
    for name, shape, dtype in (("reflectance", *shapes.groups()[:2]), ("label", *shapes.groups()[2:])):
        assert f"{names[name].shape} {names[name].dtype}" == f"{shape} {dtype}"


def test_the_class_table_is_that_of_the_dataset() -> None:
    for index, (code, name) in enumerate(zip(so2sat.LCZ_CODES, so2sat.LABELS)):
        counts = " | ".join(f"{patches[index]:,}" for patches in so2sat.PATCHES_PER_CLASS.values())
        assert f"| {index} | {code} | {name} | {counts} |" in README
    totals = " | ".join(f"**{sum(patches):,}**" for patches in so2sat.PATCHES_PER_CLASS.values())
    assert f"| **all** | {totals} |" in README


def test_the_band_table_is_that_of_the_dataset() -> None:
    for array, bands in (("sentinel1", so2sat.SENTINEL1_BANDS), ("sentinel2", so2sat.SENTINEL2_BANDS)):
        for index, band in enumerate(bands):
            line = re.search(rf"^\| `{array}` \| {index} \|(.*)\|$", README, re.MULTILINE)
            assert line
            name, meaning, unit, wavelength, mean, std = [cell.strip() for cell in line[1].split("|")]
            assert (name, meaning, unit) == (band.name, band.meaning, band.unit)
            assert wavelength == (str(band.wavelength) if band.wavelength else "")
            assert float(mean) == pytest.approx(band.mean, rel=2e-3)
            assert float(std) == pytest.approx(band.std, rel=1e-4)


def test_the_citation_is_that_of_the_builder() -> None:
    (bibtex,) = (code for language, code in BLOCKS if language == "bibtex")
    assert so2sat.CITATION.startswith(bibtex.strip())


def test_the_fetch_line_has_the_addresses_of_edition_2() -> None:
    folder, names = re.search(r"(ftp://\S+)/\{(\S+)\}\.h5", README).groups()  # type: ignore[union-attr]
    assert [f"{folder}/{name}.h5" for name in names.split(",")] == [
        file.url for file in so2sat.EDITIONS[2].files.values()
    ]


def test_relative_links_lead_to_files() -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)]+)\)", README):
        assert card.PROJECT_README.parent.joinpath(target).exists()


def test_the_front_matter_is_a_dataset_cards() -> None:
    data: dict[str, Any] = yaml.safe_load(README.split("---\n")[1])
    assert data["license"] == so2sat.LICENSE
    assert data["task_categories"] == ["image-classification"]
    assert data["pretty_name"] == "So2Sat LCZ42"
    assert not {"configs", "dataset_info"} & {*data}  # they are a repository's, and measured
    assert DatasetCard(README).text.startswith("# So2Sat LCZ42")


def test_make_targets_of_the_readme_exist() -> None:
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        subprocess.run(["make", "--dry-run", target], cwd=card.PROJECT_README.parent, check=True, capture_output=True)
