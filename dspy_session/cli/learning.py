"""The commands that learn from what is stored: `examples`, `replay`, `drift`."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from dspy_session.cli.context import CommandContext, command
from dspy_session.cli.given import WhereOption, named_values
from dspy_session.cli.program_options import (
    PROGRAM,
    ApiBase,
    ModelName,
    Program,
    Reasoning,
    Scripted,
    Temperature,
)

__all__ = ["Carry", "Format", "Together", "register"]

Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="The sessions; all if none is named."),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="MODULE:FUNCTION",
        help="A metric, as DSPy's are: metric(example, prediction, trace=None).",
    ),
]


class Format(enum.StrEnum):
    """What a file of examples is read by."""

    dspy = "dspy"
    openai = "openai"
    sharegpt = "sharegpt"
    preferences = "preferences"


class Together(enum.StrEnum):
    """What keeps conversations in one part of a split."""

    content = "content"
    turns = "turns"


class Carry(enum.StrEnum):
    """Whose answers the later turns of a replay see."""

    own = "own"
    recorded = "recorded"


def register(app: typer.Typer) -> None:
    """Add the commands to the app.

    Args:
        app: The app.
    """
    command(app, "examples")(_examples)
    command(app, "replay")(_replay)
    command(app, "drift")(_drift)


def _examples(
    context: CommandContext,
    ids: Ids = None,
    where: WhereOption = None,
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="FILE", help="The file; - for standard output."),
    ] = "-",
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="Examples for DSPy; chats to fine-tune with, as OpenAI or ShareGPT write them; or "
            "pairs of a better and a worse answer to the same.",
        ),
    ] = Format.dspy,
    min_score: Annotated[
        float | None,
        typer.Option(
            "--min-score", metavar="SCORE", help="Only turns that have this score at least."
        ),
    ] = None,
    max_score: Annotated[
        float | None,
        typer.Option(
            "--max-score", metavar="SCORE", help="Only turns that have this score at most."
        ),
    ] = None,
    metric: MetricName = None,
    split: Annotated[
        float | None,
        typer.Option(
            "--split",
            metavar="FRACTION",
            help="Write two files, FILE.train and FILE.test, the first with this fraction of the "
            "examples. No conversation is in both.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Decides which conversations go where.")
    ] = 0,
    together: Annotated[
        Together,
        typer.Option(
            "--split-by",
            help="What keeps conversations in one file: what they begin with, and turns that they "
            "share; or such turns alone.",
        ),
    ] = Together.content,
    lineage: Annotated[
        bool,
        typer.Option("--lineage", help="Say of each example, under `lineage`, where it is from."),
    ] = False,
    program: Annotated[
        str | None,
        typer.Option(
            "--program",
            "-p",
            metavar="PROGRAM",
            help="The program of the sessions; only for values of types of its own.",
        ),
    ] = None,
) -> None:
    """Write sessions as training data: a line of JSON per example.

    With a metric, the turns are scored first; the scores are not stored.
    """
    # DSPy loads slowly, and --help needs none.
    from dspy_session.cli import learning_files as files  # noqa: PLC0415
    from dspy_session.cli import learning_reading as reading  # noqa: PLC0415

    wanted = files.Wanted(
        form=format.value,
        output=output,
        min_score=min_score,
        max_score=max_score,
        split=split,
        seed=seed,
        by_content=together is Together.content,
        lineage=lineage,
    )
    wanted.check(context.as_json)
    metadata = named_values(where, "--where")
    judge = reading.metric_of(metric)
    sessions = reading.read_sessions(context, ids, metadata, reading.program_of(program))
    files.write_files(context, wanted, sessions, judge)


def _replay(
    context: CommandContext,
    ids: Ids = None,
    where: WhereOption = None,
    program: Program = PROGRAM,
    reasoning: Reasoning = False,
    model: ModelName = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="PROGRAM",
            help="Another program that is asked the same, to be compared with the first.",
        ),
    ] = None,
    against_model: Annotated[
        str | None,
        typer.Option(
            "--against-model",
            metavar="MODEL",
            help="The model of the other one; alone, the same program is asked under both models.",
        ),
    ] = None,
    scripted: Scripted = False,
    api_base: ApiBase = None,
    temperature: Temperature = None,
    metric: MetricName = None,
    carry: Annotated[
        Carry,
        typer.Option(
            "--carry",
            help="What later turns see of the past: the program's own answers, or the recorded.",
        ),
    ] = Carry.own,
    fresh: Annotated[bool, typer.Option("--fresh", help="No answer comes from a cache.")] = False,
    threads: Annotated[
        int, typer.Option("--threads", min=1, metavar="N", help="So many sessions at a time.")
    ] = 8,
    turns: Annotated[
        bool, typer.Option("--turns", help="Show each turn, what was recorded beside what came.")
    ] = False,
) -> int:
    """Ask a program what was asked in stored sessions, and say which answers are better.

    Nothing is recorded. With a metric, both sides are scored; the better one is named. Tools of the
    program run in earnest. The exit status is 1 if a turn failed.
    """
    # DSPy loads slowly, and --help needs none.
    from dspy_session.cli import learning_reading as reading  # noqa: PLC0415
    from dspy_session.cli import learning_replay as replaying  # noqa: PLC0415
    from dspy_session.cli import program_models  # noqa: PLC0415

    settings = {"scripted": scripted, "api_base": api_base, "temperature": temperature}
    sides = replaying.sides_of(
        (program, model), (against, against_model), settings, reasoning=reasoning
    )
    metadata, judge = named_values(where, "--where"), reading.metric_of(metric)
    sessions = reading.read_sessions(context, ids, metadata, sides[0].program)
    keywords = {"teacher_forced": carry is Carry.recorded, "fresh": fresh, "metric": judge}
    with program_models.quiet_models():
        reports = replaying.replay_sides(sides, sessions, threads, keywords)
    return replaying.show(context, reports, each=turns)


def _drift(
    context: CommandContext,
    baseline: Annotated[
        str, typer.Option("--baseline", "-b", metavar="FILE", help="The file of the prompts.")
    ],
    ids: Ids = None,
    where: WhereOption = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the file, instead of comparing with it.")
    ] = False,
    program: Program = PROGRAM,
    reasoning: Reasoning = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="A model whose abilities adapters ask for; it is not called.",
        ),
    ] = None,
) -> int:
    """Render the prompts of stored sessions anew, and show what differs from a file of them.

    No model is called. The exit status is 1 if something differs: for CI. Without ids, the sessions
    are those of the file; with --write, all.
    """
    # DSPy loads slowly, and --help needs none.
    from dspy_session.cli import learning_drift, program_models, programs  # noqa: PLC0415

    loaded = programs.load_program(program, reasoning=reasoning)
    lm = None if model is None else program_models.choose_model([loaded], model).lm
    metadata = named_values(where, "--where")
    with program_models.quiet_models():
        if write:
            return learning_drift.write_baseline(context, baseline, ids, metadata, loaded, lm)
        return learning_drift.compare(context, baseline, ids, metadata, loaded, lm)
