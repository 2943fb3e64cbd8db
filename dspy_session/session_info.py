"""What a session manager says of sessions, without the conversations themselves."""

from __future__ import annotations

import datetime as dt

import msgspec

from dspy_session.core.data import EMPTY_DATA, Data, as_data
from dspy_session.stores.records import DamagedRef, Ref

__all__ = ["SearchHit", "SessionInfo", "StoreStatistics", "session_info"]


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One stored session, as it was when somebody asked; no turn was read for it.

    Attributes:
        session_id: The session's id.
        turn_count: How many turns it has, those not counted that were undone or trimmed.
        created_at: When it was made, in UTC.
        updated_at: When it was last written, in UTC.
        metadata: What the application noted about it.
        size_bytes: How many bytes are stored for it; turns that it shares count as its own.
        origin: The id of the session that it was forked from, if it was.
        damaged: What is wrong, if it cannot be read; then the rest is what could be read of it, and
            otherwise 0, empty, or a time in 1970. `delete_session` deletes it.
    """

    session_id: str
    turn_count: int
    created_at: dt.datetime
    updated_at: dt.datetime
    metadata: Data
    size_bytes: int
    origin: str | None = None
    damaged: str | None = None

    @property
    def name(self) -> str:
        """The session's id, by which a manager finds it."""
        return self.session_id

    @property
    def message_count(self) -> int:
        """How many messages its turns are: two each, what was asked and what was answered.

        `messages` may have others: instructions, a seed, the calls of tools, what waits.
        """
        return 2 * self.turn_count


class SearchHit(msgspec.Struct, frozen=True):
    """Where a text was found.

    Attributes:
        session_id: The session.
        turn_index: The index of the turn.
        field: The input or output.
        excerpt: The text with some of what stands around it.
    """

    session_id: str
    turn_index: int
    field: str
    excerpt: str


class StoreStatistics(msgspec.Struct, frozen=True):
    """How much a store holds.

    Attributes:
        session_count: How many sessions.
        turn_count: How many turns, those included that can be redone, and those that were left
            behind until `vacuum` deletes them; what sessions share counts once.
        size_bytes: How many bytes are stored for them.
        recent: The sessions that were written last, the latest first.
    """

    session_count: int
    turn_count: int
    size_bytes: int
    recent: tuple[SessionInfo, ...]

    @property
    def message_count(self) -> int:
        """How many messages the turns are, as in `SessionInfo`."""
        return 2 * self.turn_count


def session_info(ref: Ref) -> SessionInfo:
    """Return what a ref says of its session.

    Args:
        ref: The ref.
    """
    damaged = ref.damaged if isinstance(ref, DamagedRef) else None
    try:
        created, updated = _moment(ref.created), _moment(ref.updated)
        metadata = as_data(ref.metadata)
    except (ValueError, OverflowError, OSError) as error:
        damaged = damaged or f"its times or its metadata cannot be so ({error})"
        created = updated = _moment(0)
        metadata = EMPTY_DATA
    return SessionInfo(
        session_id=ref.id,
        turn_count=ref.stop - ref.first,
        created_at=created,
        updated_at=updated,
        metadata=metadata,
        size_bytes=ref.size,
        origin=ref.origin,
        damaged=damaged,
    )


def _moment(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
