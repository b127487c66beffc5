"""The tests' Hub, seen through the clients of the real one, each in a process of its own."""

from __future__ import annotations

import concurrent.futures
import hashlib
import http.client
import io
import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hub

NAME = "org/name"
CARD = """---
license: cc-by-4.0
configs:
- config_name: numbers
  data_files:
  - split: train
    path: numbers/train-*.parquet
  - split: test
    path: numbers/test-*.parquet
---
# Numbers
"""
PRELUDE = """
import json, sys, time
from huggingface_hub import *
from huggingface_hub.errors import *
name, api, result = "org/name", HfApi(), None
dataset = {"repo_id": name, "repo_type": "dataset"}
Add, Delete = CommitOperationAdd, CommitOperationDelete

def refusal(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        return [type(error).__name__, status, str(error)]

globals().update(json.loads(sys.argv[1]))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[hub.Hub]:
    """A Hub with an empty repository."""
    with hub.serving(tmp_path) as running:
        running.create(NAME)
        yield running
        assert running.unknown == []


def started(
    server: hub.Hub, code: str, token: str | None = "write", home: str = "home", **known: Any
) -> subprocess.Popen[str]:
    """Starts Python code as a client of the server. `known` are variables of it."""
    command = [
        sys.executable,
        "-c",
        f"{PRELUDE}\n{textwrap.dedent(code)}\nprint(json.dumps(result))",
        json.dumps(known),
    ]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=server.environment(token, home), text=True, **pipes)


def client(server: hub.Hub, code: str, token: str | None = "write", home: str = "home", **known: Any) -> Any:
    """Runs Python code as a client of the server and returns what it calls `result`."""
    process = started(server, code, token, home, **known)
    told, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(told.splitlines()[-1])


def ask(
    server: hub.Hub, method: str, path: str, body: bytes = b"", token: str = "", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """Asks the server without any client library. The path may be one at the large file storage."""
    origin = server.storage if path.startswith(server.storage) else server.endpoint
    connection = http.client.HTTPConnection(origin.removeprefix("http://"), timeout=10)
    if token:
        headers["Authorization"] = f"Bearer {server.tokens[token].secret}"
    connection.request(method, path.removeprefix(origin), body, headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


def shard(first: int, rows: int = 100) -> bytes:
    """A Parquet file of some numbers, in row groups of ten."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"number": range(first, first + rows)}), buffer, row_group_size=10)
    return buffer.getvalue()


@pytest.fixture
def filled(server: hub.Hub) -> hub.Hub:
    """A Hub whose repository is a dataset."""
    files = {f"numbers/train-{i}.parquet": shard(100 * i) for i in range(3)} | {"numbers/test-0.parquet": shard(300)}
    server.commit(NAME, {"README.md": CARD.encode(), **files}, "Numbers")
    return server


# Uploads

UPLOAD = """
    contents = {"README.md": card.encode(), "data/a.parquet": b"PAR1" * 1000, "data/b.parquet": b"b" * 10}
    operations = [Add(*item) for item in contents.items()]
    commit = api.create_commit(**dataset, operations=operations, commit_message="First", commit_description="Why")
    result = commit.oid
"""


def test_a_commit_holds_what_was_sent(server: hub.Hub) -> None:
    sha = client(server, UPLOAD, card=CARD)
    files = server.repository(NAME).files()
    assert files.pop(".gitattributes")
    assert files == {"README.md": CARD.encode(), "data/a.parquet": b"PAR1" * 1000, "data/b.parquet": b"b" * 10}
    first, initial = server.repository(NAME).history()
    assert (first.sha, first.parent, first.title, first.message, first.author) == (
        sha,
        initial.sha,
        "First",
        "Why",
        "maker",
    )
    assert initial.title == "initial commit"
    large = {path: entry.sha256 for path, entry in first.tree.items() if entry.sha256}
    assert large == {path: hashlib.sha256(files[path]).hexdigest() for path in ("data/a.parquet", "data/b.parquet")}
    assert sorted(request.received for request in server.asked("transfer")) == [10, 4000]


