"""The shop assistant of docs/guide/shop.md, against an HTTP server behind a real `dspy.LM`."""

from __future__ import annotations

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import dspy
import pytest

from dspy_session import SessionState, astep, sessionify, step
from dspy_session.testing import in_requested_format
from tests.house import PROJECT
from tests.loopback import SERVER_ERROR, Body, Completion, Failure, LoopbackServer
from tests.matrix_parts import MODEL
from tests.test_documentation import Block, python_blocks, run_blocks
from tests.uncollected import uncollected

GUIDE = PROJECT / "docs" / "guide" / "shop.md"
TEA, MUG, VIEW, CLEAR, BUY = (
    "Two packs of tea, please.",
    "And a mug.",
    "What do I have?",
    "Forget all that.",
    "I'll take it.",
)


def blocks() -> list[Block]:
    return python_blocks(GUIDE.read_text("utf-8"))


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tools, the program and the model of the guide: what its first two blocks define."""
    page = ModuleType("shop")
    monkeypatch.setitem(sys.modules, page.__name__, page)
    monkeypatch.setattr(dspy, "configure", lambda **settings: None)
    run_blocks(GUIDE, blocks()[:2], page)
    return page


def answering(shop: Any) -> Any:
    """The model of the guide, as the words of a server."""

    def answer(body: Body) -> str:
        return in_requested_format(body["messages"], shop.model(body["messages"]))

    return answer


def with_native_calls(shop: Any) -> Any:
    """The same for a provider with tool calls of its own: one for the request, then the reply."""

    def answer(body: Body) -> Completion:
        results = [message for message in body["messages"] if message["role"] == "tool"]
        if results:
            return Completion(tool_calls=[("submit", {"reply": results[-1]["content"]})])
        asked = [r for m in body["messages"] for r in shop.CALLS if r in str(m["content"])]
        return Completion(tool_calls=[shop.CALLS[asked[-1]]])

    return answer


def test_K3_the_whole_guide_runs_over_http(shop: Any) -> None:
    with LoopbackServer(answering(shop)) as server, dspy.context(lm=server.lm()):
        run_blocks(GUIDE, blocks()[2:], shop)
    assert len(server.received) > 20
    for request in server.received:
        assert b"SessionData" not in request.raw
        assert b"`session`" not in request.raw
        assert b'\\"session\\"' not in request.raw
    told = json.dumps(server.received[0].messages[0])
    assert "add_to_cart" in told
    assert "quantity" in told


def test_K3_the_four_turns_of_a_cart_over_http(shop: Any) -> None:
    session, carts = sessionify(shop.assistant, approver=lambda request: True), []
    with LoopbackServer(answering(shop)) as server, dspy.context(lm=server.lm()):
        for request in (TEA, MUG, BUY, VIEW):
            session(request=request)
            carts.append(session.data.get("cart"))
    assert carts == [{"items": {"tea": 2}}, {"items": {"tea": 2, "mug": 1}}, None, None]
    assert session.data.to_dict() == {"orders": [{"items": {"tea": 2, "mug": 1}}]}
    assert session.turns[-1].outputs["reply"] == "The cart is empty."
    saw = [turn.data_before.get("cart") for turn in session.turns]
    assert saw == [None, *carts[:3]]


def test_K3_a_provider_with_tool_calls_of_its_own_keeps_a_cart(shop: Any) -> None:
    tools = [shop.add_to_cart, shop.view_cart, shop.clear_cart, shop.checkout]
    session = sessionify(dspy.ReActV2("request -> reply", tools=tools))
    adapter = dspy.ChatAdapter(use_native_function_calling=True)
    server = LoopbackServer(with_native_calls(shop))
    with server, dspy.context(lm=server.lm(MODEL), adapter=adapter):
        session(request=TEA)
        session(request=MUG)
        session.undo()
        prediction = session(request=VIEW)
    assert prediction.reply == "In the cart: 2 x tea, for 8.00 euros."
    assert session.data == {"cart": {"items": {"tea": 2}}}
    for request in server.received:
        told = {tool["function"]["name"]: tool["function"] for tool in request.body["tools"]}
        assert list(told["add_to_cart"]["parameters"]["properties"]) == ["item", "quantity"]
        assert told["view_cart"]["parameters"]["properties"] == {}
    assert MUG not in str(server.received[-1].messages)


def test_K3_a_server_that_fails_after_a_tool_ran_leaves_the_cart(shop: Any) -> None:
    answer, broken = answering(shop), False

    def sometimes(body: Body) -> str | Failure:
        ran = "observation_0" in body["messages"][-1]["content"]
        return SERVER_ERROR if broken and ran else str(answer(body))

    session = sessionify(shop.assistant)
    with LoopbackServer(sometimes) as server, dspy.context(lm=server.lm(num_retries=0)):
        session(request=TEA)
        before, broken = session.state, True
        for request in (MUG, CLEAR):
            with pytest.raises(dspy.LMError):
                session(request=request)
            assert session.state is before
            assert session.data == {"cart": {"items": {"tea": 2}}}
        broken = False
        assert session(request=VIEW).reply == "In the cart: 2 x tea, for 8.00 euros."
    assert MUG not in str(server.received[-1].messages)


def test_K3_many_visitors_share_the_program_and_no_cart(shop: Any) -> None:
    def visit(number: int, server: LoopbackServer) -> Any:
        with dspy.context(lm=server.lm(f"visitor-{number}")):
            inputs, given = {"request": TEA}, {"n": number}
            _, state = step(SessionState(), shop.assistant, inputs, data=given)
            for _ in range(number % 3):
                _, state = step(state, shop.assistant, {"request": MUG})
        return state.data

    with uncollected(), LoopbackServer(answering(shop)) as server, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(visit, range(24), [server] * 24))
    for number, data in enumerate(found):
        mugs = {"mug": number % 3} if number % 3 else {}
        assert data.to_dict() == {"n": number, "cart": {"items": {"tea": 2} | mugs}}


def test_K3_awaited_visitors_too(shop: Any) -> None:
    async def visit(number: int) -> Any:
        state = SessionState()
        for request in [TEA, *[MUG] * number]:
            _, state = await astep(state, shop.assistant, {"request": request})
        return state.data["cart"]["items"].get("mug", 0)

    async def visits() -> list[Any]:
        return await asyncio.gather(*map(visit, range(3)))

    with LoopbackServer(answering(shop)) as server, dspy.context(lm=server.lm()):
        assert asyncio.run(visits()) == [0, 1, 2]
