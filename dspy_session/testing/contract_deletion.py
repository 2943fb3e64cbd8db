"""The store contract: what a session reaches stays, what none reaches goes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

import msgspec

from dspy_session.stores.reach import Bone, unreached
from dspy_session.stores.records import Node, Ref, Span, new_key
from dspy_session.testing.contract_cases import NOTHING, StoreCases, chain, ref_to, rewritten

__all__ = ["DeletionCases", "Walkabout", "needed"]


def needed(refs: Iterable[Ref], nodes: Mapping[int, Node]) -> set[int]:
    """Return the keys of all nodes that refs need: the definition, followed word for word.

    Args:
        refs: The refs of a family.
        nodes: Its nodes.
    """

    def down(key: int | None, floor: int) -> list[Node]:
        found: list[Node] = []
        node = None if key is None else nodes.get(key)
        while node is not None and node.depth >= floor:
            found.append(node)
            node = None if node.parent is None else nodes.get(node.parent)
        return found

    spans: set[tuple[int | None, int]] = set()
    new: set[tuple[int | None, int]] = {(ref.tip, ref.first) for ref in refs}
    new |= {(span.key, span.floor) for ref in refs for span in ref.links}
    reached: set[int] = set()
    shown: set[int] = set()
    while new:
        spans |= new
        reached = {node.key for span in spans for node in down(*span)}
        shown = {node.key for key in reached for node in down(key, nodes[key].low)}
        linked = [span for key in reached | shown for span in nodes[key].links]
        new = {(span.key, span.floor) for span in linked}
        new -= spans
    return reached | shown


class Walkabout:
    """A family of sessions that grow, fork, undo, trim and link at random, as sessions do.

    Args:
        seed: For the same family again.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.family = new_key()
        self.nodes: dict[int, Node] = {}
        self.refs: dict[str, Ref] = {}

    def line(self, ref: Ref) -> list[Node]:
        """Return the nodes of a session, the oldest first.

        Args:
            ref: The session.
        """
        found: list[Node] = []
        node = None if ref.tip is None else self.nodes[ref.tip]
        while node is not None and node.depth >= ref.first:
            found.append(node)
            node = None if node.parent is None else self.nodes.get(node.parent)
        return found[::-1]

    def write(self) -> tuple[Ref, int | None, list[Node]]:
        """Return the next write: a session goes on, or a new one is made or forked."""
        draw = self.random
        id = f"session {draw.randrange(8)}"
        there = self.refs.get(id)
        source = there or (draw.choice(list(self.refs.values())) if self.refs else None)
        line = [] if source is None else self.line(source)
        tip = draw.choice([*line, line[-1], line[-1]]) if line else None
        nodes: list[Node] = []
        for _ in range(draw.randrange(4) if tip else 3):
            (tip,) = chain(self.family, 1, tip)
            low = draw.randint(line[0].depth if line else 0, tip.depth)
            links = self.span(line)
            tip = msgspec.structs.replace(tip, low=low, links=links, label="all")
            nodes.append(tip)
        first = 0 if source is None or not line else source.first
        first = draw.choice([first, first, draw.randint(first, tip.depth)]) if tip else first
        links = () if source is None else (*source.links, *self.span(line))[-2:]
        ref = Ref(
            id=id,
            family=self.family,
            version=new_key(),
            tip=None if tip is None else tip.key,
            head=None if tip is None else tip.key,
            first=first,
            links=links,
        )
        return ref, None if there is None else there.version, nodes

    def span(self, line: list[Node]) -> tuple[Span, ...]:
        """Return a link to some stretch of a session's nodes, or none.

        Args:
            line: The nodes.
        """
        if not line or self.random.random() < 0.7:
            return ()
        low, high = sorted(self.random.choices(line, k=2), key=lambda node: node.depth)
        return (Span(high.key, low.depth),)

    def wrote(self, ref: Ref, nodes: Iterable[Node]) -> None:
        """Note what was written.

        Args:
            ref: The ref.
            nodes: The nodes that came with it.
        """
        self.refs[ref.id] = ref
        self.nodes |= {node.key: node for node in nodes}

    def needed(self) -> set[int]:
        """Return the keys of what must be there, and check it against `unreached`."""
        kept = needed(self.refs.values(), self.nodes)
        bones = {n.key: Bone(n.key, n.parent, n.depth, n.low, n.links) for n in self.nodes.values()}
        assert unreached(self.refs.values(), bones) == self.nodes.keys() - kept
        return kept


