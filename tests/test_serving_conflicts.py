"""Two writers of one conversation, behind the server of docs/guide/serving.md: 409, and no loss."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.house import PROJECT
from tests.loopback import LoopbackServer
from tests.serving import JSON, Server, chat, meeting, model, sqlite, store, write_program
from tests.streams import wait_until
from tests.talk import past

__all__ = ["model", "sqlite", "store"]


def at_once(*requests: tuple[Server, str, str, str]) -> list[httpx.Response]:
    """The answers to turns that are asked for at the same time: server, session, question, key."""
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda r: r[0].post(*r[1:]), requests))


def sorted_out(responses: list[httpx.Response]) -> tuple[JSON, JSON]:
    """The body of the one that was recorded, and of the one that met it."""
    good, bad = sorted(responses, key=lambda response: response.status_code)
    assert (good.status_code, bad.status_code) == (200, 409)
    return good.json(), bad.json()


def meet(one: Server, two: Server, model: LoopbackServer) -> None:
    """Two servers answer one conversation at once: the later one says so, and loses nothing."""
    one.begin("ada")
    one.ask("ada", "one")
    assert two.begin("ada")["turns"] == 1
    good, bad = sorted_out(at_once((one, "ada", "meet A", "a"), (two, "ada", "meet B", "b")))
    assert bad["error"] == "ConflictError"
    questions = {body["turn"]["inputs"]["question"] for body in (good, bad)}
    assert questions == {"meet A", "meet B"}
    late = bad["turn"]["inputs"]["question"]
    assert bad["turn"]["outputs"] == {"answer": f"you asked {late}"}  # finished, and paid for
    (first,) = questions - {late}
    said = ["one", "you asked one", first, f"you asked {first}"]
    assert one.messages("ada") == two.messages("ada") == said

    again = two.ask("ada", f"again: {late}", late[-1].lower())  # its key was not used up
    assert again["turn"]["index"] == 2
    assert [question for question, _ in past(model.received[-1].messages)] == said[::2]


def test_two_applications_on_one_store(store: str) -> None:
    with (
        meeting() as model,
        chat(store, model.lm()) as one,
        chat(store, model.lm()) as two,
    ):
        meet(one, two, model)


@contextlib.contextmanager
def process(script: Path, store: str, model: LoopbackServer) -> Iterator[Server]:
    """The page's server as a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        os.set_inheritable(listening.fileno(), True)
        child = subprocess.Popen(
            [sys.executable, str(script), model.url, str(listening.fileno())],
            env={**os.environ, "CHAT_STORE": store, "PYTHONPATH": str(PROJECT)},
            pass_fds=[listening.fileno()],
        )
        server = Server(f"http://127.0.0.1:{listening.getsockname()[1]}")
    try:
        yield server
    finally:
        server.close()
        child.terminate()
        child.wait()


def test_two_processes_on_one_store(sqlite: str, tmp_path: Path) -> None:
    script, store = write_program(tmp_path), sqlite
    with (
        meeting() as model,
        process(script, store, model) as one,
        process(script, store, model) as two,
    ):
        meet(one, two, model)


def test_a_client_says_what_becomes_of_a_conflict(sqlite: str) -> None:
    with meeting() as model, chat(sqlite, model.lm()) as server:
        server.begin("ada")
        retried = at_once(
            (server, "ada?on_conflict=retry", "meet A", "a"),
            (server, "ada?on_conflict=retry", "meet B", "b"),
        )
        assert {response.json()["turn"]["index"] for response in retried} == {0, 1}
        assert set(server.messages("ada")[::2]) == {"meet A", "meet B"}

        branched = at_once(
            (server, "ada?on_conflict=branch", "meet C", "c"),
            (server, "ada?on_conflict=branch", "meet D", "d"),
        )
        kept = {response.json()["session_id"] for response in branched}
        assert "ada" in kept
        (other,) = kept - {"ada"}
        assert {server.messages(id)[-2] for id in kept} == {"meet C", "meet D"}
        assert server.messages(other)[:-2] == server.messages("ada")[:-2]
        assert len(model.received) == 4


def test_a_conflict_at_the_end_of_a_stream(sqlite: str) -> None:
    with meeting() as model, chat(sqlite, model.lm()) as server, ThreadPoolExecutor(1) as pool:
        server.begin("ada")
        other = pool.submit(server.stream, "ada", "meet A")
        responses = server.post("ada", "meet B"), other.result()
        lost = responses[0].json() if responses[0].is_error else responses[1][-1].data
        assert lost["error"] == "ConflictError"
        question = lost["turn"]["inputs"]["question"]
        assert lost["turn"]["outputs"] == {"answer": f"you asked {question}"}
        assert server.messages("ada")[0] == {"meet A": "meet B", "meet B": "meet A"}[question]
        assert (responses[0].status_code == 409) != (responses[1][-1].name == "failure")


def test_one_request_sent_twice_at_once_is_recorded_once(sqlite: str) -> None:
    with meeting() as model, chat(sqlite, model.lm()) as server:
        server.begin("ada")
        good, _ = sorted_out(at_once(*[(server, "ada", "meet", "k-1")] * 2))
        assert server.ask("ada", "meet", "k-1") == good

        (one, two) = at_once(*[(server, "ada?on_conflict=retry", "meet again", "k-2")] * 2)
        assert one.json() == two.json()
        assert server.messages("ada")[::2] == ["meet", "meet again"]
        assert len(model.received) == 4


def test_a_session_that_is_deleted_while_the_model_speaks_is_gone(store: str) -> None:
    with meeting() as model, chat(store, model.lm()) as server, ThreadPoolExecutor(1) as pool:
        server.begin("ada")
        late = pool.submit(server.post, "ada", "meet A")
        server.begin("bob")
        wait_until(lambda: model.received)
        server.ok("DELETE", "/sessions/ada")
        server.ask("bob", "meet B")
        response = late.result()
        assert response.status_code == 410
        assert response.json()["turn"]["outputs"] == {"answer": "you asked meet A"}
        assert server.request("GET", "/sessions/ada/messages").status_code == 404
