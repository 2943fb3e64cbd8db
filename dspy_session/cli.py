"""The command `dspy-session`."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence

from dspy_session.errors import SessionError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        arguments: What follows the command's name; `sys.argv[1:]` if None.

    Returns:
        0 if all went well, 1 after an error that was printed, 130 when interrupted.

    Raises:
        SystemExit: The arguments are wrong (status 2), or help was asked for (status 0).
    """
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if parsed.command is None:
        parser.print_help()
        return 0
    try:
        status = _demo(parsed.max_turns)
        print(end="", flush=True)
    except BrokenPipeError:  # the reader (a pager, `head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (SessionError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return status


def _demo(max_turns: int | None) -> int:
    from dspy_session.demo import run_demo  # noqa: PLC0415  # DSPy loads slowly; --help needs none

    run_demo(max_turns=max_turns)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dspy-session",
        description="Multi-turn sessions for any DSPy program.",
        epilog="Begin with: dspy-session demo",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"%(prog)s {importlib.metadata.version('dspy-session')}",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    demo = commands.add_parser(
        "demo",
        help="show a conversation, offline: fork, undo, examples, an optimizer, saving",
        description=(
            "Show a DSPy program in a conversation: fork it, undo and redo, turn it into examples, "
            "let dspy.BootstrapFewShot learn from them, save and resume. It runs offline, without "
            "a key, in a few seconds; the model's words are scripted, all else is real."
        ),
    )
    demo.add_argument(
        "--max-turns",
        type=_count,
        metavar="N",
        help="show at most the N latest turns to the model; with 0 it has no memory, and says so",
    )
    return parser


def _count(text: str) -> int:
    if text.isascii() and text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number from 0 up, not {text!r}")


if __name__ == "__main__":
    sys.exit(main())
