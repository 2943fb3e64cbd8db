"""What it costs to store a conversation, beside llm, openai-agents and langgraph.

    uv run python -m tests.benchmarks.stores [--quick] [--check] [--without-peers] [--write]
    uv run python -m tests.benchmarks.stores --profile append|last|load|fork|undo
    uv run python -m tests.benchmarks.stores --airline

Everybody has the same conversations, of 10 to 10,000 turns of 800 characters, in SQLite files side
by side, with the settings that their package has by default. All take turns, a few operations at a
time, so that a busy machine slows all of them; an undo takes back what was appended, so that a
conversation keeps its length. The peers run in an environment of their own, in one process
(`store_peers`), this library in this one.

The limits of speed are ratios to a yardstick: what openai-agents' SQLiteSession takes in the same
run to append a turn to a conversation of the same length. The script always ends with code 0; with
`--check`, a missed limit makes it 1. `--write` puts the figures into the documentation.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import os
import platform
import pstats
import random
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import dspy

from dspy_session import SessionManager, from_jsonl
from tests.benchmarks import store_peers, store_tables
from tests.benchmarks.race import Report, Worker, cache, python_with
from tests.benchmarks.store_ours import OURS, Archived
from tests.benchmarks.store_peers import LETTERS, PINS, Subject, seed, timed, verify
from tests.test_real_conversations import CONVERSATIONS

LENGTHS: Final = (10, 100, 1_000, 10_000)
OPERATIONS: Final = {  # in this order, so that an undo takes back what was appended
    "append": "Append one turn",
    "last": "Last ten turns",
    "load": "Load all",
    "fork": "Fork",
    "undo": "Undo one turn",
}
READS: Final = frozenset({"last", "load"})
YARDSTICK: Final = "openai-agents SQLiteSession"
YARD_MS: Final = 0.46
"""What it appended a turn in on the machine for which the limits in milliseconds were set."""

LIMITS_MS: Final = {"append": 0.6, "fork": 1.0, "last": 0.3, "undo": 1.0}
LOAD_MS: Final = 150.0  # of the longest
FLAT: Final = 1.3
BYTES: Final = 1_500

SLOW_S: Final = 0.02


# --- who runs -------------------------------------------------------------------------------------


class Entrant:
    """A conversation of some length in somebody's keeping, here or in the other process."""

    def __init__(
        self,
        name: str,
        turns: int,
        facts: dict[str, Any],
        time: Callable[[str, int], list[float]],
        close: Callable[[], object],
    ) -> None:
        self.name = name
        self.turns = turns
        self.facts = facts
        self.close = close
        self.took: dict[str, list[float]] = defaultdict(list)
        self._time = time
        self._slow: set[str] = set()

    def warm_up(self) -> None:
        """A few of each, which do not count."""
        for operation in OPERATIONS:
            if statistics.median(self._time(operation, 2)) > SLOW_S:
                self._slow.add(operation)
        if self._slow & {"append", "undo"}:
            self._slow |= {"append", "undo"}  # as often the one as the other

    def run(self, operation: str, afterwards: bool) -> None:
        """One block of an operation, if it is its time; a small one, if the operation is slow."""
        slow = operation in self._slow
        if (slow and operation not in READS) == afterwards:
            times = 2 if afterwards else 1 if slow else 10
            self.took[operation] += self._time(operation, times)

    def typical(self, operation: str) -> float:
        return statistics.median(self.took[operation])

    def high(self, operation: str) -> float:
        return statistics.quantiles(self.took[operation], n=10, method="inclusive")[-1]


def entrant_here(kind: type[Subject], turns: int, folder: Path, runner: asyncio.Runner) -> Entrant:
    """This library, at one length."""
    subject = kind(folder / f"{kind.name} {turns}.db")
    facts = runner.run(seed(subject, turns))

    def close() -> None:
        runner.run(verify(subject, turns))
        subject.close()

    return Entrant(
        kind.name,
        turns,
        facts,
        lambda operation, times: runner.run(timed(subject, operation, times)),
        close,
    )


