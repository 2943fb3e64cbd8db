"""How the command ends: an exit status, and at most one line on standard error.

| Status | Meaning |
|---|---|
| 0 | all went well |
| 1 | something failed, or was found to be bad |
| 2 | the arguments are wrong |
| 130 | interrupted |
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final, TextIO

from dspy_session.errors import SecretError, SessionError
from dspy_session.pictures.values import harmless, unbroken

__all__ = ["DEBUG", "KEY", "PROGRAM", "Usage", "ended", "say", "told"]

PROGRAM: Final = "dspy-session"
DEBUG: Final = "DSPY_SESSION_DEBUG"
"""The variable of the environment that has tracebacks shown."""
KEY: Final = "DSPY_SESSION_KEY"
"""The variable of the environment with the keys of encrypted stores."""

_FAILED: Final = 1
_WRONG: Final = 2
_INTERRUPTED: Final = 130


_DO: Final = {
    errno.ENOENT: "Check the path.",
    errno.EACCES: "Check the permissions of the file and its folder.",
    errno.EPERM: "Check the permissions of the file and its folder.",
    errno.EISDIR: "Name a file in it.",
    errno.ENOTDIR: "Check the path.",
    errno.ENOSPC: "Make room and try again.",
    errno.EROFS: "Choose another place.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


class Usage(Exception):  # noqa: N818  # it is about the command line, not an error of the library
    """The arguments are wrong: exit status 2."""


def ended(work: Callable[[], int | None]) -> int:
    """Do some work of the command, and return how it ended; nothing is raised.

    Args:
        work: Does it, and returns the exit status; None is 0.
    """
    _survive_encodings()
    with _logged():
        try:
            status = work() or 0
            if sys.stdout is not None:
                sys.stdout.flush()
        except BaseException as error:  # noqa: BLE001  # what follows is the whole of its handling
            return _ended_by(error)
    return status


def say(text: str) -> None:
    """Write one line to standard error, whatever the text holds.

    Args:
        text: What to say.
    """
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # there is nobody left to tell
            print(f"{PROGRAM}: {unbroken(harmless(text))}", file=sys.stderr, flush=True)


def _ended_by(error: BaseException) -> int:
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):  # the reader (a pager, `head`) has seen enough
        _leave(sys.stdout)
        return _FAILED
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    if isinstance(error, SystemExit):
        if isinstance(error.code, str):
            say(error.code)
            return _FAILED
        return error.code or 0
    if isinstance(error, Usage):
        say(str(error))
        return _WRONG
    say(told(error))
    if isinstance(error, OSError):
        _leave(sys.stdout)  # what is left in its buffer, the interpreter would fail to write, too
    return _FAILED


def told(error: BaseException) -> str:
    """Return what an error says, and what to do.

    Args:
        error: The error.
    """
    if isinstance(error, SecretError):
        return (
            f"{error} The command line takes keys from {KEY}: the present one, then older ones, "
            "`none` among them for no encryption."
        )
    if isinstance(error, SessionError | ImportError):
        return str(error)
    if isinstance(error, OSError):
        named = "" if error.filename is None else f": {str(error.filename)!r}"
        said = f"{error.strerror}{named}." if error.strerror else str(error)
        return f"{said} {_DO.get(error.errno or 0, '')}".rstrip()
    said = unbroken(str(error))
    return (
        f"{type(error).__name__}{': ' if said else ''}{said} ({DEBUG}=1 shows where it came from)"
    )


def _survive_encodings() -> None:
    """Have characters that a terminal cannot show written out instead of raised."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            with contextlib.suppress(ValueError, OSError):
                reconfigure(errors="backslashreplace")


def _leave(stream: TextIO | None) -> None:
    """Send the rest of a stream nowhere, so that nothing fails when it is closed."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]  # None has no fileno
        os.close(nowhere)


class _Lines(logging.Handler):
    """What the library logs, one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    logger, handler = logging.getLogger("dspy_session"), _Lines(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
