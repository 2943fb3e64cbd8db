"""X9: stored turns rendered under the present DSPy, adapter and program, and no LM call."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter

from dspy_session import (
    CallError,
    FormatError,
    OptionError,
    Prompts,
    Session,
    SessionOptions,
    SessionState,
    drift,
    drift_baseline,
    render_prompts,
    sessionify,
)
from dspy_session.testing import Prompt, ScriptedLM, requested_fields
from tests.modules import deprecated_modules
from tests.talk import QA, Asker, asked, qa_session, scripted

ADAPTERS = [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter, BAMLAdapter]


class NeverCalledError(BaseException):
    """Whatever calls the LM, this gets through."""


class NoLM(dspy.BaseLM):
    """An LM that raises, however it is called."""

    def __init__(self) -> None:
        super().__init__(model="none")

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise NeverCalledError

    async def acall(self, *_: Any, **__: Any) -> Any:
        raise NeverCalledError

    def forward(self, *_: Any, **__: Any) -> Any:
        raise NeverCalledError


@pytest.fixture(autouse=True)
def _no_lm() -> Any:
    with dspy.context(lm=NoLM()):
        yield


def talked(session: Session, lm: ScriptedLM, *questions: str) -> Session:
    with dspy.context(lm=lm):
        for question in questions:
            session(question=question)
    return session


def recorded(*questions: str, **keywords: Any) -> Session:
    return talked(qa_session(session_id="ada", **keywords), scripted(), *questions)


def sent_by(prompts: Prompts) -> list[list[dict[str, Any]]]:
    return [list(p.messages) for turn in prompts.turns for p in turn.prompts]


# --- what is rendered is what was sent ------------------------------------------------------------


class Planner(dspy.Module):
    """Two predictors, of which the turn keeps what both said."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = dspy.Predict("question -> plan")
        self.say = dspy.ChainOfThought("question, plan -> answer")

    def forward(self, question: str) -> Any:
        plan = self.plan(question=question).plan
        said = self.say(question=question, plan=plan)
        return dspy.Prediction(plan=plan, **said)


@pytest.mark.parametrize("make", ADAPTERS)
@pytest.mark.parametrize(
    "program",
    [
        dspy.Predict(QA),
        dspy.ChainOfThought(QA),
        Asker(),
        Planner(),
    ],
)
def test_X9_what_is_rendered_is_what_was_sent(
    make: type[dspy.Adapter], program: dspy.Module
) -> None:
    lm = scripted() if make is dspy.ChatAdapter else ScriptedLM()
    session = sessionify(program, instructions="Be brief.")
    with dspy.context(adapter=make()):
        talked(session, lm, "a", "b", "c")
        prompts = render_prompts(session)
    assert sent_by(prompts) == lm.prompts
    assert prompts.unrendered == ()
    assert not any(p.placeholders for turn in prompts.turns for p in turn.prompts)


RAN: list[str] = []


def look_up(key: str) -> str:
    """Look something up."""
    RAN.append(key)
    return f"found {key}"


def agent_reply(prompt: Prompt) -> dict[str, Any]:
    """Looks something up, finishes, answers."""
    if "next_tool_name" not in requested_fields(prompt):
        return {name: f"{name} said" for name in requested_fields(prompt)}
    done = "found" in prompt[-1]["content"]
    return {
        "next_thought": "Done." if done else "Look it up.",
        "next_tool_name": "finish" if done else "look_up",
        "next_tool_args": {} if done else {"key": "fjord"},
    }


def test_X9_an_agent_is_rendered_step_by_step_and_no_tool_runs() -> None:
    RAN.clear()
    lm = ScriptedLM(agent_reply)
    session = talked(sessionify(dspy.ReAct(QA, tools=[look_up])), lm, "a", "b")
    assert RAN == ["fjord"] * 2
    prompts = render_prompts(session)
    assert RAN == ["fjord"] * 2
    assert sent_by(prompts) == lm.prompts
    assert [p.predictor for p in prompts.turns[0].prompts] == ["react", "react", "extract.predict"]
    assert not drift(session, None, prompts)


