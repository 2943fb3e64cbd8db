"""The wire format: what it writes comes back, old versions are read, damage is one clear error."""

from __future__ import annotations

import copy
import functools
import json
import math
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_session import codec
from dspy_session.core import (
    Exchange,
    Run,
    SessionOptions,
    SessionState,
    Turn,
    View,
    annotate,
    commit,
    prepare,
    redo,
    replace_turn,
    rewind,
    start,
    undo,
)
from dspy_session.core.chat import add_message, from_messages, to_openai
from dspy_session.core.data import Data
from dspy_session.core.flat import pack
from dspy_session.core.profile import Instructions, Profile
from dspy_session.core.transitions import summarized
from dspy_session.core.writes import write
from dspy_session.errors import FormatError, OptionError, ValueCodecError
from tests.house import PROJECT

SAMPLES = PROJECT.parent / "shared" / "data" / "saved_sessions"
FORMATS: tuple[Literal["json", "msgpack"], ...] = ("json", "msgpack")
WHOLE = SessionOptions()
REDACTED = SessionOptions(private_data={"n"}, redact_fields={"answer"})


def say(state: SessionState, *fields: tuple[Any, Any], **options: Any) -> SessionState:
    for question, answer in fields:
        step = prepare(state, {"question": question}, SessionOptions(**options))
        run = Run(id=f"id{state.stop}", time=1.5, usage=(("lm", (("tokens", 3),)),), cost=0.01)
        _, state = commit(state, step, {"answer": answer}, run, SessionOptions(**options))
    return state


def conversation() -> SessionState:
    """A bit of everything: a seed, edits, windows, scores, and turns that can be redone."""
    state = start([{"question": "seed", "answer": ["tuple", (1, b"2")]}], id="the-id")
    state = say(state, ("one", 1), ("two", {"b": 1, "a": math.nan}), max_turns=1)
    _, state = replace_turn(state, 0, {"answer": "one, corrected"}, id="new")
    state = say(state, ("three", None), ("four", "4"), ("five", "ü\ud800"))
    state = annotate(state, {0: (1.0, "good"), 2: (math.inf, None)})
    return undo(state, 2)[1]


OPTIONS = SessionOptions(
    history_field="past",
    max_turns=7,
    max_stored_turns=100,
    exclude_fields={"b", "a"},
    history_input_fields={"question"},
    history_policy="use_if_provided",  # type: ignore[arg-type]
    on_metric_error="raise",  # type: ignore[arg-type]
    strict_history_annotation=True,
    copy_mode="none",  # type: ignore[arg-type]
    lock="async",  # type: ignore[arg-type]
)


def ask(
    state: SessionState, question: Any, *, at: int | None = None, **nested: SessionState
) -> SessionState:
    """One more turn with run details, or with `at` another answer to one."""
    options = SessionOptions(show_details=True)
    step = prepare(state, {"question": question}, options, at=at)
    run, detail = Run(id=f"id-{question}"), {"trajectory": [question]}
    return commit(state, step, {"answer": question}, run, options, detail, nested=nested)[1]


def family() -> SessionState:
    """States that belong to a state: other answers, sessions in the program, and theirs in turn."""
    worker = annotate(ask(say(start([{"note": "w"}], id="w"), ("w0", 0)), "w1"), {0: (0.5, None)})
    state = ask(SessionState(id="outer"), "one", worker=worker, judge=SessionState(id="j"))
    inner = ask(ask(SessionState(id="v"), "v0"), "v1", at=0)
    worker = undo(ask(worker, "w2", within=inner))[1]
    state = ask(ask(state, "two", worker=ask(worker, "w3")), "three")
    state = ask(state, "two again", at=1, worker=annotate(worker, {1: (1.0, "good")}))
    return undo(ask(ask(state, "two and again", at=1), "one again", at=0))[1]


def document() -> dict[str, Any]:
    """The wire form of `conversation()`, freshly made."""
    return codec.to_wire(conversation(), WHOLE)


def large_document() -> dict[str, Any]:
    """The wire form of `family()`, freshly made."""
    return codec.to_wire(family(), WHOLE)


def customer() -> SessionState:
    """What an application keeps: data, instructions, metadata, a summary, messages that wait."""
    profile = Profile(Instructions("Be kind.", "before"), Data({"team": ["a"]}))
    state = start([{"question": "s", "answer": "t"}], id="c", data=Data({"n": 0}), profile=profile)
    for number in range(5):
        at = state.stop - 1 if number in (2, 4) else None
        step = prepare(state, {"question": f"q{number}"}, WHOLE, at=at)
        run, changes = Run(id=str(number)), {"n": number, f"key {number}": {"v": [1.5, None]}}
        written = functools.partial(Data.changed, changes=changes)
        _, state = commit(state, step, {"answer": "a"}, run, WHOLE, data=written)
    state = summarized(state, state.seed, 1)
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for message in (
        {"role": "user", "content": "Hi", "timestamp": 1},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "result"},
    ):
        _, state = add_message(state, message)
    return write(state, {"late": "x"})


def instructed() -> SessionState:
    system = {"role": "system", "content": "Be brief.", "model": 2}
    return from_messages([system, {"role": "user", "content": "Hi"}], id="i")


def parts_of(state: SessionState) -> Any:
    return [
        *(state.id, state.first, len(state)),
        [exchange.outputs for exchange in state.seed],
        [parts_of_turn(turn) for turn in (*state.turns, *state.undone)],
        [(path, parts_of(inner)) for path, inner in state.before.nested.items()],
        [parts_of(path) for path in state.ahead],
    ]


