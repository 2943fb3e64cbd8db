"""One program, many conversations at once: each prompt holds its own and nothing else."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest

from dspy_session import Session, SessionState, astep, sessionify, step
from dspy_session.core.state import start
from dspy_session.testing import Prompt, ScriptedLM
from tests.talk import QA, asked, echo, pairs, past

THREADS = 32
TURNS = 8
CONVERSATIONS = 4  # of each thread: 32 * 4 * 8 = 1,024 calls
TASKS = 1_000


class Shared(dspy.Module):
    """One program for everybody; it lets others go first, and changes adapters on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(QA)

    def forward(self, question: str) -> Any:
        time.sleep(0)
        with dspy.context(adapter=dspy.ChatAdapter()):
            return self.qa(question=question)

    async def aforward(self, question: str) -> Any:
        await asyncio.sleep(0)
        with dspy.context(adapter=dspy.ChatAdapter()):
            found = await self.qa.acall(question=question)
        await asyncio.sleep(0)
        return found


def slow_echo(prompt: Prompt) -> dict[str, Any]:
    time.sleep(0.0005)  # so that calls really overlap
    return echo(prompt)


def questions(name: str, turns: int = TURNS) -> list[str]:
    return [f"{name} {number}" for number in range(turns)]


def check(lm: ScriptedLM, names: list[str], turns: int = TURNS) -> None:
    """Every call was made once, and saw the earlier questions of its own conversation."""
    shown = {asked(prompt): past(prompt) for prompt in lm.prompts}
    assert len(shown) == len(lm.prompts) == len(names) * turns
    for name in names:
        own = questions(name, turns)
        for number, question in enumerate(own):
            assert shown[question] == pairs(*own[:number])


def test_D23_threads_that_share_a_program_see_their_own_conversations_only() -> None:
    program, lm, ready = Shared(), ScriptedLM(slow_echo), threading.Barrier(THREADS)

    def converse(thread: int) -> None:
        names = [f"t{thread}c{number}" for number in range(CONVERSATIONS)]
        states = dict.fromkeys(names, SessionState())
        sessions = {name: sessionify(program, copy_mode="none") for name in names[::2]}
        ready.wait()
        with dspy.context(lm=lm, disable_history=True):
            for turn in range(TURNS):
                for name in names:
                    question = f"{name} {turn}"
                    if name in sessions:
                        sessions[name](question=question)
                    else:
                        _, states[name] = step(states[name], program, {"question": question})

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(converse, range(THREADS)))
    check(lm, [f"t{t}c{c}" for t in range(THREADS) for c in range(CONVERSATIONS)])


def test_D23_tasks_that_share_a_program_see_their_own_conversations_only() -> None:
    program, lm = Shared(), ScriptedLM(echo)

    async def converse(number: int) -> None:
        first, second = questions(f"a{number}", 2)
        seed = [{"question": first, "answer": f"answer to {first}"}]
        if number % 2:
            session = Session.from_state(start(seed), program, copy_mode="none")
            await session.acall(question=second)
        else:
            await astep(start(seed), program, {"question": second})

    async def everybody() -> None:
        await asyncio.gather(*(converse(number) for number in range(TASKS)))

    with dspy.context(lm=lm, disable_history=True):
        asyncio.run(everybody())
    assert len(lm.prompts) == TASKS
    for prompt in lm.prompts:
        name = asked(prompt).split()[0]
        assert past(prompt) == pairs(f"{name} 0")


def test_D23_sync_programs_awaited_at_once_see_their_own_conversations_only() -> None:
    class SyncOnly(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            return self.qa(question=question)

    program, lm, names = SyncOnly(), ScriptedLM(slow_echo), [f"s{n}" for n in range(20)]

    async def converse(name: str) -> None:
        state = SessionState()
        for question in questions(name, 3):
            _, state = await astep(state, program, {"question": question})

    async def everybody() -> None:
        await asyncio.gather(*map(converse, names))

    with dspy.context(lm=lm):
        asyncio.run(everybody())
    check(lm, names, 3)


class Fan(dspy.Module):
    """Asks in DSPy's own threads."""

    def __init__(self) -> None:
        super().__init__()
        self.qa, self.other = dspy.Predict(QA), dspy.ChainOfThought(QA)

    def forward(self, question: str) -> Any:
        jobs = [(m, {"question": question}) for m in (self.qa, self.other, self.qa)]
        return dspy.Parallel(num_threads=3, disable_progress_bar=True)(jobs)[0]


def test_D4_a_program_that_works_in_parallel_sees_its_history_there() -> None:
    lm = ScriptedLM(slow_echo)
    with dspy.context(lm=lm):
        session = sessionify(Fan())
        for question in ("one", "two", "three"):
            session(question=question)
    shown = [past(prompt) for prompt in lm.prompts]
    assert shown == [pairs()] * 3 + [pairs("one")] * 3 + [pairs("one", "two")] * 3


def test_D4_parallel_programs_in_parallel_conversations() -> None:
    program, lm, names = Fan(), ScriptedLM(slow_echo), [f"p{n}" for n in range(8)]

    def converse(name: str) -> None:
        state = SessionState()
        with dspy.context(lm=lm):
            for question in questions(name, 3):
                _, state = step(state, program, {"question": question})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(converse, names))
    assert len(lm.prompts) == 8 * 3 * 3
    for prompt in lm.prompts:
        name, number = asked(prompt).split()
        assert past(prompt) == pairs(*questions(name, int(number)))


def test_D4_batches_of_a_program_inside_a_turn_see_its_history() -> None:
    class Batching(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            examples = [
                dspy.Example(question=f"{question}.{n}").with_inputs("question") for n in "ab"
            ]
            return self.qa.batch(examples, num_threads=2, disable_progress_bar=True)[0]

    lm = ScriptedLM(echo)
    with dspy.context(lm=lm):
        session = sessionify(Batching())
        session(question="one")
        session(question="two")
    assert [past(prompt) for prompt in lm.prompts[2:]] == [[("one", "answer to one.a")]] * 2


def test_D23_nothing_of_a_turn_is_left_in_a_thread_that_dspy_reuses() -> None:
    lm = ScriptedLM(echo)
    plain = dspy.Predict(QA)
    with dspy.context(lm=lm):
        session = sessionify(Fan())
        session(question="one")
        jobs = [(plain, {"question": f"plain {n}"}) for n in range(8)]
        dspy.Parallel(num_threads=3, disable_progress_bar=True)(jobs)
    assert {len(prompt) for prompt in lm.prompts[3:]} == {2}
    with pytest.raises(AttributeError):
        _ = dspy.settings.dspy_session_frame
