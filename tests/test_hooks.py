"""Hooks before and after a turn: what they see, what they may change, how they fail.

Rows K4, K6 and C11; middleware is in `test_hooks_around.py`.
"""

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import dspy
import msgspec
import pytest

from dspy_session import (
    AfterTurn,
    BeforeTurn,
    DataError,
    HookError,
    Hooks,
    OptionError,
    Session,
    SessionOptions,
    SessionState,
    TurnRefusedError,
    astep,
    current_data,
    session_tool,
    sessionify,
    step,
)
from dspy_session.core.options import HistoryPolicy
from dspy_session.core.profile import Instructions
from dspy_session.testing import Prompt, ScriptedLM
from tests.loopback import LoopbackServer
from tests.optimizers import letters, teleprompt
from tests.streams import SOON
from tests.talk import QA, asked, echo, past
from tests.ways import Way, every_step, every_way

PROGRAM = dspy.Predict(QA)
HI = {"question": "Hi"}


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := ScriptedLM(echo))):
        yield lm


def sync(hook: Callable[..., Any]) -> Callable[..., Any]:
    return hook


def awaited(hook: Callable[..., Any]) -> Callable[..., Any]:
    async def later(*args: Any) -> Any:
        await asyncio.sleep(0)
        return hook(*args)

    return later


sync_or_async = pytest.mark.parametrize("kind", [sync, awaited], ids=["sync", "async"])


def system(prompt: Prompt) -> str:
    return prompt[0]["content"]


def talked(*questions: str) -> SessionState:
    state = SessionState()
    for question in questions:
        _, state = step(state, PROGRAM, {"question": question})
    return state


# --- before ---------------------------------------------------------------------------------------


@every_way
@sync_or_async
def test_K6_a_before_hook_changes_inputs_data_and_instructions(
    run: Way, kind: Callable[..., Any], lm: ScriptedLM
) -> None:
    seen: list[BeforeTurn] = []

    def add_user(call: BeforeTurn) -> BeforeTurn:
        seen.append(call)
        return call.replace(
            inputs={**call.inputs, "question": f"{call.inputs['question']} (from ada)"},
            data=call.data.changed({"user": "ada"}),
            instructions="The user is Ada.",
        )

    state = talked("Before")
    prediction, after = run(state, PROGRAM, HI, hooks=Hooks(before=kind(add_user)))
    assert asked(lm.prompts[-1]) == "Hi (from ada)"
    assert "The user is Ada." in system(lm.prompts[-1])
    assert prediction.answer == "answer to Hi (from ada)"
    turn = after.turns[-1]
    assert turn.inputs == {"question": "Hi (from ada)"}
    assert (turn.data_before.to_dict(), after.data.to_dict()) == ({}, {"user": "ada"})
    assert seen[0].inputs == HI
    assert seen[0].state.turns == state.turns
    assert (seen[0].instructions, seen[0].data.to_dict(), dict(seen[0].request)) == (None, {}, {})


def test_K6_the_instructions_of_a_before_hook_last_one_turn(lm: ScriptedLM) -> None:
    def only_first(call: BeforeTurn) -> BeforeTurn | None:
        return None if call.state.turns else call.replace(instructions="Sing.")

    session = sessionify(PROGRAM, hooks=Hooks(before=only_first), instructions="Be brief.")
    session(question="One")
    session(question="Two")
    one, two = map(system, lm.prompts)
    assert "Sing." in one
    assert "Be brief." not in one
    assert "Be brief." in two
    assert "Sing." not in two
    assert session.state.instructions == Instructions("Be brief.")


def test_K6_hooks_around_a_turn_asked_again_see_the_conversation_that_its_call_sees() -> None:
    seen: list[int] = []

    def look(about: BeforeTurn | AfterTurn) -> None:
        seen.append(len(about.state))

    session = sessionify(PROGRAM, hooks=Hooks(before=look, after=look))
    session(question="One")
    session(question="Two")
    session.regenerate(0)
    assert seen == [0, 0, 1, 1, 0, 0]


