"""Uploads a repository that build.py made to the Hugging Face Hub: data first, then one commit that shows it."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import huggingface_hub
import tqdm
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import default_client_factory, get_session, hf_raise_for_status
from huggingface_hub.utils._validators import validate_repo_id
from huggingface_hub.utils.sha import git_hash
from huggingface_hub.utils.tqdm import disable_progress_bars

from publishing import card, command, contents, manifest
from publishing.command import CommandError
from publishing.configs import CONFIGS

EXAMPLES = """\
  python scripts/upload.py build/so2sat ORG/so2sat --dry-run      check everything and show what would be done
  python scripts/upload.py build/so2sat ORG/so2sat --private      only for you and your organisation
  python scripts/upload.py build/so2sat ORG/so2sat --create-pr    as a pull request
  python scripts/upload.py build/so2sat ORG/so2sat --tag v2.1.0   with the tag that the card's revision= names
"""

TITLE = "So2Sat LCZ42 "  # how the title of an upload's commit begins, by which it is known again
FILES_AT_ONCE = 5  # are sent between two steps of the progress bar
ATTEMPTS, LONGEST_PAUSE = 8, 300.0  # of a request, and seconds between two
ANSWER_SECONDS = 300  # that the Hub may stay silent
# Reading JSON takes 30 times its size. A thousand files are listed in 0.4 MB.
MAX_ANSWER_BYTES, MAX_FILES, MAX_NAME = 3 << 20, 50_000, 500
MAX_CARD, MAX_LINES = 200_000, 20  # bytes of a card of others that are read, changed lines of it that are shown
Result = TypeVar("Result")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = command.parser(
        "Uploads a repository that build.py made to the Hugging Face Hub. All is checked first; data are sent next, and"
        " a single commit then shows them together with the card and removes what is stale, so that nobody ever sees"
        " a mixture. Interrupted and run again, it sends only what is missing. A card that others have changed on the"
        f" Hub is not replaced unasked; a change under the title of an upload ('{TITLE}...') is not seen. The"
        " token is that of 'hf auth login' or the environment variable HF_TOKEN.",
        EXAMPLES,
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="repository that build.py made")
    parser.add_argument("repo_id", metavar="ORG/NAME", type=_repo_id, help="dataset on the Hub, made if it isn't there")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of changing the branch")
    parser.add_argument("--revision", metavar="R", default="main", help="branch (default: %(default)s)")
    parser.add_argument("--tag", type=_tag, help="set this tag on the result; the card's revision= names v2.1.0")
    parser.add_argument("--replace-card", action="store_true", help="replace a card that others have changed")
    parser.add_argument("--dry-run", action="store_true", help="check, say what would be done, and send nothing")
    return command.run(_run, parser, argv)


def _repo_id(text: str) -> str:
    try:
        validate_repo_id(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if "/" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form ORG/NAME")
    if text.endswith(".py"):
        raise argparse.ArgumentTypeError(f"{text!r} can't be loaded: datasets takes it for a script; take another name")
    return text


def _tag(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form v2.1.0")
    return text


def _run(options: argparse.Namespace) -> None:
    huggingface_hub.set_client_factory(_client)
    disable_progress_bars()
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_without_secrets)
    usual = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, _end)  # Python would wait for all files that are under way, maybe for minutes
    try:
        _upload(options)
    except (httpx2.HTTPError, httpx2.InvalidURL, ConnectionError) as error:
        if options.debug:
            print(_shown(traceback.format_exc(), "\n"), file=sys.stderr)
        raise CommandError(f"the Hub: {_shown(str(error)) or type(error).__name__}; {_advice(error)}") from None
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if {*where.parts}.isdisjoint({"huggingface_hub", "httpx2", "json"}):
            raise  # not by an answer of another shape, but a bug
        raise CommandError(NO_HUB.format(_shown(repr(error)))) from error
    finally:
        signal.signal(signal.SIGINT, usual)


def _end(*_: object) -> None:
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(128 + signal.SIGINT)


def _upload(options: argparse.Namespace) -> None:
    """Makes a dataset on the Hub equal to a repository: preflight, plan, data, one commit, a look back."""
    name, revision, tag = options.repo_id, options.revision, options.tag
    if options.create_pr and (tag or revision != "main"):
        raise CommandError("--create-pr proposes a change of main, without a tag; leave out --revision and --tag")
    folder = options.folder.expanduser().resolve()
    built = manifest.load_built(folder)
    _check_folder(folder, built, name)
    changed_at = _changed_at(folder, built)
    api = HfApi()
    _check_token(api, name, options.create_pr)
    head = _find(api, name, revision, options.private)
    plan = Plan(api, options, _read(folder, built, name), _ask(_tree, api, name, head) if head else {})
    if head and tag:
        _ask(plan.check_tag, tag)
    print(f"{name}, {revision} ({f'at {head[:8]}' if head else 'will be made'}):")
    plan.show()
    if head and any(addition.path_in_repo == card.NAME for addition in plan.changed):
        _check_edits(api, name, head, options.replace_card)
    if options.dry_run:
        print("dry run: nothing was sent")
        return
    title = f"{TITLE}{built.version}: {', '.join(built.configs)}"
    if head and not plan.changed and not plan.stale:
        print("up to date: no commit is needed")
    else:
        if head is None:
            _ask(api.create_repo, name, repo_type="dataset", private=options.private, exist_ok=True)
            head = _ask(_head, api, name, revision)
        _send(plan)
        if _changed_at(folder, built) != changed_at:
            raise CommandError(f"{folder}: was changed while it was sent; nothing was committed, run it again")
        revision, head = _ask(_commit, plan, title, head)
    if differences := _ask(plan.differences, head):
        raise CommandError(f"{name} at {head}: {differences[0]} differs from {folder}; {AGAIN}")
    _load_back(built, name, head)
    if tag:
        _ask(api.create_tag, name, tag=tag, revision=head, repo_type="dataset", exist_ok=True)
    page = f"/discussions/{revision.removeprefix('refs/pr/')}" if revision.startswith("refs/pr/") else ""
    print(_shown(f"{api.endpoint}/datasets/{name}{page}"))
    at = "" if revision == "main" else f', revision="{revision}"'
    for config in [*built.configs][:2]:
        print(f'load_dataset("{name}", "{config}"{at})')


# ┌──────────────┐
# │  The folder  │
# └──────────────┘


def _check_folder(folder: Path, built: manifest.Manifest, repo_id: str) -> None:
    """Makes sure that a folder holds a repository, and nothing else, that may be shown under this name."""
    script = f"{repo_id.split('/')[1]}.py"
    if script in built.files:
        raise CommandError(f"{repo_id}: nobody can load a dataset of this name with {script} in it; take another name")
    if finding := next(contents.file_findings(folder, built), None):
        raise CommandError(f"{_shown(str(finding))}; nothing was sent: run build.py again, then verify.py")


def _changed_at(folder: Path, built: manifest.Manifest) -> list[int]:
    """When shards changed last, which are read more than once."""
    return [(folder / name).stat().st_ctime_ns for name in built.shards]


def _read(folder: Path, built: manifest.Manifest, repo_id: str) -> list[CommitOperationAdd]:
    """Every file to upload, with the checksum that the manifest tells of; the card is that for its name on the Hub."""
    statistics = json.loads((folder / contents.STATISTICS_NAME).read_bytes())["configs"]
    text = card.render(built, statistics, repo_id)
    try:
        _ask(DatasetCard(text).validate, repo_type="dataset")
    except ValueError as error:
        raise CommandError(f"the Hub refuses the card ({_shown(str(error))}); run build.py again") from error
    # What is small is kept, so that what is committed is what was checked, whatever becomes of the folder.
    small = {
        name: (folder / name).read_bytes()
        for name in [*contents.OTHER_FILES, manifest.NAME]
        if name in built.files or name == manifest.NAME
    }
    sent: dict[str, bytes | Path] = {**small, card.NAME: text.encode()}
    sent.update((name, folder / name) for name in built.shards)
    sha256 = {**built.files, **{name: record.sha256 for name, record in built.shards.items()}}
    additions = []
    total = sum(record.bytes for record in built.shards.values())
    with tqdm.tqdm(total=total, desc="checking", unit="B", unit_scale=True, disable=None) as bar:
        for name in sorted(sent):
            addition = CommitOperationAdd(name, sent[name])
            found = addition.upload_info.sha256.hex()  # reads a shard
            if found != sha256.get(name, found):
                wrong = f"sha256 {found[:16]}, expected {sha256[name][:16]}"
                raise CommandError(f"{folder / name}: {wrong}; nothing was sent: run build.py again")
            additions.append(addition)
            bar.update(addition.upload_info.size if name in built.shards else 0)
    return additions


# ┌───────────┐
# │  The Hub  │
# └───────────┘

# What asks more than once says `_ask`; the rest leaves that to its callers.


def _check_token(api: HfApi, repo_id: str, create_pr: bool) -> None:
    """Makes sure that there is a token and that it may write, or propose."""
    token = huggingface_hub.get_token()
    if token is None or not token.isascii():
        found = "no token of the Hub" if token is None else "the token has letters that no token of the Hub has"
        raise CommandError(f"{found}: run 'hf auth login', or set HF_TOKEN to a token that may write")
    with contextlib.suppress(RepositoryNotFoundError):  # who may make it is told when it is made, before data are sent
        # Asked once: nothing is lost yet, and it may not be the Hub at all.
        _ask(api.auth_check, repo_id, repo_type="dataset", write=not create_pr, attempts=1)


def _find(api: HfApi, repo_id: str, revision: str, private: bool) -> str | None:
    """The commit of the branch to change; None if there is no such dataset yet."""
    head = _ask(_head, api, repo_id, revision)
    if head is None and revision != "main":
        raise CommandError(f"{repo_id} is not there, so it has no revision {revision}; leave out --revision")
    if head and private and not _ask(api.dataset_info, repo_id, expand=["private"]).private:
        raise CommandError(f"{repo_id} is there already, and public; make it private on the Hub or leave out --private")
    return head


def _head(api: HfApi, repo_id: str, revision: str) -> str | None:
    """The commit a branch points at, None if there is no such dataset."""
    try:
        sha = str(api.dataset_info(repo_id, revision=revision, expand=["sha"]).sha)
    except RepositoryNotFoundError:
        return None
    if not re.fullmatch("[0-9a-f]{40}", sha):
        raise CommandError(NO_HUB.format(f"commit {_shown(sha)}"))
    return sha


def _tree(api: HfApi, repo_id: str, commit: str) -> dict[str, str]:
    """Files of a commit: SHA-256 of those in LFS, the Git object's name of others."""
    tree = {}
    entries = api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type="dataset")
    for number, entry in enumerate(entries):
        if number > MAX_FILES or len(entry.path) > MAX_NAME:
            raise CommandError(NO_HUB.format("a listing without an end"))
        if isinstance(entry, RepoFile):
            tree[entry.path] = str(entry.lfs.sha256 if entry.lfs else entry.blob_id)
    if ".gitignore" in tree:
        raise CommandError(f"{repo_id} has a .gitignore, by which the Hub leaves files out; delete it there")
    return tree


