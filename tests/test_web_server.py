"""A threaded web server: one program, two hundred conversations at once, over real HTTP.

The server is an ASGI application without a framework, served by uvicorn; each request is one `step`
in a thread of a pool. The model is scripted, and complains about every prompt in which it reads
something of a conversation that is not the one that asks.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import dspy
import uvicorn

from dspy_session import (
    ChatFields,
    SessionData,
    SessionOptions,
    SessionState,
    respond,
    session_tool,
    step,
)
from dspy_session.testing import Prompt, ScriptedLM, requested_fields
from tests.serving import PATIENCE
from tests.talk import asked
from tests.uncollected import uncollected

CONVERSATIONS = 200
TURNS = 3
WORKERS = 16
AT_ONCE = 8
"""How many turns have to be under way together, before the first model answers."""

Handle = Callable[[str, Any], Any]
"""From the path and the body of a request to the body of the answer; called in a worker thread."""

Message = dict[str, Any]


def application(handle: Handle, pool: ThreadPoolExecutor) -> Callable[..., Awaitable[None]]:
    """An ASGI application that runs each request in a thread of the pool."""

    async def app(scope: Message, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(pool, handle, scope["path"], json.loads(body))
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    return app


@contextmanager
def serving(handle: Handle) -> Iterator[int]:
    """A web server on this machine; yields its port. Connections wait until it is up."""
    with socket.create_server(("127.0.0.1", 0), backlog=2 * CONVERSATIONS) as listening:
        pool = ThreadPoolExecutor(WORKERS)
        config = uvicorn.Config(application(handle, pool), lifespan="off", log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
            pool.shutdown()


class Client:
    """One visitor: a connection that stays open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

    def post(self, path: str, body: Any) -> Any:
        self._connection.request("POST", path, json.dumps(body))
        answer = self._connection.getresponse()
        assert answer.status == 200
        return json.loads(answer.read())

    def close(self) -> None:
        self._connection.close()


def everybody(port: int, talk: Callable[[Client, int], None]) -> None:
    """All visitors at once, each in a thread of its own; raises what one of them raised."""
    ready = threading.Barrier(CONVERSATIONS)

    def visit(number: int) -> None:
        client = Client(port)
        ready.wait(PATIENCE)
        try:
            talk(client, number)
        finally:
            client.close()

    with uncollected(), ThreadPoolExecutor(CONVERSATIONS) as visitors:
        list(visitors.map(visit, range(CONVERSATIONS)))


def fact(number: int, turn: int) -> str:
    """Words that no other conversation has."""
    return f"item-{number}-{turn}."


FACT = re.compile(r"item-(\d+)-(\d+)\.")


@session_tool
def add_to_cart(item: str, session: SessionData) -> str:
    """Put an item into the cart."""
    session["cart"] = [*session.get("cart", []), item]
    return "The cart holds " + " ".join(session["cart"])


class Shopper:
    """The model's words: it buys what the user asks for, and says what the cart holds.

    What it reads in each prompt is checked: facts of one conversation only, and of that one all
    that were told so far. The first `CONVERSATIONS` turns begin together in groups of `AT_ONCE`, so
    turns overlap, whatever the machine does.
    """

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.seen: set[tuple[int, int]] = set()
        self._together = threading.Barrier(AT_ONCE)
        self._mutex = threading.Lock()

    def __call__(self, prompt: Prompt) -> dict[str, Any]:
        now = FACT.search(asked(prompt))
        assert now is not None
        number, turn = int(now[1]), int(now[2])
        told = [(int(n), int(t)) for m in prompt for n, t in FACT.findall(m["content"])]
        with self._mutex:
            first = (number, turn) not in self.seen
            self.seen.add((number, turn))
            if set(told) != {(number, earlier) for earlier in range(turn + 1)}:
                self.complaints.append(f"{number}, turn {turn}, was shown {sorted(set(told))}")
        if first and turn == 0:
            self._together.wait(PATIENCE)
        if "next_tool_name" not in requested_fields(prompt):
            cart = prompt[-1]["content"].rpartition("The cart holds ")[2].split("\n")[0]
            return {"reasoning": "It is in the cart.", "answer": f"You have {cart}"}
        return {
            "next_thought": "I put it there.",
            "next_tool_name": "add_to_cart",
            "next_tool_args": {"item": fact(number, turn)},
        }


