"""Conversations of other libraries come along: the conversions in docs/migrate, put to the test.

The pages themselves run in `tests.test_documentation`. Here their `chat_messages` is given the
hundred recorded conversations, in the shapes of OpenAI Agents sessions and of LangChain, and what
the pages say is left out or joined.
"""

import json
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import dspy
import pytest

from dspy_session import SessionState, from_jsonl, sessionify
from dspy_session.testing import ScriptedLM
from tests.house import PROJECT
from tests.test_documentation import python_blocks, run_blocks
from tests.test_real_conversations import CONVERSATIONS

Message = dict[str, Any]
Convert = Callable[[list[dict[str, Any]]], list[Message]]

recordings = pytest.mark.skipif(
    not CONVERSATIONS.is_file(),
    reason="../shared/data/airline_conversations.jsonl is absent: none of them was converted",
)


def chat_messages_of(page: str) -> Convert:
    """The function of that name in the page, as a reader would copy it."""
    path = PROJECT / "docs" / "migrate" / page
    blocks = [b for b in python_blocks(path.read_text("utf-8")) if "def chat_messages" in b.code]
    module = ModuleType("page")
    run_blocks(path, blocks, module)
    convert: Convert = vars(module)["chat_messages"]
    return convert


agents = chat_messages_of("openai-agents.md")
langgraph = chat_messages_of("langgraph.md")


def items_of(messages: list[Message]) -> Iterator[dict[str, Any]]:
    """The same conversation as items of the Responses API."""
    for message in messages:
        said = message["content"]
        if message["role"] == "user":
            yield {"role": "user", "content": said}
        elif message["role"] == "tool":
            call_id = message["tool_call_id"]
            yield {"type": "function_call_output", "call_id": call_id, "output": said}
        else:
            yield {"type": "reasoning", "id": "rs_1", "summary": []}
            if said:
                part = {"type": "output_text", "text": said, "annotations": []}
                yield {"type": "message", "role": "assistant", "content": [part]}
            for call in message.get("tool_calls", ()):
                yield {"type": "function_call", "call_id": call["id"], **call["function"]}


def dicts_of(messages: list[Message]) -> Iterator[dict[str, Any]]:
    """The same conversation as `messages_to_dict` of langchain_core writes it."""
    for message in messages:
        data: dict[str, Any] = {"content": message["content"] or ""}
        if message["role"] == "tool":
            data["tool_call_id"] = message["tool_call_id"]
        if "tool_calls" in message:
            data["tool_calls"] = [
                {
                    "type": "tool_call",
                    "id": call["id"],
                    "name": call["function"]["name"],
                    "args": json.loads(call["function"]["arguments"]),
                }
                for call in message["tool_calls"]
            ]
        kind = {"user": "human", "assistant": "ai"}.get(message["role"], message["role"])
        yield {"type": kind, "data": {"type": kind, **data}}


def told(messages: list[Message]) -> list[object]:
    """What becomes of messages: turns, tool calls with their arguments and results, what waits."""
    with dspy.context(lm=ScriptedLM()):
        session = sessionify(dspy.Predict("question -> answer"), messages=messages)
    steps = [
        (
            message.role,
            message.text,
            message.tool_call_id,
            [(call.id, call.name, json.loads(call.arguments)) for call in message.tool_calls],
        )
        for message in session.messages
    ]
    return [[(turn.inputs, turn.outputs) for turn in session.turns], steps]


@recordings
@pytest.mark.parametrize(("convert", "stored"), [(agents, items_of), (langgraph, dicts_of)])
def test_A3_recorded_conversations_come_along(
    convert: Convert, stored: Callable[[list[Message]], Iterator[dict[str, Any]]]
) -> None:
    with CONVERSATIONS.open(encoding="utf-8") as lines:
        recorded = from_jsonl(lines)
    assert len(recorded) == 100
    for messages in recorded:
        assert told(convert(list(stored(messages)))) == told(messages)


def test_A3_tool_calls_side_by_side_are_one_message() -> None:
    messages = agents(
        [
            {"role": "user", "content": [{"type": "input_text", "text": "Which is on loan?"}]},
            {"type": "message", "role": "assistant", "content": "I look at both."},
            {"type": "function_call", "call_id": "a", "name": "find", "arguments": "{}"},
            {"type": "function_call", "call_id": "b", "name": "find", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "b", "output": "here"},
            {
                "type": "function_call_output",
                "call_id": "a",
                "output": [{"type": "input_text", "text": "on loan"}],
            },
            {"type": "message", "role": "assistant", "content": "The first."},
        ]
    )
    assert [message["role"] for message in messages] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["a", "b"]
    assert (messages[1]["content"], messages[3]["content"]) == ("I look at both.", "on loan")
    assert len(SessionState.from_messages(messages)) == 1


def test_A3_a_tool_call_does_not_join_the_answer_of_the_turn_before() -> None:
    call = {"type": "function_call", "call_id": "a", "name": "find", "arguments": "{}"}
    messages = agents(
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Which is on loan?"},
            call,
            {"type": "function_call_output", "call_id": "a", "output": "none"},
            {"role": "assistant", "content": "None."},
        ]
    )
    assert "tool_calls" not in messages[1]
    assert len(SessionState.from_messages(messages)) == 2


def test_A3_messages_of_other_kinds_are_not_taken_for_what_they_are_not() -> None:
    with pytest.raises(KeyError, match="remove"):
        langgraph([{"type": "human", "content": "Hi"}, {"type": "remove", "content": ""}])
