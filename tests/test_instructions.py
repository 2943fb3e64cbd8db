"""A session's instructions: in every prompt of its program, beside what the program says itself."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import (
    OptionError,
    Session,
    SessionOptions,
    SessionState,
    astep,
    sessionify,
    step,
)
from dspy_session.core.profile import Instructions, Place
from dspy_session.program import call_signatures, clear_render_cache
from dspy_session.testing import Prompt, ScriptedLM, requested_fields
from tests import matrix_parts
from tests.loopback import LoopbackServer
from tests.matrix_parts import EXTRACTOR, MODEL, MODULES, asked_for
from tests.modules import ANSWERS, QUESTIONS, Speaker, content, converse, tells
from tests.optimizers import quietly
from tests.test_parity import PROGRAMS, SIGNATURES, answer, every_adapter, every_program, talking

TOLD = "Answer in one line.\n\nBe kind."
BEFORE = Instructions(TOLD, Place.BEFORE)
AFTER = Instructions(TOLD)


def system(prompt: Any) -> str:
    assert prompt[0]["role"] == "system"
    return content(prompt[0])


def objective(prompt: Any) -> str:
    """What the ChatAdapter shows of a signature's instructions, without its indentation."""
    _, _, shown = system(prompt).partition("your objective is: ")
    return "\n".join(line.strip() for line in shown.strip().splitlines())


@pytest.fixture
def lm() -> Iterator[Speaker]:
    with dspy.context(lm=(lm := Speaker())):
        yield lm


# --- where they stand -----------------------------------------------------------------------------


