"""Every error that this library raises on purpose, as one family.

Catch `SessionError` to catch them all. Where Python users would look for a builtin, the error is
that builtin too, so `except ValueError` around a wrong option keeps working:

    SessionError
    ├── OptionError (ValueError)           an option is unknown or has a value it cannot have
    ├── CallError (TypeError)              a call that no session can run: positional arguments, ...
    │   └── HistoryError                   `history=` is not a `dspy.History`, or collides with it
    ├── ModuleTypeError (TypeError)        what was given is not a `dspy.Module`
    ├── TurnIndexError (IndexError)        there is no stored turn with that index
    ├── LockError (RuntimeError)           a lock of the wrong mode, a session inside its own turn
    ├── MetricError (RuntimeError)         a metric raised, and `on_metric_error="raise"`
    ├── DataError (ValueError)             session data that JSON cannot hold, too deep, too large
    ├── DataKeyError (KeyError)            session data has no such key
    ├── MessageError (ValueError)          chat messages that make no conversation
    ├── PayloadError (ValueError)          a protocol request is malformed, too large, tampered with
    ├── HookError (TypeError)              a hook returned something that it may not return
    ├── TurnRefusedError (RuntimeError)    a hook refused the turn
    ├── ToolError (RuntimeError)           a session tool that cannot work where it stands
    ├── ValueCodecError (TypeError)        a value cannot be written out, or its codec failed
    ├── FormatError (ValueError)           stored data is corrupt, truncated, or from the future
    └── StoreError (RuntimeError)          a store cannot be reached, read or written
        ├── SessionNotFoundError (LookupError)  a store has no session of that id
        ├── SessionExistsError (ValueError)     a store has a session of that id already
        ├── ConflictError                       somebody else wrote the session meanwhile
        ├── SessionSizeError (ValueError)       a session would become larger than it may
        └── SecretError (ValueError)            stored payloads cannot be read with this key

Each message says what was expected, what came, and what to do. After any of them the conversation
is what it was before the call.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "CallError",
    "ConflictError",
    "DataError",
    "DataKeyError",
    "FormatError",
    "HistoryError",
    "HookError",
    "LockError",
    "MessageError",
    "MetricError",
    "ModuleTypeError",
    "OptionError",
    "PayloadError",
    "SecretError",
    "SessionError",
    "SessionExistsError",
    "SessionNotFoundError",
    "SessionSizeError",
    "StoreError",
    "ToolError",
    "TurnIndexError",
    "TurnRefusedError",
    "ValueCodecError",
]


class SessionError(Exception):
    """The root of the family: everything this library raises on purpose."""


class OptionError(SessionError, ValueError):
    """An option is unknown, or was given a value it cannot have."""


class CallError(SessionError, TypeError):
    """A call that no session can run as it was written."""


class HistoryError(CallError):
    """What was passed as the history is none, or an input collides with the history field."""


class ModuleTypeError(SessionError, TypeError):
    """What was given as a program is not a `dspy.Module`."""


class TurnIndexError(SessionError, IndexError):
    """There is no stored turn with the index that was asked for."""


class LockError(SessionError, RuntimeError):
    """A session was called in a way its lock forbids, or inside its own turn."""


class MetricError(SessionError, RuntimeError):
    """A metric raised or returned no score, and the session's `on_metric_error` is `"raise"`."""


class DataError(SessionError, ValueError):
    """Session data that JSON cannot hold, that is too deep or too large, or not of a type."""


class DataKeyError(SessionError, KeyError):
    """Session data has no such key."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # a KeyError would show it in quotes


class MessageError(SessionError, ValueError):
    """Chat messages that make no conversation."""


class PayloadError(SessionError, ValueError):
    """A request of the message protocol is malformed, too large, or was tampered with."""


class HookError(SessionError, TypeError):
    """A hook returned something that it may not return."""


class TurnRefusedError(SessionError, RuntimeError):
    """A hook refused the turn.

    Attributes:
        reason: Why, in the hook's words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ToolError(SessionError, RuntimeError):
    """A session tool that cannot work where it stands."""


class ValueCodecError(SessionError, TypeError):
    """A field value has no written form: its type is unknown, or its codec failed."""


class FormatError(SessionError, ValueError):
    """Stored data cannot be read: corrupt, truncated, of another kind, or from the future."""


class StoreError(SessionError, RuntimeError):
    """A store cannot be reached, read or written; the driver's own error is the cause.

    What the store was asked to write is not acknowledged. To try again is safe.

    Attributes:
        turn: The finished turn that could not be stored; None if it was about no turn.
        prediction: What the program returned for it, so that no paid call is lost.
    """

    turn: Any = None
    prediction: Any = None


class SessionNotFoundError(StoreError, LookupError):
    """A store has no session of that id."""


class SessionExistsError(StoreError, ValueError):
    """A store has a session of that id already."""


class ConflictError(StoreError):
    """Somebody else wrote the session since it was read; nothing was written over.

    Attributes:
        session_id: The session's id.
    """

    def __init__(self, message: str, session_id: str = "") -> None:
        super().__init__(message)
        self.session_id = session_id


class SessionSizeError(StoreError, ValueError):
    """A session would become larger than its store lets it; no model was called."""


class SecretError(StoreError, ValueError):
    """Stored payloads cannot be read with this key, or not without one."""
