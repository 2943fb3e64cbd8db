"""C6: how many tokens of a conversation the next call is shown, and when that is too much."""

from __future__ import annotations

import dataclasses
import enum
import gc
import math
import weakref
from collections.abc import Mapping
from typing import Any

import dspy
import pytest

from dspy_session import SessionError, SessionOptions, SessionState, sessionify
from dspy_session.core import Exchange, Run, commit, prepare, replace_turn, start, undo
from dspy_session.core.profile import Instructions
from dspy_session.core.tokens import (
    checked_counter,
    summary_due,
    token_count,
    tokens_per_character,
)
from dspy_session.core.transitions import summarized, truncate
from dspy_session.core.writes import instruct
from dspy_session.errors import OptionError
from dspy_session.testing import scripted_lm
from tests.test_core_sharing import calls

WHOLE = SessionOptions()


def words(text: str) -> int:
    return len(text.split())


def say(
    state: SessionState,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    options: SessionOptions = WHOLE,
    **facts: Any,
) -> SessionState:
    step = prepare(state, inputs, options)
    return commit(state, step, outputs, Run(id=str(state.stop), **facts), options)[1]


def talk(turns: int, length: int = 5, **facts: Any) -> SessionState:
    state = SessionState()
    for _ in range(turns):
        state = say(state, {"question": "q" * length}, {"answer": "a" * length}, **facts)
    return state


def used(tokens: int, name: str = "prompt_tokens") -> Any:
    return (("a-model", ((name, tokens), ("completion_tokens", 7))),)


# --- what is counted ------------------------------------------------------------------------------


def test_C6_an_empty_conversation_takes_no_tokens() -> None:
    assert token_count(SessionState(), WHOLE) == 0
    assert token_count(SessionState(), WHOLE, words) == 0


def test_C6_four_characters_are_a_token_and_a_part_of_one_is_one_more() -> None:
    state = start([{"a": "x"}])  # told as "a: x"
    assert token_count(state, WHOLE) == 1
    assert token_count(start([{"a": "xy"}]), WHOLE) == 2


def test_C6_a_counter_of_ones_own_is_given_each_exchange_as_text() -> None:
    state = say(
        start([{"question": "Who?", "answer": "Ada."}]), {"question": "And now?"}, {"answer": "On."}
    )
    heard: list[str] = []

    def counter(text: str) -> int:
        heard.append(text)
        return 10

    assert token_count(state, WHOLE, counter) == 20
    assert heard == ["question: Who?\nanswer: Ada.", "question: And now?\nanswer: On."]


def test_C6_instructions_count_whoever_counts() -> None:
    plain = talk(1)
    told = instruct(plain, Instructions("Be brief and kind."))
    assert token_count(told, WHOLE, words) == token_count(plain, WHOLE, words) + 4
    assert token_count(told, WHOLE) > token_count(plain, WHOLE)
    assert token_count(instruct(told, None), WHOLE) == token_count(plain, WHOLE)


def test_C6_instructions_that_depend_on_the_conversation_count_as_the_next_call_has_them() -> None:
    session = sessionify(
        dspy.Predict("question -> answer"),
        instructions=lambda state: "word " * len(state),
        token_counter=words,
    )
    session.add_turn({"question": "q"}, {"answer": "a"})
    session.add_turn({"question": "q"}, {"answer": "a"})
    assert session.token_count() == 4 + 4 + 2


def test_C6_only_what_the_next_call_is_shown_counts() -> None:
    state = start([{"question": "seed", "answer": "seed"}])
    for number in range(6):
        state = say(state, {"question": f"{number}", "context": "long " * 50}, {"answer": "yes"})
    seed = token_count(state, SessionOptions(max_turns=0), words)
    assert seed == 4

    def count(**options: Any) -> int:
        return token_count(state, SessionOptions(**options), words)

    assert count(max_turns=2) == seed + 2 * (2 + 51 + 2)
    assert count(exclude_fields={"context"}) == seed + 6 * 4
    assert count(redact_fields={"context"}) == seed + 6 * 4
    assert count(history_input_fields={"question"}) == seed + 6 * 4
    assert count() == seed + 6 * 55
    assert token_count(undo(state, 3)[1], WHOLE, words) == seed + 3 * 55
    assert token_count(truncate(state, 1), WHOLE, words) == seed + 55


