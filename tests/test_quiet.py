"""A normal turn of any supported program logs no warning, neither DSPy's nor ours."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import pytest

from dspy_session import SessionOptions, SessionState, bake_history, sessionify, step
from dspy_session.testing import Prompt, ScriptedLM, requested_fields
from tests.talk import QA, Asker, history, pairs, past


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Every record that is logged; DSPy's own logger keeps its records from the root."""
    dspy_logger = logging.getLogger("dspy")
    caplog.set_level(logging.INFO)
    dspy_logger.addHandler(caplog.handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The collector warns of what other tests left open, whenever it finds it.
        warnings.simplefilter("default", ResourceWarning)
        yield caplog
    dspy_logger.removeHandler(caplog.handler)


def reply(prompt: Prompt) -> dict[str, Any]:
    said = {"next_tool_name": "finish", "next_tool_args": {}}
    return {name: said.get(name, f"{name}!") for name in requested_fields(prompt)}


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := ScriptedLM(reply))):
        yield lm


class MyHistory(dspy.History):
    """A history of one's own."""


def declaring(annotation: Any = dspy.History, name: str = "history") -> type[dspy.Signature]:
    fields: dict[str, Any] = {
        "question": (str, dspy.InputField()),
        name: (annotation, dspy.InputField()),
        "answer": (str, dspy.OutputField()),
    }
    return dspy.Signature(fields, "Answer the question.")


class Composed(dspy.Module):
    """Knows nothing of history, and speaks in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.rewrite = dspy.ChainOfThought("question -> query")
        self.answer = dspy.Predict("query, question -> answer")

    def forward(self, question: str) -> Any:
        query = self.rewrite(question=question).query
        with dspy.context(adapter=dspy.JSONAdapter()):
            return self.answer(query=query, question=question)

    async def aforward(self, question: str) -> Any:
        query = (await self.rewrite.acall(question=question)).query
        return await self.answer.acall(query=query, question=question)


class Passing(dspy.Module):
    """Takes a history and passes it on."""

    def __init__(self, signature: Any) -> None:
        super().__init__()
        self.qa = dspy.Predict(signature)

    def forward(self, question: str, history: dspy.History) -> Any:
        return self.qa(question=question, history=history)


class PassingAnything(dspy.Module):
    """Passes on whatever it is given."""

    def __init__(self, signature: Any) -> None:
        super().__init__()
        self.qa, self.again = dspy.Predict(signature), dspy.ChainOfThought(signature)

    def forward(self, **kwargs: Any) -> Any:
        self.qa(**kwargs)
        return self.again(**kwargs)


class Taking(dspy.Module):
    """Takes a history of its own kind."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(declaring(MyHistory))

    def forward(self, question: str, log: MyHistory) -> Any:
        return self.qa(question=question, history=log)


class NeverPassed(dspy.Module):
    """Its predictor declares a history that nobody ever passes."""

    def __init__(self, annotation: Any = dspy.History, name: str = "history") -> None:
        super().__init__()
        self.qa = dspy.Predict(declaring(annotation, name))

    def forward(self, question: str) -> Any:
        return self.qa(question=question)

    async def aforward(self, question: str) -> Any:
        return await self.qa.acall(question=question)


def react(signature: Any = "question -> answer") -> dspy.Module:
    return dspy.ReAct(signature, tools=[])


