"""What `dspy-session demo` shows: one conversation, offline, from the first turn to a saved file.

Only the model's words are scripted. The script looks facts up in the messages of the prompt that it
is really sent, so a conversation that did not reach the prompt shows as "I don't know."; calling
`run_demo(max_turns=0)` makes it show. DSPy, its adapter, its optimizer and the session are real.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TextIO

import dspy

from dspy_session import Session, sessionify
from dspy_session.testing import Prompt, ScriptedLM

__all__ = ["answer_from_prompt", "run_demo"]

UNKNOWN: Final = "I don't know."
NAME_QUESTION: Final = "What is my name?"
CITY_QUESTION: Final = "Where am I flying to?"

_QUESTION: Final = re.compile(r"\[\[ ## question ## \]\]\n(.*?)(?:\n\n|\Z)", re.DOTALL)
_NAME: Final = re.compile(r"[Mm]y name is (\w+)")
_CITY: Final = re.compile(r"I am flying to (\w+)")
_DEMO_MARK: Final = "[[ ## history ## ]]"  # the user message of a demo shows its history as a field


def answer_from_prompt(prompt: Prompt) -> dict[str, str]:
    r"""Answer the last question of a prompt from what its other messages say.

    Args:
        prompt: The messages that DSPy sends. Those of an optimizer's demos are about other
            conversations and are not looked at.

    Returns:
        The output field `answer`.

    Example:
        >>> def user(text):
        ...     return {"role": "user", "content": f"[[ ## question ## ]]\n{text}"}
        >>> answer_from_prompt([user("My name is Ada."), user("What is my name?")])
        {'answer': 'Your name is Ada.'}
        >>> answer_from_prompt([user("What is my name?")])
        {'answer': "I don't know."}
    """
    said = [
        found[1]
        for message in prompt
        if message["role"] == "user" and _DEMO_MARK not in message["content"]
        if (found := _QUESTION.search(message["content"]))
    ]
    *_, question = said
    if question == NAME_QUESTION:
        name = _latest(_NAME, said)
        return {"answer": f"Your name is {name}." if name else UNKNOWN}
    if question == CITY_QUESTION:
        city = _latest(_CITY, said)
        return {"answer": f"You are flying to {city}." if city else UNKNOWN}
    if _NAME.search(question) or _CITY.search(question):
        return {"answer": "Noted."}
    return {"answer": UNKNOWN}


def _latest(fact: re.Pattern[str], said: list[str]) -> str | None:
    return next((found[1] for text in reversed(said) if (found := fact.search(text))), None)


def run_demo(out: TextIO | None = None, *, max_turns: int | None = None) -> None:
    """Show a conversation: fork, undo, training examples, an optimizer, saving.

    It needs no network, no key and no configured LM, and leaves nothing behind.

    Args:
        out: Where the text goes; standard output if None.
        max_turns: How many turns later prompts show: 0 takes the model's memory away.
    """
    lm = ScriptedLM(answer_from_prompt)
    show = _Screen(out if out is not None else sys.stdout, lm)
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        show.text(_INTRODUCTION)
        session = sessionify(dspy.Predict("question -> answer"), max_turns=max_turns)
        _show_conversation(session, show)
        _show_fork(session, show)
        _show_undo(session, show)
        _show_learning(session, show)
        _show_data(session, show)
        _show_saving(session, show)
    show.text(_CLOSING)


_INTRODUCTION: Final = """\
dspy-session: a DSPy program in a conversation

The model's words below are scripted: no network, no key. The script looks its facts up in the
prompt that it is really sent, so if the conversation did not reach the prompt, it would answer
"I don't know." DSPy, its chat adapter, its optimizer and the session are the real ones."""

_CLOSING: Final = """\

With a real model
  $ export OPENAI_API_KEY=...
  >>> import dspy
  >>> from dspy_session import sessionify
  >>> dspy.configure(lm=dspy.LM("openai/gpt-4o-mini"))
  >>> session = sessionify(dspy.Predict("question -> answer"))
  >>> session(question="My name is Ada.").answer
