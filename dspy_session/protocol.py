"""A message protocol for servers that keep nothing: the client carries the conversation's data.

    {"messages": [..., {"role": "user", "content": "...", "data": {"session": {...}}}]}
        --respond-->  {"role": "assistant", "content": "...", "data": {"session": {...}, ...}}

Rules:

- One request is one turn, run by `step`. Nothing of it is kept here.
- What a request says is checked before any model is asked; see `dspy_session.payload`.
- Private data and redacted fields are in no reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy
import msgspec

from dspy_session.core.chat import ChatFields, absorb, from_messages
from dspy_session.core.chat_messages import checked_message, joined_text
from dspy_session.core.chat_view import readable, state_messages
from dspy_session.core.data import Data, as_data
from dspy_session.core.json_values import decoded, encoded
from dspy_session.core.options import SessionOptions
from dspy_session.core.profile import Instructions
from dspy_session.core.state import SessionState
from dspy_session.core.turn import Turn
from dspy_session.errors import CallError, DataError, MessageError, OptionError, PayloadError
from dspy_session.payload import (
    DEFAULT_MAX_REQUEST_BYTES,
    Payload,
    Request,
    read_payload,
)
from dspy_session.program.anatomy import check_module
from dspy_session.program.approvals import Approver
from dspy_session.program.chat_fields import chat_fields
from dspy_session.program.hooks import AfterTurn, Hooks, as_hooks
from dspy_session.program.one_turn import astep, step
from dspy_session.program.tool_calls import ToolCall
from dspy_session.signing import Seal, Secret

__all__ = ["arespond", "respond"]


def respond(
    request: Request,
    program: dspy.Module,
    options: SessionOptions | None = None,
    *,
    fields: ChatFields | Mapping[str, str] | None = None,
    private: Mapping[str, Any] | None = None,
    secret: Secret | None = None,
    context: str = "",
    max_age: int | None = None,
    max_bytes: int | None = DEFAULT_MAX_REQUEST_BYTES,
    instructions: Instructions | str | None = None,
    hooks: Hooks | None = None,
    approver: Approver | None = None,
    lm: dspy.BaseLM | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Answer one request of a client that carries its session data itself.

    The last message is the user's. Its `data` may hold `session` (the session data), `tool_calls`
    (of the last reply, each with `approved`) and whatever else hooks, tools and the program are to
    read as the request. The messages before it are the conversation so far.

    Args:
        request: A dict with `messages` in the OpenAI shape, the list of them, or either as JSON.
        program: Any DSPy program; it is not changed, and serves any number of requests at once.
        options: How the session behaves; the defaults if None. No client may set a key in
            `private_data`, and none is told; a field in `redact_fields` is in no reply.
        fields: Which input is what the user says, and which output is the reply, such as
            `{"user": "request", "assistant": "advice"}`; None for the only ones of type text.
        private: Session data of the server's own, under keys in `private_data`.
        secret: Signs the session data, so that no client can change it; of several, the first
            signs, and the others are still believed. None signs nothing.
        context: What a signature is good for only, such as the user's id.
        max_age: After how many seconds a signature is no longer believed; None for never.
        max_bytes: How large the messages may be, as JSON; None for no limit.
        instructions: As in `step`.
        hooks: As in `step`.
        approver: As in `step`.
        lm: As in `step`.
        config: As in `step`.

    Returns:
        The reply, ready for JSON: `role`, `content`, and `data` with `session` (the data as it is
        now), `tool_calls` (those that wait for approval: `id`, `name`, `arguments`),
        `executed_tool_calls` (with `result` or `error`) and, given a secret, `signature`.

    Raises:
        PayloadError: The request is malformed, too large, or its signature is wrong. No model was
            asked.
        SessionError: As from `step`, or one of the arguments cannot be used.
        Exception: Whatever the program raises.

    Example:
        >>> from dspy_session.program.current import current_data
        >>> class Counter(dspy.Module):
        ...     def forward(self, question):
        ...         data = current_data()
        ...         data["asked"] = data.get("asked", 0) + 1
        ...         return dspy.Prediction(answer=f"Question {data['asked']}: {question}")
        >>> message = {"role": "user", "content": "Hi", "data": {"session": {"asked": 1}}}
        >>> fields = {"user": "question", "assistant": "answer"}
        >>> reply = respond({"messages": [message]}, Counter(), fields=fields)
        >>> reply["content"], reply["data"]["session"]
        ('Question 2: Hi', {'asked': 2})
    """
    seal = _seal(secret, context, max_age)
    exchange = _Exchange(request, program, options, fields, private, seal, max_bytes, hooks)
    _, after = step(
        exchange.state,
        program,
        exchange.inputs,
        exchange.options,
        **exchange.keywords,
        instructions=instructions,
        approver=approver,
        lm=lm,
        config=config,
    )
    return exchange.reply(after)


