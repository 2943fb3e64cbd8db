"""Examples that know their turn, without DSPy knowing; and splits that keep conversations whole."""

from __future__ import annotations

import copy
import importlib
import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cloudpickle
import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_session import (
    CallError,
    FormatError,
    Lineage,
    Session,
    SessionManager,
    SessionState,
    lineage,
    sessionify,
    split,
)
from dspy_session.core.grouping import allotted, connected
from dspy_session.testing import ScriptedLM
from tests.talk import qa_session, scripted

whole: Any = importlib.import_module("dspy")
teleprompt: Any = importlib.import_module("dspy.teleprompt")
Examples = list[dspy.Example]


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := scripted())):
        yield lm


def known(example: dspy.Example) -> Lineage:
    found = lineage(example)
    assert found is not None
    return found


def told(*questions: str, **keywords: Any) -> Session:
    """A session of turns that were added by hand."""
    session = qa_session(**keywords)
    add(session, *questions)
    return session


def add(session: Session, *questions: str) -> None:
    for question in questions:
        session.add_turn({"question": question}, {"answer": f"answer to {question}"})


def sides(parts: Sequence[Examples], of: Callable[[Lineage], Any]) -> list[set[Any]]:
    return [{of(known(example)) for example in part} for part in parts]


# What an example knows


def test_X10_an_example_knows_its_session_its_turn_and_the_turns_before() -> None:
    session = told("one", "two", "three")
    for examples in (
        session.to_examples(),
        session.to_trainset(include_history=False),
        Session.merge_examples(session),
    ):
        for place, (example, turn) in enumerate(zip(examples, session.turns, strict=True)):
            found = known(example)
            assert (found.session_id, found.turn_id, found.index) == (
                session.session_id,
                turn.id,
                turn.index,
            )
            assert found.before == tuple(turn.id for turn in session.turns[:place])
    assert lineage(dspy.Example(question="one")) is None
    assert lineage(dspy.Example()) is None


def test_X10_siblings_have_one_branch_and_whoever_comes_after_other_turns_has_not() -> None:
    session = told("one", "two", "three")
    fork, early = session.fork(at=1), session.fork(at=0)
    add(fork, "two", "three")
    add(early, "one")
    mine, theirs = session.to_examples(), fork.to_examples()
    assert known(mine[0]) != known(theirs[0])  # the same turn, in two sessions
    assert known(mine[0]).turn_id == known(theirs[0]).turn_id
    branches = [[known(e).branch for e in examples] for examples in (mine, theirs)]
    assert branches[0][:2] == branches[1][:2]
    assert branches[0][2] != branches[1][2]
    assert known(early.to_examples()[0]).branch == branches[0][0]


def test_X10_edited_trimmed_and_summarised_turns_are_still_before(lm: ScriptedLM) -> None:
    session = told("one", "two", "three", max_stored_turns=3)
    first = session.turns[0].id
    changed = session.replace_turn(1, {"answer": "another"})
    assert known(session.to_examples()[2]).before == (first, changed.id)
    session.summarize(keep=1)
    (kept,) = session.to_examples()
    assert (known(kept).index, known(kept).before) == (2, (first, changed.id))
    session.truncate(0)
    add(session, "four")
    assert known(session.to_examples()[0]).index == 3
    trimmed = told(*"abcde", max_stored_turns=2)
    assert [known(e).index for e in trimmed.to_examples()] == [3, 4]
    assert known(trimmed.to_examples()[0]).before == ()


def test_X10_no_digest_tells_of_a_field_that_is_redacted() -> None:
    def origins(answer: str, **keywords: Any) -> tuple[str, ...]:
        session = qa_session(**keywords)
        session.add_turn({"question": "who?"}, {"answer": answer, "note": "-"})
        return known(session.to_examples()[0]).origins

    assert origins("Ada") != origins("Bob")
    assert origins("Ada", redact_fields={"answer"}) == origins("Bob", redact_fields={"answer"})
    assert origins("Ada", redact_fields={"question"}) == ()


