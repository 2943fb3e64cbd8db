"""Every adapter: three turns through it, checked by what the model was sent, in this process and
over HTTP; switched between turns and between threads; with callbacks; with one's own classes."""

from __future__ import annotations

import abc
import asyncio
import importlib
import itertools
import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import GenericAlias
from typing import Any, Literal

import dspy
import pydantic
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter
from dspy.utils.callback import BaseCallback

from dspy_session import Session, sessionify
from dspy_session.program import clear_render_cache, render_counts
from dspy_session.testing import Prompt, ScriptedLM, in_requested_format, requested_fields
from tests.loopback import Body, Completion, LoopbackServer
from tests.streams import SOON
from tests.talk import QA

Messages = list[dict[str, Any]]

TOPICS = ("quince", "heron", "basalt")


def reply(prompt: Prompt) -> Any:
    """Answers the topic that a prompt ends with, in the format that it asks for, if it asks."""
    *_, asked = re.findall("|".join(TOPICS), prompt[-1]["content"])
    names = requested_fields(prompt)
    return dict.fromkeys(names, f"{asked}-answer") if names else f"{asked}-answer"


def over_http(body: Body) -> str:
    prompt = [{**m, "content": text_of(m)} for m in body["messages"]]
    answer = reply(prompt)
    return answer if isinstance(answer, str) else in_requested_format(prompt, answer)


def text_of(message: dict[str, Any]) -> str:
    content = message["content"] or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def told(messages: Messages) -> list[str]:
    """The topics and answers that a call shows, in the order in which they stand there."""
    text = "\n".join(map(text_of, messages))
    return re.findall(f"(?:{'|'.join(TOPICS)})(?:-answer)?", text)


def so_far(turns: int) -> list[str]:
    """What the call of a turn is to show: each earlier exchange once, in order, and its topic."""
    past = [word for topic in TOPICS[:turns] for word in (topic, f"{topic}-answer")]
    return [*past, TOPICS[turns]]


def sent(lm: dspy.BaseLM) -> list[Messages]:
    return [entry["messages"] for entry in lm.history]


# --- adapters of one's own ------------------------------------------------------------------------


class FormatOnly(dspy.ChatAdapter):
    """Overrides `format` and nothing else."""

    def format(self, signature: Any, demos: Any, inputs: Any) -> Messages:
        formatted = super().format(signature, demos, inputs)
        formatted[0]["content"] += "\nAnswer loudly."
        return formatted


class HistoryOnly(dspy.ChatAdapter):
    """Overrides how the history is rendered: a line for each message, in one message."""

    def format_conversation_history(
        self, signature: Any, history_field_name: str, inputs: Any
    ) -> Messages:
        messages = inputs.pop(history_field_name).messages
        lines = [f"{name}: {value}" for fields in messages for name, value in fields.items()]
        return [{"role": "user", "content": "\n".join(lines)}] if lines else []


class Bare(dspy.Adapter):
    """Subclasses `dspy.Adapter`: one message, and the answer as it comes."""

    def format(self, signature: Any, demos: Any, inputs: Any) -> Messages:
        lines = [f"{k}: {v}" for fields in inputs["history"].messages for k, v in fields.items()]
        lines += [f"{name}: {inputs[name]}" for name in signature.input_fields if name != "history"]
        return [{"role": "user", "content": "\n".join(lines)}]

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        return dict.fromkeys(signature.output_fields, completion)


