"""What one call brings beside its inputs: an LM, LM settings, session data, a request.

They hold for the whole turn: for every LM call of the program, also where its `forward` has no
parameter to pass them on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import dspy
import msgspec
from dspy.streaming import StatusMessageProvider

from dspy_session.core.data import Data, as_data
from dspy_session.errors import CallError
from dspy_session.program.slot import takes_input

__all__ = ["NO_SETTINGS", "CallSettings", "call_settings", "split_settings"]


class CallSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one call; make them with `call_settings`, which checks them.

    Attributes:
        lm: The LM for the turn, instead of the configured and of the predictors' own; None for
            those.
        config: LM settings for every LM call of the turn (`temperature`, `rollout_id`, ...).
        request_id: The caller's name for this request; it is kept on the turn.
        stream_fields: Which output fields a stream hears of; None for all that are text.
        status_messages: Words a stream's status messages; None for DSPy's own.
        data: Session data that the call brings, in the place of what there is; None for that.
        request: What else came with the call, for hooks, tools and programs to read; None for
            nothing.
        approvals: The ids of tool calls that were approved beforehand; None for none.
    """

    lm: Any = None
    config: Mapping[str, Any] = {}
    request_id: str | None = None
    stream_fields: tuple[str, ...] | None = None
    status_messages: StatusMessageProvider | None = None
    data: Data | None = None
    request: Data | None = None
    approvals: frozenset[str] | None = None

    def updated(self, other: CallSettings) -> CallSettings:
        """Return these settings with what `other` sets beside or instead of them."""
        ours, theirs = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        changed = {name: value for name, value in theirs.items() if value is not None}
        return CallSettings(**{**ours, **changed, "config": {**self.config, **other.config}})


NO_SETTINGS: Final = CallSettings()


def call_settings(
    *,
    lm: dspy.BaseLM | None = None,
    config: Mapping[str, Any] | None = None,
    request_id: str | None = None,
    stream_fields: Sequence[str] | None = None,
    status_messages: StatusMessageProvider | None = None,
    data: Mapping[str, Any] | None = None,
    request: Mapping[str, Any] | None = None,
    approvals: Collection[str] = (),
) -> CallSettings:
    """Return checked settings.

    Args:
        lm: See `CallSettings`.
        config: See `CallSettings`; None for none.
        request_id: See `CallSettings`.
        stream_fields: See `CallSettings`.
        status_messages: See `CallSettings`.
        data: See `CallSettings`.
        request: See `CallSettings`; JSON values by key.
        approvals: See `CallSettings`.

    Raises:
        CallError: A setting is of a type that it cannot have.
        DataError: JSON cannot hold `data` or `request`.
    """
    if not (lm is None or isinstance(lm, dspy.BaseLM) or hasattr(lm, "supports_decision_requests")):
        raise CallError(
            'lm= must be a language model, for example dspy.LM("openai/gpt-5-mini"), '
            f"not {type(lm).__name__}."
        )
    if config is not None and not isinstance(config, Mapping):
        raise CallError(
            'config= must be a dict of LM settings, for example {"temperature": 0.2}, '
            f"not {type(config).__name__}."
        )
    if request_id is not None:
        _check_request_id(request_id)
    if stream_fields is not None:
        if isinstance(stream_fields, str) or not all(isinstance(n, str) for n in stream_fields):
            raise CallError(
                'stream_fields= must be a list of output fields, for example ["answer"], '
                f"not {stream_fields!r}."
            )
        stream_fields = tuple(stream_fields)
    if not isinstance(status_messages, StatusMessageProvider | None):
        raise CallError(
            "status_messages= must be a dspy.streaming.StatusMessageProvider, "
            f"not {type(status_messages).__name__}."
        )
    ids = isinstance(approvals, Collection) and not isinstance(approvals, str)
    if not ids or not all(isinstance(id, str) for id in approvals):
        raise CallError(
            "approvals= must be a list of the ids of tool calls, as pending_tool_calls has them, "
            f"not {approvals!r}."
        )
    return CallSettings(
        lm=lm,
        config=dict(config or {}),
        request_id=request_id,
        stream_fields=stream_fields,
        status_messages=status_messages,
        data=None if data is None else as_data(data),
        request=None if request is None else as_data(request),
        approvals=frozenset(approvals) or None,
    )


def _check_request_id(given: Any) -> None:
    """Refuse an id before a model is paid whose answer could not be stored or found under it."""
    if not isinstance(given, str):
        raise CallError(f"request_id= must be text, not {type(given).__name__}.")
    if not given:
        raise CallError("request_id= must not be empty; leave it out if there is none.")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise CallError(f"request_id= must be valid text, not {given!r}.") from error


def split_settings(
    program: dspy.Module, arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], CallSettings]:
    """Take `lm` and `config` out of a call's arguments, unless the program has such inputs.

    Args:
        program: The program.
        arguments: What it was called with.

    Returns:
        The inputs, and the settings that came among them.

    Raises:
        CallError: As `call_settings`.
    """
    inputs = dict(arguments)
    names = [name for name in ("lm", "config") if name in inputs and not takes_input(program, name)]
    return inputs, call_settings(**{name: inputs.pop(name) for name in names})
