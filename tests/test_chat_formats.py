"""ShareGPT records and lines of JSON: read, written, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from dspy_session import (
    ChatMessage,
    MessageError,
    from_jsonl,
    from_sharegpt,
    to_jsonl,
    to_sharegpt,
)
from dspy_session.core import from_messages, to_openai
from dspy_session.core.chat_messages import open_calls
from tests.test_chat import CALLS, HELLO, HI, RESULT, SYSTEM, Message, call, conversations, written

RECORD = {
    "conversations": [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "I look."},
        {"from": "function_call", "value": '{"name": "look", "arguments": {"at":  "here"}}'},
        {"from": "observation", "value": "seen"},
        {"from": "gpt", "value": "Hello."},
    ]
}
AS_MESSAGES = [
    SYSTEM,
    HI,
    {"role": "assistant", "content": "I look.", "tool_calls": [call("call_0")]},
    {"role": "tool", "tool_call_id": "call_0", "name": "look", "content": "seen"},
    HELLO,
]


def test_A3_a_sharegpt_record_is_messages_and_back() -> None:
    assert from_sharegpt(RECORD) == AS_MESSAGES
    assert to_sharegpt(AS_MESSAGES) == RECORD
    (turn,) = from_messages(from_sharegpt(RECORD))
    assert (turn.inputs, turn.outputs) == ({"question": "Hi"}, {"answer": "Hello."})
    assert to_sharegpt([ChatMessage("user", "Hi")]) == to_sharegpt([HI])
    assert list(to_jsonl([[ChatMessage("user", "Hi")]])) == list(to_jsonl([[HI]]))


def test_A3_other_spellings_of_sharegpt() -> None:
    record = {
        "id": "x-1",
        "system": "Be kind.",
        "conversations": [
            {"from": "user", "value": "Hi", "weight": 1},
            {"from": "function_call", "value": '[{"name": "a"}, {"name": "b", "arguments": "{}"}]'},
            {"from": "tool", "value": "1"},
            {"from": "function_response", "value": "2"},
            {"from": "chatgpt", "value": "Hello."},
        ],
    }
    system, hi, calls, first, second, hello = from_sharegpt(record)
    assert (system, hi, hello) == (SYSTEM, HI, HELLO)
    assert [c["function"]["arguments"] for c in calls["tool_calls"]] == ["{}", "{}"]
    assert calls["content"] is None
    ids = [c["id"] for c in calls["tool_calls"]]
    assert [first["tool_call_id"], second["tool_call_id"]] == ids
    assert [first["content"], second["content"]] == ["1", "2"]


ARGUMENTS = ['{"a":1}', '{ "a" : 1.50 }', '{"a": "é \\u00e9"}', "{}", "", "[1]", '"x"', "no JSON"]
ARGUMENTS += [
    '{"a": 1, "a": 2}',
    ' {"a": 1}',
    '{"a": NaN}',
    '{"n": 123456789012345678901234567890}',
]


def test_A3_argument_text_goes_through_sharegpt_as_it_is() -> None:
    calls = [call(f"call_{n}", arguments, f"näme {n}") for n, arguments in enumerate(ARGUMENTS)]
    for some in (calls, *([one] for one in calls)):
        messages = [HI, {"role": "assistant", "content": None, "tool_calls": some}]
        record = to_sharegpt(messages)
        entry = json.loads(record["conversations"][1]["value"])
        for found in entry if isinstance(entry, list) else [entry]:
            assert set(found) == {"name", "arguments"}
        back = from_sharegpt(json.loads(json.dumps(record)))[1]["tool_calls"]
        assert [c["function"] for c in back] == [c["function"] for c in some]


@given(messages=conversations())
def test_law_sharegpt_keeps_texts_tools_and_order(messages: list[Message]) -> None:
    state = from_messages(messages)
    record = to_sharegpt(to_openai(state))
    back = from_sharegpt(record)
    assert to_sharegpt(back) == record
    if not open_calls(messages):  # of a result without an id, its place tells whose it is
        assert used(back) == used(messages)


def used(messages: list[Message]) -> list[tuple[Any, str | None]]:
    """Every tool call with the result that it had; the results of a call come after it."""
    uses = []
    for at, message in enumerate(messages):
        for asked in message.get("tool_calls") or ():
            later = (m for m in messages[at + 1 :] if m.get("tool_call_id") == asked["id"])
            result = next(later, {"content": None})["content"]
            uses.append((asked["function"], result or ""))
    return uses


@pytest.mark.parametrize(
    ("record", "match"),
    [
        (5, "must be a dict with a list"),
        ({"messages": []}, "must be a dict with a list"),
        ({"conversations": "Hi"}, "must be a dict with a list"),
        ({"conversations": ["Hi"]}, r"conversations\[0\]: An entry must be"),
        ({"conversations": [{"from": "bard", "value": "Hi"}]}, "come from one of human"),
        ({"conversations": [{"from": ["human"], "value": "Hi"}]}, "come from one of human"),
        ({"conversations": [{"from": "human", "value": 5}]}, "An entry must be"),
        ({"conversations": [{"from": "function_call", "value": "look"}]}, "must be JSON such as"),
        ({"conversations": [{"from": "function_call", "value": "[]"}]}, "must be JSON such as"),
        ({"conversations": [{"from": "function_call", "value": '{"name": 5}'}]}, "must be JSON"),
        ({"conversations": [{"from": "function_call", "value": "[" * 9999}]}, "must be JSON"),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "tool", "value": "x"}]},
            r"conversations\[1\]: .* no function_call waits",
        ),
    ],
)
def test_bad_records(record: Any, match: str) -> None:
    before = repr(record)
    with pytest.raises(MessageError, match=match):
        from_sharegpt(record)
    assert repr(record) == before


def test_bad_messages_are_not_written() -> None:
    with pytest.raises(MessageError, match="must have a role"):
        to_sharegpt([{"content": "Hi"}])
    with pytest.raises(MessageError, match="must have a role"):
        list(to_jsonl([[{"content": "Hi"}]]))


# --- lines of JSON --------------------------------------------------------------------------------


def test_A3_lines_of_conversations_through_a_file(tmp_path: Path) -> None:
    odd = {"role": "user", "content": "a\u2028b\x85c\nd é 😀", "\ud800": "\udfff"}
    conversations = [[SYSTEM, HI, CALLS, RESULT, HELLO], [HI], [odd]]
    path = tmp_path / "chats.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(to_jsonl(conversations))
    assert "é" not in path.read_text("utf-8")  # the surrogates beside it cannot be written
    with path.open(encoding="utf-8") as file:
        assert written(from_jsonl(file)[0]) == written(conversations[0])
    assert from_jsonl(path.read_text("utf-8")) == conversations
    assert (
        from_jsonl("".join(to_jsonl([[{**HI, "content": "é\u2028"}]])))[0][0]["content"]
        == "é\u2028"
    )
    assert "é" in next(to_jsonl([[{**HI, "content": "é"}]]))


def test_A3_lines_of_messages_are_conversations_with_blank_lines_between() -> None:
    lines = [json.dumps(m) + "\r\n" for m in (SYSTEM, HI, HELLO)]
    assert from_jsonl(lines) == [[SYSTEM, HI, HELLO]]
    assert from_jsonl(
        [*lines, "\n", " \n", *lines[1:], json.dumps({"messages": [HI]}), *lines]
    ) == [
        [SYSTEM, HI, HELLO],
        [HI, HELLO],
        [HI],
        [SYSTEM, HI, HELLO],
    ]
    assert from_jsonl([json.dumps([HI]), json.dumps(RECORD)]) == [[HI], AS_MESSAGES]
    assert from_jsonl("") == []


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{", "line 2: This is not JSON"),
        ("[" * 99_999, "line 2: This is not JSON"),
        ("5", "line 2: A line must be"),
        ('{"text": "Hi"}', "line 2: A line must be"),
        ('{"messages": 5}', "line 2: A line must be"),
        ('{"conversations": 5}', "line 2: A ShareGPT record must be"),
    ],
)
def test_bad_lines(line: str, match: str) -> None:
    lines = [json.dumps(HI), line]
    with pytest.raises(MessageError, match=match):
        from_jsonl(lines)
    assert lines == [json.dumps(HI), line]


@pytest.mark.parametrize("wrong", [None, 5, {"messages": []}, "text", [5], [None]])
def test_A3_what_holds_no_messages_is_an_error_of_ours(wrong: Any) -> None:
    with pytest.raises(MessageError):
        to_sharegpt(wrong)
    with pytest.raises(MessageError):
        list(to_jsonl(wrong))
    with pytest.raises(MessageError):
        from_jsonl(wrong)