def parts_of_turn(turn: Turn) -> Any:
    seen = [exchange.told(turn.window.view) for exchange in turn.window]
    nested = [(path, parts_of(inner)) for path, inner in turn.nested.items()]
    fields = turn.inputs, turn.outputs, turn.details, turn.window.messages(), seen
    return [turn.index, turn.id, turn.score, fields, nested]


def pictured(state: SessionState) -> str:
    return ascii(parts_of(state))


def assert_refused(data: Any, *words: str) -> None:
    was = copy.deepcopy(data)
    with pytest.raises(FormatError) as refused:
        codec.from_wire(data)
    for word in words:
        assert word in str(refused.value)
    assert len(str(refused.value)) > 30
    assert repr(data) == repr(was)


# There and back


@pytest.mark.parametrize("format", FORMATS)
def test_D21_other_answers_and_nested_sessions_come_back(format: Any) -> None:
    state = family()
    loaded, _ = codec.decode(codec.encode(state, WHOLE, format), format)
    assert loaded == state
    assert pictured(loaded) == pictured(state)
    assert codec.encode(loaded, WHOLE, format) == codec.encode(state, WHOLE, format)
    back, again = redo(redo(loaded)[1], 2)
    assert [turn.id for turn in back] == ["id-one", "id-two and again"]
    assert [turn.id for turn in again.alternatives] == ["id-two again", "id-two", "id-one again"]
    worker = loaded.ahead[1].nested["worker"]
    assert [turn.score for turn in worker] == [0.5, 1.0]
    assert worker.undone[0].nested["within"].alternatives[0].id == "id-v0"
    assert worker.turns[0] is loaded.ahead[2].turns[2].nested["worker"].turns[0]  # shared again


def test_A5_run_details_come_back_and_are_told_not_shown() -> None:
    state = ask(ask(SessionState(), "one"), "two")
    for format in FORMATS:
        loaded, _ = codec.decode(codec.encode(state, WHOLE, format), format)
        assert [turn.details for turn in loaded] == [
            {"trajectory": ["one"]},
            {"trajectory": ["two"]},
        ]
        window = loaded.turns[1].window
        assert window.view == View(details=True)
        ((seen,), shown) = window, {"question": "one", "answer": "one"}
        assert window.messages() == [seen.shown(window.view)] == [shown]
        assert seen.told(window.view) == {**shown, "trajectory": ["one"]}
        assert seen.told(View()) == shown
        assert seen.told(View(exclude=frozenset({"trajectory"}), details=True)) == shown
    both = Exchange({"q": 1}, {"a": 2}, {"a": 3, "t": 4})
    assert both.told(View(details=True)) == {"q": 1, "a": 2, "t": 4}
    other = ask(SessionState(), "one")
    step = prepare(SessionState(), {"question": "one"}, SessionOptions(show_details=True))
    for details, same in (
        ({"trajectory": ["one"]}, True),
        ({"trajectory": []}, False),
        (None, False),
    ):
        answer, run = {"answer": "one"}, Run(id="id-one")
        _, again = commit(SessionState(), step, answer, run, WHOLE, details)
        assert (again == other) is same
    assert "details" not in codec.to_wire(conversation(), WHOLE)["conversation"]["turns"][0]


def test_what_is_in_two_turns_is_written_once() -> None:
    turns = large_document()["conversation"]["turns"]
    (noted,) = [turn for turn in turns if "exchange" in turn]
    assert (noted["score"], noted.get("inputs")) == (1.0, None)
    assert sum(turn.get("inputs") == {"question": "w1"} for turn in turns) == 1
    state = conversation()
    assert set(document()["conversation"]["states"][-1]) == {"path", "id", "undone"}
    assert len(pack(state).states) == 1


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("options", [WHOLE, OPTIONS])
def test_D12_conversation_and_options_come_back(format: Any, options: SessionOptions) -> None:
    state = conversation()
    loaded, read = codec.decode(codec.encode(state, options, format), format)
    assert read == options
    assert pictured(loaded) == pictured(state)
    assert (len(loaded.undone), loaded.epoch is state.epoch) == (2, False)
    for again, turn in zip(loaded, state, strict=True):
        assert (again.run, again.feedback, again.usage) == (turn.run, turn.feedback, turn.usage)
    assert codec.encode(loaded, read, format) == codec.encode(state, options, format)


def test_D12_the_dict_is_json_ready_and_shares_nothing_with_the_state() -> None:
    state = conversation()
    wire = codec.to_wire(state, OPTIONS)
    assert json.loads(json.dumps(wire, allow_nan=False)) == wire
    was = pictured(state)
    wire["conversation"]["turns"][0]["inputs"]["question"] = "spoiled"
    wire["conversation"]["turns"].clear()
    wire["options"].clear()
    assert pictured(state) == was

    wire = codec.to_wire(state, OPTIONS)
    unread = copy.deepcopy(wire)
    loaded, _ = codec.from_wire(wire)
    assert wire == unread
    wire["conversation"]["turns"][1]["outputs"]["answer"].clear()
    assert pictured(loaded) == was


def test_the_empty_conversation_is_small_and_comes_back() -> None:
    for state in (SessionState(), start([{}]), start([], id="a")):
        loaded, options = codec.decode(codec.encode(state, WHOLE))
        assert (loaded, options) == (state, WHOLE)
    assert len(codec.encode(SessionState(), WHOLE, "msgpack")) < 600


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 0.1, 5, 10**40, None])
def test_facts_of_a_run_keep_any_number(number: Any) -> None:
    run = Run(id="x", time=number, duration=number, cost=number, usage=(("lm", (("n", number),)),))
    step = prepare(SessionState(), {}, WHOLE)
    _, state = commit(SessionState(), step, {}, run, WHOLE)
    if isinstance(number, float):
        state = annotate(state, {0: (number, None)})
    for format in FORMATS:
        (turn,) = codec.decode(codec.encode(state, WHOLE, format), format)[0]
        assert repr(turn.run) == repr(run)
        assert repr(turn.score) == repr(state.turns[0].score)


