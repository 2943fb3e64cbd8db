"""The model law: random walks over conversations beside plain lists that are copied in full."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dspy_session import codec
from dspy_session.core import (
    Exchange,
    HistoryPolicy,
    Run,
    SessionOptions,
    SessionState,
    Step,
    Turn,
    annotate,
    commit,
    prepare,
    redo,
    replace_turn,
    reset,
    rewind,
    start,
    truncate,
    undo,
    visible_window,
    with_id,
)
from dspy_session.core.flat import pack, unpack
from dspy_session.errors import CallError, HistoryError, OptionError, SessionError, TurnIndexError

Fields = dict[str, Any]


# The model: lists of plain values, nothing shared


@dataclass
class PlainTurn:
    index: int
    inputs: Fields
    outputs: Fields
    saw: list[Fields]
    id: str
    score: float | None = None
    feedback: str | None = None


@dataclass
class Plain:
    """A conversation as anybody would write it down."""

    id: str | None = None
    seed: list[Fields] = field(default_factory=list)
    turns: list[PlainTurn] = field(default_factory=list)
    undone: list[PlainTurn] = field(default_factory=list)
    next: int = 0

    def copy(self) -> Plain:
        return copy.deepcopy(self)

    def visible(self, options: SessionOptions) -> list[Fields]:
        shown = self.turns if options.max_turns is None else self.turns[::-1][: options.max_turns]
        if options.max_turns is not None:
            shown = shown[::-1]
        only = options.history_input_fields
        messages = list(self.seed)
        for turn in shown:
            inputs = {k: v for k, v in turn.inputs.items() if only is None or k in only}
            messages.append({**inputs, **turn.outputs})
        return copy.deepcopy(
            [
                {k: v for k, v in message.items() if k not in options.exclude_fields}
                for message in messages
            ]
        )

    def record(self, turn: PlainTurn, keep: int | None) -> None:
        self.turns.append(replace(turn, index=self.next))
        self.undone = []
        self.next += 1
        self.truncate(keep)

    def truncate(self, keep: int | None) -> None:
        if keep is not None and len(self.turns) > keep:
            self.turns, self.undone = self.turns[len(self.turns) - keep :], []

    def undo(self, steps: int) -> list[PlainTurn]:
        gone = []
        for _ in range(min(steps, len(self.turns))):
            gone.append(self.turns.pop())
            self.undone.insert(0, gone[-1])
            self.next -= 1
        return gone

    def redo(self, steps: int) -> list[PlainTurn]:
        back = []
        for _ in range(min(steps, len(self.undone))):
            back.append(self.undone.pop(0))
            self.turns.append(back[-1])
            self.next += 1
        return back

    def restart(self, seed: list[Fields]) -> None:
        self.seed, self.turns, self.undone, self.next = seed, [], [], 0


# What both look like, down to types and key order


def ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return ("dict", [(key, ordered(item)) for key, item in value.items()])
    if isinstance(value, list):
        return ("list", [ordered(item) for item in value])
    return (type(value).__name__, value)


def picture_of_turn(turn: Turn | PlainTurn) -> Any:
    saw = turn.saw if isinstance(turn, PlainTurn) else turn.history_snapshot.messages
    parts = turn.inputs, turn.outputs, saw
    return turn.index, turn.id, turn.score, turn.feedback, *map(ordered, parts)


def picture(state: SessionState) -> Any:
    """Everything that can be read from a state, materialised."""
    return (
        state.id,
        [ordered(exchange.outputs) for exchange in state.seed],
        [picture_of_turn(turn) for turn in state.turns],
        [picture_of_turn(turn) for turn in state.undone],
        state.stop,
    )


def picture_of_plain(plain: Plain) -> Any:
    return (
        plain.id,
        [ordered(message) for message in plain.seed],
        [picture_of_turn(turn) for turn in plain.turns],
        [picture_of_turn(turn) for turn in plain.undone],
        plain.next,
    )


def spoil(value: Any) -> None:
    """Change a value in place, wherever it can be."""
    if isinstance(value, dict):
        for item in value.values():
            spoil(item)
        value["spoiled"] = True
    elif isinstance(value, list):
        for item in value:
            spoil(item)
        value.append("spoiled")


# What happens in a conversation

scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "a", "ü\n"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("yxz"), inner),
    max_leaves=3,
)
inputs = st.dictionaries(st.sampled_from(["question", "context", "mood"]), values)
outputs = st.dictionaries(st.sampled_from(["answer", "reasoning", "score"]), values)
messages = st.lists(
    st.dictionaries(st.sampled_from(["question", "answer", "context"]), values), max_size=3
)
option_values = st.builds(
    SessionOptions,
    max_turns=st.none() | st.integers(0, 4),
    max_stored_turns=st.none() | st.none() | st.integers(0, 6),
    exclude_fields=st.sampled_from([(), (), ("context",), ("answer", "mood")]),
    history_input_fields=st.sampled_from([None, None, ("question",), ()]),
    history_policy=st.sampled_from(HistoryPolicy),
)
histories = st.none() | st.none() | messages
scores = st.floats(-2, 2) | st.sampled_from([float("inf"), 0.0])
steps = st.integers(0, 4)


@dataclass
class Pending:
    """A call that has begun: what the library holds of it, and what the model does."""

    step: Step
    options: SessionOptions
    inputs: Fields
    saw: list[Fields]
    records: bool
    seed: list[Fields] | None


class Conversations(RuleBasedStateMachine):
    """Several branches, any of which may come next, and calls that are still under way."""

    @initialize(seed=messages)
    def begin(self, seed: list[Fields]) -> None:
        self.ids = 0
        self.pending: list[Pending] = []
        self.branches = [(start(seed, id="first"), Plain(id="first", seed=copy.deepcopy(seed)))]
        spoil(seed)
        self.now = 0

    def new_id(self) -> str:
        self.ids += 1
        return f"turn-{self.ids}"

    @property
    def state(self) -> SessionState:
        return self.branches[self.now][0]

    @property
    def plain(self) -> Plain:
        return self.branches[self.now][1].copy()

    def go_on(self, operation: Callable[[SessionState], SessionState], plain: Plain) -> None:
        """Apply an operation, which must leave its argument alone and agree with the model."""
        before = self.state
        was = picture(before)
        after = operation(before)
        assert picture(before) == was
        assert picture(after) == picture_of_plain(plain)
        assert picture(unpack(pack(after))) == picture(after)
        self.branches[self.now] = (after, plain)

    def refused(self, kind: type[SessionError], operation: Callable[[], object]) -> None:
        """An operation fails as it should, and nothing has changed, anywhere."""
        states = [state for state, _ in self.branches]
        pictures = [picture(state) for state in states]
        with pytest.raises(kind, match=r"\w+ \w+"):
            operation()
        assert all(a is b for a, (b, _) in zip(states, self.branches, strict=True))
        assert [picture(state) for state in states] == pictures

    def pick(self, indices: Sequence[int], at: float) -> int:
        return indices[min(int(at * len(indices)), len(indices) - 1)]

    # Calls

    def prepared(self, inputs: Fields, options: SessionOptions, history: Any) -> Pending:
        plain = self.plain
        records, seed, saw = True, None, plain.visible(options)
        mine, given = copy.deepcopy(inputs), copy.deepcopy(history)
        was = picture(self.state)
        step = prepare(self.state, inputs, options, history)
        assert picture(self.state) == was
        spoil(inputs)
        spoil(history)
        if given is not None:
            saw = copy.deepcopy(given)
            records = options.history_policy is not HistoryPolicy.OVERRIDE
            if options.history_policy is HistoryPolicy.REPLACE_SESSION:
                seed = given
                saw = Plain(seed=given).visible(options)
        assert step.records is records
        assert ordered(step.window.messages()) == ordered(saw)
        return Pending(step, options, mine, saw, records, seed)

    def finish(self, call: Pending, outputs: Fields) -> None:
        plain, id = self.plain, self.new_id()
        if call.records:
            if call.seed is not None:
                plain.restart(copy.deepcopy(call.seed))
            turn = PlainTurn(-1, call.inputs, copy.deepcopy(outputs), call.saw, id)
            plain.record(copy.deepcopy(turn), call.options.max_stored_turns)

        def operation(state: SessionState) -> SessionState:
            index = 0 if call.seed is not None else state.stop
            turn, after = commit(state, call.step, outputs, Run(id=id), call.options)
            assert (turn is None) is not call.records
            if turn is None:
                assert after is state
            else:
                assert (turn.index, turn.id) == (index, id)
                assert not len(after) or after.last is turn
            return after

        self.go_on(operation, plain)
        spoil(outputs)

    @rule(inputs=inputs, outputs=outputs, options=option_values, history=histories)
    def call(self, inputs: Fields, outputs: Fields, options: SessionOptions, history: Any) -> None:
        self.finish(self.prepared(inputs, options, history), outputs)

    @rule(inputs=inputs, outputs=outputs)
    def plain_call(self, inputs: Fields, outputs: Fields) -> None:
        self.finish(self.prepared(inputs, SessionOptions(), None), outputs)

    @rule(inputs=inputs, options=option_values, history=histories)
    def begin_call(self, inputs: Fields, options: SessionOptions, history: Any) -> None:
        self.pending.append(self.prepared(inputs, options, history))

    @rule(outputs=outputs, at=st.floats(0, 1))
    def end_call(self, outputs: Fields, at: float) -> None:
        """A call ends on whatever the conversation, or even the branch, is by then."""
        if self.pending:
            call = self.pending.pop(self.pick(range(len(self.pending)), at))
            self.finish(call, outputs)

    @rule(inputs=inputs)
    def failing_call(self, inputs: Fields) -> None:
        options = SessionOptions()
        named: Fields = {**inputs, "history": []}
        self.refused(HistoryError, lambda: prepare(self.state, named, options))
        self.refused(HistoryError, lambda: prepare(self.state, inputs, options, [1]))  # type: ignore[list-item]
        wrong: Any = {1: "one"}
        self.refused(CallError, lambda: prepare(self.state, wrong, options))
        step = prepare(self.state, inputs, options)
        bad: Any
        for bad in (None, "history", [("answer", 1)], {2: 3}):
            self.refused(CallError, lambda: commit(self.state, step, bad, Run(), options))  # noqa: B023
        for bad in ({"history": 1}, {"a": 1, "history": []}):
            self.refused(HistoryError, lambda: commit(self.state, step, bad, Run(), options))  # noqa: B023

    # Moves

    @rule(steps=steps)
    def undo(self, steps: int) -> None:
        plain = self.plain
        gone = plain.undo(steps)

        def operation(state: SessionState) -> SessionState:
            turns, after = undo(state, steps)
            assert list(map(picture_of_turn, turns)) == list(map(picture_of_turn, gone))
            assert redo(after, len(turns))[1] == state
            return after

        self.go_on(operation, plain)

    @rule(steps=steps)
    def redo(self, steps: int) -> None:
        plain = self.plain
        back = plain.redo(steps)

        def operation(state: SessionState) -> SessionState:
            turns, after = redo(state, steps)
            assert list(map(picture_of_turn, turns)) == list(map(picture_of_turn, back))
            return after

        self.go_on(operation, plain)

    @rule(at=st.floats(0, 1), redoable=st.booleans())
    def rewind(self, at: float, redoable: bool) -> None:
        to = self.pick(range(self.state.first, self.state.stop + 1), at)
        plain = self.plain
        plain.undo(plain.next - to)
        if not redoable:
            plain.undone = []
        self.go_on(lambda state: rewind(state, to, redoable=redoable), plain)

    @rule()
    def reset(self) -> None:
        plain = self.plain
        plain.restart(plain.seed)
        self.go_on(reset, plain)

    @rule(outputs=outputs, at=st.floats(0, 1))
    def replace_turn(self, outputs: Fields, at: float) -> None:
        if not len(self.state):
            return
        index, id, plain = self.pick([t.index for t in self.state], at), self.new_id(), self.plain
        for position, turn in enumerate(plain.turns):
            if turn.index == index:
                mine = copy.deepcopy(outputs)
                plain.turns[position] = replace(
                    turn, outputs=mine, id=id, score=None, feedback=None
                )
        plain.undone = []

        def operation(state: SessionState) -> SessionState:
            turn, after = replace_turn(state, index, outputs, id=id)
            assert after.turn(index) is turn
            return after

        self.go_on(operation, plain)
        spoil(outputs)

    @rule(keep=st.none() | st.integers(0, 6))
    def truncate(self, keep: int | None) -> None:
        plain = self.plain
        plain.truncate(keep)
        self.go_on(lambda state: truncate(state, keep), plain)

    @rule(score=scores, feedback=st.none() | st.just("well said"), at=st.floats(0, 1))
    def annotate(self, score: float, feedback: str | None, at: float) -> None:
        if not len(self.state):
            return
        index, plain = self.pick([turn.index for turn in self.state], at), self.plain
        for turn in plain.turns:
            if turn.index == index:
                turn.score, turn.feedback = score, feedback
        self.go_on(lambda state: annotate(state, {index: (score, feedback)}), plain)

    @rule(beyond=st.integers(1, 3))
    def refuse(self, beyond: int) -> None:
        state = self.state
        for index in (state.first - beyond, state.stop + beyond - 1):
            self.refused(TurnIndexError, lambda: state.turn(index))  # noqa: B023
            self.refused(TurnIndexError, lambda: replace_turn(state, index, {}, id=""))  # noqa: B023
            self.refused(TurnIndexError, lambda: annotate(state, {index: (1.0, None)}))  # noqa: B023
        for to in (state.first - beyond, state.stop + beyond):
            self.refused(TurnIndexError, lambda: rewind(state, to))  # noqa: B023
        for move in (undo, redo, truncate):
            self.refused(OptionError, lambda: move(state, -beyond))  # noqa: B023
        if len(state):
            index = state.first
            self.refused(CallError, lambda: replace_turn(state, index, 5, id=""))  # type: ignore[arg-type]
            for note in (("good", None), (None, None), (1.0, 5)):
                self.refused(OptionError, lambda: annotate(state, {index: note}))  # type: ignore[dict-item]  # noqa: B023

    # Branches, and trips to a file and back

    @rule()
    def fork(self) -> None:
        id = f"branch-{len(self.branches)}"
        plain = replace(self.plain, id=id)
        self.branches.append((with_id(self.state, id), plain))
        self.now = len(self.branches) - 1

    @rule(at=st.floats(0, 1))
    def switch(self, at: float) -> None:
        self.now = self.pick(range(len(self.branches)), at)

    @rule(options=option_values, way=st.sampled_from(["json", "msgpack", "pickle", "copies"]))
    def save_and_load(self, options: SessionOptions, way: str) -> None:
        def operation(state: SessionState) -> SessionState:
            loaded, read = way_and_back(way, state, options)
            assert read == options
            assert loaded == state
            return loaded

        self.go_on(operation, self.plain)

    @invariant()
    def every_branch_and_pending_call_is_as_it_was(self) -> None:
        for state, plain in self.branches:
            assert picture(state) == picture_of_plain(plain)
        for call in self.pending:
            assert ordered(call.step.window.messages()) == ordered(call.saw)


def way_and_back(
    way: str, state: SessionState, options: SessionOptions
) -> tuple[SessionState, SessionOptions]:
    if way == "json":
        return codec.decode(codec.encode(state, options))
    if way == "msgpack":
        return codec.decode(codec.encode(state, options, "msgpack"), "msgpack")
    if way == "pickle":
        loaded: tuple[SessionState, SessionOptions] = pickle.loads(pickle.dumps((state, options)))
        return loaded
    return copy.deepcopy(copy.copy(state)), options


TestModelLaw = Conversations.TestCase
TestModelLaw.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


# Snapshots, whatever callers hold in their hands


def test_X3_nothing_that_is_handed_in_or_out_is_a_handle() -> None:
    options = SessionOptions()
    seed, given = [{"question": ["seed"]}], {"question": ["one"], "context": {"a": [1]}}
    state = start(seed)
    step = prepare(state, given, options)
    spoil(seed)
    spoil(given)
    answer = {"answer": {"words": ["hello"]}}
    usage = {"model": {"total": 3, "details": {"cached": [1]}}}
    pairs = tuple((model, tuple(counts.items())) for model, counts in usage.items())
    turn, state = commit(state, step, answer, Run(id="a", usage=pairs), options)
    spoil(answer)
    assert turn is not None
    _, state = commit(state, prepare(state, {"question": ["two"]}, options), {}, Run(), options)
    was = picture(state)
    for turn in state:
        for handed_out in (turn.inputs, turn.outputs, turn.history_snapshot.messages, turn.usage):
            spoil(handed_out)
    spoil(visible_window(state, options).messages())
    for exchange in state.seed:
        spoil(exchange.outputs)
    spoil(step.inputs)
    assert picture(state) == was
    assert state.turns[0].usage == {"model": {"total": 3, "details": {"cached": [1]}}}
    assert state.turns[1].history_snapshot.messages == [
        {"question": ["seed"]},
        {"question": ["one"], "context": {"a": [1]}, "answer": {"words": ["hello"]}},
    ]


def test_X3_an_exchange_is_a_private_copy() -> None:
    inputs, outputs = {"question": ["one"]}, {"answer": ["two"]}
    exchange = Exchange(inputs, outputs)
    other = exchange.with_outputs(outputs)
    for handed_over in (inputs, outputs, exchange.inputs, other.outputs):
        spoil(handed_over)
    for kept in (exchange, other, copy.deepcopy(exchange), pickle.loads(pickle.dumps(exchange))):
        assert (kept.inputs, kept.outputs) == ({"question": ["one"]}, {"answer": ["two"]})
        assert kept.same_as(exchange)


def test_X3_a_snapshot_is_what_the_call_saw_whatever_came_later() -> None:
    wide, narrow = SessionOptions(), SessionOptions(max_turns=1, exclude_fields={"answer"})
    state = start([{"note": "seed"}])
    seen = []
    for number in range(6):
        options = narrow if number % 2 else wide
        seen.append(visible_window(state, options).messages())
        step = prepare(state, {"question": number}, options)
        _, state = commit(state, step, {"answer": number}, Run(id=str(number)), options)
        _, state = replace_turn(state, state.stop - 1, {"answer": -number}, id=f"{number}'")
    state = truncate(annotate(rewind(state, 5), {4: (1.0, None)}), 2)
    assert [turn.index for turn in state] == [3, 4]
    assert [turn.history_snapshot.messages for turn in state] == seen[3:5]
    assert seen[3] == [{"note": "seed"}, {"question": 2}]
    assert [turn.history_snapshot.messages for turn in undo(state, 9)[0]] == seen[4:2:-1]


# Named rows, each in a few lines


def said(state: SessionState) -> list[Any]:
    return [turn.inputs["q"] for turn in state]


def say(state: SessionState, *words: Any, options: SessionOptions | None = None) -> SessionState:
    options = options or SessionOptions()
    for word in words:
        step = prepare(state, {"q": word}, options)
        _, state = commit(state, step, {"a": word}, Run(id=f"id-{word}"), options)
    return state


def test_D7_windows_and_filters() -> None:
    state = say(start([{"q": "seed", "a": "seed"}]), 0, 1, 2)

    def shown(**options: Any) -> list[Fields]:
        return visible_window(state, SessionOptions(**options)).messages()[1:]

    assert shown(max_turns=0) == []
    assert shown(max_turns=2) == [{"q": 1, "a": 1}, {"q": 2, "a": 2}]
    assert shown(max_turns=9) == shown()
    assert shown(exclude_fields={"q"}) == [{"a": 0}, {"a": 1}, {"a": 2}]
    assert shown(history_input_fields={"other"}) == [{"a": 0}, {"a": 1}, {"a": 2}]
    assert shown(exclude_fields={"a"}, history_input_fields={"q"}) == [{"q": 0}, {"q": 1}, {"q": 2}]
    excluded = visible_window(state, SessionOptions(max_turns=0, exclude_fields={"a"}))
    assert excluded.messages() == [{"q": "seed"}]
    only = visible_window(state, SessionOptions(max_turns=0, history_input_fields=set()))
    assert only.messages() == [{"q": "seed", "a": "seed"}]


def test_D7_trimming_keeps_the_absolute_index() -> None:
    state = say(SessionState(), *range(10), options=SessionOptions(max_stored_turns=3))
    assert [turn.index for turn in state] == [7, 8, 9]
    assert said(state) == [7, 8, 9]
    assert state.turn(8).inputs == {"q": 8}
    assert say(state, 10).turns[-1].index == 10
    nothing = say(SessionState(), "a", "b", options=SessionOptions(max_stored_turns=0))
    assert (len(nothing), nothing.stop, nothing.last) == (0, 2, None)


def test_D8_the_seed_is_seen_not_counted_and_survives_reset() -> None:
    state = start([{"q": "seed"}], id="mine")
    assert (len(state), len(visible_window(state, SessionOptions(max_turns=0)))) == (0, 1)
    state = reset(say(state, 1))
    assert (state.id, len(state), len(state.seed)) == ("mine", 0, 1)
    assert say(state, 2).turns[0].index == 0
    bad: Any
    for bad in (5, "text", {"q": "one message"}, [3], [{4: 5}]):
        with pytest.raises(HistoryError, match=r"dicts? of fields"):
            start(bad)


def test_D13_fork_is_the_same_value_and_branches_are_independent() -> None:
    trunk = say(SessionState(id="trunk"), 0, 1, 2)
    branch = with_id(trunk, "branch")
    assert branch.held is trunk.held
    assert branch.log is trunk.log
    left, right = say(branch, "left"), say(rewind(branch, 1), "right")
    assert (said(trunk), said(left), said(right)) == ([0, 1, 2], [0, 1, 2, "left"], [0, "right"])
    assert redo(right)[0] == ()
    assert said(redo(rewind(left, 1), 9)[1]) == said(left)


def test_D14_undo_redo_and_the_end_of_redo() -> None:
    state = say(SessionState(), 0, 1, 2)
    gone, back = undo(state, 2)
    assert [turn.index for turn in gone] == [2, 1]
    assert redo(back, 9)[1] == state
    assert redo(annotate(back, {0: (1.0, None)}), 2)[1] == annotate(state, {0: (1.0, None)})
    for other_path in (
        say(back, "new"),
        reset(back),
        replace_turn(back, 0, {"a": "new"}, id="new")[1],
        truncate(back, 0),
        rewind(back, 1, redoable=False),
    ):
        assert other_path.undone == ()
        assert redo(other_path) == ((), other_path)
    assert undo(SessionState()) == ((), SessionState())


def test_D14_replace_keeps_what_is_about_the_call_and_drops_the_score() -> None:
    state = annotate(say(SessionState(), 0, 1, 2), {1: (0.5, "so so")})
    turn, changed = replace_turn(state, 1, {"a": "better"}, id="new")
    old = state.turn(1)
    assert (turn.index, turn.inputs, turn.id) == (1, old.inputs, "new")
    assert (turn.score, turn.feedback, old.score, old.feedback) == (None, None, 0.5, "so so")
    assert turn.history_snapshot == old.history_snapshot
    assert changed.turn(2).history_snapshot.messages[1] == {"q": 1, "a": 1}
    assert visible_window(changed, SessionOptions()).messages()[1] == {"q": 1, "a": "better"}


@pytest.mark.parametrize("words", [("zero",), ("zero", "one")])
@pytest.mark.parametrize("wrong", [True, False, 0.0, 1.0, "0", None])
def test_D14_only_whole_numbers_are_indices(words: tuple[str, ...], wrong: Any) -> None:
    state = say(SessionState(), *words)
    with pytest.raises(TurnIndexError, match="the stored turns have the indices 0 to"):
        state.turn(wrong)
    with pytest.raises(TurnIndexError):
        rewind(state, wrong)
    if wrong is not None:
        with pytest.raises(OptionError, match="keep must be a whole number"):
            truncate(state, wrong)
    with pytest.raises(OptionError, match="steps must be a whole number from 0 up"):
        undo(state, wrong)
    with pytest.raises(OptionError, match="steps must be a whole number from 0 up"):
        redo(state, wrong)
    with pytest.raises(TurnIndexError, match="There is no turn 0: no turn is stored"):
        SessionState().turn(0)


def test_A14_a_call_that_never_ends_adds_nothing() -> None:
    state = say(SessionState(), 0)
    was = picture(state)
    prepare(state, {"q": "lost"}, SessionOptions())
    assert picture(state) == was


def test_overlapping_calls_lose_nothing_and_keep_what_they_saw() -> None:
    options = SessionOptions()
    state = say(SessionState(), "a")
    begun = [prepare(state, {"q": n}, options) for n in range(3)]
    for number in (2, 0, 1):
        _, state = commit(state, begun[number], {"a": number}, Run(id=str(number)), options)
    assert said(state) == ["a", 2, 0, 1]
    assert [len(turn.window) for turn in state] == [0, 1, 1, 1]
    late = prepare(state, {"q": "late"}, options)
    _, state = commit(rewind(state, 1), late, {}, Run(), options)
    assert state.turns[1].index == 1
    assert len(state.turns[1].window) == 4


def test_a_late_call_keeps_the_branch_that_it_saw() -> None:
    options = SessionOptions()
    state = say(SessionState(), 0, 1, 2)
    late = prepare(state, {"q": "late"}, options)
    early = prepare(rewind(state, 1), {"q": "early"}, options)
    state = say(rewind(state, 2), "other", "more")
    for begun in (late, early):
        _, state = commit(state, begun, {}, Run(), options)
    state = say(state, "and on")
    seen = [[m["q"] for m in turn.history_snapshot.messages] for turn in state.turns[4:6]]
    assert seen == [[0, 1, 2], [0]]
    for way in ("json", "msgpack", "pickle"):
        assert picture(way_and_back(way, state, options)[0]) == picture(state)


def test_states_are_equal_when_all_they_show_is() -> None:
    def build(seed: Any = 0, answer: Any = 1, id: str = "a", score: float = 1.0) -> SessionState:
        state = start([{"note": seed}], id="same")
        step = prepare(state, {"q": [1]}, SessionOptions())
        _, state = commit(state, step, {"a": answer, "b": 2}, Run(id=id), SessionOptions())
        return annotate(say(state, "more"), {0: (score, None)})

    state = build()
    assert state == build()
    _, reordered = replace_turn(state, 0, {"b": 2, "a": 1}, id="a")
    _, same_again = replace_turn(state, 0, {"a": 1, "b": 2}, id="a")
    others: list[object] = [
        build(seed=5),
        build(answer=5),
        build(id="b"),
        build(score=0.0),
        with_id(state, "other"),
        undo(state)[1],
        truncate(state, 1),
        annotate(reordered, {0: (1.0, None)}),
        state.turns,
        None,
    ]
    for other in others:
        assert state != other
    assert state == annotate(same_again, {0: (1.0, None)})
    one, two = (undo(build(), n)[1] for n in (1, 2))
    assert one != two
    with pytest.raises(TypeError, match="unhashable"):
        hash(state)
    assert hash(state.turns[0]) == hash(build().turns[0])
    assert state.turns[0] == build().turns[0] != state.turns[1]


def test_steps_meet_on_branches_that_were_edited_apart() -> None:
    """Both branches have the same exchange last, and others before it: snapshots stay apart."""
    options = SessionOptions()
    trunk = say(SessionState(), 0, 1, 2)
    _, left = replace_turn(trunk, 0, {"a": "left"}, id="left")
    _, right = replace_turn(trunk, 1, {"a": "right"}, id="right")
    begun = prepare(left, {"q": "from the left"}, options)
    state = say(commit(right, begun, {}, Run(id="met"), options)[1], "and on")
    for way in ("json", "msgpack", "pickle"):
        loaded, _ = way_and_back(way, state, options)
        assert picture(loaded) == picture(state)
    assert [m["a"] for m in state.turns[3].history_snapshot.messages] == ["left", 1, 2]
