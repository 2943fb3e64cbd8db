"""The store contract: a write is whole, and changes only what its writer has seen."""

from __future__ import annotations

from dspy_session.errors import StoreError
from dspy_session.stores.base import Store
from dspy_session.stores.records import ListQuery, Node, Ref, new_key
from dspy_session.testing.contract_cases import (
    NOTHING,
    StoreCases,
    chain,
    raises,
    ref_to,
    rewritten,
)

__all__ = ["WriteCases"]


class WriteCases(StoreCases):
    """Compare-and-set, and writes that are refused."""

    def test_an_empty_store_has_nothing(self) -> None:
        """Nothing is found, and nothing is an error."""
        store = self.store
        assert store.ref("ada") is None
        assert store.walk(1, 1, 0) == []
        assert store.nodes(1, [1, 2]) == {}
        assert store.labelled(1, "a") == []
        assert store.refs(ListQuery()) == []
        assert store.count(ListQuery()) == 0
        assert store.relatives(1) == []
        assert store.totals() == NOTHING
        assert store.activity(0, 1e10) == {}
        assert store.vacuum() == 0
        assert not store.delete("ada")
        store.replace_payloads(1, {1: b"x"})

    def test_a_session_is_created(self) -> None:
        """Without nodes, and with some."""
        empty = Ref(id="empty", family=new_key(), version=new_key())
        assert self.store.put(empty, None)
        assert self.store.ref("empty") == empty
        ref, nodes = self.session("ada", 3)
        assert self.store.ref("ada") == ref
        assert self.store.walk(ref.family, nodes[-1].key, 0) == nodes

    def test_a_write_from_the_version_that_is_there(self) -> None:
        """The ref is what was written, and the old nodes stay."""
        ref, nodes = self.session("ada", 2)
        more = chain(ref.family, 2, nodes[-1])
        newer = rewritten(ref, tip=more[-1].key, head=more[0].key, stop=3, end=4, body=b"!")
        assert self.store.put(newer, ref.version, more)
        assert self.store.ref("ada") == newer
        assert self.store.walk(ref.family, more[-1].key, 0) == nodes + more

    def test_the_next_write_of_an_unchanged_tip(self) -> None:
        """Undo, data and metadata come without nodes."""
        ref, nodes = self.session("ada", 2)
        undone = rewritten(ref, head=nodes[0].key, stop=1, metadata={"a": 1})
        assert self.store.put(undone, ref.version)
        assert self.store.ref("ada") == undone
        emptied = rewritten(undone, tip=None, head=None, stop=0, end=0, metadata={})
        assert self.store.put(emptied, undone.version)
        assert self.store.ref("ada") == emptied

    def test_any_field_may_be_all_that_changes(self) -> None:
        """Whatever a store does faster for the usual write."""
        ref, nodes = self.session("ada", 2)
        for change in ({"created": 7.5}, {"metadata": {"a": 1}}, {"origin": "eve"}):
            newer = rewritten(ref, **change)
            assert self.store.put(newer, ref.version)
            assert self.store.ref("ada") == newer
            ref = newer
        assert self.store.walk(ref.family, nodes[-1].key, 0) == nodes

    def test_a_version_that_is_not_there_is_refused(self) -> None:
        """A stale one, one for a missing ref, none for one that is there."""
        ref, nodes = self.session("ada", 1)
        newer = rewritten(ref)
        assert self.store.put(newer, ref.version)
        self.refused(rewritten(ref), ref.version, nodes[-1])
        self.refused(rewritten(ref), None, nodes[-1])
        self.refused(rewritten(ref), new_key(), nodes[-1])
        self.refused(rewritten(ref, id="nobody"), ref.version, nodes[-1])
        assert self.store.ref("ada") == newer
        assert self.store.ref("nobody") is None

    def test_a_write_on_what_is_gone_is_refused(self) -> None:
        """The tip, or the parent of a node, is not there."""
        ref, nodes = self.session("ada", 1)
        gone = new_key()
        self.refused(rewritten(ref, tip=gone), ref.version, nodes[-1])
        self.refused(rewritten(ref, id="new", tip=gone), None, nodes[-1])
        (lost,) = chain(ref.family, 1, Node(key=gone, family=ref.family))
        for id, expected in (("ada", ref.version), ("new", None)):
            assert not self.store.put(rewritten(ref, id=id, tip=lost.key), expected, [lost])
            assert not self.store.put(rewritten(ref, id=id), expected, [lost])
        assert self.store.ref("ada") == ref
        assert self.store.ref("new") is None
        assert self.keys(ref.family, [lost]) == set()

    def test_what_a_write_needs_is_there(self) -> None:
        """Or it is refused, whether it brings nodes or none."""
        ref, nodes = self.session("ada", 3)
        gone = new_key()
        for keys in ([gone], [nodes[0].key, gone], {nodes[2].key, gone}):
            for id, expected in (("ada", ref.version), ("new", None)):
                more = chain(ref.family, 1, nodes[-1])
                assert not self.store.put(rewritten(ref, id=id), expected, [], keys)
                assert not self.store.put(rewritten(ref, id=id), expected, more, keys)
                assert self.keys(ref.family, more) == set()
        assert self.store.ref("ada") == ref
        assert self.store.ref("new") is None
        other, _ = self.session("bob", 1)
        assert not self.store.put(rewritten(other), other.version, [], [nodes[0].key])
        assert self.store.ref("bob") == other
        newer = rewritten(ref)
        assert self.store.put(newer, ref.version, [], [node.key for node in nodes])
        more = chain(ref.family, 1, nodes[-1])
        assert self.store.put(ref_to("new", nodes + more), None, more, {nodes[1].key})
        assert self.store.walk(ref.family, more[0].key, 0) == nodes + more

    def test_nothing_is_built_on_another_family(self) -> None:
        """A node of one family is not there in another."""
        ref, nodes = self.session("ada", 1)
        other, _ = self.session("bob", 1)
        self.refused(rewritten(other, tip=nodes[0].key), other.version, nodes[-1])
        (lost,) = chain(other.family, 1, nodes[0])
        assert not self.store.put(rewritten(other, tip=lost.key), other.version, [lost])
        assert self.store.ref("bob") == other
        assert self.keys(other.family, [lost, nodes[0]]) == set()
        assert self.keys(ref.family, [lost]) == set()

    def test_a_deleted_session_takes_no_old_version(self) -> None:
        """Neither while it is gone nor after another was made under its id."""
        ref, _ = self.session("ada", 2)
        assert self.store.delete("ada")
        assert not self.store.put(rewritten(ref, tip=None, head=None), ref.version)
        assert self.store.ref("ada") is None
        again, nodes = self.session("ada", 1)
        assert again.family != ref.family
        self.refused(rewritten(again), ref.version, nodes[-1])
        assert not self.store.delete("ada", ref.version)
        assert self.store.ref("ada") == again

    def test_many_nodes_at_once(self) -> None:
        """A whole conversation is one write."""
        ref, nodes = self.session("ada", 3_000)
        assert self.store.walk(ref.family, nodes[-1].key, 0) == nodes
        assert self.store.nodes(ref.family, [node.key for node in nodes]) == {
            node.key: node for node in nodes
        }

    def test_a_closed_store_says_so(self) -> None:
        """Whatever it is asked; to close it again is nothing."""
        ref, nodes = self.session("ada", 1)
        self.store.close()
        self.store.close()
        raises(StoreError, lambda: self.store.ref("ada"))
        raises(StoreError, lambda: self.store.put(rewritten(ref), ref.version))
        raises(StoreError, lambda: self.store.walk(ref.family, nodes[0].key, 0))
        raises(StoreError, lambda: self.store.nodes(ref.family, [nodes[0].key]))
        raises(StoreError, lambda: self.store.labelled(ref.family, "a"))
        raises(StoreError, lambda: self.store.delete("ada"))
        raises(StoreError, lambda: self.store.replace_payloads(ref.family, {nodes[0].key: b""}))
        raises(StoreError, lambda: self.store.refs(ListQuery()))
        raises(StoreError, lambda: self.store.count(ListQuery()))
        raises(StoreError, lambda: self.store.relatives(ref.family))
        raises(StoreError, self.store.vacuum)
        raises(StoreError, self.store.totals)
        raises(StoreError, lambda: self.store.activity(0, 1))

    def test_a_store_is_a_context_manager(self) -> None:
        """Leaving it closes it."""
        with self.store as store:
            assert isinstance(store, Store)
            assert store is self.store
        raises(StoreError, lambda: store.ref("ada"))

    def refused(self, ref: Ref, expected: int | None, last: Node) -> None:
        """Check that a write is refused, with and without a node, and leaves nothing behind.

        Args:
            ref: What is written.
            expected: The version that it expects.
            last: What the node would follow.
        """
        before = self.store.totals()
        (node,) = chain(last.family, 1, last, label="refused")
        assert not self.store.put(ref, expected)
        assert not self.store.put(ref, expected, [node])
        assert self.keys(last.family, [node]) == set()
        assert self.store.labelled(last.family, "refused") == []
        assert self.store.totals() == before
