"""Which nodes of a family its refs reach: what must stay when something is deleted.

A ref reaches the nodes of its chain down to its first, and the stretches that it and those nodes
link to. A node also *shows* nodes of its chain that are older than the session's first (a turn saw
them before they were trimmed): those stay with what they link to, and what they show goes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

import msgspec

from dspy_session.stores.records import Ref, Span

__all__ = ["Bone", "unreached"]


class Bone(msgspec.Struct, frozen=True):
    """What is needed of a node to know what it reaches; see `Node`."""

    key: int
    parent: int | None
    depth: int
    low: int
    links: tuple[Span, ...] = ()


def unreached(refs: Iterable[Ref], bones: Mapping[int, Bone]) -> set[int]:
    """Return the keys of the nodes that no ref reaches; it costs about one look at each node.

    Args:
        refs: All refs of a family.
        bones: All nodes of the family, by key.
    """
    spans: list[tuple[int, int]] = []  # the deepest first: others end where they meet it
    for ref in refs:
        _push(spans, ref.links if ref.tip is None else (Span(ref.tip, ref.first), *ref.links))
    reached: dict[int, int] = {}  # by key, the lowest floor with which it was come to
    shown: dict[int, int] = {}  # by key, down to which depth those before it are shown
    while spans:
        floor, key = heapq.heappop(spans)
        low, bone = floor, bones.get(key)
        while bone is not None and bone.depth >= floor:
            if reached.get(bone.key, bone.depth + 1) <= floor:
                break
            if bone.key not in reached and bone.key not in shown:
                _push(spans, bone.links)
            reached[bone.key] = floor
            low = min(low, bone.low)
            bone = _parent(bone, bones)
        while bone is not None and bone.depth >= low < shown.get(bone.key, bone.depth + 1):
            if bone.key not in shown and bone.key not in reached:
                _push(spans, bone.links)
            shown[bone.key] = low
            bone = _parent(bone, bones)
    return bones.keys() - reached.keys() - shown.keys()


def _push(spans: list[tuple[int, int]], new: Iterable[Span]) -> None:
    for span in new:
        heapq.heappush(spans, (span.floor, span.key))


def _parent(bone: Bone, bones: Mapping[int, Bone]) -> Bone | None:
    return None if bone.parent is None else bones.get(bone.parent)
