"""`step` and `astep`: one turn of no session, as a function from a state to the next."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import dspy

from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState
from dspy_session.errors import CallError, OptionError
from dspy_session.program.anatomy import check_module
from dspy_session.program.call_modes import async_call, sync_call
from dspy_session.program.flows import adrive, drive
from dspy_session.program.hooks import Hooks, as_hooks
from dspy_session.program.run import Flow, Outcome, Told, committed, running
from dspy_session.program.settings import CallSettings, call_settings
from dspy_session.program.slot import refuse_conflicts

__all__ = ["astep", "checked", "step"]

_DEFAULTS: Final = SessionOptions()  # never changes, and checking all options takes a while


def step(
    state: SessionState,
    module: dspy.Module,
    inputs: Mapping[str, Any],
    options: SessionOptions | None = None,
    *,
    lm: dspy.BaseLM | None = None,
    config: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    request: Mapping[str, Any] | None = None,
    approvals: Collection[str] = (),
    instructions: Told = None,
    hooks: Hooks | None = None,
    approver: Callable[..., Any] | None = None,
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
        data: Session data in the place of what the state has; the new state goes on with it.
        request: What else came with the call, JSON values by key: for hooks, tools and programs to
            read.
        approvals: The ids of tool calls that were approved; see `turn.pending_tool_calls`.
        instructions: What every predictor is told in this turn, or a function of the state that
            returns it; None for the instructions of the state.
        hooks: What runs around the turn.
        approver: Asked whether a tool that needs approval may run; see `ApprovalRequest`.

    Returns:
        What the program returned, and the new state, whose last turn says how it went.

    Raises:
        SessionError: The call cannot be run as it was written; see `dspy_session.errors`.
        TurnRefusedError: A hook refused the turn.
        Exception: Whatever the program or a hook raises. The state is as it was.

    Example:
        >>> from dspy_session.testing import scripted_lm
        >>> with dspy.context(lm=scripted_lm(lambda prompt: {"answer": "Hello."})):
        ...     prediction, state = step(
        ...         SessionState(), dspy.Predict("question -> answer"), {"question": "Hi"}
        ...     )
        >>> prediction.answer, len(state)
        ('Hello.', 1)
    """
    settings = call_settings(lm=lm, config=config, data=data, request=request, approvals=approvals)
    flow = checked(state, module, inputs, options, settings, instructions, hooks, approver)
    return _remembered(state, drive(flow, sync_call(module)))


async def astep(
    state: SessionState,
    module: dspy.Module,
    inputs: Mapping[str, Any],
    options: SessionOptions | None = None,
    *,
    lm: dspy.BaseLM | None = None,
    config: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    request: Mapping[str, Any] | None = None,
    approvals: Collection[str] = (),
    instructions: Told = None,
    hooks: Hooks | None = None,
    approver: Callable[..., Any] | None = None,
) -> tuple[Any, SessionState]:
    """As `step`, for async code; a program without `aforward` runs in a worker thread.

    Args:
        state: As in `step`.
        module: As in `step`.
        inputs: As in `step`.
        options: As in `step`.
        lm: As in `step`.
        config: As in `step`.
        data: As in `step`.
        request: As in `step`.
        approvals: As in `step`.
        instructions: As in `step`.
        hooks: As in `step`.
        approver: As in `step`.

    Returns:
        As `step`.

    Raises:
        SessionError: As in `step`.
        TurnRefusedError: As in `step`.
        Exception: As in `step`; also `asyncio.CancelledError`. The state is as it was.
    """
    settings = call_settings(lm=lm, config=config, data=data, request=request, approvals=approvals)
    flow = checked(state, module, inputs, options, settings, instructions, hooks, approver)
    return _remembered(state, await adrive(flow, async_call(module)))


def checked(
    state: SessionState,
    module: dspy.Module,
    inputs: Mapping[str, Any],
    options: SessionOptions | None,
    settings: CallSettings,
    instructions: Told = None,
    hooks: Hooks | None = None,
    approver: Callable[..., Any] | None = None,
) -> Flow:
    """Return the flow of a turn of no session, once everything given was found to be right.

    Args:
        state: As in `step`.
        module: As in `step`.
        inputs: As in `step`.
        options: As in `step`.
        settings: What the call brings beside its inputs.
        instructions: As in `step`.
        hooks: As in `step`.
        approver: As in `step`.

    Raises:
        SessionError: Something was given that cannot be it.
    """
    if not isinstance(state, SessionState):
        raise CallError(
            f"state must be a SessionState, not {type(state).__name__}; begin with SessionState()."
        )
    if options is not None and not isinstance(options, SessionOptions):
        raise CallError(f"options must be SessionOptions, not {type(options).__name__}.")
    if approver is not None and not callable(approver):
        raise OptionError(f"approver must be callable, not {type(approver).__name__}.")
    check_module(module)
    options = options or _DEFAULTS
    refuse_conflicts(module, options)
    return running(
        module,
        state,
        inputs,
        options,
        settings=settings,
        instructions=instructions,
        hooks=as_hooks(hooks),
        approver=approver,
    )


def _remembered(state: SessionState, outcome: Outcome) -> tuple[Any, SessionState]:
    turn, after = committed(state, outcome)
    if turn is not None:
        outcome.nested.announce()
    return outcome.returned, after
