"""Rendering past turns into messages: once each, with the user's own adapter.

Most of a long call's cost in DSPy is rendering old messages again. A turn never changes, so its
messages are kept, by adapter, signature and view, in a bounded cache that can be dropped at any
time (`clear_render_cache`): dropping it changes no byte of any prompt.

A *rendering adapter* is the user's adapter under a subclass made on the fly, which overrides
`format_conversation_history` to use that cache. Adapters that render history in a way of their own
keep doing so.
"""

from __future__ import annotations

import dataclasses
import re
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Final

import dspy
import pydantic
from dspy.adapters._legacy_type_markers import _split_legacy_custom_type_text_to_blocks
from dspy.adapters.types.base_type import CUSTOM_TYPE_START_IDENTIFIER

from dspy_session.core.window import Exchange, View, Window

__all__ = ["Conversation", "clear_render_cache", "render_counts", "rendering_adapter", "transcript"]

Message = dict[str, Any]


class Conversation:
    """What stands in a call's inputs as the history: a window, rendered only when asked.

    Adapters that know nothing of it find the `messages` of a `dspy.History`.
    """

    def __init__(self, window: Window) -> None:
        self.window = window

    @property
    def messages(self) -> list[Message]:
        """The past exchanges as dicts of field values."""
        return self.window.messages()


class _OneMessage:
    def __init__(self, fields: Message) -> None:
        self.messages = [fields]


# --- the cache ------------------------------------------------------------------------------------


class _RenderCache:
    """Rendered messages by exchange, bounded by their length in characters.

    Two generations instead of an exact order of use: when the young one is full it becomes the old
    one, and the old one is dropped; what is read from the old one moves to the young one. Entries
    vanish with their exchange.
    """

    LIMIT: Final = 16_000_000  # characters in one generation

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self.clear()

    def clear(self) -> None:
        self._young: dict[Any, _Table] = {}
        self._old: dict[Any, _Table] = {}
        self._size = 0
        self.rendered = 0
        self.reused = 0

    def table(self, key: Any) -> tuple[_Table, _Table | None]:
        """The young and the old entries for one adapter, signature and view."""
        with self._mutex:
            young = self._young.get(key)
            if young is None:
                young = self._young[key] = weakref.WeakKeyDictionary()
            return young, self._old.get(key)

    def grew(self, messages: tuple[Message, ...]) -> None:
        size = sum(len(m["content"]) for m in messages if isinstance(m.get("content"), str)) + 200
        with self._mutex:
            self._size += size
            if self._size > self.LIMIT:
                self._old, self._young, self._size = self._young, {}, 0


_Table = weakref.WeakKeyDictionary[Exchange, tuple[Message, ...]]
_cache = _RenderCache()


def clear_render_cache() -> None:
    """Drop every rendered message that is kept; the next calls render what they need again."""
    _cache.clear()


def render_counts() -> tuple[int, int]:
    """Return how many exchanges were rendered and how many reused since the cache was cleared."""
    return _cache.rendered, _cache.reused


# --- the rendering adapter ------------------------------------------------------------------------


