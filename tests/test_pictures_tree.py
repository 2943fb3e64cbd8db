"""X15, in a terminal: conversations as a tree, joined where they share turns."""

import contextlib
import io
import json
from typing import Any

import dspy
import pytest
from pydantic import BaseModel
from rich.console import Console

from dspy_session import CallError, OptionError, Session, SessionState, sessionify, step, tree
from dspy_session.core import annotate, redo, replace_turn, start, summarized, truncate, undo
from dspy_session.pictures import ConversationTree, Status, tree_of
from dspy_session.pictures.values import harmless, plain_value, shortened, width_of
from dspy_session.testing import ScriptedLM
from tests.house import PROJECT
from tests.pictures import say, tea_shop
from tests.test_documentation import fenced_blocks

TEA_SHOP = """\
2 conversations
ada: 3 turns, 1,231 tokens, $0.0026, mean score 0.833
ada-2: 3 turns, 1 undone, 1,241 tokens, $0.0026
├─ 0  Hello! I look for a tea for the evening, witho…  [score 1]
│     → answer: Good evening. For the evening I would take a ro…
├─ 1  Rooibos, please. Two packs, and a…  [score 1; data +cart]
│     → Both are in your cart: two packs of rooibos and one mug…
│  another answer to turn 2
│  ╰─ 2  Do you gift-wrap?  [another answer]
│        → We do not.
│  ada-2
│  ├─ 2  On second thought, no mug.  [ada-2 is here; data ~cart]
│  │     → The mug is out again. Two packs of rooibos are 8.00…
│  ╰─ 3  And a tin for the tea?  [undone]
│        → A tin is 6.50 euros.
╰─ 2  Do you gift-wrap?  [score 0.5; ada is here; dat…
      → Yes, free of charge. Shall I wrap both together?"""


def talk(*questions: str, state: SessionState | None = None, mark: str = "") -> SessionState:
    """A conversation of these questions; the answers and the ids follow from them."""
    state = SessionState(id="talk") if state is None else state
    for question in questions:
        state = say(state, question, f"{question}!", id=f"{mark}{question}")
    return state


def shape(drawn: ConversationTree) -> list[tuple[int | None, list[tuple[str, str]]]]:
    """Each branch: after which turn, and its turns by question and status."""
    return [
        (
            branch.after,
            [(each.turn.inputs["question"], each.status.value) for each in branch.turns],
        )
        for branch in drawn.branches
    ]


def test_X15_a_tree_reads_well_in_a_terminal() -> None:
    assert tea_shop().to_text(width=64) == TEA_SHOP


def test_X15_the_guide_shows_what_is_printed() -> None:
    code, shown, *_ = fenced_blocks((PROJECT / "docs/guide/looking.md").read_text("utf-8"))
    out = io.StringIO()
    with contextlib.redirect_stdout(out), dspy.context(lm=ScriptedLM()):
        exec(code.code, {"__name__": "guide"})
    assert out.getvalue() == shown.code


def test_X15_str_is_the_tree_and_repr_is_short() -> None:
    drawn = tea_shop()
    assert str(drawn) == drawn.to_text(width=100)
    assert repr(drawn) == "ConversationTree(sessions=2, turns=6)"


def test_X15_a_session_shows_what_can_be_redone_and_other_answers() -> None:
    with dspy.context(lm=ScriptedLM()):
        session = sessionify(dspy.Predict("question -> answer"), session_id="s")
        for question in ("a", "b", "c"):
            session(question=question)
        session.regenerate(1)
        assert shape(session.tree()) == [
            (None, [("a", "current"), ("b", "current")]),
            (0, [("b", "other answer"), ("c", "other answer")]),
        ]
        session.undo()
    before = session.state
    assert shape(session.tree())[0] == (None, [("a", "current"), ("b", "undone")])
    assert session.tree().sessions[0].head == 0
    assert session.state is before