def test_what_is_there_is_not_sent_again(server: hub.Hub) -> None:
    sha = client(server, UPLOAD, card=CARD)
    server.requests.clear()
    assert client(server, UPLOAD, card=CARD) == sha
    assert server.asked("transfer", "verify", "commit") == []
    assert len(server.repository(NAME).history()) == 2


def test_a_file_sent_ahead_is_there_for_the_commit(server: hub.Hub) -> None:
    code = """
        for _ in range(2):
            ahead = Add("a.parquet", b"a" * 1000)
            api.preupload_lfs_files(**dataset, additions=[ahead])
        result = [entry.path for entry in api.list_repo_tree(**dataset)]
        api.create_commit(**dataset, operations=[ahead], commit_message="Ahead")
    """
    assert client(server, code) == [".gitattributes"]
    assert [request.received for request in server.asked("transfer")] == [1000]
    assert server.repository(NAME).files()["a.parquet"] == b"a" * 1000


def test_a_large_file_goes_in_parts(server: hub.Hub, tmp_path: Path) -> None:
    server.multipart_size = 1000
    (tmp_path / "a").write_bytes(content := bytes(range(250)) * 10)
    code = """
        api.upload_file(path_or_fileobj=path, path_in_repo="a.bin", **dataset)
    """
    client(server, code, path=str(tmp_path / "a"))
    assert [request.received for request in server.asked("transfer")] == [1000, 1000, 500]
    assert len(server.asked("complete")) == len(server.asked("verify")) == 1
    assert server.repository(NAME).files()["a.bin"] == content


def test_ignored_text_and_binary_files_go_their_ways(server: hub.Hub) -> None:
    server.commit(NAME, {".gitignore": b"*.log\n"})
    code = """
        contents = {"a.txt": b"text", "b.dat": bytes(range(256)), "c.log": b"log", "d.txt": b"large " * 2_000_000}
        api.create_commit(**dataset, operations=[Add(*item) for item in contents.items()], commit_message="Kinds")
    """
    client(server, code)
    tree = server.repository(NAME).at("main").tree
    assert {path: bool(tree[path].sha256) for path in tree if "." in path[1:]} == {
        **{"a.txt": False, "b.dat": True, "d.txt": True},
    }
    assert server.repository(NAME).is_tracked(tree, "b.dat")


def test_files_and_folders_can_be_deleted(filled: hub.Hub) -> None:
    code = """
        api.create_commit(**dataset, operations=[Delete("README.md")], commit_message="No card")
        result = [
            refusal(api.create_commit, **dataset, operations=[Delete(path)], commit_message="No")
            for path in ("README.md", "none/")
        ]
        api.create_commit(**dataset, operations=[Delete("numbers/"), Add("new", b"new")], commit_message="Only new")
    """
    refusals = client(filled, code)
    assert [refusal[:2] for refusal in refusals] == [["RemoteEntryNotFoundError", 404]] * 2
    assert filled.repository(NAME).files().keys() == {".gitattributes", "new"}


def test_a_pointer_to_nothing_is_refused(server: hub.Hub) -> None:
    lines = [
        {"key": "header", "value": {"summary": "Dangling"}},
        {"key": "file", "value": {"path": "a.txt", "content": "YQ==", "encoding": "base64"}},
        {"key": "lfsFile", "value": {"path": "a.parquet", "algo": "sha256", "oid": "0" * 64, "size": 1}},
    ]
    body = "\n".join(map(json.dumps, lines)).encode()
    response, content = ask(server, "POST", f"/api/datasets/{NAME}/commit/main", body, "write")
    assert response.status == 400
    assert b"LFS pointer pointed to a file that does not exist" in content
    assert len(server.repository(NAME).history()) == 1


def test_a_commit_that_changes_nothing_is_one_too(server: hub.Hub) -> None:
    body = b'{"key": "header", "value": {"summary": "Nothing"}}\n'
    response, _ = ask(server, "POST", f"/api/datasets/{NAME}/commit/main", body, "write")
    assert response.status == 200
    last, first = server.repository(NAME).history()
    assert (last.title, last.tree) == ("Nothing", first.tree)