def test_X10_turns_without_ids_have_branches_too() -> None:
    def state(*answers: str) -> SessionState:
        return SessionState.from_messages(
            message
            for number, answer in enumerate(answers)
            for message in (
                {"role": "user", "content": f"question {number}"},
                {"role": "assistant", "content": answer},
            )
        )

    def branch(state: SessionState) -> str:
        session = Session.from_state(state, dspy.Predict("question -> answer"))
        return known(session.to_examples()[-1]).branch

    assert branch(state("a", "b", "c")) == branch(state("a", "b", "d"))
    assert branch(state("a", "b", "c")) != branch(state("a", "x", "c"))


def test_X10_a_session_that_was_saved_or_stored_has_the_same_lineages() -> None:
    program = dspy.Predict("question -> answer")
    stored = SessionManager(program, "memory:").open("chat")
    add(stored, "one", "two", "three")
    stored.replace_turn(0, {"answer": "another"})
    read = Session.from_dict(stored.to_dict(), program)
    found = [known(example) for example in stored.to_examples()]
    assert [known(example) for example in read.to_examples()] == found
    assert [known(example).origins for example in read.to_examples()] == [found[0].origins] * 3
    assert len(found[0].origins) == 2


def test_X10_a_lineage_is_a_value_with_a_written_form() -> None:
    found = known(told("one", "two").to_examples()[1])
    read = Lineage.from_dict(found.to_dict())
    assert (read, read.before, read.origins) == (found, found.before, found.origins)
    assert hash(read) == hash(found)
    assert found != "another"
    assert copy.deepcopy(found) is found
    assert pickle.loads(pickle.dumps(found)) == found
    assert found.turn_id in repr(found)
    with pytest.raises(FormatError, match="to_dict"):
        Lineage.from_dict({"turn_id": 5})


def test_X10_lineages_of_a_conversation_share_what_they_know() -> None:
    found = [known(e) for e in told(*map(str, range(50))).to_examples()]
    assert len({id(each.path) for each in found}) == 1


# DSPy does not notice


def plain(example: dspy.Example) -> dspy.Example:
    return dspy.Example(**example).with_inputs(*example.inputs().keys())


def test_X10_no_reading_of_an_example_shows_a_lineage() -> None:
    for example in told("one", "two").to_examples():
        bare = plain(example)
        assert lineage(bare) is None
        assert example == bare
        assert bare == example
        assert (repr(example), str(example), len(example)) == (repr(bare), str(bare), len(bare))
        for reading in ("keys", "values", "items"):
            for every in (False, True):
                assert getattr(example, reading)(every) == getattr(bare, reading)(every)
        assert (example.toDict(), dict(example), list(example)) == (
            bare.toDict(),
            dict(bare),
            list(bare),
        )
        assert example.inputs() == bare.inputs()
        assert example.labels() == bare.labels()
        assert example.inputs().keys() == bare.inputs().keys()
        assert lineage(example.inputs()) is None
        assert lineage(example.labels()) is None
        assert isinstance(example, dspy.Example)
        without = example.without("history")
        assert hash(without) == hash(plain(without))


def test_X10_a_field_may_have_any_name_that_a_lineage_has() -> None:
    session = qa_session()
    session.add_turn({"lineage": "a", "turn_id": "b"}, {"_lineage": "c", "before": "d"})
    (example,) = session.to_examples(include_history=False)
    assert example.toDict() == {"lineage": "a", "turn_id": "b", "_lineage": "c", "before": "d"}
    assert known(example.copy(_lineage="e")).turn_id == session.turns[0].id
    assert example.lineage == "a"


WAYS: dict[str, Callable[[dspy.Example], Any]] = {
    "copy": lambda example: example.copy(),
    "copy with another field": lambda example: example.copy(answer="another"),
    "with_inputs": lambda example: example.with_inputs("question"),
    "without": lambda example: example.without("history"),
    "copy.copy": lambda example: copy.copy(example).copy(),  # shares fields, as DSPy's does
    "deepcopy": copy.deepcopy,
    "copy of a deepcopy": lambda example: copy.deepcopy(example).copy(),
    "pickle": lambda example: pickle.loads(pickle.dumps(example)),
    "cloudpickle": lambda example: cloudpickle.loads(cloudpickle.dumps(example)),
    "pickle of a pickle": lambda e: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(e)))),
}


