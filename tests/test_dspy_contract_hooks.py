"""What hooks and counting lean on in DSPy: callbacks of tools, the log of LM calls, usage."""

import asyncio
from typing import Any

import dspy
import pytest
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback
from dspy.utils.usage_tracker import UsageTracker

from dspy_session.testing import ScriptedLM


class Heard(BaseCallback):
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.events.append(("start", call_id, instance, inputs))

    def on_tool_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        self.events.append(("end", call_id, outputs, exception))


def call(tool: dspy.Tool, **arguments: Any) -> Any:
    return tool(**arguments)


def acall(tool: dspy.Tool, **arguments: Any) -> Any:
    return asyncio.run(tool.acall(**arguments))


both = pytest.mark.parametrize("how", [call, acall], ids=["call", "acall"])


@both
def test_a_callback_hears_of_each_call_of_a_tool_and_which_one_runs(how: Any) -> None:
    heard, running = Heard(), []

    def add(a: int, b: int) -> int:
        running.append(ACTIVE_CALL_ID.get())
        if a == b:
            raise LookupError("the same")
        return a + b

    tool = dspy.Tool(add)
    with dspy.context(callbacks=[heard]):
        assert how(tool, a=1, b=2) == 3
        with pytest.raises(LookupError):
            how(tool, a=1, b=1)
    one, _, two, _ = heard.events
    assert one[:2] == ("start", running[0]), "tool calls that wait are known by DSPy's call id"
    assert one[2] is tool
    assert one[3] == {"kwargs": {"a": 1, "b": 2}}, "what ToolCall.arguments are read from"
    assert heard.events[1] == ("end", running[0], 3, None)
    assert heard.events[3][:3] == ("end", two[1], None)
    assert isinstance(heard.events[3][3], LookupError)


def test_the_tools_that_agents_make_for_themselves_are_told_by_their_module() -> None:
    def search(query: str) -> str:
        return query

    for kind, own in ((dspy.ReAct, "finish"), (dspy.ReActV2, "submit")):
        agent: Any = kind("question -> answer", tools=[search])
        modules = {name: tool.func.__module__ for name, tool in agent.tools.items()}
        assert modules["search"] == __name__
        assert modules[own].startswith("dspy.predict."), "ToolWatch leaves these out by that"


class Log:
    """Stands among `caller_modules`, as a `Draft` does."""

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []


class Counter(UsageTracker):
    def __init__(self) -> None:
        super().__init__()
        self.counted = 0

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        self.counted += 1
        super().add_usage(lm, usage_entry)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["call", "acall"])
@pytest.mark.parametrize("log", [True, False], ids=["log", "no log"])
def test_each_lm_call_adds_its_usage_once_and_is_logged_unless_that_is_off(
    asynchronous: bool, log: bool
) -> None:
    program, heard, counter = dspy.Predict("question -> answer"), Log(), Counter()
    with dspy.context(
        lm=ScriptedLM(),
        caller_modules=[heard],
        usage_tracker=counter,
        disable_history=not log,
    ):
        if asynchronous:
            asyncio.run(program.acall(question="Hi"))
        else:
            program(question="Hi")
    assert counter.counted == 1, "lm_calls without DSPy's log"
    assert len(heard.history) == log, "lm_calls with it"
    for entry in heard.history:
        assert entry["usage"]
        assert all(isinstance(message["content"], str) for message in entry["messages"])
