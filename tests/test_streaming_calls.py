"""How a stream is asked for: fields, words, settings, locks, contexts, and the pure form."""

import asyncio
import threading
from typing import Any

import dspy
import msgspec
import pytest
from dspy.streaming import StatusMessageProvider

from dspy_session import (
    CallError,
    LockError,
    SessionOptions,
    SessionState,
    StatusEvent,
    TextEvent,
    Turn,
    TurnEvent,
    astream_step,
    sessionify,
    step,
    stream_step,
)
from tests.streams import (
    SOON,
    Read,
    Team,
    agent_answers,
    answers_team,
    both_ways,
    finished,
    look_up,
    read_sync,
    serving,
    spoken,
)
from tests.talk import QA, history, past, qa_session, questions, refused, scripted

# --- what to hear ---------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(
    ("chosen", "heard"),
    [
        (["answer"], ["planner answer", "workers[0] answer", "workers[1].predict answer"]),
        (["workers[1].predict.reasoning"], ["workers[1].predict reasoning"]),
        (
            ["planner.answer", "reasoning"],
            ["planner answer", "workers[1].predict reasoning"],
        ),
        ([], []),
    ],
)
def test_A5_fields_can_be_chosen(read: Read, chosen: list[str], heard: list[str]) -> None:
    with serving(answers_team) as server:
        session = sessionify(Team())
        events = read(session.using(stream_fields=chosen), question="one")
    assert [f"{predictor} {field}" for _, predictor, field in spoken(events)] == heard
    streamed = ["stream" in request.body for request in server.received]
    assert sum(streamed) == len({each.partition(" ")[0] for each in heard})
    assert len(session) == 1


@pytest.mark.parametrize("chosen", [["nonsense"], ["steps"], ["planner.reasoning"], ["question"]])
def test_A5_an_unknown_field_is_refused_before_anything_runs(chosen: list[str]) -> None:
    session = sessionify(Team())
    for way in ("stream", "astream"):
        with refused(session, CallError, chosen[0], "planner.answer", "workers[0].answer"):
            getattr(session.using(stream_fields=chosen), way)(question="one")
    with pytest.raises(CallError, match="text output"):
        stream_step(SessionState(), Team(), {"question": "one"}, stream_fields=chosen)


def test_A5_settings_of_a_wrong_type_are_refused() -> None:
    session = qa_session()
    with refused(session, CallError, "stream_fields", "'answer'"):
        session.using(stream_fields="answer")
    with refused(session, CallError, "stream_fields"):
        session.using(stream_fields=[1])  # type: ignore[list-item]
    with refused(session, CallError, "status_messages", "function"):
        session.using(status_messages=lambda: "no")  # type: ignore[arg-type]


class Wordy(StatusMessageProvider):
    """Says everything there is to say."""

    def module_start_status_message(self, instance: Any, inputs: dict[str, Any]) -> str:
        return f"begin {type(instance).__name__}"

    def module_end_status_message(self, outputs: Any) -> str:
        return "end"

    def lm_start_status_message(self, instance: Any, inputs: dict[str, Any]) -> str:
        return "ask"

    def lm_end_status_message(self, outputs: Any) -> str:
        return "answered"

    def tool_start_status_message(self, instance: Any, inputs: dict[str, Any]) -> str:
        return f"use {instance.name}"

    def tool_end_status_message(self, outputs: Any) -> str:
        return f"got {outputs}"


@both_ways
def test_A5_a_provider_words_the_status_messages(read: Read) -> None:
    with serving():
        events = read(qa_session().using(status_messages=Wordy()), question="one")
    messages = [event.message for event in events if isinstance(event, StatusEvent)]
    assert messages == ["begin Session", "begin Predict", "ask", "answered", "end", "end"]
    with serving(agent_answers):
        session = sessionify(dspy.ReAct(QA, tools=[look_up]))
        events = read(session.using(status_messages=Wordy(), stream_fields=[]), question="one")
    messages = [event.message for event in events if isinstance(event, StatusEvent)]
    assert [each for each in messages if each.startswith(("use", "got"))] == [
        "use look_up",
        "got fjord is blue",
        "use look_up",
        "got None",
    ]


