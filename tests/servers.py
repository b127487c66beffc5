"""Servers of files on 127.0.0.1, good ones and bad ones: FTP, and the storage behind the Hub."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import re
import threading
from collections.abc import Iterator, Mapping
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


@contextlib.contextmanager
def storage_server(stored: Mapping[str, bytes], line: Line) -> Iterator[str]:
    """Serves what the Hub has in its large file storage, in its place, by SHA-256."""

    class Storage(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert "Authorization" not in self.headers, "the token is for the Hub alone"
            if line.pages:
                self.wfile.write(line.pages.pop(0))
                return
            content = stored[self.path.rpartition("/")[2]]
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            first = int(wanted[1]) if wanted and line.ranges else 0
            self.send_response(206 if wanted and line.ranges else 200)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            body = content[first:][: int(min(line.begin(), len(content)))]
            line.sent += len(body)
            with contextlib.suppress(OSError):
                self.wfile.write(body)
            if first + len(body) < len(content) and line.ending == "stall":
                line.over.wait()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Storage)) as host:
        yield f"http://{host}"
        line.over.set()


@contextlib.contextmanager
def running(server: Any) -> Iterator[str]:
    """Runs a server and yields its host and port."""
    server.daemon_threads, server.block_on_close = True, False
    with server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
