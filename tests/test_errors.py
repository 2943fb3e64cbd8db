"""The error family is the tree that `errors.py` draws."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

import dspy_session
from dspy_session import errors

LINE = re.compile(
    r"^ {4}(?P<branch>[│├└─ ]*)(?P<name>\w+)(?: \((?P<also>\w+)\))?(?: {2,}(?P<what>\S.*))?$"
)
EXAMPLE = """Text.

    RootError
    ├── AError (ValueError)   an a
    │   └── BError     a b
    └── CError  c

More text.
"""


def drawn(docstring: str) -> dict[str, tuple[list[str], str]]:
    """The tree in a docstring: for each class the names of its bases, and what is said of it."""
    tree: dict[str, tuple[list[str], str]] = {}
    above: list[str] = []
    for line in docstring.splitlines():
        found = LINE.match(line)
        if found is None or not (found["branch"] or found["name"].endswith("Error")):
            continue
        depth = len(found["branch"]) // 4
        assert depth <= len(above), line
        above[depth:] = [found["name"]]
        bases = [above[depth - 1]] if depth else ["Exception"]
        tree[found["name"]] = (bases + [found["also"]] * bool(found["also"]), found["what"] or "")
    return tree


TREE = drawn(errors.__doc__ or "")
FAMILY = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, BaseException)
}


def test_the_tree_can_be_read() -> None:
    assert drawn(EXAMPLE) == {
        "RootError": (["Exception"], ""),
        "AError": (["RootError", "ValueError"], "an a"),
        "BError": (["AError"], "a b"),
        "CError": (["RootError"], "c"),
    }


def test_the_drawn_tree_is_the_family() -> None:
    assert {name: bases for name, (bases, _) in TREE.items()} == {
        name: [base.__name__ for base in kind.__bases__] for name, kind in FAMILY.items()
    }
    assert len(TREE) >= 10


def test_each_error_says_in_the_tree_what_it_is_about() -> None:
    assert [name for name, (_, what) in TREE.items() if not what] == ["SessionError"]


def test_all_are_public_and_of_this_module() -> None:
    assert errors.__all__ == sorted(FAMILY)
    for name, kind in FAMILY.items():
        assert kind.__module__ == errors.__name__
        assert getattr(dspy_session, name) is kind
        assert name in dspy_session.__all__


@pytest.mark.parametrize("kind", FAMILY.values(), ids=FAMILY.keys())
def test_each_is_caught_as_the_family_and_survives_pickling(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.SessionError)
    error = pickle.loads(pickle.dumps(kind("what came, and what to do")))
    assert type(error) is kind
    assert str(error) == "what came, and what to do"
