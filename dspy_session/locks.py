"""The locks of one session: around its state, and around its turns, if they are to wait.

Rules:

- The lock around the state is held over pure functions only, never over an LM call or a hook.
- Locks are no part of what a session is: a copy, a fork or an unpickled session gets new ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading

from dspy_session.core.options import Lock
from dspy_session.errors import LockError

__all__ = ["Locks"]


class Locks:
    """A session's locks.

    Attributes:
        state: Held while the next state is computed and published.
    """

    __slots__ = ("_loop", "_task", "_thread", "state")

    def __init__(self) -> None:
        self.state = threading.Lock()
        self._thread = threading.Lock()
        self._task: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def turn(self, mode: Lock) -> contextlib.AbstractContextManager[object]:
        """Return what a turn holds while it runs in a thread.

        Args:
            mode: The session's lock mode.
        """
        return self._thread if mode is Lock.THREAD else contextlib.nullcontext()

    def async_turn(self, mode: Lock) -> contextlib.AbstractAsyncContextManager[object]:
        """Return what a turn holds while it runs in a task.

        Args:
            mode: The session's lock mode.

        Raises:
            LockError: Turns are running in another event loop, where nobody can wait for them.
        """
        return self._of_this_loop() if mode is Lock.ASYNC else contextlib.nullcontext()

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
