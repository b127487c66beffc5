"""A small Hugging Face Hub on 127.0.0.1: what huggingface_hub and datasets ask of the real one about dataset
repositories, with the same answers, over the same HTTP. It fails on demand and remembers every request. There are no
tags, no discussions but pull requests, and no Xet storage: clients need HF_HUB_DISABLE_XET=1.

    with hub.serving(tmp_path) as server:
        server.create("org/name")
        subprocess.run([...], env=server.environment())
        assert server.repository("org/name").files("main")
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import fnmatch
import hashlib
import http
import http.server
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlencode

import yaml

# Endings of files that go to the large file storage; of the list that the Hub writes into a new dataset repository.
LFS_ENDINGS = """7z arrow bin bz2 gz h5 msgpack npy npz parquet pickle pkl pt safetensors tar tgz xz zip zst
    bmp gif jpeg jpg png tiff webp"""
TRACKED = "{} filter=lfs diff=lfs merge=lfs -text\n"
LARGE = 10_000_000  # bytes from which a text file goes to the large file storage too

# Of the licenses that the Hub knows, those that data come under.
LICENSES = """apache-2.0 mit bsd-3-clause cc cc0-1.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-sa-4.0 cc-by-nc-nd-4.0 odc-by odbl pddl unknown other"""


# What a repository is


class Entry(NamedTuple):
    """A file in a commit."""

    oid: str  # SHA-1 that git has for the content, or for the pointer to the large file storage
    size: int
    sha256: str | None  # of a file in the large file storage


@dataclass(frozen=True)
class Commit:
    """A commit with all its files."""

    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    tree: Mapping[str, Entry]


@dataclass
class Pull:
    """A pull request; its commits are at refs/pr/<number>."""

    number: int
    title: str
    author: str
    status: str
    date: str


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "", **more: Any) -> None:
        super().__init__(message)
        self.answer = told({"error": message, **more}, status)
        self.answer.headers.update({"X-Error-Message": message, **({"X-Error-Code": code} if code else {})})


def git_oid(content: bytes) -> str:
    """SHA-1 that git gives a file; ETag of a regular file, and what create_commit compares with the local one."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """What git holds in place of a file in the large file storage."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


