"""The rows of which the tables of a state consist: they refer to each other by number.

How they are filled and read: `dspy_session.core.flat`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import msgspec

from dspy_session.core.chat_messages import redacted
from dspy_session.core.data import Data
from dspy_session.core.paths import Path
from dspy_session.core.profile import Profile
from dspy_session.core.turn import Run
from dspy_session.core.window import Exchange, View

__all__ = ["FlatBeside", "FlatState", "FlatTurn", "FlatWindow", "Tables", "shared"]


class FlatWindow(msgspec.Struct, frozen=True, array_like=True):
    """A window by numbers: which path, from where to where, which seed, which view."""

    path: int
    start: int
    stop: int
    seed: int
    view: int


class FlatTurn(msgspec.Struct, frozen=True):
    """A turn whose exchange, window and what stands beside it are by numbers."""

    index: int
    exchange: int
    window: FlatWindow
    run: Run
    score: float | None
    feedback: str | None
    before: int | None
    beside: int | None


class FlatBeside(msgspec.Struct, frozen=True):
    """What stands beside some turns: the number of a state by module path, data, messages."""

    nested: dict[str, int]
    data: Data
    pending: tuple[Mapping[str, Any], ...]


class FlatState(msgspec.Struct, frozen=True):
    """A state by numbers.

    Attributes:
        id: The session's id.
        path: The turns by position, the stored ones and then the undone ones; its base is an
            earlier state.
        undone: How many of them are undone.
        seed: The number of the seed.
        before: What stood beside before the first stored turn, None for nothing.
        ahead: The numbers of the paths ahead.
        written: What was written beside since the last turn; None if nothing was, -1 for nothing
            that stands there now.
        earlier: The numbers of the conversations that were summarised into this one.
        profile: What belongs to the session as a whole.
    """

    id: str | None
    path: Path
    undone: int
    seed: int
    before: int | None
    ahead: list[int]
    written: int | None
    earlier: list[int]
    profile: Profile


class Tables(msgspec.Struct, frozen=True):
    """The tables of one state and of those that belong to it.

    Attributes:
        turns: Every turn once, those of the state itself first.
        exchanges: First the turns' own, in their order; then those only a snapshot still shows.
        paths: What windows look at, see `Path`.
        seeds: The seeds of states and windows.
        views: The views of windows.
        besides: What stands beside turns.
        states: The state itself comes last. Each refers to earlier ones only.
    """

    turns: list[FlatTurn]
    exchanges: list[Exchange]
    paths: list[Path]
    seeds: list[tuple[Exchange, ...]]
    views: list[View]
    besides: list[FlatBeside]
    states: list[FlatState]


def shared(tables: Tables, private_data: Set[str], redact_fields: Set[str]) -> Tables:
    """Return the tables of the same conversation, as it may be handed on.

    Args:
        tables: The tables.
        private_data: The keys of session data that are left out.
        redact_fields: The names of inputs, outputs and details that are left out. With a field of
            an imported turn, its chat messages go, which say the same; and as nobody knows which
            fields the messages that wait will be, what they say goes too.
    """
    replace = msgspec.structs.replace
    return replace(
        tables,
        exchanges=[exchange.without(redact_fields) for exchange in tables.exchanges],
        seeds=[tuple(e.without(redact_fields) for e in seed) for seed in tables.seeds],
        besides=[
            replace(
                b,
                data=b.data.without(private_data),
                pending=tuple(map(redacted, b.pending)) if redact_fields else b.pending,
            )
            for b in tables.besides
        ],
        states=[
            replace(s, profile=replace(s.profile, start=s.profile.start.without(private_data)))
            for s in tables.states
        ],
    )
