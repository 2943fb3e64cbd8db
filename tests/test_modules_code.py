"""Modules that write code, which really runs: in a process of its own on this machine."""

from __future__ import annotations

import asyncio
from typing import Any

import dspy
import pytest
from dspy import LocalInterpreter

from dspy_session import SessionOptions, SessionState, sessionify, step
from dspy_session.errors import HistoryError
from dspy_session.program.anatomy import faces
from dspy_session.testing import Prompt, requested_fields
from tests.loopback import Body, LoopbackServer
from tests.modules import (
    ANSWERS,
    QUESTIONS,
    Speaker,
    aconverse,
    content,
    converse,
    deprecated_modules,
    tells,
)

# DSPy's own: what runs inside a Flex goes through an LM that the adapter does not know.
pytestmark = pytest.mark.filterwarnings("ignore:Passing OpenAI-style:DeprecationWarning")

NAMED = "question -> answer"


def double(number: int) -> int:
    """Twice as much."""
    return 2 * number


class Coder(Speaker):
    """Writes a piece of code that fails, then one that works."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces
        self.written = 0

        def say(prompt: Prompt) -> dict[str, Any]:
            asked = requested_fields(prompt)
            if not {"code", "generated_code"}.intersection(asked):
                return {}
            code = self.pieces[self.written % len(self.pieces)]
            self.written += 1
            last = self.written % len(self.pieces) == 0
            return {"code": code, "generated_code": code, "finished": last}

        super().__init__(say)


def code_act() -> dspy.Module:
    with deprecated_modules():
        return dspy.CodeAct(NAMED, tools=[double], interpreter_factory=LocalInterpreter)


def program_of_thought() -> dspy.Module:
    with deprecated_modules():
        return dspy.ProgramOfThought(NAMED, interpreter_factory=LocalInterpreter)


def rlm(signature: Any = NAMED, **more: Any) -> dspy.Module:
    return dspy.RLM(signature, interpreter_factory=LocalInterpreter, **more)


def flex(signature: Any = NAMED) -> dspy.Module:
    return dspy.Flex(signature, interpreter_factory=LocalInterpreter)


def words(prompt: Any) -> str:
    return "".join(map(content, prompt))


# --- what runs, and what is told ------------------------------------------------------------------


def test_D3_a_code_act_runs_its_code_and_tools_in_every_turn() -> None:
    session, lm = sessionify(code_act()), Coder("print(1 / 0)", "print(double(21))")
    converse(session, lm)
    for turn in session.turns:
        assert turn.outputs == {"answer": ANSWERS[turn.index]}
        trajectory = turn.details["trajectory"]
        assert "ZeroDivisionError" in trajectory["observation_0"]
        assert trajectory["code_output_1"] == '"42"'
    for prompt in lm.of_turn(2):
        assert tells(prompt, 2)
        assert words(prompt).count("double(21)") <= 1  # of this turn; earlier ones are details
    assert "ZeroDivisionError" in words(lm.of_turn(2)[1])


def test_D3_a_program_of_thought_does_too() -> None:
    session = sessionify(program_of_thought())
    lm = Coder("print(1 / 0)", "SUBMIT({'answer': 6 * 7})")
    converse(session, lm)
    assert [turn.outputs for turn in session.turns] == [{"answer": a} for a in ANSWERS[:3]]
    generate, again, last = lm.of_turn(2)
    assert all(tells(prompt, 2) for prompt in (generate, again, last))
    assert "ZeroDivisionError" in words(again)
    assert '{"answer": 42}' in words(last)


@pytest.mark.parametrize("awaited", [False, True])
def test_D3_an_rlm_sees_the_conversation_and_its_own_code(awaited: bool) -> None:
    pieces = ("print(double(number=21))", "SUBMIT(answer=question.replace('ask', 'say'))")
    session, lm = sessionify(rlm(tools=[double])), Coder(*pieces)
    if awaited:
        asyncio.run(aconverse(session, lm))
    else:
        converse(session, lm)
    for turn in session.turns:
        assert turn.outputs == {"answer": ANSWERS[turn.index]}
        assert turn.details["trajectory"][0]["output"] == "42"
    first, second = lm.of_turn(2)
    assert tells(first, 2)
    assert tells(second, 2)
    assert "42" not in words(first)
    assert "42" in words(second[1:])


def test_D3_so_does_the_part_of_an_rlm_that_ends_a_long_run() -> None:
    session, lm = sessionify(rlm(max_iters=1)), Coder("print(6 * 7)")
    converse(session, lm)
    assert [turn.details["final_reasoning"] for turn in session.turns] == [
        "Extract forced final output"
    ] * 3
    _, extract = lm.of_turn(2)
    assert requested_fields(extract) == ["answer"]
    assert tells(extract, 2)


def test_D3_what_the_code_asks_on_its_own_is_not_told() -> None:
    """Sub-agents and queries of an RLM look at pieces of a long input, not at the conversation."""
    asks = """import dspy
