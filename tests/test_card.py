"""The dataset card: what it says is what the repository holds, and its code runs when it is copied."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import jinja2
import jinja2.meta
import numpy as np
import numpy.typing as npt
import PIL.Image
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

import build
import hub
import so2sat
import train
from conftest import Arrays, contents, legacy_python, random_arrays, write_source
from publishing import card, facts
from publishing.configs import CONFIGS
from publishing.manifest import Manifest

TEMPLATE = card.TEMPLATE.read_text()


def loaded(repository: Path) -> tuple[Manifest, dict[str, Any]]:
    """Manifest and statistics of a repository."""
    manifest = Manifest.load(repository)
    assert manifest
    return manifest, json.loads((repository / "statistics.json").read_bytes())["configs"]


def text_of(repository: Path, name: str) -> str:
    """The card of a repository for a name, without its header."""
    return DatasetCard(card.render(*loaded(repository), name)).text


def blocks_of(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def code_of(text: str) -> list[str]:
    """The blocks that need no PyTorch; test_train_torch.py runs the others."""
    return [block for block in blocks_of(text) if "\nimport torch\n" not in block]


OFFICIAL = [f"{split}.h5" for split in ("training", "validation", "testing")]
EDITION_3 = [f"{part}/{split}.h5" for part in ("random", "block") for split in ("training", "testing")]
# Every kind of repository: the files it is made from, configs (None: all that the files make) and image format.
FULL: dict[str, tuple[list[str], list[str] | None, str]] = {
    "rgb": (OFFICIAL, ["rgb"], "jpeg"),
    "all": (OFFICIAL, ["all"], "jpeg"),
    "published": ([*OFFICIAL, *(name.replace(".", "_geo.") for name in OFFICIAL)], None, "jpeg"),
    "one-split": (["validation.h5", "validation_geo.h5"], None, "png"),
}
SHORT: dict[str, tuple[list[str], list[str] | None, str]] = {
    "geo": (["training.h5", "training_geo.h5", "testing.h5", "testing_geo.h5"], ["geo"], "jpeg"),
    "edition-3": (EDITION_3, None, "jpeg"),
}


@pytest.fixture(scope="session")
def kinds(
    full_folder: Path, full_repository: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A repository of every kind. Read only."""
    found = {"everything": full_repository, "measured": repository}
    for kind, (files, configs, image_format) in {**FULL, **SHORT}.items():
        folder = tmp_path_factory.mktemp(kind)
        for name in files:
            (folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "data" / name).symlink_to(full_folder / name)
        build.build(str(folder / "data"), folder / "so2sat", configs, image_format)
        found[kind] = folder / "so2sat"
    return found


ALL_FULL = ["everything", "measured", *FULL]
ALL_KINDS = [*ALL_FULL, *SHORT]


# ── The template ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_name_that_is_passed_is_used_and_every_name_that_is_used_is_passed(repository: Path) -> None:
    manifest, statistics = loaded(repository)
    used = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(TEMPLATE))
    assert used == {*card.words(manifest, statistics, "lab/lcz")}


def test_numbers_of_classes_and_bands_and_the_quality_of_images_are_not_typed() -> None:
    numbers = {len(so2sat.LABELS), len(so2sat.SENTINEL1_BANDS + so2sat.SENTINEL2_BANDS), facts.CITIES.__len__()}
    typed = re.findall(r"(?<![\w.,/-])\d+(?![\w.,/-])", re.sub(r"```bibtex.*", "", TEMPLATE, flags=re.DOTALL))
    assert not {str(number) for number in {*numbers, so2sat.IMAGE_FORMATS["jpeg"]["quality"]}} & {*typed}


