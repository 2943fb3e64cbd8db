"""The published TemplateAdapter, where the author of a prompt says where the conversation stands;
and predictors that hold an adapter of their own, as its `Predict` does."""

from __future__ import annotations

import copy
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest
from dspy_template_adapter import Predict, TemplateAdapter

from dspy_session import SessionState, sessionify, step
from dspy_session.program.adapter import ConversationAdapter
from dspy_session.testing import Prompt, ScriptedLM
from tests.loopback import LoopbackServer
from tests.streams import SOON
from tests.talk import QA
from tests.test_adapters import (
    TOPICS,
    Noting,
    over_http,
    reply,
    sent,
    so_far,
    talk,
    text_of,
    told,
    with_history,
)

Template = list[dict[str, Any]]

ASKED: dict[str, Any] = {"role": "user", "content": "question: {question}"}
LAYOUTS: dict[str, Template] = {
    "all in system": [
        {"role": "system", "content": "{instruction}\n\nSo far:\n{history(style='yaml')}"},
        ASKED,
    ],
    "all in user": [{"role": "user", "content": "{instruction}\n{history()}\n\nNow: {question}"}],
    "as messages": [{"role": "system", "content": "{instruction}"}, {"role": "history"}, ASKED],
    "not mentioned": [{"role": "system", "content": "{instruction}"}, ASKED],
    "in the middle": [
        {"role": "user", "content": "Here is what was said."},
        {"role": "history"},
        {"role": "assistant", "content": "Understood."},
        ASKED,
    ],
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


class Split(TemplateAdapter):
    """Shows the latest exchange as messages, and the earlier ones as `{earlier}`."""

    def format(self, signature: Any, demos: Any, inputs: Any, **others: Any) -> Template:
        messages = inputs["history"].messages
        earlier = [f"{name}: {text}" for m in messages[:-1] for name, text in m.items()]
        inputs = {**inputs, "earlier": "\n".join(earlier)}
        inputs["history"] = dspy.History(messages=messages[-1:])
        return super().format(signature.append("earlier", dspy.InputField()), demos, inputs)


def template(layout: str, parse_mode: Any = "full_text", **settings: Any) -> TemplateAdapter:
    return TemplateAdapter(LAYOUTS[layout], parse_mode, **settings)


def scripted() -> ScriptedLM:
    return ScriptedLM(reply)


# --- layouts --------------------------------------------------------------------------------------


@every_layout
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("held", [False, True])
def test_D20_each_layout_shows_the_conversation_once(layout: str, mode: str, held: bool) -> None:
    lm, adapter = scripted(), template(layout)
    program = Predict(QA, adapter=adapter) if held else dspy.Predict(QA)
    with dspy.context(lm=lm, adapter=None if held else adapter):
        session = sessionify(program)
        talk(session, mode)
    assert [told(prompt) for prompt in sent(lm)] == [so_far(n) for n in range(3)]
    roles = {
        "all in system": ["system", "user"],
        "all in user": ["user"],
        "in the middle": ["user", *["user", "assistant"] * 2, "assistant", "user"],
    }
    expected = roles.get(layout, ["system", *["user", "assistant"] * 2, "user"])
    assert [message["role"] for message in sent(lm)[-1]] == expected
    assert [turn.outputs["answer"] for turn in session.turns] == [f"{t}-answer" for t in TOPICS]


@every_layout
def test_D20_over_http_too(layout: str) -> None:
    with LoopbackServer(over_http) as server, dspy.context(lm=server.lm()):
        talk(sessionify(Predict(QA, adapter=template(layout))), "sync")
        assert [told(r.messages) for r in server.received] == [so_far(n) for n in range(3)]


@every_layout
@pytest.mark.parametrize("parse_mode", ["full_text", "json", "xml"])
def test_D20_a_session_sends_what_a_history_by_hand_sends(layout: str, parse_mode: str) -> None:
    written = {"full_text": "{}", "json": '{{"answer": "{}"}}', "xml": "<answer>{}</answer>"}
    lm = ScriptedLM(lambda prompt: written[parse_mode].format(reply(prompt)))
    past: list[dict[str, Any]] = []
    with dspy.context(lm=lm, adapter=template(layout, parse_mode)):
        session = sessionify(dspy.Predict(QA))
        by_hand = with_history(dspy.Predict(QA))
        for topic in TOPICS:
            session(question=topic)
            said = by_hand(question=topic, history=dspy.History(messages=past))
            past = [*past, {"question": topic, **said}]
    assert sent(lm)[::2] == sent(lm)[1::2]


def test_X7_messages_in_the_template_keep_what_was_sent_at_the_front() -> None:
    lm = scripted()
    with dspy.context(lm=lm, adapter=template("as messages")):
        talk(sessionify(dspy.Predict(QA)), "sync")
    first, second, third = sent(lm)
    assert second[: len(first)] == first
    assert third[: len(second)] == second


def test_D20_split_the_latest_as_messages_and_the_earlier_as_text() -> None:
    adapter = Split(
        [
            {"role": "system", "content": "{instruction}\nEarlier:\n{earlier}"},
            {"role": "history"},
            ASKED,
        ],
        "full_text",
    )
    lm = scripted()
    with dspy.context(lm=lm, adapter=adapter):
        talk(sessionify(dspy.Predict(QA)), "sync")
    assert [told(prompt) for prompt in sent(lm)] == [so_far(n) for n in range(3)]
    system, *latest = sent(lm)[-1]
    assert told([system]) == ["quince", "quince-answer"]
    assert [message["role"] for message in latest] == ["user", "assistant", "user"]


def test_D20_helpers_are_handed_the_history() -> None:
    seen: list[Any] = []
    adapter = TemplateAdapter(
        [{"role": "system", "content": "{count()} turns"}, {"role": "history"}, ASKED], "full_text"
    )

    def count(ctx: dict[str, Any], **_: Any) -> str:
        seen.append(ctx["history"])
        return str(len(ctx["history"].messages))

    adapter.register_helper("count", count)
    lm = scripted()
    with dspy.context(lm=lm, adapter=adapter):
        talk(sessionify(dspy.Predict(QA)), "sync")
    assert [text_of(prompt[0]) for prompt in sent(lm)] == ["0 turns", "1 turns", "2 turns"]
    assert all(isinstance(history, dspy.History) for history in seen)


# --- what does not fit into the messages of a template --------------------------------------------


class Concierge(dspy.Module):
    """Knows nothing of history, and returns a plain value."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(QA)

    def forward(self, question: str) -> Any:
        return self.qa(question=question).answer


class Planner(dspy.Module):
    """Asks its last predictor something that no turn has, under an adapter of its own."""

    def __init__(self, adapter: dspy.Adapter) -> None:
        super().__init__()
        self.plan = dspy.Predict("question -> plan")
        self.write = Predict("plan -> answer", adapter=adapter)

    def forward(self, question: str) -> Any:
        return self.write(plan=self.plan(question=question).plan)


@every_layout
def test_D20_a_plain_return_is_what_the_predictor_said(layout: str) -> None:
    lm = scripted()
    with dspy.context(lm=lm, adapter=template(layout)):
        session = sessionify(Concierge())
        talk(session, "sync")
    assert [told(prompt) for prompt in sent(lm)] == [so_far(n) for n in range(3)]
    assert session.turns[0].outputs == {"output": "quince-answer"}


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("shown", ["{inputs()}", "{inputs(style='json')}", "Write: {plan}"])
@pytest.mark.parametrize("field", ["history", "talk"])
def test_D20_a_template_that_has_no_place_for_the_text_is_given_one(
    shown: str, mode: str, field: str
) -> None:
    """A fixed template names the inputs of its author; the conversation as text is not among them.

    It stands in front of the last user message, if the template does not show it itself.
    """
    layout = [
        {"role": "system", "content": "{instruction}"},
        {"role": "history"},
        {"role": "user", "content": shown},
    ]
    lm = scripted()
    with dspy.context(lm=lm):
        program = Planner(TemplateAdapter(layout, "full_text"))
        session = sessionify(program, history_field=field)
        talk(session, mode)
    for turn, prompt in enumerate(sent(lm)[1::2]):
        expected = [*so_far(turn)[:-1], f"{TOPICS[turn]}-answer"]
        assert told(prompt) == expected
    last = text_of(sent(lm)[-1][-1])
    if "plan}" in shown:
        assert last.startswith("The conversation so far, oldest first.\n[1]\nquestion: quince\n")
        assert last.endswith("\n\nWrite: basalt-answer")


def test_D20_a_template_without_a_message_of_the_users_gets_one() -> None:
    lm = scripted()
    adapter = TemplateAdapter([{"role": "system", "content": "Write: {plan}"}], "full_text")
    with dspy.context(lm=lm):
        session = sessionify(Planner(adapter))
        session.add_turn({"question": "quince"}, {"answer": "quince-answer"})
        session(question="heron")
    assert [message["role"] for message in sent(lm)[-1]] == ["system", "user"]
    assert told(sent(lm)[-1][1:]) == ["quince", "quince-answer"]


# --- adapters that a predictor holds --------------------------------------------------------------


def test_D6_a_held_adapter_is_only_borrowed() -> None:
    """While a turn runs it is wrapped; before and after, and for everybody else, it is itself."""
    seen: list[Any] = []

    class Looking(Predict):
        def forward(self, **inputs: Any) -> Any:
            seen.append(vars(self)["adapter"])
            return super().forward(**inputs)

    adapter = template("as messages")
    program: Any = Looking(QA, adapter=adapter)
    state = SessionState()
    with dspy.context(lm=scripted()):
        for topic in TOPICS:
            _, state = step(state, program, {"question": topic})
            assert program.adapter is adapter
    assert [type(found) for found in seen] == [ConversationAdapter] * 3
    assert all(isinstance(found, TemplateAdapter) for found in seen)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_D6_it_is_given_back_when_the_call_fails(mode: str) -> None:
    def fail(prompt: Prompt) -> Any:
        raise ValueError("the model is out")

    adapter = template("as messages")
    program: Any = Predict(QA, adapter=adapter)
    session = sessionify(program, copy_mode="none")
    before = session.state
    with dspy.context(lm=ScriptedLM(fail)), pytest.raises(Exception, match="the model is out"):
        talk(session, mode)
    assert program.adapter is adapter
    assert session.state is before


def test_D6_turns_that_run_side_by_side_share_it() -> None:
    meeting = threading.Barrier(3)

    def together(prompt: Prompt) -> Any:
        meeting.wait(SOON)
        return reply(prompt)

    adapter = template("as messages")
    program: Any = Predict(QA, adapter=adapter)
    lm = ScriptedLM(together)

    def converse(_: int) -> None:
        state = SessionState()
        with dspy.context(lm=lm):
            for topic in TOPICS[:2]:
                _, state = step(state, program, {"question": topic})

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(converse, range(3)))
    assert program.adapter is adapter
    seconds = [prompt for prompt in sent(lm) if len(told(prompt)) == 3]
    assert [told(prompt) for prompt in seconds] == [so_far(1)] * 3


def test_D6_copies_made_within_a_turn_carry_the_conversation_too() -> None:
    lm = scripted()
    best = dspy.BestOfN(
        Predict(QA, adapter=template("as messages")), 2, lambda args, pred: 0.0, threshold=1.0
    )
    with dspy.context(lm=lm):
        session = sessionify(best)
        session(question="quince")
        session(question="heron")
    assert [told(prompt) for prompt in lm.prompts] == [so_far(0)] * 2 + [so_far(1)] * 2


def test_A4_settings_of_a_call_reach_it() -> None:
    lm = scripted()
    with dspy.context(lm=lm):
        step(
            SessionState(),
            Predict(QA, adapter=template("as messages")),
            {"question": "quince"},
            config={"temperature": 0.9},
        )
    assert lm.history[-1]["kwargs"]["temperature"] == 0.9


def test_D6_an_adapter_that_the_predictor_exchanges_meanwhile_stays() -> None:
    other = template("all in user")

    class Fickle(Predict):
        def forward(self, **inputs: Any) -> Any:
            found = super().forward(**inputs)
            self.adapter = other
            return found

    program: Any = Fickle(QA, adapter=template("as messages"))
    with dspy.context(lm=scripted()):
        step(SessionState(), program, {"question": "quince"})
    assert program.adapter is other


def test_D20_callbacks_are_told_what_they_are_told_without_a_session() -> None:
    heard = []
    for program in (dspy.Predict(QA), sessionify(dspy.Predict(QA))):
        noting, quiet = Noting(), Noting()
        adapter = template("as messages", callbacks=[quiet])
        with dspy.context(lm=scripted(), adapter=adapter, callbacks=[noting]):
            program(question="quince")
        heard.append((noting.heard, quiet.heard))
    assert heard[0] == heard[1]
    assert heard[0][0]


def test_D20_an_optimized_prompt_is_what_the_template_shows() -> None:
    lm = scripted()
    program = Predict(QA, adapter=template("as messages"))
    program.signature = program.signature.with_instructions("Learned.")
    program.demos = [dspy.Example(question="demo?", answer="demo!").with_inputs("question")]
    with dspy.context(lm=lm):
        talk(sessionify(program), "sync")
    prompt = sent(lm)[-1]
    assert text_of(prompt[0]) == "Learned."
    assert json.dumps(prompt).count("demo!") == 1
    assert told(prompt) == so_far(2)


class Inside(dspy.Predict):
    """Makes an adapter in its own `forward`: nobody can reach that one."""

    def forward(self, **inputs: Any) -> Any:
        with dspy.context(adapter=dspy.XMLAdapter()):
            return super().forward(**inputs)


def test_D6_an_adapter_that_cannot_be_reached_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    lm = scripted()
    with dspy.context(lm=lm), caplog.at_level(logging.WARNING, "dspy_session"):
        session = sessionify(Inside(QA))
        session(question="quince")
        assert caplog.messages == []  # there is nothing to lose yet
        session(question="heron")
    (message,) = caplog.messages
    assert "Inside makes the adapter XMLAdapter inside its own forward" in message
    assert "Hold the adapter in an attribute" in message
    assert len(session) == 2


def test_D6_a_session_with_a_held_adapter_can_be_copied() -> None:
    lm = scripted()
    with dspy.context(lm=lm):
        session = sessionify(Predict(QA, adapter=template("as messages")))
        session(question="quince")
        twin = copy.deepcopy(session)
        twin(question="heron")
    assert told(sent(lm)[-1]) == so_far(1)
    assert type(vars(twin.module)["adapter"]) is TemplateAdapter
    assert len(session) == 1
