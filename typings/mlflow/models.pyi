from typing import Any

Model: Any  # a class, of whose constructor nothing is used