@pytest.mark.parametrize(("size", "content"), [(5, b"hallo"), (4, b"hello")])
def test_the_storage_takes_only_what_was_announced(server: hub.Hub, size: int, content: bytes) -> None:
    oid = hashlib.sha256(b"hello").hexdigest()
    response, _ = ask(server, "PUT", f"{server.storage}/{NAME}/{oid}?size={size}", content)
    assert response.status == 400
    assert oid not in server.repository(NAME).contents


def test_the_storage_wants_no_token(server: hub.Hub) -> None:
    oid = hashlib.sha256(b"hello").hexdigest()
    response, _ = ask(server, "PUT", f"{server.storage}/{NAME}/{oid}?size=5", b"hello", "write")
    assert response.status == 400


def test_a_moved_parent_is_refused(filled: hub.Hub) -> None:
    filled.on("commit", lambda request: filled.commit(NAME, {"other": b"other"}))
    code = """
        parent = api.dataset_info(name).sha
        result = refusal(
            api.create_commit, **dataset, operations=[Add("mine", b"mine")], commit_message="Mine", parent_commit=parent
        )
    """
    kind, status, message = client(filled, code)
    assert (kind, status) == ("HfHubHTTPError", 412)
    assert "A commit has happened since" in message
    assert filled.repository(NAME).history()[0].title == "Someone else's"
    assert "mine" not in filled.repository(NAME).files()


def test_a_commit_is_seen_before_its_client_knows(server: hub.Hub) -> None:
    seen: list[tuple[str, str, set[str]]] = []
    server.watch(
        lambda repository, revision, commit: seen.append((revision, commit.title, set(repository.files(commit.sha))))
    )
    client(server, UPLOAD, card=CARD)
    assert seen == [("main", "First", {".gitattributes", "README.md", "data/a.parquet", "data/b.parquet"})]


def test_a_pull_request_leaves_the_branch_alone(filled: hub.Hub) -> None:
    code = """
        options = {"operations": [Add("new", b"new")], "commit_message": "New"}
        commit = api.create_commit(**dataset, **options, create_pr=True)
        options = {"operations": [Add("newer", b"newer")], "commit_message": "Newer"}
        api.create_commit(**dataset, **options, revision=commit.pr_revision)
        refs = api.list_repo_refs(**dataset, include_pull_requests=True)
        second = api.create_pull_request(**dataset, title="Empty")
        result = {
            "pull": [commit.pr_num, commit.pr_revision, commit.pr_url],
            "refs": [[ref.name, ref.target_commit] for ref in [*refs.branches, *refs.pull_requests]],
            "discussions": [[pull.num, pull.title, pull.status] for pull in api.get_repo_discussions(**dataset)],
            "second": second.git_reference,
            "content": open(api.hf_hub_download(**dataset, filename="newer", revision="refs/pr/1")).read(),
        }
    """
    before = filled.repository(NAME).at("main").sha
    told = client(filled, code)
    assert told["pull"] == [1, "refs/pr/1", f"{filled.endpoint}/datasets/{NAME}/discussions/1"]
    assert told["refs"] == [["main", before], ["refs/pr/1", filled.repository(NAME).at("refs/pr/1").sha]]
    assert told["discussions"] == [[1, "New", "open"], [2, "Empty", "draft"]]
    assert told["second"] == "refs/pr/2"
    assert told["content"] == "newer"
    titles = [commit.title for commit in filled.repository(NAME).history("refs/pr/1")]
    assert titles == ["Newer", "New", "Numbers", "initial commit"]


def test_a_branch_has_its_own_commits(filled: hub.Hub) -> None:
    code = """
        api.create_branch(name, repo_type="dataset", branch="draft/2")
        api.upload_file(path_or_fileobj=b"new", path_in_repo="new", **dataset, revision="draft/2")
        result = [
            refusal(api.create_branch, name, repo_type="dataset", branch="draft/2"),
            refusal(api.upload_file, path_or_fileobj=b"new", path_in_repo="new", **dataset, revision="none"),
        ]
    """
    refusals = client(filled, code)
    assert [refusal[:2] for refusal in refusals] == [["HfHubHTTPError", 409], ["RevisionNotFoundError", 404]]
    assert filled.repository(NAME).files("draft/2").keys() - filled.repository(NAME).files("main").keys() == {"new"}


