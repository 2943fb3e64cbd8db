"""Tools that ask first: a call runs once somebody said yes to this very call.

Either an approver is asked, or the caller of the turn brought the approval along, by the id that an
earlier turn listed as pending. Until then the tool does not run, and the model is told so.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import msgspec
import pydantic

from dspy_session.core.copies import private_copy
from dspy_session.core.data import Data
from dspy_session.errors import HookError, ToolError
from dspy_session.program.call_modes import waited
from dspy_session.program.frame import Frame
from dspy_session.program.listening import reaches_loop

__all__ = ["ApprovalRequest", "Approver", "adecided", "decided"]


class ApprovalRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a tool that needs approval.

    Attributes:
        id: Says which call it is: the same tool with the same arguments has the same id, any other
            call another.
        name: The tool's name.
        arguments: What the model calls it with, as plain JSON.
        data: The session data as it is now.

    Example:
        >>> def approver(request: ApprovalRequest) -> bool:
        ...     return request.name == "refund" and request.arguments["amount"] <= 20
    """

    id: str
    name: str
    arguments: dict[str, Any]
    data: Data


Approver = Callable[[ApprovalRequest], bool | Awaitable[bool]]
"""Says whether a call may run; plain or async."""


def decided(frame: Frame, name: str, arguments: Mapping[str, Any]) -> str | None:
    """Find out whether a call may run, in code that cannot await.

    Args:
        frame: The running turn.
        name: The tool's name.
        arguments: What it is called with.

    Returns:
        None if the call may run, else what the model is told instead of a result.

    Raises:
        HookError: The approver said neither True nor False.
        ToolError: The arguments have no form in which they could be shown to whoever approves.
    """
    request = _request(frame, name, arguments)
    with _failing(frame):
        return _verdict(frame, request, _result(_asked(frame, request)))


async def adecided(frame: Frame, name: str, arguments: Mapping[str, Any]) -> str | None:
    """As `decided`, for code that can await.

    Args:
        frame: As for `decided`.
        name: As for `decided`.
        arguments: As for `decided`.

    Returns:
        As `decided`.

    Raises:
        HookError: As from `decided`.
        ToolError: As from `decided`.
    """
    request = _request(frame, name, arguments)
    with _failing(frame):
        answer = _asked(frame, request)
        return _verdict(frame, request, await answer if inspect.isawaitable(answer) else answer)


def _asked(frame: Frame, request: ApprovalRequest) -> Any:
    if any(request.id in one.approvals and one.draft.spend(request.id) for one in _turns(frame)):
        return True
    approver = next((one.approver for one in _turns(frame) if one.approver is not None), None)
    if approver is None:
        return False
    own = private_copy(request.arguments)  # the approver's, to do with whatever it likes
    return approver(msgspec.structs.replace(request, arguments=own))


def _turns(frame: Frame | None) -> Iterator[Frame]:
    """The turns that a call is in: whoever began one of them may approve what happens in it."""
    while frame is not None:
        yield frame
        frame = frame.parent


def _verdict(frame: Frame, request: ApprovalRequest, answer: Any) -> str | None:
    if not isinstance(answer, bool):
        raise HookError(
            f"An approver must return True or False, not {answer!r}; it was asked about a call of "
            f"{request.name!r}."
        )
    for turn in _turns(frame):
        if answer:
            turn.draft.settle(request.id)
        else:
            turn.draft.wait_for(
                {"id": request.id, "name": request.name, "arguments": request.arguments}
            )
    if answer:
        return None
    return (
        f"This call of {request.name} needs approval and waits for it; it has not run. Say so in "
        "your answer, and do not call it again now."
    )


@contextlib.contextmanager
def _failing(frame: Frame) -> Iterator[None]:
    """Let an error of the approver's end the turn: an agent would only show it to its model."""
    try:
        yield
    except Exception as error:
        for turn in _turns(frame):
            turn.draft.fail(error)
        raise


def _result(answer: Any) -> Any:
    """What an approver says, awaited in the loop that the program was awaited in, if there is one.

    Whoever approves is perhaps heard by that loop.
    """
    if not inspect.isawaitable(answer) or not reaches_loop():
        return waited(answer)
    from anyio import from_thread  # noqa: PLC0415  # not before it is needed, as in DSPy

    async def awaited() -> Any:
        return await answer

    return from_thread.run(awaited)


def _request(frame: Frame, name: str, arguments: Mapping[str, Any]) -> ApprovalRequest:
    plain = _as_json(name, arguments)
    written = msgspec.json.encode([name, plain], order="sorted")
    return ApprovalRequest(
        id=hashlib.blake2b(written, digest_size=16).hexdigest(),
        name=name,
        arguments=plain,
        data=frame.data.read(),
    )


def _as_json(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        values = msgspec.to_builtins(dict(arguments), enc_hook=_model_as_json, str_keys=True)
        json.dumps(values, allow_nan=False)  # msgspec writes null for it
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(values))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ToolError(
            f"The tool {name!r} needs approval, and this call cannot be shown to anybody, for its "
            f"arguments cannot be written as JSON: {error}. Let it take JSON values, dataclasses "
            "or pydantic models."
        ) from error
    return plain


def _model_as_json(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"there is no JSON for a {type(value).__name__}")
