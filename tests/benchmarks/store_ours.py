"""This library's storage, for `tests.benchmarks.stores`: the bare store, and the archive on it."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dspy_session import SessionOptions
from dspy_session.core import Run, SessionState, commit, prepare, undo
from dspy_session.journal.archive import Archive
from dspy_session.stores.records import Node, Ref, new_key
from dspy_session.stores.sql import SQLStore
from tests.benchmarks.store_peers import LAST, Subject, pragmas_of

OPTIONS: Final = SessionOptions()
CHAT: Final = "chat"


def url(file: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{file}"


class Stored(Subject):
    """A subject that keeps its file in a `SQLStore` with its defaults."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.store = SQLStore(url(file))
        self.forks = itertools.count()

    def close(self) -> None:
        self.store.close()

    def pragmas(self) -> str:
        with self.store._connected() as connection:
            return pragmas_of(connection)


class BareStore(Stored):
    """Nodes and refs, with payloads of 1 KB that mean nothing."""

    name = "dspy-session SQLStore"

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.ref = Ref(id=CHAT, family=new_key(), version=new_key())
        self.chain: list[Node] = []
        self.put(self.ref, None)

    def put(self, ref: Ref, expected: int | None, *nodes: Node) -> None:
        assert self.store.put(ref, expected, nodes)

    def append(self) -> Callable[[], Any]:
        told, answered = next(self.texts)
        payload = f"{told}{answered}".ljust(1_000, ".").encode()
        parent = self.chain[-1] if self.chain else None

        def added() -> None:
            node = Node(
                key=new_key(),
                family=self.ref.family,
                parent=None if parent is None else parent.key,
                depth=len(self.chain),
                low=len(self.chain),
                digest=bytes(32),
                time=time.time(),
                payload=payload,
            )
            self.chain.append(node)
            self.move(node)

        return added

    def move(self, *new: Node) -> None:
        count, old = len(self.chain), self.ref
        newest = self.chain[-1].key
        self.ref = Ref(
            id=CHAT,
            family=old.family,
            version=new_key(),
            tip=newest if new else old.tip,
            head=newest,
            stop=count,
            end=count if new else old.end,
            updated=time.time(),
            size=count * 1_000,
        )
        self.put(self.ref, old.version, *new)

    def fork(self) -> Callable[[], Any]:
        def forked() -> None:
            old = self.ref
            self.put(
                Ref(
                    id=f"fork {next(self.forks)}",
                    family=old.family,
                    version=new_key(),
                    tip=old.head,
                    head=old.head,
                    stop=old.stop,
                    end=old.stop,
                    origin=CHAT,
                ),
                None,
            )

        return forked

    def undo(self) -> Callable[[], Any]:
        def undone() -> None:
            self.chain.pop()
            self.move()

        return undone

    def read(self, last: int | None) -> list[Node]:
        ref = self.store.ref(CHAT)
        assert ref is not None
        assert ref.head is not None
        return self.store.walk(ref.family, ref.head, 0 if last is None else ref.stop - last)

    def last(self) -> Callable[[], Any]:
        return lambda: self.read(LAST)

    def load(self) -> Callable[[], Any]:
        return lambda: self.read(None)

    def count(self, read: list[Node]) -> int:
        return len(read)

    def first_words(self, read: list[Node]) -> list[str]:
        return [node.payload.decode().split()[0] for node in read]


class Archived(Stored):
    """Conversations as they are: every turn with its run, its snapshot, its digest."""

    name = "dspy-session Archive"

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.archive = Archive(self.store)
        self.held = self.archive.create(CHAT, SessionState())

    def write(self, state: SessionState) -> None:
        self.held = self.archive.write(self.held, state)

    def append(self) -> Callable[[], Any]:
        state = with_turn(self.held.state, next(self.texts))
        return lambda: self.write(state)

    def fork(self) -> Callable[[], Any]:
        return lambda: self.archive.fork(self.held, f"fork {next(self.forks)}")

    def undo(self) -> Callable[[], Any]:
        _, state = undo(self.held.state)
        return lambda: self.write(state)

    def last(self) -> Callable[[], Any]:
        archive = Archive(self.store)  # one that has read nothing yet
        return lambda: archive.turns(CHAT, -LAST)

    def load(self) -> Callable[[], Any]:
        archive = Archive(self.store)
        return lambda: archive.load(CHAT).state.turns

    def count(self, read: Any) -> int:
        return len(read)

    def first_words(self, read: Any) -> list[str]:
        return [turn.inputs["question"].split()[0] for turn in read]


USAGE: Final = (
    ("prompt_tokens", 1_234),
    ("completion_tokens", 100),
    ("total_tokens", 1_334),
    ("prompt_tokens_details", {"cached_tokens": 1_024}),
    ("completion_tokens_details", {"reasoning_tokens": 0}),
)


def with_turn(state: SessionState, texts: tuple[str, str]) -> SessionState:
    """A conversation after one more turn, with all that a call of a program notes of its run."""
    asked, told = texts
    run = Run(
        id=uuid.uuid4().hex,
        time=time.time(),
        duration=1.234567,
        usage=(("openai/gpt-4o-mini", USAGE),),
        cost=0.000245,
        fingerprint="0123456789abcdef0123456789abcdef",
        lm_calls=1,
        sent=5_678,
    )
    step = prepare(state, {"question": asked}, OPTIONS)
    _, after = commit(state, step, {"answer": told}, run, OPTIONS)
    return after


OURS: Final[tuple[type[Subject], ...]] = (BareStore, Archived)
