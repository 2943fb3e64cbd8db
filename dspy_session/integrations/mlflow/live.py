"""Turns written to MLflow as they are recorded, from whichever thread records them."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Any

import msgspec

from dspy_session.core.turn import Turn
from dspy_session.integrations.mlflow.contents import (
    SESSION_TAG,
    check_session,
    files_of,
    measures_of,
    params_of,
    summary_of,
)
from dspy_session.integrations.mlflow.sessions import write_scores
from dspy_session.integrations.mlflow.tracking import Tracking, require_mlflow
from dspy_session.session import Session

__all__ = ["MlflowTurnLogger", "mlflow_turn_logger"]

logger = logging.getLogger("dspy_session")


class _Run(msgspec.Struct):
    """Where the turns of one session go.

    Attributes:
        id: The run.
        own: Whether the logger began it, so that the logger ends it.
        ended: Whether that was done.
    """

    id: str
    own: bool
    ended: bool = False


class MlflowTurnLogger:
    """Writes each turn to an MLflow run as it is recorded; made by `mlflow_turn_logger`.

    Args:
        experiment: As for `mlflow_turn_logger`.
        run_name: As for `mlflow_turn_logger`.

    Raises:
        OptionError: MLflow is not installed, or too old.
    """

    def __init__(self, experiment: str | None = None, run_name: str | None = None) -> None:
        require_mlflow()
        self._experiment, self._run_name = experiment, run_name
        self._runs: dict[str, _Run] = {}  # by session id, the first session's first
        self._tracking: Tracking | None = None
        self._lock = threading.Lock()

    def __call__(self, session: Session, turn: Turn) -> None:
        """Write the numbers of a turn; a session's first turn begins its run.

        Args:
            session: The session.
            turn: Its new turn.

        Raises:
            MlflowException: MLflow refused. As `on_turn`, that is logged, and the call goes on.
        """
        tracking, run = self._run_of(session)
        if run.ended:
            logger.warning(
                "The MLflow run of session %s has ended, so turn %d is not logged there.",
                session.session_id,
                turn.index,
            )
            return
        tracking.log(run.id, measures_of(turn))

    @property
    def run_id(self) -> str | None:
        """The run of the first session; None before its first turn."""
        return next((run.id for run in list(self._runs.values())), None)

    def end(self, session: Session | None = None) -> str | None:
        """Write a session's scores and files to its run, and end the run, if the logger began it.

        Ending again does nothing. A run of the application's own goes on.

        Args:
            session: The session; None ends all runs that are left, without files.

        Returns:
            The id of the session's run; None if it has none, or if it had ended.

        Raises:
            CallError: It is no session.
            ValueCodecError: A field holds a value of a type without written form.
            MlflowException: MLflow refused. After either, the run has ended as `FAILED`.
        """
        if session is None:
            for session_id in list(self._runs):
                run = self._to_end(session_id)
                if run is not None:
                    with self._ending(run):
                        pass
            return None
        check_session("end", session)
        run = self._to_end(session.session_id)
        if run is None:
            return None
        with self._ending(run):
            self._write(session, run.id)
        return run.id

    def _to_end(self, session_id: str) -> _Run | None:
        """The run of a session, if it has not ended; from now on nobody else ends it."""
        with self._lock:
            run = self._runs.get(session_id)
            if run is None or run.ended:
                return None
            run.ended = True
            return run

    def _ending(self, run: _Run) -> contextlib.AbstractContextManager[None]:
        assert self._tracking is not None  # there is a run
        return self._tracking.ending(run.id) if run.own else contextlib.nullcontext()

    def _write(self, session: Session, run_id: str) -> None:
        assert self._tracking is not None  # there is a run
        self._tracking.log_files(run_id, files_of(session))
        self._tracking.log(run_id, summary_of(session.turns))
        write_scores(self._tracking, session, run_id)

    def _run_of(self, session: Session) -> tuple[Tracking, _Run]:
        with self._lock:  # also while the first run is begun: forks are shown under it
            tracking = self._tracking = self._tracking or Tracking.opened()
            run = self._runs.get(session.session_id)
            if run is None:
                run = self._runs[session.session_id] = self._begun(tracking, session)
            return tracking, run

    def _begun(self, tracking: Tracking, session: Session) -> _Run:
        first = self.run_id
        run = _Run(tracking.active_run() or "", own=False)
        if first is not None or not run.id:
            name = self._run_name if first is None else None
            run = _Run(tracking.begin(self._experiment, name, parent=first), own=True)
        try:
            tracking.log(run.id, params=params_of(session), tags={SESSION_TAG: session.session_id})
        except BaseException:
            if run.own:
                tracking.fail(run.id)
            raise
        return run

    def __deepcopy__(self, memo: dict[int, Any]) -> MlflowTurnLogger:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (MlflowTurnLogger, (self._experiment, self._run_name))  # runs stay with their maker


def mlflow_turn_logger(
    experiment: str | None = None, run_name: str | None = None
) -> MlflowTurnLogger:
    """Return an `on_turn` that writes each turn to an MLflow run as it is recorded.

    The first turn begins the run, or takes the run that is active in its thread. Other sessions
    with the same logger, such as forks, have runs of their own, shown under the first one. Call
    `end(session)` at the end of a conversation.

    Args:
        experiment: The experiment's name, made if there is none; None for MLflow's active one.
        run_name: The name of the first run, if it is made.

    Raises:
        OptionError: MLflow is not installed, or too old.
    """
    return MlflowTurnLogger(experiment, run_name)
