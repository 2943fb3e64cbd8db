"""Conversations joined into one tree: the turns, the branches that they make, the sessions on them.

Rules:

- Two turns that have the same id (or, without ids, are the same exchange) after the same turns are
  one. So a fork parts from its session where it went its own way, wherever it was loaded from.
- The tree is flat: turns and branches refer to each other by numbers, and a turn comes after the
  one that it follows. Nothing here is as deep as a conversation is long.
- A branch goes on to its end. Others part from it after one of its turns.

This module does not know how a tree is drawn.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from dspy_session.core.state import SessionState
from dspy_session.core.turn import Turn
from dspy_session.core.window import Exchange

__all__ = ["Branch", "Status", "TreeSession", "TreeTurn", "joined"]


class Status(enum.StrEnum):
    """How a turn stands to the sessions of a tree; of several, the first that applies."""

    CURRENT = "current"
    """A session has it."""
    UNDONE = "undone"
    """It was undone, and `redo` brings it back."""
    OTHER_ANSWER = "other answer"
    """It is on a path that was left when one of its turns was answered again."""
    SUMMARIZED = "summarized"
    """A summary stands in its place."""


class TreeSession(msgspec.Struct, frozen=True, eq=False):
    """One conversation of a tree.

    Attributes:
        number: Its number, from 0.
        name: Its id; something to call it by, if it has none.
        state: The conversation, as it may be handed on.
        head: The number of its latest turn; None if it has none.
    """

    number: int
    name: str
    state: SessionState
    head: int | None


class TreeTurn(msgspec.Struct, frozen=True, eq=False):
    """One turn of a tree.

    Attributes:
        number: Its number in the tree.
        parent: The number of the turn that it follows; None if it follows none.
        branch: The number of its branch.
        turn: The turn.
        path: A conversation in which it stands at its index.
        status: How it stands to the sessions.
        heads: The numbers of the sessions whose latest turn it is.
        summaries: What later calls were shown in place of the turns up to this one, if that was
            summarised: a seed for each summary.
    """

    number: int
    parent: int | None
    branch: int
    turn: Turn
    path: SessionState
    status: Status
    heads: tuple[int, ...] = ()
    summaries: tuple[tuple[Exchange, ...], ...] = ()


class Branch(msgspec.Struct, frozen=True, eq=False):
    """Turns that follow one another, up to an end.

    Attributes:
        number: Its number, from 0: that of the first session comes first.
        after: The number of the turn after which it begins; None at the start.
        turns: Its turns, oldest first; there is always one.
    """

    number: int
    after: int | None
    turns: tuple[TreeTurn, ...]


_RANKS: Final = tuple(Status)


_Rank = tuple[int, int, int]
"""Which of several turns the branch goes on with: the session, what of it, and how near."""


class _Node:
    """One turn while the tree grows."""

    __slots__ = (
        "children",
        "heads",
        "number",
        "parent",
        "path",
        "rank",
        "standing",
        "summaries",
        "turn",
    )

    def __init__(self, turn: Turn, path: SessionState, parent: _Node | None, rank: _Rank) -> None:
        self.turn, self.path, self.parent, self.rank = turn, path, parent, rank
        self.children: list[_Node] = []
        self.standing = len(_RANKS) - 1
        self.heads: list[int] = []
        self.summaries: list[tuple[Exchange, ...]] = []
        self.number = -1

    def main(self) -> _Node | None:
        """The child with which the branch goes on."""
        return min(self.children, key=lambda child: child.rank, default=None)


class _Growing:
    """A tree that lines of turns are put into, one after another."""

    def __init__(self) -> None:
        self.roots: list[_Node] = []
        self.known: dict[tuple[_Node | None, str | Exchange], _Node] = {}
        self.first: dict[str | Exchange, _Node] = {}

    def line(
        self,
        path: SessionState,
        after: _Node | None,
        rank: _Rank,
        status: Status,
        beyond: Status = Status.UNDONE,
    ) -> list[_Node]:
        """Put the turns of a path in: those of the conversation, and those beyond its end.

        A line whose beginning is not stored any more joins another that has its first turn.
        """
        nodes: list[_Node] = []
        for place, turn in enumerate(path.path):
            node = self._node(turn, path, nodes[-1] if nodes else after, rank)
            node.rank = min(node.rank, rank)
            standing = status if place < len(path) else beyond
            node.standing = min(node.standing, _RANKS.index(standing))
            if node.turn.score is None and turn.score is not None:
                node.turn, node.path = turn, path  # scored in one session, not in its fork
            nodes.append(node)
        return nodes

    def _node(self, turn: Turn, path: SessionState, before: _Node | None, rank: _Rank) -> _Node:
        identity = turn.run.id or turn.exchange
        node = self.known.get((before, identity))
        if node is None and before is None:
            node = self.first.get(identity)
        if node is None:
            node = self.known[before, identity] = _Node(turn, path, before, rank)
            self.first.setdefault(identity, node)
            (self.roots if before is None else before.children).append(node)
        return node

    def session(self, number: int, state: SessionState) -> _Node | None:
        """Put a session in, with all that it keeps; return its latest turn."""
        stretch: tuple[int, list[_Node]] = 0, []
        after: _Node | None = None
        for age, each in enumerate((*state.earlier, state)):
            now = each is state
            after = _before(each, stretch)
            if (
                age
                and after is not None
                and not any(_says_the_same(each.seed, seed) for seed in after.summaries)
            ):
                after.summaries.append(each.seed)
            standing = Status.CURRENT if now else Status.SUMMARIZED
            rank = (number, 0, 0) if now else (number, 2, -age)
            nodes = self.line(each, after, rank, standing)
            stretch = each.first, nodes
            for nearness, other in enumerate(each.ahead):
                rank = (number, 1 if now else 3, nearness)
                self.line(other, after, rank, Status.OTHER_ANSWER, Status.OTHER_ANSWER)
        head = stretch[1][len(state) - 1] if len(state) else after
        if head is not None:
            head.heads.append(number)
        return head


def _says_the_same(one: Sequence[Exchange], other: Sequence[Exchange]) -> bool:
    return len(one) == len(other) and all(map(Exchange.same_as, one, other))


def _before(state: SessionState, earlier: tuple[int, list[_Node]]) -> _Node | None:
    """The last turn before a state's first, among those of the conversation before a summary."""
    first, nodes = earlier
    at = state.first - 1 - first
    return nodes[at] if 0 <= at < len(nodes) else None


