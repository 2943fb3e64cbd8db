"""The part of a session that is a chat: its messages, and those that are added by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from dspy_session.attached import Attached
from dspy_session.branch import Branch
from dspy_session.conversation import Conversation
from dspy_session.core.chat import (
    ChatFields,
    ChatMessage,
    add_message,
    add_messages,
    state_messages,
    to_openai,
)
from dspy_session.core.state import SessionState
from dspy_session.core.turn import Turn
from dspy_session.errors import MessageError
from dspy_session.program.chat_fields import chat_fields, inferred_fields
from dspy_session.program.run import new_id

__all__ = ["Chatting"]

_Added = TypeVar("_Added")


class Chatting(Conversation, Branch):
    """The part of a session that is a chat; made by `Session`, not by hand."""

    _attached: Attached

    @property
    def messages(self) -> tuple[ChatMessage, ...]:
        """The conversation as chat messages: instructions, seed, turns, and what waits; copies."""
        return state_messages(self.state, self._shown_fields(), self._options.redact_fields)

    def to_messages(self) -> list[dict[str, Any]]:
        """Return the conversation as OpenAI-shape messages; what was imported as it came."""
        return to_openai(self.state, self._shown_fields(), self._options.redact_fields)

    def add_message(self, message: Mapping[str, Any] | ChatMessage) -> Turn | None:
        """Append one chat message by hand, in OpenAI's shape.

        A user message, a tool call or a tool result waits, visible in `messages` and in no prompt,
        until the assistant's answer makes a turn of it.

        Args:
            message: A dict with `role` and `content`, for example; it is kept as it came.

        Returns:
            The turn, if the message completed one.

        Raises:
            MessageError: It is no message, or none that can follow.
            CallError: The program's inputs and outputs do not say what a message's text is; see
                `message_fields`.
        """
        fields, options, id = self._message_fields(), self._options, new_id()
        return self._add(lambda state: add_message(state, message, fields, id, options))

    def add_messages(self, messages: Iterable[Mapping[str, Any] | ChatMessage]) -> tuple[Turn, ...]:
        """Append chat messages by hand, all of them or, if one cannot follow, none.

        Args:
            messages: As for `add_message`, in their order.

        Returns:
            The turns that they completed.

        Raises:
            MessageError: As for `add_message`.
            CallError: As for `add_message`.
        """
        fields, options, given = self._message_fields(), self._options, _listed(messages)
        return self._add(lambda state: add_messages(state, given, fields, new_id, options))

    def _add(self, add: Callable[[SessionState], tuple[_Added, SessionState]]) -> _Added:
        """Add messages, but no system message that a function of the state would stand in for."""
        self._check_room()

        def added(state: SessionState) -> tuple[_Added, SessionState]:
            turns, after = add(state)
            if after.profile is not state.profile and self._attached.instructions is not None:
                raise MessageError(
                    "There is a system message, but the session has instructions already: a "
                    "function of the state. Leave one of the two out."
                )
            return turns, after

        return self._move(added)

    def _message_fields(self) -> ChatFields:
        """Which input and which output the text of a chat message is."""
        return self._attached.message_fields or chat_fields(self.module, self._options)

    def _shown_fields(self) -> ChatFields | None:
        """The same, if the program says."""
        return self._attached.message_fields or inferred_fields(self.module, self._options)


def _listed(messages: Any) -> Any:
    """The messages as something that can be gone through again, if they can be gone through."""
    return list(messages) if isinstance(messages, Iterator) else messages
