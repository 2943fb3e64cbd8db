"""Training examples dealt out to parts, and no conversation to more than one."""

from __future__ import annotations

import numbers
import random
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, Final

import dspy

from dspy_session.core.grouping import allotted, connected
from dspy_session.core.lineage import Lineage, content_digest, origin_digests, turn_digest
from dspy_session.errors import CallError
from dspy_session.program.turn_examples import lineage

__all__ = ["split"]

_SLACK: Final = 1e-9  # by so much may fractions add up to more than 1


def split(
    examples: Sequence[dspy.Example],
    *,
    fractions: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None,
    seed: int = 0,
    by_content: bool = True,
) -> list[list[dspy.Example]]:
    """Return examples dealt out to parts, such that no part knows what another one asks.

    These stay together: examples of one session; of sessions that have a stored turn in common, or
    had, such as forks; of conversations whose first turn says the same, such as imported copies;
    examples with equal inputs. Turns that were trimmed away count as far as later calls saw them.
    An example that knows no turn, because it was made by hand or copied field by field, is alone,
    unless its inputs are another's, or the first message of its history.

    Parts are as near to their sizes as that allows, and none is empty: look at their lengths.

    Args:
        examples: The examples, for example of `Session.merge_examples`.
        fractions: Which part of the examples each part gets, such as `(0.8, 0.2)`. What is left
            of 1 goes to no part.
        sizes: How many examples each part gets, instead of fractions.
        seed: What decides the choice; the same examples in the same order are split the same way.
        by_content: Whether equal content keeps examples together; if not, only sessions and turns
            do. Where many conversations begin with the same small talk, all of them hang together.

    Returns:
        A list for each part, with its examples in the order in which they came.

    Raises:
        CallError: Neither or both of `fractions` and `sizes` were given, or they cannot be; or the
            examples hang together in fewer groups than there are parts.

    Example:
        >>> numbered = [dspy.Example(n=n).with_inputs("n") for n in range(10)]
        >>> train, test = split(numbered, fractions=(0.8, 0.2))
        >>> len(train), len(test)
        (8, 2)
    """
    given = list(examples)
    for example in given:
        if not isinstance(example, dspy.Example):
            raise CallError(f"split takes dspy.Examples, not {type(example).__name__}.")
    wanted = _wanted(len(given), fractions, sizes)
    named = len(wanted)
    if sum(wanted) < len(given):
        wanted.append(len(given) - sum(wanted))  # what goes to no part
    groups = connected(_keys(given, by_content))[: len(given)]
    groups = [[at for at in group if at < len(given)] for group in groups]
    groups = [group for group in groups if group]
    if len(groups) < named:
        raise CallError(_too_few(len(given), len(groups), named))
    wanted = wanted[: len(groups)]
    random.Random(seed).shuffle(groups)
    parts = allotted([len(group) for group in groups], wanted)
    return [
        [given[at] for at in sorted(at for group in part for at in groups[group])]
        for part in parts[:named]
    ]


def _too_few(examples: int, groups: int, parts: int) -> str:
    if not examples:
        return "There are no examples to split."
    return (
        f"The {examples} examples hang together in {groups} group(s), too few for {parts} parts: "
        "examples of one conversation, of its forks and copies, and with equal inputs are not "
        "separated. Add other conversations, or, if it is only equal content that connects them, "
        "pass by_content=False."
    )


def _wanted(
    count: int, fractions: Sequence[float] | None, sizes: Sequence[int] | None
) -> list[int]:
    """The wanted size of each part."""
    if (fractions is None) is (sizes is None):
        raise CallError("split takes either fractions=(0.8, 0.2), or sizes=(80, 20).")
    if sizes is not None:
        return _checked_sizes(count, sizes)
    shares = list(fractions or ())
    if not shares or not all(_is_number(share) and 0 < share <= 1 for share in shares):
        raise CallError(
            f"fractions must be numbers above 0, such as (0.8, 0.2), not {fractions!r}."
        )
    if sum(shares) > 1 + _SLACK:
        raise CallError(f"fractions must add up to 1 at most; these add up to {sum(shares)}.")
    ends = [round(min(sum(shares[: at + 1]), 1.0) * count) for at in range(len(shares))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _checked_sizes(count: int, sizes: Sequence[int]) -> list[int]:
    numbers_ = list(sizes)
    if not numbers_ or not all(type(size) is int and size > 0 for size in numbers_):
        raise CallError(f"sizes must be whole numbers above 0, such as (80, 20), not {sizes!r}.")
    if sum(numbers_) > count:
        raise CallError(f"There are {count} examples, fewer than the {sum(numbers_)} of all sizes.")
    return numbers_


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _keys(examples: Sequence[dspy.Example], by_content: bool) -> Iterator[list[Hashable]]:
    """What examples share with those they must stay with; then the turns of each path."""
    paths: dict[int, tuple[str, ...]] = {}
    lost = _lost(examples) if by_content else set()
    for example in examples:
        keys: list[Hashable] = []
        known = lineage(example)
        if known is not None:
            if lost:
                shown = (*known.lost, *_turns(example, known))
                keys += [("lost", digest) for digest in shown if digest in lost]
            keys += [("turn", turn) for turn in (known.turn_id, *known.path[:1]) if turn]
            keys += [("session", known.session_id)] * (known.session_id is not None)
            keys += [("origin", origin) for origin in known.origins if by_content]
            paths[id(known.path)] = known.path
        elif by_content:
            keys += [("origin", origin) for origin in _origins(example)]
        if by_content:
            digest = content_digest(_asked(example))
            keys += [("asked", digest)] * (digest is not None)
        yield keys
    for path in paths.values():
        yield [("turn", turn) for turn in path]


def _lost(examples: Sequence[dspy.Example]) -> set[str | None]:
    """The turns that calls of some examples saw, and that their conversations store no more."""
    return {digest for known in map(lineage, examples) if known for digest in known.lost}


def _turns(example: dspy.Example, known: Lineage) -> Iterator[str | None]:
    """The turn of an example, and the stored ones before it that its history shows."""
    past = {name: one for name, one in example.items() if isinstance(one, dspy.History)}
    yield turn_digest(known.index, {n: value for n, value in example.items() if n not in past})
    for history in past.values():
        stored = history.messages[-len(known.before) :] if known.before else []
        for back, message in enumerate(reversed(stored), start=1):
            yield turn_digest(known.index - back, message)


def _origins(example: dspy.Example) -> Iterator[str]:
    """What an example that knows no turn shows of how its conversation began.

    Of the inputs each counts by itself, too, for a history may leave some of them out.
    """
    past = {name: one for name, one in example.items() if isinstance(one, dspy.History)}
    for name, history in past.items():
        first = dict((history.messages or [example.without(name)])[0].items())
        asked = getattr(example, "_input_keys", None) or [*first][:1]
        inputs = [value for field, value in first.items() if field in asked]
        outputs = [value for field, value in first.items() if field not in asked]
        for said in (inputs, *([one] for one in inputs)):
            yield from origin_digests(said, outputs)


def _asked(example: dspy.Example) -> dict[str, Any]:
    """The inputs of an example; all its fields, if nobody said which those are."""
    names = getattr(example, "_input_keys", None)  # a Prediction has none
    return {name: value for name, value in example.items() if names is None or name in names}
