"""How a session behaves: one frozen, validated value.

Rules:

- Options are checked when they are made; an options value that exists is a valid one.
- Text is accepted for every enumeration (`"override"` for `HistoryPolicy.OVERRIDE`).
- Options hold no callable and no program: they can always be written out.
"""

from __future__ import annotations

import difflib
import enum
import functools
from collections.abc import Iterable, Mapping, Set
from typing import Any, Final, TypeVar

import msgspec

from dspy_session.core.data import DEFAULT_MAX_BYTES
from dspy_session.core.window import View
from dspy_session.errors import OptionError

__all__ = [
    "CopyMode",
    "HistoryPolicy",
    "Lock",
    "OnMetricError",
    "Scope",
    "SessionOptions",
    "make_options",
]


class HistoryPolicy(enum.StrEnum):
    """What a call does with a history that the caller passes explicitly."""

    OVERRIDE = "override"
    """Use it for this call and record nothing: how optimizers replay examples."""
    USE_IF_PROVIDED = "use_if_provided"
    """Use it for this call only, and record the turn."""
    REPLACE_SESSION = "replace_session"
    """Begin anew with it as the seed, and record the turn; a failing call changes nothing."""


class OnMetricError(enum.StrEnum):
    """What a metric that raises does to scoring."""

    ZERO = "zero"
    """The turn scores 0.0, and a warning is logged."""
    RAISE = "raise"
    """`MetricError`, from the metric's own error."""


class CopyMode(enum.StrEnum):
    """What is done with a program that is given to a session."""

    DEEP = "deep"
    """The session works on a deep copy."""
    SHALLOW = "shallow"
    """The session works on a new root object that shares its predictors with the given one."""
    NONE = "none"
    """The session works on the given object itself."""


class Lock(enum.StrEnum):
    """Whether turns of one session wait for each other."""

    NONE = "none"
    """They may overlap; each sees what was there when it began, and none is lost."""
    THREAD = "thread"
    """One at a time, for threads that call the session."""
    ASYNC = "async"
    """One at a time, for tasks that await `acall`."""


class Scope(enum.StrEnum):
    """Which predictors see the conversation."""

    PROGRAM = "program"
    """Those of the program, and copies of them."""
    ALL = "all"
    """Whichever runs during a turn: also what the program makes on the fly, and judges."""


class SessionOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a session; `sessionify` takes them as keywords of the same names.

    Collections of names are kept as frozensets, and text for an enumeration as its member.

    Attributes:
        history_field: The name of the history input, in calls and in examples.
        max_turns: At most this many of the latest turns are shown to the model; None for all, 0 for
            none. The seed is always shown.
        max_stored_turns: At most this many of the latest turns are kept; None for all.
        exclude_fields: Inputs and outputs that are recorded but never shown in later prompts.
        history_input_fields: If given, the only inputs shown in later prompts.
        history_policy: What an explicit `history=` does, see `HistoryPolicy`.
        on_metric_error: What a raising metric does, see `OnMetricError`.
        strict_history_annotation: Accept only fields annotated exactly `dspy.History` as the
            program's own history field.
        copy_mode: What is done with a given program, see `CopyMode`.
        lock: Whether turns wait for each other, see `Lock`.
        scope: Which predictors see the conversation, see `Scope`.
        show_details: Whether later prompts that show the conversation as readable text also show
            run details, such as an agent's `trajectory`.
        max_stored_attempts: At most this many of the latest failed and cancelled calls are kept for
            inspection; None for all.
        private_data: Keys of session data that leave by no export, protocol or prompt.
        redact_fields: Inputs and outputs that are recorded, and leave by no export, example,
            protocol or prompt.
        max_data_bytes: How large the session data may become, in bytes of JSON; None for any size.
        summarize_after_turns: Summarise the conversation before a call that would find more turns
            than this; None for never.
        summarize_after_tokens: Summarise it before a call that would show more tokens of it than
            this; None for never.
        summarize_keep: How many of the newest turns an automatic summary leaves as they are.

    Raises:
        OptionError: A value is not one the option can have.

    Example:
        >>> SessionOptions(max_turns=10, exclude_fields={"context"}).max_turns
        10
    """

    history_field: str = "history"
    max_turns: int | None = None
    max_stored_turns: int | None = None
    exclude_fields: Set[str] = frozenset()
    history_input_fields: Set[str] | None = None
    history_policy: HistoryPolicy = HistoryPolicy.OVERRIDE
    on_metric_error: OnMetricError = OnMetricError.ZERO
    strict_history_annotation: bool = False
    copy_mode: CopyMode = CopyMode.DEEP
    lock: Lock = Lock.NONE
    scope: Scope = Scope.PROGRAM
    show_details: bool = False
    max_stored_attempts: int | None = 8
    private_data: Set[str] = frozenset()
    redact_fields: Set[str] = frozenset()
    max_data_bytes: int | None = DEFAULT_MAX_BYTES
    summarize_after_turns: int | None = None
    summarize_after_tokens: int | None = None
    summarize_keep: int = 0

    def __post_init__(self) -> None:
        """Check and normalise every option."""
        set_ = msgspec.structs.force_setattr
        if not isinstance(self.history_field, str) or not self.history_field.isidentifier():
            raise OptionError(
                f"history_field must be a Python identifier, not {self.history_field!r}."
            )
        set_(self, "history_field", str.__str__(self.history_field))
        for name in _COUNTS:
            set_(self, name, _count(name, getattr(self, name)))
        if self.summarize_keep is None:
            raise OptionError("summarize_keep must be a whole number of turns from 0 up, not None.")
        for name in ("exclude_fields", "private_data", "redact_fields"):
            given = getattr(self, name)
            set_(self, name, _names(name, () if given is None else given))
        if self.history_input_fields is not None:
            only = _names("history_input_fields", self.history_input_fields)
            set_(self, "history_input_fields", only)
        set_(self, "history_policy", _member("history_policy", HistoryPolicy, self.history_policy))
        set_(
            self, "on_metric_error", _member("on_metric_error", OnMetricError, self.on_metric_error)
        )
        set_(self, "copy_mode", _member("copy_mode", CopyMode, self.copy_mode))
        set_(self, "lock", _member("lock", Lock, self.lock))
        set_(self, "scope", _member("scope", Scope, self.scope))
        for name in ("strict_history_annotation", "show_details"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} must be True or False, not {getattr(self, name)!r}.")

    @property
    def view(self) -> View:
        """Which fields of past turns later prompts show."""
        only = self.history_input_fields
        inputs = None if only is None else frozenset(only)
        hidden = frozenset(self.exclude_fields).union(self.redact_fields)
        return _view(hidden, inputs, self.show_details)

    def replace(self, **changes: Any) -> SessionOptions:
        """Return these options with some changed; see `make_options` for what is refused."""
        return make_options({**msgspec.structs.asdict(self), **_without_alias(changes)})


@functools.lru_cache(maxsize=64)
def _view(exclude: frozenset[str], inputs: frozenset[str] | None, details: bool) -> View:
    return View(
        exclude=exclude, inputs=inputs, details=details
    )  # one for all turns under the same options


def make_options(given: Mapping[str, Any]) -> SessionOptions:
    """Return the options that keywords describe.

    Args:
        given: Option names and values; `input_field_override` is an alias of
            `history_input_fields`.

    Raises:
        OptionError: A keyword is unknown, an alias comes beside its option, or a value is wrong.

    Example:
        >>> make_options({"input_field_override": ["question"]}).history_input_fields
        frozenset({'question'})
    """
    values = _without_alias(given)
    known = SessionOptions.__struct_fields__
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), (*known, _ALIAS), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise OptionError(
                f"Unknown option {name!r}.{hint} The options are: {', '.join(known)}."
            )
    return SessionOptions(**values)


_COUNTS: Final = (
    "max_turns",
    "max_stored_turns",
    "max_stored_attempts",
    "max_data_bytes",
    "summarize_after_turns",
    "summarize_after_tokens",
    "summarize_keep",
)
_ALIAS: Final = "input_field_override"


def _without_alias(given: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(given)
    if _ALIAS in values:
        override = values.pop(_ALIAS)
        if values.get("history_input_fields") is None:
            values["history_input_fields"] = override
        elif override is not None:
            raise OptionError(f"{_ALIAS} is an alias of history_input_fields; give one of the two.")
    return values


_Enum = TypeVar("_Enum", bound=enum.StrEnum)


def _member(option: str, kind: type[_Enum], value: Any) -> _Enum:
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(repr(member.value) for member in kind)
        raise OptionError(f"{option} must be one of {choices}, not {value!r}.") from None


def _count(option: str, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise OptionError(
            f"{option} must be None (no limit) or a whole number from 0 up, not {value!r}."
        )
    return int(value)


def _names(option: str, value: Any) -> frozenset[str]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise OptionError(f"{option} must be a collection of field names, not {value!r}.")
    names = tuple(value)
    for name in names:
        if not isinstance(name, str):
            raise OptionError(f"{option} must hold field names (text), not {name!r}.")
    return frozenset(str.__str__(name) for name in names)
