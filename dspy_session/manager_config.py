"""What a configuration says of a session manager: a dict or a TOML file with a table `session`.

    [session]
    backend = "sqlite"
    storage_path = "~/chats"

Nothing is guessed: what is unknown, or of another type than it has to be, is refused by name.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from dspy_session.errors import OptionError
from dspy_session.files import AnyPath
from dspy_session.journal.keeping import as_on_conflict
from dspy_session.stores.base import Store
from dspy_session.stores.memory import MemoryStore
from dspy_session.stores.opening import open_store

__all__ = ["ManagerConfig", "read_config"]

_FILE: Final = "sessions.db"
_MB: Final = 1024 * 1024
_SQL: Final = ("sqlite", "postgresql", "postgres")


class ManagerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of the table `session`; None for what a manager does by itself.

    Attributes:
        backend: `"sqlite"` or `"memory"`.
        storage_path: The folder of the SQLite database.
        store: The URL of a store, instead of the two.
        connection_pool_size: How many connections to a database may be open.
        message_cache_size: How many of the newest messages are read at opening.
        autosave_interval: 0 for saving by hand.
        compress_messages: Whether long turns are compressed.
        max_session_size: How large a session may become, in MB.
        on_conflict: What becomes of a change that meets another writer's.
    """

    backend: str | None = None
    storage_path: str | None = None
    store: str | None = None
    connection_pool_size: int | None = None
    message_cache_size: int | None = None
    autosave_interval: float | None = None
    compress_messages: bool | None = None
    max_session_size: float | None = None
    on_conflict: str | None = None

    @property
    def keywords(self) -> dict[str, Any]:
        """The keywords of `SessionManager` that the options stand for, without the store."""
        keywords: dict[str, Any] = {}
        if self.message_cache_size is not None:
            keywords["read_turns"] = max(1, self.message_cache_size // 2)  # two messages a turn
        if self.autosave_interval is not None:
            keywords["autosave"] = self.autosave_interval > 0
        if self.compress_messages is False:
            keywords["compress_over"] = None
        if self.max_session_size is not None:
            keywords["max_session_size"] = max(1, int(self.max_session_size * _MB))
        if self.on_conflict is not None:
            keywords["on_conflict"] = self.on_conflict
        return keywords

    def open_store(self) -> Store:
        """Return the store, with the folder made that it needs.

        Raises:
            OptionError: The options do not go together.
            OSError: The folder cannot be made.
            StoreError: The store cannot be opened.
        """
        if self.store is not None:
            if self.backend is not None or self.storage_path is not None:
                raise OptionError("Give store, or backend and storage_path; not both.")
            return self._opened(self.store)
        if self.backend == "memory":
            return MemoryStore()
        if self.backend not in (None, "sqlite"):
            raise OptionError(
                f"backend must be 'sqlite' or 'memory', not {self.backend!r}. Other stores have "
                "URLs: store = 'postgresql://...'."
            )
        if self.storage_path is None:
            raise OptionError(
                "storage_path is missing: the folder in which the SQLite database is kept. For "
                "sessions that end with the process, set backend = 'memory'."
            )
        folder = Path(self.storage_path).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        return self._opened(folder / _FILE)

    def _opened(self, place: str | Path) -> Store:
        size = self.connection_pool_size
        if size is None or (isinstance(place, str) and not place.startswith(_SQL)):
            return open_store(place)
        import sqlalchemy as sa  # noqa: PLC0415  # it takes long, and not every store needs it

        from dspy_session.stores.sql import SQLStore  # noqa: PLC0415  # as above

        if isinstance(place, str):
            return SQLStore(place, pool_size=size)
        return SQLStore(sa.URL.create("sqlite", database=os.fspath(place)), pool_size=size)


def read_config(config: Mapping[str, Any] | AnyPath) -> ManagerConfig:
    """Return what a configuration says.

    Args:
        config: A mapping with the table `session`, or the path of a TOML file that has it. Other
            tables are somebody else's.

    Raises:
        OptionError: An option is unknown or has a value that it cannot have, the table is missing,
            or the file is no TOML file; the message names the file and the line.
        OSError: The file cannot be read.
    """
    if isinstance(config, Mapping):
        return _read(config)
    if not isinstance(config, str | os.PathLike):
        raise OptionError(
            "Expected a mapping that has the table 'session', or the path of a TOML file, not "
            f"{type(config).__name__}."
        )
    path = Path(config).expanduser()
    try:
        return _read(tomllib.loads(path.read_text("utf-8-sig")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{os.fspath(path)!r} is no TOML file: {error}.") from error
    except OptionError as error:
        raise OptionError(f"In {os.fspath(path)!r}: {error}") from error


def _read(config: Mapping[str, Any]) -> ManagerConfig:
    table = config.get("session")
    if not isinstance(table, Mapping):
        raise OptionError(
            "Expected a configuration with a table 'session', such as "
            '{"session": {"backend": "sqlite", "storage_path": "~/chats"}}.'
        )
    known = ManagerConfig.__struct_fields__
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise OptionError(
                f"Unknown option {name!r} of the table 'session'.{hint} The options are: "
                f"{', '.join(known)}."
            )
    try:
        read = msgspec.convert({n: _plain(n, value) for n, value in table.items()}, ManagerConfig)
    except msgspec.ValidationError as error:
        raise OptionError(f"The table 'session' is not as it has to be: {error}.") from error
    for name in ("connection_pool_size", "message_cache_size", "max_session_size"):
        value = getattr(read, name)
        if value is not None and not 0 < value < math.inf:
            raise OptionError(f"{name} must be more than 0, and finite, not {value!r}.")
    if read.autosave_interval is not None and not read.autosave_interval >= 0:
        raise OptionError(
            f"autosave_interval must be 0 or more, not {read.autosave_interval!r}: 0 for saving by "
            "hand; otherwise each change is stored at once."
        )
    if read.on_conflict is not None:
        as_on_conflict(read.on_conflict)
    return read


def _plain(name: str, value: Any) -> Any:
    """A value of a mapping, in which paths may be paths; None is no value in TOML."""
    if value is None:
        raise OptionError(f"{name} is None; leave it out instead.")
    return os.fspath(value) if isinstance(value, os.PathLike) else value
