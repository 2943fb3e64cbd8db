"""Conversations in a store, as values: what was loaded stays, and writing returns the next.

    held = archive.load("chat-1")                        Held(state, ref)
    prediction, state = step(held.state, program, inputs)
    held = archive.write(held, state)                    only if nobody else wrote meanwhile

A `Held` never changes. Nothing here runs a program; `SessionManager` builds sessions on it, and a
server needs no more than these three lines.
"""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from functools import partial
from typing import Final

import msgspec

from dspy_session.core.data import as_data
from dspy_session.core.state import SessionState, checked_id, with_id
from dspy_session.core.turn import Turn
from dspy_session.core.values import REGISTERED, ValueCodecs
from dspy_session.core.vectors import older_part, stretch
from dspy_session.errors import (
    ConflictError,
    DataError,
    FormatError,
    OptionError,
    SessionExistsError,
    SessionNotFoundError,
    StoreError,
)
from dspy_session.journal.chains import Chain
from dspy_session.journal.payloads import StoredState, closed, opened
from dspy_session.journal.reading import Reading
from dspy_session.journal.sealing import Seal
from dspy_session.journal.writing import Seed, Writing
from dspy_session.stores.base import Store
from dspy_session.stores.records import DamagedRef, Node, Ref, new_key

__all__ = ["Archive", "Held", "about_body"]

_CHAINS: Final = 32
"""How many of the latest written or read chains are remembered, apart from those in use."""


class Held(msgspec.Struct, frozen=True, eq=False):
    """A conversation as a store has it.

    Attributes:
        state: The conversation.
        ref: The session's ref.
        chains: Where its turns are stored, those of the state itself last.
        seeds: Where its seeds are.
        erasure: See `StoredState`.
    """

    state: SessionState
    ref: Ref
    chains: tuple[Chain, ...] = ()
    seeds: tuple[Seed, ...] = ()
    erasure: int | None = None


