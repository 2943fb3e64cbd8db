"""Places to keep sessions in, as users write them: the four methods of `SessionStore`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


class Dicts:
    """Hands out the very dict that it was given, which is the least careful way."""

    def __init__(self) -> None:
        self.data: dict[str, dict[str, Any]] = {}

    def save(self, session_id: str, data: dict[str, Any]) -> None:
        self.data[session_id] = data

    def load(self, session_id: str) -> dict[str, Any] | None:
        return self.data.get(session_id)

    def delete(self, session_id: str) -> bool:
        return self.data.pop(session_id, None) is not None

    def list_sessions(self) -> list[str]:
        return list(self.data)


class Folder:
    """A JSON file for each session, whatever its id is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, session_id: str, data: dict[str, Any]) -> None:
        new = self.path / "new"
        new.write_text(json.dumps({"id": session_id, "data": data}))
        new.rename(self._file(session_id))

    def load(self, session_id: str) -> dict[str, Any] | None:
        file = self._file(session_id)
        data: dict[str, Any] | None = (
            json.loads(file.read_text())["data"] if file.exists() else None
        )
        return data

    def delete(self, session_id: str) -> bool:
        there = self._file(session_id).exists()
        self._file(session_id).unlink(missing_ok=True)
        return there

    def list_sessions(self) -> list[str]:
        return [json.loads(file.read_text())["id"] for file in self.path.glob("*.json")]

    def _file(self, session_id: str) -> Path:
        return self.path / f"{hashlib.sha256(session_id.encode()).hexdigest()}.json"
