"""Which tools an agent called in a turn, read from what DSPy's agents leave beside their outputs.

A ReAct leaves a `trajectory`: `tool_name_0`, `tool_args_0`, `observation_0`, and so on. A ReActV2
leaves a `history` whose messages hold `ToolCalls` with their results. The tools by which they say
that they are done, `finish` and `submit`, are no tools of the program's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import dspy

from dspy_session.core.chat_view import ToolUse, readable

__all__ = ["tool_steps"]

_NAME: Final = re.compile(r"tool_name_(\d+)")


def tool_steps(details: Mapping[str, Any]) -> Iterator[tuple[ToolUse, ...]]:
    """Yield the tools that were called in each step of an agent's run.

    Args:
        details: The details of a turn.
    """
    trajectory, history = details.get("trajectory"), details.get("history")
    if isinstance(trajectory, Mapping):
        yield from _of_trajectory(trajectory)
    if isinstance(history, list):
        yield from _of_history(history)


def _of_trajectory(trajectory: Mapping[str, Any]) -> Iterator[tuple[ToolUse, ...]]:
    for key, name in trajectory.items():
        named = _NAME.fullmatch(key)
        if named and name != "finish":
            arguments = trajectory.get(f"tool_args_{named[1]}", {})
            observed = trajectory.get(f"observation_{named[1]}", "")
            yield (ToolUse(str(name), readable(arguments), readable(observed)),)


def _of_history(history: list[Any]) -> Iterator[tuple[ToolUse, ...]]:
    for event in history:
        calls = event.get("tool_calls") if isinstance(event, Mapping) else None
        if not isinstance(calls, dspy.ToolCalls):
            continue
        results = calls.tool_call_results
        values = [] if results is None else [result.value for result in results.tool_call_results]
        values += [""] * (len(calls.tool_calls) - len(values))
        uses = tuple(
            ToolUse(call.name, readable(call.args), readable(value))
            for call, value in zip(calls.tool_calls, values, strict=False)
            if call.name != "submit"
        )
        if uses:
            yield uses
