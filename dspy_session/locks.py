"""The locks of one session: around its state, and around its turns, if they are to wait.

Rules:

- The lock around the state is held over pure functions only, never over an LM call or a hook.
- Locks are no part of what a session is: a copy, a fork or an unpickled session gets new ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

from dspy_session.core.options import Lock
from dspy_session.errors import LockError

__all__ = ["Locks", "Reading"]


class Locks:
    """A session's locks.

    Attributes:
        state: Held while the next state is computed and published.
    """

    __slots__ = ("_loop", "_reader", "_task", "_thread", "state")

    def __init__(self) -> None:
        self.state = threading.Lock()
        self._thread = threading.Lock()
        self._task: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader: object = None

    def turn(self, mode: Lock) -> contextlib.AbstractContextManager[object]:
        """Return what a turn holds while it runs in a thread.

        Args:
            mode: The session's lock mode.

        Raises:
            LockError: This thread holds the lock, for a stream that it has not read to its end.
        """
        if mode is not Lock.THREAD:
            return contextlib.nullcontext()
        self._refuse_reader(threading.get_ident())
        return self._thread

    def async_turn(self, mode: Lock) -> contextlib.AbstractAsyncContextManager[object]:
        """Return what a turn holds while it runs in a task.

        Args:
            mode: The session's lock mode.

        Raises:
            LockError: Turns are running in another event loop, where nobody can wait for them; or
                this task holds the lock, for a stream that it has not read to its end.
        """
        if mode is not Lock.ASYNC:
            return contextlib.nullcontext()
        self._refuse_reader(asyncio.current_task())
        return self._of_this_loop()

    def stream(self, mode: Lock) -> Reading:
        """Return what a turn holds while this thread reads its stream.

        Args:
            mode: The session's lock mode.
        """
        return Reading(self, self.turn(mode), threading.get_ident())

    def async_stream(self, mode: Lock) -> Reading:
        """Return what a turn holds while this task reads its stream.

        Args:
            mode: The session's lock mode.
        """
        return Reading(self, self.async_turn(mode), asyncio.current_task())

    def _refuse_reader(self, caller: object) -> None:
        """Refuse a turn that would wait for a stream that only its caller can go on with."""
        if caller is not None and self._reader == caller:
            raise LockError(
                "This session has a lock, and holds it for a stream that is being read here. Read "
                "the stream to its end or close() it first, or give this call its own branch: "
                "session.fork()."
            )

    def _of_this_loop(self) -> asyncio.Lock:
        """An `asyncio.Lock` serves one event loop; a session may see several, one after another."""
        loop = asyncio.get_running_loop()
        with self.state:
            if self._task is None or self._loop is not loop:
                if self._loop is not None and self._task is not None:
                    self._refuse_two_loops(self._loop, self._task)
                self._task, self._loop = asyncio.Lock(), loop
            return self._task

    def _refuse_two_loops(self, loop: asyncio.AbstractEventLoop, task: asyncio.Lock) -> None:
        if task.locked() and not loop.is_closed():
            raise LockError(
                'This session has lock="async" and is running a turn in another event loop. Call '
                "it from one event loop at a time, or give each its own branch: session.fork()."
            )


class Reading:
    """A lock that is held while a stream is read, by whom it says.

    Args:
        locks: The session's locks.
        lock: The lock, for threads or for tasks.
        reader: The thread or the task.
    """

    def __init__(self, locks: Locks, lock: Any, reader: object) -> None:
        self._locks, self._lock, self._by = locks, lock, reader

    def __enter__(self) -> None:
        self._lock.__enter__()
        self._locks._reader = self._by

    def __exit__(self, *error: object) -> None:
        self._locks._reader = None
        self._lock.__exit__(*error)

    async def __aenter__(self) -> None:
        await self._lock.__aenter__()
        self._locks._reader = self._by

    async def __aexit__(self, *error: object) -> None:
        self._locks._reader = None
        await self._lock.__aexit__(*error)
