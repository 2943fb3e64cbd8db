"""The server of docs/guide/serving.md over real HTTP: turns, streams, requests that come twice."""

from __future__ import annotations

import asyncio
import gc
import http.client
import re
import socket
import threading
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.house import PROJECT
from tests.loopback import Body, LoopbackServer
from tests.serving import PAGE, PATIENCE, Event, chat, echo, events, model, sqlite, store
from tests.streams import SOON, Gate, wait_until
from tests.talk import asked, past
from tests.test_documentation import fenced_blocks

__all__ = ["model", "sqlite", "store"]


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def text(stream: list[Event]) -> str:
    assert {event.data["field"] for event in stream if event.name == "text"} <= {"answer"}
    return "".join(event.data["text"] for event in stream if event.name == "text")


# --- conversations --------------------------------------------------------------------------------


def test_a_conversation_survives_its_server(store: str, model: LoopbackServer) -> None:
    with chat(store, model.lm()) as server:
        assert server.begin("ada") == {"session_id": "ada", "turns": 0}
        first = server.ask("ada", "one")
        assert first["session_id"] == "ada"
        assert first["turn"]["index"] == 0
        assert first["turn"]["inputs"] == {"question": "one"}
        assert first["turn"]["outputs"] == {"answer": "you asked one"}
        assert server.ask("ada", "two")["turn"]["index"] == 1

    with chat(store, model.lm()) as server:
        assert server.begin("ada") == {"session_id": "ada", "turns": 2}
        (*_, last) = server.stream("ada", "three")
        assert (last.name, last.data["turn"]["index"]) == ("turn", 2)
        said = ["one", "you asked one", "two", "you asked two", "three", "you asked three"]
        assert server.messages("ada") == said
        assert server.ok("GET", "/sessions/ada/messages?last=2")[1]["content"] == said[-1]
        assert past(model.received[-1].messages) == [*zip(said[:4:2], said[1:4:2], strict=True)]
        assert not model.received[0].body.get("stream")  # nobody hears it, so it comes whole
        assert model.received[-1].body["stream"]

        assert server.request("DELETE", "/sessions/ada").status_code == 204
        assert server.post("ada", "four").status_code == 404
    assert len(model.received) == 3


def test_many_conversations_at_once_on_one_loop(sqlite: str) -> None:
    conversations, turns = 24, 3
    together = threading.Barrier(8)  # so many LM calls of the one event loop are under way at once

    def answer(body: Body) -> str:
        if asked(body["messages"]).endswith("turn 0"):
            together.wait(SOON)
        return echo(body)

    async def talk(client: httpx.AsyncClient, number: int) -> None:
        await client.put(f"/sessions/{number}")
        for turn in range(turns):
            question = {"question": f"{number}, turn {turn}"}
            response = await client.post(f"/sessions/{number}/turns", json=question)
            assert response.status_code == 200, response.text

    async def everybody(url: str) -> None:
        limits = httpx.Limits(max_connections=conversations)
        async with httpx.AsyncClient(
            base_url=url, trust_env=False, timeout=PATIENCE, limits=limits
        ) as client:
            await asyncio.gather(*(talk(client, number) for number in range(conversations)))

    with LoopbackServer(answer) as model, chat(sqlite, model.lm()) as server:
        asyncio.run(everybody(server.url))
        for number in range(conversations):
            own = [f"{number}, turn {turn}" for turn in range(turns)]
            assert server.messages(str(number))[::2] == own
        assert len(model.received) == conversations * turns
        for request in model.received:
            owner, _, turn = asked(request.messages).partition(", turn ")
            seen = [question for question, _ in past(request.messages)]
            assert seen == [f"{owner}, turn {earlier}" for earlier in range(int(turn))]


# --- streams --------------------------------------------------------------------------------------


