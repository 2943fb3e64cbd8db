"""Replays: the recorded user side of conversations through another program, and what comes of it.

    report = replay_all(sessions, other_program, metric=metric)
    print(report)                       # side by side, sums, and which of the two is better

Nothing of a replay is recorded anywhere: the conversations are as they were, and so are sessions
inside the program. What a program does beside calling a model, its tools do in earnest.
"""

from __future__ import annotations

import contextvars
import math
import numbers
import secrets
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Final, get_args

import dspy
import msgspec
from tqdm import tqdm

from dspy_session.core.options import SessionOptions
from dspy_session.core.state import with_id
from dspy_session.errors import CallError, OptionError
from dspy_session.program.approvals import Approver
from dspy_session.program.examples import Gold, Metric, Verdict, golds_of
from dspy_session.program.hooks import Hooks, as_hooks
from dspy_session.program.replayed import (
    AskedAgain,
    Conversation,
    OnReplayError,
    Replayed,
    areplayed,
    recorded_verdicts,
    replayed,
)
from dspy_session.program.run import Told
from dspy_session.program.settings import call_settings
from dspy_session.replay_comparison import ReplayReport
from dspy_session.replay_report import SIDES, Replay, ReplayedTurn
from dspy_session.setups import Recorded, setup_for

__all__ = ["areplay", "replay", "replay_all"]

_ROLLOUT_BITS: Final = 48  # whole numbers that every JSON reader keeps exactly


def replay(
    conversation: Recorded, program: dspy.Module | None = None, /, **keywords: Any
) -> Replay:
    """Ask a program what was asked in a recorded conversation, turn by turn, and compare.

    The conversation stays as it was. Each turn begins with what was written to the session data
    between the recorded turns; teacher-forced, with the very data that its recorded call found.

    Args:
        conversation: A session or a state; its turns as they stand, without those that were undone.
        program: The program that answers; None for the session's own.
        **keywords: See below.

    Keyword Args:
        lm: The LM of all turns, instead of the configured and of the predictors' own.
        adapter: The adapter of all turns, instead of the active one.
        instructions: What every predictor is told, or a function of the state that returns it; None
            for what the conversation says, `""` for nothing.
        options: How the conversation is held; None for the session's options. A teacher-forced turn
            without them sees what its recorded call saw.
        config: LM settings for every LM call.
        fresh: Whether no answer may come from a cache: all calls get a new rollout id.
        teacher_forced: Whether each turn sees the recorded answers, and not those of the program.
        on_error: `"stop"` ends the replay at a turn that fails; with `"continue"` the next turn
            sees the recorded answer in its place.
        metric: Scores both sides, as for `session.score`. Without `gold`, what it compares with is
            the recorded turn, with the history that the replayed call saw.
        gold: What to compare with: one example for all turns, or one per turn.
        failure_score: What a turn that failed scores.
        hooks: What runs around each turn; those of a session do not.
        approver: Asked whether a tool that needs approval may run; that of a session is not.
        name: What the report calls this side.

    Raises:
        CallError: Something was given that cannot be it.
        OptionError: There is no such keyword, or it cannot have that value.
        ModuleTypeError: `program` is not a `dspy.Module`.
        HistoryError: No conversation can reach the program.
        MetricError: The metric failed, and the option `on_metric_error` is `"raise"`.

    Example:
        >>> from dspy_session import sessionify
        >>> from dspy_session.testing import scripted_lm
        >>> session = sessionify(dspy.Predict("question -> answer"))
        >>> with dspy.context(lm=scripted_lm(lambda prompt: {"answer": "Hello."})):
        ...     prediction = session(question="Hi")
        >>> found = replay(session, lm=scripted_lm(lambda prompt: {"answer": "Good day."}))
        >>> found.turns[0].recorded.outputs, found.turns[0].replayed.outputs
        ({'answer': 'Hello.'}, {'answer': 'Good day.'})
    """
    plan = _Plan(conversation, program, _manner(keywords))
    return plan.found(replayed(plan.conversation))


