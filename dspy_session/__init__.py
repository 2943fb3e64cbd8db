"""dspy-session: give any DSPy program a conversation.

    session = sessionify(program)      # the everyday façade
    session(question="Hi")             # remembers, forks, undoes, saves

    prediction, state = step(state, program, inputs)      # all that a server needs

Names are loaded when first used: importing the pure core does not import DSPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from dspy_session.core.options import SessionOptions
    from dspy_session.core.state import SessionState
    from dspy_session.core.turn import Attempt, Turn
    from dspy_session.core.values import ValueCodec, register_value_codec
    from dspy_session.errors import (
        CallError,
        FormatError,
        HistoryError,
        LockError,
        MetricError,
        ModuleTypeError,
        OptionError,
        SessionError,
        TurnIndexError,
        ValueCodecError,
    )
    from dspy_session.program.events import StatusEvent, StreamEvent, TextEvent, TurnEvent
    from dspy_session.program.records import codec_for
    from dspy_session.program.run import astep, step
    from dspy_session.program.slot import bake_history
    from dspy_session.program.stream import astream_step, stream_step
    from dspy_session.program.types import program_codecs
    from dspy_session.session import Session, sessionify

_HOMES = {
    "Attempt": "core.turn",
    "CallError": "errors",
    "FormatError": "errors",
    "HistoryError": "errors",
    "LockError": "errors",
    "MetricError": "errors",
    "ModuleTypeError": "errors",
    "OptionError": "errors",
    "Session": "session",
    "SessionError": "errors",
    "SessionOptions": "core.options",
    "SessionState": "core.state",
    "StatusEvent": "program",
    "StreamEvent": "program",
    "TextEvent": "program",
    "Turn": "core.turn",
    "TurnEvent": "program",
    "TurnIndexError": "errors",
    "ValueCodec": "core.values",
    "ValueCodecError": "errors",
    "astep": "program",
    "astream_step": "program",
    "bake_history": "program",
    "codec_for": "program",
    "program_codecs": "program",
    "register_value_codec": "core.values",
    "sessionify": "session",
    "step": "program",
    "stream_step": "program",
}

__all__ = [
    "Attempt",
    "CallError",
    "FormatError",
    "HistoryError",
    "LockError",
    "MetricError",
    "ModuleTypeError",
    "OptionError",
    "Session",
    "SessionError",
    "SessionOptions",
    "SessionState",
    "StatusEvent",
    "StreamEvent",
    "TextEvent",
    "Turn",
    "TurnEvent",
    "TurnIndexError",
    "ValueCodec",
    "ValueCodecError",
    "astep",
    "astream_step",
    "bake_history",
    "codec_for",
    "program_codecs",
    "register_value_codec",
    "sessionify",
    "step",
    "stream_step",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
