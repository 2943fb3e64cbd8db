"""A tree of conversations as one value, with its pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, overload

import msgspec

from dspy_session.core.state import SessionState
from dspy_session.errors import OptionError
from dspy_session.files import AnyPath, write_whole
from dspy_session.pictures.figures import tokens_of
from dspy_session.pictures.nodes import Branch, TreeSession, TreeTurn, joined
from dspy_session.pictures.page import cell, page
from dspy_session.pictures.text import Line, lines
from dspy_session.pictures.values import plain_value

__all__ = ["ConversationTree", "tree_of"]

_WIDTH: Final = 100
_ON_A_SCREEN: Final = 100
_IN_A_CELL: Final = 30
_ON_A_PAGE: Final = 1_000
_STYLES: Final = {"title": "bold", "branch": "bold", "answered": "", "note": "dim", "said": "bold"}


class ConversationTree(msgspec.Struct, frozen=True, eq=False):
    """Conversations joined into one tree where they share turns; `tree(...)` makes it.

    Its `str` is for a terminal, rich prints it in colour, and a notebook shows it.

    Attributes:
        sessions: The conversations.
        branches: The branches, that of the first session first. Each goes on to its end; the
            others part from it.
    """

    sessions: tuple[TreeSession, ...]
    branches: tuple[Branch, ...]

    @property
    def turns(self) -> tuple[TreeTurn, ...]:
        """All turns, by number."""
        return tuple(turn for branch in self.branches for turn in branch.turns)

    def to_text(self, width: int | None = _WIDTH, limit: int | None = _ON_A_SCREEN) -> str:
        """Return the tree as text, two lines a turn.

        Args:
            width: How many columns a line has at most; None for any.
            limit: How many turns are drawn at most; None for all.

        Raises:
            OptionError: One of them is no whole number.
        """
        _check(width=width, limit=limit)
        return "\n".join(str(line.fitted(width)) for line in lines(self, limit))

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return f"ConversationTree(sessions={len(self.sessions)}, turns={len(self.turns)})"

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text  # noqa: PLC0415  # only rich itself calls this

        for line in lines(self, _ON_A_SCREEN):
            fitted: Line = line.fitted(options.max_width)
            yield Text.assemble(
                (fitted.drawn, "dim"),
                (fitted.text, _STYLES[fitted.kind]),
                (f"  {fitted.marks}" if fitted.marks else "", "cyan"),
                no_wrap=True,
                overflow="crop",
            )

    @overload
    def to_html(
        self, path: None = None, *, title: str | None = None, limit: int | None = _ON_A_PAGE
    ) -> str: ...
    @overload
    def to_html(
        self, path: AnyPath, *, title: str | None = None, limit: int | None = _ON_A_PAGE
    ) -> None: ...
    def to_html(
        self,
        path: AnyPath | None = None,
        *,
        title: str | None = None,
        limit: int | None = _ON_A_PAGE,
    ) -> str | None:
        """Return the tree as one page of HTML, or write it to a file.

        The page holds everything that it needs, and nothing that runs.

        Args:
            path: The file; None to return the page.
            title: What stands at its top.
            limit: How many turns are drawn at most; None for all. The page says how many are left
                out. Of texts that are very long, it says how much.

        Raises:
            OptionError: `limit` is no whole number.
            OSError: The file cannot be written; what was there before is untouched.
        """
        _check(limit=limit)
        made = page(self, title, limit)
        if path is None:
            return made
        write_whole(path, made.encode())
        return None

    def _repr_html_(self) -> str:
        return cell(self, _IN_A_CELL)

    def to_dict(self) -> dict[str, Any]:
        """Return the tree as plain JSON values.

        What has no JSON of its own is there as text: the result is to look at, not to load.
        """
        return {
            "sessions": [
                {
                    "name": session.name,
                    "turns": len(session.state),
                    "undone": session.state.tip - session.state.stop,
                    "head": session.head,
                    "data": session.state.data.to_dict(),
                    "metadata": session.state.metadata.to_dict(),
                }
                for session in self.sessions
            ],
            "branches": [
                {"number": branch.number, "after": branch.after, "turns": _turns(branch)}
                for branch in self.branches
            ],
        }


def _check(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and (type(count) is not int or count < 0):
            raise OptionError(
                f"{name} must be a whole number from 0 up, or None for no limit, not {count!r}."
            )


def _turns(branch: Branch) -> list[dict[str, Any]]:
    return [
        {
            "number": each.number,
            "index": each.turn.index,
            "id": each.turn.id,
            "status": each.status.value,
            "inputs": plain_value(each.turn.inputs),
            "outputs": plain_value(each.turn.outputs),
            "score": plain_value(each.turn.score),
            "feedback": each.turn.feedback,
            "time": plain_value(each.turn.time),
            "duration": plain_value(each.turn.duration),
            "tokens": tokens_of(each.turn.usage),
            "cost": plain_value(each.turn.cost),
        }
        for each in branch.turns
    ]


def tree_of(states: Iterable[SessionState]) -> ConversationTree:
    """Return the tree of these conversations, as they are.

    Args:
        states: The conversations, the most important one first.

    Example:
        >>> print(tree_of([]))
        No conversation
    """
    sessions, branches = joined(states)
    return ConversationTree(sessions, branches)
