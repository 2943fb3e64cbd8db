"""Where a program takes its history: as an argument of `forward`, or in fields of its predictors.

A program's own history field keeps its name and its place; nothing here changes a program.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, get_args

import dspy
import msgspec

from dspy_session.core.options import CopyMode, Scope, SessionOptions
from dspy_session.errors import HistoryError
from dspy_session.program.anatomy import (
    check_module,
    copy_program,
    faces,
    own_signature,
    predictors,
    walk,
)
from dspy_session.program.tools import refuse_misplaced_tools

__all__ = [
    "HistorySlot",
    "bake_history",
    "declared_history",
    "history_slot",
    "refuse_conflicts",
    "takes_input",
]

_DEFAULT_FIELD: Final = SessionOptions().history_field


class HistorySlot(msgspec.Struct, frozen=True):
    """Where a program takes its history.

    Attributes:
        field: The name under which callers pass a history and examples hold it.
        parameter: The name under which the program's own `forward` takes it; None if it does not,
            and the history only reaches the predictors.
        kind: The type that it is annotated with: `dspy.History`, or a subclass.
    """

    field: str
    parameter: str | None
    kind: type[dspy.History] = dspy.History


def declared_history(signature: type[dspy.Signature], name: str, strict: bool) -> str | None:
    """Return the input field of a signature that is meant to hold a history, or None.

    Args:
        signature: Any signature.
        name: The session's history field: without `strict`, a field of that name is taken whatever
            its annotation.
        strict: Take only fields annotated exactly `dspy.History`.
    """
    fields = signature.input_fields
    for field, info in fields.items():
        if info.annotation == dspy.History:
            return field
    if strict:
        return None
    for field, info in fields.items():
        if _history_type(info.annotation) is not None:
            return field
    return name if name in fields else None


def history_slot(program: dspy.Module, options: SessionOptions) -> HistorySlot:
    """Find where a program takes its history.

    A parameter of `forward` counts if it has the history field's name or mentions `dspy.History`.
    A program that takes `**kwargs` is handed the history if every signature that it is called by
    declares one (a Predict, a ChainOfThought, a ReAct over a signature with a history field); not
    if the field is one only by its name, for then a `dspy.History` is not what its annotation asks
    for. The history inside a ReActV2 is its own business, and reaches no further than one run.

    Args:
        program: Any module.
        options: The session's options.
    """
    name, strict = options.history_field, options.strict_history_annotation
    parameter, kind, open_ended = _forward_parameters(_forward_of(program), name, strict)
    if parameter is None and open_ended:
        declared = {_declaration(signature, name, strict) for signature in faces(program)}
        if len(declared) == 1:
            parameter, kind = declared.pop()
    is_default = name == _DEFAULT_FIELD
    return HistorySlot(
        parameter if parameter and is_default else name, parameter, kind or dspy.History
    )


def _declaration(
    signature: type[dspy.Signature], name: str, strict: bool
) -> tuple[str | None, type[dspy.History] | None]:
    """The declared history field with its type; two times None if it is one only by its name."""
    field = declared_history(signature, name, strict)
    kind = _history_type(signature.input_fields[field].annotation) if field else None
    return (field, kind) if kind else (None, None)


def refuse_conflicts(program: dspy.Module, options: SessionOptions) -> None:
    """Raise if no conversation can reach the program, or not by the name that the options say.

    Args:
        program: Any module.
        options: The session's options.

    Raises:
        HistoryError: An output has that name; or, with `strict_history_annotation`, an input or a
            parameter of `forward` has it and is not annotated exactly `dspy.History`. Or DSPy keeps
            a part of the program where no history reaches it.
        ToolError: As from `refuse_misplaced_tools`.
    """
    _refuse_unreachable(program, options)
    name = options.history_field
    way_out = f'Rename the field, or choose another name: history_field="{name}_".'
    for path, predictor in predictors(program):
        output = predictor.signature.output_fields.get(name)
        if output is not None and _history_type(output.annotation) is None:
            raise HistoryError(
                f"Predictor {path!r} has an output named {name!r}, which is the name of the "
                f"session's history field. {way_out}"
            )
        if not options.strict_history_annotation:
            continue
        field = predictor.signature.input_fields.get(name)
        if field is not None and field.annotation != dspy.History:
            raise HistoryError(
                f"strict_history_annotation=True, but the input {name!r} of predictor {path!r} is "
                f"annotated {field.annotation!r}, not dspy.History. {way_out}"
            )
    if options.strict_history_annotation:
        annotation = _annotations(_forward_of(program)).get(name, dspy.History)
        if annotation is not dspy.History:
            raise HistoryError(
                f"strict_history_annotation=True, but {type(program).__name__}.forward takes "
                f"{name!r} annotated {annotation!r}, not dspy.History. {way_out}"
            )


def _refuse_unreachable(program: dspy.Module, options: SessionOptions) -> None:
    """Raise if DSPy keeps a part of the program where no history or no session data reaches it."""
    for path, module in walk(program):
        refuse_misplaced_tools(path, module)
        if not isinstance(module, _INTERPRETED):
            continue
        what = f"{type(module).__name__} {path!r}"
        for name, field in (own_signature(module) or dspy.Signature).input_fields.items():
            if _history_type(field.annotation) is not None:
                raise HistoryError(
                    f"The {what} has an input {name!r} of type dspy.History. DSPy hands its inputs "
                    "to an interpreter as JSON, which a History is not. Leave the field out: its "
                    "predictors are shown the conversation as readable text."
                )
        hidden = isinstance(module, dspy.Flex) and options.scope is Scope.PROGRAM
        if hidden and not any(predictors(program)):
            raise HistoryError(
                f"The {what} makes its predictors in its interpreter, anew in each call, so that "
                "they are none of the program's and would not see the conversation. Show it to "
                'every predictor that runs: scope="all".'
            )


_INTERPRETED: Final = (dspy.RLM, dspy.Flex)  # their inputs become variables of an interpreter


def takes_input(program: dspy.Module, name: str) -> bool:
    """Whether a program has an input of its own with that name.

    Args:
        program: Any module.
        name: The input's name.
    """
    function = _forward_of(program)
    parameters = inspect.signature(function).parameters if function is not None else {}
    if name in parameters:
        return True
    return any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and any(
        name in signature.input_fields for signature in faces(program)
    )


def _forward_of(program: dspy.Module) -> Callable[..., Any] | None:
    """The function behind a program's `forward`, not its bound form (reading that makes DSPy warn).

    Optimizers replace `forward` on the instance, so that comes first.
    """
    for name in ("forward", "aforward"):
        function = vars(program).get(name) or getattr(type(program), name, None)
        if function is not None:
            return getattr(function, "__func__", function)  # type: ignore[no-any-return]
    return None


@functools.lru_cache(maxsize=256)
def _forward_parameters(
    function: Callable[..., Any] | None, name: str, strict: bool
) -> tuple[str | None, type[dspy.History] | None, bool]:
    """The parameter of `forward` that takes the history, its type, and whether any keyword goes."""
    if function is None:
        return None, None, False
    parameters = inspect.signature(function).parameters
    annotations = _annotations(function)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    found = [n for n in parameters if annotations.get(n) is dspy.History]
    if not strict:
        found += [n for n in parameters if _history_type(annotations.get(n)) is not None]
        found += [n for n, p in parameters.items() if n == name and p.kind is not p.VAR_KEYWORD]
    parameter = next(iter(found), None)
    return parameter, _history_type(annotations.get(parameter or "")), open_ended


def _annotations(function: Callable[..., Any] | None) -> Mapping[str, Any]:
    """The annotations of a function, evaluated where they can be."""
    if function is None:
        return {}
    try:
        return inspect.get_annotations(function, eval_str=True)
    except Exception:  # noqa: BLE001  # a user's code, with names that only type checkers may see
        raw: Mapping[str, Any] = getattr(function, "__annotations__", {})
        return {name: _unevaluated(annotation) for name, annotation in raw.items()}


def _unevaluated(annotation: Any) -> Any:
    """What is known of an annotation that could not be evaluated."""
    if annotation in ("dspy.History", "History"):
        return dspy.History
    if isinstance(annotation, str) and re.search(r"\bHistory\b", annotation):
        return dspy.History | None
    return annotation


def _history_type(annotation: Any) -> type[dspy.History] | None:
    """The `dspy.History`, or the subclass of it, that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, dspy.History):
        return annotation
    found = (_history_type(argument) for argument in get_args(annotation))
    return next((kind for kind in found if kind is not None), None)


def bake_history(program: dspy.Module, history_field: str = "history") -> dspy.Module:
    """Return a copy of a program whose every predictor has a history field in its signature.

    A session needs none of this. It is for code that reads `predictor.signature`: fine-tuning and
    GRPO leave out of their training rows what is not written there.

    Args:
        program: Any program; it is not changed.
        history_field: The field's name, for predictors that declare no history yet.

    Returns:
        A deep copy. The added field comes last among the inputs and defaults to an empty history.

    Example:
        >>> baked = bake_history(dspy.Predict("question -> answer"))
        >>> list(baked.signature.input_fields)
        ['question', 'history']
    """
    baked = copy_program(check_module(program), CopyMode.DEEP)
    for _, predictor in predictors(baked):
        if declared_history(predictor.signature, history_field, strict=False) is None:
            predictor.signature = predictor.signature.append(
                history_field, dspy.InputField(default=dspy.History(messages=[])), dspy.History
            )
    return baked
