"""Stores, files and arguments that cannot be used: one line that says what to do, no change."""

import os
import sqlite3
from pathlib import Path

import pytest

from tests.commands import Commands, another_user, fill, snapshot

LOOKS = [["list"], ["show", "ada"], ["verify"], ["search", "tea"], ["stats"], ["tree", "ada"]]
CHANGES = [["fork", "ada", "new"], ["delete", "-y", "ada"], ["vacuum"], ["import", "ada.json"]]


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Commands:
    monkeypatch.chdir(tmp_path)
    fill("sqlite:///chats.db")
    Commands(capsys, "chats.db").good("export", "ada", "ada.json")
    return Commands(capsys)


def refused(run: Commands, store: str, *words: str) -> None:
    """Whatever is asked of the store, that is the one line; and no file is changed or made."""
    before = snapshot(Path())
    for arguments in LOOKS + CHANGES:
        assert run("--store", store, *arguments).complained(*words)
        assert run("--json", "--store", store, *arguments).status == 1
    assert snapshot(Path()) == before


# Stores


def test_a_folder_as_the_store(run: Commands) -> None:
    Path("folder").mkdir()
    for text in ("folder", "sqlite:///folder"):
        refused(run, text, "'folder' is a folder. Give the file of a SQLite store, such as")


def test_a_file_that_is_no_store(run: Commands) -> None:
    Path("letter.txt").write_text("Dear Ada,\n" * 500)
    refused(run, "letter.txt", "Expected a SQLite database, but the file is none")


def test_somebody_elses_database(run: Commands) -> None:
    with sqlite3.connect("other.db") as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    refused(run, "other.db", "tables of somebody else (recipes)", "Choose another")


def test_a_store_from_a_newer_version(run: Commands) -> None:
    with sqlite3.connect("chats.db") as connection:
        connection.execute("UPDATE dspy_session_schema SET version = 99")
    connection.close()
    refused(run, "chats.db", "the database has version 99. Upgrade dspy-session")


@pytest.mark.parametrize(
    ("store", "words", "status"),
    [
        ("", "--store is empty. Give a URL such as 'sqlite:///chats.db'", 2),
        ("sqllite:///chats.db", "Did you mean 'sqlite'?", 2),
        ("sqlite:chats.db", "is not whole. Expected one such as 'sqlite:///chats.db'", 2),
        ("mysql://user:secret@host/x", "No store has URLs of the scheme 'mysql'", 2),
        ("postgresql://ada:secret@127.0.0.1:x/x", "Expected the URL of a database", 2),
        ("postgresql://ada:secret@127.0.0.1:1/x", "The connection was lost, or could not", 1),
        ("redis://ada:secret@127.0.0.1:1", "it cannot be reached", 1),
    ],
)
def test_a_url_of_no_store(store: str, words: str, status: int, run: Commands) -> None:
    for arguments in (["list"], ["fork", "ada", "new"]):
        ran = run("--store", store, *arguments)
        assert ran.complained(words, status=status)
        assert "secret" not in ran.err
    assert sorted(snapshot(Path())) == ["ada.json", "chats.db"]


def test_a_folder_that_is_not_there(run: Commands) -> None:
    words = "The folder", "does not exist. Make it first."
    assert run("--store", "none/x.db", "import", "ada.json").complained("ada.json: ", *words)
    ran = run("--store", "none/x.db", "list")
    assert (ran.status, ran.out) == (0, "")
    assert ran.err == "dspy-session: Nothing is stored at none/x.db yet.\n"
    assert run("--store", "ada.json/x.db", "list").status == 0
    assert sorted(snapshot(Path())) == ["ada.json", "chats.db"]


def test_no_permission(run: Commands, tmp_path: Path) -> None:
    for arguments in LOOKS:  # so that all is loaded that may not be read by another user
        run("--store", "chats.db", *arguments)
    tmp_path.chmod(0)
    try:
        with another_user():
            for arguments in LOOKS[:2] + CHANGES[:2]:
                ran = run("--store", str(tmp_path / "chats.db"), *arguments)
                assert ran.complained("Permission denied", "Check the permissions")
    finally:
        tmp_path.chmod(0o700)
    assert sorted(snapshot(Path())) == ["ada.json", "chats.db"]


# Files


def test_files_that_cannot_be_written(run: Commands) -> None:
    Path("folder").mkdir()
    before = snapshot(Path())
    for target, words in {
        "folder": "'folder' is a folder. Name a file in it.",
        "none/ada.json": "there is no folder",
        "ada.json/x": "there is no folder",
        "x" * 300: "File name too long",
    }.items():
        for html in ([], ["--html"]):
            assert run("--store", "chats.db", "export", "ada", target, *html).complained(words)
    assert run("--store", "chats.db", "export", "--all", "ada.json").complained("File exists")
    assert snapshot(Path()) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "It is empty."),
        (b" \r\n", "It is empty."),
        (b"\xff\xfe", "It is empty."),
        (b"\xff\xfe\x00", "the data is not whole"),
        (b"\x80\x81", "the data is not whole"),
        (b"{}", "another kind of document"),
        (b"[1, 2]", "another kind of document"),
        (b"[" * 100_000, "the data is not whole"),
        (b'{"kind": "dspy-session", "version": 3}', "it is damaged"),
        (b'{"kind": "dspy-session", "version": 4}', "Upgrade dspy-session"),
        (b'{"kind": "dspy-session", "version": "\\u001b[31m"}', r"\x1b[31m"),
    ],
)
def test_files_that_hold_no_session(content: bytes, words: str, run: Commands) -> None:
    Path("x.json").write_bytes(content)
    before = snapshot(Path())
    assert run("--store", "chats.db", "import", "x.json", "--overwrite").complained(
        "dspy-session: x.json: ", words
    )
    assert run("--store", "chats.db", "import", "folder\x1b").complained(r"folder\x1b")
    assert snapshot(Path()) == before


def test_a_folder_as_a_file(run: Commands) -> None:
    assert run("--store", "chats.db", "import", os.curdir).complained("Is a directory")


def test_ids_that_no_session_can_have(run: Commands) -> None:
    before = snapshot(Path())
    refusals = {"": "1 to 200 characters", "a\nb": "control characters", "x" * 201: "has 201"}
    for id, words in refusals.items():
        assert run("--store", "chats.db", "fork", "ada", id).complained(words)
        assert run("--store", "chats.db", "import", "ada.json", "--as", id).complained(words)
        assert run("--store", "chats.db", "delete", "-y", id).complained(words)
    assert snapshot(Path()) == before
