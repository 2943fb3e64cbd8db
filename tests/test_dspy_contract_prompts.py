"""What rendering without calls leans on in DSPy: where it stands, and what gets past."""

from __future__ import annotations

from typing import Any

import dspy
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter
from dspy.utils.callback import BaseCallback

from dspy_session.testing import ScriptedLM


class LeavesError(BaseException):
    """No `Exception`, so DSPy lets it through."""


class Refusing(BaseCallback):
    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        raise LeavesError

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        raise LeavesError


class Leaving(dspy.BaseLM):
    """Leaves as soon as it is called, with what it was called with."""

    def __init__(self) -> None:
        super().__init__(model="none")
        self.called: list[dict[str, Any]] = []

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        self.called.append({"prompt": prompt, "messages": messages, **kwargs})
        raise LeavesError


@pytest.mark.parametrize(
    "adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter(), BAMLAdapter()]
)
def test_adapters_call_the_lm_with_messages_and_let_it_leave(adapter: dspy.Adapter) -> None:
    lm = Leaving()
    with dspy.context(lm=lm, adapter=adapter), pytest.raises(LeavesError):
        dspy.Predict("question -> answer", temperature=0.5)(question="Hi")
    (call,) = lm.called
    assert call["prompt"] is None
    assert [message["role"] for message in call["messages"]] == ["system", "user"]
    assert call["temperature"] == 0.5


def test_the_two_step_adapter_asks_the_main_lm_first() -> None:
    lm = Leaving()
    adapter = dspy.TwoStepAdapter(ScriptedLM())
    with dspy.context(lm=lm, adapter=adapter), pytest.raises(LeavesError):
        dspy.Predict("question -> answer")(question="Hi")
    assert len(lm.called) == 1


def test_a_callback_can_stop_a_call_of_a_model_and_of_a_tool() -> None:
    asked: list[Any] = []
    lm = ScriptedLM(lambda _: "Hi", on_request=asked.append)
    ran: list[Any] = []
    tool = dspy.Tool(ran.append, name="note", args={}, arg_types={})
    with dspy.context(callbacks=[Refusing()]):
        with pytest.raises(LeavesError):
            lm("Hi")
        with pytest.raises(LeavesError):
            tool()
    assert (asked, ran) == ([], [])


def test_agents_keep_their_tools_by_name_and_their_predictor_as_react() -> None:
    def look_up(key: str) -> str:
        """Look something up."""
        return key

    for kind, end in ((dspy.ReAct, "finish"), (dspy.ReActV2, "submit")):
        agent: Any = kind("question -> answer", tools=[look_up])
        assert set(agent.tools) == {"look_up", end}
        assert isinstance(agent.react, dspy.Predict)
        assert agent.tools[end].func.__module__.startswith("dspy.")


def test_what_an_agent_leaves_of_its_steps_has_these_names() -> None:
    def reply(_: Any) -> dict[str, Any]:
        return {
            "next_thought": "Done.",
            "next_tool_name": "finish",
            "next_tool_args": {},
            "reasoning": "So.",
            "answer": "A.",
        }

    with dspy.context(lm=ScriptedLM(reply)):
        prediction = dspy.ReAct("question -> answer", tools=[])(question="Hi")
    assert prediction.trajectory == {
        "thought_0": "Done.",
        "tool_name_0": "finish",
        "tool_args_0": {},
        "observation_0": "Completed.",
    }
