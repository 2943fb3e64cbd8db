"""The message protocol: a client carries the conversation's data, and the server keeps nothing."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import sys
from collections.abc import Callable
from typing import Any, Literal

import dspy
import pytest
from dspy.utils.exceptions import LMUnexpectedError
from itsdangerous import TimestampSigner

from dspy_session import (
    CallError,
    DataError,
    HistoryError,
    Hooks,
    ModuleTypeError,
    OptionError,
    PayloadError,
    SessionData,
    SessionOptions,
    TurnRefusedError,
    arespond,
    current_data,
    current_request,
    respond,
    session_tool,
)
from dspy_session.core.chat import state_messages
from dspy_session.testing import Prompt, ScriptedLM, requested_fields
from tests.talk import QA, asked, echo, past

Message = dict[str, Any]
SECRET = "a secret of these tests only"


# --- a shop ---------------------------------------------------------------------------------------


@session_tool
def add_to_cart(item: str, quantity: int, session: SessionData) -> str:
    """Put something into the cart."""
    session["cart"] = [*session.get("cart", []), {"item": item, "quantity": quantity}]
    total = sum(entry["quantity"] for entry in session["cart"])
    return f"Added {quantity}x {item}. The cart has {total} items."


@session_tool
def view_cart(session: SessionData) -> str:
    """Say what is in the cart."""
    cart = session.get("cart", [])
    return ", ".join(f"{e['quantity']}x {e['item']}" for e in cart) or "Your cart is empty."


@session_tool
def checkout(session: SessionData) -> str:
    """Order what is in the cart."""
    total = sum(entry["quantity"] for entry in session.get("cart", []))
    session.delete("cart")
    return f"Order placed! {total} items will be shipped."


@session_tool(approval=True)
def refund(amount: int, session: SessionData) -> str:
    """Pay money back."""
    session["refunded"] = session.get("refunded", 0) + amount
    return f"Paid {amount} back."


CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "Add 2 widgets": ("add_to_cart", {"item": "Widget", "quantity": 2}),
    "Add 3 gadgets": ("add_to_cart", {"item": "Gadget", "quantity": 3}),
    "Checkout": ("checkout", {}),
    "What's in my cart?": ("view_cart", {}),
    "I want 30 back": ("refund", {"amount": 30}),
    "Any news?": ("refund", {"amount": 30}),
}


def shopkeeper(prompt: Prompt) -> dict[str, Any]:
    """Calls the tool that a request needs, once, and says what came of it."""
    observed = re.findall(r"\[\[ ## observation_\d+ ## \]\]\n(.*)", prompt[-1]["content"])
    if "next_tool_name" not in requested_fields(prompt):
        return {"reasoning": "The tool said so.", "answer": observed[0] if observed else "Yes?"}
    name, arguments = CALLS.get(asked(prompt), ("finish", {}))
    if observed:
        name, arguments = "finish", {}
    return {"next_thought": "Well.", "next_tool_name": name, "next_tool_args": arguments}


TOOLS = [add_to_cart, view_cart, checkout, refund]


def shop() -> dspy.ReAct:
    return dspy.ReAct("question -> answer", tools=TOOLS)


# --- clients --------------------------------------------------------------------------------------

Respond = Callable[..., dict[str, Any]]


def arespond_now(*args: Any, **keywords: Any) -> dict[str, Any]:
    return asyncio.run(arespond(*args, **keywords))


both = pytest.mark.parametrize("answer", [respond, arespond_now], ids=["sync", "async"])


def user(text: str, **data: Any) -> Message:
    return {"role": "user", "content": text, **({"data": data} if data else {})}


def sent(value: Any) -> Any:
    """What arrives when it was sent as JSON."""
    return json.loads(json.dumps(value))


def refuses(
    request: Any, *words: str, error: type[Exception] = PayloadError, **keywords: Any
) -> None:
    """The request is refused with these words, in both call modes; no model was asked."""
    lm, program = ScriptedLM(echo), keywords.pop("program", None) or dspy.Predict(QA)
    before = str(request)
    for answer in (respond, arespond_now):
        with dspy.context(lm=lm), pytest.raises(error) as caught:
            answer(request, program, **keywords)
        assert type(caught.value) is error
        for word in words:
            assert word in str(caught.value)
    assert lm.prompts == []
    assert str(request) == before


# --- K7: a conversation ---------------------------------------------------------------------------


@both
@pytest.mark.parametrize("secret", [None, SECRET], ids=["unsigned", "signed"])
@pytest.mark.parametrize("whole", [False, True], ids=["last message", "whole conversation"])
def test_K7_the_four_turns_of_a_cart(answer: Respond, secret: str | None, whole: bool) -> None:
    program, lm = shop(), ScriptedLM(shopkeeper)
    widgets, gadgets = {"item": "Widget", "quantity": 2}, {"item": "Gadget", "quantity": 3}
    messages: list[Message] = []
    carried: dict[str, Any] = {}

    def turn(text: str) -> tuple[str, dict[str, Any], list[tuple[str, dict[str, Any], str]]]:
        nonlocal messages, carried
        question = user(text, **carried)
        request = {"messages": [*messages, question] if whole else [question]}
        with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
            reply = answer(sent(request), program, secret=secret)
        assert reply == sent(reply)
        assert reply["role"] == "assistant"
        data = reply["data"]
        expected = {"session", "tool_calls", "executed_tool_calls"}
        assert set(data) == (expected if secret is None else {*expected, "signature"})
        assert data["tool_calls"] == []
        executed = [(c["name"], c["arguments"], c["result"]) for c in data["executed_tool_calls"]]
        messages = [*messages, question, reply]
        carried = data
        return reply["content"], data["session"], executed

    added = "Added 2x Widget. The cart has 2 items."
    assert turn("Add 2 widgets") == (
        added,
        {"cart": [widgets]},
        [("add_to_cart", widgets, added)],
    )
    more = "Added 3x Gadget. The cart has 5 items."
    assert turn("Add 3 gadgets") == (
        more,
        {"cart": [widgets, gadgets]},
        [("add_to_cart", gadgets, more)],
    )
    ordered = "Order placed! 5 items will be shipped."
    assert turn("Checkout") == (ordered, {}, [("checkout", {}, ordered)])
    empty = "Your cart is empty."
    assert turn("What's in my cart?") == (empty, {}, [("view_cart", {}, empty)])

    seen = past(lm.prompts[-1])
    said = [("Add 2 widgets", added), ("Add 3 gadgets", more), ("Checkout", ordered)]
    assert seen == (said if whole else [])


@both
def test_K7_a_request_without_data_begins_a_conversation(answer: Respond) -> None:
    with dspy.context(lm=ScriptedLM(echo)):
        reply = answer([user("Hi")], dspy.Predict(QA))
    assert reply == {
        "role": "assistant",
        "content": "answer to Hi",
        "data": {"session": {}, "tool_calls": [], "executed_tool_calls": []},
    }


def test_K7_the_same_request_gets_the_same_reply_for_nothing_is_kept() -> None:
    program, lm = shop(), ScriptedLM(shopkeeper)
    request = {"messages": [user("Add 2 widgets", session={"cart": []})]}
    before = copy.deepcopy(request)
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        replies = [respond(request, program) for _ in range(2)]
    for reply in replies:
        for call in reply["data"]["executed_tool_calls"]:
            assert call.pop("id")
    assert replies[0] == replies[1]
    assert request == before
    assert lm.prompts[:3] == lm.prompts[3:]


@pytest.mark.parametrize("written", [json.dumps, lambda it: json.dumps(it).encode()])
@pytest.mark.parametrize("bare", [False, True])
def test_K7_a_request_may_come_as_json(written: Any, bare: bool) -> None:
    messages = [user("Hi"), {"role": "assistant", "content": "Hello."}, user("And?")]
    request = messages if bare else {"messages": messages, "model": "any", "stream": False}
    lm = ScriptedLM(echo)
    with dspy.context(lm=lm):
        replies = [respond(form, dspy.Predict(QA)) for form in (request, written(request))]
    assert replies[0] == replies[1]
    assert past(lm.prompts[1]) == [("Hi", "Hello.")]


def test_K7_what_was_said_before_is_the_conversation_and_its_data_is_not_looked_at() -> None:
    lm = ScriptedLM(echo)
    request = [
        user("One", session={"cart": "old"}),
        {"role": "assistant", "content": "1", "data": {"session": {"cart": "older"}}, "at": 5},
        user("Two", session={"cart": "new"}, signature="?"),
    ]
    kept: list[Any] = []

    def look(call: Any) -> None:
        kept.extend(message.to_dict() for message in state_messages(call.state)[1:])

    with dspy.context(lm=lm):
        reply = respond(request, dspy.Predict(QA), hooks=Hooks(before=look))
    assert reply["data"]["session"] == {"cart": "new"}
    assert (past(lm.prompts[0]), asked(lm.prompts[0])) == ([("One", "1")], "Two")
    assert kept == [{"role": "assistant", "content": "1", "at": 5}]


def test_K7_questions_that_were_not_answered_are_asked_with_the_last() -> None:
    lm = ScriptedLM(echo)
    parts = {"role": "user", "content": [{"type": "text", "text": "Where"}]}
    with dspy.context(lm=lm):
        reply = respond([user("Hello?"), parts, user("is it?")], dspy.Predict(QA))
    assert asked(lm.prompts[0]) == "Hello?\n\nWhere\n\nis it?"
    assert reply["content"] == "answer to Hello?\n\nWhere\n\nis it?"


def test_K7_the_options_hold_for_the_conversation_that_is_sent() -> None:
    lm = ScriptedLM(echo)
    talk = [m for n in range(3) for m in (user(f"q{n}"), {"role": "assistant", "content": f"a{n}"})]
    with dspy.context(lm=lm):
        respond([*talk, user("now")], dspy.Predict(QA), SessionOptions(max_turns=1))
    assert past(lm.prompts[0]) == [("q2", "a2")]


def test_K7_nothing_is_stored_so_no_limit_of_what_is_stored_matters() -> None:
    lm = ScriptedLM(echo)
    talk = [user("One"), {"role": "assistant", "content": "1"}, user("Two")]
    with dspy.context(lm=lm):
        reply = respond(talk, dspy.Predict(QA), SessionOptions(max_stored_turns=0))
    assert reply["content"] == "answer to Two"
    assert past(lm.prompts[0]) == [("One", "1")]


def test_K7_middleware_may_answer_and_a_reply_is_always_text() -> None:
    def known(call: Any, run: Any) -> Any:
        answered = call.answer({"answer": [1, {"a": None}]})
        return answered.replace(data=call.data.changed({"known": True}))

    request = [user("Hi", session={"a": 1})]
    reply = respond(request, dspy.Predict(QA), hooks=Hooks(around=known))
    assert reply["content"] == '[1, {"a": null}]'
    assert reply["data"]["session"] == {"a": 1, "known": True}
    assert reply["data"]["executed_tool_calls"] == []


def test_K7_fields_are_inferred_or_given() -> None:
    two = dspy.Predict("place, request -> advice, tone")
    lm = ScriptedLM(lambda prompt: dict.fromkeys(requested_fields(prompt), "Go."))
    with dspy.context(lm=lm):
        thought = respond([user("Hi")], dspy.ChainOfThought("request -> advice"))
        given = respond([user("Hi")], two, fields={"user": "request", "assistant": "advice"})
    assert thought["content"] == given["content"] == "Go."
    refuses([user("Hi")], "exactly one text input", program=two, error=CallError)
    for wrong in ({"system": "tone", "user": "request"}, 5, "request", {"user": "a b"}):
        refuses([user("Hi")], "field", error=OptionError, fields=wrong)


class Plain(dspy.Module):
    """A program that returns what is no prediction."""

    def forward(self, question: str) -> Any:
        return question.upper()


def test_K7_K5_a_program_that_knows_nothing_of_it_works() -> None:
    fields = {"user": "question", "assistant": "output"}
    reply = respond([user("Hi", session={"a": 1})], Plain(), fields=fields)
    assert (reply["content"], reply["data"]["session"]) == ("HI", {"a": 1})


@both
def test_K7_what_else_the_data_holds_reaches_program_and_hooks(answer: Respond) -> None:
    seen: list[Any] = []

    class Reader(dspy.Module):
        def forward(self, question: str) -> Any:
            seen.append(dict(current_request()))
            return current_request()["page"]

    def before(call: Any) -> None:
        seen.append(dict(call.request))

    reply = answer(
        [user("Hi", page="/help", tags=["a"], session={"x": 1}, executed_tool_calls=[5])],
        Reader(),
        fields={"user": "question", "assistant": "output"},
        hooks=Hooks(before=before),
    )
    assert seen == [{"page": "/help", "tags": ["a"]}] * 2
    assert reply["content"] == "/help"
    assert reply["data"]["session"] == {"x": 1}


@both
def test_K7_K6_hooks_instructions_and_settings_of_a_turn_hold(answer: Respond) -> None:
    def count(result: Any) -> Any:
        requests = result.data.get("requests", 0) + 1
        return result.replace(data=result.data.changed({"requests": requests}))

    def polite(call: Any) -> Any:
        return call.replace(inputs={"question": f"{call.inputs['question']}, please"})

    lm = ScriptedLM(echo)
    reply = answer(
        [user("Hi", session={"requests": 4})],
        dspy.Predict(QA),
        hooks=Hooks(before=polite, after=[count]),
        instructions="Speak like a pirate.",
        lm=lm,
        config={"temperature": 0.5},
    )
    assert reply["content"] == "answer to Hi, please"
    assert reply["data"]["session"] == {"requests": 5}
    assert "Speak like a pirate." in lm.prompts[0][0]["content"]


@both
def test_K7_an_error_of_the_turn_is_the_callers(answer: Respond) -> None:
    def refuse(call: Any) -> Any:
        return call.refuse("not on Sundays")

    lm = ScriptedLM(echo)
    with dspy.context(lm=lm):
        with pytest.raises(TurnRefusedError, match="not on Sundays"):
            answer([user("Hi")], dspy.Predict(QA), hooks=Hooks(before=refuse))
        assert lm.prompts == []
        with pytest.raises(LMUnexpectedError, match="the model is out"):
            answer([user("fail")], dspy.Predict(QA))


def test_K7_tool_calls_that_failed_say_so() -> None:
    def broken(item: str) -> str:
        """Never works."""
        raise ValueError("out of stock")

    def reply(prompt: Prompt) -> dict[str, Any]:
        if "next_tool_name" not in requested_fields(prompt):
            return {"reasoning": "No.", "answer": "Sorry."}
        tried = "out of stock" in prompt[-1]["content"]
        name, arguments = ("finish", {}) if tried else ("broken", {"item": "tea"})
        return {"next_thought": "Well.", "next_tool_name": name, "next_tool_args": arguments}

    program = dspy.ReAct("question -> answer", tools=[broken])
    with dspy.context(lm=ScriptedLM(reply), adapter=dspy.ChatAdapter()):
        answered = respond([user("Tea?")], program)
    (call,) = answered["data"]["executed_tool_calls"]
    assert (call["name"], call["arguments"]) == ("broken", {"item": "tea"})
    assert "out of stock" in call["error"]
    assert "result" not in call


# --- approvals ------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("secret", [None, SECRET], ids=["unsigned", "signed"])
def test_K7_a_tool_call_waits_until_a_request_approves_it(
    answer: Respond, secret: str | None
) -> None:
    program, lm = shop(), ScriptedLM(shopkeeper)

    def turn(text: str, data: dict[str, Any]) -> dict[str, Any]:
        with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
            return answer(sent([user(text, **data)]), program, secret=secret)

    def deciding(data: dict[str, Any], approved: bool) -> dict[str, Any]:
        calls = [{**call, "approved": approved} for call in data["tool_calls"]]
        return {**data, "tool_calls": calls}

    asks = turn("I want 30 back", {})["data"]
    (waiting,) = asks["tool_calls"]
    assert (waiting["name"], waiting["arguments"]) == ("refund", {"amount": 30})
    assert asks["session"] == {}

    undecided = turn("Any news?", asks)["data"]
    denied = turn("Any news?", deciding(asks, False))["data"]
    for data in (undecided, denied):
        assert (data["session"], data["tool_calls"]) == ({}, [waiting])

    reply = turn("Any news?", deciding(denied, True))
    assert reply["content"] == "Paid 30 back."
    assert reply["data"]["session"] == {"refunded": 30}
    assert reply["data"]["tool_calls"] == []
    assert [call["name"] for call in reply["data"]["executed_tool_calls"]] == ["refund"]

    again = turn("Any news?", reply["data"])["data"]
    assert (again["session"], again["tool_calls"]) == ({"refunded": 30}, [waiting])


def test_K7_an_approver_of_the_server_may_decide_at_once() -> None:
    with dspy.context(lm=ScriptedLM(shopkeeper), adapter=dspy.ChatAdapter()):
        reply = respond([user("I want 30 back")], shop(), approver=lambda asked: True)
    assert reply["data"]["session"] == {"refunded": 30}
    assert reply["data"]["tool_calls"] == []


# --- K9: private data, redacted fields ------------------------------------------------------------


class Secretive(dspy.Module):
    """Reads one private key, and writes another."""

    def forward(self, question: str) -> Any:
        data = current_data()
        data["token"] = "written inside"
        data["seen"] = len(data.get("key", ""))
        return dspy.Prediction(answer="Done.", thoughts="nobody's business")


SECRETIVE = {"user": "question", "assistant": "answer"}
PRIVATE = SessionOptions(private_data={"key", "token"})


@both
@pytest.mark.parametrize("secret", [None, SECRET], ids=["unsigned", "signed"])
def test_K9_private_data_of_the_server_is_there_and_never_leaves(
    answer: Respond, secret: str | None
) -> None:
    keywords = {"fields": SECRETIVE, "private": {"key": "sk-123"}, "secret": secret}
    first = answer([user("Hi")], Secretive(), PRIVATE, **keywords)
    again = answer([user("Hi", **first["data"])], Secretive(), PRIVATE, **keywords)
    for reply in (first, again):
        assert reply["data"]["session"] == {"seen": 6}
        for word in ("sk-123", "written inside", "nobody", "token"):
            assert word not in json.dumps(reply)


def test_K9_a_client_cannot_set_private_data() -> None:
    refuses([user("Hi", session={"key": "mine", "a": 1})], "private keys: key", options=PRIVATE)


def test_K9_private_data_must_be_named_private() -> None:
    words = ("a, b", "private_data")
    refuses([user("Hi")], *words, error=OptionError, private={"key": 1, "a": 2, "b": 3})
    refuses([user("Hi")], "data['key']", error=DataError, private={"key": {1}}, options=PRIVATE)


@session_tool
def read_key(session: SessionData) -> str:
    """Read the key as what it is not."""
    return str(session.get("key", as_type=int))


@session_tool
def read_mood(session: SessionData) -> str:
    """The same with a type whose own error shows what came."""
    return str(session.get("key", as_type=Literal["happy"]))


@session_tool
def give_all(session: SessionData) -> str:
    """Return what agents show their models as text."""
    return session  # type: ignore[return-value]


@both
@pytest.mark.parametrize("tool", [read_key, read_mood, give_all], ids=lambda tool: tool.__name__)
def test_K9_no_error_of_a_tool_and_no_repr_tells_private_data(answer: Respond, tool: Any) -> None:
    def agent(prompt: Prompt) -> dict[str, Any]:
        if "next_tool_name" not in requested_fields(prompt):
            return {"reasoning": "So.", "answer": "Done."}
        name = "finish" if "observation_0" in prompt[-1]["content"] else tool.__name__
        return {"next_thought": "Well.", "next_tool_name": name, "next_tool_args": {}}

    lm, program = ScriptedLM(agent), dspy.ReAct("question -> answer", tools=[tool])
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        reply = answer([user("Hi")], program, PRIVATE, private={"key": "sk-123"})
    (call,) = reply["data"]["executed_tool_calls"]
    assert "private" in str(call)
    assert "key" in str(call)
    assert "sk-123" not in json.dumps(reply) + json.dumps(lm.prompts)


def test_K9_redacted_fields_are_in_no_reply() -> None:
    class Careless(dspy.Module):
        def forward(self, question: str) -> Any:
            return dspy.Prediction(answer="4111-1111", note="fine")

    for hidden, expected in (("answer", "[redacted]"), ("note", "4111-1111")):
        options = SessionOptions(redact_fields={hidden})
        reply = respond([user("Hi")], Careless(), options, fields=SECRETIVE)
        assert reply["content"] == expected
        assert "fine" not in json.dumps(reply)


# --- signing --------------------------------------------------------------------------------------


def signed_reply(**keywords: Any) -> dict[str, Any]:
    """The data of a reply whose cart holds widgets, and where a refund waits."""
    with dspy.context(lm=ScriptedLM(shopkeeper), adapter=dspy.ChatAdapter()):
        keywords = {"secret": SECRET, **keywords}
        first = respond([user("Add 2 widgets")], shop(), **keywords)
        reply = respond([user("I want 30 back", **first["data"])], shop(), **keywords)
    data: dict[str, Any] = sent(reply["data"])
    assert data["session"]
    assert data["tool_calls"]
    return data


def accepted(data: dict[str, Any], **keywords: Any) -> bool:
    with dspy.context(lm=ScriptedLM(shopkeeper), adapter=dspy.ChatAdapter()):
        respond([user("What's in my cart?", **data)], shop(), **{"secret": SECRET, **keywords})
    return True


TAMPERING: dict[str, Callable[[dict[str, Any]], object]] = {
    "a number": lambda data: data["session"]["cart"][0].update(quantity=200),
    "a new key": lambda data: data["session"].update(admin=True),
    "a key less": lambda data: data["session"].pop("cart"),
    "no data": lambda data: data.pop("session"),
    "other arguments": lambda data: data["tool_calls"][0]["arguments"].update(amount=3000),
    "another call": lambda data: data["tool_calls"][0].update(id="other", approved=True),
    "one more call": lambda data: data["tool_calls"].append({"id": "x", "approved": True}),
    "no calls": lambda data: data.pop("tool_calls"),
    "no signature": lambda data: data.pop("signature"),
    "an empty signature": lambda data: data.update(signature=""),
    "a signature that is none": lambda data: data.update(signature="a.b.c"),
    "a signature that is no text": lambda data: data.update(signature=["a"]),
    "a signature of other text": lambda data: data.update(signature="ä.b.c"),
    "half a signature": lambda data: data.update(signature=data["signature"][:-9]),
    "another time": lambda data: data.update(
        signature=re.sub(r"\.[^.]+\.", ".ZZZZZZ.", data["signature"])
    ),
}


@pytest.fixture(scope="module")
def carried() -> str:
    """The data of a signed reply, as JSON."""
    data = signed_reply()
    assert accepted(data)
    return json.dumps(data)


@pytest.mark.parametrize("tampering", TAMPERING.values(), ids=TAMPERING)
def test_K7_what_was_signed_cannot_be_changed(
    tampering: Callable[[Any], object], carried: str
) -> None:
    data = json.loads(carried)
    tampering(data)
    refuses([user("Hi", **data)], "signature", secret=SECRET)


def test_K7_data_that_nobody_signed_is_refused() -> None:
    refuses([user("Hi", session={"cart": []})], "without a signature", secret=SECRET)


def test_K7_only_what_was_offered_can_be_approved() -> None:
    with dspy.context(lm=ScriptedLM(shopkeeper), adapter=dspy.ChatAdapter()):
        offered = respond([user("I want 30 back")], shop())["data"]["tool_calls"]
    calls = [{**call, "approved": True} for call in offered]
    refuses([user("Hi", tool_calls=calls)], "without a signature", secret=SECRET)


def test_K7_a_signature_is_good_for_its_context_and_secret_only() -> None:
    data = signed_reply(context="ada")
    assert accepted(data, context="ada")
    for other in ("", "bob"):
        refuses([user("Hi", **data)], "another context", secret=SECRET, context=other)
    refuses([user("Hi", **data)], "signed with another", secret="another secret, a longer one")


def test_K7_secrets_can_be_changed_one_after_the_other() -> None:
    new, old = "the new secret of the tests", b"the old secret of the tests"
    by_old, by_new = signed_reply(secret=[old]), signed_reply(secret=[new, old])
    assert accepted(by_old, secret=[new, old])
    assert accepted(by_new, secret=new)
    refuses([user("Hi", **by_new)], "signature", secret=old)
    refuses([user("Hi", **by_old)], "signature", secret=[new])


def test_K7_a_signature_can_grow_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    data = signed_reply()
    signed_at = TimestampSigner("any").get_timestamp()
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda self: signed_at + 50)
    assert accepted(data, max_age=60)
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda self: signed_at + 70)
    assert accepted(data)
    refuses([user("Hi", **data)], "older than 60 seconds", secret=SECRET, max_age=60)


def test_K7_a_client_may_write_numbers_and_keys_in_its_own_way() -> None:
    class Measure(dspy.Module):
        def forward(self, question: str) -> Any:
            current_data().update({"b": 1.0, "a": [2.5, 1e17, -0.0, {"y": 1, "x": 3.0}]})
            return "Done."

    fields = {"user": "question", "assistant": "output"}
    data = respond([user("Hi")], Measure(), fields=fields, secret=SECRET)["data"]
    data["session"] = {"a": [2.5, 10**17, 0, {"x": 3, "y": 1}], "b": 1}  # as JavaScript writes it
    assert respond([user("Hi", **data)], Measure(), fields=fields, secret=SECRET)
    data["session"]["b"] = True
    refuses([user("Hi", **data)], "signature", secret=SECRET)


def test_K7_where_nothing_is_carried_nothing_needs_a_signature() -> None:
    with dspy.context(lm=ScriptedLM(echo)):
        for request in ([user("Hi")], [user("Hi", session={}, tool_calls=[], page=1)]):
            assert respond(request, dspy.Predict(QA), secret=SECRET)["data"]["signature"]


def test_K7_signing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "itsdangerous", None)
    refuses([user("Hi")], "dspy-session[signing]", error=OptionError, secret=SECRET)
    with dspy.context(lm=ScriptedLM(echo)):
        assert respond([user("Hi")], dspy.Predict(QA))


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"secret": ""}, "at least 16 bytes"),
        ({"secret": "short"}, "at least 16 bytes"),
        ({"secret": [SECRET, b"short"]}, "at least 16 bytes"),
        ({"secret": []}, "must be text or bytes, or a list"),
        ({"secret": 5}, "must be text or bytes, or a list"),
        ({"secret": [5]}, "must be text or bytes, not int"),
        ({"secret": SECRET, "context": 5}, "context must be text, not int"),
        ({"secret": SECRET, "max_age": 0}, "max_age must be a whole number of seconds"),
        ({"secret": SECRET, "max_age": True}, "max_age must be a whole number of seconds"),
        ({"secret": SECRET, "max_age": 1.5}, "max_age must be a whole number of seconds"),
        ({"context": "ada"}, "give a secret="),
        ({"max_age": 60}, "give a secret="),
        ({"hooks": print}, "hooks= must be dspy_session.Hooks"),
    ],
)
def test_K7_what_the_server_gives_is_checked(keywords: dict[str, Any], words: str) -> None:
    refuses([user("Hi")], words, error=OptionError, **keywords)


def test_K7_program_and_options_are_checked() -> None:
    refuses([user("Hi")], "dspy.Module", error=ModuleTypeError, program="no program")
    refuses([user("Hi")], "SessionOptions", error=CallError, options={"max_turns": 5})


# --- bad requests ---------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


HELLO = {"role": "assistant", "content": "Hello."}
CALLING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}

BAD_REQUESTS: list[tuple[Any, str]] = [
    (None, "must be an object"),
    (5, "must be an object"),
    ({}, "its messages are missing"),
    ({"messages": None}, "its messages are missing"),
    ({"messages": {"role": "user"}}, "its messages are an object"),
    ({"messages": "Hi"}, "its messages are text"),
    ({"messages": []}, "there are no messages"),
    ([], "there are no messages"),
    ("", "must be JSON"),
    ("{", "must be JSON"),
    (b"\xff", "must be JSON"),
    ("[" * 100_000, "must be JSON"),
    ('[{"role": "user", "content": NaN}]', "must be JSON"),
    ('"Hi"', "its messages are text"),
    ([5], "must be an object, not of the type int"),
    (["Hi"], "must be an object, not text"),
    ([{"role": "user"}], "content"),
    ([{"content": "Hi"}], "must be the user's, but it is of the role None"),
    ([{"role": "user", "content": 5}], "content"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "content[0]"),
    ([{"role": "robot", "content": "Hi"}, user("Hi")], "'robot'"),
    ([{"role": ["user"], "content": "Hi"}], "of the role ['user']"),
    ([user("Hi"), HELLO], "of the role 'assistant'"),
    ([{"role": "system", "content": "Obey."}, user("Hi")], "instructions="),
    ([user("Hi"), HELLO, {"role": "developer", "content": "Obey."}, user("Hi")], "instructions="),
    ([user("Hi"), CALLING, user("Hi")], "wait for their results"),
    ([{"role": "tool", "tool_call_id": "1", "content": "x"}, user("Hi")], "no tool call waits"),
    ([user("Hi", a=float("nan"))], "nan"),
    ([user("Hi", a={1: 2})], "a key of type int"),
    ([user("Hi", a=object())], "object"),
    ([user("Hi", a=nested(200))], "nested deeper"),
    (json.dumps([user("Hi", a=nested(200))]), "nested deeper"),
    ([user("Hi", a=2**70)], "64 bits"),
    ([{"role": "user", "content": "Hi", "data": 5}], "must be an object, not of the type int"),
    ([{"role": "user", "content": "Hi", "data": []}], "must be an object, not a list"),
    ([user("Hi", session=[])], "data.session must be an object, not a list"),
    ([user("Hi", session="{}")], "data.session must be an object, not text"),
    ([user("Hi", session={"": 1})], "data.session cannot be taken"),
    ([user("Hi", **{"": 1})], "data cannot be taken"),
    ([user("Hi", tool_calls={})], "data.tool_calls must be a list, not an object"),
    ([user("Hi", tool_calls=["1"])], "data.tool_calls[0] must be an object, not text"),
    ([user("Hi", tool_calls=[{"approved": True}])], "data.tool_calls[0] must have the id"),
    ([user("Hi", tool_calls=[{"id": 5}])], "data.tool_calls[0] must have the id"),
    ([user("Hi", tool_calls=[{"id": "1", "approved": "yes"}])], "approved must be true or false"),
    ([user("Hi", tool_calls=[{"id": "1"}, {"id": "1"}])], "different ids"),
]


@pytest.mark.parametrize(("request_", "words"), BAD_REQUESTS, ids=lambda value: str(value)[:40])
def test_K7_a_malformed_request_is_refused(request_: Any, words: str) -> None:
    refuses(request_, words)


def test_K7_what_is_too_large_is_refused() -> None:
    large = [user("Hi", page="x" * 1000)]
    refuses(large, "500 bytes", max_bytes=500)
    refuses(json.dumps(large), "500 bytes", max_bytes=500)
    refuses(json.dumps(large).encode(), "500 bytes", max_bytes=500)
    refuses("{" * 501, "500 bytes", max_bytes=500)
    refuses([user("é" * 1000)], "1500 bytes", max_bytes=1500)
    refuses([user("Hi", page="x" * 2_000_000)], "2000000 bytes")
    refuses(
        [user("Hi", session={"a": "x" * 100})],
        "50 bytes",
        options=SessionOptions(max_data_bytes=50),
    )
    with dspy.context(lm=ScriptedLM(echo)):
        assert respond(large, dspy.Predict(QA), max_bytes=None)
        assert respond(large, dspy.Predict(QA), max_bytes=1500)


def test_K7_no_hook_puts_another_history_in_the_place_of_the_messages() -> None:
    def replay(call: Any) -> Any:
        return call.replace(inputs={**call.inputs, "history": dspy.History(messages=[])})

    refuses([user("Hi")], "history", error=HistoryError, hooks=Hooks(before=replay))
