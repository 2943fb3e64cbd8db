"""Calls that go wrong, through a real LM over HTTP: in a tool, on the server, in what it says.

Whatever went wrong: the caller gets DSPy's own error or the program's, the conversation is as it
was, the attempt can be looked at, and the next call works and knows nothing of it.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import (
    AdapterParseError,
    ContextWindowExceededError,
    LMProviderError,
    LMRateLimitError,
    LMServerError,
    LMStreamAssemblyError,
    LMTransportError,
)

from dspy_session import Session, StreamEvent, TextEvent, sessionify
from dspy_session.testing import in_requested_format, requested_fields
from tests import loopback
from tests.loopback import Body, Completion, Failure, LoopbackServer
from tests.streams import SOON
from tests.talk import QA, asked, echo, pairs, past, questions

Ask = Callable[[Session, str], Any]


def plainly(session: Session, question: str) -> Any:
    return session(question=question)


def awaited(session: Session, question: str) -> Any:
    return asyncio.run(session.acall(question=question))


def streamed(session: Session, question: str) -> Any:
    return list(session.stream(question=question))


def astreamed(session: Session, question: str) -> Any:
    async def read() -> list[StreamEvent]:
        return [event async for event in session.astream(question=question)]

    return asyncio.run(read())


STREAMS = (streamed, astreamed)
every_way = pytest.mark.parametrize("run", [plainly, awaited, *STREAMS])


@dataclass
class Trouble:
    """A model that echoes, but for the question "trouble".

    Attributes:
        happens: What it answers to "trouble" instead.
    """

    happens: Callable[[Body], str | Completion | Failure]

    def __call__(self, body: Body) -> str | Completion | Failure:
        prompt = body["messages"]
        if asked(prompt) == "trouble":
            return self.happens(body)
        return in_requested_format(prompt, echo(prompt))


def always(answer: str | Completion | Failure) -> Trouble:
    return Trouble(lambda _: answer)


@contextmanager
def served(model: Trouble, **settings: Any) -> Iterator[LoopbackServer]:
    """A server with that model as the configured LM, which is not asked twice."""
    with (
        LoopbackServer(model) as server,
        dspy.context(lm=server.lm(**{"num_retries": 0, **settings})),
    ):
        yield server


def assert_the_call_left_nothing_but_an_attempt(
    session: Session, server: LoopbackServer, run: Ask, error: type[Exception], **settings: Any
) -> pytest.ExceptionInfo[Exception]:
    """Two turns, the trouble, under settings of its own, and one more turn."""
    run(session, "one")
    run(session, "two")
    before = session.state
    with pytest.raises(error) as caught, dspy.context(**settings):
        run(session, "trouble")
    assert type(caught.value) is error
    assert session.state is before
    (attempt,) = session.attempts
    assert (attempt.status, attempt.inputs) == ("failed", {"question": "trouble"})
    assert f"{error.__name__}: " in attempt.error
    assert [m["question"] for m in attempt.history_snapshot.messages] == ["one", "two"]
    run(session, "three")
    assert questions(session) == ["one", "two", "three"]
    assert past(server.received[-1].messages) == pairs("one", "two")
    return caught


# --- the server -----------------------------------------------------------------------------------

FAILURES = {
    "HTTP 500": (loopback.SERVER_ERROR, LMServerError, "had an error"),
    "HTTP 429": (loopback.RATE_LIMITED, LMRateLimitError, "Rate limit"),
    "context window": (
        loopback.CONTEXT_WINDOW_EXCEEDED,
        ContextWindowExceededError,
        "maximum context length",
    ),
    "cut off": (
        Completion("[[ ## answer ## ]]\nhalf an answer", cut_after=1),
        LMTransportError,
        "connection closed",
    ),
}


@every_way
@pytest.mark.parametrize(("answer", "error", "words"), FAILURES.values(), ids=FAILURES)
def test_A14_a_server_that_fails_at_a_later_turn(
    answer: Completion | Failure, error: type[Exception], words: str, run: Ask
) -> None:
    with served(always(answer)) as server:
        caught = assert_the_call_left_nothing_but_an_attempt(
            sessionify(dspy.Predict(QA)), server, run, error
        )
    assert words in str(caught.value)


@every_way
def test_A14_a_server_that_talks_nonsense(run: Ask) -> None:
    error = LMStreamAssemblyError if run in STREAMS else LMProviderError
    with served(always(loopback.NOT_JSON)) as server:
        session = sessionify(dspy.Predict(QA))
        assert_the_call_left_nothing_but_an_attempt(session, server, run, error)


@pytest.mark.parametrize("run", STREAMS)
def test_A5_a_stream_that_is_cut_in_the_middle_leaves_its_text_on_the_attempt(run: Ask) -> None:
    said = "[[ ## answer ## ]]\nhalf of an answer"
    with served(always(Completion(said, cut_after=len(said.split()) - 1))) as server:
        session = sessionify(dspy.Predict(QA))
        assert_the_call_left_nothing_but_an_attempt(session, server, run, LMTransportError)
    assert session.attempts[0].partial == {"answer": "half of an"}


def test_A5_the_text_before_the_cut_arrives_and_then_the_error() -> None:
    said = "[[ ## answer ## ]]\nhalf of an answer"
    texts: list[str] = []
    with served(always(Completion(said, cut_after=len(said.split()) - 1))):
        session = sessionify(dspy.Predict(QA))
        events = session.stream(question="trouble")
        with pytest.raises(LMTransportError):
            texts.extend(event.text for event in events if isinstance(event, TextEvent))
    assert "".join(texts) == "half of an"


@every_way
def test_A14_a_server_that_does_not_answer_in_time(run: Ask) -> None:
    late = threading.Event()

    def wait(_: Body) -> str:
        late.wait(SOON)
        return "too late"

    with served(Trouble(wait)) as server:
        impatient = server.lm(num_retries=0, timeout=0.5)
        caught = assert_the_call_left_nothing_but_an_attempt(
            sessionify(dspy.Predict(QA)), server, run, LMTransportError, lm=impatient
        )
        late.set()
    assert "timeout" in str(caught.value)


@every_way
def test_A14_a_server_that_recovers_is_asked_again_and_the_turn_is_recorded_once(run: Ask) -> None:
    answers: Iterator[str | Failure] = iter([loopback.RATE_LIMITED, "[[ ## answer ## ]]\nat last"])
    with served(Trouble(lambda _: next(answers)), num_retries=1) as server:
        session = sessionify(dspy.Predict(QA))
        run(session, "one")
        run(session, "trouble")
        run(session, "three")
    assert session.turns[1].outputs == {"answer": "at last"}
    assert (len(session), len(server.received), session.attempts) == (3, 4, ())


# --- what the model says --------------------------------------------------------------------------


@every_way
def test_A14_words_that_no_adapter_can_read(run: Ask) -> None:
    """The ChatAdapter tries the JSONAdapter after it, unless text was streamed already."""
    with served(always('{"verdict": [1, 2')) as server:
        session = sessionify(dspy.Predict(QA))
        assert_the_call_left_nothing_but_an_attempt(session, server, run, AdapterParseError)
    tries = [r.messages for r in server.received if "trouble" in str(r.messages[-1])]
    assert [len(messages) for messages in tries] == ([6] if run in STREAMS else [6, 6])
    assert ("Respond with a JSON object" in tries[-1][-1]["content"]) == (run not in STREAMS)


@every_way
def test_A14_malformed_json_under_the_json_adapter(run: Ask) -> None:
    with served(always("no JSON at all")), dspy.context(adapter=dspy.JSONAdapter()):
        session = sessionify(dspy.Predict(QA))
        run(session, "one")
        before = session.state
        with pytest.raises(AdapterParseError):
            run(session, "trouble")
        assert session.state is before
        assert [attempt.status for attempt in session.attempts] == ["failed"]
        run(session, "two")
    assert questions(session) == ["one", "two"]


# --- tools ----------------------------------------------------------------------------------------


class SearchError(RuntimeError):
    """What a tool raises."""


def search(query: str) -> str:
    """Search; or fail."""
    if query == "trouble":
        raise SearchError("the index is gone")
    return f"found {query}"


def agent_words(body: Body) -> str:
    """Looks the question up, then answers with it."""
    prompt = body["messages"]
    question = re.findall(r"\[\[ ## question ## \]\]\n(.*)", prompt[-1]["content"])[-1]
    looked_up = "observation_0" in prompt[-1]["content"]
    words = {
        "next_thought": "Look it up.",
        "next_tool_name": "finish" if looked_up else "search",
        "next_tool_args": {} if looked_up else {"query": question},
    }
    names = requested_fields(prompt)
    return in_requested_format(prompt, {n: words.get(n, f"{n} to {question}") for n in names})


@every_way
def test_A14_a_tool_that_raises_tells_the_agent_and_the_turn_goes_on(run: Ask) -> None:
    """That is DSPy's way: the model sees the error and answers."""
    with LoopbackServer(agent_words) as server, dspy.context(lm=server.lm(num_retries=0)):
        session = sessionify(dspy.ReAct(QA, tools=[search]))
        for question in ("one", "trouble", "three"):
            run(session, question)
    assert questions(session) == ["one", "trouble", "three"]
    assert session.turns[1].outputs == {"answer": "answer to trouble"}
    assert "the index is gone" in session.turns[1].details["trajectory"]["observation_0"]
    assert session.attempts == ()
    afterwards = [str(r.messages) for r in server.received if "three" in str(r.messages[-1])]
    assert afterwards
    assert not any("the index is gone" in prompt for prompt in afterwards)


