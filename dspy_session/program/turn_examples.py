"""Training examples that know which turn they were.

The lineage is an attribute of the example and none of its fields, so nothing that DSPy reads of an
example shows it: `keys`, `items`, `toDict`, `inputs`, `labels`, `==`, `repr`, demos in a prompt or
in a file of JSON. `copy`, `with_inputs`, `without` and deepcopy keep it, since DSPy makes a copy as
`type(example)(base=example)`.

Pickled, an example is a plain `dspy.Example` with the lineage as a dict beside it, so that a
program whose demos it was put into opens where this library is not installed.
"""

from __future__ import annotations

import copy
from typing import Any, Final

import dspy
import msgspec

from dspy_session.core.lineage import Lineage

__all__ = ["TurnExample", "lineage", "with_lineage"]

_PLACE: Final = "_lineage"


class TurnExample(dspy.Example):
    """A `dspy.Example` made of a turn; `lineage(example)` tells of which."""

    _lineage: Any

    def __init__(self, base: Any = None, **kwargs: Any) -> None:
        held = _held(base)
        if isinstance(base, dspy.Example) and not isinstance(base, TurnExample):
            base = with_lineage(base, None)  # DSPy copies from an example of the same class only
        super().__init__(base, **kwargs)
        self._lineage = held

    def __copy__(self) -> TurnExample:
        return self._twin(vars(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> TurnExample:
        return self._twin(copy.deepcopy(vars(self), memo))

    def _twin(self, attributes: dict[str, Any]) -> TurnExample:
        twin = type(self).__new__(type(self))
        twin.__dict__.update(attributes)
        return twin

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        lineage = self._lineage
        plain = None if lineage is None else msgspec.structs.asdict(lineage)
        return dspy.Example, (), {**vars(self), _PLACE: plain}


def lineage(example: dspy.Example) -> Lineage | None:
    """Return where a training example comes from.

    Args:
        example: An example, or a copy of one: by `copy`, `with_inputs`, `without`, deepcopy or
            pickle. Not by `dspy.Example(example)`, `dspy.Example(**example)`, `inputs()` or
            `labels()`; nor does a copy of what was unpickled know.

    Returns:
        The lineage; None for an example that was not made of a turn.

    Example:
        >>> lineage(dspy.Example(question="Hi")) is None
        True
    """
    held = _held(example)
    return Lineage(**held) if isinstance(held, dict) else held


def with_lineage(example: dspy.Example, lineage: Lineage | None) -> TurnExample:
    """Return an example of the same fields that has a lineage.

    Args:
        example: An example.
        lineage: The lineage; None for none.
    """
    made = TurnExample()
    made.__dict__.update(vars(example))
    made._lineage = lineage
    return made


def _held(example: Any) -> Any:
    return vars(example).get(_PLACE) if isinstance(example, dspy.Example) else None
