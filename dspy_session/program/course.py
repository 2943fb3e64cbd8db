"""One turn on its way: prepared, the program run in the turn's context, what came of it."""

from __future__ import annotations

import contextlib
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Mapping
from typing import Any

import dspy
import msgspec
import pydantic
from dspy.utils.callback import BaseCallback

from dspy_session.core.copies import copy_fields
from dspy_session.core.data import EMPTY_DATA, Data, as_data
from dspy_session.core.options import Scope, SessionOptions
from dspy_session.core.profile import Instructions, as_instructions
from dspy_session.core.state import SessionState
from dspy_session.core.step import Step, prepare, refuse_history_field
from dspy_session.core.transitions import rewind
from dspy_session.core.turn import Attempt, Run, usage_pairs
from dspy_session.core.window import Exchange, Window
from dspy_session.core.writes import replace_data
from dspy_session.errors import CallError, HistoryError, OptionError
from dspy_session.program.adapter import wrap_adapter
from dspy_session.program.anatomy import has_foreign_code, has_inner_agents
from dspy_session.program.fingerprints import fingerprint
from dspy_session.program.flows import Call
from dspy_session.program.frame import FRAME_KEY, Draft, Frame, current_frame, running_copy
from dspy_session.program.nested import NestedStates, told_outside
from dspy_session.program.outcomes import Outcome, prediction_in, recorded_results
from dspy_session.program.own_adapters import (
    AdapterKeeper,
    WatchedCallbacks,
    held_adapters_wrapped,
)
from dspy_session.program.results import ResultWatch, recorded_inputs
from dspy_session.program.settings import CallSettings
from dspy_session.program.slot import history_slot
from dspy_session.program.tool_calls import ToolWatch
from dspy_session.program.tracing import trace_markers
from dspy_session.program.turn_data import TurnData

__all__ = ["Course", "Told", "new_id", "told_in"]

Told = Instructions | str | Callable[[SessionState], Instructions | str] | None
"""Instructions, as they may be given: also a function of the conversation."""


