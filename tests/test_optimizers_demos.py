"""A demo made from a later turn shows its conversation as readable text, under every adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter

from dspy_session import Session, sessionify
from dspy_session.testing import Prompt, ScriptedLM, requested_fields
from tests.talk import QA, history

ADAPTERS: dict[str, Callable[[], dspy.Adapter]] = {
    "chat": dspy.ChatAdapter,
    "json": dspy.JSONAdapter,
    "xml": dspy.XMLAdapter,
    "baml": BAMLAdapter,
}
TOLD = "[1]\nquestion: one\nanswer: answer to one\n\n[2]\nquestion: two\nanswer: answer to two"
every_adapter = pytest.mark.parametrize("adapter", ADAPTERS)


def reply(prompt: Prompt) -> dict[str, Any]:
    return dict.fromkeys(requested_fields(prompt), "said")


def demo(**fields: Any) -> dspy.Example:
    return dspy.Example(**{"question": "three", "answer": "3", **fields})


def sent(program: dspy.Module, adapter: str, **inputs: Any) -> list[str]:
    """The messages of one call."""
    lm = ScriptedLM(reply)
    with dspy.context(lm=lm, adapter=ADAPTERS[adapter]()):
        program(question="now", **inputs)
    return [message["content"] for message in lm.prompts[-1]]


def taught(*demos: Any, signature: Any = QA) -> Session:
    program = dspy.Predict(signature)
    program.demos = list(demos)
    return sessionify(program)


@every_adapter
def test_X2_a_demo_shows_its_conversation_as_text(adapter: str) -> None:
    session = taught(demo(history=history("one", "two")))
    _, user, assistant, now = sent(session, adapter)
    assert TOLD in user
    assert '"messages"' not in user
    assert "three" in user
    assert "3" in assistant
    assert "now" in now
    given = session.predictors()[0].demos[0].history  # the demo itself is what it was
    assert given == history("one", "two")


@every_adapter
def test_X2_demos_of_a_loaded_program_too(adapter: str) -> None:
    session = taught(demo(history=history("one", "two")))
    loaded = sessionify(dspy.Predict(QA))
    loaded.load_state(json.loads(json.dumps(session.dump_state())))
    assert isinstance(loaded.predictors()[0].demos[0]["history"], dict)
    assert sent(loaded, adapter) == sent(session, adapter)


@every_adapter
def test_X2_only_the_conversation_of_a_demo_is_written_otherwise(adapter: str) -> None:
    """What plain DSPy shows of the same demo differs in that one field."""
    by_hand = dspy.Predict(QA.append("history", dspy.InputField(), dspy.History))
    by_hand.demos = [demo(history=history("one", "two"))]
    plain = sent(by_hand, adapter, history=history())
    _, user, *_ = told = sent(taught(*by_hand.demos), adapter)
    dump = plain[1].index("{")
    _, end = json.JSONDecoder().raw_decode(plain[1], dump)
    assert user == plain[1][:dump] + TOLD + plain[1][end:]
    assert [told[0], *told[2:]] == [plain[0], *plain[2:]]


@every_adapter
def test_X2_demos_without_a_conversation_are_as_dspy_shows_them(adapter: str) -> None:
    by_hand = dspy.Predict(QA.append("history", dspy.InputField(), dspy.History))
    by_hand.demos = [demo(), demo(history=None), demo(history="as text")]
    assert sent(taught(*by_hand.demos), adapter) == sent(by_hand, adapter, history=history())


@every_adapter
def test_X2_a_demo_of_a_first_turn_has_nothing_before_it(adapter: str) -> None:
    _, user, *_ = sent(taught(demo(history=history())), adapter)
    assert '"messages"' not in user
    assert "[1]" not in user


@every_adapter
def test_X2_a_history_field_of_the_programs_own_is_told_too(adapter: str) -> None:
    class ByHand(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            signature = QA.append("chat_log", dspy.InputField(), dspy.History)
            self.qa = dspy.Predict(signature)
            self.qa.demos = [demo(chat_log=history("one", "two"))]

        def forward(self, question: str, own: bool = False) -> Any:
            given = {"chat_log": history("of its own")} if own else {}
            return self.qa(question=question, **given)

    for own in (False, True):
        told = sent(sessionify(ByHand()), adapter, own=own)
        assert TOLD in told[1]
        assert ("of its own" in str(told)) is own


@every_adapter
def test_X2_where_the_conversation_is_text_its_demos_are_too(adapter: str) -> None:
    session = taught(demo(history=history("one", "two")))
    session.add_turn({"other": "what"}, {"unknown": "nothing"})  # fits no message
    _, user, _, now = sent(session, adapter)
    assert TOLD in user
    assert "[1]\nother: what\nunknown: nothing" in now


def test_X2_values_of_many_lines_and_other_types_are_readable() -> None:
    message = {
        "question": "a\nb",
        "answer": ["x", {"y": 1}],
        "more": dspy.Image("data:image/png;base64,aGk="),
    }
    session = taught(demo(history=dspy.History(messages=[message])))
    _, user, *_ = sent(session, "chat")
    assert "[1]\nquestion: a\n  b\nanswer:" in user
    assert all(text in user for text in ("«x»", "{'y': 1}", "\nmore: "))


def test_X2_the_fallback_from_chat_to_json_shows_the_same() -> None:
    session = taught(demo(history=history("one", "two")))

    def broken(prompt: Prompt) -> Any:
        if "Respond with a JSON object" in prompt[-1]["content"]:
            return reply(prompt)
        return "no fields at all"

    lm = ScriptedLM(broken)
    with dspy.context(lm=lm):
        session(question="now")
    assert len(lm.prompts) == 2
    assert all(TOLD in prompt[1]["content"] for prompt in lm.prompts)
