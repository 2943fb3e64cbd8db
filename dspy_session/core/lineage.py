"""Where a training example comes from: its turn, and the turns before that.

Rules:

- A lineage tells of ids and digests, never of what was said; fields that leave by no export are in
  no digest.
- The lineages of one conversation share the ids of its turns, so each costs the same.
- What was summarised or replaced still counts: the turns before a turn are those that it came
  after, as far as they are still known.

This module does not know what an example is, nor how examples are split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import pairwise
from typing import Any, Final

import msgspec

from dspy_session.core.state import SessionState
from dspy_session.core.turn import Turn
from dspy_session.core.values import to_plain
from dspy_session.core.window import Exchange
from dspy_session.errors import FormatError, ValueCodecError

__all__ = ["Lineage", "content_digest", "lineages", "origin_digests", "turn_digest"]

_DIGITS: Final = 32


class Lineage(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """Where a training example comes from.

    Two lineages are equal if they tell of the same turn on the same branch of the same session.

    Attributes:
        session_id: The id of the session, if it has one.
        turn_id: The id of the turn; empty for one that was made without.
        index: The absolute position of the turn in the conversation.
        branch: A digest of the turns before it. Of two examples with one branch, the very same
            turns came before; those that were asked again, or asked in a fork, are siblings.
        origins: What the conversation began with, as digests of the content of its first turn, now
            and before it was replaced. A copy that was imported has other ids, and one of these.
        lost: Turns that were trimmed away since, as far as calls of later ones saw them: digests
            of their positions with their content.
        path: The ids of the conversation's turns, in their order; read `before` instead.
        place: How many of these came before the turn.

    Example:
        >>> lineage = Lineage(
        ...     session_id="chat-1", turn_id="c", index=2, branch="", path=("a", "b", "c"), place=2
        ... )
        >>> lineage.before
        ('a', 'b')
    """

    session_id: str | None
    turn_id: str
    index: int
    branch: str
    origins: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    place: int = 0

    @property
    def before(self) -> tuple[str, ...]:
        """The ids of the turns before this one, oldest first."""
        return self.path[: self.place]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values; `from_dict` reads them back."""
        return {
            "session_id": self.session_id,
            "turn_id": self.turn_id,
            "index": self.index,
            "branch": self.branch,
            "origins": list(self.origins),
            "lost": list(self.lost),
            "before": list(self.before),
        }

    @classmethod
    def from_dict(cls, written: Mapping[str, Any]) -> Lineage:
        """Return the lineage that `to_dict` wrote.

        Args:
            written: The dict.

        Raises:
            FormatError: It is something else.
        """
        try:
            read = msgspec.convert(written, _Written)
        except msgspec.ValidationError as error:
            raise FormatError(
                f"A lineage must be a dict that Lineage.to_dict() returned: {error}."
            ) from error
        return cls(
            session_id=read.session_id,
            turn_id=read.turn_id,
            index=read.index,
            branch=read.branch,
            origins=read.origins,
            lost=read.lost,
            path=(*read.before, read.turn_id) if read.turn_id else read.before,
            place=len(read.before),
        )

    def _identity(self) -> tuple[str | None, str, int, str]:
        return self.session_id, self.turn_id, self.index, self.branch

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Lineage):
            return NotImplemented
        return self._identity() == other._identity()

    def __ne__(self, other: object) -> bool:
        return not self == other  # the one that msgspec brings compares identities

    def __hash__(self) -> int:
        return hash(self._identity())

    def __copy__(self) -> Lineage:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Lineage:
        return self

    def __repr__(self) -> str:
        return (
            f"Lineage(session_id={self.session_id!r}, turn_id={self.turn_id!r}, "
            f"index={self.index}, branch={self.branch!r})"
        )


class _Written(msgspec.Struct):
    session_id: str | None
    turn_id: str
    index: int
    branch: str
    origins: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    before: tuple[str, ...] = ()


