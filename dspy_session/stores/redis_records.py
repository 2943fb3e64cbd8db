"""Refs and nodes as bytes, with what scripts read of them at fixed places in front.

ref     version (8 bytes), size of the body (4), msgpack
node    key of the parent (8), depth (8), size of the head (4), head (msgpack), payload
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from dspy_session.errors import FormatError
from dspy_session.stores.reach import Bone
from dspy_session.stores.records import DamagedRef, Node, Ref, Span, metadata_terms

__all__ = [
    "Skeleton",
    "body_size",
    "entry_terms",
    "key_bytes",
    "key_of",
    "node_record",
    "pairs",
    "read_node",
    "read_ref",
    "read_skeleton",
    "ref_record",
    "term_digest",
]

_REF: Final = struct.Struct(">QI")
_NODE: Final = struct.Struct(">QqI")
_TAILS: Final = [bytes([each]) for each in range(256)]  # by the bits that differ from key to key


class _Head(msgspec.Struct, frozen=True, array_like=True):
    """What a node has besides parent, depth and payload."""

    low: int
    base: int
    links: tuple[Span, ...]
    digest: bytes
    total: int
    time: float
    label: str | None


class _Body(msgspec.Struct, frozen=True, array_like=True):
    """What a ref has besides its version; metadata as JSON, whose types msgpack does not keep."""

    id: str
    family: int
    tip: int | None
    head: int | None
    first: int
    stop: int
    end: int
    links: tuple[Span, ...]
    created: float
    updated: float
    size: int
    origin: str | None
    metadata: bytes
    body: bytes


_write = msgspec.msgpack.Encoder().encode
_read_head = msgspec.msgpack.Decoder(_Head).decode
_read_body = msgspec.msgpack.Decoder(_Body).decode


def key_bytes(key: int | None) -> bytes:
    """Return a key as it is stored; None is eight zeros, which no key is."""
    return (key or 0).to_bytes(8, "big")


def key_of(data: bytes) -> int:
    """Return the key that some bytes are."""
    return int.from_bytes(data, "big")


def ref_record(ref: Ref) -> bytes:
    """Return a ref as it is stored."""
    fields: dict[str, Any] = {name: getattr(ref, name) for name in _Body.__struct_fields__}
    fields["metadata"] = msgspec.json.encode(ref.metadata)
    return _REF.pack(ref.version, len(ref.body)) + _write(_Body(**fields))


def read_ref(record: bytes) -> Ref:
    """Return the ref that was stored as these bytes; a `DamagedRef` without an id if it is none."""
    version = key_of(record[:8])
    try:
        _REF.unpack_from(record)
        body = _read_body(record[_REF.size :])
        fields = {name: getattr(body, name) for name in _Body.__struct_fields__}
        fields["metadata"] = msgspec.json.decode(body.metadata)
    except (struct.error, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        what = f"its record cannot be read ({error})"
        return DamagedRef(id="", family=0, version=version, damaged=what)
    if not isinstance(fields["metadata"], dict):
        return DamagedRef(id="", family=0, version=version, damaged="its metadata is no object")
    return Ref(version=version, **fields)


def body_size(record: bytes) -> int:
    """Return how many bytes the body of a stored ref has; of a damaged one, what may be true."""
    return min(int.from_bytes(record[8:12], "big"), len(record))


def node_record(node: Node) -> bytes:
    """Return a node as it is stored."""
    head = _write(
        _Head(node.low, node.base, node.links, node.digest, node.total, node.time, node.label)
    )
    start = _NODE.pack(node.parent or 0, node.depth, len(head))
    return b"".join((start, head, node.payload, _TAILS[node.key >> 23 & 0xFF]))


def read_node(family: int, key: bytes, record: bytes) -> Node:
    """Return the node that was stored as these bytes."""
    parent, depth, head, payload = _parts(family, key, record)
    return Node(
        key=key_of(key),
        family=family,
        parent=parent,
        depth=depth,
        low=head.low,
        base=head.base,
        links=head.links,
        digest=head.digest,
        total=head.total,
        time=head.time,
        label=head.label,
        payload=payload,
    )


class Skeleton(NamedTuple):
    """What there is of a node without its payload: what it reaches, and what indexes know."""

    bone: Bone
    time: float
    label: str | None
    size: int


def read_skeleton(family: int, key: bytes, record: bytes, size: int) -> Skeleton:
    """Return what is known of a node from what is stored before its payload."""
    parent, depth, head, _ = _parts(family, key, record)
    bone = Bone(key_of(key), parent, depth, head.low, head.links)
    return Skeleton(bone, head.time, head.label, size)


def _parts(family: int, key: bytes, record: bytes) -> tuple[int | None, int, _Head, bytes]:
    try:
        parent, depth, size = _NODE.unpack_from(record)
        stop = _NODE.size + size
        return parent or None, depth, _read_head(record[_NODE.size : stop]), record[stop:-1]
    except (struct.error, msgspec.MsgspecError, UnicodeError) as error:
        depth = int.from_bytes(record[8:16], "big", signed=True) if len(record) > 15 else "?"
        raise FormatError(
            f"The record of turn {depth} (node {key_of(key)} of the family {family}) is damaged: "
            f"{error}. Restore it from a backup; the others can be read, and nothing was changed."
        ) from error


def term_digest(term: tuple[str, str]) -> bytes:
    """Return sixteen bytes for a metadata term."""
    name, value = (part.encode() for part in term)
    return hashlib.blake2b(b"%d:%b%b" % (len(name), name, value), digest_size=16).digest()


def entry_terms(ref: Ref) -> bytes:
    """Return the terms of a ref's metadata as its catalogue entry has them."""
    return b"".join(sorted(term_digest(term) for term in metadata_terms(ref.metadata)))


def pairs(flat: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Return what a server sends as one list two by two."""
    items = iter(flat)
    return zip(items, items, strict=True)
