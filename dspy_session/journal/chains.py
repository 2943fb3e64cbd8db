"""Where the turns of a state are stored: chains of marks beside its vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from dspy_session.core.turn import Turn
from dspy_session.core.vectors import PVector, differing, is_same, older_part, vector
from dspy_session.core.window import Exchange, Window

__all__ = ["NO_CHAIN", "Chain", "Mark", "agrees", "longest_common", "stored_newest"]


class Mark(msgspec.Struct, frozen=True, gc=False):
    """Where one turn is stored; see `Node`.

    Attributes:
        key: The node's key.
        content: The key of the node that has its fields.
        digest: The node's digest.
        total: How many bytes the chain has up to it.
        base: From which depth on it is known what stands beside it.
    """

    key: int
    content: int
    digest: bytes
    total: int
    base: int


class Chain(msgspec.Struct, frozen=True, eq=False):
    """The turns of a state that are stored, and where.

    Attributes:
        first: The index of the first.
        count: How many turns are stored; the vectors may hold more.
        held: The turns; empty for a chain of exchanges alone.
        log: Their exchanges.
        marks: Where they are.
        under: How many bytes of the chain are older than the first.
    """

    first: int
    count: int
    held: PVector[Turn]
    log: PVector[Exchange]
    marks: PVector[Mark]
    under: int = 0


NO_CHAIN = Chain(0, 0, vector(), vector(), vector())


def longest_common(
    chains: Sequence[Chain],
    first: int,
    held: PVector[Turn],
    count: int,
    *,
    family: int | None = None,
) -> tuple[Chain, int, int]:
    """Return the chain with which turns have most in common, from their first on.

    Args:
        chains: The chains.
        first: The index of the first turn.
        held: The turns.
        count: How many.
        family: Also ask the turns themselves, which may have been read from this family; None for
            the chains alone.

    Returns:
        The chain; where in it the first turn stands; how many of the turns are its.
    """
    best = NO_CHAIN, 0, 0
    same = next((one for one in chains if one.held is held and one.first == first), None)
    if same is not None and same.count == count:
        return same, 0, count
    for chain in _candidates(chains, held, family):
        shift = first - chain.first
        if shift < 0:
            continue
        end = min(count, chain.count - shift)
        if end <= best[2] or (chain.held is not held and not len(chain.held)):
            continue
        if shift == 0:
            differ = differing(held, chain.held, end, fetch=False)
            common = end if chain.held is held else next(differ, end)
        else:
            differ = (at for at in range(end) if not is_same(held, at, chain.held, at + shift))
            common = next(differ, end)
        if common > best[2]:
            best = chain, shift, common
        if common == count:
            break
    return best


def _candidates(chains: Sequence[Chain], held: PVector[Any], family: int | None) -> Iterator[Chain]:
    yield from reversed(chains)
    older: Any = older_part(held)
    if family is not None and getattr(older, "family", None) == family:
        yield older.chain()  # it was read from a store, and knows from where


def stored_newest(window: Window, family: int) -> int | None:
    """Return the key of the newest node that a window shows, if it was read as just what it shows.

    Args:
        window: A window that shows turns.
        family: The family that it must have been read from.
    """
    older: Any = older_part(window.log)
    if getattr(older, "family", None) != family:
        return None
    newest: int | None = older.newest(window.start, window.stop)
    return newest


def agrees(window: Window, chain: Chain) -> bool:
    """Whether a chain has what a window shows, at the same positions.

    Args:
        window: A window that shows turns.
        chain: A chain.
    """
    start, stop = window.start, window.stop
    if start < chain.first or stop > chain.first + chain.count:
        return False
    log, mine = chain.log, window.log
    if chain.first == window.offset:
        return mine is log or all(
            at + chain.first < start for at in differing(mine, log, stop - chain.first, fetch=False)
        )
    return all(
        is_same(mine, at - window.offset, log, at - chain.first)
        for at in range(stop - 1, start - 1, -1)
    )