def test_cards_are_checked(server: hub.Hub) -> None:
    code = """
        DatasetCard(card).validate()
        result = [
            refusal(DatasetCard(card.replace("cc-by-4.0", "mine")).validate),
            refusal(api.upload_file, path_or_fileobj=b"---\\na: [\\n---\\n", path_in_repo="README.md", **dataset),
        ]
    """
    unknown, broken = client(server, code, card=CARD)
    assert unknown[0] == broken[0] == "ValueError"
    assert "license" in unknown[2]
    assert "Invalid metadata in README.md" in broken[2]
    assert "README.md" not in server.repository(NAME).files()


# Listings


@pytest.mark.parametrize("page_size", [1000, 2])
def test_listings_are_complete_whatever_the_page(filled: hub.Hub, page_size: int) -> None:
    filled.page_size = page_size
    for i in range(3):
        filled.commit(NAME, {"count": str(i).encode()}, f"Count {i}")
    code = """
        info = api.dataset_info(name, files_metadata=True)
        siblings = [(file.rfilename, file.size, file.blob_id, file.lfs and file.lfs.sha256) for file in info.siblings]
        entries = list(api.list_repo_tree(**dataset, recursive=True, expand=True))
        result = {
            "tree": [[entry.path, getattr(entry, "size", None), entry.last_commit.title] for entry in entries],
            "top": [entry.path for entry in api.list_repo_tree(**dataset)],
            "folder": [entry.path for entry in api.list_repo_tree(**dataset, path_in_repo="numbers")],
            "none": refusal(list, api.list_repo_tree(**dataset, path_in_repo="none"))[:2],
            "paths": [entry.path for entry in api.get_paths_info(**dataset, paths=["numbers", "count", "none"])],
            "siblings": siblings,
            "license": info.card_data.license,
            "only": [info.sha, api.dataset_info(name, expand=["sha"]).siblings],
            "commits": [[commit.commit_id, commit.title] for commit in api.list_repo_commits(**dataset)],
        }
    """
    told = client(filled, code)
    tree = filled.repository(NAME).at("main").tree
    titles = {".gitattributes": "initial commit", "count": "Count 2"}
    sizes: dict[str, int | None] = {path: entry.size for path, entry in tree.items()} | {"numbers": None}
    assert told["tree"] == [[path, size, titles.get(path, "Numbers")] for path, size in sorted(sizes.items())]
    assert told["top"] == [".gitattributes", "README.md", "count", "numbers"]
    assert told["folder"] == [f"numbers/{file}.parquet" for file in ("test-0", "train-0", "train-1", "train-2")]
    assert told["none"] == ["RemoteEntryNotFoundError", 404]
    assert told["paths"] == ["numbers", "count"]
    assert told["siblings"] == [[path, entry.size, entry.oid, entry.sha256] for path, entry in sorted(tree.items())]
    assert told["license"] == "cc-by-4.0"
    history = filled.repository(NAME).history()
    assert told["only"] == [history[0].sha, None]
    assert told["commits"] == [[commit.sha, commit.title] for commit in history]
    assert len(filled.asked("tree")) == (4 if page_size == 1000 else 4 + 2 + 2 + 1)
    assert len(filled.asked("history")) == (1 if page_size == 1000 else 3)


