"""The storage of other libraries, for `tests.benchmarks.stores`; runs in an environment of theirs.

Reads one JSON question per line and answers with one JSON line. What both sides share stands here
as well: the texts, how an operation is timed, how bytes are counted. So this file imports nothing
but the standard library, and the peers only when one of them is opened.

Everybody runs as shipped: no pragma, no setting, no option beyond what the documentation shows.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import itertools
import json
import random
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Final

PINS: Final = (
    "llm==0.36",
    "openai-agents==0.24.0",
    "langgraph==1.2.22",
    "langgraph-checkpoint-sqlite==3.1.2",
)
LETTERS: Final = 400
LAST: Final = 10
_ITEMS: Final = 2  # messages per turn

_WORDS: Final = """
    about account after agent airline also answer back baggage before book booking cancel change
    check city could date day delay departure economy fare first flight from gate have help hour
    insurance know last leave like made money month morning name need next number order other
    passenger payment person please price question refund reservation return right same seat should
    some that their them there these they this ticket time total travel trip under upgrade want week
    were what when which will with without would year your
""".split()


def texts() -> Iterator[tuple[str, str]]:
    """What is said turn by turn: the same for everybody, and no two alike."""
    draw = random.Random(5)
    for number in itertools.count():
        yield _text(f"{number} asked", draw), _text(f"{number} told", draw)


def _text(start: str, draw: random.Random) -> str:
    return " ".join([start, *draw.choices(_WORDS, k=LETTERS // 3)])[:LETTERS]


class Subject:
    """One library with one conversation, in a file of its own.

    Each operation is prepared by the method of its name, which returns what is to be timed.
    """

    name: ClassVar[str]
    live: ClassVar[int] = 10_000
    """Up to which length a conversation is built turn by turn; a longer one in bulk."""
    grown: ClassVar[int] = 100
    """How many of its newest turns always come one by one; the file's growth by them is told."""
    fork_is: ClassVar[str] = ""
    """What stands for a fork where there is none."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.texts = texts()

    def build(self, turns: int) -> Any:
        """Adds so many turns at once."""
        raise NotImplementedError

    def append(self) -> Callable[[], Any]:
        """Adds the next turn."""
        raise NotImplementedError

    def fork(self) -> Callable[[], Any]:
        """Makes a second conversation of the same turns."""
        raise NotImplementedError

    def unfork(self) -> Any:
        """Takes the fork away again, if it would slow down what follows."""

    def last(self) -> Callable[[], Any]:
        """Reads the last ten turns."""
        raise NotImplementedError

    def undo(self) -> Callable[[], Any]:
        """Takes back the last turn."""
        raise NotImplementedError

    def load(self) -> Callable[[], Any]:
        """Reads all turns."""
        raise NotImplementedError

    def count(self, read: Any) -> int:
        """How many turns were read."""
        return len(read) // _ITEMS

    def first_words(self, read: Any) -> list[str]:
        """The number with which the input of each turn that was read begins."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes the file."""

    def pragmas(self) -> str:
        """How safe a commit is, by the connection that writes."""
        raise NotImplementedError


def pragmas_of(connection: Any) -> str:
    """Journal mode and the level of synchronous, of a connection of sqlite3."""
    journal = connection.execute("PRAGMA journal_mode").fetchone()[0]
    level = connection.execute("PRAGMA synchronous").fetchone()[0]
    return f"{journal}/{('OFF', 'NORMAL', 'FULL', 'EXTRA')[level]}"


