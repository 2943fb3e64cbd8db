"""What the streaming tests share: reading streams both ways, and a server held at each token."""

import asyncio
import importlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dspy
import pytest

from dspy_session import StreamEvent, TextEvent, TurnEvent
from dspy_session.testing import in_requested_format, requested_fields
from tests.loopback import Body, LoopbackServer, Received
from tests.talk import QA, asked

SOON = 120.0
"""How many seconds a test waits for what takes far less than one; only against waiting for ever."""


class Gate:
    """The pace of a server that sends as many chunks as it is let, and says how many it sent."""

    def __init__(self) -> None:
        self._let = threading.Semaphore(0)
        self.sent = 0
        self.opened = False

    def __call__(self, request: Received, number: int) -> None:
        while not (self.opened or self._let.acquire(timeout=0.01)):
            if request.hung_up.is_set():
                return
        self.sent = number + 1

    def let(self, chunks: int = 1) -> None:
        for _ in range(chunks):
            self._let.release()

    def open(self) -> None:
        self.opened = True


def say(body: Body) -> str:
    """Answers each requested field in four words, in the format that the prompt asks for."""
    prompt = body["messages"]
    question = asked(prompt)
    return in_requested_format(
        prompt, {name: f"the {name} to {question}" for name in requested_fields(prompt)}
    )


Noul: Any = importlib.import_module("dspy.adapters.types.decision").Noul
Judge = dspy.Signature("question -> why", "Judge.").append(
    "sure", dspy.OutputField(desc="Is it so?"), Noul
)
"""A signature with one of DSPy's decisions among its outputs."""


def decides(_: Body) -> str:
    return '[[ ## why ## ]]\nI saw it.\n\n[[ ## sure ## ]]\n{"noul": 0.8}'


class Plan(dspy.Signature):
    """Plan an answer."""

    question: str = dspy.InputField()
    steps: list[str] = dspy.OutputField()
    answer: str = dspy.OutputField()


class Team(dspy.Module):
    """Several predictors, some in a list, one of them compiled, two of one signature."""

    def __init__(self) -> None:
        super().__init__()
        self.planner = dspy.Predict(Plan)
        self.workers = [dspy.Predict(QA), dspy.ChainOfThought(QA)]
        self.workers[1]._compiled = True

    def forward(self, question: str) -> Any:
        question = self.planner(question=question).answer
        for worker in self.workers:
            question = worker(question=question).answer
        return dspy.Prediction(answer=question)

    async def aforward(self, question: str) -> Any:
        question = (await self.planner.acall(question=question)).answer
        for worker in self.workers:
            question = (await worker.acall(question=question)).answer
        return dspy.Prediction(answer=question)


def answers_team(body: Body) -> str:
    plan = '[[ ## steps ## ]]\n["look"]\n\n' if "`[[ ## steps" in str(body) else ""
    why = "[[ ## reasoning ## ]]\nI know\n\n" if "`[[ ## reasoning" in str(body) else ""
    return f"{plan}{why}[[ ## answer ## ]]\nit is blue\n\n[[ ## completed ## ]]"


def look_up(name: str) -> str:
    """Look something up."""
    if name == "nothing":
        raise LookupError(name)
    return f"{name} is blue"


def agent_answers(body: Body) -> str:
    asked = body["messages"][-1]["content"]
    if "answer" in requested_fields(body["messages"]):
        fields = {"reasoning": "It says so.", "answer": "Blue."}
    elif "observation_1" in asked:
        fields = {"next_thought": "Enough.", "next_tool_name": "finish", "next_tool_args": "{}"}
    else:
        wanted = "nothing" if "observation_0" in asked else "fjord"
        fields = {
            "next_thought": f"I look for {wanted}.",
            "next_tool_name": "look_up",
            "next_tool_args": f'{{"name": "{wanted}"}}',
        }
    return "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items())


@contextmanager
def serving(
    answer: Callable[[Body], Any] = say, pace: Any = None, **context: Any
) -> Iterator[LoopbackServer]:
    """A server that `dspy.LM` talks to over HTTP."""
    with LoopbackServer(answer, pace) as server, dspy.context(lm=server.lm(), **context):
        yield server


@contextmanager
def held() -> Iterator[Gate]:
    """A server that is held before every chunk, until it is let."""
    gate = Gate()
    with serving(pace=gate):
        try:
            yield gate
        finally:
            gate.open()


Read = Callable[..., list[StreamEvent]]


def read_sync(session: Any, **inputs: Any) -> list[StreamEvent]:
    return list(session.stream(**inputs))


def read_async(session: Any, **inputs: Any) -> list[StreamEvent]:
    async def read() -> list[StreamEvent]:
        return [event async for event in session.astream(**inputs)]

    return asyncio.run(read())


both_ways = pytest.mark.parametrize("read", [read_sync, read_async])


def spoken(events: list[StreamEvent]) -> dict[tuple[int, str, str], str]:
    """The joined texts by call, predictor and field; each must have ended once, and last."""
    joined: dict[tuple[int, str, str], str] = {}
    ended = set()
    for event in events:
        if isinstance(event, TextEvent):
            key = event.call, event.predictor, event.field
            assert key not in ended
            assert event.text or event.last
            joined[key] = joined.get(key, "") + event.text
            if event.last:
                ended.add(key)
    assert ended == set(joined)
    return joined


def finished(events: list[StreamEvent]) -> TurnEvent:
    """The last event, which is the only one of its kind."""
    *others, last = events
    assert isinstance(last, TurnEvent)
    assert not any(isinstance(event, TurnEvent) for event in others)
    return last


async def until(condition: Callable[[], object]) -> None:
    """Wait in the event loop for something that other threads do."""
    async with asyncio.timeout(SOON):
        while not condition():
            await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that other threads do."""
    asyncio.run(until(condition))


async def first_text(events: AsyncIterator[StreamEvent]) -> TextEvent:
    event = await anext(events)
    assert isinstance(event, TextEvent)
    return event
