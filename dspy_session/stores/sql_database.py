"""A database: its connections, what each is told when it is made, and its errors translated."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import QueuePool

from dspy_session.errors import OptionError, StoreError
from dspy_session.stores.sql_errors import driver_error, shown_url, store_error

__all__ = ["Database"]

_PATIENCE: Final = 30.0
"""For how many seconds to wait for a connection, while all are in use."""


class Database:
    """A pool of connections, each of which commits every statement by itself.

    Args:
        url: The address.
        pool_size: How many connections there may be.
        busy_timeout: For how many seconds to wait for locks.
        connect_args: More for the driver.

    Attributes:
        url: The address.
        dialect: How SQLAlchemy writes statements for it.

    Raises:
        OptionError: An option has a value it cannot have.
        StoreError: There is no driver.
    """

    def __init__(
        self, url: sa.URL, pool_size: int, busy_timeout: float, connect_args: Mapping[str, Any]
    ) -> None:
        self.url = url
        self._engine = _new_engine(url, pool_size, busy_timeout, connect_args)
        self.dialect = self._engine.dialect
        self._closed = False
        self._failures = SQLAlchemyError, UnicodeError, self.dialect.loaded_dbapi.Error
        self._in_transaction = attrgetter(
            "in_transaction" if self.dialect.name == "sqlite" else "pgconn.transaction_status"
        )
        self._size = 1 if _in_memory(url) else pool_size
        self._keep_at_hand()
        _open.add(self)

    def _keep_at_hand(self) -> None:
        """Begin with no connection at hand, and room for as many as the pool has."""
        at_hand: list[sa.PoolProxiedConnection] = []
        self._desk = threading.BoundedSemaphore(self._size), at_hand

    def set_up(self, prepare: Callable[[sa.Connection], None]) -> None:
        """Do what is to be done first; if that fails, the database is closed.

        Args:
            prepare: Does it.

        Raises:
            OptionError: The driver does not take the options.
            StoreError: The database cannot be opened.
        """
        try:
            with self._translated(), self._engine.connect() as connection:
                prepare(connection)
        except BaseException as error:
            self.close()
            if isinstance(error, TypeError):  # as Python says that a function has no such argument
                raise OptionError(
                    f"The driver does not take the options in the URL or connect_args: {error}. "
                    f"({shown_url(self.url)})"
                ) from error
            raise

    def connected(self) -> AbstractContextManager[Any]:
        """A driver's connection; what is not committed when it is given back never was.

        One that is done with stays at hand: to check it in and out of the pool again takes longer
        than SQLite takes to find a row.

        Raises:
            StoreError: There is none, it was lost, or it was told something that failed.
        """
        return _Use(self, *self._desk)

    def take(self, at_hand: list[sa.PoolProxiedConnection]) -> sa.PoolProxiedConnection:
        """Return a connection that nobody uses, a new one if there is none at hand.

        Args:
            at_hand: Those that are; it is taken from there.

        Raises:
            StoreError: The store is closed, or there can be none.
        """
        if self._closed:
            raise StoreError(f"The store at {shown_url(self.url)} is closed. Open another one.")
        try:
            return at_hand.pop()
        except IndexError:
            with self._translated():
                return self._engine.raw_connection()

    def give_back(
        self,
        pooled: sa.PoolProxiedConnection,
        at_hand: list[sa.PoolProxiedConnection],
        error: BaseException | None,
    ) -> None:
        """Put a connection where it is at hand, or check it in if something failed on it.

        Args:
            pooled: The connection.
            at_hand: Those that are at hand.
            error: What failed; None for nothing.

        Raises:
            StoreError: It failed in the database.
        """
        if error is None and not self._in_transaction(pooled.driver_connection):
            at_hand.append(pooled)
            if self._closed:
                self._put_away()
            return
        with self._translated():
            if isinstance(error, self.dialect.loaded_dbapi.Error) and self.dialect.is_disconnect(
                error, pooled.dbapi_connection, None
            ):
                pooled.invalidate()
                self._put_away()  # the others are most likely lost with it
            pooled.close()  # the pool rolls back what was not committed
        if isinstance(error, self._failures):
            raise store_error(error, self.url) from driver_error(error)

    def close(self) -> None:
        """Close all connections, now or when they are given back."""
        self._closed = True
        self._put_away()

    def _put_away(self) -> None:
        """Close the connections that nobody uses."""
        _, at_hand = self._desk
        with suppress(IndexError):  # when there is none left
            while True:
                at_hand.pop().invalidate()  # to check it in would leave it open
        self._engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            raise store_error(error, self.url) from driver_error(error)

    def leave_to_parent(self) -> None:
        """Forget the connections of the process that this one was forked from, open as they are."""
        if not _in_memory(self.url):  # such a database was copied with the process
            _parents.append((self._engine.pool, self._desk))
            self._keep_at_hand()
            self._engine.dispose(close=False)


class _Use(AbstractContextManager[Any]):
    """One use of a connection. A class, for a generator takes three times as long."""

    __slots__ = ("_at_hand", "_database", "_pooled", "_room")

    def __init__(
        self,
        database: Database,
        room: threading.BoundedSemaphore,
        at_hand: list[sa.PoolProxiedConnection],
    ) -> None:
        self._database, self._room, self._at_hand = database, room, at_hand

    def __enter__(self) -> Any:
        if not self._room.acquire(timeout=_PATIENCE):
            busy = PoolTimeoutError(f"none came back within {_PATIENCE:.0f} seconds")
            raise store_error(busy, self._database.url) from busy
        try:
            self._pooled = self._database.take(self._at_hand)
        except BaseException:
            self._room.release()
            raise
        return self._pooled.driver_connection

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self._database.give_back(self._pooled, self._at_hand, error)
        finally:
            self._room.release()


_open: Final = weakref.WeakSet[Database]()
_parents: Final[list[object]] = []  # to close them would disturb the parent


def _after_fork() -> None:
    for database in list(_open):
        database.leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)


def _in_memory(url: sa.URL) -> bool:
    """Whether a database lives only as long as its connection."""
    return url.get_backend_name() == "sqlite" and (
        url.database in (None, "", ":memory:") or url.query.get("mode") == "memory"
    )


def _new_engine(
    url: sa.URL, pool_size: int, busy_timeout: float, connect_args: Mapping[str, Any]
) -> sa.Engine:
    if not (isinstance(pool_size, int) and pool_size >= 1):
        raise OptionError(f"pool_size must be a whole number from 1 up, not {pool_size!r}.")
    if not (isinstance(busy_timeout, int | float) and 0 <= busy_timeout <= 86_400):
        raise OptionError(f"busy_timeout must be seconds, from 0 to a day, not {busy_timeout!r}.")
    sqlite = url.get_backend_name() == "sqlite"
    # Without an encoding, a database that has none (SQL_ASCII) gives bytes for text.
    defaults: dict[str, Any] = {"connect_timeout": 10, "client_encoding": "utf8"}
    if sqlite:
        defaults = {"timeout": busy_timeout, "check_same_thread": False}
    defaults = {name: value for name, value in defaults.items() if name not in url.query}
    try:
        engine = sa.create_engine(
            _readable(url) if sqlite else url,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,  # what is stored is nobody's business
            poolclass=QueuePool,
            pool_size=1 if _in_memory(url) else pool_size,
            max_overflow=0,
            connect_args={**defaults, **connect_args},
            **({"paramstyle": "named"} if sqlite else {"use_native_hstore": False}),
        )
    except ImportError as error:
        raise StoreError(
            f'A PostgreSQL store needs psycopg ({error}): pip install "dspy-session[postgres]"'
        ) from error
    except (ArgumentError, TypeError, ValueError) as error:
        raise OptionError(
            f"The options in the URL cannot be used: {type(error).__name__}."
        ) from None
    tell = (
        _tell_sqlite if sqlite else _teller_of_postgres(engine.dialect.loaded_dbapi, busy_timeout)
    )
    sa.event.listen(engine, "connect", tell)
    return engine


def _readable(url: sa.URL) -> sa.URL:
    """The address at which a SQLite file can be read, if nobody may write beside it.

    SQLite keeps a log there, or wants to be told that it will not need one. A log that is there has
    what was written last, and is not to be passed over.
    """
    path = Path(url.database or "").absolute()
    effective = os.access in os.supports_effective_ids
    if (
        _in_memory(url)
        or not path.is_file()
        or os.access(path.parent, os.W_OK, effective_ids=effective)
        or Path(f"{path}-wal").exists()
    ):
        return url
    asked = url.set(database=f"file:{quote(str(path))}")
    return asked.update_query_dict({"mode": "ro", "immutable": "1", "uri": "true"})


def _tell_sqlite(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA synchronous = FULL")  # in WAL mode: durable at each commit
    connection.execute("PRAGMA secure_delete = ON")  # what was deleted is overwritten
    connection.text_factory = _text


def _text(stored: bytes) -> str | bytes:
    """What SQLite has as text; as bytes if it is none, so that whoever reads it can say where."""
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return stored


def _teller_of_postgres(psycopg: Any, busy_timeout: float) -> Callable[[Any, object], None]:
    class BinaryCursor(psycopg.Cursor):  # type: ignore[misc]  # a module that need not be there
        """Has results in binary: payloads as text are twice as long."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.format = psycopg.pq.Format.BINARY

    def tell(connection: Any, _record: object) -> None:
        connection.execute(f"SET lock_timeout = {max(1, int(busy_timeout * 1000))}")
        connection.cursor_factory = BinaryCursor

    return tell