def test_X15_forks_are_joined_where_they_share_turns() -> None:
    with dspy.context(lm=ScriptedLM()):
        session = sessionify(dspy.Predict("question -> answer"), session_id="s")
        session(question="a")
        fork = session.fork(session_id="f")
        session(question="b")
        fork(question="c")
    drawn = session.tree(fork)
    assert shape(drawn) == [
        (None, [("a", "current"), ("b", "current")]),
        (0, [("c", "current")]),
    ]
    assert [each.head for each in drawn.sessions] == [1, 2]
    reloaded = Session.from_dict(fork.to_dict(), dspy.Predict("question -> answer"))
    assert shape(session.tree(reloaded)) == shape(drawn)


def test_X15_the_first_session_leads() -> None:
    one, other = talk("a", "b"), talk("c", state=talk("a"))
    assert shape(tree(other, one))[0] == (None, [("a", "current"), ("c", "current")])


def test_X15_the_longer_memory_of_another_session_is_joined_on() -> None:
    whole = talk("a", "b", "c")
    trimmed = talk("d", state=truncate(whole, 1))
    assert shape(tree(trimmed, whole)) == [
        (None, [(name, "current") for name in "abcd"]),
    ]
    assert shape(tree(trimmed)) == [(None, [("c", "current"), ("d", "current")])]


def test_X15_the_first_session_leads_also_where_another_has_more() -> None:
    whole = talk("a", "b", "c")
    again = say(whole, "x", "x!", id="x", at=2)
    trimmed = talk("d", state=truncate(whole, 1))
    assert shape(tree(trimmed, again)) == [
        (None, [(name, "current") for name in "abcd"]),
        (1, [("x", "current")]),
    ]


def test_X15_a_turn_after_a_replaced_one_is_another_turn() -> None:
    one = talk("a", "b")
    _, other = replace_turn(one, 0, {"answer": "no"}, id="new")
    assert [len(branch.turns) for branch in tree(one, other).branches] == [2, 2]


def test_X15_strangers_stand_side_by_side() -> None:
    drawn = tree(talk("a", mark="1"), talk("a", mark="2"))
    assert shape(drawn) == [(None, [("a", "current")]), (None, [("a", "current")])]
    assert [each.name for each in drawn.sessions] == ["talk", "talk (2)"]


@pytest.mark.parametrize("keep", [0, 1])
def test_X15_what_was_summarised_comes_before(keep: int) -> None:
    seed = start([{"summary": "Of a and b."}]).seed
    before = talk("a", "b")
    state = talk("c", state=summarized(before, seed, keep))
    drawn = tree(state)
    ((after, turns),) = shape(drawn)
    assert after is None
    assert [name for name, _ in turns] == ["a", "b", "c"]
    assert [status for _, status in turns].count("summarized") == 2 - keep
    assert drawn.turns[1 - keep].summaries == (seed,)
    assert "summarised here: Of a and b." in str(drawn)
    again = summarized(state, start([{"summary": "Of it all."}]).seed)
    assert [each.turn.inputs["question"] for each in tree(again).turns] == ["a", "b", "c"]
    assert tree(again).sessions[0].head == 2
    assert str(tree(again)).count("summarised here") == 2


def test_X15_a_score_given_in_one_session_shows() -> None:
    state = talk("a")
    fork = annotate(talk("b", state=state), {0: (0.25, None)})
    assert "[score 0.25; talk is here]" in str(tree(state, fork))


def test_X15_undone_turns_may_be_current_elsewhere() -> None:
    state = talk("a", "b")
    _, undone = undo(state)
    assert [each.status for each in tree(undone, state).turns] == [Status.CURRENT, Status.CURRENT]
    assert tree(undone).turns[1].status is Status.UNDONE
    assert redo(undone)[1] == state


def test_X15_nothing_to_show_is_shown() -> None:
    assert str(tree()) == "No conversation"
    assert str(tree(SessionState())) == "conversation: 0 turns"
    assert tree().to_dict() == {"sessions": [], "branches": []}


