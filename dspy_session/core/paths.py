"""What stood at which position, as short tables: the written form of vectors that share structure.

Every window looks at a log, every state holds its turns in a vector, and both share structure with
their other versions. A *path* is a stretch of such a vector. Written out, it is only what differs
from an earlier path, its base; read back, its vector is that of the base with those positions set:
so vectors share structure again.

Laws: reading what was written shows at each position of each path the same thing; the windows of a
conversation that only grew need one path; each replaced turn adds at most one path and as many
patches as positions differ; what reading costs is proportional to what is read.

This module knows neither turns nor states; see `dspy_session.core.flat` for the tables around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

import msgspec

from dspy_session.core.vectors import PVector, vector
from dspy_session.core.window import Epoch, Exchange, Window

__all__ = [
    "LONGEST_RUN",
    "Path",
    "gather_paths",
    "read_numbers",
    "read_vector",
    "write_patches",
    "write_paths",
]

LONGEST_RUN: Final = 64
"""The most positions of one patch, so that a short file cannot ask for long work."""

Patch = tuple[int, int, int]
_Item = TypeVar("_Item")


class Path(msgspec.Struct, frozen=True, array_like=True):
    """What stood at each position of a stretch.

    Attributes:
        base: The number of the earlier path that shows what stood where no patch is; None if
            patches say it all.
        start: The first position.
        stop: The position after the last.
        patches: `(position, number, how many)`: things with consecutive numbers from there on.
    """

    base: int | None
    start: int
    stop: int
    patches: list[Patch]


# Gathering the paths of windows


class Stretch:
    """A path while it is gathered from windows.

    Attributes:
        base: The number of the stretch that was most like it when it began.
        start: The first position.
        stop: The position after the last.
        cells: What stood at each position.
    """

    def __init__(self, base: int | None, at: int) -> None:
        self.base, self.start, self.stop = base, at, at
        self.cells: dict[int, Exchange] = {}

    def agrees(self, window: Window, start: int, stop: int) -> bool:
        """Whether the window shows the same, as far as this stretch goes from `start` to `stop`."""
        return all(
            window.log[position - window.offset] is self.cells[position]
            for position in range(max(start, self.start), min(stop, self.stop))
        )

    def extend(self, window: Window) -> list[Exchange]:
        """Take in what the window shows beyond this stretch, and return it."""
        beyond = (*range(window.start, self.start), *range(self.stop, window.stop))
        added = {position: window.log[position - window.offset] for position in beyond}
        self.cells.update(added)
        self.start = min(self.start, window.start)
        self.stop = max(self.stop, window.stop)
        return list(added.values())


class _Strand:
    """How far a stretch is known to agree with the windows of one epoch, whose ends ascend."""

    def __init__(self, path: int, stretch: Stretch, window: Window) -> None:
        self.path, self.stretch = path, stretch
        self.low, self.high = window.start, window.stop

    def takes(self, window: Window) -> bool:
        """Whether the window touches the stretch and agrees with it; see `Epoch` for why."""
        last, stretch = self.high - 1, self.stretch
        return (
            window.start <= self.high
            and window.offset <= last
            and window.log[last - window.offset] is stretch.cells[last]
            and (window.start >= self.low or stretch.agrees(window, window.start, self.low))
            and (stretch.stop <= self.high or stretch.agrees(window, self.high, window.stop))
        )

    def reach(self, window: Window) -> None:
        self.low, self.high = min(self.low, window.start), max(self.high, window.stop)


def gather_paths(windows: Sequence[Window]) -> tuple[list[Stretch], list[int]]:
    """Return few paths that show every window, and for each window the number of its path.

    Windows of one epoch are compared at one position only. A window that no stretch of its epoch
    takes is compared in full with one of another: a conversation that was saved and loaded goes on
    in a new epoch, on the old path.

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
    path_of: dict[Exchange, int] = {}
    strands: dict[Epoch, list[_Strand]] = {}
    chosen = [0] * len(windows)
    for number in sorted(range(len(windows)), key=rank):
        window = windows[number]
        if window.start == window.stop:
            continue
        mine = strands.setdefault(window.epoch, [])
        strand = next((strand for strand in mine if strand.takes(window)), None)
        if strand is None:
            strand = _begin(window, stretches, path_of)
            mine.append(strand)
        strand.reach(window)
        for exchange in strand.stretch.extend(window):
            path_of[exchange] = strand.path
        chosen[number] = strand.path
    return stretches, chosen


