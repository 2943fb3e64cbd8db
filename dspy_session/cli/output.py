"""What a command has to say, as it is written: for people, or as JSON.

Rules:

- The answer goes to standard output, everything else to standard error.
- What was stored cannot act on a terminal: escape sequences and the like are written out.
- Nothing is cut in a pipe or a file; on a terminal, a table is cut to its width.
- Where there is nothing but ASCII, drawings are of ASCII, and other characters are written out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

from rich.console import Console
from rich.text import Text

from dspy_session.cli.ending import say
from dspy_session.cli.tables import Column, laid_out
from dspy_session.pictures.values import harmless, unbroken

__all__ = ["Output"]

_Item = TypeVar("_Item")

_ASCII: Final = str.maketrans({"│": "|", "├": "|", "╰": "`", "─": "-", "→": "->", "…": "..."})
"""What stands for the lines of a drawing where there is nothing but ASCII."""

_INDENT: Final = 3
_LABEL: Final = 13
_NARROW: Final = 50
_STYLES: Final = {"user": "bold", "assistant": "green", "tool": "magenta"}


class Output:
    """Where a command writes.

    Args:
        as_json: Whether the answer is to be JSON.

    Attributes:
        as_json: Whether the answer is to be JSON.
        out: Standard output, for people. Prefer `line`, `lines`, `table` and `said`.
        err: Standard error. Prefer `note` and `progress`.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = Console(markup=False, highlight=False, emoji=False)
        self.err = Console(stderr=True, markup=False, highlight=False, emoji=False)

    def answer(self, document: Any, shown: Callable[[], object]) -> None:
        """Give the answer of the command.

        Args:
            document: It as plain JSON values.
            shown: Shows it to people.
        """
        if self.as_json:
            self.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
        else:
            shown()

    def line(self, text: str, style: str = "") -> None:
        """Write one line, whatever the text holds.

        Args:
            text: What to say.
            style: A style of rich's, such as `"bold"`.
        """
        self._print(Text(unbroken(harmless(text)), style=style))

    def lines(self, text: str) -> None:
        """Write a text line by line, as it is laid out.

        Args:
            text: The text.
        """
        for line in harmless(text).split("\n"):
            self._print(Text(line))

    def drawing(self, drawn: object) -> None:
        """Write a drawing of rich's, in colour where there is some; as text where it has no lines.

        Args:
            drawn: What rich can draw, and `str` can, too.
        """
        if self._draws:
            self.out.print(drawn)
        else:
            self.lines(str(drawn))

    def said(self, who: str, text: str) -> None:
        """Write what somebody said, behind who it was; on a terminal, no line is longer than it.

        Args:
            who: Who said it: a role, or what kind of thing it is.
            text: What was said.
        """
        label, width = unbroken(harmless(who)), self.width
        narrow = width is not None and width < _NARROW
        margin = " " * (_INDENT if narrow else _INDENT + _LABEL)
        if narrow:
            self._print(Text(f"{' ' * _INDENT}{label}:", style=_STYLES.get(label, "dim")))
        for number, part in enumerate(self._wrapped(text, width, len(margin))):
            line = Text(margin)
            if number == 0 and not narrow:
                line = Text(" " * _INDENT)
                line.append(f"{label:<{_LABEL - 1}} ", style=_STYLES.get(label, "dim"))
            line.append(part)
            line.rstrip()
            self._print(line)

    def _wrapped(self, text: str, width: int | None, indent: int) -> Iterator[str]:
        for line in harmless(text).expandtabs(4).split("\n"):
            if width is None or not line:
                yield line
            else:
                yield from (p.plain for p in Text(line).wrap(self.out, max(8, width - indent)))

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
        """Write a table, one line a row, cut to the width of the terminal.

        Args:
            columns: The columns, the more important ones first: those for which there is no room
                are left out, from the last on.
            rows: Their values.
        """
        for line in laid_out(columns, rows, self.width):
            self._print(line)

    def write(self, text: str) -> None:
        """Write text to standard output as it is: it has to be harmless.

        Args:
            text: The text, with its line ends.
        """
        self.out.file.write(text)

    def note(self, text: str) -> None:
        """Say something beside the answer, in one line on standard error.

        Args:
            text: What to say.
        """
        say(text)

    @property
    def width(self) -> int | None:
        """How many columns a line may have; None for any: nothing is cut in a pipe or a file."""
        said = os.environ.get("COLUMNS", "")
        if said.isdecimal() and int(said):
            return int(said)  # rich does not look at it on a terminal that can do nothing
        return self.out.width if self.out.is_terminal else None

    def progress(
        self,
        items: Iterable[_Item],
        what: str,
        total: int | None = None,
        *,
        size: Callable[[_Item], int] | None = None,
    ) -> Iterator[_Item]:
        """Yield items, with a bar on standard error while that takes, if it is a terminal.

        Args:
            items: The items.
            what: What is being done.
            total: How many there are, if that is known.
            size: As how many an item counts; None for one.
        """
        if not self.err.is_terminal or self.err.is_dumb_terminal:
            yield from items
            return
        from rich.progress import Progress  # noqa: PLC0415  # only for what takes long

        with Progress(console=self.err, transient=True) as bar:
            task = bar.add_task(unbroken(harmless(what)), total=total)
            for item in items:
                yield item
                bar.advance(task, 1 if size is None else size(item))

    def _print(self, line: Text) -> None:
        if not self._draws:
            line = Text(line.plain.translate(_ASCII), style=line.style)
        self.out.print(line, soft_wrap=True)

    @property
    def _draws(self) -> bool:
        """Whether the terminal has characters beyond ASCII."""
        return self.out.encoding.startswith("utf")
