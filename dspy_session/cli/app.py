"""The commands, and what they have in common before their names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from dspy_session.cli import bare, chat, checking, keeping, learning, listing, showing
from dspy_session.cli.context import Chosen, JsonOption, StoreOption
from dspy_session.cli.ending import PROGRAM, Usage

__all__ = ["PANELS", "application", "run"]

PANELS: Final = {
    "Converse": [chat],
    "Look": [listing, showing],
    "Keep": [keeping, checking],
    "Learn": [learning],
}
"""The modules of commands, as the help groups them."""

_USAGE: Any = typer.BadParameter.__base__  # Typer's own error of wrong arguments has no public name


def application() -> typer.Typer:
    """Return the app, with all commands."""
    app = typer.Typer(
        name=PROGRAM,
        help=f"{bare.SUMMARY}\n\nBegin with: {PROGRAM} demo",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_before)
    app.command("demo", help=bare.DEMO_HELP, short_help=_sentence(bare.DEMO_SUMMARY))(_demo)
    for panel, modules in PANELS.items():
        for module in modules:
            module.register(app)
        for each in app.registered_commands:
            each.rich_help_panel = each.rich_help_panel or panel
    return app


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def run(arguments: Sequence[str]) -> int:
    """Run a command.

    Args:
        arguments: What follows the command's name.

    Returns:
        The exit status.

    Raises:
        Usage: The arguments are wrong.
        KeyboardInterrupt: Somebody interrupted a question.
    """
    if not os.environ.get("COLUMNS", "80").strip("0"):  # how a terminal says that it does not know
        del os.environ["COLUMNS"]  # rich believes it, and writes nothing
    try:
        status = application()(args=list(arguments), prog_name=PROGRAM, standalone_mode=False)
    except _USAGE as error:
        raise Usage(_complaint(error)) from error
    except typer.Abort:
        raise KeyboardInterrupt from None
    return status if isinstance(status, int) else 0


def _complaint(error: Any) -> str:
    said = str(error.format_message())
    said = said.rstrip(".") + "." * (not said.endswith("?"))
    path = error.ctx.command_path if error.ctx is not None else PROGRAM
    dash = " An id that begins with a dash comes after `--`." if "No such option" in said else ""
    return f"{said}{dash} `{path} --help` shows what there is."


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(bare.version())
        raise typer.Exit


def _before(
    ctx: typer.Context,
    store: StoreOption = None,
    as_json: JsonOption = False,
    _: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", help="Show the version.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    ctx.obj = Chosen(store, as_json)
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def _demo(
    max_turns: Annotated[
        int | None, typer.Option(min=0, metavar="N", help=bare.MAX_TURNS_HELP)
    ] = None,
) -> int:
    return bare.run_demo(max_turns)
