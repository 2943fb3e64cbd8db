"""What a call sees of the past: windows, filters, policies; and the exact snapshot of it."""

import asyncio
import gc
import pickle
import weakref
from collections.abc import Iterator
from typing import Any

import dspy
import pytest

from dspy_session import OptionError, Session, Turn, sessionify
from dspy_session.core import Exchange
from dspy_session.testing import ScriptedLM
from tests.talk import (
    ask,
    history,
    pairs,
    past,
    qa_session,
    questions,
    refused,
    scripted,
    shown,
)


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := scripted())):
        yield lm


class Rag(dspy.Signature):
    """Answer the question from the context."""

    question: str = dspy.InputField()
    context: str = dspy.InputField()
    answer: str = dspy.OutputField()
    source: str = dspy.OutputField()


def rag_session(**keywords: Any) -> Session:
    session = sessionify(dspy.Predict(Rag), **keywords)
    for number in range(2):
        session(question=f"q{number}", context=f"c{number}")
    return session


# D7: windows


def test_D7_max_turns_is_a_sliding_window_over_turns(lm: ScriptedLM) -> None:
    session = qa_session(max_turns=2, initial_history=history("seed"))
    ask(session, "one", "two", "three", "four")
    assert past(lm.prompts[-1]) == pairs("seed", "two", "three")
    assert shown(session) == pairs("seed", "three", "four")
    assert questions(session) == ["one", "two", "three", "four"]


def test_D7_max_turns_0_shows_the_seed_only(lm: ScriptedLM) -> None:
    session = qa_session(max_turns=0, initial_history=history("seed"))
    ask(session, "one", "two")
    assert past(lm.prompts[-1]) == pairs("seed")
    bare = qa_session(max_turns=0)
    ask(bare, "one", "two")
    assert past(lm.prompts[-1]) == []
    assert len(bare) == 2


def test_D7_what_max_stored_turns_trims_leaves_the_prompt(lm: ScriptedLM) -> None:
    session = qa_session(max_stored_turns=3, initial_history=history("seed"))
    ask(session, *map(str, range(10)))
    assert [turn.index for turn in session.turns] == [7, 8, 9]
    assert len(session) == 3
    ask(session, "last")
    assert past(lm.prompts[-1]) == pairs("seed", "7", "8", "9")
    assert session.turns[-1].index == 10


def test_D7_storing_no_turn_at_all() -> None:
    seen: list[int] = []
    session = qa_session(max_stored_turns=0, on_turn=lambda s, turn: seen.append(turn.index))
    ask(session, "one", "two")
    assert (session.turns, seen, shown(session)) == ((), [0, 1], [])


def test_D7_what_max_stored_turns_trims_leaves_the_memory() -> None:
    class Counts(dspy.Module):
        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer=question)

    turns: list[weakref.ref[Turn]] = []
    exchanges: list[weakref.ref[Exchange]] = []

    def watch(session: Session, turn: Turn) -> None:
        turns.append(weakref.ref(turn))
        exchanges.append(weakref.ref(turn.exchange))

    session = sessionify(Counts(), max_stored_turns=3, on_turn=watch)
    for number in range(10_000):
        session(question=str(number))
    gc.collect()
    assert len(turns) == 10_000
    assert [n for n, turn in enumerate(turns) if turn() is not None] == [9_997, 9_998, 9_999]
    # Beside its own three, the snapshots of three turns show the three before each.
    assert sum(exchange() is not None for exchange in exchanges) == 6


def test_D7_trimming_by_hand_added_turns_too() -> None:
    session = qa_session(max_stored_turns=2)
    watched = []
    for number in range(1_000):
        watched.append(
            weakref.ref(session.add_turn({"question": f"{number}"}, {"answer": ""})),
        )
    gc.collect()
    assert sum(turn() is not None for turn in watched) == 2


# D7: filters


def fields_shown(session: Session) -> list[list[str]]:
    return [list(message) for message in session.session_history.messages]


def test_D7_exclude_fields_works_on_inputs_and_outputs_seed_included(lm: ScriptedLM) -> None:
    seed = [{"question": "q", "context": "c", "answer": "a", "source": "s"}]
    session = rag_session(
        exclude_fields={"context", "source"}, initial_history=dspy.History(messages=seed)
    )
    assert fields_shown(session) == [["question", "answer"]] * 3
    earlier = "\n".join(message["content"] for message in lm.prompts[-1][1:-1])
    assert "q0" in earlier
    assert "c0" not in earlier
    assert "source to" not in earlier
    assert list(session.turns[0].inputs) == ["question", "context"]
    assert list(session.turns[0].outputs) == ["answer", "source"]
    assert "c1" in lm.prompts[-1][-1]["content"]


def test_D7_history_input_fields_works_on_inputs_only(lm: ScriptedLM) -> None:
    session = rag_session(history_input_fields=["question"])
    assert fields_shown(session) == [["question", "answer", "source"]] * 2
    assert "c0" not in "\n".join(message["content"] for message in lm.prompts[-1][1:-1])
    assert list(session.turns[0].inputs) == ["question", "context"]


def test_D7_input_field_override_is_an_alias() -> None:
    session = rag_session(input_field_override={"question"})
    assert session.options.history_input_fields == {"question"}
    assert fields_shown(session) == [["question", "answer", "source"]] * 2
    with refused(None, OptionError, "input_field_override", "history_input_fields", "one of the"):
        rag_session(input_field_override={"question"}, history_input_fields={"question"})


def test_D7_both_filters_together() -> None:
    session = rag_session(history_input_fields={"question", "context"}, exclude_fields={"context"})
    assert fields_shown(session) == [["question", "answer", "source"]] * 2


