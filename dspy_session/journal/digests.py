"""Digests of conversations: by them, equal beginnings are found without a look at any text.

A turn's digest is the hash of its content and of the session data around it, chained on the digest
of the turn before. Ids, times and scores are no part of it. So if two turns have one digest, the
conversations are equal up to there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dspy_session.core.state import SessionState
from dspy_session.core.values import REGISTERED, ValueCodecs
from dspy_session.errors import StoreError
from dspy_session.journal.archive import Archive
from dspy_session.journal.sealing import Seal
from dspy_session.journal.writing import content_hash, data_parts
from dspy_session.parts import fields_to_wire
from dspy_session.stores.base import Store
from dspy_session.stores.records import Node, Ref
from dspy_session.wire import WireExchange

__all__ = ["digests", "shared_turns"]

_STRETCH: Final = 256


def digests(
    state: SessionState, *, seal: Seal | None = None, codecs: ValueCodecs = REGISTERED
) -> tuple[str, ...]:
    """Return the digests of a conversation's turns, as a store would have them.

    Law: of a conversation whose older turns were never trimmed, they are those of its stored turns.

    Args:
        state: The conversation. Where older turns were trimmed, the chain begins with the oldest
            that is left.
        seal: As of the archive: with a key, digests are keyed.
        codecs: As of the archive.

    Returns:
        64 hexadecimal digits for each turn.

    Raises:
        ValueCodecError: A field holds a value of a type without written form.

    Example:
        >>> from dspy_session.core.state import start
        >>> digests(start())
        ()
    """
    seal = Seal() if seal is None else seal
    made, chained = [], b""
    for turn in state:
        where = f"turn {turn.index}"
        inputs, outputs, details = turn.exchange.parts
        fields = WireExchange(
            inputs=fields_to_wire(inputs, where, "input", codecs),
            outputs=fields_to_wire(outputs, where, "output", codecs),
            details=fields_to_wire(details, where, "detail", codecs),
        )
        hashed = content_hash(seal, fields, turn.exchange)
        chained = seal.digest(chained, hashed, *data_parts(turn.before, turn.beside))
        made.append(chained.hex())
    return tuple(made)


def shared_turns(archive: Archive, one: str, other: str) -> int:
    """Return with how many equal turns two stored sessions begin; no payload is opened.

    What they have in common is passed over: it costs as much as the turns in which they differ.

    Args:
        archive: Where they are kept.
        one: The id of one.
        other: The id of the other, a fork or not.

    Returns:
        How many turns that both still have are equal, from the first of these on.

    Raises:
        SessionNotFoundError: There is none of that id.
        StoreError: The store cannot be read.

    Example:
        >>> from dspy_session.core.state import start
        >>> from dspy_session.stores import MemoryStore
        >>> archive = Archive(MemoryStore())
        >>> held = archive.create("chat-1", start())
        >>> _ = archive.fork(held, "chat-2")
        >>> shared_turns(archive, "chat-1", "chat-2")
        0
    """
    mine, theirs = archive.ref(one), archive.ref(other)
    first, end = max(mine.first, theirs.first), min(mine.stop, theirs.stop)
    pairs = zip(
        _back(archive.store, mine, first, end),
        _back(archive.store, theirs, first, end),
        strict=True,
    )
    return next((a.depth + 1 - first for a, b in pairs if a.digest == b.digest), 0)


def _back(store: Store, ref: Ref, first: int, end: int) -> Iterator[Node]:
    """Yield the nodes of a session's turns, the newest first."""
    key, depth = ref.head, ref.stop - 1
    while depth >= first:
        floor = max(first, depth + 1 - _STRETCH)
        nodes = [] if key is None else store.walk(ref.family, key, floor)
        if len(nodes) != depth + 1 - floor:
            raise StoreError(
                f"Turns of session {ref.id!r} are not in the store: it was deleted meanwhile, or "
                "is damaged. verify() tells which."
            )
        yield from (node for node in reversed(nodes) if node.depth < end)
        key, depth = nodes[0].parent, floor - 1
