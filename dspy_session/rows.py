"""From the tables of a conversation to the rows that are written, and back.

Field values become plain on the way, and are read again; every error says of which turn and field.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dspy_session.core import tables
from dspy_session.core.chat import Pending, absorb
from dspy_session.core.data import data_of
from dspy_session.core.json_values import decoded, encoded
from dspy_session.core.paths import LONGEST_RUN, write_patches
from dspy_session.core.profile import NO_PROFILE
from dspy_session.core.state import checked_id
from dspy_session.core.values import REGISTERED, ValueCodecs, to_plain
from dspy_session.core.window import Exchange, View
from dspy_session.parts import (
    fields_from_wire,
    fields_to_wire,
    message_from_wire,
    number_from_wire,
    profile_from_wire,
    profile_to_wire,
    run_from_wire,
    run_to_wire,
)
from dspy_session.wire import (
    WireBeside,
    WireConversation,
    WireExchange,
    WireState,
    WireTurn,
    WireView,
)

__all__ = ["from_rows", "to_rows"]


_Entries = dict[tuple[str, bytes], int]
"""Numbers for the entries of session data, a key with the JSON under it, in order of appearance."""


def to_rows(packed: tables.Tables, codecs: ValueCodecs) -> WireConversation:
    """Return the rows of a conversation.

    Args:
        packed: Its tables.
        codecs: Writes values of types beyond plain data.

    Raises:
        ValueCodecError: A field holds a value of a type without written form.
    """
    own = 0  # the exchanges of turns are numbered as they appear
    entries: _Entries = {}
    turns = []
    for number, turn in enumerate(packed.turns):
        exchange = packed.exchanges[own] if turn.exchange == own else None
        own += exchange is not None
        where = _where(number, turn.index, packed.states)
        turns.append(_turn_to_wire(turn, exchange, where, codecs))
    return WireConversation(
        turns=turns,
        others=[
            _exchange_to_wire(exchange, "a replaced or undone turn", codecs)
            for exchange in packed.exchanges[own:]
        ],
        seeds=[
            [_exchange_to_wire(e, f"message {n} of a seed", codecs) for n, e in enumerate(seed)]
            for seed in packed.seeds
        ],
        views=[
            WireView(sorted(v.exclude), None if v.inputs is None else sorted(v.inputs), v.details)
            for v in packed.views
        ],
        paths=packed.paths,
        besides=[_beside_to_wire(beside, entries) for beside in packed.besides],
        states=[_state_to_wire(state) for state in packed.states],
        entries=[(key, decoded(raw)) for key, raw in entries],
    )


def _where(number: int, index: int, states: Sequence[tables.FlatState | WireState]) -> str:
    """How messages name a turn: those of the conversation itself are the first in the table."""
    path = states[-1].path if states else None
    if path is not None and number < path.stop - path.start:
        return f"turn {index}"
    return f"turn {index} of a nested session or of another answer"


def _turn_to_wire(
    turn: tables.FlatTurn, exchange: Exchange | None, where: str, codecs: ValueCodecs
) -> WireTurn:
    wire = WireExchange({}) if exchange is None else _exchange_to_wire(exchange, where, codecs)
    return WireTurn(
        index=turn.index,
        inputs=None if exchange is None else wire.inputs,
        outputs=None if exchange is None else wire.outputs,
        details=wire.details,
        exchange=turn.exchange if exchange is None else None,
        saw=msgspec.structs.astuple(turn.window),
        run=run_to_wire(turn.run, where),
        score=to_plain(turn.score),
        feedback=turn.feedback,
        before=turn.before,
        beside=turn.beside,
    )


def _beside_to_wire(beside: tables.FlatBeside, entries: _Entries) -> WireBeside:
    numbers = [entries.setdefault(entry, len(entries)) for entry in beside.data.raws()]
    runs = [(first, run) for _, first, run in write_patches(enumerate(numbers))]
    waiting = [
        fields_to_wire(message, "a message that waits", "its", REGISTERED)
        for message in beside.pending
    ]
    return WireBeside(beside.nested, runs, waiting)


def _state_to_wire(state: tables.FlatState) -> WireState:
    return WireState(
        path=state.path,
        id=state.id,
        undone=state.undone,
        seed=state.seed,
        before=state.before,
        ahead=state.ahead,
        written=state.written,
        earlier=state.earlier,
        profile=None if state.profile.same_as(NO_PROFILE) else profile_to_wire(state.profile),
    )


def _exchange_to_wire(exchange: Exchange, where: str, codecs: ValueCodecs) -> WireExchange:
    return WireExchange(
        inputs=fields_to_wire(exchange.inputs, where, "input", codecs),
        outputs=fields_to_wire(exchange.outputs, where, "output", codecs),
        details=fields_to_wire(exchange.details, where, "detail", codecs),
    )


def from_rows(wire: WireConversation, codecs: ValueCodecs) -> tables.Tables:
    """Return the tables that rows describe.

    Args:
        wire: The rows.
        codecs: Reads values of types beyond plain data.

    Raises:
        FormatError: A value cannot be read.
        ValueError: The rows are damaged; also other errors of the kind.
    """
    exchanges: list[Exchange] = []
    turns = []
    for number, turn in enumerate(wire.turns):
        where, exchange = _where(number, turn.index, wire.states), turn.exchange
        if exchange is None:
            if turn.inputs is None or turn.outputs is None:
                raise ValueError(f"{where} has neither fields nor the number of an exchange")
            exchange = len(exchanges)
            fields = WireExchange(turn.outputs, turn.inputs, turn.details)
            exchanges.append(_exchange_from_wire(fields, where, codecs))
        turns.append(_turn_from_wire(turn, exchange, where))
    exchanges.extend(
        _exchange_from_wire(e, "a replaced or undone turn", codecs) for e in wire.others
    )
    entries = [(key, encoded(key, value)) for key, value in wire.entries]
    return tables.Tables(
        turns=turns,
        exchanges=exchanges,
        besides=[_beside_from_wire(beside, entries) for beside in wire.besides],
        states=[_flat_state_from_wire(state) for state in wire.states],
        paths=wire.paths,
        seeds=[
            tuple(
                _exchange_from_wire(e, f"message {n} of a seed", codecs) for n, e in enumerate(seed)
            )
            for seed in wire.seeds
        ],
        views=[
            View(
                frozenset(v.exclude),
                None if v.inputs is None else frozenset(v.inputs),
                v.details,
            )
            for v in wire.views
        ],
    )


def _turn_from_wire(turn: WireTurn, exchange: int, where: str) -> tables.FlatTurn:
    return tables.FlatTurn(
        index=turn.index,
        exchange=exchange,
        window=tables.FlatWindow(*turn.saw),
        run=run_from_wire(turn.run, where),
        score=number_from_wire(turn.score),
        feedback=turn.feedback,
        before=turn.before,
        beside=turn.beside,
    )


def _beside_from_wire(wire: WireBeside, entries: list[tuple[str, bytes]]) -> tables.FlatBeside:
    for first, run in wire.data:
        if first < 0 or not 1 <= run <= LONGEST_RUN or first + run > len(entries):
            raise IndexError(f"session data has {first} + {run} of {len(entries)} entries")
    data = data_of(entry for first, run in wire.data for entry in entries[first : first + run])
    waiting: Pending = ()
    for message in wire.pending:
        waiting, exchange = absorb(waiting, message_from_wire(message, "a message that waits"))
        if exchange is not None:
            raise ValueError("a message that waits is an answer")
    return tables.FlatBeside(wire.nested, data, waiting)


def _flat_state_from_wire(wire: WireState) -> tables.FlatState:
    return tables.FlatState(
        id=checked_id(wire.id),
        path=wire.path,
        undone=wire.undone,
        seed=wire.seed,
        before=wire.before,
        ahead=wire.ahead,
        written=wire.written,
        earlier=wire.earlier,
        profile=NO_PROFILE if wire.profile is None else profile_from_wire(wire.profile),
    )


def _exchange_from_wire(exchange: WireExchange, where: str, codecs: ValueCodecs) -> Exchange:
    return Exchange(
        fields_from_wire(exchange.inputs, where, "input", codecs),
        fields_from_wire(exchange.outputs, where, "output", codecs),
        fields_from_wire(exchange.details, where, "detail", codecs),
    )
