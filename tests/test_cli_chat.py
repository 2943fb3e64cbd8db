"""`dspy-session chat` with piped lines: turns, slash commands, inputs, two chats at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import Session
from dspy_session.cli.chat_commands import COMMANDS
from dspy_session.cli.chat_screen import TextScreen
from dspy_session.cli.context import CommandContext
from dspy_session.cli.places import place_of
from dspy_session.program.events import StatusEvent, TextEvent
from tests.chats import CTRL_C, Commands, opened, session_ids, stored
from tests.house import PROJECT

ADA = ("My name is Ada.", "Noted.")
NAME = ("What is my name?", "Your name is Ada.")
SCRIPTED = ["--scripted"]


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Commands]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DSPY_SESSION_MODEL", raising=False)
    monkeypatch.delenv("DSPY_SESSION_STORE", raising=False)
    before = dspy.settings.copy()
    yield Commands(monkeypatch, capsys)
    assert dspy.settings.copy() == before


# Lines and turns


def test_each_line_is_a_turn_and_the_model_sees_those_before(cli: Commands) -> None:
    ended = cli.chat(ADA[0], NAME[0])
    assert ended == (0, f"{ADA[1]}\n{NAME[1]}\n", "")
    assert stored() == [ADA, NAME]


def test_a_chat_goes_on_where_the_last_one_ended(cli: Commands) -> None:
    cli.chat(ADA[0], options=[*SCRIPTED, "--session", "ada"])
    assert cli.chat(NAME[0], options=[*SCRIPTED, "-s", "ada"]).out == f"{NAME[1]}\n"
    assert cli.chat(NAME[0], options=[*SCRIPTED, "-s", "eve"]).out != f"{NAME[1]}\n"
    assert stored("ada") == [ADA, NAME]
    assert session_ids() == ["ada", "eve"]


def test_line_ends_of_windows_a_mark_at_the_beginning_and_empty_lines(cli: Commands) -> None:
    ended = cli.chat(f"\ufeff{ADA[0]}\r\n", "\r\n", "   \r\n", f"{NAME[0]}\r\n")
    assert (ended.status, ended.err) == (0, "")
    assert stored() == [ADA, NAME]


def test_json_is_one_object_per_turn_command_and_error(cli: Commands) -> None:
    lines = [ADA[0], "/undo", "/nonsense", NAME[0]]
    ended = cli.run("chat", "--scripted", "--json", lines=lines)
    first, undone, wrong, last = ended.json
    assert first["session"] == "chat"
    assert (first["turn"], first["inputs"]) == (0, {"question": ADA[0]})
    assert first["outputs"] == {"answer": ADA[1]}
    assert first["usage"]["scripted"]["total_tokens"] > 0
    assert undone == {"command": "undo", "session": "chat", "turns": 0, "moved": [0]}
    assert list(wrong) == ["error"]
    assert last["turn"] == 0
    assert (ended.status, ended.err) == (1, "")  # of a script, that one line failed


def test_a_message_that_begins_with_a_slash(cli: Commands) -> None:
    cli.chat("//etc is a folder.")
    assert [question for question, _ in stored()] == ["/etc is a folder."]


@pytest.mark.parametrize("options", [[], ["--program", "question -> answer", "--model", ""]])
def test_without_a_model_it_says_what_to_set_and_stores_nothing(
    options: list[str], cli: Commands
) -> None:
    ended = cli.chat("Hi", options=options)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert "openai/gpt-4o-mini" in ended.err
    if not options:
        for what in ("--model", "DSPY_SESSION_MODEL", "OPENAI_API_KEY", "--scripted"):
            assert what in ended.err
    assert session_ids() == []


# Commands


def test_undo_and_redo(cli: Commands) -> None:
    ended = cli.chat(ADA[0], NAME[0], "/undo", "/undo 5", NAME[0])
    assert ended.lines[2:4] == [
        "1 turn taken back, 1 in chat.",
        "1 turn taken back, 0 in chat.",
    ]
    assert NAME[1] not in ended.lines[4]
    cli.chat("/undo", "/redo 1")
    assert [question for question, _ in stored()] == [NAME[0]]
    assert cli.chat("/redo").lines == ["0 turns brought back, 1 in chat."]


def test_fork_new_and_switch(cli: Commands) -> None:
    ended = cli.chat(ADA[0], "/fork rome", NAME[0], "/switch chat", "/new", NAME[0], "/new oslo")
    assert ended.status == 0
    assert "A fork of chat: you are in rome now, 1 turn." in ended.lines
    assert "The session: you are in chat now, 1 turn." in ended.lines
    assert stored("chat") == [ADA]
    assert stored("rome") == [ADA, NAME]
    assert [question for question, _ in stored("chat-2")] == [NAME[0]]
    assert session_ids() == ["chat", "chat-2", "oslo", "rome"]
    listed = cli.chat("/sessions", options=[*SCRIPTED, "--session", "rome"])
    assert "* rome  2 turns" in listed.lines
    assert "  oslo  0 turns" in listed.lines


def test_the_tree_shows_forks_of_earlier_chats(cli: Commands) -> None:
    cli.chat(ADA[0], "/fork rome", "Hi from Rome")
    out = cli.chat("/tree").out
    assert ADA[0] in out
    assert "Hi from Rome" in out


def test_data_and_instructions_are_kept(cli: Commands) -> None:
    ended = cli.chat('/data cart ["tea"]', "/data cart", "/data", "/instructions Be brief.")
    assert ended.status == 0
    with opened() as manager:
        session = manager.load_session("chat")
        assert session.data.to_dict() == {"cart": ["tea"]}
        assert session.to_messages() == [{"role": "system", "content": "Be brief."}]
    assert cli.chat("/instructions").lines == ["Be brief."]
    assert cli.chat("/instructions -").lines == ["The program's own alone."]


def test_save_writes_a_file_that_loads_and_a_page(cli: Commands) -> None:
    ended = cli.chat(ADA[0], "/save ada.json", "/save ada.html")
    assert ended.status == 0
    loaded = Session.load_from("ada.json", dspy.Predict("question -> answer"))
    assert loaded.turns[0].outputs == {"answer": ADA[1]}
    assert Path("ada.html").read_text().startswith("<!DOCTYPE html>")


def test_help_shows_every_command_and_quit_ends_the_chat(cli: Commands) -> None:
    ended = cli.chat("/help", "/quit", ADA[0])
    assert all(command.usage in ended.out for command in COMMANDS.values())
    assert (ended.status, stored()) == (0, [])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("/unod", "There is no command /unod. Did you mean /undo?"),
        ("/", "There is no command /."),
        ("/undo many", "Expected how many turns, a whole number, not 'many'."),
        ("/undo -1", "Expected how many turns, a whole number, not '-1'."),
        ("/switch nobody", "There is no session 'nobody' in this store."),
        ("/switch", "Expected the id of a session"),
        ("/switch chatt", "Did you mean 'chat'?"),
        ("/fork chat", "'chat'"),
        ("/new chat", "There is a session 'chat' already: /switch chat"),
        ("/data cart tea", "Expected JSON after /data cart"),
        ("/data nothing", "nothing"),
        ("/tree all", "Nothing follows this command; 'all' came."),
        ("/save", "Expected a file"),
        ("/save nowhere/ada.json", "there is no folder"),
    ],
)
def test_a_command_that_cannot_be_done_says_why_in_one_line(
    line: str, complaint: str, cli: Commands
) -> None:
    ended = cli.chat(ADA[0], line, NAME[0])
    assert ended.status == 1
    assert complaint in ended.err
    assert ended.err.count("\n") == 1
    assert ended.out == f"{ADA[1]}\n{NAME[1]}\n"
    assert stored() == [ADA, NAME]
    assert session_ids() == ["chat"]


# Inputs and outputs of programs

TRIP = ["--program", "city, days: int, question -> answer, score: float"]


def test_inputs_that_are_the_same_in_every_turn(cli: Commands) -> None:
    options = ["--scripted", "-p", "city, days: int, question -> answer", "-i", "days=3"]
    ended = cli.chat("Hi", options=[*options, "--input", "city=Oslo"])
    assert (ended.status, ended.err) == (0, "")
    with opened() as manager:
        (turn,) = manager.turns("chat")
    assert turn.inputs == {"city": "Oslo", "days": 3, "question": "Hi"}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["days=3"], "A line is the input 'city'. Give the others, too: --input question=..."),
        (["days"], "--input takes"),
        (["month=3"], "The program has no input 'month'; it has: city, days, question."),
        (["city=a", "days=1", "question=b"], "The program has no input left"),
    ],
)
def test_inputs_that_cannot_be(given: list[str], complaint: str, cli: Commands) -> None:
    options = [option for each in given for option in ("--input", each)]
    ended = cli.chat("Hi", options=["--scripted", *TRIP, *options])
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert complaint in ended.err
    assert session_ids() == []


def test_several_outputs_are_named(cli: Commands) -> None:
    ended = cli.chat("Hi", options=["--scripted", "-p", "question -> answer, title"])
    said = "You said: Hi (I am scripted, and was sent 2 messages.)"
    assert ended.lines == [f"answer: {said}", f"title: {said}"]


PROGRAMS = """
import dspy
from dspy_session.testing import ScriptedLM


