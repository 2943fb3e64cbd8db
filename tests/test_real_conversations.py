"""A hundred recorded conversations go through the whole stack, over HTTP, turn by turn.

Each goes to a loopback server through `sessionify(dspy.Predict(...))` and through `step`. The
server answers with what the recorded agent replied, and keeps every request as it came. What a
request must hold is written down here by hand, message by message.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import dspy
import pytest

from dspy_session import Session, SessionOptions, SessionState, codec, sessionify, step
from dspy_session.core import Turn
from tests.house import PROJECT
from tests.loopback import Body, LoopbackServer, Received

DATA = PROJECT.parent / "shared" / "data"
CONVERSATIONS = DATA / "airline_conversations.jsonl"

pytestmark = pytest.mark.skipif(
    not CONVERSATIONS.is_file(),
    reason="../shared/data/airline_conversations.jsonl is absent: no real conversation was sent",
)

ANSWERED_TURNS = 657
REMINDER = (
    "Respond with the corresponding output fields, starting with the field `[[ ## agent ## ]]`, "
    "and then ending with the marker for `[[ ## completed ## ]]`."
)
NO_REPLY = "(The recording ends here.)"

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Recorded:
    """One recorded conversation as text turns.

    Attributes:
        name: The name of the model that it is sent to, which tells its requests from others.
        turns: What the customer said, and what the agent finally replied.
        open_request: What the customer said last, to which no reply is recorded.
    """

    name: str
    turns: list[tuple[str, str]]
    open_request: str

    @property
    def requests(self) -> list[str]:
        return [*(customer for customer, _ in self.turns), self.open_request]

    @property
    def half(self) -> int:
        return len(self.turns) // 2


@dataclass(frozen=True)
class Runs:
    """How all conversations went one way: the turns they left, and the requests they sent."""

    turns: dict[str, tuple[Turn, ...]]
    requests: dict[str, list[Received]]


def read_conversation(name: str, messages: list[dict[str, Any]]) -> Recorded:
    """The text turns of one recording; tool calls and their results stay out."""
    customer_at = [at for at, message in enumerate(messages) if message["role"] == "user"]
    turns = []
    for at, until in itertools.pairwise(customer_at):
        said = [
            message["content"]
            for message in messages[at:until]
            if message["role"] == "assistant" and message["content"]
        ]
        turns.append((messages[at]["content"], said[-1].strip()))  # DSPy strips what it parses
    return Recorded(name, turns, messages[customer_at[-1]]["content"])


def in_threads(work: Callable[[_Item], _Result], items: list[_Item]) -> list[_Result]:
    with ThreadPoolExecutor(max_workers=8) as threads:
        return list(threads.map(work, items))


@pytest.fixture(scope="module")
def recorded() -> list[Recorded]:
    lines = CONVERSATIONS.read_text("utf-8").splitlines()
    return [
        read_conversation(f"airline-{number:02}", json.loads(line)["messages"])
        for number, line in enumerate(lines)
    ]


@pytest.fixture(scope="module")
def start_server(recorded: list[Recorded]) -> Iterator[Callable[[], LoopbackServer]]:
    """Starts servers that reply as the recorded agents did, in the same place of the same talk."""
    by_name = {conversation.name: conversation for conversation in recorded}

    def reply(body: Body) -> str:
        turns = by_name[body["model"]].turns
        place = sum(message["role"] == "assistant" for message in body["messages"])
        text = turns[place][1] if place < len(turns) else NO_REPLY
        return f"[[ ## agent ## ]]\n{text}\n\n[[ ## completed ## ]]\n"

    with ExitStack() as running:
        yield lambda: running.enter_context(LoopbackServer(reply))


@pytest.fixture(scope="module")
def policy() -> str:
    return (DATA / "airline_policy.md").read_text("utf-8").strip()


@pytest.fixture(scope="module")
def make_program(policy: str) -> Callable[[], dspy.Predict]:
    return lambda: dspy.Predict(dspy.Signature("customer -> agent", policy))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conversations")


@pytest.fixture(scope="module")
def sessions(
    recorded: list[Recorded],
    start_server: Callable[[], LoopbackServer],
    make_program: Callable[[], dspy.Predict],
    folder: Path,
) -> tuple[dict[str, Session], Runs]:
    """Sessions that never stopped; on the way each left a file of its first half."""
    server, program = start_server(), make_program()

    def talk(conversation: Recorded) -> Session:
        lm, session = server.lm(conversation.name), sessionify(program)
        for number, (customer, agent) in enumerate(conversation.turns):
            if number == conversation.half:
                session.save(folder / conversation.name)
            assert session(customer=customer, lm=lm).agent == agent
        afterwards = session.fork()  # so that the session itself holds the answered turns only
        assert afterwards(customer=conversation.open_request, lm=lm).agent == NO_REPLY
        return session

    by_name = dict(zip(names(recorded), in_threads(talk, recorded), strict=True))
    turns = {name: session.turns for name, session in by_name.items()}
    return by_name, Runs(turns, server.by_model())


@pytest.fixture(scope="module")
def steps(
    recorded: list[Recorded],
    start_server: Callable[[], LoopbackServer],
    make_program: Callable[[], dspy.Predict],
) -> Runs:
    """`step` with one program for all conversations, which run in threads side by side."""
    server, program = start_server(), make_program()

    def talk(conversation: Recorded) -> tuple[Turn, ...]:
        lm, state = server.lm(conversation.name), SessionState()
        for customer, agent in conversation.turns:
            prediction, state = step(state, program, {"customer": customer}, lm=lm)
            assert prediction.agent == agent
        step(state, program, {"customer": conversation.open_request}, lm=lm)
        return state.turns

    turns = dict(zip(names(recorded), in_threads(talk, recorded), strict=True))
    return Runs(turns, server.by_model())


def names(recorded: list[Recorded]) -> list[str]:
    return [conversation.name for conversation in recorded]


def customer_message(text: str) -> dict[str, str]:
    return {"role": "user", "content": f"[[ ## customer ## ]]\n{text}\n\n{REMINDER}"}


def agent_message(text: str) -> dict[str, str]:
    content = f"[[ ## agent ## ]]\n{text}\n\n[[ ## completed ## ]]\n"
    return {"role": "assistant", "content": content}


def expected_messages(conversation: Recorded, number: int) -> list[dict[str, str]]:
    """What request `number` holds after its system message: every earlier exchange, in order."""
    messages = []
    for customer, agent in conversation.turns[:number]:
        messages += [customer_message(customer), agent_message(agent)]
    return [*messages, customer_message(conversation.requests[number])]


def assert_requests_carry_the_conversation(
    recorded: list[Recorded], requests: dict[str, list[Received]], policy: str
) -> None:
    assert sorted(requests) == sorted(names(recorded))
    systems = set()
    for conversation in recorded:
        sent = requests[conversation.name]
        assert len(sent) == len(conversation.turns) + 1
        for number, request in enumerate(sent):
            system, *messages = request.messages
            assert messages == expected_messages(conversation, number)
            systems.add(json.dumps(system))
    (one_for_all,) = systems  # so it carries nothing of any conversation
    assert policy.splitlines()[-1] in json.loads(one_for_all)["content"]


def test_the_recordings(recorded: list[Recorded]) -> None:
    assert len(recorded) == 100
    assert sum(len(conversation.turns) for conversation in recorded) == ANSWERED_TURNS
    assert max(len(conversation.turns) for conversation in recorded) >= 20
    assert all(text.strip() for one in recorded for turn in one.turns for text in turn)
    assert all(conversation.open_request for conversation in recorded)


def test_each_request_of_a_session_carries_the_conversation_once_and_in_order(
    recorded: list[Recorded], sessions: tuple[dict[str, Session], Runs], policy: str
) -> None:
    _, runs = sessions
    assert sum(map(len, runs.turns.values())) == ANSWERED_TURNS
    assert_requests_carry_the_conversation(recorded, runs.requests, policy)


def test_each_request_of_step_carries_the_conversation_once_and_in_order(
    recorded: list[Recorded], steps: Runs, policy: str
) -> None:
    assert sum(map(len, steps.turns.values())) == ANSWERED_TURNS
    assert_requests_carry_the_conversation(recorded, steps.requests, policy)


def test_step_and_session_send_the_same_bytes_and_remember_the_same(
    sessions: tuple[dict[str, Session], Runs], steps: Runs
) -> None:
    _, runs = sessions
    assert raw(steps.requests) == raw(runs.requests)
    assert remembered(steps.turns) == remembered(runs.turns)


def test_every_turn_tells_how_it_went(sessions: tuple[dict[str, Session], Runs]) -> None:
    _, runs = sessions
    for name, turns in runs.turns.items():
        sent = runs.requests[name]
        for turn, request in zip(turns, sent, strict=False):
            words = sum(len(message["content"].split()) for message in request.messages)
            assert turn.usage[f"openai/{name}"]["prompt_tokens"] == words
            assert turn.duration is not None
            assert turn.duration > 0
        assert len({turn.fingerprint for turn in turns}) == 1
    assert len({turn.id for turns in runs.turns.values() for turn in turns}) == ANSWERED_TURNS


def test_every_turn_becomes_an_example(
    recorded: list[Recorded], sessions: tuple[dict[str, Session], Runs]
) -> None:
    by_name, _ = sessions
    for conversation in recorded:
        examples = by_name[conversation.name].to_examples()
        seen: list[dict[str, str]] = []
        for example, (customer, agent) in zip(examples, conversation.turns, strict=True):
            assert (example.customer, example.agent) == (customer, agent)
            assert example.history.messages == seen
            assert set(example.inputs().keys()) == {"customer", "history"}
            seen.append({"customer": customer, "agent": agent})
    assert len(Session.merge_examples(*by_name.values())) == ANSWERED_TURNS


def test_saving_and_loading_gives_the_same_conversation(
    sessions: tuple[dict[str, Session], Runs],
    make_program: Callable[[], dspy.Predict],
    tmp_path: Path,
) -> None:
    by_name, _ = sessions
    for name, session in by_name.items():
        session.save(tmp_path / name)
        loaded = Session.load_from(tmp_path / name, make_program())
        assert loaded.state == session.state
        assert loaded.options == session.options


def test_a_session_that_was_saved_and_loaded_goes_on_as_if_it_had_never_stopped(
    recorded: list[Recorded],
    sessions: tuple[dict[str, Session], Runs],
    start_server: Callable[[], LoopbackServer],
    make_program: Callable[[], dspy.Predict],
    folder: Path,
) -> None:
    _, runs = sessions
    server, program = start_server(), make_program()

    def go_on(conversation: Recorded) -> tuple[Turn, ...]:
        lm = server.lm(conversation.name)
        session = Session.load_from(folder / conversation.name, program)
        assert len(session) == conversation.half
        for customer, _ in conversation.turns[conversation.half :]:
            session(customer=customer, lm=lm)
        session.fork()(customer=conversation.open_request, lm=lm)
        return session.turns

    turns = dict(zip(names(recorded), in_threads(go_on, recorded), strict=True))
    assert remembered(turns) == remembered(runs.turns)
    never_stopped = {
        conversation.name: runs.requests[conversation.name][conversation.half :]
        for conversation in recorded
    }
    assert raw(server.by_model()) == raw(never_stopped)


def test_step_over_states_that_travel_as_bytes_sends_the_same(
    recorded: list[Recorded],
    steps: Runs,
    start_server: Callable[[], LoopbackServer],
    make_program: Callable[[], dspy.Predict],
) -> None:
    server, program, options = start_server(), make_program(), SessionOptions()

    def talk(conversation: Recorded) -> tuple[Turn, ...]:
        lm, kept = server.lm(conversation.name), codec.encode(SessionState(), options, "msgpack")
        for customer in conversation.requests:
            state, _ = codec.decode(kept, "msgpack")
            _, state = step(state, program, {"customer": customer}, options, lm=lm)
            kept = codec.encode(state, options, "msgpack")
        return codec.decode(kept, "msgpack")[0].turns[:-1]

    turns = dict(zip(names(recorded), in_threads(talk, recorded), strict=True))
    assert remembered(turns) == remembered(steps.turns)
    assert raw(server.by_model()) == raw(steps.requests)


def raw(requests: dict[str, list[Received]]) -> dict[str, list[bytes]]:
    return {name: [request.raw for request in sent] for name, sent in requests.items()}


def remembered(turns: dict[str, tuple[Turn, ...]]) -> dict[str, list[Any]]:
    """What turns show, but for ids and times."""
    return {
        name: [
            (turn.index, turn.inputs, turn.outputs, turn.history_snapshot.messages, turn.usage)
            for turn in own
        ]
        for name, own in turns.items()
    }
