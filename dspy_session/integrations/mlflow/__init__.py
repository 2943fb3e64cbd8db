"""Sessions in MLflow: as runs, as datasets, as models; scores on the traces of their turns.

Needs the extra `mlflow` (MLflow 3), which is imported when a function here is first called. What a
session keeps private or redacts is in nothing that is logged.
"""

from __future__ import annotations

from dspy_session.integrations.mlflow.live import MlflowTurnLogger, mlflow_turn_logger
from dspy_session.integrations.mlflow.models import load_model, log_model
from dspy_session.integrations.mlflow.sessions import log_examples, log_scores, log_session

__all__ = [
    "MlflowTurnLogger",
    "load_model",
    "log_examples",
    "log_model",
    "log_scores",
    "log_session",
    "mlflow_turn_logger",
]
