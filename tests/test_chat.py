"""Chat messages make turns, and turns show as messages: the fold, the view, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_session import ChatFields, ChatMessage, ChatToolCall, MessageError, SessionOptions, codec
from dspy_session.core import (
    Run,
    SessionState,
    add_message,
    add_messages,
    commit,
    from_messages,
    prepare,
    redo,
    replace_turn,
    start,
    state_messages,
    to_openai,
    undo,
    visible_window,
    with_id,
)
from dspy_session.core.profile import Instructions
from dspy_session.core.writes import instruct
from dspy_session.errors import HistoryError, OptionError, SessionError

Message = dict[str, Any]

OPTIONS = SessionOptions()
HI: Message = {"role": "user", "content": "Hi"}
HELLO: Message = {"role": "assistant", "content": "Hello."}
SYSTEM: Message = {"role": "system", "content": "Be kind."}


def call(id: str = "call_1", arguments: str = '{"at":  "here"}', name: str = "look") -> Message:
    return {
        "id": id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


CALLS: Message = {"content": None, "role": "assistant", "tool_calls": [call()]}
RESULT: Message = {"role": "tool", "tool_call_id": "call_1", "name": "look", "content": "seen"}


def written(messages: list[Message]) -> str:
    """As text: equal only if every key stands in the same place."""
    return json.dumps(messages)


# --- the fold -------------------------------------------------------------------------------------


def test_A3_messages_become_turns() -> None:
    state = from_messages([SYSTEM, HI, HELLO, {**HI, "content": "Bye"}, HELLO], id="ada")
    assert state.id == "ada"
    assert state.instructions == Instructions("Be kind.")
    assert [(turn.inputs, turn.outputs) for turn in state] == [
        ({"question": "Hi"}, {"answer": "Hello."}),
        ({"question": "Bye"}, {"answer": "Hello."}),
    ]
    assert state.turns[1].history_snapshot.messages == [{"question": "Hi", "answer": "Hello."}]
    assert not state.pending
    assert not state.turns[0].details  # nothing is kept twice


def test_A3_the_fields_are_the_programs() -> None:
    for fields in ({"user": "request", "assistant": "reply"}, ChatFields("request", "reply")):
        turn = from_messages([HI, HELLO], fields=fields).turns[0]
        assert (turn.inputs, turn.outputs) == ({"request": "Hi"}, {"reply": "Hello."})


def test_A3_a_tool_call_with_its_result_is_part_of_the_turn() -> None:
    messages = [HI, CALLS, RESULT, HELLO]
    state = from_messages(messages)
    (turn,) = state.turns
    assert (turn.inputs, turn.outputs) == ({"question": "Hi"}, {"answer": "Hello."})
    assert written(to_openai(state)) == written(messages)
    _, asked, told, _ = state_messages(state)
    assert asked.tool_calls == (ChatToolCall("call_1", "look", '{"at":  "here"}'),)
    assert (asked.role, asked.text) == ("assistant", "")
    assert (told.role, told.tool_call_id, told.name, told.text) == (
        "tool",
        "call_1",
        "look",
        "seen",
    )


def test_A3_several_user_messages_are_one_input_and_come_back_apart() -> None:
    messages = [HI, {"role": "user", "content": "Anyone?"}, HELLO]
    state = from_messages(messages)
    assert state.turns[0].inputs == {"question": "Hi\n\nAnyone?"}
    assert to_openai(state) == messages


def test_A3_the_assistant_may_begin_and_go_on() -> None:
    messages = [HELLO, HI, HELLO, HELLO]
    state = from_messages(messages)
    assert [list(turn.inputs) for turn in state] == [[], ["question"], []]
    assert to_openai(state) == messages


def test_A3_what_nobody_knows_survives() -> None:
    messages: list[Message] = [
        {"timestamp": 12.5, "content": "Hi", "role": "user", "name": "Ada"},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "again"}],
            "model": {"n": [1]},
        },
        {"role": "assistant", "content": None, "refusal": "I will not.", "tool_calls": None},
    ]
    state = from_messages(messages)
    assert written(to_openai(state)) == written(messages)
    assert [turn.outputs["answer"] for turn in state] == ["Hello\nagain", "I will not."]


def test_A3_the_order_of_keys_within_a_tool_call_survives() -> None:
    turned = dict(reversed(call().items()))
    message = {"role": "assistant", "content": None, "tool_calls": [turned]}
    state = from_messages([HI, message, RESULT])
    assert written(to_openai(state)) == written([HI, message, RESULT])
    assert written([shown.to_dict() for shown in state_messages(state)]) == written(
        [HI, message, RESULT]
    )


def test_A3_a_seed_is_no_turn_and_shows_the_same() -> None:
    messages = [SYSTEM, HI, CALLS, RESULT, HELLO, HI]
    state = from_messages(messages, seed=True)
    assert len(state) == 0
    assert visible_window(state, OPTIONS).messages() == [{"question": "Hi", "answer": "Hello."}]
    assert written(to_openai(state)) == written(messages)


def test_A8_messages_come_singly() -> None:
    turn, waiting = add_message(SessionState(), HI)
    assert (turn, len(waiting), waiting.pending) == (None, 0, (HI,))
    turn, state = add_message(waiting, HELLO, id="t-1")
    assert turn is not None
    assert (turn.id, turn.outputs, state.pending) == ("t-1", {"answer": "Hello."}, ())
    assert turn.before.pending == (HI,)
    assert waiting.pending == (HI,)


def test_A8_a_message_may_be_a_chat_message() -> None:
    _, state = add_message(SessionState(), ChatMessage("user", "Hi"))
    _, state = add_message(state, ChatMessage("assistant", "Hello."))
    assert to_openai(state) == [HI, HELLO]
    assert state_messages(state) == (ChatMessage("user", "Hi"), ChatMessage("assistant", "Hello."))


def test_A8_the_options_hold_for_added_messages() -> None:
    options = SessionOptions(max_stored_turns=2, max_turns=1)
    turns, state = add_messages(SessionState(), [HI, HELLO] * 4, options=options)
    assert [turn.index for turn in state] == [2, 3]
    assert [len(turn.history_snapshot.messages) for turn in turns] == [0, 1, 1, 1]


# --- what waits -----------------------------------------------------------------------------------


WAITING = ([HI], [HI, HI], [HI, CALLS], [HI, CALLS, RESULT], [CALLS])


@pytest.mark.parametrize("waiting", WAITING)
def test_what_waits_is_in_no_prompt_and_comes_along(waiting: list[Message]) -> None:
    state = from_messages([HI, HELLO, *waiting])
    assert visible_window(state, OPTIONS).messages() == [{"question": "Hi", "answer": "Hello."}]
    assert len(state) == 1
    fork = with_id(state, "fork")
    assert fork.pending == tuple(waiting)
    assert codec.decode(codec.encode(state, OPTIONS))[0] == state
    _, undone = undo(state)
    assert (undone.pending, to_openai(undone)) == ((), [])
    _, again = redo(undone)
    assert again.pending == tuple(waiting)
    assert again == state


def test_what_waited_when_a_turn_was_completed_comes_back_when_it_is_undone_and_redone() -> None:
    state = from_messages([HI, CALLS, RESULT])
    _, done = add_message(state, HELLO)
    _, undone = undo(done)
    assert (len(undone), undone.pending) == (0, ())
    _, again = redo(undone)
    assert again == done
    assert to_openai(again) == [HI, CALLS, RESULT, HELLO]


@pytest.mark.parametrize("waiting", [[HI], [{**HI, "timestamp": 5}], [HI, CALLS, RESULT]])
def test_a_call_that_asks_what_waits_answers_it(waiting: list[Message]) -> None:
    state = from_messages(waiting)
    step = prepare(state, {"question": "Hi"}, OPTIONS)
    assert len(step.window) == 0
    turn, state = commit(state, step, {"answer": "Hello."}, Run(), OPTIONS)
    assert turn is not None
    assert (turn.inputs, state.pending) == ({"question": "Hi"}, ())
    assert written(to_openai(state)) == written([*waiting, HELLO])


def test_a_call_that_asks_something_else_comes_after_what_waits() -> None:
    state = from_messages([HI])
    step = prepare(state, {"question": "What?"}, OPTIONS)
    _, state = commit(state, step, {"answer": "Hello."}, Run(), OPTIONS)
    assert to_openai(state) == [HI, {**HI, "content": "What?"}, HELLO]


TWO_CALLS: Message = {**CALLS, "tool_calls": [call(), call("call_2")]}


@pytest.mark.parametrize(
    ("waiting", "stay"),
    [
        ([HI, CALLS], [HI]),
        ([HI, TWO_CALLS, RESULT], [HI]),
        ([HI, CALLS, RESULT, TWO_CALLS], [HI, CALLS, RESULT]),
    ],
)
def test_a_tool_call_that_is_open_when_a_call_comes_shows_no_more(
    waiting: list[Message], stay: list[Message]
) -> None:
    """For nothing goes on from an open call: it can neither be imported nor sent to a provider."""
    state = from_messages(waiting)
    assert to_openai(state) == waiting
    for question, said in (("Hi", []), ("What?", [{**HI, "content": "What?"}])):
        step = prepare(state, {"question": question}, OPTIONS)
        _, after = commit(state, step, {"answer": "Hello."}, Run(), OPTIONS)
        shown = to_openai(after)
        assert shown == [*stay, *said, HELLO]
        assert to_openai(from_messages(shown)) == shown


def test_pending_messages_are_copies() -> None:
    message: Message = {"role": "user", "content": "Hi", "tags": ["a"]}
    _, state = add_message(SessionState(), message)
    message["tags"].append("b")
    state.pending[0]["tags"].append("c")
    to_openai(state)[0]["tags"].append("d")
    (shown,) = state_messages(state)
    shown.to_dict()["tags"].append("e")
    assert shown.to_dict()["tags"] == ["a"]
    assert state.pending[0]["tags"] == ["a"]
    _, state = add_message(state, HELLO)
    to_openai(state)[0]["tags"].append("f")
    state_messages(state)[0].to_dict()["tags"].append("g")
    assert to_openai(state)[0]["tags"] == ["a"]


# --- what is refused ------------------------------------------------------------------------------


BEFORE = [HI, HELLO, HI, CALLS, RESULT]
OPEN = [HI, CALLS]


@pytest.mark.parametrize(
    ("before", "message", "match"),
    [
        (BEFORE, "Hi", "must be a dict such as .* not str"),
        (BEFORE, None, "not NoneType"),
        (BEFORE, {"content": "Hi"}, "must have a role; this one has the keys"),
        (BEFORE, {"from": "human", "value": "Hi"}, "from_sharegpt"),
        (BEFORE, {"role": "narrator", "content": "Hi"}, "cannot have the role 'narrator'"),
        (BEFORE, {"role": ["user"], "content": "Hi"}, "cannot have the role"),
        (BEFORE, {"role": "function", "name": "f", "content": ""}, "make it 'tool'"),
        (BEFORE, {"role": "user"}, "must be text .* not None"),
        (BEFORE, {"role": "user", "content": 5}, "must be text .* not int"),
        (BEFORE, {"role": "user", "content": {"a": 1}}, "not dict"),
        (BEFORE, {"role": "user", "content": ["Hi"]}, r"content\[0\] .* is 'str'"),
        (
            BEFORE,
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "dspy.Image",
        ),
        (BEFORE, {"role": "user", "content": [{"type": "text", "text": 5}]}, "only text parts"),
        (BEFORE, {"role": "user", "content": "Hi", 5: 6}, "has the key 5"),
        (BEFORE, {"role": "user", "content": "Hi", "at": {1, 2}}, r"\['at'\] .* not set"),
        (BEFORE, {"role": "user", "content": "Hi", "at": [float("nan")]}, r"\['at'\]\[0\] .*nan"),
        (BEFORE, {"role": "user", "content": "Hi", "tool_calls": [call()]}, "Only an assistant"),
        (BEFORE, {**CALLS, "tool_calls": "look"}, "must be a list, not str"),
        (BEFORE, {**CALLS, "tool_calls": ["look"]}, r"tool_calls\[0\] must be a dict, not str"),
        (BEFORE, {**CALLS, "tool_calls": [{**call(), "id": ""}]}, "must have an id, not ''"),
        (BEFORE, {**CALLS, "tool_calls": [{**call(), "type": "custom"}]}, "not of type 'custom'"),
        (BEFORE, {**CALLS, "tool_calls": [{"id": "1"}]}, "must be a call of a function"),
        (BEFORE, {**CALLS, "tool_calls": [call(name="")]}, "must name its function"),
        (
            BEFORE,
            {**CALLS, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {}}}]},
            "json.dumps writes it.*, not as dict",
        ),
        (BEFORE, {**CALLS, "tool_calls": [call(), call()]}, "different ids"),
        (BEFORE, {**CALLS, "function_call": {"name": "f"}}, "older shape: write it as tool_calls"),
        (BEFORE, {"role": "tool", "content": "seen"}, "must have the tool_call_id"),
        (BEFORE, RESULT, "'call_1', but no tool call waits for one"),
        (OPEN, {**RESULT, "tool_call_id": "call_2"}, r"'call_2', but these .* 'call_1' \(look\)"),
        (OPEN, HI, r"message of the user, but these tool calls wait .*: 'call_1' \(look\)"),
        (OPEN, HELLO, "message of the assistant, but these tool calls wait"),
        (OPEN, CALLS, "message of the assistant, but these tool calls wait"),
        ([HI], SYSTEM, "must come first"),
        ([HI, HELLO], {**SYSTEM, "role": "developer"}, "message of the developer, which must come"),
        ([SYSTEM], SYSTEM, "second message of the system"),
        ([SYSTEM, HI, HELLO], SYSTEM, "second message of the system"),
    ],
)
def test_bad_messages(before: list[Message], message: Any, match: str) -> None:
    state = from_messages(before)
    with pytest.raises(MessageError, match=match):
        add_message(state, message)
    assert to_openai(state) == before
    with pytest.raises(MessageError, match=rf"(?s)^messages\[{len(before)}\]: .*{match}"):
        from_messages([*before, message])
    with pytest.raises(MessageError, match=r"^messages\[2\]: "):
        add_messages(start([{"question": "Hi", "answer": "Hello."}]), [HI, HELLO, "no message"])  # type: ignore[list-item]
    assert to_openai(state) == before


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


def test_a_message_that_is_too_deep() -> None:
    state = SessionState()
    with pytest.raises(MessageError, match="more than 100 levels deep"):
        add_message(state, {**HI, "more": nested(150)})
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(MessageError, match="more than 100 levels deep"):
        add_message(state, {**HI, "more": loop})
    assert state == SessionState()


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "There are no chat messages"),
        (iter(()), "There are no chat messages"),
        ("Hi", "must be a list of dicts, not str"),
        ({"messages": [HI]}, "not dict; of a record with messages, pass those"),
        (5, "must be a list of dicts, not int"),
        (None, "must be a list of dicts, not NoneType"),
    ],
)
def test_no_conversation(messages: Any, match: str) -> None:
    with pytest.raises(MessageError, match=match):
        from_messages(messages)


def test_a_model_dump_is_asked_for() -> None:
    class Response:
        def model_dump(self) -> Message:
            return HI

    state = SessionState()
    with pytest.raises(MessageError, match=r"not Response; pass its model_dump\(\)"):
        add_message(state, Response())  # type: ignore[arg-type]
    assert state == SessionState()


def test_instructions_and_a_system_message() -> None:
    state = instruct(SessionState(), Instructions("Be brief."))
    with pytest.raises(MessageError, match="the session has instructions already"):
        add_message(state, SYSTEM)
    assert to_openai(state) == [{"role": "system", "content": "Be brief."}]
    seeded = start([{"question": "Hi", "answer": "Hello."}])
    with pytest.raises(MessageError, match="must come first"):
        add_message(seeded, SYSTEM)
    assert to_openai(seeded) == [HI, HELLO]


@pytest.mark.parametrize(
    "fields",
    [{"user": "x", "bot": "y"}, {"user": 5}, {"user": "two words"}, {"user": "answer"}, "question"],
)
def test_bad_fields(fields: Any) -> None:
    with pytest.raises(OptionError):
        from_messages([HI, HELLO], fields=fields)


def test_a_field_with_the_name_of_the_history_field() -> None:
    state = from_messages([HI])
    for fields in (ChatFields("history", "answer"), ChatFields("question", "history")):
        with pytest.raises(HistoryError, match="field is named 'history'"):
            add_message(state, HELLO, fields, options=OPTIONS)
        assert to_openai(state) == [HI]


# --- the view -------------------------------------------------------------------------------------


def recorded(inputs: Message, outputs: Message, **details: Any) -> SessionState:
    state = SessionState()
    step = prepare(state, inputs, OPTIONS)
    return commit(state, step, outputs, Run(), OPTIONS, details)[1]


def texts(state: SessionState, fields: ChatFields | None = None, *exclude: str) -> list[str]:
    return [f"{m.role}: {m.text}" for m in state_messages(state, fields, exclude)]


def test_A7_turns_show_as_messages() -> None:
    state = recorded({"question": "Hi"}, {"reasoning": "Polite.", "answer": "Hello."})
    assert texts(state) == ["user: Hi", "assistant: reasoning: Polite.\nanswer: Hello."]
    assert texts(state, ChatFields()) == ["user: Hi", "assistant: Hello."]
    state = recorded({"topic": "fjords", "pages": [1, 2]}, {"output": None})
    assert texts(state) == ["user: topic: fjords\npages: [1, 2]", "assistant: null"]
    assert texts(recorded({}, {"answer": {1}})) == ["assistant: {1}"]
    assert texts(recorded({"question": "Hi"}, {})) == ["user: Hi"]


def test_A7_a_seed_shows_as_messages() -> None:
    seed = [{"context": "None.", "question": "Hi", "answer": "Hello."}]
    assert texts(start(seed)) == ["user: None.", "assistant: question: Hi\nanswer: Hello."]
    assert texts(start(seed), ChatFields()) == ["user: Hi", "assistant: Hello."]
    state = start(seed)
    step = prepare(state, {"context": "Some.", "question": "Bye"}, OPTIONS)
    _, state = commit(state, step, {"answer": "Bye."}, Run(), OPTIONS)
    assert texts(state)[:2] == ["user: context: None.\nquestion: Hi", "assistant: Hello."]
    assert texts(start([{"summary": "They met."}])) == ["assistant: They met."]


def test_A7_another_answer_shows_in_place_of_the_imported_one() -> None:
    state = from_messages([{**HI, "timestamp": 5}, CALLS, RESULT, {**HELLO, "model": "m"}])
    _, state = replace_turn(state, 0, {"answer": "Good day."}, id="edited")
    assert to_openai(state) == [
        {**HI, "timestamp": 5},
        CALLS,
        RESULT,
        {**HELLO, "content": "Good day.", "model": "m"},
    ]


def test_A7_an_answer_that_was_taken_away_shows_no_more() -> None:
    state = from_messages([{**HI, "timestamp": 5}, HELLO, HI])
    _, changed = replace_turn(state, 0, {}, id="new")
    assert to_openai(changed) == [{**HI, "timestamp": 5}, HI]
    assert to_openai(state)[1] == HELLO


def test_A7_other_instructions_show_in_place_of_the_imported_ones() -> None:
    state = from_messages([{**SYSTEM, "name": "policy"}, HI, HELLO])
    state = instruct(state, Instructions("Be brief."))
    assert to_openai(state) == [{"role": "system", "content": "Be brief."}, HI, HELLO]
    assert to_openai(instruct(state, None)) == [HI, HELLO]


def test_a_detail_that_only_has_the_name_is_no_messages() -> None:
    for value in (5, "Hi", [5], [{"role": "narrator"}], {"role": "user"}):
        state = recorded({"question": "Hi"}, {"answer": "Hello."}, chat_messages=value)
        assert to_openai(state) == [HI, HELLO]
        state = recorded({"question": "Hi"}, {"answer": "Hello."}, waited_messages=value)
        assert to_openai(state) == [HI, HELLO]


SECRET = "s3cret"


def secretive(messages: list[Message], role: str) -> list[Message]:
    return [
        {**m, "content": SECRET, "note": SECRET} if m["role"] == role and m["content"] else m
        for m in messages
    ]


@pytest.mark.parametrize("fields", [None, ChatFields()])
@pytest.mark.parametrize("seed", [False, True])
def test_K9_redacted_fields_of_imported_turns_do_not_show(
    seed: bool, fields: ChatFields | None
) -> None:
    spoken = {**CALLS, "content": "I look."}
    for role, field in (("user", "question"), ("assistant", "answer")):
        messages = secretive([HI, spoken, RESULT, HELLO, HI], role)
        for waiting in (messages, messages[:3], messages[:1]):
            state = from_messages(waiting, seed=seed)
            shown = to_openai(state, fields, [field])
            assert SECRET in written(to_openai(state, fields, ["other"])) or waiting != messages
            assert SECRET not in written(shown)
            assert [m["role"] for m in shown] == [m["role"] for m in waiting]
            if len(waiting) > 1:
                assert shown[1]["tool_calls"] == CALLS["tool_calls"]


def test_K9_redacted_fields_of_other_turns_do_not_show() -> None:
    state = recorded({"question": SECRET, "topic": "x"}, {"answer": SECRET}, history=[])
    assert texts(state, None, "question", "answer") == ["user: x", "assistant: [redacted]"]
    assert texts(state, ChatFields(), "question") == ["user: [redacted]", f"assistant: {SECRET}"]
    waited = from_messages([{**HI, "content": SECRET}])
    step = prepare(waited, {"question": SECRET}, OPTIONS)
    _, state = commit(waited, step, {"answer": "Hello."}, Run(), OPTIONS)
    assert texts(state, None, "question") == ["user: [redacted]", "assistant: Hello."]
    assert texts(waited, ChatFields(), "answer") == [f"user: {SECRET}"]
    assert texts(waited, None, "answer") == ["user: [redacted]"]  # nobody knows which field it is


def test_K9_tool_calls_can_be_left_out() -> None:
    state = from_messages([HI, CALLS, RESULT, HELLO, HI, CALLS])
    assert to_openai(state, exclude=["tool_calls", "other"])[:2] == [HI, HELLO]
    assert to_openai(state, ChatFields(), ["tool_calls"]) == [HI, HELLO, HI]


# --- laws -----------------------------------------------------------------------------------------

words = st.text(max_size=12)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)
MEANT = {"role", "content", "tool_calls", "tool_call_id", "function_call", "name", "refusal"}
unknown = st.dictionaries(words.filter(lambda key: key not in MEANT), plain, max_size=2)
parts = st.lists(words.map(lambda text: {"type": "text", "text": text}), max_size=2)
ids = st.sampled_from(["call_1", "call_2", "call_3"])


@st.composite
def shuffled(draw: st.DrawFn, message: Message) -> Message:
    """A message with things that nobody knows in it, in any order."""
    items = [*draw(unknown).items(), *message.items()]
    return dict(draw(st.permutations(items)))


@st.composite
def spoken(draw: st.DrawFn, role: str) -> Message:
    content = draw(words | parts | (st.none() if role == "assistant" else st.nothing()))
    return draw(shuffled({"role": role, "content": content}))


@st.composite
def tool_step(draw: st.DrawFn) -> list[Message]:
    """An assistant message with calls, and their results in any order."""
    asked = draw(st.lists(ids, min_size=1, unique=True))
    calls = [draw(shuffled(call(id, draw(words)))) for id in asked]
    content = {"content": draw(words | st.none())} if draw(st.booleans()) else {}
    first = draw(shuffled({"role": "assistant", **content, "tool_calls": calls}))
    results = [
        draw(shuffled({"role": "tool", "tool_call_id": id, "content": draw(words | st.none())}))
        for id in draw(st.permutations(asked))
    ]
    return [first, *results]


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Messages that make a conversation; it may stop anywhere."""
    piece = spoken("user").map(lambda m: [m]) | spoken("assistant").map(lambda m: [m]) | tool_step()
    system = st.sampled_from(["system", "developer"]).flatmap(spoken)
    begin = [draw(system)] if draw(st.booleans()) else []
    rest = [m for found in draw(st.lists(piece, min_size=1, max_size=6)) for m in found]
    messages = [*begin, *rest]
    return messages[: draw(st.integers(1, len(messages)))]


