"""The pure core: conversations as immutable values, and the functions from one to the next.

Nothing here imports DSPy, reads a clock, makes an id, logs, locks, or touches a file. The shell
around it (`dspy_session.program`, `dspy_session.Session`) brings those in as arguments.
"""

from __future__ import annotations

from dspy_session.core import flat as _flat  # noqa: F401  # registers how states are pickled
from dspy_session.core.chat import (
    ChatFields,
    ChatMessage,
    ChatToolCall,
    add_message,
    add_messages,
    from_messages,
    state_messages,
    to_openai,
)
from dspy_session.core.chat_formats import from_jsonl, from_sharegpt, to_jsonl, to_sharegpt
from dspy_session.core.copies import private_copy
from dspy_session.core.data import DELETED, EMPTY_DATA, Data, as_data
from dspy_session.core.options import (
    CopyMode,
    HistoryPolicy,
    Lock,
    OnMetricError,
    Scope,
    SessionOptions,
    make_options,
)
from dspy_session.core.profile import Instructions, Place, Profile, as_instructions
from dspy_session.core.session_data import SessionData
from dspy_session.core.state import SessionState, start, visible_window, with_id
from dspy_session.core.step import Step, commit, prepare
from dspy_session.core.transitions import (
    annotate,
    clear,
    record,
    redo,
    replace_turn,
    reseed,
    reset,
    rewind,
    summarized,
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
from dspy_session.core.writes import describe, instruct, replace_data, write, write_pending

__all__ = [
    "DELETED",
    "EMPTY_DATA",
    "Attempt",
    "ChatFields",
    "ChatMessage",
    "ChatToolCall",
    "CopyMode",
    "Data",
    "Exchange",
    "HistoryPolicy",
    "Instructions",
    "Lock",
    "OnMetricError",
    "Place",
    "PlainHistory",
    "Profile",
    "Run",
    "Scope",
    "SessionData",
    "SessionOptions",
    "SessionState",
    "Step",
    "Turn",
    "ValueCodec",
    "View",
    "Window",
    "add_message",
    "add_messages",
    "annotate",
    "as_data",
    "as_instructions",
    "clear",
    "commit",
    "describe",
    "from_jsonl",
    "from_messages",
    "from_plain",
    "from_sharegpt",
    "instruct",
    "make_options",
    "prepare",
    "private_copy",
    "record",
    "redo",
    "register_value_codec",
    "replace_data",
    "replace_turn",
    "reseed",
    "reset",
    "rewind",
    "start",
    "state_messages",
    "summarized",
    "to_jsonl",
    "to_openai",
    "to_plain",
    "to_sharegpt",
    "truncate",
    "undo",
    "visible_window",
    "with_id",
    "write",
    "write_pending",
]
