"""The wire format: a conversation and its options as JSON or msgpack, versioned.

Version 3 (written here) is a dict:

    {"kind": "dspy-session", "version": 3, "options": {...}, "conversation": {...}}

`conversation` holds every turn once; what each call saw, and which turns each state has, is written
as a few numbers (see `dspy_session.core.flat`), so the size is linear in the conversation. Field
values are in plain form (`dspy_session.core.values`); values of a program's own types are written
and read with the codecs that `dspy_session.program_codecs(program)` finds. Versions 1 and 2 are the
published dspy-session 0.1's and are read.

A document may have a `digest` of the rest, which `with_digest` adds and reading checks. It finds
what was damaged, or edited by mistake; whoever alters a document on purpose can make another.

Laws: `decode(encode(state, options)) == (state, options)`, snapshots, redoable turns, other answers
and nested states included; decoding any bytes either gives a state or raises `FormatError`; nothing
is imported or evaluated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from dspy_session.core import flat
from dspy_session.core.options import SessionOptions, make_options
from dspy_session.core.state import SessionState
from dspy_session.core.values import REGISTERED, ValueCodecs
from dspy_session.errors import FormatError, OptionError, ValueCodecError
from dspy_session.published import from_published, read_published
from dspy_session.rows import from_rows, to_rows
from dspy_session.wire import Wire

__all__ = ["VERSION", "decode", "encode", "from_wire", "to_wire", "with_digest"]

VERSION: Final = 3
KIND: Final = "dspy-session"
_DIGEST: Final = "digest"

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
    if not private:
        state = flat.handed_on(state, options.private_data, options.redact_fields)
    # By way of JSON, so that only JSON's own types are left in it: no tuple, no enum.
    wire = _wire(state, options, codecs)
    return _as_dict(msgspec.json.decode(_written(wire, "json")))


def _wire(state: SessionState, options: SessionOptions, codecs: ValueCodecs) -> Wire:
    return Wire(
        kind="dspy-session",
        version=VERSION,
        options=_options_to_wire(options),
        conversation=to_rows(flat.pack(state), codecs),
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
        FormatError: The data is no conversation, is damaged, is from a newer version, does not fit
            its digest, or holds a value of a type that no codec reads.

    Example:
        >>> from_wire(to_wire(SessionState(), SessionOptions()))[0] == SessionState()
        True
    """
    version = _version_of(data)
    try:
        _check_digest(data)
        if version in (1, 2):
            return from_published(data)
        wire = msgspec.convert(data, Wire)
        return flat.unpack(from_rows(wire.conversation, codecs)), make_options(wire.options)
    except FormatError:
        raise
    except (msgspec.ValidationError, LookupError, ValueError, TypeError, RecursionError) as error:
        raise FormatError(
            f"This is a conversation of version {version}, but it is damaged: {error}. "
            "Restore the file from a backup; nothing was loaded."
        ) from error


def with_digest(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with a digest of itself, by which reading it tells whether it was altered.

    Args:
        document: What `to_wire` returned.

    Example:
        >>> document = with_digest(to_wire(SessionState(), SessionOptions()))
        >>> document["digest"][:7], from_wire(document)[0] == SessionState()
        ('sha256:', True)
    """
    return {**document, _DIGEST: _digest_of(document)}


def _check_digest(document: Mapping[str, Any]) -> None:
    if _DIGEST in document and document[_DIGEST] != _digest_of(document):
        raise FormatError(
            "This conversation was altered since it was exported: its digest does not fit. Export "
            "it again; if it was edited on purpose, delete the digest."
        )


def _digest_of(document: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in document.items() if name != _DIGEST}
    return f"sha256:{hashlib.sha256(msgspec.json.encode(rest)).hexdigest()}"


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
    data = _written(_wire(state, options, codecs), format)
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