@given(messages=conversations())
def test_law_what_is_imported_is_exported_as_it_came(messages: list[Message]) -> None:
    before = written(messages)
    state = from_messages(messages)
    assert written(to_openai(state)) == before
    assert written(messages) == before
    shown = state_messages(state)
    assert written([message.to_dict() for message in shown]) == before
    assert from_messages(shown) == state
    seeded = from_messages(messages, seed=True)
    assert written(to_openai(seeded)) == before
    assert len(seeded) == 0


@given(messages=conversations(), bad=st.sampled_from([5, {"role": "narrator"}, {"role": "tool"}]))
def test_law_singly_is_as_a_list_and_through_files_too(messages: list[Message], bad: Any) -> None:
    state, completed = SessionState(), 0
    for at, message in enumerate(messages, start=1):
        before = state
        turn, state = add_message(state, message)
        completed += turn is not None
        assert written(to_openai(before)) == written(messages[: at - 1])
        with pytest.raises(MessageError):
            add_message(state, bad)
        assert written(to_openai(state)) == written(messages[:at])
        read, _ = codec.decode(codec.encode(state, OPTIONS, "msgpack"), "msgpack")
        assert read == state
        state = read
    assert state == from_messages(messages)
    assert len(state) == completed


@given(messages=conversations())
def test_law_what_waits_is_in_no_window(messages: list[Message]) -> None:
    state = from_messages(messages)
    window = visible_window(state, OPTIONS)
    assert len(window) == len(state)
    assert window.messages() == [{**turn.inputs, **turn.outputs} for turn in state]
    answered = sum(m["role"] == "assistant" and not m.get("tool_calls") for m in messages)
    assert len(state) == answered


@given(messages=conversations())
def test_law_undo_and_redo_bring_back_every_message(messages: list[Message]) -> None:
    state = from_messages(messages)
    for steps in range(1, len(state) + 1):
        _, undone = undo(state, steps)
        shown = to_openai(undone)
        assert written(shown) == written(messages[: len(shown)])
        assert redo(undone, steps)[1] == state


def test_errors_are_of_the_family() -> None:
    assert issubclass(MessageError, SessionError)
    assert issubclass(MessageError, ValueError)
