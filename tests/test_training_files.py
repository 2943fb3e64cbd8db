"""Pairs of answers, and conversations and examples as files that others train with."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pydantic
import pytest

from dspy_session import (
    CallError,
    FormatError,
    OptionError,
    PreferencePair,
    Session,
    SessionOptions,
    SessionState,
    ValueCodecError,
    examples_from_jsonl,
    examples_jsonl,
    finetuning_jsonl,
    from_jsonl,
    lineage,
    preference_pairs,
    preferences_jsonl,
    sessionify,
    sharegpt_jsonl,
    split,
)
from dspy_session.testing import ScriptedLM
from tests.talk import history, qa_session
from tests.test_airline_tools import TOOL_CALLS
from tests.test_real_conversations import ANSWERED_TURNS, CONVERSATIONS

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    """Answers with a number that no other answer has."""
    numbers = iter(range(1, 1000))
    with dspy.context(lm=(lm := ScriptedLM(lambda prompt: {"answer": str(next(numbers))}))):
        yield lm


def value(example: dspy.Example, prediction: Any) -> float:
    """What an answer is worth: the number that it is, in tenths."""
    return float(prediction.answer) / 10


def asked(*questions: str, **keywords: Any) -> Session:
    session = qa_session(**keywords)
    for question in questions:
        session(question=question)
    return session


def scored(*sessions: Session) -> None:
    for session in sessions:
        session.score(value)


def answers(pairs: Iterable[PreferencePair]) -> list[tuple[str, str]]:
    return [(pair.chosen.answer, pair.rejected.answer) for pair in pairs]


def rows(lines: Iterable[str]) -> list[Row]:
    text = "".join(lines)
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def said(row: Row, role: str = "assistant") -> list[tuple[Any, int]]:
    """What somebody says in a row, and how much it weighs."""
    messages = row["messages"]
    return [(m["content"], m.get("weight", 1)) for m in messages if m["role"] == role]


class Shorter(dspy.Module):
    def forward(self, conversation: Any) -> str:
        return "They talked."


# Pairs


def test_X10_forks_that_ask_the_same_make_a_pair() -> None:
    session = asked("a", "b")
    fork, other = session.fork(at=1), session.fork(at=1)
    fork(question="b")
    fork(question="c")  # it may be long past that turn
    other(question="another")
    scored(session, fork, other)
    (pair,) = preference_pairs(session, fork, other)
    assert answers([pair]) == [("3", "2")]
    assert (pair.chosen_score, pair.rejected_score) == (0.3, 0.2)
    assert pair.margin == pytest.approx(0.1)
    assert pair.margin < 0.1  # as floats have it
    assert answers(preference_pairs(session, fork, other, min_margin=0.1)) == [("3", "2")]
    assert pair.chosen.inputs() == pair.rejected.inputs()
    assert pair.chosen.inputs().toDict() == {
        "question": "b",
        "history": {"messages": [{"question": "a", "answer": "1"}]},
    }
    found = [lineage(pair.chosen), lineage(pair.rejected)]
    assert [each and each.turn_id for each in found] == [fork.turns[1].id, session.turns[1].id]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].branch == found[1].branch
    assert answers(preference_pairs(session.state, fork.state)) == [("3", "2")]


def test_X10_answers_that_were_regenerated_make_pairs() -> None:
    session = asked("a", "b")
    session.regenerate()
    session.regenerate()
    assert preference_pairs(session) == []
    for _ in range(3):
        session.redo()
        scored(session)
    before = session.state
    expected = {("4", "3"), ("4", "2"), ("3", "2")}
    assert {*answers(preference_pairs(session))} == expected
    session.undo()  # what redo would bring back counts, too
    assert {*answers(preference_pairs(session))} == expected
    session.redo()
    assert session.state == before
    assert {*answers(preference_pairs(session, session.fork()))} == expected
    far = preference_pairs(session, min_margin=0.2)
    assert answers(far) == [("4", "2")]
    assert preference_pairs(session, min_margin=0.21) == []
    session.summarize(Shorter())
    assert {*answers(preference_pairs(session))} == expected


def test_X10_what_makes_no_pair() -> None:
    session = asked("a", "b")
    after_another = session.fork(at=1)
    after_another.replace_turn(0, {"answer": "0.5"})
    after_another(question="b")
    unscored = session.fork(at=1)
    told_more = session.fork(at=1)
    told_more.instructions = "Be brief."
    told_more(question="b")
    scored(session, after_another, told_more)
    unscored(question="b")
    corrected = [("1", "0.5")]  # the turn that was replaced is a sibling of what it was
    assert answers(preference_pairs(session, after_another, unscored, told_more)) == corrected
    assert preference_pairs(after_another, told_more) == []  # it is told something else
    same = session.fork(at=1)
    same.add_turn({"question": "b"}, session.turns[1].outputs)
    same.score(lambda example, prediction: 0.0)
    as_good = session.fork(at=1)
    as_good.add_turn({"question": "b"}, {"answer": "other words"})
    as_good.score(lambda example, prediction: 0.2)
    assert answers(preference_pairs(same, as_good)) == [("other words", "2")]
    assert answers(preference_pairs(session, as_good)) == []
    assert answers(preference_pairs(session, same)) == []
    assert preference_pairs() == []


def test_X10_sessions_that_began_in_the_same_way_make_pairs() -> None:
    one, other = asked("a"), asked("a")
    scored(one, other)
    assert answers(preference_pairs(one, other)) == [("2", "1")]
    seeded = asked("a", initial_history=history("before"))
    scored(seeded)
    assert preference_pairs(one, seeded) == []


def test_X10_the_prompt_of_a_pair_is_what_the_call_saw() -> None:
    keywords: Any = {"initial_history": history("seed"), "instructions": "Be brief."}
    session = asked("a", "b", "c", max_turns=1, **keywords)
    fork = session.fork(at=2)
    fork(question="c")
    scored(session, fork)
    (pair,) = preference_pairs(session, fork)
    assert pair.to_dict() == {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "seed"},
            {"role": "assistant", "content": "answer to seed"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "c"},
        ],
        "chosen": [{"role": "assistant", "content": "4"}],
        "rejected": [{"role": "assistant", "content": "3"}],
        "chosen_score": 0.4,
        "rejected_score": 0.3,
    }


def test_X10_a_prompt_shows_no_field_that_the_call_was_not_shown() -> None:
    session = sessionify(
        dspy.ChainOfThought("context, question -> answer"),
        exclude_fields={"context", "reasoning"},
    )
    first: Row = {"context": "long", "question": "a"}
    session.add_turn(first, {"reasoning": "deep", "answer": "1"})
    fork = session.fork()
    for each, answer in ((session, "2"), (fork, "3")):
        each.add_turn({"context": "", "question": "b"}, {"reasoning": "", "answer": answer})
    scored(session, fork)
    (pair,) = preference_pairs(session, fork, fields={"user": "question", "assistant": "answer"})
    assert [message["content"] for message in pair.prompt] == ["a", "1", "b"]
    (pair,) = preference_pairs(session.state, fork.state)
    assert pair.prompt[1]["content"] == "1"
    assert "long" not in repr(pair.prompt)


def test_X10_tools_that_two_answers_called_are_in_no_prompt() -> None:
    sessions = []
    for _ in range(2):
        session, model = agent()
        with dspy.context(lm=model):
            session(question="When?")
        sessions.append(session)
    sessions[1].replace_turn(0, {"answer": "At one."})
    for score, session in enumerate(sessions):
        session.score(lambda example, prediction, trace, score=score: score)
    (pair,) = preference_pairs(*sessions)
    assert pair.prompt == ({"role": "user", "content": "When?"},)
    assert (pair.chosen_text, pair.rejected_text) == ("At one.", "At noon.")


@pytest.mark.parametrize("margin", [-0.1, float("nan"), "1", None])
def test_X10_a_margin_is_a_number_from_0_up(margin: Any) -> None:
    session = asked("a")
    before = session.state
    with pytest.raises(CallError, match="min_margin"):
        preference_pairs(session, min_margin=margin)
    assert session.state is before


@pytest.mark.parametrize("function", [preference_pairs, finetuning_jsonl, sharegpt_jsonl])
def test_X10_only_conversations_are_taken(function: Any) -> None:
    name = function.__name__
    with pytest.raises(CallError, match=f"{name} takes sessions and states, not Predict"):
        function(dspy.Predict("question -> answer"))
    with pytest.raises(OptionError):
        function(SessionState(), fields={"who": "knows"})


# Preference files


def test_X10_preferences_in_the_shape_of_OpenAI() -> None:
    session = asked("a", "b")
    fork = session.fork(at=1)
    fork(question="b")
    scored(session, fork)
    (row,) = rows(preferences_jsonl(preference_pairs(session, fork)))
    assert row == {
        "input": {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "1"},
                {"role": "user", "content": "b"},
            ],
            "tools": [],
            "parallel_tool_calls": True,
        },
        "preferred_output": [{"role": "assistant", "content": "3"}],
        "non_preferred_output": [{"role": "assistant", "content": "2"}],
    }
    valid([*row["input"]["messages"], *row["preferred_output"]])
    with pytest.raises(CallError, match="not TurnExample"):
        list(preferences_jsonl(session.to_examples()))  # type: ignore[arg-type]


def test_X10_pairs_that_say_the_same_or_hide_it_are_in_no_preference_file() -> None:
    def pairs(**keywords: Any) -> list[PreferencePair]:
        session = sessionify(dspy.ChainOfThought("question -> answer"), **keywords)
        fork = session.fork()
        session.add_turn({"question": "a"}, {"reasoning": "long", "answer": "b"})
        fork.add_turn({"question": "a"}, {"reasoning": "short", "answer": "b"})
        session.score(lambda example, prediction: 1)
        fork.score(lambda example, prediction: 0)
        return preference_pairs(session, fork)

    (pair,) = pairs()
    assert (pair.chosen.reasoning, pair.rejected.reasoning) == ("long", "short")
    assert list(preferences_jsonl([pair])) == []
    assert pairs(redact_fields={"reasoning"}) == []
    session = asked("a", redact_fields={"question"})
    fork = session.fork(at=0)
    fork(question="a")
    scored(session, fork)
    (hidden,) = preference_pairs(session, fork)
    assert answers([hidden]) == [("2", "1")]
    assert hidden.chosen.inputs().keys() == ["history"]
    assert "question" not in hidden.chosen
    assert list(preferences_jsonl([hidden])) == []


# Fine-tuning files


def valid(messages: list[Row]) -> None:
    """Whether messages are what OpenAI's own types say, with no key beyond them but `weight`."""
    types: Any = importlib.import_module("openai.types.chat")
    shape = pydantic.TypeAdapter(list[types.ChatCompletionMessageParam])
    shape.validate_python(messages)
    keys = {
        "system": {"role", "content", "name"},
        "user": {"role", "content", "name"},
        "assistant": {"role", "content", "name", "tool_calls", "weight"},
        "tool": {"role", "content", "tool_call_id"},
    }
    for message in messages:
        assert {*message} <= keys[message["role"]]


