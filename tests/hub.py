"""A small Hugging Face Hub on 127.0.0.1: what the commands and load_dataset ask of the real one about datasets, with
the same answers. It refuses the rest (so Xet too), fails on demand, and remembers every request.

    with hub.serving(tmp_path) as server:
        server.create("org/name")
        subprocess.run([...], env=server.environment())
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

LARGE = (".parquet", ".h5", ".gz", ".png")  # files of these go to the large file storage
SIGNATURE = "5167a7e5"  # in the addresses of the storage
TOKENS = {"write": "hf_write", "read": "hf_read", "stranger": "hf_stranger"}  # the stranger may propose

# What requests are about, by method and path (still quoted, so that a revision is one segment). A stage is answered by
# the method of Call that has its name.
REPO, REVISION = "(?P<repo>[^/]+/[^/]+)", "(?P<revision>refs/pr/[^/]+|[^/]+)"
DATASET, OBJECT = f"/api/datasets/{REPO}", f"/storage/{REPO}/(?P<oid>[0-9a-f]{{64}})"
STAGES = {
    "auth": f"GET {DATASET}/auth-check(?P<write>/write)?",
    "validate": "POST /api/validate-yaml",
    "create": "POST /api/repos/create",
    "info": f"GET {DATASET}(/revision/{REVISION})?",
    "tree": f"GET {DATASET}/tree/{REVISION}(?P<path>/.*)?",
    "paths": f"POST {DATASET}/paths-info/{REVISION}",
    "commits": f"GET {DATASET}/commits/{REVISION}",
    "preupload": f"POST {DATASET}/preupload/{REVISION}",
    "batch": f"POST /datasets/{REPO}\\.git/info/lfs/objects/batch",
    "transfer": f"PUT {OBJECT}",
    "commit": f"POST {DATASET}/commit/{REVISION}",
    "resolve": f"(GET|HEAD) /datasets/{REPO}/resolve/{REVISION}/(?P<path>.+)",
    "download": f"(GET|HEAD) {OBJECT}",
    "refused": f"GET (/api/agent-harnesses|{DATASET}/xet-write-token/.*)",
}


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "", **more: str) -> None:
        headers = {"X-Error-Message": message, "X-Error-Code": code, **more}
        self.answer = Answer(status, json.dumps({"error": message, **more}).encode(), headers)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def oid(path: str, content: bytes) -> str:
    """How a file is named: by the SHA-256 of a large one, else by the SHA-1 that Git gives it."""
    return sha256(content) if path.endswith(LARGE) else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Commit(NamedTuple):
    """A commit with all its files."""

    sha: str
    parent: str
    title: str
    author: str
    tree: Mapping[str, bytes]

    def about(self) -> dict[str, Any]:
        who = {"authors": [{"user": self.author}], "date": "2025-11-25T00:00:00.000Z"}
        return {"id": self.sha, "title": self.title, "message": "", **who}

    def paths(self) -> list[str]:
        """Files and folders."""
        folders = {str(folder) for path in self.tree for folder in Path(path).parents}
        return sorted({*self.tree, *folders} - {"."})

    def path_info(self, path: str) -> dict[str, Any]:
        """A file or a folder, as RepoFile and RepoFolder of huggingface_hub take it."""
        content = self.tree.get(path)
        if content is None:
            return {"type": "directory", "oid": oid("", path.encode()), "size": 0, "path": path}
        about = {"type": "file", "oid": oid("", content), "size": len(content), "path": path}
        lfs = {"oid": sha256(content), "size": len(content), "pointerSize": 127}
        return {**about, "lfs": lfs} if path.endswith(LARGE) else about


class Repository:
    """Commits and what points to them."""

    def __init__(self, name: str, private: bool) -> None:
        self.name, self.private = name, private
        self.stored: dict[str, bytes] = {}  # large files that have come, by SHA-256, whether committed or not
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}  # refs/heads/main, refs/pr/1 → sha
        self.advance("refs/heads/main", "", {".gitattributes": b""}, "initial commit", "")

    def advance(self, ref: str, parent: str, tree: Mapping[str, bytes], title: str, author: str) -> Commit:
        """Makes a commit and lets a ref point to it."""
        sha = hashlib.sha1(f"{self.name} {len(self.commits)} {parent} {title}".encode()).hexdigest()
        self.stored |= {oid(path, content): content for path, content in tree.items() if path.endswith(LARGE)}
        self.commits[sha], self.refs[ref] = Commit(sha, parent, title, author, dict(sorted(tree.items()))), sha
        return self.commits[sha]

    def ref(self, revision: str) -> str:
        """Full name of a branch or of a pull request's ref."""
        found = [name for name in (revision, f"refs/heads/{revision}") if name in self.refs]
        if not found:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]

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
        return dict(self.at(revision).tree)