def test_X9_an_agent_of_the_second_kind_is_rendered_step_by_step() -> None:
    RAN.clear()

    def reply(prompt: Prompt) -> dict[str, Any]:
        done = "found" in "".join(message["content"] for message in prompt[2:])
        call = (
            {"name": "submit", "args": {"answer": "A fjord."}}
            if done
            else {"name": "look_up", "args": {"key": "fjord"}}
        )
        return {"next_thought": "Hm.", "tool_calls": {"tool_calls": [call]}}

    lm = ScriptedLM(reply)
    session = talked(sessionify(dspy.ReActV2(QA, tools=[look_up])), lm, "a")
    ran = list(RAN)
    prompts = render_prompts(session)
    assert ran == RAN
    assert sent_by(prompts) == lm.prompts
    assert prompts.unrendered == ()


def test_X9_each_turn_shows_what_its_call_saw() -> None:
    session = recorded("a", "b")
    prompts = render_prompts(session)
    session.replace_turn(0, {"answer": "corrected"})
    assert not drift(session, None, prompts)
    found = drift(session, None, prompts, options=SessionOptions())
    assert [(change.turn, change.number) for change in found] == [(1, 0)]
    assert "corrected" in found.changes[0].diff


def test_X9_turns_that_were_added_by_hand_have_prompts_too() -> None:
    session = qa_session()
    session.add_turn({"question": "a"}, {"answer": "A."})
    session.add_turn({"question": "b"}, {"answer": "B."})
    (_, (second,)) = (turn.prompts for turn in render_prompts(session).turns)
    assert [message["role"] for message in second.messages] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


# --- what changed ---------------------------------------------------------------------------------


def test_X9_the_same_setup_does_not_drift() -> None:
    session = recorded("a", "b")
    before = session.state
    found = drift(session, None, render_prompts(session))
    assert (found.ok, bool(found), len(found), list(found), found.prompts) == (
        True,
        False,
        0,
        [],
        2,
    )
    assert str(found) == "2 prompts compared, 0 different"
    assert session.state is before


@pytest.mark.parametrize("make", ADAPTERS[1:])
def test_X9_another_adapter_drifts(make: type[dspy.Adapter]) -> None:
    session = recorded("a", "b")
    found = drift(session, None, render_prompts(session), adapter=make())
    assert bool(found)
    assert not found.ok
    assert [change.turn for change in found] == [0, 1]
    assert f"adapter: ChatAdapter -> {make.__name__}" in str(found)


def changed_instructions() -> dspy.Module:
    return dspy.Predict(QA.with_instructions("Answer in one line."))


def changed_demos() -> dspy.Module:
    program = dspy.Predict(QA)
    program.demos = [dspy.Example(question="A demo?", answer="Yes.")]
    return program


def changed_signature() -> dspy.Module:
    return dspy.Predict("question -> reason, answer")


def changed_settings() -> dspy.Module:
    return dspy.Predict(QA, temperature=0.7)


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (changed_instructions, "Answer in one line."),
        (changed_demos, "A demo?"),
        (changed_signature, "reason"),
        (changed_settings, '"temperature": 0.7'),
    ],
)
def test_X9_what_changes_is_shown_as_a_diff(make: Any, shown: str) -> None:
    session = recorded("a")
    (change,) = drift(session, make(), render_prompts(session))
    assert (change.session, change.turn, change.predictor, change.number) == ("ada", 0, "self", 0)
    assert change.diff.startswith("--- baseline\n+++ now\n")
    added = [line for line in change.diff.splitlines() if line.startswith("+")]
    assert any(shown in line for line in added)
    assert str(change).startswith("session ada, turn 0, self: another prompt\n---")


def test_X9_the_instructions_of_the_session_count() -> None:
    session = recorded("a")
    prompts = render_prompts(session)
    session.instructions = "Be brief."
    assert drift(session, None, prompts)
    assert not drift(session, None, prompts, instructions="")
    session.instructions = lambda state: f"Turn {len(state)}."
    assert "Turn 0." in drift(session, None, prompts).changes[0].diff


def test_X9_turns_that_come_or_go_are_named() -> None:
    session = recorded("a", "b")
    prompts = render_prompts(session)
    session.undo()
    (gone,) = drift(session, None, prompts)
    assert (gone.turn, gone.what) == (1, "the turn is gone")
    (new,) = drift(session.state, dspy.Predict(QA), Prompts(()))
    assert (new.turn, new.what) == (0, "the baseline does not have this turn")


