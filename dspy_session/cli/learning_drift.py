"""The prompts of stored sessions, rendered anew and compared with a file of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy

from dspy_session.cli.context import CommandContext
from dspy_session.cli.learning_reading import read_sessions
from dspy_session.drifting import drift, drift_baseline
from dspy_session.errors import OptionError
from dspy_session.pictures.figures import counted
from dspy_session.prompt_values import Prompts

__all__ = ["compare", "write_baseline"]


def write_baseline(
    context: CommandContext,
    path: str,
    ids: Sequence[str] | None,
    metadata: Mapping[str, Any],
    program: dspy.Module,
    lm: Any,
) -> int:
    """Write the prompts of stored sessions to a file.

    Args:
        context: What the command works with.
        path: The file.
        ids: The sessions; all if there are none.
        metadata: What they must have in their metadata.
        program: What renders them.
        lm: The model whose abilities adapters ask for, if there is one.

    Returns:
        0.

    Raises:
        SessionError: As from `drift_baseline`.
        OSError: The file cannot be written.
    """
    sessions = read_sessions(context, ids, metadata, program)
    prompts = drift_baseline(path, sessions, program, lm=lm)
    count = sum(len(turn.prompts) for turn in prompts.turns)
    context.answer(
        {"file": path, "sessions": len(sessions), "prompts": count},
        lambda: context.line(
            f"{counted(count, 'prompt')} of {counted(len(sessions), 'session')} -> {path}"
        ),
    )
    return 0


def compare(
    context: CommandContext,
    path: str,
    ids: Sequence[str] | None,
    metadata: Mapping[str, Any],
    program: dspy.Module,
    lm: Any,
) -> int:
    """Show how the prompts of stored sessions differ from those in a file.

    Args:
        context: What the command works with.
        path: The file.
        ids: The sessions; those of the file if there are none.
        metadata: What they must have in their metadata.
        program: What renders them.
        lm: The model whose abilities adapters ask for, if there is one.

    Returns:
        1 if something differs, otherwise 0.

    Raises:
        OptionError: There is no such file.
        SessionError: As from `drift`.
    """
    if not Path(path).exists():
        raise OptionError(f"There is no file {path!r} to compare with. Write one with --write.")
    baseline = Prompts.load(path)
    chosen = list(ids or ()) or list(dict.fromkeys(turn.session for turn in baseline.turns))
    sessions = read_sessions(context, chosen, metadata, program, lenient=not ids)
    found = drift(sessions, program, _only(baseline, ids), lm=lm)
    context.answer(found.to_dict(), lambda: context.lines(str(found)))
    return int(bool(found))


def _only(baseline: Prompts, ids: Sequence[str] | None) -> Prompts:
    """The part of a baseline that is about some sessions."""
    if not ids:
        return baseline
    turns = tuple(turn for turn in baseline.turns if turn.session in ids)
    return Prompts(turns, baseline.predictors, baseline.adapter, baseline.dspy)
