"""The model law: random walks over conversations beside plain lists that are copied in full."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec
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
    clear,
    commit,
    describe,
    instruct,
    prepare,
    redo,
    replace_data,
    replace_turn,
    reseed,
    reset,
    rewind,
    start,
    summarized,
    truncate,
    undo,
    visible_window,
    with_id,
    write,
)
from dspy_session.core.data import DELETED, as_data
from dspy_session.core.flat import pack, unpack
from dspy_session.core.profile import Instructions, as_instructions
from dspy_session.core.turn import Beside
from dspy_session.errors import (
    CallError,
    DataError,
    HistoryError,
    OptionError,
    SessionError,
    TurnIndexError,
)

Fields = dict[str, Any]


# The model: lists of plain values, nothing shared


@dataclass
class PlainTurn:
    index: int
    inputs: Fields
    outputs: Fields
    details: Fields
    saw: list[Fields]
    told: list[Fields]
    id: str
    score: float | None = None
    feedback: str | None = None
    nested: dict[str, Plain] = field(default_factory=dict)
    data_before: Fields = field(default_factory=dict)
    data: Fields = field(default_factory=dict)


@dataclass
class Plain:
    """A conversation as anybody would write it down."""

    id: str | None = None
    seed: list[Fields] = field(default_factory=list)
    turns: list[PlainTurn] = field(default_factory=list)
    undone: list[PlainTurn] = field(default_factory=list)
    next: int = 0
    before: dict[str, Plain] = field(default_factory=dict)
    ahead: list[Plain] = field(default_factory=list)
    start: Fields = field(default_factory=dict)
    data_before: Fields = field(default_factory=dict)
    written: Fields | None = None
    metadata: Fields = field(default_factory=dict)
    instructions: str | None = None
    earlier: list[Plain] = field(default_factory=list)

    def copy(self) -> Plain:
        return copy.deepcopy(self)

    @property
    def nested(self) -> dict[str, Plain]:
        return self.turns[-1].nested if self.turns else self.before

    @property
    def data(self) -> Fields:
        if self.written is not None and not self.undone:
            return self.written
        return self.turns[-1].data if self.turns else self.data_before

    def write(self, data: Fields) -> None:
        if ordered(data) == ordered(self.data):
            return
        if self.undone:
            self.undone, self.ahead = [], []
        self.written = data

    def end(self) -> None:
        """Nothing can be redone from here."""
        if self.undone:
            self.written = None
        self.undone, self.ahead = [], []

    def alone(self) -> Plain:
        path = replace(self.copy(), id=None, ahead=[], metadata={}, instructions=None, earlier=[])
        path.start = {}
        path.redo(len(path.undone))
        return path

    def visible(self, options: SessionOptions, told: bool = False) -> list[Fields]:
        shown = self.turns if options.max_turns is None else self.turns[::-1][: options.max_turns]
        if options.max_turns is not None:
            shown = shown[::-1]
        only = options.history_input_fields
        messages = list(self.seed)
        for turn in shown:
            inputs = {k: v for k, v in turn.inputs.items() if only is None or k in only}
            shown_fields = {**inputs, **turn.outputs}
            more = turn.details if told and options.show_details else {}
            messages.append(shown_fields | {k: v for k, v in more.items() if k not in shown_fields})
        return copy.deepcopy(
            [
                {k: v for k, v in message.items() if k not in options.exclude_fields}
                for message in messages
            ]
        )

    def record(
        self,
        turn: PlainTurn,
        keep: int | None,
        replaces: int | None = None,
        given: Fields | None = None,
        changes: Fields | None = None,
    ) -> None:
        before = self.data
        if replaces in [old.index for old in self.turns]:
            before = next(old.data_before for old in self.turns if old.index == replaces)
            self.ahead.insert(0, self.alone())
            self.undo(self.next - (replaces or 0))
        else:
            self.ahead = []
        nested = {**self.nested, **turn.nested}
        before = before if given is None else given
        new = replace(turn, index=self.next, nested=nested, data_before=before)
        self.turns.append(copy.deepcopy(replace(new, data=with_changes(before, changes or {}))))
        self.undone, self.written = [], None
        self.next += 1
        self.truncate(keep)

    def truncate(self, keep: int | None) -> None:
        if keep is not None and len(self.turns) > keep:
            cut = len(self.turns) - keep
            self.before, self.data_before = self.turns[cut - 1].nested, self.turns[cut - 1].data
            self.turns = self.turns[cut:]
            self.end()

    def undo(self, steps: int) -> list[PlainTurn]:
        gone = []
        for _ in range(min(steps, len(self.turns))):
            gone.append(self.turns.pop())
            self.undone.insert(0, gone[-1])
            self.next -= 1
        return gone

    def redo(self, steps: int) -> list[PlainTurn]:
        if steps and self.ahead and not self.undone:
            to, mine = self.ahead.pop(0), self.alone()
            path = [*to.turns, *to.undone]
            common = 0
            while path[common].id == mine.turns[common].id:
                common += 1
            self.turns, self.undone = path[:common], path[common:]
            self.next, self.before = path[common].index, to.before
            self.data_before, self.written = to.data_before, to.written
            self.ahead.append(mine)
        back = []
        for _ in range(min(steps, len(self.undone))):
            back.append(self.undone.pop(0))
            self.turns.append(back[-1])
            self.next += 1
        return back

    def restart(self, seed: list[Fields], data: Fields) -> None:
        self.seed, self.turns, self.undone, self.next = seed, [], [], 0
        self.before, self.ahead, self.earlier = {}, [], []
        self.data_before, self.written = data, None

    def summarize(self, seed: list[Fields], keep: int) -> None:
        was = replace(self.copy(), earlier=[])
        self.truncate(keep)
        self.end()
        self.seed = seed
        self.earlier = [*self.earlier, was]

    def annotate(self, index: int, score: float, feedback: str | None) -> None:
        (noted,) = [turn.id for turn in self.turns if turn.index == index]
        for path in (self, *self.ahead):
            for turn in (*path.turns, *path.undone):
                if turn.id == noted:
                    turn.score, turn.feedback = score, feedback

    def replace_turn(self, index: int, outputs: Fields, id: str) -> None:
        for position, turn in enumerate(self.turns):
            if turn.index == index:
                self.turns[position] = replace(
                    turn, outputs=copy.deepcopy(outputs), id=id, score=None, feedback=None
                )
        self.end()


GONE: Final = "gone"
"""The model's word for a key that is deleted."""


