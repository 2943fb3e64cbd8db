from typing import Any

from pydantic._internal._model_construction import ModelMetaclass
from pydantic.fields import FieldInfo

class SignatureMeta(ModelMetaclass):
    def __new__(
        mcs,
        signature_name: str,
        bases: tuple[type[Any], ...],
        namespace: dict[str, Any],
        **kwargs: Any,
    ) -> type: ...
    def __call__(cls, *args: Any, **kwargs: Any) -> Any: ...
    @property
    def instructions(cls) -> str: ...
    @instructions.setter
    def instructions(cls, instructions: str) -> None: ...
    @property
    def fields(cls) -> dict[str, FieldInfo]: ...
    @property
    def input_fields(cls) -> dict[str, FieldInfo]: ...
    @property
    def output_fields(cls) -> dict[str, FieldInfo]: ...
