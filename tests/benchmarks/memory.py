"""What 300 turns leave in memory, under the settings that docs/guide/servers.md names.

    python -m tests.benchmarks.memory

Each row is a process of its own: Python's own count of allocated bytes after 300 turns of 200
characters each way, less what there was after the first, when everything is loaded.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from typing import Any, Final

import dspy

from dspy_session import sessionify
from dspy_session.testing import ScriptedLM

TURNS: Final = 300
LETTERS: Final = 200
SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "defaults": {},
    "max_history_size=10": {"max_history_size": 10},
    "disable_history=True": {"disable_history": True},
}


def kept(settings: dict[str, Any], by_hand: bool) -> int:
    """The bytes that the turns after the first leave."""
    lm = ScriptedLM(lambda _: {"answer": "a" * LETTERS})
    dspy.configure(lm=lm, **settings)
    session = sessionify(dspy.Predict("question -> answer"))
    written = dspy.Predict("question, history: dspy.History -> answer")
    messages: list[dict[str, Any]] = []

    def turn(number: int) -> None:
        question = f"{number} ".ljust(LETTERS, "q")
        if not by_hand:
            session(question=question)
            return
        answer = written(question=question, history=dspy.History(messages=messages)).answer
        messages.append({"question": question, "answer": answer})

    tracemalloc.start()
    turn(0)
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(1, TURNS):
        turn(number)
    lm.prompts.clear()  # that is the scripted model's own
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    return after - before


def main(arguments: list[str]) -> None:
    """Without arguments, run every row in a process of its own; with them, one row."""
    if arguments:
        name, way = arguments
        print(f"{name:24} {way:8} {kept(SETTINGS[name], way == 'by hand') / 1e6:6.1f} MB")
        return
    for name in SETTINGS:
        for way in ("session", "by hand"):
            subprocess.run([sys.executable, "-m", "tests.benchmarks.memory", name, way], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