def bytes_on_disk(file: Path) -> int:
    """The size of a database, after what waits in its write-ahead log was moved into it."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return sum(path.stat().st_size for path in file.parent.glob(file.name + "*"))


# --- measuring, for both sides --------------------------------------------------------------------


async def settled(result: Any) -> Any:
    """A result, waited for if it is to come."""
    return await result if inspect.isawaitable(result) else result


async def timed(subject: Subject, operation: str, times: int) -> list[float]:
    """Seconds that an operation took, each time; without a garbage collection in between."""
    clock = time.perf_counter
    took = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(times):
            run = getattr(subject, operation)()
            began = clock()
            result = run()
            if inspect.isawaitable(result):
                await result
            took.append(clock() - began)
            if operation == "fork":
                await settled(subject.unfork())
    finally:
        gc.enable()
    return took


async def seed(subject: Subject, turns: int) -> dict[str, Any]:
    """Builds a conversation of so many turns, and says how much the file grew by the newest."""
    live = turns <= subject.live
    early = max(turns - subject.grown, 0)
    if not live:
        await settled(subject.build(early))
    else:
        for _ in range(early):
            await settled(subject.append()())
    before = bytes_on_disk(subject.file)
    for _ in range(early, turns):
        await settled(subject.append()())
    whole = bytes_on_disk(subject.file)
    await verify(subject, turns)
    gc.collect()
    gc.freeze()  # what is there now is not gone through before each block
    return {
        "live": live,
        "each": (whole - before) / (turns - early),
        "whole": whole / turns if live else None,
        "pragmas": subject.pragmas(),
    }


async def verify(subject: Subject, turns: int) -> None:
    """Sees that a subject does what it is timed for."""
    whole = await settled(subject.load()())
    assert subject.count(whole) == turns, (subject.name, subject.count(whole), turns)
    last = await settled(subject.last()())
    assert subject.first_words(last) == subject.first_words(whole)[-LAST:], subject.name


# --- the peers ------------------------------------------------------------------------------------


def _items(turn: tuple[str, str]) -> list[dict[str, str]]:
    told, answered = turn
    return [{"role": "user", "content": told}, {"role": "assistant", "content": answered}]


class AgentsSession(Subject):
    """openai-agents' SQLiteSession."""

    name = "openai-agents SQLiteSession"
    fork_is = "a copy by get_items and add_items"

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.session = self.opened("chat")
        self.forked: Any = None

    def opened(self, id: str) -> Any:
        return importlib.import_module("agents").SQLiteSession(id, self.file)

    def build(self, turns: int) -> Any:
        pairs = itertools.islice(self.texts, turns)
        return self.session.add_items([item for pair in pairs for item in _items(pair)])

    def append(self) -> Callable[[], Any]:
        items = _items(next(self.texts))
        return lambda: self.session.add_items(items)

    def fork(self) -> Callable[[], Any]:
        async def copied() -> None:
            self.forked = self.opened("fork")
            await self.forked.add_items(await self.session.get_items())

        return copied

    async def unfork(self) -> None:
        await self.forked.clear_session()
        self.forked.close()

    def last(self) -> Callable[[], Any]:
        return lambda: self.session.get_items(limit=LAST * _ITEMS)

    def undo(self) -> Callable[[], Any]:
        async def popped() -> None:
            await self.session.pop_item()
            await self.session.pop_item()

        return popped

    def load(self) -> Callable[[], Any]:
        return lambda: self.session.get_items()

    def first_words(self, read: Any) -> list[str]:
        return [item["content"].split()[0] for item in read[::_ITEMS]]

    def close(self) -> None:
        self.session.close()

    def pragmas(self) -> str:
        return pragmas_of(self.session._get_connection())


class AgentsAdvanced(AgentsSession):
    """openai-agents' AdvancedSQLiteSession, which can branch."""

    name = "openai-agents AdvancedSQLiteSession"
    fork_is = "a branch without the last turn"
    live = 1_000

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.turns = 0
        self.names = itertools.count()
        self.branch = ""

    def opened(self, id: str) -> Any:
        memory = importlib.import_module("agents.extensions.memory")
        return memory.AdvancedSQLiteSession(session_id=id, db_path=self.file, create_tables=True)

    def build(self, turns: int) -> Any:
        self.turns += turns
        return super().build(turns)

    def append(self) -> Callable[[], Any]:
        self.turns += 1
        return super().append()

    def undo(self) -> Callable[[], Any]:
        self.turns -= 1
        return super().undo()

    def fork(self) -> Callable[[], Any]:  # before its last turn: it has no fork of all turns
        self.branch = f"branch {next(self.names)}"
        return lambda: self.session.create_branch_from_turn(self.turns, self.branch)

    async def unfork(self) -> None:
        await self.session.switch_to_branch("main")
        await self.session.delete_branch(self.branch)


