"""What an application attaches to a session: code and programs, none of which is written out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import dspy
import msgspec

from dspy_session.core.chat import ChatFields
from dspy_session.core.profile import Instructions
from dspy_session.core.state import SessionState
from dspy_session.core.tokens import TokenCounter, checked_counter
from dspy_session.errors import ModuleTypeError, OptionError
from dspy_session.program.approvals import Approver
from dspy_session.program.hooks import NO_HOOKS, Hooks

__all__ = ["Attached", "InstructionsOf"]

InstructionsOf = Callable[[SessionState], str | Instructions]
"""Instructions as a function of the conversation, whose private session data it does not see."""


class Attached(msgspec.Struct, frozen=True, eq=False):
    """What stays behind when a session is saved, and is given again when it is loaded.

    Attributes:
        on_turn: Called as `on_turn(session, turn)` after each recorded turn.
        hooks: What runs around each turn.
        approver: Says whether a tool that needs approval may run.
        instructions: Makes the instructions of each turn, if they are not text.
        summarizer: The program that summarises the conversation; None for the default one.
        token_counter: Counts the tokens of a text; None for an estimate by its length.
        message_fields: Which input and output a chat message's text is; None if the program says.

    Raises:
        OptionError: One of them is not what can be called.
        ModuleTypeError: `summarizer` is not a `dspy.Module`.
    """

    on_turn: Callable[[Any, Any], Any] | None = None
    hooks: Hooks = NO_HOOKS
    approver: Approver | None = None
    instructions: InstructionsOf | None = None
    summarizer: dspy.Module | None = None
    token_counter: TokenCounter | None = None
    message_fields: ChatFields | None = None

    def __post_init__(self) -> None:
        """Check what can be told before the first call."""
        for name in ("on_turn", "approver", "instructions"):
            given = getattr(self, name)
            if given is not None and not callable(given):
                raise OptionError(f"{name} must be callable, not {type(given).__name__}.")
        checked_counter(self.token_counter)
        if inspect.iscoroutinefunction(self.on_turn):
            raise OptionError(
                "on_turn must be a plain function: an async one would never be awaited. Start a "
                "task in it instead, for example with "
                "asyncio.get_running_loop().create_task(...)."
            )
        if not isinstance(self.hooks, Hooks):
            raise OptionError(f"hooks must be Hooks(...), not {type(self.hooks).__name__}.")
        if not isinstance(self.summarizer, dspy.Module | None):
            raise ModuleTypeError(
                "summarizer must be a dspy.Module that makes `summary` of `conversation`, not "
                f"{type(self.summarizer).__name__}."
            )
