"""The store contract: a session whose ref cannot be read is in the way of nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from dspy_session.errors import FormatError
from dspy_session.stores.records import DamagedRef, ListQuery, Node, Ref, new_key
from dspy_session.testing.contract_cases import NOTHING, StoreCases, chain, ref_to, rewritten

__all__ = ["DamageCases"]


class DamageCases(StoreCases):
    """One session is damaged; see `store_contract`."""

    damage: Callable[[Any, str], object]

    def family(self) -> tuple[dict[str, Ref], list[Node]]:
        """Store three sessions: one that is damaged, its fork, and one that knows neither.

        Returns:
            Their refs as they were written, by id; and the nodes of the first, of which the fork
            has the first two.
        """
        ref, nodes = self.session("broken", 4, metadata={"user": "ada"})
        fork = ref_to("fork", nodes[:2], origin="broken")
        assert self.store.put(fork, None)
        other, _ = self.session("other", 2)
        self.damage(self.store, "broken")
        return {"broken": ref, "fork": fork, "other": other}, nodes

    def test_it_is_named_where_it_stands(self) -> None:
        """By its id, in lists too, and with what is wrong; the others are what they were."""
        refs, nodes = self.family()
        found = self.store.ref("broken")
        assert isinstance(found, DamagedRef)
        assert found.id == "broken"
        assert found.damaged
        for order in ("id", "created", "updated"):
            for descending in (True, False):
                query = ListQuery(order=order, descending=descending)
                listed = {each.id: each for each in self.store.refs(query)}
                assert isinstance(listed["broken"], DamagedRef)
                assert {**listed, "broken": refs["broken"]} == refs
        pages = [self.store.refs(ListQuery(limit=1, offset=offset)) for offset in range(4)]
        assert sorted(each.id for page in pages for each in page) == sorted(refs)
        assert self.store.count(ListQuery()) == 3
        assert self.store.totals().sessions == 3
        assert self.store.ref("fork") == refs["fork"]
        assert self.store.walk(refs["fork"].family, nodes[1].key, 0) == nodes[:2]

    def test_its_relatives_are_found(self) -> None:
        """They can be read and go on, and so can others."""
        refs, nodes = self.family()
        family = refs["fork"].family
        assert refs["fork"] in self.store.relatives(family)
        more = chain(family, 1, nodes[1], label="more")
        longer = ref_to("fork", [*nodes[:2], *more])
        assert self.store.put(longer, refs["fork"].version, more)
        assert self.store.walk(family, more[0].key, 0) == [*nodes[:2], *more]
        assert self.store.labelled(family, "more") == more
        assert self.store.put(rewritten(refs["other"]), refs["other"].version)
        self.session("new", 2)

    def test_its_id_is_taken(self) -> None:
        """Until it is deleted."""
        self.family()
        nodes = chain(new_key(), 1)
        with contextlib.suppress(FormatError):
            assert not self.store.put(ref_to("broken", nodes), None, nodes)
        assert isinstance(self.store.ref("broken"), DamagedRef)
        assert self.keys(nodes[0].family, nodes) == set()

    def test_what_it_may_need_stays(self) -> None:
        """When others are deleted, and when it is cleaned; what it cannot need goes."""
        refs, nodes = self.family()
        other, others = self.session("trimmed", 3)
        shorter = rewritten(other, first=2)
        assert self.store.put(shorter, other.version)
        broken = self.store.ref("broken")
        before = self.keys(refs["fork"].family, nodes)
        self.store.vacuum()
        assert self.keys(refs["fork"].family, nodes) == before
        assert self.store.delete("fork")
        self.store.vacuum()
        if len(before) == len(nodes):  # else they are a part of what is damaged
            assert self.keys(refs["fork"].family, nodes) == before
        assert self.keys(other.family, others) == {others[2].key}
        assert self.store.ref("broken") == broken
        assert self.store.ref("other") == refs["other"]

    def test_it_can_be_deleted(self) -> None:
        """With what nobody else reaches; its id is free again then."""
        refs, nodes = self.family()
        assert not self.store.delete("broken", new_key())
        assert isinstance(self.store.ref("broken"), DamagedRef)
        assert self.store.delete("broken")
        assert not self.store.delete("broken")
        assert self.store.ref("broken") is None
        self.store.vacuum()
        family = refs["fork"].family
        assert self.keys(family, nodes) == {node.key for node in nodes[:2]}
        assert self.store.relatives(family) == [refs["fork"]]
        assert self.store.count(ListQuery()) == 2
        assert self.listed(metadata={"user": "ada"}) == []
        self.session("broken", 1)
        for id in ("broken", "fork", "other"):
            assert self.store.delete(id)
        assert self.store.totals() == NOTHING
