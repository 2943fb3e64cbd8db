"""`step` and `astep`: any program, unmodified, one turn; and which of its predictors see what."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pydantic
import pytest

from dspy_session import (
    CallError,
    HistoryError,
    ModuleTypeError,
    SessionOptions,
    SessionState,
    astep,
    bake_history,
    sessionify,
    step,
)
from dspy_session.core.options import HistoryPolicy
from dspy_session.core.state import start
from dspy_session.program import anatomy, fingerprint
from dspy_session.program.anatomy import predictors
from dspy_session.program.fingerprints import signature_stamp
from dspy_session.testing import Prompt, ScriptedLM
from tests.talk import QA, asked, echo, field, pairs, past

Step = Callable[..., tuple[Any, SessionState]]


class ByHand(dspy.Signature):
    """Answer the question."""

    question: str = dspy.InputField()
    history: dspy.History = dspy.InputField()
    answer: str = dspy.OutputField()


def step_in_a_loop(*args: Any, **kwargs: Any) -> tuple[Any, SessionState]:
    return asyncio.run(astep(*args, **kwargs))


both_drivers = pytest.mark.parametrize("run", [step, step_in_a_loop], ids=["step", "astep"])


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := ScriptedLM(echo))):
        yield lm


def talk(program: dspy.Module, *questions: str, run: Step = step, **keywords: Any) -> SessionState:
    state: SessionState = keywords.pop("state", SessionState())
    for question in questions:
        _, state = run(state, program, {"question": question}, **keywords)
    return state


def sent_by(lm: ScriptedLM, asking: str) -> list[Prompt]:
    """The prompts that end with a question."""
    return [prompt for prompt in lm.prompts if asked(prompt) == asking]


# --- programs -------------------------------------------------------------------------------------


class Uncopied(dspy.Module):
    """A program that refuses to be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict(QA)
        self.chain = dspy.ChainOfThought(QA)
        self.more: list[Any] = [dspy.Predict(QA), {"deep": [dspy.Predict(QA)]}]

    def forward(self, question: str) -> Any:
        self.first(question=question)
        self.more[0](question=question)
        self.more[1]["deep"][0](question=question)
        return self.chain(question=question)

    async def aforward(self, question: str) -> Any:
        await self.first.acall(question=question)
        await self.more[0].acall(question=question)
        await self.more[1]["deep"][0].acall(question=question)
        return await self.chain.acall(question=question)

    def __copy__(self) -> Any:
        raise AssertionError("a step copies nothing")

    def __deepcopy__(self, memo: Any) -> Any:
        raise AssertionError("a step copies nothing")


def everything(program: dspy.Module) -> Any:
    """What a program consists of, by identity and by content; DSPy's own log of LM calls apart."""
    parts = [
        (path, id(module), {n: id(v) for n, v in vars(module).items() if n != "history"})
        for path, module in anatomy.walk(program)
    ]
    stamps = [(id(p.signature), signature_stamp(p.signature)) for _, p in predictors(program)]
    demos = [[dict(demo.items()) for demo in p.demos] for _, p in predictors(program)]
    return parts, stamps, demos, program.dump_state()


# --- D23: one step --------------------------------------------------------------------------------


@both_drivers
def test_D23_a_step_returns_the_prediction_and_the_next_state(run: Step, lm: ScriptedLM) -> None:
    first, state = run(SessionState(), dspy.Predict(QA), {"question": "one"})
    second, after = run(state, dspy.Predict(QA), {"question": "two"})
    assert isinstance(first, dspy.Prediction)
    assert (first.answer, second.answer) == ("answer to one", "answer to two")
    assert [len(s) for s in (state, after)] == [1, 2]
    assert after.turns[0] is state.turns[0]
    assert [past(prompt) for prompt in lm.prompts] == [pairs(), pairs("one")]


@both_drivers
def test_D23_the_module_is_neither_changed_nor_copied(run: Step) -> None:
    program = Uncopied()
    program.first.demos = [dspy.Example(question="q", answer="a").with_inputs("question")]
    before = everything(program)
    state = talk(program, "one", "two", run=run)
    with pytest.raises(Exception, match="the model is out"):
        run(state, program, {"question": "fail"})
    with pytest.raises(HistoryError):
        run(state, program, {"question": "x", "history": []})
    assert everything(program) == before


@both_drivers
def test_D23_one_module_serves_any_number_of_states(run: Step, lm: ScriptedLM) -> None:
    program = dspy.Predict(QA)
    states = {name: SessionState() for name in "abc"}
    for number in range(3):
        for name in states:
            states[name] = talk(program, f"{name}{number}", state=states[name], run=run)
    for name in states:
        assert past(sent_by(lm, f"{name}2")[0]) == pairs(f"{name}0", f"{name}1")
    older = talk(program, "again", state=states["a"].turns and SessionState(), run=run)
    assert len(older) == 1
    assert len(states["a"]) == 3


