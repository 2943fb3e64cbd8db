"""The server of docs/guide/serving.md when it cannot answer, and with clients that carry data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy

from dspy_session import TurnRefusedError, current_data
from tests.loopback import SERVER_ERROR, LoopbackServer
from tests.servers import PostgresServer
from tests.serving import JSON, Server, chat, meeting, model, sqlite, store
from tests.streams import wait_until
from tests.talk import past

__all__ = ["model", "sqlite", "store"]


@contextlib.contextmanager
def unchanged(server: Server, model: LoopbackServer) -> Iterator[None]:
    """No model is asked, and ada's conversation stays what it is."""
    before, calls = server.messages("ada"), len(model.received)
    yield
    assert server.messages("ada") == before
    assert len(model.received) == calls


NONE = {"question": "Hi"}
REFUSED: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("POST", "/sessions/eve/turns", {"json": NONE}, 404, "SessionNotFoundError"),
    ("POST", "/sessions/eve/turns/stream", {"json": NONE}, 404, "SessionNotFoundError"),
    ("GET", "/sessions/eve/messages", {}, 404, "SessionNotFoundError"),
    ("DELETE", "/sessions/eve", {}, 404, "SessionNotFoundError"),
    ("POST", "/sessions/%00/turns", {"json": NONE}, 422, "OptionError"),
    ("GET", "/sessions/%00/messages", {}, 422, "OptionError"),
    ("DELETE", "/sessions/%00", {}, 422, "OptionError"),
    ("PUT", "/sessions/%00", {}, 422, "OptionError"),
    ("PUT", "/sessions/" + "x" * 201, {}, 422, "OptionError"),
    ("POST", "/sessions/ada/turns", {"json": {}}, 422, ""),
    ("POST", "/sessions/ada/turns", {"json": {"question": ""}}, 422, ""),
    ("POST", "/sessions/ada/turns", {"json": {"question": 7}}, 422, ""),
    ("POST", "/sessions/ada/turns", {"json": {"question": "x" * 20_001}}, 422, ""),
    ("POST", "/sessions/ada/turns", {"content": b"{"}, 422, ""),
    ("POST", "/sessions/ada/turns/stream", {"json": {}}, 422, ""),
    ("POST", "/sessions/ada/turns?on_conflict=fight", {"json": NONE}, 422, ""),
    ("POST", "/sessions/ada/turns", {"json": NONE, "headers": {"Idempotency-Key": ""}}, 422, ""),
    ("GET", "/sessions/ada/messages?last=-1", {}, 422, ""),
    ("POST", "/respond", {"content": b"{"}, 400, "PayloadError"),
    ("POST", "/respond", {"json": {"messages": []}}, 400, "PayloadError"),
]


def test_what_cannot_be_answered_says_why(store: str, model: LoopbackServer) -> None:
    with chat(store, model.lm()) as server:
        server.begin("ada")
        server.ask("ada", "one")
        for method, path, request, status, error in REFUSED:
            with unchanged(server, model):
                response = server.request(method, path, **request)
                assert response.status_code == status, (method, path, response.text)
                assert response.json().get("error", "") == error
                assert response.json()["detail"]


def test_a_conversation_that_is_full(sqlite: str, model: LoopbackServer) -> None:
    with chat(sqlite, model.lm(), max_bytes="100") as server:
        server.begin("ada")
        server.ask("ada", "one", "k-1")
        with unchanged(server, model):
            response = server.post("ada", "two")
            assert (response.status_code, response.json()["error"]) == (413, "SessionSizeError")
            (event,) = server.stream("ada", "two")
            assert (event.name, event.data) == ("failure", {"status": 413, **response.json()})
            assert server.ask("ada", "one", "k-1")["turn"]["index"] == 0  # it is answered already