def with_changes(data: Fields, changes: Fields) -> Fields:
    """A plain dict after the same changes; a key that is set again keeps its place."""
    changed = copy.deepcopy(data)
    for key, value in copy.deepcopy(changes).items():
        if value == GONE:
            changed.pop(key, None)
        else:
            changed[key] = value
    return changed


def as_changes(changes: Fields) -> Fields:
    return {key: DELETED if value == GONE else value for key, value in changes.items()}


# What both look like, down to types and key order


def ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return ("dict", [(key, ordered(item)) for key, item in value.items()])
    if isinstance(value, list):
        return ("list", [ordered(item) for item in value])
    return (type(value).__name__, value)


def picture_of_turn(turn: Turn | PlainTurn) -> Any:
    if isinstance(turn, PlainTurn):
        saw, told = turn.saw, turn.told
    else:
        window = turn.window
        saw = turn.history_snapshot.messages
        told = [exchange.told(window.view) for exchange in window]
    parts = turn.inputs, turn.outputs, turn.details, saw, told
    nested = [(path, picture(state)) for path, state in turn.nested.items()]
    data = ordered(dict(turn.data_before)), ordered(dict(turn.data))
    return turn.index, turn.id, turn.score, turn.feedback, nested, data, *map(ordered, parts)


def picture(state: SessionState | Plain) -> Any:
    """Everything that can be read from a state, or from the model of one, materialised."""
    if isinstance(state, Plain):
        seed, stop = state.seed, state.next
    else:
        seed, stop = [exchange.outputs for exchange in state.seed], state.stop
    return (
        state.id,
        list(map(ordered, seed)),
        [picture_of_turn(turn) for turn in state.turns],
        [picture_of_turn(turn) for turn in state.undone],
        stop,
        [(path, picture(inner)) for path, inner in state.nested.items()],
        [(path, picture(inner)) for path, inner in beside_before(state).items()],
        [picture(path) for path in state.ahead],
        ordered(dict(state.data)),
        ordered(dict(state.metadata)),
        words_of(state),
        ordered(dict(state.start if isinstance(state, Plain) else state.profile.start)),
        [picture(other) for other in state.earlier],
    )


