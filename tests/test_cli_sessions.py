"""The commands over stored sessions: what they do, and what they say to people and to scripts."""

import json
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import dspy
import pydantic
import pytest

from dspy_session import Session, SessionManager, new_secret
from dspy_session.cli import keeping, listing, showing
from dspy_session.cli.context import CommandContext
from dspy_session.cli.places import place_of
from dspy_session.core.chat_view import messages_by_turn
from dspy_session.core.state import SessionState
from dspy_session.testing import ScriptedLM
from tests.commands import ESCAPES, Commands, fill, snapshot
from tests.pages import Page

FORK = "ada/2 🙂"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("filled") / "chats.db"
    fill(f"sqlite:///{file}")
    return file


@pytest.fixture
def store(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    return Path(shutil.copy(filled, tmp_path / "chats.db"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], store: Path) -> Commands:
    return Commands(capsys, "chats.db")


def ids(run: Commands, *arguments: str) -> list[str]:
    return [each["session_id"] for each in run("list", *arguments, "--json").document["sessions"]]


# list


def test_list(run: Commands) -> None:
    heading, *rows = run.good("list").splitlines()
    assert heading.split() == ["ID", "TURNS", "UPDATED", "(UTC)", "SIZE", "METADATA"]
    assert [row.split()[0] for row in rows] == ["-dash", "ada/2", "ada"]
    assert rows[2].endswith('app: shop, tags: ["tea"]')
    first = run.document("list")["sessions"][0]
    assert set(first) == {
        *("session_id", "turn_count", "created_at", "updated_at"),
        *("metadata", "size_bytes", "origin", "damaged"),
    }
    assert (first["session_id"], first["metadata"]) == ("-dash", {"app": "bank"})


def test_list_page_by_page_in_every_order(run: Commands) -> None:
    assert ids(run, "--order", "id") == ["-dash", "ada", FORK]
    assert ids(run, "--order", "id", "--reverse") == [FORK, "ada", "-dash"]
    assert ids(run, "--order", "created", "--reverse") == ["ada", FORK, "-dash"]
    assert ids(run, "--order", "id", "--limit", "1", "--offset", "1") == ["ada"]
    assert ids(run, "-n", "0") == []
    page = run("list", "-n", "1", "--offset", "1")
    assert page.err == "dspy-session: There are 3 sessions; --offset 2 shows the next.\n"
    assert run("list", "--offset", "3").err == "dspy-session: There are 3 sessions.\n"
    assert run("list", "--json", "-n", "1").document["count"] == 3


def test_list_by_metadata(run: Commands) -> None:
    assert ids(run, "--where", "app=shop") == [FORK, "ada"]
    assert ids(run, "--where", 'app="bank"') == ["-dash"]
    assert ids(run, "--where", "tags=tea", "--where", "app=shop") == [FORK, "ada"]
    assert ids(run, "--where", "app=shop", "--where", "app=bank") == ["-dash"]
    none = run("list", "--where", "app=NaN")
    assert (none.out, none.err) == ("", "dspy-session: There are no such sessions.\n")
    assert run("delete", "--yes", "ada", FORK, "--", "-dash").status == 0
    none = run("list")
    assert (none.out, none.err) == ("", "dspy-session: There are no sessions.\n")


# show


def test_show(run: Commands) -> None:
    text = run.good("show", "ada")
    assert re.sub(r"\d+ B|\d\.\d kB|\d+ tokens|\d+ ms|[\d-]{10} \d\d:\d\d", "_", text) == (
        "ada: 3 turns, _\n"
        '   metadata     app: shop, tags: ["tea"]\n'
        "   instructions Be brief.\n"
        '   data         cart: ["tea"]\n'
        "\n"
        "turn 0: _, _, _, score 0.5\n"
        "   user         My name is Ada.\n"
        "                I am flying to Oslo.\n"
        "   assistant    Noted.\n"
        "\n"
        "turn 1: _, _, _, score 0.5\n"
        "   user         And Rome?\n"
        "   assistant    red \\x1b[31malert\\x1b[0m, \\x9b1m, \\u202eback\\u202c,"
        " <script>alert(1)</script>\n"
        "                next    one\n"
        "\n"
        "turn 2: _, _, _, score 0.5\n"
        "   user         Which tea?\n"
        "   assistant    Noted.\n"
        '   data         + cart: ["tea"]\n'
    )


def test_show_as_json(run: Commands) -> None:
    document = run.document("show", "ada")
    assert set(document) == {
        *("session_id", "turn_count", "created_at", "updated_at", "metadata", "size_bytes"),
        *("origin", "damaged", "instructions", "data", "turns", "pending"),
    }
    assert (document["instructions"], document["data"]) == ("Be brief.", {"cart": ["tea"]})
    turn = document["turns"][2]
    assert set(turn) == {
        *("index", "id", "time", "duration", "inputs", "outputs", "messages", "score"),
        *("feedback", "tokens", "cost", "erased", "details", "data_changes"),
    }
    assert (turn["index"], turn["score"], turn["outputs"]) == (2, 0.5, {"answer": "Noted."})
    assert turn["messages"] == [
        {"role": "user", "content": "Which tea?"},
        {"role": "assistant", "content": "Noted."},
    ]
    assert turn["data_changes"] == [
        {"key": "cart", "before": None, "after": ["tea"], "kind": "added"}
    ]


def test_show_the_newest_turns_and_read_no_others(
    run: Commands, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(part: SessionState) -> Any:
        read.append(len(part))
        return messages_by_turn(part)

    monkeypatch.setattr(showing, "messages_by_turn", counted)
    assert [turn["index"] for turn in run.document("show", "ada", "--last", "1")["turns"]] == [2]
    assert [turn["index"] for turn in run.document("show", "ada", "-n", "9")["turns"]] == [0, 1, 2]
    assert run.document("show", "ada", "-n", "0")["turns"] == []
    assert read == [1, 3, 0]
    damage(store, 0)
    assert len(run.document("show", "ada", "--last", "2")["turns"]) == 2
    assert run("show", "ada").complained("Cannot read turn 0")


def test_show_the_turns_before_a_damaged_one(run: Commands, store: Path) -> None:
    whole = run.document("show", "ada")["turns"]
    damage(store, 2)
    assert run("show", "ada").complained("Cannot read turn 2")
    assert run("show", "ada", "--last", "1").complained("Cannot read turn 2")
    for last, turns in {"9": whole[:2], "1": whole[1:2], "0": []}.items():
        assert run.document("show", "ada", "--before", "2", "-n", last)["turns"] == turns
    assert run.document("show", "ada", "--before", "0")["turns"] == []
    text = run.good("show", "ada", "--before", "2")
    assert "turn 1" in text
    assert "turn 2" not in text
    assert 'app: shop, tags: ["tea"]' in text
    assert run("show", "ada", "--before", "3").complained("Cannot read turn 2")


def test_show_chat_messages_and_what_waits(run: Commands) -> None:
    with SessionManager(dspy.Predict("question -> answer"), "sqlite:///chats.db") as manager:
        call = {"name": "look_up", "arguments": '{"id": 7}'}
        manager.open(
            "imported",
            messages=[
                {"role": "user", "content": "Where is it?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c", "type": "function", "function": call}],
                },
                {"role": "tool", "tool_call_id": "c", "content": "In \x1bOslo."},
                {"role": "assistant", "content": "In Oslo."},
                {"role": "user", "content": "And now?"},
            ],
        )
    assert run.good("show", "imported").splitlines()[2:] == [
        "turn 0",
        "   user         Where is it?",
        '   assistant    calls look_up({"id": 7})',
        "   tool         In \\x1bOslo.",
        "   assistant    In Oslo.",
        "   user, waits  And now?",
    ]
    assert run.document("show", "imported")["pending"] == [{"role": "user", "content": "And now?"}]