def test_text_arrives_while_the_model_speaks(store: str) -> None:
    """The model says a word only after the client has heard the one a few words before it."""
    gate, words = Gate(), [f"word{number}" for number in range(12)]
    spoken = f"[[ ## answer ## ]]\n{' '.join(words)}"
    gate.let(5 + 4)  # the header, and the first words
    heard, stream = 0, []

    with LoopbackServer(lambda body: spoken, gate) as model, chat(store, model.lm()) as server:
        server.begin("ada")
        with server.lines("ada", "Say it.") as lines:
            for event in events(lines):
                stream.append(event)
                gate.let(len(text(stream).split()) - heard)
                heard = len(text(stream).split())
        assert gate.sent == 5 + len(words) + 2  # the end, and the usage
        assert text(stream) == " ".join(words)
        assert [event.name for event in stream if event.name != "text"] == ["turn"]
        assert stream[-1].data["turn"]["outputs"] == {"answer": " ".join(words)}
        assert server.messages("ada") == ["Say it.", " ".join(words)]


def test_a_client_that_hangs_up_leaves_no_turn_and_may_ask_again(store: str) -> None:
    gate = Gate()
    gate.let(5 + 3)
    with LoopbackServer(echo, gate) as model, chat(store, model.lm()) as server:
        server.begin("ada")
        with server.lines("ada", "one", "k-1") as lines:
            assert next(events(lines)).name == "text"
        wait_until(lambda: model.received[0].hung_up.is_set())  # the model's work was called off
        gate.open()
        assert server.begin("ada") == {"session_id": "ada", "turns": 0}

        (*_, last) = server.stream("ada", "one", "k-1")
        assert last.data["turn"]["outputs"] == {"answer": "you asked one"}
        assert len(model.received) == 2
        assert server.messages("ada") == ["one", "you asked one"]


def test_a_slow_client_that_hangs_up_ends_the_work(sqlite: str, uncollected: None) -> None:
    # The server waits until the client takes more. Its generator is at a `yield` then, where no
    # cancellation reaches it; the collector might close it, at some time.
    gate = Gate()
    gate.let(250)
    long = f"[[ ## answer ## ]]\n{(50_000 * 'x' + ' ') * 400}"
    with LoopbackServer(lambda body: long, gate) as model, chat(sqlite, model.lm()) as server:
        server.begin("ada")
        with server.lines("ada", "one") as lines:
            assert next(events(lines)).name == "text"
            wait_until(lambda: gate.sent == 250)
        wait_until(lambda: model.received[0].hung_up.is_set())
        gate.open()
        assert server.messages("ada") == []


def test_a_client_that_hangs_up_on_a_whole_answer_finds_it_later(sqlite: str) -> None:
    go_on = threading.Event()

    def answer(body: Body) -> str:
        go_on.wait(SOON)
        return echo(body)

    with LoopbackServer(answer) as model, chat(sqlite, model.lm()) as server:
        server.begin("ada")
        host = server.url.removeprefix("http://")
        connection = http.client.HTTPConnection(host)
        headers = {"Content-Type": "application/json", "Idempotency-Key": "k-1"}
        connection.request("POST", "/sessions/ada/turns", b'{"question": "one"}', headers)
        wait_until(lambda: model.received)
        connection.close()
        go_on.set()
        wait_until(lambda: server.begin("ada")["turns"] == 1)
        assert server.ask("ada", "one", "k-1")["turn"]["outputs"] == {"answer": "you asked one"}
        assert len(model.received) == 1


def test_a_silent_stream_is_kept_alive(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.01)  # FastAPI's own: 15 s
    gate = Gate()
    with LoopbackServer(echo, gate) as model, chat(sqlite, model.lm()) as server:
        server.begin("ada")
        with server.lines("ada", "one") as lines:
            assert [next(lines) for _ in range(4)] == [": ping", ""] * 2
            gate.open()
            (*_, last) = events(lines)
        assert (last.name, last.data["turn"]["index"]) == ("turn", 0)


def test_other_requests_are_answered_while_a_model_thinks(sqlite: str) -> None:
    gate = Gate()
    with LoopbackServer(echo, gate) as model, chat(sqlite, model.lm()) as server:
        server.begin("ada")
        with server.lines("ada", "one") as lines:
            wait_until(lambda: model.received)
            assert server.messages("ada") == []
            assert server.begin("bob") == {"session_id": "bob", "turns": 0}
            gate.open()
            (*_, last) = events(lines)
        assert last.name == "turn"


