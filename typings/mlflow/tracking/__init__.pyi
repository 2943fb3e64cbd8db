from collections.abc import Sequence
from typing import Any

class MlflowClient:
    def __init__(
        self,
        tracking_uri: str | None = None,
        registry_uri: str | None = None,
        workspace_store_uri: str | None = None,
    ) -> None: ...
    def create_experiment(
        self,
        name: str,
        artifact_location: str | None = None,
        tags: dict[str, Any] | None = None,
    ) -> str: ...
    def create_run(
        self,
        experiment_id: str,
        start_time: int | None = None,
        tags: dict[str, Any] | None = None,
        run_name: str | None = None,
    ) -> Any: ...
    def delete_experiment(self, experiment_id: str) -> None: ...
    def get_experiment_by_name(self, name: str) -> Any: ...
    def get_metric_history(self, run_id: str, key: str) -> list[Any]: ...
    def get_run(self, run_id: str) -> Any: ...
    def list_artifacts(self, run_id: str, path: str | None = None) -> list[Any]: ...
    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Any] = (),
        params: Sequence[Any] = (),
        tags: Sequence[Any] = (),
        synchronous: bool | None = None,
    ) -> Any: ...
    def log_inputs(
        self,
        run_id: str,
        datasets: Sequence[Any] | None = None,
        models: Sequence[Any] | None = None,
    ) -> None: ...
    def log_text(self, run_id: str, text: str, artifact_file: str) -> None: ...
    def search_runs(
        self,
        experiment_ids: list[str],
        filter_string: str = "",
        run_view_type: int = 1,
        max_results: int = 1000,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> Any: ...
    def search_traces(
        self,
        experiment_ids: list[str] | None = None,
        filter_string: str | None = None,
        max_results: int = 100,
        order_by: list[str] | None = None,
        page_token: str | None = None,
        run_id: str | None = None,
        include_spans: bool = True,
        model_id: str | None = None,
        locations: list[str] | None = None,
        flush: bool = False,
    ) -> Any: ...
    def set_terminated(
        self, run_id: str, status: str | None = None, end_time: int | None = None
    ) -> None: ...
