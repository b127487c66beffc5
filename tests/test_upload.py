"""Uploads to a Hub on loopback: all or nothing, whatever happens on the way."""

from __future__ import annotations

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
import pytest
import yaml

import build
import hub
import sample
import so2sat
import upload
from conftest import contents, hearing, legacy_python
from publishing import card, manifest
from publishing.configs import CONFIGS, Limits

NUMBERS = itertools.count()
SENDING = ("create", "preupload", "batch", "transfer", "verify", "commit", "tag")
SHARD = "all/test-00000-of-00001.parquet"
INITIAL = {".gitattributes"}  # what the Hub's first commit holds


class Dataset(NamedTuple):
    """A dataset on the Hub that is not there yet, and the command that uploads to it."""

    server: hub.Hub
    name: str
    run: Callable[..., tuple[int, str]]  # exit status and what was printed

    def upload(self, folder: Path, *options: str, **more: Any) -> str:
        """Uploads a folder and returns what was printed. The result is loaded only when asked for: `loads=True`."""
        code, text = self.run(folder, *options, **more)
        assert code == 0, text
        return text

    def fails(self, because: str, folder: Path, *options: str, **more: Any) -> str:
        """Uploads a folder, which ends in an error that tells of something."""
        code, text = self.run(folder, *options, **more)
        assert (code, because in text) == (1, True), text
        return text

    def refuses(self, because: str, folder: Path, *options: str, **more: Any) -> None:
        """An upload fails, and nothing is sent or changed."""
        self.server.requests.clear()
        self.fails(because, folder, *options, **more)
        assert [request.status for request in self.server.asked(*SENDING)] in ([], [403])

    def create(self, files: Mapping[str, bytes] | None = None, private: bool = False) -> hub.Repository:
        """Makes it, with files of somebody else."""
        repository = self.server.create(self.name, private)
        if files:
            self.server.commit(self.name, files)
        return repository

    @property
    def repository(self) -> hub.Repository:
        return self.server.repository(self.name)

    def holds(
        self, folder: Path, revision: str = "main", commits: int = 1, others: Mapping[str, bytes] | None = None
    ) -> bool:
        """Whether it is equal to a folder but for files of others, brought by so many commits after the first."""
        files = {**self.wanted(folder), ".gitattributes": b"", **(others or {})}
        return self.repository.files(revision) == files and len(self.repository.history(revision)) == 1 + commits

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
    ours = {name for name in files if name.split("/")[0] in CONFIGS}
    assert ours == {*listed["shards"]}
    assert not files.keys() & {"so2sat.py", "dataset_infos.json"}
    for config in yaml.safe_load(files["README.md"].decode().split("\n---\n")[0])["configs"]:
        for split in config["data_files"]:
            found = {name for name in files if fnmatch.fnmatch(name, split["path"])}
            assert found == {name for name in ours if name.startswith(f"{config['config_name']}/{split['split']}-")}
            assert found
            ours -= found
    assert not ours


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hub.Hub]:
    """A Hub that this process and its children ask, without waiting."""
    http = huggingface_hub.utils._http
    no_wait = types.SimpleNamespace(sleep=lambda seconds: None)
    huggingface_hub.set_client_factory(upload._client)
    with hub.serving(tmp_path_factory.mktemp("hub")) as running, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("HF_") and name != "HF_HOME"]:
            patch.delenv(name)
        patch.setenv("HF_ENDPOINT", running.endpoint)
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        for name, value in {"ENDPOINT": running.endpoint, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}.items():
            patch.setattr(huggingface_hub.constants, name, value)
        patch.setattr(huggingface_hub, "set_client_factory", lambda factory: None)  # it would close open connections
        patch.setattr(http, "time", no_wait)
        patch.setattr(upload, "time", no_wait)
        yield running
    huggingface_hub.set_client_factory(http.default_client_factory)


