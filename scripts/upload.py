"""Uploads a repository that build.py made to the Hugging Face Hub: data first, then one commit that shows it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import huggingface_hub
import pyarrow.parquet as pq
import tenacity
import tqdm
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils._validators import validate_repo_id
from huggingface_hub.utils.sha import git_hash
from huggingface_hub.utils.tqdm import disable_progress_bars

from publishing import card, checks, command, layout, manifest
from publishing.command import CommandError

EXAMPLES = """\
  python scripts/upload.py build/so2sat ORG/so2sat --dry-run     check everything and show what would be done
  python scripts/upload.py build/so2sat ORG/so2sat --private     only for you and your organisation
  python scripts/upload.py build/so2sat ORG/so2sat --create-pr   as a pull request
"""

FILES_AT_ONCE = 5  # are sent between two steps of the progress bar
LOAD_SECONDS = 900  # for the look at the result
Result = TypeVar("Result")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = command.parser(
        "Uploads a repository that build.py made to the Hugging Face Hub. All is checked first; data are sent next, and"
        " a single commit then shows them together with the card and removes what is stale, so that nobody ever sees"
        " a mixture. Interrupted and run again, it sends only what is missing. The token is that of 'hf auth login' or"
        " the environment variable HF_TOKEN.",
        EXAMPLES,
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="repository that build.py made")
    parser.add_argument("repo_id", metavar="ORG/NAME", type=_repo_id, help="dataset on the Hub, made if it isn't there")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of changing the branch")
    parser.add_argument("--revision", metavar="R", default="main", help="branch (default: %(default)s)")
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


def _run(options: argparse.Namespace) -> None:
    token = huggingface_hub.get_token()
    try:
        upload(
            options.folder,
            options.repo_id,
            private=options.private,
            create_pr=options.create_pr,
            revision=options.revision,
            dry_run=options.dry_run,
        )
    except (HfHubHTTPError, httpx2.TransportError, RuntimeError, ValueError) as error:
        text = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise CommandError(
            f"the Hub: {text.replace(token, '…') if token else text}; nothing is lost, run the same command again"
        ) from error


def upload(
    folder: Path,
    repo_id: str,
    private: bool = False,
    create_pr: bool = False,
    revision: str = "main",
    dry_run: bool = False,
) -> str | None:
    """Makes a dataset on the Hub equal to a repository.

    Args:
        folder: The repository.
        repo_id: ORG/NAME of the dataset.
        private: Whether a new one is private.
        create_pr: Whether to open a pull request.
        revision: Branch to change, or on which the pull request is based.
        dry_run: Whether to stop before anything is changed.

    Returns:
        The commit that shows the repository; None after a dry run.

    Raises:
        CommandError: The repository is not sound, the token is not allowed to write, the dataset was changed by
            somebody else meanwhile, or does not hold afterwards what it must.
        HfHubHTTPError: The Hub refuses, or fails again and again.
    """
    folder = folder.expanduser().resolve()
    built, additions = _read(folder)
    _check_sound(folder, built)
    states = _states(folder, built)
    _check_sums(additions, built)
    api = HfApi()
    _check_token(api, repo_id, create_pr)
    _check_card(folder / card.NAME)
    head = _head(api, repo_id, revision)
    if head is None and revision != "main":
        raise CommandError(f"{repo_id} is not there, so it has no revision {revision}; leave out --revision")
    if head and private and not _retry(api.dataset_info, repo_id).private:
        raise CommandError(f"{repo_id} is there already, and public; make it private on the Hub or leave out --private")
    remote = _tree(api, repo_id, head) if head else {}
    if ".gitignore" in remote:
        raise CommandError(f"{repo_id} has a .gitignore, by which the Hub leaves files out; delete it there")
    changed = _changed(additions, remote)
    kept = {addition.path_in_repo for addition in additions}
    stale = [name for name in remote if _is_stale(name, repo_id, kept)]
    _print_plan(repo_id, revision, head, additions, changed, stale, remote)
    expected = _Expected(api, repo_id, additions, stale)
    if dry_run:
        print("dry run: nothing was sent")
        return None
    if head and not changed and not stale:
        print("up to date: no commit is needed")
    elif create_pr and (proposed := expected.in_pull_requests()):
        revision, head = proposed
        print(f"up to date: {revision} proposes exactly this")
    else:
        if head is None:
            _retry(api.create_repo, repo_id, repo_type="dataset", private=private, exist_ok=True)
            head = _head(api, repo_id, revision)
            assert head
        _send(api, repo_id, changed, revision, create_pr)
        if _states(folder, built) != states:
            raise CommandError(f"{folder}: was changed while it was sent; nothing was committed, run it again")
        operations = [*changed, *(CommitOperationDelete(name) for name in stale)]
        message = f"So2Sat LCZ42 {built.versions['so2sat']}: {', '.join(built.configs)}"
        revision, head = _retry(_commit, api, repo_id, operations, message, head, revision, create_pr, expected)
    differences = expected.differences(head)
    if differences:
        raise CommandError(f"{repo_id} at {head}: {differences[0]} differs from {folder}; run the same command again")
    _load_back(folder, built, repo_id, head)
    pull_request = re.fullmatch(r"refs/pr/(\d+)", revision)
    print(f"{api.endpoint}/datasets/{repo_id}" + (f"/discussions/{pull_request[1]}" if pull_request else ""))
    for config in built.configs[:2]:
        at = "" if revision == "main" else f', revision="{revision}"'
        print(f'load_dataset("{repo_id}", "{config}"{at})')
    return head


# ┌─────────────┐
# │  Preflight  │
# └─────────────┘


def _read(folder: Path) -> tuple[manifest.Manifest, list[CommitOperationAdd]]:
    """The manifest of a repository and every file of it, the card last."""
    built = manifest.load_built(folder)
    additions = []
    total = sum(record.bytes for record in built.shards.values())
    with tqdm.tqdm(total=total, desc="checking", unit="B", unit_scale=True, disable=None) as bar:
        for name in [*sorted({*built.files, *built.shards}), manifest.NAME, card.NAME]:
            path = folder / name
            if not path.is_file():
                raise CommandError(f"{path}: missing, expected it as {manifest.NAME} lists it; run build.py again")
            # It computes the checksum. What is small is kept, so that what is committed is what was checked, whatever
            # becomes of the folder.
            additions.append(CommitOperationAdd(name, path if name in built.shards else path.read_bytes()))
            bar.update(additions[-1].upload_info.size if name in built.shards else 0)
    return built, additions


def _check_sound(folder: Path, built: manifest.Manifest) -> None:
    """Makes sure that a repository may be shown to everybody.

    Raises:
        CommandError: It may not.
    """
    findings = [*checks.repository_findings(folder, built)]
    for finding in findings[1:]:
        print(finding, file=sys.stderr)
    if findings:
        raise CommandError(f"{findings[0]}; nothing was sent: run build.py again, then verify.py")


def _check_sums(additions: Sequence[CommitOperationAdd], built: manifest.Manifest) -> None:
    """Makes sure that every file has the checksum that the manifest tells of.

    Raises:
        CommandError: One has another.
    """
    sha256 = {**built.files, **{name: record.sha256 for name, record in built.shards.items()}}
    for addition in additions:
        name, found = addition.path_in_repo, addition.upload_info.sha256.hex()
        if found != sha256.get(name, found):
            raise CommandError(
                f"{name}: sha256 {found[:16]}…, expected {sha256[name][:16]}…; nothing was sent: run build.py again"
            )


def _states(folder: Path, built: manifest.Manifest) -> list[tuple[int, int, int]]:
    """What tells that a shard was changed without reading it."""
    states = [(folder / name).stat() for name in sorted(built.shards)]
    return [(state.st_size, state.st_mtime_ns, state.st_ino) for state in states]


def _check_card(path: Path) -> None:
    """Lets the Hub check the card's metadata.

    Raises:
        CommandError: It refuses them.
    """
    try:
        _retry(DatasetCard.load(path).validate, repo_type="dataset")
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise CommandError(f"{path}: the Hub refuses it ({' '.join(str(error).split())})") from error


def _check_token(api: HfApi, repo_id: str, create_pr: bool) -> None:
    """Makes sure that there is a token and that it may write.

    Raises:
        CommandError: It may not.
    """
    if huggingface_hub.get_token() is None:
        raise CommandError("no token of the Hub: run 'hf auth login', or set HF_TOKEN to a token that may write")
    try:
        user = _retry(api.whoami)
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise CommandError(
                "the Hub does not know this token: run 'hf auth login' again, or set HF_TOKEN"
            ) from error
        raise
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise CommandError("this token may only read: make one that may write under Settings, Access Tokens on the Hub")
    try:
        _retry(api.auth_check, repo_id, repo_type="dataset", write=not create_pr)
    except RepositoryNotFoundError as error:
        namespace = repo_id.split("/")[0]
        if namespace not in {user["name"], *(organisation["name"] for organisation in user.get("orgs", []))}:
            raise CommandError(
                f"{repo_id} is not there or not visible to {user['name']}, who is not in {namespace} and can't make it"
            ) from error
    except HfHubHTTPError as error:
        if error.response.status_code != 403:
            raise
        raise CommandError(f"{user['name']} may not write to {repo_id}; --create-pr proposes the change") from error


# ┌─────────┐
# │  State  │
# └─────────┘


def _head(api: HfApi, repo_id: str, revision: str) -> str | None:
    """The commit a branch points at, None if there is no such dataset."""
    try:
        head: str | None = _retry(api.dataset_info, repo_id, revision=revision).sha
    except RevisionNotFoundError as error:
        raise CommandError(f"{repo_id} has no revision {revision}; make the branch first, or leave it out") from error
    except RepositoryNotFoundError:
        return None
    return head


def _tree(api: HfApi, repo_id: str, commit: str) -> dict[str, str]:
    """Files of a commit: SHA-256 of those in LFS, the Git object's name of others."""

    def read() -> dict[str, str]:
        entries = api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type="dataset")
        files = [entry for entry in entries if isinstance(entry, huggingface_hub.hf_api.RepoFile)]
        return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}

    return _retry(read)


