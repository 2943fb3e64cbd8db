"""Keeps a session durable: what it becomes is in the store before anybody sees it.

    state --transition--> state' --archive--> stored --> published

So what raises leaves the session as it was, and what was returned survives a crash. Two writers of
one session meet at the store: the one that comes second has a stale version, and `OnConflict` says
what becomes of its change.
"""

from __future__ import annotations

import enum
import secrets
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from dspy_session.core.state import SessionState, with_id
from dspy_session.core.turn import Turn
from dspy_session.core.values import ValueCodecs
from dspy_session.errors import (
    CallError,
    ConflictError,
    FormatError,
    OptionError,
    SessionNotFoundError,
    SessionSizeError,
    StoreError,
)
from dspy_session.journal.archive import Archive, Held

__all__ = ["Journal", "OnConflict", "Transition", "as_on_conflict"]

_Result = TypeVar("_Result")

Transition = Callable[[SessionState], tuple[_Result, SessionState]]
"""From a state to a result and the next state; it may be made again, on another state."""

_LONGEST_NAME: Final = 180  # of a branch, before what makes it another one's


class OnConflict(enum.StrEnum):
    """What becomes of a change to a session that somebody else wrote meanwhile."""

    RAISE = "raise"
    """A `ConflictError`, which has the finished turn; the session is as it was."""
    RETRY = "retry"
    """It is made again on top of what is there now: a turn comes after the newer ones. What would
    take back turns that its writer has not seen is a `ConflictError` all the same."""
    BRANCH = "branch"
    """It goes on as a session of its own, beside the other; `session_id` is then another."""


def as_on_conflict(given: OnConflict | str) -> OnConflict:
    """Return what is given as a member.

    Args:
        given: A member, or its text.

    Raises:
        OptionError: It is neither.
    """
    try:
        return OnConflict(given)
    except ValueError:
        raise OptionError(
            f"on_conflict must be 'raise', 'retry' or 'branch', not {given!r}."
        ) from None


