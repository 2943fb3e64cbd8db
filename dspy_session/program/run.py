"""Running one turn: one flow, written once as a generator, and two short drivers.

The flow prepares the turn, enters its context, yields what the program is to be called with, is
sent what the program returned, and returns what there is to remember. Sync and async callers differ
only in how they call the program in between.
"""

from __future__ import annotations

import contextlib
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any

import dspy
import msgspec
import pydantic

from dspy_session.core.options import Scope, SessionOptions
from dspy_session.core.state import SessionState
from dspy_session.core.step import Step, commit, prepare
from dspy_session.core.turn import Attempt, Run, Turn, usage_pairs
from dspy_session.core.window import Exchange
from dspy_session.errors import CallError, HistoryError
from dspy_session.program.adapter import wrap_adapter
from dspy_session.program.anatomy import check_module, has_foreign_code, has_inner_agents
from dspy_session.program.call_modes import async_call, sync_call
from dspy_session.program.fingerprints import fingerprint
from dspy_session.program.frame import FRAME_KEY, Draft, Frame, current_frame, running_copy
from dspy_session.program.nested import NestedStates
from dspy_session.program.own_adapters import (
    AdapterKeeper,
    WatchedCallbacks,
    held_adapters_wrapped,
)
from dspy_session.program.results import ResultWatch, recorded_inputs, results_of
from dspy_session.program.settings import NO_SETTINGS, CallSettings, call_settings
from dspy_session.program.slot import history_slot, refuse_conflicts

__all__ = [
    "Outcome",
    "adrive",
    "astep",
    "checked",
    "committed",
    "drive",
    "new_id",
    "prediction_in",
    "running",
    "step",
]


class Outcome(msgspec.Struct, frozen=True, eq=False):
    """What a finished run leaves to be remembered.

    Attributes:
        returned: What the program returned, untouched.
        step: The turn that was prepared.
        outputs: What is recorded of `returned`.
        details: What is kept beside it.
        run: How it went.
        options: The options, with the history field found in the program.
        nested: The conversations of sessions within the program.
    """

    returned: Any
    step: Step
    outputs: dict[str, Any]
    details: dict[str, Any]
    run: Run
    options: SessionOptions
    nested: NestedStates


Flow = Generator[dict[str, Any], Any, Outcome]


