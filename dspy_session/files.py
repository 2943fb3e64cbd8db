"""Conversations in files: written whole or not at all, and read with the file's name in complaints.

Rules:

- Writing goes to a new file beside the old one, which then takes its place: after a crash there is
  the old file or the new one, never half of one, and a failed write leaves nothing behind.
- A file keeps its permissions when it is written again, and a link keeps pointing where it did.

This module knows where bytes are kept, not what they mean: that is the wire format's business.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from codecs import BOM_UTF8
from pathlib import Path

from dspy_session import codec
from dspy_session.core.options import SessionOptions
from dspy_session.core.state import SessionState
from dspy_session.core.values import REGISTERED, ValueCodecs
from dspy_session.errors import FormatError

__all__ = [
    "AnyPath",
    "is_conversation_file",
    "read_conversation",
    "write_conversation",
    "write_whole",
]

AnyPath = str | os.PathLike[str]


def write_conversation(
    path: AnyPath,
    state: SessionState,
    options: SessionOptions,
    codecs: ValueCodecs = REGISTERED,
) -> None:
    """Write a conversation and its options to a JSON file.

    Args:
        path: The file; the folder must exist.
        state: The conversation.
        options: The session's options.
        codecs: Writes values of types beyond plain data.

    Raises:
        ValueCodecError: A field holds a value of a type without written form; nothing is written.
        OSError: The file cannot be written; what was there before is untouched.
    """
    data = codec.encode(state, options, codecs=codecs)
    write_whole(path, data, ", or pass save_program=True to write the whole program there")


def write_whole(path: AnyPath, data: bytes, otherwise: str = "") -> None:
    """Write a file whole or not at all.

    Args:
        path: The file; the folder must exist.
        data: What it is to hold.
        otherwise: What else to do if `path` is a folder, for the error.

    Raises:
        OSError: The file cannot be written; what was there before is untouched.
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"Cannot save to {os.fspath(path)!r}: there is no folder {str(target.parent)!r}. "
            "Make it first, or choose another path."
        )
    if target.is_dir():
        raise IsADirectoryError(
            f"Cannot save to {os.fspath(path)!r}: it is a folder. Name a file in it{otherwise}."
        )
    _replace(target, data)


def read_conversation(
    path: AnyPath, codecs: ValueCodecs = REGISTERED
) -> tuple[SessionState, SessionOptions]:
    """Return the conversation and the options that a file holds.

    Args:
        path: A file that `write_conversation` wrote, or the published dspy-session 0.1.
        codecs: Reads values of types beyond plain data.

    Raises:
        FormatError: The file is corrupt, truncated, from the future or of another kind.
        OSError: The file cannot be read.
    """
    if not isinstance(path, str | os.PathLike):
        raise FormatError(
            f"Expected the path of a saved conversation, or its dict, not {type(path).__name__}."
        )
    try:
        data = Path(path).read_bytes().removeprefix(BOM_UTF8)  # some editors put it there
        return codec.decode(data, codecs=codecs)
    except FormatError as error:
        raise FormatError(f"Cannot load {os.fspath(path)!r}. {error}") from error


def is_conversation_file(path: AnyPath) -> bool:
    """Whether a file looks like a saved conversation; False for what cannot be read.

    Args:
        path: Any path.
    """
    try:
        return codec.is_conversation(json.loads(Path(path).read_bytes()))
    except (OSError, ValueError, RecursionError):
        return False


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
