"""A tree as HTML: a page of its own, and the output of a cell in a notebook.

A page needs nothing but itself: no script, no font, no picture from elsewhere; its security policy
forbids all of them. The same tree always makes the same page.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from dspy_session.pictures.figures import counted, moment, money, number, totals
from dspy_session.pictures.labels import branch_label, title_of, waiting
from dspy_session.pictures.markup import Html, element, joined_html, listed
from dspy_session.pictures.nodes import Branch, Status, TreeSession
from dspy_session.pictures.outline import Closed, LeftOut, Opened, Shown, outline
from dspy_session.pictures.style import NOTEBOOK_STYLE, PAGE_STYLE
from dspy_session.pictures.turn_html import TurnDrawing, data_html
from dspy_session.pictures.value_html import fields_html, value_html

if TYPE_CHECKING:
    from dspy_session.pictures.tree import ConversationTree

__all__ = ["cell", "page"]

_ROOM: Final = 50_000
"""Characters of each value that a page shows, if it has few turns."""
_LEAST_ROOM: Final = 2_000
_ROOM_OF_ALL: Final = 5_000_000
_ROOM_IN_CELL: Final = 2_000


def page(tree: ConversationTree, title: str | None, limit: int | None) -> str:
    """Return a page.

    Args:
        tree: The tree.
        title: What stands at its top; None for what the tree is.
        limit: How many turns at most; None for all.
    """
    style = Html(PAGE_STYLE)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    name = title_of(tree.sessions) if title is None else title
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", name),
        element("style", style),
    )
    main = element("main", *_Page(tree, limit, None, links=True).parts(name), class_="dspy-session")
    return f"<!DOCTYPE html>\n{element('html', head, element('body', main), lang='en')}\n"


def cell(tree: ConversationTree, limit: int | None) -> str:
    """Return what a notebook shows: without anchors, for a notebook may show it twice.

    Args:
        tree: The tree.
        limit: How many turns at most; None for all.
    """
    parts = _Page(tree, limit, _ROOM_IN_CELL, links=False).parts(None)
    return element("div", element("style", Html(NOTEBOOK_STYLE)), *parts, class_="dspy-session")


class _Page:
    """One drawing of a tree."""

    def __init__(
        self, tree: ConversationTree, limit: int | None, room: int | None, *, links: bool
    ) -> None:
        self.steps = list(outline(tree.branches, limit))
        shown = [step.turn.number for step in self.steps if isinstance(step, Shown)]
        if room is None:
            room = min(_ROOM, max(_LEAST_ROOM, _ROOM_OF_ALL // max(1, len(shown))))
        self.tree, self.room, self.links = tree, room, links
        self.turns = TurnDrawing(tree, shown, room, links)
        self.shown = frozenset(shown)

    def parts(self, title: str | None) -> Iterator[Html]:
        """What stands on the page, from top to bottom."""
        sessions = self.tree.sessions
        if title is not None:
            yield element("h1", title)
            yield from self._skip()
        if len(sessions) == 1:
            yield element("p", sessions[0].name, class_="id")
            yield _tiles(sessions[0])
        elif sessions:
            yield self._table()
        for session in sessions:
            yield from self._about(session)
        yield from self._contents()
        if title is not None:
            yield element("h2", "Turns")
        yield from self._branches()
        yield from self._elsewhere()

    def _skip(self) -> Iterator[Html]:
        heads = [s.head for s in self.tree.sessions if s.head in self.shown]
        if self.links and heads:
            yield element("a", "Go to the latest turn", href=f"#t{heads[0]}", class_="skip")

    def _table(self) -> Html:
        """The sessions, one in each row, and of each what at least one of them has."""
        facts = [_figures(session) for session in self.tree.sessions]
        names = [name for name in facts[0] if any(each[name] for each in facts)]
        head = element(
            "tr",
            element("th", "Conversation", scope="col"),
            *(element("th", name, scope="col", class_="n") for name in names),
        )
        rows = [
            element(
                "tr",
                element("th", self._name(session), scope="row"),
                *(element("td", figures[name], class_="n") for name in names),
            )
            for session, figures in zip(self.tree.sessions, facts, strict=True)
        ]
        return element(
            "div",
            element("table", element("thead", head), element("tbody", *rows)),
            class_="scroll",
            role="region",
            aria_label="Conversations",
            tabindex="0",
        )

    def _name(self, session: TreeSession) -> str:
        if not self.links or session.head not in self.shown:
            return session.name
        return element("a", session.name, href=f"#t{session.head}")

    def _about(self, session: TreeSession) -> Iterator[Html]:
        """What belongs to a session as a whole, to unfold."""
        state = session.state
        told = state.instructions
        seed = [fields_html({**e.inputs, **e.outputs}, self.room) for e in state.seed]
        parts: list[tuple[str, Html | None]] = [
            ("Instructions", None if told is None else value_html(told.text, self.room)),
            (
                f"Before the first turn ({counted(len(seed), 'message')})",
                listed("ol", [each for each in seed if each is not None], class_="steps"),
            ),
            ("Session data", data_html(state.data, self.room)),
            ("Metadata", data_html(state.metadata, self.room)),
            (
                "Messages that wait for an answer",
                listed("ul", [value_html(text, self.room) for text in waiting(state)]),
            ),
        ]
        made = [
            element("details", element("summary", name), content)
            for name, content in parts
            if content is not None
        ]
        if made:
            if len(self.tree.sessions) > 1:
                made = [element("details", element("summary", f"About {session.name}"), *made)]
            yield element("div", *made, class_="about")

    def _contents(self) -> Iterator[Html]:
        """Links to the branches, if there are several."""
        branches = [step.branch for step in self.steps if isinstance(step, Opened)]
        if self.links and len(branches) > 1:
            items = [
                element("a", self._label(branch), href=f"#b{branch.number}") for branch in branches
            ]
            yield element("h2", "Branches")
            yield element("nav", listed("ul", items), aria_label="Branches")

    def _label(self, branch: Branch) -> Html:
        name, first = branch_label(branch, self.tree.sessions), branch.turns[0].turn.index
        begin = "" if branch.after is None or name.endswith(f" {first}") else f", from turn {first}"
        words = f"{counted(len(branch.turns), 'turn')}{begin}"
        return joined_html(name, " ", element("span", f"({words})"))

    def _branches(self) -> Iterator[Html]:
        open_: list[tuple[Opened, list[Html]]] = []
        for step in self.steps:
            if isinstance(step, Opened):
                open_.append((step, []))
            elif isinstance(step, LeftOut):
                words = counted(step.count, "turn" if step.all else "earlier turn")
                open_[-1][1].append(element("li", f"… {words} left out", class_="note"))
            elif isinstance(step, Shown):
                open_[-1][1].extend(self._shown(step))
            else:
                assert isinstance(step, Closed)
                opened, items = open_.pop()
                drawn = self._branch(opened, items)
                if open_:
                    open_[-1][1].append(element("li", drawn))
                else:
                    yield drawn

    def _shown(self, step: Shown) -> Iterator[Html]:
        shown = step.turn
        off = "" if shown.status is Status.CURRENT else " off"
        yield element("li", self.turns.turn(shown), class_=f"at{off}")
        for seed in shown.summaries:
            said = [fields_html({**e.inputs, **e.outputs}, self.room) for e in seed]
            yield element(
                "li",
                element("b", "Summarised here. "),
                "Later calls were shown this in place of the turns above:",
                *said,
                class_="cut",
            )

    def _branch(self, opened: Opened, items: list[Html]) -> Html:
        branch = opened.branch
        anchor = f"b{branch.number}" if self.links else None
        line = element("ol", *items, class_="line")
        if not branch.number:
            return element("section", line, id=anchor, aria_label="The conversation")
        stands = any(turn.heads for turn in branch.turns)
        return element(
            "details",
            element("summary", self._label(branch)),
            line,
            class_="branch",
            id=anchor,
            open=stands,
        )

    def _elsewhere(self) -> Iterator[Html]:
        """What calls saw that stands in no turn."""
        if not self.turns.elsewhere:
            return
        yield element("h2", "Seen by calls, and in no turn any more")
        for each in self.turns.elsewhere.values():
            fields = {**each.exchange.inputs, **each.exchange.outputs}
            yield element(
                "article",
                element("h3", each.words[:1].upper() + each.words[1:]),
                fields_html(fields, self.room, class_="answered"),
                id=f"s{each.number}",
                class_="turn undone",
            )


def _figures(session: TreeSession) -> dict[str, str]:
    """What a conversation adds up to; nothing where nobody said."""
    state, sums = session.state, totals(session.state)
    undone, begin = state.tip - state.stop, moment(sums.begin)
    return {
        "Turns": f"{sums.turns:,}",
        "Undone": f"{undone:,}" if undone else "",
        "Tokens": "" if sums.tokens is None else f"{sums.tokens:,}",
        "Cost": "" if sums.cost is None else money(sums.cost),
        "Mean score": "" if sums.score is None else number(sums.score),
        "Began (UTC)": "" if begin is None else begin.strftime("%Y-%m-%d %H:%M"),
    }


def _tiles(session: TreeSession) -> Html:
    tiles = {name: text for name, text in _figures(session).items() if text}
    return element(
        "dl",
        *(element("div", element("dt", name), element("dd", text)) for name, text in tiles.items()),
        class_="tiles",
    )
