"""The rows of which the tables of a state consist: they refer to each other by number.

How they are filled and read: `dspy_session.core.flat`.
"""

from __future__ import annotations

import msgspec

from dspy_session.core.paths import Path
from dspy_session.core.turn import Run
from dspy_session.core.window import Exchange, View

__all__ = ["FlatBeside", "FlatState", "FlatTurn", "FlatWindow", "Tables"]


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
    beside: int | None


class FlatBeside(msgspec.Struct, frozen=True):
    """What stands beside some turns: the number of a state by module path."""

    nested: dict[str, int]


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
    """

    id: str | None
    path: Path
    undone: int
    seed: int
    before: int | None
    ahead: list[int]


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
