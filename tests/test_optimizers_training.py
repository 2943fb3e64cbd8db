"""Optimizers that train the model, as far as one gets without a provider; and what is broken.

Fine-tuning reads its rows off `predictor.signature`. There, `bake_history` writes the history in.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import Session, bake_history, sessionify
from dspy_session.testing import ScriptedLM
from tests.optimizers import TALKS, Guide, corrected, metric, model, quietly, talk, teleprompt

provider: Any = importlib.import_module("dspy.clients.provider")
finetuning: Any = importlib.import_module("dspy.clients.utils_finetune")
grpo: Any = importlib.import_module("dspy.teleprompt.grpo")


class FileProvider(provider.Provider):  # type: ignore[misc]  # DSPy has no types
    """Trains nothing: writes the rows to DSPy's training data file, as providers begin."""

    def __init__(self) -> None:
        super().__init__()
        self.finetunable = True
        self.files: list[str] = []

    def finetune(self, job: Any, model: str, train_data: Any, *further: Any, **more: Any) -> str:
        finetuning.validate_data_format(train_data, finetuning.TrainDataFormat.CHAT)
        self.files.append(finetuning.save_data(train_data))
        return "trained"


@pytest.fixture
def lm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedLM]:
    monkeypatch.setenv("DSPY_FINETUNEDIR", str(tmp_path))
    lm = model()
    with dspy.context(lm=lm), quietly():
        yield lm


def trained(lm: Any, make: Callable[[], dspy.Module]) -> tuple[Session, list[list[dict[str, str]]]]:
    """The session that BootstrapFinetune returns, and the messages of each row of its file."""
    trainset = corrected(TALKS[0])
    session = sessionify(make())
    with dspy.context(lm=model()):
        talk(session, ("Oslo", "Hamar"))
    state = session.state
    taught = dspy.LabeledFewShot(k=3).compile(session, trainset=corrected(TALKS[1]))
    for program in (session, taught):
        program.set_lm(lm)
    lm.provider = FileProvider()
    optimizer = teleprompt.BootstrapFinetune(metric=metric, exclude_demos=True, num_threads=2)
    compiled = optimizer.compile(session, trainset=trainset, teacher=taught)
    assert compiled.state is state
    (file,) = lm.provider.files
    return compiled, [json.loads(line)["messages"] for line in Path(file).read_text().splitlines()]


def turns_in(row: list[dict[str, str]]) -> list[str]:
    return [message["role"] for message in row]


def test_D11_training_rows_hold_the_turns_before(lm: ScriptedLM) -> None:
    compiled, rows = trained(lm, lambda: bake_history(Guide()))
    rows.sort(key=len)
    assert [turns_in(row) for row in rows] == [
        ["system", *["user", "assistant"] * length] for length in (1, 2, 3, 4)
    ]
    for row in rows:
        assert " km" in row[-1]["content"]
        assert all(" miles" in message["content"] for message in row[2:-1:2])
    assert "And from there to Trondheim?" in rows[-1][-2]["content"]
    trained_lm: Any = compiled.predictors()[0].lm
    assert trained_lm.model == "trained"


def test_D11_training_rows_of_a_program_without_history_leave_it_out(lm: ScriptedLM) -> None:
    _, rows = trained(lm, Guide)
    assert [turns_in(row) for row in rows] == [["system", "user", "assistant"]] * 4


def test_D11_a_session_that_was_trained_in_place_has_forks_of_its_own(lm: ScriptedLM) -> None:
    """DSPy leaves its `forward` on the object, where a copy would find the original's."""
    compiled, _ = trained(lm, lambda: bake_history(Guide()))
    before = compiled.state
    for branch in (compiled.fork(), compiled.deepcopy(), compiled.reset_copy()):
        branch(question="And from there to Otta?", lm=lm)
        assert len(branch) == 2
        assert compiled.state is before


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (lambda: teleprompt.BootstrapFinetune(metric=metric), "does not support fine-tuning"),
        (
            lambda: grpo.GRPO(metric=metric, exclude_demos=True, num_train_steps=1),
            "does not implement the reinforcement learning interface",
        ),
        (lambda: teleprompt.AvatarOptimizer(metric=metric), "TypedPredictor"),
    ],
    ids=["BootstrapFinetune", "GRPO", "AvatarOptimizer"],
)
def test_D11_the_errors_of_optimizers_come_through(
    lm: ScriptedLM, optimizer: Callable[[], Any], words: str
) -> None:
    """The same for a bare program, whose examples have no history, as for a session."""
    plain = [example.with_inputs("question") for example in corrected(TALKS[0])]
    errors = []
    for student, trainset in ((Guide(), plain), (sessionify(Guide()), corrected(TALKS[0]))):
        student.set_lm(lm)
        with pytest.raises(Exception, match=words) as caught:
            optimizer().compile(student, trainset=trainset)
        errors.append(type(caught.value))
    assert errors[0] is errors[1]


def test_D11_what_optimizers_read_of_a_session_is_its_program() -> None:
    """MIPROv2 and SIMBA paste source code into their prompts."""
    read = importlib.import_module("dspy.propose.utils").get_dspy_source_code
    code = read(sessionify(Guide()))
    assert inspect.getsource(Guide).strip() in code
    assert len(code) < len(read(Guide())) + 2_000
    assert len(inspect.getsource(Session)) < 2_000
