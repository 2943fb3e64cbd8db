"""Middleware around a turn, row C11: order, retries, answers of its own, in every call mode."""

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import msgspec
import pytest
from dspy.utils.exceptions import LMUnexpectedError

from dspy_session import (
    AfterTurn,
    BeforeTurn,
    HistoryError,
    HookError,
    Hooks,
    SessionState,
    TextEvent,
    TurnEvent,
    TurnRefusedError,
    astep,
    current_data,
    sessionify,
    step,
    stream_step,
)
from dspy_session.testing import Prompt, ScriptedLM
from tests.streams import SOON
from tests.talk import QA, Asker, asked, echo
from tests.ways import STEPS, Way, every_way

PROGRAM = dspy.Predict(QA)
HI = {"question": "Hi"}
Run = Callable[[BeforeTurn], AfterTurn]


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := ScriptedLM(echo))):
        yield lm


class Counting:
    """A middleware of both kinds: it counts its calls, and asks again until the answer is good."""

    def __init__(self, tries: int = 3) -> None:
        self.tries, self.runs = tries, 0
        self.failures: list[str] = []

    def _next(self, call: BeforeTurn) -> BeforeTurn:
        self.runs += 1
        return call.replace(inputs={"question": f"{call.inputs['question']}{self.runs}"})

    def sync(self, call: BeforeTurn, run: Run) -> AfterTurn:
        for _ in range(self.tries - 1):
            try:
                result = run(self._next(call))
            except LMUnexpectedError as error:
                self.failures.append(str(error))
                continue
            if "good" in result.turn.outputs["answer"]:
                return result
        return run(self._next(call))

    async def awaited(self, call: BeforeTurn, run: Any) -> AfterTurn:
        for _ in range(self.tries - 1):
            try:
                result: AfterTurn = await run(self._next(call))
            except LMUnexpectedError as error:
                self.failures.append(str(error))
                continue
            if "good" in result.turn.outputs["answer"]:
                return result
        last: AfterTurn = await run(self._next(call))
        return last


sync_or_async = pytest.mark.parametrize("kind", ["sync", "awaited"])


def fails_twice(prompt: Prompt) -> dict[str, Any]:
    if asked(prompt).endswith("1"):
        raise ValueError("the model is out")
    return {"answer": "good" if asked(prompt).endswith("3") else "bad"}


@every_way
@sync_or_async
def test_C11_middleware_asks_again_and_the_answer_that_it_returns_is_recorded(
    run: Way, kind: str
) -> None:
    middleware = Counting()
    with dspy.context(lm=ScriptedLM(fails_twice)):
        prediction, state = run(
            SessionState(), PROGRAM, HI, hooks=Hooks(around=getattr(middleware, kind))
        )
    assert middleware.runs == 3
    assert len(middleware.failures) == 1
    assert prediction.answer == "good"
    (turn,) = state.turns
    assert (turn.inputs, turn.outputs) == ({"question": "Hi3"}, {"answer": "good"})
    assert turn.lm_calls == 2, "the one that failed in the LM has no entry, the other two do"
    usage = turn.usage["scripted"]["completion_tokens"]
    assert usage > 0


def test_C11_a_turn_that_was_tried_again_counts_everything_that_was_spent() -> None:
    def twice(call: BeforeTurn, run: Run) -> AfterTurn:
        first = run(call)
        run(call)
        return first

    _, once = step(SessionState(), PROGRAM, HI)
    with dspy.track_usage() as around:
        _, again = step(SessionState(), PROGRAM, HI, hooks=Hooks(around=twice))
    single, double = once.turns[0], again.turns[0]
    spent = double.usage["scripted"]["total_tokens"]
    assert spent == 2 * single.usage["scripted"]["total_tokens"]
    assert around.get_total_tokens()["scripted"]["total_tokens"] == spent
    assert double.lm_calls == 2
    assert double.run.sent == 2 * single.run.sent > 0


@every_way
@sync_or_async
def test_C11_middleware_answers_without_the_program(run: Way, kind: str, lm: ScriptedLM) -> None:
    inner: list[Any] = []

    def cached(call: BeforeTurn, run: Run) -> AfterTurn:
        return call.replace(data={"hit": True}).answer({"answer": f"Cached {call.inputs}"})

    async def later(call: BeforeTurn, run: Any) -> AfterTurn:
        return cached(call, run)

    around = cached if kind == "sync" else later
    hooks = Hooks(around=around, before=inner.append, after=inner.append)
    prediction, state = run(SessionState(), PROGRAM, HI, hooks=hooks)
    assert isinstance(prediction, dspy.Prediction)
    assert prediction.answer == "Cached {'question': 'Hi'}" == state.turns[0].outputs["answer"]
    assert state.data.to_dict() == {"hit": True}
    assert state.turns[0].lm_calls == 0
    assert not lm.prompts
    assert not inner


