"""The rules of the house, each a function from a source tree to a list of complaints.

An empty list means that the rule is kept. Nothing here imports the package that it reads, except
`export_complaints`, which is given the imported module. `tests/test_house.py` applies every rule
to this project, and to a small tree that breaks it.
"""

import ast
import inspect
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType

PROJECT = Path(__file__).parent.parent
PACKAGE = "dspy_session"
ROOT = ""
"""The group of `dspy_session/__init__.py` itself."""

LAYERS = (
    "errors",  # level 0
    "core",  # 1
    "wire",  # 2
    "parts",
    "rows",
    "published",
    "codec",
    "files",
    "stores",  # 3
    "journal",
    "pictures",
    "program",  # 4
    "locks",  # 5
    "signing",
    "payload",
    "protocol",
    "attached",
    "conversation",
    "branch",
    "chatting",
    "summarizing",
    "calls",
    "asking",
    "using",
    "saving",
    "looking",
    "session",
    "training",
    "templates",
    "tabulating",
    "setups",
    "replay_report",
    "replay_comparison",
    "replaying",
    "prompt_values",
    "prompt_changes",
    "drifting",
    "awaiting",
    "session_info",
    "browsing",
    "maintaining",
    "manager_config",
    "recipes",
    "manager",
    ROOT,  # what sits on top of a session may use the public names; nothing below may
    "testing",  # 6
    "integrations",
    "demo",
    "cli",
)
"""Lowest first, with the design's level numbers; within a level, the later uses the earlier."""

KNOWS_DSPY = set(
    "program attached conversation branch chatting summarizing calls asking using saving looking "
    "session training protocol templates setups replaying drifting maintaining recipes manager "
    "testing integrations demo cli".split()
)

CORE_STDLIB = set(
    "__future__ abc base64 bisect collections copy copyreg dataclasses datetime decimal difflib "
    "enum fractions functools hashlib inspect itertools json keyword math numbers operator re "
    "reprlib string textwrap types typing unicodedata warnings weakref".split()
)
CORE_BEYOND_STDLIB = ("msgspec", "pyrsistent", f"{PACKAGE}.errors", f"{PACKAGE}.core")
CLOCK_METHODS = {"now", "utcnow", "today"}
IMPURE_BUILTINS = {"open", "input", "print", "__import__"}

RUNS_DATA_AS_CODE = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}

TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", PACKAGE, "tests", "typings", "docs"}
GENERATED = (
    "*.py[cod] *.so *.db *.db-shm *.db-wal *.sqlite *.sqlite3 *.log *.orig *.rej "
    "*.lock *.lock.json *-lock.json *-lock.yaml pylock*.toml .coverage .coverage.* .DS_Store"
).split()
GENERATED_FOLDERS = (
    "__pycache__ .venv* venv *.egg-info build dist htmlcov _build _generated site "
    ".hypothesis .mypy_cache .pytest_cache .ruff_cache"
).split()


@dataclass(frozen=True)
class SourceModule:
    """One parsed file of the package."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def group(self) -> str:
        """The part of the package that this module belongs to, by the first name below it."""
        return ".".join(self.name.split(".")[1:2])

    def at(self, line: int) -> str:
        """Where a complaint points to."""
        return f"{self.path}:{line}"


@dataclass(frozen=True)
class Import:
    """One imported name, in full: `from a.b import c` is `a.b.c`."""

    line: int
    target: str

    @property
    def distribution(self) -> str:
        return self.target.split(".")[0]

    @property
    def group(self) -> str:
        """The group of an import from the package; a name that is no group is the root's."""
        group = ".".join(self.target.split(".")[1:2])
        return group if group in LAYERS else ROOT


def read_package(root: Path) -> list[SourceModule]:
    """Every module of the package below `root`, in order of path."""
    modules = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules.append(SourceModule(name, path, ast.parse(path.read_text("utf-8"), str(path))))
    return modules


def imports(module: SourceModule) -> Iterator[Import]:
    """Everything a module imports: inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = _imported_from(module, node)
            for alias in node.names:
                yield Import(node.lineno, f"{base}.{alias.name}")


def _imported_from(module: SourceModule, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    climbed = node.level - (module.path.name == "__init__.py")
    parts = module.name.split(".")
    base = parts[: len(parts) - climbed]
    return ".".join([*base, node.module] if node.module else base)


def layer_complaints(root: Path) -> list[str]:
    """An import points to a lower layer, or stays inside its own."""
    complaints = []
    for module in read_package(root):
        if module.group not in LAYERS:
            complaints.append(
                f"{module.path}: give {module.group!r} a place in LAYERS, in {__name__}"
            )
            continue
        if module.group == ROOT:
            continue  # the public face may name everything, lazily
        allowed = LAYERS[: LAYERS.index(module.group) + 1]
        complaints += [
            f"{module.at(found.line)}: {module.group} may not import {found.target}, a layer above"
            for found in imports(module)
            if found.distribution == PACKAGE and found.group not in allowed
        ]
    return complaints


def core_complaints(root: Path) -> list[str]:
    """The core imports only what is pure, reads no clock and opens no file."""
    complaints = []
    for module in read_package(root):
        if module.group != "core":
            continue
        complaints += [
            f"{module.at(found.line)}: the core may not import {found.target}"
            for found in imports(module)
            if not _allowed_in_core(found)
        ]
        complaints += [
            f"{module.at(call.lineno)}: the core may not call {name}()"
            for call, name in _calls(module)
            if name in IMPURE_BUILTINS or name.rpartition(".")[2] in CLOCK_METHODS
        ]
    return complaints


def _allowed_in_core(found: Import) -> bool:
    return found.distribution in CORE_STDLIB or any(
        found.target == name or found.target.startswith(f"{name}.") for name in CORE_BEYOND_STDLIB
    )


def _calls(module: SourceModule) -> Iterator[tuple[ast.Call, str]]:
    """Every call of a plain or dotted name, with that name as written."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield node, ast.unparse(node.func)


