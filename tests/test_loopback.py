"""The loopback server does what OpenAI-compatible servers do, as DSPy's own client sees it."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import LMInvalidRequestError, LMTransportError

from tests import loopback
from tests.loopback import Completion, Failure, LoopbackServer
from tests.streams import SOON

SAID = "[[ ## answer ## ]]\none two three\n\n[[ ## completed ## ]]"
WORDS = re.findall(r"\S+\s*", SAID)


def test_a_stream_arrives_chunk_by_chunk_while_the_server_still_sends() -> None:
    """Each chunk is sent only after the one before has arrived."""
    go_on = threading.Semaphore(0)

    def pace(_: loopback.Received, number: int) -> None:
        if number < len(WORDS):  # what follows is no text: why it ended, and the usage
            assert go_on.acquire(timeout=SOON)

    async def read() -> list[str]:
        texts = []
        stream = dspy.streamify(dspy.Predict("question -> answer"), is_async_program=True)
        go_on.release()
        async for chunk in stream(question="Hi"):
            if not isinstance(chunk, dspy.Prediction):
                texts.append(chunk.choices[0].delta.content or "")
                go_on.release()
        return texts

    with (
        LoopbackServer(lambda _: SAID, pace) as server,
        dspy.context(lm=server.lm()),
    ):
        texts = asyncio.run(read())
    assert "".join(texts) == SAID
    assert [text for text in texts if text] == WORDS
    assert server.received[0].body["stream"] is True
    assert not server.received[0].hung_up.is_set()


def test_a_stream_and_a_whole_answer_say_the_same() -> None:
    said = Completion("Let me see.", tool_calls=[("look", {"at": "Oslo"}), ("wait", {})])
    received = loopback.Received(b"", {"model": "m", "messages": [], "stream_options": {}})
    whole = loopback.whole(received, said)["choices"][0]
    deltas: list[dict[str, Any]] = [
        chunk["choices"][0] for chunk in loopback.chunks(received, said) if chunk["choices"]
    ]
    assert "".join(d["delta"].get("content", "") for d in deltas) == whole["message"]["content"]
    calls = [call for d in deltas for call in d["delta"].get("tool_calls", [])]
    assert [call["function"] for call in calls] == [
        call["function"] for call in whole["message"]["tool_calls"]
    ]
    assert deltas[-1]["finish_reason"] == whole["finish_reason"] == "tool_calls"


def test_a_client_that_hangs_up_is_noticed_while_the_server_is_held() -> None:
    begun, held = threading.Event(), threading.Event()

    def pace(request: loopback.Received, number: int) -> None:
        if number == 2:
            begun.set()
            held.wait(SOON)

    async def leave() -> None:
        stream = dspy.streamify(dspy.Predict("question -> answer"), is_async_program=True)

        async def read() -> None:
            async for _ in stream(question="Hi"):
                pass

        task = asyncio.create_task(read())
        assert await asyncio.to_thread(begun.wait, SOON)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with LoopbackServer(lambda _: SAID, pace) as server, dspy.context(lm=server.lm()):
        asyncio.run(leave())
        assert server.received[0].hung_up.wait(SOON)
        held.set()


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_that_is_cut_off_is_an_error_of_the_transport(streamed: bool) -> None:
    async def ask() -> None:
        program = dspy.Predict("question -> answer")
        if not streamed:
            await program.acall(question="Hi")
        async for _ in dspy.streamify(program, is_async_program=True)(question="Hi"):
            pass

    with (
        LoopbackServer(lambda _: Completion(SAID, cut_after=3)) as server,
        dspy.context(lm=server.lm(num_retries=0)),
        pytest.raises(LMTransportError, match="connection closed"),
    ):
        asyncio.run(ask())
    assert len(server.received) == 1


def test_a_request_that_the_answer_function_cannot_answer_is_refused() -> None:
    def answer(body: dict[str, Any]) -> str | Failure:
        raise KeyError("no such script")

    with (
        LoopbackServer(answer) as server,
        dspy.context(lm=server.lm()),
        pytest.raises(LMInvalidRequestError, match="no such script"),
    ):
        dspy.Predict("question -> answer")(question="Hi")
    assert len(server.received) == 1
