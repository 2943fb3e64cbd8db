"""What was made of past turns, kept so that each is rendered once."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

from dspy_session.core.window import Exchange, Window

__all__ = ["Rendered", "clear_render_cache", "render_cache", "render_counts"]

Rendered = tuple[dict[str, Any], ...]
"""The messages that one exchange became."""


class RenderCache:
    """Rendered messages by exchange, bounded by their length in characters.

    Two generations instead of an exact order of use: when the young one is full it becomes the old
    one, and the old one is dropped; what is read from the old one moves to the young one. Entries
    vanish with their exchange.
    """

    LIMIT: Final = 16_000_000  # characters in one generation
    ENTRY: Final = 200  # what an entry counts beside its text
    TABLE: Final = 1_000  # what a table counts; it stays when its exchanges are gone

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Drop everything, the counts too."""
        self._young: dict[Any, _Table] = {}
        self._old: dict[Any, _Table] = {}
        self._size = 0
        self.rendered = 0
        self.reused = 0

    def of(
        self, key: Any, window: Window, render: Callable[[Exchange], Rendered]
    ) -> Iterator[Rendered]:
        """Yield what `render` makes of each exchange, from the cache where it has it.

        Args:
            key: What the rendering depends on beside the exchange; None keeps nothing.
            window: The exchanges.
            render: Renders one exchange.
        """
        young, old = self._tables(key)
        for exchange in window:
            messages = young.get(exchange)
            if messages is not None:
                self.reused += 1
            else:
                messages = old.get(exchange)
                if messages is None:
                    messages = render(exchange)
                    self.rendered += 1
                else:
                    self.reused += 1
                young[exchange] = messages
                self._grew(messages)
            yield messages

    def _tables(self, key: Any) -> tuple[_Table, _Table]:
        """The young and the old entries under a key."""
        if key is None:
            return weakref.WeakKeyDictionary(), weakref.WeakKeyDictionary()
        with self._mutex:
            young = self._young.get(key)
            if young is None:
                self._count(self.TABLE)
                young = self._young[key] = weakref.WeakKeyDictionary()
            return young, self._old.get(key, _NOTHING)

    def _grew(self, messages: Rendered) -> None:
        size = self.ENTRY + sum(len(str(message["content"])) for message in messages)
        with self._mutex:
            self._count(size)

    def _count(self, size: int) -> None:
        """Count what comes; when that is too much, begin a new generation."""
        self._size += size
        if self._size > self.LIMIT:
            self._old, self._young, self._size = self._young, {}, size


_Table = weakref.WeakKeyDictionary[Exchange, Rendered]
_NOTHING: Final[_Table] = weakref.WeakKeyDictionary()
render_cache: Final = RenderCache()


def clear_render_cache() -> None:
    """Drop every rendered message that is kept; the next calls render what they need again."""
    render_cache.clear()


def render_counts() -> tuple[int, int]:
    """Return how many exchanges were rendered and how many reused since the cache was cleared."""
    return render_cache.rendered, render_cache.reused
