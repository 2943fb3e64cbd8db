"""The flow of a turn and its two drivers: for callers that can await, and for those that cannot.

A flow is a generator. It yields what it wants done and is sent what came of it: the program called,
a hook asked, middleware put around the rest of it. An error of any of them is thrown into it. Hooks
and middleware are sync or async whatever the caller is:

| | in a sync call | in an async call |
|---|---|---|
| sync hook | called | called, in the event loop |
| async hook | run in an event loop of its own | awaited |
| sync middleware | called | called in a thread; its `run` waits for the event loop |
| async middleware | run in an event loop of its own, the program in a thread | awaited |
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

import msgspec

from dspy_session.errors import HookError
from dspy_session.program.call_modes import in_thread, waited

__all__ = ["Around", "Ask", "Call", "Wish", "adrive", "drive", "name_of"]

_Result = TypeVar("_Result")


class Call(msgspec.Struct, frozen=True, eq=False):
    """The program is to be called.

    Attributes:
        arguments: By name.
    """

    arguments: dict[str, Any]


class Ask(msgspec.Struct, frozen=True, eq=False):
    """A hook is to be asked.

    Attributes:
        hook: The hook, sync or async.
        about: What it is called with.
    """

    hook: Callable[[Any], Any]
    about: Any


class Around(msgspec.Struct, frozen=True, eq=False):
    """Middleware is to be called around the rest of the flow.

    Attributes:
        hook: The middleware, sync or async.
        about: What it is called with first; second comes how to run the rest.
        rest: Makes the flow of the rest, from what the middleware passes on.
    """

    hook: Callable[[Any, Any], Any]
    about: Any
    rest: Callable[[Any], Generator[Any, Any, Any]]


Wish = Call | Ask | Around
"""What a flow yields."""


def drive(flow: Generator[Wish, Any, _Result], call: Callable[..., Any]) -> _Result:
    """Run a flow to its end.

    Args:
        flow: The flow.
        call: Calls the program with keyword arguments.
    """
    wish = next(flow)
    while True:
        try:
            came = _done(wish, call)
        except BaseException as error:
            _abandon(flow, error)
            raise
        try:
            wish = flow.send(came)
        except StopIteration as stop:
            result: _Result = stop.value
            return result


async def adrive(
    flow: Generator[Wish, Any, _Result], call: Callable[..., Awaitable[Any]]
) -> _Result:
    """As `drive`, awaiting what can be awaited.

    Args:
        flow: The flow.
        call: Calls the program with keyword arguments.
    """
    wish = next(flow)
    while True:
        try:
            came = await _adone(wish, call)
        except BaseException as error:
            _abandon(flow, error)
            raise
        try:
            wish = flow.send(came)
        except StopIteration as stop:
            result: _Result = stop.value
            return result


def _done(wish: Wish, call: Callable[..., Any]) -> Any:
    if isinstance(wish, Call):
        return call(**wish.arguments)
    if isinstance(wish, Ask):
        return waited(wish.hook(wish.about))
    rest = wish.rest
    if not _is_async(wish.hook):
        came = wish.hook(wish.about, lambda passed: drive(rest(passed), call))
        return _refuse_awaitable(wish.hook, came)

    async def run(passed: Any) -> Any:
        return await in_thread(lambda: drive(rest(passed), call))

    return waited(wish.hook(wish.about, run))


async def _adone(wish: Wish, call: Callable[..., Awaitable[Any]]) -> Any:
    if isinstance(wish, Call):
        return await call(**wish.arguments)
    if isinstance(wish, Ask):
        came = wish.hook(wish.about)
        return await came if inspect.isawaitable(came) else came
    rest = wish.rest

    async def run(passed: Any) -> Any:
        return await adrive(rest(passed), call)

    if _is_async(wish.hook):
        return await wish.hook(wish.about, run)
    return _refuse_awaitable(wish.hook, await _beside_the_loop(wish, run))


async def _beside_the_loop(wish: Around, run: Callable[[Any], Awaitable[Any]]) -> Any:
    """Call sync middleware in a thread; what it runs comes back to this event loop."""
    loop, runs = asyncio.get_running_loop(), set[asyncio.Task[Any]]()
    left = False

    async def noted(passed: Any) -> Any:
        task = asyncio.current_task()
        if left or task is None:
            raise asyncio.CancelledError
        runs.add(task)
        return await run(passed)

    def blocking(passed: Any) -> Any:
        try:
            return asyncio.run_coroutine_threadsafe(noted(passed), loop).result()
        except concurrent.futures.CancelledError:  # an Exception, which a retry would catch
            raise asyncio.CancelledError("the call was given up") from None

    try:
        return await in_thread(lambda: wish.hook(wish.about, blocking))
    finally:
        left = True
        if waiting := [task for task in runs if not task.done()]:
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)


def _is_async(hook: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(
        getattr(hook, "__call__", None)  # noqa: B004  # is asked for what it is, not whether it is
    )


def _refuse_awaitable(hook: Callable[..., Any], came: Any) -> Any:
    if not inspect.isawaitable(came):
        return came
    if inspect.iscoroutine(came):
        came.close()
    raise HookError(
        f"The middleware {name_of(hook)} is no async function and returned something to be "
        "awaited. Write it with async def, and await run(call) in it."
    )


def name_of(hook: Callable[..., Any]) -> str:
    """Return what a message calls a hook.

    Args:
        hook: Any callable.
    """
    name: str = getattr(hook, "__qualname__", None) or repr(hook)
    return name


def _abandon(flow: Generator[Any, Any, Any], error: BaseException) -> None:
    """Leave the turn's context; the error goes on to the caller."""
    try:
        flow.throw(error)
    except BaseException as raised:
        if raised is not error and raised.__cause__ is not error:  # a generator's StopIteration
            raise