@every_way
@sync_or_async
def test_C11_middleware_replaces_the_prediction(run: Way, kind: str) -> None:
    def shout(result: AfterTurn) -> AfterTurn:
        return result.replace(prediction=dspy.Prediction(answer=result.prediction.answer.upper()))

    def around(call: BeforeTurn, run: Run) -> AfterTurn:
        return shout(run(call))

    async def later(call: BeforeTurn, run: Any) -> AfterTurn:
        return shout(await run(call))

    hooks = Hooks(around=around if kind == "sync" else later)
    prediction, state = run(SessionState(), PROGRAM, HI, hooks=hooks)
    assert prediction.answer == "ANSWER TO HI" == state.turns[0].outputs["answer"]


def test_C11_what_cannot_be_recorded_is_an_error_of_the_turn() -> None:
    def around(call: BeforeTurn, run: Run) -> AfterTurn:
        return call.answer({"history": "Hi"})

    session = sessionify(PROGRAM, hooks=Hooks(around=around))
    state = session.state
    with pytest.raises(HistoryError, match="an output is named 'history'"):
        session(question="Hi")
    assert session.state is state
    assert len(session.attempts) == 1


def test_C11_a_prediction_that_was_changed_in_place_is_another_one_when_given_back() -> None:
    def shout(call: BeforeTurn, run: Run) -> AfterTurn:
        result = run(call)
        result.prediction.answer = result.prediction.answer.upper()
        return result.replace(prediction=result.prediction)

    prediction, state = step(SessionState(), PROGRAM, HI, hooks=Hooks(around=[echoes, shout]))
    assert prediction.answer == "ANSWER TO HI" == state.turns[0].outputs["answer"]


def echoes(call: BeforeTurn, run: Run) -> AfterTurn:
    result = run(call)
    assert result.turn.outputs["answer"] == result.prediction.answer
    return result


def test_C11_what_an_agent_leaves_beside_its_outputs_stays_a_detail() -> None:
    answers: Iterator[dict[str, Any]] = iter(
        [
            {"next_thought": "1", "next_tool_name": "finish", "next_tool_args": {}},
            {"reasoning": "r", "answer": "a"},
        ]
    )

    def replace(call: BeforeTurn, run: Run) -> AfterTurn:
        result = run(call)
        return result.replace(
            prediction=dspy.Prediction(answer="b", trajectory=result.prediction.trajectory)
        )

    class Outer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.agent = dspy.ReAct("question -> answer", tools=[])

        def forward(self, question: str) -> Any:
            return self.agent(question=question)

    with dspy.context(lm=ScriptedLM(lambda _: next(answers))):
        _, state = step(SessionState(), Outer(), HI, hooks=Hooks(around=[replace, replace]))
    assert state.turns[0].outputs == {"answer": "b"}
    assert list(state.turns[0].details) == ["trajectory"]


def test_C11_a_programs_plain_value_can_be_replaced() -> None:
    def around(call: BeforeTurn, run: Run) -> AfterTurn:
        result = run(call)
        return result.replace(prediction=result.prediction + "!")

    answer, state = step(SessionState(), Asker(), HI, hooks=Hooks(around=around))
    assert answer == "answer to Hi!" == state.turns[0].outputs["output"]


@pytest.mark.parametrize("run", STEPS.values(), ids=STEPS)
def test_C11_the_first_middleware_is_the_outermost_and_hooks_are_within(run: Way) -> None:
    order: list[str] = []

    def sync(call: BeforeTurn, run: Run) -> AfterTurn:
        order.append("outer in")
        result = run(call.replace(inputs={"question": "from outer"}))
        order.append(f"outer out {result.data['n']}")
        return result.replace(data={"n": 3})

    async def awaited(call: BeforeTurn, run: Any) -> AfterTurn:
        order.append(f"inner in {call.inputs['question']}")
        result: AfterTurn = await run(call)
        order.append(f"inner out {result.data['n']} {result.turn.data['n']}")
        return result.replace(data={"n": 2})

    def before(call: BeforeTurn) -> None:
        order.append(f"before {call.inputs['question']}")

    async def after(result: AfterTurn) -> AfterTurn:
        order.append("after")
        return result.replace(data={"n": 1})

    hooks = Hooks(around=[sync, awaited], before=before, after=after)
    _, state = run(SessionState(), PROGRAM, HI, hooks=hooks)
    assert order == [
        "outer in",
        "inner in from outer",
        "before from outer",
        "after",
        "inner out 1 1",
        "outer out 2",
    ]
    assert state.data.to_dict() == {"n": 3}


