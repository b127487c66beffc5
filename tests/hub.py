"""A small Hugging Face Hub on 127.0.0.1: what download.py, upload.py and load_dataset ask of the real one about dataset
repositories, with the same answers, over the same HTTP; it refuses the rest. It fails on demand and remembers every
request. Clients may use Xet for what they send, but the environment that it gives them doesn't.

    with hub.serving(tmp_path) as server:
        server.create("org/name")
        subprocess.run([...], env=server.environment())
        assert server.repository("org/name").files("main")
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

import pyarrow as pa
import yaml

LARGE = (".parquet", ".h5", ".gz", ".png")  # files of these go to the large file storage
SIGNATURE = "5167a7e5"  # in the addresses of the storage, which nobody else must see
DATE = "2025-11-25T00:00:00.000Z"


# What a repository is


class Entry(NamedTuple):
    """A file in a commit."""

    oid: str  # SHA-1 that git has
    size: int
    sha256: str | None  # of a file in the large file storage


@dataclass(frozen=True)
class Commit:
    """A commit with all its files."""

    sha: str
    parent: str | None
    title: str
    author: str
    tree: Mapping[str, Entry]


@dataclass
class Pull:
    """A pull request; its commits are at refs/pr/<number>."""

    title: str
    author: str
    status: str = "open"


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


def told(value: Any, status: int = 200) -> Answer:
    """An answer in JSON."""
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"})


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "", **more: Any) -> None:
        super().__init__(message)
        self.answer = told({"error": message, **more}, status)
        self.answer.headers.update({"X-Error-Message": message, **({"X-Error-Code": code} if code else {})})


def git_oid(content: bytes) -> str:
    """SHA-1 that git gives a file; ETag of a regular file, and what create_commit compares with the local one."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Repository:
    """Commits, what points to them, and contents. Everything changes at once, by `advance`."""

    def __init__(self, name: str, private: bool) -> None:
        self.name, self.private = name, private
        self.contents: dict[str, bytes] = {}  # by oid, or by sha256 in the large file storage
        self.xorbs: dict[str, list[bytes]] = {}  # chunks that Xet has brought
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}  # refs/heads/main, refs/pr/1, refs/tags/v1 → sha
        self.pulls: dict[int, Pull] = {}
        self.advance("refs/heads/main", None, {".gitattributes": self.store(b"")}, "initial commit", "")

    def advance(self, ref: str, parent: str | None, tree: Mapping[str, Entry], title: str, author: str) -> Commit:
        """Makes a commit and lets a ref point to it."""
        about = [len(self.commits), time.time_ns(), self.name, parent, title, dict(tree)]
        sha = hashlib.sha1(json.dumps(about).encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, title, author, dict(tree))
        self.refs[ref] = sha
        return self.commits[sha]

    def store(self, content: bytes, large: bool = False) -> Entry:
        """Keeps a content, for a commit to come."""
        sha256 = hashlib.sha256(content).hexdigest() if large else None
        oid = git_oid(content)
        self.contents[sha256 or oid] = content
        return Entry(oid, len(content), sha256)

    def ref(self, revision: str) -> str:
        """Full name of a branch, a tag or a pull request's ref."""
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in self.refs:
                return name
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def at(self, revision: str) -> Commit:
        """Commit that a branch, a ref or a SHA names."""
        return self.commits[revision if revision in self.commits else self.refs[self.ref(revision)]]

    def history(self, revision: str = "main") -> list[Commit]:
        """Commits of a revision, last first."""
        commits = [self.at(revision)]
        while commits[-1].parent:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def last_change(self, commit: Commit, path: str) -> Commit:
        """The commit that a file comes from."""
        last, *earlier = self.history(commit.sha)
        for before in earlier:
            if before.tree.get(path) != last.tree[path]:
                break
            last = before
        return last

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Files of a revision with their content."""
        tree = self.at(revision).tree
        return {path: self.contents[tree[path].sha256 or tree[path].oid] for path in sorted(tree)}


# What happens


# What a token may do, besides reading what is public: "write" is a member of every organisation.
TOKENS = {"write": "hf_write", "read": "hf_read", "stranger": "hf_stranger"}


@dataclass
class Fault:
    """Lets `times` requests of a stage fail, after `after` that don't.

    Kinds: a status ("429", "500", "503", …) is answered in place of everything else; "cut" breaks off in the middle of
    the request's body, before anything is done, or of the answer's if the request has none; "lost" does what was asked
    for and hangs up without an answer; anything else is the body of the answer, in JSON or not.
    """

    stage: str
    kind: str
    times: float = 1
    after: int = 0
    wait: int = 0  # seconds that a status tells to wait

    def answer(self) -> Answer | None:
        """What is answered in place of everything else."""
        if self.kind in ("cut", "lost"):
            return None
        if not re.fullmatch("[1-5][0-9]{2}", self.kind):
            return Answer(200, self.kind.encode(errors="surrogateescape"), {"Content-Type": "application/json"})
        answer = Refusal(int(self.kind), "failed on demand").answer
        answer.headers["Retry-After"] = str(self.wait)
        return answer


@dataclass(eq=False)
class Call:
    """A request, as it came in; unknown ones have no stage."""

    hub: Hub
    method: str
    path: str  # without the query
    query: dict[str, list[str]]
    headers: Message[str, str]
    stage: str = ""
    groups: dict[str, str] = field(default_factory=dict)  # of the route's pattern
    fault: str = ""  # kind of the fault it met
    received: int = 0  # bytes of the body that arrived
    body: bytes = b""
    token: str = ""  # its name in TOKENS
    status: int = 0  # of the answer; 0 if none was sent
    done: bool = False  # whether nothing more will happen to it

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    def repository(self, right: str = "read") -> Repository:
        """The repository that is asked for, if the token may do that with it: read, write or propose."""
        repository = self.hub.repositories.get(self.groups["repo"])
        is_hidden = repository is not None and repository.private and self.token not in ("write", "read")
        if repository is None or is_hidden or (right != "read" and not self.token):
            # The real Hub sends no code with 401; huggingface_hub takes that so for https addresses only.
            raise Refusal(404 if self.token else 401, "Repository not found", "RepoNotFound")
        if right != "read" and self.token not in ("write", "stranger" if right == "propose" else ""):
            raise Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repository

    def found(self) -> tuple[Repository, Commit]:
        """The repository and commit that is asked for."""
        repository = self.repository()
        return repository, repository.at(self.groups.get("revision") or "main")


# What is asked before an upload


def auth_check(call: Call) -> Answer:
    call.repository("write" if call.path.endswith("/write") else "read")
    return told({})


def validate_yaml(call: Call) -> Answer:
    """Checks that a card's metadata are YAML. Anyone may ask; RepoCard.validate has no token."""
    yaml.safe_load(call.json["content"].split("\n---\n")[0])
    return told({"errors": [], "warnings": []})


