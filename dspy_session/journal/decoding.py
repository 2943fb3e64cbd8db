"""What the rows of turns say of it: how the run went, which session data, which messages wait.

Every error says which turn cannot be read.
"""

from __future__ import annotations

from typing import Any

from dspy_session.core.chat import Pending, absorb
from dspy_session.core.data import Data, data_of
from dspy_session.core.turn import Run
from dspy_session.errors import FormatError
from dspy_session.journal.payloads import StoredBeside, StoredTurn
from dspy_session.parts import message_from_wire, run_from_wire

__all__ = ["damaged", "data_after", "run_of", "waiting"]


def run_of(row: StoredTurn) -> Run:
    """Return how the run of a turn went.

    Args:
        row: The turn's row.

    Raises:
        FormatError: A value cannot be read.
        ValueError: A value is of another type than it can have.
    """
    if row.run is not None:
        return row.run
    return Run() if row.facts is None else run_from_wire(row.facts, "it")


def data_after(row: StoredBeside, base: Data) -> Data:
    """Return the session data that a row describes.

    Args:
        row: The row.
        base: The session data that it says the difference to.
    """
    if not row.data and not row.gone:
        return base
    raws = dict(base.raws())
    for key in row.gone:
        raws.pop(key, None)
    raws.update(row.data)
    return data_of(raws.items())


def waiting(messages: list[dict[str, Any]]) -> Pending:
    """Return the chat messages that wait.

    Args:
        messages: In plain form.

    Raises:
        FormatError: They cannot wait, or are none.
    """
    held: Pending = ()
    for message in messages:
        checked = message_from_wire(message, "a message that waits")
        held, exchange = absorb(held, checked)
        if exchange is not None:
            raise FormatError("a message that waits is an answer")
    return held


def damaged(depth: int, error: Exception) -> FormatError:
    """Return the error that names the turn which cannot be read.

    Args:
        depth: Its index.
        error: What is wrong.
    """
    return FormatError(
        f"Cannot read turn {depth}: {str(error).rstrip('.')}. The other turns can be read: fork "
        "the session before it, or ask a manager for some of its turns()."
    )
