"""Threads in which DSPy parses, without Python's collector."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """For tests that run agents in threads.

    A ReAct makes a signature from a string in each step, which calls `ast.parse`. There Python 3.11
    up to 3.11.7 may raise "AST constructor recursion depth mismatch": the collector runs, which
    calls finalizers, which let another thread parse meanwhile (CPython issue 106905).
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