# --- the end of the server ------------------------------------------------------------------------


def test_a_server_that_stops_lets_its_turns_end(sqlite: str) -> None:
    def goes_on_when_nobody_is_let_in(url: httpx.URL) -> None:
        wait_until(lambda: refuses(url))
        gate.open()

    gate = Gate()
    with LoopbackServer(echo, gate) as model:
        with ThreadPoolExecutor(2) as pool, chat(sqlite, model.lm()) as server:
            server.begin("ada")
            stream = pool.submit(server.stream, "ada", "one")
            wait_until(lambda: model.received)
            going_on = pool.submit(goes_on_when_nobody_is_let_in, httpx.URL(server.url))
        going_on.result()
        (*_, last) = stream.result()
        assert (last.name, last.data["turn"]["index"]) == ("turn", 0)
        with chat(sqlite, model.lm()) as server:
            assert server.messages("ada") == ["one", "you asked one"]


def refuses(url: httpx.URL) -> bool:
    """Whether nobody listens there any more."""
    try:
        socket.create_connection((url.host, url.port or 0)).close()
    except ConnectionError:
        return True
    return False


def test_a_server_that_waits_no_longer_calls_its_turns_off(sqlite: str) -> None:
    gate = Gate()
    with LoopbackServer(echo, gate) as model, ThreadPoolExecutor(1) as pool:
        with chat(sqlite, model.lm(), patience=0) as server:
            server.begin("ada")
            stream = pool.submit(server.stream, "ada", "one")
            wait_until(lambda: model.received)
        with pytest.raises(httpx.RemoteProtocolError):
            stream.result()
        wait_until(lambda: model.received[0].hung_up.is_set())
        gate.open()
        with chat(sqlite, model.lm()) as server:
            assert server.messages("ada") == []


# --- requests that come twice ---------------------------------------------------------------------


def test_a_request_that_comes_again_is_answered_without_the_model(
    store: str, model: LoopbackServer
) -> None:
    with chat(store, model.lm()) as server:
        server.begin("ada")
        first = server.ask("ada", "one", "k-1")
        server.ask("ada", "two", "k-2")
        assert server.ask("ada", "one", "k-1") == first
        assert server.stream("ada", "one", "k-1") == [Event("turn", first)]
    with chat(store, model.lm()) as server:
        assert server.ask("ada", "one", "k-1") == first
        assert len(model.received) == 2
        assert server.begin("ada")["turns"] == 2


# --- the page -------------------------------------------------------------------------------------


def test_the_page_lists_what_the_server_offers(sqlite: str, model: LoopbackServer) -> None:
    listed = re.findall(r"^\| `([A-Z]+) (/[^?`]*)[^`]*` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    with chat(sqlite, model.lm()) as server:
        paths = server.ok("GET", "/openapi.json")["paths"]
    offered = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert {(method, path.replace("{id}", "{session_id}")) for method, path in listed} == offered


def test_the_page_asks_for_the_versions_that_are_tested() -> None:
    installed = next(fenced_blocks(PAGE.read_text("utf-8"))).code
    told = re.findall(r'"((?:fastapi|uvicorn)>=[^"]*)"', installed)
    with (PROJECT / "pyproject.toml").open("rb") as file:
        developed = tomllib.load(file)["dependency-groups"]["dev"]
    assert len(told) == 2
    assert set(told) <= set(developed)


def test_the_page_shows_what_the_server_sends(sqlite: str) -> None:
    shown = [block.code for block in fenced_blocks(PAGE.read_text("utf-8")) if block.info == "text"]
    answer = "[[ ## answer ## ]]\nThe Fram Museum."
    with LoopbackServer(lambda body: answer) as model, chat(sqlite, model.lm()) as server:
        server.begin("ada")
        with server.lines("ada", "Which museum?") as lines:
            sent = "\n".join(lines)
    masked = re.sub(r'"id": "[^"]+"', '"id": "..."', sent)
    assert masked.strip() in [text.strip() for text in shown]
