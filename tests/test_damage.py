"""Damaged sessions: found and named, and in the way of nothing else."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dspy_session import SessionInfo, SessionManager
from dspy_session.core.state import start
from dspy_session.core.transitions import rewind
from dspy_session.errors import FormatError, SessionNotFoundError, StoreError
from dspy_session.journal.archive import Archive
from dspy_session.stores import (
    DocumentStore,
    MemoryStore,
    RedisStore,
    SQLStore,
    Store,
    new_key,
)
from tests.damage import change_field, change_node, damage, emptied, set_column, set_record
from tests.documents import Dicts
from tests.journals import said
from tests.managers import manager_of, talk

QUIET = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(params=["memory", "sqlite", "postgres", "redis", "documents"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with opened(request, tmp_path) as store:
        yield store


@contextlib.contextmanager
def opened(request: pytest.FixtureRequest, folder: Path) -> Iterator[Store]:
    made: Store
    match request.param:
        case "memory":
            made = MemoryStore()
        case "sqlite":
            made = SQLStore(f"sqlite:///{folder}/chats.db")
        case "documents":
            made = DocumentStore(Dicts())
        case "redis":
            made = RedisStore(request.getfixturevalue("redis_url"))
        case _:
            made = SQLStore(request.getfixturevalue("postgres_url"))
    with made:
        yield made


def filled(store: Store) -> SessionManager:
    """Three sessions: Ada's, a fork of it, and Eve's."""
    archive = Archive(store)
    for id, questions in (("ada", ("one", "two", "three")), ("eve", ("one",))):
        held = archive.create(id, start())
        for question in questions:
            held = archive.write(held, said(held.state, question))
        if id == "ada":
            archive.fork(held, "fork", rewind(held.state, 2, redoable=False))
    return manager_of(store)


def others_are_whole(manager: SessionManager) -> None:
    """All that looks at everything goes on, over the rest."""
    listed = {info.session_id: info for info in manager.list_sessions()}
    assert {"fork", "eve"} <= listed.keys()
    assert listed["fork"].damaged is None is listed["eve"].damaged
    assert listed["fork"].turn_count == 2
    found = {(hit.session_id, hit.turn_index) for hit in manager.search("one")}
    assert {("fork", 0), ("eve", 0)} <= found
    assert manager.statistics().session_count == manager.count_sessions()
    for id in ("fork", "eve"):
        assert manager.verify(id).ok
        assert len(manager.open(id)) == len(manager.export_session(id)["conversation"]["turns"])


# --- a session whose row cannot be read -----------------------------------------------------------


def test_C14_a_damaged_session_is_listed_and_named(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    manager = filled(store)
    damage(store, "ada")
    others_are_whole(manager)
    assert "Search passed over session 'ada'" in caplog.text
    (info,) = (each for each in manager.list_sessions() if each.damaged)
    assert info.session_id == "ada"
    assert manager.get_session_info("ada") == info
    assert info in manager.statistics().recent
    found = manager.verify("ada")
    assert not found.ok
    assert info.damaged is not None
    assert f"the session itself: {info.damaged}" in str(found)
    with pytest.raises(SessionNotFoundError):
        manager.verify("nobody")


def test_C14_whoever_asks_for_a_damaged_session_is_told_what_to_do(store: Store) -> None:
    manager = filled(store)
    damage(store, "ada")
    document = manager.export_session("eve")
    before = manager.list_sessions()
    for ask in (
        lambda: manager.open("ada"),
        lambda: manager.load_session("ada"),
        lambda: manager.create_session("ada"),
        lambda: manager.create_session("new", branch_from="ada"),
        lambda: manager.update_metadata("ada", {"a": 1}),
        lambda: manager.messages("ada"),
        lambda: manager.turns("ada", -1),
        lambda: manager.export_session("ada"),
        lambda: manager.erase("ada", 0),
        lambda: manager.import_session(document, session_id="ada", overwrite=True),
    ):
        with pytest.raises(FormatError, match=r"'ada'.*damaged.*backup.*delete_session"):
            ask()
        assert manager.list_sessions() == before


def test_C14_a_damaged_session_can_be_deleted(store: Store) -> None:
    manager = filled(store)
    damage(store, "ada")
    assert manager.delete_session("ada")
    assert not manager.delete_session("ada")
    manager.vacuum()
    assert manager.statistics().turn_count == 3
    others_are_whole(manager)
    talk(manager.open("ada"), "again")
    assert manager.verify("ada").ok


def test_C14_what_a_damaged_session_may_need_is_not_cleaned_away(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    if isinstance(store, DocumentStore):
        return  # each document has its own
    manager = filled(store)
    talk(manager.open("bob"), "one", "two")
    manager.open("bob").reset()
    damage(store, "ada")
    with caplog.at_level(logging.WARNING):
        assert manager.vacuum() == 2  # Bob's
    assert "'ada' is damaged, so what is needed cannot be told" in caplog.text
    assert manager.delete_session("fork")
    assert manager.vacuum() == 0
    assert store.totals().nodes == 4
    assert manager.delete_session("ada")
    manager.vacuum()
    assert store.totals().nodes == 1


def test_X12_a_turn_is_not_erased_where_a_damaged_session_may_have_it(store: Store) -> None:
    if isinstance(store, DocumentStore):
        return  # each document has its own
    manager = filled(store)
    damage(store, "ada")
    before = manager.turns("fork")
    with pytest.raises(FormatError, match="'ada', which may have the turn too, is damaged"):
        manager.erase("fork", 0)
    assert manager.turns("fork") == before
    assert manager.verify("fork").erased == ()
    manager.delete_session("ada")
    assert manager.erase("fork", 0).sessions == ("fork",)


def test_a_session_that_is_open_mends_its_row_with_its_next_write(tmp_path: Path) -> None:
    with SQLStore(f"sqlite:///{tmp_path}/chats.db") as store:
        manager = filled(store)
        session = manager.open("ada")
        damage(store, "ada")
        talk(session, "four")
        assert manager.verify("ada").ok
        assert manager.verify("ada").turns == 4


def test_to_delete_a_session_that_an_index_does_not_know_ends(tmp_path: Path) -> None:
    """An index is a page of its own, which may be damaged alone; SQLite then refuses the change."""
    with SQLStore(f"sqlite:///{tmp_path}/chats.db") as store:
        filled(store)
        with store._connected() as connection:
            connection.execute("PRAGMA writable_schema = ON")
            where = "FROM sqlite_master WHERE name = 'ix_dspy_session_refs_family'"
            ((sql,),) = connection.execute(f"SELECT sql {where}").fetchall()
            connection.execute(
                "UPDATE sqlite_master SET sql = ? WHERE name = 'ix_dspy_session_refs_family'",
                (f"{sql} WHERE id <> 'ada'",),
            )
        store.close()
    with SQLStore(f"sqlite:///{tmp_path}/chats.db") as store, store._connected() as connection:
        connection.execute("REINDEX ix_dspy_session_refs_family")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = ? WHERE name = 'ix_dspy_session_refs_family'", (sql,)
        )
    with SQLStore(f"sqlite:///{tmp_path}/chats.db") as store:
        ref = store.ref("ada")
        assert ref is not None
        assert [each.id for each in store.relatives(ref.family)] == ["fork"]
        assert not store.delete("ada", new_key())
        with pytest.raises(StoreError, match="file is damaged"):
            store.delete("ada")
        assert store.ref("ada") == ref
        assert manager_of(store).verify("fork").ok


# --- whatever the bytes are -----------------------------------------------------------------------

REF_COLUMNS = [
    *("family", "version", "tip", "head", "first", "stop", "end", "links"),
    *("created", "updated", "size", "origin", "metadata", "body"),
]
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 5)
VALUES = st.binary(max_size=40) | st.text(max_size=20) | NUMBERS | st.floats(allow_nan=False)


def check_damage(manager: SessionManager, store: Store, nodes: int, *, unknown: bool) -> None:
    """What holds whatever was done to the row of Ada's session."""
    others_are_whole(manager)
    info = manager.get_session_info("ada")
    assert isinstance(info, SessionInfo)
    found = manager.verify("ada")
    if info.damaged:
        assert not found.ok
        assert info.damaged in str(found) or "times" in info.damaged
    if found.ok:
        assert len(manager.load_session("ada")) == 3
    else:
        with contextlib.suppress(FormatError, StoreError):
            manager.load_session("ada")
    manager.vacuum()
    if unknown or info.damaged:
        assert store.totals().nodes >= nodes
    assert manager.delete_session("ada")
    others_are_whole(manager)
    for id in ("fork", "eve"):
        manager.delete_session(id)
    manager.vacuum()
    assert manager.list_sessions() == []
    assert store.totals().nodes == 0


