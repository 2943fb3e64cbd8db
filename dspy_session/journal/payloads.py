"""What is inside the payload of a node and the body of a ref: msgpack, sealed.

A turn's payload has its fields in plain form, and what stood beside it as the difference to the
turn before. So that no long chain must be read to know what stands there now, every 64th turn at
least says it whole: `Node.base` is the depth of the latest that did.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec

from dspy_session.core.turn import Run
from dspy_session.core.values import SCALARS, TYPE_KEY
from dspy_session.errors import FormatError, ValueCodecError
from dspy_session.journal.sealing import Seal
from dspy_session.stores.records import Node
from dspy_session.wire import WireExchange, WireProfile, WireRun, WireView

__all__ = [
    "StoredBeside",
    "StoredOwn",
    "StoredSeed",
    "StoredState",
    "StoredTurn",
    "about_node",
    "all_opened",
    "closed",
    "encoded",
    "is_plain",
    "opened",
]


class StoredBeside(msgspec.Struct, omit_defaults=True):
    """What stands beside a turn, as what differs from what stood there before.

    Attributes:
        whole: Whether this is all, and nothing stood there before.
        data: The JSON under keys of the session data, of those that were set.
        gone: The keys that were deleted.
        pending: The chat messages that wait; None for the same as before.
        nested: The states of the sessions within the program that moved, by path.
    """

    whole: bool = False
    data: dict[str, bytes] = {}
    gone: list[str] = []
    pending: list[dict[str, Any]] | None = None
    nested: dict[str, StoredState] = {}


class StoredOwn(msgspec.Struct, omit_defaults=True):
    """What a state has apart from its turns.

    Attributes:
        id: Its id.
        seed: The key of the node with its seed; None for no seed.
        before: What stood beside it before its first turn, whole.
        profile: Instructions and the data that it starts with; metadata, unless the ref has it.
        earlier: The conversations that were summarised into it.
    """

    id: str | None = None
    seed: int | None = None
    before: StoredBeside | None = None
    profile: WireProfile | None = None
    earlier: list[StoredState] = []


class StoredState(msgspec.Struct, omit_defaults=True):
    """One state: a session's own, one within its program, a path ahead, an earlier conversation.

    Attributes:
        tip: The key of its newest node, also if that is undone; None without turns.
        first: The index of its oldest turn.
        stop: The index that its next turn gets.
        end: The index after that of its tip.
        under: How many bytes the payloads of its chain have that are older than its first.
        own: The rest; None if it is that of the state it follows.
        written: What was written beside it since its tip, whole; None if nothing was.
        ahead: The paths ahead.
        erasure: A key that is another one since a turn of the family was erased: what was read
            before is not to be gone on with.
    """

    tip: int | None = None
    first: int = 0
    stop: int = 0
    end: int = 0
    under: int = 0
    own: StoredOwn | None = None
    written: StoredBeside | None = None
    ahead: list[StoredState] = []
    erasure: int | None = None


class StoredTurn(msgspec.Struct, omit_defaults=True, gc=False):
    """One turn; its index is the node's depth.

    Attributes:
        inputs: The inputs, in plain form; None if they are another node's.
        outputs: The outputs, likewise.
        details: The run details, likewise.
        like: The key of the node that has the fields: the same exchange, with another score or
            after other turns.
        start: The index of the oldest turn that it saw.
        unseen: How many turns lie between it and the newest that it saw.
        lane: The key of the newest node that it saw, if that is none of its own chain.
        seed: The key of the node with the seed that it saw.
        view: Which fields it saw, if not all.
        run: How the run went, if that is plain already; it mostly is.
        facts: How it went, in plain form.
        score: The score, in plain form.
        feedback: The feedback.
        before: What stood beside it when it began; None for the same as after the turn before.
        beside: What stood there when it had ended; None for the same as when it began.
        erased: The hash of the fields that were erased.
    """

    inputs: dict[str, Any] | None = None
    outputs: dict[str, Any] | None = None
    details: dict[str, Any] = {}
    like: int | None = None
    start: int = 0
    unseen: int = 0
    lane: int | None = None
    seed: int | None = None
    view: WireView | None = None
    run: Run | None = None
    facts: WireRun | None = None
    score: Any = None
    feedback: str | None = None
    before: StoredBeside | None = None
    beside: StoredBeside | None = None
    erased: bytes | None = None


class StoredSeed(msgspec.Struct):
    """A seed: what came before the first turn."""

    exchanges: list[WireExchange]


_Stored = TypeVar("_Stored", StoredTurn, StoredState, StoredSeed)

_encoder: Final = msgspec.msgpack.Encoder()
_decoders: Final[dict[type, Any]] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (StoredTurn, StoredState, StoredSeed)
}


_LARGEST_INTEGER: Final = 2**63 - 1


def is_plain(value: Any) -> bool:
    """Whether a value is written, and read again, just as it is.

    Args:
        value: Any value.
    """
    kind = type(value)
    if kind is int:
        return bool(-_LARGEST_INTEGER <= value <= _LARGEST_INTEGER)
    if kind is str:
        text: str = value
        return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)
    if kind is dict:
        return TYPE_KEY not in value and all(
            type(name) is str and name.isascii() and is_plain(item) for name, item in value.items()
        )
    return kind in SCALARS


def encoded(value: Any) -> bytes:
    """Return plain data as msgpack.

    Args:
        value: Plain data.

    Raises:
        ValueCodecError: A text in it is none that UTF-8 can hold.
    """
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError as error:
        bad = error.object[error.start : error.end]
        raise ValueCodecError(
            f"Cannot store the conversation: {bad!r} is no valid text. Field names, feedback, "
            "instructions and ids must be."
        ) from error


def closed(value: Any, seal: Seal, about: bytes) -> bytes:
    """Return a row as the bytes that are stored.

    Args:
        value: The row.
        seal: Compresses and encrypts.
        about: What the bytes belong to: those of another place do not open here.

    Raises:
        ValueCodecError: As `encoded`.
    """
    return seal.close(encoded(value), about)


def all_opened(nodes: Iterable[Node], seal: Seal) -> list[StoredTurn]:
    """Return the rows of the nodes of turns, faster than one by one.

    Args:
        nodes: The nodes.
        seal: As it was.

    Raises:
        FormatError: One of them is damaged.
        SecretError: One of them cannot be read with this key.
    """
    decode, unseal = _decoders[StoredTurn].decode, seal.open
    try:
        return [decode(unseal(node.payload, about_node(node.key))) for node in nodes]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"one of them is damaged: {error}") from error


def about_node(key: int) -> bytes:
    """Return what a node's payload belongs to, see `Seal`.

    Args:
        key: The node's key.
    """
    return b"node:%d" % key


def opened(kind: type[_Stored], frame: bytes, seal: Seal, about: bytes) -> _Stored:
    """Return the row that stored bytes hold.

    Args:
        kind: The row's type.
        frame: What `closed` returned.
        seal: As it was.
        about: As it was.

    Raises:
        FormatError: The bytes are damaged.
        SecretError: They cannot be read with this key.
    """
    try:
        row: _Stored = _decoders[kind].decode(seal.open(frame, about))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"it is damaged: {error}") from error
    return row