# Downloads


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", "refs%2Fpr%2F1", "refs%2Fheads%2Fmain", "sha"])
def test_a_file_is_resolved_by_any_revision(filled: hub.Hub, revision: str) -> None:
    repository = filled.repository(NAME)
    repository.refs["refs/pr/1"] = sha = repository.at("main").sha
    revision = sha if revision == "sha" else revision
    for method, sent in (("HEAD", b""), ("GET", CARD.encode())):
        response, content = ask(filled, method, f"/datasets/{NAME}/resolve/{revision}/README.md")
        assert (response.status, content) == (200, sent)
        assert response.headers["X-Repo-Commit"] == sha
        assert response.headers["ETag"] == f'"{repository.at(sha).tree["README.md"].oid}"'
        assert response.headers["Content-Length"] == str(len(CARD))
        assert response.headers["Accept-Ranges"] == "bytes"


def test_a_large_file_is_resolved_to_the_storage(filled: hub.Hub) -> None:
    content, path = shard(0), "numbers/train-0.parquet"
    entry = filled.repository(NAME).at("main").tree[path]
    for method in ("HEAD", "GET"):
        response, _ = ask(filled, method, f"/datasets/{NAME}/resolve/main/{path}")
        assert response.status == 302
        assert response.headers["X-Linked-Size"] == str(len(content))
        assert response.headers["X-Linked-ETag"] == f'"{entry.sha256}"'
        assert response.headers["X-Repo-Commit"] == filled.repository(NAME).at("main").sha
        assert response.headers["Location"].startswith(filled.storage)
    response, received = ask(filled, "GET", response.headers["Location"])
    assert (response.status, received) == (200, content)


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=5-", 206, slice(5, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=10-100000", 206, slice(10, None)),
        ("bytes=100000-", 416, slice(0, 0)),
    ],
)
@pytest.mark.parametrize("path", ["README.md", "numbers/train-0.parquet"])
def test_ranges_are_served(filled: hub.Hub, path: str, wanted: str, status: int, part: slice) -> None:
    content = filled.repository(NAME).files()[path]
    response, received = ask(filled, "GET", f"/datasets/{NAME}/resolve/main/{path}", Range=wanted)
    if path.endswith(".parquet"):
        response, received = ask(filled, "GET", response.headers["Location"], Range=wanted)
    assert (response.status, received) == (status, content[part])
    assert response.headers["Content-Range"].endswith(f"/{len(content)}")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/datasets/org/none/resolve/main/README.md", 404, "RepoNotFound"),
        ("/datasets/org/name/resolve/none/README.md", 404, "RevisionNotFound"),
        ("/datasets/org/name/resolve/main/none", 404, "EntryNotFound"),
        ("/api/datasets/org/none", 404, "RepoNotFound"),
        ("/api/datasets/org/name/revision/none", 404, "RevisionNotFound"),
        ("/api/datasets/org/name/tree/none", 404, "RevisionNotFound"),
        ("/api/datasets/org/name/tree/main/none", 404, "EntryNotFound"),
    ],
)
def test_what_is_missing_has_a_code(server: hub.Hub, path: str, status: int, code: str) -> None:
    response, _ = ask(server, "GET", path, token="read")
    assert (response.status, response.headers["X-Error-Code"]) == (status, code)


def test_clients_download_what_is_there(filled: hub.Hub, tmp_path: Path) -> None:
    code = """
        folder = snapshot_download(**dataset, local_dir=path, revision="main")
        files = HfFileSystem()
        with files.open(f"datasets/{name}/numbers/train-0.parquet", block_size=100, cache_type="none") as file:
            file.seek(10)
            middle = file.read(20)
        result = {
            "listed": sorted(files.find(f"datasets/{name}")),
            "globbed": sorted(files.glob(f"datasets/{name}@main/*/test-*")),
            "middle": middle.hex(),
            "all": files.read_bytes(f"datasets/{name}/numbers/train-1.parquet").hex(),
            "size": files.info(f"datasets/{name}/README.md")["size"],
            "none": [files.exists(f"datasets/{name}/none"), api.file_exists(name, "none", repo_type="dataset")],
        }
    """
    told = client(filled, code, token=None, path=str(tmp_path / "snapshot"))
    contents = filled.repository(NAME).files()
    for path, content in contents.items():
        assert (tmp_path / "snapshot" / path).read_bytes() == content
    assert told == {
        "listed": [f"datasets/{NAME}/{path}" for path in contents],
        "globbed": [f"datasets/{NAME}@main/numbers/test-0.parquet"],
        "middle": contents["numbers/train-0.parquet"][10:30].hex(),
        "all": contents["numbers/train-1.parquet"].hex(),
        "size": len(CARD),
        "none": [False, False],
    }


