"""What conversations share in memory and in their written form, as counts of objects and bytes."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from dspy_session import codec
from dspy_session.core import (
    Exchange,
    Run,
    SessionOptions,
    SessionState,
    Step,
    Turn,
    Window,
    annotate,
    commit,
    prepare,
    record,
    redo,
    replace_turn,
    reset,
    rewind,
    truncate,
    undo,
    visible_window,
    with_id,
)
from dspy_session.core.flat import pack, unpack

WHOLE = SessionOptions()


def say(state: SessionState, count: int, options: SessionOptions = WHOLE) -> SessionState:
    for _ in range(count):
        number = state.stop
        step = prepare(state, {"question": f"q{number}"}, options)
        _, state = commit(state, step, {"answer": f"a{number}"}, Run(id=f"id{number}"), options)
    return state


def alive(kinds: tuple[type, ...] = (Exchange, Turn, Window, SessionState, Step)) -> int:
    gc.collect()
    return sum(isinstance(thing, kinds) for thing in gc.get_objects())


def growth(state: SessionState) -> int:
    before = alive()
    grown = say(state, 1)
    assert sum(a is b for a, b in zip(state, grown, strict=False)) == len(state)
    assert grown.turns[-1].window.log is state.log
    return alive() - before


def born(operation: Callable[[], object]) -> int:
    """How many objects that the collector knows are alive after an operation and not before."""
    gc.collect()
    before = len(gc.get_objects())
    result = operation()
    after = len(gc.get_objects())
    del result
    return after - before


@pytest.fixture(scope="module")
def long() -> SessionState:
    return say(SessionState(id="long"), 10_000)


# In memory


def test_recording_makes_one_turn_and_one_exchange_at_any_length(long: SessionState) -> None:
    for state in (say(SessionState(), 10), long):
        assert growth(state) == 4  # a turn, its exchange, its window, and the state


MOVES: dict[str, Callable[[SessionState], object]] = {
    "record": lambda state: say(state, 1),
    "undo": lambda state: undo(state, 3),
    "redo": lambda state: redo(undo(state, 3)[1], 3),
    "rewind": lambda state: rewind(state, 2),
    "reset": reset,
    "fork": lambda state: with_id(state, "fork"),
    "fork at": lambda state: rewind(with_id(state, "fork"), 5, redoable=False),
    "replace": lambda state: replace_turn(state, 5, {"answer": "new"}, id="new"),
    "score": lambda state: annotate(state, {5: (1.0, None)}),
    "window": lambda state: visible_window(state, WHOLE),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_D13_a_move_makes_as_little_at_10_000_turns_as_at_10(
    long: SessionState, move: Callable[[SessionState], object]
) -> None:
    short = say(SessionState(), 10)
    move(short)  # what is made only once
    assert born(lambda: move(long)) <= born(lambda: move(short)) + 8 < 40


def test_D7_trimming_frees_the_turns_it_trims() -> None:
    options = SessionOptions(max_stored_turns=3)
    before, exchanges_before = alive((Turn,)), alive((Exchange,))
    state = say(SessionState(), 10_000, options)
    assert [turn.index for turn in state] == [9_997, 9_998, 9_999]
    assert alive((Turn,)) - before == 3
    assert alive((Exchange,)) - exchanges_before <= 6  # theirs, and what they saw


def test_D7_trimming_at_once_frees_the_turns_too() -> None:
    state = say(SessionState(), 500)
    turns = [weakref.ref(turn) for turn in state]
    state = truncate(state, 2)
    gc.collect()
    assert [turn() is not None for turn in turns] == [False] * 498 + [True] * 2
    state = say(state, 2, SessionOptions(max_stored_turns=2))
    gc.collect()
    assert not any(turn() for turn in turns)


def test_what_reset_and_other_paths_leave_behind_is_freed() -> None:
    state = say(SessionState(), 200)
    turns = [weakref.ref(turn) for turn in state]
    state = say(rewind(state, 3), 1)
    gc.collect()
    assert sum(turn() is not None for turn in turns) == 3
    state = reset(state)
    gc.collect()
    assert not any(turn() for turn in turns)


@pytest.mark.parametrize("back", [1, 10, 100, 199, 200])
def test_leftovers_never_outweigh_what_is_alive(back: int) -> None:
    state = say(SessionState(), 200)
    for _ in range(5):
        state = say(undo(state, back)[1], 1)
        assert len(state.held) <= 2 * len(state) + 32
        assert len(state.log) == len(state.held)


def test_X3_a_snapshot_takes_constant_memory() -> None:
    window = visible_window(say(SessionState(), 10), WHOLE)
    assert all(not isinstance(getattr(window, name), list) for name in window.__struct_fields__)
    state = say(SessionState(), 300)
    assert sum(turn.window.__sizeof__() for turn in state) == 300 * window.__sizeof__()


class Cycle:
    """Garbage that only the collector finds, as sessions may be."""

    def __init__(self, state: SessionState) -> None:
        self.state, self.itself = state, self


def turn_of_two_forgotten_branches() -> Turn:
    trunk = say(SessionState(), 40)
    Cycle(say(trunk, 1))
    Cycle(say(trunk, 1))
    return trunk.turns[3]


def test_D13_a_turn_outlives_its_branches_whole() -> None:
    """The collector may not empty what somebody holds; with pyrsistent's C vectors it does."""
    turn = turn_of_two_forgotten_branches()
    gc.collect()
    assert (turn.index, turn.inputs, turn.outputs) == (3, {"question": "q3"}, {"answer": "a3"})
    assert len(turn.history_snapshot.messages) == 3


