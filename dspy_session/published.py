"""Formats 1 and 2: what the published dspy-session 0.1 saved, read into a conversation of today."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from dspy_session.core.options import SessionOptions, make_options
from dspy_session.core.state import SessionState, start
from dspy_session.core.step import commit, prepare
from dspy_session.core.transitions import annotate, truncate
from dspy_session.core.turn import Run

__all__ = ["from_published", "read_published"]


class _PublishedTurn(msgspec.Struct):
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    score: float | None = None


class _PublishedHistory(msgspec.Struct):
    messages: list[dict[str, Any]] = []


class _Published(msgspec.Struct):
    turns: list[_PublishedTurn]
    history_field: str = "history"
    max_turns: int | None = None
    max_stored_turns: int | None = None
    copy_mode: str = "deep"
    exclude_fields: list[str] | None = None
    history_input_fields: list[str] | None = None
    input_field_override: list[str] | None = None
    history_policy: str = "override"
    initial_history: _PublishedHistory | None = None


def read_published(data: bytes) -> dict[str, Any] | None:
    """Read JSON as Python writes it, which the published versions did: with NaN and Infinity.

    Args:
        data: A file's content.

    Returns:
        The document; None if it is none of theirs.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and "kind" not in document else None


def from_published(data: Mapping[str, Any]) -> tuple[SessionState, SessionOptions]:
    """Read versions 1 and 2.

    They keep no snapshots: each turn is taken to have seen the turns before it, under the file's
    own options. Their `exclude_fields` lists the history field itself, which is never shown anyway;
    a history that stands among the fields of a turn is left out. Their indices repeat after
    trimming, so turns are counted anew.

    Args:
        data: A document of version 1 or 2.

    Raises:
        msgspec.ValidationError: It is damaged.
    """
    old = msgspec.convert(data, _Published)
    options = make_options(
        {
            "history_field": old.history_field,
            "max_turns": old.max_turns,
            "max_stored_turns": old.max_stored_turns,
            "copy_mode": old.copy_mode,
            "exclude_fields": frozenset(old.exclude_fields or ()) - {old.history_field},
            "history_input_fields": old.history_input_fields or old.input_field_override,
            "history_policy": old.history_policy,
        }
    )
    state = start(old.initial_history.messages if old.initial_history else ())
    unlimited = options.replace(max_stored_turns=None)
    for turn in old.turns:
        for fields in (turn.inputs, turn.outputs):
            fields.pop(old.history_field, None)
        step = prepare(state, turn.inputs, options)
        recorded, state = commit(state, step, turn.outputs, Run(), unlimited)
        if recorded is not None and turn.score is not None:
            state = annotate(state, {recorded.index: (turn.score, None)})
    return truncate(state, options.max_stored_turns), options
