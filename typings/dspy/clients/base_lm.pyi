from typing import Any

GLOBAL_HISTORY: list[dict[str, Any]]