def test_C11_a_before_hook_sees_the_sessions_instructions_and_may_drop_them(lm: ScriptedLM) -> None:
    seen = []

    def drop(call: BeforeTurn) -> BeforeTurn:
        seen.append(call.instructions)
        return call.replace(instructions=None)

    step(SessionState(), PROGRAM, HI, hooks=Hooks(before=drop), instructions="Be brief.")
    assert seen == [Instructions("Be brief.")]
    assert "Be brief." not in system(lm.prompts[-1])


@every_step
def test_C11_hooks_run_in_order_and_each_sees_what_the_one_before_returned(run: Way) -> None:
    def adds(letter: str) -> Callable[[BeforeTurn], BeforeTurn]:
        def hook(call: BeforeTurn) -> BeforeTurn:
            return call.replace(inputs={"question": call.inputs["question"] + letter})

        return hook

    def nothing(call: BeforeTurn) -> None:
        del call

    def notes(name: str) -> Callable[[AfterTurn], AfterTurn]:
        def hook(result: AfterTurn) -> AfterTurn:
            said = [*result.data.get("said", []), name, len(result.turn.data)]
            return result.replace(data=result.data.changed({"said": said}))

        return hook

    hooks = Hooks(
        before=[adds("a"), nothing, awaited(adds("b")), adds("c")],
        after=[notes("first"), awaited(notes("second"))],
    )
    _, state = run(SessionState(), PROGRAM, {"question": "-"}, hooks=hooks)
    assert state.turns[-1].inputs == {"question": "-abc"}
    assert state.data["said"] == ["first", 0, "second", 1]


def test_C11_what_a_hook_does_in_place_counts_for_nothing() -> None:
    tags = ["a"]

    def spoil(call: BeforeTurn) -> None:
        call.inputs["tags"].append("b")
        with pytest.raises(TypeError):
            call.inputs["question"] = "Bye"  # type: ignore[index]

    class Tagged(dspy.Module):
        def forward(self, question: str, tags: list[str]) -> Any:
            return f"{question} {tags}"

    hooks = Hooks(before=[spoil, lambda call: call.replace(data={"tags": call.inputs["tags"]})])
    answer, state = step(SessionState(), Tagged(), {"question": "Hi", "tags": tags}, hooks=hooks)
    assert (answer, tags, state.data["tags"]) == ("Hi ['a']", ["a"], ["a"])


@every_way
def test_C11_what_an_after_hook_does_in_place_is_not_recorded(run: Way) -> None:
    class Tagging(dspy.Module):
        def forward(self, question: str) -> Any:
            dspy.Tool(lambda tags: "found", name="find")(tags=["a"])
            return dspy.Prediction(answer="yes", tags=["a"])

    seen: list[Any] = []

    def spoil(result: AfterTurn) -> None:
        seen.append((result.turn.outputs, dict(result.tool_calls[0].arguments)))
        result.prediction.answer = "no"
        result.prediction.tags.append("b")
        result.tool_calls[0].arguments["tags"] = []

    _, state = run(SessionState(), Tagging(), HI, hooks=Hooks(after=[spoil, spoil]))
    outputs = {"answer": "yes", "tags": ["a"]}
    assert state.turns[-1].outputs == outputs
    assert seen == [(outputs, {"tags": ["a"]})] * 2, "each sees the truth"


def test_C11_an_input_that_no_hook_replaces_is_the_callers_own_object() -> None:
    class Same(dspy.Module):
        def forward(self, value: Any) -> Any:
            return id(value)

    value: list[str] = []
    for change in (lambda call: call, lambda call: call.replace(data={"a": 1})):
        answer, _ = step(SessionState(), Same(), {"value": value}, hooks=Hooks(before=change))
        assert answer == id(value)


# --- refusing -------------------------------------------------------------------------------------


