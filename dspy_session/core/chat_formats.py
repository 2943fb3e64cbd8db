"""Other written forms of chat messages: ShareGPT records, and lines of JSON.

Each is text or plain data on one side and messages in the OpenAI shape on the other; files are the
caller's business. What a message must be is checked when it joins a conversation.

ShareGPT has no place for call ids, unknown keys and names: those are made anew, or left out. Texts,
tools, argument text and results stay; the results of a step stand in the order of its calls.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from dspy_session.core.chat_messages import (
    ChatMessage,
    checked_message,
    listed_messages,
    message_text,
    open_calls,
)
from dspy_session.errors import MessageError

__all__ = ["from_jsonl", "from_sharegpt", "json_text", "to_jsonl", "to_sharegpt"]

Message = dict[str, Any]

_SPEAKERS: Final = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "function_call",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
}
_SHAREGPT: Final = {"user": "human", "assistant": "gpt", "tool": "observation"}


def from_sharegpt(record: Mapping[str, Any]) -> list[Message]:
    """Return the messages of a ShareGPT record.

    A `gpt` entry directly before a `function_call` is the text that goes with the call.

    Args:
        record: `{"conversations": [{"from": "human", "value": "Hi"}, ...]}`, perhaps with a text
            under `"system"`.

    Raises:
        MessageError: It is no such record.

    Example:
        >>> from_sharegpt({"conversations": [{"from": "human", "value": "Hi"}]})
        [{'role': 'user', 'content': 'Hi'}]
    """
    entries = record.get("conversations") if isinstance(record, Mapping) else None
    if not isinstance(entries, list):
        raise MessageError(
            'A ShareGPT record must be a dict with a list under "conversations", such as '
            '{"conversations": [{"from": "human", "value": "Hi"}]}.'
        )
    system = record.get("system")
    messages = [{"role": "system", "content": system}] if system else []
    calls = 0
    for position, entry in enumerate(entries):
        try:
            calls += _take(messages, entry, calls)
        except MessageError as error:
            raise MessageError(f"conversations[{position}]: {error}") from error
    return messages


def _take(messages: list[Message], entry: Any, calls: int) -> int:
    """Add the message of one entry; returns how many calls it makes."""
    speaker = entry.get("from") if isinstance(entry, Mapping) else None
    if (
        not isinstance(speaker, str)
        or speaker not in _SPEAKERS
        or not isinstance(entry.get("value"), str)
    ):
        raise MessageError(
            'An entry must be a dict such as {"from": "human", "value": "Hi"}, and come from one '
            f"of {', '.join(_SPEAKERS)}; this one is {entry!r}."
        )
    role, value = _SPEAKERS[speaker], entry["value"]
    if role == "function_call":
        made = _calls(value, calls)
        last = messages[-1] if messages else {}
        if last.get("role") == "assistant" and last["content"] and "tool_calls" not in last:
            last["tool_calls"] = made
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": made})
        return len(made)
    if role != "tool":
        messages.append({"role": role, "content": value})
        return 0
    waiting = open_calls(messages)
    if not waiting:
        raise MessageError("This is the result of a tool, but no function_call waits for one.")
    id, name = next(iter(waiting.items()))
    messages.append({"role": "tool", "tool_call_id": id, "name": name, "content": value})
    return 0


def _calls(value: str, before: int) -> list[Message]:
    """The tool calls of an entry: a JSON object with name and arguments, or a list of them."""
    try:
        given = json.loads(value)
    except (ValueError, RecursionError):
        given = None
    wanted = given if isinstance(given, list) and given else [given]
    for call in wanted:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise MessageError(
                'The value of a function_call must be JSON such as {"name": "look_up", '
                f'"arguments": {{"id": 5}}}}, not {value!r}.'
            )
    texts = _as_written(value, wanted)
    return [
        {
            "id": f"call_{before + number}",
            "type": "function",
            "function": {"name": call["name"], "arguments": text},
        }
        for number, (call, text) in enumerate(zip(wanted, texts, strict=True))
    ]


def _as_written(value: str, calls: list[Message]) -> list[str]:
    """The argument texts as they stand in the value, if `to_sharegpt` wrote it."""
    texts, at = [], len("[") if value.startswith("[") else 0
    for call in calls:
        arguments, head = call.get("arguments", {}), _head(call["name"])
        text = json_text(arguments)
        if value.startswith(head, at):
            _, end = _DECODER.raw_decode(value, at + len(head))
            text, at = value[at + len(head) : end], end + len("}, ")
        texts.append(arguments if isinstance(arguments, str) else text)
    return texts


def _head(name: str) -> str:
    return f'{{"name": {json_text(name)}, "arguments": '


_DECODER: Final = json.JSONDecoder()


def to_sharegpt(
    messages: Iterable[Mapping[str, Any] | ChatMessage],
) -> dict[str, list[dict[str, str]]]:
    """Return messages as a ShareGPT record.

    Args:
        messages: Messages in the OpenAI shape.

    Raises:
        MessageError: One of them is no message.

    Example:
        >>> to_sharegpt([{"role": "user", "content": "Hi"}])
        {'conversations': [{'from': 'human', 'value': 'Hi'}]}
    """
    checked = [checked_message(message) for message in listed_messages(messages)]
    return {"conversations": [e for message in _in_order(checked) for e in _entries(message)]}


def _in_order(messages: Iterable[Message]) -> Iterator[Message]:
    """Messages with results in the order of their calls: without ids, nothing else tells whose."""
    order: list[str] = []
    results: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            results.append(message)
            continue
        yield from _sorted(results, order)
        order, results = [call["id"] for call in message.get("tool_calls") or ()], []
        yield message
    yield from _sorted(results, order)


def _sorted(results: list[Message], order: list[str]) -> list[Message]:
    places = {id: place for place, id in enumerate(order)}
    return sorted(results, key=lambda m: places.get(m["tool_call_id"], len(order)))


def _entries(message: Message) -> Iterator[dict[str, str]]:
    text, calls = message_text(message), message.get("tool_calls")
    if text or not calls:
        yield {"from": _SHAREGPT.get(message["role"], "system"), "value": text}
    if calls:
        made = ", ".join(_sharegpt_call(call["function"]) for call in calls)
        yield {"from": "function_call", "value": made if len(calls) == 1 else f"[{made}]"}


def _sharegpt_call(function: Mapping[str, str]) -> str:
    """A call as JSON, in which the arguments stand as the model wrote them, if that is JSON."""
    arguments = function["arguments"]
    try:
        is_object = isinstance(json.loads(arguments), dict) and arguments == arguments.strip()
    except (ValueError, RecursionError):
        is_object = False
    text = arguments if is_object else json_text(arguments)
    return _head(function["name"]) + text + "}"


def from_jsonl(lines: Iterable[str]) -> list[list[Message]]:
    """Return the conversations in lines of JSON.

    A line is a conversation: `{"messages": [...]}`, `[...]`, or a ShareGPT record. Or it is one
    message; then the lines up to the next blank line are one conversation.

    Args:
        lines: The lines, for example an open text file.

    Raises:
        MessageError: A line is something else; the error names its number.

    Example:
        >>> from_jsonl(['{"role": "user", "content": "Hi"}'])
        [[{'role': 'user', 'content': 'Hi'}]]
    """
    if isinstance(lines, str):
        lines = lines.split("\n")  # not splitlines(): JSON text may hold other line breaks
    elif not isinstance(lines, Iterable):
        raise MessageError(
            f"Lines of JSON must be text or lines of it, not {type(lines).__name__}."
        )
    conversations: list[list[Message]] = []
    together = False
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, str):
            raise MessageError(f"line {number}: A line must be text, not {type(line).__name__}.")
        if not line.strip():
            together = False
            continue
        try:
            found = _read_line(line)
        except MessageError as error:
            raise MessageError(f"line {number}: {error}") from error
        if not isinstance(found, dict):
            conversations.append(found)
        elif together:
            conversations[-1].append(found)
        else:
            conversations.append([found])
        together = isinstance(found, dict)
    return conversations


def _read_line(line: str) -> Message | list[Message]:
    """One message, or the messages of a conversation."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"This is not JSON: {error}.") from error
    if isinstance(value, dict) and "role" in value:
        return value
    if isinstance(value, dict) and "conversations" in value:
        return from_sharegpt(value)
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list):
        raise MessageError(
            'A line must be {"messages": [...]}, a list of messages, a ShareGPT record, or one '
            f"message with a role; this one is {line.strip()[:80]!r}."
        )
    return messages


def to_jsonl(
    conversations: Iterable[Iterable[Mapping[str, Any] | ChatMessage]],
) -> Iterator[str]:
    r"""Yield a line of JSON for each conversation: `{"messages": [...]}`, and a line feed.

    Args:
        conversations: For each its messages in the OpenAI shape.

    Raises:
        MessageError: One of them is no message.

    Example:
        >>> list(to_jsonl([[{"role": "user", "content": "Hi"}]]))
        ['{"messages": [{"role": "user", "content": "Hi"}]}\n']
    """
    for messages in listed_messages(conversations):
        record = {"messages": [checked_message(message) for message in listed_messages(messages)]}
        yield json_text(record) + "\n"


def json_text(value: Any) -> str:
    """Return JSON with letters as they are, unless there are lone surrogates, which no file takes.

    Args:
        value: A JSON value.
    """
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return text
