"""Uploads a repository that build.py made to the Hugging Face Hub: data first, then one commit that shows it."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import huggingface_hub
import tqdm
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from publishing import card, command, contents, hub, manifest
from publishing.command import CommandError
from publishing.configs import CONFIGS
from publishing.manifest import Manifest
from so2sat import printable

EXAMPLES = """\
  python scripts/upload.py build/so2sat ORG/so2sat --dry-run      check everything and show what would be done
  python scripts/upload.py build/so2sat ORG/so2sat --private      only for you and your organisation
  python scripts/upload.py build/so2sat ORG/so2sat --create-pr    as a pull request
"""

MAIN = "main"  # the branch that readers get
TITLE = "So2Sat LCZ42 "  # how the title of an upload's commit begins, by which it is known again
DATASET: dict[str, Any] = {"repo_type": "dataset"}
FILES_AT_ONCE = 5  # are sent between two steps of the progress bar
ANSWER_SECONDS = 300  # that the Hub may stay silent
PAUSES = (1, 2, 4, 8, 16, 32, *[60] * 9)  # seconds between attempts, ten minutes in all
Files = Sequence[CommitOperationAdd]
Operations = Sequence[CommitOperationAdd | CommitOperationDelete]
Result = TypeVar("Result")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = command.parser(
        "Uploads a repository that build.py made to the Hugging Face Hub. All is checked first; data are sent next, and"
        " a single commit then shows them together with the card and removes what is stale, so that nobody ever sees"
        " a mixture. Interrupted and run again, it sends only what is missing. A card that others have edited on the"
        f" Hub is not replaced unasked: edits are recognised by their commit title, which is not '{TITLE}...'. The"
        " token is that of 'hf auth login' or the environment variable HF_TOKEN. For a tag use 'hf repos tag create'.",
        EXAMPLES,
    )
    parser.add_argument("folder", metavar="FOLDER", type=command.named, help="repository that build.py made")
    parser.add_argument("repo_id", metavar="ORG/NAME", type=_repo_id, help="dataset on the Hub, made if it isn't there")
    parser.add_argument("--private", action="store_true", help="make a new dataset private")
    parser.add_argument(
        "--synthetic", action="store_true", help="allow synthetic data in public, which is else refused"
    )
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of changing the branch")
    parser.add_argument("--revision", metavar="R", default=MAIN, help="branch, which must exist (default: %(default)s)")
    parser.add_argument("--replace-card", action="store_true", help="replace a card that others have edited")
    parser.add_argument("--show-card", action="store_true", help="print the card, which names ORG/NAME")
    parser.add_argument("--dry-run", action="store_true", help="check and say what would be done; needs no token")
    return command.run(_run, parser, argv)


def _repo_id(text: str) -> str:
    organisation, _, name = text.partition("/")
    if not (organisation and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form ORG/NAME")
    validate_repo_id(text)
    return text


def _run(options: argparse.Namespace) -> None:
    disable_progress_bars()
    try:
        _upload(options)
    except (httpx2.HTTPError, httpx2.InvalidURL, json.JSONDecodeError) as error:
        if options.debug:
            print(*map(printable, traceback.format_exc().splitlines()), sep="\n", file=sys.stderr)
        raise CommandError(printable(f"the Hub: {str(error) or type(error).__name__}; {_advice(error)}")) from None


def _upload(options: argparse.Namespace) -> None:
    """Makes a dataset on the Hub equal to a repository: preflight, plan, data, one commit, a look back."""
    name, revision, folder = options.repo_id, options.revision, Path(options.folder).expanduser().resolve()
    built = manifest.load_built(folder)
    _check_folder(folder, built, options)
    _set_client()
    if not options.dry_run:
        _check_token(options)  # before minutes of reading
    changed_at = {name: (folder / name).stat().st_ctime_ns for name in built.shards}
    files = _read(folder, built, options)
    if options.dry_run:
        _check_token(options)
    _check_card(files)
    head = _find(options)
    operations = _ask(_left_to_do, name, files, head)
    changed = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
    print(f"{name}, {revision} ({f'at {head[:8]}' if head else 'will be made'}), files:")
    _show("there already", [file for file in files if file not in changed], shown=0)
    _show("new or changed", changed)
    _show("deleted", operations[len(changed) :])
    if head and card.NAME in [operation.path_in_repo for operation in operations]:
        _check_edits(name, head, options.replace_card)
    if options.dry_run:
        unseen = "" if huggingface_hub.get_token() else "; what is private can't be seen without a token"
        print(f"dry run: nothing was sent{unseen}")
        return
    if operations:
        if head is None:
            _ask(HfApi().create_repo, name, private=options.private, exist_ok=True, **DATASET)
            head = _find(options)
        target = {"repo_id": name, "revision": revision, "create_pr": options.create_pr, **DATASET}
        _send(changed, target)
        if any((folder / name).stat().st_ctime_ns != changed_at[name] for name in built.shards):
            raise CommandError(f"{folder}: was changed while it was sent; nothing was committed, run it again")
        title = f"{TITLE}{built.version}: {', '.join(built.configs)}"
        revision, head = _ask(_commit, files, operations, target, title, str(head))
        if left := _ask(_left_to_do, name, files, head):
            raise CommandError(f"{name} at {head}: {left[0].path_in_repo} differs from {folder}; {AGAIN}")
    else:
        print("up to date: no commit is needed")
    load_back(built, name, str(head))
    page = f"/discussions/{revision.removeprefix('refs/pr/')}" if revision.startswith("refs/pr/") else ""
    print(printable(f"{constants.ENDPOINT}/datasets/{name}{page}"))
    at = "" if revision == MAIN else f', revision="{revision}"'
    for config in [*built.configs][:2]:
        print(f'load_dataset("{name}", "{config}"{at})')


# The folder


def _check_folder(folder: Path, built: Manifest, options: argparse.Namespace) -> None:
    """Makes sure that a folder holds a whole repository that may be shown under this name, and as these options say."""
    if options.create_pr and options.revision != MAIN:
        raise CommandError(f"--create-pr proposes a change of {MAIN}; leave out --revision")
    script = f"{options.repo_id.split('/')[1]}.py"
    if script in built.files:
        raise CommandError(
            f"{options.repo_id}: nobody can load a dataset of this name with {script} in it; take another name"
        )
    if finding := next(contents.file_findings(folder, built), None):
        raise CommandError(f"{folder / finding.file}: {finding.problem}; nothing was sent. {MEND}")
    if strays := contents.strays(folder, built):
        print(f"warning: {strays}", file=sys.stderr)
    if built.synthetic:
        print(f"SYNTHETIC data, not measured: {built.synthetic}")
        if not (options.private or options.synthetic):
            raise CommandError(f"{folder}: the data are SYNTHETIC; upload them with --private, or else --synthetic")


def _read(folder: Path, built: Manifest, options: argparse.Namespace) -> list[CommitOperationAdd]:
    """Every file to upload, with the checksum that the manifest tells of; the card is that for its name on the Hub."""
    statistics = json.loads((folder / contents.STATISTICS_NAME).read_bytes())["configs"]
    text = card.render(built, statistics, options.repo_id)
    if options.show_card:
        print(text)
    # What is small is kept, so that what is committed is what was checked, whatever becomes of the folder.
    small = [manifest.NAME, *(name for name in contents.OTHER_FILES if name in built.files)]
    files = [CommitOperationAdd(name, (folder / name).read_bytes()) for name in small]
    files.append(CommitOperationAdd(card.NAME, text.encode()))
    total = sum(record.bytes for record in built.shards.values())
    with tqdm.tqdm(total=total, desc="checking", unit="B", unit_scale=True, disable=None) as bar:
        for name, record in built.shards.items():
            files.append(CommitOperationAdd(name, folder / name))
            found = files[-1].upload_info.sha256.hex()  # reads the shard
            if found != record.sha256:
                wrong = f"sha256 {found[:16]}…, expected {record.sha256[:16]}…"
                raise CommandError(f"{folder / name}: {wrong}; nothing was sent. {MEND}")
            bar.update(record.bytes)
    print(f"checked: {built.patches:,} patches, {len(built.shards)} shards and {len(small)} other files are as built")
    return files


# The Hub. What asks more than once says `_ask`; the rest leaves that to its callers.


def _set_client() -> None:
    """Lets huggingface_hub wait for an answer for some minutes, not for ever, as it asks in listings and elsewhere."""

    def limit(request: httpx2.Request) -> None:
        request.extensions["timeout"] = httpx2.Timeout(ANSWER_SECONDS).as_dict()

    try:
        hooks = huggingface_hub.get_session().event_hooks
    except ImportError:
        raise CommandError(hub.NO_SOCKS) from None
    hooks["request"] = [*hooks["request"], limit]
    huggingface_hub.set_client_factory(lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True))


def _check_token(options: argparse.Namespace) -> None:
    """Makes sure that there is a token and that it may write, or propose."""
    token = huggingface_hub.get_token()
    if token is None and not options.dry_run:
        raise CommandError("no token of the Hub: run 'hf auth login', or set HF_TOKEN to a token that may write")
    if token and not re.fullmatch("[!-~]+", token):
        raise CommandError("the token has letters that no token of the Hub has: run 'hf auth login', or set HF_TOKEN")
    writes = token is not None and not options.create_pr
    with contextlib.suppress(RepositoryNotFoundError):  # who may make it is told when it is made, before data are sent
        # Where nothing answers at all, an address is wrong rather than the Hub away.
        nobody = (httpx2.ConnectError, httpx2.ProxyError)
        _ask(HfApi().auth_check, options.repo_id, write=writes, lasting=nobody, **DATASET)


def _check_card(files: Files) -> None:
    """Lets the Hub look at the card, which it would refuse only when all data are sent."""
    (text,) = (file.path_or_fileobj for file in files if file.path_in_repo == card.NAME)
    assert isinstance(text, bytes)
    try:
        _ask(DatasetCard(text.decode()).validate, **DATASET)
    except ValueError as error:
        raise CommandError(f"the Hub refuses the card: {error}") from error


def _find(options: argparse.Namespace) -> str | None:
    """The commit of the branch to change; None if there is no such dataset yet."""
    name, revision = options.repo_id, options.revision
    try:
        info = _ask(HfApi().dataset_info, name, revision=revision, expand=["private", "sha"])
    except RepositoryNotFoundError:
        if revision != MAIN:
            raise CommandError(f"{name} is not there, so it has no branch {revision}; leave out --revision") from None
        return None
    if options.private and not info.private:
        raise CommandError(f"{name} is there already, and public; make it private on the Hub or leave out --private")
    return info.sha


def _left_to_do(repo_id: str, files: Files, commit: str | None) -> Operations:
    """What makes a commit hold these files, and none that earlier uploads left or that break the dataset."""
    entries = HfApi().list_repo_tree(repo_id, recursive=True, revision=commit, **DATASET) if commit else ()
    there = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    unwanted = {"so2sat.py", f"{repo_id.split('/')[1]}.py", "dataset_infos.json", *contents.OTHER_FILES}
    shard = re.compile(rf"({'|'.join(CONFIGS)})/[^/]*\.parquet")
    others = sorted(there.keys() - {file.path_in_repo for file in files})
    stale = [name for name in others if name in unwanted or shard.fullmatch(name)]
    return [
        *(file for file in files if not _is_equal(file, there.get(file.path_in_repo))),
        *(CommitOperationDelete(name) for name in stale),
    ]


def _is_equal(file: CommitOperationAdd, there: RepoFile | None) -> bool:
    """Whether the Hub has this file; it tells the SHA-256 of those in LFS, of others the Git object's name."""
    if there is None:
        return False
    if there.lfs:
        return there.lfs.sha256 == file.upload_info.sha256.hex()
    with file.as_file() as opened:
        content = opened.read()
    return there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _show(what: str, operations: Operations, shown: int = 20) -> None:
    size = sum(file.upload_info.size for file in operations if isinstance(file, CommitOperationAdd))
    print(f"  {what}: {len(operations)} ({size:,} bytes)" if size else f"  {what}: {len(operations)}")
    for operation in operations[:shown]:
        print(f"    {operation.path_in_repo}")
    if len(operations) > shown > 0:
        print(f"    and {len(operations) - shown} more")