class Plan:
    """What a dataset on the Hub is to hold, and what has to be done for it.

    Attributes:
        additions: Every file that it is to hold.
        changed: Those that it lacks or has otherwise.
        stale: Files there that earlier uploads left, or that break the dataset.
    """

    def __init__(
        self, api: HfApi, options: argparse.Namespace, additions: Sequence[CommitOperationAdd], tree: dict[str, str]
    ) -> None:
        """Compares what is to be with a tree."""
        self.api, self.repo_id, self.additions = api, options.repo_id, additions
        self.revision, self.create_pr = options.revision, options.create_pr
        self.changed = _unlike(additions, tree)
        unwanted = {"so2sat.py", f"{self.repo_id.split('/')[1]}.py", "dataset_infos.json", *contents.OTHER_FILES}
        shard = re.compile(rf"({'|'.join(CONFIGS)})/[^/]*\.parquet")
        kept = {addition.path_in_repo for addition in additions}
        self.stale = sorted(name for name in {*tree} - kept if name in unwanted or shard.fullmatch(name))

    def show(self) -> None:
        """Says what is to be done."""
        print(f"  {len(self.additions) - len(self.changed)} files are there already")
        sizes = [addition.upload_info.size for addition in self.changed]
        print(f"  {len(sizes)} files are new or changed, {sum(sizes):,} bytes")
        print(f"  {len(self.stale)} files are deleted")
        for name in self.stale:
            print(f"    deleted: {_shown(name)}")

    def differences(self, commit: str) -> list[str]:
        """Files of a commit that are not what they must be."""
        tree = _tree(self.api, self.repo_id, commit)
        return [addition.path_in_repo for addition in _unlike(self.additions, tree)] + [*{*self.stale} & {*tree}]

    def check_tag(self, tag: str) -> None:
        """Makes sure that a tag is not on anything else."""
        tags = self.api.list_repo_refs(self.repo_id, repo_type="dataset").tags
        for commit in [ref.target_commit for ref in tags if ref.name == tag]:
            if self.differences(commit):
                raise CommandError(
                    f"{self.repo_id} has the tag {tag} already, on other files ({commit[:8]}) that people may rely on;"
                    " choose another tag, or delete that on the Hub"
                )

    def in_pull_request(self, title: str) -> tuple[str, str] | None:
        """The open pull request that proposes exactly this, and its commit."""
        pulls = self.api.get_repo_discussions(
            self.repo_id, repo_type="dataset", discussion_type="pull_request", discussion_status="open"
        )
        for revision in [f"refs/pr/{pull.num}" for pull in itertools.islice(pulls, MAX_FILES) if pull.title == title]:
            if (commit := _head(self.api, self.repo_id, revision)) and not self.differences(commit):
                return revision, commit
        return None


