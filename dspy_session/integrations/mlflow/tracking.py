"""The one place that talks to MLflow's tracking: runs by their ids, traces, scores on traces.

Runs are written to by id, through a client: MLflow's active run belongs to one thread, and turns
come from any. What MLflow raises reaches the caller as it is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import msgspec

from dspy_session.errors import OptionError
from dspy_session.program.tracing import SESSION_KEY, TURN_KEY

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Dataset", "Measure", "Tracking", "require_mlflow"]

_OLDEST: Final = 3  # MLflow's major version
_TRACES: Final = 500  # how many MLflow hands out at once
_SOURCE: Final = "dspy_session"

Trace = Any  # of MLflow's: `info.trace_id`, `info.trace_metadata`, `info.assessments`


class Measure(NamedTuple):
    """One value of a metric.

    Attributes:
        key: The metric's name.
        value: Its value.
        step: Which turn it is about.
        time: When that was, in seconds since the epoch; None for now.
    """

    key: str
    value: float
    step: int = 0
    time: float | None = None


class Dataset(NamedTuple):
    """What is written down of a file of examples.

    Attributes:
        name: What they are called.
        digest: A digest of the file.
        columns: Their fields, as MLflow's schemas name them.
        rows: How many there are.
    """

    name: str
    digest: str
    columns: list[dict[str, Any]]
    rows: int


class Tracking:
    """MLflow, as far as sessions are logged there.

    Args:
        client: Where it is written.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    @classmethod
    def opened(cls) -> Self:
        """Return MLflow with the tracking server of this process.

        Raises:
            OptionError: MLflow is not installed, or too old.
        """
        require_mlflow()
        import mlflow  # noqa: PLC0415  # an extra, and slow to import

        return cls(mlflow.MlflowClient())

    # --- runs -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def run(self, experiment: str | None, run_name: str | None) -> Iterator[str]:
        """Write to this thread's active run, which goes on, or to one that ends behind.

        Args:
            experiment: As for `begin`.
            run_name: As for `begin`.

        Yields:
            The run's id.
        """
        active = self.active_run()
        if active is not None:
            yield active
            return
        run_id = self.begin(experiment, run_name)
        with self.ending(run_id):
            yield run_id

    @contextlib.contextmanager
    def ending(self, run_id: str) -> Iterator[None]:
        """End a run behind what is done with it: as failed if that raises.

        Args:
            run_id: The run.
        """
        try:
            yield
        except BaseException:
            self.fail(run_id)
            raise
        self._client.set_terminated(run_id, "FINISHED")

    def fail(self, run_id: str) -> None:
        """End a run as failed, if that can be done: the error before it says more.

        Args:
            run_id: The run.
        """
        with contextlib.suppress(Exception):
            self._client.set_terminated(run_id, "FAILED")

    def active_run(self) -> str | None:
        """Return the id of the run that is active in this thread, or None."""
        import mlflow  # noqa: PLC0415  # an extra, and slow to import

        active = mlflow.active_run()
        return None if active is None else active.info.run_id

    def begin(
        self, experiment: str | None, run_name: str | None = None, parent: str | None = None
    ) -> str:
        """Begin a run and return its id; it is nobody's active run.

        Args:
            experiment: The experiment's name, made if there is none; None for the active one.
            run_name: The run's name; None lets MLflow find one.
            parent: The run that it is shown under, in the same experiment.
        """
        from mlflow.tracking.context.registry import resolve_tags  # noqa: PLC0415  # an extra

        tags = {} if parent is None else {"mlflow.parentRunId": parent}
        place = self.experiment(experiment) if parent is None else self.experiment_of(parent)
        run = self._client.create_run(place, tags=resolve_tags(tags), run_name=run_name)
        run_id: str = run.info.run_id
        return run_id

    def experiment(self, name: str | None) -> str:
        """Return the id of an experiment.

        Args:
            name: Its name; it is made if there is none. None for the active experiment.
        """
        from mlflow.exceptions import MlflowException  # noqa: PLC0415  # an extra
        from mlflow.tracking.fluent import _get_experiment_id  # noqa: PLC0415  # an extra

        if name is None:
            return _get_experiment_id() or "0"
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name)
            except MlflowException:  # perhaps somebody else made it meanwhile
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        experiment_id: str = found.experiment_id
        return experiment_id

    def experiment_of(self, run_id: str) -> str:
        """Return the id of the experiment that a run belongs to.

        Args:
            run_id: The run.
        """
        experiment_id: str = self._client.get_run(run_id).info.experiment_id
        return experiment_id

    def log(
        self,
        run_id: str,
        measures: Iterable[Measure] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write metrics, parameters and tags to a run.

        Args:
            run_id: The run.
            measures: Values of metrics.
            params: Parameters, which a run has once and for all.
            tags: Tags.
        """
        from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415  # an extra

        now = time.time()
        self._client.log_batch(  # however many they are: MLflow's client divides them
            run_id,
            [
                Metric(one.key, one.value, round(1_000 * (one.time or now)), one.step)
                for one in measures
            ],
            [Param(key, text) for key, text in (params or {}).items()],
            [RunTag(key, text) for key, text in (tags or {}).items()],
            synchronous=True,
        )

    def log_files(self, run_id: str, files: Mapping[str, str]) -> None:
        """Write texts as artifacts of a run.

        Args:
            run_id: The run.
            files: The texts by file name.
        """
        for name, text in files.items():
            self._client.log_text(run_id, text, name)

    def log_dataset(self, run_id: str, dataset: Dataset, file: str, context: str) -> None:
        """Write down which examples a run used, as MLflow's datasets.

        Args:
            run_id: The run.
            dataset: What is known of them.
            file: The artifact of the run that holds them.
            context: What they are for, such as `"training"`.
        """
        from mlflow.entities import Dataset as Entity  # noqa: PLC0415  # an extra
        from mlflow.entities import DatasetInput, InputTag  # noqa: PLC0415  # an extra

        uri = f"{self._client.get_run(run_id).info.artifact_uri}/{file}"
        scheme, colon, _ = uri.partition(":/")
        given = Entity(
            name=dataset.name,
            digest=dataset.digest,
            source_type=scheme if colon and scheme != "file" else "local",
            source=msgspec.json.encode({"uri": uri}).decode(),
            schema=msgspec.json.encode({"mlflow_colspec": dataset.columns}).decode(),
            profile=msgspec.json.encode({"num_rows": dataset.rows}).decode(),
        )
        tags = [InputTag("mlflow.data.context", context)]
        self._client.log_inputs(run_id, datasets=[DatasetInput(given, tags)])

    # --- traces -----------------------------------------------------------------------------------

    def traces_of(
        self, session_id: str, turn_ids: Sequence[str], experiments: Sequence[str]
    ) -> dict[str, Trace]:
        """Return the traces of turns, by the turn's id; of several traces of one turn, the newest.

        Turns that a session shares with the one it was forked from have traces of that one.

        Args:
            session_id: The session that is likely to have most of them.
            turn_ids: The turns.
            experiments: The ids of the experiments to look in.
        """
        import mlflow  # noqa: PLC0415  # an extra

        found = self._found(session_id, turn_ids, experiments)
        if len(found) < len(turn_ids):  # traces are on their way for a moment
            mlflow.flush_trace_async_logging()
            found = self._found(session_id, turn_ids, experiments)
        return found

    def _found(
        self, session_id: str, turn_ids: Sequence[str], experiments: Sequence[str]
    ) -> dict[str, Trace]:
        found: dict[str, Trace] = {}
        if not self._traces(TURN_KEY, "!=", "", experiments, 1):
            return found  # nobody traces: no use asking for every turn
        self._take(self._traces(SESSION_KEY, "=", session_id, experiments), found)
        for turn_id in turn_ids:
            if turn_id not in found and turn_id:  # perhaps of a session that this was forked from
                for trace in self._traces(TURN_KEY, "=", turn_id, experiments, 1):
                    origin = trace.info.trace_metadata.get(SESSION_KEY, "")
                    self._take(self._traces(SESSION_KEY, "=", origin, experiments), found)
                    self._take([trace], found)
        return {turn_id: found[turn_id] for turn_id in turn_ids if turn_id in found}

    def _take(self, traces: Iterable[Trace], found: dict[str, Trace]) -> None:
        for trace in traces:  # the newest come first
            for turn_id in trace.info.trace_metadata.get(TURN_KEY, "").split():
                found.setdefault(turn_id, trace)

    def _traces(
        self, key: str, how: str, value: str, experiments: Sequence[str], limit: int | None = None
    ) -> list[Trace]:
        if "'" in value:
            return []  # which nothing escapes there
        traces: list[Trace] = []
        token: str | None = None
        while limit is None or len(traces) < limit:
            page = self._client.search_traces(
                list(experiments),  # by position: its name has changed within MLflow 3
                filter_string=f"metadata.`{key}` {how} '{value}'",
                max_results=limit or _TRACES,
                order_by=["timestamp_ms DESC"],
                page_token=token,
                include_spans=False,
            )
            traces += page
            token = page.token
            if not token:
                break
        return traces

    def log_score(
        self, trace: Trace, turn_id: str, name: str, score: float, rationale: str | None
    ) -> None:
        """Put the score of a turn on its trace; one that is there already is changed, if it must.

        Args:
            trace: The trace.
            turn_id: The turn.
            name: What the score is called there.
            score: The score.
            rationale: What was said beside it, if anything.
        """
        import mlflow  # noqa: PLC0415  # an extra
        from mlflow.entities import AssessmentSource, Feedback  # noqa: PLC0415  # an extra

        source, said = AssessmentSource("CODE", _SOURCE), {TURN_KEY: turn_id}
        for known in trace.info.assessments or []:
            if known.name != name or (known.metadata or {}).get(TURN_KEY) != turn_id:
                continue
            if (known.feedback.value, known.rationale or "") != (score, rationale or ""):
                changed = Feedback(  # what is None in it would stay as it was
                    name=name, value=score, source=source, rationale=rationale or "", metadata=said
                )
                mlflow.update_assessment(trace.info.trace_id, known.assessment_id, changed)
            return
        given = Feedback(name=name, value=score, source=source, rationale=rationale, metadata=said)
        mlflow.log_assessment(trace.info.trace_id, given)


def require_mlflow() -> None:
    """Say so in one line if MLflow cannot be used.

    Raises:
        OptionError: It is not installed, or too old.
    """
    try:
        import mlflow  # noqa: PLC0415  # an extra, and slow to import
    except ImportError as error:
        raise OptionError(
            "MLflow is not installed: install dspy-session[mlflow], or mlflow>=3,<4."
        ) from error
    version = getattr(mlflow, "__version__", "?")
    if not version.split(".")[0].isdecimal() or int(version.split(".")[0]) < _OLDEST:
        raise OptionError(f"MLflow {version} is too old: install mlflow>=3,<4.")
