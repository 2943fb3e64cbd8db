"""Refs and nodes as plain dicts, with the indexes that a store has: for one thread at a time.

`MemoryStore` keeps its sessions in one; `DocumentStore` reads its documents into one, to look
something up. Nothing here checks a version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from dspy_session.errors import FormatError
from dspy_session.stores.reach import Bone, note_kept, unreached
from dspy_session.stores.records import (
    ListQuery,
    Node,
    Ref,
    Totals,
    day_of,
    has_metadata,
    metadata_terms,
    term_of,
)

__all__ = ["Tables", "detached", "reached"]


class _Family:
    """The nodes of one family, an index of their labels, and the ids of its refs."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.labels: dict[str, set[int]] = {}
        self.refs: set[str] = set()

    def add(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            self.nodes[node.key] = node
            if node.label is not None:
                self.labels.setdefault(node.label, set()).add(node.key)

    def remove(self, keys: Iterable[int]) -> None:
        for key in keys:
            label = self.nodes.pop(key).label
            if label is not None:
                self.labels[label].discard(key)
                if not self.labels[label]:
                    del self.labels[label]


class Tables:
    """Every method does what the one of `Store` does that has its name."""

    def __init__(self) -> None:
        self._refs: dict[str, Ref] = {}
        self._families: dict[int, _Family] = {}
        self._terms: dict[tuple[str, str], set[str]] = {}

    def ref(self, id: str) -> Ref | None:
        """See `Store.ref`."""
        found = self._refs.get(id)
        return None if found is None else detached(found)

    def stands(self, ref: Ref, nodes: Sequence[Node], needs: Collection[int] = ()) -> bool:
        """Whether all that a write builds on is there, or is written with it.

        Args:
            ref: The ref.
            nodes: The nodes.
            needs: The keys of other nodes that must be there.
        """
        there = self.nodes_of(ref.family)
        added: set[int] = set()
        for node in nodes:
            if node.parent is not None and node.parent not in added and node.parent not in there:
                return False
            added.add(node.key)
        tips = () if ref.tip is None or ref.tip in added else (ref.tip,)
        return all(key in there for key in (*tips, *needs))

    def set(self, ref: Ref, nodes: Iterable[Node] = ()) -> None:
        """Add nodes, and set a ref.

        Args:
            ref: The ref.
            nodes: The nodes.
        """
        new, old = detached(ref), self._refs.get(ref.id)
        if old is not None:
            self._forget(old)
        family = self._families.setdefault(new.family, _Family())
        family.add(nodes)
        family.refs.add(new.id)
        self._refs[new.id] = new
        for term in metadata_terms(new.metadata):
            self._terms.setdefault(term, set()).add(new.id)

    def delete(self, id: str) -> None:
        """Delete a ref that is there, and what no other reaches.

        Args:
            id: The session's id.
        """
        ref = self._refs.pop(id)
        self._forget(ref)
        self._clean(ref.family)

    def walk(self, family: int, key: int, floor: int) -> list[Node]:
        """See `Store.walk`."""
        nodes = self.nodes_of(family)
        found: list[Node] = []
        node = nodes.get(key)
        while node is not None and node.depth >= floor:
            found.append(node)
            before = None if node.parent is None else nodes.get(node.parent)
            node = before if before is not None and before.depth < node.depth else None
        return found[::-1]

    def nodes(self, family: int, keys: Collection[int]) -> dict[int, Node]:
        """See `Store.nodes`."""
        nodes = self.nodes_of(family)
        return {key: nodes[key] for key in keys if key in nodes}

    def nodes_of(self, family: int) -> dict[int, Node]:
        """Return all nodes of a family, by key.

        Args:
            family: The family.
        """
        held = self._families.get(family)
        return {} if held is None else held.nodes

    def labelled(self, family: int, label: str) -> list[Node]:
        """See `Store.labelled`."""
        held = self._families.get(family) or _Family()
        return [held.nodes[key] for key in sorted(held.labels.get(label, ()), reverse=True)]

    def replace_payloads(self, family: int, payloads: Mapping[int, bytes]) -> None:
        """See `Store.replace_payloads`."""
        nodes = self.nodes_of(family)
        for key in payloads.keys() & nodes.keys():
            nodes[key] = msgspec.structs.replace(nodes[key], payload=payloads[key])

    def refs(self, query: ListQuery) -> list[Ref]:
        """See `Store.refs`."""
        found = sorted(
            self._matching(query.metadata),
            key=lambda ref: (0.0 if query.order == "id" else getattr(ref, query.order), ref.id),
            reverse=query.descending,
        )
        limit = len(found) if query.limit is None else query.limit
        return [detached(ref) for ref in found[query.offset : query.offset + limit]]

    def count(self, query: ListQuery) -> int:
        """See `Store.count`."""
        return sum(1 for _ in self._matching(query.metadata))

    def relatives(self, family: int) -> list[Ref]:
        """See `Store.relatives`."""
        held = self._families.get(family) or _Family()
        return [detached(self._refs[id]) for id in sorted(held.refs)]

    def vacuum(self) -> int:
        """See `Store.vacuum`."""
        return sum(self._clean(family) for family in list(self._families))

    def totals(self) -> Totals:
        """See `Store.totals`."""
        payloads = [len(node.payload) for node in self._all_nodes()]
        bodies = sum(len(ref.body) for ref in self._refs.values())
        return Totals(len(self._refs), len(payloads), sum(payloads) + bodies)

    def activity(self, since: float, until: float) -> dict[str, int]:
        """See `Store.activity`."""
        days = Counter(
            day_of(node.time)
            for node in self._all_nodes()
            if node.time and since <= node.time < until
        )
        return dict(sorted(days.items()))

    def _all_nodes(self) -> Iterator[Node]:
        return (node for held in self._families.values() for node in held.nodes.values())

    def _matching(self, wanted: Mapping[str, Any]) -> Iterator[Ref]:
        """All refs that have some metadata, found by the rarest of its terms."""
        ids: Collection[str] = self._refs.keys()
        if wanted:
            found = [self._terms.get((name, term_of(value)), ()) for name, value in wanted.items()]
            ids = min(found, key=len)
        refs = (self._refs[id] for id in ids)
        return (ref for ref in refs if has_metadata(ref.metadata, wanted))

    def _forget(self, ref: Ref) -> None:
        """Take a ref out of the indexes."""
        self._families[ref.family].refs.discard(ref.id)
        for term in metadata_terms(ref.metadata):
            self._terms[term].discard(ref.id)
            if not self._terms[term]:
                del self._terms[term]

    def _clean(self, family: int) -> int:
        """Delete the nodes of a family that no ref reaches; return how many there were."""
        held = self._families[family]
        try:
            stay = reached((self._refs[id] for id in held.refs), held.nodes)
        except FormatError as error:
            note_kept(error)
            return 0
        gone = held.nodes.keys() - stay
        held.remove(gone)
        if not held.refs:
            del self._families[family]
        return len(gone)


def reached(refs: Iterable[Ref], nodes: Mapping[int, Node]) -> set[int]:
    """Return the keys of the nodes that refs reach.

    Args:
        refs: The refs.
        nodes: The nodes of their family, by key.

    Raises:
        FormatError: It cannot be known, for something is damaged.
    """
    bones = {n.key: Bone(n.key, n.parent, n.depth, n.low, n.links) for n in nodes.values()}
    return nodes.keys() - unreached(refs, bones)


def detached(ref: Ref) -> Ref:
    """Return the ref with metadata of its own, which nobody else can change.

    Args:
        ref: The ref.
    """
    if not ref.metadata:
        return ref
    metadata = msgspec.json.decode(msgspec.json.encode(ref.metadata))
    return msgspec.structs.replace(ref, metadata=metadata)
