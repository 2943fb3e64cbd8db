"""Session data, metadata and identity, as a session has them (X1, A1, A8 to A10, C4, C5)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dspy
import pytest

from dspy_session import (
    CallError,
    DataError,
    DataKeyError,
    FormatError,
    MessageError,
    OptionError,
    Session,
    SessionData,
    SessionState,
    current_data,
    sessionify,
)
from dspy_session.core import Data
from dspy_session.testing import ScriptedLM
from tests.streams import SOON
from tests.talk import QA, ask, qa_session, questions, refused, scripted


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := scripted())):
        yield lm


class Shop(dspy.Module):
    """Puts into the cart what it is asked for; the question "fail" fails after that."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(QA)

    def forward(self, question: str) -> Any:
        data = current_data()
        data["cart"] = [*data.get("cart", []), question]
        return self.qa(question=question)


@contextmanager
def failing(session: Session) -> Iterator[None]:
    """Expects that the model fails, and that nothing has changed then."""
    before = session.state
    with pytest.raises(Exception, match="the model is out"):
        yield
    assert session.state is before


def shop(**keywords: Any) -> Session:
    return sessionify(Shop(), **keywords)


# X1: data goes where the conversation goes


def test_X1_undo_brings_the_cart_back() -> None:
    session = shop()
    ask(session, "tea", "milk")
    assert session.data["cart"] == ["tea", "milk"]
    session.undo()
    assert session.data["cart"] == ["tea"]
    session.undo()
    assert session.data.is_empty
    session.redo(2)
    assert session.data["cart"] == ["tea", "milk"]
    assert [turn.data["cart"] for turn in session.turns] == [["tea"], ["tea", "milk"]]
    assert [turn.data_before.get("cart") for turn in session.turns] == [None, ["tea"]]


def test_X1_a_fork_has_a_cart_of_its_own() -> None:
    session = shop()
    ask(session, "tea")
    branch, earlier = session.fork(), session.fork(at=0)
    ask(branch, "milk")
    assert (session.data["cart"], branch.data["cart"]) == (["tea"], ["tea", "milk"])
    assert earlier.data.is_empty
    branch.data["cart"] = []
    assert session.data["cart"] == ["tea"]


def test_X1_rewinding_and_another_answer_go_back_to_what_was_there() -> None:
    session = shop(data={"user": "ada"})
    session.data["step"] = 1
    ask(session, "tea")
    session.data["step"] = 2
    ask(session, "milk")
    session.regenerate()  # begins where the turn began: with what was written before it
    assert session.data.to_dict() == {"user": "ada", "step": 2, "cart": ["tea", "milk"]}
    session.rewind(to=1)
    assert session.data.to_dict() == {"user": "ada", "step": 1, "cart": ["tea"]}
    session.redo()
    session.redo()
    assert session.data["step"] == 2
    session.regenerate(0)
    assert session.data.to_dict() == {"user": "ada", "step": 1, "cart": ["tea"]}


def test_X1_what_is_written_between_two_turns_belongs_to_the_later() -> None:
    session = shop()
    ask(session, "tea")
    session.data["coupon"] = "A1"
    assert session.turns[0].data.get("coupon") is None
    ask(session, "milk")
    assert session.turns[1].data_before["coupon"] == "A1"
    session.undo()
    assert not session.data.has("coupon")
    session.redo()
    assert session.data["coupon"] == "A1"


def test_X1_undo_hides_a_write_at_the_end_and_redo_brings_it_back() -> None:
    session = shop()
    ask(session, "tea")
    session.data["coupon"] = "A1"
    before = session.state
    session.undo()
    session.redo()
    assert session.state == before
    session.undo()
    session.data["coupon"] = "B2"  # another path: nothing can be redone from here
    assert session.redo() == ()
    assert session.data.to_dict() == {"coupon": "B2"}


def test_X1_a_write_after_an_undo_ends_the_other_answers_too() -> None:
    session = shop()
    ask(session, "tea")
    session.regenerate()
    session.data["coupon"] = "A1"
    before = session.state
    session.redo()  # round the answers
    session.redo()
    assert session.state == before
    session.undo()
    session.data["coupon"] = "B2"
    assert session.redo() == ()
    assert session.data.to_dict() == {"coupon": "B2"}


def test_X1_a_turn_that_fails_leaves_the_data_as_it_was() -> None:
    session = shop(data={"cart": ["tea"]})
    with failing(session):
        session(question="fail")
    assert session.data["cart"] == ["tea"]
    ask(session, "milk")
    assert session.data["cart"] == ["tea", "milk"]


