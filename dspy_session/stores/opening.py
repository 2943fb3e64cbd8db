"""From a URL, a path or an object to the store that it stands for."""

from __future__ import annotations

import difflib
import importlib
import os
import re
from collections.abc import Callable
from typing import Any, Final

from dspy_session.errors import OptionError
from dspy_session.stores.base import Store
from dspy_session.stores.documents import DocumentStore, SessionStore
from dspy_session.stores.memory import MemoryStore

__all__ = ["StoreLike", "open_store"]

StoreLike = str | os.PathLike[str] | Store | SessionStore
"""What `open_store` takes."""

_SCHEMES: Final = {
    "memory": "MemoryStore",
    "sqlite": "SQLStore",
    "sqlite+pysqlite": "SQLStore",
    "postgresql": "SQLStore",
    "postgresql+psycopg": "SQLStore",
    "postgres": "SQLStore",
    "redis": "RedisStore",
    "rediss": "RedisStore",
    "unix": "RedisStore",
}
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]+")  # one letter would be a drive of Windows
_LAZY: Final = {"SQLStore": "sql", "RedisStore": "redis"}  # by module; each loads its driver

_EXAMPLES: Final = (
    "'sqlite:///chats.db', 'postgresql://user@host/database', 'redis://host:6379/0' or 'memory:'"
)


def open_store(store: StoreLike) -> Store:
    """Return the store that is meant.

    Args:
        store: A URL, such as `"sqlite:///chats.db"`, `"postgresql://user:password@host/database"`,
            `"redis://host:6379/0"`, `"rediss://..."` (encrypted), `"unix:///run/redis.sock"` or
            `"memory:"`; the path of a SQLite file as a `pathlib.Path`; an object with the methods
            of `SessionStore`; or a `Store`, which is returned as it is.

    Raises:
        OptionError: It is none of these.
        StoreError: The store cannot be reached, or a package is missing that it needs.

    Example:
        >>> type(open_store("memory:")).__name__
        'MemoryStore'
    """
    if isinstance(store, Store):
        return store
    if isinstance(store, str):
        return _at_url(store)
    if isinstance(store, os.PathLike):
        return _at_path(store)
    if isinstance(store, SessionStore) and not isinstance(store, type):
        return DocumentStore(store)
    raise OptionError(
        f"Expected the URL of a store, such as {_EXAMPLES}, a path, a Store, or an object with the "
        f"methods save, load, delete and list_sessions, not {_described(store)}."
    )


def _at_url(url: str) -> Store:
    scheme, _, rest = url.partition(":")
    scheme = scheme.lower()
    if scheme == "memory" and ":" in url and not rest.strip("/"):
        return MemoryStore()
    if scheme in _SCHEMES and scheme != "memory" and rest.startswith("//"):
        return _class(_SCHEMES[scheme])(f"{scheme}:{rest}")
    raise OptionError(_refusal(scheme if ":" in url else ""))


def _at_path(path: os.PathLike[str]) -> Store:
    """A SQLite file; as an object, because a path may have characters that mean more in a URL."""
    url = importlib.import_module("sqlalchemy").URL.create("sqlite", database=os.fsdecode(path))
    return _class("SQLStore")(url)


def _class(name: str) -> Callable[[Any], Store]:
    module = importlib.import_module(f"dspy_session.stores.{_LAZY[name]}")
    kind: Callable[[Any], Store] = getattr(module, name)
    return kind


def _refusal(scheme: str) -> str:
    """Why a text is no URL of a store, without repeating what may hold a password."""
    if not _SCHEME.fullmatch(scheme):
        return (
            f"Expected the URL of a store, such as {_EXAMPLES}, but the text has no scheme. "
            "Give the file of a SQLite store as a pathlib.Path, or as 'sqlite:///' and its path."
        )
    if scheme in _SCHEMES:
        return (
            f"The URL begins with {scheme!r}, but is not whole. Expected one such as {_EXAMPLES}."
        )
    near = difflib.get_close_matches(scheme, _SCHEMES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"No store has URLs of the scheme {scheme!r}.{hint} The schemes are: "
        f"{', '.join(_SCHEMES)}; for example {_EXAMPLES}."
    )


def _described(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
