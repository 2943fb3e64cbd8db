"""Every link between the pages leads to a page and a heading, and every task has its example."""

import re
from pathlib import Path

import pytest

from tests.house import PROJECT
from tests.test_documentation import DOCS, DOCUMENTS, fenced_blocks, python_blocks, relative

EXAMPLES = DOCS / "examples.md"
ROWS = [
    *(str(number) for number in range(1, 14)),  # the examples that people begin with
    *(f"D{number}" for number in range(1, 24)),
    *(f"A{number}" for number in range(1, 15)),
    *(f"K{number}" for number in range(1, 10)),
    *(f"C{number}" for number in range(1, 16)),
    *(f"X{number}" for number in range(1, 17) if number != 11),  # X11 is not built yet
]
LINK = re.compile(r"(?:\]\(|\bsrc=\")([^()\s\"]+)[)\"]")


def prose(text: str) -> str:
    """A Markdown text without its fenced blocks."""
    lines = text.splitlines()
    for block in fenced_blocks(text):
        end = block.line + 1 + block.code.count("\n")
        lines[block.line - 1 : end] = [""] * (end - block.line + 1)
    return "\n".join(lines)


def headings(text: str) -> set[str]:
    """The anchors of a page's headings, as repositories' pages and Sphinx spell them."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.strip().replace(" ", "-") for title in kept}


def complaints(path: Path, text: str) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for link in LINK.findall(prose(text)):
        target, _, anchor = link.partition("#")
        if re.match(r"\w+:", target):
            continue
        there = path.parent / target if target else path
        if not there.exists():
            found.append(f"{link}: there is no such file")
        elif anchor and anchor not in headings(there.read_text("utf-8")):
            found.append(f"{link}: there is no such heading")
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_every_link_leads_to_a_page_and_a_heading(path: Path) -> None:
    assert complaints(path, path.read_text("utf-8")) == []


def example_rows() -> dict[str, list[str]]:
    """The links of each row of the examples, by its id; rows without an id are left out."""
    rows = re.findall(
        r"^\| (\w+) \| [^|]+ \| ([^|]+) \|$", EXAMPLES.read_text("utf-8"), re.MULTILINE
    )
    assert len(dict(rows)) == len(rows), "an id comes twice"
    return {row: LINK.findall(links) for row, links in rows}


def test_every_task_has_an_example() -> None:
    assert list(example_rows()) == ROWS


@pytest.mark.parametrize("row", ROWS)
def test_an_example_is_on_a_page_that_runs_or_explains(row: str) -> None:
    links = example_rows()[row]
    assert links
    for link in links:
        page = EXAMPLES.parent / link.partition("#")[0]
        explains = page.parent.name in {"explanation", "reference"}
        assert explains or python_blocks(page.read_text("utf-8")), f"{link} runs nothing"


def test_every_page_is_reached_from_the_index() -> None:
    index = (DOCS / "index.md").read_text("utf-8")
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in LINK.findall(prose(index))}
    unlinked = {path.resolve() for path in DOCUMENTS} - linked - {DOCS / "index.md"}
    assert {path.relative_to(PROJECT) for path in unlinked} == set()


# The checks above can fail


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[a](gone.md)", "gone.md: there is no such file"),
        ("[`a`](index.md#gone)", "index.md#gone: there is no such heading"),
        ("# One\n[a](#two)", "#two: there is no such heading"),
        ("[![picture](images/gone.png)](index.md)", "images/gone.png: there is no such file"),
        ('<img src="images/gone.png">', "images/gone.png: there is no such file"),
    ],
)
def test_a_dead_link_is_noticed(text: str, complaint: str) -> None:
    found = complaints(DOCS / "index.md", text)
    assert found == [complaint]


def test_headings_are_spelled_as_anchors() -> None:
    text = "# One, two\n## DSPy's `streamify`\n```python\n# no heading\n```\n### Wire format 3\n"
    assert headings(text) == {"one-two", "dspys-streamify", "wire-format-3"}
