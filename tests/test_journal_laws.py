"""The law of the journal: what is stored is what the state in memory would be, after any steps.

Random walks write conversations step by step, on a store and on plain states side by side; neither
knows of the other. After each step the session is loaded anew and compared, and verified.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from dspy_session.core.data import DELETED
from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState, start, with_id
from dspy_session.core.step import commit, prepare
from dspy_session.core.transitions import (
    annotate,
    clear,
    redo,
    replace_turn,
    reset,
    rewind,
    summarized,
    truncate,
    undo,
)
from dspy_session.core.turn import Run
from dspy_session.core.writes import describe, write, write_pending
from dspy_session.errors import ConflictError, SessionExistsError, SessionNotFoundError
from dspy_session.journal.archive import Archive, Held
from dspy_session.journal.checking import verify
from dspy_session.journal.digests import digests, shared_turns
from dspy_session.stores import MemoryStore, SQLStore
from dspy_session.stores.base import Store
from dspy_session.stores.records import ListQuery
from tests.journals import chain_of

Change = Callable[[SessionState], SessionState]


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains are read in pieces of three turns, so that these short ones have several."""
    monkeypatch.setattr("dspy_session.journal.steps._PIECE", 3)


NEWEST = st.sampled_from([None, 0, 1, 3])
PICK = st.integers(0, 40)
TEXTS = st.sampled_from(["x", "long " * 80])
DATA = st.dictionaries(st.sampled_from("abc"), st.sampled_from([1, "v" * 200, DELETED]), max_size=2)
INNER = st.lists(st.sampled_from(["say", "undo", "again", "score", "forget"]), max_size=3)

_numbers = itertools.count()


def place(state: SessionState, pick: int) -> int:
    """The index of some turn of a state that has any."""
    return state.first + pick % len(state)


def said(
    state: SessionState,
    number: int,
    options: SessionOptions,
    *,
    text: str = "x",
    at: int | None = None,
    seen: SessionState | None = None,
    nested: dict[str, SessionState] | None = None,
    data: Any = None,
) -> SessionState:
    step = prepare(seen or state, {"q": f"q{number} {text}"}, options, at=at)
    run = Run(id=f"t{number}", time=float(number + 1), request_id=f"r{number}")
    change = None if not data else lambda there: there.changed(data)
    after = commit(state, step, {"a": f"a{number}"}, run, options, nested=nested, data=change)
    return after[1]


def inner_moved(state: SessionState, number: int, moves: list[str]) -> SessionState:
    """A session within the program after some moves of its own."""
    options = SessionOptions()
    for offset, move in enumerate(moves):
        unique = number * 10 + offset
        if move == "say" or not len(state):
            state = said(state, unique, options, data={"n": unique})
        elif move == "again":
            state = said(state, unique, options, at=state.stop - 1)
        elif move == "score":
            state = annotate(state, {state.stop - 1: (unique / 7, None)})
        elif move == "forget":
            state = truncate(state, 2)
        else:
            state = undo(state, 1)[1]
    return state


