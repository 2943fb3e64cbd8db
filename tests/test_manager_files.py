"""The session manager and files: exports and imports, and managers from a configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import (
    ConflictError,
    FormatError,
    MemoryStore,
    OptionError,
    Session,
    SessionExistsError,
    SessionManager,
    SQLStore,
    Store,
    StoreError,
    sessionify,
)
from tests.managers import contents, manager_of, small_store, talk, unchanged
from tests.talk import QA, questions


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with small_store(request.param, tmp_path) as opened:
        yield opened


# --- exports and imports --------------------------------------------------------------------------


def a_conversation(manager: SessionManager) -> Session:
    session = manager.open("ada", metadata={"topic": "tea"}, data={"cart": ["tea"]})
    talk(session, "one", "two", "three")
    session.replace_turn(0, {"answer": "1"})
    session.data["cart"] = []
    session.undo()
    return session


def test_C10_an_export_is_imported_as_it_was(store: Store, tmp_path: Path) -> None:
    manager, path = manager_of(store), tmp_path / "ada.json"
    session = a_conversation(manager)
    document = manager.export_session("ada", path)

    assert json.loads(path.read_text()) == document
    other = manager_of(MemoryStore())
    assert other.import_session(path).state == session.state
    assert manager.import_session(document, session_id="copy").session_id == "copy"
    assert other.verify("ada").ok
    imported = other.load_session("ada")
    talk(imported, "four")  # it is kept
    assert questions(other.load_session("ada")) == ["one", "two", "four"]
    assert Session.load_from(path, dspy.Predict(QA)).state == session.state
    saved = sessionify(dspy.Predict(QA), session_id="file")
    saved.save(tmp_path / "saved.json")
    assert other.import_session(str(tmp_path / "saved.json")).session_id == "file"
    with unchanged(store, FileNotFoundError):
        manager.export_session("ada", tmp_path / "nowhere" / "ada.json")
    with unchanged(store, FileNotFoundError):
        manager.import_session(tmp_path / "nobody.json")


def test_C10_a_taken_id_is_an_error_unless_renamed_or_overwritten(store: Store) -> None:
    manager = manager_of(store)
    session = a_conversation(manager)
    document = manager.export_session("ada")
    talk(session, "more")
    manager.create_session("fork", branch_from="ada")

    with unchanged(store, SessionExistsError, "'ada'"):
        manager.import_session(document)
    assert len(manager.import_session(document, session_id="ada 2")) == 2
    taken = manager.get_session_info("fork")
    replaced = manager.import_session(document, session_id="fork", overwrite=True)
    now = manager.get_session_info("fork")
    assert taken is not None
    assert now is not None
    assert (taken.origin, now.origin, now.created_at) == ("ada", None, taken.created_at)
    manager.delete_session("fork")
    manager.create_session("fork", branch_from="ada")
    replaced = manager.import_session(document, overwrite=True)
    assert questions(replaced) == ["one", "two"]
    assert manager.load_session("ada").state == replaced.state
    assert questions(manager.load_session("fork")) == ["one", "two", "more"]
    assert manager.verify("ada").ok
    assert manager.verify("fork").ok
    with pytest.raises(ConflictError):
        session.add_turn({"question": "x"}, {"answer": "y"})  # who had the old one open is told
    manager.vacuum()
    assert manager.load_session("ada").state == replaced.state
    assert len(manager.import_session({**document}, session_id="new", overwrite=True)) == 2
    with unchanged(store, OptionError, "session id"):
        manager.import_session(document, session_id="")
    with unchanged(store, OptionError, "session id"):
        manager.import_session(document, session_id="a\nb")


def test_C10_what_was_tampered_with_is_refused_and_nothing_is_stored(
    store: Store, tmp_path: Path
) -> None:
    manager, path = manager_of(store), tmp_path / "ada.json"
    a_conversation(manager)
    document = manager.export_session("ada", path)
    manager.delete_session("ada")
    whole = path.read_text()

    def edited(**changes: Any) -> dict[str, Any]:
        return {**document, **changes}

    turns = document["conversation"]["turns"]
    other = [{**turns[0], "outputs": {"answer": "no"}}, *turns[1:]]
    for wrong in (
        edited(conversation={**document["conversation"], "turns": other}),
        edited(options={}),
        edited(digest="sha256:00"),
        edited(digest=None),
        edited(more=1),
    ):
        with unchanged(store, FormatError, "altered"):
            manager.import_session(wrong)
    path.write_text(whole.replace("answer to two", "answer to 2wo"))
    with unchanged(store, FormatError, "altered", str(path)):
        manager.import_session(path)
    with unchanged(store, FormatError, "altered"):
        Session.load_from(path, dspy.Predict(QA))
    path.write_text(whole[:-10])
    with unchanged(store, FormatError, str(path)):
        manager.import_session(path)
    no_paths: list[Any] = [None, 3, [], b"{}"]
    for no_path in no_paths:
        with unchanged(store, FormatError, type(no_path).__name__):
            manager.import_session(no_path)
    del document["digest"]
    for wrong in (
        {**document, "version": 4},
        {**document, "conversation": {}},
        {"kind": "dspy-session"},
        {},
        {"metadata": 1},
    ):
        with unchanged(store, FormatError):
            manager.import_session(wrong)
    assert len(manager.import_session(document)) == 2  # whoever edits it takes the digest out

    path.write_bytes(b"\xef\xbb\xbf" + whole.replace("\n", "\r\n").encode())  # an editor of Windows
    assert len(manager.import_session(path, session_id="from Windows")) == 2


def test_C10_an_export_hands_on_nothing_private(store: Store) -> None:
    manager = manager_of(store, private_data=["pin"], redact_fields=["question", "answer"])
    session = manager.open("ada", data={"pin": "pin-1234", "cart": []})
    talk(session, "my secret")

    handed_on = json.dumps(manager.export_session("ada"))
    assert "pin-1234" not in handed_on
    assert "my secret" not in handed_on
    whole = manager.export_session("ada", private=True)
    copy = manager_of(MemoryStore()).import_session(whole)
    assert (copy.data.to_dict(), questions(copy)) == (
        {"pin": "pin-1234", "cart": []},
        ["my secret"],
    )


# --- configuration --------------------------------------------------------------------------------

WHOLE = """
title = "an application's own"

