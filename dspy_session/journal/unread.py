"""What was not read yet of a chain: fetched at the first look, once, by whoever looks first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from dspy_session.core.turn import Beside
from dspy_session.core.vectors import PVector, deferred, vector
from dspy_session.core.window import ALL_SHOWN, Epoch, Exchange, Window
from dspy_session.errors import FormatError
from dspy_session.journal.chains import Chain, Mark
from dspy_session.journal.steps import Steps

if TYPE_CHECKING:  # it makes these, and they read with it
    from dspy_session.journal.reading import Reading

__all__ = ["Lane", "OlderTurns", "windows"]

_MARKS: Final = 2


class OlderTurns:
    """The turns of a chain up to some depth, which are read when somebody looks.

    Args:
        reading: Reads them.
        key: The key of a node at or after their end.
        first: The index of the first.
        stop: The index after the last.
        before: What stood beside the conversation before its first turn.
    """

    def __init__(
        self, reading: Reading, key: int | None, first: int, stop: int, before: Beside
    ) -> None:
        self._reading, self._key, self._before = reading, key, before
        self.family = reading.family
        self._first, self._stop = first, stop
        self._mutex = threading.Lock()
        self._read: tuple[PVector[Any], ...] | None = None
        self.turns, self.log, self.marks = (Part(self, number) for number in range(_MARKS + 1))
        self.under = 0

    def __len__(self) -> int:
        return self._stop - self._first

    @property
    def is_read(self) -> bool:
        """Whether somebody looked."""
        return self._read is not None

    def read(self) -> tuple[PVector[Any], ...]:
        """Return the turns, their exchanges, and their marks.

        Raises:
            FormatError: One of them is damaged.
            StoreError: They cannot be read.
        """
        with self._mutex:
            if self._read is None:
                steps = self._reading.walk.steps(self._key, self._first, self._stop)
                self._read = self._reading.turns(steps, self._before, self._first)
            return self._read

    def read_marks(self) -> PVector[Mark]:
        """Where the turns are, although one of them is damaged."""
        return vector(self._reading.walk.marks(self._key, self._first, self._stop))

    def chain(self) -> Chain:
        """Return where all of these turns are stored."""
        nothing: PVector[Any] = vector()
        return Chain(
            self._first,
            len(self),
            deferred(self.turns, nothing),
            deferred(self.log, nothing),
            deferred(self.marks, nothing),
            self.under,
        )


class Part:
    """The turns, their exchanges, or their marks; it knows where they are stored."""

    def __init__(self, older: OlderTurns, number: int) -> None:
        self._older, self._number, self.family = older, number, older.family

    def __len__(self) -> int:
        return len(self._older)

    def items(self) -> PVector[Any]:
        """Return the items, the very same ones each time."""
        try:
            return self._older.read()[self._number]
        except FormatError:
            if self._number == _MARKS:  # to fork before a damaged turn, one need not read it
                return self._older.read_marks()
            raise

    @property
    def is_read(self) -> bool:
        """Whether somebody looked."""
        return self._older.is_read

    def chain(self) -> Chain:
        """Return where all of these turns are stored."""
        return self._older.chain()

    def newest(self, start: int, stop: int) -> None:  # noqa: ARG002  # nothing that a turn saw
        """Return None: these are no stretch that a turn saw, but its chain.

        Args:
            start: The index of the first turn of a stretch.
            stop: The index after the last.
        """
        return


class Lane:
    """What turns saw that is not among the turns of their chain; read when somebody looks."""

    def __init__(self, reading: Reading, key: int, start: int, stop: int, after: bool) -> None:
        self._reading, self._key, self._start, self._stop = reading, key, start, stop
        self._after, self.family = after, reading.family
        self._mutex = threading.Lock()
        self._read: PVector[Exchange] | None = None

    def __len__(self) -> int:
        return self._stop - self._start

    @property
    def is_read(self) -> bool:
        """Whether somebody looked."""
        return self._read is not None

    def items(self) -> PVector[Exchange]:
        """Return the exchanges, the very same ones each time."""
        with self._mutex:
            if self._read is None:
                if self._after:
                    steps = self._reading.walk.steps(self._key, self._start, self._stop)
                    self._read = vector(self._reading.exchanges(steps))
                else:
                    self._read = self._reading.seen(self._key, self._start, self._stop)
            return self._read

    def newest(self, start: int, stop: int) -> int | None:
        """Return the key of the newest node, if this is the stretch that is asked for.

        Args:
            start: The index of the first turn of a stretch.
            stop: The index after the last.
        """
        is_it = not self._after and (start, stop) == (self._start, self._stop)
        return self._key if is_it else None


def windows(reading: Reading, steps: Steps, log: PVector[Exchange], first: int) -> Iterator[Window]:
    """Yield what each of some turns saw.

    Args:
        reading: Reads what is of another chain.
        steps: The turns as they are stored.
        log: What the turns of their chain exchanged.
        first: The index of the first of these.

    Raises:
        FormatError: A turn says that it saw what it cannot have seen.
    """
    offset, epoch = first, Epoch()
    oldest = steps.oldest_seen(first) if first else first
    if oldest < first:  # turns that were trimmed meanwhile
        gone = reading.lane(steps.marks[0].key, oldest, first, after=True)
        offset, log = oldest, deferred(gone, log)
    for depth, row in enumerate(steps.rows, steps.depth):
        seed = () if row.seed is None else reading.seed(row.seed)
        view = ALL_SHOWN if row.view is None else reading.view(row.view)
        start, stop = row.start, depth - row.unseen
        if start == stop:
            yield Window(seed=seed, offset=start, start=start, stop=stop, view=view)
        elif not 0 <= start < stop:
            raise FormatError(f"it saw the turns from {start} to {stop}")
        elif row.lane is not None:
            lane: PVector[Exchange] = deferred(reading.lane(row.lane, start, stop), vector())
            yield Window(seed, lane, start, start, stop, Epoch(), view)
        elif stop > depth:
            raise FormatError(f"it saw turn {stop}, which came later")
        else:  # by position: that is faster
            yield Window(seed, log, offset, start, stop, epoch, view)
