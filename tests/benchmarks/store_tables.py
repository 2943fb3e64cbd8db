"""The figures of `tests.benchmarks.stores` as the tables of the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.house import PROJECT

STORAGE: Final = PROJECT / "docs" / "explanation" / "storage.md"
README: Final = PROJECT / "README.md"
CALLED: Final = {
    "dspy-session Archive": "**dspy-session**",
    "dspy-session SQLStore": "the bare `SQLStore`",
    "openai-agents SQLiteSession": "openai-agents, `SQLiteSession`",
    "openai-agents AdvancedSQLiteSession": "openai-agents, `AdvancedSQLiteSession`",
    "llm LogStore": "llm, `LogStore`",
    "langgraph SqliteSaver": "langgraph, `SqliteSaver`",
}
OPERATIONS: Final = ("append", "last", "load", "fork", "undo")  # in the order of the columns

Figures = Mapping[str, Mapping[str, Sequence[float]]]
"""Milliseconds at each length, by name and operation."""


def write(figures: Figures) -> None:
    """Put the figures into the table of the page on storage, and the longest into the README's."""
    _set_cells(STORAGE, {name: (0, _by_length(each)) for name, each in figures.items()})
    shown = {name: each for name, each in figures.items() if name != "dspy-session SQLStore"}
    _set_cells(README, {name: (2, _longest(each)) for name, each in shown.items()})


def _by_length(figures: Mapping[str, Sequence[float]]) -> list[str]:
    return [" / ".join(map(_told, figures[operation])) for operation in OPERATIONS]


def _longest(figures: Mapping[str, Sequence[float]]) -> list[str]:
    return [_told(figures[operation][-1]) for operation in OPERATIONS if operation != "load"]


def _told(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds < 10 else f"{milliseconds:.0f}"


def _set_cells(page: Path, rows: Mapping[str, tuple[int, list[str]]]) -> None:
    """Set the cells of rows, which are there, from the one with some number on."""
    lines = page.read_text("utf-8").split("\n")
    for name, (first, cells) in rows.items():
        (at,) = (n for n, line in enumerate(lines) if line.startswith(f"| {CALLED[name]} |"))
        before = lines[at].strip("|").split("|")[: first + 1]
        lines[at] = f"|{'|'.join(before)}| {' | '.join(cells)} |"
    page.write_text("\n".join(lines), "utf-8")