def test_C6_details_count_where_prompts_show_them() -> None:
    step = prepare(SessionState(), {"question": "q"}, WHOLE)
    _, state = commit(
        SessionState(), step, {"answer": "a"}, Run(), WHOLE, {"trajectory": {"thought_0": "hm"}}
    )
    assert token_count(state, WHOLE, words) == 4
    assert token_count(state, SessionOptions(show_details=True), words) == 6


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\nb", "a\nb"),
        (None, "null"),
        ({"a": [1, True]}, '{"a":[1,true]}'),
        (Colour.RED, '"red"'),
        (Point(3), '{"x":3}'),
        (["\ud800"], "['\\ud800']"),  # no JSON: half of a character
        ({3: "x"}, '{"3":"x"}'),
        (2**70, str(2**70)),
    ],
)
def test_C6_values_of_any_type_are_counted_as_text(value: Any, text: str) -> None:
    heard: list[str] = []
    token_count(start([{"v": value}]), WHOLE, lambda told: heard.append(told) or 0)  # type: ignore[func-returns-value]
    assert heard == [f"v: {text}"]


def test_C6_an_image_counts_what_it_is_and_not_its_bytes() -> None:
    image = dspy.Image(url="data:image/png;base64," + "A" * 100_000)
    assert token_count(start([{"picture": image}]), WHOLE) < 50


# --- calibrated by what language models report ----------------------------------------------------


def test_C6_without_a_report_a_character_is_a_quarter_of_a_token() -> None:
    assert tokens_per_character(SessionState()) == 0.25
    assert tokens_per_character(talk(3)) == 0.25
    assert tokens_per_character(talk(3, usage=used(40))) == 0.25  # nobody knows for how much text
    assert tokens_per_character(talk(3, sent=100)) == 0.25
    assert tokens_per_character(talk(3, sent=100, usage=used(0))) == 0.25


@pytest.mark.parametrize("name", ["prompt_tokens", "input_tokens"])
def test_C6_reported_usage_calibrates_the_estimate(name: str) -> None:
    state = talk(1, sent=100, usage=used(50, name))
    assert tokens_per_character(state) == 0.5
    assert token_count(state, WHOLE) == 15  # of "question: qqqqq\nanswer: aaaaa", 29 characters
    assert token_count(state, WHOLE, words) == 4  # a counter of one's own knows better


def test_C6_several_models_and_odd_reports_are_added_up() -> None:
    usage = (
        ("one", (("prompt_tokens", 20), ("input_tokens", 999))),
        ("two", (("prompt_tokens", None), ("prompt_tokens_details", {"cached_tokens": 5}))),
        ("three", (("prompt_tokens", 30.0),)),
    )
    assert tokens_per_character(talk(1, sent=100, usage=usage)) == 0.5


def test_C6_the_latest_turns_calibrate_whatever_was_before() -> None:
    state = talk(20, sent=100, usage=used(90))
    for _ in range(8):
        state = say(state, {"question": "q"}, {"answer": "a"}, sent=100, usage=used(30))
    assert tokens_per_character(state) == 0.3
    assert tokens_per_character(undo(state, 8)[1]) == 0.9


def test_C6_tokens_of_which_nobody_knows_the_text_do_not_count() -> None:
    state = talk(1, sent=100, usage=used(60))
    assert tokens_per_character(say(state, {"q": "q"}, {"a": "a"}, usage=used(900))) == 0.6


def test_C6_a_turn_that_was_answered_from_a_cache_says_nothing() -> None:
    state = say(talk(1, sent=100, usage=used(60)), {"question": "q"}, {"answer": "a"})
    assert tokens_per_character(state) == 0.6


def test_C6_a_summary_keeps_what_was_learned_of_the_tokens() -> None:
    state = talk(3, sent=100, usage=used(60))
    assert tokens_per_character(summarized(state, (Exchange({}, {"summary": "s"}),))) == 0.6


def test_C6_looking_back_costs_the_same_at_any_length() -> None:
    short, long = talk(10), talk(1_000)
    assert calls(lambda: tokens_per_character(short)) == calls(lambda: tokens_per_character(long))


def test_C6_real_calls_calibrate_the_count_of_a_session() -> None:
    session = sessionify(dspy.Predict("question -> answer"))
    with dspy.context(lm=scripted_lm(lambda _: {"answer": "word " * 50})):
        before = session.token_count()
        session(question="word " * 50)
    (turn,) = session.turns
    reported = turn.usage["scripted"]["prompt_tokens"]
    assert before == 0
    assert turn.run.sent > 0
    rate = tokens_per_character(session.state)
    assert rate == reported / turn.run.sent
    assert rate < 0.25  # this model counts a token a word
    assert session.token_count() == math.ceil(2 * len("question: " + "word " * 50) * rate)


# --- cost and memory ------------------------------------------------------------------------------


def test_C6_an_exchange_is_counted_once_for_each_counter_and_view() -> None:
    heard: list[str] = []

    def counter(text: str) -> int:
        heard.append(text)
        return 1

    state = talk(10)
    assert token_count(state, WHOLE, counter) == token_count(state, WHOLE, counter) == 10
    assert len(heard) == 10
    _, state = replace_turn(state, 3, {"answer": "other"}, id="new")
    assert token_count(say(state, {"question": "q"}, {"answer": "a"}), WHOLE, counter) == 11
    assert len(heard) == 12
    assert token_count(state, SessionOptions(exclude_fields={"answer"}), counter) == 10
    assert len(heard) == 22