def test_show_a_turn_that_was_erased(run: Commands) -> None:
    with SessionManager(dspy.Predict("question -> answer"), "sqlite:///chats.db") as manager:
        manager.erase("ada", 1)
    assert re.search(r"^turn 1: .*erased\n\nturn 2", run.good("show", "ada"), re.MULTILINE)
    assert [turn["erased"] for turn in run.document("show", "ada")["turns"]] == [0, 1, 0]
    assert (
        run.good("verify", "ada")
        == "1 session, 3 turns checked, 1 of them erased: nothing damaged.\n"
    )


def test_a_session_that_is_not_there_and_similar_ones(run: Commands) -> None:
    for arguments in (
        ["show", "adda"],
        ["tree", "adda"],
        ["fork", "adda", "x"],
        ["verify", "adda"],
    ):
        assert run(*arguments).complained(
            "There is no session 'adda' in this store. Did you mean 'ada'? `dspy-session list`"
        )
    assert run("show", "eve").complained("There is no session 'eve' in this store. `dspy-session")
    assert run("show", "a\x1b").complained(r"must not hold control characters, but 'a\x1b' holds")
    assert run("show", "\udcff").complained(r"\udcff")
    assert run("show", "").complained("must have 1 to 200 characters")


# tree


def test_tree(run: Commands) -> None:
    text = run.good("tree", "ada")
    assert text.splitlines()[0] == "2 conversations"
    assert "│  ╰─ 1  I meant Bergen." in text
    assert not any(each in text for each in ESCAPES)
    alone = run.good("tree", "ada", "--alone")
    assert alone.startswith("ada: 3 turns")
    assert "Bergen" not in alone
    assert run.good("tree", FORK).splitlines()[1].startswith(FORK)
    both = run.document("tree", "ada", "--alone", "--", "-dash")
    assert [each["name"] for each in both["sessions"]] == ["ada", "-dash"]
    assert "2 earlier turns not drawn" in run.good("tree", "ada", "--alone", "-n", "1")


