"""Where the command line finds its store: what `--store` says, or a file in the platform's folder.

A store that is only looked at is not made: where there is none yet, an empty one stands for it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import msgspec
import platformdirs

from dspy_session.cli.ending import KEY, PROGRAM, Usage
from dspy_session.errors import OptionError, StoreError
from dspy_session.journal.sealing import Key, Seal
from dspy_session.stores.base import Store
from dspy_session.stores.memory import MemoryStore
from dspy_session.stores.opening import open_store

__all__ = ["Place", "default_file", "keys", "place_of", "seal"]

_FILE: Final = "sessions.db"
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # one letter is a drive of Windows
_SQLITE: Final = re.compile(r"sqlite(?:\+pysqlite)?:///(?P<file>[^?]+)", re.IGNORECASE)
_NO_KEY: Final = "none"


class Place(msgspec.Struct, frozen=True):
    """Where a store is.

    Attributes:
        url: Its URL, or the file of a SQLite store.
        file: The file, if it is one.
        own: Whether it is the command line's own, whose folder is made when something is stored.
    """

    url: str | Path
    file: Path | None
    own: bool = False

    @property
    def exists(self) -> bool:
        """Whether there is something; of a server, it is taken for granted.

        Raises:
            OSError: Nobody may look there.
        """
        if self.file is None:
            return True
        try:
            self.file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def opened(self, *, write: bool) -> Store:
        """Return the store.

        Args:
            write: Whether something may be stored in it: otherwise it is not made.

        Raises:
            Usage: The URL is none.
            StoreError: The store cannot be opened.
            OSError: Its folder cannot be made.
        """
        if self.file is not None and self.file.is_dir():
            raise StoreError(
                f"{str(self.file)!r} is a folder. Give the file of a SQLite store, such as "
                f"{str(self.file / _FILE)!r}."
            )
        if not self.exists:
            if not write:
                return MemoryStore()
            if self.own and self.file is not None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            return open_store(self.url)
        except OptionError as error:
            raise Usage(str(error)) from error


def place_of(text: str | None) -> Place:
    """Return the place that is meant.

    Args:
        text: A URL of a store, or the path of a SQLite file; None for the command line's own.

    Raises:
        Usage: It is empty.
    """
    if text is None:
        file = default_file()
        return Place(file, file, own=True)
    if not text:
        raise Usage(
            "--store is empty. Give a URL such as 'sqlite:///chats.db', or the path of a file."
        )
    if not _SCHEME.match(text):
        file = Path(text).expanduser()
        return Place(file, file)
    found = _SQLITE.match(text)
    is_file = found is not None and not found["file"].startswith((":memory:", "file:"))
    return Place(text, Path(found["file"]) if found is not None and is_file else None)


def default_file() -> Path:
    """Return the file of the command line's own store; it need not be there."""
    return platformdirs.user_data_path(PROGRAM, appauthor=False) / _FILE


def keys() -> tuple[Key | None, tuple[Key | None, ...]]:
    """Return the keys of encrypted stores: the one that encrypts, and older ones.

    They come from the environment, separated by blanks: other people can see a command's arguments.
    `none` among the older ones stands for what is not encrypted.
    """
    given = os.environ.get(KEY, "").split()
    older = tuple(None if one == _NO_KEY else one for one in given[1:])
    return (given[0] if given else None), older


def seal() -> Seal:
    """Return what opens and closes the payloads of the store.

    Raises:
        OptionError: A key is none.
        StoreError: There is a key, and the package is missing that encrypts.
    """
    key, older = keys()
    return Seal(key=key, old_keys=older)