class Course:
    """One turn on its way to its outcome; middleware may have its program run more than once."""

    def __init__(
        self,
        program: dspy.Module,
        state: SessionState,
        inputs: Mapping[str, Any],
        options: SessionOptions,
        settings: CallSettings,
        at: int | None,
        owner: object | None,
        approver: Callable[..., Any] | None,
        trial: bool,
        inside: bool,
        records: bool,
        window: Window | None = None,
    ) -> None:
        self.slot = history_slot(program, options)
        if self.slot.field != options.history_field:
            options = msgspec.structs.replace(options, history_field=self.slot.field)
        self.program, self.state, self.options, self.settings = program, state, options, settings
        self.sees = state if at is None else rewind(state, at)
        self.owner, self.approver, self.trial = owner, approver, trial
        self.fields, self.given = _split_history(inputs, self.slot.field)
        self.step = self._prepared(self.fields, at, records)
        if window is not None:
            self.step = msgspec.structs.replace(self.step, window=window)
        self.twin = running_copy(program) if trial and self.given is None and not inside else None
        if self.twin is not None:  # what KNNFewShot returns runs a copy of itself: the same turn
            self.given = self.twin.passed
            self.step = msgspec.structs.replace(
                self.step, window=self.twin.window, explicit=self.twin.explicit
            )
        self.drafts: list[Draft] = []
        self.watched = False
        self.id, self._began, self._clock = new_id(), time.time(), time.perf_counter()

    def _prepared(self, fields: Mapping[str, Any], at: int | None, records: bool) -> Step:
        given, data, options = self.given, self.settings.data, self.options
        step = prepare(
            self.state,
            recorded_inputs(self.program, fields),
            options,
            None if given is None else given.messages,
            at,
            None if data is None else as_data(data, options.max_data_bytes),
        )
        return step if records else msgspec.structs.replace(step, records=False)

    def with_inputs(self, fields: Mapping[str, Any]) -> Step:
        """The turn with the inputs that the hooks leave it."""
        if fields is self.fields:
            return self.step
        inputs = copy_fields(recorded_inputs(self.program, fields), "inputs")
        refuse_history_field(inputs, self.options, "an input")
        return msgspec.structs.replace(self.step, inputs=inputs)

    def told(self, given: Told) -> Instructions | None:
        """What every predictor is told in this turn."""
        if self.twin is not None:
            return self.twin.instructions
        return told_in(self.sees, self.step.beside.data, self.program, self.options, given)

    # --- the program ------------------------------------------------------------------------------

    def run(
        self,
        step: Step,
        fields: Mapping[str, Any],
        data: TurnData,
        instructions: Instructions | None,
    ) -> Generator[Call, Any, Outcome]:
        """Run the program once."""
        twin = self.twin
        if twin is not None:  # KNNFewShot's bootstrapping runs copies too: the last one counts
            data = twin.data.again()
        arguments, passed = dict(fields), self._passed(step)
        if self.slot.parameter is not None:
            arguments[self.slot.parameter] = passed
        frame = self.frame(step, data, instructions, passed)
        self.drafts.append(frame.draft)
        tracker, id = dspy.settings.usage_tracker, self.id if step.records else None
        markers = trace_markers(frame, self.state.id, id)
        try:
            with (
                held_adapters_wrapped(self.program),
                dspy.context(**_surroundings(frame, self.watched, markers)),
            ):
                returned = yield Call(arguments)
        finally:
            frame.draft.hand_up(tracker)
            writes = data.end()
        if frame.draft.failure is not None:
            raise frame.draft.failure
        if twin is not None:
            twin.data.adopt(writes)
        went = self.went()
        prediction = prediction_in(returned)
        if (
            tracker is None
            and dspy.settings.track_usage
            and isinstance(prediction, dspy.Prediction)
        ):
            # DSPy does not, where a tracker is active already.
            prediction.set_lm_usage(frame.draft.get_total_tokens())
        outputs, details = recorded_results(prediction, frame)
        return Outcome(
            returned, step, outputs, details, went, self.options, frame.nested, frame, writes
        )

    def _passed(self, step: Step) -> dspy.History | None:
        """The history for the program's own `forward`, or the one that the caller passed."""
        passed = self.given if step.seed is None else step.window.history()  # a seed is filtered
        if self.slot.parameter is None:
            return passed
        passed = step.window.history() if passed is None else _fresh(passed)
        return _of_kind(passed, self.slot.kind)

    def frame(
        self,
        step: Step,
        data: TurnData,
        instructions: Instructions | None,
        passed: dspy.History | None = None,
    ) -> Frame:
        """Return a running turn."""
        settings, twin = self.settings, self.twin
        return Frame(
            program=self.program,
            options=self.options,
            window=step.window,
            draft=Draft(),
            nested=NestedStates(self.program, step.beside.states),
            owner=self.owner,
            passed=passed,
            explicit=step.explicit,
            given=frozenset(step.inputs),
            lm=settings.lm,
            config=settings.config,
            trial=self.trial,
            parent=current_frame(),
            data=data,
            instructions=instructions,
            request=self.request if twin is None else twin.request,
            approver=self.approver if twin is None else twin.approver,
            approvals=settings.approvals or frozenset(),
        )

    @property
    def request(self) -> Mapping[str, Any]:
        """What else came with the call."""
        return EMPTY_DATA if self.settings.request is None else self.settings.request

    def went(self) -> Run:
        """How the turn has gone so far, all runs of the program included."""
        drafts = self.drafts
        total = drafts[0] if len(drafts) == 1 else Draft.sum_of(drafts)
        return Run(
            id=self.id,
            time=self._began,
            duration=time.perf_counter() - self._clock,
            usage=usage_pairs(total.get_total_tokens()),
            cost=total.cost,
            fingerprint=fingerprint(self.program),
            request_id=self.settings.request_id,
            lm_calls=total.lm_calls,
            sent=total.sent,
        )

    def attempt(self, error: BaseException) -> Attempt:
        """What is kept of the turn if it ends by an error."""
        partial = self.drafts[-1].partial if self.drafts else {}
        if isinstance(error.__cause__, StopIteration):  # which no generator lets through
            error = error.__cause__
        return Attempt(
            exchange=Exchange(self.step.inputs, partial),
            window=self.step.window,
            run=self.went(),
            cancelled=not isinstance(error, Exception),
            error="".join(traceback.format_exception_only(error)).strip(),
        )


