"""The web server of docs/guide/serving.md, taken from the page and run as its readers run it.

    with chat(store_url, model.lm()) as server:
        server.put("/sessions/ada")
        server.ask("ada", "Hi")

Each `chat` is an application of its own, with its own store, served by uvicorn over real HTTP. The
page's code is executed as it is; only its model is another: DSPy is configured again afterwards.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import dspy
import httpx
import pytest
import uvicorn

from tests.house import PROJECT
from tests.loopback import Body, LoopbackServer
from tests.streams import SOON, wait_until
from tests.talk import asked
from tests.test_documentation import Block, python_blocks, run_blocks

PAGE = PROJECT / "docs" / "guide" / "serving.md"

JSON = dict[str, Any]

PATIENCE = 300.0
"""How many seconds a client waits, on a machine that does other things, too."""

_number = itertools.count()


def recipe() -> Block:
    """The code of the page: its one block of Python."""
    (block,) = python_blocks(PAGE.read_text("utf-8"))
    return block


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    name: str
    data: JSON


class Server:
    """A running server, as its clients see it: requests by `httpx`, streams event by event."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE)

    def request(self, method: str, path: str, **keywords: Any) -> httpx.Response:
        return self._client.request(method, path, **keywords)

    def ok(self, method: str, path: str, **keywords: Any) -> Any:
        """The body of an answer that has to be a good one."""
        response = self.request(method, path, **keywords)
        assert response.is_success, response.text
        return response.json() if response.content else None

    def begin(self, session_id: str) -> JSON:
        began: JSON = self.ok("PUT", f"/sessions/{session_id}")
        return began

    def post(self, session_id: str, question: str, key: str | None = None) -> httpx.Response:
        return self.request("POST", _turns(session_id), **_asked(question, key))

    def ask(self, session_id: str, question: str, key: str | None = None) -> JSON:
        """The reply to one turn, which has to succeed."""
        response = self.post(session_id, question, key)
        assert response.status_code == 200, response.text
        replied: JSON = response.json()
        return replied

    def messages(self, session_id: str) -> list[str]:
        """What was said, user and assistant in turn."""
        shown = self.ok("GET", f"/sessions/{session_id}/messages")
        assert [m["role"] for m in shown] == ["user", "assistant"] * (len(shown) // 2)
        return [m["content"] for m in shown]

    @contextmanager
    def lines(self, session_id: str, question: str, key: str | None = None) -> Iterator[Any]:
        """A streamed turn, line by line as it arrives; leaving the block hangs up."""
        path = f"{_turns(session_id)}/stream"
        with (
            httpx.Client(base_url=self.url, trust_env=False, timeout=PATIENCE) as client,
            client.stream("POST", path, **_asked(question, key)) as response,
        ):
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            yield response.iter_lines()

    def stream(self, session_id: str, question: str, key: str | None = None) -> list[Event]:
        """All events of a streamed turn."""
        with self.lines(session_id, question, key) as lines:
            return list(events(lines))

    def close(self) -> None:
        self._client.close()


def _turns(session_id: str) -> str:
    path, _, query = session_id.partition("?")
    return f"/sessions/{path}/turns" + (f"?{query}" if query else "")


def _asked(question: str, key: str | None) -> dict[str, Any]:
    headers = {} if key is None else {"Idempotency-Key": key}
    return {"json": {"question": question}, "headers": headers}


def events(lines: Iterator[str]) -> Iterator[Event]:
    """The events that lines are, each as soon as it is complete; comments are passed over."""
    name, data = "message", ""
    for line in lines:
        kind, _, value = line.partition(": ")
        if kind == "event":
            name = value
        elif kind == "data":
            data += value
        elif not line and data:
            yield Event(name, json.loads(data))
            name, data = "message", ""
    assert not data, "the stream ended within an event"


@contextmanager
def application(store: str, **settings: str) -> Iterator[ModuleType]:
    """The page's module, executed anew, with its settings in the environment."""
    module = ModuleType(f"chat_{next(_number)}")
    environment = {f"CHAT_{name.upper()}": value for name, value in settings.items()}
    sys.modules[module.__name__] = module  # FastAPI and pydantic look names up there
    try:
        with mock.patch.dict(os.environ, {"CHAT_STORE": store, **environment}):
            run_blocks(PAGE, [recipe()], module)
        yield module
    finally:
        del sys.modules[module.__name__]


@contextmanager
def serving(app: Any, patience: int | None = None) -> Iterator[str]:
    """Serves an application on this machine, and yields its URL, which it has begun to do.

    When the block ends, the server waits for what it still answers, so many seconds at most. It
    waits for nothing after an error: a stream that a failed test has left open would never end.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        config = uvicorn.Config(
            app, lifespan="on", log_level="error", timeout_graceful_shutdown=patience
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive())
            assert server.started, "the application does not start; see its log"
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        except BaseException:
            server.force_exit = True
            raise
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def chat(
    store: str,
    lm: dspy.BaseLM,
    *,
    program: dspy.Module | None = None,
    patience: int | None = None,
    **settings: str,
) -> Iterator[Server]:
    """The page's server with this model; `program` takes the place of the page's own."""
    before = dspy.settings.copy()
    try:
        with application(store, **settings) as module:
            dspy.configure(lm=lm)
            if program is not None:
                module.__dict__["program"] = program
            with serving(module.__dict__["app"], patience) as url:
                server = Server(url)
                try:
                    yield server
                finally:
                    server.close()
    finally:
        dspy.configure(**before)


PROCESS = """
import sys

import dspy
import uvicorn

import chat

dspy.configure(lm=dspy.LM("openai/scripted", api_base=sys.argv[1], api_key="none", cache=False))
uvicorn.run(chat.app, fd=int(sys.argv[2]), log_level="error")
"""


def write_program(folder: Path) -> Path:
    """Writes the page's `chat.py`, and a script that serves it: `serve.py <model> <socket>`."""
    (folder / "chat.py").write_text(recipe().code, "utf-8")
    script = folder / "serve.py"
    script.write_text(PROCESS, "utf-8")
    return script


# --- what its tests share -------------------------------------------------------------------------


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/chats.db"


@pytest.fixture(params=["sqlite", "postgres_url"])
def store(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store, one after the other of those that the page names."""
    url: str = request.getfixturevalue(request.param)
    return url


def echo(body: Body) -> str:
    return f"[[ ## answer ## ]]\nyou asked {asked(body['messages'])}\n\n[[ ## completed ## ]]"


@pytest.fixture
def model() -> Iterator[LoopbackServer]:
    with LoopbackServer(echo) as server:
        yield server


@contextmanager
def meeting(parties: int = 2) -> Iterator[LoopbackServer]:
    """A model that answers "meet ..." only when so many ask it: their turns overlap."""
    together = threading.Barrier(parties)

    def answer(body: Body) -> str:
        if asked(body["messages"]).startswith("meet"):
            together.wait(SOON)
        return echo(body)

    with LoopbackServer(answer) as model:
        yield model
