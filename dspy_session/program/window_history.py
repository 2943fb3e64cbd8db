"""What stands in a call's inputs as the history: a window, told as the calling predictor knows it.

Two things separate what is recorded of a turn from what a predictor was sent or said then:

- A plain return is recorded as `output`. To a predictor with one output, that is what it said.
- DSPy fills an input that a call leaves out from the default in the signature. The turn does not
  have it, since the caller did not give it; the message of that call did.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, final

import dspy
from pydantic_core import PydanticUndefined, core_schema

from dspy_session.core.copies import private_copy
from dspy_session.core.window import Exchange, Window

__all__ = ["WindowHistory", "only_output", "window_history"]

_NO_DEFAULTS: Final[Mapping[str, Any]] = {}


@final
class WindowHistory:
    """A window in the place of a `dspy.History`, rendered only when asked.

    Adapters that know nothing of it find the `dspy.History` of the same messages, made when they
    look into it.

    Args:
        window: What the call sees.
        spoken: The output that a plain return is the value of, if there is one.
        defaults: What the predictor is sent for inputs that a turn does not have.
        added: Messages that the program added in the running turn; they come after the window.
        as_text: Whether the window is told as text, in one message.
    """

    def __init__(
        self,
        window: Window,
        spoken: str | None = None,
        defaults: Mapping[str, Any] = _NO_DEFAULTS,
        added: Sequence[Mapping[str, Any]] = (),
        as_text: bool = False,
    ) -> None:
        self.window = window
        self.spoken = spoken
        self.defaults = defaults
        self.added = added
        self.as_text = as_text

    @property  # type: ignore[misc]  # adapters and callbacks ask isinstance(value, dspy.History)
    def __class__(self) -> type:
        return dspy.History

    def told(self, exchange: Exchange) -> dict[str, Any]:
        """Return the fields of an exchange as the predictor knows them.

        Args:
            exchange: One of the window's.
        """
        fields = exchange.shown(self.window.view)
        if self.spoken is not None and "output" in fields and self.spoken not in fields:
            fields[self.spoken] = fields.pop("output")
        given, _ = exchange.shape
        if not (self.defaults and given):  # messages of a seed stay as they were given
            return fields
        inputs = {name: value for name, value in fields.items() if name in given}
        left_out = {name: value for name, value in self.defaults.items() if name not in given}
        return {**inputs, **left_out, **fields}

    @functools.cached_property
    def _history(self) -> dspy.History:
        told = (*map(self.told, self.window), *self.added)
        return dspy.History(messages=[{n: private_copy(v) for n, v in m.items()} for m in told])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._history, name)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self._history)

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self.window, self.spoken, self.defaults, self.added, self.as_text)
        return WindowHistory, parts

    def __repr__(self) -> str:
        return repr(self._history)

    def __str__(self) -> str:
        return str(self._history)

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> core_schema.CoreSchema:
        return core_schema.any_schema(
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda conversation: {"messages": conversation.messages}
            )
        )


def window_history(
    window: Window,
    signature: type[dspy.Signature],
    inputs: Mapping[str, Any],
    given: Collection[str],
    field: str,
) -> WindowHistory:
    """Return what stands for a window in one call of a predictor.

    Args:
        window: What the call sees.
        signature: The signature of the call.
        inputs: The inputs of the call, with DSPy's defaults filled in.
        given: The names of the inputs that the running turn was given.
        field: The name of the history field, whose default is no input of a turn.
    """
    view = window.view
    defaults = {
        name: info.default
        for name, info in signature.input_fields.items()
        if info.default is not PydanticUndefined
        and name != field
        and name not in view.exclude
        and (view.inputs is None or name in view.inputs)
        # What the program neither was given nor leaves to the signature, it computes itself: then
        # nobody knows what it was in past turns.
        and (name in given or inputs.get(name) is info.default)
    }
    return WindowHistory(window, only_output(signature), defaults)


def only_output(signature: type[dspy.Signature]) -> str | None:
    """Return the output that a plain return of the program is the value of, or None.

    Args:
        signature: The signature of a predictor.
    """
    if len(signature.output_fields) != 1 or "output" in signature.input_fields:
        return None
    return next(iter(signature.output_fields))
