"""The wire format: a conversation and its options as JSON or msgpack, versioned.

Version 3 (written here) is a dict:

    {"kind": "dspy-session", "version": 3, "options": {...}, "conversation": {...}}

`conversation` holds every exchange once; what each call saw is written as three numbers (see
`dspy_session.core.flat`), so the size is linear in the conversation. Field values are in plain form
(`dspy_session.core.values`). Versions 1 and 2 are the published dspy-session 0.1's and are read.

Laws: `decode(encode(state, options)) == (state, options)`, snapshots and redoable turns included;
decoding any bytes either gives a state or raises `FormatError`; nothing is imported or evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from dspy_session.core import flat
from dspy_session.core.options import SessionOptions, make_options
from dspy_session.core.paths import Path
from dspy_session.core.state import SessionState, annotate, start, truncate
from dspy_session.core.step import commit, prepare
from dspy_session.core.turn import Run
from dspy_session.core.values import from_plain, to_plain
from dspy_session.core.window import Exchange, View
from dspy_session.errors import FormatError, OptionError, ValueCodecError

__all__ = ["VERSION", "decode", "encode", "from_wire", "to_wire"]

VERSION: Final = 3
KIND: Final = "dspy-session"

_Format = Literal["json", "msgpack"]


class WireRun(msgspec.Struct, omit_defaults=True):
    """How a run went; see `Run`."""

    id: str = ""
    time: Any = None  # numbers in plain form, for JSON has no infinities
    duration: Any = None
    usage: dict[str, dict[str, Any]] = {}
    cost: Any = None
    fingerprint: str | None = None


class WireTurn(msgspec.Struct, omit_defaults=True):
    """One turn; `saw` is path, start, stop, seed, view."""

    index: int
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    saw: tuple[int, int, int, int, int]
    run: WireRun
    score: Any = None
    feedback: str | None = None


class WireView(msgspec.Struct, omit_defaults=True):
    """Which fields a snapshot showed."""

    exclude: list[str] = []
    inputs: list[str] | None = None


class WireExchange(msgspec.Struct, omit_defaults=True):
    """An exchange that is no longer a turn's, but still in a snapshot, or in a seed."""

    outputs: dict[str, Any]
    inputs: dict[str, Any] = {}


class WireConversation(msgspec.Struct):
    """A `FlatState` with plain values."""

    turns: list[WireTurn]
    seeds: list[list[WireExchange]]
    views: list[WireView]
    paths: list[Path]
    others: list[WireExchange] = []
    id: str | None = None
    first: int = 0
    undone: int = 0


class Wire(msgspec.Struct):
    """The whole document."""

    kind: Literal["dspy-session"]
    version: Literal[3]
    options: dict[str, Any]
    conversation: WireConversation


def to_wire(state: SessionState, options: SessionOptions) -> dict[str, Any]:
    """Return a conversation and its options as a JSON-ready dict.

    Args:
        state: The conversation.
        options: The session's options.

    Raises:
        ValueCodecError: A field holds a value of a type without written form. The message names
            the turn, the field and the type, and says what to do.

    Example:
        >>> to_wire(SessionState(), SessionOptions())["version"]
        3
    """
    # By way of JSON, so that only JSON's own types are left in it: no tuple, no enum.
    return _as_dict(msgspec.json.decode(_written(_wire(state, options), "json")))


