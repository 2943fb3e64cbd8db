"""How a conversation reaches any DSPy program: a transparent adapter around the user's own.

For the duration of a turn `settings.adapter` is a `ConversationAdapter`. When a predictor of the
running program makes its call, the adapter adds a History field to the signature of *that call*,
supplies the messages, and delegates to the adapter inside. No module is patched, copied or changed,
so whatever an optimizer does to a predictor is what runs.

- *Pairs*: past turns that share an input and an output with the predictor's signature become
  user/assistant messages, byte for byte those of a program whose author had written the History
  field in. Two differences are on purpose: fields that a past turn does not have are left out
  instead of shown as `None`, and text that looks like DSPy's internal markers stays text.
- *Text*: where that does not fit, the conversation stands once, as readable text, in front of the
  current inputs.
- A turn never changes, so its messages are rendered once and reused (see `rendering.py`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, Final, final

import dspy
import msgspec

from dspy_session.core.window import View, Window
from dspy_session.program.call_signatures import with_history, with_instructions
from dspy_session.program.frame import current_frame, owning_frame
from dspy_session.program.listening import listening
from dspy_session.program.markers import marked_text
from dspy_session.program.own_history import added_messages, is_begun
from dspy_session.program.rendering import rendering_adapter, tells_history
from dspy_session.program.slot import declared_history
from dspy_session.program.stand_ins import StandIn
from dspy_session.program.transcripts import told_demos, transcript
from dspy_session.program.window_history import WindowHistory, only_output, window_history

__all__ = ["ConversationAdapter", "wrap_adapter"]

_TEXT_ONLY: Final = (dspy.TwoStepAdapter,)  # puts the bare repr of a History into the prompt

Shape = tuple[tuple[str, ...], tuple[str, ...]]


@final
class ConversationAdapter:
    """The user's adapter, with the running conversation added to the calls of its program.

    It passes for the adapter inside: `isinstance` and attributes are that adapter's. It holds
    nothing else, and reads the running turn from `dspy.context`, so one serves any number of turns.
    """

    __slots__ = ("_inner",)

    def __init__(self, inner: dspy.Adapter) -> None:
        object.__setattr__(self, "_inner", inner)

    @property  # type: ignore[misc]  # DSPy asks isinstance(adapter, ...) and derives from __class__
    def __class__(self) -> type:
        kind: Any = type(self._inner)
        return _derivable(kind)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_inner"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._inner, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return ConversationAdapter, (self._inner,)

    def __repr__(self) -> str:
        return f"ConversationAdapter({self._inner!r})"

    def __call__(
        self,
        lm: dspy.BaseLM,
        lm_kwargs: dict[str, Any],
        signature: type[dspy.Signature],
        demos: list[Any],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Make one LM call with the conversation in it; what DSPy calls."""
        call = _plan(self._inner, _Call(lm, lm_kwargs, signature, demos, inputs))
        if isinstance(call.lm, StandIn):
            return call.lm.answer(call)
        with listening(call.adapter, sync=True) as heard:
            answers: list[dict[str, Any]] = call.adapter(
                call.lm, call.lm_kwargs, call.signature, call.demos, call.inputs
            )
            heard(answers)
        return answers

    async def acall(
        self,
        lm: dspy.BaseLM,
        lm_kwargs: dict[str, Any],
        signature: type[dspy.Signature],
        demos: list[Any],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """As `__call__`, for async programs."""
        call = _plan(self._inner, _Call(lm, lm_kwargs, signature, demos, inputs))
        if isinstance(call.lm, StandIn):
            return call.lm.answer(call)
        with listening(call.adapter, sync=False) as heard:
            answers: list[dict[str, Any]] = await call.adapter.acall(
                call.lm, call.lm_kwargs, call.signature, call.demos, call.inputs
            )
            heard(answers)
        return answers

    def format_user_message_content(
        self, signature: type[dspy.Signature], inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """As the adapter inside; text with DSPy's own types in it remembers them.

        ReAct makes the text of its trajectory so, and gives it to its predictors as an input.
        """
        content = self._inner.format_user_message_content(signature, inputs, *args, **kwargs)
        return marked_text(content, inputs) if isinstance(content, str) else content


@functools.lru_cache(maxsize=64)
def _derivable(kind: type[Any]) -> type[Any]:
    """Return an adapter's class, such that a class derived from it can be made without arguments.

    Refine derives one, in order to delegate to the adapter that it found, and makes it so. For an
    adapter that needs arguments, that would fail in every attempt but the first.
    """
    try:
        inspect.signature(kind).bind()
    except TypeError:
        body = {"__init__": object.__init__, "__module__": kind.__module__}
        return type(kind.__name__, (kind,), {**body, "__qualname__": kind.__qualname__})
    except ValueError:  # a constructor that does not tell what it takes
        pass
    return kind


def wrap_adapter(adapter: dspy.Adapter | ConversationAdapter | None) -> ConversationAdapter:
    """Return the adapter that a turn runs under.

    Args:
        adapter: `settings.adapter`; None means DSPy's default, a ChatAdapter.
    """
    if type(adapter) is ConversationAdapter:
        return adapter
    return ConversationAdapter(dspy.ChatAdapter() if adapter is None else adapter)


class _Call(msgspec.Struct):
    """The arguments of one adapter call, and the adapter that is to make it."""

    lm: Any
    lm_kwargs: dict[str, Any]
    signature: type[dspy.Signature]
    demos: list[Any]
    inputs: dict[str, Any]
    adapter: Any = None


def _plan(inner: dspy.Adapter, call: _Call) -> _Call:
    """Return the call to make: with the conversation if it is the program's, else as it came."""
    call.adapter = inner
    caller = (dspy.settings.caller_modules or [None])[-1]
    frame = owning_frame(caller)
    _apply_settings(caller, call)
    if frame is None:
        return call
    if frame.draft.failure is not None:
        raise frame.draft.failure  # the turn is over, though its agent does not know it
    call.adapter = rendering_adapter(inner)
    call.signature = with_instructions(call.signature, frame.instructions)
    options = frame.options
    declared = declared_history(
        call.signature, options.history_field, options.strict_history_annotation
    )
    field = declared or options.history_field
    call.demos = told_demos(call.demos, field)
    given = call.inputs.get(declared) if declared else None
    if isinstance(given, WindowHistory):
        return call  # planned already, by an adapter around this one
    if declared and given is call.signature.input_fields[declared].default:
        given = None
    added = [] if given is None else added_messages(frame, given, field)
    if added is None:
        return call  # the program passes a history of its own; that one stands
    if frame.explicit and frame.passed is not None:
        # DSPy's trace holds this very dict: what optimizers replay becomes an input of the demo.
        call.inputs[field] = _traced(frame.passed, given, added)
    text_only = isinstance(inner, _TEXT_ONLY)
    as_pairs = not text_only and _fits(frame.window, call.signature)
    apart = bool(added) or is_begun(frame, given)  # it must stay a history, for what is added
    as_messages = as_pairs or (apart and not text_only and tells_history(inner))
    if not (as_messages or added or frame.window):  # no field to say that there is nothing
        call.signature = call.signature.delete(field) if declared else call.signature
        return call
    supplied: Any
    if as_messages:
        supplied = window_history(frame.window, call.signature, call.inputs, frame.given, field)
        supplied.added, supplied.as_text = list(added), not as_pairs
    else:
        supplied = transcript(frame.window, added)
    call.signature = with_history(call.signature, field, declared is not None, as_messages)
    call.inputs = {**call.inputs, field: supplied}
    return call


def _traced(passed: dspy.History, given: Any, added: list[dict[str, Any]]) -> dspy.History:
    """The history that the trace shows: the caller's, with what the program added up to now."""
    if not added:
        return passed
    return dspy.History(messages=[*passed.messages, *(() if given is passed else added)])


def _apply_settings(caller: Any, call: _Call) -> None:
    """Bring the LM settings of the running turns to this call, and their LM to their predictors.

    Copies of predictors (BestOfN's attempts) keep the LM that they were given.
    """
    frame, lm = current_frame(), None
    config: dict[str, Any] = {}
    while frame is not None:
        config = {**frame.config, **config}
        for_all = isinstance(frame.lm, StandIn)  # nobody's own LM is called in its place
        if for_all or (lm is None and any(caller is one for one in frame.owned(caller))):
            lm = frame.lm
        frame = frame.parent
    if lm is not None:
        call.lm = lm
    if config:
        call.lm_kwargs = {**call.lm_kwargs, **config, **_own_rollout(call.lm, config)}


def _own_rollout(lm: Any, config: Mapping[str, Any]) -> dict[str, int]:
    """Keep attempts apart that DSPy tells apart by the rollout id of their LM, counted from 0."""
    given, own = config.get("rollout_id"), getattr(lm, "kwargs", {}).get("rollout_id")
    if isinstance(given, int) and isinstance(own, int):
        return {"rollout_id": given + own}
    return {}


def _fits(window: Window, signature: type[dspy.Signature]) -> bool:
    """Whether every exchange of the window can be shown as a user/assistant pair."""
    shapes = {exchange.shape for exchange in window}
    return all(_shape_fits(shape, window.view, signature) for shape in shapes)


def _shape_fits(shape: Shape, view: View, signature: type[dspy.Signature]) -> bool:
    inputs, outputs = _shown(shape, view)
    fields = {*inputs, *outputs}
    if fields.isdisjoint(signature.input_fields):
        return False
    if not fields.isdisjoint(signature.output_fields):
        return True
    # A plain return is recorded as `output`: it is what the only output of a predictor said.
    # In the messages of a seed or of a given history, inputs and outputs stand side by side.
    plain_return = outputs == ["output"] if shape[0] else "output" in outputs
    return plain_return and only_output(signature) is not None


def _shown(shape: Shape, view: View) -> tuple[list[str], list[str]]:
    inputs, outputs = shape
    return (
        [n for n in inputs if n not in view.exclude and (view.inputs is None or n in view.inputs)],
        [n for n in outputs if n not in view.exclude],
    )
