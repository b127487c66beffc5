"""What every script does alike on the command line: errors in one line, exit codes, `--debug`."""

from __future__ import annotations

import argparse
import io
import os
import platform
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence

import so2sat

SYSTEMS = "The scripts need Linux or macOS."


class CommandError(Exception):
    """Something the user can put right. The message is one line that says what is wrong and what to do."""


def parser(description: str, examples: str) -> argparse.ArgumentParser:
    """Makes a parser with a description, examples at the end of its help and the option `--debug`."""
    result = argparse.ArgumentParser(
        description=textwrap.fill(description, 100),
        epilog=f"examples:\n{examples.rstrip()}\n\n{SYSTEMS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return result


def named(text: str) -> str:
    """The type of an argument that names a folder or file: an empty one is a variable that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; a dot is the folder that you are in")
    return text


def number(least: int, most: int = 1 << 62) -> Callable[[str], int]:
    """Makes the type of an argument that is a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) < 20 and least <= int(text) <= most):
            upto = f" to {most}" if most < 1 << 62 else " on"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least}{upto}")
        return int(text)

    return parse


def run(
    command: Callable[[argparse.Namespace], int | None], arguments: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    """Parses the arguments and runs a command.

    Args:
        command: Gets the parsed arguments; returns its exit status, None for success.
        arguments: A parser made by `parser`.
        argv: The arguments, those of the process if None.

    Returns:
        The exit status: the command's, 1 after an error of the user's or of the system's, 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # characters that the terminal lacks
    if platform.system() not in ("Linux", "Darwin"):
        print(f"error: {SYSTEMS} This is {platform.system()}", file=sys.stderr)
        return 1
    options = arguments.parse_args(argv)
    try:
        _check_working_folder()
        return command(options) or 0
    except (CommandError, so2sat.SourceError, OSError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"error: {so2sat.printable(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if options.debug:
            traceback.print_exc()
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _check_working_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise CommandError("the folder that you are in was deleted; change to another") from error