def test_C11_a_run_that_is_not_returned_leaves_no_data() -> None:
    class Counter(dspy.Module):
        def forward(self, question: str) -> Any:
            data = current_data()
            data["n"] = data.get("n", 0) + 1
            return data["n"]

    def twice(call: BeforeTurn, run: Run) -> AfterTurn:
        first, second = run(call), run(call)
        assert first.data == second.data
        return first

    answer, state = step(SessionState(), Counter(), HI, hooks=Hooks(around=twice), data={"n": 5})
    assert (answer, state.data["n"]) == (6, 6)


@every_way
@sync_or_async
def test_C11_a_before_hooks_refusal_can_be_caught(run: Way, kind: str) -> None:
    def sorry(call: BeforeTurn, reason: str) -> AfterTurn:
        return call.answer({"answer": f"Sorry: {reason}"})

    def around(call: BeforeTurn, run: Run) -> AfterTurn:
        try:
            return run(call)
        except TurnRefusedError as error:
            return sorry(call, error.reason)

    async def later(call: BeforeTurn, run: Any) -> AfterTurn:
        try:
            result: AfterTurn = await run(call)
        except TurnRefusedError as error:
            return sorry(call, error.reason)
        return result

    hooks = Hooks(
        around=around if kind == "sync" else later, before=lambda call: call.refuse("closed")
    )
    prediction, state = run(SessionState(), PROGRAM, HI, hooks=hooks)
    assert prediction.answer == "Sorry: closed" == state.turns[0].outputs["answer"]


# --- errors ---------------------------------------------------------------------------------------


def _not_awaited(call: BeforeTurn, run: Any) -> Any:
    return Counting().awaited(call, run)


WRONG: dict[str, tuple[Callable[[BeforeTurn, Run], Any], str]] = {
    "nothing": (lambda call, run: None, "returned None; it must return what"),
    "a prediction": (lambda call, run: run(call).prediction, "of the type Prediction"),
    "a coroutine": (_not_awaited, "async def"),
    "outputs no mapping": (lambda call, run: call.answer("Hi"), "gives outputs as a mapping"),  # type: ignore[arg-type]
    "runs something else": (lambda call, run: run(3), "of the type int"),  # type: ignore[arg-type]
    "another state": (
        lambda call, run: msgspec.structs.replace(run(call), state=SessionState()),
        "changed what is none of its",
    ),
    "one of its own": (
        lambda call, run: AfterTurn(
            turn=run(call).turn, prediction=None, state=call.state, tool_calls=()
        ),
        "must return what",
    ),
}


