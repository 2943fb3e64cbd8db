"""A race: this library, a hand-written `dspy.History` loop, and the published dspy-session 0.1.2.

    uv run python tests/benchmarks/race.py [--quick] [--check] [--without-published]

All contenders answer the same conversations, in one run and in turns, so that a busy machine slows
all of them. The LM is a real `dspy.LM` on an engine that answers constant text, nothing is cached;
what is left is what a library costs. The bare `lm(messages=...)` call on the same prompt, which
nobody can avoid, is shown raw and subtracted from both sides before the ratio is taken.

The length of a conversation stays fixed while it is timed: what a call appended is taken back
outside the timer. The published package runs in an environment of its own, by its documented API
only, in a process that is this same script (`--worker`).

The script always ends with code 0; with `--check`, a missed limit makes it 1.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy
from dspy.clients.base_lm import GLOBAL_HISTORY
from dspy.lm15 import Message, Request, Response, TextPart, Usage

LENGTHS = {0: 1.3, 10: 0.9, 100: 0.25, 1_000: 0.12}
"""History lengths, and the most that a session call may cost of a hand-written one."""

PUBLISHED = "dspy-session==0.1.2"
QUESTION, ANSWER = "q" * 200, "a" * 200
TASK = "question -> answer"
MEGABYTE, KILOBYTE = 1_000_000, 1_000


# --- what everybody runs on -----------------------------------------------------------------------


class ConstantEngine:
    """A DSPy engine that answers every request with the same text."""

    def complete(self, request: Request) -> Response:
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant(
                [TextPart(f"[[ ## answer ## ]]\n{ANSWER}\n\n[[ ## completed ## ]]")]
            ),
            finish_reason="stop",
            usage=Usage(input_tokens=1, output_tokens=1, total_tokens=2),
        )

    def stream(self, request: Request) -> Iterator[Any]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def constant_lm() -> dspy.LM:
    return dspy.LM("constant", engine=ConstantEngine(), cache=False)


def forget_dspy_logs(*owners: Any) -> None:
    """Drops what DSPy itself retains of every call: its logs, and its trace."""
    GLOBAL_HISTORY.clear()
    for owner in owners:
        owner.history.clear()
    if dspy.settings.trace:
        dspy.settings.trace.clear()


@dataclass
class Racer:
    """One way to make a call; `again` puts back what the call changed and is not timed."""

    name: str
    call: Callable[[], object]
    again: Callable[[], object] = lambda: None
    times: list[float] = field(default_factory=list)

    @property
    def typical(self) -> float:
        return statistics.median(self.times)

    def run(self, calls: int) -> None:
        clock = time.perf_counter
        for _ in range(calls):
            began = clock()
            self.call()
            self.times.append(clock() - began)
            self.again()


@contextmanager
def quiet_collector() -> Iterator[None]:
    """No garbage collection inside a timed stretch, as in `timeit`."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def race(racers: list[Racer], rounds: int, calls: int, *logs: Any) -> None:
    """Lets the racers run in turns, in an order that rotates; a racer's first call never counts."""
    for racer in racers:
        if not racer.times:
            racer.run(1)
            racer.times.clear()
    for number in range(rounds):
        for place in range(len(racers)):
            with quiet_collector():
                racers[(number + place) % len(racers)].run(calls)
            forget_dspy_logs(*logs)


def bare_call(lm: dspy.LM, predict: Callable[[], object]) -> Racer:
    """The LM call alone, on the very messages that `predict` sends."""
    predict()
    messages = lm.history[-1]["messages"]
    return Racer("bare lm(messages=...)", lambda: lm(messages=messages))


# --- contenders -----------------------------------------------------------------------------------


def hand_written(turns: int) -> Racer:
    """The loop that DSPy's documentation shows."""

    class Chat(dspy.Signature):
        question: str = dspy.InputField()
        history: dspy.History = dspy.InputField()
        answer: str = dspy.OutputField()

    predict = dspy.Predict(Chat)
    messages = [{"question": QUESTION, "answer": ANSWER} for _ in range(turns)]

    def call() -> None:
        outputs = predict(question=QUESTION, history=dspy.History(messages=messages))
        messages.append({"question": QUESTION, **outputs})

    def again() -> None:
        messages.pop()
        predict.history.clear()

    return Racer("hand-written loop", call, again)