def test_C6_what_was_counted_goes_with_the_conversation_and_with_the_counter() -> None:
    state = talk(3)

    class Counter:
        def __init__(self, holds: object) -> None:
            self.holds = holds  # what a counter holds on to does not keep it

        def __call__(self, text: str) -> int:
            return len(text)

    counter = Counter(state)
    assert token_count(state, WHOLE, counter) == 87
    gone: list[weakref.ref[Any]] = [
        weakref.ref(counter),
        weakref.ref(state),
        weakref.ref(state.turns[0].exchange),
    ]
    del state, counter
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3


def test_C6_what_was_counted_goes_with_the_conversation_though_the_counter_stays() -> None:
    def counter(text: str) -> int:
        return len(text)

    state = talk(3)
    token_count(state, WHOLE, counter)
    gone = weakref.ref(state.turns[0].exchange)
    del state
    gc.collect()
    assert gone() is None


def test_C6_a_counter_that_cannot_be_kept_counts_all_the_same() -> None:
    class Slotted:
        __slots__ = ("asked",)
        __hash__ = None  # type: ignore[assignment]

        def __init__(self) -> None:
            self.asked = 0

        def __call__(self, text: str) -> int:
            self.asked += 1
            return 1

    counter = Slotted()
    assert token_count(talk(2), WHOLE, counter) == 2
    assert counter.asked == 2


# --- when a conversation is too long --------------------------------------------------------------


def test_A13_no_limit_is_never_passed_and_nothing_is_measured() -> None:
    assert not summary_due(talk(500), WHOLE, _never)


def _never(text: str) -> int:
    raise AssertionError(text)


def test_A13_a_limit_of_turns_is_passed_by_one_more() -> None:
    options = SessionOptions(summarize_after_turns=3)
    assert [summary_due(talk(n), options) for n in (0, 2, 3, 4)] == [False, False, False, True]
    assert not summary_due(undo(talk(4))[1], options)


def test_A13_a_limit_of_tokens_is_passed_by_what_is_shown() -> None:
    state = talk(4)  # 29 characters a turn
    limit = token_count(state, WHOLE)
    assert not summary_due(state, SessionOptions(summarize_after_tokens=limit))
    assert summary_due(state, SessionOptions(summarize_after_tokens=limit - 1))
    shown = SessionOptions(summarize_after_tokens=limit - 1, max_turns=1)
    assert not summary_due(state, shown)
    assert summary_due(state, SessionOptions(summarize_after_tokens=9), lambda _: 3)
    assert not summary_due(state, SessionOptions(summarize_after_tokens=12), lambda _: 3)


def test_A13_either_limit_will_do() -> None:
    options = SessionOptions(summarize_after_turns=100, summarize_after_tokens=5)
    assert summary_due(talk(2), options)
    assert summary_due(talk(101, length=0), options)


def test_A13_turns_that_are_to_be_kept_are_never_too_many() -> None:
    options = SessionOptions(summarize_after_turns=2, summarize_after_tokens=1, summarize_keep=5)
    assert [summary_due(talk(n), options) for n in (3, 5, 6)] == [False, False, True]


# --- bad input ------------------------------------------------------------------------------------


async def _awaited(text: str) -> int:
    return len(text)


@pytest.mark.parametrize("counter", ["words", 4, _awaited, {"a": 1}])
def test_C6_what_cannot_count_is_refused(counter: Any) -> None:
    with pytest.raises(OptionError, match="token counter must be") as caught:
        token_count(talk(1), WHOLE, counter)
    assert isinstance(caught.value, SessionError)
    with pytest.raises(OptionError):
        sessionify(dspy.Predict("question -> answer"), token_counter=counter)
    assert checked_counter(None) is None
    assert checked_counter(words) is words


@pytest.mark.parametrize("count", [None, "7", 1.5, -1, True])
def test_C6_a_counter_that_returns_no_number_is_an_error_and_changes_nothing(count: Any) -> None:
    session = sessionify(dspy.Predict("question -> answer"), token_counter=lambda _: count)
    session.add_turn({"question": "q"}, {"answer": "a"})
    before = session.state
    with pytest.raises(OptionError, match="whole number from 0 up"):
        session.token_count()
    assert session.state is before


def test_C6_an_error_of_the_counter_is_the_callers() -> None:
    def counter(text: str) -> int:
        raise KeyError(text)

    session = sessionify(
        dspy.Predict("question -> answer"), token_counter=counter, summarize_after_tokens=1
    )
    session.add_turn({"question": "q"}, {"answer": "a"})
    before = session.state
    with pytest.raises(KeyError), dspy.context(lm=scripted_lm()):
        session(question="And?")
    assert session.state is before
    assert session.attempts == ()
