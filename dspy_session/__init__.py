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
    from dspy_session.core.chat import ChatFields, ChatMessage, ChatToolCall
    from dspy_session.core.chat_formats import from_jsonl, from_sharegpt, to_jsonl, to_sharegpt
    from dspy_session.core.data import DELETED, Data
    from dspy_session.core.lineage import Lineage
    from dspy_session.core.options import SessionOptions
    from dspy_session.core.profile import Instructions
    from dspy_session.core.session_data import SessionData
    from dspy_session.core.state import SessionState
    from dspy_session.core.tokens import summary_due, token_count
    from dspy_session.core.turn import Attempt, Turn
    from dspy_session.core.values import ValueCodec, register_value_codec
    from dspy_session.drifting import drift, drift_baseline, render_prompts
    from dspy_session.errors import (
        CallError,
        ConflictError,
        DataError,
        DataKeyError,
        FormatError,
        HistoryError,
        HookError,
        LockError,
        MessageError,
        MetricError,
        ModuleTypeError,
        OptionError,
        PayloadError,
        SecretError,
        SessionError,
        SessionExistsError,
        SessionNotFoundError,
        SessionSizeError,
        StoreError,
        ToolError,
        TurnIndexError,
        TurnRefusedError,
        ValueCodecError,
    )
    from dspy_session.journal.sealing import new_secret
    from dspy_session.looking import tree
    from dspy_session.manager import SessionManager
    from dspy_session.pictures import ConversationTree
    from dspy_session.program.approvals import ApprovalRequest
    from dspy_session.program.current import current_data, current_request
    from dspy_session.program.events import StatusEvent, StreamEvent, TextEvent, TurnEvent
    from dspy_session.program.example_files import examples_from_jsonl, examples_jsonl
    from dspy_session.program.hooks import AfterTurn, BeforeTurn, Hooks
    from dspy_session.program.one_turn import astep, step
    from dspy_session.program.preferences import PreferencePair, preferences_jsonl
    from dspy_session.program.records import codec_for
    from dspy_session.program.slot import bake_history
    from dspy_session.program.splitting import split
    from dspy_session.program.stream import astream_step, stream_step
    from dspy_session.program.summaries import (
        SummarizeConversation,
        asummarize_state,
        summarize_state,
    )
    from dspy_session.program.tool_calls import ToolCall
    from dspy_session.program.tools import session_tool
    from dspy_session.program.turn_examples import lineage
    from dspy_session.program.types import program_codecs
    from dspy_session.prompt_changes import Drift
    from dspy_session.prompt_values import Prompts
    from dspy_session.protocol import arespond, respond
    from dspy_session.replay_comparison import ReplayReport, compare_replays
    from dspy_session.replay_report import Replay
    from dspy_session.replaying import areplay, replay, replay_all
    from dspy_session.session import Session, sessionify
    from dspy_session.session_info import SearchHit, SessionInfo, StoreStatistics
    from dspy_session.stores import (
        DocumentStore,
        MemoryStore,
        RedisStore,
        SessionStore,
        SQLStore,
        Store,
        open_store,
    )
    from dspy_session.templates import SessionTemplate
    from dspy_session.training import finetuning_jsonl, preference_pairs, sharegpt_jsonl

