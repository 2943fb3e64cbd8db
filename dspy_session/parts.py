"""The parts of written rows: fields, facts of runs, profiles, messages; in plain form, and back.

Every error says of which turn and field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dspy_session.core.chat_messages import SYSTEM_ROLES, checked_message
from dspy_session.core.data import as_data
from dspy_session.core.profile import Instructions, Place, Profile
from dspy_session.core.turn import Run
from dspy_session.core.values import (
    REGISTERED,
    SCALARS,
    TYPE_KEY,
    ValueCodecs,
    from_plain,
    to_plain,
)
from dspy_session.errors import FormatError, ValueCodecError
from dspy_session.wire import WireProfile, WireRun

__all__ = [
    "fields_from_wire",
    "fields_to_wire",
    "message_from_wire",
    "number_from_wire",
    "profile_from_wire",
    "profile_to_wire",
    "run_from_wire",
    "run_to_wire",
]


def fields_to_wire(
    fields: Mapping[str, Any], where: str, role: str, codecs: ValueCodecs
) -> dict[str, Any]:
    """Return the fields of a turn in plain form.

    Args:
        fields: Values by name.
        where: Whose they are, for messages.
        role: What they are there, for messages.
        codecs: Writes values of types beyond plain data.

    Raises:
        ValueCodecError: One of them has no written form.
    """
    plain = {}
    for name, value in fields.items():
        try:
            plain[name] = to_plain(value, codecs)
        except ValueCodecError as error:
            raise ValueCodecError(
                f"Cannot save {where}: {role} {name!r} ({type(value).__qualname__}): {error}. "
                "Or leave the field out of what the program takes or returns. "
                "Nothing was written, and in memory the session goes on."
            ) from error
    return plain


def fields_from_wire(
    fields: Mapping[str, Any], where: str, role: str, codecs: ValueCodecs
) -> dict[str, Any]:
    """Return the fields whose plain form this is.

    Args:
        fields: Plain values by name.
        where: Whose they are, for messages.
        role: What they are there, for messages.
        codecs: Reads values of types beyond plain data.

    Raises:
        FormatError: One of them cannot be read.
    """
    for plain in fields.values():
        if type(plain) not in SCALARS:
            break
    else:
        return dict(fields)
    values = {}
    for name, plain in fields.items():
        try:
            values[name] = from_plain(plain, codecs)
        except FormatError as error:
            raise FormatError(
                f"Cannot load {where}: {role} {name!r}: {error}. Nothing was loaded."
            ) from error
    return values


def run_to_wire(run: Run, where: str) -> WireRun:
    """Return the facts of a run as a row.

    Args:
        run: The run.
        where: Of which turn it is, for messages.

    Raises:
        ValueCodecError: The usage holds a value without written form.
    """
    facts = {"time": run.time, "duration": run.duration, "cost": run.cost}
    plain = fields_to_wire(facts, where, "its", REGISTERED)
    usage = {model: dict(counts) for model, counts in run.usage}
    return WireRun(
        id=run.id,
        time=plain["time"],
        duration=plain["duration"],
        usage=fields_to_wire(usage, where, "usage of", REGISTERED),
        cost=plain["cost"],
        fingerprint=run.fingerprint,
        request_id=run.request_id,
        lm_calls=run.lm_calls,
        sent=run.sent,
        plain=run.plain,
    )


def run_from_wire(wire: WireRun, where: str) -> Run:
    """Return the facts of a run that a row describes.

    Args:
        wire: The row.
        where: Of which turn it is, for messages.

    Raises:
        FormatError: A value cannot be read.
        ValueError: A value is of another type than it can have.
    """
    return Run(
        id=wire.id,
        time=number_from_wire(wire.time),
        duration=number_from_wire(wire.duration),
        usage=_usage(wire.usage, where),
        cost=number_from_wire(wire.cost),
        fingerprint=wire.fingerprint,
        request_id=wire.request_id,
        lm_calls=wire.lm_calls,
        sent=wire.sent,
        plain=wire.plain,
    )


def _usage(wire: dict[str, dict[str, Any]], where: str) -> Any:
    counts = wire.values()
    if not all(type(n) in SCALARS for each in counts for n in each.values()) or any(
        TYPE_KEY in each for each in counts
    ):
        wire = fields_from_wire(wire, where, "usage of", REGISTERED)
    return tuple((model, tuple(dict(each).items())) for model, each in wire.items())


def number_from_wire(plain: Any) -> float | None:
    """Return a number whose plain form this is, or None.

    Args:
        plain: The plain form.

    Raises:
        ValueError: It is something else.
    """
    if plain is None or type(plain) is float:
        return plain
    value = from_plain(plain)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise ValueError(f"expected a number, not {value!r}")


def profile_to_wire(profile: Profile) -> WireProfile:
    """Return a profile as a row.

    Args:
        profile: The profile.

    Raises:
        ValueCodecError: The system message holds a value without written form.
    """
    told, system = profile.instructions, profile.system
    return WireProfile(
        instructions=None if told is None else told.text,
        place=str(Place.AFTER if told is None else told.place),
        metadata=profile.metadata.to_dict(),
        start=profile.start.to_dict(),
        system=None
        if system is None
        else fields_to_wire(system, "the system message", "its", REGISTERED),
    )


def profile_from_wire(wire: WireProfile) -> Profile:
    """Return the profile that a row describes.

    Args:
        wire: The row.

    Raises:
        ValueError: The row is damaged; also other errors of the kind.
    """
    told = wire.instructions
    system = None if wire.system is None else message_from_wire(wire.system, "the system message")
    if system is not None and system["role"] not in SYSTEM_ROLES:
        raise ValueError(f"the system message is one of the {system['role']}")
    return Profile(
        instructions=None if told is None else Instructions(told, Place(wire.place)),
        metadata=as_data(wire.metadata),
        start=as_data(wire.start),
        system=system,
    )


def message_from_wire(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a chat message whose plain form this is.

    Args:
        message: The plain form.
        where: Which message it is, for errors.

    Raises:
        MessageError: It is no chat message.
    """
    return checked_message(fields_from_wire(message, where, "its", REGISTERED))