def _oid(addition: CommitOperationAdd, remote: dict[str, str]) -> str:
    """What the tree of a commit says of this file: its SHA-256, or for a file outside LFS its Git object's name."""
    if len(remote.get(addition.path_in_repo, "")) == 64:
        return addition.upload_info.sha256.hex()
    with addition.as_file() as file:
        return git_hash(file.read())


def _changed(additions: Sequence[CommitOperationAdd], remote: dict[str, str]) -> list[CommitOperationAdd]:
    """The files that the tree of a commit lacks or has otherwise."""
    return [addition for addition in additions if remote.get(addition.path_in_repo) != _oid(addition, remote)]


def _is_stale(name: str, repo_id: str, kept: set[str]) -> bool:
    """Whether a file on the Hub is one that an upload left which is no more, or that breaks the dataset."""
    if name in kept:
        return False
    folder, _, file = name.rpartition("/")
    is_ours = folder in layout.CONFIGS and file.endswith(".parquet")
    breaks = name in {"so2sat.py", f"{repo_id.split('/')[1]}.py", "dataset_infos.json"}
    return is_ours or breaks or name in card.PICTURES


class _Expected:
    """What the dataset must hold after the upload."""

    def __init__(self, api: HfApi, repo_id: str, additions: Sequence[CommitOperationAdd], stale: Iterable[str]) -> None:
        self.api, self.repo_id, self.additions, self.stale = api, repo_id, additions, {*stale}

    def differences(self, commit: str) -> list[str]:
        """Files of a commit that are not what they must be."""
        remote = _tree(self.api, self.repo_id, commit)
        wrong = [addition.path_in_repo for addition in _changed(self.additions, remote)]
        return wrong + sorted(self.stale.intersection(remote))

    def in_pull_requests(self) -> tuple[str, str] | None:
        """The pull request that proposes exactly this, and its commit."""
        try:
            refs = _retry(
                self.api.list_repo_refs, self.repo_id, repo_type="dataset", include_pull_requests=True
            ).pull_requests
        except RepositoryNotFoundError:
            return None
        for ref in reversed(refs or []):
            if not self.differences(ref.target_commit) and self._is_open(ref.ref):
                return ref.ref, ref.target_commit
        return None

    def _is_open(self, ref: str) -> bool:
        number = int(ref.rpartition("/")[2])
        pull_request = _retry(self.api.get_discussion_details, self.repo_id, number, repo_type="dataset")
        return pull_request.status in ("open", "draft")