@every_way
@sync_or_async
def test_C11_a_before_hook_refuses_a_turn_with_a_reason(
    run: Way, kind: Callable[..., Any], lm: ScriptedLM
) -> None:
    state = talked("Before")
    sent = len(lm.prompts)
    later: list[Any] = []

    def check(call: BeforeTurn) -> Any:
        return call.refuse("We are closed.") if call.inputs["question"] == "Hi" else None

    hooks = Hooks(before=[kind(check), later.append], after=later.append)
    with pytest.raises(TurnRefusedError, match=r"^We are closed\.$") as refused:
        run(state, PROGRAM, HI, hooks=hooks)
    assert refused.value.reason == "We are closed."
    assert len(lm.prompts) == sent
    assert not later
    assert len(state) == 1


def test_C11_a_refused_turn_is_an_attempt_and_the_state_the_very_same() -> None:
    session = sessionify(PROGRAM, hooks=Hooks(before=lambda call: call.refuse("No.")))
    state = session.state
    with pytest.raises(TurnRefusedError):
        session(question="Hi")
    assert session.state is state
    (attempt,) = session.attempts
    assert attempt.status == "failed"
    assert attempt.inputs == HI
    assert attempt.error.endswith("TurnRefusedError: No.")
    assert attempt.run.lm_calls == 0


# --- after ----------------------------------------------------------------------------------------


@every_way
@sync_or_async
def test_K6_an_after_hook_counts_requests_and_adds_up_tokens(
    run: Way, kind: Callable[..., Any]
) -> None:
    def account(result: AfterTurn) -> AfterTurn:
        tokens = sum(counts["total_tokens"] for counts in result.usage.values())
        total = result.metadata.get("tokens", 0) + tokens
        requests = result.data.get("requests", 0) + 1
        return result.replace(
            data=result.data.changed({"requests": requests}),
            metadata=result.metadata.changed({"tokens": total}),
        )

    state, hooks = SessionState(), Hooks(after=kind(account))
    for _ in range(2):
        _, state = run(state, PROGRAM, HI, hooks=hooks)
    spent = [turn.usage["scripted"]["total_tokens"] for turn in state.turns]
    assert all(spent)
    assert state.metadata.to_dict() == {"tokens": sum(spent)}
    assert [turn.data["requests"] for turn in state.turns] == [1, 2]


def test_K6_hooks_around_a_real_lm_over_http() -> None:
    def add_context(call: BeforeTurn) -> BeforeTurn:
        user = call.request["user"]["name"]
        requests = call.data.get("requests", 0) + 1
        return call.replace(
            instructions=f"The user is {user}.", data=call.data.changed({"requests": requests})
        )

    def add_up(result: AfterTurn) -> AfterTurn:
        tokens = sum(counts["total_tokens"] for counts in result.usage.values())
        total = result.metadata.get("tokens", 0) + tokens
        return result.replace(metadata=result.metadata.changed({"tokens": total}))

    session = sessionify(PROGRAM, hooks=Hooks(before=add_context, after=add_up))
    with (
        LoopbackServer(lambda body: "[[ ## answer ## ]]\nHello.") as server,
        dspy.context(lm=server.lm()),
    ):
        for name in ("ada", "ben"):
            session.using(request={"user": {"name": name}})(question="Hi")
    told = [request.messages[0]["content"] for request in server.received]
    assert ["The user is ada." in text for text in told] == [True, False]
    assert ["The user is ben." in text for text in told] == [False, True]
    spent = [counts["total_tokens"] for turn in session.turns for counts in turn.usage.values()]
    assert session.data.to_dict() == {"requests": 2}
    assert session.metadata.to_dict() == {"tokens": sum(spent)}
    assert len(spent) == 2


@every_step
def test_C11_an_after_hook_sees_the_turn_as_it_will_be_recorded(run: Way) -> None:
    seen: list[AfterTurn] = []
    state = talked("Before")
    prediction, after = run(
        state, PROGRAM, HI, hooks=Hooks(after=seen.append), request={"locale": "nb"}
    )
    (result,) = seen
    turn = after.turns[-1]
    assert result.turn == turn
    assert result.turn.id == turn.id
    assert turn.index == 1
    assert result.prediction.answer == prediction.answer == turn.outputs["answer"]
    assert result.state is state
    assert dict(result.request) == {"locale": "nb"}
    assert (result.lm_calls, result.cost, result.tool_calls) == (1, turn.cost, ())
    assert result.usage == turn.usage
    assert result.metadata.to_dict() == {}