def create(call: Call) -> Answer:
    name = f"{call.json['organization']}/{call.json['name']}"
    if call.token != "write":
        raise Refusal(403, "You don't have the rights to create a dataset under this namespace")
    url = f"{call.hub.endpoint}/datasets/{name}"
    if name in call.hub.repositories:
        raise Refusal(409, "You already created this dataset repo", url=url)  # create_repo(exist_ok=True) reads the url
    call.hub.create(name, call.json.get("visibility") == "private" or bool(call.json.get("private")))
    return told({"url": url, "name": name, "id": name})


# What is where


def info(call: Call) -> Answer:
    repository, commit = call.found()
    siblings = [{"rfilename": path} for path in sorted(commit.tree)]
    about = {"id": repository.name, "sha": commit.sha, "private": repository.private, "siblings": siblings}
    return told({**about, "author": repository.name.split("/")[0], "gated": False, "disabled": False, "tags": []})


def path_info(commit: Commit, path: str) -> dict[str, Any]:
    """A file or a folder, as RepoFile and RepoFolder of huggingface_hub take it."""
    entry = commit.tree.get(path)
    if entry is None:
        return {"type": "directory", "oid": git_oid(path.encode()), "size": 0, "path": path}
    lfs = {"lfs": {"oid": entry.sha256, "size": entry.size, "pointerSize": 127}} if entry.sha256 else {}
    return {"type": "file", "oid": entry.oid, "size": entry.size, "path": path, **lfs}


def paths_of(commit: Commit) -> set[str]:
    """Files and folders."""
    return {*commit.tree, *(str(folder) for path in commit.tree for folder in Path(path).parents)} - {"."}


def tree(call: Call) -> Answer:
    _, commit = call.found()
    folder = call.groups.get("path", "").strip("/")
    prefix = f"{folder}/" if folder else ""
    paths = sorted(path for path in paths_of(commit) if path.startswith(prefix))
    if not paths:
        raise Refusal(404, f'"{folder}" does not exist', "EntryNotFound")
    if not call.flag("recursive"):
        paths = [path for path in paths if "/" not in path[len(prefix) :]]
    return told([path_info(commit, path) for path in paths])


