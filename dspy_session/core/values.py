"""The plain form of field values, in which they are written out, and back.

Rules:

- In its *plain form* a value is JSON: None, booleans, numbers, text, lists, and dicts with text
  keys. Everything else is a tagged dict, `{"$type": tag, "value": ...}`; a user's own dict that has
  a `"$type"` key is tagged itself, so no user value can be mistaken for a tag.
- `from_plain(to_plain(x)) == x`, with equal types and equal key order.
- Nothing is imported because stored data names it: a tag is looked up among the codecs at hand.

The codecs at hand are the registered ones, and with a program also those of the types that its
annotations name (`dspy_session.program.types`, for this module knows neither DSPy nor pydantic).
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import math
from collections.abc import Callable
from typing import Any, Final

import msgspec

from dspy_session.errors import FormatError, ValueCodecError

__all__ = [
    "REGISTERED",
    "ValueCodec",
    "ValueCodecs",
    "from_plain",
    "register_value_codec",
    "to_plain",
]

TYPE_KEY: Final = "$type"
VALUE_KEY: Final = "value"

_LARGEST_INTEGER: Final = 2**63 - 1  # what msgpack and most JSON readers hold without loss


class ValueCodec(msgspec.Struct, frozen=True):
    """How values of one type are written as plain data and read back.

    Attributes:
        tag: The name that stands in stored data. It must never change its meaning.
        type: Values of exactly this type are written by this codec.
        encode: From a value to something `to_plain` can write (not necessarily plain itself).
        decode: Back from what `encode` returned.
    """

    tag: str
    type: type
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


_BY_TYPE: dict[type, ValueCodec] = {}
_BY_TAG: dict[str, ValueCodec] = {}


class ValueCodecs:
    """Where codecs are looked up; this class itself finds the registered ones."""

    def for_type(self, kind: type) -> ValueCodec | None:
        """Return the codec that writes values of exactly this type, if there is one.

        Args:
            kind: The type of a value.

        Raises:
            ValueCodecError: There is more than one.
        """
        return _BY_TYPE.get(kind)

    def for_tag(self, tag: str) -> ValueCodec | None:
        """Return the codec that reads what was written under a tag, if there is one.

        Args:
            tag: A tag from stored data.

        Raises:
            FormatError: There is more than one.
        """
        return _BY_TAG.get(tag)


REGISTERED: Final = ValueCodecs()
"""The codecs that were registered, and no others."""


def register_value_codec(codec: ValueCodec) -> None:
    """Teach the written form about one more type, for this process.

    Args:
        codec: What to write values of `codec.type` as. Registering a tag again replaces the
            earlier codec of that tag.

    Raises:
        ValueCodecError: Another type's codec already uses the tag, or the tag is no text.

    Example:
        >>> class Celsius(float): ...
        >>> register_value_codec(ValueCodec("celsius", Celsius, float, Celsius))
        >>> to_plain(Celsius(21.5))
        {'$type': 'celsius', 'value': 21.5}
        >>> type(from_plain(to_plain(Celsius(21.5)))).__name__
        'Celsius'
    """
    if not isinstance(codec.tag, str) or not isinstance(codec.type, type):
        raise ValueCodecError(
            "A codec needs a text as its tag and a class as its type, "
            f"not {codec.tag!r} and {codec.type!r}."
        )
    known = _BY_TAG.get(codec.tag)
    if known is not None and qualified_name(known.type) != qualified_name(codec.type):
        raise ValueCodecError(
            f"The tag {codec.tag!r} already stands for {qualified_name(known.type)}; "
            f"choose another tag for {qualified_name(codec.type)}."
        )
    _BY_TAG[codec.tag] = codec
    _BY_TYPE[codec.type] = codec


def to_plain(value: Any, codecs: ValueCodecs = REGISTERED) -> Any:
    """Return the plain form of `value`: JSON data, other types as tagged dicts.

    Args:
        value: Any value made of types that `codecs` can write.
        codecs: The codecs to use.

    Raises:
        ValueCodecError: The value, or a part of it, is of a type without a codec (the message names
            the type and says how to register one), contains itself, or is nested too deeply.

    Example:
        >>> to_plain({"when": dt.date(2026, 1, 2), "pair": (1, 2)})["pair"]
        {'$type': 'tuple', 'value': [1, 2]}
    """
    try:
        return _plain(value, codecs)
    except RecursionError as error:
        raise ValueCodecError(
            "the value contains itself or is nested too deeply, so it has no written form; "
            "store a flatter one"
        ) from error


def _plain(value: Any, codecs: ValueCodecs) -> Any:
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return value if value.isascii() else _encode_text(value)
    if kind is int:
        small = -_LARGEST_INTEGER <= value <= _LARGEST_INTEGER
        return value if small else _tagged("int", hex(value))  # decimal digits have a limit
    if kind is float:
        return value if math.isfinite(value) else _tagged("float", repr(value))
    if kind is list:
        return [_plain(item, codecs) for item in value]
    if kind is dict:
        return _encode_dict(value, codecs)
    if kind is set or kind is frozenset:  # in one order, whatever the hash seed
        return _tagged(kind.__name__, sorted((_plain(m, codecs) for m in value), key=repr))
    codec = codecs.for_type(kind)
    if codec is None:
        raise ValueCodecError(
            f"a value of type {qualified_name(kind)} has no written form; name the type in an "
            "annotation of the program, if it is a model, dataclass or enum, or register one with "
            "dspy_session.register_value_codec(ValueCodec(tag, type, encode, decode))"
        )
    try:
        encoded = codec.encode(value)
    except (ValueCodecError, RecursionError):
        raise
    except Exception as error:  # the codec is a user's code
        raise ValueCodecError(f"the codec {codec.tag!r} failed to encode: {error!r}") from error
    return _tagged(codec.tag, _plain(encoded, codecs))


SCALARS: Final = frozenset({str, int, float, bool, type(None)})


def from_plain(plain: Any, codecs: ValueCodecs = REGISTERED) -> Any:
    """Return the value whose plain form is `plain`.

    Args:
        plain: What `to_plain` returned, perhaps after a trip through JSON or msgpack.
        codecs: The codecs to use.

    Raises:
        FormatError: A tag is malformed or unknown, its codec rejects the data, or it is nested too
            deeply.

    Example:
        >>> from_plain({"$type": "tuple", "value": [1, 2]})
        (1, 2)
    """
    if type(plain) in SCALARS:
        return plain
    try:
        return _value(plain, codecs)
    except RecursionError as error:
        raise FormatError("the stored data is nested too deeply") from error


def _value(plain: Any, codecs: ValueCodecs) -> Any:
    if type(plain) in SCALARS:
        return plain
    if isinstance(plain, list):
        return [_value(item, codecs) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if TYPE_KEY not in plain:
        return {
            key: item if type(item) in SCALARS else _value(item, codecs)
            for key, item in plain.items()
        }
    tag = plain[TYPE_KEY]
    if set(plain) != {TYPE_KEY, VALUE_KEY} or not isinstance(tag, str):
        raise FormatError(
            f"a tagged value has the keys {sorted(map(str, plain))}, not $type, value"
        )
    codec = codecs.for_tag(tag)
    if codec is None:
        raise FormatError(
            f"the stored data uses the type tag {tag!r}, which is not registered here, and no "
            "annotation of a given program names such a type; load it with the program that it "
            "was saved with, or register a codec for the tag before loading, with "
            "dspy_session.register_value_codec"
        )
    try:
        return codec.decode(_value(plain[VALUE_KEY], codecs))
    except (FormatError, RecursionError):
        raise
    except Exception as error:  # a codec meets whatever a file contains
        raise FormatError(f"the stored value tagged {tag!r} cannot be read: {error!r}") from error


def _tagged(tag: str, plain: Any) -> dict[str, Any]:
    return {TYPE_KEY: tag, VALUE_KEY: plain}


def _encode_text(text: str) -> Any:
    """Text as it is, unless it holds lone surrogates, which no UTF-8 writer accepts."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return _tagged("text", base64.b64encode(text.encode("utf-8", "surrogatepass")).decode())
    return text


