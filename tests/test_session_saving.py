"""Saving: a conversation in a file, a program in a file, and never the one in the other's."""

import copy
import json
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import dspy
import pytest

from dspy_session import FormatError, OptionError, Session, SessionError, Turn, sessionify
from dspy_session.core import Lock
from dspy_session.testing import Prompt, ScriptedLM
from tests.house import PROJECT
from tests.talk import (
    QA,
    Asker,
    ask,
    history,
    pairs,
    past,
    qa_session,
    questions,
    refused,
    scripted,
    shown,
)

PUBLISHED = PROJECT.parent / "shared" / "data" / "saved_sessions"


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := scripted())):
        yield lm


def demos_program() -> Asker:
    program = Asker()
    program.qa.demos = [dspy.Example(question="a demo", answer="of someone else")]
    return program


# K9: what a session hands on of the sessions in its program, and of what its agents noted


class Desk(dspy.Module):
    def __init__(self, clerk: Session) -> None:
        super().__init__()
        self.clerk = clerk

    def forward(self, question: str) -> Any:
        self.clerk(question=f"hush {question}")
        return dspy.Prediction(answer="Done.")


def test_K9_to_dict_leaves_out_what_sessions_in_the_program_keep_to_themselves() -> None:
    clerk = qa_session(
        data={"token": "hush", "desk": 3},
        private_data={"token"},
        redact_fields={"question", "answer"},  # which tells the question again
    )
    desk = sessionify(Desk(clerk))
    ask(desk, "one", "two")
    desk.undo()
    handed = json.dumps(desk.to_dict())
    assert "hush" not in handed
    assert '"desk"' in handed
    restored = Session.from_dict(desk.to_dict(), Desk(qa_session()))
    (inner,) = restored.state.nested.values()
    assert inner.data.to_dict() == {"desk": 3}
    (inner,) = desk.state.nested.values()
    assert inner.data["token"] == "hush"
    assert "hush" in json.dumps(desk.save_state())


@pytest.mark.parametrize("hidden", ["question", "answer"])
def test_K9_with_a_redacted_field_go_the_messages_of_an_agent_that_repeat_it(hidden: str) -> None:
    def agent(prompt: Prompt) -> dict[str, Any]:
        call = {"name": "submit", "args": {"answer": "hush answer"}}
        return {"next_thought": "So.", "tool_calls": {"tool_calls": [call]}}

    lm = ScriptedLM(agent)
    program = dspy.ReActV2("question -> answer", tools=[len])
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        session = sessionify(program, redact_fields={hidden}, show_details=True)
        session(question="hush question")
        assert "hush question" in str(session.turns[0].details["history"])
        session(question="And now?")
        said = json.dumps(session.to_dict()) + json.dumps(session.to_messages())
    assert f"hush {hidden}" not in json.dumps(lm.prompts[-1])
    assert f"hush {hidden}" not in said


# D12: save and load


def test_D12_a_conversation_goes_on_where_it_was(tmp_path: Path, lm: ScriptedLM) -> None:
    session = qa_session(initial_history=history("seed"), max_turns=2)
    ask(session, "one", "two", "three")
    session.score(lambda example, prediction: dspy.Prediction(score=0.5, feedback="Fine."))
    session.undo(1)
    session.save(tmp_path / "talk.json")
    restored = Session.load_from(tmp_path / "talk.json", dspy.Predict(QA))
    assert restored.state == session.state
    assert restored.session_id == session.session_id
    assert restored.options == session.options
    assert [turn.feedback for turn in restored.turns] == ["Fine."] * 2
    for one in (session, restored):
        assert [turn.inputs["question"] for turn in one.redo(1)] == ["three"]
        ask(one, "four")
        assert past(lm.prompts[-1]) == pairs("seed", "two", "three")
    assert [t.history_snapshot for t in restored.turns] == [
        t.history_snapshot for t in session.turns
    ]