def test_a_model_that_fails(sqlite: str) -> None:
    with LoopbackServer(lambda body: SERVER_ERROR) as model:
        lm = model.lm(num_retries=0)
        with chat(sqlite, lm) as server:
            server.begin("ada")
            assert server.post("ada", "one").status_code == 500
            (event,) = server.stream("ada", "one")
            assert (event.name, event.data["status"]) == ("failure", 500)
            assert "had an error" not in str(event.data)  # what went wrong is in the server's log
            assert server.messages("ada") == []


class Closed(dspy.Module):
    def forward(self, question: str) -> str:
        raise TurnRefusedError("We are closed.")


def test_a_turn_that_is_refused(sqlite: str, model: LoopbackServer) -> None:
    with chat(sqlite, model.lm(), program=Closed()) as server:
        server.begin("ada")
        response = server.post("ada", "one")
        body = {"error": "TurnRefusedError", "detail": "We are closed."}
        assert (response.status_code, response.json()) == (403, body)
        (event,) = server.stream("ada", "one")
        assert (event.name, event.data) == ("failure", {"status": 403, **body})
        assert server.messages("ada") == []


def test_a_store_that_goes_away(model: LoopbackServer) -> None:
    with PostgresServer() as database, chat(database.url, model.lm()) as server:
        server.begin("ada")
        server.ask("ada", "one")
        database.kill()
        response = server.post("ada", "two", "k-2")
        assert (response.status_code, response.json()["error"]) == (503, "StoreError")
        assert str(database.port) not in response.text
        database.start()
        assert server.ask("ada", "two", "k-2")["turn"]["index"] == 1
        assert server.messages("ada") == ["one", "you asked one", "two", "you asked two"]


def test_a_store_that_goes_away_while_the_model_speaks_costs_no_answer() -> None:
    with (
        meeting() as model,
        PostgresServer() as database,
        chat(database.url, model.lm()) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        server.begin("ada")
        whole = pool.submit(server.post, "ada", "meet A", "a")
        wait_until(lambda: model.received)
        database.kill()
        dspy.Predict("question -> answer")(question="meet B", lm=model.lm())  # lets it answer
        response = whole.result()
        assert response.status_code == 503
        assert response.json()["turn"]["outputs"] == {"answer": "you asked meet A"}
        database.start()
        assert server.messages("ada") == []


# --- a client that carries its data ---------------------------------------------------------------


class Shop(dspy.Module):
    """A program that keeps a cart in the session data."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = dspy.Predict("question, cart -> answer")

    def forward(self, question: str) -> Any:
        data = current_data()
        data["cart"] = [*data.get("cart", []), question]
        return self.talk(question=question, cart=" ".join(data["cart"]))


def test_session_data_goes_to_the_client_and_comes_back(sqlite: str, model: LoopbackServer) -> None:
    with chat(sqlite, model.lm(), program=Shop(), secret="s" * 32) as server:
        said: JSON = {"role": "user", "content": "tea"}
        reply = server.ok("POST", "/respond", json={"messages": [said]})
        assert (reply["role"], reply["content"]) == ("assistant", "you asked tea")
        assert reply["data"]["session"] == {"cart": ["tea"]}

        more: JSON = {"role": "user", "content": "milk", "data": reply["data"]}
        again = server.ok("POST", "/respond", json={"messages": [said, reply, more]})
        assert again["data"]["session"] == {"cart": ["tea", "milk"]}
        assert past(model.received[-1].messages) == [("tea", "you asked tea")]

        more["data"]["session"]["cart"] = ["gold"]
        refused = server.request("POST", "/respond", json={"messages": [said, reply, more]})
        assert (refused.status_code, refused.json()["error"]) == (400, "PayloadError")
        assert len(model.received) == 2
    with chat(sqlite, model.lm(), program=Shop(), secret="t" * 32) as stranger:
        forged: JSON = {"role": "user", "content": "milk", "data": again["data"]}
        refused = stranger.request("POST", "/respond", json={"messages": [forged]})
        assert refused.status_code == 400
