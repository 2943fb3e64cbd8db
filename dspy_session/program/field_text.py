"""Reading the text of output fields out of a model's tokens, while they arrive.

One law: what a reader has told of a field is at any moment the beginning of what the adapter will
parse, however the tokens are cut, also if the whole answer comes as one. So header lines, closing
tags, quotes and escapes never show, and whitespace that the adapter strips is held back until text
follows it. Where a reader cannot go on (broken JSON or XML), it tells no more.

A reader belongs to a `parse` method, not to a name: adapters that inherit it are read too, and of
those with another one nothing is known before the end.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Collection
from typing import Any, Final, Protocol
from xml.parsers import expat

import dspy

__all__ = ["Reader", "Tell", "reader_for"]

Tell = Callable[[str, str], object]
"""Told the name of an output field, and the text that it goes on with."""


class Reader(Protocol):
    """Reads one completion."""

    def read(self, text: str) -> None:
        """Take the next tokens."""


def reader_for(adapter: Any, fields: Collection[str], tell: Tell) -> Reader | None:
    """Return a reader of what an adapter will parse; None if its format is not known.

    Args:
        adapter: The adapter that makes the call.
        fields: The output fields to read.
        tell: See `Tell`.
    """
    # DSPy wraps an inherited `parse` anew in every class.
    kind = _READERS.get(inspect.unwrap(adapter.__class__.parse))
    return None if kind is None else kind(fields, tell)


class _Text:
    """The text of one field, told without the whitespace around it, as adapters strip it."""

    def __init__(self, field: str, tell: Tell) -> None:
        self._field, self._tell = field, tell
        self._begun, self._space = False, ""

    def add(self, text: str) -> None:
        text = self._space + text if self._begun else text.lstrip()
        solid = text.rstrip()
        self._space = text[len(solid) :]
        if solid:
            self._begun = True
            self._tell(self._field, solid)

    def strip(self) -> None:
        """Drop the whitespace at the end."""
        self._space = ""


_HEADER: Final = re.compile(r"\[\[ ## (\w+) ## \]\]")  # ChatAdapter's own
_MAYBE_HEADER: Final = re.compile(r"\[?|\[\[|\[\[ |\[\[ #|\[\[ ##|\[\[ ## \w*( (#(#( \]?)?)?)?)?")


class _ChatReader:
    """Reads sections under lines like `[[ ## answer ## ]]`, as ChatAdapter splits them."""

    def __init__(self, fields: Collection[str], tell: Tell) -> None:
        self._unread = {field: _Text(field, tell) for field in fields}
        self._text: _Text | None = None
        self._line = ""  # what came of the last line and is not told
        self._at_start = True  # whether that is its beginning
        self._after_header = False  # whether it began with a header

    def read(self, text: str) -> None:
        text = self._line + text
        cut = "\r" if text.endswith("\r") else ""  # perhaps half of a line's end
        *lines, rest = (text.removesuffix(cut) + ".").splitlines()
        for line in lines:
            self._piece(line, whole=True)
            if self._text is not None:
                if self._after_header:
                    self._text.strip()
                self._text.add("\n")
            self._at_start, self._after_header = True, False
        self._line = self._piece(rest[:-1], whole=False) + cut

    def _piece(self, text: str, whole: bool) -> str:
        """Take a piece of a line; return what is not to be told yet."""
        if self._at_start:
            header = _HEADER.match(text.strip())
            if header is None and not whole and _MAYBE_HEADER.fullmatch(text.lstrip()):
                return text
            if header is not None:
                self._text = self._unread.pop(header[1], None)
                self._after_header, text = True, text[header.end() :]
            self._at_start = False
        if self._text is not None:
            self._text.add(text)
        return ""


_STRING_PART: Final = re.compile(
    r'(?:[^"\\]|\\[^u]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|(?:\\u[0-9a-fA-F]{4}){2})*'
)
_STRING: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)


class _JsonReader:
    """Reads the values of an object's own keys, where they are strings."""

    def __init__(self, fields: Collection[str], tell: Tell) -> None:
        self._fields, self._tell = set(fields), tell
        self._rest = ""
        self._depth = 0
        self._key: str | None = None
        self._in_value = False  # whether the next string is the key's value
        self._field: str | None = None  # whose text is being told

    def read(self, text: str) -> None:
        self._rest += text
        while self._rest and (self._told() if self._field is not None else self._skipped()):
            pass

    def _told(self) -> bool:
        """Tell what came of the current string; return whether to go on behind it."""
        part = _STRING_PART.match(self._rest)
        assert part is not None  # it may be empty
        assert self._field is not None
        if part[0]:
            self._tell(self._field, json.loads(f'"{part[0]}"', strict=False))
        self._rest = self._rest[part.end() :]
        if not self._rest.startswith('"'):
            return False
        self._field, self._rest = None, self._rest[1:]
        return True

    def _skipped(self) -> bool:
        """Go on to the next sign or string; return False if it has not come whole."""
        sign = self._rest[0]
        if sign == '"' and self._depth > 0:
            if self._depth == 1 and self._in_value and self._key in self._fields:
                self._fields.discard(self._key)
                self._field, self._rest = self._key, self._rest[1:]
                return True
            string = _STRING.match(self._rest)
            if string is None:
                return False
            if self._depth == 1 and not self._in_value:
                self._key = string[1]
            self._rest = self._rest[string.end() :]
            return True
        self._depth += (sign in "{[" and (self._depth > 0 or sign == "{")) - (
            sign in "}]" and self._depth > 0
        )
        if self._depth == 1 and sign in ":,":
            self._in_value = sign == ":"
        self._rest = self._rest[1:]
        return True


class _XmlReader:
    """Reads the text of elements; what is in an element inside one is not told."""

    def __init__(self, fields: Collection[str], tell: Tell) -> None:
        self._unread = {field: _Text(field, tell) for field in fields}
        self._text: _Text | None = None
        self._depth = 0
        parser = expat.ParserCreate()
        self._parser: expat.XMLParserType | None = parser
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        # Expat 2.6 and later would hold back what came until much more has come.
        at_once = getattr(parser, "SetReparseDeferralEnabled", None)
        if at_once is not None:
            at_once(False)
        self.read("<dspy_root>")

    def read(self, text: str) -> None:
        try:
            if self._parser is not None:
                self._parser.Parse(text)
        except (expat.ExpatError, ValueError):
            self._parser = None

    def _start(self, name: str, _attributes: dict[str, str]) -> None:
        self._depth += 1
        self._text = self._unread.pop(name, None) if self._depth == _IN_FIELD else None

    def _end(self, _name: str) -> None:
        self._depth -= 1
        self._text = None

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._text.add(text)


_IN_FIELD: Final = 2

_READERS: Final[dict[Any, Callable[[Collection[str], Tell], Reader]]] = {
    inspect.unwrap(dspy.ChatAdapter.parse): _ChatReader,
    inspect.unwrap(dspy.JSONAdapter.parse): _JsonReader,
    inspect.unwrap(dspy.XMLAdapter.parse): _XmlReader,
}
