"""What every store can do. `dspy_session.testing` has the contract that all of them pass."""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Self

from dspy_session.stores.records import ListQuery, Node, Ref, Totals

__all__ = ["Store"]


class Store(abc.ABC):
    """Keeps nodes and refs.

    Rules that every store keeps:

    - A write is atomic and durable: when `put` returned True, nodes and ref are there whatever
      happens; otherwise nothing of it is.
    - A ref changes only from the version that its writer has seen.
    - A node that a ref reaches is there, and stays what it is; see `dspy_session.stores.reach`.
    - Any thread may call any method at any time. No method calls back.
    - Each error is a `StoreError` with the driver's as its cause.
    - What is damaged is in the way of nothing else. A session whose ref cannot be read is listed,
      and can be deleted. A node that cannot be read is a `FormatError` of who asks for it. While it
      is not known what a session of a family reaches, no node of the family is deleted, and a
      warning in the log says so.
    """

    @abc.abstractmethod
    def ref(self, id: str) -> Ref | None:
        """Return the ref of that id, or None; a `DamagedRef` if it cannot be read.

        Args:
            id: A session's id.
        """

    @abc.abstractmethod
    def put(
        self,
        ref: Ref,
        expected: int | None,
        nodes: Sequence[Node] = (),
        needs: Collection[int] = (),
    ) -> bool:
        """Add nodes and set a ref, all of it or nothing.

        Args:
            ref: The ref as it is to be.
            expected: The version that the ref must have now; None if there must be none yet. A ref
                that is there keeps its family.
            nodes: New nodes, each after its parent.
            needs: The keys of other nodes of the family that must be there.

        Returns:
            Whether it was written. Not, if the version is another, or if a node is gone that is
            built on: the ref's tip, the parent of a node, one of `needs`.
        """

    @abc.abstractmethod
    def walk(self, family: int, key: int, floor: int) -> list[Node]:
        """Return a stretch of a chain, the oldest node first; it costs what is returned.

        Args:
            family: The family.
            key: The key of the last node.
            floor: The depth of the first node. If one on the way is gone, those after it are
                returned.
        """

    @abc.abstractmethod
    def nodes(self, family: int, keys: Collection[int]) -> dict[int, Node]:
        """Return nodes by their keys; those that are gone are left out.

        Args:
            family: The family.
            keys: Any number of keys.
        """

    @abc.abstractmethod
    def labelled(self, family: int, label: str) -> list[Node]:
        """Return the nodes with a label, through an index, the newest first.

        Args:
            family: The family.
            label: The label.
        """

    @abc.abstractmethod
    def delete(self, id: str, expected: int | None = None) -> bool:
        """Delete a ref, and all nodes of its family that no other ref reaches.

        Args:
            id: The session's id.
            expected: The version that the ref must have; None for any.

        Returns:
            Whether there was such a ref.
        """

    @abc.abstractmethod
    def replace_payloads(self, family: int, payloads: Mapping[int, bytes]) -> None:
        """Give nodes other payloads, all of them or none: the one thing that changes a node.

        `total` and digests stay as they are.

        Args:
            family: The family.
            payloads: Payloads by key; keys of nodes that are gone are passed over.
        """

    @abc.abstractmethod
    def refs(self, query: ListQuery) -> list[Ref]:
        """Return refs, without reading nodes; by metadata through an index.

        Args:
            query: Which, and in which order. One that is damaged may be found by metadata or not,
                and may be at any place.
        """

    @abc.abstractmethod
    def count(self, query: ListQuery) -> int:
        """Return how many refs a query finds, its limit and offset left aside.

        Args:
            query: The query.
        """

    @abc.abstractmethod
    def relatives(self, family: int) -> list[Ref]:
        """Return all refs of a family, in the order of their ids.

        Args:
            family: The family.
        """

    @abc.abstractmethod
    def vacuum(self) -> int:
        """Delete all that no ref reaches: paths not taken, what a crash left behind.

        Returns:
            How many nodes were deleted.
        """

    @abc.abstractmethod
    def totals(self) -> Totals:
        """Return how much the store holds."""

    @abc.abstractmethod
    def activity(self, since: float, until: float) -> dict[str, int]:
        """Return how many nodes of turns (those with a time) were made on each day, in UTC.

        Args:
            since: From when on, in seconds since the epoch.
            until: Up to when, exclusive.

        Returns:
            Counts by day (`"2026-11-21"`), in their order; days without any are left out.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Give back connections and files; whatever is asked then is a `StoreError`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
