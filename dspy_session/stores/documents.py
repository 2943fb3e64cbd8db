"""A store over four methods of one's own: save, load, delete and list plain dicts.

    {"kind": "dspy-session stored", "version": 1, "session": {...}, "nodes": [{...}, ...]}

A document holds one session: its ref, and all nodes that it reaches, with bytes as base64.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

import msgspec

from dspy_session.errors import FormatError, OptionError, StoreError
from dspy_session.stores.base import Store
from dspy_session.stores.records import DamagedRef, ListQuery, Node, Ref, Totals
from dspy_session.stores.tables import Tables, detached, reached

__all__ = ["DocumentStore", "SessionStore"]

KIND: Final = "dspy-session stored"
VERSION: Final = 1

Value = TypeVar("Value")


@runtime_checkable
class SessionStore(Protocol):
    """What one writes to keep sessions in a place of one's own; see `DocumentStore`.

    Example:
        >>> class Folder:
        ...     def save(self, session_id, data): ...
        ...     def load(self, session_id): ...
        ...     def delete(self, session_id): ...
        ...     def list_sessions(self): ...
        >>> isinstance(Folder(), SessionStore)
        True
    """

    def save(self, session_id: str, data: dict[str, Any]) -> None:
        """Keep a dict under an id, instead of the one that is there; all of it or nothing.

        Args:
            session_id: Any text.
            data: JSON values.
        """

    def load(self, session_id: str) -> dict[str, Any] | None:
        """Return the dict that was saved last under an id, or None.

        Args:
            session_id: The id.

        Raises:
            ValueError: What is there cannot be read, as `json.loads` raises it; the session is
                listed as damaged then. Any other error is one of the whole store.
        """

    def delete(self, session_id: str) -> bool:
        """Delete what is under an id.

        Args:
            session_id: The id.

        Returns:
            Whether there was something.
        """

    def list_sessions(self) -> list[str]:
        """Return all ids, in any order."""


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    version: int
    session: Ref
    nodes: list[Node]


class DocumentStore(Store):
    """Makes a store of an object that saves, loads, deletes and lists plain dicts.

    Whatever a session does works, but four methods cannot promise what other stores do:

    - **Two writers.** That a session changes only from the version that its writer has seen holds
      for all that goes through this one object, from any thread. Two processes, or two of these
      objects, that write one session at the same moment may overwrite each other's turns.
    - **Constant cost.** Each write saves the whole session, and opening one loads it whole. Lists,
      finding by metadata and sums load every session.
    - **Sharing.** A fork is a copy. To erase a turn writes one session after the other, so a crash
      in between leaves it in some.
    - **Other processes.** A session that another process has just forked off is found by its id at
      once; for what forks have in common, it may be seen late.

    Args:
        own: The object; see `SessionStore`. Closing the store leaves it as it is.

    Raises:
        OptionError: It lacks one of the four methods.
    """

    def __init__(self, own: SessionStore) -> None:
        if not isinstance(own, SessionStore):
            wanted = ("save", "load", "delete", "list_sessions")
            lacking = ", ".join(name for name in wanted if not hasattr(own, name))
            raise OptionError(
                f"Expected an object with the methods of SessionStore, not {type(own).__name__}, "
                f"which lacks {lacking}."
            )
        self.own = own
        self._mutex = threading.Lock()
        self._closed = False
        self._families: dict[str, int | None] = {}
        """By id, of which family each session is that was seen; None if it could not be read."""

    def ref(self, id: str) -> Ref | None:
        """See `Store.ref`."""
        with self._open():
            found = self._found(id)
            return found.session if isinstance(found, _Document) else found

    def put(
        self,
        ref: Ref,
        expected: int | None,
        nodes: Sequence[Node] = (),
        needs: Collection[int] = (),
    ) -> bool:
        """See `Store.put`."""
        with self._open():
            old = self._load(ref.id)
            if (None if old is None else old.session.version) != expected:
                return False
            tables = _tables([] if old is None else [old])
            spans = [*ref.links, *(span for node in nodes for span in node.links)]
            linked = {span.key for span in spans} - {node.key for node in nodes}
            trimmed_less = old is not None and ref.first < old.session.first
            if trimmed_less or not tables.stands(ref, nodes, {*needs, *linked}):
                tables = self._family(ref.family)  # it builds on what another session has
            if not tables.stands(ref, nodes, needs):
                return False
            tables.set(ref, nodes)
            self._save(ref, tables.nodes_of(ref.family))
            return True

    def walk(self, family: int, key: int, floor: int) -> list[Node]:
        """See `Store.walk`."""
        with self._open():
            for each in self._each(self._known(family)):
                found = _tables([each]).walk(family, key, floor)
                if found and (found[0].parent is None or found[0].depth <= floor):
                    return found
            return self._family(family).walk(family, key, floor)

    def nodes(self, family: int, keys: Collection[int]) -> dict[int, Node]:
        """See `Store.nodes`."""
        with self._open():
            for each in self._each(self._known(family)):
                found = _tables([each]).nodes(family, keys)
                if len(found) == len(set(keys)):
                    return found
            return self._family(family).nodes(family, keys)

    def labelled(self, family: int, label: str) -> list[Node]:
        """See `Store.labelled`."""
        with self._open():
            return self._family(family).labelled(family, label)

    def delete(self, id: str, expected: int | None = None) -> bool:
        """See `Store.delete`."""
        with self._open():
            found = self._found(id)  # what somebody else saved is not ours to delete
            if found is None:
                return False
            if expected is not None and _ref_of(found).version != expected:
                return False
            self._ask("delete", id, lambda: self.own.delete(id))
            self._families.pop(id, None)
            return True

    def replace_payloads(self, family: int, payloads: Mapping[int, bytes]) -> None:
        """See `Store.replace_payloads`."""
        with self._open():
            self._family(family)  # so that all of its sessions are known
            for each in self._each(self._known(family)):
                tables = _tables([each])
                if isinstance(each, _Document) and tables.nodes(family, payloads.keys()):
                    tables.replace_payloads(family, payloads)
                    self._save(each.session, tables.nodes_of(family))

    def refs(self, query: ListQuery) -> list[Ref]:
        """See `Store.refs`."""
        return self._everything().refs(query)

    def count(self, query: ListQuery) -> int:
        """See `Store.count`."""
        return self._everything().count(query)

    def relatives(self, family: int) -> list[Ref]:
        """See `Store.relatives`."""
        with self._open():
            return self._family(family).relatives(family)

    def vacuum(self) -> int:
        """Return 0: what its session does not reach is left out of a document as it is saved."""
        with self._open():
            return 0

    def totals(self) -> Totals:
        """See `Store.totals`; what sessions have in common counts once, though each has a copy."""
        return self._everything().totals()

    def activity(self, since: float, until: float) -> dict[str, int]:
        """See `Store.activity`."""
        return self._everything().activity(since, until)

    def close(self) -> None:
        """Take no more questions; the object behind this store is left as it is."""
        with self._mutex:
            self._closed = True

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._mutex:
            if self._closed:
                raise StoreError("This store is closed: make another of the same object.")
            yield

    def _ask(self, name: str, id: str, call: Callable[[], Value]) -> Value:
        """Call a method of one's own; whatever it raises is this store's error."""
        try:
            return call()
        except Exception as error:
            where = f"{type(self.own).__name__}.{name}({id!r})" if id else f"{name}()"
            raise StoreError(
                f"{where} raised {type(error).__name__}: {error}. What was to be written is not "
                "acknowledged; to try again is safe."
            ) from error

    def _found(self, id: str) -> _Document | DamagedRef | None:
        """What is saved under an id; an error if it is somebody else's."""
        try:
            data = self._ask("load", id, lambda: self.own.load(id))
        except StoreError as error:
            if not isinstance(error.__cause__, ValueError):
                raise
            found: _Document | DamagedRef = DamagedRef(
                id=id, family=0, version=0, damaged=f"load() says: {error.__cause__}"
            )
        else:
            if data is None:
                self._families.pop(id, None)
                return None
            _check_kind(id, data)
            found = _read(id, data)
        self._families[id] = _ref_of(found).family
        return found

    def _load(self, id: str) -> _Document | None:
        found = self._found(id)
        return None if found is None else self._whole(id, found)

    def _whole(self, id: str, found: _Document | DamagedRef) -> _Document:
        if isinstance(found, DamagedRef):
            raise FormatError(
                f"Session {id!r} is damaged: {found.damaged}. Restore it from a backup, or "
                "delete_session() it; the other sessions can be read."
            )
        return found

    def _save(self, ref: Ref, nodes: Mapping[int, Node]) -> None:
        try:
            kept = reached([ref], nodes)
        except FormatError:  # something is missing: so that it can be mended, the rest stays
            kept = set(nodes)
        document = _Document(KIND, VERSION, ref, [nodes[key] for key in nodes if key in kept])
        data = msgspec.to_builtins(document)
        self._ask("save", ref.id, lambda: self.own.save(ref.id, data))
        self._families[ref.id] = ref.family

    def _ids(self) -> list[str]:
        return list(self._ask("list_sessions", "", self.own.list_sessions))

    def _each(self, ids: Iterable[str]) -> Iterator[_Document | DamagedRef]:
        """What is saved under ids, but for what somebody else saved."""
        for id in ids:
            try:
                found = self._found(id)
            except FormatError:
                self._families[id] = None
            else:
                if found is not None:
                    yield found

    def _known(self, family: int) -> list[str]:
        return [id for id, its in self._families.items() if its == family]

    def _family(self, family: int) -> Tables:
        """All sessions of a family."""
        for _ in self._each(id for id in self._ids() if id not in self._families):
            pass  # of which family it is, is noted
        return _tables(self._each(self._known(family)))

    def _everything(self) -> Tables:
        """All sessions; what somebody else saved beside them is left out."""
        with self._open():
            return _tables(self._each(self._ids()))


