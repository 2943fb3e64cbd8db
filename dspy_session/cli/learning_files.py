"""Stored sessions as files of training data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import dspy
import msgspec

from dspy_session.cli.context import CommandContext
from dspy_session.cli.ending import Usage
from dspy_session.errors import CallError, ValueCodecError
from dspy_session.files import write_whole
from dspy_session.pictures.figures import counted
from dspy_session.program.example_files import examples_jsonl
from dspy_session.program.examples import Metric
from dspy_session.program.preferences import PreferencePair, preferences_jsonl
from dspy_session.program.splitting import split
from dspy_session.program.turn_examples import lineage
from dspy_session.session import Session
from dspy_session.training import finetuning_jsonl, preference_pairs, sharegpt_jsonl

__all__ = ["Wanted", "write_files"]

_LINEAGE: Final = "lineage"
_STDOUT: Final = "-"
_PARTS: Final = ("train", "test")


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be written.

    Attributes:
        form: `"dspy"`, `"openai"`, `"sharegpt"` or `"preferences"`.
        output: The file; `-` for standard output.
        min_score: The least score of a turn; of a pair, that of the better answer.
        max_score: The highest score of a turn.
        split: Which fraction of the examples goes to the first of two files; None for one file.
        seed: Decides which conversations go where.
        by_content: Whether conversations that begin with the same words stay together.
        lineage: Whether an example says where it is from.
    """

    form: str
    output: str
    min_score: float | None = None
    max_score: float | None = None
    split: float | None = None
    seed: int = 0
    by_content: bool = True
    lineage: bool = False

    def check(self, as_json: bool) -> None:
        """Refuse what cannot be done together.

        Args:
            as_json: Whether standard output is to have one JSON document.

        Raises:
            Usage: It cannot.
        """
        if self.output == _STDOUT and self.split is not None:
            raise Usage("--split writes two files: say where, with --output FILE.")
        if self.output == _STDOUT and as_json:
            raise Usage("With --json, the examples go to a file: --output FILE.")
        if self.split is not None and not 0 < self.split < 1:
            raise Usage(f"--split takes a fraction between 0 and 1, not {self.split}.")
        if self.lineage and self.form != "dspy":
            raise Usage("--lineage is for --format dspy.")
        if self.max_score is not None and self.form == "preferences":
            raise Usage("--max-score is not for --format preferences.")

    def files(self) -> list[str]:
        """Return the files to write."""
        if self.split is None:
            return [self.output]
        path = Path(self.output)
        return [str(path.with_name(f"{path.stem}.{part}{path.suffix}")) for part in _PARTS]


def write_files(
    context: CommandContext, wanted: Wanted, sessions: Sequence[Session], metric: Metric | None
) -> None:
    """Write what is wanted, and say how much it is.

    Args:
        context: What the command works with.
        wanted: What.
        sessions: What it is made of.
        metric: Scores the turns first; None uses the scores that they carry.

    Raises:
        SessionError: The examples cannot be split, or a value cannot be written.
        OSError: A file cannot be written.
    """
    if metric is not None:
        for session in context.progress(sessions, "Scoring", total=len(sessions)):
            session.score(metric)
    made = _pairs(sessions, wanted) if wanted.form == "preferences" else _examples(sessions, wanted)
    parts = _parts(made, wanted)
    lines = [list(_lines(wanted, sessions, part)) for part in parts]
    for file, text in zip(wanted.files(), lines, strict=True):
        _write(context, file, text)
    if context.as_json:
        files = [
            {"file": file, "examples": len(part), "lines": len(text)}
            for file, part, text in zip(wanted.files(), parts, lines, strict=True)
        ]
        context.answer({"sessions": len(sessions), "files": files}, lambda: None)
        return
    for file, part in zip(wanted.files(), parts, strict=True):
        what = counted(len(part), "pair" if wanted.form == "preferences" else "example")
        target = "" if file == _STDOUT else f" -> {file}"
        context.note(f"{what} of {counted(len(sessions), 'session')}{target}")


def _examples(sessions: Sequence[Session], wanted: Wanted) -> list[Any]:
    """An example of each turn; one that forks share makes one."""
    highest = wanted.max_score
    made: dict[Any, dspy.Example] = {}
    for session in sessions:
        for example in session.to_examples(min_score=wanted.min_score):
            if highest is None or _at_most(highest, session, example):
                known = lineage(example)
                made.setdefault((known and known.turn_id) or id(example), example)
    return list(made.values())


def _at_most(highest: float, session: Session, example: dspy.Example) -> bool:
    known = lineage(example)
    score = None if known is None else session.state.turn(known.index).score
    return score is not None and score <= highest


def _pairs(sessions: Sequence[Session], wanted: Wanted) -> list[Any]:
    least = wanted.min_score
    pairs = preference_pairs(*sessions)
    return [pair for pair in pairs if least is None or pair.chosen_score >= least]


def _parts(made: list[Any], wanted: Wanted) -> list[list[Any]]:
    if wanted.split is None:
        return [made]
    examples = [_example_of(each) for each in made]
    by_id = {id(example): each for example, each in zip(examples, made, strict=True)}
    fractions = (wanted.split, 1 - wanted.split)
    try:
        parts = split(examples, fractions=fractions, seed=wanted.seed, by_content=wanted.by_content)
    except CallError as error:
        said = str(error).replace("pass by_content=False", "give --split-by turns")
        raise CallError(said) from error
    return [[by_id[id(example)] for example in part] for part in parts]


def _example_of(made: dspy.Example | PreferencePair) -> dspy.Example:
    return made.chosen if isinstance(made, PreferencePair) else made


def _lines(wanted: Wanted, sessions: Sequence[Session], part: list[Any]) -> Iterator[str]:
    if wanted.form == "preferences":
        return preferences_jsonl(part)
    if wanted.form == "openai":
        return finetuning_jsonl(*sessions, examples=part)
    if wanted.form == "sharegpt":
        return sharegpt_jsonl(*sessions, examples=part)
    return _dspy_lines(wanted, sessions, part)


def _dspy_lines(
    wanted: Wanted, sessions: Sequence[Session], part: Iterable[dspy.Example]
) -> Iterator[str]:
    program = sessions[0].module if sessions else None
    field = _LINEAGE if wanted.lineage else None
    try:
        yield from examples_jsonl(part, lineage_field=field, program=program)
    except ValueCodecError as error:
        raise ValueCodecError(f"{error} Name the program that has it: --program.") from error


def _write(context: CommandContext, file: str, lines: list[str]) -> None:
    text = "".join(lines)
    if file == _STDOUT:
        context.write(text)
    else:
        write_whole(file, text.encode())
