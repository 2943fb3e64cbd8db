"""Replays of many conversations, and of the same ones in several ways: which side is the better."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

import msgspec

from dspy_session.errors import CallError, OptionError
from dspy_session.replay_report import (
    CLOSE,
    SIDES,
    TIE,
    WIDTH,
    Replay,
    ReplayedTurn,
    ReplayTotals,
    better_of,
    mean_of,
    scores_text,
    summary_of,
    totals_of,
)
from dspy_session.tabulating import html_table, number_text, shortened, text_table

__all__ = ["ReplayComparison", "ReplayReport", "compare_replays"]

_MOST_LINES: Final = 20


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """Many conversations, recorded and replayed.

    Attributes:
        replays: One per conversation, in the order in which they were given.
        name: What the replayed side is called.
    """

    replays: tuple[Replay, ...]
    name: str = "replayed"

    @property
    def turns(self) -> tuple[ReplayedTurn, ...]:
        """The turns of all conversations."""
        return tuple(turn for replay in self.replays for turn in replay.turns)

    @property
    def failed(self) -> tuple[Replay, ...]:
        """The conversations of which a turn failed, or whose replay failed itself."""
        return tuple(r for r in self.replays if r.error or any(t.error for t in r.turns))

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
        """By how much the replayed side scores higher on average, over the turns of all."""
        return mean_of(turn.difference for turn in self.turns)

    @property
    def better(self) -> str | None:
        """`"recorded"`, the name of the replayed side, or `"tie"`; None if nothing is compared."""
        return better_of(self.difference, self.name)

    @property
    def wins(self) -> dict[str, int]:
        """How many conversations each side is better at, and how many are a tie."""
        counts = {"recorded": 0, self.name: 0, TIE: 0}
        for replay in self.replays:
            if replay.better is not None:
                counts[replay.better] += 1
        return counts

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON data, but for what the sessions redact."""
        return {
            "name": self.name,
            "better": self.better,
            "difference": self.difference,
            "wins": self.wins,
            "recorded": msgspec.to_builtins(self.recorded),
            "replayed": msgspec.to_builtins(self.replayed),
            "replays": [replay.to_dict() for replay in self.replays],
        }

    def __str__(self) -> str:
        lines = [f"{len(self.replays)} conversations, recorded and {self.name}", *self._lines()]
        return "\n".join([*lines, *self._summary()])

    def _repr_html_(self) -> str:
        title = f"{len(self.replays)} conversations, recorded and {self.name}"
        return html_table(
            title, _HEADS, [_conversation_row(r) for r in self.replays], self._summary()
        )

    def _summary(self) -> list[str]:
        lines = summary_of(self.recorded, self.replayed, self.better)
        missing = sum(replay.missing for replay in self.replays)
        return [f"{missing} turns were not reached.", *lines] if missing else lines

    def _lines(self) -> list[str]:
        rows = [_conversation_row(replay) for replay in self.replays]
        lines = text_table(_HEADS, rows[:_MOST_LINES])
        more = len(rows) - _MOST_LINES
        return [*lines, f"... and {more} more conversations"] if more > 0 else lines


_HEADS: Final = ("session", "turns", "failed", "score")


class ReplayComparison(msgspec.Struct, frozen=True):
    """The same conversations, replayed in several ways.

    Scores are compared over the same turns, those that all ways came to: a way that ended early
    would be judged by the turns before, and the others by all.

    Attributes:
        reports: One per way.
    """

    reports: tuple[ReplayReport, ...]

    @property
    def sides(self) -> dict[str, ReplayTotals]:
        """What each way took, by its name; what was recorded comes first."""
        scored = [report for report in self.reports if report.replayed.score is not None]
        turns = _compared(scored)
        recorded = mean_of(ways[0].recorded_score for ways in turns)
        scores = {
            report.name: mean_of(ways[at].replayed_score for ways in turns)
            for at, report in enumerate(scored)
        }
        sides = {"recorded": _scoring(self.reports[0].recorded, recorded)}
        return sides | {r.name: _scoring(r.replayed, scores.get(r.name)) for r in self.reports}

    @property
    def ranking(self) -> tuple[str, ...]:
        """The sides that have a score, the best first; what was recorded is one of them."""
        scores = {name: side.score for name, side in self.sides.items() if side.score is not None}
        return tuple(sorted(scores, key=lambda name: -scores[name]))

    @property
    def better(self) -> str | None:
        """The best of the ways to replay; `"tie"` for several, None without a metric."""
        sides = self.sides
        scores = {r.name: s for r in self.reports if (s := sides[r.name].score) is not None}
        best = max(scores.values(), default=None)
        if best is None:
            return None
        names = [name for name, score in scores.items() if best - score < CLOSE]
        return names[0] if len(names) == 1 else TIE

    def to_dict(self) -> dict[str, Any]:
        """Return the sides as JSON data."""
        sides = {name: msgspec.to_builtins(side) for name, side in self.sides.items()}
        return {"better": self.better, "ranking": list(self.ranking), "sides": sides}

    def __str__(self) -> str:
        return "\n".join([*text_table(_SIDE_HEADS, self._rows()), f"better: {self.better}"])

    def _repr_html_(self) -> str:
        return html_table("", _SIDE_HEADS, self._rows(), [f"better: {self.better}"])

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                name,
                number_text(side.score),
                str(side.failed),
                str(side.lm_calls),
                str(side.tokens),
                "" if side.cost is None else f"${side.cost:.4f}",
                f"{side.duration:.1f} s",
            )
            for name, side in self.sides.items()
        ]


_SIDE_HEADS: Final = ("side", "score", "failed", "LM calls", "tokens", "cost", "time")


def compare_replays(*reports: ReplayReport) -> ReplayComparison:
    """Return which of several ways to replay the same conversations is the best.

    Args:
        *reports: What `replay_all` returned, each under a name of its own.

    Raises:
        CallError: One of them is no report of `replay_all`.
        OptionError: There is none, two have one name, or they are of other conversations.
    """
    for report in reports:
        if not isinstance(report, ReplayReport):
            raise CallError(
                "compare_replays takes what replay_all(...) returned, also for one conversation, "
                f"not {type(report).__name__}."
            )
    names = [report.name for report in reports]
    if not reports or len({*names, *SIDES}) != len(names) + len(SIDES):
        raise OptionError(
            "Give one or more reports, each under a name of its own: replay_all(..., "
            f'name="..."). The names that came: {names}.'
        )
    kinds = {
        tuple((r.session_id, len(r.turns) + r.missing) for r in one.replays) for one in reports
    }
    if len(kinds) > 1:
        raise OptionError("The reports are of other conversations; replay the same ones.")
    return ReplayComparison(reports)


def _compared(reports: Sequence[ReplayReport]) -> list[tuple[ReplayedTurn, ...]]:
    """The turns that all reports compare, each as it came out in each of them."""
    conversations = zip(*(report.replays for report in reports), strict=True)
    turns = (zip(*(replay.turns for replay in ways), strict=False) for ways in conversations)
    return [
        ways
        for ways in chain.from_iterable(turns)
        if all(turn.difference is not None for turn in ways)
    ]


def _scoring(side: ReplayTotals, score: float | None) -> ReplayTotals:
    return msgspec.structs.replace(side, score=score)


def _conversation_row(replay: Replay) -> tuple[str, ...]:
    failed = f"({shortened(' '.join(replay.error.split()), WIDTH)})" if replay.error else ""
    return (
        replay.session_id or "",
        str(len(replay.turns)),
        failed or str(replay.replayed.failed),
        scores_text(replay.recorded.score, replay.replayed.score),
    )
