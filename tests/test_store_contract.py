"""Every store of this library passes the contract that it gives to others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dspy_session.stores import (
    DocumentStore,
    ListQuery,
    MemoryStore,
    Node,
    RedisStore,
    Ref,
    SQLStore,
    Totals,
)
from dspy_session.stores.tables import Tables
from dspy_session.testing import store_contract
from tests.damage import damage
from tests.documents import Dicts, Folder
from tests.streams import SOON

PLACES: dict[str, str] = {}
"""Where the running test's stores are; a factory takes no arguments."""


@pytest.fixture
def folder(tmp_path: Path) -> None:
    PLACES["folder"] = str(tmp_path)


@pytest.fixture
def postgres(postgres_url: str) -> None:
    PLACES["postgres"] = postgres_url


@pytest.fixture
def redis_place(redis_url: str) -> None:
    PLACES["redis"] = redis_url


@pytest.fixture
def cluster(cluster_url: str) -> None:
    PLACES["cluster"] = cluster_url


TestMemory = store_contract(MemoryStore, damage=damage)

TestSQLite = pytest.mark.usefixtures("folder")(
    store_contract(
        lambda: SQLStore(f"sqlite:///{PLACES['folder']}/chats.db", busy_timeout=SOON),
        reopen=lambda _: SQLStore(f"sqlite:///{PLACES['folder']}/chats.db", busy_timeout=SOON),
        damage=damage,
    )
)

TestSQLiteInMemory = store_contract(lambda: SQLStore("sqlite://"), damage=damage)

TestPostgreSQL = pytest.mark.usefixtures("postgres")(
    store_contract(
        lambda: SQLStore(PLACES["postgres"]),
        reopen=lambda _: SQLStore(PLACES["postgres"]),
        damage=damage,
    )
)

TestRedis = pytest.mark.usefixtures("redis_place")(
    store_contract(
        lambda: RedisStore(PLACES["redis"]),
        reopen=lambda _: RedisStore(PLACES["redis"]),
        damage=damage,
    )
)

TestRedisCluster = pytest.mark.usefixtures("cluster")(
    store_contract(
        lambda: RedisStore(PLACES["cluster"]),
        reopen=lambda _: RedisStore(PLACES["cluster"]),
        damage=damage,
    )
)

TestDicts = store_contract(
    lambda: DocumentStore(Dicts()),
    reopen=lambda store: DocumentStore(store.own),
    racing_handles=False,
    damage=damage,
)

TestJSONFolder = pytest.mark.usefixtures("folder")(
    store_contract(
        lambda: DocumentStore(Folder(Path(PLACES["folder"]))),
        reopen=lambda store: DocumentStore(store.own),
        racing_handles=False,
        damage=damage,
    )
)


# What the contract finds


class NoVersions(MemoryStore):
    def put(
        self,
        ref: Ref,
        expected: int | None,
        nodes: Sequence[Node] = (),
        needs: Collection[int] = (),
    ) -> bool:
        there = self.ref(ref.id)
        return super().put(ref, None if there is None else there.version, nodes, needs)


class NoNeeds(MemoryStore):
    def put(
        self,
        ref: Ref,
        expected: int | None,
        nodes: Sequence[Node] = (),
        needs: Collection[int] = (),
    ) -> bool:
        return super().put(ref, expected, nodes)


class Halves(MemoryStore):
    """Nodes come before it is known whether the ref may be written."""

    def put(
        self,
        ref: Ref,
        expected: int | None,
        nodes: Sequence[Node] = (),
        needs: Collection[int] = (),
    ) -> bool:
        with self._open() as tables:
            tables.set(Ref(id="hidden", family=ref.family, version=1), nodes)
        written = super().put(ref, expected, [], needs)
        with self._open() as tables:
            tables._refs.pop("hidden")
        return written


class Deletes(MemoryStore):
    """Deletes nodes that others need."""

    def delete(self, id: str, expected: int | None = None) -> bool:
        ref = self.ref(id)
        deleted = super().delete(id, expected)
        if deleted and ref is not None:
            with self._open() as tables:
                tables.nodes_of(ref.family).popitem()
        return deleted


class Keeps(MemoryStore):
    def delete(self, id: str, expected: int | None = None) -> bool:
        with self._open() as tables:
            ref = tables._refs.get(id)
            if ref is None or expected not in (None, ref.version):
                return False
            tables._forget(tables._refs.pop(id))
            return True


class Ascending(MemoryStore):
    def refs(self, query: ListQuery) -> list[Ref]:
        found = super().refs(msgspec.structs.replace(query, limit=None, offset=0))
        if query.order != "id":
            found.sort(key=lambda ref: ref.id)
            found.sort(key=lambda ref: getattr(ref, query.order), reverse=query.descending)
        return found[query.offset :][: query.limit]


class CutTerms(MemoryStore):
    def count(self, query: ListQuery) -> int:
        metadata = {key: str(value)[:200] for key, value in query.metadata.items()}
        return super().count(msgspec.structs.replace(query, metadata=metadata))


class Floats(MemoryStore):
    """Keeps numbers as JavaScript does."""

    def walk(self, family: int, key: int, floor: int) -> list[Node]:
        return super().walk(int(float(family)), int(float(key)), floor)


class Shares(MemoryStore):
    def ref(self, id: str) -> Ref | None:
        with self._open() as tables:
            return tables._refs.get(id)


class WholeDays(MemoryStore):
    def activity(self, since: float, until: float) -> dict[str, int]:
        return super().activity(since - 1, until + 1)


class AllTotals(MemoryStore):
    def totals(self) -> Totals:
        found = super().totals()
        return Totals(found.sessions, found.nodes, found.bytes + 1)


class Errors(MemoryStore):
    def nodes(self, family: int, keys: Collection[int]) -> dict[int, Node]:
        with self._mutex:
            assert isinstance(self._tables, Tables)
            return self._tables.nodes(family, keys)


class OtherNodes(MemoryStore):
    def replace_payloads(self, family: int, payloads: Mapping[int, bytes]) -> None:
        with self._open() as tables:
            for each in tables._families:
                tables.replace_payloads(each, payloads)


BROKEN: list[tuple[type[MemoryStore], str]] = [
    (NoVersions, "a_version_that_is_not_there_is_refused"),
    (NoNeeds, "what_a_write_needs_is_there"),
    (Halves, "a_write_on_what_is_gone_is_refused"),
    (Deletes, "what_a_fork_needs_stays"),
    (Keeps, "a_session_takes_its_nodes_along"),
    (Ascending, "orders"),
    (CutTerms, "long_values_that_begin_alike"),
    (Floats, "the_greatest_keys"),
    (Shares, "metadata_is_a_copy"),
    (WholeDays, "activity"),
    (AllTotals, "totals"),
    (Errors, "a_closed_store_says_so"),
    (OtherNodes, "families_are_apart"),
]


@pytest.mark.parametrize(("broken", "test"), BROKEN)
def test_the_contract_finds_what_is_broken(broken: type[MemoryStore], test: str) -> None:
    for kind, fails in ((MemoryStore, False), (broken, True)):
        cases: Any = store_contract(kind)()
        try:
            getattr(cases, f"test_{test}")()
        except (AssertionError, KeyError):
            assert fails
        else:
            assert not fails
        finally:
            cases.teardown_method()
