"""Training examples as lines of JSON that DSPy's data loaders read, and back.

A line is an object whose keys are the fields. A history is `{"messages": [...]}`, JSON values are
as they are, and values of other types are tagged as in saved conversations.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import dspy

from dspy_session.core.chat_formats import json_text
from dspy_session.core.lineage import Lineage
from dspy_session.core.values import REGISTERED, ValueCodecs, from_plain, to_plain
from dspy_session.errors import CallError, FormatError, ValueCodecError
from dspy_session.program.turn_examples import lineage, with_lineage
from dspy_session.program.types import program_codecs

__all__ = ["examples_from_jsonl", "examples_jsonl"]


def examples_jsonl(
    examples: Iterable[dspy.Example],
    *,
    lineage_field: str | None = None,
    program: dspy.Module | None = None,
) -> Iterator[str]:
    r"""Yield a line of JSON for each example: its fields, and a line feed.

    Args:
        examples: The examples, for example of `to_examples`.
        lineage_field: The key under which a line has the lineage, too; None leaves it out.
        program: Whose annotations name the types of values beyond JSON.

    Raises:
        CallError: One of them is no example, or has a field of the name `lineage_field`.
        ValueCodecError: A value has no written form.

    Example:
        >>> list(examples_jsonl([dspy.Example(question="Hi", answer="Hello.")]))
        ['{"question": "Hi", "answer": "Hello."}\n']
    """
    codecs = REGISTERED if program is None else program_codecs(program)
    for number, example in enumerate(examples):
        if not isinstance(example, dspy.Example):
            raise CallError(f"examples_jsonl takes dspy.Examples, not {type(example).__name__}.")
        record = {name: _plain(value, number, name, codecs) for name, value in example.items()}
        if lineage_field is not None:
            if lineage_field in record:
                raise CallError(f"Example {number} has a field named {lineage_field!r} already.")
            known = lineage(example)
            record[lineage_field] = None if known is None else known.to_dict()
        yield json_text(record) + "\n"


def _plain(value: Any, number: int, name: str, codecs: ValueCodecs) -> Any:
    try:
        if type(value) is dspy.History:
            return {"messages": to_plain(value.messages, codecs)}
        return to_plain(value, codecs)
    except ValueCodecError as error:
        raise ValueCodecError(
            f"Cannot write field {name!r} of example {number}: {error}."
        ) from error


def examples_from_jsonl(
    lines: Iterable[str],
    *,
    input_keys: Iterable[str],
    history_field: str = "history",
    lineage_field: str | None = None,
    program: dspy.Module | None = None,
) -> list[dspy.Example]:
    """Return the examples in lines of JSON, as `examples_jsonl` writes them.

    Args:
        lines: The lines, for example an open text file; blank ones count nothing.
        input_keys: Which fields are inputs.
        history_field: Which field becomes a `dspy.History`, where there is one.
        lineage_field: The key that has the lineage; None for none.
        program: Whose annotations name the types of values beyond JSON.

    Raises:
        CallError: `input_keys` is one name, not a list.
        FormatError: A line is something else; the error names its number.

    Example:
        >>> lines = ['{"question": "Hi", "answer": "Hello."}']
        >>> examples_from_jsonl(lines, input_keys=["question"])[0].inputs().toDict()
        {'question': 'Hi'}
    """
    if isinstance(input_keys, str):  # whose letters would be taken for names
        raise CallError(f"input_keys must be a list of fields: [{input_keys!r}].")
    codecs = REGISTERED if program is None else program_codecs(program)
    keys = tuple(input_keys)
    examples: list[dspy.Example] = []
    given = lines.split("\n") if isinstance(lines, str) else lines
    for number, line in enumerate(given, start=1):
        if not line.strip():
            continue
        try:
            fields = _fields(line)
            known = fields.pop(lineage_field, None) if lineage_field is not None else None
            values = {name: from_plain(plain, codecs) for name, plain in fields.items()}
            if history_field in values:
                values[history_field] = _history(values[history_field])
            came_from = None if known is None else Lineage.from_dict(known)
        except FormatError as error:
            raise FormatError(f"line {number}: {error}") from error
        examples.append(with_lineage(dspy.Example(values), came_from).with_inputs(*keys))
    return examples


def _fields(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"This is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise FormatError(f"A line must be an object of fields, not {type(fields).__name__}.")
    return fields


def _history(value: Any) -> dspy.History:
    if isinstance(value, dspy.History):
        return value
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise FormatError(f'A history must be {{"messages": [...]}}, not {value!r:.80}.')
    return dspy.History(messages=messages)
