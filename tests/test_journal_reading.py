"""Reading stored conversations bit by bit, from stores that fail, lose answers, or hold damage."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState, start
from dspy_session.core.transitions import annotate, redo, replace_turn, rewind, truncate, undo
from dspy_session.core.turn import Turn
from dspy_session.core.writes import describe
from dspy_session.errors import (
    ConflictError,
    FormatError,
    SessionExistsError,
    SessionNotFoundError,
    StoreError,
)
from dspy_session.journal.archive import Archive, Held
from dspy_session.journal.checking import verify
from dspy_session.stores import MemoryStore, SQLStore
from dspy_session.stores.records import Node
from tests.journals import WatchedStore, chain_of, said, talk


def conversation(turns: int = 20) -> tuple[WatchedStore, Archive, Held]:
    store = WatchedStore()
    archive = Archive(store)
    return store, archive, talk(archive, archive.create("chat", start(id="chat")), turns)


# --- lazily ---------------------------------------------------------------------------------------


def test_C13_nothing_older_is_read_until_somebody_looks() -> None:
    store, archive, held = conversation()
    loaded = archive.load("chat", 5)
    counts = store.since(
        lambda: (
            len(loaded.state),
            loaded.state.last,
            loaded.state.data,
            loaded.state.turn(15).inputs,
            loaded.state.turn(19).window,
            undo(loaded.state, 4),
            loaded.state.metadata,
        )
    )
    assert not counts
    assert store.since(lambda: loaded.state.turn(14))["read"] == 15
    assert not store.since(lambda: (loaded.state.turns, loaded.state.turn(0).history_snapshot))
    assert loaded.state == held.state


def test_C13_a_long_conversation_is_read_in_pieces_of_bounded_size() -> None:
    class Measured(WatchedStore):
        largest = 0

        def walk(self, family: int, key: int, floor: int) -> list[Node]:
            nodes = super().walk(family, key, floor)
            self.largest = max(self.largest, len(nodes))
            return nodes

    state = start(id="chat")
    for number in range(1_203):
        state = said(state, f"Q{number}", options=SessionOptions(max_turns=1))
    store = Measured()
    Archive(store).create("chat", state)
    counts = store.since(lambda: Archive(store).load("chat"))
    assert (counts["read"], counts["walk"], store.largest) == (1_203, 3, 500)
    assert Archive(store).load("chat").state == state
    assert Archive(store).load("chat", 2).state.turns == state.turns
    assert Archive(store).turns("chat", 100, 1_100) == state.turns[100:1_100]


@pytest.mark.parametrize("at", range(7))
def test_C13_a_chain_that_is_broken_is_found_within_and_between_pieces(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(WatchedStore):
        def walk(self, family: int, key: int, floor: int) -> list[Node]:
            return [
                msgspec.structs.replace(node, **changed) if node.depth == at else node
                for node in self.inner.walk(family, key, floor)
            ]

    monkeypatch.setattr("dspy_session.journal.steps._PIECE", 3)
    changed: dict[str, int] = {}
    store = Broken()
    state = talk(Archive(store), Archive(store).create("chat", start(id="chat")), 8).state
    assert Archive(store).load("chat").state == state
    changed["key"] = 7
    with pytest.raises(FormatError, match=f"turn {at + 1}: .* not follow"):
        Archive(store).load("chat")
    changed.clear()
    assert Archive(store).load("chat").state == state


def test_C13_a_snapshot_is_read_when_somebody_looks_and_is_what_the_turn_saw() -> None:
    _, archive, held = conversation()
    snapshot = archive.load("chat", 5).state.turn(17).history_snapshot
    assert snapshot.messages == held.state.turn(17).history_snapshot.messages
    assert len(snapshot.messages) == 17


def test_C13_a_replaced_turn_is_read_only_for_those_who_saw_it() -> None:
    store, archive, held = conversation(6)
    held = archive.write(held, replace_turn(held.state, 2, {"answer": "B"}, id="b")[1])
    loaded = archive.load("chat").state
    assert loaded.turn(2).outputs == {"answer": "B"}
    assert not store.since(lambda: loaded.turn(5).window)
    assert store.since(lambda: loaded.turn(5).history_snapshot)["read"] > 0
    saw = [message["answer"] for message in loaded.turn(5).history_snapshot.messages]
    assert saw[2] == held.state.turn(5).history_snapshot.messages[2]["answer"] != "B"
    assert loaded == held.state


def test_C13_threads_that_look_at_once_read_once_and_see_the_same() -> None:
    store, archive, _ = conversation(50)
    loaded = archive.load("chat", 3).state
    seen: list[tuple[Turn, ...]] = []
    ready = threading.Barrier(8)

    def look() -> None:
        ready.wait()
        seen.append(loaded.turns)

    threads = [threading.Thread(target=look) for _ in range(8)]
    before = store.counts["read"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.counts["read"] - before == 47
    assert all(mine is first for turns in seen for mine, first in zip(turns, seen[0], strict=True))


def test_C13_a_store_that_fails_while_something_older_is_read_can_be_asked_again() -> None:
    store, archive, held = conversation()
    loaded = archive.load("chat", 2).state
    store.failing = {"walk"}
    with pytest.raises(StoreError, match="cannot be reached"):
        loaded.turn(3)
    assert loaded.turn(19).inputs == held.state.turn(19).inputs
    store.failing = set()
    assert loaded.turn(3) == held.state.turn(3)
    assert loaded == held.state


def test_C13_what_was_deleted_while_a_session_was_open_is_a_store_error() -> None:
    _, archive, held = conversation()
    loaded = archive.load("chat", 2)
    assert archive.delete("chat")
    with pytest.raises(StoreError, match=r"turns 0 to 17 .* not in the store any more"):
        loaded.state.turn(3)
    assert loaded.state.turn(19).inputs == held.state.turn(19).inputs
    with pytest.raises(ConflictError):
        archive.write(loaded, said(loaded.state))
    with pytest.raises(SessionNotFoundError):
        archive.load("chat")


def test_X5_what_goes_on_behind_a_lazy_state_does_not_change_it() -> None:
    _, archive, held = conversation()
    loaded = archive.load("chat", 2)
    newer = talk(archive, held, 3)
    archive.write(newer, replace_turn(newer.state, 1, {"answer": "B"}, id="b")[1])
    assert loaded.state == held.state


# --- damage ---------------------------------------------------------------------------------------


def damage(store: WatchedStore, id: str, index: int) -> None:
    """Change one byte of a turn's payload."""
    node = chain_of(store, id)[index]
    payload = bytearray(node.payload)
    payload[len(payload) // 2] ^= 1
    store.replace_payloads(node.family, {node.key: bytes(payload)})


def test_a_damaged_turn_is_named_and_all_others_can_be_read() -> None:
    store, archive, held = conversation()
    damage(store, "chat", 7)
    loaded = archive.load("chat", 5)
    assert [turn.inputs for turn in undo(loaded.state, 5)[0]] == [
        turn.inputs for turn in undo(held.state, 5)[0]
    ]
    with pytest.raises(FormatError, match=r"Cannot read turn 7: .*checksum"):
        loaded.state.turn(3)
    with pytest.raises(FormatError, match="Cannot read turn 7: "):
        archive.load("chat")
    with pytest.raises(FormatError, match="Cannot read turn 7: "):
        archive.turns("chat", 7, 8)
    before = [turn.inputs for turn in held.state.turns]
    assert [turn.inputs for turn in archive.turns("chat", 0, 7)] == before[:7]
    assert [turn.inputs for turn in archive.turns("chat", 8)] == before[8:]


def test_a_fork_before_a_damaged_turn_can_be_read() -> None:
    store, archive, held = conversation()
    damage(store, "chat", 7)
    loaded = archive.load("chat", 5)
    fork = archive.fork(loaded, "branch", rewind(loaded.state, 7, redoable=False))
    assert len(fork.state) == 7
    assert archive.load("branch").state.turns == held.state.turns[:7]
    assert verify(archive, "branch").ok
    assert not verify(archive, "chat").ok


@pytest.mark.parametrize("newest", [None, 1])
def test_a_fork_before_the_newest_turn_which_is_damaged(newest: int | None) -> None:
    store, archive, held = conversation()
    damage(store, "chat", 19)
    damage(store, "chat", 12)
    for at in (12, 5, 0):
        source = archive.read(archive.ref("chat"), newest, until=at)
        fork = archive.fork(source, f"before-{at}", newest=newest)
        assert fork.state.turns == held.state.turns[:at]
        assert verify(archive, f"before-{at}").ok
        assert archive.turns(f"before-{at}") == held.state.turns[:at]
    for at in (20, 13):
        with pytest.raises(FormatError, match=r"Cannot read turn 1[29]: "):
            archive.read(archive.ref("chat"), newest, until=at)
    assert archive.find("before-13") is None


def test_a_fork_that_would_end_with_a_damaged_turn_is_not_made() -> None:
    store, archive, _ = conversation()
    damage(store, "chat", 7)
    loaded = archive.load("chat", 5)
    with pytest.raises(FormatError, match="Cannot read turn 7: "):
        archive.fork(loaded, "branch", rewind(loaded.state, 8, redoable=False), newest=1)
    assert archive.find("branch") is None
    assert archive.load("chat", 5).ref == loaded.ref


def test_a_session_with_a_damaged_turn_goes_on() -> None:
    store, archive, _ = conversation()
    damage(store, "chat", 7)
    loaded = archive.load("chat", 5)
    after = archive.write(loaded, said(loaded.state, "And then?"))
    assert [turn.inputs for turn in archive.turns("chat", -1)] == [{"question": "And then?"}]
    assert verify(archive, "chat").damaged[0].turn == 7
    assert len(after.state) == 21


# --- answers that get lost ------------------------------------------------------------------------


def test_a_write_whose_answer_was_lost_is_acknowledged() -> None:
    store, archive, held = conversation(3)
    store.failing = {"put, written"}
    after = archive.write(held, said(held.state, "Lost?"))
    store.failing = set()
    again = archive.write(after, said(after.state, "No."))
    assert [turn.inputs["question"] for turn in archive.turns("chat", 3)] == ["Lost?", "No."]
    assert archive.load("chat").state == again.state
    assert verify(archive, "chat").ok


@pytest.mark.parametrize("failing", [{"put"}, {"put", "ref"}])
def test_a_write_that_did_not_come_through_is_not_acknowledged_and_can_be_retried(
    failing: set[str],
) -> None:
    store, archive, held = conversation(3)
    state = said(held.state, "Again?")
    store.failing = failing
    with pytest.raises(StoreError, match="cannot be reached"):
        archive.write(held, state)
    store.failing = set()
    assert archive.load("chat").state == held.state
    assert archive.write(held, state).state == archive.load("chat").state == state
    assert len(chain_of(store, "chat")) == 4


def test_a_write_that_came_through_unknown_to_its_writer_is_a_conflict_not_a_second_turn() -> None:
    store, archive, held = conversation(3)
    state = said(held.state, "Once.")
    store.failing = {"put, written", "ref"}
    with pytest.raises(StoreError, match="connection was lost"):
        archive.write(held, state)
    store.failing = set()
    with pytest.raises(ConflictError):
        archive.write(held, state)
    assert archive.load("chat").state == state


def test_create_whose_answer_was_lost_is_acknowledged() -> None:
    store = WatchedStore()
    archive = Archive(store)
    store.failing = {"put, written"}
    held = archive.create("chat", said(start()))
    store.failing = set()
    assert archive.load("chat").state == held.state
    with pytest.raises(SessionExistsError):
        archive.create("chat", start())
    assert archive.load("chat").state == held.state


# --- what was built on is gone --------------------------------------------------------------------


def test_what_was_built_on_and_vacuumed_meanwhile_is_written_anew(tmp_path: Any) -> None:
    with (
        SQLStore(f"sqlite:///{tmp_path}/chats.db") as mine,
        SQLStore(f"sqlite:///{tmp_path}/chats.db") as theirs,
    ):
        archive = Archive(mine)
        held = talk(archive, archive.create("chat", start(id="chat")), 6)
        full = held.state
        held = archive.write(held, undo(held.state, 3)[1])
        held = archive.write(held, said(held.state, "Other"))  # the three are left behind
        assert theirs.vacuum() == 3
        after = archive.write(held, full)  # and come back: a state that somebody kept
        assert archive.load("chat").state == after.state == full
        assert verify(Archive(theirs), "chat").ok
        assert theirs.vacuum() == 1


def test_a_vacuum_right_before_a_write_leaves_nothing_dangling() -> None:
    store, archive, held = conversation(6)
    full = held.state
    held = archive.write(held, undo(held.state, 3)[1])
    held = archive.write(held, said(held.state, "Other"))
    store.before_put = store.inner.vacuum
    after = archive.write(held, full)
    assert store.before_put is None
    assert archive.load("chat").state == after.state == full
    assert verify(archive, "chat").ok
    after = archive.write(after, said(after.state))
    assert verify(archive, "chat").ok


def test_what_a_late_turn_saw_and_was_vacuumed_meanwhile_is_written_anew() -> None:
    store, archive, held = conversation(6)
    seen = held.state
    held = archive.write(held, rewind(held.state, 3, redoable=False))
    held = archive.write(held, said(held.state, "Other"))
    assert store.vacuum() == 3
    after = archive.write(held, said(held.state, "Late", seen=seen))  # its call began before
    assert archive.load("chat").state == after.state
    assert len(archive.load("chat").state.turn(4).history_snapshot.messages) == 6
    assert verify(archive, "chat").ok


def test_a_fork_of_what_was_deleted_right_before_is_a_conflict() -> None:
    store, archive, held = conversation(6)
    store.before_put = lambda: archive.delete("chat")
    with pytest.raises(ConflictError):
        archive.fork(held, "branch")
    with pytest.raises(SessionNotFoundError):
        archive.load("branch")
    assert store.totals().nodes == 0


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda state: said(state), id="turn"),
        pytest.param(lambda state: describe(state, {"title": "Oslo"}), id="metadata"),
        pytest.param(lambda state: redo(state, 1)[1], id="redo"),
    ],
)
def test_a_state_that_was_read_lazily_can_be_written_under_another_id(
    change: Callable[[SessionState], SessionState],
) -> None:
    store, archive, held = conversation(6)
    archive.write(held, undo(held.state, 1)[1])
    state = change(archive.load("chat", 1).state)
    other = Archive(WatchedStore())
    for place, id in ((archive, "copy"), (other, "chat")):
        place.create(id, state)
        assert place.load(id).state.turns == state.turns
        assert verify(place, id).ok
    assert store.since(lambda: archive.delete("chat"))
    assert archive.load("copy").state.turns == state.turns


