"""What is given on the command line: ids, metadata to look for, answers to questions."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from dspy_session.cli.ending import Usage

__all__ = ["SessionId", "WhereOption", "confirmed", "named_values"]

SessionId = Annotated[
    str, typer.Argument(metavar="ID", help="The session's id.", show_default=False)
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="KEY=VALUE",
        help="Only sessions with this in their metadata: a JSON value, or text; or a list that "
        "holds it. May be given more than once.",
    ),
]


def named_values(given: Iterable[str] | None, option: str) -> dict[str, Any]:
    """Return values by name: of each, JSON if it is some, and text otherwise.

    Args:
        given: Texts `name=value`.
        option: How the option is called, for the message.

    Raises:
        Usage: A text is something else.

    Example:
        >>> named_values(["plan=free", "days=3"], "--where")
        {'plan': 'free', 'days': 3}
    """
    values = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise Usage(f"{option} takes KEY=VALUE, not {text!r}.")
        values[name] = _json_or_text(value)
    return values


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value, parse_constant=_refused)
    except (ValueError, RecursionError):
        return value


def _refused(name: str) -> Any:
    raise ValueError(name)  # NaN is no JSON


def confirmed(question: str) -> bool:
    """Return whether somebody says yes.

    Args:
        question: What is asked, on standard error.

    Raises:
        Usage: There is nobody to ask.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise Usage(f"{question} Nobody can be asked here: say --yes.")
    return bool(typer.confirm(question, err=True))
