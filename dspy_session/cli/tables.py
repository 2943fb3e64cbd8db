"""Tables for a terminal: one line a row, no frame, cut where there is no room."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec
from rich.text import Text

from dspy_session.pictures.values import harmless, shortened, unbroken, width_of

__all__ = ["Column", "laid_out"]

_BETWEEN: Final = "  "


class Column(msgspec.Struct, frozen=True):
    """A column.

    Attributes:
        name: What stands above it.
        right: Whether its values end at the same place, as numbers do.
        least: How narrow it may become where there is little room; None for not at all.
        style: A style of rich's for its values.
    """

    name: str
    right: bool = False
    least: int | None = None
    style: str = ""


def laid_out(
    columns: Sequence[Column], rows: Iterable[Sequence[object]], width: int | None
) -> Iterator[Text]:
    """Yield the lines of a table.

    Args:
        columns: The columns, the more important ones first.
        rows: Their values.
        width: How many terminal columns a line may have; None for any.
    """
    table = ([column.name for column in columns], *rows)
    names, *cells = [[unbroken(harmless(str(value))) for value in row] for row in table]
    widths = [max((width_of(row[at]) for row in cells), default=0) for at in range(len(columns))]
    widths = [max(width_of(name), wide) for name, wide in zip(names, widths, strict=True)]
    if width is not None:
        widths = _fitted(columns, widths, width)
    shown = columns[: len(widths)]
    yield _line(names, shown, widths, "bold")
    for row in cells:
        yield _line(row, shown, widths)


def _fitted(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """The widths of the columns for which there is room; the first always has some."""
    fitted = list(widths)
    while True:
        over = sum(fitted) + len(_BETWEEN) * (len(fitted) - 1) - width
        for at in reversed(range(len(fitted))):  # the last ones give first
            least = columns[at].least
            if over > 0 and least is not None:
                given = min(over, max(0, fitted[at] - max(least, width_of(columns[at].name))))
                fitted[at] -= given
                over -= given
        if over <= 0:
            return fitted
        if len(fitted) == 1:
            return [max(1, width)]
        fitted = list(widths[: len(fitted) - 1])


def _line(
    values: Sequence[str], columns: Sequence[Column], widths: Sequence[int], style: str = ""
) -> Text:
    line = Text()
    for at, (value, column, wide) in enumerate(zip(values, columns, widths, strict=False)):
        text = shortened(value, wide)
        room = " " * (wide - width_of(text))
        line.append(_BETWEEN if at else "")
        line.append(room + text if column.right else text, style=style or column.style)
        if not column.right and at < len(widths) - 1:
            line.append(room)
    line.rstrip()
    return line
