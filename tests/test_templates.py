"""Templates: sessions that start configured, with arguments of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import dspy
import pytest

from dspy_session import (
    DataError,
    HistoryError,
    Hooks,
    Instructions,
    OptionError,
    SessionError,
    SessionOptions,
    SessionState,
    SessionTemplate,
    step,
)
from dspy_session.testing import Prompt, ScriptedLM
from tests.talk import QA, asked, echo, past

TUTORING = SessionTemplate(
    name="tutoring",
    instructions="You are a patient tutor for {subject}. Ask before you tell. {this} stays.",
    data={"level": "{level}", "plan": ["Read about {subject}", {"then": "{subject} {subject}"}]},
    seed=[{"question": "What do we learn?", "answer": "{subject}."}],
    metadata={"subject": "{subject}"},
    options={"max_turns": 4, "private_data": ["level"]},
    arguments={"subject": None, "level": 1},
)


def template(**keywords: Any) -> SessionTemplate:
    return SessionTemplate(**keywords)


def test_C9_a_session_starts_as_its_template_says() -> None:
    lm = ScriptedLM(echo)
    session = TUTORING.start(dspy.Predict(QA), session_id="ada", subject="Python")

    assert session.session_id == "ada"
    assert session.instructions == Instructions(
        "You are a patient tutor for Python. Ask before you tell. {this} stays."
    )
    assert session.data.to_dict() == {
        "level": "1",
        "plan": ["Read about Python", {"then": "Python Python"}],
    }
    assert session.metadata.to_dict() == {"template": "tutoring", "subject": "Python"}
    assert (session.options.max_turns, session.options.private_data) == (4, {"level"})
    assert not session.turns
    with dspy.context(lm=lm):
        session(question="And now?")
    (prompt,) = lm.prompts
    assert past(prompt) == [("What do we learn?", "Python.")]
    assert "You are a patient tutor for Python." in prompt[0]["content"]


def test_C9_what_a_template_started_goes_its_own_way() -> None:
    before = TUTORING.state(subject="Python")
    one, two = (TUTORING.start(dspy.Predict(QA), subject=name) for name in ("Python", "Latin"))
    one.data["plan"] = []
    one.update_metadata({"done": True})

    assert two.data["plan"][0] == "Read about Latin"
    assert "done" not in two.metadata
    assert one.session_id != two.session_id
    assert TUTORING.state(subject="Python") == before


def test_C9_reset_goes_back_to_what_the_template_said() -> None:
    session = TUTORING.start(dspy.Predict(QA), subject="Python", level=3)
    session.data["level"] = "9"
    with dspy.context(lm=ScriptedLM(echo)):
        session(question="Hi")
    session.reset()

    assert (session.data["level"], len(session)) == ("3", 0)
    assert session.session_history.messages[0]["answer"] == "Python."
    assert session.metadata["template"] == "tutoring"


def test_C9_a_state_starts_as_the_template_says() -> None:
    lm = ScriptedLM(echo)
    state = TUTORING.state("ada", subject="Latin", level="top")
    assert (state.id, state.data["level"]) == ("ada", "top")
    with dspy.context(lm=lm):
        _, state = step(state, dspy.Predict(QA), {"question": "Salve"}, TUTORING.options)

    assert "tutor for Latin" in lm.prompts[0][0]["content"]
    assert past(lm.prompts[0]) == [("What do we learn?", "Latin.")]
    assert state.metadata["subject"] == "Latin"


def test_C9_hooks_of_a_template_run_around_each_turn() -> None:
    def count(after: Any) -> Any:
        asked_so_far = after.data.get("asked", 0) + 1
        return after.replace(data=after.data.changed({"asked": asked_so_far}))

    session = template(hooks=Hooks(after=count)).start(dspy.Predict(QA))
    with dspy.context(lm=ScriptedLM(echo)):
        session(question="Hi")
        session(question="And?")
    assert session.data["asked"] == 2


def test_C9_instructions_may_be_a_function_of_the_state_or_stand_in_front() -> None:
    def words(state: SessionState) -> str:
        return f"This is turn {len(state)}."

    lm = ScriptedLM(echo)
    counting = template(name="counting", instructions=words)
    session = counting.start(dspy.Predict(QA))
    with dspy.context(lm=lm):
        session(question="Hi")
        session(question="And?")
    assert ["turn 0" in lm.prompts[0][0]["content"], "turn 1" in lm.prompts[1][0]["content"]] == [
        True,
        True,
    ]
    with pytest.raises(OptionError, match=r"cannot hold instructions that are a callable"):
        counting.state()

    front = template(instructions=Instructions("Teach {what}.", "before"), arguments=["what"])
    assert front.state(what="Go").instructions == Instructions("Teach Go.", "before")


def test_C9_only_declared_arguments_are_filled_in_and_only_once() -> None:
    made = template(
        data={"{a}": "{a} {b} {c} {{a}} {a", "n": 5, "none": None},
        metadata={"name": "{a}"},
        arguments=["a", "b"],
    ).state(a="{b}", b="B {a}")
    assert made.data.to_dict() == {"{a}": "{b} B {a} {c} {{b}} {a", "n": 5, "none": None}
    assert made.metadata.to_dict() == {"name": "{b}"}
    assert made.instructions is None
    assert template(data={"x": "{a}"}).state().data["x"] == "{a}"
    named = template(metadata={"of": "{program}"}, arguments=["program"])
    assert named.start(dspy.Predict(QA), program="P").metadata["of"] == "P"


def test_C9_values_that_are_not_text_stay_as_they_are() -> None:
    picture = dspy.Image("https://example.org/a.png")
    state = template(
        seed=[{"question": picture, "answer": ["{a}", 1]}], arguments={"a": "A"}
    ).state()
    (exchange,) = state.seed
    assert exchange.outputs == {"question": picture, "answer": ["A", 1]}


def test_C9_the_name_is_noted_unless_the_metadata_says_otherwise() -> None:
    assert template().state().metadata.is_empty
    assert template(name="a").state().metadata.to_dict() == {"template": "a"}
    said = template(name="a", metadata={"template": "b"})
    assert said.state().metadata.to_dict() == {"template": "b"}


def test_C9_templates_are_composed_by_replacing_parts() -> None:
    strict = TUTORING.replace(name="strict", instructions="Be strict about {subject}.")
    assert strict.state(subject="C").instructions == Instructions("Be strict about C.")
    assert strict.state(subject="C").data == TUTORING.state(subject="C").data
    assert strict.options == TUTORING.options
    assert TUTORING.name == "tutoring"
    shorter = strict.replace(options=strict.options.replace(max_turns=1), data=None)
    assert (shorter.options.max_turns, shorter.state(subject="C").data.is_empty) == (1, True)
    assert copy.deepcopy(strict).state(subject="C") == strict.state(subject="C")


def test_C9_a_template_does_not_change_with_what_it_was_made_of() -> None:
    data: dict[str, Any] = {"plan": ["read"]}
    seed = [{"question": "Hi", "answer": "Hello."}]
    arguments = {"a": "A"}
    made = template(data=data, seed=seed, arguments=arguments)
    before = made.state()
    data["plan"].append("write")
    seed[0]["answer"] = "Bye."
    arguments["a"] = "B"
    assert made.state() == before
    with pytest.raises(AttributeError, match="never changes"):
        made.name = "other"
    assert repr(made) == "SessionTemplate(None, arguments=['a'])"


def test_C9_code_review_and_tutoring_answer_with_their_own_instructions() -> None:
    def reply(prompt: Prompt) -> dict[str, Any]:
        return {"answer": prompt[0]["content"].rpartition("You are ")[2].split(".")[0]}

    review = SessionTemplate(name="code_review", instructions="You are an expert code reviewer.")
    with dspy.context(lm=ScriptedLM(reply)):
        answers = [
            review.start(dspy.Predict(QA))(question="x = 1").answer,
            TUTORING.start(dspy.Predict(QA), subject="Go")(question="Hi").answer,
        ]
    assert answers == ["an expert code reviewer", "a patient tutor for Go"]


BAD_TEMPLATES: list[tuple[dict[str, Any], type[SessionError], str]] = [
    ({"name": 5}, OptionError, "name must be text, not int"),
    ({"instructions": 5}, OptionError, "instructions must be text, not int"),
    ({"hooks": [print]}, OptionError, "hooks= must be dspy_session.Hooks"),
    ({"options": 5}, OptionError, "options must be SessionOptions or a mapping"),
    ({"options": {"max_turn": 5}}, OptionError, "Did you mean 'max_turns'"),
    ({"data": {"a": object()}}, DataError, r"data\['a'\]"),
    ({"data": [1]}, DataError, "mapping"),
    ({"data": {"a": "x" * 100}, "options": {"max_data_bytes": 50}}, DataError, "50 bytes"),
    ({"metadata": {"a": {1, 2}}}, DataError, r"data\['a'\]"),
    ({"seed": {"question": "Hi"}}, HistoryError, "must be a list of dicts"),
    ({"seed": ["Hi"]}, HistoryError, "Message 0"),
    ({"arguments": "subject"}, OptionError, "must be names, or a mapping"),
    ({"arguments": 5}, OptionError, "must be names, or a mapping"),
    ({"arguments": ["the subject"]}, OptionError, "must be a Python identifier"),
    ({"arguments": ["class"]}, OptionError, "must be a Python identifier"),
    ({"arguments": [5]}, OptionError, "must be a Python identifier"),
    ({"arguments": [["a"]]}, OptionError, "must be a Python identifier"),
    ({"arguments": {"a": float("nan")}}, DataError, "nan"),
    ({"arguments": ["session_id"]}, OptionError, "No argument can be named 'session_id'"),
    ({"arguments": ["self"]}, OptionError, "No argument can be named 'self'"),
    ({"arguments": {"a": ["x"]}}, OptionError, "must be text or a number, not list"),
    ({"arguments": {"a": True}}, OptionError, "must be text or a number, not bool"),
]


@pytest.mark.parametrize(("keywords", "error", "words"), BAD_TEMPLATES)
def test_C9_a_template_is_checked_when_it_is_made(
    keywords: dict[str, Any], error: type[SessionError], words: str
) -> None:
    with pytest.raises(error, match=words):
        template(**keywords)
    with pytest.raises(error, match=words):
        TUTORING.replace(**keywords)
    assert TUTORING.state(subject="C").metadata["template"] == "tutoring"


BAD_STARTS: list[tuple[dict[str, Any], str]] = [
    ({}, "needs the argument subject="),
    ({"subject": None}, "needs the argument subject="),
    ({"subject": ["Go"]}, "must be text or a number, not list"),
    ({"subject": "Go", "levle": 2}, "'levle' is no argument.* Did you mean 'level'"),
    ({"subject": "Go", "session_id": ""}, "1 to 200 characters"),
    ({"subject": "Go", "session_id": 5}, "must be text, not int"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_STARTS)
def test_C9_a_missing_or_unknown_argument_is_named(arguments: dict[str, Any], words: str) -> None:
    starts: list[Callable[[], object]] = [
        lambda: TUTORING.state(**arguments),
        lambda: TUTORING.start(dspy.Predict(QA), **arguments),
    ]
    for begin in starts:
        with pytest.raises(OptionError, match=words):
            begin()
    assert TUTORING.options == SessionOptions(max_turns=4, private_data={"level"})


def test_C9_there_is_no_other_part_of_a_template() -> None:
    with pytest.raises(
        OptionError, match=r"'instruction' is no part.* Did you mean 'instructions'"
    ):
        TUTORING.replace(instruction="Hi")


def test_C9_a_value_too_large_once_filled_in_is_refused() -> None:
    small = template(data={"a": "{a}"}, arguments=["a"], options={"max_data_bytes": 50})
    with pytest.raises(DataError, match="50 bytes"):
        small.state(a="x" * 100)
    assert small.state(a="x").data["a"] == "x"


def test_C9_the_last_question_is_the_users_own() -> None:
    lm = ScriptedLM(echo)
    with dspy.context(lm=lm):
        TUTORING.start(dspy.Predict(QA), subject="C")(question="What about {subject}?")
    assert asked(lm.prompts[0]) == "What about {subject}?"
