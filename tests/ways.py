"""Every way to run a turn, as one kind of function: from a state to prediction and next state."""

import asyncio
from collections.abc import Callable
from typing import Any

import dspy
import pytest

from dspy_session import (
    Session,
    SessionState,
    TurnEvent,
    astep,
    astream_step,
    step,
    stream_step,
)

Way = Callable[..., tuple[Any, SessionState]]


def _ended(event: Any) -> tuple[Any, SessionState]:
    assert isinstance(event, TurnEvent)
    return event.prediction, event.state


def _astep(*args: Any, **keywords: Any) -> tuple[Any, SessionState]:
    return asyncio.run(astep(*args, **keywords))


def _stream_step(*args: Any, **keywords: Any) -> tuple[Any, SessionState]:
    return _ended([*stream_step(*args, **keywords)][-1])


def _astream_step(*args: Any, **keywords: Any) -> tuple[Any, SessionState]:
    async def read() -> Any:
        return [event async for event in astream_step(*args, **keywords)][-1]

    return _ended(asyncio.run(read()))


def _session(
    state: SessionState,
    program: dspy.Module,
    inputs: dict[str, Any],
    *,
    hooks: Any = None,
    instructions: Any = None,
    **using: Any,
) -> tuple[Session, Any]:
    session = Session.from_state(state, program, hooks=hooks, instructions=instructions)
    return session, session.using(**using)


def _call(*args: Any, **keywords: Any) -> tuple[Any, SessionState]:
    session, call = _session(*args, **keywords)
    return call(**args[2]), session.state


def _acall(*args: Any, **keywords: Any) -> tuple[Any, SessionState]:
    session, call = _session(*args, **keywords)
    return asyncio.run(call.acall(**args[2])), session.state


def _stream(*args: Any, **keywords: Any) -> tuple[Any, SessionState]:
    _, call = _session(*args, **keywords)
    return _ended([*call.stream(**args[2])][-1])


def _astream(*args: Any, **keywords: Any) -> tuple[Any, SessionState]:
    _, call = _session(*args, **keywords)

    async def read() -> Any:
        return [event async for event in call.astream(**args[2])][-1]

    return _ended(asyncio.run(read()))


STEPS: dict[str, Way] = {
    "step": step,
    "astep": _astep,
    "stream_step": _stream_step,
    "astream_step": _astream_step,
}
SESSIONS: dict[str, Way] = {
    "session": _call,
    "acall": _acall,
    "stream": _stream,
    "astream": _astream,
}

every_step = pytest.mark.parametrize("run", STEPS.values(), ids=STEPS)
every_way = pytest.mark.parametrize(
    "run", [*STEPS.values(), *SESSIONS.values()], ids=[*STEPS, *SESSIONS]
)
