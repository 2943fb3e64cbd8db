"""What is written down of a session, before anybody writes it: numbers, parameters, files.

Files leave this process, so nothing is in them that the session keeps private or redacts.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final

import dspy
import msgspec

from dspy_session.core.chat_formats import json_text
from dspy_session.core.turn import Turn
from dspy_session.core.values import to_plain
from dspy_session.errors import CallError
from dspy_session.integrations.mlflow.tracking import Dataset, Measure
from dspy_session.program.example_files import examples_jsonl
from dspy_session.program.nested import told_outside
from dspy_session.program.types import program_codecs
from dspy_session.session import Session

__all__ = [
    "SCORE",
    "SESSION_TAG",
    "STATE_FILE",
    "check_session",
    "dataset_of",
    "examples_file",
    "files_of",
    "measures_of",
    "params_of",
    "state_text",
    "summary_of",
]

SCORE: Final = "turn_score"
"""The name of a turn's score: as a metric, and as an assessment of its trace."""
SESSION_TAG: Final = "dspy_session.session_id"
"""The tag of a run that has the id of the session it is about."""
STATE_FILE: Final = "session_state.json"
"""The name of the file that `Session.load_from` reads."""


def check_session(what: str, session: Any) -> None:
    """Refuse what is no session.

    Args:
        what: Who was given it.
        session: What was given.

    Raises:
        CallError: It is no session.
    """
    if not isinstance(session, Session):
        raise CallError(f"{what} takes a Session, not {type(session).__name__}.")


def params_of(session: Session) -> dict[str, str]:
    """Return how a session behaves: its options, and the class of its program.

    Args:
        session: The session.
    """
    options = session.options
    params = {"module_type": type(session.module).__name__}
    for name in options.__struct_fields__:
        params[name] = _param(getattr(options, name))
    return {f"session.{name}": value for name, value in params.items()}


def _param(value: Any) -> str:
    return ", ".join(sorted(value)) if isinstance(value, frozenset) else str(value)


def measures_of(turn: Turn) -> Iterator[Measure]:
    """Yield the numbers that a turn has from the beginning.

    Args:
        turn: The turn.
    """
    yield Measure("history_length", len(turn.window), turn.index, turn.time)
    if turn.duration is not None:
        yield Measure("turn_duration", turn.duration, turn.index, turn.time)
    if turn.cost is not None:
        yield Measure("turn_cost", turn.cost, turn.index, turn.time)
    tokens = sum(counts.get("total_tokens") or 0 for counts in turn.usage.values())
    if tokens:
        yield Measure("turn_tokens", tokens, turn.index, turn.time)


def summary_of(turns: Sequence[Turn]) -> Iterator[Measure]:
    """Yield the numbers that a conversation has at its end: scores, and what they come to.

    Args:
        turns: Its turns.
    """
    yield Measure("turn_count", len(turns))
    scores = []
    for turn in turns:
        if turn.score is not None:
            scores.append(turn.score)
            yield Measure(SCORE, turn.score, turn.index, turn.time)
    if scores:
        yield Measure("score_mean", statistics.fmean(scores))
        yield Measure("score_min", min(scores))
        yield Measure("score_max", max(scores))


def state_text(session: Session) -> str:
    """Return the conversation as the text of a file for `Session.load_from`.

    Args:
        session: The session.

    Raises:
        ValueCodecError: A field holds a value of a type without written form.
    """
    return json_text(session.to_dict())


def files_of(session: Session, *, include_history: bool = True) -> dict[str, str]:
    """Return the artifacts of a session: texts by file name.

    Args:
        session: The session.
        include_history: Whether each example holds what its call saw.

    Raises:
        ValueCodecError: A field holds a value of a type without written form.
    """
    codecs = program_codecs(session.module)
    told = told_outside(session.state, session.module, session.options)
    turns = (json_text(to_plain(_turn_details(turn), codecs)) for turn in told)
    examples = session.to_examples(include_history=include_history)
    lines = (line.rstrip("\n") for line in examples_jsonl(examples, program=session.module))
    return {
        STATE_FILE: state_text(session),  # first: its complaints say where in the conversation
        "turns.json": _json_array(turns),
        "examples.json": _json_array(lines),
    }


def _turn_details(turn: Turn) -> dict[str, Any]:
    return {
        "index": turn.index,
        "id": turn.id,
        "inputs": turn.inputs,
        "outputs": turn.outputs,
        "details": turn.details,
        "history_length": len(turn.window),
        "score": turn.score,
        "feedback": turn.feedback,
        "time": turn.time,
        "duration": turn.duration,
        "usage": turn.usage,
        "cost": turn.cost,
        "lm_calls": turn.lm_calls,
        "fingerprint": turn.fingerprint,
        "request_id": turn.request_id,
    }


def _json_array(items: Iterable[str]) -> str:
    return "[" + ",\n".join(items) + "]\n"


def examples_file(examples: Iterable[dspy.Example], session: Session) -> str:
    """Return examples as the text of a file that `examples_from_jsonl` reads.

    Args:
        examples: The examples.
        session: The session that they were made of.

    Raises:
        ValueCodecError: A field holds a value of a type without written form.
    """
    return "".join(examples_jsonl(examples, program=session.module))


def dataset_of(name: str, text: str) -> Dataset:
    """Return what is to be written down of a file of examples.

    Args:
        name: What they are called.
        text: The file.
    """
    rows = [msgspec.json.decode(line, type=dict[str, Any]) for line in text.split("\n")[:-1]]
    fields = dict.fromkeys(chain.from_iterable(rows))
    columns = [
        {"name": field, "type": "string", "required": all(field in row for row in rows)}
        for field in fields
    ]
    return Dataset(name, hashlib.sha256(text.encode()).hexdigest()[:16], columns, len(rows))