def words_of(state: SessionState | Plain) -> str | None:
    told = state.instructions
    return told.text if isinstance(told, Instructions) else told


def beside_before(state: SessionState | Plain) -> Mapping[str, SessionState | Plain]:
    return state.before if isinstance(state, Plain) else state.before.nested


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
details = st.dictionaries(st.sampled_from(["trajectory", "answer", "context"]), values, max_size=2)
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
    show_details=st.booleans(),
)
histories = st.none() | st.none() | messages
scores = st.floats(-2, 2) | st.sampled_from([float("inf"), 0.0])
steps = st.integers(0, 4)
places = st.floats(0, 1)
nobody_or_a_place = st.none() | st.none() | places
keys = st.sampled_from("abcd")
changes = st.dictionaries(keys, values | st.just(GONE), max_size=3)
given_data = st.none() | st.none() | st.dictionaries(keys, values, max_size=2)
inner_moves = st.lists(
    st.tuples(
        st.sampled_from(["say", "say", "again", "undo", "redo", "note", "trim", "fix"]), places
    ),
    max_size=3,
)
moves_among_answers = st.lists(
    st.tuples(outputs, st.sampled_from(["undo", "redo", "redo", "annotate", "regenerate"]), places),
    min_size=1,
    max_size=3,
)
Inner = Mapping[str, list[tuple[str, float]]]
NOBODY: Inner = {}
inner_calls = st.dictionaries(st.sampled_from(["worker", "team.judge"]), inner_moves)


def pick(indices: Sequence[int], at: float) -> int:
    return indices[min(int(at * len(indices)), len(indices) - 1)]


def moved(state: SessionState, plain: Plain, move: str, at: float, id: str) -> SessionState:
    """What a session within the program does in a turn of the outer one; the model is changed."""
    options = SessionOptions(max_stored_turns=5)
    indices = [] if move == "say" else [turn.index for turn in state]
    index = pick(indices, at) if indices else None
    if move in ("say", "again") or index is None:
        step = prepare(state, {"task": id}, options, at=index)
        saw = Plain(
            seed=plain.seed, turns=[t for t in plain.turns if index is None or t.index < index]
        )
        turn = PlainTurn(-1, {"task": id}, {"done": [at]}, {}, [], [], id)
        turn.saw = turn.told = saw.visible(options)
        plain.record(turn, 5, index)
        return commit(state, step, {"done": [at]}, Run(id=id), options)[1]
    if move == "note":
        plain.annotate(index, at, id)
        return annotate(state, {index: (at, id)})
    if move == "fix":
        plain.replace_turn(index, {"done": id}, id)
        return replace_turn(state, index, {"done": id}, id=id)[1]
    count = int(4 * at)
    if move == "trim":
        plain.truncate(count)
        return truncate(state, count)
    if move == "undo":
        plain.undo(count)
        return undo(state, count)[1]
    plain.redo(count)
    return redo(state, count)[1]


@dataclass
class Pending:
    """A call that has begun: what the library holds of it, and what the model does."""

    step: Step
    options: SessionOptions
    inputs: Fields
    saw: list[Fields]
    told: list[Fields]
    records: bool
    seed: list[Fields] | None
    replaces: int | None
    nested: dict[str, Plain]
    given: Fields | None


