"""Tables of text, for terminals and for notebooks: what reports are read as."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from dspy_session.core.chat_view import readable

__all__ = ["fields_text", "html_table", "number_text", "shortened", "text_table"]


def text_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table.

    Args:
        heads: What stands above the columns.
        rows: The cells, each of one line.

    Example:
        >>> for line in text_table(("turn", "score"), [("0", "1.00"), ("1", "0.50")]):
        ...     print(line)
        turn  score
        0     1.00
        1     0.50
    """
    table = [list(heads), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def html_table(
    title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str]
) -> str:
    """Return a table as HTML, in which everything that was given is text.

    Args:
        title: What stands above it.
        heads: What stands above the columns.
        rows: The cells.
        notes: What stands below, line by line.
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    above = f"<p><b>{html.escape(title)}</b></p>" if title else ""
    return f"{above}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"


def fields_text(fields: Mapping[str, Any], hidden: Set[str]) -> str:
    """Return fields as one line: the value of the only one, or each with its name.

    Args:
        fields: Values by name.
        hidden: The names of those that are left out.

    Example:
        >>> fields_text({"answer": "Yes.", "secret": 1}, {"secret"})
        'Yes.'
    """
    shown = {name: readable(value) for name, value in fields.items() if name not in hidden}
    if len(shown) == 1:
        return " ".join(*(text.split() for text in shown.values()))
    return " ".join(f"{name}: {' '.join(text.split())}" for name, text in shown.items())


def shortened(text: str, width: int) -> str:
    """Return a text that is no longer than so many characters.

    Args:
        text: Any text.
        width: How many.
    """
    return text if len(text) <= width else f"{text[: width - 1]}…"


def number_text(number: float | None) -> str:
    """Return a number with two decimals; nothing for None.

    Args:
        number: The number.
    """
    return "" if number is None else f"{number:.2f}"