def _tables(found: Iterable[_Document | DamagedRef]) -> Tables:
    tables = Tables()
    for each in found:
        tables.set(_ref_of(each), each.nodes if isinstance(each, _Document) else ())
    return tables


def _ref_of(found: _Document | DamagedRef) -> Ref:
    return found.session if isinstance(found, _Document) else found


def _is_stored(data: Any) -> bool:
    return isinstance(data, dict) and data.get("kind") == KIND


def _check_kind(id: str, data: Any) -> None:
    if not isinstance(data, dict):
        raise FormatError(
            f"Session {id!r}: expected the dict that was saved, but load() returned "
            f"{type(data).__name__}."
        )
    if not _is_stored(data):
        raise FormatError(
            f"What is saved as {id!r} is no session that a store wrote, but another kind of "
            "document; it was left as it is. If session.to_dict() made it, open it with "
            "Session.from_dict(data, program)."
        )


def _read(id: str, data: dict[str, Any]) -> _Document | DamagedRef:
    """Return what `save` was given."""
    try:
        _check_version(data.get("version"))
        _check_fields(data.get("session"), Ref)
        for node in data.get("nodes", ()):
            _check_fields(node, Node)
        document = msgspec.convert(data, _Document)
        _check_whole(id, document)
        return msgspec.structs.replace(document, session=detached(document.session))
    except (ValueError, TypeError, RecursionError) as error:  # msgspec's are ValueErrors
        session = data.get("session")
        family = session.get("family") if isinstance(session, dict) else None
        known = family if isinstance(family, int) else 0
        return DamagedRef(id=id, family=known, version=0, damaged=str(error))


def _check_version(version: Any) -> None:
    if isinstance(version, int) and version > VERSION:
        raise ValueError(
            f"it was written in version {version} of the format; this library reads version "
            f"{VERSION}, so upgrade dspy-session to open it"
        )


def _check_fields(data: Any, kind: type[Ref] | type[Node]) -> None:
    """Refuse what lacks a field: a default would hide it."""
    if isinstance(data, dict):
        lacking = [name for name in kind.__struct_fields__ if name not in data]
        if lacking:
            raise ValueError(f"a {kind.__name__.lower()} lacks {', '.join(lacking)}")


def _check_whole(id: str, document: _Document) -> None:
    ref, keys = document.session, {node.key for node in document.nodes}
    if document.version < 1:
        raise ValueError(f"its version is {document.version}")
    if ref.id != id:
        raise ValueError(f"it is session {ref.id!r}")
    if {node.family for node in document.nodes} - {ref.family}:
        raise ValueError("it has nodes of another family")
    if ref.tip is not None and ref.tip not in keys:
        raise ValueError("its newest node is missing")
