"""Inputs with a default in the signature: DSPy sends it when a call leaves the input out. A past
turn is shown as it was sent, with the default in it, though the turn itself does not have it."""

from __future__ import annotations

import itertools
from typing import Any

import dspy
import pydantic
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter

from dspy_session import Session, sessionify
from dspy_session.program import clear_render_cache, render_counts
from dspy_session.testing import ScriptedLM

ADAPTERS = [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter, BAMLAdapter]
every_adapter = pytest.mark.parametrize("adapter", ADAPTERS)


class Person(pydantic.BaseModel):
    """Somebody."""

    name: str = "nobody"


class Styled(dspy.Signature):
    """Answer in style."""

    style: str = dspy.InputField(default="plain")
    question: str = dspy.InputField()
    tags: list[str] = dspy.InputField(default=["general"])
    who: Person = dspy.InputField(default=Person())
    limit: int | None = dspy.InputField(default=None)
    answer: str = dspy.OutputField()


FILLED: dict[str, Any] = {"style": "plain", "tags": ["general"], "who": Person(), "limit": None}
TURNS: list[dict[str, Any]] = [
    {"question": "one"},
    {"question": "two", "style": "grand", "limit": 3},
    {"question": "three", "who": Person(name="Ada"), "tags": []},
    {"question": "four"},
]


def sent(lm: ScriptedLM) -> list[list[dict[str, Any]]]:
    return [entry["messages"] for entry in lm.history]


def with_history(program: dspy.Module) -> dspy.Module:
    by_hand = program.deepcopy()
    for predictor in by_hand.predictors():
        field = dspy.InputField()
        predictor.signature = predictor.signature.append("history", field, dspy.History)
    return by_hand


@every_adapter
@pytest.mark.parametrize("kind", [dspy.Predict, dspy.ChainOfThought])
def test_X7_each_call_begins_with_what_was_sent_before(adapter: Any, kind: Any) -> None:
    lm = ScriptedLM()
    with dspy.context(lm=lm, adapter=adapter()):
        session = sessionify(kind(Styled))
        for inputs in TURNS:
            session(**inputs)
    assert [turn.inputs for turn in session.turns] == TURNS
    for shorter, longer in itertools.pairwise(sent(lm)):
        assert longer[: len(shorter)] == shorter
        assert len(longer) == len(shorter) + 2


@every_adapter
@pytest.mark.parametrize("kind", [dspy.Predict, dspy.ChainOfThought])
def test_D6_parity_with_messages_that_have_the_defaults_in_them(adapter: Any, kind: Any) -> None:
    """The law: by hand, the messages hold what was sent, be it given or filled in."""
    lm = ScriptedLM()
    past: list[dict[str, Any]] = []
    with dspy.context(lm=lm, adapter=adapter()):
        session, by_hand = sessionify(kind(Styled)), with_history(kind(Styled))
        for inputs in TURNS:
            session(**inputs)
            by_hand(**inputs, history=dspy.History(messages=past))
            past = [*past, {**FILLED, **inputs, **session.turns[-1].outputs}]
    assert sent(lm)[::2] == sent(lm)[1::2]


@every_adapter
def test_X7_turns_are_rendered_once_all_the_same(adapter: Any) -> None:
    with dspy.context(lm=ScriptedLM(), adapter=adapter()):
        clear_render_cache()
        session = sessionify(dspy.Predict(Styled))
        for question in ("one", "two", "three", "four"):
            session(question=question)
        assert render_counts() == (3, 3)


def test_X7_another_default_is_another_prompt() -> None:
    lm = ScriptedLM()
    with dspy.context(lm=lm, warn_on_type_mismatch=False):
        session = sessionify(dspy.Predict(Styled))
        session.add_turn({"question": "one"}, {"answer": "1"})
        for default in ("plain", "grand", "plain", ["a list"], 1, True, "1", b"a", "YQ=="):
            signature = Styled.with_updated_fields("style")
            signature.input_fields["style"].default = default
            one = Session.from_state(session.state, dspy.Predict(signature))
            one(question="two")
            past, now = (m["content"] for m in sent(lm)[-1][1::2])
            assert past.partition("[[ ## question")[0] == now.partition("[[ ## question")[0]


@pytest.mark.parametrize(
    ("default", "kept"), [(Person(name="Ada"), True), ({"a": [1, None]}, True), (object(), False)]
)
def test_X7_what_no_key_can_be_made_of_is_not_kept(default: Any, kept: bool) -> None:
    signature = dspy.Signature(
        {
            "question": (str, dspy.InputField()),
            "thing": (Any, dspy.InputField(default=default)),
            "answer": (str, dspy.OutputField()),
        }
    )
    lm = ScriptedLM()
    with dspy.context(lm=lm):
        clear_render_cache()
        session = sessionify(dspy.Predict(signature))
        for question in ("one", "two", "three"):
            session(question=question)
    assert bool(render_counts()[1]) == kept
    for shorter, longer in itertools.pairwise(sent(lm)):
        assert longer[: len(shorter)] == shorter


