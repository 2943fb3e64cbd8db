"""What is inside a program: predictors, its own history field, its fingerprint, and its copies.

Everything here only reads the program. Ownership goes by a predictor's `stage`, the random id that
DSPy gives each Predict and keeps through deepcopy, pickling and `load_state`; identity of objects
or signatures would lose the copies that BestOfN, Refine and the optimizers make.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import inspect
import json
import re
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, get_args

import dspy
import msgspec
import pydantic

from dspy_session.core.options import CopyMode, SessionOptions
from dspy_session.errors import HistoryError, ModuleTypeError

__all__ = [
    "HistorySlot",
    "bake_history",
    "check_module",
    "copy_program",
    "declared_history",
    "fingerprint",
    "has_foreign_code",
    "history_slot",
    "holds_learned_state",
    "owned_predictors",
    "predictors",
    "refuse_conflicts",
    "signature_stamp",
    "takes_input",
]

# Attributes that hold data, never sub-modules: of every module, and beside those of a Predict.
_MODULE_DATA: Final = frozenset({"history", "callbacks"})
_PREDICT_DATA: Final = _MODULE_DATA | {"demos", "traces", "train", "config", "fields"}


def check_module(module: Any, what: str = "program") -> dspy.Module:
    """Return `module` if it is a `dspy.Module`.

    Args:
        module: What was given.
        what: What it is, for the message.

    Raises:
        ModuleTypeError: It is a class, a function, or anything else.
    """
    if isinstance(module, dspy.Module):
        return module
    if isinstance(module, type) and issubclass(module, dspy.Module):
        hint = f"; {module.__name__} is the class, pass an instance: {module.__name__}(...)"
    elif callable(module):
        hint = "; put a function into the forward method of a dspy.Module"
    else:
        hint = ""
    raise ModuleTypeError(
        f"The {what} must be an instance of dspy.Module, not {type(module).__name__}{hint}."
    )


def walk(program: dspy.Module) -> Iterator[tuple[str, dspy.Module]]:
    """Yield every module inside a program, itself first, with its path; nearer ones come earlier.

    Unlike DSPy's `named_parameters` this enters compiled (frozen) modules and nested containers,
    for their predictors take part in the conversation too.

    Args:
        program: Any module.
    """
    seen: set[int] = set()
    level: list[tuple[str, Any]] = [("self", program)]
    while level:
        below: list[tuple[str, Any]] = []
        for path, item in level:
            if id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, dspy.Module):
                yield path, item
                below.extend(_children(path, item))
            else:
                if _PLAIN.issuperset(map(type, item.values() if isinstance(item, dict) else item)):
                    continue  # a corpus, say: looked through at once
                pairs = item.items() if isinstance(item, dict) else enumerate(item)
                below.extend((f"{path}[{k!r}]", v) for k, v in pairs if isinstance(v, _MAY_HOLD))
        level = below


_MAY_HOLD: Final = (dspy.Module, dict, list, tuple)
_PLAIN: Final = frozenset({str, bytes, int, float, bool, type(None)})
_DEFAULT_FIELD: Final = SessionOptions().history_field


def _children(path: str, module: dspy.Module) -> Iterator[tuple[str, Any]]:
    prefix = "" if path == "self" else f"{path}."
    data = _PREDICT_DATA if isinstance(module, dspy.Predict) else _MODULE_DATA
    for name, value in vars(module).items():
        if isinstance(value, _MAY_HOLD) and name not in data:
            yield f"{prefix}{name}", value


def predictors(program: dspy.Module) -> Iterator[tuple[str, dspy.Predict]]:
    """Yield every Predict inside a program with its path, frozen ones included.

    Args:
        program: Any module.
    """
    for path, module in walk(program):
        if isinstance(module, dspy.Predict):
            yield path, module


def owned_predictors(program: dspy.Module, stage: str) -> tuple[dspy.Predict, ...]:
    """Return the program's predictors with that stage: those made by copying one share it.

    Args:
        program: Any module.
        stage: The `stage` of a predictor or of one of its copies.
    """
    return tuple(p for _, p in predictors(program) if p.stage == stage)


def has_foreign_code(program: dspy.Module) -> bool:
    """Whether any module class in the program was written outside DSPy and this library.

    Only such code can set an adapter of its own while the program runs.

    Args:
        program: Any module.
    """
    return any(
        type(module).__module__.partition(".")[0] not in ("dspy", "dspy_session")
        for _, module in walk(program)
    )


# --- the history field ----------------------------------------------------------------------------


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
    A program that takes `**kwargs` is handed the history if every predictor in it declares one
    (a Predict, a ChainOfThought over a signature with a history field); not if the field is one
    only by its name, for then a `dspy.History` is not what its annotation asks for.

    Args:
        program: Any module.
        options: The session's options.
    """
    name, strict = options.history_field, options.strict_history_annotation
    parameter, kind, open_ended = _forward_parameters(_forward_of(program), name, strict)
    if parameter is None and open_ended:
        declared = {_declaration(found.signature, name, strict) for _, found in predictors(program)}
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
    """Raise if a field of the program has the history field's name, but cannot hold a history.

    Args:
        program: Any module.
        options: The session's options.

    Raises:
        HistoryError: An output has that name; or, with `strict_history_annotation`, an input or a
            parameter of `forward` has it and is not annotated exactly `dspy.History`.
    """
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
        name in predictor.signature.input_fields for _, predictor in predictors(program)
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