def _print_plan(
    repo_id: str,
    revision: str,
    head: str | None,
    additions: Sequence[CommitOperationAdd],
    changed: Sequence[CommitOperationAdd],
    stale: Sequence[str],
    remote: dict[str, str],
) -> None:
    state = f"at {head[:8]}" if head else "will be made"
    print(f"{repo_id}, {revision} ({state}):")
    print(f"  {len(additions) - len(changed)} files are there already")
    sizes: dict[str, list[int]] = {}
    for addition in changed:
        name = addition.path_in_repo
        folder = f"{name.split('/')[0]}/" if "/" in name else name
        what = "changed" if name in remote else "new"
        sizes.setdefault(f"{what}: {folder}", []).append(addition.upload_info.size)
    print(f"  {len(changed)} files are new or changed, {sum(map(sum, sizes.values())):,} bytes")
    for what, of_files in sizes.items():
        count = f"{len(of_files)} files, " if what.endswith("/") else ""
        print(f"    {what} {count}{sum(of_files):,} bytes")
    print(f"  {len(stale)} files are deleted")
    for name in stale:
        print(f"    deleted: {name}")


# ┌───────────┐
# │  Sending  │
# └───────────┘


def _is_transient(error: BaseException | None) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    if isinstance(error, RuntimeError):  # how preupload_lfs_files wraps what happens to a file
        return _is_transient(error.__cause__)
    # The latter is what the check of the card makes of a proxy's error page.
    return isinstance(error, (httpx2.TransportError, json.JSONDecodeError))


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds until the next attempt: what the Hub asks for, or ever longer."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(asked), 300.0) if asked.isdecimal() else tenacity.wait_exponential(max=60)(state)