class Repository:
    """Commits, what points to them, and contents. Everything changes at once, by `advance`."""

    def __init__(self, name: str, author: str, private: bool, gated: bool) -> None:
        self.name, self.private, self.gated, self.created = name, private, gated, now()
        self.contents: dict[str, bytes] = {}  # by oid, or by sha256 in the large file storage
        self.parts: dict[str, dict[int, bytes]] = {}  # of uploads in parts, by sha256
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}  # refs/heads/main, refs/pr/1 → sha
        self.pulls: dict[int, Pull] = {}
        attributes = self.store("".join(TRACKED.format(f"*.{ending}") for ending in LFS_ENDINGS.split()).encode())
        self.advance("refs/heads/main", None, {".gitattributes": attributes}, "initial commit", author=author)

    def advance(
        self, ref: str, parent: str | None, tree: Mapping[str, Entry], title: str, message: str = "", author: str = ""
    ) -> Commit:
        """Makes a commit and lets a ref point to it."""
        told = [len(self.commits), time.time_ns(), self.name, parent, title, message, dict(tree)]
        sha = hashlib.sha1(json.dumps(told).encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, title, message, author, now(), dict(tree))
        self.refs[ref] = sha
        return self.commits[sha]

    def store(self, content: bytes, large: bool = False) -> Entry:
        """Keeps a content, for a commit to come."""
        sha256 = hashlib.sha256(content).hexdigest() if large else None
        oid = git_oid(pointer(sha256, len(content)) if sha256 else content)
        self.contents[sha256 or oid] = content
        return Entry(oid, len(content), sha256)

    def ref(self, revision: str) -> str:
        """Full name of a branch or a pull request's ref."""
        for name in (revision, f"refs/heads/{revision}"):
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

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Files of a revision with their content."""
        tree = self.at(revision).tree
        return {path: self.content(tree, path) for path in sorted(tree)}

    def content(self, tree: Mapping[str, Entry], path: str) -> bytes:
        """What a file holds; nothing if it is not there."""
        entry = tree.get(path)
        return self.contents[entry.sha256 or entry.oid] if entry else b""

    def is_tracked(self, tree: Mapping[str, Entry], path: str) -> bool:
        """Whether .gitattributes sends a file to the large file storage."""
        lines = self.content(tree, ".gitattributes").decode().splitlines()
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        return any(fnmatch.fnmatch(name, pattern) for name in (path, Path(path).name) for pattern in patterns)


# Who asks, and what they may do


class Token(NamedTuple):
    """An access token. A fine-grained one has permissions by scope: a user, an organization or a repository."""

    secret: str
    user: str = "maker"
    role: str = "write"
    scopes: Mapping[str, Sequence[str]] = {}


PERMISSIONS = {"repo.content.read": {"read"}, "repo.write": {"read", "write"}, "discussion.write": {"propose"}}


def rights(hub: Hub, token: Token | None, name: str, private: bool = False) -> set[str]:
    """What a token may do with a repository: read, write, propose (a pull request)."""
    public = set() if private else {"read"}
    if token is None:
        return public
    namespace = name.split("/")[0]
    if token.role == "fineGrained":
        granted = [permission for scope in (namespace, name) for permission in token.scopes.get(scope, ())]
        return public.union(*(PERMISSIONS.get(permission, set()) for permission in granted))
    if token.user != namespace and token.user not in hub.members.get(namespace, ()):
        return public | ({"propose"} if public and token.role == "write" else set())
    return {"read", "write", "propose"} if token.role == "write" else {"read"}


def not_found(token: Token | None) -> Refusal:
    """What does not exist looks like what one may not see. The real Hub sends no code with 401, but huggingface_hub
    takes that for RepositoryNotFoundError at https addresses only (REPO_API_REGEX), so here the code has to say it.
    """
    if token is None:
        return Refusal(401, "Invalid username or password.", "RepoNotFound")
    return Refusal(404, "Repository not found", "RepoNotFound")


# What happens


@dataclass
class Request:
    """A request, as it came in; unknown ones have no stage."""

    method: str
    path: str  # with the query
    stage: str
    received: int = 0  # bytes of the body that arrived
    sent: int = 0  # bytes of the body of the answer
    status: int = 0  # of the answer; 0 if none was sent
    fault: str = ""  # kind of the fault it met
    done: bool = False  # whether nothing more will happen to it


@dataclass
class Fault:
    """Lets `times` requests of a stage fail, after `after` that don't; `path` is a part of their path.

    Kinds: a status ("429", "500", "503", …) is answered in place of everything else; "cut" breaks off in the middle of
    the request's body, before anything is done, or of the answer's if the request has none; "lost" does what was asked
    for and hangs up without an answer.
    """

    stage: str
    kind: str
    times: float = 1
    after: int = 0
    path: str = ""
    wait: int = 0  # seconds that 429 tells to wait


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


def told(value: Any, status: int = 200) -> Answer:
    """An answer in JSON."""
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"})


def failed(fault: Fault) -> Answer:
    """What a fault answers: JSON as the Hub does it, or the page of a proxy in front of it."""
    status = int(fault.kind)
    phrase = http.HTTPStatus(status).phrase
    if status >= 502:
        return Answer(status, f"<html><h1>{status} {phrase}</h1></html>".encode(), {"Content-Type": "text/html"})
    answer = Refusal(status, f"{phrase} (on demand)").answer
    if status == 429:
        limits = {"RateLimit": f'"api";r=0;t={fault.wait}', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}
        answer.headers.update(limits, **{"Retry-After": str(fault.wait)})
    return answer


@dataclass
class Call:
    """A request as handlers see it."""

    hub: Hub
    method: str
    path: str
    groups: dict[str, str]
    query: dict[str, list[str]]
    headers: Message[str, str]
    body: bytes
    token: Token | None
    made: list[tuple[Repository, str, Commit]] = field(default_factory=list)  # commits

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def revision(self) -> str:
        return self.groups.get("revision") or "main"

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    def repository(self, right: str = "read") -> Repository:
        """The repository that is asked for, if the token may do that with it."""
        repository = self.hub.repositories.get(self.groups["repo"])
        granted = rights(self.hub, self.token, repository.name, repository.private) if repository else set()
        if repository is None or "read" not in granted or (self.token is None and right != "read"):
            raise not_found(self.token)
        if right not in granted:
            reasons = {"write": "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"}
            if self.token and self.token.role == "read":
                reasons = {"write": "you must use a write token to upload to a repository."}
            raise Refusal(403, reasons.get(right, "Authorization error."))
        return repository


# Handlers of the API


def whoami(call: Call) -> Answer:
    if call.token is None:
        raise Refusal(401, "Invalid username or password.")
    user, role, scopes = call.token.user, call.token.role, call.token.scopes
    token: dict[str, Any] = {"displayName": f"{role} token", "role": role, "createdAt": now()}
    if role == "fineGrained":
        kinds = {True: "dataset", False: "user"}
        scoped = [
            {
                "entity": {"type": "org" if name in call.hub.members else kinds["/" in name], "name": name},
                "permissions": list(permissions),
            }
            for name, permissions in scopes.items()
        ]
        token["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": scoped}
    orgs = [
        {"type": "org", "id": name, "name": name, "fullname": name, "isEnterprise": False, "roleInOrg": "write"}
        for name, members in call.hub.members.items()
        if user in members
    ]
    auth = {"type": "access_token", "accessToken": token}
    return told(
        {"type": "user", "id": user, "name": user, "fullname": user, "isPro": False, "orgs": orgs, "auth": auth}
    )


def create(call: Call) -> Answer:
    if call.token is None:
        raise Refusal(401, "Invalid username or password.")
    wanted = call.json
    namespace = wanted.get("organization") or call.token.user
    name = f"{namespace}/{wanted['name']}"
    if wanted.get("type") != "dataset":
        raise Refusal(400, "only dataset repositories here")
    if "write" not in rights(call.hub, call.token, name):
        raise Refusal(403, f'You don\'t have the rights to create a dataset under the namespace "{namespace}"')
    url = f"{call.hub.endpoint}/datasets/{name}"
    if name in call.hub.repositories:
        raise Refusal(409, "You already created this dataset repo", url=url)  # create_repo(exist_ok=True) reads the url
    call.hub.create(name, wanted.get("visibility") == "private" or bool(wanted.get("private")))
    return told({"url": url, "name": name, "id": name})


def lfs_info(entry: Entry, key: str = "oid") -> dict[str, Any]:
    if not entry.sha256:
        return {}
    return {"lfs": {key: entry.sha256, "size": entry.size, "pointerSize": len(pointer(entry.sha256, entry.size))}}


def front_matter(card: str) -> Any:
    """Metadata of a dataset card."""
    found = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", card, re.DOTALL)
    return yaml.safe_load(found[1]) if found else None


def info(call: Call) -> Answer:
    repository = call.repository()
    commit, first = repository.at(call.revision), repository.name.split("/")[0]
    blobs = call.flag("blobs")
    siblings = [
        {"rfilename": path} | ({"size": entry.size, "blobId": entry.oid, **lfs_info(entry, "sha256")} if blobs else {})
        for path, entry in sorted(commit.tree.items())
    ]
    card = None
    with contextlib.suppress(yaml.YAMLError):
        card = front_matter(repository.content(commit.tree, "README.md").decode())
    size = sum(entry.size for entry in commit.tree.values())
    every = {
        **{"author": first, "sha": commit.sha, "lastModified": commit.date, "createdAt": repository.created},
        **{"private": repository.private, "gated": "manual" if repository.gated else False, "disabled": False},
        **{"downloads": 0, "likes": 0, "tags": [], "cardData": card, "siblings": siblings},
        **{"usedStorage": size, "mainSize": size},
    }
    if "securityStatus" in call.query:
        every["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": []}
    wanted = call.query.get("expand", list(every))
    chosen = {key: value for key, value in every.items() if key in wanted}
    return told({"_id": repository.name, "id": repository.name, **chosen})


def folders(paths: Iterable[str]) -> set[str]:
    return {parent.as_posix() for path in paths for parent in Path(path).parents} - {"."}


def path_info(repository: Repository, commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    """A file or a folder, as RepoFile and RepoFolder of huggingface_hub take it."""
    entry = commit.tree.get(path)
    below = {name: found for name, found in commit.tree.items() if name == path or name.startswith(f"{path}/")}
    if entry:
        result = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path, **lfs_info(entry)}
    else:
        oid = hashlib.sha1(json.dumps(sorted(below.items())).encode()).hexdigest()
        result = {"type": "directory", "oid": oid, "size": 0, "path": path}
    if not expand:
        return result
    last = commit
    for earlier in repository.history(commit.sha):
        if {name: earlier.tree.get(name) for name in below} != below:
            break
        last = earlier
    scans = {"avScan": {"virusFound": False, "virusNames": None}, "pickleImportScan": None}
    security = {"securityFileStatus": {"status": "safe", **scans}} if entry else {}
    return {**result, "lastCommit": {"id": last.sha, "title": last.title, "date": last.date}, **security}


def tree(call: Call) -> Answer:
    repository = call.repository()
    commit, folder = repository.at(call.revision), call.groups.get("path", "").strip("/")
    inside = [path for path in commit.tree if not folder or path.startswith(f"{folder}/")]
    if folder and not inside:
        raise Refusal(404, f'"{folder}" does not exist on "{call.revision}"', "EntryNotFound")
    paths = sorted({*inside, *(path for path in folders(inside) if path.startswith(f"{folder}/" if folder else ""))})
    if not call.flag("recursive"):
        paths = [path for path in paths if "/" not in path[len(folder) :].strip("/")]
    expand, cursor = call.flag("expand"), call.query.get("cursor", [""])[0]
    size = min(call.hub.page_size, 50 if expand else 1000)
    rest = [path for path in paths if path > cursor]
    answer = told([path_info(repository, commit, path, expand) for path in rest[:size]])
    return paged(call, answer, cursor=rest[size - 1]) if rest[size:] else answer


def paged(call: Call, answer: Answer, **changes: str) -> Answer:
    """Adds the address of the next page, where `paginate` of huggingface_hub looks for it."""
    query = urlencode({**{key: values[0] for key, values in call.query.items()}, **changes})
    answer.headers["Link"] = f'<{call.hub.endpoint}{call.path}?{query}>; rel="next"'
    return answer


def paths_info(call: Call) -> Answer:
    repository = call.repository()
    commit = repository.at(call.revision)
    form = parse_qs(call.body.decode())
    expand = form.get("expand", [""])[0].lower() == "true"
    known = commit.tree.keys() | folders(commit.tree)
    return told([path_info(repository, commit, path, expand) for path in form.get("paths", []) if path in known])


def references(call: Call) -> Answer:
    repository = call.repository()
    every = [
        {"name": ref.removeprefix("refs/heads/"), "ref": ref, "targetCommit": repository.refs[ref]}
        for ref in repository.refs
    ]
    by_kind = {kind: [item for item in every if item["ref"].startswith(kind)] for kind in ("refs/heads/", "refs/pr/")}
    pulls = {"pullRequests": by_kind["refs/pr/"]} if call.flag("include_prs") else {}
    return told({"branches": by_kind["refs/heads/"], "converts": [], "tags": [], **pulls})


def history(call: Call) -> Answer:
    commits = call.repository().history(call.revision)
    page, size = int(call.query.get("p", ["0"])[0]), min(call.hub.page_size, 50)
    answer = told(
        [
            {
                **{"id": commit.sha, "title": commit.title, "message": commit.message, "date": commit.date},
                **{"authors": [{"user": commit.author}], "parents": [commit.parent] if commit.parent else []},
            }
            for commit in commits[page * size : (page + 1) * size]
        ]
    )
    answer.headers["X-Total-Count"] = str(len(commits))
    return paged(call, answer, p=str(page + 1)) if commits[(page + 1) * size :] else answer


def branch(call: Call) -> Answer:
    repository, name = call.repository("write"), f"refs/heads/{call.groups['branch']}"
    if name.startswith("refs/heads/refs/"):
        raise Refusal(400, f"Invalid reference for a branch: {call.groups['branch']}")
    if name in repository.refs:
        raise Refusal(409, f"Reference already exists: {name}")
    repository.refs[name] = repository.at(call.json.get("startingPoint") or "main").sha
    return told({"success": True})


def harnesses(call: Call) -> Answer:
    """What clients may tell of in their user agent: nothing. They ask once per HF_HOME."""
    return told({"standardEnvVars": [], "harnesses": {}})


def auth_check(call: Call) -> Answer:
    call.repository("write" if call.path.endswith("/write") else "read")
    return told({})


def validate_yaml(call: Call) -> Answer:
    """Checks a card: its metadata are YAML and name a known license. Anyone may ask; RepoCard.validate has no token."""
    try:
        metadata = front_matter(call.json["content"])
    except yaml.YAMLError as error:
        return told({"errors": [{"message": f"YAML Metadata Error: {error}"}], "warnings": []}, 400)
    if metadata is None:
        return told({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    named = metadata.get("license", "unknown") if isinstance(metadata, dict) else None
    if not set(named if isinstance(named, list) else [named]) <= set(LICENSES.split()):
        errors = [{"message": f'"license" must be one of [{", ".join(LICENSES.split())}]'}]
        return told({"errors": errors, "warnings": []}, 400)
    return told({"errors": [], "warnings": []})


# Handlers of pull requests


def pull_info(repository: Repository, pull: Pull) -> dict[str, Any]:
    return {
        **{"num": pull.number, "title": pull.title, "status": pull.status, "createdAt": pull.date},
        **{"author": {"name": pull.author}, "repo": {"name": repository.name, "type": "dataset"}},
        **{"isPullRequest": True, "events": [], "filesWithConflicts": [], "diff": ""},
        "changes": {"base": "refs/heads/main"},
    }


def open_pull(call: Call, repository: Repository, title: str, status: str) -> Pull:
    author = call.token.user if call.token else ""
    pull = Pull(len(repository.pulls) + 1, title, author, status, now())
    repository.pulls[pull.number] = pull
    return pull


def discussions(call: Call) -> Answer:
    repository = call.repository()
    found = [pull_info(repository, pull) for pull in repository.pulls.values()]
    return told({"count": len(found), "start": 0, "discussions": found})


def discussion(call: Call) -> Answer:
    repository, number = call.repository(), int(call.groups["number"])
    if number not in repository.pulls:
        raise Refusal(404, "Discussion not found")
    return told(pull_info(repository, repository.pulls[number]))


def propose(call: Call) -> Answer:
    repository = call.repository("propose")
    if not call.json.get("pullRequest"):
        raise Refusal(400, "only pull requests here")
    pull = open_pull(call, repository, call.json["title"], "draft")
    repository.refs[f"refs/pr/{pull.number}"] = repository.at("main").sha
    return told(pull_info(repository, pull))


# Handlers of uploads, in the order in which they happen


def is_binary(sample: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # a sample may end within a character
    except UnicodeDecodeError:
        return True
    return b"\0" in sample


def preupload(call: Call) -> Answer:
    """Says where each file goes, and the oid of what is there, so that create_commit leaves out what did not change."""
    repository = call.repository("propose" if call.flag("create_pr") else "write")
    commit = repository.at(call.revision)
    ignored = call.json.get("gitIgnore") or repository.content(commit.tree, ".gitignore").decode()
    patterns = [line.strip().strip("/") for line in ignored.splitlines() if line.strip() and not line.startswith("#")]
    files = []
    for file in call.json["files"]:
        path, there = file["path"], commit.tree.get(file["path"])
        sample = base64.b64decode(file["sample"])
        large = repository.is_tracked(commit.tree, path) or file["size"] > LARGE or is_binary(sample)
        names = {path, Path(path).name, *Path(path).parts, *folders([path])}
        files.append(
            {
                **{"path": path, "uploadMode": "lfs" if large else "regular"},
                "shouldIgnore": any(fnmatch.fnmatch(name, pattern) for name in names for pattern in patterns),
                **({"oid": there.sha256 or there.oid} if there else {}),
            }
        )
    return told({"files": files, "commitOid": commit.sha})


def batch(call: Call) -> Answer:
    """Says how to upload to the large file storage; there is nothing to do for what is there, committed or not."""
    repository = call.repository("write" if "ref" in call.json else "propose")  # no ref: for a pull request
    hub, objects, multipart = call.hub, [], "multipart" in call.json.get("transfers", ())
    links = f"{hub.endpoint}/datasets/{repository.name}.git/info/lfs/objects"
    for wanted in call.json["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        objects.append({"oid": oid, "size": size})
        if oid in repository.contents:
            continue
        upload: dict[str, Any] = {"href": f"{hub.storage}/{repository.name}/{oid}?size={size}"}
        if multipart and size > hub.multipart_size:
            count, part = math.ceil(size / hub.multipart_size), f"{hub.storage}/{repository.name}/{oid}/parts"
            header = {str(number): f"{part}/{number}" for number in range(1, count + 1)}
            upload = {"href": f"{links}/complete", "header": {"chunk_size": str(hub.multipart_size), **header}}
        objects[-1]["actions"] = {"upload": upload, "verify": {"href": f"{links}/verify"}}
    chosen = "multipart" if any("header" in o.get("actions", {}).get("upload", {}) for o in objects) else "basic"
    return told({"transfer": chosen, "objects": objects})


def keep(repository: Repository, oid: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != oid:
        raise Refusal(400, "The SHA-256 you specified did not match what we received.")
    repository.store(content, large=True)


def transfer(call: Call) -> Answer:
    """Takes a file. The answer's ETag is for `_upload_multi_part`, which sends it back with `complete`."""
    repository, oid, part = call.hub.repositories[call.groups["repo"]], call.groups["oid"], call.groups.get("part")
    if part:
        repository.parts.setdefault(oid, {})[int(part)] = call.body
    elif len(call.body) != int(call.query["size"][0]):
        raise Refusal(400, "You did not provide the number of bytes specified.")
    else:
        keep(repository, oid, call.body)
    return Answer(200, b"", {"ETag": f'"{hashlib.md5(call.body).hexdigest()}"'})


