"""D19: sessions as MLflow runs, datasets and models, in a real local store."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import os
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import (
    CallError,
    FormatError,
    MetricError,
    ModuleTypeError,
    OptionError,
    Session,
    SessionOptions,
    ValueCodecError,
    examples_from_jsonl,
    sessionify,
)
from dspy_session.integrations.mlflow import (
    MlflowTurnLogger,
    load_model,
    log_examples,
    log_model,
    log_scores,
    log_session,
    mlflow_turn_logger,
)
from dspy_session.testing import Prompt, ScriptedLM, in_requested_format
from tests import house
from tests.loopback import Body, LoopbackServer
from tests.talk import QA, ask, history, past, qa_session, scripted
from tests.tracking import Tracked


def talk(*questions: str, **keywords: Any) -> Session:
    session = qa_session(**{"session_id": "ada", **keywords})
    with dspy.context(lm=scripted()):
        ask(session, *questions)
    return session


def by_length(_: dspy.Example, prediction: dspy.Prediction) -> float:
    return float(len(prediction.answer))  # "answer to " and the question


def refused_by_mlflow() -> Any:
    from mlflow.exceptions import MlflowException

    return pytest.raises(MlflowException)


# --- a session as it is ---------------------------------------------------------------------------


def test_D19_a_session_is_a_run(tracked: Tracked) -> None:
    session = talk("a", "bb", "ccc", max_turns=5, exclude_fields={"x", "y"})
    session.score(by_length)
    before = session.state

    run_id = log_session(session, experiment=tracked.name, run_name="first")

    run = tracked.run()
    assert (run.info.run_id, run.info.status, run.info.run_name) == (run_id, "FINISHED", "first")
    params = run.data.params
    assert set(params) == {
        "session.module_type",
        *(f"session.{name}" for name in SessionOptions.__struct_fields__),
    }
    assert params["session.history_field"] == "history"
    assert params["session.history_policy"] == "override"
    assert params["session.module_type"] == "Predict"
    assert params["session.max_turns"] == "5"
    assert params["session.max_stored_turns"] == "None"
    assert params["session.exclude_fields"] == "x, y"
    assert tracked.steps(run_id, "history_length") == {0: 0, 1: 1, 2: 2}
    assert tracked.steps(run_id, "turn_score") == {0: 11, 1: 12, 2: 13}
    metrics = run.data.metrics
    assert [metrics[f"score_{kind}"] for kind in ("mean", "min", "max")] == [12, 11, 13]
    assert metrics["turn_count"] == 3
    assert tracked.steps(run_id, "turn_duration").keys() == {0, 1, 2}
    assert run.data.tags["dspy_session.session_id"] == "ada"
    assert run.data.tags["mlflow.user"]  # what MLflow says of every run
    assert session.state is before


def test_D19_metrics_have_the_times_of_the_turns(tracked: Tracked) -> None:
    session = talk("a", "b")
    run_id = log_session(session)
    times = {one.step: one.timestamp for one in tracked.client.get_metric_history(
        run_id, "history_length"
    )}  # fmt: skip
    assert times == {turn.index: round(1_000 * (turn.time or 0)) for turn in session.turns}


def test_D19_the_files_of_a_run(tracked: Tracked) -> None:
    session = talk("a", "bb")
    session.score(lambda example, prediction: dspy.Prediction(score=0.5, feedback="So so."))
    run_id = log_session(session)

    files = {file.path for file in tracked.client.list_artifacts(run_id)}
    assert files == {"session_state.json", "turns.json", "examples.json"}
    resumed = Session.load_from(
        tracked.folder / run_id / "artifacts" / "session_state.json", dspy.Predict(QA)
    )
    assert resumed.state == session.state
    turns = json.loads(tracked.text(run_id, "turns.json"))
    assert [turn["inputs"] for turn in turns] == [{"question": "a"}, {"question": "bb"}]
    assert [turn["outputs"] for turn in turns] == [
        {"answer": f"answer to {q}"} for q in ("a", "bb")
    ]
    assert [turn["history_length"] for turn in turns] == [0, 1]
    assert [turn["id"] for turn in turns] == [turn.id for turn in session.turns]
    assert (turns[0]["score"], turns[0]["feedback"]) == (0.5, "So so.")
    lines = map(json.dumps, json.loads(tracked.text(run_id, "examples.json")))
    examples = examples_from_jsonl(lines, input_keys=["question", "history"])
    assert examples == session.to_examples()
    assert len(examples[1].history.messages) == 1


def test_D19_turns_without_a_score_have_a_history_length(tracked: Tracked) -> None:
    run_id = log_session(talk("a", "b"), include_history=False)
    assert tracked.steps(run_id, "history_length") == {0: 0, 1: 1}
    metrics = tracked.run().data.metrics
    assert not {"turn_score", "score_mean", "score_min", "score_max"} & set(metrics)
    assert "history" not in json.loads(tracked.text(run_id, "examples.json"))[1]


def test_D19_an_empty_session_is_logged(tracked: Tracked) -> None:
    run_id = log_session(qa_session())
    assert tracked.run().data.metrics == {"turn_count": 0}
    assert tracked.text(run_id, "turns.json") == "[]\n"


def test_D19_an_active_run_is_used_and_goes_on(tracked: Tracked) -> None:
    import mlflow

    with mlflow.start_run() as active:
        assert log_session(talk("a"), experiment="another") == active.info.run_id
        assert log_examples(talk("a")) == active.info.run_id
        assert tracked.run().info.status == "RUNNING"
        current = mlflow.active_run()
        assert current is not None
        assert current.info.run_id == active.info.run_id
    assert tracked.run().info.status == "FINISHED"
    assert tracked.client.get_experiment_by_name("another") is None


def test_D19_an_experiment_is_made_once(tracked: Tracked) -> None:
    name = f"new {tracked.name}"
    runs = [log_session(talk("a"), experiment=name) for _ in range(2)]
    found = tracked.client.get_experiment_by_name(name)
    assert {run.info.run_id for run in tracked.client.search_runs([found.experiment_id])} == {*runs}
    assert tracked.runs() == []


def test_D19_more_turns_than_mlflow_takes_at_once(tracked: Tracked) -> None:
    session = qa_session()
    for number in range(1_005):
        session.add_turn({"question": f"{number}"}, {"answer": "."})
    run_id = log_session(session, include_history=False)
    assert tracked.steps(run_id, "history_length") == {n: n for n in range(1_005)}


def test_D19_nothing_private_leaves(tracked: Tracked) -> None:
    session = qa_session(
        data={"card": "4000 1234", "cart": "tea"},
        private_data={"card"},
        redact_fields={"password"},
    )
    for number in range(2):
        session.add_turn({"question": f"{number}", "password": "xyzzy"}, {"answer": "Welcome."})
    tracker = mlflow_turn_logger()
    with dspy.context(lm=scripted()):
        session = Session.from_state(
            session.state, dspy.Predict(QA), on_turn=tracker, data={"card": "4000 1234"},
            private_data={"card"}, redact_fields={"password"},
        )  # fmt: skip
        session(question="a", password="xyzzy")
    log_session(session)
    log_examples(session)
    tracker.end(session)
    written = tracked.written()
    assert "Welcome." in written
    assert "xyzzy" not in written
    assert "4000 1234" not in written


class Unwritable:
    """A type that has no written form."""


@pytest.mark.parametrize("log", [log_session, log_examples, log_model])
def test_D19_what_cannot_be_written_begins_no_run(
    tracked: Tracked, log: Callable[[Session], Any]
) -> None:
    session = qa_session()
    session.add_turn({"question": Unwritable()}, {"answer": "."})
    before = session.state
    with pytest.raises(ValueCodecError, match="Unwritable"):
        log(session)
    assert session.state is before
    assert tracked.runs() == []


def test_D19_a_run_that_was_begun_and_cannot_be_finished_has_failed(tracked: Tracked) -> None:
    session = talk("a")
    before = session.state
    tracked.folder.write_text("a file where a folder should be")
    with pytest.raises(OSError, match="artifacts"):
        log_session(session)
    assert tracked.run().info.status == "FAILED"
    assert session.state is before


def test_D19_a_deleted_experiment_is_refused_by_mlflow(tracked: Tracked) -> None:
    session = talk("a")
    before = session.state
    tracked.client.delete_experiment(tracked.id)
    with refused_by_mlflow():
        log_session(session, experiment=tracked.name)
    assert session.state is before


def test_D19_a_server_that_is_not_there(tracked: Tracked, caplog: pytest.LogCaptureFixture) -> None:
    import mlflow

    mlflow.set_tracking_uri("http://127.0.0.1:9")
    session = talk("a")
    before = session.state
    with refused_by_mlflow():
        log_session(session)
    assert session.state is before

    session = talk("a", on_turn=mlflow_turn_logger("chats"))  # and the call goes on
    assert session.turns[0].outputs == {"answer": "answer to a"}
    assert "on_turn failed for turn 0" in caplog.text


@pytest.mark.parametrize("log", [log_session, log_examples, log_scores, log_model])
def test_D19_only_sessions_are_logged(log: Callable[[Any], Any]) -> None:
    with pytest.raises(CallError, match=f"{log.__name__} takes a Session, not Predict"):
        log(dspy.Predict(QA))


# --- examples -------------------------------------------------------------------------------------


def test_D19_examples_are_a_dataset_of_the_run(tracked: Tracked) -> None:
    session = talk("a", "bb", "ccc")
    run_id = log_examples(session, dataset_name="chatbot_v1", metric=by_length, min_score=12)

    assert [turn.score for turn in session.turns] == [11, 12, 13]
    run = tracked.run()
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.name == "chatbot_v1"
    assert json.loads(used.dataset.profile) == {"num_rows": 2}
    columns = json.loads(used.dataset.schema)["mlflow_colspec"]
    assert [column["name"] for column in columns] == ["question", "answer", "history"]
    assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "training"}

    text = tracked.text(run_id, "datasets/chatbot_v1.jsonl")
    examples = examples_from_jsonl(text, input_keys=["question", "history"])
    assert examples == session.to_examples(min_score=12)
    assert used.dataset.source_type == "local"
    source = Path(json.loads(used.dataset.source)["uri"].removeprefix("file://"))
    assert source.read_text() == text


def test_D19_a_dataset_has_the_digest_of_its_examples(tracked: Tracked) -> None:
    import mlflow

    session = talk("a", "bb")
    digests = []
    with mlflow.start_run():
        for name, keep in (("one", 0.0), ("same", 0.0), ("other", 12.0)):
            log_examples(session, dataset_name=name, metric=by_length, min_score=keep)
    for used in tracked.run().inputs.dataset_inputs:
        digests.append((used.dataset.name, used.dataset.digest))
    by_name = dict(digests)
    assert by_name["one"] == by_name["same"] != by_name["other"]


def test_D19_keywords_go_to_the_examples(tracked: Tracked) -> None:
    run_id = log_examples(talk("a"), include_history=False, context="evaluation")
    assert tracked.text(run_id, "datasets/examples.jsonl") == (
        '{"question": "a", "answer": "answer to a"}\n'
    )
    assert tracked.run().inputs.dataset_inputs[0].tags[0].value == "evaluation"


def test_D19_no_examples_are_no_dataset(tracked: Tracked) -> None:
    session = talk("a")
    before = session.state
    with pytest.raises(CallError, match=r"no turn with a score of 0\.5 or more"):
        log_examples(session, min_score=0.5)
    assert session.state is before
    assert tracked.runs() == []


def test_D19_a_metric_that_raises_begins_no_run(tracked: Tracked) -> None:
    session = talk("a", on_metric_error="raise")
    before = session.state
    with pytest.raises(MetricError):
        log_examples(session, metric=lambda example, prediction: 1 / 0)
    assert session.state is before
    assert tracked.runs() == []


# --- turns as they are recorded -------------------------------------------------------------------


def test_D19_turns_are_logged_as_they_are_recorded(tracked: Tracked) -> None:
    tracker = mlflow_turn_logger(experiment=tracked.name, run_name="live")
    session = qa_session(session_id="ada", on_turn=tracker, max_turns=1)
    assert tracker.run_id is None
    run: Any = None
    assert tracked.runs() == []
    with dspy.context(lm=scripted()):
        for number in range(3):
            session(question="Hi")
            run = tracked.run()
            assert run.info.status == "RUNNING"
            expected = {n: min(n, 1) for n in range(number + 1)}
            assert tracked.steps(run.info.run_id, "history_length") == expected
    assert (run.info.run_id, run.info.run_name) == (tracker.run_id, "live")
    assert run.data.params["session.max_turns"] == "1"
    assert run.data.tags["dspy_session.session_id"] == "ada"

    session.score(by_length)
    assert tracker.end(session) == tracker.run_id
    run = tracked.run()
    assert run.info.status == "FINISHED"
    assert tracked.steps(run.info.run_id, "turn_score") == {0: 12, 1: 12, 2: 12}
    assert run.data.metrics["score_mean"] == 12
    assert json.loads(tracked.text(run.info.run_id, "session_state.json")) == session.to_dict()


def test_D19_a_run_is_ended_once(tracked: Tracked, caplog: pytest.LogCaptureFixture) -> None:
    tracker = mlflow_turn_logger()
    session = talk("a", on_turn=tracker)
    assert tracker.end(session) == tracker.run_id
    ended = tracked.run().info.end_time
    assert tracker.end(session) is None
    assert tracker.end() is None
    with dspy.context(lm=scripted()), caplog.at_level(logging.WARNING):
        session(question="b")
    assert "has ended, so turn 1 is not logged" in caplog.text
    run = tracked.run()
    assert (run.info.status, run.info.end_time) == ("FINISHED", ended)
    assert tracked.steps(run.info.run_id, "history_length") == {0: 0}


def test_D19_a_logger_without_turns_has_nothing_to_end(tracked: Tracked) -> None:
    tracker = mlflow_turn_logger()
    assert tracker.end(qa_session()) is None
    assert tracker.end() is None
    assert tracked.runs() == []
    with pytest.raises(CallError, match="end takes a Session"):
        tracker.end("ada")  # type: ignore[arg-type]


def test_D19_forks_have_runs_under_the_first(tracked: Tracked) -> None:
    tracker = mlflow_turn_logger(run_name="live")
    session = talk("a", "b", on_turn=tracker)
    forks = [session.fork(session_id=name) for name in ("left", "right")]
    with dspy.context(lm=scripted()):
        for fork in forks:
            fork(question="c")
        session(question="d")
    runs = {run.data.tags["dspy_session.session_id"]: run for run in tracked.runs()}
    assert set(runs) == {"ada", "left", "right"}
    assert "mlflow.parentRunId" not in runs["ada"].data.tags
    for name in ("left", "right"):
        assert runs[name].data.tags["mlflow.parentRunId"] == tracker.run_id
        assert tracked.steps(runs[name].info.run_id, "history_length") == {2: 2}
    assert tracked.steps(runs["ada"].info.run_id, "history_length") == {0: 0, 1: 1, 2: 2}

    assert tracker.end(forks[0]) == runs["left"].info.run_id
    assert tracker.end(session) == runs["ada"].info.run_id
    status = {run.data.tags["dspy_session.session_id"]: run.info.status for run in tracked.runs()}
    assert status == {"ada": "FINISHED", "left": "FINISHED", "right": "RUNNING"}
    tracker.end()
    assert {run.info.status for run in tracked.runs()} == {"FINISHED"}


def test_D19_turns_come_from_any_thread(tracked: Tracked) -> None:
    tracker = mlflow_turn_logger()
    sessions = [qa_session(session_id=f"{n}", on_turn=tracker) for n in range(4)]
    lm = scripted()

    def turns(session: Session) -> None:
        with dspy.context(lm=lm):
            ask(session, "a", "b")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(turns, sessions))
        list(threads.map(tracker.end, sessions))
    runs = tracked.runs()
    assert {run.data.tags["dspy_session.session_id"] for run in runs} == {"0", "1", "2", "3"}
    parents = [run.data.tags.get("mlflow.parentRunId") for run in runs]
    assert parents.count(None) == 1
    assert set(parents) == {None, tracker.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        assert tracked.steps(run.info.run_id, "history_length") == {0: 0, 1: 1}


def test_D19_awaited_and_streamed_turns_are_logged(tracked: Tracked) -> None:
    tracker = mlflow_turn_logger()
    session = qa_session(on_turn=tracker)

    async def turns() -> None:
        await session.acall(question="a")
        async for _ in session.astream(question="b"):
            pass

    with dspy.context(lm=scripted()):
        asyncio.run(turns())
        list(session.stream(question="c"))
        session(question="d", history=history("x"))  # replayed, not recorded
    run_id = tracker.end(session)
    assert run_id is not None
    assert tracked.steps(run_id, "history_length") == {0: 0, 1: 1, 2: 2}


def test_D19_the_run_that_is_active_at_the_first_turn_is_used_and_not_ended(
    tracked: Tracked,
) -> None:
    import mlflow

    tracker = mlflow_turn_logger()
    with mlflow.start_run() as active:
        session = talk("a", on_turn=tracker)
        fork = session.fork()
        with dspy.context(lm=scripted()):
            fork(question="b")
        assert tracker.end(session) == tracker.run_id == active.info.run_id
        by_id = {run.info.run_id: run for run in tracked.runs()}
        assert by_id.pop(active.info.run_id).info.status == "RUNNING"
        (nested,) = by_id.values()
        assert nested.data.tags["mlflow.parentRunId"] == active.info.run_id
        tracker.end()
    assert {run.info.status for run in tracked.runs()} == {"FINISHED"}


def test_D19_an_end_that_fails_leaves_a_failed_run(tracked: Tracked) -> None:
    tracker = mlflow_turn_logger()
    session = talk("a", on_turn=tracker)
    session.add_turn({"question": Unwritable()}, {"answer": "."})
    before = session.state
    with pytest.raises(ValueCodecError, match="Unwritable"):
        tracker.end(session)
    assert session.state is before
    assert tracked.run().info.status == "FAILED"
    assert tracker.end(session) is None


def test_D19_a_first_turn_that_cannot_be_logged_leaves_a_failed_run(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import mlflow

    def out_of_order(*_: Any, **__: Any) -> None:
        raise RuntimeError("read-only")

    tracker = mlflow_turn_logger()
    with monkeypatch.context() as broken:
        broken.setattr(mlflow.MlflowClient, "log_batch", out_of_order)
        session = talk("a", on_turn=tracker)
    assert len(session) == 1
    assert "on_turn failed for turn 0" in caplog.text
    assert tracked.run().info.status == "FAILED"
    assert tracker.run_id is None

    with dspy.context(lm=scripted()):
        session(question="b")  # the next turn tries again
    assert tracker.run_id is not None
    assert tracked.steps(tracker.run_id, "history_length") == {1: 1}
    tracker.end(session)


def test_D19_copies_share_a_logger_and_pickles_begin_anew(tracked: Tracked) -> None:
    tracker = mlflow_turn_logger(tracked.name, "live")
    session = talk("a", on_turn=tracker)
    shared: Any = copy.deepcopy(session).on_turn
    assert shared is tracker
    other = pickle.loads(pickle.dumps(tracker))
    assert isinstance(other, MlflowTurnLogger)
    assert other.run_id is None
    other(session, session.turns[0])
    assert [run.info.run_name for run in tracked.runs()] == ["live", "live"]
    assert other.run_id != tracker.run_id
    assert other.end() is None
    assert tracker.end() is None


# --- without MLflow -------------------------------------------------------------------------------


def everything(session: Session) -> list[Callable[[], Any]]:
    return [
        lambda: log_session(session),
        lambda: log_examples(session),
        lambda: log_scores(session),
        lambda: log_model(session),
        lambda: load_model("models:/m/1"),
        mlflow_turn_logger,
    ]


def test_D19_without_mlflow_each_function_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    session = talk("a")
    before = session.state
    for use in everything(session):
        with pytest.raises(OptionError, match=r"^MLflow is not installed: install .*\[mlflow\]"):
            use()
    assert session.state is before


def test_D19_an_old_mlflow_is_refused(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow.__version__", "2.22.1")
    session = talk("a")
    before = session.state
    for use in everything(session):
        with pytest.raises(OptionError, match=r"^MLflow 2\.22\.1 is too old: install mlflow>=3"):
            use()
    assert session.state is before
    assert tracked.runs() == []


def test_D19_the_module_does_not_load_mlflow() -> None:
    loaded = house.loaded_by("import dspy_session.integrations.mlflow")
    assert "dspy" in loaded
    assert "mlflow" not in loaded


# --- models ---------------------------------------------------------------------------------------


class Touch:
    """As a pickle, something that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def model_folder(uri: str) -> Path:
    import mlflow.artifacts

    return Path(mlflow.artifacts.download_artifacts(uri))