@pytest.mark.parametrize("wrong", [None, "ada", dspy.Predict("a -> b")])
def test_X15_only_conversations_are_drawn(wrong: Any) -> None:
    with pytest.raises(CallError, match="tree draws sessions and states, not"):
        tree(SessionState(), wrong)


@pytest.mark.parametrize("wrong", [-1, True, "9", 1.5])
def test_X15_limits_are_whole_numbers(wrong: Any) -> None:
    for draw in (tree().to_text, tree().to_html):
        with pytest.raises(OptionError, match="limit must be a whole number from 0 up, or None"):
            draw(limit=wrong)


# What is said may hold anything


def test_X15_nothing_that_is_said_acts_on_a_terminal() -> None:
    hostile = (
        "\x1b]0;title\x07\x1b[2J red \x9b31m \u202eabc\r\x00 \x7f \u2066 \ud800 \U000e0041 end"
    )
    state = say(SessionState(id="s"), hostile, f"first\r\nsecond {hostile}", id="1")
    text = str(tree(state))
    assert text.isprintable() or set(text) - {c for c in text if c.isprintable()} == {"\n"}
    assert "\\x1b[2J red \\x9b31m \\u202eabc" in text
    assert len(text.splitlines()) == 3
    text.encode()


def test_X15_every_turn_keeps_to_its_lines() -> None:
    state = say(SessionState(id="s"), "a\nb\tc", "d\n\ne", id="1", writes={"key\nof data": 1})
    assert str(tree(state)).splitlines()[1:] == [
        "╰─ 0  a b c  [data +key of data]",
        "      → d e",
    ]


def test_X15_names_and_ids_do_not_act_either() -> None:
    state = SessionState(id="a\u202eb", held=talk("q").held, log=talk("q").log, stop=1, tip=1)
    assert "a\\u202eb: 1 turn" in str(tree(state))


@pytest.mark.parametrize(
    "text", ["plain", "日本語のテキスト", "e\u0301te\u0301", "👩\u200d🚀 rocket"]
)
def test_X15_text_is_cut_by_what_it_takes_on_the_screen(text: str) -> None:
    for width in range(1, 20):
        cut = shortened(text, width)
        assert width_of(cut) <= width
        assert cut == text or cut.endswith("…")


def test_X15_harmless_text_keeps_what_people_write() -> None:
    kept = "tab\there, naïve, שלום, 👩\u200d🚀, क्\u200dष\nnext line"
    assert harmless(kept) == kept


class Point(BaseModel):
    x: int
    y: float


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_X15_every_value_can_be_shown() -> None:
    itself: list[Any] = []
    itself.append(itself)
    value = [Point(x=1, y=float("nan")), {3: {"b", "a"}}, (None, True), b"ab", Broken, itself]
    shown = plain_value(value)
    assert shown[:4] == [{"x": 1, "y": "nan"}, {"3": ["a", "b"]}, [None, True], "2 bytes"]
    assert plain_value(Broken()) == "a Broken that cannot be shown (RuntimeError)"
    json.dumps(shown, allow_nan=False)


# Wide, long, in colour


def test_X15_a_long_conversation_says_what_is_left_out() -> None:
    state = talk(*(str(n) for n in range(500)))
    text = str(tree(state))
    assert "⋮  400 earlier turns not drawn" in text
    assert len(text.splitlines()) < 250
    assert tree(state).to_text(limit=None).count("→") == 500
    assert tree(state).to_text(limit=0).splitlines()[1:] == ["╰─ 500 turns not drawn"]


@pytest.mark.parametrize("limit", range(7))
def test_X15_a_limit_counts_the_turns_of_all_branches(limit: int) -> None:
    drawn = tea_shop()
    assert drawn.to_text(limit=limit).count("→") == limit
    assert drawn.to_html(limit=limit).count("<article") == limit


