"""What a chat shows: to people as it arrives, to scripts as one JSON object per turn.

Nothing that a model says acts on the terminal: escape sequences and control characters are written
out, however its tokens cut them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import dspy
import msgspec
from rich.text import Text

from dspy_session.cli.context import CommandContext
from dspy_session.core.turn import Turn
from dspy_session.pictures.values import harmless, plain_value, shown_text
from dspy_session.program.events import StatusEvent, StreamEvent, TextEvent, TurnEvent

__all__ = ["JsonScreen", "Said", "Screen", "TextScreen"]

Fields = Mapping[str, Any]


class Said(msgspec.Struct, frozen=True):
    """What a command of the chat has to say.

    Attributes:
        text: For people: text, or something that rich can draw.
        data: For scripts: plain JSON values.
    """

    text: Any
    data: dict[str, Any] = {}


class Screen(Protocol):
    """Where a chat shows what happens."""

    def welcome(self, said: Said) -> None:
        """Show what the chat begins with."""

    def begin(self, session_id: str, inputs: Fields) -> None:
        """A turn begins."""

    def heard(self, event: StreamEvent) -> None:
        """Show what happens in the turn."""

    def failed(self, reason: str) -> None:
        """The turn, or a command, ended without a result."""

    def said(self, command: str, said: Said) -> None:
        """Show what a command has to say."""

    def note(self, text: str) -> None:
        """Show what a person should know beside that."""


class TextScreen:
    """Shows a chat to people, and in a pipe the answers alone.

    Args:
        context: Writes it.
        main: The output field that is the answer, if the program has one text output.
        live: Whether somebody looks on: then other texts (a reasoning, the steps of an agent) and
            what tools are called show, too.
    """

    def __init__(self, context: CommandContext, main: str | None, live: bool) -> None:
        self._context, self._main, self._live = context, main, live
        self._pending: dict[tuple[int, str, str], tuple[str, bool]] = {}
        self._texts: dict[tuple[int, str, str], str] = {}
        self._open = self._held = ""

    def welcome(self, said: Said) -> None:
        """Show what the chat begins with.

        Args:
            said: What to say.
        """
        if self._live:
            self._write(f"{harmless(said.text)}\n", "dim")

    def begin(self, session_id: str, inputs: Fields) -> None:  # noqa: ARG002  # a person typed them
        """A turn begins.

        Args:
            session_id: Of which session.
            inputs: What goes in.
        """
        self._pending.clear()
        self._texts.clear()
        self._open = self._held = ""

    def heard(self, event: StreamEvent) -> None:
        """Show what happens in the turn.

        Args:
            event: What happens.
        """
        if isinstance(event, TextEvent):
            self._hear(event)
        elif isinstance(event, StatusEvent):
            if self._live:
                self._end_line()
                self._write(f"{harmless(event.message)}\n", "dim")
        else:
            self._end_line()
            self._rest(event)

    def failed(self, reason: str) -> None:
        """Say why a turn or a command has no result.

        Args:
            reason: Why.
        """
        self._end_line()
        self._context.note(reason)

    def said(self, command: str, said: Said) -> None:  # noqa: ARG002  # the person knows
        """Show what a command has to say.

        Args:
            command: The command.
            said: What it says.
        """
        if isinstance(said.text, str):
            self._write(f"{harmless(said.text)}\n")
        else:
            self._context.drawing(said.text)

    def note(self, text: str) -> None:
        """Show what a person should know.

        Args:
            text: What.
        """
        if self._live:
            self._end_line()
            self._write(f"{harmless(text)}\n", "dim")
        else:
            self._context.note(text)

    # --- texts as they arrive ---------------------------------------------------------------------

    def _hear(self, event: TextEvent) -> None:
        """Show one text after the other, also where a program writes several at a time."""
        key = event.call, event.predictor, event.field
        before, _ = self._pending.get(key, ("", False))
        self._pending[key] = before + event.text, event.last
        while self._pending:
            key, (text, last) = next(iter(self._pending.items()))
            self._texts[key] = self._texts.get(key, "") + text
            self._tell(key[2], text, last)
            if not last:
                self._pending[key] = "", False
                break
            del self._pending[key]

    def _tell(self, field: str, text: str, last: bool) -> None:
        style = "" if self._main in (None, field) else "dim"
        if self._live or field == self._main:
            if not self._open and text:
                self._open = field
                if field != self._main:
                    self._write(f"{harmless(field)}: ", style)
            text = self._held + text
            self._held = "\r" if text.endswith("\r") and not last else ""  # half of a line's end
            self._write(harmless(text.removesuffix(self._held)), style)
        if last:
            self._end_line()

    def _end_line(self) -> None:
        if self._open:
            self._write("\n")
        self._open = self._held = ""

    def _rest(self, event: TurnEvent) -> None:
        """Show the outputs that did not show while they arrived."""
        outputs = _outputs(event)
        shown = {text for key, text in self._texts.items() if self._live or key[2] == self._main}
        rest = {
            name: value
            for name, value in outputs.items()
            if str(value) not in shown and not self._is_aside(name, value)
        }
        alone = set(rest) <= {self._main} or len(outputs) == 1
        for name, value in rest.items():
            text = shown_text(plain_value(value))
            self._write(f"{text}\n" if alone else f"{harmless(name)}: {text}\n")

    def _is_aside(self, name: str, value: Any) -> bool:
        """Whether it is a text beside the one that is the answer, such as its reasoning."""
        return self._main not in (None, name) and isinstance(value, str | dspy.Reasoning)

    def _write(self, text: str, style: str = "") -> None:
        out = self._context.out
        out.print(Text(text, style=style), end="", soft_wrap=True)
        out.file.flush()


class JsonScreen:
    """Writes a chat for scripts: one line of JSON for each turn and each command.

    Args:
        context: Writes it.
    """

    def __init__(self, context: CommandContext) -> None:
        self._context = context
        self._turn: dict[str, Any] = {}

    def welcome(self, said: Said) -> None:
        """Nothing: a script knows what it asked for.

        Args:
            said: What a person would read.
        """

    def begin(self, session_id: str, inputs: Fields) -> None:
        """A turn begins.

        Args:
            session_id: Of which session.
            inputs: What goes in.
        """
        self._turn = {"session": session_id, "inputs": plain_value(inputs)}

    def heard(self, event: StreamEvent) -> None:
        """Write the turn when it is over.

        Args:
            event: What happens.
        """
        if isinstance(event, TurnEvent):
            self._write(
                {
                    **self._turn,
                    "session": event.state.id,
                    "outputs": plain_value(_outputs(event)),
                    **({} if event.turn is None else _facts(event.turn)),
                }
            )
            self._turn = {}

    def failed(self, reason: str) -> None:
        """Write why a turn or a command has no result.

        Args:
            reason: Why.
        """
        self._write({**self._turn, "error": reason})
        self._turn = {}

    def said(self, command: str, said: Said) -> None:
        """Write what a command has to say.

        Args:
            command: The command.
            said: What it says.
        """
        self._write({"command": command, **said.data})

    def note(self, text: str) -> None:
        """Say on standard error what a person should know.

        Args:
            text: What.
        """
        self._context.note(text)

    def _write(self, document: dict[str, Any]) -> None:
        self._context.write(json.dumps(document) + "\n")
        self._context.out.file.flush()


def _outputs(event: TurnEvent) -> dict[str, Any]:
    return dict(event.prediction.items()) if event.turn is None else event.turn.outputs


def _facts(turn: Turn) -> dict[str, Any]:
    return {
        "turn": turn.index,
        "usage": plain_value(turn.usage),
        "cost": turn.cost,
        "duration": turn.duration,
    }
