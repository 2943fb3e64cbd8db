"""A13 and C4: conversations that are summarised, by hand and by themselves, and truncated."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import (
    CallError,
    LockError,
    ModuleTypeError,
    OptionError,
    Session,
    SessionOptions,
    SessionState,
    SummarizeConversation,
    TurnEvent,
    asummarize_state,
    sessionify,
    step,
    summarize_state,
    summary_due,
)
from dspy_session.core import start
from dspy_session.errors import SessionError
from dspy_session.program.summaries import plan_summary
from dspy_session.testing import Prompt, ScriptedLM
from tests.loopback import Body, LoopbackServer
from tests.streams import SOON
from tests.talk import QA, asked, field, past, qa_session, questions, refused, shown

SUMMARY = "Summary of the conversation so far"
Run = Callable[..., Any]


def is_summary(prompt: Prompt) -> bool:
    return "Summarise a conversation" in prompt[0]["content"]


def told(prompt: Prompt) -> str:
    """The conversation that a summariser was given."""
    return field(prompt[-1]["content"], "conversation") or ""


class Model(ScriptedLM):
    """Answers questions, and numbers its summaries; those of what holds "fail" fail."""

    def __init__(self) -> None:
        super().__init__(self.reply)
        self.summaries = 0

    def reply(self, prompt: Prompt) -> Mapping[str, Any]:
        if not is_summary(prompt):
            return {"answer": f"answer to {asked(prompt)}"}
        if "fail" in told(prompt):
            raise ValueError("the model is out")
        self.summaries += 1
        return {"summary": f"summary {self.summaries}"}


class Noted(dspy.Module):
    """A summariser without a language model; what happens meanwhile is a function."""

    def __init__(
        self, meanwhile: Callable[[], object] = lambda: None, text: Any = "so far"
    ) -> None:
        super().__init__()
        self.told: list[str] = []
        self.meanwhile, self.text = meanwhile, text

    def forward(self, conversation: str) -> Any:
        self.told.append(conversation)
        self.meanwhile()
        return dspy.Prediction(summary=self.text)


def by_hand(session: Session, *args: Any, **kwargs: Any) -> SessionState:
    return session.summarize(*args, **kwargs)


def awaited(session: Session, *args: Any, **kwargs: Any) -> SessionState:
    return asyncio.run(session.asummarize(*args, **kwargs))


both_ways = pytest.mark.parametrize("summarize", [by_hand, awaited])


def called(session: Session, **inputs: Any) -> Any:
    return session(**inputs)


def acalled(session: Session, **inputs: Any) -> Any:
    return asyncio.run(session.acall(**inputs))


def streamed(session: Session, **inputs: Any) -> Any:
    *_, end = session.stream(**inputs)
    assert isinstance(end, TurnEvent)
    return end.prediction


def astreamed(session: Session, **inputs: Any) -> Any:
    async def read() -> Any:
        *_, end = [event async for event in session.astream(**inputs)]
        assert isinstance(end, TurnEvent)
        return end.prediction

    return asyncio.run(read())


every_way = pytest.mark.parametrize("call", [called, acalled, streamed, astreamed])


def held(count: int, **keywords: Any) -> Session:
    session = qa_session(**keywords)
    for number in range(count):
        session.add_turn({"question": f"q{number}"}, {"answer": f"a{number}"})
    return session


# --- by hand --------------------------------------------------------------------------------------


@both_ways
def test_A13_the_turns_become_a_seed_and_nothing_else_changes(summarize: Run) -> None:
    lm = Model()
    session = held(3, data={"cart": 1}, metadata={"user": "Ada"}, instructions="Be kind.")
    before, id = session.state, session.session_id
    with dspy.context(lm=lm):
        was = summarize(session)
        assert was is before
        assert len(session) == 0
        assert shown(session) == [(SUMMARY, "summary 1")]
        session(question="And?")
    assert past(lm.prompts[-1]) == [(SUMMARY, "summary 1")]
    assert "Be kind." in lm.prompts[-1][0]["content"]
    assert session.session_id == id
    assert session.data.to_dict() == {"cart": 1}
    assert session.metadata.to_dict() == {"user": "Ada"}
    assert session.turns[0].index == 3


def test_A13_the_summariser_reads_the_conversation_and_nothing_is_added_to_it() -> None:
    lm = Model()
    with dspy.context(lm=lm):
        held(2, instructions="Be kind.").summarize()
    (prompt,) = lm.prompts
    assert len(prompt) == 2
    assert told(prompt) == "[1]\nquestion: q0\nanswer: a0\n\n[2]\nquestion: q1\nanswer: a1"
    assert "Be kind." not in prompt[0]["content"]


@both_ways
def test_A13_the_newest_turns_can_be_kept(summarize: Run) -> None:
    session, summarizer = held(5), Noted()
    kept = session.turns[3:]
    summarize(session, summarizer, keep=2)
    assert session.turns == kept
    assert shown(session) == [(SUMMARY, "so far"), ("q3", "a3"), ("q4", "a4")]
    assert "q2" in summarizer.told[0]
    assert "q3" not in summarizer.told[0]


def test_A13_what_was_is_still_there_and_can_be_gone_on_with() -> None:
    session = held(3, data={"cart": 1})
    before = session.state
    session.undo()
    was = session.summarize(Noted())
    assert session.state.earlier == (was,)
    back = Session.from_state(session.state.earlier[-1], dspy.Predict(QA))
    assert questions(back) == ["q0", "q1"]
    back.redo()
    assert back.turns == before.turns
    assert session.undo() == ()
    assert session.redo() == ()


def test_A13_session_data_written_after_the_last_turn_stays_and_secrets_stay_in() -> None:
    session = sessionify(
        dspy.Predict("question, card -> answer"),
        redact_fields={"card"},
        private_data={"token"},
        data={"token": "hush"},
    )
    session.add_turn({"question": "q", "card": "card-4111"}, {"answer": "a"})
    session.data["late"] = 5
    session.summarize(Noted())
    assert session.data.to_dict() == {"token": "hush", "late": 5}
    assert session.state.earlier[0].turns[0].inputs["card"] == "card-4111"
    exported = json.dumps(session.to_dict())
    assert "so far" in exported
    assert "card-4111" not in exported
    assert "hush" not in exported


def test_A13_a_summary_tells_what_an_earlier_one_told_and_all_are_kept() -> None:
    lm = Model()
    session = held(2)
    with dspy.context(lm=lm):
        session.summarize()
        session(question="more")
        session.summarize()
    assert told(lm.prompts[-1]) == (
        f"[1]\nquestion: {SUMMARY}\nanswer: summary 1\n\n"
        "[2]\nquestion: more\nanswer: answer to more"
    )
    assert [[turn.inputs["question"] for turn in s.turns] for s in session.state.earlier] == [
        ["q0", "q1"],
        ["more"],
    ]
    assert shown(session) == [(SUMMARY, "summary 2")]


def test_A13_a_seed_given_by_hand_is_summarised_too() -> None:
    seed = dspy.History(messages=[{"question": "before", "answer": "yes"}])
    session, summarizer = held(1, initial_history=seed), Noted()
    session.summarize(summarizer)
    assert "before" in summarizer.told[0]
    assert shown(session) == [(SUMMARY, "so far")]


@both_ways
@pytest.mark.parametrize(("turns", "keep"), [(0, 0), (0, 3), (2, 2), (2, 9)])
def test_A13_where_there_is_nothing_to_summarise_nobody_is_asked(
    summarize: Run, turns: int, keep: int
) -> None:
    session, summarizer = held(turns), Noted()
    before = session.state
    assert summarize(session, summarizer, keep=keep) is before
    assert session.state is before
    assert summarizer.told == []


def test_A13_hidden_fields_are_hidden_from_the_summariser_and_turns_out_of_sight_are_not() -> None:
    summarizer = Noted()
    session = sessionify(
        dspy.Predict("question, card, note -> answer"),
        redact_fields={"card"},
        exclude_fields={"note"},
        max_turns=1,
        summarizer=summarizer,
    )
    for number in range(2):
        session.add_turn({"question": f"q{number}", "card": "4111", "note": "x"}, {"answer": "a"})
    session.summarize()
    assert summarizer.told == ["[1]\nquestion: q0\nanswer: a\n\n[2]\nquestion: q1\nanswer: a"]


@pytest.mark.parametrize(
    ("program", "options", "seed"),
    [
        ("question -> answer", {}, {"question": SUMMARY, "answer": "so far"}),
        ("request -> reply", {}, {"request": SUMMARY, "reply": "so far"}),
        ("topic, style -> title", {}, {"summary": "so far"}),
        ("topic, style -> title", {"exclude_fields": {"summary"}}, {"summary_": "so far"}),
        ("question -> answer", {"exclude_fields": {"answer"}}, {"summary": "so far"}),
        (
            "topic, style -> title",
            {"message_fields": {"user": "topic", "assistant": "title"}},
            {"topic": SUMMARY, "title": "so far"},
        ),
    ],
)
def test_A13_the_seed_is_a_pair_where_the_program_has_one_input_and_one_output_of_text(
    program: str, options: Any, seed: dict[str, str]
) -> None:
    session = sessionify(dspy.Predict(program), **options)
    session.add_turn({"topic": "t"}, {"title": "t"})
    session.summarize(Noted())
    assert session.session_history.messages == [seed]


def test_A13_a_summary_is_seen_by_programs_that_show_no_pairs() -> None:
    lm = ScriptedLM()
    session = sessionify(dspy.Predict("topic, style -> title"))
    session.add_turn({"topic": "fjords", "style": "dry"}, {"title": "Deep"})
    session.summarize(Noted())
    with dspy.context(lm=lm):
        session(topic="ferries", style="dry")
    assert "summary: so far" in lm.prompts[-1][-1]["content"]


def test_A13_reset_clear_and_fork_after_a_summary() -> None:
    session = held(2)
    session.summarize(Noted())
    session.add_turn({"question": "more"}, {"answer": "yes"})
    fork = session.fork()
    assert shown(fork) == [(SUMMARY, "so far"), ("more", "yes")]
    assert len(fork.state.earlier) == 1
    session.clear()
    assert shown(session) == []
    fork.reset()
    assert shown(fork) == []


def test_A13_reset_goes_back_to_the_seed_that_was_before_all_summaries() -> None:
    told = dspy.History(messages=[{"question": "Who?", "answer": "A guide."}])
    program, lm = dspy.Predict("question -> answer"), Model()
    session = sessionify(program, initial_history=told, summarize_after_turns=1)
    with dspy.context(lm=lm):
        for number in range(5):
            session(question=f"{number}?")
    assert len(session.state.earlier) > 1
    loaded = Session.from_dict(session.to_dict(), program)
    for one in (session, session.fork(), loaded):
        one.reset()
        assert one.session_history.messages == told.messages
        assert one.state.earlier == ()


# --- who summarises -------------------------------------------------------------------------------


def test_A13_any_module_that_makes_a_summary_of_a_conversation_will_do() -> None:
    lm = ScriptedLM(lambda _: {"reasoning": "because", "summary": "short"})
    with dspy.context(lm=lm):
        for summarizer in (
            dspy.ChainOfThought("conversation -> summary"),
            dspy.ChainOfThought(SummarizeConversation),
            dspy.Predict("conversation: str, tone: str = 'dry' -> summary: str"),
        ):
            session = held(1)
            session.summarize(summarizer)
            assert shown(session) == [(SUMMARY, "short")]

    class Plain(dspy.Module):
        def forward(self, conversation: str) -> str:
            return conversation.upper()

    session = held(1)
    session.summarize(Plain())
    assert shown(session) == [(SUMMARY, "[1]\nQUESTION: Q0\nANSWER: A0")]


def test_A13_only_awaitable_summarisers_and_only_callable_ones() -> None:
    class Awaited(dspy.Module):
        async def aforward(self, conversation: str) -> Any:
            return dspy.Prediction(summary="awaited")

    session = held(1)
    with refused(session, CallError, "can only be awaited"):
        session.summarize(Awaited())
    asyncio.run(session.asummarize(Awaited()))
    assert shown(session) == [(SUMMARY, "awaited")]
    session = held(1)
    asyncio.run(session.asummarize(Noted()))
    assert shown(session) == [(SUMMARY, "so far")]


def test_A13_a_sessions_own_summariser_and_the_programs_own_lm() -> None:
    summarizer = Noted()
    session = held(1, summarizer=summarizer)
    session.summarize()
    assert len(summarizer.told) == 1

    own, configured = Model(), Model()
    program = dspy.Predict(QA)
    program.set_lm(own)
    session = sessionify(program)
    session.add_turn({"question": "q"}, {"answer": "a"})
    with dspy.context(lm=configured):
        session.summarize()
    assert (own.summaries, configured.summaries) == (1, 0)


def test_A13_a_summary_over_the_wire() -> None:
    def reply(body: Body) -> str:
        return "[[ ## summary ## ]]\nThey greeted.\n\n[[ ## completed ## ]]"

    with LoopbackServer(reply) as server, dspy.context(lm=server.lm()):
        session = held(1)
        with dspy.track_usage() as tracked:
            session.summarize()
    assert shown(session) == [(SUMMARY, "They greeted.")]
    assert sum(u["prompt_tokens"] for u in tracked.get_total_tokens().values()) > 0


# --- failures -------------------------------------------------------------------------------------


@both_ways
def test_A13_a_failing_summariser_changes_nothing(summarize: Run) -> None:
    session = held(1)
    session.add_turn({"question": "fail"}, {"answer": "a"})
    before = session.state
    with pytest.raises(Exception, match="the model is out"), dspy.context(lm=Model()):
        summarize(session)
    assert session.state is before


@both_ways
@pytest.mark.parametrize("text", [None, "", "  ", 5, ["so far"]])
def test_A13_a_summariser_that_returns_no_text_is_an_error(summarize: Run, text: Any) -> None:
    session = held(2)
    with refused(session, CallError, "must return a prediction with the text of a 'summary'"):
        summarize(session, Noted(text=text))


class Wrong(dspy.Module):
    def forward(self, text: str) -> str:
        return text


@both_ways
@pytest.mark.parametrize(
    ("summarizer", "error", "words"),
    [
        (dspy.Predict("text -> summary"), CallError, "takes the text of the 'conversation'"),
        (Wrong(), CallError, "Wrong has no such input"),
        (dspy.Predict, ModuleTypeError, "The summarizer must be an instance of dspy.Module"),
        ("summarise", ModuleTypeError, "not str"),
        (lambda conversation: conversation, ModuleTypeError, "not function"),
    ],
)
def test_A13_what_cannot_summarise_is_refused_before_anything_happens(
    summarize: Run, summarizer: Any, error: type[SessionError], words: str
) -> None:
    with refused(held(2), error, words), dspy.context(lm=ScriptedLM()):
        summarize(held(2), summarizer)


@both_ways
@pytest.mark.parametrize("keep", [-1, 1.5, "2", True])
def test_A13_how_many_are_kept_is_a_whole_number(summarize: Run, keep: Any) -> None:
    session = held(2)
    with refused(session, OptionError, "keep must be a whole number"):
        summarize(session, Noted(), keep=keep)


def test_A13_a_summariser_of_the_session_is_a_module() -> None:
    with pytest.raises(ModuleTypeError, match="summarizer must be"):
        qa_session(summarizer="summarise")


# --- what happens meanwhile -----------------------------------------------------------------------


@both_ways
def test_A13_turns_that_are_recorded_meanwhile_stay_turns(summarize: Run) -> None:
    session = held(3)
    was = summarize(
        session, Noted(lambda: session.add_turn({"question": "late"}, {"answer": "yes"})), keep=1
    )
    assert shown(session) == [(SUMMARY, "so far"), ("q2", "a2"), ("late", "yes")]
    assert [turn.index for turn in session.turns] == [2, 3]
    assert was.turns[-1].inputs == {"question": "late"}
    assert session.state.earlier == (was,)


def test_A13_turns_that_are_trimmed_meanwhile_are_in_the_summary() -> None:
    session = held(3, max_stored_turns=3)

    def meanwhile() -> None:
        for name in ("x", "y", "z", "w"):
            session.add_turn({"question": name}, {"answer": name})

    session.summarize(Noted(meanwhile))
    assert shown(session) == [(SUMMARY, "so far"), ("y", "y"), ("z", "z"), ("w", "w")]


@both_ways
@pytest.mark.parametrize(
    "change",
    [
        lambda session: session.undo(2),
        lambda session: session.replace_turn(0, {"answer": "other"}),
        lambda session: session.summarize(Noted(text="theirs"), keep=1),
        lambda session: (
            session.undo(3),
            [session.add_turn({"question": f"n{n}"}, {"answer": "n"}) for n in range(3)],
        ),
    ],
)
def test_A13_a_summary_of_what_is_gone_is_made_anew(summarize: Run, change: Any) -> None:
    session = held(3)
    changes = [change]

    def meanwhile() -> None:
        if changes:
            changes.pop()(session)

    summarizer = Noted(meanwhile)
    summarize(session, summarizer)
    assert len(summarizer.told) == 2
    assert summarizer.told[0] != summarizer.told[1]
    assert shown(session) == [(SUMMARY, "so far")]


def test_A13_a_conversation_that_is_cleared_meanwhile_stays_clear() -> None:
    session = held(3)
    summarizer = Noted(session.clear)
    session.summarize(summarizer)
    assert len(summarizer.told) == 1
    assert shown(session) == []
    assert session.state.earlier == ()


def test_A13_a_call_that_began_before_the_summary_is_recorded_after_it() -> None:
    answered, summarised = threading.Event(), threading.Event()

    def reply(prompt: Prompt) -> Mapping[str, Any]:
        answered.set()
        assert summarised.wait(SOON)
        return {"answer": "late"}

    session = held(2)
    slow = session.using(lm=ScriptedLM(reply))
    thread = threading.Thread(target=lambda: slow(question="slow"))
    thread.start()
    assert answered.wait(SOON)
    session.summarize(Noted())
    summarised.set()
    thread.join()
    assert shown(session) == [(SUMMARY, "so far"), ("slow", "late")]
    assert len(session.turns[0].history_snapshot.messages) == 2


def test_A13_a_session_cannot_be_summarised_inside_its_own_turn_or_past_its_lock() -> None:
    sessions: list[Session] = []

    class Inside(dspy.Module):
        def forward(self, question: str) -> Any:
            return sessions[0].summarize(Noted())

    sessions.append(sessionify(Inside()))
    with refused(sessions[0], LockError, "inside its own turn"):
        sessions[0](question="q")
    session = held(1, lock="async")
    with refused(session, LockError, "acall"):
        session.summarize(Noted())
    assert len(asyncio.run(session.asummarize(Noted()))) == 1


# --- by itself ------------------------------------------------------------------------------------


@every_way
def test_A13_a_conversation_past_its_turns_is_summarised_before_the_call(call: Run) -> None:
    lm = Model()
    session = held(3, summarize_after_turns=3, summarize_keep=1)
    with dspy.context(lm=lm):
        call(session, question="x")
        assert lm.summaries == 0
        assert past(lm.prompts[-1])[0] == ("q0", "a0")
        assert call(session, question="y").answer == "answer to y"
    assert lm.summaries == 1
    assert past(lm.prompts[-1]) == [(SUMMARY, "summary 1"), ("x", "answer to x")]
    assert questions(session) == ["x", "y"]
    assert len(session.state.earlier) == 1
    assert "prompt_tokens" in session.turns[-1].usage["scripted"]


@every_way
def test_A13_a_conversation_past_its_tokens_is_summarised_before_the_call(call: Run) -> None:
    lm = Model()
    session = held(3, summarize_after_tokens=8, token_counter=lambda text: len(text.split()))
    with dspy.context(lm=lm):
        call(session, question="x")  # three turns of four words each
    assert past(lm.prompts[-1]) == [(SUMMARY, "summary 1")]
    assert session.token_count() == 10 + 6


@every_way
def test_A13_a_summariser_that_fails_before_a_call_fails_the_call(call: Run) -> None:
    session = held(2, summarize_after_turns=1)
    session.add_turn({"question": "fail"}, {"answer": "a"})
    before = session.state
    with pytest.raises(Exception, match="the model is out"), dspy.context(lm=Model()):
        call(session, question="x")
    assert session.state is before


class Slow(dspy.Module):
    """A summariser that never ends by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()

    async def aforward(self, conversation: str) -> Any:
        self.begun.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("lock", ["none", "async"])
