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
import inspect
from collections.abc import Callable, Mapping
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, Final

import dspy
import msgspec
import pydantic

from dspy_session.core.window import Exchange
from dspy_session.program.markers import has_marker, keep_text
from dspy_session.program.render_cache import Rendered, render_cache
from dspy_session.program.transcripts import told_at_once, with_transcript
from dspy_session.program.window_history import WindowHistory

__all__ = ["rendering_adapter", "tells_history"]

Message = dict[str, Any]


class _OneMessage:
    def __init__(self, fields: Message) -> None:
        self.messages = [fields]


if TYPE_CHECKING:
    _Mixin = dspy.ChatAdapter  # what `super()` finds: whatever the class mixed into has
else:
    _Mixin = object


class _Rendering(_Mixin):
    """The methods of a rendering adapter; `type(...)` mixes them into the user's adapter class.

    It has no names but those that it overrides: any other could be one that the adapter uses.
    """

    __slots__ = ()

    def __init_subclass__(cls, **_: Any) -> None:
        """Hide from the adapter's classes that there is one more, which might do something to it.

        DSPy's own would make `format` and `parse` fire their callbacks twice.
        """

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

        def render(exchange: Exchange) -> Rendered:
            return _render(self, signature, history_field_name, given.told(exchange))

        if given.as_text:
            past = told_at_once(self, history_field_name, given.window)
        else:
            rendered = render_cache.of(_cache_key(self, signature, given), given.window, render)
            past = [_fresh(message) for messages in rendered for message in messages]
        for added in given.added:
            past += _render(self, signature, history_field_name, dict(added))
        return past

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


class _OwnHistory(_Rendering):
    """For adapters that render history in their own way: they get plain messages."""

    __slots__ = ()

    def format_conversation_history(
        self, signature: type[dspy.Signature], history_field_name: str, inputs: dict[str, Any]
    ) -> list[Message]:
        """Let the adapter render the messages as it does."""
        given = inputs.get(history_field_name)
        if isinstance(given, WindowHistory):
            inputs[history_field_name] = dspy.History(messages=given.messages)
        return _as_without_us(self, signature, history_field_name, inputs)


def _render(
    adapter: _Rendering, signature: type[dspy.Signature], name: str, fields: Message
) -> Rendered:
    """Render one exchange: the user text from the full signature, the rest from what it has."""
    present = signature
    for missing in [n for n in signature.output_fields if n not in fields]:
        present = present.delete(missing)
    messages = _as_without_us(adapter, present, name, {name: _OneMessage(fields)})
    if present is not signature and messages and messages[0]["role"] == "user":
        content = adapter.format_user_message_content(signature, fields, main_request=True)
        messages[0] = {**messages[0], "content": content}
    return tuple(messages)


def _as_without_us(
    adapter: _Rendering, signature: type[dspy.Signature], name: str, inputs: dict[str, Any]
) -> list[Message]:
    messages: list[Message] = super(_Rendering, adapter).format_conversation_history(
        signature, name, inputs
    )
    return messages


# --- rendering adapters ---------------------------------------------------------------------------

_DSPYS: Final = "dspy.adapters."
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
    object.__setattr__(twin, "__dict__", vars(adapter))
    if _SOURCE in vars(rendering):
        object.__setattr__(twin, _SOURCE, adapter)
    return twin


def _rendering_class(kind: type[dspy.Adapter]) -> type:
    body: dict[str, Any] = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    slots = {
        name: value
        for base in reversed(kind.__mro__)
        for name, value in vars(base).items()
        if isinstance(value, MemberDescriptorType)
    }
    if slots:
        body["__slots__"] = (_SOURCE,)
        body.update({name: _SharedSlot(slot) for name, slot in slots.items()})
    if not _format_is_dspys(kind):
        body["format"] = _format_with_transcript(kind)
    # An adapter that renders history in a way of its own keeps doing so.
    mixed_in = _Rendering if _history_is_dspys(kind) else _OwnHistory
    return type(kind.__name__, (mixed_in, kind), body)


