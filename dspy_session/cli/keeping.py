"""Commands that change what is stored, or hand it on: fork, export, import, delete."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import msgspec
import typer

from dspy_session.cli.context import CommandContext, command
from dspy_session.cli.ending import Usage, told
from dspy_session.cli.given import SessionId, confirmed
from dspy_session.cli.sessions import Sessions
from dspy_session.core.flat import handed_on
from dspy_session.errors import FormatError, SessionError, SessionExistsError
from dspy_session.files import write_whole
from dspy_session.pictures import tree_of
from dspy_session.pictures.figures import counted

__all__ = ["register"]

_PIPE: Final = "-"
_LONGEST: Final = 2**29  # there are files without end, such as devices
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def register(app: typer.Typer) -> None:
    """Add the commands to the app.

    Args:
        app: The app.
    """
    command(app, "fork")(_fork)
    command(app, "export")(_export)
    command(app, "import")(_import)
    command(app, "delete")(_delete)


def _fork(
    context: CommandContext,
    session_id: SessionId,
    new: Annotated[
        str, typer.Argument(metavar="NEW", help="The id of the fork.", show_default=False)
    ],
    at: Annotated[
        int | None, typer.Option(min=0, metavar="K", help="A fork from before turn K.")
    ] = None,
) -> None:
    """Fork a session: the new one shares its turns, and goes its own way."""
    count = context.sessions(write=True).fork(session_id, new, at)
    context.answer(
        {"session_id": new, "origin": session_id, "turn_count": count},
        lambda: context.line(f"Forked {session_id!r} into {new!r}: {counted(count, 'turn')}."),
    )


# --- export ---------------------------------------------------------------------------------------


class _Export(msgspec.Struct, frozen=True):
    """What an export is to hold, and how it is written."""

    html: bool
    private: frozenset[str]
    redacted: frozenset[str]

    def of(self, sessions: Sessions, session_id: str) -> bytes:
        state = handed_on(sessions.state(session_id), self.private, self.redacted)
        if self.html:
            return tree_of([state]).to_html().encode()
        # ASCII: it may be read on a terminal, or go through a pipe that is in no UTF-8.
        return f"{json.dumps(sessions.document(state), indent=2)}\n".encode()

    @property
    def suffix(self) -> str:
        return ".html" if self.html else ".json"


def _export(
    context: CommandContext,
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="The session, or several.", show_default=False),
    ] = None,
    *,
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="The file; - is standard output. For several sessions, a folder.",
            show_default=False,
        ),
    ],
    every: Annotated[bool, typer.Option("--all", help="All sessions, into a folder.")] = False,
    html: Annotated[
        bool, typer.Option("--html", help="A page to look at, instead of JSON to import.")
    ] = False,
    private: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Leave out this key of the session data."),
    ] = None,
    redact: Annotated[
        list[str] | None, typer.Option(metavar="FIELD", help="Leave out this field of all turns.")
    ] = None,
) -> int | None:
    """Write sessions to files: JSON that `import` and `Session.load_from` read, or HTML pages.

    What a program keeps private or redacts is not stored: say it with --private and --redact.
    """
    if every and ids:
        raise Usage("--all takes no ids, only the folder to write to.")
    if not every and not ids:
        raise Usage("export takes an id and the file to write it to; - is standard output.")
    sessions = context.sessions()
    wanted = _Export(html, frozenset(private or ()), frozenset(redact or ()))
    if ids and len(ids) == 1:
        _export_one(context, sessions, wanted, ids[0], target)
        return None
    if target == _PIPE:
        raise Usage("Several sessions go into a folder, not to standard output: name one.")
    wanted_ids = list(sessions.ids()) if every else list(ids or ())
    for session_id in wanted_ids:
        sessions.info(session_id)  # nothing is written if one is not there
    return _export_many(context, sessions, wanted, wanted_ids, Path(target))


def _export_one(
    context: CommandContext, sessions: Sessions, wanted: _Export, session_id: str, target: str
) -> None:
    if target == _PIPE:
        if context.as_json and wanted.html:
            raise Usage("Standard output cannot have HTML with --json: name a file.")
        _write_out(context, wanted.of(sessions, session_id))
        return
    _refuse_folder(target)
    write_whole(target, wanted.of(sessions, session_id))
    _tell(context, {session_id: target}, f"Wrote {target}.")


def _write_out(context: CommandContext, data: bytes) -> None:
    """Write bytes to standard output, in UTF-8 whatever it is set to."""
    binary: Any = getattr(sys.stdout, "buffer", None)
    if binary is None:
        context.write(data.decode())
    else:
        sys.stdout.flush()
        binary.write(data)


def _refuse_folder(target: str) -> None:
    if Path(target).is_dir():
        raise IsADirectoryError(f"{target!r} is a folder. Name a file in it.")


def _export_many(
    context: CommandContext, sessions: Sessions, wanted: _Export, ids: Sequence[str], folder: Path
) -> int | None:
    """Write those that can be read; the others do not keep them back."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for session_id in context.progress(ids, "Exporting", len(ids)):
        file = folder / f"{quote(session_id, safe=' @')}{wanted.suffix}"
        try:
            data = wanted.of(sessions, session_id)
        except FormatError as error:
            context.note(str(error))
            continue
        write_whole(file, data)
        written[session_id] = str(file)
    _tell(context, written, f"Wrote {counted(len(written), 'session')} to {folder}.")
    return None if len(written) == len(ids) else 1


