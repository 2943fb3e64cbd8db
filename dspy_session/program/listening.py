"""How a streamed turn hears its program: text from the predictors, messages from everything else.

A `Listener` is carried in `dspy.context`. When one of its predictors makes its call, the adapter of
the turn asks for a `listening` block: in it DSPy streams, and sends each token to an `_Ear`, which
reads the output fields out of them. When the call is over, what the ear has not told of a field
comes from the parsed answer. So the text of a field is whole also where DSPy does not stream: an
answer from the cache, an adapter of unknown format, a thread of `dspy.Parallel`.

DSPy's own stream listeners are not used: they lose answers that arrive in one piece, and let header
lines, quotes and escapes through, depending on how a provider cuts its tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import dspy
from dspy.streaming import StatusMessage, StatusMessageProvider
from dspy.utils.callback import BaseCallback

from dspy_session.errors import CallError
from dspy_session.program.anatomy import predictors
from dspy_session.program.events import StatusEvent, TextEvent
from dspy_session.program.field_text import reader_for
from dspy_session.program.frame import Draft

__all__ = ["Choice", "GivenUpError", "Listener", "choose", "listening", "reaches_loop"]

_LISTENER_KEY: Final = "dspy_session_listener"

Choice = dict[int, tuple[str, list[str]]]
"""From the `id()` of a predictor to its path, and to the output fields to hear of it."""

Answers = list[dict[str, Any]]


class GivenUpError(BaseException):
    """Ends a program whose stream was left; no error of anybody's, so no `except Exception`."""


def choose(program: dspy.Module, fields: Sequence[str] | None) -> Choice:
    """Return what to hear of a program.

    Args:
        program: Any program.
        fields: Names of output fields (`answer`), perhaps with the predictor's path
            (`extract.predict.answer`); None for all that are text.

    Raises:
        CallError: One of them is no text output of the program.
    """
    found = {id(p): (path, _text_fields(p)) for path, p in predictors(program)}
    if fields is None:
        return {key: heard for key, heard in found.items() if heard[1]}
    known = {f"{path}.{field}": field for path, names in found.values() for field in names}
    for field in fields:
        if field not in known and field not in known.values():
            raise CallError(
                f"stream_fields names {field!r}, which is no text output of this program. Only "
                f"outputs of type str and dspy.Reasoning are streamed: {', '.join(known)}."
            )
    wanted = set(fields)
    chosen = {
        key: (path, [name for name in names if wanted & {name, f"{path}.{name}"}])
        for key, (path, names) in found.items()
    }
    return {key: heard for key, heard in chosen.items() if heard[1]}


def _text_fields(predictor: dspy.Predict) -> list[str]:
    outputs = predictor.signature.output_fields
    return [name for name, field in outputs.items() if field.annotation in (str, dspy.Reasoning)]


class Listener:
    """What one streamed turn listens to.

    Args:
        choice: What to hear.
        statuses: Says which status messages there are; None for DSPy's own.
        tell: Handed each event, in the event loop in which the listener was made.

    Attributes:
        choice: What to hear.
        calls: Numbers the calls that are heard.
        draft: The running turn's; its `partial` is the text so far by output field (of the latest
            call, where several have the field).
        given_up: Set when nobody listens any more; the program then ends at its next sign of life.
    """

    def __init__(
        self,
        choice: Choice,
        statuses: StatusMessageProvider | None,
        tell: Callable[[Any], object],
    ) -> None:
        self.choice = choice
        self.calls = itertools.count()
        self.draft = Draft()
        self.given_up = False
        self._tell = tell
        self._statuses = _Statuses(self, statuses or StatusMessageProvider())
        self._texts: dict[tuple[int, str], str] = {}
        self._mutex = threading.Lock()
        self._loop = asyncio.get_running_loop()

    def settings(self) -> dict[str, Any]:
        """Return the settings for `dspy.context` under which the program is heard."""
        callbacks = [*dspy.settings.callbacks, self._statuses]
        return {_LISTENER_KEY: self, "send_stream": None, "callbacks": callbacks}

    def check(self) -> None:
        """End the program if nobody listens any more."""
        if self.given_up:
            raise GivenUpError("the stream was left before its end")

    def hear(self, event: TextEvent | StatusEvent) -> None:
        """Pass an event on, from any thread.

        Args:
            event: The event.
        """
        with self._mutex:
            self.check()
            if isinstance(event, TextEvent):
                key = event.call, event.field
                self._texts[key] = text = self._texts.get(key, "") + event.text
                self.draft.partial = {**self.draft.partial, event.field: text}
            self._loop.call_soon_threadsafe(self._tell, event)

    def end(self, mark: object) -> None:
        """Pass on what stands behind the last event, given up or not.

        Args:
            mark: Whatever the reader of the events knows.
        """
        self._loop.call_soon(self._tell, mark)


