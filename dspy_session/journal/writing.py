"""From a state to nodes: those that are new since another state of the conversation was written.

Where a vector of turns parts from one that is stored, new nodes begin; persistent vectors tell that
without being gone through. So appending a turn writes one node, whatever the length; undo, redo and
forks write none; another score or other outputs for a turn write it and those after it once more,
without their fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from dspy_session.core.data import EMPTY_DATA, Data
from dspy_session.core.profile import NO_PROFILE, Profile
from dspy_session.core.state import SessionState
from dspy_session.core.turn import Beside, Run, Turn
from dspy_session.core.values import REGISTERED, ValueCodecs, to_plain
from dspy_session.core.vectors import holds, is_same, stretch, vector
from dspy_session.core.window import ALL_SHOWN, ERASED, Exchange, View, Window
from dspy_session.journal.chains import Chain, Mark, agrees, longest_common, stored_newest
from dspy_session.journal.payloads import (
    StoredBeside,
    StoredOwn,
    StoredSeed,
    StoredState,
    StoredTurn,
    about_node,
    closed,
    encoded,
    is_plain,
)
from dspy_session.journal.sealing import Seal
from dspy_session.parts import fields_to_wire, profile_to_wire, run_to_wire
from dspy_session.stores.records import Node, Span, new_key
from dspy_session.wire import WireExchange, WireProfile, WireView

__all__ = ["Seed", "Writing", "content_hash", "data_parts"]

_LONGEST_DIFFERENCE: Final = 64
"""After how many turns at most it is said whole what stands beside one."""
_SMALL: Final = 128
"""How many bytes what stands beside a turn may have to be said whole each time."""

Seed = tuple[tuple[Exchange, ...], int]
"""A seed and the key of its node."""


class Writing:
    """The new nodes of one write, and what they build on.

    Args:
        family: The family that they are to belong to.
        chains: The turns that are stored already.
        seeds: The seeds that are.
        codecs: Writes values of types beyond plain data.
        seal: Compresses and encrypts.
        now: The time, for turns that have none.
        trusted: The chain whose nodes are there for sure, if there is one.
        anew: Whether to build on nothing else.

    Attributes:
        nodes: The new nodes.
        turns: The turns among them, by key.
        used: The chains of all states in this write, by address.
        needs: The keys of nodes that the new ones build on, and that may be gone.
    """

    def __init__(
        self,
        family: int,
        chains: Sequence[Chain],
        seeds: Sequence[Seed],
        codecs: ValueCodecs,
        seal: Seal,
        now: float,
        trusted: Chain | None = None,
        anew: bool = False,
    ) -> None:
        self.nodes: list[Node] = []
        self.used: dict[int, Chain] = {}
        self.needs: set[int] = set()
        self._trusted, self._anew = trusted, anew
        self.chains, self.seeds = list(chains), list(seeds)
        self._family, self._codecs, self._seal, self._now = family, codecs, seal, now

    def state(
        self, state: SessionState, base: SessionState | None = None, *, metadata: bool = True
    ) -> tuple[StoredState, Chain, list[Span]]:
        """Write what is new of a state.

        Args:
            state: The state.
            base: The state that it follows, of which it may have all but the turns.
            metadata: Whether the metadata is part of the row.

        Returns:
            Its row, where its turns are, and what it needs beside them.

        Raises:
            ValueCodecError: A field holds a value of a type without written form.
        """
        links: list[Span] = []
        chain = self._chain(state)
        self.used[id(chain)] = chain
        own = None
        if base is None or not _has_all_of(state, base):
            own = StoredOwn(
                id=state.id,
                seed=self._seed(state.seed, links),
                before=self._beside_whole(state.before, links),
                profile=_profile(state.profile, metadata),
                earlier=[self._linked(other, links) for other in state.earlier],
            )
        written = state.written
        row = StoredState(
            tip=chain.marks[chain.count - 1].key if chain.count else None,
            first=state.first,
            stop=state.stop,
            end=state.tip,
            under=chain.under,
            own=own,
            written=None if written is None else self._whole(written, links),
            ahead=[self._linked(other, links) for other in state.ahead],
        )
        return row, chain, links

    def _linked(
        self, state: SessionState, links: list[Span], base: SessionState | None = None
    ) -> StoredState:
        """The row of a state that another one or a turn has; what it needs, that one needs."""
        row, _, needed = self.state(state, base)
        links.extend(needed)
        if row.tip is not None:
            links.append(Span(row.tip, row.first))
        return row

    # --- turns ------------------------------------------------------------------------------------

    def _chain(self, state: SessionState) -> Chain:
        """The chain of a state's turns, of which those are written that are not stored."""
        count = state.tip - state.first
        base, shift, common = longest_common(
            self.chains, state.first, state.held, count, family=None if self._anew else self._family
        )
        if common and base is not self._trusted:
            self.needs.add(base.marks[shift + common - 1].key)
        if base.held is state.held and not shift and common == count == base.count:
            return base
        if shift:
            marks = vector(base.marks[at] for at in range(shift, shift + common))
            under = base.marks[shift - 1].total
        else:
            marks, under = base.marks, base.under
        chain = Chain(state.first, common, state.held, state.log, marks, under)
        if 0 < common == base.count < count and not shift:
            chain = base  # whose exchanges are the very vector that the next turn saw
        for at in range(common, count):
            mark = self._turn(state, at, chain)
            marks = marks.set(at, mark) if at < len(marks) else marks.append(mark)
            chain = Chain(state.first, at + 1, state.held, state.log, marks, under)
        if count and (chain.held is not base.held or common < count):
            if base.count == common and base in self.chains:
                self.chains.remove(base)
            self.chains.append(chain)
        return chain

    def _turn(self, state: SessionState, at: int, chain: Chain) -> Mark:
        """Write the turn at a position of a state."""
        turn: Turn = state.held[at]
        depth = state.first + at
        parent = chain.marks[at - 1] if at else None
        previous = state.held[at - 1].beside if at else state.before
        key, links = new_key(), list[Span]()
        base, before, beside = self._both_besides(turn, depth, parent, previous, links)
        content = self._content(turn.exchange, depth)
        if content is None:
            content = key
        else:
            links.append(Span(content, depth))
        window = turn.window
        sees = window.start < window.stop
        lane = self._lane(window, chain) if sees else None
        if lane is not None:
            links.append(Span(lane, window.start))
        fields = self._fields(turn.exchange, f"turn {turn.index}")
        hashed = content_hash(self._seal, fields, turn.exchange)
        run = turn.run
        is_plain_run = _is_plain_run(run)
        row = StoredTurn(
            like=None if content == key else content,
            start=window.start,
            unseen=depth - window.stop,
            lane=lane,
            seed=self._seed(window.seed, links),
            view=None if window.view == ALL_SHOWN else _view_to_wire(window.view),
            run=run if is_plain_run else None,
            facts=None if is_plain_run else run_to_wire(run, f"turn {turn.index}"),
            score=to_plain(turn.score),
            feedback=turn.feedback,
            before=before,
            beside=beside,
            erased=hashed if turn.exchange.erased else None,
        )
        if content == key:
            row.inputs, row.outputs, row.details = fields.inputs, fields.outputs, fields.details
        digest = self._seal.digest(
            parent.digest if parent else b"", hashed, *data_parts(turn.before, turn.beside)
        )
        return self._add(
            Node(
                key=key,
                family=self._family,
                parent=parent.key if parent else None,
                depth=depth,
                low=window.start if sees and lane is None else depth,
                base=base,
                links=tuple(links),
                digest=digest,
                total=parent.total if parent else chain.under,
                time=0.0 if content != key else turn.run.time or self._now,
                label=turn.run.request_id,
            ),
            row,
            content,
        )

    def _content(self, exchange: Exchange, index: int) -> int | None:
        """The key of the node that has the fields of an exchange already, if one does."""
        for chain in reversed(self.chains):
            at = index - chain.first
            if 0 <= at < chain.count and holds(chain.log, at, exchange):
                content = chain.marks[at].content
                if chain is not self._trusted:
                    self.needs.add(content)
                return content
        return None

    def _add(self, node: Node, row: Any, content: int) -> Mark:
        payload = closed(row, self._seal, about_node(node.key))
        node = msgspec.structs.replace(node, payload=payload, total=node.total + len(payload))
        self.nodes.append(node)
        return Mark(node.key, content, node.digest, node.total, node.base)

    def _fields(self, exchange: Exchange, where: str) -> WireExchange:
        inputs, outputs, details = exchange.parts
        return WireExchange(
            inputs=fields_to_wire(inputs, where, "input", self._codecs),
            outputs=fields_to_wire(outputs, where, "output", self._codecs),
            details=fields_to_wire(details, where, "detail", self._codecs),
        )

    # --- what a turn saw --------------------------------------------------------------------------

    def _lane(self, window: Window, chain: Chain) -> int | None:
        """The key of the newest node that a window shows; None if it is one of the turn's chain."""
        key = None if self._anew else stored_newest(window, self._family)
        if key is not None:
            self.needs.add(key)
        elif agrees(window, chain):
            return None
        else:
            found = next((other for other in reversed(self.chains) if agrees(window, other)), None)
            if found is None:
                found = self._exchanges(window)
            key = found.marks[window.stop - 1 - found.first].key
            if found is not self._trusted:
                self.needs.add(key)
                if window.start < chain.first:  # what was trimmed may be gone, but for the newest
                    first, end = window.start - found.first, window.stop - found.first
                    self.needs.update(mark.key for mark in stretch(found.marks, first, end))
        last = window.stop - 1 - chain.first
        return None if 0 <= last < chain.count and chain.marks[last].key == key else key

    def _exchanges(self, window: Window) -> Chain:
        """Write exchanges that are in no chain: of turns that were replaced before all this."""
        first, start = window.offset, window.start
        log = vector(window.log[at - first] for at in range(start, window.stop))
        base, common = None, 0
        for other in self.chains:
            shift = start - other.first
            if shift < 0:
                continue
            end = min(len(log), other.count - shift)
            differ = (at for at in range(end) if not is_same(log, at, other.log, at + shift))
            agreed = next(differ, max(end, 0))
            if agreed > common:
                base, common = other, agreed
        marks = (
            vector(base.marks[at + start - base.first] for at in range(common))
            if base is not None
            else vector()
        )
        for at in range(common, len(log)):
            parent = marks[at - 1] if at else None
            fields = self._fields(log[at], f"turn {start + at}, which was replaced,")
            hashed = content_hash(self._seal, fields, log[at])
            key, depth = new_key(), start + at
            node = Node(
                key=key,
                family=self._family,
                parent=parent.key if parent else None,
                depth=depth,
                low=depth,
                base=depth,
                digest=self._seal.digest(parent.digest if parent else b"", hashed),
                total=parent.total if parent else 0,
            )
            row = StoredTurn(
                fields.inputs,
                fields.outputs,
                fields.details,
                unseen=depth,
                erased=hashed if log[at].erased else None,
            )
            marks = marks.append(self._add(node, row, key))
        if base is not None and base is not self._trusted:
            self.needs.add(marks[common - 1].key)
        chain = Chain(start, len(log), vector(), log, marks)
        self.chains.append(chain)
        return chain

    def _seed(self, seed: tuple[Exchange, ...], links: list[Span]) -> int | None:
        """The key of the node with a seed."""
        if not seed:
            return None
        key = next((key for known, key in self.seeds if known is seed), None)
        if key is None:
            key = new_key()
            fields = [self._fields(e, f"message {n} of a seed") for n, e in enumerate(seed)]
            digest = self._seal.digest(b"", *(content_hash(self._seal, each) for each in fields))
            node = Node(key=key, family=self._family, digest=digest)
            self._add(node, StoredSeed(fields), key)
            self.seeds.append((seed, key))
        self.needs.add(key)
        links.append(Span(key, 0))
        return key

    # --- what stands beside -----------------------------------------------------------------------

    def _both_besides(
        self, turn: Turn, depth: int, parent: Mark | None, previous: Beside, links: list[Span]
    ) -> tuple[int, StoredBeside | None, StoredBeside | None]:
        """From where on it is known what stands beside a turn; then how it says that itself."""
        if turn.before.is_nothing and turn.beside.is_nothing:
            return depth, None, None
        near = parent is not None and depth - parent.base < _LONGEST_DIFFERENCE
        if parent is not None and near and _size(turn.before) + _size(turn.beside) > _SMALL:
            before = self._beside(turn.before, previous, links)
            return parent.base, before, self._beside(turn.beside, turn.before, links)
        before = self._beside_whole(turn.before, links)
        same = turn.beside is turn.before
        return depth, before, None if same else self._whole(turn.beside, links)

    def _beside_whole(self, beside: Beside, links: list[Span]) -> StoredBeside | None:
        return None if beside.is_nothing else self._whole(beside, links)

    def _whole(self, beside: Beside, links: list[Span]) -> StoredBeside:
        return StoredBeside(
            whole=True,
            data=dict(beside.data.raws()),
            pending=_pending(beside) if beside.pending else None,
            nested={path: self._linked(state, links) for path, state in beside.states.items()},
        )

    def _beside(self, beside: Beside, base: Beside, links: list[Span]) -> StoredBeside | None:
        """What is different from a base; None for nothing."""
        if beside is base:
            return None
        changes = _changes(beside.data, base.data)
        if changes is None or not beside.states.keys() >= base.states.keys():
            return self._whole(beside, links)
        return StoredBeside(
            data=changes[0],
            gone=changes[1],
            pending=None if beside.pending == base.pending else _pending(beside),
            nested={
                path: self._linked(state, links, base.states.get(path))
                for path, state in beside.states.items()
                if base.states.get(path) is not state
            },
        )


