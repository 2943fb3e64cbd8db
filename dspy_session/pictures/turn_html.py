"""One turn as HTML: what was said and answered, and, to unfold, all that is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from dspy_session.core.data import Data
from dspy_session.core.turn import PENDING_TOOL_CALLS
from dspy_session.core.window import Exchange
from dspy_session.pictures.figures import counted, moment, money, seconds, tokens_of
from dspy_session.pictures.labels import marks
from dspy_session.pictures.markup import Html, element, joined_html, listed
from dspy_session.pictures.nodes import TreeTurn
from dspy_session.pictures.seen import Change, Seen, Sight, changes
from dspy_session.pictures.value_html import MOST_ENTRIES, fields_html, missing, value_html

if TYPE_CHECKING:
    from dspy_session.pictures.tree import ConversationTree

__all__ = ["Elsewhere", "TurnDrawing", "change_list", "data_html"]


class Elsewhere(msgspec.Struct, frozen=True, eq=False):
    """What calls saw that stands in no turn of the tree.

    Attributes:
        number: Its number, for links.
        words: What it is.
        exchange: What it says.
    """

    number: int
    words: str
    exchange: Exchange


class TurnDrawing:
    """Draws the turns of one tree, and gathers what calls saw that stands in none of them."""

    def __init__(self, tree: ConversationTree, shown: Iterable[int], room: int, links: bool):
        """Draw turns of this tree.

        Args:
            tree: The tree.
            shown: The numbers of the turns that are drawn, and so can be linked to.
            room: How many characters of each value are shown.
            links: Whether there are anchors and links to them.
        """
        self.tree, self.shown, self.room, self.links = tree, frozenset(shown), room, links
        self.by_number = {turn.number: turn for turn in tree.turns}
        self.elsewhere: dict[int, Elsewhere] = {}
        self._sight = Sight(tree.branches)
        self._seeds = {id(s.state.seed) for s in tree.sessions}
        self._seeds |= {id(seed) for turn in tree.turns for seed in turn.summaries}

    def turn(self, shown: TreeTurn) -> Html:
        """Return a turn.

        Args:
            shown: The turn.
        """
        turn = shown.turn
        name = f"Turn {turn.index}"
        anchor = f"t{shown.number}" if self.links else None
        title = element("a", name, href=f"#{anchor}") if anchor else joined_html(name)
        heading = element("h3", title, id=f"{anchor}-h" if anchor else None)
        body = (
            element("p", "The content of this turn was erased.", class_="note")
            if turn.exchange.erased
            else joined_html(
                fields_html(turn.inputs, self.room, class_="said"),
                fields_html(turn.outputs, self.room, class_="answered"),
            )
        )
        return element(
            "article",
            element("header", heading, self._marks(shown), self._run(shown)),
            body,
            element("p", element("b", "Feedback: "), turn.feedback, class_="feedback")
            if turn.feedback
            else None,
            self._more(shown),
            id=anchor,
            class_=f"turn {shown.status.name.lower()}",
            aria_labelledby=f"{anchor}-h" if anchor else None,
        )

    def _marks(self, shown: TreeTurn) -> Html:
        return joined_html(
            *(
                element("span", mark.text, class_=f"mark {mark.kind}")
                for mark in marks(shown, self.tree.sessions)
            )
        )

    def _run(self, shown: TreeTurn) -> Html | None:
        turn, said = shown.turn, list[Html]()
        if (when := moment(turn.time)) is not None:
            text = when.strftime("%Y-%m-%d %H:%M:%S")
            said.append(element("time", text, datetime=when.isoformat(timespec="milliseconds")))
        if turn.duration is not None:
            said.append(joined_html(seconds(turn.duration)))
        if (tokens := tokens_of(turn.usage)) is not None:
            said.append(joined_html(counted(tokens, "token")))
        if turn.cost is not None:
            said.append(joined_html(money(turn.cost)))
        if not said:
            return None
        return element("p", *(element("span", part) for part in said), class_="run")

    def _more(self, shown: TreeTurn) -> Html | None:
        """What is to unfold: sections, each with a word for the line that is always there."""
        sections = [part for part in self._sections(shown) if part is not None]
        if not sections:
            return None
        words = " · ".join(word for word, _, _ in sections)
        return element(
            "details",
            element("summary", words[:1].upper() + words[1:]),
            *(element("section", element("h4", title), content) for _, title, content in sections),
            class_="more",
        )

    def _sections(self, shown: TreeTurn) -> Iterator[tuple[str, str, Html]]:
        turn = shown.turn
        details = turn.details if not turn.exchange.erased else {}
        waiting = details.pop(PENDING_TOOL_CALLS, None)
        if waiting:
            calls = value_html(waiting, self.room)
            yield "tool calls wait", "Tool calls that wait for approval", calls
        for name, value in details.items():
            yield name, name, value_html(value, self.room)
        yield self._seen(self._sight.of(shown))
        parent = None if shown.parent is None else self.by_number[shown.parent].turn
        began = shown.path.before.data if parent is None else parent.data
        between, own = changes(began, turn.data_before), changes(turn.data_before, turn.data)
        if between:
            yield (
                "data set before",
                "Session data, set before the call",
                change_list(between, self.room),
            )
        if own:
            yield "data changed", "Session data, changed by the turn", change_list(own, self.room)
        for path, state in turn.nested.items():
            yield from self._inside(path, state, turn.before.nested.get(path))
        facts = _facts(shown)
        if facts:
            yield "run", "Run", fields_html(facts, self.room, class_="facts") or joined_html()

    def _inside(self, path: str, now: Any, before: Any) -> Iterator[tuple[str, str, Html]]:
        """The turns that a session within the program made in this turn."""
        known = set() if before is None else {turn.run.id or turn.exchange for turn in before}
        new = [turn for turn in now if (turn.run.id or turn.exchange) not in known]
        if new:
            made = [fields_html({**t.inputs, **t.outputs}, self.room) for t in new]
            drawn = listed("ol", [m for m in made if m is not None], class_="steps")
            word = f"{counted(len(new), 'turn')} inside"
            yield word, f"Session inside the program: {path}", drawn or joined_html()

    def _seen(self, seen: Seen) -> tuple[str, str, Html]:
        parts: list[Html] = []
        if seen.seed:
            words = counted(len(seen.seed), "message") + " before the first turn"
            if id(seen.seed) in self._seeds:
                parts.append(joined_html(words))
            else:
                parts += [
                    self._reference(exchange, f"message {place} of a history given to a call")
                    for place, exchange in enumerate(seen.seed)
                ]
        for first, last in seen.stretches:
            parts.append(
                self._link(first, f"turn {first.turn.index}")
                if first is last
                else joined_html(
                    "turns ",
                    self._link(first, str(first.turn.index)),
                    " to ",
                    self._link(last, str(last.turn.index)),
                )
            )
        parts += [
            self._reference(exchange, f"turn {index} as it was then")
            for index, exchange in seen.gone
        ]
        body = listed("ul", parts) or element("p", "Nothing.")
        if seen.hidden and parts:
            body = joined_html(body, element("p", f"Not shown to it: {', '.join(seen.hidden)}."))
        count = seen.count + len(seen.gone)
        word = f"saw {counted(count, 'turn')}" if count else "saw no turn"
        return word, "What the call saw", body

    def _link(self, to: TreeTurn, text: str) -> Html:
        if not self.links or to.number not in self.shown:
            return joined_html(text)
        return element("a", text, href=f"#t{to.number}")

    def _reference(self, exchange: Exchange, words: str) -> Html:
        """A reference to what stands in no turn; it is drawn once, at the end of the page."""
        if not self.links:
            return joined_html(words)
        known = self.elsewhere.setdefault(
            id(exchange), Elsewhere(len(self.elsewhere), words, exchange)
        )
        return element("a", words, href=f"#s{known.number}")


def _facts(shown: TreeTurn) -> dict[str, Any]:
    """What is known of the run behind a turn, as named values."""
    turn = shown.turn
    facts: dict[str, Any] = {
        "calls of a model": turn.lm_calls or None,
        "request": turn.request_id,
        "program": turn.fingerprint,
        "turn id": turn.id or None,
    }
    facts.update(turn.usage)
    return {name: value for name, value in facts.items() if value is not None}


def change_list(made: Sequence[Change], room: int) -> Html:
    """Return changes of session data, key by key.

    Args:
        made: The changes.
        room: How many characters of each value are shown.
    """
    rows = []
    for change in made[:MOST_ENTRIES]:
        old = None if change.kind == "added" else element("del", value_html(change.before, room))
        new = None if change.kind == "removed" else element("ins", value_html(change.after, room))
        rows.append(
            joined_html(
                element("dt", change.key, " ", element("span", change.kind, class_="mark")),
                element("dd", old, new),
            )
        )
    return joined_html(element("dl", *rows, class_="changes"), missing(len(made) - len(rows)))


def data_html(data: Data | Mapping[str, Any], room: int) -> Html | None:
    """Return session data.

    Args:
        data: The data.
        room: How many characters of each value are shown.
    """
    return fields_html(dict(data.items()), room)
