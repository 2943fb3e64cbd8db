"""Running one turn: one flow, written once as a generator, and two short drivers.

The flow prepares the turn, enters its context, yields what the program is to be called with, is
sent what the program returned, and returns what there is to remember. Sync and async callers differ
only in how they call the program in between.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any

import dspy
import msgspec
import pydantic

from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState
from dspy_session.core.step import Step, commit, prepare
from dspy_session.core.turn import Run, usage_pairs
from dspy_session.errors import CallError, HistoryError
from dspy_session.program.adapter import AdapterKeeper, WatchedCallbacks, wrap_adapter
from dspy_session.program.anatomy import check_module, has_foreign_code
from dspy_session.program.fingerprints import fingerprint
from dspy_session.program.frame import FRAME_KEY, Draft, Frame, current_frame
from dspy_session.program.slot import history_slot, refuse_conflicts, takes_input

__all__ = ["Outcome", "adrive", "astep", "drive", "new_id", "running", "split_settings", "step"]


class Outcome(msgspec.Struct, frozen=True, eq=False):
    """What a finished run leaves to be remembered.

    Attributes:
        returned: What the program returned, untouched.
        step: The turn that was prepared.
        outputs: What is recorded of `returned`.
        run: How it went.
        options: The options, with the history field found in the program.
    """

    returned: Any
    step: Step
    outputs: dict[str, Any]
    run: Run
    options: SessionOptions


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
    flow = _checked(state, module, inputs, options, lm, config)
    return _committed(state, drive(flow, module))


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
    flow = _checked(state, module, inputs, options, lm, config)
    return _committed(state, await adrive(flow, async_call(module)))


def running(
    program: dspy.Module,
    state: SessionState,
    inputs: Mapping[str, Any],
    options: SessionOptions,
    *,
    owner: object | None = None,
    lm: dspy.BaseLM | None = None,
    config: Mapping[str, Any] | None = None,
) -> Flow:
    """The flow of one turn.

    Args:
        program: The program that runs.
        state: The conversation that it sees.
        inputs: Its inputs, perhaps with a history.
        options: The session's options.
        owner: The session, so that it can tell that it is inside its own turn.
        lm: As in `step`.
        config: As in `step`.

    Yields:
        The keyword arguments to call the program with; send back what it returned.

    Returns:
        The outcome.
    """
    slot = history_slot(program, options)
    if slot.field != options.history_field:
        options = msgspec.structs.replace(options, history_field=slot.field)
    fields, given = _split_history(inputs, slot.field)
    turn = prepare(state, fields, options, None if given is None else given.messages)
    passed = given if turn.seed is None else turn.window.history()  # a new seed is filtered
    if slot.parameter is not None:
        passed = _of_kind(turn.window.history() if passed is None else passed, slot.kind)
        fields[slot.parameter] = passed
    frame = Frame(
        program=program,
        options=options,
        window=turn.window,
        draft=Draft(),
        owner=owner,
        passed=passed,
        explicit=turn.explicit,
        lm=lm,
        config=dict(config or {}),
        parent=current_frame(),
    )
    tracker = dspy.settings.usage_tracker
    began, clock = time.time(), time.perf_counter()
    draft = frame.draft
    try:
        with dspy.context(**_surroundings(frame, lm)):
            returned = yield fields
    finally:
        draft.hand_up(tracker)
    duration = time.perf_counter() - clock
    usage = draft.get_total_tokens()
    prediction = _prediction_in(returned)
    if tracker is None and dspy.settings.track_usage and isinstance(prediction, dspy.Prediction):
        prediction.set_lm_usage(usage)  # DSPy does not, where a tracker is active already
    run = Run(
        id=new_id(),
        time=began,
        duration=duration,
        usage=usage_pairs(usage),
        cost=draft.cost,
        fingerprint=fingerprint(program),
    )
    return Outcome(returned, turn, _outputs_of(prediction, options), run, options)


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


def async_call(program: dspy.Module) -> Callable[..., Awaitable[Any]]:
    """Return how to await a program: its own `acall`, or its call in a worker thread.

    Args:
        program: Any module.
    """
    if "aforward" in vars(program) or hasattr(type(program), "aforward"):
        acall: Callable[..., Awaitable[Any]] = program.acall
        return acall
    in_thread: Callable[..., Awaitable[Any]] = dspy.asyncify(program)
    return in_thread


def split_settings(
    program: dspy.Module, arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take `lm` and `config` out of a call's arguments, unless the program has such inputs.

    Args:
        program: The program.
        arguments: What it was called with.

    Returns:
        The inputs, and the settings that came among them.
    """
    inputs = dict(arguments)
    settings: dict[str, Any] = {}
    for name in ("lm", "config"):
        if name in inputs and not takes_input(program, name):
            settings[name] = inputs.pop(name)
    _check_settings(**settings)
    return inputs, settings