def _unlike(additions: Sequence[CommitOperationAdd], tree: dict[str, str]) -> list[CommitOperationAdd]:
    """Files that a tree lacks or has otherwise."""
    return [addition for addition in additions if tree.get(addition.path_in_repo) != _oid(addition, tree)]


def _oid(addition: CommitOperationAdd, tree: dict[str, str]) -> str:
    """What a tree says of this file: its SHA-256, or for a file outside LFS its Git object's name."""
    if len(tree.get(addition.path_in_repo, "")) == 64:
        return addition.upload_info.sha256.hex()
    with addition.as_file() as file:
        return git_hash(file.read())


def _check_edits(api: HfApi, repo_id: str, head: str, replace_card: bool) -> None:
    """Shows what others have written into the card since the last upload, which must be told to replace it."""
    names = [card.NAME, manifest.NAME]
    infos = _ask(api.get_paths_info, repo_id, names, revision=head, expand=True, repo_type="dataset")
    last = {info.path: info.last_commit for info in infos if info.last_commit}
    if card.NAME not in last or last[card.NAME].title.startswith(TITLE):
        return
    # An upload changes the manifest too, unless nothing but the card was new.
    upload = last.get(manifest.NAME)
    ours = _ask(_card, api, repo_id, upload.oid) if upload and upload.title.startswith(TITLE) else ""
    theirs = _ask(_card, api, repo_id, head)
    diff = difflib.unified_diff(ours.splitlines(), theirs.splitlines(), n=0, lineterm="")
    lines = [line for line in itertools.islice(diff, 2, None) if line[0] in "+-"]
    # Not by a YAML parser, which a few lines can keep busy with gigabytes.
    configs = {*re.findall(r"\bconfig_name: *[\"']?([\w.-]+)", theirs)} - {*CONFIGS}
    problem = "others have changed the card" + (f", with the configs {', '.join(sorted(configs))}" if configs else "")
    print(f"  {problem}, in {len(lines)} lines:")
    for line in sorted(lines, key=lambda line: line[0])[:MAX_LINES]:  # their words first
        print(f"    {_shown(line)[:100]}")
    if not replace_card:
        raise CommandError(f"{repo_id}: {problem}; --replace-card takes their changes away")


