"""The prompts of a recorded turn, rendered anew: what each predictor would send, and no LM call.

The turn runs as it would in earnest, under the adapter that wraps the user's, on a copy of the
program whose agents have recorded tools. A `StandIn` answers.
"""

from __future__ import annotations

import traceback
from typing import Any

import dspy

from dspy_session.core.options import CopyMode, SessionOptions
from dspy_session.core.state import SessionState
from dspy_session.core.turn import Turn
from dspy_session.program.anatomy import copy_program, walk
from dspy_session.program.call_modes import async_call, sync_call, waited
from dspy_session.program.flows import adrive, drive
from dspy_session.program.frame import FRAME_KEY, current_frame
from dspy_session.program.nested import Nestable
from dspy_session.program.recorded_answers import (
    RecordedAnswers,
    UnrecordedError,
    redacted_fields,
    with_recorded_tools,
)
from dspy_session.program.run import Told, running
from dspy_session.program.settings import CallSettings
from dspy_session.program.stand_ins import NothingCalled, Sent, StandIn

__all__ = ["Prompter"]


class Prompter:
    """Renders the prompts of recorded turns.

    Args:
        program: The program; a copy of it runs.
        options: How the conversation is held. What they redact is redacted in the prompts, too.
        as_seen: Whether a turn sees what its recorded call saw, and not what the options show.
        adapter: The adapter; None for the active one.
        lm: The LM whose abilities adapters ask for; None for the active one. It is not called.
        instructions: What every predictor is told; None for what the conversation says.
    """

    def __init__(
        self,
        program: dspy.Module,
        options: SessionOptions,
        *,
        as_seen: bool,
        adapter: dspy.Adapter | None = None,
        lm: Any = None,
        instructions: Told = None,
    ) -> None:
        copied = copy_program(program, CopyMode.DEEP)
        self.program = with_recorded_tools(copied, _running_answers)
        self._options, self._as_seen = options, as_seen
        inside = [module._options for _, module in walk(program) if isinstance(module, Nestable)]
        self._redacted = frozenset().union(*(one.redact_fields for one in (options, *inside)))
        self._adapter, self._lm, self._instructions = adapter, lm, instructions

    def prompts_of(self, state: SessionState, turn: Turn) -> tuple[tuple[Sent, ...], str]:
        """Render the prompts of one turn.

        Args:
            state: The recorded conversation.
            turn: One of its turns.

        Returns:
            The prompts, and why there may be more that could not be rendered; empty if it ran to
            its end.
        """
        unknown: frozenset[str] = frozenset()
        while True:
            answers = RecordedAnswers(self.program, turn, self._redacted, unknown)
            rendered = self._rendered(state, turn, answers)
            if answers.repeated <= unknown:
                return rendered
            unknown |= answers.repeated

    def _rendered(
        self, state: SessionState, turn: Turn, answers: RecordedAnswers
    ) -> tuple[tuple[Sent, ...], str]:
        stand_in = StandIn(self._lm or dspy.settings.lm, self.program, answers)
        flow = running(
            self.program,
            state,
            redacted_fields(turn.inputs, self._redacted),
            self._options,
            settings=CallSettings(lm=stand_in),
            at=turn.index,
            trial=True,
            instructions=self._instructions,
            window=turn.window if self._as_seen else None,
        )
        try:
            with dspy.context(**self._surroundings()):
                if _only_awaits(self.program):
                    waited(adrive(flow, async_call(self.program)))
                else:
                    drive(flow, sync_call(self.program))
        except UnrecordedError as error:
            return stand_in.in_order, str(error)
        except Exception as error:  # noqa: BLE001  # the program's own, which the report tells of
            return stand_in.in_order, "".join(traceback.format_exception_only(error)).strip()
        return stand_in.in_order, ""

    def _surroundings(self) -> dict[str, Any]:
        # Callbacks of the application watch calls, and here there are none.
        chosen: dict[str, Any] = {FRAME_KEY: None, "callbacks": [NothingCalled()], "trace": []}
        return chosen if self._adapter is None else {**chosen, "adapter": self._adapter}


def _only_awaits(program: dspy.Module) -> bool:
    kind = type(program)
    return hasattr(kind, "aforward") and not hasattr(kind, "forward")


def _running_answers() -> RecordedAnswers:
    """What the running turn recorded; within turns of sessions inside, of the one around them."""
    frame = current_frame()
    while frame is not None:
        if isinstance(frame.lm, StandIn):
            return frame.lm.answers
        frame = frame.parent
    raise RuntimeError("a recorded tool runs in no turn that renders prompts")
