"""One shared program, many conversations at once: no prompt holds anything of another's."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy

from dspy_session import SessionState, astep, sessionify, step
from dspy_session.testing import Prompt, ScriptedLM
from tests.talk import QA, asked, echo, pairs, past, scripted

CALLS, THREADS, CONVERSATIONS = 1_000, 32, 50


def expected(conversation: int, turns: int) -> list[tuple[str, str]]:
    return pairs(*(f"c{conversation} t{turn}" for turn in range(turns)))


def check_prompts(prompts: list[Prompt], calls: int) -> None:
    """Every prompt shows the turns of its own conversation before its question, and no other."""
    assert len(prompts) == calls
    for prompt in prompts:
        conversation, turn = asked(prompt).removeprefix("c").split(" t")
        assert past(prompt) == expected(int(conversation), int(turn))


def test_D23_threads_share_a_program_and_no_conversation() -> None:
    lm, program = scripted(), dspy.Predict(QA)

    def converse(conversation: int) -> SessionState:
        state = SessionState()
        for turn in range(CALLS // CONVERSATIONS):
            with dspy.context(lm=lm):
                _, state = step(state, program, {"question": f"c{conversation} t{turn}"})
        return state

    with ThreadPoolExecutor(THREADS) as pool:
        states = list(pool.map(converse, range(CONVERSATIONS)))
    check_prompts(lm.prompts, CALLS)
    assert [len(state) for state in states] == [CALLS // CONVERSATIONS] * CONVERSATIONS


def test_D23_tasks_share_a_program_and_no_conversation() -> None:
    lm, program = scripted(), dspy.Predict(QA)
    chance = random.Random(7)

    async def one(conversation: int) -> SessionState:
        """A task of its own, which yields to the others before and after its second call."""
        state = SessionState()
        for turn in range(2):
            await asyncio.sleep(chance.random() / 100)
            _, state = await astep(state, program, {"question": f"c{conversation} t{turn}"})
        return state

    async def all_of_them() -> list[SessionState]:
        with dspy.context(lm=lm):
            return await asyncio.gather(*(one(number) for number in range(CALLS)))

    states = asyncio.run(all_of_them())
    check_prompts(lm.prompts, 2 * CALLS)
    assert all(len(state) == 2 for state in states)


class Twice(dspy.Module):
    """Asks two predictors at once, in DSPy's own threads."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict(QA)
        self.second = dspy.Predict(QA)

    def forward(self, question: str) -> Any:
        parallel = dspy.Parallel(num_threads=2, disable_progress_bar=True)
        asked_both = [(self.first, {"question": question}), (self.second, {"question": question})]
        first, second = parallel(asked_both)
        assert first.answer == second.answer
        return first


def test_D4_predictors_inside_parallel_see_the_conversation() -> None:
    lm = ScriptedLM(echo)
    session = sessionify(Twice())
    with dspy.context(lm=lm):
        for turn in range(3):
            session(question=f"c0 t{turn}")
    assert len(session) == 3
    check_prompts(lm.prompts, 6)


def test_X13_usage_inside_parallel_counts() -> None:
    alone, both = sessionify(dspy.Predict(QA)), sessionify(Twice())
    with dspy.context(lm=scripted()):
        alone(question="c0 t0")
        both(question="c0 t0")
    (one,), (two,) = alone.turns[0].usage.values(), both.turns[0].usage.values()
    assert two["total_tokens"] == 2 * one["total_tokens"] > 0
