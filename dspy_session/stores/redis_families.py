"""The refs and nodes of conversation families in Redis."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dspy_session.errors import FormatError
from dspy_session.stores import redis_scripts as scripts
from dspy_session.stores.reach import note_kept, unreached
from dspy_session.stores.records import Node, Ref, new_key
from dspy_session.stores.redis_catalogue import Place
from dspy_session.stores.redis_client import RedisClient
from dspy_session.stores.redis_records import (
    Skeleton,
    body_size,
    key_bytes,
    key_of,
    node_record,
    pairs,
    read_node,
    read_ref,
    read_skeleton,
    ref_record,
)

__all__ = ["Families", "State", "Write"]


class State(NamedTuple):
    """What a family's refs are.

    Attributes:
        family: The family.
        token: Another one after each change of the family.
        refs: All refs, by the version with which they were made; also those in no catalogue.
        bodies: How many bytes the body of each has.
    """

    family: int
    token: bytes
    refs: dict[bytes, Ref]
    bodies: dict[bytes, int]


class Write(NamedTuple):
    """What `Store.put` is given."""

    ref: Ref
    expected: int | None
    nodes: Sequence[Node]
    needs: Collection[int]


class Families:
    """The families of a store.

    Args:
        server: The server.
        prefix: What all keys begin with.
    """

    def __init__(self, server: RedisClient, prefix: str) -> None:
        self._server = server
        self._prefix = prefix

    def key(self, family: int, part: str) -> str:
        """Return the name of one of a family's keys."""
        return f"{{{self._prefix}:{family}}}:{part}"

    def keys(self, family: int) -> list[str]:
        """Return the names of all of a family's keys."""
        return [self.key(family, part) for part in scripts.FAMILY]

    def stored(self) -> set[int]:
        """Return the families that there are, by looking at all keys of the server."""
        start, stop = f"{{{self._prefix}:", "}:meta"
        pattern = re.sub(r"([*?\[\]\\^])", r"\\\1", start) + "*" + stop
        return {
            int(name.decode().removeprefix(start).removesuffix(stop))
            for name in self._server.scan(pattern)
        }

    def refs(self, places: Sequence[Place]) -> list[Ref | None]:
        """Return the refs at some places."""
        asked = [("HGET", self.key(place.family, "refs"), place.birth) for place in places]
        return [None if record is None else read_ref(record) for record in self._ask(asked)]

    def state(self, family: int) -> State:
        """Return the refs of a family."""
        keys = [self.key(family, "refs"), self.key(family, "meta")]
        token, flat = self._server.script(scripts.STATE, keys)
        records = dict(pairs(flat))
        refs = {birth: read_ref(record) for birth, record in records.items()}
        bodies = {birth: body_size(record) for birth, record in records.items()}
        return State(family, token, refs, bodies)

    def put(
        self,
        place: Place,
        write: Write,
        catalogue: tuple[Sequence[str], Sequence[Any]] | None = None,
    ) -> Any:
        """Write a ref and nodes.

        Args:
            place: Where the ref is, or is to be.
            write: What to write.
            catalogue: Keys and arguments for entering it at the same time.

        Returns:
            1 if it was written, 0 if not; the bytes of a catalogue entry if that is in the way.
        """
        ref, expected, nodes, needs = write
        built_on = {*needs, ref.tip, *(node.parent for node in nodes)}
        built_on -= {None, *(node.key for node in nodes)}
        arguments: list[Any] = [
            place.birth,
            b"" if expected is None else key_bytes(expected),
            ref_record(ref),
            b"".join(key_bytes(key) for key in built_on),
            sum(len(node.payload) for node in nodes),
            len(nodes),
        ]
        for node in nodes:
            arguments += key_bytes(node.key), node_record(node), _label_field(node.label)
        keys = self.keys(ref.family)
        if catalogue is None:
            return self._server.script(scripts.PUT, keys, *arguments)
        more, entering = catalogue
        return self._server.script(scripts.PUT_AND_ENTER, [*keys, *more], *arguments, *entering)

    def remove(
        self,
        state: State,
        birth: bytes,
        catalogue: tuple[Sequence[str], Sequence[Any]] | None = None,
    ) -> int | None:
        """Remove a ref and all nodes that no other reaches.

        Args:
            state: What the family was when it was decided.
            birth: Which ref; empty for none.
            catalogue: Keys and arguments for striking it off at the same time.

        Returns:
            How many nodes were removed; None if the family was changed meanwhile, and nothing was.
        """
        left = [ref for each, ref in state.refs.items() if each != birth]
        dead, count = self._dead(state, left)
        if not (birth or count) and state.refs:
            return 0
        less = sum(each.size for each in dead.values())
        less += state.bodies.get(birth, 0)
        arguments: list[Any] = [state.token, key_bytes(new_key()), birth, -less, len(dead)]
        for key, each in dead.items():
            arguments += key_bytes(key), _label_field(each.label)
        keys = self.keys(state.family)
        if catalogue is None:
            done = self._server.script(scripts.REMOVE, keys, *arguments)
        else:
            more, entering = catalogue
            done = self._server.script(
                scripts.REMOVE_AND_ENTER, [*keys, *more], *arguments, *entering
            )
        return count if done else None

    def _dead(self, state: State, left: Sequence[Ref]) -> tuple[dict[int, Skeleton], int]:
        """The nodes that go one by one, and how many go: without any ref, all of them at once."""
        if not left:
            return {}, self._server.run("HLEN", self.key(state.family, "nodes"))
        skeleton, damaged = self.skeleton(state.family)
        try:
            if damaged is not None:
                raise damaged
            gone = unreached(left, {key: each.bone for key, each in skeleton.items()})
        except FormatError as error:
            note_kept(error)
            return {}, 0
        return {key: skeleton[key] for key in sorted(gone)}, len(gone)

    def skeleton(self, family: int) -> tuple[dict[int, Skeleton], FormatError | None]:
        """Return all nodes of a family without their payloads, and what names one without sense."""
        found: dict[int, Skeleton] = {}
        damaged, cursor = None, b"0"
        while True:
            cursor, flat = self._server.script(scripts.BONES, [self.key(family, "nodes")], cursor)
            for at in range(0, len(flat), 3):
                try:
                    found[key_of(flat[at])] = read_skeleton(family, *flat[at : at + 3])
                except FormatError as error:
                    damaged = error
            if cursor == b"0":
                return found, damaged

    def walk(self, family: int, key: int, floor: int) -> list[Node]:
        """Return a stretch of a chain, the newest node first."""
        found: list[Node] = []
        keys, next, above = [self.key(family, "nodes")], key, ""
        while True:
            flat = self._server.script(scripts.WALK, keys, key_bytes(next), floor, above)
            found += (read_node(family, each, record) for each, record in pairs(flat))
            parent = found[-1].parent if flat else None
            if parent is None or found[-1].depth <= floor:
                return found
            next, above = parent, str(found[-1].depth)

    def nodes(self, family: int, keys: Collection[int]) -> dict[int, Node]:
        """Return nodes by their keys."""
        names = [key_bytes(key) for key in dict.fromkeys(keys)]
        records = self._server.fields(self.key(family, "nodes"), names)
        return {
            key_of(name): read_node(family, name, record)
            for name, record in zip(names, records, strict=True)
            if record is not None
        }

    def labelled(self, family: int, label: str) -> list[int]:
        """Return the keys of the nodes with a label, the greatest first."""
        (found,) = self._server.fields(self.key(family, "labels"), [_label_field(label)])
        data = found or b""
        return sorted((key_of(data[at : at + 8]) for at in range(0, len(data), 8)), reverse=True)

    def replace(self, family: int, payloads: Mapping[int, bytes]) -> None:
        """Give nodes other payloads."""
        flat = [part for key, payload in payloads.items() for part in (key_bytes(key), payload)]
        keys = [self.key(family, "nodes"), self.key(family, "meta")]
        self._server.script(scripts.REPLACE, keys, key_bytes(new_key()), *flat)

    def sizes(self, families: Collection[int]) -> Iterator[tuple[int, int]]:
        """Return of each family how many nodes and bytes it has."""
        asked: list[tuple[str, ...]] = []
        for family in families:
            asked.append(("HLEN", self.key(family, "nodes")))
            asked.append(("HGET", self.key(family, "meta"), "bytes"))
        said = [_number(each) for each in self._ask(asked)]
        return zip(said[::2], said[1::2], strict=True)

    def _ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        if len(commands) == 1:
            return [self._server.run(*commands[0])]
        return self._server.run_all(commands)


def _number(said: Any) -> int:
    """A count; 0 for one that is damaged, or not there yet."""
    try:
        return int(said or 0)
    except ValueError:
        return 0


def _label_field(label: str | None) -> bytes:
    """The field of a label; empty for none."""
    return b"" if label is None else b"=" + label.encode()
