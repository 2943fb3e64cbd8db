"""The words for the parts of a tree, the same in a terminal and on a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from dspy_session.core.state import SessionState
from dspy_session.pictures.figures import Totals, counted, money, number, totals
from dspy_session.pictures.nodes import Branch, Status, TreeSession, TreeTurn
from dspy_session.pictures.values import harmless, plain_value, shown_text

__all__ = [
    "Mark",
    "branch_label",
    "marks",
    "session_facts",
    "status_label",
    "sum_facts",
    "title_of",
    "waiting",
]

_LABELS = {
    Status.UNDONE: "undone",
    Status.OTHER_ANSWER: "another answer",
    Status.SUMMARIZED: "summarised",
}


def title_of(sessions: Sequence[TreeSession]) -> str:
    """Return what to call a tree.

    Args:
        sessions: Its sessions.
    """
    if len(sessions) == 1:
        return "Conversation"
    return f"{len(sessions)} conversations" if sessions else "No conversation"


def branch_label(branch: Branch, sessions: Sequence[TreeSession]) -> str:
    """Return what a branch is, seen from the one that it parts from.

    Args:
        branch: The branch.
        sessions: The sessions of its tree.
    """
    names = [sessions[number].name for turn in branch.turns for number in turn.heads]
    if names:
        return harmless(", ".join(names))
    first = branch.turns[0]
    if first.status is Status.OTHER_ANSWER:
        return f"another answer to turn {first.turn.index}"
    return _LABELS.get(first.status, "a fork")


def status_label(turn: TreeTurn) -> str:
    """Return how a turn stands to the sessions, if no session has it; otherwise nothing.

    Args:
        turn: The turn.
    """
    return _LABELS.get(turn.status, "")


class Mark(msgspec.Struct, frozen=True):
    """Something to say of a turn in few words.

    Attributes:
        text: The words.
        kind: `"warn"`, `"score"` or `"here"`.
    """

    text: str
    kind: str


def marks(turn: TreeTurn, sessions: Sequence[TreeSession]) -> Iterator[Mark]:
    """Yield what there is to say of a turn in few words, beside what was said in it.

    Args:
        turn: The turn.
        sessions: The sessions of its tree.
    """
    if label := status_label(turn):
        yield Mark(label, "warn")
    if turn.turn.score is not None:
        yield Mark(f"score {number(turn.turn.score)}", "score")
    if turn.turn.pending_tool_calls:
        yield Mark("waits for approval", "warn")
    if len(sessions) > 1:
        yield from (Mark(f"{harmless(sessions[at].name)} is here", "here") for at in turn.heads)


def session_facts(state: SessionState) -> list[str]:
    """Return what a conversation adds up to, in words.

    Args:
        state: The conversation.
    """
    sums = totals(state)
    facts = [counted(sums.turns, "turn")]
    if state.first:
        facts.append(f"{counted(state.first, 'earlier one')} not in it any more")
    if state.tip - state.stop:
        facts.append(f"{state.tip - state.stop} undone")
    return facts + sum_facts(sums)


def sum_facts(sums: Totals) -> list[str]:
    """Return tokens, cost and score in words, as far as anybody said.

    Args:
        sums: What turns add up to.
    """
    facts = []
    if sums.tokens is not None:
        facts.append(counted(sums.tokens, "token"))
    if sums.cost is not None:
        facts.append(money(sums.cost))
    if sums.score is not None:
        facts.append(f"mean score {number(sums.score)}")
    return facts


def waiting(state: SessionState) -> Iterator[str]:
    """Yield the chat messages that wait to become a turn, one line each.

    Args:
        state: The conversation.
    """
    for message in state.pending:
        role, said = message.get("role"), plain_value(message.get("content"))
        yield f"{shown_text(plain_value(role))}: {shown_text('' if said is None else said)}"
