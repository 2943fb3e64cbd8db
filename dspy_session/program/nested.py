"""Sessions inside a program that itself runs in a turn: their turns belong to the outer one.

While a turn runs, the states of the sessions within its program live here, and are folded into the
outer conversation when the turn is recorded, or not at all. So undoing the outer turn takes theirs
along, a turn that fails leaves no trace in them, and `step` stays pure although the program holds
sessions.

A session is known by being the very object in the program. Copies that DSPy makes during the turn
(the attempts of BestOfN) begin where the original is, and are forgotten with the turn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import dspy

from dspy_session.core.flat import handed_on
from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState
from dspy_session.errors import SessionError
from dspy_session.program.anatomy import walk

__all__ = ["Nestable", "NestedStates", "inner_options", "told_outside"]

_Result = TypeVar("_Result")
_Transition = Callable[[SessionState], tuple[Any, SessionState]]


class Nestable:
    """A module with a conversation of its own, which a turn around it takes over.

    Attributes:
        _state: The conversation while no turn runs around it.
        _options: How it behaves.
    """

    _state: SessionState
    _options: SessionOptions


class _Inner:
    """One session during the turn: its state, and the moves that led there."""

    def __init__(self, session: Nestable, state: SessionState) -> None:
        self.session = session  # kept alive, so that its identity stays its own
        self.began = self.state = state
        self.moves: list[_Transition] = []


class NestedStates:
    """The conversations of the sessions within one running turn's program.

    Args:
        program: The program that runs.
        before: Their states when the turn began, by path in the program; a session that is not
            among them begins with its own.
    """

    def __init__(self, program: dspy.Module, before: Mapping[str, SessionState]) -> None:
        self._program, self._before = program, before
        self._paths: dict[int, str] | None = None
        self._by_id: dict[str | None, Nestable] = {}
        self._inner: dict[int, _Inner] = {}
        self._mutex = threading.RLock()
        self.announcements: list[Callable[[], object]] = []

    def holds(self, session: Nestable) -> bool:
        """Whether the program holds this session, or the one that it is a copy of."""
        with self._mutex:
            return self._original(session) is not None

    def state_of(self, session: Nestable) -> SessionState:
        """Return where the session's conversation stands in this turn."""
        with self._mutex:
            return self._of(session).state

    def move(
        self, session: Nestable, transition: Callable[[SessionState], tuple[_Result, SessionState]]
    ) -> _Result:
        """Take a session of the program to its next state, within this turn.

        Args:
            session: The session.
            transition: From its state to a result and the next state.
        """
        with self._mutex:
            inner = self._of(session)
            result, inner.state = transition(inner.state)
            inner.moves.append(transition)
        return result

    def announce(self) -> None:
        """Tell the hooks of the sessions, now that their turns are recorded."""
        for tell in self.announcements:
            tell()

    def folded(self, newest: Mapping[str, SessionState] | None) -> dict[str, SessionState]:
        """Return the states that moved, by path, as of the end of the turn.

        Args:
            newest: The nested states of the outer conversation as it is now. Where an overlapping
                turn came first, this turn's moves are made again on top of what that one left. None
                if what came meanwhile does not count, for the turn stands in for an earlier one.
        """
        with self._mutex:
            paths = self._paths or {}
            return {
                paths[key]: self._rebased(inner, (newest or {}).get(paths[key]))
                for key, inner in self._inner.items()
                if key in paths and inner.moves
            }

    def _rebased(self, inner: _Inner, newest: SessionState | None) -> SessionState:
        if newest is None or newest is inner.began:
            return inner.state
        state = newest
        try:
            for move in inner.moves:
                _, state = move(state)
        except SessionError:  # it went back to a turn, say, that the other one took away
            return inner.state
        return state

    def _of(self, session: Nestable) -> _Inner:
        known = self._inner.get(id(session))
        if known is None:
            original = self._original(session)
            if original is None or original is session:
                path = (self._paths or {}).get(id(session), "")
                state = self._before.get(path, session._state)
            else:
                state = self._of(original).state
            known = self._inner[id(session)] = _Inner(session, state)
        return known

    def _original(self, session: Nestable) -> Nestable | None:
        """The session of the program that this one is, or is a copy of."""
        if self._paths is None:
            inside = [(path, m) for path, m in walk(self._program) if isinstance(m, Nestable)]
            self._paths = {id(module): path for path, module in inside}
            for _, module in inside:
                self._by_id.setdefault(module._state.id, module)
        if id(session) in self._paths:
            return session
        return self._by_id.get(session._state.id)


def inner_options(program: dspy.Module) -> list[SessionOptions]:
    """Return the options of the sessions within a program.

    Args:
        program: The program.
    """
    return [module._options for _, module in walk(program) if isinstance(module, Nestable)]


def told_outside(
    state: SessionState, program: dspy.Module, options: SessionOptions
) -> SessionState:
    """Return a conversation as it may be handed on, those of the sessions in its program included.

    What one of them keeps to itself is left out of all, for the others may have been told it.

    Args:
        state: The conversation.
        program: The program that it is held with.
        options: The options of the session around it.
    """
    everyone = [options, *inner_options(program)]
    return handed_on(
        state,
        frozenset().union(*(one.private_data for one in everyone)),
        frozenset().union(*(one.redact_fields for one in everyone)),
    )
