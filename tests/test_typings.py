"""The stubs in `typings/` are true to the DSPy that is installed, and hold what is used of it.

DSPy ships no types. What mypy believes of it is written in `typings/` (and of cloudpickle, which
DSPy saves programs with). mypy itself complains of a name in use that is not there; the tests here,
of everything else that could be wrong with it.
"""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import dspy
import pytest
from dspy.streaming import StatusMessage
from dspy.utils.usage_tracker import UsageTracker

from tests import house
from tests.house import PACKAGE, PROJECT

TYPINGS = PROJECT / "typings"

INSTANCES: dict[str, object] = {
    "dspy.BaseLM": dspy.BaseLM("none"),
    "dspy.ChainOfThought": dspy.ChainOfThought("question -> answer"),
    "dspy.History": dspy.History(messages=[]),
    "dspy.Image": dspy.Image("data:image/png;base64,aGk="),
    "dspy.Module": dspy.Module(),
    "dspy.Predict": dspy.Predict("question -> answer"),
    "dspy.Tool": dspy.Tool(len, args={}, arg_types={}),
    "dspy.ToolCallResults": dspy.ToolCallResults.model_validate([]),
    "dspy.ToolCalls": dspy.ToolCalls.model_validate([]),
    "dspy.streaming.StatusMessage": StatusMessage("Calling tool search..."),
    "dspy.utils.usage_tracker.UsageTracker": UsageTracker(),
}
"""One of every class whose attributes are set in `__init__`, where stubtest does not see them."""