def test_D23_tasks_share_one_module(lm: ScriptedLM) -> None:
    program = dspy.Predict(QA)

    async def converse(name: str) -> SessionState:
        state = SessionState()
        for number in range(3):
            _, state = await astep(state, program, {"question": f"{name}{number}"})
        return state

    async def everybody() -> list[SessionState]:
        return list(await asyncio.gather(*(converse(name) for name in "abcdef")))

    assert [len(state) for state in asyncio.run(everybody())] == [3] * 6
    for name in "abcdef":
        assert past(sent_by(lm, f"{name}2")[0]) == pairs(f"{name}0", f"{name}1")


def test_D16_astep_awaits_aforward_and_puts_the_rest_into_a_thread(lm: ScriptedLM) -> None:
    class SyncOnly(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            return self.qa(question=question)

    class AsyncOnly(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        async def aforward(self, question: str) -> Any:
            return await self.qa.acall(question=question)

    for program in (SyncOnly(), AsyncOnly()):
        state = talk(program, "one", "two", run=step_in_a_loop)
        assert [turn.outputs for turn in state] == [
            {"answer": "answer to one"},
            {"answer": "answer to two"},
        ]
    assert [past(prompt) for prompt in sent_by(lm, "two")] == [pairs("one")] * 2


@both_drivers
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"state": None}, CallError),
        ({"state": []}, CallError),
        ({"module": dspy.Predict}, ModuleTypeError),
        ({"module": lambda question: question}, ModuleTypeError),
        ({"inputs": ["question"]}, CallError),
        ({"inputs": "question"}, CallError),
        ({"inputs": {"question": "x", "history": [{"question": "x"}]}}, HistoryError),
        ({"inputs": {"question": "x", "history": None}}, HistoryError),
        ({"options": {"max_turns": 1}}, CallError),
        ({"config": 0.7}, CallError),
        ({"lm": "openai/gpt-5-mini"}, CallError),
    ],
)
def test_D23_bad_input(
    change: dict[str, Any], error: type[Exception], run: Step, lm: ScriptedLM
) -> None:
    call: dict[str, Any] = {
        "state": SessionState(),
        "module": dspy.Predict(QA),
        "inputs": {"question": "x"},
        **change,
    }
    with pytest.raises(error):
        run(**call)
    assert not lm.prompts
    assert dspy.settings.get("dspy_session_frame") is None


def test_D7_options_of_a_step(lm: ScriptedLM) -> None:
    program = dspy.Predict(QA)
    talk(program, "one", "two", "three", options=SessionOptions(max_turns=1))
    assert past(lm.prompts[-1]) == pairs("two")


def test_D17_an_explicit_history_is_replayed_and_not_recorded(lm: ScriptedLM) -> None:
    state = talk(dspy.Predict(QA), "one")
    given = dspy.History(messages=[{"question": "other", "answer": "answer to other"}])
    _, after = step(state, dspy.Predict(QA), {"question": "two", "history": given})
    assert after is state
    assert past(lm.prompts[-1]) == pairs("other")


# --- failing, interrupted and cancelled calls -----------------------------------------------------


class Failing(dspy.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.qa = dspy.Predict(QA)
        self.error = error

    def forward(self, question: str) -> Any:
        self.qa(question=question)
        raise self.error

    async def aforward(self, question: str) -> Any:
        await self.qa.acall(question=question)
        raise self.error


@both_drivers
@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=repr
)
def test_A14_a_failing_call_leaves_the_state_and_the_context(
    error: BaseException, run: Step, lm: ScriptedLM
) -> None:
    state = talk(dspy.Predict(QA), "one")
    turns, adapter = state.turns, dspy.settings.adapter
    with pytest.raises(type(error)):
        run(state, Failing(error), {"question": "two"})
    assert state.turns == turns
    assert dspy.settings.adapter is adapter
    assert dspy.settings.get("dspy_session_frame") is None
    assert dspy.settings.usage_tracker is None
    assert not dspy.settings.caller_modules
    talk(dspy.Predict(QA), "three", state=state)
    assert past(lm.prompts[-1]) == pairs("one")


def test_A14_an_error_comes_out_as_it_was_raised() -> None:
    for error in (StopIteration("done"), ValueError("no")):
        with pytest.raises(type(error)) as caught:
            step(SessionState(), Failing(error), {"question": "x"})
        assert caught.value is error


def test_A14_a_cancelled_call_leaves_the_state_and_the_context() -> None:
    class Slow(dspy.Module):
        async def aforward(self, question: str) -> Any:
            reached.set()
            await asyncio.sleep(60)

    state = talk(dspy.Predict(QA), "one")
    reached = asyncio.Event()

    async def cancel() -> None:
        task = asyncio.create_task(astep(state, Slow(), {"question": "two"}))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert dspy.settings.get("dspy_session_frame") is None

    asyncio.run(cancel())
    assert len(state) == 1


