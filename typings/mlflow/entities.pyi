from typing import Any

class AssessmentSource:
    def __init__(self, source_type: str, source_id: str | None = "default") -> None: ...

class Dataset:
    def __init__(
        self,
        name: str,
        digest: str,
        source_type: str,
        source: str,
        schema: str | None = None,
        profile: str | None = None,
    ) -> None: ...

class DatasetInput:
    def __init__(self, dataset: Dataset, tags: list[InputTag] | None = None) -> None: ...

class Feedback:
    def __init__(
        self,
        name: str = "feedback",
        value: Any = None,
        error: Any = None,
        source: AssessmentSource | None = None,
        trace_id: str | None = None,
        metadata: dict[str, str] | None = None,
        span_id: str | None = None,
        create_time_ms: int | None = None,
        last_update_time_ms: int | None = None,
        rationale: str | None = None,
        overrides: str | None = None,
        valid: bool = True,
    ) -> None: ...

class InputTag:
    def __init__(self, key: str, value: str) -> None: ...

class Metric:
    def __init__(
        self,
        key: str,
        value: float,
        timestamp: int,
        step: int,
        model_id: str | None = None,
        dataset_name: str | None = None,
        dataset_digest: str | None = None,
        run_id: str | None = None,
    ) -> None: ...

class Param:
    def __init__(self, key: str, value: str) -> None: ...

class RunTag:
    def __init__(self, key: str, value: str) -> None: ...