def _card(api: HfApi, repo_id: str, commit: str) -> str:
    url = f"{api.endpoint}/datasets/{repo_id}/resolve/{commit}/{card.NAME}"
    response = get_session().get(url, headers=build_hf_headers())
    hf_raise_for_status(response)
    return response.content[:MAX_CARD].decode(errors="replace")


def _send(plan: Plan) -> None:
    """Sends the data, which nobody sees before the commit. What the Hub has already is not sent again."""

    def send(files: Sequence[CommitOperationAdd]) -> None:
        target: dict[str, Any] = {"repo_type": "dataset", "revision": plan.revision, "create_pr": plan.create_pr}
        try:
            plan.api.preupload_lfs_files(plan.repo_id, additions=files, num_threads=FILES_AT_ONCE, **target)
        except RuntimeError as error:
            # It wraps what happens to a file. hf_xet has no other error for a connection that fails.
            raise error.__cause__ or httpx2.NetworkError(str(error)) from error

    total = sum(addition.upload_info.size for addition in plan.changed)
    with tqdm.tqdm(total=total, desc="sending", unit="B", unit_scale=True, disable=None) as bar:
        for start in range(0, len(plan.changed), FILES_AT_ONCE):
            files = plan.changed[start : start + FILES_AT_ONCE]
            _ask(send, files)
            bar.update(sum(file.upload_info.size for file in files))


