"""How a program is called and awaited, and how sync and async code wait for each other."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import dspy

from dspy_session.errors import CallError

__all__ = ["async_call", "in_thread", "seen_through", "sync_call", "waited"]

_Result = TypeVar("_Result")


def async_call(program: dspy.Module) -> Callable[..., Awaitable[Any]]:
    """Return how to await a program: its own `acall`, or its call in a worker thread.

    Args:
        program: Any module.
    """
    if _awaits(program):
        acall: Callable[..., Awaitable[Any]] = program.acall
        return acall
    in_thread: Callable[..., Awaitable[Any]] = dspy.asyncify(program)
    return in_thread


def sync_call(program: dspy.Module) -> Callable[..., Any]:
    """Return how to call a program from code that cannot await.

    Args:
        program: Any module.

    Raises:
        CallError: The program can only be awaited.
    """
    kind = type(program)
    if hasattr(kind, "aforward") and not (hasattr(kind, "forward") or "forward" in vars(program)):
        raise CallError(
            f"{kind.__name__} has an aforward and no forward, so it can only be awaited: "
            "await session.acall(...), or await astep(...). For code that cannot await, give it "
            "a forward: dspy.syncify(program)."
        )
    return program


def waited(came: Any) -> Any:
    """Return what came, or what becomes of it if it is to be awaited, to code that cannot await.

    Args:
        came: Anything. What is to be awaited runs in an event loop of its own, in this context: in
            this thread, or if a loop runs in it already, in another one.
    """
    if not inspect.isawaitable(came):
        return came

    async def awaited() -> Any:
        return await came

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(awaited())
    return _ended(_started(lambda: asyncio.run(awaited())).result())


async def in_thread(function: Callable[[], _Result]) -> _Result:
    """Await a sync function, in this context and in a thread of its own.

    Any shared pool may be full of what waits here, and then what is waited for could not begin.

    Args:
        function: What to call.
    """
    result: _Result = _ended(await asyncio.wrap_future(_started(function)))
    return result


async def seen_through(
    function: Callable[[], _Result],
) -> tuple[_Result, asyncio.CancelledError | None]:
    """Await a sync function in a worker thread, to its end also where that is cancelled meanwhile.

    What it does cannot be called back, so whoever is cancelled knows what became of it.

    Args:
        function: What to call.

    Returns:
        What it returned, and the cancellation that came meanwhile, to be raised when what has to
        follow is done.

    Raises:
        CancelledError: It was cancelled, and the function failed; its error is the cause.
    """
    doing = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(doing), None
    except asyncio.CancelledError as cancelled:
        import anyio  # noqa: PLC0415  # rarely needed, and DSPy has not imported it either

        with anyio.CancelScope(shield=True):  # its own cancellation comes again and again
            await asyncio.wait([doing])
        error = doing.exception()
        if error is not None:
            raise cancelled from error
        return doing.result(), cancelled


def _started(function: Callable[[], _Result]) -> Future[tuple[Any, BaseException | None]]:
    """Begin to run a function in a thread. No future takes a StopIteration: errors are values."""
    future: Future[tuple[Any, BaseException | None]] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        ended: tuple[Any, BaseException | None]
        try:
            ended = context.run(function), None
        except BaseException as error:  # noqa: BLE001  # raised again where it is waited for
            ended = None, error
        if future.set_running_or_notify_cancel():  # else nobody waits any more
            future.set_result(ended)

    threading.Thread(target=run, name="dspy-session hook", daemon=True).start()
    return future


def _ended(ended: tuple[Any, BaseException | None]) -> Any:
    result, error = ended
    if error is not None:
        raise error
    return result


def _awaits(program: dspy.Module) -> bool:
    """Whether a program's `aforward` does what its `forward` does."""
    kind, own = type(program), vars(program)
    if "aforward" in own:
        return True
    if "forward" in own and hasattr(kind, "forward"):
        return False  # an optimizer put it there; the class's aforward knows nothing of it
    if isinstance(program, dspy.CodeAct) and type(program).aforward is dspy.ReAct.aforward:
        return False  # it inherits that one, which looks for the parts of a ReAct
    return hasattr(kind, "aforward")
