"""X15: what a call saw of the past is found without going through the past."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import dspy
import pytest

from dspy_session import SessionState, sessionify, tree
from dspy_session.core import Run, SessionOptions, commit, prepare, replace_turn, truncate, undo
from dspy_session.pictures.nodes import TreeTurn
from dspy_session.pictures.seen import Seen, Sight
from dspy_session.testing import Prompt, ScriptedLM

OPTIONS = (
    SessionOptions(),
    SessionOptions(max_turns=3),
    SessionOptions(exclude_fields={"passage", "note"}),
    SessionOptions(exclude_fields={"passage", "note"}, max_turns=2),
    SessionOptions(history_input_fields={"question"}, max_turns=4),
)


def said(
    state: SessionState, chance: random.Random, options: SessionOptions, undone: int = 0
) -> SessionState:
    """The conversation with one more turn; turns may be undone while its call runs."""
    number = chance.random()
    inputs = {"question": f"{number}", **({"passage": "long"} if number < 0.6 else {})}
    erased = number < 0.1
    step = prepare(state, {} if erased else inputs, options)
    state = undo(state, undone)[1] if undone else state
    outputs, details = ({}, {"erased": "0" * 64}) if erased else ({"answer": "?"}, {})
    return commit(state, step, outputs, Run(id=f"{number}"), options, details=details)[1]


def walked(seed: int) -> Iterator[SessionState]:
    """Versions of one conversation, whose turns saw what is not there any more."""
    chance = random.Random(seed)
    state, options = SessionState(id="walk"), OPTIONS[seed % len(OPTIONS)]
    for _ in range(30):
        move = chance.random()
        if move < 0.65 or not len(state):
            state = said(state, chance, options)
        elif move < 0.75:
            state = said(state, chance, options, undone=2)
        elif move < 0.8:
            state = undo(state, chance.randint(1, 3))[1]
        elif move < 0.9:
            at = chance.choice([turn.index for turn in state])
            state = replace_turn(state, at, {"answer": "better", "note": "by hand"}, id=f"{move}")[
                1
            ]
        elif move < 0.93:
            state = truncate(state, 6)
        else:
            yield state
    yield state


def plainly(shown: TreeTurn) -> tuple[list[int], list[int], set[str]]:
    """The turns of a window that are as they were, those that are not, and what it hides."""
    window, path = shown.turn.window, shown.path
    same, gone, hidden = list[int](), list[int](), set[str]()
    for at in range(window.start, window.stop):
        exchange, there = window.log[at - window.offset], at - path.first
        if exchange.erased:
            continue
        is_there = there >= 0 and at < shown.turn.index and path.log[there] is exchange
        (same if is_there else gone).append(at)
        inputs, outputs, _ = exchange.parts
        hidden |= {*inputs, *outputs} - exchange.shown(window.view).keys()
    return same, gone, hidden


def turns_of(seen: Seen) -> list[int]:
    return [
        at for first, last in seen.stretches for at in range(first.turn.index, last.turn.index + 1)
    ]


@pytest.mark.parametrize("seed", range(15))
def test_X15_what_a_call_saw_is_what_its_window_shows(seed: int) -> None:
    drawn = tree(*walked(seed))
    sight = Sight(drawn.branches)
    for shown in drawn.turns:
        seen = sight.of(shown)
        same, gone, hidden = plainly(shown)
        assert (turns_of(seen), [at for at, _ in seen.gone]) == (same, gone)
        assert (seen.count, seen.hidden) == (len(same), tuple(sorted(hidden)))


def test_X15_a_turn_that_was_recorded_over_what_its_call_saw_is_drawn() -> None:
    def reply(prompt: Prompt) -> dict[str, str]:
        if "Late" in prompt[-1]["content"]:
            session.undo(3)  # as somebody else would, while the model speaks
        return {"answer": "Hm."}

    session = sessionify(dspy.Predict("question -> answer"))
    with dspy.context(lm=ScriptedLM(reply)):
        for question in ("one", "two", "three", "four", "Late"):
            session(question=question)
    assert [turn.inputs["question"] for turn in session.turns] == ["one", "Late"]
    (_, late) = tree(session).turns
    seen = Sight(tree(session).branches).of(late)
    assert (turns_of(seen), [at for at, _ in seen.gone]) == ([0], [1, 2, 3])
    assert "turn 3 as it was then" in session.to_html()


def test_X15_it_costs_the_same_after_any_number_of_turns() -> None:
    options = SessionOptions(exclude_fields={"answer"})

    def calls_for(turns: int) -> int:
        state = SessionState(id="long")
        for number in range(turns):
            step = prepare(state, {"question": f"{number}"}, options)
            state = commit(state, step, {"answer": "?"}, Run(id=f"{number}"), options)[1]
        drawn = tree(state)
        sight, calls = Sight(drawn.branches), 0
        *_, before, last = drawn.turns
        sight.of(before)

        def count(frame: FrameType, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            seen = sight.of(last)
        finally:
            sys.setprofile(None)
        assert (seen.count, seen.hidden) == (turns - 1, ("answer",))
        return calls

    assert calls_for(1_000) < 2 * calls_for(40)
