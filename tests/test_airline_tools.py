"""A hundred recorded conversations of an agent with tools go through a session of `dspy.ReAct`.

The loopback server says what the recorded agent did, step by step: which tool it called with what,
and what it finally replied. The tools answer with the recorded results. So every recorded call must
be made, in its turn, in order, and every request must show the conversation before its turn.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import dspy
import pytest

from dspy_session import Session, sessionify
from dspy_session.testing import in_requested_format
from tests.loopback import Body, LoopbackServer, Received
from tests.test_real_conversations import CONVERSATIONS, DATA
from tests.uncollected import uncollected

pytestmark = pytest.mark.skipif(
    not CONVERSATIONS.is_file(),
    reason="../shared/data/airline_conversations.jsonl is absent: no recorded tool was called",
)

USER_TURNS, TOOL_CALLS = 757, 572
NO_REPLY = "(The recording ends here.)"


@dataclass(frozen=True)
class Call:
    """One recorded tool call: a name, arguments, and what came back."""

    tool: str
    arguments: dict[str, Any]
    result: str


@dataclass(frozen=True)
class Exchange:
    """One recorded turn: what the customer said, the calls that followed, and the reply."""

    customer: str
    calls: tuple[Call, ...]
    agent: str

    @property
    def said(self) -> list[dict[str, Any]]:
        """What the model answers, request by request."""
        steps = [
            {"next_thought": f"Step {n}.", "next_tool_name": c.tool, "next_tool_args": c.arguments}
            for n, c in enumerate(self.calls)
        ]
        finish = {"next_thought": "Done.", "next_tool_name": "finish", "next_tool_args": {}}
        return [*steps, finish, {"reasoning": "I know enough.", "agent": self.agent}]


Recorded = list[Exchange]


def read_conversation(messages: list[dict[str, Any]]) -> Recorded:
    """The turns of one recording; where no reply is recorded, a note takes its place."""
    customer_at = [at for at, message in enumerate(messages) if message["role"] == "user"]
    exchanges = []
    for at, until in zip(customer_at, [*customer_at[1:], len(messages)], strict=True):
        results = {m["tool_call_id"]: m["content"] for m in messages if m["role"] == "tool"}
        calls, reply = [], NO_REPLY
        for message in messages[at + 1 : until]:
            for call in message.get("tool_calls") or []:
                function = call["function"]
                arguments = json.loads(function["arguments"])
                calls.append(Call(function["name"], arguments, results[call["id"]]))
            if message["role"] == "assistant" and not message.get("tool_calls"):
                reply = message["content"].strip()  # DSPy strips what it parses
        exchanges.append(Exchange(messages[at]["content"], tuple(calls), reply))
    return exchanges


def make_program(recorded: Recorded, made: list[tuple[str, dict[str, Any]]]) -> dspy.ReAct:
    """An agent with all tools of one recording, which answer as recorded and note who called."""
    calls = [call for exchange in recorded for call in exchange.calls]

    def tool(name: str) -> dspy.Tool:
        def run(**arguments: Any) -> str:
            made.append((name, arguments))
            return calls[len(made) - 1].result

        names = {argument for call in calls if call.tool == name for argument in call.arguments}
        return dspy.Tool(run, name=name, desc="As recorded.", args={n: {} for n in sorted(names)})

    tools = [tool(name) for name in dict.fromkeys(call.tool for call in calls)]
    policy = (DATA / "airline_policy.md").read_text("utf-8").strip()
    return dspy.ReAct(dspy.Signature("customer -> agent", policy), tools=tools, max_iters=40)


@dataclass(frozen=True)
class Run:
    """How one conversation went: its session, the calls of each turn, the requests of each turn."""

    recorded: Recorded
    session: Session
    made: list[list[tuple[str, dict[str, Any]]]]
    requests: list[list[Received]]


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    lines = CONVERSATIONS.read_text("utf-8").splitlines()
    recordings = {
        f"airline-{number:02}": read_conversation(json.loads(line)["messages"])
        for number, line in enumerate(lines)
    }
    script = {
        name: iter([words for exchange in recorded for words in exchange.said])
        for name, recorded in recordings.items()
    }

    def reply(body: Body) -> str:
        return in_requested_format(body["messages"], next(script[body["model"]]))

    def talk(name: str) -> Run:
        made: list[tuple[str, dict[str, Any]]] = []
        recorded, lm = recordings[name], server.lm(name)
        session = sessionify(make_program(recorded, made))
        made_by_turn = []
        for exchange in recorded:
            before = len(made)
            assert session(customer=exchange.customer, lm=lm).agent == exchange.agent
            made_by_turn.append(made[before:])
        return Run(recorded, session, made_by_turn, [])

    with LoopbackServer(reply) as server:
        with uncollected(), ThreadPoolExecutor(max_workers=4) as threads:
            finished = dict(zip(recordings, threads.map(talk, recordings), strict=True))
        received = server.by_model()
    for name, run in finished.items():
        sent = iter(received[name])
        run.requests.extend([next(sent) for _ in exchange.said] for exchange in run.recorded)
        assert next(sent, None) is None
    return list(finished.values())


def test_the_recordings_with_tools(runs: list[Run]) -> None:
    assert len(runs) == 100
    assert sum(len(run.recorded) for run in runs) == USER_TURNS
    assert sum(len(exchange.calls) for run in runs for exchange in run.recorded) == TOOL_CALLS
    assert max(len(exchange.calls) for run in runs for exchange in run.recorded) >= 10


def test_A12_the_recorded_tool_calls_are_made_in_order_in_every_turn(runs: list[Run]) -> None:
    for run in runs:
        for exchange, made in zip(run.recorded, run.made, strict=True):
            assert made == [(call.tool, call.arguments) for call in exchange.calls]


def test_D2_what_is_recorded_is_the_reply_and_the_steps_are_a_detail_of_the_turn(
    runs: list[Run],
) -> None:
    for run in runs:
        for exchange, turn in zip(run.recorded, run.session.turns, strict=True):
            assert turn.inputs == {"customer": exchange.customer}
            assert turn.outputs == {"agent": exchange.agent}
            trajectory = turn.details["trajectory"]
            for number, call in enumerate(exchange.calls):
                assert trajectory[f"tool_name_{number}"] == call.tool
                assert trajectory[f"tool_args_{number}"] == call.arguments
                assert trajectory[f"observation_{number}"] == call.result
            assert trajectory[f"tool_name_{len(exchange.calls)}"] == "finish"


def test_D2_every_request_shows_the_turns_before_it_once_and_in_order(runs: list[Run]) -> None:
    for run in runs:
        for number, requests in enumerate(run.requests):
            earlier = [t for e in run.recorded[:number] for t in (e.customer, e.agent)]
            for request in requests:
                assert_shown_once_in_order(request, earlier, run.recorded[number])


def test_D2_each_step_of_a_turn_sees_the_results_of_the_steps_before(runs: list[Run]) -> None:
    for run in runs:
        for exchange, requests in zip(run.recorded, run.requests, strict=True):
            for number, request in enumerate(requests):
                now = request.messages[-1]["content"]
                for step, call in enumerate(exchange.calls[:number]):
                    assert f"observation_{step}" in now
                    assert one_line(call.result) in one_line(now)


def assert_shown_once_in_order(request: Received, earlier: list[str], current: Exchange) -> None:
    """Whitespace aside: readable text may indent a reply of several lines."""
    shown = one_line("\n".join(str(message["content"]) for message in request.messages[1:]))
    at = 0
    for text in map(one_line, earlier):
        found = shown.find(text, at)
        assert found >= 0, f"not shown, or not in order: {text!r}"
        at = found + len(text)
    assert one_line(current.customer) in shown[at:]
    steps = [call.result + str(call.arguments) for call in current.calls]
    said = one_line("\n".join([*earlier, current.customer, *steps]))
    for text in {one_line(text) for text in earlier if len(text) > 60}:
        assert shown.count(text) == said.count(text), f"shown more than once: {text!r}"
    assert "Not supplied" not in shown
    assert not any(message["content"] in (None, "None", "") for message in request.messages)


def one_line(text: str) -> str:
    return " ".join(text.split())