def _commit(plan: Plan, title: str, parent: str) -> tuple[str, str]:
    """Makes the commit, unless an attempt whose answer was lost has made it; returns what shows it, and the commit."""
    if plan.create_pr:
        if proposed := plan.in_pull_request(title):
            print(f"up to date: {proposed[0]} proposes exactly this")
            return proposed
    elif (head := _head(plan.api, plan.repo_id, plan.revision)) != parent:
        if head and not plan.differences(head):
            return plan.revision, head
        raise CommandError(
            f"{plan.repo_id}: somebody else has changed {plan.revision} meanwhile ({parent[:8]} became"
            f" {str(head)[:8]}); nothing was committed. Look at their change, then run the same command again"
        )
    info = plan.api.create_commit(
        plan.repo_id,
        [*plan.changed, *map(CommitOperationDelete, plan.stale)],
        commit_message=title,
        repo_type="dataset",
        revision=plan.revision,
        create_pr=plan.create_pr,
        parent_commit=parent,
    )
    return info.pr_revision or plan.revision, info.oid


# A process of its own: a stream that is left before its end can hang Python at exit.
_LOAD = """
import os, sys
from datasets import load_dataset
repo_id, revision, *configs = sys.argv[1:]
for config in configs:
    for rows in load_dataset(repo_id, config, revision=revision, streaming=True).values():
        next(iter(rows))
os._exit(0)
"""


def _load_back(built: manifest.Manifest, repo_id: str, commit: str) -> None:
    """Streams the first row of every split, as a user would."""
    print(f"loading {', '.join(built.configs)} back")
    run = [sys.executable, "-c", _LOAD, repo_id, commit, *built.configs]
    environment = {**os.environ, "HF_ENDPOINT": HfApi().endpoint}  # datasets can't do with a slash at its end
    # Elsewhere, because load_dataset prefers a folder ORG/NAME to the Hub.
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(run, stderr=subprocess.PIPE, text=True, env=environment, cwd=elsewhere)
    if done.returncode:
        reason = _shown(done.stderr.strip().rpartition("\n")[2])
        raise CommandError(f"{repo_id} is uploaded, but can't be loaded: {reason}")


# ┌──────────┐
# │  Errors  │
# └──────────┘

