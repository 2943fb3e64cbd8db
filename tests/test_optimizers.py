"""What an optimizer learns reaches the prompts of the session it returns, and outlives a save."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import Session, sessionify
from dspy_session.testing import Prompt, ScriptedLM, requested_fields
from tests.talk import QA, ask, asked, echo, field, pairs, past, questions

LEARNED = "Answer like a pirate."
PROGRAMS: dict[str, Callable[[], dspy.Module]] = {
    "Predict": lambda: dspy.Predict(QA),
    "ChainOfThought": lambda: dspy.ChainOfThought(QA),
    "composed": lambda: Composed(),
}
every_program = pytest.mark.parametrize("program", PROGRAMS)


class Composed(dspy.Module):
    """Its predictor is found deeper down, and its answer is another Prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = [dspy.ChainOfThought(QA)]

    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=self.steps[0](question=question).answer)


def reply(prompt: Prompt) -> dict[str, Any]:
    """As `echo`, but a model that is told to answer like a pirate does."""
    said = echo(prompt)
    if LEARNED in prompt[0]["content"]:
        said["answer"] = f"arr, {said['answer']}"
    return said


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := ScriptedLM(reply))):
        yield lm


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    return bool(prediction.answer.endswith(example.answer))


def conversation(program: dspy.Module) -> Session:
    session = sessionify(program)
    ask(session, "one", "two", "three")
    return session


def unchanged(session: Session) -> Callable[[], None]:
    """Call what this returns to see that the session is as it was."""
    state, dumped, module = session.state, session.module.dump_state(), session.module
    predictors = [(p, p.signature, list(p.demos)) for p in module.predictors()]

    def check() -> None:
        assert session.state is state
        assert session.module is module
        assert session.module.dump_state() == dumped
        assert [(p, p.signature, list(p.demos)) for p in module.predictors()] == predictors

    return check


def is_live(session: Session, lm: ScriptedLM, before: Session) -> Prompt:
    """The session goes on from where `before` is, and records; returns the prompt of its turn."""
    assert isinstance(session, Session)
    assert session.turns == before.turns
    length = len(session)
    session(question="and now?")
    assert len(session) == length + 1
    assert questions(session)[-1] == "and now?"
    prompt = lm.prompts[-1]
    turns = [text for m in prompt if (text := field(m["content"], "question"))]
    assert turns[-length - 1 :] == ["one", "two", "three", "and now?"][-length - 1 :]
    session(question="and then?")
    assert "and now?" in [field(m["content"], "question") for m in lm.prompts[-1]]
    return prompt


def demos_in(prompt: Prompt) -> list[str]:
    """The questions of the demos in a prompt: those that hold what their call had seen."""
    users = [m["content"] for m in prompt if m["role"] == "user"]
    return [field(text, "question") or "" for text in users if "[[ ## history ## ]]" in text]


@every_program
def test_X2_bootstrapped_demos_reach_the_prompt(program: str, lm: ScriptedLM) -> None:
    session = conversation(PROGRAMS[program]())
    check = unchanged(session)
    optimizer = dspy.BootstrapFewShot(metric=metric, max_bootstrapped_demos=2, max_labeled_demos=0)
    compiled = optimizer.compile(session, trainset=session.to_examples())
    check()
    (learned,) = compiled.predictors()
    assert [demo.augmented for demo in learned.demos] == [True, True]
    assert [len(demo.history.messages) for demo in learned.demos] == [0, 1]
    prompt = is_live(compiled, lm, session)
    assert demos_in(prompt) == ["one", "two"]
    check()
    session(question="plain")
    assert demos_in(lm.prompts[-1]) == []
    assert past(lm.prompts[-1]) == pairs("one", "two", "three")


def test_X2_examples_are_replayed_with_what_their_call_saw(lm: ScriptedLM) -> None:
    session = conversation(dspy.Predict(QA))
    lm.prompts.clear()
    optimizer = dspy.BootstrapFewShot(metric=metric, max_bootstrapped_demos=3, max_labeled_demos=0)
    optimizer.compile(session, trainset=session.to_examples())
    assert [(past(prompt), asked(prompt)) for prompt in lm.prompts] == [
        (pairs(), "one"),
        (pairs("one"), "two"),
        (pairs("one", "two"), "three"),
    ]


@every_program
def test_X2_labeled_demos_reach_the_prompt(program: str, lm: ScriptedLM) -> None:
    session = conversation(PROGRAMS[program]())
    check = unchanged(session)
    optimizer = dspy.LabeledFewShot(k=2)
    compiled = optimizer.compile(session, trainset=session.to_examples(), sample=False)
    prompt = is_live(compiled, lm, session)
    assert demos_in(prompt) == ["one", "two"]
    check()


