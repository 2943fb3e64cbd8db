"""A stream that is left, that breaks, or whose program fails: no turn, but an attempt."""

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import dspy
import pytest

from dspy_session import Session, SessionState, TextEvent, TurnEvent, sessionify, stream_step
from tests.house import PROJECT
from tests.loopback import RATE_LIMITED, SERVER_ERROR, Body, Completion, Failure
from tests.streams import (
    SOON,
    Gate,
    Read,
    both_ways,
    finished,
    first_text,
    held,
    read_async,
    serving,
    until,
    wait_until,
)
from tests.talk import QA, qa_session, questions, scripted

UP_TO_THE = 6  # chunks: "[[ ## answer ## ]]\n" are five words, then comes "the "


class ToldError(Exception):
    """Thrown into a stream by its reader."""


def left(session: Session, before: SessionState, partial: dict[str, str]) -> None:
    """The conversation is as it was, and the one attempt is a cancelled one."""
    assert session.state is before
    (attempt,) = session.attempts
    assert attempt.status == "cancelled"
    assert attempt.inputs == {"question": "one"}
    assert attempt.partial == partial
    assert "the stream was left before its end" in attempt.error


# --- leaving from code that awaits ----------------------------------------------------------------


async def breaks(session: Session) -> None:
    async for _ in session.astream(question="one"):
        break


async def closes(session: Session) -> None:
    events = session.astream(question="one")
    await first_text(events)
    await events.aclose()
    assert len(session.attempts) == 1  # the work has ended by now
    assert asyncio.all_tasks() == {asyncio.current_task()}
    with pytest.raises(StopAsyncIteration):
        await anext(events)


async def throws(session: Session) -> None:
    events = session.astream(question="one")
    await first_text(events)
    with pytest.raises(ToldError):
        await events.athrow(ToldError())


async def forgets(session: Session) -> None:
    events = session.astream(question="one")
    circle: list[Any] = [events]
    circle.append(circle)
    await first_text(events)
    del events, circle
    gc.collect()


async def closes_in_another_task(session: Session) -> None:
    events = session.astream(question="one")
    await first_text(events)
    await asyncio.create_task(events.aclose())


async def fails_in_the_loop(session: Session) -> None:
    async def reads() -> None:
        async with contextlib.aclosing(session.astream(question="one")) as events:
            async for _ in events:
                raise ToldError

    with pytest.raises(ToldError):
        await reads()


async def is_cancelled(session: Session) -> None:
    begun = asyncio.Event()

    async def serve() -> None:
        async for _ in session.astream(question="one"):
            begun.set()

    request = asyncio.create_task(serve())
    await begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request


LEAVE_ASYNC = [
    breaks,
    closes,
    throws,
    forgets,
    closes_in_another_task,
    fails_in_the_loop,
    is_cancelled,
]


@pytest.mark.parametrize("leave", LEAVE_ASYNC)
def test_A5_X14_leaving_cancels_the_work_and_leaves_the_readers_task_alone(
    leave: Callable[[Session], Awaitable[None]],
) -> None:
    session = qa_session(lock="async")
    before = session.state

    async def serve(gate: Gate) -> None:
        gate.let(UP_TO_THE)
        await leave(session)
        await until(lambda: session.attempts)
        me = asyncio.current_task()
        assert me is not None
        assert me.cancelling() == 0
        await until(lambda: asyncio.all_tasks() == {me})
        left(session, before, {"answer": "the"})
        with dspy.context(lm=scripted()):
            await session.acall(question="two")  # the lock is free again

    with serving(pace=(gate := Gate())) as server:
        try:
            asyncio.run(serve(gate))
            assert server.received[0].hung_up.wait(SOON)  # the model's work is stopped
            assert gate.sent == UP_TO_THE
        finally:
            gate.open()
    assert questions(session) == ["two"]


def test_A5_X14_a_task_cancelled_before_the_first_token_leaves_an_empty_attempt() -> None:
    session = qa_session()
    before = session.state

    async def serve(received: list[Any]) -> None:
        request = asyncio.create_task(anext(session.astream(question="one")))
        await until(lambda: received)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await until(lambda: session.attempts)

    with serving(pace=(gate := Gate())) as server:
        try:
            asyncio.run(serve(server.received))
        finally:
            gate.open()
    left(session, before, {})


