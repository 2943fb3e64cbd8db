"""What session tools and instructions lean on inside DSPy, stated one by one.

None of this tests the library; see tests/test_dspy_contract.py.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from dspy import LocalInterpreter

from dspy_session.testing import Prompt, ScriptedLM, requested_fields
from tests.modules import deprecated_modules

NAMED = "question -> answer"


def shown(item: str) -> str:
    """What a model is told."""
    return item


def private(item: str, session: int) -> str:
    """What is called."""
    return f"{item} {session}"


def test_a_tool_is_told_by_the_signature_that_a_function_says_it_has() -> None:
    def wrapper(**kwargs: Any) -> str:
        return private(kwargs["item"], 1)

    wrapper.__wrapped__ = private  # type: ignore[attr-defined]
    wrapper.__signature__ = inspect.signature(shown)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {"item": str, "return": str}
    tool = dspy.Tool(wrapper)
    assert tool.args == {"item": {"type": "string"}}
    assert tool.arg_types == {"item": str}
    assert tool(item="tea") == "tea 1"


class Odd:
    """A type that pydantic asks how it is to be told."""

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> dict[str, Any]:
        return {"type": "is-instance", "cls": cls}

    @classmethod
    def __get_pydantic_json_schema__(cls, *_: Any) -> dict[str, Any]:
        return {"description": "odd"}


class Unknown:
    """A type of which pydantic knows nothing."""


def test_a_tool_asks_pydantic_about_each_parameter_when_it_is_made() -> None:
    def odd(thing: Odd) -> str:
        return ""

    def unknown(thing: Unknown) -> str:
        return ""

    tool = dspy.Tool(odd)
    assert tool.args == {"thing": {"description": "odd"}}
    assert tool.arg_types == {"thing": Odd}
    with pytest.raises(ValueError, match="instance of Odd"):
        tool(thing={"made": "up"})
    with pytest.raises(Exception, match="Unable to generate pydantic-core schema"):
        dspy.Tool(unknown)


def test_a_tool_refuses_arguments_that_it_does_not_have() -> None:
    with pytest.raises(ValueError, match="Arg session is not in the tool's args"):
        dspy.Tool(shown)(item="x", session=1)


def test_an_awaited_tool_calls_its_function_itself_and_awaits_a_coroutine() -> None:
    callers: list[Any] = []

    async def later() -> str:
        return "late"

    def tool() -> Any:
        callers.append(sys._getframe(1).f_code)
        return later() if len(callers) == 1 else "at once"

    assert asyncio.run(dspy.Tool(tool).acall()) == "late"
    assert dspy.Tool(tool)() == "at once"
    assert callers[0] is inspect.unwrap(dspy.Tool.acall).__code__
    assert callers[1] is not callers[0]


@pytest.mark.parametrize("kind", [dspy.ReAct, dspy.ReActV2, dspy.RLM])
def test_agents_keep_their_tools_by_name(kind: Callable[..., Any]) -> None:
    tools = kind(NAMED, tools=[shown]).tools
    assert isinstance(tools["shown"], dspy.Tool)
    assert tools["shown"].func is shown
    with deprecated_modules():
        act: Any = dspy.CodeAct(NAMED, tools=[shown], interpreter_factory=LocalInterpreter)
    assert act.tools["shown"].func is shown
    assert issubclass(dspy.CodeAct, dspy.ReAct)


def test_an_agent_shows_an_error_of_a_tool_to_its_model() -> None:
    """If this passes no more, `Draft.fail` may be needed no more."""

    def broken() -> str:
        raise ConnectionError("gone")

    def say(prompt: Prompt) -> dict[str, Any]:
        said = "gone" in str(prompt)
        words = {
            "next_tool_name": "finish" if said else "broken",
            "next_tool_args": {},
            "tool_calls": {
                "tool_calls": [
                    {"name": "submit", "args": {"answer": "x"}}
                    if said
                    else {"name": "broken", "args": {}}
                ]
            },
        }
        return {name: words.get(name, "said") for name in requested_fields(prompt)}

    for kind in (dspy.ReAct, dspy.ReActV2):
        with dspy.context(lm=(lm := ScriptedLM(say))):
            kind(NAMED, tools=[broken])(question="?")
        assert "gone" in str(lm.prompts[-1])


def test_other_instructions_leave_a_signature_as_it_is_otherwise() -> None:
    default = ["a"]

    class Own(dspy.Signature):
        """Own."""

        first: str = dspy.InputField(desc="one")
        more: list[str] = dspy.InputField(default=default)
        last: int = dspy.OutputField()

    own: Any = Own
    made: Any = own.with_instructions("Other.\n\n  Indented.\n")
    assert made.instructions == "Other.\n\nIndented."
    assert own.instructions == "Own."
    assert list(made.fields) == list(own.fields)
    for name, field in own.fields.items():
        assert made.fields[name].json_schema_extra == field.json_schema_extra
        assert made.fields[name].annotation == field.annotation
    assert made.input_fields["more"].default is own.input_fields["more"].default
