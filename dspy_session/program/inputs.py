"""What a program has to be called with, for callers that know nothing of it but ask somebody."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import dspy
import msgspec

from dspy_session.core.options import SessionOptions
from dspy_session.program.anatomy import faces
from dspy_session.program.slot import _annotations, _forward_of, history_slot

__all__ = ["ProgramInput", "program_inputs"]


class ProgramInput(msgspec.Struct, frozen=True):
    """One input of a program.

    Attributes:
        name: Its name.
        annotation: Its type, as far as anybody said; `str` otherwise.
        required: Whether there is no default.
    """

    name: str
    annotation: Any = str
    required: bool = True


def program_inputs(program: dspy.Module, options: SessionOptions) -> tuple[ProgramInput, ...]:
    """Return the inputs of a program, in their order, without its history.

    They are the parameters of its `forward`. One that takes any keyword has those of the signature
    that it answers: the first one, if it is made of several parts.

    Args:
        program: Any program.
        options: How it is held.

    Example:
        >>> program = dspy.Predict("question, limit: int -> answer")
        >>> inputs = program_inputs(program, SessionOptions())
        >>> [(each.name, each.annotation.__name__) for each in inputs]
        [('question', 'str'), ('limit', 'int')]
    """
    slot = history_slot(program, options)
    hidden = {slot.field, slot.parameter}
    return tuple(each for each in _inputs(program) if each.name not in hidden)


def _inputs(program: dspy.Module) -> Iterator[ProgramInput]:
    function = _forward_of(program)
    if function is None:
        return
    annotations = _annotations(function)
    open_ended, named = False, set[str]()
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            open_ended = True
        elif parameter.kind is not parameter.VAR_POSITIONAL and name != "self":
            named.add(name)
            required = parameter.default is parameter.empty
            yield ProgramInput(name, annotations.get(name, str), required)
    signature = next(faces(program), None) if open_ended else None
    for name, field in (signature.input_fields if signature is not None else {}).items():
        if name not in named and field.annotation != dspy.History:
            yield ProgramInput(name, field.annotation, field.is_required())
