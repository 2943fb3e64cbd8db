"""Persistent vectors whose versions share structure, and that Python's collector understands.

pyrsistent's C extension tells the garbage collector of shared elements once for each vector instead
of once for each reference (pyrsistent issue 283). When several versions of a vector become garbage
at once, the collector then takes an element for garbage that somebody still holds, and empties it;
and looking through n versions takes it n times as long. pyrsistent's vectors in pure Python have
neither fault, so these are used, whether or not the extension is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

from pyrsistent import PVector
from pyrsistent import _pvector as _implementation

__all__ = ["PVector", "differing", "vector"]

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


def differing(one: PVector[_Item], other: PVector[_Item], stop: int) -> Iterator[int]:
    """Yield the positions at which two vectors hold different objects, in ascending order.

    Parts that both share are skipped whole: the cost is that of the changes which lie between two
    versions of a vector, not that of its length.

    Args:
        one: A vector.
        other: Another vector, or another version of it.
        stop: The position to stop before; both are at least as long.

    Example:
        >>> one = vector(range(100))
        >>> list(differing(one, one.set(70, "new").append(100), 100))
        [70]
    """
    left: Any = one
    right: Any = other
    low, high = sorted((left, right), key=lambda each: each._shift)
    node = high._root
    for _ in range(low._shift, high._shift, _implementation.SHIFT):
        node = node[0]  # what the lower tree can hold is in the first branch of the higher one
    end = min(left._tail_offset, right._tail_offset)
    for position in _unlike(low._root, node, low._shift, 0):
        if position >= min(end, stop):
            break
        yield position
    yield from (at for at in range(end, stop) if left[at] is not right[at])


def _unlike(one: Any, other: Any, shift: int, start: int) -> Iterator[int]:
    """The same for two nodes of the same height whose first position is `start`."""
    for number, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine is theirs:
            continue
        at = start + (number << shift)
        if shift:
            yield from _unlike(mine, theirs, shift - _implementation.SHIFT, at)
        else:
            yield at
