"""What training data leans on inside DSPy: how an `Example` keeps its fields, and how it is copied.

None of this tests the library; see `tests/test_dspy_contract.py`.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import dspy
import pytest


class Marked(dspy.Example):
    """Keeps an attribute of the example that it is made from."""

    def __init__(self, base: Any = None, **kwargs: Any) -> None:
        super().__init__(base, **kwargs)
        self._mark = vars(base).get("_mark") if isinstance(base, dspy.Example) else None


@pytest.fixture
def example() -> Any:
    made = Marked(question="Hi", answer="Hello.").with_inputs("question")
    made._mark = "here"
    return made


@pytest.mark.parametrize("copied", ["copy", "with_inputs", "without"])
def test_copies_are_made_by_the_class_from_the_example(example: Any, copied: str) -> None:
    arguments = {"copy": [], "with_inputs": ["answer"], "without": ["answer"]}[copied]
    again = getattr(example, copied)(*arguments)
    assert (type(again), again._mark) == (Marked, "here")


def test_inputs_and_labels_are_made_from_fields_alone(example: Any) -> None:
    for part in (example.inputs(), example.labels()):
        assert (type(part), part._mark) == (Marked, None)


def test_an_underscore_makes_an_attribute_and_no_field(example: Any) -> None:
    assert {**vars(example)} == {
        "_store": {"question": "Hi", "answer": "Hello."},
        "_demos": [],
        "_input_keys": {"question"},
        "_mark": "here",
    }
    assert "_mark" not in repr(example)
    assert example == dspy.Example(question="Hi", answer="Hello.")
    example["_mark"] = "a field"
    assert (example._mark, example["_mark"]) == ("here", "a field")


def test_a_plain_example_has_no_way_to_pickle_of_its_own() -> None:
    for name in ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__deepcopy__"):
        assert name not in vars(dspy.Example)


def test_a_prediction_has_no_input_keys() -> None:
    assert not hasattr(dspy.Prediction(answer="x"), "_input_keys")


def test_a_tool_says_what_it_is_as_chat_models_take_it() -> None:
    def look(city: str, far: bool = False) -> str:
        """Look around."""
        return city

    assert dspy.Tool(look).format_as_litellm_function_call() == {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look around.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "far": {"type": "boolean", "default": False},
                },
                "required": ["city"],
            },
        },
    }


@pytest.mark.parametrize("name", ["ReAct", "ReActV2"])
def test_agents_hold_their_tools_by_name_and_one_that_ends_the_loop(name: str) -> None:
    def look(city: str) -> str:
        return city

    kind = getattr(importlib.import_module("dspy"), name, None) or getattr(
        importlib.import_module("dspy.experimental"), name
    )
    agent = kind("question -> answer", tools=[look])
    assert {*agent.tools} - {"finish", "submit"} == {"look"}
    assert len(agent.tools) == 2
    assert all(isinstance(tool, dspy.Tool) for tool in agent.tools.values())


def test_the_loader_takes_a_file_and_the_names_of_inputs() -> None:
    loader: Any = importlib.import_module("dspy.datasets").DataLoader
    assert [*inspect.signature(loader.from_json).parameters] == [
        "self",
        "file_path",
        "fields",
        "input_keys",
    ]
