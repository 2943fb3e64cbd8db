"""What writing and reading a stored conversation costs: counted in rows, at any length."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from dspy_session.core.data import Data
from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState, start
from dspy_session.core.transitions import annotate, redo, replace_turn, rewind, summarized, undo
from dspy_session.core.writes import write
from dspy_session.journal.archive import Archive, Held
from dspy_session.journal.checking import verify
from dspy_session.stores import SQLStore
from tests.journals import WatchedStore, chain_of, said, talk

LENGTHS = (10, 1_000)


def stored(turns: int, **keywords: object) -> tuple[WatchedStore, Archive, Held]:
    """A conversation of that length, written in one piece."""
    store = WatchedStore()
    archive = Archive(store)
    state = start(id="chat")
    for number in range(turns):
        state = said(state, f"Q{number}", f"A{number}", **keywords)  # type: ignore[arg-type]
    return store, archive, archive.create("chat", state)


def opened(turns: int, newest: int | None, **keywords: object) -> tuple[WatchedStore, Held]:
    """The same, opened anew by somebody else."""
    store, archive, _ = stored(turns, **keywords)
    return store, archive.load("chat", newest)


def writes(counts: Counter[str]) -> tuple[int, int, int]:
    """Nodes written, refs written, nodes read."""
    return counts["written"], counts["put"], counts["read"]


@pytest.mark.parametrize("turns", LENGTHS)
@pytest.mark.parametrize("newest", [None, 5, 0])
def test_X1_a_turn_writes_one_node_and_the_ref(turns: int, newest: int | None) -> None:
    store, held = opened(turns, newest)
    counts = store.since(lambda: Archive(store).write(held, said(held.state)))
    assert writes(counts) == (1, 1, 0)
    assert set(counts) == {"put", "written", "bytes", "body"}


MOVES: dict[str, Callable[[SessionState], SessionState]] = {
    "undo": lambda state: undo(state, 3)[1],
    "redo": lambda state: redo(undo(state, 3)[1], 2)[1],
    "rewind": lambda state: rewind(state, state.stop - 4),
    "fork": lambda state: state,
}


@pytest.mark.parametrize("turns", LENGTHS)
@pytest.mark.parametrize("move", MOVES)
def test_X1_moves_write_the_ref_alone(turns: int, move: str) -> None:
    store, held = opened(turns, 5)
    archive, state = Archive(store), MOVES[move](held.state)
    if move == "fork":
        counts = store.since(lambda: archive.fork(held, "branch"))
    else:
        counts = store.since(lambda: archive.write(held, state))
    assert writes(counts) == (0, 1, 0)
    assert counts["body"] < 100
    assert archive.load("branch" if move == "fork" else "chat").state.turns == state.turns


@pytest.mark.parametrize("turns", LENGTHS)
def test_X1_the_body_of_a_ref_has_the_same_size_at_any_length(turns: int) -> None:
    _, held = opened(turns, 5)
    assert len(held.ref.body) < 100


@pytest.mark.parametrize("turns", LENGTHS)
def test_C4_the_last_ten_turns_read_ten_nodes(turns: int) -> None:
    store, archive, _ = stored(turns)
    counts = store.since(lambda: archive.turns("chat", -10))
    assert writes(counts) == (0, 0, 10)
    assert [turn.index for turn in archive.turns("chat", -10)] == list(range(turns - 10, turns))
    ref = store.ref("chat")
    assert ref is not None
    assert store.since(lambda: archive.turns_of(ref, -1))["read"] == 1
    assert store.since(lambda: archive.turns_of(ref, 3, 3))["read"] == 0


@pytest.mark.parametrize("turns", LENGTHS)
def test_C13_opening_reads_what_the_window_shows(turns: int) -> None:
    store, archive, _ = stored(turns)
    counts = store.since(lambda: archive.load("chat", 5))
    assert (counts["read"], counts["walk"], counts["nodes"]) == (5, 1, 0)
    assert store.since(lambda: archive.load("chat", 0))["read"] == 1
    assert store.since(lambda: archive.load("chat"))["read"] == turns


@pytest.mark.parametrize("turns", LENGTHS)
def test_C13_session_data_needs_at_most_64_turns_more(turns: int) -> None:
    large = {"cart": "x" * 300}
    store, archive, held = stored(turns, data=lambda data: data.changed({**large, "n": len(data)}))
    counts = store.since(lambda: archive.load("chat", 5))
    assert 5 <= counts["read"] <= 5 + 64
    assert archive.load("chat", 5).state.data == held.state.data
    assert store.since(lambda: archive.turns("chat", -5, -4))["read"] <= 5 + 64


def nested_session(archive: Archive, turns: int) -> Held:
    """A session that has a session within its program, with a turn for each of its own."""
    held, inner = archive.create("chat", start(id="chat")), start(id="inner")
    for _ in range(turns):
        inner = said(inner)
        held = archive.write(held, said(held.state, nested={"inner": inner}))
    return held


@pytest.mark.parametrize("turns", [10, 100])
@pytest.mark.parametrize("newest", [None, 3, 0])
def test_X1_sessions_within_the_program_cost_a_turn_each(turns: int, newest: int | None) -> None:
    store = WatchedStore()
    archive = Archive(store)
    nested_session(archive, turns)
    held = archive.load("chat", newest)
    for _ in range(3):
        inner = said(held.state.nested["inner"])
        after = said(held.state, nested={"inner": inner})
        there = held

        def write_it(there: Held = there, after: SessionState = after) -> None:
            nonlocal held
            held = archive.write(there, after)

        counts = store.since(write_it)
        assert (counts["written"], counts["put"]) == (2, 1)
        assert counts["bytes"] < 1_000
    assert archive.load("chat").state == held.state


@pytest.mark.parametrize("turns", LENGTHS)
def test_D10_the_score_of_the_last_turn_writes_a_small_node(turns: int) -> None:
    store = WatchedStore()
    archive = Archive(store)
    talk(archive, archive.create("chat", start(id="chat")), 1, size=10_000)
    held = talk(archive, archive.load("chat"), turns - 1)
    held = talk(archive, held, 1, size=20_000)
    counts = store.since(
        lambda: archive.write(held, annotate(held.state, {turns: (1.0, "Well done.")}))
    )
    assert writes(counts) == (1, 1, 0)
    assert counts["bytes"] < 200
    assert archive.load("chat", 1).state.turn(turns).feedback == "Well done."


@pytest.mark.parametrize("newest", [None, 3])
def test_D10_scoring_every_turn_writes_no_field_again(newest: int | None) -> None:
    store = WatchedStore()
    archive = Archive(store)
    talk(archive, archive.create("chat", start(id="chat")), 30, size=1_000)
    for score in (0.5, 1.0):
        held = archive.load("chat", newest)
        state = annotate(held.state, {turn.index: (score, None) for turn in held.state})
        counts = store.since(partial(archive.write, held, state))
        assert writes(counts) == (30, 1, 0)
        assert counts["bytes"] < 30 * 200
        assert archive.load("chat").state == state


def test_D14_replacing_a_turn_writes_it_and_those_after_it_without_their_fields() -> None:
    store = WatchedStore()
    archive = Archive(store)
    held = talk(archive, archive.create("chat", start(id="chat")), 20, size=3_000)
    _, state = replace_turn(held.state, 12, {"answer": "B"}, id="corrected")
    counts = store.since(lambda: archive.write(held, state))
    assert writes(counts) == (8, 1, 0)  # turns 12 to 19; the inputs of 12 are as long as they are
    nodes = chain_of(store, "chat")
    assert max(len(node.payload) for node in nodes[13:]) < 200 < 1_000 < len(nodes[3].payload)
    assert archive.load("chat").state == state
    scored = archive.load("chat")
    state = annotate(scored.state, {3: (0.5, None)})
    assert store.since(lambda: archive.write(scored, state))["bytes"] < 17 * 200


def written(changes: dict[str, object]) -> Callable[[Data], Data]:
    return lambda data: data.changed(changes)


def bytes_of(turns: int, change: Callable[[int], dict[str, object]], size: int) -> int:
    """The payload bytes of a session whose data changes with each turn."""
    store = WatchedStore()
    archive = Archive(store)
    held = archive.create("chat", start(id="chat"))
    for number in range(turns):
        held = archive.write(held, said(held.state, data=written(change(number))))
    assert archive.load("chat", 1).state.data == held.state.data
    assert held.state.data.size > size
    return store.totals().bytes


def note(number: int) -> dict[str, object]:
    """One of fifty notes, each time another text, which cannot be compressed much."""
    text = "".join(hashlib.sha256(f"{number}.{part}".encode()).hexdigest() for part in range(4))
    return {f"note {number % 50}": text}


def test_X1_session_data_that_every_turn_writes_takes_linear_space() -> None:
    one, other = bytes_of(200, note, 10_000), bytes_of(400, note, 10_000)
    assert other - one < 1.2 * one
    assert (other - one) / 200 < 256 + 150 + 13_000 / 64 + 50  # the change, the turn, a 64th of all


def test_X1_session_data_that_stays_takes_no_space_in_each_turn() -> None:
    store = WatchedStore()
    archive = Archive(store)
    held = archive.create("chat", write(start(id="chat"), {"manual": "x" * 50_000}))
    held = talk(archive, held, 64)
    assert store.counts["bytes"] + held.ref.size < 3 * 50_000 + 64 * 300


def test_X1_trimming_keeps_no_more_than_the_stored_turns() -> None:
    options = SessionOptions(max_stored_turns=10)
    store = WatchedStore()
    archive = Archive(store)
    held = talk(archive, archive.create("chat", start(id="chat")), 30, options=options)
    store.vacuum()
    steady = store.totals()
    for _ in range(3):
        before = Counter(store.counts)
        held = talk(archive, held, 20, options=options)
        assert store.counts["written"] - before["written"] == 20
        assert store.counts["read"] == before["read"]
        store.vacuum()
        now = store.totals()
        assert now.nodes == steady.nodes <= 2 * 10
        assert now.bytes <= steady.bytes + 20 * 5  # numbers become longer
        assert held.ref.size <= steady.bytes + 20 * 5
    assert archive.load("chat").state == held.state


def test_X1_a_turn_of_800_characters_takes_little_more() -> None:
    store = WatchedStore()
    archive = Archive(store)
    held = talk(archive, archive.create("chat", start(id="chat")), 100, size=800)
    assert store.counts["bytes"] / 100 <= 1_000
    assert held.ref.size <= 100_000


def test_X1_a_read_is_one_statement_on_sql(tmp_path: object) -> None:
    with WatchedStore(SQLStore(f"sqlite:///{tmp_path}/chats.db")) as store:
        archive = Archive(store)
        held = talk(archive, archive.create("chat", start(id="chat")), 30)
        counts = store.since(lambda: archive.load("chat", 5))
        assert counts == {"ref": 1, "walk": 1, "read": 5}
        counts = store.since(lambda: archive.refresh(held))
        assert counts == {"ref": 1}


@pytest.mark.parametrize("newest", [None, 1])
def test_C11_any_number_of_other_answers_and_summaries_are_stored_once(newest: int | None) -> None:
    store = WatchedStore()
    archive = Archive(store)
    held = talk(archive, archive.create("chat", start(id="chat")), 3)
    for number in range(40):
        seed = start([{"question": "so far", "answer": f"summary {number}"}]).seed
        held = archive.write(held, summarized(held.state, seed, 1))
        held = archive.write(held, said(held.state))
    for _ in range(40):
        held = archive.write(held, said(held.state, at=held.state.stop - 1))
    assert (len(held.state.earlier), len(held.state.ahead)) == (40, 40)
    nodes = store.totals().nodes
    assert nodes == 3 + 40 + 40 + 40  # turns, seeds, turns, other answers
    for _ in range(3):
        held = archive.write(held, undo(held.state, 1)[1])
        held = archive.write(held, redo(held.state, 1)[1])
        held = archive.refresh(archive.load("chat", newest))
    assert store.totals().nodes == nodes
    assert verify(archive, "chat").ok
