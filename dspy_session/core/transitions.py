"""The pure functions from one conversation to the next.

Laws, for every state `s`:

- No function here changes its arguments; what does not change is shared, so a fork is the same
  value under another name and costs nothing.
- `undo(s, k)` then `redo(k)` is `s` again, until another path is taken: recording, replacing,
  resetting and trimming end what could be redone; scoring does not.
- Answering a turn again (`record(..., replaces=index)`) ends nothing: the path that was left is the
  nearest of those `ahead`, and `redo` goes round them once its own path is at its end.
- `len(record(s, ...)[1]) == len(s) + 1`, unless trimming takes one away; indices never repeat
  along a path and never move.
- After any error the caller still holds `s`, unchanged.
- Record, undo, redo, rewind and fork cost the same at 10 and at 10,000 turns.

This module does not know how a call comes about: see `dspy_session.core.step` for that. What is
written beside the turns is in `dspy_session.core.writes`.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from dspy_session.core.data import Data
from dspy_session.core.profile import NO_PROFILE
from dspy_session.core.state import SessionState
from dspy_session.core.turn import NOTHING_BESIDE, Run, Turn
from dspy_session.core.vectors import PVector, stretch, vector
from dspy_session.core.window import Epoch, Exchange, Window
from dspy_session.errors import OptionError

__all__ = [
    "annotate",
    "clear",
    "record",
    "redo",
    "replace_turn",
    "reseed",
    "reset",
    "rewind",
    "summarized",
    "truncate",
    "undo",
]


def record(
    state: SessionState,
    exchange: Exchange,
    window: Window,
    run: Run,
    max_stored_turns: int | None = None,
    *,
    replaces: int | None = None,
    nested: Mapping[str, SessionState] | None = None,
    data: Callable[[Data], Data] | None = None,
    replaced_data: Data | None = None,
    pending: tuple[Mapping[str, Any], ...] = (),
) -> tuple[Turn, SessionState]:
    """Append a turn, or answer one again.

    A turn that answers another one again begins with what stood beside the conversation when that
    one began. No message waits any more when a turn has been recorded.

    Args:
        state: The conversation.
        exchange: What went in and what came out; a new one, that no other turn has.
        window: What the call saw.
        run: How the run went.
        max_stored_turns: Keep at most this many turns.
        replaces: The absolute index of the turn that this one is another answer to. That turn and
            those after it stay ahead, for `redo`. If no stored turn has the index any more, the
            turn is appended.
        nested: The states of sessions within the program, as the turn left them, by module path;
            the other paths keep those of the turn before.
        data: What the turn did to the session data, as a function of the data it comes to.
        replaced_data: The session data that the turn began with instead; None for what there is.
        pending: The messages that wait when the turn has ended.

    Returns:
        The new turn and the new state, in which nothing can be redone but the paths ahead.

    Raises:
        OptionError: `max_stored_turns` is negative or no whole number.
    """
    ahead: tuple[SessionState, ...] = ()
    before = state.beside
    if replaces is not None and state.first <= replaces < state.stop:
        before = state.turn(replaces).before
        ahead = (_path_of(state), *state.ahead)
        state = rewind(state, replaces, redoable=False)
    before = before.replace(data=replaced_data)
    turn = Turn(
        index=state.stop,
        exchange=exchange,
        window=window,
        run=run,
        before=before,
        beside=before.replace(
            nested=nested, data=None if data is None else data(before.data), pending=pending
        ),
    )
    held, log = _put(state, len(state), turn, spare=not ahead)
    stop = state.stop + 1
    grown = msgspec.structs.replace(
        state, held=held, log=log, stop=stop, tip=stop, ahead=ahead, written=None
    )
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
    """Bring back turns that were taken back; or, if there are none, the path ahead.

    A path that was left when one of its turns was answered again comes back from that turn on, and
    the present one goes to the end of those ahead. So with the answers A1, A2 and A3, of which A3
    was the last, redo leads from A3 to A2, to A1, and to A3 again. One call never goes beyond the
    end of a path: after `undo`, as many steps as one likes lead back to where one was.

    Args:
        state: The conversation.
        steps: How many turns, at most; there may be fewer, or none.

    Returns:
        The turns brought back, oldest first, and the new state.

    Raises:
        OptionError: `steps` is negative or no whole number.
    """
    wanted = _whole("steps", steps)
    if wanted and state.stop == state.tip and state.ahead:
        state = _turned(state)
    count = min(wanted, state.tip - state.stop)
    if not count:
        return (), state
    restored = tuple(state.held[len(state) + ahead] for ahead in range(count))
    return restored, msgspec.structs.replace(state, stop=state.stop + count)


def rewind(state: SessionState, to: int, *, redoable: bool = True) -> SessionState:
    """Return the conversation as it was before turn `to`: indices below `to` stay.

    Args:
        state: The conversation.
        to: A turn's absolute index, or the end.
        redoable: Whether it can be redone, as `undo` can; if not, no path is ahead either.

    Raises:
        TurnIndexError: `to` lies outside the stored turns (the end itself is allowed).
    """
    if type(to) is not int or to != state.stop:
        state.position(to)
    if redoable:
        return msgspec.structs.replace(state, stop=to)
    written = state.written if to == state.tip else None
    return msgspec.structs.replace(state, stop=to, tip=to, ahead=(), written=written)


def reset(state: SessionState) -> SessionState:
    """Return the start of the conversation: id, profile and seed stay, turns and summaries go.

    Indices begin at 0, and the session data is again what the session started with.

    Args:
        state: The conversation.
    """
    (began, *_) = (*state.earlier, state)
    return _anew(state, began.seed, state.profile.start)


def clear(state: SessionState) -> SessionState:
    """Return a conversation without turns and without seed; id, profile and session data stay.

    Args:
        state: The conversation.
    """
    return _anew(state, (), state.data)


def reseed(state: SessionState, seed: tuple[Exchange, ...]) -> SessionState:
    """Return a conversation without turns, with another seed; id, profile and session data stay.

    Args:
        state: The conversation.
        seed: The seed.
    """
    return _anew(state, seed, state.data)


def summarized(state: SessionState, seed: tuple[Exchange, ...], keep: int = 0) -> SessionState:
    """Return a conversation whose older turns are gone, with a seed that tells of them.

    Law: what stands beside the conversation stays, and so do the indices of the turns that are
    kept; `earlier` ends with the conversation as it was.

    Args:
        state: The conversation.
        seed: What is shown in their place, and in that of the seed there was.
        keep: How many of the newest turns to keep.

    Raises:
        OptionError: `keep` is negative or no whole number.
    """
    was = msgspec.structs.replace(state, earlier=())
    kept = _ended(truncate(state, _whole("keep", keep)))
    return msgspec.structs.replace(kept, seed=seed, earlier=(*state.earlier, was))


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
    position = state.position(index)
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
        _ended(state), held=held, log=log, epoch=Epoch(state.epoch.number + 1)
    )
    return turn, changed


def annotate(state: SessionState, notes: Mapping[int, tuple[float, str | None]]) -> SessionState:
    """Return the conversation with scores and feedback on the turns with these indices.

    Law: only `score` and `feedback` change; what could be redone still can. A turn that paths ahead
    share shows its score there too.

    Args:
        state: The conversation.
        notes: By absolute turn index, the score and the feedback (or None).

    Raises:
        TurnIndexError: No stored turn has one of the indices.
        OptionError: A score is no number, or a feedback no text.
    """
    turns: dict[int, tuple[Turn, Turn]] = {}
    for index, (score, feedback) in notes.items():
        position = state.position(index)
        if not isinstance(score, numbers.Real):
            raise OptionError(f"A score must be a number, not {score!r}.")
        if feedback is not None and not isinstance(feedback, str):
            raise OptionError(f"Feedback must be text or None, not {feedback!r}.")
        turn = state.held[position]
        noted = msgspec.structs.replace(turn, score=float(score), feedback=feedback)
        turns[position] = turn, noted
    ahead = tuple(_with_turns(other, turns) for other in state.ahead)
    return msgspec.structs.replace(_with_turns(state, turns), ahead=ahead)


def truncate(state: SessionState, keep: int | None) -> SessionState:
    """Keep only the newest turns; indices stay, and no turn that goes is held by what stays.

    If some go, nothing can be redone any more. What stands beside the conversation stays. The
    *exchanges* of turns that go live on only while a turn that stays was recorded over them.

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
        _ended(state),
        held=_rebuilt(state.held, cut, end),
        log=_rebuilt(state.log, cut, end),
        first=state.first + cut,
        before=state.held[cut - 1].beside,
    )