class Searching(dspy.Module):
    """Calls a tool of its own, before it asks the model."""

    def __init__(self) -> None:
        super().__init__()
        self.search = dspy.Tool(search)
        self.qa = dspy.Predict(QA)

    def forward(self, question: str) -> Any:
        self.search(query=question)
        return self.qa(question=question)


@every_way
def test_A14_an_error_of_a_programs_own_tool_comes_out_untouched(run: Ask) -> None:
    with served(always("never asked")) as server:
        caught = assert_the_call_left_nothing_but_an_attempt(
            sessionify(Searching()), server, run, SearchError
        )
    assert caught.value.args == ("the index is gone",)


# --- programs -------------------------------------------------------------------------------------


class Changeable(dspy.Module):
    """Returns something else each time."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(QA)

    def forward(self, question: str) -> Any:
        said = self.qa(question=question).answer
        shapes: dict[str, Any] = {
            "one": dspy.Prediction(answer=said),
            "two": dspy.Prediction(verdict="guilty", years=3),
            "three": said,
            "four": None,
            "five": [said],
        }
        return shapes[question]


@every_way
def test_D4_outputs_that_change_their_shape_are_recorded_and_shown_as_they_are(run: Ask) -> None:
    with served(always("never asked")) as server:
        session = sessionify(Changeable())
        for question in ("one", "two", "three", "four", "five"):
            run(session, question)
    assert [turn.outputs for turn in session.turns] == [
        {"answer": "answer to one"},
        {"verdict": "guilty", "years": 3},
        {"output": "answer to three"},
        {"output": None},
        {"output": ["answer to five"]},
    ]
    last = server.received[-1].messages
    shown = "\n".join(message["content"] for message in last[1:])
    parts = ["one", "answer to one", "two", "guilty", "3", "three", "answer to three", "four"]
    assert re.search(r"\b.*\b".join(parts), shown, re.DOTALL)
    assert "Not supplied" not in shown
    assert not [m for m in last if m["role"] == "assistant" and "answer to" not in m["content"]]


class Twins(dspy.Module):
    """Two predictors under one name, as `named_predictors` tells them."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = {"qa": dspy.Predict(QA)}
        setattr(self, "parts['qa']", dspy.Predict(QA))

    def forward(self, question: str) -> Any:
        return [part(question=question) for _, part in self.named_predictors()][-1]


@every_way
def test_D4_two_predictors_of_one_name_both_see_the_conversation(run: Ask) -> None:
    program = Twins()
    (first, _), (second, _) = program.named_predictors()
    assert first == second
    with served(always(loopback.SERVER_ERROR)) as server:
        session = sessionify(program)
        assert_the_call_left_nothing_but_an_attempt(session, server, run, LMServerError)
    seen = [past(r.messages) for r in server.received if asked(r.messages) == "three"]
    assert seen == [pairs("one", "two")] * 2
