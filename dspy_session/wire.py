"""The rows of a written conversation, format 3: what `dspy_session.codec` writes and reads.

Field values in them are in plain form (`dspy_session.core.values`), so that JSON can hold them all.
What the numbers mean says `dspy_session.core.tables`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from dspy_session.core.paths import Path

__all__ = [
    "Wire",
    "WireBeside",
    "WireConversation",
    "WireExchange",
    "WireProfile",
    "WireRun",
    "WireState",
    "WireTurn",
    "WireView",
]


class WireRun(msgspec.Struct, omit_defaults=True, gc=False):
    """How a run went; see `Run`."""

    id: str = ""
    time: Any = None  # numbers in plain form, for JSON has no infinities
    duration: Any = None
    usage: dict[str, dict[str, Any]] = {}
    cost: Any = None
    fingerprint: str | None = None
    request_id: str | None = None
    lm_calls: int = 0
    sent: int = 0
    plain: bool = False


class WireTurn(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One turn; `saw` is path, start, stop, seed, view.

    Either it has fields, or the number of the `exchange` of an earlier turn: then it is that turn
    with another score, for example.
    """

    index: int
    inputs: dict[str, Any] | None = None
    outputs: dict[str, Any] | None = None
    details: dict[str, Any] = {}
    exchange: int | None = None
    saw: tuple[int, int, int, int, int]
    run: WireRun
    score: Any = None
    feedback: str | None = None
    before: int | None = None
    beside: int | None = None


class WireView(msgspec.Struct, omit_defaults=True):
    """Which fields a snapshot showed."""

    exclude: list[str] = []
    inputs: list[str] | None = None
    details: bool = False


class WireExchange(msgspec.Struct, omit_defaults=True):
    """An exchange that is no longer a turn's, but still in a snapshot, or in a seed."""

    outputs: dict[str, Any]
    inputs: dict[str, Any] = {}
    details: dict[str, Any] = {}


class WireBeside(msgspec.Struct, omit_defaults=True):
    """What stands beside turns: by module path, the number of a state; data; waiting messages.

    The data is runs of the conversation's `entries`: the first one's number, and how many.
    """

    nested: dict[str, int] = {}
    data: list[tuple[int, int]] = []
    pending: list[dict[str, Any]] = []


class WireProfile(msgspec.Struct, omit_defaults=True):
    """What belongs to a session as a whole; see `Profile`."""

    instructions: str | None = None
    place: str = "after"
    metadata: dict[str, Any] = {}
    start: dict[str, Any] = {}
    system: dict[str, Any] | None = None


class WireState(msgspec.Struct, omit_defaults=True):
    """One state; see `FlatState`."""

    path: Path
    id: str | None = None
    undone: int = 0
    seed: int = 0
    before: int | None = None
    ahead: list[int] = []
    written: int | None = None
    earlier: list[int] = []
    profile: WireProfile | None = None


class WireConversation(msgspec.Struct):
    """`Tables` with plain values."""

    turns: list[WireTurn]
    seeds: list[list[WireExchange]]
    views: list[WireView]
    paths: list[Path]
    states: list[WireState]
    others: list[WireExchange] = []
    entries: list[tuple[str, Any]] = []  # of session data: each key with each of its values, once
    besides: list[WireBeside] = []


class Wire(msgspec.Struct):
    """The whole document."""

    kind: Literal["dspy-session"]
    version: Literal[3]
    options: dict[str, Any]
    conversation: WireConversation