@pytest.fixture
def dataset(server: hub.Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Dataset]:
    """After each test: what readers could ever see was a whole repository, and the Hub was asked what it knows."""
    # A name of its own, because hf_xet remembers what it has sent.
    name, look = f"org/so2sat-{next(NUMBERS)}", upload._load_back

    def run(
        folder: Path | str, *options: str, to: str = name, loads: bool = False, token: str | None = "write"
    ) -> tuple[int, str]:
        secret = hub.TOKENS.get(token or "", token)
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

    yield Dataset(server, name, run)
    for repository in server.repositories.values():
        for commit in repository.commits.values():
            if commit.author == "maker":
                check_commit(repository, commit)
    assert (server.unknown, server.errors) == ([], [])
    for state in (server.repositories, server.faults, server.hooks, server.requests):
        state.clear()


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
    small = dict.fromkeys(CONFIGS, Limits(group_rows=5, shard_rows=5))
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
    text = dataset.upload(local)
    calls = f'load_dataset("{dataset.name}", "rgb")\nload_dataset("{dataset.name}", "all")\n'
    assert f"{dataset.server.endpoint}/datasets/{dataset.name}\n{calls}" in text
    assert dataset.holds(local)
    assert b'load_dataset("so2sat"' not in dataset.repository.files()["README.md"]
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


def test_a_dry_run_tells_the_plan_and_changes_nothing(dataset: Dataset, many: Path) -> None:
    files = dataset.wanted(many)
    told = f"{len(files)} files are new or changed, {sum(map(len, files.values())):,} bytes"
    assert told in dataset.upload(many, "--dry-run")
    assert not dataset.server.repositories
    assert not dataset.server.asked(*SENDING)


@pytest.mark.parametrize("options", [[], ["--create-pr"]])
def test_data_may_go_by_xet(dataset: Dataset, options: list[str], local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    dataset.create()
    dataset.server.fail("shard", "503")
    dataset.upload(local, *options)
    assert dataset.server.asked("xorb")
    assert not dataset.server.asked("transfer")
    assert dataset.holds(local, "refs/pr/1" if options else "main")


def test_what_is_up_to_date_gets_no_commit(dataset: Dataset, many: Path) -> None:
    dataset.upload(many)
    dataset.server.requests.clear()
    assert "up to date: no commit is needed" in dataset.upload(many)
    assert not dataset.server.asked(*SENDING)


def test_one_commit_brings_data_and_takes_away_what_is_stale(dataset: Dataset, local: Path, many: Path) -> None:
    dataset.upload(local)
    stale = {"so2sat.py": b"", "dataset_infos.json": b"{}", "rgb/train-00007-of-00008.parquet": b"1"}
    dataset.server.commit(dataset.name, {"LICENSE": b"mine", **stale})
    text = dataset.upload(many)
    assert all(f"deleted: {path}" in text for path in (*stale, SHARD, "rgb/train-00000-of-00001.parquet"))
    assert dataset.holds(many, commits=3, others={"LICENSE": b"mine"})
    dataset.upload(local)
    assert dataset.holds(local, commits=4, others={"LICENSE": b"mine"})


def test_of_a_picture_that_has_changed_only_that_is_sent(dataset: Dataset, copy: Path) -> None:
    dataset.upload(copy)
    picture = copy / "assets" / "classes.png"
    picture.write_bytes(picture.read_bytes() + b"\0")
    listing(copy, **{"assets/classes.png": hashlib.sha256(picture.read_bytes()).hexdigest()})
    dataset.server.requests.clear()
    dataset.upload(copy)
    assert [request.received for request in dataset.server.asked("transfer")] == [picture.stat().st_size]
    assert dataset.holds(copy, commits=2)


def test_a_branch_is_changed_alone(dataset: Dataset, many: Path) -> None:
    repository = dataset.create()
    repository.refs["refs/heads/next"] = repository.at("main").sha
    assert f'load_dataset("{dataset.name}", "rgb", revision="next")' in dataset.upload(many, "--revision", "next")
    assert dataset.holds(many, "next")
    assert repository.files().keys() == INITIAL


def test_private_is_private(dataset: Dataset, many: Path) -> None:
    dataset.upload(many, "--private")
    assert dataset.repository.private


def test_a_pull_request_leaves_the_branch_alone_and_is_found_again(dataset: Dataset, many: Path) -> None:
    repository = dataset.create(private=True)
    text = dataset.upload(many, "--create-pr", loads=True)
    assert f"{dataset.server.endpoint}/datasets/{dataset.name}/discussions/1\n" in text
    assert 'revision="refs/pr/1")' in text
    assert len(repository.history()) == 1
    assert dataset.holds(many, "refs/pr/1")
    assert "up to date: refs/pr/1 proposes exactly this" in dataset.upload(many, "--create-pr")
    assert [*repository.pulls] == [1]


def test_a_pull_request_that_was_closed_or_changed_is_made_again(dataset: Dataset, many: Path) -> None:
    repository = dataset.create()
    dataset.upload(many, "--create-pr")
    repository.pulls[1].status = "closed"
    dataset.upload(many, "--create-pr")
    dataset.server.commit(dataset.name, {"statistics.json": b"{}"}, revision="refs/pr/2")
    dataset.upload(many, "--create-pr")
    assert [*repository.pulls] == [1, 2, 3]
    assert dataset.holds(many, "refs/pr/3")


def test_a_tag_is_set_once_and_never_moved(dataset: Dataset, local: Path, many: Path) -> None:
    dataset.upload(many, "--tag", "v2.1.0")
    first = dataset.repository.at("main").sha
    dataset.server.commit(dataset.name, {"LICENSE": b"theirs"})
    dataset.upload(many, "--tag", "v2.1.0")  # it is on the same files
    dataset.refuses("has the tag v2.1.0 already", local, "--tag", "v2.1.0")
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
    dataset: Dataset, edit: Callable[[str], str], told: str, many: Path
) -> None:
    dataset.upload(many)
    text = edit(dataset.repository.files()["README.md"].decode())
    theirs = {"mine/train-00000-of-00001.parquet": b"theirs"}
    dataset.server.commit(dataset.name, {"README.md": text.encode(), **theirs})
    for options in ([], ["--dry-run"], ["--create-pr"]):
        dataset.refuses(told, many, *options)
    text = dataset.upload(many, "--replace-card")
    assert (told in text, "\x1b" in text) == (True, False)
    assert dataset.holds(many, commits=3, others=theirs)


