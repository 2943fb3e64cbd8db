"""A tree in the order in which it is drawn: one sequence for a terminal and for a page.

A branch that parts from another stands right after the turn from which it parts. Of more turns than
may be drawn, the newest of each branch are, the branches first that come first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import msgspec

from dspy_session.pictures.nodes import Branch, TreeTurn

__all__ = ["Closed", "LeftOut", "Opened", "Shown", "outline"]


class Opened(msgspec.Struct, frozen=True):
    """A branch begins; its turns and the branches that part from it follow.

    Attributes:
        branch: The branch.
        depth: How many branches it stands within.
    """

    branch: Branch
    depth: int


class LeftOut(msgspec.Struct, frozen=True):
    """Turns that are not drawn, at the beginning of a branch.

    Attributes:
        count: How many.
        all: Whether none of the branch is drawn.
    """

    count: int
    all: bool


class Shown(msgspec.Struct, frozen=True):
    """A turn.

    Attributes:
        turn: The turn.
        last: Whether it is the last of its branch.
    """

    turn: TreeTurn
    last: bool


class Closed(msgspec.Struct, frozen=True):
    """The branch that was opened last and not closed yet ends."""


Step = Opened | LeftOut | Shown | Closed


class _Parting(msgspec.Struct, frozen=True):
    """Branches that stand here, one after another."""

    branches: Sequence[Branch]
    depth: int


def outline(branches: Sequence[Branch], limit: int | None) -> Iterator[Step]:
    """Yield what to draw, in order.

    Args:
        branches: The branches of a tree.
        limit: How many turns at most; None for all.
    """
    room = _room(branches, limit)
    sides: dict[int | None, list[Branch]] = {}
    for branch in branches:
        sides.setdefault(branch.after, []).append(branch)
    stack = [iter(list[Step | _Parting]([_Parting(sides.get(None, ()), 0)]))]
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
        elif isinstance(step, _Parting):
            depth = step.depth
            within = [_within(each, room[each.number], depth, sides) for each in step.branches]
            stack.append(chain.from_iterable(within))
        else:
            yield step


def _room(branches: Sequence[Branch], limit: int | None) -> dict[int, int]:
    """How many turns of each branch are drawn."""
    left, room = limit, {}
    for branch in branches:
        count = len(branch.turns)
        room[branch.number] = count if left is None else min(count, left)
        left = None if left is None else left - room[branch.number]
    return room


def _within(
    branch: Branch, room: int, depth: int, sides: Mapping[int | None, Sequence[Branch]]
) -> Iterator[Step | _Parting]:
    """A branch and what stands in it."""
    hidden = len(branch.turns) - room
    yield Opened(branch, depth)
    if hidden:
        yield LeftOut(hidden, not room)
    for place, turn in enumerate(branch.turns):
        if place >= hidden:
            yield Shown(turn, place == len(branch.turns) - 1)
        if turn.number in sides:
            yield _Parting(sides[turn.number], depth + 1)
    yield Closed()
