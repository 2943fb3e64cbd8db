"""Adapters of a program's own: set inside its `forward`, or held by one of its predictors.

Both come between the adapter that the turn runs under and the predictor, and both would leave the
conversation out. What a program sets is wrapped by a callback, just before a predictor reads it.

What a predictor holds, as the `Predict` of the published TemplateAdapter does, it sets in the
middle of its own call, after the last place where DSPy lets anybody look. So for as long as a turn
of its program runs, it holds its adapter wrapped: the same adapter to everybody but to that turn.
After the last of the turns that run side by side, the predictor holds again what it held.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Final

import dspy
import msgspec
from dspy.utils.callback import BaseCallback

from dspy_session.program.adapter import ConversationAdapter, wrap_adapter
from dspy_session.program.anatomy import walk
from dspy_session.program.frame import owning_frame

__all__ = ["AdapterKeeper", "WatchedCallbacks", "held_adapters_wrapped"]

logger = logging.getLogger("dspy_session")


class AdapterKeeper(BaseCallback):
    """Puts the conversation back in when a program sets an adapter of its own inside `forward`.

    As a callback it runs in the very context in which a predictor is about to read
    `settings.adapter`. One that DSPy's own modules put there (Refine's) delegates to the adapter it
    found, which is ours already.
    """

    def __init__(self) -> None:
        self._entered: dict[str, Any] = {}
        self._told_of: set[type] = set()

    # DSPy calls these by keyword, so an argument that is of no use here is named all the same.
    def on_module_start(
        self,
        call_id: str,
        instance: Any,
        inputs: dict[str, Any],  # noqa: ARG002
    ) -> None:
        """Wrap the active adapter, if a predictor starts under an unwrapped one."""
        adapter = dspy.settings.adapter
        if not isinstance(instance, dspy.Predict) or _carries(adapter):
            return
        entered = dspy.settings.context(adapter=wrap_adapter(adapter))
        entered.__enter__()
        self._entered[call_id] = entered

    def on_module_end(
        self,
        call_id: str,
        outputs: Any,  # noqa: ARG002
        exception: BaseException | None = None,  # noqa: ARG002
    ) -> None:
        """Put back what was there before the predictor started."""
        entered = self._entered.pop(call_id, None)
        if entered is not None:
            entered.__exit__(None, None, None)

    def on_adapter_format_start(
        self,
        call_id: str,  # noqa: ARG002
        instance: Any,
        inputs: dict[str, Any],  # noqa: ARG002
    ) -> None:
        """Say so where the conversation is lost: here a predictor set the adapter in its own call.

        That is after the last place where it could have been wrapped.
        """
        caller = (dspy.settings.caller_modules or [None])[-1]
        if type(caller) in self._told_of or _carries(dspy.settings.adapter):
            return
        frame = owning_frame(caller)
        if frame is not None and frame.window:
            self._told_of.add(type(caller))
            logger.warning(
                "%s makes the adapter %s inside its own forward, where the conversation cannot "
                "reach it. Hold the adapter in an attribute of the predictor, or set it around the "
                "predictor's call.",
                type(caller).__name__,
                type(instance).__name__,
            )


def _carries(adapter: Any) -> bool:
    """Whether the conversation reaches the program through this adapter as it is."""
    kind = type(adapter)
    return kind is ConversationAdapter or kind.__module__.startswith("dspy.predict")


class WatchedCallbacks(list[Any]):
    """Callbacks with an `AdapterKeeper` among them, which costs nothing until it is needed.

    Before every module, adapter and LM call DSPy adds the callee's own callbacks to these, and any
    callback at all makes each of these calls dearer. So the sum leaves the keeper out as long as
    the active adapter carries the conversation: then it would have nothing to do.
    """

    def __add__(self, others: list[Any]) -> list[Any]:
        if _carries(dspy.settings.adapter):
            return [callback for callback in self if type(callback) is not AdapterKeeper] + others
        return [*self, *others]


# --- held by a predictor --------------------------------------------------------------------------


class _Wrapped(msgspec.Struct):
    held: dict[str, dspy.Adapter]
    turns: int = 0


_wrapped: Final[weakref.WeakKeyDictionary[dspy.Predict, _Wrapped]] = weakref.WeakKeyDictionary()
_mutex: Final = threading.Lock()


@contextlib.contextmanager
def held_adapters_wrapped(program: dspy.Module) -> Iterator[None]:
    """Let the conversation through the adapters that predictors hold, while a turn runs.

    Args:
        program: The program of the turn.
    """
    holders = [m for _, m in walk(program) if isinstance(m, dspy.Predict) and _holds_adapters(m)]
    for predictor in holders:
        _wrap(predictor)
    try:
        yield
    finally:
        for predictor in holders:
            _unwrap(predictor)


def _holds_adapters(predictor: dspy.Predict) -> bool:
    """Whether a predictor may use an adapter among its attributes; DSPy's own ones use none."""
    if type(predictor) is dspy.Predict:
        return False
    return any(isinstance(value, dspy.Adapter) for value in vars(predictor).values())


def _wrap(predictor: dspy.Predict) -> None:
    with _mutex:
        wrapped = _wrapped.get(predictor)
        if wrapped is None:
            attributes = vars(predictor).items()
            wrapped = _Wrapped({n: v for n, v in attributes if isinstance(v, dspy.Adapter)})
            _wrapped[predictor] = wrapped
            for name, adapter in wrapped.held.items():
                setattr(predictor, name, wrap_adapter(adapter))
        wrapped.turns += 1


def _unwrap(predictor: dspy.Predict) -> None:
    with _mutex:
        wrapped = _wrapped[predictor]
        wrapped.turns -= 1
        if wrapped.turns:
            return
        del _wrapped[predictor]
        for name, adapter in wrapped.held.items():
            if type(vars(predictor).get(name)) is ConversationAdapter:  # else it has a new one
                setattr(predictor, name, adapter)
