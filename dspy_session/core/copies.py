"""Private copies of field values, on their way into a conversation and out of it.

Rules:

- A value that enters a turn is copied, and copied again on the way out: nobody outside holds a
  handle on what a conversation contains. Key order is kept.
- In memory any value is welcome. One that cannot be copied (an open file, a lock) is kept as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

from dspy_session.errors import CallError

__all__ = ["copy_fields", "private_copy"]

_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})


def private_copy(value: Any) -> Any:
    """Return a copy of `value` that shares no mutable part with it.

    Args:
        value: Anything. Parts that refuse to be copied are shared, and so is a value nested beyond
            Python's recursion limit; there is no other way to keep them, and in memory every value
            is welcome.

    Returns:
        An equal value. Immutable scalars are returned as they are.

    Example:
        >>> tags = ["a"]
        >>> mine = private_copy(tags)
        >>> tags.append("b")
        >>> mine
        ['a']
    """
    if type(value) in _SCALARS:
        return value
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001  # deepcopy runs the value's own code, which may raise anything
        try:
            return _copy_parts(value, {})
        except Exception:  # noqa: BLE001  # the same
            return value


def _copy_parts(value: Any, done: dict[int, Any]) -> Any:
    """Copy what can be copied of a value of which some part cannot; `done` is by identity."""
    if id(value) in done:
        return done[id(value)]
    kind, mine = type(value), value
    if isinstance(value, dict):
        mine = done[id(value)] = copy.copy(value)  # of the same kind, with its default factory
        for key, item in value.items():
            mine[key] = _copy_parts(item, done)
    elif isinstance(value, list):
        mine = done[id(value)] = copy.copy(value)
        mine[:] = [_copy_parts(item, done) for item in value]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        mine = kind(*[_copy_parts(item, done) for item in value])
    elif kind in (tuple, set, frozenset):
        mine = kind([_copy_parts(item, done) for item in value])
    else:
        try:
            mine = copy.deepcopy(value)
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001  # as above: what cannot be copied is kept as it is
            mine = value
    return done.setdefault(id(value), mine)


def copy_fields(fields: Mapping[str, Any], what: str = "fields") -> dict[str, Any]:
    """Return a private copy of a mapping from field names to values, in its order.

    Args:
        fields: Field names and their values.
        what: What the fields are, for the error message.

    Raises:
        CallError: `fields` is no mapping, or a name is not text.

    Example:
        >>> copy_fields({"question": "Hi"})
        {'question': 'Hi'}
    """
    if not isinstance(fields, Mapping):
        raise CallError(
            f"{what} must be a mapping from field names to values, not {type(fields).__name__}; "
            'for example {"question": "Hi"}.'
        )
    for name in fields:
        if not isinstance(name, str):
            raise CallError(
                f"{what} must be named by text, but one name is {name!r} ({type(name).__name__})."
            )
    return {str.__str__(name): private_copy(value) for name, value in fields.items()}
