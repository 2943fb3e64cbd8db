"""Conversations to look at: as text for a terminal, as a page, as the output of a cell.

Nothing here knows DSPy, or what may be handed on: it draws what it is given.
"""

from __future__ import annotations

from dspy_session.pictures.nodes import Branch, Status, TreeSession, TreeTurn
from dspy_session.pictures.tree import ConversationTree, tree_of

__all__ = ["Branch", "ConversationTree", "Status", "TreeSession", "TreeTurn", "tree_of"]