class Asker(dspy.Module):
    def __init__(self, answer):
        super().__init__()
        self.draft = dspy.Predict("question -> answer")
        self.ask = dspy.Predict("question -> answer")
        self.set_lm(ScriptedLM(answer))

    def forward(self, question, tone="kind"):
        return self.ask(question=self.draft(question=question).answer).answer.upper()


def interrupted(prompt):
    raise KeyboardInterrupt


def broken(prompt):
    raise LookupError("no such\\nbook")


def end(prompt):
    raise EOFError


asker = Asker(lambda prompt: {"answer": "so"})
one = dspy.Predict("question -> answer")
one.set_lm(ScriptedLM(lambda prompt: {"answer": "red: \\x1b[31m \\u202e bell \\x07"}))
stopped = Asker(interrupted)
failing, ending = Asker(broken), Asker(end)
"""


@pytest.fixture
def programs(cli: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A module of programs that have their own models, under a name of its own."""
    name = f"programs_{abs(hash(str(tmp_path)))}"
    Path(f"{name}.py").write_text(PROGRAMS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_program_of_several_parts_shows_what_it_returns(cli: Commands, programs: str) -> None:
    assert cli.chat("Hi", options=["--program", f"{programs}:asker"]).out == "SO\n"


def test_a_program_that_fails_is_one_line_and_records_nothing(cli: Commands, programs: str) -> None:
    ended = cli.chat("Hi", "/tree", options=["--program", f"{programs}:failing"])
    assert (ended.status, ended.lines) == (1, ["chat: 0 turns"])
    assert ended.err.count("\n") == 1
    assert "no such book" in ended.err
    assert stored() == []


def test_a_program_that_finds_no_more_of_something_does_not_end_the_chat(
    cli: Commands, programs: str
) -> None:
    ended = cli.chat("Hi", "/data", options=["--program", f"{programs}:ending"])
    assert (ended.status, ended.lines, ended.err) == (
        1,
        ["{}"],
        "dspy-session: LMUnexpectedError: [scripted]\n",
    )


def test_a_reader_that_leaves_is_asked_for_no_more(
    cli: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: TextScreen, event: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(TextScreen, "heard", gone)
    monkeypatch.setattr("dspy_session.cli.ending._leave", lambda stream: None)
    assert cli.chat("Hi", "Ho") == (1, "", "")
    assert stored() == []


def test_nobody_says_anything(cli: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.chat() == (0, "", "")
    assert session_ids() == ["chat"]


def test_a_script_that_is_interrupted_ends(cli: Commands, programs: str) -> None:
    ended = cli.chat("Hi", "Ho", options=["--program", f"{programs}:stopped"])
    assert (ended.status, stored()) == (130, [])


def test_nothing_that_a_model_says_acts_on_the_terminal(cli: Commands, programs: str) -> None:
    options = ["--program", f"{programs}:one"]
    shown = "red: \\x1b[31m \\u202e bell \\x07"
    assert cli.chat("Hi", options=options).out == f"{shown}\n"
    for command in ("/tree", "/switch chat", "/undo", "/redo"):
        out = cli.chat(command, options=options).out
        assert not set("\x1b\u202e\x07") & set(out)


# What a person sees and does


def test_a_person_is_welcomed_with_what_was_said_last(cli: Commands) -> None:
    first = cli.typed(ADA[0])
    assert first.out == (
        "Session chat: 0 turns. scripted answers. /help shows what else there is.\n"
        f"> {ADA[1]}\n> \n"
    )
    again = cli.typed()
    assert again.lines[:3] == [
        "Session chat: 1 turn. scripted answers. /help shows what else there is.",
        f"> {ADA[0]}",
        ADA[1],
    ]
    assert (first.status, first.err, again.status) == (0, "", 0)


def test_the_chat_of_the_guide(cli: Commands) -> None:
    guide = (PROJECT / "docs/guide/command-line.md").read_text("utf-8")
    shown = guide.partition("$ dspy-session chat --scripted --session ada\n")[2].partition("```")[0]
    typed = [line[2:] for line in shown.splitlines() if line.startswith("> ")]
    assert typed
    ended = cli.typed(*typed, options=[*SCRIPTED, "--session", "ada"])
    for line in typed:
        shown = shown.replace(f"> {line}\n", "> ")
    assert ended.out == f"{shown}> \n"


def test_a_person_is_asked_for_the_other_inputs(cli: Commands) -> None:
    options = ["--scripted", "-p", "city, days: int, question -> answer"]
    ended = cli.typed("Oslo", "3", CTRL_C, "Rome", "4", "How far?", options=options)
    assert (ended.status, ended.err) == (0, "")
    assert ended.lines[1:3] == ["> days: question: ", "(Cancelled. Nothing was recorded.)"]
    with opened() as manager:
        (turn,) = manager.turns("chat")
    assert turn.inputs == {"city": "Rome", "days": 4, "question": "How far?"}


def test_ctrl_c_at_the_prompt_has_to_come_twice_in_a_row(cli: Commands) -> None:
    ended = cli.typed(CTRL_C, ADA[0], CTRL_C, CTRL_C, NAME[0])
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.count("Ctrl-C again") == 2
    assert stored() == [ADA]


def test_a_failure_is_no_exit_status_where_a_person_saw_it(cli: Commands) -> None:
    ended = cli.typed("/nonsense")
    assert (ended.status, ended.err.count("\n")) == (0, 1)


def screen(live: bool = True, main: str | None = "answer") -> TextScreen:
    return TextScreen(CommandContext(place_of("memory:")), main, live)


def test_texts_that_are_written_at_the_same_time_show_one_after_the_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = screen(main=None)
    shown.begin("chat", {})
    for call, text, last in [
        (0, "one ", False),
        (1, "three ", False),
        (0, "two", True),
        (1, "four", False),
        (2, "six", True),
        (1, " five", True),
    ]:
        shown.heard(TextEvent("self", f"answer{call}", text, last, call))
    shown.heard(StatusEvent("Calling \x1btool"))
    assert capsys.readouterr().out.splitlines() == [
        "answer0: one two",
        "answer1: three four five",
        "answer2: six",
        "Calling \\x1btool",
    ]


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        (["a\r", "\nb"], "a\nb\n"),
        (["a\r", "b"], "a\\rb\n"),
        (["a\r"], "a\\r\n"),
        (["\x1b", "[31m"], "\\x1b[31m\n"),
        (["a", "\n", "\tb "], "a\n        b \n"),
    ],
)
def test_tokens_that_cut_what_acts(
    tokens: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    here = screen()
    here.begin("chat", {})
    for number, token in enumerate(tokens):
        here.heard(TextEvent("self", "answer", token, number == len(tokens) - 1))
    assert capsys.readouterr().out == shown


# Two chats at a time


def from_elsewhere(*questions: str, undo: int = 0) -> Any:
    def write() -> None:
        with opened() as manager:
            session = manager.load_session("chat")
            session.undo(undo)
            for question in questions:
                session.add_turn({"question": question}, {"answer": "From elsewhere."})

    return write


def test_a_turn_from_elsewhere_is_seen_and_said(cli: Commands) -> None:
    ended = cli.chat("Hi", from_elsewhere("My name is Ada."), NAME[0])
    assert ended.status == 0
    assert "(Changed elsewhere meanwhile: 2 turns now.)" in ended.err
    assert ended.lines[-1] == NAME[1]
    assert [question for question, _ in stored()] == ["Hi", "My name is Ada.", NAME[0]]


def test_undo_takes_nothing_back_that_came_from_elsewhere(cli: Commands) -> None:
    ended = cli.chat("Hi", from_elsewhere("Ho"), "/undo")
    assert ended.status == 1
    assert "Nothing was done" in ended.err
    assert [question for question, _ in stored()] == ["Hi", "Ho"]
    ended = cli.chat("Hi", from_elsewhere("Ho"), "/undo", "/undo")
    assert [question for question, _ in stored()] == ["Hi", "Ho", "Hi"]


def test_a_session_that_was_deleted_elsewhere(cli: Commands) -> None:
    def delete() -> None:
        with opened() as manager:
            manager.delete_session("chat")

    ended = cli.chat(ADA[0], delete, NAME[0], "/save kept.json", "/new", "Hi")
    assert ended.status == 1
    assert ended.err.startswith("dspy-session: Session 'chat' was deleted elsewhere. /save FILE")
    assert ended.err.count("\n") == 1
    kept = json.loads(Path("kept.json").read_text())
    assert [turn["inputs"]["question"] for turn in kept["conversation"]["turns"]] == [ADA[0]]
    assert session_ids() == ["chat-2"]
