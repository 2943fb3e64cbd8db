"""A conversation as chat messages: the view that applications show, and the OpenAI shape of it.

Rules:

- The order is: the instructions, the seed, the turns, the messages that wait.
- What was imported comes back as it came. A turn whose outputs were replaced shows the new ones.
- A tool call that was still open when a call of the session took its place shows no more.
- The steps of an agent stand between what the user said and the answer, as tool calls and results.
- A field that is left out shows as `[redacted]` where it is all that somebody said.
- A turn that was erased does not show at all.

This module does not know what DSPy's agents leave behind: `dspy_session.program` registers who
reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from dspy_session.core.chat_messages import (
    REDACTED,
    ChatMessage,
    ChatToolCall,
    checked_message,
    joined_text,
    message_text,
    open_calls,
    redacted,
)
from dspy_session.core.copies import private_copy
from dspy_session.core.state import SessionState
from dspy_session.core.turn import Turn
from dspy_session.core.window import CHAT_MESSAGES, WAITED_MESSAGES, Exchange
from dspy_session.errors import MessageError

if TYPE_CHECKING:
    from dspy_session.core.chat import ChatFields

__all__ = [
    "ToolUse",
    "messages_by_turn",
    "pair",
    "readable",
    "set_tool_steps",
    "state_messages",
    "to_openai",
]

Message = dict[str, Any]
Fields = Mapping[str, Any]

_STEPS: Final = "tool_calls"


class ToolUse(msgspec.Struct, frozen=True):
    """One call of a tool in an agent's run.

    Attributes:
        name: The tool.
        arguments: The arguments, as JSON text.
        result: What the tool returned, as text.
    """

    name: str
    arguments: str
    result: str


ToolSteps = Callable[[Fields], Iterable[Sequence[ToolUse]]]
"""From the details of a turn to the steps of the agent that ran: the tools called in each."""


def _no_steps(details: Fields) -> Iterable[Sequence[ToolUse]]:  # noqa: ARG001  # a ToolSteps
    return ()


_tool_steps: ToolSteps = _no_steps


def set_tool_steps(read: ToolSteps) -> None:
    """Say how the steps of agents are read; `dspy_session.program` registers what knows DSPy's.

    Args:
        read: From the details of a turn to the steps.
    """
    global _tool_steps
    _tool_steps = read


def state_messages(
    state: SessionState, fields: ChatFields | None = None, exclude: Collection[str] = ()
) -> tuple[ChatMessage, ...]:
    """Return a conversation as chat messages, as copies.

    Args:
        state: The conversation.
        fields: Which fields are said by whom. Where a turn has them, they are its messages' texts;
            otherwise the text is the only field there is, or a line for each.
        exclude: Fields that are left out, of turns, of the seed and of what waits (without `fields`
            nobody knows which fields that will be, so all of it is). `tool_calls` among them leaves
            out tool calls and their results.

    Example:
        >>> from dspy_session.core.state import start
        >>> [m.text for m in state_messages(start([{"question": "Hi", "answer": "Hello."}]))]
        ['Hi', 'Hello.']
    """
    return tuple(ChatMessage.of(message) for message in _Telling(fields, exclude).of(state))


def to_openai(
    state: SessionState, fields: ChatFields | None = None, exclude: Collection[str] = ()
) -> list[Message]:
    """Return a conversation as messages in the OpenAI shape; what was imported, as it came.

    Args:
        state: The conversation.
        fields: As in `state_messages`.
        exclude: As in `state_messages`.

    Example:
        >>> from dspy_session.core.state import start
        >>> to_openai(start([{"question": "Hi", "answer": "Hello."}]))
        [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello.'}]
    """
    return [private_copy(message) for message in _Telling(fields, exclude).of(state)]


def messages_by_turn(
    state: SessionState, fields: ChatFields | None = None, exclude: Collection[str] = ()
) -> tuple[list[Message], list[tuple[Turn, list[Message]]]]:
    """Return the messages of `to_openai` turn by turn, without those that wait.

    Args:
        state: The conversation.
        fields: As in `state_messages`.
        exclude: As in `state_messages`.

    Returns:
        The messages before the first turn, and each turn with its own.
    """
    telling = _Telling(fields, exclude)
    opening = [private_copy(message) for message in telling.opening(state)]
    return opening, [(turn, [private_copy(m) for m in telling.turn(turn)]) for turn in state]


def pair(said: str | None, answered: str | None) -> list[Message]:
    """Return a user message and an assistant message, without the one that is None.

    Args:
        said: What the user said.
        answered: What the assistant answered.
    """
    return [
        {"role": role, "content": text}
        for role, text in (("user", said), ("assistant", answered))
        if text is not None
    ]


def readable(value: Any) -> str:
    """Return a value as text: text as it is, JSON values as JSON.

    Args:
        value: Anything.
    """
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)


class _Telling:
    """How one conversation is told: by which fields, and without which."""

    def __init__(self, fields: ChatFields | None, exclude: Collection[str]) -> None:
        self.user = None if fields is None else fields.user
        self.assistant = None if fields is None else fields.assistant
        self.exclude = frozenset(exclude)

    def of(self, state: SessionState) -> Iterator[Message]:
        """The messages of a conversation; they may be its own."""
        yield from self.opening(state)
        for turn in state:
            yield from self.turn(turn)
        yield from self._as_came(
            state.beside.pending,
            self._hides([self.user] if self.user else self.exclude),
            self._hides([self.assistant] if self.assistant else self.exclude),
        )

    def opening(self, state: SessionState) -> Iterator[Message]:
        """What is told before the first turn: the instructions and the seed."""
        yield from _system(state)
        known = {name for turn in state for name in turn.exchange.shape[0]} if state.seed else set()
        for number, exchange in enumerate(state.seed):
            yield from self._exchange(exchange, *self._roles(exchange, known), f"seed_{number}")

    def turn(self, turn: Turn) -> Iterator[Message]:
        """What one turn tells; nothing, if it was erased."""
        exchange = turn.exchange
        if not exchange.erased:
            yield from self._exchange(exchange, exchange.inputs, exchange.outputs, str(turn.index))

    def _roles(self, exchange: Exchange, known: Collection[str]) -> tuple[Fields, Fields]:
        """Who said which fields of a seed, where inputs and outputs may stand side by side."""
        inputs, outputs = exchange.inputs, exchange.outputs
        if inputs or len(outputs) < 2:
            return inputs, outputs
        said = {name for name in outputs if name in known or name == self.user}
        said = said or {next(iter(outputs))}
        return (
            {name: value for name, value in outputs.items() if name in said},
            {name: value for name, value in outputs.items() if name not in said},
        )

    def _exchange(
        self, exchange: Exchange, inputs: Fields, outputs: Fields, key: str
    ) -> Iterator[Message]:
        details = {n: v for n, v in exchange.details.items() if n not in self.exclude}
        hidden = self._hides(inputs), self._hides(outputs)
        said, answered = self._text(inputs, self.user), self._text(outputs, self.assistant)
        came = _kept(details, CHAT_MESSAGES)
        if came:
            yield from self._as_came(came[:-1], *hidden)
            if hidden[1] or message_text(came[-1]) == answered:
                yield from self._as_came(came[-1:], *hidden)
            elif answered is not None:  # somebody gave the turn another answer
                yield {**came[-1], "content": answered}
            return
        waited = _without_open_calls(_kept(details, WAITED_MESSAGES))
        yield from self._as_came(waited, *hidden)
        if not (waited and _is_asked(joined_text(waited), inputs)):
            yield from pair(said, None)
        if _STEPS not in self.exclude:
            yield from _steps(details, key)
        yield from pair(None, answered)

    def _hides(self, names: Iterable[str]) -> bool:
        return not self.exclude.isdisjoint(names)

    def _text(self, values: Fields, field: str | None) -> str | None:
        """What these fields say, in one text; None if there are none."""
        chosen = {field: values[field]} if field is not None and field in values else values
        shown = {name: value for name, value in chosen.items() if name not in self.exclude}
        if not shown:
            return REDACTED if chosen else None
        texts = {name: readable(value) for name, value in shown.items()}
        if len(texts) == 1:
            return next(iter(texts.values()))
        return "\n".join(f"{name}: {text}" for name, text in texts.items())

    def _as_came(
        self, messages: Iterable[Fields], hide_user: bool, hide_assistant: bool
    ) -> Iterator[Message]:
        """Messages that were imported, without what is left out and whatever stands beside it."""
        for message in messages:
            is_step = message.get("tool_calls") or message["role"] == "tool"
            if not (is_step and _STEPS in self.exclude):
                yield redacted(message, hide_user, hide_assistant)


def _system(state: SessionState) -> Iterator[Message]:
    instructions, system = state.instructions, state.profile.system
    text = None if instructions is None else instructions.text
    if system is not None and text in (None, message_text(system)):
        yield dict(system)
    elif text:
        yield {"role": "system", "content": text}


def _is_asked(text: str, inputs: Fields) -> bool:
    return any(isinstance(value, str) and value == text for value in inputs.values())


def _kept(details: Fields, name: str) -> list[Message]:
    """The messages that a turn keeps; none if a detail of that name is something else."""
    try:
        return [checked_message(message) for message in details.get(name, ())]
    except (MessageError, TypeError):
        return []


def _without_open_calls(messages: list[Message]) -> list[Message]:
    """The messages up to a step whose results never all came, for nothing can follow on that."""
    if not open_calls(messages):
        return messages
    return messages[: max(at for at, message in enumerate(messages) if message["role"] != "tool")]


def _steps(details: Fields, key: str) -> Iterator[Message]:
    """The steps of an agent as messages; ids follow from the turn and the call's place in it."""
    number = 0
    for uses in _tool_steps(details):
        calls = [
            ChatToolCall(f"call_{key}_{number + place}", use.name, use.arguments)
            for place, use in enumerate(uses)
        ]
        number += len(uses)
        yield ChatMessage("assistant", tool_calls=tuple(calls)).to_dict()
        for call, use in zip(calls, uses, strict=True):
            result = ChatMessage("tool", use.result, tool_call_id=call.id, name=use.name)
            yield result.to_dict()
