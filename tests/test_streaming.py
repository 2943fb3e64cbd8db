"""A streamed turn: text as it arrives, from every kind of program, and one recorded turn."""

import asyncio
from dataclasses import replace
from typing import Any

import dspy
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter
from dspy.lm15 import Message, Request, Response, ThinkingPart

from dspy_session import (
    StatusEvent,
    TextEvent,
    TurnEvent,
    sessionify,
)
from dspy_session.program.adapter import wrap_adapter
from dspy_session.testing import ScriptedEngine, ScriptedLM
from tests.streams import (
    Judge,
    Read,
    Team,
    agent_answers,
    answers_team,
    both_ways,
    decides,
    finished,
    first_text,
    held,
    look_up,
    read_async,
    read_sync,
    serving,
    spoken,
)
from tests.talk import QA, Asker, qa_session, questions, scripted

# --- as they arrive -------------------------------------------------------------------------------


def test_A5_text_is_handed_over_while_the_server_is_still_sending() -> None:
    with held() as gate:
        session = qa_session()
        events = session.stream(question="one")
        gate.let(6)  # "[[ ## answer ## ]]\n" are five words, then comes "the "
        assert next(events) == TextEvent("self", "answer", "the")
        assert gate.sent == 6
        gate.let()
        assert next(events) == TextEvent("self", "answer", " answer")
        assert gate.sent == 7
        assert len(session) == 0
        gate.open()
        *_, end = events
    assert isinstance(end, TurnEvent)
    assert end.prediction.answer == "the answer to one"


def test_A5_text_is_handed_over_to_async_code_while_the_server_is_still_sending() -> None:
    async def read(session: Any, gate: Any) -> None:
        events = session.astream(question="one")
        gate.let(6)
        assert (await first_text(events)).text == "the"
        assert gate.sent == 6
        gate.let()
        assert (await first_text(events)).text == " answer"
        assert gate.sent == 7
        assert len(session) == 0
        gate.open()
        *_, end = [event async for event in events]
        assert isinstance(end, TurnEvent)

    with held() as gate:
        asyncio.run(read(qa_session(), gate))


@both_ways
@pytest.mark.parametrize(
    "adapter", [None, dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter(), BAMLAdapter()]
)
def test_A5_the_texts_of_a_field_are_its_value(read: Read, adapter: Any) -> None:
    with serving(adapter=adapter) as server:
        session = sessionify(dspy.ChainOfThought(QA))
        read(session, question="one")
        events = read(session, question="two")
    end = finished(events)
    assert len(server.received) == 2
    assert all(request.body["stream"] for request in server.received)
    assert "one" in str(server.received[1].messages)
    assert spoken(events) == {
        (0, "predict", "reasoning"): str(end.prediction.reasoning),
        (0, "predict", "answer"): end.prediction.answer,
    }
    assert len([event for event in events if isinstance(event, TextEvent)]) > 6
    assert questions(session) == ["one", "two"]


@both_ways
def test_A5_the_turn_is_recorded_once_after_the_end_and_before_the_last_event(read: Read) -> None:
    heard: list[tuple[int, list[str]]] = []
    session = qa_session(on_turn=lambda session, turn: heard.append((turn.index, texts[:])))
    texts: list[str] = []

    def look(event: Any) -> None:
        if isinstance(event, TextEvent):
            assert session.state is before
            texts.append(event.text)
        else:
            assert len(session) == 1
            assert event.turn is session.turns[0]
            assert event.state is session.state
            assert heard == [(0, texts)]

    before = session.state
    with serving():
        if read is read_sync:
            for event in session.stream(question="one"):
                look(event)
        else:

            async def watch() -> None:
                async for event in session.astream(question="one"):
                    look(event)

            asyncio.run(watch())
    (turn,) = session.turns
    assert turn.outputs == {"answer": "the answer to one"}
    assert "".join(texts) == "the answer to one"
    assert session.attempts == ()


@both_ways
def test_A5_a_streamed_turn_is_as_a_called_one(read: Read) -> None:
    with serving() as server:
        called, streamed = qa_session(), qa_session()
        for question in ("one", "two"):
            called(question=question)
            read(streamed, question=question)
        prompts = [request.messages for request in server.received]
    assert prompts[::2] == prompts[1::2]
    assert called.session_history == streamed.session_history
    for turn, twin in zip(called.turns, streamed.turns, strict=True):
        assert (turn.inputs, turn.outputs) == (twin.inputs, twin.outputs)
        assert turn.fingerprint == twin.fingerprint
        assert turn.usage.keys() == twin.usage.keys()
        assert twin.duration is not None


# --- every kind of program ------------------------------------------------------------------------


@both_ways
def test_A5_events_say_which_predictor_and_which_call_they_are_of(read: Read) -> None:
    with serving(answers_team):
        events = read(sessionify(Team()), question="one")
    assert list(spoken(events).items()) == [
        ((0, "planner", "answer"), "it is blue"),
        ((1, "workers[0]", "answer"), "it is blue"),
        ((2, "workers[1].predict", "reasoning"), "I know"),
        ((2, "workers[1].predict", "answer"), "it is blue"),
    ]
    assert finished(events).prediction.answer == "it is blue"


