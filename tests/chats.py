"""What the tests of the command line's chat share: a chat with piped lines, and what it said."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dspy_session import SessionManager
from dspy_session.cli import main
from tests.managers import manager_of

STORE = "chats.db"
CTRL_C = "^C"


class Ended(NamedTuple):
    """How a command ended, and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> list[Any]:
        """Standard output, line by line; all of it has to be JSON."""
        return [json.loads(line) for line in self.lines]


class Typing:
    """Lines that come one by one; a function among them is called when its line is asked for."""

    def __init__(self, lines: Iterable[Any]) -> None:
        self._left = iter(lines)

    def __iter__(self) -> Iterator[str]:
        for line in self._left:
            if callable(line):
                line()
            else:
                yield line if line.endswith("\n") else f"{line}\n"

    def isatty(self) -> bool:
        return False


class Commands:
    """Runs commands in this process, in an empty folder with one store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def run(self, *arguments: str, lines: Iterable[Any] = ()) -> Ended:
        self._monkeypatch.setattr(sys, "stdin", Typing(lines))
        status = main(["--store", STORE, *arguments])
        return Ended(status, *self._capsys.readouterr())

    def typed(self, *lines: Any, options: Iterable[str] = ("--scripted",)) -> Ended:
        """A chat whose lines a person types, who presses Ctrl-C where a line says so."""
        left = iter(lines)

        def type_line(prompt: str) -> str:
            sys.stdout.write(prompt)
            line = next(left, None)
            if line is None:
                raise EOFError
            if line == CTRL_C:
                raise KeyboardInterrupt
            return str(line)

        with self._monkeypatch.context() as patched:
            patched.setattr("builtins.input", type_line)
            patched.setattr("dspy_session.cli.chat_loop._is_terminal", lambda stream: True)
            return self.run("chat", *options)

    def chat(self, *lines: Any, options: Iterable[str] = ("--scripted",)) -> Ended:
        return self.run("chat", *options, lines=lines)


def stored(session_id: str = "chat") -> list[tuple[Any, Any]]:
    """The questions and answers of a session, as another process would read them."""
    with opened() as manager:
        return [
            (turn.inputs.get("question"), turn.outputs.get("answer"))
            for turn in manager.turns(session_id)
        ]


def opened() -> SessionManager:
    return manager_of(f"sqlite:///{STORE}")


def session_ids() -> list[str]:
    if not Path(STORE).exists():
        return []
    with opened() as manager:
        return [info.session_id for info in manager.list_sessions(order="id", descending=False)]
