"""Every kind of module in a conversation: what its predictors are told, what a turn keeps of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import LocalInterpreter

from dspy_session import Session, SessionState, sessionify, step
from dspy_session.program.anatomy import predictors
from tests.modules import (
    ANSWERS,
    QUESTIONS,
    Speaker,
    aconverse,
    converse,
    deprecated_modules,
    roles,
    tells,
)
from tests.talk import QA

# DSPy's own: what runs inside a Flex goes through an LM that the adapter does not know.
pytestmark = pytest.mark.filterwarnings("ignore:Passing OpenAI-style:DeprecationWarning")

NAMED = "question -> answer"


def look(at: str) -> str:
    """Look at something."""
    return f"seen {at}"


def always(arguments: dict[str, Any], prediction: dspy.Prediction) -> float:
    return 1.0


def say(prompt: list[dict[str, str]]) -> dict[str, Any]:
    """What the agents among the modules need to hear."""
    submit = {"name": "submit", "args": {"answer": ANSWERS[0]}}
    return {
        "next_tool_name": "finish",
        "next_tool_args": {},
        "tool_calls": {"tool_calls": [submit]},
        "generated_code": "print(6 * 7)",
        "finished": True,
        "code": "SUBMIT(answer=question.replace('ask', 'say'))",
    }


class Talking(Speaker):
    """A speaker that also speaks to agents."""

    def __init__(self) -> None:
        def reply(prompt: list[dict[str, str]]) -> dict[str, Any]:
            said = say(prompt)
            said["tool_calls"]["tool_calls"][0]["args"]["answer"] = ANSWERS[self.turn]
            return said

        super().__init__(reply)


# --- custom programs ------------------------------------------------------------------------------


class Planned(dspy.Module):
    """A planner, a worker that is a program of its own, and a writer."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = dspy.Predict("question -> plan")
        self.worker = Worker()
        self.write = dspy.ChainOfThought("question, findings -> answer")

    def forward(self, question: str) -> Any:
        plan = self.plan(question=question).plan
        return self.write(question=question, findings=self.worker(plan=plan))