# search


def test_search(run: Commands) -> None:
    assert run.document("search", "OSLO")["hits"] == [
        {"session_id": id, "turn_index": 0, "field": "question", "excerpt": excerpt}
        for excerpt in ["My name is Ada. I am flying to Oslo."]
        for id in (FORK, "ada")
    ]
    heading, *rows = run.good("search", "oslo").splitlines()
    assert heading.split() == ["ID", "TURN", "EXCERPT", "FIELD"]
    assert len(rows) == 2
    assert run.document("search", "loan", "--where", "app=shop")["hits"] == []
    nothing = run("search", "Atlantis")
    assert (nothing.status, nothing.out) == (0, "")
    assert nothing.err == "dspy-session: Nothing has the text 'Atlantis'.\n"
    cut = run("search", "oslo", "-n", "1")
    assert cut.err == "dspy-session: These are the first 1; --limit says how many.\n"
    assert run("search", "").complained("search needs a text to find")


# stats


def test_stats(run: Commands) -> None:
    document = run.document("stats", "--days", "2")
    assert (document["session_count"], document["turn_count"]) == (3, 5)
    assert [info["session_id"] for info in document["recent"]] == ["-dash", FORK, "ada"]
    assert len(document["activity"]) == 2
    assert sum(document["activity"].values()) == 5
    summary, heading, *days = run.good("stats").splitlines()
    assert summary.startswith("3 sessions, 5 turns, ")
    assert heading == "DAY (UTC)   TURNS"
    assert len(days) == 7
    assert "#" * 40 in "\n".join(days)


# fork


def test_fork(run: Commands) -> None:
    assert run.good("fork", "ada", "whole") == "Forked 'ada' into 'whole': 3 turns.\n"
    assert run.document("fork", "ada", "begun", "--at", "1") == {
        "session_id": "begun",
        "origin": "ada",
        "turn_count": 1,
    }
    assert run.document("fork", "ada", "empty", "--at", "0")["turn_count"] == 0
    assert run.good("fork", "--", "-dash", "--x") == "Forked '-dash' into '--x': 1 turn.\n"
    assert run.document("show", "begun")["origin"] == "ada"
    before = ids(run)
    assert run("fork", "ada", "whole").complained("There is a session 'whole' already.")
    assert run("fork", "ada", "far", "--at", "4").complained("There is no turn 4")
    assert run("fork", "ada", "a\x1bb").complained("control characters")
    assert ids(run) == before
    assert run.good("verify").startswith("7 sessions, ")


def test_a_fork_of_what_is_damaged_later(run: Commands, store: Path) -> None:
    damage(store, 1)
    assert run.document("fork", "ada", "saved", "--at", "1")["turn_count"] == 1
    assert run.document("show", "saved")["turn_count"] == 1


def test_a_fork_before_the_newest_turn_which_is_damaged(run: Commands, store: Path) -> None:
    whole = run.document("show", "ada")["turns"]
    damage(store, len(whole) - 1)
    before = ids(run)
    for option in ([], ["--at", str(len(whole))]):
        assert run("fork", "ada", "saved", *option).complained("fork the session before it")
    assert ids(run) == before
    run.good("fork", "ada", "saved", "--at", str(len(whole) - 1))
    assert run.document("show", "saved")["turns"] == whole[:-1]


# export, import


