"""The command as a process: pipes that close, terminals of all kinds, output that has no room."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from dspy_session.pictures.values import width_of
from tests.commands import ESCAPES, Commands, arguments_of, environment, fill, process

_PATIENCE = 300
"""How many silent seconds are too many."""
_AGAIN = 10
"""After how many of them is typed again."""
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("terminal") / "chats.db"
    fill(f"sqlite:///{file}")
    return str(file)


def read_from(terminal: int) -> bytes:
    """What comes from a terminal; nothing once its other end is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def on_a_terminal(arguments: list[str], answer: str = "", **variables: str) -> tuple[int, str]:
    """How a command ends, and what it shows, whose every stream is a terminal."""
    ours, theirs = pty.openpty()
    env = environment(**{"TERM": "xterm-256color", "COLUMNS": "60", **variables})
    running = subprocess.Popen(
        arguments,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # who types Ctrl-C means it
    )
    os.close(theirs)
    shown, is_open, waited = b"", True, 0
    while is_open and waited < _PATIENCE:
        if select.select([ours], [], [], 1)[0]:
            read = read_from(ours)
            shown, is_open = shown + read, bool(read)
            asked = b"]:" in read
        else:
            waited += 1
            asked = b"]:" in shown and waited % _AGAIN == 0
        if asked:  # what is typed too early is lost, so it is typed again, much later
            os.write(ours, answer.encode())
    os.close(ours)
    return running.wait(_PATIENCE), shown.decode().replace("\r\n", "\n")


# Pipes


def test_a_reader_that_leaves_early(store: str) -> None:
    for arguments in (["list"], ["list", "--json"]):  # written by rich, and by us
        read_end, write_end = os.pipe()
        os.close(read_end)
        try:
            done = process(arguments_of(store, *arguments), stdout=write_end)
        finally:
            os.close(write_end)
        assert (done.returncode, done.stderr) == (1, b"")


def test_output_that_has_no_room(store: str) -> None:
    with open("/dev/full", "wb") as full:
        for arguments in (["list", "--json"], ["export", "ada", "-"]):
            done = process(arguments_of(store, *arguments), stdout=full)
            assert done.returncode == 1
            assert done.stderr == (
                b"dspy-session: No space left on device. Make room and try again.\n"
            )


def test_streams_that_are_closed(store: str) -> None:
    words = " ".join(arguments_of(store, "list"))
    done = process(["sh", "-c", f"{words} >&- 2>&- <&-"])
    assert (done.stdout, done.stderr) == (b"", b"")


# Encodings


def test_a_terminal_without_unicode(store: str) -> None:
    env = environment(PYTHONIOENCODING="ascii", COLUMNS="200")
    done = process(arguments_of(store, "tree", "ada"), env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode("ascii")
    assert "|  `- 1  I meant Bergen." in text
    assert r"ada/2 \U0001f642" in text
    given = arguments_of(store, "chat", "--scripted", "--session", "ada")
    done = process(given, stdin=None, input=b"/tree\n", env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "|  `- 1  I meant Bergen." in done.stdout.decode("ascii")
    done = process(arguments_of(store, "show", "ada/3 🙂"), env=env)
    assert r"There is no session 'ada/3 \U0001f642'" in done.stderr.decode("ascii")


# Terminals


def test_colours_where_there_are_some(
    store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, shown = on_a_terminal(arguments_of(store, "list"))
    assert (status, "\x1b[" in shown) == (0, True)
    plain = ESCAPE.sub("", shown)
    assert "ada/2 🙂" in plain
    assert max(map(len, plain.splitlines())) <= 60
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes that for a terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    run = Commands(capsys, store)
    assert ESCAPE.sub("", run("list").out) == plain
    for arguments in (["list"], ["show", "ada"], ["tree", "ada"]):
        coloured = run(*arguments).out
        monkeypatch.setenv("NO_COLOR", "1")
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", run(*arguments).out)
        monkeypatch.delenv("NO_COLOR")
        monkeypatch.setenv("TERM", "dumb")
        assert run(*arguments).out == ESCAPE.sub("", coloured)
        monkeypatch.setenv("TERM", "xterm-256color")
        assert not any(each in ESCAPE.sub("", coloured) for each in ESCAPES)


def test_a_question_on_a_terminal(store: str, tmp_path: Path) -> None:
    file = tmp_path / "chats.db"
    file.write_bytes(Path(store).read_bytes())
    for answer, status, said in (
        ("\x03", 130, ""),
        ("y\n", 0, "Deleted 'ada'."),
    ):
        ended, shown = on_a_terminal(arguments_of(str(file), "delete", "ada"), answer)
        assert (ended, "Delete 'ada' (3 turns)?" in shown, said in shown) == (status, True, True)
        assert "Traceback" not in shown
        assert "Aborted" not in shown


def test_a_bar_on_a_terminal_only(
    store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Commands(capsys, store)
    monkeypatch.setenv("COLUMNS", "60")
    assert "Verifying" not in run("verify").err
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes that for a terminal
    for arguments in (["verify"], ["search", "tea"], ["tree", "ada"], ["verify", "--json"]):
        ran = run(*arguments)
        assert re.search("Verifying|Searching|Reading", ran.err), arguments
    assert json.loads(run("verify", "--json").out)["ok"] is True
    monkeypatch.setenv("TERM", "dumb")
    assert run("verify").err == ""


@pytest.mark.parametrize("columns", [1, 8, 20, 40])
def test_a_narrow_terminal(
    columns: int,
    store: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    run = Commands(capsys, store)
    for line in run.good("list").splitlines():
        assert width_of(line) <= columns
    for arguments in (["show", "ada"], ["tree", "ada"], ["search", "tea"], ["stats"]):
        assert run.good(*arguments)
    if columns >= 20:
        said = run.good("show", "ada").replace("\n", " ")
        assert re.search(r"My\s+name\s+is\s+Ada\.", said)


@pytest.mark.parametrize("columns", ["0", "00", ""])
def test_a_terminal_that_does_not_know_its_width(
    columns: str,
    store: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Commands(capsys, store)
    monkeypatch.delenv("COLUMNS", raising=False)
    for arguments in (["list"], ["show", "ada"], ["tree", "ada"], ["--help"]):
        whole = run.good(*arguments)
        monkeypatch.setenv("COLUMNS", columns)
        assert run.good(*arguments) == whole != ""


def test_control_c(store: str) -> None:
    running = subprocess.Popen(
        [sys.executable, "-c", _WAITS, store],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert running.stdout is not None
    assert running.stdout.readline() == b"ready\n"
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=_PATIENCE)
    assert (running.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize("module", ["dspy_session.cli.ending", "msgspec", "typer", "rich.text"])
def test_control_c_while_it_loads(module: str) -> None:
    done = process([sys.executable, "-c", _INTERRUPTED, module])
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


_INTERRUPTED = """
import sys
from importlib.abc import MetaPathFinder
from dspy_session import cli

class CtrlC(MetaPathFinder):
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            raise KeyboardInterrupt

sys.meta_path.insert(0, CtrlC())
sys.exit(cli.main(["list"]))
"""
_WAITS = """
import sys, time
from dspy_session import cli
from dspy_session.cli.sessions import Sessions

def wait(*_, **__):
    print("ready", flush=True)
    time.sleep(600)

Sessions.list_sessions = wait
sys.exit(cli.main(["--store", sys.argv[1], "list"]))
"""
