"""The store contract: refs are found by what they are, page by page."""

from __future__ import annotations

from typing import Any

from dspy_session.stores.records import ListQuery
from dspy_session.testing.contract_cases import StoreCases, rewritten

__all__ = ["ListCases"]


class ListCases(StoreCases):
    """Orders, pages and metadata."""

    def test_orders(self) -> None:
        """By time or id; equal ones by id; descending is ascending turned round."""
        times = {"c": (1.0, 30.5), "a": (3.0, 20.0), "d": (2.0, 20.0), "b": (2.0, 20.25)}
        for id, (created, updated) in times.items():
            self.session(id, 1, created=created, updated=updated)
        for order, wanted in (("updated", "adbc"), ("created", "cbda"), ("id", "abcd")):
            assert self.listed(order=order, descending=False) == list(wanted)
            assert self.listed(order=order) == list(wanted[::-1])
        assert self.listed() == list("cbda")

    def test_a_write_changes_the_order(self) -> None:
        """The newest value counts."""
        refs = [self.session(id, 1, updated=float(n))[0] for n, id in enumerate("abc")]
        assert self.store.put(rewritten(refs[0], updated=10.5), refs[0].version)
        assert self.listed() == ["a", "c", "b"]
        assert self.store.delete("c")
        assert self.listed() == ["a", "b"]

    def test_pages(self) -> None:
        """Each ref is on one page, whatever the order."""
        ids = [f"{n:02}" for n in range(23)]
        for n, id in enumerate(ids):
            self.session(id, 1, updated=float(n // 5), metadata={"even": n % 2 == 0})
        for query in ({}, {"descending": False}, {"order": "id"}, {"metadata": {"even": True}}):
            fields: dict[str, Any] = dict(query)
            whole = self.listed(**fields)
            pages = [self.listed(limit=7, offset=offset, **fields) for offset in range(0, 28, 7)]
            assert [id for page in pages for id in page] == whole
            assert self.listed(offset=3, **fields) == whole[3:]
            assert self.listed(limit=2, **fields) == whole[:2]
            assert self.store.count(ListQuery(limit=2, offset=1, **fields)) == len(whole)
        assert self.listed(limit=0) == []
        assert self.listed(offset=100) == []
        assert self.listed(limit=100, offset=20, order="id", descending=False) == ids[20:]

    def test_metadata(self) -> None:
        """An equal JSON value, or a list that holds it."""
        values: dict[str, Any] = {
            "text": "tea",
            "list": ["tea", 7, None],
            "nested": {"b": [1, {"x": None}], "a": "tea"},
            "nests": [{"b": 1, "a": 2}, ["tea"]],
            "one": 1,
            "true": True,
            "none": None,
            "empty": "",
            "odd": "it's 🙂 100%_\0\"",
            "no list": [],
        }
        for id, value in values.items():
            self.session(id, 1, metadata={"value": value, "other": "tea"})
        self.session("without", 1)

        def found(value: Any) -> set[str]:
            query = ListQuery(metadata={"value": value})
            ids = self.listed(metadata={"value": value})
            assert len(ids) == self.store.count(query)
            return set(ids)

        assert found("tea") == {"text", "list"}
        assert found(7) == {"list"}
        assert found(None) == {"none", "list"}
        assert found(["tea", 7, None]) == {"list"}
        assert found(["tea"]) == {"nests"}
        assert found({"a": "tea", "b": [1, {"x": None}]}) == {"nested"}
        assert found({"a": 2, "b": 1}) == {"nests"}
        assert found({"a": 2}) == set()
        assert found(1) == {"one"}
        assert found(True) == {"true"}
        assert found("") == {"empty"}
        assert found([]) == {"no list"}
        assert found("it's 🙂 100%_\0\"") == {"odd"}
        assert found("it's 🙂 100%_\0") == set()
        assert found("te%") == set()

    def test_several_values(self) -> None:
        """All of them must be there, each under its key."""
        self.session("ada", 1, metadata={"user": "ada", "tags": ["a", "b"], "": 1})
        self.session("bob", 1, metadata={"user": "bob", "tags": ["a"], "ada": "user"})
        assert self.listed(metadata={"tags": "a"}, order="id", descending=False) == ["ada", "bob"]
        assert self.listed(metadata={"tags": "a", "user": "bob"}) == ["bob"]
        assert self.listed(metadata={"tags": "b", "user": "bob"}) == []
        assert self.listed(metadata={"": 1}) == ["ada"]
        assert self.listed(metadata={"nobody's": 1}) == []
        assert self.listed(metadata={"user": "user"}) == []

    def test_metadata_that_changes(self) -> None:
        """What was there before is not found any more."""
        ref, _ = self.session("ada", 1, metadata={"state": "open", "tags": ["a", "b"]})
        newer = rewritten(ref, metadata={"state": "closed", "tags": ["b"]})
        assert self.store.put(newer, ref.version)
        for wanted, ids in (
            ({"state": "open"}, []),
            ({"tags": "a"}, []),
            ({"state": "closed", "tags": "b"}, ["ada"]),
        ):
            assert self.listed(metadata=wanted) == ids
        assert self.store.delete("ada")
        for state in ("open", "closed"):
            assert self.listed(metadata={"state": state}) == []
        assert self.store.count(ListQuery(metadata={"state": "closed"})) == 0
        self.session("ada", 1)
        assert self.listed(metadata={"state": "closed"}) == []

    def test_long_values_that_begin_alike(self) -> None:
        """What an index cuts is compared whole, before pages are counted."""
        for n in range(6):
            text = "long " * 100 + str(n % 2)
            self.session(str(n), 1, updated=float(n), metadata={"text": text, "list": [text]})
        for key in ("text", "list"):
            wanted = {key: "long " * 100 + "1"}
            assert self.listed(metadata=wanted) == ["5", "3", "1"]
            assert self.listed(metadata=wanted, limit=1, offset=1) == ["3"]
            assert self.listed(metadata=wanted, limit=2, descending=False) == ["1", "3"]
            assert self.store.count(ListQuery(metadata=wanted)) == 3
        assert self.listed(metadata={"text": "long " * 100}) == []
