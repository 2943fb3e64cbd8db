"""The command line as a whole: what every command has in common, and how it ends."""

import importlib.util
import logging
from pathlib import Path

import pytest

from dspy_session import demo
from dspy_session.cli import app, bare, output, places
from dspy_session.cli.ending import DEBUG, ended, told
from dspy_session.cli.tables import Column, laid_out
from dspy_session.cli.untyped import UntypedCodecs
from dspy_session.core.values import from_plain, to_plain
from dspy_session.errors import OptionError, SecretError
from dspy_session.pictures.values import plain_value, width_of
from tests import house
from tests.commands import ESCAPES, NASTY, Commands, fill


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.delenv("DSPY_SESSION_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    return Commands(capsys)


# Help, version, wrong usage


def test_help_and_version(run: Commands) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        text = run.good(*arguments)
        assert "Begin with: dspy-session demo" in text
        for name in "demo list show tree search stats fork export import delete verify".split():
            assert f"│ {name} " in text
    assert "--max-turns" in run.good("demo", "--help")
    assert run.good("--version").startswith("dspy-session 0.")


def test_every_command_has_help_with_the_shared_options(run: Commands) -> None:
    names = [each.name for each in app.application().registered_commands]
    assert len(names) == len(set(names)) > 12
    for name in names:
        text = run.good(str(name), "--help")
        assert name == "demo" or ("--store" in text and "--json" in text), name


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["lsit"], "No such command 'lsit'. Did you mean 'list'? `dspy-session"),
        (["demo", "--max-turns", "-1"], "'--max-turns'"),
        (["demo", "--max-turns", "many"], "'--max-turns'"),
        (["list", "--limt", "1"], "No such option: --limt"),
        (["list", "--limit"], "--limit"),
        (["list", "--order", "size"], "'--order'"),
        (["list", "--where", "app"], "--where takes KEY=VALUE, not 'app'."),
        (["show"], "Missing argument 'ID'"),
        (["fork", "ada"], "Missing argument 'NEW'"),
        (["show", "-dash"], "An id that begins with a dash comes after `--`."),
        (["export", "ada"], "export takes an id and the file"),
        (["export", "--all", "ada", "folder"], "--all takes no ids"),
        (["export", "ada", "eve", "-"], "go into a folder"),
        (["import", "a", "b", "--as", "c"], "--as is for one file"),
        (["\x1b[31m"], r"No such command '\x1b[31m'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], complaint: str, run: Commands
) -> None:
    assert run("--store", "memory:", *arguments).complained(complaint, status=2)


# How it ends


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (OptionError("that\ncannot be"), 1, "dspy-session: that cannot be\n"),
        (OSError(28, "No space left on device"), 1, "No space left on device. Make room and"),
        (
            FileNotFoundError(2, "No such file", "a\x1b"),
            1,
            r"No such file: 'a\x1b'. Check the path",
        ),
        (SecretError("Encrypted."), 1, "Encrypted. The command line takes keys from DSPY_SESSION_"),
        (ImportError('pip install "x"'), 1, 'dspy-session: pip install "x"\n'),
        (
            ZeroDivisionError("of\nmine"),
            1,
            "ZeroDivisionError: of mine (DSPY_SESSION_DEBUG=1",
        ),
        (RecursionError(), 1, "RecursionError ("),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(3), 3, ""),
        (SystemExit("bye"), 1, "dspy-session: bye\n"),
    ],
)
def test_an_error_is_one_line(
    error: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    run: Commands,
) -> None:
    def fail(*, max_turns: int | None) -> None:
        raise error

    monkeypatch.setattr(demo, "run_demo", fail)
    ran = run("demo")
    assert ran.status == status
    assert said in ran.err
    assert ran.err.count("\n") == bool(said)


def test_a_traceback_only_on_request(monkeypatch: pytest.MonkeyPatch, run: Commands) -> None:
    assert "Traceback" not in run("--store", "memory:", "show", "nobody").err
    monkeypatch.setenv(DEBUG, "1")
    ran = run("--store", "memory:", "show", "nobody")
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("dspy-session: There is no session 'nobody'")


def test_what_is_logged_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        logging.getLogger("dspy_session.journal").warning("passed over\n\x1b[31m%s", "it")
        return 7

    assert ended(work) == 7
    assert capsys.readouterr().err == "dspy-session: passed over \\x1b[31mit\n"
    logging.getLogger("dspy_session.journal").warning("after")
    assert "dspy-session: " not in capsys.readouterr().err