def test_X10_a_line_for_each_conversation() -> None:
    sessions = [asked("a", "b", instructions="Be brief."), asked("c", "d")]
    lines = list(finetuning_jsonl(*sessions))
    assert rows(lines)[0] == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "2"},
        ]
    }
    assert from_jsonl(lines) == [session.to_messages() for session in sessions]
    back = SessionState.from_messages(from_jsonl(lines)[0])
    assert [turn.inputs for turn in back] == [turn.inputs for turn in sessions[0].turns]
    check: Any = importlib.import_module("dspy.clients.utils_finetune")
    assert [check.find_data_error_chat(row) for row in rows(lines)] == [None, None]
    assert list(finetuning_jsonl(SessionState())) == []
    with pytest.raises(CallError, match="min_score"):
        finetuning_jsonl(*sessions, min_score="high")  # type: ignore[arg-type]


def test_X10_turns_that_are_not_good_enough_weigh_nothing() -> None:
    session = asked("a", "b", "c", "d")
    session.score(lambda example, prediction: float(example.question in "ac"))
    (row,) = rows(finetuning_jsonl(session, min_score=1.0))
    assert said(row) == [("1", 1), ("2", 0), ("3", 1)]
    assert row["messages"][3] == {"role": "assistant", "content": "2", "weight": 0}
    assert list(finetuning_jsonl(session, min_score=2.0)) == []
    assert list(finetuning_jsonl(asked("unscored"), min_score=0.0)) == []
    valid(row["messages"])
    (short,) = rows(sharegpt_jsonl(session, min_score=1.0))
    assert [entry["value"] for entry in short["conversations"]] == ["a", "1"]
    assert list(sharegpt_jsonl(session, min_score=2.0)) == []


