"""Sessions inside a program that runs in a session: their turns are part of the outer one's."""

import asyncio
import threading
from typing import Any

import dspy
import pytest

from dspy_session import Session, SessionState, Turn, sessionify, step
from dspy_session.testing import Prompt
from tests.streams import SOON
from tests.talk import ask, asked, history, past, qa_session, questions, scripted


class Outer(dspy.Module):
    """Asks its inner session, and perhaps asks it once more."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self.inner = qa_session(**keywords)
        self.finish = dspy.Predict("draft -> answer")

    def forward(self, question: str, again: bool = False, fail: bool = False) -> Any:
        draft = self.inner(question=f"inner {question}").answer
        if again:
            draft = self.inner(question=f"again {question}").answer
        if fail:
            raise ValueError("the program is out")
        return self.finish(draft=draft)


def inner_questions(session: Session, path: str = "inner") -> list[str]:
    return [turn.inputs["question"] for turn in session.state.nested[path].turns]


def inner_prompts(prompts: list[Prompt]) -> list[Prompt]:
    return [prompt for prompt in prompts if asked(prompt).startswith(("inner", "again"))]


def test_D21_turns_of_a_nested_session_belong_to_the_outer_conversation() -> None:
    lm, program = scripted(), Outer()
    session = sessionify(program, copy_mode="none")
    with dspy.context(lm=lm):
        session(question="one", again=True)
        session(question="two")
    assert inner_questions(session) == ["inner one", "again one", "inner two"]
    assert len(session) == 2
    assert program.inner.turns == ()
    seen = [[q for q, _ in past(prompt)] for prompt in inner_prompts(lm.prompts)]
    assert seen == [[], ["inner one"], ["inner one", "again one"]]


def test_D21_undo_redo_fork_and_rewind_take_the_nested_conversation_along() -> None:
    session = sessionify(Outer())
    with dspy.context(lm=scripted()):
        for question in ("one", "two", "three"):
            session(question=question)
        session.undo(2)
        assert inner_questions(session) == ["inner one"]
        fork = session.fork()
        session.redo()
        assert inner_questions(session) == ["inner one", "inner two"]
        fork(question="other")
        assert inner_questions(fork) == ["inner one", "inner other"]
        session.rewind(0)
        assert session.state.nested == {}
        session(question="anew")
    assert inner_questions(session) == ["inner anew"]


def test_D21_a_failed_turn_leaves_no_trace_in_nested_sessions() -> None:
    session = sessionify(Outer())
    with dspy.context(lm=scripted()):
        session(question="one")
        before = session.state
        with pytest.raises(ValueError, match="the program is out"):
            session(question="two", fail=True)
        assert session.state is before
        session(question="three")
    assert inner_questions(session) == ["inner one", "inner three"]


def test_D21_step_is_pure_though_the_program_holds_a_session() -> None:
    program = Outer()
    with dspy.context(lm=scripted()):
        _, one = step(SessionState(), program, {"question": "one"})
        _, left = step(one, program, {"question": "left"})
        _, right = step(one, program, {"question": "right"})
    for state, last in ((left, "inner left"), (right, "inner right")):
        asked_inside = [turn.inputs["question"] for turn in state.nested["inner"].turns]
        assert asked_inside == ["inner one", last]
    assert program.inner.turns == ()


def test_D21_a_nested_session_begins_with_what_it_has() -> None:
    lm, program = scripted(), Outer(initial_history=history("seed"))
    with dspy.context(lm=lm):
        program.inner(question="before")
        session = sessionify(program)
        session(question="one")
    (prompt,) = (prompt for prompt in lm.prompts if asked(prompt) == "inner one")
    assert [question for question, _ in past(prompt)] == ["seed", "before"]
    assert questions(program.inner) == ["before"]


def test_D21_inside_the_turn_a_nested_session_shows_its_running_conversation() -> None:
    class Looks(Outer):
        def forward(self, question: str, again: bool = False, fail: bool = False) -> Any:
            before = len(self.inner)
            self.inner(question=question)
            self.inner.score(lambda *_: 0.5)
            undone = self.inner.pop_turn()
            self.inner.redo()
            assert undone is not None
            return f"{before} {len(self.inner)} {self.inner.turns[-1].score} {undone.index}"

    session = sessionify(Looks())
    with dspy.context(lm=scripted()):
        assert session(question="one") == "0 1 0.5 0"
        assert session(question="two") == "1 2 0.5 1"
    assert inner_questions(session) == ["one", "two"]


def test_D21_a_session_that_the_program_does_not_hold_keeps_its_own_conversation() -> None:
    aside = qa_session()

    class Calls(dspy.Module):
        def forward(self, question: str) -> Any:
            return aside(question=question).answer

    session = sessionify(Calls())
    with dspy.context(lm=scripted()):
        session(question="one")
    assert session.state.nested == {}
    assert questions(aside) == ["one"]


def test_D21_sessions_in_sessions_in_lists_live_in_the_outermost_conversation() -> None:
    class Middle(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = [qa_session(), qa_session()]

        def forward(self, question: str) -> Any:
            return [inner(question=question).answer for inner in self.pair]

    class Top(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.middle = sessionify(Middle())

        def forward(self, question: str) -> Any:
            return self.middle(question=question)

    session = sessionify(Top())
    with dspy.context(lm=scripted()):
        ask(session, "one", "two")
    nested = session.state.nested
    assert set(nested) == {"middle", "middle.module.pair[0]", "middle.module.pair[1]"}
    assert [len(state) for state in nested.values()] == [2, 2, 2]
    assert all(not turn.nested for turn in nested["middle"].turns)


def test_D21_overlapping_outer_turns_lose_no_nested_turn() -> None:
    entered, release = threading.Barrier(3), threading.Event()

    class Waits(Outer):
        def forward(self, question: str, again: bool = False, fail: bool = False) -> Any:
            self.inner(question=question)
            entered.wait(SOON)
            release.wait(SOON)
            return question

    session = sessionify(Waits())

    def run(question: str) -> None:
        with dspy.context(lm=scripted()):
            session(question=question)

    threads = [threading.Thread(target=run, args=(q,)) for q in ("one", "two")]
    for thread in threads:
        thread.start()
    entered.wait(SOON)
    release.set()
    for thread in threads:
        thread.join(SOON)
    assert sorted(inner_questions(session)) == ["one", "two"]
    assert sorted(questions(session)) == ["one", "two"]


def test_D21_asking_again_takes_the_nested_conversation_back_first() -> None:
    session = sessionify(Outer())
    with dspy.context(lm=scripted()):
        for question in ("one", "two", "three"):
            session(question=question)
        session.regenerate(1, question="other")
        assert inner_questions(session) == ["inner one", "inner other"]
        session.redo(2)
        assert inner_questions(session) == ["inner one", "inner two", "inner three"]


def test_D21_attempts_on_copies_see_the_nested_conversation_and_leave_it_alone() -> None:
    lm = scripted()
    best = dspy.BestOfN(Outer(), N=2, reward_fn=lambda *_: 0.0, threshold=1.0)
    session = sessionify(best)
    with dspy.context(lm=lm):
        ask(session, "one", "two")
    assert len(session) == 2
    assert session.state.nested == {}
    assert all(past(prompt) == [] for prompt in inner_prompts(lm.prompts))


def test_D18_on_turn_of_a_nested_session_waits_for_the_outer_turn() -> None:
    heard: list[tuple[str, int]] = []

    def inner_turn(_: Session, turn: Turn) -> None:
        heard.append(("inner", turn.index))

    session = sessionify(Outer(on_turn=inner_turn), on_turn=lambda _, t: heard.append(("outer", 0)))
    with dspy.context(lm=scripted()):
        with pytest.raises(ValueError, match="the program is out"):
            session(question="fails", fail=True)
        assert heard == []
        session(question="one", again=True)
        assert heard == [("inner", 0), ("inner", 1), ("outer", 0)]
        heard.clear()
        step(SessionState(), session.module, {"question": "one"})
    assert heard == [("inner", 0)]


def test_D21_nested_turns_are_recorded_by_awaited_programs() -> None:
    class Awaits(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = qa_session()

        async def aforward(self, question: str) -> Any:
            return (await self.inner.acall(question=question)).answer

    session = sessionify(Awaits())

    async def talk() -> None:
        await session.acall(question="one")
        await session.acall(question="two")

    with dspy.context(lm=scripted()):
        asyncio.run(talk())
    assert inner_questions(session) == ["one", "two"]


@pytest.mark.parametrize("way", ["file", "dict", "copy"])
def test_D12_nested_conversations_are_saved(way: str, tmp_path: Any) -> None:
    session, lm = sessionify(Outer()), scripted()
    with dspy.context(lm=lm):
        for question in ("one", "two"):
            session(question=question)
        if way == "file":
            session.save(tmp_path / "chat.json")
            again = Session.load_from(tmp_path / "chat.json", Outer())
        elif way == "dict":
            again = Session.load_from(session.save_state(), Outer())
        else:
            again = session.deepcopy()
        assert again.state == session.state
        again(question="three")
        assert inner_questions(again) == ["inner one", "inner two", "inner three"]
        again.undo(2)
        assert inner_questions(again) == ["inner one"]
    assert len(session) == 2