def test_D12_options_are_restored_and_keywords_beat_them(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "history_field": "memory",
        "max_turns": 3,
        "max_stored_turns": 9,
        "exclude_fields": {"context"},
        "history_input_fields": {"question"},
        "history_policy": "use_if_provided",
        "on_metric_error": "raise",
        "strict_history_annotation": True,
        "copy_mode": "none",
        "lock": "thread",
    }
    session = qa_session(**options)
    session.add_turn({"question": "one"}, {"answer": "by hand"})
    path = tmp_path / "talk.json"
    session.save(path)
    program = dspy.Predict(QA)
    assert Session.load_from(path, program).options == session.options
    assert Session.load_from(path, program).module is program
    other = Session.load_from(
        path,
        program,
        copy_mode="deep",
        lock="async",
        max_turns=None,
        input_field_override=None,
        initial_history=history("seed"),
    )
    assert other.module is not program
    assert (other.options.lock, other.options.max_turns) == (Lock.ASYNC, None)
    assert other.options.history_input_fields is None
    assert other.options.exclude_fields == {"context"}
    assert [message["question"] for message in other.session_history.messages] == ["seed", "one"]
    assert other.turns == session.turns


def test_D12_keywords_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    qa_session(history_input_fields={"question"}).save(path)
    with refused(None, OptionError, "'max_turn'", "Did you mean 'max_turns'"):
        Session.load_from(path, dspy.Predict(QA), max_turn=3)
    with refused(None, OptionError, "alias"):
        Session.load_from(
            path,
            dspy.Predict(QA),
            history_input_fields={"question"},
            input_field_override={"question"},
        )


def test_D12_a_hook_is_given_again(tmp_path: Path) -> None:
    seen: list[Turn] = []
    session = qa_session(on_turn=lambda s, turn: seen.append(turn))
    ask(session, "one")
    session.save(tmp_path / "talk.json")
    plain = Session.load_from(tmp_path / "talk.json", dspy.Predict(QA))
    assert plain.on_turn is None
    hooked = Session.load_from(tmp_path / "talk.json", dspy.Predict(QA), on_turn=session.on_turn)
    assert len(seen) == 1
    ask(hooked, "two")
    assert len(seen) == 2


def test_D12_save_state_is_json_ready_and_loads(lm: ScriptedLM) -> None:
    session = qa_session(on_turn=lambda s, turn: None, exclude_fields={"context"})
    session.add_turn({"question": "one", "when": (1, 2)}, {"answer": "answer to one"})
    state = json.loads(json.dumps(session.save_state()))
    restored = Session.load_from(state, dspy.Predict(QA))
    assert restored.state == session.state
    assert restored.turns[0].inputs["when"] == (1, 2)
    ask(restored, "two")
    assert past(lm.prompts[-1]) == pairs("one")


def test_D12_the_file_is_readable_and_linear(tmp_path: Path) -> None:
    def size(count: int) -> int:
        session = qa_session()
        for number in range(count):
            session.add_turn({"question": f"{number:06}"}, {"answer": "a" * 50})
        session.save(tmp_path / "talk.json")
        return (tmp_path / "talk.json").stat().st_size

    assert size(200) < 2.1 * size(100)
    document = json.loads((tmp_path / "talk.json").read_text("utf-8"))
    assert document["kind"] == "dspy-session"


def test_D12_the_module_is_not_touched(tmp_path: Path, lm: ScriptedLM) -> None:
    session = sessionify(Asker())
    ask(session, "one")
    session.save(tmp_path / "talk.json")
    program = demos_program()
    before, demos = program.dump_state(), program.qa.demos
    restored = Session.load_from(tmp_path / "talk.json", program)
    ask(restored, "two")
    assert program.dump_state() == before
    assert program.qa.demos is demos
    assert any("a demo" in message["content"] for message in lm.prompts[-1])