def test_a_card_of_an_earlier_upload_is_no_change_by_others(dataset: Dataset, local: Path, many: Path) -> None:
    dataset.upload(local)
    dataset.server.commit(dataset.name, {"LICENSE": b"theirs"})
    assert "others" not in dataset.upload(many)


@pytest.mark.parametrize("more", [{}, {"manifest.json": b"theirs"}])
def test_a_card_that_was_there_before_is_somebody_elses(dataset: Dataset, more: dict[str, bytes], many: Path) -> None:
    dataset.create(more)
    dataset.server.commit(dataset.name, {"README.md": b"---\nlicense: mit\n---\nOur words.\n"})
    dataset.refuses("+Our words.", many)
    dataset.upload(many, "--replace-card")


# ── Preflight ────────────────────────────────────────────────────────────────────────────────────────────────────────


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def renamed(name: str) -> Callable[[Path], None]:
    """Gives a shard another name, in the manifest too."""

    def rename(folder: Path) -> None:
        built = manifest.load_built(folder)
        built.shards[name] = built.shards.pop(SHARD)
        shutil.move(folder / SHARD, folder / name)
        built.save(folder)

    return rename


# Some of what contents.py finds, and what it leaves to those who read the shards.
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
        (lambda folder: (folder / "README.md").write_text(card.INCOMPLETE), "incomplete"),
        (lambda folder: flip(folder / SHARD), SHARD),
        (renamed("all/../geo.parquet"), "geo.parquet"),
        (renamed("all/secret-00000-of-00001.parquet"), "all/secret-00000-of-00001.parquet"),
    ],
)
def test_what_is_not_sound_is_not_sent(
    dataset: Dataset, change: Callable[[Path], object], problem: str, copy: Path
) -> None:
    change(copy)
    dataset.refuses(problem, copy)


def test_no_name_is_taken_under_which_it_can_not_be_loaded(dataset: Dataset, many: Path) -> None:
    dataset.refuses("train.py", many, to="org/train")