def entrant_there(peer: dict[str, Any], turns: int, folder: Path, worker: Worker) -> Entrant:
    """A peer, at one length."""
    name = peer["name"]

    def ask(what: str, **more: Any) -> Any:
        said = worker.ask(what=what, name=name, turns=turns, **more)
        if "error" in said:
            raise RuntimeError(f"{name} at {turns} turns:\n{said['error']}")
        return said["answer"]

    facts = ask("open", file=str(folder / f"{name} {turns}.db"))
    return Entrant(
        name,
        turns,
        {**facts, **peer},
        lambda operation, times: list(ask("time", operation=operation, times=times)),
        lambda: ask("close"),
    )


def race(entrants: list[Entrant], rounds: int, slow_rounds: int) -> None:
    """Lets all of them run in turns, each time in another order.

    What is slow and writes runs afterwards: it writes so much that the disk is busy with it for a
    while. Reads disturb nobody, so all of them run beside what they are compared with: a machine
    that others share is faster in one minute than in the next.
    """
    for entrant in entrants:
        entrant.warm_up()
    draw = random.Random(5)
    for afterwards, count in ((False, rounds), (True, slow_rounds)):
        os.sync()
        for _ in range(count):
            for operation in OPERATIONS:
                for entrant in draw.sample(entrants, len(entrants)):
                    entrant.run(operation, afterwards)


# --- what is told ---------------------------------------------------------------------------------


def machine(folder: Path, peers: bool) -> str:
    """What all of it ran on."""
    packages = ["sqlalchemy", "msgspec", "dspy"]
    ours = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"{processor()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}\n"
        f"{ours}\n"
        + (f"{', '.join(PINS).replace('==', ' ')}\n" if peers else "")
        + f"A write of 4 KB with fsync in {folder.parent}: {fsync_ms(folder):.2f} ms\n"
        + f"{busy()}\n"
        f"A turn: {LETTERS} characters in, {LETTERS} out. Median ms, and the 90th percentile"
    )


def busy() -> str:
    """How busy the machine is: a commit may wait for a processor more than for the disk."""
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    mark = "; too BUSY for figures that mean something" if load > 0.75 * processors else ""
    return f"Load average {load:.1f} of {processors}{mark}"


def processor() -> str:
    """The name of the processor, as far as the system tells."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def fsync_ms(folder: Path) -> float:
    """What the disk takes for the least that is durable."""
    took = []
    with (folder / "probe").open("wb") as file:
        for _ in range(50):
            file.write(bytes(4_096))
            began = time.perf_counter()
            file.flush()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e3


def told(entrants: list[Entrant]) -> None:
    """Prints the tables."""
    names = list(dict.fromkeys(entrant.name for entrant in entrants))
    by_place = {(entrant.name, entrant.turns): entrant for entrant in entrants}
    for operation, title in OPERATIONS.items():
        print(f"\n{title:<40}" + "".join(f"{turns:>20,}" for turns in LENGTHS))
        for name in names:
            cells = (by_place[name, turns] for turns in LENGTHS)
            print(
                f"  {name:<38}"
                + "".join(
                    f"{each.typical(operation) * 1e3:>11.3f} {each.high(operation) * 1e3:>8.3f}"
                    for each in cells
                )
            )
    print(f"\n{'Bytes on disk per turn':<40}" + "".join(f"{turns:>20,}" for turns in LENGTHS))
    for name in names:
        sizes = (_size(by_place[name, turns].facts) for turns in LENGTHS)
        print(f"  {name:<38}" + "".join(f"{size:>20}" for size in sizes))
    print("  (the file, of that its growth with the newest; for one built in bulk only the latter)")
    print()
    for name in names:
        print(f"  {name}: {'; '.join(notes([by_place[name, turns] for turns in LENGTHS]))}")


def _size(facts: dict[str, Any]) -> str:
    whole = "" if facts["whole"] is None else f"{facts['whole']:,.0f}"
    return f"{whole} +{facts['each']:,.0f}"


def notes(entrants: list[Entrant]) -> list[str]:
    """What one must know of somebody's figures."""
    facts = [entrant.facts for entrant in entrants]
    said = [f"commits with {facts[0]['pragmas']}"]
    if facts[0].get("fork_is"):
        said.append(f"a fork is {facts[0]['fork_is']}")
    bulk = [f"{each.turns:,}" for each in entrants if not each.facts["live"]]
    if bulk:
        said.append(f"{' and '.join(bulk)} turns built in bulk")
    few = min(len(took) for entrant in entrants for took in entrant.took.values())
    said.append(f"each figure from {few} runs or more")
    return said