@pytest.mark.parametrize("way", WAYS)
def test_X10_copies_know_their_turn(way: str) -> None:
    example = told("one", "two").to_examples()[1]
    again = WAYS[way](example)
    assert (known(again), known(again).before) == (known(example), known(example).before)
    assert again is not example
    again["question"] = "changed"
    assert example.question == "two"


def test_X10_the_class_of_an_example_takes_what_dspy_Example_takes() -> None:
    example = told("one").to_examples()[0]
    other = dspy.Example(question="two", answer="2").with_inputs("question")
    for base in (other, other.toDict(), example):
        made, expected = type(example)(base, answer="3"), dspy.Example(base, answer="3")
        assert made == expected
        assert made._input_keys == expected._input_keys
    assert other.answer == "2"
    unpickled = pickle.loads(pickle.dumps(example))
    assert known(type(example)(unpickled)) == known(example)
    assert len(type(example)(question="two")) == 1


def test_X10_where_the_lineage_is_lost() -> None:
    example = told("one").to_examples()[0]
    for lost in (
        dspy.Example(example),
        dspy.Example(**example),
        example.inputs(),
        pickle.loads(pickle.dumps(example)).copy(),
    ):
        assert lineage(lost) is None


def test_X10_a_pickle_opens_without_this_library() -> None:
    examples = told(*map(str, range(100))).to_examples(include_history=False)
    for dumps in (pickle.dumps, cloudpickle.dumps):
        assert b"dspy_session" not in dumps(examples)
    again = pickle.loads(pickle.dumps(examples))
    assert {type(example) for example in again} == {dspy.Example}
    assert again == examples
    assert len(pickle.dumps(examples)) < 2 * len(pickle.dumps([plain(e) for e in examples])) + 9000


def exact(example: Any, prediction: Any, trace: Any = None) -> float:
    return float(example.answer == prediction.answer)


def few_shot(**keywords: Any) -> Callable[[Any, Examples], Any]:
    def compile(program: Any, trainset: Examples) -> Any:
        optimizer = teleprompt.BootstrapFewShot(
            metric=exact, max_bootstrapped_demos=1, max_labeled_demos=2
        )
        return optimizer.compile(program, trainset=trainset)

    return compile


