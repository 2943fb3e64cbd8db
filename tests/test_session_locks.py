"""Turns that overlap, turns that wait for each other, and sessions inside their own turn."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest

from dspy_session import Hooks, LockError, Session, Turn, sessionify
from dspy_session.testing import Prompt, ScriptedLM
from tests.streams import SOON
from tests.talk import QA, ask, asked, history, pairs, past, questions, refused, scripted


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := scripted())):
        yield lm


def on(lm: ScriptedLM) -> dspy.Predict:
    """A program with its own LM: a bare thread knows nothing of `dspy.context`."""
    program = dspy.Predict(QA)
    program.set_lm(lm)
    return program


def in_threads(calls: list[Callable[[], Any]]) -> None:
    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result(SOON)


class Meeting(dspy.Module):
    """An async program in which tasks wait until a number of them have come."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.qa = dspy.Predict(QA)
        self.inside = self.most = 0
        self.number = number
        self.all_here = asyncio.Event()

    async def aforward(self, question: str) -> Any:
        self.inside += 1
        self.most = max(self.most, self.inside)
        if self.inside == self.number:
            self.all_here.set()
        await asyncio.wait_for(self.all_here.wait(), SOON)
        await asyncio.sleep(0)
        try:
            return await self.qa.acall(question=question)
        finally:
            self.inside -= 1


# lock="none": overlapping turns


def test_D16_overlapping_threads_lose_no_turn() -> None:
    together = threading.Barrier(8, timeout=SOON)

    def meet(prompt: Prompt) -> dict[str, str]:
        if asked(prompt) != "first":
            together.wait()
        return {"answer": f"answer to {asked(prompt)}"}

    seen: list[Turn] = []
    lm = ScriptedLM(meet)
    session = sessionify(on(lm), on_turn=lambda s, turn: seen.append(turn))
    ask(session, "first")
    in_threads([lambda n=n: session(question=f"{n}") for n in range(8)])  # type: ignore[misc]
    assert [turn.index for turn in session.turns] == list(range(9))
    assert sorted(questions(session)) == [*map(str, range(8)), "first"]
    for turn in session.turns[1:]:
        assert turn.history_snapshot == history("first")
        assert turn.outputs["answer"] == f"answer to {turn.inputs['question']}"
    assert {turn.index for turn in seen} == set(range(9))
    together.reset()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(session, question="first").result(SOON)
    assert len(past(lm.prompts[-1])) == 9


def test_D16_overlapping_tasks_lose_no_turn() -> None:
    async def talk() -> Session:
        session = sessionify(Meeting(5), copy_mode="none")
        session.add_turn({"question": "first"}, {"answer": "answer to first"})
        await asyncio.gather(*[session.acall(question=f"{n}") for n in range(5)])
        return session

    session = asyncio.run(talk())
    assert session.module.most == 5  # type: ignore[attr-defined]
    assert [turn.index for turn in session.turns] == list(range(6))
    assert sorted(questions(session)) == [*map(str, range(5)), "first"]
    assert all(turn.history_snapshot == history("first") for turn in session.turns[1:])


def test_D16_moves_while_a_turn_runs_are_not_lost() -> None:
    session = sessionify(on(lm := ScriptedLM(lambda prompt: meddle(prompt))))

    def meddle(prompt: Prompt) -> dict[str, str]:
        if asked(prompt) == "two":
            session.undo(1)
            session.add_turn({"question": "meanwhile"}, {"answer": "by hand"})
        return {"answer": f"answer to {asked(prompt)}"}

    ask(session, "one", "two")
    assert questions(session) == ["meanwhile", "two"]
    assert past(lm.prompts[-1]) == pairs("one")
    assert session.turns[1].history_snapshot == history("one")


def test_D16_parallel_of_dspy_overlaps_too() -> None:
    session = sessionify(dspy.Predict(QA))
    jobs = [(session, {"question": f"{n}"}) for n in range(6)]
    results = dspy.Parallel(num_threads=3, disable_progress_bar=True)(jobs)
    assert [result.answer for result in results] == [f"answer to {n}" for n in range(6)]
    assert sorted(questions(session)) == [f"{n}" for n in range(6)]


# lock="thread", lock="async": one at a time


