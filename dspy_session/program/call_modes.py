"""How a program is called and how it is awaited: not every program has both ways."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import dspy

from dspy_session.errors import CallError

__all__ = ["async_call", "sync_call"]


def async_call(program: dspy.Module) -> Callable[..., Awaitable[Any]]:
    """Return how to await a program: its own `acall`, or its call in a worker thread.

    Args:
        program: Any module.
    """
    if _awaits(program):
        acall: Callable[..., Awaitable[Any]] = program.acall
        return acall
    in_thread: Callable[..., Awaitable[Any]] = dspy.asyncify(program)
    return in_thread


def sync_call(program: dspy.Module) -> Callable[..., Any]:
    """Return how to call a program from code that cannot await.

    Args:
        program: Any module.

    Raises:
        CallError: The program can only be awaited.
    """
    kind = type(program)
    if hasattr(kind, "aforward") and not (hasattr(kind, "forward") or "forward" in vars(program)):
        raise CallError(
            f"{kind.__name__} has an aforward and no forward, so it can only be awaited: "
            "await session.acall(...), or await astep(...). For code that cannot await, give it "
            "a forward: dspy.syncify(program)."
        )
    return program


def _awaits(program: dspy.Module) -> bool:
    """Whether a program's `aforward` does what its `forward` does."""
    kind, own = type(program), vars(program)
    if "aforward" in own:
        return True
    if "forward" in own and hasattr(kind, "forward"):
        return False  # an optimizer put it there; the class's aforward knows nothing of it
    if isinstance(program, dspy.CodeAct) and type(program).aforward is dspy.ReAct.aforward:
        return False  # it inherits that one, which looks for the parts of a ReAct
    return hasattr(kind, "aforward")