def complete(call: Call) -> Answer:
    """Puts parts together. Takes no token: `_upload_multi_part` sends none."""
    repository, oid = call.hub.repositories[call.groups["repo"]], call.json["oid"]
    parts = repository.parts.get(oid, {})
    tags = [part["etag"].strip('"') for part in sorted(call.json["parts"], key=lambda part: int(part["partNumber"]))]
    if tags != [hashlib.md5(parts[number]).hexdigest() for number in sorted(parts)]:
        raise Refusal(400, "One or more of the specified parts could not be found.")
    keep(repository, oid, b"".join(parts[number] for number in sorted(parts)))
    del repository.parts[oid]
    return told({"success": True})


def verify(call: Call) -> Answer:
    repository = call.repository()
    if len(repository.contents.get(call.json["oid"], b"")) != call.json["size"]:
        raise Refusal(404, "Object does not exist or has another size")
    return told({})


Tree = dict[str, Entry]


def put_file(repository: Repository, tree: Tree, value: Mapping[str, Any]) -> None:
    tree[value["path"]] = repository.store(base64.b64decode(value["content"]))


def put_large(repository: Repository, tree: Tree, value: Mapping[str, Any]) -> None:
    content = repository.contents.get(value["oid"])
    if content is None or len(content) != value.get("size", len(content)):
        reason = "Your push was rejected because an LFS pointer pointed to a file that does not exist."
        raise Refusal(400, f"{reason} Offending file: - {value['path']}")
    tree[value["path"]] = repository.store(content, large=True)


