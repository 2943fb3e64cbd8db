"""X8: a recorded conversation through another program, and what the report says of it."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import dspy
import pytest

from dspy_session import (
    BeforeTurn,
    CallError,
    HistoryError,
    Hooks,
    MetricError,
    ModuleTypeError,
    OptionError,
    Session,
    SessionOptions,
    SessionState,
    areplay,
    compare_replays,
    current_data,
    replay,
    replay_all,
    sessionify,
)
from dspy_session.core import undo, write
from dspy_session.replay_report import ReplayTotals, summary_of
from dspy_session.testing import Prompt, ScriptedLM, requested_fields
from tests.talk import QA, ask, asked, echo, past, qa_session, scripted


def answering(words: str) -> ScriptedLM:
    """Answers each requested field with these words and the question; "fail" fails."""

    def reply(prompt: Prompt) -> dict[str, Any]:
        if asked(prompt) == "fail":
            raise ValueError("the model is out")
        return {name: f"{words} {asked(prompt)}" for name in requested_fields(prompt)}

    return ScriptedLM(reply)


def recorded(*questions: str, **keywords: Any) -> Session:
    session = qa_session(session_id="ada", **keywords)
    with dspy.context(lm=scripted()):
        ask(session, *questions)
    return session


def by_length(_: dspy.Example, prediction: dspy.Prediction) -> float:
    return float(len(prediction.answer))


# --- the two ways ---------------------------------------------------------------------------------


def test_X8_own_answers_are_carried_forward() -> None:
    session, lm = recorded("a", "b", "c"), answering("new")
    before = session.state
    found = replay(session, lm=lm)
    assert [past(prompt) for prompt in lm.prompts] == [
        [],
        [("a", "new a")],
        [("a", "new a"), ("b", "new b")],
    ]
    assert [turn.replayed.outputs for turn in found.turns if turn.replayed] == [
        {"answer": f"new {question}"} for question in "abc"
    ]
    assert [turn.recorded for turn in found.turns] == list(before.turns)
    assert session.state is before


def test_X8_teacher_forced_turns_see_the_recorded_past() -> None:
    session, lm = recorded("a", "b", "c"), answering("new")
    before = session.state
    found = replay(session, lm=lm, teacher_forced=True)
    assert [past(prompt) for prompt in lm.prompts] == [
        [],
        [("a", "answer to a")],
        [("a", "answer to a"), ("b", "answer to b")],
    ]
    assert [turn.replayed.outputs["answer"] for turn in found.turns if turn.replayed] == [
        "new a",
        "new b",
        "new c",
    ]
    assert session.state is before


def test_X8_a_teacher_forced_turn_sees_what_its_call_saw_unless_options_say_otherwise() -> None:
    session = recorded("a", "b")
    session.replace_turn(0, {"answer": "corrected"})
    lm = answering("new")
    replay(session, lm=lm, teacher_forced=True)
    assert past(lm.prompts[1]) == [("a", "answer to a")]
    replay(session, lm=lm, teacher_forced=True, options=SessionOptions())
    assert past(lm.prompts[3]) == [("a", "corrected")]
    replay(session, lm=lm, teacher_forced=True, options=SessionOptions(max_turns=0))
    assert past(lm.prompts[5]) == []


def test_X8_it_goes_through_another_program_adapter_and_instructions() -> None:
    session, lm = recorded("a", "b"), answering("new")
    other = dspy.ChainOfThought(QA)
    found = replay(session, other, lm=lm, adapter=dspy.JSONAdapter(), instructions="Be brief.")
    assert all(turn.replayed and "reasoning" in turn.replayed.outputs for turn in found.turns)
    assert all("Be brief." in prompt[0]["content"] for prompt in lm.prompts)
    assert all("JSON object" in prompt[-1]["content"] for prompt in lm.prompts)
    session.instructions = "Recorded."
    replay(session, lm=lm)
    assert "Recorded." in lm.prompts[-1][0]["content"]
    replay(session, lm=lm, instructions="")
    assert "Recorded." not in lm.prompts[-1][0]["content"]


def test_X8_awaited_it_is_the_same() -> None:
    session, lm = recorded("a", "b"), answering("new")
    found = asyncio.run(areplay(session, lm=lm, metric=by_length))
    again = replay(session, lm=lm, metric=by_length)
    for one, other in zip(found.turns, again.turns, strict=True):
        assert one.replayed is not None
        assert other.replayed is not None
        assert one.replayed.outputs == other.replayed.outputs
        assert one.difference == other.difference


def test_X8_of_turns_asked_again_the_path_that_stands_counts() -> None:
    session = recorded("a", "b")
    with dspy.context(lm=answering("again")):
        session.regenerate(0, question="c")
        ask(session, "d")
        session.undo()
    found = replay(session, lm=answering("new"))
    assert [turn.inputs["question"] for turn in found.turns] == ["c"]


def test_X8_a_trimmed_conversation_keeps_its_indices() -> None:
    session, lm = recorded("a", "b", "c", max_stored_turns=2), answering("new")
    found = replay(session, lm=lm)
    assert [turn.index for turn in found.turns] == [1, 2]
    assert past(lm.prompts[0]) == []
    replay(session, lm=lm, teacher_forced=True)
    assert past(lm.prompts[2]) == [("a", "answer to a")]


def test_X8_the_replayed_conversation_can_be_gone_on_with() -> None:
    found = replay(recorded("a", "b"), lm=answering("new"))
    assert found.state is not None
    assert found.state.id is None
    session = Session.from_state(found.state, dspy.Predict(QA))
    assert [turn.outputs["answer"] for turn in session.turns] == ["new a", "new b"]


# --- what goes along ------------------------------------------------------------------------------


class Counter(dspy.Module):
    """Counts its turns in the session data, and says what it finds there."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(QA)

    def forward(self, question: str) -> Any:
        data = current_data()
        data["count"] = data.get("count", 0) + 1
        answer = self.qa(question=question).answer
        return dspy.Prediction(answer=f"{answer} {data['count']} {data.get('coupon')}")


