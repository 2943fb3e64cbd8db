"""What is inside a program: its modules and predictors, its copies, and what it has learned.

Everything here only reads the program. Ownership goes by a predictor's `stage`, the random id that
DSPy gives each Predict and keeps through deepcopy, pickling and `load_state`; identity of objects
or signatures would lose the copies that BestOfN, Refine and the optimizers make.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Final

import dspy

from dspy_session.core.options import CopyMode
from dspy_session.errors import ModuleTypeError

__all__ = [
    "check_module",
    "copy_program",
    "faces",
    "has_foreign_code",
    "has_inner_agents",
    "holds_learned_state",
    "is_agent",
    "own_signature",
    "owned_predictors",
    "predictors",
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


def walk(
    program: dspy.Module, into: Callable[[dspy.Module], bool] | None = None
) -> Iterator[tuple[str, dspy.Module]]:
    """Yield every module inside a program, itself first, with its path; nearer ones come earlier.

    Unlike DSPy's `named_parameters` this enters compiled (frozen) modules and nested containers,
    for their predictors take part in the conversation too.

    Args:
        program: Any module.
        into: Says which modules to look into; all if None.
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
                if into is None or into(item):
                    below.extend(_children(path, item))
            else:
                if _PLAIN.issuperset(map(type, item.values() if isinstance(item, dict) else item)):
                    continue  # a corpus, say: looked through at once
                pairs = item.items() if isinstance(item, dict) else enumerate(item)
                below.extend((f"{path}[{k!r}]", v) for k, v in pairs if isinstance(v, _MAY_HOLD))
        level = below


_MAY_HOLD: Final = (dspy.Module, dict, list, tuple)
_PLAIN: Final = frozenset({str, bytes, int, float, bool, type(None)})


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


def own_signature(module: Any) -> type[dspy.Signature] | None:
    """Return the signature that a module answers as a whole, or None if it has none.

    A Predict has one, and so have ReAct, ReActV2, CodeAct, ProgramOfThought, RLM and Flex.

    Args:
        module: Any module.
    """
    signature = getattr(module, "signature", None)
    own = isinstance(signature, type) and issubclass(signature, dspy.Signature)
    return signature if own else None


def is_agent(module: Any) -> bool:
    """Whether a module answers a signature of its own by several steps: a ReAct, an RLM, ...

    Args:
        module: Any module.
    """
    return not isinstance(module, dspy.Predict) and own_signature(module) is not None


def has_inner_agents(program: dspy.Module) -> bool:
    """Whether a program holds an agent; being one itself does not count.

    Args:
        program: Any module.
    """
    return any(is_agent(module) for path, module in walk(program) if path != "self")


def faces(program: dspy.Module) -> Iterator[type[dspy.Signature]]:
    """Yield the signatures by which a program is called: of the outermost modules that have one.

    What an agent's inner predictors take is the agent's own business.

    Args:
        program: Any module.
    """
    for _, module in walk(program, into=lambda found: own_signature(found) is None):
        signature = own_signature(module)
        if signature is not None:
            yield signature


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
