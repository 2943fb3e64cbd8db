"""X15, in Chromium: what a reader gets, on a screen and on a phone, in light and in dark."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_session import SessionState, tree
from tests.browser import CHROMIUM, DRIVER, Browser, browser
from tests.pictures import say, tea_shop
from tests.test_pictures_page import hostile_conversation

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="there is no chromium, or no chromedriver, on the PATH"
)

COLOURS = """
const root = document.querySelector('.dspy-session');
const style = getComputedStyle(root);
return [style.backgroundColor, style.color];
"""
WIDTHS = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth];"
OPEN_ALL = "document.querySelectorAll('details').forEach((each) => { each.open = true; });"


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as made:
        yield made


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "tea.html"
    tea_shop().to_html(path)
    return path


def test_X15_the_page_follows_light_and_dark(window: Browser, page: Path) -> None:
    window.open(page)
    assert window.run(COLOURS) == ["rgb(255, 255, 255)", "rgb(27, 31, 36)"]
    window.open(page, dark=True)
    assert window.run(COLOURS) == ["rgb(19, 22, 26)", "rgb(231, 234, 238)"]
    assert window.complaints() == []


@pytest.mark.parametrize("width", [320, 390, 900])
def test_X15_nothing_is_wider_than_the_screen(window: Browser, page: Path, width: int) -> None:
    window.open(page, width=width)
    window.run(OPEN_ALL)
    needed, there = window.run(WIDTHS)
    assert needed <= there


def test_X15_text_without_a_space_is_no_wider_either(window: Browser, tmp_path: Path) -> None:
    state = SessionState(id="x" * 200)
    for number in range(3):
        state = say(state, "q" * 3_000, "a" * 3_000, id=f"{number}", writes={"k" * 90: "v" * 900})
    path = tmp_path / "wide.html"
    tree(state, state).to_html(path)
    window.open(path, width=390)
    window.run(OPEN_ALL)
    needed, there = window.run(WIDTHS)
    assert needed <= there


def test_X15_values_within_values_can_be_read_on_a_phone(window: Browser, tmp_path: Path) -> None:
    value: Any = "a text of some words, " * 20
    for level in range(7):
        value = {f"a longer key {level}": value} if level % 2 else [value, level]
    state = say(SessionState(id="deep"), "q", "a", id="0", writes={"deep": value})
    path = tmp_path / "deep.html"
    tree(state).to_html(path)
    for width in (390, 900):
        window.open(path, width=width)
        window.run(OPEN_ALL)
        needed, there = window.run(WIDTHS)
        assert needed <= there
        narrowest = "return Math.min(...[...document.querySelectorAll('.text')].map((each) => "
        assert window.run(f"{narrowest}each.getBoundingClientRect().width));") > 70


def test_X15_nothing_that_is_said_runs(window: Browser, tmp_path: Path) -> None:
    for name, text in (
        ("page.html", tree(hostile_conversation()).to_html()),
        ("cell.html", f"<meta charset=utf-8>{tree(hostile_conversation())._repr_html_()}"),
    ):
        path = tmp_path / name
        path.write_text(text, "utf-8")
        window.open(path)
        window.run(OPEN_ALL)
        counts = "return ['script', 'iframe', 'img', '[onerror]'].map((each) => "
        assert window.run(f"{counts}document.querySelectorAll(each).length);") == [0, 0, 0, 0]
        assert window.run("return document.title;") != "broken"
        assert window.complaints() == []


def test_X15_the_policy_refuses_what_it_should(window: Browser, tmp_path: Path) -> None:
    path = tmp_path / "changed.html"
    text = tea_shop().to_html()
    assert "</main>" in text
    path.write_text(text.replace("</main>", "<script>document.title = 'ran'</script></main>"))
    window.open(path)
    assert window.run("return document.title;") != "ran"
    assert any("Content Security Policy" in complaint for complaint in window.complaints())


def test_X15_a_turn_unfolds_by_keyboard(window: Browser, page: Path) -> None:
    window.open(page)
    first = "document.querySelector('.more')"
    assert window.run(f"return {first}.open;") is False
    window.run(f"{first}.querySelector('summary').focus();")
    window.press("Enter")
    assert window.run(f"return {first}.open;") is True
    window.press("Tab")
    assert window.run("return document.activeElement.tagName;") in ("A", "SUMMARY")


def test_X15_a_link_opens_the_branch_that_it_goes_to(window: Browser, page: Path) -> None:
    window.open(page)
    folded = "document.querySelector('details.branch:not([open])')"
    number = window.run(f"return {folded}.querySelector('article').id;")
    window.run(f"location.hash = '#{number}';")
    assert window.run(f"return document.getElementById('{number}').closest('details').open;")


def test_X15_it_prints_dark_on_white(window: Browser, page: Path) -> None:
    window.open(page, dark=True)
    window.command("Emulation.setEmulatedMedia", media="print")
    assert window.run(COLOURS) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    window.command("Emulation.setEmulatedMedia", media="")


def test_X15_a_thousand_turns_can_be_looked_at(window: Browser, tmp_path: Path) -> None:
    state = SessionState(id="long")
    for number in range(1_000):
        state = say(state, f"question {number}", f"answer {number}", id=f"t{number}")
    path = tmp_path / "long.html"
    tree(state).to_html(path)
    window.open(path, width=390)
    assert window.run("return document.querySelectorAll('article').length;") == 1_000
    window.run("document.querySelector('.skip').click();")
    assert window.run("return location.hash;") == "#t999"
    box = "document.getElementById('t999').getBoundingClientRect()"
    assert 0 <= window.run(f"return {box}.top;") < 900


def test_X15_pictures_are_taken(window: Browser, page: Path) -> None:
    window.open(page, width=390, dark=True)
    picture = window.picture()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20]) == 390
