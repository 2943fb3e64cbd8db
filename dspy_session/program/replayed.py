"""A recorded conversation asked again, turn by turn: what the user said, to another program.

Each turn runs as a trial, so no session outside keeps anything of it, and each begins with what
stood beside the conversation when it first began. Two ways lead on from a turn:

- *Own answers*: the program sees its own answers. What was written between two recorded turns is
  written between the replayed ones.
- *Teacher-forced*: every turn sees the recorded past.

The turns are a generator, for drivers that await and drivers that do not.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, Final, Literal

import dspy
import msgspec

from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState
from dspy_session.core.transitions import record, rewind
from dspy_session.core.turn import Attempt, Beside, Run, Turn
from dspy_session.core.window import Exchange
from dspy_session.core.writes import replace_data, write_pending
from dspy_session.errors import SessionError
from dspy_session.program.call_modes import async_call, sync_call
from dspy_session.program.examples import Metric, Verdict, example_of, verdict_on
from dspy_session.program.flows import adrive, drive
from dspy_session.program.frame import FRAME_KEY
from dspy_session.program.hooks import Hooks
from dspy_session.program.run import Flow, Outcome, Told, committed, running
from dspy_session.program.settings import CallSettings
from dspy_session.program.turn_data import differences

__all__ = [
    "AskedAgain",
    "Conversation",
    "OnReplayError",
    "Replayed",
    "areplayed",
    "recorded_verdicts",
    "replayed",
]

OnReplayError = Literal["stop", "continue"]
"""What follows a turn that failed: nothing, or the next turn, which sees the recorded answer."""

_ERASED: Final = "its content was erased"

Replayed = tuple[list["AskedAgain"], SessionState]
"""The turns that were asked again, oldest first, and the conversation that they make."""


class AskedAgain(msgspec.Struct, frozen=True):
    """One recorded turn, asked again.

    Attributes:
        recorded: The recorded turn.
        answer: The turn that the program made of it; None if it failed.
        error: Why there is no answer; empty if there is one.
        run: How it went, also where it failed; None if it did not begin.
        verdict: What the metric says of the answer, if there is a metric.
    """

    recorded: Turn
    answer: Turn | None = None
    error: str = ""
    run: Run | None = None
    verdict: Verdict | None = None


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be replayed, and how.

    Attributes:
        state: The recorded conversation.
        program: The program that answers.
        options: How the conversation is held.
        as_seen: Whether a teacher-forced turn sees what its recorded call saw, and not what the
            options would show of the recorded past.
        teacher_forced: Whether each turn sees the recorded past.
        on_error: See `OnReplayError`.
        metric: Scores the answers; None for no scores.
        golds: What they are compared with, one per turn; None for the recorded turns.
        adapter: The adapter of all turns; None for the active one.
        settings: The LM and its settings.
        instructions: What every predictor is told; None for what the conversation says.
        hooks: What runs around each turn.
        approver: Says whether a tool that needs approval may run.
    """

    state: SessionState
    program: dspy.Module
    options: SessionOptions
    as_seen: bool = True
    teacher_forced: bool = False
    on_error: OnReplayError = "stop"
    metric: Metric | None = None
    golds: list[dspy.Example] | None = None
    adapter: dspy.Adapter | None = None
    settings: CallSettings = CallSettings()
    instructions: Told = None
    hooks: Hooks | None = None
    approver: Callable[..., Any] | None = None

    def surroundings(self) -> dict[str, Any]:
        """Return the settings for `dspy.context`: no turn around these is theirs."""
        chosen: dict[str, Any] = {FRAME_KEY: None}
        return chosen if self.adapter is None else {**chosen, "adapter": self.adapter}


def replayed(conversation: Conversation) -> Replayed:
    """Replay a conversation.

    Args:
        conversation: The conversation.

    Returns:
        The turns that were asked again, oldest first, and the conversation that they make.

    Raises:
        MetricError: The metric failed, and `on_metric_error` is `"raise"`.
    """
    asked, call = _asked(conversation), sync_call(conversation.program)
    came: Any = None
    while True:
        try:
            flow = asked.send(came)
        except StopIteration as stop:
            result: Replayed = stop.value
            return result
        try:
            with dspy.context(**conversation.surroundings()):
                came = drive(flow, call)
        except Exception as error:  # noqa: BLE001  # the program's own, which the report tells of
            came = error


