"""Turns as training data: scores on turns, and one example per turn."""

import functools
import logging
from collections.abc import Iterator
from typing import Any

import dspy
import pytest

from dspy_session import CallError, MetricError, Session, sessionify
from dspy_session.program.examples import Metric
from dspy_session.testing import ScriptedLM
from tests.talk import QA, ask, history, pairs, qa_session, questions, refused, scripted


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := scripted())):
        yield lm


def rated(*questions: str, **keywords: Any) -> Session:
    """A session whose questions are numbers: `rating` makes them scores."""
    session = qa_session(**keywords)
    for question in questions:
        session.add_turn({"question": question}, {"answer": f"answer to {question}"})
    return session


def rating(example: dspy.Example, prediction: dspy.Prediction) -> float:
    assert prediction.answer == f"answer to {example.question}"
    return float(example.question)


def scores(session: Session) -> list[float | None]:
    return [turn.score for turn in session.turns]


# D10: scoring


def test_D10_score_returns_a_float_per_turn_and_keeps_it_on_new_turns() -> None:
    session = rated("0.5", "1", "0")
    before = session.turns
    result = session.score(rating)
    assert result == [0.5, 1.0, 0.0]
    assert [type(score) for score in result] == [float] * 3
    assert scores(session) == result
    assert [turn.score for turn in before] == [None] * 3
    assert [(a.id, a.index, a.outputs) for a in before] == [
        (b.id, b.index, b.outputs) for b in session.turns
    ]
    assert rated().score(rating) == []


def two(example: Any, prediction: Any) -> float:
    return 2.0


def three(example: Any, prediction: Any, trace: Any) -> float:
    assert trace is None
    return 3.0


def three_by_default(example: Any, prediction: Any, trace: Any = "given") -> float:
    assert trace is None
    return 3.5


def five(gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any) -> float:
    assert (trace, pred_name, pred_trace) == (None, None, None)
    return 5.0


def by_keyword(example: Any, prediction: Any, *, strict: bool = True) -> float:
    assert strict
    return 2.5


def any_number(*args: Any) -> float:
    assert args[2:] == (None,)
    return 6.0


class Judge:
    def __call__(self, example: Any, prediction: Any) -> float:
        return 7.0

    def method(self, example: Any, prediction: Any, trace: Any = None) -> float:
        return 7.5


class JudgeOfTwo(dspy.Module):
    def forward(self, example: Any, prediction: Any) -> float:
        return 8.0


class JudgeOfThree(dspy.Module):
    def forward(self, example: Any, pred: Any, trace: Any = "given") -> Any:
        assert trace is None
        return dspy.Prediction(score=8.5)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (two, 2.0),
        (three, 3.0),
        (three_by_default, 3.5),
        (five, 5.0),
        (by_keyword, 2.5),
        (any_number, 6.0),
        (Judge(), 7.0),
        (Judge().method, 7.5),
        (functools.partial(five, pred_trace=None), 5.0),
        (JudgeOfTwo(), 8.0),
        (JudgeOfThree(), 8.5),
    ],
)
def test_D10_metrics_of_every_shape(metric: Metric, expected: float) -> None:
    session = rated("1", on_metric_error="raise")
    assert session.score(metric) == [expected]