def test_D12_no_program_state_in_the_file_and_a_warning_that_says_so(tmp_path: Path) -> None:
    session = sessionify(demos_program())
    ask(session, "one")
    with pytest.warns(UserWarning, match=r"session\.module\.save") as caught:
        session.save(tmp_path / "talk.json")
    assert Path(caught[0].filename) == Path(__file__)
    assert "of someone else" not in (tmp_path / "talk.json").read_text("utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        plain = sessionify(Asker())
        plain.save(tmp_path / "plain.json")
        with pytest.raises(UserWarning):
            session.save(tmp_path / "talk.json")
    assert len(Session.load_from(tmp_path / "talk.json", Asker())) == 1


@pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason=f"the files of the published dspy-session: no {PUBLISHED}"
)
@pytest.mark.parametrize(
    ("name", "fields", "count"),
    [
        ("format1_rag.json", ("question", "context", "answer"), 2),
        ("format2_qa.json", ("question", "answer"), None),
        ("format2_therapy.json", ("message", "response"), None),
    ],
)
def test_D12_files_of_the_published_version_go_on(
    name: str, fields: tuple[str, ...], count: int | None, tmp_path: Path, lm: ScriptedLM
) -> None:
    *inputs, output = fields
    saved = json.loads((PUBLISHED / name).read_text("utf-8"))
    signature = f"{', '.join(inputs)} -> {output}"
    session = Session.load_from(PUBLISHED / name, dspy.Predict(signature))
    assert [(t.inputs, t.outputs, t.score) for t in session.turns] == [
        (t["inputs"], t["outputs"], t["score"]) for t in saved["turns"]
    ]
    assert count in (None, len(session))
    expected = [message[output] for message in session.session_history.messages]
    session(**dict.fromkeys(inputs, "new"))
    prompt = lm.prompts[-1]
    assert len(prompt) == 2 + 2 * len(expected)
    for message, text in zip(prompt[2:-1:2], expected, strict=True):
        assert text in message["content"]
    session.save(tmp_path / "talk.json")
    again = Session.load_from(tmp_path / "talk.json", dspy.Predict(signature))
    assert again.state == session.state


# D12: a file is the old one or the new one


