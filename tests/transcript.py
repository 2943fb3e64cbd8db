"""The page of the command line: `python -m tests.transcript` writes it.

It has a transcript, of commands that are really run in an empty folder, and the help of all
commands. What differs from run to run is made the same: times, durations, sizes. A test compares
the page with what would be written now.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import typer

from dspy_session.cli import main as run_command
from dspy_session.cli.app import PANELS, application
from tests.house import PROJECT

PAGE = PROJECT / "docs" / "reference" / "command-line.md"
COMMAND = "uv run python -m tests.transcript"
WIDTH = 92
STORE = "DSPY_SESSION_STORE"

STEPS = """
# A conversation with the scripted model, which looks its answers up in the prompt that it is sent.
$ printf 'Hello, my name is Ada. I am flying to Oslo.\\nWhere am I flying to?\\n' | \
dspy-session chat --scripted --session ada
# It goes on where it was, whatever became of the process.
$ echo 'What is my name?' | dspy-session chat --scripted --session ada
$ dspy-session show ada
# A fork from before the last turn shares the others, and goes its own way.
$ dspy-session fork ada ada-rome --at 1
$ printf 'Change of plan: I am flying to Rome.\\nWhere am I flying to?\\n' | \
dspy-session chat --scripted --session ada-rome
$ dspy-session tree ada
$ dspy-session list
$ dspy-session search rome
$ dspy-session stats --days 3
$ dspy-session list --limit 1 --json
# In a chat, lines that begin with a slash are commands.
$ printf '/data city "Rome"\\n/undo 2\\n/redo\\n/redo\\n/sessions\\n' | \
dspy-session chat --scripted --session ada-rome
# Training data: each example holds the turns that its call saw.
$ dspy-session examples ada -o ada.jsonl
# Would another program have answered better? The file `judge.py` has two, and a metric:
@ judge.py
$ dspy-session replay ada -p judge:curt --against judge:kind --metric judge:is_kind
# Does a change reach the model? Written once, compared on every commit:
$ dspy-session drift --baseline prompts.json --write ada
$ dspy-session drift --baseline prompts.json
$ dspy-session export ada ada.json
$ dspy-session import ada.json --as ada-again
$ dspy-session export ada ada.html --html
$ dspy-session verify
$ dspy-session delete --yes ada-again
# What goes wrong is one line, and the exit status says so.
$ dspy-session show adda
$ dspy-session --store ada.html list
$ dspy-session import ada.json
"""

FILES = {
    "judge.py": """
import dspy
from dspy_session.testing import ScriptedLM


def answering(words):
    program = dspy.Predict("question -> answer")
    program.set_lm(ScriptedLM(lambda prompt: {"answer": words}))
    return program


curt, kind = answering("No idea."), answering("Let me look that up for you.")


def is_kind(example, prediction, trace=None):
    return float("you" in prediction.answer)
""",
}
"""What a step that begins with @ writes."""

_INTRODUCTION = f"""\
# The command line

`{COMMAND}` wrote this page, and a test compares it. How to use the
commands is in [the guide](../guide/command-line.md).

## A transcript

In an empty folder, with `{STORE}=chats.db` in the environment; times, durations and
sizes are made up.

