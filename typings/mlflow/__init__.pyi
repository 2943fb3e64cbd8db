# Only what this project uses of MLflow. Its own types are many: mypy would take a minute for them.
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient as MlflowClient

def active_run() -> Any: ...
def clear_active_model() -> None: ...
def end_run(status: str = "FINISHED") -> None: ...
def flush_trace_async_logging(terminate: bool = False) -> None: ...
def get_current_active_span() -> Any: ...
def log_assessment(trace_id: str, assessment: Any) -> Any: ...
def set_experiment(
    experiment_name: str | None = None,
    experiment_id: str | None = None,
    trace_location: Any = None,
) -> Any: ...
def set_tracking_uri(uri: str | Path) -> None: ...
def start_run(
    run_id: str | None = None,
    experiment_id: str | None = None,
    run_name: str | None = None,
    nested: bool = False,
    parent_run_id: str | None = None,
    tags: dict[str, Any] | None = None,
    description: str | None = None,
    log_system_metrics: bool | None = None,
) -> Any: ...
def start_span(
    name: str = "span",
    span_type: str | None = "UNKNOWN",
    attributes: dict[str, Any] | None = None,
    trace_destination: Any = None,
    log_level: Any = None,
    run_id: str | None = None,
    links: list[Any] | None = None,
    description: str | None = None,
) -> AbstractContextManager[Any]: ...
def update_assessment(trace_id: str, assessment_id: str, assessment: Any) -> Any: ...