# D17: an explicit history


def test_D17_override_replays_and_records_nothing(lm: ScriptedLM) -> None:
    session = qa_session(on_turn=lambda s, turn: seen.append(turn), max_turns=1)
    seen: list[Turn] = []
    ask(session, "one")
    before = session.state
    prediction = session(question="two", history=history("a", "b"))
    assert prediction.answer == "answer to two"
    assert past(lm.prompts[-1]) == pairs("a", "b")  # as given, not windowed
    asyncio.run(session.acall(question="two", history=history("c")))
    assert past(lm.prompts[-1]) == pairs("c")
    assert session.state is before
    assert len(seen) == 1
    ask(session, "three")
    assert past(lm.prompts[-1]) == pairs("one")


def test_D17_use_if_provided_is_for_that_call_only(lm: ScriptedLM) -> None:
    session = qa_session(history_policy="use_if_provided")
    ask(session, "one")
    session(question="two", history=history("given"))
    assert past(lm.prompts[-1]) == pairs("given")
    assert session.turns[1].history_snapshot == history("given")
    ask(session, "three")
    assert past(lm.prompts[-1]) == pairs("one", "two")
    assert [turn.index for turn in session.turns] == [0, 1, 2]


def test_D17_replace_session_begins_anew(lm: ScriptedLM) -> None:
    session = qa_session(
        history_policy="replace_session", initial_history=history("old seed"), max_turns=1
    )
    ask(session, "one", "two")
    identity = session.session_id
    session(question="three", history=history("a", "b"))
    assert past(lm.prompts[-1]) == pairs("a", "b")
    assert [(turn.index, turn.inputs["question"]) for turn in session.turns] == [(0, "three")]
    assert session.session_id == identity
    ask(session, "four", "five")
    assert past(lm.prompts[-1]) == pairs("a", "b", "four")
    session.reset()
    assert shown(session) == pairs("a", "b")


def test_D17_replace_session_is_atomic() -> None:
    session = qa_session(history_policy="replace_session", initial_history=history("seed"))
    ask(session, "one", "two")
    before = session.state
    with pytest.raises(Exception, match="the model is out"):
        session(question="fail", history=history("new"))
    assert session.state is before
    session.reset()
    assert shown(session) == pairs("seed")


def test_D17_without_a_history_all_policies_are_the_same(lm: ScriptedLM) -> None:
    for policy in ("override", "use_if_provided", "replace_session"):
        session = qa_session(history_policy=policy)
        ask(session, "one", "two")
        assert past(lm.prompts[-1]) == pairs("one")
        assert len(session) == 2


def test_D17_an_empty_history_is_one_that_was_given(lm: ScriptedLM) -> None:
    session = qa_session()
    ask(session, "one")
    session(question="two", history=dspy.History(messages=[]))
    assert past(lm.prompts[-1]) == []
    assert len(session) == 1


# X3: exact snapshots in constant memory


def test_X3_a_snapshot_is_what_the_call_saw_whatever_happens_later(lm: ScriptedLM) -> None:
    seed_messages = history("seed").messages
    seed = dspy.History(messages=seed_messages)
    session = qa_session(initial_history=seed, max_turns=3, history_policy="use_if_provided")
    ask(session, "one", "two", "three", "four")
    given = history("given")
    session(question="five", history=given)
    ask(session, "six")
    turns = list(session.turns)
    saw = [
        pairs("seed"),
        pairs("seed", "one"),
        pairs("seed", "one", "two"),
        pairs("seed", "one", "two", "three"),
        pairs("given"),
        pairs("seed", "three", "four", "five"),
    ]

    def exact() -> None:
        for turn, prompt, expected in zip(turns, lm.prompts, saw, strict=False):
            messages = turn.history_snapshot.messages
            assert [(m["question"], m["answer"]) for m in messages] == expected == past(prompt)

    exact()
    seed_messages.append({"question": "late", "answer": "late"})
    seed.messages[0]["answer"] = "changed"
    given.messages[0]["answer"] = "changed"
    given.messages.clear()
    exact()
    session.options = session.options.replace(
        max_turns=1, max_stored_turns=4, exclude_fields={"answer"}
    )
    exact()
    session.replace_turn(3, {"answer": "edited"})
    session.undo(2)
    session.redo(1)
    ask(session, "another path")
    exact()
    session.reset()
    session(question="seven", history=history("new seed"))
    exact()


def test_X3_a_snapshot_shows_the_fields_that_were_shown() -> None:
    session = rag_session(exclude_fields={"context"})
    session.options = session.options.replace(exclude_fields={"answer", "source"})
    session(question="q2", context="c2")
    first, second = (turn.history_snapshot.messages for turn in session.turns[1:])
    assert [list(message) for message in first] == [["question", "answer", "source"]]
    assert [list(message) for message in second] == [["question", "context"]] * 2


def test_X3_snapshots_take_constant_memory_per_turn() -> None:
    def exchanges() -> int:
        gc.collect()
        return sum(type(item) is Exchange for item in gc.get_objects())

    def pickled(count: int) -> int:
        session = qa_session()
        for number in range(count):
            session.add_turn({"question": f"{number:06}"}, {"answer": "a" * 50})
        return len(pickle.dumps(session.state))

    before, session = exchanges(), qa_session()
    for number in range(300):
        session.add_turn({"question": f"{number}"}, {"answer": ""})
    assert exchanges() - before == 300
    assert sum(len(turn.window) for turn in session.turns) == 300 * 299 / 2
    assert exchanges() - before == 300
    assert pickled(400) < 2.1 * pickled(200)
