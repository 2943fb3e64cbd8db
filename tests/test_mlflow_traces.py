"""X16: MLflow's traces say whose they are, and carry the scores of their turns."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import pytest

from dspy_session import Session, SessionState, astep, sessionify, step
from dspy_session.core.state import with_id
from dspy_session.integrations.mlflow import log_scores, log_session, mlflow_turn_logger
from dspy_session.program.tracing import SESSION_KEY, TURN_KEY, TraceMarker
from tests.talk import QA, Asker, ask, history, qa_session, scripted
from tests.test_typings import TYPINGS, read_stubs
from tests.tracking import Tracked

whole: Any = dspy  # typings/ has what the package uses


@pytest.fixture
def traced(tracked: Tracked) -> Iterator[Tracked]:
    """An experiment to which MLflow traces what DSPy does."""
    import mlflow
    import mlflow.dspy

    mlflow.dspy.autolog()
    with dspy.context(lm=scripted()):
        yield tracked
    mlflow.end_run()


def ids(session: Session) -> list[str]:
    return [turn.id for turn in session.turns]


def half(_: dspy.Example, prediction: dspy.Prediction) -> dspy.Prediction:
    return dspy.Prediction(
        score=len(prediction.answer) / 2, feedback=f"Half of {prediction.answer}"
    )


def scores(tracked: Tracked) -> list[list[tuple[str, float, str]]]:
    """The assessments of each trace: name, value, rationale."""
    return [
        [(one.name, one.feedback.value, one.rationale) for one in trace.info.assessments]
        for trace in tracked.traces()
    ]


# --- whose they are -------------------------------------------------------------------------------


def called(session: Session, question: str) -> None:
    session(question=question)


def awaited(session: Session, question: str) -> None:
    asyncio.run(session.acall(question=question))


def streamed(session: Session, question: str) -> None:
    list(session.stream(question=question))


def async_streamed(session: Session, question: str) -> None:
    async def read() -> None:
        async for _ in session.astream(question=question):
            pass

    asyncio.run(read())


@pytest.mark.parametrize("how", [called, awaited, streamed, async_streamed])
def test_X16_each_turn_is_a_trace_of_its_session(
    traced: Tracked, how: Callable[[Session, str], None]
) -> None:
    session = sessionify(dspy.ChainOfThought(QA), session_id="ada")
    how(session, "a")
    how(session, "b")
    assert traced.marks(SESSION_KEY) == ["ada", "ada"]
    assert traced.marks(TURN_KEY) == ids(session)
    assert {trace.data.spans[0].name for trace in traced.traces()} == {"Session.forward"}


def test_X16_a_fork_has_its_own_id(traced: Tracked) -> None:
    session = qa_session(session_id="ada")
    ask(session, "a")
    fork = session.fork(session_id="eve")
    ask(fork, "b")
    assert traced.marks(SESSION_KEY) == ["ada", "eve"]
    assert traced.marks(TURN_KEY) == ids(fork)


def test_X16_steps_are_traced_by_the_id_of_their_state(traced: Tracked) -> None:
    program = dspy.Predict(QA)
    _, state = step(with_id(SessionState(), "ada"), program, {"question": "a"})
    _, state = asyncio.run(astep(state, program, {"question": "b"}))
    step(SessionState(), program, {"question": "nobody's"})
    assert traced.marks(SESSION_KEY) == ["ada", "ada", None]
    assert traced.marks(TURN_KEY)[:2] == [turn.id for turn in state]


def test_X16_sessions_within_a_session_are_part_of_its_trace(traced: Tracked) -> None:
    class Desk(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = qa_session(session_id="inner")

        def forward(self, question: str) -> Any:
            return self.inner(question=question)

    session = sessionify(Desk(), session_id="outer")
    ask(session, "a")
    assert traced.marks(SESSION_KEY) == ["outer"]
    assert traced.marks(TURN_KEY) == ids(session)


def test_X16_a_turn_that_fails_is_traced(traced: Tracked) -> None:
    session = qa_session(session_id="ada")
    with pytest.raises(Exception, match="the model is out"):
        session(question="fail")
    assert len(session) == 0
    assert traced.marks(SESSION_KEY) == ["ada"]
    assert traced.marks(TURN_KEY) == [session.attempts[0].run.id]


def test_X16_what_is_not_recorded_is_no_turn(traced: Tracked) -> None:
    session = qa_session(session_id="ada")
    session(question="a", history=history("x"))
    session.frozen()(question="b")
    assert len(session) == 0
    assert traced.marks(SESSION_KEY) == ["ada", None]
    assert traced.marks(TURN_KEY) == [None, None]


def test_X16_what_an_evaluator_asks_is_no_turn(traced: Tracked) -> None:
    session = qa_session(session_id="ada")
    examples = [dspy.Example(question=each, answer="").with_inputs("question") for each in "ab"]
    whole.Evaluate(devset=examples, metric=lambda *_: 1.0, num_threads=2)(session)
    assert traced.marks(SESSION_KEY) == [None, None]


@pytest.mark.parametrize("autolog", [False, True])
def test_X16_spans_of_the_application_are_marked(tracked: Tracked, autolog: bool) -> None:
    import mlflow
    import mlflow.dspy

    if autolog:
        mlflow.dspy.autolog()
    ada, eve = qa_session(session_id="ada"), qa_session(session_id="eve")
    with dspy.context(lm=scripted()):
        with mlflow.start_span("request"):
            ask(ada, "a")
        with mlflow.start_span("two sessions"):
            ask(ada, "b")
            list(eve.stream(question="c"))
    assert tracked.marks(SESSION_KEY) == ["ada", "ada"]
    first, *rest = [*ids(ada), *ids(eve)]
    assert tracked.marks(TURN_KEY) == [first, " ".join(rest)]


def test_X16_a_trace_names_as_many_turns_as_mlflow_holds(tracked: Tracked) -> None:
    import mlflow

    session = qa_session(session_id="ada")
    with dspy.context(lm=scripted()), mlflow.start_span("many"):
        ask(session, *"abcdefghi")
    assert tracked.marks(TURN_KEY) == [" ".join(ids(session)[:7])]


def test_X16_ids_of_the_applications_own_stay(traced: Tracked) -> None:
    import mlflow.tracing

    session = qa_session(session_id="ada")
    with mlflow.tracing.context(session_id="mine", user="ada@example.org"):
        ask(session, "a")
    assert traced.marks(SESSION_KEY) == ["mine"]
    assert traced.marks("mlflow.trace.user") == ["ada@example.org"]
    assert traced.marks(TURN_KEY) == ids(session)


def test_X16_programs_with_code_of_their_own_are_traced(traced: Tracked) -> None:
    session = sessionify(Asker(), session_id="ada")  # their adapter is watched by a callback, too
    ask(session, "a")
    assert traced.marks(SESSION_KEY) == ["ada"]


def test_X16_a_tracer_that_fails_breaks_no_turn(
    traced: Tracked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def out_of_order() -> None:
        raise RuntimeError("no traces today")

    monkeypatch.setattr("mlflow.get_current_active_span", out_of_order)
    session = qa_session(session_id="ada")
    with caplog.at_level(logging.WARNING, "dspy_session"):
        ask(session, "a")
    assert len(session) == 1
    assert "MLflow's trace of a turn could not be marked" in caplog.text


class Watching(dspy.Module):
    """Says which callbacks DSPy has while it runs."""

    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=[type(one) for one in dspy.settings.callbacks])


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.usefixtures("tracked")
def test_X16_nothing_is_added_where_nobody_traces(
    monkeypatch: pytest.MonkeyPatch, loaded: bool
) -> None:
    if not loaded:
        monkeypatch.delitem(sys.modules, "mlflow")
    assert TraceMarker not in sessionify(Watching())(question="a").answer


def test_X16_the_marker_is_there_where_somebody_traces(traced: Tracked) -> None:
    assert TraceMarker in sessionify(Watching())(question="a").answer
    assert len(traced.traces()) == 1


# --- scores ---------------------------------------------------------------------------------------


def test_X16_scores_become_assessments(traced: Tracked) -> None:
    session = qa_session(session_id="ada")
    ask(session, "a", "bb")
    assert log_scores(session) == 0
    session.score(half)
    before = session.state
    expected = [
        [("turn_score", 5.5, "Half of answer to a")],
        [("turn_score", 6.0, "Half of answer to bb")],
    ]
    for _ in range(2):  # logged again, nothing is added
        assert log_scores(session) == 2
        assert scores(traced) == expected
    assert session.state is before

    session.score(lambda example, prediction: 1.0)
    assert log_scores(session) == 2
    assert scores(traced) == [[("turn_score", 1.0, "")]] * 2


def test_X16_scores_beside_those_of_others(traced: Tracked) -> None:
    import mlflow
    from mlflow.entities import AssessmentSource, Feedback

    session = qa_session(session_id="ada")
    ask(session, "a")
    trace = traced.traces()[0]
    theirs = Feedback(name="turn_score", value=0.0, source=AssessmentSource("HUMAN", "eve"))
    mlflow.log_assessment(trace.info.trace_id, theirs)
    session.score(half)
    log_scores(session)
    log_scores(session)
    assert sorted(value for _, value, _ in scores(traced)[0]) == [0.0, 5.5]


def test_X16_turns_without_a_trace_are_left_out(traced: Tracked) -> None:
    session = qa_session(session_id="ada")
    ask(session, "a")
    session.add_turn({"question": "by hand"}, {"answer": "."})
    session.score(half)
    assert log_scores(session) == 1


def test_X16_an_experiment_without_traces(tracked: Tracked) -> None:
    session = qa_session()
    session.add_turn({"question": "a"}, {"answer": "."})
    session.score(half)
    assert log_scores(session) == 0
    assert tracked.traces() == []


@pytest.mark.parametrize("session_id", ["ada", "O'Hara", 'O\'Hara "Ada"', "100%_`"])
def test_X16_a_fork_scores_the_turns_that_it_shares(traced: Tracked, session_id: str) -> None:
    session = qa_session(session_id=session_id)
    ask(session, "a", "bb")
    fork = session.fork()
    ask(fork, "ccc")
    fork.score(half)
    assert log_scores(fork) == 3
    assert [value for ((_, value, _),) in scores(traced)] == [5.5, 6.0, 6.5]


def test_X16_two_turns_of_one_trace_have_a_score_each(tracked: Tracked) -> None:
    import mlflow

    session = qa_session(session_id="ada")
    with dspy.context(lm=scripted()), mlflow.start_span("two turns"):
        ask(session, "a", "bb")
    session.score(half)
    for _ in range(2):
        assert log_scores(session) == 2
        assert sorted(value for _, value, _ in scores(tracked)[0]) == [5.5, 6.0]


def test_X16_another_answer_has_the_score_on_its_own_trace(traced: Tracked) -> None:
    session = qa_session(session_id="ada")
    ask(session, "a")
    session.regenerate()
    session.score(half)
    assert log_scores(session) == 1
    assert list(map(len, scores(traced))) == [0, 1]


def test_X16_more_traces_than_mlflow_hands_out_at_once(
    traced: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dspy_session.integrations.mlflow.tracking._TRACES", 2)
    session = qa_session(session_id="ada")
    ask(session, *"abcde")
    session.score(half)
    assert log_scores(session) == 5
    assert list(map(len, scores(traced))) == [1] * 5


def test_X16_logging_a_session_puts_its_scores_on_traces(traced: Tracked) -> None:
    tracker = mlflow_turn_logger()
    one, two = qa_session(session_id="one"), qa_session(session_id="two", on_turn=tracker)
    ask(one, "a")
    ask(two, "bb")
    one.score(half)
    two.score(half)
    log_session(one, experiment=f"another {traced.name}")  # its traces are in the active one
    tracker.end(two)
    assert [value for ((_, value, _),) in scores(traced)] == [5.5, 6.0]


def test_X16_traces_that_are_still_on_their_way_are_waited_for(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import mlflow.dspy
    import mlflow.tracing

    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "true")
    mlflow.tracing.reset()
    mlflow.dspy.autolog()
    session = qa_session(session_id="ada")
    with dspy.context(lm=scripted()):
        ask(session, "a", "b")
    session.score(half)
    assert log_scores(session) == 2
    mlflow.flush_trace_async_logging(terminate=True)
    mlflow.tracing.reset()
    assert list(map(len, scores(tracked))) == [1, 1]


# --- what this leans on in MLflow -----------------------------------------------------------------


def test_mlflow_groups_traces_by_this_key() -> None:
    constant: Any = importlib.import_module("mlflow.tracing.constant")
    assert constant.TraceMetadataKey.TRACE_SESSION == SESSION_KEY


def test_mlflow_has_the_metadata_of_a_running_trace_in_reach(tracked: Tracked) -> None:
    import mlflow
    from mlflow.tracing.trace_manager import InMemoryTraceManager

    with mlflow.start_span("request") as span:
        assert mlflow.get_current_active_span().trace_id == span.trace_id
        with InMemoryTraceManager.get_instance().get_trace(span.trace_id) as trace:
            trace.info.trace_metadata["mine"] = "yes"
        with InMemoryTraceManager.get_instance().get_trace("tr-none") as nothing:
            assert nothing is None
    assert tracked.marks("mine") == ["yes"]


def test_mlflow_traces_dspy_by_a_callback_of_this_class(traced: Tracked) -> None:
    from mlflow.dspy.callback import MlflowCallback

    assert any(isinstance(one, MlflowCallback) for one in dspy.settings.callbacks)
    assert traced.traces() == []


def test_mlflow_knows_the_active_experiment(tracked: Tracked) -> None:
    from mlflow.tracking.fluent import _get_experiment_id

    assert _get_experiment_id() == tracked.id


def parameters(stub: ast.FunctionDef) -> list[tuple[str, bool]]:
    """The parameters of a stubbed function: their names, and whether they can be left out."""
    given = stub.args
    named = [*given.posonlyargs, *given.args]
    optional = [False] * (len(named) - len(given.defaults)) + [True] * len(given.defaults)
    names = list(zip((one.arg for one in named), optional, strict=True))
    return [*names, (given.kwarg.arg, False)] if given.kwarg else names


def functions(module: str, tree: ast.Module) -> Iterator[tuple[str, Any, ast.FunctionDef]]:
    """The stubbed functions of a module, with what is there under their names."""
    real = importlib.import_module(module)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield f"{module}.{node.name}", getattr(real, node.name), node
        elif isinstance(node, ast.ClassDef):
            kind = getattr(real, node.name)
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    found = inspect.getattr_static(kind, member.name)
                    found = getattr(found, "__func__", found)
                    yield f"{module}.{node.name}.{member.name}", found, member


@pytest.mark.usefixtures("tracked")
def test_mlflow_is_as_its_stubs_say() -> None:
    stubs = {name: tree for name, tree in read_stubs(TYPINGS).items() if name.startswith("mlflow")}
    looked_at = 0
    for module, tree in stubs.items():
        for name, real, stub in functions(module, tree):
            signature = inspect.signature(real).parameters.values()
            there = [(one.name, one.default is not one.empty) for one in signature]
            assert parameters(stub) == there, name
            looked_at += 1
    assert looked_at > 30
    assert hasattr(importlib.import_module("mlflow.models"), "Model")
