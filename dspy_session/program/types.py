"""The types of a program: those whose values can be written down and read back with it.

Stored data names a type by a tag, `"module:ClassName"`. Such a name is never imported. It is looked
up among the types that the program's own annotations name (of signatures, `forward` and tools,
through generics, unions and the fields of other types, with the subclasses that are there), and
among DSPy's own, whose tags begin with `"dspy:"` wherever DSPy keeps them.
"""

from __future__ import annotations

import enum
import inspect
import pathlib
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar, get_args, get_origin, get_type_hints

import dspy
import pydantic
from dspy.adapters.types.citation import Citations
from dspy.adapters.types.decision import Choice, Noul, Score
from dspy.adapters.types.document import Document

from dspy_session.core.values import (
    ValueCodec,
    ValueCodecs,
    qualified_name,
    register_value_codec,
)
from dspy_session.errors import FormatError, ValueCodecError
from dspy_session.program.anatomy import walk
from dspy_session.program.records import codec_for, is_writable

__all__ = ["ProgramCodecs", "program_codecs"]

_CODE: Final = "dspy:Code_"
"""How the tag of `dspy.Code["python"]` begins: DSPy makes a new class each time it is written."""


def program_codecs(program: dspy.Module) -> ValueCodecs:
    """Return the codecs of a program: the registered ones, and those of its own types.

    `Session` uses them by itself. Give them to `dspy_session.codec` when you store the states of
    `step` yourself: `codec.encode(state, options, codecs=program_codecs(program))`.

    Args:
        program: Any module. Its annotations are read when a value first needs it.

    Example:
        >>> codecs = program_codecs(dspy.Predict("picture: dspy.Image -> label"))
        >>> codecs.for_type(dspy.Image).tag
        'dspy:Image'
    """
    return ProgramCodecs(program)


class ProgramCodecs(ValueCodecs):
    """The registered codecs, and those of a program's own types where none is registered."""

    def __init__(self, program: dspy.Module) -> None:
        self._program = program
        self._codecs: dict[str, list[ValueCodec]] | None = None

    def for_type(self, kind: type) -> ValueCodec | None:
        """Return the codec that writes values of exactly this type, if there is one.

        Args:
            kind: The type of a value.

        Raises:
            ValueCodecError: The program knows another class of the same name.
        """
        registered = super().for_type(kind)
        if registered is not None or not is_writable(kind):
            return registered
        tag = _tag(kind)
        if _is_dspys(kind):
            return codec_for(kind, tag) if issubclass(kind, _roots()) else None
        known = self._under(tag)
        if any(codec.type is not kind for codec in known):
            raise ValueCodecError(
                f"there is more than one class {qualified_name(kind)}, the value's and one that "
                "the program's annotations name (defined again meanwhile, perhaps); register a "
                "codec under a tag of its own, with "
                'dspy_session.register_value_codec(dspy_session.codec_for(that_class, tag="..."))'
            )
        return known[0] if known else None

    def for_tag(self, tag: str) -> ValueCodec | None:
        """Return the codec that reads what was written under a tag, if there is one.

        A class that was moved to another module is found if the program names no other class of
        its name.

        Args:
            tag: A tag from stored data.

        Raises:
            FormatError: The program names more than one such class.
        """
        registered = super().for_tag(tag)
        if registered is not None:
            return registered
        known = self._under(tag)
        if not known and tag.startswith(_CODE):
            return codec_for(dspy.Code[tag.removeprefix(_CODE)], tag)
        module, _, name = tag.partition(":")
        if not known and name and module != "dspy":
            known = [c for codecs in self._all().values() for c in codecs if _ends(c, name)]
        if len(known) > 1 and module != "dspy":
            raise FormatError(
                f"the stored data uses the type tag {tag!r}, and the program's annotations name "
                f"{len(known)} classes of that name; rename one, or register the right one for the "
                "tag before loading, with dspy_session.register_value_codec("
                f"dspy_session.codec_for(that_class, tag={tag!r}))"
            )
        return known[0] if known else None

    def _under(self, tag: str) -> list[ValueCodec]:
        return self._all().get(tag, [])

    def _all(self) -> dict[str, list[ValueCodec]]:
        """The codecs of all types that the program names, by tag; there should be one for each."""
        if self._codecs is None:
            found: dict[str, list[ValueCodec]] = {}
            for kind in _reachable(_annotations(self._program)):
                if is_writable(kind):
                    tag = _tag(kind)
                    found.setdefault(tag, []).append(codec_for(kind, tag))
            self._codecs = found
        return self._codecs