# ── What it says ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_card_that_is_published_is_short_enough_to_be_read(kinds: dict[str, Path]) -> None:
    text = text_of(kinds["published"], "lab/lcz")
    text = text[text.index("# So2Sat") :]  # without the notice that the data are synthetic
    words = [word for word in re.sub(r"```.*?```", "", text, flags=re.DOTALL).split() if re.search(r"[^|:-]", word)]
    assert len(text.splitlines()) <= 360
    assert len(words) <= 1700


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_card_speaks_of_what_is_there_and_of_nothing_else(kind: str, kinds: dict[str, Path]) -> None:
    manifest, _ = loaded(kinds[kind])
    text = text_of(kinds[kind], "lab/lcz")
    assert not re.search(r"{[{%#]|[}%#]}|\bNone\b|Undefined|<!--", text.split("```bibtex")[0])
    assert "\n\n\n" not in re.sub(r"```.*?```", "code", text, flags=re.DOTALL)
    assert {*re.findall(r"`((?:rgb|all|geo)(?:_\w+)?)`", text)} <= {*manifest.configs}
    assert {*re.findall(r'"((?:rgb|all|geo)(?:_random|_block)?)"', "\n".join(blocks_of(text)))} <= {*manifest.configs}
    columns = {column for config in manifest.configs for column in CONFIGS[config].features}
    assert ("sentinel1" in text) == ("sentinel1" in columns)
    assert ("longitude" in text) == ("longitude" in columns)
    assert ("`…_random`" in text) == (kind == "everything")
    if kind in ALL_FULL:
        assert ("JPEG of quality 95" in text) == ("image" in columns and manifest.image_format == "jpeg")
        assert ("stored as PNG" in text) == ("image" in columns and manifest.image_format == "png")
    assert bool(re.search(r"^uv run", text, re.MULTILINE)) == (kind in ALL_FULL and kind != "one-split")
    assert ("## culture-10" in text) == (kind in ALL_FULL and kind != "one-split")
    assert (len(text.splitlines()) < 90) == (kind in SHORT)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_block_is_code_that_names_the_repository(kind: str, kinds: dict[str, Path]) -> None:
    for name in ("lab/lcz", "lcz-42"):
        for block in blocks_of(text_of(kinds[kind], name)):
            ast.parse(block)
            assert f'"{name}"' in block


