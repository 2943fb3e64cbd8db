"""The command `chat`: talk to a program, in a session that is kept."""

from __future__ import annotations

from typing import Annotated

import typer

from dspy_session.cli.context import CommandContext, command
from dspy_session.cli.given import named_values
from dspy_session.cli.program_options import (
    PROGRAM,
    ApiBase,
    ModelName,
    Program,
    Reasoning,
    Scripted,
    Temperature,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the app.

    Args:
        app: The app.
    """
    command(app, "chat")(_chat)


def _chat(
    context: CommandContext,
    session: Annotated[
        str,
        typer.Option("--session", "-s", metavar="ID", help="The session; made if there is none."),
    ] = "chat",
    program: Program = PROGRAM,
    reasoning: Reasoning = False,
    model: ModelName = None,
    scripted: Scripted = False,
    api_base: ApiBase = None,
    temperature: Temperature = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            metavar="NAME=VALUE",
            help="An input that is the same in every turn. May be repeated.",
        ),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream/--no-stream",
            help="Show the answer as it arrives, or whole. Whole, DSPy asks again in another "
            "format where a model did not keep to one.",
        ),
    ] = True,
) -> int:
    """Talk to a program, in a session that is kept.

    Each line is a turn, recorded when its answer is complete. Lines that begin with a slash are
    commands: /help shows them. From a pipe, each line is a turn, too; with --json, each answer is a
    line of JSON.
    """
    # DSPy loads slowly, and --help needs none.
    from dspy_session.cli import chat_loop, program_models, programs  # noqa: PLC0415

    loaded = programs.load_program(program, reasoning=reasoning)
    chosen = program_models.choose_model(
        [loaded],
        model,
        scripted=scripted,
        api_base=api_base,
        temperature=temperature,
        cache=False,  # who takes a question back and asks again wants another answer
    )
    fixed = named_values(given, "--input")
    chat = chat_loop.open_chat(context, session, loaded, chosen, fixed, whole=not stream)
    with program_models.quiet_models(chat.note):
        return chat.run()