def lineages(state: SessionState, hidden: Set[str] = frozenset()) -> Iterator[Lineage]:
    """Yield the lineage of each stored turn of a conversation, oldest first.

    Args:
        state: The conversation.
        hidden: Fields of which nothing is to be known, not even by a digest.
    """
    told = [*_summarised(state), *state]
    path = tuple(turn.id for turn in told if turn.id)
    origins, lost = _origins(told, hidden), _lost(told, hidden)
    begun = told[0].index if told else 0
    chained = f"{state.id} from {begun}".encode() if begun else b""
    place = 0
    for number, turn in enumerate(told):
        if number >= len(told) - len(state):
            yield Lineage(
                session_id=state.id,
                turn_id=turn.id,
                index=turn.index,
                branch=_digest(chained),
                origins=origins,
                lost=lost,
                path=path,
                place=place,
            )
        mark = turn.id or _content(turn.exchange, hidden) or f"{state.id} at {turn.index}"
        chained = hashlib.sha256(chained + mark.encode()).digest()
        place += bool(turn.id)


def _summarised(state: SessionState) -> Iterator[Turn]:
    """The turns of which the conversation now has a summary only."""
    for earlier, later in pairwise((*state.earlier, state)):
        yield from (turn for turn in earlier if turn.index < later.first)


def _origins(told: list[Turn], hidden: Set[str]) -> tuple[str, ...]:
    """The digests of what was said first: what came in, with each thing that was said to it.

    Names of fields do not count, and one thing said is enough: a copy that was made of chat
    messages has other names, and no reasoning.
    """
    digests: dict[str, None] = {}
    for first in _firsts(told):
        inputs, outputs = (
            [value for name, value in fields.items() if name not in hidden]
            for fields in first.parts[:2]
        )
        digests.update(dict.fromkeys(origin_digests(inputs, outputs)))
    return tuple(digests)


def origin_digests(inputs: Sequence[Any], outputs: Iterable[Any]) -> Iterator[str]:
    """Yield the digests of one exchange as `Lineage.origins` has them; none if nothing came in.

    Args:
        inputs: The values of what came in.
        outputs: The values of what was said to it.
    """
    if inputs:
        digests = (content_digest([inputs, output]) for output in outputs)
        yield from (digest for digest in digests if digest is not None)


def _firsts(told: list[Turn]) -> Iterator[Exchange]:
    """What was said first: as it is now, and as a call saw it before it was replaced or trimmed."""
    now = told[0].exchange if told and told[0].index == 0 else None
    if now is not None:
        yield now
    windows = (turn.window for turn in told)
    whole = next((each for each in windows if each.offset == 0 and each.stop > 0), None)
    if whole is not None and whole.log[0] is not now:
        yield whole.log[0]


def _lost(told: list[Turn], hidden: Set[str]) -> tuple[str, ...]:
    """The digests of turns that are not stored any more: by all that they said, and as shown."""
    windows = [window for turn in told if (window := turn.window).start < window.stop]
    if not windows or told[0].index == 0:
        return ()
    widest = min(windows, key=lambda window: window.start)
    digests: dict[str | None, None] = {}
    for index in range(widest.start, min(widest.stop, told[0].index)):
        exchange = widest.log[index - widest.offset]
        inputs, outputs, _ = exchange.parts
        for fields in ({**inputs, **outputs}, exchange.shown(widest.view)):
            kept = {name: value for name, value in fields.items() if name not in hidden}
            digests[turn_digest(index, kept) if kept else None] = None
    return tuple(digest for digest in digests if digest is not None)


def turn_digest(index: int, fields: Mapping[str, Any]) -> str | None:
    """Return the digest of a turn as `Lineage.lost` has it; None if it has no written form.

    Args:
        index: The absolute position of the turn.
        fields: Its inputs and outputs.
    """
    return content_digest([index, dict(fields)])


def _content(exchange: Exchange, hidden: Set[str]) -> str | None:
    fields: Iterable[Mapping[str, Any]] = exchange.parts[:2]
    return content_digest(
        [{name: value for name, value in each.items() if name not in hidden} for each in fields]
    )


def content_digest(value: Any) -> str | None:
    """Return a digest of a value, the same for equal values; None if it has no written form.

    Args:
        value: A value as fields hold them.

    Example:
        >>> content_digest({"a": 1, "b": 2}) == content_digest({"b": 2, "a": 1})
        True
    """
    try:
        plain = to_plain(value)
    except ValueCodecError:
        return None
    return _digest(msgspec.json.encode(plain, order="deterministic"))


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:_DIGITS]
