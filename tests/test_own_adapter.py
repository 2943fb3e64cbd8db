"""Programs with an adapter of their own, set inside `forward`; adapters of one's own; fallbacks."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Iterator
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from dspy_session import SessionState, astep, sessionify, step
from dspy_session.program import clear_render_cache, render_counts
from dspy_session.program.adapter import ConversationAdapter, wrap_adapter
from dspy_session.program.own_adapters import AdapterKeeper
from dspy_session.program.rendering import rendering_adapter
from dspy_session.program.window_history import WindowHistory
from dspy_session.testing import Prompt, ScriptedLM, requested_fields
from tests.talk import QA, Asker, echo, history, pairs, past


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := ScriptedLM(echo))):
        yield lm


def messages(lm: ScriptedLM) -> list[list[dict[str, Any]]]:
    return [entry["messages"] for entry in lm.history]


def said(prompt: Prompt) -> list[Any]:
    """The past answers of a prompt in JSON."""
    return [json.loads(m["content"])["answer"] for m in prompt if m["role"] == "assistant"]


# --- set inside forward ---------------------------------------------------------------------------


class OwnAdapter(dspy.Module):
    """Speaks JSON, whatever the session is told; half of it."""

    def __init__(self, adapter: dspy.Adapter | None = None) -> None:
        super().__init__()
        self.qa = dspy.Predict(QA)
        self.adapter = adapter or dspy.JSONAdapter()

    def forward(self, question: str) -> Any:
        with dspy.context(adapter=self.adapter):
            self.qa(question=f"json {question}")
        return self.qa(question=question)

    async def aforward(self, question: str) -> Any:
        with dspy.context(adapter=self.adapter):
            await self.qa.acall(question=f"json {question}")
        return await self.qa.acall(question=question)


class Gathering(OwnAdapter):
    """Asks three times at once, each in its own way."""

    async def aforward(self, question: str) -> Any:
        async def ask(adapter: dspy.Adapter | None) -> Any:
            with dspy.context(adapter=adapter):
                return await self.qa.acall(question=question)

        found = await asyncio.gather(ask(self.adapter), ask(None), ask(dspy.ChatAdapter()))
        return found[-1]


def test_D6_a_program_that_sets_its_own_adapter_keeps_its_history(lm: ScriptedLM) -> None:
    program, state = OwnAdapter(), SessionState()
    for question in ("one", "two"):
        _, state = step(state, program, {"question": question})
    in_json, in_chat = lm.prompts[2:]
    assert "Respond with a JSON object" in in_json[-1]["content"]
    assert said(in_json) == ["answer to one"]
    assert past(in_chat) == pairs("one")


def test_D6_so_it_does_when_it_is_awaited(lm: ScriptedLM) -> None:
    async def talk() -> None:
        program, state = OwnAdapter(), SessionState()
        for question in ("one", "two"):
            _, state = await astep(state, program, {"question": question})

    asyncio.run(talk())
    assert said(lm.prompts[2]) == ["answer to one"]
    assert past(lm.prompts[3]) == pairs("one")


def test_D6_and_when_it_asks_many_at_once(lm: ScriptedLM) -> None:
    async def talk() -> None:
        session = sessionify(Gathering())
        for question in ("one", "two"):
            await session.acall(question=question)

    asyncio.run(talk())
    shapes = {"JSON" in prompt[-1]["content"] for prompt in lm.prompts[3:]}
    assert shapes == {True, False}
    for prompt in lm.prompts[3:]:
        if "JSON" in prompt[-1]["content"]:
            assert said(prompt) == ["answer to one"]
        else:
            assert past(prompt) == pairs("one")


def test_D6_in_threads_too(lm: ScriptedLM) -> None:
    class Threads(OwnAdapter):
        def forward(self, question: str) -> Any:
            with dspy.context(adapter=self.adapter):
                jobs = [(self.qa, {"question": question}) for _ in range(3)]
                dspy.Parallel(num_threads=3, disable_progress_bar=True)(jobs)
            return self.qa(question=question)

    session = sessionify(Threads())
    session(question="one")
    session(question="two")
    assert [said(prompt) for prompt in lm.prompts[4:7]] == [["answer to one"]] * 3


def test_D6_the_adapter_is_put_back_when_the_call_fails() -> None:
    seen: list[Any] = []

    class Careful(OwnAdapter):
        def forward(self, question: str) -> Any:
            with dspy.context(adapter=self.adapter):
                try:
                    return self.qa(question=question)
                finally:
                    seen.append(dspy.settings.adapter)

    program = Careful()
    with pytest.raises(Exception, match="the model is out"):
        step(SessionState(), program, {"question": "fail"})
    assert seen == [program.adapter]
    assert type(seen[0]) is dspy.JSONAdapter
    assert dspy.settings.adapter is None


def test_D6_a_judge_under_its_own_adapter_sees_nothing(lm: ScriptedLM) -> None:
    judge = dspy.Predict(QA)

    class Judged(OwnAdapter):
        def forward(self, question: str) -> Any:
            with dspy.context(adapter=self.adapter):
                judge_adapters.append(dspy.settings.adapter)
                judge(question=f"judge {question}")
            return self.qa(question=question)

    judge_adapters: list[Any] = []
    session = sessionify(Judged())
    session(question="one")
    session(question="two")
    assert [len(prompt) for prompt in lm.prompts] == [2, 2, 2, 4]


def test_A4_config_reaches_any_predictor_under_any_adapter(lm: ScriptedLM) -> None:
    class OnTheFly(dspy.Module):
        def forward(self, question: str) -> Any:
            with dspy.context(adapter=dspy.JSONAdapter()):
                return dspy.Predict(QA)(question=question)

    step(SessionState(), OnTheFly(), {"question": "x"}, config={"temperature": 0.9})
    assert lm.history[-1]["kwargs"]["temperature"] == 0.9


def test_D6_callbacks_of_the_program_still_run(lm: ScriptedLM) -> None:
    class Noting(BaseCallback):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            self.heard.append(type(instance).__name__)

        def on_adapter_format_start(
            self, call_id: str, instance: Any, inputs: dict[str, Any]
        ) -> None:
            self.heard.append(type(instance).__name__)
            given = inputs["inputs"].get("history")
            self.heard.append(type(given).__name__ if given is None else str(len(given.messages)))

        def on_adapter_parse_start(
            self, call_id: str, instance: Any, inputs: dict[str, Any]
        ) -> None:
            self.heard.append("parsed")

    noting, quiet = Noting(), Noting()
    with dspy.context(callbacks=[noting]):
        program = OwnAdapter(dspy.JSONAdapter(callbacks=[quiet]))
        session = sessionify(program, copy_mode="none")
        session(question="one")
        noting.heard.clear()
        quiet.heard.clear()
        session(question="two")
    chat = ["Predict", "ChatAdapter", "1", "parsed"]
    # DSPy itself fires twice for JSONAdapter, which inherits a wrapped `format` and wraps it again.
    json_ = [name for name in noting.heard[2:-4] if name != "Predict"]
    assert noting.heard[:2] == ["Session", "OwnAdapter"]
    assert noting.heard[-4:] == chat
    assert json_ == quiet.heard
    assert set(json_) == {"JSONAdapter", "1", "parsed"}


def test_D6_no_second_set_of_callbacks_beside_dspys_own() -> None:
    """A call in a session fires as often as one outside."""

    class Counting(BaseCallback):
        def __init__(self) -> None:
            self.count = 0

        def on_adapter_format_start(self, **_: Any) -> None:
            self.count += 1

        def on_adapter_parse_start(self, **_: Any) -> None:
            self.count += 100

    for adapter in (dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter):
        counts = []
        for program in (dspy.Predict(QA), sessionify(dspy.Predict(QA))):
            counting = Counting()
            with dspy.context(callbacks=[counting], adapter=adapter()):
                program(question="x")
            counts.append(counting.count)
        assert counts[0] == counts[1]


# --- fallbacks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["sync", "async"])
def test_D6_the_fallback_from_chat_to_json_keeps_history_and_left_out_fields(run: str) -> None:
    def stubborn(prompt: Prompt) -> Any:
        if "Respond with a JSON object" not in prompt[-1]["content"]:
            return "I will not use your format."
        return {name: f"{name}!" for name in requested_fields(prompt)}

    lm = ScriptedLM(stubborn)
    session = sessionify(dspy.Predict("question, mood -> answer, source"), exclude_fields={"mood"})
    session.add_turn({"question": "one", "mood": "bad"}, {"answer": "1"})
    with dspy.context(lm=lm):
        if run == "sync":
            session(question="two", mood="good")
        else:
            asyncio.run(session.acall(question="two", mood="good"))
    chat, fallback = messages(lm)
    assert [m["role"] for m in chat] == [m["role"] for m in fallback]
    assert chat[2]["content"] == "[[ ## answer ## ]]\n1\n\n[[ ## completed ## ]]\n"
    assert json.loads(fallback[2]["content"]) == {"answer": "1"}
    assert "[[ ## mood ## ]]" not in fallback[1]["content"]
    assert session.turns[-1].outputs == {"answer": "answer!", "source": "source!"}


def test_D6_an_adapter_without_fallback_has_none() -> None:
    session = sessionify(dspy.Predict(QA))
    lm = ScriptedLM(lambda prompt: "no")
    with (
        dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)),
        pytest.raises(Exception, match="failed to parse"),
    ):
        session(question="x")
    assert len(lm.prompts) == 1


# --- adapters of one's own ------------------------------------------------------------------------


class Shouting(dspy.ChatAdapter):
    """Overrides only `format`, on top of DSPy's."""

    def format(self, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        formatted = super().format(signature, demos, inputs)
        formatted[0]["content"] += "\nAnswer loudly."
        return formatted


class Flat(dspy.ChatAdapter):
    """Overrides `format`, and does everything in its own way: one line per value."""

    def format(self, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        lines = []
        for name in signature.input_fields:
            value = inputs[name]
            if isinstance(value, dspy.History):
                lines += [f"{m['question']} => {m['answer']}" for m in value.messages]
            lines.append(f"{name}={value}")
        reminder = self.user_message_output_requirements(signature)
        return [{"role": "user", "content": "\n".join([*lines, reminder])}]


class Dumping(dspy.ChatAdapter):
    """Overrides `format`, and writes the inputs as DSPy or pydantic would write a history."""

    def format(self, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        dumped = inputs["history"].model_dump_json()
        text = self.format_user_message_content(signature, inputs, main_request=True)
        return [{"role": "user", "content": f"{dumped}\n{text}"}]


class Backwards(dspy.ChatAdapter):
    """Overrides how the history is rendered: newest first."""

    def format_conversation_history(
        self, signature: Any, history_field_name: str, inputs: Any
    ) -> list[dict[str, Any]]:
        rendered = super().format_conversation_history(signature, history_field_name, inputs)
        return [m for n in range(len(rendered), 0, -2) for m in rendered[n - 2 : n]]


class Stamped(dspy.ChatAdapter):
    """Overrides how any user message is rendered, by what it holds."""

    def __init__(self, stamp: Any = "") -> None:
        super().__init__()
        self.stamp = stamp

    def format_user_message_content(self, *args: Any, **kwargs: Any) -> Any:
        return f"{self.stamp}{super().format_user_message_content(*args, **kwargs)}"


class Marking(dspy.ChatAdapter):
    """Overrides `format`, and changes in place what DSPy made."""

    def format(self, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        formatted = super().format(signature, demos, inputs)
        for message in formatted:
            message["content"] += "!"
        return formatted


OWN = [Shouting, Flat, Dumping, Backwards, Stamped, Marking]


@pytest.mark.parametrize("adapter", OWN)
def test_D6_an_adapter_of_ones_own_sends_what_it_would_with_a_field_by_hand(
    adapter: type[dspy.Adapter], lm: ScriptedLM
) -> None:
    by_hand = dspy.Predict(QA.append("history", dspy.InputField(), dspy.History))
    with dspy.context(adapter=adapter()):
        session = sessionify(dspy.Predict(QA), initial_history=history("one", "two"))
        for _ in range(2):  # the second time, past messages come from the cache
            session(question="three")
            session.undo()
        by_hand(question="three", history=history("one", "two"))
    mine, again, expected = messages(lm)
    assert mine == again == expected
    assert "answer to two" in json.dumps(mine)
    assert "object at 0x" not in json.dumps(mine)


def test_D6_what_an_adapter_holds_decides_what_is_kept(lm: ScriptedLM) -> None:
    session = sessionify(dspy.Predict(QA), initial_history=history("one"))
    adapter = Stamped("a: ")
    with dspy.context(adapter=adapter):
        session(question="x")
        adapter.stamp = "b: "
        session(question="y")
    first, second = messages(lm)
    assert all(m["content"].startswith("a: ") for m in first[1::2])
    assert all(m["content"].startswith("b: ") for m in second[1::2])


def test_D6_what_could_change_unseen_is_not_kept(lm: ScriptedLM) -> None:
    class Mutable:
        text = "a: "

        def __str__(self) -> str:
            return self.text

    stamp = Mutable()
    session = sessionify(dspy.Predict(QA), initial_history=history("one"))
    with dspy.context(adapter=Stamped(stamp)):
        clear_render_cache()
        session(question="x")
        stamp.text = "b: "
        session(question="y")
    assert render_counts()[1] == 0
    assert all(m["content"].startswith("b: ") for m in messages(lm)[1][1::2])


def test_D6_an_adapter_that_wraps_another_is_planned_once(lm: ScriptedLM) -> None:
    """As Refine's does: it adds a hint and delegates to the adapter that it found."""

    class Hinting(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict("question -> answer, source")

        def forward(self, question: str) -> Any:
            found: Any = dspy.settings.adapter

            class Wrapper(found.__class__):  # type: ignore[misc]
                def __call__(
                    self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any
                ) -> Any:
                    inputs = {**inputs, "hint_": "be brief"}
                    signature = signature.append("hint_", dspy.InputField())
                    return found(lm, lm_kwargs, signature, demos, inputs)

            with dspy.context(adapter=Wrapper()):
                return self.qa(question=question)

    session = sessionify(Hinting())
    session.add_turn({"question": "one"}, {"answer": "1"})
    session(question="two")
    assert [m["role"] for m in lm.prompts[-1]] == ["system", "user", "assistant", "user"]
    assert "source" not in lm.prompts[-1][2]["content"]  # which the first turn does not have
    assert lm.prompts[-1][-1]["content"].count("be brief") == 1
    assert lm.prompts[-1][0]["content"].count("(History)") == 1


# --- the wrapper passes for what it wraps ---------------------------------------------------------


def test_D6_the_wrapper_passes_for_the_adapter_inside() -> None:
    seen: list[Any] = []

    class Looking(dspy.Module):
        def forward(self, question: str) -> Any:
            seen.append(dspy.settings.adapter)
            return question

    inner = dspy.XMLAdapter()
    with dspy.context(adapter=inner):
        step(SessionState(), Looking(), {"question": "x"})
        assert dspy.settings.adapter is inner
    step(SessionState(), Looking(), {"question": "x"})
    wrapped, default = seen
    assert type(wrapped) is ConversationAdapter
    assert isinstance(wrapped, dspy.XMLAdapter)
    assert not isinstance(wrapped, dspy.JSONAdapter)
    assert wrapped.__class__ is dspy.XMLAdapter
    assert isinstance(default, dspy.ChatAdapter)
    assert wrapped.use_native_function_calling is inner.use_native_function_calling
    wrapped.use_native_function_calling = True
    assert inner.use_native_function_calling is True
    with pytest.raises(AttributeError):
        _ = wrapped.no_such_thing
    assert wrap_adapter(wrapped) is wrapped
    for twin in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert type(twin) is ConversationAdapter
        assert isinstance(twin, dspy.XMLAdapter)
    assert "XMLAdapter" in repr(wrapped)


def test_D6_the_rendering_adapter_is_the_same_adapter_under_the_same_name() -> None:
    for inner in (dspy.ChatAdapter(), Shouting(), Backwards(), Stamped("x")):
        twin = rendering_adapter(inner)
        assert isinstance(twin, type(inner))
        assert type(twin).__name__ == type(inner).__name__
        assert vars(twin) is vars(inner)
        assert rendering_adapter(twin) is twin
        assert type(rendering_adapter(inner)) is type(twin)


def test_D6_what_stands_for_the_history_passes_for_one() -> None:
    """Callbacks, tracing and adapters of one's own meet it in the inputs of a call."""
    seen: list[Any] = []

    class Peeking(dspy.ChatAdapter):
        def format(self, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
            seen.append(inputs["history"])
            return super().format(signature, demos, inputs)

    given = history("one")
    with dspy.context(adapter=Peeking()):
        sessionify(dspy.Predict(QA), initial_history=given)(question="x")
    stand_in = seen[0]
    assert type(stand_in) is WindowHistory
    assert isinstance(stand_in, dspy.History)
    assert stand_in.messages == given.messages
    assert (repr(stand_in), str(stand_in)) == (repr(given), str(given))
    assert stand_in.model_dump() == given.model_dump()
    assert dict(stand_in) == dict(given)
    for twin in (
        copy.copy(stand_in),
        copy.deepcopy(stand_in),
        pickle.loads(pickle.dumps(stand_in)),
    ):
        assert twin.messages == given.messages


@pytest.mark.usefixtures("lm")
def test_D6_the_keeper_runs_only_where_a_program_set_its_own_adapter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any callback makes each DSPy call dearer, so an idle one is left out (counted, not timed)."""
    started: list[str] = []
    monkeypatch.setattr(
        AdapterKeeper,
        "on_module_start",
        lambda _self, call_id, instance, inputs: started.append(type(instance).__name__),
    )
    sessionify(Asker())(question="a")
    assert started == []
    sessionify(OwnAdapter())(question="a")
    assert started == ["Predict"]
