"""Uploads to a Hub on loopback: all or nothing, whatever happens on the way."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub.constants
import pytest

import build
import hub
import sample
import upload
from conftest import contents, edit_json, hearing, legacy_python
from publishing import card, manifest
from publishing.configs import CONFIGS, Limits

SENDING = ("create", "preupload", "batch", "transfer", "commit")
SHARD = "all/test-00000-of-00001.parquet"
INITIAL = {".gitattributes"}  # what the Hub's first commit holds


class Dataset(NamedTuple):
    """A dataset on the Hub that is not there yet, and the command that uploads to it."""

    server: hub.Hub
    name: str
    run: Callable[..., tuple[int, str]]  # exit status and what was printed

    def upload(self, folder: Path, *options: str, **more: Any) -> str:
        """Uploads a folder and returns what was printed. The result is loaded only when asked for: `loads=True`."""
        code, text = self.run(folder, "--synthetic", *options, **more)
        assert code == 0, text
        return text

    def fails(self, because: str, folder: Path, *options: str, **more: Any) -> str:
        """Uploads a folder, which ends in an error that tells of something."""
        code, text = self.run(folder, "--synthetic", *options, **more)
        assert (code, because in text) == (1, True), text
        return text

    def refuses(self, because: str, folder: Path, *options: str, **more: Any) -> None:
        """An upload fails before anything is sent."""
        self.server.requests.clear()
        self.fails(because, folder, *options, **more)
        assert not self.server.asked("preupload", "batch", "transfer", "commit")

    def create(self) -> hub.Repository:
        """Makes it."""
        return self.server.create(self.name)

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
    sums.pop("assets/later.png", None)
    assert {name: hashlib.sha256(files[name]).hexdigest() for name in sums} == sums
    ours = {name for name in files if name.split("/")[0] in CONFIGS}
    assert ours == {*listed["shards"]}
    assert not files.keys() & {"so2sat.py", "dataset_infos.json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hub.Hub]:
    """A Hub that this process and its children ask."""
    with hub.serving(tmp_path_factory.mktemp("hub")) as running, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("HF_") and name != "HF_HOME"]:
            patch.delenv(name)
        for name, value in {"ENDPOINT": running.endpoint, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}.items():
            patch.setattr(huggingface_hub.constants, name, value)
        yield running


@pytest.fixture
def dataset(server: hub.Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Dataset]:
    """After each test: what readers could ever see was a whole repository, and the Hub was asked what it knows."""
    name, look = "org/so2sat", upload.load_back

    def run(
        folder: Path | str, *options: str, to: str = name, loads: bool = False, token: str | None = "write"
    ) -> tuple[int, str]:
        secret = hub.TOKENS.get(token or "", token)
        monkeypatch.setenv("HF_TOKEN", secret or "")
        monkeypatch.setattr(upload, "load_back", look if loads else lambda *_: None)
        try:
            code = upload.main([str(folder), to, *options])
        except SystemExit as error:
            code = int(error.code or 0)
        text = "".join(capsys.readouterr())
        assert (secret or "hf_") not in text
        assert len(re.findall(r"^(?:\S+: )?error: ", text, re.MULTILINE)) == (1 if code else 0), text
        return code, text

    yield Dataset(server, name, run)
    for repository in server.repositories.values():
        for commit in repository.commits.values():
            if commit.author == "writer":
                check_commit(repository, commit)
    assert (server.asked(""), server.errors) == ([], [])
    for state in (server.repositories, server.faults, server.hooks, server.requests):
        state.clear()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small repository of rgb, all and geo. Read only."""
    folder = tmp_path_factory.mktemp("local")
    sample.write_sample(folder / "data", {"train": 20, "validation": 21, "test": 22}, 0)
    build.build(str(folder / "data"), folder / "so2sat")
    return folder / "so2sat"