_HOMES = {
    "AfterTurn": "program",
    "ApprovalRequest": "program",
    "Attempt": "core.turn",
    "BeforeTurn": "program",
    "CallError": "errors",
    "ChatFields": "core.chat",
    "ChatMessage": "core.chat",
    "ChatToolCall": "core.chat",
    "ConflictError": "errors",
    "ConversationTree": "pictures",
    "DELETED": "core.data",
    "Data": "core.data",
    "DataError": "errors",
    "DataKeyError": "errors",
    "DocumentStore": "stores",
    "Drift": "prompt_changes",
    "FormatError": "errors",
    "HistoryError": "errors",
    "HookError": "errors",
    "Hooks": "program",
    "Instructions": "core.profile",
    "Lineage": "core.lineage",
    "LockError": "errors",
    "MemoryStore": "stores",
    "MessageError": "errors",
    "MetricError": "errors",
    "ModuleTypeError": "errors",
    "OptionError": "errors",
    "PayloadError": "errors",
    "PreferencePair": "program",
    "Prompts": "prompt_values",
    "RedisStore": "stores",
    "Replay": "replay_report",
    "ReplayReport": "replay_comparison",
    "SQLStore": "stores",
    "SearchHit": "session_info",
    "SecretError": "errors",
    "Session": "session",
    "SessionData": "core.session_data",
    "SessionError": "errors",
    "SessionExistsError": "errors",
    "SessionInfo": "session_info",
    "SessionManager": "manager",
    "SessionNotFoundError": "errors",
    "SessionOptions": "core.options",
    "SessionSizeError": "errors",
    "SessionState": "core.state",
    "SessionStore": "stores",
    "SessionTemplate": "templates",
    "StatusEvent": "program",
    "Store": "stores",
    "StoreError": "errors",
    "StoreStatistics": "session_info",
    "StreamEvent": "program",
    "SummarizeConversation": "program",
    "TextEvent": "program",
    "ToolCall": "program",
    "ToolError": "errors",
    "Turn": "core.turn",
    "TurnEvent": "program",
    "TurnIndexError": "errors",
    "TurnRefusedError": "errors",
    "ValueCodec": "core.values",
    "ValueCodecError": "errors",
    "areplay": "replaying",
    "arespond": "protocol",
    "astep": "program",
    "astream_step": "program",
    "asummarize_state": "program",
    "bake_history": "program",
    "codec_for": "program",
    "compare_replays": "replay_comparison",
    "current_data": "program",
    "current_request": "program",
    "examples_from_jsonl": "program",
    "examples_jsonl": "program",
    "finetuning_jsonl": "training",
    "drift": "drifting",
    "drift_baseline": "drifting",
    "from_jsonl": "core.chat_formats",
    "from_sharegpt": "core.chat_formats",
    "lineage": "program",
    "new_secret": "journal.sealing",
    "open_store": "stores",
    "preference_pairs": "training",
    "preferences_jsonl": "program",
    "program_codecs": "program",
    "register_value_codec": "core.values",
    "render_prompts": "drifting",
    "replay": "replaying",
    "replay_all": "replaying",
    "respond": "protocol",
    "session_tool": "program",
    "sessionify": "session",
    "sharegpt_jsonl": "training",
    "split": "program",
    "step": "program",
    "stream_step": "program",
    "summarize_state": "program",
    "summary_due": "core.tokens",
    "to_jsonl": "core.chat_formats",
    "to_sharegpt": "core.chat_formats",
    "token_count": "core.tokens",
    "tree": "looking",
}

__all__ = [
    "AfterTurn",
    "ApprovalRequest",
    "Attempt",
    "BeforeTurn",
    "CallError",
    "ChatFields",
    "ChatMessage",
    "ChatToolCall",
    "ConflictError",
    "ConversationTree",
    "DELETED",
    "Data",
    "DataError",
    "DataKeyError",
    "DocumentStore",
    "Drift",
    "FormatError",
    "HistoryError",
    "HookError",
    "Hooks",
    "Instructions",
    "Lineage",
    "LockError",
    "MemoryStore",
    "MessageError",
    "MetricError",
    "ModuleTypeError",
    "OptionError",
    "PayloadError",
    "PreferencePair",
    "Prompts",
    "RedisStore",
    "Replay",
    "ReplayReport",
    "SQLStore",
    "SearchHit",
    "SecretError",
    "Session",
    "SessionData",
    "SessionError",
    "SessionExistsError",
    "SessionInfo",
    "SessionManager",
    "SessionNotFoundError",
    "SessionOptions",
    "SessionSizeError",
    "SessionState",
    "SessionStore",
    "SessionTemplate",
    "StatusEvent",
    "Store",
    "StoreError",
    "StoreStatistics",
    "StreamEvent",
    "SummarizeConversation",
    "TextEvent",
    "ToolCall",
    "ToolError",
    "Turn",
    "TurnEvent",
    "TurnIndexError",
    "TurnRefusedError",
    "ValueCodec",
    "ValueCodecError",
    "areplay",
    "arespond",
    "astep",
    "astream_step",
    "asummarize_state",
    "bake_history",
    "codec_for",
    "compare_replays",
    "current_data",
    "current_request",
    "drift",
    "drift_baseline",
    "examples_from_jsonl",
    "examples_jsonl",
    "finetuning_jsonl",
    "from_jsonl",
    "from_sharegpt",
    "lineage",
    "new_secret",
    "open_store",
    "preference_pairs",
    "preferences_jsonl",
    "program_codecs",
    "register_value_codec",
    "render_prompts",
    "replay",
    "replay_all",
    "respond",
    "session_tool",
    "sessionify",
    "sharegpt_jsonl",
    "split",
    "step",
    "stream_step",
    "summarize_state",
    "summary_due",
    "to_jsonl",
    "to_sharegpt",
    "token_count",
    "tree",
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
