"""The tables of SQL stores, and how a database comes to have them.

    dspy_session_schema   one row: which version of these tables the database has
    dspy_session_refs     a row per session
    dspy_session_terms    what finds sessions by their metadata
    dspy_session_nodes    a row per node

A new database gets the tables as they are below; an older one is brought forward by each of
`UPGRADES` in turn. Either is one transaction that one process at a time is in. Text that anybody
may have chosen is kept as bytes or as JSON: PostgreSQL refuses a NUL in text.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Column

from dspy_session.errors import StoreError

__all__ = ["CUT", "UPGRADES", "nodes", "prepare", "refs", "schema", "shrink", "tables", "terms"]

_PREFIX: Final = "dspy_session_"
_LOCK: Final = 0x6473_7079_7365_7373  # held in PostgreSQL while tables are made
_PAGE_SIZE: Final = 4096  # of new SQLite files: a commit writes whole pages, five for a turn

CUT: Final = 200
"""How much of a label or a metadata term is in an index; entries of it are of limited size."""

Upgrade = Callable[[sa.Connection], None]

UPGRADES: tuple[Upgrade, ...] = ()
"""What leads from each version to the next; the first, from version 1 to version 2."""

_integer = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite's row ids are INTEGER
_text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")  # in the order of code points

tables: Final = sa.MetaData()

schema: Final = sa.Table(
    f"{_PREFIX}schema",
    tables,
    Column("version", _integer, primary_key=True, autoincrement=False),
)

refs: Final = sa.Table(
    f"{_PREFIX}refs",
    tables,
    Column("id", _text, primary_key=True),
    Column("family", _integer, nullable=False, index=True),
    Column("version", _integer, nullable=False),
    Column("tip", _integer),
    Column("head", _integer),
    Column("first", _integer, nullable=False),
    Column("stop", _integer, nullable=False),
    Column("end", _integer, nullable=False),
    Column("links", sa.LargeBinary),
    Column("created", sa.Double, nullable=False),
    Column("updated", sa.Double, nullable=False),
    Column("size", _integer, nullable=False),
    Column("origin", sa.LargeBinary),
    Column("metadata", sa.Text, nullable=False),
    Column("body", sa.LargeBinary, nullable=False),
)
sa.Index(f"ix_{_PREFIX}refs_created", refs.c.created, refs.c.id)
sa.Index(f"ix_{_PREFIX}refs_updated", refs.c.updated, refs.c.id)

terms: Final = sa.Table(
    f"{_PREFIX}terms",
    tables,
    Column("term", _text, primary_key=True),
    Column("session", _text, primary_key=True, index=True),
    sqlite_with_rowid=False,
)

nodes: Final = sa.Table(
    f"{_PREFIX}nodes",
    tables,
    Column("key", _integer, primary_key=True, autoincrement=False),
    Column("family", _integer, nullable=False),
    Column("parent", _integer),
    Column("depth", _integer, nullable=False),
    Column("low", _integer, nullable=False),
    Column("base", _integer, nullable=False),
    Column("links", sa.LargeBinary),
    Column("digest", sa.LargeBinary, nullable=False),
    Column("total", _integer, nullable=False),
    Column("time", sa.Double, nullable=False),
    Column("label", sa.LargeBinary),
    Column("payload", sa.LargeBinary, nullable=False),  # last: SQLite reads a row from its start
)
sa.Index(f"ix_{_PREFIX}nodes_family", nodes.c.family, nodes.c.time)
sa.Index(
    f"ix_{_PREFIX}nodes_label",
    nodes.c.family,
    sa.func.substr(nodes.c.label, sa.literal_column("1"), sa.literal_column(str(CUT))),
    sqlite_where=nodes.c.label.is_not(None),
    postgresql_where=nodes.c.label.is_not(None),
)


def prepare(connection: sa.Connection, patience: float) -> None:
    """Make the tables or bring them forward, if they are not what they should be.

    Args:
        connection: A connection that commits each statement, unless told otherwise.
        patience: For how many seconds to try again while another process does the same.

    Raises:
        StoreError: The database is somebody else's, or was written by a newer version.
    """
    if _version(connection) != _newest():
        if connection.dialect.name == "sqlite":
            _set_up_file(connection, patience)
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("BEGIN ISOLATION LEVEL READ COMMITTED")
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        _bring_forward(connection, _version(connection))  # it may be done by now
        connection.exec_driver_sql("COMMIT")


def _newest() -> int:
    return 1 + len(UPGRADES)


def _version(connection: sa.Connection) -> int:
    """The version of the tables that are there, 0 without any; an error if they are not ours."""
    found = _table_names(connection)
    if schema.name not in found:
        _refuse_strangers(connection, found)
        return 0
    version = connection.execute(sa.select(schema.c.version)).scalar_one_or_none() or 0
    if not 1 <= version <= _newest():
        raise StoreError(
            f"Expected tables of a version up to {_newest()}, but the database has version "
            f"{version}. Upgrade dspy-session; nothing was changed."
        )
    return version


def _refuse_strangers(connection: sa.Connection, found: set[str]) -> None:
    """A file belongs to one application; a PostgreSQL database is often shared."""
    if connection.dialect.name != "sqlite":
        found &= set(tables.tables)
    if found:
        raise StoreError(
            "Expected an empty database, or one of dspy-session, but this one has tables of "
            f"somebody else ({', '.join(sorted(found)[:3])}). Choose another; nothing was changed."
        )


def _table_names(connection: sa.Connection) -> set[str]:
    if connection.dialect.name == "sqlite":
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT GLOB 'sqlite_*'"
    else:
        query = "SELECT tablename FROM pg_catalog.pg_tables WHERE schemaname = current_schema()"
    return {str(name) for (name,) in connection.exec_driver_sql(query)}


def _set_up_file(connection: sa.Connection, patience: float) -> None:
    """Set what a file keeps; most of it cannot be changed once it has tables.

    SQLite does not wait for others that change to WAL at the same time, so this does.
    """
    connection.exec_driver_sql(f"PRAGMA page_size = {_PAGE_SIZE}")
    connection.exec_driver_sql("PRAGMA auto_vacuum = INCREMENTAL")
    until = time.monotonic() + patience
    while True:
        try:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            return
        except sa.exc.OperationalError as error:
            if "locked" not in str(error.orig) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _bring_forward(connection: sa.Connection, version: int) -> None:
    if version == 0:
        tables.create_all(connection, checkfirst=False)
        connection.execute(sa.insert(schema).values(version=_newest()))
    elif version < _newest():
        for upgrade in UPGRADES[version - 1 :]:
            upgrade(connection)
        connection.execute(sa.update(schema).values(version=_newest()))


def shrink(connection: Any) -> None:
    """Give a SQLite file's free pages back to the disk; it costs about what is given back.

    Args:
        connection: The driver's connection.
    """
    connection.executescript("PRAGMA incremental_vacuum")  # execute() would free a single page
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