OPTIMIZERS: dict[str, Callable[[Any, Examples], Any]] = {
    "LabeledFewShot": lambda p, t: teleprompt.LabeledFewShot(k=2).compile(p, trainset=t),
    "BootstrapFewShot": few_shot(),
    "RandomSearch": lambda p, t: teleprompt.BootstrapFewShotWithRandomSearch(
        metric=exact, max_labeled_demos=1, num_candidate_programs=2, num_threads=1
    ).compile(p, trainset=t),
    "COPRO": lambda p, t: teleprompt.COPRO(metric=exact, breadth=2, depth=1).compile(
        p, trainset=t, eval_kwargs={"num_threads": 1, "display_progress": False}
    ),
    "MIPROv2": lambda p, t: teleprompt.MIPROv2(
        metric=exact, auto=None, num_candidates=2, num_threads=1, max_labeled_demos=1
    ).compile(p, trainset=t, valset=t, num_trials=1, minibatch=False),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_X10_optimizers_write_the_same_prompts_and_demos(optimizer: str) -> None:
    trainset = told("one", "two", "three").to_examples()

    def run(examples: Examples) -> tuple[Any, list[Any]]:
        with dspy.context(lm=(model := scripted())):
            program = OPTIMIZERS[optimizer](dspy.Predict("question -> answer"), examples)
            program(question="and now?")
        return program.dump_state(), sorted(map(repr, model.prompts))

    state, prompts = run(trainset)
    bare_state, bare_prompts = run([plain(example) for example in trainset])
    assert prompts == bare_prompts
    assert state == bare_state
    assert known(trainset[0]).turn_id not in repr((state, prompts))


def test_X10_tables_of_Evaluate_are_the_same() -> None:
    trainset = told("one", "two").to_examples()

    def rows(examples: Examples) -> Any:
        evaluate = whole.Evaluate(devset=examples, metric=exact, display_progress=False)
        with dspy.context(lm=scripted()):
            return evaluate(dspy.Predict("question -> answer"))

    result, bare = rows(trainset), rows([plain(example) for example in trainset])
    assert result.score == bare.score
    for (example, prediction, score), row in zip(result.results, bare.results, strict=True):
        assert (example, prediction.toDict(), score) == (row[0], row[1].toDict(), row[2])
        assert known(example) in map(known, trainset)  # which turn failed can still be told


# Splits


def test_X10_a_session_its_forks_and_its_copies_stay_together() -> None:
    sessions = [told(*(f"{name} {n}" for n in range(4))) for name in "abcdef"]
    fork = sessions[0].fork(at=2)
    add(fork, "elsewhere", "and on")
    messages = sessions[1].to_messages()[:4]
    copied = sessionify(dspy.Predict("request -> reply"), messages=messages)
    copied.add_turn({"request": "what else?"}, {"reply": "nothing"})
    examples = Session.merge_examples(*sessions, fork, copied, include_history=False)
    for seed in range(10):
        parts = split(examples, fractions=(0.5, 0.5), seed=seed)
        one, other = sides(parts, lambda found: found.session_id)
        assert not one & other
        assert (sessions[0].session_id in one) == (fork.session_id in one)
        assert (sessions[1].session_id in one) == (copied.session_id in one)
        assert sum(map(len, parts)) == len(examples)


def test_X10_forks_are_known_by_turns_that_have_no_example() -> None:
    session = told("a", "b", "c")
    session.score(lambda example, prediction: float(example.question in ("c", "d")))
    forks = [session.fork(at=2), session.fork(at=1)]
    for fork in forks:
        add(fork, "d")
        fork.score(lambda example, prediction: float(example.question in ("c", "d")))
    kept = Session.merge_examples(session, *forks, min_score=1.0, include_history=False)
    kept = [kept[0], kept[1].copy(question="e"), kept[2]]  # no two ask the same
    assert [e.question for e in kept] == ["c", "e", "d"]
    with pytest.raises(CallError, match=r"1 group\(s\), too few for 2 parts"):
        split(kept, sizes=(2, 1), by_content=False)


def test_X10_forks_are_known_by_later_turns_when_the_first_was_replaced() -> None:
    session = told("a", "b", "c")
    fork = session.fork(at=2)
    session.replace_turn(0, {"answer": "better"})
    add(fork, "d")
    examples = [session.to_examples()[2], fork.to_examples()[2]]
    assert known(examples[0]).before[0] != known(examples[1]).before[0]
    with pytest.raises(CallError, match="too few"):
        split(examples, sizes=(1, 1), by_content=False)


def test_X10_a_conversation_stays_one_when_its_older_turns_are_gone() -> None:
    session = told("a", "b", max_stored_turns=2)
    early = session.to_examples()
    add(session, "c", "d", "e", "f")
    late = session.to_examples()
    assert not {known(e).turn_id for e in early} & {known(e).turn_id for e in late}
    with pytest.raises(CallError, match="too few"):
        split([*early, *late], fractions=(0.5, 0.5))


def test_X10_equal_inputs_stay_together_and_other_examples_are_alone() -> None:
    numbered = [dspy.Example(n=n % 7, answer=n).with_inputs("n") for n in range(21)]
    one, other = split(numbered, fractions=(2 / 3, 1 / 3))
    assert (len(one), len(other)) == (15, 6)
    assert not {e.n for e in one} & {e.n for e in other}
    one, other = split(numbered, sizes=(10, 11), by_content=False)
    assert {e.n for e in one} & {e.n for e in other}
    unmarked = [dspy.Example(n=n // 2) for n in range(8)]
    one, other = split(unmarked, sizes=(4, 4))
    assert not {e.n for e in one} & {e.n for e in other}
    predictions = [dspy.Prediction(n=n) for n in range(4)]
    assert [len(part) for part in split(predictions, sizes=(2, 2))] == [2, 2]
    strange = [dspy.Example(n=object()) for _ in range(4)]  # no written form: each is alone
    assert [len(part) for part in split(strange, sizes=(3, 1))] == [3, 1]


def test_X10_a_history_tells_of_what_no_lineage_tells() -> None:
    sessions = [
        sessionify(dspy.Predict("passage, question -> answer"), exclude_fields={"passage"})
        for _ in range(6)
    ]
    for number, session in enumerate(sessions):
        for turn in range(4):
            asked = {"passage": f"passage {turn}", "question": f"question {number}.{turn}"}
            session.add_turn(asked, {"answer": f"answer {number}.{turn}"})
    fork = sessions[0].fork(at=2)
    fork.add_turn({"passage": "", "question": "question 0.x"}, {"answer": "elsewhere"})
    examples = Session.merge_examples(*sessions, fork)
    named = [dspy.Example(**e).with_inputs("passage", "question", "history") for e in examples]
    plain = [dspy.Example(**example.without("passage")) for example in examples]
    assert all(lineage(example) is None for example in plain + named)
    for unknown in (plain, named):
        for seed in range(10):
            parts = split(unknown, fractions=(0.5, 0.5), seed=seed)
            one, other = ({example.question.split(".")[0] for example in part} for part in parts)
            assert not one & other
            assert sum(map(len, parts)) == len(examples)
    parts = split(named, fractions=(0.5, 0.5), by_content=False)
    one, other = ({example.question.split(".")[0] for example in part} for part in parts)
    assert one & other
    first, second = told("a", "b").to_examples()
    with pytest.raises(CallError, match="too few"):
        split([first, dspy.Example(**second).with_inputs("question", "history")], sizes=(1, 1))


def test_X10_small_talk_connects_only_by_content() -> None:
    sessions = [told("Hi", f"question {n}", f"more {n}") for n in range(6)]
    examples = Session.merge_examples(*sessions)
    with pytest.raises(CallError, match="by_content=False"):
        split(examples, fractions=(0.5, 0.5))
    parts = split(examples, fractions=(0.5, 0.5), by_content=False)
    assert [len(part) for part in parts] == [9, 9]


def test_X10_what_was_unpickled_is_split_alike() -> None:
    examples = Session.merge_examples(*(told("Hi", f"{n}") for n in range(8)))
    read = pickle.loads(pickle.dumps(examples))
    whole = split(examples, fractions=(0.75, 0.25), by_content=False)
    assert split(read, fractions=(0.75, 0.25), by_content=False) == whole
    assert [len(part) for part in whole] == [12, 4]


def test_X10_a_split_is_the_same_each_time_and_another_with_another_seed() -> None:
    examples = [dspy.Example(n=n).with_inputs("n") for n in range(40)]
    parts = split(examples, sizes=(20, 10))
    assert parts == split(examples, sizes=(20, 10))
    assert [len(part) for part in parts] == [20, 10]
    assert parts != split(examples, sizes=(20, 10), seed=1)
    for part in parts:
        assert [e.n for e in part] == sorted(e.n for e in part)  # in the order in which they came
    thirds = split(examples, fractions=(1 / 3, 1 / 3, 1 / 3))
    assert [len(part) for part in thirds] == [13, 14, 13]
    assert [len(part) for part in split(examples, fractions=(0.5, 0.25))] == [20, 10]


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({}, "either"),
        ({"fractions": (0.5, 0.5), "sizes": (1, 1)}, "either"),
        ({"fractions": ()}, "above 0"),
        ({"fractions": (0.5, 0)}, "above 0"),
        ({"fractions": (True,)}, "above 0"),
        ({"fractions": (0.8, 0.3)}, "add up to"),
        ({"fractions": ("a",)}, "above 0"),
        ({"sizes": ()}, "whole numbers"),
        ({"sizes": (1.0, 2)}, "whole numbers"),
        ({"sizes": (3, 0)}, "whole numbers"),
        ({"sizes": (3, 2)}, "fewer than the 5"),
    ],
)
def test_X10_what_no_split_is(keywords: Any, words: str) -> None:
    examples = [dspy.Example(n=n) for n in range(4)]
    with pytest.raises(CallError, match=words):
        split(examples, **keywords)
    assert examples == [dspy.Example(n=n) for n in range(4)]
    with pytest.raises(CallError, match="not dict"):
        split([{"n": 1}], sizes=(1,))  # type: ignore[list-item]
    with pytest.raises(CallError, match="no examples"):
        split([], fractions=(1.0,))


def test_X10_a_copy_is_known_by_what_calls_saw_before_a_turn_was_replaced() -> None:
    session = told("a", "b")
    copied = qa_session(messages=session.to_messages())
    add(copied, "c")
    session.replace_turn(0, {"answer": "better"})
    add(session, "d")
    examples = [session.to_examples()[-1], copied.to_examples()[-1]]
    with pytest.raises(CallError, match="too few"):
        split(examples, sizes=(1, 1))
    assert [len(part) for part in split(examples, sizes=(1, 1), by_content=False)] == [1, 1]


@pytest.mark.parametrize("window", [{}, {"max_turns": 2}, {"exclude_fields": {"answer"}}])
@pytest.mark.parametrize("more", [(), ("other e", "other f")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_X10_forks_are_known_by_turns_that_were_trimmed_away_since(
    window: dict[str, Any], more: tuple[str, ...], which: int
) -> None:
    session = told(*"vwabc", max_stored_turns=3, **window)
    fork = session.fork()
    add(fork, "other d", *more)
    add(session, "d", "e", "f")
    mine, theirs = session.to_examples()[0], fork.to_examples()[which]
    assert not {*known(theirs).path} & {*known(mine).path}
    assert not {*known(theirs).origins} & {*known(mine).origins}
    shared = {m["question"] for m in mine.history.messages} & {
        theirs.question,
        *(m["question"] for m in theirs.history.messages),
    }
    for pair in ([mine, theirs], pickle.loads(pickle.dumps([mine, theirs]))):
        if shared:
            with pytest.raises(CallError, match="too few"):
                split(pair, sizes=(1, 1))
        assert [len(part) for part in split(pair, sizes=(1, 1), by_content=False)] == [1, 1]
    read = Lineage.from_dict(known(mine).to_dict())
    assert read.lost == known(mine).lost != ()
    # What others said elsewhere in their conversations is no sign.
    another = told(*"uvwabc", max_stored_turns=1, **window).to_examples()
    assert [len(part) for part in split([mine, *another], sizes=(1, 1))] == [1, 1]


def test_X10_no_digest_tells_of_a_redacted_field_of_a_turn_that_was_trimmed_away() -> None:
    lost = []
    for secret in ("my secret", "another secret"):
        session = qa_session(max_stored_turns=1, redact_fields={"question"})
        session.add_turn({"question": secret}, {"answer": "noted"})
        add(session, "b")
        (example,) = session.to_examples()
        lost.append(known(example).lost)
    assert lost[0] == lost[1] != ()


# Laws

STEPS = st.lists(
    st.tuples(
        st.sampled_from(("add", "add", "add", "fork", "new", "replace", "undo", "copy")),
        st.integers(0, 30),
        st.integers(0, 30),
    ),
    min_size=4,
    max_size=30,
)


def grown(steps: Any) -> list[SessionState]:
    """A random wood of conversations, as sessions."""
    fresh = (f"question {n}" for n in itertools.count())
    sessions = [told(next(fresh), next(fresh)), told(next(fresh), next(fresh))]
    for what, which, at in steps:
        session = sessions[which % len(sessions)]
        if what == "add":
            add(session, next(fresh))
        elif what == "fork":
            sessions.append(session.fork(at=at % (len(session) + 1)))
        elif what == "new":
            sessions.append(told(next(fresh)))
        elif what == "replace" and len(session):
            session.replace_turn(at % len(session), {"answer": next(fresh)})
        elif what == "undo":
            session.undo(at % 2)
        elif what == "copy" and len(session):
            sessions.append(qa_session(messages=session.to_messages()))
    return sessions  # type: ignore[return-value]


@settings(max_examples=60, deadline=None)
@given(STEPS, st.sampled_from([(0.8, 0.2), (0.5, 0.5), (0.5, 0.25, 0.25), (0.3, 0.3)]), st.data())
def test_X10_law_no_turn_is_before_examples_of_two_parts(
    steps: Any, fractions: tuple[float, ...], data: st.DataObject
) -> None:
    sessions: Any = grown(steps)
    came: dict[str, set[str]] = {}  # by turn, all that came before it, in any session
    began: dict[tuple[str, str], str] = {}  # by session and turn, what the conversation began with
    for session in sessions:
        turns = session.turns
        for number, turn in enumerate(turns):
            came.setdefault(turn.id, set()).update(t.id for t in turns[: number + 1])
            began[session.session_id, turn.id] = repr((turns[0].inputs, turns[0].outputs))
    examples = Session.merge_examples(*sessions, include_history=data.draw(st.booleans()))
    examples = data.draw(st.lists(st.sampled_from(examples), unique_by=id)) if examples else []
    by_content, seed = data.draw(st.booleans()), data.draw(st.integers(0, 5))
    try:
        parts = split(examples, fractions=fractions, seed=seed, by_content=by_content)
    except CallError as error:
        assert "too few" in str(error) or "no examples" in str(error)  # noqa: PT017  # or parts
        return
    assert all(parts)
    assert all(any(e is example for example in examples) for part in parts for e in part)
    for one, other in itertools.combinations(parts, 2):
        mine, theirs = (
            set().union(*(came[known(e).turn_id] for e in part)) for part in (one, other)
        )
        assert not mine & theirs
        if by_content:
            # A copy of a fork with another beginning is known by an example of that fork alone.
            mine, theirs = (
                {began[str(known(e).session_id), known(e).turn_id] for e in part}
                for part in (one, other)
            )
            assert not mine & theirs


SIZES = st.lists(st.integers(1, 9), min_size=2, max_size=7)


@given(SIZES, st.data())
def test_X10_law_two_parts_are_as_near_as_groups_allow(sizes: list[int], data: Any) -> None:
    want = data.draw(st.integers(1, sum(sizes) - 1))
    one, other = allotted(sizes, [want, sum(sizes) - want])
    assert sorted(one + other) == list(range(len(sizes)))
    assert one
    assert other
    missed = abs(sum(sizes[at] for at in one) - want)
    every = range(1, 2 ** len(sizes) - 1)
    assert missed == min(
        abs(sum(size for at, size in enumerate(sizes) if chosen >> at & 1) - want)
        for chosen in every
    )


@given(SIZES, st.data())
def test_X10_law_no_group_moved_or_swapped_brings_parts_nearer(sizes: list[int], data: Any) -> None:
    count = data.draw(st.integers(1, min(4, len(sizes))))
    wanted = data.draw(st.lists(st.integers(1, 12), min_size=count, max_size=count))
    parts = allotted(sizes, wanted)
    assert sorted(itertools.chain(*parts)) == list(range(len(sizes)))
    assert all(parts)

    def missed(one: list[int], other: list[int], wants: tuple[int, int]) -> int:
        return sum(
            abs(sum(sizes[at] for at in part) - want)
            for part, want in zip((one, other), wants, strict=True)
        )

    for a, b in itertools.combinations(range(count), 2):
        wants = wanted[a], wanted[b]
        least = missed(parts[a], parts[b], wants)
        for mine in [None, *parts[a]]:
            for theirs in [None, *parts[b]]:
                one = [at for at in (*parts[a], theirs) if at not in (mine, None)]
                other = [at for at in (*parts[b], mine) if at not in (theirs, None)]
                if one and other:
                    assert missed(one, other, wants) >= least


@given(st.lists(st.lists(st.integers(0, 6), max_size=3), max_size=8))
def test_X10_law_groups_are_what_chains_of_keys_connect(keys: list[list[int]]) -> None:
    groups = connected(keys)
    assert sorted(itertools.chain(*groups)) == list(range(len(keys)))
    pairs = itertools.product(range(len(keys)), repeat=2)
    near = {(a, b) for a, b in pairs if {*keys[a]} & {*keys[b]}}
    for _ in keys:
        near |= {(a, d) for (a, b), (c, d) in itertools.product(near, near) if b == c}
    place = {thing: number for number, group in enumerate(groups) for thing in group}
    for a, b in itertools.combinations(range(len(keys)), 2):
        assert (place[a] == place[b]) == ((a, b) in near)
