"""The command without its extra: the demo, the help, the version, and what to install."""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Sequence
from typing import Final, NoReturn

from dspy_session.cli.ending import PROGRAM, Usage

__all__ = ["DEMO_HELP", "DEMO_SUMMARY", "MAX_TURNS_HELP", "SUMMARY", "run", "run_demo", "version"]

SUMMARY: Final = "Multi-turn sessions for any DSPy program."
DEMO_SUMMARY: Final = "show a conversation, offline: fork, undo, examples, an optimizer, saving"
DEMO_HELP: Final = (
    "Show a DSPy program in a conversation: fork it, undo and redo, turn it into examples, let "
    "dspy.BootstrapFewShot learn from them, save and resume. It runs offline, without a key, in a "
    "few seconds; the model's words are scripted, all else is real."
)
MAX_TURNS_HELP: Final = (
    "show at most the N latest turns to the model; with 0 it has no memory, and says so"
)


def run(arguments: Sequence[str], missing: Sequence[str]) -> int:
    """Run what needs no extra, and say of the rest what to install.

    Args:
        arguments: What follows the command's name.
        missing: The packages of the extra that are not there.

    Returns:
        The exit status.

    Raises:
        Usage: The arguments are wrong.
        ImportError: The command needs the extra.
    """
    name = next((each for each in arguments if not each.startswith("-")), None)
    if name not in (None, "demo"):
        raise ImportError(
            f'All commands but `demo` need {", ".join(missing)}: pip install "dspy-session[cli]"'
        )
    parser = _parser()
    try:
        parsed = parser.parse_args(arguments)
    except SystemExit as left:  # after the help or the version
        return int(left.code or 0)
    if parsed.command is None:
        parser.print_help()
        return 0
    return run_demo(parsed.max_turns)


def run_demo(max_turns: int | None) -> int:
    """Run the demo.

    Args:
        max_turns: As for `dspy_session.demo.run_demo`.

    Returns:
        The exit status.
    """
    from dspy_session import demo  # noqa: PLC0415  # DSPy loads slowly; --help needs none

    demo.run_demo(max_turns=max_turns)
    return 0


def version() -> str:
    """Return what `--version` says."""
    return f"{PROGRAM} {importlib.metadata.version('dspy-session')}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Usage(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description=SUMMARY,
        epilog=(
            f"Begin with: {PROGRAM} demo. More commands come with the extra: "
            'pip install "dspy-session[cli]"'
        ),
    )
    parser.add_argument("--version", action="version", version=version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    demo = commands.add_parser("demo", help=DEMO_SUMMARY, description=DEMO_HELP)
    demo.add_argument("--max-turns", type=_count, metavar="N", help=MAX_TURNS_HELP)
    return parser


def _count(text: str) -> int:
    if text.isascii() and text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number from 0 up, not {text!r}")