class Conversations(RuleBasedStateMachine):
    """Several branches, any of which may come next, and calls that are still under way."""

    @initialize(seed=messages, data=st.dictionaries(keys, values, max_size=2))
    def begin(self, seed: list[Fields], data: Fields) -> None:
        self.ids = 0
        self.pending: list[Pending] = []
        plain = Plain(id="first", seed=copy.deepcopy(seed), start=data, data_before=data)
        self.branches = [(start(seed, id="first", data=as_data(data)), plain.copy())]
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
        assert picture(after) == picture(plain)
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

    # Calls

    def prepared(
        self,
        inputs: Fields,
        options: SessionOptions,
        history: Any,
        again: float | None = None,
        given_data: Fields | None = None,
    ) -> Pending:
        plain, at = self.plain, None
        data = plain.data
        if again is not None and len(self.state):
            at = pick([turn.index for turn in self.state], again)
            data = next(turn.data_before for turn in plain.turns if turn.index == at)
            plain.undo(plain.next - at)
        records, seed, nested = True, None, plain.nested
        saw, told = plain.visible(options), plain.visible(options, told=True)
        mine, given = copy.deepcopy(inputs), copy.deepcopy(history)
        was = picture(self.state)
        brought = None if given_data is None else as_data(given_data)
        step = prepare(self.state, inputs, options, history, at, brought)
        assert picture(self.state) == was
        assert ordered(dict(step.beside.data)) == ordered(data if brought is None else given_data)
        spoil(inputs)
        spoil(history)
        if given is not None:
            saw = told = copy.deepcopy(given)
            records = options.history_policy is not HistoryPolicy.OVERRIDE
            if options.history_policy is HistoryPolicy.REPLACE_SESSION:
                seed, at, nested = given, None, {}
                saw = told = Plain(seed=given).visible(options)
        assert (step.records, step.replaces) == (records, at)
        assert ordered(step.window.messages()) == ordered(saw)
        assert [(k, picture(v)) for k, v in step.beside.nested.items()] == [
            (k, picture(v)) for k, v in nested.items()
        ]
        return Pending(step, options, mine, saw, told, records, seed, at, nested, given_data)

    def finish(
        self,
        call: Pending,
        outputs: Fields,
        details: Fields | None = None,
        inner: Inner = NOBODY,
        changes: Fields | None = None,
    ) -> None:
        plain, id = self.plain, self.new_id()
        states, plains = self.inner(call, inner)
        if call.records:
            if call.seed is not None:
                plain.restart(copy.deepcopy(call.seed), plain.data)
            turn = PlainTurn(
                *(-1, call.inputs, outputs, details or {}, call.saw, call.told, id), nested=plains
            )
            plain.record(
                *(copy.deepcopy(turn), call.options.max_stored_turns, call.replaces),
                *(call.given, changes),
            )

        def operation(state: SessionState) -> SessionState:
            index = 0 if call.seed is not None else state.stop
            if call.replaces in [turn.index for turn in state]:
                index = call.replaces or 0
            turn, after = commit(
                *(state, call.step, outputs, Run(id=id), call.options, details),
                nested=states,
                data=None if changes is None else lambda data: data.changed(as_changes(changes)),
            )
            assert (turn is None) is not call.records
            if turn is None:
                assert after is state
            else:
                assert (turn.index, turn.id) == (index, id)
                assert not len(after) or after.last is turn
            return after

        self.go_on(operation, plain)
        spoil(outputs)
        spoil(details)
        states.clear()

    def inner(
        self, call: Pending, inner: Inner
    ) -> tuple[dict[str, SessionState], dict[str, Plain]]:
        """What sessions within the program do in a call, and the same of their models."""
        states, plains = {}, {}
        for path, moves in inner.items():
            state = call.step.beside.nested.get(path, SessionState(id=path))
            plain = copy.deepcopy(call.nested.get(path, Plain(id=path)))
            for move, at in moves:
                state = moved(state, plain, move, at, self.new_id())
            states[path], plains[path] = state, plain
        return states, plains

    @rule(
        inputs=inputs,
        outputs=outputs,
        details=details,
        options=option_values,
        history=histories,
        inner=inner_calls,
        given=given_data,
        changes=changes,
    )
    def call(
        self,
        inputs: Fields,
        outputs: Fields,
        details: Fields,
        options: SessionOptions,
        history: Any,
        inner: Inner,
        given: Fields | None,
        changes: Fields,
    ) -> None:
        call = self.prepared(inputs, options, history, None, given)
        self.finish(call, outputs, details, inner, changes)

    @rule(inputs=inputs, outputs=outputs)
    def plain_call(self, inputs: Fields, outputs: Fields) -> None:
        self.finish(self.prepared(inputs, SessionOptions(), None), outputs)

    # Session data and what belongs to the session

    @rule(changes=changes)
    def write(self, changes: Fields) -> None:
        """What X1 asks of data: it goes along with undo, redo, forks and time travel."""
        plain = self.plain
        plain.write(with_changes(plain.data, changes))
        self.go_on(lambda state: write(state, as_changes(changes)), plain)

    @rule(data=st.dictionaries(keys, values, max_size=2))
    def replace_data(self, data: Fields) -> None:
        plain = self.plain
        plain.write(copy.deepcopy(data))
        self.go_on(lambda state: replace_data(state, as_data(data)), plain)
        spoil(data)

    @rule(changes=changes)
    def describe(self, changes: Fields) -> None:
        plain = self.plain
        plain.metadata = with_changes(plain.metadata, changes)
        self.go_on(lambda state: describe(state, as_changes(changes)), plain)

    @rule(words=st.sampled_from([None, "Be brief.", "Be kind."]))
    def instruct(self, words: str | None) -> None:
        plain = replace(self.plain, instructions=words)
        self.go_on(lambda state: instruct(state, as_instructions(words)), plain)

    @rule()
    def clear(self) -> None:
        plain = self.plain
        plain.restart([], plain.data)
        self.go_on(clear, plain)

    @rule(seed=messages, keep=st.integers(0, 3))
    def summarize(self, seed: list[Fields], keep: int) -> None:
        plain = self.plain
        plain.summarize(copy.deepcopy(seed), keep)
        told = start(seed).seed
        self.go_on(lambda state: summarized(state, told, keep), plain)

    @rule(changes=changes)
    def failing_write(self, changes: Fields) -> None:
        wrong: Any
        for wrong in ({"a": {1, 2}}, {"a": float("nan")}, {"a": {1: 1}}, {1: 1}, None):
            self.refused(DataError, lambda: write(self.state, wrong))  # noqa: B023
            self.refused(DataError, lambda: describe(self.state, wrong))  # noqa: B023
        self.refused(
            DataError, lambda: write(self.state, {**as_changes(changes), "a": "x" * 99}, 50)
        )

    @rule(inputs=inputs, at=places, inner=inner_calls, then=moves_among_answers)
    def regenerate(self, inputs: Fields, at: float, inner: Inner, then: list[Any]) -> None:
        """Another answer to some turn, and what one does on the way to the next question."""
        for outputs, move, where in then:
            self.finish(
                self.prepared(dict(inputs), SessionOptions(), None, at), outputs, None, inner
            )
            if move == "annotate":
                self.annotate(where, "on the way", where)
            elif move != "regenerate":
                getattr(self, move)(1 + int(2 * where))

    @rule(inputs=inputs, options=option_values, history=histories, again=nobody_or_a_place)
    def begin_call(
        self, inputs: Fields, options: SessionOptions, history: Any, again: float | None
    ) -> None:
        self.pending.append(self.prepared(inputs, options, history, again))

    @rule(outputs=outputs, at=places, inner=inner_calls)
    def end_call(self, outputs: Fields, at: float, inner: Inner) -> None:
        """A call ends on whatever the conversation, or even the branch, is by then."""
        if self.pending:
            call = self.pending.pop(pick(range(len(self.pending)), at))
            self.finish(call, outputs, None, inner)

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

    @rule(at=places, redoable=st.booleans())
    def rewind(self, at: float, redoable: bool) -> None:
        to = pick(range(self.state.first, self.state.stop + 1), at)
        plain = self.plain
        plain.undo(plain.next - to)
        if not redoable:
            plain.end()
        self.go_on(lambda state: rewind(state, to, redoable=redoable), plain)

    @rule()
    def reset(self) -> None:
        plain = self.plain
        (began, *_) = (*plain.earlier, plain)
        plain.restart(began.seed, plain.start)
        self.go_on(reset, plain)

    @rule(outputs=outputs, at=places)
    def replace_turn(self, outputs: Fields, at: float) -> None:
        if not len(self.state):
            return
        index, id, plain = pick([t.index for t in self.state], at), self.new_id(), self.plain
        plain.replace_turn(index, outputs, id)

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

    @rule(score=scores, feedback=st.none() | st.just("well said"), at=places)
    def annotate(self, score: float, feedback: str | None, at: float) -> None:
        if not len(self.state):
            return
        index, plain = pick([turn.index for turn in self.state], at), self.plain
        plain.annotate(index, score, feedback)
        self.go_on(lambda state: annotate(state, {index: (score, feedback)}), plain)

    @rule(beyond=st.integers(1, 3))
    def refuse(self, beyond: int) -> None:
        state = self.state
        for index in (state.first - beyond, state.stop + beyond - 1):
            self.refused(TurnIndexError, lambda: state.turn(index))  # noqa: B023
            self.refused(TurnIndexError, lambda: replace_turn(state, index, {}, id=""))  # noqa: B023
            self.refused(TurnIndexError, lambda: annotate(state, {index: (1.0, None)}))  # noqa: B023
            self.refused(TurnIndexError, lambda: prepare(state, {}, SessionOptions(), at=index))  # noqa: B023
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

    @rule(at=places)
    def switch(self, at: float) -> None:
        self.now = pick(range(len(self.branches)), at)

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
            assert picture(state) == picture(plain)
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
    max_examples=60,
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


