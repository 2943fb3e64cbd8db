"""Values on their way into JSON, and back as the types that they had.

Rules:

- None, booleans, numbers, text, lists and dicts with text keys are JSON; tuples become lists.
- Dataclasses, msgspec structs, pydantic models and enum members are written by what they hold, at
  any depth. Within them may be whatever msgspec writes (a date, a set): their type reads it back.
- Anything else is refused, and so is what JSON would change or lose: NaN, integers beyond 64 bits,
  text that is not Unicode, a value that contains itself. The error says where it stands.

This module does not know pydantic: what can `model_dump` is a model.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterable
from typing import Any, Final, NoReturn

import msgspec

from dspy_session.errors import DataError

__all__ = ["MAX_DEPTH", "decoded", "encoded", "encoded_key", "read_as"]

MAX_DEPTH: Final = 100
"""How many lists and dicts may stand within each other."""

_SMALLEST: Final = -(2**63)
_LARGEST: Final = 2**64 - 1  # what is beyond 64 bits, few readers of JSON read without loss
_SHOWN: Final = 200  # characters of a stored value, or of a way into one, that an error shows

_ADVICE: Final[dict[str, str]] = {
    "bytes": "store text, such as base64",
    "bytearray": "store text, such as base64",
    "complex": "store a list of two numbers",
    "date": "store value.isoformat(), or a dataclass or model with such a field",
    "datetime": "store value.isoformat(), or a dataclass or model with such a field",
    "Decimal": "store str(value), or a dataclass or model with such a field",
    "frozenset": "store a list, such as sorted(value)",
    "set": "store a list, such as sorted(value)",
    "UUID": "store str(value), or a dataclass or model with such a field",
}


class _RefusedError(Exception):
    """What JSON cannot hold, and the way to it, the innermost step first."""

    def __init__(self, value: object, problem: str) -> None:
        super().__init__(problem)
        self.value, self.problem = value, problem
        self.steps: list[str] = []

    def within(self, container: object, step: str) -> None:
        """Add the step from a container to where the problem is."""
        self.steps.append(step)
        if container is self.value:  # it was met again, a hundred steps further in
            self.problem, self.steps = "contains itself; store a value that ends", []


def encoded(key: str, value: Any) -> bytes:
    """Return a value as JSON.

    Args:
        key: The key that it is for, for the error message.
        value: What to write.

    Raises:
        DataError: JSON cannot hold it; the message says what, where, and what to do.
    """
    try:
        return msgspec.json.encode(_plain(value, 0, False))
    except _RefusedError as refused:
        where = f"data[{key!r}]{_shortened(''.join(reversed(refused.steps)))}"
        raise DataError(
            f"Session data cannot hold {where}: it {refused.problem}. Nothing was changed."
        ) from refused.__cause__


def encoded_key(key: object) -> tuple[str, int]:
    """Return a key as plain text, and how many bytes it has as JSON.

    Args:
        key: What was given as a key.

    Raises:
        DataError: It is not text, or empty.
    """
    if not isinstance(key, str) or not key:
        raise DataError(
            f"A key of session data is text that is not empty, not {key!r} "
            f"({type(key).__name__}). Nothing was changed."
        )
    try:
        return str.__str__(key), len(msgspec.json.encode(str.__str__(key)))
    except UnicodeEncodeError as error:
        raise DataError(
            f"The key {key!r} of session data is not valid Unicode ({error}). Nothing was changed."
        ) from error


def decoded(raw: bytes) -> Any:
    """Return what JSON says, as plain values.

    Args:
        raw: What `encoded` returned.
    """
    return msgspec.json.decode(raw)


def read_as(raw: bytes, kind: Any, key: str, hidden: bool = False) -> Any:
    """Return what JSON says, as a value of a type.

    Args:
        raw: What `encoded` returned.
        kind: The type, or a type made of types, such as `list[Item]`.
        key: The key that it stands under, for the error message.
        hidden: Whether no error may show what is stored: agents show errors to their models.

    Raises:
        DataError: It does not fit, or the type is none that can be read.
    """
    try:
        if hasattr(kind, "model_validate_json"):
            return _validated(kind, raw)
        return msgspec.json.decode(raw, type=kind, dec_hook=_foreign)
    except Exception as error:  # a type's own checks may raise anything
        name = kind.__name__ if isinstance(kind, type) else repr(kind)
        if hidden:  # and nothing that leads to the error, which may show it too
            raise DataError(
                f"data[{key!r}] cannot be read as {name}. What is stored is private; read it as a "
                "type that it fits, or without as_type."
            ) from None
        raise DataError(
            f"data[{key!r}] cannot be read as {name}: {error}. What is stored is "
            f"{_shortened(raw.decode())}; read it as a type that it fits, or without as_type."
        ) from error


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _validated(kind: Any, raw: bytes) -> Any:
    """A pydantic model; by alias too, for a client of an application writes what it is told."""
    return kind.model_validate_json(raw, by_alias=True, by_name=True)


def _foreign(kind: Any, plain: Any) -> Any:
    """Called by msgspec for types that it does not know."""
    if hasattr(kind, "model_validate_json"):
        return _validated(kind, msgspec.json.encode(plain))
    raise NotImplementedError(f"there is no way to make a {kind!r} of JSON")


def _plain(value: Any, depth: int, inside: bool) -> Any:
    """A value as plain JSON values; `inside` a dataclass or struct, more types are welcome."""
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return value if value.isascii() else _text(value)
    if kind is int:
        if _SMALLEST <= value <= _LARGEST:
            return value
        raise _RefusedError(value, "is an int beyond 64 bits; store text, str(value)")
    if kind is float:
        if math.isfinite(value):
            return value
        raise _RefusedError(value, f"is the float {value!r}, which JSON has not; store None")
    if kind is dict:
        return _object(value, value.items(), depth, inside)
    if kind is list or kind is tuple:
        return _array(value, value, depth, inside)
    return _converted(value, depth, inside)


def _converted(value: Any, depth: int, inside: bool) -> Any:
    """A value that is not of one of JSON's own types."""
    kind = type(value)
    if isinstance(value, enum.Enum):
        return _plain(value.value, depth, inside)
    if isinstance(value, str):
        return _text(str.__str__(value))
    if isinstance(value, int):
        return _plain(int.__int__(value), depth, inside)
    if isinstance(value, float):
        return _plain(float.__float__(value), depth, inside)
    if isinstance(value, dict):
        return _object(value, value.items(), depth, inside)
    if isinstance(value, list | tuple):
        return _array(value, value, depth, inside)
    if isinstance(value, msgspec.Struct):
        return _struct(value, depth)
    if dataclasses.is_dataclass(kind):
        return _record(value, [(f.name, f.name) for f in dataclasses.fields(kind)], depth)
    if hasattr(kind, "model_dump"):
        return _plain(_dumped(value), depth, False)
    return _member(value, depth) if inside else _refuse(value)


