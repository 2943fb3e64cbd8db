"""Hooks: an application's own functions around a turn.

- A *before-hook* sees what the program is to be called with, and may change it or refuse the turn.
- An *after-hook* sees what came of it, and may change session data and metadata.
- *Middleware* wraps all that: it may run the turn again, answer in its stead, replace the answer.

Each takes one frozen value and returns a changed one, or None for no change; nothing else that they
do to it is recorded. They are sync or async in every call mode. What they raise is an error of the
turn: the conversation stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Never, cast

import msgspec
from msgspec import UNSET, UnsetType

from dspy_session.core.data import EMPTY_DATA, Data, as_data
from dspy_session.core.profile import Instructions, as_instructions
from dspy_session.core.state import SessionState
from dspy_session.core.turn import Turn
from dspy_session.errors import HookError, OptionError
from dspy_session.program.tool_calls import ToolCall

__all__ = [
    "NO_HOOKS",
    "AfterTurn",
    "Answered",
    "BeforeTurn",
    "Hooks",
    "Origin",
    "Refusal",
    "as_hooks",
]


class Refusal(msgspec.Struct, frozen=True):
    """A before-hook's no; made by `BeforeTurn.refuse`.

    Attributes:
        reason: Why.
    """

    reason: str


class BeforeTurn(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """A turn about to run, as a before-hook or middleware sees it.

    Attributes:
        inputs: Copies of the program's inputs by name, without the history.
        data: The session data.
        instructions: What every predictor is to be told in this turn; None for nothing.
        state: The conversation that the call sees.
        request: What else came with the call.
    """

    inputs: Mapping[str, Any]
    state: SessionState
    data: Data = EMPTY_DATA
    instructions: Instructions | None = None
    request: Mapping[str, Any] = EMPTY_DATA
    _answered: Answered | None = None

    def replace(
        self,
        *,
        inputs: Mapping[str, Any] | UnsetType = UNSET,
        data: Mapping[str, Any] | UnsetType = UNSET,
        instructions: Instructions | str | UnsetType | None = UNSET,
        **others: Never,
    ) -> BeforeTurn:
        """Return this with something changed, for the hook to return.

        Args:
            inputs: All inputs by name: `{**call.inputs, "question": "..."}`.
            data: All session data: `call.data.changed({"user": "ada"})`.
            instructions: What every predictor is told, in this turn only; None for nothing.
            **others: None; state and request cannot be changed.

        Raises:
            HookError: `inputs` is no mapping of names, `data` is None, or there are others.
            DataError: JSON cannot hold `data`.
            OptionError: `instructions` are not text.
        """
        _refuse_others(others, "inputs, data and instructions")
        changes: dict[str, Any] = {}
        if inputs is not UNSET:
            changes["inputs"] = _named(inputs)
        if data is not UNSET:
            changes["data"] = _whole(data, "data")
        if instructions is not UNSET:
            changes["instructions"] = as_instructions(instructions)
        return msgspec.structs.replace(self, **changes)

    def refuse(self, reason: str) -> Refusal:
        """Return what a before-hook returns to refuse the turn, with `TurnRefusedError`.

        Args:
            reason: Why.

        Raises:
            HookError: `reason` is not text.
        """
        if not isinstance(reason, str):
            raise HookError(f"A turn is refused with a reason in words, not {reason!r}.")
        return Refusal(reason)

    def answer(self, outputs: Mapping[str, Any]) -> AfterTurn:
        """Return what middleware returns to answer without running the program.

        The turn is recorded with these outputs, and the caller gets a `dspy.Prediction` of them.

        Args:
            outputs: By name.

        Raises:
            HookError: `outputs` is no mapping of names, or no middleware is asked.
        """
        if self._answered is None:
            raise HookError(
                "Only middleware can answer in the place of the program: Hooks(around=...). A "
                "before-hook may refuse the turn: return call.refuse('...')."
            )
        return self._answered(self, _named(outputs, "outputs"))


class AfterTurn(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """A turn that has run and is about to be recorded, as an after-hook or middleware sees it.

    Attributes:
        turn: The turn as it would be recorded now.
        prediction: What the program returned; the very object that the caller gets.
        data: The session data as the turn leaves it.
        metadata: The session's metadata.
        tool_calls: The calls of tools that have ended, in that order.
        state: The conversation that the call saw.
        request: What else came with the call.
    """

    turn: Turn
    prediction: Any
    state: SessionState
    data: Data = EMPTY_DATA
    metadata: Data = EMPTY_DATA
    tool_calls: tuple[ToolCall, ...] = ()
    request: Mapping[str, Any] = EMPTY_DATA
    _origin: Origin | None = None
    _replaced: bool = False  # also by itself, when middleware has changed it in place

    @property
    def usage(self) -> dict[str, dict[str, Any]]:
        """Tokens by model name; empty when all answers came from a cache."""
        return self.turn.usage

    @property
    def cost(self) -> float | None:
        """What the LM calls cost, in US dollars; None when no call said."""
        return self.turn.cost

    @property
    def lm_calls(self) -> int:
        """How many calls of a language model the turn took."""
        return self.turn.lm_calls

    def replace(
        self,
        *,
        data: Mapping[str, Any] | UnsetType = UNSET,
        metadata: Mapping[str, Any] | UnsetType = UNSET,
        prediction: Any = UNSET,
        **others: Never,
    ) -> AfterTurn:
        """Return this with something changed, for the hook to return.

        Args:
            data: All session data: `result.data.changed({"requests": 1})`.
            metadata: All metadata: `result.metadata.changed({"tokens": 100})`.
            prediction: What the caller gets instead, and the turn's outputs are taken from; for
                middleware only.
            **others: None; nothing else can be changed.

        Raises:
            HookError: `data` or `metadata` is None, or there are others.
            DataError: JSON cannot hold `data` or `metadata`.
        """
        _refuse_others(others, "data and metadata, and in middleware the prediction")
        changes: dict[str, Any] = {}
        if data is not UNSET:
            changes["data"] = _whole(data, "data")
        if metadata is not UNSET:
            changes["metadata"] = _whole(metadata, "metadata")
        if prediction is not UNSET:
            changes["prediction"], changes["_replaced"] = prediction, True
        return msgspec.structs.replace(self, **changes)


Answered = Callable[[BeforeTurn, Mapping[str, Any]], AfterTurn]
"""Makes a result of outputs."""


class Origin(msgspec.Struct, frozen=True, eq=False):
    """Where an `AfterTurn` comes from, whatever was changed in it since.

    Attributes:
        outcome: What is to be recorded.
        made: The value as it was made, without an origin.
    """

    outcome: Any
    made: AfterTurn

    def __repr__(self) -> str:
        return "..."  # all of the turn, which nobody wants to see who prints an AfterTurn


BeforeHook = Callable[[BeforeTurn], Any]
AfterHook = Callable[[AfterTurn], Any]
Middleware = Callable[[BeforeTurn, Any], Any]


class Hooks(msgspec.Struct, frozen=True, kw_only=True):
    """An application's functions around each turn; one callable or several, in order.

    Attributes:
        before: Called as `hook(call)` with a `BeforeTurn`; each returns one, None for no change,
            or `call.refuse("why")`. Each sees what the one before it returned.
        after: Called as `hook(result)` with an `AfterTurn`; each returns one, or None.
        around: Middleware, called as `hook(call, run)`; returns the `AfterTurn` to be recorded:
            what `run(call)` returns, or `call.answer({...})`. The first is the outermost, and what
            it runs includes the hooks before and after.

    Raises:
        OptionError: Something given cannot be called.

    Example:
        >>> import dspy
        >>> from dspy_session import sessionify
        >>> from dspy_session.testing import scripted_lm
        >>> def count(result):
        ...     return result.replace(
        ...         data=result.data.changed({"requests": result.data.get("requests", 0) + 1})
        ...     )
        >>> session = sessionify(dspy.Predict("question -> answer"), hooks=Hooks(after=count))
        >>> with dspy.context(lm=scripted_lm()):
        ...     prediction = session(question="Hi")
        >>> session.data["requests"]
        1
    """

    before: BeforeHook | Sequence[BeforeHook] = ()
    after: AfterHook | Sequence[AfterHook] = ()
    around: Middleware | Sequence[Middleware] = ()

    def __post_init__(self) -> None:
        """Make tuples of all three."""
        for name in ("before", "after", "around"):
            given = getattr(self, name)
            hooks = (given,) if callable(given) else given
            if not isinstance(hooks, tuple | list) or not all(map(callable, hooks)):
                raise OptionError(
                    f"Hooks({name}=...) takes a function or a list of functions, not {given!r}."
                )
            msgspec.structs.force_setattr(self, name, tuple(hooks))

    @property
    def before_hooks(self) -> tuple[BeforeHook, ...]:
        """What is called before the program, in order."""
        return cast(tuple[BeforeHook, ...], self.before)

    @property
    def after_hooks(self) -> tuple[AfterHook, ...]:
        """What is called after the program, in order."""
        return cast(tuple[AfterHook, ...], self.after)

    @property
    def middleware(self) -> tuple[Middleware, ...]:
        """What is called around both, the outermost first."""
        return cast(tuple[Middleware, ...], self.around)

    @property
    def look_at_tools(self) -> bool:
        """Whether somebody sees the calls of tools."""
        return bool(self.after or self.around)


NO_HOOKS: Final = Hooks()
"""No function at all."""


def as_hooks(given: Hooks | None) -> Hooks | None:
    """Return hooks that do something, or None.

    Args:
        given: Hooks, or None.

    Raises:
        OptionError: It is neither.
    """
    if given is None or given is NO_HOOKS or given == NO_HOOKS:
        return None
    if not isinstance(given, Hooks):
        raise OptionError(
            "hooks= must be dspy_session.Hooks, for example Hooks(before=check), "
            f"not {type(given).__name__}."
        )
    return given


def _named(fields: Any, what: str = "inputs") -> dict[str, Any]:
    if not isinstance(fields, Mapping) or not all(isinstance(name, str) for name in fields):
        raise HookError(
            f"A hook gives {what} as a mapping from names to values, for example "
            f'{{"question": "Hi"}}, not {fields!r}.'
        )
    return dict(fields)


def _whole(data: Any, what: str) -> Data:
    if data is None:
        raise HookError(
            f"A hook gives {what} whole, and None is no {what}. Leave it out for no change, or "
            "give {} to take everything away."
        )
    return as_data(data)


def _refuse_others(others: Mapping[str, Any], changeable: str) -> None:
    if others:
        raise HookError(
            f"A hook cannot change {', '.join(others)}; it can change {changeable}. To change what "
            "the program returned, wrap it in middleware: Hooks(around=...)."
        )