@given(column=st.sampled_from(REF_COLUMNS), value=VALUES, text=st.booleans())
@QUIET
def test_C14_any_value_in_any_column_of_a_sqlite_row(
    tmp_path: Path, column: str, value: Any, text: bool
) -> None:
    with SQLStore(f"sqlite:///{tmp_path}/chats.db") as store:
        emptied(store)
        manager = filled(store)
        nodes = store.totals().nodes
        set_column(store, "ada", column, value)
        if text:  # which need not be UTF-8
            with store._connected() as connection:
                connection.execute(
                    f'UPDATE dspy_session_refs SET "{column}" = CAST("{column}" AS TEXT) '
                    "WHERE id = 'ada'"
                )
        check_damage(manager, store, nodes, unknown=column in ("family", "tip", "links"))


@given(
    st.tuples(st.sampled_from(["links", "origin", "body"]), st.binary(max_size=40))
    | st.tuples(st.just("metadata"), st.text(st.characters(codec="utf-8", exclude_characters="\0")))
    | st.tuples(st.sampled_from(["family", "version", "tip", "first", "size"]), NUMBERS)
    | st.tuples(st.sampled_from(["created", "updated"]), st.floats())
)
@QUIET
def test_C14_any_value_in_a_postgresql_row(postgres_url: str, broken: tuple[str, Any]) -> None:
    with SQLStore(postgres_url) as store:
        emptied(store)
        manager = filled(store)
        nodes = store.totals().nodes
        set_column(store, "ada", *broken)
        check_damage(manager, store, nodes, unknown=broken[0] in ("family", "tip", "links"))