class Counter(dspy.Module):
    """A program that calls the tool itself, and asks the model once."""

    def __init__(self) -> None:
        super().__init__()
        self.tool = dspy.Tool(add_to_cart)
        self.talk = dspy.Predict("question, cart -> answer")

    def forward(self, question: str) -> Any:
        found = FACT.search(question)
        assert found is not None
        return self.talk(question=question, cart=self.tool(item=found[0]))


def check(model: Shopper, lm: ScriptedLM, calls: int) -> None:
    """Each prompt held its own conversation, and there were as many as there should be."""
    assert model.complaints == []
    assert len(model.seen) == CONVERSATIONS * TURNS
    assert len(lm.prompts) == calls * CONVERSATIONS * TURNS


def cart(number: int, turns: int = TURNS) -> list[str]:
    return [fact(number, turn) for turn in range(turns)]


def test_D23_K4_a_threaded_server_keeps_two_hundred_conversations_apart() -> None:
    program = dspy.ReAct("question -> answer", tools=[add_to_cart], max_iters=1)
    model, options = Shopper(), SessionOptions()
    lm = ScriptedLM(model)
    states: dict[str, SessionState] = {}

    def handle(path: str, body: Any) -> Any:
        with dspy.context(lm=lm, adapter=dspy.ChatAdapter(), disable_history=True):
            state = states.get(path, SessionState(id=path))
            prediction, states[path] = step(state, program, body, options)
        return {"answer": prediction.answer}

    def talk(client: Client, number: int) -> None:
        for turn in range(TURNS):
            answer = client.post(f"/{number}", {"question": f"Buy {fact(number, turn)}"})
            assert answer == {"answer": "You have " + " ".join(cart(number, turn + 1))}

    with serving(handle) as port:
        everybody(port, talk)

    check(model, lm, calls=2)  # for the tool, for the answer
    assert len(states) == CONVERSATIONS
    for number in range(CONVERSATIONS):
        state = states[f"/{number}"]
        assert [turn.inputs["question"] for turn in state] == [
            f"Buy {item}" for item in cart(number)
        ]
        assert [turn.data.to_dict() for turn in state] == [
            {"cart": cart(number, turn + 1)} for turn in range(TURNS)
        ]
        assert state.data.to_dict() == {"cart": cart(number)}
        assert [len(turn.history_snapshot.messages) for turn in state] == list(range(TURNS))


def test_K7_a_server_that_keeps_nothing_answers_two_hundred_clients_at_once() -> None:
    program, model = Counter(), Shopper()
    lm = ScriptedLM(model)
    secret, fields = "a secret of this test, and of no other", ChatFields("question", "answer")

    def handle(path: str, body: Any) -> Any:
        with dspy.context(lm=lm, adapter=dspy.ChatAdapter(), disable_history=True):
            return respond(body, program, fields=fields, secret=secret, context=path)

    def talk(client: Client, number: int) -> None:
        messages: list[Message] = []
        carried: Message = {}
        for turn in range(TURNS):
            said = {"role": "user", "content": f"Buy {fact(number, turn)}", "data": carried}
            reply = client.post(f"/{number}", {"messages": [*messages, said]})
            assert reply["content"] == "You have " + " ".join(cart(number, turn + 1))
            assert reply["data"]["session"] == {"cart": cart(number, turn + 1)}
            executed = [call["arguments"] for call in reply["data"]["executed_tool_calls"]]
            assert executed == [{"item": fact(number, turn)}]
            messages, carried = [*messages, said, reply], reply["data"]

    with serving(handle) as port:
        everybody(port, talk)

    check(model, lm, calls=1)