def _member(value: Any, depth: int) -> Any:
    """A value that a dataclass or struct may hold, and nothing else."""
    if isinstance(value, set | frozenset):  # in one order, whatever the hash seed
        return sorted(_array(value, value, depth, True), key=msgspec.json.encode)
    try:
        return _plain(msgspec.to_builtins(value), depth, False)
    except TypeError:
        _refuse(value)


def _object(
    owner: object, items: Iterable[tuple[Any, Any]], depth: int, inside: bool, step: str = "[{!r}]"
) -> dict[str, Any]:
    _check_depth(owner, depth)
    plain: dict[str, Any] = {}
    key = None
    try:
        for key, item in items:
            name = key if type(key) is str and key.isascii() else _name(key, inside)
            if name in plain:
                raise _RefusedError(
                    key, f"has the key {name!r} as text, as another value has; rename one"
                )
            plain[name] = _plain(item, depth + 1, inside)
    except _RefusedError as refused:
        refused.within(owner, step.format(key))
        raise
    return plain


def _array(owner: object, items: Iterable[Any], depth: int, inside: bool) -> list[Any]:
    _check_depth(owner, depth)
    plain: list[Any] = []
    try:
        for item in items:
            plain.append(_plain(item, depth + 1, inside))
    except _RefusedError as refused:
        refused.within(owner, f"[{len(plain)}]")
        raise
    return plain


def _struct(value: msgspec.Struct, depth: int) -> Any:
    """A struct in the form that its type reads."""
    config, fields = value.__struct_config__, msgspec.structs.fields(value)
    if config.array_like:
        tagged = () if config.tag is None else (config.tag,)
        items = (*tagged, *(getattr(value, field.name) for field in fields))
        return _array(value, items, depth, True)
    tag = {} if config.tag is None else {config.tag_field: config.tag}
    return tag | _record(value, [(field.encode_name, field.name) for field in fields], depth)


def _record(value: object, names: list[tuple[str, str]], depth: int) -> dict[str, Any]:
    """The attributes of a dataclass or struct, those that are set, under their written names."""
    items = [(written, getattr(value, name, msgspec.UNSET)) for written, name in names]
    present = [(written, item) for written, item in items if item is not msgspec.UNSET]
    return _object(value, present, depth, True, ".{}")


def _check_depth(container: object, depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise _RefusedError(container, f"is nested deeper than {MAX_DEPTH}; store a flatter value")


def _name(key: object, inside: bool) -> str:
    """The key of a dict as text."""
    if isinstance(key, enum.Enum):
        key = key.value
    if isinstance(key, str):
        return _text(str.__str__(key))
    if inside:
        try:
            (name,) = msgspec.to_builtins({key: None}, str_keys=True)
        except TypeError:
            pass
        else:
            return _name(name, False)
    raise _RefusedError(key, f"stands under a key of type {type(key).__name__}; use text")


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _RefusedError(
            text, f"is text that is not valid Unicode ({error.reason}); replace what is not"
        ) from error
    return text


def _dumped(model: Any) -> Any:
    try:
        return model.model_dump(mode="json", round_trip=True)
    except Exception as error:  # a model's own code
        raise _RefusedError(
            model, f"is a {type(model).__name__} whose model_dump failed: {error}"
        ) from error


def _refuse(value: object) -> NoReturn:
    name = type(value).__name__
    advice = _ADVICE.get(
        name,
        "store plain JSON values, or a dataclass, pydantic model, msgspec struct or enum of such",
    )
    raise _RefusedError(value, f"is of type {name}; {advice}")