class Archive:
    """Reads and writes conversations; any thread may use it at any time.

    Args:
        store: Where they are kept.
        codecs: Writes and reads values of types beyond plain data; `program_codecs(program)` knows
            those of a program.
        seal: Compresses and encrypts.

    Example:
        >>> from dspy_session.core.data import Data
        >>> from dspy_session.core.state import start
        >>> from dspy_session.stores import MemoryStore
        >>> archive = Archive(MemoryStore())
        >>> held = archive.create("chat-1", start(data=Data({"user": "ada"})))
        >>> archive.load("chat-1").state.data
        Data({'user': 'ada'})
    """

    def __init__(
        self, store: Store, *, codecs: ValueCodecs = REGISTERED, seal: Seal | None = None
    ) -> None:
        self.store, self.codecs = store, codecs
        self.seal = Seal() if seal is None else seal

    # --- reading ----------------------------------------------------------------------------------

    def find(self, id: str) -> Ref | None:
        """Return a session's ref, which may be a `DamagedRef`; None if there is none of that id.

        Args:
            id: The session's id.
        """
        return self.store.ref(_checked(id))

    def ref(self, id: str) -> Ref:
        """Return a session's ref: how many turns, how large, when, which metadata; no turn is read.

        Args:
            id: The session's id.

        Raises:
            SessionNotFoundError: There is none of that id.
            FormatError: It is damaged.
        """
        found = self.store.ref(_checked(id))
        if found is None:
            raise SessionNotFoundError(
                f"There is no session {id!r} in this store. create_session() and open() make one; "
                "list_sessions() shows which there are."
            )
        if isinstance(found, DamagedRef):
            raise FormatError(
                f"Session {id!r} cannot be read. It is damaged: {found.damaged}. Restore it from a "
                "backup, or delete_session() it; the other sessions can be read."
            )
        return found

    def load(self, id: str, newest: int | None = None) -> Held:
        """Return a session.

        Args:
            id: Its id.
            newest: How many of its newest turns to read now; the others are read when somebody
                looks at one. None for all; one at least, for it tells what stands beside.

        Raises:
            SessionNotFoundError: There is none of that id.
            FormatError: What was read is damaged; the message names the turn.
            SecretError: It cannot be read with this key.
        """
        return self.read(self.ref(id), newest)

    def read(
        self,
        ref: Ref,
        newest: int | None = None,
        *,
        onto: Held | None = None,
        until: int | None = None,
    ) -> Held:
        """Return the session of a ref.

        Args:
            ref: The ref.
            newest: As in `load`.
            onto: The session as it was read or written before: what it has is not read again.
            until: Leave out the turns from this index on, to fork the session there: they are not
                read, and may be damaged. An index that it does not have leaves out none.

        Raises:
            FormatError: As `load`.
            SecretError: As `load`.
        """
        if onto is not None and (onto.ref.family != ref.family or not onto.chains):
            onto = None
        try:
            row = opened(StoredState, ref.body, self.seal, about_body(ref.id, ref.family))
            row = row if until is None else _ending(row, until)
            # Where something was erased, what was read before tells where turns are, not what.
            goes_on = onto is not None and onto.erasure == row.erasure
            before = onto.chains if onto and goes_on else ()
            reading = Reading(self.store, ref.family, self.codecs, self.seal, before)
            reading.seeds.extend(onto.seeds if onto else ())
            newest = None if newest is None else max(newest, 1)
            chain = onto.chains[-1] if onto and goes_on else None
            state, chain = reading.state(row, newest=newest, onto=chain)
            metadata = as_data(ref.metadata)
        except (FormatError, DataError, OptionError) as error:
            raise FormatError(f"Session {ref.id!r} cannot be read. {error}") from error
        profile = msgspec.structs.replace(state.profile, metadata=metadata)
        state = with_id(msgspec.structs.replace(state, profile=profile), ref.id)
        known = onto.chains[-_CHAINS : -1 if goes_on else None] if onto else ()
        seeds = tuple(reading.seeds)
        return Held(state, ref, (*known, chain), seeds, row.erasure)

    def turns(self, id: str, start: int | None = None, stop: int | None = None) -> tuple[Turn, ...]:
        """Return some turns of a session; those after them are passed over, those before not read.

        Args:
            id: Its id.
            start: The index of the first; None for the oldest. A negative one counts from the end.
            stop: The index after the last; None for the end. A negative one, too.

        Raises:
            SessionNotFoundError: There is none of that id.
            FormatError: One of these turns is damaged.
        """
        ref = self.ref(id)
        return self.turns_of(ref, start, stop)

    def turns_of(
        self, ref: Ref, start: int | None = None, stop: int | None = None
    ) -> tuple[Turn, ...]:
        """Return some turns of the session of a ref; see `turns`.

        Args:
            ref: The ref.
            start: As in `turns`.
            stop: As in `turns`.

        Raises:
            FormatError: As in `turns`.
        """
        start, stop = (
            each + ref.stop if each is not None and each < 0 else each for each in (start, stop)
        )
        end = ref.stop if stop is None else min(stop, ref.stop)
        begin = ref.first if start is None else max(start, ref.first)
        if begin >= end:
            return ()
        reading = Reading(self.store, ref.family, self.codecs, self.seal)
        about = about_body(ref.id, ref.family)
        row = partial(opened, StoredState, ref.body, self.seal, about)
        return reading.stretch(row, ref.first, ref.head, begin, end)

    # --- writing ----------------------------------------------------------------------------------

    def create(self, id: str, state: SessionState, *, origin: str | None = None) -> Held:
        """Write a conversation under a new id.

        Args:
            id: The id.
            state: The conversation, from wherever it is: all of it is written.
            origin: The id of the session that it comes from, if it does.

        Raises:
            SessionExistsError: There is a session of that id.
            ValueCodecError: A field holds a value of a type without written form.
        """
        state, family = with_id(state, _checked(id)), new_key()
        blank = Ref(id=id, family=family, version=0, created=time.time(), origin=origin)
        written = self._write(Held(state, blank), state, expected=None)
        if written is None:
            raise _exists(id)
        return written

    def fork(
        self,
        held: Held,
        id: str,
        state: SessionState | None = None,
        newest: int | None = None,
    ) -> Held:
        """Write a session that shares its turns with another, at the same cost for any length.

        Args:
            held: The other session.
            id: The new one's id.
            state: What the new one is to be; None for what the other is.
            newest: How many turns to read of one that ends before those which were read; see
                `load`. What comes after its end, and may be damaged, is not read for it.

        Raises:
            SessionExistsError: There is a session of that id.
            ConflictError: The other one was deleted, or took another path, meanwhile.
            FormatError: The newest turns of the new one are damaged; it is not made.
        """
        state = with_id(held.state if state is None else state, _checked(id))
        blank = Ref(
            id=id,
            family=held.ref.family,
            version=0,
            created=time.time(),
            origin=held.ref.id,
        )
        source = self.store.ref(held.ref.id)
        moved = source is None or source.version != held.ref.version
        base = msgspec.structs.replace(held, ref=blank)
        written = self._write(base, state, expected=None, moved=moved)
        if written is not None:
            older, count = older_part(written.state.held), len(written.state)
            ends_unread = older is not None and 0 < count <= len(older)
            is_stale = moved and self.has_erased_since(held, source)
            return self._reread(written.ref, newest) if ends_unread or is_stale else written
        if self.store.ref(id) is not None:
            raise _exists(id)
        raise _conflict(held.ref.id)

    def has_erased_since(self, held: Held, there: Ref | None) -> bool:
        """Return whether content may have been erased since a conversation was read.

        Args:
            held: The conversation as it was read or written last.
            there: Its ref as the store has it now; where that cannot tell, it may have been.
        """
        if there is None or there.family != held.ref.family or isinstance(there, DamagedRef):
            return True
        row = opened(StoredState, there.body, self.seal, about_body(there.id, there.family))
        return row.erasure != held.erasure

    def _reread(self, ref: Ref, newest: int | None) -> Held:
        try:
            return self.read(ref, newest)
        except FormatError:  # nobody was told of it yet, and nobody could open it
            self.delete(ref.id)
            raise

    def write(self, held: Held, state: SessionState) -> Held:
        """Write what is new of a conversation, if the store still has what is held.

        Args:
            held: The conversation as it was read or written last.
            state: As it is now.

        Returns:
            The conversation as the store has it now.

        Raises:
            ConflictError: Somebody else wrote it meanwhile, or deleted it; nothing was written.
            ValueCodecError: A field holds a value of a type without written form.
            StoreError: It could not be written. To try again is safe.
        """
        if state is held.state:
            return held
        if state.id != held.ref.id:
            state = with_id(state, held.ref.id)
        written = self._write(held, state, expected=held.ref.version)
        if written is None:
            raise _conflict(held.ref.id)
        return written

    def refresh(self, held: Held, newest: int | None = None) -> Held:
        """Return the conversation as the store has it now: what is held, if that is still it.

        Args:
            held: The conversation as it was read or written last.
            newest: As in `load`.

        Raises:
            SessionNotFoundError: It was deleted.
        """
        ref = self.ref(held.ref.id)
        return held if ref.version == held.ref.version else self.read(ref, newest, onto=held)

    def noted(self, held: Held) -> Held | None:
        """Return the conversation as the store has it now, if only its metadata was written since.

        Args:
            held: The conversation as it was read or written last.

        Raises:
            SessionNotFoundError: It was deleted.
            FormatError: It is damaged.
        """
        ref = self.ref(held.ref.id)
        if ref.family != held.ref.family:
            return None
        about = about_body(ref.id, ref.family)
        was, now = (opened(StoredState, each.body, self.seal, about) for each in (held.ref, ref))
        return self.read(ref, onto=held) if was == now else None

    def _write(
        self, held: Held, state: SessionState, expected: int | None, *, moved: bool = False
    ) -> Held | None:
        """Write; None if the store has something else than expected.

        What is built on may have been deleted, if it was not a part of what is held: it is written
        anew then. A fork of what was held needs all of it, which may have `moved` on.
        """
        (*_, trusted) = held.chains or (None,)
        trusted = None if expected is None else trusted
        written = self._try(held, state, expected, trusted, moved=moved)
        if written is None and expected is not None:
            there = self.store.ref(held.ref.id)
            if there is not None and there.version == expected:
                bare = msgspec.structs.replace(held, chains=held.chains[-1:], seeds=())
                return self._try(bare, state, expected, trusted, anew=True)
        return written

    def _try(
        self,
        held: Held,
        state: SessionState,
        expected: int | None,
        trusted: Chain | None,
        anew: bool = False,
        moved: bool = False,
    ) -> Held | None:
        old, now = held.ref, time.time()
        writing = Writing(
            old.family, held.chains, held.seeds, self.codecs, self.seal, now, trusted, anew
        )
        row, chain, links = writing.state(state, metadata=False)
        row.erasure = held.erasure
        body = closed(row, self.seal, about_body(old.id, old.family))
        count = state.stop - state.first
        head = chain.marks[count - 1] if count else None
        ref = Ref(
            id=old.id,
            family=old.family,
            version=new_key(),
            tip=row.tip,
            head=head.key if head else None,
            first=state.first,
            stop=state.stop,
            end=state.tip,
            links=tuple(links),
            created=old.created,
            updated=max(now, old.updated),
            size=len(body) + (head.total - chain.under if head else 0),
            origin=old.origin,
            metadata=state.metadata.to_dict(),
            body=body,
        )
        if moved or (trusted is not None and chain.first < trusted.first):
            # One session may keep the newest turn and another the oldest, and none those between.
            writing.needs.update(mark.key for mark in stretch(chain.marks, 0, chain.count))
            turns = stretch(chain.held, 0, chain.count)
            if not anew and any(turn.window.start < chain.first for turn in turns):
                return None  # nor need there be what was trimmed, though they saw it
        known = {node.key for node in writing.nodes}.union(span.key for span in old.links)
        if not self._put(ref, expected, writing.nodes, writing.needs - known):
            return None
        spare = [other for other in writing.chains if id(other) not in writing.used]
        kept = {*writing.used, *map(id, spare[1 - _CHAINS :])} - {id(chain)}
        chains = [other for other in writing.chains if id(other) in kept]
        seeds = tuple(writing.seeds)
        return Held(state, ref, (*chains, chain), seeds, held.erasure)

    def _put(self, ref: Ref, expected: int | None, nodes: Sequence[Node], needs: Set[int]) -> bool:
        """Put a ref; where the answer was lost, look whether it came through."""
        try:
            return self.store.put(ref, expected, nodes, needs)
        except StoreError:
            try:
                there = self.store.ref(ref.id)
            except StoreError:
                there = None
            if there is None or there.version != ref.version:
                raise
            return True

    def delete(self, id: str) -> bool:
        """Delete a session, and every turn of it that no other session shares.

        Args:
            id: Its id.

        Returns:
            Whether there was one.
        """
        return self.store.delete(_checked(id))

    # --- finding ----------------------------------------------------------------------------------

    def answered(self, held: Held, request_id: str) -> Turn | None:
        """Return the turn of a session that answered a request, if one did.

        Args:
            held: The session.
            request_id: The request's id.
        """
        ref = held.ref
        for node in self.store.labelled(ref.family, request_id):
            if ref.head is None or not ref.first <= node.depth < ref.stop:
                continue
            path = self.store.walk(ref.family, ref.head, node.depth)
            if path and path[0].key == node.key:
                turn = self.turns_of(ref, node.depth, node.depth + 1)[0]
                if turn.answers(request_id):
                    return turn
        return None


def _checked(id: str) -> str:
    checked = checked_id(id)
    if checked is None:
        raise OptionError("A session id must be text, not None.")
    return checked


def about_body(id: str, family: int) -> bytes:
    """Return what a ref's body belongs to, see `Seal`.

    Args:
        id: The session's id.
        family: Its family.
    """
    return b"body:%d:" % family + id.encode()


def _ending(row: StoredState, at: int) -> StoredState:
    """A state as it was before a turn of it; the tip, which is further on, leads there."""
    if type(at) is not int or not row.first <= at < row.stop:
        return row
    tip = row.tip if at > row.first else None
    return msgspec.structs.replace(row, stop=at, end=at, tip=tip, ahead=[], written=None)


def _exists(id: str) -> SessionExistsError:
    return SessionExistsError(
        f"There is a session {id!r} already. Open it, delete it first, or choose another id."
    )


def _conflict(id: str) -> ConflictError:
    return ConflictError(
        f"Session {id!r} was written by somebody else since it was read here. Nothing of this "
        "change was stored. refresh() reads it anew.",
        session_id=id,
    )