def test_export_and_import(run: Commands) -> None:
    assert run.good("export", "ada", "ada.json") == "Wrote ada.json.\n"
    assert run.document("export", "ada", "ada.json") == {
        "written": [{"session_id": "ada", "file": "ada.json"}]
    }
    loaded = Session.load_from("ada.json", dspy.Predict("question -> answer"))
    assert len(loaded) == 3
    assert run.good("import", "ada.json", "--as", "again") == "Imported 'again': 3 turns.\n"
    one, other = (run.document("show", id) for id in ("ada", "again"))
    assert one["turns"] == other["turns"]
    assert run("import", "ada.json").complained(
        "ada.json: There is a session 'ada' already. --as gives it another id, --overwrite"
    )
    run.good("delete", "-y", "again")
    assert run.document("import", "ada.json", "--overwrite") == {
        "imported": [{"file": "ada.json", "session_id": "ada", "turn_count": 3}],
        "failed": 0,
    }
    assert run.good("verify").endswith("nothing damaged.\n")


def test_export_to_standard_output(run: Commands) -> None:
    text = run.good("export", "ada", "-")
    assert text.isascii()
    assert not any(each in text for each in ESCAPES)
    Path("piped.json").write_text(text, "utf-8")
    assert run.good("import", "piped.json", "--as", "piped") == "Imported 'piped': 3 turns.\n"
    assert run.good("export", "ada", "-", "--json") == text
    assert run.good("export", "ada", "-", "--html").startswith("<!DOCTYPE html>")
    assert run("export", "ada", "-", "--html", "--json").complained("name a file", status=2)


def test_export_as_a_page(run: Commands) -> None:
    run.good("export", "ada", "ada.html", "--html", "--private", "cart", "--redact", "question")
    page = Page(Path("ada.html").read_text("utf-8"))
    assert page.complaints == []
    assert "Oslo" not in page.text
    assert "cart" not in page.text
    assert "Noted." in page.text


def test_export_without_what_is_private(run: Commands) -> None:
    run.good("export", "ada", "a.json", "--private", "cart", "--redact", "answer", "--redact", "x")
    text = Path("a.json").read_text("utf-8")
    assert "cart" not in text
    assert "Noted" not in text
    assert "Oslo" in text
    run.good("import", "a.json", "--as", "told")


def test_export_many_and_import_many(run: Commands, store: Path) -> None:
    assert run.good("export", "--all", "out") == "Wrote 3 sessions to out.\n"
    names = ["-dash.json", "ada%2F2%20%F0%9F%99%82.json".replace("%20", " "), "ada.json"]
    assert sorted(snapshot(Path("out"))) == sorted(names)
    assert run.good("export", "--", "ada", "-dash", "some/deep") == (
        "Wrote 2 sessions to some/deep.\n"
    )
    store.unlink()
    files = [str(file) for file in sorted(Path("out").iterdir())]
    Path("out/bad.json").write_text("{}")
    ran = run("import", *files[:2], "out/bad.json", *files[2:], "out/none.json")
    assert ran.status == 1
    assert ran.out.count("Imported") == 3
    bad, none = ran.err.splitlines()
    assert bad.startswith("dspy-session: out/bad.json: Expected a saved conversation")
    assert none == (
        "dspy-session: out/none.json: No such file or directory: 'out/none.json'. Check the path."
    )
    assert sorted(ids(run)) == ["-dash", "ada", FORK]


def test_nothing_is_exported_if_one_is_not_there(run: Commands) -> None:
    assert run("export", "ada", "nobody", "out").complained("There is no session 'nobody'")
    assert not Path("out").exists()


@pytest.mark.parametrize("kind", ["bom", "utf-16", "windows"])
def test_import_what_went_through_windows(kind: str, run: Commands) -> None:
    run.good("export", "ada", "ada.json")
    text = Path("ada.json").read_text("utf-8")
    assert "\r" not in text
    data = {
        "bom": text.encode("utf-8-sig"),
        "utf-16": text.encode("utf-16"),
        "windows": text.replace("\n", "\r\n").encode("utf-8-sig") + b"\r\n",
    }[kind]
    Path("ada.json").write_bytes(data)
    run.good("import", "ada.json", "--as", "b")
    assert run.document("show", "b")["turns"] == run.document("show", "ada")["turns"]


