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

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from dspy_session.core.copies import copy_fields
from dspy_session.core.data import Data
from dspy_session.core.options import HistoryPolicy, SessionOptions
from dspy_session.core.state import SessionState, visible_window
from dspy_session.core.transitions import record, reseed, rewind
from dspy_session.core.turn import NOTHING_BESIDE, Beside, Run, Turn
from dspy_session.core.window import WAITED_MESSAGES, Exchange, Window, seed_exchanges
from dspy_session.core.writes import describe, replace_data
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
        beside: What stands beside the conversation as the call begins.
        replaces_data: Whether the session data in it was brought by the call.
        after: The index that the next turn had when the call began.
    """

    inputs: dict[str, Any]
    window: Window
    explicit: bool = False
    records: bool = True
    seed: tuple[Exchange, ...] | None = None
    replaces: int | None = None
    beside: Beside = NOTHING_BESIDE
    replaces_data: bool = False
    after: int = 0


def prepare(
    state: SessionState,
    inputs: Mapping[str, Any],
    options: SessionOptions,
    history: Sequence[Mapping[str, Any]] | None = None,
    at: int | None = None,
    data: Data | None = None,
) -> Step:
    """Decide what a call sees and whether it will be remembered.

    Args:
        state: The conversation.
        inputs: The program's inputs by name.
        options: The session's options.
        history: The messages of a history that the caller passed, or None. It is shown as it is:
            neither windowed nor filtered, except that a replaced session filters its new seed.
        at: The absolute index of a turn to answer again; None for a new turn. It begins with what
            stood beside the conversation when that turn began.
        data: Session data that the call brings, in the place of what there is.

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
    beside, after = state.beside, state.stop
    if at is not None:
        beside = state.turn(at).before
        state = rewind(state, at)
    step = Step(
        fields,
        visible_window(state, options),
        replaces=at,
        beside=beside.replace(data=data),
        replaces_data=data is not None,
        after=after,
    )
    if history is None:
        return step
    given = seed_exchanges(history)
    replace = msgspec.structs.replace
    if options.history_policy is HistoryPolicy.REPLACE_SESSION:
        anew = reseed(replace_data(state, step.beside.data), given)
        return replace(
            step,
            window=visible_window(anew, options),
            explicit=True,
            seed=given,
            replaces=None,
            beside=anew.beside,
        )
    records = options.history_policy is HistoryPolicy.USE_IF_PROVIDED
    return replace(step, window=Window(seed=given), explicit=True, records=records)


def commit(
    state: SessionState,
    step: Step,
    outputs: Mapping[str, Any],
    run: Run,
    options: SessionOptions,
    details: Mapping[str, Any] | None = None,
    nested: Mapping[str, SessionState] | None = None,
    data: Callable[[Data], Data] | None = None,
    metadata: Mapping[str, Any] | None = None,
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
        data: What the turn did to the session data, as a function of the data it comes to: `state`
            may have other data than the step was prepared with.
        metadata: What the turn notes about the session, by key.

    Messages that waited are part of what the turn's chat was, and wait no more.

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
    waited = step.beside.pending if step.replaces is not None else state.beside.pending
    left = {**(details or {}), **({WAITED_MESSAGES: list(waited)} if waited else {})}
    exchange = Exchange(step.inputs, outputs, left)
    refuse_history_field(outputs, options, "an output")
    if step.seed is not None:
        state = reseed(state, step.seed)
    turn, after = record(
        state,
        exchange,
        step.window,
        run,
        options.max_stored_turns,
        replaces=step.replaces,
        nested=nested,
        data=data,
        replaced_data=step.beside.data if step.replaces_data else None,
    )
    return turn, describe(after, metadata) if metadata else after


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
