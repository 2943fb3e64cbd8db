"""Chat messages make turns: a fold, one message at a time.

    (pending, message)  --absorb-->  (pending', None)       it waits
                                     ((), Exchange)         it completed a turn

Rules:

- An assistant message without tool calls completes a turn: the user messages before it are the
  input, its text is the output. Until then messages wait in the state as `pending`: visible in the
  chat view, in no prompt and in no example.
- Messages that come singly and messages that come as a list go through the same function.
- A system message comes first, and once. It becomes the session's instructions.
- A call is answered before anything else is said; a result answers an open call.
- What was imported is exported as it came: `to_openai(from_messages(m)) == m`.

This module does not know which fields a program has: it is told (`ChatFields`). Ids come in as
arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from dspy_session.core.chat_messages import (
    SYSTEM_ROLES,
    ChatMessage,
    ChatToolCall,
    checked_message,
    joined_text,
    listed_messages,
    message_text,
    open_calls,
)
from dspy_session.core.chat_view import pair, state_messages, to_openai
from dspy_session.core.options import SessionOptions
from dspy_session.core.profile import as_instructions
from dspy_session.core.state import SessionState, start, visible_window
from dspy_session.core.step import refuse_history_field
from dspy_session.core.transitions import record
from dspy_session.core.turn import Run, Turn
from dspy_session.core.window import CHAT_MESSAGES, Exchange
from dspy_session.core.writes import instruct, write_pending
from dspy_session.errors import MessageError, OptionError

__all__ = [
    "ChatFields",
    "ChatMessage",
    "ChatToolCall",
    "absorb",
    "add_message",
    "add_messages",
    "as_chat_fields",
    "from_messages",
    "state_messages",
    "to_openai",
]

Pending = tuple[Mapping[str, Any], ...]
"""The messages that wait: unanswered user messages, tool calls, their results, in order."""


class ChatFields(msgspec.Struct, frozen=True):
    """Which fields of a turn are said by whom.

    Attributes:
        user: The input that holds what the user said.
        assistant: The output that holds what the assistant answered.

    Raises:
        OptionError: One of them is no field name, or both are the same.
    """

    user: str = "question"
    assistant: str = "answer"

    def __post_init__(self) -> None:
        """Check both names."""
        for role, name in (("user", self.user), ("assistant", self.assistant)):
            if not isinstance(name, str) or not name.isidentifier():
                raise OptionError(f"The {role}'s field must be a field name, not {name!r}.")
        if self.user == self.assistant:
            raise OptionError(f"{self.user!r} cannot be both the user's field and the assistant's.")


_USUAL: Final = ChatFields()


def as_chat_fields(given: ChatFields | Mapping[str, str], usual: ChatFields = _USUAL) -> ChatFields:
    """Return a field mapping as a value.

    Args:
        given: A value, or a mapping such as `{"user": "request", "assistant": "reply"}`.
        usual: Where a name comes from that a mapping leaves out.

    Raises:
        OptionError: It is neither, has other keys, or a name is no field name.
    """
    if isinstance(given, ChatFields):
        return given
    if not isinstance(given, Mapping) or not set(given) <= {"user", "assistant"}:
        raise OptionError(
            'fields must be a mapping such as {"user": "request", "assistant": "reply"}, '
            f"not {given!r}."
        )
    return msgspec.structs.replace(usual, **given)


_NO_OPTIONS: Final = SessionOptions()


def absorb(
    pending: Pending, message: Mapping[str, Any], fields: ChatFields = _USUAL
) -> tuple[Pending, Exchange | None]:
    """Take one message in: it waits, or it completes a turn.

    Args:
        pending: The messages that wait.
        message: A checked message, of any role but those of a system message.
        fields: Which fields the turn has.

    Returns:
        The messages that wait now, and the turn's exchange, if there is one.

    Raises:
        MessageError: It answers no open call, or comes while a call is open.

    Example:
        >>> pending, exchange = absorb((), {"role": "user", "content": "Hi"})
        >>> len(pending), exchange
        (1, None)
        >>> absorb(pending, {"role": "assistant", "content": "Hello."})
        ((), Exchange(inputs={'question': 'Hi'}, outputs={'answer': 'Hello.'}))
    """
    role, waiting = message["role"], open_calls(pending)
    if role == "tool":
        if message["tool_call_id"] not in waiting:
            raise MessageError(
                f"This is the result of the tool call {message['tool_call_id']!r}, but "
                f"{_which_wait(waiting)}. A result follows the assistant message that has its call."
            )
        return (*pending, message), None
    if waiting:
        raise MessageError(
            f"This is a message of the {role}, but {_which_wait(waiting)}. Add their results "
            "first, each as a message of role 'tool' with its tool_call_id."
        )
    if role == "user" or message.get("tool_calls"):
        return (*pending, message), None
    return (), _completed((*pending, message), fields)


def _which_wait(waiting: Mapping[str, str]) -> str:
    if not waiting:
        return "no tool call waits for one"
    calls = ", ".join(f"{id!r} ({name})" for id, name in waiting.items())
    return f"these tool calls wait for their results: {calls}"


def _completed(messages: Pending, fields: ChatFields) -> Exchange:
    asked = any(message["role"] == "user" for message in messages)
    inputs = {fields.user: joined_text(messages)} if asked else {}
    outputs = {fields.assistant: message_text(messages[-1])}
    derived = pair(inputs.get(fields.user), outputs[fields.assistant])
    if [list(m.items()) for m in messages] == [list(m.items()) for m in derived]:
        return Exchange(inputs, outputs)
    return Exchange(inputs, outputs, {CHAT_MESSAGES: [dict(message) for message in messages]})


def add_message(
    state: SessionState,
    message: Mapping[str, Any] | ChatMessage,
    fields: ChatFields = _USUAL,
    id: str = "",
    options: SessionOptions = _NO_OPTIONS,
) -> tuple[Turn | None, SessionState]:
    """Add one chat message to a conversation.

    Args:
        state: The conversation.
        message: A message in the OpenAI shape.
        fields: Which fields a turn has that it completes.
        id: The unique id of a turn that it completes.
        options: The session's options.

    Returns:
        The turn that it completed, if it did, and the new state.

    Raises:
        MessageError: It is no message, or cannot come here.
        HistoryError: A field has the name of the history field.

    Example:
        >>> _, state = add_message(SessionState(), {"role": "user", "content": "Hi"})
        >>> turn, state = add_message(state, {"role": "assistant", "content": "Hello."})
        >>> turn.outputs, len(state)
        ({'answer': 'Hello.'}, 1)
    """
    checked = checked_message(message)
    if checked["role"] in SYSTEM_ROLES:
        return None, _instructed(state, checked)
    pending, exchange = absorb(state.beside.pending, checked, fields)
    if exchange is None:
        return None, write_pending(state, pending)
    refuse_history_field(exchange.inputs, options, "the user's field")
    refuse_history_field(exchange.outputs, options, "the assistant's field")
    window = visible_window(state, options)
    return record(state, exchange, window, Run(id=id), options.max_stored_turns)


def _instructed(state: SessionState, message: Mapping[str, Any]) -> SessionState:
    if state.profile.system is not None:
        raise MessageError(
            f"This is a second message of the {message['role']}; a conversation has one. Join the "
            "texts of both, or set the session's instructions."
        )
    if state.instructions is not None:
        raise MessageError(
            f"This is a message of the {message['role']}, but the session has instructions "
            "already. Leave one of the two out."
        )
    if len(state) or state.seed or state.beside.pending:
        raise MessageError(
            f"This is a message of the {message['role']}, which must come first: there are other "
            "messages before it."
        )
    return instruct(state, as_instructions(message_text(message)), message)


def add_messages(
    state: SessionState,
    messages: Iterable[Mapping[str, Any] | ChatMessage],
    fields: ChatFields = _USUAL,
    ids: Callable[[], str] | None = None,
    options: SessionOptions = _NO_OPTIONS,
) -> tuple[tuple[Turn, ...], SessionState]:
    """Add chat messages to a conversation: all of them, or none.

    Args:
        state: The conversation.
        messages: Messages in the OpenAI shape, oldest first.
        fields: Which fields the turns have.
        ids: Makes the turns' unique ids; None for turns without.
        options: The session's options.

    Returns:
        The turns that were completed, and the new state.

    Raises:
        MessageError: One of them is no message, or cannot come where it does; the error names its
            position, counted from 0.
        HistoryError: A field has the name of the history field.
    """
    turns = []
    for position, message in enumerate(listed_messages(messages)):
        try:
            turn, state = add_message(state, message, fields, ids() if ids else "", options)
        except MessageError as error:
            raise MessageError(f"messages[{position}]: {error}") from error
        if turn is not None:
            turns.append(turn)
    return tuple(turns), state


def from_messages(
    messages: Iterable[Mapping[str, Any] | ChatMessage],
    *,
    fields: ChatFields | Mapping[str, str] | None = None,
    id: str | None = None,
    seed: bool = False,
    ids: Callable[[], str] | None = None,
) -> SessionState:
    """Return the conversation that chat messages are.

    Args:
        messages: Messages in the OpenAI shape, oldest first.
        fields: Which fields the turns have; None for `question` and `answer`.
        id: The session's id.
        seed: Whether the completed turns become the seed, which `reset` keeps and `turns` does not
            count; otherwise they are turns.
        ids: Makes the turns' unique ids; None for turns without.

    Raises:
        MessageError: There are none, or as in `add_messages`.
        OptionError: `fields` is no mapping of fields, or `id` no usable id.

    Example:
        >>> state = from_messages(
        ...     [
        ...         {"role": "user", "content": "Hi"},
        ...         {"role": "assistant", "content": "Hello."},
        ...         {"role": "user", "content": "Where is my order?"},
        ...     ]
        ... )
        >>> len(state), len(state.pending)
        (1, 1)
    """
    chosen = _USUAL if fields is None else as_chat_fields(fields)
    begun = start(id=id)
    turns, state = add_messages(begun, messages, chosen, ids)
    if state is begun:
        raise MessageError(
            "There are no chat messages; a conversation that begins empty is SessionState()."
        )
    if not seed:
        return state
    begun = msgspec.structs.replace(
        begun, seed=tuple(turn.exchange for turn in turns), profile=state.profile
    )
    return write_pending(begun, state.beside.pending) if state.beside.pending else begun
