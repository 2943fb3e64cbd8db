"""Values with fields, and enum members, as plain data: one codec per class, made from the class.

Rules:

- A value is written field by field, as it is in memory: pydantic models, dataclasses, named tuples
  and msgspec structs. `model_dump` would not do: it renames, leaves out, and makes marker text of
  DSPy's types.
- A value is read as it was written, past its class's constructor and validators. Those take raw
  input, not what they made of it, and may do anything; the value was accepted when it was made.
- What a class declares today still counts: a stored field that the class no longer has, a field it
  has got since then and that has no default, and content that the declared type or constraint of a
  pydantic field no longer admits, are a `FormatError`. Content that did not fit when it was saved
  need not fit now.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable, Mapping
from typing import Any, Final, get_args

import msgspec
import pydantic

from dspy_session.core.values import ValueCodec, qualified_name
from dspy_session.errors import FormatError, ValueCodecError
from dspy_session.program.record_kinds import RecordKind, Stored, kind_of

__all__ = ["codec_for", "has_fields", "is_writable"]

_WAY_OUT: Final = (
    "Load it with the class that it was saved with, or register a codec for the tag that brings "
    "old values up to date"
)


def codec_for(kind: type, tag: str | None = None) -> ValueCodec:
    """Return a codec that writes values of a class field by field, or enum members by name.

    Programs need none for the types that their annotations name. Register one for a type that no
    annotation mentions, or under the tag that a file knows a class by that was moved or renamed
    since: `register_value_codec(codec_for(places.Place, tag="trips:Place"))`.

    Args:
        kind: A pydantic model, dataclass, named tuple, `msgspec.Struct` or `enum.Enum`.
        tag: What stands for the class in stored data; None is `"module:ClassName"`.

    Raises:
        ValueCodecError: It is another kind of class.

    Example:
        >>> class Mood(enum.Enum):
        ...     CALM = 1
        >>> codec = codec_for(Mood, tag="mood")
        >>> codec.encode(Mood.CALM), codec.decode("CALM")
        ('CALM', <Mood.CALM: 1>)
    """
    if not is_writable(kind):
        name = qualified_name(kind) if isinstance(kind, type) else repr(kind)
        raise ValueCodecError(
            f"{name} is no pydantic model, dataclass, named tuple, msgspec.Struct or enum, so its "
            "values cannot be written field by field; register a ValueCodec(tag, type, encode, "
            "decode) of your own."
        )
    chosen = f"{kind.__module__}:{kind.__qualname__}" if tag is None else tag
    if issubclass(kind, enum.Enum):
        return ValueCodec(chosen, kind, _member_name, functools.partial(_member, kind))
    return ValueCodec(chosen, kind, _encode_record, functools.partial(_decode_record, kind))


def is_writable(kind: Any) -> bool:
    """Whether `codec_for` can make a codec for a class.

    Args:
        kind: Anything.
    """
    return isinstance(kind, type) and (issubclass(kind, enum.Enum) or has_fields(kind))


def has_fields(kind: type) -> bool:
    """Whether values of a class are written field by field.

    Args:
        kind: Any class.
    """
    return kind_of(kind) is not None


# --- values with fields ---------------------------------------------------------------------------


def _encode_record(value: Any) -> dict[str, Any]:
    kind, how = type(value), _how(type(value))
    stored = how.take(value)
    missing = {name for name in how.defaults(kind) if name not in stored.fields}
    stored.loose = sorted(missing | set(_complaints(kind, stored)))
    parts = msgspec.structs.asdict(stored)
    return {name: part for name, part in parts.items() if part or name == "fields"}


def _decode_record(kind: type, plain: Any) -> Any:
    how, stored = _how(kind), msgspec.convert(plain, Stored)
    try:
        _bring_up_to_date(kind, stored)
        return how.make(kind, stored)
    except FormatError as error:
        raise FormatError(f"{qualified_name(kind)}: {error}. {_WAY_OUT}") from error


def _bring_up_to_date(kind: type, stored: Stored) -> None:
    """Fill in fields that the class has got, and refuse what it does not admit any more."""
    defaults = _how(kind).defaults(kind)
    gone = [name for name in stored.fields if name not in defaults]
    if gone:
        raise FormatError(f"it has the fields {_listed(defaults)}, but the value {_listed(gone)}")
    for name, default in defaults.items():
        if name in stored.fields or name in stored.loose:
            continue
        if default is None:
            raise FormatError(f"it needs the field {name!r}, which the stored value does not have")
        stored.fields[name] = default(stored.fields)
        stored.unset.append(name)
    for name, complaint in _complaints(kind, stored).items():
        if name not in stored.loose:
            raise FormatError(f"it does not admit what is stored for {name!r}: {complaint}")


def _how(kind: type) -> RecordKind:
    how = kind_of(kind)
    assert how is not None  # `codec_for` has seen to it
    return how


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


# --- what pydantic fields declare -----------------------------------------------------------------


def _complaints(kind: type, stored: Stored) -> dict[str, str]:
    """What is wrong with fields that were set to what their declaration does not admit."""
    found = {}
    for name, check in _checks(kind).items():
        if name in stored.fields and name not in stored.unset:
            try:
                check.validate_python(stored.fields[name])
            except pydantic.ValidationError as error:
                found[name] = "; ".join(str(detail["msg"]) for detail in error.errors())
            except Exception:  # noqa: BLE001  # code of a type that is not pydantic's own
                continue
    return found


@functools.lru_cache(maxsize=1024)
def _checks(kind: type) -> Mapping[str, pydantic.TypeAdapter[Any]]:
    """What checks each field of a model or pydantic dataclass, if no function has a part in it."""
    fields: Mapping[str, Any] = getattr(kind, "__pydantic_fields__", {})
    checks = {}
    for name, field in fields.items():
        declared = field.rebuild_annotation()
        if _holds_functions(declared):
            continue
        for config in (pydantic.ConfigDict(arbitrary_types_allowed=True), None):
            try:
                checks[name] = pydantic.TypeAdapter(declared, config=config)
                break
            except Exception:  # noqa: BLE001  # a type that pydantic can hold, but not check
                continue
    return checks


def _holds_functions(annotation: Any) -> bool:
    return hasattr(annotation, "func") or any(map(_holds_functions, get_args(annotation)))


# --- enums ----------------------------------------------------------------------------------------


def _member_name(member: enum.Enum) -> str | list[Any]:
    """A member's name; a combination of flags has none of its own, and is the value."""
    kind = type(member)
    if kind.__members__.get(member.name) is member:
        return member.name
    if isinstance(member, enum.Flag):
        return [member.value]
    raise ValueError(f"{member!r} is not among the members of {qualified_name(kind)}")


def _member(kind: Any, name: Any) -> Any:
    if isinstance(name, list):
        (value,) = name
        return kind(value)
    if name not in kind.__members__:
        members = _listed(kind.__members__)
        raise FormatError(f"{qualified_name(kind)} has {members}, but not {name!r}. {_WAY_OUT}")
    return kind.__members__[name]
