"""How session data is read, be it a value or a place where a value is held.

Everything that is handed out is a copy: changing it changes nothing here.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from dspy_session.core.json_values import decoded, read_as
from dspy_session.errors import DataKeyError

if TYPE_CHECKING:
    from dspy_session.core.data import Data

__all__ = ["ReadableData", "no_such_key"]

_Value = TypeVar("_Value")
_Default = TypeVar("_Default")

_HIDDEN: Final = "[private]"


class ReadableData(Mapping[str, Any]):
    """How data is read, be it a value or a place where a value is held."""

    __slots__ = ()

    def snapshot(self) -> Data:
        """Return the data as it is now, as a value."""
        raise NotImplementedError

    @overload
    def get(self, key: str, default: None = None) -> Any: ...
    @overload
    def get(self, key: str, default: Any) -> Any: ...
    @overload
    def get(self, key: str, default: None = None, *, as_type: type[_Value]) -> _Value | None: ...
    @overload
    def get(self, key: str, default: _Default, *, as_type: type[_Value]) -> _Value | _Default: ...
    @overload
    def get(self, key: str, default: Any = None, *, as_type: Any) -> Any: ...
    def get(self, key: str, default: Any = None, *, as_type: Any = None) -> Any:
        """Return a copy of the value under a key.

        Changing the copy changes nothing here: set it again.

        Args:
            key: The key.
            default: What to return, as it is, if there is no such key.
            as_type: What to read the value as: a dataclass, TypedDict, msgspec struct, pydantic
                model, enum, or a type made of those, such as `list[Item]`. None reads plain JSON.

        Raises:
            DataError: The value is not of that type, or the key is not text.

        Example:
            >>> from dspy_session import SessionData
            >>> data = SessionData({"cart": ["tea"]})
            >>> data.get("cart", as_type=list[str]), data.get("user", "nobody")
            (['tea'], 'nobody')
        """
        raw = self.snapshot().raw(key)
        if raw is None:
            return default
        return decoded(raw) if as_type is None else read_as(raw, as_type, key, self._hides(key))

    def _hides(self, key: str) -> bool:  # noqa: ARG002  # for those who know what is private
        """Whether what stands under a key is in no error and no `repr`."""
        return False

    def has(self, key: str) -> bool:
        """Whether there is such a key.

        Args:
            key: The key.

        Raises:
            DataError: The key is not text.
        """
        return self.snapshot().raw(key) is not None

    def keys(self) -> KeysView[str]:
        """The keys, in the order in which they came; as of now."""
        return KeysView(self.snapshot())

    def values(self) -> ValuesView[Any]:
        """Copies of the values, in the order of the keys; as of now."""
        return ValuesView(self.snapshot())

    def items(self) -> ItemsView[str, Any]:
        """Keys and copies of their values; as of now."""
        return ItemsView(self.snapshot())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict of JSON values, a copy."""
        return {key: decoded(raw) for key, raw in self.snapshot().raws()}

    @property
    def is_empty(self) -> bool:
        """Whether there is no key."""
        return not len(self)

    @property
    def size(self) -> int:
        """How many bytes the data has as JSON."""
        return self.snapshot().size

    def __getitem__(self, key: str) -> Any:
        raw = self.snapshot().raw(key)
        if raw is None:
            raise no_such_key(key)
        return decoded(raw)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key != "" and self.has(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.snapshot())

    def __len__(self) -> int:
        return len(self.snapshot())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ReadableData):
            return self.snapshot() == other.snapshot()
        if isinstance(other, Mapping):
            return self.to_dict() == other
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # equal by content, which may change or be large

    def __repr__(self) -> str:
        shown = {k: _HIDDEN if self._hides(k) else value for k, value in self.to_dict().items()}
        return f"{type(self).__name__}({shown!r})"


def no_such_key(key: str) -> DataKeyError:
    """Return the error for a key that is not there.

    Args:
        key: The key.
    """
    return DataKeyError(
        f"There is no {key!r} in the session data; get({key!r}, default) asks without an error."
    )
