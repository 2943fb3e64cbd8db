from contextvars import ContextVar
from typing import Any

ACTIVE_CALL_ID: ContextVar[str | None]

class BaseCallback:
    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None: ...
    def on_module_end(
        self, call_id: str, outputs: Any | None, exception: BaseException | None = None
    ) -> None: ...
