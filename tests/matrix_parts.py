"""What the cells of `tests/matrix.py` are made of: programs, adapters, and a scripted model.

The model answers every field with its name and the number of the turn, `answer-0`, then `answer-1`,
and so on, so that what a request shows of earlier turns can be read off it.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.adapters.baml_adapter import BAMLAdapter
from dspy_template_adapter import TemplateAdapter

from dspy_session.testing import in_requested_format, requested_fields
from tests.loopback import Body, Completion

MODEL, EXTRACTOR = "gpt-4o-mini", "gpt-4o"  # DSPy knows of both what they can do

# --- the programs ---------------------------------------------------------------------------------


def look_up(query: str) -> str:
    """Find something."""
    return query.replace("question", "found")


def never_enough(args: dict[str, Any], prediction: dspy.Prediction) -> float:
    return 0.0


class Compared(dspy.Module):
    """Two chains of thought, compared."""

    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.ChainOfThought("question -> answer")
        self.compare = dspy.MultiChainComparison("question -> answer", M=2)

    def forward(self, question: str) -> Any:
        attempts = [self.think(question=question) for _ in range(2)]
        return self.compare(attempts, question=question)


class Fan(dspy.Module):
    """Two predictors side by side in `dspy.Parallel`, then one that sums up."""

    def __init__(self) -> None:
        super().__init__()
        self.scouts = [dspy.Predict("question -> hint") for _ in range(2)]
        self.write = dspy.Predict("question, hints: list[str] -> answer")

    def forward(self, question: str) -> Any:
        parallel = dspy.Parallel(num_threads=2, disable_progress_bar=True)
        found = parallel([(scout, {"question": question}) for scout in self.scouts])
        return self.write(question=question, hints=[one.hint for one in found])


class Writer(dspy.Module):
    """The inner part of a nested program."""

    def __init__(self) -> None:
        super().__init__()
        self.work = dspy.Predict("plan -> draft")
        self.write = dspy.Predict("question, draft -> answer")

    def forward(self, question: str, plan: str) -> Any:
        return self.write(question=question, draft=self.work(plan=plan).draft)


class Nested(dspy.Module):
    """A nested program; the worker has neither the question nor the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = dspy.ChainOfThought("question -> plan")
        self.writer = Writer()

    def forward(self, question: str) -> Any:
        return self.writer(question=question, plan=self.plan(question=question).plan)


class ToolUser(dspy.Module):
    """The model chooses a tool, the program runs it, the model answers."""

    def __init__(self) -> None:
        super().__init__()
        self.choose = dspy.Predict("question, tools: list[dspy.Tool] -> tool_calls: dspy.ToolCalls")
        self.write = dspy.Predict("question, results: list[str] -> answer")

    def forward(self, question: str) -> Any:
        tools = [dspy.Tool(look_up)]
        chosen = self.choose(question=question, tools=tools).tool_calls.tool_calls
        results = [call.execute(tools) for call in chosen]
        return self.write(question=question, results=results)


class WithHistory(dspy.Module):
    """The author wrote a history into the program."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict("question, history: dspy.History -> answer")

    def forward(self, question: str, history: dspy.History) -> Any:
        return self.qa(question=question, history=history)


class Plain(dspy.Module):
    """The program returns a string."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        return self.qa(question=question).answer


def quietly(make: Callable[[], dspy.Module]) -> Callable[[], dspy.Module]:
    """Without the warnings of modules that DSPy means to change or to remove."""

    def made() -> dspy.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return make()

    return made


QA = "question -> answer"
MODULES: dict[str, Callable[[], dspy.Module]] = {
    "Predict": lambda: dspy.Predict(QA),
    "ChainOfThought": lambda: dspy.ChainOfThought(QA),
    "ReAct": lambda: dspy.ReAct(QA, tools=[look_up]),
    "ReActV2": lambda: dspy.ReActV2(QA, tools=[look_up]),
    "ReActV2, native function calling": lambda: dspy.ReActV2(QA, tools=[look_up]),
    "CodeAct": quietly(
        lambda: dspy.CodeAct(QA, tools=[look_up], interpreter_factory=dspy.LocalInterpreter)
    ),
    "ProgramOfThought": quietly(
        lambda: dspy.ProgramOfThought(QA, interpreter_factory=dspy.LocalInterpreter)
    ),
    "RLM": lambda: dspy.RLM(QA, interpreter_factory=dspy.LocalInterpreter),
    "BestOfN": lambda: dspy.BestOfN(dspy.ChainOfThought(QA), 2, never_enough, 1.0),
    "Refine": lambda: dspy.Refine(dspy.ChainOfThought(QA), 2, never_enough, 1.0),
    "MultiChainComparison": quietly(Compared),
    "Parallel inside": Fan,
    "planner, worker, writer": Nested,
    "own tool calls": ToolUser,
    "own tool calls, native function calling": ToolUser,
    "own `history` parameter": WithHistory,
    "plain return": Plain,
}