def test_the_collector_looks_at_each_thing_once() -> None:
    """Not once for each version of the conversation that a snapshot keeps."""
    state = say(SessionState(), 300)
    seen, references = {id(state)}, 0
    ahead: list[Any] = [state]
    while ahead:
        for thing in gc.get_referents(ahead.pop()):
            references += not isinstance(thing, type)
            if id(thing) not in seen and not isinstance(thing, type):
                seen.add(id(thing))
                ahead.append(thing)
    assert references < 300 * 70


# Written down


def grown(count: int) -> SessionState:
    return say(SessionState(id="same"), count)


def windowed(count: int) -> SessionState:
    return say(SessionState(id="same"), count, SessionOptions(max_turns=1))


def varied(count: int) -> SessionState:
    state = SessionState()
    for number in range(count):
        state = say(state, 1, SessionOptions(max_turns=(None, 0, 1, 5)[number % 4]))
    return state


def trimmed(count: int) -> SessionState:
    return say(SessionState(), 3 * count, SessionOptions(max_stored_turns=count))


def answered_again(count: int) -> SessionState:
    """Each turn is undone once and recorded anew."""
    state = SessionState()
    for _ in range(count):
        state = say(undo(say(state, 1))[1], 1)
    return state


def corrected(count: int) -> SessionState:
    """Each turn is replaced before the next one."""
    state = SessionState()
    for number in range(count):
        _, state = replace_turn(say(state, 1), number, {"answer": f"b{number}"}, id=f"b{number}")
    return state