def delete_file(repository: Repository, tree: Tree, value: Mapping[str, Any]) -> None:
    if tree.pop(value["path"], None) is None:
        raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")


def delete_folder(repository: Repository, tree: Tree, value: Mapping[str, Any]) -> None:
    below = [path for path in tree if path.startswith(f"{value['path'].rstrip('/')}/")]
    if not below:
        raise Refusal(404, "A folder with this name doesn't exist", "EntryNotFound")
    for path in below:
        del tree[path]


OPERATIONS: dict[str, Callable[[Repository, Tree, Mapping[str, Any]], None]] = {
    "file": put_file,
    "lfsFile": put_large,
    "deletedFile": delete_file,
    "deletedFolder": delete_folder,
}


def commit(call: Call) -> Answer:
    """Takes a commit, all or nothing. One that changes nothing is a commit too, but create_commit doesn't send it."""
    pull_wanted = call.flag("create_pr")
    repository = call.repository("propose" if pull_wanted else "write")
    header, *operations = [json.loads(line) for line in call.body.splitlines() if line.strip()]
    about, ref = header["value"], repository.ref(call.revision)
    title, message, parent = about["summary"], about.get("description", ""), about.get("parentCommit")
    base = repository.at(ref)
    if pull_wanted and parent:
        base = repository.at(parent)
    elif parent and not base.sha.startswith(parent):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    changed = dict(base.tree)
    for operation in operations:
        OPERATIONS[operation["key"]](repository, changed, operation["value"])
    large = [operation["value"]["path"] for operation in operations if operation["key"] == "lfsFile"]
    untracked = "".join(TRACKED.format(path) for path in large if not repository.is_tracked(changed, path))
    if untracked:  # as the Hub does it
        attributes = repository.content(changed, ".gitattributes")
        changed[".gitattributes"] = repository.store(attributes + untracked.encode())
    links = {}
    if pull_wanted:
        pull = open_pull(call, repository, title, "open")
        ref = f"refs/pr/{pull.number}"
        links["pullRequestUrl"] = f"{call.hub.endpoint}/datasets/{repository.name}/discussions/{pull.number}"
    made = repository.advance(ref, base.sha, changed, title, message, call.token.user if call.token else "")
    call.made.append((repository, ref.removeprefix("refs/heads/"), made))
    links["commitUrl"] = f"{call.hub.endpoint}/datasets/{repository.name}/commit/{made.sha}"
    return told({"success": True, "commitOid": made.sha, "hookOutput": "", **links})