def tells_history(adapter: dspy.Adapter) -> bool:
    """Whether past turns come out of an adapter by DSPy's own code, so that ours can be in it.

    Args:
        adapter: The user's adapter.
    """
    kind = type(adapter)
    is_adapter = isinstance(adapter, dspy.Adapter)
    return is_adapter and _format_is_dspys(kind) and _history_is_dspys(kind)


def _history_is_dspys(kind: type[dspy.Adapter]) -> bool:
    return kind.format_conversation_history is dspy.Adapter.format_conversation_history


def _format_is_dspys(kind: type[dspy.Adapter]) -> bool:
    return str(inspect.unwrap(kind.format).__module__).startswith(_DSPYS)


def _format_with_transcript(kind: type[dspy.Adapter]) -> Callable[..., list[Message]]:
    def format(
        self: Any, signature: type[dspy.Signature], demos: Any, inputs: Any, **others: Any
    ) -> list[Message]:
        messages: list[Message] = kind.format(self, signature, demos, inputs, **others)
        return with_transcript(messages, signature, inputs)

    return format


_SOURCE: Final = "_dspy_session_source"


class _SharedSlot:
    """A slot of the adapter's class, read and written where the user's adapter has it."""

    def __init__(self, slot: MemberDescriptorType) -> None:
        self._slot = slot

    def __get__(self, twin: Any, kind: type | None = None) -> Any:
        return self if twin is None else self._slot.__get__(getattr(twin, _SOURCE, twin))

    def __set__(self, twin: Any, value: Any) -> None:
        self._slot.__set__(getattr(twin, _SOURCE, twin), value)

    def __delete__(self, twin: Any) -> None:
        self._slot.__delete__(getattr(twin, _SOURCE, twin))


# --- what may be kept -----------------------------------------------------------------------------


def _cache_key(adapter: Any, signature: type[dspy.Signature], given: WindowHistory) -> Any:
    """What a rendered exchange depends on; None where that cannot be told, so nothing is kept."""
    rendering: Any = type(adapter)
    kind = _renderer(rendering)
    by_name: Mapping[str, Any] = signature.fields
    fields = tuple(
        # Equal annotations may be written differently: Literal["a", "b"] == Literal["b", "a"].
        (name, info.annotation, repr(info.annotation), *sorted(info.json_schema_extra.items()))
        for name, info in by_name.items()
    )
    native = bool(adapter.use_native_function_calling)
    try:
        defaults = [(n, type(v).__name__, v) for n, v in given.defaults.items()]
        as_json = msgspec.json.encode(defaults, enc_hook=_model_as_json)
        key = (kind, native, fields, given.window.view, given.spoken, as_json)
        hash(key)
    except (TypeError, ValueError):
        return None
    return None if kind is None else key


def _model_as_json(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump_json()
    raise TypeError(f"{type(value)} is not told apart by what it writes")


# What an adapter of one's own may override without any effect on how past turns are rendered.
_BESIDE: Final = frozenset(
    "format parse acall format_demos format_system_message format_field_description "
    "format_field_structure format_task_description format_finetune_data _call_preprocess "
    "_call_postprocess _make_json_adapter_fallback _prepare_response_format".split()
)


@functools.lru_cache(maxsize=_MOST_CLASSES)
def _renderer(rendering: type) -> type | None:
    """The class of DSPy's that renders past turns; None if any part of it is the user's own.

    What code of one's own makes of a turn may depend on anything, so nothing of it is kept.
    """
    kinds = [k for k in rendering.__mro__ if not issubclass(k, _Rendering)]
    dspys = next(kind for kind in kinds if kind.__module__.startswith(_DSPYS))
    theirs = {name for kind in kinds[: kinds.index(dspys)] for name in vars(kind)}
    theirs.difference_update(_BESIDE)
    overridden = {name for name in theirs & set(dir(dspys)) if not name.startswith("__")}
    return None if overridden else dspys


def _fresh(message: Message) -> Message:
    """A copy for one call, whose receiver may change it."""
    return message.copy() if isinstance(message["content"], str) else copy.deepcopy(message)