def _check_edits(repo_id: str, head: str, replace_card: bool) -> None:
    """Says who has edited the card since the last upload, which must be told to replace it."""
    (info,) = _ask(HfApi().get_paths_info, repo_id, [card.NAME], revision=head, expand=True, **DATASET) or (None,)
    if not info or not info.last_commit or info.last_commit.title.startswith(TITLE):
        return
    commit = _ask(HfApi().list_repo_commits, repo_id, revision=info.last_commit.oid, **DATASET)[0]
    edit = f"{', '.join(commit.authors)} edited the card in {commit.commit_id[:8]}, {commit.title!r}"
    link = printable(f"{constants.ENDPOINT}/datasets/{repo_id}/commit/{commit.commit_id}")
    if not replace_card:
        raise CommandError(f"{repo_id}: {edit}; look at {link}; --replace-card takes all edits away")
    print(f"  {edit}, which is replaced: {link}")


def _send(changed: Files, target: Mapping[str, Any]) -> None:
    """Sends the data, which nobody sees before the commit. What the Hub has already is not sent again."""

    def send(files: Files) -> None:
        try:
            HfApi().preupload_lfs_files(additions=files, num_threads=FILES_AT_ONCE, free_memory=False, **target)
        except RuntimeError as error:
            # It wraps what happens to a file. hf_xet has no other error for a connection that fails.
            raise error.__cause__ or httpx2.NetworkError(str(error)) from error

    total = sum(file.upload_info.size for file in changed)
    with _ending_at_once(), tqdm.tqdm(total=total, desc="sending", unit="B", unit_scale=True, disable=None) as bar:
        for start in range(0, len(changed), FILES_AT_ONCE):
            files = changed[start : start + FILES_AT_ONCE]
            _ask(send, files)
            bar.update(sum(file.upload_info.size for file in files))