def test_an_error_without_a_message_is_told() -> None:
    assert told(PermissionError(13, "Permission denied", "x.db")) == (
        "Permission denied: 'x.db'. Check the permissions of the file and its folder."
    )


# Without the extra


@pytest.mark.parametrize("missing", ["typer", "rich", "platformdirs"])
def test_without_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch, run: Commands) -> None:
    shown: list[int | None] = []
    monkeypatch.setattr(demo, "run_demo", lambda *, max_turns: shown.append(max_turns))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    for arguments in (["list"], ["--store", "x.db", "show", "ada"], ["list", "--help"], ["lsit"]):
        hint = f'All commands but `demo` need {missing}: pip install "dspy-session[cli]"'
        assert run(*arguments).complained(hint)
    assert run.good("demo") == run.good("demo", "--max-turns", "0") == ""
    assert shown == [None, 0]
    assert "dspy-session demo" in run.good()
    assert "--max-turns N" in run.good("demo", "--help")
    assert 'pip install "dspy-session[cli]"' in run.good("--help")
    assert run.good("--version") == f"{bare.version()}\n"
    assert run("demo", "--max-turns", "-1").complained("from 0 up, not '-1'", status=2)
    assert run("--josn").complained("--josn", status=2)


def test_commands_that_need_no_program_load_no_dspy(tmp_path: Path) -> None:
    fill(f"sqlite:///{tmp_path}/chats.db")
    runs = [["--help"], ["chat", "--help"]]
    runs += [["list"], ["show", "ada"], ["tree", "ada"], ["search", "tea"], ["stats"], ["verify"]]
    runs += [
        ["fork", "ada", "new"],
        ["export", "ada", "ada.json"],
        ["import", "ada.json", "--as=b"],
    ]
    runs += [["delete", "-y", "new"], ["vacuum"]]
    ran = house.run_python(
        house.PROJECT,
        "-c",
        "import os, sys\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "from dspy_session.cli import main\n"
        f"ended = [main(['--store', 'chats.db', *one]) for one in {runs!r}]\n"
        "print('dspy' in sys.modules, ended)",
    )
    assert ran.stderr == ""
    assert ran.stdout.splitlines()[-1] == f"False {[0] * len(runs)}"


# Which store


