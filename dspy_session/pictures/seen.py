"""What a call saw of the past, and what its turn did to the session data.

What a call saw is told by reference, for told in full it would be quadratic in the conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any

import msgspec

from dspy_session.core.data import Data
from dspy_session.core.state import SessionState
from dspy_session.core.vectors import stretch
from dspy_session.core.window import Exchange, Window
from dspy_session.pictures.nodes import Branch, TreeTurn

__all__ = ["Change", "Seen", "changes", "seen_by"]


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


def seen_by(shown: TreeTurn, branches: Sequence[Branch]) -> Seen:
    """Return what the call of a turn saw.

    Args:
        shown: The turn.
        branches: The branches of its tree.
    """
    window, path = shown.turn.window, shown.path
    same, gone = list[int](), list[tuple[int, Exchange]]()
    stored = stretch(path.log, max(0, window.start - path.first), window.stop - path.first)
    held = chain[Exchange | None](repeat(None, max(0, path.first - window.start)), stored)
    then = stretch(window.log, window.start - window.offset, window.stop - window.offset)
    for at, (exchange, now) in enumerate(zip(then, held, strict=False), window.start):
        if exchange.erased:
            continue
        if exchange is now:
            same.append(at)
        else:
            gone.append((at, exchange))
    return Seen(
        seed=window.seed,
        stretches=tuple(
            (_ancestor(shown, start, branches), _ancestor(shown, end, branches))
            for start, end in _unbroken(same)
        ),
        count=len(same),
        gone=tuple(gone),
        hidden=tuple(sorted(_hidden(window, path, same, gone))),
    )


def _hidden(
    window: Window,
    path: SessionState,
    same: Sequence[int],
    gone: Sequence[tuple[int, Exchange]],
) -> set[str]:
    """The names of the fields, of what is in a window, that it does not show."""
    view = window.view
    shapes = {path.log[at - path.first].shape for at in same} | {each.shape for _, each in gone}
    hidden = {name for shape in shapes for names in shape for name in names if name in view.exclude}
    if view.inputs is not None:
        hidden.update(name for inputs, _ in shapes for name in inputs if name not in view.inputs)
    return hidden


def _unbroken(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last of each unbroken stretch of ascending numbers."""
    found: list[tuple[int, int]] = []
    for at in numbers:
        if found and found[-1][1] == at - 1:
            found[-1] = found[-1][0], at
        else:
            found.append((at, at))
    return found


def _ancestor(shown: TreeTurn, index: int, branches: Sequence[Branch]) -> TreeTurn:
    """The turn of an index on the way to this one."""
    branch = branches[shown.branch]
    while index < branch.turns[0].turn.index and branch.after is not None:
        branch = next(
            b for b in branches if b.turns[0].number <= branch.after <= b.turns[-1].number
        )
    return branch.turns[index - branch.turns[0].turn.index]


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
