"""What the tests of the command line share: the command, run here or as a process, and a store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import SessionManager
from dspy_session.cli import main
from dspy_session.testing import ScriptedLM

NASTY = "red \x1b[31malert\x1b[0m, \x9b1m, \u202eback\u202c, <script>alert(1)</script>\r\nnext\tone"
"""What a model may answer, to do harm on a terminal."""
ESCAPES = ("\x1b", "\x9b", "\u202e", "\r")


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON document on standard output."""
        return json.loads(self.out)

    def complained(self, *words: str, status: int = 1) -> bool:
        """Whether it ended with one line on standard error that has these words, and no answer."""
        lines = self.err.splitlines()
        assert self.status == status, self
        assert len(lines) == 1, self
        assert lines[0].startswith("dspy-session: "), self
        assert [word for word in words if word not in lines[0]] == [], self
        assert self.out == "", self
        return True


class Commands:
    """Runs commands in this process, and reads what they wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str], store: str | None = None) -> None:
        self._capsys, self._store = capsys, store

    def __call__(self, *arguments: str) -> Ran:
        self._capsys.readouterr()
        given = [] if self._store is None else ["--store", self._store]
        status = main([*given, *arguments])
        return Ran(status, *self._capsys.readouterr())

    def good(self, *arguments: str) -> str:
        """What a command wrote that had nothing to complain of."""
        ran = self(*arguments)
        assert (ran.status, ran.err) == (0, ""), ran
        return ran.out

    def document(self, *arguments: str) -> Any:
        """What it wrote as JSON."""
        return json.loads(self.good("--json", *arguments))


def fill(url: str) -> None:
    """Store a conversation, a fork of it, and one that is nasty."""
    lm = ScriptedLM(lambda prompt: {"answer": NASTY if len(prompt) == 4 else "Noted."})
    program = dspy.Predict("question -> answer")
    with SessionManager(program, url) as manager, dspy.context(lm=lm):
        noted = {"app": "shop", "tags": ["tea"]}
        ada = manager.open("ada", metadata=noted, instructions="Be brief.")
        ada(question="My name is Ada.\nI am flying to Oslo.")
        ada(question="And Rome?")
        ada.data["cart"] = ["tea"]
        ada(question="Which tea?")
        ada.score(lambda example, prediction, trace=None: 0.5)
        fork = manager.create_session("ada/2 🙂", branch_from="ada", at=1)
        fork(question="I meant Bergen.")
        manager.open("-dash", metadata={"app": "bank"})(question="A loan, please.")


def arguments_of(store: str, *arguments: str) -> list[str]:
    """How a process is started that runs the command."""
    return [sys.executable, "-m", "dspy_session.cli", "--store", store, *arguments]


def environment(**more: str) -> dict[str, str]:
    """An environment in which nothing is chosen but what is given."""
    chosen = ("COLUMNS", "NO_COLOR", "TERM", "FORCE_COLOR", "PYTHONIOENCODING", "PYTHONUNBUFFERED")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("DSPY_SESSION_") and name not in chosen
    }
    return {**kept, **more}


def process(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command as a process of its own."""
    given: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": environment(),
        **options,
    }
    return subprocess.run(list(arguments), check=False, **given)


@contextmanager
def another_user() -> Iterator[None]:
    """Be somebody who is not allowed everything, while this lasts."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def snapshot(folder: Path) -> dict[str, bytes]:
    """What is in a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