@contextlib.contextmanager
def listening(adapter: Any, sync: bool) -> Iterator[Callable[[Answers], object]]:
    """Hear the adapter call in the block, if the running turn is streamed and listens to it.

    Args:
        adapter: The adapter that makes the call.
        sync: Whether it is a sync call.

    Yields:
        What is to be handed the parsed answers.
    """
    listener: Listener | None = dspy.settings.get(_LISTENER_KEY)
    caller = (dspy.settings.caller_modules or [None])[-1]
    if listener is None or _hears(dspy.settings.send_stream, caller):
        yield _not_heard
        return
    listener.check()
    heard = listener.choice.get(id(caller))
    ear = None if heard is None else _Ear(listener, *heard, adapter, caller)
    streams = not sync or reaches_loop()
    with dspy.context(send_stream=ear if streams else None):
        yield _not_heard if ear is None else ear.end


def _hears(stream: Any, caller: Any) -> bool:
    """Whether the call is heard already, by an adapter around this one."""
    return isinstance(stream, _Ear) and stream.caller is caller


def _not_heard(answers: Answers) -> None:
    """Of a call that nobody listens to."""


def reaches_loop() -> bool:
    """Whether this thread was started from an event loop: only in such threads DSPy can stream."""
    from anyio import from_thread  # noqa: PLC0415  # not before something is streamed, as in DSPy

    try:
        from_thread.check_cancelled()
    except RuntimeError:
        return False
    return True


class _Ear:
    """Hears one call of one predictor; DSPy sends it tokens as `settings.send_stream`."""

    def __init__(
        self, listener: Listener, path: str, fields: list[str], adapter: Any, caller: dspy.Predict
    ) -> None:
        self.caller = caller
        self._listener, self._path = listener, path
        self._call = next(listener.calls)
        self._told = dict.fromkeys(fields, "")
        self._reader = reader_for(adapter, fields, self._read)
        self._thoughts = _native_reasoning(adapter, caller, fields)
        self._thinks = self._over = False

    async def send(self, chunk: Any) -> None:
        """Take what the LM sends: the tokens of one completion, of any further ones nothing."""
        self._listener.check()
        if isinstance(chunk, StatusMessage):  # of a status callback of the user's own
            self._listener.hear(StatusEvent(chunk.message))
            return
        choices = getattr(chunk, "choices", None)
        if self._over or not choices:
            return
        delta = choices[0].delta
        thought, text = getattr(delta, "reasoning_content", None), getattr(delta, "content", None)
        if thought and self._thoughts is not None:
            self._thinks = True
            self._go_on(self._thoughts, thought)
        if text and self._reader is not None:
            self._reader.read(text)
        self._over = choices[0].finish_reason is not None

    def _read(self, field: str, text: str) -> None:
        if not (self._thinks and field == self._thoughts):  # DSPy takes the thoughts instead
            self._go_on(field, text)

    def _go_on(self, field: str, text: str) -> None:
        self._told[field] += text
        self._listener.hear(TextEvent(self._path, field, text, call=self._call))

    def end(self, answers: Answers) -> None:
        """Tell what is missing of each field, now that its value is known."""
        for field, told in self._told.items():
            value = answers[0].get(field) if answers else None
            whole = "" if value is None else str(value)
            rest = whole.removeprefix(told) if whole.startswith(told) else ""
            self._listener.hear(TextEvent(self._path, field, rest, last=True, call=self._call))


def _native_reasoning(adapter: Any, caller: dspy.Predict, fields: list[str]) -> str | None:
    """The field that holds a model's thoughts, where DSPy takes them from beside the answer."""
    if dspy.Reasoning not in getattr(adapter, "native_response_types", ()):
        return None
    outputs = caller.signature.output_fields
    return next((name for name in fields if outputs[name].annotation is dspy.Reasoning), None)


class _Statuses(BaseCallback):
    """Turns what happens in the program into status messages, as a provider words them."""

    def __init__(self, listener: Listener, provider: StatusMessageProvider) -> None:
        self._listener, self._provider = listener, provider

    def _say(self, message: str | None) -> None:
        self._listener.check()
        if message:
            self._listener.hear(StatusEvent(message))

    # DSPy calls all of them by keyword, so what is of no use here is named all the same.
    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG002
        if instance.name != "finish":  # ReAct's way to end its loop
            self._say(self._provider.tool_start_status_message(instance, inputs))

    def on_tool_end(
        self,
        call_id: str,  # noqa: ARG002
        outputs: Any,
        exception: BaseException | None = None,  # noqa: ARG002
    ) -> None:
        if outputs != "Completed.":  # what that one returns
            self._say(self._provider.tool_end_status_message(outputs))

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG002
        self._say(self._provider.module_start_status_message(instance, inputs))

    def on_module_end(
        self,
        call_id: str,  # noqa: ARG002
        outputs: Any,
        exception: BaseException | None = None,  # noqa: ARG002
    ) -> None:
        self._say(self._provider.module_end_status_message(outputs))

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG002
        self._say(self._provider.lm_start_status_message(instance, inputs))

    def on_lm_end(
        self,
        call_id: str,  # noqa: ARG002
        outputs: Any,
        exception: BaseException | None = None,  # noqa: ARG002
    ) -> None:
        self._say(self._provider.lm_end_status_message(outputs))
