"""Conversations as data to fine-tune a model with: OpenAI's lines of JSON, and ShareGPT records.

Rules:

- A turn is *taught* if it is wanted, has an answer, and nothing of what it says is left out. In
  OpenAI's form the other turns stay, for what was said later builds on them: their messages of the
  assistant have `"weight": 0`.
- A turn that several conversations share, such as a fork and what it came from, is taught once.
- A conversation ends before the first turn with a picture, a sound or a file: in text they are not.
- Only what the form knows is written: no timestamps, no other keys of imported messages, and
  nothing that waits for an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, Final

import dspy
import msgspec

from dspy_session.core.chat import ChatFields
from dspy_session.core.chat_formats import json_text, to_sharegpt
from dspy_session.core.chat_messages import REDACTED, SYSTEM_ROLES, ChatMessage
from dspy_session.core.chat_view import messages_by_turn
from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState
from dspy_session.core.turn import Turn
from dspy_session.errors import CallError
from dspy_session.program.anatomy import walk
from dspy_session.program.markers import has_blocks

__all__ = [
    "Source",
    "Wanted",
    "finetuning_lines",
    "plain_message",
    "program_tools",
    "sharegpt_lines",
    "tool_shapes",
]

Message = dict[str, Any]
Wanted = Callable[[Turn], bool]
"""Whether a turn is to be taught."""

_ENDS_A_LOOP: Final = ("finish", "submit")


class Source(msgspec.Struct, frozen=True):
    """A conversation that data is made of.

    Attributes:
        state: The conversation.
        options: Say which fields are left out.
        fields: Which fields messages are made of; None as in `state_messages`.
        tools: The tools that the program has, in OpenAI's shape, by name.
    """

    state: SessionState
    options: SessionOptions = SessionOptions()
    fields: ChatFields | None = None
    tools: Mapping[str, Message] = {}


def tool_shapes(tools: Iterable[Any]) -> dict[str, Message]:
    """Return tools in OpenAI's shape, by name.

    Args:
        tools: Functions, `dspy.Tool`s, or dicts that have the shape.

    Raises:
        CallError: One of them is something else.
    """
    shapes = {}
    for tool in tools:
        shape = tool if isinstance(tool, Mapping) else _shape(tool)
        function = shape.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise CallError(
                'A tool must be a function, a dspy.Tool, or a dict such as {"type": "function", '
                f'"function": {{"name": "look_up", "parameters": {{...}}}}}}, not {tool!r}.'
            )
        shapes[function["name"]] = dict(shape)
    return shapes


def program_tools(program: dspy.Module) -> dict[str, Message]:
    """Return the tools of the agents in a program, in OpenAI's shape, by name.

    Args:
        program: Any module.
    """
    shapes: dict[str, Message] = {}
    for _, module in walk(program):
        held = vars(module).get("tools")
        tools = held.values() if isinstance(held, Mapping) else ()
        mine = [t for t in tools if isinstance(t, dspy.Tool) and t.name not in _ENDS_A_LOOP]
        shapes.update(tool_shapes(mine))
    return shapes


def _shape(tool: Any) -> Message:
    if not isinstance(tool, dspy.Tool):
        if not callable(tool):
            return {}
        tool = dspy.Tool(tool)
    function = tool.format_as_litellm_function_call()["function"]
    said = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": said}


def finetuning_lines(sources: Iterable[Source], wanted: Wanted) -> Iterator[str]:
    """Yield a line for each conversation that teaches something.

    Args:
        sources: The conversations.
        wanted: Whether a turn is to be taught.

    Raises:
        CallError: A tool was called whose definition is not known.
    """
    taught_already: set[str] = set()
    for source in sources:
        opening, told = _told(source)
        taught = [_teaches(*each, wanted) and each[0].id not in taught_already for each in told]
        if not any(taught):
            continue
        last = max(at for at, is_taught in enumerate(taught) if is_taught)
        messages = _weighed(opening, False)
        for (turn, said), is_taught in zip(told[: last + 1], taught, strict=False):
            messages += _weighed(said, is_taught)
            taught_already.update({turn.id} - {""})
        record: Message = {"messages": messages}
        tools = _tools(messages, source.tools)
        yield json_text({**record, "tools": tools} if tools else record) + "\n"


def sharegpt_lines(sources: Iterable[Source], wanted: Wanted) -> Iterator[str]:
    """Yield a record for each conversation, up to the first turn that is not to be taught.

    Args:
        sources: The conversations.
        wanted: Whether a turn is to be taught.
    """
    taught_already: set[str] = set()
    for source in sources:
        opening, told = _told(source)
        kept = list(takewhile(lambda each: _teaches(*each, wanted), told))
        fresh = [turn for turn, _ in kept if turn.id not in taught_already]
        if fresh:
            taught_already.update({turn.id for turn in fresh} - {""})
            messages = [*opening, *(message for _, said in kept for message in said)]
            yield json_text(to_sharegpt(messages)) + "\n"


def _told(source: Source) -> tuple[list[Message], list[tuple[Turn, list[Message]]]]:
    opening, told = messages_by_turn(source.state, source.fields, source.options.redact_fields)
    in_text = takewhile(lambda each: not has_blocks(each[0].exchange.parts[:2]), told)
    return (
        [plain_message(message) for message in opening],
        [(turn, [plain_message(message) for message in said]) for turn, said in in_text],
    )


def _teaches(turn: Turn, said: Sequence[Message], wanted: Wanted) -> bool:
    return (
        bool(said)
        and said[-1]["role"] == "assistant"
        and not any(message["content"] == REDACTED for message in said)
        and wanted(turn)
    )


def plain_message(message: Mapping[str, Any]) -> Message:
    """Return a message with what the form knows of it: role, content, tool calls, who speaks.

    Args:
        message: A checked message in OpenAI's shape.
    """
    read = ChatMessage.of(message)
    plain = msgspec.structs.replace(
        read,
        role="system" if read.role in SYSTEM_ROLES else read.role,
        name=None if read.role == "tool" else read.name,
        raw=None,
    )
    return plain.to_dict()


def _weighed(messages: Iterable[Message], is_taught: bool) -> list[Message]:
    return [
        {**message, "weight": 0} if message["role"] == "assistant" and not is_taught else message
        for message in messages
    ]


def _tools(messages: Iterable[Message], known: Mapping[str, Message]) -> list[Message]:
    """The definitions of all tools, if one of them was called."""
    called = [
        call["function"]["name"] for message in messages for call in message.get("tool_calls") or ()
    ]
    for name in called:
        if name not in known:
            raise CallError(
                f"The conversation calls the tool {name!r}, and a line that has tool calls must "
                "define the tools: pass tools=[...] (functions, dspy.Tools or dicts in OpenAI's "
                'shape), or leave tool calls out with "tool_calls" among redact_fields.'
            )
    return list(known.values()) if called else []
