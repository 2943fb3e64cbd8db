"""A conversation as a value: a seed, its turns, and the ways on from here.

Undo moves a position instead of dropping turns: turns before `stop` are the conversation, those
from `stop` to `tip` can be redone. Whole other paths, left when a turn was answered again, are
`ahead`. What was written beside the conversation since the turn before `tip` is `written`: it
counts where the conversation stands at its tip, so undo hides it and redo brings it back.
The functions from one state to the next are in `dspy_session.core.transitions`.

This module does not know what a model is shown of a turn, nor where ids and times come from.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

import msgspec

from dspy_session.core.copies import private_copy
from dspy_session.core.data import EMPTY_DATA, Data
from dspy_session.core.options import SessionOptions
from dspy_session.core.profile import NO_PROFILE, Instructions, Profile
from dspy_session.core.turn import NOTHING_BESIDE, Beside, Known, Turn
from dspy_session.core.vectors import PVector, differing, vector
from dspy_session.core.window import EMPTY, FIRST_EPOCH, Epoch, Exchange, Window, seed_exchanges
from dspy_session.errors import OptionError, TurnIndexError

__all__ = ["SessionState", "checked_id", "start", "visible_window", "with_id"]

_LONGEST_ID: Final = 200
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
            states without id, profile, undone turns and paths ahead of their own.
        written: What stands beside the conversation at its tip, if something was written there
            since the turn before.
        profile: What belongs to the session as a whole; read `instructions` and `metadata`.
        earlier: The conversations that this one began as, before they were summarised: oldest
            first, each without any earlier ones of its own.
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
    written: Beside | None = None
    profile: Profile = NO_PROFILE
    earlier: tuple[SessionState, ...] = ()

    @staticmethod
    def from_messages(messages: Iterable[Mapping[str, Any]], **keywords: Any) -> SessionState:
        """Return the conversation that chat messages in OpenAI's shape are.

        Args:
            messages: The messages, oldest first.
            **keywords: As for `dspy_session.core.chat.from_messages`: `fields`, `id`, `seed`,
                `ids`.

        Raises:
            MessageError: They make no conversation.
        """
        from dspy_session.core.chat import from_messages  # noqa: PLC0415  # it makes states

        return from_messages(messages, **keywords)

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
        if self.written is not None and self.stop == self.tip:
            return self.written
        last = self.last
        return self.before if last is None else last.beside

    @property
    def nested(self) -> Mapping[str, SessionState]:
        """The conversations of the sessions within the program, by module path."""
        return self.beside.nested

    @property
    def data(self) -> Data:
        """The session data."""
        return self.beside.data

    @property
    def pending(self) -> tuple[dict[str, Any], ...]:
        """Copies of the chat messages that wait to become a turn."""
        return tuple(private_copy(dict(message)) for message in self.beside.pending)

    @property
    def instructions(self) -> Instructions | None:
        """What every predictor of the program is told; None for nothing."""
        return self.profile.instructions

    @property
    def metadata(self) -> Data:
        """What an application noted about the session; no undo changes it."""
        return self.profile.metadata

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
            and self.profile.same_as(other.profile)
            and _same_written(self.written, other.written, known)
            and all(a.same_as(b, known) for a, b in zip(self.ahead, other.ahead, strict=True))
            and len(self.earlier) == len(other.earlier)
            and all(a.same_as(b, known) for a, b in zip(self.earlier, other.earlier, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]  # equal by content, which may be large

    def __copy__(self) -> SessionState:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SessionState:
        return self

    def __repr__(self) -> str:
        return f"SessionState(id={self.id!r}, turns={len(self)}, undone={self.tip - self.stop})"


def _same_written(one: Beside | None, other: Beside | None, known: Known) -> bool:
    if one is None or other is None:
        return one is other
    return one.same_as(other, known)


def start(
    messages: Iterable[Mapping[str, Any]] = (),
    *,
    id: str | None = None,
    data: Data = EMPTY_DATA,
    profile: Profile = NO_PROFILE,
) -> SessionState:
    """Return a conversation without turns.

    Args:
        messages: A seed: one dict of field values per past exchange, oldest first.
        id: The session's id.
        data: The session data to start with, and to go back to by `reset`.
        profile: Instructions and metadata.

    Raises:
        HistoryError: `messages` holds something else than dicts of fields.
        OptionError: `id` is no usable id, see `checked_id`.

    Example:
        >>> len(start([{"question": "Hi", "answer": "Hello."}]))
        0
    """
    return SessionState(
        id=checked_id(id),
        seed=seed_exchanges(messages),
        before=NOTHING_BESIDE.replace(data=data),
        profile=profile if profile.start is data else msgspec.structs.replace(profile, start=data),
    )


def with_id(state: SessionState, id: str | None) -> SessionState:
    """Return the same conversation under another id.

    Args:
        state: The conversation.
        id: The id, or None for none.

    Raises:
        OptionError: `id` is no usable id, see `checked_id`.
    """
    return msgspec.structs.replace(state, id=checked_id(id))


def checked_id(id: str | None) -> str | None:
    """Return a session id as it came, if it can be one: short text that every store can keep.

    Args:
        id: Text of 1 to 200 characters, none of them a control character; None for no id.

    Raises:
        OptionError: It is something else.
    """
    if id is None:
        return None
    if not isinstance(id, str):
        raise OptionError(f"A session id must be text, not {type(id).__name__}.")
    if not id or len(id) > _LONGEST_ID:
        raise OptionError(
            f"A session id must have 1 to {_LONGEST_ID} characters; this one has {len(id)}."
        )
    bad = next((c for c in id if unicodedata.category(c) in ("Cc", "Cs")), None)
    if bad is not None:
        raise OptionError(
            f"A session id must not hold control characters, but {id!r} holds {bad!r}."
        )
    return str.__str__(id)


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
