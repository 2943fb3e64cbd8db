"""Modules x adapters x call modes: each cell is a conversation of three turns over HTTP.

Of what programs, which adapters and what model: see `tests/matrix_parts.py`. `python -m
tests.matrix` writes the results into `docs/reference/matrix.md`; a test compares them.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dspy

from dspy_session import Session, StreamEvent, TextEvent, TurnEvent, sessionify
from tests.house import PROJECT
from tests.loopback import LoopbackServer, Received
from tests.matrix_parts import ADAPTERS, EXTRACTOR, MODEL, MODULES, Model, asked_for

PAGE = PROJECT / "docs" / "reference" / "matrix.md"
COMMAND = "uv run python -m tests.matrix"
TURNS = 3

# --- one cell -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One program under one adapter, called in one way."""

    module: str
    adapter: str
    mode: str

    def __str__(self) -> str:
        return f"{self.module} / {self.adapter} / {self.mode}"


MODES = ("sync", "async", "stream")  # a stream is read by `for`, then by `async for`, by turns
CELLS = [Cell(m, a, mode) for m in MODULES for a in ADAPTERS for mode in MODES]


@dataclass(frozen=True)
class Refusal:
    """Why DSPy cannot run a module under an adapter, and what its error says."""

    error: str
    why: str


_TEMPLATE = (
    "`TemplateAdapter` 0.2.2 shows of a history what is in the signature. With native function "
    "calling the tool calls are not, so the agent never sees what a tool returned, and gives up."
)
REFUSED = {
    ("ReActV2, native function calling", "Template"): Refusal("no submit call", _TEMPLATE),
}


UNHEARD = {"BestOfN", "Refine"}
"""Whose streams have no text: their attempts are copies, and most of them are thrown away."""


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: how earlier turns were shown, or the error that ended it."""

    shown: str = ""
    error: str = ""


class Matrix:
    """Runs cells against a server, each once.

    Args:
        server: Its answers are replaced.
    """

    def __init__(self, server: LoopbackServer) -> None:
        self._server = server
        self._outcomes: dict[Cell, Outcome] = {}

    def __getitem__(self, cell: Cell) -> Outcome:
        """Run a cell, and check each request that the server received.

        Raises:
            AssertionError: A request did not show the conversation as it should.
        """
        if cell not in self._outcomes:
            self._outcomes[cell] = self._run(cell)
        return self._outcomes[cell]

    def _run(self, cell: Cell) -> Outcome:
        session, shown = sessionify(MODULES[cell.module]()), set[str]()
        with self._conversation(cell) as turns, calling(cell.mode) as call:
            for turn in turns:
                before = session.turns
                try:
                    events = call(session, f"question-{turn}")
                except Exception as error:  # noqa: BLE001  # the test says which are expected
                    assert session.turns == before
                    return Outcome(error=str(error))
                requests = own_requests(self._server.received)
                if cell.mode == "stream":
                    heard = check_events(events, session, turn)
                    assert heard == (cell.module not in UNHEARD)
                    assert heard == any(request.body.get("stream") for request in requests)
                for request in requests:
                    assert ADAPTERS[cell.adapter].mark in text_of(request.messages)
                    shown |= check(request, session, turn)
        for n, done in enumerate(session.turns):
            assert done.inputs == {"question": f"question-{n}"}
            assert f"answer-{n}" in (done.outputs.get("answer"), done.outputs.get("output"))
        assert len(session) == TURNS
        return Outcome(shown=" and ".join(sorted(shown)))

    def error_without_session(self, cell: Cell) -> str:
        """What the bare program says to the same calls."""
        program = MODULES[cell.module]()
        with self._conversation(cell) as turns:
            for turn in turns:
                try:
                    program(question=f"question-{turn}")
                except Exception as error:  # noqa: BLE001  # a test compares it
                    return str(error)
        return ""

    @contextmanager
    def _conversation(self, cell: Cell) -> Iterator[Iterator[int]]:
        """The numbers of the turns; the model answers accordingly, through the cell's adapter."""
        self._server.answer = model = Model()
        native = cell.module.endswith("native function calling")
        extractor = self._server.lm(EXTRACTOR, num_retries=0)
        adapter = ADAPTERS[cell.adapter].make(extractor, native)

        def turns() -> Iterator[int]:
            for model.turn in range(TURNS):
                self._server.received.clear()
                yield model.turn

        with dspy.context(lm=self._server.lm(MODEL, num_retries=0), adapter=adapter):
            yield turns()


Call = Callable[[Session, str], list[StreamEvent]]


@contextmanager
def calling(mode: str) -> Iterator[Call]:
    """How a session is called in a mode; the call returns the events, if it streams any."""

    async def awaited(session: Session, question: str) -> list[StreamEvent]:
        await session.acall(question=question)
        return []

    async def astreamed(session: Session, question: str) -> list[StreamEvent]:
        return [event async for event in session.astream(question=question)]

    def call(session: Session, question: str) -> list[StreamEvent]:
        if mode == "async":
            return loop.run(awaited(session, question))
        if mode == "stream" and len(session) % 2:
            return loop.run(astreamed(session, question))
        if mode == "stream":
            return list(session.stream(question=question))
        session(question=question)
        return []

    with asyncio.Runner() as loop:  # one for the whole conversation
        yield call


