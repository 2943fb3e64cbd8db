"""Which sessions there are in Redis, and where: ids, their order, and what metadata they have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from dspy_session.errors import StoreError
from dspy_session.stores import redis_scripts as scripts
from dspy_session.stores.records import ListQuery, Ref
from dspy_session.stores.redis_client import RedisClient
from dspy_session.stores.redis_records import entry_terms, key_bytes, key_of, term_digest

__all__ = ["NO_ENTRY", "Catalogue", "Entry", "Place"]

NO_ENTRY: Final = b"-"
"""What `enter` is to find if there must be no entry."""

_AFTER_TEXT: Final = b"\xff"  # a byte that no UTF-8 text has, so it sorts behind all of them


class Place(NamedTuple):
    """Where a ref is: in which family, and with which version it was made there."""

    family: int
    birth: bytes

    @property
    def start(self) -> bytes:
        """What an entry that points there begins with."""
        return key_bytes(self.family) + self.birth

    def head(self, version: int) -> bytes:
        """The entry that points there and says that version, without metadata terms."""
        return self.start + key_bytes(version)


class Entry(NamedTuple):
    """A catalogue entry: where a ref is, and its version when the entry was written.

    Attributes:
        place: Where it is.
        version: The version.
        head: What the entry begins with, also one that was cut short.
    """

    place: Place
    version: bytes
    head: bytes

    @classmethod
    def read(cls, data: bytes) -> Entry:
        """Return the entry that some bytes are."""
        place = Place(key_of(data[:8]), data[8:16])
        return cls(place, data[16:24], data[:24] or NO_ENTRY)


class Catalogue:
    """The catalogue of a store.

    Args:
        server: The server.
        prefix: What all keys begin with.
    """

    def __init__(self, server: RedisClient, prefix: str) -> None:
        self._server = server
        self._prefix = prefix
        self.keys: Final = [f"{{{prefix}}}:{part}" for part in scripts.CATALOGUE]

    def check_format(self) -> None:
        """Check that what is stored is ours, and of a version that is known here.

        Raises:
            StoreError: It is not.
        """
        found = self._server.run("GET", self.keys[-1])
        if found is None:
            self._server.run("SETNX", self.keys[-1], scripts.FORMAT)
            found = self._server.run("GET", self.keys[-1])
        if not found.isdigit():
            raise StoreError(
                f"{self._server!r}: expected the version of a store under {self.keys[-1]!r}, and "
                "there is something else: choose another prefix"
            )
        if int(found) > scripts.FORMAT:
            raise StoreError(
                f"{self._server!r}: what is stored under the prefix {self._prefix!r} is of version "
                f"{int(found)}, and this release of dspy-session knows up to {scripts.FORMAT}: "
                "upgrade it"
            )

    def entries(self, ids: Sequence[bytes]) -> list[Entry | None]:
        """Return the entries of ids; None for those without."""
        found = self._server.fields(self.keys[0], ids)
        return [None if data is None else Entry.read(data) for data in found]

    def every(self) -> Iterator[tuple[bytes, Entry]]:
        """Return all entries with their ids; one may come twice."""
        return ((id, Entry.read(data)) for id, data in self._server.every_field(self.keys[0]))

    def count(self) -> int:
        """Return how many entries there are."""
        return int(self._server.run("HLEN", self.keys[0]))

    def page(self, query: ListQuery) -> list[bytes]:
        """Return the ids of a query's page in their order, its metadata left aside."""
        key = self.keys[scripts.CATALOGUE.index(query.order)]
        last = -1 if query.limit is None else query.offset + query.limit - 1
        command = "ZREVRANGE" if query.descending else "ZRANGE"
        found: list[bytes] = self._server.run(command, key, query.offset, last)
        return found

    def having(self, terms: Sequence[tuple[str, str]]) -> list[bytes]:
        """Return the ids that have the rarest of some terms."""
        by_term = self.keys[scripts.CATALOGUE.index("terms")]
        digests = [term_digest(term) for term in terms]
        ranges = [(by_term, b"[" + each, b"[" + each + _AFTER_TEXT) for each in digests]
        counts = self._server.run_all([("ZLEXCOUNT", *each) for each in ranges])
        rarest = ranges[counts.index(min(counts))]
        return [member[16:] for member in self._server.run("ZRANGEBYLEX", *rarest)]

    def arguments(
        self, id: bytes, wanted: bytes, place: Place | None, ref: Ref | None
    ) -> list[Any]:
        """Return what the script function `enter` is given.

        Args:
            id: The id.
            wanted: What the entry that is there must begin with, or `NO_ENTRY`.
            place: Where the ref is.
            ref: The ref; None to strike the id off.
        """
        if place is None or ref is None:
            return [id, wanted, b"", 0, 0, b""]
        head = place.head(ref.version)
        return [id, wanted, head, repr(ref.created), repr(ref.updated), entry_terms(ref)]

    def enter(
        self, id: bytes, wanted: bytes, place: Place | None = None, ref: Ref | None = None
    ) -> bytes | None:
        """Set, change or remove an entry; see `arguments`.

        Returns:
            None if that was done. Otherwise the entry that is in the way; empty if there is none,
            and one was wanted.
        """
        arguments = self.arguments(id, wanted, place, ref)
        said: bytes | None = self._server.script(scripts.ENTER, self.keys, *arguments)
        return said

    def enter_all(self, entering: Sequence[tuple[bytes, bytes, Place, Ref]]) -> None:
        """Set many entries, each only if what is there is what was wanted; see `arguments`."""
        for each in entering[:1]:
            self.enter(*each)  # so that the server knows the script
        start = ("EVALSHA", scripts.ENTER.sha, len(self.keys), *self.keys)
        self._server.run_all([(*start, *self.arguments(*each)) for each in entering[1:]])
