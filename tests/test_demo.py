"""The demo runs offline, in seconds, and its model knows only what reaches its prompt."""

import io
import itertools
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import dspy
import pytest

from dspy_session import demo
from dspy_session.testing import ScriptedLM

KEY_LINES = [
    "The model's words below are scripted: no network, no key.",
    "model    You are flying to Oslo.  [4 messages sent]",
    "model    You are flying to Rome.  [10 messages sent]",
    "turns: 5 in the branch, 4 in the session",
    "4 turns taken back, 0 left",
    "4 turns are there again",
    "[1.0, 1.0, 1.0, 1.0, 0.0]",
    "4 of 5 turns; each holds the turns that its call saw:",
    "3 seen  Where am I flying to?",
    "demos in the learned program: 2; in the prompt just sent: 2",
    "user: [1]",
    "question: Hello, my name is Ada. I am flying to Oslo.",
    "SessionData({'seat': '12A'}) after 6 turns",
    "SessionData({}) after 5 turns",
    "resumed  What is my name?",
    "Session(Predict, turns=6, history_field='history')",
    'dspy.configure(lm=dspy.LM("openai/gpt-4o-mini"))',
]
"""Lines of the demo, each the whole point of one of its parts."""


def run_command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a fresh process without a key, where every proxy is a dead port."""
    kept = {n: v for n, v in os.environ.items() if not n.upper().endswith(("_API_KEY", "_PROXY"))}
    dead = "http://127.0.0.1:9"
    return subprocess.run(
        [sys.executable, "-m", "dspy_session.cli", *arguments],
        cwd=folder,
        env={**kept, "HTTP_PROXY": dead, "HTTPS_PROXY": dead, "ALL_PROXY": dead, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def demo_text(max_turns: int | None = None) -> str:
    out = io.StringIO()
    demo.run_demo(out, max_turns=max_turns)
    return out.getvalue()


def answers_to(question: str, text: str) -> list[str]:
    """What the model said to a question, each time that it was asked."""
    lines = [line.strip() for line in text.splitlines()]
    return [
        answer.removeprefix("model").partition("  [")[0].strip()
        for asked, answer in itertools.pairwise(lines)
        if asked.endswith(question) and answer.startswith("model ")
    ]


def without_sizes(text: str) -> str:
    """The text without the size of its file, which holds times."""
    return re.sub(r"\d+ bytes", "some bytes", text)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"the demo opened a connection: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_command(tmp_path: Path) -> None:
    began = os.times()
    done = run_command(tmp_path, "demo")
    ended = os.times()
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in KEY_LINES if line not in done.stdout] == []
    assert "\x1b" not in done.stdout
    assert done.stdout.isascii()  # readable on any terminal
    assert list(tmp_path.iterdir()) == []
    took = ended.children_user - began.children_user + ended.children_system
    assert took - began.children_system < 30  # of a processor: ten are promised, of a quick one


@pytest.mark.usefixtures("no_network")
def test_the_same_in_process_says_the_same_and_leaves_nothing() -> None:
    before = dspy.settings.copy()
    text = demo_text()
    assert [line for line in KEY_LINES if line not in text] == []
    assert without_sizes(demo_text()) == without_sizes(text)
    assert dspy.settings.copy() == before


@pytest.mark.usefixtures("no_network")
def test_the_model_knows_what_the_conversation_told_it() -> None:
    text = demo_text()
    ada = "Your name is Ada."
    assert answers_to(demo.NAME_QUESTION, text) == [ada, demo.UNKNOWN, ada, ada, ada, ada]
    oslo, rome = "You are flying to Oslo.", "You are flying to Rome."
    assert answers_to(demo.CITY_QUESTION, text) == [oslo, rome, oslo, oslo]


@pytest.mark.usefixtures("no_network")
def test_without_history_in_the_prompt_the_model_does_not_know() -> None:
    text = demo_text(max_turns=0)
    assert answers_to(demo.NAME_QUESTION, text) == [demo.UNKNOWN] * 6
    assert answers_to(demo.CITY_QUESTION, text) == [demo.UNKNOWN] * 4
    assert "Your name is" not in text


def test_facts_come_from_the_conversation_only() -> None:
    lm = ScriptedLM(demo.answer_from_prompt)
    told = {"question": "My name is Ada.", "answer": "Noted."}
    program = dspy.Predict("question, history: dspy.History -> answer")
    program.demos = [dspy.Example(history=dspy.History(messages=[told]), **told)]
    with dspy.context(lm=lm):
        nothing = program(question=demo.NAME_QUESTION, history=dspy.History(messages=[]))
        assert nothing.answer == demo.UNKNOWN  # a demo is about somebody else
        known = program(question=demo.NAME_QUESTION, history=dspy.History(messages=[told]))
    assert known.answer == "Your name is Ada."
    assert "Ada" in lm.prompts[0][1]["content"]


# The command line


def test_a_reader_that_leaves_early(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dspy_session.cli", "demo"],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (1, "")
