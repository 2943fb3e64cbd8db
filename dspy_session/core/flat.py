"""A state as flat tables: what pickling and the wire format share.

Snapshots share structure in memory: each turn's window looks at the conversation's log as it was.
Written out one by one they would take space quadratic in the conversation. So the tables hold every
exchange once, and *paths* that say which exchange stood at which position; a window is then three
numbers. Positions only get new contents when something was edited, and every edit begins a new
`epoch`, so a conversation that only ever grew has one path.

Laws: `unpack(pack(s)) == s`, snapshots included; the number of table entries is linear in the
number of turns plus the number of positions that were edited.
"""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from pyrsistent import PVector, pvector

from dspy_session.core.state import SessionState
from dspy_session.core.turn import Run, Turn
from dspy_session.core.window import Exchange, View, Window

__all__ = ["FlatState", "FlatTurn", "FlatWindow", "Path", "pack", "unpack"]


class Path(msgspec.Struct, frozen=True, array_like=True):
    """Which exchange stood at which position.

    Attributes:
        start: The first position.
        runs: `(first exchange, how many)` stretches of consecutive exchange numbers.
    """

    start: int
    runs: list[tuple[int, int]]


class FlatWindow(msgspec.Struct, frozen=True, array_like=True):
    """A window by numbers: which path, from where to where, which seed, which view."""

    path: int
    start: int
    stop: int
    seed: int
    view: int


class FlatTurn(msgspec.Struct, frozen=True):
    """A turn whose window is by numbers; its exchange is the one with the turn's own number."""

    index: int
    window: FlatWindow
    run: Run
    score: float | None
    feedback: str | None


class FlatState(msgspec.Struct, frozen=True):
    """The tables of one state.

    Attributes:
        id: The session's id.
        turns: The stored turns, then those that can be redone.
        undone: How many of them can be redone.
        first: The index of the oldest stored turn.
        exchanges: First the turns' own, in their order; then those only a snapshot still shows.
        paths: See `Path`.
        seeds: The state's seed, then those of windows.
        views: The views of windows.
    """

    id: str | None
    turns: list[FlatTurn]
    undone: int
    first: int
    exchanges: list[Exchange]
    paths: list[Path]
    seeds: list[tuple[Exchange, ...]]
    views: list[View]


class _Stretch:
    """A path while it is gathered: grows downwards from its end."""

    def __init__(self, stop: int) -> None:
        self.start = self.stop = stop
        self.exchanges: list[Exchange] = []  # from the end

    def at(self, position: int) -> Exchange | None:
        inside = self.start <= position < self.stop
        return self.exchanges[self.stop - 1 - position] if inside else None

    def extend(self, window: Window) -> None:
        for position in range(self.start - 1, window.start - 1, -1):
            self.exchanges.append(window.log[position - window.offset])
            self.start = position


