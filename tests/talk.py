"""What the session tests talk about: a signature, a model that answers from its prompt, and reading
back from a prompt what the model was shown."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dspy
import pytest

from dspy_session import Session, SessionError, sessionify
from dspy_session.testing import Prompt, ScriptedLM, requested_fields


class QA(dspy.Signature):
    """Answer the question."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


class Asker(dspy.Module):
    """A program that knows nothing of history, and returns a plain value."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(QA)

    def forward(self, question: str) -> Any:
        return self.qa(question=question).answer


def field(text: str, name: str) -> str | None:
    """The value of a field in a message of the ChatAdapter."""
    found = re.search(
        rf"\[\[ ## {name} ## \]\]\n(.*?)(?=\n\n\[\[ ## |\n\nRespond with|\Z)", text, re.DOTALL
    )
    return found[1].strip() if found else None


def asked(prompt: Prompt) -> str:
    """The question that a prompt ends with."""
    return field(prompt[-1]["content"], "question") or ""


def past(prompt: Prompt) -> list[tuple[str | None, str | None]]:
    """The questions and answers that a prompt shows before its own question."""
    pairs = prompt[1:-1]
    assert [m["role"] for m in pairs] == ["user", "assistant"] * (len(pairs) // 2)
    return [
        (field(user["content"], "question"), field(assistant["content"], "answer"))
        for user, assistant in zip(pairs[::2], pairs[1::2], strict=True)
    ]


def echo(prompt: Prompt) -> dict[str, Any]:
    """Answers each requested field with its name and the question; the question "fail" fails."""
    if asked(prompt) == "fail":
        raise ValueError("the model is out")
    return {name: f"{name} to {asked(prompt)}" for name in requested_fields(prompt)}


def scripted() -> ScriptedLM:
    return ScriptedLM(echo)


def qa_session(**keywords: Any) -> Session:
    return sessionify(dspy.Predict(QA), **keywords)


def ask(session: Session, *questions: str) -> None:
    for question in questions:
        session(question=question)


def questions(session: Session) -> list[str]:
    return [turn.inputs["question"] for turn in session.turns]


def shown(session: Session) -> list[tuple[str, str]]:
    """What the next call is to see, as questions and answers."""
    return [(m["question"], m["answer"]) for m in session.session_history.messages]


def history(*questions: str) -> dspy.History:
    return dspy.History(messages=[{"question": q, "answer": f"answer to {q}"} for q in questions])


def pairs(*questions: str) -> list[tuple[str, str]]:
    return [(q, f"answer to {q}") for q in questions]


@contextmanager
def refused(session: Session | None, error: type[BaseException], *words: str) -> Iterator[None]:
    """Expects one error of the family whose message has these words, and no change of state."""
    assert issubclass(error, SessionError)
    before = None if session is None else session.state
    with pytest.raises(error) as caught:
        yield
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value)
    if session is not None:
        assert session.state is before
