"""What a hook is handed, and what it may hand back.

A hook gets inputs of its own, so that what it does to them in place counts for nothing. Whatever it
hands back is checked at once; what it may not change is compared with how it was.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import msgspec

from dspy_session.core.copies import copy_fields
from dspy_session.errors import HookError, TurnRefusedError
from dspy_session.program.flows import name_of
from dspy_session.program.hooks import AfterTurn, Answered, BeforeTurn, Refusal

__all__ = ["handed", "passed_on", "result_of", "taken"]


def handed(call: BeforeTurn, answered: Answered | None = None) -> BeforeTurn:
    """Return a turn about to run as it is handed to a hook: with inputs of its own.

    Args:
        call: The turn.
        answered: What makes a result of outputs, for middleware.
    """
    inputs = MappingProxyType(copy_fields(call.inputs))
    return msgspec.structs.replace(call, inputs=inputs, _answered=answered)


def passed_on(
    hook: Callable[..., Any], call: BeforeTurn, given: BeforeTurn, returned: Any
) -> BeforeTurn:
    """Return what a before-hook made of a turn, or middleware passes on.

    Args:
        hook: The hook.
        call: The turn as it was before.
        given: The same as it was handed to the hook.
        returned: What came back; the turn itself if nothing was changed.

    Raises:
        TurnRefusedError: The hook refuses the turn.
        HookError: It may not return that.
        DataError: As `BeforeTurn.replace`.
        OptionError: As `BeforeTurn.replace`.
    """
    if returned is None or returned is given:
        return call
    if isinstance(returned, Refusal):
        raise TurnRefusedError(returned.reason)
    if not isinstance(returned, BeforeTurn):
        raise HookError(
            f"The hook {name_of(hook)} gave back {_what(returned)} for the turn that is to run. "
            "A before-hook returns, and middleware passes to run(...), the BeforeTurn that it was "
            "given or one made by call.replace(...). A before-hook may also return None for no "
            "change, or call.refuse('why')."
        )
    if returned.state is not call.state or returned.request is not call.request:
        raise HookError(
            f"The hook {name_of(hook)} changed the state or the request of the turn; it can change "
            "inputs, data and instructions."
        )
    inputs = call.inputs if returned.inputs is given.inputs else returned.inputs
    return call.replace(inputs=inputs, data=returned.data, instructions=returned.instructions)


def taken(hook: Callable[..., Any], seen: AfterTurn, returned: Any, turn: str) -> AfterTurn:
    """Return what an after-hook made of a turn.

    Args:
        hook: The hook.
        seen: What it saw.
        returned: What it returned.
        turn: The id of the turn.

    Raises:
        HookError: It may not return that.
        DataError: As `AfterTurn.replace`.
    """
    if returned is None:
        return seen
    if not isinstance(returned, AfterTurn):
        raise HookError(
            f"The after-hook {name_of(hook)} returned {_what(returned)}; it may return the "
            "AfterTurn that it was given, one made by result.replace(...), or None for no change."
        )
    if returned._replaced or returned.prediction is not seen.prediction:
        raise HookError(
            f"The after-hook {name_of(hook)} changed the prediction; only middleware can: "
            "Hooks(around=...)."
        )
    return result_of(hook, returned, turn)


def result_of(hook: Callable[..., Any], returned: Any, turn: str) -> AfterTurn:
    """Return what middleware returned, checked.

    Args:
        hook: The middleware, or an after-hook.
        returned: What it returned.
        turn: The id of the turn.

    Raises:
        HookError: It may not return that.
        DataError: As `AfterTurn.replace`.
    """
    origin = returned._origin if isinstance(returned, AfterTurn) else None
    if not isinstance(returned, AfterTurn) or origin is None:
        raise HookError(
            f"The middleware {name_of(hook)} returned {_what(returned)}; it must return what "
            "run(call) returned, or call.answer({...}), or one of these changed by .replace(...). "
            "To refuse the turn it raises TurnRefusedError('why')."
        )
    if origin.outcome.run.id != turn:
        raise HookError(
            f"The hook {name_of(hook)} returned the result of an earlier turn. To give an answer "
            "that it has kept, middleware returns call.answer(outputs)."
        )
    fixed = ("turn", "tool_calls", "state", "request")
    if any(getattr(returned, name) is not getattr(origin.made, name) for name in fixed):
        raise HookError(
            f"The hook {name_of(hook)} changed what is none of its: {', '.join(fixed)}. It can "
            "change data and metadata, and middleware the prediction."
        )
    return returned.replace(data=returned.data, metadata=returned.metadata)


def _what(returned: Any) -> str:
    return "None" if returned is None else f"something of the type {type(returned).__name__}"
