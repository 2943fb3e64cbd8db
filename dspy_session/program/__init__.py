"""The only place that knows DSPy's insides: how a conversation reaches a program, and comes back.

`tests/test_dspy_contract.py` states what is leaned on, and fails loudly when DSPy moves.
"""

from __future__ import annotations

from typing import Any

import dspy

from dspy_session.core.window import set_history_type
from dspy_session.program.events import StatusEvent, StreamEvent, TextEvent, TurnEvent
from dspy_session.program.fingerprints import fingerprint
from dspy_session.program.quiet import install as install_quiet
from dspy_session.program.records import codec_for
from dspy_session.program.render_cache import clear_render_cache, render_counts
from dspy_session.program.run import astep, step
from dspy_session.program.slot import bake_history
from dspy_session.program.stream import astream_step, stream_step
from dspy_session.program.types import program_codecs

__all__ = [
    "StatusEvent",
    "StreamEvent",
    "TextEvent",
    "TurnEvent",
    "astep",
    "astream_step",
    "bake_history",
    "clear_render_cache",
    "codec_for",
    "fingerprint",
    "program_codecs",
    "render_counts",
    "step",
    "stream_step",
]


def _history(messages: list[dict[str, Any]]) -> dspy.History:
    return dspy.History(messages=messages)


set_history_type(_history)
install_quiet()