# Handlers of downloads


def ranged(call: Call, content: bytes, headers: dict[str, str]) -> Answer:
    """A content, or the range of it that was asked for."""
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("Range") or "")
    if not wanted or wanted[0] == "bytes=-":
        return Answer(200, content, headers)
    size = len(content)
    first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
    last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
    if first >= size or first > last:
        return Answer(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
    return Answer(206, content[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{size}"})


def resolve(call: Call) -> Answer:
    """A file, or where the large file storage has it: at another origin, so that clients leave their token behind and
    take X-Linked-Size and X-Linked-ETag from the redirection (get_hf_file_metadata).
    """
    repository = call.repository()
    if repository.gated and "write" not in rights(call.hub, call.token, repository.name):
        raise Refusal(403 if call.token else 401, f"Access to dataset {repository.name} is restricted.", "GatedRepo")
    commit, path = repository.at(call.revision), call.groups["path"]
    headers = {"X-Repo-Commit": commit.sha}
    entry = commit.tree.get(path)
    if entry is None:
        refusal = Refusal(404, "Entry not found", "EntryNotFound")
        refusal.answer.headers.update(headers)  # hf_hub_download remembers in which commit there is no such file
        raise refusal
    headers["Content-Disposition"] = f'inline; filename="{Path(path).name}"'
    if entry.sha256:
        linked = {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.sha256}"'}
        location = f"{call.hub.storage}/{repository.name}/{entry.sha256}"
        return Answer(302, b"Found. Redirecting", {**headers, **linked, "Location": location, "Accept-Ranges": "bytes"})
    return ranged(call, repository.contents[entry.oid], {**headers, "ETag": f'"{entry.oid}"'})


def download(call: Call) -> Answer:
    content = call.hub.repositories[call.groups["repo"]].contents.get(call.groups["oid"])
    if content is None:
        raise Refusal(404, "The specified key does not exist.")
    return ranged(call, content, {"ETag": f'"{call.groups["oid"]}"'})


# Routes: methods, path (still quoted, so that a revision is one segment), stage, handler

Handler = Callable[[Call], Answer]
Routes = Sequence[tuple[str, "re.Pattern[str]", str, Handler]]

SHORTHANDS = {
    "DATASET": r"/api/datasets/(?P<repo>[^/]+/[^/]+)",
    "LFS": r"/datasets/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects",
    "REVISION": r"(?P<revision>refs/(?:heads|pr|convert)/[^/]+|[^/]+)",
    "OBJECT": r"/(?P<repo>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})",
}


def routes(*table: tuple[str, str, str, Handler]) -> Routes:
    compiled = []
    for methods, path, stage, handler in table:
        pattern = re.sub("|".join(SHORTHANDS), lambda found: SHORTHANDS[found[0]], path)
        compiled.append((methods, re.compile(pattern), stage, handler))
    return compiled


HUB_ROUTES = routes(
    ("GET", "/api/whoami-v2", "whoami", whoami),
    ("POST", "/api/repos/create", "create", create),
    ("GET", "DATASET(/revision/REVISION)?", "info", info),
    ("GET", "DATASET/tree/REVISION(?P<path>/.*)?", "tree", tree),
    ("POST", "DATASET/paths-info/REVISION", "paths", paths_info),
    ("GET", "DATASET/refs", "refs", references),
    ("GET", "DATASET/commits/REVISION", "history", history),
    ("POST", "DATASET/branch/(?P<branch>.+)", "branch", branch),
    ("GET", "DATASET/auth-check(/write)?", "auth", auth_check),
    ("POST", "/api/validate-yaml", "validate", validate_yaml),
    ("GET", "/api/agent-harnesses", "harnesses", harnesses),
    ("GET", "DATASET/discussions", "discussions", discussions),
    ("GET", r"DATASET/discussions/(?P<number>\d+)", "discussions", discussion),
    ("POST", "DATASET/discussions", "propose", propose),
    ("POST", "DATASET/preupload/REVISION", "preupload", preupload),
    ("POST", "LFS/batch", "batch", batch),
    ("POST", "LFS/complete", "complete", complete),
    ("POST", "LFS/verify", "verify", verify),
    ("POST", "DATASET/commit/REVISION", "commit", commit),
    ("GET HEAD", "/datasets/(?P<repo>[^/]+/[^/]+)/resolve/REVISION/(?P<path>.+)", "resolve", resolve),
)
STORAGE_ROUTES = routes(
    ("PUT", r"OBJECT(/parts/(?P<part>\d+))?", "transfer", transfer),
    ("GET HEAD", "OBJECT", "download", download),
)
STAGES = list(dict.fromkeys(stage for _, _, stage, _ in (*HUB_ROUTES, *STORAGE_ROUTES)))


# The server


class Hub:
    """The state of it all, and how tests look at it and disturb it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endpoint = self.storage = ""  # addresses of the Hub and of the large file storage
        self.lock = threading.RLock()
        self.repositories: dict[str, Repository] = {}
        self.members = {"org": {"maker"}}  # of organizations
        self.tokens = {
            "write": Token("hf_write"),
            "read": Token("hf_read", role="read"),
            "fine-grained": Token("hf_fine", role="fineGrained", scopes={"org": ("repo.content.read", "repo.write")}),
            "stranger": Token("hf_stranger", user="stranger"),
        }
        self.page_size = 1000  # at most; of listings
        self.multipart_size = 5_000_000_000  # files larger than that are uploaded in parts of it
        self.requests: list[Request] = []
        self.errors: list[Exception] = []  # of this file, or of the functions that tests gave
        self.faults: list[Fault] = []
        self.hooks: list[tuple[str, Callable[[Request], object]]] = []
        self.watchers: list[Callable[[Repository, str, Commit], object]] = []

    # What tests look at

    @property
    def unknown(self) -> list[Request]:
        """Requests that nothing here answers."""
        return [request for request in self.requests if not request.stage]

    def asked(self, *stages: str) -> list[Request]:
        """Requests of some stages."""
        return [request for request in self.requests if request.stage in stages]

    def repository(self, name: str) -> Repository:
        return self.repositories[name]

    def environment(self, token: str | None = "write", home: str = "home") -> dict[str, str]:
        """Environment for a client: a token by its name, or any other string, or None. `home` keeps its cache."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
        }
        secret = {"HF_TOKEN": self.tokens[token].secret if token in self.tokens else token} if token else {}
        return {
            **kept,
            **secret,
            **{"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(self.folder / home)},
        }

    # What tests do

    def create(self, name: str, private: bool = False, gated: bool = False) -> Repository:
        """Makes a repository, with the Hub's first commit."""
        with self.lock:
            self.repositories[name] = Repository(name, name.split("/")[0], private, gated)
            return self.repositories[name]

    def commit(
        self, name: str, changes: Mapping[str, bytes | None], title: str = "Someone else's", revision: str = "main"
    ) -> Commit:
        """Someone else's commit: contents by path, None to delete a file."""
        with self.lock:
            repository = self.repositories[name]
            ref, base = repository.ref(revision), repository.at(revision)
            changed = {path: entry for path, entry in base.tree.items() if path not in changes}
            for path, content in changes.items():
                if content is not None:
                    large = repository.is_tracked(base.tree, path) or len(content) > LARGE or is_binary(content[:512])
                    changed[path] = repository.store(content, large)
            return repository.advance(ref, base.sha, changed, title, author="someone")

    def fail(self, stage: str, kind: str, times: float = 1, after: int = 0, path: str = "", wait: int = 0) -> Fault:
        """Lets requests fail; see `Fault`."""
        assert stage in STAGES, stage
        fault = Fault(stage, kind, times, after, path, wait)
        with self.lock:
            self.faults.append(fault)
        return fault

    def on(self, stage: str, function: Callable[[Request], object]) -> None:
        """Calls a function in each request of a stage, before anything is done: when half of its body has arrived."""
        assert stage in STAGES, stage
        self.hooks.append((stage, function))

    def watch(self, function: Callable[[Repository, str, Commit], object]) -> None:
        """Calls a function with each commit that a client made and its revision, before the client knows."""
        self.watchers.append(function)

    # What the server does

    def strike(self, request: Request) -> Fault | None:
        """The fault that a request meets."""
        with self.lock:
            for fault in self.faults:
                if fault.stage == request.stage and fault.path in request.path and fault.times > 0:
                    if fault.after > 0:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    request.fault = fault.kind
                    return fault
            return None

    def interrupt(self, request: Request) -> None:
        for stage, function in list(self.hooks):
            if stage == request.stage:
                function(request)

    def answer(self, call: Call, handler: Handler, authorize: bool) -> Answer:
        """Does what was asked for, one request at a time."""
        try:
            secret = call.headers.get("Authorization", "").removeprefix("Bearer ")
            if secret and not authorize:
                raise Refusal(400, "Only one auth mechanism allowed")  # as S3 with a signed address
            with self.lock:
                call.token = next((token for token in self.tokens.values() if token.secret == secret), None)
                if secret and not call.token:
                    raise Refusal(401, "Invalid credentials in Authorization header")
                answer = handler(call)
            for repository, revision, made in call.made:
                for watcher in list(self.watchers):
                    watcher(repository, revision, made)
        except Refusal as refusal:
            return refusal.answer
        return answer


def unanswered(call: Call) -> Answer:
    raise Refusal(404, f"{call.method} {call.path} is not known here")


class _Origin(http.server.ThreadingHTTPServer):
    """The Hub or its large file storage."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: Hub, routes: Routes, authorize: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.routes, self.authorize = hub, routes, authorize

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stays quiet about clients that hang up."""
        error = sys.exc_info()[1]
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self.hub.errors.append(error)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Origin
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body go together

    def _serve(self) -> None:
        hub = self.server.hub
        path, _, query = self.path.partition("?")
        stage, groups = "", {}
        handler: Handler = unanswered
        for methods, pattern, name, function in self.server.routes:
            if self.command in methods.split() and (found := pattern.fullmatch(path)):
                stage, handler = name, function
                groups = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                break
        request = Request(self.command, self.path, stage)
        hub.requests.append(request)
        fault = hub.strike(request)
        try:
            body = self._receive(request, fault)
            if body is None:
                self.close_connection = True
                return
            call = Call(hub, self.command, path, groups, parse_qs(query), self.headers, body, None)
            is_status = fault is not None and fault.kind.isdigit()
            answer = failed(fault) if fault and is_status else hub.answer(call, handler, self.server.authorize)
        except Exception as error:
            hub.errors.append(error)
            answer = Refusal(500, f"Bug in the tests' Hub: {error!r}").answer
        finally:
            request.done = True
        self._answer(request, answer, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    def _receive(self, request: Request, fault: Fault | None) -> bytes | None:
        """The request's body; None if the client did not send all of it, or a fault breaks it off."""
        length = int(self.headers.get("Content-Length") or 0)
        first = self._read(length // 2)
        request.received = len(first)
        self.server.hub.interrupt(request)
        if fault and fault.kind == "cut" and length:
            return None
        rest = self._read(length - length // 2)
        request.received += len(rest)
        return first + rest if request.received == length else None

    def _read(self, length: int) -> bytes:
        with contextlib.suppress(OSError):  # a client that hangs up
            return self.rfile.read(length)
        return b""

    def _answer(self, request: Request, answer: Answer, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        body = b"" if self.command == "HEAD" else answer.body
        if kind == "lost" or (kind == "cut" and not body):
            self.close_connection = True
            return
        request.status = answer.status
        self.send_response(answer.status)
        headers = {"X-Request-Id": f"Root=1-{len(self.server.hub.requests)}", **answer.headers}
        for name, value in headers.items():
            self.send_header(name, value.encode("ascii", "replace").decode().replace("\n", " "))
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if kind == "cut":
            body = body[: len(body) // 2]
            self.close_connection = True
        request.sent = len(body)
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Runs a Hub; clients keep their caches in `folder`. Raises what went wrong in it."""
    hub = Hub(folder)
    with _Origin(hub, HUB_ROUTES, True) as api, _Origin(hub, STORAGE_ROUTES, False) as storage:
        hub.endpoint, hub.storage = (f"http://127.0.0.1:{origin.server_port}" for origin in (api, storage))
        threads = [
            threading.Thread(target=origin.serve_forever, args=(0.05,), daemon=True) for origin in (api, storage)
        ]
        for thread in threads:
            thread.start()
        try:
            yield hub
        finally:
            for origin in (api, storage):
                origin.shutdown()
            for thread in threads:
                thread.join()
    if hub.errors:
        raise hub.errors[0]
