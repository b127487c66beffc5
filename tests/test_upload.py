"""Uploads to a Hub on loopback: all or nothing, whatever happens on the way."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fnmatch
import hashlib
import io
import itertools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.utils._http
import pyarrow as pa
import pytest

import build
import hub
import sample
import so2sat
import upload
from conftest import contents, hearing, legacy_python
from publishing import card, layout, manifest

NUMBERS = itertools.count()
CHECKED: set[str] = set()  # commits that were looked at
SENDING = ("create", "preupload", "batch", "transfer", "verify", "commit", "tag")
SHARD = "all/test-00000-of-00001.parquet"


class Dataset(NamedTuple):
    """A dataset on the Hub that is not there yet, and the command that uploads to it."""

    server: hub.Hub
    name: str
    # Exit status and what was printed. The look at the result comes only when asked for: `loads=True`.
    upload: Callable[..., tuple[int, str]]

    def create(self, files: Mapping[str, bytes] | None = None, private: bool = False) -> hub.Repository:
        """Makes it, with files of somebody else."""
        repository = self.server.create(self.name, private)
        if files:
            self.server.commit(self.name, files)
        return repository

    def assert_refused(self, because: str, folder: Path | str, *options: str, **more: str | None) -> None:
        """An upload is refused, and nothing is sent or changed."""
        self.server.requests.clear()
        code, text = self.upload(folder, *options, **more)
        assert (code, because in text) == (1, True), text
        assert not self.server.asked(*SENDING)

    @property
    def repository(self) -> hub.Repository:
        return self.server.repository(self.name)

    def assert_equal(self, folder: Path, revision: str = "main", commits: int = 1) -> None:
        """It holds the folder, brought by so many commits after the first, and nobody else's."""
        files = self.repository.files(revision)
        files.pop(".gitattributes")
        assert files == self.wanted(folder)
        assert len(self.repository.history(revision)) == 1 + commits

    def wanted(self, folder: Path) -> dict[str, bytes]:
        """What it must hold: the folder's files, with the card for this name."""
        files = contents(folder)
        statistics = json.loads(files["statistics.json"])["configs"]
        return {**files, "README.md": card.render(manifest.load_built(folder), statistics, self.name).encode()}


def check_commit(repository: hub.Repository, commit: hub.Commit) -> None:
    """A reader of this commit finds a whole repository: files as the manifest has them, and no other shard."""
    files = repository.files(commit.sha)
    listed = json.loads(files["manifest.json"])
    sums = {**listed["files"], **{name: record["sha256"] for name, record in listed["shards"].items()}}
    assert {name: hashlib.sha256(files[name]).hexdigest() for name in sums} == sums
    ours = {name for name in files if name.split("/")[0] in layout.CONFIGS}
    assert ours == {*listed["shards"]}
    assert not files.keys() & {"so2sat.py", "dataset_infos.json"}
    for config in hub.front_matter(files["README.md"].decode())["configs"]:
        for split in config["data_files"]:
            found = {name for name in files if fnmatch.fnmatch(name, split["path"])}
            assert found == {name for name in ours if name.startswith(f"{config['config_name']}/{split['split']}-")}
            assert found
            ours -= found
    assert not ours


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hub.Hub]:
    """A Hub that this process and its children ask, without waiting."""
    constants = huggingface_hub.constants
    huggingface_hub.set_client_factory(upload._client)
    with hub.serving(tmp_path_factory.mktemp("hub")) as running, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("HF_") and name != "HF_HOME"]:
            patch.delenv(name)
        patch.setenv("HF_ENDPOINT", running.endpoint)
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        for name, value in {"ENDPOINT": running.endpoint, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}.items():
            patch.setattr(constants, name, value)
        patch.setattr(huggingface_hub, "set_client_factory", lambda factory: None)  # it would close open connections
        patch.setattr(huggingface_hub.utils._http, "time", types.SimpleNamespace(sleep=lambda seconds: None))
        patch.setattr(upload, "_wait", lambda state: 0.0)
        yield running
    huggingface_hub.set_client_factory(huggingface_hub.utils._http.default_client_factory)


@pytest.fixture(autouse=True)
def _checked(server: hub.Hub) -> Iterator[None]:
    """After each test: what readers could ever see was a whole repository, and the Hub was asked what it knows."""
    yield
    for repository in server.repositories.values():
        for commit in repository.commits.values():
            if commit.author == "maker" and commit.sha not in CHECKED:
                check_commit(repository, commit)
                CHECKED.add(commit.sha)
    assert (server.unknown, server.errors) == ([], [])
    server.faults.clear()
    server.hooks.clear()
    server.requests.clear()