@pytest.fixture(scope="module")
def many(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config rgb of the same data in four shards for each split. Read only."""
    folder = tmp_path_factory.mktemp("many") / "so2sat"
    build.build(str(local.with_name("data")), folder, ["rgb"], limits={"rgb": Limits(group_rows=5, shard_rows=5)})
    assert len([*folder.glob("rgb/*")]) == 12
    return folder


@pytest.fixture
def copy(local: Path, tmp_path: Path) -> Path:
    """A copy of `local` to change."""
    return Path(shutil.copytree(local, tmp_path / "so2sat"))


# ── What it is for ───────────────────────────────────────────────────────────────────────────────────────────────────

USE = """
import os, sys
import datasets
name, version, *configs = sys.argv[1:]
assert datasets.__version__.startswith(version)
assert "image" in datasets.load_dataset(name, split="test").column_names
for config in configs:
    stream, rows = (datasets.load_dataset(name, config, streaming=streaming) for streaming in (True, False))
    for split, count in {"train": 20, "validation": 21, "test": 22}.items():
        assert rows[split].features == stream[split].features
        assert rows[split]["label"][:] == [row["label"] for row in stream[split]]
        assert len(rows[split]) == count
os._exit(0)
"""


@pytest.mark.parametrize("version", ["5", "3.6"])
def test_what_was_uploaded_loads_in_every_way(dataset: Dataset, version: str, local: Path) -> None:
    text = dataset.upload(local, loads=True)
    calls = f'load_dataset("{dataset.name}", "rgb")\nload_dataset("{dataset.name}", "all")\n'
    assert f"{dataset.server.endpoint}/datasets/{dataset.name}\n{calls}" in text
    assert dataset.holds(local)
    assert not re.search(r'load_dataset\("so2sat"|revision="v', dataset.repository.files()["README.md"].decode())
    python = str(legacy_python()) if version == "3.6" else sys.executable
    run = [python, "-c", USE, dataset.name, version, "rgb", "all", "geo"]
    subprocess.run(run, env=dataset.server.environment(home=version), check=True)


@pytest.mark.parametrize("token", [None, "write"])
def test_a_dry_run_names_what_is_new_and_changes_nothing(dataset: Dataset, token: str | None, many: Path) -> None:
    text, files = dataset.upload(many, "--dry-run", "--show-card", token=token), dataset.wanted(many)
    assert f"new or changed: {len(files)} ({sum(map(len, files.values())):,} bytes)" in text
    assert all(f"\n    {name}\n" in text for name in files)
    assert "63 patches, 12 shards" in text
    assert files["README.md"].decode() in text
    dataset.upload(many)
    dataset.server.requests.clear()
    for options in (["--dry-run"], []):
        text = dataset.upload(many, *options, token=token if options else "write")
        assert f"there already: {len(files)} " in text
        assert "new or changed: 0\n" in text
    assert not dataset.server.asked(*SENDING)


def test_one_commit_brings_data_and_takes_away_what_is_stale(dataset: Dataset, local: Path, many: Path) -> None:
    dataset.upload(local)
    stale = {"so2sat.py": b"", "dataset_infos.json": b"{}", "rgb/train-00007-of-00008.parquet": b"1"}
    dataset.server.commit(dataset.name, {"LICENSE": b"mine", **stale})
    text = dataset.upload(many)  # the card is of an earlier upload: nobody has edited it
    assert all(f"\n    {path}\n" in text for path in (*stale, SHARD, "rgb/train-00000-of-00001.parquet"))
    assert dataset.holds(many, commits=3, others={"LICENSE": b"mine"})
    dataset.upload(local)
    assert dataset.holds(local, commits=4, others={"LICENSE": b"mine"})


def test_a_branch_is_changed_alone(dataset: Dataset, many: Path) -> None:
    repository = dataset.create()
    repository.refs["refs/heads/next"] = repository.at("main").sha
    assert f'load_dataset("{dataset.name}", "rgb", revision="next")' in dataset.upload(many, "--revision", "next")
    assert dataset.holds(many, "next")
    assert repository.files().keys() == INITIAL


def test_a_pull_request_leaves_the_branch_alone(dataset: Dataset, many: Path) -> None:
    dataset.create()
    text = dataset.upload(many, "--create-pr", token="stranger", loads=True)  # who may not write may propose
    assert f"{dataset.server.endpoint}/datasets/{dataset.name}/discussions/1\n" in text
    assert 'revision="refs/pr/1")' in text
    assert dataset.holds(many, "refs/pr/1")
    assert dataset.repository.files().keys() == INITIAL


def test_synthetic_data_are_shown_to_everyone_only_when_asked(dataset: Dataset, many: Path) -> None:
    for options in ([], ["--dry-run"]):
        code, text = dataset.run(many, *options)
        assert (code, "--private" in text) == (1, True)
    assert not dataset.server.requests
    code, text = dataset.run(many, "--private")
    assert (code, "SYNTHETIC" in text, dataset.repository.private) == (0, True, True)


def test_what_else_lies_in_the_folder_is_told_and_left_out(dataset: Dataset, local: Path, copy: Path) -> None:
    """Also a file that a later version of the project lists."""
    (copy / "NOTES.md").touch()
    (copy / "__pycache__").mkdir()
    (copy / "assets" / "later.png").touch()
    edit_json(copy / "manifest.json", lambda built: built["files"].update({"assets/later.png": "0" * 64}))
    text = dataset.upload(copy)
    assert all(name in text for name in ("NOTES.md", "__pycache__", "later.png"))
    names = dataset.wanted(local).keys() | INITIAL
    assert dataset.repository.files().keys() == names


# ── Cards that others have edited ────────────────────────────────────────────────────────────────────────────────────


def test_a_card_that_others_edited_is_told_and_replaced_only_when_asked(dataset: Dataset, many: Path) -> None:
    dataset.upload(many)
    text = dataset.repository.files()["README.md"]
    edit = dataset.server.commit(dataset.name, {"README.md": text + b"A remark of ours.\n"})
    dataset.server.commit(dataset.name, {"LICENSE": b"theirs"})
    link = f"{dataset.server.endpoint}/datasets/{dataset.name}/commit/{edit.sha}"
    for options in ([], ["--dry-run"], ["--create-pr"]):
        dataset.refuses(link, many, *options)
    assert "someone edited the card" in dataset.upload(many, "--replace-card")
    assert dataset.holds(many, commits=4, others={"LICENSE": b"theirs"})


def test_a_card_that_was_there_before_is_somebody_elses(dataset: Dataset, many: Path) -> None:
    dataset.create()
    dataset.server.commit(dataset.name, {"README.md": b"---\nlicense: mit\n---\nOur words.\n"})
    dataset.refuses("someone edited the card", many)


# ── Preflight ────────────────────────────────────────────────────────────────────────────────────────────────────────


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
        (lambda folder: (folder / "README.md").write_text(card.INCOMPLETE), "incomplete"),
        (lambda folder: flip(folder / SHARD), SHARD),
        (lambda folder: flip(folder / "train.py"), "train.py"),
        (lambda folder: shutil.copy(folder / SHARD, folder / "all/test-00007-of-00001.parquet"), "test-00007"),
    ],
    ids=["no manifest", "unfinished", "changed shard", "changed train.py", "shard of others"],
)
def test_what_is_not_sound_is_not_sent(
    dataset: Dataset, change: Callable[[Path], object], problem: str, copy: Path
) -> None:
    change(copy)
    dataset.refuses(problem, copy)


LOGIN = "no token of the Hub: run 'hf auth login', or set HF_TOKEN"
REFUSED: list[tuple[bool, list[str], dict[str, Any], str]] = [
    (False, [], {"token": None}, LOGIN),
    (False, [], {"token": "hf_\x7funknown"}, "the token has letters"),
    (False, [], {"token": "hf_unknown"}, "does not know this token"),
    (False, [], {"token": "read"}, "this token may not do that"),
    (True, [], {"token": "read"}, "this token may not do that"),
    (True, [], {"token": "stranger"}, "--create-pr"),
    (True, ["--revision", "nowhere"], {}, "Revision Not Found"),
    (False, ["--revision", "next"], {}, "it has no branch next"),
    (True, ["--private"], {}, "is there already, and public"),
    (True, ["--create-pr", "--revision", "next"], {}, "leave out --revision"),
    (False, [], {"to": "org/train"}, "train.py"),  # nobody could load it
]


@pytest.mark.parametrize(("is_there", "options", "more", "problem"), REFUSED)
def test_what_can_not_work_is_told_before_anything_is_sent(
    dataset: Dataset, is_there: bool, options: list[str], more: dict[str, Any], problem: str, many: Path
) -> None:
    if is_there:
        dataset.create()
    dataset.refuses(problem, many, *options, "--debug", **more)


def test_a_card_that_the_hub_refuses_is_told(dataset: Dataset, many: Path) -> None:
    dataset.server.fail("validate", "400")
    dataset.refuses("the Hub refuses the card", many)


@pytest.mark.parametrize("name", ["so2sat", "a/b/c", "org/"])
def test_what_is_no_name_is_a_usage_error(dataset: Dataset, many: Path, name: str) -> None:
    code, text = dataset.run(many, to=name)
    assert (code, "argument ORG/NAME: " in text) == (2, True)


# ── Disturbances ─────────────────────────────────────────────────────────────────────────────────────────────────────

# Kinds of failure, and the header that comes with it.
KINDS = [("429", "Retry-After: 0"), ("429", 'RateLimit: "api";r=0;t=0'), ("500", ""), ("cut", ""), ("lost", "")]
# Stages, and how many of their requests come through before. The second listing is the look back.
STAGES = [*((stage, 0) for stage in ("auth", "info", "tree", "validate", *SENDING)), ("tree", 1), ("transfer", 1)]


@pytest.mark.parametrize(("kind", "header"), KINDS)
@pytest.mark.parametrize(("stage", "after"), STAGES)
def test_one_failure_anywhere_changes_nothing_in_the_end(
    dataset: Dataset, stage: str, after: int, kind: str, header: str, many: Path
) -> None:
    if stage != "create":
        dataset.create()
    fault = dataset.server.fail(stage, kind, after=after, header=header)
    if dataset.run(many, "--synthetic")[0]:
        dataset.upload(many)
    assert fault.times == 0
    assert dataset.holds(many)
    assert len(dataset.repository.commits) == 2


@pytest.mark.parametrize(("stage", "kind"), [("commit", "lost"), ("transfer", "403")])
def test_a_lost_answer_to_the_commit_and_an_address_of_the_storage_that_is_too_old_take_no_other_run(
    dataset: Dataset, stage: str, kind: str, many: Path
) -> None:
    dataset.server.fail(stage, kind)
    dataset.upload(many)
    assert dataset.holds(many)


@pytest.mark.parametrize(
    ("stage", "header"),
    [("auth", "Retry-After: 2"), ("tree", 'RateLimit: "api";r=0;t=2'), ("commit", 'RateLimit: "api";r=0;t=2')],
)
def test_it_waits_as_long_as_the_hub_asks(dataset: Dataset, stage: str, header: str, many: Path) -> None:
    dataset.create()
    dataset.server.fail(stage, "429", header=header)
    start = time.monotonic()
    dataset.upload(many)
    assert time.monotonic() - start >= 2
    assert [request.fault for request in dataset.server.asked(stage)[:2]] == ["429", ""]


@pytest.mark.parametrize("stage", ["info", "tree", "commit"])
def test_a_hub_that_stays_silent_is_asked_again(
    dataset: Dataset, stage: str, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stay_silent(request: hub.Call) -> None:
        dataset.server.hooks.clear()
        asked, deadline = len(dataset.server.asked(stage)), time.monotonic() + 20
        while len(dataset.server.asked(stage)) == asked:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    monkeypatch.setattr(upload, "ANSWER_SECONDS", 1)
    dataset.create()
    dataset.server.on(stage, stay_silent)
    dataset.upload(many)
    assert dataset.holds(many)


def test_a_commit_that_does_not_hold_what_was_sent_is_told(dataset: Dataset, many: Path) -> None:
    dataset.create()
    dataset.server.fail("tree", "[]", after=1)  # the look back
    dataset.fails("differs from", many)


def test_a_result_that_can_not_be_loaded_is_told(dataset: Dataset, many: Path) -> None:
    dataset.server.fail("download", "404", times=float("inf"))
    dataset.fails("is uploaded, but can't be loaded", many, loads=True)


@pytest.mark.parametrize("stage", ["auth", "commit"])
def test_a_hub_that_stays_away_is_told_in_one_line(
    dataset: Dataset, stage: str, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(upload.PAUSES) >= 600
    monkeypatch.setattr(upload, "PAUSES", (0.1, 0.2))
    dataset.server.fail(stage, "503", times=float("inf"))
    dataset.fails("run the same command again", many)
    assert len(dataset.server.asked(stage)) == 3


@pytest.mark.parametrize(("stage", "status"), [("preupload", "403"), ("commit", "401"), ("commit", "422")])
def test_what_would_fail_again_is_asked_once(dataset: Dataset, stage: str, status: str, many: Path) -> None:
    dataset.server.fail(stage, status, times=float("inf"))
    dataset.fails(status, many, "--debug")
    assert len(dataset.server.asked(stage)) == 1
    assert dataset.repository.files().keys() == INITIAL


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
    command = [sys.executable, upload.__file__, str(many), dataset.name, "--synthetic"]
    process = hearing(command, env=dataset.server.environment(), stderr=subprocess.PIPE)
    started.append(process)
    error = process.communicate()[1].decode()
    assert process.returncode == status, error
    assert "Traceback" not in error
    while not all(request.done for request in dataset.server.requests):
        time.sleep(0.01)  # what the client sent before its end may still arrive
    assert dataset.repository.files().keys() == INITIAL
    kept = {*dataset.repository.stored}
    assert kept
    dataset.server.hooks.clear()
    dataset.server.requests.clear()
    dataset.upload(many)
    sent = [hashlib.sha256(request.body).hexdigest() for request in dataset.server.asked("transfer")]
    assert sorted(sent) == sorted(dataset.repository.stored.keys() - kept)
    assert dataset.holds(many)


# ── Surroundings ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_small_is_uploaded_as_it_was_when_it_changes_meanwhile(
    dataset: Dataset, local: Path, copy: Path
) -> None:
    dataset.server.on("transfer", lambda request: (copy / "statistics.json").write_text("{}"))
    dataset.upload(copy)
    assert dataset.holds(local)


def test_a_shard_that_changes_meanwhile_is_not_committed(dataset: Dataset, copy: Path) -> None:
    dataset.server.on("batch", lambda request: Path(shutil.copy(copy / SHARD, copy / "new")).replace(copy / SHARD))
    dataset.fails("was changed while it was sent", copy)
    assert dataset.repository.files().keys() == INITIAL


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "ftp://127.0.0.1", "huggingface.co", "a login page"])
def test_an_endpoint_that_is_none_is_told_at_once(
    dataset: Dataset, endpoint: str, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if endpoint == "a login page":
        dataset.server.fail("info", "<html>Please log in</html>")
    else:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    assert "next attempt" not in dataset.fails("HF_ENDPOINT", many, "--debug")


@pytest.mark.parametrize(
    ("setting", "told"),
    [({"HF_HUB_OFFLINE": "1"}, "offline"), ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "httpx2[socks]")],
)
def test_what_the_environment_forbids_is_told_in_one_line(
    dataset: Dataset, setting: dict[str, str], told: str, many: Path
) -> None:
    command = [sys.executable, upload.__file__, str(many), dataset.name, "--synthetic"]
    done = subprocess.run(command, env={**dataset.server.environment(), **setting}, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n"), told in done.stderr) == (1, 1, True)


def test_passwords_and_signatures_are_not_printed(
    dataset: Dataset, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = dataset.server.endpoint.replace("://", "://maker:secret@")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    dataset.server.fail("auth", "402")
    assert "secret" not in dataset.fails(dataset.server.endpoint, many, "--debug")
    monkeypatch.undo()
    monkeypatch.setattr(upload, "PAUSES", (0.1,))
    dataset.server.fail("transfer", "403", times=float("inf"))
    assert hub.SIGNATURE not in dataset.fails("403", many, "--debug")


def test_names_and_places_do_not_matter(dataset: Dataset, many: Path, tmp_path: Path) -> None:
    """A read-only folder of links, as in the Hub's cache, behind a link of another name; a token in a file, an address
    with a slash at its end; settings, and a folder, by which load_dataset would not ask the Hub.
    """
    folder = tmp_path / "Städte ☂" / "so2sat"
    shutil.copytree(many, folder, copy_function=lambda path, link: Path(link).symlink_to(path))
    folder.chmod(0o555)
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / dataset.name / "rgb").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text("hf_write\n")
    more = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": f"{dataset.server.endpoint}/", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, upload.__file__, "link", dataset.name, "--private"]
    done = subprocess.run(
        command, env={**dataset.server.environment(None), **more}, cwd=tmp_path, capture_output=True, text=True
    )
    folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert f"\n{dataset.server.endpoint}/datasets/{dataset.name}\n" in done.stdout
    assert dataset.holds(many)
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"token"}  # what was loaded back leaves no cache
