"""What the tests of the journal share: a store that counts and fails, and steps of a conversation.

No program runs here: turns are made by the transitions of the core.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from dspy_session.core.data import Data
from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState
from dspy_session.core.step import commit, prepare
from dspy_session.core.turn import Run
from dspy_session.errors import StoreError
from dspy_session.journal.archive import Archive, Held
from dspy_session.stores import MemoryStore
from dspy_session.stores.base import Store
from dspy_session.stores.records import ListQuery, Node, Ref, Totals

_numbers = itertools.count()
_Nodes = TypeVar("_Nodes", bound=Collection[Node])

PLAIN = SessionOptions()


def said(
    state: SessionState,
    question: str = "Q",
    answer: str = "A",
    options: SessionOptions = PLAIN,
    *,
    at: int | None = None,
    seen: SessionState | None = None,
    nested: Mapping[str, SessionState] | None = None,
    data: Callable[[Data], Data] | None = None,
    request: str | None = None,
) -> SessionState:
    """The conversation with one more turn, or with another answer to the one at an index.

    `seen` is what the call saw, if the conversation went on meanwhile.
    """
    step = prepare(seen or state, {"question": question}, options, at=at)
    number = next(_numbers)
    run = Run(id=f"turn-{number}", time=float(number + 1), request_id=request)
    _, after = commit(state, step, {"answer": answer}, run, options, nested=nested, data=data)
    return after


def talk(archive: Archive, held: Held, turns: int, size: int = 20, **keywords: Any) -> Held:
    """A stored conversation with some more turns, written one by one, of `size` characters each."""
    for _ in range(turns):
        number = f"{len(held.state)} "
        text = number + "x" * (size // 2 - len(number))
        held = archive.write(held, said(held.state, f"Q{text}", f"A{text}", **keywords))
    return held


class WatchedStore(Store):
    """Passes all on to another store, counts it, and fails when it is told to."""

    def __init__(self, store: Store | None = None) -> None:
        self.inner = MemoryStore() if store is None else store
        self.counts: Counter[str] = Counter()
        self.failing: set[str] = set()
        """The methods that fail; `"put, written"` is a `put` whose answer gets lost."""
        self.before_put: Callable[[], object] | None = None

    def since(self, call: Callable[[], Any]) -> Counter[str]:
        """What a call asks of the store."""
        before = Counter(self.counts)
        call()
        return self.counts - before

    def ref(self, id: str) -> Ref | None:
        self._asked("ref")
        return self.inner.ref(id)

    def put(
        self,
        ref: Ref,
        expected: int | None,
        nodes: Sequence[Node] = (),
        needs: Collection[int] = (),
    ) -> bool:
        self._asked("put")
        if self.before_put is not None:
            before, self.before_put = self.before_put, None
            before()
        done = self.inner.put(ref, expected, nodes, needs)
        if done:
            self.counts["written"] += len(nodes)
            self.counts["bytes"] += sum(len(node.payload) for node in nodes)
            self.counts["body"] += len(ref.body)
        if "put, written" in self.failing:
            raise StoreError("The connection was lost.")
        return done

    def walk(self, family: int, key: int, floor: int) -> list[Node]:
        self._asked("walk")
        return self._read(self.inner.walk(family, key, floor))

    def nodes(self, family: int, keys: Collection[int]) -> dict[int, Node]:
        self._asked("nodes")
        found = self.inner.nodes(family, keys)
        self._read(found.values())
        return found

    def labelled(self, family: int, label: str) -> list[Node]:
        self._asked("labelled")
        return self._read(self.inner.labelled(family, label))

    def delete(self, id: str, expected: int | None = None) -> bool:
        self._asked("delete")
        return self.inner.delete(id, expected)

    def replace_payloads(self, family: int, payloads: Mapping[int, bytes]) -> None:
        self._asked("replace_payloads")
        self.inner.replace_payloads(family, payloads)

    def refs(self, query: ListQuery) -> list[Ref]:
        self._asked("refs")
        return self.inner.refs(query)

    def count(self, query: ListQuery) -> int:
        self._asked("count")
        return self.inner.count(query)

    def relatives(self, family: int) -> list[Ref]:
        self._asked("relatives")
        return self.inner.relatives(family)

    def vacuum(self) -> int:
        self._asked("vacuum")
        return self.inner.vacuum()

    def totals(self) -> Totals:
        self._asked("totals")
        return self.inner.totals()

    def activity(self, since: float, until: float) -> dict[str, int]:
        self._asked("activity")
        return self.inner.activity(since, until)

    def close(self) -> None:
        self.inner.close()

    def _asked(self, method: str) -> None:
        self.counts[method] += 1
        if method in self.failing:
            raise StoreError("The store cannot be reached.")

    def _read(self, nodes: _Nodes) -> _Nodes:
        self.counts["read"] += len(nodes)
        return nodes


def chain_of(store: Store, id: str) -> list[Node]:
    """The nodes of a session's turns, those that can be redone included."""
    ref = store.ref(id)
    assert ref is not None
    return [] if ref.tip is None else store.walk(ref.family, ref.tip, ref.first)
