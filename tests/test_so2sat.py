"""The dataset: schema, transforms, reading, builder."""

from __future__ import annotations

import contextlib
import io
import itertools
import shutil
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.JpegImagePlugin
import pytest
from datasets.distributed import split_dataset_by_node
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import build
import so2sat
from bad_sources import BAD_SOURCES
from conftest import Arrays, random_arrays, write_source
from publishing import facts
from servers import Line, RangeServer, ftp_server, serving
from so2sat import So2Sat, SourceError

# ── Schema ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_bands_are_those_of_the_source_arrays_and_rgb_is_b4_b3_b2() -> None:
    assert len(so2sat.SENTINEL1_BANDS) == so2sat.SOURCE_SHAPES["sen1"][-1] == 8
    assert len(so2sat.SENTINEL2_BANDS) == so2sat.SOURCE_SHAPES["sen2"][-1] == 10
    assert [so2sat.SENTINEL2_BANDS[index].name for index in so2sat.RGB_BANDS] == ["B4", "B3", "B2"]
    assert all(band.wavelength for band in so2sat.SENTINEL2_BANDS)


# ── Transforms ───────────────────────────────────────────────────────────────────────────────────────────────────────


def tfds_rgb(sen2: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """The arithmetic of TensorFlow Datasets' so2sat 2.1.0."""
    return (sen2[..., [2, 1, 0]] * (3.5 * 255.0)).clip(0, 255).astype(np.uint8)


def ten_bands(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Repeats values over ten bands."""
    return np.repeat(values[..., None], 10, axis=-1)


def test_rgb_equals_tfds_at_and_next_to_every_step_of_the_pixel_scale() -> None:
    steps = np.arange(-3, 261) / 892.5
    values = np.concatenate([steps, np.nextafter(steps, -np.inf), np.nextafter(steps, np.inf), [-0.0, -1.0, 1.0, 2.8]])
    np.testing.assert_array_equal(so2sat.to_rgb(ten_bands(values)), tfds_rgb(ten_bands(values)))


@given(hnp.arrays(np.float64, (4, 10), elements=st.floats(-10, 10, width=64)))
def test_rgb_equals_tfds_for_any_reflectance(sen2: npt.NDArray[np.float64]) -> None:
    np.testing.assert_array_equal(so2sat.to_rgb(sen2), tfds_rgb(sen2))


@pytest.mark.parametrize("dtype", ["u1", "<i4", ">f8", "<f4", ">f4", "<f2"])
def test_rgb_of_other_dtypes_is_computed_in_float64(dtype: str) -> None:
    sen2 = ten_bands(np.array([0, 0.1, 0.123, 1])).astype(dtype)
    np.testing.assert_array_equal(so2sat.to_rgb(sen2), tfds_rgb(sen2.astype(np.float64)))


def test_rgb_of_nan_and_infinity_is_defined_and_quiet() -> None:
    values = np.array([np.nan, np.inf, -np.inf, -1.8e308])
    with np.errstate(all="raise"):
        assert so2sat.to_rgb(ten_bands(values))[:, 0].tolist() == [0, 255, 0, 0]


def test_float32_passes_nan_and_infinity_and_rounds_to_nearest() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1e300, 1 + 2**-25, 1 + 3 * 2**-25])
    with np.errstate(all="raise"):
        result = so2sat.to_float32(values.astype(">f8"))
    np.testing.assert_array_equal(result, np.array([np.nan, np.inf, -np.inf, np.inf, 1, 1 + 2**-23], "<f4"))


# ── Images ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_jpeg_has_quality_95_and_no_chroma_subsampling() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = PIL.Image.open(io.BytesIO(so2sat.encode_images(pixels[None], "jpeg")[0]))
    assert isinstance(image, PIL.JpegImagePlugin.JpegImageFile)
    assert (image.size, image.mode) == ((32, 32), "RGB")
    # Component, horizontal and vertical sampling: all components in full resolution.
    assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3
    # Quality 95 scales the standard table by 10 %: its first entry, 16, becomes (16 × 10 + 50) // 100.
    assert image.quantization[0][0] == (16 * 10 + 50) // 100


# ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────

STORED = {
    "big-endian": lambda arrays: {name: array.astype(">f8") for name, array in arrays.items()},
    "float32": lambda arrays: {name: array.astype("<f4") for name, array in arrays.items()},
    "int16": lambda arrays: (
        {name: (array * 10).clip(-999, 999).astype("<i2") for name, array in arrays.items()}
        | {"label": arrays["label"].astype("<i2")}
    ),
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("options", [{}, {"chunks": True}, {"compression": "gzip"}, {"shuffle": True, "chunks": True}])
def test_any_real_or_integer_dtype_chunking_and_compression_is_read(
    tmp_path: Path, stored: str, options: dict[str, Any]
) -> None:
    arrays = STORED[stored](random_arrays(5))
    with so2sat.open_source(str(write_source(tmp_path / "x.h5", arrays, **options))) as source:
        columns = so2sat.read_columns(source, "all", 1, 5)
        pixels = so2sat.read_columns(source, "rgb", 1, 5)["image"]
    assert columns["label"].tolist() == arrays["label"][1:].argmax(axis=1).tolist()
    assert columns["sample_id"].tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(columns["sentinel1"], arrays["sen1"][1:].astype(np.float32))
    np.testing.assert_array_equal(columns["sentinel2"], arrays["sen2"][1:].astype(np.float32))
    np.testing.assert_array_equal(pixels, tfds_rgb(arrays["sen2"][1:].astype(np.float64)))
    assert columns["sentinel1"].dtype == columns["sentinel2"].dtype == np.dtype("<f4")


def assert_says(message: str, facts: Iterable[str]) -> None:
    assert "\n" not in message.strip()
    for fact in facts:
        assert fact in message


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_a_bad_source_is_refused_in_one_line_before_anything_is_written(case: str, tmp_path: Path) -> None:
    write, told = BAD_SOURCES[case]
    write_source(tmp_path / "validation.h5", random_arrays(3))
    write(tmp_path / "training.h5")
    builder = So2Sat(config_name="all", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(SourceError) as caught:
        builder.download_and_prepare()
    assert_says(str(caught.value), [str(tmp_path / "training.h5"), *told])
    assert not [*tmp_path.rglob("*.arrow")]


def test_build_tells_a_bad_source_in_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_source(tmp_path / "training.h5", {})
    assert build.main([str(tmp_path), str(tmp_path / "output")]) == 1
    assert_says(capsys.readouterr().err, ["error: ", str(tmp_path / "training.h5"), "'sen1'"])
    assert not (tmp_path / "output").exists()
    assert build.main([str(tmp_path), str(tmp_path / "output"), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    arrays = random_arrays(4)
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as h5:
        for name, array in arrays.items():
            h5.create_dataset(name, data=array, compression="gzip", fletcher32=True)
        offset = h5["sen1"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 100] ^= 0xFF
    path.write_bytes(content)
    with so2sat.open_source(str(path)) as source, pytest.raises(SourceError) as caught:
        source.read("sen1", 0, 4)
    assert_says(str(caught.value), [str(path), "'sen1'", "rows 0 to 3", "damaged"])


def test_any_damage_to_metadata_ends_in_a_source_error_or_in_rows(tmp_path: Path) -> None:
    """One process reads all: a death or a hang names the seed by the last line that it printed."""
    arrays = {name: np.zeros((3, *shape)) for name, shape in so2sat.SOURCE_SHAPES.items()}
    write_source(tmp_path / "sound.h5", {**arrays, "label": np.eye(17)[:3]})
    code = """
        import pathlib, random, sys, time
        import so2sat
        sound = pathlib.Path("sound.h5").read_bytes()
        for seed in range(500):
            print("seed", seed, flush=True)
            generator, content = random.Random(seed), bytearray(sound)
            for _ in range(generator.randint(1, 3)):
                content[generator.randrange(2400)] = generator.randrange(256)
            pathlib.Path("damaged.h5").write_bytes(content)
            started = time.monotonic()
            try:
                with so2sat.open_source("damaged.h5") as source:
                    source.check_labels()
                    for config in ("rgb", "all"):
                        columns = so2sat.read_columns(source, config, 0, source.rows)
                        assert {len(values) for values in columns.values()} == {source.rows}
            except so2sat.SourceError as error:
                assert "\\n" not in str(error)
                print("refused")
            assert time.monotonic() - started < 30
        """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout.splitlines()[-1:] + done.stderr.splitlines()[-5:]
    assert 50 < done.stdout.count("refused") < 450  # both ends are met


def test_a_bad_label_far_into_the_file_is_found_with_its_row_number(tmp_path: Path) -> None:
    rows = 70_000  # more than are checked at a time
    label = np.eye(17, dtype="u1")[np.zeros(rows, int)]
    label[68_123] = 1
    with h5py.File(tmp_path / "x.h5", "w") as h5:
        h5["label"] = label
        for name in ("sen1", "sen2"):  # no values are stored
            h5.create_dataset(name, (rows, *so2sat.SOURCE_SHAPES[name]), "u1", chunks=(1, *so2sat.SOURCE_SHAPES[name]))
    with (
        so2sat.open_source(str(tmp_path / "x.h5")) as source,
        pytest.raises(SourceError, match="row 68123"),
    ):
        source.check_labels()


# ── Remote files ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once, and silence is short."""
    monkeypatch.setattr(so2sat, "RETRY_WAITS", (0,) * 6)
    monkeypatch.setattr(so2sat, "RETRY_SECONDS", 2)
    monkeypatch.setattr(so2sat, "TIMEOUT", 0.5)


@pytest.fixture
def ftp_source(source_folder: Path) -> Iterator[tuple[str, Line]]:
    """`source_folder` over FTP, from a server that greets in latin-1 and wants a password; and the line to it."""
    line = Line()
    with ftp_server(source_folder, line) as url:
        yield url, line


def assert_right_rows(url: str, source_arrays: dict[str, Arrays], first: int = 0, last: int = 30) -> None:
    with so2sat.open_source(f"{url}/training.h5") as source:
        columns = so2sat.read_columns(source, "all", first, last)
    for column, name in (("sentinel1", "sen1"), ("sentinel2", "sen2")):
        np.testing.assert_array_equal(columns[column], source_arrays["train"][name][first:last].astype(np.float32))


def assert_is_no_absent_split(url: str, *told: str) -> None:
    """Reading is an error about training.h5 that says more than that the file is absent."""
    with pytest.raises(SourceError) as caught:
        so2sat.find_sources(url, "rgb")
    assert not isinstance(caught.value, so2sat.MissingSourceError)
    assert_says(str(caught.value), ["training.h5", *told])


def test_a_url_is_read_by_ranges(
    http_source: RangeServer, ftp_source: tuple[str, Line], source_arrays: dict[str, Arrays]
) -> None:
    row_bytes = 8 * (32 * 32 * 18 + 17)
    assert_right_rows(http_source.url, source_arrays, 130, 140)
    assert http_source.bytes_sent < 10 * row_bytes + (1 << 17)  # the rows, the header and not much else
    url, line = ftp_source
    assert_right_rows(url, source_arrays, 130, 140)
    assert line.sent < 100 * row_bytes  # and what was on its way when a range was complete


@pytest.mark.parametrize("fault", [503, 429, "cut"])
def test_an_http_server_that_fails_now_and_then_is_asked_again(
    http_source: RangeServer, source_arrays: dict[str, Arrays], impatient: None, fault: int | str
) -> None:
    http_source.fault = lambda number: fault if number % 3 == 1 else None
    assert_right_rows(http_source.url, source_arrays)


@pytest.mark.parametrize(("fault", "requests"), [(401, 1), (403, 1), (503, 7), (429, 7)])
def test_an_http_server_that_always_fails_is_an_error_and_no_absent_split(
    http_source: RangeServer, impatient: None, fault: int, requests: int
) -> None:
    """A refusal for good is not repeated."""
    http_source.fault = lambda number: fault
    assert_is_no_absent_split(http_source.url, str(fault))
    assert len(http_source.requests) == requests


@pytest.mark.parametrize(
    ("command", "reply"), [("PASS", "421 Busy."), ("TYPE", "451 Error."), ("SIZE", "450 Busy."), ("RETR", "425 Lost.")]
)
def test_an_ftp_server_that_fails_is_asked_again_and_is_no_absent_split(
    ftp_source: tuple[str, Line], source_arrays: dict[str, Arrays], impatient: None, command: str, reply: str
) -> None:
    url, line = ftp_source
    line.replies[command] = [reply] * 2
    assert_right_rows(url, source_arrays)
    line.replies[command] = [reply] * 99
    assert_is_no_absent_split(url, reply)


@pytest.mark.parametrize("ending", ["close", "vanish", "stall"])
def test_an_ftp_transfer_that_breaks_off_is_begun_anew(
    ftp_source: tuple[str, Line], source_arrays: dict[str, Arrays], impatient: None, ending: str
) -> None:
    url, line = ftp_source
    line.cuts, line.ending = [0, 100, 100_000, 1_000_000], ending
    assert_right_rows(url, source_arrays)
    assert not line.cuts


def test_a_server_that_is_silent_is_an_error_in_time(
    http_source: RangeServer, ftp_source: tuple[str, Line], impatient: None
) -> None:
    http_source.fault = lambda number: time.sleep(2)
    url, line = ftp_source
    line.cuts, line.ending = [0] * 99, "stall"
    started = time.monotonic()
    assert_is_no_absent_split(http_source.url)
    assert_is_no_absent_split(url)
    assert time.monotonic() - started < 10


def test_a_wrong_password_and_a_server_without_ranges_are_told(
    http_source: RangeServer, ftp_source: tuple[str, Line]
) -> None:
    assert_is_no_absent_split(ftp_source[0].replace("public-", "wrong-"), "530")
    http_source.line.ranges = False
    assert_is_no_absent_split(http_source.url, "must send ranges", "fetch")


def test_a_file_that_goes_while_it_is_read_is_told(http_source: RangeServer) -> None:
    with so2sat.open_source(f"{http_source.url}/training.h5") as source:
        http_source.fault = lambda number: 404
        with pytest.raises(SourceError, match=r"training\.h5.*404"):
            source.read("sen2", 0, 1)


@pytest.mark.parametrize("url", ["foo://host/data", "ftp://127.0.0.1:1/data", "http://127.0.0.1:1/data"])
def test_a_server_that_is_not_there_is_an_error(url: str, impatient: None) -> None:
    assert_is_no_absent_split(url, url)


def test_a_split_that_a_server_does_not_have_is_absent(tmp_path: Path) -> None:
    write_source(tmp_path / "validation.h5", random_arrays(3))
    with ftp_server(tmp_path, Line()) as ftp, serving(tmp_path) as http:
        for url in (ftp, http.url):
            assert list(so2sat.find_sources(url, "rgb")) == ["validation"]


def test_a_wrong_url_costs_one_request_a_file(http_source: RangeServer) -> None:
    with pytest.raises(so2sat.MissingSourceError, match=r"/elsewhere: no training\.h5"):
        so2sat.find_sources(f"{http_source.url}/elsewhere", "rgb")
    assert http_source.requests == [f"/elsewhere/{name}" for name in so2sat.SOURCE_FILES.values()]


def test_names_of_files_go_before_the_query_of_a_url(http_source: RangeServer) -> None:
    sources = so2sat.find_sources(f"{http_source.url}/?key=a/b", "rgb")
    assert sources["test"] == f"{http_source.url}/testing.h5?key=a/b"
    assert "/testing.h5?key=a/b" in http_source.requests
    assert so2sat.join("what?", "testing.h5") == "what?/testing.h5"


@pytest.mark.parametrize("case", ["absent split", "refusal", "no ranges", "no server", "ftp"])
def test_nothing_that_is_printed_shows_user_password_or_query(
    ftp_source: tuple[str, Line], tmp_path: Path, caplog: pytest.LogCaptureFixture, impatient: None, case: str
) -> None:
    write_source(tmp_path / "data" / "training.h5", random_arrays(3))
    write_source(tmp_path / "data" / "validation.h5", random_arrays(3))
    ftp_source[1].replies["SIZE"] = ["450 Busy."] * 99
    with serving(tmp_path / "data", Line(ranges=case != "no ranges")) as server:
        server.fault = lambda number: 403 if case == "refusal" else None
        url = f"http://me:secret@127.0.0.1:{1 if case == 'no server' else server.server_port}?key=secret"
        with contextlib.nullcontext() if case == "absent split" else pytest.raises(SourceError) as caught:
            prepared(ftp_source[0] if case == "ftp" else url, tmp_path / "cache")
    shown = caplog.text + "".join(traceback.format_exception(caught.value) if caught else [])
    assert "127.0.0.1" in shown
    assert "secret" not in shown
    assert not [path for path in tmp_path.rglob("*") if "secret" in path.name]


def test_text_is_printable_in_one_line_and_the_rest_of_a_url_stays() -> None:
    assert so2sat.printable("a\x1b[31m\n b") == "a�[31m b"
    assert so2sat.printable("(url='ftp://me:secret@host:1/d/x.h5?key=a,b'): no") == "(url='ftp://host:1/d/x.h5'): no"
    for text in ("hf://datasets/us/name@main/x.h5: no", "what?/mine@home/x.h5", "file:///a@b/c"):
        assert so2sat.printable(text) == text


def test_no_connection_outlives_its_file(http_source: RangeServer) -> None:
    """One that did would hang in a process that reads after a fork."""
    for name in ("training.h5", "absent.h5"):
        with contextlib.suppress(so2sat.MissingSourceError), so2sat.open_source(f"{http_source.url}/{name}"):
            assert http_source.connections
        deadline = time.monotonic() + 5
        while http_source.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert http_source.connections == 0


def test_garbage_collection_during_a_remote_read_does_not_deadlock(
    http_source: RangeServer, source_folder: Path
) -> None:
    """HDF5 objects in garbage cycles, collected in the I/O thread, would wait for the lock that the reader holds."""
    code = f"""
        import gc, h5py, so2sat
        class Cycle: pass
        gc.set_threshold(5, 5, 5)
        for _ in range(10):
            for _ in range(3):
                cycle = Cycle()
                cycle.self, cycle.file = cycle, h5py.File({str(source_folder / "testing.h5")!r})
                cycle.array = cycle.file["sen1"]
            with so2sat.open_source("{http_source.url}/training.h5") as source:
                for row in range(0, 300, 100):
                    source.read_labels(row, row + 100)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


# ── Builder ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def prepared(folder: Path | str, cache: Path, config: str | None = "all", **options: Any) -> datasets.DatasetDict:
    """Builds a config into a cache of its own."""
    image_format = {"image_format": options.pop("image_format")} if "image_format" in options else {}
    builder = So2Sat(config_name=config, data_dir=str(folder), cache_dir=str(cache), **image_format)
    builder.download_and_prepare(**options)
    return builder.as_dataset()


def assert_holds_all(dataset: datasets.DatasetDict, arrays: dict[str, Arrays]) -> None:
    """Compares every value of config `all` with the source."""
    assert list(dataset) == list(arrays)
    for split, expected in arrays.items():
        rows = dataset[split].with_format("numpy")[:]
        np.testing.assert_array_equal(rows["label"], expected["label"].argmax(axis=1))
        np.testing.assert_array_equal(rows["sample_id"], np.arange(len(expected["label"])))
        np.testing.assert_array_equal(rows["sentinel1"], expected["sen1"].astype(np.float32))
        np.testing.assert_array_equal(rows["sentinel2"], expected["sen2"].astype(np.float32))
        assert rows["sentinel1"].dtype == np.float32
        assert list(dataset[split].features) == ["label", "sample_id", "sentinel1", "sentinel2"]
        assert dataset[split].features == so2sat.features("all")


def test_config_rgb_is_the_default_and_holds_the_pixels(
    source_folder: Path, source_arrays: dict[str, Arrays], tmp_path: Path
) -> None:
    dataset = prepared(source_folder, tmp_path, config=None, image_format="png")
    assert list(dataset["train"].features) == ["image", "label", "sample_id"]
    for split, expected in source_arrays.items():
        assert dataset[split]["label"][:] == expected["label"].argmax(axis=1).tolist()
        pixels = np.stack([np.asarray(image) for image in dataset[split]["image"]])
        np.testing.assert_array_equal(pixels, tfds_rgb(expected["sen2"]))


@pytest.mark.parametrize("config", ["rgb", "all"])
@pytest.mark.parametrize("num_proc", [None, 2])
def test_the_builder_makes_of_urls_what_it_makes_of_files(
    http_source: RangeServer,
    ftp_source: tuple[str, Line],
    source_folder: Path,
    tmp_path: Path,
    config: str,
    num_proc: int | None,
) -> None:
    local = prepared(source_folder, tmp_path / "local", config)
    for protocol, url in (("http", http_source.url), ("ftp", ftp_source[0])):
        remote = prepared(url, tmp_path / protocol, config, num_proc=num_proc)
        assert list(remote) == list(local)
        for split, rows in local.items():
            assert remote[split].data.table.equals(rows.data.table)


@pytest.mark.parametrize("remote", [False, True])
def test_a_stream_gives_the_same_rows(
    remote: bool, source_folder: Path, http_source: RangeServer, source_arrays: dict[str, Arrays], tmp_path: Path
) -> None:
    folder = http_source.url if remote else str(source_folder)
    builder = So2Sat(config_name="all", data_dir=folder, cache_dir=str(tmp_path))
    stream = builder.as_streaming_dataset()
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == {
        split: len(arrays["label"]) for split, arrays in source_arrays.items()
    }
    examples = list(stream["train"])
    expected = source_arrays["train"]
    np.testing.assert_array_equal([e["sample_id"] for e in examples], np.arange(300))
    np.testing.assert_array_equal([e["label"] for e in examples], expected["label"].argmax(axis=1))
    np.testing.assert_array_equal([e["sentinel2"] for e in examples], expected["sen2"].astype(np.float32))


def test_the_first_example_of_a_remote_stream_costs_one_block(http_source: RangeServer, tmp_path: Path) -> None:
    stream = So2Sat(config_name="all", data_dir=http_source.url, cache_dir=str(tmp_path)).as_streaming_dataset("train")
    next(iter(stream))
    block = so2sat.ROWS_PER_BLOCK * 8 * (32 * 32 * 18 + 17)
    assert http_source.bytes_sent < block + 10 * (1 << 16)


def test_a_stream_has_shards_that_nodes_and_workers_divide(source_folder: Path, tmp_path: Path) -> None:
    stream = So2Sat(config_name="rgb", data_dir=str(source_folder), cache_dir=str(tmp_path)).as_streaming_dataset()
    assert stream["train"].num_shards == 2  # 300 rows
    halves = [[e["sample_id"] for e in split_dataset_by_node(stream["train"], rank, 2)] for rank in (0, 1)]
    assert halves == [list(range(256)), list(range(256, 300))]


SPLITS = ("train", "validation", "test")
SOME_SPLITS = [some for count in (1, 2, 3) for some in itertools.combinations(SPLITS, count)]


@pytest.mark.parametrize("splits", SOME_SPLITS, ids="-".join)
def test_a_config_has_the_splits_whose_files_are_there(
    splits: tuple[str, ...],
    source_folder: Path,
    source_arrays: dict[str, Arrays],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for split in splits:
        (tmp_path / so2sat.SOURCE_FILES[split]).symlink_to(source_folder / so2sat.SOURCE_FILES[split])
    assert_holds_all(prepared(tmp_path, tmp_path / "cache"), {split: source_arrays[split] for split in splits})
    warnings = [record.getMessage() for record in caplog.records if "has no split" in record.getMessage()]
    assert len(warnings) == (len(splits) < 3)
    for split, name in so2sat.SOURCE_FILES.items():
        assert any(split in line and name in line for line in warnings) == (split not in splits)


@pytest.mark.parametrize("remote", [False, True])
def test_an_error_about_missing_files_says_what_the_folder_holds(remote: bool, tmp_path: Path) -> None:
    for name in ("validation.h5.gz", "block/testing.h5", "culture.h5", "notes.txt", "training.h5/x"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    with ftp_server(tmp_path, Line()) as url, pytest.raises(so2sat.MissingSourceError) as caught:
        so2sat.find_sources(f"{url if remote else tmp_path}/data", "rgb_random")
    assert_says(
        str(caught.value), ["/data: no random/training.h5", "block/, culture.h5, training.h5/, validation.h5.gz"]
    )
    assert "notes.txt" not in str(caught.value)


def test_a_folder_of_many_names_is_told_in_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(99):
        (tmp_path / f"{number}.h5").touch()
    assert build.main([str(tmp_path), str(tmp_path / "output")]) == 1
    assert_says(capsys.readouterr().err, [f"{tmp_path}: no training.h5", "0.h5", "89 more"])
    assert build.main(["/", str(tmp_path / "output")]) == 1
    assert_says(capsys.readouterr().err, ["error: /: no training.h5", "dev/"])


@pytest.mark.parametrize("name", so2sat.EDITION_3_FOLDERS)
def test_a_folder_of_edition_3_is_not_taken_for_edition_2(name: str, source_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source_folder, tmp_path / name))
    with pytest.raises(SourceError, match=r"edition 3's splits"):
        so2sat.find_sources(f"{folder}/", "rgb")


def test_without_data_dir_the_error_says_where_the_files_come_from_and_how_to_fetch_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wget -c") as caught:
        So2Sat(config_name="rgb", cache_dir=str(tmp_path)).download_and_prepare()
    edition = facts.EDITIONS[2]
    for word in (edition.homepage, edition.files["validation.h5"].url, "training.h5", "testing.h5", "data_dir="):
        assert word in str(caught.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(so2sat.MissingSourceError, match=r"nowhere: no such folder.*training\.h5"):
        So2Sat(data_dir=str(tmp_path / "nowhere"), cache_dir=str(tmp_path)).download_and_prepare()


def test_an_unknown_image_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'webp' is not one of jpeg, png"):
        So2Sat(config_name="rgb", data_dir=str(tmp_path), cache_dir=str(tmp_path), image_format="webp")


def test_a_folder_that_has_changed_is_not_answered_from_the_cache(tmp_path: Path) -> None:
    for seed, rows in ((1, 20), (2, 25)):
        arrays = {"train": random_arrays(rows, seed), "validation": random_arrays(5, seed + 10)}
        for split, content in arrays.items():
            write_source(tmp_path / so2sat.SOURCE_FILES[split], content)
        assert_holds_all(prepared(tmp_path, tmp_path / "cache"), arrays)


@pytest.mark.parametrize(
    "arguments", [{"data_dir": b"data"}, {"data_dir": ["data"]}, {"data_files": __file__, "data_dir": "."}]
)
def test_what_is_no_folder_is_refused(arguments: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data_dir"):
        So2Sat(config_name="rgb", cache_dir=str(tmp_path), **arguments).download_and_prepare()


def test_data_dir_may_be_a_path(source_folder: Path, tmp_path: Path) -> None:
    builder = So2Sat(config_name="rgb", data_dir=source_folder, cache_dir=str(tmp_path))
    assert next(iter(builder.as_streaming_dataset(split="test")))["sample_id"] == 0


def test_a_relative_folder_is_not_mixed_up_with_its_namesake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (1, 2):
        arrays = {"train": random_arrays(20, seed), "validation": random_arrays(5, seed + 10)}
        here = tmp_path / str(seed)
        for split, content in arrays.items():
            write_source(here / "data" / so2sat.SOURCE_FILES[split], content)
        monkeypatch.chdir(here)
        assert_holds_all(prepared("data", tmp_path / "cache"), arrays)


def test_a_synthetic_source_is_said_to_be_synthetic(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("training.h5", "validation.h5"):
        with h5py.File(write_source(tmp_path / name, random_arrays(3)), "r+") as h5:
            h5.attrs["synthetic"] = "made up for a test."
    builder = So2Sat(config_name="rgb", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    assert builder.as_dataset(split="train").info.description.startswith("SYNTHETIC: made up for a test.")
    assert "training.h5 is synthetic" in caplog.text
