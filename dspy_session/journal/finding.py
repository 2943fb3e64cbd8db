"""Finding text in stored turns, without loading conversations.

Turns are read some at a time, newest first. Those that the sessions of a family share are read
again for each, but opened once. Values are looked through in plain form, so no type of a program
needs to be known: their texts and numbers, not their keys.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from dspy_session.core.values import from_plain
from dspy_session.errors import FormatError
from dspy_session.journal.payloads import StoredTurn
from dspy_session.journal.sealing import Seal
from dspy_session.journal.steps import Walk
from dspy_session.stores.base import Store
from dspy_session.stores.records import Node, Ref

__all__ = ["Finder", "Passage", "excerpt"]

_log = logging.getLogger(__name__)

_STRETCH: Final = 256
"""How many turns are read at a time."""
_AROUND: Final = 60
"""How many characters an excerpt has on each side of what was found."""


class Passage(msgspec.Struct, frozen=True):
    """Where a turn has a text.

    Attributes:
        field: The input or output that has it.
        excerpt: The text with some of what stands around it.
    """

    field: str
    excerpt: str


_Found = tuple[Passage, ...]


class Finder:
    """Finds a text, whether in capitals or not.

    Args:
        store: Where conversations are.
        seal: As of who wrote them.
        text: The text.
        exclude: The names of inputs and outputs that are not looked at.
    """

    def __init__(self, store: Store, seal: Seal, text: str, exclude: Collection[str] = ()) -> None:
        self._store, self._seal = store, seal
        self._wanted, self._exclude = text.casefold(), frozenset(exclude)

    def in_family(self, refs: Collection[Ref]) -> Iterator[tuple[Ref, int, Passage]]:
        """Find the text in sessions that may share turns.

        A turn that is damaged is passed over, and the log says so.

        Args:
            refs: Refs of one family.

        Yields:
            The ref, the index of the turn, and the passage; the newest turns first.

        Raises:
            SecretError: A turn cannot be read with this key.
            StoreError: The store cannot be read.
        """
        shared: dict[int, _Found] | None = {} if len(refs) > 1 else None
        for ref in refs:
            for nodes in self._stretches(ref):
                found = self._in_nodes(ref, nodes, {} if shared is None else shared)
                for node in reversed(nodes):
                    yield from ((ref, node.depth, passage) for passage in found[node.key])

    def _stretches(self, ref: Ref) -> Iterator[list[Node]]:
        key, end = ref.head, ref.stop
        while key is not None and end > ref.first:
            begin = max(ref.first, end - _STRETCH)
            nodes = self._walked(ref, key, begin)
            if not nodes:  # deleted meanwhile
                return
            yield nodes
            key, end = nodes[0].parent, nodes[0].depth

    def _walked(self, ref: Ref, key: int, floor: int) -> list[Node]:
        """A stretch of a chain; where a row is damaged, what comes after it."""
        try:
            return self._store.walk(ref.family, key, floor)
        except FormatError as error:
            _log.warning("Search passed over turns of session %r: %s", ref.id, error)
        found: list[Node] = []
        at: int | None = key
        with contextlib.suppress(FormatError):
            while at is not None and (node := self._store.nodes(ref.family, [at]).get(at)):
                found.append(node)
                at = node.parent if node.depth > floor else None
        return found[::-1]

    def _in_nodes(
        self, ref: Ref, nodes: list[Node], known: dict[int, _Found]
    ) -> Mapping[int, _Found]:
        walk = Walk(self._store, ref.family, self._seal)
        rows = {
            node.key: row
            for node in nodes
            if node.key not in known and (row := self._row(walk, ref, node)) is not None
        }
        likes = {row.like for row in rows.values() if row.like is not None}
        others = self._store.nodes(ref.family, likes - rows.keys()) if likes else {}
        contents = {**rows, **{key: self._row(walk, ref, node) for key, node in others.items()}}
        for node in nodes:
            if node.key not in known:
                row = rows.get(node.key)
                content = row if row is None or row.like is None else contents.get(row.like)
                known[node.key] = () if content is None else tuple(self._passages(content))
        return known

    def _row(self, walk: Walk, ref: Ref, node: Node) -> StoredTurn | None:
        try:
            return walk.row(node)
        except FormatError as error:
            _log.warning("Search passed over a turn of session %r: %s", ref.id, error)
            return None

    def _passages(self, row: StoredTurn) -> Iterator[Passage]:
        """The first place of the text in each field that has it."""
        fields = [*(row.inputs or {}).items(), *(row.outputs or {}).items()]
        for name, value in fields:
            if name not in self._exclude:
                found = next(filter(None, (excerpt(t, self._wanted) for t in _texts(value))), None)
                if found is not None:
                    yield Passage(name, found)


def _texts(value: Any) -> Iterable[str]:
    """The texts and numbers in a value in plain form; without the names of types."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict) and value.get("$type") == "text":  # it has lone surrogates
        with contextlib.suppress(FormatError):
            yield from_plain(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != "$type":
                yield from _texts(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def excerpt(text: str, wanted: str) -> str | None:
    """Return a text's first place with something, and what stands around; None if it has none.

    Args:
        text: The text.
        wanted: What to find, case-folded.

    Example:
        >>> excerpt("Fährt die Straßenbahn?", "strassen")
        'Fährt die Straßenbahn?'
    """
    folded = text.casefold()
    at = folded.find(wanted)
    if at < 0:
        return None
    end = at + len(wanted)
    if len(folded) != len(text):  # some characters are several when folded
        at, end = _unfolded(text, at), _unfolded(text, end)
    begin, stop = max(0, at - _AROUND), min(len(text), end + _AROUND)
    shown = " ".join(text[begin:stop].split())
    return f"{'…' if begin else ''}{shown}{'…' if stop < len(text) else ''}"


def _unfolded(text: str, position: int) -> int:
    """The position in a text of a position in it case-folded."""
    for number, character in enumerate(text):
        if position <= 0:
            return number
        position -= len(character.casefold())
    return len(text)
