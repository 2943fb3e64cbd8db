"""What one can do in a chat beside talking: lines that begin with a slash.

A command works on the chat's session, and may put another one in its place. It returns what it has
to say; what it raises is shown, and the chat goes on.
"""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from dspy_session.cli.chat_screen import Said
from dspy_session.cli.ending import Usage
from dspy_session.cli.sessions import Sessions
from dspy_session.core.profile import Instructions
from dspy_session.errors import CallError, SessionNotFoundError
from dspy_session.manager import SessionManager
from dspy_session.pictures.figures import counted
from dspy_session.pictures.values import one_line
from dspy_session.session import Session

__all__ = ["COMMANDS", "Desk", "LeftError", "run_command"]

_MOST_LISTED: Final = 20
_MOST_JOINED: Final = 20


class LeftError(Exception):
    """Somebody asked for the end of the chat."""


class Desk:
    """What a chat works on.

    Args:
        manager: Keeps the sessions.
        sessions: The same store, as commands look at it.
        session_id: The session to begin with, which is made if there is none.

    Attributes:
        session: The session that is talked to.
        manager: Keeps the sessions.
        sessions: The same store, as commands look at it.
    """

    def __init__(self, manager: SessionManager, sessions: Sessions, session_id: str) -> None:
        self.manager, self.sessions = manager, sessions
        self.session: Session = manager.open(session_id)

    def refresh(self) -> bool:
        """Read what somebody else wrote to the session; say whether its turns are others now."""
        before = _place(self.session)
        try:
            self.session.refresh()
        except SessionNotFoundError as error:
            raise SessionNotFoundError(
                f"Session {self.session.session_id!r} was deleted elsewhere. /save FILE keeps what "
                "is here; /new and /switch go on."
            ) from error
        return _place(self.session) != before


def _place(session: Session) -> tuple[int, str | None]:
    state = session.state
    return state.stop, None if state.last is None else state.last.id


class Command(msgspec.Struct, frozen=True):
    """One command.

    Attributes:
        usage: Its name and what may follow.
        about: What it does.
        run: Does it, with what followed.
        moves: Whether it takes back turns, which nobody else may have added meanwhile.
    """

    usage: str
    about: str
    run: Callable[[Desk, str], Said]
    moves: bool = False


def run_command(desk: Desk, line: str) -> tuple[str, Said]:
    """Do what a line says that begins with a slash.

    Args:
        desk: What the chat works on.
        line: The line.

    Returns:
        The command's name, and what it says.

    Raises:
        Usage: There is no such command, or what follows it is wrong.
        LeftError: It was the command to end the chat.
        SessionError: It could not be done.
        OSError: A file could not be written.
    """
    name, _, rest = line[1:].strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean /{near[0]}?" if near else ""
        raise Usage(f"There is no command /{name}.{hint} /help shows all; // begins a message.")
    if command.moves and desk.refresh():
        raise CallError(
            f"Nothing was done: the session was changed elsewhere meanwhile, and has "
            f"{counted(len(desk.session), 'turn')} now. /{name} again does it there."
        )
    return name, command.run(desk, rest.strip())


# --- turns ----------------------------------------------------------------------------------------


def _undo(desk: Desk, rest: str) -> Said:
    turns = desk.session.undo(_count(rest))
    return _moved(desk, turns, "taken back")


def _redo(desk: Desk, rest: str) -> Said:
    turns = desk.session.redo(_count(rest))
    return _moved(desk, turns, "brought back")


def _moved(desk: Desk, turns: tuple[Any, ...], how: str) -> Said:
    left = len(desk.session)
    text = f"{counted(len(turns), 'turn')} {how}, {left} in {desk.session.session_id}."
    indices = [turn.index for turn in turns]
    return Said(text, {"session": desk.session.session_id, "turns": left, "moved": indices})


def _count(rest: str) -> int:
    if not rest:
        return 1
    if rest.isascii() and rest.isdecimal():
        return int(rest)
    raise Usage(f"Expected how many turns, a whole number, not {rest!r}.")


# --- sessions -------------------------------------------------------------------------------------


def _fork(desk: Desk, rest: str) -> Said:
    origin = desk.session.session_id
    desk.session = desk.session.fork(session_id=rest or None)
    return _here(desk, f"A fork of {origin}")


def _new(desk: Desk, rest: str) -> Said:
    if rest and desk.manager.get_session_info(rest) is not None:
        raise CallError(f"There is a session {rest!r} already: /switch {rest}")
    desk.session = desk.manager.open(rest or _free_id(desk))
    return _here(desk, "A new session")


def _free_id(desk: Desk) -> str:
    """A name that nobody has, made of the present one's."""
    base = desk.session.session_id
    number = 2
    while desk.manager.get_session_info(f"{base}-{number}") is not None:
        number += 1
    return f"{base}-{number}"


