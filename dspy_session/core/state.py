"""A conversation as a value: a seed, its turns, and the ways on from here.

Undo moves a position instead of dropping turns: turns before `stop` are the conversation, those
from `stop` to `tip` can be redone. Whole other paths, left when a turn was answered again, are
`ahead`. The functions from one state to the next are in `dspy_session.core.transitions`.

This module does not know what a model is shown of a turn, nor where ids and times come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

import msgspec

from dspy_session.core.options import SessionOptions
from dspy_session.core.turn import NOTHING_BESIDE, Beside, Known, Turn
from dspy_session.core.vectors import PVector, differing, vector
from dspy_session.core.window import EMPTY, FIRST_EPOCH, Epoch, Exchange, Window, seed_exchanges
from dspy_session.errors import TurnIndexError

__all__ = ["SessionState", "start", "visible_window", "with_id"]

_NO_TURNS: Final[PVector[Turn]] = vector()


class SessionState(msgspec.Struct, frozen=True, eq=False, weakref=True, kw_only=True):
    """One conversation: a seed, its turns, and the turns that can be redone.

    `SessionState()` is the empty conversation. Make others with `start` and the transitions; the
    attributes below `id` and `seed` are how they share structure, not something to build by hand.

    Attributes:
        id: The session's id, if it has one.
        seed: What came before the first turn; kept by `reset`.
        log: The exchanges of all held turns, position `first` coming first.
        held: The turns from `first` on; those from `tip` on are leftovers of a path not taken.
        first: The index of the oldest turn that is still stored.
        stop: The index that the next turn gets.
        tip: Where redoing ends.
        epoch: The stretch of life since a turn was last replaced.
        before: What stood beside the conversation before its first stored turn.
        ahead: The other paths that `redo` goes to when this one is at its end, the next one first:
            states without id, undone turns and paths ahead of their own.
    """

    id: str | None = None
    seed: tuple[Exchange, ...] = ()
    log: PVector[Exchange] = EMPTY
    held: PVector[Turn] = _NO_TURNS
    first: int = 0
    stop: int = 0
    tip: int = 0
    epoch: Epoch = FIRST_EPOCH
    before: Beside = NOTHING_BESIDE
    ahead: tuple[SessionState, ...] = ()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The stored turns, oldest first."""
        return tuple(self)

    @property
    def undone(self) -> tuple[Turn, ...]:
        """The turns that `redo` would bring back, in the order in which it would."""
        return tuple(self.held[n - self.first] for n in range(self.stop, self.tip))

    @property
    def path(self) -> tuple[Turn, ...]:
        """The stored turns, then the undone ones."""
        return tuple(islice(iter(self.held), self.tip - self.first))

    @property
    def last(self) -> Turn | None:
        """The latest turn, or None."""
        return self.held[self.stop - self.first - 1] if len(self) else None

    @property
    def beside(self) -> Beside:
        """What stands beside the conversation now."""
        last = self.last
        return self.before if last is None else last.beside

    @property
    def nested(self) -> Mapping[str, SessionState]:
        """The conversations of the sessions within the program, by module path."""
        return self.beside.nested

    @property
    def alternatives(self) -> tuple[Turn, ...]:
        """The turns at which the paths ahead part from this one, in the order of `redo`."""
        partings = ((other, self.parts_from(other)) for other in self.ahead)
        return tuple(other.held[at - other.first] for other, at in partings if at < other.tip)

    def turn(self, index: int) -> Turn:
        """Return the turn with that absolute index.

        Raises:
            TurnIndexError: No stored turn has it.
        """
        return self.held[self.position(index)]

    def position(self, index: int) -> int:
        """Return where among the held turns the one with that absolute index stands.

        Raises:
            TurnIndexError: No stored turn has it.
        """
        if type(index) is int and self.first <= index < self.stop:
            return index - self.first
        if len(self):
            stored = f"the stored turns have the indices {self.first} to {self.stop - 1}"
        else:
            stored = "no turn is stored"
        raise TurnIndexError(f"There is no turn {index!r}: {stored}.")

    def parts_from(self, other: SessionState) -> int:
        """Return the index from which on two paths with the same beginning have other turns."""
        end = min(self.tip, other.tip) - self.first
        return self.first + next(differing(self.log, other.log, end), end)

    def __len__(self) -> int:
        return self.stop - self.first

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Turn]:
        return islice(iter(self.held), len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SessionState):
            return NotImplemented
        return self.same_as(other, set())

    def __ne__(self, other: object) -> bool:
        return not self == other  # the one that msgspec brings compares identities

    def same_as(self, other: SessionState, known: Known) -> bool:
        """Whether both show equal things, also in the paths ahead and in what stands beside.

        Args:
            other: What to compare with.
            known: See `Turn.same_as`.
        """
        return self is other or (
            (self.id, self.first, self.stop, self.tip, len(self.seed), len(self.ahead))
            == (other.id, other.first, other.stop, other.tip, len(other.seed), len(other.ahead))
            and all(a.same_as(b) for a, b in zip(self.seed, other.seed, strict=True))
            and all(a.same_as(b, known) for a, b in zip(self.path, other.path, strict=True))
            and self.before.same_as(other.before, known)
            and all(a.same_as(b, known) for a, b in zip(self.ahead, other.ahead, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]  # equal by content, which may be large

    def __copy__(self) -> SessionState:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SessionState:
        return self

    def __repr__(self) -> str:
        return f"SessionState(id={self.id!r}, turns={len(self)}, undone={self.tip - self.stop})"


def start(messages: Iterable[Mapping[str, Any]] = (), *, id: str | None = None) -> SessionState:
    """Return a conversation without turns.

    Args:
        messages: A seed: one dict of field values per past exchange, oldest first.
        id: The session's id.

    Raises:
        HistoryError: `messages` holds something else than dicts of fields.

    Example:
        >>> len(start([{"question": "Hi", "answer": "Hello."}]))
        0
    """
    return SessionState(id=id, seed=seed_exchanges(messages))


def with_id(state: SessionState, id: str | None) -> SessionState:
    """Return the same conversation under another id."""
    return msgspec.structs.replace(state, id=id)


def visible_window(state: SessionState, options: SessionOptions) -> Window:
    """Return what the next call sees: the seed, then the latest `max_turns` turns, filtered.

    Law: the window shows the same messages for ever, and constructing it costs the same whatever
    the length of the conversation.
    """
    shown = len(state) if options.max_turns is None else min(options.max_turns, len(state))
    return Window(
        seed=state.seed,
        log=state.log,
        offset=state.first,
        start=state.stop - shown,
        stop=state.stop,
        epoch=state.epoch,
        view=options.view,
    )
