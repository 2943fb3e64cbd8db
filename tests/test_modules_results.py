"""What a turn keeps of what came back: the outputs, and beside them the details of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy
import pytest
from dspy import LocalInterpreter

from dspy_session import SessionOptions, SessionState, sessionify, step
from dspy_session.program.anatomy import has_inner_agents
from dspy_session.testing import Prompt
from tests.modules import ANSWERS, Speaker, converse, deprecated_modules, tells
from tests.uncollected import uncollected

NAMED = "question -> answer"


def look(at: str) -> str:
    """Look at something."""
    return f"seen {at}"


def finishing(prompt: Prompt) -> dict[str, Any]:
    return {
        "next_tool_name": "finish",
        "next_tool_args": {},
        "tool_calls": {"tool_calls": [{"name": "submit", "args": {"answer": ANSWERS[0]}}]},
        "generated_code": "print(6 * 7)",
        "finished": True,
    }


class Around(dspy.Module):
    """A program around an agent; what it makes of the agent's prediction is up to the test."""

    def __init__(self, make: Callable[[Any, Any], Any], agent: dspy.Module | None = None) -> None:
        super().__init__()
        self.agent = agent or dspy.ReAct(NAMED, tools=[look])
        self.think = dspy.ChainOfThought(NAMED)
        self.make = make

    def forward(self, question: str) -> Any:
        return self.make(self.agent(question=question), self.think(question=question))


