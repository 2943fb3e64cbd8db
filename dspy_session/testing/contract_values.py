"""The store contract: whatever a field may hold comes back as it was."""

from __future__ import annotations

import json
from typing import Any

from dspy_session.stores.records import ListQuery, Node, Ref, Span, new_key
from dspy_session.testing.contract_cases import StoreCases, chain, ref_to, rewritten

__all__ = ["ValueCases"]

GREATEST = 2**63 - 1

IDS = [
    "it's",
    'a "quoted" one',
    "../../etc/passwd",
    "a/b\\c",
    "100%_of*[them]?",
    "; DROP TABLE refs; --",
    "{tag}:key:1",
    "ünïcödé 🙂 \u202e",
    " ",
    "line\nbreak\ttab\r",
    "x" * 200,
    "🙂" * 200,
]

METADATA: dict[str, Any] = {
    "text": 'NUL \0, "quotes", \\, 🙂, \u2028',
    "": "an empty key",
    "a.b 🙂'\"\0$": "an odd key",
    "numbers": [0, 1, -1, 1.0, 0.1, 1e300, 2**53 + 1],
    "none": None,
    "yes": True,
    "nested": {"list": [{"deep": [[]]}], "empty": {}},
}


class ValueCases(StoreCases):
    """Ids, keys, bytes, times and metadata of every kind."""

    def test_every_field_of_a_node(self) -> None:
        """Nothing is rounded, cut or taken for another."""
        family = new_key()
        (before,) = chain(family, 1)
        node = Node(
            key=new_key(),
            family=family,
            parent=before.key,
            depth=1,
            low=0,
            base=1,
            links=(Span(before.key, 0), Span(new_key(), 3)),
            digest=bytes(range(32)),
            total=2**40,
            time=1_772_323_200.123456,
            label="a label",
            payload=bytes(range(256)),
        )
        assert self.store.put(ref_to("ada", [before, node]), None, [before, node])
        assert self.store.walk(family, node.key, 0) == [before, node]
        assert self.store.nodes(family, [node.key]) == {node.key: node}
        assert self.store.labelled(family, "a label") == [node]

    def test_every_field_of_a_ref(self) -> None:
        """Wherever refs come from."""
        nodes = chain(new_key(), 5)
        ref = Ref(
            id="ada",
            family=nodes[0].family,
            version=new_key(),
            tip=nodes[4].key,
            head=nodes[3].key,
            first=1,
            stop=4,
            end=5,
            links=(Span(nodes[2].key, 1), Span(nodes[1].key, 1)),
            created=1_772_323_200.000001,
            updated=1_772_323_200.123456,
            size=2**40,
            origin="it's 🙂",
            metadata=METADATA,
            body=bytes(range(256)),
        )
        assert self.store.put(ref, None, nodes)
        assert self.store.ref("ada") == ref
        assert self.store.refs(ListQuery()) == [ref]
        assert self.store.relatives(ref.family) == [ref]

    def test_ids(self) -> None:
        """Each is its own, in every method; none is a pattern."""
        refs = {id: self.session(id, 1, origin=id)[0] for id in IDS}
        assert self.listed(order="id", descending=False) == sorted(IDS)
        for id, ref in refs.items():
            assert self.store.ref(id) == ref
            assert self.store.put(rewritten(ref, metadata={"id": id}), ref.version)
            assert self.listed(metadata={"id": id}) == [id]
        for left, id in enumerate(reversed(IDS)):
            assert self.store.count(ListQuery()) == len(IDS) - left
            assert self.store.delete(id)
            assert self.store.ref(id) is None

    def test_ids_differ_in_case_and_in_form(self) -> None:
        """Letters are compared by code point, and blanks count."""
        ids = sorted(["ada", "Ada", "ada ", "\u00e9", "e\u0301", "\uffff", "\U0001f600", "Z", "ä"])
        for id in ids:
            self.session(id, 1)
        assert self.listed(order="id", descending=False) == ids
        assert self.listed(order="id") == ids[::-1]

    def test_the_greatest_keys(self) -> None:
        """Neighbours below 2**63 are not one."""
        family = GREATEST
        nodes = [Node(key=GREATEST - 2, family=family)]
        nodes += [Node(key=GREATEST - 1, family=family, parent=GREATEST - 2, depth=1, low=1)]
        nodes += [Node(key=GREATEST, family=family, parent=GREATEST - 1, depth=2, low=2)]
        ref = Ref(id="ada", family=family, version=GREATEST - 1, tip=GREATEST, head=GREATEST - 1)
        assert self.store.put(ref, None, nodes)
        assert self.store.walk(family, GREATEST, 0) == nodes
        assert self.store.walk(family, GREATEST - 1, 1) == nodes[1:2]
        assert self.store.nodes(family, [GREATEST - 1]) == {GREATEST - 1: nodes[1]}
        assert self.store.relatives(family - 1) == []
        assert not self.store.put(rewritten(ref, version=1), GREATEST)
        assert not self.store.put(rewritten(ref, version=1), GREATEST - 2)
        assert self.store.ref("ada") == ref
        assert self.store.put(rewritten(ref, tip=GREATEST - 1, version=GREATEST), GREATEST - 1)
        assert self.store.vacuum() in (0, 1)  # a store may delete as it writes
        assert self.keys(family, nodes) == {GREATEST - 2, GREATEST - 1}

    def test_large_and_empty_payloads(self) -> None:
        """Bytes are bytes."""
        large = bytes(range(256)) * 4_096
        family = new_key()
        first = chain(family, 1, payload=b"")
        second = chain(family, 1, first[-1], payload=large)
        ref = ref_to("ada", first + second, body=large)
        assert self.store.put(ref, None, first + second)
        assert self.store.walk(family, second[-1].key, 0) == first + second
        assert self.store.ref("ada") == ref
        assert self.store.totals().bytes == 2 * len(large)

    def test_metadata_keeps_its_types(self) -> None:
        """As JSON has them: 1, 1.0 and true are three things."""
        self.session("ada", 1, metadata=METADATA)
        found = self.store.ref("ada")
        assert found is not None
        assert json.dumps(found.metadata, sort_keys=True) == json.dumps(METADATA, sort_keys=True)

    def test_metadata_is_a_copy(self) -> None:
        """What a caller changes in a dict of its own changes nothing stored."""
        given: dict[str, Any] = {"tags": ["a"]}
        ref, _ = self.session("ada", 1, metadata=given)
        given["tags"].append("b")
        for read in (
            self.store.ref("ada"),
            self.store.refs(ListQuery())[0],
            self.store.relatives(ref.family)[0],
        ):
            assert read is not None
            assert read.metadata == {"tags": ["a"]}
            read.metadata["tags"].append("c")
        found = self.store.ref("ada")
        assert found is not None
        assert found.metadata == {"tags": ["a"]}
        assert self.listed(metadata={"tags": "a"}) == ["ada"]
        assert self.listed(metadata={"tags": "c"}) == []