@contextlib.contextmanager
def _ending_at_once() -> Iterator[None]:
    """Lets Ctrl-C end the process. Python would wait for all files that are under way, maybe for minutes."""

    def end(*_: object) -> None:
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT)

    usual = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _commit(
    files: Files, operations: Operations, target: Mapping[str, Any], title: str, parent: str
) -> tuple[str, str]:
    """Makes the commit, unless an attempt whose answer was lost has made it; returns what shows it, and the commit."""
    name, revision = target["repo_id"], target["revision"]
    head = parent if target["create_pr"] else str(HfApi().dataset_info(name, revision=revision).sha)
    if head != parent:
        if not _left_to_do(name, files, head):
            return revision, head
        raise CommandError(
            f"{name}: somebody else has changed {revision} meanwhile ({parent[:8]} became {head[:8]});"
            " nothing was committed. Look at their change, then run the same command again"
        )
    info = HfApi().create_commit(operations=operations, commit_message=title, parent_commit=parent, **target)
    return info.pr_revision or revision, info.oid


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


def load_back(built: Manifest, repo_id: str, commit: str) -> None:
    """Streams the first row of every split, as a user would who has no settings of his own."""
    print(f"loading {', '.join(built.configs)} back")
    settings = ("HF_", "HUGGING", "DATASETS_")
    with tempfile.TemporaryDirectory() as elsewhere:  # because load_dataset prefers a folder ORG/NAME to the Hub
        environment = {key: value for key, value in os.environ.items() if not key.startswith(settings)}
        environment |= {
            "HF_ENDPOINT": constants.ENDPOINT,
            "HF_TOKEN": huggingface_hub.get_token() or "",
            "HF_HOME": elsewhere,
        }
        run = [sys.executable, "-c", _LOAD, repo_id, commit, *built.configs]
        done = subprocess.run(run, stderr=subprocess.PIPE, text=True, env=environment, cwd=elsewhere)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise CommandError(printable(f"{repo_id} is uploaded, but can't be loaded: {reason}"))