def kept(program: dspy.Module, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs and details of one turn, with their values."""
    session = sessionify(program, **options)
    converse(session, Speaker(finishing), turns=1)
    return session.turns[0].outputs, session.turns[0].details


STEPS = {"thought_0", "tool_name_0", "tool_args_0", "observation_0"}


def test_D2_what_an_agent_leaves_beside_its_outputs_is_detail() -> None:
    outputs, details = kept(dspy.ReAct(NAMED, tools=[look]))
    assert outputs == {"answer": ANSWERS[0]}
    assert list(details) == ["trajectory", "reasoning"]
    assert details["trajectory"].keys() == STEPS
    assert details["reasoning"] == "reasoning-0"


RETURNS: dict[str, tuple[Callable[[Any, Any], Any], list[str], list[str]]] = {
    "the agent's prediction": (lambda a, t: a, ["answer"], ["trajectory", "reasoning"]),
    "the chain of thought's": (lambda a, t: t, ["reasoning", "answer"], []),
    "the answer alone": (lambda a, t: a.answer, ["output"], []),
    "all of the agent's, unpacked": (
        lambda a, t: dspy.Prediction(**a, sources=["here"]),
        ["answer", "sources"],
        ["trajectory", "reasoning"],
    ),
    "the agent's with one more field": (
        lambda a, t: with_field(a, "sources", ["here"]),
        ["answer", "sources"],
        ["trajectory", "reasoning"],
    ),
    "a trajectory and the other's reasoning": (
        lambda a, t: dspy.Prediction(trajectory=a.trajectory, **t),
        ["reasoning", "answer"],
        ["trajectory"],
    ),
    "a detail under another name": (
        lambda a, t: dspy.Prediction(answer=a.answer, steps=a.trajectory),
        ["answer", "steps"],
        [],
    ),
    "an output under the name of a detail": (
        lambda a, t: dspy.Prediction(answer=a.answer, trajectory="up and down"),
        ["answer", "trajectory"],
        [],
    ),
}


def with_field(prediction: Any, name: str, value: Any) -> Any:
    prediction[name] = value
    return prediction


@pytest.mark.parametrize("what", RETURNS)
def test_D2_a_detail_stays_one_however_a_program_hands_it_on(what: str) -> None:
    make, outputs, details = RETURNS[what]
    found, beside = kept(Around(make))
    assert (sorted(found), sorted(beside)) == (sorted(outputs), sorted(details))


def test_D4_a_field_that_a_program_adds_to_a_prediction_is_an_output() -> None:
    class Adding(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(NAMED)

        def forward(self, question: str) -> Any:
            return with_field(self.qa(question=question), "context", ["a"])

    assert kept(Adding()) == ({"answer": ANSWERS[0], "context": ["a"]}, {})


def test_D3_the_agents_inside_attempts_and_threads_count_too() -> None:
    react = dspy.ReAct(NAMED, tools=[look])
    best = dspy.BestOfN(react, N=2, reward_fn=lambda a, p: 1.0, threshold=2.0)

    class InThreads(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.react = react

        def forward(self, question: str) -> Any:
            jobs = [(self.react, {"question": question})] * 2
            return dspy.Parallel(num_threads=2, disable_progress_bar=True)(jobs)[-1]

    for program in (best, InThreads(), Around(lambda a, t: a, agent=best)):
        with uncollected():
            outputs, details = kept(program)
        assert (list(outputs), sorted(details)) == (["answer"], ["reasoning", "trajectory"])


def test_X7_a_lone_agent_needs_nobody_to_watch_it() -> None:
    """A callback makes every call dearer, and what the program itself returns is seen anyway."""
    react = dspy.ReAct(NAMED, tools=[look])
    assert not has_inner_agents(react)
    assert not has_inner_agents(dspy.BestOfN(dspy.ChainOfThought(NAMED), 1, lambda a, p: 1.0, 1.0))
    assert has_inner_agents(dspy.BestOfN(react, 1, lambda a, p: 1.0, 1.0))


def test_D3_of_an_agent_made_on_the_fly_too_where_all_are_told() -> None:
    class OnTheFly(dspy.Module):
        def forward(self, question: str) -> Any:
            return dspy.ReAct(NAMED, tools=[look])(question=question)

    assert sorted(kept(OnTheFly(), scope="all")[1]) == ["reasoning", "trajectory"]
    assert sorted(kept(OnTheFly())[0]) == ["answer", "reasoning", "trajectory"]


def test_D3_a_module_of_ones_own_with_a_signature_follows_the_same_rule() -> None:
    class Own(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.signature = dspy.Signature(NAMED)
            self.think = dspy.ChainOfThought(self.signature)

        def forward(self, question: str) -> Any:
            return dspy.Prediction(**self.think(question=question), steps=[1])

    assert kept(Own()) == ({"answer": ANSWERS[0]}, {"reasoning": "reasoning-0", "steps": [1]})

    class Elsewhere(Own):
        """Answers something else than its signature."""

        def forward(self, question: str) -> Any:
            return dspy.Prediction(verdict="yes")

    assert kept(Elsewhere()) == ({"verdict": "yes"}, {})


def test_D3_what_dspy_adds_to_a_predictors_answer_is_detail() -> None:
    class Probable(dspy.ChatAdapter):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return [{**answer, "logprobs": [0.5]} for answer in super().__call__(*args, **kwargs)]

    with dspy.context(adapter=Probable()):
        for program in (dspy.Predict(NAMED), dspy.ChainOfThought(NAMED)):
            outputs, details = kept(program)
            assert (outputs["answer"], details) == (ANSWERS[0], {"logprobs": [0.5]})


def test_D3_the_history_that_comes_back_is_kept_without_the_conversation() -> None:
    class Noting(dspy.Module):
        """Returns its history, with what it found out, as some agents do."""

        def __init__(self) -> None:
            super().__init__()
            self.qa = dspy.Predict(NAMED)

        def forward(self, question: str, history: dspy.History) -> Any:
            answer = self.qa(question=question).answer
            history.messages.append({"noted": question})
            return dspy.Prediction(answer=answer, history=history)

    session = sessionify(Noting())
    converse(session, Speaker())
    assert [list(turn.outputs) for turn in session.turns] == [["answer"]] * 3
    assert [turn.details["history"] for turn in session.turns] == [
        [{"noted": turn.inputs["question"]}] for turn in session.turns
    ]

    class Silent(Noting):
        def forward(self, question: str, history: dspy.History) -> Any:
            return dspy.Prediction(answer=self.qa(question=question).answer, history=history)

    session = sessionify(Silent())
    converse(session, Speaker())
    assert [turn.details for turn in session.turns] == [{}] * 3


# --- where details go -----------------------------------------------------------------------------


def test_D2_details_are_in_no_later_prompt_unless_they_are_asked_for() -> None:
    hidden, shown = (
        sessionify(dspy.ReAct(NAMED, tools=[look]), show_details=show) for show in (False, True)
    )
    for session in (hidden, shown):
        lm = Speaker(finishing)
        converse(session, lm)
        step_, last = lm.of_turn(2)
        assert tells(step_, 2)
        assert tells(last, 2)
        text = step_[1]["content"]
        assert ("trajectory:" in text, "reasoning: reasoning-1" in text) == (
            session is shown,
            session is shown,
        )
        assert "next_tool" not in last[1]["content"]  # messages have none


def test_D9_details_are_in_no_example() -> None:
    session = sessionify(dspy.ReAct(NAMED, tools=[look]))
    converse(session, Speaker(finishing))
    assert [sorted(example.keys()) for example in session.to_examples()] == [
        ["answer", "history", "question"]
    ] * 3


def test_D10_a_metric_may_look_at_the_details() -> None:
    session = sessionify(dspy.ReAct(NAMED, tools=[look]))
    converse(session, Speaker(finishing), turns=2)

    def thoughtful(example: dspy.Example, prediction: dspy.Prediction) -> float:
        return float(len(prediction.trajectory["thought_0"]))

    assert session.score(thoughtful) == [14.0, 14.0]


def test_D14_details_go_with_their_turn() -> None:
    session = sessionify(dspy.ReAct(NAMED, tools=[look]))
    converse(session, Speaker(finishing))
    details = session.turns[1].details
    session.replace_turn(1, {"answer": "corrected"})
    assert session.turns[1].details == details
    session.undo(2)
    session.redo()
    assert session.turns[-1].details == details
    details["trajectory"]["thought_0"] = "forged"
    assert session.turns[-1].details != details


# --- what only steers a run -----------------------------------------------------------------------


def test_D2_arguments_that_steer_an_agents_run_are_no_inputs() -> None:
    lm = Speaker(finishing)
    with deprecated_modules():
        programs: list[dspy.Module] = [
            dspy.ReAct(NAMED, tools=[look]),
            dspy.ReActV2(NAMED, tools=[look]),
            dspy.CodeAct(NAMED, tools=[look], interpreter_factory=LocalInterpreter),
        ]
    for program in programs:
        with dspy.context(lm=lm):
            _, state = step(SessionState(), program, {"question": "x", "max_iters": 1})
        assert state.turns[0].inputs == {"question": "x"}
    declared = dspy.ReAct("question, max_iters: int -> answer", tools=[look])
    with dspy.context(lm=lm):
        _, state = step(SessionState(), declared, {"question": "x", "max_iters": 1})
    assert state.turns[0].inputs == {"question": "x", "max_iters": 1}


def test_D2_a_max_iters_of_the_programs_own_is_an_input() -> None:
    class Iterating(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.react = dspy.ReAct(NAMED, tools=[look])

        def forward(self, question: str, max_iters: int) -> Any:
            return self.react(question=question, max_iters=max_iters)

    options = SessionOptions()
    with dspy.context(lm=Speaker(finishing)):
        inputs = {"question": "x", "max_iters": 2}
        _, state = step(SessionState(), Iterating(), inputs, options)
    assert state.turns[0].inputs == inputs