class Crowd:
    """Counts how many calls of a model overlap."""

    def __init__(self) -> None:
        self.inside = self.most = 0
        self.pause = threading.Event()

    def __call__(self, prompt: Prompt) -> dict[str, str]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.pause.wait(0.002)
        self.inside -= 1
        return {"answer": f"answer to {asked(prompt)}"}


def test_D16_lock_thread_makes_turns_wait() -> None:
    lm = ScriptedLM(crowd := Crowd())
    session = sessionify(on(lm), lock="thread")
    in_threads([lambda n=n: session(question=f"{n}") for n in range(8)])  # type: ignore[misc]
    assert crowd.most == 1
    assert [len(past(prompt)) for prompt in lm.prompts] == list(range(8))
    assert past(lm.prompts[-1]) == pairs(*questions(session)[:-1])
    together = threading.Barrier(8, timeout=SOON)

    def meet(prompt: Prompt) -> dict[str, str]:
        together.wait()
        return crowd(prompt)

    free = sessionify(on(ScriptedLM(meet)))
    in_threads([lambda n=n: free(question=f"{n}") for n in range(8)])  # type: ignore[misc]


def test_D16_lock_async_makes_turns_wait(lm: ScriptedLM) -> None:
    async def talk() -> Session:
        session = sessionify(Meeting(1), copy_mode="none", lock="async")
        await asyncio.gather(*[session.acall(question=f"{n}") for n in range(5)])
        return session

    session = asyncio.run(talk())
    assert session.module.most == 1  # type: ignore[attr-defined]
    assert questions(session) == ["0", "1", "2", "3", "4"]
    assert [len(past(prompt)) for prompt in lm.prompts] == [0, 1, 2, 3, 4]


def test_D16_lock_async_serves_one_event_loop_after_another() -> None:
    session = sessionify(dspy.Predict(QA), lock="async")

    async def talk() -> None:
        await asyncio.gather(*[session.acall(question=f"{n}") for n in range(3)])

    asyncio.run(talk())
    asyncio.run(talk())
    assert len(session) == 6


