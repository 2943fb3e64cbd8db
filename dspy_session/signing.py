"""The seal on what a client carries: session data, and tool calls that wait for approval.

Rules:

- A seal says that this server wrote the data and offered the calls. It does not say when, nor that
  nothing newer was written since: see `max_age`, and the guide.
- What a client changes by reading and writing JSON breaks no seal: the order of keys, 1 for 1.0.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from dspy_session.core.data import Data
from dspy_session.errors import OptionError, PayloadError

__all__ = ["Seal", "Secret"]

Secret = str | bytes | Sequence[str | bytes]
"""What signs; of several, the first signs and all are believed."""

_SHORTEST_SECRET: Final = 16
_BEYOND_INTEGERS: Final = 2.0**63


class Seal:
    """Signs what a client carries, and knows its own signature again.

    Args:
        secret: See `Secret`.
        context: What else a signature is good for only: a user, a conversation.
        max_age: After how many seconds a signature is no longer believed; None for never.

    Raises:
        OptionError: One of them is not what it has to be, or itsdangerous is not installed.

    Example:
        >>> seal = Seal("0123456789abcdef", context="ada")
        >>> signature = seal.sign(Data({"cart": []}), [])
        >>> seal.check(signature, Data({"cart": []}), [])  # raises, were it another cart
    """

    def __init__(self, secret: Secret, *, context: str = "", max_age: int | None = None) -> None:
        try:
            import itsdangerous  # noqa: PLC0415  # an extra: needed by those who sign
        except ImportError as error:
            raise OptionError(
                "Signing needs itsdangerous, which is not installed: install dspy-session[signing]."
            ) from error
        if not isinstance(context, str):
            raise OptionError(f"context must be text, not {type(context).__name__}.")
        if max_age is not None and (type(max_age) is not int or max_age <= 0):
            raise OptionError(f"max_age must be a whole number of seconds, not {max_age!r}.")
        self._max_age = max_age
        self._signer = itsdangerous.TimestampSigner(
            list(reversed(_secrets(secret))),  # there, the last one signs
            salt=f"dspy_session.protocol:{context}",
            key_derivation="hmac",
            digest_method=hashlib.sha256,
        )
        self._too_old: type[Exception] = itsdangerous.SignatureExpired
        self._wrong: type[Exception] = itsdangerous.BadData

    def sign(self, session: Data, calls: Sequence[Mapping[str, Any]]) -> str:
        """Return the signature of what a reply hands out.

        Args:
            session: The session data.
            calls: The tool calls that wait for approval.
        """
        return self._signer.sign(_digest(session, calls)).decode()

    def check(self, signature: Any, session: Data, calls: Sequence[Mapping[str, Any]]) -> None:
        """Let what a request carries pass, if a reply handed it out.

        Args:
            signature: The signature; None if there is none, which is right if nothing is carried.
            session: The session data.
            calls: The tool calls that waited for approval.

        Raises:
            PayloadError: The signature is missing, wrong or too old.
        """
        if signature is None and not session and not calls:
            return
        if not isinstance(signature, str):
            raise PayloadError(
                "The request carries session data or tool calls without a signature. Send data as "
                "the last reply had it: session, tool_calls and signature."
            )
        try:
            signed = self._signer.unsign(signature, max_age=self._max_age)
        except self._too_old as error:
            raise PayloadError(
                f"The signature in data.signature is older than {self._max_age} seconds. Begin a "
                "new conversation, without session data."
            ) from error
        except self._wrong as error:
            raise PayloadError(_TAMPERED) from error
        if not hmac.compare_digest(signed, _digest(session, calls).encode()):
            raise PayloadError(_TAMPERED)


_TAMPERED: Final = (
    "The signature in data.signature is not that of the session data and tool calls beside it: "
    "they were changed, or signed with another secret or for another context. Send data as the "
    "last reply had it; of a tool call, add only whether it is approved."
)


def _secrets(given: Secret) -> list[bytes]:
    several = [given] if isinstance(given, str | bytes) else given
    if not isinstance(several, Sequence) or not several:
        raise OptionError("secret must be text or bytes, or a list of them: the first signs.")
    made = []
    for one in several:
        if not isinstance(one, str | bytes):
            raise OptionError(f"A secret must be text or bytes, not {type(one).__name__}.")
        made.append(one.encode() if isinstance(one, str) else one)
        if len(made[-1]) < _SHORTEST_SECRET:
            raise OptionError(
                f"A secret must have at least {_SHORTEST_SECRET} bytes; secrets.token_hex() makes "
                "a good one."
            )
    return made


def _digest(session: Data, calls: Sequence[Mapping[str, Any]]) -> str:
    """What is signed: a digest of what a client cannot have changed by reading and writing JSON."""
    carried = {
        "session": session.to_dict(),
        "tool_calls": {call["id"]: [call.get("name"), call.get("arguments")] for call in calls},
    }
    written = msgspec.json.encode(_canonical(carried), order="sorted")
    return hashlib.sha256(written).hexdigest()


def _canonical(value: Any) -> Any:
    """A JSON value with whole numbers as such: JavaScript writes 1.0 as 1."""
    if isinstance(value, float) and value.is_integer() and abs(value) < _BEYOND_INTEGERS:
        return int(value)
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return value
