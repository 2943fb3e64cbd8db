"""Moves between values: fork, undo, redo, rewind, reset, and edits by hand."""

import gc
import sys
from collections.abc import Iterator

import dspy
import pytest

from dspy_session import OptionError, Session, Turn, TurnIndexError
from dspy_session.core import Exchange, SessionState
from dspy_session.testing import ScriptedLM
from tests.talk import (
    ask,
    history,
    pairs,
    past,
    qa_session,
    questions,
    refused,
    scripted,
    shown,
)


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := scripted())):
        yield lm


def added(count: int) -> Session:
    session = qa_session()
    gc.disable()  # thousands of new objects make it busy, for nothing
    for number in range(count):
        session.add_turn({"question": f"{number}"}, {"answer": f"answer to {number}"})
    gc.enable()
    return session


# D13: fork


def test_D13_branches_are_independent(lm: ScriptedLM) -> None:
    trunk = added(2)
    left, right = trunk.fork(), trunk.fork()
    ask(left, "left")
    ask(right, "right", "more")
    assert questions(trunk) == ["0", "1"]
    assert questions(left) == ["0", "1", "left"]
    assert questions(right) == ["0", "1", "right", "more"]
    assert past(lm.prompts[-1]) == pairs("0", "1", "right")
    left.undo(3)
    ask(trunk, "trunk")
    assert questions(trunk) == ["0", "1", "trunk"]
    assert questions(right) == ["0", "1", "right", "more"]
    assert len({trunk.session_id, left.session_id, right.session_id}) == 3


def test_D13_a_fork_keeps_options_seed_hook_and_what_can_be_redone() -> None:
    def hook(session: Session, turn: Turn) -> None: ...

    session = qa_session(initial_history=history("seed"), max_turns=1, on_turn=hook)
    ask(session, "one", "two")
    session.undo(1)
    branch = session.fork()
    assert branch.options is session.options
    assert branch.on_turn is hook
    assert shown(branch) == pairs("seed", "one")
    assert [turn.inputs["question"] for turn in branch.redo(1)] == ["two"]
    assert (questions(branch), questions(session)) == (["one", "two"], ["one"])


def test_D13_a_fork_shares_everything() -> None:
    session = added(40)
    branch = session.fork()
    assert branch.module is session.module
    assert branch.state.held is session.state.held
    assert branch.state.log is session.state.log
    assert all(a is b for a, b in zip(branch.turns, session.turns, strict=True))


def test_D13_a_fork_costs_the_same_at_any_length() -> None:
    def new_blocks(session: Session, at: int | None) -> int:
        forks: list[Session] = [session.fork(at) for _ in range(10)]
        forks.clear()
        gc.disable()
        before = sys.getallocatedblocks()
        forks.extend(session.fork(at) for _ in range(10))
        after = sys.getallocatedblocks()
        gc.enable()
        return after - before

    def new_values(session: Session) -> int:
        gc.collect()  # else it may find now what earlier tests left
        before = sum(type(item) in (Turn, Exchange) for item in gc.get_objects())
        forks = [session.fork(), session.fork(at=5)]
        after = sum(type(item) in (Turn, Exchange) for item in gc.get_objects())
        assert len(forks) == 2
        return after - before

    short, long = added(10), added(10_000)
    assert new_values(short) == new_values(long) == 0
    for at_short, at_long in ((None, None), (5, 5), (9, 9_999)):
        few, many = new_blocks(short, at_short), new_blocks(long, at_long)
        assert few > 0
        assert abs(few - many) <= 5  # half a block per fork: the allocator's own business


def test_D14_fork_from_an_earlier_turn(lm: ScriptedLM) -> None:
    session = added(5)
    branch = session.fork(at=2)
    assert questions(branch) == ["0", "1"]
    assert branch.redo(9) == ()
    ask(branch, "new")
    assert past(lm.prompts[-1]) == pairs("0", "1")
    assert [turn.index for turn in branch.turns] == [0, 1, 2]
    assert questions(session) == ["0", "1", "2", "3", "4"]
    assert questions(session.fork(at=0)) == []
    assert questions(session.fork(at=5)) == questions(session)


