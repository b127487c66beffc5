"""The project's page: its code runs, its map is the tree, its links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import benchmark
import hub
import so2sat
from publishing import facts
from servers import Line, ftp_server

PROJECT = Path(so2sat.__file__).parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
FROM_HUB = [block for block in BLOCKS if "ORG/so2sat" in block]
PYTHON = [block for block in BLOCKS if block not in FROM_HUB]
DOCSTRING_BLOCK = re.compile(r"^    from so2sat import .*?(?=^    load_dataset|^\S|\Z)", re.MULTILINE | re.DOTALL)
PUBLISHER = facts.EDITIONS[2].files["validation.h5"].url.removesuffix("/validation.h5")
SCRIPTS = re.findall(r"^python (scripts/.*?)(?: +#.*)?$", README, re.MULTILINE)


@pytest.fixture(scope="module")
def newcomers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page presumes: the project, and a folder `data` with source files."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "scripts").symlink_to(PROJECT / "scripts")
    # More rows than one process makes by itself.
    run = [sys.executable, "scripts/sample.py", "data", "--train", "300", "--validation", "17", "--test", "17"]
    subprocess.run(run, cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_python_blocks_of_page_and_docstring_are_scripts_that_end(
    method: str, newcomers_folder: Path, tmp_path: Path
) -> None:
    """Of this page and of the builder's docstring, whatever way the system starts processes."""
    start = f"""
import multiprocess
if multiprocess.current_process().name == "MainProcess":
    multiprocess.set_start_method("{method}")
"""
    blocks = [textwrap.dedent(block) for block in DOCSTRING_BLOCK.findall(so2sat.__doc__ or "")]
    assert len(blocks) == 2
    assert PYTHON
    with ftp_server(newcomers_folder / "data", Line()) as url:
        for number, block in enumerate([*PYTHON, *blocks]):
            code = block.replace("FOLDER", "data").replace(PUBLISHER, url)
            script = newcomers_folder / f"{method}{number}.py"
            script.write_text(start + code, encoding="utf-8")
            environment = {**os.environ, "HF_HOME": str(tmp_path)}
            subprocess.run([sys.executable, script.name], cwd=newcomers_folder, env=environment, check=True, timeout=60)


def test_the_lines_from_nothing_to_published_run_in_their_order(newcomers_folder: Path, tmp_path: Path) -> None:
    """But for the download, which is asked for its help: the official servers are elsewhere. The data are a sample."""
    commands = ("download", "build", "verify", "upload")
    assert [line.split()[0] for line in SCRIPTS] == [f"scripts/{name}.py" for name in commands]
    with hub.serving(tmp_path) as server:
        for line in SCRIPTS:
            more = {"scripts/download.py": "--help", "scripts/upload.py": "--synthetic"}.get(line.split()[0])
            arguments = [*line.split(), *([more] if more else [])]
            subprocess.run([sys.executable, *arguments], cwd=newcomers_folder, env=server.environment(), check=True)
        assert "README.md" in server.repository("ORG/so2sat").files()
        assert FROM_HUB
        for block in FROM_HUB:
            subprocess.run(
                [sys.executable, "-c", block], cwd=tmp_path, env=server.environment(), check=True, timeout=60
            )


def test_the_map_is_the_tree() -> None:
    table = README.split("## Map")[1].split("## ")[0]
    named = {Path(name).name for name in re.findall(r"`([\w./]+\.\w+)`", table)}
    rooms = {path.name for path in PROJECT.glob("scripts/**/*") if path.suffix in (".py", ".jinja")}
    assert named == {*rooms, "so2sat.py", "dataset_infos.json"} - {"__init__.py"}


def test_the_edition_table_is_that_of_the_dataset() -> None:
    for number, edition in facts.EDITIONS.items():
        assert f"| [{number}]({edition.homepage}) |" in README
    assert all(f"`{config}`" in README for config in [*so2sat.CONFIGS, "geo"])


def test_the_citation_is_that_of_the_builder() -> None:
    (bibtex,) = re.findall(r"^```bibtex\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert so2sat.CITATION.startswith(bibtex.strip())


def test_the_table_of_speeds_is_made_of_the_figures_that_were_measured() -> None:
    cases = json.loads((PROJECT / "assets" / "benchmark.json").read_bytes())["cases"]
    assert benchmark.readme_table(cases) in README


def test_relative_links_lead_to_files() -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)]+)\)", README):
        assert (PROJECT / target).exists()


def test_make_targets_of_the_page_exist() -> None:
    commands = re.findall(r"^make [^#\n]+", README, re.MULTILINE)
    assert {command.split()[1] for command in commands} == {"demo", "test", "train", "lint"}
    for command in commands:
        arguments = shlex.split(command)
        done = subprocess.run([*arguments, "--dry-run"], cwd=PROJECT, check=True, capture_output=True, text=True)
        assert all(part.removeprefix("ARGS=") in done.stdout for part in arguments[2:])


def test_what_the_page_names_in_code_is_there() -> None:
    """Of the recipes: names that are written in capitals, and functions that are to be changed."""
    recipes = README.split("## Change it")[1].split("## Test it")[0]
    code = "".join(
        path.read_text(encoding="utf-8") for path in [PROJECT / "so2sat.py", *PROJECT.glob("scripts/**/*.py")]
    )
    for name in re.findall(r"`([A-Z_]+|recipe|read_columns|pictures)`", recipes):
        assert re.search(rf"^(def )?{name}\b", code, re.MULTILINE), name
