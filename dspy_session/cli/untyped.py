"""Values of types that nobody here knows: shown as they are stored, and written back as they were.

Who looks at a store need not have the programs whose conversations are in it. Nothing is imported
because stored data names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dspy_session.core.values import REGISTERED, ValueCodec, ValueCodecs
from dspy_session.pictures.values import plain_value, shown_text

__all__ = ["Untyped", "UntypedCodecs"]


class Untyped:
    """A value of a type that is not at hand.

    Args:
        stored: What is stored of it.

    Attributes:
        stored: What is stored of it.
    """

    codec: ValueCodec

    def __init__(self, stored: Any) -> None:
        self.stored = stored

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.stored == getattr(other, "stored", None)

    def __hash__(self) -> int:
        return hash(type(self))

    def __str__(self) -> str:
        return str(self.stored)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.stored!r})"


class _Record(Untyped, Mapping[str, Any]):
    """A value with fields; they are what it shows."""

    def __str__(self) -> str:
        return shown_text(plain_value(self))

    def __getitem__(self, name: str) -> Any:
        return self.stored["fields"][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored["fields"])

    def __len__(self) -> int:
        return len(self.stored["fields"])


class UntypedCodecs(ValueCodecs):
    """Codecs that read every value.

    Args:
        known: The codecs of the types that are at hand.

    Example:
        >>> from dspy_session.core.values import from_plain, to_plain
        >>> codecs, plain = UntypedCodecs(), {"$type": "trips:Mood", "value": "CALM"}
        >>> str(from_plain(plain, codecs)), to_plain(from_plain(plain, codecs), codecs) == plain
        ('CALM', True)
    """

    def __init__(self, known: ValueCodecs = REGISTERED) -> None:
        self._known = known
        self._by_tag: dict[str, ValueCodec] = {}

    def for_type(self, kind: type) -> ValueCodec | None:
        """Return the codec that writes values of a type, if there is one.

        Args:
            kind: The type.

        Raises:
            ValueCodecError: There is more than one.
        """
        return kind.codec if issubclass(kind, Untyped) else self._known.for_type(kind)

    def for_tag(self, tag: str) -> ValueCodec | None:
        """Return the codec that reads what was written under a tag; there always is one.

        Args:
            tag: The tag.

        Raises:
            FormatError: There is more than one.
        """
        known = self._known.for_tag(tag)
        if known is None:
            known = self._by_tag.get(tag)
        if known is None:
            known = self._by_tag[tag] = _codec(tag)
        return known


def _codec(tag: str) -> ValueCodec:
    name = tag.rpartition(":")[2]

    def of(base: type[Untyped]) -> type[Untyped]:
        return type(name, (base,), {"__hash__": base.__hash__})

    record, other = of(_Record), of(Untyped)

    def decode(stored: Any) -> Untyped:
        fields = stored.get("fields") if isinstance(stored, dict) else None
        is_record = isinstance(fields, dict) and all(isinstance(name, str) for name in fields)
        return (record if is_record else other)(stored)

    codec = ValueCodec(tag, other, _stored, decode)
    record.codec = other.codec = codec
    return codec


def _stored(value: Any) -> Any:
    return value.stored
