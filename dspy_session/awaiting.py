"""The awaited face of what waits for a store: one mechanism for all of it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

__all__ = ["in_thread"]

_Self = TypeVar("_Self")
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def in_thread(
    method: Callable[Concatenate[_Self, _Given], _Result],
) -> Callable[Concatenate[_Self, _Given], Coroutine[Any, Any, _Result]]:
    """Return a method that is awaited, and does the same in a worker thread.

    If it is cancelled, what it began goes on: a store's answer cannot be called back.

    Args:
        method: The method.
    """

    @functools.wraps(method)
    async def awaited(self: _Self, /, *args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        return await asyncio.to_thread(method, self, *args, **kwargs)

    awaited.__name__ = f"a{method.__name__}"
    awaited.__doc__ = f"Do what `{method.__name__}` does, awaited: it waits in a worker thread."
    return awaited