def again(state: SessionState, at: int, answer: str) -> SessionState:
    """Another answer to a turn."""
    step = prepare(state, state.turn(at).inputs, SessionOptions(), at=at)
    return commit(state, step, {"a": answer}, Run(id=f"id-{answer}"), SessionOptions())[1]


def answers(state: SessionState) -> list[Any]:
    return [turn.outputs["a"] for turn in state]


def test_D14_redo_goes_round_the_answers() -> None:
    first = say(SessionState(id="mine"), "A0", "A1")
    second = again(first, 1, "A2")
    third = again(second, 1, "A3")
    assert answers(third) == ["A0", "A3"]
    assert [turn.outputs["a"] for turn in third.alternatives] == ["A2", "A1"]
    assert third.last is not None
    assert [len(third.last.window), third.last.inputs] == [1, {"q": "A1"}]
    state, seen = third, []
    for _ in range(6):
        (turn,), state = redo(state)
        assert (turn, state.id) == (state.last, "mine")
        seen.append(turn.outputs["a"])
    assert seen == ["A2", "A1", "A3"] * 2
    assert state == third
    assert undo(third)[1].alternatives == third.alternatives
    assert redo(undo(third, 2)[1], 99)[1] == third  # not beyond the end of the path


def test_D14_an_earlier_turn_asked_again_leaves_the_rest_ahead() -> None:
    old = say(SessionState(), 0, 1, 2, 3)
    new = again(undo(old)[1], 1, "other")
    assert (answers(new), new.undone, len(new.ahead)) == ([0, "other"], (), 1)
    assert new.alternatives == (old.turns[1],)
    turns, state = redo(new)
    assert (answers(state), turns, state.undone) == ([0, 1], (old.turns[1],), old.turns[2:])
    turns, state = redo(state, 9)
    assert (answers(state), turns) == ([0, 1, 2, 3], old.turns[2:])
    assert redo(state)[1] == new
    assert answers(redo(new, 3)[1]) == [0, 1, 2, 3]
    both = again(state, 3, "late")
    assert [turn.outputs["a"] for turn in both.alternatives] == [3, "other"]
    assert [turn.index for turn in both.alternatives] == [3, 1]


