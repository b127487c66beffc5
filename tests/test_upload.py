"""Uploads to a Hub on loopback: all or nothing, whatever happens on the way."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import build
import card
import hub
import so2sat
import upload
from conftest import hearing, random_arrays, write_source

SCRIPT = upload.__file__
NUMBERS = itertools.count()

# Runs many uploads in one process, which is fast; the look at the result, another process, only when asked for.
DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import upload
upload._wait = lambda state: 0.02
load_back = upload._load_back
for line in sys.stdin:
    arguments, loads = json.loads(line)
    upload._load_back = load_back if loads else lambda *args: None
    try:
        code = upload.main(arguments)
    except SystemExit as error:
        code = error.code
    print(f"\\nexit {code}", flush=True)
"""


class Client:
    """A process that uploads, with what it printed."""

    def __init__(self, server: hub.Hub) -> None:
        run = [sys.executable, "-c", DRIVER, str(Path(SCRIPT).parent)]
        self.process = subprocess.Popen(
            run,
            env=server.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, *arguments: str | Path, loads: bool = False) -> tuple[int, str]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([[str(argument) for argument in arguments], loads]) + "\n")
        self.process.stdin.flush()
        text = ""
        for line in self.process.stdout:
            if line.startswith("exit "):
                return int(line.split()[1]), text
            text += line
        raise AssertionError(text)


def check_commit(repository: hub.Repository, revision: str, commit: hub.Commit) -> None:
    """A reader of this commit finds a whole repository: files as the manifest has them, and no other shard."""
    files = repository.files(commit.sha)
    manifest = json.loads(files["manifest.json"])
    for name, record in manifest["shards"].items():
        assert hashlib.sha256(files[name]).hexdigest() == record["sha256"]
    assert {name for name in files if name.endswith(".parquet")} == {*manifest["shards"]}
    assert b"configs:" in files["README.md"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hub.Hub]:
    with hub.serving(tmp_path_factory.mktemp("hub")) as running:
        running.watch(check_commit)
        yield running
        assert running.unknown == []


@pytest.fixture(scope="module")
def client(server: hub.Hub) -> Iterator[Client]:
    running = Client(server)
    yield running
    running.process.kill()


@pytest.fixture(autouse=True)
def _undisturbed(server: hub.Hub) -> Iterator[None]:
    yield
    server.faults.clear()
    server.hooks.clear()
    server.requests.clear()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(so2sat.SOURCE_FILES.values()):
        write_source(folder / name, random_arrays(20 + seed, seed))
    return folder