def _tell(context: CommandContext, files: dict[str, str], told: str) -> None:
    document = [{"session_id": id, "file": file} for id, file in files.items()]
    context.answer({"written": document}, lambda: context.line(told))


# --- import ---------------------------------------------------------------------------------------


class _Imported(msgspec.Struct, frozen=True):
    file: str
    session_id: str
    turn_count: int


def _import(
    context: CommandContext,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE", help="What was exported; - is standard input.", show_default=False
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--as", metavar="ID", help="The id that it is stored under.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Take the place of a session of that id.")
    ] = False,
) -> int | None:
    """Store sessions from files, each whole or not at all.

    What one of several files holds is stored whatever is wrong with another.
    """
    if name is not None and len(files) > 1:
        raise Usage("--as is for one file; several keep the ids that they have.")
    sessions: Sessions | None = None
    stored, failed = [], 0
    for file in context.progress(files, "Importing", len(files)):
        try:
            data = _read(file)
            sessions = context.sessions(write=True) if sessions is None else sessions
            ref = sessions.store(_conversation(sessions, data, file), name, overwrite=overwrite)
        except SessionExistsError as error:
            said = f"{str(error).split('. ')[0]}. --as gives it another id, --overwrite replaces it"
            context.note(f"{file}: {said}.")
        except (SessionError, OSError) as error:
            context.note(f"{file}: {told(error)}")
        else:
            stored.append(_Imported(file, ref.id, ref.stop - ref.first))
            continue
        failed += 1

    def show() -> None:
        for each in stored:
            context.line(f"Imported {each.session_id!r}: {counted(each.turn_count, 'turn')}.")

    document = [msgspec.structs.asdict(each) for each in stored]
    context.answer({"imported": document, "failed": failed}, show)
    return 1 if failed else None


def _read(file: str) -> bytes:
    """What is in a file, without what Windows puts around it."""
    if file != _PIPE:
        with open(file, "rb") as opened:
            data = opened.read(_LONGEST + 1)
    else:
        data = sys.stdin.buffer.read(_LONGEST + 1) if sys.stdin is not None else b""
    if len(data) > _LONGEST:
        raise FormatError(f"It has more than {_LONGEST:,} bytes. Expected an exported session.")
    if data.startswith(_UTF16):  # what PowerShell makes of a pipe
        return data.decode("utf-16", "replace").encode()
    return data.removeprefix(codecs.BOM_UTF8)


def _conversation(sessions: Sessions, data: bytes, file: str) -> Any:
    if not data.strip():
        raise FormatError(f"It is empty. Expected what `export ID {file}` writes.")
    return sessions.read(data)


# --- delete ---------------------------------------------------------------------------------------


def _delete(
    context: CommandContext,
    ids: Annotated[
        list[str],
        typer.Argument(metavar="ID", help="The sessions' ids.", show_default=False),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> int | None:
    """Delete sessions, and every turn of them that no other session shares."""
    sessions = context.sessions(write=context.place.exists)
    ids = list(dict.fromkeys(ids))
    infos = [sessions.info(session_id) for session_id in ids]  # all are there, or none is deleted
    turns = counted(sum(info.turn_count for info in infos), "turn")
    what = repr(ids[0]) if len(ids) == 1 else counted(len(ids), "session")
    if not yes and not confirmed(f"Delete {what} ({turns})?"):
        context.note("Nothing was deleted.")
        return 1
    deleted = [id for id in context.progress(ids, "Deleting", len(ids)) if sessions.delete(id)]
    context.answer({"deleted": deleted}, lambda: context.line(f"Deleted {what}."))
    return None