def check_events(events: list[StreamEvent], session: Session, turn: int) -> bool:
    """Check what was streamed: the text of each field, and the recorded turn.

    Returns:
        Whether any text came.
    """
    texts: dict[tuple[str, int, str], str] = {}
    for event in events:
        if isinstance(event, TextEvent):
            key = event.predictor, event.call, event.field
            texts[key] = texts.get(key, "") + event.text
    for (_, _, field), text in texts.items():
        assert text == Model.words(field, turn)
    assert isinstance(events[-1], TurnEvent)
    assert events[-1].turn is session.turns[-1]
    return bool(texts)


def own_requests(received: list[Received]) -> list[Received]:
    """Those of the program's predictors: neither Refine's judge nor TwoStepAdapter's extractor."""
    return [
        request
        for request in received
        if request.model == MODEL and "discussion" not in asked_for(request.messages)
    ]


def check(request: Received, session: Session, turn: int) -> set[str]:
    """Check what a request shows of earlier turns; returns how, if there are any."""
    _, *messages = request.messages
    shown = re.findall(r"\b([a-z]\w*)-(\d)\b", text_of(messages))
    earlier = [f"{name}-{number}" for name, number in shown if int(number) < turn]
    exchanges = [f"{name}-{number}" for number in range(turn) for name in ("question", "answer")]
    recorded = {str(value) for past in session.turns[:turn] for value in past.outputs.values()}
    assert [token for token in earlier if token in exchanges] == exchanges, "not once, in order"
    assert {*earlier} <= {*exchanges, *recorded}, "what happened inside earlier turns is shown"
    assert any(int(number) == turn for _, number in shown), "the current turn is not shown"
    for message in messages:
        content = text_of([message])
        assert content, "an empty message"
        assert not re.search(r"History\(|messages=|\"messages\"|\{'question'", content), "a dump"
        if message["role"] == "assistant":
            assert not re.search(r"\bNone\b|\bnull\b|Not supplied", content), "a missing field"
    replies = text_of([message for message in messages if message["role"] == "assistant"])
    return {"messages" if "answer-0" in replies else "text"} if turn else set()


def text_of(messages: list[dict[str, Any]]) -> str:
    """All that messages say, tool calls included."""
    said = []
    for message in messages:
        calls = [json.dumps(call["function"]) for call in message.get("tool_calls") or []]
        said.append("\n".join([str(message.get("content") or ""), *calls]))
    return "\n".join(said).strip()


# --- the page -------------------------------------------------------------------------------------

_INTRODUCTION = f"""\
# Modules, adapters and call modes

What the tests found; `{COMMAND}` wrote this page. Each cell stands for three
conversations of {TURNS} turns each, one sync, one async and one streamed, through a server that
speaks OpenAI's HTTP interface. The server's side was checked: every request held the earlier turns
once, readable and in order, and nothing in place of what a turn does not have.

*messages* means that the requests held earlier turns as user and assistant messages, *text* that
they held them as readable text in front of the inputs; *messages and text*, that some predictors of
the program saw the one and some the other. Numbers refer to the reasons below the table.

*Template* is the `TemplateAdapter` of dspy-template-adapter 0.2.2, with a message of the role
`history`. The last column is an adapter of one's own that overrides `format` and nothing else.
"""


_STREAMS = (
    f"Streams of {' and '.join(sorted(UNHEARD))} end with the turn and have no text before it: "
    "their attempts are copies of the program, and most of them are thrown away."
)


def page(matrix: Matrix) -> str:
    """The text of the reference page, from what every cell gave."""
    notes: list[str] = []
    own = [(name, make.__doc__) for name, make in MODULES.items() if isinstance(make, type)]
    lines = [
        _INTRODUCTION,
        f"| | {' | '.join(ADAPTERS)} |",
        f"|---|{'---|' * len(ADAPTERS)}",
    ]
    for module in MODULES:
        entries = [_entry(matrix, module, adapter, notes) for adapter in ADAPTERS]
        lines.append(f"| {module} | {' | '.join(entries)} |")
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, start=1))]
    lines += ["", "The rows that are no modules of DSPy:", ""]
    lines += [f"- *{name}*: {what}" for name, what in own if "native" not in name]
    lines += ["", _STREAMS]
    return "\n".join(lines) + "\n"


def _entry(matrix: Matrix, module: str, adapter: str, notes: list[str]) -> str:
    refusal = REFUSED.get((module, adapter))
    if refusal is None:
        (shown,) = {matrix[Cell(module, adapter, mode)].shown for mode in MODES}
        return shown
    if refusal.why not in notes:
        notes.append(refusal.why)
    return f"no ({notes.index(refusal.why) + 1})"


def main() -> None:
    with LoopbackServer(Model()) as server:
        PAGE.write_text(page(Matrix(server)), "utf-8")
    sys.stdout.write(f"Wrote {PAGE}.\n")


if __name__ == "__main__":
    main()
