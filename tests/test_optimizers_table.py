"""Every optimizer makes a session better, and what it learned is at work in the turns after it.

What came of each is a table in docs/guide/optimizing.md, which is written from these very runs.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import Session, sessionify
from dspy_session.testing import ScriptedLM
from tests import optimizers
from tests.optimizers import OPTIMIZERS, Trial, model, program_for, quietly, run, shown, teleprompt

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
SAVED_IN_THE_PROGRAM = [name for name in OPTIMIZERS if name not in ("KNNFewShot", "Ensemble")]


@every_optimizer
def test_X2_a_compiled_session_is_better_on_turns_it_has_not_seen(name: str) -> None:
    trial = run(name)
    assert trial.after == 100 > trial.before


@every_optimizer
def test_X2_what_was_learned_is_at_work_in_a_later_turn(name: str) -> None:
    trial = run(name)
    assert trial.learned
    if trial.demos:
        assert all(" km" in answer["content"] for answer in demo_answers(trial))
    (answered,) = (turn.outputs for turn in trial.compiled.turns[1:])
    assert answered.get("answer", "183 km") == "183 km"
    assert bool(answered.get("far", True)) is True


@every_optimizer
def test_X2_a_compiled_session_goes_on_from_the_turns_of_the_given_one(name: str) -> None:
    trial = run(name)
    assert isinstance(trial.compiled, Session)
    assert trial.compiled.turns[:1] == trial.session.turns
    assert (len(trial.compiled), len(trial.session)) == (2, 1)
    assert optimizers.asked(trial.prompts[-1]) == [
        "How far is it from Oslo to Hamar?",
        "And from there to Otta?",
    ]


def demo_answers(trial: Trial) -> list[dict[str, str]]:
    return [answer for prompt in trial.prompts for _, answer in shown(prompt)]


@pytest.mark.parametrize("name", SAVED_IN_THE_PROGRAM)
def test_X2_what_was_learned_is_saved_with_the_program(name: str, tmp_path: Path) -> None:
    path, program = tmp_path / "program.json", program_for(name)
    compiled = run(name).compiled.deepcopy()
    compiled.set_lm(None)  # BetterTogether had to have one, and a scripted one is not to be saved
    with quietly():
        compiled.module.save(path)
    loads: list[Callable[[Any], Any]] = [
        lambda loaded: loaded.load(path),
        lambda loaded: loaded.load_state(compiled.dump_state()),
        lambda loaded: loaded.load_state(compiled.module.dump_state()),
    ]
    for load in loads:
        for loaded in (program(), sessionify(program())):
            load(loaded)
            lm = model()
            with dspy.context(lm=lm):
                loaded(question="How far is it from Oslo to Hamar?")
            (predictor,) = loaded.predictors()
            assert "far" in vars(predictor)["fields"] or re.search(
                "kilometres| km", str(lm.prompts)
            )
            if isinstance(loaded, Session):
                with dspy.context(lm=lm):
                    loaded(question="And from there to Otta?")
                assert loaded.turns[-1].outputs.get("answer", "183 km") == "183 km"


@every_optimizer
def test_D15_what_an_optimizer_returned_goes_into_another_conversation(name: str) -> None:
    """As a session, with whatever the optimizer changed in it, or as the program alone."""
    compiled = run(name).compiled
    for learned in (compiled, compiled.module):
        if learned is compiled.module and name == "KNNFewShot":
            continue  # its demos are looked up by the `forward` that it gave to the session
        lm = model()
        session = sessionify(program_for(name)())
        with dspy.context(lm=lm), quietly():
            session(question="How far is it from Bergen to Voss?")
            before = session.turns
            session.update_module(learned)
            assert session.turns == before
            lm.prompts.clear()
            call = session.using(lm=lm)  # BetterTogether had to set one on the predictors
            call(question="And from there to Flam?")
            call(question="And from there to Sogndal?")
        assert session.turns[2].outputs.get("answer", "74 km") == "74 km"
        assert Trial(0, 0, session, session, list(lm.prompts)).learned
        assert len(compiled) == 2


def test_D15_a_new_program_takes_the_place_of_what_an_optimizer_made_of_the_old_one() -> None:
    lm = model()
    with dspy.context(lm=lm), quietly():
        session = run("KNNFewShot").compiled.fork()
        session.update_module(program_for("KNNFewShot")())
        lm.prompts.clear()
        session(question="How far is it from Bergen to Voss?")
    assert session.turns[-1].outputs["answer"] == "67 miles"
    assert shown(lm.prompts[-1]) == []


def test_X2_every_optimizer_that_dspy_ships_is_in_the_table_or_accounted_for() -> None:
    modules = {name for _, name, _ in pkgutil.iter_modules(teleprompt.__path__)}
    accounted = {"avatar_optimizer", "grpo", "bootstrap_finetune"}  # test_optimizers_training.py
    no_optimizers = {"bootstrap_trace", "simba_utils", "teleprompt", "utils", "signature_opt"}
    in_the_table = (
        "bettertogether bootstrap copro_optimizer ensemble gepa infer_rules knn_fewshot "
        "mipro_optimizer_v2 random_search reanchor simba teleprompt_optuna vanilla"
    )
    assert modules == {*in_the_table.split()} | accounted | no_optimizers


def test_X2_the_table_in_the_guide_is_what_came_out() -> None:
    _, written, _ = optimizers.split_guide()
    assert written == optimizers.table(), (
        "The table in docs/guide/optimizing.md is not what the optimizers did just now. Look why; "
        "then write it anew: uv run python -m tests.optimizers"
    )


def test_X2_a_table_that_lies_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = tmp_path / "guide.md"
    guide.write_text(f"before\n{optimizers.BEGIN}\n| old |\n{optimizers.END}\nafter\n", "utf-8")
    monkeypatch.setattr(optimizers, "GUIDE", guide)
    with pytest.raises(AssertionError, match=r"uv run python -m tests\.optimizers"):
        test_X2_the_table_in_the_guide_is_what_came_out()
    optimizers.write_table()
    test_X2_the_table_in_the_guide_is_what_came_out()
    text = guide.read_text("utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")


def test_X2_a_session_that_learned_nothing_would_be_noticed() -> None:
    """The scripted model gives nothing away: no demo, no instruction, no kilometres."""
    lm: ScriptedLM = model()
    with dspy.context(lm=lm):
        session: Any = sessionify(program_for("COPRO")())
        session(question="How far is it from Oslo to Hamar?")
        session.add_turn({"question": "And from there to Otta?"}, {"answer": "183 km"})
        session(question="And from there to Dombas?")
    assert session.turns[-1].outputs["answer"] == "29 miles"
    assert Trial(0, 0, session, session, list(lm.prompts)).learned == []
