"""What every script does alike on the command line: errors in one line, exit codes, `--debug`."""

from __future__ import annotations

import argparse
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence

import so2sat


class CommandError(Exception):
    """Something the user can put right. The message is one line that says what is wrong and what to do."""


def parser(description: str, examples: str) -> argparse.ArgumentParser:
    """Makes a parser with a description, examples at the end of its help and the option `--debug`."""
    result = argparse.ArgumentParser(
        description=textwrap.fill(description, 100),
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return result


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
    options = arguments.parse_args(argv)
    try:
        return command(options) or 0
    except (CommandError, so2sat.SourceError, OSError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if options.debug:
            traceback.print_exc()
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
