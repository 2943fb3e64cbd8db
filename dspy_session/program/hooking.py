"""Hooks around a turn: the flow of a turn that has some.

Middleware is around everything, the first one outermost; then the before-hooks, the program and the
after-hooks. What each hands back is checked at once, so that the next one sees the truth.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import dspy
import msgspec

from dspy_session.core.profile import Instructions
from dspy_session.program.course import Course
from dspy_session.program.flows import Around, Ask, Wish
from dspy_session.program.hook_results import handed, passed_on, result_of, taken
from dspy_session.program.hooks import AfterTurn, BeforeTurn, Hooks, Origin
from dspy_session.program.outcomes import Outcome, committed, prediction_in, recorded_results
from dspy_session.program.turn_data import TurnData, differences

__all__ = ["hooked"]

_Part = Generator[Wish, Any, AfterTurn]


def hooked(
    course: Course, hooks: Hooks, instructions: Instructions | None
) -> Generator[Wish, Any, Outcome]:
    """Run a turn with its hooks.

    Args:
        course: The turn.
        hooks: The hooks.
        instructions: What every predictor is told, unless a hook says otherwise.

    Yields:
        What is to be done; send back what came of it.

    Returns:
        What is to be remembered.
    """
    call = BeforeTurn(
        inputs=course.fields,
        state=course.state,
        data=course.step.beside.data,
        instructions=instructions,
        request=course.request,
    )
    result = yield from _around(course, hooks, 0, call)
    outcome: Outcome = _origin(result).outcome
    if len(course.drafts) > 1:  # what was tried in vain has been paid for too
        outcome = msgspec.structs.replace(outcome, run=course.went())
    return outcome


def _around(course: Course, hooks: Hooks, depth: int, call: BeforeTurn) -> _Part:
    """Run what the middleware from a depth on makes of the turn."""
    if depth == len(hooks.middleware):
        return (yield from _within(course, hooks, call))
    hook = hooks.middleware[depth]

    def answered(passed: BeforeTurn, outputs: Mapping[str, Any]) -> AfterTurn:
        return _answered(course, passed_on(hook, call, given, passed), outputs)

    def rest(passed: Any) -> _Part:
        return _around(course, hooks, depth + 1, passed_on(hook, call, given, passed))

    given = handed(call, answered)
    returned = yield Around(hook, given, rest)
    return _settled(course, result_of(hook, returned))


def _within(course: Course, hooks: Hooks, call: BeforeTurn) -> _Part:
    """Run before-hooks, program and after-hooks."""
    for before in hooks.before_hooks:
        given = handed(call)
        returned = yield Ask(before, given)
        call = passed_on(before, call, given, returned)
    step, data = course.with_inputs(call.inputs), _data(course, call)
    result = _presented(course, (yield from course.run(step, call.inputs, data, call.instructions)))
    for after in hooks.after_hooks:
        returned = yield Ask(after, result)
        result = _settled(course, taken(after, result, returned))
    return result


def _answered(course: Course, call: BeforeTurn, outputs: Mapping[str, Any]) -> AfterTurn:
    """What middleware answers in the program's place."""
    step, data = course.with_inputs(call.inputs), _data(course, call)
    frame = course.frame(step, data, call.instructions)
    return _presented(
        course,
        Outcome(
            returned=dspy.Prediction(**outputs),
            step=step,
            outputs=dict(outputs),
            details={},
            run=course.went(),
            options=course.options,
            nested=frame.nested,
            frame=frame,
            writes=data.end(),
        ),
    )


def _data(course: Course, call: BeforeTurn) -> TurnData:
    """The data that the turn begins with, and what its hooks have written to it so far."""
    began = course.step.beside.data
    return TurnData(began, course.options.max_data_bytes, differences(began, call.data))


def _presented(course: Course, outcome: Outcome) -> AfterTurn:
    """What hooks see of an outcome."""
    as_recorded = msgspec.structs.replace(outcome.step, records=True)
    turn, _ = committed(course.state, msgspec.structs.replace(outcome, step=as_recorded))
    assert turn is not None
    made = AfterTurn(
        turn=turn,
        prediction=prediction_in(outcome.returned),
        state=course.state,
        data=outcome.writes.now,
        metadata=course.state.metadata.changed(outcome.metadata),
        tool_calls=tuple(outcome.frame.draft.tool_calls),
        request=course.request,
    )
    return msgspec.structs.replace(made, _origin=Origin(outcome, made))


def _settled(course: Course, result: AfterTurn) -> AfterTurn:
    """What the next hook sees, when one has changed something."""
    outcome, made = _origin(result).outcome, _origin(result).made
    changes: dict[str, Any] = {}
    if result.prediction is not made.prediction:
        changes["returned"] = result.prediction
        changes["outputs"], changes["details"] = recorded_results(result.prediction, outcome.frame)
    if written := differences(made.data, result.data):
        changes["writes"] = outcome.writes.and_then(written, course.options.max_data_bytes)
    if noted := differences(made.metadata, result.metadata):
        changes["metadata"] = {**outcome.metadata, **noted}
    return _presented(course, msgspec.structs.replace(outcome, **changes)) if changes else result


def _origin(result: AfterTurn) -> Origin:
    origin = result._origin
    assert origin is not None  # `result_of` has seen to that
    return origin
