"""A6: typed questions about a conversation, recorded or not."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import json
import threading
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import dspy
import pydantic
import pytest
from dspy.utils.exceptions import AdapterParseError
from typing_extensions import TypedDict

from dspy_session import (
    CallError,
    HookError,
    Hooks,
    LockError,
    Session,
    SessionOptions,
    sessionify,
)
from dspy_session.program import clear_render_cache, render_counts
from dspy_session.program.asking import _known_asking
from dspy_session.testing import Prompt, ScriptedLM, requested_fields
from tests.loopback import Body, LoopbackServer
from tests.optimizers import whole
from tests.talk import QA, Asker, ask, asked, field, past, qa_session, questions, refused, scripted

Ask = Callable[..., Any]


class Summary(pydantic.BaseModel):
    key_points: list[str]
    conclusion: str


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


@dataclasses.dataclass
class Count:
    questions: int


class Named(TypedDict):
    name: str


def plainly(asker: Any, *args: Any, **kwargs: Any) -> Any:
    return asker.ask(*args, **kwargs)


def awaited(asker: Any, *args: Any, **kwargs: Any) -> Any:
    return asyncio.run(asker.aask(*args, **kwargs))


both_ways = pytest.mark.parametrize("put", [plainly, awaited])


def answering(answer: Any) -> ScriptedLM:
    """Answers questions about the conversation with one value, and turns as `scripted` does."""

    def reply(prompt: Prompt) -> Mapping[str, Any]:
        if "about the conversation so far" in prompt[0]["content"]:
            return {"answer": answer}
        return {"answer": f"answer to {asked(prompt)}"}

    return ScriptedLM(reply)


def held(lm: ScriptedLM, *asked_before: str, **keywords: Any) -> Session:
    session = qa_session(**keywords)
    with dspy.context(lm=lm):
        ask(session, *asked_before)
    return session


# --- any type that DSPy can produce ---------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(
    ("kind", "said", "value"),
    [
        (str, "We spoke of fjords.", "We spoke of fjords."),
        (bool, "True", True),
        (int, "3", 3),
        (float, "0.5", 0.5),
        (list[str], '["fjords", "ferries"]', ["fjords", "ferries"]),
        (dict[str, int], '{"fjords": 2}', {"fjords": 2}),
        (Literal["open", "closed"], "closed", "closed"),
        (int | None, "null", None),
        (Mood, "good", Mood.GOOD),
        (Count, '{"questions": 2}', Count(2)),
        (Named, '{"name": "Ada"}', {"name": "Ada"}),
        (Annotated[int, pydantic.Field(ge=1)], "2", 2),
        (Annotated[int, {"unit": "turns"}], "2", 2),  # cannot be hashed
        (
            Summary,
            '{"key_points": ["fjords"], "conclusion": "deep"}',
            Summary(key_points=["fjords"], conclusion="deep"),
        ),
        (
            list[Summary],
            '[{"key_points": [], "conclusion": "none"}]',
            [Summary(key_points=[], conclusion="none")],
        ),
        (dspy.Code, "print(1)", dspy.Code(code="print(1)")),
    ],
)
def test_A6_an_answer_of_any_type(put: Ask, kind: Any, said: str, value: Any) -> None:
    lm = answering(said)
    session = held(lm, "one", "two")
    before = session.state
    with dspy.context(lm=lm):
        answer = put(session, "What was it about?", kind)
    assert answer == value
    assert type(answer) is type(value)
    assert session.state is before
    assert past(lm.prompts[-1]) == [("one", "answer to one"), ("two", "answer to two")]
    assert asked(lm.prompts[-1]) == "What was it about?"


def test_A6_text_is_what_one_gets_without_a_type() -> None:
    lm = answering("In short: fjords.")
    with dspy.context(lm=lm):
        assert held(lm, "one").ask("In short?") == "In short: fjords."


@pytest.mark.parametrize(
    "adapter",
    [
        dspy.ChatAdapter(),
        dspy.JSONAdapter(),
        dspy.XMLAdapter(),
        dspy.TwoStepAdapter(ScriptedLM(lambda _: {"answer": 3})),
    ],
)
def test_A6_under_every_adapter_the_conversation_is_shown(adapter: Any) -> None:
    lm = answering(3)
    session = held(lm, "one", "two")
    with dspy.context(lm=lm, adapter=adapter):
        assert session.ask("How many?", int) == 3
    sent = json.dumps(lm.prompts[-1])
    assert "answer to one" in sent
    assert "answer to two" in sent
    assert len(session) == 2


def test_A6_a_question_over_the_wire() -> None:
    def reply(body: Body) -> str:
        count = len(body["messages"])
        return f"[[ ## answer ## ]]\n{count}\n\n[[ ## completed ## ]]"

    with LoopbackServer(reply) as server, dspy.context(lm=server.lm()):
        session = qa_session()
        session(question="Hi")
        assert session.ask("How many messages do you see?", int) == 4
        assert len(session) == 1


# --- what it sees, and through what ---------------------------------------------------------------


def test_A6_programs_with_other_names_are_asked_in_their_own() -> None:
    lm = ScriptedLM()
    session = sessionify(dspy.ChainOfThought("request -> reply"))
    with dspy.context(lm=lm):
        session(request="one")
        session(request="two")
        session.ask("And?")
    prompt = lm.prompts[-1]
    assert [message["role"] for message in prompt] == ["system", *["user", "assistant"] * 2, "user"]
    assert field(prompt[1]["content"], "request") == "one"
    assert field(prompt[2]["content"], "reply") == "2 messages"
    assert field(prompt[-1]["content"], "request") == "And?"


def test_A6_a_plain_return_is_shown_as_the_answer_that_it_was() -> None:
    lm = scripted()
    session = sessionify(Asker())
    with dspy.context(lm=lm):
        ask(session, "one")
        session.ask("And?")
    assert past(lm.prompts[-1]) == [("one", "answer to one")]


def test_A6_an_agent_is_asked_in_messages_without_its_tools() -> None:
    def reply(prompt: Prompt) -> Mapping[str, Any]:
        fields = requested_fields(prompt)
        said = {"next_thought": "done", "next_tool_name": "finish", "next_tool_args": "{}"}
        return {name: said.get(name, f"{name} of {asked(prompt)}") for name in fields}

    def look(place: str) -> str:
        return place

    lm = ScriptedLM(reply)
    session = sessionify(dspy.ReAct("question -> answer", tools=[look]))
    with dspy.context(lm=lm):
        ask(session, "one")
        assert session.ask("And?") == "answer of And?"
    assert past(lm.prompts[-1]) == [("one", "answer of one")]
    assert "trajectory" not in json.dumps(lm.prompts[-1])
    assert "tool" not in json.dumps(lm.prompts[-1])


def test_A6_other_programs_show_their_conversation_as_text() -> None:
    lm = ScriptedLM()
    session = sessionify(dspy.Predict("topic, style -> title, body"))
    with dspy.context(lm=lm):
        session(topic="fjords", style="dry")
        assert session.ask("What was the topic?") == "2 messages"
    (_, message) = lm.prompts[-1]
    assert "topic: fjords" in message["content"]
    assert "body: 2 messages" in message["content"]
    assert field(message["content"], "question") == "What was the topic?"


def test_A6_the_names_of_a_question_give_way_to_the_history_field() -> None:
    lm = ScriptedLM()
    session = sessionify(dspy.Predict("topic, style -> title, body"), history_field="question")
    with dspy.context(lm=lm):
        session(topic="fjords", style="dry")
        assert session.ask("What was the topic?") == "2 messages"


def test_A6_message_fields_name_the_fields_where_the_program_does_not() -> None:
    lm = ScriptedLM()
    fields = {"user": "topic", "assistant": "body"}
    session = sessionify(dspy.Predict("topic, style -> title, body"), message_fields=fields)
    with dspy.context(lm=lm):
        session(topic="fjords", style="dry")
        session.ask("What was the topic?")
    assert field(lm.prompts[-1][2]["content"], "body") == "2 messages"


def test_A6_what_is_hidden_from_prompts_is_hidden_from_questions() -> None:
    lm = ScriptedLM()
    session = sessionify(
        dspy.Predict("question, card -> answer"), redact_fields={"card"}, max_turns=1
    )
    with dspy.context(lm=lm):
        session(question="first", card="card-4111")
        session(question="second", card="card-4222")
        session.ask("What do you know?")
    sent = json.dumps(lm.prompts[-1])
    assert "card-4222" not in sent
    assert "first" not in sent
    assert "second" in sent


def test_A6_a_seed_is_part_of_the_conversation() -> None:
    lm = scripted()
    seed = dspy.History(messages=[{"question": "before", "answer": "yes"}])
    with dspy.context(lm=lm):
        qa_session(initial_history=seed).ask("And?")
    assert past(lm.prompts[-1]) == [("before", "yes")]


def test_A6_an_empty_conversation_can_be_asked_too() -> None:
    lm = answering(False)
    session = qa_session()
    with dspy.context(lm=lm):
        assert session.ask("Did we speak?", bool) is False
    assert len(session) == 0


def test_A6_the_sessions_instructions_apply_and_the_programs_do_not() -> None:
    lm = scripted()
    session = sessionify(
        dspy.Predict(dspy.Signature("question -> answer", "Sell shoes.")),
        instructions="Speak like a pirate.",
    )
    with dspy.context(lm=lm):
        session.ask("Who are you?")
    system = lm.prompts[-1][0]["content"]
    assert "Speak like a pirate." in system
    assert "Sell shoes." not in system


def test_A6_instructions_that_depend_on_the_conversation_apply_too() -> None:
    lm = scripted()
    session = qa_session(instructions=lambda state: f"This is turn {len(state)}.")
    with dspy.context(lm=lm):
        ask(session, "one")
        session.ask("And?")
    assert "This is turn 1." in lm.prompts[-1][0]["content"]


@both_ways
def test_A6_the_programs_own_lm_answers_before_the_configured_one(put: Ask) -> None:
    own, configured, given = answering("own"), answering("configured"), answering("given")
    program = dspy.Predict(QA)
    program.set_lm(own)
    session = sessionify(program)
    with dspy.context(lm=configured):
        assert put(session, "Who?") == "own"
        assert put(session.using(lm=given), "Who?") == "given"
        assert put(qa_session(), "Who?") == "configured"


@both_ways
def test_A6_settings_of_one_call(put: Ask) -> None:
    seen: list[Any] = []
    lm = ScriptedLM(
        lambda _: {"answer": "3"}, on_request=lambda request: seen.append(request.config)
    )
    session = qa_session()
    with dspy.context(lm=lm):
        call = session.using(config={"temperature": 0.25, "max_tokens": 77})
        assert put(call, "How many?", int) == 3
        assert put(session, "How many?", int) == 3
    assert [(config.temperature, config.max_tokens) for config in seen] == [
        (0.25, 77),
        (None, None),
    ]
    assert len(session) == 0


def test_A6_a_long_conversation_is_not_rendered_again_for_each_question() -> None:
    session = qa_session()
    for number in range(100):
        session.add_turn({"question": f"q{number}"}, {"answer": f"a{number}"})
    clear_render_cache()
    lm = answering(7)
    with dspy.context(lm=lm):
        session.ask("First?", int)
        rendered, _ = render_counts()
        session.ask("Second?", int)
        session.ask("Third?", int)
    assert rendered == 100
    assert render_counts() == (100, 200)
    assert len(past(lm.prompts[-1])) == 100


def test_A6_a_signature_is_made_once_for_a_type_and_few_are_kept() -> None:
    _known_asking.cache_clear()
    session = qa_session()
    with dspy.context(lm=answering(1)):
        for _ in range(3):
            session.ask("How many?", int)
        assert _known_asking.cache_info().misses == 1
        # Equal to each other, and not the same to a model: each has its own prompt.
        for kind in (Literal["1", "2"], Literal["2", "1"]):
            session.ask("Which?", kind)
    assert _known_asking.cache_info().misses == 3
    assert _known_asking.cache_info().maxsize is not None


# --- recorded, if asked ---------------------------------------------------------------------------


@both_ways
def test_A6_a_recorded_question_is_a_turn(put: Ask) -> None:
    lm = answering("fjords")
    heard: list[str] = []
    session = held(lm, "one", on_turn=lambda _, turn: heard.append(turn.outputs["answer"]))
    with dspy.context(lm=lm):
        assert put(session, "What was it about?", record=True) == "fjords"
        session(question="two")
    turn = session.turns[1]
    assert (turn.index, turn.inputs, turn.outputs) == (
        1,
        {"question": "What was it about?"},
        {"answer": "fjords"},
    )
    assert turn.usage["scripted"]["prompt_tokens"] > 0
    assert turn.lm_calls == 1
    assert len(turn.history_snapshot.messages) == 1
    assert heard == ["answer to one", "fjords", "answer to two"]
    assert past(lm.prompts[-1])[-1] == ("What was it about?", "fjords")
    assert session.undo(2)[1] == turn


def test_A6_a_recorded_answer_can_be_saved_whatever_its_type(tmp_path: Any) -> None:
    lm = answering('{"key_points": ["a"], "conclusion": "b"}')
    session = held(lm, "one")
    with dspy.context(lm=lm):
        answer = session.ask("Summarise.", Summary, record=True)
    assert answer == Summary(key_points=["a"], conclusion="b")
    assert session.turns[-1].outputs == {"answer": {"key_points": ["a"], "conclusion": "b"}}
    session.save(tmp_path / "talk.json")
    loaded = Session.load_from(tmp_path / "talk.json", dspy.Predict(QA))
    assert loaded.turns == session.turns


def test_A6_a_recorded_answer_of_a_type_that_the_program_knows_stays_what_it_is(
    tmp_path: Any,
) -> None:
    class Judged(dspy.Signature):
        question: str = dspy.InputField()
        mood: Mood = dspy.InputField()
        answer: str = dspy.OutputField()

    lm = answering("bad")
    session = sessionify(dspy.Predict(Judged))
    with dspy.context(lm=lm):
        assert session.ask("How was it?", Mood, record=True) is Mood.BAD
    assert session.turns[-1].outputs == {"answer": Mood.BAD}
    session.save(tmp_path / "talk.json")
    assert Session.load_from(tmp_path / "talk.json", dspy.Predict(Judged)).turns == session.turns


@both_ways
def test_A6_a_recorded_question_that_is_sent_again_is_answered_from_the_record(put: Ask) -> None:
    lm = answering('{"key_points": ["a"], "conclusion": "b"}')
    session = held(lm, "one")
    with dspy.context(lm=lm):
        asking = session.using(request_id="r")
        answer = put(asking, "Summarise.", Summary, record=True)
        calls, before = len(lm.prompts), session.state
        assert put(asking, "Summarise.", Summary, record=True) == answer
        with refused(session, CallError, "The request 'r' was answered by turn 1"):
            put(asking, "How many?", int, record=True)
        assert (len(lm.prompts), session.state) == (calls, before)
        assert put(asking, "Summarise.", Summary) == answer  # nothing of this one is recorded
    assert (len(lm.prompts), session.state) == (calls + 1, before)


@both_ways
def test_A6_a_question_that_is_answered_meanwhile_is_one_turn(put: Ask) -> None:
    session, answers = qa_session(), iter("ab")

    def again() -> None:
        with dspy.context(lm=lm):
            session.using(request_id="r").ask("What?", record=True)

    def answer(prompt: Prompt) -> dict[str, Any]:
        mine = next(answers)
        if mine == "a":
            other = threading.Thread(target=again)
            other.start()
            other.join()
        return {"answer": mine}

    lm = ScriptedLM(answer)
    with dspy.context(lm=lm):
        assert put(session.using(request_id="r"), "What?", record=True) == "b"
    assert [turn.outputs["answer"] for turn in session.turns] == ["b"]


def test_A6_a_program_without_chat_fields_records_question_and_answer() -> None:
    session = sessionify(dspy.Predict("topic, style -> title, body"))
    with dspy.context(lm=ScriptedLM()):
        session.ask("What was it?", record=True)
    assert session.turns[0].inputs == {"question": "What was it?"}
    assert session.turns[0].outputs == {"answer": "2 messages"}


def test_A6_hooks_run_for_a_recorded_question_only() -> None:
    seen: list[str] = []

    def note(call: Any) -> None:
        seen.append(call.inputs["question"])

    lm = answering("yes")
    session = qa_session(hooks=Hooks(before=note, after=lambda turn: seen.append("after")))
    with dspy.context(lm=lm):
        session.ask("Unrecorded?")
        assert seen == []
        session.ask("Recorded?", record=True)
    assert seen == ["Recorded?", "after"]


@both_ways
def test_A6_middleware_may_answer_a_recorded_question_but_not_take_its_answer(put: Ask) -> None:
    answers = [{"answer": "42"}, {"reply": "42"}]
    hooks = Hooks(around=lambda call, run: call.answer(answers.pop(0)))
    session = qa_session(hooks=hooks)
    assert put(session, "What?", record=True) == "42"
    with refused(session, HookError, "the output 'answer', which a hook took away"):
        put(session, "What?", record=True)
    assert questions(session) == ["What?"]


def test_A6_session_data_is_neither_lost_nor_changed_by_a_question() -> None:
    lm = answering("yes")
    session = held(lm, "one", data={"cart": ["boots"]})
    with dspy.context(lm=lm):
        session.ask("Anything?")
        session.ask("Anything?", record=True)
        session.data["cart"] = []
    session.undo()
    assert session.data.to_dict() == {"cart": ["boots"]}


# --- as other calls -------------------------------------------------------------------------------


def test_A6_usage_counts_for_whoever_tracks_it() -> None:
    with dspy.context(lm=answering("yes")), dspy.track_usage() as tracked:
        qa_session().ask("Anything?")
    assert tracked.get_total_tokens()["scripted"]["prompt_tokens"] > 0


@both_ways
def test_A6_a_failing_question_changes_nothing_and_is_an_attempt(put: Ask) -> None:
    lm = scripted()
    session = held(lm, "one")
    before = session.state
    for record in (False, True):
        with pytest.raises(Exception, match="the model is out"), dspy.context(lm=lm):
            put(session, "fail", record=record)
    assert session.state is before
    assert [attempt.inputs for attempt in session.attempts] == [{"question": "fail"}] * 2


def test_A6_an_answer_that_is_not_of_the_type_is_dspys_error() -> None:
    lm = answering("many")
    session = held(lm, "one")
    before = session.state
    with pytest.raises(AdapterParseError), dspy.context(lm=lm):
        session.ask("How many?", int)
    assert session.state is before


def test_A6_trials_and_frozen_sessions_record_no_question() -> None:
    lm = answering("yes")
    session = held(lm, "one")

    class Judge(dspy.Module):
        def forward(self, question: str) -> Any:
            return dspy.Prediction(answer=session.ask(question, record=True))

    with dspy.context(lm=lm):
        examples = [dspy.Example(question="q", answer="yes").with_inputs("question")]
        whole.Evaluate(devset=examples, metric=lambda *_: 1.0, num_threads=2)(Judge())
        frozen = session.frozen()
        assert frozen.ask("Anything?", record=True) == "yes"
    assert questions(session) == ["one"]
    assert len(frozen) == 1


def test_A6_a_session_inside_a_program_is_asked_within_the_turn() -> None:
    class Guide(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = qa_session()

        def forward(self, question: str) -> Any:
            self.inner(question=question)
            self.inner.ask("unrecorded")
            self.inner.ask("recorded", record=True)
            return self.inner.ask("How many turns?")

    lm = scripted()
    guide = sessionify(Guide(), copy_mode="none")
    with dspy.context(lm=lm):
        guide(question="one")
    assert past(lm.prompts[-1]) == [("one", "answer to one"), ("recorded", "answer to recorded")]
    inner = guide.state.nested["inner"]
    assert [turn.inputs["question"] for turn in inner.turns] == ["one", "recorded"]
    assert len(guide) == 1
    assert guide.undo()
    assert len(guide.state.nested.get("inner", ())) == 0


def test_A6_locks_hold_for_questions_too() -> None:
    with refused(qa_session(lock="async"), LockError, "acall"):
        qa_session(lock="async").ask("Anything?")
    session = qa_session(lock="thread")

    class Inside(dspy.Module):
        def forward(self, question: str) -> Any:
            return held_session[0].ask(question)

    held_session = [session]
    inside = sessionify(Inside())
    held_session[0] = inside
    with refused(inside, LockError, "inside its own turn"), dspy.context(lm=scripted()):
        inside(question="one")
    with dspy.context(lm=answering("yes")):
        assert session.ask("Anything?") == "yes"
        assert asyncio.run(qa_session(lock="async").aask("Anything?")) == "yes"


# --- bad input ------------------------------------------------------------------------------------


class Plain:
    """Nothing that pydantic knows."""


@both_ways
@pytest.mark.parametrize(
    "kind",
    [
        None,
        "Summary",
        5,
        [str],
        Plain,
        list[Plain],
        list["Nowhere"],  # type: ignore[name-defined]  # noqa: F821
        Summary(key_points=[], conclusion=""),
        lambda answer: answer,
        Callable[[int], int],
        dspy.Tool,
        dspy.Signature,
        QA,
        dspy.Predict,
    ],
)
def test_A6_what_dspy_cannot_produce_is_refused(put: Ask, kind: Any) -> None:
    session = qa_session()
    lm = scripted()
    with refused(session, CallError, "The type of an answer must be"), dspy.context(lm=lm):
        put(session, "What?", kind)
    assert lm.prompts == []
    assert session.attempts == ()


@both_ways
@pytest.mark.parametrize("question", [None, 5, "", "  ", ["What?"], b"What?"])
def test_A6_a_question_is_text(put: Ask, question: Any) -> None:
    session = qa_session()
    with refused(session, CallError, "A question must be text"), dspy.context(lm=scripted()):
        put(session, question)
    assert SessionOptions() == session.options