@pytest.mark.parametrize("run", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("name", WRONG)
def test_C11_what_middleware_may_not_return(run: Way, name: str) -> None:
    hook, message = WRONG[name]
    state = SessionState()
    with pytest.raises(HookError, match=message):
        run(state, PROGRAM, HI, hooks=Hooks(around=hook))
    assert state == SessionState()


@every_way
@sync_or_async
@pytest.mark.parametrize("how", ["run", "answered"])
def test_C11_a_result_of_an_earlier_turn_is_not_recorded_again(
    run: Way, kind: str, how: str
) -> None:
    kept: list[AfterTurn] = []

    def sync(call: BeforeTurn, run: Run) -> AfterTurn:
        kept.append(call.answer({"answer": "kept"}) if how == "answered" else run(call))
        return kept[0]

    async def later(call: BeforeTurn, run: Any) -> AfterTurn:
        kept.append(call.answer({"answer": "kept"}) if how == "answered" else await run(call))
        return kept[0]

    hooks = Hooks(around=sync if kind == "sync" else later)
    _, state = run(SessionState(), PROGRAM, HI, hooks=hooks)
    with pytest.raises(HookError, match=r"result of an earlier turn.*call\.answer\(outputs\)"):
        run(state, PROGRAM, {"question": "Another"}, hooks=hooks)
    assert [turn.inputs for turn in state.turns] == [HI]


@every_way
@sync_or_async
def test_C11_an_error_in_middleware_is_an_error_of_the_turn(run: Way, kind: str) -> None:
    def around(call: BeforeTurn, run: Run) -> AfterTurn:
        run(call)
        raise LookupError("out of order")

    async def later(call: BeforeTurn, run: Any) -> AfterTurn:
        await run(call)
        raise LookupError("out of order")

    state = SessionState()
    with pytest.raises(LookupError, match="out of order"):
        run(state, PROGRAM, HI, hooks=Hooks(around=around if kind == "sync" else later))
    assert state == SessionState()


@pytest.mark.parametrize("run", STEPS.values(), ids=STEPS)
def test_C11_a_stop_iteration_in_middleware_ends_the_turn(run: Way) -> None:
    """In a thread nobody would hear of it: no future takes one."""

    def around(call: BeforeTurn, run: Run) -> Any:
        return next(iter(()))

    state = SessionState()
    with pytest.raises((StopIteration, RuntimeError)):
        run(state, PROGRAM, HI, hooks=Hooks(around=around))
    assert state == SessionState()


def test_C11_an_error_within_is_one_attempt() -> None:
    def around(call: BeforeTurn, run: Run) -> AfterTurn:
        try:
            return run(call)
        except LMUnexpectedError:
            return run(call)

    session = sessionify(PROGRAM, hooks=Hooks(around=around))
    state = session.state
    with pytest.raises(LMUnexpectedError, match="the model is out"):
        session(question="fail")
    assert session.state is state
    (attempt,) = session.attempts
    assert attempt.inputs == {"question": "fail"}


# --- threads, loops, contexts ---------------------------------------------------------------------

where: contextvars.ContextVar[str] = contextvars.ContextVar("where")


@pytest.mark.parametrize("run", STEPS.values(), ids=STEPS)
@sync_or_async
def test_C11_contexts_reach_middleware_and_from_there_the_program(run: Way, kind: str) -> None:
    seen: list[str] = []

    class Looks(dspy.Module):
        def forward(self, question: str) -> Any:
            seen.append(where.get())
            return asked_lm().answer

    def asked_lm() -> Any:
        return PROGRAM(question="Hi")

    def around(call: BeforeTurn, run: Run) -> AfterTurn:
        seen.append(where.get())
        where.set("middleware")
        with dspy.context(lm=ScriptedLM(lambda _: {"answer": "from within"})):
            return run(call)

    async def later(call: BeforeTurn, run: Any) -> AfterTurn:
        seen.append(where.get())
        where.set("middleware")
        with dspy.context(lm=ScriptedLM(lambda _: {"answer": "from within"})):
            result: AfterTurn = await run(call)
        return result

    where.set("caller")
    hooks = Hooks(around=around if kind == "sync" else later)
    _, state = run(SessionState(), Looks(), HI, hooks=hooks)
    assert seen == ["caller", "middleware"]
    assert state.turns[0].outputs == {"output": "from within"}


def test_C11_async_middleware_runs_two_at_once_and_picks_one() -> None:
    both = threading.Barrier(2)

    class Meets(dspy.Module):
        def forward(self, question: str) -> Any:
            both.wait(SOON)
            return PROGRAM(question=question).answer

    async def race(call: BeforeTurn, run: Any) -> AfterTurn:
        calls = [call.replace(inputs={"question": q}) for q in ("longer", "short")]
        results = await asyncio.gather(*map(run, calls))
        best: AfterTurn = min(results, key=lambda result: len(result.prediction))
        return best

    hooks = Hooks(around=race)
    answer, state = step(SessionState(), Meets(), HI, hooks=hooks)
    assert answer == "answer to short" == state.turns[0].outputs["output"]
    assert state.turns[0].lm_calls == 2
    answer, state = asyncio.run(astep(state, Meets(), HI, hooks=hooks))
    assert state.turns[1].inputs == {"question": "short"}


def test_C11_many_async_turns_in_sync_middleware_do_not_wait_for_threads() -> None:
    """More turns than any pool of threads has, each of them in its middleware at once."""
    number = 40
    here, all_here = [0], threading.Event()
    mutex = threading.Lock()

    def around(call: BeforeTurn, run: Run) -> AfterTurn:
        with mutex:
            here[0] += 1
            if here[0] == number:
                all_here.set()
        assert all_here.wait(SOON)
        return run(call)

    async def main() -> list[Any]:
        hooks = Hooks(around=around)
        turns = (astep(SessionState(), PROGRAM, HI, hooks=hooks) for _ in range(number))
        return [*await asyncio.gather(*turns)]

    assert [len(state) for _, state in asyncio.run(main())] == [1] * number


@sync_or_async
def test_C11_cancelling_reaches_what_middleware_runs(kind: str) -> None:
    events: list[str] = []
    begun = threading.Event()

    class Waits(dspy.Module):
        async def aforward(self, question: str) -> Any:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                events.append("program cancelled")
                raise

    left = threading.Event()

    def around(call: BeforeTurn, run: Run) -> AfterTurn:
        try:
            return run(call)
        except Exception:  # noqa: BLE001  # what a retry would catch
            events.append("took it for a failure")
            return run(call)
        except BaseException:
            events.append("middleware left")
            raise
        finally:
            left.set()

    async def later(call: BeforeTurn, run: Any) -> AfterTurn:
        try:
            result: AfterTurn = await run(call)
        except asyncio.CancelledError:
            events.append("middleware left")
            raise
        finally:
            left.set()
        return result

    session = sessionify(Waits(), hooks=Hooks(around=around if kind == "sync" else later))
    state = session.state

    async def main() -> None:
        task = asyncio.create_task(session.acall(question="Hi"))
        assert await asyncio.to_thread(begun.wait, SOON)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert events[0] == "program cancelled"
        assert await asyncio.to_thread(left.wait, SOON)

    asyncio.run(main())
    assert events == ["program cancelled", "middleware left"]
    assert session.state is state
    assert session.attempts[0].cancelled


def test_C11_sync_middleware_of_a_cancelled_call_runs_nothing_any_more() -> None:
    runs: list[str] = []
    begun, left = threading.Event(), threading.Event()

    class Waits(dspy.Module):
        async def aforward(self, question: str) -> Any:
            runs.append(question)
            begun.set()
            await asyncio.Event().wait()

    def stubborn(call: BeforeTurn, run: Run) -> AfterTurn:
        try:
            return run(call)
        except BaseException:  # noqa: BLE001  # it goes on whatever happens
            return run(call.replace(inputs={"question": "again"}))
        finally:
            left.set()

    session = sessionify(Waits(), hooks=Hooks(around=stubborn))
    state = session.state

    async def main() -> None:
        task = asyncio.create_task(session.acall(question="once"))
        assert await asyncio.to_thread(begun.wait, SOON)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(left.wait, SOON)

    asyncio.run(main())
    assert runs == ["once"]
    assert session.state is state


def test_C11_a_stream_hears_every_run_and_ends_with_the_one_that_counts() -> None:
    events = list(
        stream_step(SessionState(), PROGRAM, HI, hooks=Hooks(around=Counting(tries=2).sync))
    )
    texts = [event.text for event in events if isinstance(event, TextEvent)]
    assert "".join(texts) == "answer to Hi1answer to Hi2"
    assert isinstance(events[-1], TurnEvent)
    assert events[-1].prediction.answer == "answer to Hi2"
    assert len(events[-1].state) == 1


def test_C11_a_callable_object_with_an_async_call_is_awaited() -> None:
    class Middleware:
        async def __call__(self, call: BeforeTurn, run: Any) -> AfterTurn:
            result: AfterTurn = await run(call)
            return result.replace(metadata={"seen": True})

    for run in STEPS.values():
        _, state = run(SessionState(), PROGRAM, HI, hooks=Hooks(around=Middleware()))
        assert state.metadata.to_dict() == {"seen": True}


def test_C11_async_middleware_in_a_sync_call_within_a_running_loop() -> None:
    async def main() -> None:
        middleware = Counting(tries=1)
        _, state = step(SessionState(), PROGRAM, HI, hooks=Hooks(around=middleware.awaited))
        assert len(state) == 1

    asyncio.run(main())


def test_C11_overlapping_turns_in_middleware_lose_nothing() -> None:
    both = threading.Barrier(2)

    def around(call: BeforeTurn, run: Run) -> AfterTurn:
        result = run(call)
        both.wait(SOON)
        return result.replace(data={**result.data, call.inputs["question"]: True})

    session = sessionify(PROGRAM, hooks=Hooks(around=around))

    async def main() -> None:
        await asyncio.gather(session.acall(question="a"), session.acall(question="b"))

    asyncio.run(main())
    assert len(session) == 2
    assert sorted(session.data) == ["a", "b"]