async def areplay(
    conversation: Recorded, program: dspy.Module | None = None, /, **keywords: Any
) -> Replay:
    """As `replay`, in async code; the metric is called, not awaited.

    Args:
        conversation: As in `replay`.
        program: As in `replay`; one without `aforward` runs in a worker thread.
        **keywords: As in `replay`.

    Raises:
        SessionError: As `replay`.
    """
    plan = _Plan(conversation, program, _manner(keywords))
    return plan.found(await areplayed(plan.conversation))


def replay_all(
    conversations: Iterable[Recorded],
    program: dspy.Module | None = None,
    /,
    *,
    num_threads: int | None = None,
    progress: bool = True,
    **keywords: Any,
) -> ReplayReport:
    """Replay many conversations side by side.

    A conversation whose replay fails does not end the others: the report says why it failed.

    Args:
        conversations: Sessions and states.
        program: As in `replay`; one serves all conversations.
        num_threads: How many conversations run at a time; None for DSPy's setting.
        progress: Whether to show a progress bar, if the output is a terminal.
        **keywords: As in `replay`, but for `gold`, which is one example for all turns or a list
            with the gold of each conversation.

    Returns:
        The replays, in the order of the conversations.

    Raises:
        SessionError: As `replay`, for what would be wrong with each of them.

    Example:
        >>> from dspy_session import sessionify
        >>> from dspy_session.testing import scripted_lm
        >>> session = sessionify(dspy.Predict("question -> answer"))
        >>> with dspy.context(lm=scripted_lm(lambda prompt: {"answer": "Hm."})):
        ...     prediction = session(question="Hi")
        >>> report = replay_all(
        ...     [session],
        ...     lm=scripted_lm(lambda prompt: {"answer": "Hello."}),
        ...     metric=lambda example, prediction: prediction.answer == "Hello.",
        ...     name="polite",
        ... )
        >>> report.better, report.wins
        ('polite', {'recorded': 0, 'polite': 1, 'tie': 0})
    """
    manner = _manner(keywords)
    plans = [
        _Plan(conversation, program, msgspec.structs.replace(manner, gold=gold))
        for conversation, gold in _with_golds(conversations, manner.gold)
    ]
    threads = dspy.settings.num_threads if num_threads is None else num_threads
    if not isinstance(threads, int) or threads < 1:
        raise OptionError(f"num_threads must be a whole number from 1 up, not {num_threads!r}.")
    found: list[Replay] = [Replay()] * len(plans)
    with tqdm(total=len(plans), desc="Replay", disable=None if progress else True) as bar:
        pool = ThreadPoolExecutor(threads, thread_name_prefix="dspy-session replay")
        try:
            waiting = {
                pool.submit(contextvars.copy_context().run, plan.run): number
                for number, plan in enumerate(plans)
            }
            for done in as_completed(waiting):
                found[waiting[done]] = done.result()
                bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return ReplayReport(replays=tuple(found), name=manner.name)


class _Manner(msgspec.Struct, frozen=True, kw_only=True):
    """The keywords of `replay`."""

    lm: Any = None
    adapter: Any = None
    instructions: Told = None
    options: SessionOptions | None = None
    config: Mapping[str, Any] | None = None
    fresh: bool = False
    teacher_forced: bool = False
    on_error: OnReplayError = "stop"
    metric: Metric | None = None
    gold: Any = None
    failure_score: float = 0.0
    hooks: Hooks | None = None
    approver: Approver | None = None
    name: str = "replayed"