def test_D14_what_ends_the_answers() -> None:
    state = again(say(SessionState(), 0, 1), 1, "better")
    for other_path in (
        say(state, "new"),
        reset(state),
        reseed(state, ()),
        replace_turn(state, 0, {"a": "new"}, id="new")[1],
        truncate(state, 1),
        rewind(state, 1, redoable=False),
    ):
        assert (other_path.ahead, other_path.alternatives) == ((), ())
    noted = annotate(state, {0: (0.5, "so so"), 1: (1.0, None)})
    for same in (
        noted,
        with_id(state, "fork"),
        truncate(state, 2),
        rewind(state, 1),
        undo(state)[1],
    ):
        assert [turn.outputs for turn in same.alternatives] == [{"a": 1}]
    old = redo(noted)[1]
    assert [(turn.score, turn.feedback) for turn in old] == [(0.5, "so so"), (None, None)]
    assert old.turns[0] is noted.turns[0]
    assert with_id(state, "fork") == with_id(redo(redo(with_id(state, "fork"))[1])[1], "fork")


def test_answering_a_turn_that_is_gone_appends() -> None:
    options = SessionOptions()
    state = say(SessionState(), 0, 1, 2)
    step = prepare(state, {"q": "again"}, options, at=1)
    assert (step.replaces, len(step.window)) == (1, 1)
    for gone in (truncate(state, 1), undo(state, 2)[1], reset(state)):
        turn, after = commit(gone, step, {"a": "again"}, Run(id="late"), options)
        assert turn is not None
        assert (turn.index, len(after), after.ahead) == (gone.stop, len(gone) + 1, ())
        assert len(turn.window) == 1
    grown = say(state, 3)
    _, after = commit(grown, step, {"a": "again"}, Run(id="late"), options)
    assert (answers(after), answers(redo(after, 9)[1])) == ([0, "again"], [0, 1, 2, 3])
    for wrong in (3, -1, True, "1"):
        with pytest.raises(TurnIndexError):
            prepare(state, {}, options, at=wrong)  # type: ignore[arg-type]