def test_X7_defaults_that_are_models_are_told_apart() -> None:
    lm = ScriptedLM()
    with dspy.context(lm=lm):
        session = sessionify(dspy.Predict(Styled))
        session.add_turn({"question": "one"}, {"answer": "1"})
        for name in ("Ada", "Bob"):
            signature = Styled.with_updated_fields("who")
            signature.input_fields["who"].default = Person(name=name)
            Session.from_state(session.state, dspy.Predict(signature))(question="two")
            assert f'{{"name": "{name}"}}' in sent(lm)[-1][1]["content"]


def test_D7_fields_that_are_not_shown_are_not_filled_in() -> None:
    lm = ScriptedLM()
    with dspy.context(lm=lm):
        for session in (
            sessionify(dspy.Predict(Styled), exclude_fields={"style"}),
            sessionify(dspy.Predict(Styled), history_input_fields={"question"}),
        ):
            session(question="one")
            session(question="two")
            past, now = (m["content"] for m in sent(lm)[-1][1::2])
            assert "style" not in past
            assert "[[ ## style ## ]]\nplain" in now


def test_D8_given_messages_stay_as_they_were_given() -> None:
    lm = ScriptedLM()
    seed = dspy.History(messages=[{"question": "zero", "answer": "0"}])
    with dspy.context(lm=lm):
        session = sessionify(dspy.Predict(Styled), initial_history=seed)
        session(question="one")
        with_history(dspy.Predict(Styled))(question="one", history=seed)
    first, by_hand = sent(lm)
    assert first == by_hand
    assert "plain" not in first[1]["content"]


def test_D6_what_is_handed_out_has_only_what_was_given() -> None:
    with dspy.context(lm=ScriptedLM()):
        session = sessionify(dspy.Predict(Styled))
        session(question="one")
        session(question="two")
    assert session.session_history.messages[0] == {"question": "one", "answer": "2 messages"}
    assert session.turns[1].history_snapshot.messages[0] == {
        "question": "one",
        "answer": "2 messages",
    }


class Grounded(dspy.Module):
    """Computes an input that has a default, and leaves another one to the signature."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(
            dspy.Signature(
                {
                    "question": (str, dspy.InputField()),
                    "context": (str, dspy.InputField(default="no context")),
                    "style": (str, dspy.InputField(default="plain")),
                    "answer": (str, dspy.OutputField()),
                }
            )
        )

    def forward(self, question: str) -> Any:
        return self.qa(question=question, context=f"found for {question}")


def test_D4_what_a_program_computes_is_not_shown_as_the_default() -> None:
    lm = ScriptedLM()
    with dspy.context(lm=lm):
        session = sessionify(Grounded())
        session(question="one")
        session(question="two")
    past, now = (m["content"] for m in sent(lm)[-1][1::2])
    assert "context" not in past
    assert "found for two" in now
    assert "[[ ## style ## ]]\nplain" in past


class Peeking(dspy.ChatAdapter):
    """Keeps the histories that it finds among the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def format(self, signature: Any, demos: Any, inputs: Any) -> Any:
        self.seen.append(inputs["history"])
        return super().format(signature, demos, inputs)


def test_D5_a_history_field_of_the_programs_own_is_no_input_to_fill_in() -> None:
    lm, peeking = ScriptedLM(), Peeking()
    default = dspy.History(messages=[])
    signature = Styled.append("history", dspy.InputField(default=default), dspy.History)

    class Silent(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(signature)

        def forward(self, question: str) -> Any:
            return self.qa(question=question)

    with dspy.context(lm=lm, adapter=peeking):
        session = sessionify(Silent())
        for inputs in TURNS:
            session(question=inputs["question"])
    assert len(sent(lm)[-1]) == 2 + 2 * 3
    assert all("history" not in message for message in peeking.seen[-1].messages)
    for shorter, longer in itertools.pairwise(sent(lm)):
        assert longer[: len(shorter)] == shorter


def test_D6_adapters_of_ones_own_find_the_defaults_in_the_history() -> None:
    peeking = Peeking()
    with dspy.context(lm=ScriptedLM(), adapter=peeking):
        session = sessionify(dspy.Predict(Styled))
        session(question="one", style="grand")
        session(question="two")
    (message,) = peeking.seen[1].messages
    assert list(message) == ["question", "style", "tags", "who", "limit", "answer"]
    assert message["style"] == "grand"
    assert message["tags"] == ["general"]
    message["tags"].append("more")
    assert Styled.input_fields["tags"].default == ["general"]
