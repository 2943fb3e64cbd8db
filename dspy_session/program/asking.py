"""Questions about a conversation, answered as a value of any type that DSPy can produce.

A question is a `dspy.Predict` on a signature made for it, which runs through the same flow as every
turn. Its fields have the names that a chat message has in the program, so that the conversation can
be shown to it as messages; to other programs' questions it is shown as readable text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import dspy
import msgspec
import pydantic

from dspy_session.core.chat import ChatFields
from dspy_session.core.options import SessionOptions
from dspy_session.core.turn import Turn
from dspy_session.core.values import to_plain
from dspy_session.errors import CallError, HookError, ValueCodecError
from dspy_session.program.anatomy import predictors
from dspy_session.program.run import Outcome, prediction_in
from dspy_session.program.types import program_codecs

__all__ = ["Question", "lm_of", "make_question"]

_TASK: Final = "Answer a question about the conversation so far."
_MOST_SIGNATURES: Final = 128


class Question(msgspec.Struct, frozen=True, eq=False):
    """A question that is about to be asked.

    Attributes:
        predictor: Answers it.
        inputs: What it is called with.
        answer: The name of the output that holds the answer.
        program: The program that the conversation is held with.
        plain: From the answer to plain data, which can be read without the type.
        typed: From either to the answer.
    """

    predictor: dspy.Predict
    inputs: dict[str, str]
    answer: str
    program: dspy.Module
    plain: Callable[[Any], Any]
    typed: Callable[[Any], Any]

    def answer_of(self, outcome: Outcome) -> Any:
        """Return the answer.

        Args:
            outcome: What asking left.

        Raises:
            HookError: A hook put something else in its place.
        """
        prediction = prediction_in(outcome.returned)
        if not isinstance(prediction, dspy.Example) or self.answer not in prediction:
            raise HookError(
                f"The answer to a question is the output {self.answer!r}, which a hook took away: "
                f"it left {prediction!r}."
            )
        return prediction[self.answer]

    def answer_in(self, turn: Turn) -> Any:
        """Return the answer that a turn has recorded.

        Args:
            turn: The turn that answered the same request.

        Raises:
            CallError: It holds no such answer: the request was another one.
        """
        try:
            return self.typed(turn.outputs[self.answer])
        except (LookupError, ValueError) as error:
            raise CallError(
                f"The request {turn.request_id!r} was answered by turn {turn.index}, which holds "
                "no such answer. Give each request an id of its own."
            ) from error

    def recordable(self, outcome: Outcome) -> Outcome:
        """Return an outcome whose answer can be written out with the conversation.

        Args:
            outcome: What asking left. An answer of a type that the program does not know, with
                which the conversation is to be read again, becomes plain data.
        """
        answer = self.answer_of(outcome)
        try:
            to_plain(answer, program_codecs(self.program))
        except ValueCodecError:
            answer = self.plain(answer)
        return msgspec.structs.replace(outcome, outputs={self.answer: answer})


def make_question(
    text: str, kind: Any, program: dspy.Module, options: SessionOptions, fields: ChatFields | None
) -> Question:
    """Return a question about the conversation with a program.

    Args:
        text: The question.
        kind: The type of the answer.
        program: The program. Its first predictor's LM answers, if it has one.
        options: The session's options.
        fields: Which input and output a chat message is; None if the program does not say.

    Raises:
        CallError: The question is no text, or `kind` no type that DSPy can produce.
    """
    if not isinstance(text, str) or not text.strip():
        raise CallError(
            'A question must be text, for example session.ask("What did we decide?"), '
            f"not {text!r}."
        )
    names = fields or _usual_fields(options)
    try:
        hash(kind)
    except TypeError:  # such as Annotated[...] with something in it that cannot be hashed
        signature, plain, typed = _asking(names, kind)
    else:
        signature, plain, typed = _known_asking(names, kind, repr(kind))
    predictor = dspy.Predict(signature)
    predictor.lm = lm_of(program)
    return Question(predictor, {names.user: text}, names.assistant, program, plain, typed)


def lm_of(program: dspy.Module) -> Any:
    """Return the LM of a program's first predictor; None if it goes by the configured one.

    Args:
        program: Any module.
    """
    return next((predictor.lm for _, predictor in predictors(program)), None)


def _usual_fields(options: SessionOptions) -> ChatFields:
    usual = ChatFields()
    if options.history_field in (usual.user, usual.assistant):
        return ChatFields(user=f"asked_{usual.user}", assistant=f"given_{usual.assistant}")
    return usual


# --- the signature of a question ------------------------------------------------------------------

_Asking = tuple[type[dspy.Signature], Callable[[Any], Any], Callable[[Any], Any]]


def _asking(names: ChatFields, kind: Any) -> _Asking:
    """The signature whose answer is of a type, how that is written as plain data, and read."""
    if kind is None or (isinstance(kind, type) and issubclass(kind, dspy.Signature | dspy.Module)):
        raise _no_kind(kind)
    try:
        adapter: Any = pydantic.TypeAdapter(kind)
        adapter.json_schema()  # adapters put it into prompts
        fields = {
            names.user: (str, dspy.InputField()),
            names.assistant: (kind, dspy.OutputField()),
        }
        made = dspy.Signature(fields, _TASK)
    except Exception as error:  # a type may run any code of its author's here
        raise _no_kind(kind, f" ({error})") from error

    def plain(answer: Any) -> Any:
        return adapter.dump_python(answer, mode="json")

    return made, plain, adapter.validate_python


_known_asking: Final = functools.lru_cache(maxsize=_MOST_SIGNATURES)(
    lambda names, kind, _: _asking(names, kind)  # Literal["a", "b"] equals Literal["b", "a"]
)


def _no_kind(kind: Any, reason: str = "") -> CallError:
    shown = kind.__name__ if isinstance(kind, type) else repr(kind)
    return CallError(
        "The type of an answer must be one that DSPy can produce, such as str, int, list[str], "
        f"Literal[...], an enum or a pydantic model; {shown} is none{reason}."
    )
