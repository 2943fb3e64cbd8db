"""Which model answers: one that is named, the program's own, or a scripted one."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import dspy
import msgspec

from dspy_session.cli.ending import Usage, say
from dspy_session.cli.program_errors import (
    EXAMPLE,
    MODEL,
    NO_MODEL,
    first_paragraph,
    one_paragraph,
)
from dspy_session.demo import UNKNOWN, answer_from_prompt
from dspy_session.pictures.values import unbroken
from dspy_session.program.anatomy import has_foreign_code, predictors
from dspy_session.testing import Prompt, ScriptedLM, requested_fields

__all__ = ["Model", "choose_model", "quiet_models", "scripted_reply"]

_PRICES: Final = "dspy.clients.model_metadata"
"""What of DSPy fetches the prices of models."""


class Model(msgspec.Struct, frozen=True):
    """What answers.

    Attributes:
        lm: The LM of every call; None for what the program has, or configured when it was imported.
        name: What to call it.
    """

    lm: Any
    name: str


def choose_model(
    programs: Iterable[dspy.Module],
    name: str | None = None,
    *,
    scripted: bool = False,
    api_base: str | None = None,
    temperature: float | None = None,
    cache: bool = True,
) -> Model:
    """Return the model that programs are to be answered by.

    Args:
        programs: The programs. Without anything else, they must have models, or have configured one
            when they were imported.
        name: A model as DSPy names it, such as `"openai/gpt-4o-mini"`. None for that of the
            environment.
        scripted: Whether the answers are scripted, offline.
        api_base: The URL of the server, if it is not the provider's own.
        temperature: The LM's temperature, if it is not the provider's own.
        cache: Whether a named model may answer from DSPy's cache.

    Raises:
        Usage: There is no model, or two, or none that DSPy can have.
    """
    if scripted:
        if name is not None:
            raise Usage("Give either --model or --scripted.")
        return Model(ScriptedLM(scripted_reply), "scripted")
    name = name if name is not None else os.environ.get(MODEL) or None
    settings = {"api_base": api_base, "temperature": temperature}
    given: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    if name is None:
        if given:
            raise Usage(
                f"--{next(iter(given)).replace('_', '-')} is for a model: give --model, too."
            )
        return _models_of(programs)
    if api_base is not None and "://" not in api_base:
        raise Usage(f"--api-base takes a URL, such as http://localhost:8000/v1, not {api_base!r}.")
    try:
        return Model(dspy.LM(name, cache=cache, **given), name)
    except Exception as error:
        raise Usage(
            f"{name!r} is no model: {first_paragraph(error)}. Expected one such as {EXAMPLE}."
        ) from error


def _models_of(programs: Iterable[dspy.Module]) -> Model:
    """What the programs have of themselves; code of the user's may choose one when it runs."""
    configured, given = dspy.settings.lm, list(programs)
    every = [predictor.lm for program in given for _, predictor in predictors(program)]
    if configured is None and (not every or None in every):
        if not any(map(has_foreign_code, given)):
            raise Usage(NO_MODEL)
        return Model(None, "The program's own model")
    names = dict.fromkeys(
        str(getattr(lm or configured, "model", "a model")) for lm in every or [configured]
    )
    return Model(None, ", ".join(names))


@contextlib.contextmanager
def quiet_models(tell: Callable[[str], None] = say) -> Iterator[None]:
    """Have DSPy's warnings told in one line each, in place of log lines amid an answer.

    That prices cannot be fetched is not told, by DSPy or by LiteLLM: they have a list of their own.

    Args:
        tell: What shows a warning.
    """
    dspys, lite = logging.getLogger("dspy"), logging.getLogger("LiteLLM")
    before, handlers = lite.level, dspys.handlers[:]
    files = [one for one in handlers if type(one) is not logging.StreamHandler]
    lite.setLevel(logging.CRITICAL)
    dspys.handlers[:] = [*files, _Told(tell)]
    try:
        yield
    finally:
        lite.setLevel(before)
        dspys.handlers[:] = handlers


class _Told(logging.Handler):
    """Tells the warnings of DSPy."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell
        self.addFilter(lambda record: not record.name.startswith(_PRICES))

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(one_paragraph(record.getMessage()))


def scripted_reply(prompt: Prompt) -> dict[str, Any]:
    """Answer without a model: what the demo knows, or what was said; for trying things out.

    Args:
        prompt: The messages that DSPy sends.

    Returns:
        A text for each output that the prompt asks for.
    """
    words = UNKNOWN
    with contextlib.suppress(ValueError):  # nothing in it is called a question
        words = answer_from_prompt(prompt)["answer"]
    if words == UNKNOWN:
        said = _first_value(prompt[-1]["content"].partition("\n\nRespond with")[0])
        words = f"You said: {said} (I am scripted, and was sent {len(prompt)} messages.)"
    return dict.fromkeys(requested_fields(prompt), words)


def _first_value(message: str) -> str:
    """The first field in a message of DSPy's chat adapter, as one line."""
    lines = message.split("[[ ## ")[1:2] or [message]
    return unbroken(lines[0].partition("]]")[2] or lines[0])