def test_D10_a_metric_that_calls_a_model_is_no_turn(lm: ScriptedLM) -> None:
    class Asks(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.judge = dspy.Predict("verdict -> value")

        def forward(self, example: Any, prediction: Any, trace: Any = None) -> float:
            assert "question" not in str(self.judge(verdict=prediction.answer))
            return 1.0

    session = qa_session(on_metric_error="raise")
    ask(session, "one", "two")
    assert session.score(Asks()) == [1.0, 1.0]
    assert len(session) == 2
    assert [len(prompt) for prompt in lm.prompts] == [2, 4, 2, 2]


@pytest.mark.parametrize(
    ("returned", "expected"),
    [(True, 1.0), (False, 0.0), (3, 3.0), (0.25, 0.25), (-1, -1.0)],
)
def test_D10_numbers_and_bools_are_scores(returned: Any, expected: float) -> None:
    session = rated("1", on_metric_error="raise")
    (score,) = session.score(lambda example, prediction: returned)
    assert (score, type(score)) == (expected, float)


@pytest.mark.parametrize(
    "returned",
    [
        None,
        "good",
        [],
        float("nan"),
        float("inf"),
        {},
        dspy.Prediction(),
        dspy.Prediction(score=""),
    ],
)
def test_D10_anything_else_is_a_metric_that_failed(
    returned: Any, caplog: pytest.LogCaptureFixture
) -> None:
    session = rated("1", on_metric_error="raise")
    with refused(session, MetricError, "turn 0", "Mend the metric", 'on_metric_error="zero"'):
        session.score(lambda example, prediction: returned)
    forgiving = rated("1")
    with caplog.at_level(logging.WARNING, logger="dspy_session"):
        assert forgiving.score(lambda example, prediction: returned) == [0.0]
    assert "turn 0" in caplog.text
    assert scores(forgiving) == [0.0]


def test_D10_feedback_is_kept() -> None:
    def metric(example: Any, prediction: Any, trace: Any = None) -> Any:
        if example.question == "1":
            return dspy.Prediction(score=1, feedback="Good.")
        return {"score": 0.5, "feedback": None}

    session = rated("1", "2")
    assert session.score(metric) == [1.0, 0.5]
    assert [turn.feedback for turn in session.turns] == ["Good.", None]
    session.score(rating)
    assert [turn.feedback for turn in session.turns] == [None, None]


def test_D10_a_metric_that_raises() -> None:
    def metric(example: Any, prediction: Any) -> float:
        if example.question == "2":
            raise KeyError("no such thing")
        return 1.0

    session = rated("1", "2", "3")
    assert session.score(metric) == [1.0, 0.0, 1.0]
    strict = rated("1", "2", "3", on_metric_error="raise")
    with refused(strict, MetricError, "turn 1", "no such thing"):
        strict.score(metric)
    with refused(strict, MetricError, "turn 1"):
        strict.to_examples(metric)
    assert scores(strict) == [None] * 3


def test_D10_an_interrupt_is_no_metric_error() -> None:
    def metric(example: Any, prediction: Any) -> float:
        raise KeyboardInterrupt

    session = rated("1")
    before = session.state
    with pytest.raises(KeyboardInterrupt):
        session.score(metric)
    assert session.state is before


def test_D10_gold_is_one_example_or_one_per_turn() -> None:
    def same(example: dspy.Example, prediction: dspy.Prediction) -> bool:
        return bool(example.answer == prediction.answer)

    session = rated("1", "2")
    one = dspy.Example(question="1", answer="answer to 1")
    other = dspy.Example(question="2", answer="another answer")
    assert session.score(same) == [1.0, 1.0]  # each turn against itself
    assert session.score(same, one) == [1.0, 0.0]
    assert session.score(same, gold=[one, other]) == [1.0, 0.0]
    assert session.score(same, gold=(other, one)) == [0.0, 0.0]
    assert len(session.to_examples(same, gold=one, min_score=1)) == 1


def test_D10_what_the_metric_gets() -> None:
    seen: list[tuple[dspy.Example, dspy.Prediction]] = []
    session = qa_session(history_field="memory")
    ask(session, "one", "two")

    def metric(example: dspy.Example, prediction: dspy.Prediction) -> float:
        seen.append((example, prediction))
        return 1.0

    session.score(metric)
    example, prediction = seen[1]
    assert type(prediction) is dspy.Prediction
    assert dict(prediction.items()) == {"answer": "answer to two"}
    assert dict(example.inputs().items()) == {"question": "two", "memory": history("one")}
    assert example.answer == "answer to two"
    example.answer = prediction.answer = "changed"
    assert session.turns[1].outputs == {"answer": "answer to two"}


@pytest.mark.parametrize(
    ("gold", "words"),
    [
        ([], ("2 turns", "0 examples")),
        ([dspy.Example()] * 3, ("2 turns", "3 examples")),
        (3, ("type int",)),
        ([{}, {}], ("type dict",)),
        ("ab", ("type str",)),
    ],
)
def test_D10_gold_that_does_not_fit(gold: Any, words: tuple[str, ...]) -> None:
    session = rated("1", "2")
    for call in (session.score, session.to_examples):
        with refused(session, CallError, "one dspy.Example or one per turn", *words):
            call(rating, gold=gold)


def test_D10_a_metric_that_is_none() -> None:
    session = rated("1")
    with refused(session, CallError, "metric", "callable", "str"):
        session.score("accuracy")  # type: ignore[arg-type]


def test_D10_only_the_turns_that_were_judged_get_the_score() -> None:
    session = rated("1", "2", "3")

    def meddling(example: dspy.Example, prediction: Any) -> float:
        if example.question == "3":
            session.replace_turn(1, {"answer": "edited"})
            session.pop_turn()
            session.add_turn({"question": "4"}, {"answer": "answer to 4"})
            session.add_turn({"question": "5"}, {"answer": "answer to 5"})
        return 1.0

    assert session.score(meddling) == [1.0, 1.0, 1.0]
    assert questions(session) == ["1", "2", "4", "5"]
    assert scores(session) == [1.0, None, None, None]


def test_D10_scores_are_the_branchs_own() -> None:
    session = rated("1")
    branch = session.fork()
    branch.score(rating)
    assert (scores(session), scores(branch)) == ([None], [1.0])


# D9: examples


def test_D9_one_example_per_turn_with_what_its_call_saw() -> None:
    session = qa_session(initial_history=history("seed"), max_turns=1)
    ask(session, "one", "two", "three")
    examples = session.to_examples()
    assert [isinstance(example, dspy.Example) for example in examples] == [True] * 3
    last = examples[2]
    assert set(last.inputs().keys()) == {"question", "history"}
    assert set(last.labels().keys()) == {"answer"}
    assert (last.question, last.answer) == ("three", "answer to three")
    assert [(m["question"], m["answer"]) for m in last.history.messages] == pairs("seed", "two")
    assert type(last.history) is dspy.History


def test_D9_examples_are_replayed_without_being_recorded() -> None:
    session = qa_session()
    ask(session, "one", "two")
    before = session.state
    for example in session.to_examples():
        assert session(**example.inputs()).answer == example.answer
    assert session.state is before


def test_D9_without_history_examples_fit_the_bare_program() -> None:
    session = qa_session()
    ask(session, "one", "two")
    example = session.to_examples(include_history=False)[1]
    assert dict(example.items()) == {"question": "two", "answer": "answer to two"}
    assert set(example.inputs().keys()) == {"question"}
    assert dspy.Predict(QA)(**example.inputs()).answer == "answer to two"


def test_D9_min_score_is_inclusive() -> None:
    session = rated("0.2", "0.5", "0.8")
    kept = [float(e.question) for e in session.to_examples(rating, min_score=0.5)]
    assert kept == [0.5, 0.8]
    assert session.to_examples(rating, min_score=0.81) == []


def test_D9_a_metric_scores_the_turns_as_score_does() -> None:
    session = rated("0.2", "0.5")
    assert len(session.to_examples(metric=rating)) == 2
    assert scores(session) == [0.2, 0.5]


def test_D9_without_a_metric_stored_scores_count() -> None:
    session = rated("0.2", "0.8")
    session.score(rating)
    session.add_turn({"question": "unscored"}, {"answer": "?"})
    assert [e.question for e in session.to_examples(min_score=0.5)] == ["0.8"]
    assert [e.question for e in session.to_examples(min_score=-9)] == ["0.2", "0.8"]
    assert len(session.to_examples()) == 3


def test_D9_strict_trajectory_ends_with_the_first_turn_left_out() -> None:
    session = rated("1", "0.8", "0.2", "1")
    strict = session.to_examples(rating, min_score=0.5, strict_trajectory=True)
    assert [e.question for e in strict] == ["1", "0.8"]
    assert len(session.to_examples(rating, min_score=0.5)) == 3
    assert len(session.to_examples(strict_trajectory=True)) == 4


def test_D9_a_turn_without_outputs_is_skipped_and_not_judged() -> None:
    session = rated("1", on_metric_error="raise")
    session.add_turn({"question": "2"}, {})
    session.add_turn({"question": "3"}, {"answer": "answer to 3"})
    assert [e.question for e in session.to_examples()] == ["1", "3"]
    assert [e.question for e in session.to_examples(rating, min_score=1)] == ["1", "3"]
    assert scores(session) == [1.0, None, 3.0]
    assert [e.question for e in session.to_examples(strict_trajectory=True)] == ["1"]
    assert [e.question for e in session.to_examples(require_outputs=False)] == ["1", "2", "3"]
    with refused(session, MetricError, "turn 1"):
        session.to_examples(rating, require_outputs=False)


def test_D9_to_trainset_is_to_examples() -> None:
    session = rated("0.2", "0.8")
    for options in ({}, {"metric": rating, "min_score": 0.5}, {"include_history": False}):
        trainset, examples = session.to_trainset(**options), session.to_examples(**options)
        assert [dict(e.items()) for e in trainset] == [dict(e.items()) for e in examples]
        assert [set(e.inputs().keys()) for e in trainset] == [
            set(e.inputs().keys()) for e in examples
        ]


def test_D9_examples_are_copies() -> None:
    session = rated("1", "2")
    example = session.to_examples()[1]
    example.history.messages.clear()
    example.answer = "changed"
    assert session.turns[1].history_snapshot.messages == history("1").messages
    assert session.turns[1].outputs == {"answer": "answer to 2"}


def test_D9_merge_examples() -> None:
    first, second = rated("0.2", "0.8"), rated("0.5")
    assert [e.question for e in Session.merge_examples(first, second)] == ["0.2", "0.8", "0.5"]
    kept = Session.merge_examples(first, second, metric=rating, min_score=0.5)
    assert [e.question for e in kept] == ["0.8", "0.5"]
    assert Session.merge_examples() == []
    with refused(first, CallError, "merge_examples takes sessions", "list"):
        Session.merge_examples(first, [second])  # type: ignore[arg-type]


def test_D9_min_score_that_is_no_number() -> None:
    session = rated("1")
    with refused(session, CallError, "min_score", "number", "'high'"):
        session.to_examples(min_score="high")  # type: ignore[arg-type]


def test_D9_any_field_name_makes_an_example() -> None:
    class Odd(dspy.Module):
        def forward(self, **inputs: Any) -> dspy.Prediction:
            returned = dspy.Prediction()
            returned["items"], returned["keys"] = ["a"], 2
            return returned

    session = sessionify(Odd())
    session(get=1, copy=2)
    (example,) = session.to_examples()
    assert {name: example[name] for name in ("get", "copy", "items", "keys")} == {
        "get": 1,
        "copy": 2,
        "items": ["a"],
        "keys": 2,
    }


def test_D9_what_an_optimizer_learns_from_examples_reaches_the_prompt(lm: ScriptedLM) -> None:
    session = qa_session()
    ask(session, "one", "two")
    before = session.state
    compiled = dspy.BootstrapFewShot(max_labeled_demos=0).compile(
        session, trainset=session.to_examples()
    )
    assert session.state is before
    assert session.predictors()[0].demos == []
    assert isinstance(compiled, Session)
    assert questions(compiled) == ["one", "two"]
    compiled(question="three")
    prompt = lm.prompts[-1]
    assert len(prompt) == 1 + 2 * len(compiled.predictors()[0].demos) + 4 + 1
    contents = "\n".join(message["content"] for message in prompt)
    assert contents.count("answer to one") >= 2  # as a demo, and as the past
    assert questions(compiled) == ["one", "two", "three"]