@pytest.mark.parametrize(
    ("is_there", "token", "problem"),
    [
        (False, None, "no token of the Hub: run 'hf auth login', or set HF_TOKEN"),
        (False, "hf_ünknown", "the token has letters"),
        (False, "hf_unknown", "does not know this token"),
        (False, "read", "this token may not do that"),
        (False, "stranger", "this token may not do that"),
        (True, "read", "this token may not do that"),
        (True, "stranger", "--create-pr"),
    ],
)
def test_a_token_that_may_not_write_is_told_before_anything_is_sent(
    dataset: Dataset, is_there: bool, token: str | None, problem: str, many: Path
) -> None:
    if is_there:
        dataset.create()
    dataset.refuses(problem, many, token=token)


def test_who_may_not_write_may_propose(dataset: Dataset, many: Path) -> None:
    dataset.create()
    dataset.upload(many, "--create-pr", token="stranger")
    assert dataset.holds(many, "refs/pr/1")


@pytest.mark.parametrize(
    ("is_there", "options", "problem"),
    [
        (True, ["--revision", "nowhere"], "Revision Not Found"),
        (False, ["--revision", "next"], "it has no revision next"),
        (True, ["--private"], "is there already, and public"),
        (True, ["--create-pr", "--tag", "v1"], "leave out --revision and --tag"),
        (True, ["--create-pr", "--revision", "next"], "leave out --revision and --tag"),
    ],
)
def test_options_that_do_not_fit_what_is_there_are_refused(
    dataset: Dataset, is_there: bool, options: list[str], problem: str, many: Path
) -> None:
    if is_there:
        dataset.create()
    dataset.refuses(problem, many, *options)


def test_what_the_hub_would_leave_out_is_refused(dataset: Dataset, many: Path) -> None:
    dataset.create({".gitignore": b"*.parquet\n"})
    dataset.refuses("has a .gitignore", many)


def test_a_card_that_the_hub_refuses_is_told(dataset: Dataset, many: Path) -> None:
    dataset.server.fail("validate", "400")
    dataset.refuses("the Hub refuses the card", many)


@pytest.mark.parametrize("name", ["so2sat", "a/b/c", "a/-b", "a/b..c", "a/b.git", "ä/b", "org/", "hf://org/so2sat"])
def test_what_is_no_name_is_a_usage_error(dataset: Dataset, many: Path, name: str) -> None:
    code, text = dataset.run(many, to=name)
    assert (code, "argument ORG/NAME: " in text) == (2, True)


def test_help_has_examples(dataset: Dataset) -> None:
    assert "python scripts/upload.py build/so2sat ORG/so2sat --dry-run" in dataset.run("--help")[1]


# ── Disturbances ─────────────────────────────────────────────────────────────────────────────────────────────────────

KINDS = ("429", "500", "503", "cut", "lost")
# Stage, how many of its requests come through before, options.
STAGES: list[tuple[str, int, list[str]]] = [
    *((stage, 0, []) for stage in ("auth", "info", "tree", "validate", *SENDING[:-1])),
    *((stage, 1, []) for stage in ("info", "tree", "transfer")),
    *((stage, 0, ["--create-pr"]) for stage in ("discussions", "batch", "transfer", "commit")),
    *((stage, 0, ["--tag", "v1"]) for stage in ("refs", "tag")),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("stage", "after", "options"), STAGES)
def test_one_failure_anywhere_changes_nothing_in_the_end(
    dataset: Dataset, stage: str, after: int, options: list[str], kind: str, many: Path
) -> None:
    if stage != "create":
        dataset.create()
    fault = dataset.server.fail(stage, kind, after=after)
    if dataset.run(many, *options)[0]:
        dataset.upload(many, *options)
    assert fault.times == 0
    is_proposed = "--create-pr" in options
    assert dataset.holds(many, "refs/pr/1" if is_proposed else "main")
    assert [*dataset.repository.pulls] == ([1] if is_proposed else [])
    assert len(dataset.repository.commits) == 2


def test_a_failure_when_the_result_is_loaded_does_no_harm(dataset: Dataset, many: Path) -> None:
    dataset.server.fail("resolve", "503")
    dataset.upload(many, loads=True)
    assert dataset.holds(many)


