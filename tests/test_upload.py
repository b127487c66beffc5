"""Uploads to a Hub on loopback: all or nothing, whatever happens on the way."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fnmatch
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

import h5py
import pytest

import build
import hub
import sample
import so2sat
import upload
from conftest import contents, hearing, legacy_python, serving
from publishing import card, manifest

SCRIPT = upload.__file__
NUMBERS = itertools.count()
CHECKED: set[str] = set()  # commits that were looked at
SENDING = ("create", "preupload", "batch", "transfer", "verify", "commit")

# Runs many uploads in one process, which is fast; the look at the result, another process, only when asked for.
DRIVER = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import upload
from publishing import layout
upload._wait = lambda state: 0.02
load_back = upload._load_back
if len(sys.argv) > 2:  # rows of a shard, so that small sources make many
    layout.MAX_SHARD_ROWS.update(dict.fromkeys(layout.MAX_SHARD_ROWS, int(sys.argv[2])))
    layout.ROW_GROUP_ROWS.update(dict.fromkeys(layout.ROW_GROUP_ROWS, int(sys.argv[2])))
for line in sys.stdin:
    arguments, loads, token = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({"HF_TOKEN": token} if token else {})
    upload._load_back = load_back if loads else lambda *args: None
    try:
        code = upload.main(arguments)
    except SystemExit as error:
        code = error.code
    print(f"\\nexit {code}", flush=True)
"""


class Client:
    """A process that uploads, with what it printed."""

    def __init__(
        self, server: hub.Hub, rows: int | None = None, cwd: Path | None = None, variables: dict[str, str] | None = None
    ) -> None:
        limits = [str(rows)] if rows else []
        self.tokens = {name: token.secret for name, token in server.tokens.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(Path(SCRIPT).parent), *limits],
            env={**server.environment(None), **(variables or {})},
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, *arguments: str | Path, loads: bool = False, token: str | None = "write") -> tuple[int, str]:
        secret = self.tokens.get(token or "", token)
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([[*map(str, arguments)], loads, secret]) + "\n")
        self.process.stdin.flush()
        text = ""
        for line in self.process.stdout:
            if line.startswith("exit "):
                assert "Traceback" not in text, text
                assert not any(known in text for known in [*self.tokens.values(), secret or self.tokens["write"]])
                assert line == "exit 0\n" or "error: " in text, text
                return int(line.split()[1]), text
            text += line
        raise AssertionError(text)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *of_an_error: object) -> None:
        self.process.kill()
        self.process.communicate()


def check_commit(repository: hub.Repository, revision: str, commit: hub.Commit) -> None:
    """A reader of this commit finds a whole repository: files as the manifest has them, and no other shard."""
    files = repository.files(commit.sha)
    manifest = json.loads(files["manifest.json"])
    sums = {**manifest["files"], **{name: record["sha256"] for name, record in manifest["shards"].items()}}
    assert {name: hashlib.sha256(files[name]).hexdigest() for name in sums} == sums
    assert {name for name in files if name.endswith(".parquet")} == {*manifest["shards"]}
    assert not files.keys() & {"so2sat.py", "dataset_infos.json"}
    matched = {}
    for config in hub.front_matter(files["README.md"].decode())["configs"]:
        for split in config["data_files"]:
            prefix = f"{config['config_name']}/{split['split']}-"
            matched[prefix] = {name for name in files if fnmatch.fnmatch(name, split["path"])}
            assert matched[prefix] == {name for name in manifest["shards"] if name.startswith(prefix)} != set()
    assert set().union(*matched.values()) == {*manifest["shards"]}


def let_read(server: hub.Hub) -> None:
    """Looks at all repositories in the middle of every request."""
    for stage in hub.STAGES:
        server.on(stage, lambda request: check_branches(server))


def check_branches(server: hub.Hub) -> None:
    """At this moment, too, readers find a whole repository, or none yet."""
    for repository in list(server.repositories.values()):
        commit = repository.at("main")
        if commit.author == "maker" and commit.sha not in CHECKED:
            check_commit(repository, "main", commit)
            CHECKED.add(commit.sha)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hub.Hub]:
    with hub.serving(tmp_path_factory.mktemp("hub")) as running:
        running.watch(check_commit)
        let_read(running)
        yield running


@pytest.fixture(scope="module")
def client(server: hub.Hub) -> Iterator[Client]:
    with Client(server) as running:
        yield running


