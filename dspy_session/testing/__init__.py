"""For tests of your own: a language model whose words are scripted, and the contract of stores.

lm = ScriptedLM(lambda prompt: {"answer": "Yes."})      # a real `dspy.LM`, offline
TestMyStore = store_contract(lambda: MyStore(...))      # a class that pytest collects
"""

from __future__ import annotations

from dspy_session.testing.contract import store_contract
from dspy_session.testing.scripted import (
    Prompt,
    Reply,
    ScriptedEngine,
    ScriptedLM,
    in_requested_format,
    requested_fields,
    scripted_lm,
)

__all__ = [
    "Prompt",
    "Reply",
    "ScriptedEngine",
    "ScriptedLM",
    "in_requested_format",
    "requested_fields",
    "scripted_lm",
    "store_contract",
]
