"""A chat-completions server on this machine, so that tests can use a real `dspy.LM` over HTTP.

    with LoopbackServer(lambda body: "[[ ## answer ## ]]\\nHi") as server:
        dspy.Predict("question -> answer")(question="Hello", lm=server.lm())
    server.received[0].messages

It speaks what OpenAI-compatible servers speak, without streaming: `POST /v1/chat/completions`.
A request it cannot answer gets status 400, which DSPy does not try again. While a server runs, DSPy
takes model prices from its own package instead of fetching them.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from unittest import mock

import dspy

Body = dict[str, Any]
Answer = Callable[[Body], str]
"""From the JSON of a request to the model's words."""

PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Received:
    """One request: its bytes as they came, and what they say."""

    raw: bytes
    body: Body

    @property
    def model(self) -> str:
        return str(self.body["model"])

    @property
    def messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.body["messages"]
        return messages


class LoopbackServer:
    """Answers chat requests with what a function makes of them, and keeps them.

    Attributes:
        received: Every request, in the order in which they came.
    """

    def __init__(self, answer: Answer) -> None:
        self.received: list[Received] = []
        self._answer = answer
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

    def respond(self, path: str, raw: bytes) -> tuple[int, Body]:
        """The status and the JSON for one request."""
        try:
            if path != PATH:
                raise ValueError(f"there is only {PATH}, not {path}")
            request = Received(raw, json.loads(raw))
            self.received.append(request)  # one step, also between threads
            text = self._answer(request.body)
        except Exception as error:  # noqa: BLE001  # told to the client, whose test then fails
            return 400, {"error": {"message": repr(error), "type": "invalid_request_error"}}
        sent = sum(len(str(message["content"]).split()) for message in request.messages)
        answered = len(text.split())
        return 200, {
            "id": "chatcmpl-0",
            "object": "chat.completion",
            "created": 0,
            "model": request.model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                }
            ],
            "usage": {  # words instead of tokens: enough to add up
                "prompt_tokens": sent,
                "completion_tokens": answered,
                "total_tokens": sent + answered,
            },
        }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, owner: LoopbackServer) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # header and body leave together; written one by one they wait for each other
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        status, body = self.server.owner.respond(self.path, raw)
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def log_message(self, *arguments: object) -> None:
        """Nothing: a test reads `received` instead."""