@both_ways
def test_A4_settings_of_one_call_hold_for_a_stream(read: Read) -> None:
    with serving() as server:
        session = qa_session()
        call = session.using(lm=server.lm("other"), config={"temperature": 0.2}, request_id="r-1")
        read(call, question="one")
        read(session, question="two", config={"temperature": 0.4})
    assert [(r.model, r.body["temperature"]) for r in server.received] == [
        ("other", 0.2),
        ("scripted", 0.4),
    ]
    assert [turn.request_id for turn in session.turns] == ["r-1", None]


@both_ways
def test_D17_an_explicit_history_streams_and_is_not_recorded(read: Read) -> None:
    session = qa_session()
    with serving() as server:
        end = finished(read(session, question="two", history=history("one")))
    assert end.turn is None
    assert end.state is session.state
    assert len(session) == 0
    assert past(server.received[0].messages) == [("one", "answer to one")]


def test_A5_events_are_frozen_values() -> None:
    event = TextEvent("self", "answer", "Hi")
    with pytest.raises(AttributeError):
        event.text = "Ho"  # type: ignore[misc]
    assert event == TextEvent("self", "answer", "Hi", last=False, call=0)
    assert msgspec.json.decode(msgspec.json.encode(event))["text"] == "Hi"
    assert hash(StatusEvent("a")) == hash(StatusEvent("a"))


# --- where it runs --------------------------------------------------------------------------------


def test_A5_a_sync_stream_works_where_an_event_loop_runs() -> None:
    async def notebook() -> list[Any]:
        return list(session.stream(question="one"))

    session = qa_session()
    with serving():
        events = asyncio.run(notebook())
    assert finished(events).turn is session.turns[0]


@both_ways
def test_A5_a_stream_runs_under_the_settings_it_was_asked_for_under(read: Read) -> None:
    session = qa_session()
    if read is read_sync:
        with serving():
            events = session.stream(question="one")
            first = next(events)
        assert isinstance(first, TextEvent)
        assert len(list(events)) > 1
    else:

        async def later() -> None:
            lm = scripted()
            with dspy.context(lm=lm):
                events = session.astream(question="one")
            with dspy.context(lm=None):
                assert [event async for event in events]

        asyncio.run(later())
    assert len(session) == 1


@both_ways
def test_A5_nothing_of_the_turn_shows_in_the_readers_context(read: Read) -> None:
    def settings() -> dict[str, Any]:
        return {
            name: dspy.settings.get(name)
            for name in ("adapter", "callbacks", "send_stream", "caller_modules", "usage_tracker")
        }

    seen = []
    session = qa_session()
    with serving():
        before = settings()
        if read is read_sync:
            for _ in session.stream(question="one"):
                seen.append(settings())
                finished(read_sync(session.fork(), question="within"))
        else:

            async def watch() -> None:
                async for _ in session.astream(question="one"):
                    seen.append(settings())
                    await session.fork().acall(question="within")

            asyncio.run(watch())
        assert settings() == before
    assert seen == [before] * len(seen)
    assert len(session) == 1


@both_ways
def test_A5_overlapping_streams_lose_nothing(read: Read) -> None:
    session = qa_session()
    with serving():
        if read is read_sync:
            streams = [session.stream(question=question) for question in "abc"]
            for events in zip(*streams, strict=True):
                assert len({type(event) for event in events}) == 1
        else:

            async def watch(question: str) -> None:
                async for _ in session.astream(question=question):
                    await asyncio.sleep(0)

            async def all_three() -> None:
                await asyncio.gather(*map(watch, "abc"))

            asyncio.run(all_three())
    assert sorted(questions(session)) == ["a", "b", "c"]
    assert all(turn.history_snapshot.messages == [] for turn in session.turns)


