"""From the value of a conversation to what a store keeps, and back."""

from __future__ import annotations

__all__: list[str] = []