def new_id() -> str:
    """Return an id that no other turn or session has: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def _split_history(
    inputs: Mapping[str, Any], field: str
) -> tuple[dict[str, Any], dspy.History | None]:
    if not isinstance(inputs, Mapping):
        raise CallError(
            f"inputs must be a mapping from input names to values, not {type(inputs).__name__}."
        )
    fields = dict(inputs)
    if field not in fields:
        return fields, None
    history = fields.pop(field)
    if isinstance(history, dspy.History):
        return fields, history
    raise HistoryError(
        f"{field}= must be a dspy.History, not {type(history).__name__}; for example "
        f"{field}=dspy.History(messages=[...]). If {field!r} is an input of your program and not "
        'its history, choose another name for the latter: history_field="..."'
    )


def _fresh(history: dspy.History) -> dspy.History:
    """A copy of a caller's history for the program, which may add messages to it."""
    copied: dspy.History = history.model_copy(update={"messages": [*map(dict, history.messages)]})
    return copied


def _of_kind(history: dspy.History, kind: type[dspy.History]) -> dspy.History:
    """The history as the type that the program's `forward` asks for, if it can be."""
    if not isinstance(history, kind):
        with contextlib.suppress(pydantic.ValidationError):  # it needs more than messages
            return kind(messages=history.messages)
    return history


def _surroundings(frame: Frame, watched: bool, markers: list[BaseCallback]) -> dict[str, Any]:
    """The settings under which the program runs."""
    settings = dspy.settings
    overrides: dict[str, Any] = {
        FRAME_KEY: frame,
        "adapter": wrap_adapter(settings.adapter),
        "usage_tracker": frame.draft,
        "caller_modules": [*(settings.caller_modules or []), frame.draft],
    }
    if frame.lm is not None:
        overrides["lm"] = frame.lm
    callbacks = list(settings.callbacks)
    if markers:
        overrides["callbacks"] = callbacks = [*callbacks, *markers]
    if frame.options.scope is Scope.ALL or has_inner_agents(frame.program):
        overrides["callbacks"] = callbacks = [*callbacks, ResultWatch(frame)]
    if watched:
        draft = frame.draft
        watch = ToolWatch(draft.tool_calls.append, draft.unrun.__contains__)
        overrides["callbacks"] = callbacks = [*callbacks, watch]
    if has_foreign_code(frame.program):
        overrides["callbacks"] = WatchedCallbacks([*callbacks, AdapterKeeper()])
    return overrides


def told_in(
    state: SessionState, data: Data, program: dspy.Module, options: SessionOptions, given: Told
) -> Instructions | None:
    """Return what every predictor is told beside a conversation.

    Args:
        state: The conversation.
        data: The session data beside it.
        program: The program that it is held with.
        options: The session's options. A function of the state sees nothing that they keep private
            or redact.
        given: The instructions; None for those of the state.

    Raises:
        OptionError: They are none, or a function that returned none.
    """
    if not callable(given):
        return state.instructions if given is None else as_instructions(given)
    made = given(told_outside(replace_data(state, data), program, options))
    if not isinstance(made, str | Instructions):
        raise OptionError(
            "Instructions that are a function of the state must return text or Instructions, "
            f"not {type(made).__name__}."
        )
    return as_instructions(made)