def test_scores_after_a_correction_do_not_write_what_was_seen_once_more() -> None:
    store, archive, held = conversation(0)
    held = talk(archive, held, 20, size=2_000)
    held = archive.write(held, replace_turn(held.state, 5, {"answer": "B"}, id="b")[1])
    loaded = archive.load("chat")
    state = annotate(loaded.state, {2: (0.5, None)})
    counts = store.since(lambda: archive.write(loaded, state))
    assert (counts["written"], counts["read"]) == (18, 0)
    assert counts["bytes"] < 18 * 200
    assert archive.load("chat").state == state
    assert verify(archive, "chat").ok


def test_what_turns_saw_is_read_as_the_very_same_exchanges() -> None:
    _, archive, held = conversation(20)
    held = archive.write(held, replace_turn(held.state, 5, {"answer": "B"}, id="b")[1])
    state = archive.load("chat").state
    seen = {id(exchange) for turn in state for exchange in turn.window}
    assert len(seen) == 19  # of turns 0 to 18, turn 5 as it was
    assert state == held.state


@pytest.mark.parametrize("turns", [20, 200])
def test_what_turns_saw_before_a_correction_is_read_once(turns: int) -> None:
    store, archive, held = conversation(turns)
    held = archive.write(held, replace_turn(held.state, 0, {"answer": "B"}, id="b")[1])
    state = archive.load("chat").state
    counts = store.since(lambda: [turn.history_snapshot for turn in state])
    assert counts["read"] == turns - 1  # turn 0 as it was, and those after it on that path
    assert state == held.state


