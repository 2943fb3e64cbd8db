"""What a call sees of the past: exchanges, a window over them, and a view that filters fields.

Rules:

- An `Exchange` is what one turn contributes to later prompts. It never changes.
- A `Window` is a view on a persistent sequence of exchanges, never on turns: trimming old turns
  really frees them, and a window costs the same whatever its length.
- What a window shows never changes, whatever happens later to the conversation or its options.
- Positions in a window are absolute: they do not move when older turns are trimmed.
- An exchange that was erased keeps its position, and is not shown.

This module knows neither turns nor states, nor how a conversation is rendered for a model.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from itertools import filterfalse, zip_longest
from operator import attrgetter
from typing import Any, Final

import msgspec

from dspy_session.core.copies import copy_fields, private_copy
from dspy_session.core.vectors import PVector, vector
from dspy_session.errors import CallError, HistoryError

__all__ = [
    "ALL_SHOWN",
    "CHAT_MESSAGES",
    "ERASED",
    "WAITED_MESSAGES",
    "Epoch",
    "Exchange",
    "PlainHistory",
    "View",
    "Window",
    "set_history_type",
]


CHAT_MESSAGES: Final = "chat_messages"
"""The run detail that keeps the chat messages which a turn came from, as they came."""
ERASED: Final = "erased"
"""The only detail of an exchange whose fields were erased: the hash that they had, as text."""
WAITED_MESSAGES: Final = "waited_messages"
"""The run detail that keeps the chat messages which waited when a turn was recorded by a call."""


class View(msgspec.Struct, frozen=True):
    """Which fields of an exchange are shown.

    Attributes:
        exclude: Names never shown, be they inputs or outputs, of turns or of the seed.
        inputs: If not None, the only *inputs* shown. Outputs, and messages of a seed, whose fields
            are not known to be inputs or outputs, are not affected.
        details: Whether readable text shows run details too; messages never do.
    """

    exclude: frozenset[str] = frozenset()
    inputs: frozenset[str] | None = None
    details: bool = False


ALL_SHOWN: Final = View()
"""The view that shows every field, and no details."""


_blank: Final = object.__new__


@functools.lru_cache(maxsize=1024)
def _shape(
    inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return inputs, outputs


_SAID_AGAIN: Final = (CHAT_MESSAGES, WAITED_MESSAGES)
_NOTHING: Final[Mapping[str, Any]] = {}  # shared by all that have none; nobody changes it


class Exchange:
    """The inputs, the outputs and the run details of one turn, as private copies.

    Details are what a run left beside its outputs, such as the steps of an agent's tool loop. They
    are part of no message. A message of a seed history is an exchange too: there, all fields
    are kept as outputs.

    Exchanges are compared by identity, so that what was made from one can be kept beside it;
    use `same_as` to compare contents.
    """

    __slots__ = ("__weakref__", "_details", "_inputs", "_outputs", "erased", "shape")

    shape: tuple[tuple[str, ...], tuple[str, ...]]
    """The names of the inputs and of the outputs; exchanges of one shape share one tuple."""
    erased: bool
    """Whether its fields were erased in a store; windows pass over it."""

    def __init__(
        self,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        details: Mapping[str, Any] = _NOTHING,
    ) -> None:
        """Copy all three; see `copy_fields` for what is refused."""
        self._inputs = copy_fields(inputs, "inputs")
        self._outputs = copy_fields(outputs, "outputs")
        self._details = copy_fields(details, "details") if details else _NOTHING
        self.erased = bool(self._details) and _is_erased(self)

    @classmethod
    def owning(
        cls, inputs: dict[str, Any], outputs: dict[str, Any], details: Mapping[str, Any]
    ) -> Exchange:
        """Return an exchange of fields that nobody else has, such as those that were just read.

        Args:
            inputs: The inputs, under names of text.
            outputs: The outputs, likewise.
            details: The details, likewise.
        """
        made = _blank(cls)
        made._inputs = inputs
        made._outputs = outputs
        made._details = details or _NOTHING
        made.erased = bool(details) and _is_erased(made)
        return made

    def __getattr__(self, name: str) -> Any:
        """Find the shape at the first look; most of what is read is rendered by nobody."""
        if name != "shape":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.shape = _shape(tuple(self._inputs), tuple(self._outputs))
        return self.shape

    @property
    def inputs(self) -> dict[str, Any]:
        """A copy of the inputs, in written order."""
        return {name: private_copy(value) for name, value in self._inputs.items()}

    @property
    def outputs(self) -> dict[str, Any]:
        """A copy of the outputs, in written order."""
        return {name: private_copy(value) for name, value in self._outputs.items()}

    @property
    def details(self) -> dict[str, Any]:
        """A copy of the run details, in written order."""
        return {name: private_copy(value) for name, value in self._details.items()}

    @property
    def parts(self) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
        """Inputs, outputs and details, not as copies: for writing out, not for handing out."""
        return self._inputs, self._outputs, self._details

    def with_outputs(self, outputs: Mapping[str, Any]) -> Exchange:
        """Return an exchange of the same inputs and details, and other outputs."""
        return Exchange(self._inputs, outputs, _NOTHING if self.erased else self._details)

    def without(self, names: Set[str]) -> Exchange:
        """Return an exchange without some of its inputs, outputs and details.

        With an input or an output go the details that say the same once more: the chat messages
        that it came from, the messages that an agent exchanged in its run.

        Args:
            names: The names; those that it has not are passed over.
        """
        said = {*self._inputs, *self._outputs}
        hidden = {*names, *self._said_again()} if not said.isdisjoint(names) else names
        if self.erased or hidden.isdisjoint((*said, *self._details)):
            return self
        return Exchange(
            *(
                {name: value for name, value in fields.items() if name not in hidden}
                for fields in (self._inputs, self._outputs, self._details)
            )
        )

    def _said_again(self) -> set[str]:
        """The names of the details that hold messages, in which the fields stand once more."""
        said = {*self._inputs, *self._outputs}
        return {
            name
            for name, value in self._details.items()
            if name in _SAID_AGAIN or _has_message_of(value, said)
        }

    def shown(self, view: View) -> dict[str, Any]:
        """Return the fields that `view` shows, inputs first.

        The dict is new, its values are the exchange's own: for rendering, not for handing out.
        """
        exclude, only = view.exclude, view.inputs
        fields = {
            name: value
            for name, value in self._inputs.items()
            if name not in exclude and (only is None or name in only)
        }
        fields.update((n, v) for n, v in self._outputs.items() if n not in exclude)
        return fields

    def told(self, view: View) -> dict[str, Any]:
        """Return the fields that readable text shows: those of `shown`, and perhaps the details.

        A field keeps its value where a detail has the same name. Where a field is hidden, so are
        the details in which it stands once more.
        """
        fields = self.shown(view)
        if view.details:
            whole = len(fields) == len({*self._inputs, *self._outputs})
            hidden = {*view.exclude, *(_SAID_AGAIN if whole else self._said_again())}
            for name, value in self._details.items():
                if name not in hidden:
                    fields.setdefault(name, value)
        return fields

    def same_as(self, other: Exchange) -> bool:
        """Whether both have equal inputs, outputs and details, in the same order."""
        return self is other or (
            list(self._inputs.items()) == list(other._inputs.items())
            and list(self._outputs.items()) == list(other._outputs.items())
            and list(self._details.items()) == list(other._details.items())
        )

    def __copy__(self) -> Exchange:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Exchange:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Exchange, (self._inputs, self._outputs, self._details)

    def __repr__(self) -> str:
        details = f", details={self._details!r}" if self._details else ""
        return f"Exchange(inputs={self._inputs!r}, outputs={self._outputs!r}{details})"


_HASH: Final = re.compile("[0-9a-f]{64}")


def _is_erased(exchange: Exchange) -> bool:
    inputs, outputs, details = exchange.parts
    return (
        len(details) == 1
        and not inputs
        and not outputs
        and isinstance(hashed := details.get(ERASED), str)
        and _HASH.fullmatch(hashed) is not None
    )


def _has_message_of(detail: Any, fields: Set[str]) -> bool:
    return isinstance(detail, list) and any(
        isinstance(part, Mapping) and not fields.isdisjoint(part) for part in detail
    )


EMPTY: Final[PVector[Exchange]] = vector()
_erased: Final = attrgetter("erased")


class Epoch(msgspec.Struct, frozen=True, eq=False):
    """A stretch of a conversation's life in which no turn was replaced; compared by identity.

    Law: if two logs of one epoch have the same exchange at one position, then they agree at all
    earlier positions that both have. For within an epoch a conversation and its forks only append.

    Attributes:
        number: How many epochs came before it.
    """

    number: int = 0


FIRST_EPOCH: Final = Epoch()


class PlainHistory(msgspec.Struct, frozen=True):
    """What `Window.history` returns while DSPy is not loaded: the same messages, in a plain value.

    Attributes:
        messages: One dict of field values per past exchange, oldest first.
    """

    messages: list[dict[str, Any]]

    def __repr__(self) -> str:
        return f"History(messages={self.messages!r})"


_history_type: Callable[[list[dict[str, Any]]], Any] = PlainHistory


def set_history_type(make: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Say what `Window.history` returns; `dspy_session.program` registers `dspy.History`.

    Args:
        make: From the messages to the value that is handed out.
    """
    global _history_type
    _history_type = make


