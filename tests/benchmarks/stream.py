"""What streaming a session costs beside DSPy's own `streamify` of the bare program.

    python -m tests.benchmarks.stream --check

A server on this machine sends a token every 10 ms, to both by turns. The figure is the median of
the ratios of neighbouring runs; with `--check`, one above 1.05 is a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import dspy
from dspy.streaming import StreamListener

from dspy_session import TurnEvent, sessionify
from tests.loopback import LoopbackServer

MOST: Final = 1.05
TOKEN: Final = 0.010
QUESTION: Final = "What is a fjord?"
ANSWER: Final = (
    "[[ ## reasoning ## ]]\n"
    + "It was cut by ice. " * 6
    + "\n\n[[ ## answer ## ]]\n"
    + "A drowned valley. " * 6
    + "\n\n[[ ## completed ## ]]"
)

Run = Callable[[], None]


def bare(program: dspy.Module, awaited: bool) -> Run:
    """The program under DSPy's own streamify."""

    def listeners() -> list[Any]:
        fields = ("reasoning", "answer")
        return [StreamListener(field) for field in fields]

    def stream(**how: Any) -> Any:
        return dspy.streamify(program, stream_listeners=listeners(), **how)(question=QUESTION)

    async def read() -> None:
        *_, last = [value async for value in stream(is_async_program=True)]
        assert last.answer.startswith("A drowned valley.")

    def run() -> None:
        *_, last = stream(async_streaming=False)
        assert last.answer.startswith("A drowned valley.")

    return (lambda: asyncio.run(read())) if awaited else run


def in_session(program: dspy.Module, awaited: bool) -> Run:
    """The program in a session, at the first turn of a conversation."""
    session = sessionify(program)

    async def read() -> None:
        session.reset()
        *_, last = [event async for event in session.astream(question=QUESTION)]
        assert isinstance(last, TurnEvent)

    def run() -> None:
        session.reset()
        *_, last = session.stream(question=QUESTION)
        assert isinstance(last, TurnEvent)

    return (lambda: asyncio.run(read())) if awaited else run


def ratio(theirs: Run, ours: Run, pairs: int) -> tuple[float, float, float]:
    """The median ratio of neighbouring runs, and the median times of both in seconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(-1, pairs):  # the first one warms up
        sides = [(theirs, times[0]), (ours, times[1])]
        for run, kept in sides if pair % 2 else reversed(sides):
            began = time.perf_counter()
            run()
            kept.append(time.perf_counter() - began)
    theirs_taken, ours_taken = times[0][1:], times[1][1:]
    ratios = [ours / theirs for theirs, ours in zip(theirs_taken, ours_taken, strict=True)]
    return tuple(map(statistics.median, (ratios, theirs_taken, ours_taken)))  # type: ignore[return-value]


def main() -> int:
    """Print a line per way of reading; return 1 if one is too slow and that is to be checked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--pairs", type=int, default=15)
    arguments = parser.parse_args()
    worst = 0.0
    with LoopbackServer(lambda body: ANSWER, pace=lambda *_: time.sleep(TOKEN)) as server:
        dspy.configure(lm=server.lm())
        program = dspy.ChainOfThought("question -> answer")
        for name, awaited in (("sync", False), ("async", True)):
            sides = bare(program, awaited), in_session(program, awaited)
            found, theirs, ours = ratio(*sides, arguments.pairs)
            print(f"{name:5}  streamify {theirs:.3f} s  session {ours:.3f} s  ratio {found:.3f}")
            worst = max(worst, found)
    return int(arguments.check and worst > MOST)


if __name__ == "__main__":
    sys.exit(main())
