"""A store on a Redis server or cluster, through redis-py.

What is one change runs as one script; `dspy_session.stores.redis_scripts` says what is stored, and
`dspy_session.stores.redis_sessions` what a crash may leave behind in a cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dspy_session.errors import OptionError, StoreError
from dspy_session.stores.base import Store
from dspy_session.stores.records import ListQuery, Node, Ref, Totals, day_of, has_metadata, term_of
from dspy_session.stores.redis_catalogue import Place
from dspy_session.stores.redis_client import RedisClient
from dspy_session.stores.redis_families import Write
from dspy_session.stores.redis_records import key_bytes
from dspy_session.stores.redis_sessions import ATTEMPTS, Sessions, named

if TYPE_CHECKING:
    import redis
    from redis.cluster import RedisCluster

__all__ = ["RedisStore"]


class RedisStore(Store):
    """Keeps sessions on a Redis server or cluster, 6.2 or newer; needs the extra `redis`.

    Several processes may use one server; each opens a store of its own, or inherits one by forking.

    How durable a write is, is up to the server: with `appendonly yes` and `appendfsync always` it
    survives a loss of power, with `everysec` (what Redis does by default when it appends) the last
    second may be lost, and without any the sessions end with the server. A failover may lose writes
    that no replica has yet. Set `maxmemory-policy noeviction`: a cache may forget, this must not.

    Args:
        url_or_client: `"redis://:password@host:6379/0"`, also `rediss://` and `unix://`; or a
            `redis.Redis` or `redis.cluster.RedisCluster` with `decode_responses=False`. A client is
            not closed with the store.
        prefix: What all keys begin with. Stores with different prefixes do not know of each other.
        timeout: For how many seconds to wait for an answer; a client has its own.

    Raises:
        OptionError: The URL is none, or an option has a value it cannot have.
        StoreError: The server cannot be reached, or what is stored there is somebody else's.
    """

    def __init__(
        self,
        url_or_client: str | redis.Redis | RedisCluster,
        *,
        prefix: str = "dspy-session",
        timeout: float = 10.0,
    ) -> None:
        if not prefix or "{" in prefix or "}" in prefix:
            raise OptionError(f"expected a prefix without braces, not {prefix!r}")
        self._prefix = prefix
        self._server = RedisClient(url_or_client, timeout)
        self._sessions = Sessions(self._server, prefix)
        self._catalogue = self._sessions.catalogue
        self._families = self._sessions.families
        try:
            with self._server.asking():
                self._catalogue.check_format()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"RedisStore({self._server!r}, prefix={self._prefix!r})"

    def ref(self, id: str) -> Ref | None:
        """See `Store.ref`."""
        with self._server.asking():
            for place in self._sessions.candidates(id):
                (found,) = self._families.refs([place])
                if found is not None:
                    return named(found, id.encode(), place)
        return None

    def put(
        self,
        ref: Ref,
        expected: int | None,
        nodes: Sequence[Node] = (),
        needs: Collection[int] = (),
    ) -> bool:
        """See `Store.put`."""
        write = Write(ref, expected, nodes, needs)
        with self._server.asking():
            if expected is None:
                place = Place(ref.family, key_bytes(ref.version))
                written = self._sessions.write(place, write)
                if written:
                    self._sessions.remember(ref.id, place)
                return written
            return any(
                place.family == ref.family and self._sessions.write(place, write)
                for place in self._sessions.candidates(ref.id)
            )

    def walk(self, family: int, key: int, floor: int) -> list[Node]:
        """See `Store.walk`."""
        with self._server.asking():
            return self._families.walk(family, key, floor)[::-1]

    def nodes(self, family: int, keys: Collection[int]) -> dict[int, Node]:
        """See `Store.nodes`."""
        with self._server.asking():
            return self._families.nodes(family, keys)

    def labelled(self, family: int, label: str) -> list[Node]:
        """See `Store.labelled`."""
        with self._server.asking():
            keys = self._families.labelled(family, label)
            nodes = self._families.nodes(family, keys)
        return [nodes[key] for key in keys if key in nodes]

    def delete(self, id: str, expected: int | None = None) -> bool:
        """See `Store.delete`."""
        with self._server.asking():
            for _ in range(ATTEMPTS):
                place = self._sessions.look_up(id)
                if place is None:
                    return False
                state = self._families.state(place.family)
                ref = state.refs.get(place.birth)
                if ref is None:
                    self._sessions.mend(
                        id.encode()
                    )  # another was quicker, or crashed when half done
                elif expected not in (None, ref.version):
                    return False
                elif self._sessions.remove(id, state, place):
                    return True
        raise StoreError(
            f"{self._server!r}: others wrote to the family of this session all the time, so "
            "nothing was deleted: try again"
        )

    def replace_payloads(self, family: int, payloads: Mapping[int, bytes]) -> None:
        """See `Store.replace_payloads`."""
        with self._server.asking():
            self._families.replace(family, payloads)

    def refs(self, query: ListQuery) -> list[Ref]:
        """See `Store.refs`."""
        if query.limit is not None and query.limit <= 0:
            return []
        with self._server.asking():
            if query.metadata:
                stop = None if query.limit is None else query.offset + query.limit
                return _ordered(self._matching(query.metadata), query)[query.offset : stop]
            found, stale = self._sessions.entered(self._catalogue.page(query))
            if stale:  # rare: something was written just now, or somebody crashed
                for id in stale:
                    self._sessions.mend(id)
                found, _ = self._sessions.entered(self._catalogue.page(query))
            return _ordered(found, query)

    def count(self, query: ListQuery) -> int:
        """See `Store.count`."""
        with self._server.asking():
            if query.metadata:
                return len(self._matching(query.metadata))
            return self._catalogue.count()

    def relatives(self, family: int) -> list[Ref]:
        """See `Store.relatives`."""
        with self._server.asking():
            state = self._families.state(family)
            entered = self._sessions.entered_of(state)
        found = [
            named(ref, entered[place], place)
            for birth, ref in state.refs.items()
            if (place := Place(family, birth)) in entered
        ]
        return sorted(found, key=lambda ref: ref.id)

    def vacuum(self) -> int:
        """Delete what no ref reaches, and repair the catalogue; see `Store.vacuum`."""
        with self._server.asking():
            self._sessions.mend_all()
            return sum(self._sessions.clean(family) for family in self._families.stored())

    def totals(self) -> Totals:
        """See `Store.totals`."""
        with self._server.asking():
            entries = dict(self._catalogue.every())
            families = {entry.place.family for entry in entries.values()}
            sizes = list(self._families.sizes(families))
        return Totals(len(entries), sum(size[0] for size in sizes), sum(size[1] for size in sizes))

    def activity(self, since: float, until: float) -> dict[str, int]:
        """See `Store.activity`; it looks at each node."""
        days: Counter[str] = Counter()
        with self._server.asking():
            for family in {entry.place.family for _, entry in self._catalogue.every()}:
                nodes, _ = self._families.skeleton(family)
                times = [node.time for node in nodes.values()]
                days.update(day_of(time) for time in times if time and since <= time < until)
        return dict(sorted(days.items()))

    def close(self) -> None:
        """Give back the connections; see `Store.close`."""
        self._server.close()

    def _matching(self, wanted: Mapping[str, Any]) -> list[Ref]:
        terms = [(name, term_of(value)) for name, value in wanted.items()]
        found, _ = self._sessions.entered(self._catalogue.having(terms))
        return [ref for ref in found if has_metadata(ref.metadata, wanted)]


def _ordered(refs: Iterable[Ref], query: ListQuery) -> list[Ref]:
    return sorted(
        refs,
        key=lambda ref: (0 if query.order == "id" else getattr(ref, query.order), ref.id),
        reverse=query.descending,
    )
