"""SQL stores: tables and their versions, what a call costs, and what databases do wrong.

What every store does is in the contract, see `tests/test_store_contract.py`.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import sqlite3
import statistics
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from dspy_session.errors import FormatError, OptionError, StoreError
from dspy_session.stores import DamagedRef, ListQuery, Node, SQLStore, Totals, new_key
from dspy_session.stores import sql_schema as schema
from dspy_session.stores.sql_statements import Statement
from dspy_session.testing.contract_cases import chain, ref_to, rewritten
from tests.house import loaded_by
from tests.streams import SOON

NOBODY = 65_534


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/chats.db"


@pytest.fixture
def store(url: str) -> Iterator[SQLStore]:
    with SQLStore(url) as store:
        yield store


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[SQLStore]:
    with SQLStore(postgres_url) as store:
        yield store


@pytest.fixture(params=["sqlite", "postgresql"])
def any_url(request: pytest.FixtureRequest) -> str:
    name = "url" if request.param == "sqlite" else "postgres_url"
    found: str = request.getfixturevalue(name)
    return found


def connected(url: str) -> sa.Engine:
    return sa.create_engine(url)


def version(url: str) -> int:
    with connected(url).connect() as connection:
        return int(connection.execute(sa.select(schema.schema.c.version)).scalar_one())


def table_names(url: str) -> set[str]:
    return set(sa.inspect(connected(url)).get_table_names())


def filled(store: SQLStore, id: str = "ada", count: int = 3) -> list[Node]:
    nodes = chain(new_key(), count)
    assert store.put(ref_to(id, nodes), None, nodes)
    return nodes


# Tables and their versions


def test_what_a_new_database_gets(any_url: str) -> None:
    with SQLStore(any_url):
        assert table_names(any_url) == set(schema.tables.tables)
        assert version(any_url) == 1


def test_a_file_is_in_wal_mode_and_synchronised_at_each_commit(store: SQLStore) -> None:
    with store._connected() as one, store._connected() as other:
        assert one is not other
        for connection in (one, other):
            for pragma, value in {
                "journal_mode": "wal",
                "synchronous": 2,
                "secure_delete": 1,
                "page_size": 4096,
            }.items():
                assert connection.execute(f"PRAGMA {pragma}").fetchone() == (value,)


def test_an_old_database_is_brought_forward(any_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with SQLStore(any_url) as store:
        nodes = filled(store)
    steps: list[str] = []

    def second(connection: sa.Connection) -> None:
        steps.append("second")
        connection.exec_driver_sql("CREATE TABLE dspy_session_notes (id TEXT)")

    def third(connection: sa.Connection) -> None:
        steps.append("third")
        connection.exec_driver_sql("INSERT INTO dspy_session_notes VALUES ('a note')")

    monkeypatch.setattr(schema, "UPGRADES", (second, third))
    for _ in range(2):  # the second time, nothing is left to do
        with SQLStore(any_url) as store:
            assert version(any_url) == 3
            assert store.walk(nodes[-1].family, nodes[-1].key, 0) == nodes
            with store._connected() as connection:
                found = connection.execute("SELECT id FROM dspy_session_notes").fetchall()
            assert found == [("a note",)]
    assert steps == ["second", "third"]


def test_an_upgrade_that_fails_changes_nothing(
    any_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SQLStore(any_url) as store:
        nodes = filled(store)
    before = table_names(any_url)

    def second(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE dspy_session_notes (id TEXT)")
        connection.exec_driver_sql("DELETE FROM dspy_session_nodes")
        connection.exec_driver_sql("no SQL")

    with monkeypatch.context() as patched:
        patched.setattr(schema, "UPGRADES", (second,))
        with pytest.raises(StoreError, match="refused what it was asked"):
            SQLStore(any_url)
    assert (version(any_url), table_names(any_url)) == (1, before)
    with SQLStore(any_url) as store:
        assert store.walk(nodes[-1].family, nodes[-1].key, 0) == nodes


def test_a_newer_version_is_refused(any_url: str) -> None:
    with SQLStore(any_url) as store:
        filled(store)
    with connected(any_url).begin() as connection:
        connection.execute(sa.update(schema.schema).values(version=2))
    with pytest.raises(StoreError, match=r"version 2\. Upgrade dspy-session"):
        SQLStore(any_url)
    assert version(any_url) == 2
    with connected(any_url).connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(schema.refs)).scalar() == 1


def test_processes_that_open_a_new_database_together(any_url: str) -> None:
    waiting, gate = os.pipe()
    children = []
    for _ in range(8):
        if (child := os.fork()) == 0:
            os.close(gate)
            with in_a_child():
                os.read(waiting, 1)  # returns when the gate is closed
                SQLStore(any_url, busy_timeout=SOON).close()
        children.append(child)
    os.close(waiting)
    os.close(gate)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert version(any_url) == 1


def test_a_new_file_that_somebody_else_is_writing(tmp_path: Path, url: str) -> None:
    """SQLite does not wait by itself with the change to WAL, whatever its timeout."""
    other = sqlite3.connect(tmp_path / "chats.db", isolation_level=None, check_same_thread=False)
    leaving = threading.Timer(0.05, lambda: other.execute("ROLLBACK"))

    def come_first(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if "journal_mode" in statement and leaving.ident is None:
            other.execute("BEGIN IMMEDIATE")
            leaving.start()

    sa.event.listen(sa.Engine, "before_cursor_execute", come_first)
    try:
        with SQLStore(url) as store:
            assert leaving.ident is not None
            filled(store)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", come_first)
        leaving.join()
        other.close()


@contextlib.contextmanager
def in_a_child() -> Iterator[None]:
    """What a forked process does; it ends with it, whatever happens."""
    try:
        yield
    except BaseException:  # noqa: BLE001  # the parent's tests are not for the child to go on with
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


# What a call costs


class Watch:
    """Counts the statements of a store's only connection, and the steps of SQLite's machine."""

    def __init__(self, store: SQLStore) -> None:
        with store._connected() as connection:
            self._connection = connection
        self.said: list[str] = []
        self.steps = 0
        connection.set_trace_callback(lambda text: self.said.append(text.split()[0]))
        connection.set_progress_handler(self._step, 1)

    def _step(self) -> int:
        self.steps += 1
        return 0

    def during(self, call: Callable[[], object]) -> tuple[list[str], int]:
        self.said, self.steps = [], 0
        call()
        return self.said, self.steps


def costs(store: SQLStore, count: int) -> dict[str, tuple[list[str], int]]:
    """What each call says and costs, in a session of some length."""
    nodes = chain(new_key(), count, digest=bytes(32), time=1.0)
    ref = ref_to("ada", nodes, metadata={"user": "ada"})
    assert store.put(ref, None, nodes)
    assert store.ref("ada") == ref  # each text of a statement has been seen once
    added = chain(ref.family, 1, nodes[-1], label="a request")
    appended = ref_to("ada", [nodes[0], added[0]], metadata={"user": "ada"})
    moved = rewritten(appended, head=nodes[-1].key)
    tagged = rewritten(moved, metadata={"user": "eve"})
    watch = Watch(store)
    calls: dict[str, Callable[[], object]] = {
        "append": lambda: store.put(appended, ref.version, added),
        "move": lambda: store.put(moved, appended.version),
        "tag": lambda: store.put(tagged, moved.version),
        "fork": lambda: store.put(rewritten(tagged, id="fork", metadata={}), None),
        "conflict": lambda: store.put(appended, ref.version, added),
        "ref": lambda: store.ref("ada"),
        "last ten": lambda: store.walk(ref.family, added[0].key, count - 9),
        "nodes": lambda: store.nodes(ref.family, [node.key for node in nodes[:10]]),
        "labelled": lambda: store.labelled(ref.family, "a request"),
        "replace": lambda: store.replace_payloads(ref.family, {nodes[0].key: b""}),
        "refs": lambda: store.refs(ListQuery(limit=1)),
        "count": lambda: store.count(ListQuery(metadata={"user": "eve"})),
    }
    found = {name: watch.during(call) for name, call in calls.items()}
    store.close()
    return found


def test_X1_a_call_costs_the_same_however_long_the_session(tmp_path: Path) -> None:
    short, long = (
        costs(SQLStore(f"sqlite:///{tmp_path}/{count}.db"), count) for count in (20, 4_000)
    )
    assert {name: said for name, (said, _) in short.items()} == {
        "append": ["BEGIN", "UPDATE", "INSERT", "COMMIT"],
        "move": ["BEGIN", "UPDATE", "COMMIT"],
        "tag": "BEGIN UPDATE UPDATE DELETE INSERT SELECT COMMIT".split(),
        "fork": ["BEGIN", "INSERT", "SELECT", "COMMIT"],
        "conflict": ["BEGIN", "UPDATE", "UPDATE", "ROLLBACK"],
        "ref": ["SELECT"],
        "last ten": ["WITH"],
        "nodes": ["SELECT"],
        "labelled": ["SELECT"],
        "replace": ["BEGIN", "UPDATE", "COMMIT"],
        "refs": ["SELECT"],
        "count": ["SELECT"],
    }
    assert long == short
    assert all(steps for _, steps in short.values())


def test_a_turn_writes_the_pages_of_its_row_and_what_finds_it(tmp_path: Path) -> None:
    """Those of the node, its family's index, the ref, and its index by time; now and then more."""
    with SQLStore(f"sqlite:///{tmp_path}/chats.db") as store:
        nodes = filled(store)
        ref, log = store.ref("ada"), tmp_path / "chats.db-wal"
        assert ref is not None
        pages = []
        for depth in range(len(nodes), 40):
            nodes += chain(ref.family, 1, nodes[-1], payload=bytes(100))
            key, before = nodes[-1].key, log.stat().st_size
            newer = rewritten(ref, tip=key, head=key, stop=depth + 1, end=depth + 1)
            assert store.put(newer, ref.version, nodes[-1:])
            ref = newer
            pages.append((log.stat().st_size - before) // 4096)
    assert statistics.median(pages) == 4


def test_a_node_adds_little_to_its_payload(tmp_path: Path, url: str) -> None:
    sizes = []
    for id in ("ada", "eve"):
        nodes = chain(new_key(), 1_000, digest=bytes(32), time=1.1, payload=bytes(100))
        with SQLStore(url) as store:
            assert store.put(ref_to(id, nodes), None, nodes)
        sizes.append((tmp_path / "chats.db").stat().st_size)
    assert sizes[1] - sizes[0] < 1_000 * (100 + 150)


WHOLE = {"sessions", "payloads", "families", "activity", "strays"}  # what looks at everything


def plan(connection: Any, statement: Statement) -> list[str]:
    parameters = dict.fromkeys(re.findall(r":(\w+)", statement.text)) | {"keys": "[1]"}
    rows = connection.execute(f"EXPLAIN QUERY PLAN {statement.text}", parameters).fetchall()
    return [row[3] for row in rows]


def test_every_statement_uses_an_index(store: SQLStore) -> None:
    filled(store)
    looked = {
        name: each for name, each in vars(store._statements).items() if isinstance(each, Statement)
    }
    assert len(looked) > 20
    del looked["lock_family"], looked["share_family"]  # functions of PostgreSQL
    for name, statement in looked.items():
        with store._connected() as connection:
            steps = plan(connection, statement)
        through = [step for step in steps if step.startswith("SCAN dspy")]
        if name in WHOLE:
            assert len(through) == 1
            assert ("COVERING INDEX" in through[0]) == (name in ("families", "activity"))
        else:
            assert through == [], name
        assert name in (*WHOLE, "add_ref", "add_nodes", "add_terms") or "SEARCH" in " ".join(steps)


@pytest.mark.parametrize("order", ["updated", "created", "id"])
@pytest.mark.parametrize("descending", [True, False])
def test_C5_lists_come_through_an_index(
    store: SQLStore, order: str, descending: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[list[str]] = []

    def looked_at(statement: sa.Select[Any]) -> list[tuple[Any, ...]]:
        compiled = Statement(statement, store._database.dialect)
        with store._connected() as connection:
            text = f"EXPLAIN QUERY PLAN {compiled.text}"
            plans.append([row[3] for row in connection.execute(text, compiled.given)])
            return compiled.rows(connection)

    filled(store)
    monkeypatch.setattr(store, "_selected", looked_at)
    query = ListQuery(order=order, descending=descending, limit=10)
    assert [ref.id for ref in store.refs(query)] == ["ada"]
    assert store.refs(ListQuery(order=order, metadata={"user": "ada", "tags": "a"})) == []
    everything, some = plans
    assert len(everything) == 1  # no sorting
    assert everything[0].startswith("SCAN dspy_session_refs USING INDEX")
    assert not [step for step in some if step.startswith("SCAN dspy")]


# Bad input


def test_no_database(tmp_path: Path, url: str) -> None:
    file = tmp_path / "chats.db"
    file.write_bytes(b"something else " * 1000)
    with pytest.raises(StoreError, match="the file is none") as caught:
        SQLStore(url)
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)
    assert file.read_bytes() == b"something else " * 1000
    assert os.listdir(tmp_path) == ["chats.db"]


def test_an_empty_file_is_a_new_database(tmp_path: Path, url: str) -> None:
    (tmp_path / "chats.db").touch()
    with SQLStore(url) as store:
        filled(store)


def test_somebody_elses_file(tmp_path: Path, url: str) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "chats.db")) as connection:
        connection.execute("CREATE TABLE invoices (id)")
    before = (tmp_path / "chats.db").read_bytes()
    with pytest.raises(StoreError, match=r"tables of somebody else \(invoices\). Choose another"):
        SQLStore(url)
    assert (tmp_path / "chats.db").read_bytes() == before
    assert os.listdir(tmp_path) == ["chats.db"]


