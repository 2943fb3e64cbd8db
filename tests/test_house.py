"""This project keeps the rules of the house, and each rule complains where it is broken."""

import re
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

import dspy_session
from tests import house
from tests.house import PACKAGE, PROJECT

Rule = Callable[[Path], list[str]]

PYTHON_FOLDERS = (PACKAGE, "tests", "typings")
CONFIG = str(PROJECT / "pyproject.toml")


def write_package(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return root


def import_package(root: Path, text: str) -> ModuleType:
    """Imports `text` as a package of its own, beside the real one."""
    path = write_package(root, {"__init__.py": text}) / PACKAGE / "__init__.py"
    spec = spec_from_file_location("badly_exported", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in (PROJECT / folder).rglob("*.py")]


# Rules over the source of the package


RULES: list[Rule] = [
    house.layer_complaints,
    house.core_complaints,
    house.dspy_complaints,
    house.execution_complaints,
    house.docstring_complaints,
]


def test_the_package_is_found() -> None:
    groups = {module.group for module in house.read_package(PROJECT)}
    assert groups >= {house.ROOT, "errors", "core", "codec", "program", "session"}
    assert len(house.read_package(PROJECT)) >= 12
    named = {
        found.group
        for module in house.read_package(PROJECT)
        for found in house.imports(module)
        if found.distribution == PACKAGE
    }
    assert named >= {"errors", "core", "codec", "program", "session"}


@pytest.mark.parametrize("rule", RULES)
def test_the_package_keeps(rule: Rule) -> None:
    assert rule(PROJECT) == []


BROKEN: list[tuple[Rule, str, str, str]] = [
    (house.layer_complaints, "core/a.py", "from dspy_session.codec import x", "codec.x"),
    (house.layer_complaints, "core/a.py", "from dspy_session import codec", "session.codec"),
    (house.layer_complaints, "core/a.py", "from ..stores import sql", "stores.sql"),
    (house.layer_complaints, "core/__init__.py", "from ..codec import x", "codec.x"),
    (house.layer_complaints, "core/a.py", "def f():\n    import dspy_session.cli", "session.cli"),
    (house.layer_complaints, "stores/a.py", "from dspy_session import Session", "Session"),
    (house.layer_complaints, "session.py", "import dspy_session.manager", "manager"),
    (
        house.layer_complaints,
        "errors.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import dspy_session.core",
        "errors.py:3: errors may not import dspy_session.core",
    ),
    (house.layer_complaints, "extras.py", "", "give 'extras' a place"),
    (house.core_complaints, "core/a.py", "import time", "may not import time"),
    (house.core_complaints, "core/a.py", "from random import random", "import random.random"),
    (house.core_complaints, "core/a.py", "def f():\n    import dspy", "may not import dspy"),
    (house.core_complaints, "core/deep/a.py", "import os.path", "may not import os.path"),
    (house.core_complaints, "core/a.py", "import msgspecial", "may not import msgspecial"),
    (house.core_complaints, "core/a.py", "x = open('f').read()", "may not call open()"),
    (
        house.core_complaints,
        "core/a.py",
        "import datetime\nx = datetime.datetime.now()",
        "a.py:2: the core may not call datetime.datetime.now()",
    ),
    (house.dspy_complaints, "core/a.py", "import dspy.adapters", "core may not import dspy"),
    (house.dspy_complaints, "browsing.py", "from dspy import History", "import dspy.History"),
    (house.dspy_complaints, "__init__.py", "import dspy", "the root may not import dspy"),
    (house.execution_complaints, "stores/a.py", "import pickle", "imports pickle"),
    (house.execution_complaints, "stores/a.py", "x = eval('1')", "calls eval()"),
    (house.execution_complaints, "cli.py", "def f(s):\n    exec(s)", "calls exec()"),
    (house.docstring_complaints, "core/a.py", "x = 1", "dspy_session.core.a has no docstring"),
    (house.docstring_complaints, "a.py", "'''Doc.'''\nclass A:\n    pass", "a.A has"),
    (house.docstring_complaints, "a.py", "'''Doc.'''\nasync def f(): pass", "a.f has"),
    (
        house.docstring_complaints,
        "a.py",
        "'''Doc.'''\nclass A:\n    '''  '''\n    def f(self): '''Doc.'''",
        "a.py:2: dspy_session.a.A has no docstring",
    ),
    (
        house.docstring_complaints,
        "a.py",
        "'''Doc.'''\nclass A:\n    '''Doc.'''\n    @property\n    def f(self): pass",
        "a.py:5: dspy_session.a.A.f has no docstring",
    ),
]


@pytest.mark.parametrize(("rule", "name", "text", "complaint"), BROKEN)
def test_a_rule_complains(rule: Rule, name: str, text: str, complaint: str, tmp_path: Path) -> None:
    (found,) = rule(write_package(tmp_path, {name: text}))
    assert complaint in found


def test_every_rule_is_seen_complaining() -> None:
    assert {rule for rule, *_ in BROKEN} == set(RULES)


def test_what_the_rules_allow(tmp_path: Path) -> None:
    root = write_package(
        tmp_path,
        {
            "__init__.py": '"""Root."""\nfrom dspy_session.cli import main as main\n',
            "core/turn.py": (
                '"""Turns."""\n'
                "from datetime import datetime\n"
                "import msgspec.json\n"
                "from dspy_session.core import state\n"
                "from . import values\n"
                "from dspy_session.errors import SessionError\n"
            ),
            "core/_private.py": "def undocumented(): pass",
            "manager.py": '"""M."""\nfrom dspy_session.session import Session\ndef _f(): pass\n',
            "cli.py": '"""C."""\nfrom dspy_session import Session, demo\nimport dspy\n',
            "session.py": (
                '"""S."""\n'
                "from typing import overload\n"
                "class Session:\n"
                '    """Doc."""\n'
                "    def __len__(self): return 0\n"
                "    @overload\n"
                "    def f(self): ...\n"
                "    def f(self, x=0):\n"
                '        """Doc."""\n'
                "        def inner(): pass\n"
            ),
        },
    )
    assert [complaint for rule in RULES for complaint in rule(root)] == []


# What an import loads


@pytest.mark.parametrize("name", [PACKAGE, f"{PACKAGE}.core"])
def test_importing_leaves_dspy_out(name: str) -> None:
    loaded = house.loaded_by(f"import {name}")
    assert name in loaded
    assert "dspy" not in loaded


def test_a_loaded_module_is_noticed() -> None:
    assert {"json", "json.decoder"} <= house.loaded_by("import json")
    with pytest.raises(RuntimeError, match="no_such_module"):
        house.loaded_by("import no_such_module")


# Public names


def test_exports() -> None:
    assert {"Session", "SessionState", "step"} <= set(dspy_session.__all__)
    assert house.export_complaints(dspy_session) == []


def test_a_name_that_is_not_exported() -> None:
    assert not hasattr(dspy_session, "no_such_name")


GOOD_EXPORTS = """
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from dspy_session.errors import A, B

__all__ = ["A", "B"]


def __getattr__(name):
    if name in __all__:
        return type(name, (), {"__doc__": "Doc."})
    raise AttributeError(name)


def __dir__():
    return __all__
"""


def test_good_exports(tmp_path: Path) -> None:
    assert house.export_complaints(import_package(tmp_path, GOOD_EXPORTS)) == []


@pytest.mark.parametrize(
    ("good", "bad", "complaint"),
    [
        ('["A", "B"]', '["B", "A"]', "badly_exported.__all__ is not sorted, or repeats a name"),
        ('["A", "B"]', '["A", "A", "B"]', "badly_exported.__all__ is not sorted, or repeats"),
        ("name in __all__", 'name == "A"', "badly_exported.B does not resolve"),
        ('"Doc."', '" "', "badly_exported.A has no docstring"),
        ("return __all__", 'return ["A"]', "B is in __all__, not in dir()"),
        ("return __all__", 'return ["A", "B", "C"]', "C is in dir(), not in __all__"),
        ("import A, B", "import A", "B is in __all__, not in the source"),
        ("import A, B", "import A, B, C", "C is in the source, as type checkers read it, not in"),
        ("def __dir__", "class C: pass\ndef __dir__", "C is in the source"),
    ],
)
def test_bad_exports(good: str, bad: str, complaint: str, tmp_path: Path) -> None:
    assert good in GOOD_EXPORTS
    module = import_package(tmp_path, GOOD_EXPORTS.replace(good, bad))
    found = house.export_complaints(module)
    assert complaint in "\n".join(found)


# Types, lint and layout, by the tools themselves


def test_mypy_strict() -> None:
    done = house.run_python(PROJECT, "-m", "mypy", PACKAGE, "tests")
    assert done.returncode == 0, done.stdout + done.stderr
    checked = re.search(r"no issues found in (\d+) source files", done.stdout)
    assert checked is not None, done.stdout
    assert int(checked[1]) == len(python_files(PACKAGE, "tests"))


def test_ruff_looks_at_every_file() -> None:
    done = house.run_python(PROJECT, "-m", "ruff", "check", "--show-files", *PYTHON_FOLDERS)
    assert {Path(line) for line in done.stdout.splitlines()} >= set(python_files(PACKAGE, "tests"))


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff(command: list[str]) -> None:
    done = house.run_python(PROJECT, "-m", "ruff", *command, *PYTHON_FOLDERS)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "text", "complaint"),
    [
        (["mypy", "--config-file"], "def f(x):\n    return x\n", "no-untyped-def"),
        (["ruff", "check", "--config"], '"""D."""\n\n\ndef f() -> None:\n    pass\n', "D103"),
        (["ruff", "check", "--config"], '"""D."""\n\nfrom .x import y as y\n', "TID252"),
        (["ruff", "format", "--check", "--config"], "x = 'single'\n", "reformat"),
    ],
)
def test_a_tool_complains(command: list[str], text: str, complaint: str, tmp_path: Path) -> None:
    root = write_package(tmp_path, {"bad.py": text})
    done = house.run_python(root, "-m", *command, CONFIG, PACKAGE)
    assert done.returncode == 1
    assert complaint in done.stdout