def paths_info(call: Call) -> Answer:
    repository, commit = call.found()
    form, found = parse_qs(call.body.decode()), []
    for path in [path for path in form.get("paths", []) if path in paths_of(commit)]:
        found.append(path_info(commit, path))
        if path in commit.tree and form.get("expand", [""])[0].lower() == "true":
            last = repository.last_change(commit, path)
            found[-1]["lastCommit"] = {"id": last.sha, "title": last.title, "date": DATE}
    return told(found)


def references(call: Call) -> Answer:
    refs = call.repository().refs
    named = [{"name": ref.split("/", 2)[2], "ref": ref, "targetCommit": sha} for ref, sha in refs.items()]
    kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "converts": "refs/convert/"}
    return told({kind: [item for item in named if item["ref"].startswith(kinds[kind])] for kind in kinds})


def set_tag(call: Call) -> Answer:
    repository, ref = call.repository("write"), f"refs/tags/{call.json['tag']}"
    if ref in repository.refs:
        raise Refusal(409, f"Tag already exists: {ref}")
    repository.refs[ref] = repository.at(call.groups["revision"]).sha
    return told({"success": True})


def discussions(call: Call) -> Answer:
    repository, found = call.repository(), []
    for number, pull in repository.pulls.items():
        if pull.status in call.query["status"]:
            about = {"num": number, "title": pull.title, "status": pull.status, "isPullRequest": True}
            who = {"author": {"name": pull.author}, "repo": {"name": repository.name, "type": "dataset"}}
            found.append({**about, **who, "createdAt": DATE})
    return told({"count": len(found), "start": 0, "discussions": found})


# An upload, in the order in which it happens


def preupload(call: Call) -> Answer:
    """Says where each file goes, and the oid of what is there, so that create_commit leaves out what did not change."""
    repository = call.repository("propose" if call.flag("create_pr") else "write")
    commit = repository.at(call.groups["revision"])
    files = []
    for file in call.json["files"]:
        there = commit.tree.get(file["path"])
        mode = "lfs" if file["path"].endswith(LARGE) else "regular"
        about = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
        files.append({**about, **({"oid": there.sha256 or there.oid} if there else {})})
    return told({"files": files, "commitOid": commit.sha})


def batch(call: Call) -> Answer:
    """Says how to upload to the large file storage; there is nothing to do for what is there, committed or not."""
    repository = call.repository("write" if "ref" in call.json else "propose")  # no ref: for a pull request
    hub, objects = call.hub, []
    for wanted in call.json["objects"]:
        about = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in repository.contents:
            href = f"{hub.storage}/storage/{repository.name}/{wanted['oid']}?X-Amz-Signature={SIGNATURE}"
            verify = {"href": f"{hub.endpoint}/datasets/{repository.name}.git/info/lfs/objects/verify"}
            about["actions"] = {"upload": {"href": href}, "verify": verify}
        objects.append(about)
    return told({"transfer": "basic", "objects": objects})


def transfer(call: Call) -> Answer:
    """Takes a file."""
    if hashlib.sha256(call.body).hexdigest() != call.groups["oid"]:
        raise Refusal(400, "The SHA-256 you specified did not match what we received.")
    call.hub.repositories[call.groups["repo"]].store(call.body, large=True)
    return Answer(200, b"", {})


def verify(call: Call) -> Answer:
    if len(call.repository().contents.get(call.json["oid"], b"")) != call.json["size"]:
        raise Refusal(404, "Object does not exist or has another size")
    return told({})


