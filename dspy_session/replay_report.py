"""What a replay found: recorded and replayed turns side by side, what both took, which is better.

Rules:

- A report is a value: it holds the turns, and neither the program nor a session.
- Scores are compared where both sides have one. A turn that failed has the score that the replay
  gives to failures; a turn that was not reached is not compared.
- What a session redacts is in no text that a report makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from dspy_session.core.chat_view import readable
from dspy_session.core.state import SessionState
from dspy_session.core.turn import Run, Turn
from dspy_session.core.values import to_plain
from dspy_session.errors import ValueCodecError
from dspy_session.tabulating import (
    fields_text,
    html_table,
    number_text,
    shortened,
    text_table,
)

__all__ = [
    "CLOSE",
    "Replay",
    "ReplayTotals",
    "ReplayedTurn",
    "SIDES",
    "TIE",
    "WIDTH",
    "better_of",
    "mean_of",
    "scores_text",
    "summary_of",
    "totals_of",
]

TIE: Final = "tie"
SIDES: Final = ("recorded", TIE)
"""Names that no replayed side can have."""
CLOSE: Final = 1e-9
"""Scores that are nearer than this are a tie."""
WIDTH: Final = 44
"""How many characters of a text a line of a table shows."""


class ReplayTotals(msgspec.Struct, frozen=True, kw_only=True):
    """What one side of a replay took, and how it scored.

    Attributes:
        turns: How many turns there are.
        failed: How many of them failed.
        score: The mean score of the turns that are compared; None if none is.
        lm_calls: How many calls of a language model they took.
        usage: Tokens, and whatever else a provider counts, by model name.
        cost: In US dollars; None when no call said.
        duration: How long the program ran, in seconds.
    """

    turns: int = 0
    failed: int = 0
    score: float | None = None
    lm_calls: int = 0
    usage: dict[str, dict[str, float]] = {}
    cost: float | None = None
    duration: float = 0.0

    @property
    def tokens(self) -> int:
        """All tokens, of all models."""
        return int(sum(counts.get("total_tokens", 0) for counts in self.usage.values()))


class ReplayedTurn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of both sides.

    Attributes:
        recorded: The recorded turn.
        replayed: The turn that the program made of it; None if it made none.
        error: Why it made none; empty if it made one.
        run: How the replayed turn went, also where it failed; None if it did not begin.
        recorded_score: What the metric gives the recorded answer; None without a metric.
        replayed_score: What it gives the replayed one; of a failed turn, the score of failures.
        recorded_feedback: What the metric said beside the score.
        replayed_feedback: Likewise.
    """

    recorded: Turn
    replayed: Turn | None = None
    error: str = ""
    run: Run | None = None
    recorded_score: float | None = None
    replayed_score: float | None = None
    recorded_feedback: str | None = None
    replayed_feedback: str | None = None

    @property
    def index(self) -> int:
        """The turn's absolute index."""
        return self.recorded.index

    @property
    def inputs(self) -> dict[str, Any]:
        """What both programs were asked."""
        return self.recorded.inputs

    @property
    def same(self) -> bool:
        """Whether both answered the same."""
        return self.replayed is not None and self.recorded.outputs == self.replayed.outputs

    @property
    def difference(self) -> float | None:
        """By how much the replayed answer scores higher; None where they are not compared."""
        if self.recorded_score is None or self.replayed_score is None:
            return None
        return self.replayed_score - self.recorded_score


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation, recorded and replayed.

    Attributes:
        turns: The turns that were asked again, oldest first.
        session_id: The id of the recorded conversation, if it has one.
        name: What the replayed side is called.
        missing: How many turns were not reached, for one before them failed.
        state: The conversation as the program held it, without id; teacher-forced, the recorded
            one. `Session.from_state(replay.state, program)` goes on with it. None if the replay
            itself failed.
        error: Why the replay itself failed; empty if it did not.
        hidden: The fields that no text made of this shows.
    """

    turns: tuple[ReplayedTurn, ...] = ()
    session_id: str | None = None
    name: str = "replayed"
    missing: int = 0
    state: SessionState | None = None
    error: str = ""
    hidden: frozenset[str] = frozenset()

    @property
    def recorded(self) -> ReplayTotals:
        """What the recorded turns took, of those that were asked again."""
        return totals_of(self.turns, recorded=True)

    @property
    def replayed(self) -> ReplayTotals:
        """What the replayed turns took."""
        return totals_of(self.turns, recorded=False)

    @property
    def difference(self) -> float | None:
        """By how much the replayed side scores higher on average; None if nothing is compared."""
        return mean_of(turn.difference for turn in self.turns)

    @property
    def better(self) -> str | None:
        """`"recorded"`, the name of the replayed side, or `"tie"`; None if nothing is compared."""
        return better_of(self.difference, self.name)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON data, but for what the session redacts."""
        return {
            "session_id": self.session_id,
            "name": self.name,
            "better": self.better,
            "difference": self.difference,
            "error": self.error,
            "missing": self.missing,
            "recorded": msgspec.to_builtins(self.recorded),
            "replayed": msgspec.to_builtins(self.replayed),
            "turns": [_turn_dict(turn, self.hidden) for turn in self.turns],
        }

    def __str__(self) -> str:
        lines = [f"{_subject(self)}: {len(self.turns)} turns, recorded and {self.name}"]
        rows = [_row(turn, self.hidden) for turn in self.turns]
        lines += text_table(("turn", "asked", "recorded", self.name, "score"), rows)
        if self.missing:
            lines.append(f"{self.missing} more turns were not reached.")
        return "\n".join([*lines, *self._summary()])

    def _repr_html_(self) -> str:
        rows = [_row(turn, self.hidden) for turn in self.turns]
        heads = ("turn", "asked", "recorded", self.name, "score")
        return html_table(str(self).splitlines()[0], heads, rows, self._summary())

    def _summary(self) -> list[str]:
        return summary_of(self.recorded, self.replayed, self.better)


