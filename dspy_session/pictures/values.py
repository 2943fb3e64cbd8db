r"""What somebody said, as something that can be shown: harmless text, plain values, short lines.

Rules:

- Nothing that is shown can act: control characters, escape sequences, marks that turn the direction
  of writing and halves of characters are written out as Python writes them (`\x1b`).
- Every value can be shown. One that is neither JSON nor has fields is shown as its own text.

This module does not know where things are shown.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from itertools import accumulate, takewhile
from typing import Any, Final

__all__ = ["harmless", "one_line", "plain_value", "shortened", "shown_text", "unbroken", "width_of"]

_DEEPEST: Final = 20
_SCALARS: Final = (bool, int, type(None))

_NEVER: Final = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, all but tab and line feed
    "\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
_ACTS: Final = re.compile(f"[{_NEVER}]")
_SPACES: Final = re.compile(r"\s+")


def harmless(text: str) -> str:
    r"""Return a text in which nothing acts on a terminal or on the direction of writing.

    Line ends of Windows become those of everybody; tabs and line feeds stay.

    Args:
        text: Any text.

    Example:
        >>> print(harmless("red: \x1b[31m, end\r\n"), end="")
        red: \x1b[31m, end
    """
    return _ACTS.sub(_written_out, text.replace("\r\n", "\n"))


def _written_out(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def plain_value(value: Any, deepest: int = _DEEPEST) -> Any:
    """Return a value as JSON: None, a boolean, a number, a text, a list or a dict with text keys.

    What has named fields (a model, a dataclass, a struct) becomes a dict of them; anything else
    that is not JSON becomes its own text. Nothing of the value is shared.

    Args:
        value: Anything.
        deepest: How many containers within each other are looked into.

    Example:
        >>> plain_value({"size": (1, float("inf")), "raw": b"abc"})
        {'size': [1, 'inf'], 'raw': '3 bytes'}
    """
    try:
        return _plain(value, deepest)
    except Exception as error:  # noqa: BLE001  # a value's own code, such as its __str__
        return f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"


def _plain(value: Any, deepest: int) -> Any:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes"
    if not deepest:
        return "…"
    if isinstance(value, Mapping):
        return {str(key): _plain(item, deepest - 1) for key, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [_plain(item, deepest - 1) for item in value]
    if isinstance(value, AbstractSet):
        return sorted((_plain(item, deepest - 1) for item in value), key=str)
    names = _field_names(value)
    if names is None:
        return str(value)
    return {name: _plain(getattr(value, name, None), deepest - 1) for name in names}


def _field_names(value: Any) -> Iterable[str] | None:
    """The names of a value's fields, if its class says which it has."""
    kind = type(value)
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    for attribute in ("model_fields", "__struct_fields__", "_fields"):
        names = getattr(kind, attribute, None)
        if isinstance(names, Mapping | tuple):
            return list(names)
    return None


def shown_text(value: Any) -> str:
    """Return a plain value as harmless text: a text as it is, everything else as JSON.

    Args:
        value: What `plain_value` returned.
    """
    if isinstance(value, str):
        return harmless(value)
    return harmless(json.dumps(value, ensure_ascii=False))


def one_line(fields: Mapping[str, Any]) -> str:
    r"""Return the fields of one side of a turn as one line: the text, or `name: text; name: text`.

    Args:
        fields: Values by name.

    Example:
        >>> one_line({"question": "How far\nis it?"}), one_line({"city": "Oslo", "days": 3})
        ('How far is it?', 'city: Oslo; days: 3')
    """
    texts = {name: shown_text(plain_value(value)) for name, value in fields.items()}
    if len(texts) == 1:
        return unbroken(next(iter(texts.values())))
    return unbroken("; ".join(f"{harmless(name)}: {text}" for name, text in texts.items()))


def unbroken(text: str) -> str:
    """Return a text as one line.

    Args:
        text: Any text.
    """
    return _SPACES.sub(" ", text).strip()


def width_of(text: str) -> int:
    """Return how many columns of a terminal a text takes.

    Args:
        text: One line.
    """
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.combining(character) or character in "\u200c\u200d\ufe0e\ufe0f":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shortened(text: str, width: int, more: str = "…") -> str:
    """Return a text that takes no more columns than these; what was cut ends in `more`.

    Args:
        text: One line.
        width: How many columns.
        more: What stands at the end of a text that was cut.

    Example:
        >>> shortened("Good morning", 7), shortened("日本語", 5)
        ('Good m…', '日本…')
    """
    if width_of(text) <= width:
        return text
    taken = accumulate(map(_columns, text))
    fitting = sum(1 for _ in takewhile(lambda columns: columns <= width - width_of(more), taken))
    return text[:fitting].rstrip() + more
