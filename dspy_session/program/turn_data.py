"""The session data of a running turn: what it began with, and what the turn has done to it so far.

Rules:

- Tools and programs read and write here, from any thread. Of two that write one key, the later
  wins; nobody ever reads half of what an `update` writes.
- Nothing outside changes before the turn is recorded. A turn that fails leaves nothing, and what a
  thread writes after the turn's end is refused.
- Where turns overlapped, their writes are merged per key: each turn's on top of what is there.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import msgspec

from dspy_session.core.data import DELETED, Data
from dspy_session.errors import DataError

__all__ = ["TurnData", "Writes", "differences"]


class Writes(msgspec.Struct, frozen=True, eq=False):
    """What was written to session data, as a value.

    Attributes:
        began: The data as it was before.
        now: The data as it is with everything written.
        keys: The keys that were written or deleted, in the order of their first writing.
    """

    began: Data
    now: Data
    keys: tuple[str, ...] = ()

    def and_then(self, changes: Mapping[str, Any], max_bytes: int | None = None) -> Writes:
        """Return these writes and some more, all of them or none.

        Args:
            changes: Values by key; `DELETED` deletes a key.
            max_bytes: How large the data may become, in bytes of JSON; None for any size.

        Raises:
            DataError: A value cannot be session data, or the data becomes too large.
        """
        now = self.now.changed(changes, max_bytes)
        return Writes(self.began, now, tuple(dict.fromkeys((*self.keys, *changes))))

    def applied(self, newest: Data) -> Data:
        """Return what these writes make of the data of the conversation as it is now.

        No limit stops that: each turn kept within it, and its answer has been paid for.

        Args:
            newest: That data; turns may have come since this one began.
        """
        if newest is self.began:
            return self.now
        return newest.changed({key: self.now.get(key, DELETED) for key in self.keys})


class TurnData:
    """Holds the data of one running turn, for `SessionData` to look at.

    Args:
        began: The data that the turn begins with.
        max_bytes: How large the data may become, in bytes of JSON; None for any size.
        changes: What hooks wrote to it before the program runs.

    Raises:
        DataError: As `change`.
    """

    __slots__ = ("_ended", "_first", "_max_bytes", "_mutex", "_writes")

    def __init__(
        self, began: Data, max_bytes: int | None = None, changes: Mapping[str, Any] | None = None
    ) -> None:
        writes = Writes(began, began)
        self._first = self._writes = writes.and_then(changes, max_bytes) if changes else writes
        self._max_bytes = max_bytes
        self._ended = False
        self._mutex = threading.Lock()

    def read(self) -> Data:
        """Return the data as it is now."""
        return self._writes.now

    def base(self) -> Data:
        """Return the data that the turn began with."""
        return self._writes.began

    def change(self, changes: Mapping[str, Any]) -> None:
        """Write some keys, all of them or none.

        Args:
            changes: Values by key; `DELETED` deletes a key.

        Raises:
            DataError: A value cannot be session data, the data becomes too large, or the turn has
                ended.
        """
        with self._mutex:
            if self._ended:
                raise DataError(
                    "The turn that this session data belongs to has ended, so nothing can be "
                    "written there any more. Was it kept beyond the turn, or does a thread that "
                    "the program started still run? Write to session.data instead."
                )
            self._writes = self._writes.and_then(changes, self._max_bytes)

    def again(self) -> TurnData:
        """Return what a copy of the program begins with that runs within this turn."""
        return TurnData(
            self._first.began,
            self._max_bytes,
            differences(self._first.began, self._first.now),
        )

    def adopt(self, writes: Writes) -> None:
        """Take over what such a copy has written, in the place of what there is."""
        with self._mutex:
            self._writes = writes

    def end(self) -> Writes:
        """Return what was written, and refuse whatever comes later."""
        with self._mutex:
            self._ended = True
            return self._writes


def differences(before: Data, after: Data) -> dict[str, Any]:
    """Return the changes that lead from one to the other, per key.

    Args:
        before: Data.
        after: Data that was made from it.
    """
    if after is before:
        return {}
    gone = {key: DELETED for key in before if key not in after}
    new = {key: after[key] for key in after if before.raw(key) != after.raw(key)}
    return {**gone, **new}
