"""Commands that look after a store: whether all is as it was written, and what nobody needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from dspy_session.cli.context import CommandContext, command
from dspy_session.journal.checking import Verification
from dspy_session.pictures.figures import counted

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to the app.

    Args:
        app: The app.
    """
    command(app, "verify")(_verify)
    command(app, "vacuum")(_vacuum)


def _verify(
    context: CommandContext,
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Which sessions; all if none.", show_default=False),
    ] = None,
) -> int | None:
    """Read sessions again and compare them with their digests; exit status 1 if one is damaged."""
    sessions = context.sessions()
    wanted = list(dict.fromkeys(ids)) if ids else list(sessions.ids())
    found = [
        sessions.verify(session_id)
        for session_id in context.progress(wanted, "Verifying", len(wanted))
    ]
    good = all(one.ok for one in found)
    context.answer(
        {"ok": good, "sessions": [_document(one) for one in found]},
        lambda: _show(context, found),
    )
    return None if good else 1


def _document(found: Verification) -> dict[str, Any]:
    return {
        "session_id": found.session_id,
        "ok": found.ok,
        "turns": found.turns,
        "erased": list(found.erased),
        "first_bad": found.first_bad,
        "damaged": [{"turn": turn, "what": what} for turn, what in found.damaged],
    }


def _show(context: CommandContext, found: Sequence[Verification]) -> None:
    for one in found:
        for turn, what in one.damaged:
            where = "" if turn is None else f"turn {turn}: "
            context.line(f"{one.session_id}: {where}{what}", style="red")
    bad = sum(not one.ok for one in found)
    checked = counted(len(found), "session"), counted(sum(one.turns for one in found), "turn")
    erased = sum(len(one.erased) for one in found)
    context.line(
        f"{checked[0]}, {checked[1]} checked{f', {erased} of them erased' if erased else ''}: "
        f"{counted(bad, 'session') + ' damaged' if bad else 'nothing damaged'}."
    )


def _vacuum(context: CommandContext) -> None:
    """Delete what no session needs any more, such as answers that were undone and left behind."""
    if context.place.exists:
        sessions = context.sessions(write=True)
        (deleted,) = context.progress((sessions.vacuum() for _ in range(1)), "Cleaning", None)
    else:
        context.sessions()
        deleted = 0
    context.answer(
        {"deleted_turns": deleted},
        lambda: context.line(f"Deleted {counted(deleted, 'turn')} that no session needs."),
    )
