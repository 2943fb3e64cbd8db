"""From nodes to a state: as much of it as is asked for, the rest when somebody looks.

What is not read yet is a vector whose older part is fetched at the first look
(`dspy_session.core.vectors`). Sessions within the program, paths ahead and earlier conversations
are read like that from the start. What was read once is kept, so a turn stays the very same object.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final
from weakref import WeakValueDictionary

from dspy_session.core.chat import Pending, absorb
from dspy_session.core.data import Data, data_of
from dspy_session.core.profile import NO_PROFILE, Profile
from dspy_session.core.state import SessionState, checked_id
from dspy_session.core.turn import NOTHING_BESIDE, Beside, Run, Turn
from dspy_session.core.values import SCALARS, ValueCodecs
from dspy_session.core.vectors import Older, PVector, deferred, vector
from dspy_session.core.window import ERASED, Epoch, Exchange, View, Window
from dspy_session.errors import FormatError, SessionError, StoreError
from dspy_session.journal.chains import Chain, Mark
from dspy_session.journal.payloads import (
    StoredBeside,
    StoredOwn,
    StoredSeed,
    StoredState,
    StoredTurn,
    opened,
)
from dspy_session.journal.sealing import Seal
from dspy_session.journal.writing import Seed, about_node
from dspy_session.parts import (
    fields_from_wire,
    message_from_wire,
    number_from_wire,
    profile_from_wire,
    run_from_wire,
)
from dspy_session.stores.base import Store
from dspy_session.stores.records import Node
from dspy_session.wire import WireExchange, WireView

__all__ = ["Reading", "damaged", "data_after", "run_of"]

_SEEN_ALL: Final = View()


class Reading:
    """What was read of one family.

    Args:
        store: The store.
        family: The family.
        codecs: Reads values of types beyond plain data.
        seal: As of the writer.
    """

    def __init__(self, store: Store, family: int, codecs: ValueCodecs, seal: Seal) -> None:
        self.seeds: list[Seed] = []
        self.family = family
        self._store, self._family, self._codecs, self._seal = store, family, codecs, seal
        self._exchanges: WeakValueDictionary[int, Exchange] = WeakValueDictionary()
        self._views: dict[tuple[Any, ...], View] = {}
        self._lanes: dict[tuple[int, int, int], _Lane] = {}

    def state(
        self,
        row: StoredState,
        base: SessionState | None = None,
        profile: Profile | None = None,
        newest: int | None = 0,
    ) -> tuple[SessionState, Chain]:
        """Return the state that a row describes, and where its turns are.

        Args:
            row: The row.
            base: The state that it follows.
            profile: Its profile, if the row does not say.
            newest: How many of its turns to read now, those that can be redone not counted; None
                for all.

        Raises:
            FormatError: Something that was read is damaged.
            StoreError: The store cannot be read.
        """
        if row.own is not None:
            own = self._own(row.own)
        elif base is not None:
            own = base
        else:
            raise FormatError("it follows a state that is not there")
        if not 0 <= row.first <= row.stop <= row.end or (row.tip is None) != (row.first == row.end):
            raise FormatError(f"it has turns from {row.first} to {row.stop} and {row.end}")
        chain = self._chain(row, own.before, newest)
        state = SessionState(
            id=own.id,
            seed=own.seed,
            log=chain.log,
            held=chain.held,
            first=row.first,
            stop=row.stop,
            tip=row.end,
            epoch=Epoch(),
            before=own.before,
            ahead=tuple(self.state(other)[0] for other in row.ahead),
            written=None if row.written is None else self._beside(row.written, NOTHING_BESIDE),
            profile=own.profile if profile is None else profile,
            earlier=own.earlier,
        )
        return state, chain

    def _own(self, own: StoredOwn) -> SessionState:
        """A state that has all but the turns."""
        before, profile = own.before, own.profile
        return SessionState(
            id=checked_id(own.id),
            seed=self.seed(own.seed),
            before=NOTHING_BESIDE if before is None else self._beside(before, NOTHING_BESIDE),
            profile=NO_PROFILE if profile is None else profile_from_wire(profile),
            earlier=tuple(self.state(other)[0] for other in own.earlier),
        )

    # --- turns ------------------------------------------------------------------------------------

    def _chain(self, row: StoredState, before: Beside, newest: int | None) -> Chain:
        first, end = row.first, row.end
        if row.tip is None:
            return Chain(first, 0, vector(), vector(), vector(), row.under)
        floor = first if newest is None else max(first, row.stop - newest)
        nodes = self._based(self.walk(row.tip, floor, end), first) if floor < end else []
        read, key = (nodes[0].depth, nodes[0].parent) if nodes else (end, row.tip)
        if read == first:
            turns, log, marks = self.turns(nodes, before, first)
        else:
            older = _Older(self, key, first, read, before)
            older.under = row.under
            turns, log, marks = self.turns(nodes, before, first, older.log)
            turns, marks = deferred(older.turns, turns), deferred(older.marks, marks)
        return Chain(first, end - first, turns, log, marks, row.under)

    def stretch(self, row: StoredState, key: int | None, begin: int, end: int) -> tuple[Turn, ...]:
        """Return some of the turns of a state, and read no others.

        Args:
            row: The state's row.
            key: The key of a node at or after the end.
            begin: The index of the first.
            end: The index after the last.

        Raises:
            FormatError: One of them is damaged.
        """
        nodes = self._based(self.walk(key, begin, end), row.first)
        before = NOTHING_BESIDE
        if nodes[0].depth == row.first and row.own is not None and row.own.before is not None:
            before = self._beside(row.own.before, before)
        turns, _, _ = self.turns(nodes, before, nodes[0].depth)
        return tuple(turns)[begin - nodes[0].depth :]

    def _based(self, nodes: list[Node], first: int) -> list[Node]:
        """Nodes, and those before them without which it is not known what stands beside them."""
        oldest = nodes[0]
        if not first < oldest.depth > oldest.base:
            return nodes
        return self.walk(oldest.parent, max(first, oldest.base), oldest.depth) + nodes

    def walk(self, key: int | None, floor: int, stop: int) -> list[Node]:
        """Return the nodes from a depth up to another, of a chain of which this is a key.

        Args:
            key: The key of a node at or after the end.
            floor: The depth of the first.
            stop: The depth after the last.

        Raises:
            FormatError: They do not follow each other.
            StoreError: They are not there any more.
        """
        nodes = [] if key is None else self._store.walk(self._family, key, floor)
        nodes = [node for node in nodes if node.depth < stop]
        _check_chain(nodes)
        if len(nodes) != stop - floor:
            raise StoreError(
                f"The turns {floor} to {stop - 1} of this conversation are not in the store any "
                "more: the session was deleted or trimmed meanwhile. Open it again."
            )
        return nodes

    def turns(
        self,
        nodes: Sequence[Node],
        before: Beside,
        first: int,
        older: Older | None = None,
    ) -> tuple[PVector[Turn], PVector[Exchange], PVector[Mark]]:
        """Return the turns of nodes, what they exchanged with what came before, and their marks.

        Args:
            nodes: Nodes, in the order of their chain.
            before: What stood beside the conversation before its first turn.
            first: The index of its first turn.
            older: The exchanges of the turns before these.

        Raises:
            FormatError: A node is damaged.
        """
        rows = [self.row(node) for node in nodes]
        exchanges = self.exchanges(nodes, rows)
        log = vector(exchanges) if older is None else deferred(older, vector(exchanges))
        seen = _Seen(self, nodes, rows, log, first)
        beside = before
        turns, marks = [], []
        for node, row, exchange in zip(nodes, rows, exchanges, strict=True):
            try:
                if node.base == node.depth:
                    beside = NOTHING_BESIDE
                began = self._next_beside(row.before, beside)
                beside = self._next_beside(row.beside, began)
                turn = Turn(
                    index=node.depth,
                    exchange=exchange,
                    window=seen.window(node, row),
                    run=run_of(row),
                    score=number_from_wire(row.score),
                    feedback=row.feedback,
                    before=began,
                    beside=beside,
                )
            except StoreError:
                raise
            except (SessionError, ValueError, TypeError, LookupError) as error:
                raise damaged(node.depth, error) from error
            turns.append(turn)
            content = node.key if row.like is None else row.like
            marks.append(Mark(node.key, content, node.digest, node.total, node.base))
        return vector(turns), log, vector(marks)

    def row(self, node: Node) -> StoredTurn:
        """Return the row of a turn's node.

        Args:
            node: The node.

        Raises:
            FormatError: It is damaged.
            SecretError: It cannot be read with this key.
        """
        try:
            return opened(StoredTurn, node.payload, self._seal, about_node(node.key))
        except FormatError as error:
            raise damaged(node.depth, error) from error

    def exchanges(self, nodes: Sequence[Node], rows: Sequence[StoredTurn]) -> list[Exchange]:
        """Return what the turns of nodes exchanged.

        Args:
            nodes: The nodes.
            rows: Their rows.
        """
        others: dict[int | None, StoredTurn] = {}
        known = self._exchanges
        if keys := {row.like for row in rows if row.like is not None and row.like not in known}:
            found = self._store.nodes(self._family, keys)
            others.update((key, self.row(node)) for key, node in found.items())
        exchanges = []
        for node, row in zip(nodes, rows, strict=True):
            key = node.key if row.like is None else row.like
            exchange = known.get(key)  # the very same one, wherever it is looked at
            if exchange is None:
                exchange = self._exchange(others.get(row.like, row), node.depth)
                exchange = known.setdefault(key, exchange)
            exchanges.append(exchange)
        return exchanges

    def _exchange(self, row: StoredTurn, depth: int) -> Exchange:
        if row.erased is not None:
            return Exchange.owning({}, {}, {ERASED: row.erased.hex()})
        if row.inputs is None or row.outputs is None:
            raise damaged(depth, ValueError("its fields are not there"))
        return Exchange.owning(
            self._fields(row.inputs, depth, "input"),
            self._fields(row.outputs, depth, "output"),
            self._fields(row.details, depth, "detail"),
        )

    def _fields(self, plain: dict[str, Any], depth: int, role: str) -> dict[str, Any]:
        """The fields of a turn; mostly they are what was stored, and need no copy."""
        for value in plain.values():
            if type(value) not in SCALARS:
                return fields_from_wire(plain, f"turn {depth}", role, self._codecs)
        return plain

    def lane(self, key: int, start: int, stop: int, *, after: bool = False) -> Older:
        """Return what a turn saw that is not of its chain, read when somebody looks.

        Args:
            key: The key of the newest node seen, or of one after it.
            start: The index of the oldest turn seen.
            stop: The index after that of the newest.
            after: Whether it is one after it.
        """
        return self._lanes.setdefault((key, start, stop), _Lane(self, key, start, stop, after))

    def view(self, wire: WireView | None) -> View:
        """Return the view that a row describes; one for all turns that have the same.

        Args:
            wire: The row; None if all was shown.
        """
        if wire is None:
            return _SEEN_ALL
        only = None if wire.inputs is None else tuple(wire.inputs)
        key = tuple(wire.exclude), only, wire.details
        if key not in self._views:
            inputs = None if only is None else frozenset(only)
            self._views[key] = View(frozenset(wire.exclude), inputs, wire.details)
        return self._views[key]

    def seed(self, key: int | None) -> tuple[Exchange, ...]:
        """Return the seed that a node has; the very same one each time.

        Args:
            key: The node's key; None for no seed.

        Raises:
            FormatError: It is damaged, or not there.
        """
        if key is None:
            return ()
        seed = next((known for known, at in self.seeds if at == key), None)
        if seed is None:
            node = self._store.nodes(self._family, [key]).get(key)
            if node is None:
                raise FormatError("the seed of this conversation is not in the store")
            wire = opened(StoredSeed, node.payload, self._seal, about_node(key))
            seed = tuple(self._seeded(number, each) for number, each in enumerate(wire.exchanges))
            self.seeds.append((seed, key))
        return seed

    def _seeded(self, number: int, wire: WireExchange) -> Exchange:
        parts = wire.inputs, wire.outputs, wire.details
        where, codecs = f"message {number} of a seed", self._codecs
        return Exchange.owning(*(fields_from_wire(part, where, "field", codecs) for part in parts))

    # --- what stands beside -----------------------------------------------------------------------

    def _next_beside(self, row: StoredBeside | None, base: Beside) -> Beside:
        return base if row is None else self._beside(row, base)

    def _beside(self, row: StoredBeside, base: Beside) -> Beside:
        if row.whole:
            base = NOTHING_BESIDE
        nested = {
            path: self.state(state, base.states.get(path))[0] for path, state in row.nested.items()
        }
        return Beside(
            states={**base.states, **nested} if nested else base.states,
            data=data_after(row, base.data),
            pending=base.pending if row.pending is None else _waiting(row.pending),
        )


class _Older:
    """The turns of a chain up to some depth, which are read when somebody looks.

    Args:
        reading: Reads them.
        key: The key of a node at or after their end.
        first: The index of the first.
        stop: The index after the last.
        before: What stood beside the conversation before its first turn.
    """

    def __init__(
        self, reading: Reading, key: int | None, first: int, stop: int, before: Beside
    ) -> None:
        self._reading, self._key, self._before = reading, key, before
        self.family = reading.family
        self._first, self._stop = first, stop
        self._mutex = threading.Lock()
        self._read: tuple[PVector[Any], ...] | None = None
        self.turns, self.log, self.marks = (_Part(self, number) for number in range(3))
        self.under = 0

    def __len__(self) -> int:
        return self._stop - self._first

    def read(self) -> tuple[PVector[Any], ...]:
        with self._mutex:
            if self._read is None:
                nodes = self._reading.walk(self._key, self._first, self._stop)
                self._read = self._reading.turns(nodes, self._before, self._first)
            return self._read

    def chain(self) -> Chain:
        nothing: PVector[Any] = vector()
        return Chain(
            self._first,
            len(self),
            deferred(self.turns, nothing),
            deferred(self.log, nothing),
            deferred(self.marks, nothing),
            self.under,
        )


class _Part:
    """The turns, their exchanges, or their marks; it knows where they are stored."""

    def __init__(self, older: _Older, number: int) -> None:
        self._older, self._number, self.family = older, number, older.family

    def __len__(self) -> int:
        return len(self._older)

    def items(self) -> PVector[Any]:
        return self._older.read()[self._number]

    def chain(self) -> Chain:
        return self._older.chain()

    def newest(self, start: int, stop: int) -> None:  # noqa: ARG002  # nothing that a turn saw
        return None


class _Lane:
    """What turns saw that is not among the turns of their chain; read when somebody looks."""

    def __init__(self, reading: Reading, key: int, start: int, stop: int, after: bool) -> None:
        self._reading, self._key, self._start, self._stop = reading, key, start, stop
        self._after, self.family = after, reading.family
        self._mutex = threading.Lock()
        self._read: PVector[Exchange] | None = None

    def __len__(self) -> int:
        return self._stop - self._start

    def items(self) -> PVector[Exchange]:
        with self._mutex:
            if self._read is None:
                nodes = self._reading.walk(self._key, self._start, self._stop)
                rows = [self._reading.row(node) for node in nodes]
                self._read = vector(self._reading.exchanges(nodes, rows))
            return self._read

    def newest(self, start: int, stop: int) -> int | None:
        is_it = not self._after and (start, stop) == (self._start, self._stop)
        return self._key if is_it else None


class _Seen:
    """What the turns of a chain saw."""

    def __init__(
        self,
        reading: Reading,
        nodes: Sequence[Node],
        rows: Sequence[StoredTurn],
        log: PVector[Exchange],
        first: int,
    ) -> None:
        self._reading, self._epoch = reading, Epoch()
        own = (row.start for n, row in zip(nodes, rows, strict=True) if _sees_its_own(n, row))
        self._offset = min(own, default=first)
        self._log = log
        if self._offset < first:  # turns that were trimmed meanwhile
            self._log = deferred(reading.lane(nodes[0].key, self._offset, first, after=True), log)
        self._offset = min(self._offset, first)

    def window(self, node: Node, row: StoredTurn) -> Window:
        seed, view = self._reading.seed(row.seed), self._reading.view(row.view)
        start, stop = row.start, node.depth - row.unseen
        if start == stop:
            return Window(seed=seed, offset=start, start=start, stop=stop, view=view)
        if not 0 <= start < stop:
            raise FormatError(f"it saw the turns from {start} to {stop}")
        log, offset, epoch = self._log, self._offset, self._epoch
        if row.lane is not None:
            log = deferred(self._reading.lane(row.lane, start, stop), vector())
            offset, epoch = start, Epoch()
        elif stop > node.depth:
            raise FormatError(f"it saw turn {stop}, which came later")
        return Window(
            seed=seed, log=log, offset=offset, start=start, stop=stop, epoch=epoch, view=view
        )


def run_of(row: StoredTurn) -> Run:
    """Return how the run of a turn went.

    Args:
        row: The turn's row.

    Raises:
        FormatError: A value cannot be read.
        ValueError: A value is of another type than it can have.
    """
    if row.run is not None:
        return row.run
    return Run() if row.facts is None else run_from_wire(row.facts, "it")


def _sees_its_own(node: Node, row: StoredTurn) -> bool:
    return row.lane is None and row.start < node.depth - row.unseen


def damaged(depth: int, error: Exception) -> FormatError:
    """Return the error that names the turn which cannot be read.

    Args:
        depth: Its index.
        error: What is wrong.
    """
    return FormatError(
        f"Cannot read turn {depth}: {error}. The other turns still are: fork the session before "
        "it, or read them with messages()."
    )


def _check_chain(nodes: Sequence[Node]) -> None:
    for one, other in pairwise(nodes):
        if other.parent != one.key or other.depth != one.depth + 1:
            raise damaged(other.depth, ValueError("it does not follow the turn before it"))


def data_after(row: StoredBeside, base: Data) -> Data:
    """Return the session data that a row describes.

    Args:
        row: The row.
        base: The session data that it says the difference to.
    """
    if not row.data and not row.gone:
        return base
    raws = dict(base.raws())
    for key in row.gone:
        raws.pop(key, None)
    raws.update(row.data)
    return data_of(raws.items())


def _waiting(messages: list[dict[str, Any]]) -> Pending:
    waiting: Pending = ()
    for message in messages:
        checked = message_from_wire(message, "a message that waits")
        waiting, exchange = absorb(waiting, checked)
        if exchange is not None:
            raise FormatError("a message that waits is an answer")
    return waiting