@both_ways
def test_A5_a_compiled_program_streams(read: Read) -> None:
    program = dspy.ChainOfThought(QA)
    program._compiled = True
    with serving():
        events = read(sessionify(program), question="one")
    assert spoken(events)[0, "predict", "answer"] == "the answer to one"


@both_ways
def test_A5_an_agent_streams_thoughts_and_says_which_tools_it_uses(read: Read) -> None:
    with serving(agent_answers):
        session = sessionify(dspy.ReAct(QA, tools=[look_up]))
        events = read(session, question="one")
    assert list(spoken(events).items()) == [
        ((0, "react", "next_thought"), "I look for fjord."),
        ((1, "react", "next_thought"), "I look for nothing."),
        ((2, "react", "next_thought"), "Enough."),
        ((3, "extract.predict", "reasoning"), "It says so."),
        ((3, "extract.predict", "answer"), "Blue."),
    ]
    messages = [event.message for event in events if isinstance(event, StatusEvent)]
    done = "Tool calling finished! Querying the LLM with tool calling results..."
    assert messages == ["Calling tool look_up...", done] * 2
    calls = [event.call if isinstance(event, TextEvent) else None for event in events[:-1]]
    assert [a for a, b in zip(calls, [*calls[1:], None], strict=True) if a != b][:3] == [
        0,
        None,
        1,
    ]  # a status stands between the calls
    assert session.turns[0].outputs["answer"] == "Blue."


