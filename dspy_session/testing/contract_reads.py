"""The store contract: chains, nodes and labels are read as they were written."""

from __future__ import annotations

import math

from dspy_session.stores.records import Totals, new_key
from dspy_session.testing.contract_cases import StoreCases, chain, ref_to, rewritten

__all__ = ["ReadCases"]

DAY = 86_400
MIDNIGHT = 1_772_323_200.0  # the beginning of 1 March 2026, UTC


class ReadCases(StoreCases):
    """Walks, nodes by key and by label, other payloads, totals, activity."""

    def test_a_walk_is_the_oldest_first(self) -> None:
        """From the floor up to the key, both of them in."""
        ref, nodes = self.session("ada", 10)
        walk = self.store.walk
        assert walk(ref.family, nodes[9].key, 0) == nodes
        assert walk(ref.family, nodes[9].key, -5) == nodes
        assert walk(ref.family, nodes[9].key, 7) == nodes[7:]
        assert walk(ref.family, nodes[6].key, 4) == nodes[4:7]
        assert walk(ref.family, nodes[6].key, 6) == [nodes[6]]
        assert walk(ref.family, nodes[6].key, 7) == []
        assert walk(ref.family, new_key(), 0) == []

    def test_a_walk_follows_parents(self) -> None:
        """Branches of one family do not mix."""
        ref, nodes = self.session("ada", 4)
        branch = chain(ref.family, 3, nodes[1])
        fork = ref_to("fork", nodes[:2] + branch)
        assert self.store.put(fork, None, branch)
        assert self.store.walk(ref.family, branch[-1].key, 0) == nodes[:2] + branch
        assert self.store.walk(ref.family, branch[-1].key, 3) == branch[1:]
        assert self.store.walk(ref.family, nodes[-1].key, 0) == nodes

    def test_a_chain_begins_at_any_depth(self) -> None:
        """A floor below it is no gap."""
        nodes = chain(new_key(), 3, first=40)
        assert self.store.put(ref_to("ada", nodes), None, nodes)
        assert self.store.walk(nodes[0].family, nodes[-1].key, 0) == nodes
        assert self.store.walk(nodes[0].family, nodes[-1].key, 41) == nodes[1:]

    def test_a_walk_ends_at_a_gap(self) -> None:
        """What is after it is returned."""
        ref, nodes = self.session("ada", 6)
        trimmed = rewritten(ref, first=3)
        assert self.store.put(trimmed, ref.version)
        self.store.vacuum()
        assert self.store.walk(ref.family, nodes[-1].key, 0) == nodes[3:]
        assert self.store.walk(ref.family, nodes[-1].key, 4) == nodes[4:]
        assert self.store.walk(ref.family, nodes[1].key, 0) == []

    def test_undone_nodes_stay(self) -> None:
        """Up to the tip, whatever the head is."""
        ref, nodes = self.session("ada", 4)
        undone = rewritten(ref, head=nodes[1].key, stop=2)
        assert self.store.put(undone, ref.version)
        self.store.vacuum()
        assert self.store.walk(ref.family, nodes[3].key, 0) == nodes

    def test_nodes_by_key(self) -> None:
        """As many as are there, in any kind of collection."""
        ref, nodes = self.session("ada", 3)
        wanted = {node.key: node for node in nodes}
        assert self.store.nodes(ref.family, list(wanted)) == wanted
        assert self.store.nodes(ref.family, {nodes[1].key, new_key()}) == {nodes[1].key: nodes[1]}
        assert self.store.nodes(ref.family, (nodes[1].key, nodes[1].key)) == {
            nodes[1].key: nodes[1]
        }
        assert self.store.nodes(ref.family, []) == {}

    def test_families_are_apart(self) -> None:
        """What is read in one is never another's."""
        ref, nodes = self.session("ada", 2)
        other, others = self.session("bob", 2)
        keys = [node.key for node in nodes + others]
        assert set(self.store.nodes(ref.family, keys)) == {node.key for node in nodes}
        assert self.store.walk(other.family, nodes[-1].key, 0) == []
        assert self.store.nodes(new_key(), keys) == {}
        self.store.replace_payloads(other.family, {nodes[0].key: b"not mine"})
        assert self.store.walk(ref.family, nodes[-1].key, 0) == nodes

    def test_labels(self) -> None:
        """The newest first, in one family alone; not after a deletion."""
        family = new_key()
        first = chain(family, 2, label="a'%_\"🙂")
        second = chain(family, 2, first[-1], label="b")
        third = chain(family, 1, second[-1], label="a'%_\"🙂")
        nodes = first + second + third
        assert self.store.put(ref_to("ada", nodes), None, nodes)
        assert self.store.labelled(family, "a'%_\"🙂") == (first + third)[::-1]
        assert self.store.labelled(family, "b") == second[::-1]
        assert self.store.labelled(family, "") == []
        assert self.store.labelled(family, "a") == []
        assert self.store.labelled(new_key(), "b") == []
        assert self.store.delete("ada")
        assert self.store.labelled(family, "b") == []

    def test_a_fork_is_one_ref(self) -> None:
        """Its nodes are those of the first; relatives are found by their family."""
        ref, nodes = self.session("b", 5)
        fork = rewritten(ref, id="a", tip=nodes[2].key, head=nodes[2].key, origin="b")
        before = self.store.totals()
        assert self.store.put(fork, None)
        after = self.store.totals()
        assert (after.nodes, after.bytes) == (before.nodes, before.bytes)
        self.session("c", 1)
        assert self.store.relatives(ref.family) == [fork, ref]
        assert self.store.walk(fork.family, nodes[2].key, 0) == nodes[:3]

    def test_other_payloads(self) -> None:
        """Nothing else of a node changes, and every session has them."""
        ref, nodes = self.session("ada", 3)
        fork = rewritten(ref, id="fork")
        assert self.store.put(fork, None)
        erased = {nodes[0].key: b"", nodes[2].key: b"\0" * 2_000, new_key(): b"nobody's"}
        self.store.replace_payloads(ref.family, erased)
        found = self.store.walk(ref.family, nodes[-1].key, 0)
        assert [node.payload for node in found] == [b"", nodes[1].payload, b"\0" * 2_000]
        fields = [(n.key, n.parent, n.digest, n.total, n.depth) for n in found]
        assert fields == [(n.key, n.parent, n.digest, n.total, n.depth) for n in nodes]
        assert self.store.totals() == Totals(2, 3, 2_001)
        self.store.replace_payloads(ref.family, {})
        assert self.store.delete("ada")
        assert self.store.walk(ref.family, nodes[-1].key, 0) == found

    def test_totals(self) -> None:
        """Payloads and bodies, what is shared once."""
        ref, nodes = self.session("ada", 4, body=b"12345")
        assert self.store.put(rewritten(ref, id="fork", body=b"123"), None)
        self.session("bob", 2)
        payloads = sum(len(node.payload) for node in nodes) + 2
        assert self.store.totals() == Totals(3, 6, payloads + 8)

    def test_activity(self) -> None:
        """Turns by day in UTC; what has no time is no turn; what is shared counts once."""
        last = math.nextafter(MIDNIGHT + DAY, 0)
        times = [0.0, 0.5, MIDNIGHT - 0.25, MIDNIGHT, last, MIDNIGHT + 3 * DAY]
        nodes = chain(new_key(), 1, time=times[0])
        for time in times[1:]:
            nodes += chain(nodes[0].family, 1, nodes[-1], time=time)
        ref = ref_to("ada", nodes)
        assert self.store.put(ref, None, nodes)
        assert self.store.put(rewritten(ref, id="fork"), None)
        days = {"1970-01-01": 1, "2026-02-28": 1, "2026-03-01": 2, "2026-03-04": 1}
        found = self.store.activity(0.0, MIDNIGHT + 30 * DAY)
        assert list(found.items()) == list(days.items())
        assert self.store.activity(MIDNIGHT, MIDNIGHT + 3 * DAY) == {"2026-03-01": 2}
        assert self.store.activity(MIDNIGHT, MIDNIGHT) == {}
        assert self.store.activity(MIDNIGHT - 0.25, MIDNIGHT + 0.25) == {
            "2026-02-28": 1,
            "2026-03-01": 1,
        }