def test_D16_lock_async_cannot_wait_in_another_event_loop() -> None:
    started, go = threading.Event(), threading.Event()

    class Slow(dspy.Module):
        async def aforward(self, question: str) -> str:
            started.set()
            while question == "one" and not go.is_set():
                await asyncio.sleep(0.001)
            return "done"

    session = sessionify(Slow(), lock="async")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(asyncio.run, session.acall(question="one"))
        assert started.wait(SOON)
        try:
            with refused(session, LockError, "another event loop", "session.fork()"):
                asyncio.run(session.acall(question="two"))
        finally:
            go.set()
        assert first.result(SOON) == "done"
    assert asyncio.run(session.acall(question="three")) == "done"
    assert questions(session) == ["one", "three"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_D16_the_lock_is_released_after_an_error(error: type[BaseException]) -> None:
    def reply(prompt: Prompt) -> dict[str, str]:
        if asked(prompt) == "fail":
            raise error("out")
        return {"answer": f"answer to {asked(prompt)}"}

    lm = ScriptedLM(reply)
    threaded = sessionify(on(lm), lock="thread")
    with pytest.raises(BaseException, match="out"):
        threaded(question="fail")
    in_threads([lambda: threaded(question="one")])
    assert questions(threaded) == ["one"]
    awaited = sessionify(on(lm), lock="async")
    with pytest.raises(BaseException, match="out"):
        asyncio.run(awaited.acall(question="fail"))
    asyncio.run(asyncio.wait_for(awaited.acall(question="one"), SOON))
    assert questions(awaited) == ["one"]


def test_D16_hooks_run_after_the_lock_is_released() -> None:
    def on_turn(session: Session, turn: Turn) -> None:
        if turn.index == 0:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(asyncio.run, session.acall(question="from the hook")).result(SOON)

    session = sessionify(on(scripted()), lock="async", on_turn=on_turn)
    asyncio.run(session.acall(question="one"))
    assert questions(session) == ["one", "from the hook"]


def test_D16_the_lock_is_released_after_a_cancelled_turn() -> None:
    class Waits(dspy.Module):
        async def aforward(self, question: str) -> Any:
            if question == "wait":
                await asyncio.sleep(3600)
            return question

    async def talk(session: Session) -> None:
        running = asyncio.create_task(session.acall(question="wait"))
        waiting = asyncio.create_task(session.acall(question="never"))
        last = asyncio.create_task(session.acall(question="last"))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.sleep(0)
        running.cancel()
        assert await asyncio.wait_for(last, SOON) == "last"
        results = await asyncio.gather(running, waiting, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2

    session = sessionify(Waits(), lock="async")
    asyncio.run(talk(session))
    assert questions(session) == ["last"]


class Asks(dspy.Module):
    """A program that does what it is told while its turn runs."""

    def __init__(self) -> None:
        super().__init__()
        self.do: Callable[[], Any] = lambda: "nothing"

    def forward(self, question: str) -> Any:
        return self.do()


class AsksLater(Asks):
    """The same for async code."""

    async def aforward(self, question: str) -> Any:
        return await self.do()


def asking(program: Asks, do: Callable[[Session], Any], lock: str) -> Session:
    session = sessionify(program, lock=lock, copy_mode="none")
    session.add_turn({"question": "first"}, {"output": "by hand"})
    program.do = lambda: do(session)
    return session


# The wrong mode, and a session inside its own turn


def test_D16_a_lock_of_the_wrong_mode() -> None:
    threaded = sessionify(dspy.Predict(QA), lock="thread")
    with refused(threaded, LockError, "lock='thread'", "call it as session(...)", "lock='async'"):
        asyncio.run(threaded.acall(question="one"))
    with refused(threaded, LockError, "lock='thread'"):
        asyncio.run(threaded.aforward(question="one"))
    awaited = sessionify(dspy.Predict(QA), lock="async")
    with refused(awaited, LockError, "lock='async'", "await session.acall(...)", "lock='thread'"):
        awaited(question="one")
    with refused(awaited, LockError, "lock='async'"):
        awaited.forward(question="one")
    free = sessionify(dspy.Predict(QA))
    free(question="one")
    asyncio.run(free.acall(question="two"))
    assert len(free) == 2


INSIDE = ("inside its own turn", "session.fork()")


@pytest.mark.parametrize("lock", ["none", "thread"])
@pytest.mark.parametrize(
    "again",
    [lambda session: session(question="again"), lambda session: session.forward(question="again")],
)
def test_D16_a_session_inside_its_own_turn(lock: str, again: Callable[[Session], Any]) -> None:
    program = Asks()
    session = asking(program, again, lock)
    for call in (session, session.forward):
        with refused(session, LockError, *INSIDE):
            call(question="one")
    program.do = lambda: "fine"
    in_threads([lambda: session(question="two")])
    assert session.turns[-1].outputs == {"output": "fine"}


@pytest.mark.parametrize("lock", ["none", "async"])
@pytest.mark.parametrize(
    "again",
    [
        lambda session: session.acall(question="again"),
        lambda session: session.aforward(question="again"),
        lambda session: asyncio.gather(session.acall(question="again")),
    ],
)
def test_D16_an_async_session_inside_its_own_turn(
    lock: str, again: Callable[[Session], Any]
) -> None:
    session = asking(AsksLater(), again, lock)
    for call in (session.acall, session.aforward):
        with refused(session, LockError, *INSIDE):
            asyncio.run(call(question="one"))


@pytest.mark.parametrize("place", ["before", "after", "around"])
@pytest.mark.parametrize("way", ["call", "stream"])
def test_D16_a_locked_session_in_a_hook_of_its_own_turn(way: str, place: str) -> None:
    def hook(about: Any, run: Any = None) -> Any:
        session.ask("Again?")

    def turn() -> None:
        with refused(session, LockError, "lock='thread'", "called by a hook", "on_turn"):
            session(question="one") if way == "call" else list(session.stream(question="one"))
        refusals.append(True)

    refusals: list[bool] = []
    session = sessionify(on(scripted()), lock="thread", hooks=Hooks(**{place: hook}))
    thread = threading.Thread(target=turn, daemon=True)
    thread.start()
    thread.join(SOON)
    assert refusals == [True]
    assert session.fork().ask("Again?")
    assert session.ask("Again?"), "nothing holds the lock any more"


def test_D16_a_locked_session_in_a_hook_of_a_session_in_its_own_hook() -> None:
    def again(_: Any) -> None:
        session.ask("Again?")

    def other(_: Any) -> None:
        sessionify(on(scripted()), hooks=Hooks(before=again))(question="two")

    def turn() -> None:
        with refused(session, LockError, "called by a hook"):
            session(question="one")
        refusals.append(True)

    refusals: list[bool] = []
    session = sessionify(on(scripted()), lock="thread", hooks=Hooks(before=other))
    thread = threading.Thread(target=turn, daemon=True)
    thread.start()
    thread.join(SOON)
    assert refusals == [True]


@pytest.mark.parametrize("place", ["before", "after", "around"])
@pytest.mark.parametrize("way", ["acall", "astream"])
def test_D16_an_async_locked_session_in_a_hook_of_its_own_turn(way: str, place: str) -> None:
    async def hook(about: Any, run: Any = None) -> Any:
        await session.aask("Again?")

    async def turn() -> None:
        if way == "acall":
            await session.acall(question="one")
        async for _ in session.astream(question="one"):
            pass

    session = sessionify(on(scripted()), lock="async", hooks=Hooks(**{place: hook}))
    with refused(session, LockError, "lock='async'", "called by a hook", "on_turn"):
        asyncio.run(asyncio.wait_for(turn(), SOON))


def test_D16_also_from_a_worker_thread_of_dspy() -> None:
    def attempt(session: Session) -> list[Exception]:
        jobs = [(session, dspy.Example(question="again").with_inputs("question"))]
        _, _, errors = dspy.Parallel(
            max_errors=9, return_failed_examples=True, disable_progress_bar=True
        )(jobs)
        return list(errors)

    session = asking(Asks(), attempt, "thread")
    (error,) = session(question="one")
    assert isinstance(error, LockError)
    assert questions(session) == ["first", "one"]


def test_D16_also_through_another_session() -> None:
    outer = asking(Asks(), lambda _: inner(question="in between"), "thread")
    inner = asking(Asks(), lambda _: outer(question="again"), "thread")
    before = inner.state
    with refused(outer, LockError, *INSIDE):
        outer(question="one")
    assert inner.state is before


@pytest.mark.parametrize("lock", ["none", "thread"])
def test_D16_other_sessions_and_branches_may_be_called_inside(lock: str) -> None:
    other = sessionify(dspy.Predict(QA), lock=lock)

    def attempt(session: Session) -> Any:
        branches = [session.fork(), session.deepcopy()]
        for branch in branches:
            branch.update_module(dspy.Predict(QA))
        return [branch(question="inside").answer for branch in [other, *branches]]

    session = asking(Asks(), attempt, lock)
    assert session(question="one") == ["answer to inside"] * 3
    assert questions(session) == ["first", "one"]
    assert questions(other) == ["inside"]


def test_D16_a_forward_that_is_replaced_may_run_the_program_again() -> None:
    """Optimizers wrap `forward`; a wrapper that tries twice is no session inside its own turn."""
    session = sessionify(dspy.Predict(QA))
    inner = object.__getattribute__(session, "forward")

    def twice(**inputs: Any) -> Any:
        inner(**inputs)
        return inner(**inputs)

    session.forward = twice  # type: ignore[method-assign]
    assert session(question="one").answer == "answer to one"
    assert questions(session) == ["one"]


def test_D16_forward_and_aforward_are_calls(lm: ScriptedLM) -> None:
    session = sessionify(dspy.Predict(QA))
    assert session.forward(question="one").answer == "answer to one"
    assert asyncio.run(session.aforward(question="two")).answer == "answer to two"
    assert past(lm.prompts[-1]) == pairs("one")
    assert questions(session) == ["one", "two"]


def test_D16_a_sync_only_program_can_be_awaited(lm: ScriptedLM) -> None:
    class Sync(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            return self.qa(question=question)

    async def talk() -> None:
        for question in ("one", "two"):
            assert (await session.acall(question=question)).answer == f"answer to {question}"

    session = sessionify(Sync())
    asyncio.run(talk())
    assert past(lm.prompts[-1]) == pairs("one")