def test_D21_nested_states_go_along() -> None:
    options, inner = SessionOptions(), SessionState(id="inner")
    state = SessionState()
    for number in range(4):
        found = state.nested.get("a.b", inner)
        step = prepare(state, {"q": number}, options)
        assert step.beside.nested == state.nested
        moved = {"a.b": say(found, number)} if number != 2 else None
        _, state = commit(state, step, {}, Run(id=str(number)), options, nested=moved)
    other = commit(state, prepare(state, {}, options), {}, Run(), options, nested={"c": inner})[1]
    assert dict(other.nested) == {**state.nested, "c": inner}

    def inside(state: SessionState) -> list[Any]:
        return said(state.nested["a.b"]) if state.nested else []

    assert [inside(rewind(state, n)) for n in range(5)] == [[], [0], [0, 1], [0, 1], [0, 1, 3]]
    assert state.turns[1].beside is state.turns[2].beside
    assert [len(turn.nested) for turn in state] == [1, 1, 1, 1]
    assert inside(redo(undo(state, 9)[1], 2)[1]) == [0, 1]
    assert inside(truncate(state, 0)) == inside(state)
    assert inside(undo(truncate(state, 2), 9)[1]) == [0, 1]
    assert inside(annotate(state, {3: (1.0, None)})) == inside(state)
    assert inside(replace_turn(state, 1, {}, id="new")[1]) == inside(state)
    assert (dict(reset(state).nested), dict(reseed(state, ()).nested)) == ({}, {})
    step = prepare(state, {"q": "again"}, options, at=1)
    assert said(step.beside.nested["a.b"]) == [0]
    _, fresh = commit(state, step, {}, Run(id="again"), options)
    assert (inside(fresh), inside(redo(fresh)[1]), inside(redo(fresh, 3)[1])) == (
        [0],
        [0, 1],
        [0, 1, 3],
    )
    with pytest.raises(TypeError, match="item assignment"):
        state.nested["a.b"] = inner  # type: ignore[index]
    assert state != undo(other)[1]
    assert truncate(state, 1) != msgspec.structs.replace(truncate(state, 1), before=Beside())


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


