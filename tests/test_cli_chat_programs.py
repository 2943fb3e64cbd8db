"""From the words of a command line to programs, models, functions and inputs."""

import io
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import OptionError, SessionOptions
from dspy_session.cli.chat_input import Piped, Questions
from dspy_session.cli.ending import Usage
from dspy_session.cli.program_errors import NO_MODEL, explained
from dspy_session.cli.program_models import choose_model, scripted_reply
from dspy_session.cli.programs import load_function, load_program
from dspy_session.program.inputs import program_inputs
from dspy_session.testing import ScriptedLM

PROGRAMS = '''
"""Programs."""

import dspy

from dspy_session import sessionify


class Trip(dspy.Module):
    def forward(self, request, history: dspy.History = None, days: int = 3, **more):
        return request


class Named(dspy.Module):
    def __init__(self, name):
        super().__init__()


class Signed(dspy.Signature):
    """Answer."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


def make():
    return Trip()


def make_named(name, title="x", *rest):
    return Named(name)


def make_nothing():
    return None


def fail():
    raise LookupError("no such\\nbook")


trip = Trip()
session = sessionify(dspy.Predict("question -> answer"))
nothing = None
'''


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, which is not on the path."""
    name = f"programs_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(PROGRAMS)
    (tmp_path / f"{name}_broken.py").write_text("import dspy\nx = 1 / 0\n")
    (tmp_path / f"{name}_missing.py").write_text("import no_such_package\n")
    (tmp_path / f"{name}_exits.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    return name


# Programs


def test_a_signature() -> None:
    plain = load_program("question, days: int -> answer")
    assert isinstance(plain, dspy.Predict)
    assert list(plain.signature.input_fields) == ["question", "days"]
    assert isinstance(load_program("question -> answer", reasoning=True), dspy.ChainOfThought)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("trip", "Trip"), ("Trip", "Trip"), ("make", "Trip"), ("session", "Predict")],
)
def test_a_program_to_import(name: str, kind: str, programs: str) -> None:
    assert type(load_program(f"{programs}:{name}")).__name__ == kind


def test_a_signature_to_import(programs: str) -> None:
    assert type(load_program(f"{programs}:Signed")).__name__ == "Predict"
    assert type(load_program(f"{programs}:Signed", reasoning=True)).__name__ == "ChainOfThought"


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("question", Usage, "not 'question'"),
        ("", Usage, "not ''"),
        ("trips.py", Usage, "trips:name"),
        ("question ->", Usage, "Expected names of inputs and of outputs"),
        ("question, -> a b", Usage, "Expected names of inputs and of outputs"),
        ("question -> question", Usage, "distinct names"),
        ("a -> b -> c", Usage, "exactly one '->'"),
        ("question: nonsense -> answer", Usage, "nonsense"),
        ("no_such_module:program", Usage, "There is no module 'no_such_module'"),
        ("no such:program", Usage, "is named module:name"),
        ("os.path:join(1)", Usage, "is named module:name"),
        (":x", Usage, "is named module:name"),
        ("math:pi", Usage, "Expected math:pi to be a dspy.Module"),
        ("{}:trips", Usage, "Did you mean 'trip'?"),
        ("{}:nothing", Usage, "it is a NoneType"),
        ("{}:make_nothing", Usage, "it is a NoneType"),
        ("{}:Named", Usage, "takes arguments (name)"),
        ("{}:make_named", Usage, "takes arguments (name)"),
        ("{}:fail", OptionError, "LookupError: no such book"),
        ("{}_broken:x", OptionError, "ZeroDivisionError: division by zero"),
        ("{}_missing:x", OptionError, "No module named 'no_such_package'"),
        ("{}_exits:x", OptionError, "SystemExit: 3"),
    ],
)
def test_what_is_no_program(text: str, error: type[Exception], words: str, programs: str) -> None:
    with pytest.raises(error) as caught:
        load_program(text.format(programs))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_evaluated(programs: str, tmp_path: Path) -> None:
    for text in (
        '__import__("os").mkdir("made") -> b',
        'os:mkdir("made")',
        "a -> b: os.mkdir('c')",
    ):
        with pytest.raises(Usage):
            load_program(text)
    load_program('a=__import__("os").mkdir("made") -> b')  # DSPy reads no more than the name
    assert not (tmp_path / "made").exists()


def test_functions() -> None:
    assert load_function("os.path:join", "metric")("a", "b")
    with pytest.raises(Usage, match="Expected math:pi to be a function; it is a float"):
        load_function("math:pi", "metric")


# Models


def test_a_model_that_the_program_has_or_configured() -> None:
    program = dspy.Predict("question -> answer")
    lm = ScriptedLM()
    with dspy.context(lm=None):
        with pytest.raises(Usage, match="No model is configured"):
            choose_model([program])
        with dspy.context(lm=lm):
            assert choose_model([program]).lm is None
        program.set_lm(lm)
        assert (choose_model([program]).lm, choose_model([program]).name) == (None, "scripted")
        with pytest.raises(Usage, match="No model is configured"):
            choose_model([program, dspy.Predict("question -> answer")])


def test_a_program_with_code_of_its_own_may_choose_its_model_when_it_runs() -> None:
    with dspy.context(lm=None):
        assert choose_model([Open()]).lm is None
        with pytest.raises(ValueError, match="No LM") as caught:
            dspy.Predict("question -> answer")(question="Hi")
    assert explained(caught.value) == NO_MODEL


def test_the_scripted_model_answers_whatever_it_is_asked() -> None:
    lm = ScriptedLM(scripted_reply)
    adapters = [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()]
    for adapter in adapters:
        with dspy.context(lm=lm, adapter=adapter):
            prediction = dspy.Predict("city, days -> plan, title")(city="Oslo", days="3")
        assert "Oslo" in prediction.plan
        assert prediction.plan == prediction.title


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError(), "ValueError"),
        (ValueError("a\nb"), "ValueError: a b"),
        (ValueError("a\n\n  To fix:\n  - b"), "ValueError: a"),
        (ValueError("x" * 1000), f"ValueError: {'x' * 299}…"),
        (OptionError("Expected so."), "Expected so."),
    ],
)
def test_errors_are_explained_in_one_line(error: Exception, said: str) -> None:
    assert explained(error) == said


# Inputs


class Open(dspy.Module):
    def forward(self, **inputs: Any) -> Any:
        return inputs


def test_the_inputs_of_programs(programs: str) -> None:
    def names(program: dspy.Module) -> list[tuple[str, bool]]:
        return [(each.name, each.required) for each in program_inputs(program, SessionOptions())]

    assert names(load_program(f"{programs}:trip")) == [("request", True), ("days", False)]
    assert names(dspy.ChainOfThought("question, past: dspy.History -> answer")) == [
        ("question", True)
    ]
    assert names(dspy.ReAct("question, city -> answer", tools=[])) == [
        ("question", True),
        ("city", True),
    ]
    assert names(Open()) == []


def test_what_a_line_is() -> None:
    signature = "city, days: int, question -> answer"
    inputs = program_inputs(dspy.Predict(signature), SessionOptions())
    questions = Questions.of(inputs, {"city": "Oslo"}, "question", live=True)
    assert questions.message.name == "question"
    assert [each.name for each in questions.asked] == ["days"]

    given = {"city": "Oslo", "question": "?"}
    assert questions.inputs("?", Piped(io.StringIO("3\r\n"))) == {**given, "days": 3}
    assert questions.inputs("How far?", Piped(io.StringIO(""))) is None
    assert questions.inputs("?", Piped(io.StringIO("soon"))) == {**given, "days": "soon"}