def test_running_text_has_no_code_to_copy_and_names_options_that_exist(kinds: dict[str, Path]) -> None:
    for kind, repository in kinds.items():
        spans = re.findall(
            r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text_of(repository, f"lab/{kind}"), flags=re.M | re.S)
        )
        assert not [span for span in spans if re.search(r"\([^)]", span)]  # calls with arguments
        options = {span.split()[0] for span in spans if span.startswith("--")}
        help_text = subprocess.run(
            [sys.executable, train.__file__, "--help"], capture_output=True, text=True, check=True
        )
        assert options <= {*re.findall(r"--[\w-]+", help_text.stdout)}


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_picture_and_link_of_the_card_is_there(kind: str, kinds: dict[str, Path]) -> None:
    manifest, _ = loaded(kinds[kind])
    text = text_of(kinds[kind], "so2sat")
    targets = {target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target}
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {target for target in targets if target.startswith("#")}
    assert anchors <= {"#" + re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert targets - anchors == {name for name in manifest.files if name.startswith("assets/")} <= {*card.PICTURES}
    for target in targets - anchors:
        assert PIL.Image.open(io.BytesIO((kinds[kind] / target).read_bytes())).format == "PNG"


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_header_says_what_load_dataset_needs(kind: str, kinds: dict[str, Path]) -> None:
    manifest, _ = loaded(kinds[kind])
    header = card.metadata(manifest)
    assert header == DatasetCard((kinds[kind] / card.NAME).read_text()).data.to_dict()  # type: ignore[no-untyped-call]
    assert header["license"] == so2sat.LICENSE
    assert "geospatial" in header["tags"]
    (default,) = [config["config_name"] for config in header["configs"] if config.get("default")]
    assert f', "{default}"' in blocks_of(text_of(kinds[kind], "so2sat"))[0]
    for config in header["configs"]:
        for files in config["data_files"]:
            matched = {path.relative_to(kinds[kind]).as_posix() for path in kinds[kind].glob(files["path"])}
            assert matched == {*manifest.shard_names(config["config_name"], files["split"])}


EDITIONS_OF = {"measured": [2], "published": [4], "one-split": [4], "everything": [3, 4], "edition-3": [3]}


@pytest.mark.parametrize("kind", EDITIONS_OF)
def test_the_editions_to_cite_are_those_that_the_sources_are_of(kind: str, kinds: dict[str, Path]) -> None:
    bibtex = text_of(kinds[kind], "so2sat").split("```bibtex")[1]
    assert [int(number) for number in re.findall(r"@misc{so2sat_edition_(\d)", bibtex)] == EDITIONS_OF[kind]
    assert all(facts.EDITIONS[number].homepage in bibtex for number in EDITIONS_OF[kind])


def test_overlap_is_measured_where_positions_are_known_and_published_elsewhere(
    crowded: Path, kinds: dict[str, Path]
) -> None:
    _, statistics = loaded(crowded / "so2sat")
    measured = statistics["geo"]["validation"]["shared"]["test"]["near"]
    caveats = [text_of(folder, "so2sat").split("## Caveats")[1] for folder in (crowded / "so2sat", kinds["measured"])]
    assert f"{measured} of 150 validation patches overlap" in caveats[0]
    assert all(f"{near:,} of " in caveats[1] and f"{near:,} of " not in caveats[0] for near in facts.OVERLAPS.values())


def test_synthetic_data_are_called_so_first_and_their_text_is_no_markup(repository: Path) -> None:
    manifest, statistics = loaded(repository)
    assert "synthetic" not in card.render(manifest, statistics, "so2sat")
    evil = "made\nup. <script>alert(1)</script> ![x](http://x) | **y** \x1b[31m {{ name }}"
    sources = {name: dataclasses.replace(record, synthetic=evil) for name, record in manifest.sources.items()}
    text = DatasetCard(card.render(dataclasses.replace(manifest, sources=sources), statistics, "so2sat")).text
    first = text.lstrip().splitlines()[0]
    assert first.startswith("> **These data are synthetic:** made up")
    assert "<script>" not in text
    assert "![x](" not in text
    assert "\\*\\*y" in first


def test_the_tables_hold_what_the_sources_do(repository: Path, source_arrays: dict[str, Arrays]) -> None:
    text = text_of(repository, "so2sat")
    for index, name in enumerate(so2sat.LABELS):
        counts = [int(arrays["label"][:, index].sum()) for arrays in source_arrays.values()]
        assert f"| {index} | {facts.LCZ_CODES[index]} | {name} | {' | '.join(map(str, counts))} |" in text
    for array, source, bands in (
        ("sentinel1", "sen1", so2sat.SENTINEL1_BANDS),
        ("sentinel2", "sen2", so2sat.SENTINEL2_BANDS),
    ):
        values = source_arrays["train"][source].astype("f4").astype("f8")
        for index, band in enumerate(bands):
            start = re.escape(f"| `{array}` {index} | {band.name} |")
            (row,) = re.findall(rf"^{start}(.*)\|$", text, re.MULTILINE)
            *_, median, high, mean, std = (float(cell) for cell in row.split("|")[-5:])
            assert mean == pytest.approx(values[..., index].mean(), rel=1e-3, abs=1e-7)
            assert std == pytest.approx(values[..., index].std(), rel=1e-3)
            assert (values[..., index] <= median).mean() == pytest.approx(0.5, abs=0.01)
            assert (values[..., index] <= high).mean() == pytest.approx(0.999, abs=0.0005)
    assert "| Patches | 403: train 300, validation 70, test 33 |" in text


def test_the_table_of_configs_has_rows_and_sizes(kinds: dict[str, Path]) -> None:
    for config, info in card.dataset_infos(loaded(kinds["published"])[0]).items():
        (row,) = re.findall(rf"^\| `{config}` \|.*\|$", text_of(kinds["published"], "so2sat"), re.MULTILINE)
        rows, download, arrow, rate = (cell.strip() for cell in row.split("|")[4:-1])
        size = sum(path.stat().st_size for path in kinds["published"].glob(f"{config}/*"))
        prepared = datasets.load_dataset(str(kinds["published"]), config)
        assert int(rows) == sum(prepared.num_rows.values())
        assert (download, arrow) == (f"{size / 1e9:.2f} GB", f"{info.dataset_size / 1e9:.2f} GB")
        assert int(rate.replace(",", "")) == pytest.approx(int(rows) / info.dataset_size * 1e9, abs=1)


def test_no_published_figure_stands_where_a_measured_one_must(repository: Path) -> None:
    text = "".join(re.findall(r"^\|.*$", text_of(repository, "so2sat"), re.MULTILINE))
    assert not any(f"{sum(patches):,}" in text for patches in facts.PATCHES_PER_CLASS.values())
    assert not any(f"{mean:.4g}" in text for means in facts.TRAIN_MEAN.values() for mean in means)


def test_bands_without_finite_values_have_no_figures(tmp_path: Path, source_arrays: dict[str, Arrays]) -> None:
    arrays = {name: array[:20].copy() for name, array in source_arrays["train"].items()}
    arrays["sen1"][..., 3] = np.nan
    write_source(tmp_path / "data" / "training.h5", arrays)
    build.build(str(tmp_path / "data"), tmp_path / "so2sat", ["all"])
    text = (tmp_path / "so2sat" / card.NAME).read_text()
    assert re.search(r"^\| `sentinel1` 3 \| VV imaginary \|.*\| None \| None \|$", text, re.MULTILINE)


# ── Its code, as a reader copies it ──────────────────────────────────────────────────────────────────────────────────

# Runs blocks of code, each by itself; says which one fails.
RUN = """
import json, os, sys, traceback
for number, block in enumerate(json.load(sys.stdin)):
    try:
        exec(compile(block, f"block {number}", "exec"), {"__name__": "__main__"})
    except BaseException:
        print(block, file=sys.stderr)
        traceback.print_exc()
        os._exit(1)
print("all ran", flush=True)
os._exit(0)
"""


@pytest.fixture(scope="session")
def served(kinds: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[hub.Hub]:
    """The repositories of every kind on a Hub, under names other than so2sat, with cards for these names."""
    with hub.serving(tmp_path_factory.mktemp("hub")) as server:
        for kind, repository in kinds.items():
            name = f"lab/lcz-{kind}"
            server.create(name)
            text = card.render(*loaded(repository), name)
            server.commit(name, {**contents(repository), card.NAME: text.encode()})
        yield server


def run_blocks(python: Path | str, blocks: list[str], server: hub.Hub, folder: Path, home: str) -> None:
    """Runs blocks of code in an empty folder, in one process."""
    environment = {**server.environment(None, home=home), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [python, "-c", RUN], input=json.dumps(blocks), cwd=folder, env=environment, capture_output=True, text=True
    )
    assert "all ran" in done.stdout, done.stderr[-3000:]


def test_the_first_block_of_every_kind_runs_when_it_is_copied(
    kinds: dict[str, Path], served: hub.Hub, tmp_path: Path
) -> None:
    blocks = [blocks_of(text_of(repository, f"lab/lcz-{kind}"))[0] for kind, repository in kinds.items()]
    run_blocks(sys.executable, blocks, served, tmp_path, "new")


@pytest.mark.parametrize("kind", ["published", "one-split"])
def test_every_block_runs_when_it_is_copied(kind: str, kinds: dict[str, Path], served: hub.Hub, tmp_path: Path) -> None:
    blocks = code_of(text_of(kinds[kind], f"lab/lcz-{kind}"))
    assert len(blocks) >= 7
    run_blocks(sys.executable, blocks[1:], served, tmp_path, "new")


def test_every_block_of_a_local_folder_runs_whatever_its_name(
    kinds: dict[str, Path], served: hub.Hub, tmp_path: Path
) -> None:
    name = '-our "lcz"\'s 42'
    (tmp_path / name).symlink_to(kinds["everything"])
    text = text_of(kinds["everything"], name)
    run_blocks(sys.executable, code_of(text), served, tmp_path, "local")
    (shell,) = re.findall(r"^```sh\n(.*?)\n```$", text, re.MULTILINE)
    assert shlex.split(shell) == ["uv", "run", f"./{name}/train.py", f"./{name}", "--config", "all"]


def test_a_stream_that_is_left_lets_python_end(kinds: dict[str, Path], served: hub.Hub, tmp_path: Path) -> None:
    (block,) = (code for code in blocks_of(text_of(kinds["published"], "lab/lcz-published")) if "reshard()" in code)
    subprocess.run([sys.executable, "-c", block], cwd=tmp_path, env=served.environment(None), check=True, timeout=60)


@pytest.mark.parametrize("version", ["3.6.0", "4.0.0"])
def test_blocks_about_loading_and_streaming_run_in_earlier_versions(
    version: str, kinds: dict[str, Path], served: hub.Hub, tmp_path: Path
) -> None:
    blocks = []
    for block in blocks_of(text_of(kinds["published"], "lab/lcz-published")):
        imported = {*re.findall(r"^(?:from|import) (\w+)", block, re.MULTILINE)}
        if "datasets" in imported and imported <= {"datasets", "numpy"} and "reshard" not in block:
            blocks.append(block)
    assert len(blocks) >= 6
    run_blocks(legacy_python(version), blocks, served, tmp_path, version)


# ── What its recipes give ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a repository where many patches of validation overlap patches of test, in the same zone or not."""
    folder = tmp_path_factory.mktemp("crowded")
    rng = np.random.default_rng(0)
    for split, rows in (("training", 17), ("validation", 150), ("testing", 120)):
        write_source(folder / "data" / f"{split}.h5", random_arrays(rows, seed=rows))
        tfw = np.tile([10.0, 0, 0, -10, 0, 0], (rows, 1))
        tfw[:, 4:] = [700_000, 5_300_000] + rng.integers(0, 50, (rows, 2)) * 80.0  # 320 m apart is not overlapping
        city = rng.choice([b"munich", b"berlin"], rows)  # with coordinates that are alike, in different zones
        tfw[city == b"berlin", 4:] += [-300_000, 500_000]
        epsg = np.where(city == b"munich", 32632, 32633)
        write_source(folder / "data" / f"{split}_geo.h5", {"epsg": epsg, "tfw": tfw, "city": city})
    build.build(str(folder / "data"), folder / "so2sat", ["rgb", "geo"])
    return folder


def recipe(folder: Path, part: str) -> dict[str, Any]:
    """What the card's block that contains `part` makes."""
    (code,) = (code for code in blocks_of(text_of(folder / "so2sat", "so2sat")) if part in code)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def places_of(split: str) -> dict[str, npt.NDArray[Any]]:
    rows = pq.read_table(f"so2sat/geo/{split}-00000-of-00001.parquet")
    return {name: rows[name].to_numpy() for name in rows.column_names}


def near(ours: dict[str, npt.NDArray[Any]], theirs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
    """Which of our patches overlap one of theirs, pair by pair."""
    found = np.zeros(len(ours["x"]), bool)
    for row in range(len(found)):
        zone, x, y = (ours[name][row] for name in ("epsg", "x", "y"))
        there = theirs["epsg"] == zone
        found[row] = ((np.abs(theirs["x"][there] - x) < 320) & (np.abs(theirs["y"][there] - y) < 320)).any()
    return found


def test_places_stand_beside_their_images(crowded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(crowded)
    names = recipe(crowded, "concatenate_datasets(")
    placed, rgb = names["placed"]["validation"], datasets.load_dataset("so2sat", "rgb", split="validation")
    assert placed.column_names == [*CONFIGS["rgb"].features, *list(CONFIGS["geo"].features)[2:]]
    assert placed["sample_id"][:] == rgb["sample_id"][:]
    assert placed["x"][:] == places_of("validation")["x"].tolist()
    assert placed[7]["image"] == rgb[7]["image"]
    expected = np.flatnonzero(places_of("validation")["city"] == "munich").tolist()
    assert 0 < len(expected) < len(rgb)
    assert names["one_city"]["sample_id"][:] == expected


def test_arrays_are_exact_if_float64_is_asked_for(crowded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(crowded)
    geo = datasets.load_dataset("so2sat", "geo", split="validation")
    exact = places_of("validation")["longitude"]
    np.testing.assert_array_equal(geo.with_format("numpy", dtype=np.float64)[:]["longitude"], exact)
    np.testing.assert_array_equal(np.array(geo["longitude"]), exact)
    assert geo.with_format("numpy")[:]["longitude"].dtype == np.float32  # what `datasets` makes of all floats


def test_independent_patches_overlap_no_patch_of_the_test_split(crowded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(crowded)
    overlaps = near(places_of("validation"), places_of("test"))
    assert 20 < overlaps.sum() < 130
    names = recipe(crowded, "NOT EXISTS")
    assert names["independent_patches"]["sample_id"][:] == np.flatnonzero(~overlaps).tolist()


def test_the_table_of_pairs_counts_what_splits_share(crowded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(crowded)
    text = text_of(crowded / "so2sat", "so2sat")
    splits = {split: places_of(split) for split in ("train", "validation", "test")}
    for one, other in (("validation", "test"), ("validation", "train"), ("test", "train")):
        ours, theirs = splits[one], splits[other]
        cities = len({*ours["city"]} & {*theirs["city"]})
        classes = len({*ours["label"].tolist()} & {*theirs["label"].tolist()})
        count = f"{near(ours, theirs).sum()} of {len(ours['x'])} in {one}"
        assert f"| {one} and {other} | {cities} | {classes} | {count} |" in text
