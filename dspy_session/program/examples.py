"""Turns as training data: scoring, and one `dspy.Example` per turn with what its call saw."""

from __future__ import annotations

import inspect
import logging
import math
import numbers
import types
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Final, NamedTuple

import dspy
import msgspec

from dspy_session.core.lineage import Lineage, lineages
from dspy_session.core.options import OnMetricError, SessionOptions
from dspy_session.core.state import SessionState
from dspy_session.core.transitions import annotate
from dspy_session.core.turn import Turn
from dspy_session.errors import CallError, MetricError
from dspy_session.program.turn_examples import with_lineage

__all__ = [
    "Gold",
    "Metric",
    "Verdict",
    "example_of",
    "examples_of",
    "golds_of",
    "scored",
    "verdict_on",
]

logger = logging.getLogger("dspy_session")

Metric = Callable[..., Any]
"""`metric(example, prediction)` or `metric(example, prediction, trace)`, as DSPy's optimizers call
it; it returns a number, a bool, or a `dspy.Prediction(score=..., feedback=...)`."""

_MOST_ARGUMENTS: Final = 5  # GEPA's metrics: gold, pred, trace, pred_name, pred_trace

Gold = dspy.Example | Sequence[dspy.Example] | None
"""What turns are compared with: one example for all, one per turn, or None for the turn itself."""


class Verdict(NamedTuple):
    """What a metric said of one turn.

    Attributes:
        score: The number.
        feedback: The words beside it, if there were any.
    """

    score: float
    feedback: str | None = None


def example_of(
    turn: Turn,
    history_field: str | None,
    redacted: Set[str] = frozenset(),
    lineage: Lineage | None = None,
) -> dspy.Example:
    """Return a turn as a training example.

    Args:
        turn: The turn.
        history_field: The name under which the example holds what the call saw; None leaves it out.
        redacted: Fields that are left out, of the turn and of what it saw.
        lineage: Where the example comes from, which `lineage(example)` returns.

    Returns:
        An example of the turn's inputs and outputs, marked with `with_inputs`.
    """
    inputs, outputs = turn.inputs, turn.outputs
    window = turn.window
    if redacted:
        inputs, outputs = (
            {name: value for name, value in fields.items() if name not in redacted}
            for fields in (inputs, outputs)
        )
        view = msgspec.structs.replace(window.view, exclude=window.view.exclude | redacted)
        window = msgspec.structs.replace(window, view=view)
    example = with_lineage(dspy.Example(), lineage)
    for name, value in {**inputs, **outputs}.items():
        example[name] = value
    if history_field is not None:
        example[history_field] = window.history()
        return example.with_inputs(*inputs, history_field)
    return example.with_inputs(*inputs)


def scored(
    state: SessionState,
    metric: Metric,
    options: SessionOptions,
    gold: Gold = None,
    *,
    require_outputs: bool = False,
) -> tuple[dict[int, Verdict], SessionState]:
    """Score a conversation; turns that were erased keep the score that they have.

    Args:
        state: The conversation.
        metric: See `Metric`; a third positional parameter gets `trace=None`.
        options: `on_metric_error` says what a raising metric does.
        gold: What the metric compares with: one example for all turns, or one per turn; None for
            the turn's own inputs, outputs and history.
        require_outputs: Whether turns without outputs are passed over.

    Returns:
        The verdicts by turn index, and the state whose turns carry them.

    Raises:
        CallError: There are not as many gold examples as turns, or the metric is not callable.
        MetricError: The metric raised or returned no score, and `on_metric_error` is `"raise"`.
    """
    if not callable(metric):
        raise CallError(f"metric must be callable, not {type(metric).__name__}.")
    turns = state.turns
    verdicts = {
        turn.index: verdict_on(turn, example, metric, options)
        for turn, example in zip(turns, golds_of(turns, gold, options), strict=True)
        if (_has_outputs(turn) or not require_outputs) and not turn.erased
    }
    return verdicts, annotate(state, verdicts)


def examples_of(
    state: SessionState,
    options: SessionOptions,
    *,
    min_score: float | None = None,
    include_history: bool = True,
    strict_trajectory: bool = False,
    require_outputs: bool = True,
) -> list[dspy.Example]:
    """Return one training example per turn that is good enough; none for a turn that was erased.

    Args:
        state: The conversation; it is not changed.
        options: The session's options.
        min_score: Leave out turns that score lower, and unscored ones; None keeps all.
        include_history: Whether examples hold what their call saw, as an input.
        strict_trajectory: Whether the first turn that is left out takes all later ones with it,
            for they may build on it.
        require_outputs: Whether a turn without outputs is left out.

    Returns:
        The examples, oldest first.

    Raises:
        CallError: `min_score` is no number.
    """
    if min_score is not None and not isinstance(min_score, numbers.Real):
        raise CallError(f"min_score must be None or a number, not {min_score!r}.")
    field = options.history_field if include_history else None
    redacted, examples = options.redact_fields, []
    for turn, lineage in zip(state, lineages(state, redacted), strict=True):
        good = min_score is None or (turn.score is not None and turn.score >= min_score)
        if good and (_has_outputs(turn) or not require_outputs) and not turn.erased:
            examples.append(example_of(turn, field, redacted, lineage))
        elif strict_trajectory:
            break
    return examples


def _has_outputs(turn: Turn) -> bool:
    return bool(turn.exchange.shape[1])


def golds_of(turns: Sequence[Turn], gold: Gold, options: SessionOptions) -> list[dspy.Example]:
    """Return what each turn is compared with.

    Args:
        turns: The turns.
        gold: One example for all of them, one per turn, or None for the turns themselves.
        options: The session's options.

    Raises:
        CallError: It is something else, or there are not as many.
    """
    if gold is None:
        return [example_of(turn, options.history_field) for turn in turns]
    if isinstance(gold, dspy.Example):
        return [gold] * len(turns)
    examples = list(gold) if isinstance(gold, Iterable) else [gold]
    for example in examples:
        if not isinstance(example, dspy.Example):
            raise CallError(
                "gold must be one dspy.Example or one per turn, "
                f"but a value of type {type(example).__name__} came."
            )
    if len(examples) != len(turns):
        raise CallError(
            f"gold must be one dspy.Example or one per turn: there are {len(turns)} turns, but "
            f"{len(examples)} examples came."
        )
    return examples


def verdict_on(
    turn: Turn, example: dspy.Example, metric: Metric, options: SessionOptions
) -> Verdict:
    """Return what a metric says of a turn.

    Args:
        turn: The turn.
        example: What it is compared with.
        metric: See `Metric`.
        options: `on_metric_error` says what a raising metric does.

    Raises:
        MetricError: The metric raised or returned no score, and `on_metric_error` is `"raise"`.
    """
    prediction = dspy.Prediction()
    for name, value in {**turn.details, **turn.outputs}.items():  # as the program returned it
        prediction[name] = value
    try:
        return _read(metric(example, prediction, *_further_arguments(metric)))
    except Exception as error:  # a metric is a user's code
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
        return Verdict(_finite(result["score"]), None if words is None else str(words))
    return Verdict(_finite(result))


def _finite(score: Any) -> float:
    number = float(score)
    if not math.isfinite(number):  # NaN passes every threshold, and JSON holds neither
        raise ValueError(f"a score must be a finite number, not {number}")
    return number


def _further_arguments(metric: Metric) -> tuple[None, ...]:
    """The arguments after example and prediction: a trace, where the metric takes one."""
    if isinstance(metric, dspy.Module):  # whose __call__ takes anything
        metric = types.MethodType(getattr(type(metric), "forward", metric), metric)
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
