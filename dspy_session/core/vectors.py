"""Persistent vectors whose versions share structure, and that Python's collector understands.

pyrsistent's C extension tells the garbage collector of shared elements once for each vector instead
of once for each reference (pyrsistent issue 283). When several versions of a vector become garbage
at once, the collector then takes an element for garbage that somebody still holds, and empties it;
and looking through n versions takes it n times as long. pyrsistent's vectors in pure Python have
neither fault, so these are used, whether or not the extension is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice, takewhile
from typing import Any, Final, Protocol, TypeVar

from pyrsistent import PVector
from pyrsistent import _pvector as _implementation

__all__ = [
    "Older",
    "PVector",
    "deferred",
    "differing",
    "holds",
    "is_same",
    "older_part",
    "stretch",
    "unread",
    "vector",
]

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


class Older(Protocol):
    """The older part of a vector, which is somewhere else until somebody looks at it."""

    def __len__(self) -> int:
        """How many items it has; this needs no look."""
        ...

    def items(self) -> PVector[Any]:
        """Return the items, the very same ones each time."""
        ...

    @property
    def is_read(self) -> bool:
        """Whether somebody looked; until then nobody else has one of the items."""
        ...


class _Deferred:
    """A vector whose older part is fetched when an item of it is first looked at.

    It does what the other vectors do, as far as states and windows ask for it. Versions of it share
    the older part.
    """

    __slots__ = ("__weakref__", "_count", "_older", "_rest")

    def __init__(self, older: Older, rest: PVector[Any]) -> None:
        self._older, self._rest, self._count = older, rest, len(older)

    def whole(self) -> PVector[Any]:
        """The same items in a vector that has them all."""
        return self._older.items().extend(self._rest)

    def __len__(self) -> int:
        return self._count + len(self._rest)

    def __getitem__(self, position: int) -> Any:
        if position < 0:
            position += len(self)
        if position >= self._count:
            return self._rest[position - self._count]
        return self._older.items()[position]

    def __iter__(self) -> Iterator[Any]:
        return chain(self._older.items(), self._rest)

    def append(self, item: Any) -> _Deferred:
        return _Deferred(self._older, self._rest.append(item))

    def set(self, position: int, item: Any) -> Any:
        if position >= self._count:
            return _Deferred(self._older, self._rest.set(position - self._count, item))
        return self.whole().set(position, item)

    def evolver(self) -> Any:
        return self.whole().evolver()


_deferred: Final[Any] = _Deferred  # it passes for a vector


def deferred(older: Older, rest: PVector[_Item]) -> PVector[_Item]:
    """Return a persistent vector whose older part is fetched when it is first looked at.

    Args:
        older: The older part.
        rest: What comes after it.
    """
    made: PVector[_Item] = _deferred(older, rest)
    return made


def older_part(items: PVector[Any]) -> Older | None:
    """Return the part of a vector that is fetched when it is looked at, if it has one.

    Args:
        items: A vector.
    """
    whichever: Any = items  # a type checker knows the vectors of pyrsistent only
    return whichever._older if isinstance(whichever, _Deferred) else None


def stretch(items: PVector[_Item], start: int, stop: int) -> Iterator[_Item]:
    """Go through a part of a vector, without a look at what comes before it.

    Args:
        items: A vector.
        start: The position of the first item.
        stop: The position after the last.
    """
    whichever: Any = items
    if isinstance(whichever, _Deferred) and start >= whichever._count:
        start, stop, whichever = start - whichever._count, stop - whichever._count, whichever._rest
    return islice(iter(whichever), start, stop)


def is_same(one: PVector[_Item], at: int, other: PVector[_Item], there: int) -> bool:
    """Whether two vectors hold one object; nothing is fetched, for nobody has what was not read.

    Args:
        one: A vector.
        at: A position in it.
        other: Another vector.
        there: A position in that.
    """
    return unread(one) <= at and holds(other, there, one[at])


def holds(items: PVector[_Item], at: int, item: _Item) -> bool:
    """Whether a vector holds an object at a position; as `is_same`, this fetches nothing.

    Args:
        items: The vector.
        at: The position.
        item: The object.
    """
    return unread(items) <= at and items[at] is item


def unread(items: PVector[Any]) -> int:
    """Return how many items at the beginning of a vector nobody has looked at yet.

    Args:
        items: The vector.
    """
    older = older_part(items)
    return 0 if older is None or older.is_read else len(older)


def differing(
    one: PVector[_Item], other: PVector[_Item], stop: int, *, fetch: bool = True
) -> Iterator[int]:
    """Yield the positions at which two vectors hold different objects, in ascending order.

    Parts that both share are skipped whole: the cost is that of the changes which lie between two
    versions of a vector, not that of its length.

    Args:
        one: A vector.
        other: Another vector, or another version of it.
        stop: The position to stop before; both are at least as long.
        fetch: Whether what nobody has looked at yet is fetched, to be compared; otherwise it
            differs from whatever another vector has.

    Example:
        >>> one = vector(range(100))
        >>> list(differing(one, one.set(70, "new").append(100), 100))
        [70]
    """
    left: Any = one
    right: Any = other
    shared = 0
    if isinstance(left, _Deferred) or isinstance(right, _Deferred):
        if older_part(left) is older_part(right):
            left, right, shared = left._rest, right._rest, left._count
        elif not fetch and (unread(left) or unread(right)):
            yield from (at for at in range(stop) if not is_same(left, at, right, at))
            return
        else:
            left, right = _whole(left), _whole(right)
    for position in _compared(left, right, stop - shared):
        yield position + shared


def _whole(items: Any) -> Any:
    return items.whole() if isinstance(items, _Deferred) else items


def _compared(left: Any, right: Any, stop: int) -> Iterator[int]:
    low, high = (left, right) if left._shift <= right._shift else (right, left)
    node = high._root
    for _ in range(low._shift, high._shift, _implementation.SHIFT):
        node = node[0]  # what the lower tree can hold is in the first branch of the higher one
    end = min(left._tail_offset, right._tail_offset)
    unlike = () if low._root is node else _unlike(low._root, node, low._shift, 0)
    for position in unlike:
        if position >= min(end, stop):
            break
        yield position
    if left._tail_offset == right._tail_offset:
        tails = zip(left._tail, right._tail, strict=False)
        differ = (at for at, (mine, theirs) in enumerate(tails, end) if mine is not theirs)
        yield from takewhile(lambda at: at < stop, differ)
    else:
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