class Signature(dspy.Signature):
    """Answer the question."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (TOLD, f"Answer the question.\n\n{TOLD}"),
        (AFTER, f"Answer the question.\n\n{TOLD}"),
        (BEFORE, f"{TOLD}\n\nAnswer the question."),
        (Instructions(TOLD, "before"), f"{TOLD}\n\nAnswer the question."),
        (None, "Answer the question."),
        ("", "Answer the question."),
        ("  \n ", "Answer the question."),
        (lambda state: f"Turn {len(state)}.", "Answer the question.\n\nTurn 2."),
    ],
)
def test_A2_instructions_stand_before_or_after_the_signatures_own(
    lm: Speaker, given: Any, shown: str
) -> None:
    session = sessionify(dspy.Predict(Signature), instructions=given)
    converse(session, lm)
    assert objective(lm.prompts[2]) == shown
    assert tells(lm.prompts[2], 2)
    (own,) = [predictor.signature for predictor in session.module.predictors()]
    assert own is Signature
    assert own.instructions == "Answer the question."


def test_A2_instructions_may_change_between_turns_and_be_for_one_call(lm: Speaker) -> None:
    program, state = dspy.Predict(Signature), SessionState()
    shown = []
    for told in ("One.", None, BEFORE, "One."):
        _, state = step(state, program, {"question": lm.next_turn()}, instructions=told)
        shown.append(objective(lm.prompts[-1]))
    own = "Answer the question."
    assert shown == [f"{own}\n\nOne.", own, f"{TOLD}\n\n{own}", f"{own}\n\nOne."]
    assert state.instructions is None
    _, state = asyncio.run(astep(state, program, {"question": "?"}, instructions="Late."))
    assert objective(lm.prompts[-1]) == f"{own}\n\nLate."


def test_A2_a_session_goes_on_with_other_instructions(lm: Speaker) -> None:
    session = sessionify(dspy.Predict(Signature), instructions="One.")
    converse(session, lm, turns=1)
    branch = session.fork()
    session.instructions = Instructions("Two.", Place.BEFORE)
    converse(session, lm, turns=1)
    converse(branch, lm, turns=1)
    assert [objective(prompt) for prompt in lm.prompts] == [
        "Answer the question.\n\nOne.",
        "Two.\n\nAnswer the question.",
        "Answer the question.\n\nOne.",
    ]
    session.undo()
    assert session.instructions == Instructions("Two.", Place.BEFORE)
    session.instructions = None
    converse(session, lm, turns=1)
    assert objective(lm.prompts[-1]) == "Answer the question."


def test_A2_a_function_of_the_state_is_asked_about_what_the_call_sees(lm: Speaker) -> None:
    asked: list[tuple[int, dict[str, Any]]] = []

    def greeting(state: SessionState) -> str:
        asked.append((len(state), state.data.to_dict()))
        return f"Turn {len(state)}."

    session = sessionify(dspy.Predict(Signature), instructions=greeting)
    for step_ in (0, 1, 2):
        session.data["step"] = step_
        converse(session, lm, turns=1)
    session.regenerate(1)  # begins where that turn began
    assert objective(lm.prompts[-1]) == "Answer the question.\n\nTurn 1."
    assert asked == [(0, {"step": 0}), (1, {"step": 1}), (2, {"step": 2}), (1, {"step": 1})]


@pytest.mark.parametrize("wrong", [3, ["a"], b"text", {"text": "a"}])
def test_A2_what_is_no_text_is_refused(lm: Speaker, wrong: Any) -> None:
    program, state = dspy.Predict(Signature), SessionState()
    session = sessionify(program)
    before = session.state

    def assign() -> None:
        session.instructions = wrong

    for attempt in (
        lambda: sessionify(program, instructions=wrong),
        lambda: step(state, program, {"question": "?"}, instructions=wrong),
        lambda: Instructions(wrong),
        assign,
    ):
        with pytest.raises(OptionError, match="must be text, not"):
            attempt()
    assert session.state is before
    with pytest.raises(OptionError, match="stand 'before' or 'after'"):
        Instructions("text", "beside")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="must return text or Instructions, not"):
        step(state, program, {"question": "?"}, instructions=lambda state: wrong)
    assert (len(state), lm.prompts) == (0, [])


# --- parity ---------------------------------------------------------------------------------------


@every_adapter
@every_program
@pytest.mark.parametrize("signature", SIGNATURES)
@pytest.mark.parametrize("told", [AFTER, BEFORE], ids=["after", "before"])
def test_A2_prompts_are_those_of_an_author_who_wrote_it_in(
    adapter: str, program: str, signature: type[dspy.Signature], told: Instructions
) -> None:
    """Byte for byte, with a conversation and without one."""
    by_hand = SIGNATURES[signature]
    written = by_hand.with_instructions(told.around(by_hand.instructions))
    inputs: dict[str, Any] = {"question": "Who?", "facts": {"a": 1}, "person": {"name": "Ada"}}
    inputs = {name: inputs[name] for name in signature.input_fields}
    session = sessionify(PROGRAMS[program](signature), instructions=told)
    with talking(adapter) as lm:
        for _ in range(3):
            past = session.session_history
            session(**inputs)
            PROGRAMS[program](written)(**inputs, history=past)
            assert len(lm.prompts[-1]) == 2 + 2 * len(past.messages)
            assert lm.prompts[-2] == lm.prompts[-1]
    assert answer(lm.prompts[-1])


@every_adapter
def test_A2_the_prefix_law_holds_while_instructions_stay(adapter: str) -> None:
    session = sessionify(dspy.Predict(Signature), instructions=TOLD)
    with talking(adapter) as lm:
        for _ in range(3):
            session(question="Who?")
    one, two, three = lm.prompts
    assert two[: len(one)] == one
    assert three[: len(two)] == two


def test_A2_text_with_indentation_is_shown_as_dspy_shows_it(lm: Speaker) -> None:
    told = """
        Indented, as in source code.
          - a point
        """
    session = sessionify(dspy.Predict(Signature), instructions=told)
    by_hand = dspy.Predict(
        Signature.append("history", dspy.InputField(), dspy.History).with_instructions(
            f"{Signature.instructions}\n\n{told}"
        )
    )
    question = lm.next_turn()
    by_hand(question=question, history=session.session_history)
    session(question=question)
    assert lm.prompts[0] == lm.prompts[1]


def test_A2_nothing_is_asked_anew_of_dspy_while_nothing_changes(
    lm: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_signatures._made.clear()
    made: list[str] = []
    with_instructions = dspy.Signature.with_instructions.__func__  # type: ignore[attr-defined]

    def counted(signature: Any, text: str) -> Any:
        made.append(text)
        return with_instructions(signature, text)

    monkeypatch.setattr(dspy.Signature, "with_instructions", classmethod(counted))
    session = sessionify(dspy.Predict(Signature), instructions=TOLD)
    converse(session, lm)
    assert len(made) == 1
    clear_render_cache()
    converse(session, lm, turns=1)
    assert len(made) == 1
    Signature.instructions = "Answer it well."  # as InferRules does
    try:
        with dspy.context(lm=lm):
            session(question="again")
    finally:
        Signature.instructions = "Answer the question."
    assert objective(lm.prompts[-1]) == f"Answer it well.\n\n{TOLD}"


def test_A2_an_lm_cache_tells_instructions_apart() -> None:
    with LoopbackServer(lambda body: "[[ ## answer ## ]]\nHi") as server:
        lm = server.lm().copy(cache=True)
        new = uuid.uuid4().hex  # the cache is on disk, and lasts
        for told in (f"{new} one.", f"{new} two.", f"{new} one."):
            with dspy.context(lm=lm):
                step(SessionState(), dspy.Predict(Signature), {"question": "?"}, instructions=told)
    assert len(server.received) == 2


# --- every program, every adapter -----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", MODULES)
def test_A2_they_reach_every_predictor_of_every_module(name: str) -> None:
    if "native" in name:
        adapter: dspy.Adapter = dspy.ChatAdapter(use_native_function_calling=True)
    else:
        adapter = dspy.ChatAdapter()
    model = matrix_parts.Model()
    session = sessionify(MODULES[name](), instructions=TOLD)
    with LoopbackServer(model) as server, dspy.context(lm=server.lm(MODEL), adapter=adapter):
        for model.turn in range(2):
            session(question=f"question-{model.turn}")
    assert len(server.received) >= 2
    for request in server.received:
        if "feedback_analysis" in str(request.messages) or "advice" in asked_for(request.messages):
            assert "Be kind." not in str(request.messages)  # Refine's own adviser
            continue
        assert objective(request.messages).endswith(TOLD), name
        assert system(request.messages).count("Be kind.") == 1


@pytest.mark.parametrize("name", matrix_parts.ADAPTERS)
@pytest.mark.parametrize("native", [False, True])
def test_A2_they_reach_the_prompt_through_every_adapter(name: str, native: bool) -> None:
    model = matrix_parts.Model()
    session = sessionify(dspy.ChainOfThought("question -> answer"), instructions=TOLD)
    with LoopbackServer(model) as server:
        adapter = matrix_parts.ADAPTERS[name].make(server.lm(EXTRACTOR), native)
        with dspy.context(lm=server.lm(MODEL), adapter=adapter):
            for model.turn in range(3):
                session(question=f"question-{model.turn}")
    mine = [request for request in server.received if request.model == MODEL]
    assert len(mine) == 3
    for request in mine:
        assert str(request.messages).count("Be kind.") == 1
        assert matrix_parts.ADAPTERS[name].mark in str(request.messages)


class Brief(dspy.ChatAdapter):
    """What a program sets itself."""


class SetsItsAdapter(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict(Signature)

    def forward(self, question: str) -> Any:
        with dspy.context(adapter=Brief()):
            return self.qa(question=question)


class Around(dspy.ChatAdapter):
    """An adapter that lets another one make the call."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def __call__(self, *call: Any) -> Any:
        return self.inner(*call)