def test_states_are_equal_when_what_stands_beside_and_ahead_is() -> None:
    def build(word: str = "in", path: str = "a", answer: str = "first") -> SessionState:
        step = prepare(SessionState(), {}, SessionOptions())
        inner = {path: say(SessionState(), word)}
        _, state = commit(
            SessionState(), step, {"a": answer}, Run(id="id"), SessionOptions(), nested=inner
        )
        return again(state, 0, "second")

    state = build()
    assert state == build()
    assert operator.ne(state, build()) is False
    assert operator.ne(redo(state)[1].turns[0], redo(build())[1].turns[0]) is False
    for other in (build(word="other"), build(path="b"), build(answer="other")):
        assert state != other
    assert redo(state)[1].turns[0] == redo(build())[1].turns[0]
    assert redo(state)[1].turns[0] != redo(build(word="other"))[1].turns[0]
    emptied, same, other = (
        truncate(redo(built)[1], 0) for built in (state, build(), build(word="other"))
    )
    assert emptied == same
    assert emptied != other
    assert state != msgspec.structs.replace(state, ahead=())


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


def test_loaded_versions_that_were_edited_apart_stay_apart() -> None:
    """Both have the same exchange last, and others before it; both go on after loading."""
    inner = say(SessionState(), 0, 1)
    _, edited = replace_turn(inner, 0, {"a": "edited"}, id="edited")
    outer = SessionState()
    for version in (inner, edited):
        step = prepare(outer, {}, SessionOptions())
        _, outer = commit(outer, step, {}, Run(), SessionOptions(), nested={"in": version})
    for way in ("json", "msgpack", "pickle"):
        loaded, options = way_and_back(way, outer, SessionOptions())
        first, second = (say(turn.nested["in"], "on") for turn in loaded)
        step = prepare(loaded, {}, options)
        both = {"one": first, "two": second}
        state = commit(loaded, step, {}, Run(), options, nested=both)[1]
        assert picture(way_and_back(way, state, options)[0]) == picture(state)
        seen = [state.nested[path].turns[2].window.messages()[0]["a"] for path in both]
        assert seen == [0, "edited"]


def test_a_narrow_window_vouches_for_what_it_shows_only() -> None:
    """It agrees with an older path; a wider one after it shows what was edited before its start."""
    state = say(SessionState(), 0, 1, 2, 3)
    _, state = replace_turn(state, 0, {"a": "edited"}, id="edited")
    state = say(say(state, 4, options=SessionOptions(max_turns=2)), 5)
    loaded = unpack(pack(state))
    assert picture(loaded) == picture(state)
    assert loaded.turns[5].window.messages()[0] == {"q": 0, "a": "edited"}


def test_a_loaded_conversation_that_takes_another_path_keeps_it() -> None:
    """The first window after loading fits the written path, which goes on otherwise."""
    state = unpack(pack(say(SessionState(), 0, 1, 2, 3, 4)))
    state = say(rewind(say(state, 5), 1), "other", "more")
    loaded = unpack(pack(state))
    assert picture(loaded) == picture(state)
    assert [m["q"] for m in loaded.turns[2].window.messages()] == [0, "other"]
    both = commit(
        state,
        prepare(state, {}, SessionOptions()),
        {},
        Run(),
        SessionOptions(),
        nested={"old": unpack(pack(say(SessionState(), 0, 1, 2, 3, 4)))},
    )[1]
    branch = say(rewind(both.nested["old"], 1), "other", "more", "and more")
    step = prepare(both, {}, SessionOptions())
    both = commit(both, step, {}, Run(), SessionOptions(), nested={"new": branch})[1]
    assert picture(unpack(pack(both))) == picture(both)
