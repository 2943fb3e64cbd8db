"""A task that is cancelled while its turn is stored: the turn is stored and seen, or it is not."""

import asyncio
import threading
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from typing import Any

import anyio
import dspy
import pytest

from dspy_session import Session, StoreError, Turn
from dspy_session.manager import SessionManager
from dspy_session.stores.memory import MemoryStore
from dspy_session.stores.records import Node, Ref
from dspy_session.testing import scripted_lm
from tests.streams import SOON


@pytest.fixture(autouse=True)
def _lm() -> Iterator[None]:
    with dspy.context(lm=scripted_lm()):
        yield


class Slow(MemoryStore):
    """Waits for `go` in each write of a turn; `error` is raised instead of writing."""

    error: StoreError | None = None

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def put(
        self,
        ref: Ref,
        expected: int | None,
        nodes: Sequence[Node] = (),
        needs: Collection[int] = (),
    ) -> bool:
        if nodes:
            self.begun.set()
            assert self.go.wait(SOON)
            if self.error is not None:
                raise self.error
        return super().put(ref, expected, nodes, needs)


class Kept:
    """A session in such a store.

    Attributes:
        told: What `on_turn` was told.
    """

    def __init__(self, lock: str = "none") -> None:
        self.store, self.told = Slow(), list[Turn]()
        self.manager = SessionManager(
            dspy.Predict("question -> answer"),
            self.store,
            on_turn=lambda _, turn: self.told.append(turn),
            lock=lock,
        )
        self.session = self.manager.open("ada")

    @property
    def stored(self) -> tuple[Turn, ...]:
        return self.manager.open("ada").turns


async def call(session: Session, question: str = "Hi") -> None:
    await session.acall(question=question)


async def stream(session: Session, question: str = "Hi") -> None:
    async for _ in session.astream(question=question):
        pass


async def record(session: Session, question: str = "Hi") -> None:
    await session.aask(question, record=True)


ways = pytest.mark.parametrize("ask", [call, stream, record])
Ask = Callable[[Session], Coroutine[Any, Any, None]]


async def cancelled_in_its_write(kept: Kept, ask: Ask) -> asyncio.Task[None]:
    """A call that was cancelled while its turn was stored, and waits for the store."""
    task = asyncio.ensure_future(ask(kept.session))
    assert await asyncio.to_thread(kept.store.begun.wait, SOON)
    task.cancel()
    await asyncio.wait([task], timeout=0.05)
    assert not task.done()
    return task


@ways
def test_X6_a_turn_that_is_being_stored_when_its_task_is_cancelled_is_seen(ask: Ask) -> None:
    async def main() -> None:
        task = await cancelled_in_its_write(kept, ask)
        assert not kept.session.turns
        kept.store.go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert len(kept.session) == 1

    kept = Kept()
    asyncio.run(main())
    assert kept.stored == kept.session.turns == tuple(kept.told)
    assert kept.session.attempts == ()


@ways
def test_X6_a_cancelled_turn_that_cannot_be_stored_leaves_nothing(ask: Ask) -> None:
    async def main() -> None:
        task = await cancelled_in_its_write(kept, ask)
        kept.store.go.set()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert caught.value.__cause__ is kept.store.error
        assert kept.session.state is before

    kept = Kept()
    kept.store.error = StoreError("The disk is full.")
    before = kept.session.state
    asyncio.run(main())
    assert kept.stored == kept.session.turns == tuple(kept.told) == ()


@ways
def test_X6_a_cancelled_scope_of_anyio_waits_too_and_does_not_spin(ask: Ask) -> None:
    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(ask, kept.session)
                assert await asyncio.to_thread(kept.store.begun.wait, SOON)
                scope.cancel()
                asyncio.get_running_loop().call_later(0.05, kept.store.go.set)
        assert scope.cancelled_caught
        assert len(kept.session) == 1

    kept = Kept()
    asyncio.run(main())
    assert kept.stored == kept.session.turns == tuple(kept.told)


def test_X6_a_timeout_while_a_turn_is_stored_is_a_timeout() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(None)

        async def expire() -> None:
            assert await asyncio.to_thread(kept.store.begun.wait, SOON)
            limit.reschedule(loop.time())
            loop.call_later(0.05, kept.store.go.set)

        expiring = asyncio.ensure_future(expire())
        with pytest.raises(TimeoutError):
            async with limit:
                await call(kept.session)
        await expiring
        assert len(kept.session) == 1

    kept = Kept()
    asyncio.run(main())
    assert kept.stored == kept.session.turns == tuple(kept.told)


def test_X6_who_waits_for_a_cancelled_turn_comes_after_it() -> None:
    async def main() -> None:
        first = await cancelled_in_its_write(kept, call)
        second = asyncio.ensure_future(call(kept.session, "And?"))
        await asyncio.sleep(0)
        kept.store.go.set()
        await asyncio.wait([first, second], timeout=SOON)
        assert first.cancelled()

    kept = Kept(lock="async")
    asyncio.run(main())
    assert [turn.outputs["answer"] for turn in kept.stored] == ["2 messages", "4 messages"]
    assert kept.stored == kept.session.turns