class Llm(Subject):
    """llm's LogStore."""

    name = "llm LogStore"

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        database = importlib.import_module("sqlite_utils").Database(file)
        self.store = importlib.import_module("llm.logs").LogStore(database)
        llm = importlib.import_module("llm")
        self.user, self.assistant = llm.user, llm.assistant
        self.thread = self.store.create_thread()
        self.tips: list[str | None] = [None]

    def append(self) -> Callable[[], Any]:
        told, answered = next(self.texts)
        messages = [self.user(told), self.assistant(answered)]

        def added() -> None:
            with self.store.db.atomic():  # one commit, as its own `log` has; bare, it makes three
                self.tips.append(self.store.append(self.thread, messages))

        return added

    def fork(self) -> Callable[[], Any]:
        return lambda: self.store.fork(self.tips[-1], forked_from=self.thread)

    def last(self) -> Callable[[], Any]:  # there is nothing to read less with
        return lambda: self.store.thread_messages(self.thread)[-LAST * _ITEMS :]

    def undo(self) -> Callable[[], Any]:  # a fork from before it
        def forked() -> None:
            self.tips.pop()
            self.thread = self.store.fork(self.tips[-1], forked_from=self.thread)

        return forked

    def load(self) -> Callable[[], Any]:
        return lambda: self.store.thread_messages(self.thread)

    def first_words(self, read: Any) -> list[str]:
        return [message.parts[0].text.split()[0] for message in read[::_ITEMS]]

    def close(self) -> None:
        self.store.db.close()

    def pragmas(self) -> str:
        return pragmas_of(self.store.db.conn)


class LangGraph(Subject):
    """langgraph with its SQLite saver: a graph of one node that answers, invoked."""

    name = "langgraph SqliteSaver"
    live = 100
    grown = 3  # 36 MB each, after 10,000

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        graphs = importlib.import_module("langgraph.graph")
        saver = importlib.import_module("langgraph.checkpoint.sqlite").SqliteSaver
        self.connection = sqlite3.connect(file, check_same_thread=False)
        self.answer = ""
        graph = graphs.StateGraph(graphs.MessagesState)
        graph.add_node(
            "reply", lambda state: {"messages": [{"role": "assistant", "content": self.answer}]}
        )
        graph.add_edge(graphs.START, "reply")
        self.graph = graph.compile(checkpointer=saver(self.connection))
        self.thread = {"configurable": {"thread_id": "chat"}}
        self.ends: list[Any] = []

    def build(self, turns: int) -> Any:
        pairs = itertools.islice(self.texts, turns)
        messages = [item for pair in pairs for item in _items(pair)]
        self.graph.update_state(self.thread, {"messages": messages}, as_node="reply")

    def append(self) -> Callable[[], Any]:
        told, self.answer = next(self.texts)
        self.ends.append(self.graph.get_state(self.thread).config)
        asked = {"messages": [{"role": "user", "content": told}]}
        return lambda: self.graph.invoke(asked, self.thread)

    def fork(self) -> Callable[[], Any]:
        return lambda: self.graph.update_state(self.thread, None, as_node="__copy__")

    def last(self) -> Callable[[], Any]:  # a checkpoint is read whole
        return lambda: self.graph.get_state(self.thread).values["messages"][-LAST * _ITEMS :]

    def undo(self) -> Callable[[], Any]:  # a copy of the checkpoint before the turn
        end = self.ends.pop()
        return lambda: self.graph.update_state(end, None, as_node="__copy__")

    def load(self) -> Callable[[], Any]:
        return lambda: self.graph.get_state(self.thread).values["messages"]

    def first_words(self, read: Any) -> list[str]:
        return [message.content.split()[0] for message in read[::_ITEMS]]

    def close(self) -> None:
        self.connection.close()

    def pragmas(self) -> str:
        return pragmas_of(self.connection)


PEERS: Final[tuple[type[Subject], ...]] = (AgentsSession, AgentsAdvanced, Llm, LangGraph)


# --- the worker -----------------------------------------------------------------------------------


async def answer(question: dict[str, Any], opened: dict[tuple[str, int], Subject]) -> Any:
    """Does what one question asks for."""
    if question["what"] == "peers":
        return [{"name": peer.name, "fork_is": peer.fork_is} for peer in PEERS]
    place = question["name"], question["turns"]
    if question["what"] == "open":
        (kind,) = (peer for peer in PEERS if peer.name == question["name"])
        opened[place] = kind(Path(question["file"]))
        return await seed(opened[place], question["turns"])
    if question["what"] == "time":
        return await timed(opened[place], question["operation"], question["times"])
    subject = opened.pop(place)
    await verify(subject, question["turns"])
    subject.close()
    return None


def work() -> None:
    """Answers until nothing is asked any more."""
    answers, sys.stdout = sys.stdout, sys.stderr
    opened: dict[tuple[str, int], Subject] = {}
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            try:
                given = {"answer": runner.run(answer(json.loads(line), opened))}
            except Exception:  # noqa: BLE001  # the other process says which peer failed, and how
                given = {"error": traceback.format_exc()}
            print(json.dumps(given), file=answers, flush=True)


if __name__ == "__main__":
    work()