def test_C11_what_an_after_hook_sees_prints_without_what_is_behind_it() -> None:
    printed: list[str] = []
    step(SessionState(), PROGRAM, HI, hooks=Hooks(after=lambda r: printed.append(repr(r))))
    assert "answer to Hi" in printed[0]
    assert "Outcome(" not in printed[0]
    assert "SessionOptions(" not in printed[0]


def test_C11_metadata_is_merged_and_a_key_can_be_taken_out() -> None:
    def tidy(result: AfterTurn) -> AfterTurn:
        kept = {key: value for key, value in result.metadata.items() if key != "old"}
        return result.replace(metadata={**kept, "new": 2})

    session = sessionify(PROGRAM, hooks=Hooks(after=tidy), metadata={"old": 1, "same": 0})
    session(question="Hi")
    assert session.metadata.to_dict() == {"same": 0, "new": 2}
    session.undo()
    assert session.metadata.to_dict() == {"same": 0, "new": 2}


def test_C11_metadata_of_several_hooks() -> None:
    def note(key: str) -> Callable[[AfterTurn], AfterTurn]:
        return lambda result: result.replace(
            metadata={**result.metadata, key: len(result.metadata)}
        )

    _, state = step(SessionState(), PROGRAM, HI, hooks=Hooks(after=[note("a"), note("b")]))
    assert state.metadata.to_dict() == {"a": 0, "b": 1}


def test_C11_an_after_hook_sees_tools_as_they_ended_but_not_an_agents_own() -> None:
    def add(a: int, b: int) -> int:
        return a + b

    def fail(what: str) -> str:
        raise ValueError(f"no {what}")

    plan: Iterator[dict[str, Any]] = iter(
        [
            {"next_thought": "1", "next_tool_name": "add", "next_tool_args": {"a": 1, "b": 2}},
            {"next_thought": "2", "next_tool_name": "fail", "next_tool_args": {"what": "tea"}},
            {"next_thought": "3", "next_tool_name": "finish", "next_tool_args": {}},
            {"reasoning": "r", "answer": "3"},
        ]
    )
    seen: list[AfterTurn] = []
    agent = dspy.ReAct("question -> answer", tools=[add, fail])
    with dspy.context(lm=ScriptedLM(lambda _: next(plan))):
        _, state = step(SessionState(), agent, HI, hooks=Hooks(after=seen.append))
    first, second = seen[0].tool_calls
    assert (first.name, first.arguments, first.result, first.error) == (
        "add",
        {"a": 1, "b": 2},
        "3",
        None,
    )
    assert (second.name, second.arguments, second.result, second.error) == (
        "fail",
        {"what": "tea"},
        None,
        "ValueError: no tea",
    )
    assert first.id != second.id
    assert seen[0].lm_calls == 4 == state.turns[0].lm_calls


