"""Every example in the README, the docs and the docstrings runs, offline.

The ```python blocks of one file run in order, in one namespace, in an empty directory. A block
that cannot run says so, with its reason, on its fence: ```python no-run: needs a key
"""

import ast
import doctest
import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import dspy
import pytest

from tests.house import PROJECT, SourceModule, read_package

README = PROJECT / "README.md"
DOCUMENTS = [README, *sorted((PROJECT / "docs").rglob("*.md"))]
MODULES = read_package(PROJECT)

FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<info>[^`]*)")
RUNNABLE = "python"
HIDDEN_PYTHON = {"py", "py3", "python3", "pycon", "ipython", "ipython3"}


def configure_documentation_lm() -> None:
    """What every document may take for granted: a configured LM, here one that is scripted."""
    from dspy_session.testing import ScriptedLM

    dspy.configure(lm=ScriptedLM())


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = dspy.settings.copy()
    configure_documentation_lm()
    yield
    dspy.configure(**before)  # a document may configure too


@dataclass(frozen=True)
class Block:
    """One fenced block: the line of its fence, the text on its fence, and its code."""

    line: int
    info: str
    code: str


def fenced_blocks(text: str) -> Iterator[Block]:
    """Every fenced block of a Markdown text, with its indentation taken off."""
    lines = iter(enumerate(text.splitlines(), start=1))
    for start, line in lines:
        opening = FENCE.fullmatch(line)
        if opening is None:
            continue
        indent, ticks = len(opening["indent"]), opening["ticks"]
        code = []
        for _, inner in lines:
            if inner.strip().startswith(ticks) and not inner.strip().strip(ticks[0]):
                break
            code.append(inner[min(indent, len(inner) - len(inner.lstrip())) :])
        else:
            raise ValueError(f"line {start}: the block is never closed")
        yield Block(start, opening["info"].strip(), "\n".join(code) + "\n")


def python_blocks(text: str) -> list[Block]:
    """The blocks to run; raises ValueError for a fence that hides Python from this test."""
    blocks = []
    for block in fenced_blocks(text):
        language, _, rest = block.info.partition(" ")
        if language.lower() in HIDDEN_PYTHON or language.lower() == RUNNABLE != language:
            raise ValueError(f"line {block.line}: write ```python, so that the block runs")
        if language != RUNNABLE or re.fullmatch(r"no-run: \S.*", rest):
            continue
        if rest:
            raise ValueError(
                f"line {block.line}: expected ```python or ```python no-run: <reason>, "
                f"got ```{block.info}"
            )
        blocks.append(block)
    return blocks


def run_blocks(path: Path, blocks: list[Block], module: ModuleType) -> None:
    """Runs blocks one after another in one module; tracebacks point into the document."""
    for block in blocks:
        code = compile("\n" * block.line + block.code, str(path), "exec")
        exec(code, vars(module))


def docstring_examples(module: SourceModule) -> list[doctest.DocTest]:
    """The `>>>` examples of every docstring in a module, whatever it belongs to."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, documented) and ast.get_docstring(node):
            text = ast.get_docstring(node, clean=False) or ""
            name = f"{module.name}.{node.name}" if hasattr(node, "name") else module.name
            line = node.body[0].lineno - 1
            test = doctest.DocTestParser().get_doctest(text, {}, name, str(module.path), line)
            if test.examples:
                found.append(test)
    return found


def run_docstrings(module: SourceModule) -> None:
    """Runs every docstring's examples in a copy of the module's own names."""
    for test in docstring_examples(module):
        for example in test.examples:
            if example.options.get(doctest.SKIP):
                raise ValueError(f"{module.at(example.lineno + 1)}: a doctest may not be skipped")
        test.globs = dict(vars(importlib.import_module(module.name)))
        report: list[str] = []
        doctest.DocTestRunner().run(test, out=report.append)
        assert not report, "".join(report)


def relative(path: Path) -> str:
    return str(path.relative_to(PROJECT))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_document(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = ModuleType("documentation")  # importable, since classes look up their own module
    monkeypatch.setitem(sys.modules, namespace.__name__, namespace)
    run_blocks(path, python_blocks(path.read_text("utf-8")), namespace)


def test_the_readme_has_examples() -> None:
    assert python_blocks(README.read_text("utf-8"))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_docstrings(module: SourceModule) -> None:
    run_docstrings(module)


def test_docstrings_have_examples() -> None:
    assert any(docstring_examples(module) for module in MODULES)


# The tests above can fail


def test_blocks_are_found() -> None:
    text = (
        "# Title\n\n```python\na = 1\n\nb = 2\n```\n\n```sh\nls\n```\n\n"
        "- item\n\n  ```python\n  if a:\n      b = 3\n  ```\n"
        "````markdown\n```python\nnot_a_block\n```\n````\n"
        "```python no-run: needs a key\n1 / 0\n```\n"
    )
    assert python_blocks(text) == [
        Block(3, "python", "a = 1\n\nb = 2\n"),
        Block(15, "python", "if a:\n    b = 3\n"),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```py\n1\n```\n", "line 1: write ```python"),
        ("```Python\n1\n```\n", "line 1: write ```python"),
        ("\n~~~pycon\n>>> 1\n~~~\n", "line 2: write ```python"),
        ("```python no-run\n1\n```\n", "got ```python no-run"),
        ("```python no-run: \n1\n```\n", "got ```python no-run:"),
        ("```python title=x\n1\n```\n", "expected ```python or"),
        ("```python\n1\n", "line 1: the block is never closed"),
    ],
)
def test_a_fence_may_not_hide_python(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        python_blocks(text)


def test_blocks_share_one_namespace() -> None:
    namespace = ModuleType("documentation")
    blocks = python_blocks("```python\na = 1\n```\n```python\nb = a + 1\n```\n")
    run_blocks(Path("guide.md"), blocks, namespace)
    assert vars(namespace)["b"] == 2


def test_a_failing_block_points_into_the_document() -> None:
    blocks = python_blocks("Text\n\n```python\na = 1\nassert a == 2\n```\n")
    with pytest.raises(AssertionError) as failure:
        run_blocks(Path("guide.md"), blocks, ModuleType("documentation"))
    last = failure.traceback[-1]
    assert (str(last.path).endswith("guide.md"), last.lineno + 1) == (True, 5)


def source(docstring: str) -> SourceModule:
    """A method of a class in a module that really exists, with this docstring."""
    text = f"class A:\n    @property\n    def f(self):\n        '''{docstring}'''\n"
    return SourceModule("json", Path("json.py"), ast.parse(text))


def test_a_docstring_runs_among_the_names_of_its_module() -> None:
    module = source("Doc.\n\n        >>> dumps([1])\n        '[1]'\n        ")
    assert len(docstring_examples(module)) == 1
    run_docstrings(module)


def test_a_wrong_docstring_is_noticed() -> None:
    with pytest.raises(AssertionError, match=r'File "json.py", line 6, in json\.f'):
        run_docstrings(source("Doc.\n\n        >>> dumps([1])\n        '[2]'\n        "))


def test_a_doctest_may_not_be_skipped() -> None:
    with pytest.raises(ValueError, match="may not be skipped"):
        run_docstrings(source(">>> 1 / 0  # doctest: +SKIP"))
