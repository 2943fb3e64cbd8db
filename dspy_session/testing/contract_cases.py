"""What the parts of the store contract have in common."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from dspy_session.stores.base import Store
from dspy_session.stores.records import ListQuery, Node, Ref, Totals, new_key

__all__ = ["NOTHING", "StoreCases", "chain", "in_threads", "raises", "ref_to", "rewritten"]

NOTHING = Totals(0, 0, 0)


def chain(
    family: int, count: int, after: Node | None = None, first: int = 0, **fields: Any
) -> list[Node]:
    """Return nodes that follow each other.

    Args:
        family: Their family.
        count: How many.
        after: The node that the first of them follows.
        first: The depth of the first, if it follows none.
        fields: More fields, the same for each.
    """
    nodes: list[Node] = []
    for _ in range(count):
        depth = first if after is None else after.depth + 1
        values: dict[str, Any] = {"low": depth, "payload": b"%d" % depth} | fields
        after = Node(
            key=new_key(),
            family=family,
            parent=None if after is None else after.key,
            depth=depth,
            **values,
        )
        nodes.append(after)
    return nodes


def ref_to(id: str, nodes: Sequence[Node], **fields: Any) -> Ref:
    """Return a ref that reaches nodes which follow each other.

    Args:
        id: The session's id.
        nodes: The nodes.
        fields: Other fields.
    """
    tip = nodes[-1]
    values: dict[str, Any] = {
        "tip": tip.key,
        "head": tip.key,
        "first": nodes[0].depth,
        "stop": tip.depth + 1,
        "end": tip.depth + 1,
    }
    return Ref(id=id, family=tip.family, version=new_key(), **(values | fields))


def rewritten(ref: Ref, **fields: Any) -> Ref:
    """Return a ref as the next write of it would have it.

    Args:
        ref: The ref.
        fields: What is to be different, besides the version.
    """
    return msgspec.structs.replace(ref, **{"version": new_key(), **fields})


def raises(kind: type[Exception], function: Callable[[], object]) -> None:
    """Check that a call raises an error.

    Args:
        kind: Of which kind.
        function: Called without arguments.

    Raises:
        AssertionError: It did not.
    """
    try:
        function()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} was raised")


def in_threads(functions: Iterable[Callable[[], object]]) -> None:
    """Run functions side by side, one thread for each, and raise the first error of any.

    Args:
        functions: The functions.
    """
    functions = list(functions)
    errors: list[BaseException] = []
    together = threading.Barrier(len(functions))

    def run(function: Callable[[], object]) -> None:
        try:
            together.wait()
            function()
        except BaseException as error:  # noqa: BLE001  # raised again, by the thread that waits
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that they meet in the middle of things
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]


class StoreCases:
    """A part of the contract: each test has a new, empty store."""

    make: Callable[[], Store]
    reopen: Callable[[Any], Store]

    @functools.cached_property
    def store(self) -> Store:
        """The store, made when the test first asks for it: after pytest's fixtures."""
        return self.make()

    def teardown_method(self) -> None:
        """Close the store."""
        self.store.close()

    def session(self, id: str, count: int, **fields: Any) -> tuple[Ref, list[Node]]:
        """Store a session of a family of its own; return its ref and nodes.

        Args:
            id: Its id.
            count: How many nodes it has.
            fields: Fields of the ref.
        """
        nodes = chain(new_key(), count)
        ref = ref_to(id, nodes, **fields)
        assert self.store.put(ref, None, nodes)
        return ref, nodes

    def keys(self, family: int, nodes: Iterable[Node]) -> set[int]:
        """Return the keys of those nodes that the store has.

        Args:
            family: The family in which to look.
            nodes: The nodes.
        """
        return set(self.store.nodes(family, [node.key for node in nodes]))

    def listed(self, **fields: Any) -> list[str]:
        """Return the ids that a query finds.

        Args:
            fields: The fields of the query.
        """
        return [ref.id for ref in self.store.refs(ListQuery(**fields))]
