"""Agents with tools: their loops see the conversation and their own steps, and keep both apart."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import dspy
import pytest

from dspy_session import SessionOptions, SessionState, sessionify, step
from dspy_session.testing import Prompt, requested_fields
from tests.loopback import Body, Completion, LoopbackServer
from tests.modules import (
    ANSWERS,
    QUESTIONS,
    Speaker,
    aconverse,
    content,
    converse,
    roles,
    tells,
)

NAMED = "question -> answer"


def look(at: str) -> str:
    """Look at something."""
    return f"seen {at}"


def broken(at: str) -> str:
    """Never works."""
    raise ValueError(f"nothing at {at}")


class Interrupted(BaseException):
    """What no program catches."""


def interrupting(at: str) -> str:
    """Is given up."""
    raise Interrupted(at)


class Agent(Speaker):
    """Uses a tool once in each turn, then answers; speaks to ReAct and to ReActV2."""

    stepped: bool = False

    def __init__(self, tool: str = "look") -> None:
        def say(prompt: Prompt) -> dict[str, Any]:
            if not {"next_tool_name", "tool_calls"}.intersection(requested_fields(prompt)):
                return {}
            first = self.stepped = not self.stepped
            arguments = {"at": "here"} if first else {}
            submitted = {"name": "submit", "args": {"answer": ANSWERS[self.turn]}}
            call = {"name": tool, "args": arguments} if first else submitted
            return {
                "next_tool_name": tool if first else "finish",
                "next_tool_args": arguments,
                "tool_calls": {"tool_calls": [call]},
            }

        super().__init__(say)


def react(*tools: Callable[..., Any]) -> dspy.Module:
    return dspy.ReAct(NAMED, tools=list(tools or (look,)))


def react_v2(*tools: Callable[..., Any]) -> dspy.Module:
    return dspy.ReActV2(NAMED, tools=list(tools or (look,)))


class Inside(dspy.Module):
    """An agent inside a program."""

    def __init__(self, agent: dspy.Module) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, question: str) -> Any:
        return self.agent(question=question)

    async def aforward(self, question: str) -> Any:
        return await self.agent.acall(question=question)


def best_of(agent: dspy.Module) -> dspy.Module:
    return dspy.BestOfN(agent, N=2, reward_fn=lambda a, p: 1.0, threshold=1.0)


PLACES: list[Callable[[dspy.Module], dspy.Module]] = [lambda agent: agent, Inside, best_of]
PLACE_NAMES = ["alone", "inside", "attempts"]


# --- ReAct ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES, ids=PLACE_NAMES)
def test_D2_a_react_uses_its_tools_in_every_turn(place: Callable[..., dspy.Module]) -> None:
    session, lm = sessionify(place(react())), Agent()
    converse(session, lm)
    for turn in session.turns:
        assert turn.outputs == {"answer": ANSWERS[turn.index]}
        assert turn.details["trajectory"]["observation_0"] == "seen here"
    for turn_number in range(3):
        first, second, last = lm.of_turn(turn_number)
        for prompt in (first, second, last):
            assert tells(prompt, turn_number) == bool(turn_number)
        assert "seen here" in second[-1]["content"]  # its own step, and none of earlier turns
        assert second[-1]["content"].count("seen here") == 1
        assert last[-1]["content"].count("seen here") == 1


@pytest.mark.parametrize("make", [react, react_v2])
def test_A12_a_tool_that_raises_is_told_to_the_model(make: Callable[..., dspy.Module]) -> None:
    session, lm = sessionify(make(broken)), Agent("broken")
    converse(session, lm)
    assert [turn.outputs for turn in session.turns] == [{"answer": a} for a in ANSWERS[:3]]
    second = lm.of_turn(2)[1]
    assert tells(second, 2)
    assert "Execution error in broken: " in "".join(map(content, second))
    assert "nothing at here" in str(session.turns[2].details)


@pytest.mark.parametrize("make", [react, react_v2])
def test_A14_a_tool_that_is_given_up_leaves_no_turn(make: Callable[..., dspy.Module]) -> None:
    session = sessionify(make(interrupting))
    converse(sessionify(make()), Agent())
    before = session.state
    with pytest.raises(Interrupted, match="here"):
        converse(session, Agent("interrupting"), turns=1)
    assert session.state is before
    assert [attempt.status for attempt in session.attempts] == ["cancelled"]


def test_A12_a_tool_may_call_another_session() -> None:
    inner = sessionify(dspy.Predict("topic -> fact"))

    def recall(at: str) -> str:
        """Ask the one who knows."""
        return str(inner(topic=at).fact)

    session, lm = sessionify(react(recall)), Agent("recall")
    converse(session, lm)
    assert [turn.inputs for turn in inner.turns] == [{"topic": "here"}] * 3
    asked = [prompt for prompt in lm.of_turn(2) if "topic" in prompt[-1]["content"]]
    assert [roles(prompt) for prompt in asked] == ["uauau"]  # its own turns
    assert not tells(asked[0], 2)


# --- ReActV2 --------------------------------------------------------------------------------------


def is_step(prompt: Prompt) -> bool:
    """Whether a prompt shows a step of the running turn: a tool call and its result."""
    return any("seen here" in content(message) for message in prompt)


@pytest.mark.parametrize("place", PLACES, ids=PLACE_NAMES)
def test_D2_a_react_v2_sees_earlier_turns_and_its_own_steps(
    place: Callable[..., dspy.Module],
) -> None:
    session, lm = sessionify(place(react_v2())), Agent()
    returned = converse(session, lm)
    for number in range(3):
        first, second = lm.of_turn(number)
        assert (tells(first, number), tells(second, number)) == (bool(number), bool(number))
        assert (is_step(first), is_step(second)) == (False, True)
        assert roles(second) == ("uuauu" if number else "uauu")
        words = "".join(map(content, second))
        assert words.count(QUESTIONS[number]) == 1
        if number:  # the conversation, then the question, then the step
            assert words.index(ANSWERS[number - 1]) < words.index(QUESTIONS[number])
        assert words.index(QUESTIONS[number]) < words.index("seen here")
        assert first[0] == second[0]
    for turn, prediction in zip(session.turns, returned, strict=True):
        assert turn.outputs == {"answer": ANSWERS[turn.index]}
        assert turn.details["termination_reason"] == "submit"
        called, submitted = turn.details["history"]  # this run's, and nothing else
        assert called["question"] == QUESTIONS[turn.index]
        assert called["tool_calls"].tool_calls[0].args == {"at": "here"}
        assert submitted["answer"] == ANSWERS[turn.index]
        assert len(prediction.history.messages) == 2


def test_D16_a_react_v2_that_is_awaited_does_too() -> None:
    for place in (PLACES[0], Inside):
        session, lm = sessionify(place(react_v2())), Agent()
        asyncio.run(aconverse(session, lm))
        first, second = lm.of_turn(2)
        assert tells(first, 2)
        assert tells(second, 2)
        assert (is_step(first), is_step(second)) == (False, True)
        assert [len(turn.details["history"]) for turn in session.turns] == [2, 2, 2]


ADAPTERS = [
    dspy.ChatAdapter(),
    dspy.JSONAdapter(use_native_function_calling=False),
    dspy.XMLAdapter(),
]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_D6_a_react_v2_does_under_every_adapter(adapter: dspy.Adapter) -> None:
    session, lm = sessionify(react_v2()), Agent()
    with dspy.context(adapter=adapter):
        converse(session, lm)
    first, second = lm.of_turn(2)
    assert tells(first, 2)
    assert tells(second, 2)
    assert (is_step(first), is_step(second)) == (False, True)


class OwnWay(dspy.ChatAdapter):
    """Renders history in a way of its own."""

    def format_conversation_history(
        self, signature: Any, history_field_name: str, inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        messages = inputs.pop(history_field_name).messages
        return [{"role": "user", "content": f"once: {m}"} for m in messages]


def test_D6_where_a_history_cannot_be_messages_the_steps_are_text_too() -> None:
    lm = Agent()
    with dspy.context(adapter=OwnWay()):
        converse(sessionify(react_v2()), lm)
    first, second = lm.of_turn(2)
    assert tells(first, 2)
    assert tells(second, 2)
    assert is_step(second)
    words = second[-1]["content"]
    assert words.index(ANSWERS[1]) < words.index(QUESTIONS[2]) < words.index("seen here")


@pytest.mark.parametrize("adapter", [OwnWay(), "two steps"], ids=["own way", "two steps"])
def test_D6_its_own_steps_are_there_from_the_first_turn_on(adapter: Any) -> None:
    lm = Agent()
    adapter = dspy.TwoStepAdapter(lm) if adapter == "two steps" else adapter
    with dspy.context(adapter=adapter):
        converse(sessionify(react_v2()), lm)
    for number in range(3):
        steps = [prompt for prompt in lm.of_turn(number) if is_step(prompt)]
        assert steps
        assert all(tells(prompt, number) == bool(number) for prompt in steps)


def test_D2_the_first_turn_of_a_react_v2_is_dspys_own() -> None:
    """Byte for byte: where there is no conversation yet, nothing is added."""
    bare, inside = Agent(), Agent()
    with dspy.context(lm=bare):
        react_v2()(question=bare.next_turn())
    converse(sessionify(react_v2()), inside, turns=1)
    assert inside.prompts == bare.prompts


def test_D17_a_history_given_to_a_react_v2_is_not_touched() -> None:
    program, lm = react_v2(), Agent()
    given = dspy.History(messages=[{"question": QUESTIONS[0], "answer": ANSWERS[0]}])
    before = copy.deepcopy(given)
    lm.began = [0]
    with dspy.context(lm=lm, trace=[]):
        for _ in range(2):
            inputs = {"question": QUESTIONS[1], "history": given}
            lm.turn, lm.began = 1, [0, len(lm.prompts)]
            _, state = step(SessionState(), program, inputs)
            assert state == SessionState()
            assert all(tells(prompt, 1) for prompt in lm.of_turn(1))
        traced = [inputs["history"] for _, inputs, _ in dspy.settings.trace]
    assert given == before
    assert [len(history.messages) for history in traced] == [1, 2, 1, 2]


def test_D5_a_history_that_a_program_hands_to_its_react_v2_is_the_conversation() -> None:
    class Handing(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.agent = react_v2()

        def forward(self, question: str, history: dspy.History) -> Any:
            return self.agent(question=question, history=history)

    session, lm = sessionify(Handing()), Agent()
    converse(session, lm)
    first, second = lm.of_turn(2)
    assert tells(first, 2)
    assert tells(second, 2)
    assert is_step(second)
    assert [len(turn.details["history"]) for turn in session.turns] == [2, 2, 2]


def test_D5_a_react_v2_with_a_history_of_its_programs_own_keeps_that_one() -> None:
    class Elsewhere(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.agent = react_v2()

        def forward(self, question: str) -> Any:
            said = [{"question": "own question", "next_thought": "own thought"}]
            return self.agent(question=question, history=dspy.History(messages=said))

    session, lm = sessionify(Elsewhere()), Agent()
    converse(session, lm)
    for prompt in lm.of_turn(2):
        words = "".join(map(content, prompt))
        assert "own thought" in words
        assert QUESTIONS[1] not in words


def test_D8_a_history_that_a_react_v2_returned_may_begin_a_conversation() -> None:
    lm = Agent()
    with dspy.context(lm=lm):
        first = react_v2()(question=lm.next_turn())
    session = sessionify(react_v2(), initial_history=first.history)
    with dspy.context(lm=lm):
        session(question=lm.next_turn())
    opening, _ = lm.of_turn(1)
    assert roles(opening) == "uu"
    told = content(opening[1])
    assert told.index(QUESTIONS[0]) < told.index("seen here") < told.index(ANSWERS[0])
    assert "None" not in told


def test_D5_messages_that_a_program_adds_to_its_history_come_behind_the_conversation() -> None:
    class Adding(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict("question, history: dspy.History -> answer")
            self.plan = dspy.Predict("question, history: dspy.History -> plan")

        def forward(self, question: str, history: dspy.History) -> Any:
            history.messages.append({"question": "draft?", "answer": "draft", "plan": "sleep"})
            self.plan(question=question, history=history)
            return self.qa(question=question, history=history)

    session, lm = sessionify(Adding()), Speaker()
    converse(session, lm)
    as_text, as_messages = lm.of_turn(2)
    assert (roles(as_text), roles(as_messages)) == ("uuau", "uauauau")
    for prompt in (as_text, as_messages):
        assert tells(prompt, 2)
        words = "".join(map(content, prompt[1:]))
        assert words.count("draft?") == 1
        assert words.index(ANSWERS[1]) < words.index("draft?") < words.index(QUESTIONS[2])
    assert [len(turn.history_snapshot.messages) for turn in session.turns] == [0, 1, 2]
    given = dspy.History(messages=[{"question": "q", "answer": "a"}])
    with dspy.context(lm=lm):
        session(question=lm.next_turn(), history=given)
    assert given.messages == [{"question": "q", "answer": "a"}]
    assert all("draft?" in "".join(map(content, prompt)) for prompt in lm.of_turn(3))


def test_D5_a_history_that_a_program_rewrites_is_its_own() -> None:
    class Redacting(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict("question, history: dspy.History -> answer")

        def forward(self, question: str, history: dspy.History) -> Any:
            for message in history.messages:
                message["answer"] = "redacted"
            return self.qa(question=question, history=history)

    session, lm = sessionify(Redacting()), Speaker()
    converse(session, lm)
    words = "".join(map(content, lm.of_turn(2)[0]))
    assert words.count("redacted") == 2
    assert not any(answer in words for answer in ANSWERS)
    assert [turn.outputs["answer"] for turn in session.turns] == list(ANSWERS[:3])


def test_D5_an_agent_whose_signature_has_a_history_is_handed_it() -> None:
    program = dspy.ReAct("question, past: dspy.History -> answer", tools=[look])
    session, lm = sessionify(program), Agent()
    converse(session, lm)
    assert session.options.history_field == "past"
    assert [list(turn.inputs) for turn in session.turns] == [["question"]] * 3
    assert all(tells(prompt, 2) for prompt in lm.of_turn(2))


def test_A14_an_agent_that_comes_to_no_end_leaves_the_conversation_as_it_was() -> None:
    session, lm = sessionify(react_v2()), Agent()
    converse(session, lm, turns=1)
    before = session.state
    with pytest.raises(ValueError, match="failed to produce final outputs"):
        converse(session, Speaker(lambda prompt: {"tool_calls": {"tool_calls": []}}), turns=1)
    assert session.state is before
    assert [attempt.status for attempt in session.attempts] == ["failed"]
    lm.began = [0]
    converse(session, lm, turns=1)
    assert tells(lm.of_turn(1)[-1], 1)


# --- over HTTP, with the provider's own tool calls ------------------------------------------------


def test_D2_a_react_v2_over_http_with_native_tool_calls() -> None:
    turns = iter(range(3))
    now = {"turn": 0}

    def answer(body: Body) -> Completion:
        stepped = any(message["role"] == "tool" for message in body["messages"])
        if not stepped:
            now["turn"] = next(turns)
            return Completion(tool_calls=[("look", {"at": "here"})])
        return Completion(tool_calls=[("submit", {"answer": ANSWERS[now["turn"]]})])

    session = sessionify(react_v2())
    adapter = dspy.ChatAdapter(use_native_function_calling=True)
    with LoopbackServer(answer) as server, dspy.context(lm=server.lm(), adapter=adapter):
        for question in QUESTIONS[:3]:
            session(question=question)
    assert [turn.outputs for turn in session.turns] == [{"answer": a} for a in ANSWERS[:3]]
    assert len(server.received) == 6
    first, second = (request.messages for request in server.received[4:])
    assert tells(first, 2)
    assert tells(second, 2)
    assert roles(second) == "uuatu"  # conversation, question, tool call, its result, tools
    assert "seen here" in second[4]["content"]
    assert SessionOptions().show_details is False
