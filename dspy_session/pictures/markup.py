"""HTML in which nothing that somebody said can be more than text.

Rules:

- Markup is made by `element` only. A child that is text is escaped; only what `element` made goes
  in as it is. Attributes are escaped, too.
- Tags and names of attributes are written in this package, never taken from a conversation.

This module does not know what is shown.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Final

from dspy_session.pictures.values import harmless

__all__ = ["Child", "Html", "element", "joined_html"]


class Html(str):
    """Text that is markup already; made by `element` and `joined_html`."""

    __slots__ = ()


Child = str | None
"""What stands in an element: markup, a text to be escaped, or nothing."""

_EMPTY_TAGS: Final = frozenset({"meta", "img"})


def joined_html(*children: Child) -> Html:
    """Return markup and texts one after another; texts are escaped.

    Args:
        *children: Markup, texts, and None, which is nothing.

    Example:
        >>> joined_html("1 < 2", element("b", "&"))
        '1 &lt; 2<b>&amp;</b>'
    """
    return Html(
        "".join(
            child if isinstance(child, Html) else html.escape(harmless(child))
            for child in children
            if child is not None
        )
    )


def element(tag: str, *children: Child, **attributes: str | bool | None) -> Html:
    """Return an element.

    Args:
        tag: Its tag.
        *children: As for `joined_html`.
        **attributes: Values by name, the name with `_` for `-` and without one at its end; True for
            an attribute without value, None and False for none.

    Example:
        >>> element("p", "<script>", class_="said")
        '<p class="said">&lt;script&gt;</p>'
    """
    opening = "".join(
        f" {name.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{html.escape(harmless(value))}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if tag in _EMPTY_TAGS:
        return Html(f"<{tag}{opening}>")
    return Html(f"<{tag}{opening}>{joined_html(*children)}</{tag}>")


def listed(tag: str, items: Iterable[Html], **attributes: str | bool | None) -> Html | None:
    """Return a list; None if nothing is in it.

    Args:
        tag: `"ol"` or `"ul"`.
        items: What stands in each place.
        **attributes: As for `element`.
    """
    made = [element("li", item) for item in items]
    return element(tag, *made, **attributes) if made else None
