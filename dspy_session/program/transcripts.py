"""The conversation as readable text, for predictors that it does not fit as messages."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import dspy
from dspy.adapters.utils import format_field_value

from dspy_session.core.window import Exchange, Window
from dspy_session.program.markers import marked_text
from dspy_session.program.render_cache import Rendered, render_cache

__all__ = ["TRANSCRIPT", "told_at_once", "told_demos", "transcript", "with_transcript"]

Message = dict[str, Any]

TRANSCRIPT: Final = "The conversation so far, oldest first."
"""The description of the field that holds the text."""


def transcript(window: Window, added: Iterable[Mapping[str, Any]] = ()) -> str:
    """Return the conversation as readable text: a block per exchange, a line per field.

    Args:
        window: What the call sees.
        added: Messages that come after it.
    """
    view = window.view

    def render(exchange: Exchange) -> Rendered:
        return ({"role": "text", "content": _block(exchange.told(view))},)

    told = [message["content"] for (message,) in render_cache.of(("text", view), window, render)]
    return _numbered([*told, *(_block(dict(fields)) for fields in added)])


def told_at_once(adapter: dspy.Adapter, name: str, window: Window) -> list[Message]:
    """Return the conversation as text in one message, for a call that keeps its history field.

    Args:
        adapter: Formats the message.
        name: The name of the history field.
        window: What the call sees.
    """
    if not window:
        return []
    fields = {name: transcript(window)}
    content = adapter.format_user_message_content(_text_signature(name), fields)
    return [{"role": "user", "content": content}]


@functools.lru_cache(maxsize=16)
def _text_signature(name: str) -> type[dspy.Signature]:
    return dspy.Signature({name: (str, dspy.InputField())})


def told_demos(demos: Sequence[dspy.Example | Message], field: str) -> list[dspy.Example | Message]:
    """Return demos whose conversation is readable text; DSPy would show it as JSON.

    Args:
        demos: A predictor's demos; they are not changed.
        field: The history field.
    """
    return [
        demo
        if messages is None
        else {**dict(demo.items()), field: _numbered(map(_block, messages))}
        for demo in demos
        for messages in [_messages_of(demo.get(field))]
    ]


def _messages_of(history: Any) -> list[Message] | None:
    """The messages of a history, which in demos of a loaded program has become a dict."""
    if isinstance(history, dspy.History):
        return history.messages
    if isinstance(history, dict) and list(history) == ["messages"]:
        messages: list[Message] = history["messages"]
        return messages
    return None


def _numbered(blocks: Iterable[str]) -> str:
    blocks = list(blocks)
    numbered = (f"[{number}]\n{block}" for number, block in enumerate(blocks, start=1))
    return marked_text("\n\n".join(numbered), blocks)


def _block(fields: Message) -> str:
    text = "\n".join(f"{name}: {_as_text(value)}" for name, value in fields.items())
    return marked_text(text, fields)


_FIELDS: Final = dspy.Signature("text, values: list[Any] -> done").input_fields


def _as_text(value: Any) -> str:
    if type(value) is str:
        return value.replace("\n", "\n  ")
    try:
        text: str = format_field_value(_FIELDS["text"], value)
    except TypeError:  # of a list in a field of text, DSPy numbers items, but no numbers and None
        text = format_field_value(_FIELDS["values"], value)
    return text.replace("\n", "\n  ")


def with_transcript(
    messages: list[Message], signature: type[dspy.Signature], inputs: Mapping[str, Any]
) -> list[Message]:
    """Return the messages of a call with the conversation in them, if it came as text.

    Args:
        messages: What an adapter of one's own made. Not every such adapter shows every input: a
            template has the fields that its author wrote into it.
        signature: The signature of the call.
        inputs: The inputs of the call.

    Returns:
        The messages; where none of them has the text, it stands in front of the last user message.
    """
    fields: Mapping[str, Any] = signature.input_fields
    told = [n for n, info in fields.items() if info.json_schema_extra.get("desc") == TRANSCRIPT]
    text = str(inputs.get(told[0], "")) if told else ""
    if not text or any(_squeezed(text) in _squeezed(str(m.get("content"))) for m in messages):
        return messages
    text = f"{TRANSCRIPT}\n{text}"
    users = [position for position, m in enumerate(messages) if m.get("role") == "user"]
    if not users:
        return [*messages, {"role": "user", "content": text}]
    last = messages[users[-1]]
    content = last["content"]
    if isinstance(content, str):
        content = f"{text}\n\n{content}"
    else:
        content = [{"type": "text", "text": text}, *content]
    shown = {**last, "content": content}
    return [*messages[: users[-1]], shown, *messages[users[-1] + 1 :]]


def _squeezed(text: str) -> str:
    """The text without what indenting it, or writing it as JSON, adds."""
    return re.sub(r"\\n|[\s\\]", "", text)
