"""How values with fields are taken apart and put together again, for each kind of class.

A value is put together without its class's constructor, as unpickling does; only a struct's cannot
be passed by. What is stored is what the value holds, not what it would say about itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
import pydantic
from pydantic_core import PydanticUndefined

from dspy_session.errors import FormatError

__all__ = ["RecordKind", "Stored", "kind_of"]

Defaults = dict[str, Callable[[dict[str, Any]], Any] | None]
"""Each field's name, with what makes its default from the other fields; None if it has none."""


class Stored(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """The written form of a value with fields, before its parts are written in turn.

    Attributes:
        fields: What the fields hold, in the value's own order.
        unset: Those of them that nobody set, as pydantic counts it.
        loose: Those that are missing, or hold what their declaration does not admit.
        extra: What the value holds beside its fields.
        private: A model's private attributes.
    """

    fields: dict[str, Any]
    unset: list[str] = []
    loose: list[str] = []
    extra: dict[str, Any] = {}
    private: dict[str, Any] = {}


class RecordKind(msgspec.Struct, frozen=True):
    """How the values of one kind of class are taken apart and put together.

    Attributes:
        defaults: From a class to its fields.
        take: From a value to what is stored of it, `loose` apart.
        make: Back, from a class and what was stored.
    """

    defaults: Callable[[Any], Defaults]
    take: Callable[[Any], Stored]
    make: Callable[[Any, Stored], Any]


def kind_of(kind: type) -> RecordKind | None:
    """Return how values of a class are stored; None if they are no values with fields.

    Args:
        kind: Any class.
    """
    if issubclass(kind, tuple) and hasattr(kind, "_field_defaults"):
        return _NAMED_TUPLE
    if issubclass(kind, msgspec.Struct):
        return _STRUCT
    if not all(base.__flags__ & _WRITTEN_IN_PYTHON for base in kind.__mro__[:-1]):
        return None  # beside its fields, a value holds what its base in C holds
    if issubclass(kind, pydantic.BaseModel):
        return _MODEL
    return _DATACLASS if dataclasses.is_dataclass(kind) else None


_WRITTEN_IN_PYTHON: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE


def _constant(value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda _: value


def _factory(make: Callable[[], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda _: make()


def _beside(value: Any, names: Iterable[str]) -> dict[str, Any]:
    """What a value holds beside its fields, except what it can compute again."""
    known, kind = set(names), type(value)
    return {
        name: part
        for name, part in getattr(value, "__dict__", {}).items()
        if name not in known
        and not isinstance(getattr(kind, name, None), functools.cached_property)
    }


# Pydantic models


def _model_defaults(kind: type[pydantic.BaseModel]) -> Defaults:
    def default_of(field: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda fields: field.get_default(call_default_factory=True, validated_data=fields)

    return {
        name: None if field.is_required() else default_of(field)
        for name, field in kind.model_fields.items()
    }


def _take_model(model: pydantic.BaseModel) -> Stored:
    names = type(model).model_fields
    held = {name: part for name, part in vars(model).items() if name in names}
    extra, given = model.__pydantic_extra__ or {}, model.__pydantic_fields_set__
    return Stored(
        held,
        unset=[name for name in (*held, *extra) if name not in given],
        extra=dict(extra),
        private=dict(model.__pydantic_private__ or {}),
    )


def _make_model(kind: type[pydantic.BaseModel], stored: Stored) -> Any:
    declared = kind.__private_attributes__
    takes_extra = kind.model_config.get("extra") == "allow"
    strangers = [name for name in stored.private if name not in declared]
    strangers.extend(() if takes_extra else stored.extra)
    if strangers:
        raise FormatError(f"it has no place for {strangers[0]!r}, which the stored value holds")
    defaults = {name: attribute.get_default() for name, attribute in declared.items()}
    private = {name: part for name, part in defaults.items() if part is not PydanticUndefined}
    model = kind.__new__(kind)
    base = pydantic.RootModel if issubclass(kind, pydantic.RootModel) else pydantic.BaseModel
    state = {
        "__dict__": stored.fields,
        "__pydantic_extra__": stored.extra if takes_extra else None,
        "__pydantic_fields_set__": {*stored.fields, *stored.extra} - set(stored.unset),
        "__pydantic_private__": {**private, **stored.private} if declared else None,
    }
    base.__setstate__(model, state)
    return model


# Dataclasses


def _dataclass_defaults(kind: Any) -> Defaults:
    made: Defaults = {}
    for field in dataclasses.fields(kind):
        if field.default_factory is not dataclasses.MISSING:
            made[field.name] = _factory(field.default_factory)
        else:
            given = field.default is not dataclasses.MISSING
            made[field.name] = _constant(field.default) if given else None
    return made


def _take_dataclass(value: Any) -> Stored:
    names, own, absent = _dataclass_defaults(type(value)), getattr(value, "__dict__", {}), object()
    held = {name: getattr(value, name, absent) for name in names}
    inherited = {n for n in names if n not in own and held[n] is getattr(type(value), n, absent)}
    return Stored(
        {n: part for n, part in held.items() if part is not absent and n not in inherited},
        extra=_beside(value, names),
    )


def _make_dataclass(kind: Any, stored: Stored) -> Any:
    value = object.__new__(kind)
    for name, part in (*stored.fields.items(), *stored.extra.items()):
        object.__setattr__(value, name, part)  # also of a frozen one
    return value


# Named tuples


def _named_tuple_defaults(kind: Any) -> Defaults:
    given = kind._field_defaults
    return {name: _constant(given[name]) if name in given else None for name in kind._fields}


def _take_named_tuple(value: Any) -> Stored:
    return Stored(dict(zip(value._fields, value, strict=True)), extra=_beside(value, ()))


def _make_named_tuple(kind: Any, stored: Stored) -> Any:
    value = tuple.__new__(kind, [stored.fields[name] for name in kind._fields])
    for name, part in stored.extra.items():
        object.__setattr__(value, name, part)
    return value


# Structs


def _struct_defaults(kind: Any) -> Defaults:
    made: Defaults = {}
    for field in msgspec.structs.fields(kind):
        if field.default_factory is not msgspec.NODEFAULT:
            made[field.name] = _factory(field.default_factory)
        else:
            given = field.default is not msgspec.NODEFAULT
            made[field.name] = _constant(field.default) if given else None
    return made


def _take_struct(value: Any) -> Stored:
    names = value.__struct_fields__
    return Stored({name: getattr(value, name) for name in names}, extra=_beside(value, names))


def _make_struct(kind: Any, stored: Stored) -> Any:
    value = kind(**stored.fields)
    for name, part in stored.fields.items():  # whatever __post_init__ has made of them
        msgspec.structs.force_setattr(value, name, part)
    for name, part in stored.extra.items():
        object.__setattr__(value, name, part)
    return value


_MODEL: Final = RecordKind(_model_defaults, _take_model, _make_model)
_DATACLASS: Final = RecordKind(_dataclass_defaults, _take_dataclass, _make_dataclass)
_NAMED_TUPLE: Final = RecordKind(_named_tuple_defaults, _take_named_tuple, _make_named_tuple)
_STRUCT: Final = RecordKind(_struct_defaults, _take_struct, _make_struct)
