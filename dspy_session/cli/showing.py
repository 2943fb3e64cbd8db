"""Commands that show a conversation: its turns one by one, and the tree of its branches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any, Final

import msgspec
import typer

from dspy_session.cli.context import CommandContext, command
from dspy_session.cli.given import SessionId
from dspy_session.cli.listing import info_document, shown_bytes, shown_metadata
from dspy_session.core.chat_view import messages_by_turn
from dspy_session.core.state import SessionState
from dspy_session.core.turn import Turn
from dspy_session.core.vectors import stretch, vector
from dspy_session.pictures import tree_of
from dspy_session.pictures.figures import counted, moment, money, number, seconds, tokens_of
from dspy_session.pictures.seen import Change, changes
from dspy_session.pictures.values import plain_value, shown_text
from dspy_session.session_info import SessionInfo

__all__ = ["register"]

_ROLE: Final = 12
_SIGNS: Final = {"added": "+", "changed": "~", "removed": "-"}


class _Told(msgspec.Struct, frozen=True):
    """A turn with its chat messages, and what became of the session data since the one before."""

    turn: Turn
    messages: list[dict[str, Any]]
    changed: list[Change]


def register(app: typer.Typer) -> None:
    """Add the commands to the app.

    Args:
        app: The app.
    """
    command(app, "show")(_show)
    command(app, "tree")(_tree)


def _show(
    context: CommandContext,
    session_id: SessionId,
    last: Annotated[
        int | None,
        typer.Option("--last", "-n", min=0, metavar="N", help="Only the newest N turns."),
    ] = None,
    before: Annotated[
        int | None,
        typer.Option(min=0, metavar="K", help="Only turns before turn K, which may be damaged."),
    ] = None,
) -> None:
    """Show a conversation: who said what, scores, session data. Only what is shown is read."""
    sessions = context.sessions()
    info = sessions.info(session_id)
    sessions.ref(session_id)
    count = info.turn_count if last is None else min(last, info.turn_count)
    if before is None:
        state = sessions.state(session_id, newest=max(1, count))
    else:
        state = _part(sessions.turns(session_id, max(0, before - count), before))
    told = _told(state, min(count, len(state)))
    pending = [plain_value(dict(message)) for message in state.pending]
    instructions = state.instructions.text if state.instructions is not None else None
    document = {
        **info_document(info),
        "instructions": instructions,
        "data": state.data.to_dict(),
        "turns": [_turn_document(one) for one in told],
        "pending": pending,
    }

    def show() -> None:
        _show_heading(context, info, state)
        for one in told:
            _show_turn(context, one)
        for message in pending:
            _show_message(context, {**message, "role": f"{message.get('role')}, waits"})

    context.answer(document, show)


def _told(state: SessionState, count: int) -> list[_Told]:
    """The newest turns with their messages, without a look at those before them."""
    turns = list(stretch(state.held, len(state) - count, len(state)))
    by_turn = {turn.index: messages for turn, messages in messages_by_turn(_part(turns))[1]}
    datas = [turns[0].data_before, *(turn.data for turn in turns)] if turns else []
    return [
        _Told(turn, by_turn.get(turn.index, []), changes(before, after))
        for turn, (before, after) in zip(turns, pairwise(datas), strict=True)
    ]


def _part(turns: Sequence[Turn]) -> SessionState:
    """The conversation that some turns are, with nothing before them."""
    first = turns[0].index if turns else 0
    return SessionState(
        held=vector(turns),
        log=vector(turn.exchange for turn in turns),
        first=first,
        stop=first + len(turns),
        tip=first + len(turns),
    )


def _turn_document(told: _Told) -> dict[str, Any]:
    turn = told.turn
    return {
        "index": turn.index,
        "id": turn.id,
        "time": None if (time := moment(turn.time)) is None else time.isoformat(),
        "duration": plain_value(turn.duration),
        "inputs": plain_value(turn.inputs),
        "outputs": plain_value(turn.outputs),
        "messages": plain_value(told.messages),
        "score": plain_value(turn.score),
        "feedback": turn.feedback,
        "tokens": tokens_of(turn.usage),
        "cost": plain_value(turn.cost),
        "erased": turn.erased,
        "details": plain_value(turn.details),
        "data_changes": [msgspec.structs.asdict(change) for change in told.changed],
    }


def _show_heading(context: CommandContext, info: SessionInfo, state: SessionState) -> None:
    facts = [counted(info.turn_count, "turn"), shown_bytes(info.size_bytes)]
    if info.origin is not None:
        facts.append(f"a fork of {info.origin!r}")
    context.line(f"{info.session_id}: {', '.join(facts)}", style="bold")
    if info.metadata:
        context.said("metadata", shown_metadata(info.metadata))
    if state.instructions is not None:
        context.said("instructions", state.instructions.text)
    if state.data:
        context.said("data", shown_metadata(state.data))


def _show_turn(context: CommandContext, told: _Told) -> None:
    turn = told.turn
    context.line("")
    context.line(": ".join(filter(None, (f"turn {turn.index}", ", ".join(_facts(turn))))), "cyan")
    for message in told.messages:
        _show_message(context, message)
    if turn.feedback:
        context.said("feedback", turn.feedback)
    for change in told.changed:
        value = "" if change.kind == "removed" else f": {shown_text(change.after)}"
        context.said("data", f"{_SIGNS[change.kind]} {change.key}{value}")


def _facts(turn: Turn) -> Iterator[str]:
    if (time := moment(turn.time)) is not None:
        yield f"{time:%Y-%m-%d %H:%M}"
    if turn.duration is not None:
        yield seconds(turn.duration)
    if (tokens := tokens_of(turn.usage)) is not None:
        yield counted(tokens, "token")
    if turn.cost is not None:
        yield money(turn.cost)
    if turn.score is not None:
        yield f"score {number(turn.score)}"
    if turn.erased:
        yield "erased"


def _show_message(context: CommandContext, message: Any) -> None:
    role, content = str(message.get("role")), plain_value(message.get("content"))
    if content not in (None, "", []):
        context.said(role, shown_text(content))
    for call in message.get("tool_calls") or ():
        function = plain_value(call).get("function", {})
        context.said(role, f"calls {function.get('name')}({function.get('arguments', '')})")


def _tree(
    context: CommandContext,
    session_id: SessionId,
    others: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="More sessions.", show_default=False),
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="Without the forks that the session has.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, metavar="N", help="At most N turns.")
    ] = 100,
) -> None:
    """Show the branches of a conversation: its forks, what was undone, other answers."""
    sessions = context.sessions()
    forks = [] if alone else sessions.relatives(session_id)
    ids = list(dict.fromkeys((session_id, *(others or ()), *forks)))
    reading = context.progress(ids, "Reading", len(ids))
    tree = tree_of([sessions.state(id) for id in reading])
    context.answer(
        tree.to_dict(), lambda: context.lines(tree.to_text(width=context.width, limit=limit))
    )
