"""The part of a session manager that maintains what is stored, without opening sessions.

Metadata, deletion, checks, erasure, exports: each reads no more of a session than it needs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import dspy
import msgspec

from dspy_session import codec
from dspy_session.awaiting import in_thread
from dspy_session.browsing import Browsing
from dspy_session.core.data import as_changes, as_data
from dspy_session.errors import StoreError
from dspy_session.files import AnyPath, write_whole
from dspy_session.journal.checking import Verification, verify
from dspy_session.journal.erasing import Erased, erase
from dspy_session.program.nested import told_outside
from dspy_session.stores.records import new_key

__all__ = ["Maintaining"]


class Maintaining(Browsing):
    """The part of a manager that maintains what is stored; made by `SessionManager`, not by hand.

    Attributes:
        program: The program that the sessions share.
    """

    program: dspy.Module

    def delete_session(self, session_id: str) -> bool:
        """Delete a session, and every turn of it that no other session shares.

        One that is damaged is deleted, too. While another that may share its turns is damaged,
        these stay; `vacuum()` deletes them when that one is gone or mended.

        Args:
            session_id: Its id.

        Returns:
            Whether there was one.

        Raises:
            StoreError: It could not be deleted.
        """
        return self._archive.delete(session_id)

    def update_metadata(self, session_id: str, changes: Mapping[str, Any]) -> None:
        """Merge something into a session's metadata, without reading its turns.

        Whoever has the session open goes on undisturbed, and has it with the next change;
        `session.update_metadata` does the same from within.

        Args:
            session_id: Its id.
            changes: Values by key; `DELETED` deletes a key.

        Raises:
            SessionNotFoundError: There is none of that id.
            FormatError: It is damaged.
            DataError: JSON cannot hold a value, or it is too large; nothing is merged then.
            StoreError: It could not be stored.
        """
        noted, store, seen = as_changes(changes), self._archive.store, None
        while True:
            ref = self._archive.ref(session_id)
            if ref.version == seen:
                raise StoreError(
                    f"Session {session_id!r} cannot be written: a turn of it is not in the store "
                    "any more. verify() says which."
                )
            metadata = as_data(ref.metadata).changed(noted, self._options.max_data_bytes)
            written = msgspec.structs.replace(
                ref,
                metadata=metadata.to_dict(),
                version=new_key(),
                updated=max(time.time(), ref.updated),
            )
            if store.put(written, ref.version):
                return
            seen = ref.version

    def vacuum(self) -> int:
        """Delete what no session needs any more: paths not taken, what a crash left behind.

        Where a session is damaged, it is not known what it needs: what it may need stays, and the
        log says so.

        Returns:
            How many turns were deleted.

        Raises:
            StoreError: The store cannot be written.
        """
        return self._archive.store.vacuum()

    # --- what is in it ----------------------------------------------------------------------------

    def verify(self, session_id: str) -> Verification:
        """Read a session again, all of it, and compare it with its digests.

        Args:
            session_id: Its id.

        Returns:
            What was found: `ok`, `first_bad`, `damaged`, `erased`. Damage is not raised.

        Raises:
            SessionNotFoundError: There is none of that id.
            SecretError: It cannot be read with this key.
            StoreError: The store cannot be read.
        """
        return verify(self._archive, session_id)

    def erase(self, session_id: str, index: int) -> Erased:
        """Take the content of a turn out of the store, in every session that shares it.

        The turn stays, without its fields, and `verify` tells that it was erased, if it is not one
        that was summarised. Sessions that are open keep what they have read until they are
        refreshed; their forks do not.

        Args:
            session_id: The session's id.
            index: The turn's index; one that was undone or summarised is a turn, too.

        Returns:
            Which sessions had it.

        Raises:
            SessionNotFoundError: There is none of that id.
            TurnIndexError: There is no such turn.
            FormatError: What is needed to tell what belongs to it is damaged.
            StoreError: The store cannot be written. Nothing was erased then.
        """
        return erase(self._archive, session_id, index)

    def export_session(
        self, session_id: str, path: AnyPath | None = None, *, private: bool = False
    ) -> dict[str, Any]:
        """Return a session as a JSON-ready dict, and write it to a file if a path is given.

        `Session.load_from` reads it, too.

        Args:
            session_id: Its id.
            path: The file; the folder must exist.
            private: Whether to hand on the session data under `private_data` and the fields in
                `redact_fields`, too.

        Raises:
            SessionNotFoundError: There is none of that id.
            FormatError: It is damaged, or a turn of it.
            OSError: The file cannot be written.
        """
        state = self._archive.load(session_id).state
        if not private:
            state = told_outside(state, self.program, self._options)
        wire = codec.to_wire(state, self._options, self._archive.codecs)
        document = codec.with_digest(wire)
        if path is not None:
            write_whole(path, msgspec.json.format(msgspec.json.encode(document), indent=2))
        return document

    adelete_session = in_thread(delete_session)
    aupdate_metadata = in_thread(update_metadata)
    avacuum = in_thread(vacuum)
    averify = in_thread(verify)
    aerase = in_thread(erase)
    aexport_session = in_thread(export_session)