def test_a_field_may_have_any_name() -> None:
    names = ["$type", "value", "", "ü", "a b", "kind"]
    fields = {name: {"$type": name} for name in names}
    _, state = commit(SessionState(), prepare(SessionState(), fields, WHOLE), fields, Run(), WHOLE)
    (turn,) = codec.decode(codec.encode(state, WHOLE))[0]
    assert list(turn.inputs.items()) == list(turn.outputs.items()) == list(fields.items())


# Values without written form


class Booking(pydantic.BaseModel):
    seat: str = "12A"


@pytest.mark.parametrize(
    ("build", "where"),
    [
        (lambda v: say(SessionState(), ("a", 1), (v, 2)), "turn 1: input 'question'"),
        (lambda v: say(SessionState(), ("a", 1), (2, v)), "turn 1: output 'answer'"),
        (lambda v: say(SessionState(), ("a", v), max_stored_turns=1), "turn 0: output 'answer'"),
        (lambda v: start([{"ok": 1}, {"note": v}]), "message 1 of a seed: output 'note'"),
        (
            lambda v: replace_turn(say(SessionState(), ("a", v), ("b", 1)), 0, {}, id="")[1],
            "a replaced or undone turn: output 'answer'",
        ),
        (
            lambda v: ask(SessionState(), "a", inner=say(SessionState(), ("b", v))),
            "turn 0 of a nested session or of another answer: output 'answer'",
        ),
    ],
)
def test_D12_a_value_of_unknown_type_is_named_with_the_way_out(
    build: Callable[[Any], SessionState], where: str
) -> None:
    state = build([Booking()])
    was = pictured(state)
    for save in (
        lambda: codec.to_wire(state, WHOLE),
        lambda: codec.encode(state, WHOLE),
        lambda: codec.encode(state, WHOLE, "msgpack"),
    ):
        with pytest.raises(ValueCodecError) as refused:
            save()
        message = str(refused.value)
        for words in (where, "(list)", f"{__name__}.Booking", "register_value_codec", "leave the"):
            assert words in message
        assert "Nothing was written" in message
    assert pictured(state) == was


def test_a_value_that_contains_itself_is_named() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueCodecError, match=r"turn 0: output 'answer' \(list\).*contains itself"):
        codec.encode(say(SessionState(), ("a", loop)), WHOLE)


@pytest.mark.parametrize("format", FORMATS)
def test_text_that_no_file_holds_is_refused_where_it_is_no_value(format: Any) -> None:
    feedback = annotate(say(SessionState(), ("a", 1)), {0: (1.0, "\ud800")})
    names = commit(SessionState(), prepare(SessionState(), {"\ud800": 1}, WHOLE), {}, Run(), WHOLE)
    for state in (feedback, names[1], SessionState(id="\ud800")):
        with pytest.raises(ValueCodecError, match="is no valid text"):
            codec.encode(state, WHOLE, format)
    with pytest.raises(ValueCodecError, match="Cannot save the conversation"):
        codec.encode(SessionState(id=object()), WHOLE, format)  # type: ignore[arg-type]


# Versions 1 and 2


FORMAT_1: dict[str, Any] = {
    "version": 1,
    "history_field": "history",
    "max_turns": 1,
    "exclude_fields": ["history", "context"],
    "input_field_override": ["question"],
    "history_policy": "override",
    "turns": [
        {"index": 0, "inputs": {"question": "q0", "context": "c0"}, "outputs": {"answer": "a0"}},
        {"index": 1, "inputs": {"question": "q1"}, "outputs": {"answer": "a1"}, "score": 0.5},
        {"index": 2, "inputs": {"question": "q2"}, "outputs": {"answer": "a2"}, "score": None},
    ],
    "initial_history": {"messages": [{"question": "Hi", "answer": "Hello."}]},
}
FORMAT_2: dict[str, Any] = {
    "version": 2,
    "history_field": "past",
    "max_turns": None,
    "max_stored_turns": 2,
    "copy_mode": "shallow",
    "exclude_fields": ["past"],
    "history_input_fields": None,
    "history_policy": "replace_session",
    "turns": [
        {"index": 2, "inputs": {"q": {"z": 1, "a": 2}}, "outputs": {"a": None}, "score": 1},
        {"index": 2, "inputs": {"q": 2, "past": "a History"}, "outputs": {}, "score": None},
    ],
    "initial_history": None,
}


def test_D12_format_1_is_read() -> None:
    was = copy.deepcopy(FORMAT_1)
    state, options = codec.from_wire(FORMAT_1)
    assert was == FORMAT_1
    assert options == SessionOptions(
        max_turns=1, exclude_fields={"context"}, history_input_fields={"question"}
    )
    assert [turn.inputs for turn in state] == [turn["inputs"] for turn in FORMAT_1["turns"]]
    assert [turn.outputs for turn in state] == [turn["outputs"] for turn in FORMAT_1["turns"]]
    assert [turn.score for turn in state] == [None, 0.5, None]
    assert [turn.index for turn in state] == [0, 1, 2]
    hello = {"question": "Hi", "answer": "Hello."}
    assert [turn.history_snapshot.messages for turn in state] == [
        [hello],
        [hello, {"question": "q0", "answer": "a0"}],
        [hello, {"question": "q1", "answer": "a1"}],
    ]
    assert [exchange.outputs for exchange in state.seed] == [hello]