def test_A5_a_task_cancelled_before_anything_ran_leaves_nothing() -> None:
    session = qa_session()

    async def serve() -> None:
        events = session.astream(question="one")
        request = asyncio.create_task(anext(events))
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await events.aclose()
        request = asyncio.create_task(anext(session.astream(question="one")))
        await asyncio.sleep(0)  # the request waits; its work has not begun
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    with serving() as server:
        asyncio.run(serve())
    assert server.received == []
    assert len(session) == 0


class Tidying(dspy.Module):
    """A program that has something to do when it is called off."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        self.begun = asyncio.Event()
        self.tidy = asyncio.Event()

    async def aforward(self, question: str) -> str:
        self.told.append(f"begins {question}")
        try:
            if question == "one":
                self.begun.set()
                await asyncio.Event().wait()
        finally:
            await self.tidy.wait()
            self.told.append(f"ends {question}")
        return "here"


def test_A5_D16_a_scope_of_anyio_waits_for_the_work_that_it_calls_off() -> None:
    """Such a scope cancels again and again: so FastAPI ends a stream whose client is gone."""

    async def reads() -> None:
        await anext(session.astream(question="one"))

    async def serve(program: Tidying) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(reads)
            await program.begun.wait()
            group.cancel_scope.cancel()
            following = asyncio.create_task(session.acall(question="two"))
            asyncio.get_running_loop().call_later(0.05, program.tidy.set)
        await following

    session = sessionify(Tidying(), lock="async")
    program = session.module
    assert isinstance(program, Tidying)
    asyncio.run(serve(program))
    assert program.told == ["begins one", "ends one", "begins two", "ends two"]
    assert questions(session) == ["two"]
    (attempt,) = session.attempts
    assert (attempt.status, attempt.inputs) == ("cancelled", {"question": "one"})


def test_A5_X14_leaving_after_the_last_text_records_nothing() -> None:
    session = qa_session()
    before = session.state

    async def serve() -> None:
        events = session.astream(question="one")
        async for event in events:
            if isinstance(event, TextEvent) and event.last:
                await asyncio.sleep(0.05)  # the program has ended meanwhile
                break
        await events.aclose()

    with serving():
        asyncio.run(serve())
    left(session, before, {"answer": "the answer to one"})


def test_A5_leaving_after_the_turn_is_no_leaving() -> None:
    async def serve() -> None:
        async for event in session.astream(question="one"):
            if isinstance(event, TurnEvent):
                break

    session = qa_session()
    with serving():
        asyncio.run(serve())
        for event in session.stream(question="two"):
            if isinstance(event, TurnEvent):
                break
    assert questions(session) == ["one", "two"]
    assert session.attempts == ()


def test_A5_a_stream_that_nobody_reads_does_nothing() -> None:
    session = qa_session()
    with serving() as server:
        session.stream(question="one").close()

        async def never() -> None:
            session.astream(question="one")
            await session.astream(question="one").aclose()

        asyncio.run(never())
        gc.collect()
    assert server.received == []
    assert (len(session), session.attempts) == (0, ())


# --- leaving from code that cannot await ----------------------------------------------------------


def breaks_sync(session: Session) -> None:
    for _ in session.stream(question="one"):
        break


def closes_sync(session: Session) -> None:
    events = session.stream(question="one")
    next(events)
    events.close()
    with pytest.raises(StopIteration):
        next(events)


def throws_sync(session: Session) -> None:
    events = session.stream(question="one")
    next(events)
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt())


def forgets_sync(session: Session) -> None:
    events = session.stream(question="one")
    circle: list[Any] = [events]
    circle.append(circle)
    next(events)
    del events, circle
    gc.collect()


def closes_in_another_thread(session: Session) -> None:
    events = session.stream(question="one")
    next(events)
    thread = threading.Thread(target=events.close)
    thread.start()
    thread.join(SOON)


LEAVE_SYNC = [breaks_sync, closes_sync, throws_sync, forgets_sync, closes_in_another_thread]


@pytest.mark.parametrize("leave", LEAVE_SYNC)
def test_A5_X14_leaving_a_sync_stream_ends_its_program_at_the_next_token(
    leave: Callable[[Session], None],
) -> None:
    session = qa_session(lock="thread")
    before = session.state
    threads = set(threading.enumerate())
    with serving(pace=(gate := Gate())) as server:
        try:
            gate.let(UP_TO_THE)
            leave(session)
            wait_until(lambda: session.attempts)  # on a slow machine it is not waited for
            left(session, before, {"answer": "the"})
            with dspy.context(lm=scripted()):
                session(question="two")
            gate.let()
            assert server.received[0].hung_up.wait(SOON)
            wait_until(lambda: not stream_threads() - threads)
        finally:
            gate.open()
    assert questions(session) == ["two"]
    assert len(session.attempts) == 1


def stream_threads() -> set[threading.Thread]:
    names = ("dspy-session stream", "AnyIO worker thread")
    return {thread for thread in threading.enumerate() if thread.name.startswith(names)}


@both_ways
def test_A5_the_late_result_of_a_sync_program_is_not_recorded(read: Read) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    class Late(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            self.qa(question=question)
            begun.set()
            try:
                assert go_on.wait(SOON)
                return dspy.Prediction(answer="late")
            finally:
                ended.set()

    session = sessionify(Late())
    before, threads = session.state, set(threading.enumerate())

    async def leave() -> None:
        events = session.astream(question="one")
        await first_text(events)
        await until(begun.is_set)
        await events.aclose()
        go_on.set()
        await until(ended.is_set)

    with serving():
        if read is read_async:
            asyncio.run(leave())
        else:
            events = session.stream(question="one")
            next(events)
            assert begun.wait(SOON)
            events.close()
            new = stream_threads() - threads
            (loop,) = [thread for thread in new if thread.name == "dspy-session stream"]
            loop.join(0.2)
            assert loop.is_alive()  # until the program has ended
            go_on.set()
            assert ended.wait(SOON)
            wait_until(lambda: not stream_threads() - threads)
    left(session, before, {"answer": "the answer to one"})


@both_ways
@pytest.mark.parametrize("next_step", ["tool", "model"])
def test_A5_a_left_sync_program_uses_no_more_tools_and_models(read: Read, next_step: str) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    used: list[str] = []

    class Busy(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa, self.tool = dspy.Predict(QA), dspy.Tool(used.append, name="tool")

        def forward(self, question: str) -> Any:
            self.qa(question=question)
            begun.set()
            try:
                assert go_on.wait(SOON)
                return self.tool(x=1) if next_step == "tool" else self.qa(question=question)
            finally:
                ended.set()

    session = sessionify(Busy())

    async def leave() -> None:
        events = session.astream(question="one")
        await first_text(events)
        await until(begun.is_set)
        await events.aclose()
        go_on.set()
        await until(ended.is_set)

    with serving() as server:
        if read is read_async:
            asyncio.run(leave())
        else:
            events = session.stream(question="one")
            next(events)
            assert begun.wait(SOON)
            events.close()
            go_on.set()
            assert ended.wait(SOON)
    assert len(server.received) == 1
    assert used == []


def test_A5_X14_streamed_steps_leave_nothing_behind() -> None:
    state = SessionState()
    with held() as gate:
        gate.let(UP_TO_THE)
        for _ in stream_step(state, dspy.Predict(QA), {"question": "one"}):
            break
        gate.open()
        events = list(stream_step(state, dspy.Predict(QA), {"question": "two"}))
    assert [turn.inputs["question"] for turn in finished(events).state.turns] == ["two"]


# --- failing --------------------------------------------------------------------------------------


def failure(session: Session, read: Read, question: str = "one") -> BaseException:
    """What a stream raises; the conversation must be as it was."""
    before = session.state
    with pytest.raises(Exception) as caught:  # noqa: PT011  # each test says which one
        read(session, question=question)
    assert session.state is before
    return caught.value


@both_ways
@pytest.mark.parametrize("status", [SERVER_ERROR, RATE_LIMITED])
def test_X14_an_lm_that_fails_raises_dspys_own_error(read: Read, status: Failure) -> None:
    with serving(lambda body: status) as server, dspy.context(lm=server.lm(num_retries=0)):
        bare = failure(qa_session(), read_sync_call)
        session = qa_session()
        error = failure(session, read)
    assert type(error) is type(bare)
    (attempt,) = session.attempts
    assert (attempt.status, attempt.partial) == ("failed", {})
    assert type(error).__name__ in attempt.error


def read_sync_call(session: Session, **inputs: Any) -> list[Any]:
    return [session(**inputs)]


@both_ways
def test_X14_a_stream_that_is_cut_keeps_its_text_on_the_attempt(read: Read) -> None:
    def answer(body: Body) -> Any:
        text = "[[ ## answer ## ]]\nthe answer is not to be"
        return text if "whole" in str(body) else Completion(text, cut_after=8)

    with serving(answer) as server:
        session = qa_session()
        with dspy.context(lm=server.lm(num_retries=3)):
            error = failure(session, read)
        assert isinstance(error, dspy.LMError)
        assert len(server.received) == 1  # DSPy does not ask again once text was shown
        read(session, question="whole")
    (attempt,) = session.attempts
    assert attempt.status == "failed"
    assert attempt.partial == {"answer": "the answer is"}
    assert questions(session) == ["whole"]
    assert "the answer is" not in str(server.received[-1].messages)


@both_ways
def test_X14_a_model_that_leaves_a_field_out_raises_dspys_own_error(read: Read) -> None:
    with serving(lambda body: "[[ ## reasoning ## ]]\nI think so"):
        session = sessionify(dspy.ChainOfThought(QA))
        error = failure(session, read)
    assert type(error).__name__ == "AdapterParseError"
    assert session.attempts[0].partial == {"reasoning": "I think so"}


@both_ways
def test_X14_an_error_of_the_program_is_the_very_same(read: Read) -> None:
    error = ToldError("no")

    class Raises(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            self.qa(question=question)
            raise error

    session = sessionify(Raises())
    with serving():
        assert failure(session, read) is error
    (attempt,) = session.attempts
    assert attempt.status == "failed"
    assert attempt.partial == {"answer": "the answer to one"}
    assert attempt.run.duration is not None


@both_ways
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_X14_what_is_no_exception_reaches_the_reader_too(
    read: Read, error: type[BaseException]
) -> None:
    class Raises(dspy.Module):
        def forward(self, question: str) -> Any:
            raise error(question)

    session = sessionify(Raises())
    with pytest.raises(error, match="one"):
        read(session, question="one")
    assert session.attempts[0].status == "cancelled"
    assert len(session) == 0


@both_ways
def test_X14_a_call_that_cannot_be_recorded_raises_and_changes_nothing(read: Read) -> None:
    session = qa_session()
    error = failure(session, lambda session, question: read(session, question=question, history=1))
    assert "history= must be a dspy.History" in str(error)
    assert len(session) == 0


# --- no noise -------------------------------------------------------------------------------------

SCRIPT = """
import asyncio, gc, logging, sys
import dspy
from tests.streams import Gate, serving, until, wait_until
from tests.test_streaming_leaving import LEAVE_ASYNC, LEAVE_SYNC, UP_TO_THE, stream_threads
from tests.talk import QA, qa_session

class Threaded(dspy.Module):
    def __init__(self):
        super().__init__()
        self.qa = dspy.Predict(QA)

    def forward(self, question):
        return self.qa(question=question)

from dspy_session import sessionify
for program in (dspy.Predict(QA), Threaded()):
    for leave in LEAVE_ASYNC + LEAVE_SYNC:
        with serving(pace=(gate := Gate())) as server:
            gate.let(UP_TO_THE)
            session = sessionify(program)
            if leave in LEAVE_SYNC:
                leave(session)
            else:
                asyncio.run(leave(session))
            gate.open()
            wait_until(lambda: not stream_threads())
            assert len(session) == 0, leave
            assert len(session.attempts) == 1, leave
            gc.collect()
print("quiet")
"""


def test_A5_leaving_makes_no_noise() -> None:
    """No task destroyed while pending, no coroutine never awaited, no traceback of a thread."""
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", SCRIPT],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("quiet\n", "")