def with_session(turns: int) -> Racer:
    """A session, called; `fork` and `undo` cost the same at any length, but are not timed."""
    from dspy_session import sessionify

    session = sessionify(dspy.Predict(TASK))
    for _ in range(turns):
        session.add_turn(inputs={"question": QUESTION}, outputs={"answer": ANSWER})

    def again() -> None:
        session.undo()
        session.history.clear()
        session.module.history.clear()

    return Racer("session(...)", lambda: session(question=QUESTION), again)


def with_step(turns: int) -> Racer:
    """`step` from one state, which it does not change."""
    from dspy_session import step

    predict = dspy.Predict(TASK)
    state = state_of(turns)
    inputs = {"question": QUESTION}
    return Racer("step(state, ...)", lambda: step(state, predict, inputs), predict.history.clear)


def state_of(turns: int) -> Any:
    from dspy_session import sessionify

    session = sessionify(dspy.Predict(TASK))
    for _ in range(turns):
        session.add_turn(inputs={"question": QUESTION}, outputs={"answer": ANSWER})
    return session.state


# --- other processes: the published package's, and fresh ones to weigh things in ------------------


def interpreter(python: str) -> list[str]:
    """The command of an interpreter; another environment's sees none of this one's variables."""
    return [python] if python == sys.executable else [python, "-E"]


