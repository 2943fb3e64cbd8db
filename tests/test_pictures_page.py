"""X15, as a page and in a notebook: complete, harmless, readable, and nothing from elsewhere."""

import base64
import hashlib
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspy_session import SessionState, sessionify, tree
from dspy_session.core import (
    HistoryPolicy,
    Run,
    SessionOptions,
    annotate,
    commit,
    prepare,
    replace_turn,
    start,
    summarized,
    truncate,
)
from dspy_session.pictures.markup import element
from dspy_session.pictures.style import PAGE_STYLE
from dspy_session.pictures.value_html import value_html
from dspy_session.testing import ScriptedLM
from tests.pages import Page
from tests.pictures import say, tea_shop

HOSTILE = (
    "</div></dd></style></title><script>document.title = 'broken'</script>"
    "<img src=x onerror=\"document.title = 'broken'\"><a href='javascript:alert(1)'>x</a>"
    "<!-- <iframe srcdoc='<p>'> &amp; &lt; \" ' ]]> \x00 \x1b[31m \u202e \ud800"
)


def read(text: str) -> Page:
    """The page, of which nothing is wrong."""
    read = Page(text)
    assert read.complaints == []
    return read


def page_of(*states: SessionState, **keywords: Any) -> Page:
    return read(tree(*states).to_html(**keywords))


def test_X15_a_page_shows_the_conversation_and_its_branches() -> None:
    shown = read(tea_shop().to_html())
    for text in (
        "Hello! I look for a tea for the evening, without caffeine.",
        "Both are in your cart: two packs of rooibos and one mug, for 17.50 euros.",
        "We do not.",
        "another answer",
        "undone",
        "score 0.5",
        "True, but asks too soon.",
        "2026-01-01 10:00:47",
        "393 tokens",
        "$0.0008",
        "openai/gpt-4o-mini",
        "prompt_tokens",
        "add_to_cart",
        "In the cart: 2 x rooibos, for 8.00 euros.",
        "You work in a tea shop. Be brief, and never push.",
        "WINTER",
    ):
        assert text in shown.text, text
    assert shown.tags["article"] == 6
    assert shown.headings[:2] == [1, 2]
    assert all(below <= above + 1 for above, below in pairwise(shown.headings))


def test_X15_the_same_tree_makes_the_same_page() -> None:
    assert tea_shop().to_html() == tea_shop().to_html()


