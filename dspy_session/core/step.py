"""One turn as two pure functions around the program: `prepare` before it, `commit` after it.

    inputs, state    --prepare-->  Step(inputs, window)      what the program is to be shown
    outputs, state'  --commit-->   (Turn, state'')           what is remembered

Laws:

- Neither changes its arguments; a call that fails simply never reaches `commit`.
- `commit` may be given a newer state than `prepare` was: overlapping calls are appended in the
  order in which they end, and each keeps the snapshot of what it really saw.
- A step that only replays an explicit history records nothing: `commit` returns the same state.
- A step that answers a turn again sees what was there before that turn. The turn is recorded in its
  place, and the conversation as it was until then stays ahead, for `redo`.

Clock readings, ids and usage come in as a `Run`; this module has none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from dspy_session.core.copies import copy_fields
from dspy_session.core.options import HistoryPolicy, SessionOptions
from dspy_session.core.state import SessionState, visible_window
from dspy_session.core.transitions import record, reseed, rewind
from dspy_session.core.turn import Run, Turn
from dspy_session.core.window import Exchange, Window, seed_exchanges
from dspy_session.errors import HistoryError

__all__ = ["Step", "commit", "prepare"]


class Step(msgspec.Struct, frozen=True, eq=False):
    """A turn about to run.

    Attributes:
        inputs: The program's inputs, without the history, as private copies.
        window: What the call is to see of the past.
        explicit: Whether the caller passed the history.
        records: Whether the turn will be recorded.
        seed: If not None, the conversation begins anew with it when the turn is recorded.
        replaces: The absolute index of the turn that is answered again, if one is.
        nested: The states of sessions within the program as the call finds them, by module path.
    """

    inputs: dict[str, Any]
    window: Window
    explicit: bool = False
    records: bool = True
    seed: tuple[Exchange, ...] | None = None
    replaces: int | None = None
    nested: Mapping[str, SessionState] = {}


def prepare(
    state: SessionState,
    inputs: Mapping[str, Any],
    options: SessionOptions,
    history: Sequence[Mapping[str, Any]] | None = None,
    at: int | None = None,
) -> Step:
    """Decide what a call sees and whether it will be remembered.

    Args:
        state: The conversation.
        inputs: The program's inputs by name.
        options: The session's options.
        history: The messages of a history that the caller passed, or None. It is shown as it is:
            neither windowed nor filtered, except that a replaced session filters its new seed.
        at: The absolute index of a turn to answer again; None for a new turn.

    Raises:
        TurnIndexError: No stored turn has the index `at`.
        HistoryError: An input is named like the history field, or `history` holds something else
            than dicts of fields.
        CallError: `inputs` is no mapping from names to values.

    Example:
        >>> step = prepare(SessionState(), {"question": "Hi"}, SessionOptions())
        >>> step.inputs, len(step.window)
        ({'question': 'Hi'}, 0)
    """
    fields = copy_fields(inputs, "inputs")
    refuse_history_field(fields, options, "an input")
    if at is not None:
        state = rewind(state, state.turn(at).index)
    if history is None:
        return Step(fields, visible_window(state, options), replaces=at, nested=state.nested)
    given = seed_exchanges(history)
    if options.history_policy is HistoryPolicy.REPLACE_SESSION:
        window = visible_window(reseed(state, given), options)
        return Step(fields, window, explicit=True, seed=given)
    return Step(
        fields,
        Window(seed=given),
        explicit=True,
        records=options.history_policy is HistoryPolicy.USE_IF_PROVIDED,
        replaces=at,
        nested=state.nested,
    )


def commit(
    state: SessionState,
    step: Step,
    outputs: Mapping[str, Any],
    run: Run,
    options: SessionOptions,
    details: Mapping[str, Any] | None = None,
    nested: Mapping[str, SessionState] | None = None,
) -> tuple[Turn | None, SessionState]:
    """Remember a turn that ran.

    Args:
        state: The conversation as it is now; it may be newer than the one that was prepared.
        step: What `prepare` returned.
        outputs: What the program returned, by name.
        run: How the run went.
        options: The session's options.
        details: What the run left beside its outputs, by name.
        nested: The states of sessions within the program, as the run left them, by module path;
            those of other paths stay as they are in `state`.

    Returns:
        The turn and the new state; None and the same state for a step that records nothing.

    Raises:
        HistoryError: An output is named like the history field.
        CallError: `outputs` is no mapping from names to values.

    Example:
        >>> options = SessionOptions()
        >>> step = prepare(SessionState(), {"question": "Hi"}, options)
        >>> turn, state = commit(SessionState(), step, {"answer": "Hello."}, Run(id="1"), options)
        >>> turn.index, turn.outputs, len(state)
        (0, {'answer': 'Hello.'}, 1)
    """
    if not step.records:
        return None, state
    exchange = Exchange(step.inputs, outputs, details or {})
    refuse_history_field(outputs, options, "an output")
    if step.seed is not None:
        state = reseed(state, step.seed)
    return record(
        state,
        exchange,
        step.window,
        run,
        options.max_stored_turns,
        replaces=step.replaces,
        nested=nested,
    )


def refuse_history_field(fields: Mapping[str, Any], options: SessionOptions, what: str) -> None:
    """Raise a `HistoryError` if a field has the name of the history field.

    Args:
        fields: Inputs or outputs by name.
        options: The session's options.
        what: What the fields are, for the message.
    """
    if options.history_field in fields:
        raise HistoryError(
            f"{what} is named {options.history_field!r}, which is the name of this session's "
            "history field. Leave it out, or give the session another history_field."
        )
