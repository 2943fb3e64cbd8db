"""`dspy-session examples`, `replay` and `drift`: what is stored, as data, asked again, rendered."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import examples_from_jsonl, from_jsonl, lineage
from dspy_session.stores.records import ListQuery
from tests.chats import Commands, opened

PROGRAMS = """
import dspy
from dspy_session.testing import ScriptedLM


def saying(words):
    program = dspy.Predict("question -> answer")
    program.set_lm(ScriptedLM(lambda prompt: {"answer": words}))
    return program


def refuse(prompt):
    raise ValueError("the model is out")


long, short, other = saying("It is a long fjord."), saying("No."), dspy.Predict("question -> reply")
broken = dspy.Predict("question -> answer")
broken.set_lm(ScriptedLM(refuse))


def repeat(prompt):
    # What the model said last, as the prompt shows it.
    said = [message["content"] for message in prompt if message["role"] == "assistant"]
    return {"answer": said[-1].split("\\n")[1] if said else "Nothing."}


parrot = dspy.Predict("question -> answer")
parrot.set_lm(ScriptedLM(repeat))


def length(example, prediction, trace=None):
    return min(len(prediction.answer) / 19, 1.0)


def fails(example, prediction, trace=None):
    raise LookupError("no such book")
"""
CITIES = ("Bergen", "Narvik", "Oslo")


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Commands]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DSPY_SESSION_MODEL", raising=False)
    before = dspy.settings.copy()
    yield Commands(monkeypatch, capsys)
    assert dspy.settings.copy() == before


@pytest.fixture
def talks(cli: Commands) -> None:
    """Three sessions of two turns with scores, and a fork of one that asks again."""
    with opened() as manager:
        for number, city in enumerate(CITIES):
            session = manager.open(city.lower(), metadata={"number": number})
            session.add_turn({"question": f"Where is {city}?"}, {"answer": "In Norway."})
            session.add_turn({"question": f"How far is {city}?"}, {"answer": "No."})
            session.score(lambda example, prediction: len(prediction.answer) / 10)
        fork = manager.create_session("oslo 2", branch_from="oslo", at=1)
        fork.add_turn({"question": "How far is Oslo?"}, {"answer": "Far away."})
        fork.score(lambda example, prediction: len(prediction.answer) / 10)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"learning_{abs(hash(str(tmp_path)))}"
    Path(f"{name}.py").write_text(PROGRAMS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def versions() -> Any:
    """What changes with any write."""
    with opened() as manager:
        return [(ref.id, ref.version) for ref in manager._archive.store.refs(ListQuery())]


def read(text: str) -> list[dspy.Example]:
    return examples_from_jsonl(text, input_keys=("question", "history"), lineage_field="lineage")


# Examples


@pytest.mark.usefixtures("talks")
def test_examples_of_all_sessions_a_shared_turn_once(cli: Commands) -> None:
    ended = cli.run("examples", "--lineage")
    assert ended.status == 0
    assert ended.err == "dspy-session: 7 examples of 4 sessions\n"
    examples = read(ended.out)
    assert [example.question for example in examples].count("Where is Oslo?") == 1
    assert all(isinstance(example.history, dspy.History) for example in examples)
    second = next(each for each in examples if each.answer == "Far away.")
    assert len(second.history.messages) == 1
    known = lineage(second)
    assert known is not None
    assert (known.session_id, known.index) == ("oslo 2", 1)


@pytest.mark.usefixtures("talks")
@pytest.mark.parametrize(
    ("options", "questions"),
    [
        (["oslo"], ["Where is Oslo?", "How far is Oslo?"]),
        (["oslo 2", "oslo"], ["Where is Oslo?", "How far is Oslo?", "How far is Oslo?"]),
        (["oslo", "--min-score", "1"], ["Where is Oslo?"]),
        (["oslo", "--max-score", "0.5"], ["How far is Oslo?"]),
        (["--where", "number=0"], ["Where is Bergen?", "How far is Bergen?"]),
        (["oslo", "--where", "number=0"], None),
        (["--where", "number=9"], None),
    ],
)
def test_which_examples(options: list[str], questions: list[str] | None, cli: Commands) -> None:
    ended = cli.run("examples", *options)
    if questions is None:
        assert (ended.status, ended.out) == (1, "")
        assert "There is no session with that metadata" in ended.err
    else:
        assert [example.question for example in read(ended.out)] == questions


@pytest.mark.usefixtures("talks")
def test_a_metric_scores_for_the_file_and_stores_nothing(cli: Commands, programs: str) -> None:
    before = versions()
    ended = cli.run("examples", "oslo 2", "--metric", f"{programs}:length", "--min-score", "0.5")
    assert [example.answer for example in read(ended.out)] == ["In Norway."]
    assert versions() == before


@pytest.mark.usefixtures("talks")
def test_a_split_that_does_not_leak(cli: Commands) -> None:
    ended = cli.run("--json", "examples", "--split", "0.6", "-o", "all.jsonl", "--lineage")
    document = json.loads(ended.out)
    assert [file["file"] for file in document["files"]] == ["all.train.jsonl", "all.test.jsonl"]
    train, test = (read(Path(file["file"]).read_text()) for file in document["files"])
    assert [len(train), len(test)] == [file["examples"] for file in document["files"]]
    assert len(train) + len(test) == 7
    cities = [{each.question.split()[-1] for each in part} for part in (train, test)]
    assert cities[0]
    assert cities[1]
    assert not cities[0] & cities[1]  # Oslo has two sessions
    assert not Path("all.jsonl").exists()


def test_conversations_that_begin_with_the_same_small_talk(cli: Commands) -> None:
    with opened() as manager:
        for number in range(4):
            manager.open(str(number)).add_turn({"question": "Hi"}, {"answer": "Hello."})
    options = ["examples", "-o", "x.jsonl", "--split", "0.5"]
    ended = cli.run(*options)
    assert ended.status == 1
    assert "--split-by turns" in ended.err
    assert not list(Path().glob("x*"))
    ended = cli.run(*options, "--split-by", "turns")
    assert (ended.status, ended.err.count("2 examples of 4 sessions")) == (0, 2)


@pytest.mark.usefixtures("talks")
def test_files_to_fine_tune_with(cli: Commands) -> None:
    assert cli.run("examples", "--format", "openai", "-o", "a.jsonl", "oslo").status == 0
    (chat,) = from_jsonl(Path("a.jsonl").read_text())
    assert [message["content"] for message in chat] == [
        *("Where is Oslo?", "In Norway."),
        *("How far is Oslo?", "No."),
    ]
    assert cli.run("examples", "--format", "sharegpt", "-o", "b.jsonl").status == 0
    assert len(from_jsonl(Path("b.jsonl").read_text())) == 4
    ended = cli.run("examples", "--format", "preferences", "-o", "c.jsonl", "oslo", "oslo 2")
    assert ended.err == "dspy-session: 1 pair of 2 sessions -> c.jsonl\n"
    pair = json.loads(Path("c.jsonl").read_text())
    assert pair["preferred_output"] == [{"role": "assistant", "content": "Far away."}]


@pytest.mark.usefixtures("talks")
@pytest.mark.parametrize(
    ("options", "status", "complaint"),
    [
        (["nobody"], 1, "There is no session 'nobody' in this store."),
        (["osl"], 1, "Did you mean 'oslo'?"),
        (["--split", "0.5"], 2, "--split writes two files"),
        (["--split", "1.5", "-o", "x"], 2, "a fraction between 0 and 1"),
        (["--json"], 2, "the examples go to a file"),
        (["--lineage", "--format", "openai"], 2, "--lineage is for --format dspy."),
        (["--max-score", "1", "--format", "preferences"], 2, "--max-score is not for"),
        (["--format", "csv"], 2, "csv"),
        (["--metric", "math:pi"], 2, "to be a function"),
        (["--metric", "length"], 2, "module:name"),
        (["--where", "number"], 2, "KEY=VALUE"),
        (["oslo", "--split", "0.5", "-o", "x"], 1, "hang together"),
        (["-o", "nowhere/x.jsonl"], 1, "there is no folder"),
    ],
)
def test_examples_that_cannot_be(
    options: list[str], status: int, complaint: str, cli: Commands
) -> None:
    before = versions()
    ended = cli.run("examples", *options)
    assert (ended.status, ended.out, ended.err.count("\n")) == (status, "", 1)
    assert complaint in ended.err
    assert versions() == before
    assert not list(Path().glob("x*"))


@pytest.mark.parametrize("command", [["examples"], ["replay", "--scripted"]])
def test_a_store_without_sessions(command: list[str], cli: Commands) -> None:
    ended = cli.run(*command)
    assert (ended.status, ended.out) == (1, "")
    assert "There is no session in this store." in ended.err
    assert not list(Path().iterdir())


# Replay


@pytest.mark.usefixtures("talks")
def test_X8_two_programs_are_compared_and_the_better_one_is_named(
    cli: Commands, programs: str
) -> None:
    before = versions()
    options = ["--program", f"{programs}:short", "--against", f"{programs}:long"]
    ended = cli.run("replay", *options, "--metric", f"{programs}:length")
    assert (ended.status, ended.err) == (0, "")
    assert ended.lines[-1] == f"better: {programs}:long"
    document = json.loads(
        cli.run("--json", "replay", *options, "--metric", f"{programs}:length").out
    )
    assert document["better"] == f"{programs}:long"
    assert document["ranking"][0] == f"{programs}:long"
    assert [len(report["replays"]) for report in document["reports"]] == [4, 4]
    assert versions() == before


@pytest.mark.usefixtures("talks")
def test_one_session_is_shown_turn_by_turn(cli: Commands, programs: str) -> None:
    metric = ["--metric", f"{programs}:length"]
    ended = cli.run("replay", "oslo", "--program", f"{programs}:long", *metric)
    assert ended.status == 0
    assert "Session oslo: 2 turns" in ended.lines[0]
    assert "It is a long fjord." in ended.out
    assert f"better: {programs}:long" in ended.lines[-1]
    ended = cli.run("replay", "--program", f"{programs}:long", "--turns")
    assert ended.out.count("It is a long fjord.") == 8
    assert "--metric" in ended.err


@pytest.mark.usefixtures("talks")
def test_which_past_the_turns_of_a_replay_see(cli: Commands, programs: str) -> None:
    def answers(*options: str) -> list[Any]:
        program = ["--program", f"{programs}:parrot"]
        document = json.loads(cli.run("--json", "replay", "oslo", *program, *options).out)
        return [turn["replayed"]["answer"] for turn in document["replays"][0]["turns"]]

    assert answers() == answers("--carry", "own") == ["Nothing.", "Nothing."]
    assert answers("--carry", "recorded", "--threads", "1") == ["Nothing.", "In Norway."]


@pytest.mark.usefixtures("talks")
def test_a_replay_that_fails_says_so(cli: Commands, programs: str) -> None:
    ended = cli.run("replay", "--program", f"{programs}:broken", "oslo", "bergen")
    assert ended.status == 1
    failed = [line for line in ended.err.splitlines() if "failed" in line]
    assert len(failed) == 1
    assert "2 replays failed" in failed[0]
    assert "the model is out" in failed[0]


@pytest.mark.usefixtures("talks")
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "No model is configured."),
        (["--scripted", "--against", "question -> answer"], "Both sides are the same"),
        (["--scripted", "--threads", "0"], "threads"),
        (["--scripted", "--carry", "nobody"], "nobody"),
        (["--scripted", "--program", "nothing"], "A program is a signature"),
    ],
)
def test_replays_that_cannot_be(options: list[str], complaint: str, cli: Commands) -> None:
    ended = cli.run("replay", *options)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert complaint in ended.err


# Drift


@pytest.mark.usefixtures("talks")
def test_X9_drift_is_empty_for_the_same_and_shows_what_changed(
    cli: Commands, programs: str
) -> None:
    before = versions()
    file = ["--baseline", "prompts.json"]
    ended = cli.run("drift", *file, "--write")
    assert (ended.status, ended.out) == (0, "8 prompts of 4 sessions -> prompts.json\n")
    ended = cli.run("drift", *file)
    assert (ended.status, ended.out, ended.err) == (0, "8 prompts compared, 0 different\n", "")
    ended = cli.run("drift", *file, "--reasoning")
    assert ended.status == 1
    assert "8 prompts compared, 8 different" in ended.lines[0]
    assert any(line.startswith("+") and "reasoning" in line for line in ended.lines)
    document = json.loads(cli.run("--json", "drift", *file, "-p", f"{programs}:long").out)
    assert (document["ok"], document["changes"]) == (True, [])
    with dspy.context(adapter=dspy.JSONAdapter()):
        ended = cli.run("--json", "drift", *file)
    document = json.loads(ended.out)
    assert (ended.status, document["ok"]) == (1, False)
    assert document["adapter"] == ["ChatAdapter", "JSONAdapter"]
    assert versions() == before


@pytest.mark.usefixtures("talks")
def test_drift_looks_at_the_sessions_of_the_file(cli: Commands) -> None:
    file = ["--baseline", "prompts.json"]
    cli.run("drift", *file, "--write", "oslo", "bergen")
    assert cli.run("drift", *file).lines == ["4 prompts compared, 0 different"]
    assert cli.run("drift", *file, "bergen").lines == ["2 prompts compared, 0 different"]
    with opened() as manager:
        manager.delete_session("bergen")
    ended = cli.run("drift", *file)
    assert ended.status == 1
    assert "session bergen, turn 0: the turn is gone" in ended.out


@pytest.mark.usefixtures("talks")
@pytest.mark.parametrize(
    ("options", "status", "complaint"),
    [
        ([], 2, "--baseline"),
        (["--baseline", "no.json"], 1, "There is no file 'no.json' to compare with. Write one"),
        (["--baseline", "bad.json"], 1, "bad.json"),
        (["--baseline", "new.json", "--write", "nobody"], 1, "There is no session 'nobody'"),
        (["--baseline", "nowhere/new.json", "--write"], 1, "there is no folder"),
    ],
)
def test_drift_that_cannot_be(
    options: list[str], status: int, complaint: str, cli: Commands
) -> None:
    Path("bad.json").write_text("[]")
    ended = cli.run("drift", *options)
    assert (ended.status, ended.out, ended.err.count("\n")) == (status, "", 1)
    assert complaint in ended.err
    assert not Path("new.json").exists()
