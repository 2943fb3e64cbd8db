from typing import Any

class MlflowException(Exception):
    def __init__(
        self,
        message: str,
        error_code: int = 1,
        sqlstate: str | None = None,
        error_class: str | None = None,
        **kwargs: Any,
    ) -> None: ...
