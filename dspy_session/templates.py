"""Templates: what sessions of one kind start with, as a value.

A template holds instructions, session data, a seed, metadata, hooks and options, and starts
sessions from them, or states for `step`. Where its texts say `{subject}`, and `subject` is one of
its arguments, each session has its own.

Rules:

- A template never changes, and what is started from it shares nothing that could be changed.
- Only declared arguments are filled in, and only once: other braces stay as they are, and so do
  braces within what was filled in.
"""

from __future__ import annotations

import difflib
import keyword
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NoReturn

import dspy
import msgspec

from dspy_session.attached import InstructionsOf
from dspy_session.core.data import Data, as_data
from dspy_session.core.options import SessionOptions, make_options
from dspy_session.core.profile import Instructions, Profile, as_instructions
from dspy_session.core.state import SessionState, start
from dspy_session.core.window import Exchange, seed_exchanges
from dspy_session.errors import OptionError
from dspy_session.program.hooks import Hooks, as_hooks
from dspy_session.session import Session

__all__ = ["SessionTemplate"]

_NAME_IN_METADATA: Final = "template"
_TAKEN: Final = frozenset({"self", "session_id"})


class SessionTemplate:
    """What sessions of one kind start with; each argument can be read as an attribute.

    Args:
        name: The template's name; a session that it started has it in its metadata, as `template`.
        instructions: What every predictor is told, as for `sessionify`: text, `Instructions`, or a
            callable of the state, which is not filled in.
        data: The session data.
        seed: What came before the first turn: a dict of field values per past exchange, oldest
            first. It reads as a tuple of exchanges.
        metadata: The metadata.
        hooks: What runs around each turn of a session. `step` takes hooks itself.
        options: The options; also a mapping from their names to their values.
        arguments: What differs from session to session: names, or a mapping from names to
            defaults, where None stands for no default. Where a text of the instructions, the data,
            the metadata or the seed says `{subject}`, the argument `subject` is filled in. The keys
            of data and metadata and the names of fields stay as they are.

    Raises:
        OptionError: An argument has a name that it cannot have, or another part is not what it has
            to be.
        DataError: `data` or `metadata` hold something that JSON cannot.
        HistoryError: `seed` is not a list of dicts of fields.

    Example:
        >>> tutoring = SessionTemplate(
        ...     name="tutoring",
        ...     instructions="You are a patient tutor for {subject}.",
        ...     arguments=["subject"],
        ... )
        >>> tutoring.state(subject="Python").instructions.text
        'You are a patient tutor for Python.'
    """

    name: str | None
    instructions: Instructions | InstructionsOf | None
    data: Data
    seed: tuple[Exchange, ...]
    metadata: Data
    hooks: Hooks | None
    options: SessionOptions
    arguments: Data

    def __init__(
        self,
        name: str | None = None,
        *,
        instructions: str | Instructions | InstructionsOf | None = None,
        data: Mapping[str, Any] | None = None,
        seed: Iterable[Mapping[str, Any] | Exchange] = (),
        metadata: Mapping[str, Any] | None = None,
        hooks: Hooks | None = None,
        options: SessionOptions | Mapping[str, Any] | None = None,
        arguments: Iterable[str] | Mapping[str, str | int | float | None] = (),
    ) -> None:
        if name is not None and not isinstance(name, str):
            raise OptionError(f"A template's name must be text, not {type(name).__name__}.")
        chosen = _as_options(options)
        vars(self).update(
            name=name,
            instructions=instructions if callable(instructions) else as_instructions(instructions),
            data=as_data(data, chosen.max_data_bytes),
            seed=_as_seed(seed),
            metadata=as_data(metadata, chosen.max_data_bytes),
            hooks=as_hooks(hooks),
            options=chosen,
            arguments=_as_arguments(arguments),
        )

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(
            f"A template never changes; template.replace({name}=...) makes another."
        )

    def __repr__(self) -> str:
        return f"SessionTemplate({self.name!r}, arguments={list(self.arguments)})"

    def replace(self, **changes: Any) -> SessionTemplate:
        """Return this template with some parts replaced.

        Args:
            **changes: Any of the constructor's keywords.

        Raises:
            OptionError: There is no such keyword.
            SessionError: As the constructor.

        Example:
            >>> SessionTemplate(name="chat").replace(options={"max_turns": 5}).options.max_turns
            5
        """
        _refuse_unknown(changes, vars(self), "part of a template")
        return SessionTemplate(**{**vars(self), **changes})

    def state(self, session_id: str | None = None, **arguments: str | int | float) -> SessionState:
        """Return a conversation for `step` to begin with.

        It holds no hooks and no options: give those of the template to `step`.

        Args:
            session_id: Its id; None for none.
            **arguments: The template's arguments.

        Raises:
            OptionError: An argument is missing or not the template's own, or the instructions are a
                callable, which a state cannot hold.
        """
        if callable(self.instructions):
            raise OptionError(
                "A state cannot hold instructions that are a callable. Take the state of "
                "template.replace(instructions=None), and give step the words of each turn."
            )
        return self._state(session_id, arguments)

    def start(
        self,
        program: dspy.Module,
        /,
        *,
        session_id: str | None = None,
        **arguments: str | int | float,
    ) -> Session:
        """Return a session that starts with what the template holds.

        Args:
            program: Any DSPy program; it is not changed.
            session_id: The session's id; one is made if None.
            **arguments: The template's arguments.

        Raises:
            OptionError: An argument is missing or not the template's own.
            SessionError: As `sessionify`.

        Example:
            >>> template = SessionTemplate(name="chat", data={"cart": []})
            >>> session = template.start(dspy.Predict("question -> answer"))
            >>> session.data["cart"], session.metadata["template"]
            ([], 'chat')
        """
        keywords = msgspec.structs.asdict(self.options)
        if callable(self.instructions):
            keywords["instructions"] = self.instructions
        state = self._state(session_id, arguments)
        return Session.from_state(state, program, hooks=self.hooks, **keywords)

    def _state(self, session_id: str | None, given: Mapping[str, Any]) -> SessionState:
        fill = _filler(self._values(given))
        limit = self.options.max_data_bytes
        named = {} if self.name is None else {_NAME_IN_METADATA: self.name}
        instructions = None
        if isinstance(self.instructions, Instructions):
            text, place = fill(self.instructions.text), self.instructions.place
            instructions = Instructions(text, place)
        return start(
            [fill(exchange.outputs) for exchange in self.seed],
            id=session_id,
            data=as_data(fill(self.data.to_dict()), limit),
            profile=Profile(
                instructions=instructions,
                metadata=as_data({**named, **fill(self.metadata.to_dict())}, limit),
            ),
        )

    def _values(self, given: Mapping[str, Any]) -> dict[str, str]:
        """What is filled in for each declared argument, as text."""
        _refuse_unknown(given, self.arguments, "argument of the template")
        values = {**self.arguments.to_dict(), **given}
        for name, value in values.items():
            if value is None:
                raise OptionError(f"The template needs the argument {name}=...; it has no default.")
            _check_value(name, value)
        return {name: str(value) for name, value in values.items()}