NO_HUB = (
    "what answers is not the Hub, or one that huggingface_hub does not know ({}); look at HF_ENDPOINT and the network"
)
AGAIN = "nothing is lost, run the same command again"
# What to do about a status that the same command would meet again.
ADVICE = {
    401: "it does not know this token: run 'hf auth login' again, or set HF_TOKEN",
    402: "somebody has to pay for the storage, or to free some: see Billing in the settings on the Hub",
    403: "this token may not do that: make one that may under Settings, Access Tokens on the Hub, or use --create-pr",
    404: "look at ORG/NAME, at --revision, and at what this token may see",
    413: "it takes nothing as large as that: look at its limits for files and storage, and for a proxy on the way",
}


def _advice(error: Exception) -> str:
    """What to do about an error."""
    if isinstance(error, (httpx2.UnsupportedProtocol, httpx2.InvalidURL)):
        return "HF_ENDPOINT must be an address like https://huggingface.co; set it right or unset it"
    if isinstance(error, httpx2.ConnectError):
        return f"look at the network, and at HF_ENDPOINT if it is set; {AGAIN} then"
    if isinstance(error, HfHubHTTPError) and not _is_transient(error):
        return ADVICE.get(error.response.status_code, "the same command would fail again: put right what it says")
    return AGAIN


def _is_transient(error: Exception) -> bool:
    """Whether the same request may well succeed."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in (408, 409, 412, 429) or status >= 500  # 409, 412: _commit looks who has changed the branch
    passing = (httpx2.TransportError, json.JSONDecodeError)  # the latter: the page of a proxy
    return isinstance(error, passing) and not isinstance(error, httpx2.UnsupportedProtocol)


def _ask(function: Callable[..., Result], *args: Any, attempts: int = ATTEMPTS, **options: Any) -> Result:
    """Calls a function that asks the Hub, again after a passing fault: when the Hub wants it, or ever later."""
    for failures in range(1, attempts):
        try:
            return function(*args, **options)
        except (httpx2.HTTPError, json.JSONDecodeError) as error:
            if not _is_transient(error):
                raise
            asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
            pause = min(float(asked), LONGEST_PAUSE) if asked.isdecimal() else min(60.0, 2.0**failures)
            tqdm.tqdm.write(f"the Hub: {_shown(str(error))}; next attempt in {pause:.0f} s", file=sys.stderr)
            time.sleep(pause)
    return function(*args, **options)


def _shown(text: str, line_end: str = " ") -> str:
    """A text for the terminal: no token, no passwords and signatures in URLs, no control characters."""
    if token := huggingface_hub.get_token():
        text = text.replace(token, "...")
    text = re.sub(r"(\w://)[^/\s]+@", r"\1", text)
    text = re.sub(r"(\w://[^\s?'\"]+\?)[^\s'\"]+", r"\1...", text)
    lines = ("".join(letter if letter.isprintable() else "?" for letter in line) for line in text.splitlines())
    return line_end.join(line for line in lines if line.strip())


def _without_secrets(record: logging.LogRecord) -> bool:
    record.msg, record.args = _shown(record.getMessage()), ()
    return True


def _client() -> httpx2.Client:
    """The client of huggingface_hub, with bounds: a server can neither fill the memory nor stay silent for ever."""
    client = default_client_factory()
    client.headers["Accept-Encoding"] = "identity"
    client.timeout = httpx2.Timeout(ANSWER_SECONDS)
    client.event_hooks["response"].append(_read_bounded)
    return client


def _read_bounded(response: httpx2.Response) -> None:
    """Reads an answer, unless it is larger than any of the Hub's."""
    response.headers.pop("Content-Encoding", None)  # nothing asked for a packed one, which unpacks to any size
    stream, content = response.stream, b""
    assert isinstance(stream, httpx2.SyncByteStream)
    with contextlib.closing(stream):
        for part in stream:
            content += part
            if len(content) > MAX_ANSWER_BYTES:
                raise CommandError(NO_HUB.format(f"an answer of more than {MAX_ANSWER_BYTES:,} bytes"))
    response.stream = httpx2.ByteStream(content)


if __name__ == "__main__":
    sys.exit(main())
