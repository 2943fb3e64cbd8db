"""The command `dspy-session`: one line for an error, a number for how it ended.

`demo`, `--help` and `--version` need nothing beside this package; all else needs the extra `cli`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

__all__ = ["main"]

_EXTRA = ("typer", "rich", "platformdirs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Nothing is raised: an error is one line on standard error. With `DSPY_SESSION_DEBUG=1` in the
    environment, its traceback comes before it.

    Args:
        arguments: What follows the command's name; `sys.argv[1:]` if None.

    Returns:
        0 if all went well, 1 after an error, 2 if the arguments are wrong, 130 when interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from dspy_session.cli.ending import ended  # noqa: PLC0415  # Ctrl-C may come while it loads

        return ended(lambda: _run(given))
    except KeyboardInterrupt:
        return 130


def _run(given: list[str]) -> int:
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        from dspy_session.cli import bare  # noqa: PLC0415  # as above

        return bare.run(given, missing)
    from dspy_session.cli import app  # noqa: PLC0415  # needs the extra `cli`

    return app.run(given)