def test_A5_more_sync_streams_than_dspy_has_workers_for() -> None:
    number = 2 * dspy.settings.async_max_workers
    meeting = threading.Barrier(number)

    class Meets(dspy.Module):
        def forward(self, question: str) -> Any:
            meeting.wait(SOON)
            return question

    session = sessionify(Meets())
    threads = [
        threading.Thread(target=list, args=(session.stream(question=str(n)),))
        for n in range(number)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert sorted(map(int, questions(session))) == list(range(number))


# --- locks ----------------------------------------------------------------------------------------


def test_D16_a_lock_holds_until_a_stream_is_read() -> None:
    session = qa_session(lock="thread")
    done = threading.Event()

    def call() -> None:
        with dspy.context(lm=scripted()):
            session(question="second")
        done.set()

    with serving():
        events = session.stream(question="first")
        next(events)
        thread = threading.Thread(target=call)
        thread.start()
        for event in events:
            if isinstance(event, TurnEvent):
                assert done.wait(SOON)  # released before the last event is handed over
            else:
                assert len(session) == 0
        thread.join(SOON)
    assert questions(session) == ["first", "second"]
    assert session.turns[1].history_snapshot.messages[0]["question"] == "first"


def test_D16_a_reader_that_would_wait_for_itself_is_refused() -> None:
    session = qa_session(lock="thread")
    with serving():
        events = session.stream(question="first")
        next(events)
        for again in (lambda: session(question="no"), lambda: next(session.stream(question="no"))):
            with refused(session, LockError, "stream that is being read", "fork()"):
                again()
        assert session.fork()(question="yes").answer
        assert finished(list(events)).turn is session.turns[0]
        session(question="second")
    assert questions(session) == ["first", "second"]


def test_D16_a_task_that_would_wait_for_itself_is_refused() -> None:
    session = qa_session(lock="async")

    async def read() -> None:
        events = session.astream(question="first")
        await anext(events)
        with refused(session, LockError, "stream that is being read"):
            await session.acall(question="no")
        second = asyncio.create_task(session.acall(question="second"))
        assert finished([event async for event in events]).turn is session.turns[0]
        await second

    with serving():
        asyncio.run(read())
    assert questions(session) == ["first", "second"]


@pytest.mark.parametrize(("lock", "way"), [("thread", "astream"), ("async", "stream")])
def test_D16_a_stream_of_the_wrong_kind_is_refused(lock: str, way: str) -> None:
    session = qa_session(lock=lock)
    with refused(session, LockError, f"lock={lock!r}"):
        getattr(session, way)(question="one")


@both_ways
def test_D16_a_session_is_not_streamed_inside_its_own_turn(read: Read) -> None:
    class Calls(dspy.Module):
        def forward(self, question: str) -> Any:
            return list(session.stream(question=question))

    session = sessionify(Calls(), copy_mode="none")
    with refused(session, LockError, "inside its own turn"):
        read(session, question="one")


def test_A5_inputs_come_by_keyword() -> None:
    session = qa_session()
    for way in (session.stream, session.astream, session.using().stream, session.using().astream):
        with refused(session, CallError, "keyword"):
            way("one")


# --- the pure form --------------------------------------------------------------------------------


def test_D23_a_streamed_step_ends_with_the_new_state() -> None:
    program, options = dspy.ChainOfThought(QA), SessionOptions(max_turns=1)
    with serving() as server:
        _, first = step(SessionState(), program, {"question": "one"}, options)
        events = list(stream_step(first, program, {"question": "two"}, options))
    end = finished(events)
    assert (len(first), len(end.state)) == (1, 2)
    assert isinstance(end.turn, Turn)
    assert end.turn is end.state.turns[1]
    assert end.turn.outputs["answer"] == spoken(events)[0, "predict", "answer"]
    assert "one" in str(server.received[1].messages)


def test_D23_a_streamed_step_in_async_code() -> None:
    async def read() -> list[Any]:
        stream = astream_step(
            SessionState(),
            dspy.Predict(QA),
            {"question": "one"},
            config={"temperature": 0.7},
            stream_fields=["answer"],
            status_messages=Wordy(),
        )
        return [event async for event in stream]

    with serving() as server:
        events = asyncio.run(read())
    assert len(finished(events).state) == 1
    assert spoken(events) == {(0, "self", "answer"): "the answer to one"}
    assert StatusEvent("ask") in events
    assert server.received[0].body["temperature"] == 0.7


def test_D23_bad_arguments_of_a_streamed_step_are_refused_at_once() -> None:
    program, inputs = dspy.Predict(QA), {"question": "one"}
    for way in (stream_step, astream_step):
        with pytest.raises(CallError, match="SessionState"):
            way({}, program, inputs)  # type: ignore[arg-type]
        with pytest.raises(CallError, match="lm="):
            way(SessionState(), program, inputs, lm="gpt")  # type: ignore[arg-type]