def test_X10_what_no_text_says_is_in_no_file_of_text() -> None:
    picture = dspy.Image("data:image/png;base64,aGk=")

    def shown(signature: str, **inputs: Any) -> Session:
        session = sessionify(dspy.Predict(signature))
        session.add_turn(dict.fromkeys(inputs, "text"), {"answer": "a"})
        session.add_turn(inputs, {"answer": "b"})
        session.add_turn(dict.fromkeys(inputs, "text"), {"answer": "c"})
        session.score(lambda example, prediction: 1.0)
        return session

    for session in (
        shown("question, picture: dspy.Image | str -> answer", question="What?", picture=picture),
        shown("pictures: list[dspy.Image] | str -> answer", pictures=[picture]),
    ):
        for function in (finetuning_jsonl, sharegpt_jsonl):
            (line,) = function(session)
            (messages,) = from_jsonl([line])
            assert [message["content"] for message in messages][1::2] == ["a"]
        again = session.fork(at=1)
        again.add_turn(session.turns[1].inputs, {"answer": "worse"})
        again.add_turn(session.turns[2].inputs, {"answer": "worse"})
        again.score(lambda example, prediction: 0.0)
        after = session.fork(at=2)
        after.add_turn(session.turns[2].inputs, {"answer": "worse"})
        after.score(lambda example, prediction: 0.0)
        pairs = preference_pairs(session, again, after)
        assert answers(pairs) == [("b", "worse"), ("c", "worse")]
        assert list(preferences_jsonl(pairs)) == []