LOAD = """
    from datasets import load_dataset, load_dataset_builder
    splits = load_dataset(name, "numbers", revision=revision, streaming=streaming)
    result = {split: sum(row["number"] for row in rows) for split, rows in splits.items()}
    assert load_dataset_builder(name, revision=revision).config.name == "numbers"
"""


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("private", "revision"), [(False, None), (True, "refs/pr/1")])
def test_datasets_are_loaded(filled: hub.Hub, streaming: bool, private: bool, revision: str | None) -> None:
    repository = filled.repository(NAME)
    repository.private, repository.refs["refs/pr/1"] = private, repository.at("main").sha
    told = client(filled, LOAD, token="read" if private else None, revision=revision, streaming=streaming)
    assert told == {"train": sum(range(300)), "test": sum(range(300, 400))}
    sizes = {request.sent for request in filled.asked("download") if request.method == "GET"}
    assert sizes == {len(shard(100 * i)) for i in range(4)}


def test_a_dataset_that_one_may_not_see_is_not_found(filled: hub.Hub) -> None:
    filled.repository(NAME).private = True
    code = """
        from datasets import load_dataset
        result = refusal(load_dataset, name)
    """
    for token in (None, "stranger"):
        assert client(filled, code, token)[0] == "DatasetNotFoundError"


# Rights

UPLOADED, MISSING, HIDDEN = ["ok"], ["RepositoryNotFoundError", 404], ["RepositoryNotFoundError", 401]
FORBIDDEN, UNKNOWN_TOKEN = ["HfHubHTTPError", 403], ["HfHubHTTPError", 401]


@pytest.mark.parametrize(
    ("token", "private", "expected"),
    [
        # whoami, create, read, upload, upload as a pull request
        ("write", False, [["write"], UPLOADED, UPLOADED, UPLOADED, UPLOADED]),
        ("write", True, [["write"], UPLOADED, UPLOADED, UPLOADED, UPLOADED]),
        ("read", False, [["read"], FORBIDDEN, UPLOADED, FORBIDDEN, FORBIDDEN]),
        ("read", True, [["read"], FORBIDDEN, UPLOADED, FORBIDDEN, FORBIDDEN]),
        ("fine-grained", True, [["fineGrained"], UPLOADED, UPLOADED, UPLOADED, FORBIDDEN]),
        ("stranger", False, [["write"], FORBIDDEN, UPLOADED, FORBIDDEN, UPLOADED]),
        ("stranger", True, [["write"], FORBIDDEN, MISSING, MISSING, MISSING]),
        ("hf_revoked", False, [UNKNOWN_TOKEN] * 5),
        (None, False, [["LocalTokenNotFoundError", None], UNKNOWN_TOKEN, UPLOADED, HIDDEN, HIDDEN]),
        (None, True, [["LocalTokenNotFoundError", None], UNKNOWN_TOKEN, HIDDEN, HIDDEN, HIDDEN]),
    ],
)
def test_a_token_may_do_what_its_role_says(
    server: hub.Hub, token: str | None, private: bool, expected: list[list[Any]]
) -> None:
    server.repository(NAME).private = private
    code = """
        def outcome(function, *arguments, **options):
            return (refusal(function, *arguments, **options) or ["ok"])[:2]

        file = {**dataset, "path_or_fileobj": b"new", "path_in_repo": "new.parquet"}
        result = [
            outcome(api.whoami),
            outcome(api.create_repo, "org/new", repo_type="dataset", private=True),
            outcome(api.hf_hub_download, name, ".gitattributes", repo_type="dataset"),
            outcome(api.upload_file, **file),
            outcome(api.upload_file, **{**file, "path_in_repo": "newer.parquet"}, create_pr=True),
        ]
        if result[0] == ["ok"]:
            result[0] = [api.whoami()["auth"]["accessToken"]["role"]]
    """
    assert client(server, code, token) == expected
    created = server.repositories.get("org/new")
    assert (created is not None) == (expected[1] == UPLOADED)
    assert created is None or created.private
    assert ("new.parquet" in server.repository(NAME).files()) == (expected[3] == UPLOADED)