class Journal:
    """Binds one session to its place in a store.

    Args:
        archive: Where it is kept.
        held: The session as it was read or written last.
        on_conflict: What becomes of a change that meets another writer's.
        autosave: Whether each change is written at once; otherwise `save` does it.
        newest: How many turns to read when the session is read anew; None for all.
        max_bytes: How large the session may become, as stored; None for any size.
    """

    def __init__(
        self,
        archive: Archive,
        held: Held,
        *,
        on_conflict: OnConflict = OnConflict.RAISE,
        autosave: bool = True,
        newest: int | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self.archive, self.held = archive, held
        self.on_conflict, self.autosave = on_conflict, autosave
        self._newest, self._max_bytes = newest, max_bytes
        self._mutex = threading.RLock()  # held while writing: else threads of one session collide
        self._unsaved: list[Transition[Any]] = []

    @property
    def is_saved(self) -> bool:
        """Whether the store has all that the session became."""
        return not self._unsaved

    def move(
        self,
        read: Callable[[], SessionState],
        transition: Transition[_Result],
        publish: Callable[[SessionState], None],
    ) -> _Result:
        """Take the session to its next state: computed, stored, published.

        Args:
            read: Returns the session's state.
            transition: From its state to a result and the next state.
            publish: Makes a state the session's.

        Raises:
            ConflictError: Somebody else wrote the session; see `OnConflict`.
            StoreError: It could not be stored; the session is as it was.
        """
        with self._mutex:
            before = read()
            result, after = transition(before)
            if not self.autosave:
                if after is not before:
                    self._unsaved.append(transition)
                publish(after)
                return result
            try:
                self.held = self.archive.write(self.held, after)
            except ConflictError as error:
                result = self._conflict(error, [transition], after, result)
            publish(self.held.state)
            return result

    def save(
        self, read: Callable[[], SessionState], publish: Callable[[SessionState], None]
    ) -> None:
        """Write what was not written yet.

        Args:
            read: As in `move`.
            publish: As in `move`.

        Raises:
            ConflictError: As in `move`.
            StoreError: As in `move`.
        """
        with self._mutex:
            try:
                self.held = self.archive.write(self.held, read())
            except ConflictError as error:
                self._conflict(error, list(self._unsaved), read(), None)
            publish(self.held.state)
            self._unsaved.clear()

    def _conflict(
        self,
        error: ConflictError,
        transitions: list[Transition[Any]],
        after: SessionState,
        result: Any,
    ) -> Any:
        """Do with a change that came too late what is to be done; return its result."""
        try:
            return self._made_again(error, transitions, result)
        except ConflictError:
            if self.on_conflict is not OnConflict.BRANCH:
                raise
            name = f"{self.held.ref.id[:_LONGEST_NAME]}-{secrets.token_hex(4)}"
            self.held = self._forked(name, with_id(after, name))
            return result

    def _made_again(
        self, error: ConflictError, transitions: list[Transition[Any]], result: Any
    ) -> Any:
        """Make a change again on what is there now, if that may be; return its result."""
        retries, tried = self.on_conflict is OnConflict.RETRY, self.held
        while True:
            try:
                newer = (
                    self.archive.refresh(self.held, self._newest)
                    if retries
                    else self.archive.noted(self.held)
                )
                if newer is None or newer.ref.version == tried.ref.version:
                    raise error  # in the latter case nobody wrote it: what it builds on is gone
                tried, state = newer, newer.state
                for transition in transitions:
                    result, state = transition(state)
                if _takes_back_unseen(self.held.state, newer.state, state):
                    raise error
                self.held = self.archive.write(newer, state)
            except (SessionNotFoundError, FormatError) as gone:
                raise error from gone
            except ConflictError as another:
                if another is error:
                    raise
                continue
            return result

    def refresh(self, publish: Callable[[SessionState], None], *, discard: bool = False) -> None:
        """Read the session anew, if somebody else wrote it.

        Args:
            publish: As in `move`.
            discard: Whether changes that were not saved yet may be lost.

        Raises:
            SessionNotFoundError: It was deleted.
            CallError: There are changes that were not saved.
        """
        with self._mutex:
            if self._unsaved and not discard:
                raise CallError(
                    f"Session {self.held.ref.id!r} has changes that were not saved. Save them "
                    "first, or refresh(discard=True) to lose them."
                )
            self.held = self.archive.refresh(self.held, self._newest)
            self._unsaved.clear()
            publish(self.held.state)

    def fork(self, state: SessionState, id: str) -> Journal:
        """Store a session that goes its own way from a state of this one.

        Args:
            state: The state.
            id: The new session's id.

        Raises:
            SessionExistsError: There is a session of that id.
            ConflictError: This one was deleted, or what it needs is gone and was not read.
        """
        return self.over(self._forked(id, state))

    def _forked(self, id: str, state: SessionState) -> Held:
        """Store a session beside this one; what is not in the store any more is written anew."""
        try:
            return self.archive.fork(self.held, id, state, self._newest)
        except ConflictError as error:  # this one was deleted, or took another path
            try:
                there = self.archive.ref(self.held.ref.id)
                if not self.archive.has_erased_since(self.held, there):
                    return self.archive.create(id, state, origin=there.id)
            except (FormatError, StoreError) as gone:
                raise error from gone
            raise  # else what was erased would be written again

    def over(self, held: Held) -> Journal:
        """Return a journal like this one for another session.

        Args:
            held: The session.
        """
        return Journal(
            self.archive,
            held,
            on_conflict=self.on_conflict,
            autosave=self.autosave,
            newest=self._newest,
            max_bytes=self._max_bytes,
        )

    def use_codecs(self, codecs: ValueCodecs) -> None:
        """Go on with other codecs, for the session has another program.

        Args:
            codecs: The codecs.
        """
        archive = self.archive
        self.archive = Archive(archive.store, codecs=codecs, seal=archive.seal)

    def answered(
        self,
        read: Callable[[], SessionState],
        request_id: str,
        publish: Callable[[SessionState], None],
    ) -> Turn | None:
        """Return the turn that answered a request, if one did, be it another writer's.

        The session is read anew for that, so that a call whose answer was lost can be repeated.

        Args:
            read: As in `move`.
            request_id: The request's id.
            publish: As in `move`.

        Raises:
            StoreError: The store cannot be read.
        """
        with self._mutex:
            if self._unsaved:
                return next((turn for turn in read() if turn.answers(request_id)), None)
            self.refresh(publish)
            return self.archive.answered(self.held, request_id)

    def check_room(self) -> None:
        """Refuse a turn of a session that is as large as it may be.

        Raises:
            SessionSizeError: It is.
        """
        size, limit = self.held.ref.size, self._max_bytes
        if limit is not None and size >= limit:
            then = "" if self.autosave else ", and save it"
            raise SessionSizeError(
                f"Session {self.held.ref.id!r} has {size} bytes, and may have {limit}. Nothing was "
                f"sent to a model. Truncate or summarize it{then}, or set a higher "
                "max_session_size."
            )


def _takes_back_unseen(seen: SessionState, newer: SessionState, after: SessionState) -> bool:
    """Whether a change takes back what another writer said, which its own writer has not seen."""
    last, known = newer.last, seen.last
    if last is None or (known is not None and known.id == last.id):
        return False
    kept = after.first <= last.index < after.stop
    return not kept or after.turn(last.index).id != last.id
