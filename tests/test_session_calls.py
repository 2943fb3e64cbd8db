"""Calls with settings of their own, calls asked again, and calls that ended without a turn."""

import asyncio
import contextvars
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from dspy_session import CallError, OptionError, Session, TurnIndexError, sessionify
from dspy_session.testing import ScriptedLM
from tests.loopback import Body, LoopbackServer
from tests.talk import QA, Asker, ask, pairs, past, qa_session, questions, refused, scripted, shown

Ask = Callable[..., Any]


class Bare(dspy.Module):
    """A program whose `forward` has no parameter for any setting."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = dspy.Predict(QA), dspy.Predict(QA)

    def forward(self, question: str) -> Any:
        return self.second(question=self.first(question=question).answer)


class Configured(dspy.Module):
    """A program with inputs that are called like the settings."""

    def __init__(self) -> None:
        super().__init__()
        self.say = dspy.Predict(QA)

    def forward(self, question: str, config: str, lm: str) -> Any:
        return self.say(question=f"{question} {config} {lm}")


def plainly(call: Any, **inputs: Any) -> Any:
    return call(**inputs)


def awaited(call: Any, **inputs: Any) -> Any:
    return asyncio.run(call.acall(**inputs))


both_ways = pytest.mark.parametrize("run", [plainly, awaited])


def say_hi(_: Body) -> str:
    return "[[ ## answer ## ]]\nhi"


# --- settings of one call -------------------------------------------------------------------------


@both_ways
def test_A4_settings_reach_every_lm_call_though_forward_has_no_parameter_for_them(run: Ask) -> None:
    with LoopbackServer(say_hi) as server, dspy.context(lm=server.lm()):
        session = sessionify(Bare())
        run(session.using(config={"temperature": 0.25, "max_tokens": 7}), question="one")
        run(session, question="two", config={"temperature": 0.5})
        run(session, question="three")
    sent = [
        (r.body.get("temperature"), r.body.get("max_completion_tokens", r.body.get("max_tokens")))
        for r in server.received
    ]
    assert sent == [(0.25, 7)] * 2 + [(0.5, None)] * 2 + [(None, None)] * 2
    assert questions(session) == ["one", "two", "three"]


@both_ways
def test_A4_an_lm_of_one_call_answers_all_of_it_and_nothing_after_it(run: Ask) -> None:
    with LoopbackServer(say_hi) as server, dspy.context(lm=server.lm("usual")):
        session = sessionify(Bare())
        session.set_lm(server.lm("set"))
        run(session.using(lm=server.lm("other")), question="one")
        run(session, question="two", lm=server.lm("another"))
        run(session, question="three")
    models = [request.model for request in server.received]
    assert models == ["other"] * 2 + ["another"] * 2 + ["set"] * 2


def test_A4_what_the_call_says_beats_what_using_said() -> None:
    with LoopbackServer(say_hi) as server, dspy.context(lm=server.lm()):
        call = qa_session().using(config={"temperature": 0.25, "max_tokens": 7})
        call(question="one", config={"temperature": 0.5})
        call(question="two")
    sent = [
        (r.body.get("temperature"), r.body.get("max_completion_tokens", r.body.get("max_tokens")))
        for r in server.received
    ]
    assert sent == [(0.5, 7), (0.25, 7)]


def test_A4_inputs_that_are_named_like_settings_stay_inputs() -> None:
    with LoopbackServer(say_hi) as server, dspy.context(lm=server.lm()):
        session = sessionify(Configured())
        session.using(config={"temperature": 0.25})(question="one", config="dark", lm="moon")
    assert session.turns[0].inputs == {"question": "one", "config": "dark", "lm": "moon"}
    assert server.received[0].body["temperature"] == 0.25
    assert "dark" in server.received[0].messages[-1]["content"]


def test_A4_wrong_settings_are_refused_before_anything_runs() -> None:
    session = qa_session()
    wrong: list[dict[str, Any]] = [
        {"lm": "gpt"},
        {"config": ["temperature"]},
        *({"request_id": id} for id in (7, "", "r\ud800")),
    ]
    for setting in wrong:
        (name,) = setting
        with refused(session, CallError, f"{name}="):
            session.using(**setting)
    with pytest.raises(TypeError, match="temperature"):
        session.using(temperature=0.2)  # type: ignore[call-arg]
    with refused(session, CallError, "positional"):
        session.using()("Hi")


@both_ways
def test_X13_a_request_id_stays_on_the_turn_and_in_its_file(run: Ask) -> None:
    session = qa_session()
    with dspy.context(lm=scripted()):
        run(session.using(request_id="r-1"), question="one")
        run(session, question="two")
    again = Session.load_from(session.save_state(), dspy.Predict(QA))
    for kept in (session, again):
        assert [turn.request_id for turn in kept.turns] == ["r-1", None]


# --- asking again ---------------------------------------------------------------------------------


def cached_lm(server: LoopbackServer) -> dspy.LM:
    lm = dspy.LM("openai/cached", api_base=server.url, api_key="none", cache=True)
    lm.kwargs["user"] = uuid.uuid4().hex  # so that no other run's cached answer can come
    return lm


@both_ways
def test_A4_regenerate_asks_the_model_though_the_answer_is_cached(run: Ask) -> None:
    answers = iter(["first", "second", "third"])
    with LoopbackServer(lambda _: f"[[ ## answer ## ]]\n{next(answers)}") as server:
        session = qa_session()
        with dspy.context(lm=cached_lm(server)):
            session(question="one")
            session.undo()
            assert session(question="one").answer == "first"  # that is what a cache does
            again = {
                plainly: session.regenerate,
                awaited: lambda: asyncio.run(session.aregenerate()),
            }
            assert again[run]().answer == "second"
            assert again[run]().answer == "third"
    assert len(server.received) == 3
    assert server.received[0].messages == server.received[1].messages == server.received[2].messages
    assert shown(session) == [("one", "third")]


def test_A4_the_old_answers_stay_reachable_by_redo() -> None:
    session = qa_session()
    with dspy.context(lm=ScriptedLM(lambda _: {"answer": f"answer {next(numbers)}"})):
        numbers = iter(range(9))
        ask(session, "zero", "one")
        session.regenerate()
        session.regenerate()
        assert shown(session) == [("zero", "answer 0"), ("one", "answer 3")]
        seen = []
        for _ in range(3):
            (turn,) = session.redo()
            seen.append(turn.outputs["answer"])
            assert session.turns[-1] is turn
        assert seen == ["answer 2", "answer 1", "answer 3"]
        session(question="two")
    assert session.redo() == ()


def test_A4_an_earlier_turn_is_asked_again_with_other_inputs() -> None:
    lm, session = scripted(), qa_session()
    with dspy.context(lm=lm):
        ask(session, "zero", "one", "two")
        old = session.turns
        session.regenerate(1, question="one!")
        assert past(lm.prompts[-1]) == pairs("zero")
        assert questions(session) == ["zero", "one!"]
        assert session.redo(3) == old[1:]
        assert session.turns == old
        session.redo()
        session(question="and on")
        assert past(lm.prompts[-1]) == pairs("zero", "one!")
    assert [turn.index for turn in session.turns] == [0, 1, 2]
    assert session.redo() == ()


def test_A4_what_cannot_be_asked_again_is_refused() -> None:
    session = qa_session()
    with refused(session, TurnIndexError, "empty"):
        session.regenerate()
    with dspy.context(lm=scripted()):
        ask(session, "zero")
        with refused(session, TurnIndexError, "turn 1", "0 to 0"):
            session.regenerate(1)
        with refused(session, TurnIndexError, "turn 1"):
            asyncio.run(session.aregenerate(1))
        with pytest.raises(dspy.LMError, match="the model is out"):
            session.regenerate(0, question="fail")
        assert shown(session) == pairs("zero")
        assert session.redo() == ()


def test_A4_settings_of_the_call_hold_when_asking_again() -> None:
    with LoopbackServer(say_hi) as server, dspy.context(lm=server.lm()):
        session = qa_session()
        ask(session, "zero")
        session.using(config={"temperature": 0.25}, request_id="r-2").regenerate()
    assert server.received[-1].body["temperature"] == 0.25
    assert session.turns[0].request_id == "r-2"


def test_A4_each_attempt_of_best_of_n_gets_a_rollout_of_its_own_when_asked_again() -> None:
    rollouts: list[Any] = []

    class Watch(BaseCallback):
        def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            rollouts.append(inputs["kwargs"].get("rollout_id", instance.kwargs.get("rollout_id")))

    session = sessionify(
        dspy.BestOfN(dspy.Predict(QA), N=3, reward_fn=lambda *_: 0.0, threshold=1.0)
    )
    with dspy.context(lm=scripted(), callbacks=[Watch()]):
        session(question="one")
        first = list(rollouts)
        session.regenerate()
    again = rollouts[len(first) :]
    assert len(set(again)) == 3
    assert set(again).isdisjoint(first)


# --- failed and cancelled calls -------------------------------------------------------------------


@both_ways
def test_X14_a_failed_call_can_be_looked_at_and_is_in_no_prompt(run: Ask) -> None:
    lm, session = scripted(), qa_session()
    with dspy.context(lm=lm):
        run(session, question="one")
        before = session.state
        with pytest.raises(dspy.LMError, match="the model is out"):
            run(session.using(request_id="r-3"), question="fail")
        assert session.state is before
        run(session, question="two")
    assert past(lm.prompts[-1]) == pairs("one")
    (attempt,) = session.attempts
    assert (attempt.status, attempt.inputs) == ("failed", {"question": "fail"})
    assert "the model is out" in attempt.error
    assert attempt.error.startswith("dspy.utils.exceptions.LM")
    assert attempt.history_snapshot.messages == [{"question": "one", "answer": "answer to one"}]
    assert attempt.run.request_id == "r-3"
    assert attempt.run.duration is not None
    assert attempt.run.fingerprint == session.turns[0].fingerprint
    assert attempt.partial == {}
    assert len(session.to_examples()) == 2
    assert "fail" in repr(attempt)


def test_X14_a_cancelled_task_leaves_a_cancelled_attempt() -> None:
    class Waits(dspy.Module):
        async def aforward(self, question: str) -> str:
            await asyncio.sleep(60)
            return question

    session = sessionify(Waits())

    async def cancel() -> None:
        task = asyncio.create_task(session.acall(question="one"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    (attempt,) = session.attempts
    assert (attempt.status, attempt.inputs) == ("cancelled", {"question": "one"})
    assert len(session) == 0


def test_X14_usage_of_a_failed_call_is_known() -> None:
    class Fails(Asker):
        def forward(self, question: str) -> Any:
            super().forward(question)
            raise KeyError(question)

    session = sessionify(Fails())
    with dspy.context(lm=scripted()), pytest.raises(KeyError):
        session(question="one")
    (usage,) = session.attempts[0].run.usage
    assert dict(usage[1])["total_tokens"] > 0


@pytest.mark.parametrize(("limit", "kept"), [(2, ["b", "c"]), (0, []), (None, ["a", "b", "c"])])
def test_X14_only_the_latest_attempts_are_kept(limit: int | None, kept: list[str]) -> None:
    session = sessionify(Asker(), max_stored_attempts=limit)
    with dspy.context(lm=scripted()):
        for name in "abc":
            with pytest.raises(TypeError):
                session(**{name: "is no question"})
    assert [next(iter(attempt.inputs)) for attempt in session.attempts] == kept
    assert session.fork().attempts == ()
    with pytest.raises(OptionError, match="max_stored_attempts"):
        qa_session(max_stored_attempts=-1)


# --- every way to call ----------------------------------------------------------------------------


def in_parallel(session: Session, *asked: str) -> None:
    pairs = [(session, dspy.Example(question=q).with_inputs("question")) for q in asked]
    dspy.Parallel(num_threads=3, disable_progress_bar=True)(pairs)


def asyncified(session: Session, *asked: str) -> None:
    async def talk() -> None:
        for question in asked:
            await dspy.asyncify(session)(question=question)

    asyncio.run(talk())


def syncified(session: Session, *asked: str) -> None:
    call = dspy.syncify(session, in_place=False)
    for question in asked:
        call(question=question)


def in_threads(session: Session, *asked: str) -> None:
    """Threads of one's own begin without DSPy's context; what is configured holds there too."""
    with ThreadPoolExecutor(3) as pool:
        context = contextvars.copy_context
        futures = [pool.submit(context().run, session, question=q) for q in asked]
        for future in futures:
            future.result()


def gathered(session: Session, *asked: str) -> None:
    async def talk() -> None:
        await asyncio.gather(*(session.acall(question=q) for q in asked))

    asyncio.run(talk())


WAYS = [ask, in_parallel, asyncified, syncified, in_threads, gathered]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("program", [dspy.Predict(QA), Bare()], ids=["Predict", "sync-only"])
def test_D16_every_way_to_call_records_the_same_turns(way: Ask, program: dspy.Module) -> None:
    told: list[int] = []
    session = sessionify(program, on_turn=lambda _, turn: told.append(turn.index))
    with dspy.context(lm=scripted()):
        way(session, "a", "b", "c")
    assert sorted(questions(session)) == ["a", "b", "c"]
    assert sorted(told) == [0, 1, 2]
    assert [turn.index for turn in session.turns] == [0, 1, 2]
    assert all(list(turn.outputs) == ["answer"] and turn.usage for turn in session.turns)
    seen = [len(turn.history_snapshot.messages) for turn in session.turns]
    assert seen[0] == 0
    assert all(count <= index for index, count in enumerate(seen))


@both_ways
def test_D16_sync_and_async_fire_the_same_callbacks(run: Ask) -> None:
    fired: list[str] = []

    class Watch(BaseCallback):
        def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            fired.append(f"{type(instance).__name__} {sorted(inputs)}")

        def on_module_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
            fired.append("end")

        def on_adapter_format_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            fired.append("format")

        def on_lm_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            fired.append("lm")

        def on_adapter_parse_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            fired.append("parse")

    session = qa_session()
    with dspy.context(lm=scripted(), callbacks=[Watch()]):
        run(session, question="one")
    kwargs = "['kwargs']"
    inside = [f"Session {kwargs}", f"Predict {kwargs}", "format", "lm", "parse", "end", "end"]
    assert [entry.replace("['args', 'kwargs']", kwargs) for entry in fired] == inside
