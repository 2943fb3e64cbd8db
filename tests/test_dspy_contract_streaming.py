"""What streaming leans on inside DSPy; see `test_dspy_contract.py`."""

import asyncio
import inspect
from typing import Any

import dspy
import pytest
from anyio import to_thread
from dspy.streaming import StatusMessageProvider
from dspy.utils.callback import BaseCallback

from dspy_session.testing import ScriptedLM
from tests.streams import serving
from tests.talk import QA, scripted


class Sink:
    """Stands where DSPy expects the sending end of a stream."""

    def __init__(self) -> None:
        self.chunks: list[Any] = []

    async def send(self, chunk: Any) -> None:
        self.chunks.append(chunk)

    def check(self) -> None:
        deltas = [(c.choices[0].delta.content, c.choices[0].finish_reason) for c in self.chunks]
        assert deltas[-1] == (None, "stop")
        assert [finish for _, finish in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert "".join(text or "" for text, _ in deltas) == "[[ ## answer ## ]]\nthe answer to one"


class Streaming(dspy.ChatAdapter):
    """Sets `send_stream` around its own call, where DSPy has decided not to stream already."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self.sink = sink

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert dspy.settings.send_stream is None
        with dspy.context(send_stream=self.sink):
            return super().__call__(*args, **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        assert dspy.settings.send_stream is None
        with dspy.context(send_stream=self.sink):
            return await super().acall(*args, **kwargs)


def answer(_: Any) -> str:
    return "[[ ## answer ## ]]\nthe answer to one"


def test_an_lm_call_sends_its_tokens_to_the_stream_in_the_settings() -> None:
    """If this fails, nothing is streamed: `listening` sets `send_stream` around adapter calls."""
    program = dspy.Predict(QA)
    sinks = Sink(), Sink()
    with serving(answer) as server:
        with dspy.context(adapter=Streaming(sinks[0])):
            asyncio.run(program.acall(question="one"))
        with dspy.context(adapter=Streaming(sinks[1])):
            asyncio.run(to_thread.run_sync(lambda: program(question="one")))
        program(question="one")
    assert [bool(request.body.get("stream")) for request in server.received] == [True, True, False]
    for sink in sinks:
        sink.check()


def test_a_sync_call_streams_only_in_a_thread_that_a_loop_started() -> None:
    """If this passes no more, `reaches_loop` is needed no more."""
    worker_needed = pytest.raises(dspy.LMError, match="AnyIO worker thread")
    with serving(answer), dspy.context(adapter=Streaming(Sink())), worker_needed:
        dspy.Predict(QA)(question="one")


def test_an_inherited_parse_is_the_same_function_below_dspys_wrapping() -> None:
    """If this fails, adapters that inherit `parse` are no longer read while they stream."""

    class Derived(dspy.ChatAdapter):
        pass

    assert Derived.parse is not dspy.ChatAdapter.parse
    assert inspect.unwrap(Derived.parse) is inspect.unwrap(dspy.ChatAdapter.parse)
    kinds = (dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter)
    assert len({inspect.unwrap(kind.parse) for kind in kinds}) == 3


def test_reasoning_comes_from_beside_the_answer_by_default() -> None:
    """If this fails, what models think beside their answer is no longer told as reasoning."""
    adapter: Any = dspy.ChatAdapter()
    assert dspy.Reasoning in adapter.native_response_types


def test_callbacks_may_end_a_program_but_not_by_an_exception() -> None:
    """If this fails, an abandoned sync program goes on, or statuses break the program."""

    class Ends(BaseCallback):
        def __init__(self, error: type[BaseException]) -> None:
            self.error = error

        def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            raise self.error

    with dspy.context(lm=scripted()):
        with dspy.context(callbacks=[Ends(ValueError)]):
            assert dspy.Predict(QA)(question="one").answer
        with dspy.context(callbacks=[Ends(GeneratorExit)]), pytest.raises(GeneratorExit):
            dspy.Predict(QA)(question="one")


def test_status_messages_are_worded_for_these_moments() -> None:
    """If this fails, `_Statuses` in `listening` misses a kind of status message."""
    moments = {name for name in vars(StatusMessageProvider) if name.endswith("_status_message")}
    assert moments == {
        f"{what}_{when}_status_message"
        for what in ("tool", "module", "lm")
        for when in ("start", "end")
    }


def test_react_ends_by_a_tool_that_is_none() -> None:
    """If this fails, streams say "Calling tool finish..."."""
    agent: Any = dspy.ReAct(QA, tools=[])
    finish = agent.tools["finish"]
    assert finish.name == "finish"
    assert finish() == "Completed."


def test_streamify_calls_a_program_as_the_outermost_and_closes_its_stream_when_left() -> None:
    """If this fails, sessions under `streamify` hang on plain returns, or record late results."""
    seen = []

    class Looks(dspy.Module):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            stream = dspy.settings.send_stream
            seen.append((dspy.settings.caller_modules, stream))
            assert stream.statistics().open_receive_streams == 1
            return dspy.Prediction(answer="one")

    async def read() -> None:
        async for _ in dspy.streamify(Looks())(question="one"):
            pass

    asyncio.run(read())
    ((callers, stream),) = seen
    assert not callers
    assert stream.statistics().open_receive_streams == 0
    with dspy.context(lm=ScriptedLM()):
        assert dspy.settings.send_stream is None
