"""Traces that say which conversation and which turn they are of, where MLflow is tracing.

MLflow traces what DSPy does (`mlflow.dspy.autolog()`) and what an application wraps in spans of its
own, and groups traces by a session id in their metadata. So a turn writes its ids there.

Rules:

- Nothing is imported: where MLflow is not loaded, a turn looks into `sys.modules` once.
- What the metadata says already stays: a session id of the application's own, and of several
  sessions in one trace the first. The trace names each of its turns.
- Parts of a turn, and calls of which nothing is kept, leave the trace as it is.
- A tracer that fails is logged, and never breaks a turn.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

import dspy
from dspy.utils.callback import BaseCallback

from dspy_session.program.frame import Frame

__all__ = ["SESSION_KEY", "TURN_KEY", "TraceMarker", "trace_markers"]

SESSION_KEY: Final = "mlflow.trace.session"
"""The key of a trace's metadata by which MLflow groups traces."""
TURN_KEY: Final = "dspy_session.turn_id"
"""The key of a trace's metadata that has the ids of its turns, with spaces between them."""

_LIMIT: Final = 250  # characters, as in MLflow; a turn's id has 32

logger = logging.getLogger("dspy_session")


class TraceMarker(BaseCallback):
    """Writes the ids of a turn into the trace that is open when its program starts.

    Args:
        session_id: The conversation's id; None if it has none.
        turn_id: The turn's id; None if the call will not be recorded.
    """

    def __init__(self, session_id: str | None, turn_id: str | None) -> None:
        self._session_id, self._turn_id = session_id, turn_id
        self._waits = True

    # DSPy calls it by keyword, so an argument that is of no use here is named all the same.
    def on_module_start(
        self,
        call_id: str,  # noqa: ARG002
        instance: Any,  # noqa: ARG002
        inputs: dict[str, Any],  # noqa: ARG002
    ) -> None:
        """Mark the trace, when the first module starts: that is the program."""
        if self._waits:
            self._waits = False
            self.mark()

    def mark(self) -> None:
        """Write the ids into the trace that is open now, if one is."""
        try:
            self._mark()
        except Exception:  # a trace is worth less than the turn that it is about
            logger.warning("MLflow's trace of a turn could not be marked", exc_info=True)

    def _mark(self) -> None:
        span = sys.modules["mlflow"].get_current_active_span()
        if span is None:
            return
        manager = sys.modules["mlflow.tracing.trace_manager"].InMemoryTraceManager.get_instance()
        with manager.get_trace(span.trace_id) as trace:
            if trace is None:  # a span that leads nowhere: tracing is switched off
                return
            metadata: dict[str, str] = trace.info.trace_metadata
            if self._session_id is not None:
                metadata.setdefault(SESSION_KEY, self._session_id)
            if self._turn_id is not None:
                turns = f"{metadata.get(TURN_KEY, '')} {self._turn_id}".strip()
                if len(turns) <= _LIMIT:
                    metadata[TURN_KEY] = turns


def trace_markers(frame: Frame, session_id: str | None, turn_id: str | None) -> list[BaseCallback]:
    """Return what is to be called behind a tracer as the program starts; mostly nothing.

    Where MLflow does not trace DSPy, a trace that is open already is marked at once.

    Args:
        frame: The turn that is about to run.
        session_id: The conversation's id; None if it has none.
        turn_id: The turn's id; None if the call will not be recorded.
    """
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or frame.trial or frame.parent is not None:
        return []
    marker = TraceMarker(session_id, turn_id)
    tracer = getattr(sys.modules.get("mlflow.dspy.callback"), "MlflowCallback", None)
    if tracer is not None and any(isinstance(each, tracer) for each in dspy.settings.callbacks):
        return [marker]
    if hasattr(mlflow, "get_current_active_span"):  # it may be just about to be imported
        marker.mark()
    return []