def test_import_an_altered_file(run: Commands, store: Path) -> None:
    run.good("export", "ada", "ada.json")
    text = Path("ada.json").read_text("utf-8")
    Path("ada.json").write_text(text.replace("Oslo", "Rome"))
    before = ids(run)
    assert run("import", "ada.json", "--as", "b").complained("This conversation was altered")
    Path("ada.json").write_text(text[:-200])
    assert run("import", "ada.json", "--as", "b").complained("the data is not whole")
    Path("ada.json").write_text("")
    assert run("import", "ada.json").complained("It is empty. Expected what `export ID ada.json`")
    newer = {**json.loads(text), "version": 99}
    Path("ada.json").write_text(json.dumps(newer))
    assert run("import", "ada.json").complained("version 99 of the format", "Upgrade dspy-session")
    assert ids(run) == before


def test_import_a_file_without_end(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_LONGEST", 1_000)
    assert run("import", "/dev/zero").complained("/dev/zero: It has more than 1,000 bytes.")


# delete


def test_delete(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("delete", "-y", "ada", "nobody").complained("There is no session 'nobody'")
    assert run("delete", "ada").complained(
        "Delete 'ada' (3 turns)? Nobody can be asked here: say --yes.", status=2
    )
    asked: list[str] = []

    def answer(question: str) -> bool:
        asked.append(question)
        return len(asked) > 1

    monkeypatch.setattr(keeping, "confirmed", answer)
    kept = run("delete", "--", "-dash", "ada")
    assert (kept.status, kept.out, kept.err) == (1, "", "dspy-session: Nothing was deleted.\n")
    assert len(ids(run)) == 3
    assert run.good("delete", "--", "-dash", "ada", "ada") == "Deleted 2 sessions.\n"
    assert asked == ["Delete 2 sessions (4 turns)?"] * 2
    assert ids(run) == [FORK]
    assert run.document("delete", FORK, "--yes") == {"deleted": [FORK]}
    assert ids(run) == []


# verify, vacuum


def damage(store: Path, depth: int) -> None:
    """Change a byte of the turns of an index."""
    with sqlite3.connect(store) as connection:
        rows = connection.execute(
            "SELECT key, payload FROM dspy_session_nodes WHERE depth = ?", [depth]
        ).fetchall()
        for key, payload in rows:
            bad = payload[:-3] + bytes([payload[-3] ^ 1]) + payload[-2:]
            connection.execute(
                "UPDATE dspy_session_nodes SET payload = ? WHERE key = ?", [bad, key]
            )
    connection.close()


def test_verify(run: Commands, store: Path) -> None:
    assert run.good("verify") == "3 sessions, 6 turns checked: nothing damaged.\n"
    assert run.good("verify", "ada", "ada") == "1 session, 3 turns checked: nothing damaged.\n"
    damage(store, 1)
    ran = run("verify")
    assert (ran.status, ran.err) == (1, "")
    lines = ran.out.splitlines()
    assert lines[0].startswith("ada: turn 1: ")
    assert lines[-1] == "3 sessions, 6 turns checked: 2 sessions damaged."
    document = run("verify", "ada", "--json").document
    assert document["ok"] is False
    (found,) = document["sessions"]
    assert (found["session_id"], found["ok"], found["first_bad"], found["turns"]) == (
        *("ada", False, 1),
        3,
    )
    assert found["damaged"][0]["turn"] == 1
    good = run("verify", "--json", "--", "-dash")
    assert (good.status, good.document["ok"]) == (0, True)


def test_a_session_whose_row_is_damaged(run: Commands, store: Path) -> None:
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE dspy_session_refs SET links = 'x' WHERE id = 'ada'")
    connection.close()
    listed = {each["session_id"]: each["damaged"] for each in run.document("list")["sessions"]}
    assert {id for id, damaged in listed.items() if damaged} == {"ada"}
    assert re.search("^ada .* damaged: its links", run.good("list"), re.MULTILINE)
    for arguments in (
        ["show", "ada"],
        ["tree", "ada"],
        ["fork", "ada", "x"],
        ["export", "ada", "-"],
    ):
        assert run(*arguments).complained("Session 'ada' is damaged", "`dspy-session delete`")
    checked = run("verify")
    assert (checked.status, checked.err) == (1, "")
    assert checked.out.startswith("ada: the session itself: its links")
    assert checked.out.endswith("3 sessions, 3 turns checked: 1 session damaged.\n")
    others = run("export", "--all", "out")
    assert (others.status, others.out) == (1, "Wrote 2 sessions to out.\n")
    assert others.err.count("\n") == 1
    assert not Path("out/ada.json").exists()
    with_fork = run("tree", FORK)
    assert with_fork.status == 0
    assert with_fork.err == "dspy-session: Session 'ada' is left out, for it is damaged.\n"
    assert run.good("delete", "-y", "ada") == "Deleted 'ada'.\n"
    assert run.good("verify").endswith("nothing damaged.\n")


def test_vacuum(run: Commands) -> None:
    assert run.document("vacuum") == {"deleted_turns": 0}
    run.good("export", "ada", "ada.json")
    run.good("import", "ada.json", "--overwrite")
    assert run.document("vacuum")["deleted_turns"] > 0
    assert run.good("vacuum") == "Deleted 0 turns that no session needs.\n"
    assert run.good("verify").endswith("nothing damaged.\n")


# Values of a program's own types, encryption


class Trip(pydantic.BaseModel):
    city: str
    days: int = 3


class Plan(dspy.Signature):
    wish: str = dspy.InputField()
    trip: Trip = dspy.OutputField()


def test_values_of_types_that_are_not_at_hand(run: Commands) -> None:
    lm = ScriptedLM(lambda prompt: {"trip": '{"city": "Oslo"}'})
    with SessionManager(dspy.Predict(Plan), "sqlite:///chats.db") as manager:
        with dspy.context(lm=lm):
            manager.open("trip")(wish="North.")
        written = manager.turns("trip") if False else manager.open("trip").turns
    assert run.document("show", "trip")["turns"][0]["outputs"] == {
        "trip": {"city": "Oslo", "days": 3}
    }
    assert '{"city": "Oslo", "days": 3}' in run.good("show", "trip")
    run.good("export", "trip", "trip.json")
    run.good("import", "trip.json", "--as", "again")
    run.good("fork", "trip", "forked")
    with SessionManager(dspy.Predict(Plan), "sqlite:///chats.db") as manager:
        assert manager.open("again").turns == manager.open("forked").turns == written
        assert type(manager.open("again").turns[0].outputs["trip"]) is Trip


def test_an_encrypted_store(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = new_secret(), new_secret()
    with SessionManager(
        dspy.Predict("question -> answer"), "sqlite:///chats.db", key=old
    ) as manager:
        manager.open("secret").add_turn({"question": "My pin?"}, {"answer": "1234"})
    hint = "The command line takes keys from DSPY_SESSION_KEY: the present one, then older ones"
    assert run("show", "secret").complained("is encrypted", hint)
    monkeypatch.setenv("DSPY_SESSION_KEY", new)
    assert run("show", "secret").complained("with another key", hint)
    monkeypatch.setenv("DSPY_SESSION_KEY", f"{new} {old}")
    assert "1234" in run.good("show", "secret")
    assert run("show", "ada").complained("is not encrypted", hint)
    monkeypatch.setenv("DSPY_SESSION_KEY", f"{new} {old} none")
    assert run.good("verify") == "4 sessions, 7 turns checked: nothing damaged.\n"
    run.good("export", "secret", "s.json")
    run.good("import", "s.json", "--as", "s")
    monkeypatch.setenv("DSPY_SESSION_KEY", new)
    assert "1234" in run.good("show", "s")
    monkeypatch.setenv("DSPY_SESSION_KEY", "password")
    assert run("show", "s").complained("32 bytes in base64")


# What the other commands build on


def test_a_manager_without_a_program_reads_what_is_there(run: Commands) -> None:
    lm = ScriptedLM(lambda prompt: {"trip": '{"city": "Oslo"}'})
    with SessionManager(dspy.Predict(Plan), "sqlite:///chats.db") as manager, dspy.context(lm=lm):
        manager.open("trip")(wish="North.")
    with CommandContext(place_of("chats.db")) as context:
        session = context.open_manager().open("trip")
        assert dict(session.turns[0].outputs["trip"]) == {"city": "Oslo", "days": 3}
        with context.open_manager(dspy.Predict(Plan), write=False) as manager:
            assert manager.open("trip").turns[0].outputs["trip"] == Trip(city="Oslo")


def test_sizes_and_metadata_in_words() -> None:
    assert [listing.shown_bytes(count) for count in (0, 999, 1000, 999_949, 2**31, 10**13)] == [
        *("0 B", "999 B", "1.0 kB", "999.9 kB", "2.1 GB", "10,000.0 GB")
    ]
    assert listing.shown_metadata({"a": 1, "b": None}) == "a: 1, b: null"
