"""What went wrong in a database, in words of this library.

No message shows a password, nor anything that is stored: a URL is shown without user and query, and
what the driver says, without what is secret in it.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from dspy_session.errors import OptionError, StoreError

__all__ = ["driver_error", "read_url", "shown_url", "store_error"]

_DRIVERS: Final = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_EXAMPLES: Final = "'sqlite:///chats.db' or 'postgresql://user:password@host/database'"

_AGAIN: Final = "Nothing was written; try again, or give the store a longer busy_timeout."
_LOCKED: Final = f"Another connection has held a lock for longer than busy_timeout. {_AGAIN}"
_LOST: Final = (
    "The connection was lost, or could not be made. What was asked is not acknowledged; try again."
)
_VALUE: Final = (
    "The database cannot hold such a value, such as text with a NUL. Nothing was written."
)
_OTHER: Final = "The database refused what it was asked. Nothing was written."

_SQLITE: Final = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_READONLY: "The database is read-only. Nothing was written; check the URL, and "
    "the permissions of the file and its folder.",
    sqlite3.SQLITE_FULL: "The disk is full, or the file as large as it may become. Nothing was "
    "written; make room and try again.",
    sqlite3.SQLITE_NOTADB: "Expected a SQLite database, but the file is none, or is encrypted. "
    "Choose another file; this one was not changed.",
    sqlite3.SQLITE_CORRUPT: "The file is damaged. Restore it from a backup.",
    sqlite3.SQLITE_IOERR: "The disk could not be read or written. Nothing was written.",
}
_POSTGRES: Final = {  # by the SQLSTATE, or by its first two characters
    "08": _LOST,
    "22": _VALUE,
    "22P05": "The database's encoding lacks a character. Nothing was written; ids and metadata in "
    "any script need a database whose encoding is UTF8.",
    "25006": "The database is read-only, such as a standby. Nothing was written.",
    "28": "The server does not let this user in. Check user and password.",
    "3D": "There is no such database. Make it first.",
    "40": f"Others wrote at the same time. {_AGAIN}",
    "42501": "This user may not do that. Grant the right to make and use tables.",
    "53100": "The server's disk is full. Nothing was written; make room and try again.",
    "53300": "The server has no connection left. Give the store a smaller pool_size.",
    "54": "The database cannot index anything that long. Use a shorter id.",
    "55P03": _LOCKED,
    "57": _LOST,
    "57014": "The server broke it off, as its statement_timeout or an administrator said. Nothing "
    "was written; try again.",
}
_REFUSED: Final = {  # a server that lets nobody in says why in words only
    r'FATAL: +database ".*" does not exist': "3D",
    r"FATAL: +(role .* does not exist|.*authentication|no pg_hba\.conf entry)|no password": "28",
    r"FATAL: +permission denied": "42501",
    r"FATAL: +(.*too many (clients|connections)|remaining connection slots)": "53300",
}


def read_url(url: str | sa.URL) -> sa.URL:
    """Return a database's address, the driver filled in.

    Args:
        url: The address.

    Raises:
        OptionError: It is none, or that of a database that this library does not speak to.
    """
    try:
        read = sa.make_url(url)
        if "\0" in (read.database or ""):
            raise ValueError("no file or database has such a name")
    except (ArgumentError, ValueError, TypeError, AttributeError):
        # Not shown, and no cause: it may hold a password at a place where nobody expects it.
        raise OptionError(
            f"Expected the URL of a database, such as {_EXAMPLES}, and this is none. Special "
            "characters of a password must be percent-encoded."
        ) from None
    if read.drivername not in _DRIVERS:
        raise OptionError(
            f"Expected the URL of a SQLite or PostgreSQL database, such as {_EXAMPLES}, not one "
            f"that begins with {read.drivername!r}."
        )
    return read.set(drivername=_DRIVERS[read.drivername])


def shown_url(url: sa.URL) -> str:
    """Return an address as messages show it: without user, password and query.

    Args:
        url: The address.
    """
    shown = sa.URL.create(
        url.drivername, host=url.host, port=url.port, database=url.database
    ).render_as_string(hide_password=True)
    return shown.replace("+psycopg", "", 1)


def store_error(error: BaseException, url: sa.URL) -> StoreError:
    """Return what a driver's error, or one of SQLAlchemy's, means to who uses a store.

    Args:
        error: The error.
        url: Of which database.
    """
    driver = driver_error(error)
    said = str(driver).strip().partition("\n")[0]
    for secret in _secrets(url):
        said = said.replace(secret, "***")
    meaning = _meaning(driver, url)
    return StoreError(f"{meaning} ({shown_url(url)}; {type(driver).__name__}: {said})")


def _meaning(error: BaseException, url: sa.URL) -> str:
    if isinstance(error, PoolTimeoutError):
        return (
            "All connections of the store have been in use for too long. Nothing was written; try "
            "again, or give the store a larger pool_size."
        )
    if isinstance(error, UnicodeError):
        return "Expected text that can be written as UTF-8. Nothing was written."
    if isinstance(error, sqlite3.Error):
        return _meaning_in_sqlite(error, url)
    state = getattr(error, "sqlstate", None) or _state_in_words(str(error))
    kinds = {kind.__name__ for kind in type(error).__mro__}  # all drivers call them the same
    without_state = _LOST if "OperationalError" in kinds else _OTHER
    if "DataError" in kinds:
        without_state = _VALUE
    return _POSTGRES.get(state) or _POSTGRES.get(state[:2]) or without_state


def _state_in_words(said: str) -> str:
    """The SQLSTATE of what a server says that lets nobody in; empty if it says something else."""
    return next((state for words, state in _REFUSED.items() if re.search(words, said)), "")


def _meaning_in_sqlite(error: sqlite3.Error, url: sa.URL) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says more than is needed
    if code != sqlite3.SQLITE_CANTOPEN:
        return _SQLITE.get(code, _OTHER)
    folder = Path(url.database or "").absolute().parent
    if not folder.is_dir():
        return f"The folder {str(folder)!r} does not exist. Make it first."
    return "The file cannot be opened. Check its permissions and those of its folder."


def _secrets(url: sa.URL) -> Iterator[str]:
    if url.password:
        yield str(url.password)
    for name, values in url.query.items():
        if "pass" in name.lower():
            yield from [values] if isinstance(values, str) else values


def driver_error(error: BaseException) -> BaseException:
    """Return the driver's own error, of which SQLAlchemy's is a copy with statement and values.

    Args:
        error: What was raised.
    """
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig
    return error
