"""The tests' Hub: what it does not know, or must not do, it refuses."""

from __future__ import annotations

import contextlib
import http.client
from pathlib import Path

import pytest

import hub


def ask(server: hub.Hub, method: str, path: str, body: bytes = b"") -> int:
    """The status of an answer."""
    connection = http.client.HTTPConnection(server.endpoint.removeprefix("http://"), timeout=10)
    connection.request(method, path, body, {"Authorization": f"Bearer {hub.TOKENS['write']}"})
    with contextlib.closing(connection):
        return connection.getresponse().status


def test_what_it_does_not_know_or_was_not_announced_is_refused(tmp_path: Path) -> None:
    with hub.serving(tmp_path) as server:
        server.create("org/name")
        assert ask(server, "DELETE", "/api/datasets/org/name") == 404
        assert [request.path for request in server.asked("")] == ["/api/datasets/org/name"]
        line = b'{"key": "lfsFile", "value": {"path": "a.parquet", "oid": "0"}}'
        assert ask(server, "POST", "/api/datasets/org/name/commit/main", b'{"value": {"summary": ""}}\n' + line) == 400
        assert len(server.repository("org/name").history()) == 1


def test_a_failing_hook_fails_the_test(tmp_path: Path) -> None:
    context = hub.serving(tmp_path)
    server = context.__enter__()
    server.on("validate", lambda request: 1 / 0)
    assert ask(server, "POST", "/api/validate-yaml") == 500
    with pytest.raises(ZeroDivisionError):
        context.__exit__(None, None, None)