def test_X13_what_a_failed_call_used_still_counts() -> None:
    with dspy.track_usage() as tracker, pytest.raises(ValueError, match="no"):
        step(SessionState(), Failing(ValueError("no")), {"question": "x"})
    assert tracker.get_total_tokens()["scripted"]["total_tokens"] > 0


# --- settings of one turn -------------------------------------------------------------------------


class Busy(dspy.Module):
    """Calls LMs in every way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.own = dspy.Predict(QA, temperature=0.1)
        self.copied = copy.deepcopy(self.own)
        self.session = sessionify(dspy.Predict(QA))

    def forward(self, question: str) -> Any:
        self.own(question=question)
        self.copied(question=question, config={"max_tokens": 7})
        dspy.Predict(QA)(question=question)  # made on the fly
        dspy.Parallel(num_threads=2, disable_progress_bar=True)(
            [(self.own, {"question": question}), (self.copied, {"question": question})]
        )
        self.session(question=question)
        return self.own(question=question)


@both_drivers
def test_A4_config_reaches_every_lm_call(run: Step, lm: ScriptedLM) -> None:
    run(SessionState(), Busy(), {"question": "x"}, config={"temperature": 0.9, "rollout_id": 3})
    assert len(lm.history) == 7
    assert {entry["kwargs"]["temperature"] for entry in lm.history} == {0.9}
    assert {entry["kwargs"]["rollout_id"] for entry in lm.history} == {3}
    assert lm.history[1]["kwargs"]["max_tokens"] == 7
    lm.history.clear()
    run(SessionState(), Busy(), {"question": "x"})
    assert {entry["kwargs"].get("rollout_id") for entry in lm.history} == {None}


@both_drivers
def test_A4_lm_reaches_every_predictor_of_the_program(run: Step, lm: ScriptedLM) -> None:
    program, cheap, dear = Busy(), ScriptedLM(echo), ScriptedLM(echo)
    program.set_lm(cheap)
    run(SessionState(), program, {"question": "x"})
    assert (len(lm.prompts), len(cheap.prompts)) == (1, 6)
    run(SessionState(), program, {"question": "x"}, lm=dear)
    assert (len(lm.prompts), len(cheap.prompts), len(dear.prompts)) == (1, 6, 7)
    assert program.own.lm is cheap


def test_A4_attempts_keep_the_lm_that_they_were_given(lm: ScriptedLM) -> None:
    best = dspy.BestOfN(dspy.Predict(QA), N=3, reward_fn=lambda args, pred: 0.0, threshold=1.0)
    other = ScriptedLM(echo)
    step(SessionState(), best, {"question": "x"}, lm=other)
    rollouts = [entry["kwargs"].get("rollout_id") for entry in other.history]
    assert (len(other.prompts), len(lm.prompts)) == (3, 0)
    assert rollouts in ([], [0, 1, 2])  # copies of an LM keep a log of their own


def test_A4_an_inner_turn_has_the_last_word(lm: ScriptedLM) -> None:
    class Outer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = sessionify(dspy.Predict(QA))

        def forward(self, question: str) -> Any:
            return self.inner(question=question, config={"temperature": 0.2})

    step(SessionState(), Outer(), {"question": "x"}, config={"temperature": 0.9, "max_tokens": 5})
    assert lm.history[-1]["kwargs"]["temperature"] == 0.2
    assert lm.history[-1]["kwargs"]["max_tokens"] == 5


# --- X13: how it went -----------------------------------------------------------------------------


class PricedLM(ScriptedLM):
    """Every call costs a quarter."""

    def update_history(self, entry: dict[str, Any]) -> None:
        super().update_history({**entry, "cost": 0.25})


class Fan(dspy.Module):
    """Calls its predictor three times in threads, once itself."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(QA)

    def forward(self, question: str) -> Any:
        jobs = [(self.qa, {"question": f"{question} {n}"}) for n in range(3)]
        dspy.Parallel(num_threads=3, disable_progress_bar=True)(jobs)
        return self.qa(question=question)


def words(lm: ScriptedLM) -> int:
    """The usage of the scripted LM, counted from its prompts and answers."""
    asked_words = sum(len(m["content"].split()) for prompt in lm.prompts for m in prompt)
    said = sum(len(text.split()) for entry in lm.history for text in entry["outputs"])
    return asked_words + said