class Worker:
    """A script in another process; `ask` sends it one question and waits for the answer."""

    def __init__(self, python: str, script: Path = Path(__file__)) -> None:
        self._process = subprocess.Popen(
            [*interpreter(python), str(script.resolve()), "--worker"],
            cwd=tempfile.gettempdir(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def published_python() -> str:
    """The interpreter of an environment of the published package; see `python_with`."""
    return python_with(PUBLISHED, PUBLISHED, f"dspy=={importlib.metadata.version('dspy')}")


def cache() -> Path:
    """Where benchmarks keep what they make: outside of the repository."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return home / "dspy-session-race"


def python_with(name: str, *packages: str) -> str:
    """The interpreter of an environment that has some packages, made here or found again.

    Raises:
        RuntimeError: They could not be installed.
    """
    place = cache() / f"{name}-py{sys.version_info[0]}{sys.version_info[1]}"
    python = place / "bin" / "python"
    for command in (
        ["uv", "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(place)],
        ["uv", "pip", "install", "--quiet", "--python", str(python), *packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else command[1])
    return str(python)


def published_racers(turns: int) -> list[Racer]:
    """In the worker: its session, by the documented API, and the bare call on its prompt."""
    import dspy_session

    lm = dspy.settings.lm
    session: Any = dspy_session.sessionify(dspy.Predict(TASK))
    for _ in range(turns):
        session.add_turn(inputs={"question": QUESTION}, outputs={"answer": ANSWER})

    def call() -> None:
        session(question=QUESTION)

    bare = bare_call(lm, call)
    session.undo(steps=1)
    return [bare, Racer("published", call, lambda: session.undo(steps=1))]


def bytes_in_fresh_process(python: str, **question: Any) -> float:
    """Asks a worker of its own: an interpreter that did other things has spare blocks to reuse."""
    worker = Worker(python)
    try:
        answer: float = worker.ask(**question)["bytes"]
    finally:
        worker.close()
    return answer


def work() -> None:
    """The worker's loop: one JSON question per line, one JSON answer per line."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    lm = constant_lm()
    dspy.configure(lm=lm)
    racers: dict[int, list[Racer]] = {}
    for line in sys.stdin:
        question = json.loads(line)
        turns = question["turns"]
        if question["what"] == "call":
            if turns not in racers:
                racers[turns] = published_racers(turns)
            race(racers[turns], question["rounds"], question["calls"], lm)
            answer = {racer.name: racer.typical for racer in racers[turns]}
        elif question["what"] == "turns":
            answer = {"bytes": memory_of_turns(turns, question["max_turns"])}
        else:
            answer = {"bytes": memory_of_bare_sessions(1_000)}
        print(json.dumps(answer), file=answers, flush=True)


# --- memory ---------------------------------------------------------------------------------------


def memory_of_turns(turns: int, max_turns: int | None) -> int:
    """Bytes that a conversation retains after its calls; 800 characters in each turn, all unlike.

    DSPy's own logs and trace are off. This runs for both packages, by names that both document.
    """
    import dspy_session

    made: Any = dspy_session
    answers = iter(range(10**9))

    class Telling(ConstantEngine):
        def complete(self, request: Request) -> Response:
            text = f"{next(answers):0400d}"
            part = TextPart(f"[[ ## answer ## ]]\n{text}\n\n[[ ## completed ## ]]")
            return Response(
                id=None,
                model=request.model,
                message=Message.assistant([part]),
                finish_reason="stop",
                usage=Usage(input_tokens=1, output_tokens=1, total_tokens=2),
            )

    lm = dspy.LM("telling", engine=Telling(), cache=False)
    with dspy.context(lm=lm, disable_history=True, trace=[]):
        warm_up = made.sessionify(dspy.Predict(TASK))
        for number in range(3):
            warm_up(question=f"{number}")
        del warm_up
        session = made.sessionify(dspy.Predict(TASK), max_turns=max_turns)
        drop_render_cache()
        gc.collect()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for number in range(turns):
            session(question=f"{number:0400d}")
            dspy.settings.trace.clear()
        drop_render_cache()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len(session.turns) == turns
    return after - before


def drop_render_cache() -> None:
    """Of this library; the published package documents none."""
    with suppress(ImportError):
        from dspy_session import program

        program.clear_render_cache()


def memory_of_bare_sessions(count: int) -> float:
    """Bytes of a new session over a shared program."""
    from dspy_session import Session, sessionify

    predict = dspy.Predict(TASK)
    sessionify(predict, copy_mode="none")
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    sessions: list[Session] = [sessionify(predict, copy_mode="none") for _ in range(count)]
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / len(sessions)


# --- fork and import ------------------------------------------------------------------------------


def fork_times(rounds: int) -> tuple[float, float]:
    """What a fork of 10 and a fork of 10,000 turns costs."""
    from dspy_session import Session

    racers = []
    for turns in (10, 10_000):
        session = Session.from_state(state_of(turns), dspy.Predict(TASK))
        racers.append(Racer(f"fork of {turns}", session.fork))
    race(racers, rounds, 200)
    few, many = racers
    return few.typical, many.typical


_IMPORTS = """
import time
began = time.perf_counter()
import dspy
middle = time.perf_counter()
import dspy_session; dspy_session.Session
print(middle - began, time.perf_counter() - middle)
"""


def import_times(python: str, runs: int) -> tuple[float, float]:
    """Seconds for `import dspy`, and what `Session` adds; in fresh processes."""
    took = []
    for _ in range(runs + 1):  # the first one may write byte code
        done = subprocess.run(
            [*interpreter(python), "-c", _IMPORTS],
            cwd=tempfile.gettempdir(),
            capture_output=True,
            text=True,
            check=True,
        )
        took.append([float(number) for number in done.stdout.split()])
    alone, added = zip(*took[1:], strict=True)
    return statistics.median(alone), statistics.median(added)


# --- the table ------------------------------------------------------------------------------------


class Report:
    """Prints rows, and remembers whether a limit was missed."""

    def __init__(self) -> None:
        self.missed = 0

    def limit(self, what: str, value: float, most: float, unit: str = "") -> None:
        passed = value <= most
        self.missed += not passed
        verdict = "PASS" if passed else "FAIL"
        print(f"{verdict}  {what:<58} {value:>9.3f} <= {most:g} {unit}".rstrip())

    def note(self, text: str) -> None:
        print(f"      {text}")


def race_at(turns: int, published: Worker | None, report: Report, quick: bool) -> None:
    """Races all contenders at one history length and prints the block of the table."""
    lm = dspy.settings.lm
    heats, rounds = (2, 2) if quick else (5, 8)
    calls = {0: 25, 10: 20, 100: 5, 1_000: 1}[turns]
    hand, session, stepped = hand_written(turns), with_session(turns), with_step(turns)
    bare = bare_call(lm, hand.call)
    hand.again()
    racers = [bare, hand, session, stepped]
    theirs: dict[str, float] = {}
    for _ in range(heats):
        race(racers, rounds, calls, lm)
        if published is not None:  # the other process runs while this one waits
            theirs = published.ask(what="call", turns=turns, rounds=rounds, calls=calls)
    print(
        f"\n{turns} turns of history{'':<14} {'raw µs':>10} {'net µs':>10} {'raw ratio':>10} ratio"
    )
    net_hand = hand.typical - bare.typical
    rows = [(racer.name, racer.typical, bare.typical) for racer in racers]
    if theirs:
        rows.append((PUBLISHED, theirs["published"], theirs[bare.name]))
    for name, raw, under in rows:
        net = raw - under
        shares = "" if name == bare.name else f"{raw / hand.typical:>10.3f} {net / net_hand:.3f}"
        print(f"  {name:<32} {raw * 1e6:>10.1f} {net * 1e6:>10.1f} {shares}")
    for racer in (session, stepped):
        ratio = (racer.typical - bare.typical) / net_hand
        report.limit(f"{racer.name} after {turns} turns, of the loop, net", ratio, LENGTHS[turns])


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="fewer rounds; noisier")
    options.add_argument("--check", action="store_true", help="exit with 1 if a limit is missed")
    options.add_argument("--without-published", action="store_true", help="leave 0.1.2 out")
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # the bare call is DSPy's old form
    if chosen.worker:
        work()
        return 0

    lm = constant_lm()
    dspy.configure(lm=lm)
    print(
        f"Engine: dspy.LM(engine=ConstantEngine()), cache off; ChatAdapter; Predict({TASK!r}), "
        f"{len(QUESTION)}-character fields.\nDSPy {importlib.metadata.version('dspy')}, Python "
        f"{platform.python_version()}, {os.cpu_count()} CPUs. Medians; contenders take turns."
    )
    report = Report()
    other_python: str | None = None
    if not chosen.without_published:
        try:
            other_python = published_python()
        except (RuntimeError, OSError) as error:
            print(f"{PUBLISHED} could not be installed and is left out: {error}")
    published = Worker(other_python) if other_python else None
    for turns in LENGTHS:
        race_at(turns, published, report, chosen.quick)
    if published is not None:
        published.close()

    print("\nFork, memory, import")
    few, many = fork_times(3 if chosen.quick else 15)
    report.limit("fork of 10,000 turns, of a fork of 10", many / few, 2.0)
    report.note(f"{few * 1e6:.1f} µs and {many * 1e6:.1f} µs")
    shown = 10 if chosen.quick else None  # a long prompt is slow to trace, and is not retained
    ask: dict[str, Any] = {"what": "turns", "turns": 1_000, "max_turns": shown}
    size = bytes_in_fresh_process(sys.executable, **ask)
    report.limit("1,000 turns of 800 characters", size / MEGABYTE, 3.0, "MB")
    if other_python:
        size = bytes_in_fresh_process(other_python, **ask)
        report.note(f"{PUBLISHED}: {size / MEGABYTE:.1f} MB" + f", max_turns={shown}" * bool(shown))
    each = bytes_in_fresh_process(sys.executable, what="sessions", turns=0) / KILOBYTE
    report.limit('a copy_mode="none" session', each, 4.0, "KB")
    alone, added = import_times(sys.executable, 3 if chosen.quick else 7)
    report.limit("importing Session after dspy", added, 0.1, "s")
    report.note(f"import dspy alone: {alone:.3f} s")
    if other_python:
        _, added = import_times(other_python, 3 if chosen.quick else 7)
        report.note(f"{PUBLISHED}: {added:.3f} s")
    print(f"\n{report.missed} limits missed" if report.missed else "\nEvery limit holds")
    return 1 if chosen.check and report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
