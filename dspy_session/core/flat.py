"""A state as flat tables: what pickling and the wire format share.

Snapshots share structure in memory: each turn's window looks at the conversation's log as it was.
So do the states that belong to a state: the paths ahead of it, and the conversations of sessions
within its program, as each turn left them. Written out one by one they would take space quadratic
in the conversation. So the tables hold every turn and every exchange once, and *paths* that say
which of them stood at which position (`dspy_session.core.paths`); a window or a state is then a few
numbers.

Laws: `unpack(pack(s)) == s`, snapshots, paths ahead and nested states included; the number of table
entries is linear in the number of turns plus the number of turns that were replaced; structure that
was shared is shared again; reading takes time and memory in proportion to the tables.
"""

from __future__ import annotations

import copyreg
from collections.abc import Iterable, Sequence, Set
from itertools import chain
from typing import Any, Final, TypeVar

from dspy_session.core.paths import (
    Path,
    gather_paths,
    read_numbers,
    read_vector,
    write_patches,
    write_paths,
)
from dspy_session.core.state import SessionState
from dspy_session.core.tables import FlatBeside, FlatState, FlatTurn, FlatWindow, Tables, shared
from dspy_session.core.turn import NOTHING_BESIDE, Beside, Turn
from dspy_session.core.vectors import PVector, differing
from dspy_session.core.window import Epoch, Exchange, View, Window

__all__ = ["handed_on", "pack", "unpack"]

_DEPTH: Final = 100
"""How deep states may be nested in a file. No call of Python goes through as many sessions."""


_Item = TypeVar("_Item")


class _Itself:
    """A key for a thing that is equal to others, or has no hash: the very thing."""

    __slots__ = ("thing",)

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


class _Numbers(dict[_Item, int]):
    """Numbers for things, in order of first appearance: that of the keys."""

    def __missing__(self, thing: _Item) -> int:
        number = self[thing] = len(self)
        return number


# Writing


def pack(state: SessionState) -> Tables:
    """Return the tables of a state.

    Args:
        state: Any state.
    """
    return _Packing(state).tables()


class _Packing:
    """The tables while they fill. A state is entered after all that it refers to."""

    def __init__(self, state: SessionState) -> None:
        self.turns = _Numbers([(_Itself(turn), at) for at, turn in enumerate(state.path)])
        self.seeds = _Numbers([(state.seed, 0)])
        self.besides: dict[_Itself, int] = {}
        self.flat_besides: list[FlatBeside] = []
        self.states: dict[_Itself, int] = {}
        self.entered: list[SessionState] = []
        self.flat_states: list[FlatState] = []
        self.ending: dict[int, int] = {}
        """By turn, the latest state that has it last, or was the first to have it."""
        self.state(state)

    def state(self, state: SessionState) -> int:
        """Return the number of a state."""
        key = _Itself(state)
        if key in self.states:
            return self.states[key]
        earlier = [self.state(other) for other in state.earlier]
        ahead = [self.state(other) for other in state.ahead]
        before = self.beside(state.before)
        written = None if state.written is None else self.beside(state.written)
        base = self.base(state)
        turns = {at: state.held[at] for at in self.changes(state, base)}
        cells = [(at, self.turns[_Itself(turn)]) for at, turn in turns.items()]
        for turn in turns.values():
            self.beside(turn.before)
            self.beside(turn.beside)
        number = self.states[key] = len(self.entered)
        self.entered.append(state)
        self.ending.update((turn, number) for _, turn in cells)
        if state.tip > state.first:
            self.ending[self.turns[_Itself(state.held[state.tip - state.first - 1])]] = number
        self.flat_states.append(
            FlatState(
                id=state.id,
                path=Path(base, state.first, state.tip, write_patches(cells, state.first)),
                undone=state.tip - state.stop,
                seed=self.seeds[state.seed],
                before=before,
                ahead=ahead,
                written=-1 if written is None and state.written is not None else written,
                earlier=earlier,
                profile=state.profile,
            )
        )
        return number

    def base(self, state: SessionState) -> int | None:
        """Return the state that a state is most like: one that has its latest turn, if any has."""
        if not self.entered:
            return None
        held = (state.held[at] for at in range(state.tip - state.first - 1, -1, -1))
        turns = (self.turns.get(_Itself(turn)) for turn in held)
        number = next((self.ending[turn] for turn in turns if turn in self.ending), None)
        if number is not None and self.entered[number].first == state.first:
            return number
        return None

    def changes(self, state: SessionState, base: int | None) -> Iterable[int]:
        """Return the positions at which a state has other turns than its base."""
        end = state.tip - state.first
        if base is None:
            return range(end)
        other = self.entered[base]
        common = min(end, other.tip - other.first)
        return chain(differing(state.held, other.held, common), range(common, end))

    def beside(self, beside: Beside) -> int | None:
        """Return the number of what stands beside a turn."""
        if beside.is_nothing:
            return None
        key = _Itself(beside)
        if key not in self.besides:
            nested = {path: self.state(state) for path, state in beside.states.items()}
            self.besides[key] = len(self.flat_besides)
            self.flat_besides.append(FlatBeside(nested, beside.data, beside.pending))
        return self.besides[key]

    def tables(self) -> Tables:
        """Return the tables."""
        turns: list[Turn] = [key.thing for key in self.turns]
        stretches, chosen = gather_paths([turn.window for turn in turns])
        exchanges, views = _Numbers[Exchange](), _Numbers[View]()
        flat_turns = [
            FlatTurn(
                index=turn.index,
                exchange=exchanges[turn.exchange],
                window=FlatWindow(
                    path=path,
                    start=turn.window.start,
                    stop=turn.window.stop,
                    seed=self.seeds[turn.window.seed],
                    view=views[turn.window.view],
                ),
                run=turn.run,
                score=turn.score,
                feedback=turn.feedback,
                before=self.beside(turn.before),
                beside=self.beside(turn.beside),
            )
            for turn, path in zip(turns, chosen, strict=True)
        ]
        return Tables(
            turns=flat_turns,
            paths=write_paths(stretches, exchanges.__getitem__),
            exchanges=list(exchanges),
            seeds=list(self.seeds),
            views=list(views),
            besides=self.flat_besides,
            states=self.flat_states,
        )