def _filler(values: Mapping[str, str]) -> Callable[[Any], Any]:
    """A function that fills the values in, in all texts that something holds."""
    names = "|".join(map(re.escape, values))
    placeholder = re.compile(rf"\{{({names})\}}") if values else None

    def fill(part: Any) -> Any:
        if placeholder is None:
            return part
        if isinstance(part, str):
            return placeholder.sub(lambda found: values[found[1]], part)
        if isinstance(part, dict):
            return {key: fill(value) for key, value in part.items()}
        if isinstance(part, list):
            return [fill(value) for value in part]
        return part

    return fill


def _as_options(given: SessionOptions | Mapping[str, Any] | None) -> SessionOptions:
    if given is None or isinstance(given, SessionOptions):
        return given or SessionOptions()
    if not isinstance(given, Mapping):
        raise OptionError(
            "options must be SessionOptions or a mapping from their names to values, "
            f"not {type(given).__name__}."
        )
    return make_options(given)


def _as_seed(given: Iterable[Mapping[str, Any] | Exchange]) -> tuple[Exchange, ...]:
    if isinstance(given, tuple) and all(isinstance(part, Exchange) for part in given):
        return given
    return seed_exchanges(given)  # type: ignore[arg-type]  # it refuses what is no mapping


def _as_arguments(given: Iterable[str] | Mapping[str, Any] | Data) -> Data:
    if isinstance(given, Data):
        return given
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise OptionError(
            "arguments must be names, or a mapping from names to defaults, for example "
            f'["subject"]; not {given!r}.'
        )
    defaults = given.items() if isinstance(given, Mapping) else [(name, None) for name in given]
    for name, default in defaults:
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise OptionError(f"An argument's name must be a Python identifier, not {name!r}.")
        if name in _TAKEN:
            raise OptionError(f"No argument can be named {name!r}: the name is taken.")
        if default is not None:
            _check_value(name, default)
    return as_data(dict(defaults))


def _check_value(name: str, value: Any) -> None:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise OptionError(
            f"The argument {name!r} must be text or a number, not {type(value).__name__}."
        )


def _refuse_unknown(given: Iterable[str], known: Iterable[str], what: str) -> None:
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            there = ", ".join(known) or "none"
            raise OptionError(f"{name!r} is no {what}.{hint} There are: {there}.")
