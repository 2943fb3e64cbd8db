# Only what this project uses of dspy-template-adapter 0.2.2, which ships no types.
from collections.abc import Callable
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback

class TemplateAdapter(dspy.Adapter):
    def __init__(
        self,
        messages: list[dict[str, Any]],
        parse_mode: str | Callable[..., dict[str, Any]] = "json",
        callbacks: list[BaseCallback] | None = None,
        use_native_function_calling: bool = False,
        native_response_types: list[type] | None = None,
    ) -> None: ...
    def register_helper(self, name: str, fn: Callable[..., str]) -> None: ...

class Predict(dspy.Predict):
    def __init__(
        self,
        signature: str | type[dspy.Signature],
        callbacks: list[BaseCallback] | None = None,
        adapter: dspy.Adapter | None = None,
        **config: Any,
    ) -> None: ...
    def forward(self, **kwargs: Any) -> Any: ...
