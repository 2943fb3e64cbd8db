"""The store contract: any thread may call any method at any time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from dspy_session.stores.base import Store
from dspy_session.stores.records import Node, Ref, new_key
from dspy_session.testing.contract_cases import StoreCases, chain, in_threads, ref_to, rewritten

__all__ = ["ThreadCases", "appending", "read"]

THREADS = 8
WRITES = 25


def read(store: Store, id: str) -> Ref:
    """Return a ref that must be there.

    Args:
        store: The store.
        id: The session's id.
    """
    ref = store.ref(id)
    assert ref is not None, f"{id!r} is gone"
    return ref


def appending(store: Store, id: str, labels: list[str]) -> Callable[[], None]:
    """Return a function that adds a node for each label, trying again whenever it is too late.

    Args:
        store: The store.
        id: The session's id.
        labels: The labels.
    """

    def append() -> None:
        for label in labels:
            while True:
                ref = read(store, id)
                parent = None if ref.tip is None else store.nodes(ref.family, [ref.tip])[ref.tip]
                (node,) = chain(ref.family, 1, parent, label=label)
                newer = rewritten(ref, tip=node.key, head=node.key, end=node.depth + 1)
                if store.put(newer, ref.version, [node]):
                    break

    return append


class ThreadCases(StoreCases):
    """Writers of one session, of different ones, and a fork of what is being deleted."""

    def test_many_threads_write_one_session(self) -> None:
        """Each write is there once, in one chain."""
        assert self.store.put(Ref(id="ada", family=new_key(), version=new_key()), None)
        labels = [[f"{thread}.{n}" for n in range(WRITES)] for thread in range(THREADS)]
        in_threads(appending(self.store, "ada", mine) for mine in labels)
        ref = read(self.store, "ada")
        assert ref.tip is not None
        nodes = self.store.walk(ref.family, ref.tip, 0)
        assert [node.depth for node in nodes] == list(range(THREADS * WRITES))
        written = [node.label for node in nodes]
        assert sorted(map(str, written)) == sorted(itertools.chain(*labels))
        for mine in labels:
            assert [label for label in written if label in mine] == mine

    def test_many_threads_write_forks_of_one_session(self) -> None:
        """None is in another's way, while others read and list."""
        ref, nodes = self.session("first", 3)
        ids = [f"fork {n}" for n in range(THREADS)]
        for id in ids:
            assert self.store.put(rewritten(ref, id=id), None)

        def look() -> None:
            for _ in range(10):
                assert len(self.listed()) == THREADS + 1
                assert self.store.vacuum() == 0

        in_threads([look, *(appending(self.store, id, list("abcde")) for id in ids)])
        for id in ids:
            tip = read(self.store, id).tip
            assert tip is not None
            found = self.store.walk(ref.family, tip, 0)
            assert [node.label for node in found] == [None] * 3 + list("abcde")
        assert self.store.totals().nodes == 3 + 5 * THREADS
        assert read(self.store, "first") == ref
        assert self.store.walk(ref.family, nodes[-1].key, 0) == nodes

    def test_many_threads_create_one_session(self) -> None:
        """One of them does."""
        store = self.store  # opened by this thread: each of the others would open its own
        made: list[list[Node]] = []

        def create() -> None:
            nodes = chain(new_key(), 2)
            if store.put(ref_to("ada", nodes), None, nodes):
                made.append(nodes)

        in_threads([create] * THREADS)
        ((first, last),) = made
        assert self.store.walk(first.family, last.key, 0) == [first, last]
        assert self.store.totals().nodes == 2

    def test_a_fork_of_what_is_being_deleted(self) -> None:
        """It has all of its nodes, or there is none."""
        for _ in range(20):
            ref, nodes = self.session("ada", 3)
            more = chain(ref.family, 1, nodes[-1])
            fork = ref_to("fork", nodes + more)
            forked: list[bool] = []

            def take(fork: Ref = fork, more: list[Node] = more, done: list[bool] = forked) -> None:
                done.append(self.store.put(fork, None, more))

            in_threads([lambda: self.store.delete("ada"), take])
            assert self.store.ref("ada") is None
            assert self.store.delete("nobody") is False
            kept = self.store.walk(ref.family, more[-1].key, 0)
            assert kept == (nodes + more if forked == [True] else [])
            assert self.store.delete("fork") is forked[0]
            assert self.store.totals().nodes == 0
