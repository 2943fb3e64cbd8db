"""What things cost, as counts that are the same on every machine; for times, see `benchmarks/`."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import dspy
import pytest

from dspy_session import Session, SessionState, Turn, sessionify, step
from dspy_session.core.window import Exchange, Window
from dspy_session.program import clear_render_cache, render_counts
from dspy_session.testing import scripted_lm
from tests import house

CORE = str(house.PROJECT / house.PACKAGE / "core")
PACKAGE = str(house.PROJECT / house.PACKAGE)
LENGTHS = (100, 1_000)

Call = Callable[[], object]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """A scripted LM, none of DSPy's own logs, and nothing rendered before."""
    clear_render_cache()
    lm = scripted_lm(lambda _: {"answer": "fine"})
    with dspy.context(lm=lm, disable_history=True, trace=[], adapter=dspy.ChatAdapter()):
        yield
    clear_render_cache()


def session_of(turns: int, **options: Any) -> Session:
    session = sessionify(dspy.Predict("question -> answer"), **options)
    for number in range(turns):
        session.add_turn({"question": f"question {number}"}, {"answer": f"answer {number}"})
    return session


def session_call(turns: int) -> Call:
    session = session_of(turns)
    return lambda: session(question="And now?")


def step_call(turns: int) -> Call:
    module = dspy.Predict("question -> answer")
    states = [session_of(turns).state]

    def call() -> None:
        _, after = step(states[-1], module, {"question": "And now?"})
        states.append(after)

    return call


both_ways = pytest.mark.parametrize("make", [session_call, step_call])


# Rendering


@both_ways
@pytest.mark.parametrize("turns", LENGTHS)
def test_X7_a_call_renders_one_exchange(make: Callable[[int], Call], turns: int) -> None:
    call = make(turns)
    call()
    assert render_counts() == (turns, 0)  # all that is new to this process, once
    for number in range(1, 4):
        rendered, reused = render_counts()
        call()
        assert render_counts() == (rendered + 1, reused + turns + number - 1)


def test_X7_branches_render_what_they_share_once() -> None:
    session = session_of(100)
    session(question="Everything is rendered here.")
    branches = [session.fork() for _ in range(5)]
    branches.append(session.fork(at=50))
    session.undo(3)
    rendered, _ = render_counts()
    for branch in (*branches, session):
        branch(question="And now?")
    assert render_counts()[0] == rendered + 1  # the turn that the first call appended


def test_X7_what_was_dropped_is_rendered_again() -> None:
    session = session_of(10)
    session(question="?")
    clear_render_cache()
    session(question="?")
    assert render_counts() == (11, 0)


# What a call makes, and how much it does


def calls_of(run: Call, under: str) -> Counter[str]:
    """How often each function of the files under a folder is entered while `run` runs."""
    counts: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(under):
            name = Path(frame.f_code.co_filename).name
            counts[f"{name}:{frame.f_code.co_qualname}"] += 1

    gc.disable()  # what it finds now may be finalised by one of them
    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
        gc.enable()
    return counts


def objects(*kinds: type) -> dict[type, int]:
    """How many objects of these classes there are."""
    found = Counter(type(item) for item in gc.get_objects())
    return {kind: found[kind] for kind in kinds}


@contextmanager
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@both_ways
@pytest.mark.parametrize("turns", LENGTHS)
def test_X3_a_call_leaves_one_turn_behind(make: Callable[[int], Call], turns: int) -> None:
    call = make(turns)
    call()
    with no_collection():
        before = objects(Turn, Exchange, Window)
        assert min(before.values()) >= turns
        call()
        after = objects(Turn, Exchange, Window)
    assert {kind: after[kind] - before[kind] for kind in before} == dict.fromkeys(before, 1)


@both_ways
def test_X7_the_core_does_the_same_at_any_length(make: Callable[[int], Call]) -> None:
    """Nothing is looked at turn by turn, save what goes into the prompt."""
    few, many = (make(turns) for turns in LENGTHS)
    few()
    many()
    few_calls, many_calls = calls_of(few, CORE), calls_of(many, CORE)
    walking = "window.py:Window.__iter__"
    assert many_calls.pop(walking) > few_calls.pop(walking) > LENGTHS[0]
    assert few_calls == many_calls
    assert few_calls["window.py:Exchange.__init__"] == 1
    assert few_calls.total() < 100


def test_X3_a_snapshot_copies_nothing() -> None:
    """What a call saw shares its exchanges with the conversation."""
    session = session_of(100)
    session(question="And now?")
    turns = session.turns
    assert [id(e) for e in turns[-1].window] == [id(turn.exchange) for turn in turns[:-1]]