# --- adding up ------------------------------------------------------------------------------------


def totals_of(turns: Sequence[ReplayedTurn], *, recorded: bool) -> ReplayTotals:
    """Return what one side of replayed turns took.

    Args:
        turns: The turns.
        recorded: Whether it is the recorded side.
    """
    runs = [turn.recorded.run if recorded else turn.run for turn in turns]
    went = [run for run in runs if run is not None]
    costs = [run.cost for run in went if run.cost is not None]
    scores = [turn.recorded_score if recorded else turn.replayed_score for turn in turns]
    compared = zip(turns, scores, strict=True)
    return ReplayTotals(
        turns=len(turns),
        failed=0 if recorded else sum(bool(t.error) and not t.recorded.erased for t in turns),
        score=mean_of(score for turn, score in compared if turn.difference is not None),
        lm_calls=sum(run.lm_calls for run in went),
        usage=_usage(went),
        cost=sum(costs) if costs else None,
        duration=sum(run.duration or 0.0 for run in went),
    )


def _usage(runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    total: dict[str, dict[str, float]] = {}
    for run in runs:
        for model, counts in run.usage:
            sums = total.setdefault(model, {})
            for name, count in counts:
                if isinstance(count, int | float):
                    sums[name] = sums.get(name, 0) + count
    return total


def mean_of(scores: Iterable[float | None]) -> float | None:
    """Return the mean of the scores that there are; None if there is none.

    Args:
        scores: Scores, and None where there is none.
    """
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def better_of(difference: float | None, name: str) -> str | None:
    """Return the better side: `"recorded"`, the replayed one's name, `"tie"`; None for no scores.

    Args:
        difference: By how much the replayed side scores higher.
        name: What it is called.
    """
    if difference is None:
        return None
    if abs(difference) < CLOSE:
        return TIE
    return name if difference > 0 else "recorded"


# --- as text --------------------------------------------------------------------------------------


def _subject(replay: Replay) -> str:
    return "A conversation" if replay.session_id is None else f"Session {replay.session_id}"


def _row(turn: ReplayedTurn, hidden: frozenset[str]) -> tuple[str, ...]:
    answers = [fields_text(turn.recorded.outputs, hidden)]
    if turn.replayed is None:
        answers.append(f"({' '.join(turn.error.split())})")
    else:
        answers.append("the same" if turn.same else fields_text(turn.replayed.outputs, hidden))
    asked = fields_text(turn.inputs, hidden)
    return (
        str(turn.index),
        *(shortened(text, WIDTH) for text in (asked, *answers)),
        scores_text(turn.recorded_score, turn.replayed_score),
    )


def scores_text(recorded: float | None, replayed: float | None) -> str:
    """Return both scores as text; nothing if there are none.

    Args:
        recorded: The score of the recorded side.
        replayed: The score of the replayed side.
    """
    if recorded is None and replayed is None:
        return ""
    return f"{number_text(recorded) or '-'} -> {number_text(replayed) or '-'}"


def summary_of(before: ReplayTotals, after: ReplayTotals, better: str | None) -> list[str]:
    """Return what both sides took, and which is better, as lines of text.

    Args:
        before: What the recorded turns took.
        after: What the replayed turns took.
        better: The better side, if they are compared.
    """
    parts = [
        f"LM calls {before.lm_calls} -> {after.lm_calls}",
        f"tokens {before.tokens} -> {after.tokens}",
        f"time {before.duration:.1f} s -> {after.duration:.1f} s",
    ]
    if before.cost is not None or after.cost is not None:
        parts.append(f"cost {_money(before.cost)} -> {_money(after.cost)}")
    lines = [", ".join(parts)]
    if after.failed:
        lines.append(f"failed: {after.failed} of {after.turns} turns")
    if better is not None:
        score = f"{number_text(before.score)} -> {number_text(after.score)}"
        lines.append(f"better: {better} (score {score})")
    return lines


def _money(cost: float | None) -> str:
    return "unknown" if cost is None else f"${cost:.4f}"  # nobody said, which is not nothing


def _turn_dict(turn: ReplayedTurn, hidden: frozenset[str]) -> dict[str, Any]:
    replayed = turn.replayed
    return {
        "index": turn.index,
        "inputs": _plain(turn.inputs, hidden),
        "recorded": _plain(turn.recorded.outputs, hidden),
        "replayed": None if replayed is None else _plain(replayed.outputs, hidden),
        "error": turn.error,
        "same": turn.same,
        "recorded_score": turn.recorded_score,
        "replayed_score": turn.replayed_score,
        "difference": turn.difference,
        "recorded_feedback": turn.recorded_feedback,
        "replayed_feedback": turn.replayed_feedback,
        "recorded_run": _run_dict(turn.recorded.run),
        "replayed_run": None if turn.run is None else _run_dict(turn.run),
    }


def _run_dict(run: Run) -> dict[str, Any]:
    return {
        "usage": {model: dict(counts) for model, counts in run.usage},
        "cost": run.cost,
        "duration": run.duration,
        "lm_calls": run.lm_calls,
        "fingerprint": run.fingerprint,
    }


def _plain(fields: dict[str, Any], hidden: frozenset[str]) -> dict[str, Any]:
    """Fields as JSON data; a value without written form as text, for a report is only read."""
    plain: dict[str, Any] = {}
    for name, value in fields.items():
        if name in hidden:
            continue
        try:
            plain[name] = to_plain(value)
        except ValueCodecError:
            plain[name] = readable(value)
    return plain