class Worker(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.work = dspy.Predict("step -> finding")

    def forward(self, plan: str) -> Any:
        return self.work(step=plan).finding


class Held(dspy.Module):
    """Predictors in lists and dicts within each other; one part is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = [[dspy.Predict(NAMED)], (dspy.Predict(NAMED),)]
        self.named = {"a": {"b": dspy.ChainOfThought(NAMED)}}
        self.frozen = dspy.Predict(NAMED)
        self.frozen._compiled = True

    def forward(self, question: str) -> Any:
        for found in (self.listed[0][0], self.listed[1][0], self.named["a"]["b"]):
            found(question=question)
        return self.frozen(question=question)


class Fanned(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = dspy.Predict(NAMED), dspy.ChainOfThought(NAMED)

    def forward(self, question: str) -> Any:
        jobs = [(found, {"question": question}) for found in (self.one, self.two)]
        return dspy.Parallel(num_threads=2, disable_progress_bar=True)(jobs)[0]


class OnTheFly(dspy.Module):
    def forward(self, question: str) -> Any:
        dspy.ChainOfThought(NAMED)(question=question)
        return dspy.Predict(NAMED)(question=question)


class Retrieving(dspy.Module):
    """KNN is no module, and holds no predictor; a program that uses one is like any other."""

    def __init__(self) -> None:
        super().__init__()
        examples = [dspy.Example(question=f"q{n}").with_inputs("question") for n in range(3)]
        self.knn = dspy.KNN(k=1, trainset=examples, vectorizer=dspy.Embedder(_embed, caching=False))
        self.answer = dspy.Predict("question, similar -> answer")

    def forward(self, question: str) -> Any:
        (similar,) = self.knn(question=question)
        return self.answer(question=question, similar=similar.question)


def _embed(texts: list[str]) -> Any:
    return [[float(len(text)), 1.0] for text in texts]


class Drafted(dspy.Module):
    """Chains of thought, and one that compares them."""

    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.ChainOfThought(NAMED)
        self.compare = dspy.MultiChainComparison(NAMED, M=2)

    def forward(self, question: str) -> Any:
        drafts = [{"reasoning": "because", "answer": f"draft {n}"} for n in range(2)]
        self.think(question=question)
        return self.compare(drafts, question=question)


Case = tuple[Callable[[], dspy.Module], dict[str, Any], list[str], list[str], str]
TWO_TURNS = "uauau"  # two past turns as messages, and the question
TEXT = "u"

CASES: dict[str, Case] = {
    # name: the program, options, outputs, details, and per prompt of the third turn its messages
    "Predict": (lambda: dspy.Predict(QA), {}, ["answer"], [], TWO_TURNS),
    "ChainOfThought": (
        lambda: dspy.ChainOfThought(QA),
        {},
        ["reasoning", "answer"],
        [],
        TWO_TURNS,
    ),
    "ReAct": (
        lambda: dspy.ReAct(NAMED, tools=[look]),
        {},
        ["answer"],
        ["trajectory", "reasoning"],
        f"{TEXT} {TWO_TURNS}",
    ),
    "ReActV2": (
        lambda: dspy.ReActV2(NAMED, tools=[look]),
        {},
        ["answer"],
        ["history", "termination_reason"],
        "uu",
    ),
    "CodeAct": (
        lambda: dspy.CodeAct(NAMED, tools=[look], interpreter_factory=LocalInterpreter),
        {},
        ["answer"],
        ["trajectory", "reasoning"],
        f"{TEXT} {TWO_TURNS}",
    ),
    "ProgramOfThought": (
        lambda: dspy.ProgramOfThought(NAMED, interpreter_factory=LocalInterpreter),
        {},
        ["answer"],
        ["reasoning"],
        f"{TEXT} {TWO_TURNS}",
    ),
    "RLM": (
        lambda: dspy.RLM(NAMED, interpreter_factory=LocalInterpreter),
        {},
        ["answer"],
        ["trajectory", "final_reasoning"],
        TEXT,
    ),
    "BestOfN": (
        lambda: dspy.BestOfN(dspy.Predict(QA), N=2, reward_fn=always, threshold=2.0),
        {},
        ["answer"],
        [],
        f"{TWO_TURNS} {TWO_TURNS}",
    ),
    "Refine": (
        lambda: dspy.Refine(dspy.ChainOfThought(QA), N=2, reward_fn=always, threshold=1.0),
        {},
        ["reasoning", "answer"],
        [],
        TWO_TURNS,
    ),
    "MultiChainComparison": (
        Drafted,
        {},
        ["rationale", "answer"],
        [],
        f"{TWO_TURNS} {TWO_TURNS}",
    ),
    "Flex": (
        lambda: dspy.Flex(NAMED, interpreter_factory=LocalInterpreter),
        {"scope": "all"},
        ["answer"],
        [],
        TWO_TURNS,
    ),
    "planner, worker, writer": (
        Planned,
        {},
        ["reasoning", "answer"],
        [],
        f"{TEXT} {TEXT} {TWO_TURNS}",
    ),
    "in lists and dicts": (Held, {}, ["answer"], [], " ".join([TWO_TURNS] * 4)),
    "Parallel": (Fanned, {}, ["answer"], [], f"{TWO_TURNS} {TWO_TURNS}"),
    "on the fly": (
        OnTheFly,
        {"scope": "all"},
        ["answer"],
        [],
        f"{TWO_TURNS} {TWO_TURNS}",
    ),
    "KNN": (Retrieving, {}, ["answer"], [], TWO_TURNS),
}


def made(name: str) -> tuple[dspy.Module, dict[str, Any]]:
    make, options, *_ = CASES[name]
    with deprecated_modules():
        return make(), options


def checked(session: Session, lm: Speaker, name: str) -> None:
    """The turns and the prompts of a conversation are what the table says."""
    _, _, outputs, details, shapes = CASES[name]
    for turn in session.turns:
        assert list(turn.inputs) == ["question"]
        assert list(turn.outputs) == outputs
        assert turn.outputs["answer"] == ANSWERS[turn.index]
        assert list(turn.details) == details
    for number in range(3):
        assert all(tells(prompt, number) == bool(number) for prompt in lm.of_turn(number))
    assert [roles(prompt) for prompt in lm.of_turn(2)] == shapes.split()


@pytest.mark.parametrize("name", CASES)
def test_D3_each_module_remembers(name: str) -> None:
    program, options = made(name)
    session, lm = sessionify(program, **options), Talking()
    returned = converse(session, lm)
    assert [prediction.answer for prediction in returned] == list(ANSWERS[:3])
    checked(session, lm, name)


@pytest.mark.parametrize("name", CASES)
def test_D16_each_module_remembers_when_awaited(name: str) -> None:
    program, options = made(name)
    session, lm = sessionify(program, **options), Talking()
    asyncio.run(aconverse(session, lm))
    checked(session, lm, name)


@pytest.mark.filterwarnings("ignore:session.save:UserWarning")  # one program has a compiled part
@pytest.mark.parametrize("name", CASES)
def test_D12_each_module_goes_on_after_it_was_saved(name: str, tmp_path: Path) -> None:
    program, options = made(name)
    session, lm = sessionify(program, **options), Talking()
    converse(session, lm)
    session.save(tmp_path / "session.json")
    again = Session.load_from(tmp_path / "session.json", made(name)[0])
    assert again.state == session.state
    assert [turn.details for turn in again.turns] == [turn.details for turn in session.turns]
    other = Talking()
    other.began = [0, 0, 0]
    converse(session, lm, turns=1)
    converse(again, other, turns=1)
    assert sorted(map(json.dumps, other.of_turn(3))) == sorted(map(json.dumps, lm.of_turn(3)))


@pytest.mark.parametrize("name", CASES)
def test_D23_a_step_leaves_each_module_as_it_was(name: str) -> None:
    program, options = made(name)
    known = [(path, id(p), id(p.signature), list(p.demos)) for path, p in predictors(program)]
    session, lm = sessionify(program, copy_mode="none", **options), Talking()
    converse(session, lm)
    found = [(path, id(p), id(p.signature), list(p.demos)) for path, p in predictors(program)]
    assert found == known


# --- who is told ----------------------------------------------------------------------------------


def test_D4_what_is_made_on_the_fly_is_told_only_where_all_are() -> None:
    session, lm = sessionify(OnTheFly()), Talking()
    converse(session, lm)
    assert not any(tells(prompt, 2) for prompt in lm.of_turn(2))
    assert len(session) == 3
    session.options = session.options.replace(scope="all")
    converse(session, lm, turns=1)
    assert all(tells(prompt, 3) for prompt in lm.of_turn(3))


def test_D4_predictors_of_one_name_are_told_apart_by_themselves() -> None:
    class Twins(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, "qa[0]", dspy.Predict(NAMED))
            self.qa = [dspy.Predict(NAMED)]

        def forward(self, question: str) -> Any:
            getattr(self, "qa[0]")(question=question)
            return self.qa[0](question=question)

    names = [name for name, _ in Twins().named_predictors()]
    assert names == ["qa[0]", "qa[0]"]
    session, lm = sessionify(Twins()), Talking()
    converse(session, lm)
    assert [tells(prompt, 2) for prompt in lm.of_turn(2)] == [True, True]


def test_D4_a_predictor_that_stands_in_a_program_twice_is_one() -> None:
    class Shared(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.two = dspy.Predict(NAMED)

        def forward(self, question: str) -> Any:
            self.one(question=question)
            return self.two(question=question)

    session, lm = sessionify(Shared()), Talking()
    converse(session, lm)
    assert [roles(prompt) for prompt in lm.of_turn(2)] == [TWO_TURNS, TWO_TURNS]


def test_D4_outputs_may_change_shape_between_turns() -> None:
    class Changing(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa, self.both = dspy.Predict(NAMED), dspy.Predict("question -> answer, source")

        def forward(self, question: str) -> Any:
            if question == QUESTIONS[0]:
                return self.qa(question=question)
            if question == QUESTIONS[1]:
                return self.qa(question=question).answer
            if question == QUESTIONS[2]:
                return dspy.Prediction(verdict=self.both(question=question).answer)
            self.qa(question=question)
            return self.both(question=question)

    session, lm = sessionify(Changing()), Talking()
    converse(session, lm, turns=4)
    assert [list(turn.outputs) for turn in session.turns] == [
        ["answer"],
        ["output"],
        ["verdict"],
        ["answer", "source"],
    ]
    # `output` may be what the only output of `qa` said; `verdict` is nobody's.
    assert [roles(prompt) for prompt in lm.of_turn(1)] == ["uau"]
    assert [roles(prompt) for prompt in lm.of_turn(2)] == ["u"]
    assert [roles(prompt) for prompt in lm.of_turn(3)] == ["u", "u"]
    assert all(tells(prompt, turn) for turn in (1, 2, 3) for prompt in lm.of_turn(turn))


# --- programs that can only be called in one way --------------------------------------------------


class Sync(dspy.Module):
    """Has no aforward, and notes the thread that it runs in."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(NAMED)
        self.loops: list[bool] = []

    def forward(self, question: str) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self.loops.append(False)
        else:
            self.loops.append(True)
        return self.qa(question=question)


class Async(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(NAMED)

    async def aforward(self, question: str) -> Any:
        return await self.qa.acall(question=question)


def test_D16_a_sync_only_program_runs_off_the_event_loop() -> None:
    program = Sync()
    session, lm = sessionify(program, copy_mode="none"), Talking()
    asyncio.run(aconverse(session, lm))
    assert program.loops == [False] * 3
    assert tells(lm.prompts[-1], 2)


def test_D16_an_async_only_program_says_so_when_it_is_called() -> None:
    session, lm = sessionify(Async()), Talking()
    asyncio.run(aconverse(session, lm, turns=2))
    assert tells(lm.prompts[-1], 1)
    before = session.state
    for call in (session, lambda **inputs: step(before, Async(), inputs)):
        with pytest.raises(TypeError, match="Async has an aforward and no forward") as refused:
            call(question="x")
        assert "await session.acall(...)" in str(refused.value)
    assert session.state is before
    converse(sessionify(dspy.syncify(Async())), Talking())


def test_D16_a_part_that_cannot_be_awaited_fails_as_dspy_says() -> None:
    class Awaiting(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.best = dspy.BestOfN(dspy.Predict(NAMED), N=1, reward_fn=always, threshold=1.0)

        async def aforward(self, question: str) -> Any:
            return await self.best.acall(question=question)

    session = sessionify(Awaiting())
    before = session.state
    with pytest.raises(AttributeError, match="'BestOfN' object has no attribute 'aforward'"):
        asyncio.run(aconverse(session, Talking(), turns=1))
    assert session.state is before


def test_D16_what_an_optimizer_put_in_place_of_forward_is_what_is_awaited() -> None:
    program: Any = dspy.ChainOfThought(NAMED)
    plain = dspy.Predict(NAMED)
    program.forward = lambda **inputs: plain(**inputs)
    session, lm = sessionify(program, copy_mode="none"), Talking()
    asyncio.run(aconverse(session, lm, turns=1))
    converse(session, lm, turns=1)
    assert [list(turn.outputs) for turn in session.turns] == [["answer"], ["answer"]]


def test_D23_steps_take_the_same_programs() -> None:
    lm, state = Talking(), SessionState()
    with dspy.context(lm=lm):
        for _ in range(3):
            _, state = step(state, Planned(), {"question": lm.next_turn()})
    assert all(tells(prompt, 2) for prompt in lm.of_turn(2))