def test_X10_what_forks_share_is_taught_once() -> None:
    session = asked("a", "b")
    fork = session.fork(at=1)
    fork(question="c")
    seeded = asked("d", initial_history=history("seed"))
    one, other, third = rows(finetuning_jsonl(session, fork, session, seeded))
    assert said(one) == [("1", 1), ("2", 1)]
    assert said(other) == [("1", 0), ("3", 1)]
    assert said(third) == [("answer to seed", 0), ("4", 1)]
    assert len(rows(sharegpt_jsonl(session, fork, session))) == 2


def test_X10_a_part_of_a_split_says_what_is_taught() -> None:
    sessions = [asked(f"a{n}", f"b{n}") for n in range(5)]
    scored(*sessions)
    examples = Session.merge_examples(*sessions)
    train, test = split(examples, fractions=(0.8, 0.2))
    taught = [said(row, "user") for row in rows(finetuning_jsonl(*sessions, examples=train))]
    assert [question for row in taught for question, _ in row] == [e.question for e in train]
    held_out = "".join(finetuning_jsonl(*sessions, examples=test))
    assert all(json.dumps(e.question) not in held_out for e in train)
    (row,) = rows(finetuning_jsonl(*sessions, examples=[train[1].copy()]))
    assert [weight for _, weight in said(row)] == [0, 1]
    with pytest.raises(CallError, match="no turn"):
        finetuning_jsonl(*sessions, examples=[dspy.Example(question="a")])


def test_X10_redacted_and_private_data_are_in_no_file() -> None:
    session = sessionify(
        dspy.Predict("question, passport -> answer, note"),
        redact_fields={"passport", "note"},
        private_data={"card"},
        data={"card": "card-4111"},
    )
    fork = session.fork()
    for each, score in ((session, 1.0), (fork, 0.5)):
        inputs = {"question": "May I fly?", "passport": "P-secret"}
        each.add_turn(inputs, {"answer": f"Yes, {score}.", "note": "secret too"})
        each.score(lambda example, prediction: float(prediction.answer[5:8]))
    pairs = preference_pairs(session, fork)
    written = "".join(
        (
            *finetuning_jsonl(session, fork),
            *sharegpt_jsonl(session, fork),
            *preferences_jsonl(pairs),
            *examples_jsonl(session.to_examples(), lineage_field="lineage"),
            repr(pairs),
        )
    )
    assert written.count("May I fly?") >= 6
    assert "secret" not in written
    assert "card-4111" not in written
    options = SessionOptions(redact_fields={"passport", "note"})
    assert "secret" not in "".join(finetuning_jsonl(session.state, options=options))
    hidden = SessionOptions(redact_fields={"answer", "note"})
    assert list(finetuning_jsonl(session.state, options=hidden)) == []
    assert list(sharegpt_jsonl(session.state, options=hidden)) == []


def find_flight(city: str) -> str:
    """Find a flight."""
    return f"a flight to {city}"


