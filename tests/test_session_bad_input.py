"""Every wrong call is one clear error of our family, and the conversation is as it was."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import (
    CallError,
    HistoryError,
    LockError,
    MetricError,
    ModuleTypeError,
    OptionError,
    Session,
    SessionError,
    SessionState,
    TurnIndexError,
    ValueCodecError,
    sessionify,
)
from dspy_session.testing import ScriptedLM
from tests.talk import QA, ask, history, qa_session, refused, scripted


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := scripted())):
        yield lm


@pytest.fixture
def session() -> Session:
    """A conversation with a past, and with something to redo."""
    session = qa_session(initial_history=history("seed"))
    ask(session, "one", "two", "three")
    session.undo(1)
    return session


def test_D1_the_errors_are_what_users_would_catch() -> None:
    for error, builtin in (
        (OptionError, ValueError),
        (CallError, TypeError),
        (HistoryError, TypeError),
        (ModuleTypeError, TypeError),
        (TurnIndexError, IndexError),
        (LockError, RuntimeError),
        (MetricError, RuntimeError),
        (ValueCodecError, TypeError),
    ):
        assert issubclass(error, SessionError)
        assert issubclass(error, builtin)


# Making a session


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"max_turn": 3}, ("'max_turn'", "Did you mean 'max_turns'", "max_stored_turns")),
        ({"nonsense": 3}, ("'nonsense'", "The options are: history_field")),
        ({"history_policy": "overide"}, ("history_policy", "'override'", "'overide'")),
        ({"lock": "async_"}, ("lock", "'none', 'thread', 'async'", "'async_'")),
        ({"lock": True}, ("lock", "True")),
        ({"copy_mode": "copy"}, ("copy_mode", "'deep', 'shallow', 'none'", "'copy'")),
        ({"on_metric_error": None}, ("on_metric_error", "'zero', 'raise'", "None")),
        ({"max_turns": -1}, ("max_turns", "from 0 up", "-1")),
        ({"max_turns": 2.0}, ("max_turns", "whole number", "2.0")),
        ({"max_turns": True}, ("max_turns", "True")),
        ({"max_stored_turns": "3"}, ("max_stored_turns", "'3'")),
        ({"exclude_fields": "context"}, ("exclude_fields", "collection", "'context'")),
        ({"exclude_fields": [1]}, ("exclude_fields", "text", "1")),
        ({"history_input_fields": 3}, ("history_input_fields", "collection", "3")),
        ({"history_field": "my history"}, ("history_field", "identifier", "'my history'")),
        ({"history_field": ""}, ("history_field", "''")),
        ({"history_field": None}, ("history_field", "None")),
        ({"strict_history_annotation": "yes"}, ("strict_history_annotation", "'yes'")),
        ({"on_turn": "print"}, ("on_turn", "callable", "str")),
    ],
)
def test_D22_an_option_that_cannot_be(keywords: dict[str, Any], words: tuple[str, ...]) -> None:
    program = dspy.Predict(QA)
    before = dict(vars(program))
    for make in (sessionify, Session):
        with refused(None, OptionError, *words):
            make(program, **keywords)
    with refused(None, OptionError, *words):
        Session.from_state(SessionState(), program, **keywords)
    assert vars(program) == before


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (dspy.Predict, ("Predict is the class", "Predict(...)")),
        (len, ("builtin_function", "forward")),
        ("question -> answer", ("str",)),
        (None, ("NoneType",)),
        (QA, ("dspy.Module",)),
    ],
)
def test_D1_a_module_that_is_none(module: Any, words: tuple[str, ...], session: Session) -> None:
    state = session.save_state()
    calls: list[Callable[[Any], Any]] = [
        sessionify,
        Session,
        lambda program: Session.from_state(session.state, program),
        lambda program: Session.load_from(state, program),
        session.update_module,
    ]
    for make in calls:
        with refused(session, ModuleTypeError, "instance of dspy.Module", *words):
            make(module)


def test_D12_file_and_program_the_wrong_way_round(tmp_path: Path, session: Session) -> None:
    session.save(tmp_path / "talk.json")
    with refused(session, ModuleTypeError, "instance of dspy.Module", "Path"):
        Session.load_from(session.module, tmp_path / "talk.json")  # type: ignore[arg-type]


def test_D1_a_session_of_a_session(session: Session) -> None:
    with refused(session, CallError, "Session already", "fork"):
        sessionify(session)


@pytest.mark.parametrize("seed", [[], {"messages": []}, "Hi", 3])
def test_D8_a_seed_that_is_no_history(seed: Any, session: Session) -> None:
    calls: list[Callable[[], Session]] = [
        lambda: sessionify(dspy.Predict(QA), initial_history=seed),
        lambda: Session.load_from(session.save_state(), dspy.Predict(QA), initial_history=seed),
    ]
    for call in calls:
        with refused(session, HistoryError, "initial_history", type(seed).__name__, "messages="):
            call()


def test_D23_a_state_that_is_none(session: Session) -> None:
    with refused(session, CallError, "SessionState", "dict"):
        Session.from_state({}, dspy.Predict(QA))  # type: ignore[arg-type]
    with refused(session, CallError, "initial_history", "part of the state"):
        Session.from_state(session.state, dspy.Predict(QA), initial_history=history("x"))


# Calling it


def calls(session: Session) -> list[Callable[..., Any]]:
    return [
        session,
        session.forward,
        lambda *args, **kwargs: asyncio.run(session.acall(*args, **kwargs)),
        lambda *args, **kwargs: asyncio.run(session.aforward(*args, **kwargs)),
    ]


def test_D1_positional_arguments(session: Session) -> None:
    for call in calls(session):
        with refused(session, CallError, "session(question=...)", "1 positional"):
            call("Hi")
        with refused(session, CallError, "2 positional"):
            call("Hi", 3, question="Hi")


@pytest.mark.parametrize("given", [None, [], {"messages": []}, "Hi", history])
def test_D17_a_history_that_is_none(given: Any, session: Session) -> None:
    for policy in ("override", "use_if_provided", "replace_session"):
        session.options = session.options.replace(history_policy=policy)
        for call in calls(session):
            with refused(
                session, HistoryError, "history=", "dspy.History", type(given).__name__, "messages="
            ):
                call(question="Hi", history=given)


def test_D22_an_input_named_like_the_history_field() -> None:
    class Archive(dspy.Module):
        def forward(self, history: str) -> Any:
            return history.upper()

    session = sessionify(Archive())
    with refused(session, HistoryError, "history=", "str", 'history_field="..."'):
        session(history="the history of Rome")
    other = sessionify(Archive(), history_field="past")
    assert other(history="Rome") == other(history="Rome") == "ROME"
    assert other.turns[1].inputs == {"history": "Rome"}
    assert len(other.turns[1].history_snapshot.messages) == 1
    with refused(other, HistoryError, "'past'", "another history_field"):
        other.add_turn({"past": "Rome"}, {})


def test_D22_an_output_named_like_the_history_field_is_not_recorded() -> None:
    class Returns(dspy.Module):
        def forward(self, question: str) -> Any:
            return dspy.Prediction(answer="a", history=history("x"))

    session = sessionify(Returns())
    assert session(question="one").history == history("x")
    assert session.turns[0].outputs == {"answer": "a"}


def test_A14_settings_of_a_call_that_are_none(session: Session) -> None:
    for call in calls(session):
        with refused(session, CallError, "config=", "dict", "float"):
            call(question="Hi", config=0.5)


# Editing it


@pytest.mark.parametrize(
    ("inputs", "outputs", "error", "words"),
    [
        (None, {}, CallError, ("inputs", "mapping", "NoneType")),
        ({}, "answer", CallError, ("outputs", "mapping", "str")),
        ({}, dspy.Prediction(answer=""), CallError, ("outputs", "mapping", "Prediction")),
        ({1: "x"}, {}, CallError, ("inputs", "1", "int")),
        ({}, {2: "x"}, CallError, ("outputs", "2", "int")),
        ({"history": "x"}, {}, HistoryError, ("input", "'history'", "another history_field")),
        ({}, {"history": "x"}, HistoryError, ("output", "'history'", "another history_field")),
    ],
)
def test_D14_turns_that_cannot_be(
    inputs: Any, outputs: Any, error: type[SessionError], words: tuple[str, ...], session: Session
) -> None:
    with refused(session, error, *words):
        session.add_turn(inputs, outputs)
    if inputs == {}:
        with refused(session, error, *words):
            session.replace_turn(0, outputs)


def test_D14_the_quiet_ones() -> None:
    session = qa_session()
    before = session.state
    assert (session.pop_turn(), session.undo(3), session.redo(3)) == (None, (), ())
    assert (session.to_examples(), session.score(lambda e, p: 1)) == ([], [])
    assert session.state is before or session.state == before


# Saving what cannot be saved


class Telescope:
    """A type without written form."""


def test_D12_a_value_of_unknown_type_is_welcome_until_it_is_written(
    tmp_path: Path, lm: ScriptedLM
) -> None:
    class Points(dspy.Module):
        def forward(self, at: Any) -> dspy.Prediction:
            return dspy.Prediction(seen={"by": [Telescope()]})

    session = sessionify(Points())
    session(at="the moon")
    session(at=threading.Lock())
    assert isinstance(session.turns[0].outputs["seen"]["by"][0], Telescope)
    path = tmp_path / "talk.json"
    for save in (lambda: session.save(path), session.save_state):
        with refused(
            session,
            ValueCodecError,
            "turn 0",
            "'seen'",
            "Telescope",
            "register_value_codec",
            "leave the field out",
        ):
            save()
    assert list(tmp_path.iterdir()) == []
    session.replace_turn(0, {"seen": "craters"})
    with refused(session, ValueCodecError, "turn 1", "input 'at'", "lock"):
        session.save(path)
    session.undo(1)
    with refused(session, ValueCodecError, "turn 1", "input 'at'", "lock"):
        session.save(path)  # it can be redone, so it is saved too
    assert len(session) == 1


def test_D12_a_seed_of_unknown_type() -> None:
    seed = dspy.History(messages=[{"question": "Hi"}, {"question": Telescope()}])
    session = sessionify(dspy.Predict(QA), initial_history=seed)
    with refused(session, ValueCodecError, "message 1 of a seed", "'question'", "Telescope"):
        session.save_state()


def test_D12_save_state_holds_no_callable() -> None:
    session = qa_session(on_turn=lambda s, turn: None, on_metric_error="raise", lock="async")
    session.add_turn({"question": "one"}, {"answer": "a"})
    text = json.dumps(session.save_state())
    assert "lambda" not in text
    assert "on_turn" not in text