def test_a_postgresql_database_may_be_shared(postgres_url: str) -> None:
    with connected(postgres_url).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE invoices (id TEXT)")
    with SQLStore(postgres_url) as store:
        filled(store)
    assert table_names(postgres_url) == {"invoices", *schema.tables.tables}


def test_somebody_elses_tables_in_postgresql(postgres_url: str) -> None:
    with connected(postgres_url).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE dspy_session_refs (id TEXT)")
    with pytest.raises(StoreError, match=r"somebody else \(dspy_session_refs\)"):
        SQLStore(postgres_url)
    assert table_names(postgres_url) == {"dspy_session_refs"}


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"folder '.*/none' does not exist\. Make it first"):
        SQLStore(f"sqlite:///{tmp_path}/none/chats.db")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder, and a user who has no right to write where others said so."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        user = os.geteuid()
        if user == 0:
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            os.seteuid(user)
            os.chmod(name, 0o777)


def test_a_folder_that_is_read_only(as_nobody: Path) -> None:
    with contextlib.suppress(PermissionError):
        as_nobody.chmod(0o555)
    if os.access(as_nobody, os.W_OK, effective_ids=True):
        user = os.geteuid()
        os.seteuid(0)
        as_nobody.chmod(0o555)
        os.seteuid(user)
    with pytest.raises(StoreError, match=r"cannot be opened\. Check its permissions"):
        SQLStore(f"sqlite:///{as_nobody}/chats.db")
    assert os.listdir(as_nobody) == []