@pytest.mark.parametrize("way", ["asummarize", "acall", "astream"])
def test_A13_a_summary_that_is_given_up_changes_nothing(way: str, lock: str) -> None:
    async def give_up() -> None:
        summarizer = Slow()
        session = held(3, summarize_after_turns=2, summarizer=summarizer, lock=lock)
        before = session.state

        async def go() -> None:
            if way == "asummarize":
                await session.asummarize()
            elif way == "acall":
                await session.acall(question="x")
            else:
                async for _ in session.astream(question="x"):
                    pass

        task = asyncio.create_task(go())
        await summarizer.begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert session.state is before
        assert len(await session.asummarize(Noted())) == 3  # the lock is free again

    with dspy.context(lm=Model()):
        asyncio.run(give_up())


@pytest.mark.parametrize("lock", ["none", "thread", "async"])
def test_A13_every_lock_allows_for_summaries(lock: str) -> None:
    lm = Model()
    ways = {"none": [called, acalled], "thread": [called, streamed], "async": [acalled, astreamed]}
    for call in ways[lock]:
        session = held(3, summarize_after_turns=2, lock=lock)
        with dspy.context(lm=lm):
            call(session, question="x")
        assert questions(session) == ["x"]


def test_A13_a_stream_is_summarised_for_in_the_context_in_which_it_was_asked_for() -> None:
    lm = Model()
    session = held(3, summarize_after_turns=2)
    with dspy.context(lm=lm):
        stream = session.stream(question="x")
    assert lm.prompts == []
    list(stream)
    with dspy.context(lm=lm):
        later = held(3, summarize_after_turns=2)
        awaited_stream = later.astream(question="x")

    async def read() -> None:
        async for _ in awaited_stream:
            pass

    asyncio.run(read())
    assert lm.summaries == 2
    assert (len(session), len(later)) == (1, 1)


