"""`step` as a stream: a function that hands over events, with the new state in the last one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Mapping, Sequence
from typing import Any

import dspy
from dspy.streaming import StatusMessageProvider

from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState
from dspy_session.program.call_modes import async_call, sync_call
from dspy_session.program.events import StreamEvent
from dspy_session.program.hooks import Hooks
from dspy_session.program.listening import choose
from dspy_session.program.one_turn import checked
from dspy_session.program.run import Flow, Told, committed
from dspy_session.program.settings import CallSettings, call_settings
from dspy_session.program.streaming import Streaming, astreamed, streamed

__all__ = ["astream_step", "stream_step"]


def stream_step(
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
    stream_fields: Sequence[str] | None = None,
    status_messages: StatusMessageProvider | None = None,
) -> Generator[StreamEvent, None, None]:
    """As `step`, and hand over what happens while it happens.

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
        stream_fields: Which output fields to hear of: `answer`, or `extract.predict.answer` with
            the predictor's path; None for all of type `str` and `dspy.Reasoning`.
        status_messages: Words the status messages; None for DSPy's own.

    Yields:
        Text and status as they come; as the last event a `TurnEvent` with prediction and state.

    Raises:
        SessionError: As `step`; also an unknown field in `stream_fields`.
        TurnRefusedError: A hook refused the turn.
        Exception: Whatever the program or a hook raises. The state is as it was.

    Example:
        >>> from dspy_session.testing import scripted_lm
        >>> with dspy.context(lm=scripted_lm(lambda prompt: {"answer": "Hello."})):
        ...     program = dspy.Predict("question -> answer")
        ...     *texts, end = stream_step(SessionState(), program, {"question": "Hi"})
        >>> "".join(event.text for event in texts), len(end.state)
        ('Hello.', 1)
    """
    settings = call_settings(
        lm=lm,
        config=config,
        data=data,
        request=request,
        approvals=approvals,
        stream_fields=stream_fields,
        status_messages=status_messages,
    )
    flow = checked(state, module, inputs, options, settings, instructions, hooks, approver)
    plan = _plain(state, module, flow, settings, sync_call(module))
    return streamed(plan, contextlib.nullcontext)


def astream_step(
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
    stream_fields: Sequence[str] | None = None,
    status_messages: StatusMessageProvider | None = None,
) -> AsyncGenerator[StreamEvent, None]:
    """As `stream_step`, for `async for`.

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
        stream_fields: As in `stream_step`.
        status_messages: As in `stream_step`.

    Yields:
        As `stream_step`.

    Raises:
        SessionError: As `stream_step`.
        TurnRefusedError: As `stream_step`.
        Exception: As `stream_step`; also `asyncio.CancelledError`. The state is as it was.
    """
    settings = call_settings(
        lm=lm,
        config=config,
        data=data,
        request=request,
        approvals=approvals,
        stream_fields=stream_fields,
        status_messages=status_messages,
    )
    flow = checked(state, module, inputs, options, settings, instructions, hooks, approver)
    plan = _plain(state, module, flow, settings, async_call(module))
    return astreamed(plan, contextlib.nullcontext)


def _plain(
    state: SessionState,
    module: dspy.Module,
    flow: Flow,
    settings: CallSettings,
    call: Callable[..., Any],
) -> Streaming:
    """A turn of no session."""
    return Streaming(
        begin=lambda: flow,
        call=call,
        commit=lambda outcome: committed(state, outcome),
        announce=lambda turn, outcome: None if turn is None else outcome.nested.announce(),
        choice=choose(module, settings.stream_fields),
        statuses=settings.status_messages,
    )
