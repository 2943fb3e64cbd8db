"""The README: short, its two commands first, its figures those of the pages that it points to.

What its snippets print is compared in `tests.test_documentation`. Here also: every link of every
document leads somewhere, and the tables of options are those of the code.
"""

import inspect
import re
import tomllib
from enum import StrEnum
from pathlib import Path

import msgspec
import pytest

from dspy_session import Session, SessionOptions
from dspy_session.core import HistoryPolicy, Lock
from tests.house import PACKAGE, PROJECT
from tests.test_documentation import README, fenced_blocks

DOCS = PROJECT / "docs"
LONGEST = 300


def table(path: Path, heading: str) -> dict[str, list[str]]:
    """The rows of the one table whose heading begins so: by the first cell, the others."""
    lines = path.read_text("utf-8").splitlines()
    (start,) = (number for number, line in enumerate(lines) if line.startswith(heading))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name] = cells
    return rows


# What stands first


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) < LONGEST


def test_three_sentences_then_two_commands() -> None:
    text = README.read_text("utf-8")
    title, what, heading, *_ = text.split("\n\n")
    assert title == "# dspy-session"
    assert len(re.findall(r"\.(?=\s|$)", what)) == 3
    assert heading == "## Two commands"
    first = next(fenced_blocks(text))
    commands = [line.partition("#")[0].strip() for line in first.code.splitlines()]
    assert (first.info, commands) == ("sh", ["uv run dspy-session demo", "uv run pytest"])
    with (PROJECT / "pyproject.toml").open("rb") as file:
        assert "dspy-session" in tomllib.load(file)["project"]["scripts"]


def test_every_extra_is_named() -> None:
    with (PROJECT / "pyproject.toml").open("rb") as file:
        extras = sorted(tomllib.load(file)["project"]["optional-dependencies"])
    (told,) = re.findall(r"The extras (.*?) bring the rest", README.read_text("utf-8"), re.DOTALL)
    assert re.findall(r"`(\w+)`", told) == extras


# Figures

CALLED = {  # as the README calls them, and the page
    "**dspy-session**": "`session(...)`",
    "`dspy.History`, by hand": "hand-written loop",
    "the published dspy-session 0.1.2": "the published 0.1.2",
}


def test_the_figures_of_storage_are_those_of_the_page() -> None:
    told = {name: row[2:] for name, row in table(README, "| | Keeps").items() if row[2]}
    measured = table(DOCS / "explanation" / "storage.md", "| Median ms at 10 / ")
    for name, figures in told.items():
        longest = [cell.rpartition(" / ")[2] for cell in measured[name]]
        append, last, _, fork, undo = longest
        assert figures == [append, last, fork, undo], name
    assert told.keys() == measured.keys() - {"the bare `SQLStore`"}


def test_the_figures_of_a_call_are_those_of_the_page() -> None:
    told = {name: row[1] for name, row in table(README, "| | Keeps").items() if row[1]}
    measured = table(DOCS / "explanation" / "comparison.md", "| Of the hand-written loop")
    assert told == {name: " / ".join(measured[row][2:]) for name, row in CALLED.items()}


# Options

OPTIONS = DOCS / "reference" / "options.md"


def test_every_option_is_in_the_table_with_its_default() -> None:
    told = {name: row[0] for name, row in table(OPTIONS, "| Option ").items()}
    made = msgspec.structs.asdict(SessionOptions())
    defaults = {
        f"`{name}`": "none" if value == frozenset() else f"`{written(value)}`"
        for name, value in made.items()
    }
    assert told == defaults
    assert list(told) == list(defaults)


def written(value: object) -> str:
    """A default as one writes it: enumerations as text, long numbers in groups."""
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value:_}" if type(value) is int else repr(value)


def test_every_other_keyword_is_in_the_second_table() -> None:
    parameters = inspect.signature(Session.__init__).parameters.values()
    keywords = {f"`{one.name}`" for one in parameters if one.kind is one.KEYWORD_ONLY}
    assert table(OPTIONS, "| Keyword ").keys() == keywords


def test_every_module_of_the_program_is_in_the_table_of_the_design() -> None:
    told = table(DOCS / "explanation" / "design.md", "| Question | Modules").values()
    named = sorted(name for (modules,) in told for name in re.findall(r"`(\w+)`", modules))
    files = (PROJECT / PACKAGE / "program").glob("*.py")
    assert named == sorted(path.stem for path in files if path.stem != "__init__")


@pytest.mark.parametrize(
    ("kind", "heading"),
    [(HistoryPolicy, "| `history_policy` | The call"), (Lock, "| `lock` | Calls")],
)
def test_every_choice_is_in_the_table_of_its_option(kind: type[StrEnum], heading: str) -> None:
    assert list(table(OPTIONS, heading)) == [f'`"{member.value}"`' for member in kind]


# Links
