"""Persistent vectors whose versions share structure, and that Python's collector understands.

pyrsistent's C extension tells the garbage collector of shared elements once for each vector instead
of once for each reference (pyrsistent issue 283). When several versions of a vector become garbage
at once, the collector then takes an element for garbage that somebody still holds, and empties it;
and looking through n versions takes it n times as long. pyrsistent's vectors in pure Python have
neither fault, so these are used, whether or not the extension is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeVar

from pyrsistent import PVector
from pyrsistent import _pvector as _implementation

__all__ = ["PVector", "vector"]

_Item = TypeVar("_Item")

_make: Final[Any] = _implementation.python_pvector


def vector(items: Iterable[_Item] = ()) -> PVector[_Item]:
    """Return a persistent vector of these items.

    Args:
        items: Any items.

    Example:
        >>> one = vector([1, 2])
        >>> one.append(3)[2], len(one)
        (3, 2)
    """
    made: PVector[_Item] = _make(items)
    return made
