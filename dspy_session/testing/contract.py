"""The contract of stores, as a class of tests: what `dspy_session.stores.base.Store` promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dspy_session.stores.base import Store
from dspy_session.testing.contract_cases import StoreCases
from dspy_session.testing.contract_damage import DamageCases
from dspy_session.testing.contract_deletion import DeletionCases
from dspy_session.testing.contract_handles import HandleCases, RacingHandleCases
from dspy_session.testing.contract_lists import ListCases
from dspy_session.testing.contract_reads import ReadCases
from dspy_session.testing.contract_threads import ThreadCases
from dspy_session.testing.contract_values import ValueCases
from dspy_session.testing.contract_writes import WriteCases

__all__ = ["store_contract"]


def store_contract(
    factory: Callable[[], Store],
    *,
    reopen: Callable[[Any], Store] | None = None,
    racing_handles: bool = True,
    damage: Callable[[Any, str], object] | None = None,
) -> type[StoreCases]:
    """Return the tests that every store passes, as a class for pytest to collect.

    Give it a name that begins with `Test`. To see the values in an assertion that fails, call
    `pytest.register_assert_rewrite("dspy_session.testing")` before this package is imported.

    Args:
        factory: Returns a new, empty store, each time that it is called; the tests close it.
        reopen: From a store, which may be closed, to a second handle on the same data. With it the
            tests look whether what was written is there.
        racing_handles: Whether several handles may write the same session at the same time.
        damage: Breaks what is stored of the session with an id, behind the back of the store that
            it is given, so that the session's ref cannot be read. With it the tests look whether
            that is in the way of anything else.

    Example:
        >>> from dspy_session.stores.memory import MemoryStore
        >>> TestMemoryStore = store_contract(MemoryStore)
        >>> TestMemoryStore.__name__
        'StoreContract'
    """
    parts: list[type[StoreCases]] = [
        WriteCases,
        ReadCases,
        ValueCases,
        ListCases,
        DeletionCases,
        ThreadCases,
    ]
    if reopen is not None:
        parts += [HandleCases, RacingHandleCases] if racing_handles else [HandleCases]
    if damage is not None:
        parts.append(DamageCases)
    members = {
        "__doc__": "The contract of stores.",
        "make": staticmethod(factory),
        "reopen": reopen and staticmethod(reopen),
        "damage": damage and staticmethod(damage),
    }
    return type("StoreContract", tuple(parts), members)
