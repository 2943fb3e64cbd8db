"""Stored sessions through other programs, and which of them answers better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dspy
import msgspec

from dspy_session.cli.context import CommandContext
from dspy_session.cli.ending import Usage
from dspy_session.cli.program_models import choose_model
from dspy_session.cli.programs import load_program
from dspy_session.pictures.figures import counted
from dspy_session.replay_comparison import ReplayReport, compare_replays
from dspy_session.replay_report import Replay
from dspy_session.replaying import replay_all
from dspy_session.session import Session

__all__ = ["Side", "replay_sides", "show", "sides_of"]


class Side(msgspec.Struct, frozen=True):
    """One way to replay.

    Attributes:
        name: What reports call it.
        program: What is asked.
        lm: What answers; None for the program's own.
    """

    name: str
    program: dspy.Module
    lm: Any


def sides_of(
    first: tuple[str, str | None],
    other: tuple[str | None, str | None],
    settings: Mapping[str, Any],
    *,
    reasoning: bool,
) -> list[Side]:
    """Return what is to be replayed: one side, or two.

    Args:
        first: A program and its model, as they are named.
        other: Likewise; what is None is as the first one's, and both None for no other side.
        settings: As for `choose_model`.
        reasoning: As for `load_program`.

    Raises:
        Usage: A program or a model is none, or both sides are the same.
    """
    named = [first]
    if other != (None, None):
        named.append((other[0] or first[0], other[1] or first[1]))
    if len(named) > 1 and named[0] == named[1]:
        raise Usage("Both sides are the same: name another program, or another model.")
    programs_differ = len({program for program, _ in named}) > 1
    loaded = [load_program(program, reasoning=reasoning) for program, _ in named]
    chosen = [
        choose_model([program], model, **settings)
        for program, (_, model) in zip(loaded, named, strict=True)
    ]
    labels = [
        program if programs_differ or len(named) == 1 else model.name
        for (program, _), model in zip(named, chosen, strict=True)
    ]
    return [
        Side(label, program, model.lm)
        for label, program, model in zip(labels, loaded, chosen, strict=True)
    ]


def replay_sides(
    sides: Sequence[Side], sessions: Sequence[Session], threads: int, keywords: Mapping[str, Any]
) -> list[ReplayReport]:
    """Replay sessions on each side, with a bar on standard error, if that is a terminal.

    Args:
        sides: The sides.
        sessions: The sessions.
        threads: How many of them at a time.
        keywords: As for `replay`.

    Raises:
        SessionError: As from `replay_all`.
    """
    return [
        replay_all(
            sessions, side.program, num_threads=threads, name=side.name, lm=side.lm, **keywords
        )
        for side in sides
    ]


def show(context: CommandContext, reports: Sequence[ReplayReport], *, each: bool) -> int:
    """Show what was found, and return the exit status.

    Args:
        context: What the command works with.
        reports: A report for each side.
        each: Whether each turn is shown.

    Returns:
        1 if a turn failed, otherwise 0.
    """
    comparison = compare_replays(*reports) if len(reports) > 1 else None
    if comparison is None:
        document = reports[0].to_dict()
    else:
        both = [report.to_dict() for report in reports]
        document = {**comparison.to_dict(), "reports": both}
    context.answer(document, lambda: _show(context, reports, comparison, each))
    failed = [(report, replay) for report in reports for replay in report.failed]
    if failed:
        report, replay = failed[0]
        context.note(
            f"{counted(len(failed), 'replay')} failed; of {report.name}, session "
            f"{replay.session_id}: {_reason(replay)}"
        )
    return 1 if failed else 0


def _show(
    context: CommandContext, reports: Sequence[ReplayReport], comparison: Any, each: bool
) -> None:
    for report in reports:
        if each or (comparison is None and len(report.replays) == 1):
            for replay in report.replays:
                context.lines(str(replay))
    if comparison is not None:
        context.lines(str(comparison))
    elif each or len(reports[0].replays) > 1:
        context.lines(str(reports[0]))
    if all(report.better is None for report in reports):
        context.note("Without --metric MODULE:FUNCTION, nothing says which side is better.")


def _reason(replay: Replay) -> str:
    errors = (turn.error for turn in replay.turns if turn.error)
    return replay.error or next(errors, "")
