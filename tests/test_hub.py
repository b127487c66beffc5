"""The tests' Hub: what it does not know, or must not do, it refuses."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hub

API = "/api/datasets/org/name"
OID = hashlib.sha256(b"hello").hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[hub.Hub]:
    """A Hub with an empty repository."""
    with hub.serving(tmp_path) as running:
        running.create("org/name")
        yield running


def ask(server: hub.Hub, method: str, path: str, body: Any = b"", token: str = "") -> http.client.HTTPResponse:
    """Asks without any client library. The path may be one at the large file storage."""
    origin = server.storage if path.startswith(server.storage) else server.endpoint
    connection = http.client.HTTPConnection(origin.removeprefix("http://"), timeout=10)
    headers = {"Authorization": f"Bearer {hub.TOKENS[token]}"} if token else {}
    lines = "\n".join(map(json.dumps, body)) if isinstance(body, list) else body
    connection.request(method, path.removeprefix(origin), lines, headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/api/models/org/name"), ("GET", f"{API}/commits/main"), ("DELETE", API)]
)
def test_what_it_does_not_know_is_refused_and_remembered(server: hub.Hub, method: str, path: str) -> None:
    assert ask(server, method, path).status == 404
    assert [request.path for request in server.unknown] == [path]


POINTER = {"path": "a.parquet", "algo": "sha256", "oid": "0" * 64, "size": 1}


@pytest.mark.parametrize(
    ("token", "about", "operation", "status"),
    [
        ("", {}, ("deletedFile", {"path": ".gitattributes"}), 401),
        ("read", {}, ("deletedFile", {"path": ".gitattributes"}), 403),
        ("stranger", {}, ("deletedFile", {"path": ".gitattributes"}), 403),
        ("write", {}, ("deletedFile", {"path": "none"}), 400),
        ("write", {}, ("deletedFolder", {"path": "none/"}), 400),
        ("write", {}, ("lfsFile", POINTER), 400),
        ("write", {"parentCommit": "0" * 40}, ("deletedFile", {"path": ".gitattributes"}), 412),
    ],
)
def test_a_commit_is_refused_as_a_whole(
    server: hub.Hub, token: str, about: dict[str, str], operation: tuple[str, Any], status: int
) -> None:
    key, value = operation
    lines = [
        {"key": "header", "value": {"summary": "", **about}},
        {"key": "file", "value": {"path": "new", "content": ""}},
        {"key": key, "value": value},
    ]
    assert ask(server, "POST", f"{API}/commit/main", lines, token).status == status
    assert [commit.title for commit in server.repository("org/name").history()] == ["initial commit"]


@pytest.mark.parametrize(("content", "token"), [(b"hallo", ""), (b"hello", "write")])
def test_the_storage_takes_only_what_was_announced_and_no_token(server: hub.Hub, content: bytes, token: str) -> None:
    assert ask(server, "PUT", f"{server.storage}/storage/org/name/{OID}", content, token).status == 400
    assert OID not in server.repository("org/name").contents


def test_what_is_private_is_shown_to_members_only(server: hub.Hub) -> None:
    server.repository("org/name").private = True
    assert [ask(server, "GET", API, token=token).status for token in ("", "stranger", "read")] == [401, 404, 200]


def test_a_failing_hook_fails_the_test(tmp_path: Path) -> None:
    context = hub.serving(tmp_path)
    server = context.__enter__()
    server.on("validate", lambda request: 1 / 0)
    assert ask(server, "POST", "/api/validate-yaml").status == 500
    with pytest.raises(ZeroDivisionError):
        context.__exit__(None, None, None)