def test_A5_two_calls_side_by_side_are_told_apart() -> None:
    class Both(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        async def aforward(self, question: str) -> Any:
            asked = [f"{question} {n}" for n in range(4)]
            done = await asyncio.gather(*(self.qa.acall(question=q) for q in asked))
            return dspy.Prediction(answer=" ".join(each.answer for each in done))

    with serving():
        events = read_async(sessionify(Both()), question="q")
    assert sorted(spoken(events).values()) == [f"the answer to q {n}" for n in range(4)]


@both_ways
def test_A5_a_plain_return_is_wrapped_for_the_stream_and_recorded_as_ever(read: Read) -> None:
    session = sessionify(Asker())
    with serving():
        end = finished(read(session, question="one"))
    assert isinstance(end.prediction, dspy.Prediction)
    assert end.prediction.output == "the answer to one"
    assert session.turns[0].outputs == {"output": "the answer to one"}


@both_ways
def test_A5_an_example_is_wrapped_too(read: Read) -> None:
    class Exemplary(dspy.Module):
        def forward(self, question: str) -> Any:
            return dspy.Example(answer=question)

    session = sessionify(Exemplary())
    end = finished(read(session, question="one"))
    assert isinstance(end.prediction, dspy.Prediction)
    assert end.prediction.answer == "one"
    assert session.turns[0].outputs == {"answer": "one"}


def test_A5_threads_of_parallel_speak_when_their_call_is_over() -> None:
    class Many(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            asked = [dspy.Example(question=f"{question} {n}").with_inputs("question") for n in "ab"]
            run = dspy.Parallel(num_threads=2, disable_progress_bar=True)
            return " ".join(each.answer for each in run([(self.qa, one) for one in asked]))

    session = sessionify(Many())
    with serving():
        events = read_sync(session, question="q")
    assert sorted(spoken(events).values()) == ["the answer to q a", "the answer to q b"]
    assert session.turns[0].outputs == {"output": "the answer to q a the answer to q b"}


@both_ways
def test_A5_attempts_that_may_be_thrown_away_are_not_streamed(read: Read) -> None:
    program = dspy.BestOfN(dspy.Predict(QA), N=2, reward_fn=lambda *_: 0.0, threshold=1.0)
    session = sessionify(program)
    with serving() as server:
        events = read(session, question="one")
    assert len(server.received) == 2
    assert len(events) == 1
    assert finished(events).prediction.answer == "the answer to one"


# --- every kind of answer -------------------------------------------------------------------------


class Shouting(dspy.ChatAdapter):
    """Parses in its own way, so nothing is known of a text before the end."""

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        return {name: text.upper() for name, text in super().parse(signature, completion).items()}


@both_ways
def test_A5_text_in_an_unknown_format_comes_when_the_call_is_over(read: Read) -> None:
    with serving(adapter=Shouting()):
        events = read(qa_session(), question="one")
    assert events[0] == TextEvent("self", "answer", "THE ANSWER TO ONE", last=True)
    assert len(events) == 2


@both_ways
def test_A5_the_free_text_of_a_two_step_adapter_is_no_field(read: Read) -> None:
    lm = ScriptedLM(lambda prompt: {"answer": "Blue."} if "answer ##" in str(prompt) else "It is.")
    with dspy.context(lm=lm, adapter=dspy.TwoStepAdapter(lm)):
        events = read(qa_session(), question="one")
    assert events[0] == TextEvent("self", "answer", "Blue.", last=True)
    assert len(lm.prompts) == 2


@both_ways
def test_A5_a_cached_answer_is_told_as_a_whole(read: Read, tmp_path: Any) -> None:
    before = dspy.cache
    dspy.configure_cache(disk_cache_dir=str(tmp_path), enable_disk_cache=False)
    try:
        with serving() as server:
            lm = dspy.LM("openai/scripted", api_base=server.url, api_key="none", cache=True)
            with dspy.context(lm=lm):
                live, cached = [read(qa_session(), question="one") for _ in range(2)]
    finally:
        dspy.cache = before
    assert len(server.received) == 1
    assert spoken(live) == spoken(cached) == {(0, "self", "answer"): "the answer to one"}
    assert cached[0] == TextEvent("self", "answer", "the answer to one", last=True)


@both_ways
def test_A5_an_answer_that_comes_in_one_piece_is_told(read: Read) -> None:
    with dspy.context(lm=scripted()):
        events = read(qa_session(), question="one")
    assert spoken(events) == {(0, "self", "answer"): "answer to one"}


@both_ways
def test_A5_a_decision_comes_with_the_turn_and_the_text_beside_it_streams(read: Read) -> None:
    """DSPy's own `streamify` refuses programs that make decisions."""
    with serving(decides):
        events = read(sessionify(dspy.Predict(Judge)), question="one")
    assert spoken(events) == {(0, "self", "why"): "I saw it."}
    assert len(events) > 3
    assert finished(events).prediction.sure.value is True


@both_ways
def test_A5_of_several_completions_the_first_is_told(read: Read) -> None:
    said = iter(["the first", "the second"])
    with serving(lambda body: f"[[ ## answer ## ]]\n{next(said)}") as server:
        events = read(sessionify(dspy.Predict(QA, n=2)), question="one")
    assert len(server.received) == 2
    assert spoken(events) == {(0, "self", "answer"): "the first"}
    assert finished(events).prediction.completions.answer == ["the first", "the second"]


class Delegating(dspy.ChatAdapter):
    """Lets another adapter make the call."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self.other = other

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.other(*args, **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        return await self.other.acall(*args, **kwargs)


@both_ways
def test_A5_a_call_that_passes_through_two_adapters_is_told_once(read: Read) -> None:
    inner = wrap_adapter(dspy.JSONAdapter())
    with serving(lambda body: '{"answer": "blue"}', adapter=Delegating(inner)):
        events = read(qa_session(), question="one")
    assert spoken(events) == {(0, "self", "answer"): "blue"}


class OwnAdapter(dspy.Module):
    """Sets an adapter inside its `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(QA)

    def forward(self, question: str) -> Any:
        with dspy.context(adapter=dspy.JSONAdapter()):
            return self.qa(question=question)


@both_ways
def test_A5_an_adapter_set_inside_forward_is_the_one_that_is_read(read: Read) -> None:
    with serving(lambda body: '{"answer": "it is\\nblue"}'):
        events = read(sessionify(OwnAdapter()), question="one")
    assert spoken(events) == {(0, "qa", "answer"): "it is\nblue"}
    assert len(events) == 4


def test_A5_a_predictor_called_on_the_loop_itself_speaks_when_its_call_is_over() -> None:
    class Blocks(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        async def aforward(self, question: str) -> Any:
            return self.qa(question=question)

    with serving():
        first, last = read_async(sessionify(Blocks()), question="one")
    assert first == TextEvent("qa", "answer", "the answer to one", last=True)
    assert isinstance(last, TurnEvent)


@both_ways
def test_A5_dspy_falls_back_to_json_where_no_text_was_to_be_shown(read: Read) -> None:
    session = qa_session()
    with serving(lambda body: '{"answer": "blue"}') as server:
        with pytest.raises(Exception, match="failed to parse"):
            read(session, question="one")
        assert len(server.received) == 1
        events = read(session.using(stream_fields=[]), question="one")
    assert len(server.received) == 3
    assert finished(events).prediction.answer == "blue"


class Thought(dspy.Signature):
    """Think, then answer."""

    question: str = dspy.InputField()
    reasoning: dspy.Reasoning = dspy.OutputField()
    answer: str = dspy.OutputField()


class Thinker(ScriptedEngine):
    """A model that thinks beside what it says."""

    supports_reasoning = True

    def complete(self, request: Request) -> Response:
        said = super().complete(request)
        thought = ThinkingPart("Water is blue.")
        return replace(said, message=Message.assistant([thought, *said.message.parts]))


@pytest.mark.parametrize("native", [True, False])
def test_A5_what_a_model_thinks_beside_its_answer_is_its_reasoning(native: bool) -> None:
    fields = {"answer": "Blue."} if native else {"reasoning": "I say so.", "answer": "Blue."}
    engine = Thinker(lambda prompt: fields)
    engine.supports_reasoning = native
    session = sessionify(dspy.Predict(Thought))
    with dspy.context(lm=dspy.LM("thinker", engine=engine, cache=False)):
        events = read_sync(session, question="one")
    assert spoken(events) == {
        (0, "self", "reasoning"): "Water is blue.",
        (0, "self", "answer"): "Blue.",
    }
    assert str(finished(events).prediction.reasoning) == "Water is blue."
    assert events[0] == TextEvent("self", "reasoning", "Water is blue.")