def _encode_dict(value: dict[Any, Any], codecs: ValueCodecs) -> Any:
    if TYPE_KEY not in value and all(
        type(key) is str and _encode_text(key) is key for key in value
    ):
        return {key: _plain(item, codecs) for key, item in value.items()}
    return _tagged(
        "dict", [[_plain(key, codecs), _plain(item, codecs)] for key, item in value.items()]
    )


def qualified_name(kind: type) -> str:
    """The name of a type, with its module, for messages."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _decode_float(text: str) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise ValueError(text)
    return float(text)


def _decode_bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _encode_clock(value: dt.datetime | dt.time) -> Any:
    """ISO text; with `fold`, where it is set. A datetime keeps its offset, not its zone's name."""
    if value.tzinfo is not None and value.utcoffset() is None:
        raise ValueError("its time zone has no fixed offset")
    text = value.isoformat()
    return [text, value.fold] if value.fold else text


def _clock_decoder(kind: type[dt.datetime | dt.time]) -> Callable[[Any], Any]:
    def decode(plain: Any) -> Any:
        text, fold = (plain, 0) if isinstance(plain, str) else plain
        return kind.fromisoformat(text).replace(fold=fold)

    return decode


def _decode_timedelta(parts: list[int]) -> dt.timedelta:
    days, seconds, microseconds = parts
    return dt.timedelta(days=days, seconds=seconds, microseconds=microseconds)


for _codec in (
    ValueCodec("int", int, hex, lambda text: int(text, 16)),
    ValueCodec("float", float, repr, _decode_float),
    ValueCodec("text", str, str, lambda b: _decode_bytes(b).decode("utf-8", "surrogatepass")),
    ValueCodec("dict", dict, lambda d: list(d.items()), dict),
    ValueCodec("tuple", tuple, list, tuple),
    ValueCodec("set", set, list, set),
    ValueCodec("frozenset", frozenset, list, frozenset),
    ValueCodec("bytes", bytes, lambda b: base64.b64encode(b).decode(), _decode_bytes),
    ValueCodec("complex", complex, lambda c: [c.real, c.imag], lambda c: complex(*c)),
    ValueCodec("decimal", decimal.Decimal, str, decimal.Decimal),
    ValueCodec("datetime", dt.datetime, _encode_clock, _clock_decoder(dt.datetime)),
    ValueCodec("date", dt.date, dt.date.isoformat, dt.date.fromisoformat),
    ValueCodec("time", dt.time, _encode_clock, _clock_decoder(dt.time)),
    ValueCodec(
        "timedelta", dt.timedelta, lambda d: [d.days, d.seconds, d.microseconds], _decode_timedelta
    ),
):
    register_value_codec(_codec)