def test_a_file_that_is_read_only(as_nobody: Path) -> None:
    path = as_nobody / "chats.db"
    with SQLStore(f"sqlite:///{path}") as store:
        nodes = filled(store)
    path.chmod(0o444)
    before = path.read_bytes()
    with SQLStore(f"sqlite:///{path}") as store:
        ref = store.ref("ada")
        assert ref is not None
        for write in (
            lambda: store.put(rewritten(ref), ref.version),
            lambda: store.delete("ada"),
            lambda: store.replace_payloads(ref.family, {nodes[0].key: b""}),
        ):
            with pytest.raises(StoreError, match=r"is read-only\. Nothing was written"):
                write()
        assert store.ref("ada") == ref
        assert store.walk(ref.family, nodes[-1].key, 0) == nodes
    assert path.read_bytes() == before


def test_a_file_in_a_folder_that_is_read_only_can_be_read(as_nobody: Path) -> None:
    folder = as_nobody / "100% mine? #1"
    folder.mkdir()
    path = folder / "chats.db"
    with SQLStore(sa.URL.create("sqlite", database=str(path))) as store:
        nodes = filled(store)
    path.chmod(0o444)
    folder.chmod(0o555)
    try:
        with SQLStore(sa.URL.create("sqlite", database=str(path))) as store:
            ref = store.ref("ada")
            assert ref is not None
            assert store.walk(ref.family, nodes[-1].key, 0) == nodes
            with pytest.raises(StoreError, match=r"is read-only\. Nothing was written") as caught:
                store.delete("ada")
            assert "immutable" not in str(caught.value)
            assert store.ref("ada") == ref
        assert os.listdir(folder) == ["chats.db"]
    finally:
        folder.chmod(0o777)


