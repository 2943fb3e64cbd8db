"""Numbers about turns, as people read them: tokens, cost, time, score; and their sums.

What nobody reported is left out, never shown as 0.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from dspy_session.core.turn import Turn

__all__ = ["Totals", "counted", "money", "moment", "number", "seconds", "tokens_of", "totals"]


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun.

    Args:
        count: How many.
        one: The noun for one.
        many: The noun for several; None for `one` with an s.

    Example:
        >>> counted(1, "turn"), counted(1200, "turn")
        ('1 turn', '1,200 turns')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def number(value: float) -> str:
    """Return a number without digits that say nothing.

    Args:
        value: The number.

    Example:
        >>> number(1.0), number(2 / 3)
        ('1', '0.667')
    """
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def money(dollars: float) -> str:
    """Return a cost in US dollars, small ones with more digits.

    Args:
        dollars: How much.

    Example:
        >>> money(0.00213), money(12.5)
        ('$0.0021', '$12.50')
    """
    if dollars == 0 or abs(dollars) >= 0.1:
        return f"${dollars:,.2f}"
    return f"${dollars:.6f}" if abs(dollars) < 0.0001 else f"${dollars:.4f}"


def seconds(duration: float) -> str:
    """Return a duration.

    Args:
        duration: In seconds.

    Example:
        >>> seconds(0.0042), seconds(3.14159), seconds(75)
        ('4 ms', '3.1 s', '1 min 15 s')
    """
    if not math.isfinite(duration):
        return number(duration)
    if duration < 1:
        return f"{duration * 1000:.0f} ms"
    if duration < 60:
        return f"{duration:.1f} s"
    minutes, rest = divmod(round(duration), 60)
    return f"{minutes:,} min {rest} s"


def moment(time: float | None) -> dt.datetime | None:
    """Return a time in UTC; None if it is none, or none that a calendar has.

    Args:
        time: In seconds since the epoch.
    """
    try:
        return None if time is None else dt.datetime.fromtimestamp(time, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return None


def tokens_of(usage: Mapping[str, Mapping[str, Any]]) -> int | None:
    """Return how many tokens a turn took, prompts and answers together; None if nobody said.

    Args:
        usage: What a turn has as `usage`.
    """
    said = [
        count
        for counts in usage.values()
        if (count := _whole(counts, "total_tokens") or _both(counts)) is not None
    ]
    return sum(said) if said else None


def _both(counts: Mapping[str, Any]) -> int | None:
    parts = [_whole(counts, name) for name in ("prompt_tokens", "completion_tokens")]
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _whole(counts: Mapping[str, Any], name: str) -> int | None:
    count = counts.get(name)
    return count if isinstance(count, int) and not isinstance(count, bool) else None


class Totals(msgspec.Struct, frozen=True):
    """What several turns add up to.

    Attributes:
        turns: How many there are.
        tokens: How many tokens they took; None if nobody said.
        cost: What they cost; None if nobody said.
        scored: How many have a score.
        score: The mean of the scores; None if there are none.
        begin: When the first of them began, in seconds since the epoch.
        end: When the last of them began.
    """

    turns: int
    tokens: int | None
    cost: float | None
    scored: int
    score: float | None
    begin: float | None
    end: float | None


def totals(turns: Iterable[Turn]) -> Totals:
    """Return what turns add up to.

    Args:
        turns: The turns.
    """
    all_turns = list(turns)
    tokens = [t for turn in all_turns if (t := tokens_of(turn.usage)) is not None]
    costs = [turn.cost for turn in all_turns if turn.cost is not None]
    scores = [turn.score for turn in all_turns if turn.score is not None]
    times = [turn.time for turn in all_turns if moment(turn.time) is not None and turn.time]
    return Totals(
        turns=len(all_turns),
        tokens=sum(tokens) if tokens else None,
        cost=sum(costs) if costs else None,
        scored=len(scores),
        score=sum(scores) / len(scores) if scores else None,
        begin=min(times, default=None),
        end=max(times, default=None),
    )