async def arespond(
    request: Request,
    program: dspy.Module,
    options: SessionOptions | None = None,
    *,
    fields: ChatFields | Mapping[str, str] | None = None,
    private: Mapping[str, Any] | None = None,
    secret: Secret | None = None,
    context: str = "",
    max_age: int | None = None,
    max_bytes: int | None = DEFAULT_MAX_REQUEST_BYTES,
    instructions: Instructions | str | None = None,
    hooks: Hooks | None = None,
    approver: Approver | None = None,
    lm: dspy.BaseLM | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """As `respond`, for async code; a program without `aforward` runs in a worker thread.

    Args:
        request: As in `respond`.
        program: As in `respond`.
        options: As in `respond`.
        fields: As in `respond`.
        private: As in `respond`.
        secret: As in `respond`.
        context: As in `respond`.
        max_age: As in `respond`.
        max_bytes: As in `respond`.
        instructions: As in `respond`.
        hooks: As in `respond`.
        approver: As in `respond`.
        lm: As in `respond`.
        config: As in `respond`.

    Returns:
        As `respond`.

    Raises:
        PayloadError: As in `respond`.
        SessionError: As in `respond`.
        Exception: As in `respond`; also `asyncio.CancelledError`.
    """
    seal = _seal(secret, context, max_age)
    exchange = _Exchange(request, program, options, fields, private, seal, max_bytes, hooks)
    _, after = await astep(
        exchange.state,
        program,
        exchange.inputs,
        exchange.options,
        **exchange.keywords,
        instructions=instructions,
        approver=approver,
        lm=lm,
        config=config,
    )
    return exchange.reply(after)


def _seal(secret: Secret | None, context: str, max_age: int | None) -> Seal | None:
    if secret is not None:
        return Seal(secret, context=context, max_age=max_age)
    if context or max_age is not None:
        raise OptionError("context= and max_age= say what a signature is good for: give a secret=.")
    return None


class _Exchange:
    """One request, from what the client sent to what it gets back.

    Attributes:
        state: The conversation before the request.
        inputs: The program's inputs.
        options: The options.
        keywords: What else `step` is given.
    """

    def __init__(
        self,
        request: Request,
        program: dspy.Module,
        options: SessionOptions | None,
        fields: ChatFields | Mapping[str, str] | None,
        private: Mapping[str, Any] | None,
        seal: Seal | None,
        max_bytes: int | None,
        hooks: Hooks | None,
    ) -> None:
        check_module(program)
        if not isinstance(options, SessionOptions | None):
            raise CallError(f"options must be SessionOptions, not {type(options).__name__}.")
        options = options or SessionOptions()
        # The client keeps the conversation, so the turn of this request is always there to be told.
        self.options = msgspec.structs.replace(options, max_stored_turns=None)
        self._seal = seal
        self._fields = chat_fields(program, options, fields)
        own = _own_data(private, options)
        payload = read_payload(
            request,
            max_bytes=max_bytes,
            max_data_bytes=options.max_data_bytes,
            private=options.private_data,
            seal=seal,
        )
        self.state, said = _conversation(payload, self._fields)
        self.inputs = {self._fields.user: said}
        self._executed: tuple[ToolCall, ...] = ()
        given = as_hooks(hooks) or Hooks()
        self.keywords: dict[str, Any] = {
            "data": payload.session.changed(own),
            "request": payload.rest,
            "approvals": payload.approvals,
            "hooks": msgspec.structs.replace(given, after=(*given.after_hooks, self._note)),
        }

    def _note(self, after: AfterTurn) -> None:
        self._executed = tuple(after.tool_calls)

    def reply(self, after: SessionState) -> dict[str, Any]:
        """Return what the client gets.

        Args:
            after: The conversation after the request.
        """
        turn = after.turn(after.stop - 1)
        session, waiting = after.data.without(self.options.private_data), turn.pending_tool_calls
        data = {
            "session": session.to_dict(),
            "tool_calls": waiting,
            "executed_tool_calls": [_as_json(call) for call in self._executed],
        }
        if self._seal is not None:
            data["signature"] = self._seal.sign(session, waiting)
        return {"role": "assistant", "content": self._text(turn), "data": data}

    def _text(self, turn: Turn) -> str:
        """What the assistant says in a turn, as the chat view has it."""
        alone = SessionState(seed=(turn.exchange,))
        hidden = {*self.options.redact_fields, "tool_calls"}
        told = state_messages(alone, self._fields, hidden)
        return told[-1].text if told and told[-1].role == "assistant" else ""


def _own_data(private: Mapping[str, Any] | None, options: SessionOptions) -> Data:
    own = as_data(private, options.max_data_bytes)
    public = [key for key in own if key not in options.private_data]
    if public:
        raise OptionError(
            f"private= holds {', '.join(public)}, which every client would be told: add such keys "
            "to private_data in the options."
        )
    return own


def _conversation(payload: Payload, fields: ChatFields) -> tuple[SessionState, str]:
    """The conversation before a request, and what the user says now."""
    try:
        state = from_messages(payload.earlier, fields=fields) if payload.earlier else SessionState()
        pending, _ = absorb(state.beside.pending, checked_message(payload.last), fields)
    except MessageError as error:
        raise PayloadError(f"The messages of the request make no conversation. {error}") from error
    return state, joined_text(pending)


def _as_json(call: ToolCall) -> dict[str, Any]:
    told = msgspec.structs.asdict(call)
    told.pop("result" if call.error is not None else "error")
    return {**told, "arguments": {k: _plain(k, v) for k, v in call.arguments.items()}}


def _plain(name: str, value: Any) -> Any:
    """An argument as JSON; what JSON cannot hold as text, as agents show it to their models."""
    try:
        return decoded(encoded(name, value))
    except DataError:
        return readable(value)