def joined(states: Iterable[SessionState]) -> tuple[tuple[TreeSession, ...], tuple[Branch, ...]]:
    """Return the sessions and the branches of one tree.

    Args:
        states: The conversations, the most important one first.
    """
    given = list(states)
    growing = _Growing()
    heads: dict[int, _Node | None] = {}
    for number, state in sorted(enumerate(given), key=lambda each: _oldest(each[1])):
        heads[number] = growing.session(number, state)  # the one that has the most turns leads
    branches = tuple(_branches(growing.roots))
    sessions = []
    for number, (state, name) in enumerate(zip(given, _names(given), strict=True)):
        head = heads[number]
        sessions.append(TreeSession(number, name, state, None if head is None else head.number))
    return tuple(sessions), branches


def _oldest(state: SessionState) -> int:
    return min(each.first for each in (*state.earlier, state))


def _names(states: Sequence[SessionState]) -> Iterator[str]:
    """What to call each session: its id, told from others of the same id by a number."""
    seen: dict[str, int] = {}
    for number, state in enumerate(states):
        name = state.id or (f"session {number + 1}" if len(states) > 1 else "conversation")
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name} ({seen[name]})"


def _branches(roots: Iterable[_Node]) -> Iterator[Branch]:
    """The branches, each after the one that it parts from; numbers the turns on the way."""
    waiting = sorted(roots, key=lambda node: node.rank)
    turns = 0
    for number, start in enumerate(waiting):  # it grows meanwhile
        members, node = list[TreeTurn](), start
        while True:
            node.number, turns = turns, turns + 1
            members.append(_tree_turn(node, number))
            main = node.main()
            sides = [child for child in node.children if child is not main]
            waiting.extend(sorted(sides, key=lambda child: child.rank))
            if main is None:
                break
            node = main
        parent = start.parent
        yield Branch(number, None if parent is None else parent.number, tuple(members))


def _tree_turn(node: _Node, branch: int) -> TreeTurn:
    return TreeTurn(
        number=node.number,
        parent=None if node.parent is None else node.parent.number,
        branch=branch,
        turn=node.turn,
        path=node.path,
        status=_RANKS[node.standing],
        heads=tuple(sorted(node.heads)),
        summaries=tuple(node.summaries),
    )
