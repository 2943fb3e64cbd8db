"""Which fields of a program are a user's message and an assistant's: inferred, or given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import dspy

from dspy_session.core.chat import ChatFields, as_chat_fields
from dspy_session.core.options import SessionOptions
from dspy_session.errors import CallError
from dspy_session.program.anatomy import faces, walk
from dspy_session.program.slot import declared_history

__all__ = ["chat_fields", "inferred_fields"]


def chat_fields(
    program: dspy.Module,
    options: SessionOptions,
    given: ChatFields | Mapping[str, str] | None = None,
) -> ChatFields:
    """Return which fields chat messages become.

    Args:
        program: The program of the session.
        options: The session's options.
        given: The mapping, or a part of it; None to infer it.

    Raises:
        CallError: It has to be inferred, and the program does not tell.
        OptionError: `given` is no mapping of fields.

    Example:
        >>> chat_fields(dspy.ChainOfThought("request -> reply"), SessionOptions())
        ChatFields(user='request', assistant='reply')
    """
    inferred = inferred_fields(program, options)
    if given is not None and (inferred or not isinstance(given, Mapping) or len(given) > 1):
        return as_chat_fields(given, inferred or ChatFields())
    if inferred is None:
        raise CallError(
            f"Chat messages become turns by two fields, one for each role, but "
            f"{type(program).__name__} has not exactly one text input and one text output. Say "
            'which they are: fields={"user": "request", "assistant": "reply"}; to a session, by '
            'message_fields={"user": "request", "assistant": "reply"}.'
        )
    return inferred


def inferred_fields(program: dspy.Module, options: SessionOptions) -> ChatFields | None:
    """Return the only text input and the only text output of a program; None if it has others.

    Fields of other types do not count, nor does the history, nor the reasoning that a
    ChainOfThought puts in front of the answer.

    Args:
        program: Any module.
        options: The session's options.
    """
    signatures = list(faces(program))
    if len(signatures) != 1:
        return None
    (signature,) = signatures
    history = declared_history(signature, options.history_field, options.strict_history_annotation)
    reasoning = set(_reasoning(program, signature))
    user = [name for name in _texts(signature.input_fields) if name != history]
    assistant = [name for name in _texts(signature.output_fields) if name not in reasoning]
    if len(user) == 1 and len(assistant) == 1:
        return ChatFields(user[0], assistant[0])
    return None


def _texts(fields: Mapping[str, Any]) -> Iterator[str]:
    return (name for name, info in fields.items() if info.annotation in (str, str | None))


def _reasoning(program: dspy.Module, signature: type[dspy.Signature]) -> Iterator[str]:
    """The field that a ChainOfThought puts in front of the outputs of its signature."""
    for _, module in walk(program):
        if isinstance(module, dspy.ChainOfThought) and module.predict.signature is signature:
            yield next(iter(signature.output_fields))
