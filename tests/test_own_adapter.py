"""Programs and users that choose the adapter: the conversation is there under each of them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import dspy
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter

from dspy_session import sessionify
from dspy_session.testing import Prompt, ScriptedLM, requested_fields
from tests.talk import QA, pairs, past, qa_session, scripted


def json_past(prompt: Prompt) -> list[tuple[str, str]]:
    """Past questions and answers, as the JSONAdapter shows them."""
    found = []
    for user, assistant in zip(prompt[1:-1:2], prompt[2:-1:2], strict=True):
        question = user["content"].split("\n")[1]
        found.append((question, json.loads(assistant["content"])["answer"]))
    return found


def answering(prompt: Prompt) -> dict[str, Any]:
    question = prompt[-1]["content"].split("\n")[1]
    return {name: f"answer to {question}" for name in requested_fields(prompt)}


class OwnAdapter(dspy.Module):
    """Sets an adapter of its own while it runs, sync and async."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(QA)

    def forward(self, question: str) -> Any:
        with dspy.context(adapter=dspy.JSONAdapter()):
            return self.qa(question=question)

    async def aforward(self, question: str) -> Any:
        with dspy.context(adapter=dspy.JSONAdapter()):
            both = await asyncio.gather(
                self.qa.acall(question=question), self.qa.acall(question=question)
            )
        return both[0]


def test_D6_a_program_that_sets_its_own_adapter_keeps_its_history() -> None:
    lm, session = ScriptedLM(answering), sessionify(OwnAdapter())
    with dspy.context(lm=lm):
        for question in "abc":
            session(question=question)
    assert [json_past(prompt) for prompt in lm.prompts] == [pairs(), pairs("a"), pairs("a", "b")]


def test_D6_a_program_that_sets_its_own_adapter_keeps_its_history_async() -> None:
    lm, session = ScriptedLM(answering), sessionify(OwnAdapter())

    async def talk() -> None:
        with dspy.context(lm=lm):
            for question in "abc":
                await session.acall(question=question)

    asyncio.run(talk())
    # Both calls of a turn see the turns before it, and not each other.
    assert [json_past(prompt) for prompt in lm.prompts[1::2]] == [
        pairs(),
        pairs("a"),
        pairs("a", "b"),
    ]
    assert lm.prompts[::2] == lm.prompts[1::2]


def test_D6_the_adapter_before_is_active_again_after_the_turn() -> None:
    adapter = dspy.XMLAdapter()
    with dspy.context(lm=ScriptedLM(answering), adapter=adapter):
        session = sessionify(OwnAdapter())
        session(question="a")
        assert dspy.settings.adapter is adapter


@pytest.mark.parametrize(
    "adapter", [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter, BAMLAdapter]
)
def test_D6_the_adapter_seems_to_be_the_users_own(adapter: type[dspy.Adapter]) -> None:
    seen: list[Any] = []

    class Looks(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            active = dspy.settings.adapter
            seen.append((isinstance(active, adapter), active.__class__, active.callbacks))
            return self.qa(question=question)

    users = adapter()
    with dspy.context(lm=ScriptedLM(answering), adapter=users):
        sessionify(Looks())(question="a")
    assert seen == [(True, adapter, users.callbacks)]


def test_D6_the_fallback_from_chat_to_json_keeps_the_history() -> None:
    """The chat format fails on every turn, so that each is asked for again as JSON."""

    def only_json(prompt: Prompt) -> Any:
        if "Respond with a JSON object" not in prompt[-1]["content"]:
            return "no markers at all"
        return answering(prompt)

    lm, session = ScriptedLM(only_json), qa_session()
    with dspy.context(lm=lm):
        for question in "abc":
            session(question=question)
    chat, as_json = lm.prompts[::2], lm.prompts[1::2]
    assert [past(prompt) for prompt in chat] == [pairs(), pairs("a"), pairs("a", "b")]
    assert [json_past(prompt) for prompt in as_json] == [pairs(), pairs("a"), pairs("a", "b")]


def test_D6_an_adapter_that_overrides_only_format_keeps_the_history() -> None:
    class Shouting(dspy.ChatAdapter):
        def format(
            self, signature: Any, demos: list[dict[str, Any]], inputs: dict[str, Any]
        ) -> list[dict[str, Any]]:
            messages = super().format(signature, demos, inputs)
            return [{**message, "content": message["content"] + "!"} for message in messages]

    lm, session = scripted(), qa_session()
    with dspy.context(lm=lm, adapter=Shouting()):
        session(question="a")
        session(question="b")
    assert all(message["content"].endswith("!") for message in lm.prompts[-1])
    assert past(lm.prompts[-1])[0][0] == "a"


def test_D6_an_adapter_that_renders_history_its_own_way_does() -> None:
    class Diary(dspy.ChatAdapter):
        def format_conversation_history(
            self, signature: Any, history_field_name: str, inputs: dict[str, Any]
        ) -> list[dict[str, Any]]:
            messages = inputs.pop(history_field_name).messages
            return [{"role": "user", "content": f"diary of {len(messages)}: {messages}"}]

    lm, session = scripted(), qa_session()
    with dspy.context(lm=lm, adapter=Diary()):
        session(question="a")
        session(question="b")
    assert lm.prompts[-1][1]["content"].startswith("diary of 1: [{'question': 'a', 'answer': ")


def test_D6_adapters_may_change_in_mid_conversation() -> None:
    lm, session = ScriptedLM(answering), qa_session()
    for question, adapter in [("a", dspy.ChatAdapter()), ("b", dspy.JSONAdapter()), ("c", None)]:
        with dspy.context(lm=lm, adapter=adapter):
            session(question=question)
    assert json_past(lm.prompts[1]) == pairs("a")
    assert past(lm.prompts[2]) == pairs("a", "b")


def test_D6_callbacks_of_the_adapter_fire_once_per_call() -> None:
    from dspy.utils.callback import BaseCallback

    class Counts(BaseCallback):
        formats = 0

        def on_adapter_format_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            Counts.formats += 1

    session = qa_session()
    with dspy.context(lm=scripted(), adapter=dspy.ChatAdapter(callbacks=[Counts()])):
        session(question="a")
        session(question="b")
    assert Counts.formats == 2
