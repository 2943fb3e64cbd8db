"""Prompts as values: what the predictors of a program would send, and files of it.

A file holds each message once, and of each prompt what the one before it of that predictor has not.
So its size is linear in a conversation, though each of its prompts repeats those before. This
module knows nothing of DSPy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from dspy_session.errors import FormatError
from dspy_session.files import AnyPath, write_whole

__all__ = ["Prompt", "Prompts", "TurnPrompts"]

_KIND: Final = "dspy-session-prompts"
_VERSION: Final = 1


class Prompt(msgspec.Struct, frozen=True):
    """What one call of a predictor would send.

    Attributes:
        predictor: Its path in the program; the class in parentheses where it is none of the
            program's own.
        messages: The messages, as JSON data.
        settings: What goes beside them (`temperature`, `response_format`, `tools`, ...).
        placeholders: Outputs of earlier calls of the turn that are not recorded, such as
            `"self.plan.steps"`. Where this prompt shows one, it shows its name.
    """

    predictor: str
    messages: tuple[dict[str, Any], ...]
    settings: dict[str, Any] = {}
    placeholders: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """The prompt as lines of text: each message under its role, then the settings."""
        lines: list[str] = []
        for message in self.messages:
            rest = {name: part for name, part in message.items() if name not in ("role", "content")}
            lines.append(f"## {message.get('role')}")
            lines += _lines(message.get("content"))
            if rest:
                lines += _lines(rest)
        if self.settings:
            lines += ["## settings", *_lines(self.settings)]
        return lines


class TurnPrompts(msgspec.Struct, frozen=True):
    """The prompts of one turn.

    Attributes:
        session: The id of the conversation, or its number among those that were rendered.
        turn: The turn's absolute index.
        prompts: What would be sent, in order.
        unrendered: Why there may be more, which could not be rendered; empty if there is no more.
    """

    session: str
    turn: int
    prompts: tuple[Prompt, ...] = ()
    unrendered: str = ""


class Prompts(msgspec.Struct, frozen=True):
    """The prompts of recorded conversations, rendered anew.

    Attributes:
        turns: Turn by turn.
        predictors: A digest of the signature and the demos of each predictor, by path.
        adapter: The class of the adapter.
        dspy: The version of DSPy.
    """

    turns: tuple[TurnPrompts, ...]
    predictors: dict[str, str] = {}
    adapter: str = ""
    dspy: str = ""

    @property
    def unrendered(self) -> tuple[TurnPrompts, ...]:
        """The turns that could not be rendered to their end."""
        return tuple(turn for turn in self.turns if turn.unrendered)

    def to_dict(self) -> dict[str, Any]:
        """Return the prompts as JSON data, each message once."""
        writing = _Writing()
        turns = [
            {
                "session": turn.session,
                "turn": turn.turn,
                "prompts": [writing.wire(prompt) for prompt in turn.prompts],
                **({"unrendered": turn.unrendered} if turn.unrendered else {}),
            }
            for turn in self.turns
        ]
        return {
            "kind": _KIND,
            "version": _VERSION,
            "dspy": self.dspy,
            "adapter": self.adapter,
            "predictors": self.predictors,
            "turns": turns,
            "messages": [json.loads(message) for message in writing.messages],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Prompts:
        """Return the prompts that `to_dict` wrote.

        Args:
            data: What it returned.

        Raises:
            FormatError: It is something else, or from a newer version.
        """
        if not isinstance(data, Mapping) or data.get("kind") != _KIND:
            raise FormatError("Expected prompts that were saved, but this is something else.")
        if data.get("version") != _VERSION:
            raise FormatError(
                f"These prompts are of version {data.get('version')!r}; this library reads version "
                f"{_VERSION}. Render and save them again."
            )
        try:
            reading = _Reading(data["messages"])
            turns = tuple(
                TurnPrompts(
                    turn["session"],
                    turn["turn"],
                    tuple(map(reading.prompt, turn["prompts"])),
                    turn.get("unrendered", ""),
                )
                for turn in data["turns"]
            )
            return cls(turns, dict(data["predictors"]), data["adapter"], data["dspy"])
        except (LookupError, TypeError, ValueError) as error:
            raise FormatError(
                f"These prompts are damaged: {error!r}. Render and save them again."
            ) from error

    def save(self, path: AnyPath) -> None:
        """Write the prompts to a JSON file, whole or not at all.

        Args:
            path: The file; the folder must exist.

        Raises:
            OSError: The file cannot be written.
        """
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=1)
        write_whole(path, f"{text}\n".encode("utf-8", "surrogatepass"))

    @classmethod
    def load(cls, path: AnyPath) -> Prompts:
        """Return the prompts that a file holds.

        Args:
            path: A file that `save` wrote.

        Raises:
            FormatError: It is another kind of file.
            OSError: It cannot be read.
        """
        try:
            data = json.loads(Path(path).read_bytes().decode("utf-8", "surrogatepass"))
        except ValueError as error:
            raise FormatError(f"{os.fspath(path)!r} is no JSON file: {error}.") from error
        try:
            return cls.from_dict(data)
        except FormatError as error:
            raise FormatError(f"Cannot load {os.fspath(path)!r}. {error}") from error


def _lines(content: Any) -> list[str]:
    if isinstance(content, str):
        return content.splitlines()
    return json.dumps(content, ensure_ascii=False, indent=1).splitlines()


class _Writing:
    """Writes prompts: each message once, of each prompt only what its predecessor has not."""

    def __init__(self) -> None:
        self.messages: dict[str, int] = {}
        self._numbers: dict[int, int] = {}
        self._before: dict[str, list[int]] = {}

    def wire(self, prompt: Prompt) -> dict[str, Any]:
        numbers = [self._number(message) for message in prompt.messages]
        before = self._before.get(prompt.predictor, [])
        self._before[prompt.predictor] = numbers
        same = next(
            (at for at, pair in enumerate(zip(before, numbers, strict=False)) if len({*pair}) > 1),
            min(len(before), len(numbers)),
        )
        wire: dict[str, Any] = {"predictor": prompt.predictor}
        if same:
            wire["same"] = same
        wire["messages"] = numbers[same:]
        if prompt.settings:
            wire["settings"] = prompt.settings
        if prompt.placeholders:
            wire["placeholders"] = list(prompt.placeholders)
        return wire

    def _number(self, message: dict[str, Any]) -> int:
        number = self._numbers.get(id(message))  # prompts of one rendering share their messages
        if number is None:
            text = json.dumps(message, ensure_ascii=False)
            number = self._numbers[id(message)] = self.messages.setdefault(text, len(self.messages))
        return number


class _Reading:
    """Reads what `_Writing` wrote."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self._messages = messages
        self._before: dict[str, tuple[dict[str, Any], ...]] = {}

    def prompt(self, wire: Mapping[str, Any]) -> Prompt:
        predictor, same = wire["predictor"], wire.get("same", 0)
        before = self._before.get(predictor, ())
        if not 0 <= same <= len(before):
            raise IndexError(f"a prompt begins with {same} messages of one that has {len(before)}")
        messages = (*before[:same], *(self._messages[number] for number in wire["messages"]))
        self._before[predictor] = messages
        settings, placeholders = wire.get("settings", {}), wire.get("placeholders", ())
        return Prompt(predictor, messages, dict(settings), tuple(placeholders))
