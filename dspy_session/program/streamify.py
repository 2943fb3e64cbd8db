"""A session under DSPy's own `dspy.streamify`: what that needs, and what it does not tell.

`streamify` knows the end of a program by its Prediction, and waits for ever for one that returns
something else. When its reader leaves, a sync program runs on in its thread; only the closed stream
tells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy

from dspy_session.program.listening import GivenUpError

__all__ = ["ended_with", "unless_left"]


def unless_left(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a call that ends as a cancelled one does, if DSPy's stream of it was left meanwhile.

    Args:
        call: Calls the program.
    """
    stream = dspy.settings.send_stream
    if stream is None or not hasattr(stream, "statistics"):
        return call

    def watched(**arguments: Any) -> Any:
        returned = call(**arguments)
        if stream.statistics().open_receive_streams == 0:
            raise GivenUpError("the stream was left before its end")
        return returned

    return watched


def ended_with(returned: Any) -> Any:
    """Return what a session returns: to `streamify`, which runs it itself, always a Prediction.

    Args:
        returned: What the program returned.
    """
    streamed = dspy.settings.send_stream is not None and not dspy.settings.caller_modules
    if streamed and not isinstance(returned, dspy.Prediction):
        return dspy.Prediction(output=returned)
    return returned
