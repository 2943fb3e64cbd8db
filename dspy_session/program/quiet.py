"""DSPy's warning about a missing input, where that input is the history the session supplies.

A predictor with a history field of its own checks its inputs before any adapter runs. If the
program around it does not pass a history, DSPy warns on every call, though the session is about to
supply it. Whatever else is missing is still warned about.
"""

from __future__ import annotations

import logging
from typing import Final

import dspy

from dspy_session.program.frame import owning_frame
from dspy_session.program.slot import declared_history

__all__ = ["install"]

_WARNING: Final = "Not all input fields were provided to module."


class _SuppliedHistory(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Drop a record that complains of the session's history alone."""
        if not str(record.msg).startswith(_WARNING) or not isinstance(record.args, tuple):
            return True
        caller = (dspy.settings.caller_modules or [None])[-1]
        frame = owning_frame(caller)
        if frame is None:
            return True
        name, strict = frame.options.history_field, frame.options.strict_history_annotation
        return record.args[-1] != [declared_history(caller.signature, name, strict)]


_filter: Final = _SuppliedHistory()


def install() -> None:
    """Put the filter on the logger of DSPy's Predict, once."""
    logging.getLogger("dspy.predict.predict").addFilter(_filter)
