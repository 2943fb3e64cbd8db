"""Where conversations are kept: nodes and refs in memory, SQLite, PostgreSQL, Redis or one's own.

A store never knows what a turn means; from states to records and back leads `dspy_session.journal`.
"""

from __future__ import annotations

__all__: list[str] = []