def test_X15_a_page_needs_nothing_from_elsewhere() -> None:
    text = tea_shop().to_html()
    shown = read(text)
    policy = shown.metas["Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(shown.style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"https?:|//|url\(|@import|@font-face", text)
    assert "script" not in shown.tags


def hostile_conversation() -> SessionState:
    """A conversation in which every text is hostile, wherever one can be."""
    state = start([{HOSTILE: HOSTILE}], id="a<b>&\"'")
    options = SessionOptions(exclude_fields={HOSTILE})
    run = Run(
        id=HOSTILE,
        usage=((HOSTILE, ((HOSTILE, 3), ("total_tokens", 3))),),
        fingerprint=HOSTILE,
        request_id=HOSTILE,
    )
    details = {"trajectory": {"thought_0": HOSTILE}, HOSTILE: [{HOSTILE: HOSTILE}, [HOSTILE]]}
    for number in range(2):
        inputs = {"question": HOSTILE, f"i{number} {HOSTILE}": {HOSTILE: [HOSTILE]}}
        step = prepare(state, inputs, options)
        _, state = commit(
            state,
            step,
            {"answer": HOSTILE, "n": number},
            Run(id=f"{HOSTILE}{number}", usage=run.usage, request_id=HOSTILE),
            options,
            details=details,
            data=lambda data: data.changed({HOSTILE[:300].encode(errors="ignore").decode(): "x"}),
        )
    state = annotate(state, {0: (0.5, HOSTILE)})
    _, state = replace_turn(state, 0, {"answer": HOSTILE, "other": HOSTILE}, id="r")
    return summarized(state, start([{"summary": HOSTILE}]).seed, 1)


def test_X15_nothing_that_is_said_is_more_than_text() -> None:
    state = hostile_conversation()
    clean = page_of(say(SessionState(id="x"), "q", "a", id="1"))
    for text in (
        tree(state).to_html(),
        tree(state).to_html(title=HOSTILE),
        tree(state, state)._repr_html_(),
    ):
        shown = read(text)
        assert set(shown.tags) - set(clean.tags) <= {
            "ul",
            "del",
            "ins",
            "code",
            "b",
            "span",
            "nav",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "a",
        }
        assert shown.text.count("<script>document.title = 'broken'</script>") > 10
        assert "\\x00 \\x1b[31m \\u202e \\ud800" in shown.text
        assert not {"\x00", "\x1b", "\u202e"} & {*text}
        text.encode()


def test_X15_what_a_call_saw_is_said_by_reference() -> None:
    state = SessionState(id="s")
    for number in range(4):
        state = say(state, f"q{number}", f"a{number}", id=f"t{number}")
    _, state = replace_turn(state, 1, {"answer": "better"}, id="t1b")
    state = say(state, "q4", "a4", id="t4")
    shown = page_of(state)
    assert shown.text.count("Turn 1 as it was then") == 1
    assert shown.text.count("turn 1 as it was then") == 2  # turns 2 and 3 saw it
    assert shown.text.count("a1") == 1
    assert shown.text.split("q4")[1].count("turns") >= 1
    assert {"#t0", "#s0"} <= {*shown.links}


def test_X15_what_was_seen_and_is_stored_no_more_is_on_the_page() -> None:
    state = SessionState(id="s")
    for number in range(3):
        state = say(state, f"q{number}", f"a{number}", id=f"t{number}")
    shown = page_of(truncate(state, 1))
    assert "q0" in shown.text
    assert "Turn 0 as it was then" in shown.text


def test_X15_a_history_given_with_a_call_is_on_the_page() -> None:
    options = SessionOptions(history_policy=HistoryPolicy.USE_IF_PROVIDED)
    state = say(SessionState(id="s"), "q", "a", id="1")
    given = [{"question": "from elsewhere", "answer": "indeed"}]
    step = prepare(state, {"question": "and?"}, options, given)
    _, state = commit(state, step, {"answer": "so"}, Run(id="2"), options)
    assert "from elsewhere" in page_of(state).text


def test_X15_data_changes_are_told_from_what_was_set_between_turns() -> None:
    with dspy.context(lm=ScriptedLM()):
        session = sessionify(dspy.Predict("question -> answer"), data={"a": 1, "b": [1]})
        session.data["b"] = [1, 2]
        session(question="q")
        session.data.delete("a")
        session(question="q")
    shown = read(session.to_html())
    assert shown.text.count("Session data, set before the call") == 2
    assert {"changed", "removed"} <= {*shown.texts}
    assert "Session data, changed by the turn" not in shown.text


def test_X15_sessions_within_the_program_show_their_new_turns() -> None:
    class Outer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = sessionify(dspy.Predict("question -> answer"), redact_fields={"secret"})

        def forward(self, question: str) -> Any:
            return self.inner(question=f"inner {question}")

    with dspy.context(lm=ScriptedLM()):
        session = sessionify(Outer())
        session(question="one")
        session(question="two")
    shown = read(session.to_html())
    assert shown.text.count("Session inside the program: inner") == 2
    assert shown.texts.count("inner one") == 1


def test_X15_values_of_every_kind_are_readable() -> None:
    picture = "data:image/png;base64,iVBORw0KGgo="
    state = start(id="s")
    inputs = {
        "picture": dspy.Image(url=picture),
        "elsewhere": dspy.Image(url="https://example.org/a.png"),
        "empty": [],
        "nothing": None,
        "long": "x" * 60_000,
        "many": list(range(500)),
        "text": "one\ntwo\tthree",
    }
    options = SessionOptions()
    run = Run(id="1", time=float("nan"), duration=75.0, cost=12.5)
    _, state = commit(state, prepare(state, inputs, options), {"answer": "a"}, run, options)
    shown = page_of(state)
    assert shown.tags["img"] == 1
    assert "https://example.org/a.png" in shown.text
    assert "… 10,000 more characters left out" in shown.text
    assert "… 49,000 more characters" in shown.text
    assert "… 300 more entries left out" in shown.text
    assert "one\ntwo\tthree" in shown.texts
    assert "1 min 15 s" in shown.text
    assert "$12.50" in shown.text


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -1e300, 1e300])
def test_X15_numbers_that_are_none_are_shown_all_the_same(odd: float) -> None:
    options = SessionOptions()
    run = Run(id="1", time=odd, duration=odd, cost=odd)
    step = prepare(SessionState(), {"question": "q"}, options)
    _, state = commit(SessionState(), step, {"answer": "a"}, run, options)
    state = annotate(state, {0: (odd, None)})
    assert "q" in page_of(state).texts
    assert "score" in str(tree(state))


