"""Whether DSPy's evaluator or one of its optimizers is running this call.

DSPy sets no flag for it, and its marks of an active compilation do not reach its worker threads.
The call stack tells, in every thread: an evaluator calls the program from a function of its own.
One look costs about 0.1 microseconds per frame.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Final

import dspy.teleprompt

from dspy_session.program.frame import current_frame

__all__ = ["evaluating"]


def _modules(folders: Iterable[str], package: str) -> Iterator[str]:
    """The names of all modules in a package; none is imported."""
    for found in pkgutil.iter_modules(folders):
        name = f"{package}.{found.name}"
        yield name
        if found.ispkg:
            yield from _modules([str(Path(folder, found.name)) for folder in folders], name)


_OPTIMIZERS: Final = frozenset(_modules(dspy.teleprompt.__path__, "dspy.teleprompt"))
# What `Ensemble` returns is a program, whose `forward` stands in the optimizer's own file.
_EVALUATORS: Final = (_OPTIMIZERS | {"dspy.evaluate.evaluate"}) - {"dspy.teleprompt.ensemble"}
"""The names of the modules whose functions call programs to try them."""


def evaluating() -> bool:
    """Return whether this call is one of an evaluator or an optimizer: a trial, not a turn.

    What a trial calls in threads of DSPy's belongs to it too, if a session runs in it.
    """
    turn = current_frame()
    while turn is not None:
        if turn.trial:
            return True
        turn = turn.parent
    caller: FrameType | None = sys._getframe(1)
    while caller is not None:
        if caller.f_globals.get("__name__") in _EVALUATORS:
            return True
        caller = caller.f_back
    return False
