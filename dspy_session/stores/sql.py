"""Stores in SQLite files and PostgreSQL databases, through SQLAlchemy Core.

- Each connection commits every statement by itself; a write says BEGIN and COMMIT.
- SQLite has one writer at a time, from BEGIN IMMEDIATE on. A file is in WAL mode and synchronised
  with the disk at each commit: what was acknowledged survives a loss of power.
- In PostgreSQL a write holds the row of its ref, which it takes by changing it. Whatever deletes
  nodes holds the rows of all refs of the family, and a lock that keeps new ones out.
- No write is tried again from here: whoever asked for it compares versions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec
import sqlalchemy as sa

from dspy_session.errors import FormatError
from dspy_session.stores import sql_schema
from dspy_session.stores.base import Store
from dspy_session.stores.reach import note_kept, unknown, unreached
from dspy_session.stores.records import (
    DamagedRef,
    ListQuery,
    Node,
    Ref,
    Totals,
    day_of,
    has_metadata,
)
from dspy_session.stores.sql_database import Database
from dspy_session.stores.sql_errors import read_url, shown_url
from dspy_session.stores.sql_rows import (
    bones,
    label_bytes,
    node_values,
    nodes_of,
    ref_values,
    refs_of,
    terms_of,
    wanted_terms,
)
from dspy_session.stores.sql_statements import Statement, Statements, cut_label

__all__ = ["SQLStore"]


class SQLStore(Store):
    """Keeps sessions in a SQLite file or a PostgreSQL database.

    Tables are made when there are none, and brought forward when they are of an older version.
    Several processes may use one database; each opens a store of its own.

    Args:
        url: `"sqlite:///chats.db"`, `"sqlite://"` (in memory, gone when closed), or
            `"postgresql://user:password@host/database"`, which needs the extra `postgres`.
        pool_size: How many connections there may be; who needs one more waits.
        busy_timeout: For how many seconds to wait while somebody else holds a lock.
        connect_args: More for the driver's `connect`, for example `{"prepare_threshold": None}`
            behind a pooler that cannot prepare statements.

    Raises:
        OptionError: The URL is none, or an option has a value it cannot have.
        StoreError: The database cannot be opened, or is somebody else's.

    Example:
        >>> from dspy_session.stores.records import Ref
        >>> with SQLStore("sqlite://") as store:
        ...     store.put(Ref(id="ada", family=1, version=1), expected=None)
        ...     store.ref("ada").version
        True
        1
    """

    def __init__(
        self,
        url: str | sa.URL,
        *,
        pool_size: int = 5,
        busy_timeout: float = 5.0,
        connect_args: Mapping[str, Any] | None = None,
    ) -> None:
        self._database = Database(read_url(url), pool_size, busy_timeout, connect_args or {})
        self._connected = self._database.connected
        self._statements = Statements(self._database.dialect)
        self._sqlite = self._database.dialect.name == "sqlite"
        self._begin = "BEGIN IMMEDIATE" if self._sqlite else "BEGIN ISOLATION LEVEL READ COMMITTED"
        self._database.set_up(lambda connection: sql_schema.prepare(connection, busy_timeout))

    def __repr__(self) -> str:
        return f"SQLStore({shown_url(self._database.url)!r})"

    def ref(self, id: str) -> Ref | None:
        """See `Store.ref`."""
        with self._connected() as connection:
            found = self._statements.ref.rows(connection, id=id)
        return refs_of(found)[0] if found else None

    def put(
        self,
        ref: Ref,
        expected: int | None,
        nodes: Sequence[Node] = (),
        needs: Collection[int] = (),
    ) -> bool:
        """See `Store.put`."""
        values, rows = ref_values(ref), [node_values(node) for node in nodes]
        needed = _needed(ref, nodes, needs)
        with self._connected() as connection:
            connection.execute(self._begin)
            done = self._move_ref(connection, values, expected, needed) or (
                self._set_ref(connection, ref, values, expected)
                and self._stand(connection, ref.family, needed)
            )
            if done and rows:
                self._statements.add_nodes.run_many(connection, rows)
            connection.execute("COMMIT" if done else "ROLLBACK")
        return done

    def walk(self, family: int, key: int, floor: int) -> list[Node]:
        """See `Store.walk`."""
        with self._connected() as connection:
            found = self._statements.walk.rows(connection, family=family, key=key, floor=floor)
        return sorted(nodes_of(found), key=attrgetter("depth"))

    def nodes(self, family: int, keys: Collection[int]) -> dict[int, Node]:
        """See `Store.nodes`."""
        with self._connected() as connection:
            rows = self._statements.nodes.rows(connection, family=family, keys=self._listed(keys))
        return {node.key: node for node in nodes_of(rows)}

    def labelled(self, family: int, label: str) -> list[Node]:
        """See `Store.labelled`."""
        sought = label_bytes(label)
        with self._connected() as connection:
            return nodes_of(
                self._statements.labelled.rows(
                    connection, family=family, label=sought, cut=cut_label(sought)
                )
            )

    def delete(self, id: str, expected: int | None = None) -> bool:
        """See `Store.delete`."""
        with self._connected() as connection:
            seen = None
            while found := refs_of(self._statements.ref.rows(connection, id=id)):
                family = found[0].family
                connection.execute(self._begin)
                held = {ref.id: ref for ref in self._lock_family(connection, family)}
                known, ref = id in held, held.pop(id, None)
                if not known and (not family or found == seen):
                    (ref,) = found  # its family cannot be read, or is not in the index
                if ref is not None and expected in (None, ref.version):
                    self._statements.delete_terms.run(connection, {"id": id})
                    self._statements.delete_ref.run(connection, {"id": id})
                    if known:
                        self._sweep(connection, family, held.values())
                    connection.execute("COMMIT")
                    return True
                connection.execute("ROLLBACK")
                if ref is not None:
                    return False
                seen = found  # or somebody made it anew in between, in another family
        return False

    def replace_payloads(self, family: int, payloads: Mapping[int, bytes]) -> None:
        """See `Store.replace_payloads`."""
        rows = [
            {"key": key, "family": family, "payload": payloads[key]} for key in sorted(payloads)
        ]
        if rows:
            with self._connected() as connection:
                connection.execute(self._begin)
                self._statements.replace_payload.run_many(connection, rows)
                connection.execute("COMMIT")

    def refs(self, query: ListQuery) -> list[Ref]:
        """See `Store.refs`."""
        column, id = sql_schema.refs.c[query.order], sql_schema.refs.c.id
        where, exact = _where(query.metadata)
        statement = sa.select(sql_schema.refs).where(*where)
        for each in [column] if query.order == "id" else [column, id]:
            statement = statement.order_by(each.desc() if query.descending else each)
        if exact:
            statement = statement.offset(query.offset).limit(query.limit)
            return refs_of(self._selected(statement))
        found = self._matching(statement, query)
        return found[query.offset :][: query.limit]

    def count(self, query: ListQuery) -> int:
        """See `Store.count`."""
        where, exact = _where(query.metadata)
        if not exact:
            return len(self._matching(sa.select(sql_schema.refs).where(*where), query))
        counted = sa.select(sa.func.count()).select_from(sql_schema.refs).where(*where)
        return int(self._selected(counted)[0][0])

    def relatives(self, family: int) -> list[Ref]:
        """See `Store.relatives`."""
        with self._connected() as connection:
            return refs_of(self._statements.relatives.rows(connection, family=family))

    def vacuum(self) -> int:
        """See `Store.vacuum`; one transaction for each family, and a SQLite file gets smaller."""
        deleted = 0
        with self._connected() as connection:
            for (family,) in self._families(connection):
                connection.execute(self._begin)
                kept = self._lock_family(connection, family)
                deleted += self._sweep(connection, family, kept)
                connection.execute("COMMIT")
            if self._sqlite:
                sql_schema.shrink(connection)
        return deleted

    def totals(self) -> Totals:
        """See `Store.totals`; it looks at every row."""
        with self._connected() as connection:
            sessions, bodies = self._statements.sessions.rows(connection)[0]
            count, payloads = self._statements.payloads.rows(connection)[0]
        return Totals(sessions, count, int(bodies or 0) + int(payloads or 0))

    def activity(self, since: float, until: float) -> dict[str, int]:
        """See `Store.activity`; it looks at every entry of an index."""
        with self._connected() as connection:
            rows = self._statements.activity.rows(connection, since=since, until=until)
        return {day_of(86_400.0 * day): count for day, count in rows}

    def close(self) -> None:
        """See `Store.close`."""
        self._database.close()

    # Writing

    def _move_ref(
        self,
        connection: Any,
        values: dict[str, Any],
        expected: int | None,
        needed: Collection[int],
    ) -> bool:
        """Change a ref that goes on from where it was, its metadata as it was: most writes do."""
        if expected is None or len(needed) > 1:
            return False
        moved = {**values, "expected": expected, "needed": next(iter(needed), None)}
        return bool(self._statements.move_ref.run(connection, moved))

    def _set_ref(
        self, connection: Any, ref: Ref, values: dict[str, Any], expected: int | None
    ) -> bool:
        """Make the ref, or change it from its version, and what finds it by its metadata."""
        run = self._statements
        if expected is None:
            if not self._sqlite:
                run.share_family.rows(connection, family=ref.family)
            if not run.add_ref.run(connection, values):
                return False
        else:
            if not run.set_ref.run(connection, {**values, "expected": expected}):
                return False
            run.delete_terms.run(connection, {"id": ref.id})
        if terms := terms_of(ref.id, ref.metadata):
            run.add_terms.run_many(connection, terms)
        return True

    def _stand(self, connection: Any, family: int, needed: Collection[int]) -> bool:
        """Whether all that a write builds on is there."""
        return not needed or len(needed) == len(
            self._statements.present.rows(connection, family=family, keys=self._listed(needed))
        )

    # Deleting

    def _lock_family(self, connection: Any, family: int) -> list[Ref]:
        """Keep everybody else from changing what a family's refs reach; return these."""
        if not self._sqlite:
            self._statements.lock_family.rows(connection, family=family)
        return refs_of(self._statements.lock_refs.rows(connection, family=family))

    def _families(self, connection: Any) -> list[tuple[int]]:
        """The families to vacuum: none while it is not known of which family a session is."""
        for ref in refs_of(self._statements.strays.rows(connection)):
            if isinstance(ref, DamagedRef) or ref.tip is not None or ref.links:
                note_kept(unknown(f"session {ref.id!r} is damaged"))
                return []
        return self._statements.families.rows(connection)

    def _sweep(self, connection: Any, family: int, kept: Collection[Ref]) -> int:
        """Delete the nodes that no ref reaches."""
        run = self._statements
        if not kept:
            return run.delete_family.run(connection, {"family": family})
        try:
            gone = unreached(kept, bones(run.bones.rows(connection, family=family)))
        except FormatError as error:
            note_kept(error)
            return 0
        if gone:
            run.delete_node.run_many(connection, [{"key": key} for key in sorted(gone)])
        return len(gone)

    # Reading

    def _listed(self, keys: Collection[int]) -> Any:
        """Keys as the one parameter that they are."""
        return msgspec.json.encode(list(keys)).decode() if self._sqlite else list(keys)

    def _selected(self, statement: sa.Select[Any]) -> list[tuple[Any, ...]]:
        """The rows of a statement that is made for this once."""
        with self._connected() as connection:
            return Statement(statement, self._database.dialect).rows(connection)

    def _matching(self, statement: sa.Select[Any], query: ListQuery) -> list[Ref]:
        """Those refs of a selection that have the metadata."""
        found = refs_of(self._selected(statement))
        return [ref for ref in found if has_metadata(ref.metadata, query.metadata)]


def _needed(ref: Ref, nodes: Sequence[Node], needs: Collection[int]) -> set[int]:
    """The keys of the nodes that a write builds on, and does not bring along."""
    needed, added = set(needs), set[int]()
    for node in nodes:
        if node.parent is not None and node.parent not in added:
            needed.add(node.parent)
        added.add(node.key)
    if ref.tip is not None and ref.tip not in added:
        needed.add(ref.tip)
    return needed


def _where(metadata: Mapping[str, Any]) -> tuple[list[sa.ColumnElement[bool]], bool]:
    """Conditions that refs with some metadata meet, and whether only these meet them."""
    wanted, exact = wanted_terms(metadata)
    table = sql_schema.terms.c
    return [
        sql_schema.refs.c.id.in_(sa.select(table.session).where(table.term == term))
        for term in wanted
    ], exact
