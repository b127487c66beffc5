"""Servers of files on 127.0.0.1, over good lines and bad ones: FTP and HTTP."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import DTPHandler, FTPHandler
from pyftpdlib.ioloop import IOLoop
from pyftpdlib.servers import FTPServer


@dataclasses.dataclass
class Line:
    """What happens to the transfers of files, and what has happened."""

    cuts: list[int] = dataclasses.field(default_factory=list)  # bytes after which the next transfers break off
    ending: str = "close"  # how: "close" the connection, "stall", or "vanish": FTP's control connection closes too
    ranges: bool = True  # whether a transfer over HTTP can start in the middle
    pages: list[bytes] = dataclasses.field(default_factory=list)  # answers in place of the next files, over HTTP
    replies: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # instead of obeying an FTP command
    sent: int = 0  # bytes of files
    transfers: int = 0
    over: threading.Event = dataclasses.field(default_factory=threading.Event)

    def begin(self) -> float:
        """Bytes that a new transfer may send."""
        self.transfers += 1
        return self.cuts.pop(0) if self.cuts else float("inf")


@contextlib.contextmanager
def ftp_server(folder: Path, line: Line) -> Iterator[str]:
    """Serves a folder over FTP and yields its URL, with an account."""

    class Data(DTPHandler):  # type: ignore[misc]
        left: float | None = None

        def send(self, data: bytes) -> int:
            if self.left is None:
                self.left = line.begin()
            sent = int(super().send(data[: int(min(self.left, len(data)))]))
            self.left -= sent
            line.sent += sent
            if self.left == 0 and line.ending == "close":
                self.handle_close()
            if self.left == 0 and line.ending == "vanish":
                self.close()
                self.cmd_channel.close()
            return sent

    class Control(FTPHandler):  # type: ignore[misc]
        banner = "Universitätsbibliothek"
        encoding = "latin-1"
        use_sendfile = False
        dtp_handler = Data

        def process_command(self, cmd: str, *args: Any, **options: Any) -> None:
            if replies := line.replies.get(cmd):
                self.respond(replies.pop(0))
            else:
                super().process_command(cmd, *args, **options)

    Control.authorizer = DummyAuthorizer()
    Control.authorizer.add_user("m0", "public-secret", str(folder))
    server = FTPServer(("127.0.0.1", 0), Control, ioloop=IOLoop())

    def serve() -> None:
        while not line.over.is_set():
            server.ioloop.loop(0.01, False)
        server.close_all()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"ftp://m0:public-secret@127.0.0.1:{server.address[1]}"
    line.over.set()
    thread.join()


class RangeServer(http.server.ThreadingHTTPServer):
    """Serves a folder over HTTP, by ranges of bytes, as far as its line allows."""

    daemon_threads, block_on_close = True, False

    def __init__(self, folder: Path, line: Line | None = None) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(_RangeHandler, directory=str(folder)))
        self.line = line or Line()
        self.requests: list[str] = []  # their paths
        # Asked for every request with its number: None to serve it, a status to refuse it, "cut" to break off half-way.
        self.fault: Callable[[int], int | str | None] = lambda number: None
        self.connections = 0  # that are open

    @property
    def url(self) -> str:
        """Address of the folder."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def bytes_sent(self) -> int:
        """Bytes of files."""
        return self.line.sent

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves a connection until it ends."""
        self.connections += 1
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stays quiet about clients that hang up."""


class _RangeHandler(http.server.SimpleHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert "Bearer" not in self.headers.get("Authorization", ""), "the token is for the Hub alone"
        self.server.requests.append(self.path)
        fault, path = self.server.fault(len(self.server.requests)), Path(self.translate_path(self.path))
        if self.server.line.pages:
            self.wfile.write(self.server.line.pages.pop(0))
            self.close_connection = True
        elif isinstance(fault, int) or not path.is_file():
            self.send_error(fault if isinstance(fault, int) else 404)
        else:
            self._send(path, 0.5 if fault == "cut" else 1)

    def _send(self, path: Path, share: float) -> None:
        """Sends the range that was asked for, or the beginning of it, and then what the line says."""
        line, size = self.server.line, path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if line.ranges else None
        first, last = (int(wanted[1]), min(int(wanted[2] or size), size - 1)) if wanted else (0, size - 1)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        length = int(min(line.begin(), (last - first + 1) * share))
        line.sent += length
        with path.open("rb") as file:
            file.seek(first)
            self.wfile.write(file.read(length))
        self.close_connection = length <= last - first
        if self.close_connection and line.ending == "stall":
            line.over.wait()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path, line: Line | None = None) -> Iterator[RangeServer]:
    """Serves a folder over HTTP on loopback."""
    with RangeServer(folder, line) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.line.over.set()
            server.shutdown()