def test_a_file_whose_log_cannot_be_read_is_not_read_without_it(as_nobody: Path) -> None:
    folder = as_nobody / "folder"
    folder.mkdir()
    path = folder / "chats.db"
    with SQLStore(f"sqlite:///{path}") as store:
        filled(store)
    (folder / "chats.db-wal").write_bytes(b"what a crash left behind")
    folder.chmod(0o555)
    try:
        with pytest.raises(StoreError, match=r"cannot be opened\. Check its permissions"):
            SQLStore(f"sqlite:///{path}")
    finally:
        folder.chmod(0o777)


def test_a_locked_database(url: str) -> None:
    with SQLStore(url, busy_timeout=0.01) as store:
        nodes = filled(store)
        ref = store.ref("ada")
        assert ref is not None
        other = sqlite3.connect(str(store._database.url.database), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"longer than busy_timeout.*try again") as caught:
            store.put(rewritten(ref), ref.version)
        assert "locked" in str(caught.value.__cause__)
        assert store.ref("ada") == ref  # reading goes on
        assert store.walk(ref.family, nodes[-1].key, 0) == nodes
        other.execute("ROLLBACK")
        other.close()
        assert store.put(rewritten(ref), ref.version)


def test_a_connection_that_is_in_use_is_closed_when_it_is_given_back(store: SQLStore) -> None:
    with store._connected() as connection:
        store.close()
        assert connection.execute("SELECT 1").fetchall() == [(1,)]
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