@pytest.fixture(scope="module")
def local(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small repository. Read only."""
    folder = tmp_path_factory.mktemp("local") / "so2sat"
    build.build(str(source), folder)
    return folder


@pytest.fixture
def copy(local: Path, tmp_path: Path) -> Path:
    """A copy of `local` to change."""
    return Path(shutil.copytree(local, tmp_path / "so2sat"))


@pytest.fixture
def name() -> str:
    return f"org/so2sat-{next(NUMBERS)}"


def published(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and ".build" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def assert_equal(server: hub.Hub, name: str, folder: Path, revision: str = "main", commits: int = 1) -> None:
    """The Hub holds the folder, brought by so many commits after the first, and nobody else's."""
    repository = server.repository(name)
    files = repository.files(revision)
    files.pop(".gitattributes")
    assert files == published(folder)
    assert len(repository.history(revision)) == 1 + commits


# ── What it is for ───────────────────────────────────────────────────────────────────────────────────────────────────

USE = """
import json, os, sys
import datasets
from datasets.distributed import split_dataset_by_node
name, version = sys.argv[1:]
assert datasets.__version__.startswith(version)
found = {"default": datasets.load_dataset(name, split="test").column_names}
for config in ("rgb", "all"):
    info = datasets.load_dataset_builder(name, config).info
    loaded = datasets.load_dataset(name, config)
    stream = datasets.load_dataset(name, config, split="train", streaming=True)
    halves = [split_dataset_by_node(stream, rank, 2) for rank in range(2)]
    found[config] = {
        "told": {split: told.num_examples for split, told in info.splits.items()},
        "rows": {split: len(rows) for split, rows in loaded.items()},
        "names": info.features["label"].names,
        "labels": loaded["train"]["label"][:],
        "streamed": [row["label"] for row in stream],
        "halves": sorted(row["sample_id"] for half in halves for row in half),
    }
one = datasets.load_dataset(name, "all", split="train", streaming=True, columns=["sentinel2", "label"])
found["columns"] = sorted({key for row in one for key in row})
print(json.dumps(found), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("version", ["5", "3.6"])
def test_what_was_uploaded_loads_in_every_way(
    version: str, server: hub.Hub, client: Client, local: Path, name: str, legacy_python: Path
) -> None:
    code, text = client(local, name, loads=True)
    assert code == 0, text
    assert text.endswith(
        f'{server.endpoint}/datasets/{name}\nload_dataset("{name}", "rgb")\nload_dataset("{name}", "all")\n\n'
    )
    assert_equal(server, name, local)
    python = str(legacy_python) if version == "3.6" else sys.executable
    run = [python, "-c", USE, name, version]
    done = subprocess.run(run, env=server.environment(home=version), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    labels = random_arrays(20, 0)["label"].argmax(axis=1).tolist()
    assert found["default"] == ["image", "label", "sample_id"]
    assert found["columns"] == ["label", "sentinel2"]
    for config in ("rgb", "all"):
        assert found[config]["told"] == found[config]["rows"] == {"train": 20, "validation": 21, "test": 22}
        assert found[config]["names"] == list(so2sat.LABELS)
        assert found[config]["labels"] == found[config]["streamed"] == labels
        assert found[config]["halves"] == list(range(20))


def test_a_dry_run_tells_the_plan_and_changes_nothing(server: hub.Hub, client: Client, local: Path, name: str) -> None:
    code, text = client(local, name, "--dry-run")
    assert code == 0
    size = sum(len(content) for content in published(local).values())
    assert f"{len(published(local))} files are new or changed, {size:,} bytes" in text
    assert "dry run: nothing was sent" in text
    assert name not in server.repositories
    assert not server.asked("create", "preupload", "batch", "transfer", "commit")


def test_what_is_up_to_date_gets_no_commit(server: hub.Hub, client: Client, local: Path, name: str) -> None:
    client(local, name)
    server.requests.clear()
    code, text = client(local, name)
    assert code == 0
    assert "up to date: no commit is needed" in text
    assert not server.asked("preupload", "batch", "transfer", "commit")
    assert_equal(server, name, local)


def test_one_commit_brings_data_and_takes_away_what_is_stale(
    server: hub.Hub, client: Client, local: Path, copy: Path, source: Path, name: str, tmp_path: Path
) -> None:
    client(local, name)
    theirs = {
        "LICENSE": b"mine",
        "so2sat.py": b"",
        "dataset_infos.json": b"{}",
        "rgb/train-00007-of-00008.parquet": b"1",
    }
    server.commit(name, theirs)
    shutil.copytree(source, tmp_path / "edition1")
    (tmp_path / "edition1" / "testing.h5").unlink()
    build.build(str(tmp_path / "edition1"), copy, force=True)
    code, text = client(copy, name)
    assert code == 0, text
    for path in (
        "so2sat.py",
        "dataset_infos.json",
        "rgb/train-00007-of-00008.parquet",
        "all/test-00000-of-00001.parquet",
    ):
        assert f"deleted: {path}" in text
    files = server.repository(name).files()
    assert {path: content for path, content in files.items() if path not in (".gitattributes", "LICENSE")} == published(
        copy
    )
    assert files["LICENSE"] == b"mine"
    assert len(server.repository(name).history()) == 4


def test_only_what_has_changed_is_sent(server: hub.Hub, client: Client, copy: Path, source: Path, name: str) -> None:
    client(copy, name)
    build.build(str(source), copy, ["rgb"], image_format="png")
    server.requests.clear()
    assert client(copy, name)[0] == 0
    sent = sum(request.received for request in server.asked("transfer"))
    images = sum(path.stat().st_size for path in copy.glob("rgb/*.parquet"))
    pictures = sum(path.stat().st_size for path in copy.glob("assets/*"))
    assert images <= sent <= images + pictures
    assert_equal(server, name, copy, commits=2)


def test_private_is_private(server: hub.Hub, client: Client, local: Path, name: str) -> None:
    assert client(local, name, "--private", loads=True)[0] == 0
    assert server.repository(name).private


def test_a_pull_request_leaves_the_branch_alone_and_is_found_again(
    server: hub.Hub, client: Client, local: Path, name: str
) -> None:
    server.create(name)
    code, text = client(local, name, "--create-pr", loads=True)
    assert code == 0, text
    assert f"{server.endpoint}/datasets/{name}/discussions/1\n" in text
    assert 'revision="refs/pr/1")' in text
    assert len(server.repository(name).history()) == 1
    assert_equal(server, name, local, "refs/pr/1")
    code, text = client(local, name, "--create-pr")
    assert "up to date: refs/pr/1 proposes exactly this" in text
    assert list(server.repository(name).pulls) == [1]


# ── Preflight ────────────────────────────────────────────────────────────────────────────────────────────────────────


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


SHARD = "all/test-00000-of-00001.parquet"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
    "incomplete": (lambda folder: (folder / "README.md").write_text(card.INCOMPLETE), "the build is incomplete"),
    "a shard is missing": (lambda folder: (folder / SHARD).unlink(), SHARD),
    "a shard is short": (lambda folder: cut(folder / SHARD), SHARD),
    "a shard has changed": (lambda folder: flip(folder / SHARD), SHARD),
    "a picture has changed": (lambda folder: flip(folder / "assets/classes.png"), "assets/classes.png: sha256"),
    "a stray file": (lambda folder: (folder / "notes.txt").touch(), "notes.txt: a stray file"),
    "a script": (lambda folder: (folder / "so2sat.py").touch(), "so2sat.py: a loading script"),
    "legacy metadata": (lambda folder: (folder / "dataset_infos.json").touch(), "dataset_infos.json: legacy"),
    "another card": (
        lambda folder: (folder / "README.md").write_text((folder / "README.md").read_text() + "!"),
        "README.md: text differs",
    ),
    "a glob that matches nothing": (
        lambda folder: (folder / "README.md").write_text(
            (folder / "README.md").read_text().replace("path: rgb/test-*", "path: rgb/tset-*")
        ),
        "matches no file",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_sound_is_not_sent(damage: str, server: hub.Hub, client: Client, copy: Path, name: str) -> None:
    change, problem = DAMAGES[damage]
    change(copy)
    code, text = client(copy, name)
    assert code == 1
    assert problem in text
    assert sum(line.startswith("error: ") for line in text.splitlines()) == 1
    assert not server.asked("create", "preupload", "batch", "transfer", "commit")


@pytest.mark.parametrize(
    ("token", "owner", "problem"),
    [
        (None, "org", "no token of the Hub: run 'hf auth login', or set HF_TOKEN"),
        ("hf_unknown", "org", "the Hub does not know this token"),
        ("read", "org", "this token may only read"),
        ("stranger", "org", "who is not in org and can't make it"),
    ],
)
def test_a_token_that_may_not_write_is_told_before_anything_is_sent(
    token: str | None, owner: str, problem: str, server: hub.Hub, local: Path
) -> None:
    name = f"{owner}/so2sat-{next(NUMBERS)}"
    environment = server.environment(token, home=f"home-{token}")
    done = subprocess.run([sys.executable, SCRIPT, local, name], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert problem in done.stderr
    assert "Traceback" not in done.stderr
    secrets = [known.secret for known in server.tokens.values()] + ["hf_unknown"]
    assert not any(secret in done.stdout + done.stderr for secret in secrets)
    assert not server.asked("create", "preupload", "batch", "transfer", "commit")


def test_who_may_not_write_is_told_of_pull_requests(server: hub.Hub, local: Path, name: str) -> None:
    server.create(name)
    environment = server.environment("stranger", home="stranger")
    done = subprocess.run([sys.executable, SCRIPT, local, name], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"stranger may not write to {name}; --create-pr proposes the change" in done.stderr


def test_a_revision_that_is_not_there_is_an_error(server: hub.Hub, client: Client, local: Path, name: str) -> None:
    server.create(name)
    code, text = client(local, name, "--revision", "nowhere")
    assert (code, "has no revision nowhere" in text) == (1, True)


@pytest.mark.parametrize("name", ["so2sat", "a/b/c", "org/", "hf://org/so2sat"])
def test_what_is_no_name_is_a_usage_error(name: str, client: Client, local: Path) -> None:
    code, text = client(local, name)
    assert (code, "error: argument ORG/NAME: " in text) == (2, True)


def test_help_has_examples(client: Client) -> None:
    assert "python scripts/upload.py build/so2sat ORG/so2sat --dry-run" in client("--help")[1]


# ── Disturbances ─────────────────────────────────────────────────────────────────────────────────────────────────────

STAGES = ["whoami", "auth", "validate", "info", "create", "tree", "preupload", "batch", "transfer", "commit"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["429", "500", "503", "cut", "lost"])
def test_one_failure_anywhere_changes_nothing_in_the_end(
    stage: str, kind: str, server: hub.Hub, client: Client, local: Path, name: str
) -> None:
    fault = server.fail(stage, kind)
    code, text = client(local, name)
    if code:
        code, text = client(local, name)
    assert code == 0, text
    assert fault.times == 0
    assert_equal(server, name, local)


@pytest.mark.parametrize("kind", ["503", "cut", "lost"])
@pytest.mark.parametrize("stage", ["refs", "commit"])
def test_one_failure_makes_no_second_pull_request(
    stage: str, kind: str, server: hub.Hub, client: Client, local: Path, name: str
) -> None:
    server.create(name)
    fault = server.fail(stage, kind)
    code, text = client(local, name, "--create-pr")
    assert code == 0, text
    assert fault.times == 0
    assert_equal(server, name, local, "refs/pr/1")
    assert list(server.repository(name).pulls) == [1]


def test_a_hub_that_stays_away_is_told_in_one_line(server: hub.Hub, client: Client, local: Path, name: str) -> None:
    server.fail("whoami", "503", times=float("inf"))
    code, text = client(local, name)
    assert code == 1
    assert text.splitlines()[-2].startswith("error: the Hub: ") or "error: the Hub: " in text
    assert "nothing is lost, run the same command again" in text
    assert "Traceback" not in text


def test_a_change_by_somebody_else_is_refused_and_the_next_run_works(
    server: hub.Hub, client: Client, local: Path, name: str
) -> None:
    server.create(name)

    def meddle(request: hub.Request) -> None:
        server.hooks.clear()
        server.commit(name, {"LICENSE": b"theirs"})

    server.on("commit", meddle)
    code, text = client(local, name)
    assert code == 1
    assert "somebody else has changed main meanwhile" in text
    assert [commit.title for commit in server.repository(name).history()] == ["Someone else's", "initial commit"]
    assert client(local, name)[0] == 0
    assert server.repository(name).files()["LICENSE"] == b"theirs"


@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_after_an_interruption_only_what_is_missing_is_sent(
    how: signal.Signals, status: int, server: hub.Hub, local: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, SCRIPT, str(local), name]
    started: list[subprocess.Popen[bytes]] = []
    transfers = itertools.count()

    def strike(request: hub.Request) -> None:
        if next(transfers) == 6 and started:  # the second lot of files
            started[0].send_signal(how)
            time.sleep(0.5)

    server.on("transfer", strike)
    process = hearing(command, env=server.environment(), stderr=subprocess.PIPE)
    started.append(process)
    error = process.communicate()[1].decode()
    assert process.returncode == status, error
    assert "Traceback" not in error
    assert server.repository(name).files().keys() == {".gitattributes"}
    kept = sum(len(content) for content in server.repository(name).contents.values())
    assert kept > 0
    server.hooks.clear()
    server.requests.clear()
    subprocess.run(command, env=server.environment(), check=True)
    large = sum(len(content) for path, content in published(local).items() if path.endswith((".parquet", ".png")))
    sent = sum(request.received for request in server.asked("transfer"))
    assert sent <= large - kept + 20_000  # `kept` counts small files of Git too
    assert_equal(server, name, local)