class Unknown:
    """A type without written form."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_D12_a_failing_save_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    session = qa_session()
    ask(session, "one")
    session.save(path)
    old = path.read_bytes()
    session.add_turn({"question": "two"}, {"answer": Unknown()})
    with pytest.raises(SessionError):
        session.save(path)
    session.pop_turn()
    session.add_turn({"question": "two"}, {"answer": "a" * 100_000})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # the disk is full
    try:
        with pytest.raises(OSError, match="File too large"):
            session.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == old
    assert names(tmp_path) == ["talk.json"]
    session.save(path)
    assert len(Session.load_from(path, dspy.Predict(QA))) == 2
    assert names(tmp_path) == ["talk.json"]


def test_D12_a_killed_save_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    session = qa_session()
    ask(session, "one")
    session.save(path)
    old = path.read_bytes()
    code = (
        "import resource, signal, sys\n"
        "from dspy_session.core import SessionOptions, start\n"
        "from dspy_session.files import write_conversation\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"  # a write beyond the limit kills
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "state = start([{'question': 'a' * 100_000}])\n"
        "write_conversation(sys.argv[1], state, SessionOptions())\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], check=False, cwd=PROJECT)
    assert run.returncode == -signal.SIGXFSZ
    assert path.read_bytes() == old


def test_D12_a_file_keeps_its_permissions_and_a_link_its_target(tmp_path: Path) -> None:
    session, real, link = qa_session(), tmp_path / "real.json", tmp_path / "link.json"
    mask = os.umask(0o027)
    try:
        session.save(real)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    real.chmod(0o600)
    link.symlink_to(real)
    ask(session, "one")
    session.save(link)
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert link.is_symlink()
    assert len(Session.load_from(real, dspy.Predict(QA))) == 1
    assert names(tmp_path) == ["link.json", "real.json"]


def test_D12_paths_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session = qa_session()
    for path in ("talk.json", "./talk", Path("talk.session"), tmp_path / "träume.json"):
        session.save(path)
        assert Session.load_from(path, dspy.Predict(QA)).session_id == session.session_id
    assert len(names(tmp_path)) == 4


def test_D12_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    session = qa_session()
    with pytest.raises(FileNotFoundError) as missing:
        session.save(tmp_path / "none" / "talk.json")
    assert "there is no folder" in str(missing.value)
    assert str(tmp_path / "none") in str(missing.value)
    with pytest.raises(IsADirectoryError) as folder:
        session.save(tmp_path)
    assert "save_program=True" in str(folder.value)
    with pytest.raises(FileNotFoundError):
        Session.load_from(tmp_path / "none.json", dspy.Predict(QA))
    assert names(tmp_path) == []


# Files that cannot be loaded


def corrupt(document: dict[str, Any]) -> bytes:
    return b'{"kind": "dspy-session", \xff'


def truncated(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()[:-40]


def empty(document: dict[str, Any]) -> bytes:
    return b""


def from_the_future(document: dict[str, Any]) -> bytes:
    return json.dumps({**document, "version": 99}).encode()


def of_another_kind(document: dict[str, Any]) -> bytes:
    return json.dumps(dspy.Predict(QA).dump_state()).encode()


def a_list(document: dict[str, Any]) -> bytes:
    return json.dumps([document]).encode()


def damaged(document: dict[str, Any]) -> bytes:
    document["conversation"]["turns"][0]["saw"] = [7, 0, 9, 0, 0]
    return json.dumps(document).encode()


def wrong_option(document: dict[str, Any]) -> bytes:
    document["options"]["lock"] = "both"
    return json.dumps(document).encode()


def an_image(document: dict[str, Any]) -> bytes:
    return b"\x89PNG\r\n\x1a\n\x00\x00"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (corrupt, ("not whole",)),
        (truncated, ("not whole", "truncated")),
        (empty, ("not whole",)),
        (an_image, ("not whole",)),
        (from_the_future, ("version 99", "versions 1 to 3", "Upgrade")),
        (of_another_kind, ("another kind", "module.load")),
        (a_list, ("another kind", "list")),
        (damaged, ("damaged", "backup")),
        (wrong_option, ("damaged", "both")),
    ],
)
def test_D12_a_file_that_is_no_conversation(
    spoil: Callable[[dict[str, Any]], bytes], words: tuple[str, ...], tmp_path: Path
) -> None:
    session = qa_session()
    ask(session, "one", "two")
    path = tmp_path / "talk.json"
    path.write_bytes(spoil(session.save_state()))
    with refused(session, FormatError, str(path), *words):
        Session.load_from(path, dspy.Predict(QA))
    if spoil in (from_the_future, of_another_kind, damaged, wrong_option):
        with refused(session, FormatError, *words):
            Session.load_from(json.loads(path.read_bytes()), dspy.Predict(QA))


def test_D12_load_names_load_from(tmp_path: Path) -> None:
    session = sessionify(Asker())
    ask(session, "one")
    module = session.module
    for name in ("talk.json", "talk.session", "talk"):
        session.save(tmp_path / name)
        with refused(session, FormatError, "saved conversation", "Session.load_from(path, module)"):
            session.load(tmp_path / name)
    with refused(session, FormatError, "Session.load_from(path, module)"):
        session.load_state(session.save_state())
    assert session.module is module


# Programs: what is saved through DSPy


def test_D12_learned_state_goes_from_session_to_program_and_back(tmp_path: Path) -> None:
    for bare, learned in ((Asker, demos_program), (lambda: dspy.Predict(QA), learned_predict)):
        session = sessionify(learned())
        assert session.dump_state() == learned().dump_state()
        program = bare()
        program.load_state(session.dump_state())
        assert program.dump_state() == learned().dump_state()
        other = sessionify(bare())
        other.load_state(program.dump_state())
        assert other.dump_state() == learned().dump_state()
        path = tmp_path / "program.json"
        session.module.save(path)
        third = sessionify(bare())
        ask(third, "one")
        third.load(path)
        assert third.dump_state() == learned().dump_state()
        assert questions(third) == ["one"]
        program.load(path)
        program.save(path)
        sessionify(bare()).load(str(path))


def learned_predict() -> dspy.Predict:
    program = dspy.Predict(QA)
    program.demos = [dspy.Example(question="a demo", answer="of someone else")]
    return program


def test_D12_other_files_are_loaded_or_refused_as_in_dspy(tmp_path: Path) -> None:
    session = sessionify(Asker())
    demos_program().save(tmp_path / "program.pkl")
    with pytest.raises(ValueError, match="allow_pickle=True"):
        session.load(tmp_path / "program.pkl")
    session.load(tmp_path / "program.pkl", allow_pickle=True)
    assert session.dump_state() == demos_program().dump_state()
    with pytest.raises(FileNotFoundError):
        session.load(tmp_path / "none.json")


def test_D12_learned_state_reaches_the_prompt(tmp_path: Path, lm: ScriptedLM) -> None:
    session = sessionify(Asker())
    ask(session, "one")
    demos_program().save(tmp_path / "program.json")
    session.load(tmp_path / "program.json")
    ask(session, "two")
    contents = [message["content"] for message in lm.prompts[-1]]
    assert any("of someone else" in content for content in contents)
    assert any("answer to one" in content for content in contents)


def test_D15_loading_through_one_branch_leaves_the_others(tmp_path: Path) -> None:
    demos_program().save(tmp_path / "program.json")
    trunk = sessionify(Asker())
    branch = trunk.fork()
    branch.load(tmp_path / "program.json")
    assert len(branch.predictors()[0].demos) == 1
    assert trunk.predictors()[0].demos == []


class Outer(dspy.Module):
    """A program with a session inside."""

    def __init__(self, seed: dspy.History) -> None:
        super().__init__()
        self.inner = sessionify(Asker(), initial_history=seed)

    def forward(self, question: str) -> Any:
        return self.inner(question=question)


def test_D12_a_saved_program_carries_no_conversation(tmp_path: Path, lm: ScriptedLM) -> None:
    kept: list[Turn] = []
    session = sessionify(
        Outer(history("a secret seed")),
        max_turns=4,
        initial_history=history("a secret seed"),
        on_turn=lambda s, turn: kept.append(turn),
    )
    ask(session, "a secret question")
    session.candidate_programs = [{"score": 1, "program": copy.deepcopy(session)}]
    before = session.state
    session.save(tmp_path / "program", save_program=True)
    assert session.state is before
    assert len(kept) == 1
    for path in (tmp_path / "program").iterdir():
        assert b"secret" not in path.read_bytes()
    loaded = dspy.load(tmp_path / "program", allow_pickle=True)
    assert isinstance(loaded, Session)
    assert (len(loaded), loaded.options, loaded.on_turn) == (0, session.options, None)
    assert len({loaded.session_id, session.session_id, ""}) == 3
    assert shown(loaded) == []
    ask(loaded, "one", "two")
    assert past(lm.prompts[-1]) == pairs("one")
    assert [turn.inputs["question"] for turn in loaded.state.nested["inner"]] == ["one", "two"]


def test_D12_pickling_keeps_the_conversation() -> None:
    for dump, load in ((pickle.dumps, pickle.loads), (cloudpickle.dumps, cloudpickle.loads)):
        session = sessionify(Asker(), max_turns=4, lock="thread")
        ask(session, "one", "two")
        session.undo(1)
        twin = load(dump(session))
        assert twin.state == session.state
        assert (twin.session_id, twin.options) == (session.session_id, session.options)
        assert len(twin.redo(1)) == 1
        assert twin(question="three") == "answer to three"
        assert (len(session), len(twin)) == (1, 3)


def test_D12_a_pickled_session_is_linear_in_its_turns() -> None:
    def size(count: int) -> int:
        session = qa_session()
        for number in range(count):
            session.add_turn({"question": f"{number:06}"}, {"answer": "a" * 50})
        return len(pickle.dumps(session))

    sizes = [size(count) for count in (100, 200, 400)]
    assert sizes[2] - sizes[1] < 2.1 * (sizes[1] - sizes[0])


def test_D12_the_saved_state_is_what_json_makes_of_it() -> None:
    session = qa_session(exclude_fields={"context"}, initial_history=history("seed"))
    session.add_turn({"question": "one"}, {"answer": "1"})
    session.replace_turn(0, {"answer": "2"})
    session.add_turn({"question": "two"}, {"answer": "3"})
    saved = session.save_state()
    assert json.loads(json.dumps(saved)) == saved
