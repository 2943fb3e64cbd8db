"""What the chat view leans on in DSPy; fails here, by name, when DSPy moves."""

from __future__ import annotations

import dspy

from dspy_session.core import ChatFields, SessionOptions
from dspy_session.program.chat_fields import inferred_fields
from tests.modules import ANSWERS
from tests.test_modules_tools import Agent, react, react_v2


def test_a_chain_of_thought_puts_its_reasoning_in_front_of_the_outputs() -> None:
    program = dspy.ChainOfThought("question -> answer")
    assert list(program.predict.signature.output_fields) == ["reasoning", "answer"]
    assert inferred_fields(program, SessionOptions()) == ChatFields()


def test_a_react_leaves_a_trajectory_of_numbered_steps_and_ends_with_finish() -> None:
    lm = Agent()
    with dspy.context(lm=lm):
        trajectory = react()(question=lm.next_turn()).trajectory
    assert list(trajectory)[:4] == ["thought_0", "tool_name_0", "tool_args_0", "observation_0"]
    assert trajectory["tool_name_0"] == "look"
    assert trajectory["tool_args_0"] == {"at": "here"}
    assert trajectory["observation_0"] == "seen here"
    assert trajectory["tool_name_1"] == "finish"


def test_a_react_v2_leaves_a_history_of_tool_calls_with_results_and_ends_with_submit() -> None:
    lm = Agent()
    with dspy.context(lm=lm):
        called, submitted = react_v2()(question=lm.next_turn()).history.messages
    assert isinstance(called["tool_calls"], dspy.ToolCalls)
    (use,), results = called["tool_calls"].tool_calls, called["tool_calls"].tool_call_results
    assert results is not None
    assert (use.name, use.args) == ("look", {"at": "here"})
    assert [result.value for result in results.tool_call_results] == ["seen here"]
    assert [call.name for call in submitted["tool_calls"].tool_calls] == ["submit"]
    assert submitted["answer"] == ANSWERS[0]