def test_X15_long_texts_in_long_conversations_leave_room_for_all() -> None:
    state = SessionState(id="s")
    for number in range(200):
        state = say(state, "q", "a" * 100_000, id=f"t{number}")
    text = tree(state).to_html()
    assert len(text) < 6_000_000
    assert read(text).text.count("… 75,000 more characters left out") == 200


def test_X15_many_fields_leave_room_for_others() -> None:
    with dspy.context(lm=ScriptedLM()):
        session = sessionify(dspy.Predict("question -> answer"))
        session.data = {f"key{number}": number for number in range(1_000)}
        session(question="q")
    shown = read(session.to_html())
    assert shown.text.count("… 800 more entries left out") == 2
    assert "key199" in shown.texts
    assert "key200" not in shown.texts


def test_X15_the_texts_of_one_value_share_its_room() -> None:
    shown = Page(value_html(["a" * 40, "b" * 40, "c" * 40], 60))
    assert shown.texts[0] == "a" * 40
    assert shown.texts[1:] == [
        *("b" * 20, "… 20 more characters left out"),
        "… 40 more characters left out",
    ]


def test_X15_a_picture_that_may_hold_a_script_is_text() -> None:
    drawing = "data:image/svg+xml;base64,PHN2Zz4="
    shown = Page(value_html(drawing, 100))
    assert shown.texts == [drawing]


def test_X15_attributes_are_escaped_too() -> None:
    made = element("a", "x", href="#\"><b a='&\x1b")
    assert made == '<a href="#&quot;&gt;&lt;b a=&#x27;&amp;\\x1b">x</a>'


def test_X15_only_the_steps_of_an_agent_are_numbered() -> None:
    steps = {
        "thought_0": "look",
        "tool_name_0": "search",
        "thought_1": "done",
        "tool_name_1": "finish",
    }
    assert Page(value_html(steps, 100)).texts.count("thought") == 2
    for other in ({"file_7": 1, "file_8": 2}, {"a_0": 1, "a_1": 2}, {"a_0": 1, "b_0": 2, "c": 3}):
        assert {*other} <= {*Page(value_html(other, 100)).texts}


def test_X15_an_erased_turn_says_so() -> None:
    options = SessionOptions()
    state = start(id="s")
    step = prepare(state, {}, options)
    _, state = commit(state, step, {}, Run(id="1"), options, details={"erased": "0" * 64})
    state = say(state, "q", "a", id="2")
    shown = page_of(state)
    assert "The content of this turn was erased." in shown.text
    assert "0" * 64 not in shown.text
    assert "erased" in str(tree(state))
    assert shown.texts.count("Saw no turn · run") == 2