def test_a_lock_in_postgresql(postgres_url: str) -> None:
    with SQLStore(postgres_url, busy_timeout=0.01) as store, SQLStore(postgres_url) as other:
        filled(store)
        ref = store.ref("ada")
        assert ref is not None
        with other._connected() as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT id FROM dspy_session_refs FOR UPDATE")
            with pytest.raises(StoreError, match="longer than busy_timeout"):
                store.put(rewritten(ref), ref.version)
        assert store.ref("ada") == ref
        assert store.put(rewritten(ref), ref.version)


def test_a_full_disk(url: str) -> None:
    with SQLStore(url, pool_size=1) as store:
        nodes = filled(store)
        ref = store.ref("ada")
        assert ref is not None
        with store._connected() as connection:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        more = chain(ref.family, 3, nodes[-1], payload=bytes(10_000))
        with pytest.raises(StoreError, match=r"disk is full.*make room"):
            store.put(ref_to("ada", nodes + more), ref.version, more)
        assert store.ref("ada") == ref
        assert store.totals().nodes == 3
        with store._connected() as connection:
            connection.execute(f"PRAGMA max_page_count = {pages + 100}")
        assert store.put(ref_to("ada", nodes + more), ref.version, more)


SECRET = "pass-3-word"


@pytest.mark.parametrize(
    "bad",
    [
        f"user:{SECRET}@host",
        f"postgresql://user:{SECRET}@host:port/database",
        f"mysql://user:{SECRET}@host/database",
        f"postgresql+asyncpg://user:{SECRET}@host/database",
        f"sqlite:///chats.db?timeout={SECRET}",
        "sqlite:///chats\0.db",
        "",
        None,
    ],
)
def test_no_url_of_a_database(bad: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError) as caught:
        SQLStore(bad)
    if bad is None or "?" not in bad:
        assert SECRET not in str(caught.value)
        assert "'sqlite:///chats.db'" in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "options",
    [
        {"pool_size": 0},
        {"pool_size": 1.5},
        {"busy_timeout": -1},
        {"busy_timeout": "1"},
        {"connect_args": {"color": "red"}},
    ],
)
def test_bad_options(options: dict[str, Any], url: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        SQLStore(url, **options)
    assert os.listdir(tmp_path) == []


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(StoreError, match="could not be made") as caught:
        SQLStore(f"postgres://user:{SECRET}@127.0.0.1:1/database?password={SECRET}")
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"database": "none"}, r"There is no such database\. Make it first"),
        ({"username": "nobody's", "password": SECRET}, "does not let this user in"),
    ],
)
def test_a_server_that_lets_nobody_in(postgres_url: str, change: dict[str, Any], told: str) -> None:
    """It says why in words only: until there is a connection, there are no codes."""
    with pytest.raises(StoreError, match=told) as caught:
        SQLStore(sa.make_url(postgres_url).set(**change))
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)
    assert SECRET not in str(caught.value)


def test_a_statement_that_the_server_breaks_off(postgres_url: str) -> None:
    """As it does when its statement_timeout is over."""
    with (
        SQLStore(postgres_url, busy_timeout=SOON) as store,
        SQLStore(postgres_url) as other,
        ThreadPoolExecutor(1) as thread,
    ):
        filled(store)
        ref = store.ref("ada")
        assert ref is not None
        with other._connected() as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT id FROM dspy_session_refs FOR UPDATE")
            writing = thread.submit(store.put, rewritten(ref), ref.version)
            while not (waiting_for_a_lock(postgres_url) or writing.done()):
                pass
            connection.execute(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
                "WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            with pytest.raises(StoreError, match=r"broke it off.*Nothing was written; try again"):
                writing.result()
        assert store.ref("ada") == ref
        assert store.put(rewritten(ref), ref.version)


@contextlib.contextmanager
def encoded(url: str, encoding: str) -> Iterator[str]:
    """The URL of an empty database of another encoding, on the same server."""
    plain, name = url.replace("+psycopg", ""), f"test_{secrets.token_hex(8)}"
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0".encode()
        )
        try:
            yield sa.make_url(url).set(database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def test_a_database_without_an_encoding_holds_any_text(postgres_url: str) -> None:
    """Where nobody chose one, a server set up in the locale C has SQL_ASCII."""
    with encoded(postgres_url, "SQL_ASCII") as url, SQLStore(url) as store:
        nodes = chain(new_key(), 1, label="é🙂")
        ref = ref_to("é🙂", nodes, origin="é🙂", metadata={"é🙂": "中"})
        assert store.put(ref, None, nodes)
        assert store.ref("é🙂") == ref
        assert store.refs(ListQuery(metadata={"é🙂": "中"})) == [ref]
        assert store.labelled(ref.family, "é🙂") == nodes


def test_what_a_databases_encoding_lacks_is_refused(postgres_url: str) -> None:
    with encoded(postgres_url, "LATIN1") as url, SQLStore(url) as store:
        nodes = filled(store, "é")
        assert store.ref("é") is not None
        for ref in (ref_to("🙂", nodes), ref_to("ada", nodes, metadata={"a": "🙂"})):
            with pytest.raises(StoreError, match=r"encoding lacks.*need a database.*UTF8"):
                store.put(ref, None)
        assert [ref.id for ref in store.refs(ListQuery())] == ["é"]


def test_a_password_is_not_shown(postgres_url: str) -> None:
    url = sa.make_url(postgres_url).set(password=SECRET)
    with SQLStore(url) as store:
        assert SECRET not in repr(store)
        store.close()
        with pytest.raises(StoreError, match=r"is closed\. Open another one") as caught:
            store.ref("ada")
    assert SECRET not in str(caught.value)
    with pytest.raises(StoreError) as caught:
        SQLStore(url.set(database=f"{SECRET}-none"))
    assert "***-none" in str(caught.value)


def test_psycopg_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r'pip install "dspy-session\[postgres\]"'):
        SQLStore("postgresql://host/database")