# Reading


def unpack(tables: Tables) -> SessionState:
    """Return the state whose tables these are.

    Args:
        tables: What `pack` returned; numbers out of range raise `IndexError` or `ValueError`.
    """
    return _Unpacking(tables).last()


class _Unpacking:
    """What was read so far. Nothing refers to what comes later, so nothing can contain itself."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.turns: dict[int, Turn] = {}
        self.besides: dict[int, tuple[Beside, int]] = {}
        self.states: list[SessionState] = []
        self.depths: list[int] = []
        self.logs: list[tuple[int, PVector[Exchange]]] = []
        self.epochs = [Epoch(number) for number in range(len(tables.paths))]
        for path in tables.paths:
            base = None if path.base is None else _at(self.logs, path.base)
            numbers = read_numbers(path, len(tables.exchanges))
            cells = {at: tables.exchanges[number] for at, number in numbers.items()}
            self.logs.append(read_vector(path, cells, base))
        for flat in tables.states:
            self.states.append(self.state(flat))

    def last(self) -> SessionState:
        """Return the state that the tables are about."""
        if len(self.turns) < len(self.tables.turns):
            raise ValueError("some turns are in no state")
        return _at(self.states, len(self.states) - 1)

    def state(self, flat: FlatState) -> SessionState:
        """Return the next state."""
        path, held_before, log_before = flat.path, None, None
        if path.base is not None:
            base = _at(self.states, path.base)
            if base.first != path.start:
                raise ValueError(f"a state from {path.start} on is based on another beginning")
            held_before, log_before = (base.first, base.held), (base.first, base.log)
        numbers = read_numbers(path, len(self.tables.turns))
        turns = {at: self.turn(number, at) for at, number in numbers.items()}
        exchanges = {at: turn.exchange for at, turn in turns.items()}
        _, held = read_vector(path, turns, held_before)
        _, log = read_vector(path, exchanges, log_before)
        ahead = tuple(_at(self.states, number) for number in flat.ahead)
        if any(other.ahead or other.first != path.start for other in ahead):
            raise ValueError("a path ahead begins elsewhere, or has paths ahead itself")
        earlier = tuple(_at(self.states, number) for number in flat.earlier)
        if any(other.earlier for other in earlier):
            raise ValueError("a summarised conversation has earlier ones itself")
        if not 0 <= flat.undone <= path.stop - path.start:
            raise ValueError(f"{flat.undone} of the turns from {path.start} to {path.stop} undone")
        written = None if flat.written == -1 else flat.written
        rows = [self.tables.turns[number] for number in numbers.values()]
        self.measure(flat, [written, *(at for row in rows for at in (row.before, row.beside))])
        return SessionState(
            id=flat.id,
            seed=_at(self.tables.seeds, flat.seed),
            log=log,
            held=held,
            first=path.start,
            stop=path.stop - flat.undone,
            tip=path.stop,
            epoch=Epoch(len(self.epochs)),  # of its own: nothing is known of the turns to come
            before=self.beside(flat.before)[0],
            ahead=ahead,
            written=None if flat.written is None else self.beside(written)[0],
            profile=flat.profile,
            earlier=earlier,
        )

    def measure(self, flat: FlatState, besides: Iterable[int | None]) -> None:
        """Note how deep the next state goes: no deeper than what walks over states can."""
        depth = max(self.beside(number)[1] for number in (flat.before, *besides))
        others = [*flat.ahead, *flat.earlier]
        others += [] if flat.path.base is None else [flat.path.base]
        depth = max([depth, *(self.depths[number] for number in others)])
        if depth > _DEPTH:
            raise ValueError(f"states are nested more than {_DEPTH} deep")
        self.depths.append(depth)

    def turn(self, number: int, at: int) -> Turn:
        """Return a turn, of which the numbers say that it stands at this position."""
        flat = self.tables.turns[number]
        if flat.index != at:
            raise ValueError(f"turn {flat.index} stands at {at}")
        if number not in self.turns:
            self.turns[number] = Turn(
                index=flat.index,
                exchange=_at(self.tables.exchanges, flat.exchange),
                window=self.window(flat.window),
                run=flat.run,
                score=flat.score,
                feedback=flat.feedback,
                before=self.beside(flat.before)[0],
                beside=self.beside(flat.beside)[0],
            )
        return self.turns[number]

    def beside(self, number: int | None) -> tuple[Beside, int]:
        """Return what stands beside a turn, and how deep it goes."""
        if number is None:
            return NOTHING_BESIDE, 0
        if number not in self.besides:
            flat = _at(self.tables.besides, number)
            nested = flat.nested
            states = {path: _at(self.states, at) for path, at in nested.items()}
            beside = Beside(states, flat.data, flat.pending)
            depth = max((1 + self.depths[at] for at in nested.values()), default=0)
            self.besides[number] = beside, depth
        return self.besides[number]

    def window(self, flat: FlatWindow) -> Window:
        """Return what a call saw."""
        seed, view = _at(self.tables.seeds, flat.seed), _at(self.tables.views, flat.view)
        start, stop = flat.start, flat.stop
        if start == stop >= 0 == flat.path:
            return Window(seed=seed, offset=start, start=start, stop=stop, view=view)
        path = _at(self.tables.paths, flat.path)
        if not path.start <= start < stop <= path.stop:
            raise IndexError(f"a window shows {start} to {stop} of a path that has less")
        offset, log = self.logs[flat.path]
        epoch = self.epochs[flat.path]
        return Window(
            seed=seed, log=log, offset=offset, start=start, stop=stop, epoch=epoch, view=view
        )


def handed_on(state: SessionState, private_data: Set[str], redact_fields: Set[str]) -> SessionState:
    """Return the same conversation as it may be handed on; it costs as much as writing it.

    Args:
        state: The conversation.
        private_data: The keys of session data that are left out, wherever they stand.
        redact_fields: The names of inputs, outputs and details that are left out, see `shared`.
    """
    if not private_data and not redact_fields:
        return state
    return unpack(shared(pack(state), private_data, redact_fields))


def _at(items: Sequence[_Item], number: int) -> _Item:
    if number < 0:
        raise IndexError(f"negative number {number}")
    return items[number]


def _reduce(state: SessionState) -> tuple[Any, ...]:
    return unpack, (pack(state),)


# Pickling turn by turn would write what each snapshot shows: quadratic in the conversation.
copyreg.pickle(SessionState, _reduce)
