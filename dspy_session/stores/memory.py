"""A store in this process's memory: the reference for every other, and for tests."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from dspy_session.errors import StoreError
from dspy_session.stores.base import Store
from dspy_session.stores.records import ListQuery, Node, Ref, Totals
from dspy_session.stores.tables import Tables

__all__ = ["MemoryStore"]


class MemoryStore(Store):
    """Keeps sessions for as long as the process lives; nothing is written to disk.

    Several managers and threads may share one.

    Example:
        >>> with MemoryStore() as store:
        ...     store.put(Ref(id="ada", family=1, version=1), expected=None)
        ...     store.ref("ada").version
        True
        1
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._tables: Tables | None = Tables()

    def ref(self, id: str) -> Ref | None:
        """See `Store.ref`."""
        with self._open() as tables:
            return tables.ref(id)

    def put(
        self,
        ref: Ref,
        expected: int | None,
        nodes: Sequence[Node] = (),
        needs: Collection[int] = (),
    ) -> bool:
        """See `Store.put`."""
        with self._open() as tables:
            old = tables.ref(ref.id)
            if (None if old is None else old.version) != expected:
                return False
            if not tables.stands(ref, nodes, needs):
                return False
            tables.set(ref, nodes)
            return True

    def walk(self, family: int, key: int, floor: int) -> list[Node]:
        """See `Store.walk`."""
        with self._open() as tables:
            return tables.walk(family, key, floor)

    def nodes(self, family: int, keys: Collection[int]) -> dict[int, Node]:
        """See `Store.nodes`."""
        with self._open() as tables:
            return tables.nodes(family, keys)

    def labelled(self, family: int, label: str) -> list[Node]:
        """See `Store.labelled`."""
        with self._open() as tables:
            return tables.labelled(family, label)

    def delete(self, id: str, expected: int | None = None) -> bool:
        """See `Store.delete`."""
        with self._open() as tables:
            ref = tables.ref(id)
            if ref is None or expected not in (None, ref.version):
                return False
            tables.delete(id)
            return True

    def replace_payloads(self, family: int, payloads: Mapping[int, bytes]) -> None:
        """See `Store.replace_payloads`."""
        with self._open() as tables:
            tables.replace_payloads(family, payloads)

    def refs(self, query: ListQuery) -> list[Ref]:
        """See `Store.refs`."""
        with self._open() as tables:
            return tables.refs(query)

    def count(self, query: ListQuery) -> int:
        """See `Store.count`."""
        with self._open() as tables:
            return tables.count(query)

    def relatives(self, family: int) -> list[Ref]:
        """See `Store.relatives`."""
        with self._open() as tables:
            return tables.relatives(family)

    def vacuum(self) -> int:
        """See `Store.vacuum`."""
        with self._open() as tables:
            return tables.vacuum()

    def totals(self) -> Totals:
        """See `Store.totals`."""
        with self._open() as tables:
            return tables.totals()

    def activity(self, since: float, until: float) -> dict[str, int]:
        """See `Store.activity`."""
        with self._open() as tables:
            return tables.activity(since, until)

    def close(self) -> None:
        """Forget everything."""
        with self._mutex:
            self._tables = None

    @contextmanager
    def _open(self) -> Iterator[Tables]:
        with self._mutex:
            if self._tables is None:
                raise StoreError("This store is closed, and what it held is gone: make another.")
            yield self._tables
