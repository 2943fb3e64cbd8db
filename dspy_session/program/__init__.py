"""The only place that knows DSPy's insides: how a conversation reaches a program, and comes back.

`tests/test_dspy_contract.py` states what is leaned on, and fails loudly when DSPy moves.
"""

from __future__ import annotations

from typing import Any

import dspy

from dspy_session.core.chat_view import set_tool_steps
from dspy_session.core.window import set_history_type
from dspy_session.program.approvals import ApprovalRequest
from dspy_session.program.current import current_data, current_request
from dspy_session.program.events import StatusEvent, StreamEvent, TextEvent, TurnEvent
from dspy_session.program.example_files import examples_from_jsonl, examples_jsonl
from dspy_session.program.fingerprints import fingerprint
from dspy_session.program.hooks import AfterTurn, BeforeTurn, Hooks
from dspy_session.program.one_turn import astep, step
from dspy_session.program.preferences import PreferencePair, preferences_jsonl
from dspy_session.program.quiet import install as install_quiet
from dspy_session.program.records import codec_for
from dspy_session.program.render_cache import clear_render_cache, render_counts
from dspy_session.program.slot import bake_history
from dspy_session.program.splitting import split
from dspy_session.program.stream import astream_step, stream_step
from dspy_session.program.summaries import SummarizeConversation, asummarize_state, summarize_state
from dspy_session.program.tool_calls import ToolCall
from dspy_session.program.tool_steps import tool_steps
from dspy_session.program.tools import session_tool
from dspy_session.program.turn_examples import lineage
from dspy_session.program.types import program_codecs

__all__ = [
    "AfterTurn",
    "ApprovalRequest",
    "BeforeTurn",
    "Hooks",
    "PreferencePair",
    "StatusEvent",
    "StreamEvent",
    "SummarizeConversation",
    "TextEvent",
    "ToolCall",
    "TurnEvent",
    "astep",
    "astream_step",
    "asummarize_state",
    "bake_history",
    "clear_render_cache",
    "codec_for",
    "current_data",
    "current_request",
    "examples_from_jsonl",
    "examples_jsonl",
    "fingerprint",
    "lineage",
    "preferences_jsonl",
    "program_codecs",
    "render_counts",
    "session_tool",
    "split",
    "step",
    "stream_step",
    "summarize_state",
]


def _history(messages: list[dict[str, Any]]) -> dspy.History:
    return dspy.History(messages=messages)


set_history_type(_history)
set_tool_steps(tool_steps)
install_quiet()