class _Rendering:
    """The methods of a rendering adapter; `type(...)` mixes them into the user's adapter class."""

    def format_conversation_history(
        self, signature: type[dspy.Signature], history_field_name: str, inputs: dict[str, Any]
    ) -> list[Message]:
        """Return the past exchanges as messages, from the cache where it has them."""
        given = inputs.get(history_field_name)
        if not isinstance(given, Conversation):
            messages: list[Message] = super().format_conversation_history(  # type: ignore[misc]
                signature, history_field_name, inputs
            )
            return messages
        del inputs[history_field_name]
        return list(self._messages_of(signature, history_field_name, given.window))

    def _messages_of(
        self, signature: type[dspy.Signature], name: str, window: Window
    ) -> Iterator[Message]:
        key = _cache_key(self, signature, window.view)
        if key is None:
            for exchange in window:
                yield from self._render(signature, name, exchange, window.view)
            return
        young, old = _cache.table(key)
        for exchange in window:
            messages = young.get(exchange)
            if messages is None:
                messages = old.get(exchange) if old is not None else None
                if messages is None:
                    messages = self._render(signature, name, exchange, window.view)
                    _cache.rendered += 1
                young[exchange] = messages
                _cache.grew(messages)
            else:
                _cache.reused += 1
            for message in messages:
                yield message.copy()

    def _render(
        self, signature: type[dspy.Signature], name: str, exchange: Exchange, view: View
    ) -> tuple[Message, ...]:
        """Render one exchange: the user text from the full signature, the rest from what it has."""
        fields = exchange.shown(view)
        outputs = signature.output_fields
        if "output" in fields and len(outputs) == 1 and not any(n in fields for n in outputs):
            fields[next(iter(outputs))] = fields.pop("output")
        present = signature
        for missing in [n for n in outputs if n not in fields]:
            present = present.delete(missing)
        messages = self._rendered_by_dspy(present, name, fields)
        if present is not signature and messages and messages[0]["role"] == "user":
            content = self.format_user_message_content(signature, fields, main_request=True)
            messages[0] = {**messages[0], "content": content}
        return tuple(messages)

    def _rendered_by_dspy(
        self, signature: type[dspy.Signature], name: str, fields: Message
    ) -> list[Message]:
        messages: list[Message] = super().format_conversation_history(  # type: ignore[misc]
            signature, name, {name: _OneMessage(fields)}
        )
        return messages

    def format_user_message_content(
        self, signature: type[dspy.Signature], inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Render user text; a user's own text that looks like a DSPy type marker stays text."""
        content = super().format_user_message_content(  # type: ignore[misc]
            signature, inputs, *args, **kwargs
        )
        if not isinstance(content, str) or CUSTOM_TYPE_START_IDENTIFIER not in content:
            return content
        stand_in = _unused_stand_in(content)
        disarmed = {name: _disarm(value, stand_in) for name, value in inputs.items()}
        safe: str = super().format_user_message_content(  # type: ignore[misc]
            signature, disarmed, *args, **kwargs
        )
        if stand_in not in safe:
            return content  # every marker is DSPy's own
        return [_rearm(block, stand_in) for block in _split_legacy_custom_type_text_to_blocks(safe)]

    def _make_json_adapter_fallback(self) -> dspy.Adapter:
        fallback: dspy.Adapter = super()._make_json_adapter_fallback()  # type: ignore[misc]
        return rendering_adapter(fallback)


_classes: dict[type, type] = {}
_MOST_CLASSES: Final = 64


def rendering_adapter(adapter: dspy.Adapter) -> dspy.Adapter:
    """Return the same adapter, sharing its attributes, with history rendered once.

    Args:
        adapter: The user's adapter.

    Returns:
        An instance of a subclass of the adapter's class under the same name; the adapter itself if
        it is one already, or no subclass of `dspy.Adapter`.
    """
    kind = type(adapter)
    if not isinstance(adapter, dspy.Adapter) or issubclass(kind, _Rendering):
        return adapter
    rendering = _classes.get(kind)
    if rendering is None:
        rendering = _rendering_class(kind)
        if len(_classes) >= _MOST_CLASSES:
            _classes.clear()
        _classes[kind] = rendering
    twin: dspy.Adapter = object.__new__(rendering)
    twin.__dict__ = vars(adapter)
    return twin


def _rendering_class(kind: type[dspy.Adapter]) -> type:
    body: dict[str, Any] = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    made = type(kind.__name__, (_bases_for(kind), kind), body)
    # DSPy wraps format and parse of every subclass to fire callbacks; ours would fire them twice.
    for name in ("format", "parse"):
        if name in vars(made):
            delattr(made, name)
    return made


def _bases_for(kind: type[dspy.Adapter]) -> type:
    """The overrides to mix in: not of history rendering where the adapter has its own."""
    if kind.format_conversation_history is dspy.Adapter.format_conversation_history:
        return _Rendering
    return _OwnHistory


class _OwnHistory(_Rendering):
    """For adapters that render history in their own way: they get plain messages."""

    def format_conversation_history(
        self, signature: type[dspy.Signature], history_field_name: str, inputs: dict[str, Any]
    ) -> list[Message]:
        """Let the adapter render the messages as it does."""
        given = inputs.get(history_field_name)
        if isinstance(given, Conversation):
            inputs[history_field_name] = dspy.History(messages=given.messages)
        messages: list[Message] = super(_Rendering, self).format_conversation_history(  # type: ignore[misc]
            signature, history_field_name, inputs
        )
        return messages


_BUILT_IN: Final = (dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter)


def _cache_key(adapter: Any, signature: type[dspy.Signature], view: View) -> Any:
    """What a rendered exchange depends on; None where that cannot be told, so nothing is kept."""
    kind = type(adapter).__mro__[2] if isinstance(adapter, _Rendering) else type(adapter)
    if isinstance(adapter, _OwnHistory):
        kind = type(adapter).__mro__[3]
    attributes = {n: v for n, v in vars(adapter).items() if n != "callbacks"}
    attributes["native_response_types"] = tuple(attributes.get("native_response_types", ()))
    fields = tuple(
        (name, info.annotation, *sorted(info.json_schema_extra.items()))
        for name, info in signature.fields.items()
    )
    key = (kind, tuple(sorted(attributes.items())), signature.instructions, fields, view)
    try:
        hash(key)
    except TypeError:
        return None
    return key


# --- markers --------------------------------------------------------------------------------------


def _unused_stand_in(text: str) -> str:
    number = 0
    while (stand_in := f"\ue000{number}\ue000") in text:
        number += 1
    return stand_in


def _disarm(value: Any, stand_in: str) -> Any:
    """Replace DSPy's marker inside text by a stand-in; DSPy's own types are left as they are."""
    if isinstance(value, str):
        return value.replace(CUSTOM_TYPE_START_IDENTIFIER, stand_in)
    if isinstance(value, dict):
        return {_disarm(k, stand_in): _disarm(v, stand_in) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(_disarm(item, stand_in) for item in value)
    if isinstance(value, dspy.Type):
        return value
    if isinstance(value, pydantic.BaseModel):
        return value.model_copy(
            update={n: _disarm(getattr(value, n), stand_in) for n in type(value).model_fields}
        )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {
            f.name: _disarm(getattr(value, f.name), stand_in) for f in dataclasses.fields(value)
        }
        return dataclasses.replace(
            value, **{n: v for n, v in parts.items() if n in _settable(value)}
        )
    return value


def _settable(value: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(value) if field.init}


def _rearm(block: Message, stand_in: str) -> Message:
    if block.get("type") == "text" and isinstance(block.get("text"), str):
        return {**block, "text": block["text"].replace(stand_in, CUSTOM_TYPE_START_IDENTIFIER)}
    return block


# --- text -----------------------------------------------------------------------------------------


def transcript(window: Window) -> str:
    """Return the conversation as readable text: a block per exchange, a line per field.

    Args:
        window: What the call sees.
    """
    blocks = []
    for number, exchange in enumerate(window, start=1):
        lines = [f"{name}: {_as_text(v)}" for name, v in exchange.shown(window.view).items()]
        blocks.append("\n".join([f"[{number}]", *lines]))
    return "\n\n".join(blocks)


_ANY_TEXT: Final = dspy.Signature("text -> done").input_fields["text"]


def _as_text(value: Any) -> str:
    from dspy.adapters.utils import format_field_value

    text: str = format_field_value(_ANY_TEXT, value)
    return re.sub(r"\n", "\n  ", text)