# --- what other things share ----------------------------------------------------------------------


def test_C13_a_session_within_the_program_is_written_without_a_look_at_older_turns() -> None:
    store, archive, _ = conversation()
    held, inner = archive.load("chat", 2), start(id="inner")
    for _ in range(3):
        inner = truncate(said(said(inner)), 1)
        new = said(held.state, nested={"inner": inner})
        assert not store.since(lambda: archive.write(held, new))["read"]  # noqa: B023  # called here
        held = archive.load("chat", 2)
    assert archive.load("chat").state == held.state


def test_C13_a_turn_that_paths_share_is_one_turn_however_it_was_read() -> None:
    _, archive, mine = conversation(3)
    other = archive.load("chat", 1)
    other = archive.write(other, said(other.state, at=1))
    for held in (other, archive.load("chat"), archive.load("chat", 1), archive.refresh(mine)):
        scored = annotate(held.state, {0: (0.5, None)})
        assert [turn.score for turn in scored.ahead[0].held] == [0.5, None, None]
        assert redo(scored, 5)[1].turns[0].score == 0.5
    fresh = archive.load("chat")
    archive.write(fresh, describe(fresh.state, {"topic": "fjords"}))
    again = archive.refresh(other).state
    assert again.ahead[0].held[0] is again.turns[0] is other.state.turns[0]


