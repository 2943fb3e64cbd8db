"""A chat-completions server on this machine, so that tests can use a real `dspy.LM` over HTTP.

    with LoopbackServer(lambda body: "[[ ## answer ## ]]\\nHi") as server:
        dspy.Predict("question -> answer")(question="Hello", lm=server.lm())
    server.received[0].messages

It speaks what OpenAI-compatible servers speak: `POST /v1/chat/completions`, whole or streamed, with
tool calls and with the ways in which such servers fail:

    LoopbackServer(lambda body: Completion(tool_calls=[("search", {"query": "fjord"})]))
    LoopbackServer(lambda body: Completion("a stream that breaks off", cut_after=2))
    LoopbackServer(lambda body: CONTEXT_WINDOW_EXCEEDED)

A stream has a chunk per word, and asks `pace` before each: a test holds the server there, or gives
it a speed. An answer function that waits is a server that is slow to begin. A request that it
cannot answer gets status 400, which DSPy does not try again. While a server runs, DSPy takes model
prices from its own package instead of fetching them.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self
from unittest import mock

import dspy

Body = dict[str, Any]


@dataclass(frozen=True)
class Completion:
    """What the model says.

    Attributes:
        text: Its words.
        tool_calls: The functions it calls, by name and arguments.
        cut_after: After how many chunks the connection breaks (streamed or not); None for never.
    """

    text: str = ""
    tool_calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
    cut_after: int | None = None


@dataclass(frozen=True)
class Failure:
    """An answer that is none: an HTTP status with an error as OpenAI writes it.

    Attributes:
        status: The HTTP status.
        message: What went wrong.
        code: OpenAI's name for it.
        raw: Sent instead of such an error; with status 200, a server that talks nonsense.
        retry_after: In seconds, as a header.
    """

    status: int
    message: str = "The server had an error while processing your request."
    code: str | None = None
    raw: bytes | None = None
    retry_after: int | None = None

    def data(self) -> bytes:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode() if self.raw is None else self.raw


SERVER_ERROR: Final = Failure(500)
RATE_LIMITED: Final = Failure(429, "Rate limit reached.", "rate_limit_exceeded", retry_after=0)
NOT_JSON: Final = Failure(200, raw=b'{"choices": [{"message": {"content": "cut off')
CONTEXT_WINDOW_EXCEEDED: Final = Failure(
    400,
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 "
    "tokens. Please reduce the length of the messages.",
    "context_length_exceeded",
)

Answer = Callable[[Body], str | Completion | Failure]
"""From the JSON of a request to the model's words, or to more than words."""

PATH: Final = "/v1/chat/completions"

PRICED_MODEL: Final = "gpt-4o-mini"
"""The model that says it answered, whatever name was asked for. DSPy knows its prices; for a name
that it does not know it searches its whole list at each call, which takes it milliseconds."""


@dataclass(frozen=True)
class Received:
    """One request: its bytes as they came, and what they say.

    Attributes:
        hung_up: Set when the client closed the connection before the stream had ended.
    """

    raw: bytes
    body: Body
    hung_up: threading.Event = field(default_factory=threading.Event, compare=False)

    @property
    def model(self) -> str:
        return str(self.body["model"])

    @property
    def messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.body["messages"]
        return messages


Pace = Callable[[Received, int], object]
"""Called with the request and the number of the chunk that comes next."""


class LoopbackServer:
    """Answers chat requests with what a function makes of them, and keeps them.

    Args:
        answer: See `Answer`.
        pace: See `Pace`; without it, streams go as fast as they can.

    Attributes:
        received: Every request, in the order in which they came.
    """

    def __init__(self, answer: Answer, pace: Pace | None = None) -> None:
        self.received: list[Received] = []
        self.answer = answer
        self.pace: Pace = pace or (lambda request, number: None)
        self._http = _Server(self)
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._offline = mock.patch.dict(os.environ, LITELLM_LOCAL_MODEL_COST_MAP="true")

    @property
    def url(self) -> str:
        """What goes into `api_base`."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def lm(self, name: str = "scripted", **settings: Any) -> dspy.LM:
        """A real LM that talks to this server, under a model name of the caller's choice."""
        return dspy.LM(f"openai/{name}", api_base=self.url, api_key="none", cache=False, **settings)

    def by_model(self) -> dict[str, list[Received]]:
        """The requests of each model name, in the order in which they came."""
        sorted_by_model: dict[str, list[Received]] = {}
        for request in self.received:
            sorted_by_model.setdefault(request.model, []).append(request)
        return sorted_by_model

    def __enter__(self) -> Self:
        self._offline.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self._offline.stop()

    def respond(self, path: str, request: Received) -> Completion | Failure:
        """What to send back."""
        try:
            if path != PATH:
                raise ValueError(f"there is only {PATH}, not {path}")
            self.received.append(request)  # one step, also between threads
            answer = self.answer(request.body)
        except Exception as error:  # noqa: BLE001  # told to the client, whose test then fails
            return Failure(400, repr(error))
        return Completion(answer) if isinstance(answer, str) else answer