async def areplayed(conversation: Conversation) -> Replayed:
    """As `replayed`, in async code.

    Args:
        conversation: The conversation.

    Returns:
        As `replayed`.

    Raises:
        MetricError: As `replayed`.
    """
    asked, call = _asked(conversation), async_call(conversation.program)
    came: Any = None
    while True:
        try:
            flow = asked.send(came)
        except StopIteration as stop:
            result: Replayed = stop.value
            return result
        try:
            with dspy.context(**conversation.surroundings()):
                came = await adrive(flow, call)
        except Exception as error:  # noqa: BLE001  # the program's own, which the report tells of
            came = error


_Asked = Generator[Flow, Outcome | Exception, Replayed]


def _asked(conversation: Conversation) -> _Asked:
    """The turns one after another; yields what is to be run, and is sent what came of it."""
    recorded, forced = conversation.state, conversation.teacher_forced
    done: list[AskedAgain] = []
    own = rewind(recorded, recorded.first, redoable=False) if len(recorded) else recorded
    was = own.beside
    for number, turn in enumerate(recorded):
        before = recorded if forced else _caught_up(own, was, turn)
        was = turn.beside
        if turn.erased:
            done.append(AskedAgain(turn, error=_ERASED))
            continue
        missed: list[Attempt] = []
        came = yield _flow(conversation, before, turn, missed)
        answer, after = _answered(before, came)
        if isinstance(answer, Exception):
            run = missed[-1].run if missed else None
            done.append(AskedAgain(turn, error=_told(answer), run=run))
            if conversation.on_error == "stop":
                break
            after = before if forced else _as_recorded(before, turn)
        else:
            verdict = _verdict(conversation, number, turn, answer)
            done.append(AskedAgain(turn, answer, run=answer.run, verdict=verdict))
        own = after
    return done, recorded if forced else own


def _answered(
    before: SessionState, came: Outcome | Exception
) -> tuple[Turn | Exception, SessionState]:
    """The new turn with the conversation that has it, or why there is none."""
    if isinstance(came, Exception):
        return came, before
    try:
        answer, after = committed(before, came)
    except SessionError as error:  # an output named like the history field
        return error, before
    assert answer is not None  # only what an explicit history is given to is not recorded
    return answer, after


def _flow(
    conversation: Conversation, before: SessionState, turn: Turn, missed: list[Attempt]
) -> Flow:
    forced = conversation.teacher_forced
    return running(
        conversation.program,
        before,
        turn.inputs,
        conversation.options,
        settings=conversation.settings,
        at=turn.index if forced else None,
        missed=missed.append,
        trial=True,  # so that sessions which the program merely calls keep nothing of it
        instructions=conversation.instructions,
        hooks=conversation.hooks,
        approver=conversation.approver,
        window=turn.window if forced and conversation.as_seen else None,
    )


def _caught_up(own: SessionState, was: Beside, turn: Turn) -> SessionState:
    """The conversation with what was written between the recorded turns."""
    data = own.data.changed(differences(was.data, turn.before.data))
    return write_pending(replace_data(own, data), turn.before.pending)


def _as_recorded(own: SessionState, turn: Turn) -> SessionState:
    """The conversation with the recorded turn in the place of one that failed."""
    writes = differences(turn.before.data, turn.beside.data)
    began = turn.before.nested
    nested = {path: state for path, state in turn.nested.items() if began.get(path) is not state}
    # A new exchange: in one epoch, one exchange stands for one and the same past.
    exchange = Exchange(*turn.exchange.parts)
    run = msgspec.structs.replace(turn.run, request_id=None)
    _, after = record(
        own, exchange, turn.window, run, nested=nested, data=lambda data: data.changed(writes)
    )
    return after


def _verdict(
    conversation: Conversation, number: int, recorded: Turn, answer: Turn
) -> Verdict | None:
    if conversation.metric is None:
        return None
    options, golds = conversation.options, conversation.golds
    if golds is not None:
        return verdict_on(answer, golds[number], conversation.metric, options)
    # What was asked, under the history that this call saw; what was answered is the recorded.
    asked = msgspec.structs.replace(recorded, window=answer.window)
    example = example_of(asked, options.history_field)
    return verdict_on(answer, example, conversation.metric, options)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip()  # without its module: tables are narrow


def recorded_verdicts(conversation: Conversation) -> Iterator[Verdict | None]:
    """Yield what the metric says of the recorded turns, one after another.

    Args:
        conversation: The conversation.

    Raises:
        MetricError: The metric failed, and `on_metric_error` is `"raise"`.
    """
    metric, options = conversation.metric, conversation.options
    for number, turn in enumerate(conversation.state):
        if metric is None or turn.erased:
            yield None
        elif conversation.golds is not None:
            yield verdict_on(turn, conversation.golds[number], metric, options)
        else:
            yield verdict_on(turn, example_of(turn, options.history_field), metric, options)