def _wire(state: SessionState, options: SessionOptions) -> Wire:
    packed = flat.pack(state)
    return Wire(
        kind="dspy-session",
        version=VERSION,
        options=_options_to_wire(options),
        conversation=WireConversation(
            id=state.id,
            first=packed.first,
            undone=packed.undone,
            turns=[
                _turn_to_wire(turn, exchange)
                for turn, exchange in zip(packed.turns, packed.exchanges, strict=False)
            ],
            others=[
                _exchange_to_wire(exchange, "a replaced or undone turn")
                for exchange in packed.exchanges[len(packed.turns) :]
            ],
            seeds=[
                [_exchange_to_wire(e, f"message {n} of a seed") for n, e in enumerate(seed)]
                for seed in packed.seeds
            ],
            views=[
                WireView(sorted(v.exclude), None if v.inputs is None else sorted(v.inputs))
                for v in packed.views
            ],
            paths=packed.paths,
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


def from_wire(data: Mapping[str, Any]) -> tuple[SessionState, SessionOptions]:
    """Return the conversation and the options that a wire dict describes.

    Args:
        data: What `to_wire` returned, or a document of version 1 or 2.

    Raises:
        FormatError: The data is no conversation, is damaged, or is from a newer version.

    Example:
        >>> from_wire(to_wire(SessionState(), SessionOptions()))[0] == SessionState()
        True
    """
    version = _version_of(data)
    try:
        if version in (1, 2):
            return _from_published(data)
        wire = msgspec.convert(data, Wire)
        return _state_from_wire(wire.conversation), make_options(wire.options)
    except FormatError:
        raise
    except (msgspec.ValidationError, LookupError, ValueError, TypeError, RecursionError) as error:
        raise FormatError(
            f"This is a conversation of version {version}, but it is damaged: {error}. "
            "Restore the file from a backup; nothing was loaded."
        ) from error


def encode(state: SessionState, options: SessionOptions, format: _Format = "json") -> bytes:
    """Return a conversation and its options as bytes.

    Args:
        state: The conversation.
        options: The session's options.
        format: `"json"` (indented, for files that people look at) or `"msgpack"` (for stores).

    Raises:
        ValueCodecError: As `to_wire`.
    """
    _check_format(format)
    data = _written(_wire(state, options), format)
    return msgspec.json.format(data, indent=2) if format == "json" else data


def decode(data: bytes, format: _Format = "json") -> tuple[SessionState, SessionOptions]:
    """Return the conversation and the options that bytes hold.

    Args:
        data: What `encode` returned, or a JSON file of version 1 or 2.
        format: `"json"` or `"msgpack"`.

    Raises:
        FormatError: As `from_wire`, and when the bytes are not of that format.
    """
    _check_format(format)
    try:
        document = msgspec.json.decode(data) if format == "json" else msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        document = _published_document(data) if format == "json" else None
        if document is None:
            raise FormatError(
                f"Expected a conversation as {format}, but the data is not whole: {error}. "
                "It is truncated, corrupt, or another kind of file."
            ) from error
    return from_wire(document)


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
    plain["exclude_fields"] = sorted(options.exclude_fields)
    if options.history_input_fields is not None:
        plain["history_input_fields"] = sorted(options.history_input_fields)
    return plain


def _turn_to_wire(turn: flat.FlatTurn, exchange: Exchange) -> WireTurn:
    where = f"turn {turn.index}"
    run = turn.run
    facts = _fields_to_wire(
        {"time": run.time, "duration": run.duration, "cost": run.cost, "score": turn.score},
        where,
        "its",
    )
    return WireTurn(
        index=turn.index,
        inputs=_fields_to_wire(exchange.inputs, where, "input"),
        outputs=_fields_to_wire(exchange.outputs, where, "output"),
        saw=msgspec.structs.astuple(turn.window),
        run=WireRun(
            id=run.id,
            time=facts["time"],
            duration=facts["duration"],
            usage=_fields_to_wire({m: dict(counts) for m, counts in run.usage}, where, "usage of"),
            cost=facts["cost"],
            fingerprint=run.fingerprint,
        ),
        score=facts["score"],
        feedback=turn.feedback,
    )


def _exchange_to_wire(exchange: Exchange, where: str) -> WireExchange:
    return WireExchange(
        inputs=_fields_to_wire(exchange.inputs, where, "input"),
        outputs=_fields_to_wire(exchange.outputs, where, "output"),
    )


def _fields_to_wire(fields: Mapping[str, Any], where: str, role: str) -> dict[str, Any]:
    plain = {}
    for name, value in fields.items():
        try:
            plain[name] = to_plain(value)
        except ValueCodecError as error:
            raise ValueCodecError(
                f"Cannot save {where}: {role} {name!r} ({type(value).__qualname__}): {error}. "
                "Or leave the field out of what the program takes or returns. "
                "Nothing was written, and in memory the session goes on."
            ) from error
    return plain


def _state_from_wire(wire: WireConversation) -> SessionState:
    exchanges = [_exchange_from_wire(turn, f"turn {turn.index}") for turn in wire.turns]
    exchanges.extend(_exchange_from_wire(e, "a replaced or undone turn") for e in wire.others)
    return flat.unpack(
        flat.FlatState(
            id=wire.id,
            first=wire.first,
            undone=wire.undone,
            turns=[_turn_from_wire(turn) for turn in wire.turns],
            exchanges=exchanges,
            paths=wire.paths,
            seeds=[
                tuple(_exchange_from_wire(e, f"message {n} of a seed") for n, e in enumerate(seed))
                for seed in wire.seeds
            ],
            views=[
                View(frozenset(v.exclude), None if v.inputs is None else frozenset(v.inputs))
                for v in wire.views
            ],
        )
    )


def _turn_from_wire(turn: WireTurn) -> flat.FlatTurn:
    usage = _values(turn.run.usage, f"turn {turn.index}", "usage of")
    return flat.FlatTurn(
        index=turn.index,
        window=flat.FlatWindow(*turn.saw),
        run=Run(
            id=turn.run.id,
            time=_number(turn.run.time),
            duration=_number(turn.run.duration),
            usage=tuple((model, tuple(dict(counts).items())) for model, counts in usage.items()),
            cost=_number(turn.run.cost),
            fingerprint=turn.run.fingerprint,
        ),
        score=_number(turn.score),
        feedback=turn.feedback,
    )


def _exchange_from_wire(exchange: WireExchange | WireTurn, where: str) -> Exchange:
    return Exchange(
        _values(exchange.inputs, where, "input"), _values(exchange.outputs, where, "output")
    )


def _number(plain: Any) -> float | None:
    value = from_plain(plain)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise ValueError(f"expected a number, not {value!r}")


def _values(fields: Mapping[str, Any], where: str, role: str) -> dict[str, Any]:
    values = {}
    for name, plain in fields.items():
        try:
            values[name] = from_plain(plain)
        except FormatError as error:
            raise FormatError(
                f"Cannot load {where}: {role} {name!r}: {error}. Nothing was loaded."
            ) from error
    return values


# --- versions 1 and 2, of the published dspy-session 0.1 ------------------------------------------


class _PublishedTurn(msgspec.Struct):
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    score: float | None = None


class _PublishedHistory(msgspec.Struct):
    messages: list[dict[str, Any]] = []


class _Published(msgspec.Struct):
    turns: list[_PublishedTurn]
    history_field: str = "history"
    max_turns: int | None = None
    max_stored_turns: int | None = None
    copy_mode: str = "deep"
    exclude_fields: list[str] | None = None
    history_input_fields: list[str] | None = None
    input_field_override: list[str] | None = None
    history_policy: str = "override"
    initial_history: _PublishedHistory | None = None


def _published_document(data: bytes) -> dict[str, Any] | None:
    """Read JSON as Python writes it, which the published versions did: with NaN and Infinity."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return document if is_conversation(document) and "kind" not in document else None


def _from_published(data: Mapping[str, Any]) -> tuple[SessionState, SessionOptions]:
    """Read versions 1 and 2.

    They keep no snapshots: each turn is taken to have seen the turns before it, under the file's
    own options. Their `exclude_fields` lists the history field itself, which is never shown anyway;
    a history that stands among the fields of a turn is left out. Their indices repeat after
    trimming, so turns are counted anew.
    """
    old = msgspec.convert(data, _Published)
    options = make_options(
        {
            "history_field": old.history_field,
            "max_turns": old.max_turns,
            "max_stored_turns": old.max_stored_turns,
            "copy_mode": old.copy_mode,
            "exclude_fields": frozenset(old.exclude_fields or ()) - {old.history_field},
            "history_input_fields": old.history_input_fields or old.input_field_override,
            "history_policy": old.history_policy,
        }
    )
    state = start(old.initial_history.messages if old.initial_history else ())
    unlimited = options.replace(max_stored_turns=None)
    for turn in old.turns:
        for fields in (turn.inputs, turn.outputs):
            fields.pop(old.history_field, None)
        step = prepare(state, turn.inputs, options)
        recorded, state = commit(state, step, turn.outputs, Run(), unlimited)
        if recorded is not None and turn.score is not None:
            state = annotate(state, {recorded.index: (turn.score, None)})
    return truncate(state, options.max_stored_turns), options
