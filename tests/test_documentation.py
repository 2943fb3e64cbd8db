"""Every example in the README, the docs and the docstrings runs, offline.

The ```python blocks of one file run in order, in one namespace, in an empty directory. A block
that cannot run says so, with its reason, on its fence: ```python no-run: needs a key

A ```text block right below a ```python block is what that prints; `...` stands for what varies.
In the tutorial there is one below each block that prints.
"""

import ast
import contextlib
import doctest
import importlib
import io
import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import dspy
import pytest

from tests.house import PROJECT, SourceModule, read_package

README = PROJECT / "README.md"
DOCS = PROJECT / "docs"
DOCUMENTS = [README, *sorted(DOCS.glob("[!_]*.md")), *sorted(DOCS.glob("[!_]*/*.md"))]
TUTORIAL = sorted((DOCS / "tutorial").glob("*.md"))
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
    """One fenced block: the line of its fence, the text on its fence, its code, what it prints."""

    line: int
    info: str
    code: str
    prints: str | None = None


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
    lines = text.splitlines()
    blocks = []
    for block, below in itertools.pairwise([*fenced_blocks(text), None]):
        assert block is not None
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
        end = block.line + 1 + block.code.count("\n")
        if below and below.info == "text" and not "".join(lines[end : below.line - 1]).strip():
            block = replace(block, prints=below.code)
        blocks.append(block)
    return blocks


def run_blocks(path: Path, blocks: list[Block], module: ModuleType) -> None:
    """Runs blocks one after another in one module; tracebacks point into the document.

    Raises:
        AssertionError: A block prints something else than the document says, or fails otherwise.
    """
    for block in blocks:
        code = compile("\n" * block.line + block.code, str(path), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as screen:
            exec(code, vars(module))
        printed = screen.getvalue()
        if block.prints is not None and not prints_as_told(block.prints, printed):
            raise AssertionError(
                f"{path}, line {block.line}: this block prints\n{printed}\n"
                f"and the document says\n{block.prints}"
            )
        if block.prints is None and path in TUTORIAL:
            assert not printed, f"line {block.line}: show what it prints in ```text, right below"


def prints_as_told(told: str, printed: str) -> bool:
    """Whether a text is what a document says, where `...` stands for anything."""
    return doctest.OutputChecker().check_output(told, printed, doctest.ELLIPSIS)


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
    assert TUTORIAL
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


def test_a_text_right_below_a_block_is_what_it_prints() -> None:
    text = (
        "```python\na = 1\n```\n\n```text\none\n```\n\n"
        "```python\na = 2\n```\nWords.\n```text\nnot of it\n```\n"
        "```python\na = 3\n```\n\n```sh\nls\n```\n```text\nnor this\n```\n"
    )
    assert [block.prints for block in python_blocks(text)] == ["one\n", None, None]


@pytest.mark.parametrize("shown", ["2 turns", "... turns"])
def test_what_a_block_prints_is_compared(shown: str) -> None:
    blocks = python_blocks(f"```python\nprint('2 turns')\n```\n```text\n{shown}\n```\n")
    run_blocks(Path("guide.md"), blocks, ModuleType("documentation"))


@pytest.mark.parametrize("shown", ["3 turns", "2 turns\nand more", "", "2 turn"])
def test_a_block_that_prints_something_else_is_noticed(shown: str) -> None:
    blocks = python_blocks(f"```python\nprint('2 turns')\n```\n```text\n{shown}\n```\n")
    with pytest.raises(AssertionError, match=r"guide\.md, line 1: this block prints\n2 turns"):
        run_blocks(Path("guide.md"), blocks, ModuleType("documentation"))


def test_the_tutorial_shows_all_that_it_prints() -> None:
    blocks = python_blocks("```python\nprint(1)\n```\n")
    run_blocks(Path("guide.md"), blocks, ModuleType("documentation"))
    with pytest.raises(AssertionError, match="line 1: show what it prints in ```text"):
        run_blocks(TUTORIAL[0], blocks, ModuleType("documentation"))


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
