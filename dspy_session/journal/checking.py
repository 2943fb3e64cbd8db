"""Whether a stored conversation is what was written: every row is read and hashed again.

Rules:

- A turn's digest is chained on that of the turn before it *as it is stored*: one bad turn does not
  make those after it bad. What stood beside a turn may be told as the difference to earlier ones,
  64 at most: where one of these cannot be read, that cannot be known, and is a damage too.
- All is looked at that the session needs: its turns, those that were undone, the paths ahead, what
  turns saw, sessions within the program, and conversations that were summarised.
- It is read in stretches, so memory does not grow with the text; each node is read about once.
- Payloads that cannot be opened with the key at hand are no damage: they raise.

A digest says that nothing was changed by accident. Who can write to the store and has the key, or
needs none, can make another chain that fits.
"""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from dspy_session.core.data import as_data
from dspy_session.core.turn import Beside
from dspy_session.errors import FormatError, SessionError, StoreError
from dspy_session.journal.archive import Archive, about_body
from dspy_session.journal.decoding import run_of
from dspy_session.journal.payloads import StoredSeed, StoredState, StoredTurn, about_node, opened
from dspy_session.journal.standing import (
    NOTHING,
    Standing,
    needed_by_state,
    needed_by_turn,
    standing,
)
from dspy_session.journal.writing import content_hash, data_parts
from dspy_session.parts import number_from_wire
from dspy_session.stores.records import DamagedRef, Node, Ref
from dspy_session.wire import WireExchange

__all__ = ["Damage", "Verification", "verify"]

_STRETCH: Final = 256
_TRIES: Final = 3


class Damage(NamedTuple):
    """Something that is not as it was written.

    Attributes:
        turn: The index of the turn; None if it is none of the session's own.
        what: What is wrong.
    """

    turn: int | None
    what: str


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of a stored session.

    Attributes:
        session_id: The session's id.
        turns: How many turns were checked, those that can be redone included.
        erased: The indices of the turns whose content was erased.
        damaged: All that is wrong, in the order of the turns.
    """

    session_id: str
    turns: int
    erased: tuple[int, ...] = ()
    damaged: tuple[Damage, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damaged

    @property
    def first_bad(self) -> int | None:
        """The index of the first turn that is damaged; None if none of the session's own is."""
        return next((index for index, _ in self.damaged if index is not None), None)

    def __str__(self) -> str:
        erased = f" {len(self.erased)} of them erased," if self.erased else ""
        found = f"Session {self.session_id!r}: {self.turns} turns checked,{erased}"
        if self.ok:
            return f"{found} nothing damaged."
        lines = (
            f"- {what}" if index is None else f"- turn {index}: {what}"
            for index, what in self.damaged
        )
        return "\n".join((f"{found} {len(self.damaged)} damaged:", *lines))


def verify(archive: Archive, id: str) -> Verification:
    """Read a stored session again, all of it, and compare it with its digests.

    Args:
        archive: Where it is kept.
        id: Its id.

    Returns:
        What was found; damage is not raised.

    Raises:
        SessionNotFoundError: There is none of that id.
        SecretError: It cannot be read with this key.
        StoreError: The store cannot be read.

    Example:
        >>> from dspy_session.core.state import start
        >>> from dspy_session.stores import MemoryStore
        >>> archive = Archive(MemoryStore())
        >>> held = archive.create("chat-1", start())
        >>> print(verify(archive, "chat-1"))
        Session 'chat-1': 0 turns checked, nothing damaged.
    """
    found: Verification | None = None
    seen, tries = 0, _TRIES
    while True:
        ref = archive.find(id) or archive.ref(id)  # which says that there is none
        if isinstance(ref, DamagedRef):
            damage = Damage(None, f"the session itself: {ref.damaged}")
            return Verification(session_id=id, turns=0, damaged=(damage,))
        if found is not None and ref.version == seen:
            return found
        found, seen, tries = _Checking(archive, ref).all(), ref.version, tries - 1
        if found.ok or not tries:
            return found  # otherwise somebody wrote it meanwhile, and may have deleted what lacks


class _Chain(msgspec.Struct, frozen=True):
    """A chain that is to be checked.

    Attributes:
        key: The key of its last node.
        depth: The depth of that.
        first: The depth of the first node.
        before: What stood beside the conversation before that one; None if that is not known.
        whose: What it is, for messages; None for the session's own turns.
    """

    key: int
    depth: int
    first: int
    before: Standing | None
    whose: str | None = None


class _Checked(NamedTuple):
    depth: int
    node: Node
    row: StoredTurn | None