@both_drivers
def test_X13_usage_cost_time_id_and_fingerprint_are_on_the_turn(run: Step) -> None:
    program, lm = Fan(), PricedLM(echo)
    with dspy.context(lm=lm):
        before = dspy.settings.usage_tracker
        _, state = run(SessionState(), program, {"question": "x"})
        assert dspy.settings.usage_tracker is before
    turn = state.turns[0]
    assert turn.usage["scripted"]["total_tokens"] == words(lm) > 0
    assert turn.cost == 1.0
    assert turn.time is not None
    assert turn.time > 1_600_000_000
    assert turn.duration is not None
    assert 0 < turn.duration < 60
    assert turn.fingerprint == fingerprint(program)
    _, state = run(state, program, {"question": "x"})
    assert len({turn.id for turn in state}) == 2
    assert len(turn.id) == 32


def test_X13_a_cached_answer_uses_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dspy, "cache", dspy.cache)  # put back at the end
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)

    class CachedLM(PricedLM):
        def __init__(self) -> None:
            super().__init__(echo)
            self.cache = True

    unseen = SessionOptions(max_turns=0)
    with dspy.context(lm=CachedLM()):
        state = talk(dspy.Predict(QA), "cached one", "cached one", options=unseen)
    first, again = state.turns
    assert first.usage
    assert first.cost == 0.25
    assert (again.usage, again.cost) == ({}, None)