def test_a_result_that_can_not_be_loaded_is_told(dataset: Dataset, many: Path) -> None:
    dataset.server.fail("download", "404", times=float("inf"))
    dataset.fails("is uploaded, but can't be loaded", many, loads=True)


@pytest.mark.parametrize("stage", ["auth", "validate", "transfer", "commit"])
def test_a_hub_that_stays_away_is_told_in_one_line(dataset: Dataset, stage: str, many: Path) -> None:
    dataset.server.fail(stage, "503", times=float("inf"))
    dataset.fails("run the same command again", many)
    dataset.server.faults.clear()
    dataset.upload(many)
    assert dataset.holds(many)


@pytest.mark.parametrize("status", ["400", "401", "402", "403", "404", "413", "422"])
@pytest.mark.parametrize("stage", ["preupload", "transfer", "commit"])
def test_what_would_fail_again_is_asked_once_and_told_so(dataset: Dataset, stage: str, status: str, many: Path) -> None:
    dataset.server.fail(stage, status, times=float("inf"))
    text = dataset.fails("the Hub: ", many, "--debug")
    assert upload.ADVICE.get(int(status), "the same command would fail again") in text
    assert len(dataset.server.asked(stage)) <= (upload.FILES_AT_ONCE if stage == "transfer" else 1)
    assert dataset.repository.files().keys() == INITIAL


ANSWERED = ("info", "tree", "paths", "refs", "preupload", "batch", "commit", "create", "auth", "validate")


@pytest.mark.parametrize("answer", ["null", "{}", "[{}]", "7", "[" * 100_000, "\udcff"], ids=lambda answer: answer[:4])
@pytest.mark.parametrize("stage", ANSWERED)
def test_an_answer_of_another_shape_is_told_in_one_line(dataset: Dataset, stage: str, answer: str, many: Path) -> None:
    if stage != "create":
        dataset.create({"README.md": b"theirs"})
    dataset.server.fail(stage, answer, times=float("inf"))
    dataset.run(many, "--tag", "v1", "--replace-card")
    assert dataset.server.asked(stage)[0].fault == answer
    dataset.server.faults.clear()
    if stage in ("create", "batch", "commit"):  # what changes something
        dataset.upload(many, "--replace-card")


@pytest.mark.parametrize("stage", ["auth", "tree", "paths", "resolve", "batch"])
def test_an_answer_may_not_fill_the_memory(dataset: Dataset, stage: str, many: Path) -> None:
    dataset.create({"README.md": b"theirs"})
    dataset.server.fail(stage, "x" * (upload.MAX_ANSWER_BYTES + 1))
    dataset.fails("an answer of more than", many, "--replace-card")


