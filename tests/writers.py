"""Processes that write to one store: what the tests of crashes and of contention start.

    with Writers() as writers:
        writer = writers.start(crash_writes, url, seed)
        writer.hear()                      # what it tells next; EOFError when it has ended
        writer.kill()                      # SIGKILL

Importing DSPy takes seconds, so they are forked from one process that has imported everything
(multiprocessing's fork server). They end with whoever started them: nobody hears them then.
"""

import asyncio
import itertools
import multiprocessing
import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, Self

import dspy

from dspy_session import Session
from dspy_session.errors import ConflictError
from dspy_session.manager import SessionManager
from dspy_session.testing import scripted_lm

PATIENCE: Final = 240.0
"""How many seconds a writer may be silent; this only keeps a test from hanging for ever."""

WINDOW: Final = 3
"""How many turns a call sees."""

SHARED: Final = "shared/ada"
"""The id of the session that all write to."""


def questions_in(prompt: list[dict[str, str]]) -> str:
    """The questions of a prompt, the last one asked now."""
    asked = (re.findall(r"\[\[ ## question ## \]\]\n(\S+)", each["content"]) for each in prompt[1:])
    return " ".join(itertools.chain.from_iterable(asked))


LM: Final = scripted_lm(lambda prompt: {"answer": questions_in(prompt)})
"""Its answers say what it was shown."""


def manager(url: str) -> SessionManager:
    """A manager as each process has one of its own."""
    if url.startswith("sqlite:///"):  # where nobody queues: who is unlucky waits for long
        url = f"{url}?timeout={PATIENCE}"
    return SessionManager(dspy.Predict("question -> answer"), url, max_turns=WINDOW)


# --- processes ------------------------------------------------------------------------------------

_processes: Final = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["pytest", "tests.writers_ready"])


class Writer:
    """One process.

    Args:
        work: What it does: a function that is handed `tell`, then the arguments.
        arguments: The arguments.
    """

    def __init__(self, work: Callable[..., object], *arguments: Any) -> None:
        self._heard, theirs = _processes.Pipe(duplex=False)
        self._process = _processes.Process(
            target=_write, args=(work, theirs, arguments), daemon=True
        )
        self._process.start()
        theirs.close()  # so that the end of the process is heard

    def hear(self) -> Any:
        """What it tells next.

        Raises:
            EOFError: It has ended.
        """
        if not self._heard.poll(PATIENCE):
            raise TimeoutError("A writer is silent.")
        return self._heard.recv()

    def hear_all(self) -> list[Any]:
        """All that it still tells."""
        heard = []
        while True:
            try:
                heard.append(self.hear())
            except EOFError:
                return heard

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._process.kill()
        self._process.join()

    def end(self) -> int | None:
        """Wait for its end; return its exit code."""
        self._process.join(PATIENCE)
        return self._process.exitcode