@given(
    start=st.integers(0, 250), bytes_=st.binary(max_size=30), cut=st.booleans(), raw=st.booleans()
)
@QUIET
def test_C14_any_bytes_in_a_redis_record(
    redis_url: str, start: int, bytes_: bytes, cut: bool, raw: bool
) -> None:
    def change(record: bytes) -> bytes:
        if raw:
            return bytes_
        at = min(start, len(record))
        return record[:at] + bytes_ + (b"" if cut else record[at + len(bytes_) :])

    with RedisStore(redis_url) as store:
        emptied(store)
        manager = filled(store)
        nodes = store.totals().nodes
        set_record(store, "ada", change)
        check_damage(manager, store, nodes, unknown=False)


# --- turns whose rows cannot be read --------------------------------------------------------------


@pytest.mark.parametrize("where", ["payload", "row"])
def test_C14_a_damaged_turn_is_in_the_way_of_no_other_session(
    store: Store, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = manager_of(store, max_turns=1)
    talk(manager.open("ada"), "one", "two", "three", "four")
    manager.create_session("fork", branch_from="ada", at=2)
    talk(manager.open("eve"), "one")
    ref = store.ref("ada")
    assert ref is not None
    assert ref.tip is not None
    key = store.walk(ref.family, ref.tip, 2)[0].key
    if where == "row" and not change_node(store, ref.family, key):
        return  # it has no rows
    if where == "payload":
        store.replace_payloads(ref.family, {key: b"\x10...."})

    found = manager.verify("ada")
    assert found.first_bad == 2
    assert "\n- turn 2: " in str(found)
    assert manager.turns("ada", 3)[0].inputs["question"] == "four"
    with pytest.raises(FormatError, match="turn 2"):
        manager.turns("ada")
    with pytest.raises(FormatError, match="turn 2"):
        manager.export_session("ada")
    others_are_whole(manager)
    assert {(hit.session_id, hit.turn_index) for hit in manager.search("four")} == {("ada", 3)}
    assert "Search passed over" in caplog.text
    session = manager.open("ada")  # what the model is shown can be read
    talk(session, "five")
    assert manager.verify("ada").first_bad == 2
    nodes = store.totals().nodes
    manager.vacuum()
    assert store.totals().nodes == nodes
    assert manager.delete_session("ada")
    others_are_whole(manager)
    assert manager.delete_session("fork")
    manager.vacuum()
    assert store.totals().nodes == 1


def test_C14_a_redis_record_that_says_that_it_is_another_session_is_damaged(
    redis_url: str,
) -> None:
    with RedisStore(redis_url) as store:
        manager = filled(store)
        set_record(store, "ada", lambda record: record.replace(b"\xa3ada", b"\xa3eve", 1))
        info = manager.get_session_info("ada")
        assert info is not None
        assert "it says that it is 'eve'" in str(info.damaged)
        assert info in manager.list_sessions()
        others_are_whole(manager)
        assert manager.delete_session("ada")
        others_are_whole(manager)


@pytest.mark.parametrize("count", [b"", b"7x", b"9" * 30])
def test_C14_a_damaged_count_of_bytes_is_in_the_way_of_nothing(
    redis_url: str, count: bytes
) -> None:
    with RedisStore(redis_url) as store:
        manager = filled(store)
        ref = store.ref("ada")
        assert ref is not None
        meta = store._families.key(ref.family, "meta")
        for work in (
            lambda: talk(manager.open("ada"), "four"),
            lambda: manager.erase("ada", 3),
            lambda: manager.delete_session("ada"),
        ):
            change_field(store, meta, b"bytes", lambda _: count)
            assert manager.statistics().session_count == manager.count_sessions()
            work()
            assert manager.statistics().size_bytes >= 0
        others_are_whole(manager)


@given(data=st.data())
@QUIET
def test_C14_any_bytes_in_the_record_of_a_turn(redis_url: str, data: st.DataObject) -> None:
    drawn = data.draw(st.binary(max_size=60))
    at = data.draw(st.integers(0, 120))

    def change(record: bytes) -> bytes:
        return drawn if at > 100 else record[:at] + drawn + record[at + len(drawn) :]

    with RedisStore(redis_url) as store:
        emptied(store)
        manager = filled(store)
        ref = store.ref("ada")
        assert ref is not None
        assert ref.tip is not None
        key = store.walk(ref.family, ref.tip, 2)[0].key
        change_node(store, ref.family, key, change)
        check_damage(manager, store, 0, unknown=False)