def step(
    state: SessionState,
    module: dspy.Module,
    inputs: Mapping[str, Any],
    options: SessionOptions | None = None,
    *,
    lm: dspy.BaseLM | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[Any, SessionState]:
    """Run a program once in a conversation: all that a server needs.

    The module is neither changed nor copied; one serves any number of states, from threads and
    tasks at once.

    Args:
        state: The conversation so far; `SessionState()` to begin one.
        module: Any DSPy program.
        inputs: The program's inputs by name; also a `dspy.History` under the history field, if
            `options.history_policy` is to apply.
        options: How the session behaves; the defaults if None.
        lm: The LM for this turn, instead of the configured and of the predictors' own.
        config: LM settings for every LM call of this turn (`temperature`, `rollout_id`, ...).

    Returns:
        What the program returned, and the new state, whose last turn says how it went.

    Raises:
        SessionError: The call cannot be run as it was written; see `dspy_session.errors`.
        Exception: Whatever the program raises. The state is as it was.

    Example:
        >>> from dspy_session.testing import scripted_lm
        >>> with dspy.context(lm=scripted_lm(lambda prompt: {"answer": "Hello."})):
        ...     prediction, state = step(
        ...         SessionState(), dspy.Predict("question -> answer"), {"question": "Hi"}
        ...     )
        >>> prediction.answer, len(state)
        ('Hello.', 1)
    """
    flow = checked(state, module, inputs, options, call_settings(lm=lm, config=config))
    return _remembered(state, drive(flow, sync_call(module)))


async def astep(
    state: SessionState,
    module: dspy.Module,
    inputs: Mapping[str, Any],
    options: SessionOptions | None = None,
    *,
    lm: dspy.BaseLM | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[Any, SessionState]:
    """As `step`, for async code; a program without `aforward` runs in a worker thread.

    Args:
        state: As in `step`.
        module: As in `step`.
        inputs: As in `step`.
        options: As in `step`.
        lm: As in `step`.
        config: As in `step`.

    Returns:
        As `step`.

    Raises:
        SessionError: As in `step`.
        Exception: As in `step`; also `asyncio.CancelledError`. The state is as it was.
    """
    flow = checked(state, module, inputs, options, call_settings(lm=lm, config=config))
    return _remembered(state, await adrive(flow, async_call(module)))


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

    Yields:
        The keyword arguments to call the program with; send back what it returned.

    Returns:
        The outcome.
    """
    slot = history_slot(program, options)
    if slot.field != options.history_field:
        options = msgspec.structs.replace(options, history_field=slot.field)
    fields, given = _split_history(inputs, slot.field)
    recorded = recorded_inputs(program, fields)
    turn = prepare(state, recorded, options, None if given is None else given.messages, at)
    turn = turn if records else msgspec.structs.replace(turn, records=False)
    twin = running_copy(program) if trial and given is None and not inside else None
    if twin is not None:  # what KNNFewShot returns runs a copy of itself: still the same turn
        given = twin.passed
        turn = msgspec.structs.replace(turn, window=twin.window, explicit=twin.explicit)
    passed = given if turn.seed is None else turn.window.history()  # a new seed is filtered
    if slot.parameter is not None:
        passed = turn.window.history() if passed is None else _fresh(passed)
        passed = _of_kind(passed, slot.kind)
        fields[slot.parameter] = passed
    frame = Frame(
        program=program,
        options=options,
        window=turn.window,
        draft=Draft(),
        nested=NestedStates(program, turn.beside.nested),
        owner=owner,
        passed=passed,
        explicit=turn.explicit,
        given=frozenset(turn.inputs),
        lm=settings.lm,
        config=settings.config,
        trial=trial,
        parent=current_frame(),
    )
    tracker = dspy.settings.usage_tracker
    run = _stopwatch(frame, settings)
    try:
        with held_adapters_wrapped(program), dspy.context(**_surroundings(frame)):
            returned = yield fields
    except BaseException as error:
        if missed is not None:
            missed(_attempt(frame, turn, run(), error))
        raise
    finally:
        frame.draft.hand_up(tracker)
    went = run()
    prediction = prediction_in(returned)
    if tracker is None and dspy.settings.track_usage and isinstance(prediction, dspy.Prediction):
        # DSPy does not, where a tracker is active already.
        prediction.set_lm_usage(frame.draft.get_total_tokens())
    outputs, details = results_of(prediction, frame)
    return Outcome(returned, turn, outputs, details, went, options, frame.nested)


def _stopwatch(frame: Frame, settings: CallSettings) -> Callable[[], Run]:
    """Begin to measure a run; what is returned says how it has gone so far."""
    began, clock = time.time(), time.perf_counter()

    def read() -> Run:
        return Run(
            id=new_id(),
            time=began,
            duration=time.perf_counter() - clock,
            usage=usage_pairs(frame.draft.get_total_tokens()),
            cost=frame.draft.cost,
            fingerprint=fingerprint(frame.program),
            request_id=settings.request_id,
        )

    return read


def _attempt(frame: Frame, step: Step, run: Run, error: BaseException) -> Attempt:
    return Attempt(
        exchange=Exchange(step.inputs, frame.draft.partial),
        window=step.window,
        run=run,
        cancelled=not isinstance(error, Exception),
        error="".join(traceback.format_exception_only(error)).strip(),
    )


def committed(state: SessionState, outcome: Outcome) -> tuple[Turn | None, SessionState]:
    """Remember a finished run.

    Args:
        state: The newest state; turns may have come since the run was prepared.
        outcome: What the run left.

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
    )


def drive(flow: Flow, call: Callable[..., Any]) -> Outcome:
    """Run a flow to its end, calling the program in between.

    Args:
        flow: What `running` returned.
        call: Calls the program with keyword arguments.
    """
    arguments = next(flow)
    try:
        returned = call(**arguments)
    except BaseException as error:
        _abandon(flow, error)
        raise
    return _finish(flow, returned)


async def adrive(flow: Flow, call: Callable[..., Awaitable[Any]]) -> Outcome:
    """As `drive`, awaiting the program.

    Args:
        flow: What `running` returned.
        call: Calls the program with keyword arguments.
    """
    arguments = next(flow)
    try:
        returned = await call(**arguments)
    except BaseException as error:
        _abandon(flow, error)
        raise
    return _finish(flow, returned)


def new_id() -> str:
    """Return an id that no other turn or session has: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def checked(
    state: SessionState,
    module: dspy.Module,
    inputs: Mapping[str, Any],
    options: SessionOptions | None,
    settings: CallSettings,
) -> Flow:
    """Return the flow of a turn of no session, once everything given was found to be right.

    Args:
        state: As in `step`.
        module: As in `step`.
        inputs: As in `step`.
        options: As in `step`.
        settings: What the call brings beside its inputs.

    Raises:
        SessionError: Something was given that cannot be it.
    """
    if not isinstance(state, SessionState):
        raise CallError(
            f"state must be a SessionState, not {type(state).__name__}; begin with SessionState()."
        )
    if options is not None and not isinstance(options, SessionOptions):
        raise CallError(f"options must be SessionOptions, not {type(options).__name__}.")
    check_module(module)
    options = options or SessionOptions()
    refuse_conflicts(module, options)
    return running(module, state, inputs, options, settings=settings)


def _remembered(state: SessionState, outcome: Outcome) -> tuple[Any, SessionState]:
    turn, after = committed(state, outcome)
    if turn is not None:
        outcome.nested.announce()
    return outcome.returned, after


def _split_history(
    inputs: Mapping[str, Any], field: str
) -> tuple[dict[str, Any], dspy.History | None]:
    if not isinstance(inputs, Mapping):
        raise CallError(
            f"inputs must be a mapping from input names to values, not {type(inputs).__name__}."
        )
    fields = dict(inputs)
    if field not in fields:
        return fields, None
    history = fields.pop(field)
    if isinstance(history, dspy.History):
        return fields, history
    raise HistoryError(
        f"{field}= must be a dspy.History, not {type(history).__name__}; for example "
        f"{field}=dspy.History(messages=[...]). If {field!r} is an input of your program and not "
        'its history, choose another name for the latter: history_field="..."'
    )


def _fresh(history: dspy.History) -> dspy.History:
    """A copy of a caller's history for the program, which may add messages to it."""
    copied: dspy.History = history.model_copy(update={"messages": [*map(dict, history.messages)]})
    return copied


def _of_kind(history: dspy.History, kind: type[dspy.History]) -> dspy.History:
    """The history as the type that the program's `forward` asks for, if it can be."""
    if not isinstance(history, kind):
        with contextlib.suppress(pydantic.ValidationError):  # it needs more than messages
            return kind(messages=history.messages)
    return history


def _surroundings(frame: Frame) -> dict[str, Any]:
    """The settings under which the program runs."""
    settings = dspy.settings
    overrides: dict[str, Any] = {
        FRAME_KEY: frame,
        "adapter": wrap_adapter(settings.adapter),
        "usage_tracker": frame.draft,
        "caller_modules": [*(settings.caller_modules or []), frame.draft],
    }
    if frame.lm is not None:
        overrides["lm"] = frame.lm
    callbacks = list(settings.callbacks)
    if frame.options.scope is Scope.ALL or has_inner_agents(frame.program):
        overrides["callbacks"] = callbacks = [*callbacks, ResultWatch(frame)]
    if has_foreign_code(frame.program):
        overrides["callbacks"] = WatchedCallbacks([*callbacks, AdapterKeeper()])
    return overrides


def prediction_in(returned: Any) -> Any:
    """Return what counts of a return value: optimizers make a program return a pair with a trace.

    Args:
        returned: What the program returned.
    """
    if isinstance(returned, tuple) and returned and isinstance(returned[0], dspy.Prediction):
        return returned[0]
    return returned


def _abandon(flow: Flow, error: BaseException) -> None:
    """Leave the turn's context; the error goes on to the caller."""
    try:
        flow.throw(error)
    except BaseException as raised:
        if raised is not error and raised.__cause__ is not error:  # a generator's StopIteration
            raise


def _finish(flow: Flow, returned: Any) -> Outcome:
    try:
        flow.send(returned)
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome
    raise AssertionError("the flow of a turn yields once")