def agent() -> tuple[Session, ScriptedLM]:
    answers = iter(
        (
            {
                "next_thought": "Look.",
                "next_tool_name": "find_flight",
                "next_tool_args": '{"city": "Oslo"}',
            },
            {"next_thought": "Done.", "next_tool_name": "finish", "next_tool_args": "{}"},
            {"reasoning": "It was found.", "answer": "At noon."},
        )
    )
    return sessionify(dspy.ReAct("question -> answer", tools=[find_flight])), ScriptedLM(
        lambda prompt: next(answers)
    )


TOOL = {
    "type": "function",
    "function": {
        "name": "find_flight",
        "description": "Find a flight.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def test_X10_an_agents_tools_are_defined_in_the_line() -> None:
    session, model = agent()
    with dspy.context(lm=model):
        session(question="When?")
    (row,) = rows(finetuning_jsonl(session))
    assert row["tools"] == [TOOL]
    assert [message["role"] for message in row["messages"]] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    valid(row["messages"])
    (call,) = row["messages"][1]["tool_calls"]
    assert call["function"] == {"name": "find_flight", "arguments": '{"city": "Oslo"}'}
    assert row["messages"][2]["tool_call_id"] == call["id"]
    types: Any = importlib.import_module("openai.types.chat")
    pydantic.TypeAdapter(types.ChatCompletionFunctionToolParam).validate_python(row["tools"][0])
    before = session.state
    with pytest.raises(CallError, match=r"'find_flight'.*tools=\[\.\.\.\]"):
        list(finetuning_jsonl(session.state))
    assert session.state is before
    for tools in ([find_flight], [dspy.Tool(find_flight)], [TOOL]):
        assert rows(finetuning_jsonl(session.state, tools=tools)) == [row]
    without = SessionOptions(redact_fields={"tool_calls"})
    (bare,) = rows(finetuning_jsonl(session.state, options=without))
    assert [*bare] == ["messages"]
    assert len(bare["messages"]) == 2
    for wrong in (5, {"name": "find_flight"}):
        with pytest.raises(CallError, match="A tool must be"):
            finetuning_jsonl(session, tools=[wrong])
    (record,) = rows(sharegpt_jsonl(session))
    assert [entry["from"] for entry in record["conversations"]] == [
        "human",
        "function_call",
        "observation",
        "gpt",
    ]


def test_X10_imported_messages_lose_what_the_form_does_not_know() -> None:
    messages: list[Row] = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}], "at": 1},
        {"role": "user", "name": "ada", "content": "Where?", "timestamp": 5},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "look", "arguments": "{}", "more": 1},
                    "index": 0,
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "look", "content": "there"},
        {"role": "assistant", "content": "There.", "model": "gpt", "refusal": None},
        {"role": "user", "content": "and nobody answers this"},
    ]
    state = SessionState.from_messages(messages)
    look: Row = {"type": "function", "function": {"name": "look", "parameters": {}}}
    (row,) = rows(finetuning_jsonl(state, tools=[look]))
    valid(row["messages"])
    assert row["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "name": "ada", "content": "Where?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "there"},
        {"role": "assistant", "content": "There."},
    ]


@pytest.mark.skipif(
    not CONVERSATIONS.is_file(),
    reason="../shared/data/airline_conversations.jsonl is absent: no chat was exported",
)
def test_X10_a_hundred_conversations_with_tools_go_out_and_come_back() -> None:
    with CONVERSATIONS.open(encoding="utf-8") as lines:
        states = [SessionState.from_messages(messages) for messages in from_jsonl(lines)]
    names = {call.name for state in states for m in shown(state) for call in m.tool_calls}
    tools: Any = [{"type": "function", "function": {"name": name}} for name in sorted(names)]
    written = list(finetuning_jsonl(*states, tools=tools))
    made = rows(written)
    for row in made:
        valid(row["messages"])
        assert row["messages"][-1]["role"] == "assistant"
    calls = [m.get("tool_calls") or [] for row in made for m in row["messages"]]
    assert sum(map(len, calls)) <= TOOL_CALLS
    again = [SessionState.from_messages(messages) for messages in from_jsonl(written)]
    assert sum(map(len, again)) == ANSWERED_TURNS
    assert [[(t.inputs, t.outputs) for t in state] for state in again] == [
        [(t.inputs, t.outputs) for t in state] for state in states if len(state)
    ]
    records = from_jsonl(sharegpt_jsonl(*states))
    shared = [SessionState.from_messages(messages) for messages in records]
    assert sum(map(len, shared)) == ANSWERED_TURNS
    examples = Session.merge_examples(
        *(Session.from_state(state, dspy.Predict("question -> answer")) for state in states),
        include_history=False,
    )
    _, test = split(examples, fractions=(0.9, 0.1))
    assert abs(len(test) - ANSWERED_TURNS / 10) < 1