def test_sqlalchemy_is_loaded_when_first_needed() -> None:
    assert not loaded_by("from dspy_session.stores import MemoryStore") & {"sqlalchemy", "psycopg"}
    assert "psycopg" not in loaded_by("from dspy_session.stores import SQLStore")


def test_a_damaged_row_is_named_and_the_rest_can_be_read(store: SQLStore) -> None:
    nodes = filled(store)
    other = filled(store, "eve")
    family, damaged = nodes[0].family, nodes[1].key
    with store._connected() as connection:
        connection.execute(
            "UPDATE dspy_session_nodes SET payload = 'text' WHERE key = ?", (damaged,)
        )
        connection.execute("UPDATE dspy_session_refs SET metadata = '{' WHERE id = 'eve'")
    for read in (
        lambda: store.walk(family, nodes[-1].key, 0),
        lambda: store.nodes(family, [node.key for node in nodes]),
    ):
        with pytest.raises(FormatError, match=rf"turn 1 \(node {damaged}\) is damaged"):
            read()
    assert store.walk(family, nodes[-1].key, 2) == nodes[2:]
    assert store.nodes(family, [nodes[0].key]) == {nodes[0].key: nodes[0]}
    eve = store.ref("eve")
    assert isinstance(eve, DamagedRef)
    assert eve.damaged.startswith("its metadata (")
    assert (eve.family, eve.stop) == (other[0].family, 3)  # the rest of it can be read
    assert store.ref("ada") is not None
    assert store.walk(other[0].family, other[-1].key, 0) == other


def test_a_chain_that_leads_back_to_itself_ends(any_url: str) -> None:
    with SQLStore(any_url) as store:
        nodes = filled(store)
        with store._connected() as connection:
            key = nodes[1].key
            connection.execute(f"UPDATE dspy_session_nodes SET parent = {key} WHERE key = {key}")
        found = {node.key for node in store.walk(nodes[0].family, nodes[-1].key, 0)}
        assert found == {node.key for node in nodes[1:]}