def _manner(keywords: Mapping[str, Any]) -> _Manner:
    known = _Manner.__struct_fields__
    for keyword in keywords:
        if keyword not in known:
            raise OptionError(f"There is no keyword {keyword!r}; there are: {', '.join(known)}.")
    manner = _Manner(**keywords)
    if manner.on_error not in get_args(OnReplayError):
        raise OptionError(f'on_error must be "stop" or "continue", not {manner.on_error!r}.')
    if not isinstance(manner.name, str) or not manner.name or manner.name in SIDES:
        raise OptionError(f"name must be text other than {', '.join(SIDES)}, not {manner.name!r}.")
    if not isinstance(manner.adapter, dspy.Adapter | None):
        raise CallError(f"adapter must be a dspy.Adapter, not {type(manner.adapter).__name__}.")
    if manner.metric is not None and not callable(manner.metric):
        raise CallError(f"metric must be callable, not {type(manner.metric).__name__}.")
    if manner.approver is not None and not callable(manner.approver):
        raise CallError(f"approver must be callable, not {type(manner.approver).__name__}.")
    if not isinstance(score := manner.failure_score, numbers.Real) or not math.isfinite(score):
        raise OptionError(f"failure_score must be a finite number, not {score!r}.")
    return manner


def _with_golds(conversations: Iterable[Recorded], gold: Any) -> Iterable[tuple[Recorded, Gold]]:
    if isinstance(conversations, Recorded) or not isinstance(conversations, Iterable):
        raise CallError("replay_all takes a list of conversations. For one, there is replay(...).")
    given = list(conversations)
    if gold is None or isinstance(gold, dspy.Example):
        return [(conversation, gold) for conversation in given]
    golds = list(gold) if isinstance(gold, Iterable) else [gold]
    if len(golds) != len(given):
        raise CallError(
            "gold must be one dspy.Example, or a list with the gold of each conversation: there "
            f"are {len(given)} conversations, but {len(golds)} came."
        )
    return list(zip(given, golds, strict=True))


class _Plan:
    """One conversation that is about to be replayed; all that was given is found to be right."""

    def __init__(self, given: Recorded, program: dspy.Module | None, manner: _Manner) -> None:
        setup = setup_for(given, program, manner.options, manner.instructions)
        turns, gold = setup.state.turns, manner.gold
        fresh = {"rollout_id": secrets.randbits(_ROLLOUT_BITS)} if manner.fresh else {}
        self.name, self.failure_score = manner.name, manner.failure_score
        self.conversation = Conversation(
            state=setup.state,
            program=setup.program,
            options=setup.options,
            as_seen=setup.as_seen,
            teacher_forced=manner.teacher_forced,
            on_error=manner.on_error,
            metric=manner.metric,
            golds=None if gold is None else golds_of(turns, gold, setup.options),
            adapter=manner.adapter,
            settings=call_settings(config=fresh).updated(
                call_settings(lm=manner.lm, config=manner.config)
            ),
            instructions=setup.instructions,
            hooks=as_hooks(manner.hooks),
            approver=manner.approver,
        )

    def run(self) -> Replay:
        """Replay the conversation; an error becomes a part of the report."""
        try:
            return self.found(replayed(self.conversation))
        except Exception as error:  # noqa: BLE001  # the report tells of it; the others go on
            state = self.conversation.state
            return Replay(
                session_id=state.id,
                name=self.name,
                missing=len(state),
                error=f"{type(error).__name__}: {error}",
            )

    def found(self, result: Replayed) -> Replay:
        """Return the report of what was replayed."""
        asked, after = result
        verdicts = recorded_verdicts(self.conversation)
        recorded, options = self.conversation.state, self.conversation.options
        return Replay(
            turns=tuple(self._turn(*both) for both in zip(asked, verdicts, strict=False)),
            session_id=recorded.id,
            name=self.name,
            missing=len(recorded) - len(asked),
            state=with_id(after, None),
            hidden=frozenset(options.redact_fields),
        )

    def _turn(self, asked: AskedAgain, verdict: Verdict | None) -> ReplayedTurn:
        answered = asked.verdict
        failed = self.failure_score if asked.error and verdict is not None else None
        return ReplayedTurn(
            recorded=asked.recorded,
            replayed=asked.answer,
            error=asked.error,
            run=asked.run,
            recorded_score=None if verdict is None else verdict.score,
            replayed_score=failed if answered is None else answered.score,
            recorded_feedback=None if verdict is None else verdict.feedback,
            replayed_feedback=None if answered is None else answered.feedback,
        )