class Conversations(RuleBasedStateMachine):
    """Sessions of some families in one store, and beside each the state that it must have."""

    def new_store(self) -> Store:
        return MemoryStore()

    def __init__(self) -> None:
        super().__init__()
        self.store = self.new_store()
        self.archive = Archive(self.store)
        self.held: dict[str, Held] = {}
        self.model: dict[str, SessionState] = {}
        self.options = SessionOptions()

    @initialize(
        max_turns=st.sampled_from([None, 2]),
        stored=st.sampled_from([None, None, 4]),
        seed=st.booleans(),
        data=DATA,
    )
    def begin(self, max_turns: int | None, stored: int | None, seed: bool, data: Any) -> None:
        self.options = SessionOptions(max_turns=max_turns, max_stored_turns=stored)
        state = start([{"q": "seed", "a": "seed"}] if seed else (), id="chat")
        self.model["chat"] = write(state, data)
        self.held["chat"] = self.archive.create("chat", self.model["chat"])
        with pytest.raises(SessionExistsError):
            self.archive.create("chat", state)

    def teardown(self) -> None:
        for id in self.model:
            self.check(id, None)
        ids = [ref.id for ref in self.store.refs(ListQuery(order="id", descending=False))]
        assert ids == sorted(self.model)
        for id in self.model:
            assert self.archive.delete(id)
        if ids:
            assert self.store.totals().nodes == 0
        self.store.close()

    # --- what is compared -------------------------------------------------------------------------

    def some(self, pick: int) -> str:
        ids = sorted(self.model)
        return ids[pick % len(ids)]

    def check(self, id: str, newest: int | None) -> None:
        loaded, state = self.archive.load(id, newest), self.model[id]
        assert loaded.state == state
        ref = loaded.ref
        assert (ref.first, ref.stop, ref.end) == (state.first, state.stop, state.tip)
        assert ref.metadata == state.metadata.to_dict()
        assert self.archive.turns(id) == state.turns
        found = verify(self.archive, id)
        assert found.ok, found
        assert found.turns == state.tip - state.first
        if not state.first and self.options.max_stored_turns is None:
            stored = tuple(node.digest.hex() for node in chain_of(self.store, id))
            assert digests(state) == stored[: len(state)]

    def change(self, pick: int, change: Change, newest: int | None = None) -> None:
        """Let a session and its model take the same step."""
        id = self.some(pick)
        self.model[id] = change(self.model[id])
        self.held[id] = self.archive.write(self.held[id], change(self.held[id].state))
        assert self.held[id].state == self.model[id]
        self.check(id, newest)

    def turned(self, pick: int, change: Change) -> None:
        """The same, for a step that needs a turn."""
        if len(self.model[self.some(pick)]):
            self.change(pick, change, 1)

    # --- steps ------------------------------------------------------------------------------------

    @rule(pick=PICK, text=TEXTS, data=DATA, newest=NEWEST)
    def turn(self, pick: int, text: str, data: Any, newest: int | None) -> None:
        number = next(_numbers)
        self.change(pick, lambda s: said(s, number, self.options, text=text, data=data), newest)

    @rule(pick=PICK, name=st.sampled_from(["a", "b.c"]), moves=INNER, newest=NEWEST)
    def turn_with_a_session_within(
        self, pick: int, name: str, moves: list[str], newest: int | None
    ) -> None:
        number = next(_numbers)

        def change(state: SessionState) -> SessionState:
            inner = inner_moved(state.nested.get(name) or start(id=name), number, moves)
            return said(state, number, self.options, nested={name: inner})

        self.change(pick, change, newest)

    @rule(pick=PICK, back=st.integers(1, 4), then=st.booleans())
    def overlapping_turn(self, pick: int, back: int, then: bool) -> None:
        number, other = next(_numbers), next(_numbers)

        def change(state: SessionState) -> SessionState:
            seen = undo(state, back)[1]
            if then:
                seen = said(seen, other, self.options)  # on another path, which is never stored
            return said(state, number, self.options, seen=seen)

        self.change(pick, change)

    @rule(pick=PICK, where=PICK, data=DATA)
    def answer_again(self, pick: int, where: int, data: Any) -> None:
        number = next(_numbers)
        self.turned(pick, lambda s: said(s, number, self.options, at=place(s, where), data=data))

    @rule(pick=PICK, steps=st.integers(1, 3), newest=NEWEST)
    def undo(self, pick: int, steps: int, newest: int | None) -> None:
        self.change(pick, lambda s: undo(s, steps)[1], newest)

    @rule(pick=PICK, steps=st.integers(1, 3), newest=NEWEST)
    def redo(self, pick: int, steps: int, newest: int | None) -> None:
        self.change(pick, lambda s: redo(s, steps)[1], newest)

    @rule(pick=PICK, where=PICK, redoable=st.booleans())
    def rewind(self, pick: int, where: int, redoable: bool) -> None:
        self.turned(pick, lambda s: rewind(s, place(s, where), redoable=redoable))

    @rule(pick=PICK, where=PICK)
    def replace_turn(self, pick: int, where: int) -> None:
        number = next(_numbers)
        self.turned(
            pick,
            lambda s: replace_turn(s, place(s, where), {"a": f"b{number}"}, id=f"t{number}")[1],
        )

    @rule(pick=PICK, where=PICK, score=st.floats(0, 1), feedback=st.sampled_from([None, "Good."]))
    def score(self, pick: int, where: int, score: float, feedback: str | None) -> None:
        self.turned(pick, lambda s: annotate(s, {place(s, where): (score, feedback)}))

    @rule(pick=PICK, data=DATA, newest=NEWEST)
    def write_data(self, pick: int, data: Any, newest: int | None) -> None:
        self.change(pick, lambda s: write(s, data), newest)

    @rule(pick=PICK, text=TEXTS)
    def message_waits(self, pick: int, text: str) -> None:
        self.change(pick, lambda s: write_pending(s, ({"role": "user", "content": text},)))

    @rule(pick=PICK, changes=st.dictionaries(st.sampled_from("mn"), st.integers(0, 3), min_size=1))
    def describe(self, pick: int, changes: dict[str, int]) -> None:
        self.change(pick, lambda s: describe(s, changes))

    @rule(pick=PICK, keep=st.integers(0, 4))
    def truncate(self, pick: int, keep: int) -> None:
        self.change(pick, lambda s: truncate(s, keep))

    @rule(pick=PICK, keep=st.integers(0, 2))
    def summarize(self, pick: int, keep: int) -> None:
        seed = start([{"q": "so far", "a": f"summary {next(_numbers)}"}]).seed
        self.change(pick, lambda s: summarized(s, seed, keep))

    @rule(pick=PICK, all=st.booleans())
    def reset(self, pick: int, all: bool) -> None:
        self.change(pick, clear if all else reset)

    # --- sessions ---------------------------------------------------------------------------------

    @precondition(lambda self: len(self.model) < 5)
    @rule(pick=PICK, where=PICK, whole=st.booleans())
    def fork(self, pick: int, where: int, whole: bool) -> None:
        id, new = self.some(pick), f"fork-{next(_numbers)}"

        def change(state: SessionState) -> SessionState:
            if whole or not len(state):
                return state
            return rewind(state, place(state, where), redoable=False)

        self.held[new] = self.archive.fork(self.held[id], new, change(self.held[id].state))
        self.model[new] = with_id(change(self.model[id]), new)
        assert shared_turns(self.archive, id, new) == len(self.model[new])
        self.check(new, None)
        self.check(id, None)

    @precondition(lambda self: len(self.model) < 5)
    @rule(pick=PICK, newest=NEWEST)
    def copy(self, pick: int, newest: int | None) -> None:
        """A session of another family, from a state that is partly read."""
        id, new = self.some(pick), f"copy-{next(_numbers)}"
        self.held[new] = self.archive.create(new, self.archive.load(id, newest).state)
        self.model[new] = with_id(self.model[id], new)
        assert self.held[new].ref.family != self.held[id].ref.family
        self.check(new, None)

    @rule(pick=PICK, newest=NEWEST)
    def reopen(self, pick: int, newest: int | None) -> None:
        id = self.some(pick)
        self.held[id] = self.archive.load(id, newest)

    @rule(pick=PICK)
    def somebody_else_writes(self, pick: int) -> None:
        id, number = self.some(pick), next(_numbers)
        stale = self.held[id]
        self.change(pick, lambda s: said(s, number, self.options))
        with pytest.raises(ConflictError):
            self.archive.write(stale, said(stale.state, number, self.options))
        self.check(id, 1)

    @precondition(lambda self: len(self.model) > 1)
    @rule(pick=PICK)
    def delete(self, pick: int) -> None:
        id = self.some(pick)
        assert self.archive.delete(id)
        del self.model[id], self.held[id]
        with pytest.raises(SessionNotFoundError):
            self.archive.load(id)
        assert not self.archive.delete(id)
        for other in self.model:
            self.check(other, 1)

    @rule()
    def vacuum(self) -> None:
        self.store.vacuum()
        assert self.store.vacuum() == 0
        for id in self.model:
            self.check(id, 1)


class ConversationsOnSQLite(Conversations):
    """The same in a database."""

    def new_store(self) -> Store:
        return SQLStore("sqlite://")


FEW = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

TestWalks = Conversations.TestCase
TestWalks.settings = FEW
TestWalksOnSQLite = ConversationsOnSQLite.TestCase
TestWalksOnSQLite.settings = settings(FEW, max_examples=15)
