"""How a session runs turns: called, awaited, streamed.

A call runs the program on the state, and publishes the next state last. A turn is recorded around
`__call__`, not inside `forward`, because optimizers replace `forward`. Nothing is locked while an
LM is called, unless the session was made with a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from typing import Any

from dspy_session.core.options import Lock
from dspy_session.core.state import SessionState
from dspy_session.core.turn import Attempt, Turn
from dspy_session.errors import CallError, LockError, StoreError
from dspy_session.program import run as program_run
from dspy_session.program.call_modes import async_call, seen_through, sync_call
from dspy_session.program.evaluating import evaluating
from dspy_session.program.events import StreamEvent, TurnEvent
from dspy_session.program.frame import Frame, frame_of, home_of
from dspy_session.program.hooking import in_a_hook_of
from dspy_session.program.listening import choose
from dspy_session.program.outcomes import answer_to, answered_meanwhile, returned_again
from dspy_session.program.settings import NO_SETTINGS, CallSettings, split_settings
from dspy_session.program.streamify import ended_with, unless_left
from dspy_session.program.streaming import Streaming, as_prediction, astreamed, streamed
from dspy_session.summarizing import Summarizing

__all__ = ["Calls"]

logger = logging.getLogger("dspy_session")

_INSIDE_HINT = (
    "This session was called inside its own turn. Its program may call other sessions or "
    "session.fork(), but not the session that is waiting for it."
)


class Calls(Summarizing):
    """The part of a session that runs turns; made by `Session`, not by hand."""

    _attempts: tuple[Attempt, ...]
    _records: bool | None = None  # None: unless an evaluator or an optimizer asks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one turn and return what the program returned.

        Args:
            *args: None; inputs are given by keyword.
            **kwargs: The program's inputs; `history=` a `dspy.History`, see `history_policy`;
                `lm=` an LM and `config=` LM settings for this turn, unless the program has inputs
                of these names.

        Raises:
            CallError: Positional arguments, or a `history=` that is none.
            LockError: The session is running this turn already, or needs `acall`.
            Exception: Whatever the program raises; the conversation is as it was.
        """
        return self._call(args, kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Run one turn in async code; as calling the session, awaited.

        Args:
            *args: None; inputs are given by keyword.
            **kwargs: As for calling the session.

        Raises:
            CallError: As for calling the session.
            LockError: As for calling the session, or its lock is for threads.
            Exception: Whatever the program raises; the conversation is as it was.
        """
        return await self._acall(args, kwargs)

    def stream(self, *args: Any, **kwargs: Any) -> Generator[StreamEvent, None, None]:
        """Run one turn, and hand over what happens while it happens.

        The turn is recorded when the program has ended and the reader asks for the last event. A
        reader who leaves before that has the conversation as it was, and an attempt with the text
        that had arrived.

        Args:
            *args: None, as for calling the session.
            **kwargs: As for calling the session.

        Yields:
            `TextEvent` and `StatusEvent` as they come; as the last one a `TurnEvent`.

        Raises:
            CallError: As for calling the session.
            LockError: As for calling the session.
            Exception: Whatever the program raises; the conversation is as it was.
        """
        return self._stream(args, kwargs)

    def astream(self, *args: Any, **kwargs: Any) -> AsyncGenerator[StreamEvent, None]:
        """As `stream`, for `async for`; the program runs as under `acall`.

        Args:
            *args: None, as for calling the session.
            **kwargs: As for calling the session.

        Yields:
            As `stream`.

        Raises:
            CallError: As for calling the session.
            LockError: As for `acall`.
            Exception: Whatever the program raises; the conversation is as it was.
        """
        return self._astream(args, kwargs)

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The latest calls that failed or were cancelled, oldest first; see `max_stored_attempts`.

        They are not saved, and forks begin without any.
        """
        return self._attempts

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one turn; the same as calling the session.

        Args:
            *args: None, as for calling the session.
            **kwargs: As for calling the session.
        """
        frame = frame_of(self)
        if frame is None:
            return self(*args, **kwargs)
        with _entered(frame):
            return sync_call(frame.program)(**kwargs)

    async def aforward(self, *args: Any, **kwargs: Any) -> Any:
        """Run one turn in async code; the same as `acall`.

        Args:
            *args: None, as for calling the session.
            **kwargs: As for calling the session.
        """
        frame = frame_of(self)
        if frame is None:
            return await self.acall(*args, **kwargs)
        with _entered(frame):
            return await async_call(frame.program)(**kwargs)

    # --- one turn ---------------------------------------------------------------------------------

    def _call(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        settings: CallSettings = NO_SETTINGS,
        at: int | None = None,
    ) -> Any:
        trial = self._is_tried()
        with self._locks.turn(self._checked_lock(args, Lock.THREAD, trial)):
            answered = self._begin(settings, trial)
            if answered is not None:
                return returned_again(answered, self._options)
            self._make_room(kwargs, at, trial)
            flow = self._flow(kwargs, settings, at, trial)
            outcome = program_run.drive(flow, unless_left(super().__call__))
            turn, _ = self._record(outcome)
        return ended_with(self._announce(turn, outcome))

    async def _acall(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        settings: CallSettings = NO_SETTINGS,
        at: int | None = None,
    ) -> Any:
        trial = self._is_tried()
        async with self._locks.async_turn(self._checked_lock(args, Lock.ASYNC, trial)):
            answered = await self._waited_for(lambda: self._begin(settings, trial))
            if answered is not None:
                return returned_again(answered, self._options)
            await self._amake_room(kwargs, at, trial)
            flow = self._flow(kwargs, settings, at, trial)
            outcome = await program_run.adrive(flow, super().acall)
            turn, cancelled = await self._arecord(outcome)
        returned = self._announce(turn, outcome)
        if cancelled is not None:
            raise cancelled
        return ended_with(returned)

    async def _arecord(
        self, outcome: program_run.Outcome
    ) -> tuple[Turn | None, asyncio.CancelledError | None]:
        """As `_record`, with the cancellation that came too late, while the turn was stored."""
        if self._journal is None:
            return self._record(outcome)[0], None
        (turn, _), cancelled = await seen_through(lambda: self._record(outcome))
        return turn, cancelled

    def _begin(self, settings: CallSettings, trial: bool) -> Turn | None:
        """Refuse a turn for which there is no room; return the one that answered the request."""
        if trial or home_of(self) is not None:
            return None
        request_id, journal = settings.request_id, self._journal
        answered = None
        if request_id is not None and journal is not None:
            answered = journal.answered(lambda: self._state, request_id, self._publish)
        elif request_id is not None:
            answered = answer_to(self._state, request_id)
        if answered is None:
            self._check_room()
        return answered

    def _is_tried(self) -> bool:
        """Whether nothing of a call is kept: an evaluator or an optimizer asks, or it is frozen.

        An evaluator shows on the call stack only, so this is asked where the call comes in.
        """
        return evaluating() if self._records is None else not self._records

    def _flow(
        self,
        kwargs: Mapping[str, Any],
        settings: CallSettings,
        at: int | None = None,
        trial: bool = False,
    ) -> program_run.Flow:
        inputs, given = split_settings(self.module, kwargs)
        inside = home_of(self) is not None  # then it goes on, until the turn around is forgotten
        attached = self._attached
        return program_run.running(
            self.module,
            self.state,
            inputs,
            self._options,
            owner=self,
            settings=settings.updated(given),
            at=at,
            missed=None if trial else self._missed,
            trial=trial,
            inside=inside,
            records=not trial or (inside and self._records is None),
            instructions=attached.instructions,
            hooks=attached.hooks,
            approver=attached.approver,
        )

    def _stream(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        settings: CallSettings = NO_SETTINGS,
    ) -> Generator[StreamEvent, None, None]:
        trial = self._is_tried()
        lock = self._checked_lock(args, Lock.THREAD, trial)
        plan = self._streaming(kwargs, settings, trial, super().__call__)
        hold = self._with_room(lambda: self._locks.stream(lock), kwargs, trial)
        events = streamed(plan, hold)
        if self._journal is None and settings.request_id is None:
            return events
        return self._unless_answered(events, settings, trial)

    def _astream(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        settings: CallSettings = NO_SETTINGS,
    ) -> AsyncGenerator[StreamEvent, None]:
        trial = self._is_tried()
        lock = self._checked_lock(args, Lock.ASYNC, trial)
        plan = self._streaming(kwargs, settings, trial, super().acall)
        hold = self._with_room_async(lambda: self._locks.async_stream(lock), kwargs, trial)
        events = astreamed(plan, hold)
        if self._journal is None and settings.request_id is None:
            return events
        return self._unless_answered_async(events, settings, trial)

    def _unless_answered(
        self, events: Generator[StreamEvent, None, None], settings: CallSettings, trial: bool
    ) -> Generator[StreamEvent, None, None]:
        answered = self._begin(settings, trial)
        if answered is None:
            yield from events
        else:
            yield self._answer(answered)

    async def _unless_answered_async(
        self, events: AsyncGenerator[StreamEvent, None], settings: CallSettings, trial: bool
    ) -> AsyncGenerator[StreamEvent, None]:
        answered = await self._waited_for(lambda: self._begin(settings, trial))
        if answered is not None:
            yield self._answer(answered)
            return
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    def _answer(self, turn: Turn) -> TurnEvent:
        returned = returned_again(turn, self._options)
        return TurnEvent(as_prediction(returned), turn, self._state)

    def _streaming(
        self,
        kwargs: Mapping[str, Any],
        settings: CallSettings,
        trial: bool,
        call: Callable[..., Any],
    ) -> Streaming:
        return Streaming(
            begin=lambda: self._flow(kwargs, settings, None, trial),
            call=call,
            commit=self._record,
            announce=self._announce,
            choice=choose(self.module, settings.stream_fields),
            statuses=settings.status_messages,
            missed=None if trial else self._missed,
            waits=self._journal is not None,
        )

    def _record(self, outcome: program_run.Outcome) -> tuple[Turn | None, SessionState]:
        turn: Turn | None = None

        def publish(
            state: SessionState,
        ) -> tuple[tuple[Turn | None, SessionState], SessionState]:
            nonlocal turn
            turn, after = answered_meanwhile(state, outcome), state
            if turn is None:
                turn, after = program_run.committed(state, outcome)
            return (turn, after), after

        try:
            recorded = self._move(publish)
        except StoreError as error:
            error.turn, error.prediction = turn, outcome.returned
            raise
        # A stored turn may have become that of another session, which branched off.
        return recorded if self._journal is None else (recorded[0], self._state)

    def _missed(self, attempt: Attempt) -> None:
        with self._locks.state:
            kept = deque((*self._attempts, attempt), maxlen=self._options.max_stored_attempts)
            self._attempts = tuple(kept)

    def _announce(self, turn: Turn | None, outcome: program_run.Outcome) -> Any:
        """Tell `on_turn`, after those of nested sessions; within a turn, when that is recorded.

        Returns:
            What the call is to return.
        """
        if turn is None:
            return outcome.returned
        if turn.id != outcome.run.id:  # the same request was answered meanwhile
            return returned_again(turn, self._options)
        home = home_of(self)
        if home is not None:
            home.announcements.append(lambda: self._tell(turn))
        else:
            outcome.nested.announce()
            self._tell(turn)
        return outcome.returned

    def _tell(self, turn: Turn) -> None:
        if self._attached.on_turn is None:
            return
        try:
            self._attached.on_turn(self, turn)
        except Exception:  # a hook is a user's code, and the turn is recorded already
            logger.warning("on_turn failed for turn %d", turn.index, exc_info=True)

    def _checked_lock(self, args: tuple[Any, ...], mode: Lock, trial: bool) -> Lock:
        """Return what a call of this mode waits for; trials leave nothing that is worth it."""
        if args:
            raise CallError(
                "A session takes its inputs by keyword, for example session(question=...); "
                f"{len(args)} positional argument(s) came."
            )
        if frame_of(self) is not None:
            raise LockError(_INSIDE_HINT)
        if trial:
            return Lock.NONE
        lock = self._options.lock
        if lock not in (Lock.NONE, mode):
            way = "await session.acall(...)" if mode is Lock.THREAD else "session(...)"
            raise LockError(
                f"This session has lock={lock.value!r}: call it as {way}, or make it "
                f"with lock={mode.value!r}."
            )
        if lock is mode and in_a_hook_of(self):
            raise LockError(
                f"This session has lock={lock.value!r} and was called by a hook of a turn that "
                "holds it, so both would wait for ever. A hook may call other sessions or "
                "session.fork(); what follows a turn belongs in on_turn."
            )
        return lock


@contextlib.contextmanager
def _entered(frame: Frame) -> Iterator[None]:
    """Run a session's program in its turn, in which its program must not ask for it again."""
    if frame.draft.entered:
        raise LockError(_INSIDE_HINT)
    frame.draft.entered = True
    try:
        yield
    finally:
        frame.draft.entered = False