@pytest.fixture(autouse=True)
def _undisturbed(server: hub.Hub) -> Iterator[None]:
    yield
    assert server.unknown == []
    assert server.errors == []
    server.faults.clear()
    server.hooks.clear()
    server.requests.clear()
    let_read(server)


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


BUILD = """
import sys
sys.path.insert(0, sys.argv[1])
from publishing import layout
layout.MAX_SHARD_ROWS.update(dict.fromkeys(layout.MAX_SHARD_ROWS, 5))
layout.ROW_GROUP_ROWS.update(dict.fromkeys(layout.ROW_GROUP_ROWS, 5))
import build
if __name__ == "__main__":
    sys.exit(build.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def many(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config rgb of the same data in four shards for each split. Read only; upload it with `small_shards`."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "build.py").write_text(BUILD)
    options: list[str | Path] = [source, folder / "so2sat", "--config", "rgb", "--workers", "1"]
    subprocess.run([sys.executable, folder / "build.py", Path(SCRIPT).parent, *options], check=True)
    assert len([*folder.glob("so2sat/rgb/*")]) == 12
    return folder / "so2sat"


@pytest.fixture
def small_shards(server: hub.Hub) -> Iterator[Client]:
    with Client(server, rows=5) as running:
        yield running


@pytest.fixture
def copy(local: Path, tmp_path: Path) -> Path:
    """A copy of `local` to change."""
    return Path(shutil.copytree(local, tmp_path / "so2sat"))


@pytest.fixture
def name() -> str:
    return f"org/so2sat-{next(NUMBERS)}"


def assert_equal(server: hub.Hub, name: str, folder: Path, revision: str = "main", commits: int = 1) -> None:
    """The Hub holds the folder, brought by so many commits after the first, and nobody else's."""
    repository = server.repository(name)
    files = repository.files(revision)
    files.pop(".gitattributes")
    assert files == contents(folder)
    assert len(repository.history(revision)) == 1 + commits


# ── What it is for ───────────────────────────────────────────────────────────────────────────────────────────────────