def judge(entrants: list[Entrant], report: Report) -> None:
    """Compares the archive, which is what users have, with its limits."""
    by_place = {(entrant.name, entrant.turns): entrant for entrant in entrants}
    ours = {turns: by_place[Archived.name, turns] for turns in LENGTHS}
    few, many = ours[LENGTHS[0]], ours[LENGTHS[-1]]
    print(f"\nLimits of {Archived.name}")
    for operation in LIMITS_MS:
        what = f"{OPERATIONS[operation]}: at {many.turns:,} turns, of that at {few.turns}"
        report.limit(what, many.typical(operation) / few.typical(operation), FLAT)
    report.limit(f"Bytes on disk per turn, of {many.turns:,}", many.facts["whole"], BYTES)
    for turns, entrant in ours.items():
        yardstick = by_place.get((YARDSTICK, turns))
        if yardstick is None:
            report.note(f"at {turns:,} turns: no {YARDSTICK} to compare with")
            continue
        limits = dict(LIMITS_MS, **({"load": LOAD_MS} if entrant is many else {}))
        for operation, most in limits.items():
            took = entrant.typical(operation)
            what = f"{OPERATIONS[operation]} at {turns:,}, of an append by the yardstick"
            ratio = took / yardstick.typical("append")
            report.limit(what, ratio, round(most / YARD_MS, 2), f"({took * 1e3:.3f} ms)")


