"""What stood beside turns, as their rows say it: session data, and the rows of nested states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from dspy_session.core.data import EMPTY_DATA, Data
from dspy_session.journal.decoding import data_after
from dspy_session.journal.payloads import StoredBeside, StoredState, StoredTurn
from dspy_session.stores.records import Span

__all__ = ["NOTHING", "Standing", "needed_by_state", "needed_by_turn", "standing"]


class Standing(msgspec.Struct, frozen=True):
    """What stands beside a turn, without its turns being read.

    Attributes:
        data: The session data.
        nested: The states of sessions within the program by path; each says all that it has.
    """

    data: Data = EMPTY_DATA
    nested: Mapping[str, StoredState] = {}


NOTHING: Final = Standing()


def standing(row: StoredBeside | None, base: Standing | None) -> Standing | None:
    """Return what stands somewhere, or None if that cannot be known.

    Args:
        row: What differs from the base; None for nothing.
        base: What stood there before; None if that is not known.
    """
    if row is None:
        return base
    if row.whole:
        base = NOTHING
    if base is None:
        return None
    nested = {path: _with_own(state, base.nested.get(path)) for path, state in row.nested.items()}
    return Standing(data_after(row, base.data), {**base.nested, **nested})


def _with_own(state: StoredState, base: StoredState | None) -> StoredState:
    if state.own is not None or base is None:
        return state
    return msgspec.structs.replace(state, own=base.own)


def needed_by_turn(row: StoredTurn, depth: int) -> Iterator[Span]:
    """Yield the stretches of other chains that a turn needs: its node has to link to them.

    Args:
        row: The turn's row.
        depth: Its index.
    """
    if row.like is not None:
        yield Span(row.like, depth)
    if row.lane is not None:
        yield Span(row.lane, row.start)
    if row.seed is not None:
        yield Span(row.seed, 0)
    for beside in (row.before, row.beside):
        yield from _needed_beside(beside)


def needed_by_state(row: StoredState) -> Iterator[Span]:
    """Yield the stretches of other chains than its own that a state needs.

    Args:
        row: The state's row.
    """
    own = row.own
    if own is not None and own.seed is not None:
        yield Span(own.seed, 0)
    yield from _needed_beside(None if own is None else own.before)
    yield from _needed_beside(row.written)
    for other in (*row.ahead, *([] if own is None else own.earlier)):
        yield from _needed_within(other)


def _needed_beside(row: StoredBeside | None) -> Iterator[Span]:
    for state in () if row is None else row.nested.values():
        yield from _needed_within(state)


def _needed_within(row: StoredState) -> Iterator[Span]:
    if row.tip is not None:
        yield Span(row.tip, row.first)
    yield from needed_by_state(row)