def test_whoami_tells_what_a_token_is_for(server: hub.Hub) -> None:
    told = client(server, "result = api.whoami()", token="fine-grained")
    assert (told["name"], [org["name"] for org in told["orgs"]]) == ("maker", ["org"])
    (scope,) = told["auth"]["accessToken"]["fineGrained"]["scoped"]
    assert scope == {"entity": {"type": "org", "name": "org"}, "permissions": ["repo.content.read", "repo.write"]}


def test_creating_what_is_there_is_a_conflict(server: hub.Hub) -> None:
    code = """
        result = refusal(api.create_repo, **dataset)[:2]
        assert api.create_repo(**dataset, exist_ok=True).repo_id == name
        api.auth_check(**dataset, write=True)
    """
    assert client(server, code) == ["HfHubHTTPError", 409]
    assert client(server, "result = refusal(api.auth_check, **dataset, write=True)[:2]", token="read") == FORBIDDEN


def test_a_gated_dataset_shows_its_files_to_its_members_only(filled: hub.Hub) -> None:
    filled.repository(NAME).gated = True
    code = """
        result = [api.dataset_info(name).gated, refusal(api.hf_hub_download, name, "README.md", repo_type="dataset")]
    """
    assert client(filled, code) == ["manual", None]
    for token, status in ((None, 401), ("stranger", 403)):
        gated, refused = client(filled, code, token, home="other")
        assert (gated, *refused[:2]) == ("manual", "GatedRepoError", status)


# Faults

KINDS = ("429", "500", "503", "cut", "lost")
SCENARIOS = """
    import concurrent.futures

    def upload(api):
        operations = [Add("README.md", card.encode()), Add("new.parquet", b"new" * 1000)]
        api.create_commit(**dataset, operations=operations, commit_message="New")

    def download(file):
        return lambda api: api.hf_hub_download(**dataset, filename=file, cache_dir=f"{path}/{hash(api)}")

    scenarios = {
        "whoami": lambda api: api.whoami(),
        "create": lambda api: api.create_repo("org/new", repo_type="dataset", exist_ok=True),
        "info": lambda api: api.dataset_info(name),
        "tree": lambda api: list(api.list_repo_tree(**dataset, recursive=True)),
        "paths": lambda api: api.get_paths_info(**dataset, paths=["README.md"]),
        "refs": lambda api: api.list_repo_refs(**dataset),
        "history": lambda api: api.list_repo_commits(**dataset),
        "resolve": download("README.md"),
        "download": download("numbers/train-0.parquet"),
        **dict.fromkeys(uploading, upload),
    }

    def tried(stage, endpoint):
        api = HfApi(endpoint)
        first = refusal(scenarios[stage], api)
        return [first, refusal(scenarios[stage], api) if first else None]

    with concurrent.futures.ThreadPoolExecutor(len(servers)) as pool:
        result = list(pool.map(lambda server: tried(*server), servers))
"""
READING = ("info", "tree", "paths", "refs", "history", "resolve", "download")
UPLOADING = ("validate", "preupload", "batch", "transfer", "verify", "commit")
CASES = [(stage, kind) for stage in ("whoami", "create", *READING, *UPLOADING) for kind in KINDS]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], tuple[hub.Hub, Any]]]:
    """For each stage and fault its Hub, and how a client fared there the first time and, if need be, the second."""
    folder = tmp_path_factory.mktemp("faults")
    contexts = {case: hub.serving(folder) for case in CASES}
    servers = {case: context.__enter__() for case, context in contexts.items()}
    for (stage, kind), running in servers.items():
        running.create(NAME)
        running.commit(NAME, {"README.md": b"", "numbers/train-0.parquet": shard(0)})
        running.fail(stage, kind)
    addresses = [[stage, running.endpoint] for (stage, _), running in servers.items()]
    told = client(running, SCENARIOS, servers=addresses, uploading=UPLOADING, card=CARD, path=str(folder))
    yield {case: (servers[case], outcome) for case, outcome in zip(CASES, told)}
    with concurrent.futures.ThreadPoolExecutor(len(CASES)) as pool:
        list(pool.map(lambda context: context.__exit__(None, None, None), contexts.values()))


