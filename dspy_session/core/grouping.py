"""Things that must stay together, and parts of wanted sizes made of them.

Laws:

- `connected`: two things are in one group if and only if a chain of shared keys leads from one to
  the other.
- `allotted`: every part has a group, and no exchange of groups between two parts brings the sizes
  of the two nearer to the wanted ones. Of two parts, that is as near as the groups allow.

Nothing here is random: who wants chance puts the groups in a random order.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations

__all__ = ["allotted", "connected"]


def connected(keys: Iterable[Iterable[Hashable]]) -> list[list[int]]:
    """Return groups of things that share keys, directly or by way of others.

    Args:
        keys: For each thing its keys.

    Returns:
        The groups, by the positions of the things; each in ascending order, and by its first.

    Example:
        >>> connected([["a"], ["b"], ["a", "c"], []])
        [[0, 2], [1], [3]]
    """
    roots: list[int] = []
    known: dict[Hashable, int] = {}
    for thing, its in enumerate(keys):
        roots.append(thing)
        for key in its:
            one, other = _root(roots, thing), _root(roots, known.setdefault(key, thing))
            roots[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = {}
    for thing in range(len(roots)):
        groups.setdefault(_root(roots, thing), []).append(thing)
    return list(groups.values())


def _root(roots: list[int], thing: int) -> int:
    while roots[thing] != thing:
        roots[thing] = roots[roots[thing]]
        thing = roots[thing]
    return thing


def allotted(sizes: Sequence[int], wanted: Sequence[int]) -> list[list[int]]:
    """Return groups dealt out to parts, so that the parts come near to the wanted sizes.

    Args:
        sizes: The size of each group, at least 1; their order decides where they could go to more
            than one part.
        wanted: The wanted size of each part. There are at least as many groups as parts.

    Returns:
        For each part the positions of its groups, in ascending order.

    Example:
        >>> allotted([3, 3, 2, 2, 2], [6, 6])
        [[0, 1], [2, 3, 4]]
    """
    parts: list[list[int]] = [[group] for group in range(len(wanted))]
    short = [want - sizes[part] for part, want in enumerate(wanted)]
    for group in range(len(parts), len(sizes)):
        part = max(range(len(short)), key=short.__getitem__)
        parts[part].append(group)
        short[part] -= sizes[group]
    better = any(short)
    while better:
        better = False
        for one, other in combinations(range(len(parts)), 2):
            better |= _exchange(sizes, parts, short, one, other)
    return parts


def _exchange(
    sizes: Sequence[int], parts: list[list[int]], short: list[int], one: int, other: int
) -> bool:
    """Deal the groups of two parts out anew, if both together come nearer by that."""
    missing = abs(short[one]) + abs(short[other])
    if missing == abs(short[one] + short[other]):  # no exchange changes the sum
        return False
    pool = sorted(parts[one] + parts[other])
    amounts = [sizes[group] for group in pool]
    want = short[one] + sum(sizes[group] for group in parts[one])
    rest = sum(amounts) - (short[other] + sum(sizes[group] for group in parts[other]))
    low, high = sorted((want, rest))
    taken = _nearest(amounts, low, high)
    amount = sum(amounts[at] for at in taken)
    now = want - amount, amount - rest
    if abs(now[0]) + abs(now[1]) >= missing:
        return False
    parts[one] = [pool[at] for at in sorted(taken)]
    parts[other] = [group for at, group in enumerate(pool) if at not in taken]
    short[one], short[other] = now
    return True


def _nearest(amounts: Sequence[int], low: int, high: int) -> set[int]:
    """Some of the amounts, but not all and not none, whose sum comes nearest to a stretch.

    `sums[n]` has a bit for each sum that the first n amounts can make.
    """
    total = sum(amounts)
    low, high = (min(max(edge, 1), total - 1) for edge in (low, high))
    if low + high > total:  # what is left over is the smaller part
        return set(range(len(amounts))) - _nearest(amounts, total - high, total - low)
    sums = [1]
    for amount in amounts:
        sums.append(sums[-1] | sums[-1] << amount)
        if sums[-1] >> low & (1 << high - low + 1) - 1:
            break
    made = (at for at, bit in enumerate(reversed(f"{sums[-1]:b}")) if bit == "1" and 0 < at < total)
    left = min(made, key=lambda at: max(low - at, at - high, 0))
    taken = set()
    for at in range(len(sums) - 2, -1, -1):
        if not sums[at] >> left & 1:
            taken.add(at)
            left -= amounts[at]
    return taken
