r"""What each command works with: the store that was chosen, and where to write what it has to say.

A module of commands has a function `register`, which `dspy_session.cli.app` calls:

    def register(app: typer.Typer) -> None:
        command(app, "count")(_count)

    def _count(
        context: CommandContext,                     # first, always
        having: Annotated[str | None, typer.Option(help="...")] = None,
    ) -> int | None:                                 # the exit status; None is 0
        '''Count the sessions.'''                    # the help

        sessions = context.sessions()                # what is stored; no DSPy, no program
        count = sessions.count_sessions()
        context.answer({"count": count}, lambda: context.line(f"{count} sessions"))
        return None

Every command so registered has `--store` and `--json`, before the command's name or after it. What
it raises becomes one line on standard error (`dspy_session.cli.ending`).

- To look: `sessions()`. Where there is no store yet, it is empty, and none is made.
- To change: `sessions(write=True)`. With a program: `open_manager(program)`.
- The answer of a command goes to standard output, through `answer` (or `line`, `table`, `lines`,
  `said`). Everything else goes to standard error: `note`, `progress`.
- With `--json`, standard output has one JSON document, and nothing else: `answer` sees to it.
- Whatever was stored may hold escape sequences. `line`, `table`, `lines`, `said` and `note` write
  them out; pass text to `out` and `err` themselves only through `harmless`.
- Modules of commands are imported for `--help`: import DSPy, SQLAlchemy and the like in functions.
"""

from __future__ import annotations

import contextlib
import inspect
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import typer

from dspy_session.cli.output import Output
from dspy_session.cli.places import Place, keys, place_of, seal
from dspy_session.cli.sessions import Sessions
from dspy_session.cli.untyped import UntypedCodecs
from dspy_session.pictures.values import unbroken

if TYPE_CHECKING:
    import dspy

    from dspy_session.manager import SessionManager

__all__ = ["Chosen", "CommandContext", "JsonOption", "StoreOption", "command"]

_STORE_HELP: Final = (
    "The store: a URL such as sqlite:///chats.db or postgresql://..., or the path of a SQLite "
    "file. Without it, a file in the data folder of the platform."
)

StoreOption = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help=_STORE_HELP, envvar="DSPY_SESSION_STORE"),
]
"""As it stands before the command's name; what comes after that does not look at the variable."""
_StoreOption = Annotated[str | None, typer.Option("--store", metavar="URL", help=_STORE_HELP)]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", metavar="", help="Write one JSON document to standard output, for scripts."
    ),
]


class Chosen(typing.NamedTuple):
    """What was chosen before the command's name."""

    store: str | None
    json: bool


class CommandContext(Output):
    """What a command works with; see the module.

    Args:
        place: Where the store is.
        as_json: Whether the answer is to be JSON.

    Attributes:
        place: Where the store is.
    """

    def __init__(self, place: Place, as_json: bool = False) -> None:
        super().__init__(as_json)
        self.place = place
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    # --- the store --------------------------------------------------------------------------------

    def sessions(self, *, write: bool = False) -> Sessions:
        """Return what is stored, for commands that need no program and no model.

        Args:
            write: Whether the command stores, changes or deletes something.

        Raises:
            Usage: The URL is none.
            StoreError: The store cannot be opened.
            OptionError: The key is none.
            OSError: The folder cannot be made.
        """
        if not write and not self.place.exists:
            self.note(f"Nothing is stored at {self.place.url} yet.")
        store = self.place.opened(write=write)
        self._closing.callback(store.close)
        return Sessions(store, seal())

    def open_manager(
        self, program: dspy.Module | None = None, *, write: bool = True, **keywords: Any
    ) -> SessionManager:
        """Return a manager of the store; it loads DSPy. It is closed with the command.

        Args:
            program: The program of its sessions. None for a stand-in that nobody calls: it reads
                and writes values of whatever type, those that it does not know as they are stored.
            write: As for `sessions`.
            **keywords: As for `SessionManager`.

        Raises:
            SessionError: As from `sessions` and from `SessionManager`.
            OSError: As from `sessions`.
        """
        import dspy  # noqa: PLC0415  # it loads slowly

        from dspy_session.manager import SessionManager  # noqa: PLC0415  # so does this

        key, older = keys()
        given = dspy.Predict("question -> answer") if program is None else program
        store = self.place.opened(write=write)
        self._closing.callback(store.close)
        manager = SessionManager(given, store, key=key, old_keys=older, **keywords)
        if program is None:
            manager._archive.codecs = UntypedCodecs(manager._archive.codecs)
        return manager


def command(
    app: typer.Typer, name: str, **settings: Any
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Register a command, with `--store` and `--json`.

    Args:
        app: The app.
        name: The command's name.
        **settings: As for `typer.Typer.command`.

    Returns:
        What takes the command: a function whose first parameter is a `CommandContext`, the others
        as Typer wants them.
    """

    def registered(function: Callable[..., int | None]) -> Callable[..., int | None]:
        hints = typing.get_type_hints(function, include_extras=True)
        _, *own = inspect.signature(function).parameters.values()

        def run(
            ctx: typer.Context, store_url: str | None = None, as_json: bool = False, **given: Any
        ) -> int | None:
            before = ctx.obj if isinstance(ctx.obj, Chosen) else Chosen(None, False)
            place = place_of(before.store if store_url is None else store_url)
            with CommandContext(place, as_json or before.json) as context:
                return function(context, **given)

        keyword = inspect.Parameter.KEYWORD_ONLY
        shared: dict[str, tuple[Any, Any]] = {
            "store_url": (_StoreOption, None),
            "as_json": (JsonOption, False),
        }
        parameters = [
            inspect.Parameter("ctx", keyword, annotation=typer.Context),
            *(one.replace(kind=keyword, annotation=_flag(hints[one.name])) for one in own),
            *(
                inspect.Parameter(name, keyword, annotation=annotation, default=default)
                for name, (annotation, default) in shared.items()
            ),
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # as functools.wraps does
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        run.__doc__ = _unwrapped(function)
        app.command(name, **settings)(run)
        return function

    return registered


def _flag(annotation: Any) -> Any:
    """A parameter's annotation; the help shows no type for one that takes no value."""
    for option in getattr(annotation, "__metadata__", ()):
        if annotation.__origin__ is bool and option.metavar is None:
            option.metavar = ""
    return annotation


def _unwrapped(function: Callable[..., object]) -> str:
    """A docstring with one line a paragraph, for a terminal of any width."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(map(unbroken, paragraphs))