def test_X3_what_is_trimmed_is_freed() -> None:
    with no_collection():
        before = objects(Turn, Exchange)
    session = session_of(1_000, max_stored_turns=3)
    with no_collection():
        more = {kind: n - before[kind] for kind, n in objects(Turn, Exchange).items()}
    assert len(session.turns) == len(session.state.held) == len(session.state.log) == 3
    # The oldest of the three turns saw three turns before it; nothing older is held.
    assert more == {Turn: 3, Exchange: 6}


# Forks


FORKS = 100


def kept_by(run: Call) -> int:
    """The bytes that the package asks for in a hundred runs and does not give back.

    A hundred, since what one run takes differs by the spare objects that the interpreter had.
    """
    with no_collection():
        tracemalloc.start()
        kept = [run() for _ in range(FORKS)]
        taken = tracemalloc.take_snapshot()
        tracemalloc.stop()
    assert len(kept) == FORKS
    return sum(t.size for t in taken.traces if t.traceback[0].filename.startswith(PACKAGE))


@pytest.mark.parametrize("back", [None, 5])
def test_X3_a_fork_takes_the_same_at_any_length(back: int | None) -> None:
    sizes, counts = [], []
    for turns in (10, 10_000):
        session = session_of(turns)
        fork = partial(session.fork, at=None if back is None else turns - back)
        fork()
        sizes.append(kept_by(fork))
        counts.append(calls_of(fork, PACKAGE))
    # One pointer for every turn would be 80 kB a fork more.
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)
    assert 0 < sizes[0] < FORKS * 1_000
    assert counts[0] == counts[1] != Counter()


def test_moves_do_the_same_at_any_length() -> None:
    counts = []
    for turns in (10, 10_000):
        session = session_of(turns)
        moves: list[Call] = [
            partial(session.undo, 2),
            partial(session.redo, 1),
            partial(session.rewind, turns - 5),
            partial(session.redo, 1),
            partial(session.add_turn, {"question": "q"}, {"answer": "a"}),
            partial(session.replace_turn, 0, {"answer": "b"}),
            session.reset,
        ]
        counts.append([calls_of(move, PACKAGE) for move in moves])
    assert counts[0] == counts[1]


# Memory


@contextmanager
def traced() -> Iterator[list[int]]:
    """How many bytes more there are after the block than before, the render cache apart."""
    clear_render_cache()
    gc.collect()
    grown: list[int] = []
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    try:
        yield grown
        clear_render_cache()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        grown.append(after - before)
    finally:
        tracemalloc.stop()


def test_X3_a_thousand_turns_fit_into_three_megabytes() -> None:
    numbers = iter(range(10_000))
    lm = scripted_lm(lambda _: {"answer": f"{next(numbers):0400d}"})
    with dspy.context(lm=lm):
        # What a turn saw is kept whatever was shown of it; short prompts are quicker to trace.
        session = session_of(0, max_turns=2)
        session(question="warm")
        session.reset()
        with traced() as grown:
            for number in range(1_000):
                session(question=f"{number:0400d}")
                lm.prompts.clear()
                dspy.settings.trace.clear()
    assert len(session) == 1_000
    assert sum(len(t.inputs["question"] + t.outputs["answer"]) for t in session.turns) == 800_000
    assert 800_000 < grown[0] <= 3_000_000


def test_a_session_over_a_shared_program_is_small() -> None:
    program = dspy.Predict("question -> answer")
    sessionify(program, copy_mode="none")
    with traced() as grown:
        sessions = [sessionify(program, copy_mode="none") for _ in range(1_000)]
    assert all(session.module is program for session in sessions)
    assert grown[0] / len(sessions) <= 4_000


def test_a_state_is_smaller_still() -> None:
    with traced() as grown:
        states = [SessionState() for _ in range(1_000)]
    assert grown[0] / len(states) <= 200


# Imports


def test_importing_brings_nothing_heavy() -> None:
    alone = house.loaded_by("import dspy")
    names = "Session, dspy_session.step, dspy_session.sessionify"
    added = house.loaded_by(f"import dspy, dspy_session; dspy_session.{names}") - alone
    top = {name.partition(".")[0] for name in added - alone}
    distributions = top - sys.stdlib_module_names - {name.partition(".")[0] for name in alone}
    # pvectorc is pyrsistent's own, in C, which it has for some Python versions only.
    assert distributions - {"pvectorc"} == {house.PACKAGE, "msgspec", "pyrsistent"}
    assert "litellm" not in alone | added


def test_importing_the_core_leaves_dspy_out() -> None:
    loaded = house.loaded_by("import dspy_session, dspy_session.core; dspy_session.SessionState")
    assert "dspy_session.core.state" in loaded
    assert not {"dspy", "litellm", "pydantic", "pandas", "numpy"} & loaded