def test_D12_format_2_is_read() -> None:
    was = copy.deepcopy(FORMAT_2)
    state, options = codec.decode(json.dumps(FORMAT_2).encode())
    assert codec.from_wire(FORMAT_2)[0] == state
    assert was == FORMAT_2
    assert (options.history_field, options.max_stored_turns, options.copy_mode) == (
        "past",
        2,
        "shallow",
    )
    assert (options.history_policy, options.exclude_fields) == ("replace_session", frozenset())
    assert [turn.index for turn in state] == [0, 1]
    assert list(state.turns[0].inputs["q"]) == ["z", "a"]
    assert state.turns[1].inputs == {"q": 2}  # the history among the inputs is not an input
    assert state.turns[1].history_snapshot.messages == [{"q": {"z": 1, "a": 2}, "a": None}]
    assert codec.decode(codec.encode(state, options)) == (state, options)


def test_D12_old_files_hold_what_python_json_holds() -> None:
    old = copy.deepcopy(FORMAT_2)
    old["turns"][0]["outputs"] = {"a": math.nan, "b": [-math.inf], "c": "\ud800", "d": 10**30}
    state, _ = codec.decode(json.dumps(old).encode())
    assert repr(state.turns[0].outputs) == repr(old["turns"][0]["outputs"])
    assert pictured(codec.decode(codec.encode(state, WHOLE))[0]) == pictured(state)
    new = codec.encode(say(SessionState(), ("a", 1)), WHOLE).replace(
        b'"answer": 1', b'"answer": NaN'
    )
    with pytest.raises(FormatError, match="not whole"):
        codec.decode(new)


def test_D12_the_oldest_files_have_no_version() -> None:
    old = {key: value for key, value in FORMAT_1.items() if key != "version"}
    assert codec.is_conversation(old)
    assert codec.from_wire(old) == codec.from_wire(FORMAT_1)


def test_D12_more_turns_than_are_stored_are_trimmed_and_keep_what_they_saw() -> None:
    old = {**FORMAT_2, "max_stored_turns": 1}
    state, _ = codec.from_wire(old)
    assert [(turn.index, len(turn.window)) for turn in state] == [(1, 1)]


OLD_DAMAGE: list[tuple[str, Any]] = [
    ("turns", None),
    ("turns", {}),
    ("turns", [1]),
    ("turns", [{"inputs": {}}]),
    ("turns", [{"inputs": [], "outputs": {}}]),
    ("turns", [{"inputs": {}, "outputs": {}, "score": "good"}]),
    ("turns", [{"inputs": {}, "outputs": {}, "score": True}]),
    ("history_field", 5),
    ("history_field", "two words"),
    ("max_turns", -1),
    ("max_turns", "all"),
    ("copy_mode", "sideways"),
    ("exclude_fields", "history"),
    ("exclude_fields", [1]),
    ("history_policy", "whatever"),
    ("initial_history", "messages"),
    ("initial_history", {"messages": [5]}),
    ("initial_history", {"messages": {}}),
]


@pytest.mark.parametrize(("key", "value"), OLD_DAMAGE, ids=str)
def test_damaged_old_files_are_refused(key: str, value: Any) -> None:
    for good in (FORMAT_1, FORMAT_2):
        assert_refused({**good, key: value}, f"of version {good['version']}", "damaged")


def sample(name: str) -> dict[str, Any]:
    path = SAMPLES / name
    if not path.exists():
        pytest.skip(f"the saved session {name} is not tested: there is no {path}")
    data: dict[str, Any] = json.loads(path.read_bytes())
    return data


@pytest.mark.parametrize("name", ["format1_rag.json", "format2_qa.json", "format2_therapy.json"])
def test_D12_published_samples_load(name: str) -> None:
    data = sample(name)
    state, options = codec.decode((SAMPLES / name).read_bytes())
    assert [turn.inputs for turn in state] == [turn["inputs"] for turn in data["turns"]]
    assert [turn.outputs for turn in state] == [turn["outputs"] for turn in data["turns"]]
    assert [turn.score for turn in state] == [turn["score"] for turn in data["turns"]]
    seed = (data.get("initial_history") or {"messages": []})["messages"]
    assert [exchange.outputs for exchange in state.seed] == seed
    assert len(state.turns[1].window) == len(seed) + 1
    assert options.exclude_fields == set(data["exclude_fields"]) - {"history"}
    assert options.max_turns == data["max_turns"]
    only = data.get("history_input_fields") or data.get("input_field_override")
    assert options.history_input_fields == (None if only is None else set(only))
    assert codec.decode(codec.encode(state, options, "msgpack"), "msgpack") == (state, options)


# What is no conversation


@pytest.mark.parametrize(
    "other",
    [
        None,
        5,
        True,
        "text",
        [],
        [{"version": 3}],
        {},
        {"kind": "dspy-session-data", "version": 3},
        {"version": 3},
        {"turns": []},
        {"predict": {"traces": [], "train": [], "demos": []}, "metadata": {}},
        {"kind": None},
        {"kind": ["dspy-session"]},
    ],
    ids=str,
)
def test_other_kinds_are_told_apart(other: Any) -> None:
    assert not codec.is_conversation(other)
    assert_refused(other, "another kind of document", "module.load(path)")
    for encode, format in ((msgspec.json.encode, "json"), (msgspec.msgpack.encode, "msgpack")):
        with pytest.raises(FormatError, match="another kind of document"):
            codec.decode(encode(other), format)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", [4, 99, 10**30])
