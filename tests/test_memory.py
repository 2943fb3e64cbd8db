"""Nothing of ours grows with the number of calls, beside the conversation itself.

What DSPy keeps of every call is DSPy's; docs/guide/servers.md says how to bound it, and the tests
here do what it says.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import pytest

from dspy_session import Session, SessionOptions, SessionState, astep, sessionify, step
from dspy_session.program import call_signatures, fingerprints
from dspy_session.program.frame import Draft, Frame
from dspy_session.testing import Prompt, ScriptedLM
from tests.optimizers import quietly, whole
from tests.talk import QA, Asker, ask, asked, history, qa_session

SETTINGS: dict[str, Any] = {"disable_history": True, "max_trace_size": 0}
"""Those of docs/guide/servers.md: DSPy itself keeps nothing."""


def reply(prompt: Prompt) -> dict[str, Any]:
    if asked(prompt) == "fail":
        raise ValueError("the model is out")
    return {"answer": "a" * 200}


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    gc.collect()
    gc.freeze()  # what other tests have loaded and left is not to be gone through each time
    try:
        with dspy.context(lm=(lm := ScriptedLM(reply)), **SETTINGS), quietly():
            yield lm
    finally:
        gc.unfreeze()


def held(lm: ScriptedLM) -> Counter[str]:
    """How many objects there are of each type, not counting what the tests themselves keep."""
    lm.prompts.clear()
    gc.collect()
    kinds = (type(found) for found in gc.get_objects())
    return Counter(
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in kinds
        if str(kind.__module__).partition(".")[0] in ("dspy_session", "dspy", "pydantic")
        or kind in (dict, list, tuple, set)
    )


def grown(lm: ScriptedLM, call: Callable[[], object], calls: int = 30) -> dict[str, int]:
    """Of which types there are more objects after so many more calls, each time.

    Once there may be more of what threads of other tests, in the same process, leave behind.
    """
    for _ in range(8):
        call()
    rounds = []
    for _ in range(2):
        before = held(lm)
        for _ in range(calls):
            call()
        rounds.append(held(lm) - before)
    return {kind: count for kind, count in (rounds[0] & rounds[1]).items() if count > calls / 3}


class Outer(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.qa = qa_session(max_stored_turns=2), dspy.Predict(QA)

    def forward(self, question: str) -> Any:
        self.inner(question=question)
        return self.qa(question=question)


def stepping() -> Callable[[], object]:
    program, options = dspy.Predict(QA), SessionOptions(max_stored_turns=3)
    state = SessionState()

    def call() -> None:
        nonlocal state
        _, state = step(state, program, {"question": "q"}, options)

    return call


def stepping_async() -> Callable[[], object]:
    program, options = dspy.Predict(QA), SessionOptions(max_stored_turns=3)
    state = SessionState()

    async def go() -> None:
        nonlocal state
        _, state = await astep(state, program, {"question": "q"}, options)

    return lambda: asyncio.run(go())


def calling(session: Session, **inputs: Any) -> Callable[[], object]:
    return lambda: session(question="q", **inputs)


def failing() -> Callable[[], object]:
    session = qa_session(max_stored_attempts=2)

    def call() -> None:
        with pytest.raises(Exception, match="the model is out"):
            session(question="fail")

    return call


def forking() -> Callable[[], object]:
    session = qa_session()
    ask(session, "one", "two")
    return lambda: session.fork()(question="q")


def undoing() -> Callable[[], object]:
    session = qa_session()

    def call() -> None:
        session(question="q")
        session.undo()

    return call


def streaming() -> Callable[[], object]:
    session = qa_session(max_stored_turns=3)
    return lambda: list(session.stream(question="q"))


def evaluating() -> Callable[[], object]:
    session = qa_session()
    ask(session, "one")
    devset = [dspy.Example(question="q").with_inputs("question")]
    evaluate = whole.Evaluate(devset=devset, metric=lambda *_: 1.0, num_threads=1)
    return lambda: evaluate(session)


WAYS: dict[str, Callable[[], Callable[[], object]]] = {
    "step": stepping,
    "astep": stepping_async,
    "a session": lambda: calling(qa_session(max_stored_turns=3)),
    "a session over a program of one's own": lambda: calling(
        sessionify(Asker(), max_stored_turns=3)
    ),
    "sessions within sessions": lambda: calling(sessionify(Outer(), max_stored_turns=3)),
    "a frozen session": lambda: calling(qa_session().frozen()),
    "an explicit history": lambda: calling(qa_session(), history=history("a")),
    "calls that fail": failing,
    "forks": forking,
    "undo": undoing,
    "streams": streaming,
    "evaluations": evaluating,
}


@pytest.mark.parametrize("way", WAYS)
def test_D23_nothing_is_left_of_a_call_but_its_turn(lm: ScriptedLM, way: str) -> None:
    assert grown(lm, WAYS[way]()) == {}


def test_D23_what_is_left_would_be_noticed(lm: ScriptedLM) -> None:
    session, kept = qa_session(max_stored_turns=3), []

    def keeping() -> None:
        session(question="q")
        kept.append(session.state)

    assert "dspy_session.core.turn.Turn" in grown(lm, keeping)
    assert grown(lm, calling(qa_session()))["dspy_session.core.turn.Turn"] == 30


def test_D23_the_frame_of_a_turn_goes_with_it(lm: ScriptedLM) -> None:
    def held() -> list[Draft | Frame]:
        gc.collect()
        return [found for found in gc.get_objects() if isinstance(found, Draft | Frame)]

    session, before = qa_session(), held()  # a test that failed keeps those in its traceback
    ask(session, "one", "two")
    assert held() == before


def test_D23_programs_that_come_and_go_leave_nothing_or_little(
    lm: ScriptedLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_signatures, "_MOST_SIGNATURES", 10)
    call_signatures._made.clear()
    gc.collect()
    digests = len(fingerprints._digests)

    def come_and_go(field: str) -> None:
        program = dspy.Predict(f"question, {field} -> answer")
        inputs = {"question": "q", field: "x"}
        step(SessionState(), program, inputs, instructions=f"There is {field}.")

    for number in range(25):
        come_and_go(f"extra_{number}")
        assert len(call_signatures._made) <= 10
    gc.collect()
    assert len(fingerprints._digests) <= digests + 1


def test_D23_a_session_adds_no_callbacks(lm: ScriptedLM) -> None:
    session = sessionify(Asker())
    ask(session, *"abc")
    assert session.callbacks == session.predictors()[0].callbacks == []
    assert dspy.settings.callbacks == []


def kept_bytes(lm: ScriptedLM, turns: int = 15) -> tuple[int, int]:
    """What the first turns of a conversation leave in memory, and what as many more leave."""
    program, state = dspy.Predict(QA), SessionState()
    for _ in range(3):  # what is made once is made: the signature with a history is 60 kB
        _, state = step(state, program, {"question": "warm"})
    state, sizes = SessionState(), []
    tracemalloc.start()
    try:
        for _ in range(2):
            for number in range(turns):
                _, state = step(state, program, {"question": f"{number} {'q' * 200}"})
            lm.prompts.clear()
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    return sizes[0], sizes[1] - sizes[0]


def test_D23_a_turn_leaves_as_much_however_long_the_conversation(lm: ScriptedLM) -> None:
    """Under the settings of the guide; else DSPy's logs hold all messages of every prompt."""
    everywhere: Any = importlib.import_module("dspy.clients.base_lm")
    logged = len(everywhere.GLOBAL_HISTORY)
    first, later = kept_bytes(lm)
    assert later < 1.2 * first
    assert later / 15 < 6_000
    assert len(lm.history) == 0
    assert len(everywhere.GLOBAL_HISTORY) == logged
    with dspy.context(disable_history=False):
        first, later = kept_bytes(lm)
    assert later > 1.5 * first
    lm.history.clear()
    everywhere.GLOBAL_HISTORY.clear()


def test_D23_a_turn_knows_its_usage_although_dspy_logs_nothing(lm: ScriptedLM) -> None:
    session = qa_session()
    prediction = session(question="one")
    assert session.turns[0].usage["scripted"]["total_tokens"] > 0
    assert prediction.get_lm_usage() is None
    with dspy.context(track_usage=True):
        assert session(question="two").get_lm_usage() is not None
