"""A tree as text, for a terminal: one or two lines a turn, no colour, nothing that acts.

Colour and the width of the terminal come from rich, where somebody prints the tree with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from dspy_session.core.window import Exchange
from dspy_session.pictures.figures import counted
from dspy_session.pictures.labels import branch_label, marks, session_facts, title_of, waiting
from dspy_session.pictures.nodes import TreeTurn
from dspy_session.pictures.outline import Closed, LeftOut, Opened, Shown, outline
from dspy_session.pictures.seen import changes
from dspy_session.pictures.values import harmless, one_line, shortened, unbroken, width_of

if TYPE_CHECKING:
    from dspy_session.pictures.tree import ConversationTree

__all__ = ["Line", "lines"]

_NARROWEST: Final = 8


class Line(msgspec.Struct, frozen=True):
    """One line of the drawing.

    Attributes:
        drawn: The lines of the tree, and the number of the turn.
        text: What is said.
        kind: `"title"`, `"said"`, `"answered"`, `"note"` or `"branch"`.
        marks: What is said beside it, in brackets.
    """

    drawn: str
    text: str
    kind: str
    marks: str = ""

    def fitted(self, width: int | None) -> Line:
        """Return the line with its text cut to a width.

        Args:
            width: Of the whole line, in columns; None for any.
        """
        if width is None:
            return self
        room = width - width_of(self.drawn)
        marks = shortened(self.marks, max(_NARROWEST, room // 2))
        room -= width_of(marks) + 2 if marks else 0
        text = shortened(self.text, max(_NARROWEST, room))
        return msgspec.structs.replace(self, text=text, marks=marks)

    def __str__(self) -> str:
        return f"{self.drawn}{self.text}{f'  {self.marks}' if self.marks else ''}".rstrip()

    @classmethod
    def of(cls, drawn: str, text: str, kind: str, marks: str = "") -> Line:
        """Return a line, whatever line ends its texts hold.

        Args:
            drawn: As above.
            text: As above.
            kind: As above.
            marks: As above.
        """
        return cls(drawn, unbroken(text), kind, unbroken(marks))


def lines(tree: ConversationTree, limit: int | None) -> Iterator[Line]:
    """Yield the lines of a tree.

    Args:
        tree: The tree.
        limit: How many turns at most; None for all.
    """
    yield from _heading(tree)
    depth = 0
    for step in outline(tree.branches, limit):
        margin = "│  " * depth
        if isinstance(step, Opened):
            depth = step.depth
            if step.branch.number:
                label = branch_label(step.branch, tree.sessions)
                yield Line.of("│  " * depth, label, "branch")
        elif isinstance(step, Closed):
            depth -= 1
        elif isinstance(step, LeftOut):
            count = counted(step.count, "turn" if step.all else "earlier turn")
            yield Line.of(margin + ("╰─ " if step.all else "⋮  "), f"{count} not drawn", "note")
        else:
            yield from _turn(step, margin, tree)


def _heading(tree: ConversationTree) -> Iterator[Line]:
    if len(tree.sessions) != 1:
        yield Line.of("", title_of(tree.sessions), "title")
    for session in tree.sessions:
        facts = ", ".join(session_facts(session.state))
        yield Line.of("", f"{harmless(session.name)}: {facts}", "title")
        for text in waiting(session.state):
            yield Line.of("   ", f"waits: {text}", "note")


def _turn(step: Shown, margin: str, tree: ConversationTree) -> Iterator[Line]:
    shown, exchange = step.turn, step.turn.turn.exchange
    index = f"{shown.turn.index}"
    said, answered, _ = exchange.parts
    under = margin + ("   " if step.last else "│  ") + " " * len(index) + "  "
    if exchange.erased:
        said = {"": "erased"}
    notes = "; ".join((*(mark.text for mark in marks(shown, tree.sessions)), *_written(shown)))
    yield Line.of(
        f"{margin}{'╰─ ' if step.last else '├─ '}{index}  ",
        one_line(said),
        "said",
        f"[{notes}]" if notes else "",
    )
    if answered:
        told = dict(
            reversed(list(answered.items()))
        )  # what was thought comes first, the answer last
        yield Line.of(f"{under}→ ", one_line(told), "answered")
    for seed in shown.summaries:
        yield Line.of(under, f"summarised here: {' / '.join(map(_told, seed))}", "note")


def _told(exchange: Exchange) -> str:
    inputs, outputs, _ = exchange.parts
    return one_line({**inputs, **outputs})


def _written(shown: TreeTurn) -> Iterator[str]:
    """Which keys of the session data the turn wrote."""
    signs = {"added": "+", "changed": "~", "removed": "-"}
    keys = [
        signs[change.kind] + harmless(change.key)
        for change in changes(shown.turn.data_before, shown.turn.data)
    ]
    if keys:
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        yield f"data {' '.join(keys[:3])}{more}"