def _anew(state: SessionState, seed: tuple[Exchange, ...], data: Data) -> SessionState:
    return SessionState(
        id=state.id, seed=seed, before=NOTHING_BESIDE.replace(data=data), profile=state.profile
    )


def _ended(state: SessionState) -> SessionState:
    """The conversation where it stands, with nothing to redo."""
    written = state.written if state.stop == state.tip else None
    return msgspec.structs.replace(state, tip=state.stop, ahead=(), written=written)


def _path_of(state: SessionState) -> SessionState:
    """The state's path, as it stands ahead of others."""
    return msgspec.structs.replace(
        state, id=None, stop=state.tip, ahead=(), profile=NO_PROFILE, earlier=()
    )


def _turned(state: SessionState) -> SessionState:
    """Go over to the path ahead, to before the turn where it parts from the present one."""
    to, *further = state.ahead
    return msgspec.structs.replace(
        to,
        id=state.id,
        seed=state.seed,
        stop=state.parts_from(to),
        ahead=(*further, _path_of(state)),
        profile=state.profile,
        earlier=state.earlier,
    )


def _with_turns(state: SessionState, turns: Mapping[int, tuple[Turn, Turn]]) -> SessionState:
    """Put new turns into the positions where the path has the old ones."""
    held = state.held.evolver()
    for position, (old, new) in turns.items():
        if position < len(held) and held[position] is old:
            held[position] = new
    return msgspec.structs.replace(state, held=held.persistent())


_Item = TypeVar("_Item")


def _rebuilt(old: PVector[_Item], start: int, stop: int) -> PVector[_Item]:
    return vector(stretch(old, start, stop))


def _put(
    state: SessionState, position: int, turn: Turn, *, spare: bool = True
) -> tuple[PVector[Turn], PVector[Exchange]]:
    """Set one position, which may be the one after the last.

    Leftovers of a path not taken are overwritten one by one. When they outweigh what is alive, they
    are dropped, so that they cannot pile up; that is paid for by the turns that were undone. Those
    of a path ahead, which may be gone back to and left any number of times, are not to `spare`.
    """
    held, log = state.held, state.log
    alive = max(len(state), position + 1)
    if position == len(held):
        return held.append(turn), log.append(turn.exchange)
    held, log = held.set(position, turn), log.set(position, turn.exchange)
    if spare and len(held) > 2 * alive + 32:
        held, log = _rebuilt(held, 0, alive), _rebuilt(log, 0, alive)
    return held, log


def _whole(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise OptionError(f"{name} must be a whole number from 0 up, not {value!r}.")
    return value
