"""A hundred recorded conversations are stored, listed, searched, forked, exported and imported."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import SessionManager, SQLStore, from_jsonl
from dspy_session.core import SessionState, from_messages, state_messages
from tests.managers import Counting
from tests.talk import QA
from tests.test_real_conversations import ANSWERED_TURNS, CONVERSATIONS

pytestmark = pytest.mark.skipif(
    not CONVERSATIONS.is_file(),
    reason="../shared/data/airline_conversations.jsonl is absent: no recorded chat was stored",
)

Message = dict[str, Any]


def named(number: int) -> str:
    return f"airline/{number:02}"


@pytest.fixture(scope="module")
def recorded() -> list[list[Message]]:
    with CONVERSATIONS.open(encoding="utf-8") as lines:
        return from_jsonl(lines)


@pytest.fixture(scope="module")
def told(recorded: list[list[Message]]) -> list[SessionState]:
    return [from_messages(messages) for messages in recorded]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("airline") / "chats.db"


@pytest.fixture(scope="module")
def manager(file: Path, recorded: list[list[Message]]) -> Iterator[SessionManager]:
    with SessionManager(dspy.Predict(QA), file) as manager:
        for number, messages in enumerate(recorded):
            metadata = {"airline": True, "even": number % 2 == 0}
            manager.open(named(number), messages=messages, metadata=metadata)
        yield manager


def test_C1_all_are_stored_and_come_back_message_by_message(
    manager: SessionManager, told: list[SessionState], file: Path
) -> None:
    with SessionManager(dspy.Predict(QA), file) as another:
        for number, state in enumerate(told):
            session = another.load_session(named(number))
            assert session.messages == state_messages(state)
            assert [turn.inputs for turn in session.turns] == [turn.inputs for turn in state]
            assert another.verify(named(number)).ok


def test_C3_all_are_listed_without_a_turn_being_read(
    manager: SessionManager, told: list[SessionState], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(manager._archive.store, monkeypatch)
    infos = manager.list_sessions({"airline": True}, order="id", descending=False)

    assert [info.session_id for info in infos] == [named(number) for number in range(100)]
    assert [info.turn_count for info in infos] == [len(state) for state in told]
    assert sum(info.turn_count for info in infos) == ANSWERED_TURNS
    assert manager.count_sessions({"even": True}) == 50
    pages = [
        manager.list_sessions(order="id", descending=False, limit=30, offset=offset)
        for offset in range(0, 120, 30)
    ]
    assert list(itertools.chain(*pages)) == infos
    assert counting.read == 0
    assert manager.statistics().turn_count == ANSWERED_TURNS


@pytest.mark.parametrize("text", ["REFUND", "travel insurance", "$", "nobody ever said this"])
def test_C8_what_was_said_is_found(
    manager: SessionManager, told: list[SessionState], text: str
) -> None:
    expected = {
        (named(number), turn.index, name)
        for number, state in enumerate(told)
        for turn in state
        for name, value in {**turn.inputs, **turn.outputs}.items()
        if text.casefold() in str(value).casefold()
    }
    found = manager.search(text, limit=None)
    assert {(hit.session_id, hit.turn_index, hit.field) for hit in found} == expected
    assert len(found) == len(expected)
    assert all(text.casefold() in hit.excerpt.casefold() for hit in found)


def test_C2_C10_each_is_forked_exported_and_imported_again(
    manager: SessionManager, told: list[SessionState], tmp_path: Path
) -> None:
    before = manager.statistics()
    for number, state in enumerate(told):
        middle = len(state) // 2
        fork = manager.create_session(f"fork of {number}", branch_from=named(number), at=middle)
        assert fork.turns == manager.turns(named(number))[:middle]
    after = manager.statistics()
    assert after.turn_count == before.turn_count
    assert after.session_count == before.session_count + 100

    path = tmp_path / "one.json"
    with SessionManager(dspy.Predict(QA), "memory:") as other:
        for number, state in enumerate(told):
            manager.export_session(named(number), path)
            imported = other.import_session(path)
            assert imported.session_id == named(number)
            assert imported.messages == state_messages(state)
            assert other.verify(named(number)).ok
    for number in range(100):
        assert manager.delete_session(f"fork of {number}")
    assert manager.statistics() == before
    assert manager.vacuum() == 0


def test_C13_a_stored_conversation_takes_little_more_than_its_text(
    manager: SessionManager, told: list[SessionState]
) -> None:
    """Fields are stored, and the messages that they came from: tool calls and results."""
    assert isinstance(manager._archive.store, SQLStore)
    text = sum(
        len(message.text.encode()) + sum(len(call.arguments) for call in message.tool_calls)
        for state in told
        for message in state_messages(state)
    )
    assert manager.statistics().size_bytes < 1.6 * text
