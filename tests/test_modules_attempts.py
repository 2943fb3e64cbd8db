"""BestOfN and Refine: every attempt is in the conversation, whoever judges it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import dspy
import pytest

from dspy_session import sessionify
from dspy_session.testing import Prompt, requested_fields
from tests.loopback import Body, LoopbackServer
from tests.modules import ANSWERS, QUESTIONS, Speaker, aconverse, content, converse, roles, tells

NAMED = "question -> answer"


class Critic(Speaker):
    """Also gives a judge its grade, and Refine its advice."""

    def __init__(self, grade: float = 0.5) -> None:
        super().__init__(
            lambda prompt: {
                "grade": grade,
                "advice": {"predict": "be brief", "self": "be brief"},
                "discussion": "it was long",
            }
        )


def judged(judge: dspy.Module) -> Callable[[dict[str, Any], dspy.Prediction], float]:
    def reward(arguments: dict[str, Any], prediction: dspy.Prediction) -> float:
        return float(judge(verdict_on=prediction.answer).grade)

    return reward


def program(kind: Any, judge: dspy.Module, **more: Any) -> Any:
    return kind(dspy.ChainOfThought(NAMED), N=3, reward_fn=judged(judge), threshold=1.0, **more)


def asked_for(name: str, prompts: list[Prompt]) -> list[Prompt]:
    return [prompt for prompt in prompts if name in requested_fields(prompt)]


@pytest.mark.parametrize("kind", [dspy.BestOfN, dspy.Refine])
@pytest.mark.parametrize("awaited", [False, True])
def test_D3_attempts_are_told_and_their_judge_is_not(kind: Any, awaited: bool) -> None:
    judge = dspy.Predict("verdict_on -> grade: float")
    session, lm = sessionify(program(kind, judge)), Critic()
    if awaited:
        asyncio.run(aconverse(session, lm))
    else:
        converse(session, lm)
    assert [turn.outputs["answer"] for turn in session.turns] == list(ANSWERS[:3])
    prompts = lm.of_turn(2)
    attempts = asked_for("answer", prompts)
    assert [roles(prompt) for prompt in attempts] == ["uauau"] * 3
    assert all(tells(prompt, 2) for prompt in attempts)
    beside = [prompt for prompt in prompts if prompt not in attempts]
    assert len(asked_for("grade", beside)) == 3
    assert len(asked_for("advice", beside)) == (2 if kind is dspy.Refine else 0)
    for prompt in beside:
        words = "".join(map(content, prompt))
        assert not any(word in words for word in (*QUESTIONS[:2], *ANSWERS[:2]))


def test_D3_refine_gives_its_hint_beside_the_conversation() -> None:
    judge = dspy.Predict("verdict_on -> grade: float")
    session, lm = sessionify(program(dspy.Refine, judge)), Critic()
    converse(session, lm)
    first, *later = asked_for("answer", lm.of_turn(2))
    assert "hint_" not in first[0]["content"]
    assert len(later) == 2
    for prompt in later:
        assert "be brief" in prompt[-1]["content"]
        assert not any("hint_" in message["content"] for message in prompt[1:-1])
        assert tells(prompt, 2)


def test_D3_a_judge_that_is_part_of_the_program_is_told() -> None:
    class Judged(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.judge = dspy.Predict("question, draft -> grade: float")
            self.best = dspy.BestOfN(dspy.Predict(NAMED), N=1, reward_fn=self.reward, threshold=1.0)

        def reward(self, arguments: dict[str, Any], prediction: dspy.Prediction) -> float:
            return float(self.judge(question=arguments["question"], draft="d").grade)

        def forward(self, question: str) -> Any:
            return self.best(question=question)

    lm = Critic()
    converse(sessionify(Judged(), copy_mode="none"), lm)
    (graded,) = asked_for("grade", lm.of_turn(2))
    assert roles(graded) == "u"
    assert tells(graded, 2)


@pytest.mark.parametrize("kind", [dspy.BestOfN, dspy.Refine])
def test_D3_attempts_have_the_rollouts_that_they_have_without_a_session(kind: Any) -> None:
    def reward(arguments: dict[str, Any], prediction: dspy.Prediction) -> float:
        return 0.0

    bare = kind(dspy.Predict(NAMED), N=3, reward_fn=reward, threshold=1.0)
    found = []
    for ask in (bare, sessionify(bare)):
        rollouts: list[Any] = []
        lm = Rollouts(rollouts)
        with dspy.context(lm=lm):
            ask(question="x")
        found.append(rollouts)
    assert found == [[0, 1, 2], [0, 1, 2]]


class Rollouts(Critic):
    """Notes the rollout id under which each answer was asked for."""

    def __init__(self, noted: list[Any]) -> None:
        super().__init__()
        self.noted = noted

    def copy(self, **kwargs: Any) -> Any:
        copied = super().copy(**kwargs)
        copied.noted = self.noted
        return copied

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if "`[[ ## answer ## ]]`" in kwargs["messages"][-1]["content"]:
            self.noted.append({**self.kwargs, **kwargs}.get("rollout_id"))
        return super().__call__(*args, **kwargs)


def test_A14_when_every_attempt_fails_the_conversation_is_as_it_was() -> None:
    def failing(arguments: dict[str, Any], prediction: dspy.Prediction) -> float:
        raise ValueError("no verdict")

    best = dspy.BestOfN(dspy.Predict(NAMED), N=3, reward_fn=failing, threshold=1.0, fail_count=1)
    session = sessionify(best)
    before = session.state
    with pytest.raises(ValueError, match="no verdict"):
        converse(session, Critic(), turns=1)
    assert session.state is before


def test_D3_refine_over_http() -> None:
    turn = {"now": -1}

    def answer(body: Body) -> str:
        asked = body["messages"][-1]["content"]
        if "advice" in asked.rpartition("Respond with")[2]:
            return '[[ ## discussion ## ]]\nlong\n\n[[ ## advice ## ]]\n{"self": "be brief"}'
        return f"[[ ## answer ## ]]\n{ANSWERS[turn['now']]}"

    def never(arguments: dict[str, Any], prediction: dspy.Prediction) -> float:
        return 0.0

    refined = dspy.Refine(dspy.Predict(NAMED), N=2, reward_fn=never, threshold=1.0)
    session = sessionify(refined)
    with LoopbackServer(answer) as server, dspy.context(lm=server.lm()):
        for question in QUESTIONS[:3]:
            turn["now"] += 1
            session(question=question)
        first, advice, second = (request.messages for request in server.received[-3:])
        rollouts = [request.body.get("temperature") for request in server.received[-3:]]
    assert tells(first, 2)
    assert tells(second, 2)
    assert "be brief" in second[-1]["content"]
    assert not any(word in str(advice) for word in ANSWERS[:2])
    assert rollouts[0] == rollouts[2] == 1.0
