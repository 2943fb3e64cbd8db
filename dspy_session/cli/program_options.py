"""The options that say which program is meant and what answers, as several commands have them."""

from __future__ import annotations

from typing import Annotated, Final

import typer

__all__ = ["PROGRAM", "ApiBase", "ModelName", "Program", "Reasoning", "Scripted", "Temperature"]

PROGRAM: Final = "question -> answer"
"""The program if none is named."""

Program = Annotated[
    str,
    typer.Option(
        "--program",
        "-p",
        metavar="PROGRAM",
        help="A signature, such as 'question -> answer', or the name of a program to import: "
        "my_module:my_program.",
    ),
]
Reasoning = Annotated[
    bool,
    typer.Option(
        "--reasoning", help="Have a signature answered by dspy.ChainOfThought, not dspy.Predict."
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A model as DSPy names it, such as openai/gpt-4o-mini, for all calls. Without it: "
        "that of DSPY_SESSION_MODEL, or the program's own.",
    ),
]
Scripted = Annotated[
    bool, typer.Option("--scripted", help="No model: scripted answers, offline and without a key.")
]
ApiBase = Annotated[
    str | None,
    typer.Option(
        "--api-base", metavar="URL", help="The server of the model, if it is not the provider's."
    ),
]
Temperature = Annotated[
    float | None, typer.Option("--temperature", metavar="T", help="The temperature of the model.")
]
