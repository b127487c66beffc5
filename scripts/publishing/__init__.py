"""What the commands share: everything about the repository and how it is made."""

from __future__ import annotations

import os
import signal
import sys


def end_on_ctrl_c() -> None:
    """Makes Ctrl-C end this process with one word while a command imports, which takes a second or two."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def end(*_: object) -> None:
    """Ends this process as Ctrl-C does."""
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(128 + signal.SIGINT)