@every_program
def test_X2_demos_without_history_reach_the_prompt_too(program: str, lm: ScriptedLM) -> None:
    session = conversation(PROGRAMS[program]())
    trainset = session.to_examples(include_history=False)
    compiled = dspy.LabeledFewShot(k=2).compile(session, trainset=trainset, sample=False)
    prompt = is_live(compiled, lm, session)
    shown = [field(m["content"], "question") for m in prompt if m["role"] == "user"]
    assert shown == ["one", "two", "one", "two", "three", "and now?"]


@every_program
def test_X2_instructions_reach_the_prompt(program: str, lm: ScriptedLM) -> None:
    def propose(prompt: Prompt) -> dict[str, Any]:
        proposals = {"proposed_instruction": LEARNED, "proposed_prefix_for_output_field": "Answer:"}
        return {name: proposals[name] for name in requested_fields(prompt)}

    def pirate(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
        return bool(prediction.answer.startswith("arr"))

    session = conversation(PROGRAMS[program]())
    check = unchanged(session)
    optimizer = dspy.COPRO(prompt_model=ScriptedLM(propose), metric=pirate, breadth=2, depth=1)
    compiled = optimizer.compile(
        session,
        trainset=session.to_examples(),
        eval_kwargs={"num_threads": 1, "display_progress": False},
    )
    (learned,) = compiled.predictors()
    assert learned.signature.instructions == LEARNED
    prompt = is_live(compiled, lm, session)
    assert LEARNED in prompt[0]["content"]
    assert compiled.turns[-1].outputs["answer"].startswith("arr")
    check()
    session(question="plain")
    assert LEARNED not in lm.prompts[-1][0]["content"]


@every_program
def test_X2_what_was_learned_outlives_a_save(program: str, lm: ScriptedLM, tmp_path: Path) -> None:
    session = conversation(PROGRAMS[program]())
    optimizer = dspy.BootstrapFewShot(metric=metric, max_bootstrapped_demos=2, max_labeled_demos=0)
    compiled = optimizer.compile(session, trainset=session.to_examples())
    (learned,) = compiled.predictors()
    learned.signature = learned.signature.with_instructions(LEARNED)
    path = tmp_path / "program.json"
    compiled.module.save(path)

    fresh, bare = sessionify(PROGRAMS[program]()), PROGRAMS[program]()
    fresh.load(path)
    bare.load(path)
    for loaded in (fresh, bare, sessionify(bare)):
        loaded(question="x")
        prompt = lm.prompts[-1]
        assert LEARNED in prompt[0]["content"]
        shown = [field(m["content"], "question") for m in prompt if m["role"] == "user"]
        assert shown == ["one", "two", "x"]
        assert field(prompt[2]["content"], "answer") == "answer to one"
    assert len(fresh) == 1  # a program's file holds no conversation
    fresh(question="y")
    assert past(lm.prompts[-1])[-1] == ("x", "arr, answer to x")


def test_X2_a_session_of_a_compiled_program_learns_on(lm: ScriptedLM) -> None:
    session = conversation(dspy.ChainOfThought(QA))
    first = dspy.LabeledFewShot(k=1).compile(session, trainset=session.to_examples(), sample=False)
    again = dspy.LabeledFewShot(k=2).compile(first, trainset=session.to_examples(), sample=False)
    again(question="x")
    assert demos_in(lm.prompts[-1]) == ["one", "two"]
    wrapped = sessionify(first.module)
    learned = dspy.LabeledFewShot(k=3).compile(
        wrapped, trainset=session.to_examples(), sample=False
    )
    learned(question="x")
    assert demos_in(lm.prompts[-1]) == ["one", "two", "three"]


def test_X2_a_program_that_takes_its_history_learns_with_it(lm: ScriptedLM) -> None:
    class ByHand(dspy.Signature):
        """Answer the question."""

        question: str = dspy.InputField()
        chat_log: dspy.History = dspy.InputField()
        answer: str = dspy.OutputField()

    session = conversation(dspy.Predict(ByHand))
    optimizer = dspy.BootstrapFewShot(metric=metric, max_bootstrapped_demos=2, max_labeled_demos=0)
    compiled = optimizer.compile(session, trainset=session.to_examples())
    compiled(question="x")
    users = [m["content"] for m in lm.prompts[-1] if m["role"] == "user"]
    assert [field(text, "question") for text in users if "chat_log" in text] == ["one", "two"]
    assert len(compiled) == 4
