"""The tests' Hub."""

from __future__ import annotations

import http.client
from pathlib import Path

import pytest

import hub


def test_a_failing_hook_fails_the_test(tmp_path: Path) -> None:
    context = hub.serving(tmp_path)
    server = context.__enter__()
    server.on("validate", lambda request: 1 / 0)
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("POST", "/api/validate-yaml")
    assert connection.getresponse().status == 500
    with pytest.raises(ZeroDivisionError):
        context.__exit__(None, None, None)
