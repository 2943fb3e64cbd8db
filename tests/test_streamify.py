"""Sessions under DSPy's own `dspy.streamify`."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import dspy
import pytest
from dspy.streaming import StreamListener

from dspy_session import Session, TurnEvent, sessionify
from tests.loopback import LoopbackServer
from tests.streams import SOON, Judge, decides, serving, until
from tests.talk import QA, Asker, qa_session, questions


@pytest.fixture(autouse=True)
def server() -> Iterator[LoopbackServer]:
    with serving() as server:
        yield server


def listeners(*fields: str) -> list[Any]:
    return [StreamListener(field) for field in fields]


def read(session: Session, question: str, **how: Any) -> list[Any]:
    async def reading() -> list[Any]:
        async with asyncio.timeout(SOON):
            return [value async for value in dspy.streamify(session, **how)(question=question)]

    return asyncio.run(reading())


def read_sync(session: Session, question: str, **how: Any) -> list[Any]:
    return list(dspy.streamify(session, async_streaming=False, **how)(question=question))


@pytest.mark.parametrize("reading", [read, read_sync])
@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("fields", [(), ("answer",)])
def test_A5_D21_streamify_of_a_session_records_the_turn_once(
    reading: Any, awaited: bool, fields: tuple[str, ...]
) -> None:
    session = qa_session()
    for question in ("one", "two"):
        heard = listeners(*fields)
        *chunks, last = reading(session, question, is_async_program=awaited, stream_listeners=heard)
        assert last.answer == f"the answer to {question}"
        assert chunks
    assert questions(session) == ["one", "two"]
    assert session.turns[1].history_snapshot.messages[0]["question"] == "one"


def test_A5_D21_streamify_hears_a_session_around_a_compiled_program() -> None:
    program = dspy.ChainOfThought(QA)
    program._compiled = True
    session = sessionify(program)
    *chunks, _ = read(session, "one", stream_listeners=listeners("answer"))
    assert "".join(chunk.chunk for chunk in chunks) == "the answer to one"


@pytest.mark.parametrize("reading", [read, read_sync])
@pytest.mark.parametrize("awaited", [False, True])
def test_A5_a_plain_return_does_not_hang_streamify(reading: Any, awaited: bool) -> None:
    session = sessionify(Asker())
    last = reading(session, "one", is_async_program=awaited)[-1]
    assert isinstance(last, dspy.Prediction)
    assert last.output == "the answer to one"
    assert session.turns[0].outputs == {"output": "the answer to one"}
    assert session(question="two") == "the answer to two"


def test_A5_a_plain_return_inside_a_streamified_program_stays_what_it_is() -> None:
    class Around(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = sessionify(Asker())

        def forward(self, question: str) -> Any:
            answer = self.inner(question=question)
            assert answer == "the answer to one"
            return dspy.Prediction(answer=answer)

    async def reading() -> list[Any]:
        return [value async for value in dspy.streamify(Around())(question="one")]

    assert asyncio.run(reading())[-1].answer == "the answer to one"


def test_A5_a_stream_inside_a_streamified_program_is_its_own(server: LoopbackServer) -> None:
    class Around(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = sessionify(dspy.Predict(Judge))

        def forward(self, question: str) -> Any:
            (end,) = self.inner.using(stream_fields=[]).stream(question=question)
            assert isinstance(end, TurnEvent)
            return end.prediction

    async def reading() -> list[Any]:
        async with asyncio.timeout(SOON):
            return [value async for value in dspy.streamify(Around())(question="one")]

    server.answer = decides
    (last,) = asyncio.run(reading())
    assert last.why == "I saw it."
    assert "stream" not in server.received[0].body


def test_A5_the_late_result_of_a_left_streamify_is_not_recorded() -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    class Late(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            self.qa(question=question)
            begun.set()
            assert go_on.wait(SOON)
            ended.set()
            return dspy.Prediction(answer="late")

    session = sessionify(Late())

    async def leave() -> None:
        async def serve() -> None:
            async for _ in dspy.streamify(session)(question="one"):
                if begun.is_set():
                    await asyncio.Event().wait()

        request = asyncio.create_task(serve())
        await until(begun.is_set)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        go_on.set()
        await until(lambda: ended.is_set() and session.attempts)

    asyncio.run(leave())
    assert len(session) == 0
    assert [attempt.status for attempt in session.attempts] == ["cancelled"]
