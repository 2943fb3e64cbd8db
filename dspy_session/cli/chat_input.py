"""Where the lines of a chat come from, and which inputs of a program they become."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TextIO

import msgspec

from dspy_session.cli.ending import Usage
from dspy_session.pictures.values import unbroken
from dspy_session.program.inputs import ProgramInput

__all__ = ["Lines", "Piped", "Questions", "Typed"]


class Lines(Protocol):
    """Where the lines of a chat come from.

    Attributes:
        live: Whether a person types them.
    """

    live: bool

    def line(self, prompt: str) -> str | None:
        """Return the next line without its end; None when there are no more."""


class Piped:
    """The lines of a file or a pipe.

    Args:
        stream: Where they come from; line ends of Windows and a mark at its beginning are no part
            of them.
    """

    live = False

    def __init__(self, stream: TextIO) -> None:
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            with contextlib.suppress(ValueError, OSError):  # something was read already
                reconfigure(errors="replace")
        self._lines = iter(stream)
        self._begun = False

    def line(self, prompt: str) -> str | None:  # noqa: ARG002  # nobody reads one
        """Return the next line.

        Args:
            prompt: What a person would be shown.
        """
        found = next(self._lines, None)
        if found is not None and not self._begun:
            found = found.removeprefix("\ufeff")
        self._begun = True
        return None if found is None else found.rstrip("\r\n")


class Typed:
    """The lines that a person types, with the keys of readline where there is one.

    Args:
        remembered: Earlier messages, which the arrow keys bring back.
    """

    live = True

    def __init__(self, remembered: Iterable[str] = ()) -> None:
        with contextlib.suppress(ImportError):
            import readline  # noqa: PLC0415  # Windows has none, and it acts when imported

            for text in remembered:
                readline.add_history(unbroken(text))

    def line(self, prompt: str) -> str | None:
        """Return the next line.

        Args:
            prompt: What the person is shown.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        while True:
            try:
                return input(prompt)
            except EOFError:
                _end_line()
                return None
            except KeyboardInterrupt:
                _end_line()
                raise
            except UnicodeDecodeError:
                continue  # half of a character


def _end_line() -> None:
    """What comes after a prompt that nobody answered has a line of its own."""
    sys.stdout.write("\n")
    sys.stdout.flush()


# --- from a line to inputs ------------------------------------------------------------------------


class Questions(msgspec.Struct, frozen=True):
    """Which inputs a message and its companions become.

    Attributes:
        message: The input that a line is.
        fixed: Inputs that are the same in every turn.
        asked: The other inputs that the program needs.
    """

    message: ProgramInput
    fixed: dict[str, Any] = {}
    asked: tuple[ProgramInput, ...] = ()

    @classmethod
    def of(
        cls,
        inputs: Iterable[ProgramInput],
        fixed: Mapping[str, Any],
        user: str | None,
        live: bool,
    ) -> Questions:
        """Return how the inputs of a program are asked for.

        Args:
            inputs: The inputs.
            fixed: Those that are the same in every turn.
            user: The input that is what a user says, if the program tells; otherwise it is the
                first one that is not fixed.
            live: Whether there is a person to ask for the others.

        Raises:
            Usage: There is no such input, or nothing to say, or nobody to ask.
        """
        known = {each.name: each for each in inputs}
        for name in fixed:
            if known and name not in known:
                raise Usage(f"The program has no input {name!r}; it has: {', '.join(known)}.")
        free = [each for name, each in known.items() if name not in fixed]
        if not free:
            raise Usage("The program has no input left that a message could be.")
        first = next((each for each in free if each.required), free[0])
        message = next((each for each in free if each.name == user), first)
        asked = tuple(each for each in free if each is not message and each.required)
        if asked and not live:
            names = ", ".join(f"--input {each.name}=..." for each in asked)
            raise Usage(f"A line is the input {message.name!r}. Give the others, too: {names}.")
        return cls(message, dict(fixed), asked)

    def inputs(self, line: str, lines: Lines) -> dict[str, Any] | None:
        """Return the inputs of a turn, and ask for those that are missing.

        Args:
            line: The message.
            lines: Whom to ask.

        Returns:
            The inputs; None if nobody answers.
        """
        values = {**self.fixed, self.message.name: _value(self.message, line)}
        for each in self.asked:
            answer = lines.line(f"{each.name}: ")
            if answer is None:
                return None
            values[each.name] = _value(each, answer)
        return values


def _value(wanted: ProgramInput, text: str) -> Any:
    """A typed text as the value of an input: JSON where it is not to be text."""
    if wanted.annotation is str:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