def read_stubs(root: Path) -> dict[str, ast.Module]:
    """The parsed stubs below a folder by the name of their module."""
    stubs = {}
    for path in sorted(root.rglob("*.pyi")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        stubs[name.removesuffix(".__init__")] = ast.parse(path.read_text("utf-8"), str(path))
    return stubs


def read_code(*folders: str) -> list[ast.Module]:
    return [
        ast.parse(path.read_text("utf-8"), str(path))
        for folder in folders
        for path in sorted((PROJECT / folder).rglob("*.py"))
        if path != Path(__file__)
    ]


def defined(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """The public names that a module or a class body defines itself."""
    for node in body:
        name = ""
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        if name and not name.startswith("__"):
            yield name, node


def classes(stubs: dict[str, ast.Module]) -> Iterator[tuple[str, ast.ClassDef]]:
    for module, tree in stubs.items():
        for name, node in defined(tree.body):
            if isinstance(node, ast.ClassDef):
                yield f"{module}.{name}", node


def mentioned(tree: ast.Module) -> set[str]:
    """Every dotted name in a file, and every imported name in full."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def unused_names(stubs: dict[str, ast.Module], code: list[ast.Module]) -> set[str]:
    """What stubs define at their top level and neither the code nor another stub mentions."""
    used = set().union(*map(mentioned, [*code, *stubs.values()]))
    names = {
        f"{module}.{name}"
        for module, tree in stubs.items()
        for name, node in defined(tree.body)
        if not (name.startswith("_") and isinstance(node, ast.ClassDef))  # a base of others there
    }
    return names - used


def unused_members(stubs: dict[str, ast.Module], code: list[ast.Module]) -> set[str]:
    """The members of stubbed classes that no line of the code reads, calls or overrides."""
    known = set()
    for tree in code:
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                known.add(node.attr)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                known.add(node.name)
    return {
        f"{path}.{name}"
        for path, node in classes(stubs)
        if not node.decorator_list  # the fields of a dataclass are its constructor's arguments
        for name, _ in defined(node.body)
        if name not in known
    }


def stubtest(typings: Path) -> str:
    """What mypy's stubtest says of stubs, read for the same Python as in pyproject.toml.

    Not of MLflow's: stubtest would import each of its thousand modules. tests/test_mlflow_traces.py
    compares them with what is there.
    """
    config = typings.parent / "stubtest.ini"
    config.write_text(f"[mypy]\nmypy_path = {typings}\npython_version = 3.11\n", "utf-8")
    done = house.run_python(
        PROJECT,
        *(
            "-m",
            "mypy.stubtest",
            *(path.name for path in TYPINGS.iterdir() if path.name != "mlflow"),
        ),
        *("--ignore-missing-stub", "--mypy-config-file", str(config)),
    )
    return done.stdout + done.stderr


def copied_stubs(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TYPINGS, tmp_path / "typings"))


def test_the_stubs_are_true(tmp_path: Path) -> None:
    said = stubtest(copied_stubs(tmp_path))
    assert said.startswith("Success: no issues found"), said


def test_stubs_that_are_not_true(tmp_path: Path) -> None:
    typings = copied_stubs(tmp_path)
    path = typings / "dspy" / "__init__.pyi"
    text = path.read_text("utf-8") + "class NoSuchClass: ...\n"
    for good, bad in [
        ("class History(BaseModel):\n", "def History() -> None: ...\nclass NoSuchHistory:\n"),
        ("def dump_state(self, json_mode: bool", "def dump_state(self, no_such_mode: bool"),
        ("    def named_parameters(", "    def no_such_method("),
    ]:
        assert good in text
        text = text.replace(good, bad)
    path.write_text(text, "utf-8")
    said = stubtest(typings)
    for complaint in [
        "dspy.NoSuchClass is not present at runtime",
        "dspy.History is inconsistent",
        'dspy.Module.dump_state is inconsistent, stub parameter "no_such_mode" differs',
        "dspy.Module.no_such_method is not present at runtime",
    ]:
        assert complaint in said


def test_attributes_are_true() -> None:
    declared = {
        path: [name for name, member in defined(node.body) if isinstance(member, ast.AnnAssign)]
        for path, node in classes(read_stubs(TYPINGS))
        if not node.decorator_list
    }
    assert {path for path, names in declared.items() if names} == set(INSTANCES)
    for path, instance in INSTANCES.items():
        assert [name for name in declared[path] if not hasattr(instance, name)] == []


def test_a_call_of_signature_makes_a_class() -> None:
    """The one thing that the stubs say with a `type: ignore`, so that stubtest has no say in it."""
    made = dspy.Signature("question -> answer", "Answer.")
    assert isinstance(made, type)
    assert issubclass(made, dspy.Signature)
    assert (list(made.fields), made.instructions) == (["question", "answer"], "Answer.")


def test_the_stubs_hold_what_is_used() -> None:
    stubs, code = read_stubs(TYPINGS), read_code(PACKAGE, "tests")
    assert {"dspy", "dspy.lm15", "dspy.utils.callback"} <= set(stubs)
    assert unused_names(stubs, code) == set()
    assert unused_members(stubs, code) == set()


@pytest.mark.parametrize(
    ("code", "names", "members"),
    [
        ("import dspy\ndspy.A().f()", {"dspy.b.g"}, {"dspy.A.x"}),
        ("import dspy\nfrom dspy.b import g\nclass C(dspy.A):\n def f(self): self.x", set(), set()),
        ("from dspy import A, b", {"dspy.b.g"}, {"dspy.A.f", "dspy.A.x"}),
        ("A = g = 1", {"dspy.A", "dspy.b.g"}, {"dspy.A.f", "dspy.A.x"}),
    ],
)
def test_what_is_not_used_is_noticed(code: str, names: set[str], members: set[str]) -> None:
    stubs = {
        "dspy": ast.parse("class A:\n x: int\n def f(self) -> A: ...\n def __len__(self): ..."),
        "dspy.b": ast.parse("def g(): ...\nclass _Base: ...\n@dataclass\nclass D:\n x: int"),
        "dspy.c": ast.parse("from dspy.b import D"),
    }
    assert unused_names(stubs, [ast.parse(code)]) == names
    assert unused_members(stubs, [ast.parse(code)]) == members
