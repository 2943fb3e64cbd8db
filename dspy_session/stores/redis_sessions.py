"""Sessions in Redis as a whole: a ref in its family, and the catalogue entry that names it.

What is one change runs as one script; `dspy_session.stores.redis_scripts` says what is stored.
A server that holds all keys changes a family and its catalogue entry at once. In a cluster they are
in different slots, so that one is changed after the other, always so that what a crash in between
leaves is not wrong:

- A new session is written, then entered: until then it is not there.
- A deleted one is removed, then struck off: an entry that points to nothing is none.
- A changed one is written, then its entry: until the next change, or `vacuum`, lists may have it at
  its old place. What they show of it is always what it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from dspy_session.stores.reach import note_kept, unknown
from dspy_session.stores.records import DamagedRef, Ref
from dspy_session.stores.redis_catalogue import NO_ENTRY, Catalogue, Entry, Place
from dspy_session.stores.redis_client import RedisClient
from dspy_session.stores.redis_families import Families, State, Write
from dspy_session.stores.redis_records import key_bytes

__all__ = ["ATTEMPTS", "Sessions", "named"]

ATTEMPTS: Final = 50
"""How often to begin again when others change what was just looked at."""

_REMEMBERED: Final = 10_000
_AT_ONCE: Final = 1_000


class Sessions:
    """The sessions of a store.

    Args:
        server: The server.
        prefix: What all keys begin with.
    """

    def __init__(self, server: RedisClient, prefix: str) -> None:
        self._server = server
        self._places: dict[str, Place] = {}
        self.catalogue: Final = Catalogue(server, prefix)
        self.families: Final = Families(server, prefix)

    def candidates(self, id: str) -> Iterator[Place]:
        """Where a session was the last time, and if it is not there, where it is now.

        A ref that was entered once stays entered while it is there, so the first needs no check.
        """
        known = self._places.get(id)
        if known is not None:
            yield known
        place = self.look_up(id)
        if place is not None and place != known:
            yield place

    def look_up(self, id: str) -> Place | None:
        """Where a session is."""
        (entry,) = self.catalogue.entries([id.encode()])
        if entry is None:
            self._places.pop(id, None)
            return None
        self.remember(id, entry.place)
        return entry.place

    def remember(self, id: str, place: Place) -> None:
        """Note where a session is."""
        if len(self._places) >= _REMEMBERED:
            self._places.clear()
        self._places[id] = place

    def _is_there(self, place: Place) -> bool:
        return self.families.refs([place]) != [None]

    def entered(self, ids: Sequence[bytes]) -> tuple[list[Ref], list[bytes]]:
        """The refs of ids, and the ids whose entries do not say what is there."""
        entries = self.catalogue.entries(ids)
        known = [(id, entry) for id, entry in zip(ids, entries, strict=True) if entry is not None]
        refs = self.families.refs([entry.place for _, entry in known])
        stale = [
            id for (id, entry), ref in zip(known, refs, strict=True) if not _is_current(entry, ref)
        ]
        pairs = zip(known, refs, strict=True)
        found = [named(ref, id, entry.place) for (id, entry), ref in pairs if ref is not None]
        return found, stale

    def entered_of(self, state: State) -> dict[Place, bytes]:
        """Which of a family's refs the catalogue has, and under which ids."""
        ids = [ref.id.encode() for ref in state.refs.values() if not isinstance(ref, DamagedRef)]
        entries = zip(ids, self.catalogue.entries(ids), strict=True)
        found = {entry.place: id for id, entry in entries if entry is not None}
        if len(ids) < len(state.refs):  # an id that cannot be read is what points there
            every = self.catalogue.every()
            found |= {each.place: id for id, each in every if each.place.family == state.family}
        return found

    def write(self, place: Place, write: Write) -> bool:
        """Write a ref, with nodes, and enter it; return whether that was done."""
        if not self._server.clustered:
            try:
                return self._write_at_once(place, write)
            except self._server.refusal as error:
                if not self._server.finds_slots(error):
                    raise
        return self._write_apart(place, write)

    def _write_at_once(self, place: Place, write: Write) -> bool:
        """Write and enter a ref in one script."""
        ref, creates = write.ref, write.expected is None
        wanted = NO_ENTRY if creates else place.start
        for _ in range(ATTEMPTS):
            entering = self.catalogue.arguments(ref.id.encode(), wanted, place, ref)
            said = self.families.put(place, write, (self.catalogue.keys, entering))
            if isinstance(said, int):
                return said == 1
            if not creates or (said and self._is_there(Entry.read(said).place)):
                return False
            wanted = _instead_of(said)
        return False

    def _write_apart(self, place: Place, write: Write) -> bool:
        """Write a ref, then enter it."""
        if self.families.put(place, write) != 1:
            return False
        ref, id = write.ref, write.ref.id.encode()
        before = write.expected
        wanted = NO_ENTRY if before is None else place.head(before)
        while True:
            said = self.catalogue.enter(id, wanted, place, ref)
            if said is None:
                return True
            if said and Entry.read(said).place == place:
                self.mend(id)  # it was of an older version, or others were quicker
                return True
            if said and self._is_there(Entry.read(said).place):
                self.clean(ref.family)  # which takes back what cannot be entered
                return False
            wanted = _instead_of(said)

    def remove(self, id: str, state: State, place: Place) -> bool:
        """Remove and strike off a ref, unless the family was changed since."""
        if not self._server.clustered:
            striking = self.catalogue.arguments(id.encode(), place.start, None, None)
            try:
                done = self.families.remove(state, place.birth, (self.catalogue.keys, striking))
            except self._server.refusal as error:
                if not self._server.finds_slots(error):
                    raise
            else:
                return done is not None
        if self.families.remove(state, place.birth) is None:
            return False
        self.catalogue.enter(id.encode(), place.start)
        return True

    def mend(self, id: bytes) -> None:
        """Make an entry say what is there."""
        for _ in range(ATTEMPTS):
            (entry,) = self.catalogue.entries([id])
            if entry is None:
                return
            (ref,) = self.families.refs([entry.place])
            if _is_current(entry, ref):
                return
            if ref is None:
                self.catalogue.enter(id, entry.head)
            else:
                self.catalogue.enter(id, entry.head, entry.place, ref)

    def mend_all(self) -> None:
        """Make all entries say what is there, and put them into all orders again."""
        known = list(dict(self.catalogue.every()).items())
        for start in range(0, len(known), _AT_ONCE):
            some = known[start : start + _AT_ONCE]
            refs = self.families.refs([entry.place for _, entry in some])
            pairs = list(zip(some, refs, strict=True))
            self.catalogue.enter_all(
                [
                    (id, entry.head, entry.place, ref)
                    for (id, entry), ref in pairs
                    if ref is not None and not isinstance(ref, DamagedRef)
                ]
            )
            for (id, _), ref in pairs:
                if ref is None:
                    self.mend(id)

    def clean(self, family: int) -> int:
        """Enter what is not, and remove what cannot be and what no ref reaches."""
        count = 0
        for _ in range(ATTEMPTS):
            state = self.families.state(family)
            entered = self.entered_of(state)
            for birth, ref in state.refs.items():
                if isinstance(ref, DamagedRef):
                    id = _shown(entered.get(Place(family, birth), b"?"))
                    note_kept(unknown(f"session {id!r} is damaged"))
                    return count
            lost = [
                birth
                for birth, ref in state.refs.items()
                if Place(family, birth) not in entered
                and not self._enters(Place(family, birth), ref)
            ]
            removed = self.families.remove(state, lost[0] if lost else b"")
            count += removed or 0
            if removed is not None and not lost:
                break
        return count

    def _enters(self, place: Place, ref: Ref) -> bool:
        """Enter a ref if its id is free; return whether it is entered."""
        id = ref.id.encode()
        said = self.catalogue.enter(id, NO_ENTRY, place, ref)
        if said is None:
            self.mend(id)  # if it was deleted meanwhile
        return said is None or Entry.read(said).place == place


def named(ref: Ref, id: bytes, place: Place) -> Ref:
    """Return the ref that is entered under an id, which is damaged if it says that it is another.

    Args:
        ref: What is stored.
        id: The id.
        place: Where it is.
    """
    name = _shown(id)
    if isinstance(ref, DamagedRef):
        return msgspec.structs.replace(ref, id=name, family=place.family)
    if (ref.id, ref.family) == (name, place.family):
        return ref
    what = f"it says that it is {ref.id!r} of the family {ref.family}"
    return DamagedRef(id=name, family=place.family, version=ref.version, damaged=what)


def _shown(id: bytes) -> str:
    """An id as text, also one that is damaged and none."""
    return id.decode("utf-8", "backslashreplace")


def _is_current(entry: Entry, ref: Ref | None) -> bool:
    """Whether an entry says what is there; of what is damaged, nothing better can be said."""
    return isinstance(ref, DamagedRef) or (
        ref is not None and key_bytes(ref.version) == entry.version
    )


def _instead_of(said: bytes) -> bytes:
    """What to want of an entry that points to nothing, so that its id is free."""
    return Entry.read(said).head if said else NO_ENTRY
