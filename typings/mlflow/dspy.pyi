from pathlib import Path
from typing import Any

import dspy

def _load_pyfunc(path: str) -> Any: ...
def autolog(
    log_traces: bool = True,
    log_traces_from_compile: bool = False,
    log_traces_from_eval: bool = True,
    log_compiles: bool = False,
    log_evals: bool = False,
    disable: bool = False,
    silent: bool = False,
) -> None: ...
def load_model(model_uri: str, dst_path: str | None = None) -> dspy.Module: ...
def save_model(
    model: dspy.Module,
    path: str,
    task: str | None = None,
    model_config: dict[str, Any] | None = None,
    code_paths: list[str] | None = None,
    mlflow_model: Any = None,
    conda_env: list[str] | str | None = None,
    signature: Any = None,
    input_example: Any = None,
    pip_requirements: list[str] | str | None = None,
    extra_pip_requirements: list[str] | str | None = None,
    metadata: dict[str, Any] | None = None,
    resources: str | Path | list[Any] | None = None,
    use_dspy_model_save: bool = False,
) -> None: ...