class WrapsTheAdapter(SetsItsAdapter):
    def forward(self, question: str) -> Any:
        with dspy.context(adapter=Around(dspy.settings.adapter)):
            return self.qa(question=question)


class Refined(dspy.Module):
    """Refine puts an adapter of its own around the turn's, in code from outside DSPy."""

    def __init__(self) -> None:
        super().__init__()
        self.best = dspy.Refine(
            dspy.Predict(Signature), N=2, reward_fn=lambda a, p: 0.0, threshold=1.0
        )

    def forward(self, question: str) -> Any:
        return self.best(question=question)


@pytest.mark.parametrize("make", [SetsItsAdapter, WrapsTheAdapter, Refined])
@pytest.mark.parametrize(
    "told",
    [AFTER, BEFORE, Instructions("\n    Be brief.\n\n      Be kind.\n    ")],
    ids=["after", "before", "indented"],
)
def test_A2_they_are_said_once_whatever_stands_around_the_adapter(
    make: Callable[[], dspy.Module], told: Instructions
) -> None:
    lm = Speaker(lambda prompt: {"advice": {"self": "more"}, "discussion": "so"})
    session = sessionify(make(), instructions=told)
    with quietly():
        converse(session, lm, turns=2)
    mine = [prompt for prompt in lm.prompts if requested_fields(prompt) == ["answer"]]
    assert len(mine) >= 2
    for prompt in mine:
        assert system(prompt).count("Be kind.") == 1