def _tag(kind: type) -> str:
    return f"{'dspy' if _is_dspys(kind) else kind.__module__}:{kind.__qualname__}"


def _is_dspys(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "dspy"


def _ends(codec: ValueCodec, name: str) -> bool:
    return not _is_dspys(codec.type) and codec.type.__qualname__ == name


def _roots() -> tuple[type, ...]:
    """DSPy's own classes of values, the ones inside them too."""
    inner = (dspy.ToolCalls.ToolCall, dspy.ToolCallResults.ToolCallResult, Citations.Citation)
    media = (dspy.Image, dspy.Audio, dspy.File, Document, Citations)
    words = (dspy.Code, dspy.Reasoning, dspy.History, Choice, Noul, Score)
    return (*media, *words, dspy.ToolCalls, dspy.ToolCallResults, *inner)


# --- what annotations name ------------------------------------------------------------------------


def _annotations(program: dspy.Module) -> Iterator[Any]:
    """Every annotation of a program that says of what types its values are."""
    yield from _roots()
    for _, module in walk(program):
        for held in vars(module).values():
            yield from _annotations_in(held)
        for name in ("forward", "aforward"):
            yield from _hints(getattr(type(module), name, None))


def _annotations_in(held: Any) -> Iterator[Any]:
    """The annotations of the signature and the tools that an attribute of a module holds."""
    if isinstance(held, type) and issubclass(held, dspy.Signature):
        yield from (field.annotation for field in held.fields.values())
    elif isinstance(held, dspy.Tool):
        yield from (held.arg_types or {}).values()
        yield from _hints(held.func)
    elif isinstance(held, dict | list | tuple):
        for item in held.values() if isinstance(held, dict) else held:
            if isinstance(item, dspy.Tool):
                yield from _annotations_in(item)


def _hints(annotated: Any) -> Iterable[Any]:
    """The annotations of a function or class; without those that name what is not there."""
    try:
        return get_type_hints(annotated, include_extras=True).values()
    except Exception:  # noqa: BLE001  # annotations are code, which may fail in any way
        written = getattr(annotated, "__annotations__", None) or {}
        return [hint for hint in written.values() if not isinstance(hint, str)]


def _reachable(annotations: Iterable[Any]) -> Iterator[type]:
    """Every class that annotations name, by way of generics, fields and subclasses, once each."""
    seen: set[int] = set()
    waiting = list(annotations)
    held = []  # so that no id is given to another object meanwhile
    while waiting:
        annotation = waiting.pop()
        if id(annotation) in seen:
            continue
        seen.add(id(annotation))
        held.append(annotation)
        waiting.extend(_parts(annotation))
        if inspect.isclass(annotation):
            yield annotation


def _parts(annotation: Any) -> Iterator[Any]:
    """What an annotation is made of, one step further."""
    if isinstance(annotation, enum.Enum):  # in a Literal
        yield type(annotation)
    elif isinstance(annotation, list):  # the arguments of a Callable
        yield from annotation
    elif isinstance(annotation, TypeVar):
        yield from (annotation.__bound__, *annotation.__constraints__)
    elif get_origin(annotation) is not None:
        yield from (get_origin(annotation), *get_args(annotation))
    elif inspect.isclass(annotation):
        if annotation.__module__ != "builtins":
            yield from type.__subclasses__(annotation)
            yield from _hints(annotation)
        fields: dict[str, Any] = getattr(annotation, "__pydantic_fields__", {})
        yield from (field.annotation for field in fields.values())
    else:  # a NewType, a type alias
        yield from (getattr(annotation, name, None) for name in ("__supertype__", "__value__"))


# --- common types beyond the core's ---------------------------------------------------------------


def _register_common_types() -> None:
    for kind in _roots():
        register_value_codec(codec_for(kind, _tag(kind)))
    path = type(pathlib.Path())
    register_value_codec(ValueCodec("uuid", uuid.UUID, str, uuid.UUID))
    register_value_codec(ValueCodec("path", path, str, path))
    for url in (pydantic.AnyUrl, pydantic.AnyHttpUrl, pydantic.HttpUrl):
        register_value_codec(ValueCodec(f"pydantic:{url.__name__}", url, str, url))


_register_common_types()
