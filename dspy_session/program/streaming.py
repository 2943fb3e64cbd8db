"""Streaming one turn: the flow of `run.py` with a third driver, which hands events over meanwhile.

Rules:

- The program runs in a task of its own, in the context in which the stream was asked for. The
  caller's task is never cancelled, and nothing of the turn's context shows in it.
- A sync stream has that task in an event loop of its own, in a thread of its own, so it also works
  where a loop is running already. The program then runs in a worker thread, as DSPy requires.
- The turn is committed by the caller's side, when it asks for what comes after the last text. So a
  caller who left before that has a conversation without the turn, and an attempt with its text.
- Leaving cancels the task. A sync program cannot be cancelled; it ends at its next token, LM call,
  module or tool. Nobody waits for that, and nothing of it is recorded.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import queue
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any, Final

import dspy
import msgspec
from dspy.streaming import StatusMessageProvider

from dspy_session.core.state import SessionState
from dspy_session.core.turn import Attempt, Turn
from dspy_session.core.window import Exchange
from dspy_session.program.call_modes import seen_through
from dspy_session.program.events import StreamEvent, TurnEvent
from dspy_session.program.frame import current_frame
from dspy_session.program.listening import Choice, Listener
from dspy_session.program.outcomes import returned_again
from dspy_session.program.run import Flow, Outcome, adrive, prediction_in

__all__ = ["Streaming", "as_prediction", "astreamed", "streamed"]

_LEFT: Final = "the stream was left before its end"
_END: Final = object()  # stands behind the last event
_PATIENCE: Final = 1.0  # seconds


class Streaming(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """A turn that is to be streamed.

    Attributes:
        begin: Returns the flow; called when the stream begins.
        call: Calls the program with keyword arguments, or awaits it in an async stream.
        commit: Remembers the outcome, and returns the turn and the new state.
        announce: Called with the turn and the outcome when that is done, outside any lock.
        choice: What to hear of the program.
        statuses: Words the status messages; None for DSPy's own.
        missed: Called with the attempt, if the caller left when the program had ended already.
        waits: Whether `commit` may wait for something, so that an event loop does not call it.
    """

    begin: Callable[[], Flow]
    call: Callable[..., Any]
    commit: Callable[[Outcome], tuple[Turn | None, SessionState]]
    announce: Callable[[Turn | None, Outcome], object]
    choice: Choice
    statuses: StatusMessageProvider | None = None
    missed: Callable[[Attempt], object] | None = None
    waits: bool = False


def streamed(
    plan: Streaming, hold: Callable[[], contextlib.AbstractContextManager[object]]
) -> Generator[StreamEvent, None, None]:
    """Stream a turn to code that cannot await.

    Args:
        plan: The turn.
        hold: Makes what is held until the turn is recorded.

    Returns:
        The events. The turn runs in the context in which this was called.
    """
    return _streamed(plan, hold, contextvars.copy_context())


def _streamed(
    plan: Streaming,
    hold: Callable[[], contextlib.AbstractContextManager[object]],
    context: contextvars.Context,
) -> Generator[StreamEvent, None, None]:
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with hold():
        work = _Work(plan, events.put)
        work.start_thread(context)
        try:
            yield from iter(events.get, _END)
        except BaseException:
            work.give_up()
            # The garbage collector may do this in any thread, also in one that holds a lock which
            # the work waits for. So the work's end is waited for, and not for ever.
            with contextlib.suppress(queue.Empty):
                while events.get(timeout=_PATIENCE) is not _END:
                    pass
            work.left_behind()
            raise
        end, outcome = work.finished()
    plan.announce(end.turn, outcome)
    yield end


def astreamed(
    plan: Streaming, hold: Callable[[], contextlib.AbstractAsyncContextManager[object]]
) -> AsyncGenerator[StreamEvent, None]:
    """Stream a turn to code that awaits.

    Args:
        plan: The turn.
        hold: Makes what is held until the turn is recorded.

    Returns:
        The events. The turn runs in the context in which this was called.
    """
    return _astreamed(plan, hold, contextvars.copy_context())


async def _astreamed(
    plan: Streaming,
    hold: Callable[[], contextlib.AbstractAsyncContextManager[object]],
    context: contextvars.Context,
) -> AsyncGenerator[StreamEvent, None]:
    events: asyncio.Queue[Any] = asyncio.Queue()
    async with hold():
        work = _Work(plan, events.put_nowait)
        task = work.start_task(context)
        try:
            while (event := await events.get()) is not _END:
                yield event
        except BaseException:
            work.give_up()
            import anyio  # noqa: PLC0415  # not before a stream is left

            with anyio.CancelScope(shield=True):  # its own cancellation comes again and again
                await asyncio.wait([task])
            work.left_behind()
            raise
        cancelled = None
        if plan.waits:
            (end, outcome), cancelled = await seen_through(work.finished)
        else:
            end, outcome = work.finished()
    plan.announce(end.turn, outcome)
    if cancelled is not None:
        raise cancelled
    yield end


class _Work:
    """The program's side of a stream: a task that drives the flow and puts events in a queue."""

    def __init__(self, plan: Streaming, put: Callable[[Any], object]) -> None:
        self._plan, self._put = plan, put
        self._listener: Listener | None = None
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    def start_task(self, context: contextvars.Context) -> asyncio.Task[None]:
        """Run in the caller's event loop."""
        self._task = asyncio.create_task(self._run(self._plan.call), context=context)
        return self._task

    def start_thread(self, context: contextvars.Context) -> None:
        """Run in an event loop in a thread, and in that the program in a worker thread."""
        begun = threading.Event()

        async def main() -> None:
            self._task = asyncio.current_task()
            begun.set()
            program = _InThread(self._plan.call)
            await self._run(program)
            await program.over()

        threading.Thread(
            target=lambda: context.run(asyncio.run, main()),
            name="dspy-session stream",
            daemon=True,
        ).start()
        begun.wait()

    async def _run(self, call: Callable[..., Awaitable[Any]]) -> None:
        plan = self._plan
        self._listener = listener = Listener(plan.choice, plan.statuses, self._put)

        async def heard(**arguments: Any) -> Any:
            frame = current_frame()
            assert frame is not None  # the flow has entered it
            listener.draft = frame.draft
            return await call(**arguments)

        try:
            with dspy.context(**listener.settings()):
                self._outcome = await adrive(plan.begin(), heard)
        except BaseException as error:  # noqa: BLE001  # raised again where the events are read
            self._error = error
        self._ended = True
        listener.end(_END)

    def finished(self) -> tuple[TurnEvent, Outcome]:
        """Commit the turn, or raise what the program raised."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # whose traceback would hold it
        outcome = self._outcome
        assert outcome is not None
        turn, state = self._plan.commit(outcome)
        returned = outcome.returned
        if turn is not None and turn.id != outcome.run.id:  # the same request, answered meanwhile
            returned = returned_again(turn, outcome.options)
        return TurnEvent(as_prediction(returned), turn, state), outcome

    def give_up(self) -> None:
        """Cancel what can be cancelled, and let the rest end when it can."""
        if self._listener is not None:
            self._listener.given_up = True
        task = self._task
        if task is not None:  # else it has not begun
            with contextlib.suppress(RuntimeError):  # its loop is closed: it has ended
                task.get_loop().call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None and not self._ended:
            self._task.cancel(_LEFT)

    def left_behind(self) -> None:
        """Keep an attempt of a program that had ended; the flow has seen to it in other cases."""
        outcome, missed = self._outcome, self._plan.missed
        if outcome is None or missed is None:
            return
        assert self._listener is not None
        missed(
            Attempt(
                exchange=Exchange(outcome.step.inputs, self._listener.draft.partial),
                window=outcome.step.window,
                run=outcome.run,
                cancelled=True,
                error=_LEFT,
            )
        )


class _InThread:
    """Awaits a sync program, in a thread from which DSPy can send tokens to this event loop.

    Middleware may call it more than once.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self._calls: list[concurrent.futures.Future[None]] = []

    async def __call__(self, **arguments: Any) -> Any:
        import anyio  # noqa: PLC0415  # not before something is streamed, as in DSPy

        done: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._calls.append(done)
        # A limiter of its own: DSPy's is shared by event loops, between which it wakes nobody.
        return await anyio.to_thread.run_sync(
            functools.partial(self._run, arguments, done),
            abandon_on_cancel=True,
            limiter=anyio.CapacityLimiter(1),
        )

    def _run(self, arguments: dict[str, Any], done: concurrent.futures.Future[None]) -> Any:
        if not done.set_running_or_notify_cancel():
            return None
        try:
            return self._call(**arguments)
        finally:
            done.set_result(None)

    async def over(self) -> None:
        """Wait until the threads are done: one that meets a closing loop could hang for ever."""
        for done in self._calls:
            if not done.cancel():
                await asyncio.wrap_future(done)


def as_prediction(returned: Any) -> dspy.Prediction:
    """What a stream ends with: DSPy's own streams know nothing but predictions."""
    prediction = prediction_in(returned)
    if isinstance(prediction, dspy.Prediction):
        return prediction
    if isinstance(prediction, dspy.Example):
        return dspy.Prediction(**dict(prediction.items()))
    return dspy.Prediction(output=prediction)
