"""What a recorded conversation is taken up again with: for replays, and for prompts alone."""

from __future__ import annotations

from typing import Any

import dspy
import msgspec

from dspy_session.core.options import SessionOptions
from dspy_session.core.profile import as_instructions
from dspy_session.core.state import SessionState
from dspy_session.errors import CallError
from dspy_session.program.anatomy import check_module
from dspy_session.program.run import Told
from dspy_session.program.slot import history_slot, refuse_conflicts
from dspy_session.session import Session

__all__ = ["Recorded", "Setup", "setup_for"]

Recorded = Session | SessionState
"""A recorded conversation."""


class Setup(msgspec.Struct, frozen=True):
    """A recorded conversation, and what it is taken up again with.

    Attributes:
        state: The conversation.
        program: The program.
        options: How it is held, with the history field found in the program.
        as_seen: Whether turns see what their recorded calls saw; otherwise what the options show.
        instructions: What every predictor is told; None for what the conversation says.
    """

    state: SessionState
    program: dspy.Module
    options: SessionOptions
    as_seen: bool
    instructions: Told


def setup_for(
    given: Recorded, program: dspy.Module | None, options: SessionOptions | None, instructions: Told
) -> Setup:
    """Return a conversation with what it is taken up again with; what is None is a session's own.

    Args:
        given: The conversation.
        program: The program, or a session whose program is meant.
        options: How the conversation is held.
        instructions: What every predictor is told.

    Raises:
        CallError: `given` or `options` is something else, or there is no program.
        OptionError: `instructions` are none.
        ModuleTypeError: `program` is not a `dspy.Module`.
        HistoryError: No conversation can reach the program.
    """
    if not isinstance(given, Session | SessionState):
        raise CallError(
            f"Expected a Session or a SessionState, not {type(given).__name__}. "
            "Files are read with Session.load_from(path, program)."
        )
    if not isinstance(options, SessionOptions | None):
        raise CallError(f"options must be SessionOptions, not {type(options).__name__}.")
    if not callable(instructions):
        as_instructions(instructions)  # which refuses what is none; otherwise each turn would
    if isinstance(given, Session):
        state, chosen = given.state, options or given._chosen
        program = given if program is None else program
        instructions = given._attached.instructions if instructions is None else instructions
    else:
        state, chosen = given, options or SessionOptions()
    if program is None:
        raise CallError("A SessionState has no program; give one: (state, program).")
    module = _module_of(program)
    refuse_conflicts(module, chosen)
    field = history_slot(module, chosen).field
    settled = chosen if field == chosen.history_field else chosen.replace(history_field=field)
    return Setup(state, module, settled, options is None, instructions)


def _module_of(program: Any) -> dspy.Module:
    module = check_module(program)
    if not isinstance(module, Session):
        return module
    if "forward" in vars(module):
        raise CallError(
            "An optimizer replaced the forward of this session, which nothing but the session "
            "itself can run. Give a program instead."
        )
    return module.module