def commit(call: Call) -> Answer:
    """Takes a commit, all or nothing. One that changes nothing is a commit too, but create_commit doesn't send it."""
    pull_wanted = call.flag("create_pr")
    repository = call.repository("propose" if pull_wanted else "write")
    header, *operations = [json.loads(line) for line in call.body.splitlines() if line.strip()]
    title, parent = header["value"]["summary"], header["value"].get("parentCommit")
    author = "maker" if call.token == "write" else call.token
    ref = repository.ref(call.groups["revision"])
    base = repository.at(parent if pull_wanted and parent else ref)
    if parent and parent != base.sha:
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    changed = dict(base.tree)
    for key, value in [(operation["key"], operation["value"]) for operation in operations]:
        path = value["path"]
        if key == "file":
            changed[path] = repository.store(base64.b64decode(value["content"]))
        elif key == "lfsFile" and value["oid"] in repository.contents:
            changed[path] = repository.store(repository.contents[value["oid"]], large=True)
        elif key == "deletedFile" and path in changed:
            del changed[path]
        else:
            raise Refusal(400, f"{key} of {path} is not possible here")
    links = {}
    if pull_wanted:
        number = len(repository.pulls) + 1
        repository.pulls[number] = Pull(title, author)
        ref = f"refs/pr/{number}"
        links["pullRequestUrl"] = f"{call.hub.endpoint}/datasets/{repository.name}/discussions/{number}"
    made = repository.advance(ref, base.sha, changed, title, author)
    links["commitUrl"] = f"{call.hub.endpoint}/datasets/{repository.name}/commit/{made.sha}"
    return told({"success": True, "commitOid": made.sha, "hookOutput": "", **links})


# The same with Xet: chunks come in xorbs, and a shard then says which of them make a file. Their formats are specified
# at https://huggingface.co/docs/xet


def grant(call: Call) -> Answer:
    """Says where the Xet storage is."""
    call.repository("propose" if call.flag("create_pr") else "write")
    url = f"{call.hub.endpoint}/xet/{call.groups['repo']}"
    return told({"casUrl": url, "accessToken": TOKENS[call.token], "exp": int(time.time()) + 3600})


def xet_hash(words: bytes) -> str:
    """A hash as it is written: four numbers, each with its last byte first."""
    return b"".join(words[start : start + 8][::-1] for start in range(0, 32, 8)).hex()