def test_X15_many_forks_of_forks_are_drawn() -> None:
    paths, state = [], talk("root")
    for level in range(300):
        paths.append(talk(f"side {level}", state=state))
        state = talk(f"main {level}", state=state)
    drawn = tree(*paths, state)
    assert len(drawn.branches) == 301
    assert len(drawn.to_text(limit=None).splitlines()) > 1200
    assert drawn.to_html(limit=None).count("<article") == 601


def test_X15_rich_prints_it_as_wide_as_the_terminal() -> None:
    for width in (40, 90):
        out = io.StringIO()
        Console(file=out, width=width, force_terminal=False).print(tea_shop())
        rows = out.getvalue().rstrip("\n").splitlines()
        assert [row.rstrip() for row in rows] == tea_shop().to_text(width=width).splitlines()


def test_X15_rich_has_the_colours_and_marks_in_text_are_text() -> None:
    out, state = io.StringIO(), say(SessionState(), "[red]a[/red] :smile:", "[/]", id="1")
    Console(file=out, width=90, force_terminal=True, color_system="standard").print(tree(state))
    assert "\x1b[" in out.getvalue()
    assert "[red]a[/red] :smile:" in out.getvalue()


def test_X15_the_data_behind_it_is_json() -> None:
    told = json.loads(json.dumps(tea_shop().to_dict(), allow_nan=False))
    assert [session["name"] for session in told["sessions"]] == ["ada", "ada-2"]
    assert [branch["after"] for branch in told["branches"]] == [None, 1, 1]
    turn = told["branches"][0]["turns"][1]
    assert turn["inputs"] == {"question": "Rooibos, please. Two packs, and a mug."}
    assert (turn["number"], turn["status"], turn["score"]) == (1, "current", 1.0)


def test_X15_what_is_kept_back_is_in_no_tree() -> None:
    program = dspy.Predict("question, password -> answer")
    with dspy.context(lm=ScriptedLM()):
        session = sessionify(
            program,
            data={"token": "s3cr3t"},
            private_data={"token"},
            redact_fields={"password"},
        )
        session(question="Hi", password="hunter2")
        session(question="And?", password="hunter2")
    bare = tree(session.state)
    assert "hunter2" in str(bare)
    for drawn in (
        session.tree(),
        tree(session.state, session),
        tree(session.state, options=session.options),
    ):
        told = f"{drawn} {drawn.to_dict()} {drawn.to_html()} {drawn._repr_html_()}"
        assert "Hi" in told
        assert "hunter2" not in told
        assert "s3cr3t" not in told
        assert "password" not in told


def test_X15_what_an_inner_session_keeps_back_is_in_no_tree() -> None:
    class Desk(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = sessionify(
                dspy.Predict("question, password -> answer"), redact_fields={"password"}
            )

        def forward(self, question: str) -> Any:
            return self.inner(question=question, password="hunter2")

    with dspy.context(lm=ScriptedLM()):
        session = sessionify(Desk())
        session(question="Hi")
    assert "hunter2" in tree(session.state).to_html()
    assert "hunter2" not in session.to_html()


def test_X15_messages_that_wait_are_shown() -> None:
    session = sessionify(dspy.Predict("question -> answer"), session_id="s")
    session.add_message({"role": "user", "content": "Is\nthere a café?"})
    assert str(session.tree()).splitlines() == ["s: 0 turns", "   waits: user: Is there a café?"]
    assert "user: Is\nthere a café?" in session.to_html()
    session.options = session.options.replace(redact_fields={"question"})
    assert "café" not in f"{session.tree()} {session.to_html()}"


def test_X15_a_step_of_a_server_is_drawn_too() -> None:
    with dspy.context(lm=ScriptedLM()):
        _, state = step(SessionState(id="s"), dspy.Predict("question -> answer"), {"question": "a"})
    assert str(tree(state)).splitlines()[1:] == ["╰─ 0  a", "      → 2 messages"]


def test_X15_a_tree_of_states_needs_no_dspy() -> None:
    assert str(tree_of([talk("a")])) == str(tree(talk("a")))
