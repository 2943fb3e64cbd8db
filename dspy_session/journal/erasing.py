"""Taking the content of one turn out of a store, for good, so that its conversation stays.

What goes, wherever the family of the session has it:

- inputs, outputs and details of the turn, and feedback on it: in every fork that shares it, under
  every score that it was given, and where later turns saw it;
- the same for its other answers, and for what it was before it was corrected: whatever has the same
  inputs at the same place;
- the chat messages that waited for it, and the turns of sessions within the program that were held
  for its sake.

What stays: that there was a turn, when, what it cost, its score; the hash of its content, on which
the digests of the chain go on; session data, which is the application's own; and summaries that
tell of it. A hash tells nothing of a text that one cannot guess; with a key it tells nothing at
all. What no session reaches any more is gone with the next `vacuum()`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from dspy_session.errors import FormatError, SecretError, TurnIndexError
from dspy_session.journal.archive import Archive, about_body
from dspy_session.journal.decoding import damaged
from dspy_session.journal.payloads import (
    StoredBeside,
    StoredState,
    StoredTurn,
    about_node,
    closed,
    encoded,
    opened,
)
from dspy_session.journal.sealing import Seal
from dspy_session.journal.standing import NOTHING, Standing, standing
from dspy_session.journal.writing import content_hash
from dspy_session.stores.base import Store
from dspy_session.stores.records import DamagedRef, Node, Ref, Span, new_key
from dspy_session.wire import WireExchange

__all__ = ["Erased", "erase"]


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """What was erased.

    Attributes:
        session_id: The session's id.
        index: The index of the turn.
        sessions: The ids of all sessions that had the turn, and have it erased now.
        rows: How many rows were changed.
    """

    session_id: str
    index: int
    sessions: tuple[str, ...]
    rows: int


def erase(archive: Archive, id: str, index: int) -> Erased:
    """Take the content of a turn out of the store, in every session that shares it.

    It costs as much as reading the family of the session. Sessions that are open and have the turn
    in memory keep it until they are refreshed, which their next write is told to do.

    Args:
        archive: Where the session is kept.
        id: Its id.
        index: The turn's index; one that was undone or summarised is a turn, too.

    Returns:
        Which sessions it was erased from.

    Raises:
        SessionNotFoundError: There is no session of that id.
        TurnIndexError: It has no such turn.
        FormatError: The turn, or what is needed to tell what belongs to it, is damaged.
        SecretError: It cannot be read with this key.
        StoreError: The store cannot be written. Nothing was erased then.
    """
    ref = archive.ref(id)
    if type(index) is not int or _tip(ref, index, archive.seal) is None:
        raise TurnIndexError(
            f"There is no turn {index!r} in session {id!r}: it has those from {ref.first} to "
            f"{ref.end - 1}."
            if ref.end > ref.first
            else f"There is no turn {index!r} in session {id!r}: it has none."
        )
    return _Erasing(archive, ref).turn(index)


class _Erasing:
    """One erasure: first all of the family is looked at, then all is written at once."""

    def __init__(self, archive: Archive, ref: Ref) -> None:
        self.archive, self.store, self.ref, self.seal = archive, archive.store, ref, archive.seal
        self.erasure = new_key()
        relatives = self.store.relatives(ref.family)
        for relative in relatives:
            if isinstance(relative, DamagedRef):
                raise FormatError(
                    f"Session {relative.id!r}, which may have the turn too, is damaged: "
                    f"{relative.damaged}. Restore it from a backup, or delete it; then erase."
                )
        self.nodes = {node.key: node for node in _family(self.store, relatives)}
        self.rows = {key: row for key, node in self.nodes.items() if (row := self._row(node))}
        self.having: dict[int, list[int]] = {}  # by content, the nodes that have it
        self.places: dict[tuple[int, bytes], set[int]] = {}  # by place, the contents that are there
        self.lanes = {k: (row.lane, row.start) for k, row in self.rows.items() if row.lane}
        for key in self.rows:
            self.having.setdefault(self._content(key), []).append(key)
            self.places.setdefault(self._place(key), set()).add(self._content(key))

    def turn(self, index: int) -> Erased:
        """Erase a turn of the session."""
        key = self._at(self.ref, index)
        if key is None:
            raise damaged(index, ValueError("it is not in the store"))
        contents = self._belonging(self._content(key), index)
        payloads = self._without(contents)
        self.store.replace_payloads(self.ref.family, payloads)
        relatives = self.store.relatives(self.ref.family)  # some of them forked meanwhile
        for relative in relatives:
            self._tell(relative.id)
        there = (each for each in relatives if not isinstance(each, DamagedRef))
        here = ((each.id, self._at(each, index)) for each in there)
        return Erased(
            session_id=self.ref.id,
            index=index,
            sessions=tuple(id for id, at in here if at and self._content(at) in contents),
            rows=len(payloads),
        )

    def _tell(self, id: str) -> None:
        """Give a session another version, so that whoever has it open reads it anew."""
        seen = None
        while (ref := self.store.ref(id)) is not None and ref.family == self.ref.family:
            if ref.version == seen:
                return  # it cannot be written, for a node of it is gone: who opens it reads it anew
            seen = ref.version
            about = about_body(id, ref.family)
            row = opened(StoredState, ref.body, self.seal, about)
            row.erasure = self.erasure
            body = closed(row, self.seal, about)
            size = ref.size + len(body) - len(ref.body)
            told = msgspec.structs.replace(ref, body=body, size=size, version=new_key())
            if self.store.put(told, ref.version):
                return

    # --- what is there ----------------------------------------------------------------------------

    def _row(self, node: Node) -> StoredTurn | None:
        """A turn's row; None for a seed, and for what is damaged, which nobody can read anyway."""
        try:
            row = opened(StoredTurn, node.payload, self.seal, about_node(node.key))
        except FormatError:
            return None
        return row if row.like or row.erased or row.inputs is not None else None

    def _content(self, key: int) -> int:
        like = self.rows[key].like if key in self.rows else None
        return key if like is None else like

    def _place(self, key: int) -> tuple[int, bytes]:
        """Where in the conversation a node stands: its depth, and the digest of all before it."""
        node = self.nodes[key]
        parent = None if node.parent is None else self.nodes.get(node.parent)
        return node.depth, b"" if parent is None else parent.digest

    def _back(self, key: int | None, first: int) -> Iterator[int]:
        while key is not None and key in self.nodes and self.nodes[key].depth >= first:
            yield key
            key = self.nodes[key].parent

    def _at(self, ref: Ref, index: int) -> int | None:
        tip = _tip(ref, index, self.seal)
        return next((k for k in self._back(tip, index) if self.nodes[k].depth == index), None)

    # --- what belongs to it -----------------------------------------------------------------------

    def _belonging(self, content: int, index: int) -> set[int]:
        """The keys of all nodes whose fields go, if those of one do."""
        if content not in self.rows:
            raise damaged(index, ValueError("its fields are not in the store"))
        found: set[int] = set()
        waiting = {content}
        while waiting:
            content = waiting.pop()
            found.add(content)
            others = self._versions(content)
            for key in self.having[content]:
                others |= self._within(key)
            waiting |= (others - found) & self.rows.keys()
        return found

    def _versions(self, content: int) -> set[int]:
        """The contents that have the same inputs, at the same place or where a turn saw another."""
        there = set[int]().union(*(self.places[self._place(key)] for key in self.having[content]))
        depth = self.nodes[content].depth
        at_depth = self._at_depth(depth) if self.lanes else {}
        for key, (lane, start) in self.lanes.items():
            if start <= depth and key in at_depth and lane in at_depth:
                pair = {self._content(at_depth[key]), self._content(at_depth[lane])}
                there |= pair if content in pair else set()
        same = encoded(self.rows[content].inputs)
        return {
            other
            for other in there & self.rows.keys()
            if self.rows[other].inputs is not None and encoded(self.rows[other].inputs) == same
        }

    def _at_depth(self, depth: int) -> dict[int, int]:
        """By key, the node of its chain that has a depth."""
        found: dict[int, int] = {}
        for node in sorted(self.nodes.values(), key=lambda node: node.depth):
            at = node.key if node.depth == depth else found.get(node.parent or 0)
            if at is not None:
                found[node.key] = at
        return found

    def _within(self, key: int) -> set[int]:
        """The contents that a turn left in the sessions within the program."""
        node, row = self.nodes[key], self.rows[key]
        if row.beside is None or not row.beside.nested:
            return set()
        path = list(self._back(key, node.base))[::-1]
        beside = began = self._beside_before(path[0])
        for each in path:
            told = self.rows.get(each)
            began = None if told is None else standing(told.before, beside)
            beside = None if told is None else standing(told.beside, began)
        if began is None or beside is None:
            return set()
        return {
            content
            for name, state in beside.nested.items()
            if began.nested.get(name) is not state
            for content in self._held(state) - self._held(began.nested.get(name))
        }

    def _beside_before(self, key: int) -> Standing | None:
        """What stood beside a conversation before a turn with which all that is known begins."""
        node, ref = self.nodes[key], self.ref
        if node.depth == node.base:
            return NOTHING
        if node.depth != ref.first or key != self._at(ref, ref.first):
            return None
        row = opened(StoredState, ref.body, self.seal, about_body(ref.id, ref.family))
        return None if row.own is None else standing(row.own.before, NOTHING)

    def _held(self, row: StoredState | None) -> set[int]:
        """The contents of all turns of a state."""
        if row is None:
            return set()
        others = [*row.ahead, *([] if row.own is None else row.own.earlier)]
        own = {self._content(key) for key in self._back(row.tip, row.first)}
        return own.union(*map(self._held, others))

    # --- what is left of it -----------------------------------------------------------------------

    def _without(self, contents: set[int]) -> dict[int, bytes]:
        """The payloads of all nodes that change."""
        keys = [key for content in contents for key in self.having.get(content, ())]
        rows = {key: self._bare(key) for key in keys}
        for parent in [self.nodes[key].parent for key in keys]:
            if parent is not None and parent in self.rows:
                row = rows.get(parent, self.rows[parent])
                rows[parent] = _replaced(row, beside=_without_waiting(row.beside))
        return {
            key: closed(row, self.seal, about_node(key))
            for key, row in rows.items()
            if row != self.rows[key]
        }

    def _bare(self, key: int) -> StoredTurn:
        """The row of a turn without its content."""
        row, content = self.rows[key], self.rows[self._content(key)]
        return _replaced(
            row,
            inputs=None,
            outputs=None,
            details={},
            feedback=None,
            before=_without_waiting(row.before),
            erased=row.erased or content.erased or self._hash(key, content),
        )

    def _hash(self, key: int, content: StoredTurn) -> bytes:
        """The hash of a turn's content, with the key that its node was written with."""
        fields = WireExchange(
            inputs=content.inputs or {}, outputs=content.outputs or {}, details=content.details
        )
        return content_hash(self._maker(self.nodes[key]), fields)

    def _maker(self, node: Node) -> Seal:
        *others, last = self.seal.by_key()
        for seal in others:
            try:
                opened(StoredTurn, node.payload, seal, about_node(node.key))
            except (FormatError, SecretError):
                continue
            return seal
        return last


