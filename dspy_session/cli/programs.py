"""From the words of a command line to a DSPy program, and to functions of the user's.

Nothing that somebody wrote on the command line is evaluated: a program is a signature, which DSPy
parses, or the name of something that can be imported.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import dspy

from dspy_session.cli.ending import Usage
from dspy_session.cli.program_errors import first_paragraph
from dspy_session.errors import OptionError
from dspy_session.program.anatomy import predictors
from dspy_session.session import Session

__all__ = ["load_function", "load_program"]

_NAMES: Final = "Expected names of inputs and of outputs, such as 'question, limit: int -> answer'."


def load_program(text: str, *, reasoning: bool = False) -> dspy.Module:
    """Return the program that is meant.

    Args:
        text: A signature (`"question -> answer"`), which a `dspy.Predict` answers; or the name of
            something to import, `module:name`: a program, a class of programs that needs no
            arguments, a function that returns a program, or a signature. The current folder is
            looked into, too.
        reasoning: Whether a `dspy.ChainOfThought` answers a signature.

    Raises:
        Usage: The text means none of these.
        OptionError: The module could not be imported, or the program could not be made.

    Example:
        >>> type(load_program("question -> answer", reasoning=True)).__name__
        'ChainOfThought'
    """
    kind = dspy.ChainOfThought if reasoning else dspy.Predict
    if "->" in text:
        return _answering(kind, text, f"The signature {text!r}")
    if ":" not in text:
        hint = ""
        if text.endswith(".py"):
            hint = f" Modules are named without .py: {text.removesuffix('.py')}:name."
        raise Usage(
            "A program is a signature, such as 'question -> answer', or the name of one to import, "
            f"such as my_module:my_program, not {text!r}.{hint}"
        )
    found = _imported(text, "program")
    if isinstance(found, type) and issubclass(found, dspy.Signature):
        return _answering(kind, found, f"The signature {text}")
    if not isinstance(found, dspy.Module) and callable(found):
        found = _made(found, text)
    if isinstance(found, Session):
        return found.module
    if isinstance(found, dspy.Module):
        return found
    raise Usage(
        f"Expected {text} to be a dspy.Module, a class of modules, or a function that returns one; "
        f"it is {_article(type(found).__name__)}."
    )


def _answering(kind: Callable[[Any], dspy.Module], signature: Any, what: str) -> dspy.Module:
    try:
        program = kind(signature)
    except Exception as error:
        raise Usage(f"{what} cannot be read: {first_paragraph(error)}. {_NAMES}") from error
    for _, predictor in predictors(program):
        if not predictor.signature.input_fields or not predictor.signature.output_fields:
            raise Usage(f"{what} has no inputs or no outputs. {_NAMES}")
    return program


def _made(maker: Callable[[], Any], text: str) -> Any:
    """What a class or a function makes, without arguments."""
    called: Any = maker
    if isinstance(maker, type):  # DSPy's metaclass says nothing of its arguments
        called = partial(maker.__init__, None)  # type: ignore[misc]  # it is only looked at
    with contextlib.suppress(TypeError, ValueError):  # some callables have no signature
        needed = [
            name
            for name, parameter in inspect.signature(called).parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        if needed:
            raise Usage(
                f"{text} takes arguments ({', '.join(needed)}), which the command line cannot "
                "give. Name a function without any, that returns the program."
            )
    try:
        return maker()
    except Exception as error:
        raise OptionError(
            f"Making a program with {text} failed: {first_paragraph(error)}"
        ) from error


def load_function(text: str, what: str) -> Callable[..., Any]:
    """Return the function that is meant.

    Args:
        text: Its name, `module:name`.
        what: What it is to be, for the message.

    Raises:
        Usage: There is none of that name.
        OptionError: The module could not be imported.

    Example:
        >>> load_function("math:hypot", "metric")(3, 4)
        5.0
    """
    found = _imported(text, what)
    if not callable(found):
        raise Usage(f"Expected {text} to be a function; it is {_article(type(found).__name__)}.")
    return found  # type: ignore[no-any-return]  # whatever it returns is looked at where it does


def _imported(text: str, what: str) -> Any:
    name, _, path = text.partition(":")
    if not all(part.isidentifier() for part in (*name.split("."), *path.split("."))):
        raise Usage(
            f"A {what} to import is named module:name, such as my_module:{what}; {text!r} is not."
        )
    found = _module(name)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            public = [each for each in vars(found) if not each.startswith("_")]
            near = difflib.get_close_matches(part, public, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise Usage(
                f"There is no {part!r} in {text.removesuffix(part).rstrip('.:')}.{hint}"
            ) from None
    return found


def _module(name: str) -> Any:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise OptionError(f"Importing {name} failed: {first_paragraph(error)}") from error
        raise Usage(
            f"There is no module {error.name!r}, neither installed nor in the current folder."
        ) from None
    except (Exception, SystemExit) as error:
        raise OptionError(f"Importing {name} failed: {first_paragraph(error)}") from error


def _article(name: str) -> str:
    return f"an {name}" if name[:1] in "aeiouAEIOU" else f"a {name}"
