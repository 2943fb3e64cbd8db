"""Trials are no turns: what an evaluator or an optimizer asks a live session is not remembered.

Whatever runs the examples, each of them is answered from the session's present state, and no
example's text is in another one's prompt.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import pytest

from dspy_session import LockError, Session, Turn, TurnEvent, sessionify
from dspy_session.testing import Prompt, ScriptedLM
from tests.optimizers import OPTIMIZERS, TALKS, corrected, model, program_for, quietly, talk, whole
from tests.optimizers import asked as conversation
from tests.streams import SOON
from tests.talk import (
    QA,
    Asker,
    ask,
    asked,
    echo,
    history,
    pairs,
    past,
    qa_session,
    questions,
    refused,
)

THREADS = pytest.mark.parametrize("threads", [1, 16])


@pytest.fixture(autouse=True)
def lm() -> Iterator[ScriptedLM]:
    with dspy.context(lm=(lm := ScriptedLM(echo))), quietly():
        yield lm


def examples(count: int = 24, **more: Any) -> list[dspy.Example]:
    made = [
        dspy.Example(question=f"trial {n}", answer=f"answer to trial {n}", **more)
        for n in range(count)
    ]
    return [example.with_inputs("question", *more) for example in made]


def metric(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    return float(prediction.answer == example.answer)


def live(**keywords: Any) -> Session:
    """Two turns and one that could be redone."""

    def hook(whose: Session, turn: Turn) -> None:
        if whose is session:  # forks share the hook
            announced.append(turn)

    announced: list[Turn] = []
    session = qa_session(on_turn=hook, **keywords)
    vars(session)["announced"] = announced
    ask(session, "one", "two", "taken back")
    session.undo()
    return session


def untouched(session: Session) -> Callable[[], None]:
    """Call what this returns to see that nothing of the session has changed."""
    announced = vars(session).get("announced", [])
    before = session.state, session.turns, session.state.undone, session.attempts, len(announced)

    def check() -> None:
        assert session.state is before[0]
        after = (session.turns, session.state.undone, session.attempts, len(announced))
        assert after == before[1:]

    return check


def answered_from_present_state(prompts: list[Prompt], count: int) -> None:
    assert sorted(asked(prompt) for prompt in prompts) == sorted(f"trial {n}" for n in range(count))
    assert all(past(prompt) == pairs("one", "two") for prompt in prompts)


# --- evaluators -----------------------------------------------------------------------------------


@THREADS
def test_X2_an_evaluation_is_answered_from_the_present_state(lm: ScriptedLM, threads: int) -> None:
    session = live()
    check = untouched(session)
    lm.prompts.clear()
    result = whole.Evaluate(devset=examples(), metric=metric, num_threads=threads)(session)
    assert result.score == 100
    check()
    answered_from_present_state(lm.prompts, 24)


@THREADS
def test_X2_a_batch_is_answered_from_the_present_state(lm: ScriptedLM, threads: int) -> None:
    session = live()
    check = untouched(session)
    lm.prompts.clear()
    results = session.batch(examples(), num_threads=threads, disable_progress_bar=True)
    assert [result.answer for result in results] == [f"answer to trial {n}" for n in range(24)]
    check()
    answered_from_present_state(lm.prompts, 24)
    results, failed, errors = session.batch(
        [*examples(2), dspy.Example(question="fail").with_inputs("question")],
        num_threads=threads,
        return_failed_examples=True,
    )
    assert [example.question for example in failed] == ["fail"]
    assert "the model is out" in str(errors[0])
    check()


def test_X2_a_session_cannot_batch_itself_inside_its_own_turn() -> None:
    class Batching(dspy.Module):
        def forward(self, question: str) -> Any:
            return session.batch(examples(2), disable_progress_bar=True)

    session = sessionify(Batching())
    with refused(session, LockError, "inside its own turn"):
        session(question="x")


def test_X2_an_example_that_is_submitted_again_is_not_remembered_either() -> None:
    """DSPy asks again when an answer is late; here the late one waits for its second."""
    asked_again, waiting = threading.Event(), threading.Lock()

    def reply(prompt: Prompt) -> dict[str, Any]:
        if asked(prompt) == "trial 0":
            if waiting.acquire(blocking=False):
                assert asked_again.wait(SOON)
            else:
                asked_again.set()
        return echo(prompt)

    session = live()
    check = untouched(session)
    lm = ScriptedLM(reply)
    with dspy.context(lm=lm):
        session.batch(examples(6), num_threads=4, timeout=1e-9, straggler_limit=6)
    prompts = [asked(prompt) for prompt in lm.prompts]
    assert prompts.count("trial 0") >= 2
    assert all(past(prompt) == pairs("one", "two") for prompt in lm.prompts)
    check()


@pytest.mark.parametrize("policy", ["override", "use_if_provided", "replace_session"])
def test_X2_examples_with_a_history_are_replayed_whatever_the_policy(
    lm: ScriptedLM, policy: str
) -> None:
    session = live(history_policy=policy)
    check = untouched(session)
    lm.prompts.clear()
    whole.Evaluate(devset=examples(8, history=history("a", "b")), metric=metric, num_threads=4)(
        session
    )
    assert all(past(prompt) == pairs("a", "b") for prompt in lm.prompts)
    check()


def test_X2_failed_trials_leave_no_attempts(lm: ScriptedLM) -> None:
    session = live()
    devset = [dspy.Example(question="fail", answer="").with_inputs("question")] * 3
    whole.Evaluate(devset=devset, metric=metric, num_threads=2)(session)
    assert session.attempts == ()
    with pytest.raises(Exception, match="the model is out"):
        session(question="fail")
    assert len(session.attempts) == 1


@pytest.mark.parametrize("lock", ["thread", "async"])
def test_X2_trials_do_not_wait_for_each_other_whatever_the_lock(lock: str) -> None:
    together = threading.Barrier(4)

    def reply(prompt: Prompt) -> dict[str, Any]:
        together.wait(SOON)
        return echo(prompt)

    session = qa_session(lock=lock)
    with dspy.context(lm=ScriptedLM(reply)):
        result = whole.Evaluate(devset=examples(8), metric=metric, num_threads=4)(session)
    assert result.score == 100
    assert len(session) == 0


def test_X2_async_code_inside_an_evaluation(lm: ScriptedLM) -> None:
    class Awaits(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.session = live()

        def forward(self, question: str) -> Any:
            return asyncio.run(self.session.acall(question=question))

    program = Awaits()
    check = untouched(program.session)
    lm.prompts.clear()
    whole.Evaluate(devset=examples(6), metric=metric, num_threads=3)(program)
    answered_from_present_state(lm.prompts, 6)
    check()


def test_X2_an_evaluation_that_is_awaited(lm: ScriptedLM) -> None:
    session = live()
    check = untouched(session)
    lm.prompts.clear()
    evaluate: Any = whole.Evaluate(devset=examples(6), metric=metric, num_threads=3)
    evaluated: Any = dspy.asyncify(evaluate)(session)
    result = asyncio.run(evaluated)
    assert result.score == 100
    answered_from_present_state(lm.prompts, 6)
    check()


def test_X2_a_session_in_the_evaluated_program(lm: ScriptedLM) -> None:
    class Holder(dspy.Module):
        def __init__(self, session: Session) -> None:
            super().__init__()
            self.session = session

        def forward(self, question: str) -> Any:
            return self.session(question=question)

    session = live()
    check = untouched(session)
    lm.prompts.clear()
    whole.Evaluate(devset=examples(6), metric=metric, num_threads=3)(Holder(session))
    answered_from_present_state(lm.prompts, 6)
    check()


def test_X2_a_metric_that_asks_the_session_itself(lm: ScriptedLM) -> None:
    session = live()
    check = untouched(session)

    def judge(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        return float(bool(session(question=f"is {prediction.answer} right?").answer))

    whole.Evaluate(devset=examples(6), metric=judge, num_threads=3)(session)
    check()
    for prompt in lm.prompts[3:]:
        assert past(prompt) == pairs("one", "two")


# --- optimizers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_history", [True, False], ids=["with history", "without"])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "Ensemble"])
def test_X2_optimizers_leave_the_session_as_it_was(name: str, with_history: bool) -> None:
    lm = model()
    with dspy.context(lm=lm):
        program = program_for(name)
        trainset = [example for places in TALKS for example in corrected(places, program)]
        if not with_history:
            trainset = [example.without("history") for example in trainset]
            trainset = [example.with_inputs("question") for example in trainset]
        recorded: list[Turn] = []
        session = sessionify(program(), on_turn=lambda _, turn: recorded.append(turn))
        talk(session, ("Oslo", "Hamar"))
        recorded.clear()
        check = untouched(session)
        lm.prompts.clear()
        compiled = OPTIMIZERS[name](session, trainset)
        check()
        assert recorded == []
        if not with_history:  # each is asked in the session's own conversation
            trials = [conversation(prompt) for prompt in lm.prompts]
            assert all(len(turns) in (0, 2) for turns in trials)
            assert {turns[0] for turns in trials if turns} <= {session.turns[0].inputs["question"]}
        assert isinstance(compiled, Session)
        assert compiled.turns == session.turns
        compiled(question="And from there to Otta?")
        assert (len(compiled), len(session)) == (2, 1)
        assert [turn.inputs["question"] for turn in recorded] == ["And from there to Otta?"]
        compiled(question="And from there to Dombas?")
        assert len(conversation(lm.prompts[-1])) == 3  # what was said after compiling is seen
        check()


def test_X2_traces_are_bootstrapped_from_a_session(lm: ScriptedLM) -> None:
    session = live()
    check = untouched(session)
    data = whole.bootstrap_trace_data(session, examples(4), metric=metric, num_threads=2)
    assert [row["score"] for row in data] == [1.0] * 4
    assert all(row["trace"][0][1] == {"question": row["example"].question} for row in data)
    check()
    twin = session.fork()
    twin(question="three")  # DSPy leaves `forward` on the object; a fork has its own
    assert (len(twin), len(session)) == (3, 2)
    check()


def test_X2_the_sessions_of_an_ensemble_record_when_a_person_asks(lm: ScriptedLM) -> None:
    sessions = [live(), live()]
    together = whole.Ensemble(reduce_fn=whole.majority).compile(sessions)
    together(question="three")
    assert [questions(session) for session in sessions] == [["one", "two", "three"]] * 2
    whole.Evaluate(devset=examples(4), metric=metric, num_threads=2)(together)
    assert [questions(session) for session in sessions] == [["one", "two", "three"]] * 2


# --- what is no trial -----------------------------------------------------------------------------


def test_X2_a_persons_own_loop_and_metric_record(lm: ScriptedLM) -> None:
    session = qa_session()
    for example in examples(3):
        session(**example.inputs())
    assert questions(session) == ["trial 0", "trial 1", "trial 2"]
    judge = qa_session()

    def judged(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        return float(bool(judge(question=example.question).answer))

    session.score(judged)
    assert len(judge) == 3


def test_X2_sessions_among_the_pairs_of_parallel_record(lm: ScriptedLM) -> None:
    sessions = [qa_session() for _ in range(4)]
    jobs = [(session, {"question": f"{n}"}) for n, session in enumerate(sessions * 3)]
    dspy.Parallel(num_threads=6, disable_progress_bar=True)(jobs)
    for n, session in enumerate(sessions):
        assert sorted(questions(session)) == sorted(f"{n + 4 * k}" for k in range(3))


def test_X2_a_conversation_that_an_example_holds_for_itself_is_remembered(lm: ScriptedLM) -> None:
    """A program that plays a whole conversation can be evaluated, and optimized, turn by turn."""

    class Talk(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)
            self.other = live()

        def forward(self, question: str) -> Any:
            session = sessionify(self.qa, copy_mode="none")
            branch = self.other.fork()
            for number in range(3):
                session(question=f"{question}.{number}")
                branch(question=f"{question}.{number}")
            return dspy.Prediction(turns=len(session), branch=len(branch))

    def remembered(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        return float((prediction.turns, prediction.branch) == (3, 5))

    program = Talk()
    check = untouched(program.other)
    lm.prompts.clear()
    assert (
        whole.Evaluate(devset=examples(6), metric=remembered, num_threads=3)(program).score == 100
    )
    for prompt in lm.prompts:
        name, number = asked(prompt).split(".")
        own = [f"{name}.{n}" for n in range(int(number))]
        assert past(prompt) in (pairs(*own), pairs("one", "two", *own))
    check()
    optimizer = dspy.BootstrapFewShot(metric=remembered, max_labeled_demos=0)
    compiled = optimizer.compile(program, trainset=examples(1))
    assert len(compiled.qa.demos) == 1


def test_X2_sessions_within_a_trial_remember_within_it(lm: ScriptedLM) -> None:
    class Twice(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = qa_session()

        def forward(self, question: str) -> Any:
            self.inner(question=f"{question}, first")
            return self.inner(question=f"{question}, then")

    session = sessionify(program := Twice(), copy_mode="none")
    inner = program.inner
    lm.prompts.clear()
    whole.Evaluate(
        devset=examples(4), metric=lambda example, prediction, trace=None: 1.0, num_threads=2
    )(session)
    thens = [prompt for prompt in lm.prompts if asked(prompt).endswith("then")]
    assert len(thens) == 4
    for prompt in thens:
        assert past(prompt) == pairs(asked(prompt).replace("then", "first"))
    assert (len(session), len(inner)) == (0, 0)


def test_X2_a_trial_reaches_into_the_threads_that_it_starts(lm: ScriptedLM) -> None:
    elsewhere = live()

    class Fan(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(QA)

        def forward(self, question: str) -> Any:
            jobs = [(elsewhere, {"question": question})] * 2
            return dspy.Parallel(num_threads=2, disable_progress_bar=True)(jobs)[0]

    check = untouched(elsewhere)
    whole.Evaluate(devset=examples(4), metric=metric, num_threads=2)(sessionify(Fan()))
    check()


# --- frozen ---------------------------------------------------------------------------------------


def test_X2_a_frozen_session_answers_from_where_it_was_frozen(lm: ScriptedLM) -> None:
    session = live()
    frozen = session.frozen()
    assert isinstance(frozen, dspy.Module)
    assert "frozen" in repr(frozen)
    session(question="three")
    check = untouched(frozen)
    lm.prompts.clear()
    for n in range(3):
        frozen(question=f"trial {n}")
    answered_from_present_state(lm.prompts, 3)
    lm.prompts.clear()
    jobs = [(frozen, {"question": f"trial {n}"}) for n in range(6)]
    dspy.Parallel(num_threads=3, disable_progress_bar=True)(jobs)
    asyncio.run(frozen.acall(question="trial 6"))
    answered_from_present_state(lm.prompts, 7)
    with pytest.raises(Exception, match="the model is out"):
        frozen(question="fail")
    check()
    frozen(question="x", history=history("a"))
    assert past(lm.prompts[-1]) == pairs("a")
    check()
    assert questions(session) == ["one", "two", "three"]
    assert frozen.session_id != session.session_id


def test_X2_copies_of_a_frozen_session_are_frozen_and_forks_are_live(lm: ScriptedLM) -> None:
    frozen = live().frozen()
    for twin in (copy.deepcopy(frozen), frozen.deepcopy(), frozen.reset_copy(), frozen.frozen()):
        twin(question="x")
        assert questions(twin) == ["one", "two"]
    kept = pickle.loads(pickle.dumps(qa_session().frozen()))
    kept(question="x")
    assert len(kept) == 0
    fork = frozen.fork()
    fork(question="three")
    assert questions(fork) == ["one", "two", "three"]
    assert questions(frozen) == ["one", "two"]


def test_X2_what_is_learned_on_a_frozen_session_goes_into_the_live_one(lm: ScriptedLM) -> None:
    session = live()
    learned = dspy.LabeledFewShot(k=2).compile(session.frozen(), trainset=examples(2))
    learned(question="x")
    assert len(learned) == 2
    session.update_module(learned)
    session(question="three")
    shown = [m["content"] for m in lm.prompts[-1] if m["role"] == "user"]
    assert sum("trial" in text for text in shown) == 2
    assert questions(session) == ["one", "two", "three"]


def test_X2_a_frozen_session_inside_a_program_stays_frozen(lm: ScriptedLM) -> None:
    class Holder(dspy.Module):
        def __init__(self, session: Session) -> None:
            super().__init__()
            self.session = session

        def forward(self, question: str) -> Any:
            return self.session(question=question)

    outer = sessionify(Holder(live().frozen()), copy_mode="none")
    outer(question="x")
    outer(question="y")
    assert [past(prompt) for prompt in lm.prompts[-2:]] == [pairs("one", "two")] * 2
    assert len(outer) == 2


def test_X2_streams_of_a_frozen_session_and_of_trials_record_nothing(lm: ScriptedLM) -> None:
    class Streaming(dspy.Module):
        def __init__(self, session: Session) -> None:
            super().__init__()
            self.session = session

        def forward(self, question: str) -> Any:
            *_, last = self.session.stream(question=question)
            assert isinstance(last, TurnEvent)
            assert last.turn is None
            return last.prediction

    session = live()
    frozen = session.frozen()
    check, check_frozen = untouched(session), untouched(frozen)
    lm.prompts.clear()
    result = whole.Evaluate(devset=examples(4), metric=metric, num_threads=2)(Streaming(session))
    assert result.score == 100
    answered_from_present_state(lm.prompts, 4)
    check()
    Streaming(frozen)(question="x")
    left = frozen.stream(question="y")
    next(left)
    left.close()
    check_frozen()


def test_X2_a_program_with_a_plain_return_is_evaluated(lm: ScriptedLM) -> None:
    session = sessionify(Asker())
    ask(session, "one")
    check = untouched(session)
    devset = examples(4)
    result = whole.Evaluate(
        devset=devset, metric=lambda e, p, trace=None: float(p == e.answer), num_threads=2
    )(session)
    assert result.score == 100
    check()
