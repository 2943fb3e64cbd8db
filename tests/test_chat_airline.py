"""A hundred recorded conversations become turns, with their tool calls, and messages again."""

from __future__ import annotations

import json
from typing import Any

import dspy
import pytest

from dspy_session import SessionOptions, codec, from_jsonl, from_sharegpt, sessionify, to_sharegpt
from dspy_session.core import (
    SessionState,
    add_message,
    from_messages,
    redo,
    rewind,
    state_messages,
    to_openai,
    undo,
    visible_window,
    with_id,
)
from dspy_session.testing import ScriptedLM
from tests.test_airline_tools import TOOL_CALLS, USER_TURNS
from tests.test_real_conversations import ANSWERED_TURNS, CONVERSATIONS

pytestmark = pytest.mark.skipif(
    not CONVERSATIONS.is_file(),
    reason="../shared/data/airline_conversations.jsonl is absent: no chat was imported",
)

Message = dict[str, Any]
OPTIONS = SessionOptions()


@pytest.fixture(scope="module")
def recorded() -> list[list[Message]]:
    with CONVERSATIONS.open(encoding="utf-8") as lines:
        return from_jsonl(lines)


@pytest.fixture(scope="module")
def imported(recorded: list[list[Message]]) -> list[SessionState]:
    return [from_messages(messages) for messages in recorded]


def written(messages: list[Message]) -> str:
    return json.dumps(messages)


def test_A3_all_come_in_with_their_tool_calls(
    recorded: list[list[Message]], imported: list[SessionState]
) -> None:
    assert len(recorded) == 100
    assert sum(map(len, imported)) == ANSWERED_TURNS
    shown = [message for state in imported for message in state_messages(state)]
    assert sum(message.role == "user" for message in shown) == USER_TURNS
    assert sum(len(message.tool_calls) for message in shown) == TOOL_CALLS
    arguments = [call.arguments for message in shown for call in message.tool_calls]
    assert arguments == [
        call["function"]["arguments"]
        for messages in recorded
        for message in messages
        for call in message.get("tool_calls", ())
    ]


def test_A3_each_waits_where_it_ends_on_an_open_request(
    recorded: list[list[Message]], imported: list[SessionState]
) -> None:
    for messages, state in zip(recorded, imported, strict=True):
        last = max(at for at, message in enumerate(messages) if message["role"] == "user")
        assert state.pending == tuple(messages[last:])
        assert state.pending[0]["role"] == "user"
        assert len(visible_window(state, OPTIONS)) == len(state)
        said = {message["content"] for message in messages if message["role"] == "user"}
        asked = [text for turn in state for text in turn.inputs.values()]
        assert said.issuperset(asked)
        assert [turn.outputs["answer"] for turn in state] == [
            message["content"]
            for message in messages
            if message["role"] == "assistant" and "tool_calls" not in message
        ]


def test_A3_all_go_out_as_they_came(
    recorded: list[list[Message]], imported: list[SessionState]
) -> None:
    for messages, state in zip(recorded, imported, strict=True):
        assert written(to_openai(state)) == written(messages)
        assert from_messages(to_openai(state)) == state
        seeded = from_messages(messages, seed=True)
        assert written(to_openai(seeded)) == written(messages)
        assert len(visible_window(seeded, OPTIONS)) == len(state)


def test_A8_singly_they_come_to_the_same_after_files_forks_undo_and_redo(
    recorded: list[list[Message]], imported: list[SessionState]
) -> None:
    for number, (messages, whole) in enumerate(zip(recorded, imported, strict=True)):
        state = SessionState()
        for at, message in enumerate(messages):
            if at % 5 == number % 5:
                state, _ = codec.decode(codec.encode(state, OPTIONS, "msgpack"), "msgpack")
                state = with_id(with_id(state, "fork"), None)
                there = state
                state = redo(undo(state, 2)[1], 2)[1]
                assert state == there
            _, state = add_message(state, message)
        assert state == whole
        assert written(to_openai(state)) == written(messages)


def test_A3_an_earlier_turn_shows_the_messages_before_it(
    recorded: list[list[Message]], imported: list[SessionState]
) -> None:
    for messages, state in zip(recorded, imported, strict=True):
        for to in range(len(state)):
            shown = to_openai(rewind(state, to))
            assert written(shown) == written(messages[: len(shown)])
            assert sum(m["role"] == "assistant" and "tool_calls" not in m for m in shown) == to


def test_A3_sharegpt_keeps_what_was_said_and_done(recorded: list[list[Message]]) -> None:
    for messages in recorded:
        back = from_sharegpt(json.loads(json.dumps(to_sharegpt(messages))))
        assert len(back) == len(messages)
        for came, message in zip(back, messages, strict=True):
            assert (came["role"], came["content"]) == (message["role"], message["content"])
            assert [call["function"] for call in came.get("tool_calls", ())] == [
                call["function"] for call in message.get("tool_calls", ())
            ]


def test_A3_a_program_goes_on_from_an_open_request(recorded: list[list[Message]]) -> None:
    """Its prompt has the turns, as inputs and outputs, and nothing that waits but the question."""
    lm = ScriptedLM(lambda prompt: {"agent": "(An answer.)"})
    for messages in recorded[:10]:
        session = sessionify(dspy.Predict("customer -> agent"), messages=messages)
        turns = len(session)
        last = max(at for at, message in enumerate(messages) if message["role"] == "user")
        with dspy.context(lm=lm):
            session(customer=messages[last]["content"])
        prompt = lm.prompts[-1]
        assert len(prompt) == 2 + 2 * turns
        assert sum(messages[last]["content"] in message["content"] for message in prompt) == 1
        assert not any("tool_call" in message["content"] for message in prompt)
        answered = [*messages, {"role": "assistant", "content": "(An answer.)"}]
        assert written(session.to_messages()) == written(answered)
        assert session.state.pending == ()
