"""The part of a session manager that looks: lists, counts, reads and searches what is stored.

Nothing here runs a program or changes anything. What can be said without reading turns is said
without reading turns; where some are asked for, only those are read.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

from dspy_session.awaiting import in_thread
from dspy_session.core.chat import ChatFields, ChatMessage, state_messages
from dspy_session.core.data import as_data
from dspy_session.core.options import SessionOptions
from dspy_session.core.profile import NO_PROFILE
from dspy_session.core.state import SessionState
from dspy_session.core.turn import NOTHING_BESIDE, Turn
from dspy_session.core.vectors import stretch, vector
from dspy_session.errors import OptionError
from dspy_session.journal.archive import Archive
from dspy_session.journal.finding import Finder
from dspy_session.session_info import SearchHit, SessionInfo, StoreStatistics, session_info
from dspy_session.stores.records import DamagedRef, ListQuery, Ref, has_metadata

__all__ = ["Browsing"]

_log = logging.getLogger(__name__)

_PAGE: Final = 100
"""How many sessions are listed at a time while searching."""
_RECENT: Final = 5
_MANY: Final = 2**31  # more than there are of anything, and few enough for every store
_LONGEST_SPAN: Final = 3660  # days
_FAR: Final = 1e11  # a time after all others, that is still a date
_ORDERS: Final = ("updated", "created", "id")


class Browsing:
    """The part of a manager that looks; made by `SessionManager`, not by hand."""

    _archive: Archive
    _options: SessionOptions
    _fields: ChatFields | None
    """Which input and output the text of a chat message is, if the program says."""

    # --- sessions ---------------------------------------------------------------------------------

    def list_sessions(
        self,
        metadata: Mapping[str, Any] | None = None,
        *,
        order: str = "updated",
        descending: bool = True,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[SessionInfo]:
        """Return what there is to know of sessions without reading them, page by page.

        One that is damaged is there with the others, and says so: see `SessionInfo.damaged`.

        Args:
            metadata: Keys with the values that a session must have under them, found through an
                index: an equal JSON value, or a list that holds it. Where metadata is damaged, the
                index may still know what it was.
            order: `"updated"`, `"created"` or `"id"`.
            descending: Whether the latest, or the last, comes first.
            limit: How many at most; None for all.
            offset: How many to pass over.

        Raises:
            OptionError: `order`, `limit` or `offset` is not what it has to be.
            DataError: `metadata` holds what JSON cannot.
        """
        if order not in _ORDERS:
            raise OptionError(f"order must be 'updated', 'created' or 'id', not {order!r}.")
        query = ListQuery(
            metadata=as_data(metadata).to_dict(),
            order=order,
            descending=bool(descending),
            limit=None if limit is None else _count("limit", limit),
            offset=_count("offset", offset),
        )
        return [session_info(ref) for ref in self._archive.store.refs(query)]

    def count_sessions(self, metadata: Mapping[str, Any] | None = None) -> int:
        """Return how many sessions there are.

        Args:
            metadata: As in `list_sessions`.

        Raises:
            DataError: As in `list_sessions`.
        """
        return self._archive.store.count(ListQuery(metadata=as_data(metadata).to_dict()))

    def get_session_info(self, session_id: str) -> SessionInfo | None:
        """Return what there is to know of a session without reading it; None if there is none.

        Args:
            session_id: Its id.

        Raises:
            OptionError: No session can have that id.
        """
        ref = self._archive.find(session_id)
        return None if ref is None else session_info(ref)

    # --- turns ------------------------------------------------------------------------------------

    def turns(
        self, session_id: str, start: int | None = None, stop: int | None = None
    ) -> tuple[Turn, ...]:
        """Return some turns of a session, and read no others.

        Args:
            session_id: Its id.
            start: The index of the first; None for the oldest. A negative one counts from the end:
                -10 for the newest ten.
            stop: The index after the last; None for the end. A negative one, too.

        Raises:
            SessionNotFoundError: There is none of that id.
            OptionError: `start` or `stop` is no whole number.
            FormatError: One of these turns is damaged.
        """
        for name, given in (("start", start), ("stop", stop)):
            if given is not None and type(given) is not int:
                raise OptionError(f"{name} must be a whole number, or None, not {given!r}.")
        return self._archive.turns(session_id, start, stop)

    def messages(self, session_id: str, last: int | None = None) -> tuple[ChatMessage, ...]:
        """Return a session's chat messages, as `session.messages` shows them.

        Args:
            session_id: Its id.
            last: How many of the newest; None for all. About as many turns are read, at most, as
                messages are asked for.

        Raises:
            SessionNotFoundError: There is none of that id.
            OptionError: `last` is negative or no whole number.
            FormatError: One of these turns is damaged.
        """
        ref = self._archive.ref(session_id)
        there = ref.stop - ref.first
        wanted = None if last is None else _count("last", last)
        if wanted == 0:
            return ()
        count = there if wanted is None else min(there, (wanted + 1) // 2)
        while True:
            state = self._archive.read(ref, newest=count).state
            shown = state if count == there else _newest_part(state, count)
            messages = state_messages(shown, self._fields, self._options.redact_fields)
            if wanted is None or count == there or len(messages) >= wanted:
                return messages if wanted is None else messages[max(0, len(messages) - wanted) :]
            count = min(there, 2 * count)

    def search(
        self,
        text: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        limit: int | None = 100,
    ) -> list[SearchHit]:
        """Find a text in the inputs and outputs of turns, whether in capitals or not.

        The sessions written last come first, each with its forks, and of each the newest turns. All
        turns are looked at, some at a time; a turn that sessions share is decoded once. Fields in
        `redact_fields` are passed over, and so is what is damaged, as the log says. What is written
        meanwhile may be missed.

        Args:
            text: The text; in values that are no text, their texts and numbers are looked through.
            metadata: Only in sessions that have it; as in `list_sessions`.
            limit: How many places at most; None for all.

        Raises:
            OptionError: `text` is empty or no text, or `limit` is no whole number.
            DataError: As in `list_sessions`.
            SecretError: A turn cannot be read with this key.
        """
        if not isinstance(text, str) or not text:
            raise OptionError(f"search needs a text to find, not {text!r}.")
        wanted = None if limit is None else _count("limit", limit)
        archive, having = self._archive, as_data(metadata).to_dict()
        finder = Finder(archive.store, archive.seal, text, self._options.redact_fields)
        hits = (
            SearchHit(ref.id, index, passage.field, passage.excerpt)
            for refs in self._families(having)
            for ref, index, passage in finder.in_family(refs)
        )
        return list(islice(hits, wanted))

    def _families(self, metadata: Mapping[str, Any]) -> Iterator[list[Ref]]:
        """All sessions that have some metadata, those that may share turns together."""
        store, seen, offset = self._archive.store, set[int](), 0
        while page := store.refs(ListQuery(metadata=metadata, limit=_PAGE, offset=offset)):
            for ref in page:
                if isinstance(ref, DamagedRef):
                    _log.warning("Search passed over session %r: %s", ref.id, ref.damaged)
                elif ref.family not in seen:
                    seen.add(ref.family)
                    every = [
                        each
                        for each in store.relatives(ref.family)
                        if not isinstance(each, DamagedRef)
                        and has_metadata(each.metadata, metadata)
                    ]
                    yield sorted(every, key=lambda each: each.updated, reverse=True)
            offset += len(page)

    # --- all of them ------------------------------------------------------------------------------

    def statistics(self) -> StoreStatistics:
        """Return how many sessions and turns there are, how large, and what was written last."""
        store = self._archive.store
        totals = store.totals()
        return StoreStatistics(
            session_count=totals.sessions,
            turn_count=sum(store.activity(0.0, _FAR).values()),
            size_bytes=totals.bytes,
            recent=tuple(self.list_sessions(limit=_RECENT)),
        )

    def activity(self, days: int = 7) -> dict[dt.date, int]:
        """Return how many turns were made on each of the last days, in UTC, the oldest day first.

        Args:
            days: How many days, today included.

        Raises:
            OptionError: `days` is not a whole number from 1 to 3660.
        """
        if not 1 <= _count("days", days) <= _LONGEST_SPAN:
            raise OptionError(f"days must be from 1 to {_LONGEST_SPAN}, not {days!r}.")
        today = dt.datetime.now(dt.UTC).date()
        listed = [today - dt.timedelta(days=back) for back in reversed(range(days))]
        begin = dt.datetime.combine(listed[0], dt.time(), dt.UTC)
        end = dt.datetime.combine(today, dt.time(), dt.UTC) + dt.timedelta(days=1)
        counts = self._archive.store.activity(begin.timestamp(), end.timestamp())
        return {day: counts.get(day.isoformat(), 0) for day in listed}

    alist_sessions = in_thread(list_sessions)
    acount_sessions = in_thread(count_sessions)
    aget_session_info = in_thread(get_session_info)
    aturns = in_thread(turns)
    amessages = in_thread(messages)
    asearch = in_thread(search)
    astatistics = in_thread(statistics)
    aactivity = in_thread(activity)


def _newest_part(state: SessionState, count: int) -> SessionState:
    """The newest turns of a state and what waits, without a look at what came before them."""
    size = len(state)
    turns = list(stretch(state.held, size - count, size))
    waiting = NOTHING_BESIDE.replace(pending=state.beside.pending)
    return SessionState(
        id=state.id,
        held=vector(turns),
        log=vector(turn.exchange for turn in turns),
        first=state.stop - count,
        stop=state.stop,
        tip=state.stop,
        written=waiting,
        profile=NO_PROFILE,
    )


def _count(name: str, given: Any) -> int:
    if type(given) is not int or given < 0:
        raise OptionError(f"{name} must be a whole number from 0 up, not {given!r}.")
    return min(given, _MANY)
