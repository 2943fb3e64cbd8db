"""The pure functions that write what is beside the turns, and what belongs to the session.

Laws, for every state `s`:

- What stands beside the conversation is written at its end: a write after an undo takes another
  path, as recording does. It belongs to the turn that is recorded next.
- Undoing turns and redoing them leads back to what was written at the end.
- Instructions and metadata are of the session, not of a moment: no move changes them.
- A write that changes nothing returns `s` itself. After any error the caller still holds `s`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dspy_session.core.data import Data
from dspy_session.core.profile import Instructions
from dspy_session.core.state import SessionState
from dspy_session.core.turn import Beside

__all__ = ["describe", "instruct", "replace_data", "write", "write_pending"]


def write(
    state: SessionState, changes: Mapping[str, Any], max_bytes: int | None = None
) -> SessionState:
    """Return the conversation with some of its session data changed.

    Args:
        state: The conversation.
        changes: Values by key; `DELETED` deletes a key.
        max_bytes: How large the session data may become, as JSON; None for any size.

    Raises:
        DataError: A value cannot be session data, or the data becomes too large.
    """
    return replace_data(state, state.data.changed(changes, max_bytes))


def replace_data(state: SessionState, data: Data) -> SessionState:
    """Return the conversation with other session data.

    Args:
        state: The conversation.
        data: The data.
    """
    return _written(state, state.beside.replace(data=data))


def write_pending(state: SessionState, pending: tuple[Mapping[str, Any], ...]) -> SessionState:
    """Return the conversation with other chat messages that wait to become a turn.

    Args:
        state: The conversation.
        pending: The messages.
    """
    return _written(state, state.beside.replace(pending=pending))


def describe(
    state: SessionState, changes: Mapping[str, Any], max_bytes: int | None = None
) -> SessionState:
    """Return the conversation with metadata merged into what there is.

    Args:
        state: The conversation.
        changes: Values by key; `DELETED` deletes a key.
        max_bytes: How large the metadata may become, as JSON; None for any size.

    Raises:
        DataError: A value cannot be metadata, or the metadata becomes too large.
    """
    metadata = state.metadata.changed(changes, max_bytes)
    if metadata is state.metadata:
        return state
    profile = msgspec.structs.replace(state.profile, metadata=metadata)
    return msgspec.structs.replace(state, profile=profile)


def instruct(
    state: SessionState,
    instructions: Instructions | None,
    system: Mapping[str, Any] | None = None,
) -> SessionState:
    """Return the conversation under other instructions.

    Args:
        state: The conversation.
        instructions: The instructions; None for none.
        system: The chat message that they came from, if they did.
    """
    if (instructions, system) == (state.profile.instructions, state.profile.system):
        return state
    profile = msgspec.structs.replace(state.profile, instructions=instructions, system=system)
    return msgspec.structs.replace(state, profile=profile)


def _written(state: SessionState, beside: Beside) -> SessionState:
    """Put something beside the conversation, which takes another path where turns are undone."""
    if beside is state.beside:
        return state
    ahead = state.ahead if state.stop == state.tip else ()
    return msgspec.structs.replace(state, tip=state.stop, ahead=ahead, written=beside)
