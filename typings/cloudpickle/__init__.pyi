from collections.abc import Buffer, Callable
from typing import Any

def dumps(
    obj: Any, protocol: int | None = None, buffer_callback: Callable[[Any], Any] | None = None
) -> bytes: ...
def loads(data: Buffer, /, *, fix_imports: bool = True) -> Any: ...