def test_the_store_may_be_said_anywhere(
    run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill("sqlite:///chats.db")
    (tmp_path / "other.db").touch()
    monkeypatch.setenv("DSPY_SESSION_STORE", "chats.db")
    for arguments in (
        ["--store", "chats.db", "list"],
        ["list", "--store", "sqlite:///chats.db"],
        ["--store", "other.db", "list", "--store", "chats.db"],
        ["list"],
    ):
        assert "ada" in run.good(*arguments)
    assert "ada" not in run("--store", "other.db", "list").out
    for arguments in (["--json", "list"], ["list", "--json"], ["list", "--json", "-n", "9"]):
        assert run(*arguments).document["count"] == 3


def test_a_store_that_is_only_looked_at_is_not_made(
    run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    file = places.default_file()
    monkeypatch.setattr(places, "default_file", lambda: tmp_path / "home" / "data" / file.name)
    note = f"dspy-session: Nothing is stored at {places.default_file()} yet.\n"
    for arguments in (["list"], ["verify"], ["stats"], ["search", "tea"], ["vacuum"]):
        ran = run(*arguments)
        assert ran.status == 0
        assert ran.err.startswith(note)
        assert run(*arguments, "--json").document is not None
    for arguments in (["show", "ada"], ["delete", "-y", "ada"], ["export", "ada", "-"]):
        ran = run(*arguments)
        assert (ran.status, ran.out) == (1, "")
        assert ran.err.startswith(f"{note}dspy-session: There is no session 'ada' in this store.")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_the_own_store_is_made(
    run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(f"sqlite:///{tmp_path}/chats.db")
    run.good("--store", f"{tmp_path}/chats.db", "export", "ada", f"{tmp_path}/ada.json")
    own = tmp_path / "home" / "data" / "sessions.db"
    monkeypatch.setattr(places, "default_file", lambda: own)
    assert run.good("import", f"{tmp_path}/ada.json") == "Imported 'ada': 3 turns.\n"
    assert own.is_file()
    assert "ada" in run.good("list")


def test_the_default_is_in_the_data_folder_of_the_platform() -> None:
    file = places.default_file()
    assert (file.parent.name, file.name) == ("dspy-session", "sessions.db")
    assert places.place_of(None) == places.Place(file, file, own=True)


def test_places() -> None:
    for text, file in {
        "chats.db": Path("chats.db"),
        "a folder/ü?.db": Path("a folder/ü?.db"),
        "sqlite:///chats.db": Path("chats.db"),
        "SQLite:////tmp/chats.db?timeout=3": Path("/tmp/chats.db"),
        "sqlite+pysqlite:///x.db": Path("x.db"),
        "C:\\chats.db": Path("C:\\chats.db"),
        "sqlite://": None,
        "sqlite:///:memory:": None,
        "sqlite:///file:chats.db?uri=true": None,
        "postgresql://user@host/database": None,
        "memory:": None,
    }.items():
        place = places.place_of(text)
        assert (place.file, place.own) == (file, False), text


# What is written


def test_nothing_that_is_written_acts_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    written = output.Output()
    for write in (written.line, written.lines, written.note):
        write(NASTY)
    written.said(NASTY, NASTY)
    written.table([Column(NASTY)], [(NASTY,)])
    out, err = capsys.readouterr()
    assert not any(each in out + err for each in ESCAPES)
    assert (out.count(r"red \x1b[31malert"), err.count(r"red \x1b[31malert")) == (6, 1)


def test_the_width_of_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = output.Output()
    for columns, width in {"60": 60, "0": None, "wide": None, "": None}.items():
        monkeypatch.setenv("COLUMNS", columns)
        assert written.width == width
    written.said("user", "one two " * 20)
    assert capsys.readouterr().out.count("\n") == 1
    monkeypatch.setenv("COLUMNS", "60")
    written.said("user", "one two " * 20 + "\n\nend")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("   user         one two")
    assert said[1].startswith("                two one two")
    assert (said[-2:], max(map(len, said)) <= 60) == (["", "                end"], True)


# Tables


def lines(*rows: tuple[object, ...], width: int | None) -> list[str]:
    columns = [Column("ID", least=4), Column("N", right=True), Column("WHAT", least=6)]
    return [line.plain for line in laid_out(columns, rows, width)]


def test_a_table() -> None:
    rows = (("ada", 3, "two\nlines"), ("a longer id", 12345, "\x1b[1m"))
    assert lines(*rows, width=None) == [
        "ID               N  WHAT",
        "ada              3  two lines",
        "a longer id  12345  \\x1b[1m",
    ]
    assert lines(width=80) == ["ID  N  WHAT"]


@pytest.mark.parametrize("width", range(1, 40))
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    made = lines(("ada", 3, "日本語 and more"), ("日本語日本語", 12345, "x" * 50), width=width)
    assert len(made) == 3
    assert max(map(width_of, made)) <= width


def test_a_table_gives_up_its_last_columns_first() -> None:
    row = ("a longer id", 12345, "something to read")
    assert lines(row, width=30)[1] == "a longer id  12345  something…"
    assert lines(row, width=26)[1] == "a longer id  12345  somet…"
    assert lines(row, width=23)[1] == "a longe…  12345  somet…"
    assert lines(row, width=15)[1] == "a longe…  12345"
    assert lines(row, width=9)[1] == "a longer…"


# Values of types that are not at hand


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ({"fields": {"city": "Oslo", "days": 3}, "unset": ["days"]}, {"city": "Oslo", "days": 3}),
        ("CALM", "CALM"),
        ([1, 2], "[1, 2]"),
        (None, "None"),
        ({"fields": {"inner": {"$type": "a:B", "value": "x"}}}, {"inner": "x"}),
    ],
)
def test_a_value_of_an_unknown_type_is_shown_and_written_back(
    stored: object, shown: object
) -> None:
    codecs, plain = UntypedCodecs(), {"$type": "trips:Trip", "value": stored}
    value = from_plain(plain, codecs)
    assert plain_value(value) == shown
    assert value == from_plain(plain, codecs)
    assert value != from_plain({**plain, "$type": "trips:Other"}, codecs)
    assert to_plain(value, codecs) == plain
    assert from_plain({"$type": "tuple", "value": [1]}, codecs) == (1,)
