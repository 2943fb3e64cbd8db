"""The session manager looks: lists, infos, messages, search, statistics."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import (
    DataError,
    OptionError,
    SearchHit,
    SessionInfo,
    SessionManager,
    Store,
    program_codecs,
)
from dspy_session.core import annotate
from dspy_session.journal.finding import excerpt
from dspy_session.journal.sealing import Seal
from tests.managers import Counting, manager_of, small_store, talk, unchanged
from tests.talk import QA, scripted


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with small_store(request.param, tmp_path) as opened:
        yield opened


def long_conversation(manager: SessionManager, id: str, turns: int) -> None:
    session = manager.open(id, autosave=False)
    for number in range(turns):
        session.add_turn({"question": f"q{number}"}, {"answer": f"a{number}"})
    manager.save_session(session)


def ids(infos: list[SessionInfo]) -> list[str]:
    return [info.session_id for info in infos]


# --- lists and infos ------------------------------------------------------------------------------


def test_C3_an_info_says_what_there_is_without_reading_a_turn(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = dt.datetime.now(dt.UTC)
    manager = manager_of(store)
    session = manager.open("ada", metadata={"topic": "tea"})
    talk(session, "one", "two", "three")
    session.undo()
    counting = Counting(store, monkeypatch)
    infos: list[SessionInfo | None] = []

    assert counting.during(lambda: infos.append(manager.get_session_info("ada"))) == 0
    assert counting.during(manager.list_sessions) == 0
    (info,) = infos
    assert info is not None
    assert info == manager.list_sessions()[0]
    assert (info.session_id, info.name, info.origin) == ("ada", "ada", None)
    assert (info.turn_count, info.message_count) == (2, 4)
    assert info.metadata.get("topic", "") == "tea"
    assert begun - dt.timedelta(seconds=1) < info.created_at <= info.updated_at
    assert info.updated_at.tzinfo is dt.UTC
    assert info.size_bytes > 100
    before = info.size_bytes
    session.add_turn({"question": "x" * 1000}, {"answer": "y" * 1000})
    now = manager.get_session_info("ada")
    assert now is not None
    assert before + 2000 < now.size_bytes < before + 2500
    assert info.size_bytes == before  # an info is of a moment
    session.truncate(1)
    now = manager.get_session_info("ada")
    assert now is not None
    assert (now.turn_count, now.created_at) == (1, info.created_at)


def test_C5_lists_are_paged_ordered_and_filtered(store: Store) -> None:
    manager = manager_of(store)
    for number, id in enumerate(["b", "a", "d", "c"]):
        manager.open(id, metadata={"even": number % 2 == 0, "tags": ["all", id], "n": number})
    talk(manager.open("a"), "one")

    assert ids(manager.list_sessions()) == ["a", "c", "d", "b"]
    assert ids(manager.list_sessions(descending=False)) == ["b", "d", "c", "a"]
    assert ids(manager.list_sessions(order="created")) == ["c", "d", "a", "b"]
    assert ids(manager.list_sessions(order="id", descending=False)) == ["a", "b", "c", "d"]
    assert ids(manager.list_sessions({"even": True})) == ["d", "b"]
    assert ids(manager.list_sessions({"tags": "c"})) == ["c"]
    assert ids(manager.list_sessions({"tags": ["all", "c"]})) == ["c"]
    assert ids(manager.list_sessions({"tags": "all", "even": True, "n": 0})) == ["b"]
    assert ids(manager.list_sessions({"n": 0.0})) == []
    assert ids(manager.list_sessions({"nobody": 1})) == []
    pages = [ids(manager.list_sessions(limit=3, offset=offset)) for offset in (0, 3, 6)]
    assert pages == [["a", "c", "d"], ["b"], []]
    assert manager.list_sessions(limit=0) == []
    assert len(manager.list_sessions(limit=10**30)) == 4
    assert (manager.count_sessions(), manager.count_sessions({"even": True})) == (4, 2)


def test_C5_lists_that_cannot_be(store: Store) -> None:
    manager = manager_of(store)
    manager.open("ada")
    for wrong in ({"order": "name"}, {"limit": -1}, {"limit": True}, {"offset": 1.5}):
        ((name, value),) = wrong.items()
        with unchanged(store, OptionError, name, repr(value)):
            manager.list_sessions(**wrong)
    for metadata in ("ada", {"x": object()}, [("x", 1)]):
        with unchanged(store, DataError):
            manager.list_sessions(metadata)  # type: ignore[arg-type]
        with unchanged(store, DataError):
            manager.count_sessions(metadata)  # type: ignore[arg-type]
        with unchanged(store, DataError):
            manager.search("x", metadata)  # type: ignore[arg-type]


# --- turns and messages ---------------------------------------------------------------------------


def test_C4_the_last_messages_are_read_without_the_rest(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = manager_of(store)
    long_conversation(manager, "ada", 300)
    counting = Counting(store, monkeypatch)
    shown = manager.open("ada").messages

    assert manager.messages("ada") == shown
    for last in (1, 2, 3, 10, 599, 600, 601, 5000):
        assert manager.messages("ada", last=last) == shown[-last:]
    assert manager.messages("ada", last=0) == ()
    assert counting.during(lambda: manager.messages("ada", last=10)) == 5
    assert counting.during(lambda: manager.messages("ada", last=1)) == 1
    assert counting.during(lambda: manager.messages("ada", last=0)) == 0
    assert counting.during(lambda: manager.turns("ada", -10)) == 10
    assert [turn.index for turn in manager.turns("ada", 20, 23)] == [20, 21, 22]
    assert counting.during(lambda: manager.turns("ada", 20, 23)) <= 280
    assert manager.turns("ada") == manager.open("ada").turns
    assert manager.turns("ada", 290, 1000) == manager.turns("ada")[290:]
    assert manager.turns("ada", 5, 5) == ()
    assert manager.turns("ada", -3, -1) == manager.turns("ada")[-3:-1]
    for wrong in (1.5, True, "1"):
        with unchanged(store, OptionError, "start"):
            manager.turns("ada", wrong)  # type: ignore[arg-type]
        with unchanged(store, OptionError, "stop"):
            manager.turns("ada", None, wrong)  # type: ignore[arg-type]
    for wrong in (-1, 1.0, True, "1"):
        with unchanged(store, OptionError, "last"):
            manager.messages("ada", last=wrong)  # type: ignore[arg-type]


def test_C4_any_tail_of_any_conversation_is_that_of_all_its_messages(store: Store) -> None:
    """Turns may have one message, two or many; some wait; some came before the first turn."""
    drawn = random.Random(7)
    manager = manager_of(
        store,
        initial_history=dspy.History(messages=[{"question": "s", "answer": "t"}]),
        instructions="Be brief.",
        redact_fields=["secret"],
    )
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    session = manager.open("ada")
    for number in range(30):
        kind = drawn.randrange(5)
        if kind == 0:
            session.add_turn({}, {"answer": f"a{number}"})
        elif kind == 1:
            session.add_turn({}, {})
        elif kind == 2:
            session.add_messages(
                [
                    {"role": "user", "content": f"u{number}"},
                    {"role": "assistant", "content": "", "tool_calls": [call]},
                    {"role": "tool", "tool_call_id": "c1", "content": "found"},
                    {"role": "assistant", "content": "done"},
                ]
            )
        elif kind == 3:
            session.add_turn({"secret": "pin"}, {"answer": "kept"})
        else:
            session.add_turn({"question": f"q{number}"}, {"answer": f"a{number}"})
        if number == 20:
            session.truncate(12)
    session.add_message({"role": "user", "content": "waits"})

    shown = session.messages
    assert shown[-1].text == "waits"
    for last in range(1, len(shown) + 2):
        assert manager.messages("ada", last=last) == shown[-last:]
    session.undo(2)
    shown = session.messages
    for last in range(1, len(shown) + 2):
        assert manager.messages("ada", last=last) == shown[-last:]


# --- search ---------------------------------------------------------------------------------------


def test_C8_text_is_found_in_inputs_and_outputs_in_any_case(store: Store) -> None:
    manager = manager_of(store)
    talk(manager.open("ada", metadata={"topic": "tea"}), "Wo ist die STRASSENBAHN?", "and?")
    talk(manager.open("bob"), "Straßenbahn")

    assert manager.search("straßenBAHN") == [
        SearchHit("bob", 0, "question", "Straßenbahn"),
        SearchHit("bob", 0, "answer", "answer to Straßenbahn"),
        SearchHit("ada", 0, "question", "Wo ist die STRASSENBAHN?"),
        SearchHit("ada", 0, "answer", "answer to Wo ist die STRASSENBAHN?"),
    ]
    found = manager.search("strassenbahn", {"topic": "tea"})
    assert {hit.session_id for hit in found} == {"ada"}
    assert len(manager.search("strassenbahn", limit=3)) == 3
    assert manager.search("strassenbahn", limit=0) == []
    assert len(manager.search("a", limit=None)) == 6
    assert manager.search("nobody said this") == []
    for wrong in ("", None, 7, b"a"):
        with unchanged(store, OptionError, repr(wrong)):
            manager.search(wrong)  # type: ignore[arg-type]
    with unchanged(store, OptionError, "limit"):
        manager.search("a", limit=-1)


def test_C8_text_with_lone_surrogates_is_found(store: Store) -> None:
    manager = manager_of(store)
    manager.open("ada").add_turn({"question": "Half \ud800 a letter"}, {"answer": "So."})
    assert [hit.excerpt for hit in manager.search("HALF")] == ["Half \ud800 a letter"]
    assert manager.search("\ud800 a") == manager.search("letter") == manager.search("half")


def test_C8_values_that_are_no_text_are_looked_through(store: Store) -> None:
    manager = manager_of(store, redact_fields=["secret"])
    session = manager.open("ada")
    session.add_turn(
        {
            "rows": [{"name": 'Ada\n"Lovelace"'}, 1815],
            "picture": dspy.Image("https://a.test/x.png"),
        },
        {"answer": None, "secret": "the pin is 1234", "sure": True},
    )

    assert manager.search('ada\n"love')[0].field == "rows"
    assert manager.search("1815")[0].excerpt == "1815"
    assert manager.search("A.TEST")[0].field == "picture"
    for nothing in ("1234", "true", "none", "$type", "dspy:Image", "name"):
        assert manager.search(nothing) == []


def test_C8_what_was_undone_replaced_or_trimmed_is_not_found(store: Store) -> None:
    manager = manager_of(store)
    session = manager.open("ada")
    talk(session, "first", "wrong", "undone")
    session.replace_turn(1, {"answer": "right"})
    session.undo()
    assert [hit.excerpt for hit in manager.search("right")] == ["right"]
    assert manager.search("answer to wrong") == []
    assert manager.search("undone") == []
    session.score(lambda example, prediction: 1.0)
    session._move(lambda state: (None, annotate(state, {1: (0.5, None)})))  # it refers to the text
    assert [hit.turn_index for hit in manager.search("first")] == [0, 0]
    assert [hit.turn_index for hit in manager.search("r")] == [1, 1, 0, 0]  # the newest first
    session.truncate(1)
    assert manager.search("first") == []
    assert [hit.turn_index for hit in manager.search("right")] == [1]


def test_C8_a_turn_that_sessions_share_is_opened_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = manager_of(store)
    long_conversation(manager, "ada", 300)
    for number in range(5):
        branch = manager.create_session(f"branch {number}", branch_from="ada", at=290)
        branch.add_turn({"question": f"own {number}"}, {"answer": "mine"})
    opened, reads = [], Counting(store, monkeypatch)
    open_frame = Seal.open

    def counted(self: Seal, frame: bytes, about: bytes) -> bytes:
        opened.append(about)
        return open_frame(self, frame, about)

    monkeypatch.setattr(Seal, "open", counted)
    found = manager.search("Q7")

    assert len([about for about in opened if about.startswith(b"node:")]) == 305
    assert len(set(opened)) == len(opened)
    assert {hit.session_id for hit in found if hit.turn_index == 7} == {
        "ada",
        *(f"branch {number}" for number in range(5)),
    }
    assert list(dict.fromkeys(hit.session_id for hit in found)) == [
        *(f"branch {number}" for number in reversed(range(5))),
        "ada",
    ]
    assert len(found) == 66  # q7 and q70 to q79, in six sessions
    assert reads.read == 300 + 5 * 291
    assert {hit.session_id for hit in manager.search("own 3")} == {"branch 3"}
    opened.clear()
    assert manager.search("q29", limit=1)  # it stops when it has enough
    assert len(opened) <= 600


def test_C8_search_goes_through_more_sessions_than_a_page(store: Store) -> None:
    manager = manager_of(store)
    for number in range(130):
        manager.open(f"s{number}").add_turn({"question": f"needle {number}"}, {"answer": "a"})
    found = manager.search("needle", limit=None)
    assert [hit.session_id for hit in found] == [f"s{number}" for number in reversed(range(130))]
    assert len(manager.search("needle")) == 100


def test_C8_excerpts() -> None:
    assert excerpt("a" * 100 + "needle" + "b" * 100, "needle") == (
        "…" + "a" * 60 + "needle" + "b" * 60 + "…"
    )
    assert excerpt("two\n\nlines", "two") == "two lines"
    assert excerpt("ẞ" * 70 + "İx" + "ß" * 70, "i̇x") == "…" + "ẞ" * 60 + "İx" + "ß" * 60 + "…"
    assert excerpt("abc", "d") is None


# --- statistics -----------------------------------------------------------------------------------


def test_C12_statistics(store: Store) -> None:
    manager = manager_of(store)
    for number in range(7):
        talk(manager.open(f"s{number}"), "one")
    manager.create_session("fork", branch_from="s0")

    numbers = manager.statistics()
    assert (numbers.session_count, numbers.turn_count, numbers.message_count) == (8, 7, 14)
    assert ids(list(numbers.recent)) == ["fork", "s6", "s5", "s4", "s3"]
    assert numbers.size_bytes == store.totals().bytes > 0


def test_C12_activity_by_day_in_utc(store: Store) -> None:
    manager = manager_of(store)
    today = dt.datetime.now(dt.UTC).date()
    long_conversation(manager, "ada", 3)
    with dspy.context(lm=scripted()):
        manager.open("bob")(question="one")

    week = manager.activity()
    days = list(week)
    assert len(days) == 7
    assert days == [days[0] + dt.timedelta(days=n) for n in range(7)]
    assert days[-1] >= today
    assert sum(week.values()) == 4
    assert sum(manager.activity(days=2).values()) == 4
    assert len(manager.activity(days=3660)) == 3660
    for wrong in (0, -1, 1.5, True, 10**9):
        with unchanged(store, OptionError, "days"):
            manager.activity(wrong)  # type: ignore[arg-type]


def test_C8_other_programs_may_have_written_what_is_searched(store: Store) -> None:
    """A search needs no codecs: values of types that this program does not know are found, too."""
    pictures = SessionManager(dspy.Predict("picture: dspy.Image -> label"), store)
    pictures.open("p").add_turn({"picture": dspy.Image("https://a.test/x.png")}, {"label": "cat"})
    assert program_codecs(dspy.Predict(QA)) is not None

    assert [hit.field for hit in manager_of(store).search("cat")] == ["label"]


def test_C1_a_manager_says_what_it_is(store: Store) -> None:
    shown: Any = repr(manager_of(store))
    assert shown == f"SessionManager(Predict, {type(store).__name__})"