def test_C4_a_fork_of_what_is_gone_but_for_its_ends_is_refused() -> None:
    archive = Archive(MemoryStore())
    held = archive.create("chat", start(id="chat"))
    held = talk(archive, held, 10, options=SessionOptions(max_turns=1))
    archive.fork(held, "early", rewind(held.state, 2, redoable=False))
    archive.write(held, truncate(held.state, 2))
    assert archive.store.vacuum()  # the fork has the oldest turns, and the session the newest
    with pytest.raises(ConflictError):
        archive.fork(held, "late")
    assert archive.store.ref("late") is None


def test_C4_what_was_trimmed_and_is_gone_is_written_anew() -> None:
    archive = Archive(MemoryStore())
    held = archive.create("chat", start(id="chat"))
    held = talk(archive, held, 10, options=SessionOptions(max_turns=1))
    whole = held.state
    archive.fork(held, "early", rewind(whole, 2, redoable=False))
    held = archive.write(held, truncate(whole, 2))
    held = archive.write(held, said(held.state))
    assert archive.store.vacuum()
    held = archive.write(held, said(held.state, seen=whole))  # it began before they were trimmed
    assert len(archive.load("chat").state.turns[-1].history_snapshot.messages) == 10
    assert verify(archive, "chat").ok
    archive.write(held, whole)
    assert archive.load("chat").state == whole
    assert verify(archive, "chat").ok