def test_A2_a_judge_is_not_told_but_with_scope_all_it_is(lm: Speaker) -> None:
    judge = dspy.Predict("answer -> verdict")

    def reward(args: Any, prediction: Any) -> float:
        judge(answer=prediction.answer)
        return 1.0

    program = dspy.BestOfN(dspy.Predict(Signature), N=1, reward_fn=reward, threshold=1.0)
    for scope, expected in (("program", False), ("all", True)):
        session = sessionify(program, instructions=TOLD, scope=scope)
        converse(session, lm, turns=1)
        mine, judged = lm.prompts[-2:]
        assert "Be kind." in system(mine)
        assert ("Be kind." in system(judged)) == expected


def test_A2_a_session_within_a_program_has_its_own(lm: Speaker) -> None:
    class Outer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = sessionify(dspy.Predict("question -> note"), instructions="Inner.")
            self.plain = sessionify(dspy.Predict("question -> hint"))
            self.reply = dspy.Predict(Signature)

        def forward(self, question: str) -> Any:
            self.inner(question=question)
            self.plain(question=question)
            return self.reply(question=question)

    converse(sessionify(Outer(), instructions="Outer."), lm, turns=2)
    inner, plain, outer = lm.of_turn(1)
    assert objective(inner).endswith("Inner.")
    assert not objective(plain).endswith("Outer.")
    assert objective(outer).endswith("Outer.")
    assert "Outer." not in system(inner)
    assert "Inner." not in system(outer)


def test_A2_many_sessions_with_their_own_share_one_program(lm: Speaker) -> None:
    """Threads and states side by side, each with its own words; and nothing piles up."""
    program = dspy.Predict(Signature)

    class One(dspy.Module):
        def forward(self, number: int) -> Any:
            told = f"You serve user {number}."
            return step(SessionState(), program, {"question": f"user-{number}"}, instructions=told)

    pairs = [(One(), {"number": number}) for number in range(20)]
    dspy.Parallel(num_threads=8, disable_progress_bar=True)(pairs)
    for prompt in lm.prompts:
        (number,) = [n for n in range(20) if f"user-{n}\n" in prompt[-1]["content"]]
        assert objective(prompt).endswith(f"You serve user {number}.")
    assert len(call_signatures._made) <= call_signatures._MOST_SIGNATURES


# --- beside what is learned -----------------------------------------------------------------------


def test_A2_what_an_optimizer_learned_stays_and_is_not_mixed_with_them() -> None:
    proposals: list[str] = []

    def say(prompt: Prompt) -> dict[str, Any]:
        asked = requested_fields(prompt)
        text = "\n".join(map(content, prompt))
        if "proposed_instruction" in asked:
            proposals.append(text)
            return dict.fromkeys(asked, "Learned: say yes.")
        good = "Learned: say yes." in system(prompt)
        return dict.fromkeys(asked, "yes" if good else "no")

    session: Session = sessionify(dspy.Predict(Signature), instructions=TOLD)
    trainset = [dspy.Example(question=q, answer="yes").with_inputs("question") for q in QUESTIONS]

    def metric(example: Any, prediction: Any, trace: Any = None) -> float:
        return float(prediction.answer == example.answer)

    with dspy.context(lm=(lm := ScriptedLM(say))), quietly():
        learned = dspy.COPRO(metric=metric, breadth=2, depth=1).compile(
            session, trainset=trainset, eval_kwargs={"display_progress": False, "num_threads": 1}
        )
        learned(question="And now?")
    (own,) = [predictor.signature.instructions for predictor in learned.module.predictors()]
    assert own == "Learned: say yes."
    assert objective(lm.prompts[-1]) == f"Learned: say yes.\n\n{TOLD}"
    assert proposals
    assert not any("Be kind." in text for text in proposals)
    assert len(session) == 0


# --- they belong to the session -------------------------------------------------------------------


def test_A2_instructions_are_saved_with_a_session(lm: Speaker, tmp_path: Path) -> None:
    session = sessionify(dspy.Predict(Signature), instructions=BEFORE)
    converse(session, lm, turns=1)
    session.save(tmp_path / "told.json")
    loaded = Session.load_from(tmp_path / "told.json", dspy.Predict(Signature))
    assert loaded.instructions == BEFORE
    converse(loaded, lm, turns=1)
    assert objective(lm.prompts[-1]).startswith(TOLD)
    assert "Be kind." not in str([example.toDict() for example in loaded.to_examples()])
    assert loaded.turns[0].outputs == {"answer": ANSWERS[0]}
    assert SessionOptions().scope == "program"
