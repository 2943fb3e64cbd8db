"""X5: several processes in one session lose no turn, and none comes twice."""

from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from dspy_session import Session, Turn
from tests.writers import (
    SHARED,
    WINDOW,
    Writers,
    manager,
    send_requests,
    take_turns,
    take_turns_in_tasks,
    take_turns_in_threads,
)

PROCESSES: Final = 8


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'chats.db'}"
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def turns(request: pytest.FixtureRequest, url: str) -> int:
    """How many turns each process takes; the servers get fewer, to save time."""
    return request.config.getoption("--turns") or (50 if url.startswith("sqlite") else 10)


class Told(NamedTuple):
    """What a writer told of a turn."""

    kind: str
    question: str
    answer: str


def told_by(url: str, work: Any, on_conflict: str, count: int, processes: int) -> list[Told]:
    """What writers that begin together tell of their turns, each its own in their order."""
    with Writers() as writers:
        started = writers.start_together(processes, work, url, on_conflict, count)
        told = [Told(*each) for writer in started for each in writer.hear_all()]
        assert [writer.end() for writer in started] == [0] * processes
    return told


def checked(session: Session) -> tuple[Turn, ...]:
    """A session's turns: each at its place, each with what it saw, and that is what came before."""
    turns = session.turns
    assert [turn.index for turn in turns] == list(range(len(turns)))
    questions = [turn.inputs["question"] for turn in turns]
    for turn in turns:
        window = turn.window
        seen = [message["question"] for message in turn.history_snapshot.messages]
        assert turn.outputs["answer"].split() == [*seen, turn.inputs["question"]]
        assert window.stop <= turn.index
        assert seen == questions[max(0, window.stop - WINDOW) : window.stop]
    return turns


def answers(turns: tuple[Turn, ...]) -> list[tuple[str, str]]:
    return sorted((turn.inputs["question"], turn.outputs["answer"]) for turn in turns)


def answers_told(told: list[Told], kind: str) -> list[tuple[str, str]]:
    return sorted((each.question, each.answer) for each in told if each.kind == kind)


def in_order(turns: tuple[Turn, ...]) -> bool:
    """Whether each writer's turns are in the order in which it took them."""
    latest = Counter[str]()
    for turn in turns:
        writer, _, number = turn.inputs["question"].rpartition(".")
        if int(number) < latest[writer]:
            return False
        latest[writer] = int(number) + 1
    return True


def stored(url: str) -> tuple[Turn, ...]:
    with manager(url) as kept:
        found = kept.verify(SHARED)
        assert found.ok, str(found)
        return checked(kept.open(SHARED))


@pytest.mark.parametrize("work", [take_turns, take_turns_in_threads, take_turns_in_tasks])
def test_X5_retry_keeps_each_turn_of_all_processes_once(url: str, work: Any, turns: int) -> None:
    alone = work is take_turns
    processes, count = (PROCESSES, turns) if alone else (2, max(turns // 4, 1))
    told = told_by(url, work, "retry", count, processes)
    kept = stored(url)
    assert len(kept) == len(told) == processes * count * (1 if alone else 4)
    assert answers(kept) == answers_told(told, "turn")
    assert in_order(kept)


def test_X5_raise_keeps_what_returned_and_hands_back_what_did_not(url: str, turns: int) -> None:
    told = told_by(url, take_turns, "raise", turns, PROCESSES)
    kept = stored(url)
    assert len(told) == PROCESSES * turns
    assert answers(kept) == answers_told(told, "turn")
    assert {each.kind for each in told} == {"turn", "conflict"}
    for turn in kept:  # who conflicts nowhere was shown all that came before
        assert turn.window.stop == turn.index
    assert in_order(kept)


def test_X5_branch_keeps_each_turn_once_as_some_sessions_own(url: str, turns: int) -> None:
    told = told_by(url, take_turns, "branch", turns, PROCESSES)
    with manager(url) as kept:
        ids = [info.session_id for info in kept.list_sessions()]
        for id in ids:
            assert kept.verify(id).ok
        sessions = {id: checked(kept.open(id)) for id in ids}
    by_id = {turn.id: turn for each in sessions.values() for turn in each}
    assert answers(tuple(by_id.values())) == answers_told(told, "turn")
    assert len(told) == PROCESSES * turns
    assert 1 < len(ids) <= PROCESSES
    assert all(map(in_order, sessions.values()))


def test_X5_requests_that_come_to_all_processes_at_once_are_answered_once(url: str) -> None:
    with Writers() as writers:
        started = writers.start_together(PROCESSES, send_requests, url, "retry", 20)
        told = [writer.hear_all() for writer in started]
        assert [writer.end() for writer in started] == [0] * PROCESSES
    kept = stored(url)
    assert [turn.request_id for turn in kept] == [f"r{number}" for number in range(20)]
    recorded = [(turn.request_id, turn.outputs["answer"]) for turn in kept]
    assert told == [recorded] * PROCESSES
