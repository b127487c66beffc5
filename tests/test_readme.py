"""The README: its code runs, its tables are the facts, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import DatasetCard

import benchmark
import hub
import so2sat
from conftest import PATCHES, README, README_BLOCKS
from publishing import card, facts, figures


@pytest.fixture(scope="session")
def newcomers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README presumes: the project, a folder `data` with source files and a repository `so2sat`."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name in ("scripts", "README.md", "assets"):
        (folder / name).symlink_to(card.PROJECT_README.parent / name)
    run = [sys.executable, "scripts/sample.py", "data", "--train", "600", "--validation", "50", "--test", "50"]
    subprocess.run(run, cwd=folder, check=True)
    subprocess.run([sys.executable, "scripts/build.py", "data", "so2sat"], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("code", [code for language, code in README_BLOCKS if language == "python"])
def test_a_python_block_runs_and_ends(code: str, newcomers_folder: Path) -> None:
    if "torch" in code:
        pytest.importorskip("torch")  # 200 MB and more, so it is no requirement of the tests
        code = f"{PATCHES}\n{code}"
    subprocess.run([sys.executable, "-c", code], cwd=newcomers_folder, check=True, timeout=60)


def test_a_first_look_fetches_one_row_group_from_the_hub_and_can_be_left(
    newcomers_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = (code for language, code in README_BLOCKS if language == "python" and "reshard" in code)
    code = code.replace('"so2sat"', '"org/so2sat"').replace('split="validation"', 'split="train"')
    shard = newcomers_folder / "so2sat" / "all" / "train-00000-of-00001.parquet"
    group = pq.read_metadata(shard).row_group(0)
    row_group = sum(group.column(index).total_compressed_size for index in range(group.num_columns))
    sent = []
    ranged = hub.ranged

    def counting(*arguments: Any) -> hub.Answer:
        answer = ranged(*arguments)
        sent.append(len(answer.body))
        return answer

    monkeypatch.setattr(hub, "ranged", counting)
    with hub.serving(tmp_path) as server:
        server.create("org/so2sat")
        folder = newcomers_folder / "so2sat"
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        server.commit("org/so2sat", {name: content for name, content in files.items() if not name.startswith(".")})
        subprocess.run([sys.executable, "-c", code], env=server.environment(), check=True, timeout=60)
    # The row group, read ahead and the footer more than once, in blocks of 64 KiB, and the card.
    assert row_group <= sum(sent) < row_group + 500_000
    assert shard.stat().st_size > 4 * row_group


SCRIPT_LINES = re.findall(r"^python (scripts/.*)$", README, re.MULTILINE)
# Those that need the official servers; the folder has what they would fetch.
FETCHING = [line for line in SCRIPT_LINES if "download.py" in line]


@pytest.mark.parametrize("line", [line for line in SCRIPT_LINES if line not in FETCHING])
def test_a_script_line_runs(line: str, newcomers_folder: Path, tmp_path: Path) -> None:
    with hub.serving(tmp_path) as server:
        server.members["ORG"] = {"maker"}
        run = [sys.executable, *line.split()]
        subprocess.run(run, cwd=newcomers_folder, env=server.environment(), check=True)


@pytest.mark.parametrize("line", FETCHING)
def test_a_line_that_fetches_is_understood(line: str, newcomers_folder: Path) -> None:
    script, *arguments = line.split()
    done = subprocess.run(
        [sys.executable, script, *arguments, "--help"], cwd=newcomers_folder, capture_output=True, text=True, check=True
    )
    assert f"python {script}" in done.stdout


def test_there_are_blocks_to_run() -> None:
    assert sum(language == "python" for language, _ in README_BLOCKS) >= 4
    assert len(SCRIPT_LINES) >= 2


def test_the_batches_have_the_shapes_that_the_readme_tells(
    newcomers_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(newcomers_folder)
    (code,) = (code for language, code in README_BLOCKS if language == "python" and "iter(batch_size=128" in code)
    names: dict[str, Any] = {}
    exec(code, names)
    shapes = re.search(r"# (\(.*?\)) (\w+), (\(.*?\)) (\w+)", code)
    assert shapes
    for name, shape, dtype in (("reflectance", *shapes.groups()[:2]), ("label", *shapes.groups()[2:])):
        assert f"{names[name].shape} {names[name].dtype}" == f"{shape} {dtype}"


def test_the_tables_are_those_of_published_and_measured_figures() -> None:
    measured = dict(
        re.findall(r"^<!-- measured: (\w+) -->\n(.*?)^<!-- /measured -->\n", README, re.MULTILINE | re.DOTALL)
    )
    assert measured["classes"] == card.class_table(facts.PATCHES_PER_CLASS)
    assert measured["bands"] == card.band_table(figures.published_bands())
    assert measured["constants"] == card.constants(figures.published_bands())
    run = benchmark.Results.load(card.PROJECT_README.parent / "assets" / "benchmark.json")
    assert measured["performance"] == benchmark.performance(run)


def test_the_config_table_names_all_configs_and_columns() -> None:
    table = README.split("<!-- measured: configs -->")[1].split("<!-- /measured -->")[0]
    for config in so2sat.CONFIGS:
        assert f"`{config}`" in table
    for config in ("rgb", "all", "geo"):
        (row,) = (line for line in table.splitlines() if line.startswith(f"| `{config}` |"))
        assert re.findall(r"`(\w+)`", row)[1:] == list(so2sat.features(config))


def test_the_citation_is_that_of_the_builder() -> None:
    (bibtex,) = (code for language, code in README_BLOCKS if language == "bibtex")
    assert so2sat.CITATION.startswith(bibtex.strip())


def test_the_edition_table_is_that_of_the_dataset() -> None:
    for number, edition in facts.EDITIONS.items():
        assert f"| [{number}]({edition.homepage}) |" in README


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
