"""A session as it is now, written to a run: as a whole, as examples, as scores on traces."""

from __future__ import annotations

from itertools import chain
from typing import Any

from dspy_session.errors import CallError
from dspy_session.integrations.mlflow.contents import (
    SCORE,
    SESSION_TAG,
    check_session,
    dataset_of,
    examples_file,
    files_of,
    measures_of,
    params_of,
    summary_of,
)
from dspy_session.integrations.mlflow.tracking import Tracking
from dspy_session.program.examples import Metric
from dspy_session.session import Session

__all__ = ["log_examples", "log_scores", "log_session", "write_scores"]


def log_session(
    session: Session,
    *,
    experiment: str | None = None,
    run_name: str | None = None,
    include_history: bool = True,
) -> str:
    """Log a session to MLflow: parameters, metrics by turn, and three files.

    Parameters are `session.module_type` and `session.<option>` for each option; metrics are
    `history_length` and `turn_score` by turn, `score_mean`, `score_min` and `score_max`, and what
    is known of time, tokens and cost. The files are `session_state.json`, which `Session.load_from`
    reads, `turns.json` and `examples.json`. Scores go onto the traces of their turns, too.

    Args:
        session: The session.
        experiment: The experiment's name, made if there is none; None for MLflow's active one.
            The run that is active in this thread is used as it is, wherever it is.
        run_name: The name of a run that is made, where none is active.
        include_history: Whether each example holds what its call saw.

    Returns:
        The run's id. A run that was active goes on.

    Raises:
        CallError: It is no session.
        OptionError: MLflow is not installed, or too old.
        ValueCodecError: A field holds a value of a type without written form; nothing is logged.
        MlflowException: MLflow refused; a run that was made for this is `FAILED`.
    """
    check_session("log_session", session)
    tracking = Tracking.opened()
    files, turns = files_of(session, include_history=include_history), session.turns
    with tracking.run(experiment, run_name) as run_id:
        tracking.log(
            run_id,
            chain(chain.from_iterable(map(measures_of, turns)), summary_of(turns)),
            params_of(session),
            {SESSION_TAG: session.session_id},
        )
        tracking.log_files(run_id, files)
        write_scores(tracking, session, run_id)
    return run_id


def log_examples(
    session: Session,
    *,
    dataset_name: str = "examples",
    metric: Metric | None = None,
    min_score: float | None = None,
    experiment: str | None = None,
    run_name: str | None = None,
    context: str = "training",
    **selection: Any,
) -> str:
    """Log a session's examples to MLflow: a dataset of the run, and a file that holds them.

    The file is `datasets/<dataset_name>.jsonl`; `examples_from_jsonl` reads it.

    Args:
        session: The session.
        dataset_name: The dataset's name.
        metric: As for `Session.to_examples`, which scores the turns with it.
        min_score: As for `Session.to_examples`.
        experiment: As for `log_session`.
        run_name: As for `log_session`.
        context: What the examples are for, as MLflow shows it.
        **selection: Further keywords of `Session.to_examples`.

    Returns:
        The run's id.

    Raises:
        CallError: It is no session, or no turn makes an example; nothing is logged.
        OptionError: MLflow is not installed, or too old.
        MetricError: As for `Session.to_examples`.
        ValueCodecError: A field holds a value of a type without written form; nothing is logged.
        MlflowException: MLflow refused; a run that was made for this is `FAILED`.
    """
    check_session("log_examples", session)
    tracking = Tracking.opened()
    examples = session.to_examples(metric, min_score=min_score, **selection)
    if not examples:
        asked = "" if min_score is None else f" with a score of {min_score} or more"
        raise CallError(
            f"The session has no turn{asked} that makes an example, so there is no dataset to log. "
            "Score its turns first, or lower min_score."
        )
    text, file = examples_file(examples, session), f"datasets/{dataset_name}.jsonl"
    with tracking.run(experiment, run_name) as run_id:
        tracking.log_files(run_id, {file: text})
        tracking.log_dataset(run_id, dataset_of(dataset_name, text), file, context)
    return run_id


def log_scores(session: Session) -> int:
    """Put the scores of a session's turns onto their traces, as MLflow's assessments.

    Each is a feedback named `turn_score`, with the metric's own feedback as its rationale. Logging
    again changes what has changed, and adds nothing else. The traces are looked for in MLflow's
    active experiment.

    Args:
        session: The session; score it before.

    Returns:
        How many turns have their score on a trace now. Turns without a trace are none of them.

    Raises:
        CallError: It is no session.
        OptionError: MLflow is not installed, or too old.
        MlflowException: MLflow refused.
    """
    check_session("log_scores", session)
    tracking = Tracking.opened()
    return _put_scores(tracking, session, [tracking.experiment(None)])


def write_scores(tracking: Tracking, session: Session, run_id: str) -> None:
    """Put scores onto the traces that are where MLflow is now, or where a run is.

    Args:
        tracking: MLflow.
        session: The session.
        run_id: The run.
    """
    _put_scores(tracking, session, [tracking.experiment(None), tracking.experiment_of(run_id)])


def _put_scores(tracking: Tracking, session: Session, places: list[str]) -> int:
    scored = {turn.id: turn for turn in session.turns if turn.score is not None}
    if not scored:
        return 0
    experiments = list(dict.fromkeys(places))
    traces = tracking.traces_of(session.session_id, list(scored), experiments)
    for turn_id, trace in traces.items():
        turn = scored[turn_id]
        assert turn.score is not None
        tracking.log_score(trace, turn_id, SCORE, turn.score, turn.feedback)
    return len(traces)
