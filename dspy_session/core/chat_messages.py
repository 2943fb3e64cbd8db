"""One chat message in the OpenAI shape: what makes one, and what it says.

Rules:

- A message from outside is kept as it came: unknown keys (a timestamp, a model), the order of keys,
  the argument text of tool calls, `"content": null`. Only what has no meaning is refused.
- A message holds JSON values and nothing else.
- What is handed out is a copy.

This module does not know how messages make turns: see `dspy_session.core.chat`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from dspy_session.core.copies import private_copy
from dspy_session.errors import MessageError

__all__ = [
    "REDACTED",
    "SYSTEM_ROLES",
    "ChatMessage",
    "ChatToolCall",
    "checked_message",
    "joined_text",
    "listed_messages",
    "message_text",
    "open_calls",
    "redacted",
]

REDACTED: Final = "[redacted]"
"""What stands in the place of a text that is left out."""

SYSTEM_ROLES: Final = ("system", "developer")
"""The roles of a message that instructs the assistant; newer models call it `developer`."""
_ROLES: Final = ("user", "assistant", *SYSTEM_ROLES, "tool")
_MAY_BE_SILENT: Final = ("assistant", "tool")
_DEEPEST: Final = 100


class ChatToolCall(msgspec.Struct, frozen=True):
    """One tool call of an assistant message.

    Attributes:
        id: What the message with the result refers to.
        name: The tool.
        arguments: The arguments as JSON text, as the model wrote it.
    """

    id: str
    name: str
    arguments: str


class ChatMessage(msgspec.Struct, frozen=True):
    """One message of a conversation, as chat applications show them; a copy, not a handle.

    Attributes:
        role: `"user"`, `"assistant"`, `"system"`, `"developer"` or `"tool"`.
        text: What it says; empty where it only calls tools.
        tool_calls: The tools that an assistant message calls.
        tool_call_id: Which call the result in a tool message belongs to.
        name: The name in the message, if it has one: of a tool, or of who speaks.
        raw: The message as it was imported, if it says more than the attributes above; read
            `to_dict()` instead.

    Example:
        >>> ChatMessage("user", "Hi").to_dict()
        {'role': 'user', 'content': 'Hi'}
    """

    role: str
    text: str = ""
    tool_calls: tuple[ChatToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    raw: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> ChatMessage:
        """Return the view on a message in the OpenAI shape.

        Args:
            message: A message that `checked_message` let pass.
        """
        calls = message.get("tool_calls") or ()
        made = cls(
            role=message["role"],
            text=message_text(message),
            tool_calls=tuple(
                ChatToolCall(c["id"], c["function"]["name"], c["function"]["arguments"])
                for c in calls
            ),
            tool_call_id=message.get("tool_call_id"),
            name=message.get("name"),
        )
        if json.dumps(made.to_dict()) == json.dumps(message):  # the order of keys counts
            return made
        return msgspec.structs.replace(made, raw=private_copy(dict(message)))

    def to_dict(self) -> dict[str, Any]:
        """Return the message in the OpenAI shape; what was imported, as it came."""
        if self.raw is not None:
            raw: dict[str, Any] = private_copy(dict(self.raw))
            return raw
        message: dict[str, Any] = {"role": self.role}
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            message["name"] = self.name
        message["content"] = self.text
        if self.tool_calls:
            message["content"] = self.text or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.tool_calls
            ]
        return message


def message_text(message: Mapping[str, Any]) -> str:
    """Return what a checked message says: its content, the parts of it, or its refusal.

    Args:
        message: A message that `checked_message` let pass.
    """
    content = message.get("content")
    if content is None:
        content = message.get("refusal")
    if isinstance(content, list):
        return "\n".join(part.get("text", part.get("refusal")) for part in content)
    return content if isinstance(content, str) else ""


def joined_text(messages: Iterable[Mapping[str, Any]]) -> str:
    """Return what the user says in messages: the texts of their messages, a blank line between.

    Args:
        messages: Checked messages; those of other roles count nothing.
    """
    return "\n\n".join(message_text(m) for m in messages if m["role"] == "user")


def redacted(
    message: Mapping[str, Any], user: bool = True, assistant: bool = True
) -> dict[str, Any]:
    """Return a message without its text and whatever stands beside it, if that is to be left out.

    The tools that an assistant message calls stay, and so do results.

    Args:
        message: A message that `checked_message` let pass.
        user: Whether what the user says is left out.
        assistant: Whether what the assistant says is.
    """
    role, calls = message["role"], message.get("tool_calls")
    if not (role == "user" and user) and not (role == "assistant" and assistant):
        return dict(message)
    content = REDACTED if message_text(message) else None
    if calls:
        return {"role": role, "content": content, "tool_calls": calls}
    return {"role": role, "content": REDACTED}


def open_calls(messages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the tool calls that have no result yet: names by id.

    Args:
        messages: Checked messages in order, of which each but the last call has its results.
    """
    answered = set()
    for message in reversed(messages):
        if message["role"] != "tool":
            calls = message.get("tool_calls") or ()
            return {c["id"]: c["function"]["name"] for c in calls if c["id"] not in answered}
        answered.add(message["tool_call_id"])
    return {}


