"""What was not read yet of a chain: fetched at the first look, once, by whoever looks first."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from dspy_session.core.turn import Beside
from dspy_session.core.vectors import PVector, deferred, vector
from dspy_session.core.window import ALL_SHOWN, Epoch, Exchange, Window
from dspy_session.errors import FormatError
from dspy_session.journal.chains import Chain, Mark
from dspy_session.journal.payloads import StoredTurn
from dspy_session.stores.records import Node

if TYPE_CHECKING:  # it makes these, and they read with it
    from dspy_session.journal.reading import Reading

__all__ = ["Lane", "OlderTurns", "Seen"]

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
                nodes = self._reading.walk(self._key, self._first, self._stop)
                self._read = self._reading.turns(nodes, self._before, self._first)
            return self._read

    def read_marks(self) -> PVector[Mark]:
        """Where the turns are, although one of them is damaged."""
        nodes = self._reading.walk(self._key, self._first, self._stop)
        return vector(Mark(n.key, self._content(n), n.digest, n.total, n.base) for n in nodes)

    def _content(self, node: Node) -> int:
        try:
            like = self._reading.row(node).like
        except FormatError:
            like = None
        return node.key if like is None else like

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
                    nodes = self._reading.walk(self._key, self._start, self._stop)
                    rows = [self._reading.row(node) for node in nodes]
                    self._read = vector(self._reading.exchanges(nodes, rows))
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


class Seen:
    """What the turns of a chain saw."""

    def __init__(
        self,
        reading: Reading,
        nodes: Sequence[Node],
        rows: Sequence[StoredTurn],
        log: PVector[Exchange],
        first: int,
    ) -> None:
        self._reading, self._epoch = reading, Epoch()
        self._offset = first
        if first:
            own = (row.start for n, row in zip(nodes, rows, strict=True) if _sees_its_own(n, row))
            self._offset = min(own, default=first)
        self._log = log
        if self._offset < first:  # turns that were trimmed meanwhile
            self._log = deferred(reading.lane(nodes[0].key, self._offset, first, after=True), log)
        self._offset = min(self._offset, first)

    def window(self, node: Node, row: StoredTurn) -> Window:
        """Return what a turn saw.

        Args:
            node: Its node.
            row: Its row.

        Raises:
            FormatError: It says that it saw what it cannot have seen.
        """
        reading = self._reading
        seed = () if row.seed is None else reading.seed(row.seed)
        view = ALL_SHOWN if row.view is None else reading.view(row.view)
        start, stop = row.start, node.depth - row.unseen
        if start == stop:
            return Window(seed=seed, offset=start, start=start, stop=stop, view=view)
        if not 0 <= start < stop:
            raise FormatError(f"it saw the turns from {start} to {stop}")
        log, offset, epoch = self._log, self._offset, self._epoch
        if row.lane is not None:
            log = deferred(self._reading.lane(row.lane, start, stop), vector())
            offset, epoch = start, Epoch()
        elif stop > node.depth:
            raise FormatError(f"it saw turn {stop}, which came later")
        return Window(seed, log, offset, start, stop, epoch, view)  # by position: that is faster


def _sees_its_own(node: Node, row: StoredTurn) -> bool:
    return row.lane is None and row.start < node.depth - row.unseen
