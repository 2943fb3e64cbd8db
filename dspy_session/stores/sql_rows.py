"""Nodes and refs as rows of a table, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, get_type_hints

import msgspec

from dspy_session.errors import FormatError, StoreError
from dspy_session.stores.reach import Bone
from dspy_session.stores.records import DamagedRef, Node, Ref, Span, metadata_terms, term_of
from dspy_session.stores.sql_schema import CUT

__all__ = [
    "bones",
    "label_bytes",
    "node_values",
    "nodes_of",
    "ref_values",
    "refs_of",
    "terms_of",
    "wanted_terms",
]


class _NodeRow(msgspec.Struct, frozen=True, array_like=True):
    """The columns of a node, in their order."""

    key: int
    family: int
    parent: int | None
    depth: int
    low: int
    base: int
    links: bytes | None
    digest: bytes
    total: int
    time: float
    label: bytes | None
    payload: bytes


class _RefRow(msgspec.Struct, frozen=True, array_like=True):
    """The columns of a ref, in their order."""

    id: str
    family: int
    version: int
    tip: int | None
    head: int | None
    first: int
    stop: int
    end: int
    links: bytes | None
    created: float
    updated: float
    size: int
    origin: bytes | None
    metadata: str
    body: bytes


class _BoneRow(msgspec.Struct, frozen=True, array_like=True):
    """What `Statements.bones` selects."""

    key: int
    parent: int | None
    depth: int
    low: int
    links: bytes | None


_links: Final = msgspec.msgpack.Decoder(tuple[Span, ...])
_metadata: Final = msgspec.json.Decoder(dict[str, Any])


_bytes: Final = partial(msgspec.convert, type=bytes | None, builtin_types=(bytes,))
_REF_COLUMNS: Final[dict[str, Callable[[Any], Any]]] = {
    name: partial(msgspec.convert, type=kind, builtin_types=(bytes,))
    for name, kind in get_type_hints(_RefRow).items()
} | {
    "links": lambda value: () if value is None else _links.decode(_bytes(value)),
    "origin": lambda value: _label_text(_bytes(value)),
    "metadata": lambda value: _metadata.decode(msgspec.convert(value, str)),
}
"""What reads each column of a ref that cannot be read as a whole."""


def node_values(node: Node) -> dict[str, Any]:
    """Return what a node has in each column.

    Args:
        node: The node.
    """
    values = _fields(node)
    values["links"] = _packed(node.links)
    values["label"] = None if node.label is None else label_bytes(node.label)
    return values


def ref_values(ref: Ref) -> dict[str, Any]:
    """Return what a ref has in each column.

    Args:
        ref: The ref.

    Raises:
        StoreError: Its metadata is not JSON.
    """
    values = _fields(ref)
    values["links"] = _packed(ref.links)
    values["origin"] = None if ref.origin is None else label_bytes(ref.origin)
    try:
        values["metadata"] = msgspec.json.encode(ref.metadata).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise StoreError(
            f"Expected metadata that JSON can hold, but that of session {ref.id!r} cannot be "
            f"written: {error}. Nothing was written."
        ) from error
    return values


def _fields(record: Node | Ref) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def _packed(links: tuple[Span, ...]) -> bytes | None:
    return msgspec.msgpack.encode(links) if links else None


def label_bytes(text: str) -> bytes:
    """Return a label as it is kept, whatever it is made of.

    Args:
        text: The label.
    """
    return text.encode("utf-8", "surrogatepass")


def _label_text(label: bytes | None) -> str | None:
    return None if label is None else label.decode("utf-8", "surrogatepass")


def nodes_of(rows: Sequence[Sequence[Any]]) -> list[Node]:
    """Return the nodes that rows hold.

    Args:
        rows: The rows.

    Raises:
        FormatError: A row holds something else; it names the first.
    """
    try:
        return [
            Node(
                key=row.key,
                family=row.family,
                parent=row.parent,
                depth=row.depth,
                low=row.low,
                base=row.base,
                links=() if row.links is None else _links.decode(row.links),
                digest=row.digest,
                total=row.total,
                time=row.time,
                label=_label_text(row.label),
                payload=row.payload,
            )
            for row in msgspec.convert(rows, list[_NodeRow], builtin_types=(bytes,))
        ]
    except (msgspec.MsgspecError, UnicodeError) as error:
        for row in rows if len(rows) > 1 else ():
            nodes_of([row])  # the first that cannot be read raises
        raise FormatError(_damaged(rows[0][0], rows[0][3], error)) from error


def refs_of(rows: Iterable[Sequence[Any]]) -> list[Ref]:
    """Return the refs that rows hold; a `DamagedRef` for a row that holds something else.

    Args:
        rows: The rows.
    """
    return [_ref(row) for row in rows]


def _ref(values: Sequence[Any]) -> Ref:
    try:
        row = msgspec.convert(values, _RefRow, builtin_types=(bytes,))
        return Ref(
            id=row.id,
            family=row.family,
            version=row.version,
            tip=row.tip,
            head=row.head,
            first=row.first,
            stop=row.stop,
            end=row.end,
            links=() if row.links is None else _links.decode(row.links),
            created=row.created,
            updated=row.updated,
            size=row.size,
            origin=_label_text(row.origin),
            metadata=_metadata.decode(row.metadata),
            body=row.body,
        )
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return _damaged_ref(values)


def _damaged_ref(values: Sequence[Any]) -> DamagedRef:
    """What can be read of a ref, column by column."""
    id, *_ = values
    shown = id.decode("utf-8", "backslashreplace") if isinstance(id, bytes) else str(id)
    known: dict[str, Any] = {"id": shown, "family": 0, "version": 0}
    wrong: list[str] = []
    for (name, read), value in zip(_REF_COLUMNS.items(), values, strict=True):
        try:
            known[name] = read(value)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            wrong.append(f"its {name} ({error})")
    return DamagedRef(**known, damaged=f"{', '.join(wrong)} cannot be read")


def bones(rows: Iterable[Sequence[Any]]) -> dict[int, Bone]:
    """Return what is needed of nodes to know what they reach, by key.

    Args:
        rows: Rows of key, parent, depth, low and links.

    Raises:
        FormatError: A row holds something else, so that nothing of the family may be deleted.
    """
    return {bone.key: bone for bone in map(_bone, rows)}


def _bone(values: Sequence[Any]) -> Bone:
    try:
        row = msgspec.convert(values, _BoneRow, builtin_types=(bytes,))
        links = () if row.links is None else _links.decode(row.links)
        return Bone(row.key, row.parent, row.depth, row.low, links)
    except msgspec.MsgspecError as error:
        raise FormatError(_damaged(values[0], values[2], error)) from error


def _damaged(key: object, depth: object, error: Exception) -> str:
    return (
        f"The row of turn {depth!r} (node {key!r}) is damaged: {error}. Restore it from a backup; "
        "the others can be read, and nothing was changed."
    )


def terms_of(id: str, metadata: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the rows by which a session is found.

    Args:
        id: Its id.
        metadata: Its metadata.
    """
    return [
        {"term": term, "session": id}
        for term in {_term(name, value) for name, value in metadata_terms(metadata)}
    ]


def wanted_terms(wanted: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Return the terms by which sessions with some metadata are found, and whether these suffice.

    Args:
        wanted: The metadata.
    """
    terms = [_term(name, term_of(value)) for name, value in wanted.items()]
    return terms, all(len(term) < CUT for term in terms)


def _term(name: str, value: str) -> str:
    return f"{msgspec.json.encode(name).decode()}:{value}"[:CUT]
