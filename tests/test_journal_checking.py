"""Checking stored conversations: what verify finds, and names, when anything was changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from dspy_session.core.data import Data
from dspy_session.core.options import HistoryPolicy, SessionOptions
from dspy_session.core.state import SessionState, start
from dspy_session.core.step import commit, prepare
from dspy_session.core.transitions import annotate, replace_turn, summarized, truncate, undo
from dspy_session.core.turn import Run
from dspy_session.core.writes import write, write_pending
from dspy_session.errors import SecretError, SessionNotFoundError, StoreError
from dspy_session.journal.archive import Archive, Held
from dspy_session.journal.checking import Damage, verify
from dspy_session.journal.digests import digests, shared_turns
from dspy_session.journal.payloads import StoredTurn, about_node, closed, opened
from dspy_session.journal.sealing import Seal, new_secret
from dspy_session.stores import MemoryStore
from dspy_session.stores.records import Node
from tests.journals import WatchedStore, chain_of, said, talk


class Shelf(MemoryStore):
    """A store whose rows somebody can change behind its back."""

    def change(self, key: int, **fields: Any) -> None:
        table = self.table(key)
        table[key] = msgspec.structs.replace(table[key], **fields)

    def remove(self, key: int) -> None:
        del self.table(key)[key]

    def table(self, key: int) -> dict[int, Node]:
        assert self._tables is not None
        families = (self._tables.nodes_of(ref.family) for ref in self._tables._refs.values())
        return next(nodes for nodes in families if key in nodes)

    def change_ref(self, id: str, **fields: Any) -> None:
        ref = self.ref(id)
        assert ref is not None
        assert self._tables is not None
        self._tables.set(msgspec.structs.replace(ref, **fields))


def conversation(turns: int = 12, **keywords: Any) -> tuple[Shelf, Archive, Held]:
    store = Shelf()
    archive = Archive(store, **keywords)
    return store, archive, talk(archive, archive.create("chat", start(id="chat")), turns)


def rewritten(archive: Archive, node: Node, change: Callable[[StoredTurn], object]) -> bytes:
    """A turn's payload with something else in it, and a checksum that fits."""
    row = opened(StoredTurn, node.payload, archive.seal, about_node(node.key))
    change(row)
    return closed(row, archive.seal, about_node(node.key))


# --- what is found --------------------------------------------------------------------------------


def test_X4_a_session_that_is_as_it_was_written_verifies() -> None:
    _, archive, _ = conversation()
    found = verify(archive, "chat")
    assert (found.ok, found.turns, found.first_bad, found.damaged) == (True, 12, None, ())
    assert str(found) == "Session 'chat': 12 turns checked, nothing damaged."
    with pytest.raises(SessionNotFoundError):
        verify(archive, "another")


TAMPERED: dict[str, tuple[Callable[[StoredTurn], object], str]] = {
    "input": (lambda row: row.inputs.update(question="B"), "its content"),  # type: ignore[union-attr]
    "output": (lambda row: setattr(row, "outputs", {"answer": "B"}), "its content"),
    "a detail": (lambda row: setattr(row, "details", {"steps": []}), "its content"),
    "no fields": (lambda row: setattr(row, "outputs", None), "its fields are not there"),
    "saw later": (lambda row: setattr(row, "unseen", -2), "which came later"),
    "saw before": (lambda row: setattr(row, "start", -1), "it saw the turns from -1"),
    "erased": (lambda row: setattr(row, "erased", b"x" * 32), "its content"),
}


@pytest.mark.parametrize("case", TAMPERED)
@pytest.mark.parametrize("index", [0, 5, 11])
def test_X4_a_turn_that_was_changed_is_named_and_no_other(case: str, index: int) -> None:
    store, archive, _ = conversation()
    change, what = TAMPERED[case]
    node = chain_of(store, "chat")[index]
    store.change(node.key, payload=rewritten(archive, node, change))
    found = verify(archive, "chat")
    assert not found.ok
    assert {bad.turn for bad in found.damaged} == {index} == {found.first_bad}
    assert what in found.damaged[0].what
    assert f"\n- turn {index}: " in str(found)
    assert found.turns == 12


