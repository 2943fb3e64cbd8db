"""A recorded turn in the place of a model: prompts are rendered, and none is ever sent.

While a turn runs under a `StandIn`, each predictor's call goes through its adapter as far as to the
LM. What would be sent is kept, and the answer is what the recorded turn says of it, without a text
that would have to be parsed. So any adapter may render it.

Three things end the turn there, for nobody knows how it went on: an answer that is not recorded and
is no text, a call of a model past the adapter, and a call of a tool by anybody but an agent whose
steps are recorded. They are no `Exception`: an agent takes those for failures of its tools.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import threading
from collections.abc import Mapping
from typing import Any, Final, NoReturn, Protocol

import dspy
import msgspec
import pydantic
from dspy.utils.callback import BaseCallback

from dspy_session.core.json_values import MAX_DEPTH
from dspy_session.program.anatomy import predictors
from dspy_session.program.recorded_answers import RecordedAnswers, UnrecordedError

__all__ = ["NothingCalled", "Sent", "StandIn"]

_MOST_CALLS: Final = 200  # a program that waits for a certain answer would go on for ever


class Sent(msgspec.Struct, frozen=True):
    """What a predictor would have sent.

    Attributes:
        predictor: Its path in the program.
        messages: The messages, as JSON data.
        settings: What goes beside them, as JSON data.
        placeholders: The outputs of earlier calls that are not recorded, so that their names stand
            where the prompt shows them.
    """

    predictor: str
    messages: tuple[dict[str, Any], ...]
    settings: dict[str, Any]
    placeholders: tuple[str, ...] = ()


class PlannedCall(Protocol):
    """The arguments of an adapter call, and the adapter that is to make it."""

    lm_kwargs: dict[str, Any]
    signature: type[dspy.Signature]
    demos: list[Any]
    inputs: dict[str, Any]
    adapter: Any


class StandIn(dspy.BaseLM):
    """Stands where a turn's LM is looked for, and answers from a recorded turn.

    Args:
        lm: The LM whose abilities the adapters ask for; None for one that has none.
        program: The program that runs.
        answers: What the recorded turn says.

    Attributes:
        answers: Likewise.
        sent: What would have been sent so far.
    """

    def __init__(self, lm: Any, program: dspy.Module, answers: RecordedAnswers) -> None:
        super().__init__(model=getattr(lm, "model", "none"))
        self.kwargs = dict(getattr(lm, "kwargs", {}))
        self.answers = answers
        self.sent: list[Sent] = []
        self._lm = lm
        self._paths: dict[str, str] = {}
        for path, predictor in predictors(program):
            self._paths.setdefault(predictor.stage, path)
        self._thread = threading.get_ident()
        self._beside: list[bool] = []  # whether it came from a thread of the program's own
        self._mutex = threading.Lock()

    def answer(self, call: PlannedCall) -> list[dict[str, Any]]:
        """Take what a predictor would send, and return what was recorded of its answer.

        Args:
            call: The call; its adapter renders it.

        Raises:
            UnrecordedError: What it answered is not known, and no text can stand in for it.
        """
        caller = dspy.settings.caller_modules[-1]
        own = getattr(caller, "lm", None)
        behind = self._lm if own is None or isinstance(own, StandIn) else own
        try:
            answers: list[dict[str, Any]] = call.adapter(
                _Ability(behind), call.lm_kwargs, call.signature, call.demos, call.inputs
            )
        except _SentError as sent:
            with self._mutex:
                return [self._take(caller, call.signature, sent)]
        return answers  # of an adapter around another one of ours, which took the prompt

    def _take(
        self, caller: Any, signature: type[dspy.Signature], sent: _SentError
    ) -> dict[str, Any]:
        if len(self.sent) == _MOST_CALLS:
            raise UnrecordedError(f"it makes more than {_MOST_CALLS} calls")
        messages = tuple(map(_message, sent.messages))
        path = self._paths.get(getattr(caller, "stage", ""), f"({type(caller).__name__})")
        before = tuple(dict.fromkeys(self.answers.placeholders))
        self.sent.append(Sent(path, messages, _plain(sent.settings), before))
        self._beside.append(threading.get_ident() != self._thread)
        return self.answers.answer(caller, path, signature, messages)

    @property
    def in_order(self) -> tuple[Sent, ...]:
        """What would have been sent, in an order that does not depend on which thread is faster."""
        ordered: list[Sent] = []
        stretches = itertools.groupby(zip(self.sent, self._beside, strict=True), lambda of: of[1])
        for in_threads, stretch in stretches:
            sent = [one for one, _ in stretch]
            if in_threads:
                sent.sort(key=lambda one: (one.predictor, repr(one.messages)))
            ordered += sent
        return tuple(ordered)

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse a call past the adapter."""
        raise UnrecordedError("the program calls a language model past the adapter")

    async def acall(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse a call past the adapter."""
        raise UnrecordedError("the program calls a language model past the adapter")

    def __deepcopy__(self, memo: dict[int, Any]) -> StandIn:
        return self


class _SentError(BaseException):
    """Leaves an adapter with what it was about to send."""

    def __init__(self, messages: list[dict[str, Any]], settings: Mapping[str, Any]) -> None:
        super().__init__("rendered, not sent")
        self.messages, self.settings = messages, dict(settings)


class _Ability(dspy.BaseLM):
    """An LM that can do what another one can, and is never called."""

    def __init__(self, lm: Any) -> None:
        super().__init__(
            model=getattr(lm, "model", "none"), model_type=getattr(lm, "model_type", "chat")
        )
        self.kwargs = dict(getattr(lm, "kwargs", {}))
        self._lm = lm

    @property
    def supports_function_calling(self) -> bool:
        """As the other one."""
        return bool(getattr(self._lm, "supports_function_calling", False))

    @property
    def supports_reasoning(self) -> bool:
        """As the other one."""
        return bool(getattr(self._lm, "supports_reasoning", False))

    @property
    def supports_response_schema(self) -> bool:
        """As the other one."""
        return bool(getattr(self._lm, "supports_response_schema", False))

    @property
    def supported_params(self) -> set[str]:
        """As the other one."""
        return set(getattr(self._lm, "supported_params", ()))

    def __call__(
        self,
        prompt: str | None = None,
        *,
        messages: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> NoReturn:
        """End the call here."""
        said = messages or [{"role": "user", "content": prompt}]
        raise _SentError(said, kwargs)


class NothingCalled(BaseCallback):
    """Ends the turn before anything outside is called: a model, or a tool in earnest."""

    # DSPy calls both by keyword, so an argument that is of no use here is named all the same.
    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG002
        """Refuse any call of any LM."""
        raise UnrecordedError("the program calls a language model past the adapter")

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:  # noqa: ARG002
        """Refuse a tool that would run; those by which agents end are DSPy's own."""
        function = instance.func
        harmless = getattr(function, "is_recorded", False) or _is_dspys(function)
        if not harmless:
            raise UnrecordedError(f"the program calls the tool {instance.name!r} itself")


def _is_dspys(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("dspy.")


_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message as JSON data; of a long conversation there are many, and nearly all are text."""
    if len(message) == 2 and isinstance(message.get("content"), str):
        return dict(message)
    plain: dict[str, Any] = _plain(message)
    return plain


def _plain(value: Any, depth: int = MAX_DEPTH) -> Any:
    """What stands for a part of a request: JSON data, without addresses of objects."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if depth and isinstance(value, Mapping):
        return {str(name): _plain(item, depth - 1) for name, item in value.items()}
    if depth and isinstance(value, list | tuple):
        return [_plain(item, depth - 1) for item in value]
    if isinstance(value, type) and issubclass(value, pydantic.BaseModel):
        with contextlib.suppress(Exception):  # a schema of somebody's types
            return _plain(value.model_json_schema(), depth - 1)
    if isinstance(value, pydantic.BaseModel):
        return json.loads(value.model_dump_json())
    return _ADDRESS.sub("", repr(value))