class _Numbers:
    """Numbers for values, in order of first appearance."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._by_key: dict[Any, int] = {}

    def of(self, value: Any, key: Any) -> int:
        if key not in self._by_key:
            self._by_key[key] = len(self.values)
            self.values.append(value)
        return self._by_key[key]


def pack(state: SessionState) -> FlatState:
    """Return the tables of a state.

    Args:
        state: Any state.
    """
    turns = [*state.turns, *state.undone]
    stretches, chosen = _gather_paths([turn.window for turn in turns])
    exchanges, seeds, views = _Numbers(), _Numbers(), _Numbers()
    for turn in turns:
        exchanges.of(turn.exchange, turn.exchange)
    seeds.of(state.seed, state.seed)
    flat_turns = [
        FlatTurn(
            index=turn.index,
            window=FlatWindow(
                path=path,
                start=turn.window.start,
                stop=turn.window.stop,
                seed=seeds.of(turn.window.seed, turn.window.seed),
                view=views.of(turn.window.view, turn.window.view),
            ),
            run=turn.run,
            score=turn.score,
            feedback=turn.feedback,
        )
        for turn, path in zip(turns, chosen, strict=True)
    ]
    paths = [
        Path(s.start, _runs([exchanges.of(e, e) for e in reversed(s.exchanges)])) for s in stretches
    ]
    return FlatState(
        id=state.id,
        turns=flat_turns,
        undone=state.tip - state.stop,
        first=state.first,
        exchanges=exchanges.values,
        paths=paths,
        seeds=seeds.values,
        views=views.values,
    )


def unpack(flat: FlatState) -> SessionState:
    """Return the state whose tables these are.

    Args:
        flat: What `pack` returned; numbers out of range raise `IndexError` or `ValueError`.
    """
    exchanges = flat.exchanges
    logs = [_log_of(path, exchanges) for path in flat.paths]
    turns = [
        Turn(
            index=flat.first + number,
            exchange=_at(exchanges, number),
            window=_window_of(turn.window, flat, logs),
            run=turn.run,
            score=turn.score,
            feedback=turn.feedback,
        )
        for number, turn in enumerate(flat.turns)
    ]
    if not 0 <= flat.undone <= len(turns) or flat.first < 0:
        raise ValueError(f"{flat.undone} undone of {len(turns)} turns from {flat.first} on")
    if [turn.index for turn in flat.turns] != [turn.index for turn in turns]:
        raise ValueError("turn indices are not consecutive")
    tip = flat.first + len(turns)
    return SessionState(
        id=flat.id,
        seed=_at(flat.seeds, 0),
        log=pvector(exchanges[: len(turns)]),
        held=pvector(turns),
        first=flat.first,
        stop=tip - flat.undone,
        tip=tip,
        epoch=len(flat.paths),  # above every window's, so that nothing is taken for its prefix
    )


def _reduce(state: SessionState) -> tuple[Any, ...]:
    return unpack, (pack(state),)


# Pickling turn by turn would write what each snapshot shows: quadratic in the conversation.
copyreg.pickle(SessionState, _reduce)


def _gather_paths(windows: Sequence[Window]) -> tuple[list[_Stretch], list[int]]:
    """Return as few paths as show every window, and for each window the number of its path.

    Within an epoch positions only fill up, so the longest window contains the others of its
    history. Windows of different histories may meet in one epoch (a public `commit` can be given
    any state); the exchange at a window's end tells them apart, for it was appended only once.
    """
    stretches: list[_Stretch] = []
    by_epoch: dict[int, list[int]] = {}
    chosen = [0] * len(windows)
    for number in sorted(range(len(windows)), key=lambda n: -windows[n].stop):
        window = windows[number]
        if window.start == window.stop:
            continue
        last = window.log[window.stop - 1 - window.offset]
        candidates = by_epoch.setdefault(window.epoch, [])
        for path in candidates:
            if stretches[path].at(window.stop - 1) is last:
                break
        else:
            path = len(stretches)
            stretches.append(_Stretch(window.stop))
            candidates.append(path)
        stretches[path].extend(window)
        chosen[number] = path
    return stretches, chosen


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs


def _log_of(path: Path, exchanges: Sequence[Exchange]) -> PVector[Exchange]:
    members: list[Exchange] = []
    for first, count in path.runs:
        if first < 0 or count < 0 or first + count > len(exchanges):
            raise IndexError(f"a path names the exchanges {first} to {first + count - 1}")
        members.extend(exchanges[first : first + count])
    return pvector(members)


def _window_of(flat: FlatWindow, state: FlatState, logs: Sequence[PVector[Exchange]]) -> Window:
    seed, view = _at(state.seeds, flat.seed), _at(state.views, flat.view)
    if flat.start == flat.stop:
        return Window(seed=seed, start=flat.start, stop=flat.stop, offset=flat.start, view=view)
    log, path = _at(logs, flat.path), _at(state.paths, flat.path)
    if not path.start <= flat.start < flat.stop <= path.start + len(log):
        raise IndexError(f"a window shows {flat.start} to {flat.stop} of a path that has less")
    return Window(
        seed=seed,
        log=log,
        offset=path.start,
        start=flat.start,
        stop=flat.stop,
        epoch=flat.path,
        view=view,
    )


_Item = TypeVar("_Item")


def _at(items: Sequence[_Item], number: int) -> _Item:
    if number < 0:
        raise IndexError(f"negative number {number}")
    return items[number]