PROGRAMS: dict[str, Callable[[], dspy.Module]] = {
    "Predict": lambda: dspy.Predict(QA),
    "ChainOfThought": lambda: dspy.ChainOfThought(QA),
    "plain return": Asker,
    "composed": Composed,
    "ReAct": react,
    "baked": lambda: bake_history(dspy.ChainOfThought(QA)),
    "declared": lambda: dspy.Predict(declaring()),
    "declared, another name": lambda: dspy.ChainOfThought(declaring(name="log")),
    "declared, optional": lambda: dspy.Predict(declaring(dspy.History | None)),
    "declared, a subclass": lambda: dspy.Predict(declaring(MyHistory)),
    "declared, something else": lambda: dspy.Predict(declaring(list[dict[str, Any]])),
    "declared, ReAct": lambda: react(declaring()),
    "passed on": lambda: Passing(declaring()),
    "passed on, optional": lambda: Passing(declaring(dspy.History | None)),
    "passed on among others": lambda: PassingAnything(declaring()),
    "nothing to pass on": lambda: PassingAnything(QA),
    "a subclass taken": Taking,
    "never passed": NeverPassed,
    "never passed, another name": lambda: NeverPassed(name="log"),
    "never passed, a subclass": lambda: NeverPassed(MyHistory, "log"),
    "never passed, something else": lambda: NeverPassed(list[str]),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("awaited", [False, True], ids=["sync", "async"])
def test_D5_a_normal_turn_logs_nothing(
    name: str, awaited: bool, logged: pytest.LogCaptureFixture, lm: ScriptedLM
) -> None:
    session = sessionify(PROGRAMS[name]())
    if awaited:

        async def converse() -> None:
            for question in ("one", "two", "three"):
                await session.acall(question=question)

        asyncio.run(converse())
    else:
        for question in ("one", "two", "three"):
            session(question=question)
    given = {session.options.history_field: history("one")}
    session(question="replayed", **given)
    assert [record.getMessage() for record in logged.records] == []
    assert len(session.turns) == 3
    assert "two" in str(lm.prompts[-3])


@pytest.mark.parametrize("adapter", [dspy.JSONAdapter, dspy.XMLAdapter, dspy.ChatAdapter])
def test_D6_nor_under_another_adapter(
    adapter: type[dspy.Adapter], logged: pytest.LogCaptureFixture
) -> None:
    with dspy.context(adapter=adapter()):
        session = sessionify(Composed())
        for question in ("one", "two"):
            session(question=question)
    assert logged.records == []


def test_D23_nor_does_a_step(logged: pytest.LogCaptureFixture) -> None:
    state = SessionState()
    for question in ("one", "two"):
        _, state = step(state, NeverPassed(), {"question": question}, SessionOptions(max_turns=1))
    assert logged.records == []


# --- what is warned about all the same ------------------------------------------------------------


def test_D5_dspy_still_warns_of_what_is_really_missing(logged: pytest.LogCaptureFixture) -> None:
    class Forgetful(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict("question, context, history: dspy.History -> answer")
            self.plain = dspy.Predict("question, context -> answer")

        def forward(self, question: str) -> Any:
            self.plain(question=question)
            return self.qa(question=question)

    sessionify(Forgetful())(question="x")
    missing = [record.args for record in logged.records]
    assert missing == [(["question"], ["context"]), (["question"], ["context", "history"])]


def test_D5_outside_a_session_dspy_warns_as_ever(
    logged: pytest.LogCaptureFixture, lm: ScriptedLM
) -> None:
    program = NeverPassed()
    program(question="x")
    assert len(logged.records) == 1

    class Judged(NeverPassed):
        def forward(self, question: str) -> Any:
            program(question=question)  # not this program's predictor: nobody supplies it
            return super().forward(question)

    session = sessionify(Judged())
    session(question="one")
    session(question="two")
    assert len(logged.records) == 3
    assert past(lm.prompts[-1]) == [("one", "answer!")]
    assert past(lm.prompts[-2]) == pairs()


def test_D5_dspys_other_warnings_are_let_through(logged: pytest.LogCaptureFixture) -> None:
    session = sessionify(dspy.Predict("question, count: int -> answer"))
    session(question="x", count="three", extra=1)
    said = [record.getMessage() for record in logged.records]
    assert len(said) == 2
    assert said[0].startswith("Input contains fields not in signature")
    assert said[1].startswith("Type mismatch for field 'count'")