class Window(msgspec.Struct, frozen=True, eq=False):
    """The past exchanges that one call sees: a seed, then a stretch of the conversation.

    Attributes:
        seed: What came before the first turn.
        log: The conversation's exchanges when the window was made; position `offset` comes first.
        offset: The absolute position of `log[0]`.
        start: The absolute position of the first exchange shown.
        stop: The absolute position after the last exchange shown.
        epoch: Which stretch of the conversation's life `log` belongs to.
        view: Which fields are shown.
    """

    seed: tuple[Exchange, ...] = ()
    log: PVector[Exchange] = EMPTY
    offset: int = 0
    start: int = 0
    stop: int = 0
    epoch: Epoch = FIRST_EPOCH
    view: View = View()

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Exchange]:
        """The exchanges that are shown, oldest first."""
        yield from self.seed
        first, last = self.start - self.offset, self.stop - self.offset
        if first == 0 and last == len(self.log):
            yield from filterfalse(_erased, self.log)
        else:
            yield from filterfalse(_erased, (self.log[at] for at in range(first, last)))

    def messages(self) -> list[dict[str, Any]]:
        """Return the shown fields of each exchange, oldest first, as copies in written order."""
        return [
            {name: private_copy(value) for name, value in exchange.shown(self.view).items()}
            for exchange in self
        ]

    def history(self) -> Any:
        """Return the messages as a `dspy.History` (a `PlainHistory` while DSPy is not loaded)."""
        return _history_type(self.messages())

    def same_as(self, other: Window) -> bool:
        """Whether both show equal messages."""
        return self is other or all(
            (mine is theirs and self.view == other.view)
            or (
                mine is not None
                and theirs is not None
                and list(mine.shown(self.view).items()) == list(theirs.shown(other.view).items())
            )
            for mine, theirs in zip_longest(self, other)
        )

    def __copy__(self) -> Window:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Window:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # By itself, a window carries only what it shows; a whole state is packed with sharing.
        return _standalone, (tuple(self), self.view)


def _standalone(exchanges: tuple[Exchange, ...], view: View) -> Window:
    return Window(seed=exchanges, view=view)


def seed_exchanges(messages: Iterable[Mapping[str, Any]]) -> tuple[Exchange, ...]:
    """Return the exchanges of a seed history given as dicts of fields, as private copies.

    Raises:
        HistoryError: `messages` are no sequence of dicts of fields.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable):
        raise HistoryError(
            "The messages of a history must be a list of dicts of fields, "
            f"not {type(messages).__name__}."
        )
    return tuple(_seed_exchange(number, message) for number, message in enumerate(messages))


def _seed_exchange(number: int, message: Mapping[str, Any]) -> Exchange:
    try:
        return Exchange({}, message)
    except CallError as error:
        raise HistoryError(
            f"Message {number} of a history must be a dict of fields such as "
            f'{{"question": "Hi", "answer": "Hello."}}, not {message!r}.'
        ) from error
