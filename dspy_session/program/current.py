"""The running turn, as programs and tools reach for it: its session data, its request.

What they write gathers in the turn, and is part of the conversation once the turn is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dspy_session.core.session_data import SessionData
from dspy_session.errors import ToolError
from dspy_session.program.frame import Frame, current_frame

__all__ = ["current_data", "current_request", "running_turn"]


def current_data() -> SessionData:
    """Return the session data of the innermost running turn, to read and to write.

    For a program's own `forward`, and whatever it calls. Writes are part of the conversation once
    the turn is recorded; a turn that fails leaves none.

    Raises:
        ToolError: No turn runs here.

    Example:
        >>> import dspy
        >>> from dspy_session import SessionState, step
        >>> class Counter(dspy.Module):
        ...     def forward(self, question):
        ...         data = current_data()
        ...         data["asked"] = data.get("asked", 0) + 1
        ...         return data["asked"]
        >>> _, state = step(SessionState(), Counter(), {"question": "Hi"})
        >>> step(state, Counter(), {"question": "Hi"})[0]
        2
    """
    return running_turn("current_data()").session_data


def current_request() -> Mapping[str, Any]:
    """Return what the innermost running turn was given as its request, read-only.

    Returns:
        JSON values by key, copies; empty if the call brought no request.

    Raises:
        ToolError: No turn runs here.
    """
    return running_turn("current_request()").request


def running_turn(what: str) -> Frame:
    """Return the innermost running turn.

    Args:
        what: What needs one, for the error message.

    Raises:
        ToolError: None runs here.
    """
    frame = current_frame()
    if frame is None:
        raise ToolError(
            f"{what} was called where no turn of a session runs. Call it from a program or a tool "
            "that runs in a session or in step(). In a thread that DSPy did not start, run it with "
            "contextvars.copy_context().run(...). To try a tool by itself, call tool.__wrapped__ "
            "and pass session=SessionData()."
        )
    return frame
