"""Hooks around a turn: the flow of a turn that has some.

Middleware is around everything, the first one outermost; then the before-hooks, the program and the
after-hooks. From one to the next goes an `Outcome`, of which each is shown a picture of its own.
What it hands back is checked at once, so that the next one sees the truth.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, Final

import dspy
import msgspec

from dspy_session.core.copies import private_copy
from dspy_session.core.profile import Instructions
from dspy_session.program.course import Course
from dspy_session.program.flows import Around, Ask, Wish
from dspy_session.program.hook_results import handed, passed_on, result_of, taken
from dspy_session.program.hooks import AfterTurn, BeforeTurn, Hooks, Origin
from dspy_session.program.outcomes import Outcome, committed, prediction_in, recorded_results
from dspy_session.program.turn_data import TurnData, differences

__all__ = ["hooked", "in_a_hook_of"]

_Part = Generator[Wish, Any, Outcome]

_OWNERS_KEY: Final = "dspy_session_hooked"  # of dspy.context: whose hooks are running


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
        state=course.sees,
        data=course.step.beside.data,
        instructions=instructions,
        request=course.request,
    )
    owners = (*(dspy.settings.get(_OWNERS_KEY) or ()), course.owner)
    with dspy.context(**{_OWNERS_KEY: owners}):
        outcome = yield from _around(course, hooks, 0, call)
    if len(course.drafts) > 1:  # what was tried in vain has been paid for too
        outcome = msgspec.structs.replace(outcome, run=course.went())
    return outcome


def in_a_hook_of(owner: object) -> bool:
    """Whether a session's hooks are running in this thread or task.

    Args:
        owner: The session.
    """
    return any(one is owner for one in dspy.settings.get(_OWNERS_KEY) or ())


def _around(course: Course, hooks: Hooks, depth: int, call: BeforeTurn) -> _Part:
    """Run what the middleware from a depth on makes of the turn."""
    if depth == len(hooks.middleware):
        return (yield from _within(course, hooks, call))
    hook = hooks.middleware[depth]

    def answered(passed: BeforeTurn, outputs: Mapping[str, Any]) -> AfterTurn:
        passed = passed_on(hook, call, given, passed)
        return _presented(course, _answered(course, passed, outputs))

    def rest(passed: Any) -> Generator[Wish, Any, AfterTurn]:
        passed = passed_on(hook, call, given, passed)
        return _seen(course, _around(course, hooks, depth + 1, passed))

    given = handed(call, answered)
    returned = yield Around(hook, given, rest)
    return _settled(course, result_of(hook, returned, course.id))


def _seen(course: Course, part: _Part) -> Generator[Wish, Any, AfterTurn]:
    """Run what middleware runs, and show it the outcome."""
    return _presented(course, (yield from part))


def _within(course: Course, hooks: Hooks, call: BeforeTurn) -> _Part:
    """Run before-hooks, program and after-hooks."""
    for before in hooks.before_hooks:
        given = handed(call)
        returned = yield Ask(before, given)
        call = passed_on(before, call, given, returned)
    step, data = course.with_inputs(call.inputs), _data(course, call)
    outcome = yield from course.run(step, call.inputs, data, call.instructions)
    for after in hooks.after_hooks:
        seen = _presented(course, outcome)
        returned = yield Ask(after, seen)
        outcome = _settled(course, taken(after, seen, returned, course.id))
    return outcome


def _answered(course: Course, call: BeforeTurn, outputs: Mapping[str, Any]) -> Outcome:
    """What middleware answers in the program's place."""
    step, data = course.with_inputs(call.inputs), _data(course, call)
    frame = course.frame(step, data, call.instructions)
    return Outcome(
        returned=dspy.Prediction(**outputs),
        step=step,
        outputs=dict(outputs),
        details={},
        run=course.went(),
        options=course.options,
        nested=frame.nested,
        frame=frame,
        writes=data.end(),
    )


def _data(course: Course, call: BeforeTurn) -> TurnData:
    """The data that the turn begins with, and what its hooks have written to it so far."""
    began = course.step.beside.data
    return TurnData(began, course.options.max_data_bytes, differences(began, call.data))


def _presented(course: Course, outcome: Outcome) -> AfterTurn:
    """What one hook sees of an outcome, which no hook can change in place."""
    outcome = msgspec.structs.replace(
        outcome, outputs=private_copy(outcome.outputs), details=private_copy(outcome.details)
    )
    as_recorded = msgspec.structs.replace(outcome.step, records=True)
    turn, _ = committed(course.state, msgspec.structs.replace(outcome, step=as_recorded))
    assert turn is not None
    made = AfterTurn(
        turn=turn,
        prediction=prediction_in(outcome.returned),
        state=course.sees,
        data=outcome.writes.now,
        metadata=course.state.metadata.changed(outcome.metadata),
        tool_calls=tuple(private_copy(outcome.frame.draft.tool_calls)),
        request=course.request,
    )
    return msgspec.structs.replace(made, _origin=Origin(outcome, made))


def _settled(course: Course, result: AfterTurn) -> Outcome:
    """What a hook made of the outcome that it was shown."""
    origin = result._origin
    assert origin is not None  # `result_of` has seen to that
    outcome: Outcome = origin.outcome
    made = origin.made
    changes: dict[str, Any] = {}
    if result._replaced or result.prediction is not made.prediction:
        changes["returned"] = result.prediction
        changes["outputs"], changes["details"] = recorded_results(result.prediction, outcome.frame)
    if written := differences(made.data, result.data):
        changes["writes"] = outcome.writes.and_then(written, course.options.max_data_bytes)
    if noted := differences(made.metadata, result.metadata):
        changes["metadata"] = {**outcome.metadata, **noted}
    return msgspec.structs.replace(outcome, **changes) if changes else outcome
