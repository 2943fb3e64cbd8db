"""The sessions that a command learns from, as copies: nothing of what is done to them is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dspy

from dspy_session.cli.context import CommandContext
from dspy_session.cli.places import seal
from dspy_session.cli.programs import load_function, load_program
from dspy_session.cli.sessions import Sessions
from dspy_session.errors import SessionNotFoundError
from dspy_session.program.examples import Metric
from dspy_session.session import Session

__all__ = ["metric_of", "program_of", "read_sessions"]


def program_of(text: str | None) -> dspy.Module | None:
    """Return the program that is meant, if one is.

    Args:
        text: As for `load_program`; None for none.

    Raises:
        Usage: As from `load_program`.
    """
    return None if text is None else load_program(text)


def metric_of(text: str | None) -> Metric | None:
    """Return the metric that is meant, if one is.

    Args:
        text: Its name, `module:function`; None for none.

    Raises:
        Usage: There is none of that name.
    """
    return None if text is None else load_function(text, "metric")


def read_sessions(
    context: CommandContext,
    ids: Sequence[str] | None,
    metadata: Mapping[str, Any],
    program: dspy.Module | None,
    *,
    lenient: bool = False,
) -> list[Session]:
    """Return copies of stored sessions.

    Args:
        context: What the command works with.
        ids: Their ids; all if there are none.
        metadata: What they must have in their metadata.
        program: Their program; None for one that stands in for any.
        lenient: Whether ids that are not there are passed over.

    Raises:
        SessionNotFoundError: There is no session of an id, or none at all.
        FormatError: A turn is damaged.
    """
    manager = context.open_manager(program, write=False)
    sessions = Sessions(manager._archive.store, seal())
    wanted = _once(ids or ())
    if metadata or not wanted:
        infos = manager.list_sessions(metadata, order="id", descending=False)
        listed = [info.session_id for info in infos]
        wanted = [id for id in wanted if id in listed] if wanted else listed
    elif lenient:
        wanted = [id for id in wanted if manager.get_session_info(id) is not None]
    for id in wanted:
        sessions.ref(id)  # which names similar ones if there is none
    if not wanted and not lenient:
        what = "with that metadata " if metadata else ""
        raise SessionNotFoundError(f"There is no session {what}in this store.")
    sessions._archive.codecs = manager._archive.codecs  # which know the program's types
    return [
        Session.from_state(sessions.state(id), manager.program, copy_mode="none")
        for id in context.progress(wanted, "Reading", total=len(wanted))
    ]


def _once(ids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(ids))
