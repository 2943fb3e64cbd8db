"""Breaks what stores have, behind their backs: whatever bytes a disk may give back."""

from __future__ import annotations

from typing import Any

import redis

from dspy_session.stores import (
    DamagedRef,
    DocumentStore,
    MemoryStore,
    RedisStore,
    SQLStore,
    Store,
)
from tests.documents import Dicts, Folder


def damage(store: Any, id: str) -> None:
    """Break the ref of a session, in whatever store."""
    match store:
        case MemoryStore():
            break_in_memory(store, id)
        case SQLStore():
            set_column(store, id, "metadata", "{")
        case RedisStore():
            set_record(store, id, lambda record: record[:30])
        case DocumentStore(own=Dicts() as own):
            del own.data[id]["session"]["tip"]
        case DocumentStore(own=Folder() as own):
            file = own._file(id)
            file.write_text(file.read_text().replace('"links"', '"lines"'))


def break_in_memory(store: MemoryStore, id: str) -> None:
    ref = store.ref(id)
    assert ref is not None
    broken = DamagedRef(id=id, family=ref.family, version=ref.version, damaged="on purpose")
    with store._open() as tables:
        tables.set(broken)


def set_column(
    store: SQLStore, id: str | int, column: str, value: Any, table: str = "refs"
) -> None:
    """Give a row another value in a column; by the key, if it is a node's."""
    mark = "?" if store._sqlite else "%s"
    key = "id" if table == "refs" else "key"
    with store._connected() as connection:
        done = connection.execute(
            f'UPDATE dspy_session_{table} SET "{column}" = {mark} WHERE "{key}" = {mark}',
            (value, id),
        )
        assert done.rowcount == 1


def set_record(store: RedisStore, id: str, change: Any) -> None:
    """Change the bytes of a ref."""
    (place,) = store._sessions.candidates(id)
    key = store._families.key(place.family, "refs")
    change_field(store, key, place.birth, change)


def change_field(store: RedisStore, key: str, field: bytes, change: Any) -> None:
    client: redis.Redis = store._server._client
    record = client.hget(key, field)
    assert isinstance(record, bytes)
    client.hset(key, field, change(record))


def emptied(store: SQLStore | RedisStore) -> None:
    """Delete all that is there, in whatever state it is."""
    if isinstance(store, RedisStore):
        store._server._client.flushdb()
        return
    with store._connected() as connection:
        for table in ("refs", "terms", "nodes"):
            connection.execute(f"DELETE FROM dspy_session_{table}")


def change_node(
    store: Store, family: int, key: int, change: Any = lambda record: record[:25]
) -> bool:
    """Break the row of a turn, in whatever store has rows; bytes of a record as is said."""
    match store:
        case SQLStore():
            set_column(store, key, "label", b"\xff", "nodes")
        case RedisStore():
            nodes = store._families.key(family, "nodes")
            change_field(store, nodes, key.to_bytes(8, "big"), change)
        case _:
            return False
    return True
