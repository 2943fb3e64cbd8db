"""From nodes to the turns that they hold, as they are stored: back along a chain, piece by piece.

A long chain is read in pieces, so that the memory of one piece's payloads serves the next, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain, pairwise
from typing import Final

import msgspec

from dspy_session.errors import FormatError, StoreError
from dspy_session.journal.chains import Mark
from dspy_session.journal.decoding import damaged
from dspy_session.journal.payloads import StoredSeed, StoredTurn, about_node, all_opened, opened
from dspy_session.journal.sealing import Seal
from dspy_session.stores.base import Store
from dspy_session.stores.records import Node

__all__ = ["Steps", "Walk"]

_PIECE: Final = 500
"""How many nodes are read at a time."""


class Steps(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Turns that follow each other, as they are stored; the oldest first.

    Attributes:
        parent: The key of the node before them; None if there is none.
        depth: The index of the first.
        marks: Where each of them is.
        rows: What each of them is.
    """

    parent: int | None
    depth: int
    marks: list[Mark]
    rows: list[StoredTurn]

    def followed_by(self, later: Steps) -> Steps:
        """Return these, and those that come next.

        Args:
            later: Those.
        """
        return Steps(self.parent, self.depth, self.marks + later.marks, self.rows + later.rows)

    def oldest_seen(self, first: int) -> int:
        """Return the index of the oldest turn of their own chain that one of them saw.

        Args:
            first: What to return if they saw none that is older.
        """
        own = (
            row.start
            for depth, row in enumerate(self.rows, self.depth)
            if row.lane is None and row.start < depth - row.unseen
        )
        return min(first, min(own, default=first))


class Walk:
    """Reads the nodes of one family.

    Args:
        store: The store.
        family: The family.
        seal: As of the writer.
    """

    def __init__(self, store: Store, family: int, seal: Seal) -> None:
        self._store, self._family, self._seal = store, family, seal

    def steps(self, key: int | None, floor: int, stop: int) -> Steps:
        """Return turns of a chain.

        Args:
            key: The key of a node at or after the end.
            floor: The index of the first.
            stop: The index after the last.

        Raises:
            FormatError: One of them is damaged, or does not follow the one before it.
            SecretError: They cannot be read with this key.
            StoreError: They are not there any more.
        """
        pieces = [self._steps(nodes) for nodes in self._pieces(key, floor, stop)]
        if not pieces:
            return Steps(key, stop, [], [])
        oldest = pieces[-1]
        return Steps(
            oldest.parent,
            oldest.depth,
            list(chain.from_iterable(piece.marks for piece in reversed(pieces))),
            list(chain.from_iterable(piece.rows for piece in reversed(pieces))),
        )

    def marks(self, key: int | None, floor: int, stop: int) -> list[Mark]:
        """Return where turns of a chain are, although one of them is damaged.

        Args:
            key: As in `steps`.
            floor: As in `steps`.
            stop: As in `steps`.

        Raises:
            FormatError: As in `steps`, but for what a node holds.
            StoreError: As in `steps`.
        """
        pieces = list(self._pieces(key, floor, stop))
        return [_mark(node, self._like(node)) for nodes in reversed(pieces) for node in nodes]

    def rows(self, keys: Collection[int]) -> dict[int, StoredTurn]:
        """Return turns by the keys of their nodes, those that are there.

        Args:
            keys: The keys.

        Raises:
            FormatError: One of them is damaged.
        """
        found = self._store.nodes(self._family, keys) if keys else {}
        return {key: self.row(node) for key, node in found.items()}

    def row(self, node: Node) -> StoredTurn:
        """Return the turn that a node holds.

        Args:
            node: The node.

        Raises:
            FormatError: It is damaged.
            SecretError: It cannot be read with this key.
        """
        try:
            return opened(StoredTurn, node.payload, self._seal, about_node(node.key))
        except FormatError as error:
            raise damaged(node.depth, error) from error

    def seed(self, key: int) -> StoredSeed:
        """Return the seed that a node holds.

        Args:
            key: The node's key.

        Raises:
            FormatError: It is damaged, or not there.
        """
        node = self._store.nodes(self._family, [key]).get(key)
        if node is None:
            raise FormatError("the seed of this conversation is not in the store")
        return opened(StoredSeed, node.payload, self._seal, about_node(key))

    def _pieces(self, key: int | None, floor: int, stop: int) -> Iterator[list[Node]]:
        """The nodes from a depth up to another: the last ones first, each piece in their order."""
        later: list[Node] = []
        end = stop
        while end > floor:
            begin = max(floor, end - _PIECE)
            nodes = [] if key is None else self._store.walk(self._family, key, begin)
            if nodes and nodes[-1].depth >= end:
                nodes = [node for node in nodes if node.depth < end]
            for one, other in pairwise([*nodes, *later]):
                if other.parent != one.key or other.depth != one.depth + 1:
                    raise damaged(other.depth, ValueError("it does not follow the turn before it"))
            if len(nodes) != end - begin:
                raise StoreError(
                    f"The turns {floor} to {stop - 1} of this conversation are not in the store "
                    "any more: the session was deleted or trimmed meanwhile. Open it again; if "
                    "that does not help, verify() says what is missing."
                )
            yield nodes
            later = nodes[:1]
            key, end = nodes[0].parent, begin

    def _steps(self, nodes: list[Node]) -> Steps:
        try:
            rows = all_opened(nodes, self._seal)
        except FormatError:
            rows = [self.row(node) for node in nodes]  # which names the one that is damaged
        marks = [_mark(node, row.like) for node, row in zip(nodes, rows, strict=True)]
        return Steps(nodes[0].parent, nodes[0].depth, marks, rows)

    def _like(self, node: Node) -> int | None:
        try:
            return self.row(node).like
        except FormatError:
            return None


def _mark(node: Node, like: int | None) -> Mark:
    content = node.key if like is None else like
    return Mark(node.key, content, node.digest, node.total, node.base)