def test_X1_the_data_of_the_session_within_its_own_turn_is_that_of_the_turn() -> None:
    seen: list[tuple[Any, Any]] = []

    class Looks(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            session.data["asked"] = question
            session.data = {**session.data, "more": True}
            seen.append((session.state.data.get("asked"), session.data["asked"]))
            return self.qa(question=question)

    session = sessionify(Looks(), copy_mode="none")
    ask(session, "one")
    with failing(session):
        session(question="fail")
    assert seen == [(None, "one"), ("one", "fail")]
    assert session.data.to_dict() == {"asked": "one", "more": True}


def test_X1_what_a_nested_session_was_told_is_what_it_was_told_where_turns_overlap() -> None:
    """Its moves are made again on top of those of the other turn, whatever became of the values."""

    class Tells(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = qa_session()

        def forward(self, question: str) -> Any:
            words = [question]
            told: dict[str, Any] = {question: words}
            self.inner.data.update(told)
            self.inner.update_metadata(told)
            self.inner.add_turn(told, told)
            words.append("changed")
            told["new"] = 1
            if question == "slow":  # the other turn runs as a whole within this one
                other = threading.Thread(target=session, kwargs={"question": "quick"})
                other.start()
                other.join(SOON)
            return question

    session = sessionify(Tells(), copy_mode="none")
    session(question="slow")
    inner = session.state.nested["inner"]
    assert inner.data == inner.metadata == {"quick": ["quick"], "slow": ["slow"]}
    both = [{"quick": ["quick"]}, {"slow": ["slow"]}]
    assert [turn.inputs for turn in inner] == [turn.outputs for turn in inner] == both


def test_X1_saved_and_loaded_data_is_the_same(tmp_path: Any) -> None:
    session = shop(data={"user": "ada"}, metadata={"channel": "web"}, instructions="Be brief.")
    ask(session, "tea", "milk")
    session.data["coupon"] = {"code": "A1", "off": 0.5}
    session.undo()
    session.redo()
    session.save(path := tmp_path / "s.json")
    loaded = Session.load_from(path, Shop())
    assert loaded.state == session.state
    assert not loaded.data.is_modified
    loaded.undo()
    assert loaded.data.to_dict() == {"user": "ada", "cart": ["tea"]}
    loaded.redo()
    assert loaded.data["coupon"] == {"code": "A1", "off": 0.5}
    loaded.reset()
    assert loaded.data.to_dict() == {"user": "ada"}
    assert (loaded.metadata.to_dict(), loaded.instructions) == (
        {"channel": "web"},
        session.instructions,
    )


# The face of it


def test_K1_the_data_of_a_session_is_like_a_dict() -> None:
    session = qa_session()
    data = session.data
    assert (data.is_empty, data.is_modified, len(data)) == (True, False, 0)
    data.update({"user": "ada", "step": 1})
    data["step"] = data["step"] + 1
    assert "user" in session.data
    assert list(session.data.items()) == [("user", "ada"), ("step", 2)]
    data.delete("user")
    data.delete("user")
    with refused(session, DataKeyError):
        data["user"]
    with refused(session, DataKeyError):
        del data["user"]
    assert (session.data.to_dict(), data.is_modified) == ({"step": 2}, True)
    session.data.clear()
    assert (data.is_empty, data.is_modified) == (True, False)
    session.data = {"whole": True}
    assert data.to_dict() == {"whole": True}


def test_K1_a_value_changed_in_place_changes_nothing() -> None:
    session = qa_session(data={"cart": []})
    session.data["cart"].append("tea")
    session.data.to_dict()["cart"].append("tea")
    session.state.data["cart"].append("tea")
    assert session.data["cart"] == []


@pytest.mark.parametrize(
    "value", [{1, 2}, b"x", float("nan"), object(), lambda: 1, {1: 1}, [[]] * 3 + [{"a": {2}}]]
)
def test_K8_what_json_cannot_hold_is_refused_by_key_and_type(value: Any) -> None:
    session = qa_session(data={"cart": []})
    with refused(session, DataError, "'bad'"):
        session.data["bad"] = value
    with refused(session, DataError, "'bad'"):
        session.data.update({"good": 1, "bad": value})
    with refused(session, DataError, "'bad'"):
        session.data = {"bad": value}
    with refused(session, DataError, "'bad'"):
        session.using(data={"bad": value})
    with pytest.raises(DataError, match="'bad'"):
        qa_session(data={"bad": value})


@pytest.mark.parametrize("given", [None, "tea", ["tea"], 3])
def test_K8_what_is_no_mapping_replaces_nothing(given: Any) -> None:
    session = qa_session(data={"cart": []})
    with refused(session, DataError, "a mapping from keys to values"):
        session.data = given


def test_K8_data_that_is_too_large_is_refused() -> None:
    session = qa_session(max_data_bytes=60)
    with refused(session, DataError, "60 bytes"):
        session.data["text"] = "x" * 100
    with pytest.raises(DataError, match="60 bytes"):
        qa_session(max_data_bytes=60, data={"text": "x" * 100})
    session.options = session.options.replace(max_data_bytes=None)
    session.data["text"] = "x" * 1000


def test_K4_data_comes_in_with_a_call_and_out_with_its_state() -> None:
    session = shop(data={"old": 1})
    session.using(data={"user": "ada"})(question="tea")
    assert session.data.to_dict() == {"user": "ada", "cart": ["tea"]}
    assert session.turns[0].data_before.to_dict() == {"user": "ada"}
    session.using(data=SessionData({"user": "eve"}))(question="milk")
    assert session.state.data.to_dict() == {"user": "eve", "cart": ["milk"]}
    with failing(session):
        session.using(data={"user": "bob"})(question="fail")
    session.undo()
    assert session.data["user"] == "ada"


def test_K4_frozen_sessions_keep_nothing_of_what_a_call_writes() -> None:
    frozen = shop(data={"cart": ["tea"]}).frozen()
    ask(frozen, "milk")
    assert frozen.data["cart"] == ["tea"]


# A1, A9, A10: identity


def test_A1_an_id_is_given_or_made() -> None:
    assert qa_session(session_id="user-1").session_id == "user-1"
    one, other = qa_session(), qa_session()
    assert one.session_id
    assert one.session_id != other.session_id


@pytest.mark.parametrize("id", ["", "x" * 201, "a\nb", "a\0", "\x7f", "\ud800", 5, b"a"])
def test_A1_a_bad_id_is_refused(id: Any) -> None:
    session = qa_session()
    with pytest.raises(OptionError, match="session id"):
        qa_session(session_id=id)
    with refused(session, OptionError, "session id"):
        session.fork(session_id=id)
    with pytest.raises(OptionError, match="session id"):
        Session.from_state(SessionState(), dspy.Predict(QA), session_id=id)


def test_A9_a_fork_has_the_id_that_it_is_given() -> None:
    session = qa_session(session_id="plan")
    ask(session, "one")
    branch = session.fork(session_id="alternative plan")
    assert (branch.session_id, session.session_id) == ("alternative plan", "plan")
    assert questions(branch) == ["one"]


def test_A10_a_session_becomes_a_dict_and_a_session_again() -> None:
    session = shop(session_id="s", data={"user": "ada"}, metadata={"a": 1})
    ask(session, "tea")
    given = json.loads(json.dumps(session.to_dict()))
    restored = Session.from_dict(given, Shop())
    assert restored.state == session.state
    assert restored.options == session.options
    ask(restored, "milk")
    assert restored.data["cart"] == ["tea", "milk"]
    wrong: Any
    for wrong in ({}, {"kind": "dspy-session"}, {"turns": 5}, [], "x", None):
        with pytest.raises(FormatError):
            Session.from_dict(wrong, Shop())


def test_A10_keywords_stand_in_for_what_was_saved() -> None:
    session = qa_session(session_id="s", data={"a": 1}, metadata={"b": 1}, instructions="Old.")
    given = session.to_dict()
    restored = Session.from_dict(
        given,
        dspy.Predict(QA),
        session_id="t",
        data={"c": 1},
        metadata={"d": 1},
        instructions="New.",
        max_turns=3,
    )
    assert (restored.session_id, restored.options.max_turns) == ("t", 3)
    assert (restored.data.to_dict(), restored.metadata.to_dict()) == ({"c": 1}, {"b": 1, "d": 1})
    assert restored.state.instructions is not None
    assert restored.state.instructions.text == "New."
    for name in ("initial_history", "messages"):
        said: Any = dspy.History(messages=[]) if name == "initial_history" else []
        with pytest.raises(CallError, match=name):
            Session.from_state(session.state, dspy.Predict(QA), **{name: said})


# K9: what stays private


def test_K9_private_keys_and_redacted_fields_are_in_nothing_that_is_handed_on() -> None:
    session = shop(
        data={"token": "hush-1", "user": "ada"},
        private_data={"token"},
        redact_fields={"answer"},
        initial_history=dspy.History(messages=[{"question": "seed", "answer": "hush-2"}]),
    )
    ask(session, "tea")
    session.add_turn({"question": "q"}, {"answer": "hush-3"})
    session.data["token"] = "hush-4"
    session.regenerate(0)
    session.redo(2)  # the paths of both answers are kept, and one of them is ahead
    handed = [
        json.dumps(session.to_dict()),
        json.dumps(session.to_messages()),
        repr(session.messages),
        repr(session.to_examples()),
    ]
    assert not any("hush" in text for text in handed)
    assert '"ada"' in handed[0]
    assert session.data["token"] == "hush-4"  # it is there for tools
    restored = Session.from_dict(session.to_dict(), Shop())
    assert restored.data.to_dict() == {"user": "ada", "cart": ["tea"]}
    assert len(restored) == len(session)
    assert "hush-4" in json.dumps(session.save_state())  # what saves a session saves it whole


def test_K9_redacted_fields_are_in_no_prompt(lm: ScriptedLM) -> None:
    session = qa_session(redact_fields={"answer"})
    session.add_turn({"question": "one"}, {"answer": "hush"})
    ask(session, "two")
    assert "hush" not in str(lm.prompts[-1])
    assert "one" in str(lm.prompts[-1])


def test_K9_instructions_of_the_state_do_not_see_private_data(lm: ScriptedLM) -> None:
    def words(state: SessionState) -> str:
        return f"The data is {state.data.to_dict()}."

    session = qa_session(
        instructions=words, data={"token": "hush", "user": "ada"}, private_data=["token"]
    )
    ask(session, "one")
    system = lm.prompts[-1][0]["content"]
    assert "The data is {'user': 'ada'}." in system


def test_K9_instructions_of_the_state_see_no_private_past(lm: ScriptedLM) -> None:
    def words(state: SessionState) -> str:
        data = [state.profile.start, *(turn.data for turn in state), *map(_data, state.earlier)]
        return f"It was {data}, {state.turns}, {[seed.outputs for seed in state.seed]}."

    session = qa_session(
        instructions=words,
        data={"token": "hush", "user": "ada"},
        private_data=["token"],
        redact_fields=["answer"],
        initial_history=dspy.History(messages=[{"question": "old", "answer": "hush"}]),
        summarizer=_Summarizer(),
    )
    session.add_turn({"question": "zero"}, {"answer": "hush"})
    ask(session, "one")
    session.summarize(keep=1)
    ask(session, "two")
    for prompt in lm.prompts:
        assert "It was [Data({'user': 'ada'})" in prompt[0]["content"]
        assert "hush" not in json.dumps(prompt)
    assert session.state.earlier[0].data["token"] == "hush"


def _data(state: SessionState) -> Data:
    return state.data


class _Summarizer(dspy.Module):
    def forward(self, conversation: str) -> Any:
        return dspy.Prediction(summary="Little.")


# A8, C4, C5: clear, truncate, metadata


def test_A8_clear_forgets_what_was_said_and_keeps_the_data(lm: ScriptedLM) -> None:
    session = shop(initial_history=dspy.History(messages=[{"question": "s", "answer": "t"}]))
    ask(session, "tea")
    session.update_metadata({"topic": "tea"})
    session.clear()
    assert (len(session), session.messages, session.state.seed) == (0, (), ())
    assert session.data["cart"] == ["tea"]
    assert session.metadata["topic"] == "tea"
    ask(session, "milk")
    assert len(lm.prompts[-1]) == 2
    session.reset()
    assert session.data.is_empty


def test_A3_an_empty_conversation_is_none() -> None:
    messages: Any
    for messages in ([], iter(())):
        with pytest.raises(MessageError, match="no message"):
            qa_session(messages=messages)
    with pytest.raises(MessageError, match="no chat messages"):
        SessionState.from_messages([])


def test_C4_truncate_keeps_the_newest(lm: ScriptedLM) -> None:
    session = shop()
    ask(session, "a", "b", "c")
    session.truncate(keep=2)
    assert questions(session) == ["b", "c"]
    assert [turn.index for turn in session.turns] == [1, 2]
    assert session.data["cart"] == ["a", "b", "c"]
    session.truncate(keep=0)
    assert (len(session), session.data["cart"]) == (0, ["a", "b", "c"])
    with refused(session, OptionError):
        session.truncate(keep=-1)


def test_C5_metadata_is_merged_and_not_undone() -> None:
    session = qa_session(metadata={"topic": "python", "tags": ["a"]})
    ask(session, "one")
    session.update_metadata({"tags": ["b"], "model": "m"})
    session.undo()
    assert session.metadata.to_dict() == {"topic": "python", "tags": ["b"], "model": "m"}
    assert isinstance(session.metadata, Data)
    branch = session.fork()
    branch.update_metadata({"topic": "rust"})
    assert session.metadata["topic"] == "python"
    session.reset()
    assert session.metadata["topic"] == "python"
    for wrong in ({"when": object()}, ["x"], None):
        with refused(session, DataError):
            session.update_metadata(wrong)  # type: ignore[arg-type]
