"""A conversation as a value, and the pure functions from one conversation to the next.

Laws, for every state `s`:

- No function here changes its arguments; what does not change is shared, so a fork is the same
  value under another name and costs nothing.
- `undo(s, k)` then `redo(k)` is `s` again, until another path is taken: recording, replacing,
  resetting and trimming end what could be redone; scoring does not.
- `len(record(s, ...)[1]) == len(s) + 1`, unless trimming takes one away; indices never repeat
  along a path and never move.
- After any error the caller still holds `s`, unchanged.
- Record, undo, redo, rewind and fork cost the same at 10 and at 10,000 turns.

Undo moves a position instead of dropping turns: turns before `stop` are the conversation, those
from `stop` to `tip` can be redone. This module does not know what a model is shown of a turn, nor
where ids and times come from.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec

from dspy_session.core.options import SessionOptions
from dspy_session.core.turn import Run, Turn
from dspy_session.core.vectors import PVector, vector
from dspy_session.core.window import EMPTY, FIRST_EPOCH, Epoch, Exchange, Window, seed_exchanges
from dspy_session.errors import OptionError, TurnIndexError

__all__ = [
    "SessionState",
    "annotate",
    "record",
    "redo",
    "replace_turn",
    "reseed",
    "reset",
    "rewind",
    "start",
    "truncate",
    "undo",
    "visible_window",
    "with_id",
]

_NO_TURNS: Final[PVector[Turn]] = vector()


class SessionState(msgspec.Struct, frozen=True, eq=False, weakref=True, kw_only=True):
    """One conversation: a seed, its turns, and the turns that can be redone.

    `SessionState()` is the empty conversation. Make others with the functions of this module; the
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
    """

    id: str | None = None
    seed: tuple[Exchange, ...] = ()
    log: PVector[Exchange] = EMPTY
    held: PVector[Turn] = _NO_TURNS
    first: int = 0
    stop: int = 0
    tip: int = 0
    epoch: Epoch = FIRST_EPOCH

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The stored turns, oldest first."""
        return tuple(self)

    @property
    def undone(self) -> tuple[Turn, ...]:
        """The turns that `redo` would bring back, in the order in which it would."""
        return tuple(self.held[n - self.first] for n in range(self.stop, self.tip))

    @property
    def last(self) -> Turn | None:
        """The latest turn, or None."""
        return self.held[self.stop - self.first - 1] if len(self) else None

    def turn(self, index: int) -> Turn:
        """Return the turn with that absolute index.

        Raises:
            TurnIndexError: No stored turn has it.
        """
        return self.held[_position(self, index)]

    def __len__(self) -> int:
        return self.stop - self.first

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Turn]:
        return islice(iter(self.held), len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SessionState):
            return NotImplemented
        return self is other or (
            (self.id, self.first, self.stop, self.tip)
            == (other.id, other.first, other.stop, other.tip)
            and len(self.seed) == len(other.seed)
            and all(a.same_as(b) for a, b in zip(self.seed, other.seed, strict=True))
            and self.turns == other.turns
            and self.undone == other.undone
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


def record(
    state: SessionState,
    exchange: Exchange,
    window: Window,
    run: Run,
    max_stored_turns: int | None = None,
) -> tuple[Turn, SessionState]:
    """Append a turn.

    Args:
        state: The conversation.
        exchange: What went in and what came out; a new one, that no other turn has.
        window: What the call saw.
        run: How the run went.
        max_stored_turns: Keep at most this many turns.

    Returns:
        The new turn and the new state, in which nothing can be redone.

    Raises:
        OptionError: `max_stored_turns` is negative or no whole number.
    """
    turn = Turn(index=state.stop, exchange=exchange, window=window, run=run)
    held, log = _put(state, len(state), turn)
    stop = state.stop + 1
    grown = msgspec.structs.replace(state, held=held, log=log, stop=stop, tip=stop)
    return turn, truncate(grown, max_stored_turns)


def undo(state: SessionState, steps: int = 1) -> tuple[tuple[Turn, ...], SessionState]:
    """Take back the latest turns.

    Args:
        state: The conversation.
        steps: How many, at most; there may be fewer.

    Returns:
        The turns taken back, newest first, and the new state, in which they can be redone.

    Raises:
        OptionError: `steps` is negative or no whole number.
    """
    count = min(_whole("steps", steps), len(state))
    if not count:
        return (), state
    removed = tuple(state.held[len(state) - 1 - back] for back in range(count))
    return removed, msgspec.structs.replace(state, stop=state.stop - count)


def redo(state: SessionState, steps: int = 1) -> tuple[tuple[Turn, ...], SessionState]:
    """Bring back turns that were taken back.

    Args:
        state: The conversation.
        steps: How many, at most; there may be fewer, or none.

    Returns:
        The turns brought back, oldest first, and the new state.

    Raises:
        OptionError: `steps` is negative or no whole number.
    """
    count = min(_whole("steps", steps), state.tip - state.stop)
    if not count:
        return (), state
    restored = tuple(state.held[len(state) + ahead] for ahead in range(count))
    return restored, msgspec.structs.replace(state, stop=state.stop + count)


def rewind(state: SessionState, to: int, *, redoable: bool = True) -> SessionState:
    """Return the conversation as it was before turn `to`: indices below `to` stay.

    Args:
        state: The conversation.
        to: A turn's absolute index, or the end.
        redoable: Whether it can be redone, as `undo` can.

    Raises:
        TurnIndexError: `to` lies outside the stored turns (the end itself is allowed).
    """
    if type(to) is not int or to != state.stop:
        _position(state, to)
    return msgspec.structs.replace(state, stop=to, tip=state.tip if redoable else to)


def reset(state: SessionState) -> SessionState:
    """Return the start of the conversation: id and seed stay, turns go, indices begin at 0."""
    return SessionState(id=state.id, seed=state.seed)


def reseed(state: SessionState, seed: tuple[Exchange, ...]) -> SessionState:
    """Return a conversation without turns under the same id, with another seed."""
    return SessionState(id=state.id, seed=seed)


def replace_turn(
    state: SessionState, index: int, outputs: Mapping[str, Any], *, id: str
) -> tuple[Turn, SessionState]:
    """Give a turn other outputs, as if the program had returned them.

    The new turn keeps its index, inputs, snapshot and the facts of its run; its score, which was
    about other outputs, goes. Later calls see the new outputs; snapshots of earlier calls do not.

    Args:
        state: The conversation.
        index: The turn's absolute index.
        outputs: The new outputs.
        id: The new turn's unique id.

    Raises:
        TurnIndexError: No stored turn has that index.
        CallError: `outputs` is no mapping from names to values.
    """
    position = _position(state, index)
    old = state.held[position]
    turn = msgspec.structs.replace(
        old,
        exchange=old.exchange.with_outputs(outputs),
        run=msgspec.structs.replace(old.run, id=id),
        score=None,
        feedback=None,
    )
    held, log = _put(state, position, turn)
    changed = msgspec.structs.replace(
        state, held=held, log=log, tip=state.stop, epoch=Epoch(state.epoch.number + 1)
    )
    return turn, changed


def annotate(state: SessionState, notes: Mapping[int, tuple[float, str | None]]) -> SessionState:
    """Return the conversation with scores and feedback on the turns with these indices.

    Law: only `score` and `feedback` change; what could be redone still can.

    Args:
        state: The conversation.
        notes: By absolute turn index, the score and the feedback (or None).

    Raises:
        TurnIndexError: No stored turn has one of the indices.
        OptionError: A score is no number, or a feedback no text.
    """
    held = state.held.evolver()
    for index, (score, feedback) in notes.items():
        position = _position(state, index)
        if not isinstance(score, numbers.Real):
            raise OptionError(f"A score must be a number, not {score!r}.")
        if feedback is not None and not isinstance(feedback, str):
            raise OptionError(f"Feedback must be text or None, not {feedback!r}.")
        held[position] = msgspec.structs.replace(
            state.held[position], score=float(score), feedback=feedback
        )
    return msgspec.structs.replace(state, held=held.persistent())


def truncate(state: SessionState, keep: int | None) -> SessionState:
    """Keep only the newest turns; indices stay, and no turn that goes is held by what stays.

    The *exchanges* of turns that go live on only while a turn that stays was recorded over them.

    Args:
        state: The conversation.
        keep: How many turns to keep at most; None keeps all.

    Raises:
        OptionError: `keep` is negative or no whole number.
    """
    if keep is None or len(state) <= _whole("keep", keep):
        return state
    cut, end = len(state) - keep, len(state)
    return msgspec.structs.replace(
        state,
        held=_rebuilt(state.held, cut, end),
        log=_rebuilt(state.log, cut, end),
        first=state.first + cut,
        tip=state.stop,
    )


_Item = TypeVar("_Item")


def _rebuilt(old: PVector[_Item], start: int, stop: int) -> PVector[_Item]:
    return vector(islice(iter(old), start, stop))


def _put(state: SessionState, position: int, turn: Turn) -> tuple[PVector[Turn], PVector[Exchange]]:
    """Set one position, which may be the one after the last.

    Leftovers of a path not taken are overwritten one by one. When they outweigh what is alive, they
    are dropped, so that they cannot pile up; that is paid for by the turns that were undone.
    """
    held, log = state.held, state.log
    alive = max(len(state), position + 1)
    if position == len(held):
        return held.append(turn), log.append(turn.exchange)
    held, log = held.set(position, turn), log.set(position, turn.exchange)
    if len(held) > 2 * alive + 32:
        held, log = _rebuilt(held, 0, alive), _rebuilt(log, 0, alive)
    return held, log


def _position(state: SessionState, index: int) -> int:
    if type(index) is int and state.first <= index < state.stop:
        return index - state.first
    if len(state):
        stored = f"the stored turns have the indices {state.first} to {state.stop - 1}"
    else:
        stored = "no turn is stored"
    raise TurnIndexError(f"There is no turn {index!r}: {stored}.")


def _whole(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise OptionError(f"{name} must be a whole number from 0 up, not {value!r}.")
    return value
