"""What a finished turn leaves, and how it becomes a part of the conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy
import msgspec

from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState
from dspy_session.core.step import Step, commit
from dspy_session.core.turn import PENDING_TOOL_CALLS, Run, Turn
from dspy_session.program.frame import Frame
from dspy_session.program.nested import NestedStates
from dspy_session.program.results import results_of
from dspy_session.program.turn_data import Writes

__all__ = ["Outcome", "committed", "prediction_in", "recorded_results"]


class Outcome(msgspec.Struct, frozen=True, eq=False):
    """What a finished turn leaves to be remembered.

    Attributes:
        returned: What the program returned, untouched.
        step: The turn that was prepared.
        outputs: What is recorded of `returned`.
        details: What is kept beside it.
        run: How it went.
        options: The options, with the history field found in the program.
        nested: The conversations of sessions within the program.
        frame: The turn, which has ended.
        writes: What it wrote to the session data.
        metadata: What hooks changed of the session's metadata, by key.
    """

    returned: Any
    step: Step
    outputs: dict[str, Any]
    details: dict[str, Any]
    run: Run
    options: SessionOptions
    nested: NestedStates
    frame: Frame
    writes: Writes
    metadata: Mapping[str, Any] = {}


def committed(state: SessionState, outcome: Outcome) -> tuple[Turn | None, SessionState]:
    """Remember a finished turn.

    Args:
        state: The newest state; turns may have come since this one was prepared.
        outcome: What the turn left.

    Returns:
        As `commit`.
    """
    return commit(
        state,
        outcome.step,
        outcome.outputs,
        outcome.run,
        outcome.options,
        outcome.details,
        nested=outcome.nested.folded(state.nested if outcome.step.replaces is None else None),
        data=outcome.writes.applied if outcome.writes.keys else None,
        metadata=outcome.metadata,
    )


def prediction_in(returned: Any) -> Any:
    """Return what counts of a return value: optimizers make a program return a pair with a trace.

    Args:
        returned: What the program returned.
    """
    if isinstance(returned, tuple) and returned and isinstance(returned[0], dspy.Prediction):
        return returned[0]
    return returned


def recorded_results(prediction: Any, frame: Frame) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the outputs and the details of a turn, tools that wait for an approval among these.

    Args:
        prediction: What the program returned.
        frame: The turn.
    """
    outputs, details = results_of(prediction, frame)
    if frame.draft.pending_tools:
        details[PENDING_TOOL_CALLS] = list(frame.draft.pending_tools)
    return outputs, details