def test_D14_a_fork_from_an_earlier_turn_lets_go_of_the_rest() -> None:
    session = added(500)
    branch = session.fork(at=1)
    ask(branch, "new")
    assert len(branch.state.held) == 2


# D14: undo, redo, rewind, reset


def test_D14_undo_returns_the_removed_turns_newest_first(lm: ScriptedLM) -> None:
    session = added(3)
    turns = session.turns
    assert session.undo(2) == (turns[2], turns[1])
    assert session.turns == turns[:1]
    assert session.undo(5) == (turns[0],)
    assert session.undo(1) == ()
    assert session.undo(0) == ()
    ask(session, "new")
    assert past(lm.prompts[-1]) == []
    assert session.turns[0].index == 0


def test_D14_pop_turn_returns_the_turn_or_none() -> None:
    session = added(2)
    first, second = session.turns
    assert session.pop_turn() is second
    assert session.pop_turn() is first
    before = session.state
    assert session.pop_turn() is None
    assert session.state is before


def test_D14_redo_walks_forward_until_another_path_is_taken() -> None:
    session = added(4)
    before, turns = session.state, session.turns
    assert session.redo(1) == ()
    session.undo(3)
    assert session.redo(2) == turns[1:3]
    assert session.redo(9) == turns[3:]
    assert session.state == before
    session.undo(2)
    session.add_turn({"question": "other"}, {"answer": "path"})
    assert session.redo(1) == ()
    assert questions(session) == ["0", "1", "other"]


def test_D14_a_failed_call_and_a_score_leave_what_can_be_redone() -> None:
    session = added(2)
    session.undo(1)
    with pytest.raises(Exception, match="the model is out"):
        session(question="fail")
    session.score(lambda example, prediction: 1.0)
    assert len(session.redo(1)) == 1
    assert [turn.score for turn in session.turns] == [1.0, None]


def test_D14_editing_ends_what_can_be_redone() -> None:
    for edit in ("replace", "reset"):
        session = added(3)
        session.undo(1)
        if edit == "replace":
            session.replace_turn(0, {"answer": "edited"})
        else:
            session.reset()
        assert session.redo(1) == ()


def test_D14_rewind_keeps_the_indices_below() -> None:
    session = added(4)
    turns = session.turns
    session.rewind(to=1)
    assert session.turns == turns[:1]
    assert session.redo(9) == turns[1:]
    session.rewind(to=4)
    assert session.turns == turns
    session.rewind(to=0)
    assert session.turns == ()


def test_D14_reset_keeps_seed_and_id() -> None:
    session = qa_session(initial_history=history("seed"))
    ask(session, "one", "two")
    before, kept = session.session_id, session.state
    session.reset()
    assert (session.session_id, session.turns, shown(session)) == (before, (), pairs("seed"))
    ask(session, "three")
    assert session.turns[0].index == 0
    assert [turn.inputs["question"] for turn in kept.turns] == ["one", "two"]


def test_D14_moves_after_trimming_use_absolute_indices() -> None:
    session = qa_session(max_stored_turns=3)
    for number in range(10):
        session.add_turn({"question": f"{number}"}, {"answer": ""})
    assert [turn.index for turn in session.turns] == [7, 8, 9]
    assert questions(session.fork(at=8)) == ["7"]
    session.rewind(to=9)
    assert [turn.index for turn in session.turns] == [7, 8]
    with refused(session, TurnIndexError, "turn 6", "7 to 8"):
        session.rewind(to=6)
    assert [turn.index for turn in session.undo(9)] == [8, 7]
    session.add_turn({"question": "new"}, {"answer": ""})
    assert [turn.index for turn in session.turns] == [7]


# D14: by hand


