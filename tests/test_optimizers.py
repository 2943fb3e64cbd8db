"""What an optimizer learns of a session is in the messages that the compiled session sends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import Session, sessionify
from dspy_session.testing import Prompt, ScriptedLM, requested_fields
from tests.talk import QA, Asker, ask, asked, questions

PROGRAMS = [lambda: dspy.Predict(QA), lambda: dspy.ChainOfThought(QA), Asker]
every_program = pytest.mark.parametrize("make", PROGRAMS, ids=["Predict", "ChainOfThought", "own"])


def answering(prompt: Prompt) -> dict[str, Any]:
    return {name: f"{name} to {asked(prompt)}" for name in requested_fields(prompt)}


def talked(make: Any) -> Session:
    session = sessionify(make())
    ask(session, "one", "two", "three")
    return session


def demo_questions(prompt: Prompt, session: Session) -> list[str]:
    """The questions of the demos in a prompt: what comes before the session's own turns."""
    demos = prompt[1 : len(prompt) - 1 - 2 * len(session.session_history.messages)]
    return [message["content"].split("\n")[1] for message in demos[::2]]


@every_program
def test_D11_bootstrapped_demos_are_in_the_prompt_of_a_live_session(
    make: Any, tmp_path: Path
) -> None:
    lm = ScriptedLM(answering)
    with dspy.context(lm=lm):
        session = talked(make)
        before, program_before = session.state, json.dumps(session.dump_state(), default=str)
        compiled = dspy.BootstrapFewShot(max_labeled_demos=0).compile(
            session, trainset=session.to_examples()
        )
        assert isinstance(compiled, Session)
        assert questions(compiled) == ["one", "two", "three"]
        shown = demo_questions_after_asking(compiled, lm)
        assert shown == ["one", "two", "three"]
        # It is live, and the given session is what it was.
        assert questions(compiled) == ["one", "two", "three", "now"]
        assert session.state is before
        assert json.dumps(session.dump_state(), default=str) == program_before
        # Through DSPy's own files the demos reach a fresh session, and the bare program.
        path = tmp_path / "program.json"
        compiled.module.save(path)
        fresh = sessionify(make())
        fresh.load(path)
        assert demo_questions_after_asking(fresh, lm) == shown
        bare = make()
        bare.load(path)
        bare(question="bare")
        assert [q in json.dumps(lm.prompts[-1]) for q in shown] == [True] * 3


def demo_questions_after_asking(session: Session, lm: ScriptedLM) -> list[str]:
    history = session.fork()
    session(question="now")
    return demo_questions(lm.prompts[-1], history)


def test_D11_demos_hold_the_history_that_their_turn_saw() -> None:
    lm = ScriptedLM(answering)
    with dspy.context(lm=lm):
        session = talked(lambda: dspy.Predict(QA))
        compiled = dspy.BootstrapFewShot(max_labeled_demos=0).compile(
            session, trainset=session.to_examples()
        )
    histories = [demo["history"].messages for demo in compiled.module.demos]
    assert [len(messages) for messages in histories] == [0, 1, 2]
    assert histories[2] == session.turns[2].history_snapshot.messages


def test_D11_labeled_demos_are_in_the_prompt() -> None:
    lm = ScriptedLM(answering)
    with dspy.context(lm=lm):
        session = talked(lambda: dspy.Predict(QA))
        compiled = dspy.LabeledFewShot(k=2).compile(
            session, trainset=session.to_examples(), sample=False
        )
        assert demo_questions_after_asking(compiled, lm) == ["one", "two"]


def test_D11_optimizing_records_nothing_and_calls_no_hook() -> None:
    seen: list[int] = []
    with dspy.context(lm=ScriptedLM(answering)):
        session = sessionify(dspy.Predict(QA), on_turn=lambda s, turn: seen.append(turn.index))
        ask(session, "one", "two")
        compiled = dspy.BootstrapFewShot().compile(session, trainset=session.to_examples())
    assert len(session) == len(compiled) == 2
    assert seen == [0, 1]


BETTER = "Answer like a pirate, and never forget what was said before."


def proposing(prompt: Prompt) -> Any:
    """As COPRO's prompt model: always the same better instruction."""
    fields = requested_fields(prompt)
    return {name: BETTER if name == "proposed_instruction" else "Answer:" for name in fields}



def obeying(prompt: Prompt) -> dict[str, Any]:
    """Answers like a pirate if the instructions say so."""
    tone = "pirate: " if "like a pirate" in prompt[0]["content"] else ""
    return {name: f"{tone}{name} to {asked(prompt)}" for name in requested_fields(prompt)}


@every_program
def test_D11_instructions_found_by_copro_are_in_the_prompt(make: Any, tmp_path: Path) -> None:
    def metric(example: Any, prediction: Any, trace: Any = None) -> float:
        answer = prediction if isinstance(prediction, str) else prediction.answer
        return float("pirate" in answer)

    lm = ScriptedLM(obeying)
    with dspy.context(lm=lm):
        session = talked(make)
        before = session.state
        optimizer = dspy.COPRO(
            prompt_model=ScriptedLM(proposing), metric=metric, breadth=2, depth=1
        )
        compiled = optimizer.compile(
            session,
            trainset=session.to_examples(),
            eval_kwargs={"num_threads": 2, "display_progress": False, "display_table": 0},
        )
        assert isinstance(compiled, Session)
        assert session.state is before
        assert questions(compiled) == ["one", "two", "three"]
        compiled(question="now")
        assert BETTER in lm.prompts[-1][0]["content"]
        assert len(lm.prompts[-1]) == 2 + 2 * 3  # and the conversation is still there
        assert len(compiled) == 4
        path = tmp_path / "program.json"
        compiled.module.save(path)
        fresh = sessionify(make())
        fresh.load(path)
        fresh(question="fresh")
        assert BETTER in lm.prompts[-1][0]["content"]
