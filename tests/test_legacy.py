"""datasets 3.6, the last line with loading scripts, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import so2sat
from conftest import Arrays, legacy_python
from publishing import card
from publishing.configs import CONFIGS
from servers import Line, RangeServer, ftp_server

PROJECT = Path(so2sat.__file__).parent


def loaded_by_legacy(cwd: Path, *arguments: Any, **options: Any) -> dict[str, Any]:
    """Calls load_dataset with datasets 3.6 and tells of each split: rows, features, labels and sums of values.

    Unless several processes are to load it, a stream has to give the same.
    """
    code = """
import json, sys
import datasets, numpy as np
assert datasets.__version__ == "3.6.0"
arguments, options = json.loads(sys.argv[1])
def describe(split):
    split = split.with_format("numpy")
    rows = list(split)
    arrays = [name for name in split.features if name.startswith("sentinel")]
    places = [name for name in ("city", "epsg", "x", "y", "longitude", "latitude") if name in split.features]
    return {
        "rows": len(rows),
        "features": str(split.features.to_dict()),
        "label": [int(row["label"]) for row in rows],
        "sample_id": [int(row["sample_id"]) for row in rows],
        "sums": {name: [float(np.asarray(row[name], "f8").sum()) for row in rows] for name in arrays},
        # Format "numpy" rounds to float32.
        "places": [[row[name] for name in places] for row in split.with_format(None)] if places else [],
        "images": [np.asarray(row["image"]).tolist() for row in rows[:3]] if "image" in split.features else [],
    }
def load(**others):
    splits = datasets.load_dataset(*arguments, **options, **others)
    return {name: describe(split) for name, split in splits.items()}
told = load()
assert "num_proc" in options or load(streaming=True) == told
print(json.dumps(told))
"""
    environment = {**os.environ, "HF_HOME": str(cwd / "cache"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    result = subprocess.run(
        [legacy_python(), "-c", code, json.dumps([arguments, options])],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    told: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return told


def assert_holds(told: dict[str, Any], config: str, arrays: dict[str, Arrays]) -> None:
    assert list(told) == list(arrays)
    for split, expected in arrays.items():
        rows = told[split]
        assert rows["label"] == expected["label"].argmax(axis=1).tolist()
        assert rows["sample_id"] == list(range(len(expected["label"])))
        assert "Compact high-rise" in rows["features"]
        if config == "all":
            for name, source in (("sentinel1", "sen1"), ("sentinel2", "sen2")):
                sums = expected[source].astype(np.float32).sum(axis=(1, 2, 3), dtype=np.float64)
                np.testing.assert_allclose(rows["sums"][name], sums, rtol=1e-9, atol=1e-9)
        else:
            pixels = so2sat.to_rgb(expected["sen2"][:3]).astype(int)
            assert np.abs(np.array(rows["images"]) - pixels).mean() < 10  # JPEG of noise


@pytest.mark.parametrize("config", ["rgb", "all"])
def test_the_builder_is_a_loading_script(
    source_folder: Path,
    source_arrays: dict[str, Arrays],
    tmp_path: Path,
    config: str,
) -> None:
    """dataset_infos.json lies beside it and expects the full dataset; a smaller one must load all the same."""
    assert (PROJECT / "dataset_infos.json").is_file()
    told = loaded_by_legacy(
        tmp_path,
        str(PROJECT / "so2sat.py"),
        config,
        data_dir=str(source_folder),
        trust_remote_code=True,
    )
    assert_holds(told, config, source_arrays)


def test_the_loading_script_reads_urls_in_two_processes(
    source_folder: Path, http_source: RangeServer, source_arrays: dict[str, Arrays], tmp_path: Path
) -> None:
    options = {"trust_remote_code": True, "num_proc": 2}
    with ftp_server(source_folder, Line()) as ftp:
        for url in (http_source.url, ftp):
            told = loaded_by_legacy(tmp_path, str(PROJECT / "so2sat.py"), "all", data_dir=url, **options)
            assert_holds(told, "all", source_arrays)


@pytest.mark.parametrize("config", ["rgb", "all"])
def test_the_repository_loads(
    repository: Path,
    source_arrays: dict[str, Arrays],
    tmp_path: Path,
    config: str,
) -> None:
    (tmp_path / "so2sat").symlink_to(repository)
    told = loaded_by_legacy(tmp_path, "so2sat", config)
    assert_holds(told, config, source_arrays)


def test_places_load(full_folder: Path, full_repository: Path, tmp_path: Path) -> None:
    (tmp_path / "so2sat").symlink_to(full_repository)
    told = loaded_by_legacy(tmp_path, "so2sat", "geo")
    assert list(told) == list(so2sat.SOURCE_FILES)
    for split in so2sat.SOURCE_FILES:
        with CONFIGS["geo"].open(str(full_folder), split) as reader:
            columns = reader.read(0, reader.rows)
        expected = [list(row) for row in zip(*(values.tolist() for values in columns.values()))]
        assert told[split]["label"] == [row[0] for row in expected]
        assert told[split]["sample_id"] == [row[1] for row in expected]
        for found, row in zip(told[split]["places"], expected, strict=True):
            assert found[:4] == row[2:6]
            # PROJ may be another there.
            np.testing.assert_allclose(found[4:], row[6:], rtol=0, atol=1e-9)


def test_an_interrupted_build_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "so2sat").mkdir()
    (tmp_path / "so2sat" / "README.md").write_text(card.INCOMPLETE)
    with pytest.raises(AssertionError, match="incomplete"):
        loaded_by_legacy(tmp_path, "so2sat")