def put_xorb(call: Call) -> Answer:
    chunks, start = [], 0
    while start < len(call.body) and call.body[start] == 0:  # the version of a chunk; else the table at the end
        packed, scheme = int.from_bytes(call.body[start + 1 : start + 4], "little"), call.body[start + 4]
        size = int.from_bytes(call.body[start + 5 : start + 8], "little")
        chunk = call.body[start + 8 : start + 8 + packed]
        if scheme:
            chunk = pa.decompress(chunk, size, "lz4", asbytes=True)
        if scheme == 2:  # first bytes of every four, then second ones, …
            parts = [chunk[sum((size + 3 - i) // 4 for i in range(k)) :][: (size + 3 - k) // 4] for k in range(4)]
            chunk = bytes(parts[i % 4][i // 4] for i in range(size))
        chunks.append(chunk)
        start += 8 + packed
    call.hub.repositories[call.groups["repo"]].xorbs[call.groups["hash"]] = chunks
    return told({"was_inserted": True})


def put_shard(call: Call) -> Answer:
    repository = call.hub.repositories[call.groups["repo"]]
    start = 48  # behind the header; blocks have 48 bytes
    while call.body[start : start + 32] != b"\xff" * 32:
        flags, count = struct.unpack_from("<II", call.body, start + 32)
        content = b""
        for entry in range(start + 48, start + 48 + 48 * count, 48):
            _, _, first, last = struct.unpack_from("<IIII", call.body, entry + 32)
            content += b"".join(repository.xorbs[xet_hash(call.body[entry : entry + 32])][first:last])
        start += 48 * (1 + count + (count if flags >> 31 else 0) + 1)  # the last block is the SHA-256
        if xet_hash(call.body[start - 48 : start - 16]) != hashlib.sha256(content).hexdigest():
            raise Refusal(400, "not the content that was announced")
        repository.store(content, large=True)
    return told({"result": 1})


def not_offered(call: Call) -> Answer:
    """What clients can do without: newer ways, and telling which chunks are there."""
    raise Refusal(404, "not here")


# Downloads


def ranged(call: Call, content: bytes, headers: dict[str, str]) -> Answer:
    """A content, or the range of it that was asked for."""
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("Range") or "")
    if not wanted:
        return Answer(200, content, headers)
    piece = content[int(wanted[1]) : int(wanted[2]) + 1 if wanted[2] else None]
    extent = f"bytes {wanted[1]}-{int(wanted[1]) + len(piece) - 1}/{len(content)}"
    return Answer(206, piece, {**headers, "Content-Range": extent})


def resolve(call: Call) -> Answer:
    """A file, or where the large file storage has it: at another origin, so that clients leave their token behind and
    take X-Linked-Size and X-Linked-ETag from the redirection (get_hf_file_metadata).
    """
    repository, commit = call.found()
    entry, headers = commit.tree.get(call.groups["path"]), {"X-Repo-Commit": commit.sha}
    if entry is None:
        refusal = Refusal(404, "Entry not found", "EntryNotFound")
        refusal.answer.headers.update(headers)  # hf_hub_download remembers in which commit there is no such file
        raise refusal
    if entry.sha256:
        linked = {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.sha256}"', "Accept-Ranges": "bytes"}
        location = f"{call.hub.storage}/storage/{repository.name}/{entry.sha256}"
        return Answer(302, b"Found. Redirecting", {**headers, **linked, "Location": location})
    return ranged(call, repository.contents[entry.oid], {**headers, "ETag": f'"{entry.oid}"'})


def download(call: Call) -> Answer:
    content = call.hub.repositories[call.groups["repo"]].contents.get(call.groups["oid"])
    if content is None:
        raise Refusal(404, "The specified key does not exist.")
    return ranged(call, content, {"ETag": f'"{call.groups["oid"]}"'})


# Routes: methods, path (still quoted, so that a revision is one segment), stage, handler

Handler = Callable[[Call], Answer]
REPO, REVISION = "(?P<repo>[^/]+/[^/]+)", "(?P<revision>refs/pr/[^/]+|[^/]+)"
DATASET, XET = f"/api/datasets/{REPO}", f"/xet/{REPO}"
LFS, OBJECT = f"/datasets/{REPO}\\.git/info/lfs/objects", f"/storage/{REPO}/(?P<oid>[0-9a-f]{{64}})"


ROUTES: Sequence[tuple[str, str, str, Handler]] = [
    ("GET", f"{DATASET}/auth-check(/write)?", "auth", auth_check),
    ("POST", "/api/validate-yaml", "validate", validate_yaml),
    ("POST", "/api/repos/create", "create", create),
    ("GET", f"{DATASET}(/revision/{REVISION})?", "info", info),
    ("GET", f"{DATASET}/tree/{REVISION}(?P<path>/.*)?", "tree", tree),
    ("POST", f"{DATASET}/paths-info/{REVISION}", "paths", paths_info),
    ("GET", f"{DATASET}/refs", "refs", references),
    ("POST", f"{DATASET}/tag/{REVISION}", "tag", set_tag),
    ("GET", f"{DATASET}/discussions", "discussions", discussions),
    ("POST", f"{DATASET}/preupload/{REVISION}", "preupload", preupload),
    ("POST", f"{LFS}/batch", "batch", batch),
    ("POST", f"{LFS}/verify", "verify", verify),
    ("POST", f"{DATASET}/commit/{REVISION}", "commit", commit),
    ("GET", f"{DATASET}/xet-write-token/{REVISION}", "grant", grant),
    ("POST", f"{XET}/v1/xorbs/default/(?P<hash>[0-9a-f]{{64}})", "xorb", put_xorb),
    ("POST", f"{XET}/v1/shards", "shard", put_shard),
    ("GET POST", f"{XET}/(v1/chunks/|v1/xorb-grants/|v2/shards).*|/v1/telemetry", "other", not_offered),
    ("GET", "/api/agent-harnesses", "other", not_offered),
    ("GET HEAD", f"/datasets/{REPO}/resolve/{REVISION}/(?P<path>.+)", "resolve", resolve),
    ("PUT", OBJECT, "transfer", transfer),
    ("GET HEAD", OBJECT, "download", download),
]
STAGES = [stage for _, _, stage, _ in ROUTES]


# The server


class Hub(http.server.ThreadingHTTPServer):
    """The server, and how tests look at it and disturb it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        # The same server; for clients the large file storage is another host, and so for their tokens.
        self.endpoint, self.storage = (f"http://{host}:{self.server_port}" for host in ("127.0.0.1", "localhost"))
        self.lock = threading.RLock()
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Call] = []
        self.errors: list[Exception] = []  # of this file, or of the functions that tests gave
        self.faults: list[Fault] = []
        self.hooks: list[tuple[str, Callable[[Call], object]]] = []

    # What tests look at

    @property
    def unknown(self) -> list[Call]:
        """Requests that nothing here answers."""
        return [request for request in self.requests if not request.stage]

    def asked(self, *stages: str) -> list[Call]:
        """Requests of some stages."""
        return [request for request in self.requests if request.stage in stages]

    def repository(self, name: str) -> Repository:
        return self.repositories[name]

    def environment(self, token: str | None = "write", home: str = "home") -> dict[str, str]:
        """Environment for a client: a token by its name, or None. `home` keeps its cache."""
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
        secret = {"HF_TOKEN": TOKENS[token]} if token else {}
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith(foreign)},
            **secret,
            **{"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(self.folder / home)},
        }

    # What tests do

    def create(self, name: str, private: bool = False) -> Repository:
        """Makes a repository, with the Hub's first commit."""
        self.repositories[name] = Repository(name, private)
        return self.repositories[name]

    def commit(
        self, name: str, changes: Mapping[str, bytes], title: str = "Someone else's", revision: str = "main"
    ) -> Commit:
        """Someone else's commit: contents by path."""
        with self.lock:
            repository = self.repositories[name]
            tree = {path: entry for path, entry in repository.at(revision).tree.items() if path not in changes}
            for path, content in changes.items():
                tree[path] = repository.store(content, path.endswith(LARGE))
            ref = repository.ref(revision)
            return repository.advance(ref, repository.refs[ref], tree, title, "someone")

    def fail(self, stage: str, kind: str, times: float = 1, after: int = 0, wait: int = 0) -> Fault:
        """Lets requests fail; see `Fault`."""
        assert stage in STAGES, stage
        self.faults.append(Fault(stage, kind, times, after, wait))
        return self.faults[-1]

    def on(self, stage: str, function: Callable[[Call], object]) -> None:
        """Calls a function in each request of a stage, before anything is done: when half of its body has arrived."""
        assert stage in STAGES, stage
        self.hooks.append((stage, function))

    # What the server does

    def strike(self, call: Call) -> Fault | None:
        """The fault that a request meets."""
        with self.lock:
            for fault in self.faults:
                if fault.stage != call.stage or fault.times <= 0:
                    continue
                fault.after -= 1
                if fault.after < 0:
                    fault.times -= 1
                    call.fault = fault.kind
                    return fault
        return None

    def answer(self, call: Call, handler: Handler) -> Answer:
        """Does what was asked for, one request at a time."""
        secret = call.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            if secret and handler in (transfer, download):
                raise Refusal(400, "Only one auth mechanism allowed")  # as S3 with a signed address
            with self.lock:
                call.token = next((name for name, known in TOKENS.items() if known == secret), "")
                if secret and not call.token:
                    raise Refusal(401, "Invalid credentials in Authorization header")
                return handler(call)
        except Refusal as refusal:
            return refusal.answer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stays quiet about clients that hang up."""
        error = sys.exc_info()[1]
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self.errors.append(error)


def unanswered(call: Call) -> Answer:
    raise Refusal(404, f"{call.path} is not known here")


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body go together

    def _serve(self) -> None:
        hub = self.server
        handler: Handler = unanswered
        path, _, query = self.path.partition("?")
        call = Call(hub, self.command, path, parse_qs(query), self.headers)
        for methods, pattern, stage, function in ROUTES:
            if self.command in methods.split() and (found := re.fullmatch(pattern, path)):
                handler, call.stage = function, stage
                call.groups = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                break
        hub.requests.append(call)
        fault = hub.strike(call)
        try:
            if not self._receive(call):
                self.close_connection = True
                return
            answer = (fault and fault.answer()) or hub.answer(call, handler)
        except Exception as error:
            hub.errors.append(error)
            answer = Refusal(500, f"Bug in the tests' Hub: {error!r}").answer
        finally:
            call.done = True
        self._answer(call, answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _receive(self, call: Call) -> bool:
        """Reads the request's body; False if the client did not send all of it, or a fault breaks it off."""
        length = int(self.headers.get("Content-Length") or 0)
        self._read(call, length // 2)
        for stage, function in [*self.server.hooks]:
            if stage == call.stage:
                function(call)
        if call.fault == "cut" and length:
            return False
        self._read(call, length - length // 2)
        return call.received == length

    def _read(self, call: Call, length: int) -> None:
        with contextlib.suppress(OSError):  # a client that hangs up
            call.body += self.rfile.read(length)
        call.received = len(call.body)

    def _answer(self, call: Call, answer: Answer) -> None:
        body = b"" if self.command == "HEAD" else answer.body
        if call.fault == "lost" or (call.fault == "cut" and not body):
            self.close_connection = True
            return
        call.status = answer.status
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value.encode("ascii", "replace").decode().replace("\n", " "))
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if call.fault == "cut":
            body = body[: len(body) // 2]
            self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Runs a Hub; clients keep their caches in `folder`. Raises what went wrong in it."""
    with Hub(folder) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
    if hub.errors:
        raise hub.errors[0]