part = dspy.Predict("piece -> answer")(piece="one piece")
told = llm_query("just this")
SUBMIT(answer=question.replace('ask', 'say'))"""
    for scope, expected in (("program", False), ("all", True)):
        session, lm = sessionify(rlm(), scope=scope), Coder(asks)
        converse(session, lm)
        prompts = lm.of_turn(2)
        (piece,) = [p for p in prompts if "one piece" in p[-1]["content"] and len(p) > 1]
        (bare,) = [p for p in prompts if words(p) == "just this"]
        assert bare[-1]["role"] == "user"
        assert any(word in words(piece) for word in ANSWERS[:2]) == expected


def test_D3_an_interpreter_for_one_call_is_no_input() -> None:
    with dspy.context(lm=Coder("SUBMIT(answer='x')")):
        inputs = {"question": "x", "interpreter_factory": LocalInterpreter}
        _, state = step(SessionState(), dspy.RLM(NAMED), inputs)
    assert state.turns[0].inputs == {"question": "x"}


def test_D3_code_that_never_works_leaves_the_conversation_as_it_was() -> None:
    session = sessionify(program_of_thought())
    converse(session, Coder("SUBMIT({'answer': 1})"), turns=1)
    before = session.state
    with pytest.raises(RuntimeError, match="Max hops reached"):
        converse(session, Coder("print(1 / 0)"), turns=1)
    assert session.state is before
    (attempt,) = session.attempts
    assert attempt.status == "failed"
    assert "ZeroDivisionError" in attempt.error


# --- what cannot work -----------------------------------------------------------------------------


class With(dspy.Module):
    """A program that has a module somewhere in it."""

    def __init__(self, part: dspy.Module) -> None:
        super().__init__()
        self.parts = {"first": part}

    def forward(self, question: str) -> Any:
        return self.parts["first"](question=question)


WITH_HISTORY = "question, past: dspy.History -> answer"


@pytest.mark.parametrize("make", [rlm, flex])
def test_D3_a_history_cannot_be_a_variable_of_code(make: Any) -> None:
    for program in (make(WITH_HISTORY), With(make(WITH_HISTORY))):
        for call in (
            lambda program=program: sessionify(program, scope="all"),
            lambda program=program: step(SessionState(), program, {"question": "x"}),
        ):
            with pytest.raises(HistoryError, match="has an input 'past'") as refused:
                call()
            assert "of type dspy.History" in str(refused.value)
            assert "Leave the field out" in str(refused.value)
    session = sessionify(make(), scope="all")
    before = session.state
    with pytest.raises(HistoryError):
        session.update_module(make(WITH_HISTORY))
    assert session.state is before
    assert [list(signature.input_fields) for signature in faces(session.module)] == [["question"]]


def test_D3_a_flex_is_told_only_where_all_are() -> None:
    with pytest.raises(HistoryError, match="makes its predictors in its interpreter") as refused:
        sessionify(flex())
    assert 'scope="all"' in str(refused.value)
    with pytest.raises(HistoryError):
        step(SessionState(), flex(), {"question": "x"})
    session = sessionify(flex(), scope="all")
    with pytest.raises(HistoryError):
        session.options = SessionOptions()
    lm = Coder("")
    converse(session, lm)
    assert tells(lm.of_turn(2)[0], 2)


def test_D3_a_flex_beside_other_predictors_may_stay_untold() -> None:
    class Both(With):
        def __init__(self) -> None:
            super().__init__(flex("question -> hint"))
            self.qa = dspy.Predict("question, hint -> answer")

        def forward(self, question: str) -> Any:
            hint = self.parts["first"](question=question).hint
            return self.qa(question=question, hint=hint)

    session, lm = sessionify(Both()), Coder("")
    converse(session, lm)
    inner, outer = lm.of_turn(2)
    assert not tells(inner, 2)
    assert tells(outer, 2)


def test_D3_inputs_of_an_rlm_may_have_the_names_of_settings() -> None:
    session = sessionify(rlm("config, question -> answer"))
    with dspy.context(lm=(lm := Coder("SUBMIT(answer=config)"))):
        assert session(config="a text", question=lm.next_turn()).answer == "a text"
    assert session.turns[0].inputs == {"config": "a text", "question": QUESTIONS[0]}


# --- over HTTP ------------------------------------------------------------------------------------


def test_D3_an_rlm_over_http() -> None:
    def answer(body: Body) -> str:
        return (
            "[[ ## reasoning ## ]]\nhm\n\n[[ ## code ## ]]\n"
            "```python\nSUBMIT(answer=question.replace('ask', 'say'))\n```"
        )

    session = sessionify(rlm())
    with LoopbackServer(answer) as server, dspy.context(lm=server.lm()):
        for question in QUESTIONS[:3]:
            session(question=question)
    assert [turn.outputs["answer"] for turn in session.turns] == list(ANSWERS[:3])
    assert [tells(request.messages, turn) for turn, request in enumerate(server.received)] == [
        False,
        True,
        True,
    ]
