"""The wire format: a conversation and its options as JSON or msgpack, versioned.

Version 3 (written here) is a dict:

    {"kind": "dspy-session", "version": 3, "options": {...}, "conversation": {...}}

`conversation` holds every turn once; what each call saw, and which turns each state has, is written
as a few numbers (see `dspy_session.core.flat`), so the size is linear in the conversation. Field
values are in plain form (`dspy_session.core.values`); values of a program's own types are written
and read with the codecs that `dspy_session.program_codecs(program)` finds. Versions 1 and 2 are the
published dspy-session 0.1's and are read.

Laws: `decode(encode(state, options)) == (state, options)`, snapshots, redoable turns, other answers
and nested states included; decoding any bytes either gives a state or raises `FormatError`; nothing
is imported or evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from dspy_session.core import flat, tables
from dspy_session.core.data import as_data
from dspy_session.core.options import SessionOptions, make_options
from dspy_session.core.profile import NO_PROFILE, Instructions, Place, Profile
from dspy_session.core.state import SessionState, checked_id
from dspy_session.core.turn import Run
from dspy_session.core.values import REGISTERED, ValueCodecs, from_plain, to_plain
from dspy_session.core.window import Exchange, View
from dspy_session.errors import FormatError, OptionError, ValueCodecError
from dspy_session.published import from_published, read_published
from dspy_session.wire import (
    Wire,
    WireBeside,
    WireConversation,
    WireExchange,
    WireProfile,
    WireRun,
    WireState,
    WireTurn,
    WireView,
)

__all__ = ["VERSION", "decode", "encode", "from_wire", "to_wire"]

VERSION: Final = 3
KIND: Final = "dspy-session"

_Format = Literal["json", "msgpack"]


def to_wire(
    state: SessionState,
    options: SessionOptions,
    codecs: ValueCodecs = REGISTERED,
    *,
    private: bool = True,
) -> dict[str, Any]:
    """Return a conversation and its options as a JSON-ready dict.

    Args:
        state: The conversation.
        options: The session's options.
        codecs: Writes values of types beyond plain data; `program_codecs(program)` knows those of
            a program.
        private: Whether to write the session data under `options.private_data`, and the fields in
            `options.redact_fields`.

    Raises:
        ValueCodecError: A field holds a value of a type without written form. The message names
            the turn, the field and the type, and says what to do.

    Example:
        >>> to_wire(SessionState(), SessionOptions())["version"]
        3
    """
    # By way of JSON, so that only JSON's own types are left in it: no tuple, no enum.
    wire = _wire(flat.pack(state), options, codecs, private=private)
    return _as_dict(msgspec.json.decode(_written(wire, "json")))


def _wire(
    packed: tables.Tables, options: SessionOptions, codecs: ValueCodecs, *, private: bool = True
) -> Wire:
    if not private:
        packed = tables.shared(packed, options.private_data, options.redact_fields)
    own = 0  # the exchanges of turns are numbered as they appear
    turns = []
    for number, turn in enumerate(packed.turns):
        exchange = packed.exchanges[own] if turn.exchange == own else None
        own += exchange is not None
        where = _where(number, turn.index, packed.states)
        turns.append(_turn_to_wire(turn, exchange, where, codecs))
    return Wire(
        kind="dspy-session",
        version=VERSION,
        options=_options_to_wire(options),
        conversation=WireConversation(
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
                WireView(
                    sorted(v.exclude), None if v.inputs is None else sorted(v.inputs), v.details
                )
                for v in packed.views
            ],
            paths=packed.paths,
            besides=[_beside_to_wire(beside) for beside in packed.besides],
            states=[_state_to_wire(state) for state in packed.states],
        ),
    )


def _written(wire: Wire, format: _Format) -> bytes:
    try:
        return msgspec.json.encode(wire) if format == "json" else msgspec.msgpack.encode(wire)
    except UnicodeEncodeError as error:  # not in a field's value: those are plain by now
        raise ValueCodecError(
            f"Cannot save the conversation: {error.object!r} is no valid text. Field names, "
            "feedback and ids must be; in memory the session goes on."
        ) from error
    except TypeError as error:  # the same
        raise ValueCodecError(f"Cannot save the conversation: {error}.") from error


def from_wire(
    data: Mapping[str, Any], codecs: ValueCodecs = REGISTERED
) -> tuple[SessionState, SessionOptions]:
    """Return the conversation and the options that a wire dict describes.

    Args:
        data: What `to_wire` returned, or a document of version 1 or 2.
        codecs: Reads values of types beyond plain data; see `to_wire`.

    Raises:
        FormatError: The data is no conversation, is damaged, is from a newer version, or holds a
            value of a type that no codec reads.

    Example:
        >>> from_wire(to_wire(SessionState(), SessionOptions()))[0] == SessionState()
        True
    """
    version = _version_of(data)
    try:
        if version in (1, 2):
            return from_published(data)
        wire = msgspec.convert(data, Wire)
        return _state_from_wire(wire.conversation, codecs), make_options(wire.options)
    except FormatError:
        raise
    except (msgspec.ValidationError, LookupError, ValueError, TypeError, RecursionError) as error:
        raise FormatError(
            f"This is a conversation of version {version}, but it is damaged: {error}. "
            "Restore the file from a backup; nothing was loaded."
        ) from error


def encode(
    state: SessionState,
    options: SessionOptions,
    format: _Format = "json",
    codecs: ValueCodecs = REGISTERED,
) -> bytes:
    """Return a conversation and its options as bytes.

    Args:
        state: The conversation.
        options: The session's options.
        format: `"json"` (indented, for files that people look at) or `"msgpack"` (for stores).
        codecs: See `to_wire`.

    Raises:
        ValueCodecError: As `to_wire`.
    """
    _check_format(format)
    data = _written(_wire(flat.pack(state), options, codecs), format)
    return msgspec.json.format(data, indent=2) if format == "json" else data


def decode(
    data: bytes, format: _Format = "json", codecs: ValueCodecs = REGISTERED
) -> tuple[SessionState, SessionOptions]:
    """Return the conversation and the options that bytes hold.

    Args:
        data: What `encode` returned, or a JSON file of version 1 or 2.
        format: `"json"` or `"msgpack"`.
        codecs: See `to_wire`.

    Raises:
        FormatError: As `from_wire`, and when the bytes are not of that format.
    """
    _check_format(format)
    try:
        document = msgspec.json.decode(data) if format == "json" else msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        document = read_published(data) if format == "json" else None
        if not is_conversation(document):
            raise FormatError(
                f"Expected a conversation as {format}, but the data is not whole: {error}. "
                "It is truncated, corrupt, or another kind of file."
            ) from error
    return from_wire(document, codecs)


def is_conversation(document: Any) -> bool:
    """Whether a decoded JSON document looks like a saved conversation, of whatever version."""
    return isinstance(document, dict) and (
        document.get("kind") == KIND
        or ("turns" in document and ("version" in document or "history_field" in document))
    )


def _check_format(format: str) -> None:
    if format not in ("json", "msgpack"):
        raise OptionError(f"format must be 'json' or 'msgpack', not {format!r}.")


def _version_of(data: Any) -> int:
    if not is_conversation(data):
        raise FormatError(
            "Expected a saved conversation, but this is another kind of document "
            f"({_describe(data)}). Programs are loaded with module.load(path)."
        )
    version = data.get("version", None if "kind" in data else 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise FormatError(f"Expected a version number from 1 to {VERSION}, not {version!r}.")
    if version > VERSION:
        raise FormatError(
            f"This conversation was saved in version {version} of the format; this library reads "
            f"versions 1 to {VERSION}. Upgrade dspy-session to load it."
        )
    return version


def _describe(data: Any) -> str:
    if isinstance(data, Mapping):
        return "a dict with the keys " + (", ".join(sorted(map(str, data))[:6]) or "(none)")
    return type(data).__name__


def _as_dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(type(value))
    return value


def _options_to_wire(options: SessionOptions) -> dict[str, Any]:
    plain = _as_dict(msgspec.to_builtins(options))
    for name in ("exclude_fields", "private_data", "redact_fields"):
        plain[name] = sorted(getattr(options, name))
    if options.history_input_fields is not None:
        plain["history_input_fields"] = sorted(options.history_input_fields)
    return plain


def _where(number: int, index: int, states: Sequence[tables.FlatState | WireState]) -> str:
    """How messages name a turn: those of the conversation itself are the first in the table."""
    path = states[-1].path if states else None
    if path is not None and number < path.stop - path.start:
        return f"turn {index}"
    return f"turn {index} of a nested session or of another answer"


def _turn_to_wire(
    turn: tables.FlatTurn, exchange: Exchange | None, where: str, codecs: ValueCodecs
) -> WireTurn:
    run = turn.run
    facts = _fields_to_wire(
        {"time": run.time, "duration": run.duration, "cost": run.cost, "score": turn.score},
        where,
        "its",
        REGISTERED,
    )
    wire = WireExchange({}) if exchange is None else _exchange_to_wire(exchange, where, codecs)
    return WireTurn(
        index=turn.index,
        inputs=None if exchange is None else wire.inputs,
        outputs=None if exchange is None else wire.outputs,
        details=wire.details,
        exchange=turn.exchange if exchange is None else None,
        saw=msgspec.structs.astuple(turn.window),
        run=WireRun(
            id=run.id,
            time=facts["time"],
            duration=facts["duration"],
            usage=_fields_to_wire(
                {m: dict(counts) for m, counts in run.usage}, where, "usage of", REGISTERED
            ),
            cost=facts["cost"],
            fingerprint=run.fingerprint,
            request_id=run.request_id,
            lm_calls=run.lm_calls,
            sent=run.sent,
        ),
        score=facts["score"],
        feedback=turn.feedback,
        before=turn.before,
        beside=turn.beside,
    )


def _beside_to_wire(beside: tables.FlatBeside) -> WireBeside:
    waiting = [
        _fields_to_wire(message, "a message that waits", "its", REGISTERED)
        for message in beside.pending
    ]
    return WireBeside(beside.nested, beside.data.to_dict(), waiting)


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
        profile=None if state.profile.same_as(NO_PROFILE) else _profile_to_wire(state.profile),
    )


def _profile_to_wire(profile: Profile) -> WireProfile:
    told, system = profile.instructions, profile.system
    return WireProfile(
        instructions=None if told is None else told.text,
        place=str(Place.AFTER if told is None else told.place),
        metadata=profile.metadata.to_dict(),
        start=profile.start.to_dict(),
        system=None
        if system is None
        else _fields_to_wire(system, "the system message", "its", REGISTERED),
    )


def _exchange_to_wire(exchange: Exchange, where: str, codecs: ValueCodecs) -> WireExchange:
    return WireExchange(
        inputs=_fields_to_wire(exchange.inputs, where, "input", codecs),
        outputs=_fields_to_wire(exchange.outputs, where, "output", codecs),
        details=_fields_to_wire(exchange.details, where, "detail", codecs),
    )


def _fields_to_wire(
    fields: Mapping[str, Any], where: str, role: str, codecs: ValueCodecs
) -> dict[str, Any]:
    plain = {}
    for name, value in fields.items():
        try:
            plain[name] = to_plain(value, codecs)
        except ValueCodecError as error:
            raise ValueCodecError(
                f"Cannot save {where}: {role} {name!r} ({type(value).__qualname__}): {error}. "
                "Or leave the field out of what the program takes or returns. "
                "Nothing was written, and in memory the session goes on."
            ) from error
    return plain


def _state_from_wire(wire: WireConversation, codecs: ValueCodecs) -> SessionState:
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
    return flat.unpack(
        tables.Tables(
            turns=turns,
            exchanges=exchanges,
            besides=[_beside_from_wire(beside) for beside in wire.besides],
            states=[_flat_state_from_wire(state) for state in wire.states],
            paths=wire.paths,
            seeds=[
                tuple(
                    _exchange_from_wire(e, f"message {n} of a seed", codecs)
                    for n, e in enumerate(seed)
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
    )


def _turn_from_wire(turn: WireTurn, exchange: int, where: str) -> tables.FlatTurn:
    usage = _values(turn.run.usage, where, "usage of", REGISTERED)
    return tables.FlatTurn(
        index=turn.index,
        exchange=exchange,
        window=tables.FlatWindow(*turn.saw),
        run=Run(
            id=turn.run.id,
            time=_number(turn.run.time),
            duration=_number(turn.run.duration),
            usage=tuple((model, tuple(dict(counts).items())) for model, counts in usage.items()),
            cost=_number(turn.run.cost),
            fingerprint=turn.run.fingerprint,
            request_id=turn.run.request_id,
            lm_calls=turn.run.lm_calls,
            sent=turn.run.sent,
        ),
        score=_number(turn.score),
        feedback=turn.feedback,
        before=turn.before,
        beside=turn.beside,
    )


def _beside_from_wire(wire: WireBeside) -> tables.FlatBeside:
    waiting = [_values(m, "a message that waits", "its", REGISTERED) for m in wire.pending]
    return tables.FlatBeside(wire.nested, as_data(wire.data), tuple(waiting))


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
        profile=NO_PROFILE if wire.profile is None else _profile_from_wire(wire.profile),
    )


def _profile_from_wire(wire: WireProfile) -> Profile:
    told, system = wire.instructions, wire.system
    return Profile(
        instructions=None if told is None else Instructions(told, Place(wire.place)),
        metadata=as_data(wire.metadata),
        start=as_data(wire.start),
        system=None if system is None else _values(system, "the system message", "its", REGISTERED),
    )


def _exchange_from_wire(exchange: WireExchange, where: str, codecs: ValueCodecs) -> Exchange:
    return Exchange(
        _values(exchange.inputs, where, "input", codecs),
        _values(exchange.outputs, where, "output", codecs),
        _values(exchange.details, where, "detail", codecs),
    )


def _number(plain: Any) -> float | None:
    value = from_plain(plain)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise ValueError(f"expected a number, not {value!r}")


def _values(
    fields: Mapping[str, Any], where: str, role: str, codecs: ValueCodecs
) -> dict[str, Any]:
    values = {}
    for name, plain in fields.items():
        try:
            values[name] = from_plain(plain, codecs)
        except FormatError as error:
            raise FormatError(
                f"Cannot load {where}: {role} {name!r}: {error}. Nothing was loaded."
            ) from error
    return values