"""


# --- what varies ----------------------------------------------------------------------------------


_STABLE: tuple[tuple[str, str], ...] = (
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00", "2026-01-05T10:00:00.000000+00:00"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d", "2026-01-05 10:00"),
    (r"\d+ ms", "8 ms"),
    (r"\b\d\.\d s\b", "8 ms"),
    (r'("size_bytes": )\d+', r"\g<1>600"),
    (r"\b\d{3} B\b", "600 B"),
    (r"\b\d\.\d kB\b", "1.8 kB"),
)


def stable(text: str) -> str:
    """A text with what varies from run to run made the same."""
    for pattern, same in _STABLE:
        text = re.sub(pattern, same, text)
    today = dt.datetime.now(dt.UTC).date()
    for back in range(8):
        day, shown = today - dt.timedelta(days=back), dt.date(2026, 1, 5) - dt.timedelta(days=back)
        text = text.replace(day.isoformat(), shown.isoformat())
    return text


# --- the transcript -------------------------------------------------------------------------------


@contextlib.contextmanager
def empty_folder() -> Iterator[None]:
    """A folder of its own, and an environment in which nothing else is chosen."""
    chosen = {STORE: "chats.db", "COLUMNS": str(WIDTH), "TERM": "dumb"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DSPY_")}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with (
                mock.patch.dict(os.environ, {**kept, **chosen}, clear=True),
                mock.patch.object(sys, "path", [*sys.path]),  # programs are found in the folder
            ):
                yield
        finally:
            os.chdir(before)


def ran(line: str) -> str:
    """What a line of the shell shows: its output, its complaints, and how it ended."""
    fed, _, command = line.rpartition(" | ")
    shown, given = io.TextIOWrapper(io.BytesIO(), "utf-8"), shlex.split(command)
    stdin = io.TextIOWrapper(io.BytesIO(_fed(fed).encode()), "utf-8")
    assert given[0] == "dspy-session", line
    with (
        mock.patch.object(sys, "stdin", stdin),
        contextlib.redirect_stdout(shown),
        contextlib.redirect_stderr(shown),
    ):
        status = run_command(given[1:])
    shown.flush()
    text = shown.buffer.getvalue().decode()
    return text if not status else f"{text}$ echo $?\n{status}\n"


def _fed(command: str) -> str:
    """What `echo` or `printf` writes, as far as it is used here."""
    name, *words = shlex.split(command) or [""]
    text = " ".join(words)
    return {"": "", "echo": f"{text}\n", "printf": text.replace("\\n", "\n")}[name]


def transcript() -> str:
    """All steps with what they show, as Markdown."""
    parts: list[str] = []
    with empty_folder():
        for line in STEPS.strip().splitlines():
            if line.startswith("# "):
                parts.append(f"{line[2:]}\n")
            elif line.startswith("@ "):
                text = FILES[line[2:]].lstrip()
                Path(line[2:]).write_text(text, "utf-8")
                parts.append(f"```python\n{text}```\n")
            else:
                parts.append(f"```console\n{line}\n{stable(ran(line[2:]))}```\n")
    return "\n".join(parts)


# --- the help -------------------------------------------------------------------------------------


def reference() -> str:
    """The help of all commands, as Markdown."""
    root: Any = typer.main.get_command(application())
    context = root.make_context("dspy-session", [], resilient_parsing=True)
    parts = ["## Commands\n", "Before or after each command's name:\n", _options(root, context)]
    panels = dict.fromkeys(PANELS)
    for panel in panels:
        parts.append(f"## {panel}\n")
        for name, each in root.commands.items():
            if each.rich_help_panel == panel:
                parts.append(_command(name, each, context))
    return "\n".join(parts)


def _command(name: str, command: Any, parent: Any) -> str:
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    usage = " ".join(context.get_usage().split()).removeprefix("Usage: ")
    said = "\n\n".join(command.help.split("\n\n"))
    return "\n".join(
        [f"### {name}\n", f"```text\n{usage}\n```\n", f"{said}\n", _options(command, context)]
    )


_SHARED = ("--store", "--json", "--help")


def _options(command: Any, context: Any) -> str:
    rows = []
    for param in command.get_params(context):
        record = param.get_help_record(context)
        is_shared = any(name in param.opts for name in _SHARED)
        if record is not None and not (is_shared and command.name != "dspy-session"):
            word, said = (" ".join(text.split()) for text in record)
            word = word.replace(" <str>", "").replace(" <list[str]>", "...")
            rows.append(f"| `{_cell(word)}` | {_cell(said)} |")
    if not rows:
        return ""
    return "\n".join(["| Words | Meaning |", "|---|---|", *rows, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def page() -> str:
    """The page as it should be."""
    return f"{_INTRODUCTION}{transcript()}\n{reference()}".rstrip() + "\n"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
