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
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import huggingface_hub
import pyarrow.parquet as pq
import tenacity
import tqdm
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import default_client_factory, get_session, hf_raise_for_status
from huggingface_hub.utils._validators import validate_repo_id
from huggingface_hub.utils.sha import git_hash
from huggingface_hub.utils.tqdm import disable_progress_bars

from publishing import card, checks, command, layout, manifest
from publishing.command import CommandError

EXAMPLES = """\
  python scripts/upload.py build/so2sat ORG/so2sat --dry-run      check everything and show what would be done
  python scripts/upload.py build/so2sat ORG/so2sat --private      only for you and your organisation
  python scripts/upload.py build/so2sat ORG/so2sat --create-pr    as a pull request
  python scripts/upload.py build/so2sat ORG/so2sat --tag v2.1.0   with the tag that the card's revision= names
"""

TITLE = "So2Sat LCZ42 "  # how the title of an upload's commit begins, by which it is known again

FILES_AT_ONCE = 5  # are sent between two steps of the progress bar
ATTEMPTS = 8  # of a request
LOAD_SECONDS = 900  # for the look at the result
ANSWER_SECONDS = 300  # that the Hub may stay silent
MAX_ANSWER_BYTES = (
    3 << 20
)  # of an answer of the Hub, which takes 30 times that once it is read; 1,000 files take 0.4 MB
MAX_ENTRIES = 100_000  # of a listing of the Hub
MAX_PATH_BYTES = 10_000_000  # of all paths of a dataset
MAX_CARD_BYTES = 200_000  # of a card of others
MAX_LINES = 20  # of a change of the card that are shown
Result = TypeVar("Result")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = command.parser(
        "Uploads a repository that build.py made to the Hugging Face Hub. All is checked first; data are sent next, and"
        " a single commit then shows them together with the card and removes what is stale, so that nobody ever sees"
        " a mixture. Interrupted and run again, it sends only what is missing. A card that others have changed on the"
        " Hub is not replaced unasked. Who changed it last is told by the titles of commits: a change under the title"
        f" of an upload ('{TITLE}...') is not seen. The token is that of 'hf auth login' or the environment variable"
        " HF_TOKEN.",
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
    if text.count("/") != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form ORG/NAME")
    try:
        validate_repo_id(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
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
    try:
        _upload(options)
    except (httpx2.HTTPError, httpx2.InvalidURL, ConnectionError) as error:
        if options.debug:
            print(_shown(traceback.format_exc(), "\n"), file=sys.stderr)
        raise CommandError(f"the Hub: {_shown(str(error)) or type(error).__name__}; {_advice(error)}") from None


def _upload(options: argparse.Namespace) -> None:
    """Makes a dataset on the Hub equal to a repository: preflight, plan, data, one commit, a look back."""
    name, revision, tag = options.repo_id, options.revision, options.tag
    if options.create_pr and (tag or revision != "main"):
        raise CommandError("--create-pr proposes a change of main, without a tag; leave out --revision and --tag")
    folder = options.folder.expanduser().resolve()
    built = manifest.load_built(folder)
    _check_folder(folder, built, name)
    states = _states(folder, built)
    api = HfApi()
    _check_token(api, name, options.create_pr)
    head = _find(api, name, revision, options.private)
    plan = Plan(api, name, _read(folder, built, name), _ask(_tree, api, name, head) if head else {})
    is_tagged = head and tag and _ask(plan.is_tagged, tag)
    print(f"{name}, {revision} ({f'at {head[:8]}' if head else 'will be made'}):")
    plan.show()
    if head and card.NAME in [addition.path_in_repo for addition in plan.changed]:
        _check_edits(api, name, head, options.replace_card)
    if options.dry_run:
        print("dry run: nothing was sent")
        return
    title = f"{TITLE}{built.versions['so2sat']}: {', '.join(built.configs)}"
    proposed = _ask(plan.in_pull_request, title) if head and options.create_pr else None
    if head and not plan.changed and not plan.stale:
        print("up to date: no commit is needed")
    elif proposed:
        revision, head = proposed
        print(f"up to date: {revision} proposes exactly this")
    else:
        if head is None:
            _ask(api.create_repo, name, repo_type="dataset", private=options.private, exist_ok=True)
            head = _ask(_head, api, name, revision)
        _send(plan, revision, options.create_pr)
        if _states(folder, built) != states:
            raise CommandError(f"{folder}: was changed while it was sent; nothing was committed, run it again")
        revision, head = _ask(_commit, plan, title, head, revision, options.create_pr)
    if differences := _ask(plan.differences, head):
        raise CommandError(f"{name} at {head}: {differences[0]} differs from {folder}; {AGAIN}")
    _load_back(folder, built, name, head)
    if tag and not is_tagged:
        _ask(api.create_tag, name, tag=tag, revision=head, repo_type="dataset", exist_ok=True)
    _print_result(api, name, built, revision)


def _print_result(api: HfApi, name: str, built: manifest.Manifest, revision: str) -> None:
    pull_request = re.fullmatch(r"refs/pr/(\d+)", revision)
    print(_shown(f"{api.endpoint}/datasets/{name}" + (f"/discussions/{pull_request[1]}" if pull_request else "")))
    at = "" if revision == "main" else f', revision="{revision}"'
    for config in built.configs[:2]:
        print(f'load_dataset("{name}", "{config}"{at})')


# ┌──────────────┐
# │  The folder  │
# └──────────────┘


def _check_folder(folder: Path, built: manifest.Manifest, repo_id: str) -> None:
    """Makes sure that a folder holds a repository, and nothing else, that may be shown under this name."""
    script = f"{repo_id.split('/')[1]}.py"
    if script in built.files:
        raise CommandError(f"{repo_id}: nobody can load a dataset of this name with {script} in it; take another name")
    findings = [*checks.repository_findings(folder, built)]
    for finding in findings[1:]:
        print(_shown(str(finding)), file=sys.stderr)
    if findings:
        raise CommandError(f"{_shown(str(findings[0]))}; nothing was sent: run build.py again, then verify.py")


def _names(built: manifest.Manifest) -> list[str]:
    """Files of a repository, the card last."""
    return [*sorted({*built.files, *built.shards}), manifest.NAME, card.NAME]


def _states(folder: Path, built: manifest.Manifest) -> list[tuple[int, int, int]]:
    """What tells that a shard was changed without reading it."""
    states = [(folder / name).lstat() for name in sorted(built.shards)]
    return [(state.st_size, state.st_mtime_ns, state.st_ino) for state in states]


def _read(folder: Path, built: manifest.Manifest, repo_id: str) -> list[CommitOperationAdd]:
    """Every file to upload, with the checksum that the manifest tells of; the card is that for its name on the Hub."""
    statistics = json.loads((folder / layout.STATISTICS_NAME).read_bytes())["configs"]
    text = card.render(built, statistics, repo_id)
    sha256 = {**built.files, **{name: record.sha256 for name, record in built.shards.items()}}
    additions = []
    total = sum(record.bytes for record in built.shards.values())
    with tqdm.tqdm(total=total, desc="checking", unit="B", unit_scale=True, disable=None) as bar:
        for name in _names(built):
            # What is small is kept, so that what is committed is what was checked, whatever becomes of the folder.
            content = folder / name if name in built.shards else (folder / name).read_bytes()
            addition = CommitOperationAdd(name, text.encode() if name == card.NAME else content)
            found = addition.upload_info.sha256.hex()  # reads a shard
            if found != sha256.get(name, found):
                wrong = f"sha256 {found[:16]}, expected {sha256[name][:16]}"
                raise CommandError(f"{folder / name}: {wrong}; nothing was sent: run build.py again")
            additions.append(addition)
            bar.update(addition.upload_info.size if name in built.shards else 0)
    _ask(_validate, text)
    return additions


# ┌───────────┐
# │  The Hub  │
# └───────────┘

# What asks more than once says `_ask`; the rest leaves that to its callers.


def _validate(text: str) -> None:
    try:
        DatasetCard(text).validate(repo_type="dataset")
    except ValueError as error:
        raise CommandError(f"the Hub refuses the card ({_shown(str(error))}); run build.py again") from error


def _check_token(api: HfApi, repo_id: str, create_pr: bool) -> None:
    """Makes sure that there is a token and that it may write, or propose."""
    token = huggingface_hub.get_token()
    if token is None or not token.isascii():
        found = "no token of the Hub" if token is None else "the token has letters that no token of the Hub has"
        raise CommandError(f"{found}: run 'hf auth login', or set HF_TOKEN to a token that may write")
    user = _ask(api.whoami, is_first=True)
    try:
        name, role = user["name"], user["auth"].get("accessToken", {}).get("role")
        namespaces = {name, *(organisation["name"] for organisation in user["orgs"])}
    except (KeyError, TypeError, AttributeError) as error:
        raise CommandError(NO_HUB.format(repr(error))) from error
    if role == "read":
        raise CommandError("this token may only read: make one that may write under Settings, Access Tokens on the Hub")
    try:
        _ask(api.auth_check, repo_id, repo_type="dataset", write=not create_pr)
    except RepositoryNotFoundError as error:
        namespace = repo_id.split("/")[0]
        if namespace not in namespaces:
            raise CommandError(
                f"{repo_id} is not there or not visible to {name}, who is not in {namespace} and can't make it"
            ) from error


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
    tree, size = {}, 0
    for entry in api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type="dataset"):
        size += len(entry.path) + MAX_PATH_BYTES // MAX_ENTRIES
        if size > MAX_PATH_BYTES:
            raise CommandError(NO_HUB.format("a listing without an end"))
        if isinstance(entry, RepoFile):
            tree[entry.path] = str(entry.lfs.sha256 if entry.lfs else entry.blob_id)
    if ".gitignore" in tree:
        raise CommandError(f"{repo_id} has a .gitignore, by which the Hub leaves files out; delete it there")
    return tree


def _oid(addition: CommitOperationAdd, tree: dict[str, str]) -> str:
    """What a tree says of this file: its SHA-256, or for a file outside LFS its Git object's name."""
    if len(tree.get(addition.path_in_repo, "")) == 64:
        return addition.upload_info.sha256.hex()
    with addition.as_file() as file:
        return git_hash(file.read())


class Plan:
    """What a dataset on the Hub is to hold, and what has to be done for it.

    Attributes:
        additions: Every file that it is to hold.
        changed: Those that it lacks or has otherwise.
        stale: Files there that earlier uploads left, or that break the dataset.
    """

    def __init__(self, api: HfApi, repo_id: str, additions: Sequence[CommitOperationAdd], tree: dict[str, str]) -> None:
        """Compares what is to be with a tree."""
        self.api, self.repo_id, self.additions = api, repo_id, additions
        self.changed = self._unlike(tree)
        kept = {addition.path_in_repo for addition in additions}
        self.stale = [name for name in tree if name not in kept and self._is_stale(name)]

    def _unlike(self, tree: dict[str, str]) -> list[CommitOperationAdd]:
        return [addition for addition in self.additions if tree.get(addition.path_in_repo) != _oid(addition, tree)]

    def _is_stale(self, name: str) -> bool:
        folder, _, file = name.rpartition("/")
        is_ours = name in layout.OTHER_FILES or (folder in layout.CONFIGS and file.endswith(".parquet"))
        return is_ours or name in {"so2sat.py", f"{self.repo_id.split('/')[1]}.py", "dataset_infos.json"}

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
        return [addition.path_in_repo for addition in self._unlike(tree)] + sorted({*self.stale} & {*tree})

    def is_tagged(self, tag: str) -> bool:
        """Whether a tag is there, on exactly this; it may be on nothing else."""
        tags = self.api.list_repo_refs(self.repo_id, repo_type="dataset").tags
        commits = [ref.target_commit for ref in tags if ref.name == tag]
        if commits and self.differences(commits[0]):
            raise CommandError(
                f"{self.repo_id} has the tag {tag} already, on other files ({commits[0][:8]}) that people may rely on;"
                " choose another tag, or delete that on the Hub"
            )
        return bool(commits)

    def in_pull_request(self, title: str) -> tuple[str, str] | None:
        """The open pull request that proposes exactly this, and its commit."""
        pulls = self.api.get_repo_discussions(
            self.repo_id, repo_type="dataset", discussion_type="pull_request", discussion_status="open"
        )
        for pull in itertools.islice(pulls, MAX_ENTRIES):
            if pull.title == title:
                commit = _head(self.api, self.repo_id, f"refs/pr/{pull.num}")
                if commit and not self.differences(commit):
                    return f"refs/pr/{pull.num}", commit
        return None


def _check_edits(api: HfApi, repo_id: str, head: str, replace_card: bool) -> None:
    """Shows what others have written into the card since the last upload, which must be told to replace it."""
    infos = _ask(
        api.get_paths_info, repo_id, [card.NAME, manifest.NAME], revision=head, expand=True, repo_type="dataset"
    )
    last = {info.path: info.last_commit for info in infos if info.last_commit}
    if card.NAME not in last or last[card.NAME].title.startswith(TITLE):
        return
    # An upload changes the manifest too, unless nothing but the card was new.
    ours = _ask(_card, api, repo_id, last[manifest.NAME].oid) if manifest.NAME in last else ""
    theirs = _ask(_card, api, repo_id, head)
    diff = difflib.unified_diff(ours.splitlines(), theirs.splitlines(), n=0, lineterm="")
    lines = [line for line in itertools.islice(diff, 2, None) if line[0] in "+-"]
    # Not by a YAML parser, which a few lines can keep busy with gigabytes.
    names = dict.fromkeys(re.findall(r"\bconfig_name: *[\"']?([\w.-]+)", theirs))
    configs = [name for name in names if name not in layout.CONFIGS]
    named = f", with the configs {', '.join(configs)}" if configs else ""
    print(f"  others have changed {len(lines)} lines of the card{named}:")
    for line in sorted(lines, key=lambda line: line[0])[:MAX_LINES]:  # their words first
        print(f"    {_shown(line)[:100]}")
    if not replace_card:
        raise CommandError(f"{repo_id}: others have changed the card{named}; --replace-card takes their changes away")


def _card(api: HfApi, repo_id: str, commit: str) -> str:
    """The card of a commit, nothing if it has none."""
    url = f"{api.endpoint}/datasets/{repo_id}/resolve/{commit}/{card.NAME}"
    response = get_session().get(url, headers=build_hf_headers())
    try:
        hf_raise_for_status(response)
    except RemoteEntryNotFoundError:
        return ""
    return response.content[:MAX_CARD_BYTES].decode(errors="replace")


# ┌───────────┐
# │  Sending  │
# └───────────┘


def _send(plan: Plan, revision: str, create_pr: bool) -> None:
    """Sends the data, which nobody sees before the commit. What the Hub has already is not sent again."""

    def send(files: Sequence[CommitOperationAdd]) -> None:
        try:
            plan.api.preupload_lfs_files(
                plan.repo_id,
                additions=files,
                repo_type="dataset",
                revision=revision,
                create_pr=create_pr,
                num_threads=FILES_AT_ONCE,
            )
        except RuntimeError as error:
            # It wraps what happens to a file. hf_xet has no other error for a connection that fails.
            raise error.__cause__ or httpx2.NetworkError(str(error)) from error

    total = sum(addition.upload_info.size for addition in plan.changed)
    bar = tqdm.tqdm(total=total, desc="sending", unit="B", unit_scale=True, disable=None)
    with bar, _ended_at_once():
        for start in range(0, len(plan.changed), FILES_AT_ONCE):
            files = plan.changed[start : start + FILES_AT_ONCE]
            _ask(send, files)
            bar.update(sum(file.upload_info.size for file in files))


@contextlib.contextmanager
def _ended_at_once() -> Iterator[None]:
    """Lets Ctrl-C end the process at once. Python would wait for all files that are under way, maybe for minutes."""

    def end(*_: object) -> None:
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT)

    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _commit(plan: Plan, title: str, parent: str, revision: str, create_pr: bool) -> tuple[str, str]:
    """Makes the commit, unless an attempt whose answer was lost has made it; returns what shows it, and the commit."""
    if create_pr:
        if proposed := plan.in_pull_request(title):
            return proposed
    elif (head := _head(plan.api, plan.repo_id, revision)) != parent:
        if head and not plan.differences(head):
            return revision, head
        raise CommandError(
            f"{plan.repo_id}: somebody else has changed {revision} meanwhile ({parent[:8]} became {str(head)[:8]});"
            " nothing was committed. Look at their change, then run the same command again"
        )
    info = plan.api.create_commit(
        plan.repo_id,
        [*plan.changed, *(CommitOperationDelete(name) for name in plan.stale)],
        commit_message=title,
        repo_type="dataset",
        revision=revision,
        create_pr=create_pr,
        parent_commit=parent,
    )
    return info.pr_revision or revision, info.oid


