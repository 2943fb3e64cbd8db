"""Which exchange stood at which position: what windows share, as a short table.

Every window looks at a log, a persistent vector that shares structure with the other logs. A *path*
is the part of a log that windows of one epoch look at. Written out, a path is only what differs
from the path before it, and read back, its log is the log before with those positions set: so
logs share structure again.

Laws: `read_paths(write_paths(...))` shows at each position of each path the same exchange; a
conversation that only grew has one path with one patch; each replaced turn adds at most one path
and as many patches as positions differ.

This module does not know turns; see `dspy_session.core.flat` for the tables around the paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from dspy_session.core.vectors import PVector, vector
from dspy_session.core.window import EMPTY, Epoch, Exchange, Window

__all__ = ["Path", "gather_paths", "read_paths", "write_paths"]

_COPIES: Final = 64
"""How often, on average, reading sets an exchange. Few conversations need two; what a hostile file
makes of it stays proportional to its size."""


class Path(msgspec.Struct, frozen=True, array_like=True):
    """Which exchange stood at each position of a stretch.

    Attributes:
        start: The first position.
        stop: The position after the last.
        patches: `(position, exchange, how many)`: consecutive exchange numbers from there on. Where
            no patch is, the path before shows what stood there.
    """

    start: int
    stop: int
    patches: list[tuple[int, int, int]]


class Stretch:
    """A path while it is gathered from windows whose ends ascend."""

    def __init__(self, window: Window) -> None:
        self.start = self.stop = window.start
        self.cells: dict[int, Exchange] = {}
        self.extend(window)

    def takes(self, window: Window) -> bool:
        """Whether the window touches this stretch and surely agrees with it; see `Epoch`."""
        last = self.stop - 1
        touches = window.start <= self.stop and window.offset <= last
        return touches and window.log[last - window.offset] is self.cells[last]

    def extend(self, window: Window) -> None:
        """Take in what the window shows beyond this stretch."""
        for position in (*range(window.start, self.start), *range(self.stop, window.stop)):
            self.cells[position] = window.log[position - window.offset]
        self.start = min(self.start, window.start)
        self.stop = max(self.stop, window.stop)


def gather_paths(windows: Sequence[Window]) -> tuple[list[Stretch], list[int]]:
    """Return few paths that show every window, and for each window the number of its path.

    Args:
        windows: Any windows; 0 stands for the path of an empty one.
    """
    first_seen: dict[Epoch, int] = {}
    for window in windows:
        first_seen.setdefault(window.epoch, len(first_seen))

    def rank(number: int) -> tuple[int, int, int]:
        window = windows[number]
        return window.epoch.number, first_seen[window.epoch], window.stop

    stretches: list[Stretch] = []
    by_epoch: dict[Epoch, list[int]] = {}
    chosen = [0] * len(windows)
    for number in sorted(range(len(windows)), key=rank):
        window = windows[number]
        if window.start == window.stop:
            continue
        candidates = by_epoch.setdefault(window.epoch, [])
        path = next((path for path in candidates if stretches[path].takes(window)), None)
        if path is None:
            path = len(stretches)
            stretches.append(Stretch(window))
            candidates.append(path)
        else:
            stretches[path].extend(window)
        chosen[number] = path
    return stretches, chosen


def write_paths(stretches: Iterable[Stretch], number_of: Callable[[Exchange], int]) -> list[Path]:
    """Return the paths as what each changes in the one before.

    Args:
        stretches: What `gather_paths` returned.
        number_of: The number of an exchange.
    """
    paths = []
    before: dict[int, Exchange] = {}
    start = stop = 0
    for path in stretches:
        if _apart(path.start, path.stop, start, stop):
            before, start, stop = {}, path.start, path.start
        patches: list[tuple[int, int, int]] = []
        for position in range(path.start, path.stop):
            exchange = path.cells[position]
            if before.get(position) is not exchange:
                _add(patches, position, number_of(exchange))
        before.update(path.cells)
        start, stop = min(start, path.start), max(stop, path.stop)
        paths.append(Path(path.start, path.stop, patches))
    return paths


def read_paths(
    paths: Sequence[Path], exchanges: Sequence[Exchange]
) -> list[tuple[int, PVector[Exchange]]]:
    """Return for each path a log that shows it, and the position of the log's first exchange.

    Args:
        paths: What `write_paths` returned.
        exchanges: The exchanges by number.

    Raises:
        IndexError: A number is out of range, or a position has no exchange.
    """
    logs = []
    log, start, copies = EMPTY, 0, _COPIES * (len(exchanges) + 1)
    for path in paths:
        if not 0 <= path.start < path.stop:
            raise IndexError(f"a path goes from {path.start} to {path.stop}")
        if _apart(path.start, path.stop, start, start + len(log)):
            log, start = EMPTY, path.start
        if path.start < start:
            copies -= len(log)
        copies -= sum(max(count, 0) for _, _, count in path.patches)
        if copies < 0:
            raise IndexError("the paths repeat the same exchanges over and over")
        log = _patched(log, start, path, exchanges)
        start = min(start, path.start)
        logs.append((start, log))
    return logs


def _apart(start: int, stop: int, other_start: int, other_stop: int) -> bool:
    return start > other_stop or stop < other_start


def _add(patches: list[tuple[int, int, int]], position: int, number: int) -> None:
    if patches:
        at, first, count = patches[-1]
        if (position, number) == (at + count, first + count):
            patches[-1] = (at, first, count + 1)
            return
    patches.append((position, number, 1))


def _patched(
    log: PVector[Exchange], start: int, path: Path, exchanges: Sequence[Exchange]
) -> PVector[Exchange]:
    """Return the log, which begins at `start`, with the patches of a path that touches it."""
    cells: dict[int, Exchange] = {}
    for position, first, count in path.patches:
        inside = path.start <= position and position + count <= path.stop
        if not inside or count < 1 or first < 0 or first + count > len(exchanges):
            raise IndexError(f"a path puts the exchanges {first} + {count} at {position}")
        for ahead in range(count):
            cells[position + ahead] = exchanges[first + ahead]
    if path.start < start:
        if any(position not in cells for position in range(path.start, start)):
            raise IndexError(f"a path has holes between {path.start} and {start}")
        log = vector([*(cells.pop(p) for p in range(path.start, start)), *log])
        start = path.start
    evolver = log.evolver()
    for position, exchange in sorted(cells.items(), key=lambda cell: cell[0]):
        if position - start < len(evolver):
            evolver[position - start] = exchange
        elif position - start == len(evolver):
            evolver.append(exchange)
        else:
            break
    if path.stop - start > len(evolver):
        raise IndexError(f"a path has holes between {start} and {path.stop}")
    return evolver.persistent()