# --- the adapters ---------------------------------------------------------------------------------


class Brief(dspy.ChatAdapter):
    """A custom adapter that overrides `format` and nothing else."""

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        system, *messages = super().format(signature, demos, inputs)
        return [{**system, "content": f"{system['content']}\n\nBe brief."}, *messages]


def make_template(extractor: dspy.BaseLM, native: bool) -> Any:
    return TemplateAdapter(
        messages=[
            {"role": "system", "content": "Follow the template. {instruction}"},
            {"role": "history"},
            {"role": "user", "content": "{inputs()}\n\nRespond with a JSON object:\n{outputs()}"},
        ],
        use_native_function_calling=native,
    )


@dataclass(frozen=True)
class AdapterKind:
    """How an adapter is made, and what every request through it has in it."""

    make: Callable[[dspy.BaseLM, bool], Any]
    mark: str


ADAPTERS = {
    "Chat": AdapterKind(
        lambda _, native: dspy.ChatAdapter(use_native_function_calling=native), "[[ ## "
    ),
    "JSON": AdapterKind(
        lambda _, native: dspy.JSONAdapter(use_native_function_calling=native),
        "Outputs will be a JSON object with the following fields.",
    ),
    "XML": AdapterKind(
        lambda _, native: dspy.XMLAdapter(use_native_function_calling=native), "wrapped in XML tags"
    ),
    "BAML": AdapterKind(
        lambda _, native: BAMLAdapter(use_native_function_calling=native),
        "Respond with a JSON object",
    ),
    "TwoStep": AdapterKind(
        lambda extractor, native: dspy.TwoStepAdapter(
            extractor, use_native_function_calling=native
        ),
        "Your outputs must contain:",  # FREE_FORM
    ),
    "Template": AdapterKind(make_template, "Follow the template."),
    "only `format`": AdapterKind(
        lambda _, native: Brief(use_native_function_calling=native), "Be brief."
    ),
}

# --- the model ------------------------------------------------------------------------------------


class Model:
    """Answers each field that it is asked for with the field's name and the number of the turn."""

    def __init__(self) -> None:
        self.turn = 0
        self._said: dict[str, Any] = {}

    def __call__(self, body: Body) -> str | Completion:
        prompt = body["messages"]
        if body["model"] == EXTRACTOR:  # what TwoStepAdapter lets extract from the last answer
            return in_requested_format(prompt, {n: self._said[n] for n in requested_fields(prompt)})
        looked_up = f"found-{self.turn}" in json.dumps(prompt)
        self._said = {name: self._value(name, looked_up) for name in asked_for(prompt)}
        if "tools" in body:
            text = in_requested_format(prompt, self._said) if self._said else ""
            return Completion(text, tool_calls=[self._tool_call(looked_up)])
        if FREE_FORM in prompt[0]["content"]:
            return "\n\n".join(f"{name}: {value}" for name, value in self._said.items())
        return in_requested_format(prompt, self._said)

    def _value(self, name: str, looked_up: bool) -> Any:
        tool, arguments = self._tool_call(looked_up)
        special: dict[str, Any] = {
            "next_tool_name": "finish" if looked_up else tool,
            "next_tool_args": {} if looked_up else arguments,
            "tool_calls": {"tool_calls": [{"name": tool, "args": arguments}]},
            "finished": True,
            "advice": {"self": "N/A"},
        }
        return special.get(name, self.words(name, self.turn))

    @staticmethod
    def words(field: str, turn: int) -> str:
        """What a text field says in a turn."""
        code = {
            "generated_code": f"```python\nlast = 'answer-{turn}'\nprint(last)\n```",
            "code": f"```python\nSUBMIT(answer='answer-{turn}')\n```",
        }
        return code.get(field, f"{field}-{turn}")

    def _tool_call(self, looked_up: bool) -> tuple[str, dict[str, Any]]:
        if looked_up:
            return "submit", {"answer": f"answer-{self.turn}"}
        return "look_up", {"query": f"question-{self.turn}"}


FREE_FORM = "Your outputs must contain:"  # the first step of a TwoStepAdapter


def asked_for(prompt: list[dict[str, Any]]) -> list[str]:
    """The output fields that a prompt asks for."""
    _, free_form, wanted = str(prompt[0]["content"]).partition(FREE_FORM)
    return re.findall(r"^\d+\. `(\w+)`", wanted, re.M) if free_form else requested_fields(prompt)
