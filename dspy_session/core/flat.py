"""A state as flat tables: what pickling and the wire format share.

Snapshots share structure in memory: each turn's window looks at the conversation's log as it was.
Written out one by one they would take space quadratic in the conversation. So the tables hold every
exchange once, and *paths* that say which exchange stood at which position; a window is then a few
numbers.

Laws: `unpack(pack(s)) == s`, snapshots included; the number of table entries is linear in the
number of turns plus the number of turns that were replaced; structure that was shared is shared
again.
"""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from dspy_session.core.paths import Path, gather_paths, read_paths, write_paths
from dspy_session.core.state import SessionState
from dspy_session.core.turn import Run, Turn
from dspy_session.core.vectors import PVector, vector
from dspy_session.core.window import Epoch, Exchange, View, Window

__all__ = ["FlatState", "FlatTurn", "FlatWindow", "pack", "unpack"]


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


class _Numbers:
    """Numbers for values, in order of first appearance."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._by_value: dict[Any, int] = {}

    def of(self, value: Any) -> int:
        if value not in self._by_value:
            self._by_value[value] = len(self.values)
            self.values.append(value)
        return self._by_value[value]

    def next_is(self, value: Any) -> None:
        """Give the next number to `value`, even if it has one."""
        self._by_value.setdefault(value, len(self.values))
        self.values.append(value)


def pack(state: SessionState) -> FlatState:
    """Return the tables of a state.

    Args:
        state: Any state.
    """
    turns = [*state.turns, *state.undone]
    stretches, chosen = gather_paths([turn.window for turn in turns])
    exchanges, seeds, views = _Numbers(), _Numbers(), _Numbers()
    for turn in turns:
        exchanges.next_is(turn.exchange)
    seeds.of(state.seed)
    flat_turns = [
        FlatTurn(
            index=turn.index,
            window=FlatWindow(
                path=path,
                start=turn.window.start,
                stop=turn.window.stop,
                seed=seeds.of(turn.window.seed),
                view=views.of(turn.window.view),
            ),
            run=turn.run,
            score=turn.score,
            feedback=turn.feedback,
        )
        for turn, path in zip(turns, chosen, strict=True)
    ]
    paths = write_paths(stretches, exchanges.of)
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
    logs = _Logs(flat)
    turns = [
        Turn(
            index=flat.first + number,
            exchange=_at(exchanges, number),
            window=logs.window(
                turn.window, _at(flat.seeds, turn.window.seed), _at(flat.views, turn.window.view)
            ),
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
    log = vector(exchanges[: len(turns)])
    return SessionState(
        id=flat.id,
        seed=_at(flat.seeds, 0),
        log=log,
        held=vector(turns),
        first=flat.first,
        stop=tip - flat.undone,
        tip=tip,
        epoch=logs.epoch_of(log, flat.first),
    )


def _reduce(state: SessionState) -> tuple[Any, ...]:
    return unpack, (pack(state),)


# Pickling turn by turn would write what each snapshot shows: quadratic in the conversation.
copyreg.pickle(SessionState, _reduce)


class _Logs:
    """The logs of a flat state's paths, each in an epoch of its own."""

    def __init__(self, flat: FlatState) -> None:
        self.paths = flat.paths
        self.logs = read_paths(flat.paths, flat.exchanges)
        self.epochs = [Epoch(number) for number in range(len(flat.paths))]

    def window(self, flat: FlatWindow, seed: tuple[Exchange, ...], view: View) -> Window:
        start, stop = flat.start, flat.stop
        if start == stop >= 0 == flat.path:
            return Window(seed=seed, offset=start, start=start, stop=stop, view=view)
        path = _at(self.paths, flat.path)
        if not path.start <= start < stop <= path.stop:
            raise IndexError(f"a window shows {start} to {stop} of a path that has less")
        offset, log = self.logs[flat.path]
        return Window(
            seed=seed,
            log=log,
            offset=offset,
            start=start,
            stop=stop,
            epoch=self.epochs[flat.path],
            view=view,
        )

    def epoch_of(self, log: PVector[Exchange], first: int) -> Epoch:
        """The epoch in which a state with this log goes on: the last path's, if it has led there.

        So saving and loading after every turn does not begin a path each time.
        """
        if not self.paths:
            return Epoch()
        path, (offset, latest) = self.paths[-1], self.logs[-1]
        common = range(max(first, path.start), min(first + len(log), path.stop))
        if all(log[position - first] is latest[position - offset] for position in common):
            return self.epochs[-1]
        return Epoch(len(self.paths))


_Item = TypeVar("_Item")


def _at(items: Sequence[_Item], number: int) -> _Item:
    if number < 0:
        raise IndexError(f"negative number {number}")
    return items[number]
