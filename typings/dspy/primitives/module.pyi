from typing import Any

class ProgramMeta(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any: ...
