"""The statements of SQL stores: written once with SQLAlchemy Core, compiled once per store.

Each is text for the driver then, with parameters by name, and runs on a connection of SQLAlchemy's
pool. What Core does anew for each execution costs more than SQLite needs for it: with five of them
to a turn it would be a third of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from dspy_session.stores.sql_schema import CUT, nodes, refs, terms

__all__ = ["Statement", "Statements", "cut_label"]


class Statement:
    """One compiled statement, and the parameters that it brings.

    Args:
        statement: The statement.
        dialect: Of which database.
    """

    def __init__(self, statement: sa.ClauseElement, dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.text = str(compiled)
        self.given: Mapping[str, Any] = compiled.params

    def run(self, connection: Any, parameters: Mapping[str, Any]) -> int:
        """Execute it, and return how many rows it changed.

        Args:
            connection: A driver's connection.
            parameters: The parameters, by name.
        """
        return int(connection.execute(self.text, parameters).rowcount)

    def run_many(self, connection: Any, parameters: Sequence[Mapping[str, Any]]) -> None:
        """Execute it once for each of several parameters.

        Args:
            connection: A driver's connection.
            parameters: The parameters, by name.
        """
        connection.cursor().executemany(self.text, parameters)

    def rows(self, connection: Any, **parameters: Any) -> list[tuple[Any, ...]]:
        """Execute it, and return its rows.

        Args:
            connection: A driver's connection.
            **parameters: The parameters; those that it brings are used if none are given.
        """
        return list(connection.execute(self.text, parameters or self.given).fetchall())


class Statements:
    """All statements of a store.

    Args:
        dialect: Of which database.
    """

    def __init__(self, dialect: sa.Dialect) -> None:
        self._dialect = dialect
        self._of_refs()
        self._of_nodes()

    def _compiled(self, statement: sa.ClauseElement) -> Statement:
        return Statement(statement, self._dialect)

    def _of_refs(self) -> None:
        c = refs.c
        mine, seen = c.id == sa.bindparam("id"), c.version == sa.bindparam("expected")
        changed: dict[str, Any] = {
            column.name: sa.bindparam(column.name)
            for column in refs.columns
            if column.name not in ("id", "family")
        }
        set_ref = sa.update(refs).where(mine, seen, c.family == sa.bindparam("family"))
        # What it reaches now cannot be gone. A column that is not set costs no entry of an index.
        needed = sa.bindparam("needed", type_=sa.BigInteger())
        reached = sa.or_(needed.is_(None), c.tip == needed, c.head == needed)
        kept = {name: changed[name] for name in ("created", "metadata")}
        onward = {name: value for name, value in changed.items() if name not in kept}
        insert = postgresql.insert if self._dialect.name == "postgresql" else sqlite.insert
        self.ref = self._compiled(sa.select(refs).where(mine))
        self.add_ref = self._compiled(insert(refs).on_conflict_do_nothing())
        self.set_ref = self._compiled(set_ref.values(changed))
        self.move_ref = self._compiled(
            set_ref.where(reached, *(c[name] == value for name, value in kept.items())).values(
                onward
            )
        )
        self.delete_ref = self._compiled(sa.delete(refs).where(mine))
        self.relatives = self._compiled(
            sa.select(refs).where(c.family == sa.bindparam("family")).order_by(c.id)
        )
        self.add_terms = self._compiled(sa.insert(terms))
        self.delete_terms = self._compiled(
            sa.delete(terms).where(terms.c.session == sa.bindparam("id"))
        )
        # Locks of PostgreSQL; where there is one writer at a time, nothing of this is needed.
        self.lock_refs = self._compiled(
            sa.select(refs)
            .where(c.family == sa.bindparam("family"))
            .order_by(c.id)
            .with_for_update()
        )
        key = sa.bindparam("family", type_=sa.BigInteger())
        self.lock_family = self._compiled(sa.select(sa.func.pg_advisory_xact_lock(key)))
        self.share_family = self._compiled(sa.select(sa.func.pg_advisory_xact_lock_shared(key)))

    def _of_nodes(self) -> None:
        c = nodes.c
        kin = c.family == sa.bindparam("family")
        self.add_nodes = self._compiled(sa.insert(nodes))
        self.walk = self._compiled(_walk())
        # By their keys: the index over families must not seem a good way to a few of its nodes.
        these = self._among_keys() & (c.family + sa.literal_column("0") == sa.bindparam("family"))
        self.nodes = self._compiled(sa.select(nodes).where(these))
        self.present = self._compiled(sa.select(c.key).where(these))
        label = sa.bindparam("label", type_=sa.LargeBinary())
        self.labelled = self._compiled(
            sa.select(nodes)
            .where(kin, c.label == label, _cut(c.label) == sa.bindparam("cut"))
            .order_by(c.key.desc())
        )
        self.bones = self._compiled(sa.select(c.key, c.parent, c.depth, c.low, c.links).where(kin))
        self.families = self._compiled(sa.select(c.family).distinct())
        own = sa.select(c.key).where(c.family == refs.c.family)
        self.strays = self._compiled(sa.select(refs).where(~own.exists()))
        self.delete_node = self._compiled(sa.delete(nodes).where(c.key == sa.bindparam("key")))
        self.delete_family = self._compiled(sa.delete(nodes).where(kin))
        self.replace_payload = self._compiled(
            sa.update(nodes)
            .where(c.key == sa.bindparam("key"), kin)
            .values(payload=sa.bindparam("payload"))
        )
        self.sessions = self._compiled(
            sa.select(sa.func.count(), sa.func.sum(sa.func.length(refs.c.body))).select_from(refs)
        )
        self.payloads = self._compiled(
            sa.select(sa.func.count(), sa.func.sum(sa.func.length(c.payload))).select_from(nodes)
        )
        days = c.time / sa.literal_column("86400.0", sa.Double)
        never = sa.literal_column("0.0", sa.Double)
        day: sa.ColumnElement[Any] = sa.func.floor(days)
        if self._dialect.name == "sqlite":  # not every build of it has floor()
            day = sa.cast(days, sa.Integer)
        self.activity = self._compiled(
            sa.select(day.label("day"), sa.func.count())
            .where(c.time >= sa.bindparam("since"), c.time < sa.bindparam("until"), c.time != never)
            .group_by("day")
            .order_by("day")
        )

    def _among_keys(self) -> sa.ColumnElement[bool]:
        """Any number of keys in one parameter: a JSON list, or an array."""
        if self._dialect.name == "sqlite":
            listed = sa.func.json_each(sa.bindparam("keys")).table_valued("value")
            return nodes.c.key.in_(sa.select(listed.c.value))
        keys = sa.bindparam("keys", type_=postgresql.ARRAY(sa.BigInteger()))
        return nodes.c.key == sa.func.any(keys)


def _walk() -> sa.Select[Any]:
    """The keys of a chain, from its last node backwards, and around them what each node has."""
    c = nodes.c
    big = sa.BigInteger()
    top = sa.literal_column(str(2**63 - 1), big).label("above")
    chain = sa.select(sa.bindparam("key", type_=big).label("key"), top).cte("chain", recursive=True)
    lower = c.depth < chain.c.above  # else a damaged row could lead back to itself, for ever
    kin = c.family == sa.bindparam("family")
    floor = sa.bindparam("floor", type_=sa.BigInteger())
    before = sa.select(c.parent, c.depth).where(c.key == chain.c.key, kin, c.depth > floor, lower)
    chain = chain.union_all(before)
    return sa.select(nodes).where(c.key == chain.c.key, kin, c.depth >= floor)


def cut_label(label: bytes) -> bytes:
    """Return as much of a label as its index has.

    Args:
        label: The whole of it.
    """
    return label[:CUT]


def _cut(label: sa.ColumnElement[bytes | None]) -> sa.ColumnElement[bytes]:
    # Literal, for an index over an expression serves the same expression only.
    return sa.func.substr(label, sa.literal_column("1"), sa.literal_column(str(CUT)))
