"""What conversations share in memory and in their written form, as counts of objects and bytes."""

from __future__ import annotations

import gc
import pickle
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Mapping
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
    summarized,
    truncate,
    undo,
    visible_window,
    with_id,
    write,
)
from dspy_session.core.flat import pack, unpack
from dspy_session.core.vectors import differing, vector

WHOLE = SessionOptions()


def say(state: SessionState, count: int, options: SessionOptions = WHOLE) -> SessionState:
    for _ in range(count):
        state = ask(state, options)
    return state


def ask(
    state: SessionState,
    options: SessionOptions = WHOLE,
    at: int | None = None,
    nested: Mapping[str, SessionState] | None = None,
) -> SessionState:
    """One more turn, or with `at` another answer to one; `nested` is what it left in sessions."""
    number = state.stop if at is None else at
    step = prepare(state, {"question": f"q{number}"}, options, at=at)
    run = Run(id=f"id{number}")
    return commit(state, step, {"answer": f"a{number}"}, run, options, nested=nested)[1]


def alive(kinds: tuple[type, ...] = (Exchange, Turn, Window, SessionState, Step)) -> int:
    gc.collect()
    return sum(isinstance(thing, kinds) for thing in gc.get_objects())


def calls(operation: Callable[[], object]) -> int:
    """How many functions an operation calls, a measure of work that no other process disturbs."""
    count = 0

    def seen(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    gc.disable()  # what it finds now may be finalised by a function, in the middle of the count
    sys.setprofile(seen)
    try:
        operation()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count


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
    "regenerate": lambda state: ask(state, at=state.stop - 1),
    "ask an earlier turn again": lambda state: ask(state, at=5),
    "go round the answers": lambda state: redo(redo(ask(state, at=7))[1])[1].alternatives,
    "record with a session inside": lambda state: ask(state, nested={"inner": state}),
    "read what is nested": lambda state: undo(ask(state, nested={"inner": state}))[1].nested,
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_D13_a_move_makes_as_little_at_10_000_turns_as_at_10(
    long: SessionState, move: Callable[[SessionState], object]
) -> None:
    short = say(SessionState(), 10)
    move(short)  # what is made only once
    assert born(lambda: move(long)) <= born(lambda: move(short)) + 8 < 40
    if move not in (MOVES["replace"], MOVES["score"]):
        assert calls(lambda: move(long)) <= 2 * calls(lambda: move(short)) + 100


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


LENGTHS = [0, 1, 31, 32, 33, 64, 65, 1024, 1056, 1057, 2100, 33_000]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("more", [0, 1, 40, 1100])
def test_versions_of_a_vector_differ_where_their_items_do(length: int, more: int) -> None:
    """It leans on how pyrsistent builds its vectors: versions share nodes of 32."""
    first = vector(range(1000, 1000 + length))
    version = first
    for number in range(more):
        version = version.append(number)
    changed = {at for at in (0, 31, 32, 33, 1000, length - 1) if 0 <= at < length}
    for at in changed:
        version = version.set(at, -1)
    for stop in {0, length // 2, length}:
        for one, other in ((first, version), (version, first)):
            assert list(differing(one, other, stop)) == sorted(at for at in changed if at < stop)
        assert list(differing(vector(list(first)), version, stop))[:1] == [0][:stop]
    assert calls(lambda: list(differing(first, version, length))) < 400
    assert list(differing(version, version, length)) == []


def test_what_reset_and_other_paths_leave_behind_is_freed() -> None:
    state = say(SessionState(), 200)
    turns = [weakref.ref(turn) for turn in state]
    state = say(rewind(state, 3), 1)
    gc.collect()
    assert sum(turn() is not None for turn in turns) == 3
    state = reset(state)
    gc.collect()
    assert not any(turn() for turn in turns)


def test_other_answers_are_freed_when_the_conversation_goes_on() -> None:
    state = say(SessionState(), 200)
    turns = [weakref.ref(turn) for turn in state]
    state = ask(state, at=3)
    gc.collect()
    assert all(turn() is not None for turn in turns)
    state = say(state, 1)
    gc.collect()
    assert sum(turn() is not None for turn in turns) == 3
    assert len(state.held) <= 2 * len(state) + 32


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


def narrow_and_wide(count: int) -> SessionState:
    """Old turns are edited, and calls see all turns or the last one, by turns."""
    state = say(SessionState(), count // 2)
    for number in range(count // 2):
        at = 7 * number % (count // 2)
        _, state = replace_turn(state, at, {"answer": f"b{number}"}, id=f"b{number}")
        _, state = replace_turn(state, state.stop - 2, {"answer": "c"}, id=f"c{number}")
        state = say(state, 1, SessionOptions(max_turns=3 if number % 2 else None))
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


def answered_often(count: int) -> SessionState:
    """The last turn has many answers, all of them still ahead."""
    state = say(SessionState(id="same"), count // 2)
    for _ in range(count // 2):
        state = ask(state, at=state.stop - 1)
    return state


def asked_again(count: int) -> SessionState:
    """Earlier and earlier turns are asked again, and their paths are long."""
    state = say(SessionState(), count // 2)
    for number in range(count // 2 - 1, count // 4, -1):
        state = annotate(redo(ask(state, at=number), 100)[1], {number: (0.5, "better")})
    return state


def nested(count: int) -> SessionState:
    """Each turn has the conversation of a session in the program, which grows."""
    state = SessionState(id="outer")
    for _ in range(count // 2):
        inner = state.nested.get("inner", SessionState(id="inner"))
        state = ask(state, nested={"inner": say(inner, 1)})
    return state


def nested_deeply(count: int) -> SessionState:
    """Two sessions in the program, and one in the program of one of them."""
    state = SessionState()
    for _ in range(count // 4):
        left, right = (state.nested.get(path, SessionState(id=path)) for path in ("a", "b.c"))
        within = say(right.nested.get("d", SessionState()), 1)
        state = ask(state, nested={"a": say(left, 1), "b.c": ask(right, nested={"d": within})})
    return state


def nested_restless(count: int) -> SessionState:
    """The session in the program goes back and forth, and its turns are answered again."""
    state = SessionState()
    for number in range(count // 4):
        inner = say(state.nested.get("inner", SessionState()), 2)
        inner = ask(undo(inner, number % 3)[1], at=0 if number % 8 == 7 else None)
        inner = annotate(ask(inner, at=inner.stop - 1), {0: (0.1 * number, None)})
        state = ask(state, nested={"inner": redo(inner)[1]})
    return state


def nested_corrected(count: int) -> SessionState:
    """Each turn of the session in the program is replaced before the next one."""
    state = SessionState()
    for number in range(count // 4):
        inner = say(state.nested.get("inner", SessionState()), 1)
        _, inner = replace_turn(inner, number, {"answer": "corrected"}, id=f"b{number}")
        state = ask(state, nested={"inner": inner})
    return state


def nested_edited(count: int) -> SessionState:
    """Each turn replaces an old turn of the session in the program, here and there."""
    inner, state = say(SessionState(), count // 4), SessionState()
    for number in range(count // 4):
        at = 7 * number % len(inner)
        _, inner = replace_turn(inner, at, {"answer": "edited"}, id=f"b{number}")
        state = ask(state, nested={"inner": inner})
    return state


def nested_trimmed(count: int) -> SessionState:
    """The session in the program keeps a few turns, the outer one keeps half of its own."""
    state = SessionState()
    for _ in range(count // 3):
        inner = state.nested.get("inner", SessionState())
        inner = say(inner, 1, SessionOptions(max_stored_turns=3))
        state = ask(state, SessionOptions(max_stored_turns=count // 6), nested={"inner": inner})
    return state


def nested_answered_again(count: int) -> SessionState:
    """Turns are asked again, and the session in the program with them."""
    state = nested(count // 2)
    for number in range(count // 10):
        at = state.stop - 1 - number % 3
        inner = say(rewind(state, at).nested["inner"], 1)
        state = ask(state, at=at, nested={"inner": inner})
    return state


def nested_reopened(count: int) -> SessionState:
    """A program with a session in it, loaded before each turn and saved after it."""
    state = SessionState()
    for _ in range(count // 3):
        inner = state.nested.get("inner", SessionState())
        state = unpack(pack(ask(state, nested={"inner": say(inner, 1)})))
    return state


def remembering(count: int) -> SessionState:
    """Each turn notes something under a key of its own, beside a counter and a large value."""
    state = write(SessionState(), {"turns": 0, "profile": "p" * 500})
    for number in range(count // 2):
        changes = {"turns": number + 1, f"note {number}": "n" * 40}
        state = write(ask(state), changes)
    return state


def summarised(count: int) -> SessionState:
    """Turns with data and other answers, summarised now and then."""
    state = SessionState()
    for number in range(count // 3):
        state = write(ask(state, at=state.stop - 1 if number % 5 == 4 else None), {"n": number})
        if number % 10 == 9:
            state = summarized(state, state.seed, 2)
    return state


SHAPES: list[Callable[[int], SessionState]] = [
    grown,
    windowed,
    varied,
    trimmed,
    answered_again,
    corrected,
    scattered,
    narrow_and_wide,
    gapped,
    late,
    reopened,
    answered_often,
    asked_again,
    nested,
    nested_deeply,
    nested_restless,
    nested_corrected,
    nested_edited,
    nested_trimmed,
    nested_answered_again,
    nested_reopened,
    summarised,
]
Grow = Callable[[int], SessionState]


def entries(state: SessionState) -> int:
    tables = pack(state)
    paths = [*tables.paths, *(state.path for state in tables.states)]
    numbers = sum(len(path.patches) for path in paths)
    numbers += sum(len(state.ahead) for state in tables.states)
    numbers += sum(len(beside.nested) for beside in tables.besides)
    numbers += len(tables.turns) + len(tables.exchanges) + len(tables.besides)
    return len(paths) + numbers + len(tables.seeds) + len(tables.views)


@pytest.mark.parametrize("grow", [grown, windowed, answered_again, reopened])
def test_X3_a_conversation_that_only_grew_has_one_path_of_one_run(grow: Grow) -> None:
    tables = pack(grow(40))
    assert [len(path.patches) for path in tables.paths] == [1]
    assert len(tables.exchanges) <= 2 * len(tables.turns)
    (state,) = tables.states
    assert (state.path.base, len(state.path.patches)) == (None, 1)


def test_D21_a_version_of_a_nested_session_is_one_patch() -> None:
    for state in (nested(80), nested_reopened(120)):
        tables = pack(state)
        *versions, outer = [state.path for state in tables.states]
        assert [(path.start, path.stop) for path in versions] == [(0, n + 1) for n in range(40)]
        assert [path.base for path in versions] == [None, *range(39)]
        assert [(at, run) for path in versions for at, _, run in path.patches] == [
            (n, 1) for n in range(40)
        ]
        assert (outer.base, outer.patches) == (None, [(0, 0, 40)])
        assert len(tables.paths) == 2


@pytest.mark.parametrize("grow", SHAPES)
def test_X3_tables_and_bytes_are_linear_in_the_conversation(grow: Grow) -> None:
    small, large = grow(60), grow(120)
    assert entries(large) <= 2 * entries(small) + 8
    assert entries(large) <= 7 * 120
    for format in ("json", "msgpack"):
        sizes = [len(codec.encode(state, WHOLE, format)) for state in (small, large)]
        assert sizes[1] <= 2.15 * sizes[0]
    sizes = [len(pickle.dumps(state)) for state in (small, large)]
    assert sizes[1] <= 2.15 * sizes[0]


def test_X3_each_value_of_session_data_is_written_once() -> None:
    """However many turns stand beside it; a turn has a number for up to 64 keys of its data."""
    for format in ("json", "msgpack"):
        states = remembering(200), remembering(400)
        sizes = [len(codec.encode(state, WHOLE, format)) for state in states]
        assert sizes[1] <= 2.15 * sizes[0]
        assert codec.encode(states[1], WHOLE, format).count(b"p" * 500) == 1


@pytest.mark.parametrize(
    "grow", [grown, trimmed, answered_often, nested, nested_deeply, nested_reopened]
)
def test_X3_writing_and_reading_take_linear_work(grow: Grow) -> None:
    for work in (pack, lambda tables: unpack(pack(tables))):
        small, large = (calls(lambda: work(state)) for state in (grow(120), grow(240)))  # noqa: B023
        assert large <= 2.2 * small


@pytest.mark.parametrize("grow", SHAPES)
def test_X3_every_snapshot_survives_being_written_down(grow: Grow) -> None:
    state = grow(30)
    for loaded in (unpack(pack(state)), codec.decode(codec.encode(state, WHOLE))[0]):
        assert loaded == state
        assert [t.window.messages() for t in loaded] == [t.window.messages() for t in state]
        assert pack(loaded).paths == pack(state).paths or grow is varied
        later = say(loaded, 2)
        assert unpack(pack(later)) == later


def test_X3_what_was_written_is_never_too_tangled_to_be_read() -> None:
    """Windows that reach further and further back, each on a path of its own."""
    state = say(SessionState(), 1000, SessionOptions(max_turns=0))
    for number in range(1, 500):
        _, state = replace_turn(state, state.stop - 2, {"answer": "new"}, id=f"b{number}")
        state = say(state, 1, SessionOptions(max_turns=2 * number))
    loaded = unpack(pack(state))
    assert [len(turn.window) for turn in loaded] == [len(turn.window) for turn in state]
    assert loaded.last == state.last
    assert entries(state) < 3 * 1500 + 2 * 499 + sum(len(turn.window) for turn in state) / 64


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
    for max_turns in (1, 2, None):
        options = SessionOptions(max_turns=max_turns)
        state = replace_turn(say(state, 5, options), state.stop, {}, id="edited")[1]
        _, state = record(state, exchange, visible_window(state, options), Run(id="three"))
        state = unpack(pack(say(state, 1, options)))
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
