"""Running one turn: one flow, written once, for sync and async callers and for streams.

The flow prepares the turn, enters its context, yields what the program is to be called with, is
sent what the program returned, and returns what there is to remember. Hooks stand around that,
outside of the turn's context. Who calls the program and the hooks, and how, is up to the drivers,
`drive` and `adrive`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

import dspy

from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState
from dspy_session.core.turn import Attempt
from dspy_session.core.window import Window
from dspy_session.program.course import Course, Told, new_id
from dspy_session.program.flows import Wish, adrive, drive
from dspy_session.program.hooking import hooked
from dspy_session.program.hooks import Hooks, as_hooks
from dspy_session.program.outcomes import Outcome, committed, prediction_in
from dspy_session.program.settings import NO_SETTINGS, CallSettings
from dspy_session.program.turn_data import TurnData

__all__ = [
    "Flow",
    "Outcome",
    "Told",
    "adrive",
    "committed",
    "drive",
    "new_id",
    "prediction_in",
    "running",
]

Flow = Generator[Wish, Any, Outcome]
"""What `running` returns, for `drive` and `adrive`."""


def running(
    program: dspy.Module,
    state: SessionState,
    inputs: Mapping[str, Any],
    options: SessionOptions,
    *,
    owner: object | None = None,
    settings: CallSettings = NO_SETTINGS,
    at: int | None = None,
    missed: Callable[[Attempt], object] | None = None,
    trial: bool = False,
    inside: bool = False,
    records: bool = True,
    instructions: Told = None,
    hooks: Hooks | None = None,
    approver: Callable[..., Any] | None = None,
    window: Window | None = None,
) -> Flow:
    """The flow of one turn.

    Args:
        program: The program that runs.
        state: The conversation that it sees.
        inputs: Its inputs, perhaps with a history.
        options: The session's options.
        owner: The session, so that it can tell that it is inside its own turn.
        settings: What the call brings beside its inputs.
        at: The index of the turn that this one is to stand in for; None to go on after the last.
        missed: Called with the attempt, if the turn ends by an error or is given up.
        trial: See `Frame.trial`.
        inside: Whether the owner is a part of the program of a turn around this one.
        records: Whether the outcome may be remembered.
        instructions: What every predictor is told; None for the instructions of the state.
        hooks: What runs around the turn.
        approver: See `Frame.approver`.
        window: What the turn sees of the past instead of what it would see.

    Yields:
        What is to be done; send back what came of it.

    Returns:
        The outcome.
    """
    course = Course(
        program,
        state,
        inputs,
        options,
        settings,
        at,
        owner,
        approver,
        trial,
        inside,
        records,
        window,
    )
    hooks = None if course.twin is not None else as_hooks(hooks)
    course.watched = hooks is not None and hooks.look_at_tools
    try:
        told = course.told(instructions)
        if hooks is None:
            began = TurnData(course.step.beside.data, options.max_data_bytes)
            return (yield from course.run(course.step, course.fields, began, told))
        return (yield from hooked(course, hooks, told))
    except BaseException as error:
        if missed is not None:
            missed(course.attempt(error))
        raise