def figures(entrants: list[Entrant]) -> dict[str, dict[str, list[float]]]:
    """Typical milliseconds at each length, by name and operation."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for entrant in sorted(entrants, key=lambda each: each.turns):
        for operation in OPERATIONS:
            found[entrant.name][operation].append(1e3 * entrant.typical(operation))
    return found


# --- the ways to run it ---------------------------------------------------------------------------


@contextmanager
def working_folder(given: Path | None) -> Iterator[Path]:
    """A folder for the files, on a real disk, gone afterwards."""
    home = given or cache()
    home.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="stores-", dir=home))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def peers_worker() -> Worker | None:
    """The process of the peers, in their environment; None, with a word, if there can be none."""
    try:
        python = python_with("-".join(pin.replace("==", "-") for pin in PINS), *PINS)
    except (RuntimeError, OSError) as error:
        print(f"The peers could not be installed and are left out: {error}")
        return None
    return Worker(python, Path(store_peers.__file__))


def compare(folder: Path, quick: bool, with_peers: bool, write: bool) -> int:
    """The benchmark itself; returns how many limits were missed."""
    report = Report()
    with ExitStack() as stack:
        worker = peers_worker() if with_peers else None
        peers: list[dict[str, Any]] = []
        if worker is not None:
            stack.callback(worker.close)
            peers = worker.ask(what="peers")["answer"]
        runner = stack.enter_context(asyncio.Runner())
        print(machine(folder, bool(peers)), flush=True)
        entrants = []
        for turns in LENGTHS:
            entrants += [entrant_here(kind, turns, folder, runner) for kind in OURS]
            if worker is not None:
                entrants += [entrant_there(peer, turns, folder, worker) for peer in peers]
        race(entrants, *((5, 2) if quick else (20, 8)))
        for entrant in entrants:
            entrant.close()
    told(entrants)
    if write:
        store_tables.write(figures(entrants))
    print(f"\n{busy()}")
    judge(entrants, report)
    print(
        f"\n{report.missed} limits missed"
        if report.missed
        else "\nEvery limit that was looked at holds"
    )
    return report.missed


def profile(folder: Path, operation: str, quick: bool) -> None:
    """Prints where the time of an operation of the archive goes, at the greatest length."""
    turns, times = (1_000, 50) if quick else (LENGTHS[-1], 1_000 if operation == "append" else 5)
    subject = Archived(folder / "profile.db")
    profiler = cProfile.Profile()
    with asyncio.Runner() as runner:
        runner.run(seed(subject, turns))
    for _ in range(times):
        run = getattr(subject, operation)()
        profiler.runcall(run)
    subject.close()
    print(f"{OPERATIONS[operation]}, at {turns:,} turns, {times} times")
    for order in ("tottime", "cumulative"):
        pstats.Stats(profiler).strip_dirs().sort_stats(order).print_stats(30)


def airline(folder: Path) -> None:
    """The recorded conversations through a `SessionManager`: sizes and figures."""
    if not CONVERSATIONS.is_file():
        print(f"{CONVERSATIONS} is not there: it has the recorded conversations.")
        return
    with CONVERSATIONS.open(encoding="utf-8") as lines:
        recorded = from_jsonl(lines)
    names = [f"airline/{number:02}" for number in range(len(recorded))]
    file, exports = folder / "airline.db", folder / "exports"
    exports.mkdir()
    program = dspy.Predict("question -> answer")
    with SessionManager(program, file) as manager, SessionManager(program, "memory:") as other:
        steps: dict[str, Callable[[int], object]] = {
            "store": lambda n: manager.open(names[n], messages=recorded[n]),
            "list all, reading no turn": lambda n: manager.list_sessions(),
            "search all for a word": lambda n: manager.search("refund", limit=None),
            "open": lambda n: manager.load_session(names[n]).turns,
            "fork": lambda n: manager.create_session(f"fork {n}", branch_from=names[n]),
            "export to a file": lambda n: manager.export_session(names[n], exports / f"{n}.json"),
            "import from a file": lambda n: other.import_session(exports / f"{n}.json"),
            "verify": lambda n: manager.verify(names[n]),
        }
        print(
            f"{len(recorded)} conversations, {CONVERSATIONS.stat().st_size / 1e6:.1f} MB as JSONL"
        )
        print("\nmedian ms of one hundred")
        for name, work in steps.items():
            took = []
            for number in range(len(recorded)):
                began = time.perf_counter()
                work(number)
                took.append(time.perf_counter() - began)
            print(f"{name:>28} {1e3 * statistics.median(took):8.2f}")
        found = manager.statistics()
        print(
            f"\n{found.session_count} sessions, {found.turn_count} turns, "
            f"{found.size_bytes / 1e6:.2f} MB of payloads"
        )
    print(f"the closed file: {file.stat().st_size / 1e6:.2f} MB")


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--quick", action="store_true", help="fewer rounds; noisier")
    options.add_argument("--check", action="store_true", help="exit with 1 if a limit is missed")
    options.add_argument("--without-peers", action="store_true", help="this library alone")
    options.add_argument("--profile", choices=list(OPERATIONS), help="where the time goes")
    options.add_argument("--airline", action="store_true", help="the recorded conversations")
    options.add_argument("--folder", type=Path, help="where the files are to be; a real disk")
    options.add_argument("--write", action="store_true", help="into the documentation's tables")
    chosen = options.parse_args()
    with working_folder(chosen.folder) as folder:
        if chosen.profile:
            profile(folder, chosen.profile, chosen.quick)
            return 0
        if chosen.airline:
            airline(folder)
            return 0
        missed = compare(folder, chosen.quick, not chosen.without_peers, chosen.write)
    return 1 if chosen.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
