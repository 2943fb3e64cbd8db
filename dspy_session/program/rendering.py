"""Rendering past turns into messages: once each, with the user's own adapter.

Most of a long call's cost in DSPy is rendering old messages again. A turn never changes, so its
messages are kept, by adapter, signature and view, in a bounded cache that can be dropped at any
time (`clear_render_cache`): dropping it changes no byte of any prompt.

A *rendering adapter* is the user's adapter under a subclass made on the fly, which overrides
`format_conversation_history` to use that cache. Adapters that render history in a way of their own
keep doing so.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, final

import dspy
from dspy.adapters.utils import format_field_value
from pydantic_core import core_schema

from dspy_session.core.window import Exchange, View, Window
from dspy_session.program.markers import has_marker, keep_text, marked_text
from dspy_session.program.render_cache import Rendered, render_cache

__all__ = ["WindowHistory", "rendering_adapter", "transcript"]

Message = dict[str, Any]


@final
class WindowHistory:
    """What stands in a call's inputs as the history: a window, rendered only when asked.

    Adapters that know nothing of it find the `dspy.History` of the same messages, made when they
    look into it.
    """

    def __init__(self, window: Window) -> None:
        self.window = window

    @property  # type: ignore[misc]  # adapters and callbacks ask isinstance(value, dspy.History)
    def __class__(self) -> type:
        return dspy.History

    @functools.cached_property
    def _history(self) -> dspy.History:
        return dspy.History(messages=self.window.messages())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._history, name)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self._history)

    def __reduce__(self) -> tuple[Any, ...]:
        return WindowHistory, (self.window,)

    def __repr__(self) -> str:
        return repr(self._history)

    def __str__(self) -> str:
        return str(self._history)

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> core_schema.CoreSchema:
        return core_schema.any_schema(
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda conversation: {"messages": conversation.messages}
            )
        )


class _OneMessage:
    def __init__(self, fields: Message) -> None:
        self.messages = [fields]


if TYPE_CHECKING:
    _Mixin = dspy.ChatAdapter  # what `super()` finds: whatever the class mixed into has
else:
    _Mixin = object


class _Rendering(_Mixin):
    """The methods of a rendering adapter; `type(...)` mixes them into the user's adapter class."""

    _rendered_kind: type[dspy.Adapter]

    def format_conversation_history(
        self, signature: type[dspy.Signature], history_field_name: str, inputs: dict[str, Any]
    ) -> list[Message]:
        """Return the past exchanges as messages, from the cache where it has them."""
        given = inputs.get(history_field_name)
        if not isinstance(given, WindowHistory):
            messages: list[Message] = super().format_conversation_history(
                signature, history_field_name, inputs
            )
            return messages
        del inputs[history_field_name]
        view = given.window.view

        def render(exchange: Exchange) -> Rendered:
            return self._render(signature, history_field_name, exchange, view)

        rendered = render_cache.of(_cache_key(self, signature, view), given.window, render)
        return [_fresh(message) for messages in rendered for message in messages]

    def _render(
        self, signature: type[dspy.Signature], name: str, exchange: Exchange, view: View
    ) -> Rendered:
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
        messages: list[Message] = super().format_conversation_history(
            signature, name, {name: _OneMessage(fields)}
        )
        return messages

    def format_user_message_content(
        self, signature: type[dspy.Signature], inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Render user text; a user's own text that looks like a DSPy type marker stays text."""
        content = super().format_user_message_content(signature, inputs, *args, **kwargs)
        if isinstance(content, str) and has_marker(content):
            return keep_text(content, signature, inputs)
        return content

    def _make_json_adapter_fallback(self) -> dspy.Adapter:
        fallback: dspy.Adapter = super()._make_json_adapter_fallback()
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
    body: dict[str, Any] = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "_rendered_kind": kind,
    }
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
        if isinstance(given, WindowHistory):
            inputs[history_field_name] = dspy.History(messages=given.messages)
        messages: list[Message] = super(_Rendering, self).format_conversation_history(
            signature, history_field_name, inputs
        )
        return messages


def _cache_key(adapter: _Rendering, signature: type[dspy.Signature], view: View) -> Any:
    """What a rendered exchange depends on; None where that cannot be told, so nothing is kept."""
    kind, attributes = adapter._rendered_kind, {**vars(adapter)}
    attributes.pop("callbacks", None)
    attributes["native_response_types"] = tuple(attributes.get("native_response_types", ()))
    if not all(map(_is_constant, attributes.values())):
        return None
    by_name: Mapping[str, Any] = signature.fields
    fields = tuple(
        # Equal annotations may be written differently: Literal["a", "b"] == Literal["b", "a"].
        (name, info.annotation, repr(info.annotation), *sorted(info.json_schema_extra.items()))
        for name, info in by_name.items()
    )
    # DSPy's own adapters leave the instructions out of past turns; programs may vary them per call.
    instructions = "" if kind.__module__.startswith("dspy.adapters.") else signature.instructions
    key = (kind, tuple(sorted(attributes.items())), instructions, fields, view)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _is_constant(value: Any) -> bool:
    """Whether a value that an adapter holds can only be replaced, not changed."""
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    return value is None or isinstance(value, str | int | float | type)


def _fresh(message: Message) -> Message:
    """A copy for one call, whose receiver may change it."""
    return message.copy() if isinstance(message["content"], str) else copy.deepcopy(message)


# --- text -----------------------------------------------------------------------------------------


def transcript(window: Window) -> str:
    """Return the conversation as readable text: a block per exchange, a line per field.

    Args:
        window: What the call sees.
    """
    view = window.view

    def render(exchange: Exchange) -> Rendered:
        shown = exchange.shown(view)
        text = "\n".join(f"{name}: {_as_text(value)}" for name, value in shown.items())
        return ({"role": "text", "content": marked_text(text, shown)},)

    blocks = [message["content"] for (message,) in render_cache.of(("text", view), window, render)]
    numbered = (f"[{number}]\n{block}" for number, block in enumerate(blocks, start=1))
    return marked_text("\n\n".join(numbered), blocks)


_ANY_TEXT: Final = dspy.Signature("text -> done").input_fields["text"]


def _as_text(value: Any) -> str:
    text: str = format_field_value(_ANY_TEXT, value)
    return re.sub(r"\n", "\n  ", text)
