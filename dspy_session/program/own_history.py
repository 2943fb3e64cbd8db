"""A history that the program itself passes to a predictor: what of it is the session's.

A program may add messages to the history that it was handed, and some agents begin one of their own
in each run: a ReActV2 keeps its tool calls there. Both kinds of messages belong behind the
conversation. Any other history is all the program's own, and stands as it is.
"""

from __future__ import annotations

import operator
from typing import Any

import dspy

from dspy_session.program.anatomy import is_agent, own_signature
from dspy_session.program.frame import Frame

__all__ = ["added_messages", "is_begun", "seen_part"]


def added_messages(frame: Frame, given: Any, field: str) -> list[dict[str, Any]] | None:
    """Return what the program added to the conversation, or None for a history of its own.

    Args:
        frame: The running turn.
        given: What the program passes as the history.
        field: The name of the predictor's history field.
    """
    if not isinstance(given, dspy.History):
        return None
    if given is frame.passed:
        seen = seen_part(given, frame)
        return None if seen is None else given.messages[seen:]
    if not given.messages and _is_working_memory(field):
        frame.draft.begun.append(given)
    return given.messages if is_begun(frame, given) else None


def is_begun(frame: Frame, given: Any) -> bool:
    """Whether an agent began this history in the running turn.

    Args:
        frame: The running turn.
        given: What the program passes as the history.
    """
    return any(given is begun for begun in frame.draft.begun)


def seen_part(history: dspy.History, frame: Frame) -> int | None:
    """Return how many messages at the beginning are the conversation; None if it begins otherwise.

    Args:
        history: Any history.
        frame: The running turn.
    """
    messages = history.messages
    told = [exchange.shown(frame.window.view) for exchange in frame.window]
    try:
        same = len(messages) >= len(told) and all(map(operator.eq, messages, told))
    except Exception:  # noqa: BLE001  # values of a user's types, which may not be comparable
        same = False
    return len(told) if same else None


def _is_working_memory(field: str) -> bool:
    """Whether the history is nothing that the calling agent is given: its signature has none."""
    agent = (None, *dspy.settings.caller_modules)[-2]
    signature = own_signature(agent)
    return is_agent(agent) and signature is not None and field not in signature.input_fields
