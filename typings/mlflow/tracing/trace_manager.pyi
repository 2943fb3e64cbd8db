from contextlib import AbstractContextManager
from typing import Any, Self

class InMemoryTraceManager:
    @classmethod
    def get_instance(cls) -> Self: ...
    def get_trace(self, trace_id: str) -> AbstractContextManager[Any]: ...