def test_C11_tool_calls_are_seen_in_dspys_threads() -> None:
    barrier = threading.Barrier(2)

    def meet(name: str) -> str:
        barrier.wait(SOON)
        return name

    class Two(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tool = dspy.Tool(meet)

        def forward(self, question: str) -> Any:
            runner = dspy.Parallel(num_threads=2, disable_progress_bar=True)
            return runner([(lambda name: self.tool(name=name), {"name": n}) for n in "ab"])

    seen: list[AfterTurn] = []
    step(SessionState(), Two(), HI, hooks=Hooks(after=seen.append))
    assert sorted(call.result or "" for call in seen[0].tool_calls) == ["a", "b"]


def test_C11_a_tool_call_that_waits_for_approval_has_not_ended() -> None:
    @session_tool(approval=True)
    def refund(amount: int) -> str:
        raise AssertionError(amount)

    plan: Iterator[dict[str, Any]] = iter(
        [
            {"next_thought": "1", "next_tool_name": "refund", "next_tool_args": {"amount": 5}},
            {"next_thought": "2", "next_tool_name": "finish", "next_tool_args": {}},
            {"reasoning": "r", "answer": "It waits."},
        ]
    )
    seen: list[AfterTurn] = []
    agent = dspy.ReAct("question -> answer", tools=[refund])
    with dspy.context(lm=ScriptedLM(lambda _: next(plan))):
        _, state = step(SessionState(), agent, HI, hooks=Hooks(after=seen.append))
    assert seen[0].tool_calls == ()
    (waiting,) = seen[0].turn.pending_tool_calls
    assert (waiting["name"], waiting["arguments"]) == ("refund", {"amount": 5})
    assert state.turns[0].pending_tool_calls == [waiting]


# --- errors ---------------------------------------------------------------------------------------


HOOKED: dict[str, Callable[[Callable[..., Any]], Hooks]] = {
    "before": lambda hook: Hooks(before=hook),
    "after": lambda hook: Hooks(after=hook),
}


class BrokenError(Exception):
    pass


@every_way
@sync_or_async
@pytest.mark.parametrize("place", ["before", "after"])
def test_C11_an_error_in_a_hook_is_an_error_of_the_turn(
    run: Way, kind: Callable[..., Any], place: str
) -> None:
    state = talked("Before")

    def broken(_: Any) -> None:
        raise BrokenError("out of order")

    hooks = HOOKED[place](kind(broken))
    with pytest.raises(BrokenError, match="out of order"):
        run(state, PROGRAM, HI, hooks=hooks, data={"kept": False})
    assert len(state) == 1
    assert state.data.is_empty


@pytest.mark.parametrize("place", ["before", "after"])
def test_C11_a_session_keeps_the_very_same_state_and_an_attempt(place: str) -> None:
    def broken(*_: Any) -> Any:
        raise StopIteration("even this")

    session = sessionify(PROGRAM, hooks=HOOKED[place](broken))
    state = session.state
    with pytest.raises(StopIteration):
        session(question="Hi")
    assert session.state is state
    (attempt,) = session.attempts
    assert "even this" in attempt.error
    assert attempt.inputs == HI
    assert attempt.run.lm_calls == (1 if place == "after" else 0)


WRONG_BEFORE: dict[str, tuple[Callable[[BeforeTurn], Any], type[Exception], str]] = {
    "something else": (lambda call: "no", HookError, "of the type str"),
    "an answer": (lambda call: call.answer({"answer": "Hi"}), HookError, "Only middleware"),
    "no reason": (lambda call: call.refuse(3), HookError, "reason in words"),  # type: ignore[arg-type]
    "inputs no mapping": (
        lambda call: call.replace(inputs=["Hi"]),  # type: ignore[arg-type]
        HookError,
        "gives inputs as a mapping",
    ),
    "inputs not named by text": (
        lambda call: call.replace(inputs={1: "Hi"}),  # type: ignore[dict-item]
        HookError,
        "gives inputs as a mapping",
    ),
    "another state": (
        lambda call: msgspec.structs.replace(call, state=SessionState()),
        HookError,
        "changed the state or the request",
    ),
    "another request": (
        lambda call: msgspec.structs.replace(call, request={}),
        HookError,
        "changed the state or the request",
    ),
    "request": (
        lambda call: call.replace(request={}),  # type: ignore[arg-type]
        HookError,
        "cannot change request",
    ),
    "no data": (lambda call: call.replace(data=None), HookError, "gives data whole"),  # type: ignore[arg-type]
    "data that is not JSON": (
        lambda call: call.replace(data={"cart": object()}),
        DataError,
        "cart",
    ),
    "data behind the back": (
        lambda call: msgspec.structs.replace(call, data=["no"]),
        DataError,
        "mapping",
    ),
    "data too large": (
        lambda call: call.replace(data={"cart": "x" * 2_000}),
        DataError,
        "1000 bytes",
    ),
    "instructions that are not text": (
        lambda call: call.replace(instructions=3),  # type: ignore[arg-type]
        OptionError,
        "instructions must be text",
    ),
}


@pytest.mark.parametrize("name", WRONG_BEFORE)
def test_C11_what_a_before_hook_may_not_return(name: str, lm: ScriptedLM) -> None:
    hook, kind, message = WRONG_BEFORE[name]
    session = sessionify(PROGRAM, hooks=Hooks(before=hook), max_data_bytes=1000)
    state = session.state
    with pytest.raises(kind, match=message):
        session(question="Hi")
    assert session.state is state
    assert not lm.prompts


WRONG_AFTER: dict[str, tuple[Callable[[AfterTurn], Any], type[Exception], str]] = {
    "something else": (lambda result: 3, HookError, "after-hook .* of the type int"),
    "the prediction": (
        lambda result: result.replace(prediction="other"),
        HookError,
        "only middleware can",
    ),
    "the turn": (
        lambda result: result.replace(turn=None),  # type: ignore[arg-type]
        HookError,
        "cannot change turn.*middleware",
    ),
    "the turn behind the back": (
        lambda result: msgspec.structs.replace(result, turn=result.turn.__class__),
        HookError,
        "turn, tool_calls, state, request",
    ),
    "one of its own": (
        lambda result: AfterTurn(
            turn=result.turn, prediction=result.prediction, state=result.state
        ),
        HookError,
        "must return what",
    ),
    "no data": (
        lambda result: result.replace(data=None),  # type: ignore[arg-type]
        HookError,
        "gives data whole",
    ),
    "no metadata": (
        lambda result: result.replace(metadata=None),  # type: ignore[arg-type]
        HookError,
        "gives metadata whole",
    ),
    "data that is not JSON": (
        lambda result: result.replace(data={"lock": object()}),
        DataError,
        "lock",
    ),
    "data too large": (
        lambda result: result.replace(data={"cart": "x" * 2_000}),
        DataError,
        "1000 bytes",
    ),
    "metadata that is not JSON": (
        lambda result: result.replace(metadata={"m": object()}),
        DataError,
        "m",
    ),
}


@pytest.mark.parametrize("name", WRONG_AFTER)
def test_C11_what_an_after_hook_may_not_return(name: str) -> None:
    hook, kind, message = WRONG_AFTER[name]
    session = sessionify(PROGRAM, hooks=Hooks(after=hook), max_data_bytes=1000)
    state = session.state
    with pytest.raises(kind, match=message):
        session(question="Hi")
    assert session.state is state
    assert len(session.attempts) == 1


@pytest.mark.parametrize("given", [3, "hook", [3], {"a": len}, None])
@pytest.mark.parametrize("place", ["before", "after", "around"])
def test_C11_hooks_are_functions(place: str, given: Any) -> None:
    with pytest.raises(OptionError, match=f"{place}="):
        Hooks(**{place: given})


def test_C11_hooks_are_given_as_hooks() -> None:
    state = SessionState()
    with pytest.raises(OptionError, match=r"must be dspy_session\.Hooks"):
        step(state, PROGRAM, HI, hooks=len)  # type: ignore[arg-type]
    assert state == SessionState()
    assert step(state, PROGRAM, HI, hooks=Hooks())[1].turns


# --- around them ----------------------------------------------------------------------------------


@every_step
def test_C11_hooks_run_outside_of_the_turn(run: Way) -> None:
    """So a model that a hook calls is told nothing of the conversation, and is not counted."""
    aside = ScriptedLM(echo)

    def peek(_: Any) -> None:
        with dspy.context(lm=aside):
            assert PROGRAM(question="aside").answer == "answer to aside"

    state = talked("Before")
    _, after = run(state, PROGRAM, HI, hooks=Hooks(before=peek, after=peek))
    assert [past(prompt) for prompt in aside.prompts] == [[], []]
    assert after.turns[-1].lm_calls == 1


where: contextvars.ContextVar[str] = contextvars.ContextVar("where")


@every_step
@sync_or_async
def test_C11_hooks_see_the_callers_context(run: Way, kind: Callable[..., Any]) -> None:
    seen: list[str] = []
    where.set("here")
    note = kind(lambda _: seen.append(where.get()))
    run(SessionState(), PROGRAM, HI, hooks=Hooks(before=note, after=note))
    assert seen == ["here", "here"]


def test_C11_an_async_hook_in_a_sync_call_runs_in_the_callers_thread() -> None:
    """So that Ctrl-C, which the main thread hears, cancels it."""
    seen: list[int] = []

    async def hook(_: Any) -> None:
        seen.append(threading.get_ident())

    step(SessionState(), PROGRAM, HI, hooks=Hooks(before=hook))
    assert seen == [threading.get_ident()]


def test_C11_an_async_hook_in_a_sync_call_within_a_running_loop() -> None:
    loops: list[Any] = []

    async def hook(_: Any) -> None:
        loops.append(asyncio.get_running_loop())

    async def main() -> None:
        step(SessionState(), PROGRAM, HI, hooks=Hooks(before=hook))
        assert loops[0] is not asyncio.get_running_loop()

    asyncio.run(main())


def test_C11_overlapping_turns_keep_each_others_data_and_metadata() -> None:
    """Both began before either ended; each one's changes are merged per key."""
    both = threading.Barrier(2)

    def mark(call: BeforeTurn) -> BeforeTurn:
        return call.replace(data=call.data.changed({call.inputs["question"]: "began"}))

    def meet(result: AfterTurn) -> AfterTurn:
        both.wait(SOON)
        name = result.turn.inputs["question"]
        return result.replace(
            data={**result.data, name: "ended", "last": name},
            metadata=result.metadata.changed({name: True}),
        )

    session = sessionify(PROGRAM, hooks=Hooks(before=mark, after=meet), data={"first": 0})
    contexts = {question: contextvars.copy_context() for question in "ab"}
    threads = [
        threading.Thread(target=context.run, args=(partial(session, question=question),))
        for question, context in contexts.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = [turn.inputs["question"] for turn in session.turns]
    assert session.data.to_dict() == {"first": 0, "a": "ended", "b": "ended", "last": ended[-1]}
    assert session.metadata.to_dict() == {"a": True, "b": True}
    assert set(session.turns[0].data) == {"first", ended[0], "last"}


def test_C11_overlapping_async_turns() -> None:
    async def slow(result: AfterTurn) -> AfterTurn:
        await asyncio.sleep(0.01 if result.turn.inputs["question"] == "a" else 0)
        return result.replace(data={**result.data, result.turn.inputs["question"]: 1})

    session = sessionify(PROGRAM, hooks=Hooks(after=slow))

    async def main() -> None:
        await asyncio.gather(session.acall(question="a"), session.acall(question="b"))

    asyncio.run(main())
    assert session.data.to_dict() == {"b": 1, "a": 1}


def test_C11_a_cancelled_async_hook_leaves_no_turn() -> None:
    begun = asyncio.Event()

    async def forever(_: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    session = sessionify(PROGRAM, hooks=Hooks(after=forever))
    state = session.state

    async def main() -> None:
        task = asyncio.create_task(session.acall(question="Hi"))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert session.state is state
    assert session.attempts[0].cancelled


def test_C11_forks_go_on_with_the_hooks() -> None:
    count = Hooks(after=lambda r: r.replace(data={"n": r.data.get("n", 0) + 1}))
    session = sessionify(PROGRAM, hooks=count)
    session(question="one")
    branch = session.fork()
    branch(question="two")
    assert (session.data["n"], branch.data["n"]) == (1, 2)
    assert branch.hooks is session.hooks


def test_C11_a_trial_runs_the_hooks_and_keeps_nothing(lm: ScriptedLM) -> None:
    seen: list[AfterTurn] = []

    def shout(call: BeforeTurn) -> BeforeTurn:
        return call.replace(inputs={"question": call.inputs["question"].upper()})

    session = sessionify(PROGRAM, hooks=Hooks(before=shout, after=[seen.append, _count]))
    state = session.state
    frozen: Session = session.frozen()
    assert frozen(question="hi").answer == "answer to HI"
    assert session.state is state
    assert seen[0].turn.inputs == {"question": "HI"}


def _count(result: AfterTurn) -> AfterTurn:
    return result.replace(data={"n": 1}, metadata={"n": 1})


def test_C11_hooks_and_an_explicit_history() -> None:
    """It is no input to change, and a turn that is not recorded keeps nothing of the hooks."""
    seen: list[Any] = []
    history = dspy.History(messages=[{"question": "Q", "answer": "A"}])
    state = talked("Before")
    inputs = {**HI, "history": history}
    hooks = Hooks(before=lambda call: seen.append(dict(call.inputs)), after=_count)
    _, after = step(state, PROGRAM, inputs, hooks=hooks)
    assert after is state
    assert seen == [HI]
    options = SessionOptions(history_policy=HistoryPolicy.USE_IF_PROVIDED)
    _, after = step(state, PROGRAM, inputs, options, hooks=hooks)
    assert len(after) == 2
    assert after.data["n"] == 1


def test_C11_a_hook_cannot_smuggle_in_a_history(lm: ScriptedLM) -> None:
    state = SessionState()
    hooks = Hooks(before=lambda call: call.replace(inputs={**call.inputs, "history": 3}))
    with pytest.raises(Exception, match="history field"):
        step(state, PROGRAM, HI, hooks=hooks)
    assert state == SessionState()
    assert not lm.prompts


def test_C11_hooks_of_a_turn_asked_again_begin_with_what_it_began_with() -> None:
    session = sessionify(PROGRAM, hooks=Hooks(after=_add_one))
    session(question="one")
    session(question="two")
    session.regenerate(0)
    assert session.data["n"] == 1
    assert len(session) == 1
    session.redo(2)
    assert session.data["n"] == 2


def _add_one(result: AfterTurn) -> AfterTurn:
    return result.replace(data={"n": result.data.get("n", 0) + 1})


def test_C11_hooks_of_an_inner_session_work_within_the_outer_turn() -> None:
    inner = sessionify(PROGRAM, hooks=Hooks(after=_add_one))

    class Outer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, question: str) -> Any:
            return self.inner(question=question).answer

    outer = sessionify(Outer(), copy_mode="none", hooks=Hooks(after=_add_one))
    outer(question="Hi")
    outer(question="Hi")
    assert (outer.data["n"], outer.state.nested["inner"].data["n"]) == (2, 2)
    outer.undo()
    assert (outer.data["n"], outer.state.nested["inner"].data["n"]) == (1, 1)


def test_C11_a_program_of_knn_few_shot_is_one_turn_with_its_hooks() -> None:
    """It compiles and calls a copy of the session in each call; only the last run counts."""

    class Counter(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            data = current_data()
            data["runs"] = data.get("runs", 0) + 1
            return self.qa(question=question)

    seen: list[dict[str, Any]] = []

    def before(call: BeforeTurn) -> BeforeTurn:
        seen.append(dict(call.inputs))
        return call.replace(data={**call.data, "runs": 10}, instructions="Sing.")

    session = sessionify(Counter(), hooks=Hooks(before=before))
    examples = [dspy.Example(question=q, answer=f"answer to {q}") for q in ("a", "b", "c")]
    vectorizer = dspy.Embedder(letters, caching=False)
    optimizer = teleprompt.KNNFewShot(
        k=2, trainset=[e.with_inputs("question") for e in examples], vectorizer=vectorizer
    )
    learned = optimizer.compile(session)
    seen.clear()
    with dspy.context(lm=(lm := ScriptedLM(echo))):
        learned(question="Hi")
    assert seen == [HI]
    assert learned.data.to_dict() == {"runs": 11}
    assert "Sing." in system(lm.prompts[-1])


def test_C11_an_awaited_step_leaves_other_tasks_running_while_an_async_hook_waits() -> None:
    ready = asyncio.Event()

    async def wait(_: Any) -> None:
        await ready.wait()

    async def main() -> int:
        task = asyncio.create_task(astep(SessionState(), PROGRAM, HI, hooks=Hooks(before=wait)))
        await asyncio.sleep(0)
        ready.set()
        return len((await task)[1])

    assert asyncio.run(main()) == 1
