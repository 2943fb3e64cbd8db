"""The face of session data that is held somewhere and changes there: like a dict, and typed.

A session holds data in its conversation, a turn in its draft, a test of a tool nowhere else.
`SessionData` is the same for all of them: it knows its holder, and nothing of where that is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from dspy_session.core.data import DEFAULT_MAX_BYTES, DELETED, EMPTY_DATA, Data, as_data
from dspy_session.core.data_reading import ReadableData, no_such_key
from dspy_session.core.json_values import encoded_key
from dspy_session.errors import OptionError

__all__ = ["DataHolder", "SessionData"]


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