def test_X9_calls_that_come_or_go_are_named() -> None:
    session = talked(sessionify(Planner(), session_id="p"), scripted(), "a")
    prompts = render_prompts(session)
    found = drift(session, dspy.Predict(QA), prompts)
    assert [change.what for change in found][:2] == ["another predictor", "sends nothing any more"]
    back = drift(session, None, render_prompts(session, dspy.Predict(QA)))
    assert [change.what for change in back][:2] == ["another predictor", "sends a prompt more"]


# --- what is not recorded -------------------------------------------------------------------------


class Hidden(dspy.Module):
    """A program whose first answer no turn keeps."""

    def __init__(self, plan: str = "question -> plan") -> None:
        super().__init__()
        self.plan = dspy.Predict(plan)
        self.say = dspy.Predict("question, plan -> answer")

    def forward(self, question: str) -> Any:
        return self.say(question=question, plan=self.plan(question=question).plan)


def test_X9_a_text_that_is_not_recorded_is_named_in_its_place() -> None:
    session = talked(sessionify(Hidden()), scripted(), "a")
    ((plan, say),) = (turn.prompts for turn in render_prompts(session).turns)
    assert (plan.placeholders, say.placeholders) == ((), ("plan.plan",))
    assert "(plan: not recorded)" in say.messages[-1]["content"]
    program = Hidden()
    program.say.signature = program.say.signature.with_instructions("Say it well.")
    (change,) = drift(session, program, render_prompts(session))
    assert change.predictor == "say"


def test_X9_after_anything_else_that_is_not_recorded_rendering_ends_and_says_so() -> None:
    def reply(prompt: Prompt) -> dict[str, Any]:
        return {name: 1 if name == "plan" else "said" for name in requested_fields(prompt)}

    program = Hidden("question -> plan: int")
    session = talked(sessionify(program, session_id="ada"), ScriptedLM(reply), "a")
    prompts = render_prompts(session)
    assert [p.predictor for p in prompts.turns[0].prompts] == ["plan"]
    assert prompts.turns[0].unrendered == "what plan answered as 'plan' is not recorded"
    found = drift(session, None, prompts)
    assert found.ok
    assert "1 turns could not be rendered to their end" in str(found)
    assert found.to_dict()["unrendered"][0]["turn"] == 0

    (change,) = drift(session, None, Prompts.from_dict(_ended_otherwise(prompts)))
    assert change.what.startswith("what could not be rendered is another: what plan answered")

    # Of a predictor that no prompt shows, the signature and the demos are compared.
    changed = Hidden("question -> plan: int")
    changed.say.demos = [dspy.Example(question="q", plan="p", answer="a")]
    (change,) = drift(session, changed, prompts)
    assert (change.predictor, change.turn) == ("say", None)
    assert "its signature or its demos changed" in str(change)


def _ended_otherwise(prompts: Prompts) -> dict[str, Any]:
    written = prompts.to_dict()
    written["turns"][0]["unrendered"] = "another reason"
    return written


class Repeating(dspy.Module):
    """Calls one predictor twice; the turn keeps one of its answers."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(QA)

    def forward(self, question: str) -> Any:
        first = self.qa(question=question)
        return self.qa(question=f"{question} {first.answer}")


def test_X9_of_a_predictor_that_is_called_again_no_answer_is_taken_for_another() -> None:
    session = talked(sessionify(Repeating()), scripted(), "a")
    (turn,) = render_prompts(session).turns
    assert [p.placeholders for p in turn.prompts] == [(), ("qa.answer",)]
    assert "a (answer: not recorded)" in turn.prompts[1].messages[-1]["content"]


class Side(dspy.Module):
    """Calls two predictors in threads."""

    def __init__(self) -> None:
        super().__init__()
        self.one = dspy.Predict("question -> one")
        self.two = dspy.Predict("question -> two")

    def forward(self, question: str) -> Any:
        calls = [(self.two, {"question": question}), (self.one, {"question": question})]
        two, one = dspy.Parallel(num_threads=2, disable_progress_bar=True)(calls)
        return dspy.Prediction(one=one.one, two=two.two)


def test_X9_calls_in_threads_have_one_order() -> None:
    session = talked(sessionify(Side()), scripted(), "a")
    for _ in range(3):
        (turn,) = render_prompts(session).turns
        assert [p.predictor for p in turn.prompts] == ["one", "two"]
        assert turn.unrendered == ""


class Doubter(dspy.Module):
    """A program that holds a session."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = sessionify(dspy.Predict("question -> doubt"))
        self.say = dspy.Predict("question, doubt -> answer")

    def forward(self, question: str) -> Any:
        return self.say(question=question, doubt=self.inner(question=question).doubt)


