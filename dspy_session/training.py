"""Data for training that is made of several conversations: pairs of answers, and files.

Conversations are given as sessions, with the options and fields that they have, or as states.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import dspy

from dspy_session.chatting import Chatting
from dspy_session.core.chat import ChatFields, as_chat_fields
from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState
from dspy_session.core.turn import Turn
from dspy_session.errors import CallError
from dspy_session.program.finetuning import (
    Source,
    Wanted,
    finetuning_lines,
    program_tools,
    sharegpt_lines,
    tool_shapes,
)
from dspy_session.program.preferences import PreferencePair, pairs_of
from dspy_session.program.turn_examples import lineage

__all__ = ["finetuning_jsonl", "preference_pairs", "sharegpt_jsonl"]

Fields = ChatFields | Mapping[str, str] | None


def preference_pairs(
    *conversations: Chatting | SessionState,
    min_margin: float = 0.0,
    fields: Fields = None,
    options: SessionOptions | None = None,
) -> list[PreferencePair]:
    """Return pairs of scored answers to the same inputs after the same conversation.

    Turns that were asked again, in a fork or by `regenerate`, are such answers: also those that
    `redo` would bring back. What counts is what their calls saw, so it may be a fork that is long
    past the turn, or another session that began in the same way.

    Args:
        *conversations: Sessions or states.
        min_margin: By how much the scores differ at least. Equal scores make no pair.
        fields: Which fields chat messages are made of; None for what the session's program says.
        options: The options of states, such as `redact_fields`; sessions have their own.

    Returns:
        The pairs. Redacted fields are in none, and what only differs in them makes none.

    Raises:
        CallError: One of them is no conversation, or `min_margin` is no number from 0 up.
        OptionError: `fields` is no mapping of fields.
    """
    if not isinstance(min_margin, numbers.Real) or not min_margin >= 0:
        raise CallError(f"min_margin must be a number from 0 up, not {min_margin!r}.")
    return pairs_of(_sources("preference_pairs", conversations, fields, options), min_margin)


def finetuning_jsonl(
    *conversations: Chatting | SessionState,
    min_score: float | None = None,
    examples: Iterable[dspy.Example] | None = None,
    fields: Fields = None,
    tools: Iterable[Any] = (),
    options: SessionOptions | None = None,
) -> Iterator[str]:
    """Yield lines of JSON that OpenAI's fine-tuning of chat models reads, one per conversation.

    A line has the messages up to the last turn that is taught; what the assistant says in other
    turns has `"weight": 0`. A turn that several conversations share is taught once, and a
    conversation that teaches nothing has no line.

    Args:
        *conversations: Sessions or states.
        min_score: Teach only turns that have this score at least; None teaches all.
        examples: Teach only the turns that these were made of, such as one part of a `split`.
        fields: Which fields chat messages are made of; None for what the session's program says.
        tools: The tools that messages call: functions, `dspy.Tool`s, dicts in OpenAI's shape.
            Those of a session's agents are known.
        options: The options of states, such as `redact_fields`; sessions have their own.

    Raises:
        CallError: One of them is no conversation, an example was made of no turn, `min_score` is no
            number, or a tool is called that nobody defines.
        OptionError: `fields` is no mapping of fields.
    """
    sources = _sources("finetuning_jsonl", conversations, fields, options, tool_shapes(tools))
    return finetuning_lines(sources, _wanted(min_score, examples))


def sharegpt_jsonl(
    *conversations: Chatting | SessionState,
    min_score: float | None = None,
    examples: Iterable[dspy.Example] | None = None,
    fields: Fields = None,
    options: SessionOptions | None = None,
) -> Iterator[str]:
    """Yield a ShareGPT record for each conversation, as a line of JSON; `from_jsonl` reads them.

    That form cannot say what is not to be taught, so a record ends before the first such turn.

    Args:
        *conversations: Sessions or states.
        min_score: As in `finetuning_jsonl`.
        examples: As in `finetuning_jsonl`.
        fields: As in `finetuning_jsonl`.
        options: As in `finetuning_jsonl`.

    Raises:
        CallError: As in `finetuning_jsonl`.
        OptionError: `fields` is no mapping of fields.
    """
    sources = _sources("sharegpt_jsonl", conversations, fields, options)
    return sharegpt_lines(sources, _wanted(min_score, examples))


def _sources(
    what: str,
    conversations: Iterable[Any],
    fields: Fields,
    options: SessionOptions | None,
    tools: Mapping[str, dict[str, Any]] | None = None,
) -> list[Source]:
    chosen = None if fields is None else as_chat_fields(fields)
    known = dict(tools or {})
    sources = []
    for each in conversations:
        if isinstance(each, Chatting):
            shown = chosen or each._shown_fields()
            own = {**program_tools(each.module), **known}
            sources.append(Source(each.state, each._options, shown, own))
        elif isinstance(each, SessionState):
            sources.append(Source(each, options or SessionOptions(), chosen, known))
        else:
            raise CallError(f"{what} takes sessions and states, not {type(each).__name__}.")
    return sources


def _wanted(min_score: float | None, examples: Iterable[dspy.Example] | None) -> Wanted:
    if min_score is not None and not isinstance(min_score, numbers.Real):
        raise CallError(f"min_score must be None or a number, not {min_score!r}.")
    turns = None if examples is None else {_turn_of(example) for example in examples}

    def wanted(turn: Turn) -> bool:
        good = min_score is None or (turn.score is not None and turn.score >= min_score)
        return good and (turns is None or turn.id in turns)

    return wanted


def _turn_of(example: dspy.Example) -> str:
    known = lineage(example)
    if known is None or not known.turn_id:
        raise CallError(
            "An example was made of no turn that has an id, so nobody knows what it teaches. Pass "
            "examples of to_examples, or copies of them; see dspy_session.lineage."
        )
    return known.turn_id