def test_A13_calls_that_leave_the_conversation_alone_summarise_nothing() -> None:
    lm = Model()
    session = held(3, summarize_after_turns=1)
    before = session.state
    with dspy.context(lm=lm):
        session(question="x", history=dspy.History(messages=[]))
        session.frozen()(question="x")
        session.batch([dspy.Example(question="x").with_inputs("question")])
        session.ask("What was it?")
        assert session.state is before
        session.regenerate()
    assert lm.summaries == 0
    assert len(session) == 3


def test_A13_a_recorded_question_makes_room_like_a_call() -> None:
    lm = Model()
    session = held(3, summarize_after_turns=2)
    with dspy.context(lm=lm):
        session.ask("What was it?", record=True)
    assert lm.summaries == 1
    assert questions(session) == ["What was it?"]


def test_A13_a_session_inside_a_program_is_summarised_within_the_turn() -> None:
    class Guide(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = held(3, summarize_after_turns=2)

        def forward(self, question: str) -> Any:
            return self.inner(question=question)

    lm = Model()
    program = Guide()
    guide = sessionify(program, copy_mode="none")
    with dspy.context(lm=lm):
        guide(question="x")
    inner = guide.state.nested["inner"]
    assert lm.summaries == 1
    assert (len(inner), len(inner.earlier)) == (1, 1)
    guide.undo()
    assert len(program.inner) == 3
    assert guide.state.nested == {}


def test_A13_overlapping_calls_summarise_and_lose_nothing() -> None:
    lm = Model()
    session = held(10, summarize_after_turns=8, summarize_keep=2)

    async def talk() -> None:
        await asyncio.gather(*(session.acall(question=f"x{n}") for n in range(12)))

    with dspy.context(lm=lm):
        asyncio.run(talk())
    everything = [*session.state.earlier, session.state]
    seen = {turn.inputs["question"] for state in everything for turn in state.turns}
    assert seen == {f"q{n}" for n in range(10)} | {f"x{n}" for n in range(12)}


def test_A13_hundreds_of_turns_keep_prompts_short_and_nothing_is_lost(tmp_path: Path) -> None:
    lm = Model()
    session = qa_session(summarize_after_turns=20, summarize_keep=5)
    with dspy.context(lm=lm):
        for number in range(300):
            session(question=f"x{number}")
            assert len(lm.prompts[-1]) <= 2 + 2 * 21
    assert lm.summaries == len(session.state.earlier) == (300 - 5) // 16
    session.save(tmp_path / "long.json")
    loaded = Session.load_from(tmp_path / "long.json", dspy.Predict(QA))
    assert loaded.state == session.state
    for each in (session, loaded):
        chain = [*each.state.earlier, each.state]
        indices = sorted({turn.index for state in chain for turn in state.turns})
        assert indices == list(range(300))
    first = Session.from_state(loaded.state.earlier[0], dspy.Predict(QA))
    assert questions(first) == [f"x{number}" for number in range(21)]
    with dspy.context(lm=lm):
        first(question="back again")
    assert past(lm.prompts[-1])[0] == ("x0", "answer to x0")


def test_A13_a_token_limit_keeps_the_count_below_it() -> None:
    lm = Model()
    session = qa_session(summarize_after_tokens=300, summarize_keep=2)
    with dspy.context(lm=lm):
        for number in range(60):
            session(question=f"x{number} " + "word " * 20)
            counted = session.token_count()
            assert counted < 300 + 100
    assert lm.summaries > 3


# --- for servers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("awaits", [False, True])
def test_A13_states_are_summarised_without_a_session(awaits: bool) -> None:
    lm, program = Model(), dspy.Predict(QA)
    options = SessionOptions(summarize_after_turns=2, summarize_keep=1, exclude_fields={"secret"})
    state = SessionState()
    with dspy.context(lm=lm):
        for number in range(5):
            if summary_due(state, options):
                before = state
                state = (
                    asyncio.run(asummarize_state(state, program, options))
                    if awaits
                    else summarize_state(state, program, options)
                )
                assert state.earlier[-1].turns == before.turns
            _, state = step(state, program, {"question": f"x{number}"}, options)
    assert lm.summaries == 1
    assert [turn.inputs["question"] for turn in state.turns] == ["x2", "x3", "x4"]
    assert summarize_state(state, program, keep=3) is state
    shorter = summarize_state(state, program, summarizer=Noted(), keep=0)
    assert (len(shorter), len(shorter.earlier)) == (0, 2)


def test_A13_bad_input_of_servers_is_refused() -> None:
    program, state = dspy.Predict(QA), held(2).state
    for arguments, error in [
        ((None, program), CallError),
        ((state, "program"), ModuleTypeError),
        ((state, program, {"max_turns": 3}), CallError),
    ]:
        with pytest.raises(error):
            summarize_state(*arguments)  # type: ignore[arg-type]
        with pytest.raises(error):
            asyncio.run(asummarize_state(*arguments))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="out"):
        summarize_state(state, program, summarizer=Noted(_out))
    assert len(state) == 2


