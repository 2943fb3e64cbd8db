from collections.abc import Callable, Iterable
from typing import Any

def dumps(
    obj: Any, protocol: int | None = None, buffer_callback: Callable[[Any], Any] | None = None
) -> bytes: ...
def loads(
    data: bytes,
    /,
    *,
    fix_imports: bool = True,
    encoding: str = "ASCII",
    errors: str = "strict",
    buffers: Iterable[Any] | None = (),
) -> Any: ...