def listed_messages(given: Any) -> Iterable[Any]:
    """Return messages as they came, if they are several things and not one.

    Args:
        given: What should be chat messages.

    Raises:
        MessageError: It cannot be gone through, or is one text or one dict.
    """
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        hint = "; of a record with messages, pass those" if isinstance(given, Mapping) else ""
        raise MessageError(
            f"Chat messages must be a list of dicts, not {type(given).__name__}{hint}."
        )
    return given


def checked_message(given: Mapping[str, Any] | ChatMessage) -> dict[str, Any]:
    """Return a copy of a message, if it is one.

    Args:
        given: A message in the OpenAI shape.

    Raises:
        MessageError: It is no mapping, has no role or an unknown one, says nothing that a turn
            could hold, has malformed tool calls, or holds a value that is not JSON.

    Example:
        >>> checked_message({"role": "user", "content": "Hi", "timestamp": 5})
        {'role': 'user', 'content': 'Hi', 'timestamp': 5}
    """
    if isinstance(given, ChatMessage):
        given = given.to_dict()
    if not isinstance(given, Mapping):
        hint = "; pass its model_dump()" if hasattr(given, "model_dump") else ""
        raise MessageError(
            'A chat message must be a dict such as {"role": "user", "content": "Hi"}, '
            f"not {type(given).__name__}{hint}."
        )
    message: dict[str, Any] = _json(given, "message", 0)
    role = message.get("role")
    if role not in _ROLES:
        raise MessageError(f"{_role_complaint(message)} The roles are: {', '.join(_ROLES)}.")
    _check_content(message, role)
    _check_calls(message, role)
    if role == "tool" and not _is_name(message.get("tool_call_id")):
        raise MessageError(
            "A tool message must have the tool_call_id of the call that it is the result of, "
            f"not {message.get('tool_call_id')!r}."
        )
    return message


def _role_complaint(message: Mapping[str, Any]) -> str:
    if "role" not in message:
        hint = " A ShareGPT record is read with from_sharegpt." if "from" in message else ""
        return f"A chat message must have a role; this one has the keys {list(message)}.{hint}"
    if message["role"] == "function":
        return (
            "The role 'function' is of an older shape: make it 'tool', with the tool_call_id of "
            "the call."
        )
    return f"A chat message cannot have the role {message['role']!r}."


def _check_content(message: Mapping[str, Any], role: str) -> None:
    content = message.get("content")
    if isinstance(content, str) or (content is None and role in _MAY_BE_SILENT):
        return
    if not isinstance(content, list):
        came = repr(content) if content is None else type(content).__name__
        raise MessageError(
            f"The content of this {role} message must be text or a list of text parts, not {came}."
        )
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind not in ("text", "refusal") or not isinstance(part.get(kind), str):
            raise MessageError(
                f"content[{number}] of this {role} message is {kind!r}; only text parts such as "
                '{"type": "text", "text": "Hi"} become part of a turn. Images and other values '
                "are inputs of a program: record that turn with add_turn, for example with a "
                "dspy.Image among its inputs."
            )


def _check_calls(message: Mapping[str, Any], role: str) -> None:
    if message.get("function_call") is not None:
        raise MessageError(
            "function_call is of an older shape: write it as tool_calls, a list of "
            f"{_CALL_SHAPE}, with a result in a message of role 'tool'."
        )
    calls = message.get("tool_calls")
    if not calls and (calls is None or isinstance(calls, list)):
        return
    if role != "assistant":
        raise MessageError(f"Only an assistant message can have tool_calls, not a {role} message.")
    if not isinstance(calls, list):
        raise MessageError(f"tool_calls must be a list, not {type(calls).__name__}.")
    for number, call in enumerate(calls):
        complaint = _call_complaint(call)
        if complaint:
            raise MessageError(f"tool_calls[{number}] {complaint}; a call is {_CALL_SHAPE}.")
    ids = [call["id"] for call in calls]
    if len(set(ids)) < len(ids):
        raise MessageError(f"The tool_calls of one message must have different ids, not {ids}.")


_CALL_SHAPE: Final = (
    '{"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}'
)


def _call_complaint(call: Any) -> str:
    """What is wrong with a tool call; empty if nothing is."""
    if not isinstance(call, dict):
        return f"must be a dict, not {type(call).__name__}"
    if not _is_name(call.get("id")):
        return f"must have an id, not {call.get('id')!r}"
    function = call.get("function")
    if call.get("type", "function") != "function" or not isinstance(function, dict):
        return f"must be a call of a function, not of type {call.get('type')!r}"
    if not _is_name(function.get("name")):
        return f"must name its function, not {function.get('name')!r}"
    if not isinstance(function.get("arguments"), str):
        came = type(function.get("arguments")).__name__
        return f"must have its arguments as JSON text (json.dumps writes it), not as {came}"
    return ""


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _json(value: Any, where: str, depth: int) -> Any:
    """A copy of a value that is JSON; its mappings become dicts and its sequences lists."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float and math.isfinite(value):
        return value
    if depth > _DEEPEST:
        raise MessageError(f"A chat message is nested more than {_DEEPEST} levels deep.")
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise MessageError(f"{where} of a chat message has the key {key!r}: no text.")
        return {str.__str__(k): _json(v, f"{where}[{k!r}]", depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item, f"{where}[{n}]", depth + 1) for n, item in enumerate(value)]
    came = repr(value) if isinstance(value, float) else type(value).__name__
    raise MessageError(f"{where} of a chat message must be a JSON value, not {came}.")
