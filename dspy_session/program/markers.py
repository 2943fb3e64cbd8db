"""DSPy's own types in prompt text, told apart from a user's text that looks like them.

DSPy writes an image, or any other `dspy.Type` made of content blocks, into a message's text between
two markers, and cuts the text there at the very end. Whoever can put the markers into a field could
make up any block. So while a conversation is rendered, only what a value of DSPy's own wrote counts
as a block; every other marker stays text. A value that is not found here fails safe: it stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any, Final, get_args

import dspy
from dspy.adapters._legacy_type_markers import _legacy_custom_type_payload_to_blocks
from dspy.adapters.types.base_type import CUSTOM_TYPE_END_IDENTIFIER, CUSTOM_TYPE_START_IDENTIFIER
from dspy.adapters.utils import serialize_for_json

from dspy_session.program.record_kinds import kind_of

__all__ = ["MarkedText", "has_blocks", "has_marker", "keep_text", "marked_text"]

_START: Final = CUSTOM_TYPE_START_IDENTIFIER
_END: Final = CUSTOM_TYPE_END_IDENTIFIER
_WHOLE: Final = f"{_START}(?:(?!{_START}|{_END}).)*{_END}"
_NESTING: Final = 2  # how often a marker may be written as JSON within JSON


class MarkedText(str):
    """Text made from values, with the markers in it that DSPy's own types among them wrote."""

    marks: frozenset[str]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (str(self), self.marks)


def marked_text(text: str, values: Any) -> str:
    """Return text that remembers which markers in it are genuine.

    Args:
        text: Text made from `values`.
        values: Any value, or a collection of them.
    """
    marks = frozenset(_marks(values)) if has_marker(text) else frozenset()
    return _restored(text, marks) if marks else text


def has_marker(text: str) -> bool:
    """Whether there is anything in a text that DSPy would take for a value of one of its types."""
    return _START in text


def has_blocks(value: Any) -> bool:
    """Whether there is anything in a value that text cannot say, such as a picture.

    Args:
        value: Any value, or a collection of them.
    """
    return any(True for _ in _marks(value))


def keep_text(
    text: str, signature: type[dspy.Signature], inputs: Mapping[str, Any] | dspy.Example
) -> str | list[dict[str, Any]]:
    """Return message content in which only DSPy's own values become blocks.

    Args:
        text: The message's text, rendered from `inputs`.
        signature: What it was rendered with.
        inputs: The values by field name; a demo may be a `dspy.Example`.

    Returns:
        The text itself if DSPy would cut it right; else the blocks.
    """
    marks = set(_marks(inputs))
    for name, field in signature.input_fields.items():
        if name in inputs and _is_of_types(field.annotation):
            marks.update(_written_out(inputs[name]))
    pieces = _cut(text, marks)
    own = pieces[1::2]
    if text.count(_START) == text.count(_END) == len(own):
        return text
    blocks: list[dict[str, Any]] = []
    for number, piece in enumerate(pieces):
        if number % 2:
            payload = piece[len(_START) : -len(_END)].strip()
            blocks.extend(_legacy_custom_type_payload_to_blocks(payload))
        elif piece:
            blocks.append({"type": "text", "text": piece})
    return blocks


def _cut(text: str, marks: set[str]) -> list[str]:
    """The text in pieces: at odd places what a genuine value wrote, between them the rest."""
    forms = set(marks)
    for _ in range(_NESTING):
        forms |= {json.dumps(form, ensure_ascii=False)[1:-1] for form in forms}
    if not forms:
        return [text]
    longest_first = sorted(forms, key=len, reverse=True)
    return re.split(f"({'|'.join(map(re.escape, longest_first))})", text)


def _marks(value: Any) -> Iterator[str]:
    """What the values of DSPy's own types in `value` write into a prompt."""
    if isinstance(value, MarkedText):
        yield from value.marks
    elif isinstance(value, Mapping | dspy.Example):
        for item in value.values():
            yield from _marks(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _marks(item)
    else:
        written = serialize_for_json(value) if isinstance(value, dspy.Type) else None
        if isinstance(written, str) and written.startswith(_START) and written.endswith(_END):
            yield written
        kind = kind_of(type(value))
        if kind is not None:  # not by iterating: Citations and others say something else there
            stored = kind.take(value)
            yield from _marks([*stored.fields.values(), *stored.extra.values()])


def _is_of_types(annotation: Any) -> bool:
    """Whether a field holds nothing but values of DSPy's types, alone or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, dspy.Type):
        return True
    parts = [part for part in get_args(annotation) if part is not NoneType]
    return bool(parts) and all(_is_of_types(part) for part in parts)


def _written_out(value: Any) -> Iterator[str]:
    """The texts that saved values of DSPy's types have become: demos of a loaded program."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _written_out(item)
    elif isinstance(value, str) and re.fullmatch(_WHOLE, value, re.DOTALL):
        yield value


def _restored(text: str, marks: frozenset[str]) -> MarkedText:
    marked = MarkedText(text)
    marked.marks = marks
    return marked
