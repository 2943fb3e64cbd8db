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
    from dspy_session.core.turn import Turn
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
    from dspy_session.program.run import astep, step
    from dspy_session.program.slot import bake_history
    from dspy_session.session import Session, sessionify

_HOMES = {
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
    "Turn": "core.turn",
    "TurnIndexError": "errors",
    "ValueCodec": "core.values",
    "ValueCodecError": "errors",
    "astep": "program",
    "bake_history": "program",
    "register_value_codec": "core.values",
    "sessionify": "session",
    "step": "program",
}

__all__ = [
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
    "Turn",
    "TurnIndexError",
    "ValueCodec",
    "ValueCodecError",
    "astep",
    "bake_history",
    "register_value_codec",
    "sessionify",
    "step",
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