def test_X13_dspys_own_tracking_works_around_and_inside(lm: ScriptedLM) -> None:
    seen: list[dict[str, Any]] = []

    class Tracking(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            self.qa(question="first")
            with dspy.track_usage() as inside:
                found = self.qa(question=question)
            seen.append(inside.get_total_tokens())
            return found

    with dspy.track_usage() as around:
        state = talk(Tracking(), "x")
    total = state.turns[0].usage
    assert around.get_total_tokens() == total
    assert 0 < seen[0]["scripted"]["total_tokens"] < total["scripted"]["total_tokens"]


@both_drivers
def test_X13_predictions_carry_usage_as_they_do_without_a_session(run: Step) -> None:
    class Around(dspy.Module):
        def __init__(self, program: dspy.Module) -> None:
            super().__init__()
            self.program = program

        def forward(self, question: str) -> Any:
            found, state = step(SessionState(), self.program, {"question": question})
            usages.append(state.turns[0].usage)
            return found

    usages: list[dict[str, Any]] = []
    program = Fan()
    with dspy.context(track_usage=True):
        plain = dspy.Predict(QA)(question="x").get_lm_usage()
        found, state = run(SessionState(), dspy.Predict(QA), {"question": "x"})
        assert set(found.get_lm_usage()) == set(plain) == {"scripted"}
        assert found.get_lm_usage() == state.turns[0].usage
        assert run(SessionState(), program, {"question": "x"})[0].get_lm_usage() != plain
        assert Around(program)(question="x").get_lm_usage() == usages[0]
    assert dspy.Predict(QA)(question="x").get_lm_usage() is None


def test_X13_a_session_inside_a_turn_counts_for_both() -> None:
    class Outer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa, self.inner = dspy.Predict(QA), sessionify(dspy.Predict(QA))

        def forward(self, question: str) -> Any:
            self.qa(question=question)
            return self.inner(question=question)

    program, lm = Outer(), PricedLM(echo)
    with dspy.context(lm=lm):
        state = talk(program, "x")
    inner = state.nested["inner"].turns[0]
    assert (state.turns[0].cost, inner.cost) == (0.5, 0.25)
    assert state.turns[0].usage["scripted"]["total_tokens"] == words(lm)
    assert inner.usage["scripted"]["total_tokens"] < words(lm)


# --- X13: fingerprints ----------------------------------------------------------------------------


def demo(**fields: Any) -> dspy.Example:
    return dspy.Example(**fields).with_inputs("question")


class Note(pydantic.BaseModel):
    text: str


def changes(predict: dspy.Predict) -> Iterator[Callable[[], object]]:
    """Each of them makes another program; one after the other."""
    yield lambda: predict.demos.append(demo(question="q", answer="a"))
    yield lambda: setitem(predict, "answer", "b")
    yield lambda: setitem(predict, "extra", Note(text="a"))
    yield lambda: setitem(predict, "extra", Note(text="b"))
    yield lambda: setitem(predict, "extra", {1: "mixed", "keys": {2}})
    yield lambda: predict.demos.append({"question": "r", "answer": "s"})
    yield lambda: predict.demos.reverse()
    yield lambda: setattr(predict, "signature", predict.signature.with_instructions("Other."))
    yield lambda: setattr(predict.signature, "instructions", "In place.")
    updated = predict.signature.with_updated_fields
    yield lambda: setattr(predict, "signature", updated("answer", desc="short"))
    yield lambda: setattr(predict, "signature", updated("answer", type_=int))
    yield lambda: describe(predict.signature.fields["answer"], "in place")
    two = dspy.Signature("a, b -> c", "Same.")
    yield lambda: setattr(predict, "signature", two)
    yield lambda: setattr(predict, "signature", dspy.Signature("a -> b, c", "Same."))


def describe(field: Any, description: str) -> None:
    field.json_schema_extra["desc"] = description


def setitem(predict: dspy.Predict, name: str, value: Any) -> None:
    predict.demos[0][name] = value


def test_X13_the_fingerprint_changes_with_what_predictors_put_into_a_prompt() -> None:
    program = dspy.ChainOfThought(dspy.Signature("question -> answer"))
    seen = [fingerprint(program)]
    for change in changes(program.predict):
        change()
        seen.append(fingerprint(program))
        assert seen[-1] == fingerprint(program)
        assert seen[-1] == fingerprint(program.deepcopy())
    assert len(set(seen)) == len(seen)
    assert all(len(digest) == 32 for digest in seen)


def test_X13_the_fingerprint_says_nothing_of_lm_config_or_log() -> None:
    program = dspy.Predict(QA)
    before = fingerprint(program)
    program.lm = ScriptedLM(echo)
    program.config = {"temperature": 1.0}
    program(question="x")
    assert fingerprint(program) == before
    assert fingerprint(dspy.Predict(QA)) == before


def test_X13_the_fingerprint_never_holds_an_address() -> None:
    class Opaque:
        pass

    def made() -> str:
        program = dspy.Predict(QA)
        program.demos = [demo(question=Opaque(), answer=[object(), Opaque])]
        return fingerprint(program)

    assert made() == made()


def test_X13_the_fingerprint_is_computed_once_per_predictor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Two(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = dspy.Predict(QA), dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            self.a(question=question)
            return self.b(question=question)

    computed: list[str] = []
    dumps = json.dumps

    def counting(*args: Any, **kwargs: Any) -> str:
        computed.append("")
        return dumps(*args, **kwargs)

    monkeypatch.setattr("dspy_session.program.fingerprints.json.dumps", counting)
    program = Two()
    program.a.demos = [demo(question="q", answer="a")]
    count = []
    for _ in range(3):
        fingerprint(program)
        count.append(len(computed))
    program.a.demos = [demo(question="q", answer="b")]
    fingerprint(program)
    assert [*count, len(computed)] == [2, 2, 2, 3]


# --- D4: programs that know nothing of history ----------------------------------------------------


class Pipeline(dspy.Module):
    """Two predictors with other fields than the program's; returns plain text."""

    def __init__(self) -> None:
        super().__init__()
        self.rewrite = dspy.Predict("question -> query")
        self.answer = dspy.Predict("query, question -> answer, source")

    def forward(self, question: str) -> str:
        query = self.rewrite(question=question).query
        answer: str = self.answer(query=query, question=question).answer
        return answer


@both_drivers
def test_D4_a_plain_return_is_passed_through_and_recorded_as_output(run: Step) -> None:
    returned, state = run(SessionState(), Pipeline(), {"question": "one"})
    assert returned == "answer to one"
    assert state.turns[0].outputs == {"output": "answer to one"}
    for value in (None, 7, [1, {"a": 2}], ("x",)):

        class Constant(dspy.Module):
            def forward(self, question: str, value: Any = value) -> Any:
                return value

        returned, state = run(SessionState(), Constant(), {"question": "x"})
        assert returned is value
        assert state.turns[0].outputs == {"output": value}


def test_D4_a_plain_return_is_what_an_only_output_said_else_text(lm: ScriptedLM) -> None:
    talk(Pipeline(), "one", "two")
    rewrite, answer = lm.prompts[2:]
    assert [m["role"] for m in rewrite] == ["system", "user", "assistant", "user"]
    assert field(rewrite[2]["content"], "query") == "answer to one"
    assert [m["role"] for m in answer] == ["system", "user"]  # two outputs: which one was it?
    shown = field(answer[1]["content"], "history") or ""
    assert shown.splitlines() == ["[1]", "question: one", "output: answer to one"]


@pytest.mark.parametrize(
    ("value", "told"), [([1, None], "[1, null]"), (["a", "b"], "[1] «a»\n  [2] «b»")]
)
def test_D4_lists_of_anything_are_shown_in_text(lm: ScriptedLM, value: Any, told: str) -> None:
    state = start([{"question": "one", "found": value, "more": "x"}])
    talk(Pipeline(), "two", state=state)
    assert told in str(lm.prompts[-1][1]["content"])


def test_D4_replaying_a_plain_return_shows_what_the_call_showed(lm: ScriptedLM) -> None:
    program = Pipeline()
    state = talk(program, "one", "two", "three")
    live = lm.prompts[-2:]
    history = state.turns[-1].history_snapshot
    _, after = step(state, program, {"question": "three", "history": history})
    assert after is state
    assert lm.prompts[-2:] == live
    seeded = talk(program, "three", state=start(history.messages))
    assert len(seeded) == 1
    assert lm.prompts[-2:] == live


class Verdict(dspy.Module):
    """Its predictor's input is named like a plain return."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = dspy.Predict("question, output -> verdict")

    def forward(self, question: str) -> Any:
        return self.judge(question=question, output="it").verdict


def test_D4_an_input_named_output_is_not_taken_for_the_answer(lm: ScriptedLM) -> None:
    talk(Verdict(), "one", "two")
    assert [m["role"] for m in lm.prompts[-1]] == ["system", "user"]
    assert "verdict to one" in lm.prompts[-1][1]["content"]


def test_D4_every_part_of_a_nested_program_sees_the_conversation(lm: ScriptedLM) -> None:
    talk(Uncopied(), "one", "two")
    assert [past(prompt) for prompt in sent_by(lm, "two")] == [pairs("one")] * 4


def test_D4_compiled_and_nested_parts_see_it_too(lm: ScriptedLM) -> None:
    class Inner(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.predictors_by_name = {"a": {"b": (dspy.Predict(QA),)}}
            self.config = [dspy.Predict(QA)]  # a name that means something else in a Predict

        def forward(self, question: str) -> Any:
            self.config[0](question=question)
            return self.predictors_by_name["a"]["b"][0](question=question)

    class Outer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()
            self.inner._compiled = True

        def forward(self, question: str) -> Any:
            return self.inner(question=question)

    talk(Outer(), "one", "two")
    assert [past(prompt) for prompt in sent_by(lm, "two")] == [pairs("one")] * 2


def test_D4_data_beside_the_predictors_is_not_searched() -> None:
    class Corpus(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.documents = ["text"] * 50_000
            self.qa = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            return self.qa(question=question)

    program = Corpus()
    assert [path for path, _ in predictors(program)] == ["qa"]
    assert len(talk(program, "one", "two")) == 2


def test_D4_with_instructions_inside_forward_keeps_the_history(lm: ScriptedLM) -> None:
    class Shifting(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            signature = self.qa.signature.with_instructions(f"Think of {question}.")
            return self.qa(signature=signature, question=question)

    talk(Shifting(), "one", "two")
    assert past(lm.prompts[-1]) == pairs("one")
    assert "Think of two." in lm.prompts[-1][0]["content"]


def test_X2_what_changes_in_a_signature_in_place_reaches_the_next_prompt(lm: ScriptedLM) -> None:
    """As InferRules does it; signatures with the history in them are kept between calls."""
    program = dspy.Predict(dspy.Signature("question -> answer", "Answer."))
    state = talk(program, "one")
    program.signature.instructions = "Answer in verse."
    describe(program.signature.fields["answer"], "a sonnet")
    talk(program, "two", state=state)
    assert "Answer in verse." in lm.prompts[-1][0]["content"]
    assert "a sonnet" in lm.prompts[-1][0]["content"]
    assert past(lm.prompts[-1]) == pairs("one")


# --- ownership ------------------------------------------------------------------------------------


def test_D4_a_judge_outside_the_program_sees_no_history(lm: ScriptedLM) -> None:
    judge = dspy.Predict(QA)  # the very same signature

    def reward(args: dict[str, Any], pred: dspy.Prediction) -> float:
        return float(len(judge(question=f"is {args['question']} good?").answer) > 0)

    program = dspy.BestOfN(dspy.Predict(QA), N=2, reward_fn=reward, threshold=1.0)
    talk(program, "one", "two")
    assert past(sent_by(lm, "is two good?")[0]) == pairs()
    assert past(sent_by(lm, "two")[0]) == pairs("one")  # BestOfN runs copies of its program


def test_D4_a_predictor_made_on_the_fly_sees_none_either(lm: ScriptedLM) -> None:
    class OnTheFly(dspy.Module):
        def forward(self, question: str) -> Any:
            return dspy.Predict(QA)(question=question)

    talk(OnTheFly(), "one", "two")
    assert past(lm.prompts[-1]) == pairs()


def test_D4_ownership_survives_what_optimizers_do_to_a_program(
    lm: ScriptedLM, tmp_path: Path
) -> None:
    program = dspy.ChainOfThought(QA)
    program.save(tmp_path, save_program=True)
    loaded = dspy.ChainOfThought(QA)
    loaded.load_state(program.dump_state())
    copies = [
        program.deepcopy(),
        program.reset_copy(),
        dspy.load(str(tmp_path), allow_pickle=True),
        loaded,
    ]
    for made in copies:
        talk(made, "one", "two")
        assert past(lm.prompts[-1]) == pairs("one")


def test_D4_a_module_with_a_stage_of_its_own_is_no_predictor(lm: ScriptedLM) -> None:
    class Staged(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage: list[str] = []
            self.qa = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            inputs = {"question": "raw"}
            call = {"lm_kwargs": {}, "signature": QA, "demos": [], "inputs": inputs}
            dspy.settings.adapter(dspy.settings.lm, **call)
            return self.qa(question=question)

    talk(Staged(), "one", "two")
    assert [past(prompt) for prompt in sent_by(lm, "raw")] == [pairs(), pairs()]
    assert past(lm.prompts[-1]) == pairs("one")


def test_D21_a_session_inside_a_turn_has_its_own_conversation(lm: ScriptedLM) -> None:
    class Outer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa, self.inner = dspy.Predict(QA), sessionify(dspy.Predict(QA))

        def forward(self, question: str) -> Any:
            self.inner(question=f"inner {question}")
            return self.qa(question=question)

    program = Outer()
    talk(program, "one", "two")
    assert past(sent_by(lm, "inner two")[0]) == pairs("inner one")
    assert past(sent_by(lm, "two")[0]) == pairs("one")


# --- D5: programs that take a history -------------------------------------------------------------


class MyHistory(dspy.History):
    """A history of one's own."""


class Needy(dspy.History):
    """One that cannot be made of messages alone."""

    owner: str


class Taking(dspy.Module):
    """A program whose forward takes a history, under one of two names."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(ByHand)
        self.given: list[Any] = []

    def take(self, question: str, history: Any) -> Any:
        self.given.append(history)
        return self.qa(question=question, history=history)


def taking(annotation: Any, name: str = "history") -> Any:
    class TakingHistory(Taking):
        def forward(self, question: str, history: Any) -> Any:
            return self.take(question, history)

    class TakingLog(Taking):
        def forward(self, question: str, chat_log: Any) -> Any:
            return self.take(question, chat_log)

    made = TakingHistory if name == "history" else TakingLog
    made.forward.__annotations__[name] = annotation
    return made()


@both_drivers
@pytest.mark.parametrize(
    ("annotation", "name", "kind"),
    [
        (dspy.History, "history", dspy.History),
        (Any, "history", dspy.History),
        (dspy.History, "chat_log", dspy.History),
        (dspy.History | None, "chat_log", dspy.History),
        (MyHistory, "chat_log", MyHistory),
        (MyHistory | None, "history", MyHistory),
        (Needy, "chat_log", dspy.History),
        ("dspy.History", "chat_log", dspy.History),
        ("dspy.History | NotImported", "chat_log", dspy.History),
    ],
    ids=repr,
)
def test_D5_a_history_argument_is_found_by_name_or_annotation(
    annotation: Any, name: str, kind: type[dspy.History], run: Step, lm: ScriptedLM
) -> None:
    program: Any = taking(annotation, name)
    state = talk(program, "one", "two", run=run)
    assert [type(h) for h in program.given] == [kind, kind]
    assert [len(h.messages) for h in program.given] == [0, 1]
    assert program.given[1].messages == [{"question": "one", "answer": "answer to one"}]
    assert past(lm.prompts[-1]) == pairs("one")
    assert list(state.turns[0].inputs) == ["question"]
    given = dspy.History(messages=[{"question": "other", "answer": "answer to other"}])
    run(state, program, {"question": "x", name: given})
    handed: dspy.History = program.given[-1]
    assert type(handed) is kind
    assert handed.messages == given.messages
    assert past(lm.prompts[-1]) == pairs("other")


def test_D17_a_history_that_replaces_the_session_is_handed_over_as_it_will_be_seen() -> None:
    program = taking(dspy.History)
    policy, hidden = HistoryPolicy.REPLACE_SESSION, frozenset({"secret"})
    options = SessionOptions(history_policy=policy, exclude_fields=hidden)
    message = {"question": "one", "answer": "answer to one"}
    given = dspy.History(messages=[{**message, "secret": "s"}])
    _, state = step(SessionState(), program, {"question": "x", "history": given}, options)
    step(state, program, {"question": "y"}, options)
    assert [history.messages[0] for history in program.given] == [message, message]


def test_D5_what_a_program_does_to_its_history_stays_there(lm: ScriptedLM) -> None:
    class Tampering(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        def forward(self, question: str, history: dspy.History) -> Any:
            history.messages.append({"question": "forged", "answer": "forged"})
            for message in history.messages:
                message["answer"] = "forged"
            return self.qa(question=question)

    state = talk(Tampering(), "one", "two", "three")
    assert past(lm.prompts[-1]) == pairs("one", "two")
    assert [len(turn.history_snapshot.messages) for turn in state] == [0, 1, 2]


def declaring(annotation: Any, name: str = "history") -> type[dspy.Signature]:
    fields: dict[str, Any] = {
        "question": (str, dspy.InputField()),
        name: (annotation, dspy.InputField(desc="what was said")),
        "answer": (str, dspy.OutputField()),
    }
    return dspy.Signature(fields, "Answer the question.")


@both_drivers
@pytest.mark.parametrize("make", [dspy.Predict, dspy.ChainOfThought])
@pytest.mark.parametrize(
    ("annotation", "name"),
    [
        (dspy.History, "history"),
        (dspy.History, "chat_log"),
        (dspy.History | None, "chat_log"),
        (MyHistory, "chat_log"),
        (list[dict[str, Any]], "history"),
    ],
    ids=repr,
)
def test_D5_an_authors_history_field_keeps_its_name(
    annotation: Any, name: str, make: Callable[[Any], dspy.Module], run: Step, lm: ScriptedLM
) -> None:
    program = make(declaring(annotation, name))
    before = everything(program)
    state = talk(program, "one", "two", run=run)
    assert past(lm.prompts[-1]) == pairs("one")
    system = lm.prompts[-1][0]["content"]
    assert f"`{name}` (History): what was said" in system
    assert system.count("History") == 1
    assert list(state.turns[0].inputs) == ["question"]
    assert everything(program) == before


def test_D5_a_declared_field_is_filled_however_the_program_calls(lm: ScriptedLM) -> None:
    class Some(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.with_field, self.without = dspy.Predict(ByHand), dspy.Predict(QA)

        def forward(self, **kwargs: Any) -> Any:
            assert set(kwargs) == {"question"}
            self.with_field(**kwargs)
            self.with_field(**kwargs, history=None)
            return self.without(**kwargs)

    talk(Some(), "one", "two")
    assert [past(prompt) for prompt in sent_by(lm, "two")] == [pairs("one")] * 3


def test_D5_an_inner_call_with_a_history_of_its_own_keeps_it(lm: ScriptedLM) -> None:
    own = dspy.History(messages=[{"question": "own", "answer": "answer to own"}])

    class Own(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(ByHand)

        def forward(self, question: str, history: dspy.History) -> Any:
            self.qa(question=f"own {question}", history=own)
            self.qa(question=f"none {question}", history=dspy.History(messages=[]))
            last = dspy.History(messages=history.messages[-1:])
            self.qa(question=f"last {question}", history=last)
            return self.qa(question=question, history=history)

    talk(Own(), "one", "two", "three")
    assert past(sent_by(lm, "own three")[0]) == pairs("own")
    assert past(sent_by(lm, "none three")[0]) == pairs()
    assert past(sent_by(lm, "last three")[0]) == pairs("two")
    assert past(sent_by(lm, "three")[0]) == pairs("one", "two")


def test_D5_a_field_with_a_default_is_filled_too(lm: ScriptedLM) -> None:
    for program in (dspy.Predict(QA), Pipeline()):  # the second never passes its history on
        baked = bake_history(program)
        talk(baked, "one", "two")
        shown = [m["content"] for m in lm.prompts[-1]]
        assert any("answer to one" in text for text in shown)


def test_D22_strict_takes_exact_annotations_only(lm: ScriptedLM) -> None:
    strict = SessionOptions(strict_history_annotation=True)
    talk(dspy.Predict(declaring(dspy.History, "chat_log")), "one", "two", options=strict)
    assert past(lm.prompts[-1]) == pairs("one")
    for program in (dspy.Predict(declaring(list[str])), taking(MyHistory)):
        with pytest.raises(HistoryError, match="strict_history_annotation"):
            talk(program, "one", options=strict)


def test_D22_bake_history_writes_it_into_a_copy(lm: ScriptedLM) -> None:
    program = Uncopied()
    del Uncopied.__deepcopy__
    before = everything(program)
    baked = bake_history(program)
    assert everything(program) == before
    for (_, plain), (_, written) in zip(predictors(program), predictors(baked), strict=True):
        assert "history" not in plain.signature.input_fields
        assert list(written.signature.input_fields) == [*plain.signature.input_fields, "history"]
        assert written.signature.input_fields["history"].annotation is dspy.History
        assert written.signature.instructions == plain.signature.instructions
    history = dspy.History(messages=[{"question": "one", "answer": "answer to one"}])
    assert dspy.Predict(QA).signature.input_fields.keys() == {"question"}
    single: Any = bake_history(dspy.Predict(QA), history_field="log")
    single(question="x", log=history)
    assert past(lm.prompts[-1]) == pairs("one")
    single(question="x")  # the field has a default
    assert past(lm.prompts[-1]) == pairs()
    named: Any = bake_history(dspy.Predict(declaring(dspy.History, "chat_log")))
    assert list(named.signature.input_fields) == ["question", "chat_log"]


def test_A4_an_input_named_config_is_an_input() -> None:
    class Configured(dspy.Module):
        def forward(self, question: str, config: str) -> Any:
            return f"{question} {config}"

    class Inside(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.never_called = dspy.Predict("config -> answer")

        def forward(self, question: str) -> Any:
            return question

    session = sessionify(Configured())
    assert session(question="x", config="y") == "x y"
    assert session.turns[0].inputs == {"question": "x", "config": "y"}
    assert sessionify(Inside())(question="x", config={"temperature": 0.5}) == "x"