def _before_sleep(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    what = str(error.__cause__ or error).split("\n")[0] if error else ""
    tqdm.tqdm.write(f"the Hub: {what}; next attempt in {state.upcoming_sleep:.0f} s", file=sys.stderr)


def _retry(function: Callable[..., Result], *args: Any, **options: Any) -> Result:
    """Calls a function, again if the connection or the Hub fails."""
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_transient),
        wait=_wait,
        stop=tenacity.stop_after_attempt(8),
        before_sleep=_before_sleep,
        reraise=True,
    )
    return attempts(function, *args, **options)


def _send(api: HfApi, repo_id: str, changed: Sequence[CommitOperationAdd], revision: str, create_pr: bool) -> None:
    """Sends the data, which nobody sees before the commit. What the Hub has already is not sent again."""
    disable_progress_bars()
    total = sum(addition.upload_info.size for addition in changed)
    bar = tqdm.tqdm(total=total, desc="sending", unit="B", unit_scale=True, disable=None)
    with bar, _ended_at_once():
        for start in range(0, len(changed), FILES_AT_ONCE):
            files = changed[start : start + FILES_AT_ONCE]
            _retry(
                api.preupload_lfs_files,
                repo_id,
                additions=files,
                repo_type="dataset",
                revision=revision,
                create_pr=create_pr,
                num_threads=FILES_AT_ONCE,
            )
            bar.update(sum(file.upload_info.size for file in files))


@contextlib.contextmanager
def _ended_at_once() -> Iterator[None]:
    """Lets Ctrl-C end the process at once. Python would wait for all files that are under way, maybe for minutes."""

    def end(*_: object) -> None:
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT)

    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _commit(
    api: HfApi,
    repo_id: str,
    operations: Sequence[CommitOperationAdd | CommitOperationDelete],
    message: str,
    parent: str,
    revision: str,
    create_pr: bool,
    expected: _Expected,
) -> tuple[str, str]:
    """Makes the commit, unless an attempt whose answer was lost has made it.

    Returns:
        The revision that shows it, and the commit.

    Raises:
        CommandError: Somebody else has changed the branch.
    """
    if create_pr:
        if proposed := expected.in_pull_requests():
            return proposed
    elif (head := _head(api, repo_id, revision)) != parent:
        return revision, _own(head, parent, repo_id, revision, expected)
    try:
        info = api.create_commit(
            repo_id,
            operations,
            commit_message=message,
            repo_type="dataset",
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent,
        )
    except HfHubHTTPError as error:
        if error.response.status_code not in (409, 412):
            raise
        return revision, _own(_head(api, repo_id, revision), parent, repo_id, revision, expected)
    if not create_pr:
        return revision, info.oid
    assert info.pr_revision
    return info.pr_revision, info.oid


def _own(head: str | None, parent: str, repo_id: str, revision: str, expected: _Expected) -> str:
    """The head of the branch, if it holds what was to be committed."""
    if head and not expected.differences(head):
        return head
    raise CommandError(
        f"{repo_id}: somebody else has changed {revision} meanwhile ({parent[:8]} became {str(head)[:8]}); nothing was"
        " committed. Look at their change, then run the same command again"
    )


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
    """Streams the first row of every split, as a user would.

    Raises:
        CommandError: It can't be loaded, or is not the first row of the repository.
    """
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
        reason = done.stderr.strip().rpartition("\n")[2]
        raise CommandError(f"{repo_id} is uploaded, but can't be loaded: {reason}")
    found = json.loads(done.stdout)
    for config in built.configs:
        for split in built.splits(config):
            expected = _first_row(folder / built.shard_names(config, split)[0])
            if found.get(f"{config}/{split}") != expected:
                raise CommandError(
                    f"{repo_id}: first row of {config}, {split} has label and sample_id"
                    f" {found.get(f'{config}/{split}')}, expected {expected}"
                )


def _first_row(path: Path) -> list[int]:
    with pq.ParquetFile(path) as file:
        (row,) = next(file.iter_batches(1, columns=["label", "sample_id"])).to_pylist()
    return [row["label"], row["sample_id"]]


if __name__ == "__main__":
    sys.exit(main())
