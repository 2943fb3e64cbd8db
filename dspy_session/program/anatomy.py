"""What is inside a program: predictors, its own history field, its fingerprint, and its copies.

Everything here only reads the program. Ownership goes by a predictor's `stage`, the random id that
DSPy gives each Predict and keeps through deepcopy, pickling and `load_state`; identity of objects
or signatures would lose the copies that BestOfN, Refine and the optimizers make.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import json
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, get_args

import dspy
import msgspec

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
    "takes_input",
]

# Attributes of DSPy's own that hold data, never sub-modules.
_DATA_ATTRIBUTES: Final = frozenset(
    {"history", "callbacks", "demos", "traces", "train", "signature", "config", "fields", "lm"}
)


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
            elif isinstance(item, dict):
                below.extend((f"{path}[{key!r}]", value) for key, value in item.items())
            elif isinstance(item, list | tuple):
                below.extend((f"{path}[{number}]", value) for number, value in enumerate(item))
        level = below


def _children(path: str, module: dspy.Module) -> Iterator[tuple[str, Any]]:
    prefix = "" if path == "self" else f"{path}."
    for name, value in vars(module).items():
        if name not in _DATA_ATTRIBUTES and isinstance(value, dspy.Module | list | tuple | dict):
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
    """

    field: str
    parameter: str | None


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
        if _mentions_history(info.annotation):
            return field
    return name if name in fields else None


def history_slot(program: dspy.Module, options: SessionOptions) -> HistorySlot:
    """Find where a program takes its history.

    A parameter of `forward` counts if it has the history field's name or mentions `dspy.History`.
    A program that takes `**kwargs` is handed the history if every predictor in it declares one
    (a Predict, a ChainOfThought over a signature with a history field).

    Args:
        program: Any module.
        options: The session's options.
    """
    name, strict = options.history_field, options.strict_history_annotation
    parameter, open_ended = _forward_parameters(_forward_of(program), name, strict)
    if parameter is None and open_ended:
        declared = {
            declared_history(predictor.signature, name, strict)
            for _, predictor in predictors(program)
        }
        if len(declared) == 1:
            parameter = declared.pop()
    is_default = name == SessionOptions().history_field
    return HistorySlot(parameter if parameter and is_default else name, parameter)


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
        if output is not None and not _mentions_history(output.annotation):
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
    if function is not None and name in inspect.signature(function).parameters:
        return True
    return any(name in predictor.signature.input_fields for _, predictor in predictors(program))


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
) -> tuple[str | None, bool]:
    """The parameter of `forward` that takes the history, and whether it takes any keyword."""
    if function is None:
        return None, False
    parameters = inspect.signature(function).parameters
    annotations = _annotations(function)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    exact = [n for n in parameters if annotations.get(n) is dspy.History]
    if strict:
        return next(iter(exact), None), open_ended
    close = [n for n in parameters if _mentions_history(annotations.get(n))]
    named = [
        n
        for n in parameters
        if n == name and parameters[n].kind is not inspect.Parameter.VAR_KEYWORD
    ]
    return next(iter([*exact, *close, *named]), None), open_ended


def _annotations(function: Callable[..., Any] | None) -> Mapping[str, Any]:
    """The annotations of a function, evaluated where they can be."""
    if function is None:
        return {}
    try:
        return inspect.get_annotations(function, eval_str=True)
    except Exception:  # noqa: BLE001  # a user's code, with names that only type checkers may see
        raw: Mapping[str, Any] = getattr(function, "__annotations__", {})
        return {
            name: dspy.History if text in ("dspy.History", "History") else text
            for name, text in raw.items()
        }


def _mentions_history(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, dspy.History):
        return True
    return any(_mentions_history(argument) for argument in get_args(annotation))


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
    signature: type[dspy.Signature]
    instructions: str
    demos: list[dict[str, Any]]
    digest: bytes


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
    return whole.hexdigest()


def _digest_of(predictor: dspy.Predict) -> bytes:
    signature, demos = predictor.signature, [dict(demo.items()) for demo in predictor.demos]
    known = _digests.get(predictor)
    if (
        known is not None
        and known.signature is signature
        and known.instructions == signature.instructions
        and _same_objects(known.demos, demos)
    ):
        return known.digest
    content = {
        "signature": signature.dump_state(),
        "fields": [[name, repr(info.annotation)] for name, info in signature.fields.items()],
        "demos": demos,
    }
    text = json.dumps(content, sort_keys=True, default=_stable_text)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    _digests[predictor] = _Digest(signature, signature.instructions, demos, digest)
    return digest


def _same_objects(known: list[dict[str, Any]], demos: list[dict[str, Any]]) -> bool:
    return len(known) == len(demos) and all(
        old.keys() == new.keys() and all(old[name] is new[name] for name in old)
        for old, new in zip(known, demos, strict=True)
    )


def _stable_text(value: Any) -> Any:
    """What stands for a value that JSON cannot hold: never an address."""
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return [type(value).__qualname__, dump(mode="json")]
    return type(value).__qualname__