def read_all(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return b"\n".join(path.read_bytes() for path in files).decode("utf-8", "replace")


def test_D19_a_model_holds_program_and_conversation(tracked: Tracked) -> None:
    import mlflow

    session = talk("a", "bb", max_turns=5)
    session.undo()
    before = session.state
    name = f"m{tracked.name}"
    with dspy.context(lm=scripted()), mlflow.start_run() as run:
        info = log_model(session, artifact_path="session", registered_model_name=name)
    assert session.state is before

    heard: list[Any] = []
    for uri in (
        f"runs:/{run.info.run_id}/session",
        info.model_uri,
        f"models:/{name}/1",
        model_folder(info.model_uri),
        str(model_folder(info.model_uri)),
    ):
        restored = load_model(
            uri, module=dspy.Predict(QA), on_turn=lambda *told: heard.append(told)
        )
        assert restored.state == session.state
        assert restored.options == session.options
        assert restored.redo()[0].inputs == {"question": "bb"}
        with dspy.context(lm=scripted()):
            restored(question="c")
    assert len(heard) == 5


def test_D19_a_program_comes_from_the_model_if_none_is_given(tracked: Tracked) -> None:
    program = dspy.Predict(QA)
    program.demos = [dspy.Example(question="x", answer="y")]
    session = sessionify(program, session_id="ada")
    with dspy.context(lm=scripted()):
        ask(session, "a")
        info = log_model(session)
    restored = load_model(info.model_uri)  # brings the LM, too: it sets DSPy's settings
    assert restored.state == session.state
    assert [demo["answer"] for demo in restored.named_predictors()[0][1].demos] == ["y"]
    assert restored(question="b").answer == "answer to b"
    assert tracked.runs() == []


def test_D19_with_a_module_nothing_is_unpickled(tracked: Tracked, tmp_path: Path) -> None:
    with dspy.context(lm=scripted()):
        info = log_model(talk("a"))
    folder = model_folder(info.model_uri)
    (pickled,) = folder.rglob("*.pkl")
    mark = tmp_path / "the pickle was loaded"
    pickled.write_bytes(pickle.dumps(Touch(mark)))

    assert len(load_model(folder, module=dspy.Predict(QA))) == 1
    assert not mark.exists()
    with pytest.raises(Exception, match="NoneType"):
        load_model(folder)
    assert mark.exists()
    assert tracked.runs() == []


def test_D19_a_served_model_answers_from_the_conversation(tracked: Tracked) -> None:
    import mlflow.dspy
    import mlflow.pyfunc

    def count(prompt: Prompt) -> dict[str, Any]:
        return {"answer": f"{len(past(prompt))} turns before"}

    session = talk("a", "b")
    with dspy.context(lm=ScriptedLM(count)):
        info = log_model(session)
    served = mlflow.pyfunc.load_model(info.model_uri)
    for _ in range(2):  # and records nothing
        assert served.predict({"question": "c"}) == {"answer": "2 turns before"}
    program = mlflow.dspy.load_model(info.model_uri)
    assert type(program) is dspy.Predict
    assert program(question="c").answer == "0 turns before"
    assert tracked.runs() == []


@pytest.mark.parametrize("by_dspy", [False, True])
def test_D19_nothing_private_is_in_a_model(tracked: Tracked, by_dspy: bool) -> None:
    def answer(body: Body) -> str:
        return in_requested_format(body["messages"], {"reasoning": "Hm.", "answer": "Hm."})

    with LoopbackServer(answer) as server:
        lm, own = (server.lm(name).copy(api_key="sk-sekrit") for name in ("one", "two"))
        program = dspy.ChainOfThought("question, password -> answer")
        program.set_lm(own)
        vars(program)["spare_lm"] = own
        session = sessionify(
            program,
            data={"card": "4000 1234"},
            private_data={"card"},
            redact_fields={"password"},
            copy_mode="none",
        )
        with dspy.context(lm=lm):
            session(question="a", password="xyzzy")
            session.using(lm=lm)(question="b", password="xyzzy")
            assert own.history
            assert lm.history
            info = log_model(session, use_dspy_model_save=by_dspy)
    written = read_all(model_folder(info.model_uri))
    assert "Hm." in written
    for secret in ("xyzzy", "4000 1234", "sk-sekrit"):
        assert secret not in written
    assert own.kwargs["api_key"] == "sk-sekrit"  # the session's own is as it was
    assert own.history
    restored = load_model(info.model_uri)
    assert [turn.inputs for turn in restored.turns] == [{"question": "a"}, {"question": "b"}]
    assert tracked.runs() == []


def test_D19_a_model_says_what_it_needs(tracked: Tracked) -> None:
    with dspy.context(lm=scripted()):
        usual = log_model(talk("a"), extra_pip_requirements=["faiss-cpu==1.8"])
        given = log_model(talk("a"), name="given", pip_requirements=["dspy"])
    needs = (model_folder(usual.model_uri) / "requirements.txt").read_text()
    for name in ("dspy==", "dspy-session==", "mlflow==", "faiss-cpu==1.8"):
        assert name in needs
    assert "dspy-session" not in (model_folder(given.model_uri) / "requirements.txt").read_text()
    assert tracked.runs() == []


def test_D19_a_model_without_a_conversation(tracked: Tracked, tmp_path: Path) -> None:
    import mlflow.dspy

    mlflow.dspy.save_model(dspy.Predict(QA), str(tmp_path / "plain"), pip_requirements=[])
    with pytest.raises(
        FormatError, match=r"holds no conversation: there is no session_state\.json"
    ):
        load_model(tmp_path / "plain", module=dspy.Predict(QA))
    with refused_by_mlflow():
        load_model("models:/nobody/1", module=dspy.Predict(QA))
    with pytest.raises(ModuleTypeError):
        load_model(tmp_path / "plain", module="program")  # type: ignore[arg-type]
    assert tracked.runs() == []


def test_D19_a_damaged_model(tracked: Tracked) -> None:
    with dspy.context(lm=scripted()):
        info = log_model(talk("a"))
    folder = model_folder(info.model_uri)
    (folder / "session_state.json").write_text('{"kind": "dspy-session", "version": 99}')
    with pytest.raises(FormatError, match="version 99"):
        load_model(folder, module=dspy.Predict(QA))
    assert tracked.runs() == []
