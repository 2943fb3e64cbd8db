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
from dspy_session.core.window import CHAT_MESSAGES, WAITED_MESSAGES
from dspy_session.program.frame import Frame
from dspy_session.program.nested import NestedStates
from dspy_session.program.results import results_of
from dspy_session.program.turn_data import Writes

__all__ = [
    "Outcome",
    "answer_to",
    "answered_meanwhile",
    "committed",
    "prediction_in",
    "recorded_results",
    "returned_again",
]


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
    run, prediction = outcome.run, prediction_in(outcome.returned)
    if not isinstance(prediction, dspy.Example):
        run = msgspec.structs.replace(run, plain=True)
    return commit(
        state,
        outcome.step,
        outcome.outputs,
        run,
        outcome.options,
        outcome.details,
        nested=outcome.nested.folded(state.nested if outcome.step.replaces is None else None),
        data=outcome.writes.applied if outcome.writes.keys else None,
        metadata=outcome.metadata,
    )


def answered_meanwhile(state: SessionState, outcome: Outcome) -> Turn | None:
    """Return the turn that answered the same request while this one ran, if one did.

    Args:
        state: The newest state.
        outcome: What the turn left.
    """
    request_id = outcome.run.request_id
    if request_id is None or not outcome.step.records:
        return None
    since = range(max(state.first, outcome.step.after), state.stop)
    return next((turn for turn in map(state.turn, since) if turn.answers(request_id)), None)


def answer_to(state: SessionState, request_id: str) -> Turn | None:
    """Return the newest turn of a state that answered a request, if one did.

    Args:
        state: The state.
        request_id: The request's id.
    """
    newest_first = map(state.turn, range(state.stop - 1, state.first - 1, -1))
    return next((turn for turn in newest_first if turn.answers(request_id)), None)


def returned_again(turn: Turn, options: SessionOptions) -> Any:
    """Return what the program returned for a recorded turn, as far as the turn kept it.

    Args:
        turn: The turn.
        options: The session's options.
    """
    outputs = turn.outputs
    if turn.run.plain:
        return outputs.get("output")
    hidden = {CHAT_MESSAGES, WAITED_MESSAGES, PENDING_TOOL_CALLS, options.history_field}
    details = {name: value for name, value in turn.details.items() if name not in hidden}
    return dspy.Prediction(**{**details, **outputs})


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
