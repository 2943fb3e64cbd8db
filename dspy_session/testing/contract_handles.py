"""The store contract: what was written is there for whoever opens the store again."""

from __future__ import annotations

import itertools
from contextlib import closing

from dspy_session.stores.records import ListQuery, Node, Ref, new_key
from dspy_session.testing.contract_cases import StoreCases, chain, in_threads, ref_to, rewritten
from dspy_session.testing.contract_threads import appending, read

__all__ = ["HandleCases", "RacingHandleCases"]


class HandleCases(StoreCases):
    """A second handle on the same data."""

    def test_what_was_written_is_there(self) -> None:
        """After the store was closed, too."""
        nodes = chain(new_key(), 3, label="a", time=90_000.0)
        ref = ref_to("ada", nodes, metadata={"user": "ada"}, body=b"body")
        assert self.store.put(ref, None, nodes)
        totals = self.store.totals()
        for closed in (False, True):
            if closed:
                self.store.close()
            with closing(self.reopen(self.store)) as other:
                assert other.ref("ada") == ref
                assert other.walk(ref.family, nodes[-1].key, 0) == nodes
                assert other.labelled(ref.family, "a") == nodes[::-1]
                assert other.refs(ListQuery(metadata={"user": "ada"})) == [ref]
                assert other.relatives(ref.family) == [ref]
                assert other.totals() == totals
                assert other.activity(0, 1e6) == {"1970-01-02": 3}

    def test_handles_see_each_other(self) -> None:
        """A write, a refusal, other payloads and a deletion."""
        ref, nodes = self.session("ada", 2)
        with closing(self.reopen(self.store)) as other:
            more = chain(ref.family, 1, nodes[-1])
            newer = rewritten(ref, tip=more[0].key, head=more[0].key)
            assert other.put(newer, ref.version, more)
            assert not self.store.put(rewritten(ref), ref.version)
            assert self.store.ref("ada") == newer
            assert self.store.walk(ref.family, more[0].key, 0) == nodes + more
            self.store.replace_payloads(ref.family, {more[0].key: b"other"})
            assert other.nodes(ref.family, [more[0].key])[more[0].key].payload == b"other"
            assert self.store.delete("ada")
            assert other.ref("ada") is None
            assert other.walk(ref.family, nodes[-1].key, 0) == []
            assert not other.put(rewritten(newer), newer.version)
            assert not other.put(rewritten(newer, id="fork"), None)


class RacingHandleCases(StoreCases):
    """Several handles that write at the same time."""

    def test_handles_write_one_session(self) -> None:
        """Each write is there once, in one chain."""
        assert self.store.put(Ref(id="ada", family=new_key(), version=new_key()), None)
        others = [self.reopen(self.store) for _ in range(2)]
        stores = [self.store, *others]
        labels = [[f"{n}.{write}" for write in range(20)] for n in range(len(stores))]
        in_threads(
            appending(store, "ada", mine) for store, mine in zip(stores, labels, strict=True)
        )
        tip = read(self.store, "ada").tip
        assert tip is not None
        written: list[Node] = self.store.walk(read(self.store, "ada").family, tip, 0)
        assert sorted(str(node.label) for node in written) == sorted(itertools.chain(*labels))
        for other in others:
            other.close()

    def test_a_fork_through_one_of_what_another_deletes(self) -> None:
        """It has all of its nodes, or there is none."""
        with closing(self.reopen(self.store)) as other:
            for _ in range(10):
                ref, nodes = self.session("ada", 3)
                more = chain(ref.family, 1, nodes[-1])
                fork = ref_to("fork", nodes + more)
                forked: list[bool] = []

                def take(
                    fork: Ref = fork, more: list[Node] = more, done: list[bool] = forked
                ) -> None:
                    done.append(other.put(fork, None, more))

                in_threads([lambda: self.store.delete("ada"), take])
                kept = self.store.walk(ref.family, more[-1].key, 0)
                assert kept == (nodes + more if forked == [True] else [])
                assert self.store.delete("fork") is forked[0]
                assert other.totals().nodes == 0
