"""What models, adapters and programs complain of, in one line that says what to do."""

from __future__ import annotations

from typing import Final

import dspy
from dspy.utils.exceptions import (
    AdapterParseError,
    ContextWindowExceededError,
    LMAuthError,
    LMInvalidRequestError,
    LMServerError,
    LMTransportError,
)

from dspy_session.errors import OptionError
from dspy_session.pictures.values import shortened, unbroken

__all__ = ["EXAMPLE", "MODEL", "NO_MODEL", "explained", "first_paragraph", "one_paragraph"]

MODEL: Final = "DSPY_SESSION_MODEL"
"""The variable of the environment with the model of programs that are given none."""
EXAMPLE: Final = "openai/gpt-4o-mini"
"""A model."""
NO_MODEL: Final = (
    f"No model is configured. Give one, such as --model {EXAMPLE}, or set {MODEL}; its provider's "
    "key is taken from the environment, such as OPENAI_API_KEY. --scripted needs neither."
)
"""What to do where there is no model."""

_LONGEST: Final = 300  # characters of somebody else's error
_NO_LM: Final = "No LM is loaded."  # how DSPy begins to say it


def explained(error: BaseException, *, whole: bool = False) -> str:
    """Return what went wrong with a turn as one line, with what to do about it.

    Args:
        error: An error of a model, an adapter, a program, or a session.
        whole: Whether the answer was asked for whole, not as a stream.
    """
    if str(error).startswith(_NO_LM):
        return NO_MODEL
    for kinds, hint in _HINTS:
        if isinstance(error, kinds):
            said = first_paragraph(error)
            hint = _NO_FORMAT if whole and hint is _STREAMED else hint
            return f"{said}{'' if said[-1:] in '.!?…' else '.'} {hint}"
    return first_paragraph(error)


_STREAMED: Final = "A chat with --no-stream lets DSPy ask again in another format."
_NO_FORMAT: Final = "Ask again, or another model: this one does not keep to the format."

_HINTS: Final = (
    (LMAuthError, "Check the provider's key in the environment, such as OPENAI_API_KEY."),
    (ContextWindowExceededError, "The conversation is too long for this model."),
    (LMInvalidRequestError, f"Check the model: --model provider/name, such as {EXAMPLE}."),
    (AdapterParseError, _STREAMED),
    (LMTransportError, "Check the network, and --api-base if you gave one."),
    (LMServerError, "Try again later, or check the network."),
)


def first_paragraph(error: BaseException) -> str:
    """Return the first paragraph of an error, as one line; DSPy's have long ones after it.

    Args:
        error: Any error.
    """
    line = one_paragraph(str(error))
    known = isinstance(error, dspy.LMError | OptionError) and not line.endswith("]")  # a name alone
    return line if known and line else f"{type(error).__name__}{': ' if line else ''}{line}"


def one_paragraph(text: str) -> str:
    """Return the first paragraph of what others say as one line, which is not long.

    Args:
        text: What they say.
    """
    return shortened(unbroken(text.strip().partition("\n\n")[0]), _LONGEST)