def _switch(desk: Desk, rest: str) -> Said:
    if not rest:
        raise Usage("Expected the id of a session: /sessions lists them.")
    desk.sessions.ref(rest)  # which names similar ones if there is none
    desk.session = desk.manager.load_session(rest)
    return _here(desk, "The session")


def _here(desk: Desk, what: str) -> Said:
    session = desk.session
    text = f"{what}: you are in {session.session_id} now, {counted(len(session), 'turn')}."
    last = session.state.last
    if last is not None:
        text += f"\n> {one_line(last.inputs)}\n{one_line(last.outputs)}"
    return Said(text, {"session": session.session_id, "turns": len(session)})


def _sessions(desk: Desk, rest: str) -> Said:
    _nothing_after(rest)
    infos = desk.manager.list_sessions(limit=_MOST_LISTED)
    here = desk.session.session_id
    lines = [
        f"{'*' if info.session_id == here else ' '} {info.session_id}  "
        f"{counted(info.turn_count, 'turn')}"
        for info in infos
    ]
    more = desk.manager.count_sessions() - len(infos)
    lines += [f"  ... and {more} more"] * (more > 0)
    listed = [{"session": info.session_id, "turns": info.turn_count} for info in infos]
    return Said("\n".join(lines), {"session": here, "sessions": listed, "more": max(more, 0)})


def _tree(desk: Desk, rest: str) -> Said:
    _nothing_after(rest)
    near = desk.sessions.relatives(desk.session.session_id)[:_MOST_JOINED]
    tree = desk.session.tree(*(desk.manager.load_session(id) for id in near))
    return Said(tree, {"session": desk.session.session_id, "tree": tree.to_dict()})


# --- what is beside the turns ---------------------------------------------------------------------


def _data(desk: Desk, rest: str) -> Said:
    data, id = desk.session.data, desk.session.session_id
    key, _, value = rest.partition(" ")
    if value.strip():
        try:
            data[key] = json.loads(value)
        except ValueError:
            raise Usage(
                f'Expected JSON after /data {key}, such as "text" in quotes or [1, 2], not '
                f"{value.strip()!r}."
            ) from None
    shown = data.to_dict() if not key else data[key]
    return Said(json.dumps(shown, ensure_ascii=False, indent=2), {"session": id, "data": shown})


def _instructions(desk: Desk, rest: str) -> Said:
    session = desk.session
    if rest:
        session.instructions = None if rest == "-" else rest
    told = session.instructions
    text = told.text if isinstance(told, Instructions) else None
    shown = "The program's own alone." if told is None else text or "Made by a function."
    return Said(shown, {"session": session.session_id, "instructions": text})


def _save(desk: Desk, rest: str) -> Said:
    if not rest:
        raise Usage("Expected a file: /save chat.json, or /save chat.html for a page.")
    path = Path(rest).expanduser()
    if path.suffix.lower() in (".html", ".htm"):
        desk.session.to_html(path)
    else:
        with warnings.catch_warnings():  # what the program has learned, nobody asked for
            warnings.simplefilter("ignore", UserWarning)
            desk.session.save(path)
    size = path.stat().st_size
    return Said(f"Written: {path} ({size} bytes).", {"file": str(path), "bytes": size})


def _help(desk: Desk, rest: str) -> Said:  # noqa: ARG001  # a command takes both
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"{command.usage:{width}}  {command.about}" for command in COMMANDS.values()]
    lines.append(
        "Ctrl-C ends an answer that is arriving, and nothing of it is recorded. Ctrl-D, or Ctrl-C "
        "twice, ends the chat.\nA message that begins with a slash is written with two."
    )
    return Said("\n".join(lines), {"commands": [each.usage for each in COMMANDS.values()]})


def _quit(desk: Desk, rest: str) -> Said:  # noqa: ARG001  # a command takes both
    raise LeftError


def _nothing_after(rest: str) -> None:
    if rest:
        raise Usage(f"Nothing follows this command; {rest!r} came.")


COMMANDS: Final = {
    "help": Command("/help", "show this", _help),
    "undo": Command("/undo [N]", "take back the last turn, or N", _undo, moves=True),
    "redo": Command("/redo [N]", "bring back what was taken back", _redo, moves=True),
    "fork": Command("/fork [ID]", "go on in a fork; this session stays as it is", _fork),
    "new": Command("/new [ID]", "go on in a new session", _new),
    "switch": Command("/switch ID", "go on in another session", _switch),
    "sessions": Command("/sessions", "list the sessions", _sessions),
    "tree": Command("/tree", "show the session with its forks and undone turns", _tree),
    "data": Command("/data [KEY [JSON]]", "show session data, or set a key", _data),
    "instructions": Command(
        "/instructions [TEXT]",
        "show what the model is told, or set it; - for nothing",
        _instructions,
    ),
    "save": Command("/save FILE", "write the session to a file; .html makes a page", _save),
    "quit": Command("/quit", "end the chat", _quit),
}
"""By name, in the order of /help."""
