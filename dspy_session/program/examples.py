"""Turns as training data: scoring, and one `dspy.Example` per turn with what its call saw."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import dspy
import msgspec

from dspy_session.core.options import OnMetricError, SessionOptions
from dspy_session.core.state import SessionState, annotate
from dspy_session.core.turn import Turn
from dspy_session.errors import CallError, MetricError

__all__ = ["Metric", "Verdict", "example_of", "examples_of", "score_turns", "scored"]

logger = logging.getLogger("dspy_session")

Metric = Callable[..., Any]
"""`metric(example, prediction)` or `metric(example, prediction, trace)`, as DSPy's optimizers call
it; it returns a number, a bool, or a `dspy.Prediction(score=..., feedback=...)`."""

_MOST_ARGUMENTS: Final = 5  # GEPA's metrics: gold, pred, trace, pred_name, pred_trace


class Verdict(msgspec.Struct, frozen=True):
    """What a metric said of one turn.

    Attributes:
        score: The number.
        feedback: The words beside it, if there were any.
    """

    score: float
    feedback: str | None = None


def example_of(turn: Turn, history_field: str | None) -> dspy.Example:
    """Return a turn as a training example.

    Args:
        turn: The turn.
        history_field: The name under which the example holds what the call saw; None leaves it out.

    Returns:
        An example of the turn's inputs and outputs, marked with `with_inputs`.
    """
    inputs, outputs = turn.inputs, turn.outputs
    example = dspy.Example()
    for name, value in {**inputs, **outputs}.items():
        example[name] = value
    if history_field is not None:
        example[history_field] = turn.history_snapshot
        return example.with_inputs(*inputs, history_field)
    return example.with_inputs(*inputs)


def score_turns(
    turns: Sequence[Turn],
    metric: Metric,
    options: SessionOptions,
    gold: dspy.Example | Sequence[dspy.Example] | None = None,
) -> list[Verdict]:
    """Ask a metric about each turn.

    Args:
        turns: The turns.
        metric: See `Metric`; a third positional parameter gets `trace=None`.
        options: `on_metric_error` says what a raising metric does.
        gold: What the metric compares with: one example for all turns, or one per turn; None for
            the turn's own inputs, outputs and history.

    Returns:
        One verdict per turn.

    Raises:
        CallError: There are not as many gold examples as turns, or the metric is not callable.
        MetricError: The metric raised or returned no score, and `on_metric_error` is `"raise"`.
    """
    if not callable(metric):
        raise CallError(f"metric must be callable, not {type(metric).__name__}.")
    if gold is None:
        golds = [example_of(turn, options.history_field) for turn in turns]
    elif isinstance(gold, dspy.Example):
        golds = [gold] * len(turns)
    else:
        golds = list(gold)
        if len(golds) != len(turns):
            raise CallError(
                f"gold must be one Example or one per turn: there are {len(turns)} turns, but "
                f"{len(golds)} examples came."
            )
    return [
        _verdict(turn, example, metric, options) for turn, example in zip(turns, golds, strict=True)
    ]


def scored(
    state: SessionState,
    metric: Metric,
    options: SessionOptions,
    gold: dspy.Example | Sequence[dspy.Example] | None = None,
) -> tuple[list[float], dict[int, tuple[float, str | None]], SessionState]:
    """Score a conversation.

    Args:
        state: The conversation.
        metric: As in `score_turns`.
        options: As in `score_turns`.
        gold: As in `score_turns`.

    Returns:
        A score per turn, the same by turn index with feedback, and the state whose turns carry it.
    """
    turns = state.turns
    verdicts = score_turns(turns, metric, options, gold)
    notes = {t.index: (v.score, v.feedback) for t, v in zip(turns, verdicts, strict=True)}
    return [verdict.score for verdict in verdicts], notes, annotate(state, notes)


def examples_of(
    state: SessionState,
    options: SessionOptions,
    *,
    metric: Metric | None = None,
    min_score: float | None = None,
    gold: dspy.Example | Sequence[dspy.Example] | None = None,
    include_history: bool = True,
    strict_trajectory: bool = False,
    require_outputs: bool = True,
) -> list[dspy.Example]:
    """Return one training example per turn that is good enough.

    Args:
        state: The conversation; it is not changed.
        options: The session's options.
        metric: Scores the turns; None uses the scores they carry.
        min_score: Leave out turns that score lower, and unscored ones; None keeps all.
        gold: As in `score_turns`.
        include_history: Whether examples hold what their call saw, as an input.
        strict_trajectory: Whether the first turn that is left out takes all later ones with it,
            for they may build on it.
        require_outputs: Whether a turn without outputs is left out.

    Returns:
        The examples, oldest first.
    """
    turns = state.turns
    scores: list[float | None]
    if metric is None:
        scores = [turn.score for turn in turns]
    else:
        scores = [verdict.score for verdict in score_turns(turns, metric, options, gold)]
    field = options.history_field if include_history else None
    examples = []
    for turn, score in zip(turns, scores, strict=True):
        fits = not (require_outputs and not turn.exchange.shape[1])
        if min_score is not None and (score is None or score < min_score):
            fits = False
        if fits:
            examples.append(example_of(turn, field))
        elif strict_trajectory:
            break
    return examples


def _verdict(turn: Turn, example: dspy.Example, metric: Metric, options: SessionOptions) -> Verdict:
    prediction = dspy.Prediction()
    for name, value in turn.outputs.items():
        prediction[name] = value
    try:
        return _read(metric(example, prediction, *_further_arguments(metric)))
    except Exception as error:  # noqa: BLE001  # a metric is a user's code
        message = f"The metric failed on turn {turn.index}: {error!r}."
        if options.on_metric_error is OnMetricError.RAISE:
            raise MetricError(
                f'{message} Mend the metric, or use on_metric_error="zero" to score such turns 0.0.'
            ) from error
        logger.warning('%s It scores 0.0 (on_metric_error="zero").', message)
        return Verdict(0.0)


def _read(result: Any) -> Verdict:
    """Read what a metric returned."""
    if isinstance(result, Mapping | dspy.Example):
        words = result.get("feedback")
        return Verdict(float(result["score"]), None if words is None else str(words))
    return Verdict(float(result))


def _further_arguments(metric: Metric) -> tuple[None, ...]:
    """The arguments after example and prediction: a trace, where the metric takes one."""
    try:
        parameters = inspect.signature(metric).parameters.values()
    except (TypeError, ValueError):  # a builtin; DSPy's convention is three arguments
        return (None,)
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return (None,)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    wanted = min(max(required, min(len(positional), 3)), _MOST_ARGUMENTS)
    return (None,) * max(wanted - 2, 0)