@dataclass
class Fault:
    """Lets `times` requests of a stage fail, after `after` that don't.

    Kinds: a status ("429", "500", "503", …) is answered, with this header; "cut" breaks off in the middle of the
    request's body, before anything is done, or of the answer's if the request has none; "lost" does what was asked for
    and hangs up without an answer; anything else is the body of the answer.
    """

    stage: str
    kind: str
    times: float
    after: int
    header: str

    def answer(self) -> Answer | None:
        """What is answered in place of everything else."""
        if self.kind in ("cut", "lost"):
            return None
        headers = dict([self.header.split(": ")] if self.header else [])
        return Answer(*((int(self.kind), b"{}") if self.kind.isdecimal() else (200, self.kind.encode())), headers)


@dataclass(eq=False)
class Call:
    """A request, as it came in, and what is done about it."""

    hub: Hub
    method: str
    path: str  # without the query
    query: dict[str, list[str]]
    headers: Message[str, str]
    stage: str = ""
    groups: dict[str, str] = field(default_factory=dict)  # of the stage's pattern
    fault: str = ""  # kind of the fault that it met
    body: bytes = b""  # as much of it as came
    token: str = ""  # its name in TOKENS
    done: bool = False  # whether nothing more will happen to it

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def repository(self) -> Repository:
        """The repository that is asked for."""
        if self.groups["repo"] not in self.hub.repositories:
            # The real Hub sends no code with 401; huggingface_hub takes that so for https addresses only.
            raise Refusal(404 if self.token else 401, "Repository not found", "RepoNotFound")
        return self.hub.repositories[self.groups["repo"]]

    @property
    def revision(self) -> Commit:
        return self.repository.at(self.groups.get("revision", "main"))

    def may_write(self, is_proposal: bool = False) -> Repository:
        """The repository that is asked for, if the token may change it, or propose a change."""
        if self.token != "write" and not (is_proposal and self.token == "stranger"):
            raise Refusal(403 if self.token else 401, "Forbidden: pass `create_pr=1` to create a Pull Request")
        return self.repository

    def refused(self) -> Any:
        raise Refusal(404, f"{self.path} is not known here")

    def auth(self) -> Any:
        assert self.repository
        return self.may_write() and {} if "write" in self.groups else {}

    def validate(self) -> Any:
        return {"errors": [], "warnings": []}

    def create(self) -> Any:
        name = f"{self.json['organization']}/{self.json['name']}"
        url = f"{self.hub.endpoint}/datasets/{name}"
        if self.token != "write":
            raise Refusal(403, "You don't have the rights to create a dataset under this namespace")
        if name in self.hub.repositories:
            raise Refusal(409, "You already created this dataset repo", url=url)  # create_repo(exist_ok=True) reads it
        self.hub.create(name, self.json.get("visibility") == "private")
        return {"url": url, "name": name, "id": name}

    def info(self) -> Any:
        siblings = [{"rfilename": path} for path in self.revision.tree]
        about = {"id": self.repository.name, "sha": self.revision.sha, "private": self.repository.private}
        return {**about, "siblings": siblings, "gated": False, "disabled": False, "tags": []}

    def tree(self) -> Any:
        folder = self.groups.get("path", "").strip("/")
        prefix = f"{folder}/" if folder else ""
        paths = [path for path in self.revision.paths() if path.startswith(prefix)]
        if not paths:
            raise Refusal(404, f'"{folder}" does not exist', "EntryNotFound")
        if self.query.get("recursive", [""])[0].lower() not in ("1", "true"):
            paths = [path for path in paths if "/" not in path[len(prefix) :]]
        return [self.revision.path_info(path) for path in paths]

    def paths(self) -> Any:
        wanted, found = parse_qs(self.body.decode()).get("paths", []), []
        for path in [path for path in self.revision.paths() if path in wanted]:
            last, *earlier = self.repository.history(self.revision.sha)
            for commit in earlier:
                if commit.tree.get(path) != last.tree.get(path):
                    break
                last = commit
            found.append({**self.revision.path_info(path), "lastCommit": last.about()})
        return found

    def commits(self) -> Any:
        return [commit.about() for commit in self.repository.history(self.revision.sha)]

    def preupload(self) -> Any:
        """Says where each file goes, and the oid of what is there, so that create_commit leaves out what is equal."""
        tree, files = self.may_write("create_pr" in self.query).at(self.groups["revision"]).tree, []
        for path in [file["path"] for file in self.json["files"]]:
            about = {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
            files.append({**about, "oid": oid(path, tree[path])} if path in tree else about)
        return {"files": files, "commitOid": self.revision.sha}

    def batch(self) -> Any:
        """Says how to upload to the large file storage; there is nothing to do for what is there, committed or not."""
        repository = self.may_write("ref" not in self.json)  # no ref: for a pull request
        objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in self.json["objects"]]
        for wanted in [wanted for wanted in objects if wanted["oid"] not in repository.stored]:
            href = f"{self.hub.storage}/storage/{repository.name}/{wanted['oid']}?X-Amz-Signature={SIGNATURE}"
            wanted["actions"] = {"upload": {"href": href}}
        return {"transfer": "basic", "objects": objects}

    def transfer(self) -> Any:
        if sha256(self.body) != self.groups["oid"]:
            raise Refusal(400, "The SHA-256 you specified did not match what we received.")
        self.hub.repositories[self.groups["repo"]].stored[self.groups["oid"]] = self.body
        return {}

    def commit(self) -> Any:
        """Takes a commit, all or nothing."""
        is_proposal = "create_pr" in self.query
        repository, ref = self.may_write(is_proposal), self.repository.ref(self.groups["revision"])
        header, *operations = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        base = repository.at(ref)
        if header["value"].get("parentCommit", base.sha) != base.sha:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        changed = dict(base.tree)
        for key, value in [(operation["key"], operation["value"]) for operation in operations]:
            if key == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile" and value["oid"] in repository.stored:
                changed[value["path"]] = repository.stored[value["oid"]]
            elif key == "deletedFile" and value["path"] in changed:
                del changed[value["path"]]
            else:
                raise Refusal(400, f"{key} of {value['path']} is not possible here")
        links, page = {}, f"{self.hub.endpoint}/datasets/{repository.name}"
        if is_proposal:
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.refs)
            ref, links["pullRequestUrl"] = f"refs/pr/{number}", f"{page}/discussions/{number}"
        made = repository.advance(ref, base.sha, changed, header["value"]["summary"], f"{self.token}r")
        return {"success": True, "commitOid": made.sha, "commitUrl": f"{page}/commit/{made.sha}", **links}

    def resolve(self) -> Any:
        """A file, or where the large file storage has it: at another origin, so that clients leave their token behind
        and take X-Linked-Size and X-Linked-ETag from the redirection (get_hf_file_metadata).
        """
        path, commit = self.groups["path"], self.revision.sha
        if path not in self.revision.tree:  # hf_hub_download remembers in which commit
            raise Refusal(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit})
        content = self.revision.tree[path]
        if not path.endswith(LARGE):
            return self.ranged(content, {"X-Repo-Commit": commit, "ETag": f'"{oid(path, content)}"'})
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha256(content)}"', "Accept-Ranges": "bytes"}
        location = f"{self.hub.storage}/storage/{self.repository.name}/{sha256(content)}"
        return Answer(302, b"Found. Redirecting", {"X-Repo-Commit": commit, "Location": location, **linked})

    def download(self) -> Any:
        content = self.hub.repositories[self.groups["repo"]].stored.get(self.groups["oid"])
        if content is None:
            raise Refusal(404, "The specified key does not exist.")
        return self.ranged(content, {"ETag": f'"{self.groups["oid"]}"'})

    def ranged(self, content: bytes, headers: dict[str, str]) -> Answer:
        """A content, or the range of it that was asked for."""
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return Answer(200, content, headers)
        piece = content[int(wanted[1]) : int(wanted[2]) + 1 if wanted[2] else None]
        extent = f"bytes {wanted[1]}-{int(wanted[1]) + len(piece) - 1}/{len(content)}"
        return Answer(206, piece, {**headers, "Content-Range": extent})


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

    def asked(self, *stages: str) -> list[Call]:
        """Requests of some stages; those that nothing here answers have the stage ""."""
        return [request for request in self.requests if request.stage in stages]

    def repository(self, name: str) -> Repository:
        return self.repositories[name]

    def environment(self, token: str | None = "write", home: str = "home") -> dict[str, str]:
        """Environment for a client: a token by its name, or None. `home` keeps its cache."""
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
        settings = {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(self.folder / home)}
        secret = {"HF_TOKEN": TOKENS[token]} if token else {}
        return {key: value for key, value in os.environ.items() if not key.startswith(foreign)} | settings | secret

    def create(self, name: str, private: bool = False) -> Repository:
        """Makes a repository, with the Hub's first commit."""
        self.repositories[name] = Repository(name, private)
        return self.repositories[name]

    def commit(self, name: str, changes: Mapping[str, bytes], revision: str = "main") -> Commit:
        """Someone else's commit: contents by path."""
        with self.lock:
            repository, base = self.repositories[name], self.repositories[name].at(revision)
            tree = {**base.tree, **changes}
            return repository.advance(repository.ref(revision), base.sha, tree, "Someone else's", "someone")

    def fail(self, stage: str, kind: str, times: float = 1, after: int = 0, header: str = "") -> Fault:
        """Lets requests fail; see `Fault`."""
        assert stage in STAGES, stage
        self.faults.append(Fault(stage, kind, times, after, header))
        return self.faults[-1]

    def on(self, stage: str, function: Callable[[Call], object]) -> None:
        """Calls a function in each request of a stage, before anything is done: when half of its body has arrived."""
        self.hooks.append((stage, function))

    def strike(self, call: Call) -> Fault | None:
        """The fault that a request meets."""
        for fault in [fault for fault in self.faults if fault.stage == call.stage and fault.times > 0]:
            fault.after -= 1
            if fault.after < 0:
                fault.times, call.fault = fault.times - 1, fault.kind
                return fault
        return None

    def answer(self, call: Call) -> Answer:
        """Does what was asked for."""
        secret = call.headers.get("Authorization", "").removeprefix("Bearer ")
        call.token = next((name for name, known in TOKENS.items() if known == secret), "")
        try:
            if secret and call.stage in ("transfer", "download"):
                raise Refusal(400, "Only one auth mechanism allowed")  # as S3 with a signed address
            if secret and not call.token:
                raise Refusal(401, "Invalid credentials in Authorization header")
            value = getattr(call, call.stage or "refused")()
        except Refusal as refusal:
            return refusal.answer
        json_type = {"Content-Type": "application/json"}
        return value if isinstance(value, Answer) else Answer(200, json.dumps(value).encode(), json_type)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stays quiet about clients that hang up."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body go together

    def _serve(self) -> None:
        path, _, query = self.path.partition("?")
        call = Call(self.server, self.command, path, parse_qs(query), self.headers)
        for stage, pattern in STAGES.items():
            if not call.stage and (found := re.fullmatch(pattern, f"{self.command} {path}")):
                call.stage = stage
                call.groups = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
        with self.server.lock:
            self.server.requests.append(call)
            fault = self.server.strike(call)
        try:
            if self._receive(call):
                with self.server.lock:
                    answer = (fault and fault.answer()) or self.server.answer(call)
                self._answer(call, answer)
        except Exception as error:
            self.server.errors.append(error)
            self._answer(call, Refusal(500, f"Bug in the tests' Hub: {error!r}").answer)
        finally:
            call.done = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _receive(self, call: Call) -> bool:
        """Reads the request's body; False if the client did not send all of it, or a fault breaks it off."""
        length = int(self.headers.get("Content-Length") or 0)
        with contextlib.suppress(OSError):  # a client that hangs up
            call.body += self.rfile.read(length // 2)
            for function in [function for stage, function in self.server.hooks if stage == call.stage]:
                function(call)
            if not (call.fault == "cut" and length):
                call.body += self.rfile.read(length - length // 2)
        self.close_connection = len(call.body) < length
        return not self.close_connection

    def _answer(self, call: Call, answer: Answer) -> None:
        body = b"" if self.command == "HEAD" else answer.body
        if call.fault == "lost" or (call.fault == "cut" and not body):
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if call.fault == "cut":
            self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(body[: len(body) // 2] if call.fault == "cut" else body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Runs a Hub; clients keep their caches in `folder`. Raises what went wrong in it."""
    with Hub(folder) as hub:
        threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()
    if hub.errors:
        raise hub.errors[0]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as home, serving(Path(home)) as running:
        settings = {key: value for key, value in running.environment().items() if key.startswith("HF_")}
        print("A Hub that forgets everything when it ends, by Ctrl-C. In another terminal:", flush=True)
        print("export", *(f"{key}={value}" for key, value in settings.items()), flush=True)
        threading.Event().wait()
