"""The running turn: a frozen Frame with a call-local Draft, carried in `dspy.context`.

A custom key of `dspy.context` crosses DSPy's own threads, where a ContextVar of ours would be lost
(`dspy.Parallel`, `batch`, `Evaluate`). The Frame says what the turn is; whatever happens inside the
turn gathers in its Draft and is folded in whole when the turn ends, or not at all.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

import dspy
import msgspec
from dspy.utils.usage_tracker import UsageTracker

from dspy_session.core.options import SessionOptions
from dspy_session.core.window import Window
from dspy_session.program.anatomy import owned_predictors

__all__ = ["FRAME_KEY", "Draft", "Frame", "current_frame", "frame_of", "owning_frame"]

FRAME_KEY: Final = "dspy_session_frame"


class Draft(UsageTracker):
    """What gathers during one turn: token usage, cost, and which predictors are the program's.

    DSPy finds it in two places. As `settings.usage_tracker` it counts tokens; `dspy.Parallel` would
    hand each worker a copy, whose counts get lost, so a copy of a Draft is the Draft itself. At the
    head of `settings.caller_modules` it receives the log entry of every LM call, and takes the cost
    from it; the entry itself is not kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cost: float | None = None
        self.entered = False
        self.owned: dict[str, tuple[dspy.Predict, ...]] = {}
        self.history = _CostLog(self)
        self._mutex = threading.Lock()

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """Count the tokens of one LM call, from any thread."""
        with self._mutex:
            super().add_usage(lm, usage_entry)

    def get_total_tokens(self) -> dict[str, dict[str, Any]]:
        """Add up what was counted so far; threads that the turn left behind may still count."""
        with self._mutex:
            total: dict[str, dict[str, Any]] = super().get_total_tokens()
            return total

    def add_cost(self, cost: float) -> None:
        """Count the cost of one LM call in US dollars, from any thread."""
        with self._mutex:
            self.cost = (self.cost or 0.0) + cost

    def hand_up(self, parent: UsageTracker | None) -> None:
        """Add what was counted to the tracker around the turn, as `dspy.track_usage` does."""
        if parent is not None:
            for model, entries in self.usage_data.items():
                parent.usage_data[model].extend(entries)

    def __deepcopy__(self, memo: dict[int, Any]) -> Draft:
        return self


class _CostLog:
    """Stands where DSPy expects a module's list of LM calls; keeps only what they cost."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def __len__(self) -> int:
        return 0

    def append(self, entry: Mapping[str, Any]) -> None:
        # A cached answer carries the cost of the call that once made it, but no usage.
        if entry.get("usage") and entry.get("cost") is not None:
            self._draft.add_cost(entry["cost"])


class Frame(msgspec.Struct, frozen=True, eq=False):
    """One running turn.

    Attributes:
        program: The program that runs.
        options: The session's options; `history_field` is the name found in the program.
        window: What the turn sees of the past.
        draft: Where the turn's side results gather.
        owner: The session that runs the turn; None for a bare `step`.
        passed: The `dspy.History` handed to the program's own `forward`, or by the caller.
        explicit: Whether the caller passed the history: then it also enters DSPy's trace.
        lm: The LM for this turn, before the predictors' own; None for theirs.
        config: LM settings for every call of this turn.
        parent: The turn around this one, if any.
    """

    program: dspy.Module
    options: SessionOptions
    window: Window
    draft: Draft
    owner: object | None = None
    passed: dspy.History | None = None
    explicit: bool = False
    lm: dspy.BaseLM | None = None
    config: Mapping[str, Any] = {}
    parent: Frame | None = None

    def owned(self, caller: Any) -> tuple[dspy.Predict, ...]:
        """Return the program's predictors that `caller` is, or is a copy of; none for others.

        Args:
            caller: The module that makes an LM call.
        """
        if not isinstance(caller, dspy.Predict):
            return ()
        known = self.draft.owned
        if caller.stage not in known:
            known[caller.stage] = owned_predictors(self.program, caller.stage)
        return known[caller.stage]


def current_frame() -> Frame | None:
    """Return the innermost running turn of this thread or task, or None."""
    frame: Frame | None = dspy.settings.get(FRAME_KEY)
    return frame


def owning_frame(caller: Any) -> Frame | None:
    """Return the innermost running turn whose program has a predictor, or None.

    Args:
        caller: A predictor of the program, or a copy of one; anything else belongs to no turn.
    """
    frame = current_frame()
    while frame is not None and not frame.owned(caller):
        frame = frame.parent
    return frame


def frame_of(owner: object) -> Frame | None:
    """Return the running turn of a session in this thread or task, or None.

    Args:
        owner: The session.
    """
    frame = current_frame()
    while frame is not None and frame.owner is not owner:
        frame = frame.parent
    return frame
