"""What a client sends to the message protocol, taken apart.

Rules:

- Nothing of a request is believed: what is not JSON, too large, of another shape or changed on its
  way is a `PayloadError`, before any model is asked.
- Only the last message's `data` counts. What earlier messages carried is not looked at.
- A client never sets instructions: a system message is refused.

This module knows neither programs nor how a turn runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from dspy_session.core.chat_messages import SYSTEM_ROLES
from dspy_session.core.data import Data, as_data
from dspy_session.core.json_values import decoded, encoded
from dspy_session.errors import DataError, PayloadError
from dspy_session.signing import Seal

__all__ = ["DEFAULT_MAX_REQUEST_BYTES", "Payload", "Request", "read_payload"]

DEFAULT_MAX_REQUEST_BYTES: Final = 2_000_000
"""How large a request may be, as JSON, unless another limit is set."""

Request = Mapping[str, Any] | Sequence[Mapping[str, Any]] | str | bytes
"""A dict with `messages`, the list of them, or either as JSON."""

_SESSION, _CALLS, _EXECUTED, _SIGNATURE = _OWN_KEYS = (
    "session",
    "tool_calls",
    "executed_tool_calls",
    "signature",
)


class Payload(msgspec.Struct, frozen=True):
    """A request that has the right shape.

    Attributes:
        earlier: The messages before the last, without their `data`.
        last: The user's message, without its `data`.
        session: The session data that it carries.
        approvals: The ids of the tool calls that it approves.
        rest: What else its `data` holds.
    """

    earlier: list[dict[str, Any]]
    last: dict[str, Any]
    session: Data
    approvals: frozenset[str]
    rest: Data


def read_payload(
    request: Request,
    *,
    max_bytes: int | None = DEFAULT_MAX_REQUEST_BYTES,
    max_data_bytes: int | None = None,
    private: Collection[str] = (),
    seal: Seal | None = None,
) -> Payload:
    """Take a request apart, if nothing is wrong with it.

    Args:
        request: What the client sent.
        max_bytes: How large its messages may be, as JSON; None for no limit.
        max_data_bytes: How large the session data may be, as JSON; None for no limit.
        private: Keys of session data that no client may set.
        seal: What has to have signed the session data; None if nobody signs.

    Raises:
        PayloadError: Something is wrong with it.

    Example:
        >>> message = {"role": "user", "content": "Hi", "data": {"session": {"cart": []}}}
        >>> read_payload([message]).session
        Data({'cart': []})
    """
    *earlier, last = _messages(request, max_bytes)
    data = last.pop("data", None)
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise PayloadError(f"The data of a message must be an object, not {_kind(data)}.")
    session = _as_data(data.get(_SESSION), "data.session", max_data_bytes)
    _refuse_private(session, private)
    calls = _calls(data.get(_CALLS))
    if seal is not None:
        seal.check(data.get(_SIGNATURE), session, calls)
    return Payload(
        earlier=[{k: v for k, v in message.items() if k != "data"} for message in earlier],
        last=last,
        session=session,
        approvals=frozenset(call["id"] for call in calls if call.get("approved")),
        rest=_as_data({k: v for k, v in data.items() if k not in _OWN_KEYS}, "data", None),
    )


def _messages(request: Request, max_bytes: int | None) -> list[dict[str, Any]]:
    """The messages of a request, as plain JSON of our own."""
    if isinstance(request, str | bytes):
        _check_size(len(request), max_bytes)  # characters are never more than bytes
        request = _parsed(request)
    messages = request.get("messages") if isinstance(request, Mapping) else request
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise PayloadError(
            'A request must be an object such as {"messages": [{"role": "user", "content": "Hi"}]},'
            f" or the list in it; its messages are {_kind(messages)}."
        )
    try:
        raw = encoded("messages", messages)
    except DataError as error:
        raise PayloadError(f"A request must be plain JSON. {error}") from error
    _check_size(len(raw), max_bytes)
    plain: list[Any] = decoded(raw)
    for message in plain:
        if not isinstance(message, dict):
            raise PayloadError(f"A message must be an object, not {_kind(message)}.")
        if message.get("role") in SYSTEM_ROLES:
            raise PayloadError(
                f"A request must not hold a message of the {message['role']}: what the model is "
                "told is the server's to say. Give such words as instructions= instead."
            )
    role = plain[-1].get("role") if plain else None
    if role != "user":
        came = f"it is of the role {role!r}" if plain else "there are no messages"
        raise PayloadError(f"The last message of a request must be the user's, but {came}.")
    return plain


def _parsed(request: str | bytes) -> Any:
    try:
        return msgspec.json.decode(request)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise PayloadError(f"A request must be JSON: {error}") from error


def _check_size(size: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size > max_bytes:
        raise PayloadError(
            f"A request may have {max_bytes} bytes as JSON, and this one has {size}. Send fewer "
            "messages or less data, or set another limit: max_bytes= (None for no limit)."
        )


def _as_data(given: Any, where: str, max_bytes: int | None) -> Data:
    if given is not None and not isinstance(given, dict):
        raise PayloadError(f"{where} must be an object, not {_kind(given)}.")
    try:
        return as_data(given, max_bytes)
    except DataError as error:
        raise PayloadError(f"{where} cannot be taken. {error}") from error


def _refuse_private(session: Data, private: Collection[str]) -> None:
    found = sorted(key for key in session if key in private)
    if found:
        raise PayloadError(f"data.session must not hold private keys: {', '.join(found)}.")


def _calls(given: Any) -> list[dict[str, Any]]:
    if given is None:
        return []
    if not isinstance(given, list):
        raise PayloadError(f"data.tool_calls must be a list, not {_kind(given)}.")
    for number, call in enumerate(given):
        where = f"data.tool_calls[{number}]"
        if not isinstance(call, dict):
            raise PayloadError(f"{where} must be an object, not {_kind(call)}.")
        if not isinstance(call.get("id"), str) or not call["id"]:
            raise PayloadError(f"{where} must have the id of a tool call that waits.")
        if not isinstance(call.get("approved", False), bool):
            raise PayloadError(
                f"{where}.approved must be true or false, not {_kind(call['approved'])}."
            )
    ids = [call["id"] for call in given]
    if len(set(ids)) < len(ids):
        raise PayloadError(f"data.tool_calls must have different ids, not {ids}.")
    return given


def _kind(value: Any) -> str:
    """What a value is in JSON."""
    if value is None:
        return "missing"
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a boolean"}
    return kinds.get(type(value), f"of the type {type(value).__name__}")