def test_nothing_is_deleted_by_bones_that_are_damaged(
    store: SQLStore, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = filled(store)
    ref = store.ref("ada")
    assert ref is not None
    assert store.put(rewritten(ref, id="fork"), None)
    with store._connected() as connection:
        connection.execute(
            "UPDATE dspy_session_nodes SET links = x'c1' WHERE key = ?", (nodes[1].key,)
        )
    assert store.delete("fork")
    assert store.vacuum() == 0
    assert caplog.text.count(f"turn 1 (node {nodes[1].key}) is damaged") == 2
    assert store.totals().nodes == 3
    assert [ref.id for ref in store.relatives(ref.family)] == ["ada"]
    assert store.delete("ada")
    assert store.totals().nodes == 0


@pytest.mark.parametrize("text", ["NUL \0 in it", "half a pair \ud800", "x" * 10_000])
def test_labels_and_origins_hold_any_text(any_url: str, text: str) -> None:
    with SQLStore(any_url) as store:
        nodes = chain(new_key(), 1, label=text) + chain(new_key(), 0)
        ref = ref_to("ada", nodes, origin=text)
        assert store.put(ref, None, nodes)
        assert store.ref("ada") == ref
        assert store.labelled(ref.family, text) == nodes
        assert store.labelled(ref.family, text[:-1]) == []


@pytest.mark.parametrize("name", ["NUL \0 in it", "x" * 10_000])
def test_metadata_of_any_name(any_url: str, name: str) -> None:
    with SQLStore(any_url) as store:
        nodes = chain(new_key(), 1)
        assert store.put(ref_to("ada", nodes, metadata={name: name}), None, nodes)
        assert [ref.id for ref in store.refs(ListQuery(metadata={name: name}))] == ["ada"]
        assert store.count(ListQuery(metadata={name: name[:-1]})) == 0
        assert store.count(ListQuery(metadata={name[:-1]: name})) == 0


def test_text_that_a_database_refuses(any_url: str) -> None:
    with SQLStore(any_url) as store:
        nodes = chain(new_key(), 1)
        for ref in (
            ref_to("half a pair \ud800", nodes),
            ref_to("ada", nodes, metadata={"a": "\ud800"}),
            ref_to("ada", nodes, metadata={"a": object()}),
        ):
            with pytest.raises(StoreError, match="Nothing was written"):
                store.put(ref, None, nodes)
        assert store.totals() == Totals(0, 0, 0)


def test_a_nul_in_an_id_is_an_error_of_ours(postgres: SQLStore) -> None:
    nodes = chain(new_key(), 1)
    with pytest.raises(StoreError, match=r"text with a NUL\. Nothing was written") as caught:
        postgres.put(ref_to("a\0b", nodes), None, nodes)
    assert isinstance(caught.value.__cause__, psycopg.Error)
    assert postgres.totals() == Totals(0, 0, 0)


# Connections


def test_a_lost_connection_is_an_error_and_the_next_call_has_another(postgres_url: str) -> None:
    with SQLStore(postgres_url, pool_size=3) as store:
        nodes = filled(store)
        ref = store.ref("ada")
        assert ref is not None
        with store._connected(), store._connected():
            pass  # two idle connections, which are both lost
        with psycopg.connect(postgres_url.replace("+psycopg", "")) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        with pytest.raises(StoreError, match="not acknowledged; try again") as caught:
            store.put(rewritten(ref), ref.version)
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        for _ in range(3):
            assert store.ref("ada") == ref
        assert store.put(rewritten(ref), ref.version)
        assert store.walk(ref.family, nodes[-1].key, 0) == nodes


def test_an_error_leaves_no_transaction_open(any_url: str) -> None:
    with SQLStore(any_url, pool_size=1) as store:
        nodes = filled(store)
        ref = store.ref("ada")
        assert ref is not None
        with pytest.raises(StoreError):
            store.put(rewritten(ref), ref.version, nodes)  # their keys are taken
        assert store.ref("ada") == ref
        assert store.put(rewritten(ref), ref.version)


def test_a_closed_store_is_closed_for_everything(store: SQLStore) -> None:
    nodes = filled(store)
    store.close()
    store.close()
    for call in (
        lambda: store.ref("ada"),
        lambda: store.put(ref_to("eve", nodes), None),
        lambda: store.walk(1, 1, 0),
        lambda: store.refs(ListQuery()),
        store.vacuum,
        store.totals,
    ):
        with pytest.raises(StoreError, match="is closed"):
            call()


def test_more_threads_than_connections(any_url: str) -> None:
    with SQLStore(any_url, pool_size=2) as store, ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lambda number: bool(filled(store, f"{number}")), range(64)))
        assert store.totals().sessions == 64


@pytest.mark.parametrize("idle", [1, 3])
def test_a_forked_process_has_connections_of_its_own(any_url: str, idle: int) -> None:
    with SQLStore(any_url) as store:
        nodes = filled(store)
        with contextlib.ExitStack() as taken:
            for _ in range(idle):
                taken.enter_context(store._connected())
        if (child := os.fork()) == 0:
            with in_a_child():
                filled(store, "child")
                assert store.walk(nodes[0].family, nodes[-1].key, 0) == nodes
        for number in range(20):
            filled(store, f"{number}")
        assert os.waitpid(child, 0)[1] == 0
        assert store.totals().sessions == 22
        assert store.walk(nodes[0].family, nodes[-1].key, 0) == nodes


# Writing and deleting side by side


