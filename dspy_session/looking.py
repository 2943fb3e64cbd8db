"""The part of a session that one can look at: in a terminal, in a notebook, as a page.

How conversations are drawn is the business of `dspy_session.pictures`. Here is what may be drawn:
private data and redacted fields are in no picture, for a picture is handed on.
"""

from __future__ import annotations

from typing import overload

from dspy_session.core.flat import handed_on
from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState
from dspy_session.errors import CallError
from dspy_session.files import AnyPath
from dspy_session.pictures import ConversationTree, tree_of
from dspy_session.program.nested import inner_options
from dspy_session.saving import Saving

__all__ = ["Looking", "tree"]


class Looking(Saving):
    """The part of a session that one can look at; made by `Session`, not by hand."""

    def tree(self, *others: Looking | SessionState) -> ConversationTree:
        """Return the conversation with its branches: undone turns, other answers, what came before.

        `print` shows it in a terminal, a notebook shows it as it is, `to_html` makes a page of it.

        Args:
            *others: Forks, or other conversations, to be joined with it where they share turns.

        Raises:
            CallError: One of them is neither a session nor a state.

        Example:
            >>> import dspy
            >>> from dspy_session import sessionify
            >>> session = sessionify(dspy.Predict("question -> answer"), session_id="oslo")
            >>> _ = session.add_turn({"question": "Where am I?"}, {"answer": "In Oslo."})
            >>> print(session.tree())
            oslo: 1 turn
            ╰─ 0  Where am I?
                  → In Oslo.
        """
        return tree(self, *others)

    @overload
    def to_html(
        self,
        path: None = None,
        *others: Looking | SessionState,
        title: str | None = None,
        limit: int | None = 1_000,
    ) -> str: ...
    @overload
    def to_html(
        self,
        path: AnyPath,
        *others: Looking | SessionState,
        title: str | None = None,
        limit: int | None = 1_000,
    ) -> None: ...
    def to_html(
        self,
        path: AnyPath | None = None,
        *others: Looking | SessionState,
        title: str | None = None,
        limit: int | None = 1_000,
    ) -> str | None:
        """Return the conversation as one page of HTML that needs nothing else, or write it.

        Args:
            path: The file, written whole or not at all; None to return the page.
            *others: As for `tree`.
            title: What stands at its top.
            limit: How many turns are drawn at most; None for all. The page says what is left out.

        Raises:
            CallError: As for `tree`.
            OptionError: `limit` is no whole number.
            OSError: The file cannot be written; what was there before is untouched.
        """
        return tree(self, *others).to_html(path, title=title, limit=limit)

    def _repr_html_(self) -> str:
        return tree(self)._repr_html_()


def tree(
    *conversations: Looking | SessionState, options: SessionOptions | None = None
) -> ConversationTree:
    """Return conversations as one tree, joined where they share turns.

    Args:
        *conversations: Sessions and states, the most important one first. What one session keeps
            private or redacts is left out of all, for the others may have been told it.
        options: Options whose `private_data` and `redact_fields` are left out, too: states by
            themselves do not say.

    Raises:
        CallError: One of them is neither a session nor a state.

    Example:
        >>> from dspy_session.core import start
        >>> tree(start(id="oslo"))
        ConversationTree(sessions=1, turns=0)
    """
    given = [] if options is None else [options]
    states = []
    for each in conversations:
        if isinstance(each, Looking):
            states.append(each.state)
            given += [each._options, *inner_options(each.module)]
        elif isinstance(each, SessionState):
            states.append(each)
        else:
            raise CallError(
                f"tree draws sessions and states, not {type(each).__name__}. Open a stored session "
                "with SessionManager(program, store).open(id)."
            )
    private = frozenset().union(*(one.private_data for one in given))
    redacted = frozenset().union(*(one.redact_fields for one in given))
    return tree_of(handed_on(state, private, redacted) for state in states)
