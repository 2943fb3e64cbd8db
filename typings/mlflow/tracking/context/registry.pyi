from typing import Any

def resolve_tags(
    tags: dict[str, str] | None = None, ignore: list[Any] | None = None
) -> dict[str, str]: ...