def test_a_file_from_the_future_says_so(version: int) -> None:
    for data in ({**document(), "version": version}, {"version": version, "turns": []}):
        assert codec.is_conversation(data)
        assert_refused(data, f"version {version}", "Upgrade dspy-session")


@pytest.mark.parametrize("version", [0, -1, 3.0, "3", None, True, [3]])
def test_a_version_that_is_none(version: Any) -> None:
    assert_refused({**document(), "version": version}, "version number", repr(version))
    without = document()
    del without["version"]
    assert_refused(without, "version number", "None")


def test_a_new_file_under_an_old_number_is_refused() -> None:
    for version in (1, 2):
        assert_refused({**document(), "version": version}, "damaged")
    assert_refused({**FORMAT_2, "version": 3}, "damaged")


@pytest.mark.parametrize("data", [b"", b" ", b"{", b"nul", b"\xff\xfe", b"\x00", b"[" * 100_000])
@pytest.mark.parametrize("format", FORMATS)
def test_bytes_of_no_format(data: bytes, format: Any) -> None:
    with pytest.raises(FormatError, match=f"as {format}, but the data is not whole|another kind"):
        codec.decode(data, format)


def test_only_known_formats() -> None:
    for use in (
        lambda: codec.encode(SessionState(), WHOLE, "yaml"),  # type: ignore[arg-type]
        lambda: codec.decode(b"", "yaml"),  # type: ignore[arg-type]
    ):
        with pytest.raises(OptionError, match="must be 'json' or 'msgpack', not 'yaml'"):
            use()


# Damage


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_file_is_refused_wherever_it_ends(format: Any) -> None:
    for data in (
        codec.encode(conversation(), OPTIONS, format),
        codec.encode(family(), OPTIONS, format),
        *([json.dumps(FORMAT_2).encode()] if format == "json" else []),
    ):
        codec.decode(data, format)
        for end in range(0, len(data), 7):
            with pytest.raises(FormatError):
                codec.decode(data[:end], format)
        with pytest.raises(FormatError):
            codec.decode(data[:-1], format)
        with pytest.raises(FormatError):
            codec.decode(data + b"\x01", format)


WRITTEN: list[tuple[Any, bytes]] = [
    (format, codec.encode(state, OPTIONS, format))
    for format in FORMATS
    for state in (conversation(), family())
]


def read_or_refused(data: bytes, format: Any) -> None:
    """Either a whole conversation or a `FormatError`, nothing else."""
    try:
        state, options = codec.decode(data, format)
    except FormatError:
        return
    pictured(state)
    codec.decode(codec.encode(state, options), "json")


@settings(max_examples=500, deadline=None)
@given(
    written=st.sampled_from(WRITTEN),
    flips=st.lists(st.tuples(st.integers(0), st.integers(0, 7)), min_size=1, max_size=4),
)
def test_flipped_bits_are_read_or_refused(written: Any, flips: list[tuple[int, int]]) -> None:
    format, data = written[0], bytearray(written[1])
    for byte, bit in flips:
        data[byte % len(data)] ^= 1 << bit
    read_or_refused(bytes(data), format)