def _begin(window: Window, stretches: list[Stretch], path_of: dict[Exchange, int]) -> _Strand:
    """A strand on the stretch that shows what the window shows last, or on a new one."""
    path = None
    for position in range(window.stop - 1, max(window.start - 1, window.offset) - 1, -1):
        exchange = window.log[position - window.offset]
        path = path_of.get(exchange)
        if path is not None and stretches[path].cells.get(position) is exchange:
            break
        path = None
    if path is None or not stretches[path].agrees(window, window.start, window.stop):
        stretches.append(Stretch(path, window.start))
        path = len(stretches) - 1
    return _Strand(path, stretches[path], window)


# Writing


def write_paths(stretches: Sequence[Stretch], number_of: Callable[[Exchange], int]) -> list[Path]:
    """Return the paths as what each changes in its base.

    Args:
        stretches: What `gather_paths` returned.
        number_of: The number of an exchange.
    """
    paths: list[Path] = []
    begins: list[int] = []
    for path in stretches:
        base = path.base
        if base is not None and begins[base] > path.start:
            base = None
        begins.append(path.start if base is None else begins[base])
        patches = write_patches(
            (position, number_of(path.cells[position]))
            for position in range(path.start, path.stop)
            if _shown(stretches, paths, base, position) is not path.cells[position]
        )
        paths.append(Path(base, path.start, path.stop, patches))
    return paths


def _shown(
    stretches: Sequence[Stretch], paths: Sequence[Path], path: int | None, position: int
) -> Exchange | None:
    """What stands at a position of a path's vector, which has more than the path shows."""
    while path is not None:
        if position in stretches[path].cells:
            return stretches[path].cells[position]
        path = paths[path].base
    return None


def write_patches(cells: Iterable[tuple[int, int]], offset: int = 0) -> list[Patch]:
    """Return the patches that put numbers at positions.

    Args:
        cells: Positions in ascending order, each with a number.
        offset: What to add to each position.
    """
    patches: list[Patch] = []
    at = first = count = 0
    for position, number in cells:
        if count and count < LONGEST_RUN and position - at == count == number - first:
            count += 1
        else:
            if count:
                patches.append((at + offset, first, count))
            at, first, count = position, number, 1
    if count:
        patches.append((at + offset, first, count))
    return patches


# Reading


def read_numbers(path: Path, count: int) -> dict[int, int]:
    """Return which numbers the patches of a path put at which positions.

    Args:
        path: A path.
        count: How many things there are to put.

    Raises:
        IndexError: A position or a number is out of range.
    """
    if not 0 <= path.start <= path.stop:
        raise IndexError(f"a path goes from {path.start} to {path.stop}")
    numbers: dict[int, int] = {}
    for position, first, run in path.patches:
        inside = path.start <= position and position + run <= path.stop
        if not inside or not 1 <= run <= LONGEST_RUN or first < 0 or first + run > count:
            raise IndexError(f"a path puts {first} + {run} of {count} at {position}")
        numbers.update(zip(range(position, position + run), range(first, first + run), strict=True))
    return numbers


def read_vector(
    path: Path, cells: dict[int, _Item], base: tuple[int, PVector[_Item]] | None
) -> tuple[int, PVector[_Item]]:
    """Return a vector that shows a path, and the position of its first item.

    Args:
        path: A path.
        cells: What its patches put at which position.
        base: The vector of the path's base, and the position of its first item.

    Raises:
        IndexError: A position would be empty.
    """
    start, items = (path.start, vector()) if base is None else base
    if not start <= path.start <= start + len(items):
        raise IndexError(f"a path from {path.start} on does not touch its base")
    evolver = items.evolver()
    for position in sorted(cells):
        if position - start > len(evolver):
            break
        evolver[position - start] = cells[position]
    if path.stop - start > len(evolver):
        raise IndexError(f"a path has holes between {start} and {path.stop}")
    return start, evolver.persistent()