# ┌───────────┐
# │  Looking  │
# └───────────┘

# A process of its own: a stream that is left before its end can hang Python at exit.
_LOAD = """
import json, os, sys
from datasets import load_dataset
repo_id, revision, *configs = sys.argv[1:]
found = {}
for config in configs:
    for split, rows in load_dataset(repo_id, config, revision=revision, streaming=True).items():
        row = next(iter(rows))
        found[f"{config}/{split}"] = [row["label"], row["sample_id"]]
print(json.dumps(found), flush=True)
os._exit(0)
"""


def _load_back(folder: Path, built: manifest.Manifest, repo_id: str, commit: str) -> None:
    """Streams the first row of every split, as a user would, and compares it with that of the repository."""
    print(f"loading {', '.join(built.configs)} back")
    run = [sys.executable, "-c", _LOAD, repo_id, commit, *built.configs]
    environment = {**os.environ, "HF_ENDPOINT": HfApi().endpoint}  # datasets can't do with a slash at its end
    try:
        # Elsewhere, because load_dataset prefers a folder ORG/NAME to the Hub.
        with tempfile.TemporaryDirectory() as elsewhere:
            done = subprocess.run(
                run, capture_output=True, text=True, timeout=LOAD_SECONDS, env=environment, cwd=elsewhere
            )
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{repo_id} is uploaded, but could not be loaded in {LOAD_SECONDS} s") from error
    if done.returncode:
        reason = _shown(done.stderr.strip().rpartition("\n")[2])
        raise CommandError(f"{repo_id} is uploaded, but can't be loaded: {reason}")
    found = json.loads(done.stdout)
    for config in built.configs:
        for split in built.splits(config):
            row, expected = found.get(f"{config}/{split}"), _first_row(folder / built.shard_names(config, split)[0])
            if row != expected:
                raise CommandError(
                    f"{repo_id}: first row of {config}, {split} has label and sample_id {row}, expected {expected}"
                )


