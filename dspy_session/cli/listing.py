"""Commands over all sessions: which there are, where a text is, how much there is."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from dspy_session.cli.context import CommandContext, command
from dspy_session.cli.given import WhereOption, named_values
from dspy_session.cli.tables import Column
from dspy_session.pictures.figures import counted
from dspy_session.pictures.values import shown_text
from dspy_session.session_info import SessionInfo, StoreStatistics

__all__ = ["info_document", "register", "shown_bytes", "shown_metadata"]

_BAR: Final = 40
_TIME: Final = "%Y-%m-%d %H:%M"


class Order(enum.StrEnum):
    """What lists are ordered by."""

    updated = "updated"
    created = "created"
    id = "id"


def register(app: typer.Typer) -> None:
    """Add the commands to the app.

    Args:
        app: The app.
    """
    command(app, "list")(_list)
    command(app, "search")(_search)
    command(app, "stats")(_stats)


def _list(
    context: CommandContext,
    where: WhereOption = None,
    order: Annotated[
        Order, typer.Option("--order", help="What comes first: the latest, or the first id.")
    ] = Order.updated,
    reverse: Annotated[bool, typer.Option("--reverse", help="The other way round.")] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=0, metavar="N", help="At most N of them.")
    ] = None,
    offset: Annotated[int, typer.Option(min=0, metavar="N", help="Pass over the first N.")] = 0,
) -> None:
    """List the sessions: how many turns, when written, which metadata."""
    sessions, metadata = context.sessions(), named_values(where, "--where")
    descending = (order is not Order.id) is not reverse
    infos = sessions.list_sessions(
        metadata, order=order.value, descending=descending, limit=limit, offset=offset
    )
    whole = limit is None and not offset
    count = len(infos) if whole else sessions.count_sessions(metadata)
    context.answer(
        {"count": count, "sessions": [info_document(info) for info in infos]},
        lambda: _show_list(context, infos, count, offset, "such " if metadata else ""),
    )


def _show_list(
    context: CommandContext, infos: list[SessionInfo], count: int, offset: int, such: str
) -> None:
    if infos:
        context.table(
            [
                Column("ID", least=8, style="bold"),
                Column("TURNS", right=True),
                Column("UPDATED (UTC)"),
                Column("SIZE", right=True),
                Column("METADATA", least=12, style="dim"),
            ],
            [
                (
                    info.session_id,
                    info.turn_count,
                    info.updated_at.strftime(_TIME),
                    shown_bytes(info.size_bytes),
                    _metadata_cell(info),
                )
                for info in infos
            ],
        )
    if len(infos) < count:
        more = f"; --offset {offset + len(infos)} shows the next" if infos else ""
        context.note(f"There are {counted(count, 'session')}{more}.")
    elif not infos and context.place.exists:
        context.note(f"There are no {such}sessions.")


def _metadata_cell(info: SessionInfo) -> str:
    if info.damaged is not None:
        return f"damaged: {info.damaged}"
    return shown_metadata(info.metadata)


def _search(
    context: CommandContext,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text.", show_default=False)],
    where: WhereOption = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, metavar="N", help="At most N places.")
    ] = 100,
) -> None:
    """Find a text in what was said, whether in capitals or not."""
    sessions, metadata = context.sessions(), named_values(where, "--where")
    count = sessions.count_sessions(metadata)
    sessions.watch = lambda families: context.progress(families, "Searching", count, size=len)
    hits = sessions.search(text, metadata, limit=limit)
    document = [
        {
            "session_id": hit.session_id,
            "turn_index": hit.turn_index,
            "field": hit.field,
            "excerpt": hit.excerpt,
        }
        for hit in hits
    ]

    def show() -> None:
        if not hits:
            context.note(f"Nothing has the text {text!r}.")
            return
        context.table(
            [
                Column("ID", least=8, style="bold"),
                Column("TURN", right=True),
                Column("EXCERPT", least=12),
                Column("FIELD", style="dim"),
            ],
            [(hit.session_id, hit.turn_index, hit.excerpt, hit.field) for hit in hits],
        )
        if len(hits) == limit:
            context.note(f"These are the first {limit}; --limit says how many.")

    context.answer({"hits": document}, show)


def _stats(
    context: CommandContext,
    days: Annotated[
        int, typer.Option(min=1, max=3660, metavar="N", help="How many days back, today included.")
    ] = 7,
) -> None:
    """Say how much is stored, and how many turns were made on each of the last days."""
    sessions = context.sessions()
    statistics, activity = sessions.statistics(), sessions.activity(days)
    by_day = {day.isoformat(): count for day, count in activity.items()}
    document = {
        "session_count": statistics.session_count,
        "turn_count": statistics.turn_count,
        "size_bytes": statistics.size_bytes,
        "recent": [info_document(info) for info in statistics.recent],
        "activity": by_day,
    }
    context.answer(document, lambda: _show_stats(context, statistics, by_day))


def _show_stats(
    context: CommandContext, statistics: StoreStatistics, by_day: Mapping[str, int]
) -> None:
    context.line(
        f"{counted(statistics.session_count, 'session')}, "
        f"{counted(statistics.turn_count, 'turn')}, {shown_bytes(statistics.size_bytes)}"
    )
    most = max(by_day.values(), default=0) or 1
    context.table(
        [Column("DAY (UTC)"), Column("TURNS", right=True), Column("", least=1, style="cyan")],
        [(day, count, "#" * -(-count * _BAR // most)) for day, count in by_day.items()],
    )


def info_document(info: SessionInfo) -> dict[str, Any]:
    """Return what is known of a session as plain JSON values.

    Args:
        info: What is known.
    """
    return {
        "session_id": info.session_id,
        "turn_count": info.turn_count,
        "created_at": info.created_at.isoformat(),
        "updated_at": info.updated_at.isoformat(),
        "metadata": info.metadata.to_dict(),
        "size_bytes": info.size_bytes,
        "origin": info.origin,
        "damaged": info.damaged,
    }


def shown_metadata(metadata: Mapping[str, Any]) -> str:
    """Return metadata, or session data, in a few words.

    Args:
        metadata: Values by key.

    Example:
        >>> shown_metadata({"app": "shop", "tags": ["a", "b"]})
        'app: shop, tags: ["a", "b"]'
    """
    return ", ".join(f"{key}: {shown_text(value)}" for key, value in metadata.items())


def shown_bytes(count: int) -> str:
    """Return a size in bytes.

    Args:
        count: How many bytes.

    Example:
        >>> shown_bytes(999), shown_bytes(1_234), shown_bytes(5_000_000)
        ('999 B', '1.2 kB', '5.0 MB')
    """
    size, units = float(count), ["B", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{count} B" if units[0] == "B" else f"{size:,.1f} {units[0]}"