def shown(state: SessionState) -> Any:
    return importlib.import_module("dspy_session.core").state_messages(state)


# Examples in files


def test_X10_DSPys_loader_reads_examples(tmp_path: Path, monkeypatch: Any) -> None:
    datasets: Any = importlib.import_module("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    examples = asked("a", "b", "c").to_examples()
    path = tmp_path / "train.jsonl"
    path.write_text("".join(examples_jsonl(examples)), encoding="utf-8")
    loader: Any = importlib.import_module("dspy.datasets").DataLoader()
    read = loader.from_json(str(path), input_keys=("question", "history"))
    assert [type(example.history) for example in read] == [dict] * 3
    for example in read:
        example.history = dspy.History(**example.history)
    assert read == examples
    assert [e.inputs() for e in read] == [e.inputs() for e in examples]


def test_X10_examples_come_back_with_their_lineage() -> None:
    session = asked("a")
    session.add_turn({"question": "ü\u2028\ud800"}, {"answer": "b"})
    examples = session.to_examples()
    keywords: Any = {"input_keys": ("question", "history")}
    bare = list(examples_jsonl(examples))
    assert rows(bare)[1].keys() == {"question", "answer", "history"}
    read = examples_from_jsonl(bare, **keywords)
    assert read == examples
    assert [lineage(example) for example in read] == [None, None]
    whole = list(examples_jsonl([*examples, dspy.Example(question="x")], lineage_field="from"))
    "".join(whole).encode("utf-8")
    assert rows(whole)[2] == {"question": "x", "from": None}
    for lines in (whole, "".join(whole)):
        read = examples_from_jsonl(lines, lineage_field="from", **keywords)
        assert read[:2] == examples
        assert [lineage(e) for e in read] == [*(lineage(e) for e in examples), None]
        assert read[1].inputs() == examples[1].inputs()
        found = [lineage(read[1]), lineage(examples[1])]
        assert [each and each.before for each in found] == [found[0] and found[0].before] * 2
    with pytest.raises(CallError, match="'answer' already"):
        list(examples_jsonl(examples, lineage_field="answer"))
    with pytest.raises(CallError, match="not dict"):
        list(examples_jsonl([{}]))  # type: ignore[list-item]


def test_X10_values_beyond_json_come_back() -> None:
    class Place(pydantic.BaseModel):
        name: str

    program = dspy.Predict(
        dspy.Signature(
            {"picture": (dspy.Image, dspy.InputField()), "place": (Place, dspy.OutputField())}
        )
    )
    picture = dspy.Image("data:image/png;base64,aGk=")
    example = dspy.Example(picture=picture, place=Place(name="Oslo"), tag=("a", 1))
    example = example.with_inputs("picture")
    with pytest.raises(ValueCodecError, match="'place' of example 0"):
        list(examples_jsonl([example]))
    lines = list(examples_jsonl([example], program=program))
    (read,) = examples_from_jsonl(lines, input_keys=("picture",), program=program)
    assert read == example
    assert read.inputs() == example.inputs()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no json", "line 2: This is not JSON"),
        ("[1]", "line 2: A line must be an object of fields, not list"),
        ('{"history": 5}', "line 2: A history must be"),
        ('{"history": {"messages": [5]}}', "line 2: A history must be"),
        ('{"question": {"$type": "unheard of", "value": 1}}', "line 2: .*unheard of"),
        ('{"from": {"turn_id": 1}}', "line 2: A lineage must be"),
    ],
)
def test_X10_lines_that_hold_no_example(line: str, words: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(FormatError, match=words):
            examples_from_jsonl(["\n", line], input_keys=(), lineage_field="from")


def test_X10_one_name_is_no_list_of_input_keys() -> None:
    with pytest.raises(CallError, match=r"must be a list of fields: \['question'\]"):
        examples_from_jsonl(['{"question": "Hi"}'], input_keys="question")
