"""What stores keep: nodes that never move, and refs that point to them.

    node    one turn, or a seed: a key, the key of the node before it, a payload
    ref     one session: which node is its newest, and what belongs to the session as a whole

Nodes are only ever added; a conversation is the chain of nodes from a ref backwards. So a fork is
one new ref, undo moves a ref, and nothing is copied, whatever the length. A *family* is what came
from one beginning by forking: all nodes that a session's ref can reach are of its family.

A store never knows what a turn means: payloads are bytes to it.
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

__all__ = [
    "DamagedRef",
    "ListQuery",
    "Node",
    "Ref",
    "Span",
    "Totals",
    "day_of",
    "metadata_terms",
    "new_key",
]


class Span(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A stretch of a chain: a node and those before it, down to a depth.

    Attributes:
        key: The key of the last node.
        floor: The depth of the first.
    """

    key: int
    floor: int


class Node(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One link of a chain.

    Attributes:
        key: Its key, see `new_key`.
        family: The family that it belongs to.
        parent: The key of the node before it in the chain; None for the first.
        depth: Its place in the chain: the parent's and one. The first of a chain may have any.
        low: The depth of the oldest node of its chain that it shows, down to which nodes stay while
            it is reached; its own depth if it shows none.
        base: The depth from which on payloads must be read to know what stands beside it.
        links: Other stretches of chains that it needs.
        digest: The hash of its content, chained on the parent's.
        total: How many bytes the payloads of its chain have, from the first node up to this one.
        time: When it was made, in seconds since the epoch (UTC).
        label: A name by which it can be found within its family, such as a request's id.
        payload: Anything.
    """

    key: int
    family: int
    parent: int | None = None
    depth: int = 0
    low: int = 0
    base: int = 0
    links: tuple[Span, ...] = ()
    digest: bytes = b""
    total: int = 0
    time: float = 0.0
    label: str | None = None
    payload: bytes = b""


class Ref(msgspec.Struct, frozen=True, kw_only=True):
    """A named pointer: one session.

    Attributes:
        id: The session's id.
        family: The family whose nodes it points to.
        version: A key that differs after every write, never to come again.
        tip: The key of the newest node, which may be one that was undone; None without any.
        head: The key of the newest node that is not undone; None without any.
        first: The depth of the oldest node that is the session's.
        stop: The depth that the next node gets.
        end: The depth after that of the tip.
        links: Other stretches of chains that it needs.
        created: When the session was made, in seconds since the epoch (UTC).
        updated: When it was last written.
        size: How many bytes its payloads have, the body included.
        origin: The id of the session that it was forked from, if it was.
        metadata: What an application noted about the session, JSON values by key.
        body: Anything.
    """

    id: str
    family: int
    version: int
    tip: int | None = None
    head: int | None = None
    first: int = 0
    stop: int = 0
    end: int = 0
    links: tuple[Span, ...] = ()
    created: float = 0.0
    updated: float = 0.0
    size: int = 0
    origin: str | None = None
    metadata: Mapping[str, Any] = {}
    body: bytes = b""


class DamagedRef(Ref, frozen=True, kw_only=True):
    """A session that is there, but whose ref cannot be read: its id, and what else can be read.

    Stores return it in place of the ref. A field that cannot be read has its default; the version
    and the family are then 0, which no others are. Nobody writes one.

    Attributes:
        damaged: What is wrong.
    """

    damaged: str


class ListQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which refs to list, and in which order.

    Attributes:
        metadata: Keys with the values that a ref must have under them: an equal JSON value, or a
            list that holds it.
        order: `"updated"`, `"created"` or `"id"` (by code points); refs that are equal in it are
            ordered by id.
        descending: Whether the greatest comes first, of equal ones too: ascending turned round.
        limit: How many at most; None for all.
        offset: How many to pass over.
    """

    metadata: Mapping[str, Any] = {}
    order: str = "updated"
    descending: bool = True
    limit: int | None = None
    offset: int = 0


class Totals(msgspec.Struct, frozen=True):
    """How much a store holds.

    Attributes:
        sessions: How many refs.
        nodes: How many nodes; one that sessions share counts once.
        bytes: How many bytes the payloads and bodies have.
    """

    sessions: int
    nodes: int
    bytes: int


def day_of(seconds: float) -> str:
    """Return the day of a time, in UTC.

    Args:
        seconds: Since the epoch.

    Example:
        >>> day_of(86_399.99)
        '1970-01-01'
    """
    return str(dt.date(1970, 1, 1) + dt.timedelta(days=seconds // 86_400))


_LONGEST_TERM: Final = 200


def metadata_terms(metadata: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """Return what an index over metadata holds for one session: pairs of a key and a term.

    A term is a value as canonical JSON; a list has one for each item besides. Long ones are cut:
    whoever looks something up compares the values once more.

    Args:
        metadata: The metadata.

    Example:
        >>> sorted(metadata_terms({"tags": ["a"]}))
        [('tags', '"a"'), ('tags', '["a"]')]
    """
    return frozenset(
        (name, term_of(each))
        for name, value in metadata.items()
        for each in ([value, *value] if isinstance(value, list) else [value])
    )


def term_of(value: Any) -> str:
    """Return the term under which a value is found."""
    return msgspec.json.encode(value, order="deterministic").decode()[:_LONGEST_TERM]


def has_metadata(metadata: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether metadata has all the wanted values; see `ListQuery.metadata`."""
    return all(
        name in metadata and _matches(metadata[name], value) for name, value in wanted.items()
    )


def _matches(held: Any, wanted: Any) -> bool:
    mine, other = (msgspec.json.encode(each, order="deterministic") for each in (held, wanted))
    return mine == other or (
        isinstance(held, list)
        and any(msgspec.json.encode(item, order="deterministic") == other for item in held)
    )


# Keys

_EPOCH_MS: Final = 1_767_225_600_000  # the beginning of 2026, UTC
_DRAWN_BITS: Final = 23


class _Keys:
    """The clock in milliseconds, and behind it a number drawn once per process."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._last = 0
        self._drawn = secrets.randbits(_DRAWN_BITS)

    def next(self) -> int:
        now = time.time_ns() // 1_000_000 - _EPOCH_MS
        with self._mutex:
            self._last = max(now, self._last + 1)
            return self._last << _DRAWN_BITS | self._drawn


_keys = _Keys()


def _redraw() -> None:
    global _keys
    _keys = _Keys()


os.register_at_fork(after_in_child=_redraw)  # a child must not draw what its parent draws


def new_key() -> int:
    """Return a number that nobody else has: positive, below 2**63, about in order of time.

    Keys that follow each other in time lie side by side in an index, so that a store adds nodes at
    its end. Nobody hands them out, so a writer knows them before it writes, and can tell afterwards
    whether a write whose answer was lost did come through.
    """
    return _keys.next()
