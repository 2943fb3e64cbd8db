"""What is stored, for commands: as a session manager has it, but without a program or DSPy.

Options are a program's business, and not stored: so what is private or redacted is said anew where
something is handed on.
"""

from __future__ import annotations

import difflib
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from dspy_session import codec
from dspy_session.browsing import Browsing
from dspy_session.cli.ending import PROGRAM
from dspy_session.cli.untyped import UntypedCodecs
from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState, with_id
from dspy_session.core.transitions import rewind
from dspy_session.errors import (
    ConflictError,
    FormatError,
    SessionExistsError,
    SessionNotFoundError,
)
from dspy_session.journal.archive import Archive, Held
from dspy_session.journal.checking import Verification, verify
from dspy_session.journal.sealing import Seal
from dspy_session.session_info import SessionInfo, session_info
from dspy_session.stores.base import Store
from dspy_session.stores.records import DamagedRef, ListQuery, Ref

__all__ = ["Sessions"]

_log = logging.getLogger(__name__)

Watch = Callable[[Iterable[list[Ref]]], Iterator[list[Ref]]]

_NEAR: Final = 1_000
"""Among how many sessions a similar id is looked for."""
_PAGE: Final = 500


class Sessions(Browsing):
    """The conversations of a store.

    It has what a session manager has to look at them (`list_sessions`, `turns`, `search`, ...), and
    what is below. A session that is not there is a `SessionNotFoundError` that names similar ones.

    Args:
        store: The store.
        seal: Opens and closes its payloads.

    Attributes:
        watch: Is handed what a search goes through, sessions that may share turns together, and
            yields it: a bar of progress, for example.

    Example:
        >>> from dspy_session.stores.memory import MemoryStore
        >>> Sessions(MemoryStore(), Seal()).count_sessions()
        0
    """

    def __init__(self, store: Store, seal: Seal) -> None:
        self._archive = Archive(store, codecs=UntypedCodecs(), seal=seal)
        self._options, self._fields = SessionOptions(), None
        self.watch: Watch = iter

    def ref(self, session_id: str) -> Ref:
        """Return what the store says of a session; no turn is read.

        Args:
            session_id: Its id.

        Raises:
            SessionNotFoundError: There is none of that id; the message names similar ones.
            FormatError: It is damaged.
        """
        found = self._found(session_id)
        if isinstance(found, DamagedRef):
            raise FormatError(
                f"Session {session_id!r} is damaged: {found.damaged}. Restore it from a backup, or "
                f"delete it with `{PROGRAM} delete`; the other sessions can be read."
            )
        return found

    def _found(self, session_id: str) -> Ref:
        found = self._archive.find(session_id)
        if found is None:
            raise self._not_found(session_id)
        return found

    def _not_found(self, session_id: str) -> SessionNotFoundError:
        listed = [info.session_id for info in self.list_sessions(limit=_NEAR)]
        near = difflib.get_close_matches(session_id, listed, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return SessionNotFoundError(
            f"There is no session {session_id!r} in this store.{hint} `{PROGRAM} list` shows which "
            "there are."
        )

    def _families(self, metadata: Mapping[str, Any]) -> Iterator[list[Ref]]:
        return self.watch(super()._families(metadata))

    def ids(self) -> Iterator[str]:
        """Yield the ids of all sessions, in order."""
        offset = 0
        query = ListQuery(order="id", descending=False, limit=_PAGE)
        store = self._archive.store
        while page := store.refs(msgspec.structs.replace(query, offset=offset)):
            yield from (ref.id for ref in page)
            offset += len(page)

    def state(self, session_id: str, newest: int | None = None) -> SessionState:
        """Return a conversation.

        Args:
            session_id: Its id.
            newest: How many of its newest turns are read now, the others if somebody looks at
                them; None for all.

        Raises:
            SessionNotFoundError: There is none of that id.
            FormatError: A turn that was read is damaged.
        """
        return self._archive.read(self.ref(session_id), newest).state

    def info(self, session_id: str) -> SessionInfo:
        """Return what there is to know of a session without reading it, though it may be damaged.

        Args:
            session_id: Its id.

        Raises:
            SessionNotFoundError: There is none of that id.
        """
        return session_info(self._found(session_id))

    def relatives(self, session_id: str) -> list[str]:
        """Return the ids of the sessions that may share turns with one, the oldest first.

        Args:
            session_id: Its id.

        Raises:
            SessionNotFoundError: There is none of that id.
        """
        refs = self._archive.store.relatives(self.ref(session_id).family)
        others = [ref for ref in refs if ref.id != session_id]
        for damaged in (ref for ref in others if isinstance(ref, DamagedRef)):
            _log.warning("Session %r is left out, for it is damaged.", damaged.id)
        whole = [ref for ref in others if not isinstance(ref, DamagedRef)]
        return [ref.id for ref in sorted(whole, key=lambda ref: (ref.created, ref.id))]

    def fork(self, session_id: str, new: str, at: int | None = None) -> int:
        """Store a fork of a session, which shares its turns.

        Args:
            session_id: The session's id.
            new: The fork's id.
            at: Keep only turns with lower indices; None keeps all.

        Returns:
            How many turns it has.

        Raises:
            SessionNotFoundError: There is no such session.
            SessionExistsError: There is one of the new id.
            TurnIndexError: There is no such turn.
            FormatError: The newest turn that it would have is damaged.
        """
        while True:
            ref = self.ref(session_id)
            source = self._archive.read(ref, newest=1, until=at)
            state = source.state
            if at is not None and at != state.stop:
                state = rewind(state, at, redoable=False)
            try:
                return len(self._archive.fork(source, new, state, newest=1).state)
            except ConflictError:  # it was written meanwhile
                if self.ref(session_id).version == ref.version:
                    raise

    def verify(self, session_id: str) -> Verification:
        """Read a session again, all of it, and compare it with its digests.

        Args:
            session_id: Its id.

        Raises:
            SessionNotFoundError: There is none of that id.
            SecretError: It cannot be read with this key.
        """
        self._found(session_id)
        return verify(self._archive, session_id)

    def delete(self, session_id: str) -> bool:
        """Delete a session, and every turn of it that no other one shares.

        Args:
            session_id: Its id.

        Returns:
            Whether there was one.
        """
        return self._archive.delete(session_id)

    def vacuum(self) -> int:
        """Delete what no session needs any more.

        Returns:
            How many turns were deleted.
        """
        return self._archive.store.vacuum()

    def document(self, state: SessionState) -> dict[str, Any]:
        """Return a conversation as the JSON document that `Session.load_from` reads.

        Args:
            state: The conversation.
        """
        return codec.with_digest(codec.to_wire(state, self._options, self._archive.codecs))

    def read(self, data: bytes) -> SessionState:
        """Return the conversation that a file holds.

        Args:
            data: What is in the file.

        Raises:
            FormatError: It is none, or it was altered or is damaged.
        """
        return codec.decode(data, codecs=self._archive.codecs)[0]

    def store(self, state: SessionState, session_id: str | None, *, overwrite: bool) -> Ref:
        """Store a conversation, all of it or nothing.

        Args:
            state: The conversation.
            session_id: Its id here; None for the one that it has.
            overwrite: Whether it takes the place of a session of that id.

        Returns:
            What the store says of it.

        Raises:
            SessionExistsError: There is one of that id.
        """
        id = (state.id or uuid.uuid4().hex) if session_id is None else session_id
        state = with_id(state, id)
        while True:
            try:
                return self._archive.create(id, state).ref
            except SessionExistsError:
                if not overwrite:
                    raise
            try:
                there = msgspec.structs.replace(self._archive.ref(id), origin=None)
                return self._archive.write(Held(SessionState(), there), state).ref
            except (SessionNotFoundError, ConflictError):  # somebody else wrote it meanwhile
                continue
