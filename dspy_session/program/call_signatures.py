"""The signature of one call: the predictor's own, with what the running turn adds to it.

The predictor's signature stays what it is. Making another takes DSPy about 0.3 ms, so what was made
is kept, for as long as the signature's instructions and fields stay what they were (optimizers
change them in place).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import dspy
import msgspec

from dspy_session.core.profile import Instructions, Place
from dspy_session.program.fingerprints import SignatureStamp, signature_stamp
from dspy_session.program.transcripts import TRANSCRIPT

__all__ = ["with_history", "with_instructions"]

Signature = type[dspy.Signature]


def with_instructions(signature: Signature, instructions: Instructions | None) -> Signature:
    """Return a signature whose instructions have a session's beside its own.

    Args:
        signature: The signature of the call.
        instructions: What the session adds; None for nothing.
    """
    if instructions is None:
        return signature

    def make() -> Signature:
        own = signature.instructions
        if _says(own, instructions):  # an adapter around this one has added them
            return signature
        return signature.with_instructions(instructions.around(own))

    return _kept((signature, instructions), signature, make)


def _says(own: str, instructions: Instructions) -> bool:
    """Whether instructions stand in their place already; DSPy takes indentation off a text."""
    lines, added = _lines(own), _lines(instructions.text)
    first = instructions.place is Place.BEFORE
    return added == (lines[: len(added)] if first else lines[-len(added) :])


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def with_history(signature: Signature, field: str, declared: bool, as_messages: bool) -> Signature:
    """Return a signature with a History field, or with a field for the transcript as text.

    Args:
        signature: The signature of the call.
        field: The field's name.
        declared: Whether the signature has the field already.
        as_messages: Whether the conversation is shown as messages.
    """
    if as_messages and declared and signature.input_fields[field].annotation == dspy.History:
        return signature

    def make() -> Signature:
        if as_messages and declared:
            return signature.with_updated_fields(field, type_=dspy.History)
        if not as_messages:
            text = dspy.InputField(desc=TRANSCRIPT)
            return signature.delete(field).prepend(field, text, str)
        made = signature.append(field, dspy.InputField(), dspy.History)
        _remember_original(made, field, signature)
        return made

    return _kept((signature, field, as_messages), signature, make)


def _remember_original(made: Signature, field: str, original: Signature) -> None:
    """Let `made.delete(field)`, which DSPy asks for in every call, answer with the original class.

    DSPy would make the same signature anew each time, at a third of the cost of a short call.
    """

    def delete(name: str) -> Signature:
        own: Any = dspy.Signature.delete
        shorter: Signature = original if name == field else own.__func__(made, name)
        return shorter

    type.__setattr__(made, "delete", staticmethod(delete))


class _Made(msgspec.Struct):
    stamp: SignatureStamp
    signature: Signature


_made: dict[Any, _Made] = {}
_MOST_SIGNATURES: Final = 256


def _kept(key: tuple[Any, ...], signature: Signature, make: Callable[[], Signature]) -> Signature:
    """Return what was made of a signature under that key, made again if the signature changed."""
    stamp = signature_stamp(signature)
    known = _made.get(key)
    if known is not None and known.stamp == stamp:
        return known.signature
    made = make()
    if len(_made) >= _MOST_SIGNATURES:
        _made.clear()
    _made[key] = _Made(stamp, made)
    return made