class Writers:
    """Processes that are gone when the block is left."""

    def __init__(self) -> None:
        self._started: list[Writer] = []
        self._barriers: list[object] = []

    def start(self, work: Callable[..., object], *arguments: Any) -> Writer:
        """Start one; see `Writer`."""
        self._started.append(Writer(work, *arguments))
        return self._started[-1]

    def start_together(
        self, count: int, work: Callable[..., object], *arguments: Any
    ) -> list[Writer]:
        """Start some that begin at once; each is handed a function to wait for the others, too."""
        barrier = _processes.Barrier(count)
        self._barriers.append(barrier)  # gone with its last user here, before the others have it
        return [self.start(work, barrier, number, *arguments) for number in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for writer in self._started:
            writer.kill()


def _write(work: Callable[..., object], told: Connection, arguments: tuple[Any, ...]) -> None:
    dspy.configure(lm=LM)
    work(told.send, *arguments)
    told.close()


# --- crashing -------------------------------------------------------------------------------------


class Change(NamedTuple):
    """One change of a world of sessions; `text` is of no other change."""

    kind: str
    text: str


_KINDS: Final = {
    "turn": 40,
    "add": 4,
    "data": 12,
    "forget": 3,
    "undo": 10,
    "redo": 8,
    "replace": 4,
    "rewind": 3,
    "metadata": 4,
    "fork": 6,
    "fork turn": 5,
    "delete": 3,
    "truncate": 2,
}


def changes(seed: int) -> Iterator[Change]:
    """Changes without an end: the same for one seed in every process."""
    drawn = random.Random(seed)
    yield Change("open", "")
    for number in itertools.count():
        (kind,) = drawn.choices(list(_KINDS), list(_KINDS.values()))
        yield Change(kind, f"{seed}.{number}")


class World:
    """Sessions by id: the shared one and its forks.

    Args:
        sessions: The sessions that there are.
        open: Opens the shared session.
        delete: Deletes another one.
    """

    def __init__(
        self,
        sessions: Mapping[str, Session],
        open: Callable[[str], Session],
        delete: Callable[[str], object],
    ) -> None:
        self.sessions, self._open, self._delete = dict(sessions), open, delete

    def make(self, change: Change) -> None:
        """Make one change; it has been made when this returns."""
        kind, text = change
        if kind == "open":
            if SHARED not in self.sessions:
                self.sessions[SHARED] = self._open(SHARED)
            return
        session = self.sessions[SHARED]
        forks = [id for id in self.sessions if id != SHARED]
        newest = max(forks, key=_numbers, default=None)
        match kind:
            case "turn":
                session(question=text)
            case "add":
                session.add_turn({"question": text}, {"answer": text})
            case "data":
                session.data[f"key {text[-1]}"] = text
            case "forget":
                session.data.clear()
            case "undo":
                session.undo(2)
            case "redo":
                session.redo()
            case "replace":
                if len(session):
                    session.replace_turn(session.turns[-1].index, {"answer": text})
            case "rewind":
                session.rewind(max(session.state.first, session.state.stop - 3))
            case "metadata":
                session.update_metadata({"last": text})
            case "truncate":
                session.truncate(12)
            case "fork":
                self.sessions[f"fork-{text}"] = session.fork(session_id=f"fork-{text}")
            case "fork turn" if newest is not None:
                self.sessions[newest](question=text)
            case "delete" if newest is not None:
                self._delete(newest)
                del self.sessions[newest]


def _numbers(fork: str) -> list[int]:
    return [int(part) for part in fork.removeprefix("fork-").split(".")]


def crash_writes(tell: Callable[[object], object], url: str, seed: int) -> None:
    """Make changes, and tell of each when it has been made, until somebody kills this process."""
    tell("begun")
    with manager(url) as kept:
        there = [info.session_id for info in kept.list_sessions()]
        world = World({id: kept.open(id) for id in there}, kept.open, kept.delete_session)
        for change in changes(seed):
            world.make(change)
            tell(change)


# --- contending -----------------------------------------------------------------------------------


def take_turns(
    tell: Callable[[object], object],
    barrier: threading.Barrier,
    number: int,
    url: str,
    on_conflict: str,
    count: int,
) -> None:
    """Take turns in the shared session; tell of each what became of it."""
    with manager(url) as kept:
        session = kept.open(SHARED, on_conflict=on_conflict)
        barrier.wait(PATIENCE)
        for turn in range(count):
            tell(_taken(session, f"p{number}.{turn}"))


def _taken(session: Session, question: str) -> tuple[str, str, str]:
    try:
        return "turn", question, session(question=question).answer
    except ConflictError as error:
        conflict = error
    assert conflict.turn.inputs == {"question": question}
    assert conflict.turn.outputs == {"answer": conflict.prediction.answer}
    session.refresh()
    return "conflict", question, conflict.prediction.answer


def take_turns_in_threads(
    tell: Callable[[object], object],
    barrier: threading.Barrier,
    number: int,
    url: str,
    on_conflict: str,
    count: int,
) -> None:
    """As `take_turns`, in four threads of one session."""

    def take(thread: int) -> None:
        with dspy.context(lm=LM):
            for turn in range(count):
                told.append(_taken(session, f"p{number}.{thread}.{turn}"))

    told: list[tuple[str, str, str]] = []
    with manager(url) as kept:
        session = kept.open(SHARED, on_conflict=on_conflict)
        threads = [threading.Thread(target=take, args=(thread,)) for thread in range(4)]
        barrier.wait(PATIENCE)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for each in told:
            tell(each)


def take_turns_in_tasks(
    tell: Callable[[object], object],
    barrier: threading.Barrier,
    number: int,
    url: str,
    on_conflict: str,
    count: int,
) -> None:
    """As `take_turns`, in four tasks of one session."""

    async def take(session: Session, task: int) -> None:
        for turn in range(count):
            question = f"p{number}.{task}.{turn}"
            prediction = await session.acall(question=question)
            tell(("turn", question, prediction.answer))

    async def all_take() -> None:
        with manager(url) as kept:
            session = await kept.aopen(SHARED, on_conflict=on_conflict)
            await asyncio.to_thread(barrier.wait, PATIENCE)
            await asyncio.gather(*(take(session, task) for task in range(4)))

    asyncio.run(all_take())


def send_requests(
    tell: Callable[[object], object],
    barrier: threading.Barrier,
    number: int,
    url: str,
    on_conflict: str,
    count: int,
) -> None:
    """Send the same requests as the others do, and tell what was answered."""
    with manager(url) as kept:
        session = kept.open(SHARED, on_conflict=on_conflict)
        for request in range(count):
            barrier.wait(PATIENCE)
            call = session.using(request_id=f"r{request}")
            tell((f"r{request}", call(question=f"r{request}.p{number}").answer))
