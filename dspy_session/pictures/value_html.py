"""Values as HTML: text as it was written, lists and dicts as lists, long ones to unfold or cut.

A value takes no more room than it is given, and says what was left out of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from dspy_session.pictures.figures import counted
from dspy_session.pictures.markup import Html, element, joined_html, listed
from dspy_session.pictures.values import plain_value, shown_text

__all__ = ["MOST_ENTRIES", "fields_html", "missing", "value_html"]

_UNFOLDED: Final = 1_500
"""Characters of a text that are shown at once; of a longer one, the rest is to unfold."""
_BEGINNING: Final = 1_000
MOST_ENTRIES: Final = 200
"""How many entries of a list or of named values are shown."""
_STEP: Final = re.compile(r"(.+)_(0|[1-9]\d{0,5})")
_PICTURE: Final = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")
_LARGEST_PICTURE: Final = 2_000_000


def value_html(value: Any, room: int) -> Html:
    """Return a value as HTML.

    Args:
        value: Anything.
        room: How many characters of its texts are shown.
    """
    return _Drawing(room).of(plain_value(value))


def fields_html(fields: Mapping[str, Any], room: int, **attributes: str) -> Html | None:
    """Return named values as HTML, one below the other; None if there are none.

    Args:
        fields: Values by name.
        room: As for `value_html`, for each of them.
        **attributes: As for `element`.
    """
    if not fields:
        return None
    entries = [
        joined_html(element("dt", name), element("dd", value_html(value, room)))
        for name, value in islice(fields.items(), MOST_ENTRIES)
    ]
    return joined_html(element("dl", *entries, **attributes), missing(len(fields) - len(entries)))


class _Drawing:
    """One value while it is drawn, with the room that is left."""

    def __init__(self, room: int) -> None:
        self.room = room

    def of(self, value: Any) -> Html:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict) and value:
            return self.mapping(value)
        if isinstance(value, list) and value:
            return self.items(value)
        return element("code", shown_text(value))

    def text(self, text: str) -> Html:
        if len(text) <= _LARGEST_PICTURE and _PICTURE.fullmatch(text):
            return element("img", src=text, alt="A picture in the conversation")
        shown = text[: max(0, self.room)]
        self.room -= len(shown)
        cut = len(text) - len(shown)
        missing = element("p", f"… {counted(cut, 'more character')} left out", class_="note")
        if len(shown) <= _UNFOLDED:
            body = element("div", shown, class_="text", dir="auto")
        else:
            rest = counted(len(shown) - _BEGINNING, "more character")
            body = joined_html(
                element("div", shown[:_BEGINNING], class_="text", dir="auto"),
                element(
                    "details",
                    element("summary", f"… {rest}"),
                    element("div", shown[_BEGINNING:], class_="text", dir="auto"),
                ),
            )
        return joined_html(body, missing) if cut else body

    def mapping(self, value: dict[str, Any]) -> Html:
        steps = _steps(value)
        if steps is not None:
            return self.items(steps)
        chosen = dict(islice(value.items(), MOST_ENTRIES))
        entries = [
            joined_html(element("dt", name), element("dd", self.of(item)))
            for name, item in chosen.items()
        ]
        return joined_html(element("dl", *entries), missing(len(value) - len(chosen)))

    def items(self, value: list[Any]) -> Html:
        made = [self.of(item) for item in value[:MOST_ENTRIES]]
        tag = "ol" if any(isinstance(item, dict) for item in value) else "ul"
        drawn = listed(tag, made, class_="steps" if tag == "ol" else None)
        return joined_html(drawn, missing(len(value) - len(made)))


def missing(count: int) -> Html | None:
    """Return a note that entries were left out; nothing if none were.

    Args:
        count: How many.
    """
    if not count:
        return None
    return element("p", f"… {counted(count, 'more entry', 'more entries')} left out", class_="note")


def _steps(value: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The steps of an agent, whose names end in their numbers: `thought_0`, `tool_name_0`, ..."""
    steps: dict[int, dict[str, Any]] = {}
    for name, item in value.items():
        found = _STEP.fullmatch(name)
        if found is None:
            return None
        steps.setdefault(int(found[2]), {})[found[1]] = item
    made = [steps[number] for number in sorted(steps)]
    return made if sorted(steps) == [*range(len(steps))] and len(made[0]) > 1 else None
