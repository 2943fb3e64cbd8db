"""What the tests of session managers share: stores, and what was read of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import MemoryStore, Session, SessionManager, SQLStore, Store
from dspy_session.stores.records import ListQuery, Node
from tests.talk import QA, scripted

Managed = Callable[..., SessionManager]
"""Makes managers of one store."""


def manager_of(store: Any, **keywords: Any) -> SessionManager:
    return SessionManager(dspy.Predict(QA), store, **keywords)


@contextmanager
def small_store(kind: str, folder: Path) -> Iterator[Store]:
    """A store that needs no server."""
    with MemoryStore() if kind == "memory" else SQLStore(f"sqlite:///{folder}/chats.db") as store:
        yield store


def talk(session: Session, *questions: str) -> None:
    """Ask, with a scripted model."""
    with dspy.context(lm=scripted()):
        for question in questions:
            session(question=question)


def contents(store: Store) -> Any:
    """All sessions that a store has, with what a change to any of them would change."""
    return [
        (ref.id, ref.version, ref.tip, ref.size, dict(ref.metadata))
        for ref in store.refs(ListQuery(order="id", descending=False))
    ]


@contextmanager
def unchanged(store: Store, error: type[BaseException], *words: str) -> Iterator[None]:
    """Expects an error whose message has these words, and that nothing is stored or deleted."""
    before = contents(store), store.totals()
    with pytest.raises(error) as caught:
        yield
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value)
    assert (contents(store), store.totals()) == before


class Counting:
    """Counts the nodes that are read from a store while it is watched."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read = 0
        walk, nodes = store.walk, store.nodes

        def counted_walk(family: int, key: int, floor: int) -> list[Node]:
            found = walk(family, key, floor)
            self.read += len(found)
            return found

        def counted_nodes(family: int, keys: Any) -> dict[int, Node]:
            found = nodes(family, keys)
            self.read += len(found)
            return found

        monkeypatch.setattr(store, "walk", counted_walk)
        monkeypatch.setattr(store, "nodes", counted_nodes)

    def during(self, work: Callable[[], object]) -> int:
        """How many are read by some work."""
        before = self.read
        work()
        return self.read - before