@settings(max_examples=200, deadline=None)
@given(written=st.sampled_from(WRITTEN), start=st.integers(0), junk=st.binary(max_size=20))
def test_junk_is_read_or_refused(written: Any, start: int, junk: bytes) -> None:
    format, data = written[0], bytearray(written[1])
    data[start % len(data) : start % len(data) + len(junk)] = junk
    read_or_refused(bytes(data), format)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every part of a document."""
    yield path
    if isinstance(node, dict | list):
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            yield from places(item, (*path, key))


def with_part(data: Any, path: tuple[Any, ...], part: Any) -> Any:
    data = copy.deepcopy(data)
    node = data
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = part
    return data


DOCUMENTS = [
    document(),
    large_document(),
    codec.to_wire(customer(), WHOLE),
    codec.to_wire(instructed(), WHOLE),
]
PLACES = [[path for path in places(data) if path] for data in DOCUMENTS]
PARTS: list[Any] = [*(None, True, -1, 0, 1, 3, 7, 10**12, 10**30, 0.5, "", "text")]
PARTS += [[], [0], [[0, 1]], {}, {"a": 1}]
PARTS += [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]


@settings(max_examples=1000, deadline=None)
@given(data=st.data(), which=st.sampled_from([0, 1, 1, 2, 2, 3]), count=st.integers(1, 2))
def test_any_part_may_be_wrong(data: Any, which: int, count: int) -> None:
    changes = st.tuples(st.sampled_from(PLACES[which]), st.sampled_from(PARTS))
    drawn, data = [data.draw(changes) for _ in range(count)], DOCUMENTS[which]
    for path, part in drawn:
        try:
            data = with_part(data, path, part)
        except (LookupError, TypeError):  # the first change took the place away
            continue
    try:
        state, options = codec.from_wire(data)
    except FormatError as refused:
        assert str(refused)  # noqa: PT017
    else:
        for found in (state, redo(undo(state)[1], 9)[1], redo(state, 9)[1]):
            assert len(found.alternatives) <= len(found.ahead)
            assert len(to_openai(found)) >= len(found.pending)
            codec.from_wire(codec.to_wire(found, REDACTED, private=False))
            assert pictured(codec.decode(codec.encode(found, options))[0]) == pictured(found)


TURNS = ("conversation", "turns")
PATHS = ("conversation", "paths")
STATE = ("conversation", "states", 0)
DAMAGE: list[tuple[tuple[Any, ...], Any]] = [
    (("options",), None),
    (("options", "max_turns"), -1),
    (("options", "colour"), "blue"),
    (("options", "lock"), "double"),
    (("conversation",), []),
    (("conversation", "states"), []),
    ((*STATE, "id"), 5),
    ((*STATE, "undone"), -1),
    ((*STATE, "undone"), 6),
    ((*STATE, "undone"), True),
    ((*STATE, "seed"), -1),
    ((*STATE, "seed"), 1),
    ((*STATE, "before"), 0),
    ((*STATE, "ahead"), [0]),
    ((*STATE, "ahead"), [-1]),
    ((*STATE, "path"), [None, 0, 5]),
    ((*STATE, "path"), [0, 0, 5, [[0, 0, 5]]]),
    ((*STATE, "path"), [-1, 0, 5, [[0, 0, 5]]]),
    ((*STATE, "path"), [None, -1, 5, [[0, 0, 5]]]),
    ((*STATE, "path"), [None, 1, 6, [[1, 0, 5]]]),
    ((*STATE, "path"), [None, 0, 4, [[0, 0, 4]]]),
    ((*STATE, "path"), [None, 0, 6, [[0, 0, 5]]]),
    ((*STATE, "path"), [None, 0, 5, [[0, 0, 6]]]),
    ((*STATE, "path"), [None, 0, 5, [[0, 1, 4], [4, 0, 1]]]),
    ((*STATE, "path"), [None, 10**12, 10**12, []]),
    (("conversation", "seeds"), []),
    (("conversation", "views"), []),
    (("conversation", "views", 0, "exclude"), [1]),
    ((*TURNS,), [1]),
    ((*TURNS, 0, "index"), 1),
    ((*TURNS, 1, "index"), 5),
    ((*TURNS, 1, "index"), -1),
    ((*TURNS, 1, "index"), 1.0),
    ((*TURNS, 0, "exchange"), 9),
    ((*TURNS, 0, "exchange"), -1),
    ((*TURNS, 0, "beside"), 0),
    ((*TURNS, 0, "beside"), -1),
    ((*TURNS, 0, "inputs"), ["question"]),
    ((*TURNS, 0, "outputs"), None),
    ((*TURNS, 0, "score"), "good"),
    ((*TURNS, 0, "score"), True),
    ((*TURNS, 0, "score"), {"$type": "tuple", "value": []}),
    ((*TURNS, 0, "feedback"), 5),
    ((*TURNS, 0, "run"), None),
    ((*TURNS, 0, "run", "time"), "noon"),
    ((*TURNS, 0, "run", "cost"), [1]),
    ((*TURNS, 0, "run", "usage"), {"lm": 5}),
    ((*TURNS, 0, "run", "usage"), {"lm": {"$type": "tuple", "value": [1]}}),
    ((*TURNS, 0, "run", "id"), 5),
    ((*TURNS, 2, "saw"), [0, 0, 2, 0]),
    ((*TURNS, 2, "saw"), [0, 0, 2, 0, 0, 0]),
    ((*TURNS, 2, "saw"), [-1, 0, 2, 0, 0]),
    ((*TURNS, 2, "saw"), [9, 0, 2, 0, 0]),
    ((*TURNS, 2, "saw"), [9, 0, 0, 0, 0]),
    ((*TURNS, 2, "saw"), [0, -1, 2, 0, 0]),
    ((*TURNS, 2, "saw"), [0, -1, -1, 0, 0]),
    ((*TURNS, 2, "saw"), [0, 2, 0, 0, 0]),
    ((*TURNS, 2, "saw"), [0, 0, 10**12, 0, 0]),
    ((*TURNS, 2, "saw"), [0, 10**12, 10**12 + 1, 0, 0]),
    ((*TURNS, 2, "saw"), [0, 0, 1, -1, 0]),
    ((*TURNS, 2, "saw"), [0, 0, 1, 9, 0]),
    ((*TURNS, 2, "saw"), [0, 0, 1, 0, -1]),
    ((*TURNS, 2, "saw"), [0, 0, 1, 0, 9]),
    ((*PATHS,), []),
    ((*PATHS,), [[None, 0, 1]]),
    ((*PATHS, 0), [0, 0, 2, [[0, 0, 2]]]),
    ((*PATHS, 0), [-1, 0, 2, [[0, 0, 2]]]),
    ((*PATHS, 0), ["0", 0, 2, [[0, 0, 2]]]),
    ((*PATHS, 0), [None, 0, 0, []]),
    ((*PATHS, 0), [None, 1, 0, []]),
    ((*PATHS, 0), [None, -1, 2, [[-1, 0, 3]]]),
    ((*PATHS, 0), [None, 0, 2, []]),
    ((*PATHS, 0), [None, 0, 2, [[0, 0, 1]]]),
    ((*PATHS, 0), [None, 0, 2, [[0, 0, 3]]]),
    ((*PATHS, 0), [None, 0, 2, [[0, 0, -2]]]),
    ((*PATHS, 0), [None, 0, 2, [[0, 0, 0], [0, 0, 2]]]),
    ((*PATHS, 0), [None, 0, 2, [[0, -1, 2]]]),
    ((*PATHS, 0), [None, 0, 2, [[0, 99, 2]]]),
    ((*PATHS, 0), [None, 0, 2, [[-1, 0, 2]]]),
    ((*PATHS, 0), [None, 0, 2, [["0", 0, 2]]]),
    ((*PATHS, 1), [9, 0, 4, []]),
    ((*PATHS, 1), [0, 2, 4, [[2, 0, 2]]]),
]


@pytest.mark.parametrize(("path", "part"), DAMAGE, ids=str)
def test_damage_is_refused(path: tuple[Any, ...], part: Any) -> None:
    assert_refused(
        with_part(document(), path, part), "of version 3", "damaged", "nothing was loaded"
    )


LAST = len(DOCUMENTS[1]["conversation"]["states"]) - 1
FAMILY_DAMAGE: list[tuple[tuple[Any, ...], Any]] = [
    (("besides",), []),
    (("besides", 0, "nested"), {"worker": -1}),
    (("besides", 0, "nested"), {"worker": LAST}),  # the state that it stands beside
    (("besides", 0, "nested"), {"worker": LAST + 1}),
    (("besides", 0, "nested"), {"worker": None}),
    (("besides", 0), None),
    (("states", LAST, "ahead"), [LAST]),
    (("states", LAST, "ahead"), [-1]),
    (("states", LAST, "ahead", 0), 99),
    (("states", LAST, "path", 0), LAST),
    (("states", 0, "path", 0), 1),  # one that comes later
    (("states", 0, "path", 0), LAST),
    (("states", LAST - 1, "ahead"), [0]),  # a path ahead has none itself
    (("states", LAST), None),
    (("turns", 0, "beside"), 99),
    (("turns", 5, "index"), 9),
]


@pytest.mark.parametrize(("path", "part"), FAMILY_DAMAGE, ids=str)
def test_D21_damage_among_nested_states_is_refused(path: tuple[Any, ...], part: Any) -> None:
    assert_refused(with_part(large_document(), ("conversation", *path), part), "damaged")


def test_a_path_ahead_has_the_same_beginning() -> None:
    data = document()
    short = {"path": [None, 1, 5, [[1, 1, 4]]]}
    data["conversation"]["states"].insert(0, short)
    assert pictured(codec.from_wire(data)[0]) == pictured(conversation())
    for key, value in (("ahead", [0]), ("path", [0, 0, 5, [[0, 0, 1]]])):
        assert_refused(with_part(data, ("conversation", "states", 1, key), value), "begin")


BESIDES = ("conversation", "besides", -1)
PROFILE = ("conversation", "states", -1, "profile")
CUSTOMER_DAMAGE: list[tuple[tuple[Any, ...], Any]] = [
    (("conversation", "entries"), []),
    (("conversation", "entries", 0), ["", 1]),
    (("conversation", "entries", 0), [1, 1]),
    (("conversation", "entries", 0), ["n"]),
    ((*BESIDES, "data"), [[-1, 1]]),
    ((*BESIDES, "data"), [[0, 0]]),
    ((*BESIDES, "data"), [[0, 99]]),
    ((*BESIDES, "data"), [[99, 1]]),
    ((*BESIDES, "data"), {"n": 1}),
    ((*BESIDES, "pending"), [{"foo": 1}]),
    ((*BESIDES, "pending"), [{"role": "king", "content": "Hi"}]),
    ((*BESIDES, "pending"), [{"role": "user", "content": 5}]),
    ((*BESIDES, "pending"), [{"role": "system", "content": "Hi"}]),
    ((*BESIDES, "pending"), [{"role": "assistant", "content": "no longer waits"}]),
    ((*BESIDES, "pending"), [{"role": "tool", "tool_call_id": "c1", "content": "no call"}]),
    ((*BESIDES, "pending", 0), None),
    (PROFILE, {"system": {"foo": 1}}),
    (PROFILE, {"system": {"role": "user", "content": "Hi"}}),
    (PROFILE, {"system": {"role": "system", "content": [5]}}),
    (PROFILE, {"instructions": 5}),
    (PROFILE, {"instructions": "Hi", "place": "beside"}),
    (PROFILE, {"metadata": []}),
    (PROFILE, {"start": {"": 1}}),
    (("conversation", "states", -1, "written"), -2),
    (("conversation", "states", -1, "written"), 99),
    (("conversation", "states", -1, "earlier"), [-1]),
    (("conversation", "states", -1, "earlier"), [99]),
    (("conversation", "states", 1, "earlier"), [0]),  # of one that is among the earlier itself
]


@pytest.mark.parametrize(("path", "part"), CUSTOMER_DAMAGE, ids=str)
def test_X1_damage_in_what_an_application_keeps_is_refused(
    path: tuple[Any, ...], part: Any
) -> None:
    data = codec.to_wire(customer(), WHOLE)
    assert codec.from_wire(data)[0] == customer()
    assert_refused(with_part(data, path, part), "damaged", "nothing was loaded")


def test_X1_what_an_application_keeps_comes_back() -> None:
    for state in (customer(), undo(customer())[1], instructed()):
        for format in FORMATS:
            loaded, _ = codec.decode(codec.encode(state, WHOLE, format), format)
            assert loaded == state
            assert to_openai(loaded) == to_openai(state)
            assert (loaded.data, loaded.metadata) == (state.data, state.metadata)
            assert [turn.data for turn in loaded] == [turn.data for turn in state]
            assert len(loaded.earlier) == len(state.earlier)


def without_part(data: Any, path: tuple[Any, ...]) -> Any:
    data = copy.deepcopy(data)
    node = data
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    return data


@pytest.mark.parametrize(
    "path",
    [
        ("kind",),
        ("options",),
        ("conversation",),
        *[("conversation", name) for name in ("turns", "seeds", "views", "paths", "states")],
        *[(*TURNS, 0, name) for name in ("index", "inputs", "outputs", "saw", "run")],
        ("conversation", "seeds", 0, 0, "outputs"),
        ("conversation", "others", 0, "outputs"),
        ("conversation", "others"),  # a path shows them
        (*TURNS, 1),
        (*PATHS, 0),
        (*STATE, "path"),
        STATE,
    ],
    ids=str,
)
def test_a_missing_part_is_refused(path: tuple[Any, ...]) -> None:
    assert_refused(without_part(document(), path))


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ((*TURNS, 1, "inputs", "question"), "turn 1: input 'question'"),
        ((*TURNS, 2, "outputs", "answer"), "turn 2: output 'answer'"),
        ((*TURNS, 2, "run", "usage", "lm"), "turn 2: usage of 'lm'"),
        (("conversation", "others", 0, "outputs", "answer"), "replaced or undone turn: output"),
        (("conversation", "seeds", 0, 0, "outputs", "x"), "message 0 of a seed: output 'x'"),
    ],
)
def test_a_value_that_cannot_be_read_is_named_with_the_way_out(
    path: tuple[Any, ...], where: str
) -> None:
    unknown = with_part(document(), path, {"$type": "spaceship", "value": {}})
    assert_refused(unknown, where, "'spaceship'", "register_value_codec", "Nothing was loaded")
    damaged = with_part(document(), path, {"$type": "tuple", "value": 5})
    assert_refused(damaged, where, "'tuple' cannot be read", "Nothing was loaded")


# Hostile files


def hostile(paths: Any, exchanges: int = 0) -> bytes:
    data = document()
    data["conversation"]["paths"] = paths
    data["conversation"]["others"] = [{"outputs": {}} for _ in range(exchanges)]
    return msgspec.json.encode(data)


def hostile_data(run: Any) -> bytes:
    """Session data of many entries, over and over."""
    data = document()
    data["conversation"]["entries"] = [[str(number), 0] for number in range(5000)]
    data["conversation"]["besides"] = [{"data": [run]}] * 3000
    return msgspec.json.encode(data)


def nesting(depth: int, base: bool = False) -> bytes:
    """States in the turns of states, ever deeper."""
    data = codec.to_wire(say(SessionState(), ("a", 1)), WHOLE)
    conversation, turn = data["conversation"], data["conversation"]["turns"][0]
    for number in range(depth):
        conversation["besides"].append({"nested": {"inner": number}})
        conversation["turns"].append({**turn, "exchange": 0, "beside": number})
        path = [number if base else None, 0, 1, [[0, number + 1, 1]]]
        conversation["states"].append({"path": path})
    return msgspec.json.encode(data)


def many_states(count: int, path: Any) -> bytes:
    data = codec.to_wire(say(SessionState(), *[("a", 1)] * 1000), WHOLE)
    data["conversation"]["states"].extend({"path": path} for _ in range(count))
    return msgspec.json.encode(data)


@pytest.mark.parametrize(
    "data",
    [
        hostile([[None, 0, 10**12, [[0, 0, 10**12]]]]),
        hostile([[None, 0, 10**12, []]]),
        hostile([[None, 10**12, 10**12 + 1, [[10**12, 0, 1]]], [0, 0, 10**12, []]]),
        hostile([[None, 10**12, 10**12 + 1, [[10**12, 0, 1]]], [0, 0, 10**12, [[0, 0, 2]]]]),
        hostile([[None, 0, 2, [[0, 0, -(10**12)], [0, 0, 10**12]]]]),
        hostile([[None, 0, 2, [[0, 0, 2]] * 10_000]]),
        hostile([[None, 0, 2000, [[0, 0, 2000]]]] * 20_000, exchanges=2000),
        hostile(
            [
                [n - 1 if n else None, 20_000 - n, 20_001, [[20_000 - n, 0, 1]]]
                for n in range(20_000)
            ]
        ),
        nesting(5000),
        nesting(5000, base=True),
        many_states(3000, [None, 0, 1000, [[0, 0, 1000]]]),
        many_states(3000, [None, 0, 10**12, []]),
        many_states(3000, [0, 0, 10**12, []]),
        hostile_data([0, 5000]),
        hostile_data([0, 10**12]),
        b'{"kind":"dspy-session","version":3,"conversation":' + b"[" * 500_000,
        b'{"version":2,"turns":[{"inputs":{"a":' + b"[" * 400 + b"]" * 400 + b"}}]}",
    ],
    ids=range(17),
)
def test_a_hostile_file_costs_little_and_is_refused(data: bytes) -> None:
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(FormatError):
        codec.decode(data)
    spent = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60 * 2**20
    assert spent < 10


def test_D21_what_many_share_is_read_and_compared_once() -> None:
    """Each state is in the next one twice: two to the thirtieth ways lead to the first."""
    state = say(SessionState(), ("a", 1))
    for number in range(30):
        state = ask(SessionState(id=str(number)), number, left=state, right=state)
    loaded, _ = codec.decode(codec.encode(state, WHOLE))
    assert loaded == state
    assert loaded != rewind(state, 0)
    assert len(codec.encode(loaded, WHOLE, "msgpack")) < 10_000
    assert pack(loaded) == pack(loaded)


def test_deeply_nested_values_are_read_or_refused() -> None:
    for depth in range(0, 2000, 150):
        nested = b"[" * depth + b"]" * depth
        data = codec.encode(say(SessionState(), ("a", "HERE")), WHOLE).replace(b'"HERE"', nested)
        read_or_refused(data.replace(b"[]", b"[1]"), "json")


def test_nothing_in_a_file_is_imported_or_run(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    for tag in ("os.system", "builtins.eval", "py/object", "!!python/object"):
        value = {"$type": tag, "value": f"touch {touched}"}
        assert_refused(with_part(document(), (*TURNS, 0, "inputs", "question"), value), tag)
    assert not touched.exists()