Any DSPy program and any model that DSPy can reach will do.
The same demo without a memory: dspy-session demo --max-turns 0"""


class _Screen:
    """Writes plain text, and tells how long the prompts were."""

    def __init__(self, out: TextIO, lm: ScriptedLM) -> None:
        self._out = out
        self.lm = lm

    def text(self, text: str) -> None:
        print(text, file=self._out)

    def heading(self, number: int, title: str, code: str) -> None:
        self.text(f"\n{number}. {title}\n   >>> {code}")

    def ask(self, who: str, session: Session, question: str) -> str:
        answer: str = session(question=question).answer
        sent = len(self.lm.prompts[-1])
        self.text(f"   {who:<8} {question}\n   {'model':<8} {answer}  [{sent} messages sent]")
        return answer


def _show_conversation(session: Session, show: _Screen) -> None:
    show.heading(1, "A conversation", 'session = sessionify(dspy.Predict("question -> answer"))')
    show.ask("you", session, "Hello, my name is Ada. I am flying to Oslo.")
    show.ask("you", session, CITY_QUESTION)
    show.ask("you", session, NAME_QUESTION)
    show.text("   In brackets: one system message, two for each past turn, one for the question.")
    show.text(f"   {session!r}")


def _show_fork(session: Session, show: _Screen) -> None:
    show.heading(2, "Fork: two branches, neither sees the other", "branch = session.fork()")
    branch = session.fork()
    show.ask("branch", branch, "Change of plan: I am flying to Rome.")
    show.ask("branch", branch, CITY_QUESTION)
    show.ask("session", session, CITY_QUESTION)
    show.text(f"   turns: {len(branch)} in the branch, {len(session)} in the session")


def _show_undo(session: Session, show: _Screen) -> None:
    show.heading(3, "Undo and redo", "session.undo(4)")
    undone = session.undo(len(session))
    show.text(f"   {len(undone)} turns taken back, {len(session)} left")
    show.ask("a fork", session.fork(), NAME_QUESTION)
    redone = session.redo(len(undone))
    show.text(f"   >>> session.redo({len(undone)})\n   {len(redone)} turns are there again")
    show.ask("a fork", session.fork(), NAME_QUESTION)


def knows(
    example: dspy.Example,  # noqa: ARG001  # DSPy calls a metric with the example first
    prediction: dspy.Prediction,
    trace: Any = None,  # noqa: ARG001  # and with a trace
) -> float:
    """A metric: 1.0 for an answer, 0.0 for an "I don't know."."""
    return float(prediction.answer != UNKNOWN)


def _show_learning(session: Session, show: _Screen) -> None:
    show.heading(
        4,
        "Score the turns; the good ones become examples",
        'session(question="What is my seat?")',
    )
    show.ask("you", session, "What is my seat?")
    scores = session.score(knows)
    show.text(f"   >>> session.score(metric)\n   {scores}")
    examples = session.to_examples(min_score=1.0)
    show.text("   >>> examples = session.to_examples(min_score=1.0)")
    show.text(
        f"   {len(examples)} of {len(session)} turns; each holds the turns that its call saw:"
    )
    for example in examples:
        show.text(f"   {len(example.history.messages)} seen  {example.question}")

    show.heading(
        5,
        "Learn from them: the demos go into the prompt",
        "learned = dspy.BootstrapFewShot(metric=metric).compile(session, trainset=examples)",
    )
    show.ask("before", session.fork(), NAME_QUESTION)
    optimizer = dspy.BootstrapFewShot(metric=knows, max_bootstrapped_demos=2, max_labeled_demos=2)
    with _quiet():
        learned: Session = optimizer.compile(session, trainset=examples)
    show.ask("after", learned.fork(), NAME_QUESTION)
    prompt = show.lm.prompts[-1]
    demos = [demo for _, predictor in learned.named_predictors() for demo in predictor.demos]
    places = [place for demo in demos for place in _places_of(demo, prompt)]
    show.text(
        f"   demos in the learned program: {len(demos)}; in the prompt just sent: {len(places)}"
    )
    for place in places[-1:]:
        show.text(f"   one of them there, messages {place} and {place + 1}:")
        for message in prompt[place : place + 2]:
            show.text(textwrap.indent(_excerpt(message), "     "))


def _places_of(demo: dspy.Example, prompt: Prompt) -> list[int]:
    """The positions of the messages that show a demo's question, each followed by its answer."""
    return [
        place
        for place in range(len(prompt) - 1)
        if _DEMO_MARK in prompt[place]["content"]
        and demo.question in prompt[place]["content"]
        and demo.answer in prompt[place + 1]["content"]
    ]


def _excerpt(message: dict[str, str]) -> str:
    lines = [line for line in message["content"].splitlines() if line]
    return "\n".join(textwrap.shorten(f"{message['role']}: {line}", 90) for line in lines)


def _show_data(session: Session, show: _Screen) -> None:
    show.heading(6, "Data beside the turns: undo takes it along", 'trip.data["seat"] = "12A"')
    trip = session.fork()
    trip.data["seat"] = "12A"
    show.ask("a fork", trip, CITY_QUESTION)
    show.text(f"   {trip.data!r} after {len(trip)} turns")
    trip.undo()
    show.text(f"   >>> trip.undo()\n   {trip.data!r} after {len(trip)} turns")


def _show_saving(session: Session, show: _Screen) -> None:
    show.heading(7, "Save, and resume with a fresh program", 'session.save("ada.json")')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ada.json"
        session.save(path)
        show.text(f"   {path.stat().st_size} bytes of JSON, {len(session)} turns")
        show.text('   >>> resumed = Session.load_from("ada.json", program)')
        resumed = Session.load_from(path, dspy.Predict("question -> answer"))
    show.ask("resumed", resumed, NAME_QUESTION)
    show.text(f"   {resumed!r}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep an optimizer's progress bar and closing line off the screen."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
