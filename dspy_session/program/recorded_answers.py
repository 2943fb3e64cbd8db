"""What a recorded turn knows of what its predictors were answered.

A turn keeps its outputs and, of an agent, the steps of its run; what predictors in the middle of a
program said is not kept. So an answer is known

- of an agent's step, if the program has one such agent: its `trajectory` (ReAct) or its `history`
  (ReActV2) says it, with what the tools returned;
- of another output, if the turn has it, or that of a session inside the program, and exactly one
  predictor of the program says it, with one and the same prompt each time;
- of the only predictor of a program that returned a plain value.

A text that is not known is stood in for by its name, and noted. Of anything else nobody can say how
the program went on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Set
from typing import Any, Final

import dspy

from dspy_session.core.copies import private_copy
from dspy_session.core.turn import Turn
from dspy_session.program.anatomy import is_agent, predictors, walk

__all__ = ["RecordedAnswers", "RecordedTool", "UnrecordedError", "with_recorded_tools"]

_REDACTED: Final = "(redacted)"
Messages = tuple[dict[str, Any], ...]


class UnrecordedError(BaseException):
    """Ends a turn that only renders prompts, where nothing says how it went on."""


def redacted_fields(fields: Mapping[str, Any], redacted: Set[str]) -> dict[str, Any]:
    """Return fields without what is redacted: a text says so, anything else is left out.

    Args:
        fields: Values by name.
        redacted: The names.
    """
    return {
        name: _REDACTED if name in redacted else value
        for name, value in fields.items()
        if name not in redacted or isinstance(value, str)
    }


class RecordedAnswers:
    """What one recorded turn says in the place of a model.

    Args:
        program: The program that runs.
        turn: The recorded turn.
        redacted: The fields whose values are not to be said.
        unknown: The predictors, by path, of which nobody can say which answer the turn kept.

    Attributes:
        placeholders: The outputs that were stood in for so far, by the predictor's path.
        repeated: The predictors that sent different prompts, by path.
    """

    def __init__(
        self,
        program: dspy.Module,
        turn: Turn,
        redacted: Set[str] = frozenset(),
        unknown: Set[str] = frozenset(),
    ) -> None:
        recorded = {**_of_sessions_inside(turn), **turn.details, **turn.outputs}
        self._fields = redacted_fields(recorded, redacted)
        self._plain, self._unknown = turn.run.plain, unknown
        found = [predictor for _, predictor in predictors(program)]
        self._own = {predictor.stage for predictor in found}
        self._alone = len(found) == 1
        self._sayers = Counter(name for p in found for name in p.signature.output_fields)
        agents = [module for _, module in walk(program) if _keeps_steps(module)]
        self._steps = _steps(self._fields, agents[0]) if len(agents) == 1 else []
        self._step = -1
        self._results: list[Any] = []
        self._asked: dict[str, Messages] = {}
        self.placeholders: list[str] = []
        self.repeated: set[str] = set()

    def answer(
        self, caller: Any, path: str, signature: type[dspy.Signature], messages: Messages
    ) -> dict[str, Any]:
        """Return the answer to a prompt.

        Args:
            caller: The predictor.
            path: Its path in the program.
            signature: What it is to answer.
            messages: The prompt.

        Raises:
            UnrecordedError: Nothing says what the answer was.
        """
        around = dspy.settings.caller_modules[:-1]
        agent = next((m for m in reversed(around) if is_agent(m)), None)
        if _keeps_steps(agent) and getattr(agent, "react", None) is caller:
            return self._next_step(path)
        if self._asked.setdefault(path, messages) != messages:
            self.repeated.add(path)
        answers: dict[str, Any] = {}
        for name, field in signature.output_fields.items():
            known, value = self._said(name, caller, signature)
            if known and path not in self._unknown:
                answers[name] = private_copy(value)
                continue
            stand_in = f"({name}: not recorded)"
            if field.annotation is dspy.Reasoning:
                answers[name] = dspy.Reasoning.model_validate(stand_in)
            elif field.annotation is str and (agent is None or _keeps_steps(agent)):
                answers[name] = stand_in
            else:
                raise UnrecordedError(f"what {path} answered as {name!r} is not recorded")
            self.placeholders.append(f"{path}.{name}")
        return answers

    def _said(self, name: str, caller: Any, signature: type[dspy.Signature]) -> tuple[bool, Any]:
        own = getattr(caller, "stage", None) in self._own
        if name in self._fields:
            return self._sayers[name] <= own, self._fields[name]
        others = [other for other in signature.output_fields if other != "reasoning"]
        spoken = self._plain and own and self._alone and others == [name]
        return spoken and "output" in self._fields, self._fields.get("output")

    def _next_step(self, path: str) -> dict[str, Any]:
        self._step += 1
        if self._step >= len(self._steps):
            what = "is not recorded" if not self._steps else f"ends after {self._step}"
            raise UnrecordedError(f"what {path} did {what}, step by step")
        answers, results = self._steps[self._step]
        self._results = list(results)
        return {name: private_copy(value) for name, value in answers.items()}

    def tool_result(self) -> Any:
        """Return what the next tool of the present step returned."""
        return private_copy(self._results.pop(0)) if self._results else ""


def _of_sessions_inside(turn: Turn) -> dict[str, Any]:
    """What sessions inside the program answered in the turn, those that had one turn in it."""
    answered: dict[str, Any] = {}
    for path, state in turn.nested.items():
        began = turn.before.nested.get(path)
        new = [inner for inner in state if began is None or inner.index >= began.stop]
        if len(new) == 1:
            answered |= new[0].outputs
    return answered


def _keeps_steps(module: Any) -> bool:
    """Whether it is an agent that leaves its steps; a CodeAct is a ReAct by its class only."""
    kinds = (dspy.ReAct, dspy.ReActV2)
    return isinstance(module, kinds) and not isinstance(module, dspy.CodeAct)


_NUMBERED: Final = re.compile(r"tool_name_(\d+)")
_Steps = list[tuple[dict[str, Any], list[Any]]]


def _steps(fields: Mapping[str, Any], agent: dspy.Module) -> _Steps:
    """What an agent was answered step by step, and what its tools returned."""
    if isinstance(agent, dspy.ReAct):
        trajectory = fields.get("trajectory")
        return _of_trajectory(trajectory) if isinstance(trajectory, Mapping) else []
    history = fields.get("history")
    return _of_history(history) if isinstance(history, list) else []


def _of_trajectory(trajectory: Mapping[str, Any]) -> _Steps:
    numbers = [found[1] for name in trajectory if (found := _NUMBERED.fullmatch(name))]
    if numbers != [str(number) for number in range(len(numbers))]:
        return []  # its beginning was cut off, where the context was too long
    return [
        (
            {
                f"next_{part}": trajectory.get(f"{part}_{number}")
                for part in ("thought", "tool_name", "tool_args")
            },
            [trajectory.get(f"observation_{number}", "")],
        )
        for number in numbers
    ]


def _of_history(history: list[Any]) -> _Steps:
    steps: _Steps = []
    for event in history:
        calls = event.get("tool_calls") if isinstance(event, Mapping) else None
        if not isinstance(calls, dspy.ToolCalls):
            return []
        results = calls.tool_call_results
        values = [] if results is None else [result.value for result in results.tool_call_results]
        asked = calls.model_copy(update={"tool_call_results": None})
        steps.append(({"next_thought": event.get("next_thought"), "tool_calls": asked}, values))
    return steps


class RecordedTool:
    """Stands in a copy of an agent where a tool's function is; nothing runs.

    Args:
        answers: Finds what the running turn recorded.
    """

    is_recorded: Final = True

    def __init__(self, answers: Any) -> None:
        self._answers = answers

    def __call__(self, **arguments: Any) -> Any:  # noqa: ARG002  # they are recorded, too
        """Return what the tool returned."""
        return self._answers().tool_result()

    async def acall(self, **arguments: Any) -> Any:
        """As calling it."""
        return self(**arguments)


def with_recorded_tools(program: dspy.Module, answers: Any) -> dspy.Module:
    """Return a program whose agents have recorded tools; it is changed in place, so give a copy.

    Args:
        program: A copy that is nobody's.
        answers: Returns the `RecordedAnswers` of the running turn.
    """
    recorded = RecordedTool(answers)
    for _, module in walk(program):
        held = vars(module)
        if not _keeps_steps(module):
            continue
        if isinstance(module, dspy.ReAct):
            held["tools"] = dict.fromkeys(held["tools"], recorded)
        else:
            held["tools"] = {
                name: tool if name == "submit" else tool.model_copy(update={"func": recorded})
                for name, tool in held["tools"].items()
            }
    return program