def test_X9_what_sessions_inside_the_program_answered_is_recorded() -> None:
    lm, program = scripted(), Doubter()
    session = talked(sessionify(program, copy_mode="none"), lm, "a", "b")
    inner = program.inner.state
    prompts = render_prompts(session)
    assert sent_by(prompts) == lm.prompts
    assert not any(p.placeholders for turn in prompts.turns for p in turn.prompts)
    assert program.inner.state is inner


def test_X9_two_predictors_with_one_output_are_not_mixed_up() -> None:
    class Twice(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.draft = dspy.Predict("question -> answer")
            self.polish = dspy.Predict("question, draft -> answer")

        def forward(self, question: str) -> Any:
            return self.polish(question=question, draft=self.draft(question=question).answer)

    session = talked(sessionify(Twice()), scripted(), "a")
    ((_, polish),) = (turn.prompts for turn in render_prompts(session).turns)
    assert polish.placeholders == ("draft.answer",)
    assert "(answer: not recorded)" in polish.messages[-1]["content"]


class Direct(dspy.Module):
    """Calls a model, a tool or another LM itself."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.qa = dspy.Predict(QA)
        self.lm = NoLM()
        self.tool = dspy.Tool(look_up)

    def forward(self, question: str) -> Any:
        if self.what == "settings":
            dspy.settings.lm("Hi")
        elif self.what == "own":
            self.lm("Hi")
        elif self.what == "tool":
            self.tool(key="x")
        elif self.what == "error":
            raise ValueError("no")
        with dspy.context(lm=self.lm):
            made = dspy.Predict(QA)
            made.lm = self.lm
            made(question=question)
        return self.qa(question=question)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("settings", "calls a language model past the adapter"),
        ("tool", "calls the tool 'look_up' itself"),
        ("error", "ValueError: no"),
    ],
)
def test_X9_what_a_program_does_itself_ends_the_rendering(what: str, why: str) -> None:
    RAN.clear()
    session = qa_session()
    session.add_turn({"question": "a"}, {"answer": "A."})
    (turn,) = render_prompts(session, Direct(what)).turns
    assert turn.prompts == ()
    assert why in turn.unrendered
    assert RAN == []


def test_X9_an_lm_that_is_called_past_the_adapter_is_never_reached() -> None:
    calls: list[Any] = []
    real = ScriptedLM(lambda _: {"answer": "said"}, on_request=calls.append)
    program = Direct("own")
    program.lm = real  # type: ignore[assignment]
    session = qa_session()
    session.add_turn({"question": "a"}, {"answer": "A."})
    (turn,) = render_prompts(session, program).turns
    assert "past the adapter" in turn.unrendered
    assert calls == []


def test_X9_predictors_with_an_lm_of_their_own_call_nothing() -> None:
    session = qa_session()
    session.add_turn({"question": "a"}, {"answer": "A."})
    (turn,) = render_prompts(session, Direct("")).turns
    assert [p.predictor for p in turn.prompts] == ["(Predict)", "qa"]
    program = dspy.Predict(QA)
    program.lm = NoLM()
    assert len(render_prompts(session, program).turns[0].prompts) == 1


def test_X9_a_program_that_waits_for_an_answer_for_ever_is_ended() -> None:
    class Waiting(Asker):
        def forward(self, question: str) -> Any:
            while self.qa(question=question).answer != "done":
                pass

    session = qa_session()
    session.add_turn({"question": "a"}, {"answer": "A."})
    (turn,) = render_prompts(session, Waiting()).turns
    assert "more than 200 calls" in turn.unrendered


def test_X9_an_agent_whose_steps_are_not_recorded_is_rendered_as_far_as_its_first() -> None:
    session = qa_session()
    session.add_turn({"question": "a"}, {"answer": "A."})
    (turn,) = render_prompts(session, dspy.ReAct(QA, tools=[look_up])).turns
    assert [p.predictor for p in turn.prompts] == ["react"]
    assert "what react did is not recorded" in turn.unrendered


def test_X9_code_that_is_not_recorded_does_not_run() -> None:
    session = qa_session()
    session.add_turn({"question": "a"}, {"answer": "A."})
    local: Any = {"interpreter_factory": dspy.LocalInterpreter}
    with deprecated_modules():
        programs = [
            dspy.ProgramOfThought(QA, **local),
            dspy.CodeAct(QA, tools=[look_up], **local),
            dspy.RLM(QA, **local),
        ]
    for program in programs:
        (turn,) = render_prompts(session, program).turns
        assert len(turn.prompts) == 1
        assert "is not recorded" in turn.unrendered


def test_X9_adapters_of_other_kinds_are_rendered() -> None:
    session = recorded("a", "b")
    two_steps = render_prompts(session, adapter=dspy.TwoStepAdapter(NoLM()))
    assert [len(turn.prompts) for turn in two_steps.turns] == [1, 1]
    assert two_steps.unrendered == ()

    class Own(Asker):
        def forward(self, question: str) -> Any:
            with dspy.context(adapter=dspy.XMLAdapter()):
                return super().forward(question)

    (turn, _) = render_prompts(session, Own()).turns
    assert "<question>" in turn.prompts[0].messages[-1]["content"]


def test_X9_messages_with_parts_are_kept_as_they_are(tmp_path: Path) -> None:
    lm, session = ScriptedLM(), sessionify(dspy.Predict("picture: dspy.Image -> answer"))
    with dspy.context(lm=lm):
        session(picture=dspy.Image("data:image/png;base64,aGk="))
    prompts = drift_baseline(tmp_path / "prompts.json", session)
    parts = prompts.turns[0].prompts[0].messages[-1]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "text"]
    assert not drift(session, None, tmp_path / "prompts.json")


def test_X9_attempts_and_async_programs_are_rendered() -> None:
    session = qa_session()
    session.add_turn({"question": "a"}, {"answer": "A."})
    best = dspy.BestOfN(dspy.Predict(QA), N=2, reward_fn=lambda *_: 0.0, threshold=1.0)
    (turn,) = render_prompts(session, best).turns
    assert len(turn.prompts) == 2

    class Awaited(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        async def aforward(self, question: str) -> Any:
            return await self.qa.acall(question=question)

    (turn,) = render_prompts(session, Awaited()).turns
    assert (len(turn.prompts), turn.unrendered) == (1, "")


# --- abilities of the LM --------------------------------------------------------------------------


def test_X9_adapters_ask_what_the_named_lm_can_do() -> None:
    class Able(NoLM):
        @property
        def supports_response_schema(self) -> bool:
            return True

        @property
        def supported_params(self) -> set[str]:
            return {"response_format"}

    session = qa_session()
    session.add_turn({"question": "a"}, {"answer": "A."})
    (plain,) = render_prompts(session, adapter=dspy.JSONAdapter()).turns
    (able,) = render_prompts(session, adapter=dspy.JSONAdapter(), lm=Able()).turns
    assert "response_format" not in plain.prompts[0].settings
    assert "answer" in json.dumps(able.prompts[0].settings["response_format"])


# --- files ----------------------------------------------------------------------------------------


def test_X9_a_baseline_is_a_file_that_holds_each_message_once(tmp_path: Path) -> None:
    session, path = recorded("a", "b", "c"), tmp_path / "prompts.json"
    prompts = drift_baseline(path, session)
    assert Prompts.load(path) == prompts
    assert Prompts.from_dict(prompts.to_dict()) == prompts
    assert not drift(session, None, path)
    assert not drift(session, None, str(path))
    assert not drift(session, None, json.loads(path.read_text("utf-8")))
    written = json.loads(path.read_text("utf-8"))
    assert len(written["messages"]) == 1 + 3 + 2  # the system's, the questions, the answers
    added = [len(prompt["messages"]) for turn in written["turns"] for prompt in turn["prompts"]]
    assert added == [2, 2, 2]  # to what the prompt before had
    first = path.read_bytes()
    drift_baseline(path, session)
    assert path.read_bytes() == first


def test_X9_the_exit_code_says_it(tmp_path: Path) -> None:
    session, path = recorded("a"), tmp_path / "prompts.json"
    drift_baseline(path, session)
    for changed, code in ((None, 0), (dspy.JSONAdapter(), 1)):
        with pytest.raises(SystemExit) as ended:
            sys.exit(bool(drift(session, None, path, adapter=changed)))
        assert int(ended.value.code or 0) == code
    assert len(session) == 1


def test_X9_several_conversations_have_one_baseline() -> None:
    sessions: list[Session | SessionState] = [recorded("a"), SessionState(), recorded("b").state]
    prompts = render_prompts(sessions, dspy.Predict(QA))
    assert [(turn.session, turn.turn) for turn in prompts.turns] == [("ada", 0), ("ada (2)", 0)]


def test_X9_redacted_fields_are_in_no_prompt() -> None:
    session = talked(
        qa_session(redact_fields=["question", "answer"]),
        ScriptedLM(lambda _: {"answer": "secret"}),
        "my pin is pin-1234",
        "again pin-1234",
    )
    text = json.dumps(render_prompts(session).to_dict())
    assert "pin-1234" not in text
    assert "secret" not in text
    assert "(redacted)" in text


def test_X9_a_report_is_json() -> None:
    session = recorded("a")
    found = drift(session, None, render_prompts(session), adapter=dspy.JSONAdapter())
    written = json.loads(json.dumps(found.to_dict()))
    assert (written["ok"], written["adapter"]) == (False, ["ChatAdapter", "JSONAdapter"])
    assert written["changes"][0]["diff"] == found.changes[0].diff


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON file"),
        ("[]", "something else"),
        ('{"kind": "dspy-session"}', "something else"),
        ('{"kind": "dspy-session-prompts", "version": 99}', "version 99"),
        ('{"kind": "dspy-session-prompts", "version": 1}', "damaged"),
        (
            '{"kind": "dspy-session-prompts", "version": 1, "messages": [], "turns": [{"session": '
            '"a", "turn": 0, "prompts": [{"predictor": "p", "same": 3, "messages": []}]}]}',
            "begins with 3 messages",
        ),
    ],
)
def test_X9_a_baseline_that_is_none_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path, session = tmp_path / "prompts.json", recorded("a")
    before = session.state
    path.write_text(text, "utf-8")
    with pytest.raises(FormatError, match=words):
        drift(session, None, path)
    with pytest.raises(FileNotFoundError, match="drift_baseline"):
        drift(session, None, tmp_path / "none.json")
    assert session.state is before


def test_X9_bad_input_is_refused(tmp_path: Path) -> None:
    session = recorded("a")
    adapter: Any = "json"
    with pytest.raises(CallError, match="adapter must be"):
        render_prompts(session, adapter=adapter)
    lm: Any = "openai/gpt-4o-mini"
    with pytest.raises(CallError, match="lm= must be"):
        render_prompts(session, lm=lm)
    told: Any = 5
    with pytest.raises(OptionError, match="instructions must be text"):
        drift_baseline(tmp_path / "prompts.json", session, instructions=told)
    assert not any(tmp_path.iterdir())
    nothing: Any = None
    with pytest.raises(CallError, match="Session or a SessionState"):
        render_prompts(nothing)
    with pytest.raises(CallError, match="has no program"):
        render_prompts(session.state)
    given: Any = ["ada.json"]
    with pytest.raises(CallError, match="Session or a SessionState"):
        render_prompts(given)
    assert len(session) == 1


Kind = Literal["yes", "no"]


def test_X9_recorded_answers_of_any_type_stand_in() -> None:
    class Sorting(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sort = dspy.Predict(
                dspy.Signature(
                    {"question": (str, dspy.InputField()), "kind": (Kind, dspy.OutputField())}
                )
            )
            self.say = dspy.Predict("question, kind -> answer")

        def forward(self, question: str) -> Any:
            kind = self.sort(question=question).kind
            return dspy.Prediction(kind=kind, answer=self.say(question=question, kind=kind).answer)

    def reply(prompt: Prompt) -> dict[str, Any]:
        known = {"kind": "yes", "answer": f"to {asked(prompt)}"}
        return {name: known[name] for name in requested_fields(prompt)}

    lm = ScriptedLM(reply)
    session = talked(sessionify(Sorting()), lm, "a", "b")
    prompts = render_prompts(session)
    assert sent_by(prompts) == lm.prompts
    assert prompts.unrendered == ()