COLUMNS: dict[str, tuple[dict[str, Any], str]] = {
    "payload": ({"payload": b"\x10nonsense"}, "checksum"),
    "cut off": ({"payload": b""}, "cut off"),
    "depth": ({"depth": 77}, "its row says that it is turn 77"),
    "low": ({"low": 6}, "what it saw is not kept"),
    "base": ({"base": 3}, "what stood beside it is not told where"),
    "total": ({"total": 1}, "its size is wrong"),
    "label": ({"label": "another"}, "it answers the request None, not 'another'"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_X4_a_row_that_was_changed_is_named_and_no_other(case: str) -> None:
    store, archive, _ = conversation()
    fields, what = COLUMNS[case]
    store.change(chain_of(store, "chat")[6].key, **fields)
    found = verify(archive, "chat")
    assert found.first_bad == 6
    assert [bad.turn for bad in found.damaged] == [6]
    assert what in found.damaged[0].what


def test_X4_a_digest_that_was_changed_is_named_with_the_turn_that_is_chained_on_it() -> None:
    store, archive, _ = conversation()
    store.change(chain_of(store, "chat")[6].key, digest=b"x" * 32)
    found = verify(archive, "chat")
    assert [bad.turn for bad in found.damaged] == [6, 7]


def test_X4_all_bad_turns_are_found_in_their_order() -> None:
    store, archive, _ = conversation(700)
    nodes = chain_of(store, "chat")
    for index in (650, 3, 300, 256, 444):
        store.change(nodes[index].key, payload=b"\x10....")
    found = verify(archive, "chat")
    assert [bad.turn for bad in found.damaged] == [3, 256, 300, 444, 650]
    assert found.first_bad == 3
    assert found.turns == 700


@pytest.mark.parametrize("index", [0, 5, 10, 11])
def test_X4_a_turn_that_is_gone_is_named(index: int) -> None:
    store, archive, _ = conversation()
    store.remove(chain_of(store, "chat")[index].key)
    found = verify(archive, "chat")
    assert max(bad.turn for bad in found.damaged if bad.turn is not None) == index
    assert "not in the store" in str(found)
    assert found.turns == 11 - index


def test_X4_two_turns_that_changed_places_are_named() -> None:
    store, archive, _ = conversation()
    nodes = chain_of(store, "chat")
    store.change(nodes[4].key, payload=nodes[5].payload)
    store.change(nodes[5].key, payload=nodes[4].payload)
    assert [bad.turn for bad in verify(archive, "chat").damaged] == [4, 5]


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": 11},
        {"end": 13},
        {"first": 1},
        {"head": 1},
        {"size": 1},
        {"body": b"\x10...."},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_X4_a_ref_that_was_changed_is_found(fields: dict[str, Any]) -> None:
    store, archive, _ = conversation()
    store.change_ref("chat", **fields)
    found = verify(archive, "chat")
    assert any(bad.turn is None for bad in found.damaged), found


# --- all that a session needs ---------------------------------------------------------------------


def whole_conversation() -> tuple[Shelf, Archive, Held]:
    """One that has a bit of everything."""
    store = Shelf()
    archive = Archive(store)
    state = start([{"question": "seed", "answer": "seed"}], id="chat")
    held = archive.create("chat", write(state, {"cart": "x" * 300}))
    inner = start(id="inner")

    def moved(state: SessionState) -> None:
        nonlocal held
        held = archive.write(held, state)

    for number in range(4):
        inner = said(inner, f"inner {number}")
        moved(said(held.state, f"Q{number}", nested={"inner": inner}))
        moved(write(held.state, {f"note {number}": "y" * 200}))
    seed = start([{"question": "so far", "answer": "much"}]).seed
    moved(summarized(held.state, seed, 2))
    moved(said(held.state, "Q4", request="r4"))
    moved(said(held.state, "Q5"))
    moved(replace_turn(held.state, 4, {"answer": "B"}, id="b")[1])  # turn 5 saw it as it was
    moved(annotate(held.state, {3: (0.5, "Well.")}))
    moved(write_pending(held.state, ({"role": "user", "content": "Hm."},)))
    options = SessionOptions(history_policy=HistoryPolicy.USE_IF_PROVIDED)
    given = prepare(held.state, {"question": "Q6"}, options, [{"question": "G", "answer": "G"}])
    moved(commit(held.state, given, {"answer": "A5"}, Run(id="t5"), options)[1])
    moved(said(held.state, "Q7"))
    moved(said(held.state, "Q7", "B", at=7, nested={"inner": said(inner, "inner 4")}))
    moved(undo(held.state, 1)[1])
    assert len(held.state.ahead) == len(held.state.undone) == len(held.state.earlier) == 1
    return store, archive, held


def test_X4_everything_that_a_session_needs_is_looked_at() -> None:
    store, archive, held = whole_conversation()
    store.vacuum()
    assert verify(archive, "chat").ok
    nodes = dict(store.table(held.ref.tip or 0))
    assert len(nodes) > 12
    for key, node in nodes.items():
        payload = bytearray(node.payload)
        payload[-1] ^= 1
        store.change(key, payload=bytes(payload))
        assert not verify(archive, "chat").ok, node
        store.change(key, payload=node.payload)
    assert verify(archive, "chat").ok
    linking = [node for node in chain_of(store, "chat") if node.links]
    assert len(linking) > 3
    for node in linking:
        store.change(node.key, links=node.links[:-1])
        assert not verify(archive, "chat").ok, node
        store.change(node.key, links=node.links)
    assert verify(archive, "chat").ok


def test_X4_what_is_none_of_the_sessions_own_turns_has_no_index() -> None:
    store, archive, held = whole_conversation()
    nested = held.state.turn(3).nested["inner"]
    assert len(nested) == 4
    store.vacuum()
    (bad,) = (
        found.damaged
        for node in list(store.table(held.ref.tip or 0).values())
        if node.depth == 0 and not node.links and b"inner 0" in node.payload
        for found in [changed(store, archive, node)]
    )
    assert {each.turn for each in bad} == {None}
    assert "session 'inner' within the program, turn 0: " in bad[0].what


def changed(store: Shelf, archive: Archive, node: Node) -> Any:
    store.change(node.key, payload=b"\x10....")
    found = verify(archive, "chat")
    store.change(node.key, payload=node.payload)
    return found


def written(number: int) -> Callable[[Data], Data]:
    return lambda data: data.changed({"n": number})


def test_X4_where_the_session_data_of_a_turn_is_told_by_a_damaged_one_that_is_said() -> None:
    store = Shelf()
    archive = Archive(store)
    held = archive.create("chat", write(start(id="chat"), {"cart": "x" * 300}))
    for number in range(70):
        held = archive.write(held, said(held.state, data=written(number)))
    nodes = chain_of(store, "chat")
    whole = [node.depth for node in nodes if node.base == node.depth]
    assert whole == [0, 64]
    store.change(nodes[60].key, payload=b"\x10....")
    damaged = verify(archive, "chat").damaged
    assert [bad.turn for bad in damaged] == [60, 61, 62, 63]
    assert all("told by a turn that is damaged" in bad.what for bad in damaged[1:])


def test_X4_session_data_that_was_changed_is_found() -> None:
    store, archive, held = conversation(3)
    held = archive.write(held, said(held.state, data=lambda data: data.changed({"paid": False})))
    node = chain_of(store, "chat")[3]
    payload = rewritten(archive, node, lambda row: row.beside.data.update(paid=b"true"))  # type: ignore[union-attr]
    store.change(node.key, payload=payload)
    assert archive.load("chat").state.data == {"paid": True}
    assert verify(archive, "chat").first_bad == 3


def test_X4_a_trimmed_session_verifies_from_its_first_turn_on() -> None:
    store = Shelf()
    archive, options = Archive(store), SessionOptions(max_stored_turns=5)
    held = archive.create("chat", write(start(id="chat"), {"cart": "x" * 300}))
    held = talk(archive, held, 20, options=options, data=lambda d: d.changed({"n": len(str(d))}))
    store.vacuum()
    found = verify(archive, "chat")
    assert (found.ok, found.turns) == (True, 5)
    store.change(chain_of(store, "chat")[2].key, payload=b"\x10....")
    assert verify(archive, "chat").first_bad == 17


def test_X4_verifying_reads_in_stretches() -> None:
    class Counted(WatchedStore):
        longest = 0

        def _read(self, nodes: Any) -> Any:
            self.longest = max(self.longest, len(nodes))
            return super()._read(nodes)

    store = Counted()
    archive = Archive(store)
    state = start(id="chat")
    for _ in range(1_000):
        state = said(state)
    archive.create("chat", state)
    counts = store.since(lambda: verify(archive, "chat"))
    assert store.longest <= 256
    assert counts["read"] <= 1_000 + 20


def test_X4_verifying_reads_what_many_states_share_once() -> None:
    store = WatchedStore()
    archive = Archive(store)
    held, inner = archive.create("chat", start(id="chat")), start(id="inner")
    for _ in range(60):
        inner = said(inner)
        held = archive.write(held, said(held.state, nested={"inner": inner}))
    counts = store.since(lambda: verify(archive, "chat"))
    assert counts["read"] <= 2 * 60 + 20


def test_X4_a_store_that_fails_is_no_damage() -> None:
    store = WatchedStore()
    archive = Archive(store)
    talk(archive, archive.create("chat", start(id="chat")), 3)
    for method in ("ref", "walk", "nodes"):
        store.failing = {method}
        with pytest.raises(StoreError, match="cannot be reached"):
            verify(archive, "chat")
    store.failing = set()
    assert verify(archive, "chat").ok


# --- keys -----------------------------------------------------------------------------------------


def test_X12_an_encrypted_session_verifies_with_its_keys_and_no_other() -> None:
    first, second = new_secret(), new_secret()
    store, _, held = conversation(3, seal=Seal(key=first))
    rotated = Archive(store, seal=Seal(key=second, old_keys=[first]))
    held = talk(rotated, rotated.load("chat"), 3)
    assert verify(rotated, "chat").ok
    assert digests(held.state, seal=rotated.seal) != tuple(
        node.digest.hex() for node in chain_of(store, "chat")
    )
    for wrong in (Seal(), Seal(key=second), Seal(key=new_secret())):
        with pytest.raises(SecretError):
            verify(Archive(store, seal=wrong), "chat")
    node = chain_of(store, "chat")[4]
    forged = closed(
        opened(StoredTurn, node.payload, rotated.seal, about_node(node.key)),
        Seal(),
        about_node(node.key),
    )
    store.change(node.key, payload=forged)
    with pytest.raises(SecretError, match="not encrypted"):
        verify(rotated, "chat")


# --- digests --------------------------------------------------------------------------------------


def test_X4_digests_in_memory_are_those_of_the_store() -> None:
    for seal in (Seal(), Seal(key=new_secret())):
        store = Shelf()
        archive = Archive(store, seal=seal)
        held = archive.create("chat", write(start(id="chat"), {"n": 1}))
        held = talk(archive, held, 5, data=lambda data: data.changed({"n": len(data)}))
        stored = tuple(node.digest.hex() for node in chain_of(store, "chat"))
        assert digests(held.state, seal=seal) == digests(archive.load("chat").state, seal=seal)
        assert digests(held.state, seal=seal) == stored
        assert len(set(stored)) == 5


def test_X4_digests_are_of_content_alone() -> None:
    one, other = start(id="one"), start(id="other")
    for number in range(3):
        one, other = said(one, f"Q{number}"), said(other, f"Q{number}")
    assert digests(one) == digests(other) == digests(annotate(one, {1: (1.0, "Good.")}))
    changed = replace_turn(one, 1, {"answer": "B"}, id="b")[1]
    same = [mine == theirs for mine, theirs in zip(digests(one), digests(changed), strict=True)]
    assert same == [True, False, False]
    assert digests(undo(one, 1)[1]) == digests(one)[:2]


def test_X4_shared_turns_are_found_without_reading_what_is_shared() -> None:
    store = WatchedStore()
    archive = Archive(store)
    held = talk(archive, archive.create("chat", start(id="chat")), 600)
    fork = talk(archive, archive.fork(held, "branch", undo(held.state, 100)[1]), 50, size=40)
    assert shared_turns(archive, "chat", "branch") == 500
    assert shared_turns(archive, "branch", "chat") == 500
    assert (
        store.since(lambda: shared_turns(archive, "chat", "branch"))["read"] <= 2 * 600 // 2 + 300
    )
    archive.write(fork, truncate(fork.state, 100))
    assert shared_turns(archive, "branch", "chat") == 50
    archive.create("twin", archive.load("chat").state)  # another family, with equal turns
    assert shared_turns(archive, "twin", "chat") == 600
    assert shared_turns(archive, "chat", "chat") == 600
    archive.create("empty", start())
    assert shared_turns(archive, "chat", "empty") == 0


def test_damage_is_a_pair_of_an_index_and_what_is_wrong() -> None:
    index, what = Damage(3, "it is not in the store")
    assert (index, what) == (3, "it is not in the store")
