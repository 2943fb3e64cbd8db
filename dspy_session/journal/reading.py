"""From nodes to a state: as much of it as is asked for, the rest when somebody looks.

What is not read yet is a vector whose older part is fetched at the first look
(`dspy_session.core.vectors`). Sessions within the program, paths ahead and earlier conversations
are read like that from the start. What was read once is kept, so a turn stays the very same object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from dspy_session.core.profile import NO_PROFILE, Profile
from dspy_session.core.state import SessionState, checked_id
from dspy_session.core.turn import NOTHING_BESIDE, Beside, Turn
from dspy_session.core.values import SCALARS, ValueCodecs
from dspy_session.core.vectors import Older, PVector, deferred, stretch, unread, vector
from dspy_session.core.window import ALL_SHOWN, ERASED, Epoch, Exchange, View
from dspy_session.errors import FormatError, SessionError, StoreError
from dspy_session.journal.chains import Chain, Mark
from dspy_session.journal.decoding import damaged, data_after, run_of, waiting
from dspy_session.journal.payloads import (
    StoredBeside,
    StoredOwn,
    StoredState,
    StoredTurn,
)
from dspy_session.journal.sealing import Seal
from dspy_session.journal.steps import Steps, Walk
from dspy_session.journal.unread import Lane, OlderTurns, windows
from dspy_session.journal.writing import Seed
from dspy_session.parts import (
    fields_from_wire,
    number_from_wire,
    profile_from_wire,
)
from dspy_session.stores.base import Store
from dspy_session.wire import WireExchange, WireView

__all__ = ["Reading"]


_Item = TypeVar("_Item")


class Reading:
    """What was read of one family.

    Args:
        store: The store.
        family: The family.
        codecs: Reads values of types beyond plain data.
        seal: As of the writer.
        before: Chains that were read or written before: their turns stay the same objects.
    """

    def __init__(
        self,
        store: Store,
        family: int,
        codecs: ValueCodecs,
        seal: Seal,
        before: Sequence[Chain] = (),
    ) -> None:
        self.seeds: list[Seed] = []
        self.family = family
        self.walk = Walk(store, family, seal)
        self._codecs = codecs
        self._exchanges: dict[int, Exchange] = {}
        self._before = before
        self._batches: list[tuple[list[Mark], list[Turn]]] = []
        self._turns: dict[int, Turn] = {}
        self._paths: WeakValueDictionary[tuple[int, int], Any] | None = None
        self._views: dict[tuple[Any, ...], View] = {}
        self._lanes: dict[tuple[int, int, int], Lane] = {}

    def state(
        self,
        row: StoredState,
        base: SessionState | None = None,
        profile: Profile | None = None,
        newest: int | None = 0,
        onto: Chain | None = None,
    ) -> tuple[SessionState, Chain]:
        """Return the state that a row describes, and where its turns are.

        Args:
            row: The row.
            base: The state that it follows.
            profile: Its profile, if the row does not say.
            newest: How many of its turns to read now, those that can be redone not counted; None
                for all.
            onto: Turns that were read before: if the state has them, only those after are read.

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
        chain = self._extended(row, onto) or self._chain(row, own.before, newest)
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
        steps = self._based(self.walk.steps(row.tip, floor, end), first)
        if steps.depth == first:
            turns, log, marks = self.turns(steps, before, first)
        else:
            older = OlderTurns(self, steps.parent, first, steps.depth, before)
            older.under = row.under
            turns, log, marks = self.turns(
                steps, before, first, lambda new: deferred(older.log, vector(new))
            )
            turns, marks = deferred(older.turns, turns), deferred(older.marks, marks)
        return Chain(first, end - first, turns, log, marks, row.under)

    def _extended(self, row: StoredState, onto: Chain | None) -> Chain | None:
        """The chain of turns that follow those which were read before, if they do."""
        if onto is None or not onto.count or onto.first != row.first:
            return None
        end, last = onto.first + onto.count, onto.count - 1
        if row.tip is None or row.end < end:
            return None
        steps = self.walk.steps(row.tip, end, row.end)
        if steps.parent != onto.marks[last].key:
            return None  # they went another way
        held, marks = _begun(onto.held, onto.count), _begun(onto.marks, onto.count)
        turns, log, new_marks = self.turns(
            steps,
            held[last].beside,
            row.first,
            lambda new: _grown(_begun(onto.log, onto.count), new),
        )
        held, marks = _grown(held, turns), _grown(marks, new_marks)
        return Chain(row.first, row.end - row.first, held, log, marks, row.under)

    def stretch(
        self,
        row: Callable[[], StoredState],
        first: int,
        key: int | None,
        begin: int,
        end: int,
    ) -> tuple[Turn, ...]:
        """Return some of the turns of a state, and read no others.

        Args:
            row: Returns the state's row, which is needed where the state begins.
            first: The index of the state's first turn.
            key: The key of a node at or after the end.
            begin: The index of the first.
            end: The index after the last.

        Raises:
            FormatError: One of them is damaged.
        """
        steps = self._based(self.walk.steps(key, begin, end), first)
        before = NOTHING_BESIDE
        if steps.depth == first and (own := row().own) is not None and own.before is not None:
            before = self._beside(own.before, before)
        turns, _ = self._read(steps, before, steps.depth, vector)
        return tuple(turns[begin - steps.depth :])

    def _based(self, steps: Steps, first: int) -> Steps:
        """Steps, and those before them without which it is not known what stands beside them."""
        base = steps.marks[0].base if steps.marks else steps.depth
        if not first < steps.depth > base:
            return steps
        before = self.walk.steps(steps.parent, max(first, base), steps.depth)
        return before.followed_by(steps)

    def turns(
        self,
        steps: Steps,
        before: Beside,
        first: int,
        log_of: Callable[[list[Exchange]], PVector[Exchange]] = vector,
    ) -> tuple[PVector[Turn], PVector[Exchange], PVector[Mark]]:
        """Return turns, what they exchanged with what came before, and where they are stored.

        Args:
            steps: The turns as they are stored.
            before: What stood beside the conversation before its first turn.
            first: The index of its first turn.
            log_of: Puts their exchanges behind those of the turns before.

        Raises:
            FormatError: A turn is damaged.
        """
        turns, log = self._read(steps, before, first, log_of)
        return vector(turns), log, vector(steps.marks)

    def _read(
        self,
        steps: Steps,
        before: Beside,
        first: int,
        log_of: Callable[[list[Exchange]], PVector[Exchange]],
    ) -> tuple[list[Turn], PVector[Exchange]]:
        known = self._known(steps)
        exchanges = self.exchanges(steps)
        log = log_of(exchanges)
        seen = windows(self, steps, log, first)
        beside = before
        turns: list[Turn] = []
        depth = steps.depth
        try:
            for mark, row, exchange, window, there in zip(
                steps.marks, steps.rows, exchanges, seen, known, strict=True
            ):
                if mark.base == depth:
                    beside = NOTHING_BESIDE
                began = beside if row.before is None else self._beside(row.before, beside)
                beside = began if row.beside is None else self._beside(row.beside, began)
                turns.append(
                    there
                    or Turn(
                        index=depth,
                        exchange=exchange,
                        window=window,
                        run=row.run or run_of(row),
                        score=None if row.score is None else number_from_wire(row.score),
                        feedback=row.feedback,
                        before=began,
                        beside=beside,
                    )
                )
                depth += 1
        except StoreError:
            raise
        except (SessionError, ValueError, TypeError, LookupError) as error:
            raise damaged(depth, error) from error
        self._batches.append((steps.marks, turns))
        return turns, log

    def _known(self, steps: Steps) -> Iterable[Turn | None]:
        """The turns that were read or written already, but for what was erased meanwhile."""
        if not self._batches and not self._before:
            return repeat(None, len(steps.rows))
        for chain in self._before:
            first = unread(chain.held)
            there = (
                stretch(chain.held, first, chain.count),
                stretch(chain.marks, first, chain.count),
            )
            self._turns.update((mark.key, turn) for turn, mark in zip(*there, strict=False))
        for marks, turns in self._batches:
            self._turns.update((mark.key, turn) for mark, turn in zip(marks, turns, strict=True))
        self._before = ()
        self._batches.clear()
        known: list[Turn | None] = []
        for mark, row in zip(steps.marks, steps.rows, strict=True):
            turn = self._turns.get(mark.key)
            if turn is not None and row.erased is not None and not turn.exchange.erased:
                turn = None
            if turn is not None:
                self._exchanges[mark.content] = turn.exchange
            known.append(turn)
        return known

    def exchanges(self, steps: Steps) -> list[Exchange]:
        """Return what turns exchanged.

        Args:
            steps: The turns as they are stored.

        Raises:
            FormatError: A turn is damaged.
        """
        known = self._exchanges
        likes = {row.like for row in steps.rows if row.like is not None}
        others = self.walk.rows(likes - known.keys()) if likes else {}
        exchanges: list[Exchange] = []
        for mark, row in zip(steps.marks, steps.rows, strict=True):
            exchange = known.get(mark.content)  # the very same one, wherever it is looked at
            if exchange is None:
                content = row if row.like is None else others.get(row.like, row)
                exchange = self._exchange(content, steps.depth + len(exchanges))
                known[mark.content] = exchange
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
            self._fields(row.details, depth, "detail") if row.details else {},
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
        return self._lanes.setdefault((key, start, stop), Lane(self, key, start, stop, after))

    def seen(self, key: int, start: int, stop: int) -> PVector[Exchange]:
        """Return what turns exchanged that are of no chain here.

        What was seen by one turn is mostly what the turn before it saw, and one more: so it is gone
        back from the newest, by more at each time, until something is met that was seen already.

        Args:
            key: The key of the newest node.
            start: The index of the oldest turn.
            stop: The index after that of the newest.

        Raises:
            FormatError: One of them is damaged.
            StoreError: They cannot be read.
        """
        paths = self._paths = WeakValueDictionary() if self._paths is None else self._paths
        parts: list[list[Exchange]] = []
        at: int | None = key
        end, count, met = stop, 1, None
        while end > start and at is not None and met is None:
            met = paths.get((at, start))
            if met is None:
                steps = self.walk.steps(at, max(start, end - count), end)
                parts.append(self.exchanges(steps))
                at, end, count = steps.parent, steps.depth, 2 * count
        path: PVector[Exchange] = vector() if met is None else met
        for part in reversed(parts):
            path = path.extend(part)
        paths[key, start] = path
        return path

    def view(self, wire: WireView | None) -> View:
        """Return the view that a row describes; one for all turns that have the same.

        Args:
            wire: The row; None if all was shown.
        """
        if wire is None:
            return ALL_SHOWN
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
            wire = self.walk.seed(key)
            seed = tuple(self._seeded(number, each) for number, each in enumerate(wire.exchanges))
            self.seeds.append((seed, key))
        return seed

    def _seeded(self, number: int, wire: WireExchange) -> Exchange:
        parts = wire.inputs, wire.outputs, wire.details
        where, codecs = f"message {number} of a seed", self._codecs
        return Exchange.owning(*(fields_from_wire(part, where, "field", codecs) for part in parts))

    # --- what stands beside -----------------------------------------------------------------------

    def _beside(self, row: StoredBeside, base: Beside) -> Beside:
        if row.whole:
            base = NOTHING_BESIDE
        nested = {
            path: self.state(state, base.states.get(path))[0] for path, state in row.nested.items()
        }
        return Beside(
            states={**base.states, **nested} if nested else base.states,
            data=data_after(row, base.data),
            pending=base.pending if row.pending is None else waiting(row.pending),
        )


def _begun(items: PVector[_Item], count: int) -> PVector[_Item]:
    """The first items of a vector, which may hold more."""
    return items if len(items) == count else vector(stretch(items, 0, count))


def _grown(items: PVector[_Item], more: Iterable[_Item]) -> PVector[_Item]:
    for item in more:
        items = items.append(item)
    return items
