"""Chat messages and programs: whose fields they are, what agents did, what a session shows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Literal

import dspy
import pytest

from dspy_session import (
    CallError,
    ChatFields,
    ChatMessage,
    MessageError,
    Session,
    SessionOptions,
    codec,
    program_codecs,
    sessionify,
)
from dspy_session.core import from_messages, state_messages, to_openai
from dspy_session.errors import OptionError
from dspy_session.program.chat_fields import chat_fields, inferred_fields
from dspy_session.program.tool_steps import tool_steps
from dspy_session.testing import ScriptedLM
from tests.modules import ANSWERS, QUESTIONS, Speaker, aconverse, converse
from tests.test_chat import CALLS, HELLO, HI, RESULT, SYSTEM, Message, written
from tests.test_modules_tools import Agent, Inside, broken, react, react_v2

OPTIONS = SessionOptions()


# --- which fields ---------------------------------------------------------------------------------


def with_output(kind: Any) -> dspy.Module:
    signature = dspy.Signature("request -> reply").append("mood", dspy.OutputField(), kind)
    return dspy.Predict(signature)


@pytest.mark.parametrize(
    "program",
    [
        dspy.Predict("request -> reply"),
        dspy.ChainOfThought("request -> reply"),
        dspy.ReAct("request -> reply", tools=[]),
        dspy.ReActV2("request -> reply", tools=[]),
        Inside(dspy.ChainOfThought("request -> reply")),
        dspy.Predict("request, history: dspy.History -> reply"),
        dspy.Predict("request, history: str -> reply"),
        dspy.Predict("request, pages: list[str] -> reply, score: float"),
        with_output(Literal["good", "bad"]),
    ],
    ids=lambda program: type(program).__name__,
)
def test_A3_the_only_text_fields_are_the_messages(program: dspy.Module) -> None:
    assert chat_fields(program, OPTIONS) == ChatFields("request", "reply")


class Two(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = dspy.Predict("a -> b"), dspy.Predict("b -> c")


@pytest.mark.parametrize(
    "program",
    [
        dspy.Predict("context, question -> answer"),
        dspy.Predict("question -> answer, reasoning"),
        dspy.Predict("pages: list[str] -> answer"),
        dspy.Predict("question -> score: float"),
        dspy.ChainOfThought("question -> first, second"),
        Two(),
        dspy.Module(),
    ],
    ids=lambda program: type(program).__name__,
)
def test_A3_other_programs_are_to_be_told(program: dspy.Module) -> None:
    assert inferred_fields(program, OPTIONS) is None
    for given in (None, {"user": "question"}):
        with pytest.raises(CallError, match=r"not exactly one text input.*fields=\{"):
            chat_fields(program, OPTIONS, given)
    given = {"user": "question", "assistant": "answer"}
    assert chat_fields(program, OPTIONS, given) == ChatFields()
    assert chat_fields(program, OPTIONS, ChatFields("a", "b")) == ChatFields("a", "b")


def test_A3_a_mapping_may_be_partial() -> None:
    program = dspy.Predict("request -> reply")
    assert chat_fields(program, OPTIONS, {"assistant": "x"}) == ChatFields("request", "x")
    with pytest.raises(OptionError, match="must be a mapping such as"):
        chat_fields(program, OPTIONS, {"bot": "x"})
    with pytest.raises(OptionError, match="must be a mapping such as"):
        chat_fields(program, OPTIONS, "reply")  # type: ignore[arg-type]


# --- sessions -------------------------------------------------------------------------------------


def test_A3_a_session_infers_what_its_mapping_leaves_out() -> None:
    for given in ({"assistant": "reply"}, {"user": "request"}, {}):
        session = sessionify(
            dspy.Predict("request -> reply"), messages=[HI, HELLO], message_fields=given
        )
        assert session.turns[0].inputs == {"request": "Hi"}
        assert session.turns[0].outputs == {"reply": "Hello."}
    with pytest.raises(CallError, match="not exactly one text input"):
        sessionify(Two(), message_fields={"user": "a"})


def imported(program: dspy.Module | None = None, **keywords: Any) -> Session:
    messages = [SYSTEM, HI, CALLS, RESULT, HELLO, {**HI, "content": "Waiting."}]
    return sessionify(
        program or dspy.ChainOfThought("question -> answer"), messages=messages, **keywords
    )


def test_A3_a_session_begins_with_messages() -> None:
    session, lm = imported(), ScriptedLM(lambda prompt: {"reasoning": "R.", "answer": "A."})
    assert len(session) == 1
    assert session.turns[0].id
    assert session.instructions == session.state.instructions
    with dspy.context(lm=lm):
        session(question="What now?")
    (prompt,) = lm.prompts
    assert [message["role"] for message in prompt] == ["system", "user", "assistant", "user"]
    assert "Be kind." in prompt[0]["content"]
    words = written(prompt)
    assert "Waiting." not in words
    assert "call_1" not in words
    assert "Hello." in prompt[2]["content"]


def test_A3_a_system_message_is_never_shadowed_by_instructions_that_are_a_function() -> None:
    program = dspy.Predict("question -> answer")
    with pytest.raises(MessageError, match="has instructions already"):
        sessionify(program, messages=[SYSTEM, HI], instructions=lambda state: "Be brief.")
    session = sessionify(program, instructions=lambda state: "Be brief.")
    before = session.state
    with pytest.raises(MessageError, match="has instructions already"):
        session.add_message(SYSTEM)
    with pytest.raises(MessageError, match="has instructions already"):
        session.add_messages([SYSTEM, HI, HELLO])
    assert session.state is before
    assert len(session.add_messages([HI, HELLO])) == 1


def test_A3_what_waits_is_no_example() -> None:
    session = imported()
    (example,) = session.to_examples()
    assert (example.question, example.answer) == ("Hi", "Hello.")
    assert example.history.messages == []
    assert "Waiting." not in repr(session.to_trainset())


@pytest.mark.parametrize("options", [{}, {"max_stored_turns": 1, "max_turns": 1}])
def test_A8_messages_are_added_by_hand(options: Any) -> None:
    session = imported(**options)
    assert session.add_message({"role": "assistant", "content": "Done."}) is session.turns[-1]
    assert session.add_message(ChatMessage("user", "Why?")) is None
    before = session.state
    with pytest.raises(MessageError, match="no tool call waits"):
        session.add_message(RESULT)
    with pytest.raises(MessageError, match=r"messages\[1\]"):
        session.add_messages([HELLO, SYSTEM])
    assert session.state is before
    added = session.add_messages([HELLO, HI, HELLO])
    assert [turn.outputs for turn in added] == [{"answer": "Hello."}] * 2
    assert len({turn.id for turn in session.turns}) == len(session)
    assert len(session) == options.get("max_stored_turns", 4)
    seen = len(added[-1].history_snapshot.messages)
    assert seen == options.get("max_turns", 3)


def test_A7_a_sessions_messages() -> None:
    session = imported()
    assert [(m.role, m.text) for m in session.messages] == [
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", ""),
        ("tool", "seen"),
        ("assistant", "Hello."),
        ("user", "Waiting."),
    ]
    with dspy.context(lm=ScriptedLM(lambda prompt: {"reasoning": "R.", "answer": "A."})):
        session(question="Waiting.")
    assert session.to_messages()[-2:] == [
        {"role": "user", "content": "Waiting."},
        {"role": "assistant", "content": "A."},
    ]


def test_A7_the_fields_that_a_session_was_told_are_the_texts() -> None:
    fields = {"user": "request", "assistant": "reply"}
    session = sessionify(dspy.Predict("topic, request -> reply, mood"), message_fields=fields)
    session.add_turn({"topic": "x", "request": "Hi"}, {"reply": "Hello.", "mood": "good"})
    assert session.to_messages() == [HI, HELLO]


def test_A8_nothing_is_left_after_clear() -> None:
    session = imported()
    session.clear()
    assert [message.role for message in session.messages] == ["system"]
    assert session.state.pending == ()


def test_A3_pending_messages_go_with_a_fork_and_a_file() -> None:
    session = imported()
    fork = session.fork()
    fork.add_message(HELLO)
    loaded = Session.load_from(session.save_state(), dspy.ChainOfThought("question -> answer"))
    assert loaded.to_messages() == session.to_messages()
    assert loaded.state == session.state
    assert [len(one.state.pending) for one in (session, fork, loaded)] == [1, 0, 1]


def test_A3_messages_that_are_none_make_no_session() -> None:
    program = dspy.Predict("question -> answer")
    with pytest.raises(MessageError, match=r"messages\[0\]"):
        sessionify(program, messages=[RESULT])
    with pytest.raises(CallError, match=r"not exactly one text input.* message_fields=\{"):
        sessionify(Two(), messages=[HI])
    assert sessionify(Two(), messages=[HI], message_fields={"user": "a", "assistant": "c"})


@pytest.mark.parametrize("show_details", [False, True])
def test_K9_a_redacted_field_of_imported_turns_leaves_by_no_way(show_details: bool) -> None:
    secret = {"role": "user", "content": "s3cret", "note": "s3cret"}
    for messages in ([secret, HELLO, secret], [secret, HELLO], [secret]):
        program = dspy.Predict("question -> answer")
        session = sessionify(
            program, messages=messages, redact_fields={"question"}, show_details=show_details
        )
        left: list[Any] = [session.to_messages(), session.to_dict(), repr(session.to_examples())]
        lm = ScriptedLM()
        with dspy.context(lm=lm):
            session(question="May I?")
        left += [lm.prompts, session.to_messages(), session.to_dict(), repr(session.to_examples())]
        assert "s3cret" not in json.dumps(left)
        assert "s3cret" in json.dumps(session.save_state())  # it is still known
        assert Session.load_from(session.to_dict(), program).messages


def test_messages_are_told_once_where_details_are_shown() -> None:
    session, lm = imported(show_details=True), ScriptedLM()
    session.add_message(HELLO)
    session.add_message({"role": "assistant", "content": "It opens."})  # no input: all is text
    with dspy.context(lm=lm):
        session(question="What now?")
    words = written(lm.prompts[-1])
    assert words.count("Waiting.") == 1
    assert "call_1" not in words


# --- what agents did ------------------------------------------------------------------------------


STEP = [
    ("user", None),
    ("assistant", '{"at": "here"}'),
    ("tool", "seen here"),
    ("assistant", None),
]


def steps(shown: tuple[ChatMessage, ...]) -> list[tuple[str, str | None]]:
    """Roles, and what a tool was called with or returned."""
    return [
        (
            m.role,
            m.tool_calls[0].arguments if m.tool_calls else m.text if m.role == "tool" else None,
        )
        for m in shown
    ]


@pytest.mark.parametrize("make", [react, react_v2])
@pytest.mark.parametrize("place", [lambda agent: agent, Inside], ids=["alone", "inside"])
def test_A7_the_steps_of_an_agent_are_tool_calls(
    make: Callable[..., dspy.Module], place: Callable[..., dspy.Module]
) -> None:
    program = place(make())
    session = sessionify(program)
    converse(session, Agent())
    asyncio.run(aconverse(again := sessionify(program), Agent()))
    assert again.to_messages() == session.to_messages()
    shown = state_messages(session.state)
    assert steps(shown) == STEP * 3
    assert [m.text for m in shown if m.role == "user"] == list(QUESTIONS[:3])
    assert [m.text for m in shown if m.role == "assistant" and not m.tool_calls] == list(
        ANSWERS[:3]
    )
    calls = [call for message in shown for call in message.tool_calls]
    assert [call.name for call in calls] == ["look"] * 3
    assert len({call.id for call in calls}) == 3
    assert [m.tool_call_id for m in shown if m.role == "tool"] == [call.id for call in calls]

    saved = codec.encode(session.state, session.options, codecs=program_codecs(program))
    read, _ = codec.decode(saved, codecs=program_codecs(program))
    assert state_messages(read) == shown
    messages = to_openai(session.state)
    assert from_messages(messages).pending == ()
    assert written(to_openai(from_messages(messages))) == written(messages)


@pytest.mark.parametrize("make", [react, react_v2])
def test_A7_a_tool_that_failed_shows_what_the_model_was_told(
    make: Callable[..., dspy.Module],
) -> None:
    session = sessionify(make(broken))
    converse(session, Agent("broken"), turns=1)
    told = state_messages(session.state)[2]
    assert told.role == "tool"
    assert "Execution error in broken" in told.text
    assert "nothing at here" in told.text


@pytest.mark.parametrize("hidden", ["tool_calls", "trajectory"])
def test_K9_the_steps_of_an_agent_can_be_left_out(hidden: str) -> None:
    session = sessionify(react())
    converse(session, Agent(), turns=1)
    assert len(to_openai(session.state)) == 4
    assert [m["role"] for m in to_openai(session.state, exclude=[hidden])] == ["user", "assistant"]


def test_steps_are_read_from_whatever_is_there() -> None:
    nothing: list[Message] = [
        {},
        {"trajectory": "x"},
        {"trajectory": {"tool_name_x": "f"}},
        {"history": 1},
        {"history": [1, {"tool_calls": 1}, {"tool_calls": [CALLS]}]},
    ]
    for details in nothing:
        assert list(tool_steps(details)) == []
    (step,) = tool_steps({"trajectory": {"tool_name_3": "f"}})
    assert [(use.name, use.arguments, use.result) for use in step] == [("f", "{}", "")]
    calls = dspy.ToolCalls.model_validate([{"name": "f", "args": {"at": {1}}}])
    (step,) = tool_steps({"history": [{"question": "q"}, {"tool_calls": calls}]})
    assert [(use.name, use.result) for use in step] == [("f", "")]


def test_the_calls_of_one_step_are_one_message() -> None:
    def say(prompt: Any) -> dict[str, Any]:
        two = [{"name": "look", "args": {"at": at}} for at in ("é", "there")]
        done = [{"name": "submit", "args": {"answer": ANSWERS[0]}}]
        stepped = "seen there" in json.dumps(prompt)
        return {"tool_calls": {"tool_calls": done if stepped else two}}

    session = sessionify(react_v2())
    converse(session, Speaker(say), turns=1)
    messages: list[Message] = to_openai(session.state)
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    asked = [c["function"]["arguments"] for c in messages[1]["tool_calls"]]
    assert asked == ['{"at": "é"}', '{"at": "there"}']
    assert [m["content"] for m in messages[2:4]] == ["seen é", "seen there"]