# --- copies and learned state ---------------------------------------------------------------------


def copy_program(program: dspy.Module, mode: CopyMode) -> dspy.Module:
    """Return the program that a session works on.

    Args:
        program: The given program; it is not changed.
        mode: See `CopyMode`.

    Returns:
        The copy, or with `CopyMode.NONE` the given object. Unlike DSPy's own deepcopy, a copy keeps
        the callbacks of the modules in it: a program in a session is observed like outside.
    """
    if mode is CopyMode.NONE:
        return program
    copied = copy.copy(program) if mode is CopyMode.SHALLOW else program.deepcopy()
    for (_, original), (_, twin) in zip(walk(program), walk(copied), strict=False):
        if twin is not original:
            twin.callbacks = list(original.callbacks)
    return copied


def holds_learned_state(program: dspy.Module) -> bool:
    """Whether a program holds what an optimizer leaves: demos, or the mark of being compiled.

    Args:
        program: Any module.
    """
    return any(
        getattr(module, "_compiled", False) or getattr(module, "demos", None)
        for _, module in walk(program)
    )


# --- fingerprints ---------------------------------------------------------------------------------


class _Digest(msgspec.Struct):
    stamp: SignatureStamp
    demos: list[dict[str, Any]]
    digest: bytes


SignatureStamp = tuple[str, list[tuple[str, Any, dict[str, Any]]]]


def signature_stamp(signature: type[dspy.Signature]) -> SignatureStamp:
    """Return what a signature says now; optimizers change instructions and fields in place.

    Args:
        signature: Any signature.
    """
    fields: Mapping[str, Any] = signature.fields
    return signature.instructions, [
        (name, info.annotation, dict(info.json_schema_extra)) for name, info in fields.items()
    ]


_digests: weakref.WeakKeyDictionary[dspy.Predict, _Digest] = weakref.WeakKeyDictionary()


def fingerprint(program: dspy.Module) -> str:
    """Return a digest of what a program's predictors would put into a prompt.

    It covers, by path, each predictor's instructions, fields and demos. It says nothing of the LM,
    of the adapter, or of the code in `forward`. A predictor's part is computed again only when its
    signature or its demos change.

    Args:
        program: Any module.

    Returns:
        32 hexadecimal digits (BLAKE2b, 16 bytes), the same in every process.
    """
    whole = hashlib.blake2b(digest_size=16)
    for path, predictor in predictors(program):
        whole.update(path.encode() + b"\0" + _digest_of(predictor))
    return sys.intern(whole.hexdigest())  # one text for all turns of a program


def _digest_of(predictor: dspy.Predict) -> bytes:
    signature, demos = predictor.signature, [dict(demo.items()) for demo in predictor.demos]
    stamp = signature_stamp(signature)
    known = _digests.get(predictor)
    if known is not None and known.stamp == stamp and _same_objects(known.demos, demos):
        return known.digest
    text = json.dumps(_plain([stamp, demos]))
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    _digests[predictor] = _Digest(stamp, demos, digest)
    return digest


def _same_objects(known: list[dict[str, Any]], demos: list[dict[str, Any]]) -> bool:
    return len(known) == len(demos) and all(
        old.keys() == new.keys() and all(old[name] is new[name] for name in old)
        for old, new in zip(known, demos, strict=True)
    )


def _plain(value: Any) -> Any:
    """What stands for a value in a digest: JSON, in which types are named and addresses are not."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    parts: Any = ()
    if isinstance(value, Mapping | dspy.Example):
        parts = value.items()
    elif isinstance(value, pydantic.BaseModel):
        parts = value
    elif isinstance(value, set | frozenset):
        parts = ((text, None) for text in sorted(map(repr, value)))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    else:
        parts = [("", _ADDRESS.sub("", repr(value)))]
    return [type(value).__qualname__, [[_plain(key), _plain(item)] for key, item in parts]]


_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")
