"""A real MLflow tracking store for tests: SQLite and a folder, without network and telemetry.

MLflow takes seconds to import, so that is done by the fixtures, not when tests are collected.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

__all__ = ["Tracked", "_tracking_store", "tracked"]

SETTINGS = {
    "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_EXPERIMENT_ID": "",
}


class Tracked:
    """An experiment of one test's own, which is MLflow's active one.

    Attributes:
        name: The experiment's name.
        id: The experiment's id.
        folder: Where its artifacts are.
        client: MLflow's client.
    """

    def __init__(self, folder: Path) -> None:
        import mlflow

        self.name, self.folder, self.client = uuid4().hex, folder, mlflow.MlflowClient()
        self.id = self.client.create_experiment(self.name, folder.as_uri())
        mlflow.set_experiment(experiment_id=self.id)

    def runs(self) -> list[Any]:
        """The runs of the experiment, oldest first."""
        runs = self.client.search_runs([self.id], order_by=["attributes.start_time ASC"])
        return list(runs)

    def run(self) -> Any:
        """The only run of the experiment."""
        (run,) = self.runs()
        return run

    def steps(self, run_id: str, key: str) -> dict[int, float]:
        """The values of a metric by step."""
        return {one.step: one.value for one in self.client.get_metric_history(run_id, key)}

    def text(self, run_id: str, name: str) -> str:
        """An artifact of a run."""
        return (self.folder / run_id / "artifacts" / name).read_text("utf-8")

    def traces(self) -> list[Any]:
        """The traces of the experiment, oldest first."""
        found = self.client.search_traces(locations=[self.id], order_by=["timestamp_ms ASC"])
        return list(found)

    def marks(self, key: str) -> list[str | None]:
        """A key of the metadata of each trace, oldest first."""
        return [trace.info.trace_metadata.get(key) for trace in self.traces()]

    def written(self) -> str:
        """Everything that was logged in files, and what the store knows of runs and traces."""
        files = [path.read_bytes() for path in self.folder.rglob("*") if path.is_file()]
        known = [repr(run.to_dictionary()).encode() for run in self.runs()]
        return b"\n".join(files + known).decode("utf-8", "replace")


@pytest.fixture(scope="session")
def _tracking_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a store; to make one takes MLflow seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def tracked(
    _tracking_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Tracked]:
    """An experiment of this test's own; MLflow and DSPy are afterwards as they were before."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    import dspy
    import mlflow
    import mlflow.dspy
    import mlflow.tracing

    before, connect = dspy.settings.copy(), socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"a test reached for {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.chdir(tmp_path)  # MLflow writes there what it is told no other place for
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    mlflow.set_tracking_uri(_tracking_store)
    mlflow.tracing.reset()  # perhaps it was used under other settings, by a document
    mlflow.clear_active_model()  # a loaded model becomes it
    yield Tracked(tmp_path / "artifacts")
    mlflow.end_run()
    mlflow.dspy.autolog(disable=True)
    mlflow.set_tracking_uri(_tracking_store)
    dspy.configure(**before)
