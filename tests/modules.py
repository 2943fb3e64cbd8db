"""For the tests of DSPy's modules: a model that knows which turn it is, and what a prompt tells.

In turn `k` the question is `QUESTIONS[k]` and the answer `ANSWERS[k]`; each word occurs in its own
turn alone, so what a prompt has of earlier turns can be counted.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dspy

from dspy_session import Session
from dspy_session.testing import Prompt, ScriptedLM, requested_fields

QUESTIONS = ("ask-alpha", "ask-bravo", "ask-charlie", "ask-delta")
ANSWERS = ("say-alpha", "say-bravo", "say-charlie", "say-delta")

Say = Callable[[Prompt], Mapping[str, Any]]


class Speaker(ScriptedLM):
    """Answers each field with its name and the turn; `answer` as in `ANSWERS`.

    Args:
        say: What it says beside that, for a prompt.
    """

    def __init__(self, say: Say = lambda prompt: {}) -> None:
        self.turn = 0
        self.began: list[int] = []

        def reply(prompt: Prompt) -> dict[str, Any]:
            asked = requested_fields(prompt)
            usual = {name: f"{name}-{self.turn}" for name in asked}
            said = {**usual, "answer": ANSWERS[self.turn], **say(prompt)}
            return {name: said[name] for name in asked}

        super().__init__(reply)

    def of_turn(self, turn: int) -> list[Prompt]:
        """The prompts that were sent in a turn."""
        ends = [*self.began[1:], len(self.prompts)]
        return self.prompts[self.began[turn] : ends[turn]]

    def next_turn(self) -> str:
        """Begin a turn; returns its question."""
        self.turn = len(self.began)
        self.began.append(len(self.prompts))
        return QUESTIONS[self.turn]


def converse(session: Session, lm: Speaker, turns: int = 3, **inputs: Any) -> list[Any]:
    """Ask the next questions; returns what the program returned."""
    with dspy.context(lm=lm):
        return [session(question=lm.next_turn(), **inputs) for _ in range(turns)]


async def aconverse(session: Session, lm: Speaker, turns: int = 3, **inputs: Any) -> list[Any]:
    with dspy.context(lm=lm):
        return [await session.acall(question=lm.next_turn(), **inputs) for _ in range(turns)]


def content(message: Mapping[str, Any]) -> str:
    """The text of a message, with the tool calls that it carries."""
    return f"{message.get('content') or ''}{message.get('tool_calls') or ''}"


def tells(prompt: Sequence[Mapping[str, Any]], turn: int) -> bool:
    """Whether a prompt of a turn tells of all earlier ones: once, in order, and of nothing else.

    Returns False if it tells of none, and raises if it does so badly.
    """
    assert prompt[0]["role"] == "system"
    text = "\n".join(map(content, prompt[1:]))
    for message in prompt[1:]:
        if message["role"] == "assistant":
            for bad in ("None", "null", "Not supplied"):
                assert bad not in content(message), content(message)
    told = [word for pair in zip(QUESTIONS, ANSWERS, strict=True) for word in pair]
    told, later = told[: 2 * turn], told[2 * turn + 2 :]
    assert not [word for word in later if word in text]
    if not any(word in text for word in told):
        return False
    assert {word: text.count(word) for word in told} == dict.fromkeys(told, 1), text
    assert sorted(told, key=text.index) == told
    return True


def roles(prompt: Sequence[Mapping[str, Any]]) -> str:
    """The roles of the messages after the first, by their initials."""
    return "".join(str(message["role"])[0] for message in prompt[1:])


@contextmanager
def deprecated_modules() -> Iterator[None]:
    """CodeAct and ProgramOfThought say when they are made that DSPy 3.5 is without them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