@pytest.mark.parametrize("length", [1_000, 1_500])
def test_X15_a_page_of_a_thousand_turns_says_what_it_leaves_out(length: int) -> None:
    state = SessionState(id="long")
    for number in range(length):
        state = say(state, f"q{number}", f"a{number}", id=f"t{number}")
    shown = page_of(state)
    assert shown.tags["article"] == 1_000
    assert ("… 500 earlier turns left out" in shown.text) is (length > 1_000)
    assert f"q{length - 1}" in shown.texts
    assert page_of(state, limit=0).tags.get("article") is None
    assert page_of(state, limit=None).tags["article"] == length


def test_X15_long_conversations_make_pages_that_grow_with_them() -> None:
    sizes = []
    state = SessionState(id="long")
    for number in range(400):
        state = say(state, f"q{number}", f"a{number}", id=f"t{number}")
        if number + 1 in (200, 400):
            sizes.append(len(tree(state).to_html()))
    assert sizes[1] < 2.1 * sizes[0]


def test_X15_a_notebook_shows_a_session() -> None:
    with dspy.context(lm=ScriptedLM()):
        session = sessionify(dspy.Predict("question -> answer"))
        for number in range(40):
            session(question=f"q{number}")
    cell = session._repr_html_()
    shown = read(cell)
    assert (shown.ids, shown.links) == ([], [])  # the same cell may stand in a notebook twice
    assert "… 10 earlier turns left out" in shown.text
    assert cell.startswith('<div class="dspy-session"><style>')
    assert all(
        rule.strip().startswith((".dspy-session", "@media", "}"))
        for rule in re.split(r"(?<=\})\n", shown.style)
        if rule.strip()
    )


def test_X15_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    session = sessionify(dspy.Predict("question -> answer"))
    session.add_turn({"question": "é"}, {"answer": "日本"})
    before = session.state
    path = tmp_path / "page.html"
    session.to_html(path, title="A title")
    assert path.read_bytes().decode() == session.to_html(title="A title")
    assert "<title>A title</title>" in path.read_text("utf-8")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        session.to_html(tmp_path / "no" / "page.html")
    with pytest.raises(IsADirectoryError, match=r"is a folder. Name a file in it\.$"):
        session.to_html(tmp_path)
    assert [*tmp_path.iterdir()] == [path]
    assert session.state is before


def test_X15_a_page_of_nothing_is_a_page() -> None:
    assert "No conversation" in page_of().text
    assert "Turns" in page_of(SessionState()).text


# Colours


def colours(style: str) -> list[dict[str, str]]:
    """The colours of each scheme: light, dark, print."""
    schemes = [
        dict(re.findall(r"--(\w+):(#[0-9a-f]{3,6})", block))
        for block in re.findall(r":root\{(.*?)\}", style, re.DOTALL)
    ]
    light = schemes[0]
    return [{**light, **scheme} for scheme in schemes]


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    "pair",
    [
        *(
            f"{text} {ground}".split()
            for text in ("fg", "muted")
            for ground in ("bg", "card", "said")
        ),
        *(["link", "bg"], ["link", "card"], ["fg", "soft"]),
        *(["ongood", "good"], ["onbad", "bad"], ["onwarn", "warn"]),
    ],
    ids="-".join,
)
def test_X15_text_stands_out_from_its_ground(pair: list[str]) -> None:
    schemes = colours(PAGE_STYLE)
    assert len(schemes) == 3
    for scheme in schemes:
        dark, light = sorted(luminance(scheme[name]) for name in pair)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, scheme


# The reader of the pages can complain


@pytest.mark.parametrize(
    "wrong",
    [
        "<script></script>",
        "<p onclick='x'></p>",
        "<p style='x'></p>",
        "<p><div></div></p>",
        "<ul><p></p></ul>",
        "<p>",
        "</p>",
        "<p id='a'></p><p id='a'></p>",
        "<a href='#nowhere'></a>",
        "<a href='javascript:x' id='a'></a>",
        "<img src='https://example.org/a.png'>",
        "<!-- a -->",
        "<p>a & b</p>",
        "<?x?>",
    ],
)
def test_a_page_that_is_wrong_is_noticed(wrong: str) -> None:
    assert Page(wrong).complaints