class Lines(dspy.Adapter):
    """Subclasses `dspy.Adapter`, and fills in what its `format` asks for."""

    def format_field_description(self, signature: Any) -> str:
        return "Fields: " + ", ".join(signature.fields)

    def format_field_structure(self, signature: Any) -> str:
        return "A line each."

    def format_task_description(self, signature: Any) -> str:
        return str(signature.instructions)

    def format_user_message_content(
        self,
        signature: Any,
        inputs: Any,
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        return "\n".join(f"{n} = {inputs[n]}" for n in signature.input_fields if n in inputs)

    def format_assistant_message_content(
        self, signature: Any, outputs: Any, missing_field_message: str | None = None
    ) -> str:
        return "\n".join(f"{n} = {outputs[n]}" for n in signature.output_fields)

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        return dict.fromkeys(signature.output_fields, completion)


class Slotted(dspy.ChatAdapter):
    """Keeps what it has in slots, and counts in one of them."""

    __slots__ = ("calls", "stamp")

    def __init__(self, stamp: str, *, calls: int) -> None:
        super().__init__()
        self.stamp = stamp
        self.calls = calls

    def format(self, signature: Any, demos: Any, inputs: Any) -> Messages:
        self.calls += 1
        return super().format(signature, demos, inputs)

    def format_user_message_content(self, *args: Any, **kwargs: Any) -> Any:
        return f"{self.stamp}\n{super().format_user_message_content(*args, **kwargs)}"


class Titled(dspy.XMLAdapter):
    """Has a property, private attributes, and methods whose names others use too."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.__title = title

    @property
    def title(self) -> str:
        return self._render(self.__title)

    def _render(self, text: str) -> str:
        return f"== {text} =="

    def format_task_description(self, signature: Any) -> str:
        return f"{self.title}\n{super().format_task_description(signature)}"


class Around(dspy.Adapter):
    """Overrides the call itself, and lets another adapter do the work."""

    def __init__(self, inner: dspy.Adapter) -> None:
        super().__init__()
        self.inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        return await self.inner.acall(*args, **kwargs)


MakeLM = Callable[[str], dspy.BaseLM]
ADAPTERS: dict[str, Callable[[MakeLM], dspy.Adapter]] = {
    "chat": lambda lm: dspy.ChatAdapter(),
    "chat, native calls": lambda lm: dspy.ChatAdapter(use_native_function_calling=True),
    "json": lambda lm: dspy.JSONAdapter(),
    "json, no native calls": lambda lm: dspy.JSONAdapter(use_native_function_calling=False),
    "xml": lambda lm: dspy.XMLAdapter(),
    "baml": lambda lm: BAMLAdapter(),
    "two steps": lambda lm: dspy.TwoStepAdapter(lm("extractor")),
    "format only": lambda lm: FormatOnly(),
    "history only": lambda lm: HistoryOnly(),
    "bare": lambda lm: Bare(),
    "lines": lambda lm: Lines(),
    "slots": lambda lm: Slotted("!", calls=0),
    "property": lambda lm: Titled("Museums"),
    "around": lambda lm: Around(dspy.ChatAdapter()),
}
every_adapter = pytest.mark.parametrize("name", ADAPTERS)
PARITY = ("chat", "chat, native calls", "json", "json, no native calls", "xml", "baml")
every_of_dspys = pytest.mark.parametrize("name", PARITY)


def scripted(name: str = "main") -> ScriptedLM:
    return ScriptedLM(reply)


def adapter_called(name: str) -> dspy.Adapter:
    return ADAPTERS[name](scripted)


# --- three turns through each ---------------------------------------------------------------------


def talk(session: Session, mode: str) -> None:
    async def awaited() -> None:
        for topic in TOPICS:
            await session.acall(question=topic)

    if mode == "async":
        asyncio.run(awaited())
    else:
        for topic in TOPICS:
            session(question=topic)


@every_adapter
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_D6_each_call_shows_the_earlier_exchanges_once_and_in_order(name: str, mode: str) -> None:
    lm = scripted()
    with dspy.context(lm=lm, adapter=adapter_called(name)):
        session = sessionify(dspy.Predict(QA))
        talk(session, mode)
    assert [told(prompt) for prompt in sent(lm)] == [so_far(n) for n in range(3)]
    assert [turn.outputs for turn in session.turns] == [{"answer": f"{t}-answer"} for t in TOPICS]
    for prompt in sent(lm):
        shown = "\n".join(map(text_of, prompt))
        assert "None" not in shown
        assert "Not supplied" not in shown
        assert "History(" not in shown
        assert "messages=" not in shown
        assert "object at 0x" not in shown


@every_adapter
def test_D6_over_http_too(name: str) -> None:
    with LoopbackServer(over_http) as server:
        adapter = ADAPTERS[name](server.lm)
        with dspy.context(lm=server.lm("main"), adapter=adapter):
            session = sessionify(dspy.Predict(QA))
            talk(session, "sync")
        received = server.by_model()["main"]
    assert [told(request.messages) for request in received] == [so_far(n) for n in range(3)]
    assert len(session) == 3


@every_adapter
def test_D6_an_adapter_is_the_same_after_a_conversation(name: str) -> None:
    adapter = adapter_called(name)
    before = dict(vars(adapter))
    with dspy.context(lm=scripted(), adapter=adapter):
        talk(sessionify(dspy.Predict(QA)), "sync")
    assert dict(vars(adapter)) == before


def test_D6_two_steps_have_no_history_field_before_there_is_one() -> None:
    lm = scripted()
    with dspy.context(lm=lm, adapter=dspy.TwoStepAdapter(scripted())):
        for signature in (QA, QA.append("history", dspy.InputField(), dspy.History)):
            session = sessionify(dspy.Predict(signature))
            session(question="quince")
            session(question="heron")
    for first, second in (sent(lm)[:2], sent(lm)[2:]):
        assert "history" not in json.dumps(first)
        assert "`history` (str): The conversation so far, oldest first." in text_of(second[0])
        assert text_of(second[-1]) == (
            "history: [1]\nquestion: quince\nanswer: quince-answer\n\nquestion: heron"
        )


def test_D6_the_extracting_model_sees_only_what_there_is_to_extract() -> None:
    extractor = scripted()
    with dspy.context(lm=scripted(), adapter=dspy.TwoStepAdapter(extractor)):
        talk(sessionify(dspy.Predict(QA)), "sync")
    assert [told(prompt) for prompt in sent(extractor)] == [[f"{topic}-answer"] for topic in TOPICS]


# --- by hand --------------------------------------------------------------------------------------


class Person(pydantic.BaseModel):
    """Somebody."""

    name: str
    age: int | None = None


class Rich(dspy.Signature):
    """Sort what comes in."""

    question: str = dspy.InputField()
    who: Person | None = dspy.InputField(desc="who asks")
    urgency: Literal["low", "high"] = dspy.InputField()
    numbers: list[int] = dspy.InputField()
    answer: str = dspy.OutputField()
    labels: list[str] = dspy.OutputField()
    kind: Literal["bill", "bug"] = dspy.OutputField()
    found: Person = dspy.OutputField(desc="who is meant")
    count: int = dspy.OutputField()
    due: int | None = dspy.OutputField()


RICH_INPUTS: list[dict[str, Any]] = [
    {"question": "quince", "who": Person(name="Ada", age=36), "urgency": "low", "numbers": [1, 2]},
    {"question": "heron", "who": None, "urgency": "high", "numbers": []},
    {"question": "basalt", "who": Person(name="<Bob>"), "urgency": "low", "numbers": [3]},
]


def rich_reply(prompt: Prompt) -> Any:
    answers = {
        "reasoning": "Because & so on.",
        "answer": "It is <so>.",
        "labels": ["a", "b c"],
        "kind": "bug",
        "found": {"name": "Ada", "age": None},
        "count": len(prompt),
        "due": None if len(prompt) % 4 else 7,
    }
    return {name: answers[name] for name in requested_fields(prompt)}


def with_history(program: dspy.Module) -> dspy.Module:
    """The program as it is when its author wrote the history in."""
    by_hand = program.deepcopy()
    for predictor in by_hand.predictors():
        field = dspy.InputField()
        predictor.signature = predictor.signature.append("history", field, dspy.History)
    return by_hand


def both(adapters: list[dspy.Adapter], program: dspy.Module, mode: str) -> list[list[Messages]]:
    """What a session sends, and what a loop sends that keeps the history by hand."""
    session, by_hand = sessionify(program), with_history(program)
    past: Messages = []
    mine, theirs = ScriptedLM(rich_reply), ScriptedLM(rich_reply)

    def call(module: Any, **inputs: Any) -> Any:
        return asyncio.run(module.acall(**inputs)) if mode == "async" else module(**inputs)

    for adapter, inputs in zip(adapters, RICH_INPUTS * len(adapters), strict=False):
        with dspy.context(adapter=adapter):
            with dspy.context(lm=mine):
                call(session, **inputs)
            with dspy.context(lm=theirs):
                said = call(by_hand, **inputs, history=dspy.History(messages=past))
        past = [*past, {**inputs, **said}]
    return [sent(mine), sent(theirs)]


@every_of_dspys
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("kind", [dspy.Predict, dspy.ChainOfThought])
def test_D6_parity_and_prefix_with_rich_fields(name: str, mode: str, kind: Any) -> None:
    mine, by_hand = both([adapter_called(name)] * 3, kind(Rich), mode)
    assert mine == by_hand
    assert [len(messages) for messages in mine] == [2, 4, 6]
    for shorter, longer in itertools.pairwise(mine):
        assert longer[: len(shorter)] == shorter


SWITCHES = ["chat", "json", "xml", "chat, native calls", "baml", "chat", "xml", "json", "chat"]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_D6_parity_after_each_switch_of_the_adapter(mode: str) -> None:
    clear_render_cache()
    mine, by_hand = both([adapter_called(name) for name in SWITCHES], dspy.Predict(Rich), mode)
    assert mine == by_hand
    formats = ["Respond with a JSON object" in text_of(messages[-1]) for messages in mine]
    assert formats == [name in ("json", "baml") for name in SWITCHES]
    # Each of the formats renders each past turn once: chat the first eight, and so on.
    last = {name: turn for turn, name in enumerate(SWITCHES)}
    assert render_counts()[0] == sum(last.values())


@every_of_dspys
def test_X7_each_turn_is_rendered_once(name: str) -> None:
    clear_render_cache()
    both([adapter_called(name)] * 4, dspy.Predict(Rich), "sync")
    assert render_counts() == (3, 3)


# --- switching ------------------------------------------------------------------------------------


def test_D6_any_adapter_may_follow_any_other() -> None:
    lm = scripted()
    with dspy.context(lm=lm):
        for name in ADAPTERS:
            session = sessionify(dspy.Predict(QA))
            for topic, turn in zip(TOPICS, ("chat", name, "two steps"), strict=True):
                with dspy.context(adapter=adapter_called(turn)):
                    session(question=topic)
            assert [told(prompt) for prompt in sent(lm)[-3:]] == [so_far(n) for n in range(3)]


def test_D6_two_threads_may_use_one_session_under_two_adapters_at_once() -> None:
    meeting = threading.Barrier(2)

    def both_at_once(prompt: Prompt) -> Any:
        meeting.wait(SOON)
        return reply(prompt)

    lm = ScriptedLM(both_at_once)
    session = sessionify(dspy.Predict(QA))
    session.add_turn({"question": "quince"}, {"answer": "quince-answer"})

    def ask(name: str) -> None:
        with dspy.context(lm=lm, adapter=adapter_called(name)):
            for topic in ("heron", "heron"):
                session(question=topic)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ask, ["json", "xml"]))
    assert len(session) == 5
    for prompt in sent(lm):
        as_json = "JSON object" in text_of(prompt[-1])
        past = [m for m in prompt if m["role"] == "assistant"]
        assert past
        assert all(text_of(m).startswith("{" if as_json else "<answer>") for m in past)


# --- Chat's fallback to JSON, and what JSON asks of the model -------------------------------------


def stubborn(prompt: Prompt) -> Any:
    """Answers in JSON whatever it is asked for."""
    return json.dumps({n: reply(prompt)[n] for n in requested_fields(prompt)})


class OwnFallback(FormatOnly):
    """Chooses what it falls back to."""

    def _make_json_adapter_fallback(self) -> dspy.Adapter:
        return BAMLAdapter()


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(
    "kind", [dspy.ChatAdapter, FormatOnly, OwnFallback, Slotted, dspy.XMLAdapter]
)
def test_D6_the_fallback_to_json_shows_the_same_conversation_once(kind: Any, mode: str) -> None:
    lm = ScriptedLM(stubborn)
    adapter = Slotted("!", calls=0) if kind is Slotted else kind()
    with dspy.context(lm=lm, adapter=adapter):
        clear_render_cache()
        talk(sessionify(dspy.Predict(QA)), mode)
    assert [told(prompt) for prompt in sent(lm)] == [so_far(n // 2) for n in range(6)]
    for first, fallback in zip(sent(lm)[::2], sent(lm)[1::2], strict=True):
        assert [m["role"] for m in first] == [m["role"] for m in fallback]
        assert "JSON object" in text_of(fallback[-1])
        assert all(text_of(m).startswith("{") for m in fallback if m["role"] == "assistant")


SHAPES: dict[str, Any] = {
    "json_schema": (str, "gpt-4o-mini"),
    "json_object": (GenericAlias(dict, (str, str)), "gpt-4o-mini"),  # no schema for any key
    "": (str, "scripted"),  # a model of which DSPy does not know whether it takes one
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [dspy.JSONAdapter, BAMLAdapter])
def test_D6_json_with_a_schema_with_json_mode_and_with_neither(kind: Any, shape: str) -> None:
    annotation, model = SHAPES[shape]
    is_dict = annotation is not str
    signature = dspy.Signature(
        {"question": (str, dspy.InputField()), "answer": (annotation, dspy.OutputField())}
    )

    def answer(body: Body) -> str:
        said = f"{told(body['messages'])[-1]}-answer"
        return json.dumps({"answer": {"a": said} if is_dict else said})

    with LoopbackServer(answer) as server, dspy.context(lm=server.lm(model), adapter=kind()):
        talk(sessionify(dspy.Predict(signature)), "sync")
        for turn, request in enumerate(server.received):
            assert request.body.get("response_format", {}).get("type", "") == shape
            assert told(request.messages) == so_far(turn)


# --- tools ----------------------------------------------------------------------------------------

TYPES: Any = importlib.import_module("dspy.adapters.types.tool")


def weather(city: str) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


def with_tools() -> dspy.Module:
    return dspy.Predict(
        dspy.Signature(
            {
                "question": (str, dspy.InputField()),
                "tools": (GenericAlias(list, (TYPES.Tool,)), dspy.InputField()),
                "answer": (str, dspy.OutputField()),
                "tool_calls": (TYPES.ToolCalls, dspy.OutputField()),
            },
            "Use tools.",
        )
    )


def calling(body: Body) -> str | Completion:
    """Calls the tool whenever it was not called last; natively, if it was given so."""
    *_, asked = told(body["messages"])
    call = {"name": "weather", "args": {"city": asked}}
    if body.get("tools") and asked != "basalt":
        return Completion(tool_calls=[("weather", {"city": asked})])
    prompt = [{**m, "content": text_of(m)} for m in body["messages"]]
    answers = {"answer": f"{asked}-answer", "tool_calls": {"tool_calls": [call]}}
    return in_requested_format(prompt, {name: answers[name] for name in requested_fields(prompt)})


def carried_out(outputs: dict[str, Any]) -> dict[str, Any]:
    """The outputs of a turn with the results of its tool calls."""
    calls = outputs["tool_calls"]
    if calls is None:
        return outputs
    values = [weather(**call.args) for call in calls.tool_calls]
    filled = {"tool_call_results": TYPES.ToolCallResults.from_tool_calls_and_values(calls, values)}
    return {**outputs, "tool_calls": calls.model_copy(update=filled)}


@every_of_dspys
@pytest.mark.parametrize("results", [False, True])
def test_D6_tools_and_their_calls_stand_in_past_turns_as_by_hand(name: str, results: bool) -> None:
    adapter, tools = adapter_called(name), [TYPES.Tool(weather)]
    with LoopbackServer(calling) as server, dspy.context(adapter=adapter):
        with dspy.context(lm=server.lm("gpt-4o-mini")):
            session = sessionify(with_tools())
            for number, topic in enumerate(TOPICS):
                session(question=topic, tools=tools)
                if results:
                    session.replace_turn(number, carried_out(session.turns[number].outputs))
        mine = [request.body for request in server.received]
    past: Messages = []
    with LoopbackServer(calling) as server, dspy.context(adapter=adapter):
        with dspy.context(lm=server.lm("gpt-4o-mini")):
            by_hand = with_history(with_tools())
            for topic in TOPICS:
                inputs = {"question": topic, "tools": tools}
                said = dict(by_hand(**inputs, history=dspy.History(messages=past)))
                past = [*past, {**inputs, **(carried_out(said) if results else said)}]
        theirs = [request.body for request in server.received]
    assert mine == theirs
    assert len(mine) == 3
    native = "tools" in mine[0]
    assert native == (name in ("chat, native calls", "json", "baml"))
    for shorter, longer in itertools.pairwise(mine):
        assert longer["messages"][: len(shorter["messages"])] == shorter["messages"]
    roles = [message["role"] for message in mine[-1]["messages"]]
    if native and results:
        assert roles == ["system", *["user", "assistant", "tool"] * 2, "user"]
        assert "sunny in heron" in json.dumps(mine[-1])
    elif native:  # a provider takes no call without its result, so DSPy shows none
        assert roles == ["system", *["user"] * 3]


def test_D6_a_turn_with_native_calls_may_be_followed_by_an_adapter_without() -> None:
    with LoopbackServer(calling) as server, dspy.context(lm=server.lm("gpt-4o-mini")):
        session = sessionify(with_tools())
        for topic, name in zip(TOPICS, ("json", "chat", "xml"), strict=True):
            with dspy.context(adapter=adapter_called(name)):
                session(question=topic, tools=[TYPES.Tool(weather)])
        _, chat, xml = (request.messages for request in server.received)
    assert '{"tool_calls": [{"name": "weather", "args": {"city": "quince"}}]}' in text_of(chat[2])
    assert '"city": "heron"' in text_of(xml[4])


# --- callbacks ------------------------------------------------------------------------------------


class Noting(BaseCallback):
    """Notes everything that DSPy tells."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_adapter_format_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self.heard.append(f"{type(instance).__name__} formats")

    def on_adapter_format_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
        self.heard.append(f"{len(outputs)} messages")

    def on_adapter_parse_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self.heard.append(f"{type(instance).__name__} parses")

    def on_adapter_parse_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
        self.heard.append("parsed")

    def on_lm_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self.heard.append("asks")

    def on_lm_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
        self.heard.append("answered")


@every_adapter
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("where", ["settings", "adapter"])
def test_D6_callbacks_are_told_what_they_are_told_without_a_session(
    name: str, mode: str, where: str
) -> None:
    heard = []
    for in_session in (True, False):
        noting, adapter = Noting(), adapter_called(name)
        if where == "adapter":
            vars(adapter)["callbacks"].append(noting)
        callbacks = [noting] if where == "settings" else []
        with dspy.context(lm=scripted(), adapter=adapter, callbacks=callbacks):
            if in_session:
                talk(sessionify(dspy.Predict(QA)), mode)
            else:
                by_hand(mode)
        heard.append(noting.heard)
    assert bool(heard[0]) == (
        (name, where) != ("around", "adapter")
    )  # it neither formats nor parses
    assert heard[0] == heard[1]


def by_hand(mode: str) -> None:
    program = with_history(dspy.Predict(QA))
    past: Messages = []
    for topic in TOPICS:
        inputs = {"question": topic, "history": dspy.History(messages=past)}
        said = asyncio.run(program.acall(**inputs)) if mode == "async" else program(**inputs)
        past = [*past, {"question": topic, **said}]


# --- classes that do not expect to be subclassed --------------------------------------------------


def test_D6_an_adapter_class_never_learns_that_there_is_a_subclass() -> None:
    registered: list[type] = []

    class Registered(dspy.ChatAdapter):
        def __init_subclass__(cls, *, name: str, **keywords: Any) -> None:
            super().__init_subclass__(**keywords)
            registered.append(cls)

    class Child(Registered, name="child"):
        pass

    lm = scripted()
    with dspy.context(lm=lm, adapter=Child()):
        talk(sessionify(dspy.Predict(QA)), "sync")
    assert registered == [Child]
    assert told(sent(lm)[-1]) == so_far(2)


def test_D6_abstract_classes_and_metaclasses_are_no_obstacle() -> None:
    class Abstract(dspy.ChatAdapter, abc.ABC):
        @property
        @abc.abstractmethod
        def shout(self) -> str: ...

    class Concrete(Abstract):
        @property
        def shout(self) -> str:
            return "HEY"

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "__dict__":
                raise AttributeError("not like this")
            super().__setattr__(name, value)

        def format_task_description(self, signature: Any) -> str:
            return self.shout

    lm = scripted()
    with dspy.context(lm=lm, adapter=Concrete()):
        talk(sessionify(dspy.Predict(QA)), "sync")
    assert told(sent(lm)[-1]) == so_far(2)
    assert "HEY" in text_of(sent(lm)[-1][0])


def test_D6_what_an_adapter_writes_into_its_slots_stays_written() -> None:
    adapter = Slotted("first", calls=0)
    lm = scripted()
    with dspy.context(lm=lm, adapter=adapter):
        session = sessionify(dspy.Predict(QA))
        session(question="quince")
        adapter.stamp = "second"
        session(question="heron")
    assert adapter.calls == 2
    assert [text_of(m).splitlines()[0] for m in sent(lm)[1][1::2]] == ["second", "second"]


@pytest.mark.parametrize("kind", [FormatOnly, Titled, Slotted, HistoryOnly, Lines])
def test_X7_only_what_dspys_own_code_renders_is_kept(kind: Any) -> None:
    """Code of one's own may look at anything, such as the time, and no key says so."""
    adapter = {Titled: lambda: Titled("x"), Slotted: lambda: Slotted("x", calls=0)}.get(
        kind, kind
    )()
    with dspy.context(lm=scripted(), adapter=adapter):
        clear_render_cache()
        talk(sessionify(dspy.Predict(QA)), "sync")
    _, reused = render_counts()
    assert bool(reused) == (kind in (FormatOnly, Titled))


def test_X7_what_an_adapter_of_ones_own_looks_at_may_change() -> None:
    clock = iter(range(100))

    class Dated(dspy.ChatAdapter):
        def user_message_output_requirements(self, signature: Any) -> str:
            return f"{super().user_message_output_requirements(signature)} It is {next(clock)}."

    lm = scripted()
    with dspy.context(lm=lm, adapter=Dated()):
        talk(sessionify(dspy.Predict(QA)), "sync")
    dates = [text_of(m)[-3:] for m in sent(lm)[-1] if m["role"] == "user"]
    assert len(set(dates)) == 3


# --- decisions ------------------------------------------------------------------------------------

EXPERIMENTAL: Any = importlib.import_module("dspy.experimental")


def judge() -> dspy.Module:
    def asked(what: str) -> Any:
        return dspy.OutputField(desc=what)

    return dspy.Predict(
        dspy.Signature(
            {
                "question": (str, dspy.InputField()),
                "spam": (EXPERIMENTAL.Noul, asked("is it spam?")),
                "topic": (EXPERIMENTAL.Choice[("bill", "Money"), ("bug", "Code")], asked("what?")),
                "level": (EXPERIMENTAL.Score["low", "high"], asked("how bad?")),
            },
            "Judge.",
        )
    )


EVIDENCE: dict[str, Any] = {
    "spam": {"noul": 0.9},
    "topic": {"probabilities": {"bill": 0.25, "bug": 0.75}, "confidence": 0.5},
    "level": {"probabilities": {"0": 0.5, "1": 0.5}, "confidence": 0.5},
}


@every_of_dspys
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_D6_decisions_stand_in_past_turns_as_what_was_decided(name: str, mode: str) -> None:
    lm = ScriptedLM(lambda prompt: EVIDENCE)
    with dspy.context(lm=lm, adapter=adapter_called(name)):
        session = sessionify(judge())
        talk(session, mode)
    for turn in session.turns:
        assert turn.outputs["spam"].value is True
        assert turn.outputs["topic"].value == "bug"
    shown = [text_of(m) for m in sent(lm)[-1] if m["role"] == "assistant"]
    assert len(shown) == 2
    for text in shown:
        assert re.search(r'"value": true,\s+"probability": 0.9', text)
        assert '"value": "bug"' in text
        assert '"value": 0.5' in text
    assert list(told(sent(lm)[-1])) == list(TOPICS)


class Decider:
    """A model that takes questions instead of prompts."""

    supports_decision_requests = True
    model = "decider"

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def __call__(self, state: dict[str, Any], questions: dict[str, Any]) -> dict[str, Any]:
        self.states.append(state)
        return json.loads(json.dumps(EVIDENCE))  # type: ignore[no-any-return]


def test_D6_a_decision_model_is_told_the_history_that_a_signature_declares() -> None:
    """DSPy asks it without any adapter, so a conversation can reach it as an input only."""
    declared, bare = Decider(), Decider()
    for lm, program in ((declared, with_history(judge())), (bare, judge())):
        with dspy.context(lm=lm):
            session = sessionify(program)
            talk(session, "sync")
            assert len(session) == 3
    assert told([{"content": json.dumps(s["inputs"])} for s in declared.states[-1:]]) == [
        "basalt",
        "quince",
        "heron",
    ]
    assert [list(state["inputs"]) for state in bare.states] == [["question"]] * 3


def test_D6_a_stream_of_decisions_is_refused_by_dspy_and_recorded_nowhere() -> None:
    async def consume() -> None:
        session = sessionify(judge())
        try:
            async for _ in dspy.streamify(session)(question="quince"):
                pass
        finally:
            assert len(session) == 0

    refusal = "Streaming decision evidence is not supported"
    lm = ScriptedLM(lambda prompt: EVIDENCE)
    with dspy.context(lm=lm), pytest.raises(NotImplementedError, match=refusal):
        asyncio.run(consume())