def _first_row(path: Path) -> list[int]:
    with pq.ParquetFile(path) as file:
        (row,) = next(file.iter_batches(1, columns=["label", "sample_id"])).to_pylist()
    return [row["label"], row["sample_id"]]


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
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    lasting = "the same command would fail again: put right what it says"
    return ADVICE.get(status) or (lasting if 400 <= status < 500 and not _is_transient(error) else AGAIN)


def _is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in (408, 409, 412, 429) or status >= 500  # 409, 412: _commit looks who has changed the branch
    is_proxy_page = isinstance(error, json.JSONDecodeError)
    return is_proxy_page or (isinstance(error, httpx2.TransportError) and type(error) is not httpx2.UnsupportedProtocol)


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds until the next attempt: what the Hub asks for, or ever longer."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(asked), 300.0) if asked.isdecimal() else tenacity.wait_exponential(max=60)(state)


def _before_sleep(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    tqdm.tqdm.write(f"the Hub: {_shown(str(error))}; next attempt in {state.upcoming_sleep:.0f} s", file=sys.stderr)


def _ask(function: Callable[..., Result], *args: Any, is_first: bool = False, **options: Any) -> Result:
    """Calls a function that asks the Hub, again after a passing fault; at first, to find no Hub there is none."""
    lasting = (httpx2.ConnectError, json.JSONDecodeError) if is_first else ()
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: _is_transient(error) and not isinstance(error, lasting)),
        wait=_wait,
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        before_sleep=_before_sleep,
        reraise=True,
    )
    try:
        return attempts(function, *args, **options)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if {*where.parts}.isdisjoint({"huggingface_hub", "httpx2", "json"}):
            raise  # not by an answer of another shape, but a bug
        raise CommandError(NO_HUB.format(_shown(repr(error)))) from error


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
    client.event_hooks["response"].append(_bound)
    return client


def _bound(response: httpx2.Response) -> None:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise CommandError(NO_HUB.format("a packed answer, for which nothing asked"))
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = _Bounded(response.stream)


class _Bounded(httpx2.SyncByteStream):
    """The content of an answer; an error ends one that is larger than any of the Hub's."""

    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for part in self.stream:
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise CommandError(NO_HUB.format(f"an answer of more than {MAX_ANSWER_BYTES:,} bytes"))
            yield part

    def close(self) -> None:
        self.stream.close()


if __name__ == "__main__":
    sys.exit(main())
