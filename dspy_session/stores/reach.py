"""Which nodes of a family its refs reach: what must stay when something is deleted.

A ref reaches the nodes of its chain down to its first, and the stretches that it and those nodes
link to. A node also *shows* nodes of its chain that are older than the session's first (a turn saw
them before they were trimmed): those stay with what they link to, and what they show goes.

Where it cannot be known what is reached, because something is damaged, all must stay.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable, Mapping

import msgspec

from dspy_session.errors import FormatError
from dspy_session.stores.records import DamagedRef, Ref, Span

__all__ = ["Bone", "note_kept", "unknown", "unreached"]

_log = logging.getLogger(__name__)


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

    Raises:
        FormatError: It cannot be known: a ref is damaged, or nodes are gone that it needs.
    """
    spans: list[tuple[int, int]] = []  # the deepest first: others end where they meet it
    for ref in refs:
        if isinstance(ref, DamagedRef):
            raise unknown(f"session {ref.id!r} is damaged")
        _push(spans, ref.links if ref.tip is None else (Span(ref.tip, ref.first), *ref.links))
    reached: dict[int, int] = {}  # by key, the lowest floor with which it was come to
    shown: dict[int, int] = {}  # by key, down to which depth those before it are shown
    while spans:
        floor, key = heapq.heappop(spans)
        low, bone, depth = floor, bones.get(key), floor + 1
        while bone is not None and bone.depth >= floor:
            if reached.get(bone.key, bone.depth + 1) <= floor:
                break
            if bone.key not in reached and bone.key not in shown:
                _push(spans, bone.links)
            reached[bone.key] = floor
            depth = bone.depth
            low = min(low, bone.low)
            bone = _parent(bone, bones)
        if bone is None and depth > floor:
            raise unknown(f"the turns {floor} to {_last(key, bones)} are not all there")
        while bone is not None and bone.depth >= low < shown.get(bone.key, bone.depth + 1):
            if bone.key not in shown and bone.key not in reached:
                _push(spans, bone.links)
            shown[bone.key] = low
            bone = _parent(bone, bones)
    return bones.keys() - reached.keys() - shown.keys()


def note_kept(error: FormatError) -> None:
    """Say in the log that nodes stay which nobody may need.

    Args:
        error: Why.
    """
    _log.warning("Turns were not deleted, though they may be needed no more: %s", error)


def _last(key: int, bones: Mapping[int, Bone]) -> int | str:
    return bones[key].depth if key in bones else "the last"


def unknown(what: str) -> FormatError:
    """Return the error that says that it is not known what is reached.

    Args:
        what: Why.
    """
    return FormatError(
        f"{what}, so what is needed cannot be told. verify() says what is wrong with a session: "
        "restore it from a backup, or delete it."
    )


def _push(spans: list[tuple[int, int]], new: Iterable[Span]) -> None:
    for span in new:
        heapq.heappush(spans, (span.floor, span.key))


def _parent(bone: Bone, bones: Mapping[int, Bone]) -> Bone | None:
    return None if bone.parent is None else bones.get(bone.parent)
