"""Tools that ask first: who may say yes, to what, how often, and what is told until then."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import math
import threading
from collections.abc import Callable
from typing import Any

import dspy
import pydantic
import pytest

from dspy_session import (
    ApprovalRequest,
    OptionError,
    SessionData,
    SessionState,
    ToolError,
    astep,
    session_tool,
    sessionify,
    step,
)
from dspy_session.errors import HookError
from dspy_session.testing import ScriptedLM
from tests.streams import SOON
from tests.test_session_tools import AGENT_NAMES, AGENTS, NAMED, Agent, told, words

REFUND = ("refund", {"amount": 20})


@session_tool(approval=True)
def refund(amount: int, session: SessionData, currency: str = "EUR") -> str:
    """Pay money back."""
    session["refunds"] = [*session.get("refunds", []), amount]
    return f"refunded {amount} {currency}"


@session_tool(approval=True)
async def refund_later(amount: int, session: SessionData) -> str:
    """Pay money back, awaited."""
    await asyncio.sleep(0)
    session["refunds"] = [*session.get("refunds", []), amount]
    return f"refunded {amount} at last"


@session_tool(approval=True)
def close(reason: str) -> str:
    """Close the account; takes no session data."""
    return f"closed: {reason}"


def react(*tools: Callable[..., Any]) -> dspy.Module:
    return dspy.ReAct(NAMED, tools=list(tools or (refund, refund_later, close)))


def run(
    program: dspy.Module, lm: ScriptedLM, state: SessionState | None = None, **given: Any
) -> SessionState:
    with dspy.context(lm=lm):
        return step(state or SessionState(), program, {"question": "?"}, **given)[1]


async def arun(
    program: dspy.Module, lm: ScriptedLM, state: SessionState | None = None, **given: Any
) -> SessionState:
    with dspy.context(lm=lm):
        return (await astep(state or SessionState(), program, {"question": "?"}, **given))[1]


def pending(state: SessionState) -> list[dict[str, Any]]:
    """The calls that wait, as of the last turn."""
    return state.turns[-1].pending_tool_calls


# --- waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AGENTS, ids=AGENT_NAMES)
@pytest.mark.parametrize("awaited", [False, True])
def test_K3_a_tool_that_nobody_approves_waits(
    kind: Callable[..., dspy.Module], awaited: bool
) -> None:
    lm = Agent(REFUND, ("refund", {"amount": 20, "currency": "EUR"}), ("close", {"reason": "x"}))
    program = kind(NAMED, tools=[refund, close])
    state = asyncio.run(arun(program, lm)) if awaited else run(program, lm)
    assert state.data == {}
    assert [{**call, "id": ""} for call in pending(state)] == [
        {"id": "", "name": "refund", "arguments": {"amount": 20, "currency": "EUR"}},
        {"id": "", "name": "close", "arguments": {"reason": "x"}},
    ]
    assert "This call of refund needs approval and waits for it; it has not run." in told(state)
    assert "refunded" not in told(state)
    assert "needs approval" in "\n".join(map(words, lm.prompts))


def test_K3_the_next_request_brings_the_approval() -> None:
    waiting = run(react(), Agent(REFUND))
    (call,) = pending(waiting)
    assert len(call["id"]) == 32
    done = run(react(), Agent(REFUND), waiting, approvals=[call["id"]])
    assert done.data == {"refunds": [20]}
    assert "refunded 20 EUR" in told(done)
    assert pending(done) == []
    assert pending(waiting) == [call]
    again = run(react(), Agent(REFUND), done)
    assert (again.data, pending(again)) == (done.data, [call])


def test_K3_an_approval_is_for_that_very_call() -> None:
    (call,) = pending(run(react(), Agent(REFUND)))
    for other in (("refund", {"amount": 21}), ("refund_later", {"amount": 20})):
        with dspy.context(allow_tool_async_sync_conversion=True):
            state = run(react(), Agent(other), approvals=[call["id"], "made up"])
        assert state.data == {}
        (call_now,) = pending(state)
        assert call_now["id"] != call["id"]
        assert call_now["arguments"]["amount"] == other[1]["amount"]


def test_K3_the_order_in_which_a_model_names_things_makes_no_other_call() -> None:
    @session_tool(approval=True)
    def order(items: dict[str, int], **notes: str) -> str:
        """Order items."""
        return "done"

    class Program(dspy.Module):
        def forward(self, question: str) -> Any:
            order(items={"tea": 1, "mug": 2}, to="Ada", by="ship")
            return order(by="ship", to="Ada", items={"mug": 2, "tea": 1})

    assert len(pending(run(Program(), ScriptedLM()))) == 1


def test_K3_an_approval_counts_once_in_a_turn() -> None:
    (call,) = pending(run(react(), Agent(REFUND)))
    state = run(react(), Agent(REFUND, REFUND), approvals=[call["id"]])
    assert state.data == {"refunds": [20]}
    assert pending(state) == [call]


def test_K3_an_approval_counts_once_in_threads() -> None:
    (call,) = pending(run(react(), Agent(REFUND)))

    class Program(dspy.Module):
        def forward(self, question: str) -> Any:
            together, tool = threading.Barrier(2), dspy.Tool(refund)

            def both(amount: int) -> Any:
                together.wait(SOON)
                return tool(amount=amount)

            pairs = [(dspy.Tool(both), {"amount": 20})] * 2
            return dspy.Parallel(num_threads=2, disable_progress_bar=True)(pairs)

    state = run(Program(), ScriptedLM(), approvals=[call["id"]])
    assert state.data == {"refunds": [20]}
    assert pending(state) == [call]


def test_K3_a_session_is_given_approvals_for_a_call() -> None:
    session = sessionify(react())
    with dspy.context(lm=Agent(REFUND)):
        session(question="?")
        (call,) = pending(session.state)
        session.using(approvals=[call["id"]])(question="?")
    assert session.data == {"refunds": [20]}
    session.undo()
    assert session.data == {}
    assert pending(session.state) == [call]


# --- an approver ----------------------------------------------------------------------------------


def test_K3_an_approver_is_asked_about_each_call() -> None:
    asked: list[ApprovalRequest] = []

    def approver(request: ApprovalRequest) -> bool:
        asked.append(request)
        request.arguments["currency"] = "made up"
        return bool(request.arguments.get("amount", 0) <= 20)

    lm = Agent(REFUND, ("refund", {"amount": 21}))
    state = run(react(), lm, approver=approver, data={"user": "ada"})
    assert [request.name for request in asked] == ["refund", "refund"]
    assert [request.arguments["amount"] for request in asked] == [20, 21]
    assert [request.data.to_dict() for request in asked] == [
        {"user": "ada"},
        {"user": "ada", "refunds": [20]},
    ]
    assert state.data == {"user": "ada", "refunds": [20]}
    assert "refunded 20 EUR" in told(state)
    (call,) = pending(state)
    assert call == {
        "id": asked[1].id,
        "name": "refund",
        "arguments": {"amount": 21, "currency": "EUR"},
    }
    with pytest.raises(AttributeError):
        asked[0].name = "other"  # type: ignore[misc]


def test_K3_a_call_that_is_approved_in_the_end_waits_no_more() -> None:
    answers = iter([False, True])
    state = run(react(), Agent(REFUND, REFUND), approver=lambda request: next(answers))
    assert state.data == {"refunds": [20]}
    assert pending(state) == []


def test_K3_what_was_approved_beforehand_is_not_asked_about() -> None:
    (call,) = pending(run(react(), Agent(REFUND)))
    asked: list[str] = []

    def approver(request: ApprovalRequest) -> bool:
        asked.append(request.id)
        return False

    state = run(react(), Agent(REFUND), approver=approver, approvals=[call["id"]])
    assert state.data == {"refunds": [20]}
    assert asked == []


async def slow_yes(request: ApprovalRequest) -> bool:
    await asyncio.sleep(0)
    return True


@pytest.mark.parametrize("approver", [lambda request: True, slow_yes], ids=["sync", "async"])
@pytest.mark.parametrize("tool", ["refund", "refund_later"])
def test_K3_an_approver_is_sync_or_async_in_every_call_mode(tool: str, approver: Any) -> None:
    lm, program = Agent((tool, {"amount": 20})), react()
    settings = {"lm": lm, "allow_tool_async_sync_conversion": True}
    with dspy.context(**settings):
        assert run(program, lm, approver=approver).data == {"refunds": [20]}
        assert asyncio.run(arun(program, lm, approver=approver)).data == {"refunds": [20]}
        session = sessionify(program, approver=approver)
        session(question="?")
        asyncio.run(session.acall(question="?"))
        for _ in session.stream(question="?"):
            pass
        assert session.data == {"refunds": [20] * 3}


def test_K3_a_sync_turn_in_a_running_loop_asks_an_async_approver_too() -> None:
    async def notebook() -> SessionState:
        return run(react(), Agent(REFUND), approver=slow_yes)

    assert asyncio.run(notebook()).data == {"refunds": [20]}


class Sync(dspy.Module):
    """A program that can only be called."""

    def __init__(self) -> None:
        super().__init__()
        self.agent = react()

    def forward(self, question: str) -> Any:
        return self.agent(question=question)


@pytest.mark.parametrize("program", [Sync(), react()], ids=["in a thread", "awaited"])
def test_K3_an_async_approver_is_awaited_in_the_loop_of_the_turn(program: dspy.Module) -> None:
    async def served() -> SessionState:
        decision: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        asked = asyncio.Event()

        async def approver(request: ApprovalRequest) -> bool:
            asked.set()
            return await decision

        turn = asyncio.create_task(arun(program, Agent(REFUND), approver=approver))
        await asyncio.wait_for(asked.wait(), SOON)  # the loop is free meanwhile
        decision.set_result(True)
        return await turn

    assert asyncio.run(served()).data == {"refunds": [20]}


# --- what goes wrong ------------------------------------------------------------------------------


def broken(request: ApprovalRequest) -> bool:
    raise ValueError("the approver is out")


async def broken_later(request: ApprovalRequest) -> bool:
    await asyncio.sleep(0)
    raise ValueError("the approver is out")


@pytest.mark.parametrize("kind", AGENTS, ids=AGENT_NAMES)
@pytest.mark.parametrize(
    ("approver", "error", "message"),
    [
        (broken, ValueError, "the approver is out"),
        (broken_later, ValueError, "the approver is out"),
        (lambda request: None, HookError, "must return True or False, not None; it was asked"),
        (lambda request: "yes", HookError, "not 'yes'"),
        (lambda request: 1, HookError, "about a call of 'refund'"),
    ],
)
def test_K3_an_error_of_the_approver_is_one_of_the_turn(
    kind: Callable[..., dspy.Module], approver: Any, error: type[Exception], message: str
) -> None:
    lm, program = Agent(("refund", {"amount": 20})), kind(NAMED, tools=[refund])
    session = sessionify(program, approver=approver)
    before = session.state
    with dspy.context(lm=lm), pytest.raises(error, match=message):
        session(question="?")
    assert session.state is before
    assert len(lm.prompts) == 1  # and nothing more is asked of the model
    state = SessionState()
    with pytest.raises(error, match=message):
        asyncio.run(arun(program, Agent(REFUND), state, approver=approver))
    assert len(state) == 0
    assert state.data == {}


def test_K3_so_it_is_where_the_program_swallows_it() -> None:
    class Program(dspy.Module):
        def forward(self, question: str) -> Any:
            try:
                refund(20)
            except ValueError:
                return "never mind"

    state = SessionState()
    with pytest.raises(ValueError, match="the approver is out"):
        run(Program(), ScriptedLM(), state, approver=broken)
    assert len(state) == 0


def test_K3_a_turn_that_fails_leaves_nothing_pending() -> None:
    class Program(dspy.Module):
        def forward(self, question: str) -> Any:
            refund(20)
            raise ConnectionError("gone")

    session = sessionify(Program())
    before = session.state
    with pytest.raises(ConnectionError):
        session(question="?")
    assert session.state is before
    assert len(before) == 0


class Item(pydantic.BaseModel):
    """A model as an argument."""

    name: str


@dataclasses.dataclass
class Address:
    """A dataclass as an argument."""

    city: str


def test_K3_arguments_of_types_are_shown_as_json() -> None:
    class Shop:
        @session_tool(approval=True)
        def send(
            self, item: Item, to: Address, on: datetime.date, *more: int, **others: int
        ) -> str:
            """Send an item."""
            return item.name

        def forward(self, question: str) -> str:
            return str(
                self.send(Item(name="tea"), Address("Oslo"), datetime.date(2026, 5, 1), 1, x=2)
            )

    class Program(dspy.Module):
        def forward(self, question: str) -> str:
            return Shop().forward(question)

    (call,) = pending(run(Program(), ScriptedLM()))
    assert call["arguments"] == {
        "item": {"name": "tea"},
        "to": {"city": "Oslo"},
        "on": "2026-05-01",
        "more": [1],
        "x": 2,
    }


def test_K3_arguments_that_nobody_can_be_shown_are_refused() -> None:
    @session_tool(approval=True)
    def odd(thing: Any = object()) -> str:  # noqa: B008  # what cannot be written
        """Do something odd."""
        return "done"

    class Program(dspy.Module):
        def forward(self, question: str) -> Any:
            return odd()

    state = SessionState()
    with pytest.raises(ToolError, match="'odd' needs approval, and this call cannot be shown"):
        run(Program(), ScriptedLM(), state, approver=lambda request: True)
    assert len(state) == 0


@pytest.mark.parametrize("amount", [math.nan, math.inf, {"of": [-math.inf]}])
def test_K3_an_argument_that_json_would_change_is_refused(amount: Any) -> None:
    """Whoever approves would be shown null, and `refund(None)` would have the same id."""
    lm = Agent(("refund", {"amount": amount}))
    asked: list[ApprovalRequest] = []

    class Program(dspy.Module):
        def forward(self, question: str) -> Any:
            return refund(amount)

    def approver(request: ApprovalRequest) -> bool:
        asked.append(request)
        return True

    with pytest.raises(ToolError, match="'refund' needs approval, and this call cannot be shown"):
        run(Program(), lm, approver=approver)
    assert asked == []


@pytest.mark.parametrize("wrong", [3, "yes", True])
def test_K3_an_approver_is_a_function(wrong: Any) -> None:
    state = SessionState()
    with pytest.raises(OptionError, match="approver must be callable, not "):
        run(react(), Agent(REFUND), state, approver=wrong)
    assert len(state) == 0


def test_K3_outside_of_a_turn_nothing_is_approved() -> None:
    with pytest.raises(ToolError, match="where no turn of a session runs"):
        close("why")


def test_K3_a_tool_of_dspy_may_ask_too() -> None:
    def pay(amount: int) -> str:
        """Pay."""
        return f"paid {amount}"

    tool = session_tool(dspy.Tool(pay, name="pay_now"), approval=True)
    assert isinstance(tool, dspy.Tool)
    (call,) = pending(run(react(tool), Agent(("pay_now", {"amount": 3}))))
    assert (call["name"], call["arguments"]) == ("pay_now", {"amount": 3})
    done = run(react(tool), Agent(("pay_now", {"amount": 3})), approvals=[call["id"]])
    assert "paid 3" in told(done)


class Outer(dspy.Module):
    """A session with a tool, inside a program."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self.inner = sessionify(react(), **keywords)

    def forward(self, question: str) -> Any:
        return self.inner(question=question)


def test_K3_whoever_began_a_turn_may_approve_what_happens_within_it() -> None:
    waiting = run(Outer(), Agent(REFUND))
    (call,) = pending(waiting)
    assert pending(waiting.nested["inner"]) == [call]
    done = run(Outer(), Agent(REFUND), waiting, approvals=[call["id"]])
    assert pending(done) == pending(done.nested["inner"]) == []
    assert done.nested["inner"].data == {"refunds": [20]}
    assert done.data == {}
    asked = run(Outer(), Agent(REFUND), approver=lambda request: True)
    assert asked.nested["inner"].data == {"refunds": [20]}
    refused = run(
        Outer(approver=lambda request: False), Agent(REFUND), approver=lambda request: True
    )
    assert refused.nested["inner"].data == {}
    state = SessionState()
    with pytest.raises(ValueError, match="the approver is out"):
        run(Outer(), Agent(REFUND), state, approver=broken)
    assert len(state) == 0
