"""The card: what it says is what the repository holds, whatever that is."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from huggingface_hub import DatasetCard

import build
import hub
import so2sat
from conftest import Arrays, write_source
from publishing import card, facts
from publishing.manifest import Manifest


@pytest.fixture(scope="module")
def built(repository: Path) -> tuple[Manifest, dict[str, Any]]:
    """Manifest and statistics of a repository."""
    loaded = Manifest.load(repository)
    assert loaded
    return loaded, json.loads((repository / build.STATISTICS_NAME).read_bytes())["configs"]


def rendered(built: tuple[Manifest, dict[str, Any]], configs: Sequence[str], **changes: Any) -> str:
    """The card of a repository like `built` that has only some configs."""
    manifest, statistics = built
    shards = {name: record for name, record in manifest.shards.items() if name.split("/")[0] in configs}
    manifest = dataclasses.replace(manifest, configs=list(configs), shards=shards, **changes)
    return card.render(manifest, {name: statistics[name] for name in configs})


@pytest.mark.parametrize("configs", [["rgb", "all"], ["rgb"], ["all"]])
@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_the_card_speaks_of_what_is_there_and_of_nothing_else(
    built: tuple[Manifest, dict[str, Any]], configs: list[str], image_format: str
) -> None:
    text = DatasetCard(rendered(built, configs, image_format=image_format)).text
    assert not re.search(r"<!--|-->|\bTODO\b|\{[a-z_]+\}", text)
    assert "make demo" not in text
    assert "make test" not in text
    loaded = {*re.findall(r'load_dataset\("so2sat", "(\w+)"', text)} | {*re.findall(r"so2sat/(\w+)/train-", text)}
    assert loaded == {*configs}
    has_images = "rgb" in configs
    assert ("JPEG of quality 95" in text) == (has_images and image_format == "jpeg")
    assert ("images are PNG" in text) == (has_images and image_format == "png")


@pytest.mark.parametrize("configs", [["rgb", "all"], ["rgb"], ["all"]])
def test_every_picture_and_link_of_the_card_is_there(
    repository: Path, built: tuple[Manifest, dict[str, Any]], configs: list[str]
) -> None:
    manifest, statistics = built
    text = rendered(built, configs)
    part = dataclasses.replace(manifest, configs=configs)
    pictures = card.pictures(repository, part, {name: statistics[name] for name in configs})
    targets = {target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target and target[0] != "#"}
    assert targets == {*pictures}
    assert {*pictures} <= {*card.PICTURES}
    for content in pictures.values():
        assert PIL.Image.open(io.BytesIO(content)).format == "PNG"


def test_the_pictures_of_a_repository_are_listed_with_their_checksums(repository: Path) -> None:
    manifest = Manifest.load(repository)
    assert manifest
    assert {*manifest.files} == {*card.PICTURES, build.STATISTICS_NAME}


def test_synthetic_data_are_called_so_in_the_first_line(built: tuple[Manifest, dict[str, Any]]) -> None:
    manifest, _ = built
    assert not DatasetCard(rendered(built, ["rgb"])).text.startswith(">")
    sources = {name: dataclasses.replace(record, synthetic="made up") for name, record in manifest.sources.items()}
    text = DatasetCard(rendered(built, ["rgb", "all"], sources=sources)).text
    assert text.startswith("> **These data are synthetic:** made up.")


def test_the_tables_hold_what_the_sources_do(
    built: tuple[Manifest, dict[str, Any]], source_arrays: dict[str, Arrays]
) -> None:
    text = rendered(built, ["rgb", "all"])
    for index, name in enumerate(so2sat.LABELS):
        counts = [int(arrays["label"][:, index].sum()) for arrays in source_arrays.values()]
        assert f"| {index} | {facts.LCZ_CODES[index]} | {name} | {' | '.join(map(str, counts))} |" in text
    for array, source, bands in (
        ("sentinel1", "sen1", so2sat.SENTINEL1_BANDS),
        ("sentinel2", "sen2", so2sat.SENTINEL2_BANDS),
    ):
        values = source_arrays["train"][source].astype("f4").astype("f8")
        for index, band in enumerate(bands):
            (row,) = re.findall(rf"^\| `{array}` \| {index} \| {band.name} \|(.*)\|$", text, re.MULTILINE)
            mean, std = (float(cell) for cell in row.split("|")[-2:])
            assert mean == pytest.approx(values[..., index].mean(), rel=1e-5, abs=1e-7)
            assert std == pytest.approx(values[..., index].std(), rel=1e-5)
    assert f"train {len(source_arrays['train']['label'])}, validation" in text


def test_the_constants_are_code_that_gives_the_statistics(built: tuple[Manifest, dict[str, Any]]) -> None:
    _, statistics = built
    (code,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", rendered(built, ["rgb", "all"]), re.DOTALL)
        if "_STD" in block
    )
    names: dict[str, list[float]] = {}
    exec(code, {}, names)
    for name, config, column in (
        ("SENTINEL1", "all", "sentinel1"),
        ("SENTINEL2", "all", "sentinel2"),
        ("IMAGE", "rgb", "image"),
    ):
        bands = statistics[config]["train"]["bands"][column]
        np.testing.assert_allclose(names[f"{name}_MEAN"], [band["mean"] for band in bands], rtol=1e-5)
        np.testing.assert_allclose(names[f"{name}_STD"], [band["std"] for band in bands], rtol=1e-5)


def test_no_published_figure_stands_where_a_measured_one_must(built: tuple[Manifest, dict[str, Any]]) -> None:
    text = rendered(built, ["rgb", "all"])
    for patches in facts.PATCHES_PER_CLASS.values():
        assert f"{sum(patches):,}" not in text
    for means in facts.TRAIN_MEAN.values():
        assert not any(f"{mean:.6g}" in text for mean in means)


def test_the_hub_finds_the_card_valid(repository: Path, tmp_path: Path) -> None:
    code = "import sys; from huggingface_hub import DatasetCard; DatasetCard.load(sys.argv[1]).validate('dataset')"
    with hub.serving(tmp_path) as server:
        run = [sys.executable, "-c", code, str(repository / card.NAME)]
        subprocess.run(run, env=server.environment(), check=True)
        assert [request.stage for request in server.requests if request.stage != "harnesses"] == ["validate"]


def test_bands_without_finite_values_have_no_figures(tmp_path: Path, source_arrays: dict[str, Arrays]) -> None:
    arrays = {name: array[:20].copy() for name, array in source_arrays["train"].items()}
    arrays["sen1"][..., 3] = np.nan
    for name in ("training.h5", "validation.h5"):
        write_source(tmp_path / "data" / name, arrays)
    build.build(str(tmp_path / "data"), tmp_path / "so2sat", ["all"])
    text = (tmp_path / "so2sat" / card.NAME).read_text()
    assert re.search(r"^\| `sentinel1` \| 3 \| VV imaginary \|.*\| None \| None \|$", text, re.MULTILINE)