@pytest.fixture
def dataset(server: hub.Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dataset:
    name, look = f"org/so2sat-{next(NUMBERS)}", upload._load_back

    def run(
        folder: Path | str, *options: str, to: str = name, loads: bool = False, token: str | None = "write"
    ) -> tuple[int, str]:
        secret = server.tokens[token].secret if token in server.tokens else token
        monkeypatch.setenv("HF_TOKEN", secret or "")
        monkeypatch.setattr(upload, "_load_back", look if loads else lambda *_: None)
        try:
            code = upload.main([str(folder), to, *options])
        except SystemExit as error:
            code = int(error.code or 0)
        text = "".join(capsys.readouterr())
        assert not any(known in text for known in (secret or "hf_", hub.SIGNATURE))
        assert len(re.findall(r"^(?:\S+: )?error: ", text, re.MULTILINE)) == (1 if code else 0), text
        return code, text

    return Dataset(server, name, run)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source files of rgb, all and geo."""
    folder = tmp_path_factory.mktemp("data")
    sample.write_sample(folder, {"train": 20, "validation": 21, "test": 22}, 0)
    return folder


@pytest.fixture(scope="module")
def local(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small repository. Read only."""
    folder = tmp_path_factory.mktemp("local") / "so2sat"
    build.build(str(source), folder)
    return folder


@pytest.fixture(scope="module")
def many(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config rgb of the same data in four shards for each split. Read only."""
    folder = tmp_path_factory.mktemp("many") / "so2sat"
    small = dict.fromkeys(layout.LIMITS, layout.Limits(group_rows=5, shard_rows=5))
    build.build(str(source), folder, ["rgb"], limits=small)
    assert len([*folder.glob("rgb/*")]) == 12
    return folder


@pytest.fixture
def copy(local: Path, tmp_path: Path) -> Path:
    """A copy of `local` to change."""
    return Path(shutil.copytree(local, tmp_path / "so2sat"))


def listing(folder: Path, **sums: str) -> None:
    """Lets the manifest list more files."""
    built = manifest.load_built(folder)
    built.files.update(sums)
    built.save(folder)


# ── What it is for ───────────────────────────────────────────────────────────────────────────────────────────────────

USE = """
import json, os, sys
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import snapshot_download
from pathlib import Path
name, version, local, *configs = sys.argv[1:]
assert datasets.__version__.startswith(version)
found = {"default": datasets.load_dataset(name, split="test").column_names}
for config in configs:
    info = datasets.load_dataset_builder(name, config).info
    loaded = datasets.load_dataset(name, config)
    stream = datasets.load_dataset(name, config, split="train", streaming=True)
    for split, rows in loaded.items():
        tables = [pq.read_table(path) for path in sorted(Path(local, config).glob(f"{split}-*.parquet"))]
        expected = datasets.Dataset(pa.concat_tables(tables)).cast(rows.features)
        assert rows.features == info.features
        assert rows.with_format("arrow")[:].equals(expected.with_format("arrow")[:]), (config, split)
    found[config] = {
        "told": {split: told.num_examples for split, told in info.splits.items()},
        "rows": {split: len(rows) for split, rows in loaded.items()},
        "names": info.features["label"].names,
        "labels": loaded["train"]["label"][:],
        "streamed": [row["label"] for row in stream],
    }
one = datasets.load_dataset(name, "all", split="train", streaming=True, columns=["sentinel2", "label"])
found["columns"] = sorted({key for row in one for key in row})
snapshot = Path(snapshot_download(name, repo_type="dataset", local_dir=f"{os.environ['HF_HOME']}/snapshot"))
assert (snapshot / "manifest.json").read_bytes() == Path(local, "manifest.json").read_bytes()
print(json.dumps(found), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("version", ["5", "3.6"])
def test_what_was_uploaded_loads_in_every_way(dataset: Dataset, version: str, local: Path, source: Path) -> None:
    code, text = dataset.upload(local, loads=version == "5")
    assert code == 0, text
    calls = f'load_dataset("{dataset.name}", "rgb")\nload_dataset("{dataset.name}", "all")\n'
    assert f"{dataset.server.endpoint}/datasets/{dataset.name}\n{calls}" in text
    dataset.assert_equal(local)
    python = str(legacy_python()) if version == "3.6" else sys.executable
    run = [python, "-c", USE, dataset.name, version, str(local), "rgb", "all", "geo"]
    done = subprocess.run(run, env=dataset.server.environment(home=version), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    with h5py.File(source / "training.h5") as h5:
        labels = h5["label"][:].argmax(axis=1).tolist()
    assert found["default"] == ["image", "label", "sample_id"]
    assert found["columns"] == ["label", "sentinel2"]
    for config in ("rgb", "all", "geo"):
        assert found[config]["told"] == found[config]["rows"] == {"train": 20, "validation": 21, "test": 22}
        assert found[config]["names"] == list(so2sat.LABELS)
        assert found[config]["labels"] == found[config]["streamed"] == labels


def test_a_dry_run_tells_the_plan_and_changes_nothing(dataset: Dataset, local: Path) -> None:
    code, text = dataset.upload(local, "--dry-run")
    assert code == 0
    files = dataset.wanted(local)
    assert f"{len(files)} files are new or changed, {sum(map(len, files.values())):,} bytes" in text
    assert dataset.name not in dataset.server.repositories
    assert not dataset.server.asked(*SENDING)


def test_the_card_loads_the_dataset_under_its_name_on_the_hub(dataset: Dataset, local: Path) -> None:
    dataset.upload(local)
    text = dataset.repository.files()["README.md"].decode()
    assert f'load_dataset("{dataset.name}"' in text
    assert 'load_dataset("so2sat"' not in text


@pytest.mark.parametrize("options", [[], ["--create-pr"]])
def test_data_may_go_by_xet(dataset: Dataset, options: list[str], local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    dataset.create()
    dataset.server.fail("shard", "503")
    code, text = dataset.upload(local, *options)
    assert code == 0, text
    assert dataset.server.asked("xorb")
    assert not dataset.server.asked("transfer")
    dataset.assert_equal(local, "refs/pr/1" if options else "main")


def test_what_is_up_to_date_gets_no_commit(dataset: Dataset, local: Path) -> None:
    dataset.upload(local)
    dataset.server.requests.clear()
    code, text = dataset.upload(local)
    assert (code, "up to date: no commit is needed" in text) == (0, True)
    assert not dataset.server.asked(*SENDING)
    dataset.assert_equal(local)


def test_one_commit_brings_data_and_takes_away_what_is_stale(
    dataset: Dataset, local: Path, copy: Path, source: Path, tmp_path: Path
) -> None:
    dataset.upload(local)
    stale = {"so2sat.py": b"", "dataset_infos.json": b"{}", "rgb/train-00007-of-00008.parquet": b"1"}
    dataset.server.commit(dataset.name, {"LICENSE": b"mine", **stale})
    shutil.copytree(source, tmp_path / "edition1")
    for file in (tmp_path / "edition1").glob("testing*"):
        file.unlink()
    build.build(str(tmp_path / "edition1"), copy, drop=True)
    code, text = dataset.upload(copy)
    assert code == 0, text
    assert all(f"deleted: {path}" in text for path in (*stale, SHARD))
    files = dataset.repository.files()
    assert files.pop("LICENSE") == b"mine"
    files.pop(".gitattributes")
    assert files == dataset.wanted(copy)
    assert len(dataset.repository.history()) == 4


def test_other_shards_take_the_place_of_the_old_in_one_commit(dataset: Dataset, local: Path, many: Path) -> None:
    assert dataset.upload(local)[0] == 0
    code, text = dataset.upload(many)
    assert code == 0, text
    assert "    deleted: all/test-00000-of-00001.parquet\n" in text
    dataset.assert_equal(many, commits=2)
    assert dataset.upload(local)[0] == 0
    dataset.assert_equal(local, commits=3)


def test_of_a_picture_that_has_changed_only_that_is_sent(dataset: Dataset, copy: Path) -> None:
    dataset.upload(copy)
    picture = copy / "assets" / "classes.png"
    picture.write_bytes(picture.read_bytes() + b"\0")
    listing(copy, **{"assets/classes.png": hashlib.sha256(picture.read_bytes()).hexdigest()})
    dataset.server.requests.clear()
    assert dataset.upload(copy)[0] == 0
    assert [request.received for request in dataset.server.asked("transfer")] == [picture.stat().st_size]
    dataset.assert_equal(copy, commits=2)


def test_a_branch_is_changed_alone(dataset: Dataset, local: Path) -> None:
    repository = dataset.create()
    repository.refs["refs/heads/next"] = repository.at("main").sha
    code, text = dataset.upload(local, "--revision", "next")
    assert code == 0
    assert f'load_dataset("{dataset.name}", "rgb", revision="next")' in text
    dataset.assert_equal(local, "next")
    assert repository.files().keys() == {".gitattributes"}


def test_private_is_private(dataset: Dataset, local: Path) -> None:
    assert dataset.upload(local, "--private")[0] == 0
    assert dataset.repository.private


def test_a_pull_request_leaves_the_branch_alone_and_is_found_again(dataset: Dataset, local: Path) -> None:
    repository = dataset.create(private=True)
    code, text = dataset.upload(local, "--create-pr", loads=True)
    assert code == 0, text
    assert f"{dataset.server.endpoint}/datasets/{dataset.name}/discussions/1\n" in text
    assert 'revision="refs/pr/1")' in text
    assert len(repository.history()) == 1
    dataset.assert_equal(local, "refs/pr/1")
    assert "up to date: refs/pr/1 proposes exactly this" in dataset.upload(local, "--create-pr")[1]
    assert [*repository.pulls] == [1]


def test_a_pull_request_that_was_closed_or_changed_is_made_again(dataset: Dataset, local: Path) -> None:
    repository = dataset.create()
    dataset.upload(local, "--create-pr")
    repository.pulls[1].status = "closed"
    dataset.upload(local, "--create-pr")
    dataset.server.commit(dataset.name, {"statistics.json": b"{}"}, revision="refs/pr/2")
    assert dataset.upload(local, "--create-pr")[0] == 0
    assert [*repository.pulls] == [1, 2, 3]
    dataset.assert_equal(local, "refs/pr/3")


def test_a_tag_is_set_once_and_never_moved(dataset: Dataset, local: Path, copy: Path, many: Path) -> None:
    dataset.server.fail("tag", "lost")
    assert dataset.upload(local, "--tag", "v2.1.0")[0] == 0
    first = dataset.repository.at("main").sha
    assert dataset.repository.at("v2.1.0").sha == first
    dataset.server.commit(dataset.name, {"LICENSE": b"theirs"})
    assert dataset.upload(local, "--tag", "v2.1.0")[0] == 0  # it is on the same files
    dataset.server.requests.clear()
    dataset.assert_refused("has the tag v2.1.0 already", many, "--tag", "v2.1.0")
    assert dataset.repository.at("v2.1.0").sha == first


# ── Cards that others have changed ───────────────────────────────────────────────────────────────────────────────────


def add_config(text: str) -> str:
    return text.replace(
        "configs:\n", "configs:\n- config_name: mine\n  data_files:\n  - split: train\n    path: mine/train-*\n", 1
    )


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (add_config, "with the configs mine"),
        (lambda text: text + "A remark of ours.\n", "+A remark of ours."),
        (lambda text: text.replace("# So2Sat LCZ42\n", "# Something else\n"), "-# So2Sat LCZ42"),
        (lambda text: "---\nconfigs: [\n---\n\x1b[31mred", "+?[31mred"),
        (lambda text: "---\nconfigs: 7\n---\n", "+configs: 7"),
    ],
)
def test_a_card_that_others_changed_is_told_and_replaced_only_when_asked(
    dataset: Dataset, edit: Callable[[str], str], told: str, local: Path
) -> None:
    dataset.upload(local)
    text = edit(dataset.repository.files()["README.md"].decode())
    theirs = {"README.md": text.encode(), "mine/train-00000-of-00001.parquet": b"theirs"}
    dataset.server.commit(dataset.name, theirs)
    for options in ([], ["--dry-run"], ["--create-pr"]):
        dataset.assert_refused(told, local, *options)
    code, text = dataset.upload(local, "--replace-card")
    assert (code, told in text, "\x1b" in text) == (0, True, False)
    files = dataset.repository.files()
    assert files["README.md"] == dataset.wanted(local)["README.md"]
    assert files["mine/train-00000-of-00001.parquet"] == b"theirs"


def test_a_card_of_an_earlier_upload_is_no_change_by_others(dataset: Dataset, local: Path, many: Path) -> None:
    dataset.upload(local)
    dataset.server.commit(dataset.name, {"LICENSE": b"theirs"})
    code, text = dataset.upload(many)
    assert (code, "others" in text) == (0, False)


def test_a_card_that_was_there_before_is_somebody_elses(dataset: Dataset, local: Path) -> None:
    dataset.create({"README.md": b"---\nlicense: mit\n---\nOur words.\n"})
    dataset.assert_refused("+Our words.", local)
    assert dataset.upload(local, "--replace-card")[0] == 0


# ── Preflight ────────────────────────────────────────────────────────────────────────────────────────────────────────


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def outside(path: Path) -> None:
    """Moves a file or a folder out of its folder and leaves a link to it."""
    target = Path(shutil.move(path, Path(str(path.parent) + f"-outside-{path.name}")))
    path.symlink_to(target)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def listed(name: str) -> Callable[[Path], None]:
    """Adds a file, and lists it with its checksum."""

    def add(folder: Path) -> None:
        (folder / name).write_text("secret")
        listing(folder, **{name: hashlib.sha256(b"secret").hexdigest()})

    return add


def renamed(name: str) -> Callable[[Path], None]:
    """Gives a shard another name, in the manifest too."""

    def rename(folder: Path) -> None:
        built = manifest.load_built(folder)
        built.shards[name] = built.shards.pop(SHARD)
        shutil.move(folder / SHARD, folder / name)
        built.save(folder)

    return rename


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
    "incomplete": (lambda folder: (folder / "README.md").write_text(card.INCOMPLETE), "incomplete"),
    "a shard is missing": (lambda folder: (folder / SHARD).unlink(), SHARD),
    "a shard has changed": (lambda folder: flip(folder / SHARD), SHARD),
    "a picture has changed": (lambda folder: flip(folder / "assets/classes.png"), "assets/classes.png"),
    "a stray file": (lambda folder: (folder / "notes.txt").touch(), "notes.txt"),
    "a script": (lambda folder: (folder / "so2sat.py").touch(), "so2sat.py"),
    "legacy metadata": (lambda folder: (folder / "dataset_infos.json").touch(), "dataset_infos.json"),
    "a secret": (listed(".env"), ".env"),
    "a file that hides others": (listed(".gitignore"), ".gitignore"),
    "a file beside the repository": (listed("../beside.png"), "../beside.png"),
    "an absolute path": (listed("/dev/shm/so2sat-test"), "/dev/shm/so2sat-test"),
    "another file of its own": (listed("assets/other.png"), "assets/other.png"),
    "a shard of no config": (renamed("all/../geo.parquet"), "geo.parquet"),
    "a shard of no split": (renamed("all/secret-00000-of-00001.parquet"), "all/secret-00000-of-00001.parquet"),
    "a link to a shard": (lambda folder: outside(folder / SHARD), SHARD),
    "a link to a folder": (lambda folder: outside(folder / "rgb"), "rgb/"),
    "a link to the card": (lambda folder: outside(folder / "README.md"), "README.md"),
    "a link to the manifest": (lambda folder: outside(folder / "manifest.json"), "manifest.json"),
    "a link inside": (lambda folder: outside(folder / "statistics.json"), "statistics.json"),
    "a pipe": (lambda folder: pipe(folder / "assets/bands.png"), "assets/bands.png"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_sound_is_not_sent(dataset: Dataset, damage: str, copy: Path) -> None:
    change, problem = DAMAGES[damage]
    change(copy)
    dataset.assert_refused(problem, copy)


def test_no_name_is_taken_under_which_it_can_not_be_loaded(dataset: Dataset, local: Path) -> None:
    dataset.assert_refused("train.py", local, to="org/train")
    assert dataset.upload(local, to="org/train.so2sat")[0] == 0
    assert "train.py" in dataset.server.repository("org/train.so2sat").files()


@pytest.mark.parametrize(
    ("token", "problem"),
    [
        (None, "no token of the Hub: run 'hf auth login', or set HF_TOKEN"),
        ("hf_unknown", "does not know this token"),
        ("read", "this token may only read"),
        ("hf_ünknown", "the token has letters"),
        ("stranger", "who is not in org and can't make it"),
    ],
)
def test_a_token_that_may_not_write_is_told_before_anything_is_sent(
    dataset: Dataset, token: str | None, problem: str, local: Path
) -> None:
    dataset.assert_refused(problem, local, token=token)


def test_who_may_not_write_is_told_of_pull_requests(dataset: Dataset, local: Path) -> None:
    dataset.create()
    dataset.assert_refused("--create-pr", local, token="stranger")
    assert dataset.upload(local, "--create-pr", token="stranger")[0] == 0
    dataset.assert_equal(local, "refs/pr/1")


@pytest.mark.parametrize(
    ("there", "options", "problem"),
    [
        (True, ["--revision", "nowhere"], "Revision Not Found"),
        (False, ["--revision", "next"], "it has no revision next"),
        (True, ["--private"], "is there already, and public"),
        (True, ["--create-pr", "--tag", "v1"], "leave out --revision and --tag"),
        (True, ["--create-pr", "--revision", "next"], "leave out --revision and --tag"),
    ],
)
def test_options_that_do_not_fit_what_is_there_are_refused(
    dataset: Dataset, there: bool, options: list[str], problem: str, local: Path
) -> None:
    if there:
        dataset.create()
    dataset.assert_refused(problem, local, *options)


def test_what_the_hub_would_leave_out_is_refused(dataset: Dataset, local: Path) -> None:
    dataset.create({".gitignore": b"*.parquet\n"})
    dataset.assert_refused("has a .gitignore", local)


def test_a_card_that_the_hub_refuses_is_told(dataset: Dataset, local: Path) -> None:
    dataset.server.fail("validate", "400")
    dataset.assert_refused("the Hub refuses the card", local)


@pytest.mark.parametrize("name", ["so2sat", "a/b/c", "a/-b", "a/b..c", "a/b.git", "ä/b", "org/", "hf://org/so2sat"])
def test_what_is_no_name_is_a_usage_error(dataset: Dataset, local: Path, name: str) -> None:
    code, text = dataset.upload(local, to=name)
    assert (code, "argument ORG/NAME: " in text) == (2, True)


def test_help_has_examples(dataset: Dataset) -> None:
    assert "python scripts/upload.py build/so2sat ORG/so2sat --dry-run" in dataset.upload("--help")[1]


# ── Disturbances ─────────────────────────────────────────────────────────────────────────────────────────────────────

# Stage, how many of its requests come through before, options, whether the result is loaded, kind of the fault.
KINDS = ("429", "500", "503", "cut", "lost")
EARLY = ("whoami", "validate", "create")  # their requests don't tell the repository
Case = tuple[str, int, tuple[str, ...], bool, str]
FAULTS: list[Case] = [
    *((stage, 0, (), False, kind) for stage in ("auth", "info", "tree", *EARLY, *SENDING[1:-1]) for kind in KINDS),
    *((stage, 1, (), False, kind) for stage in ("validate", "info", "tree", "transfer") for kind in ("503", "lost")),
    *((stage, 0, ("--create-pr",), False, kind) for stage in ("discussions", "commit") for kind in KINDS),
    *((stage, 0, ("--create-pr",), False, kind) for stage in ("batch", "transfer") for kind in ("cut", "lost")),
    *((stage, 0, ("--tag", "v1"), False, kind) for stage in ("refs", "tag") for kind in KINDS),
    ("resolve", 0, (), True, "503"),
    ("download", 0, (), True, "cut"),
]


@pytest.fixture(scope="module")
def outcomes(server: hub.Hub, many: Path) -> dict[Case, tuple[str, hub.Fault, int]]:
    """For each fault the repository that it befell, the fault, and how the upload ended, after at most one rerun."""

    def suffer(case: Case) -> tuple[str, hub.Fault, int]:
        stage, after, options, loads, kind = case
        name = f"org/{'-'.join(map(str, (stage, after, loads, kind, *options)))}".replace("--", "")
        if stage != "create":
            server.create(name)
        fault = server.fail(stage, kind, after=after, path="" if stage in EARLY else name)
        code = upload.main([str(many), name, *options]) and upload.main([str(many), name, *options])
        return name, fault, code

    load_back = upload._load_back
    told: dict[Case, tuple[str, hub.Fault, int]] = {}
    with pytest.MonkeyPatch.context() as patch, concurrent.futures.ThreadPoolExecutor(4) as pool:
        patch.setenv("HF_TOKEN", "hf_write")
        patch.setattr(upload, "_ended_at_once", contextlib.nullcontext)  # signals are the main thread's
        patch.setattr(
            upload,
            "_load_back",
            lambda *of: load_back(*of) if of[2].startswith(("org/resolve", "org/download")) else None,
        )
        for case in [case for case in FAULTS if case[0] in EARLY]:
            told[case] = suffer(case)
        others = [case for case in FAULTS if case not in told]
        told.update(zip(others, pool.map(suffer, others)))
    return told


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: "-".join(map(str, case)))
def test_one_failure_anywhere_changes_nothing_in_the_end(
    dataset: Dataset, case: Case, outcomes: dict[Case, tuple[str, hub.Fault, int]], many: Path
) -> None:
    name, fault, code = outcomes[case]
    dataset = dataset._replace(name=name)
    assert (code, fault.times) == (0, 0)
    is_proposed = "--create-pr" in case[2]
    dataset.assert_equal(many, "refs/pr/1" if is_proposed else "main")
    assert [*dataset.repository.pulls] == ([1] if is_proposed else [])
    assert len(dataset.repository.commits) == 2


@pytest.mark.parametrize("stage", ["whoami", "validate", "transfer", "commit"])
def test_a_hub_that_stays_away_is_told_in_one_line(dataset: Dataset, stage: str, local: Path) -> None:
    dataset.server.fail(stage, "503", times=float("inf"))
    code, text = dataset.upload(local)
    assert (code, "run the same command again" in text) == (1, True)
    dataset.server.faults.clear()
    assert dataset.upload(local)[0] == 0
    dataset.assert_equal(local)


@pytest.mark.parametrize("status", ["401", "402", "403", "404", "413", "422"])
@pytest.mark.parametrize("stage", ["preupload", "transfer", "commit"])
def test_what_would_fail_again_is_asked_once_and_told_so(dataset: Dataset, stage: str, status: str, many: Path) -> None:
    dataset.server.fail(stage, status, times=float("inf"))
    code, text = dataset.upload(many, "--debug")
    assert (code, "run the same command again" in text) == (1, False), text
    assert len(dataset.server.asked(stage)) <= (upload.FILES_AT_ONCE if stage == "transfer" else 1)
    assert dataset.repository.files().keys() == {".gitattributes"}


STAGES = ("whoami", "info", "tree", "paths", "refs", "preupload", "batch", "commit", "create", "auth", "validate")
ODD = {"null": "null", "object": "{}", "list": "[{}]", "number": "7", "deep": "[" * 100_000, "bytes": "\udcff"}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("stage", STAGES)
def test_an_answer_of_another_shape_is_told_in_one_line(dataset: Dataset, stage: str, kind: str, many: Path) -> None:
    if stage != "create":
        dataset.create({"README.md": b"theirs"})
    fault = dataset.server.fail(stage, ODD[kind], times=float("inf"))
    dataset.upload(many, "--tag", "v1", "--replace-card")
    assert dataset.server.asked(stage)[0].fault == fault.kind
    dataset.server.faults.clear()
    if stage in ("create", "batch", "commit"):  # what changes something
        assert dataset.upload(many, "--replace-card")[0] == 0


@pytest.mark.parametrize("stage", ["whoami", "tree", "paths", "resolve", "batch"])
def test_an_answer_may_not_fill_the_memory(dataset: Dataset, stage: str, many: Path) -> None:
    dataset.create({"README.md": b"theirs"})
    dataset.server.fail(stage, "x" * (upload.MAX_ANSWER_BYTES + 1))
    code, text = dataset.upload(many, "--replace-card")
    assert (code, "an answer of more than" in text) == (1, True)


@pytest.mark.parametrize(
    ("place", "bug"),
    [
        ("_oid", TypeError("bug")),
        ("_tree", KeyError("bug")),
        ("_validate", ValueError("bug")),
        ("_send", RuntimeError("bug")),
        ("_first_row", pa.ArrowInvalid("bug")),
    ],
)
def test_a_bug_is_not_told_as_the_hubs_nor_tried_again(
    dataset: Dataset, bug: Exception, place: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(*_: Any) -> None:
        calls.append(place)
        raise bug

    dataset.create()
    monkeypatch.setattr(upload, place, fail)
    with pytest.raises(type(bug), match="bug"):
        dataset.upload(local, loads=True)
    assert len(calls) == 1


@pytest.mark.parametrize("stage", ["preupload", "commit"])
def test_a_change_by_somebody_else_is_refused_and_the_next_run_works(dataset: Dataset, stage: str, local: Path) -> None:
    dataset.create()

    def meddle(request: hub.Request) -> None:
        dataset.server.hooks.clear()
        dataset.server.commit(dataset.name, {"LICENSE": b"theirs"})

    dataset.server.on(stage, meddle)
    code, text = dataset.upload(local)
    assert (code, "somebody else has changed main meanwhile" in text) == (1, True)
    assert [commit.title for commit in dataset.repository.history()] == ["Someone else's", "initial commit"]
    assert dataset.upload(local)[0] == 0
    assert dataset.repository.files()["LICENSE"] == b"theirs"


@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_after_an_interruption_only_what_is_missing_is_sent(
    dataset: Dataset, how: signal.Signals, status: int, local: Path
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    transfers = itertools.count()

    def strike(request: hub.Request) -> None:
        if next(transfers) == 6 and started:  # the second lot of files
            started[0].send_signal(how)
            started[0].wait(20)  # it does not wait for this answer

    dataset.server.on("transfer", strike)
    command = [sys.executable, upload.__file__, str(local), dataset.name]
    process = hearing(command, env=dataset.server.environment(), stderr=subprocess.PIPE)
    started.append(process)
    error = process.communicate()[1].decode()
    assert process.returncode == status, error
    assert "Traceback" not in error
    while not all(request.done for request in dataset.server.requests):
        time.sleep(0.01)  # what the client sent before its end may still arrive
    assert dataset.repository.files().keys() == {".gitattributes"}
    kept = sum(len(content) for oid, content in dataset.repository.contents.items() if len(oid) == 64)
    assert kept > 0
    dataset.server.hooks.clear()
    dataset.server.requests.clear()
    assert dataset.upload(local)[0] == 0
    large = sum(len(content) for path, content in contents(local).items() if path.endswith((".parquet", ".png")))
    assert sum(request.received for request in dataset.server.asked("transfer")) == large - kept
    dataset.assert_equal(local)


# ── Surroundings ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_card_that_changes_meanwhile_is_uploaded_as_it_was(dataset: Dataset, local: Path, copy: Path) -> None:
    dataset.server.on("transfer", lambda request: (copy / "statistics.json").write_text("{}"))
    assert dataset.upload(copy)[0] == 0
    dataset.assert_equal(local)


def test_a_folder_that_changes_meanwhile_is_not_committed(dataset: Dataset, copy: Path) -> None:
    def rebuild(request: hub.Request) -> None:
        shutil.copy(copy / SHARD, copy / "new")
        (copy / "new").replace(copy / SHARD)

    dataset.server.on("batch", rebuild)
    code, text = dataset.upload(copy)
    assert (code, "was changed while it was sent; nothing was committed" in text) == (1, True)
    assert dataset.repository.files().keys() == {".gitattributes"}
    dataset.server.hooks.clear()
    assert dataset.upload(copy)[0] == 0
    dataset.assert_equal(copy)


@pytest.mark.parametrize(
    ("endpoint", "problem"),
    [
        ("http://127.0.0.1:9", "Connection refused"),
        ("ftp://127.0.0.1", "ftp"),
        ("huggingface.co", "protocol"),
        ("http://127.0.0.1:nine", "nine"),
        ("http://no-such-host.invalid", "no-such-host.invalid"),
    ],
)
def test_an_endpoint_that_is_none_is_told_at_once(
    dataset: Dataset, endpoint: str, problem: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    code, text = dataset.upload(local, "--debug")
    assert (code, "HF_ENDPOINT" in text, "next attempt" in text) == (1, True, False), text


def test_offline_is_told_in_one_line(dataset: Dataset, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    code, text = dataset.upload(local)
    assert (code, "offline mode" in text) == (1, True)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("token hf_write is unknown", "token ... is unknown"),
        ("at https://maker:se@cret@host/a?b no", "at https://host/a?... no"),
        ("for 'https://host/a?X-Amz-Signature=5167' (404)", "for 'https://host/a?...' (404)"),
        ("red \x1b[31m\n\n two\r lines", "red ?[31m  two  lines"),
    ],
)
def test_what_is_printed_holds_no_secrets_and_no_controls(
    text: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    assert upload._shown(text) == shown


def test_the_password_of_an_endpoint_is_not_printed(
    dataset: Dataset, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = dataset.server.endpoint.replace("://", "://maker:secret@")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    dataset.server.fail("whoami", "402")
    code, text = dataset.upload(local, "--debug")
    assert (code, dataset.server.endpoint in text, "secret" in text) == (1, True, False), text


def test_what_huggingface_hub_logs_has_no_signatures(
    dataset: Dataset, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (handler,) = logging.getLogger("huggingface_hub").handlers
    monkeypatch.setattr(handler, "stream", logged := io.StringIO())
    dataset.server.fail("transfer", "503")
    assert dataset.upload(local)[0] == 0
    assert dataset.server.storage in logged.getvalue()
    assert hub.SIGNATURE not in logged.getvalue()


def test_names_and_places_do_not_matter(dataset: Dataset, local: Path, tmp_path: Path) -> None:
    """A read-only folder behind a link with another name, a token in a file, an address with a slash at its end, and a
    folder that is called like the dataset, which load_dataset would prefer to the Hub.
    """
    folder = Path(shutil.copytree(local, tmp_path / "Städte ☂" / "so2sat"))
    folder.chmod(0o555)
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / dataset.name / "rgb").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text("hf_write\n")
    more = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": f"{dataset.server.endpoint}/"}
    command = [sys.executable, upload.__file__, "link", dataset.name]
    done = subprocess.run(
        command, env={**dataset.server.environment(None), **more}, cwd=tmp_path, capture_output=True, text=True
    )
    folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert f"\n{dataset.server.endpoint}/datasets/{dataset.name}\n" in done.stdout
    dataset.assert_equal(local)