def test_X8_what_was_written_between_turns_is_written_again() -> None:
    session = sessionify(Counter())
    with dspy.context(lm=scripted()):
        ask(session, "a")
        session.data["coupon"] = "SPRING"
        ask(session, "b")
        del session.data["coupon"]
        ask(session, "c")
    before = session.state
    for forced in (False, True):
        found = replay(session, lm=answering("new"), teacher_forced=forced)
        assert [turn.replayed.outputs["answer"] for turn in found.turns if turn.replayed] == [
            "new a 1 None",
            "new b 2 SPRING",
            "new c 3 None",
        ]
        assert session.state is before


class Doubter(dspy.Module):
    """A program that holds a session."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = sessionify(dspy.Predict("question -> doubt"))
        self.qa = dspy.Predict("question, doubt -> answer")

    def forward(self, question: str) -> Any:
        return self.qa(question=question, doubt=self.inner(question=question).doubt)


def test_X8_sessions_inside_the_program_go_along_and_stay_as_they_were() -> None:
    program = Doubter()
    session = sessionify(program, copy_mode="none")
    with dspy.context(lm=scripted()):
        ask(session, "a", "b")
    inner = program.inner.state
    found = replay(session, lm=scripted())
    assert found.state is not None
    assert len(found.state.nested["inner"]) == 2
    assert program.inner.state is inner
    assert len(session.state.nested["inner"]) == 2


class Outside(dspy.Module):
    """A program that calls a session which is no part of it."""

    def forward(self, question: str) -> Any:
        return OUTSIDE[0](question=question)


OUTSIDE: list[Session] = []


def test_X8_a_session_that_the_program_merely_calls_keeps_nothing() -> None:
    OUTSIDE[:] = [qa_session()]
    before = OUTSIDE[0].state
    found = replay(recorded("a", "b"), Outside(), lm=scripted())
    assert not any(turn.error for turn in found.turns)
    assert OUTSIDE[0].state is before


def test_X8_hooks_and_on_turn_run_only_where_they_are_given() -> None:
    told: list[str] = []

    def before(turn: BeforeTurn) -> None:
        told.append(turn.inputs["question"])

    session = recorded("a")
    watched = Session.from_state(
        session.state,
        dspy.Predict(QA),
        hooks=Hooks(before=[before]),
        on_turn=lambda _, turn: told.append(turn.id),
    )
    replay(watched, lm=scripted())
    assert told == []
    replay(watched, lm=scripted(), hooks=Hooks(before=[before]))
    assert told == ["a"]


def test_X8_request_ids_are_not_carried_over() -> None:
    session = qa_session()
    with dspy.context(lm=scripted()):
        session.using(request_id="r-1")(question="a")
    found = replay(session, lm=scripted())
    assert found.turns[0].recorded.request_id == "r-1"
    assert found.turns[0].replayed is not None
    assert found.turns[0].replayed.request_id is None


def test_X8_fresh_answers_come_from_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dspy, "cache", dspy.cache)  # put back at the end
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    requests: list[Any] = []
    lm = ScriptedLM(echo, on_request=requests.append)
    vars(lm)["cache"] = True
    session = recorded("a", "a question of its own")
    for _ in range(2):
        replay(session, lm=lm)
    assert len(requests) == 2
    for _ in range(2):
        replay(session, lm=lm, fresh=True)
    assert len(requests) == 6


# --- turns that fail ------------------------------------------------------------------------------


def test_X8_a_turn_that_fails_ends_the_replay_or_the_recorded_answer_stands_in() -> None:
    session = recorded("a", "b", "c")
    failing = qa_session()
    for question in ("a", "fail", "c"):
        failing.add_turn({"question": question}, {"answer": f"recorded {question}"})
    before = failing.state
    lm = answering("new")
    found = replay(failing, lm=lm, metric=by_length)
    assert [bool(turn.error) for turn in found.turns] == [False, True]
    assert found.missing == 1
    assert found.turns[1].error == "LMUnexpectedError: [scripted] the model is out"
    assert found.turns[1].replayed is None
    assert found.turns[1].replayed_score == 0.0
    assert "not reached" in str(found)

    found = replay(failing, lm=lm, on_error="continue", metric=by_length, failure_score=-1)
    assert [bool(turn.error) for turn in found.turns] == [False, True, False]
    assert past(lm.prompts[-1]) == [("a", "new a"), ("fail", "recorded fail")]
    assert (found.missing, found.turns[1].replayed_score, found.replayed.failed) == (0, -1, 1)
    assert failing.state is before
    assert len(session) == 3


def test_X8_what_failed_turns_wrote_stands_in_too() -> None:
    session = sessionify(Counter())
    with dspy.context(lm=scripted()):
        ask(session, "a", "b")

    def once(prompt: Prompt) -> dict[str, Any]:
        if asked(prompt) == "a":
            raise ValueError("out")
        return echo(prompt)

    found = replay(session, lm=ScriptedLM(once), on_error="continue")
    assert found.turns[1].replayed is not None
    assert found.turns[1].replayed.outputs["answer"].endswith(" 2 None")


# --- scores and sums ------------------------------------------------------------------------------


def test_X8_metrics_compare_both_sides() -> None:
    session = recorded("a", "b")
    before = session.state
    found = replay(session, lm=answering("far more words than before for"), metric=by_length)
    assert all(
        turn.difference == len("far more words than before for a") - 11 for turn in found.turns
    )
    assert found.better == "replayed"
    assert replay(session, lm=answering(""), metric=by_length).better == "recorded"
    assert replay(session, lm=scripted(), metric=by_length).better == "tie"
    assert replay(session, lm=scripted()).better is None
    assert session.state is before
    assert all(turn.score is None for turn in session.turns)


def test_X8_metrics_take_what_they_take_in_score() -> None:
    session, seen = recorded("a", "b"), []

    def judged(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> Any:
        saw = [message["answer"] for message in example.history.messages]
        seen.append((example.answer, saw, prediction.answer, trace))
        words = "as recorded" if example.answer == prediction.answer else "other"
        return dspy.Prediction(score=float(words == "as recorded"), feedback=words)

    found = replay(session, lm=answering("new"), metric=judged)
    assert [turn.recorded_feedback for turn in found.turns] == ["as recorded"] * 2
    assert [turn.replayed_feedback for turn in found.turns] == ["other"] * 2
    assert ("answer to b", ["answer to a"], "answer to b", None) in seen
    assert ("answer to b", ["new a"], "new b", None) in seen
    gold = dspy.Example(question="a", answer="new a").with_inputs("question")

    def right(example: dspy.Example, prediction: dspy.Prediction) -> bool:
        return bool(example.answer == prediction.answer)

    scores = [
        turn.replayed_score
        for turn in replay(session, lm=answering("new"), metric=right, gold=gold).turns
    ]
    assert scores == [1.0, 0.0]


def test_X8_a_metric_that_raises_scores_zero_or_raises() -> None:
    def broken(example: dspy.Example, prediction: dspy.Prediction) -> float:
        raise RuntimeError("broken")

    session = recorded("a")
    found = replay(session, lm=scripted(), metric=broken)
    assert found.turns[0].replayed_score == found.turns[0].recorded_score == 0.0
    strict = recorded("a", on_metric_error="raise")
    before = strict.state
    with pytest.raises(MetricError, match="broken"):
        replay(strict, lm=scripted(), metric=broken)
    assert strict.state is before
    report = replay_all([strict, session], lm=scripted(), metric=broken, progress=False)
    assert [bool(found.error) for found in report.replays] == [True, False]


def test_X8_both_sides_are_summed_up() -> None:
    session = recorded("a", "b")
    found = replay(session, lm=answering("new"))
    assert (found.recorded.lm_calls, found.replayed.lm_calls) == (2, 2)
    words = sum(turn.usage["scripted"]["total_tokens"] for turn in session.turns)
    assert found.recorded.tokens == words
    assert found.replayed.tokens > 0
    assert found.recorded.cost is None
    assert "cost" not in str(found)
    paid, free = ReplayTotals(cost=0.25), ReplayTotals(cost=0.0)
    assert "cost $0.2500 -> $0.0000" in summary_of(paid, free, None)[0]
    assert "cost $0.2500 -> unknown" in summary_of(paid, ReplayTotals(), None)[0]


# --- what is read ---------------------------------------------------------------------------------


def test_X8_a_report_is_text_json_and_a_table() -> None:
    session = recorded("a", "<script>alert(1)</script>")
    found = replay(session, lm=answering("new"), metric=by_length, name="mini")
    assert "Session ada: 2 turns, recorded and mini" in str(found)
    assert "new a" in str(found)
    written = json.loads(json.dumps(found.to_dict()))
    assert written["turns"][0]["replayed"] == {"answer": "new a"}
    assert written["recorded"]["lm_calls"] == 2
    page = found._repr_html_()
    assert "<table>" in page
    assert "<script>" not in page


def test_X8_redacted_fields_are_in_no_text() -> None:
    session, lm = qa_session(redact_fields=["question"]), ScriptedLM(lambda _: {"answer": "Hm."})
    with dspy.context(lm=lm):
        ask(session, "mine is pin-1234")
    found = replay(session, lm=lm, name="later")
    for text in (str(found), json.dumps(found.to_dict()), found._repr_html_()):
        assert "pin-1234" not in text
        assert "Hm." in text


# --- many conversations ---------------------------------------------------------------------------


def test_X8_many_conversations_come_in_order_and_none_ends_the_others() -> None:
    sessions: list[Session | SessionState] = [recorded(str(n), "b") for n in range(8)]
    failing = qa_session(session_id="failing")
    failing.add_turn({"question": "fail"}, {"answer": "recorded"})
    sessions[3] = failing
    report = replay_all(sessions, lm=answering("new"), num_threads=4, progress=False)
    assert [found.turns[0].inputs["question"] for found in report.replays] == [
        *"012",
        "fail",
        *"4567",
    ]
    assert report.failed == (report.replays[3],)
    assert (report.replayed.failed, report.replayed.turns) == (1, 15)


def test_X8_each_thread_has_the_settings_of_the_caller() -> None:
    sessions = [recorded("a") for _ in range(6)]
    with dspy.context(lm=answering("context"), adapter=dspy.JSONAdapter()):
        report = replay_all(sessions, num_threads=3, progress=False)
    answers = [turn.replayed.outputs["answer"] for turn in report.turns if turn.replayed]
    assert len(answers) == 6
    assert all(answer.startswith("context") for answer in answers)


def test_X8_the_report_names_the_better_program() -> None:
    sessions = [recorded("a", "b"), recorded("c")]
    reports = [
        replay_all(sessions, lm=answering(words), metric=by_length, name=name, progress=False)
        for words, name in (("a long answer to", "long"), ("", "short"))
    ]
    assert [report.better for report in reports] == ["long", "recorded"]
    assert reports[0].wins == {"recorded": 0, "long": 2, "tie": 0}
    both = compare_replays(*reports)
    assert (both.better, both.ranking) == ("long", ("long", "recorded", "short"))
    assert "better: long" in str(both)
    assert json.loads(json.dumps(both.to_dict()))["better"] == "long"
    assert "long" in both._repr_html_()
    assert json.loads(json.dumps(reports[0].to_dict()))["wins"]["long"] == 2
    assert "better: long" in str(reports[0])
    assert "<table>" in reports[0]._repr_html_()


def test_X8_of_several_programs_those_turns_count_that_all_came_to() -> None:
    conversations = [recorded("easy", "easy"), recorded("hard", *["plain"] * 8)]

    def hasty(prompt: Prompt) -> dict[str, Any]:
        if asked(prompt) == "hard":
            raise RuntimeError("too hard")
        return {"answer": "1.0"}

    def patient(prompt: Prompt) -> dict[str, Any]:
        return {"answer": "0.5" if asked(prompt) == "plain" else "0.9"}

    def number(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return float(prediction.answer) if prediction.answer[0].isdigit() else 0.0

    reports = [
        replay_all(
            conversations,
            lm=ScriptedLM(reply),
            metric=number,
            name=reply.__name__,
            num_threads=1,
            progress=False,
        )
        for reply in (hasty, patient)
    ]
    scores = [report.replayed.score for report in reports]
    assert scores == [pytest.approx(2 / 3), pytest.approx((3 * 0.9 + 8 * 0.5) / 11)]
    assert "8 turns were not reached." in str(reports[0]).splitlines()
    assert "not reached" not in str(reports[1])
    both = compare_replays(*reports)
    assert both.better == "patient"  # though hasty has the higher mean, of the turns before it fell
    assert both.ranking == ("patient", "hasty", "recorded")
    assert both.sides["hasty"].score == pytest.approx(2 / 3)
    assert both.sides["patient"].score == pytest.approx(0.9)
    assert both.sides["patient"].turns == 11

    unscored = replay_all(conversations, lm=ScriptedLM(patient), name="unscored", progress=False)
    all_three = compare_replays(unscored, *reports)
    assert all_three.ranking == both.ranking
    assert all_three.sides["unscored"].score is None


def test_X8_an_interrupt_ends_all() -> None:
    def interrupted(example: dspy.Example, prediction: dspy.Prediction) -> float:
        raise KeyboardInterrupt

    sessions = [recorded("a") for _ in range(4)]
    before = [session.state for session in sessions]
    with pytest.raises(KeyboardInterrupt):
        replay_all(sessions, lm=scripted(), metric=interrupted, num_threads=2, progress=False)
    assert [session.state for session in sessions] == before


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_X8_a_bar_shows_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for progress, words in ((True, "Replay: 100%"), (False, "")):
        terminal = Terminal()
        monkeypatch.setattr("sys.stderr", terminal)
        replay_all([recorded("a")], lm=scripted(), progress=progress)
        assert words in terminal.getvalue()
        assert bool(terminal.getvalue()) is progress


def test_X8_no_bar_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    replay_all([recorded("a")], lm=scripted())
    assert capfd.readouterr() == ("", "")


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"on_error": "ignore"}, OptionError, "on_error"),
        ({"nme": "x"}, OptionError, "There is no keyword 'nme'"),
        ({"name": "recorded"}, OptionError, "name must be"),
        ({"adapter": "json"}, CallError, "adapter must be"),
        ({"lm": "gpt"}, CallError, "lm= must be"),
        ({"metric": 3}, CallError, "metric must be"),
        ({"options": {}}, CallError, "options must be"),
        ({"config": 0.2}, CallError, "config= must be"),
        ({"instructions": 3}, OptionError, "instructions must be text"),
        ({"failure_score": "bad"}, OptionError, "failure_score must be"),
        ({"failure_score": float("nan")}, OptionError, "failure_score must be"),
        ({"gold": [dspy.Example()]}, CallError, "2 turns"),
    ],
)
def test_X8_bad_keywords_are_refused_before_anything_runs(
    keywords: dict[str, Any], error: type[Exception], words: str
) -> None:
    session, lm = recorded("a", "b"), scripted()
    before = session.state
    with dspy.context(lm=lm), pytest.raises(error, match=words):
        replay(session, **keywords)
    assert (lm.prompts, session.state) == ([], before)


def test_X8_what_cannot_be_replayed_is_refused() -> None:
    session = recorded("a")
    given: Any = "ada.json"
    with pytest.raises(CallError, match="Session or a SessionState"):
        replay(given, dspy.Predict(QA))
    with pytest.raises(CallError, match="has no program"):
        replay(session.state)
    program: Any = len
    with pytest.raises(ModuleTypeError):
        replay(session, program)
    with pytest.raises(HistoryError):
        replay(session, dspy.Predict("question -> history"))
    with pytest.raises(OptionError, match="num_threads"):
        replay_all([session], num_threads=0)
    for alone in (session, session.state, 5):
        one: Any = alone
        with pytest.raises(CallError, match="a list of conversations"):
            replay_all(one)
    gold: Any = 5
    with pytest.raises(CallError, match="gold must be"):
        replay_all([session, session], gold=gold)
    with pytest.raises(OptionError, match="name of its own"):
        compare_replays()
    single: Any = replay(session, lm=scripted())
    with pytest.raises(CallError, match="not Replay"):
        compare_replays(single)
    reports = [replay_all(s, lm=scripted(), name=n) for s, n in (([session], "x"), ([], "y"))]
    with pytest.raises(OptionError, match="other conversations"):
        compare_replays(*reports)
    assert len(session) == 1


def test_X8_nothing_to_replay() -> None:
    found = replay(SessionState(), dspy.Predict(QA))
    assert (found.turns, found.missing, found.better) == ((), 0, None)
    assert replay_all([], dspy.Predict(QA)).replays == ()
    session = recorded("a")
    _, state = undo(session.state)
    assert replay(write(state, {"x": 1}), dspy.Predict(QA)).turns == ()