class _Checking:
    """One look at a session."""

    def __init__(self, archive: Archive, ref: Ref) -> None:
        self.archive, self.store, self.ref = archive, archive.store, ref
        self.seal, self.keys = archive.seal, archive.seal.by_key()
        self.damaged: dict[Damage, None] = {}
        self.erased: set[int] = set()
        self.turns = 0
        self.waiting: list[tuple[int, int, _Chain]] = []
        self.numbers = itertools.count()
        self.covered: dict[int, int] = {}  # by key, down to which depth its chain was looked at
        self.seeds: set[int] = set()
        self.unreadable: dict[int, str] = {}  # by key, what is wrong with a row

    def all(self) -> Verification:
        self.body()
        while self.waiting:  # the newest first: it has most of what the older ones have
            self.chain(heapq.heappop(self.waiting)[2])
        return Verification(
            session_id=self.ref.id,
            turns=self.turns,
            erased=tuple(sorted(self.erased)),
            damaged=tuple(sorted(self.damaged, key=lambda bad: (bad.turn is None, bad.turn or 0))),
        )

    def bad(self, chain: _Chain | None, depth: int, what: str) -> None:
        whose = None if chain is None else chain.whose
        self.damaged[
            Damage(depth, what) if whose is None else Damage(None, f"{whose}, turn {depth}: {what}")
        ] = None

    # --- the session itself -----------------------------------------------------------------------

    def body(self) -> None:
        ref = self.ref
        row = self.own_row()
        if ref.tip is not None:
            before = None if row is None else self.before(row)
            self.chain(_Chain(ref.tip, ref.end - 1, ref.first, before))
        if row is None:
            return
        told = row.tip, row.first, row.stop, row.end
        if told != (ref.tip, ref.first, ref.stop, ref.end):
            self.session_bad(f"it has the turns {told}, and its row says otherwise")
        if not set(needed_by_state(row)) <= set(ref.links):
            self.session_bad("it does not link to all that it needs")
        self.state_parts(row, "a part of the session")
        self.position(row)

    def own_row(self) -> StoredState | None:
        ref = self.ref
        try:
            as_data(ref.metadata)
            for time in (ref.created, ref.updated):
                dt.datetime.fromtimestamp(time, dt.UTC)
            return opened(StoredState, ref.body, self.seal, about_body(ref.id, ref.family))
        except StoreError:
            raise
        except (SessionError, ValueError, TypeError, OverflowError, OSError) as error:
            self.session_bad(str(error))
            return None

    def session_bad(self, what: str) -> None:
        self.damaged[Damage(None, f"the session itself: {what}")] = None

    def position(self, row: StoredState) -> None:
        """Look whether the ref stands where it says, and has the size that it says."""
        ref = self.ref
        head = None if ref.head is None else self.node(ref.head)
        is_there = head is None if ref.stop == ref.first else ref.head in self.covered
        if not is_there or (head is not None and head.depth != ref.stop - 1):
            self.session_bad(f"it does not stand where {ref.stop} is the index of the next turn")
        elif ref.size != len(ref.body) + (head.total - row.under if head else 0):
            self.session_bad(f"it has not the size of {ref.size} bytes")

    # --- what states and turns need ---------------------------------------------------------------

    def add(self, chain: _Chain) -> None:
        heapq.heappush(self.waiting, (-chain.key, next(self.numbers), chain))

    def before(self, row: StoredState) -> Standing | None:
        """What stood beside a state before its first turn; None if its row does not say."""
        return None if row.own is None else standing(row.own.before, NOTHING)

    def state(self, row: StoredState, whose: str) -> None:
        """Note what is to be looked at of a state that a turn or another state has."""
        if row.tip is not None:
            self.add(_Chain(row.tip, row.end - 1, row.first, self.before(row), whose))
        self.state_parts(row, whose)

    def state_parts(self, row: StoredState, whose: str) -> None:
        own = row.own
        if own is not None:
            self.seed(own.seed)
            self.nested(standing(own.before, NOTHING), whose)
            for other in own.earlier:
                self.state(other, f"{whose}, summarised")
        self.nested(standing(row.written, NOTHING), whose)
        for other in row.ahead:
            self.state(other, f"{whose}, ahead")

    def nested(self, beside: Standing | None, whose: str, known: Standing | None = None) -> None:
        """Note the sessions within the program, but for those that were known before."""
        for path, row in {} if beside is None else beside.nested.items():
            if known is None or known.nested.get(path) is not row:
                self.state(row, f"{whose}, session {path!r} within the program")

    def seed(self, key: int | None) -> None:
        if key is None or key in self.seeds:
            return
        self.seeds.add(key)
        node = self.node(key)
        try:
            if node is None:
                raise FormatError("it is not there")
            row = opened(StoredSeed, node.payload, self.seal, about_node(key))
            if not any(
                node.digest == seal.digest(b"", *(content_hash(seal, e) for e in row.exchanges))
                for seal in self.keys
            ):
                raise FormatError("its content does not fit its digest")
        except FormatError as error:
            self.damaged[Damage(None, f"a seed: {error}")] = None

    # --- chains -----------------------------------------------------------------------------------

    def chain(self, chain: _Chain) -> None:
        """Look at the nodes of a chain that were not looked at yet, the newest stretch first."""
        if self.covered.get(chain.key, chain.depth + 1) <= chain.first:
            return
        batch: list[tuple[int, Node]] = []
        for depth, node in self.back(chain):
            covered = self.covered.get(node.key)
            if covered is not None and covered <= chain.first:
                break
            self.covered[node.key] = chain.first
            if covered is None:
                batch.append((depth, node))
            if batch and (covered is not None or len(batch) == _STRETCH):
                self.stretch(chain, batch[::-1])
                batch = []
        if batch:
            self.stretch(chain, batch[::-1])

    def back(self, chain: _Chain, *, quiet: bool = False) -> Iterator[tuple[int, Node]]:
        """Go back in a chain, down to its first node or the oldest that it shows."""
        there: dict[int, Node] = {}
        key, depth, floor = chain.key, chain.depth, chain.first
        while depth >= floor:
            if key not in there:
                there = self.fetch(key, depth, floor)
            node = there.get(key)
            if node is None:
                if not quiet:
                    what = self.unreadable.get(key, "it is not in the store")
                    here = "" if depth == chain.first else ", and those before it cannot be found"
                    self.bad(chain, depth, f"{what}{here}")
                return
            yield depth, node
            if depth >= chain.first:
                floor = min(floor, node.low)
            if node.parent is None:
                if depth > floor and not quiet:
                    self.bad(chain, depth - 1, "nothing leads to it from the turn after it")
                return
            key, depth = node.parent, depth - 1

    def fetch(self, key: int, depth: int, floor: int) -> dict[int, Node]:
        """Nodes from one on back, as many as come at once; none if it is not there."""
        family = self.ref.family
        try:
            nodes = self.store.walk(family, key, max(floor, depth + 1 - _STRETCH))
            there = {node.key: node for node in nodes}
        except FormatError:  # the row of one of them cannot be read: go on one by one
            there = {}
        if key not in there and (node := self.node(key)) is not None:
            there[key] = node
        return there

    def node(self, key: int) -> Node | None:
        try:
            return self.store.nodes(self.ref.family, [key]).get(key)
        except FormatError as error:
            self.unreadable[key] = str(error).rstrip(".")
            return None

    def stretch(self, chain: _Chain, nodes: Sequence[tuple[int, Node]]) -> None:
        """Look at some nodes that follow each other, the oldest first."""
        depth, oldest = nodes[0]
        checked = [_Checked(at, node, self.row(chain, at, node)) for at, node in nodes]
        contents = self.contents(row.like for _, _, row in checked if row is not None)
        beside = self.beside_before(chain, depth, oldest)
        parent = None if oldest.parent is None else self.node(oldest.parent)
        base = None if parent is None else parent.base
        for each in checked:
            at, node = each.depth, each.node
            if node.base in (at, base) or (base is None and node.parent is not None):
                base = node.base
            else:
                self.bad(chain, at, "what stood beside it is not told where its row says")
            if each.depth == chain.first and beside is None:
                beside = chain.before
            beside = self.turn(chain, each, parent, beside, contents)
            parent = each.node

    def row(self, chain: _Chain | None, depth: int, node: Node) -> StoredTurn | None:
        try:
            return opened(StoredTurn, node.payload, self.seal, about_node(node.key))
        except FormatError as error:
            if chain is not None:
                self.bad(chain, depth, str(error))
            return None

    def contents(self, keys: Iterable[int | None]) -> dict[int, StoredTurn]:
        """The rows that have the fields of others."""
        wanted = {key for key in keys if key is not None}
        try:
            nodes = self.store.nodes(self.ref.family, wanted) if wanted else {}
        except FormatError:
            nodes = {key: node for key in wanted if (node := self.node(key)) is not None}
        rows = ((key, self.row(None, node.depth, node)) for key, node in nodes.items())
        return {key: row for key, row in rows if row is not None}

    def beside_before(self, chain: _Chain, depth: int, node: Node) -> Standing | None:
        """What stood beside a conversation before a turn, read from those that say it."""
        if node.base == depth:
            return NOTHING
        if depth == chain.first or node.parent is None:
            return chain.before
        floor = node.base if chain.before is None else max(chain.first, node.base)
        part = _Chain(node.parent, depth - 1, floor, None)
        back = self.back(part, quiet=True)
        nodes = list(itertools.takewhile(lambda each: each[0] >= floor, back))[::-1]
        if len(nodes) != depth - floor:
            return None
        beside = NOTHING if floor == node.base else chain.before
        for at, each in nodes:
            row = self.row(None, at, each)
            if each.base == at:
                beside = NOTHING
            beside = None if row is None else standing(row.beside, standing(row.before, beside))
        return beside

    # --- one turn ---------------------------------------------------------------------------------

    def turn(
        self,
        chain: _Chain,
        checked: _Checked,
        parent: Node | None,
        beside: Standing | None,
        contents: dict[int, StoredTurn],
    ) -> Standing | None:
        """Look at one turn; return what stood beside it when it had ended."""
        depth, node, row = checked
        self.turns += chain.whose is None and depth >= chain.first
        if row is None:
            return None
        if node.base == depth:
            beside = NOTHING
        began = ended = None
        try:
            began = standing(row.before, beside)
            ended = standing(row.beside, began)
            content = row if row.like is None else contents.get(row.like)
            self.check(chain, checked, parent, content)
            if content is not None:
                self.digest(chain, checked, parent, content, began, ended)
        except StoreError:
            raise
        except (SessionError, ValueError, TypeError, LookupError) as error:
            self.bad(chain, depth, str(error))
        whose = chain.whose or f"turn {depth}"
        self.nested(began, whose, beside)
        self.nested(ended, whose, began)
        return ended

    def check(
        self, chain: _Chain, checked: _Checked, parent: Node | None, content: StoredTurn | None
    ) -> None:
        """Look whether a node and its row tell the same, and all of it is there."""
        depth, node, row = checked
        assert row is not None
        start, stop = row.start, depth - row.unseen
        own = row.lane is None and start < stop
        label = run_of(row).request_id
        findings = (
            (node.depth != depth, f"its row says that it is turn {node.depth}"),
            (depth == 0 and node.parent is not None, "it follows another one, and is the first"),
            (node.total <= (0 if parent is None else parent.total), "its size is wrong"),
            (not 0 <= start <= stop, f"it saw the turns from {start} to {stop}"),
            (own and stop > depth, f"it saw turn {stop}, which came later"),
            (node.low > (start if own else depth), "what it saw is not kept"),
            (node.label != label, f"it answers the request {label!r}, not {node.label!r}"),
            (
                not set(needed_by_turn(row, depth)) <= set(node.links),
                "it does not link to all that it needs",
            ),
            (
                content is None or not (content.erased or _has_fields(content)),
                "its fields are not there",
            ),
        )
        for is_so, what in findings:
            if is_so:
                self.bad(chain, depth, what)
        self.seed(row.seed)
        if row.lane is not None:
            self.add(_Chain(row.lane, stop - 1, start, None, f"what turn {depth} saw"))
        number_from_wire(row.score)
        if content is not None and content.erased and chain.whose is None and depth >= chain.first:
            self.erased.add(depth)

    def digest(
        self,
        chain: _Chain,
        checked: _Checked,
        parent: Node | None,
        content: StoredTurn,
        began: Standing | None,
        ended: Standing | None,
    ) -> None:
        """Hash a turn again."""
        depth, node, row = checked
        assert row is not None
        if not (content.erased or _has_fields(content)):
            return
        if began is None or ended is None:
            if depth >= chain.first and chain.before is not None:
                self.bad(chain, depth, "what stood beside it is told by a turn that is damaged")
            return
        if parent is None and node.parent is not None:
            return  # it was trimmed; so the first turn that is left has nothing to hash with
        hashed = row.erased or content.erased
        exchange = WireExchange(
            inputs=content.inputs or {}, outputs=content.outputs or {}, details=content.details
        )
        parts = data_parts(Beside(data=began.data), Beside(data=ended.data))
        if not any(
            node.digest
            == seal.digest(
                b"" if parent is None else parent.digest,
                hashed or content_hash(seal, exchange),
                *parts,
            )
            for seal in self.keys
        ):
            self.bad(chain, depth, "its content, or the session data beside it, was changed")


def _has_fields(row: StoredTurn) -> bool:
    return row.inputs is not None and row.outputs is not None
