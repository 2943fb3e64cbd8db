"""Where conversations are kept: nodes and refs in memory, SQLite, PostgreSQL, Redis or one's own.

A store never knows what a turn means; from states to records and back leads `dspy_session.journal`.
What needs a driver is loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

from dspy_session.stores.base import Store
from dspy_session.stores.documents import DocumentStore, SessionStore
from dspy_session.stores.memory import MemoryStore
from dspy_session.stores.opening import StoreLike, open_store
from dspy_session.stores.records import DamagedRef, ListQuery, Node, Ref, Span, Totals, new_key

if _TYPE_CHECKING:
    from dspy_session.stores.redis import RedisStore
    from dspy_session.stores.sql import SQLStore

_HOMES = {"RedisStore": "redis", "SQLStore": "sql"}

__all__ = [
    "DamagedRef",
    "DocumentStore",
    "ListQuery",
    "MemoryStore",
    "Node",
    "RedisStore",
    "Ref",
    "SQLStore",
    "SessionStore",
    "Span",
    "Store",
    "StoreLike",
    "Totals",
    "new_key",
    "open_store",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