def _out() -> None:
    raise ValueError("out")


def test_A13_a_plan_that_comes_too_late_says_so() -> None:
    session = held(3)
    plan = plan_summary(session.state, dspy.Predict(QA), SessionOptions())
    assert plan is not None
    assert plan.put_into(start([{"question": "x", "answer": "y"}]), "text") is None


# --- C4: the newest n -----------------------------------------------------------------------------


def test_C4_truncate_keeps_the_newest_turns_and_their_indices() -> None:
    session = held(10, data={"cart": 1})
    before = session.turns
    session.truncate(3)
    assert session.turns == before[-3:]
    assert [turn.index for turn in session.turns] == [7, 8, 9]
    assert shown(session) == [("q7", "a7"), ("q8", "a8"), ("q9", "a9")]
    assert session.data.to_dict() == {"cart": 1}
    session.truncate(5)
    assert len(session) == 3
    session.add_turn({"question": "next"}, {"answer": "a"})
    assert session.turns[-1].index == 10
    session.truncate(0)
    assert len(session) == 0
    assert session.turns[-3:] == ()


@pytest.mark.parametrize("keep", [-1, 1.5, "3", True])
def test_C4_how_many_turns_are_kept_is_a_whole_number(keep: Any) -> None:
    with refused(session := held(3), OptionError, "whole number"):
        session.truncate(keep)
    assert len(session) == 3
