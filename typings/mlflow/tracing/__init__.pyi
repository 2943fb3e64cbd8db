from contextlib import AbstractContextManager

def context(
    metadata: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
    enabled: bool | None = None,
    session_id: str | None = None,
    user: str | None = None,
) -> AbstractContextManager[None]: ...
def reset() -> None: ...