def _tip(ref: Ref, index: int, seal: Seal) -> int | None:
    """Where the conversation ends in which a session has a turn; None if it has no such turn.

    One that was summarised is in a conversation that the session was before.
    """
    if ref.first <= index < ref.end:
        return ref.tip
    own = opened(StoredState, ref.body, seal, about_body(ref.id, ref.family)).own
    earlier = () if own is None else reversed(own.earlier)
    return next((each.tip for each in earlier if each.first <= index < each.end), None)


_replaced: Final = msgspec.structs.replace


def _without_waiting(beside: StoredBeside | None) -> StoredBeside | None:
    return _replaced(beside, pending=[]) if beside is not None and beside.pending else beside


def _family(store: Store, refs: Iterable[Ref]) -> Iterator[Node]:
    """Yield all nodes that refs reach, some of them more than once."""
    waiting: list[tuple[int, int, int]] = []  # newest first: it has most of what the others have
    for ref in refs:
        own = () if ref.tip is None else (Span(ref.tip, ref.first),)
        _push(waiting, ref.family, (*own, *ref.links))
    covered: dict[int, int] = {}
    while waiting:
        newest, floor, family = heapq.heappop(waiting)
        key: int | None = -newest
        while key is not None and covered.get(key, floor + 1) > floor:
            nodes = store.walk(family, key, floor)
            key = nodes[0].parent if nodes else None
            for node in nodes:
                if node.key not in covered:
                    yield node
                    _push(waiting, family, node.links)
                covered[node.key] = min(floor, covered.get(node.key, floor))
            floor = min((node.low for node in nodes), default=floor)


def _push(waiting: list[tuple[int, int, int]], family: int, spans: Iterable[Span]) -> None:
    for span in spans:
        heapq.heappush(waiting, (-span.key, span.floor, family))