def dspy_complaints(root: Path) -> list[str]:
    """Only the groups in KNOWS_DSPY import dspy."""
    return [
        f"{module.at(found.line)}: {module.group or 'the root'} may not import {found.target}"
        for module in read_package(root)
        if module.group not in KNOWS_DSPY
        for found in imports(module)
        if found.distribution == "dspy"
    ]


def execution_complaints(root: Path) -> list[str]:
    """Nothing in the package turns data into running code."""
    complaints = []
    for module in read_package(root):
        complaints += [
            f"{module.at(found.line)}: imports {found.target}"
            for found in imports(module)
            if found.distribution in RUNS_DATA_AS_CODE
        ]
        complaints += [
            f"{module.at(call.lineno)}: calls {name}()"
            for call, name in _calls(module)
            if name.removeprefix("builtins.") in {"eval", "exec"}
        ]
    return complaints


Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | ast.ClassDef | Function


def docstring_complaints(root: Path) -> list[str]:
    """Every public module, class, function and method says what it is for."""
    return [
        f"{module.at(getattr(node, 'lineno', 1))}: {name} has no docstring"
        for module in read_package(root)
        for name, node in _public(module.name, module.tree)
        if not (ast.get_docstring(node) or "").strip()
    ]


def _public(name: str, node: Documented) -> Iterator[tuple[str, Documented]]:
    if any(part.startswith("_") for part in name.split(".")):
        return
    yield name, node
    if isinstance(node, Function):
        return  # what is defined inside a function is nobody else's
    for child in node.body:
        if isinstance(child, ast.ClassDef | Function) and not _repeats_a_documented_name(child):
            yield from _public(f"{name}.{child.name}", child)


def _repeats_a_documented_name(node: ast.ClassDef | Function) -> bool:
    """An overload, or the setter or deleter of a property that is documented already."""
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return bool(decorators & {"overload", "setter", "deleter"})


def export_complaints(module: ModuleType) -> list[str]:
    """`__all__` is sorted, and is what resolves, what dir() shows and what type checkers see."""
    exported: list[str] = list(module.__all__)
    complaints = []
    if exported != sorted(set(exported)):
        complaints.append(f"{module.__name__}.__all__ is not sorted, or repeats a name")
    for name in exported:
        if not hasattr(module, name):
            complaints.append(f"{module.__name__}.{name} does not resolve")
        elif not (getattr(module, name).__doc__ or "").strip():
            complaints.append(f"{module.__name__}.{name} has no docstring")
    expected = {name for name in exported if not name.startswith("_")}
    for where, names in (
        ("dir()", _names_at_runtime(module)),
        ("the source, as type checkers read it", _names_in_source(module)),
    ):
        complaints += [f"{name} is in {where}, not in __all__" for name in names - expected]
        complaints += [f"{name} is in __all__, not in {where}" for name in expected - names]
    return complaints


def _names_at_runtime(module: ModuleType) -> set[str]:
    public = {name for name in dir(module) if not name.startswith("_")}
    return {name for name in public if not inspect.ismodule(getattr(module, name, None))}


def _names_in_source(module: ModuleType) -> set[str]:
    """What the file imports from its own package, TYPE_CHECKING included, or itself defines."""
    tree = ast.parse(inspect.getsource(module))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{PACKAGE}."):
            names |= {alias.asname or alias.name for alias in node.names}
    for child in tree.body:
        if isinstance(child, ast.ClassDef | Function):
            names.add(child.name)
    return {name for name in names if not name.startswith("_")}


def tracked_files(root: Path) -> list[str]:
    """What git tracks below `root`, which must be a checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True
    )
    return [path for path in listed.stdout.split("\0") if path]


def tree_complaints(paths: Iterable[str]) -> list[str]:
    """The top level holds what it should and no more; nothing generated, no lock file."""
    files = [PurePosixPath(path) for path in paths]
    tops = {path.parts[0] for path in files}
    complaints = [f"{name} is missing" for name in sorted(TOP_LEVEL - tops)]
    complaints += [
        f"{name} does not belong at the top level"
        for name in sorted(tops - TOP_LEVEL)
        if not name.startswith(".")
    ]
    complaints += [f"{path} is generated" for path in files if _generated(path)]
    return complaints


def _generated(path: PurePosixPath) -> bool:
    folders = (PurePosixPath(part) for part in path.parts[:-1])
    return any(path.match(pattern) for pattern in GENERATED) or any(
        folder.match(pattern) for folder in folders for pattern in GENERATED_FOLDERS
    )


def run_python(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs this interpreter in `root`, without colours, and returns what it said."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env={**os.environ, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def loaded_by(statement: str) -> set[str]:
    """The names of all modules that a fresh interpreter holds after one import statement."""
    done = run_python(PROJECT, "-c", f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')")
    if done.returncode:
        raise RuntimeError(f"{statement!r} failed:\n{done.stderr}")
    return set(done.stdout.split())
