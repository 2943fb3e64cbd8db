"""One recorded turn: what went in, what came out, what the call saw, and how the run went.

Rules:

- A turn never changes; scoring or editing makes a new one.
- `turn.index` is the turn's absolute position in the conversation and survives trimming.
- What is handed out (`inputs`, `outputs`, `usage`, the snapshot) is a copy.

This module does not know where ids, times and costs come from: they arrive in a `Run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dspy_session.core.copies import private_copy
from dspy_session.core.window import Exchange, Window

__all__ = ["Run", "Turn"]


class Run(msgspec.Struct, frozen=True):
    """How the run behind a turn went; all of it is empty for a turn added by hand.

    Attributes:
        id: The turn's unique id.
        time: When the call began, in seconds since the epoch (UTC).
        duration: How long the program ran, in seconds.
        usage: Tokens (and whatever else the provider counts) by model name; cached answers count
            nothing.
        cost: What the calls cost, in US dollars; None when no call said.
        fingerprint: A digest of the program's predictors: signatures and demos.
    """

    id: str = ""
    time: float | None = None
    duration: float | None = None
    usage: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()
    cost: float | None = None
    fingerprint: str | None = None


class Turn(msgspec.Struct, frozen=True, eq=False, weakref=True, kw_only=True):
    """One exchange of a conversation, as it was recorded.

    Two turns are equal when everything they show is equal.

    Attributes:
        index: Absolute position in the conversation, counted from 0; survives trimming.
        exchange: The private inputs and outputs; read `inputs` and `outputs` instead.
        window: What the call saw of the past; read `history_snapshot` instead.
        run: Id, time, duration, usage, cost and fingerprint.
        score: The last score given, if any.
        feedback: What the metric said beside the score, if it did.
    """

    index: int
    exchange: Exchange
    window: Window
    run: Run = Run()
    score: float | None = None
    feedback: str | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """A copy of what the program was called with, without the history, in written order."""
        return self.exchange.inputs

    @property
    def outputs(self) -> dict[str, Any]:
        """A copy of what the program returned; a plain return is under `"output"`."""
        return self.exchange.outputs

    @property
    def history_snapshot(self) -> Any:
        """The `dspy.History` that this call saw, whatever happened since."""
        return self.window.history()

    @property
    def id(self) -> str:
        """The turn's unique id."""
        return self.run.id

    @property
    def time(self) -> float | None:
        """When the call began, in seconds since the epoch (UTC); None for a turn added by hand."""
        return self.run.time

    @property
    def duration(self) -> float | None:
        """How long the program ran, in seconds; None for a turn added by hand."""
        return self.run.duration

    @property
    def usage(self) -> dict[str, dict[str, Any]]:
        """Tokens by model name, as DSPy counts them; empty when all answers came from a cache."""
        return {model: private_copy(dict(counts)) for model, counts in self.run.usage}

    @property
    def cost(self) -> float | None:
        """What the turn's LM calls cost, in US dollars; None when no call said."""
        return self.run.cost

    @property
    def fingerprint(self) -> str | None:
        """A digest of the program's signatures and demos at the time of the call."""
        return self.run.fingerprint

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Turn):
            return NotImplemented
        return self is other or (
            self.index == other.index
            and self.score == other.score
            and self.feedback == other.feedback
            and self.run == other.run
            and self.exchange.same_as(other.exchange)
            and self.window.same_as(other.window)
        )

    def __hash__(self) -> int:
        return hash((self.index, self.run.id))

    def __copy__(self) -> Turn:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Turn:
        return self

    def __repr__(self) -> str:
        return (
            f"Turn(index={self.index}, inputs={self.inputs!r}, outputs={self.outputs!r}, "
            f"history_snapshot={self._snapshot_repr()}, score={self.score!r})"
        )

    def _snapshot_repr(self) -> str:
        return f"History(messages={self.window.messages()!r})"


def usage_pairs(usage: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return a copy of `usage` in the compact form that `Run` keeps."""
    return tuple((m, tuple(private_copy(dict(counts)).items())) for m, counts in usage.items())