def _check_settings(lm: Any = None, config: Any = None) -> None:
    if not (lm is None or isinstance(lm, dspy.BaseLM) or hasattr(lm, "supports_decision_requests")):
        raise CallError(
            'lm= must be a language model, for example dspy.LM("openai/gpt-5-mini"), '
            f"not {type(lm).__name__}."
        )
    if config is not None and not isinstance(config, Mapping):
        raise CallError(
            'config= must be a dict of LM settings, for example {"temperature": 0.2}, '
            f"not {type(config).__name__}."
        )


def new_id() -> str:
    """Return an id that no other turn or session has: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def _checked(
    state: SessionState,
    module: dspy.Module,
    inputs: Mapping[str, Any],
    options: SessionOptions | None,
    lm: dspy.BaseLM | None,
    config: Mapping[str, Any] | None,
) -> Flow:
    if not isinstance(state, SessionState):
        raise CallError(
            f"state must be a SessionState, not {type(state).__name__}; begin with SessionState()."
        )
    if options is not None and not isinstance(options, SessionOptions):
        raise CallError(f"options must be SessionOptions, not {type(options).__name__}.")
    check_module(module)
    _check_settings(lm, config)
    options = options or SessionOptions()
    refuse_conflicts(module, options)
    return running(module, state, inputs, options, lm=lm, config=config)


def _committed(state: SessionState, outcome: Outcome) -> tuple[Any, SessionState]:
    _, after = commit(state, outcome.step, outcome.outputs, outcome.run, outcome.options)
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


def _of_kind(history: dspy.History, kind: type[dspy.History]) -> dspy.History:
    """The history as the type that the program's `forward` asks for, if it can be."""
    if not isinstance(history, kind):
        with contextlib.suppress(pydantic.ValidationError):  # it needs more than messages
            return kind(messages=history.messages)
    return history


def _surroundings(frame: Frame, lm: dspy.BaseLM | None) -> dict[str, Any]:
    """The settings under which the program runs."""
    settings = dspy.settings
    overrides: dict[str, Any] = {
        FRAME_KEY: frame,
        "adapter": wrap_adapter(settings.adapter),
        "usage_tracker": frame.draft,
        "caller_modules": [*(settings.caller_modules or []), frame.draft],
    }
    if lm is not None:
        overrides["lm"] = lm
    if has_foreign_code(frame.program):
        overrides["callbacks"] = WatchedCallbacks([*settings.callbacks, AdapterKeeper()])
    return overrides


def _prediction_in(returned: Any) -> Any:
    """What counts of a return value: optimizers make a program return `(prediction, trace)`."""
    if isinstance(returned, tuple) and returned and isinstance(returned[0], dspy.Prediction):
        return returned[0]
    return returned


def _outputs_of(returned: Any, options: SessionOptions) -> dict[str, Any]:
    """What is recorded of a return value: the fields of a Prediction, or the value as `output`."""
    if not isinstance(returned, dspy.Example):
        return {"output": returned}
    return {name: value for name, value in returned.items() if name != options.history_field}


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
