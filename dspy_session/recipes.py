"""How a manager's sessions are made: over one program, which they share as forks do.

What a session is made with comes from the manager, a template and the call that opens it; the later
beats the earlier, and metadata is merged. Some of it says what a conversation *begins* with: one
that is stored has its own. The rest, options and code, is not stored, and given at each opening.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import dspy
import msgspec

from dspy_session.core.data import as_data
from dspy_session.core.options import SessionOptions, make_options
from dspy_session.core.state import SessionState
from dspy_session.errors import CallError, OptionError
from dspy_session.journal.keeping import Journal
from dspy_session.session import Session
from dspy_session.templates import SessionTemplate

__all__ = ["Recipe"]

_BEGINNING: Final = ("initial_history", "messages", "instructions", "data", "metadata")
_OF_THE_MANAGER: Final = {
    "session_id": "each session is opened by its own",
    "copy_mode": "the sessions of a manager share one program: give it to the manager",
}
_DEFAULTS: Final = SessionOptions()


class Recipe:
    """How one session is made.

    Args:
        program: The program.
        manager: What every session of the manager has, as keywords of `sessionify`.
        given: The template's arguments, and keywords that beat all others.
        template: What the session begins with, and its hooks and options.

    Raises:
        OptionError: A keyword is wrong.
    """

    def __init__(
        self,
        program: dspy.Module,
        manager: Mapping[str, Any],
        given: Mapping[str, Any],
        template: SessionTemplate | None = None,
    ) -> None:
        for name, reason in _OF_THE_MANAGER.items():
            if name in given:
                raise OptionError(f"{name} cannot be given here: {reason}.")
        named = _arguments_of(template)
        self._program, self._template = program, template
        self._arguments = {name: given[name] for name in given if name in named}
        self._given = {name: given[name] for name in given if name not in named}
        self._first = {**manager, **self._given}
        self._attached = _attached({**manager, **_chosen_by(template), **self._given})
        self._metadata = tuple(as_data(of.get("metadata")) for of in (manager, self._given))
        self._copy_mode = manager.get("copy_mode", _DEFAULTS.copy_mode)

    @property
    def options(self) -> SessionOptions:
        """The session's options."""
        names = (*SessionOptions.__struct_fields__, "input_field_override")
        return make_options({n: value for n, value in self._attached.items() if n in names})

    def first_state(self, id: str) -> SessionState:
        """Return what a new session begins with.

        Args:
            id: Its id.

        Raises:
            OptionError: A keyword is wrong, or an argument of the template is missing.
            SessionError: As from `sessionify`.
        """
        of_manager, of_call = self._metadata
        if self._template is None:
            keywords = {**self._attached, **_beginning(self._first)}
            keywords["metadata"] = of_manager.changed(of_call)
            return Session(self._program, session_id=id, **keywords).state
        template = self._template
        if callable(template.instructions):
            template = template.replace(instructions=None)
        state = template.state(id, **self._arguments)
        keywords = {**self._attached, **_beginning(self._given)}
        keywords["metadata"] = of_manager.changed(state.metadata).changed(of_call)
        return Session.from_state(state, self._program, **keywords).state

    def changed(self, state: SessionState) -> SessionState:
        """Return a stored conversation with what is given of a beginning in place of its own.

        Args:
            state: The conversation.

        Raises:
            CallError: `messages` or `initial_history` is given.
            OptionError: A keyword is wrong.
        """
        Session(self._program, **self._attached)  # refuses what is wrong before anything is stored
        given = {
            name: value for name, value in _beginning(self._given).items() if value is not None
        }
        if not given:
            return state
        return Session.from_state(state, self._program, copy_mode="none", **given).state

    def session(self, journal: Journal, *, changed: bool = False) -> Session:
        """Return the session that a journal is bound to.

        Args:
            journal: The journal.
            changed: Whether to go on from what `changed` makes of it.

        Raises:
            CallError: As `changed`.
        """
        given = _beginning(self._given) if changed else {}
        _refuse_said(given)
        session = Session.kept(journal, self._program, **{**self._attached, **given})
        session._shared = True  # whatever changes the program through it gets a copy first
        for options in ("_chosen", "_options"):  # and another program is copied, or not
            setattr(session, options, getattr(session, options).replace(copy_mode=self._copy_mode))
        return session


def _beginning(keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: keywords[name]
        for name in _BEGINNING
        if name in keywords and not (name == "instructions" and callable(keywords[name]))
    }


def _refuse_said(given: Mapping[str, Any]) -> None:
    for name in ("initial_history", "messages"):
        if given.get(name) is not None:
            raise CallError(f"{name} cannot be given here: the session is stored with its own.")


def _attached(keywords: Mapping[str, Any]) -> dict[str, Any]:
    begins = _beginning(keywords)
    rest = {name: value for name, value in keywords.items() if name not in begins}
    return {**rest, "copy_mode": "none"}


def _arguments_of(template: SessionTemplate | None) -> frozenset[str]:
    if template is None:
        return frozenset()
    if not isinstance(template, SessionTemplate):
        raise OptionError(f"template must be a SessionTemplate, not {type(template).__name__}.")
    return frozenset(template.arguments)


def _chosen_by(template: SessionTemplate | None) -> dict[str, Any]:
    """What a template says of options and code, and that its instructions beat the manager's."""
    if template is None:
        return {}
    options = msgspec.structs.asdict(template.options)
    chosen = {n: value for n, value in options.items() if value != getattr(_DEFAULTS, n)}
    if template.hooks is not None:
        chosen["hooks"] = template.hooks
    if template.instructions is not None:
        chosen["instructions"] = template.instructions
    return chosen
