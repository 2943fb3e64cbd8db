"""What a call saw of the past, and what its turn did to the session data.

What a call saw is told by reference, for told in full it would be quadratic in the conversation.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import chain, islice, pairwise, repeat, takewhile
from typing import Any

import msgspec

from dspy_session.core.data import Data
from dspy_session.core.state import SessionState
from dspy_session.core.vectors import differing, stretch
from dspy_session.core.window import Exchange, Window
from dspy_session.pictures.nodes import Branch, TreeTurn

__all__ = ["Change", "Seen", "Sight", "changes"]


class Seen(msgspec.Struct, frozen=True, eq=False):
    """What one call saw.

    Attributes:
        seed: What it saw before all turns.
        stretches: The turns that it saw, as the first and the last of each unbroken stretch.
        count: How many turns that are.
        gone: What stands nowhere in the tree any more, for it was replaced or is not stored, with
            the index of its turn.
        hidden: The names of the fields that it was not shown.
    """

    seed: tuple[Exchange, ...]
    stretches: tuple[tuple[TreeTurn, TreeTurn], ...]
    count: int
    gone: tuple[tuple[int, Exchange], ...]
    hidden: tuple[str, ...]


class Sight:
    """What the calls of the turns of one tree saw.

    What differs between a window and its conversation is found by what their vectors share, and the
    rest of what has to be known of a conversation is found once: each turn costs the same.
    """

    def __init__(self, branches: Sequence[Branch]) -> None:
        """Look at the turns of a tree.

        Args:
            branches: Its branches.
        """
        self._branches = branches
        self._logs: dict[int, _Log] = {}

    def of(self, shown: TreeTurn) -> Seen:
        """Return what the call of a turn saw.

        Args:
            shown: The turn.
        """
        window, path = shown.turn.window, shown.path
        log = self._logs.setdefault(id(path), _Log(path))
        other = _other(shown)
        then = ((at, window.log[at - window.offset]) for at in other)
        gone = tuple((at, exchange) for at, exchange in then if not exchange.erased)
        passed = sorted({*other, *log.erased_in(window.start, window.stop)})
        return Seen(
            seed=window.seed,
            stretches=tuple(
                (self._ancestor(shown, first), self._ancestor(shown, last))
                for first, last in _between(window.start, window.stop, passed)
            ),
            count=window.stop - window.start - len(passed),
            gone=gone,
            hidden=tuple(sorted(_hidden(window, log, passed, gone))),
        )

    def _ancestor(self, shown: TreeTurn, index: int) -> TreeTurn:
        """The turn of an index on the way to this one."""
        branch = self._branches[shown.branch]
        while index < branch.turns[0].turn.index and branch.after is not None:
            after = branch.after
            branch = next(
                b for b in self._branches if b.turns[0].number <= after <= b.turns[-1].number
            )
        return branch.turns[index - branch.turns[0].turn.index]


_Shape = tuple[tuple[str, ...], tuple[str, ...]]


class _Log:
    """Where a conversation has exchanges of which shape, and erased ones; looked up when asked."""

    def __init__(self, path: SessionState) -> None:
        self._path = path

    @functools.cached_property
    def _places(self) -> dict[_Shape | None, list[int]]:
        places: dict[_Shape | None, list[int]] = {None: []}
        for at, exchange in enumerate(self._path.log, self._path.first):
            places.setdefault(None if exchange.erased else exchange.shape, []).append(at)
        return places

    def erased_in(self, start: int, stop: int) -> list[int]:
        """The positions of erased exchanges from one position up to another."""
        erased = self._places[None]
        return erased[bisect_left(erased, start) : bisect_left(erased, stop)]

    def shapes_in(self, start: int, stop: int, passed: Sequence[int]) -> Iterator[_Shape]:
        """The shapes of the exchanges there, without those at some positions."""
        over = frozenset(passed)
        for shape, places in self._places.items():
            there = takewhile(
                lambda at: at < stop, islice(places, bisect_left(places, start), None)
            )
            if shape is not None and not over.issuperset(there):
                yield shape


def _other(shown: TreeTurn) -> list[int]:
    """The positions at which a turn's window shows something else than what stands before it.

    Of what its call saw, the turn may have been recorded over the end: turns were undone meanwhile.
    """
    window, log, first = shown.turn.window, shown.path.log, shown.path.first
    start, stop = window.start, window.stop
    end = max(start, min(stop, shown.turn.index))
    if window.offset == first:
        found = (at + first for at in differing(window.log, log, end - first))
        other = [at for at in found if at >= start]
    else:
        stored = stretch(log, max(0, start - first), max(0, end - first))
        held = chain[Exchange | None](repeat(None, min(end, first) - start), stored)
        then = stretch(window.log, start - window.offset, end - window.offset)
        both = enumerate(zip(then, held, strict=True), start)
        other = [at for at, (exchange, now) in both if exchange is not now]
    return [*other, *range(end, stop)]


def _hidden(
    window: Window, log: _Log, passed: Sequence[int], gone: Sequence[tuple[int, Exchange]]
) -> set[str]:
    """The names of the fields, of what is in a window, that it does not show."""
    view = window.view
    if not view.exclude and view.inputs is None:
        return set()
    shapes = {*log.shapes_in(window.start, window.stop, passed), *(each.shape for _, each in gone)}
    hidden = {name for shape in shapes for names in shape for name in names if name in view.exclude}
    if view.inputs is not None:
        hidden.update(name for inputs, _ in shapes for name in inputs if name not in view.inputs)
    return hidden


def _between(start: int, stop: int, passed: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and the last of each unbroken stretch of positions, without those passed over."""
    for before, after in pairwise((start - 1, *passed, stop)):
        if before + 1 < after:
            yield before + 1, after - 1


class Change(msgspec.Struct, frozen=True):
    """What became of one key of the session data.

    Attributes:
        key: The key.
        before: The value that it had, as plain JSON; None where it had none, too.
        after: The value that it has.
        kind: `"added"`, `"changed"` or `"removed"`.
    """

    key: str
    before: Any
    after: Any
    kind: str


def changes(before: Data, after: Data) -> list[Change]:
    """Return what differs between two versions of session data, key by key.

    Args:
        before: The earlier one.
        after: The later one.

    Example:
        >>> [change.kind for change in changes(Data({"a": 1, "b": 2}), Data({"b": 3, "c": 4}))]
        ['changed', 'added', 'removed']
    """
    if before is after:
        return []
    old, new = dict(before.raws()), dict(after.raws())
    found = [
        Change(key, before.get(key), after[key], "changed" if key in old else "added")
        for key, raw in new.items()
        if old.get(key) != raw
    ]
    return found + [Change(key, before[key], None, "removed") for key in old if key not in new]