[session]
backend = "sqlite"
storage_path = "~/made/on the way?"
message_cache_size = 1000
autosave_interval = 300
connection_pool_size = 5
compress_messages = true
max_session_size = 100
on_conflict = "retry"

[logging]
level = "info"
"""


def from_config(config: Any, **keywords: Any) -> SessionManager:
    return SessionManager.from_config(dspy.Predict(QA), config, **keywords)


def test_C15_a_toml_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "app.toml"
    path.write_text(WHOLE)
    with from_config(path) as manager:
        assert (
            manager.__dict__.items()
            >= {
                "_autosave": True,
                "_on_conflict": "retry",
                "_max_bytes": 100 * 1024 * 1024,
                "_read_turns": 500,
            }.items()
        )
        talk(manager.open("ada"), "one")
    assert (tmp_path / "made" / "on the way?" / "sessions.db").is_file()
    with from_config("~/app.toml", max_turns=3, on_conflict="raise") as manager:
        session = manager.open("ada")
        assert (questions(session), session.options.max_turns) == (["one"], 3)
    path.write_bytes(b"\xef\xbb\xbf" + WHOLE.replace("\n", "\r\n").encode())  # an editor of Windows
    with from_config(path) as manager:
        assert questions(manager.load_session("ada")) == ["one"]


def test_C15_a_dict(tmp_path: Path) -> None:
    folder = tmp_path / "chats"
    with from_config({"session": {"storage_path": folder}}) as manager:
        talk(manager.open("ada"), "one")
        assert manager.list_sessions()[0].size_bytes < 1000
    with pytest.raises(StoreError):
        manager.count_sessions()  # the store was the manager's, and is closed
    table: dict[str, Any] = {"storage_path": str(folder), "connection_pool_size": 2}
    with from_config({"session": {**table, "autosave_interval": 0}}) as manager:
        session = manager.open("ada")
        talk(session, "two")
        assert len(manager.load_session("ada")) == 1
        manager.save_session(session)
        assert len(manager.load_session("ada")) == 2
    with from_config({"session": {"backend": "memory", "compress_messages": False}}) as manager:
        manager.open("ada").add_turn({"question": "tea " * 5000}, {"answer": "a"})
        assert manager.list_sessions()[0].size_bytes > 20_000
    url = f"sqlite:///{tmp_path}/other.db"
    for more in ({}, {"connection_pool_size": 3}):
        with from_config({"session": {"store": url, **more}}) as manager:
            assert isinstance(manager.open("ada"), Session)
    with SQLStore(url) as store:
        assert [id for id, *_ in contents(store)] == ["ada"]
        with from_config({"session": {"backend": "memory"}}, store=store) as manager:
            assert manager.count_sessions() == 1
        assert store.totals().sessions == 1  # it is not the manager's to close


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"backend": "sqlite"}, ["storage_path"]),
        ({}, ["storage_path"]),
        ({"backend": "postgres"}, ["backend", "'postgres'", "store ="]),
        ({"backend": "memory", "autosave": 1}, ["'autosave'", "autosave_interval"]),
        ({"storage_pth": "x"}, ["'storage_pth'", "Did you mean 'storage_path'"]),
        ({"backend": "memory", "max_session_size": "100"}, ["max_session_size", "str"]),
        ({"backend": "memory", "max_session_size": 0}, ["max_session_size", "0"]),
        ({"backend": "memory", "max_session_size": float("nan")}, ["max_session_size", "nan"]),
        ({"backend": "memory", "compress_messages": "yes"}, ["compress_messages", "str"]),
        ({"backend": "memory", "message_cache_size": True}, ["message_cache_size", "bool"]),
        ({"backend": "memory", "message_cache_size": 1.5}, ["message_cache_size", "float"]),
        ({"backend": "memory", "message_cache_size": -1}, ["message_cache_size", "-1"]),
        ({"backend": "memory", "connection_pool_size": 0}, ["connection_pool_size", "0"]),
        ({"backend": "memory", "autosave_interval": -1}, ["autosave_interval", "-1"]),
        ({"storage_path": "x", "on_conflict": "merge"}, ["on_conflict", "'merge'"]),
        ({"storage_path": "x", "max_session_size": float("inf")}, ["max_session_size", "inf"]),
        ({"backend": None}, ["backend", "None"]),
        ({"backend": "memory", "store": "memory:"}, ["store", "backend"]),
        ({"store": "chats.db"}, ["URL"]),
        ({"store": "sqlit:///chats.db"}, ["sqlit", "Did you mean"]),
    ],
)
def test_C15_wrong_options_are_refused(
    table: dict[str, Any], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError) as caught:
        from_config({"session": table})
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_C15_configurations_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "app.toml"
    wrongs: list[Any] = [{}, {"session": 1}, {"sessions": {}}, [], None, 7]
    for wrong in wrongs:
        with pytest.raises(OptionError, match="session"):
            from_config(wrong)
    for text, words in {
        '[session]\nbackend = "memory"\nmax_session_size = \n': "line 3",
        "[session]\nstore_path = 'x'\n": "Did you mean 'storage_path'",
        "title = 'x'": "table 'session'",
    }.items():
        path.write_text(text)
        with pytest.raises(OptionError) as caught:
            from_config(path)
        assert words in str(caught.value)
        assert str(path) in str(caught.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(OptionError, match=r"app\.toml"):
        from_config(path)
    with pytest.raises(FileNotFoundError):
        from_config(tmp_path / "nobody.toml")
    assert [each.name for each in tmp_path.iterdir()] == ["app.toml"]