def content_hash(seal: Seal, fields: WireExchange, exchange: Exchange | None = None) -> bytes:
    """Return the hash of the fields of a turn.

    Args:
        seal: With a key, hashes are keyed.
        fields: The fields in plain form.
        exchange: The exchange that they are of: one that was erased has its hash with it.
    """
    if exchange is not None and exchange.erased:
        return bytes.fromhex(exchange.parts[2][ERASED])
    return seal.digest(
        b"", encoded(fields.inputs), encoded(fields.outputs), encoded(fields.details)
    )


def data_parts(before: Beside, beside: Beside) -> tuple[bytes, ...]:
    """Return what a turn's digest says of the session data around it.

    Args:
        before: What stood beside the turn when it began.
        beside: What stood there when it had ended.
    """
    if not before.data and not beside.data:
        return ()
    after = encoded(list(beside.data.raws()))
    return (after if before.data is beside.data else encoded(list(before.data.raws())), after)


def _is_plain_run(run: Run) -> bool:
    facts = run.time, run.duration, run.cost, run.request_id, run.fingerprint, run.id
    return all(map(is_plain, facts)) and all(
        is_plain(model) and all(is_plain(name) and is_plain(count) for name, count in counts)
        for model, counts in run.usage
    )


def _has_all_of(state: SessionState, base: SessionState) -> bool:
    return (
        state.id == base.id
        and state.seed is base.seed
        and state.before is base.before
        and state.profile is base.profile
        and state.earlier is base.earlier
    )


def _profile(profile: Profile, metadata: bool) -> WireProfile | None:
    if not metadata:
        profile = msgspec.structs.replace(profile, metadata=EMPTY_DATA)
    return None if profile.same_as(NO_PROFILE) else profile_to_wire(profile)


def _pending(beside: Beside) -> list[dict[str, Any]]:
    return [
        fields_to_wire(message, "a message that waits", "its", REGISTERED)
        for message in beside.pending
    ]


def _changes(data: Data, base: Data) -> tuple[dict[str, bytes], list[str]] | None:
    """What was set and what was deleted; None if that does not lead to the same order."""
    if data is base:
        return {}, []
    new, old = dict(data.raws()), dict(base.raws())
    gone = [key for key in old if key not in new]
    changed = {key: raw for key, raw in new.items() if old.get(key) != raw}
    for key in gone:
        del old[key]
    return (changed, gone) if list({**old, **changed}) == list(new) else None


def _size(beside: Beside) -> int:
    """About how large it is; anything but session data counts as large."""
    return _SMALL + 1 if beside.states or beside.pending else beside.data.size


def _view_to_wire(view: View) -> WireView:
    inputs = None if view.inputs is None else sorted(view.inputs)
    return WireView(sorted(view.exclude), inputs, view.details)