class DeletionCases(StoreCases):
    """Deletion, and vacuum."""

    def test_a_session_takes_its_nodes_along(self) -> None:
        """Others stay; the id is free again."""
        ref, nodes = self.session("ada", 3)
        other, others = self.session("bob", 2)
        assert self.store.delete("ada")
        assert not self.store.delete("ada")
        assert self.store.ref("ada") is None
        assert self.store.relatives(ref.family) == []
        assert self.keys(ref.family, nodes) == set()
        assert self.store.walk(other.family, others[-1].key, 0) == others
        assert self.store.delete("bob", other.version)
        assert self.store.totals() == NOTHING
        self.session("ada", 1)

    def test_a_version_that_is_not_there(self) -> None:
        """Nothing is deleted."""
        ref, nodes = self.session("ada", 2)
        newer = rewritten(ref)
        assert self.store.put(newer, ref.version)
        assert not self.store.delete("ada", ref.version)
        assert not self.store.delete("bob", ref.version)
        assert self.store.ref("ada") == newer
        assert self.store.walk(ref.family, nodes[-1].key, 0) == nodes
        assert self.store.delete("ada", newer.version)

    def test_what_a_fork_needs_stays(self) -> None:
        """And goes with the last that needs it."""
        ref, nodes = self.session("ada", 4)
        own = chain(ref.family, 2, nodes[1])
        assert self.store.put(ref_to("fork", nodes[:2] + own), None, own)
        assert self.store.delete("ada")
        assert self.keys(ref.family, nodes + own) == {node.key for node in nodes[:2] + own}
        assert self.store.walk(ref.family, own[-1].key, 0) == nodes[:2] + own
        assert self.store.delete("fork")
        assert self.keys(ref.family, nodes + own) == set()

    def test_a_session_may_reach_further_back_again(self) -> None:
        """As long as another has kept what it left."""
        ref, nodes = self.session("ada", 5)
        fork = rewritten(ref, id="fork", first=3)
        assert self.store.put(fork, None)
        self.store.vacuum()
        again = rewritten(fork, first=1)
        assert self.store.put(again, fork.version)
        assert self.store.delete("ada")
        assert self.store.walk(ref.family, nodes[-1].key, 0) == nodes[1:]

    def test_a_path_not_taken_goes(self) -> None:
        """With vacuum, or earlier."""
        ref, nodes = self.session("ada", 3)
        own = chain(ref.family, 1, nodes[0])
        newer = rewritten(ref, tip=own[0].key, head=own[0].key, end=2)
        assert self.store.put(newer, ref.version, own)
        before = self.store.totals().nodes
        assert self.store.vacuum() == before - 2
        assert self.keys(ref.family, nodes + own) == {nodes[0].key, own[0].key}
        assert self.store.vacuum() == 0
        assert self.store.ref("ada") == newer

    def test_what_is_linked_stays(self) -> None:
        """By the session, by a node, and by what is linked to."""
        family = new_key()
        old = chain(family, 4)
        links = (Span(old[3].key, 2),)
        middle = chain(family, 1, old[0], links=links)
        new = chain(family, 1, first=7, links=(Span(middle[0].key, 1),))
        for part, id in ((old, "old"), (middle, "middle")):
            assert self.store.put(ref_to(id, part), None, part)
        ref = ref_to("new", new)
        assert self.store.put(ref, None, new)
        assert self.store.delete("middle")
        assert self.store.delete("old")
        assert self.keys(family, old + middle + new) == {
            node.key for node in old[2:] + middle + new
        }
        moved = rewritten(ref, tip=None, head=None, links=links)
        assert self.store.put(moved, ref.version)
        self.store.vacuum()
        assert self.keys(family, old + middle + new) == {node.key for node in old[2:]}

    def test_what_is_shown_stays(self) -> None:
        """Older than the session's first, with what it links to: not what it shows itself."""
        family = new_key()
        beside = chain(family, 2, first=50)
        old = chain(family, 3, links=(Span(beside[1].key, 51),), low=0)
        new = chain(family, 1, old[-1], low=1)
        ref = ref_to("ada", old + new)
        assert self.store.put(ref_to("beside", beside), None, beside)
        assert self.store.put(ref, None, old + new)
        assert self.store.delete("beside")
        every = beside + old + new
        assert self.keys(family, every) == {node.key for node in every[1:]}
        trimmed = rewritten(ref, first=3)
        assert self.store.put(trimmed, ref.version)
        self.store.vacuum()
        assert self.keys(family, every) == {n.key for n in [beside[1], *old[1:], *new]}
        assert self.store.put(rewritten(trimmed, tip=None, head=None), trimmed.version)
        self.store.vacuum()
        assert self.keys(family, every) == set()

    def test_random_families(self) -> None:
        """After any number of writes, deletions and vacuums, what is needed is what is there."""
        for seed in range(6):
            walk = Walkabout(seed)
            for _ in range(40):
                chance = walk.random.random()
                if walk.refs and chance < 0.15:
                    id = walk.random.choice(list(walk.refs))
                    assert self.store.delete(id, walk.refs.pop(id).version)
                    self.only_what_is_needed(walk)
                elif chance < 0.25:
                    self.store.vacuum()
                    self.only_what_is_needed(walk)
                else:
                    ref, expected, nodes = walk.write()
                    assert self.store.put(ref, expected, nodes)
                    walk.wrote(ref, nodes)
                    assert walk.needed() <= self.keys(walk.family, walk.nodes.values())
            for id in walk.refs:
                assert self.store.delete(id)
        assert self.store.totals() == NOTHING

    def only_what_is_needed(self, walk: Walkabout) -> None:
        """Check what is there of a family after a deletion.

        Args:
            walk: The family.
        """
        kept = walk.needed()
        there = self.store.nodes(walk.family, walk.nodes)
        assert there.keys() == kept
        assert all(there[key] == walk.nodes[key] for key in kept)
        for ref in walk.refs.values():
            assert ref.tip is not None
            assert self.store.walk(ref.family, ref.tip, ref.first) == walk.line(ref)
        labelled = {node.key for node in self.store.labelled(walk.family, "all")}
        assert labelled == {key for key in kept if walk.nodes[key].label}
        walk.nodes = {key: walk.nodes[key] for key in kept}
