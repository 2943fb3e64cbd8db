"""What a streamed turn tells of itself, as frozen values."""

from __future__ import annotations

import dspy
import msgspec

from dspy_session.core.state import SessionState
from dspy_session.core.turn import Turn

__all__ = ["StatusEvent", "StreamEvent", "TextEvent", "TurnEvent"]


class TextEvent(msgspec.Struct, frozen=True):
    """Text of an output field, as it arrives.

    The texts of one field of one call, joined, are the field's value. Its last event has `last`
    set; its text may be empty.

    Attributes:
        predictor: The predictor's path in the program, as `named_predictors()` writes it: `self`
            for a program that is one itself, `react` or `extract.predict` in a ReAct.
        field: The output field.
        text: What the field goes on with.
        last: Whether the field is complete.
        call: Which of the turn's calls this is, counted from 0. An agent calls the same predictor
            several times, and predictors may run side by side.
    """

    predictor: str
    field: str
    text: str
    last: bool = False
    call: int = 0


class StatusEvent(msgspec.Struct, frozen=True):
    """What the program is doing, in words.

    Attributes:
        message: The words, from the turn's `StatusMessageProvider`; DSPy's own speak of tools.
    """

    message: str


class TurnEvent(msgspec.Struct, frozen=True, eq=False):
    """The finished turn, always the last event; by now it is recorded.

    Attributes:
        prediction: What the program returned; a plain value is the `output` of a Prediction.
        turn: The recorded turn; None if it was not to be recorded (an explicit history).
        state: The conversation with the turn in it.
    """

    prediction: dspy.Prediction
    turn: Turn | None
    state: SessionState


StreamEvent = TextEvent | StatusEvent | TurnEvent
"""What `stream` and `astream` hand over."""
