"""How prompts differ from a baseline.

Two renderings are compared prompt by prompt, in order. What could not be rendered is said, and
counts as a difference only where it changed. Of a predictor that sent nothing at all, its signature
and its demos are compared instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from dspy_session.prompt_values import Prompt, Prompts, TurnPrompts

__all__ = ["Drift", "PromptChange", "compared"]

_MOST_SHOWN: Final = 3
_MOST_LINES: Final = 40


class PromptChange(msgspec.Struct, frozen=True, kw_only=True):
    """One difference from the baseline.

    Attributes:
        session: The conversation; empty for a change of a predictor that sent nothing.
        turn: The turn's absolute index; None likewise.
        predictor: The predictor's path; empty if it is about the whole turn.
        number: Which prompt of the turn it is, from 0; None if it is about the whole turn.
        what: What changed, in words.
        diff: A unified diff of the prompt, if both sides have it.
    """

    what: str
    session: str = ""
    turn: int | None = None
    predictor: str = ""
    number: int | None = None
    diff: str = ""

    def __str__(self) -> str:
        place = f"session {self.session}, turn {self.turn}" if self.turn is not None else ""
        parts = [part for part in (place, self.predictor) if part]
        return f"{', '.join(parts)}: {self.what}" + (f"\n{self.diff}" if self.diff else "")


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """How prompts differ from a baseline; false if they do not, so `sys.exit(bool(drift))` works.

    Attributes:
        changes: The differences, in the order of the turns.
        prompts: How many prompts were compared.
        baseline: The prompts as they were.
        now: The prompts as they are.
    """

    changes: tuple[PromptChange, ...]
    prompts: int
    baseline: Prompts
    now: Prompts

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.changes

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __len__(self) -> int:
        return len(self.changes)

    def __iter__(self) -> Iterator[PromptChange]:
        return iter(self.changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the differences as JSON data."""
        return {
            "ok": self.ok,
            "prompts": self.prompts,
            "changes": [msgspec.to_builtins(change) for change in self.changes],
            "unrendered": [
                {"session": turn.session, "turn": turn.turn, "why": turn.unrendered}
                for turn in self.now.unrendered
            ],
            "dspy": [self.baseline.dspy, self.now.dspy],
            "adapter": [self.baseline.adapter, self.now.adapter],
        }

    def __str__(self) -> str:
        count = len(self.changes)
        lines = [f"{self.prompts} prompts compared, {count} different"]
        for name in ("dspy", "adapter"):
            before, after = getattr(self.baseline, name), getattr(self.now, name)
            lines += [f"{name}: {before} -> {after}"] if before != after else []
        for change in self.changes[:_MOST_SHOWN]:
            shown = str(change).splitlines()
            lines += shown[:_MOST_LINES]
            lines += [f"... and {len(shown) - _MOST_LINES} more lines"] * (len(shown) > _MOST_LINES)
        if count > _MOST_SHOWN:
            lines.append(f"... and {count - _MOST_SHOWN} more")
        left = len(self.now.unrendered)
        if left:
            first = self.now.unrendered[0]
            lines.append(
                f"{left} turns could not be rendered to their end; of turn {first.turn} in session "
                f"{first.session}: {first.unrendered}"
            )
        return "\n".join(lines)


def compared(baseline: Prompts, now: Prompts) -> Drift:
    """Return how prompts differ from a baseline.

    Args:
        baseline: The prompts as they were.
        now: The prompts as they are.
    """
    before = {(turn.session, turn.turn): turn for turn in baseline.turns}
    after = {(turn.session, turn.turn): turn for turn in now.turns}
    changes: list[PromptChange] = []
    count = 0
    for place in dict.fromkeys((*before, *after)):
        old, new = before.get(place), after.get(place)
        if old is None or new is None:
            what = "the baseline does not have this turn" if old is None else "the turn is gone"
            changes.append(PromptChange(what=what, session=place[0], turn=place[1]))
            continue
        count += min(len(old.prompts), len(new.prompts))
        changes += _turn_changes(old, new)
    changes += _predictor_changes(baseline, now)
    return Drift(changes=tuple(changes), prompts=count, baseline=baseline, now=now)


def _turn_changes(old: TurnPrompts, new: TurnPrompts) -> Iterator[PromptChange]:
    for number, (was, is_now) in enumerate(zip(old.prompts, new.prompts, strict=False)):
        if was == is_now:
            continue
        yield PromptChange(
            what="another prompt" if was.predictor == is_now.predictor else "another predictor",
            session=new.session,
            turn=new.turn,
            predictor=is_now.predictor,
            number=number,
            diff=_diff(was, is_now),
        )
    for number in range(len(new.prompts), len(old.prompts)):
        yield _whole(new, "sends nothing any more", old.prompts[number].predictor, number)
    for number in range(len(old.prompts), len(new.prompts)):
        yield _whole(new, "sends a prompt more", new.prompts[number].predictor, number)
    if old.unrendered != new.unrendered:
        said = new.unrendered or "nothing"
        yield _whole(new, f"what could not be rendered is another: {said}")


def _whole(
    turn: TurnPrompts, what: str, predictor: str = "", number: int | None = None
) -> PromptChange:
    return PromptChange(
        what=what, session=turn.session, turn=turn.turn, predictor=predictor, number=number
    )


def _predictor_changes(baseline: Prompts, now: Prompts) -> Iterator[PromptChange]:
    """The changes of predictors that no prompt shows."""
    shown = {
        prompt.predictor
        for side in (baseline, now)
        for turn in side.turns
        for prompt in turn.prompts
    }
    for path in dict.fromkeys((*baseline.predictors, *now.predictors)):
        if path in shown or baseline.predictors.get(path) == now.predictors.get(path):
            continue
        what = "its signature or its demos changed"
        if path not in baseline.predictors or path not in now.predictors:
            what = "it is new" if path in now.predictors else "it is gone"
        yield PromptChange(what=f"{what}; no prompt of it could be compared", predictor=path)


def _diff(was: Prompt, is_now: Prompt) -> str:
    return "\n".join(difflib.unified_diff(was.lines, is_now.lines, "baseline", "now", lineterm=""))
