"""Session data: what an application keeps beside the turns, such as a cart or a user's name.

Rules:

- A key is text, a value is JSON. What JSON cannot hold is refused when it is set, and nothing
  changes then. Models, dataclasses, structs and enums are written as JSON; `as_type` reads them.
- A `Data` never changes, and two versions share the values that they have in common.
- A value is kept as its bytes, so everything that is handed out is a copy, and the size is known.
  A write costs what it writes, and a little per key: never the size of what is there already.

What is held somewhere and changes there has a face like a dict: `dspy_session.core.session_data`.
"""

from __future__ import annotations

from collections.abc import Collection, ItemsView, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from dspy_session.core.data_reading import ReadableData
from dspy_session.core.json_values import decoded, encoded, encoded_key
from dspy_session.errors import DataError

__all__ = [
    "DEFAULT_MAX_BYTES",
    "DELETED",
    "EMPTY_DATA",
    "Data",
    "Deleted",
    "as_changes",
    "as_data",
    "data_of",
]

DEFAULT_MAX_BYTES: Final = 1_000_000
"""How large session data may get, as JSON, unless another limit is set."""


class Deleted(msgspec.Struct, frozen=True):
    """The type of `DELETED`."""

    def __repr__(self) -> str:
        return "DELETED"


DELETED: Final = Deleted()
"""Among changes, in place of a value: the key is to go."""


class Data(ReadableData):
    """Session data as a value: an insertion-ordered map that never changes.

    `Data({"user": "ada"})` makes one; `changed` makes the next one. Two are equal if they have the
    same keys in the same order and the same JSON under them: 1, 1.0 and True differ.

    Args:
        given: Keys and values.

    Raises:
        DataError: JSON cannot hold it.

    Example:
        >>> empty = Data()
        >>> ada = empty.changed({"user": "ada", "cart": []})
        >>> ada.changed({"cart": DELETED}), len(empty)
        (Data({'user': 'ada'}), 0)
    """

    __slots__ = ("_raw", "_weight")

    _raw: dict[str, bytes]
    _weight: int  # bytes of all entries as JSON, each with its colon and comma

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        data = as_data(given)
        self._raw, self._weight = data._raw, data._weight

    def snapshot(self) -> Data:
        """Return this."""
        return self

    def raw(self, key: str) -> bytes | None:
        """Return the JSON under a key, or None.

        Args:
            key: The key.

        Raises:
            DataError: The key is not text.
        """
        if not isinstance(key, str) or not key:
            encoded_key(key)  # says so
        return self._raw.get(key)

    def raws(self) -> ItemsView[str, bytes]:
        """Keys and the JSON under them."""
        return self._raw.items()

    @property
    def size(self) -> int:
        """How many bytes the data has as JSON."""
        return max(2, self._weight + 1)  # two braces, and one comma less than there are entries

    def changed(self, changes: Mapping[str, Any], max_bytes: int | None = None) -> Data:
        """Return the data with some values set and some deleted.

        A key keeps its place when its value changes. Deleting a key that is not there is no
        change; where nothing changes, this very object is returned.

        Args:
            changes: A value for each key that is set, `DELETED` for each that is to go.
            max_bytes: How large the data may get, as JSON; None for no limit. Making too large
                data smaller is allowed.

        Raises:
            DataError: JSON cannot hold a value, a key is not text, or the data gets too large.

        Example:
            >>> Data({"a": 1, "b": 2}).changed({"c": 3, "a": DELETED})
            Data({'b': 2, 'c': 3})
        """
        raws, weight, touched = dict(self._raw), self._weight, False
        for key, raw, key_size in _entries(changes):
            old = raws.get(key)
            if raw == old:
                continue
            touched = True
            if old is not None:
                weight -= key_size + len(old) + 2
            if raw is None:
                del raws[key]
            else:
                raws[key] = raw
                weight += key_size + len(raw) + 2
        if not touched:
            return self
        new = _made(raws, weight)
        if new.size > self.size:
            _check_size(new, max_bytes)
        return new

    def without(self, keys: Collection[str]) -> Data:
        """Return the data without some keys, whether they are there or not.

        Args:
            keys: What to leave out.
        """
        return self.changed(dict.fromkeys((key for key in self._raw if key in keys), DELETED))

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Data):
            return super().__eq__(other)
        return self is other or (
            self._weight == other._weight and list(self._raw.items()) == list(other._raw.items())
        )

    __hash__ = None  # by content, as above

    def __copy__(self) -> Data:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Data:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self._raw, self._weight)


def _made(raws: dict[str, bytes], weight: int) -> Data:
    data = object.__new__(Data)
    data._raw, data._weight = raws, weight
    return data


EMPTY_DATA: Final = _made({}, 0)
"""No data."""


def data_of(raws: Iterable[tuple[str, bytes]]) -> Data:
    """Return the data whose `raws` these are.

    Args:
        raws: Keys, and the JSON under them.

    Raises:
        DataError: A key is not text.
    """
    held = dict(raws)
    return _made(held, sum(encoded_key(key)[1] + len(raw) + 2 for key, raw in held.items()))


def as_data(
    given: Data | ReadableData | Mapping[str, Any] | None, max_bytes: int | None = None
) -> Data:
    """Return what is given as a value.

    Args:
        given: Keys and values, in any form; None for nothing.
        max_bytes: How large it may be, as JSON; None for no limit.

    Raises:
        DataError: It is no mapping, JSON cannot hold it, or it is too large.

    Example:
        >>> as_data({"user": "ada"})
        Data({'user': 'ada'})
    """
    if isinstance(given, ReadableData):
        data = given.snapshot()
        _check_size(data, max_bytes)
        return data
    return EMPTY_DATA if given is None else EMPTY_DATA.changed(given, max_bytes)


def as_changes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes as they are now: as plain values, whatever becomes of those that were given.

    Args:
        given: As `Data.changed` takes them.

    Raises:
        DataError: As from `Data.changed`.

    Example:
        >>> tags = ["a"]
        >>> changes = as_changes({"tags": tags})
        >>> tags.append("b")
        >>> changes
        {'tags': ['a']}
    """
    return {key: DELETED if raw is None else decoded(raw) for key, raw, _ in _entries(given)}


def _entries(changes: Mapping[str, Any]) -> Iterator[tuple[str, bytes | None, int]]:
    """The key, the JSON (None for what is deleted) and the size of the key, of each change."""
    if isinstance(changes, ReadableData):
        for key, raw in changes.snapshot().raws():
            yield key, raw, encoded_key(key)[1]
        return
    if not isinstance(changes, Mapping):
        raise DataError(
            "Session data is set by a mapping from keys to values, such as "
            f'{{"user": "ada"}}, not by a {type(changes).__name__}. Nothing was changed.'
        )
    for given, value in changes.items():
        key, key_size = encoded_key(given)
        yield key, None if value is DELETED else encoded(key, value), key_size


def _check_size(data: Data, max_bytes: int | None) -> None:
    if max_bytes is not None and data.size > max_bytes:
        raise DataError(
            f"Session data may have {max_bytes} bytes as JSON, and this would be {data.size}. Keep "
            "less, or set another limit: the option max_data_bytes of a session, or max_bytes= of "
            "SessionData (None for no limit). Nothing was changed."
        )