# --- a completion as OpenAI writes it -------------------------------------------------------------


def whole(request: Received, said: Completion) -> Body:
    """The JSON of an answer that comes at once."""
    calls = [_tool_call(request, number, *call) for number, call in enumerate(said.tool_calls)]
    message = {"role": "assistant", "content": said.text or None}
    choice = {
        "index": 0,
        "message": {**message, "tool_calls": calls} if calls else message,
        "finish_reason": "tool_calls" if calls else "stop",
    }
    return {
        **_head("chat.completion"),
        "choices": [choice],
        "usage": _usage(request, said),
    }


def chunks(request: Received, said: Completion) -> Iterator[Body]:
    """The JSON of the events of a streamed answer: a chunk per word, a chunk per tool call."""
    head = _head("chat.completion.chunk")

    def chunk(delta: Body, finish_reason: str | None = None) -> Body:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {**head, "choices": [choice]}

    for word in re.findall(r"\S+\s*|\s+", said.text):
        yield chunk({"role": "assistant", "content": word})
    for number, call in enumerate(said.tool_calls):
        yield chunk({"tool_calls": [{"index": number, **_tool_call(request, number, *call)}]})
    yield chunk({}, "tool_calls" if said.tool_calls else "stop")
    if (request.body.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": _usage(request, said)}


def _head(kind: str) -> Body:
    return {"id": "chatcmpl-0", "object": kind, "created": 0, "model": PRICED_MODEL}


def _tool_call(request: Received, number: int, name: str, arguments: Mapping[str, Any]) -> Body:
    function = {"name": name, "arguments": json.dumps(dict(arguments), ensure_ascii=False)}
    id = f"call_{len(request.messages)}_{number}"  # no other in this conversation
    return {"id": id, "type": "function", "function": function}


def _usage(request: Received, said: Completion) -> Body:
    """Usage in words instead of tokens: enough to add up."""
    sent = sum(len(str(message.get("content")).split()) for message in request.messages)
    answered = len(said.text.split())
    return {
        "prompt_tokens": sent,
        "completion_tokens": answered,
        "total_tokens": sent + answered,
    }


# --- HTTP -----------------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, owner: LoopbackServer) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet about clients that hang up: that is what some tests are about."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # header and body leave together; written one by one they wait for each other
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        request = Received(raw, json.loads(raw))
        answer = self.server.owner.respond(self.path, request)
        if isinstance(answer, Failure):
            self._send(answer.status, answer.data(), retry_after=answer.retry_after)
        elif request.body.get("stream"):
            self._stream(request, answer)
        else:
            data = json.dumps(whole(request, answer)).encode()
            self._send(200, data, cut=answer.cut_after is not None)

    def _send(
        self, status: int, data: bytes, cut: bool = False, retry_after: int | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.wfile.flush()
        self.close_connection = self.close_connection or cut

    def _stream(self, request: Received, said: Completion) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        with _Watch(self.connection, request):
            for number, chunk in enumerate(chunks(request, said)):
                self.server.owner.pace(request, number)
                if number == said.cut_after or request.hung_up.is_set():
                    self.close_connection = True
                    return
                self._event(json.dumps(chunk, ensure_ascii=False))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.wfile.flush()

    def log_message(self, *arguments: object) -> None:
        """Nothing: a test reads `received` instead."""


class _Watch:
    """Notices, while a stream is on, that the client has closed the connection.

    The server may be held by `pace` at that time, so this looks from a thread of its own. A client
    sends nothing while it reads a stream: what can be read then is the end.
    """

    def __init__(self, connection: socket.socket, request: Received) -> None:
        self._connection, self._request = connection, request
        self._over, self._told_over = socket.socketpair()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        readable, _, _ = select.select([self._connection, self._told_over], [], [])
        if self._told_over not in readable:
            self._request.hung_up.set()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._over.close()  # which makes the other end readable
        self._thread.join()
        self._told_over.close()