@pytest.mark.parametrize("limit", ["MAX_FILES", "MAX_NAME"])
def test_a_listing_may_not_fill_the_memory(
    dataset: Dataset, limit: str, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.create({f"a-long-name-{number}.txt": b"" for number in range(12)})
    monkeypatch.setattr(upload, limit, 10)
    dataset.fails("a listing without an end", many)


@pytest.mark.parametrize(
    ("place", "bug"),
    [("_oid", TypeError), ("_tree", KeyError), ("_check_token", ValueError), ("_send", RuntimeError)],
)
def test_a_bug_is_not_told_as_the_hubs_nor_tried_again(
    dataset: Dataset, bug: type[Exception], place: str, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(*_: Any) -> None:
        calls.append(place)
        raise bug("bug")

    dataset.create()
    monkeypatch.setattr(upload, place, fail)
    with pytest.raises(bug, match="bug"):
        dataset.upload(many)
    assert len(calls) == 1


@pytest.mark.parametrize("stage", ["preupload", "commit"])
def test_a_change_by_somebody_else_is_refused_and_the_next_run_works(dataset: Dataset, stage: str, many: Path) -> None:
    dataset.create()

    def meddle(request: hub.Call) -> None:
        dataset.server.hooks.clear()
        dataset.server.commit(dataset.name, {"LICENSE": b"theirs"})

    dataset.server.on(stage, meddle)
    dataset.fails("somebody else has changed main meanwhile", many)
    assert [commit.title for commit in dataset.repository.history()] == ["Someone else's", "initial commit"]
    dataset.upload(many)
    assert dataset.holds(many, commits=2, others={"LICENSE": b"theirs"})


@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_after_an_interruption_only_what_is_missing_is_sent(
    dataset: Dataset, how: signal.Signals, status: int, many: Path
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    transfers = itertools.count()

    def strike(request: hub.Call) -> None:
        if next(transfers) == 6 and started:  # the second lot of files
            started[0].send_signal(how)
            started[0].wait(20)  # it does not wait for this answer

    dataset.server.on("transfer", strike)
    command = [sys.executable, upload.__file__, str(many), dataset.name]
    process = hearing(command, env=dataset.server.environment(), stderr=subprocess.PIPE)
    started.append(process)
    error = process.communicate()[1].decode()
    assert process.returncode == status, error
    assert "Traceback" not in error
    while not all(request.done for request in dataset.server.requests):
        time.sleep(0.01)  # what the client sent before its end may still arrive
    assert dataset.repository.files().keys() == INITIAL
    kept = sum(len(content) for oid, content in dataset.repository.contents.items() if len(oid) == 64)
    assert kept > 0
    dataset.server.hooks.clear()
    dataset.server.requests.clear()
    dataset.upload(many)
    large = sum(len(content) for path, content in contents(many).items() if path.endswith((".parquet", ".png")))
    assert sum(request.received for request in dataset.server.asked("transfer")) == large - kept
    assert dataset.holds(many)


# ── Surroundings ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_small_is_uploaded_as_it_was_when_it_changes_meanwhile(
    dataset: Dataset, local: Path, copy: Path
) -> None:
    dataset.server.on("transfer", lambda request: (copy / "statistics.json").write_text("{}"))
    dataset.upload(copy)
    assert dataset.holds(local)


def test_a_shard_that_changes_meanwhile_is_not_committed(dataset: Dataset, copy: Path) -> None:
    def rebuild(request: hub.Call) -> None:
        shutil.copy(copy / SHARD, copy / "new")
        (copy / "new").replace(copy / SHARD)

    dataset.server.on("batch", rebuild)
    dataset.fails("was changed while it was sent; nothing was committed", copy)
    assert dataset.repository.files().keys() == INITIAL
    dataset.server.hooks.clear()
    dataset.upload(copy)
    assert dataset.holds(copy)


@pytest.mark.parametrize(
    ("endpoint", "problem"),
    [
        ("http://127.0.0.1:9", "Connection refused"),
        ("ftp://127.0.0.1", "ftp"),
        ("huggingface.co", "protocol"),
        ("http://127.0.0.1:nine", "nine"),
        ("http://no-such-host.invalid", "look at the network"),
    ],
)
def test_an_endpoint_that_is_none_is_told_at_once(
    dataset: Dataset, endpoint: str, problem: str, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    text = dataset.fails("HF_ENDPOINT", many, "--debug")
    assert (problem in text, "next attempt" in text) == (True, False)


def test_offline_is_told_in_one_line(dataset: Dataset, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    dataset.fails("offline mode", many)


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
    dataset: Dataset, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = dataset.server.endpoint.replace("://", "://maker:secret@")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    dataset.server.fail("auth", "402")
    assert "secret" not in dataset.fails(dataset.server.endpoint, many, "--debug")


def test_what_huggingface_hub_logs_has_no_signatures(
    dataset: Dataset, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (handler,) = logging.getLogger("huggingface_hub").handlers
    monkeypatch.setattr(handler, "stream", logged := io.StringIO())
    dataset.server.fail("transfer", "503")
    dataset.upload(many)
    assert dataset.server.storage in logged.getvalue()
    assert hub.SIGNATURE not in logged.getvalue()


def test_names_and_places_do_not_matter(dataset: Dataset, many: Path, tmp_path: Path) -> None:
    """A read-only folder behind a link with another name, a token in a file, an address with a slash at its end, and a
    folder that is called like the dataset, which load_dataset would prefer to the Hub.
    """
    folder = Path(shutil.copytree(many, tmp_path / "Städte ☂" / "so2sat"))
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
    assert dataset.holds(many)