# Errors

AGAIN = "nothing is lost, run the same command again"
MEND = "Run build.py again: it restores what it wrote"
# What to do about a status that the same command would meet again.
ADVICE = {
    401: "it does not know this token: run 'hf auth login' again, or set HF_TOKEN",
    403: "this token may not do that: make one that may under Settings, Access Tokens on the Hub, or use --create-pr",
    404: "look at ORG/NAME, at --revision, at HF_ENDPOINT, and at what this token may see",
}


def _advice(error: Exception) -> str:
    """What to do about an error."""
    if isinstance(error, (httpx2.UnsupportedProtocol, httpx2.InvalidURL)):
        return "HF_ENDPOINT must be an address like https://huggingface.co; set it right or unset it"
    if isinstance(error, (httpx2.ConnectError, httpx2.ProxyError, json.JSONDecodeError)):
        return f"look at the network and its proxy, and at HF_ENDPOINT if it is set; {AGAIN} then"
    if isinstance(error, HfHubHTTPError) and not _is_transient(error):
        return ADVICE.get(error.response.status_code, "the same command would fail again: put right what it says")
    return AGAIN


def _is_transient(error: Exception) -> bool:
    """Whether the same request may well succeed."""
    if isinstance(error, HfHubHTTPError):
        return hub.is_transient(error.response)  # after 409 and 412, _commit looks who has changed the branch
    return isinstance(error, httpx2.TransportError) and not isinstance(error, httpx2.UnsupportedProtocol)


def _ask(
    function: Callable[..., Result], *args: Any, lasting: tuple[type[Exception], ...] = (), **options: Any
) -> Result:
    """Calls a function that asks the Hub, again after a passing fault: when the Hub wants it, or ever later."""
    for pause in PAUSES:
        try:
            return function(*args, **options)
        except httpx2.HTTPError as error:
            if isinstance(error, lasting) or not _is_transient(error):
                raise
            wait = max(pause, hub.asked_pause(error.response) if isinstance(error, HfHubHTTPError) else 0)
            tqdm.tqdm.write(printable(f"the Hub: {error}; next attempt in {wait} s"), file=sys.stderr)
            time.sleep(wait)
    return function(*args, **options)


if __name__ == "__main__":
    sys.exit(main())