@pytest.mark.parametrize(("stage", "kind"), CASES)
def test_a_request_fails_as_told_and_then_works(
    outcomes: dict[tuple[str, str], tuple[hub.Hub, Any]], stage: str, kind: str
) -> None:
    server, (first, second) = outcomes[stage, kind]
    failed, *later = server.asked(stage)
    assert failed.fault == kind
    assert not any(request.fault for request in server.requests if request is not failed)
    if failed.method != "HEAD" and kind == "cut":
        assert (failed.sent > 0) == (failed.method == "GET")
    assert failed.status == (int(kind) if kind.isdigit() else 200 if failed.sent else 0)
    assert second is None
    assert first is not None or later, "the client came through without asking again"
    commits = [commit.title for commit in server.repository(NAME).history()]
    assert commits[:-2] == (["New"] if stage in UPLOADING else [])
    assert ("org/new" in server.repositories) == (stage == "create")


def test_a_fault_may_come_late_often_and_for_some_files_only(filled: hub.Hub) -> None:
    filled.fail("resolve", "503", times=2, after=1, path="README")
    statuses = []
    for _ in range(4):
        statuses.append(ask(filled, "GET", f"/datasets/{NAME}/resolve/main/README.md")[0].status)
        assert ask(filled, "GET", f"/datasets/{NAME}/resolve/main/.gitattributes")[0].status == 200
    assert statuses == [200, 503, 503, 200]


def test_too_many_requests_come_with_the_time_to_wait(server: hub.Hub) -> None:
    server.fail("info", "429", times=2, wait=7)
    response, _ = ask(server, "GET", f"/api/datasets/{NAME}")
    assert (response.status, response.headers["Retry-After"]) == (429, "7")
    told = client(server, "result = refusal(api.dataset_info, name)")
    assert told[:2] == ["HfHubHTTPError", 429]
    assert "Retry after 7 seconds" in told[2]


@pytest.mark.parametrize(("stage", "title"), [("transfer", "Numbers"), ("commit", "New")])
def test_what_a_killed_client_asked_for_is_done_or_not_but_not_half(filled: hub.Hub, stage: str, title: str) -> None:
    reached, gone = threading.Event(), threading.Event()
    filled.on(stage, lambda request: reached.set())
    filled.on(stage, lambda request: gone.wait(30))
    code = """
        api.create_commit(**dataset, operations=[Add("new.parquet", b"new" * 10_000_000)], commit_message="New")
    """
    process = started(filled, code)
    assert reached.wait(30)
    process.kill()
    process.communicate()
    gone.set()
    (request,) = filled.asked(stage)
    while not request.done:
        time.sleep(0.01)
    assert stage == "commit" or 0 < request.received < 30_000_000
    assert filled.repository(NAME).history()[0].title == title
    assert ("new.parquet" in filled.repository(NAME).files()) == (title == "New")


def test_what_the_hub_does_not_know_is_told(tmp_path: Path) -> None:
    with hub.serving(tmp_path) as server:
        assert ask(server, "GET", "/api/models/org/name")[0].status == 404
        assert [request.path for request in server.unknown] == ["/api/models/org/name"]


def test_a_failing_hook_fails_the_test(tmp_path: Path) -> None:
    context = hub.serving(tmp_path)
    server = context.__enter__()
    server.on("whoami", lambda request: 1 / 0)
    assert ask(server, "GET", "/api/whoami-v2")[0].status == 500
    with pytest.raises(ZeroDivisionError):
        context.__exit__(None, None, None)