def scattered(count: int) -> SessionState:
    """Calls and edits of every other old turn alternate, so that later windows see a patchwork."""
    state = say(SessionState(), count // 2)
    for number in range(count // 2):
        at = 2 * number % (count // 2)
        _, state = replace_turn(state, at, {"answer": f"b{number}"}, id=f"b{number}")
        state = say(state, 1)
    return state


def gapped(count: int) -> SessionState:
    """Windows of different epochs that do not touch, and then one over all of it."""
    state = say(SessionState(), 3)
    for _ in range(count // 6):
        state = say(state, 4, SessionOptions(max_turns=0))
        for options in (SessionOptions(max_turns=1), WHOLE):
            at = state.stop - 1
            _, state = replace_turn(state, at, {"answer": f"b{at}"}, id=f"b{at}")
            state = say(state, 1, options)
    return state


def late(count: int) -> SessionState:
    """Calls overlap edits: each begins in another epoch, and they end in another order."""
    state = say(SessionState(), count // 2)
    begun = []
    for number in range(count // 2):
        _, state = replace_turn(state, number, {"answer": f"b{number}"}, id=f"b{number}")
        begun.append(prepare(state, {"question": f"late{number}"}, WHOLE))
    for number in range(count // 2):
        step = begun[number * 7 % len(begun)]
        _, state = commit(state, step, {"answer": "late"}, Run(id=f"late{number}"), WHOLE)
    return state


def reopened(count: int) -> SessionState:
    """Loaded before each turn and saved after it, as a server does."""
    state = SessionState()
    for _ in range(count):
        state = unpack(pack(say(state, 1)))
    return state


SHAPES: list[Callable[[int], SessionState]] = [
    grown,
    windowed,
    varied,
    trimmed,
    answered_again,
    corrected,
    scattered,
    gapped,
    late,
    reopened,
]
Grow = Callable[[int], SessionState]


def entries(state: SessionState) -> int:
    flat = pack(state)
    patches = sum(len(path.patches) for path in flat.paths)
    others = len(flat.seeds) + len(flat.views)
    return len(flat.turns) + len(flat.exchanges) + len(flat.paths) + patches + others


@pytest.mark.parametrize("grow", [grown, windowed, answered_again, reopened])
def test_X3_a_conversation_that_only_grew_has_one_path_of_one_run(grow: Grow) -> None:
    flat = pack(grow(40))
    assert [len(path.patches) for path in flat.paths] == [1]
    assert len(flat.exchanges) <= 2 * len(flat.turns)


@pytest.mark.parametrize("grow", SHAPES)
def test_X3_tables_and_bytes_are_linear_in_the_conversation(grow: Grow) -> None:
    small, large = grow(60), grow(120)
    assert entries(large) <= 2 * entries(small)
    assert entries(large) <= 7 * 120
    for format in ("json", "msgpack"):
        sizes = [len(codec.encode(state, WHOLE, format)) for state in (small, large)]
        assert sizes[1] <= 2.15 * sizes[0]
    sizes = [len(pickle.dumps(state)) for state in (small, large)]
    assert sizes[1] <= 2.15 * sizes[0]


@pytest.mark.parametrize("grow", SHAPES)
def test_X3_every_snapshot_survives_being_written_down(grow: Grow) -> None:
    state = grow(30)
    for loaded in (unpack(pack(state)), codec.decode(codec.encode(state, WHOLE))[0]):
        assert loaded == state
        assert [t.window.messages() for t in loaded] == [t.window.messages() for t in state]
        assert pack(loaded).paths == pack(state).paths or grow is varied
        later = say(loaded, 2)
        assert unpack(pack(later)) == later


def used_by(operation: Callable[[], object]) -> int:
    gc.collect()
    tracemalloc.start()
    result = operation()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del result
    return used


@pytest.mark.parametrize("grow", SHAPES)
def test_X3_what_was_shared_is_shared_again_after_loading(grow: Grow) -> None:
    sizes = []
    for count in (150, 300):
        written = pickle.dumps(grow(count))
        sizes.append(used_by(lambda: pickle.loads(written)))  # noqa: B023
    assert sizes[1] <= 2.5 * sizes[0]


def test_one_exchange_recorded_twice_stays_two_turns() -> None:
    exchange = Exchange({"question": "again"}, {"answer": "and again"})
    state = say(SessionState(), 1)
    for id in ("one", "two"):
        _, state = record(state, exchange, visible_window(state, WHOLE), Run(id=id))
    state = say(state, 1)
    loaded = unpack(pack(state))
    assert loaded == state
    assert [turn.inputs for turn in loaded] == [turn.inputs for turn in state]


def test_seeds_are_written_once() -> None:
    seeds: Any = [[{"note": "x" * 1000}]]
    state = say(codec.decode(codec.encode(SessionState(), WHOLE))[0], 0)
    options = SessionOptions(history_policy="replace_session")  # type: ignore[arg-type]
    step = prepare(state, {"question": "new"}, options, seeds[0])
    _, state = commit(state, step, {}, Run(), options)
    state = say(state, 50)
    assert codec.encode(state, WHOLE).count(b"x" * 1000) == 1
