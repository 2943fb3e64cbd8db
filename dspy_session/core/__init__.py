"""The pure core: conversations as immutable values, and the functions from one to the next.

Nothing here imports DSPy, reads a clock, makes an id, logs, locks, or touches a file. The shell
around it (`dspy_session.program`, `dspy_session.Session`) brings those in as arguments.
"""

from __future__ import annotations

from dspy_session.core import flat as _flat  # noqa: F401  # registers how states are pickled
from dspy_session.core.copies import private_copy
from dspy_session.core.options import (
    CopyMode,
    HistoryPolicy,
    Lock,
    OnMetricError,
    Scope,
    SessionOptions,
    make_options,
)
from dspy_session.core.state import SessionState, start, visible_window, with_id
from dspy_session.core.step import Step, commit, prepare
from dspy_session.core.transitions import (
    annotate,
    record,
    redo,
    replace_turn,
    reseed,
    reset,
    rewind,
    truncate,
    undo,
)
from dspy_session.core.turn import Attempt, Run, Turn
from dspy_session.core.values import (
    ValueCodec,
    from_plain,
    register_value_codec,
    to_plain,
)
from dspy_session.core.window import Exchange, PlainHistory, View, Window

__all__ = [
    "Attempt",
    "CopyMode",
    "Exchange",
    "HistoryPolicy",
    "Lock",
    "OnMetricError",
    "PlainHistory",
    "Run",
    "Scope",
    "SessionOptions",
    "SessionState",
    "Step",
    "Turn",
    "ValueCodec",
    "View",
    "Window",
    "annotate",
    "commit",
    "from_plain",
    "make_options",
    "prepare",
    "private_copy",
    "record",
    "redo",
    "register_value_codec",
    "replace_turn",
    "reseed",
    "reset",
    "rewind",
    "start",
    "to_plain",
    "truncate",
    "undo",
    "visible_window",
    "with_id",
]
