"""What the tools did in a turn: every call of a `dspy.Tool`, as it ended, from any thread.

A callback of DSPy hears of them. It costs time on each call, so it is installed only where somebody
will look: after-hooks, middleware, the message protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy
import msgspec
from dspy.utils.callback import BaseCallback

from dspy_session.core.copies import private_copy

__all__ = ["ToolCall", "ToolWatch"]


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a tool that has ended.

    Attributes:
        id: An id that no other call has.
        name: The tool's name.
        arguments: What it was called with, by name.
        result: What it returned, as text; None if it failed.
        error: The error that ended it, as text; None if it returned.
    """

    id: str
    name: str
    arguments: dict[str, Any]
    result: str | None = None
    error: str | None = None


class ToolWatch(BaseCallback):
    """Notes the calls of tools as they end.

    Args:
        note: Called with each; from any thread.
        waits: Says of the id of a call whether the tool has not run, for want of an approval.
    """

    def __init__(self, note: Callable[[ToolCall], object], waits: Callable[[str], bool]) -> None:
        self._note, self._waits = note, waits
        self._running: dict[str, tuple[str, dict[str, Any]]] = {}

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Remember what a tool is called with, before it can change that."""
        if isinstance(instance, dspy.Tool) and not _is_an_agents_own(instance):
            arguments = private_copy(inputs.get("kwargs", inputs))
            self._running[call_id] = (instance.name or "", arguments)

    def on_tool_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        """Note how it ended."""
        known = self._running.pop(call_id, None)
        if known is None or self._waits(call_id):
            return
        name, arguments = known
        failed = exception is not None
        self._note(
            ToolCall(
                id=call_id,
                name=name,
                arguments=arguments,
                result=None if failed else str(outputs),
                error=f"{type(exception).__name__}: {exception}" if failed else None,
            )
        )


def _is_an_agents_own(tool: dspy.Tool) -> bool:
    """Whether an agent of DSPy made a tool for its own use, such as the `finish` of a ReAct."""
    module = getattr(tool.func, "__module__", None) or ""
    return module.startswith("dspy.predict.")
