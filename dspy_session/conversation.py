"""A conversation that one can talk about in the past tense: look, move, edit, score, and learn.

A `Conversation` holds the current `SessionState` and swaps it for the next one; everything it does
is a pure function of the core, applied to the newest state under a lock that is held for nothing
else. It knows no program: what runs one is `Session`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import dspy

from dspy_session.core.copies import copy_fields
from dspy_session.core.data import EMPTY_DATA, Data, as_changes
from dspy_session.core.options import SessionOptions
from dspy_session.core.session_data import SessionData
from dspy_session.core.state import SessionState, visible_window
from dspy_session.core.step import commit, prepare, refuse_history_field
from dspy_session.core.transitions import (
    annotate,
    clear,
    redo,
    replace_turn,
    reset,
    rewind,
    truncate,
    undo,
)
from dspy_session.core.turn import Run, Turn
from dspy_session.core.writes import describe, replace_data, write
from dspy_session.errors import CallError
from dspy_session.journal.keeping import Journal
from dspy_session.locks import Locks
from dspy_session.program.examples import Metric, Verdict, examples_of, scored
from dspy_session.program.frame import frame_of, home_of
from dspy_session.program.nested import Nestable
from dspy_session.program.run import new_id
from dspy_session.program.turn_data import differences

__all__ = ["Conversation"]

_Result = TypeVar("_Result")


class Conversation(Nestable):
    """The part of a session that is the conversation; made by `Session`, not by hand.

    While a turn runs whose program holds this session, its conversation lives in that turn.
    """

    _journal: Journal | None = None
    """Keeps the session in a store, if it is in one."""

    def __init__(self, state: SessionState, options: SessionOptions) -> None:
        self._state, self._options, self._locks = state, options, Locks()
        self._began_with = state.data

    def _move(self, transition: Callable[[SessionState], tuple[_Result, SessionState]]) -> _Result:
        """Publish the next state, computed from the newest one.

        The mutex is held over pure functions of the core only. An error leaves the state as it was.
        In a turn around this one, the transition may be made again, on another state: nobody may
        change in between what it takes along.
        """
        home = home_of(self)
        if home is not None:
            return home.move(self, transition)
        if self._journal is not None:
            return self._journal.move(lambda: self._state, transition, self._publish)
        with self._locks.state:
            result, self._state = transition(self._state)
        return result

    def _publish(self, state: SessionState) -> None:
        with self._locks.state:
            self._state = state

    async def _waited_for(self, work: Callable[[], _Result]) -> _Result:
        """Do what may wait for a store, and leave the event loop free meanwhile."""
        return work() if self._journal is None else await asyncio.to_thread(work)

    def _check_room(self) -> None:
        """Refuse a turn of a session that is as large as its store lets it be."""
        if self._journal is not None and home_of(self) is None:
            self._journal.check_room()

    def refresh(self, *, discard: bool = False) -> None:
        """Read the session anew from its store, if somebody else wrote it.

        Args:
            discard: Whether changes that were not saved yet may be lost.

        Raises:
            CallError: The session is in no store, or has changes that were not saved.
            SessionNotFoundError: It was deleted.
            StoreError: The store cannot be read.
        """
        if self._journal is None:
            raise CallError(
                "This session is kept in memory only, so there is nothing to read anew. Open one "
                "with SessionManager(program, store).open(id)."
            )
        self._journal.refresh(self._publish, discard=discard)

    @property
    def state(self) -> SessionState:
        """The conversation as an immutable value; keep it, and it is a snapshot for ever."""
        home = home_of(self)
        return self._state if home is None else home.state_of(self)

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self.state.id or ""

    @property
    def data(self) -> SessionData:
        """The session data: what an application keeps beside the conversation, as JSON values.

        It belongs to the conversation: every turn carries it as of its end, and undo, redo, fork
        and rewind bring it along. Within a turn of this session it is that turn's: what is written
        is kept if the turn is recorded. Set `session.data = {...}` to replace it whole.
        """
        return SessionData.over(_HeldData(self), self._options.private_data)

    @data.setter
    def data(self, given: Mapping[str, Any] | SessionData | Data) -> None:
        data = EMPTY_DATA.changed(given, self._options.max_data_bytes)
        frame = frame_of(self)
        if frame is None:
            self._move(lambda state: (None, replace_data(state, data)))
        else:
            frame.data.change(differences(frame.data.read(), data))

    @property
    def metadata(self) -> Data:
        """What an application noted about the session; undo and reset leave it as it is."""
        return self.state.metadata

    def update_metadata(self, changes: Mapping[str, Any]) -> None:
        """Merge something into the metadata.

        Args:
            changes: Values by key, as for session data.

        Raises:
            DataError: JSON cannot hold a value, or it is too large; nothing is merged then.
        """
        noted, limit = as_changes(changes), self._options.max_data_bytes
        self._move(lambda state: (None, describe(state, noted, limit)))

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The stored turns, oldest first."""
        return self.state.turns

    @property
    def session_history(self) -> dspy.History:
        """The `dspy.History` that the next call will see: the seed, then the window's turns."""
        history: dspy.History = visible_window(self.state, self._options).history()
        return history

    def __len__(self) -> int:
        return len(self.state)

    def __bool__(self) -> bool:
        return True

    # --- moving and editing -----------------------------------------------------------------------

    def reset(self) -> None:
        """Go back to the start: turns go, and the data is what the session began with.

        Seed, id, instructions and metadata stay; summaries go.
        """
        self._move(lambda state: (None, reset(state)))

    def clear(self) -> None:
        """Forget what was said: turns and seed go; session data, id and metadata stay."""
        self._move(lambda state: (None, clear(state)))

    def truncate(self, keep: int) -> None:
        """Keep only the newest turns; their indices stay, and nothing can be redone.

        Args:
            keep: How many turns to keep at most.

        Raises:
            OptionError: `keep` is negative or no whole number.
        """
        self._move(lambda state: (None, truncate(state, keep)))

    def undo(self, steps: int = 1) -> tuple[Turn, ...]:
        """Take back the latest turns, at most as many as there are.

        Args:
            steps: How many.

        Returns:
            The turns taken back, newest first.

        Raises:
            OptionError: `steps` is negative or no whole number.
        """
        return self._move(lambda state: undo(state, steps))

    def pop_turn(self) -> Turn | None:
        """Take back the latest turn and return it; None if there is none."""
        return next(iter(self.undo(1)), None)

    def redo(self, steps: int = 1) -> tuple[Turn, ...]:
        """Bring back turns that were taken back, until a turn was recorded on another path.

        Args:
            steps: How many, at most.

        Returns:
            The turns brought back, oldest first.

        Raises:
            OptionError: `steps` is negative or no whole number.
        """
        return self._move(lambda state: redo(state, steps))

    def rewind(self, to: int) -> None:
        """Go back to before turn `to`: turns with lower indices stay, `redo` brings back the rest.

        Args:
            to: An absolute turn index; `len(session)` of an untrimmed session changes nothing.

        Raises:
            TurnIndexError: There is no such turn.
        """
        self._move(lambda state: (None, rewind(state, to)))

    def add_turn(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Turn:
        """Append a turn by hand, as if the program had been called; `on_turn` is not.

        Args:
            inputs: The inputs by name.
            outputs: The outputs by name.

        Returns:
            The new turn.

        Raises:
            HistoryError: A field is named like the history field.
            CallError: One of the two is no mapping from names to values.
        """
        self._check_room()
        run, options = Run(id=new_id()), self._options
        given, made = copy_fields(inputs, "inputs"), copy_fields(outputs, "outputs")

        def append(state: SessionState) -> tuple[Turn | None, SessionState]:
            return commit(state, prepare(state, given, options), made, run, options)

        turn = self._move(append)
        assert turn is not None  # a step without explicit history is always recorded
        return turn

    def replace_turn(self, index: int, outputs: Mapping[str, Any]) -> Turn:
        """Give a turn other outputs; later calls see them. Its score goes; `on_turn` is not called.

        Args:
            index: The turn's absolute index.
            outputs: The new outputs by name.

        Returns:
            The new turn.

        Raises:
            TurnIndexError: There is no such turn.
            HistoryError: An output is named like the history field.
            CallError: `outputs` is no mapping from names to values.
        """
        if isinstance(outputs, Mapping):
            refuse_history_field(outputs, self._options, "an output")
        return self._move(lambda state: replace_turn(state, index, outputs, id=new_id()))

    # --- training data ----------------------------------------------------------------------------

    def score(
        self, metric: Metric, gold: dspy.Example | Sequence[dspy.Example] | None = None
    ) -> list[float]:
        """Score every turn, and keep scores and feedback on the turns.

        Args:
            metric: `metric(example, prediction)` or `metric(example, prediction, trace)`, returning
                a number, a bool, or a Prediction with `score` and `feedback`.
            gold: What to compare with: one example, or one per turn; None for the turn itself.

        Returns:
            One score per turn.

        Raises:
            MetricError: The metric raised, and `on_metric_error` is `"raise"`; nothing is kept.
            CallError: There are not as many gold examples as turns.
        """
        before = self.state
        verdicts, _ = scored(before, metric, self._options, gold)
        self._keep(before, verdicts)
        return [verdict.score for verdict in verdicts.values()]

    def _keep(self, judged: SessionState, verdicts: Mapping[int, Verdict]) -> None:
        """Put verdicts on the turns they are about, for turns may have come or gone meanwhile."""
        held = {turn.index: turn for turn in judged}

        def put(state: SessionState) -> tuple[None, SessionState]:
            same = (turn.index for turn in state if held.get(turn.index) is turn)
            return None, annotate(state, {n: verdicts[n] for n in same if n in verdicts})

        self._move(put)

    def to_examples(
        self,
        metric: Metric | None = None,
        *,
        min_score: float | None = None,
        gold: dspy.Example | Sequence[dspy.Example] | None = None,
        include_history: bool = True,
        strict_trajectory: bool = False,
        require_outputs: bool = True,
    ) -> list[dspy.Example]:
        """Return one training example per turn, with what its call saw as the history input.

        Args:
            metric: Scores the turns first, as `score` does; None uses the scores they carry.
            min_score: Leave out turns that score lower (equal stays), and unscored ones.
            gold: As in `score`.
            include_history: Whether examples hold the history.
            strict_trajectory: Whether a turn that is left out takes all later ones with it.
            require_outputs: Whether a turn without outputs is left out; it is not scored then.

        Returns:
            The examples, oldest first.

        Raises:
            MetricError: As in `score`.
            CallError: As in `score`, or `min_score` is no number.
        """
        state, options = self.state, self._options
        if metric is not None:
            before = state
            verdicts, state = scored(before, metric, options, gold, require_outputs=require_outputs)
            self._keep(before, verdicts)
        return examples_of(
            state,
            options,
            min_score=min_score,
            include_history=include_history,
            strict_trajectory=strict_trajectory,
            require_outputs=require_outputs,
        )

    def to_trainset(self, *args: Any, **kwargs: Any) -> list[dspy.Example]:
        """Return the examples of `to_examples`, under the name that optimizers use.

        Args:
            *args: As for `to_examples`.
            **kwargs: As for `to_examples`.
        """
        return self.to_examples(*args, **kwargs)

    @staticmethod
    def merge_examples(*sessions: Conversation, **kwargs: Any) -> list[dspy.Example]:
        """Return the examples of several sessions as one list.

        Args:
            *sessions: The sessions.
            **kwargs: As for `to_examples`, for each of them.

        Raises:
            CallError: One of them is not a session.
        """
        for session in sessions:
            if not isinstance(session, Conversation):
                raise CallError(f"merge_examples takes sessions, not {type(session).__name__}.")
        return [example for session in sessions for example in session.to_examples(**kwargs)]


class _HeldData:
    """Session data where it is now: in the turn that runs, or in the conversation."""

    def __init__(self, session: Conversation) -> None:
        self._session = session

    def read(self) -> Data:
        """Return the data."""
        frame = frame_of(self._session)
        return self._session.state.data if frame is None else frame.data.read()

    def change(self, changes: Mapping[str, Any]) -> None:
        """Change some keys, at once."""
        session, frame = self._session, frame_of(self._session)
        if frame is not None:
            frame.data.change(changes)
            return
        written, limit = as_changes(changes), session._options.max_data_bytes
        session._move(lambda state: (None, write(state, written, limit)))

    def base(self) -> Data:
        """Return the data that the session was made or loaded with."""
        return self._session._began_with