USE = """
import json, os, sys
import datasets
import pyarrow as pa
from datasets.distributed import split_dataset_by_node
import pyarrow.parquet as pq
from pathlib import Path
name, version, local, *configs = sys.argv[1:]
assert datasets.__version__.startswith(version)
found = {"default": datasets.load_dataset(name, split="test").column_names}
for config in configs:
    info = datasets.load_dataset_builder(name, config).info
    loaded = datasets.load_dataset(name, config)
    stream = datasets.load_dataset(name, config, split="train", streaming=True)
    halves = [split_dataset_by_node(stream, rank, 2) for rank in range(2)]
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
        "halves": sorted(row["sample_id"] for half in halves for row in half),
    }
one = datasets.load_dataset(name, "all", split="train", streaming=True, columns=["sentinel2", "label"])
found["columns"] = sorted({key for row in one for key in row})
print(json.dumps(found), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("version", ["5", "3.6"])
def test_what_was_uploaded_loads_in_every_way(
    version: str, server: hub.Hub, client: Client, local: Path, source: Path, name: str
) -> None:
    code, text = client(local, name, loads=version == "5")
    assert code == 0, text
    assert text.endswith(
        f'{server.endpoint}/datasets/{name}\nload_dataset("{name}", "rgb")\nload_dataset("{name}", "all")\n\n'
    )
    assert_equal(server, name, local)
    python = str(legacy_python()) if version == "3.6" else sys.executable
    run = [python, "-c", USE, name, version, str(local), "rgb", "all", "geo"]
    done = subprocess.run(run, env=server.environment(home=version), capture_output=True, text=True)
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
        assert found[config]["halves"] == list(range(20))


def test_a_dry_run_tells_the_plan_and_changes_nothing(server: hub.Hub, client: Client, local: Path, name: str) -> None:
    code, text = client(local, name, "--dry-run")
    assert code == 0
    size = sum(len(content) for content in contents(local).values())
    assert f"{len(contents(local))} files are new or changed, {size:,} bytes" in text
    assert "dry run: nothing was sent" in text
    assert name not in server.repositories
    assert not server.asked(*SENDING)


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
    for file in (tmp_path / "edition1").glob("testing*"):
        file.unlink()
    build.build(str(tmp_path / "edition1"), copy, drop=True)
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
    assert {path: content for path, content in files.items() if path not in (".gitattributes", "LICENSE")} == contents(
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


def test_other_shards_take_the_place_of_the_old_in_one_commit(
    server: hub.Hub, client: Client, small_shards: Client, local: Path, many: Path, name: str
) -> None:
    for run, (uploader, folder) in enumerate([(client, local), (small_shards, many), (client, local)], 1):
        if run == 2:
            server.requests.clear()
            server.page_size = 5
            code, text = uploader(folder, name, "--dry-run")
            assert code == 0
            assert "    new: rgb/ 12 files, " in text
            assert "    changed: README.md " in text
            assert "    deleted: all/test-00000-of-00001.parquet\n" in text
            assert not server.asked(*SENDING)
            assert {request.stage for request in server.requests if request.received} == {"validate"}
        code, text = uploader(folder, name)
        assert code == 0, text
        assert_equal(server, name, folder, commits=run)
    server.page_size = 1000


def test_of_a_picture_that_has_changed_only_that_is_sent(
    server: hub.Hub, client: Client, copy: Path, name: str
) -> None:
    client(copy, name)
    picture = copy / "assets" / "classes.png"
    picture.write_bytes(picture.read_bytes() + b"\0")
    built = manifest.Manifest.load(copy)
    assert built
    built.files["assets/classes.png"] = hashlib.sha256(picture.read_bytes()).hexdigest()
    built.save(copy)
    server.requests.clear()
    assert client(copy, name)[0] == 0
    assert [request.received for request in server.asked("transfer")] == [picture.stat().st_size]
    assert_equal(server, name, copy, commits=2)


def test_a_branch_is_changed_alone(server: hub.Hub, client: Client, local: Path, name: str) -> None:
    repository = server.create(name)
    repository.refs["refs/heads/next"] = repository.at("main").sha
    code, text = client(local, name, "--revision", "next")
    assert code == 0
    assert f'load_dataset("{name}", "rgb", revision="next")' in text
    assert_equal(server, name, local, "next")
    assert repository.files().keys() == {".gitattributes"}


def test_a_pull_request_that_was_closed_is_made_again(server: hub.Hub, client: Client, local: Path, name: str) -> None:
    repository = server.create(name)
    client(local, name, "--create-pr")
    repository.pulls[1].status = "closed"
    assert client(local, name, "--create-pr")[0] == 0
    assert list(repository.pulls) == [1, 2]
    assert_equal(server, name, local, "refs/pr/2")


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
    assert not server.asked(*SENDING)


@pytest.mark.parametrize(
    ("token", "problem"),
    [
        (None, "no token of the Hub: run 'hf auth login', or set HF_TOKEN"),
        ("hf_unknown", "the Hub does not know this token"),
        ("read", "this token may only read"),
        ("hf_ünknown", "the Hub: 'ascii' codec can't encode"),
        ("stranger", "who is not in org and can't make it"),
    ],
)
def test_a_token_that_may_not_write_is_told_before_anything_is_sent(
    token: str | None, problem: str, server: hub.Hub, client: Client, local: Path, name: str
) -> None:
    code, text = client(local, name, token=token)
    assert code == 1
    assert problem in text
    assert not server.asked(*SENDING)


def test_who_may_not_write_is_told_of_pull_requests(server: hub.Hub, client: Client, local: Path, name: str) -> None:
    server.create(name)
    code, text = client(local, name, token="stranger")
    assert (code, f"stranger may not write to {name}; --create-pr proposes the change" in text) == (1, True)
    assert not server.asked(*SENDING)
    assert client(local, name, "--create-pr", token="stranger")[0] == 0
    assert_equal(server, name, local, "refs/pr/1")


def test_a_revision_that_is_not_there_is_an_error(server: hub.Hub, client: Client, local: Path, name: str) -> None:
    server.create(name)
    code, text = client(local, name, "--revision", "nowhere")
    assert (code, "has no revision nowhere" in text) == (1, True)


def test_a_revision_of_a_dataset_that_is_not_there_makes_none(
    server: hub.Hub, client: Client, local: Path, name: str
) -> None:
    code, text = client(local, name, "--revision", "next")
    assert (code, f"{name} is not there, so it has no revision next" in text) == (1, True)
    assert not server.asked(*SENDING)


def test_what_is_public_is_not_taken_for_private(server: hub.Hub, client: Client, local: Path, name: str) -> None:
    server.create(name)
    code, text = client(local, name, "--private")
    assert (code, "is there already, and public" in text) == (1, True)
    assert not server.asked(*SENDING)


def test_what_the_hub_would_leave_out_is_refused(server: hub.Hub, client: Client, local: Path, name: str) -> None:
    server.create(name)
    server.commit(name, {".gitignore": b"*.parquet\n"})
    code, text = client(local, name)
    assert (code, "has a .gitignore" in text) == (1, True)
    assert not server.asked(*SENDING)


@pytest.mark.parametrize("name", ["so2sat", "a/b/c", "a/-b", "a/b..c", "a/b.git", "ä/b", "org/", "hf://org/so2sat"])
def test_what_is_no_name_is_a_usage_error(name: str, client: Client, local: Path) -> None:
    code, text = client(local, name)
    assert (code, "error: argument ORG/NAME: " in text) == (2, True)


def test_help_has_examples(client: Client) -> None:
    assert "python scripts/upload.py build/so2sat ORG/so2sat --dry-run" in client("--help")[1]


# ── Disturbances ─────────────────────────────────────────────────────────────────────────────────────────────────────

# Stage, how many of its requests come through before, whether for a pull request, whether the result is loaded.
KINDS = ("429", "500", "503", "cut", "lost")
Case = tuple[str, int, bool, bool, str]
FAULTS: list[Case] = [
    *((stage, 0, False, False, kind) for stage in ("whoami", "auth", "info", "tree", *SENDING) for kind in KINDS),
    *(("validate", 0, False, False, kind) for kind in KINDS),
    *((stage, 1, False, False, kind) for stage in ("validate", "info", "tree", "transfer") for kind in ("503", "lost")),
    *((stage, 0, True, False, kind) for stage in ("refs", "commit") for kind in KINDS),
    *((stage, 0, True, False, kind) for stage in ("preupload", "batch", "transfer") for kind in ("cut", "lost")),
    *((stage, 0, False, True, kind) for stage in ("resolve", "download") for kind in KINDS),
]


@pytest.fixture(scope="module")
def outcomes(server: hub.Hub, many: Path) -> dict[Case, tuple[str, hub.Fault, int, str]]:
    """For each fault the repository that it befell, the fault, and how the upload ended, after at most one rerun."""

    def suffer(case: Case) -> tuple[str, hub.Fault, int, str]:
        stage, after, is_proposed, loads, kind = case
        name = f"org/{stage}-{after}-{'pr' if is_proposed else 'main'}-{kind}"
        if stage != "create":
            server.create(name)
        told_apart = stage not in ("whoami", "validate", "create")
        fault = server.fail(stage, kind, after=after, path=name if told_apart else "")
        options = ["--create-pr"] if is_proposed else []
        client = clients.pop()
        code, text = client(many, name, *options, loads=loads)
        if code:
            code, text = client(many, name, *options, loads=loads)
        clients.append(client)
        return name, fault, code, text

    # Those whose requests don't tell the repository come first, one after another.
    order = sorted(FAULTS, key=lambda case: case[0] not in ("whoami", "validate", "create"))
    alone = [case for case in order if case[0] in ("whoami", "validate", "create")]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server, rows=5)) for _ in range(4)]
        told = {case: suffer(case) for case in alone}
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            told.update(zip(order[len(alone) :], pool.map(suffer, order[len(alone) :])))
    return told


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: "-".join(map(str, case)))
def test_one_failure_anywhere_changes_nothing_in_the_end(
    case: Case, outcomes: dict[Case, tuple[str, hub.Fault, int, str]], server: hub.Hub, many: Path
) -> None:
    name, fault, code, text = outcomes[case]
    assert code == 0, text
    assert fault.times == 0
    is_proposed = case[2]
    assert_equal(server, name, many, "refs/pr/1" if is_proposed else "main")
    assert list(server.repository(name).pulls) == ([1] if is_proposed else [])
    assert len(server.repository(name).commits) == 2


@pytest.mark.parametrize("stage", ["whoami", "validate", "commit"])
def test_a_hub_that_stays_away_is_told_in_one_line(
    stage: str, server: hub.Hub, client: Client, local: Path, name: str
) -> None:
    server.fail(stage, "503", times=float("inf"))
    code, text = client(local, name)
    assert code == 1
    (line,) = (line for line in text.splitlines() if line.startswith("error: "))
    assert line.startswith("error: the Hub: ")
    assert line.endswith("nothing is lost, run the same command again")
    assert len(server.asked(stage)) == 8
    server.faults.clear()
    assert client(local, name)[0] == 0
    assert_equal(server, name, local)


@pytest.mark.parametrize("stage", ["preupload", "commit"])
def test_a_change_by_somebody_else_is_refused_and_the_next_run_works(
    stage: str, server: hub.Hub, client: Client, local: Path, name: str
) -> None:
    server.create(name)

    def meddle(request: hub.Request) -> None:
        server.hooks.clear()
        server.commit(name, {"LICENSE": b"theirs"})

    server.on(stage, meddle)
    code, text = client(local, name)
    assert code == 1
    assert "somebody else has changed main meanwhile" in text
    assert [commit.title for commit in server.repository(name).history()] == ["Someone else's", "initial commit"]
    assert client(local, name)[0] == 0
    assert server.repository(name).files()["LICENSE"] == b"theirs"


@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_after_an_interruption_only_what_is_missing_is_sent(
    how: signal.Signals, status: int, server: hub.Hub, client: Client, local: Path, name: str
) -> None:
    command = [sys.executable, SCRIPT, str(local), name]
    started: list[subprocess.Popen[bytes]] = []
    transfers = itertools.count()

    def strike(request: hub.Request) -> None:
        if next(transfers) == 6 and started:  # the second lot of files
            started[0].send_signal(how)
            started[0].wait(20)  # it does not wait for this answer

    server.on("transfer", strike)
    process = hearing(command, env=server.environment(), stderr=subprocess.PIPE)
    started.append(process)
    error = process.communicate()[1].decode()
    assert process.returncode == status, error
    assert "Traceback" not in error
    while not all(request.done for request in server.requests):
        time.sleep(0.01)  # what the client sent before its end may still arrive
    assert server.repository(name).files().keys() == {".gitattributes"}
    kept = sum(len(content) for oid, content in server.repository(name).contents.items() if len(oid) == 64)
    assert kept > 0
    server.hooks.clear()
    server.requests.clear()
    assert client(local, name)[0] == 0
    large = sum(len(content) for path, content in contents(local).items() if path.endswith((".parquet", ".png")))
    sent = sum(request.received for request in server.asked("transfer"))
    assert sent == large - kept
    assert_equal(server, name, local)


# ── Surroundings ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_card_that_changes_meanwhile_is_uploaded_as_it_was(
    server: hub.Hub, client: Client, local: Path, copy: Path, name: str
) -> None:
    server.on("transfer", lambda request: (copy / "README.md").write_text(card.INCOMPLETE))
    assert client(copy, name)[0] == 0
    assert_equal(server, name, local)


def test_a_folder_that_changes_meanwhile_is_not_committed(
    server: hub.Hub, client: Client, copy: Path, name: str
) -> None:
    def rebuild(request: hub.Request) -> None:
        shutil.copy(copy / SHARD, copy / "new")
        (copy / "new").replace(copy / SHARD)

    server.on("batch", rebuild)
    code, text = client(copy, name)
    assert (code, "was changed while it was sent; nothing was committed" in text) == (1, True)
    assert server.repository(name).files().keys() == {".gitattributes"}
    server.hooks.clear()
    assert client(copy, name)[0] == 0
    assert_equal(server, name, copy)


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "offline mode"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "Connection refused"),
    ],
)
def test_a_hub_out_of_reach_is_told_in_one_line(
    environment: dict[str, str], problem: str, server: hub.Hub, local: Path, name: str
) -> None:
    with Client(server, variables=environment) as client:
        code, text = client(local, name)
    assert (code, problem in text) == (1, True), text


def test_a_page_that_is_not_of_the_hub_is_told_in_one_line(
    server: hub.Hub, local: Path, name: str, tmp_path: Path
) -> None:
    """As of a network that wants a password first."""
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "whoami-v2").write_text("<html>Welcome</html>")
    with serving(tmp_path) as portal, Client(server, variables={"HF_ENDPOINT": portal.url}) as client:
        code, text = client(local, name)
    assert (code, "error: the Hub: " in text) == (1, True), text


def test_names_and_places_do_not_matter(server: hub.Hub, local: Path, name: str, tmp_path: Path) -> None:
    """A read-only folder behind a link with another name, a token in a file, an address with a slash at its end, and a
    folder that is called like the dataset, which load_dataset would prefer to the Hub.
    """
    folder = Path(shutil.copytree(local, tmp_path / "Städte ☂"))
    folder.chmod(0o555)
    (tmp_path / "so2sat").symlink_to(folder)
    (tmp_path / name / "rgb").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text("hf_write\n")
    more = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": f"{server.endpoint}/"}
    with Client(server, cwd=tmp_path, variables=more) as client:
        code, text = client("so2sat", name, loads=True, token=None)
    folder.chmod(0o755)
    assert code == 0, text
    assert f"\n{server.endpoint}/datasets/{name}\n" in text
    assert_equal(server, name, local)