def test_a_fork_waits_for_a_deletion(postgres_url: str) -> None:
    """Or it would point to nodes that are being deleted."""
    with SQLStore(postgres_url, busy_timeout=SOON) as store, ThreadPoolExecutor(1) as thread:
        nodes = filled(store)
        ref = store.ref("ada")
        assert ref is not None
        with store._connected() as connection:
            connection.execute("BEGIN")
            assert store._lock_family(connection, ref.family) == [ref]
            forking = thread.submit(store.put, rewritten(ref, id="fork"), None)
            while not (waiting_for_a_lock(postgres_url) or forking.done()):
                pass
            store._statements.delete_ref.run(connection, {"id": "ada"})
            store._sweep(connection, ref.family, [])
            connection.execute("COMMIT")
        assert forking.result() is False
        assert store.totals() == Totals(0, 0, 0)
        assert store.nodes(ref.family, [node.key for node in nodes]) == {}


def test_an_append_waits_for_a_deletion(postgres_url: str) -> None:
    with SQLStore(postgres_url, busy_timeout=SOON) as store, ThreadPoolExecutor(1) as thread:
        nodes = filled(store)
        ref = store.ref("ada")
        assert ref is not None
        undone = rewritten(ref, tip=nodes[0].key, head=nodes[0].key)
        assert store.put(undone, ref.version)
        lost = chain(ref.family, 1, nodes[-1])  # after a node that nothing reaches any more
        with store._connected() as connection:
            connection.execute("BEGIN")
            kept = store._lock_family(connection, ref.family)
            writing = thread.submit(store.put, rewritten(undone), undone.version, lost)
            while not (waiting_for_a_lock(postgres_url) or writing.done()):
                pass
            assert store._sweep(connection, ref.family, kept) == 2
            connection.execute("COMMIT")
        assert writing.result() is False
        assert store.ref("ada") == undone
        assert store.walk(ref.family, nodes[0].key, 0) == nodes[:1]


def waiting_for_a_lock(url: str) -> bool:
    with connected(url).connect() as connection:
        return bool(
            connection.exec_driver_sql(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                "AND datname = current_database()"
            ).scalar()
        )


def test_a_file_gets_smaller(tmp_path: Path, store: SQLStore) -> None:
    nodes = chain(new_key(), 500, payload=bytes(4_000))
    assert store.put(ref_to("ada", nodes), None, nodes)
    assert store.vacuum() == 0
    before = (tmp_path / "chats.db").stat().st_size
    assert store.delete("ada")
    assert store.vacuum() == 0
    assert (tmp_path / "chats.db").stat().st_size < before / 10


def test_what_was_deleted_is_not_in_the_files(tmp_path: Path, store: SQLStore) -> None:
    nodes = chain(new_key(), 3, payload=b"a secret of somebody")
    assert store.put(ref_to("ada", nodes), None, nodes)
    family = nodes[0].family
    store.replace_payloads(family, dict.fromkeys([node.key for node in nodes[:2]], b"-"))
    assert store.walk(family, nodes[1].key, 0)[1].payload == b"-"
    assert store.delete("ada")
    store.vacuum()
    files = list(tmp_path.iterdir())
    assert files
    assert not [file for file in files if b"a secret of somebody" in file.read_bytes()]


def write_on(store: SQLStore, told: int) -> None:
    """Append to a session for ever; tell each key when it is stored."""
    ref = store.ref("ada")
    assert ref is not None
    assert ref.tip is not None
    last = [store.nodes(ref.family, [ref.tip])[ref.tip]]
    while True:
        last = chain(ref.family, 1, last[0], payload=bytes(900))
        after = ref_to("ada", last)
        assert store.put(after, ref.version, last)
        ref = after
        os.write(told, b"%d\n" % last[0].key)


def test_X6_what_was_acknowledged_survives_a_kill(url: str) -> None:
    with SQLStore(url) as store:
        family = filled(store, count=1)[0].family
    told: list[int] = []
    for round in range(10):
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            with in_a_child():
                write_on(SQLStore(url), writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as lines:
            told += [int(lines.readline()) for _ in range(1 + 7 * round)]
            os.kill(child, signal.SIGKILL)
            told += [int(line) for line in lines if line.endswith(b"\n")]
        os.waitpid(child, 0)
        with SQLStore(url) as store:
            ref = store.ref("ada")
            assert ref is not None
            assert ref.tip is not None
            kept = [node.key for node in store.walk(family, ref.tip, 1)]
        assert kept[: len(told)] == told
        assert len(kept) - len(told) in (0, 1)  # the last may not have been told
        told = kept


def test_the_two_kinds_of_url_are_the_same_server(postgres_url: str) -> None:
    bare = postgres_url.replace("postgresql+psycopg", "postgres")
    with SQLStore(postgres_url) as one, SQLStore(bare) as other:
        filled(one)
        assert other.ref("ada") == one.ref("ada")