# What is in the repository


@pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="not a git checkout")
def test_the_tree() -> None:
    paths = house.tracked_files(PROJECT)
    assert "pyproject.toml" in paths
    assert house.tree_complaints(paths) == []


GOOD_TREE = [
    ".ci/run",
    ".gitignore",
    "LICENSE",
    "README.md",
    "docs/changelog.md",
    "dspy_session/py.typed",
    "pyproject.toml",
    "tests/test_house.py",
    "typings/dspy/__init__.pyi",
]


def test_a_good_tree() -> None:
    assert house.tree_complaints(GOOD_TREE) == []


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ("setup.py", "setup.py does not belong at the top level"),
        ("scripts/release.sh", "scripts does not belong at the top level"),
        (".cache/uv.lock", ".cache/uv.lock is generated"),
        ("docs/requirements.lock", "docs/requirements.lock is generated"),
        ("tests/__pycache__/a.txt", "tests/__pycache__/a.txt is generated"),
        ("dspy_session/core.pyc", "dspy_session/core.pyc is generated"),
        ("docs/_build/index.html", "docs/_build/index.html is generated"),
        ("docs/_generated/readme.md", "docs/_generated/readme.md is generated"),
        ("tests/sessions.db", "tests/sessions.db is generated"),
        (".venv-3.13/pyvenv.cfg", ".venv-3.13/pyvenv.cfg is generated"),
    ],
)
def test_a_bad_tree(extra: str, complaint: str) -> None:
    assert house.tree_complaints([*GOOD_TREE, extra]) == [complaint]


def test_a_tree_with_a_piece_missing() -> None:
    assert house.tree_complaints(GOOD_TREE[1:-1]) == ["typings is missing"]