def test_D14_add_turn_is_seen_by_the_next_call(lm: ScriptedLM) -> None:
    session = qa_session()
    ask(session, "one")
    turn = session.add_turn(inputs={"question": "by"}, outputs={"answer": "hand"})
    assert turn is session.turns[1]
    assert turn.history_snapshot.messages == history("one").messages
    ask(session, "two")
    assert past(lm.prompts[-1]) == [*pairs("one"), ("by", "hand")]


def test_D14_add_turn_copies_what_it_is_given() -> None:
    session = qa_session()
    inputs, outputs = {"question": ["q"]}, {"answer": ["a"]}
    session.add_turn(inputs, outputs)
    inputs["question"].append("changed")
    outputs.clear()
    turn = session.turns[0]
    assert (turn.inputs, turn.outputs) == ({"question": ["q"]}, {"answer": ["a"]})


def test_D14_replace_turn_changes_what_later_calls_see(lm: ScriptedLM) -> None:
    session = qa_session()
    ask(session, "one", "two", "three")
    session.score(lambda example, prediction: 0.5)
    old = session.turns[1]
    new = session.replace_turn(1, {"answer": "edited"})
    assert new is session.turns[1]
    assert (new.index, new.inputs, new.outputs) == (1, old.inputs, {"answer": "edited"})
    assert (new.usage, new.time, new.fingerprint) == (old.usage, old.time, old.fingerprint)
    assert (new.score, new.id == old.id) == (None, False)
    assert (old.outputs, old.score) == ({"answer": "answer to two"}, 0.5)
    assert [turn.score for turn in session.turns] == [0.5, None, 0.5]
    ask(session, "four")
    assert past(lm.prompts[-1]) == [*pairs("one"), ("two", "edited"), *pairs("three")]
    snapshot = session.turns[2].history_snapshot
    assert snapshot.messages == history("one", "two").messages  # what that call saw


def test_D14_replacing_in_one_branch_leaves_the_other() -> None:
    trunk = added(3)
    branch = trunk.fork()
    branch.replace_turn(0, {"answer": "edited"})
    assert trunk.turns[0].outputs == {"answer": "answer to 0"}
    assert branch.turns[0].outputs == {"answer": "edited"}


# Bad input


@pytest.mark.parametrize("steps", [-1, True, 1.0, "1", None])
def test_D14_steps_that_are_none(steps: int) -> None:
    session = added(2)
    session.undo(1)
    for move in (session.undo, session.redo):
        with refused(session, OptionError, "steps", "from 0 up", repr(steps)):
            move(steps)


@pytest.mark.parametrize("index", [-1, 3, 9, True, "1", 1.0])
def test_D14_there_is_no_such_turn(index: int) -> None:
    session = added(2)
    session.add_turn({"question": "2"}, {})
    session.undo(1)
    for move in (
        lambda: session.rewind(to=index),
        lambda: session.fork(at=index),
        lambda: session.replace_turn(index, {"answer": ""}),
    ):
        with refused(session, TurnIndexError, repr(index), "0 to 1"):
            move()
    with refused(session := qa_session(), TurnIndexError, "no turn is stored"):
        session.rewind(to=1)


def test_D14_every_move_is_a_move_between_values() -> None:
    session = added(3)
    values: list[tuple[SessionState, list[str]]] = []

    def keep() -> None:
        values.append((session.state, questions(session)))

    keep()
    for move in (
        lambda: session.undo(2),
        lambda: session.redo(1),
        lambda: session.rewind(to=1),
        lambda: session.add_turn({"question": "x"}, {}),
        lambda: session.replace_turn(0, {}),
        session.reset,
    ):
        move()
        keep()
    assert [asked for _, asked in values] == [
        ["0", "1", "2"],
        ["0"],
        ["0", "1"],
        ["0"],
        ["0", "x"],
        ["0", "x"],
        [],
    ]
    for state, asked in values:
        assert [turn.inputs["question"] for turn in state.turns] == asked
