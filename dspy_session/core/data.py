"""Session data: what an application keeps beside the turns, such as a cart or a user's name.

Rules:

- A key is text, a value is JSON. What JSON cannot hold is refused when it is set, and nothing
  changes then. Models, dataclasses, structs and enums are written as JSON; `as_type` reads them.
- A `Data` never changes, and two versions share the values that they have in common.
- A value is kept as its bytes, so everything that is handed out is a copy, and the size is known.
  A write costs what it writes, and a little per key: never the size of what is there already.

This module does not know where data is held: a `SessionData` is the face of any `Holder`.
"""

from __future__ import annotations

from collections.abc import Collection, ItemsView, Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

import msgspec

from dspy_session.core.data_reading import ReadableData, no_such_key
from dspy_session.core.json_values import decoded, encoded, encoded_key
from dspy_session.errors import DataError, OptionError

__all__ = [
    "DEFAULT_MAX_BYTES",
    "DELETED",
    "EMPTY_DATA",
    "Data",
    "DataHolder",
    "Deleted",
    "SessionData",
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
    given: Data | SessionData | Mapping[str, Any] | None, max_bytes: int | None = None
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


class DataHolder(Protocol):
    """Where data is held that a `SessionData` shows: a session, or a running turn."""

    def read(self) -> Data:
        """Return the data as it is now."""
        ...

    def change(self, changes: Mapping[str, Any]) -> None:
        """Take over all changes, or none: values, and `DELETED` for what is to go.

        Args:
            changes: As `Data.changed` takes them.

        Raises:
            DataError: As from `Data.changed`.
        """
        ...

    def base(self) -> Data:
        """Return the data as it was when this began."""
        ...


class _OwnHolder:
    """Holds the data of a `SessionData` that stands alone."""

    def __init__(self, data: Data, max_bytes: int | None) -> None:
        self._data = self._base = data
        self._max_bytes = max_bytes

    def read(self) -> Data:
        return self._data

    def change(self, changes: Mapping[str, Any]) -> None:
        self._data = self._data.changed(changes, self._max_bytes)

    def base(self) -> Data:
        return self._base


class SessionData(ReadableData):
    """Data that goes with a conversation, like a dict: JSON values under text keys.

    `session.data` is one, and so is what a tool is handed. Made by itself, it stands alone: for a
    test of a tool, for example.

    Args:
        given: Keys and values to begin with.
        max_bytes: How large the data may get, as JSON; None for no limit.

    Raises:
        DataError: JSON cannot hold it, or it is too large.
        OptionError: `max_bytes` is no number.

    Example:
        >>> data = SessionData({"cart": []})
        >>> data["cart"] = [*data["cart"], "tea"]
        >>> data.set("user", "ada")
        >>> data
        SessionData({'cart': ['tea'], 'user': 'ada'})
    """

    __slots__ = ("_holder", "_private")

    _holder: DataHolder
    _private: Collection[str]

    def __init__(
        self,
        given: Mapping[str, Any] | None = None,
        *,
        max_bytes: int | None = DEFAULT_MAX_BYTES,
    ) -> None:
        if max_bytes is not None and (type(max_bytes) is not int or max_bytes < 0):
            raise OptionError(
                "max_bytes= is a whole number of bytes, or None for no limit, "
                f"not {max_bytes!r} ({type(max_bytes).__name__})."
            )
        self._holder, self._private = _OwnHolder(as_data(given, max_bytes), max_bytes), ()

    @classmethod
    def over(cls, holder: DataHolder, private: Collection[str] = ()) -> SessionData:
        """Return a face of data that is held elsewhere.

        Args:
            holder: Where it is held.
            private: The keys whose values no error and no `repr` shows.
        """
        made = cls.__new__(cls)
        made._holder, made._private = holder, private
        return made

    @classmethod
    def from_dict(
        cls, given: Mapping[str, Any], *, max_bytes: int | None = DEFAULT_MAX_BYTES
    ) -> SessionData:
        """Return data that stands alone, with what `to_dict` returned, for example.

        Args:
            given: Keys and values.
            max_bytes: How large the data may get, as JSON; None for no limit.

        Raises:
            DataError: It is no mapping, JSON cannot hold it, or it is too large.
        """
        return cls(EMPTY_DATA.changed(given), max_bytes=max_bytes)

    def snapshot(self) -> Data:
        """Return the data as it is now, as a value that never changes."""
        return self._holder.read()

    def _hides(self, key: str) -> bool:
        return key in self._private

    @property
    def is_modified(self) -> bool:
        """Whether it differs from what it was when it was made or loaded."""
        return self._holder.read() != self._holder.base()

    def set(self, key: str, value: Any) -> None:
        """Set a value; what was there under that key is replaced.

        Args:
            key: The key, text that is not empty.
            value: Anything that JSON can hold, or a dataclass, pydantic model, msgspec struct or
                enum member, at any depth.

        Raises:
            DataError: JSON cannot hold it, or the data would get too large. Nothing is changed.
        """
        name, _ = encoded_key(key)
        self._holder.change({name: value})

    def delete(self, key: str) -> None:
        """Delete a key, if it is there.

        Args:
            key: The key.

        Raises:
            DataError: The key is not text.
        """
        name, _ = encoded_key(key)
        self._holder.change({name: DELETED})

    def update(self, values: Mapping[str, Any]) -> None:
        """Set several values, all or none.

        Args:
            values: The values by key.

        Raises:
            DataError: As for `set`. Nothing is changed.
        """
        self._holder.change(values)

    def clear(self) -> None:
        """Delete all keys."""
        self._holder.change(dict.fromkeys(self.snapshot(), DELETED))

    def __setitem__(self, key: str, value: Any) -> None:
        self.set(key, value)

    def __delitem__(self, key: str) -> None:
        if not self.has(key):
            raise no_such_key(key)
        self.delete(key)

    # DSPy asks pydantic about each parameter of a tool, before `session_tool` takes this one away.
    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> dict[str, Any]:
        return {"type": "is-instance", "cls": cls}

    @classmethod
    def __get_pydantic_json_schema__(cls, *_: Any) -> dict[str, Any]:
        return {"description": "session data"}

    def __reduce__(self) -> tuple[Any, ...]:
        # Where it is held is nothing to copy or to pickle.
        return _copied, (self.snapshot(), tuple(self._private))


def _copied(data: Data, private: Collection[str]) -> SessionData:
    return SessionData.over(_OwnHolder(data, DEFAULT_MAX_BYTES), private)
